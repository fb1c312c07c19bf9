"""Features that stay on disk and are read in slices."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .hdf5 import reading
from .same_file import status
from .watched import Watched

if TYPE_CHECKING:
    pass


class StoredFeatures:
    """Features that stay on disk; slices are read on demand."""

    def __init__(self, dataset: Any, where: str, part: slice | None = None) -> None:
        """Keep `dataset`, or the rows `part` of it, and its file open; `where` is its name in messages."""
        self._dataset = dataset
        self._where = where
        # HDF5 keeps other programs that use it from writing meanwhile, and no others.
        self._watched = Watched(partial(status, dataset), where)
        self._first = 0 if part is None else part.start
        self.shape = tuple(dataset.shape) if part is None else (part.stop - part.start, *dataset.shape[1:])
        self.dtype = dataset.dtype

    def __getitem__(self, rows: slice, /) -> NDArray[Any]:
        """Read rows.

        Raises:
            InputError: if they cannot be read, or the file was changed since it was opened.
        """
        start, stop, _ = rows.indices(self.shape[0])
        with reading(self._where):
            found = np.asarray(self._dataset[self._first + start : self._first + stop])
        self._watched.check()
        return found
