"""Backfill: history becomes v1 to vN, in time order, whatever order it comes in and however often it is run."""

from __future__ import annotations

import io
import json
import os
import random
import signal
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import treering
from treering.capture import backfill as module
from treering.capture import recorder
from treering.errors import ConflictError, NotFoundError, UsageError

START = datetime(2026, 1, 1, 12, tzinfo=UTC)


def history(days: int = 70, a_day: int = 2, start: datetime = START) -> list[dict[str, Any]]:
    return [
        {"id": f"d{day}-{n}", "text": f"text {day}", "label": "a", "ts": (start + timedelta(days=day)).isoformat()}
        for day in range(days)
        for n in range(a_day)
    ]


def write(path: Path, rows: list[Any]) -> str:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows), "utf-8")
    return str(path)


def sealed(corpus: treering.Corpus) -> list[tuple[str, str, set[str]]]:
    load = corpus.store.load
    return [(s.name, s.message, set(load(s.ref).to_table(["id"]).column(0).to_pylist())) for s in corpus.snapshots()]


def by_month(rows: list[dict[str, Any]]) -> list[tuple[str, str, set[str]]]:
    months = sorted({row["ts"][:7] for row in rows})
    return [
        (f"v{n}", month, {row["id"] for row in rows if row["ts"][:7] == month}) for n, month in enumerate(months, 1)
    ]


def test_history_becomes_a_snapshot_for_each_month_in_order(support: treering.Corpus, tmp_path: Path) -> None:
    rows = history()
    done = support.backfill(write(tmp_path / "h.jsonl", rows), as_of="ts", snapshot_by="month")
    assert sealed(support) == by_month(rows)
    assert done.snapshots == [
        ("2026-01", "support@v1", 62),
        ("2026-02", "support@v2", 56),
        ("2026-03", "support@v3", 22),
    ]
    assert (done.read, done.stored, done.duplicates, done.refused, done.late) == (140, 140, 0, 0, 0)
    assert done.in_order
    assert len(support.store.load("support@live")) == 0


