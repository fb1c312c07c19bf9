"""`Group`: the processes that `torchrun` started for one run, and the communication between them.

All communication uses the methods of `Group`. All processes must call them in the same order. They block until
the others arrive; if a process is lost, they raise `LostError`.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from ..errors import BlurrerankError

SILENCE = 30.0
"""Seconds without a heartbeat after which a process counts as lost. A process that dies is noticed at once,
because its connections close; this timeout is for machines that stop responding."""
ARRIVAL = 300.0
"""Seconds within which all processes of a run must have started."""

# Seconds between heartbeats.
_BEAT = 4.0
# Processes wait as long as the slowest one needs, while its heartbeat continues.
_PATIENCE = timedelta(days=7)
_ANSWER = timedelta(seconds=SILENCE)


class LostError(BlurrerankError):
    """Another process of the run is gone, or has given up."""

    def __init__(self) -> None:
        super().__init__("another process of this run was lost: nothing was written; start it again")


def expected() -> int:
    """Return the number of processes of this run, from the environment; 1 outside `torchrun`."""
    if not {"RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"} <= os.environ.keys():
        return 1
    return int(os.environ["WORLD_SIZE"])


class Group:
    """The processes of one run.

    Attributes:
        rank: number of this process, from 0.
        size: number of processes, 2 or more.
        device: device of this process, once connected.
        closed: whether `close` was called.
    """

    device: str = "cpu"
    closed: bool = False

    def __init__(self, arrival: float = ARRIVAL) -> None:
        """Wait for the other processes, at the address in the environment.

        Args:
            arrival: seconds to wait for the others.

        Raises:
            LostError: if not all of them arrive.
        """
        # Not every build of torch has these.
        from torch.distributed.distributed_c10d import PrefixStore
        from torch.distributed.rendezvous import rendezvous

        stores: Any = dist  # its type stubs do not export the stores
        try:
            self._meeting, self.rank, self.size = next(rendezvous("env://", timeout=timedelta(seconds=arrival)))
            # Open a second connection to the same store: a connection that waits serves no other request.
            address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
            attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
            own = stores.TCPStore(address, port, is_master=False, timeout=_ANSWER)
            self._store = PrefixStore(f"blurrerank/{attempt}", own)
            self._meet(arrival)
        except RuntimeError as error:
            raise LostError from error
        self._pulse = _Pulse(self._store, self.rank, self.size)
        self._pulse.start()

    def connect(self, device: str) -> None:
        """Initialise torch.distributed, with NCCL for tensors on GPUs and gloo for others.

        Args:
            device: `auto`, `cpu` or `cuda`; with GPUs, each process of a machine uses its own.

        Raises:
            BlurrerankError: if there are more processes than GPUs on this machine.
            LostError: if a process is gone.
        """
        from torch.distributed.distributed_c10d import PrefixStore

        self.device = _device_for(device)
        if self.device.startswith("cuda"):
            torch.cuda.set_device(self.device)
        failed: list[Exception] = []

        def connect() -> None:
            try:
                dist.init_process_group(
                    "cpu:gloo,cuda:nccl" if self.device.startswith("cuda") else "gloo",
                    store=PrefixStore("group", self._meeting),
                    rank=self.rank,
                    world_size=self.size,
                    timeout=_PATIENCE,
                )
            except Exception as error:
                failed.append(error)

        # The call blocks signals while it waits for the others: run it in a thread.
        thread = threading.Thread(target=connect, daemon=True, name="connect")
        thread.start()
        while thread.is_alive():
            if self._pulse.lost:
                raise LostError
            thread.join(0.01)
        if failed:
            raise LostError from failed[0]

    def _meet(self, arrival: float) -> None:
        """Wait until all processes have arrived, by polling: one long call would block signals."""
        self._store.set(_beat_of(self.rank), "0")
        names = [_beat_of(rank) for rank in range(self.size)]
        limit = time.monotonic() + arrival
        while not self._store.check(names):
            if time.monotonic() > limit:
                raise LostError
            time.sleep(0.02)

    def claim(self, what: str) -> bool:
        """Return whether this process is the first to claim `what`; the others need not take part."""
        try:
            return bool(self._store.add(f"claim/{what}", 1) == 1)
        except RuntimeError:  # the process that hosts the store is gone
            return True

    def claimed(self, what: str) -> bool:
        """Return whether a process of the group has claimed `what`."""
        try:
            return bool(self._store.check([f"claim/{what}"]))
        except RuntimeError:
            return False

    def give_up(self) -> None:
        """Tell the other processes not to wait for this one."""
        try:
            self._store.set("lost", str(self.rank))
        except RuntimeError:  # the store is gone, so they have noticed
            return
        finally:
            self._pulse.stop()

    def close(self) -> None:
        """Disconnect after all work is done."""
        if self.closed:
            return
        self.closed = True
        self._pulse.stop()
        dist.destroy_process_group()

    def _wait(self, start: Callable[[], Any]) -> None:
        """Start a collective operation and wait until it completes or a process is lost."""
        pause = 1e-5
        try:
            work = start()
            while not work.is_completed():
                if self._pulse.lost:
                    raise LostError
                time.sleep(pause)  # short, because signals are handled between two sleeps
                pause = min(2 * pause, 2e-3)
            work.wait()
        except RuntimeError as error:
            raise LostError from error

    def barrier(self) -> None:
        """Wait until every process has called this."""
        self.all_reduce(torch.zeros(1), "sum")

    def all_reduce(self, values: torch.Tensor, how: str) -> torch.Tensor:
        """Return the elementwise `sum`, `min` or `max` over the processes; `values` may be overwritten."""
        op = {"sum": dist.ReduceOp.SUM, "min": dist.ReduceOp.MIN, "max": dist.ReduceOp.MAX}[how]
        values = values.contiguous()
        if values.numel():
            self._wait(lambda: dist.all_reduce(values, op, async_op=True))
        return values

    def all_reduce_min(self, numbers: Sequence[int]) -> list[int]:
        """Return the minimum of each number over the processes."""
        smallest: list[int] = self.all_reduce(torch.tensor(numbers, dtype=torch.int64), "min").tolist()
        return smallest

    def broadcast(self, values: torch.Tensor, source: int) -> torch.Tensor:
        """Return the `values` of process `source`; the others', of equal shape and dtype, are overwritten."""
        self._wait(lambda: dist.broadcast(values, source, async_op=True))
        return values

    def all_to_all(self, parts: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Send one tensor to each process.

        Args:
            parts: an (n, ...) tensor for each process; n may differ and be 0, the other sizes must be equal.

        Returns:
            The tensors that each process sent to this one, in order of rank.
        """
        counts = torch.tensor([len(part) for part in parts], dtype=torch.int64)
        coming = torch.empty_like(counts)
        self._wait(lambda: dist.all_to_all_single(coming, counts, async_op=True))
        given = torch.cat(list(parts))
        found = given.new_empty(int(coming.sum()), *given.shape[1:])
        self._wait(
            lambda: dist.all_to_all_single(found, given, coming.tolist(), counts.tolist(), async_op=True)
        )
        return list(torch.split(found, coming.tolist()))

    def all_gather(self, rows: torch.Tensor) -> torch.Tensor:
        """Return the (n, ...) `rows` of all processes, concatenated in order of rank; n may differ."""
        return torch.cat(self.all_to_all([rows] * self.size))

    def gather_to_first(self, rows: torch.Tensor) -> torch.Tensor:
        """Return the concatenated (n, ...) `rows` of all processes on the first one; no rows on the others."""
        return torch.cat(self.all_to_all([rows, *[rows[:0]] * (self.size - 1)]))

    def all_gather_text(self, text: str) -> list[str]:
        """Return the texts of all processes, in order of rank, in each of them."""
        said = torch.frombuffer(bytearray(text.encode()), dtype=torch.uint8) if text else _NOTHING
        return [bytes(part.tolist()).decode() for part in self.all_to_all([said] * self.size)]

    def share(self, count: int, rank: int | None = None) -> slice:
        """Return the slice of `count` items that belongs to this process, or to `rank`, in order of rank."""
        rank = self.rank if rank is None else rank
        return slice(count * rank // self.size, count * (rank + 1) // self.size)


_NOTHING = torch.empty(0, dtype=torch.uint8)


class _Pulse(threading.Thread):
    """Sends heartbeats and watches those of the next process: an unresponsive machine closes no connection.

    Attributes:
        lost: whether a process is known to be gone.
    """

    def __init__(self, store: Any, rank: int, size: int) -> None:
        super().__init__(daemon=True, name="pulse")
        self.lost = False
        self._store, self._rank, self._watched = store, rank, (rank + 1) % size
        self._over = threading.Event()

    def stop(self) -> None:
        self._over.set()
        self.join(timeout=2 * _BEAT)

    def run(self) -> None:
        beat, seen, since = 0, b"", time.monotonic()
        while not self._over.wait(_BEAT):
            beat += 1
            try:
                self._store.set(_beat_of(self._rank), str(beat))
                theirs = self._store.get(_beat_of(self._watched))
                if theirs != seen:
                    seen, since = theirs, time.monotonic()
                elif time.monotonic() - since > SILENCE:
                    self._store.set("lost", str(self._watched))
                self.lost = self._store.check(["lost"])
            except RuntimeError:  # the process that hosts the store is gone
                self.lost = True
            if self.lost:
                return


def _beat_of(rank: int) -> str:
    return f"beat/{rank}"


def _device_for(name: str) -> str:
    """Return the device of this process for the requested device `name`."""
    if name == "auto" and not torch.cuda.is_available():
        return "cpu"
    if name not in ("auto", "cuda"):
        return name
    local = int(os.environ.get("LOCAL_RANK", os.environ["RANK"]))
    if local >= torch.cuda.device_count():
        raise BlurrerankError(
            f"torch sees {torch.cuda.device_count()} GPUs, but there are more processes on this machine, and "
            "each needs its own GPU: start fewer processes, or use --device cpu"
        )
    return f"cuda:{local}"
