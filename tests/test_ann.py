"""Indexes that are searched approximately: what they find, how they answer, and what is refused."""

from __future__ import annotations

import json
import re
import zlib

import h5py
import numpy as np
import pytest
import torch
from conftest import ROOT, features, shell
from hypothesis import given, settings
from hypothesis import strategies as st

import blurrerank as br
from blurrerank.data.candidates import Candidates
from blurrerank.graph.sparse_rows import SparseRows
from blurrerank.index.gallery_index import GalleryIndex
from blurrerank.search import ann

FEATS = ROOT / "examples/omniglot.h5"
METHODS = ["k-reciprocal-online", "gnn", "camera-graph", "center+camera-graph", "center+gnn"]


@pytest.fixture(scope="module")
def data():
    """A hundred probes of all cameras, and the whole gallery."""
    every = br.load(FEATS)
    some = slice(0, len(every.probe), 7)
    probe = br.Side(every.probe.features[:][some], every.probe.ids[some], every.probe.cams[some])
    return br.FeatureSet(probe, every.gallery)


@pytest.fixture(scope="module")
def indexes(data, tmp_path_factory):
    """For each method, an index that was compared with everything and one that was not."""
    folder, made = tmp_path_factory.mktemp("ann"), {}

    def get(method, kind="hnsw"):
        if (method, kind) not in made:
            name = f"{method}.{kind}.index.h5"
            made[method, kind] = br.build_index(data.gallery, folder / name, method, ann=kind)
        return made[method, kind]

    return get


def overlap(one, other):
    return np.mean(
        [len(np.intersect1d(a, b)) / len(a) for a, b in zip(one.indices, other.indices, strict=True)]
    )


def quality(ranking, data):
    """mAP to the depth of the lists."""
    listed = br.Ranking(ranking.indices, ranking.scores, gallery_size=len(data.gallery))
    with pytest.warns(br.BlurrerankWarning, match="the shortest list ends at rank 50"):
        return br.evaluate(listed, data).mAP


def single(side, row):
    return br.Side(side.features[row : row + 1], cams=None if side.cams is None else side.cams[row : row + 1])


@pytest.mark.parametrize("method", METHODS)
def test_answers_are_nearly_those_of_looking_at_everything(method, data, indexes):
    index = indexes(method)
    assert index.approximation is not None
    assert min(index.approximation.recall.values()) > 0.99
    exact = br.rerank(data, method, online=True)
    found = index.rerank(data.probe)
    # Rows that are propagated are cut: that changes the ends of lists, and who is right among them hardly.
    assert overlap(exact, found) > (0.995 if method == "k-reciprocal-online" else 0.975)
    assert quality(found, data) == pytest.approx(quality(exact, data), abs=0.003)
    assert found.candidates == "index hnsw effort 256"
    assert found.positions is None


@pytest.mark.parametrize("method", METHODS)
def test_each_probe_is_answered_as_in_any_company(method, data, indexes):
    index, rows = indexes(method), [5, 100, 31]
    together = index.rerank(data.probe, effort=64)
    for row in rows:
        alone = index.rerank(single(data.probe, row), effort=64)
        np.testing.assert_array_equal(alone.indices[0], together.indices[row])
        np.testing.assert_array_equal(alone.scores[0], together.scores[row])


@pytest.mark.parametrize("method", METHODS)
def test_what_is_reached_has_the_scores_of_looking_at_everything(method, data, indexes):
    """Where all items are candidates, lists are those of a pass over all items, but for rounding."""
    index = indexes(method)
    exact = index.rerank(data.probe, exact=True)
    found = index.rerank(data.probe, effort=len(data.gallery))
    np.testing.assert_allclose(found.scores, exact.scores, atol=3e-6)
    assert (found.indices == exact.indices).mean() > 0.9999


@pytest.mark.parametrize("method", ["lbr:topn=120", "k-reciprocal-online"])
def test_lists_are_as_deep_as_they_are_asked_for(method, data, indexes):
    found = indexes("k-reciprocal-online").rerank(data.probe, method=method, effort=20, topn=120)
    assert found.indices.shape[1] == 120
    assert (found.indices >= 0).all()
    deep = indexes("k-reciprocal-online").rerank(data.probe, method="lbr:topn=80", effort=20)
    assert deep.indices.shape[1] == 80


