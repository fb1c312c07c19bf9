"""Files that were made to do harm: one line says what is wrong, nothing else is read, memory stays small."""

from __future__ import annotations

import fcntl
import gzip
import io
import itertools
import json
import os
import pickle
import re
import resource
import signal
import struct
import subprocess
import sys
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
from blurrerank.compute.peak_memory import PeakMemory
from blurrerank.files import guard, hdf5
from blurrerank.files.foreign.containers import open_file
from blurrerank.files.foreign.pickles import read_pickle


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture(autouse=True)
def little_time(monkeypatch):
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


# Out of the file


def link_to_a_file(file):
    del file["gallery/features"]
    file["gallery/features"] = h5py.ExternalLink("secret.h5", "/features")


def link_to_a_group(file):
    del file["gallery"]
    file["gallery"] = h5py.ExternalLink("secret.h5", "/")


def link_to_a_pipe(file):
    del file["gallery/ids"]
    file["gallery/ids"] = h5py.ExternalLink("pipe", "/ids")


def link_by_a_link(file):
    file["out"] = h5py.ExternalLink("secret.h5", "/")
    del file["gallery/features"]
    file["gallery/features"] = h5py.SoftLink("/out/features")


def circle(file):
    del file["gallery/features"]
    file["gallery/features"] = h5py.SoftLink("/gallery/again")
    file["gallery/again"] = h5py.SoftLink("/gallery/features")


def data_elsewhere(file):
    shape = file["gallery/features"].shape
    del file["gallery/features"]
    file["gallery"].create_dataset(
        "features", shape, np.float32, external=[("secret.bin", 0, 4 * shape[0] * shape[1])]
    )


def data_of_others(file):
    shape = file["gallery/features"].shape
    del file["gallery/features"]
    layout = h5py.VirtualLayout(shape, np.float32)
    layout[:] = h5py.VirtualSource("secret.h5", "features", shape)
    file["gallery"].create_virtual_dataset("features", layout)


OUTSIDE = {
    link_to_a_file: "feats.h5::/gallery has a link 'features' to another file, which is not followed",
    link_to_a_group: "feats.h5::/ has a link 'gallery' to another file",
    link_to_a_pipe: "feats.h5::/gallery has a link 'ids' to another file",
    link_by_a_link: "feats.h5::/ has a link 'out' to another file",
    circle: "feats.h5::/gallery has a link 'features' that is circular or nested too deeply",
    data_elsewhere: "feats.h5::/gallery/features is stored in another file, which is not read",
    data_of_others: "feats.h5::/gallery/features is stored in another file, which is not read",
}


@pytest.mark.parametrize("change", OUTSIDE, ids=lambda change: change.__name__)
@pytest.mark.parametrize("command", ["run", "index", "convert"])
def test_nothing_outside_of_the_file_is_read(command, change, refused, feats, tmp_path):
    rows = features()["gallery"]
    with h5py.File("secret.h5", "w") as file:
        file["features"], file["ids"] = rows, features()["gallery_ids"]
    rows.tofile("secret.bin")
    os.mkfifo("pipe")
    with h5py.File(feats, "r+") as file:
        change(file)
    if command == "convert":
        with h5py.File(feats, "r+") as file:  # another tool's: no groups
            for name in ("probe", "gallery"):
                if isinstance(file.get(name, getlink=True), h5py.HardLink):
                    file.move(name, f"/{name}_part")
            for name in list(file):
                if isinstance(file.get(name, getlink=True), h5py.HardLink):
                    for field in list(file[name]):
                        file.move(f"{name}/{field}", f"/{name}_{field}")
                    del file[name]
        why = refused("convert", feats, "out.h5")
    elif command == "index":
        why = refused("index", feats, "-o", "out.h5")
    else:
        why = refused("run", feats, "-o", "out.h5")
    if command != "convert":
        assert OUTSIDE[change] in why
    assert not Path("out.h5").exists()


def test_links_inside_the_file_are_followed(cli, feats):
    assert cli("run", feats, "-o", "plain.csv")[0] == 0
    with h5py.File(feats, "r+") as file:
        file.move("gallery/features", "/kept/elsewhere")
        file["gallery/features"] = h5py.SoftLink("/kept/elsewhere")
        file["again"] = h5py.SoftLink("/gallery")
        file.move("gallery", "/deeper/gallery")
        file["gallery"] = h5py.SoftLink("deeper/gallery")
    assert cli("run", feats, "-o", "linked.csv")[0] == 0
    assert Path("linked.csv").read_bytes() == Path("plain.csv").read_bytes()


# More than there is


@pytest.mark.parametrize("rows", [10**6, 2**31, 2**40])
def test_what_was_declared_and_never_written_is_refused(rows, refused, feats, little_memory):
    with h5py.File(feats, "r+") as file:
        del file["gallery"]
        file.create_dataset("gallery/features", (rows, 8), np.float32)
    assert Path(feats).stat().st_size < 1 << 16
    why = refused("run", feats)
    assert (
        f"feats.h5::/gallery/features is {rows} x 8, {rows * 32:,} bytes, but the file has only 0 of them"
        in why
    )


@pytest.mark.parametrize("name", ["ids", "names", "images"])
def test_labels_that_were_never_written_are_refused(name, refused, feats, little_memory):
    with h5py.File(feats, "r+") as file:
        file.pop(f"gallery/{name}", None)
        kind = {"ids": np.int64, "names": h5py.string_dtype(), "images": np.uint8}[name]
        file.create_dataset(f"gallery/{name}", (60, *([4096] * 3 if name == "images" else [])), kind)
    if name != "images":
        assert f"feats.h5::/gallery/{name} is 60, " in refused("run", feats)
    else:
        assert "images is uint8" in refused("run", feats)


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


