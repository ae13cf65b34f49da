"""SIGKILL at random instants, beside a neighbour that compacts, seals and prunes: nothing acknowledged is lost, nothing
doubles, and what was erased is gone.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import signal
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

import treering
from treering.store.prune import pruned_ids
from treering.store.snapshot import finish_pending

from . import lives
from .harness import ids_by_place


class Ledger:
    """What the clients know: what they sent, what was acknowledged, what else was said."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.sent: set[str] = set()
        self.acknowledged: set[str] = set()
        self.annotated: set[str] = set()
        self.erasing: set[str] = set()  # asked for; whether it came to be, nobody heard
        self.erased: set[str] = set()
        self.refused = 0
        self.sealed: dict[str, tuple[int, str]] = {}
        self.opened: list[float] = []

    def told(self, corpus: treering.Corpus) -> str:
        """What there was, for whoever runs this by hand."""
        return (
            f"{len(self.acknowledged)} records, {len(corpus.snapshots())} snapshots, {len(corpus.pruned())} pruned, "
            f"{len(self.erased)} erased, slowest open {max(self.opened):.2f} s"
        )

    def read(self, log: Path) -> list[list[str]]:
        """Take in a log; gives the batches that were sent and not answered."""
        pending: list[list[str]] = []
        data = log.read_bytes() if log.exists() else b""
        log.unlink(missing_ok=True)
        for line in data.split(b"\n")[:-1]:
            event: dict[str, Any] = json.loads(line)
            if "sending" in event:
                self.sent |= set(event["sending"])
                pending.append(event["sending"])
            elif "sent" in event:
                self.acknowledged |= set(event["sent"])
                pending.remove(event["sent"])
            elif "annotated" in event:
                self.annotated.add(event["annotated"])
            elif "erasing" in event:
                self.erasing |= set(event["erasing"])
            elif "erased" in event:
                self.erased |= set(event["erased"])
            elif "refused" in event:
                self.refused += event["n"]
            elif "sealed" in event:
                self.sealed[event["sealed"]] = (event["rows"], event["digest"])
            elif "opened" in event:
                self.opened.append(event["opened"])
        return pending


def kill_many(store: treering.Store, directory: Path, kills: int, *, check_every: int) -> Ledger:
    """Live and be killed, `kills` times; look at everything now and then, and at the end."""
    # Forked from a clean server that has imported all this and used none of it: a life begins within milliseconds.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["treering", "treering.front", "treering.capture", "lance", lives.__name__])
    ledger, rng = Ledger(directory), random.Random(1)
    neighbour = None
    pending: list[list[str]] = []
    for number in range(kills):
        if neighbour is None:
            neighbour = context.Process(target=lives.tidy, args=(store.uri, str(directory / "tidy.log")), daemon=True)
            neighbour.start()
        log = directory / "life.log"
        life = context.Process(
            target=lives.live, args=(store.uri, str(log), f"n{number}", number, pending), daemon=True
        )
        life.start()
        if rng.random() < 0.8:  # else it may be killed while it opens, too
            wait_for(log, life)
        time.sleep(rng.uniform(0, 0.25))
        kill(life)
        # What a life before sent in vain and this one didn't get to is still owed.
        left = ledger.read(log)
        pending = [ids for ids in pending if not set(ids) <= ledger.acknowledged and ids not in left] + left
        if rng.random() < 0.3:
            kill(neighbour)
            ledger.read(directory / "tidy.log")
            neighbour = None
        if (number + 1) % check_every == 0:
            if neighbour is not None:
                kill(neighbour)
                ledger.read(directory / "tidy.log")
                neighbour = None
            look_at_all(store, ledger, pending)
            pending = []
    return ledger


def wait_for(log: Path, life: Any) -> None:
    end = time.monotonic() + 60
    while not log.exists() or b"opened" not in log.read_bytes():
        assert time.monotonic() < end, "a life didn't begin within a minute"
        assert life.is_alive(), "a life ended by itself"
        time.sleep(0.005)


def kill(process: Any) -> None:
    """It must have been alive: one that ended by itself met an error that it shouldn't have."""
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert process.exitcode == -signal.SIGKILL, "a life ended by itself"


def look_at_all(store: treering.Store, ledger: Ledger, pending: list[list[str]]) -> None:
    corpus = store.corpus("support")
    with corpus.capture() as recorder:  # the client sends again what it got no answer for
        for ids in pending:
            recorder.extend([lives.record(i) for i in ids])
            ledger.acknowledged |= set(ids)
    assert ledger.sent == ledger.acknowledged
    corpus.quarantine()  # commits what dead processes left in their spools
    with corpus.lease():
        finish_pending(corpus)
    counts = Counter(i for ids in ids_by_place(store).values() for i in ids)
    assert [i for i, n in counts.items() if n > 1] == []
    there, everything = set(counts), sorted(ledger.acknowledged)
    pruned = {i for record in corpus.pruned() for i in pruned_ids(corpus, record, everything)}
    assert there <= ledger.sent
    assert there & ledger.erased == set()
    assert there & pruned == set()
    assert ledger.acknowledged - there - pruned - ledger.erasing == set()
    told = ledger.annotated - ledger.erasing
    said = corpus.annotations(sorted(ledger.annotated), key="label")
    assert set(said.column("id").to_pylist()) >= told
    assert set(said.column("id").to_pylist()) & ledger.erased == set()
    assert len(corpus.quarantine()) >= ledger.refused
    names = [*(record.name for record in corpus.pruned()), *(s.name for s in corpus.snapshots())]
    assert sorted(names, key=lambda name: int(name[1:])) == [f"v{n + 1}" for n in range(len(names))]
    for snapshot in corpus.snapshots():
        if snapshot.name in ledger.sealed and snapshot.record.edition == 1:
            assert (snapshot.rows, snapshot.digest) == ledger.sealed[snapshot.name]
    assert all(found.ok for found in store.verify())
    assert [path.name for path in (Path(store.uri) / "spool").rglob("*") if path.suffix not in (".lock", "")] == []
    for path in Path(store.uri).rglob("*#*"):  # what a kill kept from its name goes with a cleanup a minute later
        os.utime(path, (time.time() - 90, time.time() - 90))
    corpus.clean_up()
    assert [path.name for path in Path(store.uri).rglob("*#*")] == []


def test_two_hundred_kills_lose_and_double_nothing(
    store: treering.Store, support: treering.Corpus, tmp_path: Path
) -> None:
    ledger = kill_many(store, tmp_path, 200, check_every=100)
    assert len(ledger.acknowledged) > 5_000
    assert len(support.snapshots()) + len(support.pruned()) > 10
    assert ledger.erasing
    print(ledger.told(support))


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_a_thousand_kills_lose_and_double_nothing(
    store: treering.Store, support: treering.Corpus, tmp_path: Path
) -> None:
    ledger = kill_many(store, tmp_path, 1_000, check_every=100)
    print(ledger.told(support))
