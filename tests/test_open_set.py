"""Open-set metrics against plain loops and scikit-learn, calibration against the latter, rejection by `run`."""

from __future__ import annotations

import csv
import json
import os
import re
from contextlib import nullcontext
from dataclasses import replace

import h5py
import numpy as np
import pytest
from conftest import ROOT, features, shell
from hypothesis import given
from hypothesis import strategies as st
from sklearn.isotonic import IsotonicRegression
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score, roc_curve
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from test_metrics import labelled

import blurrerank as br

PAGE = (ROOT / "docs/thresholds.md").read_text()


def by_hand(ranking, data, protocol):
    """Walk down each list: (score, right, known, identity rank) of each probe that is not junk, by row."""
    found = {}
    for row, own in enumerate(data.probe.ids.tolist()):
        if own == -1:
            continue

        def dropped(item, row=row, own=own):
            if data.gallery.ids[item] == -1:
                return True
            by_camera = (
                protocol == "market1501" and data.probe.cams is not None and data.gallery.cams is not None
            )
            same = own > 0 and data.gallery.ids[item] == own
            return by_camera and same and data.gallery.cams[item] == data.probe.cams[row]

        listed = zip(ranking.indices[row].tolist(), ranking.scores[row].tolist(), strict=True)
        left = [(item, score) for item, score in listed if item >= 0 and not dropped(item)]
        known = any(
            own > 0 and data.gallery.ids[item] == own and not dropped(item) for item in range(len(data.gallery))
        )
        rank, seen = np.inf if known else np.nan, set()
        for item, _ in left:
            identity = int(data.gallery.ids[item])
            seen.add(("distractor", item) if identity == 0 else identity)
            if known and identity == own:
                rank = len(seen)
                break
        right = bool(left) and own > 0 and data.gallery.ids[left[0][0]] == own
        found[row] = (left[0][1] if left else -np.inf, right, known, rank)
    return found


def mean_by_identity(values, ids):
    return np.mean([np.mean(values[ids == one]) for one in np.unique(ids)]) if len(ids) else np.nan


def check(metrics, ranking, data, protocol):
    found = by_hand(ranking, data, protocol)
    ids = data.probe.ids[list(found)]
    scores, right, known, rank = (np.array(column) for column in zip(*found.values(), strict=True))
    known = known.astype(bool)
    first = metrics.first
    np.testing.assert_array_equal(first.scores[list(found)], scores.astype(np.float32))
    np.testing.assert_array_equal(first.known[list(found)], known)
    np.testing.assert_array_equal(first.identity_rank[list(found)], rank)
    assert (metrics.known, metrics.unknown) == (known.sum(), (~known).sum())
    np.testing.assert_allclose(metrics.balanced_accuracy, mean_by_identity(right[known], ids[known]))
    for k in (1, 5, 10):
        expected = np.mean(rank[known] <= k) if known.any() else np.nan
        assert metrics.identity_top[k] == pytest.approx(expected, nan_ok=True)
    if known.all() or not known.any():
        assert np.isnan(metrics.auroc)
    else:
        finite = np.maximum(scores, -9.0)  # scikit-learn takes no infinite scores
        assert metrics.auroc == pytest.approx(roc_auc_score(known, finite))
        fpr, tpr, _ = roc_curve(known, finite, drop_intermediate=False)
    for point in metrics.points:
        if np.isnan(point.threshold):
            assert known.all()
            assert np.isnan([point.tpr, point.fpr, point.fnir, point.baks, point.baus]).all()
            continue
        accepted = scores >= point.threshold
        good = accepted & right
        expected = [
            np.mean(accepted[known]) if known.any() else np.nan,
            np.mean(accepted[~known]) if not known.all() else np.nan,
            np.mean(~good[known]) if known.any() else np.nan,
            mean_by_identity(good[known], ids[known]),
            mean_by_identity(~accepted[~known], ids[~known]),
        ]
        np.testing.assert_allclose([point.tpr, point.fpr, point.fnir, point.baks, point.baus], expected)
        if point.limit is None or known.all():
            continue
        assert point.fpr <= point.limit
        # Of all smaller thresholds, the next smaller score would be the first to change anything.
        below = scores[~known & ~accepted].max()
        assert np.mean(scores[~known] >= below) > point.limit, "a smaller threshold would do"
        assert point.threshold == np.nextafter(np.float32(below), np.float32(np.inf))
        if known.any():
            assert point.tpr == pytest.approx(tpr[fpr <= point.limit].max())


