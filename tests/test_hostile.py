"""Files that are damaged, crafted to do harm, or changed while they are read.

Each is refused in one line that names it, nothing outside of it is read, and memory and time stay small.
"""

from __future__ import annotations

import fcntl
import functools
import gzip
import io
import json
import os
import pickle
import re
import resource
import signal
import struct
import sys
import threading
import zipfile
import zlib
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import h5py
import numpy as np
import pytest
import scipy.io
import sealed
import torch
from conftest import features

import blurrerank as br
from blurrerank.cli import serving
from blurrerank.compute.peak_memory import PeakMemory
from blurrerank.files import guard
from blurrerank.files.foreign.containers import open_file
from blurrerank.files.foreign.pickles import read_pickle


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def little_time(monkeypatch):
    """For what never ends; what does end has its usual time, however busy the machine is."""
    monkeypatch.setattr(guard, "_SECONDS", 1)


@pytest.fixture(autouse=True)
def soon():
    """A reader that waits for ever is interrupted."""

    def late(*_):
        raise TimeoutError("it takes too long")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(60)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.fixture
def little_memory():
    """No more than 2 GiB beyond what there is, reserved or not."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + (2 << 30), before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


@pytest.fixture
def refused(cli):
    def refused(*arguments, code=1):
        found, out, err = cli(*arguments)
        lines = [line for line in err.splitlines() if not line.startswith(("note: ", "warning: "))]
        assert (found, out, len(lines)) == (code, "", 1), (found, out, err)
        assert lines[0].startswith("error: ")
        return lines[0]

    return refused


@pytest.fixture
def feats(cli, write):
    write()
    return "feats.h5"


@pytest.fixture
def converts(refused):
    """What `convert` says of a file."""
    return lambda name: refused("convert", name, "out.h5", "--allow-pickle")


def put(file, place, link):
    """Set a link in the place of what is there."""
    del file[place]
    file[place] = link


# Out of the file


def data_elsewhere(file, place):
    shape = file[place].shape
    del file[place]
    file.create_dataset(place, shape, np.float32, external=[("secret.bin", 0, 4 * shape[0] * shape[1])])


def data_of_others(file, place):
    shape = file[place].shape
    del file[place]
    layout = h5py.VirtualLayout(shape, np.float32)
    layout[:] = h5py.VirtualSource("secret.h5", "features", shape)
    file.create_virtual_dataset(place, layout)


def link_by_a_link(file, place):
    file["out"] = h5py.ExternalLink("secret.h5", "/")
    put(file, place, h5py.SoftLink("/out/features"))


def circle(file, place):
    put(file, place, h5py.SoftLink("/again"))
    file["again"] = h5py.SoftLink(f"/{place}")


def to(name, path, depth=None):
    """What replaces the features, or their group, by a link to another file."""
    return lambda file, place: put(file, "/".join(place.split("/")[:depth]), h5py.ExternalLink(name, path))


FOLLOWED, ELSEWHERE = (
    r"has a link '\w+' to another file, which is not followed",
    "is stored in another file, which is",
)
OUTSIDE = {
    "a link to a file": (to("secret.h5", "/features"), FOLLOWED),
    "a link to a group": (to("secret.h5", "/", 1), FOLLOWED),
    "a link to a pipe": (to("pipe", "/features"), FOLLOWED),
    "a link by a link": (link_by_a_link, FOLLOWED),
    "a circle": (circle, r"has a link '\w+' that is circular or nested too deeply"),
    "data elsewhere": (data_elsewhere, ELSEWHERE),
    "data of others": (data_of_others, ELSEWHERE),
}


@pytest.mark.parametrize(("change", "said"), OUTSIDE.values(), ids=OUTSIDE)
@pytest.mark.parametrize("command", ["run", "index", "convert"])
def test_nothing_outside_of_the_file_is_read(command, change, said, refused, feats):
    rows = features()["gallery"]
    with h5py.File("secret.h5", "w") as file:
        file["features"] = rows
    rows.tofile("secret.bin")
    os.mkfifo("pipe")
    with h5py.File(feats, "r+") as file:
        if command == "convert":  # another tool's: no groups
            for name, side in (("query_f", "probe"), ("gallery_f", "gallery")):
                file.move(f"{side}/features", name)
                del file[side]
        change(file, "gallery_f" if command == "convert" else "gallery/features")
    why = refused(command, feats, *{"convert": ["out.h5"]}.get(command, ["-o", "out.h5"]))
    assert "feats.h5::/" in why
    assert re.search(said, why)
    assert not Path("out.h5").exists()


# More than there is


@pytest.mark.parametrize(
    ("name", "shape", "dtype", "why"),
    [
        ("features", (10**6, 8), "f4", "is 1000000 x 8, 32,000,000 bytes, but the file has only 0 of them"),
        ("features", (2**40, 8), "f4", f"is {2**40} x 8, {2**45:,} bytes, but the file has only 0 of them"),
        ("ids", (60,), "i8", "is 60, 480 bytes, but the file has only 0 of them"),
        ("names", (60,), h5py.string_dtype(), "is 60, 480 bytes, but the file has only 0 of them"),
        ("images", (60, 4096, 4096, 4096), "u1", "is uint8"),
    ],
)
def test_what_was_declared_and_never_written_is_refused(name, shape, dtype, why, refused, feats, little_memory):
    with h5py.File(feats, "r+") as file:
        file.pop(f"gallery/{name}", None)
        file.create_dataset(f"gallery/{name}", shape, dtype)
    assert Path(feats).stat().st_size < 1 << 16
    assert f"gallery/{name} {why}" in refused("run", feats)


def test_features_that_unpack_to_far_more_are_refused(refused, feats, little_memory):
    with h5py.File(feats, "r+") as file:
        del file["gallery"]
        options = {"compression": "gzip", "chunks": (1 << 16, 64), "fillvalue": 1.0}
        stored = file.create_dataset("gallery/features", (1 << 22, 64), np.float32, **options)
        stored[: 1 << 16] = 1
        chunk = stored.id.read_direct_chunk((0, 0))[1]
        for start in range(0, 1 << 22, 1 << 16):
            stored.id.write_direct_chunk((start, 0), chunk)
    assert "looks like a decompression bomb" in refused("run", feats)


def test_one_number_that_stands_for_all_is_refused(converts, little_memory):
    fields = {f"{side}_{what}": torch.ones(2) for side in ("query", "gallery") for what in ("label", "cam")}
    large = torch.ones(1).expand(1_000_000, 600)
    torch.save(fields | {"query_f": torch.ones(2, 600), "gallery_f": large}, "dump.pt")
    assert "gallery_f is 1000000 x 600, and there are 2 labels" in converts("dump.pt")


def element(kind: int, data: bytes) -> bytes:
    return struct.pack("<II", kind, len(data)) + data + bytes(-len(data) % 8)


def matrix(kind: int, name: bytes, body: bytes, shape: tuple[int, int] = (1, 1)) -> bytes:
    """A variable of MATLAB v5."""
    head = element(6, struct.pack("<II", kind, 0)) + element(5, struct.pack("<ii", *shape))
    return element(14, head + element(1, name) + body)


MATLAB = b"MATLAB 5.0 MAT-file".ljust(124) + b"\0\1IM"


def packed(name: bytes, size: int) -> bytes:
    data = zlib.compress(matrix(6, name, element(2, bytes(size)), (1, size)))
    return struct.pack("<II", 15, len(data)) + data


STRUCT = element(5, struct.pack("<i", 4)) + element(1, b"f\0\0\0") + matrix(6, b"", element(50, bytes(8)))
SOUND = matrix(6, b"qf", element(9, bytes(8)))


@pytest.mark.parametrize(
    ("variables", "why"),
    [
        (matrix(4, b"qf", element(4, b""), (1, 1 << 30)), "damaged"),  # characters that are not there
        (matrix(6, b"qf", struct.pack("<II", 9, 1 << 20) + bytes(8)), "damaged"),  # longer than the variable
        (matrix(6, b"qf", element(9, bytes(8)), (-1, -1)), "damaged"),
        (b"".join(packed(name, 100 << 20) for name in (b"qf", b"gf", b"xf")), "damaged"),
        (matrix(6, b"qf", element(14, bytes(8))), "damaged"),  # a kind of numbers that does not exist
        (matrix(2, b"qf", STRUCT) + SOUND, "damaged"),  # scipy takes memory of others for a type of numbers
        (SOUND + matrix(2, b"qf", STRUCT), 'Duplicate variable name "qf"'),
    ],
)
def test_matlab_files_that_scipy_would_believe_are_refused(variables, why, converts, little_memory):
    Path("dump.mat").write_bytes(MATLAB + variables)
    assert why in converts("dump.mat")


@pytest.mark.parametrize("packed", [False, True])
def test_matlab_files_are_read_as_scipy_reads_them(packed, tmp_path):
    names = np.empty((1, 2), dtype=object)
    names[0] = ["a.jpg", "longer name.jpg"]
    fields = {
        "f": np.random.default_rng(0).standard_normal((5, 3)),
        "half": np.ones((2, 2), np.float32),
        "id": np.arange(-2, 5, dtype=np.int16),
        "yes": np.array([True, False]),
        "name": "text",
        "names": names,
        "nothing": np.empty((0, 0)),
    }
    others = {"struct": {"a": 1}, "complex": np.array([1j])}
    scipy.io.savemat(tmp_path / "dump.mat", fields | others, do_compression=packed)
    opened, expected = open_file(tmp_path / "dump.mat"), scipy.io.loadmat(tmp_path / "dump.mat")
    assert sorted(opened.fields) == sorted(fields)
    assert [name.partition(" ")[0] for name in sorted(opened.unread)] == ["complex", "struct"]
    for name in fields:
        np.testing.assert_array_equal(opened.fields[name], expected[name])


def many_numbers(file):
    file.create_dataset("0", (40 << 20,), np.int8, chunks=(1 << 20,), compression="gzip")[:] = 0
    for number in range(1, 8):
        file[str(number)] = file["0"]


def many_texts(file):
    file["0"] = ["a" * (1 << 20)]
    for number in range(1, 300):
        file[str(number)] = h5py.SoftLink("/0")


@pytest.mark.parametrize("write", [many_numbers, many_texts])
def test_one_dataset_under_many_names_is_refused(write, converts, little_memory):
    with h5py.File("many.h5", "w") as file:
        file["train"] = file["test"] = np.ones((4, 3), np.float32)
        write(file)
    assert "many.h5" in converts("many.h5")


@pytest.mark.parametrize(
    ("fields", "count", "dtype"),
    [
        (["probe/ids", "probe/cams", "gallery/ids", "gallery/cams"], 30_000_000, "i8"),  # each allowed alone
        (["probe/names"], 20_000_000, "S12"),  # text takes more memory than it is long
    ],
)
def test_labels_packed_as_tightly_as_may_be_are_refused(fields, count, dtype, refused, little_memory):
    with h5py.File("tight.h5", "w") as file:
        for side in ("probe", "gallery"):
            file[f"{side}/features"] = np.ones((1000, 60), np.float32)
        for field in fields:
            file.create_dataset(field, (count,), dtype, chunks=(1 << 20,), compression="gzip")
    assert "tight.h5 would decompress" in refused("run", "tight.h5")


def test_one_text_that_every_name_points_to_is_refused(refused, feats, little_memory):
    """60 names of 10 MB each, in a file of 10 MB."""
    with h5py.File(feats, "r+") as file:
        del file["gallery/names"]
        names = ["x" * 10_000_000, *["y"] * 59]
        file.create_dataset("gallery/names", data=names, dtype=h5py.string_dtype())
        offset = file["gallery/names"].id.get_offset()
    with open(feats, "r+b") as raw:
        raw.seek(offset)
        first = raw.read(16)
        raw.seek(offset)
        raw.write(first * 60)
    assert "feats.h5::/gallery/names cannot be read" in refused("run", feats)


def test_a_filter_that_is_not_here_is_named(refused, feats):
    with h5py.File(feats, "r+") as file:
        rows = file["gallery/features"][()]
        del file["gallery/features"]
        settings = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        settings.set_chunk(rows.shape)
        settings.set_filter(32999, h5py.h5z.FLAG_OPTIONAL, (3,))
        space = h5py.h5s.create_simple(rows.shape)
        h5py.h5d.create(file["gallery"].id, b"features", h5py.h5t.NATIVE_FLOAT, space, settings)
    assert "is compressed by HDF5 filter 32999" in refused("run", feats)


# Heaps of HDF5, where text is


HEAP = b"GCOL\x01"
# What is left of a heap, of size 0; a text so long that with its header the length comes out at 0.
ENDLESS = {"nothing left": bytes(16), "a long text": b"\1\0\0\0\0\0\0\0" + b"\xf0" + b"\xff" * 7}


def heaps(data: bytes) -> list[int]:
    return [found.start() for found in re.finditer(HEAP, data)]


@pytest.mark.parametrize(
    ("target", "piece", "arguments"),
    [
        ("feats.h5", "nothing left", ("run", "feats.h5")),
        ("feats.h5", "a long text", ("run", "feats.h5")),
        ("virtual.h5", "nothing left", ("run", "virtual.h5")),  # met as soon as such a dataset is opened
        ("note.h5", "nothing left", ("convert", "note.h5", "out.h5")),
        ("ranking.h5", "nothing left", ("eval", "ranking.h5", "feats.h5")),  # in attributes, as in an index
        ("index.h5", "nothing left", ("run", "feats.h5", "--index", "index.h5")),
    ],
)
def test_a_heap_without_an_end_is_refused(target, piece, arguments, refused, feats, cli, little_time):
    if target == "virtual.h5":
        layout = h5py.VirtualLayout((3, 3), np.float32)
        layout[:] = h5py.VirtualSource("secret.h5", "features", (3, 3))
        with h5py.File(target, "w") as file:
            file.create_virtual_dataset("probe/features", layout)
            file["gallery/features"] = np.eye(3)
    elif target == "note.h5":
        one_text(target)
    elif target == "ranking.h5":
        assert cli("run", feats, "-o", target)[0] == 0
    elif target == "index.h5":
        assert cli("index", feats, "-o", target)[0] == 0
        with h5py.File(target, "r+") as file:
            file["features"].attrs["crc32"] = "text"
    data = bytearray(Path(target).read_bytes())
    assert heaps(data)
    for heap in heaps(data):
        data[heap + 16 : heap + 32] = ENDLESS[piece]
    Path(target).write_bytes(data)
    assert target in refused(*arguments)


def one_text(path: str) -> int:
    """A file with one text that is no list, and where the file says how long it is."""
    with h5py.File(path, "w") as file:
        file["train"] = file["test"] = np.eye(3)
        file["note"] = "some text"
        return int(file["note"].id.get_offset())


def test_one_text_that_is_said_to_be_gigabytes(converts, little_memory):
    at = one_text("note.h5")
    data = bytearray(Path("note.h5").read_bytes())
    data[at : at + 4] = b"\xff\xff\xff\x7f"
    Path("note.h5").write_bytes(data)
    assert "note.h5::/note " in converts("note.h5")


@pytest.mark.parametrize(("version", "place"), [("earliest", "dataset"), ("latest", "attribute")])
def test_letters_of_many_bytes_are_refused(version, place, converts, little_memory):
    """HDF5 would make room for as many for each letter."""
    with h5py.File("letters.h5", "w", libver=version) as file:
        file["train"] = file["test"] = np.eye(3)
        if place == "dataset":
            file["note"] = ["some text"] * 3
        else:
            file.attrs["distance"] = "some text"
    data = bytearray(Path("letters.h5").read_bytes())
    blocks = sealed.blocks(bytes(data))
    kind = data.index(bytes.fromhex("19010100 10000000 10000000 01000000 00000800"))
    data[kind + 12 : kind + 16] = struct.pack("<I", 1 << 24)
    for start, end in blocks:
        sealed.seal(data, start, end)
    Path("letters.h5").write_bytes(data)
    assert "letters.h5" in converts("letters.h5")


def test_an_attribute_longer_than_the_file_takes_no_memory(refused, feats):
    with h5py.File(feats, "r+") as file:
        file.attrs["source"] = "somewhere"
    data = bytearray(Path(feats).read_bytes())
    places = [data.find((9).to_bytes(4, "little") + heap.to_bytes(8, "little")) for heap in heaps(data)]
    (place,) = [place for place in places if place >= 0]
    data[place : place + 4] = b"\xff" * 4
    Path(feats).write_bytes(data)
    peak = PeakMemory(torch.device("cpu"))
    assert "cannot be read, the file is damaged" in refused("run", feats)
    peak.stop()
    assert peak.host is None or peak.host < 128 << 20


def test_attributes_of_odd_kinds_are_passed_over(cli, feats):
    with h5py.File(feats, "r+") as file:
        lists = np.empty(1, dtype=object)
        lists[0] = np.arange(2)
        file.attrs.create("lists", lists, dtype=h5py.vlen_dtype(np.int32))
        file.attrs["several"] = ["a", "b"]
        file.attrs["distance"] = np.arange(3)
    code, out, _ = cli("info", feats)
    assert code == 0
    assert "several: ['a', 'b']" in out
    assert "lists" not in out


def test_names_that_are_no_text_are_left_out(feats, cli):
    with h5py.File(feats, "r+") as file:
        del file["gallery/names"]
        file.create_dataset("gallery/names", (60,), dtype=h5py.vlen_dtype(np.int32))[:] = [np.arange(3)] * 60
    code, _, err = cli("run", feats)
    assert code == 0
    assert "warning: feats.h5::/gallery/names is not text, and is left out" in err


# Archives and packed text


def torch_saved(value, *, zipped: bool = True) -> bytes:
    stream = io.BytesIO()
    torch.save(value, stream, _use_new_zipfile_serialization=zipped)
    return stream.getvalue()


def torch_archive(program: bytes) -> bytes:
    """A file of torch with this program, and a storage of 60 numbers."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("dump/data.pkl", program)
        archive.writestr("dump/version", "3\n")
        archive.writestr("dump/data/0", WIDE.numpy().tobytes())
    return stream.getvalue()


