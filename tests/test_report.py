"""`blurrerank report` in a real browser, and `blurrerank plot`."""

from __future__ import annotations

import io
import json
import os
import re
import resource
import shutil
import sys
import threading
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from conftest import features, shell
from forks import forked
from PIL import Image
from playwright.sync_api import Browser, Page, sync_playwright

import blurrerank as br
from blurrerank.files.images import ImageFiles

CHROMIUM = shutil.which("chromium")
# Nothing that asks the network, and no sandbox of its own, which root has not.
QUIET = (
    *("--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync"),
)
LAST = 59  # the last row of the gallery of `features`


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    if CHROMIUM is None:
        said = "there is no chromium on the path: apt-get install chromium"
        if os.environ.get("CI"):
            pytest.fail(said)
        pytest.skip(said)
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=list(QUIET))
        yield browser
        browser.close()


@pytest.fixture
def visit(browser: Browser) -> Iterator[Callable[..., Page]]:
    """Open a page; at the end of the test nothing must have gone wrong in it, or left it."""
    told: list[str] = []
    contexts = []

    def visit(path: Path, at: str = "", **options: Any) -> Page:
        context = browser.new_context(**options)
        contexts.append(context)
        page = context.new_page()
        address = path.resolve().as_uri()
        page.on("console", lambda message: told.append(message.text))
        page.on("pageerror", lambda error: told.append(str(error)))
        page.on("dialog", lambda dialog: told.append(f"dialog {dialog.message}"))
        page.on(
            "request",
            lambda asked: None if asked.url.startswith((address, "blob:", "data:")) else told.append(asked.url),
        )
        page.goto(f"{address}#{at}" if at else address)
        page.wait_for_selector("tbody")
        return page

    visit.told = told
    yield visit
    for context in contexts:
        context.close()
    assert told == []


@pytest.fixture
def report(cli, tmp_path) -> Callable[..., Path]:
    """Re-rank features and report it: the page."""

    def report(feats: Path, *options: object, run: tuple[object, ...] = (), lists: str = "lists.h5") -> Path:
        assert cli("run", feats, "-o", lists, "--topn", 20, "--force", *run)[0] == 0
        code, _, err = cli("report", lists, feats, "-o", "report.html", "--force", *options)
        assert code == 0, err
        return tmp_path / "report.html"

    return report


def many(probes: int = 60) -> dict[str, np.ndarray]:
    return features(seed=4, probes=probes, gallery=LAST + 1)


def shown(page: Page) -> list[int]:
    """The probes on the page, in its order."""
    return [int(body.get_attribute("data-probe")) for body in page.query_selector_all("tbody[data-probe]")]


def column(page: Page, name: str) -> list[str]:
    """A column of the table of probes, by its head."""
    heads = [head.inner_text().strip("↑↓↕ ") for head in page.query_selector_all("#columns th")]
    at = heads.index(name)
    return [row.query_selector_all("th, td")[at].inner_text() for row in page.query_selector_all("tr.values")]


def as_numbers(texts: list[str]) -> list[float]:
    return [float(text.replace("−", "-").replace("equal", "0")) for text in texts]


def wait_for_count(page: Page, text: str) -> None:
    said = "(' ' + document.getElementById('count').textContent).includes(' ' + text)"
    page.wait_for_function(f"text => {said}", arg=text)


def wait_for_fragment(page: Page, text: str) -> None:
    page.wait_for_function("text => location.hash === text", arg=text)


def test_the_numbers_are_those_of_eval(report, visit, cli, write):
    feats = write(**many())
    page = visit(report(feats))
    told = {}
    assert cli("run", feats, "--method", "cosine", "-o", "cosine.h5")[0] == 0
    for name in ("cosine.h5", "lists.h5"):
        told[name] = json.loads(cli("eval", name, feats, "--json")[1])
    for row in page.query_selector_all("#means tbody tr"):
        name = row.get_attribute("data-metric")
        before, after, change = (cell.inner_text() for cell in row.query_selector_all("td"))
        one, other = told["cosine.h5"][name], told["lists.h5"][name]
        assert (before, after) == (f"{one:.4f}", f"{other:.4f}")
        assert change.replace("−", "-") == re.sub(r"[+-](0\.0000)", r"\1", f"{other - one:+.4f}")
    assert len(page.query_selector_all("#means tbody tr")) == 6
    data = br.load(feats)
    found = [br.evaluate(br.read_ranking(Path(name), data), data) for name in ("cosine.h5", "lists.h5")]
    change = found[1].ap - found[0].ap
    counts = {
        name: int(number)
        for number, name in re.findall(r"(\d+)\s+(better|equal|worse|no match)", page.inner_text(".counts"))
    }
    assert counts == {
        "better": (change > 1e-9).sum(),
        "equal": (np.abs(change) <= 1e-9).sum(),
        "worse": (change < -1e-9).sum(),
        "no match": np.isnan(change).sum(),
    }
    for text, expected in zip(column(page, "AP after"), found[1].ap[shown(page)], strict=True):
        assert text == (f"{expected:.4f}" if np.isfinite(expected) else "no match")
    page.click("figure summary")
    rows = page.query_selector_all("figure details tbody tr")
    curve = [[float(cell.inner_text()) for cell in row.query_selector_all("td")] for row in rows]
    np.testing.assert_allclose(curve, np.stack([found[0].cmc, found[1].cmc], axis=1), atol=5e-5)


# What is asked of all tiles of a list at once: each question takes the browser some milliseconds.
TILES = """tiles => tiles.map(tile => ({
    class: tile.className,
    mark: tile.querySelector(".mark").innerText,
    label: tile.querySelector("[role=img]").getAttribute("aria-label"),
    move: tile.querySelector(".move").innerText,
    moved: tile.querySelector(".move").className,
    score: tile.querySelector(".score").innerText,
}))"""


def by_cosine(arrays: dict[str, np.ndarray]) -> np.ndarray:
    """Full lists and scores by a product in float64."""
    unit = {}
    for side in ("probe", "gallery"):
        rows = arrays[side].astype(np.float64)
        unit[side] = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    return unit["probe"] @ unit["gallery"].T


