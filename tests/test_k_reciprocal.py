"""k-reciprocal re-ranking: golden answers, and the dense reference on sets with ties and too few images."""

from __future__ import annotations

import json
import re

import h5py
import numpy as np
import pytest
import torch
from conftest import ROOT, alike, check_lists, exact_sides, features, sides, spread
from hypothesis import assume, given
from hypothesis import strategies as st

import blurrerank as br
from blurrerank import reference
from blurrerank.compute.compute import Compute
from blurrerank.data.ranges import ranges, split_by_size
from blurrerank.engine.plans import plan_for
from blurrerank.engine.request import Request
from blurrerank.graph.sparse_rows import SparseRows
from blurrerank.methods import create

# Bytes that docs/search.md says encodings take at k1 20 and k2 6.
PER_IMAGE = 2 << 10
METRICS = ("mAP", "mINP", "rank1", "rank5", "rank10", "rank20", "valid_probes", "probes")


PARAMS = st.fixed_dictionaries(
    {},
    optional={
        "k1": st.integers(1, 90),
        "k2": st.integers(1, 30),
        "lambda_value": st.sampled_from([0.0, 0.3, 0.85, 1.0]),
        "base_distance": st.sampled_from(["squared", "squared-twice"]),
    },
)


def check_against_reference(probe, gallery, params, **how):
    final = reference.k_reciprocal(probe, gallery, **params)
    assert np.isfinite(final).all()
    data = br.FeatureSet.from_arrays(probe, gallery)
    with alike(probe, gallery) as tolerance:
        ranking = br.rerank(data, "k-reciprocal", depth=len(gallery), **params, **how)
    order = np.argsort(final, axis=1, kind="stable")
    check_lists(ranking.indices, ranking.scores, order, -np.take_along_axis(final, order, axis=1), tolerance)


@given(exact_sides(), PARAMS)
def test_ties_and_duplicates_equal_the_reference(arrays, params):
    check_against_reference(*arrays, params)


@given(sides(), PARAMS)
def test_any_set_equals_the_reference(arrays, params):
    # Nearly equal images, which a few rows of two dimensions may be by chance, are refused.
    assume(not 3e-6 < spread(*arrays) < 3e-5)
    check_against_reference(*arrays, params)


def cone(width, dim, seed):
    """Images around one direction, as a model has them that has learnt nothing yet."""
    rng = np.random.default_rng(seed)
    centre = rng.standard_normal(dim)
    rows = centre / np.linalg.norm(centre) + width * rng.standard_normal((60, dim)) / np.sqrt(dim)
    return rows[:10], rows[10:]