@pytest.mark.filterwarnings("ignore::blurrerank.BlurrerankWarning")
@pytest.mark.parametrize("protocol", ["market1501", "plain"])
@given(labelled(), st.integers(1, 40), st.none() | st.floats(-1, 1, width=32))
def test_metrics_are_those_of_plain_loops_and_scikit_learn(protocol, arrays, depth, threshold):
    data = br.FeatureSet.from_arrays(**arrays)
    if (data.probe.ids == -1).all():
        return
    ranking = br.rerank(data, "cosine", topn=depth)
    metrics = br.evaluate_open_set(ranking, data, protocol=protocol, threshold=threshold)
    assert len(metrics.points) == 2 + (threshold is not None)
    check(metrics, ranking, data, protocol)


@pytest.fixture(scope="module")
def example(tmp_path_factory):
    """The sets of docs/thresholds.md, made by its program: the gallery lacks half of the identities."""
    folder = tmp_path_factory.mktemp("open")
    program = re.search(r"```python\n(.*?)```", PAGE, re.DOTALL)[1]
    program = program.replace('"examples/omniglot.h5"', repr(str(ROOT / "examples/omniglot.h5")))
    exec(program.replace('f"{name}.h5"', f'f"{folder}/{{name}}.h5"'), {})
    return folder


METHODS = ("cosine", "lbr", "k-reciprocal", "center+camera-graph")


def test_omniglot_with_half_of_the_identities_removed(example, cli):
    data = br.load(example / "open.h5")
    assert len(np.setdiff1d(data.probe.ids, data.gallery.ids)) == 130
    for method in METHODS:
        ranking = br.rerank(data, method)
        metrics = br.evaluate_open_set(ranking, data)
        assert (metrics.known, metrics.unknown) == (390, 390)
        check(metrics, ranking, data, "market1501")
        assert cli("run", example / "open.h5", "--method", method, "-o", f"{method}.h5")[0] == 0
    code, out, _ = cli("eval", *(f"{method}.h5" for method in METHODS), example / "open.h5", "--open-set")
    assert code == 0
    assert f"```\n{out[out.index('open set') :]}```" in PAGE


def test_figures_of_other_methods_in_the_text_of_the_page(example):
    data = br.load(example / "open.h5")
    both = [br.rerank(data, method) for method in ("cosine", "k-reciprocal")]
    rankings = {
        "`gnn` has an AUROC of ": br.rerank(data, "gnn"),
        "`k-reciprocal-fastreid` ": br.rerank(data, "k-reciprocal-fastreid"),
        "`k-reciprocal-online` ": br.rerank(data, "k-reciprocal-online"),
        "`fuse` of `cosine` and `k-reciprocal` has ": br.fuse(both, data),
    }
    text = " ".join(PAGE.split())
    for words, ranking in rankings.items():
        assert f"{words}{br.evaluate_open_set(ranking, data).auroc:.4f}" in text, words
    by_mean = br.evaluate_open_set(br.fuse(both, data, by="mean"), data).auroc
    assert f" by reciprocal rank and {by_mean:.4f} by mean" in text


def test_the_page_s_threshold_and_rejection(example, cli):
    for part in ("earlier", "later"):
        options = ("--method", "k-reciprocal", "-o", f"{part}.lists.h5")
        assert cli("run", example / f"{part}.h5", *options)[0] == 0
    code, out, _ = cli("eval", "earlier.lists.h5", example / "earlier.h5", "--open-set", "--json")
    assert code == 0
    threshold = json.loads(out)["open_set"]["points"][1]["threshold"]
    shown = str(np.float32(threshold))
    assert f"--threshold {shown}\n" in PAGE
    later = ("eval", "later.lists.h5", example / "later.h5", "--open-set", "--threshold", shown)
    out = cli(*later)[1]
    assert f"```\n{out[out.index('open set') :]}```" in PAGE
    told = cli("calibrate", "earlier.lists.h5", example / "earlier.h5", "-o", "calibration.json")[2]
    options = ("--calibration", "calibration.json", "--reject", 0.5, "-o", "later.jsonl")
    told += cli("run", example / "later.h5", "--method", "k-reciprocal", *options)[2]
    assert f"```\n{told}```" in PAGE
    # The table of probabilities against what came true.
    data = br.load(example / "later.h5")
    ranking = br.read_ranking("later.lists.h5", data)
    found = br.read_calibration("calibration.json").probability(ranking)
    right = br.evaluate_open_set(ranking, data).first.right
    accepted = found >= 0.5
    counts = f"Of the {accepted.sum()} that are accepted, {(accepted & right).sum()} are right; "
    assert counts + f"{(~accepted & right).sum()} that were right are rejected." in PAGE
    for part in range(4):
        some = np.minimum((found * 4).astype(int), 3) == part
        row = f"| {some.sum()} | {found[some].mean():.2f} | {right[some].mean():.2f} |"
        assert f"| {part / 4:g} to {(part + 1) / 4:g} {row}" in PAGE