def test_one_number_that_stands_for_all_is_refused(refused, little_memory):
    fields = {f"{side}_{what}": torch.ones(2) for side in ("query", "gallery") for what in ("label", "cam")}
    large = torch.ones(1).expand(1_000_000, 600)
    torch.save(fields | {"query_f": torch.ones(2, 600), "gallery_f": large}, "dump.pt")
    why = refused("convert", "dump.pt", "out.h5")
    assert "gallery_f is 1000000 x 600, and there are 2 labels" in why


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


@pytest.mark.parametrize(
    ("variables", "why"),
    [
        (matrix(4, b"qf", element(4, b""), (1, 1 << 30)), "damaged"),  # characters that are not there
        (matrix(6, b"qf", struct.pack("<II", 9, 1 << 20) + bytes(8)), "damaged"),  # longer than the variable
        (matrix(6, b"qf", element(9, bytes(8)), (-1, -1)), "damaged"),
        (b"".join(packed(name, 100 << 20) for name in (b"qf", b"gf", b"xf")), "damaged"),
    ],
)
def test_matlab_files_that_scipy_would_believe_are_refused(variables, why, refused, little_memory):
    Path("dump.mat").write_bytes(MATLAB + variables)
    assert why in refused("convert", "dump.mat", "out.h5")


@pytest.mark.parametrize("first", ["struct", "sound"])
def test_two_variables_of_one_name_are_refused(first, refused):
    """Of the struct scipy would read numbers of a kind that does not exist, and crash."""

    field = element(5, struct.pack("<i", 4)) + element(1, b"f\0\0\0") + matrix(6, b"", element(50, bytes(8)))
    both = [matrix(2, b"qf", field), matrix(6, b"qf", element(9, bytes(8)))]
    Path("dump.mat").write_bytes(MATLAB + b"".join(both if first == "struct" else both[::-1]))
    why = refused("convert", "dump.mat", "out.h5")
    assert {"struct": "crashes what reads it", "sound": 'Duplicate variable name "qf"'}[first] in why


def test_one_dataset_under_many_names_is_refused(refused, little_memory):
    with h5py.File("many.h5", "w") as file:
        for name in ("train", "test"):
            file[name] = np.ones((4, 3), np.float32)
        some = file.create_dataset("x", (200 << 20,), np.int8, chunks=(1 << 20,), compression="gzip")
        some[:] = 0
        for number in range(4):
            file[f"x{number}"] = some
    refused("convert", "many.h5", "out.h5")


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


@pytest.mark.parametrize("filters", [{}, {"compression": "gzip"}, {"compression": "lzf"}])
def test_packed_names_are_read(filters, feats):
    names = [f"name {row}" for row in range(60)]
    with h5py.File(feats, "r+") as file:
        del file["gallery/names"]
        file.create_dataset("gallery/names", data=names, dtype=h5py.string_dtype(), chunks=(7,), **filters)
    assert br.load(feats).gallery.names.tolist() == names


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


# What is left of a heap, of size 0; a text so long that with its header the length comes out at 0.
@pytest.mark.parametrize("piece", [bytes(16), b"\1\0\0\0\0\0\0\0" + b"\xf0" + b"\xff" * 7])
def test_a_heap_without_an_end_is_refused(piece, refused, feats):
    """HDF5 would look for the end of it for ever."""
    data = bytearray(Path(feats).read_bytes())
    heap = data.index(b"GCOL\x01")
    data[heap + 16 : heap + 32] = piece
    Path(feats).write_bytes(data)
    assert "feats.h5" in refused("run", feats)


@pytest.mark.parametrize("command", ["run", "convert"])
def test_virtual_data_in_a_heap_without_an_end_are_refused(command, refused):
    """HDF5 does as soon as such a dataset is opened."""
    layout = h5py.VirtualLayout((3, 3), np.float32)
    layout[:] = h5py.VirtualSource("secret.h5", "features", (3, 3))
    with h5py.File("virtual.h5", "w") as file:
        file.create_virtual_dataset("probe/features" if command == "run" else "test", layout)
        file["gallery/features" if command == "run" else "train"] = np.eye(3)
    data = bytearray(Path("virtual.h5").read_bytes())
    heap = data.index(b"GCOL\x01")
    data[heap + 16 : heap + 32] = bytes(16)
    Path("virtual.h5").write_bytes(data)
    out = ("out.h5",) * (command == "convert")
    assert "virtual.h5" in refused(command, "virtual.h5", *out)


def test_heaps_are_found_behind_a_block_of_the_user(refused, feats):
    with h5py.File(feats) as file, h5py.File("block.h5", "w", userblock_size=512) as copy:
        for side in ("probe", "gallery"):
            file.copy(side, copy)
    data = bytearray(Path("block.h5").read_bytes())
    assert br.load("block.h5").gallery.names.tolist() == br.load(feats).gallery.names.tolist()
    heap = data.index(b"GCOL\x01")
    data[heap + 16 : heap + 32] = bytes(16)
    Path("block.h5").write_bytes(data)
    assert "block.h5" in refused("run", "block.h5")


@pytest.mark.parametrize("where", ["an attribute", "what was never written", "packed text"])
def test_a_heap_without_an_end_is_found_where_nothing_says_where_it_is(where, refused, feats, cli):
    assert cli("run", feats, "-o", "ranking.h5")[0] == 0
    target, command = feats, ("run", feats)
    if where == "an attribute":
        target, command = "ranking.h5", ("eval", "ranking.h5", feats)
    else:
        fill, written = ("somebody", 20) if where == "what was never written" else (None, 60)
        with h5py.File(feats, "r+") as file:
            names = file["gallery/names"][()]
            del file["gallery/names"]
            options = {"chunks": (20,), "compression": "gzip", "fillvalue": fill}
            copy = file.create_dataset("gallery/names", 60, h5py.string_dtype(), **options)
            copy[:written] = names[:written]
        if fill is None:
            assert br.load(feats).gallery.names.tolist() == [name.decode() for name in names]
    data = bytearray(Path(target).read_bytes())
    for place in range(len(data)):
        if data[place : place + 5] == b"GCOL\x01":
            data[place + 16 : place + 32] = bytes(16)
    Path(target).write_bytes(data)
    assert target in refused(*command)


