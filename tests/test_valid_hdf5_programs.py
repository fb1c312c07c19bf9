"""HDF5 files of other programs, and with other things in them: what is needed is read, value by value."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from stored import CONTENT, changed, check, entries, enumeration, library, store

import blurrerank as br


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "feats.h5"


@pytest.fixture
def converted(cli, path):
    """What `convert` makes of the file."""

    def converted() -> br.FeatureSet:
        code, _, err = cli("convert", path, "out.h5")
        assert code == 0, err
        return br.load("out.h5")

    return converted


# Labels and features of other tools


@pytest.mark.parametrize("dtype", ["f4", ">f8", "bool", enumeration("u1"), "u2", "S12", h5py.string_dtype()])
def test_labels_of_another_tool_may_be_of_any_type(dtype, path, converted):
    some = changed(ids=lambda ids: ids.clip(0, 1), cams=lambda cams: cams.clip(0, 1))
    with h5py.File(path, "w") as file:
        for name, kind, values in entries(some, flat=True):
            labels = kind in ("ids", "cams")
            values = values.astype("S12") if labels and np.dtype(dtype).kind in "SO" else values
            file[name] = values.astype(dtype) if labels else values
    check(converted(), some)


@pytest.mark.parametrize("dtype", ["i1", ">i2", "u1", "i4"])
def test_features_of_another_tool_may_be_integers(dtype, path, converted):
    whole = changed(features=lambda values: np.abs(8 * values).clip(0, 99).astype(dtype))
    with h5py.File(path, "w") as file:
        store(file, whole, flat=True, compression="gzip")
    check(converted(), whole)


# Other things in the file


def scales(root: Any) -> None:
    scale = root["gids" if "gids" in root else "ids"]
    scale.make_scale("row")
    root["gcams" if "gids" in root else "cams"].dims[0].attach_scale(scale)


def moments(root: Any, name: str = "x") -> None:
    h5py.h5d.create(root.id, name.encode(), h5py.h5t.UNIX_D64LE, h5py.h5s.create_simple((3,)))


BESIDE: dict[str, Any] = {
    "table": "i4,f8,S5",
    "table of texts": [("a", h5py.string_dtype()), ("b", h5py.ref_dtype)],
    "rows": h5py.vlen_dtype("f4"),
    "references": h5py.ref_dtype,
    "regions": h5py.regionref_dtype,
    "opaque": "V7",
    "arrays": "(2,3)f4",
    "dates": h5py.opaque_dtype("M8[s]"),
    "complex": "c8",
    "never written": "f4",
    "moments": moments,
    "scales": scales,
    "empty": lambda root: root.create_dataset("x", data=h5py.Empty("f4")),
    "without rows": lambda root: root.create_dataset("x", (0, 5), "f4", maxshape=(None, 5)),
    "type": lambda root: root.__setitem__("x", np.dtype("f4,i2")),
    "images": lambda root: root.create_dataset("images", data=np.ones((60, 4, 5, 3), "u1")),
    "link to nothing": lambda root: root.__setitem__("x", h5py.SoftLink("/nowhere")),
    "link elsewhere": lambda root: root.__setitem__("x", h5py.ExternalLink("other.h5", "/")),
    "data elsewhere": lambda root: root.create_dataset("x", 4, "f4", external=[("other.bin", 0, 16)]),
}


@pytest.mark.parametrize("flat", [False, True])
@pytest.mark.parametrize("beside", BESIDE)
def test_what_nobody_needs_does_no_harm(beside, flat, path, converted):
    with h5py.File(path, "w") as file:
        store(file, flat=flat)
        for root in (file,) if flat else (file["gallery"],):
            made = BESIDE[beside]
            made(root) if callable(made) else root.create_dataset("x", (3, 4), made)
    check(converted() if flat else br.load(path))


# Other programs


def by_tables(path: Path, flat: bool, method: str, **filters: Any) -> None:
    tables = library("tables")
    with tables.open_file(path, "w", filters=tables.Filters(**filters)) as file:
        for name, kind, values in entries(flat=flat):
            where, _, leaf = f"/{name}".rpartition("/")
            values = np.char.encode(values.astype(str)) if kind == "names" else values
            if method == "create_earray":
                atom, shape = tables.Atom.from_dtype(values.dtype.newbyteorder("=")), (0, *values.shape[1:])
                chunk = (16, *shape[1:])  # with Blosc2, PyTables takes as much as a cache holds
                made = file.create_earray(where or "/", leaf, atom, shape, chunkshape=chunk, createparents=True)
                for value in values:
                    made.append(np.array([value]))
            else:
                getattr(file, method)(where or "/", leaf, obj=values, createparents=True)


def by_netcdf4(path: Path, flat: bool, limit: bool = True, **options: Any) -> None:
    with library("netCDF4").Dataset(path, "w") as file:
        for name, kind, values in entries(flat=flat):
            *side, leaf = name.split("/")
            group = file.createGroup(side[0]) if side else file
            dims = [f"rows{len(values)}", "dim"][: values.ndim]
            for dim, size in zip(dims, values.shape, strict=True):
                if dim not in group.dimensions:
                    group.createDimension(dim, size if limit or dim == "dim" else None)
            text = kind == "names"
            group.createVariable(leaf, str if text else values.dtype, dims, **({} if text else options))[:] = (
                values
            )


def by_xarray(path: Path, flat: bool, engine: str) -> None:
    library({"netcdf4": "netCDF4"}.get(engine, engine))
    xarray = library("xarray")
    groups = {None: {name: values for name, _, values in entries(flat=True)}} if flat else CONTENT
    for mode, (group, arrays) in zip("wa", groups.items(), strict=False):
        fields = {name: ([f"row{len(some)}", "dim"][: some.ndim], some) for name, some in arrays.items()}
        xarray.Dataset(fields).to_netcdf(path, mode, group=group, engine=engine)


def by_columns(path: Path, flat: bool, text: Any, mark: str) -> None:
    """As R and Julia write, whose dimensions are the other way round; native files must not be so."""
    with h5py.File(path, "w") as file:
        for name, kind, values in entries(flat=flat):
            values = values.T.astype("f8") if kind == "features" and flat else values
            values = values.astype("i4") if kind in ("ids", "cams") else values
            values = np.char.encode(values.astype(str)) if kind == "names" and text.kind == "S" else values
            made = file.create_dataset(
                name, data=values, dtype=text if kind == "names" else None, maxshape=values.shape
            )
            made.attrs[mark] = np.int32([1])


PROGRAMS = {
    "tables, array": (by_tables, "create_array"),
    "tables, zlib": (by_tables, "create_carray", {"complevel": 5, "shuffle": True, "fletcher32": True}),
    "tables, bzip2": (by_tables, "create_carray", {"complevel": 5, "complib": "bzip2"}),
    "tables, blosc": (
        by_tables,
        "create_carray",
        {"complevel": 5, "complib": "blosc:zstd", "bitshuffle": True},
    ),
    "tables, blosc2": (by_tables, "create_earray", {"complevel": 5, "complib": "blosc2"}),
    "tables, growing": (by_tables, "create_earray"),
    "netCDF4": (by_netcdf4,),
    "netCDF4, unlimited": (by_netcdf4, False),
    "netCDF4, zlib": (by_netcdf4, {"compression": "zlib", "fletcher32": True}),
    "netCDF4, szip": (by_netcdf4, {"compression": "szip"}),
    "netCDF4, big endian": (by_netcdf4, {"endian": "big"}),
    "xarray, h5netcdf": (by_xarray, "h5netcdf"),
    "xarray, netCDF4": (by_xarray, "netcdf4"),
    "R": (by_columns, h5py.string_dtype("ascii", 9), "rhdf5-NA.OK"),
    "Julia": (by_columns, h5py.string_dtype(), "julia type"),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("flat", [False, True])
@pytest.mark.parametrize("program", PROGRAMS)
def test_files_of_other_programs_are_read(program, flat, path, converted):
    write, *arguments = PROGRAMS[program]
    options = arguments.pop() if arguments and isinstance(arguments[-1], dict) else {}
    if "bzip2" in program or "blosc" in program:
        library("hdf5plugin")
    write(path, flat, *arguments, **options)
    check(converted() if flat else br.load(path))


# MATLAB


def variable(file: Any, name: str, kind: str, values: Any, **options: Any) -> Any:
    """As MATLAB's save -v7.3 does: dimensions the other way round, text as numbers, cells by references."""
    if kind == "cell":
        cells = [variable(file, f"#refs#/{name}{at}", "char", text).ref for at, text in enumerate(values)]
        made = file.create_dataset(name, data=np.array([cells], h5py.ref_dtype))
    elif kind == "char" and isinstance(values, str):
        made = file.create_dataset(name, data=np.uint16([[ord(sign)] for sign in values] or [0, 0]))
        made.attrs["MATLAB_int_decode"] = np.int32(2)
        made.attrs.update({} if values else {"MATLAB_empty": np.uint8(1)})
    else:
        made = file.create_dataset(name, data=np.asarray(values).T, **options)
    made.attrs["MATLAB_class"] = np.bytes_(kind)
    return made


