"""Options that say where the candidates of `run` come from: exact search, FAISS, or a file."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import click

from ..errors import ParameterError
from .options import FILE, Runtime

if TYPE_CHECKING:
    from ..data.features import FeatureSet
    from ..data.given_lists import GivenLists
    from ..methods import AnyMethod

F = TypeVar("F", bound=Callable[..., Any])

_FACTORY = "IVF1024,Flat"
"""`approximate.DEFAULT_FACTORY`, which is too heavy to import for a help text; a test compares them."""

_LOW_RECALL = 0.9
"""Below this a hint is given: re-ranking cannot make up for a tenth of the lists."""

_OPTIONS = (
    click.option(
        "--candidates",
        type=FILE,
        metavar="FILE",
        help="Do not search, but re-rank these lists of an approximate index or a vector database: a ranking "
        "in any format that -o writes, .npz or .npy with indices, .ibin, or HDF5 with neighbors as in "
        "ann-benchmarks; - is standard input. Only with lbr and cosine.",
    ),
    click.option(
        "--search",
        type=click.Choice(["exact", "faiss"]),
        help="How candidates are found. faiss needs the extra blurrerank[faiss], works only with lbr and "
        "cosine, and prints its recall against exact search.  [default: exact; with --index, the search "
        "it was built for]",
    ),
    click.option(
        "--index-factory",
        metavar="SPEC",
        help=f"FAISS index to build, in the notation of faiss.index_factory.  [default: {_FACTORY}]",
    ),
    click.option(
        "--nprobe",
        type=click.IntRange(min=1),
        metavar="N",
        help="Number of clusters that a FAISS IVF index searches per probe.  [default: 1]",
    ),
    click.option(
        "--effort",
        type=click.IntRange(min=1),
        metavar="N",
        help="How much of an index built with --ann is searched per probe: number of candidates (hnsw) or of "
        "clusters (ivf).  [default: as the index was built]",
    ),
)


@dataclass(frozen=True)
class Source:
    """Where candidates come from: a file, FAISS, or, with neither, exact search."""

    file: str | None
    search: str | None
    index_factory: str | None
    nprobe: int | None
    effort: int | None

    @property
    def exact(self) -> bool:
        """Whether the whole gallery is searched."""
        return self.file is None and self.search != "faiss"

    def check(self, method: AnyMethod, *, feats: str, index: str | None) -> None:
        """Refuse options that contradict each other, or a method that candidates are not enough for.

        Raises:
            ParameterError: saying which.
        """
        from ..engine.request import check_reranks_candidates

        if self.file is not None and self.search is not None:
            raise ParameterError("--candidates and --search are two sources of lists: choose one")
        for option, value in (("--index-factory", self.index_factory), ("--nprobe", self.nprobe)):
            if value is not None and self.search != "faiss":
                raise ParameterError(f"{option} configures FAISS: add --search faiss")
        if self.search == "faiss" and index is not None:
            raise ParameterError("an index has its own search: leave --search faiss out")
        if self.effort is not None and index is None:
            raise ParameterError("--effort applies to an index: add --index FILE")
        if feats == "-" and self.file is not None:
            raise ParameterError(
                "--candidates are lists for probes in a file, not for probes from standard input: name the file"
            )
        if not self.exact:
            check_reranks_candidates(method)

    def find(
        self, data: FeatureSet, method: AnyMethod, depth: int | str | None, runtime: Runtime
    ) -> tuple[GivenLists | None, dict[str, Any]]:
        """The lists, None for exact search, and what is to be told of them, ready for JSON."""
        if self.exact:
            return None, {"search": "exact"}
        if self.file is not None:
            from ..files.candidates import read_candidates

            lists = read_candidates(sys.stdin.buffer if self.file == "-" else self.file, data)
            return lists, {"search": None, "shortest_list": lists.shortest, "longest_list": lists.depth}
        return self._faiss(data, method, depth, runtime)

    def _faiss(
        self, data: FeatureSet, method: AnyMethod, depth: int | str | None, runtime: Runtime
    ) -> tuple[GivenLists, dict[str, Any]]:
        from ..search.approximate import faiss_candidates, recall

        factory, size = _FACTORY if self.index_factory is None else self.index_factory, len(data.gallery)
        topn = method.depth(size)
        lists = faiss_candidates(
            data,
            max(topn, size if depth == "all" else int(depth or 0)),
            index_factory=factory,
            nprobe=self.nprobe,
            memory=runtime.memory,
            progress=runtime.progress("searching"),
        )
        found = recall(data, lists, topn, device=runtime.device, memory=runtime.memory)
        number = len(data.probe)
        which = f"all {number} probes" if found.probes == number else f"{found.probes} of {number} probes"
        runtime.note(f"{lists.source}: recall@{found.topn} {found.value:.4f} against exact search ({which})")
        if found.value < _LOW_RECALL:
            runtime.note(
                f"note: {1 - found.value:.0%} of the exact results are missing: raise --nprobe, or choose an "
                "--index-factory of fewer lists"
            )
        return lists, {
            "search": "faiss",
            "index_factory": factory,
            "nprobe": self.nprobe,
            "recall": found.value,
            "recall_at": found.topn,
            "recall_probes": found.probes,
            "shortest_list": lists.shortest,
            "longest_list": lists.depth,
        }


def candidates_options(command: F) -> F:
    """--candidates, --search, --index-factory, --nprobe and --effort, collected as `source`."""

    def collected(**arguments: Any) -> Any:
        names = ("candidates", "search", "index_factory", "nprobe", "effort")
        return command(source=Source(*(arguments.pop(name) for name in names)), **arguments)

    collected.__doc__ = command.__doc__
    collected.__name__ = command.__name__
    collected.__click_params__ = getattr(command, "__click_params__", [])  # type: ignore[attr-defined]
    for option in reversed(_OPTIONS):
        collected = option(collected)
    return collected  # type: ignore[return-value]
