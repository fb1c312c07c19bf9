"""The fused kernel: in Triton's interpreter, in a process of its own, and on a CUDA device where there is one.

Triton decides when it is imported whether it interprets. So the tests of what the kernel computes are collected
for the CPU only where TRITON_INTERPRET=1, and one test runs this file so.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from conftest import ROOT, check_lists, features

import blurrerank as br
from blurrerank import reference
from blurrerank.data.candidates import Candidates
from blurrerank.methods.lbr import LocalBlurring
from blurrerank.search.rows import UnitRows
from blurrerank.spectral import fused
from blurrerank.spectral.neighbourhoods import Blurring

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
HERE = [
    *(["cpu"] if INTERPRETED else []),
    pytest.param(
        "cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
    ),
]
needs_triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")

# Every size with a dimension that is no multiple of the block, every dimension, and sigmas from hard to flat.
CASES = [
    (1, 37, 0.1),
    (2, 1, 0.1),
    (2, 257, 1e-3),
    (15, 100, 0.02),
    (16, 37, 1e3),
    (17, 128, 0.1),
    (50, 257, 0.1),
    (50, 100, 1e-3),
    (50, 37, 1e-30),
    (50, 128, 1e300),
    (64, 1, 1e3),
    (64, 100, 0.02),
    (100, 37, 0.1),
    (128, 257, 0.1),
    (128, 128, 1e-3),
]


def neighbourhoods(topn, dim, probes=3):
    """Probes, a table that has every row three times, and the best of it for each probe."""
    random = np.random.default_rng([topn, dim])
    rows = random.standard_normal((60, dim)) + random.standard_normal(dim)
    table = torch.from_numpy(reference.unit_rows(np.concatenate([rows, rows, rows])).astype(np.float32))
    probe = torch.from_numpy(reference.unit_rows(random.standard_normal((probes, dim))).astype(np.float32))
    scores, places = (probe @ table.T).topk(topn)
    return probe, table, places, scores


@pytest.mark.parametrize("device", HERE)
@pytest.mark.parametrize(("topn", "dim", "sigma"), CASES)
def test_it_equals_the_reference_and_the_plain_path(topn, dim, sigma, device):
    probe, table, places, scores = (array.to(device) for array in neighbourhoods(topn, dim))
    assert fused.available(table.device)
    blurred = fused.blur(table, places, scores, sigma)
    plain = Blurring()._plain(table, places, probe, scores, [sigma])[0]
    assert (blurred.dtype, blurred.shape) == (torch.float32, scores.shape)
    np.testing.assert_allclose(blurred.cpu(), plain.cpu(), rtol=0, atol=1e-5)
    for query, nodes, ours in zip(probe.cpu().double(), table[places].cpu().double(), blurred, strict=True):
        expected = reference.blurred_similarity(query.numpy(), nodes.numpy(), sigma)
        np.testing.assert_allclose(ours.cpu(), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("device", HERE)
@pytest.mark.parametrize(("topn", "dim", "sigma"), CASES)
def test_equal_rows_get_equal_scores_wherever_they_stand(topn, dim, sigma, device):
    _, table, places, scores = (array.to(device) for array in neighbourhoods(topn, dim))
    order = torch.from_numpy(np.random.default_rng(0).permutation(topn)).to(device)
    places = places[:, order]
    # Products may round apart by where a row stands; here it is the blurring that is asked.
    scores = torch.stack([scores.new_tensor(range(60)) / 60] * len(places)).gather(1, places % 60)
    for which, blurred in zip(places % 60, fused.blur(table, places, scores, sigma), strict=True):
        for row in which.unique():
            assert len(blurred[which == row].unique()) == 1


@pytest.mark.parametrize("device", HERE)
def test_a_probe_gets_the_same_scores_alone_and_among_others(device):
    _, table, places, scores = (array.to(device) for array in neighbourhoods(50, 100))
    together = fused.blur(table, places, scores, 0.1)
    for p in range(len(places)):
        assert torch.equal(fused.blur(table, places[p : p + 1], scores[p : p + 1], 0.1)[0], together[p])
    assert fused.blur(table, places[:0], scores[:0], 0.1).shape == (0, 50)


@pytest.mark.parametrize("device", HERE)
def test_heads_of_lists_and_galleries_that_are_not_in_memory(device):
    """Views with gaps between their rows, and a table of distinct rows instead of the gallery."""
    probe, table, places, scores = (array.to(device) for array in neighbourhoods(50, 37))
    side = br.FeatureSet.from_arrays(probe.cpu().numpy(), table.cpu().numpy()).gallery
    near = Candidates(places, scores).head(20)
    expected = fused.blur(table, near.indices, near.scores, 0.1)
    for resident in (True, False):
        gallery = UnitRows(side, device=table.device, block=7, resident=resident)
        blurred = LocalBlurring(20).rescore(probe, near, gallery)
        np.testing.assert_allclose(blurred.cpu(), expected.cpu(), rtol=0, atol=1e-6)


@pytest.mark.parametrize("device", HERE)
def test_a_sweep_finds_what_a_run_gives(device):
    probe, table, places, scores = (array.to(device) for array in neighbourhoods(20, 37))
    side = br.FeatureSet.from_arrays(probe.cpu().numpy(), table.cpu().numpy()).gallery
    gallery = UnitRows(side, device=table.device, block=60, resident=True)
    sigmas, near = [0.02, 0.1, 1], Candidates(places, scores)
    for sigma, blurred in zip(
        sigmas, LocalBlurring(20).rescore_each(probe, near, gallery, sigmas), strict=True
    ):
        assert torch.equal(blurred, LocalBlurring(20, sigma).rescore(probe, near, gallery))


@pytest.mark.parametrize("device", HERE)
@pytest.mark.parametrize(("topn", "memory"), [(1, None), (17, None), (17, 150_000), (50, None)])
def test_lists_equal_those_of_the_plain_path(topn, memory, device, monkeypatch):
    """Also where the budget does not hold the gallery."""
    data = br.FeatureSet.from_arrays(**features(7, gallery=400, dim=64))
    with monkeypatch.context() as patch:
        patch.setattr(fused, "attempt", lambda *arguments: None)
        plain = br.rerank(data, topn=topn, device=device)
    with monkeypatch.context() as patch:
        patch.setattr(Blurring, "_plain", None)
        ranking = br.rerank(data, topn=topn, device=device, memory=memory)
    check_lists(ranking.indices, ranking.scores, plain.indices, plain.scores)


@pytest.mark.parametrize("device", HERE)
@pytest.mark.parametrize(
    "params", [{"topn": 129}, {"probe_in_graph": True}, {"cosine": True}, {"steps": 2}], ids=str
)
def test_everything_else_takes_the_plain_path(params, device, monkeypatch):
    probe, gallery = np.random.default_rng(0).standard_normal((140, 5)).astype(np.float32).reshape(2, 70, 5)
    data = br.FeatureSet.from_arrays(probe[:3], np.concatenate([probe, gallery]))
    monkeypatch.setattr(fused, "blur", None)
    assert len(br.rerank(data, device=device, **params)) == 3


def benchmark():
    spec = importlib.util.spec_from_file_location("gpu_blur", ROOT / "benchmarks/gpu_blur.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.skipif(not INTERPRETED, reason="without the interpreter there is no fused kernel here")
def test_the_benchmark_on_the_cpu(monkeypatch, capsys):
    """All of it but the clock of the card; its numbers say nothing."""
    bench = benchmark()
    monkeypatch.setattr(
        bench, "times", lambda calls: {name: [1.0 + bool(call() is None)] for name, call in calls.items()}
    )
    bench.report(bench.Size(3, 90, 37, 9, square=16, copied=64), torch.device("cpu"))
    told = capsys.readouterr().out
    errors = [float(line.split()[-1]) for line in told.splitlines() if line.startswith(("plain", "fused"))]
    assert len(errors) == 2
    assert max(errors) < 1e-5


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_the_benchmark_without_a_card_is_one_line():
    with pytest.raises(SystemExit, match=r"^there is no CUDA device: run this where torch sees one$"):
        benchmark().main()


@needs_triton
@pytest.mark.skipif(INTERPRETED, reason="this is the interpreter")
def test_through_the_interpreter():
    """The tests above, on the CPU."""
    told = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", "cpu", __file__],
        capture_output=True,
        text=True,
        timeout=300,
        cwd=ROOT,
        env=os.environ | {"TRITON_INTERPRET": "1"},
    )
    assert told.returncode == 0, told.stdout + told.stderr
    assert "passed" in told.stdout
    assert "skipped" not in told.stdout


@needs_triton
@pytest.mark.skipif(INTERPRETED, reason="the interpreter compiles nothing")
@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize("nodes", [16, 64, 128])
def test_it_compiles_for_cards_that_are_not_here(nodes, capability, tmp_path, monkeypatch):
    """To machine code, with the arithmetic that `fused` promises; whether that runs, only a card can say."""
    from triton import compile
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from blurrerank.spectral.fused_kernel import blur_kernel

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    types = ["*fp32", "*i64", "*fp32", "*fp32", "i32", "fp32", *["constexpr"] * 3]
    source = ASTSource(
        fn=blur_kernel,
        signature=dict(zip(blur_kernel.arg_names, types, strict=True)),
        constexprs={"DIM": 257, "NODES": nodes, "BLOCK": fused._BLOCK},
    )
    options = {"num_warps": nodes // 16, "num_stages": fused._STAGES, "enable_fp_fusion": False}
    made = compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    assert made.asm["cubin"]
    assert "tf32" in made.asm["ptx"], "the matrix units are used"
    assert "cvt.rna.tf32" in made.asm["ptx"], "numbers are split"
    # What one block sums is added to the rest outside of the matrix units.
    assert "arith.addf" in made.asm["ttgir"].partition("scf.for")[2].partition("scf.yield")[0]


def test_three_products_of_eleven_bits_are_enough_and_one_is_not():
    """The arithmetic of the matrix units, acted out, with nothing lost in the sums: what `fused` says of it."""

    def to_tf32(x, half):
        return ((x.view(np.uint32) + np.uint32(half)) & np.uint32(0xFFFFE000)).view(np.float32)

    one, three = [], []
    for dim in (2, 37, 257):
        probe, table, places, _ = neighbourhoods(50, dim)
        for query, x in zip(probe.numpy(), table[places].numpy(), strict=True):
            high = to_tf32(x, 0x1000)  # rounded
            low = to_tf32(x - high, 0)  # cut off
            exact, high, low = (part.astype(np.float64) for part in (x, high, low))
            gram, cross = exact @ exact.T, high @ low.T
            y0 = exact @ query
            for found, approximate in ((one, high @ high.T), (three, high @ high.T + cross + cross.T)):
                error = [np.abs(approximate - gram).max()]
                for sigma in (0.02, 0.1):
                    steps = (np.exp((each - 1) / sigma) for each in (approximate, gram))
                    ours, expected = (each @ y0 / each.sum(axis=1) for each in steps)
                    error.append(np.abs(ours - expected).max())
                found.append(error)
    gram, *scores = np.max(three, axis=0)
    assert gram < 5 * 2**-22
    assert max(scores) < 1e-5
    assert max(np.max(one, axis=0)[1:]) > 1e-5


class Broken:
    """A kernel that no compiler takes."""

    def __getitem__(self, grid):
        def launch(*arguments, **options):
            raise RuntimeError("Failed to find C compiler.\nPlease specify via CC environment variable.")

        return launch


def test_a_kernel_that_does_not_work_is_told_once_and_the_plain_path_taken(monkeypatch):
    data = br.FeatureSet.from_arrays(**features(7))
    with monkeypatch.context() as patch:
        patch.setattr(fused, "attempt", lambda *arguments: None)
        plain = br.rerank(data, topn=20, device="cpu")
    monkeypatch.setattr(fused, "_faults", set())
    monkeypatch.setattr(fused, "available", lambda device: True)
    monkeypatch.setattr(fused, "_kernel", Broken)
    why = r"does not work on cpu \(RuntimeError: Failed to find C compiler\.\); local blurring continues"
    with pytest.warns(br.BlurrerankWarning, match=why):
        first = br.rerank(data, topn=20, device="cpu")
    second = br.rerank(data, topn=20, device="cpu")  # a second warning would be an error here
    for ranking in (first, second):
        np.testing.assert_array_equal(ranking.indices, plain.indices)
        np.testing.assert_array_equal(ranking.scores, plain.scores)


def test_nothing_needs_triton():
    """Not even its import, unless there is a card for it; and where it is missing, the plain path is taken."""
    program = (
        "import sys, numpy, blurrerank as br\n"
        "br.rerank(br.FeatureSet.from_arrays(numpy.eye(4), numpy.eye(4)), device='cpu')\n"
        "assert 'triton' not in sys.modules\n"
        "from blurrerank.spectral import fused\n"
        "sys.modules['triton'] = None\n"
        "fused._interpreted = lambda: True\n"
        "assert not fused.available(None)\n"
    )
    without = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    subprocess.run([sys.executable, "-c", program], check=True, timeout=120, cwd=ROOT, env=without)