@pytest.mark.parametrize("method", ["cosine", "k-reciprocal"])
def test_calibrations_predict_what_scikit_learn_s_do(example, method, tmp_path):
    earlier, later = (br.load(example / f"{part}.h5") for part in ("earlier", "later"))
    ranking, asked = br.rerank(earlier, method), br.rerank(later, method)
    found = by_hand(ranking, earlier, "market1501")
    scores, right = (np.array(column) for column in list(zip(*found.values(), strict=True))[:2])
    models = {
        "isotonic": IsotonicRegression(y_min=0, y_max=1, out_of_bounds="clip").fit(scores, right),
        "logistic": make_pipeline(StandardScaler(), LogisticRegression()).fit(scores[:, None], right),
    }
    new = np.concatenate([asked.scores[:, 0], [-5, 5]]).astype(np.float32)
    expected = {
        "isotonic": models["isotonic"].predict(new),
        "logistic": models["logistic"].predict_proba(new[:, None].astype(np.float64))[:, 1],
    }
    for kind in models:
        path = tmp_path / f"{kind}.json"
        with pytest.warns(br.BlurrerankWarning, match="lists begin with an item that protocol"):
            br.save_calibration(br.calibrate(ranking, earlier, by=kind), path)
        calibration = br.read_calibration(path)
        assert (calibration.probes, calibration.right) == (len(right), right.sum())
        np.testing.assert_allclose(calibration.of_scores(new), expected[kind], atol=1e-5)
        probability = calibration.probability(asked)
        assert probability.dtype == np.float32
        np.testing.assert_array_equal(probability, calibration.of_scores(asked.scores[:, 0]))
    assert calibration.of_scores(np.array([-np.inf], np.float32)).tolist() == [0]


@pytest.fixture
def calibrated(write, cli):
    """feats.h5, whose first items are right and wrong, and calibration.json of its lists by cosine."""
    ids = features()["probe_ids"].copy()
    ids[:4] = 90, 91, 92, 0
    write(probe_ids=ids)
    assert cli("run", "feats.h5", "--method", "cosine", "-o", "lists.h5")[0] == 0
    assert cli("calibrate", "lists.h5", "feats.h5", "-o", "calibration.json", "--by", "logistic")[0] == 0
    return ids


def rejecting(cli, output, *options, feats="feats.h5", least=0.42):
    options = (*options, "--calibration", "calibration.json", "--reject", least, "-o", output)
    return cli("run", feats, *options)


