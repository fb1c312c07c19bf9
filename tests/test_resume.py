"""Going on from what an interrupted run left. What kills do to files is in test_faults.py."""

import errno
import fcntl
import json
import os
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import features
from forks import forked_together

import blurrerank as br
import blurrerank.engine.checkpoint
from blurrerank.engine import ranking
from blurrerank.engine.checkpoint import Checkpoint, Done, keeping
from blurrerank.files import targets
from blurrerank.methods import available
from blurrerank.search import sources

METHODS = {
    "lbr": (),
    "cosine": ("--method", "cosine"),
    "k-reciprocal": ("--method", "k-reciprocal", "--k1", 8, "--k2", 3),
    "k-reciprocal-online": ("--method", "k-reciprocal-online", "--pool", 16),
    "candidates": ("--candidates", "lists.npy"),
    "superglobal": ("--method", "superglobal", "--topn", 20),
    "all": ("--depth", "all"),
    "cuhk03": ("--protocol", "cuhk03"),
}
METHODS |= {method: ("--method", method) for method in available() if method not in METHODS}
SMALL = ("--memory", "400KiB")  # some probes at a time
ASK = "pass --resume to continue from them, or --force to start over"


@pytest.fixture
def feats(tmp_path):
    arrays = features(probes=40, gallery=150)
    br.save_features(br.FeatureSet.from_arrays(**arrays), tmp_path / "feats.h5")
    rng = np.random.default_rng(1)
    np.save(tmp_path / "lists.npy", np.stack([rng.permutation(150)[:30] for _ in range(40)]))
    return "feats.h5"


@pytest.fixture
def interrupted(cli, feats, monkeypatch):
    """Run until so many blocks of probes are kept, and then no further."""

    def interrupted(blocks, *arguments):
        monkeypatch.setattr(blurrerank.engine.checkpoint, "SECONDS", 0.0)
        left = iter(range(blocks - 1))
        add = Checkpoint.add

        def add_or_stop(self, done):
            add(self, done)
            if next(left, None) is None:
                raise KeyboardInterrupt

        with monkeypatch.context() as patched:
            patched.setattr(Checkpoint, "add", add_or_stop)
            return cli("run", feats, *SMALL, *arguments)

    return interrupted


def left(name):
    """What an interrupted run left for an output."""
    folder = Path(f".{name}.blurrerank")
    return Checkpoint(folder, json.loads((folder / "kept.json").read_text()), Path(name))


def names(folder):
    return sorted(path.name for path in folder.iterdir())


# Formats do not know of methods.
@pytest.mark.parametrize(
    ("name", "method"),
    [("out.h5", method) for method in METHODS]
    + [(f"out.{end}", "lbr") for end in ("trec", "jsonl", "csv", "npz")],
)
def test_the_file_is_that_of_a_run_without_interruption(name, method, cli, feats, interrupted, tmp_path):
    options = METHODS[method]
    assert cli("run", feats, "-o", f"whole-{name}", "--metrics", "whole.json", *SMALL, *options)[0] == 0
    code, out, err = interrupted(2, "-o", name, "--metrics", "out.json", *options)
    assert code == 130
    assert out == ""
    told = f"note: partial results of {name} are kept; run the same command with --resume to continue\n"
    assert err.endswith(f"{told}error: interrupted\n")
    assert not Path(name).exists()
    assert interrupted(1, "-o", name, "--metrics", "out.json", *options, "--resume")[0] == 130
    code, _, err = cli("run", feats, "-o", name, "--metrics", "out.json", *SMALL, *options, "--resume")
    assert code == 0, err
    assert " of them from before the interruption\n" in err
    assert Path(name).read_bytes() == Path(f"whole-{name}").read_bytes()
    ours, theirs = (json.loads(Path(file).read_text()) for file in ("out.json", "whole.json"))
    assert ours | {"output": None} == theirs | {"output": None}
    assert names(tmp_path) == sorted(["feats.h5", "lists.npy", name, f"whole-{name}", "out.json", "whole.json"])


