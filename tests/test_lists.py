"""Search and local blurring against reference.py: any shape, ties, duplicates, n beyond the gallery."""

from __future__ import annotations

import h5py
import numpy as np
import pytest
import torch
from conftest import ROOT, check_lists, features
from hypothesis import assume, given
from hypothesis import strategies as st

import blurrerank as br
from blurrerank import reference

SWITCHES = st.fixed_dictionaries(
    {}, optional={"probe_in_graph": st.booleans(), "cosine": st.booleans(), "steps": st.integers(1, 3)}
)


@st.composite
def sides(draw, distinct=False):
    """Probe and gallery; small whole numbers, so that ties and duplicate rows are common, unless distinct."""
    dim = draw(st.integers(1, 9))
    probes, gallery = draw(st.integers(1, 7)), draw(st.integers(1, 90))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    if distinct:
        return rng.standard_normal((probes, dim)), rng.standard_normal((gallery, dim))
    arrays = [rng.integers(-2, 3, (rows, dim)).astype(np.float32) for rows in (probes, gallery)]
    for rows in arrays:
        rows[~rows.any(axis=1), 0] = 1
    return tuple(arrays)


@given(sides(), st.integers(1, 100), st.integers(1, 100))
def test_search_gives_the_best_n_by_cosine(arrays, topn, block):
    probe, gallery = arrays
    data = br.FeatureSet.from_arrays(probe, gallery)
    ranking = br.rerank(data, "cosine", topn=topn, block=block)
    expected = reference.unit_rows(probe) @ reference.unit_rows(gallery).T
    shown = min(topn, len(gallery))
    assert ranking.indices.shape == (len(probe), shown)
    best = -np.sort(-expected, axis=1)[:, :shown]
    np.testing.assert_allclose(np.take_along_axis(expected, ranking.indices, axis=1), best, atol=1e-5)


