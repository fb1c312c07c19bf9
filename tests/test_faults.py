"""Kills, full disks, writers that meet, and damaged files: some cases of each.

`make faults` and `make fuzz` run many. A failure says what repeats it; SEED of the environment sets which.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import counting
import pytest

HERE = Path(__file__).parent
SEED = os.environ.get("SEED", "0")


def cases(program: str, *arguments: object) -> dict:
    """Run a program of cases; what it found."""
    found = subprocess.run(
        [sys.executable, HERE / program, *map(str, arguments), "--seed", SEED],
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert found.stdout.startswith("{"), found.stderr[-2000:]
    told = json.loads(found.stdout)
    kind = program.removesuffix(".py") if arguments[0] == "--cases" else str(arguments[0])
    counting.add(f"{kind}, seed {SEED}", told["cases"])
    if told["missed"]:
        counting.add(f"{kind}, that were to be and did not come about", told["missed"])
    assert told["failures"] == []
    return told


def can_mount() -> bool:
    """Whether file systems can be mounted, out of sight of everybody else."""
    command = ["unshare", "--map-root-user", "--mount", "mount", "-t", "tmpfs", "tmpfs", "/mnt"]
    try:
        return subprocess.run(command, capture_output=True).returncode == 0
    except FileNotFoundError:
        return False


@pytest.mark.skipif(sys.platform != "linux", reason="kills are timed by what Linux tells")
def test_kills_leave_the_old_file_or_the_new():
    told = cases("faults.py", "kills", "--cases", 8)
    outcomes = {outcome for counts in told["outcomes"].values() for outcome in counts}
    # Which moments come after the end is the machine's to say.
    assert {"as before"} <= outcomes <= {"as before", "complete", "ended before the signal"}
    assert told["cases"] == 8


def test_a_full_disk_leaves_the_old_file_or_the_new():
    if not can_mount():
        said = "no file system can be mounted here: unshare --map-root-user --mount is refused"
        if os.environ.get("CI"):
            pytest.fail(said)
        pytest.skip(said)
    told = cases("faults.py", "full-disk", "--cases", 8)
    assert sum(counts.get("as before", 0) for counts in told["outcomes"].values()) == told["cases"] == 8


@pytest.mark.skipif(sys.platform != "linux", reason="as above")
def test_of_writers_that_meet_one_wins():
    told = cases("faults.py", "meetings", "--cases", 5)
    assert told["cases"] == 5


@pytest.mark.skipif(sys.platform != "linux", reason="memory is told by Linux")
def test_damaged_files_are_read_or_refused_in_one_line():
    told = cases("fuzzing.py", "--cases", 5)
    assert sum(counts.get("read", 0) for counts in told["outcomes"].values()) > 25
