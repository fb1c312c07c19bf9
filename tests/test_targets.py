"""Outputs in a place where others may write too. What kills and full disks do to files is in test_faults.py."""

import errno
import fcntl
import os
import stat
import subprocess
from contextlib import suppress
from pathlib import Path

import pytest
from conftest import features

import blurrerank as br
from blurrerank.files import targets
from blurrerank.files.sink import Sink
from blurrerank.files.targets import opener, replacing

ROOT = hasattr(os, "geteuid") and os.geteuid() == 0
as_root = pytest.mark.skipif(not ROOT, reason="only root can be somebody else")
OTHER = 1234


@pytest.fixture
def theirs(monkeypatch):
    """Give a folder to another user; where that cannot be done, be another oneself."""

    def theirs(folder: Path) -> None:
        if ROOT:
            os.chown(folder, OTHER, OTHER)
        else:
            monkeypatch.setattr(os, "geteuid", lambda: OTHER)

    return theirs


@pytest.fixture(params=["locks", "no locks"])
def locks(request, monkeypatch):
    def flock(*_):
        raise OSError(errno.ENOSYS, "no locks")

    if request.param == "no locks":
        monkeypatch.setattr(fcntl, "flock", flock)


def write(path: Path, text: str, *, force: bool = False) -> None:
    with replacing(path, force=force) as temporary, open(temporary, "w", opener=opener) as file:
        file.write(text)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@as_root
def test_who_makes_the_folder_first_gains_nothing(tmp_path, cli):
    """In a folder such as /tmp, and with a file to replace that is theirs as well."""
    br.save_features(br.FeatureSet.from_arrays(**features(probes=5, gallery=20)), tmp_path / "feats.h5")
    shared = tmp_path / "shared"
    shared.mkdir()
    shared.chmod(0o1777)
    subprocess.run(
        ["/bin/sh", "-c", "umask 0; mkdir .out.csv.blurrerank; echo theirs > out.csv"],
        cwd=shared,
        user=OTHER,
        group=OTHER,
        extra_groups=[],
        check=True,
    )
    for more in ((), ("--force",), ("--force", "--resume")):
        code, out, err = cli("run", "feats.h5", "-q", "-o", "shared/out.csv", *more)
        assert (code, out, err.count("\n")) == (1, "", 1)
    who = "belongs to another user, who may be writing it"
    assert err.endswith(f"/.out.csv.blurrerank {who}: wait, have it removed, or choose another name\n")
    assert names(shared) == [".out.csv.blurrerank", "out.csv"]
    assert names(shared / ".out.csv.blurrerank") == []
    # What is theirs keeps nobody from writing other files, and is not swept.
    assert cli("run", "feats.h5", "-q", "-o", "shared/other.csv")[0] == 0
    assert names(shared) == [".out.csv.blurrerank", "other.csv", "out.csv"]


def test_what_another_user_left_is_neither_used_nor_removed(theirs, tmp_path):
    folder = tmp_path / ".out.blurrerank"
    folder.mkdir()
    for name in ("kept.json", "kept-0.npz", "lock", "output"):
        (folder / name).write_text("theirs")
    assert set(targets.what_is_kept(tmp_path / "out")) == {"kept.json", "kept-0.npz"}
    theirs(folder)
    assert targets.what_is_kept(tmp_path / "out") == {}
    with pytest.raises(br.OutputError, match="belongs to another user"):
        write(tmp_path / "out", "ours", force=True)
    write(tmp_path / "other", "ours")
    assert names(folder) == ["kept-0.npz", "kept.json", "lock", "output"]


def test_a_file_in_the_place_of_the_folder_is_refused(tmp_path):
    (tmp_path / ".out.blurrerank").write_text("precious")
    with pytest.raises(br.OutputError, match=r"\.out\.blurrerank is not a folder; remove it$"):
        targets.check_target(tmp_path / "out", force=True)
    assert (tmp_path / ".out.blurrerank").read_text() == "precious"


def test_where_all_that_is_made_belongs_to_nobody_files_are_written(tmp_path, monkeypatch):
    """As on network file systems that do not trust root."""
    monkeypatch.setattr(os, "geteuid", lambda: OTHER)
    write(tmp_path / "out", "ours")
    assert names(tmp_path) == ["out"]


@pytest.mark.parametrize("put", ["link", "hard link", "file", "nothing"])
def test_what_is_put_in_the_place_of_a_temporary_is_not_published(put, locks, tmp_path):
    """By somebody who may rename what is in the place, and the folder with it."""
    (tmp_path / "private").write_text("precious")
    (tmp_path / "private").chmod(0o600)
    (tmp_path / "out").write_text("old")
    (tmp_path / "out").chmod(0o666)
    if ROOT:
        os.chown(tmp_path / "out", OTHER, OTHER)
    with (
        pytest.raises(br.OutputError, match="cannot be written"),
        replacing(tmp_path / "out", force=True) as file,
    ):
        file.unlink()
        if put == "link":
            file.symlink_to(tmp_path / "private")
            with pytest.raises(OSError, match="symbolic links"):
                open(file, "w", opener=opener)  # noqa: SIM115
            with pytest.raises(OSError, match="symbolic links"):
                Sink(file)
        elif put == "hard link":
            os.link(tmp_path / "private", file)
        elif put == "file":
            file.write_text("theirs")
    assert names(tmp_path) == ["out", "private"]
    assert (tmp_path / "out").read_text() == "old"
    assert (tmp_path / "private").read_text() == "precious"
    private = (tmp_path / "private").stat()
    assert (private.st_uid, stat.S_IMODE(private.st_mode)) == (os.geteuid(), 0o600)


