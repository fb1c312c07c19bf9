"""`auto`: sizes of identities estimated without labels, and chains and parameters that follow from them."""

from __future__ import annotations

import json

import h5py
import numpy as np
import pytest
import torch
from conftest import ROOT, features
from hypothesis import given
from hypothesis import strategies as st

import blurrerank as br
from blurrerank import reference
from blurrerank.compute.compute import Compute
from blurrerank.engine.auto import choose
from blurrerank.engine.request import Request
from blurrerank.graph.neighbourhoods import like_images, reciprocity, size_estimate, smooth
from blurrerank.methods import create, text_of
from blurrerank.spectral.transform import temperature, transition

OMNIGLOT = ROOT / "examples/omniglot.h5"


def people(
    identities: int,
    own: int,
    others: int,
    *,
    noise: float = 0.6,
    bias: float = 0.0,
    seed: int = 0,
    dim: int = 48,
) -> br.FeatureSet:
    """Two cameras: `own` + 1 images of each identity by the probes' one, `others` by the gallery's."""
    draw = np.random.default_rng(seed)
    centres = draw.normal(size=(identities, dim))
    sides = []
    for camera, count in ((1, own + 1), (2, others)):
        ids = np.repeat(np.arange(1, identities + 1), count)
        shift = bias * draw.normal(size=dim)
        rows = centres[ids - 1] + noise * draw.normal(size=(len(ids), dim)) + shift
        order = draw.permutation(len(ids))
        sides.append(br.Side(rows[order].astype(np.float32), ids[order], np.full(len(ids), camera)))
    return br.FeatureSet(*sides)


def chosen(data: br.FeatureSet, text: str = "auto", **asked):
    online = asked.pop("online", False)
    return choose(text, data, Request(online=online), Compute.choose("cpu"), **asked)


@given(st.integers(0, 1000), st.integers(2, 25), st.integers(1, 8))
def test_reciprocity_is_that_of_the_reference(seed, images, longest):
    draw = np.random.default_rng(seed)
    lists = [
        [int(j) for j in draw.permutation(images) if j != i][: draw.integers(0, longest + 1)]
        for i in range(images)
    ]
    padded = torch.full((images, longest), -1)
    for i, near in enumerate(lists):
        padded[i, : len(near)] = torch.tensor(near)
    np.testing.assert_allclose(reciprocity(padded), reference.reciprocity(lists, longest), rtol=0, atol=1e-12)


@given(
    st.lists(st.integers(0, 64), min_size=0, max_size=50),
    st.lists(st.integers(0, 64), min_size=0, max_size=50),
)
def test_the_size_is_where_the_reference_bends_most(curve, chance):
    # Multiples of 1/64 are exact, so that ties are ties.
    m, m0 = (np.array(values, dtype=float) / 64 for values in (curve, chance))
    found = size_estimate(m, m0, 400)
    assert (found.size, pytest.approx(found.bend, abs=1e-12)) == reference.neighbourhood_size(m, m0)
    assert found.needed == pytest.approx(0.075)


@pytest.mark.parametrize(("own", "others"), [(1, 2), (2, 3), (4, 5), (0, 1), (3, 8)])
@pytest.mark.parametrize("bias", [0.0, 1.5])
def test_sizes_of_groups_are_found_without_labels(own, others, bias):
    """Probes have `own` others within their camera, gallery items others - 1: where these differ, the mean."""
    data = people(240, own, own + 1 if others != 1 else 1, bias=bias)
    near = br.estimate_neighbourhoods(data)
    assert near.steps[:1] == ("center",)
    assert near.across.sure
    assert near.across.size == (own + 1 if others != 1 else 1)
    if own:
        assert near.within.sure
        assert near.within.size == own
    else:
        assert not near.within.sure


def groupless() -> tuple[np.ndarray, np.ndarray]:
    rows = np.random.default_rng(3).normal(size=(1200, 32)).astype(np.float32)
    return rows[:600], rows[600:]


