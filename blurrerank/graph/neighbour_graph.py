"""`NeighbourGraph`: who is near whom among many images, exactly, and what follows from it.

A graph is found once, by `find.find_graph` or the public `neighbour_graph`, and serves every method and setting
that asks for lists no longer than it has.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import astuple, dataclass, fields, replace

import torch

from ..data.sort_keys import from_sort_keys, sort_keys
from ..errors import ParameterError
from ..search.given import listed_scores
from ..search.given_similarities import SimilarityRows
from ..search.rows import UnitRows, blocks_of
from .blurred import BlurredRows
from .pairs import pair_similarities
from .reciprocal import reciprocal_neighbours
from .sparse_rows import CHUNK_BYTES, SparseRows

CAMERA_LISTS = ("within", "across")
"""Kinds of lists by camera: of the own one, and of all others."""
# The arrays of lists.
_LISTED = ("items", "similarities")


@dataclass(frozen=True)
class ListSizes:
    """How many other images each image is listed with, at most as many as there are.

    Attributes:
        nearest: of all images.
        within: of its own camera.
        across: of all other cameras.
        farthest: whether the similarity to the farthest image is wanted too.
    """

    nearest: int = 0
    within: int = 0
    across: int = 0
    farthest: bool = False

    @classmethod
    def serving(cls, every: Sequence[ListSizes]) -> ListSizes:
        """Return the sizes of a graph that serves all of some."""
        return cls(*(max(getattr(sizes, field.name) for sizes in every) for field in fields(cls)))


@dataclass(frozen=True)
class NeighbourLists:
    """The nearest of some kind for each image, exact, ties to the lower index.

    Attributes:
        items: (N, k) int32 or int64, nearest first, -1 where there are no more.
        similarities: (N, k) float32 cosine similarities, -inf where there are no more.
    """

    items: torch.Tensor
    similarities: torch.Tensor

    def head(self, count: int) -> NeighbourLists | None:
        """Return the first `count` of each list, None for 0."""
        return NeighbourLists(self.items[:, :count], self.similarities[:, :count]) if count else None


@dataclass(frozen=True, eq=False)
class NeighbourGraph:
    """Exact neighbour lists of N images.

    Attributes:
        lists: (N, K) int32 or int64: each image itself, then its K - 1 nearest others, nearest first.
        similarities: (N, K) float32 cosine similarities to these, 1 to itself.
        lowest: (N,) float32, the cosine similarity to the farthest image; None if it was not asked for.
        within: the nearest others of the image's own camera, where asked for.
        across: the nearest images of all other cameras, where asked for.
        images: the N unit rows of features, or the similarities that are given in their place, to compare
            further pairs; None for lists that came without.
        cams: (N,) int64, the cameras that `within` and `across` are of.
        entries: how many entries the rows of encodings are to have, the largest of each; None keeps all.

    Examples:
        >>> import blurrerank as br
        >>> graph = br.neighbour_graph(torch.eye(4)[:3] + torch.eye(4)[1:], 1)
        >>> graph.lists.tolist()
        [[0, 1], [1, 0], [2, 1]]
        >>> graph.reciprocal(1).uniform().to_scipy(3).toarray().tolist()
        [[0.5, 0.5, 0.0], [0.5, 0.5, 0.0], [0.0, 0.0, 1.0]]
    """

    lists: torch.Tensor
    similarities: torch.Tensor
    lowest: torch.Tensor | None = None
    within: NeighbourLists | None = None
    across: NeighbourLists | None = None
    images: UnitRows | SimilarityRows | None = None
    cams: torch.Tensor | None = None
    entries: int | None = None

    def __len__(self) -> int:
        return len(self.lists)

    @property
    def columns(self) -> int:
        """How many images there are to be listed; more than lists, where these are of the last images alone."""
        return len(self) if self.images is None else len(self.images)

    @property
    def first(self) -> int:
        """Which of the images the first list is of."""
        return self.columns - len(self)

    @property
    def chunk_bytes(self) -> int:
        """Bytes that operations work with at a time: within the budget, the usual chunk of the device."""
        usual = CHUNK_BYTES[self.lists.device.type]
        return usual if self.images is None else min(usual, self.images.budget.working_bytes)

    @property
    def sizes(self) -> ListSizes:
        """How long the lists are."""
        lengths = {name: self._length(name) for name in ("nearest", *CAMERA_LISTS)}
        return ListSizes(**lengths, farthest=self.lowest is not None)

    def serves(self, sizes: ListSizes) -> bool:
        """Return whether all lists are as long as `sizes` asks for, or hold all images there are."""
        has, wanted = astuple(self.sizes), astuple(sizes)
        return all(length >= min(count, len(self) - 1) for length, count in zip(has, wanted, strict=True))

    def cut(self, sizes: ListSizes) -> NeighbourGraph:
        """Return the graph that was found for `sizes`, from one with longer lists."""
        return replace(
            self,
            lists=self.lists[:, : sizes.nearest + 1],
            similarities=self.similarities[:, : sizes.nearest + 1],
            within=None if self.within is None else self.within.head(sizes.within),
            across=None if self.across is None else self.across.head(sizes.across),
        )

    def kind(self, name: str) -> NeighbourLists | None:
        """Return the lists of others, `nearest`, `within` or `across`; None if it has none of the kind."""
        if name == "nearest":
            return NeighbourLists(self.lists[:, 1:], self.similarities[:, 1:])
        found: NeighbourLists | None = getattr(self, name)
        return found

    def at(self, rows: slice) -> NeighbourGraph:
        """Return the lists of some images."""
        return self._each(lambda lists: lists[rows])

    def followed_by(self, other: NeighbourGraph) -> NeighbourGraph:
        """Return the lists of these images and of others, which are of the same kinds and lengths."""
        return self._each(lambda mine, theirs: torch.cat([mine, theirs]), other)

    def _each(self, of: Callable[..., torch.Tensor], *others: NeighbourGraph) -> NeighbourGraph:
        """The graph, without images, of what `of` makes of each array of this one and of others."""
        graphs = (self, *others)
        lowest = [graph.lowest for graph in graphs]

        def by_camera(name: str) -> NeighbourLists | None:
            kinds = [getattr(graph, name) for graph in graphs]
            if kinds[0] is None:
                return None
            return NeighbourLists(*(of(*(getattr(kind, part) for kind in kinds)) for part in _LISTED))

        return NeighbourGraph(
            of(*(graph.lists for graph in graphs)),
            of(*(graph.similarities for graph in graphs)),
            None if any(one is None for one in lowest) else of(*lowest),
            by_camera("within"),
            by_camera("across"),
        )

    def within_alone(self) -> NeighbourGraph:
        """Return the graph whose lists are those of images of the same camera alone, -1 where they end."""
        lists = self.by_camera(1 + self._length("within"), 0)
        return replace(self, lists=lists.items, similarities=lists.similarities, within=None, cams=None)

    def by_camera(self, own: int, others: int) -> NeighbourLists:
        """Return each image, its `own` - 1 nearest others of its own camera, and the nearest of all others.

        Args:
            own: images of the own camera, itself the first of them.
            others: images of all other cameras.

        Returns:
            (N, own + others) items and similarities; where a camera has fewer images, -1 and -inf.

        Raises:
            ParameterError: for longer lists than the graph has.
        """
        self._check_camera_lists(own - 1, others)
        within, across = self.within, self.across
        items, similarities = [self.lists[:, :1]], [self.similarities[:, :1]]
        for lists, count in ((within, own - 1), (across, others)):
            if lists is not None:
                items.append(lists.items[:, :count])
                similarities.append(lists.similarities[:, :count])
        return NeighbourLists(torch.cat(items, dim=1), torch.cat(similarities, dim=1))

    def reciprocal_by_camera(self, own: int, others: int) -> SparseRows:
        """Return each image and its reciprocal neighbours within its camera and across; weights are 0.

        Args:
            own: how many nearest others of the own camera count, of which those are taken that list it too.
            others: likewise how many of all other cameras.

        Raises:
            ParameterError: for longer lists than the graph has.
        """
        self._check_camera_lists(own, others)
        near = self.by_camera(own + 1, others).items
        split = near.shape[1] - min(others, self._length("across"))
        own_lists, other_lists = near[:, :split], near[:, split:]
        parts = [reciprocal_neighbours(own_lists, own_lists, chunk_bytes=self.chunk_bytes)]
        if split < near.shape[1]:
            parts.append(reciprocal_neighbours(other_lists, other_lists, chunk_bytes=self.chunk_bytes))
        return parts[0] if len(parts) == 1 else parts[0].joined(parts[1])

    def _check_camera_lists(self, own: int, others: int) -> None:
        for name, count in (("within", own), ("across", others)):
            length = self._length(name)
            if length < min(count, len(self) - 1):
                raise ParameterError(
                    f"the graph lists {length} neighbours {name} cameras per image, and {count} are needed: "
                    "make one with more"
                )

    def _length(self, name: str) -> int:
        """How many others each image is listed with, `nearest`, `within` or `across`."""
        if name == "nearest":
            return self.lists.shape[1] - 1
        lists = getattr(self, name)
        return 0 if lists is None else int(lists.items.shape[1])

    def reciprocal(self, count: int, back: int | None = None) -> SparseRows:
        """Return each image and those of its nearest others that list it too; weights are 0.

        Args:
            count: how many nearest others count.
            back: among how many nearest others of theirs the image must be; by default as many.

        Raises:
            ParameterError: for longer lists than the graph has.
        """
        back = count if back is None else back
        longest = max(count, back)
        if self._length("nearest") < min(longest, len(self) - 1):
            raise ParameterError(
                f"the graph lists {self._length('nearest')} neighbours per image, and {longest} are needed: "
                "make one with more"
            )
        lists = self.lists[:, : count + 1], self.lists[:, : back + 1]
        return reciprocal_neighbours(*lists, chunk_bytes=self.chunk_bytes)

    def with_equal_images_by_index(self, equal: torch.Tensor) -> NeighbourGraph:
        """Return the graph with the lists of some images in order of index: what else orders them is rounding.

        Args:
            equal: (N,) bool, the images that equal all others but for rounding.
        """
        rows = torch.nonzero(equal)
        others = torch.arange(self.lists.shape[1] - 1, device=rows.device).expand(len(rows), -1)
        lists = self.lists.clone() if len(rows) else self.lists
        lists[rows, 1 + others] = (others + (others >= rows)).to(lists.dtype)
        return replace(self, lists=lists)

    def weigh(
        self, members: SparseRows, weight: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
    ) -> torch.Tensor:
        """Return a weight for each entry of `members`.

        Args:
            members: N rows over the images.
            weight: given (t,) float32 cosine similarities, 1 of an image to itself, and the (t,) int64 images
                whose rows they are in; returns (t,) weights.

        Returns:
            (T,) float32.
        """
        assert self.images is not None
        weights = pair_similarities(self.images, self.images, members.counts, members.columns)
        for start, stop in members.blocks():
            some = members.rows(start, stop)
            first, last = members.offsets[[start, stop]].tolist()
            image = start + torch.repeat_interleave(some.counts)
            cosine = weights[first:last].masked_fill(some.columns == image, 1)
            weights[first:last] = weight(cosine, image)
        return weights

    def blurred(self, size: int, sigma: float) -> BlurredRows:
        """Return the images blurred with their `size` - 1 nearest others at temperature `sigma`."""
        assert isinstance(self.images, UnitRows)
        return BlurredRows(self.images, self.lists[:, :size], self.similarities[:, :size], sigma)

    def similarities_to(self, rows: BlurredRows) -> torch.Tensor:
        """Return (N, K - 1) float32, the similarity of each image to other `rows` of its nearest others."""
        assert isinstance(self.images, UnitRows)
        others = self.lists[:, 1:]
        counts = torch.full((len(self),), others.shape[1], device=others.device)
        return pair_similarities(self.images, rows, counts, others.flatten()).view_as(others)

    def cosine_at(self, items: torch.Tensor, start: int = 0) -> torch.Tensor:
        """Return (n, ...) float32, the cosine similarities of the images of n lists to `items`, (n, ...).

        Args:
            items: of all images.
            start: the first of the lists.
        """
        assert isinstance(self.images, UnitRows)
        first = self.first + start
        rows = self.images.rows(first, first + len(items))
        return listed_scores(rows, items.flatten(1).long(), self.images).view(items.shape)

    def reordered(self, similarities: torch.Tensor, depth: int) -> NeighbourGraph:
        """Return the graph with the others of each list sorted by other similarities, cut to the best `depth`.

        Args:
            similarities: (N, K - 1) float32 of the others in `lists`.
            depth: how many others to keep, up to K - 1.
        """
        others = self.lists[:, 1:]
        lists = self.lists[:, : depth + 1].clone()
        found = self.similarities[:, : depth + 1].clone()
        step = max(1, self.chunk_bytes // (32 * max(1, others.shape[1])))
        for start, stop in blocks_of(len(self), step):
            items, near = sort_items(others[start:stop].long(), similarities[start:stop], depth)
            lists[start:stop, 1:], found[start:stop, 1:] = items, near
        return replace(self, lists=lists, similarities=found)


def sort_items(
    items: torch.Tensor, similarities: torch.Tensor, depth: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the `depth` most similar of each row's (N, n) `items`, best first, and their similarities."""
    keys = sort_keys(similarities, items)
    return from_sort_keys(keys.sort(dim=1, descending=True).values[:, :depth])
