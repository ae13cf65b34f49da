"""A disk that fails now and then: every error is a typed one, nothing acknowledged is lost, and the store goes on."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

import treering

from . import power
from .test_power import check

ROOT = Path(__file__).parents[2]

#: What fails, with which error, and which call of it is the first to.
CALLS = {
    "sync": ("fsync,fdatasync", "EIO", 7),
    # Not write(2): its failing on an event descriptor hangs any runtime. `test_disk_full` makes every write of a file fail.
    "write": ("pwrite64", "EIO", 20),
    "space": ("pwrite64", "ENOSPC", 25),
    "name": ("link,linkat,rename,renameat,renameat2", "EIO", 3),
    "folder": ("mkdir,mkdirat,unlink,unlinkat", "EIO", 9),
}


@pytest.fixture(scope="module", autouse=True)
def injector() -> None:
    if why := power.can_trace():
        pytest.skip(f"NO FAILING DISK IS TESTED: {why}")


def fail(tmp_path: Path, kind: str, *, first: int, step: int, rounds: int) -> tuple[int, Counter[str]]:
    """Run the worker with every `step`th of some calls failing; (how many failed, codes of the errors that it met)."""
    calls, error, start = CALLS[kind]
    where = tmp_path / f"{kind}-{first}-{step}"
    treering.open(where).create("support", "labelled")
    trace = where.with_suffix(".trace")
    command = ["strace", "-f", "-qq", "-o", str(trace), "-e", f"trace={calls}", "-e", "signal=none", "--seccomp-bpf"]
    command += ["-e", f"inject={calls}:error={error}:when={start + first}+{step}"]
    command += [sys.executable, "-B", "-m", "tests.crash.io_worker", str(where), str(rounds)]
    done = subprocess.run(command, cwd=ROOT, env={**os.environ, "RUST_BACKTRACE": "0"}, capture_output=True, timeout=120)  # fmt: skip
    said = [json.loads(line) for line in done.stdout.decode("utf-8", "replace").splitlines() if line.endswith("}")]
    assert [line for line in said if "untyped" in line] == []
    failed = len(re.findall(r"\(INJECTED\)", trace.read_text("ascii", "replace")))
    try:
        check(treering.open(where, create=False), said)
    except BaseException as exc:
        exc.add_note(f"{kind}: every {step}th from {start + first}, {failed} failed; {done.stderr[-2000:]!r}")
        raise
    return failed, Counter(line["error"] for line in said if "error" in line)


@pytest.mark.parametrize(
    ("kind", "first", "step"), [("sync", 0, 29), ("write", 3, 37), ("name", 0, 11), ("folder", 0, 13)]
)
def test_calls_that_fail_end_in_typed_errors_and_lose_nothing_acknowledged(
    tmp_path: Path, kind: str, first: int, step: int
) -> None:
    failed, _ = fail(tmp_path, kind, first=first, step=step, rounds=3)
    assert failed >= 3


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("kind", sorted(CALLS))
def test_sixty_failing_calls_of_each_kind(tmp_path: Path, kind: str) -> None:
    total, first = 0, 0
    while total < 60:
        failed, _ = fail(tmp_path, kind, first=first, step=11 + 2 * (first % 7), rounds=5)
        total, first = total + failed, first + 1