def others(file: Any) -> None:
    """Kinds of variables that are not read."""
    for name, mark in (("settings", "MATLAB_fields"), ("sparse", "MATLAB_sparse")):
        group = file.create_group(name)
        group.attrs["MATLAB_class"] = np.bytes_("struct" if name == "settings" else "double")
        group.attrs[mark] = np.uint64(3)
        variable(group, "data", "double", [[1.0]])
    variable(file, "nothing", "double", np.uint64([0, 0])).attrs["MATLAB_empty"] = np.uint8(1)
    variable(file, "wave", "double", np.zeros((2, 2), [("real", "f8"), ("imag", "f8")]))
    variable(file, "title", "string", np.zeros((6, 1), "u4")).attrs["MATLAB_object_decode"] = np.int32(3)
    variable(file, "#subsystem#/MCOS", "FileWrapper__", np.zeros((1, 2), "u4"))
    variable(file, "run", "function_handle", np.zeros((1, 1), "u4")).attrs["MATLAB_object_decode"] = np.int32(1)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("names", ["cell", "char", "none"])
@pytest.mark.parametrize("kind", ["single", "double", "int16", "uint8", "logical"])
def test_files_of_matlab_are_read(kind, names, packed, path, converted):
    expected = changed(ids=lambda ids: ids.clip(0, 1), cams=lambda cams: cams.clip(0, 1))
    options = {"chunks": True, "compression": 3} if packed else {}
    dtype = {"single": "f4", "double": "f8", "logical": "u1"}.get(kind, kind)
    with h5py.File(path, "w", userblock_size=512) as file:
        others(file)
        for name, what, values in entries(expected, flat=True):
            if what in ("ids", "cams"):
                variable(file, name, kind, values.reshape(1, -1).astype(dtype), **options)
            elif what == "features":
                whole = "double" if kind == "double" else "single"
                variable(file, name, whole, values.astype(dtype if whole == kind else "f4"), **options)
            elif names == "cell":
                variable(file, name, "cell", values)
            elif names == "char":
                variable(file, name, "char", np.array([[ord(sign) for sign in text] for text in values], "u2"))
    with open(path, "r+b") as raw:
        raw.write(
            b"MATLAB 7.3 MAT-file, Platform: GLNXA64, Created on: Mon Sep 13 2021 HDF5 schema 1.00 .".ljust(124)
        )
        raw.write(b"\0\2IM")
    if names == "none":
        expected = {side: values | {"names": None} for side, values in expected.items()}
    check(converted(), expected)


