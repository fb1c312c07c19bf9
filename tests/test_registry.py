"""What holds for every method in the registry, and what those that know cameras compute."""

from __future__ import annotations

import json
import warnings

import h5py
import numpy as np
import pytest
import torch
from conftest import check_lists, features
from hypothesis import given
from hypothesis import strategies as st

import blurrerank as br
from blurrerank import reference
from blurrerank.data.candidates import Candidates
from blurrerank.engine.request import setting_of
from blurrerank.engine.samples import RowSample
from blurrerank.methods import GraphRanker, available, create
from blurrerank.methods.kinds.steps import Transform

METHODS = available()
CAMERAS = ("camera-graph", "ca-jaccard", "center", "gcr", "kwf", "pvg")


def can_work_online(method: str) -> bool:
    try:
        setting_of(create(method), online=True)
    except br.ParameterError:
        return False
    return True


@pytest.mark.parametrize("dim", [16, 64, 200])
@pytest.mark.parametrize("method", [method for method in METHODS if can_work_online(method)])
def test_online_answers_do_not_depend_on_company(method, dim):
    data = br.FeatureSet.from_arrays(**features(seed=2, probes=20, gallery=120, dim=dim))
    whole = br.rerank(data, method, online=True, depth=120)
    for probe in (0, 7, 19):
        side = br.Side(data.probe.features[probe : probe + 1], cams=data.probe.cams[probe : probe + 1])
        alone = br.rerank(br.FeatureSet(side, data.gallery), method, online=True, depth=120)
        np.testing.assert_array_equal(alone.indices[0], whole.indices[probe])
        np.testing.assert_array_equal(alone.scores[0], whole.scores[probe])


@pytest.mark.parametrize("method", METHODS)
def test_an_index_answers_as_the_method_does_online_or_cannot_be_built(method, tmp_path):
    """A feature step is followed by a ranker that works online, a head ranker has no encoding."""
    found = create(method)
    steps = [step for step in found.feature_steps if isinstance(step, Transform)]
    if not steps and not (isinstance(found.ranker, GraphRanker) and can_work_online(method)):
        with pytest.raises(br.ParameterError, match=r"cannot be indexed|an index supports only steps"):
            br.build_index(np.eye(9), tmp_path / "i.h5", f"{method}+gnn" if found.feature_steps else method)
        return
    chain = f"{method}+camera-graph" if steps else method
    data = br.FeatureSet.from_arrays(**features(seed=2, probes=20, gallery=120, dim=16))
    looks_at_cameras = any(step.needs_cameras for step in steps)
    earlier = br.Side(data.probe.features[:9], cams=data.probe.cams[:9] + 70) if looks_at_cameras else None
    index = br.build_index(data.gallery, tmp_path / "i.h5", chain, camera_images=earlier)
    found = index.rerank(data.probe, topn=120)
    expected = br.rerank(data, chain, online=True, camera_images=earlier, depth=120)
    np.testing.assert_array_equal(found.indices, expected.indices)
    np.testing.assert_array_equal(found.scores, expected.scores)
    assert found.params == expected.params
    for preset in create(chain).ranker.presets:
        index = br.build_index(data.gallery, tmp_path / f"{preset}.h5", chain, preset=preset)
        expected = br.rerank(data, chain, online=True, preset=preset, depth=120)
        found = index.rerank(data.probe, topn=120)
        np.testing.assert_array_equal(found.indices, expected.indices)
        assert found.params == expected.params


def odd(case: str) -> dict[str, np.ndarray]:
    """Sets at the edges of what methods are defined for."""
    arrays = features(seed=4, probes=1 if case == "one probe" else 9, gallery=40)
    cams = {side: arrays[f"{side}_cams"] for side in ("probe", "gallery")}
    match case:
        case "one camera":
            cams["probe"][:] = cams["gallery"][:] = 3
        case "a camera with one image":
            cams["gallery"][cams["gallery"] == 2] = 1
            cams["gallery"][17] = 2
        case "a camera that the gallery lacks":
            cams["gallery"][cams["gallery"] == 2] = 1
            cams["probe"][:4] = 2
        case "all equal":
            arrays["probe"][:] = arrays["gallery"][:] = arrays["gallery"][0].copy()
        case "duplicates":
            arrays["gallery"][5:14] = arrays["probe"]
            arrays["gallery"][20] = arrays["gallery"][21]
        case "opposite":
            arrays["gallery"][:20] = -arrays["gallery"][20:]
        case "one gallery image":
            arrays |= {name: values[:1] for name, values in arrays.items() if name.startswith("gallery")}
    return arrays