def test_points_without_groups_have_no_size():
    probe, gallery = groupless()
    data = br.FeatureSet(
        br.Side(probe, cams=np.repeat([1, 2], 300)), br.Side(gallery, cams=np.repeat([1, 2], 300))
    )
    near = br.estimate_neighbourhoods(data)
    assert not near.within.sure
    assert not near.across.sure
    assert near.size("across") == near.size("nearest") == 0


def test_generated_points_have_the_mean_and_covariance_of_the_images():
    draw = np.random.default_rng(0)
    rows = draw.normal(size=(500, 6)) @ draw.normal(size=(6, 6)) + draw.normal(size=6)
    images = torch.from_numpy(rows).float()
    points = like_images(images, 40_000, 0)
    np.testing.assert_allclose(points.mean(axis=0), rows.mean(axis=0), atol=0.1)
    np.testing.assert_allclose(np.cov(points.T), np.cov(rows.T, bias=True), atol=0.4)
    assert not np.array_equal(points[:300], like_images(images, 300, 1))


@given(st.integers(5, 60), st.lists(st.integers(-8, 8), min_size=4, max_size=4))
def test_smoothing_keeps_a_cubic_in_log_k(longest, coefficients):
    curve = np.polyval(coefficients, np.log2(np.arange(1, longest + 1)))
    np.testing.assert_allclose(smooth(curve), curve, rtol=0, atol=1e-8 * np.abs(curve).max() + 1e-9)


def test_at_the_temperature_rows_spread_over_so_many_images():
    rows = torch.randn(20, 50, 16, generator=torch.manual_seed(0))
    for images in (2, 5, 12):
        t = transition(rows, temperature(rows, images))
        assert torch.special.entr(t).sum(-1).exp().mean().item() == pytest.approx(images, rel=0.1)


def test_identities_are_not_looked_at():
    data = people(120, 1, 2)
    mixed = br.FeatureSet(
        br.Side(data.probe.features, data.probe.ids[::-1].copy(), data.probe.cams),
        br.Side(data.gallery.features, cams=data.gallery.cams),
    )
    assert chosen(data).reason == chosen(mixed).reason


@pytest.mark.parametrize("online", [False, True])
@pytest.mark.parametrize("with_cameras", [False, True])
def test_auto_gives_the_lists_of_the_chain_that_it_names(online, with_cameras):
    data = people(150, 1, 2)
    if not with_cameras:
        data = br.FeatureSet(
            br.Side(data.probe.features, data.probe.ids), br.Side(data.gallery.features, data.gallery.ids)
        )
    choice = chosen(data, online=online)
    named = br.rerank(data, text_of(choice.method), online=online)
    found = br.rerank(data, "auto", online=online)
    assert (found.method, found.params) == (named.method, named.params)
    assert not any(value == "auto" for value in found.params.values())
    np.testing.assert_array_equal(found.indices, named.indices)
    np.testing.assert_array_equal(found.scores, named.scores)
    assert found.setting == named.setting


@pytest.mark.parametrize("memory", [3 << 20, 1 << 30])
def test_the_choice_does_not_depend_on_the_budget(memory):
    data = people(150, 1, 2)
    found = choose("auto", data, Request(), Compute.choose("cpu", memory))
    assert text_of(found.method) == text_of(chosen(data).method)


def test_online_the_choice_depends_on_the_gallery_alone():
    data = people(150, 2, 3, seed=5)
    both = br.FeatureSet(data.gallery, br.Side(*joined(data)))
    one = br.FeatureSet(br.Side(data.probe.features[:1], cams=data.probe.cams[:1]), both.gallery)
    assert chosen(both, online=True).reason == chosen(one, online=True).reason


def joined(data: br.FeatureSet) -> tuple[np.ndarray, ...]:
    return tuple(
        np.concatenate([getattr(data.probe, name), getattr(data.gallery, name)])
        for name in ("features", "ids", "cams")
    )


def test_with_cameras_lists_are_as_long_as_identities_have_images():
    assert text_of(chosen(people(150, 1, 2)).method) == (
        "center+camera-graph:ki=2:ko=3:k2i=2:k2o=2:one-sided=0.5:lambda=0.1"
    )


