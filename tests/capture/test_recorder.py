from __future__ import annotations

import codecs
import gzip
import json
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pydantic import Field

import treering
from treering.capture import Recorder, spool
from treering.capture import recorder as recorder_module
from treering.errors import InvalidRecordError
from treering.schema import Labelled, Record
from treering.store.corpus import BaseCorpus
from treering.store.table import LanceTable


class Short(Labelled):
    text: str = Field(max_length=3)


def record(record_id: str, text: str = "t") -> dict[str, str]:
    return {"id": record_id, "text": text, "label": "a"}


def live_ids(store: treering.Store) -> list[str]:
    return sorted(store.live("support").to_table(["id"]).column(0).to_pylist())


def test_a_record_is_visible_after_flush_and_after_close(store: treering.Store, support: treering.Corpus) -> None:
    with support.capture() as live:
        assert live.add(record("a")).status == "stored"
        live.flush()
        assert live_ids(store) == ["a"]
        live.add(record("b"))
    assert live_ids(store) == ["a", "b"]


def test_what_is_missing_is_filled_in(store: treering.Store, support: treering.Corpus) -> None:
    with support.capture() as live:
        receipt = live.add({"text": "hello", "label": "a"})
    row = store.live("support").to_table().to_pylist()[0]
    assert row["id"] == receipt.id
    assert len(receipt.id) == 32
    assert row["ts"] is not None
    assert row["split"] in ("train", "heldout")
    assert row["domain"] is None


def test_two_records_that_say_the_same_are_two_records(store: treering.Store, support: treering.Corpus) -> None:
    with support.capture() as live:
        live.add({"text": "hi", "label": "a"})
        live.add({"text": "hi", "label": "a"})
    assert len(live_ids(store)) == 2


@pytest.mark.parametrize("between", ["nothing", "flush", "snapshot", "certificate", "new process", "two snapshots"])
def test_sent_twice_is_stored_once(store: treering.Store, support: treering.Corpus, between: str) -> None:
    sent = [record(f"r{i}") for i in range(20)]
    live = support.capture()
    live.extend(sent)
    if between == "flush":
        live.flush()
    elif between == "snapshot":
        support.snapshot()
    elif between == "certificate":
        snapshot = support.snapshot()
        assert snapshot
        assert snapshot.digest
    elif between == "two snapshots":
        support.snapshot()
        live.add(record("other"))
        support.snapshot()
    elif between == "new process":
        live.close()
        live = support.capture()
    live.extend(sent)
    assert live.add(sent[3]).status == "duplicate"
    live.close()
    everything = live_ids(store) + [
        i for s in support.snapshots() for i in store.load(s.ref).to_table(["id"]).column(0).to_pylist()
    ]
    assert Counter(everything)["r3"] == 1
    assert len(set(everything) - {"other"}) == len(everything) - everything.count("other") == 20
    assert support.quarantine() == []


@pytest.mark.parametrize("sealed", [False, True])
def test_the_same_id_with_other_content_is_refused_and_kept_aside(
    store: treering.Store, support: treering.Corpus, sealed: bool
) -> None:
    with support.capture() as live:
        live.add(record("a", "first"))
    if sealed:
        support.snapshot()
    with support.capture() as live:
        live.extend([record("a", "second"), record("b")])
    assert (live.counts.stored, live.counts.conflicts, live.conflicts) == (1, 1, ["a"])
    assert [(q.record["text"], q.problems[0].kind) for q in support.quarantine()] == [("second", "id-conflict")]
    with support.capture() as live:
        live.add(record("c", "first"))
        with pytest.raises(treering.InvalidRecordError, match="taken by other content") as caught:
            live.add(record("c", "second"))
    assert caught.value.problems[0].kind == "id-conflict"


def test_a_time_that_was_filled_in_makes_no_difference_and_a_given_one_does(
    store: treering.Store, support: treering.Corpus
) -> None:
    for ts, counted in ((None, "stored"), (None, "duplicates"), ("2020-01-01T00:00:00Z", "conflicts")):
        with support.capture() as live:
            live.extend([{**record("a"), **({"ts": ts} if ts else {})}])
        assert getattr(live.counts, counted) == 1, (ts, counted, live.counts)


