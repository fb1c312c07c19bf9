"""What a method has to say for itself; how it is carried out is the engine's business.

A feature step gives new features, a head ranker new scores for the head of each list, a graph ranker a sparse
row for each image by which all are compared. None of them knows of memory, devices, blocks, files or processes.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from ...errors import ParameterError
from .parameters import parameters_of, ranged

if TYPE_CHECKING:
    import torch

    from ...data.candidates import Candidates
    from ...graph.encoding import Encoding, Probes
    from ...graph.neighbour_graph import ListSizes, NeighbourGraph
    from ...graph.sparse_rows import SparseRows
    from ...search.rows import Gatherable

DEFAULT_DEPTH = 50
"""How deep lists are written of a method that ranks the whole gallery."""


@dataclass(frozen=True)
class Method(ABC):
    """A method of any kind. Its fields are its parameters, each with a line under `Attributes`."""

    name: ClassVar[str]
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {}
    transductive: ClassVar[bool] = False
    """Whether the method can look at all probes together."""
    online: ClassVar[bool] = True
    """Whether it can treat each probe by itself."""
    needs_features: ClassVar[bool] = True
    """Whether the method looks at features; False where similarities of images are enough."""
    online_form: ClassVar[str] = ""
    """The method to use instead where probes must be treated by themselves, if there is one."""

    def __post_init__(self) -> None:
        """Check every parameter; a method whose parameters depend on each other extends this.

        Numbers become those of the field: 3 for a float is 3.0, so that files record one spelling.

        Raises:
            ParameterError: if a parameter is outside its range.
        """
        for parameter in parameters_of(self):
            value = getattr(self, parameter.name)
            parameter.check(value)
            if parameter.kind in (int, float, bool):
                object.__setattr__(self, parameter.name, parameter.kind(value))

    def params(self) -> dict[str, Any]:
        """Return every parameter and its value."""
        return asdict(self)

    @property
    def needs_cameras(self) -> bool:
        """Whether the method looks at cameras."""
        return False

    def notes(self, probes: int, gallery: int) -> list[str]:
        """Return, in words, what is asked for beyond what a set of that size has."""
        return []


@dataclass(frozen=True)
class FeatureStep(Method):
    """A method that gives new features. `steps.py` has the three kinds of it."""


@dataclass(frozen=True)
class Ranker(Method):
    """A method that ends a chain."""

    @property
    def feature_steps(self) -> tuple[FeatureStep, ...]:
        """The feature steps before it: none."""
        return ()

    @property
    def ranker(self) -> Ranker:
        """Itself."""
        return self

    @abstractmethod
    def depth(self, gallery: int) -> int:
        """Return how deep the lists go unless somebody says, for so many gallery items."""

    @abstractmethod
    def reranked(self, gallery: int) -> int:
        """Return how many items at the head of each list may change place."""


@dataclass(frozen=True)
class HeadRanker(Ranker):
    """A method that gives the head of each list new scores; the rest keeps its order.

    Attributes:
        topn: how many items at the head of each list are scored anew.
    """

    topn: int = ranged(DEFAULT_DEPTH, least=1)

    @abstractmethod
    def rescore(self, probe: torch.Tensor, candidates: Candidates, gallery: Gatherable) -> torch.Tensor:
        """Return new scores for the candidates of some probes, higher is better.

        Args:
            probe: (p, D) float32, unit rows.
            candidates: the `topn` best of each probe by cosine, fewer if the gallery is smaller.
            gallery: where the candidates' rows are.

        Returns:
            (p, n) float32, in the order of the candidates.
        """

    @classmethod
    def rescore_settings(
        cls,
        rankers: Sequence[HeadRanker],
        probe: torch.Tensor,
        candidates: Candidates,
        gallery: Gatherable,
    ) -> Sequence[torch.Tensor]:
        """Return what `rescore` of each of `rankers` gives, all of this class and of one `topn`.

        A method whose settings have work in common extends this.
        """
        return [ranker.rescore(probe, candidates, gallery) for ranker in rankers]

    def workspace_bytes(self, topn: int, dim: int) -> int:
        """Return the bytes that `rescore` needs for one probe, beyond what it is given."""
        return 0

    def notes(self, probes: int, gallery: int) -> list[str]:
        """A head longer than the gallery."""
        too_long = self.topn > gallery
        return [f"topn {self.topn} is capped at the gallery's {gallery} items"] if too_long else []

    def depth(self, gallery: int) -> int:
        """The head."""
        return min(self.topn, gallery)

    def reranked(self, gallery: int) -> int:
        """The head."""
        return min(self.topn, gallery)


@dataclass(frozen=True)
class GraphMethod(Method):
    """A method that is given the neighbour graph of many images."""

    needs_farthest: ClassVar[bool] = False
    """Whether it looks at `lowest`, the similarity to the farthest image; no index can be built for it then."""

    @abstractmethod
    def neighbours(self) -> int:
        """Return how many others each image must be listed with, of all cameras."""

    def camera_neighbours(self) -> tuple[int, int]:
        """Return how many others of the own camera and how many of all other cameras must be listed."""
        return 0, 0

    @property
    def needs_cameras(self) -> bool:
        """Where lists by camera are asked for."""
        return any(self.camera_neighbours())

    def notes(self, probes: int, gallery: int) -> list[str]:
        """Lists longer than there are other images."""
        others, count = (probes if self.transductive else 0) + gallery - 1, self.neighbours()
        return (
            [f"{self.name} needs {count} neighbours per image, and there are only {others}"]
            if count > others
            else []
        )

    def list_sizes(self) -> ListSizes:
        """Return how long the lists of the graph must be, and whether it must have `lowest`."""
        from ...graph.neighbour_graph import ListSizes

        return ListSizes(self.neighbours(), *self.camera_neighbours(), self.needs_farthest)


@dataclass(frozen=True)
class GraphRanker(Ranker, GraphMethod):
    """A method that turns neighbour lists into a sparse row for each image, and compares rows.

    Transductive, the images are the probes and the gallery together. Online, they are the gallery alone, and
    each probe is then treated by itself, bit for bit the same in any company.
    """

    transductive: ClassVar[bool] = True
    needs_features: ClassVar[bool] = False
    online: ClassVar[bool] = False
    """Where it can, it has `encode_probes`."""
    compares: ClassVar[str] = "overlap"
    """How rows are compared: `overlap`, sum_j min(v_pj, v_gj), or `dot`, sum_j v_pj v_gj."""
    blurs: ClassVar[bool] = False
    """Whether `fit` returns a `BlurredEncoding`."""
    needs_rows: ClassVar[bool] = False
    """Whether `encode_probes` looks at the rows of the gallery."""
    query_time_params: ClassVar[tuple[str, ...]] = ()
    """Parameters that the encoding of the gallery does not depend on."""

    @abstractmethod
    def fit(self, graph: NeighbourGraph) -> Encoding:
        """Return the encodings of the images of `graph`, whose lists are as long as there are images for."""

    def extend(self, encoding: Encoding, graph: NeighbourGraph) -> Encoding | None:
        """Return the encoding of items that are added to an encoded gallery, which itself stays as it is.

        Args:
            encoding: of the gallery, with `rows` if `needs_rows`.
            graph: lists of A items that are added, over all N images, the last of which they are.

        Returns:
            The same as `fit` returns for the A items alone, over N columns; None from a ranker that cannot.
        """
        return None

    def encode_probes(self, encoding: Encoding, probes: Probes) -> SparseRows:
        """Return a row for each of some probes, from the encoded gallery and the probe alone."""
        raise ParameterError(f"method {self.name} looks at all probes together: it cannot rank them one by one")

    @abstractmethod
    def score(self, overlap: torch.Tensor, probes: Probes) -> torch.Tensor:
        """Return the new scores of some gallery items, higher is better.

        Args:
            overlap: (p, g) float32, the rows of probes and gallery items compared as `compares` says.
            probes: what is known of the probes; `cosine` is of the same gallery items.

        Returns:
            (p, g) float32.
        """

    def workspace_bytes(self, listed: int) -> int:
        """Return the bytes that `encode_probes` needs for a probe with so many listed neighbours."""
        return 0

    def depth(self, gallery: int) -> int:
        """As deep as what other methods write."""
        return min(DEFAULT_DEPTH, gallery)

    def reranked(self, gallery: int) -> int:
        """Everything."""
        return gallery


def checked_result(method: Method, function: str, found: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """Return what a method's `function` returned, if it has the shape and dtype of `like`.

    Raises:
        ParameterError: if it has not, since the method is at fault.
    """
    if getattr(found, "shape", None) != like.shape or found.dtype != like.dtype:
        shape = f"{tuple(found.shape)} {found.dtype}" if hasattr(found, "dtype") else type(found).__name__
        raise ParameterError(
            f"method {method.name}: {function} returned {shape.replace('torch.', '')}, where "
            f"{tuple(like.shape)} {str(like.dtype).removeprefix('torch.')} is expected"
        )
    return found
