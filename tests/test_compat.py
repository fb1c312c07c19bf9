"""Drop-ins give what the programs they stand in for give."""

from __future__ import annotations

import re
import subprocess
import sys
import types

import h5py
import numpy as np
import pytest
import torch
from conftest import ROOT, check_lists, exact_sides, sides
from hypothesis import given
from hypothesis import strategies as st

import blurrerank as br
from blurrerank import reference
from blurrerank.compat import OMLLocalBlurring, lbr_distmat, re_ranking, to_distmat


def authors(original, probes, k1, k2, lambda_value):
    """Final distances from a dense matrix of all by all, in float64, from the definition in the paper.

    The rule for ties is this project's: the image itself, then the lower index.
    """
    original = np.asarray(original, dtype=np.float64)
    number = len(original)
    largest = original.max(axis=0)
    distance = (original / np.where(largest == 0, 1, largest)).T
    ranked = distance.copy()
    np.fill_diagonal(ranked, -np.inf)
    order = np.argsort(ranked, axis=1, kind="stable")

    def reciprocal(i, k):
        return {int(j) for j in order[i, : k + 1] if i in order[j, : k + 1]}

    encoding = np.zeros((number, number))
    for i in range(number):
        near = reciprocal(i, k1)
        grown = set(near)
        for j in near:
            theirs = reciprocal(j, int(np.around(k1 / 2)))
            if len(theirs & near) > 2 / 3 * len(theirs):
                grown |= theirs
        for j in grown:
            encoding[i, j] = np.exp(-distance[i, j])
    encoding /= encoding.sum(axis=1, keepdims=True)
    if k2 > 1:
        encoding = np.array([encoding[order[i, :k2]].mean(axis=0) for i in range(number)])
    shared = np.minimum(encoding[:probes, None], encoding[None, probes:]).sum(axis=2)
    jaccard = 1 - shared / (2 - shared)
    return (1 - lambda_value) * jaccard + lambda_value * distance[:probes, probes:]


parameters = st.tuples(st.integers(1, 25), st.integers(1, 8), st.sampled_from([0.0, 0.3, 1.0]))


