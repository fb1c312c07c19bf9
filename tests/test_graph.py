"""The neighbour graph and its sparse rows, against brute force and scipy."""

from __future__ import annotations

import os
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import exact_sides, features, shell, sides
from hypothesis import given, settings
from hypothesis import strategies as st

import blurrerank as br
from blurrerank.data.sort_keys import from_sort_keys
from blurrerank.files.neighbours_h5 import read_partial, write_partial
from blurrerank.graph.comparison import compared
from blurrerank.graph.find import find_graph
from blurrerank.graph.neighbour_graph import ListSizes
from blurrerank.graph.running_lists import Pairs, RunningLists
from blurrerank.graph.sparse_rows import ONE, SparseRows
from blurrerank.search.rows import RowBudget, UnitRows

CPU = torch.device("cpu")


def brute_force(rows: np.ndarray, allowed: np.ndarray, count: int) -> list[list[int]]:
    """The nearest allowed images of each, in float64; ties to the lower index."""
    unit = rows.astype(np.float64)
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    # Every pair by itself: a matrix product rounds equal rows differently.
    cosine = np.stack([(unit * row).sum(axis=1) for row in unit])
    lists = []
    for image in range(len(rows)):
        others = np.flatnonzero(allowed[image])
        order = np.lexsort((others, -cosine[image, others]))
        lists.append(others[order][:count].tolist())
    return lists


