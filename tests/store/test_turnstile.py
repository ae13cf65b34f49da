"""Writers pass side by side; whoever closes the turnstile is alone, and comes to be so however many come and go."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

import treering
from tests.erasing import SCHEMA, record
from treering.errors import ConflictError
from treering.store.turnstile import Turnstile

HOLDER = """
import sys, time
from pathlib import Path
from treering.store.turnstile import Turnstile
with Turnstile(Path(sys.argv[1])).passed():
    print("inside", flush=True)
    sys.stdin.readline()
"""


def test_those_inside_are_many_and_whoever_closes_it_is_alone(tmp_path: Path) -> None:
    inside, most, alone_with, stop = 0, 0, [], threading.Event()
    count = threading.Lock()

    def come_and_go() -> None:
        nonlocal inside, most
        while not stop.is_set():
            with Turnstile(tmp_path / "table").passed():
                with count:
                    inside += 1
                    most = max(most, inside)
                time.sleep(0.002)
                with count:
                    inside -= 1

    threads = [threading.Thread(target=come_and_go) for _ in range(6)]
    for thread in threads:
        thread.start()
    for _ in range(10):  # one lock alone would never let anybody be alone among so many
        with Turnstile(tmp_path / "table").closed(20.0):
            alone_with.append(inside)
            time.sleep(0.005)
            alone_with.append(inside)
    stop.set()
    for thread in threads:
        thread.join()
    assert alone_with == [0] * 20
    assert most > 1


def test_another_process_inside_is_waited_for_and_a_dead_one_is_not(tmp_path: Path) -> None:
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path / "table")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == "inside\n"
    with pytest.raises(ConflictError, match="committing to table") as error, Turnstile(tmp_path / "table").closed(0.2):
        pass
    assert error.value.code == "writers-inside"
    holder.kill()
    holder.wait()
    with Turnstile(tmp_path / "table").closed(5.0):
        pass


def test_without_a_path_everybody_passes() -> None:
    with Turnstile(None).passed(), Turnstile(None).closed(0.0):
        pass


def test_an_erasure_beside_a_writer_that_does_not_end_says_what_it_left(
    store: treering.Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("treering.store.erase._HELD_UP_S", 0.2)
    corpus = store.create("support", SCHEMA)
    with corpus.capture() as live:
        live.extend([record(n, who) for n in range(5) for who in ("ann", "bob")])
    with corpus.table._writers.passed():  # a commit that stands still
        receipt = corpus.erase(where={"subject": "ann"})
    assert any("a process which doesn't end may be about to commit" in text for text in receipt.not_covered)
    assert len(store.live("support")) == 5


def test_a_branch_that_nobody_names_can_be_dropped(store: treering.Store) -> None:
    corpus = store.create("support", SCHEMA)
    with corpus.capture() as live:
        live.extend([record(n, who) for n in range(5) for who in ("ann", "bob")])
    corpus.snapshot()
    corpus.erase(where={"subject": "ann"})
    (branch,) = corpus.table.branches()
    corpus.table.head().tags.delete("v1")
    corpus.table.drop_branch(branch)
    corpus.table.drop_branch(branch)
    assert corpus.table.branches() == []
    assert store.root is not None
    assert [path for path in store.root.rglob("*.lance") if branch in str(path)] == []