@pytest.mark.parametrize("method", ["lbr", "cosine"])
def test_head_rankers_work_on_what_is_found(method, data, indexes):
    found = indexes("k-reciprocal-online").rerank(data.probe, method=method)
    exact = br.rerank(data, method)
    assert overlap(exact, found) > 0.995
    np.testing.assert_allclose(found.scores[:, 0], exact.scores[:, 0], atol=1e-5)


def test_clusters_find_more_with_more_effort(data, indexes):
    index = indexes("k-reciprocal-online", "ivf")
    exact = br.rerank(data, "cosine")
    shares = [overlap(exact, index.rerank(data.probe, method="cosine", effort=n)) for n in (1, 4, 16, 120)]
    assert sorted(shares) == shares
    assert shares[0] < 0.999
    assert shares[-1] > 0.999


@pytest.mark.parametrize("kind", ann.KINDS)
@settings(max_examples=25, deadline=None)
@given(st.integers(2, 40), st.integers(1, 9), st.integers(0, 99))
def test_small_galleries_are_answered(kind, tmp_path_factory, gallery, dim, seed):
    """Of few items all are found, so that a list through the index is that of the method."""
    random = np.random.default_rng(seed)
    probe, items = (br.Side(random.standard_normal((rows, dim))) for rows in (5, gallery))
    method = ["k-reciprocal-online", "gnn"][seed % 2]
    index = br.build_index(items, tmp_path_factory.mktemp("small") / "a.index.h5", method, ann=kind, effort=64)
    exact = br.rerank(br.FeatureSet(probe, items), method, online=True)
    found = index.rerank(probe)
    listed = found.indices >= 0
    assert listed.all() or kind == "ivf"
    scores = exact.scores[:, : found.indices.shape[1]]
    np.testing.assert_allclose(found.scores[listed], scores[listed], atol=1e-5)


def test_lists_by_camera_are_of_the_right_cameras(data, indexes):
    near = indexes("camera-graph").near
    cams = data.gallery.cams
    for lists, same in ((near.within, True), (near.across, False)):
        items = lists.items.numpy()
        assert ((cams[items] == cams[:, None]) == same)[items >= 0].all()
        assert (items != np.arange(len(cams))[:, None]).all()
        scores = lists.similarities.numpy()
        assert (np.diff(scores, axis=1)[items[:, 1:] >= 0] <= 0).all()


def test_stored_recall_is_what_it_says(data, indexes):
    index = indexes("k-reciprocal-online", "ivf")
    unit = data.gallery.features[:].astype(np.float64)
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    shares = []
    for item in np.unique(np.linspace(0, len(unit) - 1, 256).astype(int)):
        best = np.argsort(-(unit @ unit[item]), kind="stable")
        best = best[best != item][:50]
        shares.append(len(np.intersect1d(best, index.near.lists[item, 1:].numpy())) / 50)
    assert index.approximation.recall["nearest"] == pytest.approx(np.mean(shares), abs=1e-3)


def test_an_index_is_opened_as_it_was_built(data, indexes):
    built = indexes("center+camera-graph")
    opened = GalleryIndex.open(built.path)
    assert opened.approximation.recall == built.approximation.recall
    one, other = (index.rerank(data.probe) for index in (built, opened))
    np.testing.assert_array_equal(one.indices, other.indices)


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 9), st.integers(1, 400))
def test_the_largest_entries_of_rows(seed, count, chunk):
    random = np.random.default_rng(seed)
    dense = random.integers(0, 5, (12, 20)) * random.integers(0, 2, (12, 20))
    rows = SparseRows.from_lists(torch.arange(20).expand(12, -1), torch.from_numpy(dense > 0), chunk * 64)
    rows = rows.counted(torch.from_numpy(dense[dense > 0]))
    cut = rows.largest(count)
    for row, (weights, found) in enumerate(zip(dense, cut.counts.tolist(), strict=True)):
        best = np.argsort(-weights, kind="stable")[: min(count, (weights > 0).sum())]
        mine = cut.rows(row, row + 1)
        assert found == len(best)
        assert mine.columns.tolist() == sorted(best.tolist())
        assert mine.weights.tolist() == weights[np.sort(best)].tolist()