@functools.cache
def bomb(size: int) -> bytes:
    """An archive of one array of zeros."""
    packed = io.BytesIO()
    with (
        zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive,
        archive.open("qf.npy", "w", force_zip64=True) as member,
    ):
        header = {"descr": "<f4", "fortran_order": False, "shape": (size // 4096, 1024)}
        np.lib.format.write_array_header_1_0(member, header)
        for _ in range(size >> 20):
            member.write(bytes(1 << 20))
    return packed.getvalue()


@pytest.mark.parametrize(
    "arguments",
    [
        ("convert", "dump.npz", "out.h5"),
        ("eval", "dump.npz", "feats.h5"),
        ("run", "feats.h5", "--candidates", "dump.npz"),
    ],
)
def test_archives_that_unpack_to_far_more_are_refused(arguments, refused, feats, little_memory):
    Path("dump.npz").write_bytes(bomb(300 << 20))
    assert Path("dump.npz").stat().st_size < 2 << 20
    assert "dump.npz" in refused(*arguments)


@pytest.mark.parametrize("ending", ["trec", "jsonl", "csv"])
def test_text_that_unpacks_to_far_more_is_refused(ending, refused, feats, little_memory):
    Path(f"lists.{ending}.gz").write_bytes(gzip.compress(b"a" * (1 << 20)) * 300)
    assert "looks like a decompression bomb" in refused("eval", f"lists.{ending}.gz", feats)


def test_lists_in_lists_without_end_are_refused(refused, feats):
    Path("deep.jsonl").write_text("[" * 200_000 + "\n")
    for command in (("eval", "deep.jsonl", feats), ("run", feats, "--candidates", "deep.jsonl")):
        assert "deep.jsonl line 1" in refused(*command)


def test_a_picture_that_unpacks_to_far_more_is_left_out(tmp_path):
    from PIL import Image

    from blurrerank.files.images import ImageFiles

    Image.new("1", (20000, 20000)).save(tmp_path / "large.png")
    Image.new("RGB", (20, 10)).save(tmp_path / "small.png")
    assert (tmp_path / "large.png").stat().st_size < 1 << 20
    found = dict(ImageFiles(tmp_path, ["large.png", "small.png"]).read([0, 1], 8))
    assert found[0] is None
    assert found[1].shape == (4, 8, 3)


# Pickles


def laughs(depth: int) -> list:
    found: list = ["ha"]
    for _ in range(depth):
        found = [found] * 10
    return found


@pytest.mark.parametrize("save", [pickle.dumps, torch_saved])
def test_containers_named_again_and_again_are_refused(save, converts, little_time):
    """A thousand bytes that hold 10^30 values."""
    Path("dump.bin").write_bytes(save({"qf": np.ones((2, 3)), "gf": laughs(30)}))
    assert "dump.bin takes more than" in converts("dump.bin")


def test_what_is_shared_is_read():
    row = [1.0, 2.0]
    assert read_pickle(io.BytesIO(pickle.dumps([row] * 1000)), "here") == [row] * 1000


HARMFUL = {
    "a far place of the memo": b"]\x94" + b"r\xff\xff\xff\x7f.",
    "a long bytearray": b"\x80\x05\x96" + (1 << 40).to_bytes(8, "little") + b".",
    "a long text": b"\x80\x04\x8d" + (1 << 40).to_bytes(8, "little") + b"x.",
    "a list in itself": b"\x80\x02]q\x00h\x00a.",
    "a list in itself, as text": b"(lp0\ng0\na.",
    "a state of a function": b"cnumpy.core.multiarray\nscalar\nN}(X\x04\x00\x00\x00nameI1\nu\x86b.",
    "a state of a class": b"ccollections\nOrderedDict\nN}(X\x06\x00\x00\x00updateI1\nu\x86b.",
    "a state of encode": b"c_codecs\nencode\nN}(X\x05\x00\x00\x00_makeNu\x86b.",
    "another encoding": b"c_codecs\nencode\nX\x01\0\0\0aX\x05\0\0\0utf-7\x86R.",
    "an array of 8 TB": b"cnumpy\nndarray\n((I1000000000000\ntcnumpy\ndtype\n(Vf8\ntRtR.",
    "a function": b"cnumpy\ncore.multiarray._reconstruct\n.",
    "an attribute": b"\x80\x04\x8c\x05numpy\x8c\x0dndarray.dumps\x93.",
    "marks": b"\x80\x04" + b"(" * 200000 + b".",
    "no end": b"\x80\x02I1\n",
}


@pytest.mark.parametrize("program", HARMFUL.values(), ids=HARMFUL)
def test_programs_that_only_do_harm(program, converts, little_memory):
    Path("dump.pkl").write_bytes(program)
    why = converts("dump.pkl")
    assert "dump.pkl" in why
    assert "layout not recognised" not in why  # it was not read


def program(end: bytes) -> bytes:
    """A tuple of 2^100 ones, at place 99 of the memo, and what is done with it."""
    nested = b"".join(b"h%ch%c\x86q%c0" % (number, number, number + 1) for number in range(99))
    return b"\x80\x04K\x01\x85q\x000" + nested + end + b"."


@pytest.mark.parametrize("name", ["dump.pkl", "dump.pt", "before 1.6.pt"])
@pytest.mark.parametrize(
    "end",
    [
        b"}hcK\x01s",  # an item of a dictionary: Python asks each of the 2^100 for its number
        b"\x8f(hc\x90",  # of a set
        b"ccollections\nOrderedDict\n]hcK\x01\x86a\x85R",
        b"cnumpy\ndtype\nhc\x85R",  # what a message would show
    ],
)
def test_what_takes_forever_to_look_up_is_refused(end, name, converts, little_time):
    if name == "dump.pt":
        Path(name).write_bytes(torch_archive(program(end)))
    elif name != "dump.pkl":
        before = torch_saved({}, zipped=False)
        Path(name).write_bytes(before.replace(b"\x80\x02}q\x00.", program(end), 1))
        assert Path(name).read_bytes() != before
    else:
        Path(name).write_bytes(program(end))
    assert name in converts(name)


def test_nobody_can_choose_numbers_that_collide(converts, little_time):
    """All of these stand in the same place of a dictionary."""
    numbers = (pickle.dumps(number * sys.hash_info.modulus, 2)[2:-1] for number in range(1, 100_000))
    Path("dump.pkl").write_bytes(b"\x80\x02}(" + b"".join(number + b"N" for number in numbers) + b"u.")
    assert "dump.pkl takes more than" in converts("dump.pkl")


@pytest.mark.parametrize(
    ("query", "more"),
    [
        ([np.zeros(25_000, np.float32)] * 100_000, {}),
        (np.ones((4000, 2), np.float32), {"query_path": [b"y" * 100_000] * 4000}),
    ],
    ids=["an array", "a long name"],
)
def test_what_is_named_again_and_again_is_counted(query, more, converts, little_memory):
    Path("dump.pkl").write_bytes(pickle.dumps({"query_f": query, "gallery_f": np.ones((5, 2))} | more))
    assert "dump.pkl" in converts("dump.pkl")


@pytest.mark.parametrize("protocol", range(6))
def test_keys_of_all_kinds_come_out_as_they_were(protocol):
    value = {
        1: "int",
        False: "bool",
        -2.5: "float",
        float("inf"): "infinite",
        ("a", 2, 3.5): "tuple",
        None: "none",
        b"b": "bytes",
        np.int64(7): "number of NumPy",
        "list": [{1, 2, (3, "x")}, frozenset([4])],
    }
    value = pickle.loads(pickle.dumps(value))
    found = read_pickle(io.BytesIO(pickle.dumps(value, protocol=protocol)), "here")
    assert list(found.values())[:-1] == list(value.values())[:-1]
    assert list(map(repr, found)) == [repr(key) for key in value]
    assert sorted(map(repr, found["list"][0])) == sorted(map(repr, value["list"][0]))


@pytest.mark.parametrize("called", [3, ("a", 3)])
def test_fields_that_are_called_by_no_text(called, cli, converts):
    rows = np.eye(4, 3, dtype=np.float32) + 1
    Path("dump.pkl").write_bytes(pickle.dumps({called: rows, 2: rows}))
    assert f"layout not recognised: pickle with {called} 4 x 3, 2 4 x 3" in converts("dump.pkl")
    Path("dump.pkl").write_bytes(pickle.dumps({"query_f": rows, "gallery_f": rows + 1, called: np.ones(2)}))
    code, out, _ = cli("convert", "dump.pkl", "out.h5", "--allow-pickle")
    assert code == 0
    assert f"ignored: {called}" in out


def test_one_long_name_makes_the_others_no_longer(cli, tmp_path, little_memory):
    rows = np.ones((1000, 8), np.float32)
    names = [f"{row}.jpg" for row in range(999)] + ["x" * 1_000_000]
    fields = {"query_f": rows, "gallery_f": rows + 1, "query_path": names, "gallery_path": names}
    (tmp_path / "dump.pkl").write_bytes(pickle.dumps(fields))
    assert cli("convert", "dump.pkl", "out.h5", "--allow-pickle")[0] == 0
    assert br.load(tmp_path / "out.h5").gallery.names[-1] == names[-1]


@pytest.mark.parametrize(
    ("place", "number"),
    [
        (None, 1 << 64),
        ("query_label", 1 << 64),
        ("query_label", 1 << 20_000),
        ("query_path", -(1 << 20_000)),
        ("num_query", 1 << 20_000),
    ],
    ids=lambda value: value.bit_length() if isinstance(value, int) else value,
)
def test_long_numbers_are_named(place, number, converts):
    fields = {side: np.ones((1, 2), np.float32) for side in ("query_f", "gallery_f")}
    value = number if place is None else fields | {place: [number] if place.startswith("query") else number}
    Path("dump.pkl").write_bytes(pickle.dumps(value))
    assert "contains a number of more than 64 bits" in converts("dump.pkl")


# Files of torch


WIDE = torch.arange(60, dtype=torch.float32).reshape(6, 10)


def attributed():
    found = WIDE.clone()
    found.note = "mine"
    return found


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize(
    "tensor",
    [
        *(WIDE.to(dtype) for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64)),
        *(WIDE.to(dtype) for dtype in (torch.int8, torch.uint8, torch.int16, torch.int32, torch.int64)),
        *(WIDE.to(dtype) for dtype in (torch.uint16, torch.uint32, torch.uint64)),
        WIDE > 30,
        WIDE.to(torch.complex64),
        WIDE.T,
        WIDE[1:4, 2:9:3],
        WIDE[5],
        WIDE[2, 3],
        WIDE[:0],
        WIDE[:1].expand(4, 10),
        WIDE[:, None, :],
        torch.nn.Parameter(WIDE),
        attributed(),
    ],
    ids=lambda tensor: f"{tensor.dtype} {tuple(tensor.shape)} {tensor.stride()}",
)
def test_tensors_come_out_as_torch_reads_them(tensor, zipped, tmp_path):
    if not zipped and tensor.dtype in (torch.uint16, torch.uint32, torch.uint64):
        pytest.skip("torch does not read them back")
    fields = {"one": tensor, "again": tensor, "base": WIDE, "none": [None, "text", 1.5]}
    torch.save(fields, tmp_path / "dump.pt", _use_new_zipfile_serialization=zipped)
    found = open_file(tmp_path / "dump.pt").content
    expected = tensor.detach()
    expected = (expected.float() if expected.dtype == torch.bfloat16 else expected).numpy()
    for name in ("one", "again"):
        np.testing.assert_array_equal(found[name], expected)
        assert found[name].dtype == expected.dtype
    np.testing.assert_array_equal(found["base"], WIDE.numpy())
    assert found["none"] == fields["none"]


@pytest.mark.parametrize("zipped", [True, False])
def test_what_a_training_saves_beside_tensors_is_passed_over(zipped, cli):
    model = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2))
    fields = OrderedDict(
        qf=WIDE,
        gf=torch.nn.Parameter(WIDE + 1),
        q_pids=np.arange(6),
        g_pids=torch.arange(6),
        state_dict=model.state_dict(),
        optimizer={"state": {0: {"step": torch.tensor(3.0)}}, "param_groups": [{"betas": (0.9, 0.999)}]},
        device=torch.device("cpu"),
        meta={1: "one", "sizes": torch.Size([3, 4]), "type": torch.float16, np.int64(3): {2.5, "b"}},
    )
    Path("dump.pt").write_bytes(torch_saved(fields, zipped=zipped))
    assert cli("convert", "dump.pt", "out.h5")[0] == 0
    np.testing.assert_array_equal(br.load("out.h5").gallery.features[:], WIDE.numpy() + 1)
    assert open_file(Path("dump.pt")).content["meta"]["sizes"] == (3, 4)


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda: WIDE.to_sparse(), "a sparse_coo tensor: save it .to_dense()"),
        (lambda: WIDE.to_sparse_csr(), "a sparse_csr tensor: save it .to_dense()"),
        (lambda: torch.empty(6, 4, device="meta"), "a tensor on device meta: save it .cpu()"),
        (
            lambda: torch.quantize_per_tensor(WIDE, 0.1, 0, torch.qint8),
            "a quantised tensor: save it .dequantize()",
        ),
        (lambda: WIDE.to(torch.float8_e4m3fn), "a float8_e4m3fn tensor: save it .float()"),
        (lambda: torch.nn.Linear(2, 2), "torch.nn.modules.linear.Linear, but only tensors"),
    ],
    ids=["sparse", "csr", "meta", "quantized", "float8", "module"],
)
def test_other_kinds_of_tensors_are_named(make, named, converts):
    torch.save({"qf": make(), "gf": WIDE}, "dump.pt")
    assert f"dump.pt contains {named}" in converts("dump.pt")


