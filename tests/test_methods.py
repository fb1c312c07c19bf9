"""Methods as one small file each: chains, their grammar and options, and methods of other packages."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import click
import h5py
import numpy as np
import pytest
import torch
from conftest import ROOT, features, shell

import blurrerank as br
from blurrerank import methods
from blurrerank.cli.method_options import given_parameters
from blurrerank.cli.run import run
from blurrerank.methods import available, create, method_class
from blurrerank.methods.kinds.base import FeatureStep, GraphRanker, HeadRanker
from blurrerank.methods.kinds.parameters import parameters_of

# The method that docs/architecture.md makes up.
TOY = re.search(r"```python\n(.*?)```", (ROOT / "docs/architecture.md").read_text(), re.DOTALL)[1]


@pytest.fixture(scope="module")
def toy(tmp_path_factory) -> dict[str, str]:
    """The environment in which a package with one file is installed, as an installer leaves it."""
    folder = tmp_path_factory.mktemp("site")
    (folder / "toy_ranker.py").write_text(TOY)
    about = folder / "toy_ranker-0.1.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: toy-ranker\nVersion: 0.1\n")
    (about / "entry_points.txt").write_text(
        "[blurrerank.methods]\nshared-neighbours = toy_ranker:SharedNeighbours\n"
    )
    return os.environ | {"PYTHONPATH": os.pathsep.join([str(folder), str(ROOT)])}


def test_one_file_of_another_package_is_a_method(toy, write, tmp_path, cli, monkeypatch):
    feats = write(**features(probes=20, gallery=80))
    told = shell("run", "--help", env=toy).stdout
    assert "shared-neighbours" in "".join(told.split("Methods: ")[1].split())  # lines end at hyphens
    told = shell("run", "--method", "shared-neighbours", "--help", env=toy).stdout
    own = told.split("Options of method shared-neighbours:")[1].split("\n\n")[0]
    assert own.split()[:2] == ["--count", "N"]
    assert " ".join(own.split()[2:]) == "Neighbours of an image. [1 to 50] [default: 10]"
    assert "--topn N" not in told

    # From here on in this process, which has imported the rest.
    monkeypatch.syspath_prepend(toy["PYTHONPATH"].split(os.pathsep)[0])
    methods._installed.cache_clear()
    for method, more in (
        ("shared-neighbours", ("--count", 3)),
        ("dba:k=2+shared-neighbours", ("--count", 3)),
        ("aqe+shared-neighbours:count=2", ()),
    ):
        code, out, err = cli("run", feats, "--method", method, *more, "-o", "o.h5", "--force")
        assert (code, "shared-neighbours" in out) == (0, True), err
    for online, setting in (((), "transductive"), (("--online",), "online")):
        out = cli("run", feats, "--method", "shared-neighbours", *online, "-o", "o.h5", "--force", "--json")[1]
        assert json.loads(out)["setting"] == setting
        with h5py.File("o.h5") as file:
            assert file.attrs["setting"] == setting
    code, _, err = cli("run", feats, "--method", "shared-neighbours", "--count", 0)
    assert (code, err) == (2, "error: count must be a whole number of at least 1, not 0\n")
    code, _, err = cli("run", feats, "--method", "shared-neighbours", "--sigma", 1)
    assert (code, "--sigma is not an option of method shared-neighbours; it has --count" in err) == (2, True)
    methods._installed.cache_clear()
    several = "shared-neighbours:count=3,dba+shared-neighbours"
    done = shell("bench", feats, "--methods", several, "--repeats", 1, env=toy, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "shared-neighbours (count 3)" in done.stdout
    assert "dba+shared-neighbours" in done.stdout


COMPANY = """
import sys
import numpy as np
import blurrerank as br
data = br.load(sys.argv[1])
for online in (False, True):
    together = br.rerank(data, "shared-neighbours", count=4, online=online, depth=80)
    same = True
    for p in range(len(data.probe)):
        one = br.FeatureSet(br.Side(data.probe.features[p : p + 1]), data.gallery)
        alone = br.rerank(one, "shared-neighbours", count=4, online=online, depth=80)
        same &= np.array_equal(alone.indices[0], together.indices[p])
        same &= np.array_equal(alone.scores[0], together.scores[p])
    print(online, same)