def test_a_refused_record_never_blocks_the_rest(store: treering.Store, support: treering.Corpus) -> None:
    batch = [record(f"r{i}") for i in range(3_000)]
    batch[1_500] = {"id": "bad", "text": 7, "lable": "x"}  # type: ignore[dict-item]
    with support.capture() as live:
        receipts = live.extend(batch)
    assert receipts.acknowledged == 2_999
    [(position, problems)] = receipts.refused
    assert position == 1_500
    assert {(p.loc, p.kind) for p in problems} == {
        (("text",), "wrong-type"),
        (("label",), "missing-field"),
        (("lable",), "unknown-field"),
    }
    assert len(live_ids(store)) == 2_999
    [kept] = support.quarantine()
    assert kept.record == batch[1_500]
    assert kept.problems == problems


def test_a_whole_session_shares_a_split_and_the_share_is_kept(store: treering.Store) -> None:
    corpus = store.create("talks", "labelled", heldout=0.2)
    with corpus.capture() as live:
        live.extend([{"text": "t", "label": "l", "session_id": f"s{i % 1000}"} for i in range(4_000)])
    rows = store.live("talks").to_table(["session_id", "split"]).to_pylist()
    splits: dict[str, set[str]] = {}
    for row in rows:
        splits.setdefault(row["session_id"], set()).add(row["split"])
    assert all(len(found) == 1 for found in splits.values())
    share = sum(row["split"] == "heldout" for row in rows) / len(rows)
    assert 0.15 < share < 0.25  # 1,000 groups at 0.2: sd 0.013


def test_the_same_records_are_split_alike_in_every_store(tmp_path: Path) -> None:
    found = []
    for name in ("one", "two"):
        store = treering.open(tmp_path / name)
        with store.create("support", "labelled").capture() as live:
            live.extend([record(f"r{i}") for i in range(200)])
        rows = store.live("support").to_table(["id", "split"]).to_pylist()
        found.append(sorted((r["id"], r["split"]) for r in rows))
    assert found[0] == found[1]


def test_a_record_that_is_added_alone_is_filled_in_as_among_others(tmp_path: Path) -> None:
    sent = [{**record(f"r{i}"), **({"session_id": f"s{i // 3}"} if i % 2 else {})} for i in range(60)]
    found = []
    for alone in (True, False):
        store = treering.open(tmp_path / str(alone))
        with store.create("support", "labelled", heldout=0.5).capture() as live:
            if alone:
                assert [live.add(one).status for one in sent] == ["stored"] * 60
            else:
                live.extend(sent)
        rows = store.live("support").to_table().to_pylist()
        assert all(row.pop("ts").year >= 2026 for row in rows)
        found.append(sorted(rows, key=lambda row: str(row["id"])))
    assert found[0] == found[1]
    assert {row["split"] for row in found[0]} == {"train", "heldout"}


def test_arrow_data_is_checked_as_strictly_as_records(store: treering.Store, support: treering.Corpus) -> None:
    with support.capture() as live:
        good = live.extend(
            pa.table({"text": ["a", "b", None], "label": ["x", "y", "z"], "split": ["train", "test", "train"]})
        )
        assert (good.acknowledged, [i for i, _ in good.refused]) == (1, [1, 2])
        with pytest.raises(treering.InvalidRecordError) as caught:
            live.extend(pa.table({"text": [1], "lable": ["x"]}))
    assert {(p.loc, p.kind) for p in caught.value.problems} == {
        (("text",), "wrong-type"),
        (("lable",), "unknown-field"),
        (("label",), "missing-field"),
    }
    assert len(live_ids(store)) == 1


