"""Erasures that are killed, and erasures beside everybody: gone is gone, and the rest is byte for byte what it was."""

from __future__ import annotations

import hashlib
import json
import os
import random
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

import treering
from tests.erasing import SCHEMA, contents, files_with, keep_text_plain, record

from .harness import WORKER

ERASER = Path(__file__).with_name("eraser.py")


def start(role: str, store: treering.Store, *rest: object, script: Path = ERASER) -> subprocess.Popen[str]:
    command = [sys.executable, str(script), role, store.uri, *map(str, rest)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def said(process: subprocess.Popen[str], *, expect: tuple[int, ...] = (0,)) -> list[dict[str, Any]]:
    out, err = process.communicate(timeout=300)
    assert process.returncode in expect, err
    return [json.loads(line) for line in out.splitlines() if line.endswith("}")]


@pytest.fixture
def corpus(store: treering.Store, monkeypatch: pytest.MonkeyPatch) -> treering.Corpus:
    keep_text_plain(monkeypatch)
    return store.create("support", SCHEMA, heldout=0.2)


def filled(corpus: treering.Corpus, subjects: list[str], snapshots: int, records: int) -> None:
    """`snapshots` snapshots that hold records of all subjects, one of nobody among them, and a live that holds some."""
    for number in range(snapshots + 1):
        with corpus.capture() as live:
            start = number * 1_000_000
            live.extend([record(start + n, f"other {n % 7}") for n in range(records)])
            live.extend([record(start + n, who) for who in subjects for n in range(2)])
        assert corpus.snapshot() is not None
    with corpus.capture() as live:
        live.extend([record(99_000_000 + n, f"other {n % 7}") for n in range(records)])
        assert corpus.snapshot() is not None
        live.extend([record(98_000_000, who) for who in subjects])


def killed_again_and_again(store: treering.Store, subjects: list[str], kills: int, seed: int, least: int) -> None:
    corpus = store.corpus("support")
    generator = random.Random(seed)
    before = contents(store)
    untouched = corpus.snapshots()[-1]
    digest, record_before = untouched.digest, untouched.record
    died: Counter[str] = Counter()
    most = 8 * len(corpus.snapshots())  # steps, about, of one erasure
    hits = 0
    for number, who in enumerate(subjects):
        todo, here = who, 0
        wanted = -(-kills * (number + 1) // len(subjects)) - hits  # those that missed are made up for by the next
        for _ in range(6 * wanted):
            if here == wanted:
                break
            # Half of the kills come between two steps, half of them in the middle of one.
            step, after_ms = generator.choice([(generator.randint(1, most), 0), (0, generator.randint(5, 500))])
            process = start("erase", store, todo, step, after_ms)
            lines = said(process, expect=(0, -9))
            if process.returncode == 0 and not todo:
                break  # it was completed
            here += process.returncode == -9
            died[next((line["died_at"] for line in lines if "died_at" in line), "in a step")] += (
                process.returncode == -9
            )
            # What was decided is completed by whoever comes next; what wasn't has to be asked for again.
            decided = [*Path(store.uri).glob(f"erasures/*/{number + 1}.json")]
            if process.returncode == 0 or [*Path(store.uri).glob(f"erasures/*/{number + 1}.receipt.json")]:
                break
            todo = "" if decided else who
        hits += here
        if [*Path(store.uri).glob(f"erasures/*/{number + 1}.json")]:
            corpus.compact()
        else:
            corpus.erase(where={"subject": who})
    print(f"{hits} kills hit: {dict(died.most_common())}")
    assert hits >= least
    corpus.clean_up(older_than_s=0)
    assert files_with(Path(store.uri), *subjects) == []
    gone = set(subjects)
    assert contents(store) == {name: [r for r in rows if r["subject"] not in gone] for name, rows in before.items()}
    assert len(corpus.erasures()) == len(subjects)
    last = corpus.snapshots()[-1]
    assert (last.digest, last.record) == (digest, record_before)


def test_an_erasure_that_is_killed_again_and_again_ends_with_the_subject_gone_and_nothing_else(
    store: treering.Store, corpus: treering.Corpus
) -> None:
    subjects = [f"canary-{hashlib.sha256(bytes([n])).hexdigest()[:12]}" for n in range(2)]
    filled(corpus, subjects, snapshots=2, records=30)
    killed_again_and_again(store, subjects, kills=4, seed=int(os.environ.get("TREERING_SEED", "1")), least=3)


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_fifty_subjects_over_five_snapshots_killed_at_a_hundred_points(
    store: treering.Store, corpus: treering.Corpus
) -> None:
    subjects = [f"canary-{hashlib.sha256(bytes([n])).hexdigest()[:12]}" for n in range(50)]
    filled(corpus, subjects, snapshots=4, records=2_000)
    killed_again_and_again(store, subjects, kills=110, seed=int(os.environ.get("TREERING_SEED", "4")), least=100)


def beside_everybody(store: treering.Store, seconds: float, step: str) -> None:
    corpus = store.corpus("support")
    writers = [start("people", store, seconds, first) for first in (0, 10_000_000)]
    helpers = [start(role, store, seconds, "", script=WORKER) for role in ("compactor", "snapshotter")]
    erasers = [start("erasures", store, seconds, 0, step), start("erasures", store, seconds, 4, "")]
    captured = {i for w in writers for line in said(w) for i in line.get("captured", [])}
    for helper in helpers:
        said(helper)
    lines = [line for e in erasers for line in said(e, expect=(9,) if step and e is erasers[0] else (0,))]
    begun = {line["erasing"] for line in lines if "erasing" in line}
    assert len({line["erased"] for line in lines if "erased" in line}) >= 2
    for who in begun:  # one that was killed may not have been decided yet
        if step:
            corpus.erase(where={"subject": who})
    corpus.quarantine()  # commits what dead processes left in their spools
    corpus.compact()
    corpus.clean_up(older_than_s=0)
    assert corpus.quarantine() == []
    places = contents(store)
    counts = Counter(row["id"] for rows in places.values() for row in rows)
    expected = {i for i in captured if not any(i.startswith(who) for who in begun)}
    assert [i for i, n in counts.items() if n > 1] == []
    assert set(counts) == expected
    assert all(
        row["text"] == f"text {row['id'].rpartition('-')[2]} by {row['subject']}" for r in places.values() for row in r
    )
    assert files_with(Path(store.uri), *begun) == []
    names = [snapshot.name for snapshot in corpus.snapshots()]
    assert names == [f"v{n + 1}" for n in range(len(names))]
    for snapshot in corpus.snapshots():
        assert snapshot.certificate.rows == snapshot.rows == len(places[snapshot.name])


def test_erasing_beside_appenders_a_compactor_and_a_snapshotter_takes_the_people_and_nobody_else(
    store: treering.Store, corpus: treering.Corpus
) -> None:
    beside_everybody(store, 6, "")


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(
    "step", ["", "after-erasure", "after-found", "after-delete", "after-edition", "after-live", "before-receipt"]
)
def test_a_minute_of_erasing_beside_everybody(store: treering.Store, corpus: treering.Corpus, step: str) -> None:
    beside_everybody(store, 40, step)
