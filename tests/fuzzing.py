"""Damaged and malicious files for every reader, and what becomes of them.

    python tests/fuzzing.py --cases 5000 --seed 0
    python tests/fuzzing.py --reader native --seed 0 --only 17

A case is a valid small file with a few changes, chosen by seed, reader and number alone, given to a command. It
must end well, or with one line that begins with `error: `, within seconds, without much memory, and without
taking the process along. Prints JSON; every failure with what repeats it.

Cases run in forks of this process, which has everything imported but has computed nothing; one that dies, hangs
or asks for much memory is replaced.
"""

from __future__ import annotations

import argparse
import contextlib
import gzip
import io
import json
import os
import pickle
import random
import resource
import select
import shutil
import signal
import sys
import tempfile
import time
import traceback
import zipfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import faiss  # noqa: F401  (here, so that no fork has to)
import h5py
import numpy as np
import PIL.Image
import pyarrow.feather
import pyarrow.parquet
import scipy.io  # noqa: F401  (here, so that no fork has to)
import sealed
import test_convert
import torch
from counting import tell

import blurrerank as br
import blurrerank.cli
import blurrerank.engine.checkpoint
import blurrerank.engine.runs
import blurrerank.methods.k_reciprocal_online
import blurrerank.methods.lbr

for name in br.__all__:
    getattr(br, name)

SECONDS = 20.0
"""A case may take so long; small files take a hundredth of a second."""
MEMORY = 256 << 20
"""So many bytes may become resident."""
SPACE = 16 << 30
"""So much address space there is beyond what the process has: reserved, which costs nothing."""

NUMBERS = [0, 1, 2, 0xFF, 0x7FFF, 0xFFFF, 2**31 - 1, 2**31, 2**32 - 1, 2**63 - 1, 2**63, 2**64 - 1]


@dataclass(frozen=True)
class Reader:
    """Files that are changed, and the command that reads them; `{}` in it is the file."""

    name: str
    seeds: tuple[str, ...]
    arguments: tuple[str, ...]