def test_strips_and_frames_are_what_the_labels_say(report, visit, write):
    """Lists before by a product in float64, lists after as the file has them, frames from the labels.

    Every item says what rank it has in the other list, as far as lists go, and its score.
    """
    arrays = many()
    page = visit(report(write(**arrays), run=("--depth", 20)))
    cosines = by_cosine(arrays)
    before = np.argsort(-cosines, axis=1, kind="stable")[:, :20]
    with h5py.File("lists.h5") as file:
        after, scores = file["indices"][:], file["scores"][:]
    assert after.shape == before.shape
    seen, ways = set(), set()
    for body in page.query_selector_all("tbody[data-probe]"):
        probe = int(body.get_attribute("data-probe"))
        for name, lists, others in (("before", before, after), ("after", after, before)):
            tiles = body.eval_on_selector_all(f".strip.{name}-strip li", TILES)
            assert len(tiles) == 10
            for rank, (tile, item) in enumerate(zip(tiles, lists[probe], strict=False), start=1):
                identity, camera = arrays["gallery_ids"][item], arrays["gallery_cams"][item]
                if identity == -1:
                    kind, sign, said = "junk", "–", "junk"
                elif identity != arrays["probe_ids"][probe]:
                    kind, sign, said = "wrong", "✗", "wrong identity"
                elif camera == arrays["probe_cams"][probe]:
                    kind, sign, said = "dropped", "–", "dropped, same identity and camera"
                else:
                    kind, sign, said = "right", "✓", "right identity"
                other = [*others[probe].tolist(), item].index(item) + 1
                there, short = (f"rank {other}", str(other)) if other <= 20 else ("beyond rank 20", ">20")
                when, moved = ("after", "left") if name == "before" else ("before", "came")
                pair = (str(rank), short) if name == "before" else (short, str(rank))
                seen.add(kind)
                ways.add((name, "same" if other == rank else "beyond" if other > 20 else other > 10))
                score = tile.pop("score")
                expected = cosines[probe, item] if name == "before" else scores[probe, rank - 1]
                assert float(score.replace("−", "-")) == pytest.approx(expected, abs=6e-5)
                name_of = arrays["gallery_names"][item]
                label = f"rank {rank}, {when} {there}, score {score}, {said}, identity {identity}, "
                assert tile == {
                    "class": f"tile {kind}",
                    "mark": sign,
                    "label": f"{label}camera {camera}, {name_of}",
                    "move": str(rank) if other == rank else " → ".join(pair),
                    "moved": f"move {moved}" if other > 10 else "move",
                }
    assert seen == {"right", "wrong", "dropped", "junk"}
    assert ways >= {(name, way) for name in ("before", "after") for way in ("same", True, False)}


def test_probes_are_sorted_by_any_column(report, visit, write):
    page = visit(report(write(**many())))
    changes = as_numbers(column(page, "Change"))
    assert changes == sorted(changes, reverse=True)
    assert page.get_attribute("#columns th[data-sort=change]", "aria-sort") == "descending"
    page.click("#columns th[data-sort=change] button")
    changes = as_numbers(column(page, "Change"))
    assert changes == sorted(changes)
    assert page.get_attribute("#columns th[data-sort=change]", "aria-sort") == "ascending"
    page.click("#columns th[data-sort=before] button")
    assert as_numbers(column(page, "AP before")) == sorted(as_numbers(column(page, "AP before")), reverse=True)
    assert page.get_attribute("#columns th[data-sort=change]", "aria-sort") == "none"
    page.click("#columns th[data-sort=number] button")
    assert shown(page) == list(range(25))
    page.click("#columns th[data-sort=name] button")
    assert column(page, "Name") == [f"p{row:03}" for row in range(25)]


def test_probes_are_filtered(report, visit, write):
    arrays = many()
    page = visit(report(write(**arrays)))
    page.select_option("[name=show]", "worse")
    worse = int(re.search(r"(\d+)\s+worse", page.inner_text(".counts"))[1])
    wait_for_count(page, f"{worse} of 60 probes")
    changes = as_numbers(column(page, "Change"))
    assert all(change < 0 for change in changes)
    assert changes == sorted(changes), "the worst come first"
    page.select_option("[name=show]", "better")
    page.wait_for_selector("#columns th[data-sort=change][aria-sort=descending]")
    page.select_option("[name=show]", "all")
    page.fill("[name=name]", "P03")
    wait_for_count(page, "10 of 60 probes")
    assert sorted(shown(page)) == list(range(30, 40))
    page.fill("[name=name]", "")
    wait_for_count(page, "60 of 60 probes")
    page.fill("[name=identity]", "2")
    wanted = np.flatnonzero(arrays["probe_ids"] == 2).tolist()
    wait_for_count(page, f"{len(wanted)} of 60 probes")
    assert sorted(shown(page)) == wanted
    page.fill("[name=identity]", "99")
    wait_for_count(page, "0 of 60 probes")
    assert shown(page) == []


def test_pages_hold_every_probe_once(report, visit, write):
    page = visit(report(write(**many())))
    found = []
    for number in (1, 2, 3):
        wait_for_count(page, f"page {number} of 3")
        found += shown(page)
        if number < 3:
            page.click(".pager [name=next]")
    assert sorted(found) == list(range(60))
    assert page.get_attribute(".pager [name=next]", "aria-disabled") == "true"
    page.fill(".pager [name=page]", "2")
    page.keyboard.press("Enter")
    wait_for_count(page, "page 2 of 3")
    page.fill(".pager [name=page]", "999")
    page.keyboard.press("Enter")
    wait_for_count(page, "page 3 of 3")


def test_the_keyboard_is_enough(report, visit, write):
    page = visit(report(write(**many())))
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    page.keyboard.press("Enter")

    def to(selector: str) -> None:
        for _ in range(80):
            page.keyboard.press("Tab")
            if page.evaluate("selector => document.activeElement.matches(selector)", selector):
                return
        pytest.fail(f"Tab never came to {selector}")

    to("[name=name]")
    page.keyboard.type("p01")
    wait_for_count(page, "10 of 60 probes")
    page.keyboard.press("Control+a")
    page.keyboard.press("Delete")
    wait_for_count(page, "60 of 60 probes")
    to(".pager [name=next]")
    page.keyboard.press("Enter")
    wait_for_count(page, "page 2 of 3")
    assert page.evaluate("document.activeElement.name") == "next", "the focus stays where it was"
    to("#columns th[data-sort=before] button")
    page.keyboard.press("Space")
    assert page.get_attribute("#columns th[data-sort=before]", "aria-sort") == "descending"


