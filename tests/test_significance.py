"""Paired comparison of two rankings, and the tables that papers print."""

from __future__ import annotations

import itertools
import json
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import blurrerank as br


def metrics(ap, **changes):
    """What `evaluate` gives, of these average precisions."""
    ap = np.asarray(ap, dtype=float)
    told = {"protocol": "market1501", "ap_kind": "plain", "probes": len(ap), "depth": None} | changes
    nothing = np.zeros(len(ap))
    return br.Metrics(
        mAP=float(np.nanmean(ap)),
        mINP=0.0,
        cmc=np.zeros(50),
        valid_probes=int((~np.isnan(ap)).sum()),
        ap=ap,
        inp=nothing,
        first_match=nothing,
        **told,
    )


def flipped(gain):
    """The p-value by every choice of signs."""
    signs = np.array(list(itertools.product([-1, 1], repeat=len(gain))))
    return float((np.abs(signs @ gain) >= abs(gain.sum()) - 1e-12).mean())


# In sixteenths: sums are exact, so that ties with what was seen are too.
values = st.integers(0, 16).map(lambda whole: whole / 16)


@given(st.lists(st.tuples(values, values), min_size=2, max_size=10))
def test_few_probes_are_tested_exactly(pairs):
    a, b = np.array(pairs).T
    found = br.compare(metrics(a), metrics(b))
    gain = a - b
    assert found.p_value == pytest.approx(flipped(gain), abs=1e-12)
    assert found.difference == pytest.approx(gain.mean())
    assert (found.better, found.equal, found.worse) == ((gain > 0).sum(), (gain == 0).sum(), (gain < 0).sum())
    assert found.probes == len(pairs)
    assert gain.min() <= found.low <= found.high <= gain.max()
    other = br.compare(metrics(b), metrics(a))
    assert (other.difference, other.p_value) == (-found.difference, found.p_value)


def test_many_probes_are_drawn_near_the_exact_value():
    """16 probes have 65,536 outcomes; of the 10,000 drawn a share has a standard error of 0.005 or less."""
    rng = np.random.default_rng(0)
    for shift in (0.0, 0.02, 0.05):
        a = rng.uniform(0, 1, 16)
        b = a + rng.normal(shift, 0.1, 16)
        found = br.compare(metrics(a), metrics(b))
        assert found.p_value == pytest.approx(flipped(a - b), abs=0.02)
        assert found == br.compare(metrics(a), metrics(b))


def test_the_interval_is_that_of_the_mean():
    """For many probes the bootstrap agrees with the normal approximation."""
    rng = np.random.default_rng(0)
    gain = rng.normal(0.02, 0.1, 2000)
    a = rng.uniform(0, 1, 2000)
    found = br.compare(metrics(a + gain), metrics(a))
    half = 1.96 * gain.std() / np.sqrt(2000)
    assert found.low == pytest.approx(gain.mean() - half, abs=0.1 * half)
    assert found.high == pytest.approx(gain.mean() + half, abs=0.1 * half)


def test_equal_rankings_do_not_differ():
    a = metrics(np.linspace(0, 1, 50))
    found = br.compare(a, a)
    assert (found.p_value, found.difference, found.low, found.high, found.equal) == (1.0, 0, 0, 0, 50)


def test_a_p_value_is_never_0():
    a = np.random.default_rng(0).uniform(0.5, 1, 400)
    assert br.compare(metrics(a), metrics(a - 0.4)).p_value == pytest.approx(1 / 10_001)
    assert br.compare(metrics(a), metrics(a - 0.4), resamples=99).p_value == pytest.approx(1 / 100)


