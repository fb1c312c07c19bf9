"""Generated features: the sizes asked for, the same every time, hard but not hopeless, in bounded memory."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import asdict, replace

import h5py
import numpy as np
import pytest

import blurrerank as br
from blurrerank.cli.synth import PRESET_NAMES
from blurrerank.studies.synth import PRESETS, Size, synthesize


def test_presets_are_those_of_the_help():
    assert list(PRESET_NAMES) == list(PRESETS)


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_has_the_sizes_and_labels_of_its_set(name, cli):
    size = PRESETS[name]
    assert cli("synth", "set.h5", "--preset", name, "--dim", 4)[:2] == (0, "")
    data = br.load("set.h5")
    assert (len(data.probe), len(data.gallery), data.dim) == (size.probes, size.gallery, 4)
    ids, cams = data.gallery.ids, data.gallery.cams
    assert (ids == -1).sum() == size.junk
    assert (ids == 0).sum() == size.distractors
    assert sorted(set(ids[ids > 0])) == list(range(1, size.ids + 1))
    assert set(data.probe.ids) == set(range(1, (size.probe_ids or size.ids) + 1))
    assert set(cams) == set(data.probe.cams) == set(range(1, size.cams + 1))
    pairs = set(zip(data.probe.ids.tolist(), data.probe.cams.tolist(), strict=True))
    if size.probes <= size.ids * size.cams:
        assert len(pairs) == size.probes, "one probe of an identity in a camera"


@pytest.mark.parametrize("name", PRESETS)
def test_methods_can_be_told_apart_on_it(name, tmp_path):
    size = replace(PRESETS[name], probes=300, dim=256)
    if size.gallery > 20000:
        size = replace(size, gallery=20000, ids=750)
    synthesize(tmp_path / "set.h5", size)
    data = br.load(tmp_path / "set.h5")
    cosine = br.evaluate(br.rerank(data, "cosine"), data)
    assert 0.2 < cosine.mAP < 0.9
    assert 0.2 < cosine.rank(1) < 0.99
    assert br.evaluate(br.rerank(data, "k-reciprocal"), data).mAP > cosine.mAP + 0.05
    assert cosine.valid_probes > 0.95 * cosine.probes


def test_images_of_one_camera_are_most_alike(tmp_path):
    """What the protocols drop is what is easiest."""
    synthesize(tmp_path / "set.h5", replace(PRESETS["market1501"], probes=300, dim=256))
    data = br.load(tmp_path / "set.h5")
    ranking = br.rerank(data, "cosine")
    with_easy, without = (
        br.evaluate(ranking, data, protocol=protocol).mAP for protocol in ("plain", "market1501")
    )
    assert with_easy > without + 0.02


@pytest.mark.parametrize("dim", [64, 512])
def test_the_spectrum_is_that_of_real_features(dim, tmp_path):
    """Shares of energy in the first 1/16, 1/8, 1/4 and 1/2 of the directions, as measured on real features."""
    synthesize(tmp_path / "set.h5", replace(PRESETS["cuhk03"], probes=10, dim=dim))
    gallery = br.load(tmp_path / "set.h5").gallery.features.astype(np.float64)
    energy = np.linalg.eigvalsh(gallery.T @ gallery)[::-1]
    shares = energy.cumsum()[[dim // 16 - 1, dim // 8 - 1, dim // 4 - 1, dim // 2 - 1]] / energy.sum()
    np.testing.assert_allclose(shares, [0.79, 0.89, 0.96, 0.99], atol=0.05)


def test_the_same_seed_gives_the_same_values_and_another_others(tmp_path):
    size = Size(30, 2100, 8, ids=40, cams=3, distractors=5, junk=5)
    values = {}
    for name, seed in (("one", 7), ("same", 7), ("other", 8)):
        synthesize(tmp_path / name, size, seed=seed)
        with h5py.File(tmp_path / name) as file:
            values[name] = file["gallery/features"][()]
            assert file.attrs["seed"] == seed
    np.testing.assert_array_equal(values["one"], values["same"])
    assert (values["one"] != values["other"]).any(axis=1).all()
    assert len(np.unique(values["one"], axis=0)) == 2100
    one, other = (br.load(tmp_path / name) for name in ("one", "other"))
    assert (one.gallery.cams != other.gallery.cams).any()
    assert (one.gallery.ids != other.gallery.ids).any()


def test_no_image_is_made_of_the_noise_of_another(tmp_path):
    """Of one identity in one camera: all of an image that is not noise is the same."""
    synthesize(tmp_path / "set.h5", Size(50, 50, 16, ids=1, cams=1))
    data = br.load(tmp_path / "set.h5")
    both = np.concatenate([data.probe.features, data.gallery.features])
    assert len(np.unique(both, axis=0)) == 100


def test_distractors_and_junk_are_nobody(tmp_path):
    """They are no more alike than strangers are; images of one identity are."""
    synthesize(tmp_path / "set.h5", Size(1, 1200, 64, ids=2, cams=1, distractors=400, junk=400))
    gallery = br.load(tmp_path / "set.h5").gallery
    unit = gallery.features / np.linalg.norm(gallery.features, axis=1, keepdims=True)
    alike = {}
    for identity in (-1, 0, 1, 2):
        some = unit[gallery.ids == identity]
        alike[identity] = (some @ some.T)[~np.eye(len(some), dtype=bool)].mean()
    assert max(alike[-1], alike[0]) < min(alike[1], alike[2]) - 0.2


def test_fewer_identities_than_the_preset_has_with_probes(cli):
    sizes = ("--gallery", 2000, "--ids", 100, "--dim", 4)
    assert cli("synth", "set.h5", "--preset", "dukemtmc", *sizes)[0] == 0
    assert set(br.load("set.h5").probe.ids) == set(range(1, 101))


def test_it_never_holds_the_whole_array(tmp_path):
    """256 MiB of features, written in a process that may grow by a quarter of that."""
    code = f"""
