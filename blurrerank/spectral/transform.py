"""The spectral feature transformation, differentiable, on any device and in any float dtype.

Source: Luo, Chen, Wang, Zhang, "Spectral Feature Transformation for Person Re-identification", ICCV 2019,
arXiv:1811.11405. Features of a group of images form a graph whose edges weigh exp(cosine / sigma); the rows of
the weights, normalised, are the transition probabilities T of a random walk, and T X are the features after
one step of it: each a mean of those it resembles.
"""

from __future__ import annotations

import torch
from torch.nn.functional import normalize

from ..data.checks import check_sigma
from ..errors import InputError

# Transformed features shorter than this are rounding: those they are a mean of cancel each other out.
_LEAST_NORM = 1e-6


def cosines(features: torch.Tensor) -> torch.Tensor:
    """Cosine similarity between all rows of each group.

    Args:
        features: (..., n, d), any float dtype.

    Returns:
        (..., n, n), the same dtype. A row of zeros has similarity 0 to all.
    """
    # The least norm has to be above 0 in float16 too, where 1e-12 is none: rows of zeros would become NaN.
    unit = normalize(features, dim=-1, eps=max(1e-12, torch.finfo(features.dtype).tiny))
    return unit @ unit.transpose(-2, -1)


def _check_groups(features: torch.Tensor) -> None:
    """Raise `InputError` unless `features` is a tensor of floats with at least two dimensions."""
    if not isinstance(features, torch.Tensor):
        raise InputError(
            f"features must be a torch.Tensor, not {type(features).__name__}: pass torch.as_tensor(features)"
        )
    if not features.is_floating_point():
        raise InputError(f"features are {features.dtype}: expected floats; pass features.float()")
    if features.ndim < 2:
        raise InputError(
            f"features have shape {tuple(features.shape)}: expected (..., n, d), a row for each image"
        )


def affinity(features: torch.Tensor, sigma: float = 0.1) -> torch.Tensor:
    """W = exp(cos / sigma), the weights of the graph; every node is its own neighbour too.

    Args:
        features: (..., n, d), any float dtype; normalisation is part of the cosine.
        sigma: temperature, above 0. Weights reach exp(1 / sigma), which float32 holds for sigma above 0.0113.

    Returns:
        (..., n, n), the same dtype, symmetric.

    Raises:
        InputError: for anything else than a tensor of floats with rows.
        ParameterError: if sigma is not a finite number above 0.
    """
    _check_groups(features)
    check_sigma(sigma)
    return torch.exp(cosines(features) / sigma)


def transition(features: torch.Tensor, sigma: float = 0.1) -> torch.Tensor:
    """T, the affinity with its rows normalised to sum 1: the probabilities of a random walk.

    Computed as a softmax, so it holds for any sigma.

    Args:
        features: (..., n, d), any float dtype.
        sigma: temperature, above 0; near 0 each item keeps to itself, far above 1 all are averaged.

    Returns:
        (..., n, n), the same dtype; rows sum to 1.

    Raises:
        InputError: for anything else than a tensor of floats with rows.
        ParameterError: if sigma is not a finite number above 0.

    Examples:
        >>> two_alike = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
        >>> [[round(p, 3) for p in row] for row in transition(two_alike, sigma=0.5).tolist()]
        [[0.468, 0.468, 0.063], [0.468, 0.468, 0.063], [0.107, 0.107, 0.787]]
    """
    _check_groups(features)
    check_sigma(sigma)
    return torch.softmax(cosines(features) / sigma, dim=-1)


def temperature(features: torch.Tensor, images: float) -> float:
    """The sigma at which the rows of T spread over so many items: exp of their mean entropy.

    Args:
        features: (..., n, d), any float dtype.
        images: how many items, above 1; at most half of n is reached.

    Returns:
        0.005 to 2, to two significant digits.
    """
    similarities = cosines(features)
    wanted = min(images, similarities.shape[-1] / 2)
    low, high = 0.005, 2.0
    for _ in range(20):
        sigma = (low * high) ** 0.5
        rows = torch.softmax(similarities / sigma, dim=-1)
        spread = torch.special.entr(rows).sum(dim=-1).exp().mean()
        low, high = (low, sigma) if spread > wanted else (sigma, high)
    return float(f"{low:.2g}")


def spectral_transform(features: torch.Tensor, sigma: float = 0.1) -> torch.Tensor:
    """T X: every row replaced by the mean of the group, weighted by its transition probabilities.

    Args:
        features: (..., n, d), any float dtype. They are averaged as they are; pass L2-normalised rows for
            the re-ranking of the paper.
        sigma: temperature, above 0.

    Returns:
        (..., n, d), the same dtype; not normalised.

    Raises:
        InputError: for anything else than a tensor of floats with rows.
        ParameterError: if sigma is not a finite number above 0.
    """
    return transition(features, sigma) @ features


def blurred_scores(
    gram: torch.Tensor, scores: torch.Tensor, sigma: float, *, steps: int = 1, cosine: bool = False
) -> torch.Tensor:
    """Similarity to a probe q after the transformation, without forming the transformed features.

    With X the group's unit rows, G = X X' and y0 = X q: the transformed features are T^steps X, and
    T^steps X q = T^steps y0. Their squared norms, for the cosine, are the diagonal of T^steps G (T^steps)'.

    Args:
        gram: (..., n, n) cosine similarities within each group, G.
        scores: (..., n) cosine similarities to the probe, y0.
        sigma: temperature, above 0; not checked here.
        steps: how many steps of the walk.
        cosine: divide by the norm of the transformed features, or by 1e-6 if that is less. Features that nearly
            cancel each other out leave little of float32: give these in float64.

    Returns:
        (..., n), the dtype of `gram`.
    """
    walk = torch.softmax(gram / sigma, dim=-1)
    blurred = scores
    for _ in range(steps):
        # Not a matrix product: summed alike for every row, so that duplicate items stay tied.
        blurred = (walk * blurred.unsqueeze(-2)).sum(dim=-1)
    if cosine:
        walked = torch.linalg.matrix_power(walk, steps)
        norms = ((walked @ gram) * walked).sum(dim=-1).clamp_min(_LEAST_NORM**2).sqrt()
        blurred = blurred / norms
    return blurred


class SpectralFeatureTransform(torch.nn.Module):
    """`spectral_transform` as a layer, for training with the same mathematics.

    Args:
        sigma: temperature, above 0.

    Raises:
        ParameterError: if sigma is not a finite number above 0.
    """

    def __init__(self, sigma: float = 0.1) -> None:
        """Keep `sigma`; the layer has no weights."""
        super().__init__()
        check_sigma(sigma)
        self.sigma = sigma

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Transform (..., n, d) features group by group."""
        return spectral_transform(features, self.sigma)

    def extra_repr(self) -> str:
        """What `print(layer)` shows."""
        return f"sigma={self.sigma}"