@st.composite
def matrices(draw):
    """Whole numbers, so that ties are exact; the two directions may differ."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    probes, items = draw(st.integers(1, 6)), draw(st.integers(1, 40))
    most = draw(st.sampled_from([0, 1, 5, 60]))
    whole = rng.integers(0, most + 1, (probes + items, probes + items)).astype(float)
    if draw(st.booleans()):
        whole = np.minimum(whole, whole.T)
    whole[:probes, probes:] = whole[probes:, :probes].T  # the programs take one of the two
    np.fill_diagonal(whole, 0)
    return whole, probes


def cut(whole, probes):
    return whole[:probes, probes:], whole[:probes, :probes], whole[probes:, probes:]


@given(matrices(), parameters, st.sampled_from([np.float32, np.float64, np.int64, torch.float32, ">f4"]))
def test_distances_are_squared_and_re_ranked(case, parameters, dtype):
    whole, probes = case
    if isinstance(dtype, torch.dtype):
        given = [torch.as_tensor(part, dtype=dtype) for part in cut(whole, probes)]
    else:
        given = [part.astype(dtype) for part in cut(whole, probes)]
    found = re_ranking(*given, *parameters)
    assert isinstance(found, np.ndarray)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, authors(whole**2, probes, *parameters), atol=2e-6)


@given(exact_sides(), parameters)
def test_features_of_one_norm(case, parameters):
    probe, gallery = case
    every = np.vstack(case).astype(np.float64)
    whole = ((every[:, None] - every) ** 2).sum(axis=2)
    expected = authors(whole, len(probe), *parameters)
    np.testing.assert_allclose(re_ranking(probe, gallery, *parameters), expected, atol=2e-6)
    np.testing.assert_allclose(
        re_ranking(torch.from_numpy(probe), torch.from_numpy(8 * gallery / 8), *parameters), expected, atol=2e-6
    )


@given(st.integers(0, 2**32), st.integers(1, 6), st.integers(1, 40), parameters, st.booleans())
def test_features_of_different_norms(seed, probes, items, parameters, with_local):
    rng = np.random.default_rng(seed)
    every = rng.integers(-3, 4, (probes + items, 3)).astype(np.float32)  # zero rows and equal rows among them
    whole = ((every[:, None] - every) ** 2).sum(axis=2)
    options = {}
    if with_local:
        options["local_distmat"] = rng.integers(0, 5, whole.shape).astype(np.float32)
        np.fill_diagonal(options["local_distmat"], 0)
        whole += options["local_distmat"]
    found = re_ranking(every[:probes], every[probes:], *parameters, **options)
    np.testing.assert_allclose(found, authors(whole, probes, *parameters), atol=2e-6)


@given(matrices(), parameters)
def test_a_local_matrix_alone_is_taken_as_it_is(case, parameters):
    whole, probes = case
    nothing = np.ones((probes, 2)), np.ones((len(whole) - probes, 2))
    found = re_ranking(*nothing, *parameters, local_distmat=whole, only_local=True)
    np.testing.assert_allclose(found, authors(whole, probes, *parameters), atol=2e-6)


@pytest.mark.filterwarnings("ignore:features are nearly equal:blurrerank.BlurrerankWarning")
@given(sides())
def test_both_ways_to_call_agree_with_the_plain_version(case):
    """On features as they come; their squared distances, and those squared again as torchreid does."""
    probe, gallery = (rows / np.linalg.norm(rows.astype(np.float64), axis=1, keepdims=True) for rows in case)
    whole = [2 - 2 * a @ b.T for a, b in ((probe, gallery), (probe, probe), (gallery, gallery))]
    once = re_ranking(*(np.sqrt(np.maximum(part, 0)) for part in whole), k1=7, k2=3, lambda_value=0.4)
    np.testing.assert_allclose(once, reference.k_reciprocal(probe, gallery, 7, 3, 0.4), atol=2e-5)
    np.testing.assert_allclose(re_ranking(probe, gallery, k1=7, k2=3, lambda_value=0.4), once, atol=2e-5)
    twice = re_ranking(*whole, k1=7, k2=3, lambda_value=0.4)
    expected = reference.k_reciprocal(probe, gallery, 7, 3, 0.4, base_distance="squared-twice")
    np.testing.assert_allclose(twice, expected, atol=2e-5)


def test_names_and_defaults_of_either_way():
    rng = np.random.default_rng(0)
    probe, gallery = rng.standard_normal((4, 5)), rng.standard_normal((50, 5))
    pairs = (probe, gallery), (probe, probe), (gallery, gallery)
    parts = [np.linalg.norm(a[:, None] - b, axis=2) for a, b in pairs]
    first = re_ranking(*parts, 20, 6, 0.3)
    np.testing.assert_array_equal(re_ranking(*parts), first)
    np.testing.assert_array_equal(
        re_ranking(g_g_dist=parts[2], q_q_dist=parts[1], q_g_dist=parts[0], k1=20), first
    )
    np.testing.assert_allclose(re_ranking(probe, gallery, 20, 6, 0.3), first, atol=1e-5)
    np.testing.assert_array_equal(
        re_ranking(probFea=probe, galFea=gallery, k1=20, k2=6, lambda_value=0.3),
        re_ranking(probe, gallery, 20, 6, 0.3),
    )
    for call in (lambda: re_ranking(probe, gallery), lambda: re_ranking(*parts[:2])):
        with pytest.raises(TypeError, match="k1"):
            call()


def test_memory_and_threads_do_not_show(monkeypatch):
    """The work is cut into rows; where, does not matter."""
    rng = np.random.default_rng(1)
    probe, gallery = rng.standard_normal((9, 5)), rng.standard_normal((70, 5))
    whole = re_ranking(probe, gallery, 10, 4, 0.3)
    monkeypatch.setattr("blurrerank.compat.CHUNK_BYTES", {"cpu": 16 * 79 * 4})
    np.testing.assert_allclose(re_ranking(probe, gallery, 10, 4, 0.3), whole, atol=1e-6)


ONES = np.ones((2, 3)), np.zeros((2, 2)), np.zeros((3, 3))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: re_ranking(ONES[0], ONES[2], ONES[2]),
            "q_q_dist is 3 x 3, but the other matrices imply 2 x 2",
        ),
        (
            lambda: re_ranking(ONES[0], ONES[1], ONES[1]),
            "g_g_dist is 2 x 2, but the other matrices imply 3 x 3",
        ),
        (lambda: re_ranking(ONES[0][0], ONES[1], ONES[2]), r"q_g_dist has shape \(3,\)"),
        (lambda: re_ranking(ONES[0], ONES[1], ONES[2] * np.nan), "g_g_dist is nan at row 0, column 0"),
        (lambda: re_ranking(ONES[0], np.eye(2), np.eye(3)), "q_q_dist seems to hold similarities.*2 - 2"),
        (lambda: re_ranking(1e30 * ONES[0], *ONES[1:]), "overflow float32"),
        (
            lambda: re_ranking(ONES[0], ONES[1], 1, 1, 0.3),
            "probFea is 2 x 3, but the other matrices imply any x 2",
        ),
        (lambda: re_ranking(ONES[0], ONES[0][:0], 1, 1, 0.3), r"galFea has shape \(0, 3\)"),
        (lambda: re_ranking(ONES[0].astype(str), ONES[2], 1, 1, 0.3), "probFea is <U"),
        (lambda: re_ranking(ONES[0], ONES[2], 1, 1, 0.3, only_local=True), "pass local_distmat"),
        (lambda: re_ranking(ONES[0], ONES[2], 1, 1, 0.3, np.eye(3)), "local_distmat is 3 x 3, .* 5 x 5"),
    ],
)
def test_what_does_not_fit_is_named(call, message):
    with pytest.raises(br.InputError, match=message) as error:
        call()
    assert "\n" not in str(error.value)


def test_parameters_outside_their_range():
    for wrong in ({"k1": 0}, {"k2": 0}, {"lambda_value": 1.5}):
        with pytest.raises(br.ParameterError):
            re_ranking(*ONES, **wrong)


@pytest.mark.parametrize("called_with", ["distances", "features"])
def test_the_golden_lists(shared, called_with):
    with h5py.File(shared / "data/omniglot.h5") as file:
        probe, gallery = (file[f"{side}/features"][()].astype(np.float32) for side in ("probe", "gallery"))
    with h5py.File(shared / "golden/omniglot.h5") as file:
        golden, scores = (file[f"k_reciprocal_20_6_0.3/{name}"][()] for name in ("indices", "scores"))
    probe, gallery = (rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (probe, gallery))
    if called_with == "features":
        final = re_ranking(probe, gallery, 20, 6, 0.3)
    else:
        pairs = (probe, gallery), (probe, probe), (gallery, gallery)
        final = re_ranking(*(np.sqrt(np.maximum(2 - 2 * a @ b.T, 0)) for a, b in pairs), 20, 6, 0.3)
    lists = np.argsort(final, axis=1, kind="stable")[:, : golden.shape[1]]
    check_lists(lists, np.take_along_axis(final, lists, axis=1), golden, scores)


EXTREME = np.array([np.inf, 3.4028235e38, 1e30, 1.0, 1e-38, 1e-45, 0.0], dtype=np.float32)
EXTREME = np.concatenate([EXTREME, -EXTREME[-2::-1]])[:-1]


@st.composite
def rankings(draw):
    """Any permutation, depth, padding and scores."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    probes, size = draw(st.integers(1, 5)), draw(st.integers(1, 30))
    depth = draw(st.integers(1, size))
    indices = np.array([rng.permutation(size)[:depth] for _ in range(probes)], dtype=np.int32)
    kind = draw(st.sampled_from(["cosine", "extreme", "close", "lowest"]))
    if kind == "close":
        scores = np.float32(0.5) + np.arange(depth, 0, -1, dtype=np.float32) * np.float32(2**-24)
    elif kind == "lowest":
        scores = -np.finfo(np.float32).max * np.linspace(0.5, 1, depth).astype(np.float32)
    else:
        pool = EXTREME if kind == "extreme" else rng.standard_normal(100).astype(np.float32)
        depth = min(depth, len(pool))
        indices = indices[:, :depth]
        scores = np.sort(rng.choice(pool, depth, replace=False))[::-1]
    scores = np.tile(scores, (probes, 1))
    for p in range(probes):
        ends = draw(st.integers(0, depth))
        indices[p, ends:] = -1
        scores[p, ends:] = draw(st.sampled_from([-np.inf, np.nan, 7.0]))
    return br.Ranking(indices, scores, gallery_size=size)