import torch
from blurrerank.compute.peak_memory import PeakMemory
from blurrerank.studies.synth import Size, synthesize
synthesize({str(tmp_path / "warm.h5")!r}, Size(1, 5, 8, ids=5, cams=1))
peak = PeakMemory(torch.device("cpu"))
synthesize({str(tmp_path / "large.h5")!r}, Size(1024, 64512, 1024, ids=100, cams=2))
peak.stop()
print(peak.host)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "large.h5").stat().st_size > 256 << 20
    assert int(done.stdout) < 64 << 20


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--probes", 0), "probes must be at least 1, not 0"),
        (("--junk", -1), "junk must be at least 0, not -1"),
        (("--seed", -1), "seed must be from 0 to 2^63 - 1, not -1"),
        (("--seed", 2**63), "seed must be from 0 to 2^63 - 1, not 9223372036854775808"),
        (
            ("--gallery", 100),
            "a gallery of 100 is too small for 750 identities, 2798 distractors and 3819 junk",
        ),
        (("--preset", "mars"), "Invalid value for '--preset'"),
    ],
)
def test_wrong_usage_is_one_line_and_exit_2(arguments, said, cli, tmp_path):
    code, out, err = cli("synth", "set.h5", *arguments)
    assert (code, out) == (2, "")
    assert said in err
    assert err.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_out_is_a_file(cli, tmp_path):
    for out in ("-", "set.h5::/group"):
        code, _, err = cli("synth", out)
        assert (code, err) == (2, f"error: {out}: name an HDF5 file to write (see 'blurrerank synth --help')\n")
    assert not list(tmp_path.iterdir())


def test_every_size_has_an_option_and_a_file_is_not_replaced(cli):
    names = [name for name in asdict(PRESETS["market1501"]) if name != "probe_ids"]
    options = [part for name in names for part in (f"--{name}", 2)]
    assert cli("synth", "set.h5", *options, "--gallery", 8)[0] == 0
    assert len(br.load("set.h5").gallery) == 8
    assert cli("synth", "set.h5", *options, "--gallery", 9) == (
        1,
        "",
        "error: set.h5 exists: pass --force (force=True) to replace it, or choose another name\n",
    )
    assert cli("synth", "set.h5", *options, "--gallery", 9, "--force")[0] == 0
    assert len(br.load("set.h5").gallery) == 9
