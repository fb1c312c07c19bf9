"""The public, differentiable mathematics."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import blurrerank as br
from blurrerank import reference
from blurrerank.spectral.transform import blurred_scores

GROUPS = st.tuples(st.integers(1, 3), st.integers(1, 8), st.integers(1, 6), st.integers(0, 2**32))


def group(shape):
    batch, rows, dim, seed = shape
    return torch.from_numpy(np.random.default_rng(seed).standard_normal((batch, rows, dim)))


@given(GROUPS, st.sampled_from([0.05, 0.1, 1.0, 10.0]))
def test_definitions(shape, sigma):
    x = group(shape)
    unit = x.numpy() / np.linalg.norm(x.numpy(), axis=-1, keepdims=True)
    weights = np.exp(unit @ unit.transpose(0, 2, 1) / sigma)
    steps = weights / weights.sum(axis=-1, keepdims=True)
    np.testing.assert_allclose(br.affinity(x, sigma), weights, rtol=1e-9)
    np.testing.assert_allclose(br.transition(x, sigma), steps, rtol=1e-9)
    np.testing.assert_allclose(br.spectral_transform(x, sigma), steps @ x.numpy(), rtol=1e-9, atol=1e-12)
    layer = br.SpectralFeatureTransform(sigma)
    assert torch.equal(layer(x), br.spectral_transform(x, sigma))
    assert repr(layer) == f"SpectralFeatureTransform(sigma={sigma})"


@pytest.mark.parametrize(
    ("function", "sigma"),
    # Affinities reach exp(1 / sigma): gradcheck's absolute tolerance wants them near 1.
    [(br.affinity, 1.0), (br.transition, 0.1), (br.transition, 1.0), (br.spectral_transform, 0.1)],
)
def test_gradients(function, sigma):
    x = torch.randn(
        2, 5, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1), requires_grad=True
    )
    assert torch.autograd.gradcheck(lambda value: function(value, sigma), x)


@given(GROUPS, st.sampled_from([1e-4, 1e-2, 1e4]))
def test_any_sigma_is_finite_in_float32(shape, sigma):
    steps = br.transition(group(shape).float(), sigma)
    assert torch.isfinite(steps).all()
    assert torch.allclose(steps.sum(dim=-1), torch.ones(()), atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_a_row_of_zeros_does_not_spoil_the_others(dtype):
    x = torch.eye(3, dtype=dtype)
    x[0] = 0
    assert torch.isfinite(br.spectral_transform(x, 0.1)).all()
    assert br.affinity(x, 0.1)[0].tolist() == [1, 1, 1]


def test_the_transformation_is_what_re_ranking_scores_by():
    rng = np.random.default_rng(2)
    query, nodes = (
        reference.unit_rows(rng.standard_normal((1, 6)))[0],
        reference.unit_rows(rng.standard_normal((9, 6))),
    )
    by_features = br.spectral_transform(torch.from_numpy(nodes), 0.1) @ torch.from_numpy(query)
    np.testing.assert_allclose(by_features, reference.blurred_similarity(query, nodes, 0.1), rtol=1e-9)


@given(st.integers(1, 2), st.integers(1, 80), st.integers(0, 2**32))
def test_equal_items_get_equal_scores_wherever_they_stand(batch, rows, seed):
    """Bit for bit, so that duplicates stay tied; a matrix-vector product does not give that."""
    rng = np.random.default_rng(seed)
    kind = rng.integers(0, 3, rows)
    weights = torch.from_numpy(rng.standard_normal((batch, 3, rows)).astype(np.float32))
    similarities = torch.from_numpy(rng.random((batch, rows), np.float32))
    scores = blurred_scores(weights[:, kind], similarities, 0.3)
    for k in range(3):
        alike = scores[:, kind == k]
        assert (alike == alike[:, :1]).all()


@pytest.mark.parametrize("sigma", [0, -1, float("inf"), float("nan")])
def test_sigma_out_of_range_is_refused(sigma):
    for function in (br.affinity, br.transition, br.spectral_transform):
        with pytest.raises(br.ParameterError, match="sigma must be a finite number above 0"):
            function(torch.eye(3), sigma)
    with pytest.raises(br.ParameterError, match="sigma"):
        br.SpectralFeatureTransform(sigma)


@pytest.mark.parametrize(
    ("features", "message"),
    [
        (
            np.eye(3, dtype=np.float32),
            "features must be a torch.Tensor, not ndarray: pass torch.as_tensor(features)",
        ),
        (torch.eye(3).long(), "features are torch.int64: expected floats; pass features.float()"),
        (torch.ones(8), "features have shape (8,): expected (..., n, d), a row for each image"),
    ],
)
def test_what_is_no_group_of_features_is_refused(features, message):
    layer = br.SpectralFeatureTransform()
    for function in (br.affinity, br.transition, br.spectral_transform, layer):
        with pytest.raises(br.InputError) as error:
            function(features)
        assert str(error.value) == message