def test_probes_without_a_match_in_both_are_left_out():
    a, b = np.array([0.5, np.nan, 0.7, 0.1]), np.array([0.25, 0.3, np.nan, 0.2])
    found = br.compare(metrics(a), metrics(b))
    assert (found.probes, found.better, found.worse) == (2, 1, 1)
    assert found.difference == pytest.approx((0.25 - 0.1) / 2)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"protocol": "plain"}, "metrics with protocol market1501 and plain cannot be compared"),
        ({"ap_kind": "trapezoid"}, "AP kind plain and trapezoid cannot be compared"),
        ({"probes": 4}, "number of probes 3 and 4 cannot be compared"),
    ],
)
def test_what_was_measured_otherwise_is_refused(changes, message):
    ap = np.array([0.1, 0.2, 0.3])
    with pytest.raises(br.InputError, match=message):
        br.compare(metrics(ap), metrics(ap, **changes))


@pytest.mark.parametrize(("one", "other"), [(None, 50), (50, None), (50, 100), (100, 50)])
def test_lists_of_two_depths_are_refused(one, other):
    """A match that one list does not reach counts as missed there, and is found in the other."""
    ap = np.array([0.1, 0.2, 0.3])
    words = ["the whole gallery" if depth is None else f"rank {depth}" for depth in (one, other)]
    with pytest.raises(br.InputError) as error:
        br.compare(metrics(ap, depth=one), metrics(ap, depth=other))
    (line,) = error.value.problems
    assert line.startswith(f"metrics to {words[0]} and to {words[1]} cannot be compared")
    assert line.endswith("give both lists the same depth, as with `blurrerank run --depth 50 -o lists.trec`")
    assert br.compare(metrics(ap, depth=one), metrics(ap, depth=one)).p_value == 1


def test_what_differs_by_rounding_is_equal():
    """Sums of the same terms in another order, as a ranking read from another file has them."""
    a = np.array([0.1, 0.5, 0.75, 0.2])
    found = br.compare(metrics(a), metrics(a + np.array([0, 1e-16, -2e-16, 3e-12])))
    assert (found.better, found.equal, found.worse) == (0, 4, 0)
    assert (found.p_value, found.difference) == (1.0, 0)


def test_one_probe_is_too_few():
    with pytest.raises(br.InputError, match="1 probes have a match in both"):
        br.compare(metrics([0.5, np.nan]), metrics([0.5, 0.5]))


@pytest.fixture
def files(cli, write):
    """Features, and rankings of them by two methods."""
    feats = write()
    for name, method in (("lbr_1.h5", "lbr"), ("cosine.h5", "cosine"), ("again.h5", "lbr")):
        assert cli("run", feats, "--method", method, "--topn", 30, "-o", name, "-q")[0] == 0
    assert cli("run", feats, "--topn", 10, "-o", "short_100%#&.csv", "-q")[0] == 0
    return feats


def rows(out):
    """Name and mAP of each row of a plain table."""
    return [(name.strip(), value) for name, value in re.findall(r"^(\S.*?)  +(0\.\d{4}) ", out, re.MULTILINE)]


def test_several_rankings_are_a_table(cli, files):
    data = br.load(files)
    code, out, err = cli("eval", "cosine.h5", "lbr_1.h5", "short_100%#&.csv", files)
    assert code == 0
    expected = [br.evaluate(br.rerank(data, method, topn=30), data).mAP for method in ("cosine", "lbr")]
    assert [name for name, _ in rows(out)] == [
        "cosine (topn 30)",
        "lbr (topn 30, sigma 0.1)",
        "short_100%#&.csv, shortest list 10",
    ]
    assert [value for _, value in rows(out)][:2] == [f"{value:.4f}" for value in expected]
    assert err.count("the shortest list ends") == 1

    told = json.loads(cli("eval", "cosine.h5", "lbr_1.h5", files, "--json")[1])
    assert told == [json.loads(cli("eval", name, files, "--json")[1]) for name in ("cosine.h5", "lbr_1.h5")]
    # Two of one method are told apart by their files; a file named twice is one row.
    out = cli("eval", "lbr_1.h5", "again.h5", "lbr_1.h5", files)[1]
    assert [name for name, _ in rows(out)] == [
        "lbr_1.h5, lbr (topn 30, sigma 0.1)",
        "again.h5, lbr (topn 30, sigma 0.1)",
    ]