@pytest.mark.parametrize("lambda_value", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("dim", [8, 128, 2048])
@pytest.mark.parametrize("width", [0.3, 0.1, 0.03, 0.01])
def test_images_that_are_much_alike_equal_the_reference(width, dim, lambda_value):
    """As far as float32 tells how far apart they are, and who is near whom in any case."""
    for seed in range(3):
        check_against_reference(*cone(width, dim, seed), {"lambda_value": lambda_value})


def test_images_that_float32_does_not_tell_apart_are_refused(cli, write):
    probe, gallery = cone(0.003, 32, 0)
    labels = dict.fromkeys(
        f"{side}_{what}" for side in ("probe", "gallery") for what in ("ids", "cams", "names")
    )
    write(probe=probe, gallery=gallery, **labels)
    code, _, err = cli("run", "feats.h5", "--method", "k-reciprocal")
    assert code == 1
    assert re.fullmatch(
        r"error: features are nearly equal \(none of probes and gallery has a cosine similarity below "
        r"0\.99999\d with image \d+ of these\): float32 cannot tell how far apart they are for k-reciprocal; "
        r"if that is intended, subtract the gallery's mean from all features",
        err.splitlines()[-1],
    )
    mean = gallery.mean(axis=0)
    check_against_reference(probe - mean, gallery - mean, {})


@given(exact_sides(), PARAMS, st.integers(1, 70))
def test_blocks_and_memory_change_nothing(arrays, params, block):
    """In the least memory, where each step works on a few entries at a time."""
    probe, gallery = arrays
    data = br.FeatureSet.from_arrays(probe, gallery)
    whole = br.rerank(data, "k-reciprocal", depth=len(gallery), **params)
    cut = br.rerank(data, "k-reciprocal", depth=len(gallery), **params, block=block, memory=1 << 16)
    np.testing.assert_array_equal(cut.indices, whole.indices)
    np.testing.assert_array_equal(cut.scores, whole.scores)


@pytest.mark.parametrize("block", [1, 7, 100])
def test_rows_that_are_read_again_give_the_same_lists(tmp_path, block):
    """A budget for 24 of 72 rows, from a file."""
    arrays = features(dim=512)
    data = br.FeatureSet.from_arrays(arrays["probe"], arrays["gallery"])
    br.save_features(data, tmp_path / "feats.h5")
    whole = br.rerank(data, "k-reciprocal", k1=5, k2=3, depth=60)
    stored = br.load(tmp_path / "feats.h5", memory=1 << 17)
    with pytest.warns(
        br.BlurrerankWarning, match="hold 72 x 512 features: they are read 18 times; a budget of 1 MiB would"
    ):
        cut = br.rerank(stored, "k-reciprocal", k1=5, k2=3, depth=60, block=block, memory=1 << 17)
    np.testing.assert_array_equal(cut.indices, whole.indices)
    np.testing.assert_array_equal(cut.scores, whole.scores)


@pytest.mark.parametrize("probes", [1, 3])
@pytest.mark.parametrize("rows", [1, 2, 30])
def test_all_rows_equal(probes, rows):
    """No distance tells them apart, so d is 0 and what is left is whose lists name whom: lower indices."""
    row = np.random.default_rng(3).standard_normal((1, 24)).astype(np.float32)
    data = br.FeatureSet.from_arrays(row.repeat(probes, 0), row.repeat(rows, 0))
    ranking = br.rerank(data, "k-reciprocal", depth=rows)
    assert np.isfinite(ranking.scores).all()
    ones = np.ones((probes + rows, 4))
    final = reference.k_reciprocal(ones[:probes], ones[probes:])
    np.testing.assert_array_equal(ranking.indices, np.argsort(final, axis=1, kind="stable"))
    if probes + rows <= 21:
        # Every list is the whole set: all encodings are equal, and every distance is 0.
        np.testing.assert_array_equal(ranking.indices, np.tile(np.arange(rows), (probes, 1)))
        np.testing.assert_allclose(ranking.scores, 0, atol=1e-6)


def test_two_images():
    """One probe, one gallery item: each is the other's neighbour, and the other's farthest."""
    data = br.FeatureSet.from_arrays(np.eye(1, 3), np.eye(3)[1:2])
    ranking = br.rerank(data, "k-reciprocal", k2=1, lambda_value=0.3)
    near, far = 1 / (1 + np.exp(-1)), np.exp(-1) / (1 + np.exp(-1))
    overlap = 2 * min(near, far)
    expected = 0.7 * (1 - overlap / (2 - overlap)) + 0.3
    assert ranking.indices.tolist() == [[0]]
    assert -ranking.scores[0, 0] == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(
    ("probes", "gallery", "options"),
    [(1, 1, ()), (1, 40, ()), (3, 2, ("--k1", 500, "--k2", 500)), (2, 30, ("--k1", 1, "--k2", 1))],
)
def test_a_run_on_hardly_any_images(probes, gallery, options, cli, write):
    rng = np.random.default_rng(1)
    labels = {"names": None, "cams": None}
    changes = {f"{side}_{name}": value for side in ("probe", "gallery") for name, value in labels.items()}
    feats = write(
        probe=rng.standard_normal((probes, 8)),
        gallery=rng.standard_normal((gallery, 8)),
        probe_ids=np.ones(probes, int),
        gallery_ids=np.ones(gallery, int),
        **changes,
    )
    code, out, _ = cli("run", feats, "--method", "k-reciprocal", "--json", *options)
    assert code == 0
    told = json.loads(out)
    assert told["after"]["mAP"] == 1.0, "every gallery item is a match"
    assert told["depth"] == min(50, gallery)


def test_lambda_1_is_the_list_by_cosine():
    arrays = features()
    data = br.FeatureSet.from_arrays(arrays["probe"], arrays["gallery"])
    np.testing.assert_array_equal(
        br.rerank(data, "k-reciprocal", lambda_value=1.0, depth=60).indices,
        br.rerank(data, "cosine", topn=60).indices,
    )


def test_permuting_the_gallery_permutes_the_lists():
    arrays = features(gallery=80)
    order = np.random.default_rng(5).permutation(80)
    plain = br.rerank(br.FeatureSet.from_arrays(arrays["probe"], arrays["gallery"]), "k-reciprocal", depth=80)
    mixed = br.rerank(
        br.FeatureSet.from_arrays(arrays["probe"], arrays["gallery"][order]), "k-reciprocal", depth=80
    )
    check_lists(order[mixed.indices], mixed.scores, plain.indices, plain.scores)


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"k1": 0}, "k1 must be a whole number of at least 1, not 0"),
        ({"k2": 2.5}, "k2 must be a whole number of at least 1, not 2.5"),
        ({"lambda_value": -0.1}, "lambda must be a number from 0 to 1, not -0.1"),
        ({"lambda_value": "half"}, "lambda must be a number from 0 to 1, not 'half'"),
        ({"lambda_value": float("nan")}, "lambda must be a number from 0 to 1, not nan"),
        ({"lambda_value": True}, "lambda must be a number from 0 to 1, not True"),
        ({"base_distance": "cubed"}, "base distance 'cubed' is not known: use squared or squared-twice"),
        (
            {"topn": 5},
            "method k-reciprocal has no parameter 'topn'; it has: base_distance, k1, k2, lambda_value",
        ),
        ({"preset": "msmt17"}, "method k-reciprocal has no preset 'msmt17'; it has: market1501, cuhk03"),
    ],
)
def test_parameters_out_of_range_are_refused(params, message):
    data = br.FeatureSet.from_arrays(np.eye(3), np.eye(3))
    with pytest.raises(br.ParameterError) as error:
        br.rerank(data, "k-reciprocal", **params)
    assert str(error.value) == message