@given(sides(), st.integers(1, 100), st.integers(1, 100))
def test_the_lower_gallery_index_wins_every_tie(arrays, topn, block):
    """Every gallery row three times: copies of a row tie exactly, and their order is that of the gallery."""
    probe, gallery = arrays
    rows = len(gallery)
    data = br.FeatureSet.from_arrays(probe, np.concatenate([gallery, gallery, gallery]))
    for method in ("cosine", "lbr"):
        indices = br.rerank(data, method, topn=topn, block=block).indices
        for listed in indices:
            for row in range(rows):
                copies = listed[listed % rows == row]
                assert list(copies) == sorted(copies)
                # Nor is a later copy listed where an earlier one is not.
                assert list(copies // rows) == list(range(len(copies)))


@given(sides(), st.integers(1, 100), st.sampled_from([0.01, 0.02, 0.1, 0.3, 5.0]), SWITCHES)
def test_blurring_equals_the_reference_on_the_same_neighbourhood(arrays, topn, sigma, switches):
    probe, gallery = arrays
    data = br.FeatureSet.from_arrays(probe, gallery)
    ranking = br.rerank(data, topn=topn, sigma=sigma, **switches)
    queries, items = reference.unit_rows(probe), reference.unit_rows(gallery)
    for p, query in enumerate(queries):
        head = ranking.indices[p]
        cosines = items @ query
        outside = np.setdiff1d(np.arange(len(items)), head)
        assert not len(outside) or cosines[outside].max() < cosines[head].min() + 1e-5
        transformed = reference.blurred_similarity(query, items[head], sigma, **switches)
        assert np.isfinite(ranking.scores[p]).all()
        if not switches.get("cosine"):
            # The cosine of features that cancelled each other out is rounding and nothing else.
            np.testing.assert_allclose(ranking.scores[p], transformed, atol=1e-5)
            assert (np.diff(transformed) < 1e-5).all()


@given(sides(distinct=True), st.integers(1, 100), st.sampled_from([0.02, 0.1, 0.3]), SWITCHES)
def test_whole_lists_equal_the_reference(arrays, topn, sigma, switches):
    probe, gallery = arrays
    heads, scores = reference.local_blurring(probe, gallery, topn, sigma, **switches)
    expected, cosines = reference.cosine_ranking(probe, gallery)
    expected[:, : heads.shape[1]] = heads
    assume(_apart(cosines) and _apart(scores))
    ranking = br.rerank(
        br.FeatureSet.from_arrays(probe, gallery), topn=topn, sigma=sigma, depth=len(gallery), **switches
    )
    np.testing.assert_array_equal(ranking.indices, expected)
    if not switches.get("cosine"):
        np.testing.assert_allclose(ranking.scores[:, : scores.shape[1]], scores, atol=1e-5)


@given(sides(distinct=True), st.integers(1, 100), st.integers(0, 2**32))
def test_permuting_the_gallery_permutes_the_list(arrays, topn, seed):
    probe, gallery = arrays
    order = np.random.default_rng(seed).permutation(len(gallery))
    assume(_apart(reference.cosine_ranking(probe, gallery)[1]))
    assume(_apart(reference.local_blurring(probe, gallery, topn)[1]))
    before, _ = br.local_blurring(probe, gallery, topn=topn)
    after, _ = br.local_blurring(probe, gallery[order], topn=topn)
    np.testing.assert_array_equal(order[after], before)


def _apart(scores):
    return scores.shape[1] < 2 or (np.diff(scores, axis=1) < -1e-6).all()


@pytest.mark.parametrize("rows", [2, 63, 64, 65, 300])
def test_all_rows_equal_lists_the_gallery_in_order(rows):
    data = br.FeatureSet.from_arrays(np.ones((3, 5)), np.ones((rows, 5)))
    for method in ("cosine", "lbr"):
        ranking = br.rerank(data, method, topn=50, depth=rows, block=17)
        np.testing.assert_array_equal(ranking.indices, np.tile(np.arange(rows), (3, 1)))
        assert np.isfinite(ranking.scores).all()


def test_a_tie_across_the_end_of_the_list_goes_to_the_lower_index():
    gallery = np.tile([[1.0, 0.0], [0.0, 1.0]], (500, 1))
    data = br.FeatureSet.from_arrays([[1.0, 0.1]], gallery)
    for block in (64, 100, 1000):
        ranking = br.rerank(data, "cosine", topn=10, block=block)
        np.testing.assert_array_equal(ranking.indices, [np.arange(0, 20, 2)])


def test_a_gallery_read_again_for_each_batch_gives_the_same_lists():
    """A budget that cannot hold the gallery: rows are streamed, and gathered for blurring by another pass."""
    rng = np.random.default_rng(3)
    probe, gallery = rng.standard_normal((40, 64)), rng.standard_normal((3000, 64)).astype(np.float16)
    data = br.FeatureSet.from_arrays(probe, gallery)
    # What is said to be enough is: a warning would be an error here.
    roomy = br.rerank(data, topn=20, memory=2 << 20)
    with pytest.warns(br.BlurrerankWarning, match=r"read 20 times; a budget of 2 MiB would"):
        tight = br.rerank(data, topn=20, memory=200_000)
    np.testing.assert_array_equal(tight.indices, roomy.indices)
    np.testing.assert_array_equal(tight.scores, roomy.scores)
    with pytest.raises(br.ParameterError, match="too small for one probe: raise it to"):
        br.rerank(data, topn=20, memory=10_000)


@pytest.mark.parametrize("scale", [1e-30, 1e-20, 1.0, 1e18, 1e30])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_norm_of_a_row_does_not_matter(scale, dtype):
    rng = np.random.default_rng(4)
    probe, gallery = rng.standard_normal((5, 16)), rng.standard_normal((80, 16))
    gallery[::2] *= scale
    plain = br.rerank(br.FeatureSet.from_arrays(probe, gallery / np.linalg.norm(gallery, axis=1)[:, None]))
    scaled = br.rerank(br.FeatureSet.from_arrays(probe.astype(dtype), gallery.astype(dtype)))
    np.testing.assert_array_equal(scaled.indices, plain.indices)
    np.testing.assert_allclose(scaled.scores, plain.scores, atol=1e-5)


def test_double_precision_beyond_the_range_of_float32():
    rng = np.random.default_rng(5)
    probe, gallery = rng.standard_normal((5, 16)), rng.standard_normal((80, 16))
    huge = br.rerank(br.FeatureSet.from_arrays(probe * 1e200, gallery * 1e-200))
    np.testing.assert_array_equal(huge.indices, br.rerank(br.FeatureSet.from_arrays(probe, gallery)).indices)


def test_the_functional_form_takes_tensors_and_leaves_them_alone():
    probe, gallery = torch.randn(4, 8), torch.randn(30, 8) * 1e20
    kept = gallery.clone()
    indices, scores = br.local_blurring(probe, gallery, topn=10, sigma=0.2)
    assert torch.equal(gallery, kept)
    assert (indices.shape, indices.dtype, scores.dtype) == ((4, 10), torch.int64, torch.float32)
    expected, _ = reference.local_blurring(probe.numpy(), kept.numpy(), 10, 0.2)
    np.testing.assert_array_equal(indices.numpy(), expected)


def test_depth_beyond_the_head_continues_by_cosine():
    rng = np.random.default_rng(6)
    data = br.FeatureSet.from_arrays(rng.standard_normal((5, 16)), rng.standard_normal((200, 16)))
    cosine = br.rerank(data, "cosine", topn=200)
    deep = br.rerank(data, topn=30, depth=200)
    np.testing.assert_array_equal(deep.indices[:, 30:], cosine.indices[:, 30:])
    np.testing.assert_array_equal(np.sort(deep.indices[:, :30]), np.sort(cosine.indices[:, :30]))
    np.testing.assert_array_equal(br.rerank(data, topn=30, depth=7).indices, deep.indices[:, :7])


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"topn": 0}, "topn must be a whole number of at least 1, not 0"),
        ({"topn": 2.5}, "topn must be a whole number"),
        ({"sigma": 0}, "sigma must be a finite number above 0 (at least 1e-30), not 0"),
        ({"sigma": float("nan")}, "sigma must be a finite number above 0 (at least 1e-30), not nan"),
        ({"sigma": 1e-40}, "sigma must be a finite number above 0 (at least 1e-30), not 1e-40"),
        ({"sigma": "small"}, "sigma must be a finite number above 0 (at least 1e-30), not 'small'"),
        ({"depth": "all"}, "depth must be a whole number of at least 1, not 'all'"),
        ({"steps": 0}, "steps must be a whole number of at least 1"),
        ({"depth": 0}, "depth must be a whole number of at least 1, not 0"),
        ({"block": 0}, "block must be at least 1"),
        ({"k1": 20}, "method lbr has no parameter 'k1'; it has: cosine, probe_in_graph, sigma, steps, topn"),
        ({"preset": "mars"}, "method lbr has no preset 'mars'; it has: market1501, dukemtmc, cuhk03, msmt17"),
        (
            {"method": "magic"},
            "method 'magic' is not known: use alpha-qe or aqe or",
        ),
        ({"device": "tpu"}, "device 'tpu' is not known"),
        ({"device": "meta"}, "device 'meta' is not supported"),
    ],
)
def test_parameters_out_of_range_are_refused(params, message):
    data = br.FeatureSet.from_arrays(np.eye(3), np.eye(3))
    with pytest.raises(br.ParameterError) as error:
        br.rerank(data, **params)
    assert message in str(error.value)