def test_warnings_about_the_labels_are_said_once(cli, files, write):
    feats = write("bare.h5", probe_cams=None, gallery_cams=None)
    for _ in range(2):
        code, _, err = cli("eval", "cosine.h5", "lbr_1.h5", feats)
        assert code == 0
        assert err.count("there are no cameras") == 1


def test_eval_compares_two_rankings(cli, files):
    data = br.load(files)
    a, b = (br.evaluate(br.rerank(data, method, topn=30), data) for method in ("lbr", "cosine"))
    expected = br.compare(a, b)
    code, out, _ = cli("eval", files, "--compare", "lbr_1.h5", "cosine.h5", "--json")
    assert code == 0
    told = json.loads(out)
    assert told["comparison"] == {"a": "lbr_1.h5", "b": "cosine.h5", **expected.summary()}
    assert [row["ranking"] for row in told["rankings"]] == ["lbr_1.h5", "cosine.h5"]
    code, out, _ = cli("eval", "cosine.h5", files, "--compare", "lbr_1.h5", "cosine.h5")
    assert code == 0
    assert [name for name, _ in rows(out)] == ["cosine (topn 30)", "lbr (topn 30, sigma 0.1)"]
    assert out.splitlines()[-1] == (
        f"lbr (topn 30, sigma 0.1) against cosine (topn 30): mAP {expected.difference:+.4f}, "
        f"95 % interval {expected.low:+.4f} to {expected.high:+.4f}, p = {expected.p_value:.4f} "
        f"(two-sided paired permutation test); {expected.probes} probes, {expected.better} better, "
        f"{expected.equal} equal, {expected.worse} worse"
    )


def test_eval_does_not_compare_a_run_with_its_own_cut_lists(cli, files):
    """The same lists, one file with the positions of all matches, the other 10 deep."""
    assert cli("run", files, "--method", "lbr", "--topn", 30, "--depth", 10, "-o", "cut.trec", "-q")[0] == 0
    code, out, err = cli("eval", files, "--compare", "lbr_1.h5", "cut.trec", "-q")
    assert (code, out) == (1, "")
    assert "error: metrics to the whole gallery and to rank 10 cannot be compared" in err
    # The next step that it names.
    assert cli("run", files, "--method", "lbr", "--topn", 30, "--depth", 10, "-o", "lists.trec", "-q")[0] == 0
    code, out, err = cli("eval", files, "--compare", "lists.trec", "cut.trec", "-q")
    assert code == 0, err
    assert "mAP +0.0000" in out
    assert "0 better, 12 equal, 0 worse" in out


def test_a_small_p_value_is_printed_as_a_bound(cli, write):
    """60 probes whose one match cosine ranks first, against lists turned round."""
    probe = np.eye(60, dtype=np.float32) + 1
    ids = np.arange(1, 61)
    names = {"probe_names": None, "gallery_names": None, "probe_cams": None, "gallery_cams": None}
    feats = write("eye.h5", probe=probe, gallery=probe, probe_ids=ids, gallery_ids=ids, **names)
    data = br.load(feats)
    good = br.rerank(data, "cosine", depth=60)
    br.save_ranking(good, data, "good.h5")
    br.save_ranking(br.Ranking(good.indices[:, ::-1].copy(), good.scores, gallery_size=60), data, "bad.h5")
    code, out, err = cli("eval", feats, "--compare", "good.h5", "bad.h5", "-q")
    assert code == 0, err
    assert "p < 0.0001 (two-sided" in out
    assert "60 better, 0 equal, 0 worse" in out


def test_eval_says_what_is_missing(cli, files):
    assert cli("eval", files)[0] == 2
    assert "no ranking to measure" in cli("eval", files)[2]
    assert "standard input needs --format" in cli("eval", files, "--compare", "-", "cosine.h5")[2]


def latex_rows(out):
    """The cells of a tabular, and what stands outside it: comments alone."""
    before, body = out.split(r"\begin{tabular}")
    body, after = body.split(r"\end{tabular}")
    for line in (before + after).splitlines():
        assert not line or line.startswith("% ")
    assert [body.count(rule) for rule in (r"\toprule", r"\midrule", r"\bottomrule")] == [1, 1, 1]
    lines = [line for line in body.splitlines() if line.endswith(r"\\")]
    return [[cell.strip() for cell in re.split(r"(?<!\\)&", line.removesuffix(r"\\"))] for line in lines]