CONTRAST = """() => {
    const light = (text) => {
        const [r, g, b] = text.match(/[0-9.]+/g).map((part) => part / 255)
            .map((part) => part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4);
        return 0.2126 * r + 0.7152 * g + 0.0722 * b;
    };
    const ground = (node) => {
        for (; node; node = node.parentElement) {
            const found = getComputedStyle(node).backgroundColor;
            if (!found.endsWith(', 0)')) return found;
        }
        return 'rgb(255, 255, 255)';
    };
    const low = [];
    const text = 'h1, h2, p, td, th, li, label, button, dt, dd, .mark, .caption, .move, .score, .when, strong';
    for (const node of document.querySelectorAll(text)) {
        if (!node.innerText || node.closest('.skip') || node.closest('[aria-disabled=true]')) continue;
        const [one, other] = [light(getComputedStyle(node).color), light(ground(node))].sort((a, b) => b - a);
        const contrast = (one + 0.05) / (other + 0.05);
        if (contrast < 4.5) low.push([node.tagName, node.className, node.innerText.slice(0, 20), contrast]);
    }
    return low;
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_can_be_read_in_light_and_dark(scheme, report, visit, cli, write):
    feats = write(**many())
    assert cli("sweep", feats, "--topn", "5,10", "--sigma", "0.1,0.5", "-o", "sweep.json")[0] == 0
    page = visit(report(feats, "--sweep", "sweep.json"), color_scheme=scheme)
    page.click("details.map summary")
    ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (int(re.findall(r"\d+", ground)[0]) > 128) == (scheme == "light")
    assert page.evaluate(CONTRAST) == []


@pytest.mark.parametrize("width", [380, 1200])
def test_nothing_is_wider_than_the_window(width, report, visit, write):
    page = visit(report(write(**many())), viewport={"width": width, "height": 800})
    assert page.evaluate("document.scrollingElement.scrollWidth") <= width


HOSTILE = "</script><img src=x onerror=alert(1)>\"'&<!--${title}"


def test_identities_and_cameras_are_called_as_their_file_calls_them(report, visit, write):
    arrays = many()
    texts = {
        f"{side}_{kind}": np.array([f"{what} {label}" for label in arrays[f"{side}_{kind}"]], dtype=object)
        for side in ("probe", "gallery")
        for kind, what in (("ids", "zebra"), ("cams", HOSTILE))
    }
    page = visit(report(write(**arrays | texts)))
    identities, cameras = (
        dict(zip(arrays["gallery_names"], texts[f"gallery_{kind}"], strict=True)) for kind in ("ids", "cams")
    )
    labels = page.eval_on_selector_all(
        "tbody .strip li [role=img]", "all => all.map(one => one.getAttribute('aria-label'))"
    )
    for label in labels:
        name = label.split(", ")[-1]
        assert f", identity {identities[name]}, camera {cameras[name]}, " in label
    first = page.query_selector("tbody .strip li .picture")
    assert first.inner_text().startswith("zebra ")
    assert HOSTILE in first.inner_text()
    assert page.query_selector_all("img") == []
    identity = texts["probe_ids"][0]
    page.fill("[name=identity]", identity)
    wait_for_count(page, f"{(texts['probe_ids'] == identity).sum()} of {len(texts['probe_ids'])}")


def test_long_names_below_pictures_take_a_line_each(report, visit, write):
    arrays = many()
    texts = {
        f"{side}_{kind}": np.array([f"{what} {label}" for label in arrays[f"{side}_{kind}"]], dtype=object)
        for side in ("probe", "gallery")
        for kind, what in (("ids", "family of"), ("cams", "north gate"))
    }
    images = {"probe_images": grey(60), "gallery_images": grey(LAST + 1)}
    page = visit(report(write(**arrays | texts | images)))
    captions = page.eval_on_selector_all("tbody .strip li .caption", "all => all.map(one => one.textContent)")
    assert {tuple(map(len, caption.split("\n"))) for caption in captions} <= {(2, 8), (8, 8), (1, 8)}
    assert captions[0].split("\n")[1].startswith("no…ate ")
    # All ranks of a list are on one line.
    lines = (
        "all => all.map(strip => new Set([...strip.querySelectorAll('.move')].map(one => one.offsetTop)).size)"
    )
    assert set(page.eval_on_selector_all("tbody .strip", lines)) == {1}


@pytest.mark.parametrize(
    "hostile", [HOSTILE, "</script <img src=x onerror=alert(1)>", "<!--<script <img src=x>"]
)
def test_names_of_strangers_are_text(hostile, report, visit, write):
    """Each breaks the script's data in its own way: by its end, by an end that goes on, by an end unseen."""
    arrays = many()
    names = {
        f"{side}_names": np.array([f"{hostile}{row}" for row in range(len(arrays[side]))], dtype=object)
        for side in ("probe", "gallery")
    }
    page = visit(report(write(**arrays | names)))
    assert page.query_selector_all("img") == []
    page.click("#columns th[data-sort=number] button")
    assert column(page, "Name")[0] == f"{hostile}0"
    label = page.query_selector("tbody .strip li [role=img]").get_attribute("aria-label")
    assert hostile in label


def test_what_strangers_call_their_files_and_methods_is_text(visit, cli, write, tmp_path):
    hostile = HOSTILE.replace("/", "")  # as a file may be called
    feats = write(f"{hostile}.h5", **many())
    lists = f"lists{hostile}.h5"
    assert cli("run", feats, "-o", lists, "--topn", 20)[0] == 0
    with h5py.File(tmp_path / lists, "r+") as file:
        file.attrs["method"] = HOSTILE
        file.attrs["params"] = json.dumps({HOSTILE: HOSTILE})
    code, _, err = cli("report", lists, feats, "-o", "report.html")
    assert code == 0, err
    page = visit(tmp_path / "report.html")
    assert page.query_selector_all("img") == []
    told = dict(
        zip(
            *([node.text_content() for node in page.query_selector_all(tag)] for tag in ("dt", "dd")),
            strict=True,
        )
    )
    assert told["method"] == HOSTILE
    assert told["parameters"] == f"{HOSTILE} {json.dumps(HOSTILE)}"
    assert (told["ranking"], told["features"]) == (lists, feats.name)
    called = f"{HOSTILE} ({HOSTILE} {HOSTILE})"
    assert page.title() == f"blurrerank report: {called} against cosine"
    assert page.text_content("h1") == f"{called} against cosine"
    assert f"after: {called}" in [node.text_content() for node in page.query_selector_all(".key li")]
    assert page.text_content(".after-strip .when") == f"after: {called}"


def test_the_head_names_method_parameters_and_what_info_estimates(report, visit, cli, write):
    feats = write(**features(seed=4, probes=60, gallery=400))
    page = visit(report(feats, run=("--sigma", 0.2)))
    assert page.inner_text("h1") == "lbr (topn 20, sigma 0.2) against cosine"
    assert page.title() == "blurrerank report: lbr (topn 20, sigma 0.2) against cosine"
    told = cli("info", feats)[1]
    lines = [line.inner_text().rstrip(".") for line in page.query_selector_all("header p")]
    assert len(lines) == 3
    for line in lines[1:]:
        assert line[0].lower() + line[1:] in told


def altered(data: br.FeatureSet, change: Callable[[np.ndarray], None]) -> tuple[br.Ranking, br.Ranking]:
    """Complete lists by cosine, and a copy of them that somebody changed."""
    one = br.rerank(data, "cosine", depth=len(data.gallery))
    lists = one.indices.copy()
    change(lists)
    return one, br.Ranking(lists, one.scores, gallery_size=len(data.gallery))