"""


def test_online_answers_do_not_depend_on_company(toy, write, tmp_path):
    feats = write(**features(probes=20, gallery=80))
    done = subprocess.run(
        [sys.executable, "-c", COMPANY, str(feats)], env=toy, capture_output=True, text=True, timeout=120
    )
    # Transductive, the probes are each other's neighbours: the check can fail.
    assert done.stdout.splitlines() == ["False False", "True True"], done.stderr


def test_a_method_that_cannot_be_loaded_is_named(tmp_path, write):
    about = tmp_path / "site/broken-0.1.dist-info"
    about.mkdir(parents=True)
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: broken\nVersion: 0.1\n")
    (about / "entry_points.txt").write_text(
        "[blurrerank.methods]\nbroken = nowhere_to_be_found:Broken\nnone = json:dumps\nlbr = json:dumps\n"
    )
    env = os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path / "site"), str(ROOT)])}
    feats = write()
    done = shell("run", feats, "--method", "broken", env=env)
    assert done.returncode == 2
    assert "cannot be loaded from nowhere_to_be_found:Broken (ModuleNotFoundError" in done.stderr
    done = shell("run", feats, "--method", "none", env=env)
    assert "which is neither a FeatureStep, a HeadRanker nor a GraphRanker" in done.stderr
    # Nor does the installation of two packages say which of them is meant.
    other = tmp_path / "site/other-0.1.dist-info"
    other.mkdir()
    (other / "METADATA").write_text("Metadata-Version: 2.1\nName: other\nVersion: 0.1\n")
    (other / "entry_points.txt").write_text("[blurrerank.methods]\nnone = os:path\n")
    done = shell("run", feats, "--method", "none", env=env)
    assert done.returncode == 2
    assert "method none is in several packages, " in done.stderr
    # A method of another package does not take the place of one here, and does no harm to the others.
    assert shell("run", feats, "-o", "o.h5", env=env, cwd=tmp_path).returncode == 0


@pytest.mark.parametrize(
    ("old", "new", "why"),
    [
        (
            "return overlap + 1e-3 * probes.cosine",
            "return overlap[:, :3]",
            "score returned (5, 3) float32, where (5, 40)",
        ),
        ("return overlap +", "return overlap.double() +", "score returned (5, 40) float64, where (5, 40)"),
        ('"shared-neighbours"', '"other"', "whose class must say: name: ClassVar[str] = 'shared-neighbours'"),
        ("METHOD = SharedNeighbours", "", "shared_neighbours, which must define METHOD"),
    ],
)
def test_a_faulty_method_is_named(tmp_path, monkeypatch, old, new, why):
    assert TOY.count(old) == 1
    (tmp_path / "shared_neighbours.py").write_text(TOY.replace(old, new))
    monkeypatch.setattr(methods, "__path__", [*methods.__path__, str(tmp_path)])
    monkeypatch.delitem(sys.modules, "blurrerank.methods.shared_neighbours", raising=False)
    data = br.FeatureSet.from_arrays(*(features(probes=5, gallery=40)[side] for side in ("probe", "gallery")))
    with pytest.raises(br.ParameterError, match="method shared-neighbours") as error:
        br.rerank(data, "shared-neighbours")
    assert why in str(error.value)


def expanded(probe, gallery, k, alpha):
    """The definition, in plain NumPy."""
    cosine = probe @ gallery.T
    order = np.argsort(-cosine, axis=1, kind="stable")[:, :k]
    weights = np.maximum(np.take_along_axis(cosine, order, axis=1), 0) ** alpha
    return (weights[:, :, None] * gallery[order]).sum(axis=1)


def unit(rows):
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


@pytest.mark.parametrize("memory", [None, 1 << 20])
@pytest.mark.filterwarnings("ignore:the memory budget does not hold:blurrerank.BlurrerankWarning")
def test_steps_apply_one_after_another(memory):
    """In memory and, with a small budget, in a file; rows are read again for each part then."""
    arrays = features(seed=3, probes=40, gallery=900, dim=96)
    probe, gallery = (unit(arrays[side].astype(np.float64)) for side in ("probe", "gallery"))
    moved = unit(expanded(gallery, gallery, 4, 2.0))
    asked = unit(probe + expanded(probe, moved, 3, 0.0))
    expected = np.argsort(-(asked @ moved.T), axis=1, kind="stable")[:, :50]
    data = br.FeatureSet.from_arrays(arrays["probe"], arrays["gallery"])
    ranking = br.rerank(data, "dba:k=4:alpha=2+aqe:k=3", memory=memory)
    np.testing.assert_array_equal(ranking.indices, expected)
    assert ranking.method == "dba+aqe+cosine"
    assert ranking.params == {
        "dba.k": 4,
        "dba.alpha": 2,
        "aqe.k": 3,
        "aqe.alpha": 0.0,
        "cosine.topn": 50,
    }
    assert ranking.digest == data.digest()


def test_a_sum_that_cancels_out_changes_nothing():
    rows = np.array([[1.0, 0], [0, 1]], dtype=np.float32)
    ranking = br.rerank(br.FeatureSet.from_arrays(rows[:1], -rows), "aqe:k=2", depth=2)
    assert ranking.indices.tolist() == [[1, 0]]
    opposite = br.rerank(br.FeatureSet.from_arrays(rows[:1], -rows[:1]), "aqe:k=1", depth=1)
    assert opposite.scores.tolist() == [[-1.0]]


def test_a_chain_is_recorded_and_measured(write, tmp_path, cli):
    feats = write(**features(probes=30, gallery=200))
    code, out, _ = cli("run", feats, "--method", "dba:k=3+lbr", "--topn", 20, "-o", "o.h5", "--json")
    assert code == 0
    told = json.loads(out)
    assert told["method"] == "dba+lbr"
    table = cli("eval", "o.h5", feats)[1]
    assert "dba:k=3+lbr:topn=20  " in table, "what makes it again, without the defaults"
    assert (told["params"]["dba.k"], told["params"]["lbr.topn"]) == (3, 20)
    _, plain, _ = cli("run", feats, "--method", "lbr", "-o", "plain.h5", "--json")
    assert told["before"] == json.loads(plain)["before"], "before is of the features as they came"
    # What the file says of it is enough to make it again, and to measure it.
    with h5py.File("o.h5") as file:
        params = json.loads(file.attrs["params"])
        again = br.rerank(br.load(feats), file.attrs["method"], **params)
        np.testing.assert_array_equal(again.indices, file["indices"][()])
    data = br.load(feats)
    for measured in (br.evaluate(again, data), br.evaluate(br.read_ranking("o.h5", data), data)):
        assert measured.summary() == told["after"]
    without = br.Ranking(
        again.indices,
        again.scores,
        again.gallery_size,
        again.method,
        again.params,
        reranked_depth=again.reranked_depth,
        digest=again.digest,
    )
    assert br.evaluate(without, data).mAP == pytest.approx(told["after"]["mAP"], abs=1e-12)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("nope", "method 'nope' is not known: use alpha-qe or aqe or"),
        ("dba+nope", "method 'nope' is not known"),
        ("lbr+dba", "lbr ranks, so it can only be the last part of a chain"),
        ("dba++lbr", "lacks the name of a method"),
        ("dba:k+lbr", "'k' should read NAME=VALUE"),
        ("dba:kk=3", "method dba has no parameter 'kk'; it has: alpha, k"),
        ("lbr:topn=2,sigma=0.2", "parts of a chain are joined by +, and parameters follow colons"),
        ("lbr:topn=2:topn=3", "lbr:topn=2:topn=3 gives topn twice"),
        ("k_reciprocal", "did you mean k-reciprocal?"),
        (["dba", "lbr"], "a method is named by text, such as dba:k=4+lbr, not by ['dba', 'lbr']"),
        ("dba:k=0", "dba: k must be a whole number of at least 1, not 0"),
        ("aqe:alpha=-1", "alpha must be at least 0, not -1"),
        ("aqe:alpha=nan", "alpha must be a finite number, not"),
        ("dba:preset=cuhk03", "method dba has no preset 'cuhk03'; it has: none"),
    ],
)
def test_chains_that_are_none(text, why):
    with pytest.raises(br.ParameterError) as error:
        create(text)
    assert why in str(error.value)


def test_parameters_of_a_chain_by_name():
    chain = create("dba+aqe+lbr", topn=9, **{"dba.k": 3, "aqe.k": 4})
    assert [step.k for step in chain.feature_steps] == [3, 4]
    assert chain.ranker.topn == 9
    assert create("dba+dba:k=2", **{"dba-2.alpha": 1.5}).params()["dba-2.alpha"] == 1.5
    with pytest.raises(br.ParameterError, match=r"dba and aqe both have 'k': say which, as in dba\.k"):
        create("dba+aqe", k=3)
    with pytest.raises(br.ParameterError, match="has no part 'gcr'; its parts are: dba, lbr"):
        create("dba+lbr", **{"gcr.k": 3})
    assert create("dba+k-reciprocal", preset="cuhk03").ranker.k1 == 7
    assert (
        create("k-reciprocal:preset=cuhk03:k1=9").params()
        == create("k-reciprocal", preset="cuhk03", k1=9).params()
    )
    assert create("k-reciprocal:lambda=0.5:base-distance=squared-twice").lambda_value == 0.5


def test_numbers_have_one_spelling():
    whole, decimal = create("aqe:alpha=3+lbr", sigma=1), create("aqe:alpha=3.0+lbr", sigma=np.float64(1))
    assert json.dumps(whole.params()) == json.dumps(decimal.params())
    assert json.dumps(create("lbr", topn=np.int64(3)).params())


def test_options_of_a_chain_on_the_command_line(cli, write):
    told = cli("run", "--method", "dba+aqe+lbr", "--help")[1]
    for option in ("--dba-k", "--aqe-k", "--topn", "--lbr-topn", "--sigma"):
        assert option in told
    assert "  --k " not in told
    feats = write()
    method = ("--method", "dba+aqe+lbr")
    code, out, _ = cli("run", feats, *method, "--dba-k", 2, "--aqe-k", 3, "--topn", 7, "--json", "-o", "o.h5")
    assert code == 0
    params = json.loads(out)["params"]
    assert (params["dba.k"], params["aqe.k"], params["lbr.topn"]) == (2, 3, 7)


@pytest.mark.parametrize("name", available())
def test_every_method_is_one_small_file_that_says_what_its_parameters_are(name):
    kind = method_class(name)
    source = Path(ROOT, "blurrerank/methods", f"{name.replace('-', '_')}.py").read_text()
    assert issubclass(kind, FeatureStep | HeadRanker | GraphRanker)
    assert kind.name == name
    for word in ("held", "memory", "checkpoint", "watch", "plan", "progress", "device", "h5py", "processes"):
        assert not re.search(rf"\b{word}", source), word
    # The definition of k-reciprocal-online alone takes 30 lines.
    assert 30 <= source.count("\n") <= (160 if name == "k-reciprocal-online" else 120)
    for parameter in parameters_of(kind):
        assert parameter.help, parameter.name
    with click.Context(run) as context:
        context.meta["blurrerank.cli.method_options.method"] = name
        named = given_parameters({param.name: 1 for param in run.get_params(context)})
    assert {key.rpartition(".")[2] for key in named} >= {field.name for field in fields(kind)}


def test_the_last_method_that_is_named_counts(cli, write):
    feats = write()
    code, _, err = cli("run", feats, "--method", "k-reciprocal", "--method=lbr", "--sigma", 0.2, "-o", "o.h5")
    assert (code, "error" in err) == (0, False)
    told = cli("run", "--method", "lbr:topn=20", "--help")[1]
    assert "Size n of the neighbourhood. [at least 1] [default: 20]" in " ".join(told.split())


def test_bench_online_takes_the_methods_that_can(cli, write, quick_bench):
    code, out, err = cli("bench", write(), "--online", "--repeats", 1, "--json")
    assert code == 0, err
    assert "k-reciprocal" not in [row["method"] for row in json.loads(out)]
    assert "note: method k-reciprocal looks at all probes together" in err


def no_room(monkeypatch, module, name, when):
    """Let a function run out of a GPU's memory, as torch says it, in the calls that `when` tells."""
    plain, calls = getattr(module, name), []

    def call(*arguments, **options):
        calls.append(1)
        if when(len(calls)):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. And so on.")
        return plain(*arguments, **options)

    monkeypatch.setattr(module, name, call)
    return calls