GOLDEN = {
    "k_reciprocal_20_6_0.3": ("market1501", 0.7939, 0.8392, 0.4989),
    "k_reciprocal_7_3_0.85": ("cuhk03", 0.6939, 0.8397, 0.2611),
}


@pytest.mark.parametrize("name", GOLDEN)
def test_lists_and_metrics_equal_the_golden_answers(shared, tmp_path, cli, name):
    """Through `run` in little memory; the golden lists are of a float32 program, so near ties may differ."""
    preset, *rounded = GOLDEN[name]
    feats = shared / "data/omniglot.h5"
    code, out, _ = cli(
        *("run", feats, "--method", "k-reciprocal", "--preset", preset, "--depth", 100, "-o", "o.h5"),
        *("--json", "--memory", "16MiB"),
    )
    assert code == 0
    with h5py.File("o.h5") as ours, h5py.File(shared / "golden/omniglot.h5") as golden:
        indices, expected = ours["indices"][()], golden[name]["indices"][()]
        assert (indices == expected).mean() >= 0.999
        check_lists(indices, ours["scores"][()], expected, -golden[name]["scores"][()])
    measured = json.loads(out)["after"]
    answer = json.loads((shared / "golden/omniglot_metrics.json").read_text())[name]
    assert {key: measured[key] for key in METRICS} == pytest.approx(
        {key: answer[key] for key in METRICS}, abs=5e-4
    )
    assert [measured["mAP"], measured["rank1"], measured["mINP"]] == pytest.approx(rounded, abs=5e-4)

    # The same from memory, and measured from the file alone.
    data = br.load(feats)
    ranking = br.rerank(data, "k-reciprocal", preset=preset, depth=100)
    np.testing.assert_array_equal(ranking.indices, indices)
    assert br.evaluate(ranking, data).mAP == measured["mAP"]
    assert json.loads(cli("eval", "o.h5", feats, "--json", "--ap", "trapezoid")[1])["mAP"] == pytest.approx(
        answer["mAP_trapezoid"], abs=5e-4
    )