def rebuilt(offset, shape, strides, *, count=60, name="0"):
    """The program of one tensor, over a storage of 60 numbers."""
    storage = Reference(("storage", torch.FloatStorage, name, "cpu", count))
    return Rebuild(torch._utils._rebuild_tensor_v2, (storage, offset, shape, strides, False, OrderedDict()))


class Reference:
    """Something that is kept elsewhere."""

    def __init__(self, pid):
        self.pid = pid


class Rebuild:
    """Is rebuilt as it is told to."""

    def __init__(self, *reduced):
        self.reduced = reduced

    def __reduce__(self):
        return self.reduced


class Referring(pickle.Pickler):
    """Writes references as torch does."""

    def persistent_id(self, value):
        """Of those alone."""
        return value.pid if isinstance(value, Reference) else None


@pytest.mark.parametrize(
    "tensor",
    [
        rebuilt(0, (6, 11), (10, 1)),
        rebuilt(1, (6, 10), (10, 1)),
        rebuilt(-1, (6, 10), (10, 1)),
        rebuilt(0, (6, -1), (10, 1)),
        rebuilt(0, (6, 10), (-10, 1)),
        rebuilt(0, (6, 10), (10,)),
        rebuilt(0, (6, 10.0), (10, 1)),
        rebuilt(0, (1 << 20, 1 << 20), (0, 0)),
        rebuilt(0, (1 << 40, 1 << 40), (0, 0)),
        rebuilt(0, (6, 10), (1 << 61, 1)),
        rebuilt(0, (6, 10), (10, 1), name="../0"),
        rebuilt(0, (6, 10), (10, 1), count=-1),
        Reference(("storage", "FloatStorage", "0", "cpu", 60)),
        Reference("0"),
        Rebuild(torch._utils._rebuild_tensor_v2, (1, 2, 3, 4)),
    ],
)
def test_tensors_stay_within_their_storage(tensor, converts):
    for name, made in (("sound.pt", rebuilt(0, (6, 10), (10, 1))), ("dump.pt", tensor)):
        program = io.BytesIO()
        Referring(program, protocol=2).dump({"qf": made})
        Path(name).write_bytes(torch_archive(program.getvalue()))
    np.testing.assert_array_equal(open_file(Path("sound.pt")).content["qf"], WIDE.numpy())
    assert "dump.pt" in converts("dump.pt")