def test_nothing_is_minus_nothing(visit, write, tmp_path):
    """A loss that rounds to nothing in a mean has no sign; that of the probe has its size."""
    data = br.load(write(**many()))
    whole = br.rerank(data, "cosine", depth=LAST + 1)
    own = data.gallery.ids[whole.indices[0]] == data.probe.ids[0]
    other_camera = data.gallery.cams[whole.indices[0]] != data.probe.cams[0]
    wrong = ~own & (data.gallery.ids[whole.indices[0]] > 0)
    at = np.flatnonzero((own & other_camera)[:-1] & wrong[1:])[-1]

    def swap(lists: np.ndarray) -> None:
        lists[0, [at, at + 1]] = lists[0, [at + 1, at]]

    one, other = altered(data, swap)
    found = br.before_and_after(ranking=other, against=one, data=data)
    assert -5e-5 < found.change.mean() < 0
    br.write_report(comparison=found, path=tmp_path / "report.html")
    page = visit(tmp_path / "report.html")
    assert page.query_selector_all("[data-metric=mAP] td")[2].inner_text() == "0.0000"
    assert page.get_attribute("[data-metric=mAP] td:last-child", "class") == ""
    assert re.search(r"[-−+]0\.0+(?!\d)", page.inner_text("body")) is None
    page.select_option("[name=show]", "worse")
    wait_for_count(page, "1 of 60 probes")
    page.click("details.map summary")
    assert re.search(r"[-−+]0\.0+(?!\d)", page.inner_text("body")) is None
    assert as_numbers(column(page, "Change")) == [pytest.approx(found.change[0], abs=5e-5)]


def test_ranks_by_cosine_similarity_end_at_1000():
    data = br.FeatureSet.from_arrays(**features(probes=6, gallery=1100))
    whole = br.rerank(data, "cosine", depth=1100)
    for ranking in (
        br.rerank(data, "lbr", depth=1100),
        br.Ranking(whole.indices[:, ::-1].copy(), whole.scores, gallery_size=1100),
    ):
        found = br.before_and_after(ranking=ranking, data=data)
        assert found.reference.depth == 1000
        expected = 1 + np.argsort(whole.indices, axis=1)
        expected = np.take_along_axis(expected, found.after.astype(np.int64), axis=1)
        np.testing.assert_array_equal(found.ranks_before, np.where(expected > 1000, -1000, expected))
        metrics = br.evaluate(whole, data)
        np.testing.assert_array_equal(found.metrics_before.cmc, metrics.cmc)
        np.testing.assert_array_equal(found.metrics_before.ap, metrics.ap)
        assert found.metrics_before.depth is None
    assert (found.ranks_before == -1000).all()
    # Lists of another tool that end are measured to their depth, and so is the search.
    cut = br.Ranking(whole.indices[:, :1050], whole.scores[:, :1050], gallery_size=1100)
    with pytest.warns(br.BlurrerankWarning, match="ends at rank 1050"):
        found = br.before_and_after(ranking=cut, data=data)
    assert (found.reference.depth, found.metrics_before.depth) == (1050, 1050)
    assert not found.change.any()


def test_a_path_in_the_place_of_the_other_ranking_is_answered_in_one_line(write):
    data = br.load(write(**many()))
    with pytest.raises(br.InputError, match=r"expected a Ranking, not a path: pass br.read_ranking\('x.h5'"):
        br.before_and_after(ranking=br.rerank(data), data=data, against="x.h5")


@pytest.mark.parametrize("better", [True, False])
def test_charts_reach_as_far_as_their_values(better, visit, write, tmp_path):
    data = br.load(write(**many()))

    def spoil(lists: np.ndarray) -> None:
        lists[:] = lists[:, ::-1]

    cosine, spoiled = altered(data, spoil)
    pair = {"ranking": cosine, "against": spoiled} if better else {"ranking": spoiled, "against": cosine}
    found = br.before_and_after(data=data, **pair)
    br.write_report(comparison=found, path=tmp_path / "report.html")
    page = visit(tmp_path / "report.html")
    both = np.concatenate([one.cmc for one in found.measured])
    for chart, values in (("#change", np.append(found.change, 0)), ("#cmc", both)):
        texts = [node.text_content() for node in page.query_selector_all(f"{chart} text.end")]
        marks = as_numbers(texts)
        step = marks[1] - marks[0]
        assert marks[0] <= np.nanmin(values) < marks[0] + step + 1e-9
        assert marks[-1] - step - 1e-9 < np.nanmax(values) <= marks[-1] + 1e-9


def lit(page: Page) -> list[tuple[str, str]]:
    """Where items are lit, and which."""
    return page.eval_on_selector_all(
        ".lit", "all => all.map(one => [one.closest('.strip')?.className ?? one.tagName, one.dataset.item])"
    )


def test_the_same_item_is_lit_in_both_lists(report, visit, write):
    page = visit(report(write(**many())))
    body = page.query_selector("tbody[data-probe]")
    places = {
        name: body.eval_on_selector_all(f".{name}-strip li", "all => all.map(one => one.dataset.item)")
        for name in ("before", "after")
    }
    assert lit(page) == []
    for item in sorted({*places["before"], *places["after"]}):
        here = [name for name, items in places.items() if item in items]
        body.query_selector(f".{here[0]}-strip [data-item='{item}'] .picture").hover()
        assert lit(page) == [[f"strip {name}-strip", item] for name in here]
    page.mouse.move(1, 1)
    assert lit(page) == []
    # By keyboard: one stop for Tab, arrow keys from there.
    assert len(body.query_selector_all("li [tabindex='0']")) == 1
    body.query_selector("li [tabindex='0']").focus()
    page.keyboard.press("ArrowLeft")
    for key, name, at in (
        ("ArrowRight", "before", 1),
        ("ArrowRight", "before", 2),
        ("ArrowDown", "after", 2),
        ("ArrowLeft", "after", 1),
        ("ArrowUp", "before", 1),
    ):
        page.keyboard.press(key)
        item = places[name][at]
        assert page.evaluate("document.activeElement.closest('li').dataset.item") == item
        assert [f"strip {name}-strip", item] in lit(page)
    assert len(body.query_selector_all("li [tabindex='0']")) == 1
    page.evaluate("document.activeElement.blur()")
    assert lit(page) == []


def test_the_address_holds_what_is_shown(report, visit, write):
    path = report(write(**many()))
    page = visit(path)
    assert "#" not in page.url
    page.select_option("[name=show]", "worse")
    wait_for_fragment(page, "#show=worse")
    page.click("#columns th[data-sort=number] button")
    page.fill("[name=name]", "p0")
    wait_for_fragment(page, "#show=worse&name=p0&sort=number")
    before = shown(page)
    other = visit(path, at=page.url.partition("#")[2])
    assert shown(other) == before
    assert other.input_value("[name=show]") == "worse"
    assert other.get_attribute("#columns th[data-sort=number]", "aria-sort") == "ascending"
    page.reload()
    assert shown(page) == before
    # Back to nothing, nothing is left of it.
    page.fill("[name=name]", "")
    page.select_option("[name=show]", "all")
    wait_for_fragment(page, "")
    page.click(".pager [name=next]")
    assert page.url.endswith("#page=2")
    before = shown(page)
    # A link to one probe, and back.
    body = page.query_selector("tbody[data-probe]")
    probe = body.get_attribute("data-probe")
    body.query_selector("th a").click()
    wait_for_count(page, "1 of 60 probes")
    assert page.url.endswith(f"#probe={probe}")
    assert page.input_value("[name=probe]") == probe
    assert page.query_selector("details.map svg") is not None
    page.go_back()
    wait_for_count(page, "page 2 of 3")
    assert shown(page) == before
    assert page.url.endswith("#page=2")