def test_the_example_features_against_the_reference():
    """Real features that every clone has, in float64 by the definition."""
    with h5py.File(ROOT / "examples/omniglot.h5") as file:
        probe, gallery = file["probe/features"][()], file["gallery/features"][()]
    for topn, sigma in ((50, 0.1), (150, 0.02), (20, 0.3)):
        ranking = br.rerank(br.FeatureSet.from_arrays(probe, gallery), topn=topn, sigma=sigma)
        check_lists(ranking.indices, ranking.scores, *reference.local_blurring(probe, gallery, topn, sigma))


@pytest.mark.parametrize("sigma", [1e-30, 1e-4, 1e4, 1e300])
def test_any_sigma_gives_finite_scores(sigma):
    rng = np.random.default_rng(8)
    probe, gallery = rng.standard_normal((5, 16)), rng.standard_normal((80, 16))
    ranking = br.rerank(br.FeatureSet.from_arrays(probe, gallery), topn=30, sigma=sigma)
    assert np.isfinite(ranking.scores).all()
    if sigma <= 1e-4:
        # Each item keeps to itself, so the list is the cosine's.
        np.testing.assert_array_equal(ranking.indices, reference.cosine_ranking(probe, gallery)[0][:, :30])


def test_options_given_win_over_the_preset():
    data = br.FeatureSet.from_arrays(np.eye(3), np.eye(3))
    params = br.rerank(data, preset="msmt17", sigma=0.5).params
    assert (params["topn"], params["sigma"]) == (150, 0.5)