@given(rankings())
def test_any_sort_of_the_matrix_gives_the_lists(ranking):
    matrix = to_distmat(ranking)
    assert matrix.dtype == np.float32
    assert matrix.shape == (len(ranking), ranking.gallery_size)
    order = np.argsort(matrix, axis=1)
    for row, near, indices in zip(matrix, order, ranking.indices, strict=True):
        listed = indices[indices >= 0]
        np.testing.assert_array_equal(near, [*listed, *sorted(set(range(len(row))) - set(listed))])
        assert (np.diff(row[near]) > 0).all()


def test_distances_are_minus_the_scores_where_these_leave_room():
    arrays = np.random.default_rng(0).standard_normal((2, 20, 4))
    data = br.FeatureSet.from_arrays(arrays[0], arrays[1])
    ranking = br.rerank(data, "cosine", depth=20)
    given = np.take_along_axis(to_distmat(ranking), ranking.indices.astype(int), axis=1)
    np.testing.assert_array_equal(given, -ranking.scores)


def test_local_blurring_as_a_matrix():
    arrays = np.random.default_rng(0).standard_normal((2, 30, 4)).astype(np.float32)
    probe, gallery = arrays[0][:6], arrays[1]
    heads, _ = reference.local_blurring(probe, gallery, 10, 0.2)
    expected, _ = reference.cosine_ranking(probe, gallery)
    expected[:, :10] = heads
    for kind in (np.asarray, torch.as_tensor):
        matrix = lbr_distmat(kind(probe), kind(gallery), topn=10, sigma=0.2)
        np.testing.assert_array_equal(np.argsort(matrix, axis=1), expected)


