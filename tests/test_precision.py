"""Lists are those of exact scores, whatever precision, block or budget the candidates were found with."""

from __future__ import annotations

import logging
import re

import h5py
import numpy as np
import pytest
import torch
from conftest import check_lists, exact_sides, features, shell, sides
from hypothesis import given, settings
from hypothesis import strategies as st

import blurrerank as br
from blurrerank import reference
from blurrerank.compute.compute import Compute
from blurrerank.data.side import Side
from blurrerank.data.sort_keys import NOBODY, fine_keys, from_fine_keys
from blurrerank.engine.plans import plan_for
from blurrerank.engine.ranking import rank_batches
from blurrerank.engine.request import Request
from blurrerank.graph.find import find_graph
from blurrerank.graph.neighbour_graph import ListSizes
from blurrerank.index.building import build_index
from blurrerank.methods import create
from blurrerank.search.exact import Query
from blurrerank.search.nearest import nearest
from blurrerank.search.precision import ceiling, error_bound, pair_scores, pick_precision, product, rounded
from blurrerank.search.rows import PassingRows, RowBudget, UnitRows, unit_rows
from blurrerank.search.sources import LocalGallery
from blurrerank.search.tiles import greatest

CPU = torch.device("cpu")
LOW = torch.bfloat16
METHODS = ("cosine", "lbr", "k-reciprocal", "k-reciprocal-online")