@pytest.mark.parametrize(
    ("fragment", "count"),
    [
        ("probe=999", "0 of 60 probes"),
        ("probe=<img src=x onerror=alert(1)>", "0 of 60 probes"),
        ("show=nothing&sort=-nothing&page=x&hello=1", "60 of 60 probes, page 1 of 3"),
        ("page=99&sort=first", "page 3 of 3"),
        ("probes", "60 of 60 probes"),
        ("%E0%A4%A", "60 of 60 probes"),
    ],
)
def test_addresses_of_strangers_do_no_harm(fragment, count, report, visit, write):
    page = visit(report(write(**many())), at=fragment)
    wait_for_count(page, count)


def test_both_lists_are_aligned_on_a_phone(report, visit, write):
    """Items of one rank stand above each other, also after scrolling, and the page is no wider."""
    page = visit(report(write(**many())), viewport={"width": 390, "height": 844})
    lefts = "all => all.map(one => one.getBoundingClientRect().left)"
    strips = page.query_selector(".strips")
    first = strips.eval_on_selector_all(".before-strip li", lefts)
    assert first == sorted(first)
    assert first == strips.eval_on_selector_all(".after-strip li", lefts)
    assert strips.evaluate("one => { one.scrollLeft = 200; return one.scrollLeft; }") == 200
    then = strips.eval_on_selector_all(".before-strip li", lefts)
    assert then == pytest.approx([left - 200 for left in first], abs=0.1)
    assert then == strips.eval_on_selector_all(".after-strip li", lefts)
    assert strips.query_selector(".when").bounding_box()["x"] >= 0, "what the list is stays in sight"
    page.click("details.map summary")
    assert page.evaluate("document.scrollingElement.scrollWidth") <= 390


@pytest.mark.parametrize("shown_items", [5, 30])
def test_an_affinity_map_has_the_similarities(shown_items, report, visit, write):
    """Of the probe, what is shown after, and what left it; 20 items at most. By a product in float64."""
    arrays = many()
    path = report(write(**arrays), "--shown", shown_items)
    lists = np.argsort(-by_cosine(arrays), axis=1, kind="stable")
    with h5py.File("lists.h5") as file:
        heads = file["indices"][:]
    # One that items left.
    probe = next(row for row in range(60) if set(lists[row, :5]) != set(heads[row, :5]))
    before, after = lists[probe], heads[probe].tolist()
    left = [item for item in before[:shown_items] if item not in after[:shown_items]]
    members = [*after[:shown_items], *left][:20]
    page = visit(path, at=f"probe={probe}")
    rows = np.vstack([arrays["probe"][probe], arrays["gallery"][members]]).astype(np.float64)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    expected = rows @ rows.T
    labels = [node.text_content() for node in page.query_selector_all(".map svg text.end")]
    ranks = [(before.tolist().index(item) + 1, after.index(item) + 1) for item in members]
    assert labels == ["probe", *(str(a) if a == b else f"{a} → {b}" for a, b in ranks)]
    signs = [node.text_content() for node in page.query_selector_all(".map svg .sign")]
    right = arrays["gallery_ids"][members] == arrays["probe_ids"][probe]
    right &= arrays["gallery_cams"][members] != arrays["probe_cams"][probe]
    assert [sign == "✓" for sign in signs] == [False, *right]
    names = ["probe", *(f"rank {b}" if b <= shown_items else f"left {a}" for a, b in ranks)]
    cells = page.query_selector_all(".map rect")
    size = len(members) + 1
    assert len(cells) == size * (size - 1)
    pairs = [(row, col) for row in range(size) for col in range(size) if row != col]
    opacities = [float(cell.get_attribute("fill-opacity")) for cell in cells]
    values = np.array([expected[pair] for pair in pairs])
    scaled = 0.04 + 0.96 * (values - values.min()) / (values.max() - values.min())
    np.testing.assert_allclose(opacities, scaled, atol=0.01)
    for place in (0, size, len(cells) - 1):
        cells[place].hover()
        row, col = pairs[place]
        a, b, value = re.fullmatch(r"(.*) and (.*): (.*)", page.inner_text(".readout")).groups()
        for said, at in ((a, row), (b, col)):
            assert said == names[at]
        assert as_numbers([value])[0] == pytest.approx(expected[row, col], abs=0.011)
    item = page.query_selector(".map [data-item]").get_attribute("data-item")
    page.hover(f".after-strip [data-item='{item}'] .picture")
    assert ["G", item] in [[tag.upper(), which] for tag, which in lit(page)]


def test_maps_are_computed_on_the_device_and_in_the_memory_that_were_asked_for(
    cli, write, monkeypatch, tmp_path
):
    from blurrerank.report import maps

    asked, affinities = [], maps.affinities
    monkeypatch.setattr(
        maps, "affinities", lambda *given, **how: asked.append(how) or affinities(*given, **how)
    )
    feats = write(**many())
    assert cli("run", feats, "-o", "lists.h5")[0] == 0
    options = ("--device", "cpu", "--memory", "100MB")
    assert cli("report", "lists.h5", feats, "-o", "report.html", *options)[0] == 0
    assert asked == [{"device": "cpu", "memory": 100_000_000}]
    data = br.load(feats)
    found = br.before_and_after(ranking=br.read_ranking("lists.h5", data), data=data)
    with pytest.raises(br.BlurrerankError, match="device"):
        br.write_report(comparison=found, path=tmp_path / "other.html", device="abacus")
    br.write_report(comparison=found, path=tmp_path / "large.html")
    br.write_report(comparison=found, path=tmp_path / "small.html", memory=1000)
    assert asked[-2:] == [{"device": "auto", "memory": None}, {"device": "auto", "memory": 1000}]
    assert (tmp_path / "small.html").read_bytes() == (tmp_path / "large.html").read_bytes()


def test_maps_beyond_their_number_are_left_out_and_it_is_told(report, visit, write, monkeypatch):
    monkeypatch.setattr("blurrerank.report.maps.MOST", 10)
    page = visit(report(write(**many())))
    assert "affinity maps of the probes that changed most: the first 10 of 60 only" in page.inner_text(
        "#probes"
    )
    changes = as_numbers(column(page, "Change"))
    having = [body.query_selector(".map") is not None for body in page.query_selector_all("tbody[data-probe]")]
    assert changes[0] > 0
    assert having[0]
    assert not having[-1]


