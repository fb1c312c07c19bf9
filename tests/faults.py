"""Commands that are killed, run into a full disk, or meet each other, and what is there afterwards.

    python tests/faults.py kills --cases 200 --seed 0
    python tests/faults.py full-disk --cases 200 --seed 0
    python tests/faults.py meetings --cases 50 --seed 0

Prints JSON: the number of cases by command and outcome, and every failure with what repeats it. What ended
before its signal came, or had room enough, is no case: it is counted apart, and more are tried instead.
Commands run in forks of this process, which has everything imported but has computed nothing.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import matplotlib.figure  # noqa: F401  (here, so that no fork has to)
import numpy as np
from counting import tell

import blurrerank as br
import blurrerank.cli
import blurrerank.engine.checkpoint
import blurrerank.engine.runs
import blurrerank.index.building
import blurrerank.methods.k_reciprocal
import blurrerank.methods.k_reciprocal_online
import blurrerank.methods.lbr

for name in br.__all__:
    getattr(br, name)
# What can be gone on from is kept all the time.
blurrerank.engine.checkpoint.SECONDS = 0.0
blurrerank.index.building.build_index.__kwdefaults__["checkpoint_seconds"] = 0.0

TIMEOUT = 60.0
# Outcomes of what was to meet with something, and did not; and how many times the cases may be tried for it.
EARLY, ROOM, NO_ROOM = "ended before the signal", "had room", "no room for what is there before"
MISSED = (EARLY, ROOM, NO_ROOM)
TRIES = 5


@dataclass(frozen=True)
class Command:
    """One that writes a file.

    `first` writes what is there before, if anything; `again` is what a user does after an interruption. What is
    there before may get a second name, `base`.
    """

    name: str
    target: str
    arguments: tuple[str, ...]
    first: tuple[str, ...] = ()
    again: tuple[str, ...] = ("--force",)
    base: str | None = None


RUN = ("run", "feats.h5", "-q", "--memory", "600KiB")
INDEX = ("index", "gallery.h5", "-o", "out.index.h5", "-q", "--pool", "15")
NEAR = (*INDEX, "--ann", "hnsw")
CHANGES = {
    "index --append": ("index", "more.h5", "-o", "out.index.h5", "-q", "--append"),
    "index --remove": ("index", "-o", "out.index.h5", "-q", "--remove", "3,17,40-69"),
}
COMMANDS = [
    Command("run, h5", "out.h5", (*RUN, "-o", "out.h5"), again=("--resume", "--force")),
    Command(
        "run, trec over another",
        "out.trec",
        (*RUN, "-o", "out.trec", "--force"),
        first=(*RUN, "-o", "out.trec", "--sigma", "0.3"),
        again=("--resume",),
    ),
    Command(
        "run, jsonl of all",
        "out.jsonl",
        (*RUN, "-o", "out.jsonl", "--depth", "all"),
        again=("--resume", "--force"),
    ),
    Command("run, csv", "out.csv", (*RUN, "-o", "out.csv"), again=("--resume", "--force")),
    Command(
        "run, npz over another",
        "out.npz",
        (*RUN, "-o", "out.npz", "--force"),
        first=(*RUN, "-o", "out.npz", "--method", "cosine"),
        again=("--resume",),
    ),
    Command(
        "run, k-reciprocal",
        "out.h5",
        (*RUN, "-o", "out.h5", "--method", "k-reciprocal", "--k1", "8", "--k2", "3"),
        again=("--resume", "--force"),
    ),
    Command("index", "out.index.h5", INDEX),
    *(
        Command(f"{name}{kind}", "out.index.h5", arguments, first=built, again=(), base=base)
        for kind, built, base in (("", INDEX, None), (", approximate", NEAR, "out.index.h5.base"))
        for name, arguments in CHANGES.items()
    ),
    Command("convert", "out.h5", ("convert", "dump.npz", "out.h5", "-q")),
    Command("report", "out.html", ("report", "lists.h5", "feats.h5", "-o", "out.html", "-q")),
    Command("plot", "out.png", ("plot", "lists.h5", "feats.h5", "-o", "out.png", "-q")),
    Command(
        "sweep over another",
        "out.json",
        ("sweep", "feats.h5", "-o", "out.json", "--topn", "5,10", "--sigma", "0.1,0.2", "-q"),
        first=("sweep", "feats.h5", "-o", "out.json", "--topn", "5", "--sigma", "0.1", "-q"),
        again=(),
    ),
]


def material(folder: Path) -> None:
    """What the commands read."""
    rng = np.random.default_rng(0)
    centres = rng.standard_normal((40, 24))

    def side(count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        ids = rng.integers(0, 40, count)
        rows = centres[ids] + rng.standard_normal((count, 24))
        return rows.astype(np.float32), ids + 1, rng.integers(0, 5, count)

    (probe, probe_ids, probe_cams), (gallery, gallery_ids, gallery_cams) = side(70), side(400)
    labels = {
        "probe_ids": probe_ids,
        "gallery_ids": gallery_ids,
        "probe_cams": probe_cams,
        "gallery_cams": gallery_cams,
    }
    br.save_features(br.FeatureSet.from_arrays(probe, gallery, **labels), folder / "feats.h5")
    for name in ("gallery.h5", "more.h5"):
        br.save_features(br.FeatureSet.from_arrays(probe[:1], side(150)[0]), folder / name)
    np.savez(
        folder / "dump.npz",
        qf=probe,
        gf=gallery,
        q_pids=probe_ids,
        g_pids=gallery_ids,
        q_camids=probe_cams,
        g_camids=gallery_cams,
    )


class Child:
    """A fork that runs one command; what it prints goes to a file."""

    def __init__(self, folder: Path, arguments: tuple[str, ...], told: Path) -> None:
        self.began = time.monotonic()
        self.told = told
        self.pid = os.fork()
        if self.pid:
            return
        try:
            os.chdir(folder)
            out = os.open(told, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(out, 1)
            os.dup2(out, 2)
            signal.signal(signal.SIGINT, signal.default_int_handler)
            blurrerank.cli.main(arguments)
        except SystemExit as stop:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(int(stop.code or 0))
        except BaseException:  # where a signal comes while the way out is being taken, as in any program
            os._exit(130)

    def running(self) -> bool:
        """Whether it has not ended."""
        return os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None

    def send(self, number: int) -> None:
        """Send a signal, if it is still there."""
        if self.running():
            os.kill(self.pid, number)

    def code(self) -> int:
        """How it ended; minus a signal's number. Raises TimeoutError if it does not end."""
        while self.running():
            if time.monotonic() > self.began + TIMEOUT:
                os.kill(self.pid, signal.SIGKILL)
                os.waitpid(self.pid, 0)
                raise TimeoutError(f"still running after {TIMEOUT:.0f} s: {self.lines()}")
            time.sleep(0.002)
        self.seconds = time.monotonic() - self.began
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])

    def lines(self) -> list[str]:
        """What it printed."""
        return self.told.read_text(errors="replace").splitlines() if self.told.exists() else []