def test_blocks_that_are_kept_are_not_done_again(cli, feats, interrupted, monkeypatch):
    assert interrupted(2, "-o", "out.h5")[0] == 130
    kept = list(left("out.h5").done())
    assert len(kept) == 2
    seen = []
    add = Checkpoint.add
    monkeypatch.setattr(Checkpoint, "add", lambda self, done: (seen.append(done.start), add(self, done)))
    assert cli("run", feats, *SMALL, "-o", "out.h5", "--resume")[0] == 0
    assert seen[0] == kept[-1].stop > 0


def test_neighbours_of_all_images_are_kept(cli, feats, monkeypatch):
    """k-reciprocal finds these before it comes to the first probe."""
    monkeypatch.setattr(blurrerank.engine.checkpoint, "SECONDS", 0.0)
    options = ("--memory", "2MiB", *METHODS["k-reciprocal"])
    assert cli("run", feats, "-o", "whole.h5", *options)[0] == 0
    keep = Checkpoint.keep

    def keep_and_stop(self, answer):
        keep(self, answer)
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Checkpoint, "keep", keep_and_stop)
        assert cli("run", feats, "-o", "out.h5", *options)[0] == 130
    found = left("out.h5").known
    assert found is not None
    assert len(found) > 0
    begun = []
    find = ranking.find_graph

    def find_graph(*arguments, known, **options):
        begun.append(len(known))
        return find(*arguments, known=known, **options)

    monkeypatch.setattr(ranking, "find_graph", find_graph)
    assert cli("run", feats, "-o", "out.h5", "--resume", *options)[0] == 0
    assert begun == [len(found)]
    assert Path("out.h5").read_bytes() == Path("whole.h5").read_bytes()


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (("--sigma", 0.2), "with sigma 0.1, not 0.2"),
        (("--topn", 20), "with topn 50, not 20"),
        (("--method", "cosine"), "with method lbr, not cosine"),
        (("--depth", 7), "with depth 50, not 7"),
        (("--format", "trec"), "with format h5, not trec"),
        (("--protocol", "cuhk03"), "with protocol market1501, not cuhk03"),
        (("--candidates", "lists.npy"), "of other candidates"),
    ],
)
def test_another_run_is_not_mixed_with_what_is_left(change, why, cli, feats, interrupted):
    assert interrupted(1, "-o", "out.h5")[0] == 130
    code, out, err = cli("run", feats, *SMALL, "-o", "out.h5", "--resume", *change)
    assert (code, out) == (1, "")
    assert f"error: out.h5: an interrupted run left lists {why}; start over with --force" in err
    assert cli("run", feats, *SMALL, "-o", "out.h5", "--resume")[0] == 0


@pytest.mark.parametrize("part", ["probe/features", "gallery/features", "gallery/ids", "probe/cams"])
def test_other_input_is_not_mixed_with_what_is_left(part, cli, feats, interrupted, edit):
    assert interrupted(1, "-o", "out.h5")[0] == 130
    with edit(feats) as file:
        file[part][3] = file[part][3] + 1
    code, out, err = cli("run", feats, *SMALL, "-o", "out.h5", "--resume")
    assert (code, out) == (1, "")
    what = "features" if part.endswith("features") else "labels"
    assert err.startswith(f"error: out.h5: an interrupted run left lists of other {what}; ")


@pytest.fixture
def edit():
    import h5py

    return lambda path: h5py.File(path, "r+")


def test_what_is_left_is_neither_lost_nor_used_unasked(cli, feats, interrupted, tmp_path):
    assert interrupted(1, "-o", "out.h5")[0] == 130
    before = names(tmp_path / ".out.h5.blurrerank")
    code, out, err = cli("run", feats, *SMALL, "-o", "out.h5")
    assert (code, out, err) == (1, "", f"error: out.h5: an interrupted run left partial results; {ASK}\n")
    assert cli("run", feats, *SMALL, "-o", "another.h5")[0] == 0
    assert names(tmp_path / ".out.h5.blurrerank") == before
    code, _, err = cli("run", feats, *SMALL, "-o", "out.h5", "--force")
    assert code == 0
    assert "interruption" not in err
    assert names(tmp_path) == ["another.h5", "feats.h5", "lists.npy", "out.h5"]


