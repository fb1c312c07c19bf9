"""The documentation site: built strictly, and every link of README leads somewhere."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest
from conftest import ROOT

import blurrerank as br

pytest.importorskip("mkdocs")


def test_the_site_builds_without_a_warning(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", tmp_path / "site"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    library = (tmp_path / "site/library/index.html").read_text()
    absent = [name for name in br.__all__ if name != "__version__" and f'id="blurrerank.{name}"' not in library]
    assert not absent
    home = (tmp_path / "site/index.html").read_text()
    assert not re.findall(r'(?:src|href)="https?://(?:fonts|cdn|unpkg)', home), "the site needs no other host"


def headings(page):
    """The anchors of a document, as GitHub makes them."""
    found = re.findall(r"^#+ (.*)$", page, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-") for text in found}


def test_the_links_of_the_readme_lead_somewhere():
    readme = (ROOT / "README.md").read_text()
    links = re.findall(r"\]\((?!https?://)([^)#]*)(?:#([^)]*))?\)", readme)
    assert len(links) > 10
    for path, anchor in links:
        page = ROOT / (path or "README.md")
        assert page.exists(), path
        assert not anchor or anchor in headings(page.read_text()), f"{path}#{anchor}"