def finished(folder: Path, arguments: tuple[str, ...], told: Path) -> float:
    """Run a command that must do well; gives the seconds."""
    child = Child(folder, arguments, told)
    code = child.code()
    if code:
        raise AssertionError(f"{' '.join(arguments)} ended with {code}: {child.lines()}")
    return child.seconds


def content(path: Path) -> bytes | None:
    """What a file holds, if it is there."""
    return path.read_bytes() if path.exists() else None


@dataclass
class Known:
    """What a command writes if nothing happens, what stands there before, and how long it takes."""

    before: bytes | None
    after: bytes
    seconds: float


class Bench:
    """A folder with everything the commands read, and copies of it."""

    def __init__(self, root: Path) -> None:
        self.root, self.told = root, root / "told"
        self.source = root / "source"
        self.source.mkdir()
        child = os.fork()
        if not child:
            try:
                material(self.source)
                os._exit(0)
            except BaseException:
                traceback.print_exc()
                os._exit(1)
        assert os.waitpid(child, 0)[1] == 0
        finished(self.source, ("run", "feats.h5", "-q", "-o", "lists.h5"), self.told)
        self._known: dict[str, Known] = {}

    @contextmanager
    def folder(self, command: Command, place: Path | None = None) -> Iterator[Path]:
        """A fresh folder, with what stands there before the command."""
        with tempfile.TemporaryDirectory(dir=place or self.root) as name:
            folder = Path(name)
            for file in self.source.iterdir():
                (folder / file.name).symlink_to(file)
            if command.first:
                before = self.known(command).before if command.name in self._known else None
                if before is None:
                    finished(folder, command.first, self.told)
                else:
                    (folder / command.target).write_bytes(before)
            yield folder

    def known(self, command: Command) -> Known:
        """What the command does if it is left alone."""
        if command.name not in self._known:
            with self.folder(command) as folder:
                before = content(folder / command.target)
                seconds = finished(folder, command.arguments, self.told)
                after = (folder / command.target).read_bytes()
                assert before != after
                assert left(folder, self.source, command) == []
            self._known[command.name] = Known(before, after, seconds)
        return self._known[command.name]


