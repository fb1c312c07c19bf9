"""HDF5 files of every kind that libraries write: each is read, value by value."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from conftest import shell
from stored import CONTENT, changed, check, create, entries, enumeration, library, of_bits, store

import blurrerank as br


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "feats.h5"


# Files as such

FILES = {
    **{
        version: {"libver": version}
        for version in ("earliest", "v108", "v110", "v112", "v114", "v200", "latest")
    },
    "from v110 to v112": {"libver": ("v110", "v112")},
    "creation order": {"track_order": True},
    "creation order, latest": {"track_order": True, "libver": "latest"},
    "user block": {"userblock_size": 2048},
    "user block, latest": {"userblock_size": 512, "libver": "latest"},
    "pages": {"fs_strategy": "page", "fs_persist": True, "fs_page_size": 4096},
    "pages, latest": {"fs_strategy": "page", "fs_page_size": 512, "libver": "latest"},
    "free space kept": {"fs_strategy": "fsm", "fs_persist": True, "fs_threshold": 1},
    "aggregated": {"fs_strategy": "aggregate"},
    "no free space": {"fs_strategy": "none"},
    "large metadata blocks": {"meta_block_size": 1 << 16, "alignment_interval": 4096},
    "in memory first": {"driver": "core", "backing_store": True},
    "standard input and output": {"driver": "stdio"},
}


@pytest.mark.parametrize("options", FILES.values(), ids=FILES)
def test_files_of_every_version_and_strategy_are_read(options, path):
    try:
        file = h5py.File(path, "w", **options)
    except (KeyError, ValueError):
        pytest.skip("this HDF5 does not write such files")
    with file:
        store(file)
        del file["gallery/names"]
        file["gallery/names"] = CONTENT["gallery"]["names"]
    check(br.load(path))


@pytest.mark.parametrize("size", [2, 4, 8])
def test_addresses_and_lengths_of_any_size_are_read(size, path):
    plist = h5py.h5p.create(h5py.h5p.FILE_CREATE)
    plist.set_sizes(size, size)
    with h5py.File(h5py.h5f.create(bytes(path), h5py.h5f.ACC_TRUNC, plist)) as file:
        store(file)
    check(br.load(path))


def test_a_file_that_readers_may_have_watched_is_read(path):
    with h5py.File(path, "w", libver="latest") as file:
        fixed = changed(names=lambda names: np.array([name.encode() for name in names]))
        for name, _, values in entries(fixed):
            file.create_dataset(name, (0, *values.shape[1:]), values.dtype, maxshape=(None, *values.shape[1:]))
        file.swmr_mode = True
        for name, _, values in entries(fixed):
            for row, value in enumerate(values):
                file[name].resize(row + 1, axis=0)
                file[name][row] = value
                file[name].flush()
    check(br.load(path))


# Layouts: how new the file is, how many dimensions grow, what the index begins with, and the settings

STEPS = {
    "gzip": ("deflate", 4),
    "lzf": ("filter", h5py.h5z.FILTER_LZF),
    "szip": ("szip", h5py.h5z.SZIP_NN_OPTION_MASK, 4),
    "entropy": ("szip", h5py.h5z.SZIP_EC_OPTION_MASK, 2),
    "shuffle": ("shuffle",),
    "checksum": ("fletcher32",),
    "nbit": ("filter", h5py.h5z.FILTER_NBIT),
    "scaled": ("scaleoffset", h5py.h5z.SO_FLOAT_DSCALE, 3),
    "early": ("alloc_time", h5py.h5d.ALLOC_TIME_EARLY),
    "incremental": ("alloc_time", h5py.h5d.ALLOC_TIME_INCR),
    "late": ("alloc_time", h5py.h5d.ALLOC_TIME_LATE),
    "unfilled": ("fill_time", h5py.h5d.FILL_TIME_NEVER),
    "compact": ("layout", h5py.h5d.COMPACT),
}
FOR_TEXT = ("chunk", "gzip", "shuffle", "early", "incremental", "late", "compact")


def create_all(file: Any, steps: list[str], chunk: Sequence[int] = (), grows: int = 0) -> None:
    """Create the two sides by such steps; labels and names only by those that fit them."""
    for name, kind, values in entries():
        chosen = [step for step in steps if kind != "names" or step in FOR_TEXT]
        settings = [STEPS[step] for step in chosen]
        if "scaled" in chosen and kind != "features":
            settings[chosen.index("scaled")] = ("scaleoffset", h5py.h5z.SO_INT, 0)
        create(file, name, values, *([("chunk", *chunk)] if chunk else []), *settings, grows=grows)


# How new the file is, what the index of chunks begins with, a chunk, how many dimensions grow, and steps.
LAYOUTS = (
    *("earliest - - 0", "latest - - 0 early", "earliest - - 0 compact", "latest - - 0 compact"),
    *(
        "earliest TREE 5,3 0",
        "earliest TREE 1,1 2",
        "earliest TREE 7,32 0 early",
        "v108 TREE 7,32 1 incremental",
    ),
    *("latest - 60,32 0", "latest - 60,32 0 gzip", "latest - 7,5 0 early"),  # without an index
    *("latest FAHD 7,5 0 late", "latest FAHD 1,1 0 incremental", "latest FAHD 7,5 0 gzip"),
    *("latest FAHD 7,5 0 unfilled", "latest EAHD 7,5 1", "latest EAHD 1,1 1", "latest EAHD 2,5 1 gzip"),
    *("latest BTHD 7,5 2", "latest BTHD 1,1 2 early", "latest BTHD 1,7 2 gzip"),
)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_and_index_of_chunks_is_read(layout, path):
    libver, signature, chunk, grows, *steps = layout.split()
    with h5py.File(path, "w", libver=libver) as file:
        create_all(file, steps, [int(size) for size in chunk.split(",") if size != "-"], int(grows))
    assert signature == "-" or signature.encode() in path.read_bytes()
    check(br.load(path))


FILTERS = (
    *("gzip", "lzf", "szip", "entropy", "shuffle", "checksum", "nbit", "scaled", "shuffle gzip"),
    *("shuffle lzf checksum", "checksum gzip", "gzip gzip", "lzf gzip", "nbit shuffle gzip"),
    *("scaled gzip checksum", "shuffle lzf gzip gzip checksum"),
)


@pytest.mark.parametrize("libver", ["earliest", "latest"])
@pytest.mark.parametrize("filters", FILTERS)
def test_every_filter_and_sequence_of_filters_is_read(filters, libver, path):
    with h5py.File(path, "w", libver=libver) as file:
        create_all(file, filters.split(), (7, 8))
    check(br.load(path))


@pytest.mark.parametrize("plugin", ["Blosc", "Blosc2", "Zstd", "LZ4", "Bitshuffle", "BZip2", "Zfp"])
def test_filters_of_hdf5plugin_are_read(plugin, path):
    filters = getattr(library("hdf5plugin"), plugin)(**({"reversible": True} if plugin == "Zfp" else {}))
    with h5py.File(path, "w") as file:
        for name, kind, values in entries():
            file.create_dataset(name, data=values, chunks=True, **(filters if kind == "features" else {}))
    check(br.load(path))
    if plugin == "Blosc":  # in a process that has not imported it
        done = shell(
            path, program="import sys, blurrerank as br; print(br.load(sys.argv[1]).probe.features.sum())"
        )
        assert float(done.stdout) == CONTENT["probe"]["features"].sum(), done.stderr


# Types


@pytest.mark.parametrize("dtype", ["<f2", "<f4", "<f8", ">f2", ">f4", ">f8"])
def test_features_of_every_type_are_read(dtype, path):
    expected = changed(features=lambda values: values.astype(dtype))
    with h5py.File(path, "w") as file:
        store(file, expected)
    check(br.load(path), expected)
    assert br.load(path).probe.features.dtype == dtype


INTEGERS = [f"{order}{kind}{size}" for order in "<>" for kind in "iu" for size in (1, 2, 4, 8)]


@pytest.mark.parametrize("dtype", INTEGERS)
def test_labels_of_every_integer_type_are_read(dtype, path):
    lowest = 0 if "u" in dtype else -1
    expected = changed(ids=lambda ids: ids.clip(lowest).astype(dtype), cams=lambda cams: cams.astype(dtype))
    with h5py.File(path, "w") as file:
        store(file, expected)
    check(br.load(path), expected)


BITS = {
    "float of 20": lambda: of_bits(h5py.h5t.IEEE_F32LE, 4, 20, 6),
    "integer of 12": lambda: of_bits(h5py.h5t.STD_I16LE, 2, 12, 3),
    "integer of 24, big endian": lambda: of_bits(h5py.h5t.STD_I32BE, 4, 24, 0),
    "enumeration": lambda: h5py.h5t.py_create(enumeration("i2"), logical=True),
}


@pytest.mark.parametrize("how", ["plain", "committed", "packed"])
@pytest.mark.parametrize("bits", BITS)
def test_types_that_numpy_does_not_have_are_read(bits, how, path):
    type_id, kinds = BITS[bits](), ("features",) if "float" in bits else ("ids", "cams")
    with h5py.File(path, "w") as file:
        if how == "committed":
            type_id.commit(file.id, b"type")
        for name, kind, values in entries():
            settings = [("chunk", 7, 8), STEPS["nbit"]] if how == "packed" and kind != "names" else []
            create(file, name, values, *settings, type_id=type_id if kind in kinds else None)
    check(br.load(path))


@pytest.mark.parametrize("padding", ["NULLTERM", "NULLPAD", "SPACEPAD"])
@pytest.mark.parametrize("charset", ["ASCII", "UTF8"])
@pytest.mark.parametrize("length", [24, h5py.h5t.VARIABLE], ids=["fixed", "variable"])
def test_names_of_every_kind_of_text_are_read(length, charset, padding, path):
    expected = changed(names=lambda names: np.array([name[:4] for name in names], object))
    expected = CONTENT if charset == "UTF8" else expected
    type_id = h5py.h5t.C_S1.copy()
    type_id.set_size(length)
    type_id.set_cset(getattr(h5py.h5t, f"CSET_{charset}"))
    type_id.set_strpad(getattr(h5py.h5t, f"STR_{padding}"))
    with h5py.File(path, "w") as file:
        for name, kind, values in entries(expected):
            values = values.astype("S") if kind == "names" and charset == "ASCII" and length == 24 else values
            create(file, name, values, type_id=type_id if kind == "names" else None)
    check(br.load(path), expected)


# Attributes


def attribute(item: Any, type_id: Any) -> None:
    """Of a type that h5py does not write."""
    h5py.h5a.create(item.id, b"a", type_id, h5py.h5s.create_simple((1,)))


ATTRIBUTES: dict[str, Any] = {
    "references": lambda item: np.array([item.ref] * 3, h5py.ref_dtype),
    "region": lambda item: item.file["probe/features"].regionref[:2],
    "compound": lambda item: np.zeros(2, [("number", "i4"), ("values", "f4", (2, 3))]),
    "compound of texts": lambda item: np.array(
        [("a", item.ref)], [("x", h5py.string_dtype()), ("y", h5py.ref_dtype)]
    ),
    "enumeration": lambda item: np.array([1, 2], enumeration("i4")),
    "array": lambda item: attribute(item, h5py.h5t.array_create(h5py.h5t.STD_I16BE, (2, 3))),
    "empty": lambda item: h5py.Empty("f4"),
    "empty text": lambda item: h5py.Empty("S1"),
    "rows": lambda item: np.array([np.arange(3), np.arange(2)], h5py.vlen_dtype("i4")),
    "texts": lambda item: np.array([["a", "é"], ["", "b"]], object),
    "truth": lambda item: np.array([True, False]),
    "opaque": lambda item: np.void(b"\0\1"),
    "date": lambda item: np.array(["2020-01-01"], "M8[s]").astype(h5py.opaque_dtype("M8[s]")),
    "complex": lambda item: np.array([1j, 2]),
    "half": lambda item: np.array([[1.5, np.nan]], ">f2"),
    "not utf-8": lambda item: np.bytes_(b"caf\xe9"),
    "none": lambda item: np.zeros((0, 3)),
    "moment": lambda item: attribute(item, h5py.h5t.UNIX_D32LE),
    "24 bits": lambda item: attribute(item, of_bits(h5py.h5t.STD_I32LE, 3, 24, 0)),
}


@pytest.mark.parametrize("kind", ATTRIBUTES)
def test_attributes_of_every_kind_do_no_harm(kind, path, tmp_path, cli):
    with h5py.File(path, "w", track_order=True) as file:
        store(file)
        for item in (file, file["probe"], file["gallery/features"], file["gallery/ids"]):
            value = ATTRIBUTES[kind](item)
            item.attrs.update({"a": value} if value is not None else {})
            item.attrs.update({f"number {number} é": number for number in range(20)})
    data = br.load(path)
    check(data)
    br.save_features(data, tmp_path / "again.h5")
    check(br.load(tmp_path / "again.h5"))
    assert cli("info", path)[0] == cli("info", path, "--json")[0] == 0


# Links and virtual data


def linked(file: Any, name: str, *links: Any) -> None:
    """Move something away, and reach it by these links instead, one after the other."""
    names = [name, *(f"link {number}" for number in range(1, len(links)))]
    file.move(name, "kept/elsewhere")
    for here, link in zip(names, links, strict=True):
        file[here] = file["kept/elsewhere"] if link is None else h5py.SoftLink(link)


LINKS = {
    "relative": lambda file: linked(file, "gallery", "kept/elsewhere"),
    "absolute": lambda file: linked(file, "gallery/features", "/kept/elsewhere"),
    "several": lambda file: linked(file, "probe/names", "/link 1", "./link 2", "kept/./elsewhere/"),
    "hard": lambda file: linked(file, "gallery/ids", None),
    "circle": lambda file: file.__setitem__("probe/again", file["/"]),
    "many": lambda file: [
        file.create_group(f"{at}/{number}") for number in range(300) for at in ("a", "probe", "")
    ],
}


@pytest.mark.parametrize("libver", ["earliest", "latest"])
@pytest.mark.parametrize("change", LINKS.values(), ids=LINKS)
def test_links_in_the_file_are_followed(change, libver, path):
    with h5py.File(path, "w", libver=libver, track_order=libver == "latest") as file:
        store(file)
        change(file)
        store(file.create_group("a/é/model 1"), changed(ids=lambda ids: ids + 1))
        file["a/soft"] = h5py.SoftLink("é")
    check(br.load(path))
    for group in ("/a/é/model 1", "a//soft/model 1/"):
        check(br.load(f"{path}::{group}"), changed(ids=lambda ids: ids + 1))


@pytest.mark.parametrize("how", ["whole", "rows", "every other row", "twice", "another type"])
def test_virtual_data_in_the_file_are_read(how, path):
    with h5py.File(path, "w", libver="latest") as file:
        store(file.create_group("parts"), compression="gzip", chunks=True)
        for name, kind, values in entries():
            source = h5py.VirtualSource(".", f"parts/{name}", values.shape)
            dtype = file[f"parts/{name}"].dtype
            layout = h5py.VirtualLayout(
                values.shape, ">f8" if how == "another type" and kind == "features" else dtype
            )
            step = {"rows": 5, "every other row": 2}.get(how, len(values))
            for start in range(0, len(values), 5) if how == "rows" else range(step if step == 2 else 1):
                rows = slice(start, start + 5) if how == "rows" else slice(start, None, 2 if step == 2 else 1)
                layout[rows] = source[rows]
            file.create_virtual_dataset(f"parts/again/{name}" if how == "twice" else name, layout)
            if how == "twice":
                layout[:] = h5py.VirtualSource(".", f"parts/again/{name}", values.shape)
                file.create_virtual_dataset(name, layout)
    check(br.load(path))