def test_tensors_of_bfloat16_that_stand_for_gigabytes(converts):
    torch.save({"qf": torch.zeros(1, dtype=torch.bfloat16).expand(20_000, 25_000)}, "dump.pt")
    assert "memory" in converts("dump.pt")
    torch.save({"qf": torch.zeros((0, 4), dtype=torch.bfloat16)}, "dump.pt")
    assert open_file(Path("dump.pt")).content["qf"].dtype == np.float32


@pytest.mark.parametrize("change", ["conj", "neg"])
def test_signs_that_are_still_to_be_changed_are(change):
    numbers = torch.randn(6, 4, dtype=torch.complex64)
    tensor = numbers.conj() if change == "conj" else numbers.conj().imag
    torch.save({"qf": tensor}, "dump.pt")
    np.testing.assert_array_equal(open_file(Path("dump.pt")).content["qf"], tensor.resolve_conj().resolve_neg())


@pytest.mark.parametrize("end", [40, 150, -8, -100])
@pytest.mark.parametrize("zipped", [True, False])
def test_files_of_torch_that_were_cut_short(zipped, end, converts):
    Path("dump.pt").write_bytes(torch_saved({"qf": WIDE, "gf": WIDE}, zipped=zipped)[:end])
    assert "damaged" in converts("dump.pt")