def test_an_index_whose_attributes_lie_in_a_heap_without_an_end_is_refused(refused, feats, cli):
    assert cli("index", feats, "-o", "g.index.h5")[0] == 0
    with h5py.File("g.index.h5", "r+") as file:
        file["features"].attrs["crc32"] = "text"
    data = bytearray(Path("g.index.h5").read_bytes())
    for place in range(len(data)):
        if data[place : place + 5] == b"GCOL\x01":
            data[place + 16 : place + 32] = bytes(16)
    Path("g.index.h5").write_bytes(data)
    assert "g.index.h5" in refused("run", feats, "--index", "g.index.h5")


def test_a_file_that_somebody_writes_is_refused(refused, feats):
    with open(feats, "rb") as held:
        fcntl.flock(held, fcntl.LOCK_EX)  # as HDF5 holds it
        why = refused("run", feats)
    assert why == "error: feats.h5 is being written by another program: try again when it is done"


# Archives and packed text


def bomb(size: int) -> bytes:
    """An archive of one array of zeros."""
    packed = io.BytesIO()
    with (
        zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive,
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
    Path("dump.npz").write_bytes(bomb(600 << 20))
    assert Path("dump.npz").stat().st_size < 1 << 20
    assert "dump.npz" in refused(*arguments)


@pytest.mark.parametrize("ending", ["trec", "jsonl", "csv"])
def test_text_that_unpacks_to_far_more_is_refused(ending, refused, feats, little_memory):
    with gzip.open(f"lists.{ending}.gz", "wb") as file:
        for _ in range(600):
            file.write(b"a" * (1 << 20))
    why = refused("eval", f"lists.{ending}.gz", feats)
    assert "looks like a decompression bomb" in why


def test_variables_that_unpack_to_far_more_are_refused(refused, little_memory):
    body = bytes.fromhex("06000000080000000700000000000000") + bytes.fromhex("0500000008000000000000080a000000")
    body += bytes.fromhex("0100000002000000") + b"qf" + bytes(6)
    body += (7).to_bytes(4, "little") + (600 << 20).to_bytes(4, "little")
    inner = (14).to_bytes(4, "little") + (len(body) + (600 << 20)).to_bytes(4, "little") + body
    packer = zlib.compressobj(9)
    packed = (
        packer.compress(inner) + b"".join(packer.compress(bytes(1 << 20)) for _ in range(600)) + packer.flush()
    )
    head = b"MATLAB 5.0 MAT-file".ljust(124) + b"\x00\x01IM"
    Path("dump.mat").write_bytes(head + (15).to_bytes(4, "little") + len(packed).to_bytes(4, "little") + packed)
    assert "dump.mat" in refused("convert", "dump.mat", "out.h5")


def test_matlab_tags_that_scipy_would_follow_are_refused(refused):
    """An unknown kind of numbers takes the process along."""
    scipy.io.savemat("dump.mat", {"query_f": np.ones((3, 4))})
    data = bytearray(Path("dump.mat").read_bytes())
    place = data.index(b"query_f") + 8
    assert data[place] == 9  # doubles
    data[place] = 14
    Path("dump.mat").write_bytes(data)
    assert "dump.mat crashes what reads it" in refused("convert", "dump.mat", "out.h5")


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


# Pickles


def laughs(depth: int) -> list:
    found: list = ["ha"]
    for _ in range(depth):
        found = [found] * 10
    return found


@pytest.mark.parametrize("save", ["pickle", "torch"])
def test_containers_named_again_and_again_are_refused(save, refused):
    """A thousand bytes that hold 10^30 values."""
    fields = {"qf": np.ones((2, 3)), "gf": laughs(30)}
    if save == "torch":
        torch.save(fields, "dump.bin")
    else:
        Path("dump.bin").write_bytes(pickle.dumps(fields))
    assert "dump.bin takes more than" in refused("convert", "dump.bin", "out.h5", "--allow-pickle")


def test_what_is_shared_is_read():
    row = [1.0, 2.0]
    assert read_pickle(io.BytesIO(pickle.dumps([row] * 1000)), "here") == [row] * 1000


@pytest.mark.parametrize(
    "program",
    [
        b"]\x94" + b"r\xff\xff\xff\x7f.",  # the two-thousand-millionth object
        b"\x80\x05\x96" + (1 << 40).to_bytes(8, "little") + b".",
        b"\x80\x04\x8d" + (1 << 40).to_bytes(8, "little") + b"x.",
        b"\x80\x02]q\x00h\x00a.",
        b"cnumpy.core.multiarray\nscalar\nN}(X\x04\x00\x00\x00nameI1\nu\x86b.",
        b"ccollections\nOrderedDict\nN}(X\x06\x00\x00\x00updateI1\nu\x86b.",
        b"c_codecs\nencode\nN}(X\x05\x00\x00\x00_makeNu\x86b.",
        b"c_codecs\nencode\nX\x01\0\0\0aX\x05\0\0\0utf-7\x86R.",
    ],
)
def test_programs_that_only_do_harm(program, refused, little_memory):
    Path("dump.pkl").write_bytes(program)
    assert "dump.pkl" in refused("convert", "dump.pkl", "out.h5", "--allow-pickle")
    assert read_pickle(io.BytesIO(pickle.dumps([b"a"], protocol=2)), "here") == [b"a"]


def program(*parts: bytes) -> bytes:
    """A tuple of 2^100 ones, at place 99 of the memo, and what is done with it."""
    nested = b"".join(b"h%ch%c\x86q%c0" % (number, number, number + 1) for number in range(99))
    return b"\x80\x04K\x01\x85q\x000" + nested + b"".join(parts) + b"."


@pytest.mark.parametrize(
    "end",
    [
        b"}hcK\x01s",  # an item of a dictionary
        b"}(hcK\x01u",
        b"(hcK\x01d",
        b"\x8f(hc\x90",  # sets
        b"(hc\x91",
        b"ccollections\nOrderedDict\n]hcK\x01\x86a\x85R",
        b"cnumpy\ndtype\nhc\x85R",  # what a message would show
        b"c_codecs\nencode\nX\x01\x00\x00\x00ahc\x86R",
        b"}hcK\x01sccollections\nOrderedDict\n)Rhc}b",
    ],
)
@pytest.mark.parametrize("save", ["pickle", "torch", "torch, before 1.6"])
def test_what_takes_forever_to_look_up_is_refused(save, end, refused):
    """Python asks each of the 2^100 for its number."""
    data = program(end)
    name = "dump.pkl"
    if save == "torch":
        name = "dump.pt"
        with zipfile.ZipFile(name, "w") as archive:
            archive.writestr("dump/data.pkl", data)
            archive.writestr("dump/version", "3\n")
    elif save != "pickle":
        name = "dump.pt"
        torch.save({}, name, _use_new_zipfile_serialization=False)
        before = Path(name).read_bytes()
        Path(name).write_bytes(before.replace(b"\x80\x02}q\x00.", data, 1))
        assert Path(name).read_bytes() != before
    else:
        Path(name).write_bytes(data)
    refused("convert", name, "out.h5", "--allow-pickle")


def test_nobody_can_choose_numbers_that_collide(refused):
    """All of these stand in the same place of a dictionary."""
    numbers = (pickle.dumps(number * sys.hash_info.modulus, 2)[2:-1] for number in range(1, 100_000))
    Path("dump.pkl").write_bytes(b"\x80\x02}(" + b"".join(number + b"N" for number in numbers) + b"u.")
    assert "dump.pkl takes more than" in refused("convert", "dump.pkl", "out.h5", "--allow-pickle")


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


def test_fields_that_are_called_by_numbers(refused):
    Path("dump.pkl").write_bytes(pickle.dumps({1: np.ones((3, 2)), 2: np.ones((4, 2))}))
    why = refused("convert", "dump.pkl", "out.h5", "--allow-pickle")
    assert "layout not recognised: pickle with 1 3 x 2, 2 4 x 2" in why


@pytest.mark.parametrize("called", [3, ("a", 3)])
def test_other_fields_that_are_called_by_no_text(called, cli, tmp_path):
    rows = np.eye(4, 3, dtype=np.float32) + 1
    fields = {"query_f": rows, "gallery_f": rows + 1, called: np.ones(2)}
    (tmp_path / "dump.pkl").write_bytes(pickle.dumps(fields))
    code, out, _ = cli("convert", "dump.pkl", "out.h5", "--allow-pickle")
    assert code == 0
    assert f"ignored: {called}" in out


def test_one_array_under_many_names_is_refused(refused, little_memory):
    row = np.zeros(25_000, np.float32)
    for side in ("query_f", "gallery_f"):
        fields = {"query_f": [row] * 5, "gallery_f": [row] * 5} | {side: [row] * 100_000}
        Path("dump.pkl").write_bytes(pickle.dumps(fields))
        assert "dump.pkl" in refused("convert", "dump.pkl", "out.h5", "--allow-pickle")


def test_one_long_name_makes_the_others_no_longer(cli, tmp_path, little_memory):
    rows = np.ones((1000, 8), np.float32)
    names = [f"{row}.jpg" for row in range(999)] + ["x" * 1_000_000]
    fields = {"query_f": rows, "gallery_f": rows + 1, "query_path": names, "gallery_path": names}
    (tmp_path / "dump.pkl").write_bytes(pickle.dumps(fields))
    assert cli("convert", "dump.pkl", "out.h5", "--allow-pickle")[0] == 0
    assert br.load(tmp_path / "out.h5").gallery.names[-1] == names[-1]


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


def test_what_else_a_training_saves_is_passed_over(cli, tmp_path):
    model = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2))
    sides = {"qf": WIDE, "gf": WIDE + 1, "q_pids": torch.arange(6), "g_pids": torch.arange(6)}
    sides |= {"q_camids": torch.zeros(6), "g_camids": torch.ones(6)}
    optimizer = torch.optim.Adam(model.parameters())
    torch.save(
        sides
        | {
            "state_dict": model.state_dict(),
            "optimizer": optimizer.state_dict(),
            "device": torch.device("cpu"),
        },
        "dump.pt",
    )
    assert cli("convert", "dump.pt", "out.h5")[0] == 0
    np.testing.assert_array_equal(br.load("out.h5").gallery.features[:], WIDE.numpy() + 1)


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
def test_other_kinds_of_tensors_are_named(make, named, refused):
    torch.save({"qf": make(), "gf": WIDE}, "dump.pt")
    why = refused("convert", "dump.pt", "out.h5")
    assert f"dump.pt contains {named}" in why


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
def test_tensors_stay_within_their_storage(tensor, refused):
    for name, made in (("sound.pt", rebuilt(0, (6, 10), (10, 1))), ("dump.pt", tensor)):
        program = io.BytesIO()
        Referring(program, protocol=2).dump({"qf": made})
        with zipfile.ZipFile(name, "w") as archive:
            archive.writestr("dump/data.pkl", program.getvalue())
            archive.writestr("dump/version", "3\n")
            archive.writestr("dump/data/0", WIDE.numpy().tobytes())
    np.testing.assert_array_equal(open_file(Path("sound.pt")).content["qf"], WIDE.numpy())
    assert "dump.pt" in refused("convert", "dump.pt", "out.h5")


