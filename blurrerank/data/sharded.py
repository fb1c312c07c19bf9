"""Features of which each process holds a part of the gallery.

The gallery is cut into contiguous slices in order of rank, so that global indices are local ones plus an
offset, and whatever is joined in order of rank is in order of index. Probes are read by every process.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field, replace

import torch

from ..compute.processes import Group
from ..errors import InputError
from .features import FeatureSet
from .side import Side
from .validation import find_problems, label_problems

# Row digests that travel at a time, of 16 bytes each.
_DIGESTS = 4 << 20


@dataclass(frozen=True, eq=False)
class ShardedGallery(Side):
    """The whole gallery: its size everywhere, its labels on the first process, its features nowhere.

    Attributes:
        features: (G, D), where they are stored; not to be read from here.
        shard: the rows of this process.
        group: the processes.
    """

    shard: Side = field(kw_only=True)
    group: Group = field(kw_only=True)

    def digest(self) -> str:
        """SHA-256 over the digests of all rows, as of one that is not cut; empty but on the first process."""
        mine = torch.from_numpy(self.shard.row_digests().copy())
        whole = hashlib.sha256()
        for rank in range(self.group.size):
            rows = self.group.share(len(self), rank)
            for start in range(0, rows.stop - rows.start, _DIGESTS):
                piece = mine[start : start + _DIGESTS] if rank == self.group.rank else mine[:0]
                whole.update(self.group.to_first(piece).numpy().data)
        return "" if self.group.rank else whole.hexdigest()


@dataclass(frozen=True, eq=False)
class ShardedSet(FeatureSet):
    """A `FeatureSet` whose gallery is cut among processes; the first of them knows all labels.

    Raises:
        InputError: on construction, everywhere, whichever process found the problems.
    """

    gallery: ShardedGallery

    def __post_init__(self) -> None:
        """Let each process check what it holds, and tell the others."""
        # With fewer items than processes some hold none, which is no problem of the file.
        held = self.shard.features.shape[0:1] != (0,) or self.gallery.features.shape[0:1] == (0,)
        unlabelled = replace(self.shard, ids=None)
        problems = find_problems(self.probe, unlabelled if held else None)
        problems += label_problems(self.gallery)
        raise_everywhere(problems, self.group)

    @property
    def group(self) -> Group:
        """The processes."""
        return self.gallery.group

    @property
    def shard(self) -> Side:
        """The gallery rows of this process."""
        return self.gallery.shard

    @property
    def part(self) -> FeatureSet:
        """Probes and the gallery rows of this process, which may be none."""
        return _Part(self.probe, self.shard)

    @property
    def has_ids(self) -> bool:
        """Whether both sides carry identities."""
        return self.probe.ids is not None and self.shard.ids is not None


class _Part(FeatureSet):
    """Checked with the whole it is a part of."""

    def __post_init__(self) -> None:
        """Nothing to check."""


def raise_everywhere(problems: list[str], group: Group) -> None:
    """Raise `InputError` in all processes if any of them found problems; each is named once."""
    said = group.messages("\n".join(" ".join(problem.split("\n")) for problem in problems))
    found = dict.fromkeys(line for text in said for line in text.splitlines())
    if found:
        raise InputError(list(found))
