"""`treering serve` before a store on an object store: what it answered with 200 outlives it, and is in the bucket once."""

from __future__ import annotations

import json
import signal
import socket
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import httpx
import pytest

import treering
from tests.s3.test_faults import faulty
from tests.s3.test_promises import assert_ended, start
from tests.server.running import Process, labelled, lasting_port
from tests.waiting import wait_for
from treering.testing.objectstore import LocalS3

RECORDS = "/v1/corpora/notes/records"

#: What another host finds: ids of each corpus' live, as often as they are there. It has no spool of the server's.
READER = """
import json, sys, treering
store = treering.open(sys.argv[1], create=False)
print(json.dumps({one.name: store.live(one.name).to_table(["id"]).column(0).to_pylist() for one in store.corpora()}))
"""


@pytest.fixture
def served(remote: treering.Store) -> treering.Store:
    remote.create("notes", "labelled")
    remote.create("chats", "chat")
    return remote


def serve(store: treering.Store, s3: LocalS3, port: int = 0) -> Process:
    """Its options come from the environment alone, as they do on a host."""
    return Process(store.uri, "--hold-s", "3600", port=port, environment=s3.environment)


def elsewhere(store: treering.Store, s3: LocalS3, host: Path) -> dict[str, Counter[str]]:
    found = json.loads(assert_ended(start(READER, store.uri, server=s3, state=host / "elsewhere")))
    return {name: Counter(ids) for name, ids in found.items()}


def export(call: int) -> dict[str, Any]:
    """An OTLP export of one call, the `call`-th of its conversation."""

    def said(role: str, text: str) -> dict[str, Any]:
        return {"role": role, "parts": [{"type": "text", "content": text}]}

    asked = [one for n in range(call) for one in (said("user", f"question {n}"), said("assistant", f"answer {n}"))]
    attributes = {
        "gen_ai.operation.name": "chat",
        "gen_ai.conversation.id": "c1",
        "gen_ai.input.messages": json.dumps([*asked, said("user", f"question {call}")]),
        "gen_ai.output.messages": json.dumps([said("assistant", f"answer {call}")]),
    }
    began = 1_790_000_000_000_000_000 + call
    span = {
        "traceId": f"{call + 1:032x}", "spanId": f"{call + 1:016x}", "name": "chat", "kind": 3,
        "startTimeUnixNano": str(began), "endTimeUnixNano": str(began + 1_000),
        "attributes": [{"key": name, "value": {"stringValue": value}} for name, value in attributes.items()],
    }  # fmt: skip
    return {"resourceSpans": [{"scopeSpans": [{"spans": [span]}]}]}


def test_what_a_server_acknowledged_before_a_kill_is_in_the_bucket_once_after_its_next_start(
    served: treering.Store, s3: LocalS3, host: Path
) -> None:
    batches = [labelled(50, f"b{n}-") for n in range(40)]
    answers: dict[int, int] = {}
    first = serve(served, s3, lasting_port())

    def capture() -> None:
        with httpx.Client(base_url=first.url, timeout=30) as http:
            for n, batch in enumerate(batches):
                if n == 20:
                    first.popen.kill()  # under way: what it acknowledged lies in its spool, some of it in the bucket
                try:
                    answers[n] = http.post(RECORDS, json=batch).status_code
                except httpx.TransportError:
                    return
                if n == 10:
                    wait_for(lambda: elsewhere(served, s3, host)["notes"])  # a commit falls in between

    with httpx.Client(base_url=first.url, timeout=30) as http:
        assert http.get("/health").json()["status"] == "ok"
        for n in range(2):
            said = http.post("/v1/traces", json=export(n), headers={"x-treering-corpus": "chats"})
            assert (said.status_code, said.json()) == (200, {"partialSuccess": {}})
    thread = threading.Thread(target=capture)
    thread.start()
    thread.join(120)
    assert first.end() == -signal.SIGKILL
    assert set(answers.values()) == {200}
    assert len(answers) >= 20
    before = elsewhere(served, s3, host)["notes"]
    assert 0 < sum(before.values()) <= 50 * len(answers)  # a host's disk keeps the rest

    again = serve(served, s3, first.port)
    try:
        with httpx.Client(base_url=again.url, timeout=30) as http:
            for n, batch in enumerate(batches[8:], 8):  # who heard nothing sends again, and some who did
                lines = "".join(json.dumps(one) + "\n" for one in batch).encode()
                said = http.post(RECORDS, content=lines, headers={"content-type": "application/x-ndjson"})
                assert (said.status_code, said.json()["refused"]) == (200, 0), (n, said.text)
            for n in range(3):  # and so does the exporter
                said = http.post("/v1/traces", json=export(n), headers={"x-treering-corpus": "chats"})
                assert said.status_code == 200
            status = http.get("/v1/corpora/notes/status").json()
            assert status["corpus"] == "notes"
            assert http.get("/v1/corpora/notes/head?n=3").status_code == 200
            metrics = http.get("/metrics").text
            assert 'treering_requests_total{route="/v1/corpora/{name}/records",status="200"} 32.0' in metrics
    finally:
        assert again.end() == 0
    found = elsewhere(served, s3, host)
    assert found["notes"] == Counter(one["id"] for batch in batches for one in batch)
    assert sum(found["chats"].values()) == 1  # the three calls are one conversation
    (chat,) = served.live("chats").to_table().to_pylist()
    assert [m["content"] for m in chat["messages"]] == [
        f"{who} {n}" for n in range(3) for who in ("question", "answer")
    ]
    assert list(served.host_dir.rglob("spool/**/*.sqlite")) == []  # committed: nothing is left to take over