def test_lists_do_not_depend_on_threads(threads):
    data = br.load(ROOT / "examples/omniglot.h5")
    found = []
    for count in (1, 2):
        threads(count)
        found.append(br.rerank(data, "k-reciprocal"))
    np.testing.assert_array_equal(found[0].indices, found[1].indices)
    np.testing.assert_array_equal(found[0].scores, found[1].scores)


@pytest.mark.parametrize("protocol", ["market1501", "cuhk03", "plain"])
def test_metrics_are_over_the_whole_gallery(protocol):
    """Few images of each identity, as the reference draws every combination for cuhk03."""
    rng = np.random.default_rng(8)
    probe_ids, gallery_ids = 1 + np.arange(5), np.array([-1, 0, 0, 1, 1, 1, 2, 2, 3, 3, 4, 5, 5, 6, 6])
    labels = {
        "probe_ids": probe_ids,
        "gallery_ids": gallery_ids,
        "probe_cams": rng.integers(1, 3, 5),
        "gallery_cams": rng.integers(1, 3, 15),
    }
    arrays = rng.standard_normal((5, 6)), rng.standard_normal((15, 6))
    data = br.FeatureSet.from_arrays(*arrays, **labels)
    final = reference.k_reciprocal(*arrays, k1=4, k2=2)
    expected = reference.evaluate(np.argsort(final, axis=1, kind="stable"), **labels, protocol=protocol)
    for depth in (1, 15):
        ranking = br.rerank(data, "k-reciprocal", k1=4, k2=2, depth=depth)
        metrics = br.evaluate(ranking, data, protocol=protocol)
        assert metrics.depth is None
        np.testing.assert_allclose(metrics.ap, expected["ap"], atol=1e-12)
        np.testing.assert_allclose(metrics.inp, expected["inp"], atol=1e-12)
        np.testing.assert_allclose(metrics.cmc, np.nanmean(expected["cmc"], axis=0)[:50], atol=1e-12)


def test_metrics_of_a_short_ranking_without_positions_make_it_again():
    """With its own parameters; likewise where the positions are of other labels."""
    arrays = features()
    named = {name: value for name, value in arrays.items() if name not in ("probe", "gallery")}
    params = {"k1": 3, "k2": 2, "lambda_value": 0.1}
    bare = br.FeatureSet.from_arrays(arrays["probe"], arrays["gallery"])
    data = br.FeatureSet.from_arrays(arrays["probe"], arrays["gallery"], **named)
    other = br.FeatureSet.from_arrays(
        arrays["probe"], arrays["gallery"], **named | {"probe_ids": named["probe_ids"][::-1].copy()}
    )
    whole = br.evaluate(br.rerank(data, "k-reciprocal", depth=60, **params), data).mAP
    assert whole != br.evaluate(br.rerank(data, "k-reciprocal"), data).mAP
    for labels in (bare, other):
        ranking = br.rerank(labels, "k-reciprocal", depth=3, **params)
        assert (ranking.positions is None) == (labels is bare)
        assert br.evaluate(ranking, data).mAP == whole


@pytest.mark.parametrize("base_distance", ["squared", "squared-twice"])
def test_images_that_are_nearly_equal_are_told_apart(base_distance):
    """The largest squared distance is near 1e-3, of which float32 cosines leave three digits."""
    rng = np.random.default_rng(4)
    rows = rng.standard_normal(64) + 0.012 * rng.standard_normal((40, 64))
    data = br.FeatureSet.from_arrays(rows[:5], rows[5:])
    with alike(rows):
        ranking = br.rerank(data, "k-reciprocal", k1=6, k2=1, depth=35, base_distance=base_distance)
    final = reference.k_reciprocal(rows[:5], rows[5:], k1=6, k2=1, base_distance=base_distance)
    ours = np.empty_like(final)
    np.put_along_axis(ours, ranking.indices, -ranking.scores.astype(float), axis=1)
    np.testing.assert_allclose(ours, final, atol=2e-3)
    assert np.ptp(final, axis=1).min() > 0.3


