"""An index is read through when it is opened for the first time, and when it was changed."""

from __future__ import annotations

import os

import h5py
import pytest
from conftest import features

import blurrerank as br
from blurrerank.files import mapped_h5
from blurrerank.index.gallery_index import GalleryIndex


@pytest.fixture
def index(tmp_path, monkeypatch):
    """An index of this user, who has opened nothing so far."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    br.build_index(features()["gallery"], tmp_path / "i.h5")
    return tmp_path / "i.h5"


@pytest.fixture
def checked(monkeypatch):
    """How many checksums were found so far."""
    found = []
    crc32 = mapped_h5.zlib.crc32
    monkeypatch.setattr(mapped_h5.zlib, "crc32", lambda *given: (found.append(1), crc32(*given))[1])
    return found


def checks(checked, **options):
    checked.clear()
    GalleryIndex.open(options.pop("path"), **options)
    return len(checked)


def test_it_is_read_through_once(index, checked):
    first = checks(checked, path=index)
    assert first > 5
    assert checks(checked, path=index) < 3  # of its attributes alone
    assert checks(checked, path=index, verify=True) == first
    assert checks(checked, path=index, verify=False) < 3


@pytest.mark.parametrize("change", ["touched", "replaced", "another user", "another place"])
def test_it_is_read_through_again_when_anything_changes(change, index, checked, tmp_path, monkeypatch):
    first = checks(checked, path=index)
    if change == "touched":
        os.utime(index)
    elif change == "replaced":
        copy = tmp_path / "copy.h5"
        copy.write_bytes(index.read_bytes())
        copy.rename(index)
    elif change == "another user":
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "other"))
    else:
        index.rename(tmp_path / "moved.h5")
        index = tmp_path / "moved.h5"
    assert checks(checked, path=index) == first


def test_damage_is_found_after_a_file_was_sound(index):
    GalleryIndex.open(index)
    with h5py.File(index, "r+") as file:
        file["features"][3, 3] += 1
    with pytest.raises(br.InputError, match="features does not match its checksum"):
        GalleryIndex.open(index)
    with pytest.raises(br.InputError, match="features does not match its checksum"):
        GalleryIndex.open(index)  # nothing was remembered of it


def test_without_a_place_to_remember_it_is_read_through_each_time(index, checked, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert checks(checked, path=index) == checks(checked, path=index) > 5