def test_rejected_probes_are_marked_or_left_out(calibrated, cli, tmp_path):
    data = br.load("feats.h5")
    plain = br.rerank(data, "cosine")
    probability = br.read_calibration("calibration.json").probability(plain)
    rejected = probability < np.float32(0.42)
    assert 0 < rejected.sum() < 12
    line = f"rejected {rejected.sum()} of 12 probes, whose first item is right with a probability below 0.42\n"
    for output, written in (("a.h5", 12), ("a.jsonl", 12), ("a.npz", 12), ("a.trec", None), ("a.csv", None)):
        code, _, err = rejecting(cli, output, "--method", "cosine")
        assert code == 0
        assert line in err
        assert f"wrote {output}: {written or (~rejected).sum()} lists of 50\n" in err
    with h5py.File("a.h5") as file:
        assert (file["probability"].dtype, file["rejected"].dtype) == (np.float32, bool)
        np.testing.assert_array_equal(file["probability"], probability)
        np.testing.assert_array_equal(file["rejected"], rejected)
        assert file.attrs["rejected_below"] == 0.42
    with np.load("a.npz") as file:
        np.testing.assert_array_equal(file["probability"], probability)
        np.testing.assert_array_equal(file["rejected"], rejected)
    entries = [json.loads(entry) for entry in (tmp_path / "a.jsonl").read_text().splitlines()]
    np.testing.assert_array_equal(np.float32([entry["probability"] for entry in entries]), probability)
    assert [entry["rejected"] for entry in entries] == rejected.tolist()
    for output in ("a.h5", "a.jsonl", "a.npz"):  # and nothing else of them changed
        np.testing.assert_array_equal(br.read_ranking(output, data).indices, plain.indices)
    kept = data.probe.names[~rejected].tolist()
    entries = (tmp_path / "a.trec").read_text().splitlines()
    assert list(dict.fromkeys(entry.split()[0] for entry in entries)) == kept
    with (tmp_path / "a.csv").open() as file:
        assert list(dict.fromkeys(row["probe_name"] for row in csv.DictReader(file))) == kept
    assert "\nrejected 0 of 12 probes" in rejecting(cli, "all.trec", "--method", "cosine", least=0)[2]
    out = rejecting(cli, "b.h5", "--method", "cosine", "--json")[1]
    assert json.loads(out)["rejected"] == rejected.sum()
    with h5py.File("lists.h5") as file:
        assert not {"probability", "rejected"} & set(file)


def test_rejection_needs_no_labels(calibrated, cli, write):
    rejecting(cli, "labelled.h5", "--method", "cosine")
    write("bare.h5", probe_ids=None, gallery_ids=None, probe_cams=None, gallery_cams=None)
    assert rejecting(cli, "bare.lists.h5", "--method", "cosine", feats="bare.h5")[0] == 0
    with h5py.File("labelled.h5") as one, h5py.File("bare.lists.h5") as other:
        np.testing.assert_array_equal(one["rejected"], other["rejected"])