RUN = ("run", "{}", "-o", "out.h5", "--force", "--topn", "5")
CONVERT = ("convert", "{}", "out.h5", "--force", "--allow-pickle")
READERS = [
    Reader("native", ("feats.h5", "packed.h5", "chunked.h5"), RUN),
    Reader("native, one side", ("side.h5",), (*RUN, "--gallery", "side.h5")),
    Reader("native, info", ("feats.h5", "packed.h5"), ("info", "{}")),
    Reader("native, latest", ("latest.h5", "latest.packed.h5", "latest.chunked.h5"), RUN),
    Reader("native, latest, info", ("latest.h5", "latest.packed.h5", "latest.chunked.h5"), ("info", "{}")),
    Reader("native, filters", ("lzf.h5", "szip.h5", "nbit.h5", "scaled.h5"), RUN),
    Reader("thumbnails", ("packed.h5",), ("report", "packed.lists.h5", "{}", "-o", "out.html", "--force")),
    Reader("ranking h5", ("lists.h5",), ("eval", "{}", "feats.h5")),
    Reader("ranking npz", ("lists.npz",), ("eval", "{}", "feats.h5")),
    Reader("ranking trec", ("lists.trec", "lists.trec.gz"), ("eval", "{}", "feats.h5")),
    Reader("ranking jsonl", ("lists.jsonl", "lists.jsonl.gz"), ("eval", "{}", "feats.h5")),
    Reader("ranking csv", ("lists.csv", "lists.csv.gz"), ("eval", "{}", "feats.h5")),
    Reader(
        "candidates",
        ("near.npy", "near.ibin", "near.hdf5", "near.npz", "lists.h5", "lists.npz", "lists.jsonl"),
        ("run", "feats.h5", "--candidates", "{}", "-o", "out.h5", "--force", "--topn", "5"),
    ),
    Reader("index", ("gallery.index.h5",), ("run", "--index", "{}", "side.h5", "-o", "out.h5", "--force")),
    Reader(
        "index, approximate",
        ("near.index.h5", "clusters.index.h5"),
        ("run", "--index", "{}", "side.h5", "-o", "out.h5", "--force"),
    ),
    Reader(
        "index, changes",
        ("grown.index.h5", "shrunk.index.h5"),
        ("run", "--index", "{}", "side.h5", "-o", "out.h5", "--force"),
    ),
    Reader("index, partial", ("new.h5.partial",), ("index", "feats.h5", "-o", "new.h5", "--pool", "15")),
    Reader(
        "sweep", ("sweep.json", "sweep.csv"), ("sweep", "feats.h5", "-o", "{}", "--topn", "5", "--sigma", "0.1")
    ),
    Reader("probes", ("probes.jsonl", "probes.npy"), ("run", "--index", "gallery.index.h5", "-")),
    Reader("MATLAB v5", ("v5.mat",), CONVERT),
    Reader("MATLAB v7.3", ("v73.mat",), CONVERT),
    Reader("npz", ("feats.npz",), CONVERT),
    Reader("npy", ("query.npy",), (*CONVERT[:2], "gallery.npy", *CONVERT[2:])),
    Reader("torch", ("feats.pt", "feats.pth"), CONVERT),
    Reader("pickle", tuple(f"dump{protocol}.pkl" for protocol in range(6)), CONVERT),
    Reader("ann-benchmarks", ("ann.hdf5",), CONVERT),
    Reader("ann-benchmarks, latest", ("latest.hdf5",), CONVERT),
    Reader("fbin", ("query.fbin",), (*CONVERT[:2], "gallery.fbin", *CONVERT[2:])),
    Reader("fvecs", ("query.fvecs",), (*CONVERT[:2], "gallery.fbin", *CONVERT[2:])),
    Reader("safetensors", ("feats.safetensors",), CONVERT),
    Reader("parquet", ("rows.parquet",), (*CONVERT[:2], "gallery.parquet", *CONVERT[2:])),
    Reader("feather", ("rows.feather",), (*CONVERT[:2], "gallery.feather", *CONVERT[2:])),
    Reader("json", ("rows.json", "rows.jsonl"), (*CONVERT[:2], "gallery.json", *CONVERT[2:])),
    Reader("npy of objects", ("dict.npy",), CONVERT),
    Reader("csv, OML", ("oml.csv",), (*CONVERT[:2], "oml.npy", *CONVERT[2:])),
    Reader("csv", ("rows.csv",), (*CONVERT[:2], "gallery.csv", *CONVERT[2:])),
    Reader(
        "image files",
        ("images/a.png", "images/a.jpg", "images/a.gif", "images/a.bmp", "images/a.webp", "images/a.tiff"),
        ("report", "named.lists.h5", "named.h5", "--image-root", "images", "-o", "out.html", "--force"),
    ),
]


