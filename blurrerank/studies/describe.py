"""Describe a feature file: its content, its problems, and what a default run would do."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..compute.compute import Compute
from ..data.features import FeatureSet
from ..data.labels import DISTRACTOR, JUNK
from ..data.side import Side
from ..data.tracks import numbers_of
from ..engine.plans import plan_for
from ..engine.request import Request
from ..engine.rule import estimate_neighbourhoods
from ..evaluation.metrics import valid_probes
from ..evaluation.protocols import PROTOCOLS
from ..files.foreign.traps import label_doubts, side_doubts
from ..files.loading import inspect
from ..graph.neighbourhoods import Neighbourhoods
from ..index.gallery_index import GalleryIndex
from ..index.index_files import files_of
from ..methods import create, text_of
from .cameras import camera_bias

# Images whose neighbours are looked for without being asked.
_MOST_LOOKED_AT = 20_000


def describe(
    path: str | Path, gallery: str | Path | None = None, *, device: str = "auto", memory: int | None = None
) -> dict[str, Any]:
    """Describe feature files, valid or not.

    Args:
        path: as for `load`.
        gallery: as for `load`.
        device: the device of the default run.
        memory: its memory budget in bytes.

    Returns:
        A dictionary ready for JSON: `probe` and `gallery` (None if unreadable), `attributes`, `problems`,
        `warnings` about likely mistakes, as from `convert`, `camera_bias`, how many of the nearest images are
        of the own camera (None if that says nothing), `neighbourhoods`, estimates of how many images an
        identity has (None for more than 20,000 images, which take a while), and `run`, the plan of a default
        run (None if there are problems).

    Raises:
        InputError: if a file cannot be opened at all.
    """
    contents = inspect(path, gallery, memory=memory)
    # Labels that are text are numbered in `data`.
    sides = contents if contents.data is None else contents.data
    described: dict[str, Any] = {
        "probe": _side(sides.probe, contents.images.get("probe")),
        "gallery": _side(sides.gallery, contents.images.get("gallery")),
        "attributes": {name: _plain(value) for name, value in contents.attributes.items()},
        "problems": contents.problems,
        "warnings": [],
        "camera_bias": None,
        "neighbourhoods": None,
        "run": None,
    }
    data = contents.data
    if data is not None:
        described["run"] = _default_run(data, device, memory)
        dumped = side_doubts(data) if contents.imported is None else contents.imported.doubts
        described["warnings"] = dumped + label_doubts(data)
        bias = camera_bias(data)
        if bias is not None:
            described["camera_bias"] = {**asdict(bias), "matters": bias.matters}
        near = quick_estimate(data, device=device, memory=memory)
        if near is not None:
            described["neighbourhoods"] = near.summary() | {"words": str(near)}
    return described


def quick_estimate(
    data: FeatureSet, *, online: bool = False, device: str = "auto", memory: int | None = None
) -> Neighbourhoods | None:
    """Return what `estimate_neighbourhoods` does; None for more than 20,000 images, which take a while."""
    if len(data.probe) + len(data.gallery) > _MOST_LOOKED_AT:
        return None
    return estimate_neighbourhoods(data, online=online, device=device, memory=memory)


def describe_index(path: str | Path) -> dict[str, Any]:
    """Describe an index and verify its checksums.

    Args:
        path: the file.

    Returns:
        A dictionary ready for JSON: `gallery`, as from `describe`; `method`, `params`, `digest`;
        `further_cameras`, those that a feature step knows and the gallery lacks; `search`, None or the kind,
        the usual effort and the recall of an approximate search; `also`, further methods; `drift`, None or what
        was changed since it was encoded; and `bytes`, the size of its files.

    Raises:
        InputError: if it is not an index, or is damaged.
    """
    index = GalleryIndex.open(path, device="cpu", verify=True)
    steps = zip(index.method.feature_steps, index.gallery.fitted, strict=True)
    known = [found["cams"].numpy() for step, found in steps if step.needs_cameras]
    cams, texts = index.gallery.cams, index.gallery.texts.get("cams", {})
    found = index.approximation
    return {
        "gallery": _side(index.gallery, None),
        "search": found
        and {"kind": found.search.kind, "effort": found.search.effort, "recall": dict(found.recall)},
        "drift": None if index.drift is None else asdict(index.drift) | {"summary": str(index.drift)},
        "also": [text_of(method) for method in index.methods[1:]],
        "method": index.method.name,
        "params": index.method.params(),
        "digest": index.gallery.digest(),
        "further_cameras": []
        if cams is None
        else [texts.get(cam, cam) for cam in np.setdiff1d(np.concatenate([cams[:0], *known]), cams).tolist()],
        "bytes": sum(file.stat().st_size for file in files_of(Path(path))),
    }


def _side(side: Side | None, images: tuple[int, ...] | None) -> dict[str, Any] | None:
    if side is None:
        return None
    described: dict[str, Any] = {
        "features": list(side.features.shape),
        "dtype": str(side.features.dtype).removeprefix("torch."),
        "in_memory": isinstance(side.features, np.ndarray | torch.Tensor),
    }
    if side.ids is not None and side.ids.dtype.kind == "i":
        people = np.unique(side.ids[side.ids > DISTRACTOR])
        described["identities"] = len(people)
        described["junk"] = int((side.ids == JUNK).sum())
        described["distractors"] = int((side.ids == DISTRACTOR).sum())
    if side.cams is not None:
        counts = np.unique(side.cams, return_counts=True)[1]
        described["cameras"] = len(counts)
        if len(counts):
            described["images_per_camera"] = [int(counts.min()), float(np.median(counts)), int(counts.max())]
    if side.tracks is not None:
        described["tracks"] = len(numbers_of(side)[1])
    described["names"] = side.names is not None
    described["images"] = None if images is None else list(images)
    return described


def _default_run(data: FeatureSet, device: str, memory: int | None) -> dict[str, Any]:
    method = create("lbr")
    compute = Compute.choose(device, memory)
    plan = plan_for(data, method.ranker, Request(whole_rows=data.has_ids), compute)
    return {
        "method": method.name,
        "params": method.params() | {"topn": method.depth(len(data.gallery))},
        "device": str(plan.device),
        "gallery_resident": plan.resident,
        "gallery_block": plan.gallery_block,
        "probe_batch": plan.probe_batch,
        "valid_probes": {name: valid_probes(data, name) for name in PROTOCOLS} if data.has_ids else None,
    }


def _plain(value: Any) -> Any:
    """Convert an attribute for JSON: numbers and strings are kept; NaN and other types become text."""
    simple = value.tolist() if isinstance(value, np.ndarray | np.generic) else value
    finite = isinstance(simple, int | str) or (isinstance(simple, float) and np.isfinite(simple))
    return simple if finite else str(value)
