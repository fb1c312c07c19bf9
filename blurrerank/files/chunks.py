"""Check the compressed chunks of HDF5 datasets: their filters and their decompressed size.

HDF5 decompresses a chunk completely and compares it with the declared size only afterwards.
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
    """Return the codes of a dataset's filters, in order."""
    return [code for code, _ in _filters(dataset)]


def _filters(dataset: Any) -> list[tuple[int, tuple[int, ...]]]:
    settings = dataset.id.get_create_plist()
    filters = map(settings.get_filter, range(settings.get_nfilters()))
    return [(code, values) for code, _, values, _ in filters]


def check_chunks(dataset: Any, size: int, where: str) -> None:
    """Check that no chunk of a dataset would decompress to more than the declared chunk size.

    The size of a deflated chunk is known only after decompression: a chunk that could become too large is
    decompressed twice, here and by HDF5. Separately installed filters are trusted.

    Args:
        dataset: an h5py dataset.
        size: decompressed size of a chunk, in bytes.
        where: name of the dataset in messages.

    Raises:
        InputError: if a chunk is too large, or if the dataset has several compression filters, whose ratios
            multiply.
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
    """Call `look` with the HDF5 chunk info of each written chunk; HDF5 can iterate over them since 1.12.3."""
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
