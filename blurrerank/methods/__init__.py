"""The re-ranking methods, one module each: to add one, add a file.

A module `some_method.py` in this folder is the method `some-method`. It defines `METHOD`, a `Method`
subclass. Nothing is imported until a method is asked for.
"""

from __future__ import annotations

import pkgutil
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from importlib import import_module
from typing import TYPE_CHECKING, Any, ClassVar

from ..data.checks import check_count
from ..errors import ParameterError

if TYPE_CHECKING:
    import torch

    from ..compute.progress import Progress
    from ..compute.stopwatch import Stopwatch
    from ..data.candidates import Candidates
    from ..graph.neighbours import Keep, Neighbours
    from ..search.plan import Plan
    from ..search.rows import Gatherable, UnitRows
    from .k_reciprocal_online import EncodedGallery


_DEPTH = 50


@dataclass(frozen=True)
class Method(ABC):
    """What improves the lists: a head, a whole or a gallery method. Its fields are its parameters."""

    name: ClassVar[str]
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {}

    @abstractmethod
    def depth(self, gallery: int) -> int:
        """How deep the lists go unless somebody says, for so many gallery items."""

    @abstractmethod
    def reranked(self, gallery: int) -> int:
        """How many items at the head of each list may change place."""

    def capped(self, probes: int, gallery: int) -> list[str]:
        """What is asked for beyond what a set of that size has, in words."""
        return []

    def params(self) -> dict[str, Any]:
        """Every parameter and its value, plain numbers where NumPy's were given."""
        return {name: getattr(value, "item", lambda v=value: v)() for name, value in asdict(self).items()}


@dataclass(frozen=True)
class HeadMethod(Method):
    """A method that gives the head of each list new scores; the rest keeps its order.

    Attributes:
        topn: how many items at the head of each list are scored anew.
    """

    topn: int = _DEPTH

    def __post_init__(self) -> None:
        """Check what all such methods share; a method with parameters of its own extends this.

        Raises:
            ParameterError: if a parameter is outside its range.
        """
        check_count("topn", self.topn)

    @abstractmethod
    def rescore(self, probe: torch.Tensor, candidates: Candidates, gallery: Gatherable) -> torch.Tensor:
        """New scores for the candidates of a batch of probes, higher is better.

        Args:
            probe: (p, D) float32, unit rows.
            candidates: the `topn` best of each probe by cosine, fewer if the gallery is smaller.
            gallery: where the candidates' rows are.

        Returns:
            (p, n) float32, in the order of the candidates.
        """

    def workspace(self, topn: int, dim: int) -> int:
        """Bytes that `rescore` needs for one probe, beyond what it is given."""
        return 0

    def capped(self, probes: int, gallery: int) -> list[str]:
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
class WholeMethod(Method):
    """A method that looks at all images first and then gives the whole gallery new scores."""

    @abstractmethod
    def prepare(
        self,
        images: UnitRows,
        probes: int,
        plan: Plan,
        watch: Stopwatch,
        progress: Progress,
        known: Neighbours | None = None,
        checkpoint: Keep | None = None,
    ) -> Callable[[int, torch.Tensor], torch.Tensor]:
        """Look at all images.

        Args:
            images: the probes, then the gallery. Under `torchrun` all processes must ask for the same rows in
                the same order, and may share out work by `images.mine`.
            probes: how many of them are probes.
            plan: how much may be held.
            watch: for the stages `search` and `re-rank`.
            progress: called with (images done, images in all).
            known: what `checkpoint` was called with before an interruption.
            checkpoint: called now and then with what is known.

        Returns:
            `score(start, similarities)`: from the (p, G) float32 cosine similarities of the probes from
            `start` on, their new scores, likewise (p, G), higher is better. Under `torchrun` G are the images
            `images.scored(probes)`.
        """

    def depth(self, gallery: int) -> int:
        """As deep as what other methods write."""
        return min(_DEPTH, gallery)

    def reranked(self, gallery: int) -> int:
        """Everything."""
        return gallery


@dataclass(frozen=True)
class GalleryMethod(Method):
    """A method that looks at the gallery first, and then at each probe alone.

    Attributes:
        pool: how many items by cosine similarity are looked at around each image.
    """

    free: ClassVar[tuple[str, ...]] = ()
    """Parameters that what is known of the gallery does not depend on."""

    pool: int = _DEPTH

    def __post_init__(self) -> None:
        """Check what all such methods share; a method with parameters of its own extends this.

        Raises:
            ParameterError: if a parameter is outside its range.
        """
        check_count("pool", self.pool)

    @abstractmethod
    def encode(self, gallery: UnitRows, near: Neighbours, held: int, working: int) -> EncodedGallery:
        """Look at the gallery.

        Args:
            gallery: G rows.
            near: each item's nearest others, `pool` or as many as there are.
            held: how many rows may be held.
            working: bytes to work with.
        """

    @abstractmethod
    def score(
        self, encoded: EncodedGallery, candidates: Candidates, similarities: torch.Tensor, working: int
    ) -> torch.Tensor:
        """New scores of the whole gallery for a batch of probes, each alone, higher is better.

        Args:
            encoded: what `encode` made of the gallery.
            candidates: the `pool` best of each probe by cosine, fewer if the gallery is smaller.
            similarities: (p, G) float32 cosine similarities.
            working: bytes to work with.

        Returns:
            (p, G) float32.
        """

    def workspace(self, pool: int) -> int:
        """Bytes that `score` needs for one probe, beyond what it is given and what it returns."""
        return 0

    def capped(self, probes: int, gallery: int) -> list[str]:
        """A neighbourhood larger than the gallery."""
        too_long = self.pool > gallery
        return [f"pool {self.pool} is capped at the gallery's {gallery} items"] if too_long else []

    def depth(self, gallery: int) -> int:
        """As deep as what other methods write."""
        return min(_DEPTH, gallery)

    def reranked(self, gallery: int) -> int:
        """Everything."""
        return gallery


def available() -> list[str]:
    """The names of all methods; imports none of them."""
    return sorted(module.name.replace("_", "-") for module in pkgutil.iter_modules(__path__))


def _class(name: str) -> type[Method]:
    if name not in available():
        raise ParameterError(f"method {name!r} is not known: use {' or '.join(available())}")
    method: type[Method] = import_module(f"{__name__}.{name.replace('-', '_')}").METHOD
    return method


def parameters(name: str) -> list[str]:
    """The names of a method's parameters.

    Raises:
        ParameterError: for an unknown method.
    """
    return [field.name for field in fields(_class(name))]


def create(name: str, /, *, preset: str | None = None, **params: Any) -> Method:
    """A method by name, with the parameters of `preset` where not given in `params`.

    Raises:
        ParameterError: for an unknown method, preset or parameter, or a value outside its range.
    """
    method = _class(name)
    if preset is not None:
        if preset not in method.presets:
            known = ", ".join(method.presets) or "none"
            raise ParameterError(f"method {name} has no preset {preset!r}; it has: {known}")
        params = {**method.presets[preset], **params}
    unknown = sorted(set(params) - set(parameters(name)))
    if unknown:
        known = ", ".join(sorted(parameters(name)))
        raise ParameterError(f"method {name} has no parameter {unknown[0]!r}; it has: {known}")
    return replace(method(), **params)