def test_tensors_of_bfloat16_that_stand_for_gigabytes(refused):
    torch.save({"qf": torch.zeros(1, dtype=torch.bfloat16).expand(20_000, 25_000)}, "dump.pt")
    assert "dump.pt" in refused("convert", "dump.pt", "out.h5")
    torch.save({"qf": torch.zeros((0, 4), dtype=torch.bfloat16)}, "dump.pt")
    assert open_file(Path("dump.pt")).content["qf"].dtype == np.float32


@pytest.mark.parametrize("change", ["conj", "neg"])
def test_signs_that_are_still_to_be_changed_are(change):
    numbers = torch.randn(6, 4, dtype=torch.complex64)
    tensor = numbers.conj() if change == "conj" else numbers.conj().imag
    torch.save({"qf": tensor}, "dump.pt")
    np.testing.assert_array_equal(open_file(Path("dump.pt")).content["qf"], tensor.resolve_conj().resolve_neg())


def _text(text):
    return b"X" + len(text).to_bytes(4, "little") + text


_PAIRS = b"](" + b"".join(b"K%cN\x86" % number for number in range(250)) * 4 + b"e"
_AGAIN = {
    "a text": (b"c_codecs\nencode\n", _text(b"x" * 100_000) + _text(b"latin1") + b"\x86"),
    "pairs": (b"ccollections\nOrderedDict\n", _PAIRS + b"\x85"),
    "a set": (
        b"c__builtin__\nset\n",
        b"](" + b"".join(b"K%c" % number for number in range(250)) * 4 + b"e\x85",
    ),
}