def test_memory_that_a_feature_step_does_not_get_halves_the_budget(monkeypatch):
    from blurrerank.engine import feature_steps

    arrays = features(probes=20, gallery=90)
    data = br.FeatureSet.from_arrays(arrays["probe"], arrays["gallery"])
    expected = br.rerank(data, "dba+lbr")
    calls = no_room(monkeypatch, feature_steps, "find_graph", lambda call: call == 1)
    with pytest.warns(br.BlurrerankWarning, match="is out of memory: continuing from probe 0 with half"):
        found = br.rerank(data, "dba+lbr", memory=1 << 20)
    assert len(calls) == 2
    np.testing.assert_array_equal(found.indices, expected.indices)


def test_memory_that_the_steps_of_an_index_do_not_get_halves_the_budget(monkeypatch, tmp_path):
    from blurrerank.engine import transforms

    arrays = features(probes=20, gallery=90)
    data = br.FeatureSet.from_arrays(**arrays)
    index = br.build_index(data.gallery, tmp_path / "i.h5", "center+camera-graph")
    expected = index.rerank(data.probe)
    no_room(monkeypatch, transforms, "unit", lambda call: call == 1)
    with pytest.warns(br.BlurrerankWarning, match="is out of memory: continuing from probe 0 with half"):
        found = index.rerank(data.probe)
    np.testing.assert_array_equal(found.indices, expected.indices)
    np.testing.assert_array_equal(found.scores, expected.scores)


