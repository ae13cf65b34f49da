"""A corpus' writer goes on, whatever one request does."""

from __future__ import annotations

import sqlite3
import threading
import time
from typing import Any

import httpx
import pytest

import treering
from treering.errors import StoreError
from treering.server.limits import Limits
from treering.server.run import prepare
from treering.server.writers import Writer

from .running import Running, ids, labelled, running

RECORDS = "/v1/corpora/notes/records"


def test_a_request_that_was_given_up_leaves_its_writer_at_work(store: treering.Store, notes: treering.Corpus) -> None:
    assert store.root is not None
    with running(store, Limits(answer_s=1.0)) as server:
        assert server.post(RECORDS, labelled(1)).status_code == 200
        (spool,) = store.root.glob("spool/*/*.sqlite")
        stuck = sqlite3.connect(spool, isolation_level=None)
        stuck.execute("BEGIN IMMEDIATE")  # a disk that hangs
        answer = server.post(RECORDS, labelled(1, "slow"))
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "too-slow")
        stuck.execute("ROLLBACK")
        stuck.close()
        time.sleep(0.5)
        assert server.post(RECORDS, labelled(2)).status_code == 200
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
        prepared.service.writers.all()[0]._thread.join(10)
        assert (http.get("/health").status_code, http.get("/health").json()["status"]) == (503, "failed")
        monkeypatch.setattr(Writer, "_serve", serve)
        assert server.post(RECORDS, labelled(1)).status_code == 200
        assert http.get("/health").status_code == 200
        monkeypatch.setattr(Writer, "_serve", broken)
        assert server.post(RECORDS, labelled(1, "again")).status_code == 503
    prepared.stop()
    thread.join(30)
    assert [type(one) for one in failures] == [StoreError]
    assert ids(store) == ["r0"]