@pytest.mark.parametrize("call", _AGAIN)
def test_calls_with_the_same_again_and_again_are_counted(call, refused):
    function, arguments = _AGAIN[call]
    program = b"\x80\x02" + function + b"q\x00" + arguments + b"q\x01]("
    Path("dump.pkl").write_bytes(program + b"h\x00h\x01R" * 4 + b"e.")
    assert "layout not recognised" in refused("convert", "dump.pkl", "out.h5", "--allow-pickle")
    Path("dump.pkl").write_bytes(program + b"h\x00h\x01R" * 300_000 + b"e.")
    refused("convert", "dump.pkl", "out.h5", "--allow-pickle")


def test_a_long_name_again_and_again_is_counted(refused):
    rows = np.ones((4000, 2), np.float32)
    value = {"query_f": rows, "gallery_f": rows, "query_path": [b"y" * 100_000] * 4000}
    Path("dump.pkl").write_bytes(pickle.dumps(value))
    assert "dump.pkl" in refused("convert", "dump.pkl", "out.h5", "--allow-pickle")


@pytest.mark.parametrize("number", [1 << 64, 1 << 20_000, -(1 << 20_000)], ids=int.bit_length)
@pytest.mark.parametrize("place", ["query_label", "query_path", "num_query", None])
def test_long_numbers_are_named(place, number, refused):
    fields = {"query_f": np.ones((1, 2), np.float32), "gallery_f": np.ones((1, 2), np.float32)}
    value = number if place is None else fields | {place: [number] if place.startswith("query") else number}
    Path("dump.pkl").write_bytes(pickle.dumps(value))
    assert "contains a number of more than 64 bits" in refused(
        "convert", "dump.pkl", "out.h5", "--allow-pickle"
    )


@pytest.mark.parametrize("digits", [4300, 5000])
def test_numbers_of_thousands_of_digits_are_counted(digits, refused):
    fields = {side: np.ones((1, 2), np.float32) for side in ("query_f", "gallery_f")}
    np.savez("dump.npz", **fields, query_label=np.array(["9" * digits]), gallery_label=np.array(["1"]))
    why = refused("convert", "dump.npz", "out.h5")
    assert why.endswith(f"query_label has {digits} digits in row 0: expected a value that fits int64")


@pytest.mark.parametrize("axes", list(itertools.permutations(range(3))))
def test_axes_of_arrays_in_pickles_may_be_in_any_order(axes):
    values = np.arange(24, dtype=np.float32).reshape(2, 3, 4).transpose(axes)
    Path("dump.pkl").write_bytes(pickle.dumps({"qf": values}, protocol=5))
    np.testing.assert_array_equal(
        read_pickle(io.BytesIO(Path("dump.pkl").read_bytes()), "dump.pkl")["qf"], values
    )


@pytest.mark.parametrize("end", [40, 150, -8, -100])
@pytest.mark.parametrize("zipped", [True, False])
def test_files_of_torch_that_were_cut_short(zipped, end, refused):
    torch.save({"qf": WIDE, "gf": WIDE}, "dump.pt", _use_new_zipfile_serialization=zipped)
    Path("dump.pt").write_bytes(Path("dump.pt").read_bytes()[:end])
    assert "damaged" in refused("convert", "dump.pt", "out.h5")


@pytest.mark.parametrize("zipped", [True, False])
def test_what_torch_saves_beside_tensors_is_read(zipped, tmp_path):
    rows = np.ones((3, 4), np.float32)
    fields = OrderedDict(
        qf=torch.from_numpy(rows),
        gf=torch.nn.Parameter(torch.from_numpy(rows)),
        q_pids=np.arange(3),
        g_pids=torch.arange(3),
        meta={1: "one", "sizes": torch.Size([3, 4]), "type": torch.float16, np.int64(3): {2.5, "b"}},
    )
    torch.save(fields, tmp_path / "dump.pt", _use_new_zipfile_serialization=zipped)
    found = open_file(tmp_path / "dump.pt").content
    np.testing.assert_array_equal(found["gf"], rows)
    assert found["meta"]["sizes"] == (3, 4)


def test_lists_in_lists_without_end_are_refused(refused, feats):
    Path("deep.jsonl").write_text("[" * 200_000 + "\n")
    for command in (("eval", "deep.jsonl", feats), ("run", feats, "--candidates", "deep.jsonl")):
        assert "deep.jsonl line 1" in refused(*command)


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


def test_a_picture_that_unpacks_to_far_more_is_left_out(tmp_path):
    from PIL import Image

    from blurrerank.files.images import ImageFiles

    Image.new("1", (20000, 20000)).save(tmp_path / "large.png")
    Image.new("RGB", (20, 10)).save(tmp_path / "small.png")
    assert (tmp_path / "large.png").stat().st_size < 1 << 20
    found = dict(ImageFiles(tmp_path, ["large.png", "small.png"]).read([0, 1], 8))
    assert found[0] is None
    assert found[1].shape == (4, 8, 3)