# What is no file


@pytest.mark.parametrize(
    "arguments",
    [
        ("run", "pipe"),
        ("run", "feats.h5", "--gallery", "pipe"),
        ("run", "feats.h5", "--candidates", "pipe"),
        ("run", "feats.h5", "--index", "pipe"),
        ("info", "pipe"),
        ("convert", "pipe", "out.h5"),
        ("eval", "pipe", "feats.h5", "--format", "trec"),
        ("eval", "pipe", "feats.h5", "--format", "h5"),
        ("eval", "pipe", "feats.h5", "--format", "npz"),
        ("index", "pipe", "-o", "out.h5"),
        ("report", "lists.h5", "pipe", "-o", "out.html"),
        ("convert", "folder", "out.h5"),
    ],
    ids=" ".join,
)
def test_pipes_are_refused_not_waited_for(arguments, refused, cli, feats):
    assert cli("run", feats, "-o", "lists.h5")[0] == 0
    Path("folder").mkdir()
    for name in ("pipe", "folder/pipe.csv"):
        os.mkfifo(name)
    assert re.search(r"pipe\S* is not a regular file", refused(*arguments))


@pytest.mark.parametrize("name", ["a\0b", "a\udcffb"])
def test_names_that_no_file_holds_are_refused(name):
    with pytest.raises(br.InputError, match="expected text that utf-8 can encode, without NUL"):
        br.FeatureSet.from_arrays(np.ones((1, 2)), np.ones((2, 2)), gallery_names=["fine", name])