@pytest.mark.parametrize("held", [module._HELD, 500])
def test_an_unsorted_file_and_a_stream_come_to_the_same(
    store: treering.Store, support: treering.Corpus, tmp_path: Path, held: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_HELD", held)
    rows = history()
    random.Random(3).shuffle(rows)
    done = support.backfill(write(tmp_path / "h.jsonl", rows), as_of="ts", snapshot_by="month")
    assert not done.in_order
    assert sealed(support) == by_month(rows)
    other = store.create("other", "labelled")
    stream = io.BytesIO((tmp_path / "h.jsonl").read_bytes())
    other.backfill(stream, as_of="ts", snapshot_by="month")
    assert sealed(other) == by_month(rows)
    assert not list(support.store.cache_dir.glob("tmp*"))


def test_running_it_again_adds_nothing_and_more_of_the_file_goes_on(support: treering.Corpus, tmp_path: Path) -> None:
    rows = [{k: v for k, v in row.items() if k != "id"} for row in history()]  # ids come from file and line
    path = write(tmp_path / "h.jsonl", rows[:100])
    support.backfill(path, as_of="ts", snapshot_by="month")
    before = sealed(support)
    again = support.backfill(path, as_of="ts", snapshot_by="month")
    assert (again.stored, again.duplicates, again.snapshots, again.late) == (0, 100, [], 0)
    assert sealed(support) == before
    write(tmp_path / "h.jsonl", rows)  # the rest of February, and March
    more = support.backfill(path, as_of="ts", snapshot_by="month")
    assert more.snapshots == [("2026-03", "support@v3", 22)]
    assert more.late == 18  # February is sealed
    assert sealed(support)[:2] == before
    assert len(support.store.load("support@live")) == 18
    last = support.backfill(path, as_of="ts", snapshot_by="month")
    assert (last.stored, last.late, last.snapshots) == (0, 0, [])


@pytest.mark.parametrize(("by", "names"), [
    ("day", ["2026-12-27", "2026-12-28", "2027-01-01"]), ("week", ["2026-W52", "2026-W53"]), ("month", ["2026-12", "2027-01"]),
])  # fmt: skip
def test_periods_are_those_of_the_calendar_in_utc(
    support: treering.Corpus, tmp_path: Path, by: Any, names: list[str]
) -> None:
    times = ["2026-12-27T23:59:59Z", "2026-12-28T01:00:00+00:00", "2027-01-01T01:30:00+01:30"]
    times.append("2026-12-28T00:30:00+01:00")  # the 27th in UTC
    rows = [{"id": f"r{n}", "text": "t", "label": "a", "ts": moment} for n, moment in enumerate(times)]
    support.backfill(write(tmp_path / "h.jsonl", rows), as_of="ts", snapshot_by=by)
    assert [s.message for s in support.snapshots()] == names
    assert sum(s.rows for s in support.snapshots()) == 4


def test_another_column_says_when_and_dates_the_record(store: treering.Store, tmp_path: Path) -> None:
    import pyarrow as pa

    corpus = store.create("mail", pa.schema([("body", pa.string()), ("sent", pa.int64()), ("day", pa.string())]))
    rows = [{"id": f"m{n}", "body": "b", "sent": int((START + timedelta(days=20 * n)).timestamp())} for n in range(4)]
    corpus.backfill(write(tmp_path / "h.jsonl", rows), as_of="sent", snapshot_by="month")
    assert [s.message for s in corpus.snapshots()] == ["2026-01", "2026-02", "2026-03"]
    assert store.load("mail@v1").to_table(["ts"]).column(0).to_pylist().count(START) == 1
    again = corpus.backfill(str(tmp_path / "h.jsonl"), as_of="sent", snapshot_by="month")
    assert (again.stored, again.duplicates) == (0, 4)


def test_records_without_a_time_and_lines_that_dont_parse_are_named_and_wait_in_quarantine(
    support: treering.Corpus, tmp_path: Path
) -> None:
    rows: list[Any] = history(40, 1)
    rows[3] = {"id": "none", "text": "t", "label": "a"}
    rows[7] = {"id": "soon", "text": "t", "label": "a", "ts": "soon"}
    rows[9] = "{not json"
    rows[11] = {**rows[11], "label": 7}
    path = write(tmp_path / "h.jsonl", rows)
    done = support.backfill(path, as_of="ts", snapshot_by="month")
    assert (done.stored, done.refused, done.undated) == (36, 4, 2)
    assert {number for number, _ in done.problems} == {4, 8, 10, 12}
    said = {entry.source: [str(p) for p in entry.problems] for entry in support.quarantine()}
    assert said[f"{path}:4"] == ["ts: expected the time that the record is from, got none [missing-field]"]
    assert "got 'soon'" in said[f"{path}:8"][0]
    assert [s.rows for s in support.snapshots()] == [27, 9]
    again = support.backfill(path, as_of="ts", snapshot_by="month")
    assert (again.stored, again.refused, again.snapshots) == (0, 4, [])
    assert len(support.quarantine()) == 4


def test_a_live_that_holds_anything_else_is_refused(support: treering.Corpus, tmp_path: Path) -> None:
    path = write(tmp_path / "h.jsonl", history())
    with support.capture() as live:
        live.add({"id": "now", "text": "t", "label": "a"})
    with pytest.raises(ConflictError, match="support@live holds records of 2026-"):
        support.backfill(path, as_of="ts", snapshot_by="month")
    assert support.snapshots() == []
    assert len(support.store.load("support@live")) == 1


def test_bad_arguments(support: treering.Corpus, tmp_path: Path) -> None:
    path = write(tmp_path / "h.jsonl", history(3))
    with pytest.raises(NotFoundError, match="no column 'when'"):
        support.backfill(path, as_of="when", snapshot_by="month")
    with pytest.raises(UsageError, match="by day, week or month"):
        support.backfill(path, as_of="ts", snapshot_by="year")  # type: ignore[arg-type]
    with pytest.raises(NotFoundError, match="no file"):
        support.backfill(str(tmp_path / "none.jsonl"), as_of="ts", snapshot_by="month")


def test_an_empty_file_seals_nothing(support: treering.Corpus, tmp_path: Path) -> None:
    done = support.backfill(write(tmp_path / "h.jsonl", ["", "  "]), as_of="ts", snapshot_by="month")
    assert (done.stored, done.snapshots) == (0, [])


def test_a_backfill_that_was_cut_short_is_continued_by_the_same_call(
    support: treering.Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = history()
    path = write(tmp_path / "h.jsonl", rows)
    real = module.capture_lines
    monkeypatch.setattr(module, "_LINES", 10)
    for after in (1, 5, 9, 3):
        calls = [0]

        def cut(*args: Any, calls: list[int] = calls, after: int = after, **how: Any) -> None:
            calls[0] += 1
            if calls[0] > after:
                raise KeyboardInterrupt
            real(*args, **how)

        monkeypatch.setattr(module, "capture_lines", cut)
        with pytest.raises(KeyboardInterrupt):
            support.backfill(path, as_of="ts", snapshot_by="month")
    monkeypatch.setattr(module, "capture_lines", real)
    support.backfill(path, as_of="ts", snapshot_by="month")
    assert sealed(support) == by_month(rows)
    assert len(support.store.load("support@live")) == 0


@pytest.mark.parametrize("seconds", [0.0, 0.15, 0.4])
def test_a_backfill_that_was_killed_is_continued_too(
    store: treering.Store, support: treering.Corpus, tmp_path: Path, seconds: float
) -> None:
    rows = history(120, 20)
    path = write(tmp_path / "h.jsonl", rows)
    code = (
        "import sys, treering\n"
        "from treering.capture import backfill\n"
        "backfill._LINES = 100\n"
        "c = treering.open(sys.argv[1]).corpus('support')\n"
        "c.snapshots(); print('ready', flush=True)\n"
        "c.backfill(sys.argv[2], as_of='ts', snapshot_by='month')\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code, store.uri, path], stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()
    time.sleep(seconds)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    again = treering.open(store.uri, create=False).corpus("support")
    again.backfill(path, as_of="ts", snapshot_by="month")
    assert sealed(again) == by_month(rows)
    assert len(again.store.load("support@live")) == 0


@settings(max_examples=5, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(order=st.permutations(range(12)), cut=st.integers(0, 12))
def test_any_order_and_any_beginning_come_to_snapshots_in_time_order(
    tmp_path_factory: pytest.TempPathFactory, order: list[int], cut: int
) -> None:
    where = tmp_path_factory.mktemp("backfill")
    recorder.FLUSH_AFTER_S, waiting = 1e9, recorder.FLUSH_AFTER_S
    try:
        corpus = treering.open(where / "s").create("support", "labelled")
        rows = history(12, 1, START)
        for n, row in enumerate(rows):
            row["ts"] = (START + timedelta(days=11 * n)).isoformat()
        chosen = [rows[n] for n in order]
        first = write(where / "a.jsonl", sorted(chosen[:cut], key=lambda row: row["ts"]))
        corpus.backfill(first, as_of="ts", snapshot_by="month")
        corpus.backfill(write(where / "b.jsonl", chosen), as_of="ts", snapshot_by="month")
        found = sealed(corpus)
        assert [message for _, message, _ in found] == sorted({message for _, message, _ in found})
        held = [i for _, _, ids in found for i in ids]
        held += corpus.store.load("support@live").to_table(["id"]).column(0).to_pylist()
        assert sorted(held) == sorted(row["id"] for row in rows)
        if cut == 0:
            assert found == by_month(rows)
    finally:
        recorder.FLUSH_AFTER_S = waiting