def test_an_attribute_longer_than_the_file_takes_no_memory(refused, feats):
    with h5py.File(feats, "r+") as file:
        file.attrs["source"] = "somewhere"
    data = bytearray(Path(feats).read_bytes())
    heaps = [place for place in range(len(data)) if data[place : place + 5] == b"GCOL\x01"]
    places = [data.find((9).to_bytes(4, "little") + heap.to_bytes(8, "little")) for heap in heaps]
    (place,) = [place for place in places if place >= 0]
    data[place : place + 4] = b"\xff" * 4
    Path(feats).write_bytes(data)
    peak = PeakMemory(torch.device("cpu"))
    assert "cannot be read, the file is damaged" in refused("run", feats)
    peak.stop()
    assert peak.host is None or peak.host < 128 << 20


def test_attributes_of_odd_kinds_are_passed_over(cli, feats):
    """HDF5 comes to grief over lists of lists that are none."""
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


def test_labels_of_many_kinds_are_left_out_or_refused(refused, feats, cli):
    with h5py.File(feats, "r+") as file:
        del file["gallery/names"]
        lists = file.create_dataset("gallery/names", (60,), dtype=h5py.vlen_dtype(np.int32))
        lists[:] = [np.arange(3)] * 60
    code, _, err = cli("run", feats)
    assert code == 0
    assert "warning: feats.h5::/gallery/names is not text, and is left out" in err
    with h5py.File(feats, "r+") as file:
        del file["gallery/ids"]
        file["gallery/ids"] = file["gallery/names"]
    assert "feats.h5::/gallery/ids has rows of different lengths" in refused("run", feats, "-o", "b.h5")


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
def test_an_index_that_changes_while_it_is_asked_is_refused(harm, tmp_path, feats):
    path = tmp_path / "gallery.index.h5"
    probes = br.load(feats).probe.features
    br.build_index(br.load(feats).gallery, path, pool=16)
    whole = path.read_bytes()
    asked = subprocess.Popen(
        [sys.executable, "-m", "blurrerank", "run", "--index", path, "-"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    asked.stdin.write(json.dumps(probes[0].tolist()) + "\n")
    asked.stdin.flush()
    assert json.loads(asked.stdout.readline())["probe"] == 0
    path.write_bytes(whole[:4096] if harm == "cut short" else whole)  # as `cp` does it
    out, err = asked.communicate(json.dumps(probes[1].tolist()) + "\n", timeout=60)
    assert (asked.returncode, out) == (1, "")
    assert err.splitlines() == [
        f"error: {path} was changed while it was being read: run this again when it is complete "
        "(replacing it by a rename is safe)"
    ]


def test_threads_that_read_attributes_leave_the_limit_as_it_was(feats, cli):
    assert cli("run", feats, "-o", "ranking.h5")[0] == 0
    data, before = br.load(feats), resource.getrlimit(resource.RLIMIT_AS)
    with ThreadPoolExecutor(8) as threads:
        found = list(threads.map(lambda _: br.read_ranking("ranking.h5", data).depth, range(200)))
    assert set(found) == {50}
    assert resource.getrlimit(resource.RLIMIT_AS) == before


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


@pytest.mark.parametrize("child", [0, 1])
@pytest.mark.parametrize("command", ["info", "run"])
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
@pytest.mark.parametrize("command", ["info", "run", "convert"])
def test_a_tree_of_names_that_comes_back_to_itself(command, where, cli):
    """HDF5 finds some names all the same."""
    with h5py.File("sound.h5", "w") as file:
        for side in ("probe", "gallery"):
            file[f"{side}/features"] = np.eye(3)
        for number in range(400):
            file[f"{where}other {number}"] = number
    Path("looped.h5").write_bytes(looped(Path("sound.h5").read_bytes(), 0, 8, 1))
    out = ("out.h5",) * (command == "convert")
    code, _, err = cli(command, "looped.h5", *out)
    assert code == 0 or (code == 1 and "looped.h5" in err)


@pytest.mark.parametrize("userblock", [0, 512])
def test_sound_trees_are_followed(userblock, tmp_path):
    """Deep ones too, and behind what is before HDF5 begins."""
    rows = np.random.default_rng(0).standard_normal((8000, 2))
    with h5py.File(tmp_path / "deep.h5", "w", userblock_size=userblock) as file:
        for number in range(3000):
            file.create_group(f"probe/a/group {number}")
        file.create_dataset("probe/features", data=rows, chunks=(1, 2))
        file["gallery/features"] = h5py.SoftLink("/probe/features")
        for number in range(100):
            file["probe"].attrs[f"note {number}"] = "x" * 1000
    np.testing.assert_array_equal(br.load(tmp_path / "deep.h5").probe.features[:], rows)


# Text


def one_text(path: str) -> int:
    """A file with one text that is no list, and where the file says how long it is."""
    with h5py.File(path, "w") as file:
        file["train"] = file["test"] = np.eye(3)
        file["note"] = "some text"
        return int(file["note"].id.get_offset())


def test_one_text_in_a_heap_without_an_end(refused):
    one_text("note.h5")
    data = bytearray(Path("note.h5").read_bytes())
    heap = data.find(b"GCOL\x01")
    data[heap + 16 : heap + 32] = bytes(16)
    Path("note.h5").write_bytes(data)
    assert "note.h5" in refused("convert", "note.h5", "out.h5")


@pytest.mark.parametrize("place", ["one piece", "compact"])
def test_one_text_that_is_said_to_be_gigabytes(place, refused, little_memory):
    if place == "one piece":
        at = one_text("note.h5")
    else:
        with h5py.File("note.h5", "w") as file:
            file["train"] = file["test"] = np.eye(3)
            settings = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
            settings.set_layout(h5py.h5d.COMPACT)
            kind = h5py.h5t.py_create(h5py.string_dtype(), logical=True)
            space = h5py.h5s.create(h5py.h5s.SCALAR)
            dataset = h5py.h5d.create(file.id, b"note", kind, space, settings)
            dataset.write(h5py.h5s.ALL, h5py.h5s.ALL, np.array("some text", dtype=h5py.string_dtype()))
        data = Path("note.h5").read_bytes()
        at = data.find(struct.pack("<IQ", len("some text"), data.find(b"GCOL\x01")))
        assert at > 0
    data = bytearray(Path("note.h5").read_bytes())
    data[at : at + 4] = b"\xff\xff\xff\x7f"
    Path("note.h5").write_bytes(data)
    assert "note.h5::/note " in refused("convert", "note.h5", "out.h5")


@pytest.mark.parametrize("place", ["dataset", "attribute"])
@pytest.mark.parametrize("version", ["earliest", "latest"])
def test_letters_of_many_bytes_are_refused(version, place, refused, little_memory):
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
    assert "letters.h5" in refused("convert", "letters.h5", "out.h5")


@pytest.mark.parametrize("shape", [(), (0,), (3,), (0, 2)])
def test_text_of_any_shape_is_read(shape, tmp_path):
    with h5py.File(tmp_path / "text.h5", "w") as file:
        file.create_dataset("text", shape, h5py.string_dtype())
        file["text"][...] = np.full(shape, "ä", dtype=object)
    with h5py.File(tmp_path / "text.h5") as file:
        found = hdf5.read(file["text"], "here")
    assert found.shape == shape
    assert found.tolist() == np.full(shape, "ä".encode(), dtype=object).tolist()


def test_one_text_under_many_names_is_refused(refused, little_memory):
    with h5py.File("many.h5", "w") as file:
        file["train"] = file["test"] = np.eye(3)
        file["text"] = ["a" * (1 << 20)]
        for number in range(300):
            file[f"again {number}"] = h5py.SoftLink("/text")
    assert "many.h5" in refused("convert", "many.h5", "out.h5")


def test_many_datasets_each_packed_as_tightly_as_may_be(refused, little_memory):
    """Each would be allowed alone."""
    with h5py.File("tight.h5", "w") as file:
        for side in ("probe", "gallery"):
            file.create_dataset(f"{side}/features", (1000, 60), np.float32)[:] = 1
            for label in ("ids", "cams"):
                shape = {"shape": (30_000_000,), "chunks": (1 << 20,)}
                file.create_dataset(f"{side}/{label}", dtype=np.int64, compression="gzip", **shape)
    assert "tight.h5 would decompress" in refused("run", "tight.h5")


def test_short_names_take_more_memory_than_they_are_long(refused, little_memory):
    with h5py.File("names.h5", "w") as file:
        for side in ("probe", "gallery"):
            file[f"{side}/features"] = np.eye(3)
        file.create_dataset("probe/names", (20_000_000,), "S12", chunks=(1 << 20,), compression="gzip")
    assert "names.h5 would decompress" in refused("run", "names.h5")


# The newer format of HDF5


def many_links(file):
    for number in range(20):
        file[f"extra {number}"] = number


def many_links_in_a_group(file):
    for number in range(20):
        file[f"probe/extra {number}"] = number


def many_attributes(file):
    for number in range(20):
        file.attrs[f"note {number}"] = number


def many_attributes_of_features(file):
    for number in range(20):
        file["probe/features"].attrs[f"note {number}"] = number


def a_fixed_array(file):
    del file["probe/features"]
    file.create_dataset("probe/features", data=np.eye(40), chunks=(3, 40))


def a_growing_array(file):
    del file["probe/features"]
    file.create_dataset("probe/features", data=np.eye(40), chunks=(3, 40), maxshape=(None, 40))


def a_tree_of_chunks(file):
    del file["probe/features"]
    file.create_dataset("probe/features", data=np.eye(40), chunks=(3, 40), maxshape=(None, None))


NEWER = [
    many_links,
    many_links_in_a_group,
    many_attributes,
    many_attributes_of_features,
    a_fixed_array,
    a_growing_array,
    a_tree_of_chunks,
]


@pytest.mark.parametrize("change", NEWER, ids=lambda change: change.__name__)
@pytest.mark.parametrize("track_order", [False, True])
def test_the_newer_format_is_read(change, track_order, cli):
    with h5py.File("newer.h5", "w", libver="latest", track_order=track_order) as file:
        for side in ("probe", "gallery"):
            file[f"{side}/features"] = np.eye(40)
        change(file)
    np.testing.assert_array_equal(br.load("newer.h5").probe.features[:], np.eye(40))
    assert cli("info", "newer.h5")[0] == 0
    assert cli("run", "newer.h5")[0] == 0


@pytest.mark.parametrize("command", ["info", "run", "convert"])
@pytest.mark.parametrize("change", NEWER, ids=lambda change: change.__name__)
def test_what_the_newer_format_keeps_in_heaps_and_trees_may_be_damaged(change, command, refused, cli):
    """HDF5 dies of some of these, and stays for ever with others."""
    with h5py.File("newer.h5", "w", libver="latest") as file:
        for side in ("probe", "gallery"):
            file[f"{side}/features"] = np.eye(40)
        change(file)
    data = bytearray(Path("newer.h5").read_bytes())
    kept = [place for place in sealed.blocks(bytes(data)) if data[place[0]] in b"BEF"]
    assert kept
    for start, end in kept:
        data[start + 6 : end] = b"\xfe" * (end - start - 6)
        sealed.seal(data, start, end)
    Path("newer.h5").write_bytes(data)
    out = ("out.h5",) * (command == "convert")
    if change is many_attributes_of_features and command != "convert":
        assert cli(command, "newer.h5")[0] == 0  # nobody asks for them
    else:
        assert "newer.h5" in refused(command, "newer.h5", *out)


@pytest.mark.parametrize("userblock", [0, 512])
@pytest.mark.parametrize("version", ["earliest", "v108", "latest"])
def test_what_needs_none_of_this_is_read_in_each_version(version, userblock, tmp_path):
    rows = np.random.default_rng(0).standard_normal((40, 8))
    with h5py.File(tmp_path / "sound.h5", "w", libver=version, userblock_size=userblock) as file:
        file["probe/features"] = rows
        file.create_dataset("gallery/features", data=rows, chunks=(40, 8), compression="gzip", shuffle=True)
        early = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        early.set_chunk((7,))
        early.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
        space = h5py.h5s.create_simple((40,))
        ids = h5py.h5d.create(file["gallery"].id, b"ids", h5py.h5t.STD_I64LE, space, early)
        h5py.Dataset(ids)[...] = np.arange(40)
        file["gallery/names"] = [f"name {row}" for row in range(40)]
        file["again"] = h5py.SoftLink("/gallery")
        for number in range(5):
            file["gallery"].attrs[f"note {number}"] = "x" * 1000
    found = br.load(tmp_path / "sound.h5")
    np.testing.assert_array_equal(found.probe.features[:], rows)
    np.testing.assert_array_equal(found.gallery.features[:], rows)
    assert found.gallery.ids.tolist() == list(range(40))
    assert found.gallery.names[-1] == "name 39"


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


GZIP, SHUFFLE, FLETCHER, SZIP, NBIT, SCALED, LZF = 1, 2, 3, 4, 5, 6, 32000
ROWS = np.random.default_rng(0).integers(0, 9, (64, 16)).astype(np.float32)


@pytest.mark.parametrize(
    "filters",
    [
        [(GZIP, (9,))],
        [(SHUFFLE, ()), (GZIP, (1,)), (FLETCHER, ())],
        [(FLETCHER, ()), (GZIP, (1,))],
        [(SHUFFLE, ()), (LZF, ()), (FLETCHER, ())],
        [(SZIP, (4, 8))],
        [(NBIT, ())],
        [(SCALED, (0, 3))],
        [(SHUFFLE, ()), (FLETCHER, ())],
    ],
)
@pytest.mark.parametrize("noise", [False, True])
def test_packed_features_are_read(noise, filters):
    """Also what does not get smaller, and takes a little more."""
    rows = np.random.default_rng(1).standard_normal((600, 256)).astype(np.float32) if noise else ROWS
    packed_by("packed.h5", filters, rows)
    atol = 1e-3 * any(code == SCALED for code, _ in filters)
    np.testing.assert_allclose(br.load("packed.h5").probe.features[:], rows, rtol=0, atol=atol)


@pytest.mark.parametrize("again", [(GZIP, (9,)), (LZF, ()), (NBIT, ()), (SCALED, (0, 3))])
@pytest.mark.parametrize("first", [False, True])
def test_filters_on_top_of_each_other_are_read(first, again):
    packed_by("twice.h5", [again, (GZIP, (9,))] if first else [(GZIP, (9,)), again], ROWS)
    with h5py.File("twice.h5") as file:
        expected = file["probe/features"][()]
    np.testing.assert_array_equal(br.load("twice.h5").probe.features[:], expected)


def deflated(size):
    """Some zeros, packed."""
    packer = zlib.compressobj(1)
    pieces = [packer.compress(bytes(1 << 20)) for _ in range(size >> 20)]
    return b"".join(pieces) + packer.flush()


@pytest.mark.parametrize("rows", [64, 40_000], ids=["longer than a chunk", "not longer"])
@pytest.mark.parametrize("others", [[], [(SHUFFLE, ())], [(SHUFFLE, ()), (FLETCHER, ())]])
def test_a_chunk_that_unpacks_to_more_than_a_chunk(others, rows, refused):
    values = np.random.default_rng(0).standard_normal((rows, 16)).astype(np.float32)
    filters = [*others, (GZIP, (1,))]
    packed_by("bomb.h5", filters, values, deflated(400 << 20))
    peak = PeakMemory(torch.device("cpu"))
    why = refused("info", "bomb.h5")
    peak.stop()
    assert "bomb.h5" in why
    assert peak.host is None or peak.host < 64 << 20


def test_a_chunk_that_is_stored_as_it_is():
    """A mask says that the filter was left out, for this chunk alone."""
    values = np.random.default_rng(0).standard_normal((40_000, 16)).astype(np.float32)
    packed_by("plain.h5", [(GZIP, (1,))], values)
    with h5py.File("plain.h5", "r+") as file:
        file["probe/features"].id.write_direct_chunk((0, 0), values.tobytes(), 1)
    np.testing.assert_array_equal(br.load("plain.h5").probe.features[:], values)


@pytest.mark.parametrize(
    ("code", "options", "before", "place"),
    [
        (LZF, (), struct.pack("<2I", 261, 64 * 16 * 4), 4),
        (SCALED, (0, 3), struct.pack("<3I", 64 * 16, 1, 4), 0),
    ],
)
def test_filters_that_would_make_room_for_gigabytes(code, options, before, place, refused, little_memory):
    packed_by("room.h5", [(code, options)], ROWS)
    data = Path("room.h5").read_bytes()
    assert before in data
    after = before[:place] + struct.pack("<I", 1 << 30) + before[place + 4 :]
    Path("room.h5").write_bytes(data.replace(before, after))
    assert "room.h5" in refused("run", "room.h5")


def test_szip_that_says_gigabytes(refused, little_memory):
    packed_by("szip.h5", [(SZIP, (4, 8))], ROWS)
    with h5py.File("szip.h5", "r+") as file:
        stored = file["probe/features"].id
        stored.write_direct_chunk((0, 0), struct.pack("<I", 1 << 31) + stored.read_direct_chunk((0, 0))[1][4:])
    assert "szip.h5" in refused("run", "szip.h5")
