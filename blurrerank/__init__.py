"""Re-ranking for re-identification: local blurring of each probe's neighbourhood, from features alone.

>>> import blurrerank as br
>>> data = br.load("examples/omniglot.h5")
>>> ranking = br.rerank(data, method="lbr", topn=50, sigma=0.1)
>>> round(br.evaluate(ranking, data).mAP, 4) > 0.6
True
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "1.0.0rc1"

if TYPE_CHECKING:
    from .data.features import FeatureSet as FeatureSet
    from .data.ranking import Ranking as Ranking
    from .data.side import Side as Side
    from .data.similarities import SimilaritySet as SimilaritySet
    from .engine.evaluate import evaluate as evaluate
    from .engine.graphs import neighbour_graph as neighbour_graph
    from .engine.neighbourhoods import rerank_neighbourhoods as rerank_neighbourhoods
    from .engine.open_set import calibrate as calibrate
    from .engine.open_set import evaluate_open_set as evaluate_open_set
    from .engine.rerank import local_blurring as local_blurring
    from .engine.rerank import rerank as rerank
    from .engine.rule import estimate_neighbourhoods as estimate_neighbourhoods
    from .errors import BlurrerankError as BlurrerankError
    from .errors import BlurrerankWarning as BlurrerankWarning
    from .errors import InputError as InputError
    from .errors import OutputError as OutputError
    from .errors import ParameterError as ParameterError
    from .evaluation.metrics import Metrics as Metrics
    from .evaluation.open_set import OpenSetMetrics as OpenSetMetrics
    from .evaluation.score_calibration import ScoreCalibration as ScoreCalibration
    from .evaluation.significance import Comparison as Comparison
    from .evaluation.significance import compare as compare
    from .files import load as load
    from .files import read_calibration as read_calibration
    from .files import read_candidates as read_candidates
    from .files import read_ranking as read_ranking
    from .files import save_calibration as save_calibration
    from .files import save_features as save_features
    from .files import save_ranking as save_ranking
    from .files.foreign import import_features as import_features
    from .graph.neighbour_graph import NeighbourGraph as NeighbourGraph
    from .graph.neighbourhoods import Neighbourhoods as Neighbourhoods
    from .graph.sparse_rows import SparseRows as SparseRows
    from .index.building import build_index as build_index
    from .index.changing import compact_index as compact_index
    from .index.changing import remove_from_index as remove_from_index
    from .index.gallery_index import GalleryIndex as GalleryIndex
    from .report import write_report as write_report
    from .report.plots import draw as draw
    from .search.approximate import faiss_candidates as faiss_candidates
    from .search.approximate import recall as recall
    from .spectral.transform import SpectralFeatureTransform as SpectralFeatureTransform
    from .spectral.transform import affinity as affinity
    from .spectral.transform import spectral_transform as spectral_transform
    from .spectral.transform import transition as transition
    from .studies.before_after import before_and_after as before_and_after
    from .studies.fusion import fuse as fuse
    from .studies.tune import tune as tune
    from .studies.tuning import Tuning as Tuning

# Where each public name lives. Names are looked up when first used, so that `import blurrerank`, and with it
# `blurrerank --help`, costs nothing.
_HOMES = {
    "data.features": ("FeatureSet", "Side"),
    "data.ranking": ("Ranking",),
    "data.similarities": ("SimilaritySet",),
    "engine.evaluate": ("evaluate",),
    "engine.graphs": ("neighbour_graph",),
    "engine.neighbourhoods": ("rerank_neighbourhoods",),
    "engine.open_set": ("calibrate", "evaluate_open_set"),
    "engine.rerank": ("local_blurring", "rerank"),
    "engine.rule": ("estimate_neighbourhoods",),
    "errors": ("BlurrerankError", "BlurrerankWarning", "InputError", "OutputError", "ParameterError"),
    "evaluation.metrics": ("Metrics",),
    "evaluation.open_set": ("OpenSetMetrics",),
    "evaluation.score_calibration": ("ScoreCalibration",),
    "evaluation.significance": ("Comparison", "compare"),
    "graph.neighbour_graph": ("NeighbourGraph",),
    "graph.neighbourhoods": ("Neighbourhoods",),
    "graph.sparse_rows": ("SparseRows",),
    "files": (
        "load",
        "read_calibration",
        "read_candidates",
        "read_ranking",
        "save_calibration",
        "save_features",
        "save_ranking",
    ),
    "files.foreign": ("import_features",),
    "index.building": ("build_index",),
    "index.changing": ("compact_index", "remove_from_index"),
    "index.gallery_index": ("GalleryIndex",),
    "report": ("write_report",),
    "report.plots": ("draw",),
    "search.approximate": ("faiss_candidates", "recall"),
    "spectral.transform": ("SpectralFeatureTransform", "affinity", "spectral_transform", "transition"),
    "studies.before_after": ("before_and_after",),
    "studies.fusion": ("fuse",),
    "studies.tune": ("tune",),
    "studies.tuning": ("Tuning",),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = ["__version__", *sorted(_HOME_OF)]


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module 'blurrerank' has no attribute {name!r}")
    value = getattr(import_module(f".{_HOME_OF[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
