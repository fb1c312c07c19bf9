"""Products in fewer dimensions: a bound that holds for all rows, and lists that are those of all dimensions."""

from __future__ import annotations

import logging

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import blurrerank as br
from blurrerank.data.side import Side
from blurrerank.graph.find import find_graph
from blurrerank.graph.neighbour_graph import ListSizes
from blurrerank.search import dimensions
from blurrerank.search.basis import Basis, leading_directions
from blurrerank.search.dimensions import fit_dimensions
from blurrerank.search.exact import Query, search
from blurrerank.search.precision import ceiling, pair_scores, product
from blurrerank.search.rows import RowBudget, UnitRows, unit_rows

CPU = torch.device("cpu")
PRECISIONS = [torch.float32, torch.bfloat16]


@st.composite
def hard_rows(draw):
    """Rows for which a bound has little room, or for which it says nothing.

    Any spectrum from rank 1 to full, clusters closer to each other than rounding or than what is left out,
    duplicates, rows that lie in the basis whole or not at all, and rows that were float16.
    """
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    dim, number = draw(st.sampled_from([2, 16, 65, 300])), draw(st.integers(2, 300))
    rank = draw(st.sampled_from([1, 2, dim // 2, dim]))
    decay = draw(st.sampled_from([0.0, 0.5, 2.0]))
    directions = np.linalg.qr(rng.standard_normal((dim, dim)))[0][:rank]
    lengths = (1 + np.arange(rank)) ** -decay
    people = draw(st.sampled_from([1, 3, number]))
    centres = (rng.standard_normal((people, rank)) * lengths) @ directions
    spread = draw(st.sampled_from([0.0, 1e-7, 1e-4, 1e-2, 0.3]))
    rows = centres[rng.integers(0, people, number)]
    rows = rows + spread * rng.standard_normal((number, dim)) / np.sqrt(dim)
    rows = rows[rng.integers(0, number, number)] if draw(st.booleans()) else rows
    rows = rows.astype(draw(st.sampled_from([np.float16, np.float32])))
    rows[~rows.any(axis=1)] = 1
    return rows


@st.composite
def hard_bases(draw, rows):
    """Of the rows themselves, or of no use: the bound is to hold on any."""
    unit = unit_rows(torch.from_numpy(rows))
    number, dim = unit.shape
    count = draw(st.integers(1, max(1, min(number, dim) - 1)))
    if draw(st.booleans()):
        return leading_directions(unit, count)
    random = torch.from_numpy(np.random.default_rng(count).standard_normal((dim, count)))
    return Basis.of(torch.linalg.qr(random)[0].to(torch.float32))


def held(rows, dtype, basis):
    found = UnitRows(
        Side(rows),
        device=CPU,
        block=50,
        resident=True,
        dtype=dtype,
        keep=True,
        budget=RowBudget(len(rows), 1 << 18),
    )
    found.compare_on(basis)
    return found


@settings(max_examples=150)
@given(st.data(), hard_rows(), st.sampled_from(PRECISIONS))
def test_no_similarity_exceeds_its_bound(data, rows, dtype):
    """And none is below the bound from below, which decides who is farthest."""
    basis = data.draw(hard_bases(rows))
    images = held(rows, dtype, basis)
    factors = images.factors(0, len(images))
    bound = images.product_bound(factors.errors, factors.errors.amax()).unsqueeze(1)
    products = product(factors.rows, factors.rows)
    unit = images.rows(0, len(rows))
    exact = pair_scores(unit.unsqueeze(1).repeat(1, len(unit), 1), unit.unsqueeze(0))
    wide = unit.double() / torch.linalg.vector_norm(unit.double(), dim=1, keepdim=True)
    for similarities in (exact, wide @ wide.T):
        assert bool((similarities <= ceiling(products, dtype) + bound).all())
        least = products.clone().addcmul_(factors.rows[:, -1:], factors.rows[:, -1], value=-2)
        slack = bound + (2.0**-8 if dtype == torch.bfloat16 else 2.0**-22)
        assert bool((similarities >= -ceiling(-least, dtype) - slack).all())


@settings(max_examples=80)
@given(st.data(), hard_rows(), st.integers(1, 40), st.sampled_from(PRECISIONS))
def test_searches_find_what_all_dimensions_find(data, rows, topn, dtype):
    basis, topn = data.draw(hard_bases(rows)), min(topn, len(rows))
    probes = UnitRows(Side(rows[::3]), device=CPU, block=20, resident=False)
    found = [
        torch.cat([batch.found.indices for batch in search(probes, images, Query(topn, 20))])
        for images in (held(rows, torch.float32, None), held(rows, dtype, basis))
    ]
    assert torch.equal(*found)


@settings(max_examples=60)
@given(st.data(), hard_rows(), st.integers(0, 20), st.integers(1, 3), st.sampled_from(PRECISIONS))
def test_neighbour_graphs_are_those_of_all_dimensions(data, rows, count, cameras, dtype):
    basis = data.draw(hard_bases(rows))
    cams = torch.arange(len(rows)) % cameras
    one, other = (
        find_graph(images, ListSizes(count, count // 2, count // 3, farthest=True), cams=cams)
        for images in (held(rows, torch.float32, None), held(rows, dtype, basis))
    )
    assert torch.equal(one.lists, other.lists)
    assert torch.equal(one.similarities, other.similarities)
    assert torch.equal(one.lowest, other.lowest)
    for name in ("within", "across"):
        mine, theirs = getattr(one, name), getattr(other, name)
        assert (mine is None) == (theirs is None)
        assert mine is None or torch.equal(mine.items, theirs.items)


def decaying(number, dim, power, seed=0):
    rng = np.random.default_rng(seed)
    rows = rng.standard_normal((number, dim)) * (1.0 + np.arange(dim)) ** -power
    return (rows @ np.linalg.qr(rng.standard_normal((dim, dim)))[0]).astype(np.float32)


def picking(rows, monkeypatch):
    """Rows that pick their basis, on a machine where products alone take time."""
    monkeypatch.setattr(dimensions, "_WORTH", 0.0)
    monkeypatch.setattr(dimensions, "seconds_per_term", lambda dtype, device: 1.0)
    monkeypatch.setattr(dimensions, "_seconds_a_candidate", lambda images, queries: 1e-3)
    side = Side(rows)
    return UnitRows(side, device=CPU, block=512, resident=True, keep=True, picks_basis=True)


def test_features_with_a_decaying_spectrum_are_compared_in_fewer_dimensions(monkeypatch, caplog):
    caplog.set_level(logging.INFO)
    images = picking(decaying(2000, 128, 1.0), monkeypatch)
    candidates = fit_dimensions(images, 10**5, 20, 32)
    assert images.basis is not None
    assert images.basis.width < 128
    assert 32 <= candidates < 1000
    assert f"products of {images.basis.width} of 128 dimensions" in caplog.text


def test_features_without_decay_are_compared_in_all_dimensions(monkeypatch, caplog):
    """Candidates cost what their dimensions do."""
    caplog.set_level(logging.INFO)
    images = picking(decaying(2000, 128, 0.0), monkeypatch)
    monkeypatch.setattr(dimensions, "_seconds_a_candidate", lambda images, queries: 128.0)
    assert fit_dimensions(images, 10**5, 20, 32) >= 32
    assert images.basis is None
    assert "products of all 128 dimensions" in caplog.text


def test_lists_of_a_search_that_picks_its_basis(monkeypatch):
    rows = decaying(2000, 128, 1.0)
    images = picking(rows, monkeypatch)
    probes = UnitRows(Side(rows[:300]), device=CPU, block=100, resident=False)
    found = torch.cat([batch.found.indices for batch in search(probes, images, Query(30, 100))])
    assert images.basis is not None
    plain = UnitRows(Side(rows), device=CPU, block=512, resident=True)
    expected = torch.cat([batch.found.indices for batch in search(probes, plain, Query(30, 100))])
    assert torch.equal(found, expected)


@pytest.mark.parametrize("precision", ["auto", "float32", "bfloat16"])
def test_a_precision_that_is_asked_for_is_that_of_all_dimensions(precision, monkeypatch):
    rows = decaying(2000, 128, 2.0)
    picking(rows, monkeypatch)
    picked = []
    keep = UnitRows.compare_on
    monkeypatch.setattr(UnitRows, "compare_on", lambda rows, basis: (picked.append(basis), keep(rows, basis)))
    br.rerank(br.FeatureSet.from_arrays(rows[:100], rows), "lbr", precision=precision)
    assert any(basis is not None for basis in picked) == (precision == "auto")


def test_a_basis_is_taken_back_by_a_search_that_wants_none(monkeypatch):
    images = picking(decaying(2000, 128, 1.0), monkeypatch)
    fit_dimensions(images, 10**5, 20, 32)
    assert images.basis is not None
    monkeypatch.setattr(dimensions, "_WORTH", 1e30)
    fit_dimensions(images, 1, 20, 32)
    assert images.basis is None
    assert images.factors(0, 10).rows.shape == (10, 128)


@pytest.mark.parametrize("halved", [True, False])
def test_candidates_have_an_end_where_all_images_are_alike(halved, monkeypatch):
    """Memory for them is taken for all images at once."""
    rows = decaying(2000, 128, 1.0) * 1e-3 + 1
    images = picking(rows.astype(np.float32), monkeypatch)
    assert fit_dimensions(images, 10**5, 20, 32, halved=halved) <= 8 * 32