@pytest.mark.parametrize(
    ("method", "grid", "where", "time"),
    [
        ("center+camera-graph", {"ki": [2, 4], "lambda": [0.1, 0.5]}, "find_neighbours", 1),
        ("center+lbr", {"topn": [5, 20]}, "apply_feature_step", 1),
        ("camera-graph", {"ki": [2, 4], "lambda": [0.1, 0.5]}, "rank_batches", 2),
    ],
)
def test_memory_that_tuning_does_not_get_halves_the_budget(method, grid, where, time, monkeypatch):
    from blurrerank.studies import many

    data = br.FeatureSet.from_arrays(**features(probes=30, gallery=90))
    expected = br.tune(data, method, grid)
    no_room(monkeypatch, many, where, lambda call: call == time)
    with pytest.warns(
        br.BlurrerankWarning, match=r"is out of memory: continuing for \d of \d settings with half"
    ):
        found = br.tune(data, method, grid)
    assert found.rows == expected.rows
    no_room(monkeypatch, many, where, lambda call: True)
    with (
        pytest.warns(br.BlurrerankWarning),
        pytest.raises(br.BlurrerankError, match=r"^cpu is out of memory: CUDA out of memory$"),
    ):
        br.tune(data, method, grid)


def test_transductive_methods_are_not_run_online(cli, write):
    feats = write()
    code, _, err = cli("run", feats, "--method", "dba+k-reciprocal", "--online")
    assert (code, err) == (
        2,
        "error: method k-reciprocal looks at all probes together, so it cannot rank them online: use "
        "k-reciprocal-online, or leave --online out\n",
    )
    with pytest.raises(br.ParameterError, match="looks at all probes together"):
        br.rerank(br.load(feats), "k-reciprocal", online=True)
    for method in ("lbr", "dba+lbr", "k-reciprocal-online"):
        assert cli("run", feats, "--method", method, "--online", "-o", "o.h5", "--force")[0] == 0


