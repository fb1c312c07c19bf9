"""`blurrerank run --index FILE -`: probes from standard input, each answered as soon as possible."""

from __future__ import annotations

import json
import sys
import threading
import warnings
from collections.abc import Iterable, Iterator
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any, TypeVar, cast

import click

from .options import Runtime

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ..compute.compute import Compute
    from ..engine.request import Request
    from ..evaluation.score_calibration import Rejection
    from ..files.probes import Arrived
    from ..index.gallery_index import GalleryIndex
    from ..methods import AnyMethod

T = TypeVar("T")

# Probes that are answered together at most.
_TOGETHER = 64


def answer_stream(
    index: GalleryIndex,
    method: AnyMethod,
    request: Request,
    runtime: Runtime,
    rejection: Rejection | None = None,
) -> None:
    """Answer each probe on standard input with a line of JSON on standard output.

    What arrives while others are answered is answered together, which changes nothing but how long it takes.
    """
    from io import BufferedReader

    from ..errors import BlurrerankWarning
    from ..files.probes import arriving

    compute = runtime.compute(device=index.device)
    warnings.simplefilter("once", BlurrerankWarning)  # every probe of a camera has the same reason
    failed = number = 0
    told: set[int | str | None] = set()
    for some in arrived_together(arriving(cast(BufferedReader, sys.stdin.buffer), index.dim), _TOGETHER):
        lines, problems = _answers(index, method, request, compute, rejection, some, number, told)
        number, failed = number + len(some), failed + problems
        sys.stdout.buffer.write("".join(lines).encode())
        sys.stdout.buffer.flush()
    if failed:
        raise click.ClickException(f"{failed} of {number} lines were not valid probes: their answers say why")


def arrived_together(items: Iterable[T], most: int) -> Iterator[list[T]]:
    """Yield lists of what has arrived since the last one, at least one item and at most so many.

    An error of `items` is raised after what came before it.
    """
    queue: SimpleQueue[T | BaseException | None] = SimpleQueue()

    def read() -> None:
        try:
            for item in items:
                queue.put(item)
            queue.put(None)
        except BaseException as error:  # it belongs to whoever waits for items
            queue.put(error)

    threading.Thread(target=read, daemon=True).start()
    while True:
        some: list[T] = []
        last: T | BaseException | None = queue.get()
        while last is not None and not isinstance(last, BaseException):
            some.append(last)
            if len(some) == most:
                break
            try:
                last = queue.get_nowait()
            except Empty:
                break
        if some:
            yield some
        if isinstance(last, BaseException):
            raise last
        if last is None:
            return


def _answers(
    index: GalleryIndex,
    method: AnyMethod,
    request: Request,
    compute: Compute,
    rejection: Rejection | None,
    some: list[Arrived],
    first: int,
    told: set[int | str | None],
) -> tuple[list[str], int]:
    """The answers to some probes, the first of which has a number, and how many of them say what is wrong.

    What is known of a camera is told with its first probe; `told` are those that there was one of.
    """
    import numpy as np

    from ..data.side import Side
    from ..engine.rerank import rank
    from ..errors import BlurrerankWarning, InputError
    from ..files.jsonl import line

    problems = {place: probe.problem for place, probe in enumerate(some) if probe.problem is not None}
    for place, probe in enumerate(some):
        if probe.features is not None and probe.cam is None and method.needs_cameras:
            problems[place] = f"probe {first + place} has no cam: method {method.name} needs cameras"
    good = [place for place in range(len(some)) if place not in problems]
    found: dict[int, tuple[NDArray[Any], NDArray[Any]]] = {}
    # Together are those of one length that have cameras, and that have none; the first of a camera is alone.
    kinds: dict[tuple[type, int, int | None], list[int]] = {}
    for place in good:
        features, cam = some[place].features, some[place].cam
        assert features is not None
        new = method.needs_cameras and cam not in told
        told.add(cam)
        kinds.setdefault((type(cam), features.shape[1], place if new else None), []).append(place)
    for (kind, _, new_place), places in kinds.items():
        features = np.concatenate([np.asarray(some[place].features, dtype=np.float64) for place in places])
        cams = None if kind is type(None) else np.array([some[place].cam for place in places])
        try:
            data = index.features(Side(features, cams=cams, label=f"probe {first + places[0]}"))
        except InputError as error:
            if len(places) > 1:  # which of them it is shows when each is looked at by itself
                parts = [
                    _answers(index, method, request, compute, rejection, [one], first + n, told)
                    for n, one in enumerate(some)
                ]
                return [text for lines, _ in parts for text in lines], sum(count for _, count in parts)
            problems[places[0]] = str(error)
            continue
        with warnings.catch_warnings():
            if method.needs_cameras and new_place is None:
                warnings.simplefilter("ignore", BlurrerankWarning)
            ranking = rank(data, method, request, compute)
        found |= {place: (ranking.indices[row], ranking.scores[row]) for row, place in enumerate(places)}
    lines = []
    for place, probe in enumerate(some):
        if place in problems:
            named = {} if probe.name is None else {"name": probe.name}
            answer = {"probe": first + place, **named, "error": problems[place]}
            lines.append(json.dumps(answer, ensure_ascii=False) + "\n")
        else:
            indices, scores = found[place]
            verdict = None if rejection is None else rejection.verdicts(scores[None]).of(0)
            lines.append(line(first + place, probe.name, indices, scores, index.gallery.names, verdict))
    return lines, len(problems)