def test_rejection_of_probes_that_an_index_answers(calibrated, cli, tmp_path):
    assert cli("index", "feats.h5", "-o", "gallery.index.h5", "-q")[0] == 0
    options = ("--index", "gallery.index.h5", "feats.h5", "-o", "online.h5")
    assert cli("run", *options)[0] == 0
    assert cli("calibrate", "online.h5", "feats.h5", "-o", "online.json")[0] == 0
    reject = ("--calibration", "online.json", "--reject", 0.54)
    assert cli("run", "--index", "gallery.index.h5", "feats.h5", "-o", "a.jsonl", *reject)[0] == 0
    written = [json.loads(entry) for entry in (tmp_path / "a.jsonl").read_text().splitlines()]
    data = br.load("feats.h5")
    lines = "".join(json.dumps(row) + "\n" for row in np.asarray(data.probe.features).tolist())
    done = shell("run", "--index", "gallery.index.h5", "-", *reject, input=lines, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    for one, other in zip(map(json.loads, done.stdout.splitlines()), written, strict=True):
        assert {name: one[name] for name in ("probability", "rejected", "scores")} == {
            name: other[name] for name in ("probability", "rejected", "scores")
        }
    assert len({entry["rejected"] for entry in written}) == 2
    wrong = ("--calibration", "calibration.json", "--reject", 0.54)
    done = shell("run", "--index", "gallery.index.h5", "-", *wrong, input=lines, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (1, "")
    assert "calibration.json was fitted on lists of method cosine" in done.stderr


def test_a_calibration_is_refused_for_other_lists(calibrated, cli):
    for options, told in (
        (("--method", "lbr"), "of method cosine, and these are of lbr"),
        (("--method", "dba+cosine"), "of method cosine, and these are of dba+cosine"),
    ):
        code, _, err = rejecting(cli, "a.h5", *options)
        assert (code, err) == (
            1,
            f"error: calibration.json was fitted on lists {told}: run `calibrate` for these lists\n",
        )
    data = br.load("feats.h5")
    graphs = [br.rerank(data, "camera-graph", online=online) for online in (False, True)]
    calibration = br.calibrate(graphs[0], data)
    with pytest.raises(br.InputError, match="camera-graph, transductive, and these are online"):
        calibration.probability(graphs[1])
    unknown = replace(graphs[1], setting=None)
    with pytest.raises(
        br.InputError, match="transductive, and these are not known to be transductive or online"
    ):
        calibration.probability(unknown)
    other = br.calibrate(br.rerank(data, "lbr"), data)
    with pytest.raises(
        br.InputError, match="of lbr with topn 50, and these have 7: run `calibrate` for these lists"
    ):
        other.probability(br.rerank(data, "lbr", topn=7))
    # A file keeps what is compared.
    for name in ("saved.h5", "saved.npz"):
        br.save_ranking(graphs[0], data, name)
        again = calibration.probability(br.read_ranking(name, data))
        np.testing.assert_array_equal(again, calibration.probability(graphs[0]))


@pytest.mark.parametrize("method", ["cosine", "dba+cosine"])
def test_how_many_items_cosine_lists_is_not_compared(calibrated, cli, method):
    data = br.load("feats.h5")
    calibration = br.calibrate(br.rerank(data, method, topn=40), data)
    few, many = (br.rerank(data, method, topn=topn) for topn in (1, 50))
    np.testing.assert_array_equal(calibration.probability(few), calibration.probability(many))
    assert rejecting(cli, "a.h5", "--method", "cosine", "--topn", 7)[0] == 0


def test_features_of_other_dimensions_are_refused_and_other_sizes_warned_of(calibrated, cli, write, tmp_path):
    stored = json.loads((tmp_path / "calibration.json").read_text())
    assert (stored["format_version"], stored["dim"], stored["gallery_size"]) == (1, 8, 60)
    write("wide.h5", **features(dim=9))
    code, _, err = rejecting(cli, "a.h5", "--method", "cosine", feats="wide.h5")
    told = (
        "error: calibration.json was fitted on lists of features of 8 dimensions, and these have 9: run "
        "`calibrate`"
    )
    assert (code, err.startswith(told), err.count("\n")) == (1, True, 1)
    for size, told in ((30, None), (120, None), (29, "too low"), (121, "too high")):
        write("other.h5", **features(gallery=size))
        code, _, err = rejecting(cli, f"{size}.h5", "--method", "cosine", feats="other.h5")
        assert code == 0
        begins = f"warning: calibration.json was fitted with a gallery of 60 items, and this one has {size}: "
        assert (begins in err, told is None or told in err) == (told is not None, True)
    data = br.load("other.h5")
    with pytest.warns(br.BlurrerankWarning, match="60 items, and this one has 121"):
        br.read_calibration("calibration.json").probability(br.rerank(data, "cosine"))


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"format": "x"}, "is x: expected a blurrerank-calibration file"),
        ({"format_version": 2}, "has format_version 2: this program reads 1"),
        ({"kind": "linear"}, "is damaged: it has no isotonic or logistic fit; calibrate again"),
        ({"numbers": {"slope": 1}}, "is damaged: it has no isotonic or logistic fit; calibrate again"),
        (
            {"numbers": {"slope": float("nan"), "intercept": 0}},
            "is damaged: it has no isotonic or logistic fit",
        ),
        ({"kind": "isotonic", "numbers": {"scores": [1, 0], "probabilities": [0, 1]}}, "is damaged"),
        ({"kind": "isotonic", "numbers": {"scores": [0, 1], "probabilities": [1, 0]}}, "is damaged"),
        ({"kind": "isotonic", "numbers": {"scores": [0, 1], "probabilities": [0, 2]}}, "is damaged"),
        ({"kind": "isotonic", "numbers": {"scores": [], "probabilities": []}}, "is damaged"),
        ({"dim": "wide"}, "is not a calibration, or is damaged: calibrate again"),
        ({"params": 3}, "is not a calibration, or is damaged: calibrate again"),
        (None, "is not a calibration, or is damaged: calibrate again"),
    ],
)
def test_damaged_calibrations(calibrated, cli, tmp_path, change, told):
    path = tmp_path / "calibration.json"
    path.write_text("[1" if change is None else json.dumps(json.loads(path.read_text()) | change))
    code, _, err = rejecting(cli, "a.h5", "--method", "cosine")
    assert code == 1
    assert err.startswith(f"error: calibration.json {told}")
    assert err.count("\n") == 1
    assert not (tmp_path / "a.h5").exists()