@settings(max_examples=40)
@given(
    st.one_of(exact_sides(), sides()),
    st.integers(0, 12),
    st.integers(0, 12),
    st.integers(0, 12),
    st.integers(1, 4),
    st.sampled_from([torch.float32, torch.bfloat16]),
    st.booleans(),
)
@pytest.mark.filterwarnings("ignore:the memory budget does not hold:blurrerank.BlurrerankWarning")
def test_lists_by_camera_are_those_of_brute_force(arrays, nearest, within, across, cameras, dtype, resident):
    rows = np.concatenate(arrays)
    number = len(rows)
    cams = np.random.default_rng(number).integers(0, cameras, number)
    images = UnitRows(
        br.Side(rows),
        device=CPU,
        block=50,
        resident=resident,
        dtype=dtype,
        budget=RowBudget(number if resident else max(1, number // 3), 1 << 18),
    )
    graph = find_graph(images, ListSizes(nearest, within, across, farthest=True), cams=torch.from_numpy(cams))
    others = ~np.eye(number, dtype=bool)
    same = cams[:, None] == cams[None]
    expected = brute_force(rows, others, nearest)
    assert [row[0] for row in graph.lists.tolist()] == list(range(number))
    assert [row[1:] for row in graph.lists.tolist()] == expected
    for lists, count, allowed in ((graph.within, within, same & others), (graph.across, across, ~same)):
        assert (lists is None) == (count == 0)
        if lists is None:
            continue
        found = [[item for item in row if item >= 0] for row in lists.items.tolist()]
        assert found == brute_force(rows, allowed, count)
        # Lists end early where a camera has fewer images, and are padded at the end alone.
        padded = lists.items < 0
        assert not bool((padded[:, :-1] & ~padded[:, 1:]).any())
        assert bool((lists.similarities[padded] == -torch.inf).all())
        assert bool(torch.isfinite(lists.similarities[~padded]).all())


@pytest.mark.parametrize("sorted_by", ["nothing", "nearness"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_lists_of_many_images_are_those_of_brute_force(dtype, sorted_by):
    """Several tiles, of which later ones have little for a list or, worst of all, always something better."""
    random = np.random.default_rng(0)
    rows = random.standard_normal((5000, 16)).astype(np.float32)
    if sorted_by == "nearness":
        rows = rows[np.argsort(rows[:, 0] / np.linalg.norm(rows, axis=1))]
    cams = torch.from_numpy(random.integers(0, 3, len(rows)))
    images = UnitRows(br.Side(rows), device=CPU, block=1000, resident=True, dtype=dtype)
    graph = find_graph(images, ListSizes(12, 5, 7, farthest=True), cams=cams)
    unit = torch.nn.functional.normalize(torch.from_numpy(rows).double())
    cosine = unit @ unit.T
    assert torch.allclose(graph.lowest.double(), cosine.amin(dim=1), rtol=0, atol=1e-6)
    cosine.fill_diagonal_(-2)
    same = cams[:, None] == cams
    for lists, allowed in (
        (graph.kind("nearest"), torch.ones_like(same)),
        (graph.within, same),
        (graph.across, ~same),
    ):
        expected = cosine.masked_fill(~allowed, -2).topk(lists.items.shape[1], dim=1)
        assert torch.equal(lists.items.long(), expected.indices)


def test_lists_that_processes_merge_end_where_the_merged_ones_do():
    """What another process found pushes out what this one did, which is then not listed any more."""

    class Merging(UnitRows):
        others: torch.Tensor

        def merge_top_keys(self, keys):
            return torch.cat([keys, self.others], dim=1).topk(keys.shape[1], dim=1).values

    images = Merging(br.Side(np.eye(20, dtype=np.float32)), device=CPU, block=20, resident=True)
    mine, theirs = (RunningLists(images, 4, Pairs()) for _ in range(2))
    products = torch.tensor([0.1, 0.2, 0.3, 0.4, 0.5, 0.6])
    image = torch.zeros(6, dtype=torch.int64)
    mine.offer(image, torch.arange(1, 7), products)
    theirs.offer(image, torch.arange(7, 13), products + 0.3)
    images.others = theirs.best(slice(0, 20))
    mine.merge_processes(images)
    items, values = from_sort_keys(mine.best(slice(0, 1)))
    assert items.tolist() == [[12, 11, 10, 6]]
    assert mine.unlisted_score_bound(slice(0, 1)).item() == values[0, -1].item() == pytest.approx(0.6)


def test_a_graph_goes_on_from_the_first_images(tmp_path):
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((300, 16)).astype(np.float32)
    cams = torch.from_numpy(rng.integers(0, 3, 300))
    images = UnitRows(br.Side(rows), device=CPU, block=64, resident=True, budget=RowBudget(64, 1 << 16))
    sizes, kept = ListSizes(7, 4, 5, farthest=True), []
    whole = find_graph(images, sizes, cams=cams, keep=lambda graph: kept.append(graph()))
    assert 0 < len(kept[0]) < 300
    write_partial(tmp_path / "p.h5", kept[0], pool=0, digest="d")
    known, _, _ = read_partial(tmp_path / "p.h5")
    for before in (kept[0], known, None):
        told: list[int] = []
        again = find_graph(
            images, sizes, cams=cams, known=before, progress=lambda done, total, told=told: told.append(done)
        )
        least = 0 if before is None else len(kept[0]) ** 2 // 300
        assert (told[0] > least) if before is not None else (told[0] < 300 * 64 // 300 + 1)
        for one, other in ((again, whole), (again.within, whole.within), (again.across, whole.across)):
            for name in ("lists", "items", "similarities", "lowest"):
                if hasattr(one, name):
                    assert torch.equal(getattr(one, name), getattr(other, name)), name
    # A graph that was found without lists by camera, or without the farthest, does not serve.
    without = find_graph(images, ListSizes(7, farthest=True))
    assert torch.equal(find_graph(images, sizes, cams=cams, known=without).within.items, whole.within.items)
    without = find_graph(images, ListSizes(7, 4, 5), cams=cams)
    assert without.lowest is None
    assert torch.equal(find_graph(images, sizes, cams=cams, known=without).lowest, whole.lowest)


def test_the_public_graph(write):
    arrays = features(probes=15, gallery=60)
    data = br.FeatureSet(
        br.Side(arrays["probe"], cams=arrays["probe_cams"]),
        br.Side(arrays["gallery"], cams=arrays["gallery_cams"]),
    )
    graph = br.neighbour_graph(data, 9, within=3, across=4)
    assert graph.lists.shape == (75, 10)
    assert graph.within.items.shape == (75, 3)
    assert graph.across.items.shape == (75, 4)
    both = np.concatenate([arrays["probe"], arrays["gallery"]])
    assert torch.equal(br.neighbour_graph(both, 9).lists, graph.lists)
    assert br.neighbour_graph(arrays["gallery"], 200).lists.shape == (60, 60)
    with pytest.raises(br.InputError, match="lists within or across cameras need cameras"):
        br.neighbour_graph(both, 9, within=2)
    with pytest.raises(br.ParameterError, match="nearest must be a whole number of at least 0, not -1"):
        br.neighbour_graph(both, -1)
    with pytest.raises(br.InputError, match="NaN or infinity in 3 rows"):
        br.neighbour_graph(np.full((3, 2), np.nan), 1)


def test_one_graph_serves_many_methods_and_settings():
    arrays = features(probes=20, gallery=150, dim=16)
    data = br.FeatureSet.from_arrays(arrays["probe"], arrays["gallery"])
    graph = br.neighbour_graph(data, 30)
    gallery = br.neighbour_graph(data.gallery, 50)
    for method, params, shared in (
        ("k-reciprocal", {}, graph),
        ("k-reciprocal", {"k1": 7, "k2": 3}, graph),
        ("k-reciprocal-online", {}, gallery),
        ("k-reciprocal-online", {"pool": 20, "blur": 3}, gallery),
    ):
        found = br.rerank(data, method, graph=shared, **params)
        expected = br.rerank(data, method, **params)
        np.testing.assert_array_equal(found.indices, expected.indices)
        np.testing.assert_array_equal(found.scores, expected.scores)
    with pytest.raises(
        br.ParameterError, match=r"lists 30 neighbours per image, .* k-reciprocal needs .*nearest=31,"
    ):
        br.rerank(data, "k-reciprocal", k1=31, graph=graph)
    for method in ("lbr", "dba+k-reciprocal"):
        with pytest.raises(br.ParameterError, match="does not take a graph"):
            br.rerank(data, method, graph=graph)
    seen = br.FeatureSet.from_arrays(**arrays)
    other = br.FeatureSet.from_arrays(**arrays | {"gallery_cams": np.roll(arrays["gallery_cams"], 1)})
    other = br.neighbour_graph(other, within=9, across=10)
    with pytest.raises(br.InputError, match="the graph was made with other cameras"):
        br.rerank(seen, "camera-graph", graph=other)
    other = br.neighbour_graph(br.FeatureSet.from_arrays(arrays["probe"], arrays["gallery"][::-1].copy()), 30)
    with pytest.raises(br.InputError, match="the graph was made from other features"):
        br.rerank(data, "k-reciprocal", graph=other)
    with pytest.raises(br.InputError, match="graph has 150 images, but k-reciprocal needs one of the 170"):
        br.rerank(data, "k-reciprocal", graph=gallery)


def test_the_lists_of_an_index_are_no_graph_of_a_gallery(tmp_path):
    """They do not tell of which gallery they are."""
    arrays = features(probes=5, gallery=60)
    data = br.FeatureSet.from_arrays(arrays["probe"], arrays["gallery"])
    index = br.build_index(data.gallery, tmp_path / "i.h5")
    with pytest.raises(br.InputError, match="the graph has only lists, as in an index"):
        br.rerank(data, "k-reciprocal-online", graph=index.near)


def test_a_graph_is_cut_to_what_is_asked_for():
    arrays = features(probes=15, gallery=60)
    rows, cams = arrays["gallery"], torch.from_numpy(arrays["gallery_cams"])
    images = UnitRows(br.Side(rows), device=CPU, block=60, resident=True)
    long, short = (find_graph(images, ListSizes(*sizes), cams=cams) for sizes in ((9, 8, 7), (4, 3, 2)))
    cut = long.cut(ListSizes(4, 3, 2))
    assert torch.equal(cut.lists, short.lists)
    for one, other in ((cut.within, short.within), (cut.across, short.across)):
        assert torch.equal(one.items, other.items)
        assert torch.equal(one.similarities, other.similarities)
    assert long.cut(ListSizes(4)).within is None
    with pytest.raises(
        br.ParameterError, match="the graph lists 9 neighbours per image, and 10 are needed: make one with more"
    ):
        long.reciprocal(10)


@st.composite
def sparse(draw, rows: int | None = None, width: int | None = None):
    """A matrix with few entries, and its `SparseRows`."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    shape = rows or draw(st.integers(1, 12)), width or draw(st.integers(1, 9))
    dense = rng.integers(0, ONE // 16, shape) * (rng.random(shape) < draw(st.sampled_from([0.0, 0.3, 1.0])))
    dense = dense.astype(np.int64)
    owner, column = np.nonzero(dense)
    offsets = np.concatenate([[0], np.cumsum((dense > 0).sum(axis=1))])
    chunk = draw(st.sampled_from([64, 640, 1 << 20]))
    return dense, SparseRows(
        torch.from_numpy(offsets),
        torch.from_numpy(column).to(torch.int32),
        torch.from_numpy(dense[owner, column]).to(torch.int32),
        chunk,
    )


@given(sparse())
def test_sparse_rows_are_a_matrix(matrix):
    dense, rows = matrix
    width = dense.shape[1]
    np.testing.assert_array_equal(rows.to_scipy(width).toarray(), dense / ONE)
    np.testing.assert_array_equal(rows.transposed(width).to_scipy(len(dense)).toarray(), dense.T / ONE)
    np.testing.assert_array_equal(rows.rows(1, len(dense)).to_scipy(width).toarray(), dense[1:] / ONE)


@given(st.integers(1, 9).flatmap(lambda width: st.tuples(sparse(width=width), sparse(width=width))))
def test_overlaps_are_sums_of_minima(matrices):
    (one, rows), (other, others) = matrices
    expected = np.minimum(one[:, None], other[None]).sum(axis=2) / ONE
    found = compared(rows, [others.transposed(other.shape[1])], len(other), "overlap")
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-6)


@pytest.mark.parametrize("count", [1, 2, 3])
@given(
    matrices=st.integers(1, 9).flatmap(lambda width: st.tuples(sparse(width=width), sparse(width=width))),
    first=st.integers(0, 3),
)
def test_dot_products_are_those_of_matrices(count, matrices, first):
    """In any number of threads, of items that are encoded and that were added."""
    (one, rows), (other, others) = matrices
    whole = others.transposed(other.shape[1])
    early = whole.columns < first
    parts = [replace(whole, weights=whole.weights * some.to(torch.int32)) for some in (early, ~early)]
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        for lists in ([whole], parts):
            found = compared(rows, lists, len(other), "dot")
            np.testing.assert_allclose(found.numpy(), (one / ONE) @ (other / ONE).T, atol=1e-6)
        assert compared(rows.rows(0, 0), [whole], len(other), "dot").shape == (0, len(other))
        assert not compared(rows, [], len(other), "dot").any()
    finally:
        torch.set_num_threads(before)


FORKED = """
import os, torch
from blurrerank.graph.comparison import compared
from blurrerank.graph.sparse_rows import SparseRows

torch.set_num_threads(1)  # with more, torch itself does not survive a fork
rows = SparseRows.from_lists(torch.tensor([[0, 1], [1, 2]]), torch.ones(2, 2, dtype=torch.bool)).uniform()
expected = compared(rows, [rows.transposed(3)], 2, "dot")
child = os.fork()
found = compared(rows, [rows.transposed(3)], 2, "dot")
assert torch.equal(found, expected)
if child:
    assert os.waitpid(child, 0)[1] == 0
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no forks on this system")
def test_a_fork_compares_too():
    done = shell(program=FORKED, timeout=60)
    assert done.returncode == 0, done.stderr


@given(
    st.integers(1, 9).flatmap(lambda number: sparse(number, number)), st.integers(0, 2**32), st.integers(1, 4)
)
def test_averages_are_means_of_rows(matrix, seed, number):
    dense, rows = matrix
    lists = np.random.default_rng(seed).integers(0, len(dense), (5, number))
    found = rows.averaged(torch.from_numpy(lists)).to_scipy(dense.shape[1]).toarray()
    np.testing.assert_allclose(found, dense[lists].mean(axis=1) / ONE, atol=1 / ONE)


@given(sparse(), st.integers(0, 2**32))
def test_weights_are_divided_by_their_sum(matrix, seed):
    dense, rows = matrix
    weights = np.random.default_rng(seed).uniform(0.1, 1, len(rows.columns)).astype(np.float32)
    expected = np.zeros(dense.shape)
    expected[np.nonzero(dense)] = weights
    sums = expected.sum(axis=1, keepdims=True)
    expected = np.divide(expected, sums, where=sums > 0, out=np.zeros_like(expected))
    found = rows.weighted(torch.from_numpy(weights)).to_scipy(dense.shape[1]).toarray()
    np.testing.assert_allclose(found, expected, atol=1e-6)
    members = dense > 0
    counts = members.sum(axis=1, keepdims=True)
    uniform = np.divide(members, counts, where=counts > 0, out=np.zeros(dense.shape))
    np.testing.assert_allclose(rows.uniform().to_scipy(dense.shape[1]).toarray(), uniform, atol=1e-6)


@given(sides(), st.integers(1, 8))
def test_reciprocal_neighbours_list_each_other(arrays, count):
    rows = np.concatenate(arrays)
    graph = br.neighbour_graph(rows, count)
    lists = [set(row) for row in graph.lists[:, : count + 1].tolist()]
    expected = np.array(
        [
            [other in lists[image] and image in lists[other] for other in range(len(rows))]
            for image in range(len(rows))
        ]
    )
    found = graph.reciprocal(count).uniform().to_scipy(len(rows)).toarray() > 0
    np.testing.assert_array_equal(found, expected)


@given(st.integers(0, 99), st.integers(1, 9), st.integers(1, 40))
def test_rows_that_are_cut_while_they_are_made_symmetrical(seed, most, size):
    rng = np.random.default_rng(seed)
    dense = rng.random((size, size)) * (rng.random((size, size)) < 0.4)
    lists = torch.arange(size).expand(size, -1)
    chosen = torch.from_numpy(dense > 0)
    rows = SparseRows.from_lists(lists, chosen).shared(torch.from_numpy(dense[dense > 0]))
    whole, cut = rows.symmetrised().largest(most), rows.symmetrised(most)
    for name in SparseRows.ARRAYS:
        assert torch.equal(getattr(whole, name), getattr(cut, name))