@pytest.mark.filterwarnings("ignore:features are nearly equal .*rounding affects")
@pytest.mark.parametrize("dim", [2048, 20000])
def test_rounding_is_no_distance(dim):
    """One direction at different lengths: cosines differ from 1 by what float32 rounds."""
    rng = np.random.default_rng(6)
    rows = rng.standard_normal(dim) * rng.uniform(0.1, 9, (12, 1))
    data = br.FeatureSet.from_arrays(rows[:2].astype(np.float32), rows[2:].astype(np.float32))
    ranking = br.rerank(data, "k-reciprocal", k2=1)
    np.testing.assert_allclose(ranking.scores, 0, atol=1e-6)


def test_progress_goes_up_to_all_images_and_probes():
    arrays = features()
    data = br.FeatureSet.from_arrays(arrays["probe"], arrays["gallery"])
    told = []
    # In so little memory, neighbours are found in several blocks.
    br.rerank(data, "k-reciprocal", memory=1 << 16, depth=5, progress=lambda *numbers: told.append(numbers))
    assert {total for _, total in told} == {12 + 60 + 12}
    done = [done for done, _ in told]
    assert done == sorted(done)
    assert done[-1] == 84
    assert done.count(72) == 2, "where neighbours end, and where probes begin"
    assert len([some for some in done if some < 72]) > 2


def test_numbers_of_numpy_are_kept_as_plain_ones(tmp_path):
    arrays = features()
    data = br.FeatureSet.from_arrays(arrays["probe"], arrays["gallery"])
    ranking = br.rerank(data, "k-reciprocal", k1=np.int64(4), lambda_value=np.float64(0.5))
    br.save_ranking(ranking, data, tmp_path / "lists.h5")
    assert br.read_ranking(tmp_path / "lists.h5", data).params["k1"] == 4


def test_probes_count_as_rows_to_hold():
    """The budget has room for the gallery, and none for probes beside it."""
    arrays = features(probes=60, gallery=60, dim=64)
    data = br.FeatureSet.from_arrays(arrays["probe"], arrays["gallery"])
    compute = Compute.choose(memory=56 << 10)
    assert plan_for(data, create("lbr", topn=1), Request(), compute).resident
    assert not plan_for(data, create("k-reciprocal"), Request(depth=1), compute).resident


@pytest.mark.parametrize("method", ["k-reciprocal", "k-reciprocal-online"])
def test_memory_stays_near_the_budget(method, cli, monkeypatch):
    """16 MiB of features, of which the budget holds a third, so that rows are read again."""
    # glibc keeps freed blocks in arenas, how many depends on the moment. Blocks that are given back when they
    # are freed make the peak what the program holds.
    monkeypatch.setenv("MALLOC_MMAP_THRESHOLD_", str(256 << 10))
    sizes = ("--probes", 250, "--gallery", 1750, "--ids", 150, "--distractors", 0, "--junk", 0, "--dim", 2048)
    assert cli("synth", "set.h5", *sizes)[0] == 0
    code, out, _ = cli("bench", "set.h5", "--methods", method, "--repeats", 1, "--json", "--memory", "16MiB")
    told = json.loads(out)[0]
    assert (code, told["error"]) == (0, None)
    # The budget, and what docs/search.md says of the encodings.
    assert told["peak_bytes"] < (16 << 20) + 2000 * PER_IMAGE