def material(folder: Path) -> None:
    """All seeds, and what commands need beside them."""
    os.chdir(folder)
    arrays = test_convert.market_arrays()
    data = br.FeatureSet.from_arrays(**arrays)
    br.save_features(data, "feats.h5")
    for name, options in (
        ("packed.h5", {"compression": "gzip", "chunks": True, "shuffle": True}),
        ("chunked.h5", {"chunks": True}),
    ):
        with h5py.File(name, "w") as file:
            for side in ("probe", "gallery"):
                group = file.create_group(side)
                group.create_dataset("features", data=arrays[side].astype(np.float16), **options)
                group.create_dataset("ids", data=arrays[f"{side}_ids"], **options)
                group.create_dataset("cams", data=arrays[f"{side}_cams"])
                names = [str(name) for name in arrays[f"{side}_names"]]
                group.create_dataset("names", data=names, dtype=h5py.string_dtype(), **options)
                pictures = np.random.default_rng(0).integers(0, 255, (len(names), 6, 5, 3), dtype=np.uint8)
                group.create_dataset("images", data=pictures, **options)
    with h5py.File("side.h5", "w") as file:
        file["features"], file["ids"] = arrays["gallery"], arrays["gallery_ids"]
    with h5py.File("more.h5", "w") as file:
        file["features"] = arrays["gallery"][:9, ::-1]
        for label in ("ids", "cams", "names"):
            file[label] = arrays[f"gallery_{label}"][:9].tolist()
    for name, options in (
        ("latest.h5", {}),
        ("latest.packed.h5", {"compression": "gzip", "chunks": "one", "shuffle": True}),
        ("latest.chunked.h5", {"chunks": "two"}),
        ("lzf.h5", {"compression": "lzf", "chunks": "two", "fletcher32": True}),
        ("szip.h5", {"compression": "szip", "compression_opts": ("nn", 2), "chunks": "two"}),
        ("nbit.h5", {"nbit": True, "chunks": "two"}),
        ("scaled.h5", {"scaleoffset": 3, "chunks": "two"}),
    ):
        with h5py.File(name, "w", libver="latest" if name.startswith("latest") else None) as file:
            for side in ("probe", "gallery"):
                group = file.create_group(side)
                keep(group, "features", arrays[side].astype(np.float32), **options)
                keep(group, "ids", arrays[f"{side}_ids"], **options)
                group["cams"] = arrays[f"{side}_cams"]
                group["names"] = [str(name) for name in arrays[f"{side}_names"]]
                group.attrs["note"], group.attrs["many"] = "some text", np.arange(3)
    with h5py.File("latest.hdf5", "w", libver="latest") as file:
        file["train"], file["test"] = arrays["gallery"], arrays["probe"]
        file.attrs["distance"] = "angular"

    def run(*arguments: str) -> None:
        try:
            blurrerank.cli.main(arguments)
        except SystemExit as stop:
            if stop.code:
                raise AssertionError(arguments) from None

    for ending in ("h5", "npz", "trec", "jsonl", "csv"):
        run("run", "feats.h5", "-q", "--topn", "10", "-o", f"lists.{ending}")
    run("run", "packed.h5", "-q", "--topn", "10", "-o", "packed.lists.h5")
    for ending in ("trec", "jsonl", "csv"):
        Path(f"lists.{ending}.gz").write_bytes(gzip.compress(Path(f"lists.{ending}").read_bytes(), mtime=0))
    near = br.rerank(data, topn=8).indices
    np.save("near.npy", near)
    np.savez("near.npz", indices=near)
    Path("near.ibin").write_bytes(np.array(near.shape, "<u4").tobytes() + near.astype("<i4").tobytes())
    with h5py.File("near.hdf5", "w") as file:
        file["neighbors"] = near
    run("index", "feats.h5", "-o", "gallery.index.h5", "--pool", "15", "-q")
    run("index", "feats.h5", "-o", "near.index.h5", "--pool", "15", "--ann", "hnsw", "-q")
    run("index", "feats.h5", "-o", "clusters.index.h5", "--method", "gnn", "--ann", "ivf", "-q")
    for name, method in (("grown", "k-reciprocal-online:pool=15"), ("shrunk", "gnn")):
        run("index", "feats.h5", "-o", f"{name}.index.h5", "--method", method, "--ann", "hnsw", "-q")
    run("index", "more.h5", "-o", "grown.index.h5", "--append", "-q")
    run("index", "-o", "shrunk.index.h5", "--remove", "3,7-9", "-q")
    index = br.GalleryIndex.open("gallery.index.h5")
    from blurrerank.files.neighbours_h5 import write_partial

    write_partial(Path("new.h5.partial"), index.near, pool=15, digest=data.gallery.digest())
    for ending in ("json", "csv"):
        run("sweep", "feats.h5", "-o", f"sweep.{ending}", "--topn", "5", "--sigma", "0.1,0.2", "-q")
    rows = [
        json.dumps({"name": f"p{row}", "features": values.tolist()})
        for row, values in enumerate(arrays["probe"])
    ]
    Path("probes.jsonl").write_text("\n".join(rows) + "\n")
    np.save("probes.npy", arrays["probe"])
    # Those of other tools, by the names that they have here.
    for tool, names in {
        test_convert.layumi_v5: ["v5.mat"],
        test_convert.layumi_v73: ["v73.mat"],
        test_convert.torchreid_npz: ["feats.npz"],
        test_convert.torchreid_pt: ["feats.pt"],
        test_convert.torchreid_old_pt: ["feats.pth"],
        test_convert.npy: ["query.npy", "gallery.npy"],
        test_convert.fbin: ["query.fbin", "gallery.fbin"],
        test_convert.ann_benchmarks: ["ann.hdf5"],
        test_convert.oml: ["oml.csv", "oml.npy"],
    }.items():
        with tempfile.TemporaryDirectory() as place:
            for file, name in zip(tool(Path(place), arrays)[0], names, strict=False):
                shutil.copyfile(Path(place, file), name)
    for protocol in range(6):
        Path(f"dump{protocol}.pkl").write_bytes(pickle.dumps(test_convert.layumi(arrays), protocol=protocol))
    np.save("dict.npy", test_convert.layumi(arrays), allow_pickle=True)  # type: ignore[arg-type]
    for side, name in (("probe", "rows"), ("gallery", "gallery")):
        np.savetxt(f"{name}.csv", arrays[side], delimiter=",")
        columns = {
            "id": arrays[f"{side}_ids"].tolist(),
            "name": list(map(str, arrays[f"{side}_names"])),
            "feature": arrays[side].tolist(),
        }
        table = pyarrow.table(columns)
        pyarrow.parquet.write_table(table, f"{name}.parquet")
        pyarrow.feather.write_feather(table, f"{name}.feather")
        rows = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
        Path(f"{name}.json").write_text(json.dumps(rows))
        Path(f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    vectors = arrays["probe"].astype("<f4")
    lengths = np.full((len(vectors), 1), vectors.shape[1], "<i4").view("<f4")
    np.concatenate([lengths, vectors], axis=1).tofile("query.fvecs")
    tensors, place = {}, 0
    for name in ("probe", "gallery"):
        values = arrays[name].astype("<f4")
        tensors[name[0].replace("p", "q") + "f"] = {
            "dtype": "F32",
            "shape": values.shape,
            "data_offsets": (place, place + values.nbytes),
        }
        place += values.nbytes
    header = json.dumps(tensors).encode()
    Path("feats.safetensors").write_bytes(
        len(header).to_bytes(8, "little")
        + header
        + b"".join(arrays[name].astype("<f4").tobytes() for name in ("probe", "gallery"))
    )
    Path("images").mkdir()
    picture = PIL.Image.fromarray(np.random.default_rng(1).integers(0, 255, (16, 12, 3), dtype=np.uint8))
    names = [f"a.{ending}" for ending in ("png", "jpg", "gif", "bmp", "webp", "tiff")]
    for name in names:
        picture.save(Path("images", name))
    few = {
        key: values[: len(names)] if key.startswith("probe") else values
        for key, values in arrays.items()
        if not key.endswith("names")
    }
    br.save_features(br.FeatureSet.from_arrays(**few, probe_names=np.array(names, dtype=object)), "named.h5")
    run("run", "named.h5", "-q", "--topn", "5", "-o", "named.lists.h5")


def keep(group: h5py.Group, name: str, values: np.ndarray, **options: object) -> None:
    """A dataset in one chunk or in a few, which the newer format finds without an index."""
    parts = {"one": 1, "two": 2}.get(str(options.pop("chunks", "")))
    if parts is None:
        group[name] = values
        return
    settings = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    chunk = tuple(-(-size // parts) for size in values.shape)
    if options.get("nbit") or not options:
        settings.set_chunk(chunk)
        settings.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
        if options:
            settings.set_filter(h5py.h5z.FILTER_NBIT, 0, ())
        kind, space = h5py.h5t.py_create(values.dtype), h5py.h5s.create_simple(values.shape)
        h5py.Dataset(h5py.h5d.create(group.id, name.encode(), kind, space, settings))[...] = values
        return
    if "scaleoffset" in options and values.dtype.kind != "f":
        options = {"scaleoffset": 0}
    group.create_dataset(name, data=values, chunks=chunk, **options)


def changed(data: bytes, other: bytes, rng: random.Random) -> bytes:
    """One to four changes."""
    found = bytearray(data)
    for _ in range(rng.choice([1, 1, 2, 4])):
        size = max(1, len(found))
        place = min(rng.randrange(size), rng.randrange(size)) if rng.random() < 0.5 else rng.randrange(size)
        kind = rng.randrange(9)
        if not found:
            return bytes(found)
        if kind <= 1:
            found[place] ^= 1 << rng.randrange(8)
        elif kind == 2:
            for at in range(place, min(len(found), place + rng.randrange(1, 64))):
                found[at] = rng.randrange(256)
        elif kind == 3:
            del found[place:]
        elif kind == 4:
            del found[place : place + rng.randrange(1, 32)]
        elif kind == 5:
            found[place:place] = rng.randbytes(rng.randrange(1, 32))
        elif kind == 6:
            start = rng.randrange(max(1, len(other)))
            piece = other[start : start + rng.randrange(1, 512)]
            found[place : place + len(piece)] = piece
        else:
            width = rng.choice([1, 2, 4, 8])
            number = rng.choice(NUMBERS) & ((1 << 8 * width) - 1)
            found[place : place + width] = number.to_bytes(width, rng.choice(["little", "big"]))
    return bytes(found)


def changed_inside(data: bytes, other: bytes, rng: random.Random) -> bytes:
    """The same of what is packed, half of the time where that has a checksum, which would give it away."""
    if data.startswith(b"PK") and rng.random() < 0.5:
        found = io.BytesIO()
        with zipfile.ZipFile(io.BytesIO(data)) as before, zipfile.ZipFile(found, "w") as after:
            chosen = rng.choice(before.namelist())
            for item in before.infolist():
                inside = before.read(item)
                after.writestr(item, changed(inside, other, rng) if item.filename == chosen else inside)
        return found.getvalue()
    if data.startswith(b"\x89HDF") and data[8] >= 2 and rng.random() < 0.7:
        found = bytearray(data)
        for _ in range(rng.choice([1, 1, 2])):
            start, end = rng.choice(sealed.blocks(data))
            # Behind the signature, and no longer than before.
            piece = changed(data[start + 4 : end], other, rng)[: end - start - 4]
            found[start + 4 : start + 4 + len(piece)] = piece
            sealed.seal(found, start, end)
        return bytes(found)
    if data.startswith(b"\x1f\x8b") and rng.random() < 0.5:
        return gzip.compress(changed(gzip.decompress(data), other, rng), mtime=0)
    return changed(data, other, rng)


def case(reader: Reader, number: int, seed: int, folder: Path, source: Path) -> tuple[list[str], bytes | None]:
    """Lay out one case in `folder`: the arguments, and what comes on standard input. Below 0, a sound file."""
    rng = random.Random(f"{seed} {reader.name} {number}")
    name = rng.choice(reader.seeds) if number >= 0 else reader.seeds[number]
    data = (source / name).read_bytes()
    if number >= 0:
        data = changed_inside(data, (source / rng.choice(reader.seeds)).read_bytes(), rng)
    if reader.name == "probes":
        return list(reader.arguments), data
    target = folder / name
    target.unlink(missing_ok=True)
    target.write_bytes(data)
    return [argument.replace("{}", name) for argument in reader.arguments], None


def most_memory(*, new: bool = False) -> int:
    """Bytes resident at the most, since the last time that this was asked for `new`."""
    if new:
        Path("/proc/self/clear_refs").write_text("5")
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("VmHWM"))


def outcome(arguments: list[str], stdin: bytes | None) -> str:
    """Run a command in this process: `read`, `refused`, or what is wrong."""
    before = most_memory(new=True)
    out, err = io.TextIOWrapper(io.BytesIO(), write_through=True), io.StringIO()
    code: object = None
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        if stdin is not None:
            sys.stdin = io.TextIOWrapper(io.BufferedReader(io.BytesIO(stdin)))
        try:
            blurrerank.cli.main(arguments)
        except SystemExit as stop:
            code = stop.code or 0
        except BaseException:
            return f"raised: {traceback.format_exc()[-600:]}"
    lines = err.getvalue().splitlines()
    errors = [line for line in lines if line.startswith("error: ")]
    if any("Traceback" in line or line.startswith("error: internal") for line in lines):
        return f"said {lines}"
    took = most_memory() - before
    if took > MEMORY:
        return f"took {took >> 20} MiB: {errors}"
    if code == 0:
        return "read"
    if arguments[0] == "info" and code == 1 and not errors:
        return "refused"  # what is wrong is what it was asked
    if code in (1, 2) and len(errors) == 1 and lines[-1] == errors[0]:
        return "refused"
    return f"ended with {code}: {lines}"


class Worker:
    """A fork that takes numbers of cases and answers with outcomes."""

    def __init__(self, reader: Reader, seed: int, source: Path) -> None:
        self.folder = Path(tempfile.mkdtemp(dir=source.parent))
        asked, self._ask = os.pipe()
        self._answered, answer = os.pipe()
        self.pid = os.fork()
        if self.pid:
            os.close(asked)
            os.close(answer)
            self._answers = os.fdopen(self._answered, "rb")
            return
        try:
            os.close(self._ask)
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            null = os.open(os.devnull, os.O_RDWR)
            os.dup2(null, 1)
            os.dup2(null, 2)
            torch.set_num_threads(1)
            used = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
            resource.setrlimit(resource.RLIMIT_AS, (used + SPACE, used + SPACE))
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            with os.fdopen(asked, "rb") as questions, os.fdopen(answer, "wb", 0) as answers:
                for line in questions:
                    place = self.folder / line.decode().strip()
                    place.mkdir()
                    for file in source.iterdir():
                        if file.is_dir():
                            shutil.copytree(file, place / file.name)
                        else:
                            (place / file.name).symlink_to(file)
                    arguments, stdin = case(reader, int(line), seed, place, source)
                    os.chdir(place)
                    answers.write(json.dumps(outcome(arguments, stdin)).encode() + b"\n")
                    os.chdir(source)
                    shutil.rmtree(place)
        finally:
            os._exit(0)

    def answer(self, number: int) -> str | None:
        """The outcome of a case; None if the worker is not there any more."""
        try:
            os.write(self._ask, f"{number}\n".encode())
        except BrokenPipeError:
            return None
        began = time.monotonic()
        if not select.select([self._answers], [], [], SECONDS)[0]:
            return f"still running after {time.monotonic() - began:.0f} s"
        line = self._answers.readline()
        return json.loads(line) if line else None

    def end(self) -> int:
        """Stop it; how it ended by itself, if it did."""
        os.close(self._ask)
        with contextlib.suppress(ProcessLookupError):
            if os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
                time.sleep(0.05)
                os.kill(self.pid, signal.SIGKILL)
        self._answers.close()
        status = os.waitpid(self.pid, 0)[1]
        shutil.rmtree(self.folder, ignore_errors=True)
        return os.waitstatus_to_exitcode(status)


def fuzz(
    reader: Reader, numbers: range, seed: int, source: Path, until: float
) -> tuple[Counter[str], list[str]]:
    """Run cases of one reader: outcomes, and failures."""
    counts: Counter[str] = Counter()
    failures = []
    worker = Worker(reader, seed, source)
    for number in range(-len(reader.seeds), 0):
        found = worker.answer(number)
        if found != "read":
            failures.append(f"{reader.seeds[number]} is sound: {found}")
    for number in numbers:
        if time.monotonic() > until:
            break
        found = worker.answer(number)
        if found not in ("read", "refused"):
            died = worker.end()
            again = f"tests/fuzzing.py --seed {seed} --reader '{reader.name}' --only {number}"
            failures.append(f"{found or f'died with {died}'}; again: {again}")
            found = "FAILURE"
            worker = Worker(reader, seed, source)
        counts[found] += 1
    worker.end()
    return counts, failures


def main() -> None:
    """Run cases of one reader, or of all."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--reader", choices=[reader.name for reader in READERS])
    parser.add_argument("--cases", type=int, default=5000, help="for each reader")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int, help="this case alone")
    parser.add_argument("--seconds", type=float, help="stop after so long")
    options = parser.parse_args()
    root = Path(tempfile.mkdtemp())
    source = root / "source"
    source.mkdir()
    child = os.fork()
    if not child:
        try:
            sys.stdout = sys.stderr
            material(source)
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
    assert os.waitpid(child, 0)[1] == 0
    readers = [reader for reader in READERS if options.reader in (None, reader.name)]
    outcomes, failures = {}, []
    try:
        for place, reader in enumerate(readers):
            numbers = range(options.cases) if options.only is None else range(options.only, options.only + 1)
            left = float("inf")
            if options.seconds is not None:
                left = options.seconds / len(readers)
            counts, wrong = fuzz(reader, numbers, options.seed, source, time.monotonic() + left)
            outcomes[reader.name] = dict(counts)
            failures += [f"{reader.name}: {failure}" for failure in wrong]
            print(f"{place + 1} of {len(readers)}: {reader.name} {dict(counts)}", file=sys.stderr)
    finally:
        shutil.rmtree(root, ignore_errors=True)
    tell(options.seed, outcomes, failures)
    sys.exit(bool(failures))


if __name__ == "__main__":
    main()
