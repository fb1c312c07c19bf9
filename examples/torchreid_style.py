"""An evaluation loop in the style of torchreid and fast-reid: features, a distance matrix, CMC and mAP.

python examples/torchreid_style.py
"""

from pathlib import Path

import h5py
import numpy as np

# The one line to change: in torchreid it reads `from torchreid.utils import re_ranking`.
from blurrerank.compat import re_ranking


def euclidean_distances(a, b):
    squares = (a**2).sum(axis=1)[:, None] + (b**2).sum(axis=1) - 2 * a @ b.T
    return np.sqrt(np.maximum(squares, 0))


def evaluate(distmat, q_pids, g_pids, q_camids, g_camids, max_rank=50):
    """CMC up to `max_rank` and mAP, over the probes with a match on another camera."""
    curves, precisions = [], []
    for p, order in enumerate(np.argsort(distmat, axis=1)):
        seen = (g_pids[order] == q_pids[p]) & (g_camids[order] == q_camids[p])
        match = g_pids[order[~seen]] == q_pids[p]
        if match.any():
            ranks = 1 + np.flatnonzero(match)
            curves.append(np.arange(1, max_rank + 1) >= ranks[0])
            precisions.append(np.mean(np.arange(1, len(ranks) + 1) / ranks))
    return np.mean(curves, axis=0), np.mean(precisions)


with h5py.File(Path(__file__).with_name("omniglot.h5")) as file:
    qf, gf = (file[f"{side}/features"][()].astype(np.float32) for side in ("probe", "gallery"))
    q_pids, g_pids = (file[f"{side}/ids"][()] for side in ("probe", "gallery"))
    q_camids, g_camids = (file[f"{side}/cams"][()] for side in ("probe", "gallery"))
kept = g_pids != -1  # junk
gf, g_pids, g_camids = gf[kept], g_pids[kept], g_camids[kept]
qf, gf = (features / np.linalg.norm(features, axis=1, keepdims=True) for features in (qf, gf))

distmat = euclidean_distances(qf, gf)
reranked = re_ranking(distmat, euclidean_distances(qf, qf), euclidean_distances(gf, gf))
for name, matrix in (("baseline", distmat), ("re-ranked", reranked)):
    cmc, mAP = evaluate(matrix, q_pids, g_pids, q_camids, g_camids)
    print(f"{name:9}  mAP {mAP:.4f}  rank-1 {cmc[0]:.4f}  rank-5 {cmc[4]:.4f}")