@pytest.mark.parametrize("damage", ["cut short", "missing", "rubbish"])
def test_damaged_blocks_are_done_again(damage, cli, feats, interrupted, tmp_path):
    assert cli("run", feats, *SMALL, "-o", "whole.h5")[0] == 0
    assert interrupted(3, "-o", "out.h5")[0] == 130
    block = sorted((tmp_path / ".out.h5.blurrerank").glob("kept-*.npz"))[1]
    if damage == "cut short":
        block.write_bytes(block.read_bytes()[:-100])
    elif damage == "missing":
        block.unlink()
    else:
        block.write_bytes(b"rubbish")
    assert cli("run", feats, *SMALL, "-o", "out.h5", "--resume")[0] == 0
    assert Path("out.h5").read_bytes() == Path("whole.h5").read_bytes()


def test_a_damaged_note_of_what_it_is_is_refused(cli, feats, interrupted, tmp_path):
    assert interrupted(1, "-o", "out.h5")[0] == 130
    (tmp_path / ".out.h5.blurrerank/kept.json").write_text("{}")
    code, _, err = cli("run", feats, *SMALL, "-o", "out.h5", "--resume")
    assert code == 1
    assert err.startswith(
        "error: out.h5: the partial results of an interrupted run are damaged; start over with --force"
    )


def test_with_nothing_to_go_on_from_a_run_begins(cli, feats):
    code, _, err = cli("run", feats, "-o", "out.h5", "--resume")
    assert code == 0
    assert err.endswith("wrote out.h5: 40 lists of 50\n")
    code, _, err = cli("run", feats, "-o", "out.h5", "--resume")
    told = "error: out.h5 exists, and there are no partial results to resume: pass --force to replace it\n"
    assert (code, err) == (1, told)


def test_a_pipe_keeps_nothing(cli, feats):
    code, _, err = cli("run", feats, "-o", "-", "--format", "trec", "--resume")
    assert code == 2
    assert "--resume needs an output file" in err


def test_short_runs_keep_nothing(cli, feats, monkeypatch, tmp_path):
    """What took less than half a minute is done again as fast as it is explained."""

    def stop(self, done):
        self._waiting.append(done)
        raise KeyboardInterrupt

    monkeypatch.setattr(Checkpoint, "add", stop)
    code, _, err = cli("run", feats, *SMALL, "-o", "out.h5")
    assert (code, err) == (130, "note: no partial results of out.h5 were kept\nerror: interrupted\n")
    assert names(tmp_path) == ["feats.h5", "lists.npy"]


def test_nothing_to_resume_is_told(cli, feats):
    code, _, err = cli("run", feats, "-o", "out.h5", "--resume")
    assert code == 0
    assert err.startswith("note: there are no partial results of out.h5: starting from the beginning\n")


def test_processes_go_on_from_what_one_left(cli, feats, interrupted):
    assert cli("run", feats, *SMALL, "-o", "whole.h5")[0] == 0
    assert interrupted(2, "-o", "out.h5")[0] == 130
    done = forked_together(2, "run", feats, "-o", "out.h5", "--resume", *SMALL, cwd=Path.cwd())
    assert done.returncode == 0, done.stderr
    assert " of them from before the interruption" in done.stderr
    assert Path("out.h5").read_bytes() == Path("whole.h5").read_bytes()


@pytest.mark.parametrize(
    ("method", "memory", "room"),
    [("lbr", 800, 10), ("k-reciprocal", 600, 6), ("k-reciprocal-online", 800, 6), ("candidates", 600, 6)],
)
def test_out_of_memory_halves_the_budget_and_goes_on(method, memory, room, feats, monkeypatch, tmp_path):
    """As a GPU says it, which this does not need."""
    import torch

    data = br.load(feats if Path(feats).exists() else tmp_path / feats)
    options = {"lbr": {}, "candidates": {}}.get(method, {"method": method})
    if method == "candidates":
        options["candidates"] = np.load(tmp_path / "lists.npy")
    expected = br.rerank(data, **options)
    name = "look_up" if method == "candidates" else "search"
    plain = getattr(sources, name)
    batches = []

    def little_room(*arguments, **others):
        query = arguments[-1]
        batches.append((query.first, query.batch))
        for number, found in enumerate(plain(*arguments, **others)):
            if query.batch > room and number:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. And so on.")
            yield found

    monkeypatch.setattr(sources, name, little_room)
    with pytest.warns(br.BlurrerankWarning, match="is out of memory: continuing from probe [1-9]"):
        found = br.rerank(data, memory=memory << 10, **options)
    assert len(batches) > 1
    assert batches[-1][1] <= room < batches[0][1]
    np.testing.assert_array_equal(found.indices, expected.indices)
    np.testing.assert_array_equal(found.scores, expected.scores)