def test_chains_where_they_cannot_be_used(cli, write):
    feats = write(**features(gallery=80))
    np.save("lists.npy", np.tile(np.arange(9), (12, 1)))
    code, _, err = cli("run", feats, "--method", "dba+lbr", "--candidates", "lists.npy")
    assert (code, "candidates are only some of them: use lbr or cosine" in err) == (2, True)
    assert cli("index", feats, "-o", "i.h5")[0] == 0
    code, _, err = cli("run", feats, "--index", "i.h5", "--method", "dba+lbr")
    assert (code, "an index keeps those it was built from: run it on features" in err) == (2, True)


def test_probes_find_the_same_features_in_any_company():
    """dba does not look at probes, aqe at one probe at a time."""
    arrays = features(seed=5, probes=30, gallery=300, dim=32)
    data = br.FeatureSet.from_arrays(arrays["probe"], arrays["gallery"])
    whole = br.rerank(data, "dba+aqe+lbr")
    for probe in (0, 17, 29):
        one = br.FeatureSet.from_arrays(arrays["probe"][probe : probe + 1], arrays["gallery"])
        alone = br.rerank(one, "dba+aqe+lbr")
        np.testing.assert_array_equal(alone.indices[0], whole.indices[probe])
        np.testing.assert_array_equal(alone.scores[0], whole.scores[probe])


def test_features_that_change_leave_the_input_alone():
    arrays = features()
    before = {name: arrays[name].copy() for name in ("probe", "gallery")}
    data = br.FeatureSet.from_arrays(torch.from_numpy(arrays["probe"]), arrays["gallery"])
    br.rerank(data, "dba+aqe+lbr")
    for name, values in before.items():
        np.testing.assert_array_equal(arrays[name], values)
