"""Annotations: later words on records, kept for good, pinned by whoever reads them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

import treering
from treering.errors import ConflictError, InvalidRecordError, NotFoundError, UsageError
from treering.store.annotations import ANNOTATION_SCHEMA, AnnotationLog
from treering.store.source import Source


def fill(corpus: treering.Corpus, prefix: str, rows: int, **fields: Any) -> None:
    with corpus.capture() as live:
        live.extend([{"id": f"{prefix}-{n}", "text": f"{prefix} {n}", "label": "l", **fields} for n in range(rows)])


def said(corpus: treering.Corpus, **how: Any) -> list[tuple[str, str, Any]]:
    rows = corpus.annotations(**how).to_pylist()
    return [(row["id"], row["key"], json.loads(row["value"])) for row in rows]


def drawable(source: Source) -> set[str]:
    ids: set[str] = set()
    for segment in source.segments:
        for batch in segment.scan(["id"], "train"):
            ids.update(batch.column("id").to_pylist())
    return ids


def test_the_newest_word_counts_and_the_others_stay_as_history(support: treering.Corpus) -> None:
    fill(support, "a", 5)
    support.annotate("a-1", label="refund", quality=0.5, by="ann", note="at first sight")
    support.annotate("a-2", outcome={"solved": True}, correction={"text": "Sorry!"})
    support.annotate("a-1", label="invoice", by="bob")
    assert said(support) == [
        ("a-1", "quality", 0.5),
        ("a-2", "outcome", {"solved": True}),
        ("a-2", "correction", {"text": "Sorry!"}),
        ("a-1", "label", "invoice"),
    ]
    assert said(support, key="label", history=True) == [("a-1", "label", "refund"), ("a-1", "label", "invoice")]
    assert said(support, ids=["a-2", "a-3"], key="correction") == [("a-2", "correction", {"text": "Sorry!"})]
    first = support.annotations(history=True).to_pylist()[0]
    assert (first["by"], first["note"]) == ("ann", "at first sight")


def test_a_batch_says_many_things_and_its_last_word_counts(support: treering.Corpus) -> None:
    fill(support, "a", 5)
    table = pa.table({"id": ["a-1", "a-2", "a-1"], "exclude": [True, None, False], "quality": [1.0, 0.25, None]})
    assert support.annotate_many(table) == 4
    assert said(support) == [("a-1", "quality", 1.0), ("a-2", "quality", 0.25), ("a-1", "exclude", False)]


MEANINGLESS: list[tuple[Any, str]] = [
    ({"exclude": True}, "missing-field"),
    ({"id": "a-1"}, "missing-field"),
    ({"id": "a-1", "exclude": "yes"}, "wrong-type"),
    ({"id": "a-1", "exclude": 1}, "wrong-type"),
    ({"id": "a-1", "quality": float("nan")}, "wrong-type"),
    ({"id": "a-1", "quality": True}, "wrong-type"),
    ({"id": "a-1", "label": ""}, "wrong-type"),
    ({"id": "a-1", "outcome": {"x": object()}}, "wrong-type"),
    ({"id": "a-1", "labl": "x"}, "unknown-field"),
    ({"id": "a-1", "label": "\ud800"}, "bad-value"),
    ({"id": "a-1", "label": "x", "by": 7}, "wrong-type"),
    ("a-1", "wrong-type"),
]


def test_what_cant_be_meant_is_named_and_nothing_of_the_batch_is_stored(support: treering.Corpus) -> None:
    fill(support, "a", 5)
    for row, kind in MEANINGLESS:
        with pytest.raises(InvalidRecordError, match="annotation 1") as caught:
            support.annotate_many([{"id": "a-2", "label": "fine"}, row])
        assert kind in [problem.kind for problem in caught.value.problems]
    assert said(support) == []


def test_a_record_that_isnt_there_is_named_and_nothing_of_the_batch_is_stored(support: treering.Corpus) -> None:
    fill(support, "a", 5)
    with pytest.raises(NotFoundError, match="no record 'b-1'"):
        support.annotate_many([{"id": "a-2", "exclude": True}, {"id": "b-1", "exclude": True}])
    assert said(support) == []
    with pytest.raises(UsageError):
        support.annotate_many({"id": "a-2", "exclude": True})


def test_records_are_found_in_live_in_snapshots_and_in_the_spool(
    store: treering.Store, support: treering.Corpus
) -> None:
    fill(support, "a", 5)
    support.snapshot()
    assert support.snapshots()[0].digest  # the certificate with its id filter
    fill(support, "b", 5)
    support.snapshot()
    with support.capture() as live:
        live.add({"id": "c-0", "text": "just now", "label": "l"})
        support.annotate_many([{"id": i, "exclude": True} for i in ("a-0", "b-0", "c-0")])
    assert len(said(support)) == 3
    assert "a-0" not in drawable(store.load("support@v1..v2")) | drawable(store.live("support"))


def test_what_is_excluded_leaves_training_and_evaluation_and_stays_in_the_snapshot(
    store: treering.Store, support: treering.Corpus
) -> None:
    fill(support, "a", 40, split="train")
    fill(support, "h", 10, split="heldout")
    support.snapshot()
    digest = support.snapshots()[0].digest
    before = store.load("support@v1")
    support.annotate_many([{"id": i, "exclude": True} for i in ("a-3", "a-7", "h-4")])
    after = store.load("support@v1")
    assert drawable(after) == {f"a-{n}" for n in range(40)} - {"a-3", "a-7"}
    assert after.heldout().to_table(["id"]).num_rows == len(after.heldout()) == 9
    assert after.to_table(["id"]).num_rows == len(after) == 50
    assert support.snapshots()[0].digest == digest
    assert drawable(before) == {f"a-{n}" for n in range(40)}  # loaded before it was said
    support.annotate("a-3", exclude=False)
    assert "a-3" in drawable(store.load("support@v1"))


def test_a_lock_replays_with_what_was_said_by_then(
    store: treering.Store, support: treering.Corpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(support, "a", 120)
    support.snapshot()
    fill(support, "b", 60)
    support.annotate_many([{"id": f"a-{n}", "exclude": True} for n in range(30)])
    mix = store.mix("support@v1", "support@live", seed=3)
    lock = mix.lock(16)
    with mix.loader(16, columns=["id"]) as loader:
        expected = [batch["id"] for batch in loader]
    monkeypatch.setattr("treering.store.annotations._FRAGMENTS", 8)
    for n in range(25, 45):  # enough single words for the table of annotations to be compacted under way
        support.annotate(f"a-{n}", exclude=n >= 30, label="late")
    support.snapshot()
    support.compact()
    support.clean_up(older_than_s=0)
    assert len(support.annotation_log.table.fragment_rows(support.annotation_log.table.head())) <= 2
    with treering.MixLock.from_json(lock.to_json()).loader(store, columns=["id"]) as loader:
        assert [batch["id"] for batch in loader] == expected
    assert store.mix("support@v1", seed=3).lock(16).sources[0].pin != lock.sources[0].pin


def test_a_pin_whose_annotations_are_others_by_now_is_refused(store: treering.Store, support: treering.Corpus) -> None:
    fill(support, "a", 20, split="train")
    support.annotate("a-1", exclude=True)
    pin = store.live("support").pin()
    assert Source.from_pin(store, pin).pin() == pin
    with pytest.raises(ConflictError, match="excludes"):
        Source.from_pin(store, {**pin, "annotations": {**pin["annotations"], "digest": "0" * 64}})
    with pytest.raises(ConflictError, match="annotations"):
        Source.from_pin(store, {**pin, "annotations": {**pin["annotations"], "version": 10_000}})


def test_a_lock_without_annotations_says_nothing_of_them(store: treering.Store, support: treering.Corpus) -> None:
    fill(support, "a", 20)
    document = json.loads(store.mix("support@live").lock(4).to_json())
    assert set(document["sources"][0]) == {"pin", "units", "train_rows", "block_rows"}
    assert set(document["sources"][0]["pin"]) == {"ref", "corpus", "segments"}


def test_what_is_said_is_on_disk_when_the_call_returns(
    support: treering.Corpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: set[Path] = set()
    monkeypatch.setattr("treering.store.table.sync_file", synced.add)
    monkeypatch.setattr("treering.store.table.sync_directory", synced.add)
    fill(support, "a", 5)
    for n in range(3):
        support.annotate(f"a-{n}", exclude=True)
        table = support.annotation_log.table
        assert {Path(table.uri) / path for path in table.files(table.head())} <= synced


WORKER = """
import sys, treering
corpus = treering.open(sys.argv[1], create=False).corpus("support")
for n in range(12):
    corpus.annotate_many([{"id": "a-1", "label": f"{sys.argv[2]}-{n}"}, {"id": f"a-{n}", "quality": n, "by": sys.argv[2]}])