def test_without_cameras_or_with_one_the_graph_is_of_all():
    data = people(150, 1, 2)
    none = br.FeatureSet(br.Side(data.probe.features), br.Side(data.gallery.features))
    one = br.FeatureSet(
        br.Side(data.probe.features, cams=np.ones(300, int)),
        br.Side(data.gallery.features, cams=np.ones(300, int)),
    )
    half = br.FeatureSet(br.Side(data.probe.features), data.gallery)
    for case, words in (
        (none, "there are no cameras"),
        (half, "the probes have no cameras"),
        (one, "one camera"),
    ):
        found = chosen(case)
        assert found.reason == f"gnn:k1=5:k2=3 ({words}; other images per identity: about 3 in all)"


def test_online_with_clear_sizes_probes_are_reranked_and_without_left_as_they_are():
    data = people(150, 1, 2)
    assert text_of(chosen(data, online=True).method) == "k-reciprocal-online:k1=2:k2=2"
    single = people(300, 0, 1)
    assert text_of(chosen(single, online=True).method) == "cosine"


def test_cameras_with_few_images_are_not_centred_by():
    data = people(150, 1, 2)
    many = br.FeatureSet(
        br.Side(data.probe.features, cams=np.arange(300) % 40),
        br.Side(data.gallery.features, cams=np.arange(300) % 40),
    )
    found = chosen(many)
    assert found.method.name == "camera-graph"
    assert "(40 cameras, with a median of 7.5 images and at least 7, too few for centring; " in found.reason


def test_a_camera_of_which_only_a_few_probes_are_known_is_not_centred_by():
    data = people(150, 1, 2)
    cams = np.where(np.arange(300) < 3, 9, 2)  # of the gallery's camera are 300 images
    few = br.FeatureSet(
        br.Side(data.probe.features, cams=cams), br.Side(data.gallery.features, cams=data.gallery.cams)
    )
    reason = chosen(few).reason
    assert "(2 cameras, with a median of 151.5 images and at least 3, too few for centring; " in reason
    # Gallery images say what a camera is like, not probes: 3 of these are too few as well.
    turned = br.FeatureSet(few.gallery, few.probe)
    assert "(2 cameras, with a median of 150 images and at least 3, too few" in chosen(turned).reason
    one = br.Side(data.probe.features[:1], cams=np.array([9]))
    with pytest.warns(br.BlurrerankWarning, match="have no effect: auto does not centre"):
        found = choose("auto", few, Request(online=True, camera_images=one), Compute.choose("cpu"))
    assert "at least 1, too few for centring" in found.reason


def test_cameras_of_camera_images_that_nothing_else_has_do_not_count():
    data = people(150, 1, 2)
    draw = np.random.default_rng(0)
    others = br.Side(draw.normal(size=(60, 48)).astype(np.float32), cams=np.repeat(np.arange(10, 30), 3))
    compute = Compute.choose("cpu")
    found = choose("auto", data, Request(camera_images=others), compute)
    assert found.method.name.startswith("center+")
    assert "(2 cameras, with a median of 300 images and at least 300; " in found.reason
    # Online, they may be those of probes to come.
    with pytest.warns(br.BlurrerankWarning, match="have no effect: auto does not centre"):
        online = choose("auto", data, Request(online=True, camera_images=others), compute)
    assert "(21 cameras, with a median of 3 images and at least 3, too few for centring; " in online.reason


@pytest.mark.parametrize("noise", [0.0, 2e-7])
@pytest.mark.parametrize("with_cameras", [False, True])
def test_features_that_are_equal_are_left_as_they_are(noise, with_cameras):
    draw = np.random.default_rng(0)
    rows = (1 + noise * draw.normal(size=(600, 16))).astype(np.float32)
    cams = np.arange(300) % 2 if with_cameras else None
    found = chosen(br.FeatureSet(br.Side(rows[:300], cams=cams), br.Side(rows[300:], cams=cams)))
    assert found.method.name == "cosine"
    assert found.reason.endswith("features are equal except for rounding)")