# Files that change while they are read


def test_a_file_that_somebody_writes_is_refused(refused, feats):
    with open(feats, "rb") as held:
        fcntl.flock(held, fcntl.LOCK_EX)  # as HDF5 holds it
        why = refused("run", feats)
    assert why == "error: feats.h5 is being written by another program: try again when it is done"


def test_features_that_change_while_they_are_read_are_refused(feats, tmp_path):
    data = br.load(feats, memory=4000)  # they stay in the file
    before = data.gallery.features[0:5]
    assert len(before) == 5
    with open(feats, "r+b") as file:  # a program that knows nothing of locks
        file.seek(0, 2)
        file.write(b"more")
    with pytest.raises(
        br.InputError, match=r"feats\.h5::/gallery/features was changed while it was being read"
    ):
        data.gallery.features[0:5]


@pytest.mark.parametrize("harm", ["written", "cut short"])
@pytest.mark.parametrize("kind", ["npy", "fbin"])
def test_mapped_features_that_change_while_they_are_searched_are_refused(kind, harm, tmp_path):
    probe, gallery = np.split(np.random.default_rng(0).standard_normal((400, 32)).astype("f4"), [30])
    for name, rows in (("probe", probe), ("gallery", gallery)):
        if kind == "npy":
            np.save(tmp_path / f"{name}.npy", rows)
        else:
            (tmp_path / f"{name}.fbin").write_bytes(np.array(rows.shape, "<i4").tobytes() + rows.tobytes())
    paths = tmp_path / f"probe.{kind}", tmp_path / f"gallery.{kind}"
    whole = paths[1].read_bytes()

    def change(done, total):
        if 0 < done < total:
            paths[1].write_bytes(whole[:200] if harm == "cut short" else whole)

    with pytest.raises(br.InputError, match=rf"gallery\.{kind} was changed while it was being read"):
        br.rerank(br.load(*paths), topn=2, memory=100_000, progress=change)

    def replace(done, total):
        other = tmp_path / "other"
        other.write_bytes(whole[:200])
        other.replace(paths[1])

    paths[1].write_bytes(whole)
    found = br.rerank(br.load(*paths), topn=2, memory=100_000, progress=replace)
    expected = br.rerank(br.FeatureSet.from_arrays(probe, gallery), topn=2)
    np.testing.assert_array_equal(found.indices, expected.indices)


