"""The rule of `auto`: what is done to features, and which ranker follows, without identities.

Its numbers were chosen on some data sets and measured on others (docs/auto.md):

1. Cameras: with two or more, all of which are known by enough images, features are centred by camera.
2. Sizes: how many images an identity has is estimated from neighbour lists, within cameras and across.
3. Whitening: where features vary in few directions, sizes are clear only if whitened features make them so, by
   neighbours that agree more.
4. Ranker: `camera-graph` where there are two or more cameras; otherwise, where the size is clear and above one,
   `gnn`. Online `camera-graph` where both sizes are clear; otherwise, where that over all cameras is,
   `k-reciprocal-online`.
5. Otherwise `cosine`, and for few images, a small gallery, or features that are equal but for rounding.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch

from ..compute.compute import Compute, Progress
from ..data.arguments import check_features
from ..data.features import FeatureSet
from ..graph.neighbourhoods import EQUAL, Neighbourhoods, SizeEstimate
from ..methods import create, without_auto
from .feature_steps import apply_feature_step
from .look import Look, look
from .plans import plan_for
from .request import Request
from .workspace import cameras_if_any

# Images that cameras must be known by, as a median and each of them, for their means to be theirs and not those
# of a few identities; images in all, and items of the gallery.
_IMAGES_A_CAMERA, _LEAST_KNOWN, _FEWEST, _SMALLEST = 100, 20, 100, 20
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
        request: with the camera images treated likewise.
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
        request: `online` and `camera_images`.
        compute: how.

    Raises:
        BudgetError: for a budget that is too small.
    """
    plan_for(data, create(without_auto(_ONLINE if request.online else _GNN)).ranker, request, compute)
    stepped, centred = _cameras(data, request)
    images = len(data.gallery) + (0 if request.online else len(data.probe))
    why = _too_little(data, images)
    if why:
        bare = replace(stepped, request=replace(request, camera_images=None))
        found = _look(bare, request.online, compute)
        return bare, replace(found, near=replace(found.near.unclear(), why=why))
    if centred:
        stepped = stepped.after("center", compute)
    found = _look(stepped, request.online, compute)
    before = _main(stepped, found.near, request.online)
    if found.near.why or before is None or not before.size or before.chance[0] >= _FEW_DIRECTIONS:
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
    none = Stepped(data, replace(request, camera_images=None), (), False, "one camera")
    both = cameras_if_any(data)
    if both is None:
        return replace(none, words=data.lacking("cams")), False
    probe, gallery = (side.numpy() for side in both)
    seen = gallery if request.online else np.concatenate([probe, gallery])
    counts: dict[int, int] = {}
    sides = [gallery] if request.camera_images is None else [gallery, np.asarray(request.camera_images.cams)]
    # As `center` has it: the first of these that has a camera says what its mean is. Online, probes of any of
    # them may come.
    for side in sides if request.online else [*sides, probe]:
        new = side[~np.isin(side, list(counts)) & (request.online or np.isin(side, seen))]
        counts |= dict(zip(*(part.tolist() for part in np.unique(new, return_counts=True)), strict=True))
    if len(counts) < 2:
        return none, False
    median, least = np.median(list(counts.values())), min(counts.values())
    words = f"{len(counts)} cameras, with a median of {median:,g} images and at least {least:,}"
    by_camera = len(np.unique(seen)) > 1
    if median < _IMAGES_A_CAMERA or least < _LEAST_KNOWN:
        return replace(none, by_camera=by_camera, words=f"{words}, too few for centring"), False
    return Stepped(data, request, (), by_camera, words), True


def ranker_for(stepped: Stepped, near: Neighbourhoods, online: bool) -> str:
    """Return the ranker; parameters that follow from the estimates are `auto`."""
    if near.why:
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
        InputError: for anything else than a `FeatureSet`.
        BudgetError: for a budget that is too small.
        BlurrerankError: for a device that is not available.
    """
    check_features(data)
    compute = Compute.choose(device, memory, progress=progress)
    return prepare(data, Request(online=online), compute)[1].near


def told(near: Neighbourhoods) -> str:
    """Return what is known of sizes, in words."""
    return near.why or f"other images per identity: {near}"


def _too_little(data: FeatureSet, images: int) -> str:
    """Why neighbours among so many `images` tell nothing, in words; empty if they may."""
    if images < _FEWEST:
        are = "s are" if images > 1 else " is"
        return f"{images} image{are} too few to estimate the number of images per identity"
    if len(data.gallery) < _SMALLEST:
        return f"a gallery of {len(data.gallery)} is too small to re-rank"
    return EQUAL if _are_equal(data, cameras_if_any(data)) else ""


def _are_equal(data: FeatureSet, cams: tuple[torch.Tensor, torch.Tensor] | None) -> bool:
    """Whether all features, or all of each camera, are equal but for the rounding of their dtype."""
    known: dict[int, torch.Tensor] = {}
    for place, side in enumerate((data.probe, data.gallery)):
        for start, block in side.blocks(side.scan_rows()):
            units = torch.nn.functional.normalize(block.double(), dim=1)
            of = torch.zeros(len(block)) if cams is None else cams[place][start : start + len(block)]
            off = 4 * torch.finfo(block.dtype).eps
            for cam in set(of.tolist()):
                own = units[of == cam]
                if bool(((own - known.setdefault(int(cam), own[:1])).square().sum(dim=1) > off**2).any()):
                    return False
    return True
