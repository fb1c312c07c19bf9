"""What is asked of a ranking, beside the features and the method."""

from __future__ import annotations

from dataclasses import dataclass

from ..data.features import FeatureSet
from ..data.given_lists import GivenLists
from ..data.side import Side
from ..data.similarities import ROUNDED, SimilaritySet
from ..data.validation import find_problems
from ..errors import InputError, ParameterError
from ..graph.neighbour_graph import NeighbourGraph
from ..methods import AnyMethod, Chain, GraphRanker, HeadRanker
from ..methods.kinds.camera_head import CameraHeadRanker
from ..methods.kinds.steps import GraphStep, ListStep, Transform
from ..search.ann import SearchedLists

TRANSDUCTIVE, ONLINE = "transductive", "online"


@dataclass(frozen=True)
class Prepared:
    """What choosing a method has found already.

    Attributes:
        data: the features that its steps give.
        graph: the neighbours that its ranker asks for; None if they are to be found.
    """

    data: FeatureSet
    graph: NeighbourGraph | None


@dataclass(frozen=True)
class Request:
    """What is asked of a ranking.

    Attributes:
        depth: how deep the lists go at least; by default as deep as the method's head. Capped at the gallery.
        whole_rows: whether each probe's similarities to the whole gallery are wanted too.
        online: whether each probe must be ranked by itself, whatever the others are.
        candidates: lists of these probes to re-rank instead of searching everything, which are given, or which
            the search of an index finds; `whole_rows` has no meaning then.
        graph: neighbours that are known already, of probes and gallery together, or online of the gallery.
        camera_images: unlabelled images of cameras that the gallery perhaps lacks.
        first: the probe to begin with.
        prepared: what is known already for the method that is asked for.
    """

    depth: int | None = None
    whole_rows: bool = False
    online: bool = False
    candidates: GivenLists | SearchedLists | None = None
    graph: NeighbourGraph | None = None
    camera_images: Side | None = None
    first: int = 0
    prepared: Prepared | None = None


def setting_of(method: AnyMethod, online: bool) -> str | None:
    """Return how a method is applied, `transductive` or `online`; None if that makes no difference.

    Args:
        method: the method.
        online: whether each probe must be ranked by itself.

    Raises:
        ParameterError: for a method that only looks at all probes together, if that is not wanted.
    """
    settings = []
    for part in (*method.feature_steps, method.ranker):
        if not isinstance(part, GraphRanker) and not part.transductive:
            continue
        if isinstance(part, Transform) and not part.needs_cameras:
            continue  # it looks at other probes for the sake of their cameras
        if online and not part.online:
            other = f"use {part.online_form}, or " if part.online_form else ""
            raise ParameterError(
                f"method {part.name} looks at all probes together, so it cannot rank them online: {other}leave "
                "--online out"
            )
        settings.append(ONLINE if online or not part.transductive else TRANSDUCTIVE)
    return TRANSDUCTIVE if TRANSDUCTIVE in settings else settings[0] if settings else None


def needs_of(method: AnyMethod, online: bool) -> list[str]:
    """Return what a method looks at beside a probe and the gallery: `cameras`, `other probes`, both or neither.

    Args:
        method: the method.
        online: whether each probe must be ranked by itself.

    Raises:
        ParameterError: as `setting_of`.
    """
    others = setting_of(method, online) == TRANSDUCTIVE
    return ["cameras"] * method.needs_cameras + ["other probes"] * others


def without_cameras(lacking: str, method: str) -> InputError:
    """Return the error for a method that needs cameras where, in words, these are `lacking`."""
    return InputError(f"{lacking}: method {method} needs them; choose another method")


def check_takes_camera_images(method: AnyMethod, *, online: bool) -> None:
    """Check that a method has a use for camera images.

    Args:
        method: whose steps.
        online: whether each probe is ranked by itself, so that no graph has probes.

    Raises:
        ParameterError: if no part of the method looks at other images, or only after probes were mixed.
    """
    if not any(isinstance(step, Transform) and step.needs_cameras for step in method.feature_steps):
        raise ParameterError(f"method {method.name} does not use camera images: only steps such as center do")
    mixed = None
    for step in method.feature_steps:
        if mixed is not None and isinstance(step, Transform) and step.needs_cameras:
            raise ParameterError(
                f"{mixed.name} averages each probe with its neighbours, and camera images have none: put "
                f"{step.name} before it"
            )
        if (isinstance(step, GraphStep) and not online) or (
            isinstance(step, ListStep) and step.changes == "probe"
        ):
            mixed = step


