"""Training with the layer: the example, the loop in docs/training.md, and the gradient that it describes."""

from __future__ import annotations

import argparse
import importlib.util
import re
import subprocess
import sys

import numpy as np
import pytest
import torch
from conftest import ROOT

import blurrerank as br

EXAMPLE = ROOT / "examples/train_sft.py"
PAGE = (ROOT / "docs/training.md").read_text()
QUICK = ("--epochs", "1", "--seeds", "1", "--validate")


def run_example(*options):
    done = subprocess.run([sys.executable, EXAMPLE, *options], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_example_prints_its_table():
    printed = run_example(*QUICK)
    rows = re.findall(r"^(\w+) +0" + r" +([01]\.\d{4})" * 4 + "$", printed, re.MULTILINE)
    assert [row[0] for row in rows] == ["plain", "transformed", "both"]
    assert all(0 < float(value) <= 1 for row in rows for value in row[1:])


def test_options_in_the_page_exist_in_the_example():
    named = re.findall(r"train_sft\.py(.*)", PAGE)
    assert set(re.findall(r"--[a-z]+", " ".join(named))) <= set(re.findall(r"--[a-z]+", run_example("--help")))


@pytest.fixture(scope="module")
def example():
    spec = importlib.util.spec_from_file_location("train_sft", EXAMPLE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def trained(example):
    """Networks after three steps, on 16 identities of 24 random images; the plain one twice."""
    images = torch.rand(16 * 24, 1, 26, 26, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(16 * 24) % 16
    options = argparse.Namespace(sigma=0.1, k=8, lr=0.1, epochs=1)
    return [
        example.train_network(training, images, labels, options, seed=0)
        for training in ("plain", "plain", "transformed", "both")
    ]


def test_a_seed_repeats_a_training(trained):
    first, again, *others = (network.state_dict() for network in trained)
    assert all(torch.equal(first[name], again[name]) for name in first)
    for other in others:
        assert other.keys() == first.keys()
        assert not torch.equal(other["10.weight"], first["10.weight"])


def test_a_batch_has_k_images_of_each_identity(example):
    labels = torch.arange(40 * 20) % 40
    rows = example.draw_batch(labels, 8, torch.Generator().manual_seed(0))
    assert len(set(rows.tolist())) == 128
    assert np.unique(labels[rows], return_counts=True)[1].tolist() == [8] * 16


def test_networks_have_no_layer_at_test_time(trained):
    images = torch.rand(5, 1, 26, 26)
    for network in trained:
        assert not any(isinstance(module, br.SpectralFeatureTransform) for module in network.modules())
        alone = torch.cat([network(image[None]) for image in images])
        torch.testing.assert_close(network(images), alone, rtol=1e-4, atol=1e-5)


def page_block():
    (block,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    names: dict[str, object] = {}
    exec(block, names)
    return names


def test_the_loop_in_the_page():
    names = page_block()
    model, images, labels = names["model"], names["images"], names["labels"]
    assert all(parameter.grad.abs().max() > 0 for parameter in model.parameters())

    # The layer is part of it in training: without it the loss is another.
    model.train()
    with_layer = model(images)
    assert with_layer.shape[0] == 2 * len(labels)
    model.transform = torch.nn.Identity()
    assert not torch.equal(model(images), with_layer)


def test_the_model_in_the_page_drops_the_layer_in_evaluation():
    names = page_block()
    model, images = names["model"].eval(), names["images"]
    torch.testing.assert_close(model(images), model.backbone(images), rtol=0, atol=0)
    assert not any(name.startswith("transform") for name in model.state_dict())


@pytest.mark.parametrize("sigma", [0.02, 0.1, 1.0])
def test_the_gradient_is_that_of_the_page(sigma):
    rng = np.random.default_rng(0)
    x, g = rng.standard_normal((2, 12, 5))
    length = np.linalg.norm(x, axis=1, keepdims=True)
    u = x / length
    t = np.exp(u @ u.T / sigma)
    t /= t.sum(axis=1, keepdims=True)
    averages = t.T @ g
    by_cosine = t * (g @ x.T - (g * (t @ x)).sum(axis=1, keepdims=True)) / sigma
    by_unit = (by_cosine + by_cosine.T) @ u
    cosines = (by_unit - u * (by_unit * u).sum(axis=1, keepdims=True)) / length

    features = torch.tensor(x, requires_grad=True)
    br.SpectralFeatureTransform(sigma)(features).backward(torch.tensor(g))
    np.testing.assert_allclose(features.grad, averages + cosines, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("sigma", [0.02, 0.1])
def test_mixed_precision_keeps_the_gradient(sigma):
    """Features of 16 identities, 8 images each, clustered as after training; the errors that the page tells."""
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(16, 1, 256, generator=generator)
    features = (centres + 0.2 * torch.randn(16, 8, 256, generator=generator)).flatten(0, 1)
    onward = torch.randn(128, 256, generator=generator)
    layer = br.SpectralFeatureTransform(sigma)

    def gradient(dtype, autocast=None):
        x = features.to(dtype).clone().requires_grad_()
        with torch.autocast("cpu", dtype=autocast, enabled=autocast is not None):
            layer(x).backward(onward.to(autocast or dtype))
        return x.grad.double()

    exact = gradient(torch.float64)
    for given, most in (
        ((torch.float32, torch.bfloat16), 0.05),
        ((torch.float32, torch.float16), 0.007),
        ((torch.float32,), 1e-5),
    ):
        assert (gradient(*given) - exact).norm() < most * exact.norm()