def test_two_rankings_side_by_side(report, visit, cli, write):
    feats = write(**many())
    assert cli("run", feats, "--method", "k-reciprocal", "-o", "other.h5", "--depth", 30)[0] == 0
    page = visit(report(feats, "--against", "other.h5"))
    names = "lbr (topn 20, sigma 0.1)", "k-reciprocal (k1 20, k2 6, lambda 0.3)"
    assert page.inner_text("h1") == " against ".join(names)
    assert page.inner_text(".before-strip .when") == f"before: {names[1]}"
    assert page.inner_text(".after-strip .when") == f"after: {names[0]}"
    told = [json.loads(cli("eval", name, feats, "--json")[1]) for name in ("other.h5", "lists.h5")]
    for row in page.query_selector_all("#means tbody tr"):
        cells = [cell.inner_text() for cell in row.query_selector_all("td")]
        assert cells[:2] == [f"{one[row.get_attribute('data-metric')]:.4f}" for one in told]
    with h5py.File("other.h5") as file:
        lists = file["indices"][:, :10]
    for body in page.query_selector_all("tbody[data-probe]"):
        found = body.eval_on_selector_all(".before-strip li", TILES)
        expected = [f"g{item:03}" for item in lists[int(body.get_attribute("data-probe"))]]
        assert [tile["label"].split(", ")[-1] for tile in found] == expected
    code, _, err = cli("plot", "lists.h5", feats, "--against", "other.h5", "-o", "cmc.svg", "--figure", "cmc")
    assert code == 0, err
    assert all(name in Path("cmc.svg").read_text() for name in names)


def test_two_rankings_are_cut_where_the_shorter_ends(report, visit, cli, write):
    feats = write(**many())
    for depth in (9, 12):
        assert cli("run", feats, "--method", "cosine", "--depth", depth, "-o", f"{depth}.trec")[0] == 0
    page = visit(report(feats, "--against", "9.trec", run=("--depth", 12), lists="lists.trec"))
    assert "the shortest ends at rank 9 of 60" in page.inner_text("main")
    assert len(page.query_selector_all("tbody .after-strip li")) == 25 * 9
    assert cli("run", feats, "--topn", 20, "--depth", 9, "-o", "lists9.trec")[0] == 0
    for name, at in (("9.trec", 0), ("lists9.trec", 1)):
        told = json.loads(cli("eval", name, feats, "--json")[1])
        assert page.query_selector_all("[data-metric=mAP] td")[at].inner_text() == f"{told['mAP']:.4f}"


def test_the_page_forbids_itself_the_network(report, visit, write):
    page = visit(report(write(**many())))
    refused = page.evaluate("fetch('https://example.org/').then(() => 'let through', () => 'refused')")
    assert refused == "refused"
    assert all("Content Security Policy" in line for line in visit.told)
    visit.told.clear()
    assert "default-src 'none'" in page.get_attribute("meta[http-equiv=Content-Security-Policy]", "content")


def test_twenty_thousand_probes(report, visit, write):
    rng = np.random.default_rng(0)
    count = 20_000
    arrays = {
        "probe": rng.standard_normal((count, 4)).astype(np.float32),
        "probe_ids": rng.integers(1, 30, count),
        "probe_cams": rng.integers(1, 4, count),
        "probe_names": np.array([f"probe {row}" for row in range(count)], dtype=object),
    }
    path = report(write(**features(dim=4) | arrays))
    assert path.stat().st_size < 15e6
    page = visit(path)
    wait_for_count(page, "20,000 of 20,000 probes, page 1 of 800")
    assert len(shown(page)) == 25
    page.fill(".pager [name=page]", "800")
    page.keyboard.press("Enter")
    wait_for_count(page, "page 800 of 800")
    page.fill("[name=name]", "probe 19999")
    wait_for_count(page, "1 of 20,000 probes")
    assert shown(page) == [19999]


@pytest.mark.parametrize("missing", ["ids", "cams", "names"])
def test_what_is_not_there_is_said_or_left_out(missing, report, visit, write):
    page = visit(report(write(**many() | {f"{side}_{missing}": None for side in ("probe", "gallery")})))
    text = page.inner_text("main")
    assert ("There are no ids: lists can be shown, but not measured." in text) == (missing == "ids")
    assert ("There are no cameras: protocol market1501 drops only junk." in text) == (missing == "cams")
    assert (page.query_selector("#means") is None) == (missing == "ids")
    assert (page.query_selector("[name=name]") is None) == (missing == "names")
    assert len(page.query_selector_all("tbody[data-probe]")) == 25
    assert len(page.query_selector_all("tbody[data-probe] .strip li")) == 25 * 20


def test_probes_without_a_match_say_so(report, visit, write):
    arrays = many()
    arrays["probe_ids"][7] = 77
    page = visit(report(write(**arrays)))
    page.select_option("[name=show]", "none")
    wait_for_count(page, "1 of 60 probes")
    assert shown(page) == [7]
    assert column(page, "Change") == ["no match"]


def test_where_the_first_match_stands_is_said(report, visit, cli, write):
    """At a rank, behind the end of the list, or nowhere; by lists of both in full."""
    arrays = many()
    arrays["probe_ids"][7] = 77
    feats = write(**arrays)
    page = visit(report(feats, run=("--depth", 2), lists="lists.trec"))
    page.click("#columns th[data-sort=number] button")
    found = column(page, "First match")
    data = br.load(feats)
    expected = []
    for probe in range(25):
        texts = []
        for method in ("cosine", "lbr"):
            head = br.rerank(data, method, topn=20).indices[probe, :2]
            kept = [item for item in head if arrays["gallery_ids"][item] != -1]
            own = arrays["gallery_ids"][kept] == arrays["probe_ids"][probe]
            same = own & (arrays["gallery_cams"][kept] == arrays["probe_cams"][probe])
            ranks = 1 + np.flatnonzero(own[~same])
            texts.append("none" if probe == 7 else str(ranks[0]) if len(ranks) else "not listed")
        expected.append(" \u2192 ".join(texts))
    assert found == expected
    assert {text for line in found for text in line.split(" \u2192 ")} >= {"none", "not listed", "1"}


def test_gains_are_drawn_above_and_losses_below(report, visit, write):
    page = visit(report(write(**many())))
    where = {
        name: page.evaluate(
            "name => { const { y, height } = document.querySelector(name).getBBox(); return [y, y + height]; }",
            f"#change {name}",
        )
        for name in (".area.better", ".area.worse", ".zero")
    }
    zero = where[".zero"][0]
    assert where[".area.better"] == [pytest.approx(where[".area.better"][0]), pytest.approx(zero)]
    assert where[".area.better"][0] < zero - 1
    assert where[".area.worse"][0] == pytest.approx(zero)
    assert where[".area.worse"][1] > zero + 1
    style = "([name, which]) => getComputedStyle(document.querySelector(name))[which]"
    gain = page.evaluate(style, [".gain", "color"])
    assert page.evaluate(style, [".area.better", "fill"]) == gain
    assert page.evaluate(style, [".area.worse", "fill"]) != gain


def test_a_short_list_is_compared_with_cosine_cut_there(report, visit, cli, write):
    feats = write(**many())
    page = visit(report(feats, run=("--depth", 12), lists="lists.trec"))
    assert "the shortest ends at rank 12 of 60" in page.inner_text("main")
    assert cli("run", feats, "--method", "cosine", "--depth", 12, "-o", "cosine.trec")[0] == 0
    for name, at in (("cosine.trec", 0), ("lists.trec", 1)):
        told = json.loads(cli("eval", name, feats, "--json")[1])
        assert page.query_selector_all("[data-metric=mAP] td")[at].inner_text() == f"{told['mAP']:.4f}"