@pytest.mark.parametrize("harm", ["written", "cut short"])
def test_an_index_that_changes_while_it_is_asked_is_refused(harm, cli, feats, monkeypatch):
    probes, path = br.load(feats).probe.features[:], Path("gallery.index.h5")
    br.build_index(br.load(feats).gallery, path, pool=16)

    answered, answer = threading.Event(), serving._answers

    def answering(*arguments):
        found = answer(*arguments)
        answered.set()
        return found

    monkeypatch.setattr(serving, "_answers", answering)

    class Lines(io.RawIOBase):
        """Two probes; once the first is answered the index is changed, as `cp` does it."""

        asked = 0

        def readable(self):
            return True

        def readinto(self, buffer):
            self.asked += 1
            if self.asked == 2:
                assert answered.wait(60)
                whole = path.read_bytes()
                path.write_bytes(whole[:4096] if harm == "cut short" else whole)
            line = json.dumps(probes[self.asked - 1].tolist()).encode() + b"\n" if self.asked < 3 else b""
            buffer[: len(line)] = line
            return len(line)

    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BufferedReader(Lines())))
    code, out, err = cli("run", "--index", path, "-")
    assert code == 1
    assert [json.loads(line)["probe"] for line in out.splitlines()] == [0]
    assert err.splitlines() == [
        f"error: {path} was changed while it was being read: run this again when it is complete "
        "(replacing it by a rename is safe)"
    ]


def test_threads_may_try_files_at_the_same_time(feats, cli):
    assert cli("run", feats, "-o", "ranking.h5")[0] == 0
    data = br.load(feats)
    with ThreadPoolExecutor(4) as threads:
        found = list(threads.map(lambda _: br.read_ranking("ranking.h5", data).depth, range(12)))
    assert found == [50] * 12


def test_memory_that_torch_does_not_get_is_told_in_one_line(refused, feats, monkeypatch):
    def greedy(*_, **__):
        torch.empty(1 << 60)

    monkeypatch.setattr("blurrerank.search.sources.search", greedy)
    assert refused("run", feats) == "error: out of memory: try a smaller --memory"


# Trees of HDF5


def looped(data: bytes, kind: int, key: int, child: int) -> bytes:
    """The same file, in which an inner node of a tree is its own child."""
    found = bytearray(data)
    roots = [place.start() for place in re.finditer(rb"TREE" + bytes([kind]), data) if data[place.start() + 5]]
    assert roots
    for root in roots:
        struct.pack_into("<Q", found, root + 24 + key + child * (key + 8), root)
    return bytes(found)


@pytest.mark.parametrize(("command", "child"), [("info", 0), ("run", 1)])
def test_a_tree_of_chunks_that_comes_back_to_itself(command, child, refused):
    """HDF5 goes down until there is no memory for where it has been, and the process ends."""
    with h5py.File("sound.h5", "w") as file:
        for side in ("probe", "gallery"):
            rows = np.random.default_rng(0).standard_normal((200, 3))
            file.create_dataset(f"{side}/features", data=rows, chunks=(1, 3), compression="gzip")
    assert br.load("sound.h5").gallery.features[:].shape == (200, 3)
    Path("looped.h5").write_bytes(looped(Path("sound.h5").read_bytes(), 1, 8 + 8 * 3, child))
    assert "looped.h5" in refused(command, "looped.h5")


@pytest.mark.parametrize("where", ["", "probe/"])
def test_a_tree_of_names_that_comes_back_to_itself(where, cli):
    """HDF5 finds some names all the same."""
    with h5py.File("sound.h5", "w") as file:
        for side in ("probe", "gallery"):
            file[f"{side}/features"] = np.eye(3)
        for number in range(400):
            file[f"{where}other {number}"] = number
    Path("looped.h5").write_bytes(looped(Path("sound.h5").read_bytes(), 0, 8, 1))
    for command in (["info", "looped.h5"], ["run", "looped.h5"], ["convert", "looped.h5", "out.h5"]):
        code, _, err = cli(*command)
        assert code == 0 or (code == 1 and "looped.h5" in err)


# The newer format of HDF5


def many(make):
    """What makes twenty of them."""
    return lambda file: [make(file, f"extra {number}") for number in range(20)]


def chunks(file, grows=None):
    del file["probe/features"]
    file.create_dataset("probe/features", data=np.eye(40), chunks=(3, 40), maxshape=grows)


NEWER = {
    "links": many(lambda file, name: file.create_group(name)),
    "links in a group": many(lambda file, name: file["probe"].create_group(name)),
    "attributes": many(lambda file, name: file.attrs.create(name, 1)),
    "attributes of features": many(lambda file, name: file["probe/features"].attrs.create(name, 1)),
    "a fixed array": chunks,
    "a growing array": functools.partial(chunks, grows=(None, 40)),
    "a tree of chunks": functools.partial(chunks, grows=(None, None)),
}