CASES = (
    *("one camera", "a camera with one image", "a camera that the gallery lacks", "all equal"),
    *("one probe", "duplicates", "opposite", "one gallery image", "short lists"),
)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("method", METHODS)
def test_sets_at_the_edges_are_ranked(method, case):
    arrays = odd(case)
    data = br.FeatureSet.from_arrays(**arrays)
    gallery = len(data.gallery)
    for online in (False, True) if can_work_online(method) else (False,):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = br.rerank(data, method, online=online, depth=gallery)
        np.testing.assert_array_equal(
            np.sort(found.indices, axis=1), np.arange(gallery)[None].repeat(len(data.probe), 0)
        )
        assert np.isfinite(found.scores).all()
        if case == "all equal" and method not in CAMERAS:  # cameras tell equal images apart
            np.testing.assert_array_equal(found.indices[0], np.arange(gallery))


@pytest.mark.parametrize("method", CAMERAS)
def test_without_cameras_the_message_says_what_to_do(method):
    arrays = {name: values for name, values in features().items() if not name.endswith("cams")}
    with pytest.raises(br.InputError, match=f"there are no cameras: method {method} needs them"):
        br.rerank(br.FeatureSet.from_arrays(**arrays), method)


def test_centring_by_the_gallery_looks_at_no_other_probe():
    data = br.FeatureSet.from_arrays(**features())
    assert br.rerank(data, "center").setting == "transductive"
    assert br.rerank(data, "center", online=True).setting == "online"
    assert br.rerank(data, "center:by=gallery").setting is None


def test_probes_whose_camera_is_unknown_are_told_of():
    data = br.FeatureSet.from_arrays(**odd("a camera that the gallery lacks"))
    said = "camera 2 has no images in the gallery: 7 of 9 probes are left unchanged"
    with pytest.warns(br.BlurrerankWarning, match=said):
        online = br.rerank(data, "center", online=True)
    few = "camera 2 has no images in the gallery, and center estimates it from 7 probes"
    with pytest.warns(br.BlurrerankWarning, match=few):
        together = br.rerank(data, "center")
    assert (online.indices[:4] != together.indices[:4]).any()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        br.rerank(br.FeatureSet.from_arrays(**features()), "center")