def check_camera_images_for(method: AnyMethod, camera_images: Side, dim: int, *, online: bool) -> None:
    """Check camera images, and that a method has a use for them.

    Args:
        method: whose steps.
        camera_images: the images, with their cameras.
        dim: D of the features that are ranked.
        online: as in `check_takes_camera_images`.

    Raises:
        ParameterError: as `check_takes_camera_images`.
        InputError: for features or cameras that cannot be used.
    """
    check_takes_camera_images(method, online=online)
    check_camera_images(camera_images, dim)


def check_camera_images(camera_images: Side, dim: int) -> None:
    """Raise `InputError` for camera images that cannot be used with features of `dim` dimensions."""
    if not isinstance(camera_images, Side):
        raise InputError("camera_images must be a Side with cameras: br.Side(features, cams=cams)")
    problems = find_problems(camera_images, None)
    if not problems and camera_images.dim != dim:
        problems = [
            f"{camera_images.label} has {camera_images.dim} dimensions: expected {dim}, as the features have"
        ]
    if not problems and camera_images.cams is None:
        problems = [f"{camera_images.label} has no cameras: camera images need them"]
    if problems:
        raise InputError(problems)


def check_works_with_similarities(data: SimilaritySet, method: AnyMethod, request: Request) -> None:
    """Check that a method can do without features.

    Raises:
        ParameterError: for a method that cannot, or a request that needs features.
        InputError: for similarities that it needs and that are missing, or that go beyond 1.
    """
    for part in (*method.feature_steps, method.ranker):
        if part.needs_features:
            raise ParameterError(
                f"{part.name} needs features, and these are similarities: use cosine, lbr or a "
                "graph ranker such as k-reciprocal"
            )
    for name in ("candidates", "graph", "camera_images"):
        if getattr(request, name) is not None:
            raise ParameterError(f"leave {name} out: it needs features, and these are similarities")
    ranker = method.ranker
    together = setting_of(method, request.online) == TRANSDUCTIVE
    missing = [
        f"among {what}"
        for what, matrix, needed in (
            ("gallery items", data.among_gallery, ranker.name != "cosine"),
            ("probes", data.among_probes, together),
        )
        if needed and matrix is None
    ]
    if missing:
        raise InputError(
            f"method {ranker.name} needs the similarities {' and '.join(missing)}, which are missing: add "
            "them, or use method cosine"
        )
    if isinstance(ranker, GraphRanker) and data.largest > 1 + ROUNDED:
        raise InputError(
            f"the similarities go up to {data.largest:.6g}, and method {ranker.name} expects values of at "
            "most 1, such as cosine similarities: divide all of them by the largest"
        )


def check_reranks_candidates(method: AnyMethod, candidates: GivenLists | SearchedLists | None = None) -> None:
    """Raise `ParameterError` unless `method` can work with candidates alone."""
    if isinstance(candidates, SearchedLists):
        return  # the index that finds them is of this method
    if isinstance(method, Chain):
        raise ParameterError(
            f"method {method.name} looks at neighbours among all items, and candidates are only some of them: "
            "use lbr or cosine"
        )
    if isinstance(method, CameraHeadRanker):
        raise ParameterError(
            f"method {method.name} needs neighbours of candidates from the whole gallery: use lbr or cosine"
        )
    if not isinstance(method, HeadRanker):
        raise ParameterError(
            f"method {method.name} scores the whole gallery, and candidates are only a part of it: use lbr "
            "or cosine"
        )


def check_indexes(method: AnyMethod) -> GraphRanker:
    """Return the ranker of a method that an index can be built for.

    Raises:
        ParameterError: for another method.
    """
    ranker = method.ranker
    if not isinstance(ranker, GraphRanker) or not ranker.online:
        raise ParameterError(
            f"method {method.name} cannot be indexed: use a graph ranker that works online, such as "
            "k-reciprocal-online, camera-graph or gnn"
        )
    if ranker.needs_farthest:
        raise ParameterError(f"{ranker.name} needs the farthest images, which an index does not look for")
    for step in method.feature_steps:
        if not isinstance(step, Transform):
            raise ParameterError(
                f"{step.name} averages images with their neighbours, and an index supports only steps that "
                "transform each image by itself, such as center"
            )
    return ranker
