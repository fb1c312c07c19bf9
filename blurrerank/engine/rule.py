"""The rule of `auto`: what is done to features, and which ranker follows, without identities.

Its numbers were chosen on some data sets and measured on others (docs/auto.md):

1. Cameras: with two or more of at least 100 images each (the median), features are centred by camera.
2. Sizes: how many images an identity has is estimated from neighbour lists, within cameras and across.
3. Whitening: where features vary in few directions, sizes are clear only if whitened features make them so, by
   neighbours that agree more.
4. Ranker: `camera-graph` where there are cameras; otherwise, where the size is clear and above one, `gnn`.
   Online `camera-graph` where both sizes are clear, otherwise `k-reciprocal-online` where one is.
5. Otherwise `cosine`, and for few images, a small gallery, or features that are equal but for rounding.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from ..compute.compute import Compute, Progress
from ..data.features import FeatureSet
from ..graph.neighbourhoods import Neighbourhoods, SizeEstimate
from ..methods import create
from .feature_steps import apply_feature_step
from .look import Look, look
from .request import Request
from .workspace import cameras_if_any

# Images that cameras must have, as a median, for their means to be theirs and not those of a few identities;
# images of a camera that only probes have; images in all, and items of the gallery.
_IMAGES_A_CAMERA, _ALONE, _FEWEST, _SMALLEST = 100, 20, 100, 20
# By how much whitening must raise the share of neighbours that agree; and below which share, of the nearest of
# points without groups, features vary in few directions.
_RISE, _FEW_DIRECTIONS = 0.05, 0.25

_CAMERA_GRAPH = "camera-graph:ki=auto:ko=auto:k2i=auto:k2o=auto:one-sided=0.5:lambda=0.1"
_GNN = "gnn:k1=auto:k2=auto"
_ONLINE = "k-reciprocal-online:k1=auto:k2=auto"


@dataclass(frozen=True)
class Stepped:
    """Features as a chain's steps have left them.

    Attributes:
        data: the features.
        request: with the calibration features treated likewise.
        steps: names of the steps.
        by_camera: whether cameras are told apart.
        words: what cameras there are.
    """

    data: FeatureSet
    request: Request
    steps: tuple[str, ...]
    by_camera: bool
    words: str

    def after(self, step: str, compute: Compute) -> Stepped:
        """Return the features that one more step gives."""
        (made,) = create(step).feature_steps
        data, request = apply_feature_step(self.data, made, self.request, compute)
        return replace(self, data=data, request=request, steps=(*self.steps, step))


def prepare(data: FeatureSet, request: Request, compute: Compute) -> tuple[Stepped, Look]:
    """Treat features as the rule has it, and estimate how many images an identity has.

    Args:
        data: the features.
        request: `online` and `calibration`.
        compute: how.
    """
    stepped, centred = _cameras(data, request)
    if centred:
        stepped = stepped.after("center", compute)
    found = _look(stepped, request.online, compute)
    before = _main(stepped, found.near, request.online)
    if too_little(data, found.near) or before is None or not before.size or before.chance[0] >= _FEW_DIRECTIONS:
        return stepped, found
    whitened = stepped.after("whiten", compute)
    other = _look(whitened, request.online, compute)
    after = _main(whitened, other.near, request.online)
    if after is not None and after.sure:
        place = after.size - 1
        if after.curve[place] > before.curve[place] + _RISE:
            return whitened, other
    return stepped, replace(found, near=found.near.unclear())


def _look(stepped: Stepped, online: bool, compute: Compute) -> Look:
    """The neighbours that the rule looks at."""
    nearest = online or not stepped.by_camera
    found = look(stepped.data, compute, together=not online, nearest=nearest, by_camera=stepped.by_camera)
    return replace(found, near=replace(found.near, steps=stepped.steps))


def _main(stepped: Stepped, near: Neighbourhoods, online: bool) -> SizeEstimate | None:
    """The estimate that says whether anything is known."""
    return near.across if stepped.by_camera and not online else near.nearest


def _cameras(data: FeatureSet, request: Request) -> tuple[Stepped, bool]:
    """What cameras there are, and whether features are centred by them."""
    none = Stepped(data, replace(request, calibration=None), (), False, data.lacking("cams"))
    both = cameras_if_any(data)
    if both is None:
        return none, False
    probe, gallery = (side.numpy() for side in both)
    seen = gallery if request.online else np.concatenate([probe, gallery])
    known = seen
    if request.calibration is not None:
        others = np.asarray(request.calibration.cams)
        # Online, probes of any camera may come.
        known = np.concatenate([seen, others if request.online else others[np.isin(others, seen)]])
    counts = np.unique(known, return_counts=True)[1]
    by_camera = len(np.unique(seen)) > 1
    if len(counts) < 2:
        return replace(none, words="one camera"), False
    few = not request.online and any(
        (probe == cam).sum() < _ALONE for cam in np.setdiff1d(probe, known[len(probe) :])
    )
    words = f"{len(counts)} cameras with a median of {np.median(counts):,g} images"
    if np.median(counts) < _IMAGES_A_CAMERA or few:
        why = f"one of them known by fewer than {_ALONE} probes" if few else "too few"
        return replace(none, by_camera=by_camera, words=f"{words}, {why} to centre by"), False
    return Stepped(data, request, (), by_camera, words), True


def ranker_for(stepped: Stepped, near: Neighbourhoods, online: bool) -> str:
    """Return the ranker; parameters that follow from the estimates are `auto`."""
    if too_little(stepped.data, near):
        return "cosine"
    if stepped.by_camera and (not online or (near.size("within") and near.size("across"))):
        return _CAMERA_GRAPH
    if online:
        return _ONLINE if near.size("nearest") else "cosine"
    return _GNN if near.size("nearest") > 1 else "cosine"


def estimate_neighbourhoods(
    data: FeatureSet,
    *,
    online: bool = False,
    device: str = "auto",
    memory: int | None = None,
    progress: Progress | None = None,
) -> Neighbourhoods:
    """Estimate how many other images an identity has, from neighbour lists alone.

    Features are centred by camera and whitened first where the method `auto` does so.

    Args:
        data: the features; identities are not looked at.
        online: look at the gallery alone.
        device: `auto`, `cpu`, `cuda` or `cuda:1`.
        memory: budget for working memory in bytes; by default 2 GiB, and half of what is free on a GPU.
        progress: called with (images done, images in all).

    Returns:
        Estimates within cameras and across, or in all where there is one camera or none; each with the curve
        that it is read from, and whether it is sure.

    Raises:
        ParameterError: for a budget that is too small.
        BlurrerankError: for a device that is not available.
    """
    compute = Compute.choose(device, memory, progress=progress)
    return prepare(data, Request(online=online), compute)[1].near


def told(near: Neighbourhoods) -> str:
    """Return what is known of sizes, in words."""
    return f"other images of an identity: {near}"


def too_little(data: FeatureSet, near: Neighbourhoods) -> str:
    """Return, in words, why no size can be asked for, so that cosine is left as it is; empty if one can."""
    if near.images < _FEWEST:
        return f"{near.images} images are too few to tell how many an identity has"
    if len(data.gallery) < _SMALLEST:
        return f"a gallery of {len(data.gallery)} is too small to re-rank"
    return "features are equal but for rounding" if near.equal else ""
