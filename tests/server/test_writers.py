"""A corpus' writer goes on, whatever one request does."""

from __future__ import annotations

import sqlite3
import threading
from typing import Any

import httpx
import pyarrow as pa
import pytest

import treering
from tests.waiting import wait_for
from treering.capture import Recorder
from treering.errors import InvalidRecordError, StoreError
from treering.server.bodies import Given
from treering.server.limits import Limits
from treering.server.run import prepare
from treering.server.writers import Writer

from .running import Running, ids, labelled, running

RECORDS = "/v1/corpora/notes/records"


def test_a_request_that_was_given_up_leaves_its_writer_at_work(store: treering.Store, notes: treering.Corpus) -> None:
    assert store.root is not None
    with running(store, Limits(answer_s=1.0)) as server:
        wait_for(lambda: server.post(RECORDS, labelled(1)).status_code == 200)
        (spool,) = store.root.glob("spool/*/*.sqlite")
        stuck = sqlite3.connect(spool, isolation_level=None)
        stuck.execute("BEGIN IMMEDIATE")  # a disk that hangs
        answer = server.post(RECORDS, labelled(1, "slow"))
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "too-slow")
        stuck.execute("ROLLBACK")
        stuck.close()
        wait_for(lambda: server.post(RECORDS, labelled(2)).status_code == 200)
        assert server.http.get("/health").json()["status"] == "ok"
    assert ids(store) == ["r0", "r1", "slow0"]


def test_a_writer_that_ends_by_a_defect_is_told_of_replaced_and_the_stop_says_so(
    store: treering.Store, notes: treering.Corpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    serve = Writer._serve

    def broken(self: Writer, batches: list[Any]) -> None:
        raise MemoryError

    prepared = prepare(store, port=0, limits=Limits(answer_s=5.0))
    failures: list[Exception] = []

    def run() -> None:
        try:
            prepared.run()
        except Exception as exc:
            failures.append(exc)

    thread = threading.Thread(target=run)
    thread.start()
    with httpx.Client(base_url=prepared.url, timeout=30) as http:
        server = Running(prepared.url, store, prepared, http)
        monkeypatch.setattr(Writer, "_serve", broken)
        answer = server.post(RECORDS, labelled(1))
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "writer-ended")
        prepared.service.writers.all()[0]._thread.join(60)
        assert (http.get("/health").status_code, http.get("/health").json()["status"]) == (503, "failed")
        monkeypatch.setattr(Writer, "_serve", serve)
        assert server.post(RECORDS, labelled(1)).status_code == 200
        assert http.get("/health").status_code == 200
        monkeypatch.setattr(Writer, "_serve", broken)
        assert server.post(RECORDS, labelled(1, "again")).status_code == 503
    prepared.stop()
    thread.join(60)
    assert [type(one) for one in failures] == [StoreError]
    assert ids(store) == ["r0"]


def test_tables_that_come_at_once_are_stored_as_one_and_answered_each_for_itself(
    store: treering.Store, notes: treering.Corpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    stored: list[int] = []
    extend = Recorder.extend

    def counted(self: Recorder, records: Any, **more: Any) -> Any:
        stored.append(len(records))
        return extend(self, records, **more)

    monkeypatch.setattr(Recorder, "extend", counted)
    writer = Writer(notes, Limits())
    go_on = threading.Event()
    writer.call(lambda _: go_on.wait(20))

    def given(name: str, texts: list[str | None], **more: list[Any]) -> Given:
        count = len(texts)
        columns = {"id": [f"{name}{n}" for n in range(count)], "text": texts, "label": ["l"] * count}
        return Given(count, table=pa.table({**columns, **more}))

    first = writer.submit(given("a", ["t", None, "t"]), "one")
    second = writer.submit(given("b", ["t", "t"]), "two")
    unfit = writer.submit(given("c", ["t"], nonsense=[1]), "three")
    third = writer.submit(given("d", [None]), "four")
    go_on.set()
    assert [(one.id, one.status) for one in first.result(20)] == [("a0", "stored"), ("a1", "refused"), ("a2", "stored")]
    assert [(one.id, one.status) for one in second.result(20)] == [("b0", "stored"), ("b1", "stored")]
    assert [(one.id, one.status) for one in third.result(20)] == [("d0", "refused")]
    with pytest.raises(InvalidRecordError, match="nonsense"):
        unfit.result(20)
    assert (writer.tally.stored, writer.tally.refused) == (4, 2)
    assert stored == [5, 1, 1]
    writer.close()
    assert ids(store) == ["a0", "a2", "b0", "b1"]
    assert sorted(one.source or "" for one in notes.quarantine()) == ["four:1", "one:2"]


def test_of_requests_that_come_at_once_each_record_is_looked_at_by_its_id(
    store: treering.Store, notes: treering.Corpus
) -> None:
    writer = Writer(notes, Limits())
    writer.submit(Given(1, labelled(1, "old"), range(1)), "before").result(20)
    go_on = threading.Event()
    writer.call(lambda _: go_on.wait(20))
    several = [
        labelled(3, "new"),
        [*labelled(1, "old"), *labelled(1, "x")],  # one that was stored before
        [*labelled(1, "y"), *labelled(2, "new")],  # two that came in the request before this one
        [*labelled(1, "z"), *labelled(1, "z")],  # the same twice
    ]
    futures = [writer.submit(Given(len(one), one, range(len(one))), "http") for one in several]
    go_on.set()
    assert [[one.status for one in future.result(20)] for future in futures] == [
        ["stored", "stored", "stored"],
        ["duplicate", "stored"],
        ["stored", "duplicate", "duplicate"],
        ["stored", "duplicate"],
    ]
    writer.close()
    assert ids(store) == sorted(["old0", "new0", "new1", "new2", "x0", "y0", "z0"])
