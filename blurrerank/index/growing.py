"""Changes to an index that is searched approximately, beside what it was encoded with.

Items that are added are encoded against what is there, which stays as it is; items that are removed are not
found any more. What a build would do otherwise is counted, and done by `compact_index`.
"""

from __future__ import annotations

from dataclasses import astuple, replace
from pathlib import Path

import numpy as np
import torch

from ..compute.compute import Compute
from ..data.side import digest_of
from ..errors import ParameterError
from ..files.mapped_h5 import opened_mapped
from ..files.targets import second_name
from ..graph.approximate import find_graph_approximately
from ..graph.neighbour_graph import CAMERA_LISTS
from ..search.plan import Plan
from ..search.rows import UnitRows, blocks_of
from .contents import Changes, Drift, Labels
from .encoding import Items, sizes_for
from .gallery_index import GalleryIndex, UnitSide
from .index_files import FORMAT, base_of, is_changed
from .write_h5 import write_changes

# Neighbour lists looked through at a time.
_ROWS = 1 << 16


def grow(old: GalleryIndex, items: Items, temporary: Path, compute: Compute) -> bool:
    """Write the changes of an index to which items are added.

    Args:
        old: the index.
        items: its items and those that are added.
        temporary: where to write.
        compute: how.

    Returns:
        False, and nothing is written, where all items are to be encoded: if the index compares everything with
        everything, has lists that would be longer with the new items, fewer items left than a list names, or
        a ranker that cannot encode what is added.
    """
    sizes = sizes_for(items.rankers)
    if old.approximation is None or old.near.sizes != sizes or len(old) <= max(astuple(sizes)):
        return False
    if items.methods != old.methods:
        raise ParameterError(
            f"{old.path} keeps the parameters it was built with: leave other ones out, or build a new index"
        )
    changes = _grown(old, items, compute)
    if changes is not None:
        _write(old, changes, temporary)
    return changes is not None


def shrink(old: GalleryIndex, leaves: torch.Tensor, temporary: Path) -> None:
    """Write the changes of an index, searched approximately, from which items are taken.

    Args:
        old: the index.
        leaves: (R,) int64, the items, as the index counts them.
        temporary: where to write.
    """
    before, kept = _changes(old), old.gallery.kept
    stored = leaves if kept is None else kept[leaves]
    changes = replace(before, removed=torch.cat([before.removed, stored]).sort().values)
    _write(old, replace(changes, drift=_drift(old, changes)), temporary)


def _grown(old: GalleryIndex, items: Items, compute: Compute) -> Changes | None:
    """The changes of an index with further items; None if a ranker cannot encode them."""
    stored, side, labels = old.stored, items.sides[-1], items.labels.at(slice(len(old), None))
    plan = Plan.of_images(len(side), len(side), side.dim, compute)
    rows = UnitRows(side, device=plan.device, block=plan.gallery_block, resident=True)
    new = rows.rows(0, len(rows))
    images = UnitRows(
        stored, UnitSide(new), device=plan.device, block=plan.gallery_block, resident=False, budget=plan.budget
    )
    cams = None
    if items.needs_cameras:
        assert stored.cams is not None
        assert labels.cams is not None
        cams = torch.from_numpy(np.concatenate([stored.cams, labels.cams]))
    before = _changes(old)
    gone = torch.zeros(len(images), dtype=torch.bool)
    gone[before.removed] = True
    added = torch.cat([before.features, new])
    search = replace(old.stored_search, added=added, gone=gone if len(before.removed) else None)
    lists = find_graph_approximately(
        images, old.near.sizes, search, cams=cams, first=len(stored), progress=compute.progress
    )
    encoded = []
    for ranker, known, own in zip(items.rankers, stored.encoded, before.encoded, strict=True):
        asked = replace(lists.cut(ranker.list_sizes()), entries=known.entries)
        found = ranker.extend(known, asked)
        if found is None:
            return None
        encoded.append(own.followed_by(found.cut_rows(known.entries)))
    changes = replace(
        before,
        features=added,
        labels=before.labels.followed_by(labels),
        near=before.near.followed_by(lists),
        encoded=tuple(encoded),
    )
    return replace(changes, drift=_drift(old, changes))


def _write(old: GalleryIndex, changes: Changes, temporary: Path) -> None:
    """Write changes; what the index was encoded with gets the second name by which they find it."""
    base, changed = base_of(old.path), is_changed(old.path)
    with opened_mapped(base if changed else old.path, FORMAT, verify=False) as file:
        identity = file.identity()
    encoded = old.stored.digests[: changes.drift.encoded]
    digests = np.concatenate([encoded, changes.labels.digests])
    left = np.delete(digests, changes.removed.numpy(), axis=0)
    write_changes(temporary, identity, old.methods, digest_of(left), changes)
    if not changed:
        second_name(old.path, base, temporary)


def _changes(old: GalleryIndex) -> Changes:
    """What was added to an index and taken from it until now."""
    stored, gone = old.stored, old.stored_search.gone
    drift = old.drift or Drift(0, 0, 0, len(stored))
    since = slice(drift.encoded, len(stored))
    return Changes(
        stored.block(since.start, since.stop),
        Labels.of(stored).at(since),
        old.near.at(since),
        tuple(encoded.since(drift.encoded) for encoded in stored.encoded),
        torch.empty(0, dtype=torch.int64) if gone is None else torch.nonzero(gone).flatten(),
        drift,
    )


def _drift(old: GalleryIndex, changes: Changes) -> Drift:
    """How far the changes take an index from one that is built anew, at least.

    Of the items that an added one belongs in the lists of, those are counted that are in its own.
    """
    count, added = changes.drift.encoded, len(changes.features)
    gone = torch.zeros(count + added, dtype=torch.bool)
    gone[changes.removed] = True
    stale = torch.zeros(count, dtype=torch.bool)
    for name in ("nearest", *CAMERA_LISTS):
        lists, new = old.near.kind(name), changes.near.kind(name)
        if lists is None or new is None or not lists.items.shape[1]:
            continue
        # An item that was added belongs in the lists of those that it is nearer to than the last there.
        near = (new.items >= 0) & (new.items < count) & ~gone[count:].unsqueeze(1)
        items = new.items[near].long()
        stale[items[new.similarities[near] > lists.similarities[items, -1]]] = True
        if len(changes.removed):
            for start, stop in blocks_of(count, _ROWS):
                some = lists.items[start:stop].long()
                stale[start:stop] |= (gone[some.clamp_min(0)] & (some >= 0)).any(dim=1)
    return Drift.of(gone, int((stale & ~gone[:count]).sum()), count)