@pytest.mark.parametrize(
    ("change", "command"),
    [
        *((change, "run") for change in NEWER),
        ("attributes", "convert"),
        ("attributes of features", "convert"),
        ("a tree of chunks", "info"),
    ],
)
def test_what_the_newer_format_keeps_in_heaps_and_trees_may_be_damaged(change, command, refused, cli):
    """HDF5 dies of some of these, and stays for ever with others."""
    with h5py.File("newer.h5", "w", libver="latest") as file:
        for side in ("probe", "gallery"):
            file[f"{side}/features"] = np.eye(40)
        NEWER[change](file)
    data = bytearray(Path("newer.h5").read_bytes())
    kept = [place for place in sealed.blocks(bytes(data)) if data[place[0]] in b"BEF"]
    assert kept
    for start, end in kept:
        data[start + 6 : end] = b"\xfe" * (end - start - 6)
        sealed.seal(data, start, end)
    Path("newer.h5").write_bytes(data)
    out = ("out.h5",) * (command == "convert")
    if change == "attributes of features" and command != "convert":
        assert cli(command, "newer.h5")[0] == 0  # nobody asks for them
    else:
        assert "newer.h5" in refused(command, "newer.h5", *out)


@pytest.mark.parametrize("harm", ["itself", "more than there is"])
@pytest.mark.parametrize("version", ["earliest", "latest"])
def test_a_header_without_an_end(version, harm, refused):
    with h5py.File("sound.h5", "w", libver=version) as file:
        for side in ("probe", "gallery"):
            file[f"{side}/features"] = np.eye(3)
            for number in range(7):
                file[f"{side}/features"].attrs[f"note {number}"] = "x" * 500
    data = bytearray(Path("sound.h5").read_bytes())
    assert br.load("sound.h5").gallery.features[:].shape == (3, 3)
    newer = version == "latest"
    head = re.compile(rb"\x10\x10\0[\0-\x0f]" if newer else rb"\x10\0\x10\0.\0\0\0(?!\xff{8})")
    for match in list(head.finditer(data)):
        place, size = match.end(), len(match.group()) + 16
        if int.from_bytes(data[place : place + 8], "little") < len(data):
            itself = (match.start() - 4 * newer, size + 8 * newer)
            struct.pack_into("<QQ", data, place, *(itself if harm == "itself" else (64, 1 << 62)))
    for start, end in sealed.blocks(Path("sound.h5").read_bytes()):
        sealed.seal(data, start, end)
    Path("sound.h5").write_bytes(data)
    assert "sound.h5" in refused("run", "sound.h5")


# Packed chunks of HDF5


def packed_by(name, filters, values, stored=None):
    """Features of one chunk that is packed by these filters, as it would be, or as it is given."""
    with h5py.File(name, "w") as file:
        for side in ("probe", "gallery"):
            settings = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
            settings.set_chunk(values.shape)
            for code, options in filters:
                settings.set_filter(code, h5py.h5z.FLAG_OPTIONAL, options)
            kind, space = h5py.h5t.py_create(values.dtype), h5py.h5s.create_simple(values.shape)
            made = h5py.h5d.create(file.create_group(side).id, b"features", kind, space, settings)
            h5py.Dataset(made)[...] = values
            if stored is not None:
                made.write_direct_chunk((0, 0), stored)


GZIP, SHUFFLE, FLETCHER, SZIP, SCALED, LZF = 1, 2, 3, 4, 6, 32000
ROWS = np.random.default_rng(0).integers(0, 9, (64, 16)).astype(np.float32)
NOISE = np.random.default_rng(0).standard_normal((40_000, 16)).astype(np.float32)


@pytest.mark.parametrize("filters", [[(SHUFFLE, ()), (GZIP, (1,)), (FLETCHER, ())], [(LZF, ())], "left out"])
def test_chunks_that_do_not_get_smaller_are_read(filters):
    packed_by("noise.h5", [(GZIP, (1,))] if filters == "left out" else filters, NOISE)
    if filters == "left out":  # a mask says so, for this chunk alone
        with h5py.File("noise.h5", "r+") as file:
            file["probe/features"].id.write_direct_chunk((0, 0), NOISE.tobytes(), 1)
    np.testing.assert_array_equal(br.load("noise.h5").probe.features[:], NOISE)


@functools.cache
def deflated(size):
    """Some zeros, packed."""
    packer = zlib.compressobj(1)
    pieces = [packer.compress(bytes(1 << 20)) for _ in range(size >> 20)]
    return b"".join(pieces) + packer.flush()


@pytest.mark.parametrize(
    ("others", "values"), [([], ROWS), ([(SHUFFLE, ()), (FLETCHER, ())], NOISE)], ids=["longer", "not longer"]
)
def test_a_chunk_that_unpacks_to_more_than_a_chunk(others, values, refused):
    packed_by("bomb.h5", [*others, (GZIP, (1,))], values, deflated(400 << 20))
    peak = PeakMemory(torch.device("cpu"))
    assert "bomb.h5" in refused("info", "bomb.h5")
    peak.stop()
    assert peak.host is None or peak.host < 64 << 20


@pytest.mark.parametrize(
    ("code", "options", "before", "place"),
    [
        (LZF, (), struct.pack("<2I", 261, ROWS.nbytes), 4),
        (SCALED, (0, 3), struct.pack("<3I", ROWS.size, 1, 4), 0),
        (SZIP, (4, 8), struct.pack("<I", ROWS.nbytes), 0),  # the first of the chunk
    ],
    ids=["lzf", "scale and offset", "szip"],
)
def test_filters_that_would_make_room_for_gigabytes(code, options, before, place, refused, little_memory):
    packed_by("room.h5", [(code, options)], ROWS)
    after = before[:place] + struct.pack("<I", 1 << (31 if code == SZIP else 30)) + before[place + 4 :]
    if code == SZIP:
        with h5py.File("room.h5", "r+") as file:
            stored = file["probe/features"].id
            chunk = stored.read_direct_chunk((0, 0))[1]
            assert chunk.startswith(before)
            stored.write_direct_chunk((0, 0), after + chunk[4:])
    else:
        data = Path("room.h5").read_bytes()
        assert before in data
        Path("room.h5").write_bytes(data.replace(before, after))
    assert "room.h5" in refused("run", "room.h5")
