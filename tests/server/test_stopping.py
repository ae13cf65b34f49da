"""The server as a process: how it ends, and what is left when it is killed."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import httpx
import pytest

import treering
from tests.waiting import wait_for
from treering.errors import ConflictError
from treering.server.run import prepare

from .running import Process, ids, labelled, process

RECORDS = "/v1/corpora/notes/records"


@pytest.fixture
def where(store: treering.Store, notes: treering.Corpus) -> Path:
    assert store.root is not None
    return store.root


def test_sigterm_ends_what_was_accepted_refuses_what_is_new_and_exits_with_0(
    store: treering.Store, where: Path
) -> None:
    with process(where) as server:
        body = json.dumps(labelled(3)).encode()
        head = f"POST {RECORDS} HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
        with (
            socket.create_connection(("127.0.0.1", server.port), timeout=20) as under_way,
            httpx.Client(base_url=server.url, timeout=20) as http,
        ):
            http.post(RECORDS, json=labelled(2, "before"))
            under_way.sendall(head.encode() + body[:20])
            for _ in range(3):  # by then the server has read what came before
                http.get("/health")
            server.popen.send_signal(signal.SIGTERM)
            wait_for(lambda: http.get("/health").json()["status"] == "stopping")
            refused = http.post(RECORDS, json=labelled(1, "after"))
            assert (refused.status_code, refused.json()["error"]["code"]) == (503, "stopping")
            assert refused.headers["connection"] == "close"
            assert int(refused.headers["retry-after"]) >= 1
            assert httpx.get(server.url + "/health").json()["status"] == "stopping"
            under_way.sendall(body[20:])
            assert under_way.recv(65536).startswith(b"HTTP/1.1 200")
        assert server.end() == 0
    assert ids(store) == sorted(["before0", "before1", "r0", "r1", "r2"])
    assert store.root is not None
    assert list((store.root / "spool").rglob("*.sqlite")) == []  # committed, nothing is left to adopt


def test_a_client_that_never_ends_its_body_does_not_hold_up_the_end(where: Path) -> None:
    with process(where) as server, socket.create_connection(("127.0.0.1", server.port)) as slow:
        slow.sendall(f"POST {RECORDS} HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-length: 500\r\n\r\n[".encode())
        time.sleep(0.2)
        began = time.monotonic()
        assert server.end() == 0
        assert time.monotonic() - began < 12


def test_a_port_that_is_taken_and_an_address_without_keys_end_in_one_clear_line(where: Path) -> None:
    def refused(*words: str) -> tuple[int, str]:
        command = [sys.executable, "-m", "treering.cli", "--store", str(where), "serve", *words]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
        assert done.stdout == ""
        return done.returncode, done.stderr

    with socket.create_server(("127.0.0.1", 0)) as taken:
        code, said = refused("--port", str(taken.getsockname()[1]))
        assert code == 2
        assert "can't listen on 127.0.0.1" in said
    code, said = refused("--host", "0.0.0.0", "--port", "0")
    assert code == 2
    assert "without keys anybody" in said
    assert "Traceback" not in said


def test_a_store_that_this_host_serves_is_not_served_twice_and_is_again_after_a_kill(
    where: Path, store: treering.Store
) -> None:
    with process(where) as first:
        with pytest.raises(ConflictError, match=f"process {first.popen.pid} at port {first.port}"):
            prepare(store, port=0)
        first.end(signal.SIGKILL)
        with process(where) as second:
            assert httpx.get(f"{second.url}/health").status_code == 200
            assert second.end() == 0
    prepare(store, port=0).service.close()


def test_what_was_acknowledged_survives_a_kill_and_is_there_after_the_next_start(
    store: treering.Store, where: Path
) -> None:
    acknowledged: list[str] = []
    for life in range(3):
        with process(where) as server:
            killer = threading.Timer(0.3 + 0.1 * life, server.popen.kill)
            killer.start()
            with httpx.Client(base_url=server.url, timeout=20) as http:
                for n in range(10_000):
                    batch = labelled(20, f"l{life}-{n}-")
                    try:
                        answer = http.post(RECORDS, json=batch)
                    except httpx.TransportError:
                        break
                    assert answer.status_code == 200
                    acknowledged += [one["id"] for one in batch]
            killer.join()
    last = Process(where)
    httpx.post(last.url + RECORDS, json=labelled(1, "end"))
    assert last.end() == 0
    found = ids(store)
    assert len(found) == len(set(found))
    assert set(acknowledged) <= set(found)