def test_out_of_memory_with_one_probe_is_the_end(feats, monkeypatch, tmp_path):
    import torch

    def no_room(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. And so on.")

    monkeypatch.setattr(sources, "search", no_room)
    with (
        pytest.warns(br.BlurrerankWarning),
        pytest.raises(br.BlurrerankError, match=r"^cpu is out of memory: CUDA out of memory$"),
    ):
        br.rerank(br.load(tmp_path / feats), memory=1 << 20)


@pytest.mark.parametrize("note", ["none", "of another run"])
def test_lists_that_nothing_says_the_run_of_are_not_used(note, interrupted, cli, tmp_path):
    """As a run leaves them that was killed while it took away what it had kept."""
    assert interrupted(2, "-o", "out.h5")[0] == 130
    if note == "none":
        (tmp_path / ".out.h5.blurrerank/kept.json").unlink()
    else:
        assert interrupted(1, "-o", "other.h5", "--sigma", 0.3)[0] == 130
        (tmp_path / ".other.h5.blurrerank/kept.json").rename(tmp_path / ".out.h5.blurrerank/kept.json")
        assert cli("run", "feats.h5", "-o", "other.h5", "--force")[0] == 0
        (tmp_path / "other.h5").unlink()
    assert cli("run", "feats.h5", "-o", "out.h5", "--sigma", 0.3, "--resume")[0] == 0
    assert cli("run", "feats.h5", "-o", "whole.h5", "--sigma", 0.3)[0] == 0
    assert (tmp_path / "out.h5").read_bytes() == (tmp_path / "whole.h5").read_bytes()
    assert names(tmp_path) == ["feats.h5", "lists.npy", "out.h5", "whole.h5"]


def test_a_link_in_the_place_of_the_folder_is_refused(cli, feats, tmp_path):
    """Whoever put it there would have what it points to removed."""
    (tmp_path / "precious").mkdir()
    for name in ("output.txt", "kept-1.npz", "kept.json", "lock"):
        (tmp_path / "precious" / name).write_text("precious")
    (tmp_path / ".out.h5.blurrerank").symlink_to("precious")
    for more in ((), ("--force",), ("--resume",)):
        code, out, err = cli("run", feats, "-o", "out.h5", *more)
        assert (code, out) == (1, "")
        assert err.endswith("/.out.h5.blurrerank is a link; remove it\n")
    assert cli("run", feats, "-o", "other.h5")[0] == 0
    assert names(tmp_path / "precious") == ["kept-1.npz", "kept.json", "lock", "output.txt"]


def test_targets_that_are_links_in_a_circle_or_have_long_names(cli, feats, tmp_path):
    (tmp_path / "a.h5").symlink_to("b.h5")
    (tmp_path / "b.h5").symlink_to("a.h5")
    for command in (("run", feats, "-o", "a.h5", "--force"), ("convert", feats, "a.h5", "--force")):
        assert cli(*command)[::2] == (
            1,
            "error: a.h5 is a broken link: remove it, or choose another name\n",
        )
    longest = "n" * 252 + ".h5"
    assert cli("run", feats, "-o", longest)[0] == 0
    assert longest in names(tmp_path)


@pytest.mark.parametrize(
    "error", [MemoryError(), br.BlurrerankError("out of memory"), br.InputError("it changed")]
)
def test_what_is_kept_is_told_however_a_run_ends(error, cli, feats, monkeypatch):
    monkeypatch.setattr(blurrerank.engine.checkpoint, "SECONDS", 0.0)
    add = Checkpoint.add

    def add_and_fail(self, done):
        add(self, done)
        raise error

    monkeypatch.setattr(Checkpoint, "add", add_and_fail)
    code, _, err = cli("run", feats, *SMALL, "-o", "out.h5")
    assert code == 1
    assert "note: partial results of out.h5 are kept; run the same command with --resume to continue\n" in err
    code, _, err = cli("run", feats, *SMALL, "-o", "out.h5", "--resume", "--sigma", 0.3)
    assert (code, "to continue" in err) == (1, False)


def full_disk(monkeypatch, fails):
    """No room for lists where `fails` says so of how often it was tried; returns the first probe of each."""
    tried = []
    save = np.savez

    def savez(file, **arrays):
        tried.append(int(arrays["start"]))
        if fails(len(tried) - 1):
            raise OSError(errno.ENOSPC, "No space left on device")
        save(file, **arrays)

    monkeypatch.setattr(np, "savez", savez)
    return tried


def test_what_could_not_be_kept_is_kept_later(cli, feats, interrupted, monkeypatch, tmp_path):
    assert cli("run", feats, *SMALL, "-o", "whole.h5")[0] == 0
    tried = full_disk(monkeypatch, lambda count: count in (1, 2))
    code, _, err = interrupted(5, "-o", "out.h5")
    assert code == 130
    assert err.count("partial results cannot be kept") == 1
    assert tried[1] == tried[2] == tried[3]
    (*_, last) = left("out.h5").done()
    code, _, err = cli("run", feats, *SMALL, "-o", "out.h5", "--resume")
    assert code == 0
    assert f"{last.stop} of them from before the interruption" in err
    assert last.start > tried[3]
    assert (tmp_path / "out.h5").read_bytes() == (tmp_path / "whole.h5").read_bytes()


def test_after_blocks_that_could_not_be_kept_no_more_are(interrupted, monkeypatch, tmp_path):
    """They would fill the memory, and what came behind the gap could not be used."""
    monkeypatch.setattr(blurrerank.engine.checkpoint, "_WAITING_BYTES", 0)
    tried = full_disk(monkeypatch, lambda count: count == 1)
    code, _, err = interrupted(5, "-o", "out.h5")
    assert code == 130
    assert err.count("partial results cannot be kept") == 1
    assert err.count("no further partial results are kept for --resume") == 1
    assert len(tried) == 2
    assert [name for name in names(tmp_path / ".out.h5.blurrerank") if name.startswith("kept-")] == [
        f"kept-{tried[0]:012}.npz"
    ]


def test_neighbours_that_cannot_be_kept_do_not_keep_lists_from_being_kept(interrupted, monkeypatch, tmp_path):
    def full(*_, **__):
        raise br.OutputError("kept-neighbours.h5 cannot be written: No space left on device")

    monkeypatch.setattr(blurrerank.engine.checkpoint, "write_partial", full)
    code, _, err = interrupted(3, "-o", "out.h5", "--method", "k-reciprocal")
    assert code == 130
    assert err.count("partial results cannot be kept") == 1
    assert len([name for name in names(tmp_path / ".out.h5.blurrerank") if name.endswith(".npz")]) == 3


def test_kept_lists_with_any_bit_flipped_are_not_used(interrupted, monkeypatch):
    """Neither by a different list, nor by an error of whatever kind."""
    interrupted(1, "-o", "out.h5")
    (path,) = Path(".out.h5.blurrerank").glob("kept-*.npz")
    sound = path.read_bytes()
    (known,) = left("out.h5").done()
    rng = np.random.default_rng(0)
    # Names and sizes are at the beginning and the end: three bits of each byte there.
    bits = {
        *(8 * (byte % len(sound)) + bit for byte in range(-1200, 200) for bit in rng.permutation(8)[:3]),
        *rng.integers(8 * len(sound), size=500),
    }
    for bit in bits:
        with path.open("r+b") as file:
            file.seek(bit // 8)
            file.write(bytes([sound[bit // 8] ^ 1 << bit % 8]))
        for found in left("out.h5").done():
            np.testing.assert_array_equal(found.indices, known.indices)
            np.testing.assert_array_equal(found.scores, known.scores)
        with path.open("r+b") as file:
            file.seek(bit // 8)
            file.write(sound[bit // 8 :][:1])
    assert path.read_bytes() == sound


def test_an_error_before_the_work_does_not_advise_to_resume(interrupted, cli, feats):
    interrupted(2, "-o", "out.h5")
    code, _, err = cli("run", feats, "-o", "out.h5", "--resume", *SMALL, "--memory", "1KiB")
    assert code == 2
    assert "to continue" not in err


def test_many_who_write_in_one_place_do_not_wait_for_each_other(cli, feats, tmp_path, monkeypatch):
    """Each folder that somebody holds is looked at once."""
    paused = []
    monkeypatch.setattr(targets.time, "sleep", paused.append)
    with ExitStack() as stack:
        for number in range(5):
            folder = tmp_path / f".other{number}.blurrerank"
            folder.mkdir()
            fcntl.flock(stack.enter_context(open(folder / "lock", "w")), fcntl.LOCK_EX)
        assert cli("run", feats, "-o", "out.h5")[0] == 0
        assert not paused
        assert len([name for name in names(tmp_path) if name.endswith(".blurrerank")]) == 5


def test_a_folder_without_a_lock_is_swept(cli, feats, tmp_path):
    """Its process was killed right after it had made it."""
    (tmp_path / ".gone.h5.blurrerank").mkdir()
    assert cli("run", feats, "-o", "out.h5")[0] == 0
    assert ".gone.h5.blurrerank" not in names(tmp_path)


def test_a_link_into_a_folder_that_is_not_there_is_told_before_the_work(cli, feats, tmp_path):
    (tmp_path / "link.h5").symlink_to("nowhere/out.h5")
    code, _, err = cli("run", feats, "-o", "link.h5")
    assert code == 1
    assert "nowhere does not exist; create it first" in err


def test_a_file_that_is_replaced_stays_as_private_as_it_was(cli, feats, tmp_path):
    assert cli("run", feats, "-o", "out.h5")[0] == 0
    owner = (1234, 1234) if os.geteuid() == 0 else (os.geteuid(), os.getegid())
    os.chown(tmp_path / "out.h5", *owner)
    (tmp_path / "out.h5").chmod(0o600)
    assert cli("run", feats, "-o", "out.h5", "--force")[0] == 0
    after = (tmp_path / "out.h5").stat()
    assert after.st_mode & 0o777 == 0o600
    assert (after.st_uid, after.st_gid) == owner


def test_an_index_says_what_memory_it_needs(cli, write):
    feats = write(**features(gallery=30))
    code, _, err = cli("index", feats, "-o", "out.index.h5", "--memory", 1)
    assert code == 2
    needed = int(err.partition("raise it to ")[2].partition(" bytes")[0].replace(",", ""))
    assert cli("index", feats, "-o", "out.index.h5", "--memory", needed - 1)[0] == 2
    assert cli("index", feats, "-o", "out.index.h5", "--memory", needed)[0] == 0


def test_an_index_is_built_though_nothing_can_be_kept_of_it(cli, feats, monkeypatch, tmp_path):
    def full(*_, **__):
        raise br.OutputError("out.partial cannot be written: No space left on device")

    begin = blurrerank.index.building._Left.__init__
    monkeypatch.setattr(blurrerank.index.building._Left, "__init__", lambda *given: begin(*given[:-1], 0.0))
    monkeypatch.setattr(blurrerank.index.building, "write_partial", full)
    code, _, err = cli("index", feats, "-o", "out.index.h5", "--memory", "200KiB")
    assert code == 0
    assert err.count("partial results cannot be kept") == 1
    assert (tmp_path / "out.index.h5").exists()


def test_what_is_written_is_on_the_disk_before_it_has_its_name(cli, feats, monkeypatch, tmp_path):
    seen = []
    fsync, link = os.fsync, os.link
    monkeypatch.setattr(os, "fsync", lambda number: (seen.append(os.fstat(number).st_ino), fsync(number))[1])
    monkeypatch.setattr(os, "link", lambda *paths: (seen.append("named"), link(*paths))[1])
    assert cli("run", feats, "-o", "out.h5")[0] == 0
    assert seen == [(tmp_path / "out.h5").stat().st_ino, "named", tmp_path.stat().st_ino]


@pytest.fixture
def kept(tmp_path, monkeypatch):
    """One block that an earlier run kept, and a clock that is set by hand."""

    class Clock:
        now = 1000.0

        def monotonic(self):
            return self.now

    clock = Clock()
    monkeypatch.setattr(blurrerank.engine.checkpoint, "time", clock)
    (tmp_path / ".out.blurrerank").mkdir()
    first = Checkpoint(tmp_path / ".out.blurrerank", {"method": "lbr"}, tmp_path / "out")
    clock.now += blurrerank.engine.checkpoint.SECONDS
    first.add(block(0))
    return clock


def block(start):
    lists = np.zeros((5, 3), np.int32)
    return Done(start, lists, lists.astype(np.float32))


def starts(path):
    return [int(name[5:17]) for name in names(path / ".out.blurrerank") if name.endswith(".npz")]


def test_a_run_that_went_on_keeps_what_it_did_when_it_is_interrupted_again(kept, tmp_path):
    """However short it was; but for a first run that was short, nothing is kept."""
    with pytest.raises(KeyboardInterrupt), keeping(tmp_path / "out", {"method": "lbr"}) as checkpoint:
        checkpoint.add(block(5))
        assert starts(tmp_path) == [0]
        raise KeyboardInterrupt
    assert starts(tmp_path) == [0, 5]
    with pytest.raises(KeyboardInterrupt), keeping(tmp_path / "new", {"method": "lbr"}) as checkpoint:
        checkpoint.add(block(0))
        raise KeyboardInterrupt
    assert names(tmp_path) == [".out.blurrerank"]


def test_keeping_takes_a_tenth_of_the_time_but_is_not_put_off_for_ever(kept, tmp_path, monkeypatch):
    took = [20.0, 5000.0, 0.0, 0.0]
    save = np.savez

    def savez(file, **arrays):
        kept.now += took.pop(0)
        save(file, **arrays)

    monkeypatch.setattr(np, "savez", savez)
    checkpoint = Checkpoint(tmp_path / ".out.blurrerank", {"method": "lbr"}, tmp_path / "out")
    begun = []
    # Half a minute at first, nine times 20 s, no more than twenty times half a minute, and half a minute again.
    for number, wait in enumerate((30, 180, 600, 30), start=1):
        kept.now += wait - 1
        checkpoint.add(block(10 * number))
        begun.append(starts(tmp_path))
        kept.now += 1
        checkpoint.add(block(10 * number + 5))
        begun.append(starts(tmp_path))
    assert begun == [[0], *([0, 10, 20, 30, 40][:many] for many in (2, 2, 3, 3, 4, 4, 5))]


def test_neighbours_of_another_run_are_not_used(kept, tmp_path):
    near = br.NeighbourGraph(torch.zeros((4, 2), dtype=torch.int32), torch.ones((4, 2)), torch.zeros(4))
    ours, theirs = (
        Checkpoint(tmp_path / ".out.blurrerank", {"method": name}, tmp_path / "out")
        for name in ("lbr", "other")
    )
    kept.now += blurrerank.engine.checkpoint.SECONDS
    ours.keep(lambda: near)
    assert len(ours.known) == 4
    assert theirs.known is None


def keeping_on_cuda(output, run):
    return keeping(output, run | {"device": "cuda"})


@pytest.mark.parametrize(
    ("name", "other", "why"),
    [
        ("runs.versions", lambda: {"blurrerank": "0.0"}, "with versions {"),
        ("runs.keeping", keeping_on_cuda, "with device cpu, not cuda;"),
    ],
)
def test_lists_of_other_versions_or_devices_are_refused(name, other, why, cli, feats, interrupted, monkeypatch):
    """They may differ in the last bit of a score."""
    assert interrupted(1, "-o", "out.h5")[0] == 130
    monkeypatch.setattr(blurrerank.engine.runs, "rerank_measured", None)
    monkeypatch.setattr(f"blurrerank.engine.{name}", other)
    code, out, err = cli("run", feats, *SMALL, "-o", "out.h5", "--resume")
    assert (code, out) == (1, "")
    assert err.startswith(f"error: out.h5: an interrupted run left lists {why}")
    assert err.endswith("; start over with --force and without --resume, or choose another name\n")


def test_half_an_output_beside_kept_lists_is_swept(cli, feats, interrupted, tmp_path):
    """As a kill leaves it. What can be gone on from stays."""
    assert interrupted(2, "-o", "out.h5")[0] == 130
    folder = tmp_path / ".out.h5.blurrerank"
    before = names(folder)
    (folder / "output").write_bytes(b"half of it")
    (folder / "lock").touch()
    assert cli("run", feats, *SMALL, "-o", "another.h5")[0] == 0
    assert names(folder) == sorted({*before, "lock"})
    assert cli("run", feats, *SMALL, "-o", "out.h5", "--resume")[0] == 0
    assert names(tmp_path) == ["another.h5", "feats.h5", "lists.npy", "out.h5"]