def test_the_output_records_the_variant(cli, write):
    feats = write()
    labels = {}
    for variant in ("squared", "squared-twice"):
        code, out, _ = cli(
            *("run", feats, "--method", "k-reciprocal", "--base-distance", variant, "--k1", 5, "--k2", 2),
            *("--lambda", 0.4, "-o", f"{variant}.h5"),
        )
        assert code == 0
        labels[variant] = out.splitlines()[-1]
        ranking = br.read_ranking(f"{variant}.h5", br.load(feats))
        assert ranking.params == {"k1": 5, "k2": 2, "lambda_value": 0.4, "base_distance": variant}
        assert (ranking.reranked_depth, ranking.depth, ranking.cosine_tail) == (60, 50, False)
    assert labels["squared"].startswith("k-reciprocal (k1 5, k2 2, lambda 0.4)  ")
    assert labels["squared-twice"].startswith(
        "k-reciprocal (k1 5, k2 2, lambda 0.4, base distance squared-twice)"
    )


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
def test_a_gpu_gives_the_same_lists():
    data = br.load(ROOT / "examples/omniglot.h5")
    here = br.rerank(data, "k-reciprocal", device="cpu", depth=200)
    there = br.rerank(data, "k-reciprocal", device="cuda", depth=200)
    check_lists(there.indices, there.scores, here.indices, here.scores)


@given(st.lists(st.integers(0, 9), min_size=1, max_size=30), st.integers(1, 20))
def test_pieces_cover_everything_within_the_limit(sizes, limit):
    cut = list(split_by_size(torch.tensor(sizes), limit))
    assert [start for start, _ in cut] == [0, *(stop for _, stop in cut[:-1])]
    assert cut[-1][1] == len(sizes)
    assert all(sum(sizes[start:stop]) <= limit or stop == start + 1 for start, stop in cut)


@given(st.lists(st.tuples(st.integers(0, 99), st.integers(0, 5)), min_size=1, max_size=20))
def test_ranges_count_up_from_each_start(parts):
    starts, counts = torch.tensor(parts).T
    owner, number = ranges(starts, counts)
    expected = [(r, start + i) for r, (start, count) in enumerate(parts) for i in range(count)]
    assert list(zip(owner.tolist(), number.tolist(), strict=True)) == expected


def test_transposing_sparse_rows():
    dense = np.random.default_rng(2).integers(0, 3, (7, 5))
    rows, columns = np.nonzero(dense)
    offsets = np.concatenate([[0], np.cumsum((dense > 0).sum(axis=1))])
    sparse = SparseRows(
        torch.from_numpy(offsets),
        torch.from_numpy(columns).to(torch.int32),
        torch.from_numpy(dense[rows, columns]).to(torch.int32),
        chunk_bytes=256,
    )
    other = sparse.transposed(5)
    again = np.zeros_like(dense.T)
    owner, _ = ranges(other.offsets[:-1], other.counts)
    again[owner.numpy(), other.columns.numpy()] = other.weights.numpy()
    np.testing.assert_array_equal(again, dense.T)


@pytest.mark.filterwarnings("ignore:features are nearly equal .*rounding affects")
@pytest.mark.parametrize("probes", [1, 5, 10])
def test_of_images_equal_but_for_rounding_the_lower_index_is_nearer(probes):
    """Fewer neighbours than images: whom rounding would choose must not matter."""
    rng = np.random.default_rng(1)
    rows = (rng.standard_normal(64) * rng.uniform(0.1, 10, (40, 1))).astype(np.float32)
    rows += (rows * 1e-7 * rng.standard_normal((40, 64))).astype(np.float32)
    data = br.FeatureSet.from_arrays(rows[:probes], rows[probes:])
    ranking = br.rerank(data, "k-reciprocal", depth=30, k1=4, k2=2)
    expected = np.asarray(reference.k_reciprocal(rows[:probes], rows[probes:], k1=4, k2=2))
    order = np.argsort(expected, axis=1, kind="stable")[:, :30]
    np.testing.assert_array_equal(ranking.indices, order)
    np.testing.assert_allclose(-ranking.scores, np.take_along_axis(expected, order, axis=1), atol=1e-5)