"""


def test_processes_that_speak_at_once_lose_no_word_and_agree_on_the_newest(support: treering.Corpus) -> None:
    fill(support, "a", 20)
    root = support.store.uri
    workers = [subprocess.Popen([sys.executable, "-c", WORKER, root, str(k)]) for k in range(3)]
    assert [worker.wait(120) for worker in workers] == [0, 0, 0]
    history = said(support, key="label", history=True)
    assert sorted(value for _, _, value in history) == sorted(f"{k}-{n}" for k in range(3) for n in range(12))
    for k in range(3):  # each speaker's words in its order
        assert [v for _, _, v in history if v.startswith(f"{k}-")] == [f"{k}-{n}" for n in range(12)]
    assert said(support, key="label") == history[-1:]
    log = support.annotation_log
    assert log.read(log.version(), key="label").to_pylist()[-1]["value"] == json.dumps(history[-1][2])
    assert len(said(support, key="quality")) == 12


def test_a_log_that_is_being_made_while_somebody_looks_isnt_there_yet(
    support: treering.Corpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    log, other = AnnotationLog(support), AnnotationLog(support)
    opening = log.table._newest

    def made_meanwhile() -> Any:  # looked for, made, opened: so far nothing of it has reached the disk
        with monkeypatch.context() as patched:
            patched.setattr(other.table, "make_durable", lambda head: None)
            other.table.create(ANNOTATION_SCHEMA)
        return opening()

    monkeypatch.setattr(log.table, "_newest", made_meanwhile)
    assert log.version() == 0
    monkeypatch.undo()
    assert log.version() == 0  # as who looks a moment later says