def test_threads_share_a_recorder_and_its_syncs(
    store: treering.Store, support: treering.Corpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    inserts: list[int] = []
    together = spool._insert

    def counted(log: Any, writes: Sequence[Any]) -> None:
        inserts.append(len(writes))
        together(log, writes)

    monkeypatch.setattr(spool, "_insert", counted)
    with support.capture() as live:
        live.add(record("first"))
        log = live._spool._log
        with log.turn:  # as somebody whose write takes long would have it
            threads = [threading.Thread(target=live.add, args=(record(f"t{n}"),)) for n in range(8)]
            for thread in threads:
                thread.start()
            end = time.monotonic() + 60.0
            while log.waiting.qsize() < 7 and time.monotonic() < end:  # one may be in the hands of the spool's thread
                time.sleep(0.002)
        for thread in threads:
            thread.join()
    assert len(live_ids(store)) == 9
    assert sum(inserts) == 8
    assert max(inserts) >= 7


def test_threads_that_add_at_once_lose_nothing(store: treering.Store, support: treering.Corpus) -> None:
    with support.capture() as live:
        threads = [
            threading.Thread(target=lambda t=t: [live.add(record(f"{t}-{i}")) for i in range(100)]) for t in range(8)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(live_ids(store)) == 800


def test_a_killed_process_loses_nothing_it_acknowledged(store: treering.Store, support: treering.Corpus) -> None:
    code = (
        "import os, sys, treering\n"
        "from treering.capture import recorder\n"
        "recorder.FLUSH_AFTER_S = recorder.FLUSH_ROWS = 10**9\n"
        "live = treering.open(sys.argv[1]).corpus('support').capture()\n"
        "live.extend([{'id': f'r{i}', 'text': 't', 'label': 'l'} for i in range(500)] + [{'text': 'no label'}])\n"
        "os.kill(os.getpid(), 9)\n"
    )
    assert subprocess.run([sys.executable, "-c", code, store.uri], check=False).returncode == -9
    assert live_ids(store) == []
    assert support.snapshot().rows == 500  # type: ignore[union-attr]
    assert len(support.quarantine()) == 1
    assert list((Path(store.uri) / "spool").rglob("*.*")) == []


def test_a_spool_in_use_is_left_to_its_owner(store: treering.Store, support: treering.Corpus) -> None:
    code = (
        "import sys, treering\n"
        "from treering.capture import recorder\n"
        "recorder.FLUSH_AFTER_S = recorder.FLUSH_ROWS = 10**9\n"
        "live = treering.open(sys.argv[1]).corpus('support').capture()\n"
        "live.add({'id': 'a', 'text': 't', 'label': 'l'})\n"
        "print('added', flush=True); sys.stdin.readline(); live.close()\n"
    )
    other = subprocess.Popen(
        [sys.executable, "-c", code, store.uri], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert other.stdout
    assert other.stdout.readline() == "added\n"
    assert support.snapshot() is None
    other.communicate("\n", timeout=60)
    assert live_ids(store) == ["a"]


def test_a_recorder_is_refused_in_a_forked_child(support: treering.Corpus) -> None:
    with support.capture() as live:
        owner, live._pid = live._pid, -1
        with pytest.raises(treering.UsageError, match="belongs to the process"):
            live.add(record("a"))
        live._pid = owner


def test_a_closed_recorder_says_so(support: treering.Corpus) -> None:
    live = support.capture()
    live.close()
    live.close()
    with pytest.raises(treering.UsageError, match="closed"):
        live.add(record("a"))


def test_store_durability_acknowledges_what_is_in_the_table(store: treering.Store, support: treering.Corpus) -> None:
    with support.capture(durability="store") as live:
        live.add(record("a"))
        assert live_ids(store) == ["a"]


def test_fragments_stay_bounded_however_records_arrive(store: treering.Store, support: treering.Corpus) -> None:
    with support.capture() as live:
        for i in range(60):
            live.add(record(f"r{i}"))
            live.flush()
            live._compact_if_due()
    assert len(support.table.head().get_fragments()) <= 16
    assert len(live_ids(store)) == 60


def test_a_batch_that_is_known_in_part_counts_each_record_once(support: treering.Corpus) -> None:
    with support.capture() as live:
        live.extend([record(f"r{i}") for i in range(30)])
    with support.capture() as live:
        live.extend([record(f"r{i}") for i in range(20, 50)])
    assert (live.counts.stored, live.counts.duplicates) == (20, 10)


def test_importing_a_file_twice_adds_nothing(store: treering.Store, support: treering.Corpus, tmp_path: Path) -> None:
    from treering.capture.importer import import_file

    lines = [json.dumps({"text": f"t{i % 50}", "label": "a"}) for i in range(100)]  # every line is there twice
    lines[10] = '{"text": "cut o'
    path = tmp_path / "records.jsonl"
    path.write_text("\n".join(lines) + "\n\n")
    first = import_file(support, str(path))
    assert (first.read, first.stored, first.refused) == (101, 99, 1)
    assert [(line, problems[0].kind) for line, problems in first.problems] == [(11, "bad-json")]
    assert support.quarantine()[0].source == f"{path}:11"
    second = import_file(support, str(path))
    assert (second.stored, second.duplicates, second.refused) == (0, 99, 1)
    assert len(live_ids(store)) == 99
    assert len(support.quarantine()) == 1
    other = tmp_path / "other.jsonl"
    other.write_bytes(codecs.BOM_UTF8 + lines[0].encode())
    assert import_file(support, str(other)).stored == 1  # another file: another user who said the same


def test_a_damaged_archive_is_an_error_of_ours(support: treering.Corpus, tmp_path: Path) -> None:
    from treering.capture.importer import import_file

    path = tmp_path / "records.jsonl.gz"
    whole = gzip.compress(b'{"text": "t", "label": "l"}\n' * 1_000)
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(treering.StoreError, match="can't read"):
        import_file(support, str(path))


def test_capture_never_imports_torch(store: treering.Store, support: treering.Corpus) -> None:
    code = (
        "import sys, treering\n"
        "c = treering.open(sys.argv[1]).corpus('support')\n"
        "with c.capture() as live: live.add({'text': 't', 'label': 'l'})\n"
        "c.snapshot().digest\n"
        "assert 'torch' not in sys.modules\n"
    )
    env = {k: v for k, v in os.environ.items() if not k.startswith("COV")}
    subprocess.run([sys.executable, "-c", code, store.uri], check=True, env=env)


@contextmanager
def adding(live: Recorder, n: int = 2) -> Iterator[list[str]]:
    """Threads that add records all the while; yields the ids that were acknowledged."""
    acknowledged: list[str] = []
    stop = threading.Event()

    def work(who: int) -> None:
        number = 0
        while not stop.is_set():
            try:
                acknowledged.append(live.add(record(f"{who}-{number}")).id)
            except treering.UsageError:  # closed
                return
            number += 1

    threads = [threading.Thread(target=work, args=(who,)) for who in range(n)]
    for thread in threads:
        thread.start()
    try:
        while len(acknowledged) < 20:
            time.sleep(0.005)
        yield acknowledged
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def stored_ids(store: treering.Store) -> Counter[str]:
    refs = ["support@live", *(s.ref for s in store.corpus("support").snapshots())]
    return Counter(i for ref in refs for i in store.load(ref).to_table(["id"]).column(0).to_pylist())


@pytest.mark.timeout(60)
def test_flush_snapshot_and_close_end_while_others_keep_adding(store: treering.Store, support: treering.Corpus) -> None:
    live = support.capture()
    with adding(live) as acknowledged:
        live.flush()
        assert support.snapshot()
        live.flush()
        live.close()
    assert stored_ids(store) == Counter(acknowledged)
    assert list((Path(store.uri) / "spool").rglob("*.*")) == []


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="needs interval timers")
@pytest.mark.timeout(120, method="thread")  # the other method needs the timer that the test uses
def test_an_interrupt_leaves_the_recorder_usable(store: treering.Store, support: treering.Corpus) -> None:
    def interrupt(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    sent, acknowledged = 0, []
    live = support.capture()
    acknowledged.append(
        live.add(record("first")).id
    )  # pydantic names an interrupt while it builds a validator otherwise
    try:
        for n in range(40):
            try:
                # Again after a while: an interrupt that lands in a callback of the collector is only printed.
                signal.setitimer(signal.ITIMER_REAL, 0.001 + n % 10 * 0.0007, 0.2)
                while True:
                    sent += 1
                    acknowledged.append(live.add(record(f"r{sent}")).id)
            except KeyboardInterrupt:
                signal.setitimer(signal.ITIMER_REAL, 0)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert live.add(record("last")).status == "stored"
    live.close()
    assert set(acknowledged) | {"last"} <= set(live_ids(store))


class Unprintable:
    def __repr__(self) -> str:
        raise RuntimeError("boom")


def odd_records() -> dict[str, Any]:
    circular: dict[str, Any] = {}
    circular["self"] = circular
    deep: Any = []
    for _ in range(5_000):
        deep = [deep]
    return {
        "keys that aren't text": {(1, 2): "x"},
        "circular": circular,
        "circular meta": {"text": "t", "label": "l", "meta": circular},
        "deep": {"text": deep, "label": "l"},
        "deep meta": {"text": "t", "label": "l", "meta": {"x": deep}},
        "unprintable": {"text": Unprintable(), "label": "l"},
        "huge integer": {"text": 10**5_000, "label": "l"},
        "lone surrogate": {"text": "\ud800", "label": "l"},
        "lone surrogate in a key": {"text": "t", "label": "l", "\ud800": 1},
        "bytes": b"x",
        "nothing": None,
    }


@pytest.mark.parametrize("what", sorted(odd_records()))
def test_whatever_comes_is_refused_by_name_and_never_blocks_the_rest(
    store: treering.Store, support: treering.Corpus, what: str
) -> None:
    odd = odd_records()[what]
    with support.capture() as live:
        with pytest.raises(treering.InvalidRecordError):
            live.add(odd)
        receipts = live.extend([record("a"), odd, record("b")])
        assert (receipts.acknowledged, [i for i, _ in receipts.refused]) == (2, [1])
    assert live_ids(store) == ["a", "b"]
    assert len(support.quarantine()) == 2


def test_arrow_values_that_would_poison_the_table_are_refused(store: treering.Store, support: treering.Corpus) -> None:
    bad_text = pa.Array.from_buffers(
        pa.string(),
        2,
        [
            None,
            pa.py_buffer((0).to_bytes(4, "little") + (1).to_bytes(4, "little") + (3).to_bytes(4, "little")),
            pa.py_buffer(b"a\xff\xfe"),
        ],
    )
    times = pa.array([2**62, 0], pa.timestamp("us", "UTC"))
    with support.capture() as live:
        for table in (
            pa.table({"text": bad_text, "label": ["l", "l"]}),
            pa.table({"text": ["x", "y"], "label": ["l", "l"], "ts": times}),
            pa.table({"text": ["x", "y"], "label": ["l", "l"], "ts": pa.array([2**62, 0], pa.timestamp("s", "UTC"))}),
        ):
            receipts = live.extend(table)
            assert (receipts.acknowledged, len(receipts.refused)) == (1, 1)
    assert len(store.live("support").to_table()) == 3
    assert len(support.quarantine()) == 3


def test_arrow_data_in_any_container_is_taken(store: treering.Store, support: treering.Corpus) -> None:
    table = pa.table(
        {"text": pa.array(["x", "y"]).dictionary_encode(), "label": pa.array(["a", "b"], pa.large_string())}
    )
    with support.capture() as live:
        for data in (table, table.to_batches()[0], table.to_batches(), table.to_reader()):
            assert live.extend(data).acknowledged == 2
        for wrong in (None, 3, "text", {"text": "t"}):
            with pytest.raises(treering.UsageError):
                live.extend(wrong)  # type: ignore[arg-type]
        with pytest.raises(treering.InvalidRecordError, match="one column of this name"):
            live.extend(pa.Table.from_arrays([pa.array(["x"])] * 2, names=["text", "text"]))
        with pytest.raises(treering.InvalidRecordError, match="label"):
            live.extend(pa.table({"text": pa.array([], pa.string())}))
    assert len(live_ids(store)) == 8


def test_arrow_chats_need_only_the_members_they_have(store: treering.Store) -> None:
    with store.create("talks", "chat").capture() as live:
        receipts = live.extend(
            pa.table({"messages": [[{"role": "user", "content": "hi"}], [{"role": "bot", "content": "x"}]]})
        )
    assert (receipts.acknowledged, [i for i, _ in receipts.refused]) == (1, [1])


def test_a_damaged_orphan_is_set_aside_and_stops_nothing(store: treering.Store, support: treering.Corpus) -> None:
    folder = Path(store.uri) / "spool" / support.record.table
    folder.mkdir(parents=True)
    (folder / "1-abc.sqlite").write_bytes(b"garbage" * 1_000)
    with pytest.warns(UserWarning, match="can't be read"), support.capture() as live:
        live.add(record("a"))
    assert live_ids(store) == ["a"]
    assert [p.name for p in folder.iterdir() if p.suffix == ".damaged"] == ["1-abc.damaged"]


def test_what_cannot_be_committed_now_is_committed_later(
    store: treering.Store, support: treering.Corpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recorder_module, "FLUSH_AFTER_S", 0.1)
    failing = True
    original = LanceTable.make_durable

    def broken(self: LanceTable, dataset: Any) -> None:
        if failing:
            raise treering.StoreError("the disk is on fire")
        original(self, dataset)

    monkeypatch.setattr(LanceTable, "make_durable", broken)
    with support.capture() as live:
        live.extend([record("a"), record("a", "other")])
        with pytest.raises(treering.StoreError):
            live.flush()
        time.sleep(0.5)
        failing = False
        end = time.monotonic() + 60
        while live._spool.backlog() != (0, 0) and time.monotonic() < end:
            time.sleep(0.05)
        assert live_ids(store) == ["a"]
    assert len(support.quarantine()) == 1


def test_capture_pauses_while_too_much_waits(support: treering.Corpus, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recorder_module, "MAX_BACKLOG_BYTES", 20_000)
    monkeypatch.setattr(recorder_module, "FLUSH_BYTES", 10_000)
    most = 0
    with support.capture() as live:
        for n in range(60):
            live.extend([record(f"{n}-{i}", "x" * 500) for i in range(10)])
            most = max(most, live._spool.backlog()[1])
    assert most < 60_000
    assert live.counts.stored == 600


def test_large_records_are_spooled_and_committed_by_their_bytes(
    store: treering.Store, support: treering.Corpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recorder_module, "_SPOOL_BYTES", 1 << 20)
    with support.capture() as live:
        live.extend([record(f"r{i}", "x" * 2_000_000) for i in range(5)])
    assert len(live_ids(store)) == 5


def test_a_schema_given_at_opening_is_checked_however_records_come(
    store: treering.Store, support: treering.Corpus
) -> None:
    corpus = store.corpus("support", schema=Short)
    for one in (corpus, pickle.loads(pickle.dumps(corpus))):
        with one.capture() as live:
            assert live.extend([{"text": "abcd", "label": "l"}]).acknowledged == 0
            assert live.extend(pa.table({"text": ["abcd"], "label": ["l"]})).acknowledged == 0
    assert isinstance(corpus, BaseCorpus)


class Visit(Record):
    text: str
    seen: datetime


@pytest.mark.parametrize("text", ["9999-12-31T23:59:59-23:59", "0001-01-01T00:00:00+10:00"])
@pytest.mark.parametrize(("schema", "field"), [("labelled", "ts"), (Visit, "seen")])
def test_a_time_that_no_utc_clock_shows_is_refused(store: treering.Store, schema: Any, field: str, text: str) -> None:
    # It would be stored, and nothing could ever read it: neither head nor a loader.
    corpus = store.create("visits", schema=schema)
    record = {"text": "t", field: datetime.fromisoformat(text), **({"label": "l"} if schema == "labelled" else {})}
    with corpus.capture() as live:
        with pytest.raises(InvalidRecordError, match="years 1 to 9999 in UTC"):
            live.add(record)
        assert [position for position, _ in live.extend([record]).refused] == [0]
    assert store.live("visits").to_table().to_pylist() == []
