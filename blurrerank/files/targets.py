"""Write files atomically: a file appears complete, or not at all.

While `NAME` is written, there is a work folder `.NAME.blurrerank` beside it, with a lock that the system
releases however the process ends. If the process is killed, the folder remains; the next process that writes a
file in the same place removes it, unless it has partial results that a run can resume from.

In a folder that others can write to, another user may have created the work folder first, and would own what is
written in it. It is therefore used only if it belongs to this user; nobody else can read it, and only a file
created there is renamed to the target.
"""

from __future__ import annotations

import errno
import hashlib
import os
import secrets
import shutil
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ..errors import OutputError

try:
    import fcntl
except ImportError:  # not on Windows
    fcntl = None  # type: ignore[assignment]

_SUFFIX, _LOCK, _OUTPUT = ".blurrerank", "lock", "output"
KEPT = "kept"
"""Prefix of the files with partial results: `kept.json` describes the run; the results are in `kept-...`."""

# Bytes of a name to which the suffix can be added: systems take 255.
_LONGEST = 240

# Seconds, and how often, to wait for a lock: others may only look whether it can be had.
_PAUSE, _ATTEMPTS = 0.05, 6
# What systems say that have no such locks.
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)
# Windows has no such flag.
_NO_LINK = getattr(os, "O_NOFOLLOW", 0)
# Make a file where there is none, not by a link either.
_MAKE = os.O_RDWR | os.O_CREAT | os.O_EXCL | _NO_LINK


def check_target(path: Path, *, force: bool, resume: bool = False) -> None:
    """Check that a target can be written, before any work is done for it.

    Args:
        path: the file.
        force: replace an existing file and discard partial results of an interrupted run.
        resume: use partial results of an interrupted run.

    Raises:
        OutputError: if the folder is missing or read-only, if the file exists without `force`, if there are
            partial results without `force` or `resume`, or if another process is writing it.
    """
    target = _resolved(path)
    parent = target.parent if path.is_symlink() else path.parent
    if not parent.is_dir():
        raise OutputError(f"{path}: the folder {parent} does not exist; create it first")
    if path.is_dir():
        raise OutputError(f"{path} is a folder: name a file in it")
    if path.exists() and not path.is_file():
        raise OutputError(f"{path} is not a regular file: write to standard output with -o - and redirect it")
    if resume and path.exists() and not force and not what_is_kept(path):
        raise OutputError(
            f"{path} exists, and there are no partial results to resume: pass --force to replace it"
        )
    _check_free(path, force)
    if not os.access(parent, os.W_OK):
        raise OutputError(f"{path}: the folder {parent} is read-only; choose another with -o")
    folder = work_folder(path)
    if os.path.lexists(folder):
        with _claimed(folder, path):
            if _kept(folder) and not (force or resume):
                raise OutputError(
                    f"{path}: an interrupted run left partial results; pass --resume to continue from them, or "
                    "--force to start over"
                )


def _check_free(path: Path, force: bool) -> None:
    if path.exists() and not force:
        raise OutputError(f"{path} exists: pass --force (force=True) to replace it, or choose another name")


def work_folder(path: Path) -> Path:
    """Return the work folder for `path`; for a symbolic link, it is beside the link's target."""
    target = _resolved(path)
    name = os.fsencode(target.name)
    known = target.name if len(name) <= _LONGEST else hashlib.sha256(name).hexdigest()
    return target.with_name(f".{known}{_SUFFIX}")


def _resolved(path: Path) -> Path:
    try:
        found = path.resolve()
        if not found.is_symlink():
            return found
    except PermissionError as error:
        raise OutputError(f"{path} cannot be written: {error.strerror}") from error
    except (OSError, RuntimeError) as error:  # RuntimeError before Python 3.13, and from then on a link
        if isinstance(error, OSError) and error.errno == errno.ENAMETOOLONG:
            raise OutputError(f"{path} cannot be written: its name is too long") from error
    raise OutputError(f"{path} is a broken link: remove it, or choose another name")


