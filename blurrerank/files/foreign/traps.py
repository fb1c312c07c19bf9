"""Warnings about common mistakes in other tools' feature files, as seen in their issue threads; never fixed
silently."""

from __future__ import annotations

import math

import numpy as np
import torch

from ...data.features import FeatureSet
from ...data.labels import DISTRACTOR
from ...data.side import Side
from ...evaluation.metrics import distinct_cameras, suspicious_labels, valid_probes
from ...evaluation.protocols import get_protocol

# Norms of float16 features of unit length are off by a thousandth.
_NEAR = 2e-3


def norms(side: Side) -> str:
    """Describe the Euclidean norms of the rows."""
    least, most = math.inf, 0.0
    for _, block in side.blocks(side.scan_rows()):
        some = torch.linalg.vector_norm(block.to(torch.float64), dim=1)
        least, most = min(least, float(some.min())), max(most, float(some.max()))
    if most - least > _NEAR * most:
        return f"{least:.4g} to {most:.4g}, not normalised"
    if abs(most - 1) < _NEAR:
        return "1, normalised"
    parts = round(min(most, 1e6) ** 2)
    if parts > 1 and abs(most - math.sqrt(parts)) < _NEAR * most:
        return (
            f"{most:.4g}, the square root of {parts}: perhaps {parts} normalised parts concatenated, as in PCB"
        )
    return f"{most:.4g} everywhere"


def label_doubts(data: FeatureSet) -> list[str]:
    """Return warnings about labels that affect metrics, one line each."""
    if not data.has_ids:
        return [f"{data.lacking('ids')}: lists can be written but not measured"]
    protocol = get_protocol("market1501")
    valid = valid_probes(data, protocol.name)
    found = suspicious_labels(data, protocol, valid)
    if 0 < valid < len(data.probe):
        found.append(
            f"{len(data.probe) - valid} of {len(data.probe)} probes have no match in the gallery under "
            f"protocol {protocol.name}: means do not include them"
        )
    return found


def side_doubts(data: FeatureSet) -> list[str]:
    """Return warnings about labels of the two sides that do not fit together, one line each."""
    return _camera_base(data) + _swapped(data)


def _swapped(data: FeatureSet) -> list[str]:
    """A line if the probes look like a gallery: more than it has, with junk or distractors among them."""
    ids = data.probe.ids
    if ids is None or len(data.probe) <= len(data.gallery) or not (ids <= DISTRACTOR).any():
        return []
    return ["there are more probes than gallery items, with junk or distractors: are the sides swapped?"]


def _camera_base(data: FeatureSet) -> list[str]:
    """A line if the sides have no camera in common, or one seems to count from 0 and the other from 1."""
    if data.probe.cams is None or data.gallery.cams is None:
        return []
    one, other = sides = distinct_cameras(data.probe), distinct_cameras(data.gallery)
    if not len(one) or not len(other):
        return []
    if not len(np.intersect1d(one, other)):
        return ["probes and gallery have no camera in common: same-camera items are never dropped"]
    from_0, from_1 = sorted(sides, key=lambda cams: int(cams[0]))
    # Of one numbering, the side that lacks the first camera would have one more at the end.
    if (from_0[0], from_1[0]) != (0, 1) or from_1[-1] <= from_0[-1]:
        return []
    spans = f"{one[0]} to {one[-1]} and {other[0]} to {other[-1]}"
    return [
        f"cameras are {spans}: if these are the same cameras, one side counts from 0 and the other from 1, and "
        "the wrong items are dropped; fix the numbering in the source"
    ]