def test_latex_escapes_and_comments(cli, files):
    out = cli(
        "eval",
        "short_100%#&.csv",
        "lbr_1.h5",
        "again.h5",
        files,
        "--latex",
        "--compare",
        "again.h5",
        "lbr_1.h5",
    )[1]
    header, *cells = latex_rows(out)
    assert header[1:3] == ["mAP", "mINP"]
    assert [row[0] for row in cells] == [
        r"short\_100\%\#\&.csv, shortest list 10",
        r"lbr\_1.h5, lbr (topn 30, sigma 0.1)",
        r"again.h5, lbr (topn 30, sigma 0.1)",
    ]
    assert {len(row) for row in (header, *cells)} == {7}
    assert out.splitlines()[-1].startswith("% again.h5, lbr")

    header, *cells = latex_rows(cli("sweep", files, "--topn", "10,20", "--sigma", "0.1", "--latex")[1])
    assert header[:3] == ["topn", "sigma", "mAP"]
    assert [row[:2] for row in cells] == [["cosine", ""], ["10", "0.1"], ["20", "0.1"]]


def test_markdown(cli, files):
    (files.parent / "a|b.csv").write_bytes((files.parent / "short_100%#&.csv").read_bytes())
    lines = cli("eval", "a|b.csv", files, "--markdown")[1].splitlines()[2:]
    assert lines[2].startswith(r"| a\|b.csv ")
    assert {len(re.findall(r"(?<!\\)\|", line)) for line in lines} == {8}
    lines = cli("sweep", files, "--topn", "10", "--sigma", "0.1,0.2", "--markdown")[1].splitlines()
    table = [line for line in lines if line.startswith("|")]
    assert len(table) == 5
    plain = cli("sweep", files, "--topn", "10", "--sigma", "0.1,0.2")[1].splitlines()
    assert plain[-6:] == lines[-6:]
    assert all(line.startswith("best ") for line in plain[-6:])


def test_bench_compares_two_of_its_methods(cli, files, quick_bench):
    data = br.load(files)
    both = "lbr:topn=30", "cosine:topn=30"
    common = ("bench", files, "--methods", ",".join(both), "--repeats", 1, "--protocol", "plain")
    code, out, _ = cli(*common, "--compare", *both, "--json")
    assert code == 0
    told = json.loads(out)
    a, b = (
        br.evaluate(br.rerank(data, method, topn=30), data, protocol="plain") for method in ("lbr", "cosine")
    )
    assert told["comparison"] == {"a": both[0], "b": both[1], **br.compare(a, b).summary()}
    plain = json.loads(cli(*common, "--json")[1])
    assert [row.keys() for row in plain] == [row.keys() for row in told["results"]]
    assert [row["runs"][0].keys() for row in plain] == [row["runs"][0].keys() for row in told["results"]]
    assert "ap" not in plain[0]["runs"][0]
    out = cli(*common, "--compare", *both, "--latex")[1]
    assert len(latex_rows(out)) == 3
    assert out.splitlines()[-1].startswith("% lbr (topn 30, sigma 0.1) against cosine (topn 30): mAP ")

    for arguments, message in (
        (("--methods", "lbr", "--compare", "lbr", "cosine"), "--compare cosine: this is not one of --methods"),
        (("--index", "x.h5", "--compare", "lbr", "cosine"), "--compare cannot be used with --index"),
    ):
        code, _, err = cli("bench", files, *arguments)
        assert (code, message in err) == (2, True), err


def test_bench_compares_nothing_without_ids(cli, write):
    feats = write(probe_ids=None, gallery_ids=None)
    code, _, err = cli("bench", feats, "--methods", "lbr,cosine", "--compare", "lbr", "cosine")
    assert code == 1
    assert "there are no ids: --compare needs them" in err
