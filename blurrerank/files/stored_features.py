"""Features that stay on disk and are read in slices."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..data.checks import flat_shape
from .hdf5 import reading
from .watched import Watched, status


class StoredFeatures:
    """Features that stay on disk; slices are read on demand."""

    def __init__(self, dataset: Any, where: str, part: slice | None = None, *, turned: bool = False) -> None:
        """Keep `dataset`, or the rows `part` of it, and its file open.

        Args:
            dataset: (N, D), or with further axes of length 1.
            where: its name in messages.
            part: some of its rows.
            turned: whether it is (D, N).
        """
        self._dataset, self._where, self._turned = dataset, where, turned
        # HDF5 keeps other programs that use it from writing meanwhile, and no others.
        self._watched = Watched(partial(status, dataset), where)
        self._first = 0 if part is None else part.start
        shape = flat_shape(dataset.shape) or tuple(dataset.shape)
        shape = shape[::-1] if turned else shape
        self.shape = shape if part is None else (part.stop - part.start, *shape[1:])
        self.dtype = dataset.dtype

    def __getitem__(self, rows: slice, /) -> NDArray[Any]:
        """Read rows.

        Raises:
            InputError: if they cannot be read, or the file was changed since it was opened.
        """
        start, stop, _ = rows.indices(self.shape[0])
        taken = slice(self._first + start, self._first + stop)
        with reading(self._where):
            found = np.asarray(self._dataset[:, taken].T if self._turned else self._dataset[taken])
        self._watched.check()
        return found.reshape(stop - start, *self.shape[1:])