def left(folder: Path, source: Path, command: Command) -> list[str]:
    """What lies in a folder beside input and output."""
    mine = {command.target, command.base, *(file.name for file in source.iterdir())}
    return sorted(file.name for file in folder.iterdir() if file.name not in mine)


def problem(lines: list[str], code: int) -> str | None:
    """What is wrong with what a command said that did not end well."""
    errors = [line for line in lines if line.startswith("error: ")]
    if any("Traceback" in line or "internal error" in line for line in lines):
        return f"said {lines}"
    if code == 1 and len(errors) != 1:
        return f"said {lines}"
    return None


def kill(bench: Bench, command: Command, rng: random.Random) -> str:
    """Kill a command at some moment, look, and do it again; raises AssertionError, or says what was there."""
    known = bench.known(command)
    how = rng.choice([signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
    # Half of the moments are near the end, where files are written.
    moment = known.seconds * (rng.random() if rng.random() < 0.5 else rng.uniform(0.7, 1.1))
    with bench.folder(command) as folder:
        child = Child(folder, command.arguments, bench.told)
        while child.running() and time.monotonic() < child.began + moment:
            time.sleep(0.002)
        child.send(how)
        code, lines = child.code(), child.lines()
        found = content(folder / command.target)
        where = f"{how.name} after {moment:.3f} of {known.seconds:.3f} s"
        assert found in (known.before, known.after), f"{where}: {command.target} is neither old nor new"
        if command.base is not None and found == known.after:
            assert content(folder / command.base) == known.before, (
                f"{where}: {command.base} is not the old file"
            )
        assert code in (0, -how, 128 + how) or (code == 1 and how != signal.SIGKILL), f"{where}: {code} {lines}"
        wrong = problem(lines, code)
        assert wrong is None, f"{where}: {wrong}"
        if code == 0:
            assert found == known.after, f"{where}: ended with 0 and wrote nothing"
            assert left(folder, bench.source, command) == [], f"{where}: {left(folder, bench.source, command)}"
            known.seconds = child.seconds  # the machine has less to do than before
            return EARLY
        done = found == known.after
        if not (done and command.first):
            finished(folder, (*command.arguments, *command.again), bench.told)
            assert content(folder / command.target) == known.after, f"{where}: another file when done again"
            assert left(folder, bench.source, command) == [], f"{where}: {left(folder, bench.source, command)}"
    return "complete" if done else "as before"


def fill(bench: Bench, command: Command, rng: random.Random) -> str:
    """Run a command where the disk has too little room, or just enough."""
    known = bench.known(command)
    room = max(1, round(rng.random() * 1.6 * (len(known.after) + len(known.before or b"")) / 4096) + 4)
    place = bench.root / "small"
    place.mkdir(exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={4 * room}k", "tmpfs", place], check=True)
    try:
        where = f"a disk of {4 * room} KiB, {len(known.after)} bytes to write"
        with ExitStack() as stack:
            try:
                folder = stack.enter_context(bench.folder(command, place))
            except OSError:
                return NO_ROOM
            child = Child(folder, command.arguments, bench.told)
            code, lines = child.code(), child.lines()
            found = content(folder / command.target)
            if code == 0:
                assert found == known.after, f"{where}: ended with 0 and wrote something else"
                outcome = ROOM
            else:
                assert code == 1, f"{where}: {code} {lines}"
                assert "No space left on device" in lines[-1], f"{where}: {lines}"
                assert found == known.before, f"{where}: what was there is not there any more"
                outcome = "as before"
            wrong = problem(lines, code)
            assert wrong is None, f"{where}: {wrong}"
            for name in left(folder, bench.source, command):
                # What can be gone on from, and nothing else.
                some = folder / name
                kept = name.endswith(".partial") or any(one.name.startswith("kept") for one in some.iterdir())
                assert kept, f"{where}: {name} is left, with {sorted(one.name for one in some.iterdir())}"
            return outcome
    finally:
        subprocess.run(["umount", "-l", place], check=True)


def meet(bench: Bench, command: Command, rng: random.Random) -> str:
    """Several processes write the same file at about the same time; one each, with results of their own."""
    runs = [(*RUN, "-o", "out.trec", "--sigma", str(sigma)) for sigma in (0.1, 0.2, 0.3, 0.4)]
    expected = []
    for run in runs:
        name = f"meeting {run[-1]}"
        expected.append(bench.known(Command(name, "out.trec", run)).after)
    force = rng.random() < 0.5
    longest = bench.known(Command("meeting 0.1", "out.trec", runs[0])).seconds
    with bench.folder(command) as folder:
        children = []
        for number, run in enumerate(runs):
            children.append(Child(folder, run + ("--force",) * force, bench.root / f"told{number}"))
            time.sleep(rng.random() * longest / 2)
        codes = [child.code() for child in children]
        found = content(folder / "out.trec")
        winners = [number for number, code in enumerate(codes) if code == 0]
        said = [child.lines() for child in children]
        assert winners, f"nobody wrote: {said}"
        assert force or len(winners) == 1, f"{len(winners)} wrote the same file: {said}"
        assert found in [expected[number] for number in winners], f"what is there is nobody's: {codes}"
        for number, code in enumerate(codes):
            if code:
                assert (code, len(said[number])) == (1, 1), said[number]
                words = (
                    "being written by another",
                    "written by another process meanwhile",
                    "exists: pass --force",
                )
                assert any(word in said[number][0] for word in words), said[number]
        lying = left(folder, bench.source, Command("", "out.trec", ()))
        assert lying == [], f"{lying} is left: {codes} {said}"
    return f"{len(winners)} of 4 wrote"


KINDS: dict[str, tuple[Callable[[Bench, Command, random.Random], str], list[Command]]] = {
    "kills": (kill, COMMANDS),
    "full-disk": (fill, COMMANDS),
    "meetings": (meet, [Command("run", "out.trec", ())]),
}


def main() -> None:
    """Run cases of one kind."""
    parser = argparse.ArgumentParser()
    parser.add_argument("kind", choices=KINDS)
    parser.add_argument("--cases", type=int, default=200, help="so many that met with it")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int, help="this case alone")
    parser.add_argument("--seconds", type=float, help="stop after so long")
    options = parser.parse_args()
    if options.kind == "full-disk" and "BLURRERANK_MOUNTS" not in os.environ:
        # Mounts are nobody else's business.
        again = ["unshare", "--map-root-user", "--mount", sys.executable, *sys.argv]
        os.execvpe("unshare", again, os.environ | {"BLURRERANK_MOUNTS": "apart"})
    case, commands = KINDS[options.kind]
    outcomes: dict[str, Counter[str]] = {}
    failures = []
    met = 0
    began = time.monotonic()
    root = Path(tempfile.mkdtemp())
    try:
        bench = Bench(root)
        for number in range(TRIES * options.cases) if options.only is None else [options.only]:
            late = options.seconds is not None and time.monotonic() > began + options.seconds
            if late or met == options.cases:
                break
            command = commands[number % len(commands)]
            try:
                outcome = case(bench, command, random.Random(f"{options.seed} {number}"))
            except (AssertionError, TimeoutError, OSError) as error:
                outcome = "FAILURE"
                failures.append(
                    f"{command.name}: {error!r}; again: tests/faults.py {options.kind} --seed {options.seed} "
                    f"--only {number}"
                )
            outcomes.setdefault(command.name, Counter())[outcome] += 1
            met += outcome not in MISSED
        if options.only is None and options.seconds is None and met < options.cases:
            failures.append(f"only {met} of {options.cases} cases came about in {TRIES * options.cases} tries")
    finally:
        shutil.rmtree(root, ignore_errors=True)
    tell(options.seed, outcomes, failures, MISSED)
    sys.exit(bool(failures))


if __name__ == "__main__":
    main()
