"""Read and write files, one module per format. The functions for the rest of the library are listed here."""

from .candidates import read_candidates
from .features_h5 import Contents, load_sharded, load_side, save_features
from .loading import inspect, is_matrix_file, load, load_matrix
from .rankings import FORMATS, RunInfo, format_of, open_ranking, read_ranking, save_ranking
from .score_calibrations import read_calibration, save_calibration

__all__ = [
    "FORMATS",
    "Contents",
    "RunInfo",
    "format_of",
    "inspect",
    "is_matrix_file",
    "load",
    "load_matrix",
    "load_sharded",
    "load_side",
    "open_ranking",
    "read_calibration",
    "read_candidates",
    "read_ranking",
    "save_calibration",
    "save_features",
    "save_ranking",
]
