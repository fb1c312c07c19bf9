"""Write features and labels to HDF5 in many ways, and check that they are read as they were written."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from typing import Any

import h5py
import numpy as np
import pytest
from conftest import features

import blurrerank as br

SIDES = {"probe": "q", "gallery": "g"}
KINDS = ("features", "ids", "cams", "names")


def content() -> dict[str, dict[str, np.ndarray]]:
    """Side -> kind -> values; the features are whole eighths, which every float and filter here can hold."""
    made = features(dim=32)
    both = {
        side: {kind: made[side if kind == "features" else f"{side}_{kind}"] for kind in KINDS} for side in SIDES
    }
    for values in both.values():
        values["features"] = np.round(8 * values["features"]) / np.float32(8)
        values["names"] = np.array([f"{name} é" for name in values["names"]], dtype=object)
    return both


CONTENT = content()


def changed(**kinds: Callable[[np.ndarray], Any]) -> dict[str, dict[str, np.ndarray]]:
    """The content with some kinds changed."""
    return {
        side: values | {kind: change(values[kind]) for kind, change in kinds.items()}
        for side, values in CONTENT.items()
    }


def check(data: br.FeatureSet, expected: dict[str, dict[str, np.ndarray]] = CONTENT) -> None:
    for side, values in expected.items():
        found = getattr(data, side)
        assert found.features.shape == values["features"].shape
        np.testing.assert_array_equal(found.features[:], values["features"])
        for kind in KINDS[1:]:
            np.testing.assert_array_equal(getattr(found, kind), values.get(kind))


def entries(content: dict[str, dict[str, Any]] = CONTENT, flat: bool = False) -> Iterator[tuple[str, str, Any]]:
    """All arrays by their path in a native file, or by their name in another tool's, with their kind."""
    for side, values in content.items():
        for kind, array in values.items():
            yield f"{SIDES[side]}{kind}" if flat else f"{side}/{kind}", kind, array


def store(
    root: Any, content: dict[str, dict[str, Any]] = CONTENT, *, flat: bool = False, **options: Any
) -> None:
    """Write by h5py; `options` are those of all datasets."""
    for name, _, values in entries(content, flat):
        root.create_dataset(name, data=values, **options)


def create(
    root: Any, name: str, values: np.ndarray, *settings: tuple[Any, ...], type_id: Any = None, grows: int = 0
) -> Any:
    """Create a dataset by settings of its property list; the first `grows` dimensions have no limit."""
    plist = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    for setting, *arguments in settings:
        if setting == "chunk":
            arguments = [tuple(map(min, zip(arguments, values.shape, strict=False)))]
        getattr(plist, f"set_{setting}")(*arguments)
    limits = tuple(h5py.h5s.UNLIMITED if at < grows else size for at, size in enumerate(values.shape))
    dtype = h5py.string_dtype() if values.dtype == object else values.dtype
    links = h5py.h5p.create(h5py.h5p.LINK_CREATE)
    links.set_create_intermediate_group(True)
    made = h5py.h5d.create(
        root.id,
        name.encode(),
        h5py.h5t.py_create(dtype, logical=True) if type_id is None else type_id,
        h5py.h5s.create_simple(values.shape, limits),
        plist,
        links,
    )
    dataset = h5py.Dataset(made)
    dataset[...] = values
    return dataset


def library(name: str) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip(name, exc_type=ImportError)


def of_bits(base: Any, size: int, precision: int, offset: int) -> Any:
    """A type of `size` bytes of which only some bits count; a float has 8 bits of exponent."""
    made = base.copy()
    made.set_size(size)
    if made.get_class() == h5py.h5t.FLOAT:
        made.set_fields(precision - 1, precision - 9, 8, 0, precision - 9)
    made.set_precision(precision)
    made.set_offset(offset)
    return made


def enumeration(base: str) -> Any:
    return h5py.enum_dtype({f"c{number}": number for number in range(-(base[0] == "i"), 9)}, base)