def test_a_gallery_of_a_few_items_is_left_as_it_is():
    data = people(150, 1, 2)
    few = br.FeatureSet(data.probe, br.Side(data.gallery.features[:19], cams=data.gallery.cams[:19]))
    found = chosen(few)
    assert found.method.name == "cosine"
    assert found.reason.endswith("a gallery of 19 is too small to re-rank)")
    assert str(br.estimate_neighbourhoods(few)) == "unclear, since a gallery of 19 is too small to re-rank"


def test_features_that_a_search_cannot_tell_apart_have_no_size():
    draw = np.random.default_rng(0)
    rows = (1 + 1e-5 * draw.normal(size=(600, 16))).astype(np.float32)
    found = chosen(br.FeatureSet(br.Side(rows[:300]), br.Side(rows[300:])))
    assert found.method.name == "cosine"
    assert found.reason == "cosine (there are no cameras; features are equal except for rounding)"


def test_a_budget_that_is_too_small_is_refused_before_anything_is_looked_at():
    data = people(150, 1, 2)
    for ask in (
        lambda: br.estimate_neighbourhoods(data, memory=1000),
        lambda: br.rerank(data, "auto", memory=1000),
        lambda: br.rerank(data, "k-reciprocal", k1="auto", memory=1000),
    ):
        with pytest.raises(br.ParameterError, match="a memory budget of 1,000 bytes is too small"):
            ask()


def test_one_probe_and_tiny_galleries_fall_back_in_words():
    data = br.FeatureSet.from_arrays(**features(probes=3, gallery=9))
    found = chosen(data)
    assert found.method.name.endswith("cosine")
    assert "12 images are too few to estimate the number of images per identity" in found.reason
    one = br.FeatureSet.from_arrays(np.eye(1, 5), np.eye(2, 5))
    assert chosen(one).method.name == "cosine"
    assert br.rerank(one, "auto").indices.tolist() == [[0, 1]]
    many = people(150, 1, 2)
    single = br.FeatureSet(br.Side(many.probe.features[:1], cams=many.probe.cams[:1]), many.gallery)
    assert br.rerank(single, "auto").indices.shape == (1, 50)


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("k-reciprocal:k1=auto:k2=auto", {"k1": 3, "k2": 2}),
        ("gnn:k1=auto:k2=auto", {"k1": 5, "k2": 3}),
        ("camera-graph:ki=auto:ko=auto:k2i=auto:k2o=auto", {"ki": 2, "ko": 3, "k2i": 2, "k2o": 2}),
        ("center+k-reciprocal:k1=auto", {"k-reciprocal.k1": 3, "k-reciprocal.k2": 6}),
    ],
)
def test_single_parameters_fit_the_data(text, values):
    params = br.rerank(people(150, 1, 2), text).params
    assert params | values == params


