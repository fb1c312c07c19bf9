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

__version__ = "0.1.0"

if TYPE_CHECKING:
    from .approximate import faiss_candidates as faiss_candidates
    from .approximate import recall as recall
    from .before_after import before_and_after as before_and_after
    from .errors import BlurrerankError as BlurrerankError
    from .errors import BlurrerankWarning as BlurrerankWarning
    from .errors import InputError as InputError
    from .errors import OutputError as OutputError
    from .errors import ParameterError as ParameterError
    from .features import FeatureSet as FeatureSet
    from .features import Side as Side
    from .formats import load as load
    from .formats import read_candidates as read_candidates
    from .formats import read_ranking as read_ranking
    from .formats import save_features as save_features
    from .formats import save_ranking as save_ranking
    from .importers import import_features as import_features
    from .index import GalleryIndex as GalleryIndex
    from .index import build_index as build_index
    from .metrics import Metrics as Metrics
    from .pipeline import evaluate as evaluate
    from .pipeline import local_blurring as local_blurring
    from .pipeline import rerank as rerank
    from .plots import draw as draw
    from .ranking import Ranking as Ranking
    from .report import write_report as write_report
    from .significance import Comparison as Comparison
    from .significance import compare as compare
    from .spectral import SpectralFeatureTransform as SpectralFeatureTransform
    from .spectral import affinity as affinity
    from .spectral import spectral_transform as spectral_transform
    from .spectral import transition as transition

# Where each public name lives. Names are looked up when first used, so that `import blurrerank`, and with it
# `blurrerank --help`, costs nothing.
_HOMES = {
    "approximate": ("faiss_candidates", "recall"),
    "before_after": ("before_and_after",),
    "errors": ("BlurrerankError", "BlurrerankWarning", "InputError", "OutputError", "ParameterError"),
    "features": ("FeatureSet", "Side"),
    "formats": ("load", "read_candidates", "read_ranking", "save_features", "save_ranking"),
    "importers": ("import_features",),
    "index": ("GalleryIndex", "build_index"),
    "metrics": ("Metrics",),
    "pipeline": ("evaluate", "local_blurring", "rerank"),
    "plots": ("draw",),
    "ranking": ("Ranking",),
    "report": ("write_report",),
    "significance": ("Comparison", "compare"),
    "spectral": ("SpectralFeatureTransform", "affinity", "spectral_transform", "transition"),
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