@contextmanager
def replacing(
    path: Path, *, force: bool, resume: bool = False, then: Callable[[], None] = lambda: None
) -> Iterator[Path]:
    """Yield a temporary path that is renamed to `path` if the block succeeds, and removed otherwise.

    It is in `work_folder(path)`, where the block may store further files with the prefix `KEPT`; these remain
    if the block fails. For a symbolic link, the link's target is replaced.

    The temporary file exists and is empty: the block must open it with `opener`, and not replace it.

    Args:
        path: the file.
        force: replace an existing file.
        resume: keep the partial results of an interrupted run for the block; otherwise they are removed.
        then: called when the file is there, before anybody else may replace it.

    Raises:
        OutputError: as `check_target`; if `path` was created meanwhile; if writing fails, as on a full disk.
    """
    check_target(path, force=force, resume=resume)
    target, folder = _resolved(path), work_folder(path)
    try:
        _sweep(target.parent, but=folder)
        with _claimed(folder, path) as locked:
            _check_free(path, force)  # whoever had the lock until now may have written it
            # Where there are no locks others may be at work here, who see from the file that somebody is.
            temporary = folder / (_OUTPUT if locked else f"{_OUTPUT}-{secrets.token_hex(8)}")
            _clear(folder, temporary.name, keep=resume)
            try:
                with _opened(temporary, _MAKE, 0o600) as number:
                    mode = _ordinary_mode(folder)
                    yield temporary
                    if not os.path.samestat(temporary.lstat(), os.fstat(number)):
                        raise OutputError(
                            f"{path} cannot be written: {temporary} was replaced by something else; "
                            "choose a folder that only you can write to"
                        )
                    os.fsync(number)
                    _set_owner_and_mode(number, target if force else None, mode)
                if force:
                    os.replace(temporary, target)
                else:
                    _publish(temporary, target)
                # The names in the folder too; not all systems know how to flush one.
                with suppress(OSError), _opened(target.parent, os.O_RDONLY) as number:
                    os.fsync(number)
                then()
            except BaseException:
                _clear(folder, temporary.name, keep=True)
                raise
            _clear(folder, temporary.name, keep=False)
    except OSError as error:
        raise OutputError(f"{path} cannot be written: {error.strerror or error}") from error


def second_name(path: Path, name: Path, temporary: Path) -> None:
    """Give the file at `path` a second name, or make a copy of that name where files cannot have two.

    Args:
        path: the file.
        name: the other name, in the same folder.
        temporary: what `replacing` yields, for `path`.

    Raises:
        OutputError: if another file has the name.
    """
    source, link = _resolved(path), temporary.with_name(f"{temporary.name}-link")
    if os.path.lexists(name) and not os.path.samestat(name.lstat(), source.lstat()):
        raise OutputError(
            f"{name} exists, but {path} needs this name to store its current content: move it away"
        )
    try:
        os.link(source, link)
    except OSError:  # a file system without hard links, or a rule against them
        with source.open("rb") as old, open(link, "xb", opener=opener) as new:
            shutil.copyfileobj(old, new, 1 << 20)
            new.flush()
            _set_owner_and_mode(new.fileno(), source, 0o600)
            os.fsync(new.fileno())
    os.replace(link, name)


def opener(path: str | Path, flags: int) -> int:
    """Open the temporary file of `replacing`, for use with `open`; it refuses symbolic links."""
    return os.open(path, flags | _NO_LINK, 0o600)


@contextmanager
def _opened(path: Path, flags: int, mode: int = 0) -> Iterator[int]:
    """The number of an open file."""
    number = os.open(path, flags, mode)
    try:
        yield number
    finally:
        os.close(number)


def _ordinary_mode(folder: Path) -> int:
    """Who may read a new file. To ask for the umask is to set it, for all threads: a file tells it, too."""
    path = folder / f"{_OUTPUT}-{secrets.token_hex(8)}"
    try:
        with _opened(path, _MAKE, 0o666) as number:
            return os.fstat(number).st_mode & 0o777
    finally:
        path.unlink(missing_ok=True)


def _set_owner_and_mode(number: int, old: Path | None, mode: int) -> None:
    """Let those read an open file who could read the `old` one; if there is none, those `mode` names."""
    # Windows has no owners, and may not know `fchmod`. Where the mode cannot be set, it stays this user's.
    with suppress(OSError, AttributeError):
        with suppress(FileNotFoundError):
            if old is not None:
                found = old.lstat()
                mode = found.st_mode & 0o777  # what is written now is no program that runs as its owner
                # Only some may give a file away, but most to a group of theirs.
                with suppress(OSError):
                    os.fchown(number, -1, found.st_gid)
                    os.fchown(number, found.st_uid, -1)
        os.fchmod(number, mode)


def _publish(temporary: Path, path: Path) -> None:
    """Give the file its name unless another process took it meanwhile."""
    try:
        os.link(temporary, path)
    except OSError as error:
        if isinstance(error, FileExistsError) or path.exists():
            raise OutputError(f"{path} was written by another process meanwhile; choose another name") from None
        os.replace(temporary, path)  # on a file system without hard links


