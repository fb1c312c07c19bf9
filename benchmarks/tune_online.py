"""Where the default parameters of k-reciprocal-online come from, and what they are worth.

    python benchmarks/tune_online.py FEATS

splits the identities of FEATS in two halves. On the first, and on seven variants of it or of generated
features, every setting of a grid is measured; the choice is the best mean mAP among those that cost no rank-1
anywhere. The second half, which the choice has not seen, is then reported likewise, with all other methods and
with bootstrap intervals over identities.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
from tabulate import tabulate

import blurrerank as br
from blurrerank.studies.synth import PRESETS, synthesize

METHOD = "k-reciprocal-online"
GRID = {"blur": (1, 6, 8, 10), "k1": (12, 15, 18), "k2": (4, 6), "lambda_value": (0.2, 0.3)}
DRAWS = 2000


def rows_of(data: br.FeatureSet, probe: np.ndarray, gallery: np.ndarray) -> br.FeatureSet:
    """Some rows of both sides."""
    return br.FeatureSet(
        *(
            br.Side(np.asarray(side.features[:])[rows], side.ids[rows], side.cams[rows])
            for side, rows in ((data.probe, probe), (data.gallery, gallery))
        )
    )


def half_of(data: br.FeatureSet, half: int) -> br.FeatureSet:
    """Half of the identities, and half of the junk and the distractors."""
    people = np.random.default_rng(7).permutation(np.unique(data.gallery.ids[data.gallery.ids > 0]))
    mine = people[half::2]
    gallery = np.isin(data.gallery.ids, mine)
    gallery[np.flatnonzero(data.gallery.ids <= 0)[half::2]] = True
    return rows_of(data, np.isin(data.probe.ids, mine), gallery)


def fewer(data: br.FeatureSet, images: int) -> br.FeatureSet:
    """At most so many gallery images of each identity."""
    random = np.random.default_rng(0)
    kept = data.gallery.ids <= 0
    for person in np.unique(data.gallery.ids[~kept]):
        kept[random.permutation(np.flatnonzero(data.gallery.ids == person))[:images]] = True
    return rows_of(data, np.ones(len(data.probe), bool), kept)


def seen_by(data: br.FeatureSet, change: Callable[[np.ndarray], np.ndarray]) -> br.FeatureSet:
    """The same with other features."""
    return br.FeatureSet(
        *(
            br.Side(change(np.asarray(side.features[:]).astype(np.float32)), side.ids, side.cams)
            for side in (data.probe, data.gallery)
        )
    )


def variants(data: br.FeatureSet, generated: br.FeatureSet) -> dict[str, br.FeatureSet]:
    """Sets that differ in how hard they are and in what helps."""
    order = np.random.default_rng(3).permutation(data.dim)
    projection = np.random.default_rng(0).standard_normal((data.dim, 48)).astype(np.float32)
    return {
        "as it is": data,
        "half of the dimensions": seen_by(data, lambda rows: rows[:, order[: data.dim // 2]]),
        "a quarter of them": seen_by(data, lambda rows: rows[:, order[-(data.dim // 4) :]]),
        "projected to 48": seen_by(data, lambda rows: rows @ projection),
        "4 images an identity": fewer(data, 4),
        "2 images an identity": fewer(data, 2),
        "generated": generated,
        "generated, 3 images": fewer(generated, 3),
    }


def measured(data: br.FeatureSet, method: str, **params: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Average precision, rank-1 and identity of every probe that has a match."""
    found = br.evaluate(br.rerank(data, method, depth=1, **params), data)
    valid = ~np.isnan(found.ap)
    return found.ap[valid], (found.first_match == 1)[valid], data.probe.ids[valid]


def gain(ours: np.ndarray, theirs: np.ndarray, ids: np.ndarray) -> str:
    """Difference of means in points, with the 95 % interval when identities are drawn again."""
    _, person = np.unique(ids, return_inverse=True)
    sums = np.bincount(person, ours.astype(float) - theirs.astype(float))
    counts = np.bincount(person)
    drawn = np.random.default_rng(0).integers(0, len(counts), (DRAWS, len(counts)))
    low, high = 100 * np.quantile(sums[drawn].sum(1) / counts[drawn].sum(1), (0.025, 0.975))
    return f"{100 * sums.sum() / counts.sum():+.2f} [{low:+.2f}, {high:+.2f}]"


def choose(sets: dict[str, br.FeatureSet]) -> dict[str, float]:
    """The setting with the best mean mAP among those that nowhere cost rank-1."""
    cosine = [measured(data, "cosine")[1].mean() for data in sets.values()]
    rows = []
    for values in product(*GRID.values()):
        params = dict(zip(GRID, values, strict=True))
        found = [measured(data, METHOD, **params) for data in sets.values()]
        least = min(rank1.mean() - before for (_, rank1, _), before in zip(found, cosine, strict=True))
        rows.append((np.mean([ap.mean() for ap, _, _ in found]), least, params))
        print(".", end="", file=sys.stderr, flush=True)
    rows.sort(key=lambda row: (row[1] < 0, -row[0]))
    print("\nchosen on the first half: mean mAP, and the least gain in rank-1 over cosine; the best five\n")
    best = [[100 * mean, 100 * least, *params.values()] for mean, least, params in rows[:5]]
    print(tabulate(best, ["mAP", "rank-1", *GRID], floatfmt=".2f"))
    return rows[0][2]


def report(sets: dict[str, br.FeatureSet], chosen: dict[str, float]) -> None:
    """All methods, and the gain of the chosen setting with its intervals."""
    methods = ("cosine", "lbr", "k-reciprocal", METHOD)
    others = ("cosine", "k-reciprocal")
    quality, gains = [], []
    for name, data in sets.items():
        found = {method: measured(data, method, **(chosen if method == METHOD else {})) for method in methods}
        cells = (f"{100 * ap.mean():.2f} / {100 * rank1.mean():.2f}" for ap, rank1, _ in found.values())
        quality.append([name, *cells])
        ours, ids = found[METHOD], found[METHOD][2]
        pairs = [(ours[what], found[other][what]) for other in others for what in (0, 1)]
        gains.append([name, *(gain(*pair, ids) for pair in pairs)])
    print("\nmAP / rank-1\n")
    print(tabulate(quality, ["", *methods]))
    print("\ngain in points, with 95 % intervals over identities\n")
    print(tabulate(gains, ["", *(f"{what}, over {other}" for other in others for what in ("mAP", "rank-1"))]))


def main() -> None:
    """Choose, then report."""
    data = br.load(sys.argv[1])
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "generated.h5")
        synthesize(path, replace(PRESETS["market1501"], dim=256))
        generated = br.load(path)
        first, second = (variants(half_of(data, half), half_of(generated, half)) for half in (0, 1))
    chosen = choose(first)
    print("\nthe second half, which the choice has not seen")
    report(second, chosen)
    print("\neverything")
    report({"as it is": data}, chosen)


if __name__ == "__main__":
    main()