class StandIn:
    """What OML's RetrievalResults has, version 3.1: constructor, checks and attributes."""

    def __init__(self, distances, retrieved_ids, gt_ids=None):
        for distance, ids in zip(distances, retrieved_ids, strict=True):
            assert (distance.diff() >= 0).all()
            assert len(distance) == len(ids) == len(ids.unique())
        self.distances, self.retrieved_ids = tuple(distances), tuple(retrieved_ids)
        self.gt_ids = None if gt_ids is None else tuple(gt_ids)

    def is_empty(self):
        return all(len(ids) == 0 for ids in self.retrieved_ids)

    def deepcopy(self):
        return StandIn(self.distances, self.retrieved_ids, self.gt_ids)


class Split:
    """A dataset of which some are queries and some gallery, as OML's IQueryGalleryDataset."""

    def __init__(self, queries, gallery):
        self.queries, self.gallery = torch.as_tensor(queries), torch.as_tensor(gallery)

    def __len__(self):
        return len(self.queries) + len(self.gallery)

    def get_query_ids(self):
        return self.queries

    def get_gallery_ids(self):
        return self.gallery


@pytest.fixture
def oml(monkeypatch):
    for name in ("oml", "oml.retrieval", "oml.retrieval.retrieval_results"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    sys.modules["oml.retrieval.retrieval_results"].RetrievalResults = StandIn


@pytest.mark.parametrize("kind", [np.asarray, torch.as_tensor])
def test_a_post_processor_for_oml(oml, kind):
    """Against a stand-in, with lists of any length; tests/test_recipes.py runs it with OML itself."""
    rng = np.random.default_rng(0)
    embeddings = rng.standard_normal((40, 6)).astype(np.float32)
    shuffled = rng.permutation(40)
    split = Split(shuffled[:5], shuffled[5:])
    probe, gallery = embeddings[shuffled[:5]], embeddings[shuffled[5:]]
    lists, _ = reference.cosine_ranking(probe, gallery)
    lengths = (35, 20, 8, 3, 0)
    results = StandIn(
        [torch.linspace(0, 1, length) for length in lengths],
        [torch.from_numpy(near[:length].copy()) for near, length in zip(lists, lengths, strict=True)],
        [torch.tensor([1])] * 5,
    )
    with pytest.warns(br.BlurrerankWarning, match="1 of 5 probes have no candidates"):
        done = OMLLocalBlurring(kind(embeddings), top_n=10, sigma=0.2).process(rr=results, dataset=split)
    assert done.gt_ids == results.gt_ids
    for p, length in enumerate(lengths):
        expected = lists[p, :length].copy()
        head = min(10, length)
        if head:
            order, _ = reference.local_blurring(probe[p : p + 1], gallery[expected[:head]], 10, 0.2)
            expected[:head] = expected[order[0]]
        np.testing.assert_array_equal(done.retrieved_ids[p], expected)
        np.testing.assert_array_equal(done.distances[p], results.distances[p])
    with pytest.raises(br.InputError, match="39 rows and dataset 40"):
        OMLLocalBlurring(embeddings[1:]).process(results, split)
    nothing = StandIn([torch.empty(0)] * 5, [torch.empty(0, dtype=torch.int64)] * 5)
    assert OMLLocalBlurring(embeddings).process(nothing, split).is_empty()
    with pytest.raises(br.ParameterError):
        OMLLocalBlurring(embeddings, top_n=0)


def test_without_oml_the_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "oml", None)
    with pytest.raises(br.InputError, match="open-metric-learning"):
        OMLLocalBlurring(np.eye(3))