def test_sort_keys_order_as_the_lists_do():
    from blurrerank.data.sort_keys import from_sort_keys, sort_keys

    scores = torch.tensor([-0.0, 0.0, 1.0, -1.0, 1e-45, -1e-45, float("inf"), -0.0, 1.0])
    order = sort_keys(scores, torch.arange(9)).argsort(descending=True)
    assert order.tolist() == [6, 2, 8, 4, 0, 1, 7, 5, 3], "both zeros tie, and the lower index is first"
    indices, back = from_sort_keys(sort_keys(scores, torch.arange(9) + 2**32 - 9))
    assert indices.tolist() == list(range(2**32 - 9, 2**32))
    assert torch.equal(back, scores)


def test_what_are_no_candidates_is_refused():
    from blurrerank.data.candidates import Candidates

    indices, scores = torch.zeros(2, 3, dtype=torch.int64), torch.zeros(2, 3)
    Candidates(indices, scores)
    for wrong in (
        (indices, scores[:, :2]),
        (indices[0], scores[0]),
        (indices.int(), scores),
        (indices, scores.double()),
    ):
        with pytest.raises(br.InputError, match="candidates"):
            Candidates(*wrong)


def test_streaming_needs_memory_for_the_head_alone():
    rng = np.random.default_rng(10)
    data = br.FeatureSet.from_arrays(rng.standard_normal((3, 256)), rng.standard_normal((3000, 256)))
    deep = br.rerank(data, topn=20, depth=3000, memory=4 << 20)
    np.testing.assert_array_equal(deep.indices, br.rerank(data, topn=20, depth=3000).indices)


@pytest.mark.parametrize("view", ["transposed", "strided", "expanded"])
def test_tensors_in_any_layout(view):
    base = torch.randn(24, 40)
    gallery = {"transposed": base.T, "strided": base[:, ::2], "expanded": base[:1].expand(30, 40)}[view]
    probe = torch.randn(3, gallery.shape[1], requires_grad=True)
    data = br.FeatureSet.from_arrays(probe, gallery)
    plain = br.FeatureSet.from_arrays(probe.detach().numpy(), gallery.contiguous().numpy())
    ranking = br.rerank(data)
    np.testing.assert_array_equal(ranking.indices, br.rerank(plain).indices)
    assert ranking.digest == br.rerank(plain).digest


def test_the_digest_is_of_everything_that_counts():
    base = features()
    digests = set()
    for changes in ({}, {"probe": base["probe"] + 1}, {"gallery": base["gallery"] + 1}):
        digests.add(br.FeatureSet.from_arrays(**(base | changes)).digest())
    assert len(digests) == 3
    labels = set()
    for name in (None, "probe_ids", "gallery_ids", "probe_cams", "gallery_cams"):
        changes = {} if name is None else {name: base[name] + 1}
        labels.add(br.FeatureSet.from_arrays(**(base | changes)).labels_digest())
    assert len(labels) == 5


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
def test_a_gpu_gives_the_same_lists():
    rng = np.random.default_rng(7)
    data = br.FeatureSet.from_arrays(rng.standard_normal((200, 64)), rng.standard_normal((3000, 64)))
    cpu, gpu = br.rerank(data, device="cpu"), br.rerank(data, device="cuda")
    np.testing.assert_allclose(gpu.scores, cpu.scores, atol=1e-5)
    swapped = gpu.indices != cpu.indices
    assert swapped.mean() < 1e-3


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_missing_gpu_is_one_clear_line():
    with pytest.raises(
        br.BlurrerankError, match="device 'cuda' is not available: torch sees 0 CUDA devices; use cpu"
    ):
        br.rerank(br.FeatureSet.from_arrays(np.eye(2), np.eye(2)), device="cuda")