def test_usage_and_inputs_that_cannot_be(calibrated, cli, write):
    write("bare.h5", probe_ids=None)
    cli("run", "feats.h5", "--method", "cosine", "-o", "lists.trec")
    cases = [
        (("run", "feats.h5", "--reject", 0.5), 2, "need each other: give both"),
        (("run", "feats.h5", "--calibration", "calibration.json"), 2, "need each other: give both"),
        (
            ("run", "feats.h5", "--calibration", "calibration.json", "--reject", 2),
            2,
            "Invalid value for '--reject'",
        ),
        (("run", "feats.h5", "--calibration", "no.json", "--reject", 0.5), 1, "no.json: no such file"),
        (("run", "feats.h5", "--calibration", "feats.h5", "--reject", 0.5), 1, "is not a calibration"),
        (("eval", "lists.h5", "feats.h5", "--threshold", 0.5), 2, "open-set metrics only: add --open-set"),
        (("eval", "lists.h5", "feats.h5", "--open-set", "--threshold", "nan"), 2, "is not a finite number"),
        (("calibrate", "lists.h5", "feats.h5", "-o", "calibration.json"), 1, "exists"),
        (("calibrate", "lists.h5", "feats.h5", "-o", "-"), 2, "cannot be written to standard output"),
        (("calibrate", "lists.trec", "feats.h5", "-o", "x.json"), 1, "does not say by which method"),
        (("calibrate", "lists.h5", "bare.h5", "-o", "x.json"), 1, "no ids"),
        (
            ("calibrate", "lists.h5", "feats.h5", "-o", "x.json", "--by", "spline"),
            2,
            "Invalid value for '--by'",
        ),
    ]
    for arguments, expected, told in cases:
        code, out, err = cli(*arguments)
        assert (code, out) == (expected, ""), arguments
        assert told in err, arguments
    output = ("-o", "calibration.json", "--force")
    code, _, err = rejecting(cli, "calibration.json", "--method", "cosine", "--format", "h5", "--force")
    assert (code, "named twice" in err) == (2, True)
    assert cli("calibrate", "lists.h5", "feats.h5", *output)[0] == 0


def test_lists_that_begin_with_an_item_that_does_not_count(cli, write):
    """Two of four lists begin with the probe's own image or junk; `run --reject` would judge them by that."""
    probe = np.eye(4)
    near = np.array([[0, 1, 2, 3], [0, 1, 2, 3]]).ravel()
    gallery = np.eye(4)[near] + np.repeat([[0.1], [0.5]], 4, axis=0) * np.roll(np.eye(4)[near], 1, axis=1)
    arrays = {
        "probe_ids": [1, 2, 3, 4],
        "gallery_ids": [1, -1, 9, 4, 1, 2, 3, 8],
        "probe_cams": [1] * 4,
        "gallery_cams": [1, 2, 2, 2, 2, 2, 2, 2],
    }
    data = br.FeatureSet.from_arrays(probe, gallery, **arrays)
    ranking = br.rerank(data, "cosine")
    assert ranking.indices[:, 0].tolist() == [0, 1, 2, 3]
    with pytest.warns(br.BlurrerankWarning) as told:
        calibration = br.calibrate(ranking, data)
    assert (calibration.probes, calibration.right) == (4, 3)
    (warning,) = told
    assert str(warning.message).startswith("2 of 4 lists begin with an item that protocol market1501 drops")
    assert "too high or too low: remove the probes' own images from the gallery" in str(warning.message)
    # Without these images there is nothing to warn of.
    kept = [2, 3, 4, 5, 6, 7]
    rest = {name: np.array(value)[kept] if "gallery" in name else value for name, value in arrays.items()}
    clean = br.FeatureSet.from_arrays(probe, gallery[kept], **rest)
    br.calibrate(br.rerank(clean, "cosine"), clean)
    br.save_features(data, "own.h5")
    assert cli("run", "own.h5", "--method", "cosine", "-o", "own.lists.h5")[0] == 0
    code, _, err = cli("calibrate", "own.lists.h5", "own.h5", "-o", "own.json")
    assert (code, err.startswith("warning: 2 of 4 lists begin with")) == (0, True)
    assert "should not contain a probe's own images" in " ".join(cli("run", "--help")[1].split())