def grey(rows: int, first: int = 0) -> np.ndarray:
    """An image for each row, of one shade that only this row has."""
    return np.broadcast_to((first + 2 * np.arange(rows, dtype=np.uint8))[:, None, None], (rows, 12, 12)).copy()


def shade(page: Page, picture: Any) -> int:
    """Of the middle of a picture, as the browser painted it."""
    with Image.open(io.BytesIO(picture.screenshot())) as painted:
        red, green, blue = painted.convert("RGB").getpixel((painted.width // 2, painted.height // 3))
    assert red == green == blue
    return red


def check_pictures(page: Page, arrays: dict[str, np.ndarray], absent: frozenset[int] = frozenset()) -> None:
    row_of = {name: row for row, name in enumerate(arrays["gallery_names"])}
    for body in page.query_selector_all("tbody[data-probe]")[:4]:
        probe = int(body.get_attribute("data-probe"))
        assert abs(shade(page, body.query_selector(".probe > .tile .picture")) - (120 + 2 * probe)) <= 1
        for picture in body.query_selector_all("li .picture"):
            row = row_of[picture.get_attribute("aria-label").split(", ")[-1]]
            if row in absent:
                assert picture.query_selector("strong").inner_text() == str(arrays["gallery_ids"][row])
            else:
                assert abs(shade(page, picture) - 2 * row) <= 1


def test_each_picture_is_that_of_its_item(report, visit, write):
    arrays = many(probes=40)
    images = {"probe_images": grey(40, first=120), "gallery_images": grey(LAST + 1)}
    page = visit(report(write(**arrays | images)))
    assert len(page.query_selector_all(".picture.drawn")) == 25 * 21
    check_pictures(page, arrays)


def test_pictures_from_files_stay_within_their_folder(report, visit, cli, write, tmp_path):
    arrays = many(probes=40)
    (tmp_path / "images").mkdir()
    for side, shades in (("probe", grey(40, first=120)), ("gallery", grey(LAST + 1))):
        names = [f"{name}.png" for name in arrays[f"{side}_names"]]
        for name, image in zip(names, shades, strict=True):
            Image.fromarray(image).resize((90, 90)).save(tmp_path / "images" / name)
        arrays[f"{side}_names"] = np.array(names, dtype=object)
    Image.fromarray(grey(1)[0]).save(tmp_path / "outside.png")
    (tmp_path / "images/g020.png").unlink()
    (tmp_path / "images/g021.png").write_bytes(b"no image")
    arrays["gallery_names"][22] = "../outside.png"
    arrays["gallery_names"][23] = str(tmp_path / "outside.png")
    (tmp_path / "images/link.png").symlink_to(tmp_path / "outside.png")
    arrays["gallery_names"][24] = "link.png"
    feats = write(**arrays)
    page = visit(report(feats, "--image-root", "images"))
    check_pictures(page, arrays, absent=frozenset(range(20, 25)))
    err = cli("report", "lists.h5", feats, "-o", "report.html", "--force", "--image-root", "images")[2]
    assert "warning: 5 pictures were not found in images or are not images" in err
    assert "5 pictures were not found; these are tiles too" in page.inner_text("#probes")


def test_thumbnails_without_pixels_are_told(cli, write):
    feats = write(probe_images=np.zeros((12, 0, 4), np.uint8))
    assert cli("run", feats, "-o", "lists.h5")[0] == 0
    code, _, err = cli("report", "lists.h5", feats, "-o", "report.html")
    assert code == 1
    assert err.endswith("/probe/images is (12, 0, 4): there are no pixels\n")


def test_what_never_ends_is_no_picture(tmp_path):
    """To open a pipe is to wait for somebody who writes."""
    os.mkfifo(tmp_path / "pipe.png")
    found: list[Any] = []
    reader = threading.Thread(
        target=lambda: found.extend(ImageFiles(tmp_path, ["pipe.png"]).read([0], 10)), daemon=True
    )
    reader.start()
    reader.join(timeout=10)
    waits = reader.is_alive()
    if waits:
        os.close(os.open(tmp_path / "pipe.png", os.O_WRONLY))
    assert not waits
    assert found == [(0, None)]


def test_pictures_beyond_the_budget_are_left_out_and_it_is_told(report, visit, cli, write, monkeypatch):
    monkeypatch.setattr("blurrerank.report.sprites.MOST", 30)
    arrays = many(probes=40)
    images = {"probe_images": grey(40, first=120), "gallery_images": grey(LAST + 1)}
    feats = write(**arrays | images)
    page = visit(report(feats))
    told = cli("report", "lists.h5", feats, "-o", "report.html", "--force")[2]
    complete = int(re.search(r"only 30 pictures fit, \d+ were left out: the (\d+) probes", told)[1])
    assert complete >= 1
    assert f"{complete} probes that changed most have all their pictures" in page.inner_text("#probes")
    # The probes that changed most, in whichever direction, come first.
    changes = {}
    for number in (1, 2):
        page.fill(".pager [name=page]", str(number))
        page.keyboard.press("Enter")
        wait_for_count(page, f"page {number} of 2")
        changes |= dict(zip(shown(page), map(abs, as_numbers(column(page, "Change"))), strict=True))
    most = sorted(changes, key=lambda probe: (-changes[probe], probe))[:complete]
    for probe in most:
        page.fill("[name=name]", f"p{probe:03}")
        wait_for_count(page, "1 of 40 probes")
        body = page.query_selector("tbody[data-probe]")
        assert len(body.query_selector_all(".picture.drawn")) == 21


def test_the_heat_map_is_the_sweep(report, visit, cli, write):
    feats = write(**many())
    assert cli("sweep", feats, "--topn", "5,10,20", "--sigma", "0.05,0.5", "-o", "sweep.json")[0] == 0
    page = visit(report(feats, "--sweep", "sweep.json"))
    told = json.loads(Path("sweep.json").read_text())
    heads = [head.inner_text() for head in page.query_selector_all(".heatmap thead th")][1:]
    found = {}
    for row in page.query_selector_all(".heatmap tbody tr"):
        sigma = float(row.query_selector("th").inner_text())
        for topn, cell in zip(heads, row.query_selector_all("td"), strict=True):
            found[int(topn), sigma] = cell.inner_text().split()
    assert {setting: value[0] for setting, value in found.items()} == {
        (row["topn"], row["sigma"]): f"{row['mAP']:.4f}" for row in told["rows"]
    }
    best = told["best"]["mAP"]
    assert [setting for setting, value in found.items() if "best" in value] == [(best["topn"], best["sigma"])]
    other = write("other.h5", **features(seed=9))
    assert cli("run", other, "-o", "other.ranking.h5")[0] == 0
    code, _, err = cli("report", "other.ranking.h5", other, "--sweep", "sweep.json", "-o", "other.html")
    assert (code, len(err.splitlines())) == (1, 1)
    assert "the sweep was made from other features" in err
    # The same features under other labels: their mAP is another.
    other = write("labels.h5", **many() | {"probe_ids": np.roll(many()["probe_ids"], 1)})
    assert cli("run", other, "-o", "labels.ranking.h5")[0] == 0
    code, _, err = cli("report", "labels.ranking.h5", other, "--sweep", "sweep.json", "-o", "other.html")
    assert (code, len(err.splitlines())) == (1, 1)
    assert "the sweep was made from other ids or cameras" in err
    assert not Path("other.html").exists()


def test_what_cannot_be_reported_is_one_line(cli, write):
    feats = write(**many())
    assert cli("run", feats, "-o", "lists.h5")[0] == 0
    assert cli("report", "lists.h5", feats, "-o", "report.html")[0] == 0
    for arguments, code, said in (
        (("lists.h5", feats), 2, "Missing option '-o'"),
        (("lists.h5", feats, "-o", "report.html"), 1, "report.html exists: pass --force"),
        (("none.h5", feats, "-o", "new.html"), 1, "none.h5: no such file"),
        (("lists.h5", feats, "-o", "new.html", "--against", "none.h5"), 1, "none.h5: no such file"),
        (
            ("lists.h5", feats, "-o", "new.html", "--against", "-"),
            2,
            "--against cannot read from standard input: name",
        ),
        (("lists.h5", feats, "-o", "new.html", "--image-root", "nowhere"), 1, "nowhere is not a folder"),
        (("lists.h5", feats, "-o", "new.html", "--sweep", "lists.h5"), 2, "is written as .json or .csv"),
        (
            ("lists.h5", write("o.h5", **features(seed=8)), "-o", "new.html"),
            1,
            "use the features it was made from",
        ),
    ):
        found, out, err = cli("report", *arguments)
        assert (found, out, len(err.splitlines())) == (code, "", 1), err
        assert said in err
    assert not Path("new.html").exists()


def test_without_the_extras_an_error_names_them(cli, write, monkeypatch):
    feats = write(**many() | {"probe_images": grey(60), "gallery_images": grey(LAST + 1)})
    plain = write("plain.h5", **many())
    for name in (feats, plain):
        assert cli("run", name, "-o", f"{name.stem}.lists.h5")[0] == 0
    monkeypatch.setitem(sys.modules, "PIL", None)
    code, _, err = cli("report", "feats.lists.h5", feats, "-o", "report.html")
    assert (code, err) == (
        1,
        "error: pictures need Pillow, which is not installed: pip install 'blurrerank[report]'\n",
    )
    assert cli("report", "plain.lists.h5", plain, "-o", "report.html")[0] == 0, "tiles need nothing"
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    code, _, err = cli("plot", "plain.lists.h5", plain, "-o", "figure.png")
    assert (code, err) == (
        1,
        "error: figures need matplotlib, which is not installed: pip install 'blurrerank[plot]'\n",
    )


def test_a_real_set_fits(shared, cli, visit, tmp_path):
    feats = shared / "data/omniglot.h5"
    assert cli("run", feats, "-o", "lists.h5")[0] == 0
    code, _, err = cli("report", "lists.h5", feats, "-o", "report.html")
    assert code == 0
    assert "pictures of 11052 of 11052 images" in err
    assert (tmp_path / "report.html").stat().st_size < 15e6
    page = visit(tmp_path / "report.html")
    wait_for_count(page, "1,878 of 1,878 probes")
    cells = page.query_selector_all("[data-metric=mAP] td")
    assert [cell.inner_text() for cell in cells[:2]] == ["0.6464", "0.6927"]


# Figures for print


@pytest.mark.parametrize("figure", ["cmc", "ap", "sweep", "all"])
@pytest.mark.parametrize("ending", ["png", "pdf", "svg"])
def test_figures_are_what_their_endings_say(ending, figure, cli, write, tmp_path):
    feats = write(**many())
    assert cli("run", feats, "-o", "lists.h5")[0] == 0
    assert cli("sweep", feats, "--topn", "5,10", "--sigma", "0.1,0.5", "-o", "sweep.json")[0] == 0
    sweep = ("--sweep", "sweep.json") if figure in ("sweep", "all") else ()
    drawn = []
    for name in ("one", "two"):
        code, out, err = cli("plot", "lists.h5", feats, "-o", f"{name}.{ending}", "--figure", figure, *sweep)
        assert (code, out, err.splitlines()[-1]) == (0, "", f"wrote {name}.{ending}")
        drawn.append((tmp_path / f"{name}.{ending}").read_bytes())
    assert drawn[0] == drawn[1], "the same numbers give the same file"
    if ending == "png":
        with Image.open(tmp_path / "one.png") as image:
            assert image.format == "PNG"
            assert image.width > 1000
    elif ending == "pdf":
        assert drawn[0].startswith(b"%PDF-")
    else:
        tree = ElementTree.fromstring(drawn[0])
        text = " ".join(node.text or "" for node in tree.iter("{http://www.w3.org/2000/svg}text"))
        expected = {"cmc": ["rank k"], "ap": ["change of AP"], "sweep": ["mAP"]}
        for name, words in expected.items():
            assert all((word in text) == (figure in (name, "all")) for word in words), text
        if sweep:
            for row in json.loads(Path("sweep.json").read_text())["rows"]:
                assert f"{row['mAP']:.4f}" in text


@pytest.mark.parametrize("room", [2_000, 6_000, 10_000, 14_000])
@pytest.mark.parametrize("ending", ["png", "pdf", "svg"])
def test_no_room_for_a_figure(ending, room, cli, write, tmp_path):
    """A limit on the size of files stands for a full disk, which comes in the midst of what is drawn."""
    feats = write(**many())
    assert cli("run", feats, "-o", "lists.h5")[0] == 0
    figure = f"figure.{ending}"
    limit = partial(resource.setrlimit, resource.RLIMIT_FSIZE, (room, room))
    start = shell if (ending, room) == ("png", 2_000) else forked
    done = start("plot", "lists.h5", feats, "-o", figure, cwd=tmp_path, preexec_fn=limit)
    assert (done.returncode, done.stdout) == (1, "")
    assert re.fullmatch(rf"error: {figure} cannot be written: [^\n]*\n", done.stderr)
    assert sorted(child.name for child in tmp_path.iterdir()) == ["feats.h5", "lists.h5"]


def test_figures_that_cannot_be_drawn_are_one_line(cli, write):
    feats = write(**many())
    assert cli("run", feats, "-o", "lists.h5")[0] == 0
    without = write("without.h5", **many() | {"probe_ids": None})
    assert cli("run", without, "-o", "without.ranking.h5")[0] == 0
    for arguments, code, said in (
        (("lists.h5", feats, "-o", "f.gif"), 2, "figures need the extension .png, .pdf or .svg"),
        (("lists.h5", feats, "-o", "f.png", "--figure", "sweep"), 2, "the heat map needs a sweep"),
        (
            ("without.ranking.h5", without, "-o", "f.png"),
            1,
            "the probes have no ids: without metrics this figure cannot be drawn",
        ),
    ):
        found, out, err = cli("plot", *arguments)
        assert (found, out) == (code, "")
        assert said in err.splitlines()[-1]
    assert not Path("f.png").exists()
