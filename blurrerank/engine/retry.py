"""Going on with half of the memory budget where the device has less than the budget says."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TypeVar

import torch

from ..compute.compute import Compute
from ..errors import BlurrerankError, BudgetError

T = TypeVar("T")


def halving_the_budget(
    rest: Callable[[Compute], Iterator[T]], compute: Compute, going_on: Callable[[], str]
) -> Iterator[T]:
    """Yield what `rest` does; where the device is out of memory, it is called again with half of the budget.

    Args:
        rest: yields what is still to do, so that a second call goes on where the first one ended.
        compute: how to compute at first.
        going_on: says where it goes on, for a warning.

    Raises:
        BlurrerankError: if the device is out of memory for the least that can be done at a time.
    """
    out_of_memory = ""
    while True:
        try:
            yield from rest(compute)
            return
        except BudgetError:
            if out_of_memory:
                raise BlurrerankError(f"{compute.device} is out of memory: {out_of_memory}") from None
            raise
        except torch.OutOfMemoryError as error:
            out_of_memory = str(error).partition(". ")[0]
        compute = compute.halved(out_of_memory, going_on())
