"""A real run whose writes and syncs are recorded: `python power_worker.py STORE SCENE`.

Prints, as JSON lines, what the store has acknowledged, each only after it did.
"""

from __future__ import annotations

import json
import os
import sys
import threading
from typing import Any

import treering

SCENES = ("capture", "seal", "maintain", "everything")


def say(**what: Any) -> None:
    os.write(1, (json.dumps(what) + "\n").encode())


def record(record_id: str) -> dict[str, str]:
    return {"id": record_id, "text": f"text of {record_id}", "label": "a", "ts": "2026-01-01T00:00:00Z"}


def put(live: Any, prefix: str, count: int) -> None:
    ids = [f"{prefix}-{n}" for n in range(count)]
    live.extend([record(i) for i in ids])
    say(captured=ids)


def capture(corpus: treering.Corpus) -> None:
    """Records in threads and batches, with commits between them."""
    with corpus.capture() as live:
        for n in range(3):
            threads = [threading.Thread(target=put, args=(live, f"c{n}{t}", 1 + 20 * t)) for t in range(3)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            live.flush()
        put(live, "late", 5)


def seal(corpus: treering.Corpus) -> None:
    """Two snapshots, their certificates, and what somebody said about a record."""
    for n in (1, 2):
        with corpus.capture() as live:
            put(live, f"s{n}", 40)
        snapshot = corpus.snapshot()
        assert snapshot is not None
        say(sealed=snapshot.name, rows=snapshot.rows)
        say(certified=snapshot.name, digest=snapshot.digest)
        corpus.annotate(f"s{n}-1", quality=float(n))
        say(annotated=f"s{n}-1")


def maintain(corpus: treering.Corpus) -> None:
    """Small commits, compaction and clean-up of old versions."""
    with corpus.capture() as live:
        for n in range(4):
            put(live, f"m{n}", 7)
            live.flush()
        corpus.compact()
        corpus.clean_up(older_than_s=0.0)
        put(live, "after", 7)


def everything(corpus: treering.Corpus) -> None:
    seal(corpus)
    maintain(corpus)
    capture(corpus)


if __name__ == "__main__":
    uri, scene = sys.argv[1:3]
    opened = treering.open(uri).corpus("support")
    say(begun=True)
    {"capture": capture, "seal": seal, "maintain": maintain, "everything": everything}[scene](opened)
    say(ended=True)
