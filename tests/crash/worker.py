"""One process of a crash or concurrency test: `python worker.py ROLE STORE SECONDS ARGS…`.

Prints what it did as JSON lines, each only after the store acknowledged it.
"""

from __future__ import annotations

import json
import os
import random
import sys
import time
from typing import Any

import treering
from treering.store.corpus import BaseCorpus


def say(**what: Any) -> None:
    print(json.dumps(what), flush=True)


def record(record_id: str) -> dict[str, str]:
    return {"id": record_id, "text": f"text of {record_id}", "label": "a"}


def merger(corpus: treering.Corpus, seconds: float, name: str) -> None:
    """Commit small batches as fast as they go; every fifth one is sent twice."""
    end, n = time.monotonic() + seconds, 0
    with corpus.capture() as live:
        while time.monotonic() < end:
            ids = [f"{name}-{n + i}" for i in range(random.randint(1, 40))]
            n += len(ids)
            live.extend([record(i) for i in ids])
            live.flush()
            say(captured=ids)
            if random.random() < 0.2:
                live.extend([record(i) for i in ids])
                live.flush()
        say(counts=vars(live.counts))


def adder(corpus: treering.Corpus, seconds: float, name: str) -> None:
    """Single records, each acknowledged on its own; the background thread commits."""
    end, n = time.monotonic() + seconds, 0
    with corpus.capture() as live:
        while time.monotonic() < end:
            receipt = live.add(record(f"{name}-{n}"))
            say(captured=[receipt.id])
            n += 1


def compactor(corpus: treering.Corpus, seconds: float, name: str) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            corpus.compact(wait_s=5)
            corpus.clean_up(older_than_s=2, wait_s=5)
            say(compacted=True)
        except treering.ConflictError as exc:
            say(conflict=exc.code)
        time.sleep(random.uniform(0, 0.05))


def free_compactor(corpus: treering.Corpus, seconds: float, name: str) -> None:
    """A compactor that takes no lease: correctness must not rest on it."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            corpus.table.compact()
            say(compacted=True)
        except treering.ConflictError as exc:
            say(conflict=exc.code)
        time.sleep(random.uniform(0, 0.05))


def snapshotter(corpus: treering.Corpus, seconds: float, step: str) -> None:
    """Seal again and again; with a step's name, die right there in the third seal, or in the first once half the time is up."""
    end, reached = time.monotonic() + seconds, 0

    def die_at(self: BaseCorpus, name: str) -> None:
        nonlocal reached
        reached += name == step
        if name == step and (reached == 3 or time.monotonic() > end - seconds / 2):
            os._exit(9)

    BaseCorpus.step = die_at  # type: ignore[method-assign]
    while time.monotonic() < end:
        snapshot = corpus.snapshot()
        if snapshot is not None:
            say(sealed=snapshot.name, rows=snapshot.rows)
        time.sleep(random.uniform(0, 0.1))


def pruner(corpus: treering.Corpus, seconds: float, step: str) -> None:
    """Prune the oldest snapshot; with a step's name, die right there."""

    def die_at(self: BaseCorpus, name: str) -> None:
        if name == step:
            os._exit(9)

    BaseCorpus.step = die_at  # type: ignore[method-assign]
    report = corpus.prune(keep=len(corpus.snapshots()) - 1, dry_run=False, keep_heldout=True)
    say(pruned=[one.ref for one in report.snapshots])


def evolver(corpus: treering.Corpus, seconds: float, step: str) -> None:
    """Rename, widen and add columns again and again; with a step's name, die right there in the third evolution."""
    import pyarrow as pa

    end, reached = time.monotonic() + seconds, 0

    def die_at(self: BaseCorpus, name: str) -> None:
        nonlocal reached
        reached += name == step
        if name == step and reached == 3:
            os._exit(9)

    BaseCorpus.step = die_at  # type: ignore[method-assign]
    while time.monotonic() < end:
        number = corpus.versions[-1].number
        kind = pa.string() if number < 5 else pa.large_string()
        added = [(f"n{number // 4}", pa.int8())] if number < 20 else []
        try:
            swapped = {"text": "label", "label": "text"}
            corpus.evolve(pa.schema([("text", kind), ("label", kind), *added]), renames=swapped)
            say(evolved=len(corpus.versions))
        except treering.ConflictError as exc:
            say(conflict=exc.code)
        time.sleep(random.uniform(0, 0.1))


if __name__ == "__main__":
    role, uri, seconds, name = sys.argv[1:5]
    globals()[role](treering.open(uri, create=False).corpus("support"), float(seconds), name)