def test_a_server_that_is_told_to_stop_commits_what_it_accepted_to_the_bucket(
    served: treering.Store, s3: LocalS3, host: Path
) -> None:
    server = serve(served, s3)
    body = json.dumps(labelled(100, "late")).encode()
    head = f"POST {RECORDS} HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: application/json\r\n"
    try:
        with (
            socket.create_connection(("127.0.0.1", server.port), timeout=30) as under_way,
            httpx.Client(base_url=server.url, timeout=30) as http,
        ):
            assert http.post(RECORDS, json=labelled(100, "early")).json()["stored"] == 100
            under_way.sendall(f"{head}content-length: {len(body)}\r\n\r\n".encode() + body[:100])
            for _ in range(3):  # by then the server has read what came before
                http.get("/health")
            server.popen.send_signal(signal.SIGTERM)
            wait_for(lambda: http.get("/health").json()["status"] == "stopping")
            assert http.post(RECORDS, json=labelled(1, "new")).status_code == 503
            under_way.sendall(body[100:])
            assert under_way.recv(65_536).startswith(b"HTTP/1.1 200")
        assert server.end() == 0
    finally:
        server.end(signal.SIGKILL)
    wanted = Counter(one["id"] for name in ("early", "late") for one in labelled(100, name))
    assert elsewhere(served, s3, host)["notes"] == wanted


def test_a_server_whose_bucket_goes_away_goes_on_taking_records_and_says_at_its_end_that_they_wait(
    s3: LocalS3, host: Path
) -> None:
    with faulty(s3) as (through, proxy):
        proxy.share = 0.0
        store = treering.open(s3.uri(), storage_options=s3.storage_options)
        store.create("notes", "labelled")
        server = serve(store, through)
        try:
            with httpx.Client(base_url=server.url, timeout=60) as http:
                assert http.post(RECORDS, json=labelled(50, "before")).json()["stored"] == 50
                time.sleep(2.5)
                proxy.share = 1.0  # every request to the bucket fails from here on
                assert http.post(RECORDS, json=labelled(50, "during")).json()["stored"] == 50
                assert http.get("/health").status_code == 200
                assert http.get("/v1/corpora/notes/snapshots").status_code == 503  # of this the bucket alone knows
        finally:
            server.popen.send_signal(signal.SIGTERM)
            _, said = server.popen.communicate(timeout=120)
    assert server.popen.returncode == 6, said
    assert "acknowledged is on disk" in said
    assert "Traceback" not in said  # a bucket that is away is no defect: a line of log each
    assert s3.secret not in said
    again = serve(store, s3)
    with httpx.Client(base_url=again.url, timeout=60) as http:
        assert http.post(RECORDS, json=labelled(1, "after")).json()["stored"] == 1
    assert again.end() == 0
    sent = [*labelled(50, "before"), *labelled(50, "during"), *labelled(1, "after")]
    wanted = Counter(one["id"] for one in sent)
    assert elsewhere(store, s3, host)["notes"] == wanted
