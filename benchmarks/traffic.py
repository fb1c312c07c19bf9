"""How many bytes each process of a run receives from the others.

    torchrun --nproc-per-node 3 benchmarks/traffic.py index examples/omniglot.h5 -o build/g.index.h5 --force

Counted are the values that processes exchange, not what the network adds. A sum over k processes counts as a
ring: each receives 2 (k - 1) / k of the values.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import torch

from blurrerank.cli import main
from blurrerank.compute.processes import Group


def bytes_of(values: torch.Tensor) -> int:
    """The bytes of a tensor."""
    return values.numel() * values.element_size()


def counted(received: dict[str, int]) -> None:
    """Let a group note what comes in."""
    exchange, tell, reduce = Group.all_to_all, Group.broadcast, Group.all_reduce

    def all_to_all(self: Group, parts: Any) -> list[torch.Tensor]:
        found = exchange(self, parts)
        received["rank"] = self.rank
        received["bytes"] += sum(bytes_of(part) for rank, part in enumerate(found) if rank != self.rank)
        return found

    def broadcast(self: Group, values: torch.Tensor, source: int) -> torch.Tensor:
        received["bytes"] += bytes_of(values) * (self.rank != source)
        return tell(self, values, source)

    def all_reduce(self: Group, values: torch.Tensor, how: str) -> torch.Tensor:
        received["bytes"] += 2 * (self.size - 1) * bytes_of(values) // self.size
        return reduce(self, values, how)

    methods: dict[str, Callable[..., Any]] = {
        "all_to_all": all_to_all,
        "broadcast": broadcast,
        "all_reduce": all_reduce,
    }
    for name, method in methods.items():
        setattr(Group, name, method)


if __name__ == "__main__":
    received = {"rank": 0, "bytes": 0}
    counted(received)
    try:
        main(sys.argv[1:])
    finally:
        print(f"process {received['rank']} received {received['bytes']:,} bytes", file=sys.stderr)
