"""However records arrive, the table stays about as large and as quick as a compacted one."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

import treering
from treering.capture import recorder
from treering.errors import StoreError
from treering.store import table
from treering.store.table import RECENT_VERSIONS

#: Fragments that wait in each of the five tiers: at most eight, and the eighth joins them.
MOST_FRAGMENTS = 5 * 8


def size(root: Path) -> int:
    return sum(path.stat().st_size for path in root.rglob("*") if path.is_file())


def versions(corpus: treering.Corpus) -> int:
    return len(list((Path(corpus.uri) / "_versions").glob("*.manifest")))


def trickle(corpus: treering.Corpus, commits: int, letters: int, *, look_every: int) -> list[tuple[int, int, int]]:
    """Commit records one at a time; gives (fragments, versions, bytes) now and then, right after tidying up."""
    rng = random.Random(0)
    found = []
    with corpus.capture() as live:
        for number in range(1, commits + 1):
            live.add({"text": "".join(rng.choices("abcdefghijklmnop", k=letters)), "label": "l"})
            live.flush()
            live._compact_if_due()  # as the background thread does after each of its commits
            if number % look_every == 0:
                fragments = len(corpus.table.head().get_fragments())
                found.append((fragments, versions(corpus), size(Path(corpus.uri))))
    return found


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """A commit every two seconds takes a day to try. Here they come as fast as they can, and age as much faster."""
    original = table.LanceTable.clean_up
    monkeypatch.setattr(
        table.LanceTable, "clean_up", lambda self, older_than_s, keep=1: original(self, min(older_than_s, 0.2), keep)
    )
    monkeypatch.setattr(recorder, "FLUSH_AFTER_S", 1e9)


def check(corpus: treering.Corpus, commits: int, letters: int, look_every: int) -> None:
    seen = trickle(corpus, commits, letters, look_every=look_every)
    corpus.compact()
    corpus.clean_up(older_than_s=0)
    compacted = size(Path(corpus.uri))
    assert corpus.table.count(corpus.table.head()) == commits
    assert max(fragments for fragments, _, _ in seen) <= MOST_FRAGMENTS
    # Between two tidyings come eight commits and what compacting itself commits.
    assert max(n for _, n, _ in seen) <= RECENT_VERSIONS + 40
    assert seen[-1][2] <= 2 * compacted
    print(f"{commits} commits: {seen[-1]}, compacted {compacted:,} bytes")


def test_records_that_come_one_at_a_time_leave_few_fragments_few_versions_and_half_of_the_disk(
    support: treering.Corpus, quick: None
) -> None:
    check(support, 250, 30_000, 25)


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_a_day_of_records_that_come_one_at_a_time(support: treering.Corpus, quick: None) -> None:
    check(support, 43_200, 1_000, 400)


def test_a_scan_of_live_goes_on_when_its_version_is_tidied_away(
    store: treering.Store, support: treering.Corpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    def capture(first: int, last: int) -> None:
        with support.capture() as live:
            live.extend([{"id": f"r{i}", "text": f"t{i}", "label": "l"} for i in range(first, last)])

    for n in range(5):
        capture(n * 1_000, n * 1_000 + 1_000)
    source = store.live("support")
    capture(5_000, 6_000)  # came after it was pinned
    engine, scans = table.LanceTable.scan, []

    def scan(self: table.LanceTable, *arguments: Any, **options: Any) -> Iterator[pa.RecordBatch]:
        """What has begun is tidied away after some rows, and its files are found missing."""
        scans.append(None)
        first = len(scans) == 1
        for batch in engine(self, *arguments, **options):
            yield batch.slice(0, 700) if first else batch
            if first:
                support.compact()
                support.clean_up(older_than_s=0)
                assert versions(support) == 1
                raise StoreError("failed reading: not found", code="engine")

    monkeypatch.setattr(table.LanceTable, "scan", scan)
    seen: list[str] = []
    for batch in source.scan(["id", "text"]):
        assert batch.schema.names == ["id", "text"]
        seen += batch.column("id").to_pylist()
    assert sorted(seen) == sorted(f"r{i}" for i in range(5_000))


def test_what_a_kill_kept_from_its_name_goes_with_a_cleanup_a_minute_later(support: treering.Corpus) -> None:
    with support.capture() as live:
        live.extend([{"text": "one", "label": "a"}])
    support.snapshot()
    root = Path(support.uri)
    names = [f"_refs/tags/treering-durable.json.tmp.{'1' * 32}", "_versions/18446744073709551571.manifest"]
    old, young = ([root / f"{name}#{number}" for name in names] for number in (1, 2))
    old.append(root / f"{names[0]}")  # it had one name of two
    for file in (*old, *young):
        file.write_bytes(b"{")
    an_hour_ago = time.time() - 3600
    for file in old:
        os.utime(file, (an_hour_ago, an_hour_ago))
    support.clean_up()
    assert [file for file in old if file.exists()] == []
    assert [file for file in young if file.exists()] == young
    assert [snapshot.name for snapshot in support.snapshots()] == ["v1"]