def test_lists_that_are_all_right_cannot_be_calibrated():
    eye = np.eye(4)
    data = br.FeatureSet.from_arrays(eye, eye, probe_ids=[1, 2, 3, 4], gallery_ids=[1, 2, 3, 4])
    ranking = br.rerank(data, "cosine")
    with pytest.raises(br.InputError, match="first items of all 4 lists are right"):
        br.calibrate(ranking, data, protocol="plain")
    with pytest.raises(br.ParameterError, match="'spline' is not known: use isotonic or logistic"):
        br.calibrate(ranking, data, by="spline")


@pytest.mark.parametrize(
    ("probe_ids", "gallery_ids", "told"),
    [
        ([1, 2], [1, 2], "no probe is unknown, since each has a match"),
        ([8, 9], [1, 2], "no probe is known, since none has a match"),
        ([1, 9], [-1, 1], "1 probes have no item that counts in their lists"),
        ([1, 9], [1, 2], None),
    ],
)
def test_one_line_says_what_cannot_be_measured(probe_ids, gallery_ids, told):
    eye = np.eye(2)
    data = br.FeatureSet.from_arrays(eye, eye, probe_ids=probe_ids, gallery_ids=gallery_ids)
    ranking = br.rerank(data, "cosine", topn=1)
    with nullcontext() if told is None else pytest.warns(br.BlurrerankWarning, match=told):
        metrics = br.evaluate_open_set(ranking, data, protocol="plain")
    summary = metrics.summary()
    assert (summary["auroc"] is None) == (not metrics.known or not metrics.unknown)
    assert json.loads(json.dumps(summary, allow_nan=False)) == summary


def test_tables_and_json_of_eval(calibrated, cli, tmp_path):
    data = br.load("feats.h5")
    metrics = br.evaluate_open_set(br.read_ranking("lists.h5", data), data, threshold=0.5)
    expected = json.loads(json.dumps(metrics.summary()))
    command = ("eval", "lists.h5", "feats.h5", "--open-set", "--threshold", 0.5)
    assert json.loads(cli(*command, "--json")[1])["open_set"] == expected
    rows = cli(*command)[1].splitlines()
    point = expected["points"][2]
    shown = [f"{point[name]:.4f}" for name in ("tpr", "fpr", "fnir", "baks", "baus")]
    assert rows[-1].split()[-7:] == ["given", "0.5", *shown]
    assert r"\toprule" in cli(*command, "--latex")[1]
    # A matrix is measured in its own order, and lists of tracks as lists of theirs.
    unit = [
        side / np.linalg.norm(side, axis=1)[:, None] for side in (features()["probe"], features()["gallery"])
    ]
    np.save("sims.npy", (unit[0] @ unit[1].T).astype(np.float32))
    matrix = json.loads(cli("eval", "sims.npy", "feats.h5", "--open-set", "--json")[1])["open_set"]
    assert matrix["auroc"] == pytest.approx(expected["auroc"])
    assert matrix["balanced_accuracy"] == pytest.approx(expected["balanced_accuracy"])


def test_without_scikit_learn_one_line_says_how_to_get_it(calibrated, cli, tmp_path):
    cli("run", "feats.h5", "--method", "cosine", "-o", "plain.h5")
    (tmp_path / "stub/sklearn").mkdir(parents=True)
    (tmp_path / "stub/sklearn/__init__.py").write_text("raise ImportError('No module named sklearn')\n")
    path = os.pathsep.join([str(tmp_path / "stub"), str(ROOT)])
    options = {"cwd": tmp_path, "env": os.environ | {"PYTHONPATH": path}}
    done = shell("calibrate", "lists.h5", "feats.h5", "-o", "x.json", **options)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == (
        'error: calibration needs scikit-learn, which is not installed: pip install "blurrerank[calibrate]"\n'
    )
    reject = ("--calibration", "calibration.json", "--reject", 0.5)
    done = shell("run", "feats.h5", "--method", "cosine", "-o", "a.h5", *reject, **options)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("measure", [br.evaluate_open_set, br.calibrate])
def test_natural_mistakes_are_answered(measure):
    data = br.FeatureSet.from_arrays(**features())
    with pytest.raises(br.InputError, match="expected a Ranking, not a path"):
        measure("lists.h5", data)
    with pytest.raises(br.InputError, match="expected a FeatureSet, not a path"):
        measure(br.rerank(data), "feats.h5")
