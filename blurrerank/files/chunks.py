"""Packed chunks of HDF5 datasets: by what filters, and whether one becomes more than a chunk is.

HDF5 unpacks a chunk until it ends, and compares with the declared size afterwards.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable
from typing import Any

import h5py

from ..errors import InputError
from .unpacking import check_unpacked, may_be_large

# Codes of filters.
GZIP, SHUFFLE = h5py.h5z.FILTER_DEFLATE, h5py.h5z.FILTER_SHUFFLE
_CHECKSUM, _SZIP, _LZF = h5py.h5z.FILTER_FLETCHER32, h5py.h5z.FILTER_SZIP, h5py.h5z.FILTER_LZF
_BITS = (h5py.h5z.FILTER_NBIT, h5py.h5z.FILTER_SCALEOFFSET)
# What headers and checksums of all filters add to a chunk, beside a hundredth for what does not get smaller.
_MORE = 256
# Bytes that are unpacked at a time, and of those that are looked at.
_UNPACKED, _PACKED = 1 << 20, 1 << 16


def filters_of(dataset: Any) -> list[int]:
    """Codes of the filters that a dataset is packed by, in their order."""
    return [code for code, _ in _filters(dataset)]


def _filters(dataset: Any) -> list[tuple[int, tuple[int, ...]]]:
    settings = dataset.id.get_create_plist()
    filters = map(settings.get_filter, range(settings.get_nfilters()))
    return [(code, values) for code, _, values, _ in filters]


def check_chunks(dataset: Any, size: int, where: str) -> None:
    """Refuse a dataset of which a chunk would become more than a chunk is.

    What deflate makes of a chunk is known only when it was unpacked: one that could become too much is unpacked
    twice, here and by HDF5. Filters that somebody installed in addition are trusted.

    Args:
        dataset: an h5py dataset.
        size: bytes of a chunk, unpacked.
        where: how messages call it.

    Raises:
        InputError: if one would, or if it is packed more than once: each filter multiplies.
    """
    filters = _filters(dataset)
    packing = [(code, values) for code, values in filters if code not in (SHUFFLE, _CHECKSUM)]
    if not dataset.chunks or not packing:
        return
    if len(packing) > 1:
        raise InputError(
            f"{where} is compressed by {len(packing)} filters in sequence: write it with gzip only"
        )
    code, values = packing[0]
    # Number and size of the values, or size of the chunk: so much room these make, whatever is in it.
    if (code in _BITS and math.prod(values[2:5:2]) != size) or (
        code == _LZF and max(values[2:3], default=0) > size
    ):
        raise _too_much(where, size)
    place, suspects = [one for one, _ in filters].index(code), []

    def look(chunk: Any) -> None:
        if chunk.size > size + size // 100 + _MORE:
            raise _too_much(where, size)
        if not chunk.filter_mask >> place & 1 and (
            code == _SZIP or (code == GZIP and may_be_large(chunk.size))
        ):
            suspects.append(chunk.chunk_offset)

    for_each_chunk(dataset, look)
    total = 0
    for offset in suspects:
        data = dataset.id.read_direct_chunk(offset)[1]
        unpacked = int.from_bytes(data[:4], "little") if code == _SZIP else _inflated(data, size + _MORE)
        if unpacked > size + _MORE:
            raise _too_much(where, size)
        total += unpacked
        # There may be chunks that lie outside of the dataset.
        check_unpacked(total, dataset.id.get_storage_size(), where)


def for_each_chunk(dataset: Any, look: Callable[[Any], None]) -> None:
    """Call `look` with what HDF5 knows of each chunk that was written; it tells of all at once since 1.12.3."""
    if hasattr(dataset.id, "chunk_iter"):
        dataset.id.chunk_iter(look)
        return
    for number in range(dataset.id.get_num_chunks()):
        look(dataset.id.get_chunk_info(number))


def _inflated(data: bytes, most: int) -> int:
    """Bytes that deflate unpacks these to, or more than `most`. Nothing of it is kept."""
    inflate, total = zlib.decompressobj(), 0
    # By pieces: what zlib has not looked at is copied each time.
    for start in range(0, len(data), _PACKED):
        piece = data[start : start + _PACKED]
        try:
            while piece and total <= most:
                total += len(inflate.decompress(piece, _UNPACKED))
                piece = inflate.unconsumed_tail
        except zlib.error:  # HDF5 comes no further either, and says so
            break
        if inflate.eof or total > most:
            break
    return total


def _too_much(where: str, size: int) -> InputError:
    return InputError(
        f"{where} has a chunk that would decompress to more than its {size:,} bytes: the file is damaged"
    )