def test_the_first_allowed_of_each_list():
    indices = torch.tensor([[7, 3, 9, -1], [1, 2, 4, 8]])
    scores = torch.tensor([[0.9, 0.5, 0.4, -torch.inf], [0.8, 0.7, 0.2, 0.1]])
    allowed = torch.tensor([[False, True, True, True], [True, False, True, True]])
    first = Candidates(indices, scores).first(allowed, 2)
    assert first.indices.tolist() == [[3, 9], [1, 4]]
    assert Candidates(indices, scores).first(allowed, 3).indices.tolist() == [[3, 9, -1], [1, 4, 8]]
    assert Candidates(indices, scores).first(allowed, 3).scores[0, 2] == -torch.inf


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"ann": "annoy"}, "approximate search 'annoy' is not known: use hnsw or ivf"),
        ({"effort": 9}, "effort applies to approximate search: set ann, or leave effort out"),
        ({"ann": "hnsw", "effort": 0}, "effort must be a whole number of at least 1, not 0"),
        ({"ann": "hnsw", "append": True}, "append keeps the search of the index: leave ann out"),
    ],
)
def test_wrong_use_of_the_library(options, said, tmp_path):
    with pytest.raises(br.ParameterError) as error:
        br.build_index(features()["gallery"], tmp_path / "a.index.h5", **options)
    assert str(error.value) == said
    assert not list(tmp_path.iterdir())


def test_effort_is_of_approximate_search_alone(tmp_path):
    arrays = features()
    index = br.build_index(arrays["gallery"], tmp_path / "a.index.h5")
    with pytest.raises(br.ParameterError, match="this search compares all items"):
        index.rerank(arrays["probe"], effort=9)


def test_on_the_command_line(cli, write):
    path = write()
    code, out, err = cli("index", path, "-o", "a.index.h5", "--ann", "hnsw", "--effort", "40")
    assert (code, out) == (0, "")
    assert re.search(
        r"^hnsw: neighbour lists contain (9\d|100)\.\d\d% of the exact neighbours$", err, re.MULTILINE
    )
    code, out, err = cli("run", "--index", "a.index.h5", path, "-o", "lists.npz", "--json")
    assert code == 0
    assert json.loads(out)["search"] == "index hnsw effort 40"
    assert json.loads(out)["candidates"] == "index hnsw effort 40"
    code, out, err = cli("run", "--index", "a.index.h5", path, "-o", "wide.npz", "--effort", "60", "--json")
    assert json.loads(out)["search"] == "index hnsw effort 60"
    code, out, _ = cli(
        "run", "--index", "a.index.h5", path, "-o", "all.npz", "--search", "exact", "--json", "--quiet"
    )
    assert code == 0
    assert json.loads(out)["search"] == "exact"
    with np.load("wide.npz") as wide, np.load("all.npz") as everything:
        assert (wide["indices"] == everything["indices"]).mean() > 0.99


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["run", "FEATS", "--effort", "9"], "--effort applies to an index: add --index FILE"),
        (
            ["run", "--index", "exact.index.h5", "FEATS", "--effort", "9"],
            "effort applies to approximate search, and this search compares all items: leave effort out",
        ),
        (["index", "FEATS", "--effort", "9"], "--effort applies to approximate search: add --ann"),
        (
            ["run", "--index", "exact.index.h5", "FEATS", "--search", "faiss"],
            "an index has its own search: leave --search faiss out",
        ),
    ],
)
def test_wrong_use_on_the_command_line(arguments, said, cli, write):
    path = write()
    assert cli("index", path, "-o", "exact.index.h5")[0] == 0
    code, _, err = cli(*(str(path) if word == "FEATS" else word for word in arguments))
    assert (code, err.splitlines()[-1]) == (2, f"error: {said}")


def test_probes_on_standard_input_are_answered_through_it(cli, write):
    path = write()
    assert cli("index", path, "-o", "a.index.h5", "--ann", "hnsw")[0] == 0
    probes = features()["probe"]
    lines = "".join(json.dumps(row.tolist()) + "\n" for row in probes)
    done = shell("run", "--index", "a.index.h5", "-", input=lines)
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    assert done.returncode == 0
    exact = br.rerank(br.FeatureSet.from_arrays(probes, features()["gallery"]), "k-reciprocal-online")
    assert [answer["indices"][:5] for answer in answers] == exact.indices[:, :5].tolist()


def _link_to_nowhere(stored):
    """A graph that leads out of the gallery."""
    import faiss

    index = faiss.deserialize_index(stored)
    links = faiss.vector_to_array(index.hnsw.neighbors)
    links[links >= 0] += 10**6
    faiss.copy_array_to_vector(links, index.hnsw.neighbors)
    return faiss.serialize_index(index)


def _start_nowhere(stored):
    import faiss

    index = faiss.deserialize_index(stored)
    index.hnsw.entry_point = 10**6
    return faiss.serialize_index(index)