@contextmanager
def _claimed(folder: Path, path: Path, attempts: int = _ATTEMPTS) -> Iterator[bool]:
    """Hold the lock of `folder`, which is made if it is not there and goes when it is empty; False where the
    system has no locks.
    """
    lock = None
    try:
        for attempt in range(attempts):
            if attempt:
                time.sleep(_PAUSE)
            # Whoever had it may be done just now, and take the folder away.
            with suppress(FileNotFoundError):
                try:
                    # Some network file systems give all that is made to nobody: what was made just now is ours.
                    os.mkdir(folder, 0o700)
                except FileExistsError:
                    why = _why_not_ours(folder)
                    if why:
                        raise OutputError(f"{path} cannot be written: {folder} {why}") from None
                lock = _lock(folder)
            if lock is not None:
                break
    except OSError as error:
        raise OutputError(f"{path} cannot be written: {folder}: {error.strerror}") from error
    except (KeyboardInterrupt, SystemExit):
        with suppress(OSError):
            if lock is None and not _why_not_ours(folder):
                lock = _lock(folder)
            if lock is not None:
                _let_go(folder, lock[0])
        raise
    if lock is None:
        raise OutputError(f"{path} is being written by another process: wait for it, or choose another name")
    try:
        yield lock[1]
    finally:
        _let_go(folder, lock[0])


def _let_go(folder: Path, lock: int) -> None:
    """Close the lock, and take the folder away if nothing else is in it."""
    with suppress(OSError):  # somebody is there already
        if os.listdir(folder) == [_LOCK]:
            (folder / _LOCK).unlink()
            folder.rmdir()
    os.close(lock)


def _why_not_ours(folder: Path) -> str | None:
    """What is wrong with a folder if it is none that this user made; None if nothing is."""
    found = folder.lstat()
    if stat.S_ISLNK(found.st_mode):
        return "is a link; remove it"
    if not stat.S_ISDIR(found.st_mode):
        return "is not a folder; remove it"
    if hasattr(os, "geteuid") and found.st_uid != os.geteuid():
        return "belongs to another user, who may be writing it: wait, have it removed, or choose another name"
    return None


def _lock(folder: Path) -> tuple[int, bool] | None:
    """The open lock of a folder, held until it is closed, and whether the system has such locks; None if
    another process holds it. A `FileNotFoundError` says that it was removed meanwhile.
    """
    lock = os.open(folder / _LOCK, os.O_RDWR | os.O_CREAT | _NO_LINK, 0o600)
    locked = fcntl is not None
    try:
        if fcntl is not None:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(lock)
                return None
            except OSError as error:
                if error.errno not in _NO_LOCKS:
                    raise
                locked = False
        if os.stat(folder / _LOCK).st_ino != os.fstat(lock).st_ino:
            raise FileNotFoundError
    except BaseException:
        with suppress(OSError):
            os.close(lock)
        raise
    return lock, locked


def _sweep(place: Path, but: Path) -> None:
    """Remove what processes left in `place` that did not come to their end."""
    if fcntl is None:
        return
    for name in os.listdir(place):
        folder = place / name
        if not (name.startswith(".") and name.endswith(_SUFFIX)) or folder == but:
            continue
        # What cannot be looked at, or is somebody else's, is not ours to remove.
        with suppress(OSError, OutputError):
            if _why_not_ours(folder):
                continue
            if not os.listdir(folder):
                folder.rmdir()  # it was killed before it had a lock, or makes the folder again
            elif (folder / _LOCK).is_file():
                with _claimed(folder, folder, attempts=1) as locked:
                    if locked:
                        _clear(folder, _OUTPUT, keep=True)


def what_is_kept(path: Path) -> dict[str, int]:
    """Return the partial results for `path`: file name -> modification time in nanoseconds."""
    folder = work_folder(path)
    # Somebody else's is told where the file is to be written.
    if not os.path.lexists(folder) or _why_not_ours(folder) or not _kept(folder):
        return {}
    return {file.name: file.stat().st_mtime_ns for file in folder.iterdir() if file.name.startswith(KEPT)}


def _kept(folder: Path) -> bool:
    names = os.listdir(folder)
    return f"{KEPT}.json" in names and any(name.startswith(f"{KEPT}-") for name in names)


def _clear(folder: Path, output: str, *, keep: bool) -> None:
    """Remove what was being written, and unless that is to `keep`, what a run can go on from."""
    kept = (f"{KEPT}-", f"{KEPT}.json")
    ours = tuple(f".{name}" for name in kept) + (() if keep and _kept(folder) else kept)
    if output == _OUTPUT:
        ours += (f"{_OUTPUT}-",)
    for name in os.listdir(folder):
        path = folder / name
        if name != output and not name.startswith(ours):
            continue
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()
