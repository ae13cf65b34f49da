"""A full disk: a typed error, nothing acknowledged lost, and all goes on once there is room."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

import treering

from .test_power import check

WORKER = Path(__file__).with_name("disk_worker.py")


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A small file system of its own."""
    where = tmp_path / "disk"
    where.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=24m,mode=0755", "treering-test", str(where)]
    if os.name != "posix" or subprocess.run(mount, capture_output=True, check=False).returncode != 0:
        pytest.skip("NO FULL DISK IS TESTED: a tmpfs can't be mounted here (it takes root)")
    yield where
    subprocess.run(["umount", "-l", str(where)], check=True)


def fill(disk: Path, counts: list[int], timeout: int) -> Counter[str]:
    """Codes of the errors met with each of these numbers of free pages."""
    shutil.rmtree(disk / "store", ignore_errors=True)
    treering.open(disk / "store").create("support", "labelled")
    command = [sys.executable, str(WORKER), str(disk / "store"), json.dumps(counts)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    said = [json.loads(line) for line in done.stdout.splitlines()]
    assert said[-1] == {"ended": True}
    assert [line for line in said if "untyped" in line] == []
    check(treering.open(disk / "store", create=False), said)
    return Counter(line["error"] for line in said if "error" in line)


def test_on_a_full_disk_nothing_acknowledged_is_lost_and_all_goes_on_once_there_is_room(disk: Path) -> None:
    errors = fill(disk, [0, 1, 3, 8, 16, 24, 32, 40, 64, 128], timeout=120)
    assert errors.total() >= 10


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_every_number_of_free_pages_up_to_256(disk: Path) -> None:
    errors: Counter[str] = Counter()
    for low in range(0, 257, 32):  # a store of its own for each stretch: what is sealed stays, and the disk is small
        errors += fill(disk, list(range(low, min(low + 32, 257))), timeout=300)
    assert errors.total() >= 100