def _one_item_less(stored):
    import faiss

    index = faiss.index_factory(8, "HNSW32_SQ8", faiss.METRIC_INNER_PRODUCT)
    rows = np.random.default_rng(0).standard_normal((59, 8)).astype(np.float32)
    index.train(rows)
    index.add(rows)
    return faiss.serialize_index(index)


def _twice_in_clusters(stored):
    """Item 1 is there twice and item 0 is not."""
    import faiss

    index = faiss.deserialize_index(stored)
    lists = index.invlists
    for number in range(lists.nlist):
        ids = faiss.rev_swig_ptr(lists.get_ids(number), lists.list_size(number))
        ids[ids == 0] = 1
    return faiss.serialize_index(index)


def _of_another_kind(stored):
    import faiss

    index = faiss.index_factory(8, "Flat", faiss.METRIC_INNER_PRODUCT)
    index.add(np.ones((60, 8), np.float32))
    return faiss.serialize_index(index)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (_link_to_nowhere, "FAISS cannot read its search index"),
        (_start_nowhere, "FAISS cannot read its search index"),
        (_one_item_less, "its search index is of another gallery"),
        (_twice_in_clusters, "its search index has values that are invalid"),
        (_of_another_kind, "its search index is of another gallery"),
        (lambda stored: stored[: len(stored) // 2], "FAISS cannot read its search index"),
        (lambda stored: np.zeros(100, np.uint8), "FAISS cannot read its search index"),
    ],
)
def test_a_search_index_that_leads_nowhere_is_refused(change, said, cli, write):
    """Also with the right checksums, which tell of damage and not of intent."""
    path = write()
    kind = "ivf" if change is _twice_in_clusters else "hnsw"
    assert cli("index", path, "-o", "a.index.h5", "--ann", kind)[0] == 0
    with h5py.File("a.index.h5", "r+") as file:
        changed = change(file["search/faiss"][:])
        del file["search/faiss"]
        file["search/faiss"] = changed
        file["search/faiss"].attrs["crc32"] = zlib.crc32(np.ascontiguousarray(changed).data)
    code, _, err = cli("run", "--index", "a.index.h5", path)
    assert code == 1
    assert err.startswith("error: ")
    assert said in err
    assert len(err.splitlines()) == 1


def test_bench_prints_all_items_and_efforts_side_by_side(cli, write):
    path = write()
    assert cli("index", path, "-o", "a.index.h5", "--ann", "hnsw")[0] == 0
    assert cli("index", path, "-o", "e.index.h5")[0] == 0
    bench = ["bench", path, "--index", "a.index.h5", "--repeats", 1, "--methods", "k-reciprocal-online,lbr"]
    code, out, _ = cli(*bench, "--effort", "5,60", "--json")
    assert code == 0
    rows = json.loads(out)
    assert [row["looks_at"] for row in rows] == 2 * ["all items", "effort 5", "effort 60"]
    for everything, little, much in (rows[:3], rows[3:]):
        assert everything["overlap"] == 1
        assert little["overlap"] <= much["overlap"]
        assert much["overlap"] > 0.99
        assert much["mAP"] == pytest.approx(everything["mAP"], abs=0.01)
    code, out, _ = cli(*bench, "--exact-index", "e.index.h5")
    assert code == 0
    assert "hnsw; recall of neighbour lists: nearest 0.9" in out or "nearest 1.0000" in out
    assert "; overlap with e.index.h5" in out
    assert "overlap@50" in out
    assert "effort 256" in out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--effort", "9"], "--effort and --exact-index apply to an index: add --index FILE"),
        (
            ["--index", "e.index.h5", "--effort", "9"],
            "e.index.h5 is searched exactly: leave --effort and --exact-index out",
        ),
        (
            ["--index", "a.index.h5", "--effort", "9,x"],
            "--effort takes whole numbers, separated by commas, not '9,x'",
        ),
        (["--index", "a.index.h5", "--effort", "0"], "effort must be a whole number of at least 1, not 0"),
    ],
)
def test_bench_refuses_what_makes_no_sense(arguments, said, cli, write):
    path = write()
    assert cli("index", path, "-o", "a.index.h5", "--ann", "hnsw")[0] == 0
    assert cli("index", path, "-o", "e.index.h5")[0] == 0
    code, _, err = cli("bench", path, *arguments)
    assert (code, err.splitlines()[-1]) == (2, f"error: {said}")