def test_sigma_grows_with_the_images_of_an_identity():
    few, many = (br.rerank(people(1200 // (2 * n), n - 1, n), sigma="auto").params["sigma"] for n in (2, 6))
    assert 0.01 < few < many < 0.6


def test_a_parameter_keeps_its_default_where_the_data_do_not_tell():
    with pytest.warns(
        br.BlurrerankWarning,
        match="the number of images per identity could not be estimated reliably: k1 20 may not",
    ):
        found = br.rerank(br.FeatureSet.from_arrays(*groupless()), "k-reciprocal", k1="auto")
    assert found.params["k1"] == 20


@pytest.mark.parametrize(
    ("text", "settings", "message"),
    [
        ("auto", {"k1": 3}, "method auto chooses all parameters: leave k1 out"),
        ("auto", {"preset": "market1501"}, "method auto chooses all parameters: leave preset out"),
        ("auto+lbr", {}, "auto chooses a whole chain for the data"),
        ("auto:k=3", {}, "auto chooses a whole chain for the data"),
        ("lbr:topn=auto", {}, "topn of lbr cannot be auto: lbr has a rule for sigma"),
        ("dba:k=auto+lbr", {}, "k of dba cannot be auto: dba has no parameter with a rule"),
        ("auto", {"camera_images": br.Side(np.eye(3, 8))}, "has no cameras: camera images need them"),
        (
            "auto",
            {"camera_images": br.Side(np.eye(3, 5), cams=np.ones(3, int))},
            "has 5 dimensions: expected 8",
        ),
        ("auto", {"graph": br.neighbour_graph(np.eye(3))}, "auto finds a graph of its own"),
        ("lbr", {"sigma": np.array([0.1, 0.2])}, "sigma must be"),
        ("camera-graph:foo=auto", {}, "method camera-graph has no parameter 'foo'"),
        ("AUTO", {}, "method 'AUTO' is not known: did you mean auto"),
        ("auto", {"candidates": np.tile(np.arange(3), (12, 1))}, "only some of them: name a method"),
        ("lbr", {"sigma": "auto", "candidates": np.tile(np.arange(3), (12, 1))}, "give lbr numbers"),
        ("k-reciprocal", {"k1": "auto", "graph": br.neighbour_graph(np.eye(3))}, "give k-reciprocal numbers"),
        ("k-reciprocal", {"k1": "auto", "online": True}, "looks at all probes together"),
    ],
)
def test_what_cannot_be_chosen_is_refused(text, settings, message):
    with pytest.raises(br.BlurrerankError, match=message):
        br.rerank(br.FeatureSet.from_arrays(**features()), text, **settings)


def test_a_number_that_is_given_comes_before_auto_and_a_preset_where_nothing_is_clear():
    data = br.FeatureSet.from_arrays(*groupless())
    assert br.rerank(data, "k-reciprocal:k1=auto", k1=5).params["k1"] == 5
    with pytest.warns(br.BlurrerankWarning, match="k1 7 may not suit the data"):
        assert br.rerank(data, "k-reciprocal", k1="auto", preset="cuhk03").params["k1"] == 7


def test_camera_images_that_nothing_is_centred_by_are_warned_of():
    data = people(150, 1, 2)
    bare = br.FeatureSet(br.Side(data.probe.features), br.Side(data.gallery.features))
    with pytest.warns(br.BlurrerankWarning, match=r"have no effect: auto does not centre \(there are no"):
        br.rerank(bare, "auto", camera_images=data.probe)


def test_cameras_that_a_parameter_needs_are_missed_in_the_name_of_its_method():
    data = br.FeatureSet.from_arrays(np.eye(4), np.eye(4))
    with pytest.raises(br.InputError, match="method camera-graph needs them"):
        br.rerank(data, "camera-graph", ki="auto")


def test_auto_values_are_no_numbers_elsewhere():
    with pytest.raises(
        br.ParameterError, match="k1 cannot be auto here, where no data are known: give a number"
    ):
        create("k-reciprocal:k1=auto")
    with pytest.raises(br.ParameterError, match="auto chooses a whole chain"):
        create("auto")


def test_run_says_what_was_chosen_and_its_ranking_can_be_repeated_by_name(cli, tmp_path):
    code, out, err = cli("run", OMNIGLOT, "--method", "auto", "-o", "a.h5")
    assert code == 0
    line = next(line for line in err.splitlines() if line.startswith("auto: "))
    text = line.removeprefix("auto: ").partition(" (")[0]
    cli("run", OMNIGLOT, "--method", text, "-o", "b.h5")
    with h5py.File(tmp_path / "a.h5") as a, h5py.File(tmp_path / "b.h5") as b:
        assert dict(a.attrs) == dict(b.attrs)
        np.testing.assert_array_equal(a["indices"][()], b["indices"][()])
        np.testing.assert_array_equal(a["scores"][()], b["scores"][()])
    before, after = (float(row.split()[1]) for row in out.splitlines()[4:6])
    assert after > before + 0.1


def test_the_command_line_takes_auto_for_a_parameter(cli):
    _, out, err = cli("run", OMNIGLOT, "--method", "k-reciprocal", "--k1", "auto", "--json", "-o", "k.h5")
    assert "auto: k1 " in err
    assert json.loads(out)["params"]["k1"] != 20
    assert "--k1 N|auto" in cli("run", "--method", "k-reciprocal", "--help")[1]
    code, _, err = cli("run", OMNIGLOT, "--method", "gnn", "--lambda", "auto")
    assert code == 2
    assert "'auto' is not a valid float" in err


def test_what_auto_cannot_do_is_told_before_anything_is_read(cli):
    for arguments, said in (
        (("--method", "auto", "--k1", "3"), "--k1: method auto chooses all parameters; leave it out"),
        (("--method", "auto", "--preset", "market1501"), "chooses all parameters: leave preset out"),
        (
            ("--method", "auto", "--index", "i.h5"),
            "auto looks at all items of a gallery, and an index does not allow that",
        ),
        (("--method", "auto", "--candidates", "c.npy"), "auto looks at neighbours among all items"),
        (("--method", "k-reciprocal", "--k1", "auto", "--online"), "looks at all probes together"),
        (
            (
                "--method",
                "lbr:topn=auto",
            ),
            "topn of lbr cannot be auto: lbr has a rule for sigma",
        ),
    ):
        code, out, err = cli("run", "missing.h5", *arguments)
        assert (code, out) == (2, "")
        assert said in err
    for arguments, said in (
        (("--method", "auto", "--preset", "market1501"), "chooses all parameters: leave preset out"),
        (("--method", "auto", "--append"), "keeps the method of the index: leave --method and auto out"),
        (("--method", "lbr", "--sigma", "auto"), "method lbr cannot be indexed"),
        (("--method", "k-reciprocal:k1=auto"), "method k-reciprocal "),
        (("--method", "k-reciprocal-online:foo=auto"), "has no parameter 'foo'"),
    ):
        code, out, err = cli("index", "missing.h5", *arguments)
        assert (code, out) == (2, "")
        assert said in err


def test_cameras_are_hinted_at_where_one_parameter_is_chosen(cli):
    data = people(150, 1, 2, bias=1.5)
    br.save_features(data, "biased.h5")
    err = cli("run", "biased.h5", "--method", "k-reciprocal", "--k1", "auto", "--k2", "auto")[2]
    assert "try --method center+camera-graph" in err
    err = cli("run", "biased.h5", "--method", "auto", "--online", "-o", "a.h5")[2]
    assert "auto: k-reciprocal-online" in err
    assert "try --method" not in err


def test_info_and_plots_and_reports_tell_the_sizes(cli, tmp_path):
    described = json.loads(cli("info", OMNIGLOT, "--json")[1])["neighbourhoods"]
    assert described["across"]["sure"]
    assert described["steps"] == ["center"]
    assert f"estimated from neighbours, after center: {described['words']}" in cli("info", OMNIGLOT)[1]
    cli("run", OMNIGLOT, "-o", "r.h5")
    cli("plot", "r.h5", OMNIGLOT, "-o", "n.svg", "--figure", "neighbourhoods")
    drawn = (tmp_path / "n.svg").read_text()
    assert f"across cameras: about {described['across']['size']}" in drawn
    cli("report", "r.h5", OMNIGLOT, "-o", "r.html")
    page = (tmp_path / "r.html").read_text()
    assert f"Other images per identity, estimated from neighbours, after center: {described['words']}." in page
    assert '<svg id="neighbourhoods"' in page


def test_an_index_is_built_for_what_fits_its_gallery(tmp_path):
    data = people(150, 2, 3)
    index = br.build_index(data.gallery, tmp_path / "i.h5", "auto")
    assert text_of(index.method) == text_of(chosen(data, online=True).method)
    found = br.rerank(index.features(data.probe), index.method.name, online=True, **index.method.params())
    np.testing.assert_array_equal(found.indices, br.rerank(data, "auto", online=True).indices)
    told = []
    with pytest.warns(br.BlurrerankWarning, match="have no effect: auto does not centre"):
        br.build_index(
            br.Side(data.gallery.features),
            tmp_path / "n.h5",
            "auto",
            camera_images=data.probe,
            notify=told.append,
        )
    (said,) = told
    assert said.startswith("auto: k-reciprocal-online:k1=3:k2=3 (")
    with pytest.raises(br.ParameterError, match="method lbr cannot be indexed"):
        br.build_index(data.gallery, tmp_path / "l.h5", "lbr", sigma="auto")
    with pytest.raises(br.ParameterError, match=r"auto chose cosine .*, which needs no index"):
        br.build_index(people(300, 0, 1).gallery, tmp_path / "c.h5", "auto")
