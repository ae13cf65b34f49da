"""One life: a process that captures, seals and tidies up until it is killed, and notes down what it was told.

The note is a line of JSON per event, written with one `write`: a kill leaves the page cache alone.
"""

from __future__ import annotations

import json
import os
import random
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import treering

Note = Callable[..., None]


def record(record_id: str) -> dict[str, str]:
    return {"id": record_id, "text": f"text of {record_id}", "label": "a"}


def live(uri: str, log: str, name: str, seed: int, resend: list[list[str]]) -> None:
    """Send again what got no answer in the life before; then whatever comes to mind, until killed."""
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def note(**event: Any) -> None:
        os.write(descriptor, json.dumps(event).encode() + b"\n")

    began = time.monotonic()
    corpus = treering.open(uri, create=False).corpus("support")
    recorder = corpus.capture()
    note(opened=time.monotonic() - began)
    for ids in resend:
        send(recorder, note, ids)
    rng = random.Random(seed)
    count = 0

    def fresh(n: int) -> list[str]:
        nonlocal count
        count += n
        return [f"{name}-{count - i}" for i in range(n)]

    known: list[str] = []
    actions: list[tuple[int, Callable[[], Any]]] = [
        (6, lambda: known.extend(send(recorder, note, fresh(1)))),
        (6, lambda: known.extend(send(recorder, note, fresh(rng.randint(2, 300))))),
        (4, recorder.flush),
        (2, lambda: send(recorder, note, rng.choices(known, k=20)) if known else None),
        (2, lambda: maintain(corpus, note, "snapshot")),
        (1, lambda: maintain(corpus, note, "compact")),
        (1, lambda: maintain(corpus, note, "clean_up")),
        (1, lambda: annotate(corpus, note, rng.choice(known)) if known else None),
        (1, lambda: maintain(corpus, note, "prune")),
        (
            1,
            lambda: (
                erase(corpus, note, [known.pop(rng.randrange(len(known))) for _ in range(3)])
                if len(known) > 9
                else None
            ),
        ),
        (1, lambda: note(refused=f"{name}-{count}", n=len(recorder.extend([{"id": "bad", "text": name}]).refused))),
    ]
    weights = [weight for weight, _ in actions]
    while True:
        rng.choices(actions, weights)[0][1]()


def send(recorder: treering.capture.Recorder, note: Note, ids: list[str]) -> list[str]:
    note(sending=ids)
    if len(ids) == 1:
        recorder.add(record(ids[0]))
    else:
        recorder.extend([record(i) for i in ids])
    note(sent=ids)
    return ids


def annotate(corpus: treering.Corpus, note: Note, record_id: str) -> None:
    with suppress(treering.NotFoundError):  # pruned by the neighbour
        corpus.annotate(record_id, label=f"label of {record_id}")
        note(annotated=record_id)


def erase(corpus: treering.Corpus, note: Note, ids: list[str]) -> None:
    note(erasing=ids)
    with suppress(treering.ConflictError):  # the neighbour maintains the corpus, for longer than anybody waits
        corpus.erase(ids=ids)
        note(erased=ids)


def maintain(corpus: treering.Corpus, note: Note, what: str) -> None:
    try:
        if what == "snapshot":
            snapshot = corpus.snapshot()
            if snapshot is not None:
                note(sealed=snapshot.name, rows=snapshot.rows, digest=snapshot.digest)
        elif what == "compact":
            corpus.compact(wait_s=1)
        elif what == "prune":
            corpus.prune(keep=6, dry_run=False)
        else:
            corpus.clean_up(older_than_s=1, wait_s=1)
    except treering.ConflictError as exc:
        if exc.code not in ("lease-held", "livelock", "commit-conflict"):
            raise


def tidy(uri: str, log: str) -> None:
    """The neighbour: compaction and seals, without an end."""
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    corpus = treering.open(uri, create=False).corpus("support")

    def note(**event: Any) -> None:
        os.write(descriptor, json.dumps(event).encode() + b"\n")

    note(opened=0.0)
    while True:
        for what in ("compact", "snapshot", "clean_up", "snapshot", "prune"):
            maintain(corpus, note, what)
            time.sleep(random.uniform(0, 0.1))
