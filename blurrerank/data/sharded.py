"""Feature sets whose gallery is split among processes (sharded).

Each process holds one contiguous slice of the gallery, in order of rank: a global index is the local one plus
an offset, and results concatenated in order of rank are in order of index. Every process reads all probes.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ..compute.processes import Group
from ..errors import InputError
from .features import FeatureSet
from .side import Side
from .validation import find_problems, label_problems

# Row digests sent at a time, 16 bytes each.
_DIGESTS = 4 << 20


@dataclass(frozen=True, eq=False)
class ShardedGallery(Side):
    """The whole gallery. Every process knows its size; only the first one has its labels.

    Attributes:
        features: (G, D), for shape and dtype; read the rows from `shard` instead.
        shard: the gallery rows of this process.
        group: the processes of the run.
    """

    shard: Side = field(kw_only=True)
    group: Group = field(kw_only=True)

    @classmethod
    def of(cls, side: Side, group: Group, **own: Any) -> ShardedGallery:
        """Share a gallery that every process can read; `own` are further attributes of a subclass."""
        shard = side.part(group.share(len(side)))
        about = {**side.labels, "label": side.label, "texts": side.texts}
        return cls(side.features, **about, shard=shard, group=group, **own)

    def with_rows(self, shard: Side) -> ShardedGallery:
        """Return the same with new features, which may have other dimensions, of this process's rows."""
        own = torch.tensor([shard.dim if len(shard) else 0])
        dim = int(self.group.all_reduce(own, "max"))
        return replace(self, shard=shard, features=torch.empty(len(self), dim, device="meta"))

    def row_digests(self) -> NDArray[np.uint8]:
        """Return those of all rows, in every process."""
        mine = torch.from_numpy(self.shard.row_digests().copy())
        return self.group.all_gather(mine).numpy()

    def digest(self) -> str:
        """Return the same digest as for an unsharded gallery on the first process, and "" on the others."""
        mine = torch.from_numpy(self.shard.row_digests().copy())
        whole = hashlib.sha256()
        for rank in range(self.group.size):
            rows = self.group.share(len(self), rank)
            for start in range(0, rows.stop - rows.start, _DIGESTS):
                piece = mine[start : start + _DIGESTS] if rank == self.group.rank else mine[:0]
                whole.update(self.group.gather_to_first(piece).numpy().data)
        return "" if self.group.rank else whole.hexdigest()


@dataclass(frozen=True, eq=False)
class ShardedSet(FeatureSet):
    """A `FeatureSet` whose gallery is split among processes; the first one has all labels.

    Raises:
        InputError: on construction, in all processes, whichever of them found the problems.
    """

    gallery: ShardedGallery

    def __post_init__(self) -> None:
        """Validate the part of this process, and share the problems with the others."""
        # With fewer items than processes some shards are empty, which is no fault of the file.
        held = self.shard.features.shape[0:1] != (0,) or self.gallery.features.shape[0:1] == (0,)
        unlabelled = replace(self.shard, ids=None)
        problems = find_problems(self.probe, unlabelled if held else None)
        problems += label_problems(self.gallery)
        raise_everywhere(problems, self.group)

    @property
    def group(self) -> Group:
        """The processes of the run."""
        return self.gallery.group

    @property
    def shard(self) -> Side:
        """The gallery rows of this process."""
        return self.gallery.shard

    @property
    def part(self) -> FeatureSet:
        """The probes with the gallery rows of this process, of which there may be none."""
        return _Part(self.probe, self.shard)

    @property
    def has_ids(self) -> bool:
        """Whether both sides have identities."""
        return self.probe.ids is not None and self.shard.ids is not None


class _Part(FeatureSet):
    """A part of a `ShardedSet`, which has validated it."""

    def __post_init__(self) -> None:
        """Skip validation."""


def raise_everywhere(problems: list[str], group: Group) -> None:
    """Raise `InputError` in all processes if any of them found problems; each problem is listed once."""
    said = group.all_gather_text("\n".join(" ".join(problem.split("\n")) for problem in problems))
    found = dict.fromkeys(line for text in said for line in text.splitlines())
    if found:
        raise InputError(list(found))
