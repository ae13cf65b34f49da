"""One process of an erasure test: `python eraser.py ROLE STORE ARGS…`. Prints JSON lines, each after the store answered.

`erase SUBJECT N KILL_MS`: erase a subject (an empty one: complete what is pending), and die at the N-th step, or after so
many milliseconds, by a kill that nothing can catch; 0 is never.
`people SECONDS FIRST`: capture records of many people, some of whom are being erased.
`erasures SECONDS FIRST STEP`: erase one person after another; with a step's name, die there in the second erasure.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

import treering
from tests.erasing import record
from treering.store.corpus import BaseCorpus

PEOPLE = [f"person-{n:02d}-of-ours" for n in range(12)]


def say(**what: Any) -> None:
    print(json.dumps(what), flush=True)


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def erase(corpus: treering.Corpus, subject: str, steps: str, kill_ms: str) -> None:
    left = int(steps)

    def count(self: BaseCorpus, name: str) -> None:
        nonlocal left
        left -= 1
        if left == 0:
            say(died_at=name)
            die()

    BaseCorpus.step = count  # type: ignore[method-assign]
    if int(kill_ms):
        threading.Timer(int(kill_ms) / 1000, die).start()
    if subject:
        receipt = corpus.erase(where={"subject": subject}, reason="a test")
        say(erased=receipt.total)
    else:
        corpus.compact()
        say(completed=len(corpus.erasures()))
    os._exit(0)


def people(corpus: treering.Corpus, seconds: str, first: str) -> None:
    end, n = time.monotonic() + float(seconds), int(first)
    with corpus.capture() as live:
        while time.monotonic() < end:
            rows = [record(n + i, random.choice(PEOPLE)) for i in range(random.randint(1, 20))]
            n += len(rows)
            live.extend(rows)
            say(captured=[row["id"] for row in rows])
            if random.random() < 0.3:
                live.flush()
            if random.random() < 0.2:
                live.extend(rows)  # sent again
        live.flush()
        say(counts=vars(live.counts))


def erasures(corpus: treering.Corpus, seconds: str, first: str, step: str) -> None:
    end, reached = time.monotonic() + float(seconds), 0

    def die_at(self: BaseCorpus, name: str) -> None:
        nonlocal reached
        reached += name == step
        if name == step and reached == 2:
            os._exit(9)

    BaseCorpus.step = die_at  # type: ignore[method-assign]
    for who in PEOPLE[int(first) : int(first) + 4]:
        if time.monotonic() >= end:
            break
        say(erasing=who)
        receipt = corpus.erase(where={"subject": who})
        say(erased=who, records=receipt.total)
        time.sleep(random.uniform(0, 0.5))


if __name__ == "__main__":
    role, uri, *rest = sys.argv[1:]
    globals()[role](treering.open(uri, create=False).corpus("support"), *rest)
