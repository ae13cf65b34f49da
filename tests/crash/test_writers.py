"""Many processes on one corpus: each record once, whoever sent it, how often, and whatever became of the sender."""

from __future__ import annotations

import multiprocessing
import os
import random
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

import treering

from . import lives

N = 1_000


def ids_of(store: treering.Store) -> Counter[str]:
    corpus = store.corpus("support")
    refs = ["support@live", *(snapshot.ref for snapshot in corpus.snapshots())]
    return Counter(i for ref in refs for i in store.load(ref).to_table(["id"]).column(0).to_pylist())


def commit_singly(uri: str, name: str, commits: int) -> None:
    with treering.open(uri, create=False).corpus("support").capture() as recorder:
        for number in range(commits):
            recorder.add(lives.record(f"{name}-{number}"))
            recorder.flush()


def resend(uri: str, seed: int, lives_left: int) -> None:
    """Send the same thousand ids in an order of one's own; die after a batch whose answer nobody hears."""
    rng = random.Random(seed * 100 + lives_left)
    order = rng.sample(range(N), N)
    recorder = treering.open(uri, create=False).corpus("support").capture()
    for start in range(0, N, 50):
        batch = [lives.record(f"r{i}") for i in order[start : start + 50]]
        recorder.extend(batch)
        if rng.random() < 0.2:
            recorder.extend(batch)  # the answer was lost: once more
        if rng.random() < 0.3:
            recorder.flush()
        if lives_left and rng.random() < 0.15:
            os._exit(9)
    recorder.close()


def run(target: Any, arguments: list[tuple[Any, ...]]) -> list[int | None]:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["treering", "treering.front", "treering.capture", "lance", lives.__name__])
    processes = [context.Process(target=target, args=each, daemon=True) for each in arguments]
    for process in processes:
        process.start()
    for process in processes:
        process.join(600)
    return [process.exitcode for process in processes]


def eight_commit(store: treering.Store, commits: int) -> None:
    assert run(commit_singly, [(store.uri, f"w{n}", commits) for n in range(8)]) == [0] * 8
    assert ids_of(store) == Counter(f"w{n}-{i}" for n in range(8) for i in range(commits))


def test_eight_processes_that_commit_at_once_lose_and_double_nothing(
    store: treering.Store, support: treering.Corpus
) -> None:
    eight_commit(store, 25)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_eight_processes_of_250_commits_each_give_exactly_2000(store: treering.Store, support: treering.Corpus) -> None:
    eight_commit(store, 250)


def test_a_thousand_ids_sent_by_eight_clients_that_die_and_start_over_are_a_thousand_records(
    store: treering.Store, support: treering.Corpus
) -> None:
    for left in (2, 1, 0):
        codes = run(resend, [(store.uri, n, left) for n in range(8)])
        assert set(codes) <= {0, 9}
        assert left or codes == [0] * 8
        if left:
            support.snapshot()  # sent again across a snapshot
    support.quarantine()
    assert ids_of(store) == Counter(f"r{i}" for i in range(N))
    assert support.quarantine() == []
    assert list((Path(store.uri) / "spool").rglob("*.sqlite")) == []