def test_a_temporary_is_made_where_there_is_none(tmp_path, monkeypatch):
    """Not by way of a link, nor over what is there."""
    (tmp_path / "private").write_text("precious")
    monkeypatch.setattr(targets, "_clear", lambda *_, **__: None)
    folder = tmp_path / ".out.blurrerank"
    folder.mkdir()
    for put in (folder.joinpath("output").touch, lambda: (folder / "output").symlink_to(tmp_path / "private")):
        with suppress(FileNotFoundError):
            (folder / "output").unlink()
        put()
        with pytest.raises(br.OutputError, match="File exists"):
            write(tmp_path / "out", "ours")
    (folder / "output").unlink()
    (folder / "lock").unlink(missing_ok=True)
    (folder / "lock").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(br.OutputError):
        write(tmp_path / "out", "ours")
    assert names(tmp_path) == [".out.blurrerank", "private"]
    assert (tmp_path / "private").read_text() == "precious"


@pytest.mark.parametrize("umask", [0o022, 0o027, 0o077, 0o002])
@pytest.mark.parametrize("force", [False, True])
def test_a_new_file_has_the_ordinary_permissions_and_its_temporary_none(umask, force, locks, tmp_path):
    before = os.umask(umask)
    try:
        with replacing(tmp_path / "out", force=force) as temporary:
            assert mode(temporary) == 0o600
            assert mode(temporary.parent) == 0o700
            assert names(temporary.parent) == sorted(["lock", temporary.name])
    finally:
        os.umask(before)
    assert mode(tmp_path / "out") == 0o666 & ~umask
    assert names(tmp_path) == ["out"]


def test_a_file_that_is_replaced_keeps_its_mode_but_does_not_run_as_its_owner(tmp_path, monkeypatch):
    """The owner comes first: with the mode first, others could read it while it is this user's."""
    done = []
    for name in ("fchown", "fchmod"):
        call = getattr(os, name)
        monkeypatch.setattr(os, name, lambda *given, call=call, name=name: (done.append(name), call(*given)))
    (tmp_path / "out").write_text("old")
    (tmp_path / "out").chmod(0o6754)
    write(tmp_path / "out", "new", force=True)
    assert mode(tmp_path / "out") == 0o754
    assert done == ["fchown", "fchown", "fchmod"]


def test_a_file_whose_owner_cannot_be_set_is_written(tmp_path, monkeypatch):
    def refused(*_):
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "fchown", refused)
    (tmp_path / "out").write_text("old")
    (tmp_path / "out").chmod(0o640)
    write(tmp_path / "out", "new", force=True)
    assert mode(tmp_path / "out") == 0o640
    monkeypatch.setattr(os, "fchmod", refused)
    write(tmp_path / "out", "newer", force=True)
    assert mode(tmp_path / "out") == 0o600
    assert (tmp_path / "out").read_text() == "newer"


def test_a_lock_that_was_taken_away_meanwhile_is_none(tmp_path, monkeypatch):
    """Whoever had it removed it on leaving, and a third has made it again."""
    flock, third = fcntl.flock, []
    monkeypatch.setattr(targets, "_PAUSE", 0.0)

    def late(lock, how):
        if not third:
            path = tmp_path / ".out.blurrerank/lock"
            path.unlink()
            third.append(open(path, "w"))  # noqa: SIM115
            flock(third[0], fcntl.LOCK_EX)
        flock(lock, how)

    monkeypatch.setattr(fcntl, "flock", late)
    with pytest.raises(br.OutputError, match="is being written by another process"):
        write(tmp_path / "out", "ours")
    third[0].close()


def test_a_signal_leads_into_no_folder_but_ones_own(tmp_path, monkeypatch):
    def mkdir(*_):
        raise KeyboardInterrupt

    (tmp_path / "private").mkdir()
    (tmp_path / "private/lock").write_text("precious")
    (tmp_path / ".out.blurrerank").symlink_to("private")
    monkeypatch.setattr(os, "mkdir", mkdir)
    with pytest.raises(KeyboardInterrupt):
        targets.check_target(tmp_path / "out", force=True)
    assert (tmp_path / "private/lock").read_text() == "precious"


def test_a_sink_writes_all_though_the_system_takes_a_part_at_a_time(tmp_path, monkeypatch):
    write = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda number, data, place: write(number, data[:7], place))
    with Sink(tmp_path / "file") as sink:
        assert sink.write(bytes(range(100))) == 100
        sink.check()
    assert (tmp_path / "file").read_bytes() == bytes(range(100))


def test_a_sink_reads_zeros_where_it_could_not_write(tmp_path, monkeypatch):
    """HDF5 reads what it wrote, and must not find what lay in the memory."""

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with Sink(tmp_path / "file") as sink:
        sink.write(b"some")
        monkeypatch.setattr(os, "pwrite", full)
        sink.write(b"more")
        sink.seek(0)
        into = bytearray(b"\xff" * 10)
        assert sink.readinto(into) == 8
        assert into == b"some\0\0\0\0\xff\xff"
        with pytest.raises(OSError, match="No space left"):
            sink.check()
