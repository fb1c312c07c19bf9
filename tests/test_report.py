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

    def visit(path: Path, **options: Any) -> Page:
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
        page.goto(address)
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
        assert change.replace("−", "-") == f"{other - one:+.4f}"
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
}))"""


def test_strips_and_frames_are_what_the_labels_say(report, visit, write):
    """Lists before by a product in float64, lists after as the file has them, frames from the labels."""
    arrays = many()
    page = visit(report(write(**arrays)))
    unit = {}
    for side in ("probe", "gallery"):
        rows = arrays[side].astype(np.float64)
        unit[side] = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    before = np.argsort(-(unit["probe"] @ unit["gallery"].T), axis=1, kind="stable")[:, :10]
    with h5py.File("lists.h5") as file:
        after = file["indices"][:, :10]
    seen = set()
    for body in page.query_selector_all("tbody[data-probe]"):
        probe = int(body.get_attribute("data-probe"))
        for name, lists in (("before", before), ("after", after)):
            tiles = body.eval_on_selector_all(f".strip.{name}-strip li", TILES)
            assert len(tiles) == 10
            for rank, (tile, item) in enumerate(zip(tiles, lists[probe], strict=True), start=1):
                identity, camera = arrays["gallery_ids"][item], arrays["gallery_cams"][item]
                if identity == -1:
                    kind, sign, said = "junk", "–", "junk"
                elif identity != arrays["probe_ids"][probe]:
                    kind, sign, said = "wrong", "✗", "wrong identity"
                elif camera == arrays["probe_cams"][probe]:
                    kind, sign, said = "dropped", "–", "dropped, same identity and camera"
                else:
                    kind, sign, said = "right", "✓", "right identity"
                seen.add(kind)
                name_of = arrays["gallery_names"][item]
                label = f"rank {rank}, {said}, identity {identity}, camera {camera}, {name_of}"
                assert tile == {"class": f"tile {kind}", "mark": sign, "label": label}
    assert seen == {"right", "wrong", "dropped", "junk"}


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
    assert all(change < 0 for change in as_numbers(column(page, "Change")))
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
    const text = 'h1, h2, p, td, th, li, label, button, dt, dd, .mark, .caption, strong';
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
    ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (int(re.findall(r"\d+", ground)[0]) > 128) == (scheme == "light")
    assert page.evaluate(CONTRAST) == []


@pytest.mark.parametrize("width", [380, 1200])
def test_nothing_is_wider_than_the_window(width, report, visit, write):
    page = visit(report(write(**many())), viewport={"width": width, "height": 800})
    assert page.evaluate("document.scrollingElement.scrollWidth") <= width


HOSTILE = "</script><img src=x onerror=alert(1)>\"'&<!--${title}"


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
    assert page.title() == f"blurrerank report: {HOSTILE}"
    assert page.text_content("h1") == f"{HOSTILE} against cosine"
    assert f"after: {HOSTILE}" in [node.text_content() for node in page.query_selector_all("#cmc text")]


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
        expected = {"cmc": ["rank k"], "ap": ["change of AP"], "sweep": ["sigma", "topn"]}
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