@st.composite
def images(draw):
    """Probes and gallery in clusters, seen by a few cameras."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    probes, gallery, dim = draw(st.integers(1, 8)), draw(st.integers(2, 40)), draw(st.integers(3, 12))
    centres = rng.standard_normal((draw(st.integers(1, 6)), dim))
    count = probes + gallery
    rows = centres[rng.integers(0, len(centres), count)] + 0.7 * rng.standard_normal((count, dim))
    cams = rng.integers(0, draw(st.integers(1, 4)), count)
    return rows.astype(np.float32), cams, probes


def ours(rows, cams, probes, method, **params):
    data = br.FeatureSet.from_arrays(
        rows[:probes], rows[probes:], probe_cams=cams[:probes], gallery_cams=cams[probes:]
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = br.rerank(data, method, depth=len(rows) - probes, **params)
    scores = np.empty(found.scores.shape)
    np.put_along_axis(scores, found.indices.astype(int), found.scores, axis=1)
    return scores


@given(
    images(),
    *(st.integers(1, 8), st.integers(0, 8), st.integers(1, 4), st.integers(0, 4), st.integers(1, 3)),
    st.sampled_from([0.0, 0.2, 1.0]),
)
def test_camera_graph_equals_the_reference(some, ki, ko, k2i, k2o, rounds, one_sided):
    rows, cams, probes = some
    similarities = reference.unit_rows(rows) @ reference.unit_rows(rows).T
    alike = cams[:, None] == cams[None, :]
    within, across = (reference.nearest_images(similarities, allowed) for allowed in (alike, ~alike))
    joined, near = (
        [[i, *within[i][: own - 1], *across[i][:others]] for i in range(len(rows))]
        for own, others in ((ki, ko), (k2i, k2o))
    )
    params = {"rounds": rounds, "one_sided": one_sided}
    expected = reference.propagated_graph(rows, joined, near, probes=probes, **params)
    found = ours(rows, cams, probes, "camera-graph", ki=ki, ko=ko, k2i=k2i, k2o=k2o, **params)
    np.testing.assert_allclose(found, expected, atol=2e-5)


@given(images(), st.integers(1, 30), st.integers(1, 9))
def test_gnn_equals_the_reference(some, k1, k2):
    rows, cams, probes = some
    lists = reference.nearest_images(reference.unit_rows(rows) @ reference.unit_rows(rows).T)
    joined, near = ([[i, *lists[i][: count - 1]] for i in range(len(rows))] for count in (k1, k2))
    rounds = 2 if k2 > 1 else 0
    expected = reference.propagated_graph(rows, joined, near, probes=probes, rounds=rounds)
    np.testing.assert_allclose(ours(rows, cams, probes, "gnn", k1=k1, k2=k2), expected, atol=2e-5)


@given(images(), st.integers(1, 9), st.integers(1, 5))
def test_gnn_online_equals_the_reference(some, k1, k2):
    rows, cams, probes = some
    items, queries = reference.unit_rows(rows[probes:]), reference.unit_rows(rows[:probes])
    lists = reference.nearest_images(items @ items.T)
    joined, near = ([[i, *lists[i][: count - 1]] for i in range(len(items))] for count in (k1, k2))
    nearest = np.argsort(-queries @ items.T, axis=1, kind="stable")[:, : max(k2 - 1, 1)].tolist()
    rounds = 2 if k2 > 1 else 0
    expected = reference.propagated_graph_online(queries, items, joined, near, nearest, rounds=rounds)
    found = ours(rows, cams, probes, "gnn", k1=k1, k2=k2, online=True)
    np.testing.assert_allclose(found, expected, atol=2e-5)


@given(
    images(),
    *(st.integers(1, 8), st.integers(0, 8), st.integers(1, 4), st.integers(0, 4), st.integers(1, 3)),
    st.sampled_from([0.2, 1.0]),
)
def test_camera_graph_online_equals_the_reference(some, ki, ko, k2i, k2o, rounds, one_sided):
    rows, cams, probes = some
    items, queries = reference.unit_rows(rows[probes:]), reference.unit_rows(rows[:probes])
    gallery_cams = cams[probes:]
    alike = gallery_cams[:, None] == gallery_cams[None, :]
    within, across = (reference.nearest_images(items @ items.T, allowed) for allowed in (alike, ~alike))
    joined, near = (
        [[i, *within[i][: own - 1], *across[i][:others]] for i in range(len(items))]
        for own, others in ((ki, ko), (k2i, k2o))
    )
    nearest = []
    for cosine, cam in zip(queries @ items.T, cams[:probes], strict=True):
        order = np.argsort(-cosine, kind="stable")
        own, others = order[gallery_cams[order] == cam], order[gallery_cams[order] != cam]
        nearest.append([*own[: max(k2i - 1, 1)], *others[:k2o]])
    params = {"rounds": rounds, "one_sided": one_sided}
    expected = reference.propagated_graph_online(queries, items, joined, near, nearest, **params)
    params |= {"ki": ki, "ko": ko, "k2i": k2i, "k2o": k2o}
    found = ours(rows, cams, probes, "camera-graph", **params, online=True)
    np.testing.assert_allclose(found, expected, atol=2e-5)


@given(images(), st.integers(1, 30), st.integers(1, 9), st.sampled_from([0.0, 0.3]))
def test_k_reciprocal_fastreid_equals_the_reference(some, k1, k2, lambda_value):
    rows, cams, probes = some
    params = {"k1": k1, "k2": k2, "lambda_value": lambda_value}
    expected = reference.k_reciprocal_fastreid(rows, probes=probes, **params)
    np.testing.assert_allclose(
        -ours(rows, cams, probes, "k-reciprocal-fastreid", **params), expected, atol=2e-5
    )


@given(images(), st.integers(0, 8), st.integers(0, 8), st.integers(1, 4), st.integers(0, 4))
def test_ca_jaccard_equals_the_reference(some, k1_intra, k1_inter, k2_intra, k2_inter):
    rows, cams, probes = some
    params = {"k1_intra": k1_intra, "k1_inter": k1_inter, "k2_intra": k2_intra, "k2_inter": k2_inter}
    expected = reference.ca_jaccard(rows, cams, probes=probes, **params)
    np.testing.assert_allclose(-ours(rows, cams, probes, "ca-jaccard", **params), expected, atol=2e-5)


@given(images(), st.integers(1, 30), st.integers(1, 4), st.integers(0, 6))
def test_ecn_equals_the_reference(some, k, t, q):
    rows, cams, probes = some
    expected = reference.ecn(rows, probes=probes, k=k, t=t, q=q)
    np.testing.assert_allclose(ours(rows, cams, probes, "ecn", k=k, t=t, q=q), expected, rtol=1e-5, atol=2e-5)


def test_pvg_gives_the_same_where_the_products_of_one_camera_fill_the_budget(monkeypatch):
    data = br.FeatureSet.from_arrays(**features(seed=4, probes=10, gallery=120, dim=64))
    expected, found = br.rerank(data, "pvg:ridge=0.1"), []
    together = RowSample._products
    monkeypatch.setattr(
        RowSample, "_products", lambda self, cams: found.append(len(cams)) or together(self, cams)
    )
    lists = br.rerank(data, "pvg:ridge=0.1", memory=8 * 8 * 64**2)
    assert found == [1] * len(np.unique(data.gallery.cams))
    np.testing.assert_array_equal(lists.scores, expected.scores)


@pytest.mark.parametrize(
    ("topn", "dim", "k"), [(400, 64, 9), (400, 1024, 9), (140, 64, 2000), (100, 512, 99), (60, 16, 0)]
)
def test_superglobal_takes_the_memory_that_it_asks_for(topn, dim, k):
    rows = torch.nn.functional.normalize(torch.randn(topn, dim, generator=torch.Generator().manual_seed(0)))
    near = (rows[:1] @ rows.T).sort(descending=True)
    ranker, found = create("superglobal", topn=topn, k=k), Candidates(near.indices, near.values)

    class Gallery:
        def gather(self, indices):
            distinct, places = torch.unique(indices, return_inverse=True)
            return rows[distinct], places

    with torch.profiler.profile(profile_memory=True) as watched:
        ranker.rescore(rows[:1], found, Gallery())
    events = watched.profiler.kineto_results.events()
    taken = np.cumsum([event.nbytes() for event in events if event.name() == "[memory]"])
    assert 0.4 * ranker.workspace_bytes(topn, dim) < taken.max() < 1.1 * ranker.workspace_bytes(topn, dim)


@given(images(), st.integers(1, 50), st.integers(0, 9), st.sampled_from([0.0, 0.15, 1.0]))
def test_superglobal_equals_the_reference(some, topn, k, beta):
    rows, _, probes = some
    heads, expected = reference.superglobal(rows[:probes], rows[probes:], topn, k, beta)
    data = br.FeatureSet.from_arrays(rows[:probes], rows[probes:])
    found = br.rerank(data, "superglobal", topn=topn, k=k, beta=beta)
    check_lists(found.indices, found.scores, heads, expected)


@given(images(), st.integers(1, 50), st.integers(1, 9))
def test_kwf_equals_the_reference(some, topn, k):
    rows, cams, probes = some
    both = rows[:probes], rows[probes:], cams[:probes], cams[probes:]
    heads, expected = reference.kwf(*both, topn, k)
    data = br.FeatureSet.from_arrays(*both[:2], probe_cams=both[2], gallery_cams=both[3])
    found = br.rerank(data, "kwf", topn=topn, k=k)
    check_lists(found.indices, found.scores, heads, expected)


def seen_alike(near: float) -> tuple[dict[str, np.ndarray], int]:
    """Images that differ by little more than rounding, so that float32 takes many for equally near."""
    rng = np.random.default_rng(0)
    base = rng.standard_normal(8)
    arrays = {
        name: (base + near * rng.standard_normal((n, 8))) for name, n in (("probe", 30), ("gallery", 400))
    }
    cams = {"probe_cams": np.arange(30) % 4, "gallery_cams": np.arange(400) % 6}
    return {name: rows.astype(np.float32) for name, rows in arrays.items()} | cams, 1


def seen_by_pairs() -> tuple[dict[str, np.ndarray], int]:
    """Cameras 0 and 1 see alike, so that lists across cameras have hardly any but these of each other."""
    arrays = features(seed=8, probes=40, gallery=300, dim=16)
    for name in ("probe", "gallery"):
        arrays[f"{name}_cams"] = np.arange(len(arrays[name])) % 4
        arrays[name] = (
            arrays[name] + 9 * np.eye(16, dtype=np.float32)[np.array([0, 0, 1, 2])[arrays[f"{name}_cams"]]]
        )
    few = arrays["gallery_cams"] == 0
    few[few] = np.arange(few.sum()) >= 3  # an item of camera 0 has two others of its own
    return {name: values[~few] if name.startswith("gallery") else values for name, values in arrays.items()}, 2


@pytest.mark.parametrize(
    "case", [lambda: seen_alike(0.003), lambda: seen_alike(0.1), seen_by_pairs], ids=["ties", "near", "pairs"]
)
def test_kwf_is_the_same_whether_one_search_serves_all_cameras_or_not(case, monkeypatch):
    from blurrerank.engine import elsewhere

    arrays, at_least = case()
    data = br.FeatureSet.from_arrays(**arrays)
    find, counts, found = elsewhere.find_graph, [], []
    monkeypatch.setattr(elsewhere, "find_graph", lambda *some, **more: counts.append(1) or find(*some, **more))
    for few in (0, 9):
        monkeypatch.setattr(elsewhere, "_FEW_CAMERAS", few)
        found.append((br.rerank(data, "kwf:topn=400", depth=len(data.gallery)), len(counts)))
    np.testing.assert_array_equal(found[0][0].indices, found[1][0].indices)
    np.testing.assert_array_equal(found[0][0].scores, found[1][0].scores)
    assert found[1][1] - found[0][1] == 4, "one for each camera"
    assert at_least <= found[0][1] < 4 if at_least == 1 else found[0][1] >= at_least


def test_kwf_looks_at_the_whole_gallery_and_no_index_keeps_that(tmp_path):
    data = br.FeatureSet.from_arrays(**features(probes=5, gallery=60))
    with pytest.raises(br.ParameterError, match="needs neighbours of candidates from the whole gallery"):
        br.rerank(data, "kwf", candidates=np.zeros((5, 1), int))
    index = br.build_index(data.gallery, tmp_path / "i.h5")
    with pytest.raises(
        br.ParameterError,
        match="needs neighbours of items in other cameras, which an index does not store: run it on",
    ):
        index.rerank(data.probe, method="kwf")


@given(images(), st.integers(1, 4), st.integers(0, 6))
def test_ecn_cosine_equals_the_reference(some, t, q):
    rows, cams, probes = some
    expected = reference.ecn(rows, probes=probes, t=t, q=q, similarity="cosine")
    np.testing.assert_allclose(ours(rows, cams, probes, "ecn-cosine", t=t, q=q), expected, atol=1e-6)


@given(images(), st.sampled_from([0.0, 2.5]), st.booleans())
def test_center_equals_the_reference(some, shrink, scale):
    rows, cams, probes = some
    order = [*range(probes, len(rows)), *range(probes)]  # means are the gallery's
    new = reference.center(rows[order], cams[order], known=len(rows) - probes, shrink=shrink, scale=scale)
    expected = new[len(rows) - probes :] @ new[: len(rows) - probes].T
    found = ours(rows, cams, probes, "center", shrink=shrink, scale=scale)
    # Where little is left of a feature, float32 leaves less than all of its digits.
    np.testing.assert_allclose(found, expected, atol=2e-2 if scale else 1e-3)


@given(images(), st.integers(1, 12), st.integers(1, 4), st.sampled_from([0.0, 0.3, 1.0]), st.integers(1, 2))
def test_gcr_equals_the_reference(some, k1, k2, scale, rounds):
    rows, cams, probes = some
    new = reference.gcr(rows, cams, k1=k1, k2=k2, scale=scale, rounds=rounds)
    found = ours(rows, cams, probes, "gcr", k1=k1, k2=k2, scale=scale, rounds=rounds)
    np.testing.assert_allclose(found, new[:probes] @ new[probes:].T, atol=5e-5)


@given(images(), st.integers(1, 5), st.integers(1, 5), st.sampled_from(["apart", "together", "online"]))
def test_nfc_equals_the_reference(some, k1, k2, setting):
    rows, cams, probes = some
    asked, answering = (reference.nfc(side, k1, k2) for side in (rows[:probes], rows[probes:]))
    if setting == "together":
        asked, answering = np.split(reference.nfc(rows, k1, k2), [probes])
    if setting == "online":
        asked = reference.unit_rows(rows[:probes])
    options = {"k1": k1, "k2": k2, "together": setting == "together", "online": setting == "online"}
    np.testing.assert_allclose(ours(rows, cams, probes, "nfc", **options), asked @ answering.T, atol=1e-5)


@given(images(), st.integers(0, 12), st.sampled_from([0.05, 1.0]))
def test_whiten_equals_the_reference(some, dim, ridge):
    rows, cams, probes = some
    gallery = len(rows) - probes
    dim = min(dim, rows.shape[1], gallery - 1)  # of what does not vary at all, any direction is as good
    new = reference.whiten(np.roll(rows, -probes, axis=0), known=gallery, dim=dim, ridge=ridge)
    found = ours(rows, cams, probes, "whiten", dim=dim, ridge=ridge)
    np.testing.assert_allclose(found, new[gallery:] @ new[:gallery].T, atol=1e-3)


@pytest.mark.parametrize("dim", [64, 128, 2048])
def test_whitened_rows_do_not_depend_on_company(dim):
    rng = np.random.default_rng(dim)
    rows = torch.nn.functional.normalize(torch.from_numpy(rng.standard_normal((71, dim)).astype("f")))
    step = create("whiten").feature_steps[0]
    axes = torch.linalg.qr(torch.from_numpy(rng.standard_normal((dim, dim))))[0]
    fitted = {
        "axes": (axes * 2**26).round(),
        "centre": axes @ rows.mean(dim=0).double(),
        "deviations": torch.linspace(0.1, 1e-3, dim, dtype=torch.float64),
    }
    whole = step.apply(rows, None, fitted)
    for count in range(1, 71):
        start = (7 * count) % (72 - count)
        some = step.apply(rows[start : start + count], None, fitted)
        assert torch.equal(some, whole[start : start + count]), count


GOLDEN = {
    "aqe_5": "aqe:k=5",
    "alpha_qe_10_3": "aqe:k=10:alpha=3",
    "alpha_qe_dba_10_3_10": "dba:k=10:alpha=3+aqe:k=10:alpha=3",
    "ecn_rankdist_25_3_8": "ecn",
    "ecn_origdist_3_8": "ecn-cosine",
    "gnn_26_7_0.3": "gnn",
    "ca_jaccard_5_20_3_3_0.3": "ca-jaccard",
    "center": "center:shrink=0",
    "camera_graph_6_10_3_3_0.3": "camera-graph",
    "center_camera_graph_6_10_3_3_0.3": "center:shrink=0+camera-graph",
    "gcr_15_3_0.2_0.3_r3": "gcr",
    "gcr_pvg_15_3_0.2_0.3_r3": "pvg+gcr",
}
# Of ecn by ranks, gallery item 4483 alone, whose float32 neighbours the authors' program sorts otherwise. What
# gcr makes is so alike that float32 cannot tell 2 in 1,000 neighbours in a list apart, and the authors' is
# float64.
LEAST = {"gcr_15_3_0.2_0.3_r3": 0.997, "gcr_pvg_15_3_0.2_0.3_r3": 0.997}


@pytest.mark.parametrize("group", GOLDEN)
def test_lists_and_metrics_equal_the_golden_answers(shared, group):
    data = br.load(shared / "data/omniglot.h5")
    ranking = br.rerank(data, GOLDEN[group], depth=100)
    with h5py.File(shared / "golden/omniglot.h5") as file:
        golden, scores = file[group]["indices"][()], file[group]["scores"][()]
        expected = dict(file[group].attrs)
    different = ranking.indices != golden
    assert 1 - different.mean() > LEAST.get(group, 0.999)
    for row, column in np.argwhere(different):
        if group.startswith("ecn_rank") and 4483 in (*golden[row], *ranking.indices[row]):
            continue
        place = np.flatnonzero(golden[row] == ranking.indices[row, column])
        other = scores[row, place[0]] if len(place) else scores[row, -1]
        assert abs(other - scores[row, column]) < 1e-5, (row, column)
    measured = br.evaluate(ranking, data).summary()
    for name, value in expected.items():
        # One probe is 5.3e-4; two change places with equals of theirs in what gcr makes.
        assert measured[name] == pytest.approx(value, abs=1.1e-3 if group in LEAST else 5e-4), name


def halves(arrays):
    """Features whose probes are of a camera that the gallery lacks, and other images of that camera."""
    arrays["probe_cams"][:], names = 9, ("probe", "probe_ids", "probe_cams", "probe_names")
    data = br.FeatureSet.from_arrays(**arrays | {name: arrays[name][::2] for name in names})
    other = br.Side(arrays["probe"][1::2], cams=arrays["probe_cams"][1::2])
    return data, other


def test_camera_images_tell_of_cameras_that_the_gallery_lacks():
    arrays = features(seed=6, probes=40, gallery=90, dim=12)
    arrays["probe"] += 2.0  # what the camera does to its images
    data, other = halves(arrays)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = br.rerank(data, "center:shrink=0", online=True, camera_images=other, depth=90)
    rows = np.concatenate([arrays["gallery"], other.features, data.probe.features])
    cams = np.concatenate([arrays["gallery_cams"], other.cams, np.full(len(data.probe), 10)])
    new = reference.center(rows[:-20], cams[:-20], known=90)
    mean = reference.unit_rows(other.features).mean(axis=0)
    probes = reference.unit_rows(reference.unit_rows(data.probe.features) - mean)
    scores = probes @ new[:90].T
    np.testing.assert_allclose(
        found.scores, np.take_along_axis(scores, found.indices.astype(int), 1), atol=1e-5
    )


def test_camera_images_pass_through_the_steps_as_probes_do():
    arrays = features(seed=6, probes=40, gallery=90, dim=12)
    arrays["probe"] += 2.0
    data, other = halves(arrays)
    found = br.rerank(data, "center:shrink=0+pvg", online=True, camera_images=other, depth=90)
    rows = np.concatenate([arrays["gallery"], other.features])
    cams = np.concatenate([arrays["gallery_cams"], other.cams])
    centred = reference.center(rows, cams, known=90)
    mean = reference.unit_rows(other.features).mean(axis=0)
    probes = reference.unit_rows(reference.unit_rows(data.probe.features) - mean)
    once = br.FeatureSet(br.Side(probes, cams=data.probe.cams), br.Side(centred[:90], cams=cams[:90]))
    then = br.rerank(once, "pvg", online=True, camera_images=br.Side(centred[90:], cams=other.cams), depth=90)
    np.testing.assert_allclose(found.scores, then.scores, atol=1e-5)
    with pytest.warns(br.BlurrerankWarning, match="has no effect: the gallery has images of all"):
        br.rerank(data, "center", camera_images=br.Side(data.gallery.features, cams=data.gallery.cams))
    for steps, mixing in (("aqe+center", {"online": True}), ("nfc+center", {})):
        said = f"{steps[:3]} averages each probe with its neighbours, and camera images have none: put "
        with pytest.raises(br.ParameterError, match=said):
            br.rerank(data, steps, camera_images=other, **mixing)
    # Online, nfc leaves the probes alone, and camera images with them.
    found = br.rerank(data, "nfc+center:shrink=0", online=True, camera_images=other, depth=90)
    nearer = br.rerank(data, "nfc", online=True, depth=90)
    assert (found.indices != nearer.indices).any()


def test_camera_images_on_the_command_line(cli, write):
    arrays = features(seed=6, probes=40, gallery=90, dim=12)
    data, other = halves(arrays)
    br.save_features(data, "feats.h5")
    write(
        "other.h5",
        **arrays
        | {"probe": other.features}
        | {f"probe_{name}": None for name in ("ids", "names")}
        | {"probe_cams": other.cams},
    )
    run = ("run", "feats.h5", "--method", "center+camera-graph", "--online", "--json")
    code, _, err = cli(*run, "-o", "plain.h5")
    assert (code, "camera 9 has no images in the gallery" in err) == (0, True)
    code, _, err = cli(*run, "-o", "with-images.h5", "--camera-images", "other.h5")
    assert (code, "has no images in the gallery" in err) == (0, False), err
    with h5py.File("plain.h5") as before, h5py.File("with-images.h5") as after:
        assert "camera_images_digest" not in before.attrs
        assert after.attrs["camera_images_digest"] == other.digest()
        assert (before["indices"][()] != after["indices"][()]).any()
    code, _, err = cli("run", "feats.h5", "--camera-images", "other.h5", "-o", "o.h5")
    assert (code, err) == (
        2,
        "error: method lbr does not use camera images: only steps such as center do\n",
    )
    write("bare.h5", **arrays | {name: None for name in arrays if "_" in name})
    code, _, err = cli(*run, "-o", "o.h5", "--camera-images", "bare.h5")
    assert (code, "bare.h5::/probe has no cameras: camera images need them" in err) == (1, True), err


def biased(arrays, strength):
    """The same with what each camera does to its images."""
    shift = np.random.default_rng(0).standard_normal((4, arrays["probe"].shape[1])) * strength
    return arrays | {
        side: (arrays[side] + shift[arrays[f"{side}_cams"]]).astype(np.float32) for side in ("probe", "gallery")
    }


@pytest.mark.parametrize("strength", [0.0, 3.0])
def test_the_bias_of_cameras_is_told(cli, write, strength):
    arrays = biased(features(seed=3, probes=60, gallery=340, dim=32), strength)
    feats, told = write(**arrays), "nearest neighbours of an image are from its own camera, where chance gives"
    rows = reference.unit_rows(np.concatenate([arrays["probe"], arrays["gallery"]]))
    cams = np.concatenate([arrays["probe_cams"], arrays["gallery_cams"]])
    near = np.array([some[:10] for some in reference.nearest_images(rows @ rows.T)])
    expected = (cams[near] == cams[:, None]).mean()
    info = json.loads(cli("info", feats, "--json")[1])
    images = np.unique(arrays["gallery_cams"], return_counts=True)[1]
    assert info["gallery"]["images_per_camera"] == [images.min(), np.median(images), images.max()]
    assert f"{images.min()} to {images.max()}, median" in cli("info", feats)[1]
    info = info["camera_bias"]
    assert info["share"] == pytest.approx(expected, abs=1e-4)
    assert info["chance"] == pytest.approx(np.mean([(cams == cam).sum() - 1 for cam in cams]) / 399)
    assert info["matters"] is bool(strength)
    each = (cams[near] == cams[:, None]).mean(axis=1)
    assert info["error"] == pytest.approx(each.std(ddof=1) / 400**0.5, rel=1e-3)
    out = cli("info", feats)[1]
    assert (told in out, "try --method center+camera-graph" in out) == (True, bool(strength))
    assert (told in cli("run", feats, "-o", "blind.h5")[2]) is bool(strength)
    assert told not in cli("run", feats, "--method", "center", "-o", "seeing.h5")[2]


def test_without_cameras_there_is_no_bias_to_tell(cli, write):
    arrays = features(probes=60, gallery=340)
    feats = write(**{name: None if name.endswith("cams") else values for name, values in arrays.items()})
    assert json.loads(cli("info", feats, "--json")[1])["camera_bias"] is None