@st.composite
def near_ties(draw):
    """Clusters of rows nearer to each other than products can tell, and more duplicates than a margin holds."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    dim, people = draw(st.sampled_from([1, 3, 16, 65, 300])), draw(st.integers(1, 4))
    centres = rng.standard_normal((people, dim)).astype(np.float32)
    spread = draw(st.sampled_from([0.0, 1e-7, 1e-5, 1e-3, 1e-2]))
    probes, gallery = draw(st.integers(1, 80)), draw(st.integers(1, 400))
    probe, rows = (
        centres[rng.integers(0, people, count)] * (1 + spread * rng.standard_normal((count, dim)))
        for count in (probes, gallery)
    )
    rows = rows[rng.integers(0, gallery, gallery)] if draw(st.booleans()) else rows
    return probe.astype(np.float32), rows.astype(np.float32)


def exact_lists(probe, gallery, depth):
    """Every pair by itself, in order of score and then of index."""
    queries, rows = unit_rows(torch.from_numpy(probe)), unit_rows(torch.from_numpy(gallery))
    scores = torch.stack([(rows * query).sum(dim=1) for query in queries]).numpy()
    order = np.stack([np.lexsort((np.arange(len(rows)), -row)) for row in scores])[:, :depth]
    return order, np.take_along_axis(scores, order, axis=1)


def found(data, method, whole_rows=False, **how):
    batches = list(rank_batches(data, method, Request(whole_rows=whole_rows), Compute.choose(**how)))
    return tuple(
        torch.cat([getattr(batch, name) for batch in batches]).numpy() for name in ("indices", "scores")
    )


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@settings(max_examples=60)
@given(st.one_of(near_ties(), sides(), exact_sides()), st.integers(1, 60), st.integers(1, 500))
def test_lists_are_those_of_exact_scores(precision, arrays, topn, block):
    probe, gallery = arrays
    data = br.FeatureSet.from_arrays(probe, gallery)
    topn = min(topn, len(gallery))
    expected = exact_lists(probe, gallery, topn)
    for how in ({}, {"block": block}, {"whole_rows": True}, {"memory": 1 << 21, "block": block}):
        for one, other in zip(
            found(data, create("cosine", topn=topn), precision=precision, **how), expected, strict=True
        ):
            np.testing.assert_array_equal(one, other)
    for part in ([0], range(len(probe))[::-1]):
        some = br.FeatureSet.from_arrays(probe[list(part)], gallery)
        lists = found(some, create("cosine", topn=topn), precision=precision)
        np.testing.assert_array_equal(lists[0], expected[0][list(part)])
        np.testing.assert_array_equal(lists[1], expected[1][list(part)])


@pytest.mark.filterwarnings("ignore:features are nearly equal:blurrerank.BlurrerankWarning")
@pytest.mark.parametrize("method", METHODS)
@settings(max_examples=25)
@given(st.one_of(near_ties(), sides()))
def test_no_method_depends_on_the_precision(method, arrays):
    data = br.FeatureSet.from_arrays(*arrays)
    one, other = (found(data, create(method), precision=precision) for precision in ("float32", "bfloat16"))
    np.testing.assert_array_equal(one[0], other[0])
    np.testing.assert_array_equal(one[1], other[1])


@pytest.mark.parametrize("method", METHODS)
def test_precisions_agree_on_real_features(shared, method):
    data = br.load(shared / "data/omniglot.h5")
    one, other = (found(data, create(method), precision=precision) for precision in ("float32", "bfloat16"))
    np.testing.assert_array_equal(one[0], other[0])
    np.testing.assert_array_equal(one[1], other[1])


@pytest.mark.parametrize(
    ("name", "method"),
    [
        ("cosine_top200", create("cosine", topn=200)),
        ("lbr_n50_s0.1", create("lbr")),
        ("lbr_n20_s0.3", create("lbr", topn=20, sigma=0.3)),
        ("lbr_n150_s0.02", create("lbr", topn=150, sigma=0.02)),
    ],
)
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_lists_are_the_golden_ones(shared, name, method, precision):
    with h5py.File(shared / "golden/omniglot.h5") as golden:
        expected, scores = golden[name]["indices"][()], golden[name]["scores"][()]
    lists, ours = found(br.load(shared / "data/omniglot.h5"), method, precision=precision)
    width = min(expected.shape[1], lists.shape[1])
    check_lists(lists[:, :width], ours[:, :width], expected[:, :width], scores[:, :width])


@given(sides(), st.sampled_from([1e-6, 1.0, 1e6]))
def test_scores_are_near_those_of_float64(arrays, scale):
    probe, gallery = arrays
    data = br.FeatureSet.from_arrays(probe * np.float32(scale), gallery)
    _, scores = found(data, create("cosine", topn=len(gallery)), precision="bfloat16")
    np.testing.assert_allclose(scores, reference.cosine_ranking(probe, gallery)[1], atol=1e-6)


# The proof.


@settings(max_examples=200)
@given(st.integers(0, 2**32), st.sampled_from([1, 2, 7, 64, 1000, 5000]), st.sampled_from([LOW, torch.float32]))
def test_no_product_is_farther_off_than_its_bound(seed, dim, dtype):
    """Against float64, with rows of every kind: dense, sparse, alike, opposite, of one value."""
    rng = np.random.default_rng(seed)
    base = rng.standard_normal((1, dim))
    rows = np.concatenate(
        [
            rng.standard_normal((70, dim)),
            rng.standard_normal((10, dim)) * (rng.random((10, dim)) < 0.1) + 1e-9,
            base + 1e-3 * rng.standard_normal((10, dim)),
            -base * np.ones((2, 1)),
            np.ones((2, dim)),
            np.exp(8 * rng.standard_normal((6, dim))),
        ]
    )
    unit = unit_rows(torch.from_numpy(rows.astype(np.float32)))
    factors = rounded(unit, dtype)
    values = product(factors.rows, factors.rows)
    exact = pair_scores(unit.unsqueeze(1).repeat(1, len(unit), 1), unit)
    wide = unit.double() @ unit.double().T
    bound = error_bound(factors.errors, factors.errors.max(), dim, dtype).unsqueeze(1)
    # What was rounded to a value was no more than its ceiling; and the same from below.
    assert (exact <= ceiling(values, dtype) + bound).all()
    assert (exact >= -ceiling(-values, dtype) - bound).all()
    assert (wide <= ceiling(values, dtype).double() + bound).all()
    errors = (unit.double() - factors.rows.double()).norm(dim=1)
    assert torch.allclose(factors.errors.double(), errors, rtol=1e-4, atol=1e-9)


def test_the_bound_says_something():
    unit = unit_rows(torch.randn(50, 2048, generator=torch.Generator().manual_seed(1)))
    factors = rounded(unit, LOW)
    assert 0.002 < float(error_bound(factors.errors, factors.errors.max(), 2048, LOW).max()) < 0.006
    assert float(error_bound(torch.zeros(1), 0.0, 2048, torch.float32)) < 3e-4


@given(st.floats(-2, 2, width=32))
def test_a_ceiling_is_above_what_was_rounded(value):
    wide = torch.tensor([value])
    assert (ceiling(wide.to(LOW), LOW) >= wide).all()
    assert (ceiling(wide.to(LOW), LOW) - wide <= max(2**-7 * abs(value), 2**-8)).all()


def told(caplog):
    text = " ".join(record.getMessage() for record in caplog.records)
    return [
        tuple(map(int, match))
        for match in re.findall(r"(\d+) needed a wider margin, (\d+) of them every item", text)
    ]


@pytest.mark.parametrize(
    ("spread", "depth", "expected"),
    [(9.0, 1, (0, 0)), (0.05, 50, (100, None)), (0.0, 50, (100, 100))],
    ids=["easy", "near", "duplicates"],
)
def test_failed_proofs_are_counted_and_their_lists_exact(caplog, spread, depth, expected):
    """Each probe is near one item; how near the others are to that one decides what can be proved."""
    rng = np.random.default_rng(4)
    gallery = (rng.standard_normal(256) + spread * rng.standard_normal((3000, 256))).astype(np.float32)
    probe = (gallery[:100] + 0.5 * rng.standard_normal((100, 256))).astype(np.float32)
    data = br.FeatureSet.from_arrays(probe, gallery)
    with caplog.at_level(logging.INFO, "blurrerank"):
        lists = found(data, create("cosine", topn=depth), precision="bfloat16")
    ((widened, fell_back),) = told(caplog)
    assert widened == expected[0]
    assert expected[1] in (None, fell_back)
    for one, other in zip(lists, exact_lists(probe, gallery, depth), strict=True):
        np.testing.assert_array_equal(one, other)


def test_the_command_line_counts_them_too(write, tmp_path):
    feats = write("feats.h5", **features(probes=100, gallery=200))
    done = shell("run", feats, "-v", "--precision", "bfloat16", "--topn", 5, "-o", tmp_path / "o.h5")
    assert done.returncode == 0
    assert re.search(
        r"100 lists verified exact, by bfloat16 products: \d+ needed a wider margin, \d+ of them every item",
        done.stderr,
    )
    done = shell("run", feats, "-v", "--method", "k-reciprocal", "-o", tmp_path / "k.h5")
    assert re.search(
        r"neighbours of 300 images verified exact, by \w+ products: \d+ lists needed an", done.stderr
    )


def test_precisions_that_are_none(cli, write):
    with pytest.raises(br.ParameterError, match="'half' is not known: use auto or float32 or bfloat16"):
        pick_precision("half", CPU)
    write("feats.h5", **features())
    assert cli("run", "feats.h5", "--precision", "half")[0] == 2


def test_auto_stays_with_float32_for_few_probes():
    data = br.FeatureSet.from_arrays(np.eye(3, 8), np.eye(8))
    for precision, dtype in (("auto", torch.float32), ("bfloat16", LOW)):
        compute = Compute.choose(precision=precision)
        assert plan_for(data, create("lbr"), Request(), compute).dtype == dtype


@pytest.mark.parametrize("worst", ["first", "last"])
def test_the_gallery_s_own_rounding_counts(worst):
    """Probes that bfloat16 holds exactly; rows that rounding hurts most, all in one of several blocks."""
    rng = np.random.default_rng(5)
    dim = 256
    probe = rng.choice([-1.0, 1.0], (80, dim))  # 1 / 16 each when normalised
    # Half of the entries lie in the middle between two of bfloat16's numbers once the row is normalised.
    middle, other = 1 + 2.0**-8, (2 - (1 + 2.0**-8) ** 2) ** 0.5
    fine = rng.permuted(np.tile([middle, other], (200, dim // 2)), axis=1)
    fine *= np.sign(probe[rng.integers(0, 80, 200)]) * np.where(rng.random((200, dim)) < 0.1, -1, 1)
    coarse = rng.choice([-1.0, 1.0], (600, dim))
    parts = (fine, coarse) if worst == "first" else (coarse, fine)
    gallery = np.concatenate(parts).astype(np.float32)
    data = br.FeatureSet.from_arrays(probe.astype(np.float32), gallery)
    expected = exact_lists(probe.astype(np.float32), gallery, 5)
    for block in (100, 800):
        lists = found(data, create("cosine", topn=5), precision="bfloat16", block=block)
        np.testing.assert_array_equal(lists[0], expected[0])
    rows = UnitRows(Side(gallery), device=CPU, block=100, resident=True, dtype=LOW, keep=True)
    near = nearest(unit_rows(torch.from_numpy(probe.astype(np.float32))), rows, 5)
    factors = rows.factors(0, 800)
    queries = rounded(unit_rows(torch.from_numpy(probe.astype(np.float32))), LOW)
    assert not queries.errors.any()
    assert factors.errors.max() > 0.002 > 100 * factors.errors[-1 if worst == "first" else 0]
    last = product(queries.rows, factors.rows).topk(5, dim=1).values[:, -1]
    assert (near.unlisted_score_bound >= ceiling(last, LOW) + factors.errors.max()).all()


def test_a_long_row_alone_has_the_score_it_has_among_others(threads):
    threads(2)
    row = np.random.default_rng(6).standard_normal((1, 40_000)).astype(np.float32)
    query = unit_rows(torch.from_numpy(np.random.default_rng(7).standard_normal((1, 40_000))))
    rows = unit_rows(torch.from_numpy(row)).repeat(27, 1)
    together = pair_scores(rows.clone(), query)
    assert torch.equal(together, pair_scores(rows[:1].clone(), query).repeat(27))
    data = br.FeatureSet.from_arrays(query, rows)
    ranking = br.rerank(data, "cosine", topn=27, candidates=np.arange(27)[None, ::-1])
    assert ranking.indices[0].tolist() == list(range(27))


def test_lists_do_not_depend_on_torch_s_precision_of_products():
    """Training scripts set it for the whole process."""
    data = br.FeatureSet.from_arrays(**features(seed=3, probes=70, gallery=300, dim=64))
    before = [found(data, create(method), precision="float32") for method in METHODS]
    torch.set_float32_matmul_precision("medium")
    try:
        after = [found(data, create(method), precision="float32") for method in METHODS[:2]]
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision("highest")
    for one, other in zip(before, after, strict=False):
        np.testing.assert_array_equal(one[0], other[0])
        np.testing.assert_array_equal(one[1], other[1])


# What it is made of.


@settings(max_examples=200)
@given(st.integers(0, 2**32), st.integers(1, 400), st.integers(1, 40), st.booleans())
def test_the_greatest_of_a_tile(seed, columns, count, coarse):
    random = torch.Generator().manual_seed(seed)
    values = torch.randn(5, columns, generator=random)
    values = (values * 2).round() if coarse else values
    count = min(count, columns)
    some, places = greatest(values.to(LOW), count)
    assert torch.equal(some, values.to(LOW).gather(1, places))
    assert all(len(set(row)) == count for row in places.tolist())
    assert torch.equal(some.sort(dim=1).values, values.to(LOW).topk(count, dim=1).values.sort(dim=1).values)


@given(st.lists(st.integers(0, 99), min_size=1, max_size=30), st.integers(1, 40), st.integers(2, 7))
def test_rows_are_kept_while_they_are_wanted(wanted, block, leaving):
    """All rows pass by; some of those that are wanted are not any more when the next have passed."""
    table = torch.arange(100.0).unsqueeze(1).repeat(1, 3)
    kept = PassingRows(len(set(wanted)), 3, CPU)
    still = sorted(set(wanted))
    for start in range(0, 100, block):
        stop = min(start + block, 100)
        still = [item for item in still if item >= start or (item + start) % leaving]
        some = torch.tensor([item for item in still if item < stop], dtype=torch.int64)
        kept.keep(some, start, table[start:stop])
        rows, places = kept.gather(some)
        assert torch.equal(rows[places], table[some])


@given(
    st.lists(
        st.tuples(st.floats(-1, 1), st.integers(0, 10**6)), min_size=1, max_size=40, unique_by=lambda p: p[1]
    )
)
def test_fine_keys_order_like_the_numbers(pairs):
    total = 10**6 + 1
    scores, items = (torch.tensor(values) for values in zip(*pairs, strict=True))
    keys = fine_keys(scores.double(), items, total)
    assert torch.equal(from_fine_keys(keys, total), items)
    ordered = from_fine_keys(keys.sort(descending=True).values, total).tolist()
    quantum = 2.0**-42
    expected = sorted(pairs, key=lambda pair: (-round(np.float32(pair[0]).astype(float) / quantum), pair[1]))
    assert ordered == [item for _, item in expected]
    assert int(fine_keys(torch.tensor([-torch.inf], dtype=torch.float64), items[:1], total)) == NOBODY


# What is read, and how often.


class Counting:
    """Features that note which rows were read."""

    def __init__(self, values, chunks=None):
        self._values, self.chunks, self.reads = values, chunks, []
        self.shape, self.dtype = values.shape, values.dtype

    def __getitem__(self, rows):
        self.reads.append((rows.start, rows.stop))
        return self._values[rows]


def test_a_gallery_on_disk_is_read_once_for_each_batch_of_probes():
    rng = np.random.default_rng(7)
    gallery = Counting(rng.standard_normal((3000, 256)).astype(np.float32))
    probe = rng.standard_normal((90, 256)).astype(np.float32)
    data = br.FeatureSet(Side(probe), Side(gallery))
    gallery.reads.clear()
    compute = Compute.choose(memory=4 << 20, precision="bfloat16")
    batches = list(rank_batches(data, create("lbr", topn=20), Request(), compute))
    assert len(batches) > 1
    covered = np.zeros(3000, int)
    for start, stop in gallery.reads:
        covered[start:stop] += 1
    assert (covered == len(batches)).all()
    resident = found(br.FeatureSet.from_arrays(probe, gallery._values), create("lbr", topn=20))
    np.testing.assert_array_equal(torch.cat([batch.indices for batch in batches]).numpy(), resident[0])
    np.testing.assert_array_equal(torch.cat([batch.scores for batch in batches]).numpy(), resident[1])


def test_no_chunk_of_a_file_is_read_twice():
    values = np.random.default_rng(8).standard_normal((1000, 64)).astype(np.float32)
    stored = Counting(values, chunks=(96, 64))
    rows = UnitRows(Side(stored), device=CPU, block=192, resident=False)
    for _ in rows.blocks():
        pass
    assert stored.reads[0][0] == 0
    for start, stop in stored.reads:
        assert start % 96 == 0
        assert stop % 96 == 0 or stop == 1000


def test_what_goes_wrong_while_reading_ahead_is_told():
    class Broken(Counting):
        def __getitem__(self, rows):
            if rows.start >= 500:
                raise OSError("the disk is gone")
            return super().__getitem__(rows)

    rows = UnitRows(Side(Broken(np.ones((1000, 4096), np.float32))), device=CPU, block=100, resident=False)
    seen = []
    with pytest.raises(OSError, match="the disk is gone"):
        for start, _ in rows.blocks():
            seen.append(start)
    assert seen == [0, 100, 200, 300, 400]


# Neighbours of all images.


@settings(max_examples=40)
@pytest.mark.filterwarnings("ignore:the memory budget does not hold:blurrerank.BlurrerankWarning")
@given(
    st.one_of(near_ties(), sides()),
    st.integers(0, 30),
    st.integers(1, 200),
    st.sampled_from([LOW, torch.float32]),
)
def test_neighbours_are_those_of_exact_similarities(arrays, count, held, dtype):
    rows = np.concatenate(arrays)
    count = min(count, len(rows) - 1)
    # Each pair of parts is a pass; hundreds of parts of one row take seconds and meet no case that 8 do not.
    held = max(held, len(rows) // 8)
    near = [
        find_graph(
            UnitRows(
                Side(rows),
                device=CPU,
                block=50,
                resident=resident,
                dtype=dtype,
                keep=resident,
                budget=RowBudget(len(rows) if resident else held, 1 << 18),
            ),
            ListSizes(count, farthest=True),
        )
        for resident in (True, False)
    ]
    unit = unit_rows(torch.from_numpy(rows)).double()
    unit /= torch.linalg.vector_norm(unit, dim=1, keepdim=True)
    similar = torch.stack([(unit * row).sum(dim=1) for row in unit])
    lowest = similar.amin(dim=1)
    similar.fill_diagonal_(-2)
    order = np.stack([np.lexsort((np.arange(len(rows)), -row)) for row in similar.numpy()])[:, :count]
    expected = similar.gather(1, torch.from_numpy(order))
    for found_here in near:
        here = similar.gather(1, found_here.lists[:, 1:].long())
        # float64 itself cannot tell what is nearer than this.
        assert torch.allclose(here, expected, rtol=0, atol=1e-12)
        assert torch.allclose(found_here.similarities[:, 1:].double(), expected, rtol=0, atol=3e-6)
        assert torch.allclose(found_here.lowest.double(), lowest, rtol=0, atol=3e-6)
    assert torch.equal(near[0].lists, near[1].lists)
    assert torch.equal(near[0].similarities, near[1].similarities)
    assert torch.equal(near[0].lowest, near[1].lowest)


def test_an_index_does_not_depend_on_the_precision(tmp_path):
    rows = np.random.default_rng(9).standard_normal((400, 64)).astype(np.float32)
    for precision in ("float32", "bfloat16"):
        build_index(rows, tmp_path / f"{precision}.h5", precision=precision)
    with h5py.File(tmp_path / "float32.h5") as one, h5py.File(tmp_path / "bfloat16.h5") as other:
        names: list[str] = []
        one.visititems(lambda name, item: names.append(name) if isinstance(item, h5py.Dataset) else None)
        assert names
        for name in names:
            np.testing.assert_array_equal(one[name][()], other[name][()])


def test_search_by_itself_gives_what_is_asked_for():
    rng = np.random.default_rng(3)
    probe, gallery = (rng.standard_normal((rows, 32)).astype(np.float32) for rows in (70, 300))
    sides_ = [UnitRows(Side(rows), device=CPU, block=100, resident=True) for rows in (probe, gallery)]
    probes, rows = sides_
    (batch,) = LocalGallery(rows).lists(probes, Query(5, batch=100, depth=40))
    assert batch.candidates.indices.shape == (70, 40)
    # The rest goes on by the similarities, which agree with the scores of the head.
    assert batch.similarities is not None
    order = batch.similarities.sort(dim=1, descending=True, stable=True).indices[:, :40]
    assert torch.equal(order, batch.candidates.indices)
    expected = exact_lists(probe, gallery, 5)
    np.testing.assert_array_equal(batch.candidates.indices[:, :5].numpy(), expected[0])