# What is refused


def stored(**changes: Any) -> Callable[[Any], None]:
    return lambda file: store(file, changed(**changes))


def replaced(name: str, make: Callable[[Any], Any]) -> Callable[[Any], None]:
    def write(file: Any) -> None:
        store(file)
        del file[name]
        make(file)

    return write


def own_name(file: Any) -> None:
    """Virtual data that name their file, which may be called otherwise tomorrow."""
    layout, space = h5py.h5p.create(h5py.h5p.DATASET_CREATE), h5py.h5s.create_simple((60,))
    layout.set_virtual(space, b"feats.h5", b"probe/ids", space)
    h5py.h5d.create(file["gallery"].id, b"ids", h5py.h5t.NATIVE_INT64, space, layout)


def partly(file: Any) -> None:
    file.create_dataset("gallery/ids", 60, "i8", chunks=(10,), fillvalue=-1)[:10] = 1


def rows(file: Any) -> None:
    file.create_dataset("probe/features", 12, h5py.vlen_dtype("f4"))


REFUSED = {
    "ids is float64: expected integers (use astype('int64'))": stored(ids=lambda ids: ids.astype("f8")),
    "ids is bool: expected integers": stored(ids=lambda ids: ids > 0),
    "ids has shape (12, 2): expected (12,), one label per row": stored(ids=lambda ids: np.stack([ids] * 2, 1)),
    "features is int8: expected float16, float32": stored(features=lambda some: some.astype("i1")),
    "features is float128: expected float16, float32": stored(features=lambda some: some.astype("longdouble")),
    "features is complex64: expected float16, float32": stored(features=lambda some: some.astype("c8")),
    "features has rows of different lengths": replaced("probe/features", rows),
    "ids has a type that NumPy does not support": replaced(
        "probe/ids", lambda file: moments(file["probe"], "ids")
    ),
    "ids is 60, 480 bytes, but the file has only 80 of them": replaced("gallery/ids", partly),
    "ids is stored in another file, which is not read": replaced("gallery/ids", own_name),
}


@pytest.mark.parametrize("why", REFUSED)
def test_what_cannot_be_taken_as_it_is_is_refused(why, path):
    with h5py.File(path, "w") as file:
        REFUSED[why](file)
    with pytest.raises(br.InputError, match=re.escape(why)):
        br.load(path)


UNFIT = {
    "gids has a type that NumPy does not support": lambda file: moments(file, "gids"),
    "gids has rows of different lengths": lambda file: file.create_dataset("gids", 60, h5py.vlen_dtype("i8")),
    "has a link 'gids' to another file": lambda file: file.__setitem__("gids", h5py.ExternalLink("b.h5", "/x")),
    "has a link 'gids' that is circular": lambda file: file.__setitem__("gids", h5py.SoftLink("gids")),
}


@pytest.mark.parametrize("why", UNFIT)
def test_what_is_needed_and_cannot_be_read_is_refused(why, path, cli):
    with h5py.File(path, "w") as file:
        store(file, flat=True)
        del file["gids"]
        UNFIT[why](file)
    code, _, err = cli("convert", path, "out.h5")
    assert code == 1
    assert why in err
    assert err.count("error: ") == 1