def test_one_import_line_switches_an_evaluation_loop(tmp_path):
    """That line alone decides what the second row shows; k-reciprocal re-ranking improves the mAP."""
    source = (ROOT / "examples/torchreid_style.py").read_text()
    switched = "from blurrerank.compat import re_ranking"
    assert source.count(switched) == 1
    (tmp_path / "omniglot.h5").symlink_to(ROOT / "examples/omniglot.h5")
    found = []
    other = source.replace(switched, "re_ranking = lambda q_g, q_q, g_g: q_g")
    for name, text in (("with", source), ("without", other)):
        script = tmp_path / f"{name}.py"
        script.write_text(text)
        done = subprocess.run(
            [sys.executable, script], capture_output=True, text=True, timeout=120, cwd=ROOT, check=False
        )
        assert done.returncode == 0, done.stderr
        found.append(dict(re.findall(r"^(\S+) +mAP (\d\.\d{4})", done.stdout, re.MULTILINE)))
    both, plain = found
    assert set(both) == {"baseline", "re-ranked"}
    assert plain == {"baseline": both["baseline"], "re-ranked": both["baseline"]}
    assert float(both["re-ranked"]) > float(both["baseline"])
    data = br.load(ROOT / "examples/omniglot.h5")
    assert float(both["baseline"]) == pytest.approx(br.evaluate(br.rerank(data, "cosine"), data).mAP, abs=1e-4)
