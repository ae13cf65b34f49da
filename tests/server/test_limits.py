"""What a request may cost, and that who is slow or greedy costs nobody else anything."""

from __future__ import annotations

import contextlib
import gzip
import json
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import replace

import httpx
import pytest

import treering
from treering.server import limits
from treering.server.limits import Limits, Refusal, unzip

from .running import Running, ids, labelled, running

RECORDS = "/v1/corpora/notes/records"
MIB = 1 << 20


SMALL = Limits(max_body=64 << 10, max_decoded=256 << 10, max_records=500, max_header=4 << 10, max_connections=60)


@pytest.fixture
def small(store: treering.Store, notes: treering.Corpus) -> Iterator[Running]:
    with running(store, SMALL) as found:
        yield found


@pytest.fixture
def hasty(store: treering.Store, notes: treering.Corpus) -> Iterator[Running]:
    with running(store, replace(SMALL, header_s=0.6, body_s=0.6)) as found:
        yield found


def connect(server: Running) -> socket.socket:
    host, _, port = server.url.removeprefix("http://").rpartition(":")
    return socket.create_connection((host, int(port)), timeout=10)


def said(connection: socket.socket) -> bytes:
    """All that comes until the other side closes."""
    found = b""
    with contextlib.suppress(ConnectionResetError):
        while piece := connection.recv(65536):
            found += piece
    return found


def code(server: Running, body: bytes, **headers: str) -> tuple[int, str]:
    answer = server.post(RECORDS, body, **headers)
    return answer.status_code, answer.json()["error"]["code"]


def test_a_body_that_is_too_large_is_413_declared_or_not(small: Running) -> None:
    body = json.dumps([{"text": "x" * 70_000, "label": "l"}]).encode()
    assert code(small, body) == (413, "too-large")

    def chunks() -> Iterator[bytes]:
        yield from (body[at : at + 8192] for at in range(0, len(body), 8192))

    answer = small.http.post(RECORDS, content=chunks(), headers={"content-type": "application/json"})
    assert answer.status_code == 413
    assert small.prepared.service.budget.bytes == 0


def test_a_gzip_bomb_is_413_and_never_held_in_full(small: Running) -> None:
    bomb = gzip.compress(b" " * (30 * MIB))
    assert len(bomb) < 64 << 10
    assert code(small, bomb, content_encoding="gzip") == (413, "too-large")
    nested = gzip.compress(b"x" * 200_000) * 3  # members one after the other
    with pytest.raises(Refusal, match="when decompressed"):
        unzip(nested, 256 << 10)
    assert small.prepared.service.budget.bytes == 0


def test_gzip_data_of_many_members_is_refused_soon_and_holds_up_nobody(
    small: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    began = time.monotonic()
    with pytest.raises(Refusal, match="members"):
        unzip(gzip.compress(b"") * 150_000, 64 * MIB)
    assert time.monotonic() - began < 30  # one by one it would be minutes
    many = b"".join(gzip.compress(b"%d" % n * 10_000) for n in range(100))  # across the pieces that are read at once
    assert unzip(many, 64 * MIB) == gzip.decompress(many)

    begun, may_end = threading.Event(), threading.Event()

    def slowly(data: bytes, most: int) -> bytes:
        begun.set()
        may_end.wait(60)
        return unzip(data, most)

    monkeypatch.setattr(limits, "unzip", slowly)
    body = gzip.compress(b"[]")
    sending = threading.Thread(target=small.post, args=(RECORDS, body), kwargs={"content_encoding": "gzip"})
    sending.start()
    assert begun.wait(60)
    assert httpx.get(f"{small.url}/health").status_code == 200
    assert sending.is_alive()  # still at its data
    may_end.set()
    sending.join()


@pytest.mark.parametrize(
    "body", [b"not gzip", gzip.compress(b"{}", mtime=0)[:-3], gzip.compress(b"{}", mtime=0) + b"junk", b"\x1f\x8b"]
)
def test_what_is_not_gzip_is_400(small: Running, body: bytes) -> None:
    assert code(small, body, content_encoding="gzip") == (400, "bad-gzip")


def test_other_encodings_are_415(small: Running) -> None:
    assert code(small, b"{}", content_encoding="br") == (415, "bad-encoding")


def test_nesting_without_end_is_400(small: Running) -> None:
    assert code(small, b"[" * 60_000) == (400, "bad-json")
    assert code(small, b'{"text":"t","label":"l","meta":{"a":' + b"[" * 25_000 + b"]" * 25_000 + b"}}") == (
        400,
        "bad-json",
    )


def test_too_many_records_are_413(small: Running) -> None:
    assert code(small, b"[" + b"{}," * 600 + b"{}]") == (413, "too-many")
    assert code(small, b"{}\n" * 600, content_type="application/x-ndjson") == (413, "too-many")


def test_a_header_that_is_too_long_is_431(small: Running) -> None:
    with connect(small) as connection:
        connection.sendall(b"GET /health HTTP/1.1\r\nhost: 127.0.0.1\r\nx-more: " + b"y" * 8_000)
        assert said(connection).startswith(b"HTTP/1.1 431")
    with connect(small) as connection:
        connection.sendall(b"GET /" + b"a" * 8_000)
        assert said(connection).startswith(b"HTTP/1.1 431")


def test_many_small_header_fields_are_a_long_header_too(small: Running) -> None:
    with connect(small) as connection:
        began = time.monotonic()
        connection.sendall(b"GET /health HTTP/1.1\r\nhost: 127.0.0.1\r\n" + b"a:b\r\n" * 50_000 + b"\r\n")
        assert said(connection).startswith(b"HTTP/1.1 4")
        assert time.monotonic() - began < 30


def test_a_request_with_a_long_body_after_its_header_is_no_long_header(small: Running) -> None:
    body = json.dumps(labelled(200)).encode()
    assert len(body) > 4 << 10
    head = b"POST %b HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: application/json\r\ncontent-length: %d\r\nconnection: close\r\n\r\n"
    with connect(small) as connection:
        connection.sendall(head % (RECORDS.encode(), len(body)) + body)
        assert said(connection).startswith(b"HTTP/1.1 200")


def test_headers_and_bodies_that_come_too_slowly_are_408(hasty: Running) -> None:
    with connect(hasty) as slow_header, connect(hasty) as slow_body, connect(hasty) as silent:
        slow_header.sendall(b"GET /health HTTP/1.1\r\nhost:")
        slow_body.sendall(
            b"POST %b HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: application/json\r\ncontent-length: 50\r\n\r\n["
            % RECORDS.encode()
        )
        assert said(slow_header).startswith(b"HTTP/1.1 408")
        answered = slow_body.recv(4096)
        assert answered.startswith(b"HTTP/1.1 408")
        assert said(silent) == b""
    assert hasty.prepared.service.budget.bytes == 0


def test_a_connection_whose_body_nobody_reads_is_closed_in_time(hasty: Running) -> None:
    head = b"POST %b HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-length: 100000\r\n\r\n"
    with connect(hasty) as idle, connect(hasty) as trickling:
        idle.sendall(head % b"/health")  # answered before its body came
        trickling.sendall(head % b"/nowhere")
        for connection in (idle, trickling):
            connection.settimeout(60)
            assert connection.recv(65536).startswith(b"HTTP/1.1 40")
        with contextlib.suppress(ConnectionError):  # closed meanwhile, on a busy machine
            for _ in range(5):
                time.sleep(0.1)
                trickling.sendall(b"x")
        for connection in (idle, trickling):
            said(connection)  # ends


def test_what_is_no_http_is_answered_and_closed(small: Running) -> None:
    for noise in (
        b"\x16\x03\x01\x02\x00\x01\x00\x01",
        b"HELO\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"GET /\xff HTTP/1.1\r\nhost: x\r\n\r\n",
    ):
        with connect(small) as connection:
            connection.sendall(noise)
            assert said(connection).startswith(b"HTTP/1.1 4"), noise


def test_connections_beyond_the_limit_are_turned_away_and_those_there_go_on(small: Running) -> None:
    with contextlib.ExitStack() as stack:
        for _ in range(58):
            stack.enter_context(connect(small))
        assert small.http.get("/health").status_code == 200
        more = [stack.enter_context(connect(small)) for _ in range(4)]
        assert any(said(one).startswith(b"HTTP/1.1 503") for one in more[2:])


def test_slow_clients_do_not_stall_others(store: treering.Store, notes: treering.Corpus) -> None:
    """Five hundred that send a byte at a time, and one that is in a hurry."""
    with running(store, Limits(header_s=30, body_s=30)) as server, contextlib.ExitStack() as stack:
        slow = [stack.enter_context(connect(server)) for _ in range(500)]
        for n, one in enumerate(slow):
            if n % 2:
                one.sendall(
                    b"POST %b HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-length: 9999999\r\n\r\n[" % RECORDS.encode()
                )
            else:
                one.sendall(b"GET /hea")
        stop = threading.Event()

        def trickle() -> None:
            while not stop.wait(0.02):
                for one in slow[::10]:
                    with contextlib.suppress(OSError):
                        one.send(b" ")

        dripping = threading.Thread(target=trickle)
        dripping.start()
        try:
            began = time.monotonic()
            for n in range(20):
                assert server.post(RECORDS, labelled(10, f"b{n}-")).json()["stored"] == 10
            assert time.monotonic() - began < 10  # a smoke test: benchmarks/server.py measures
        finally:
            stop.set()
            dripping.join()
        assert server.prepared.service.budget.bytes < MIB  # what they declared isn't what they hold
    assert len(ids(store)) == 200


def test_when_the_queue_is_full_it_is_503_and_what_was_acknowledged_is_stored_exactly(
    store: treering.Store, notes: treering.Corpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    from treering.capture.recorder import Recorder

    extend = Recorder.extend

    def slowly(self: Recorder, *args: object, **kwargs: object) -> object:
        time.sleep(0.05)
        return extend(self, *args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(Recorder, "extend", slowly)
    acknowledged: list[str] = []
    refused = []
    with running(store, Limits(queue_requests=3)) as server:

        def send(worker: int) -> None:
            import httpx

            with httpx.Client(base_url=server.url, timeout=30) as http:
                for n in range(10):
                    batch = labelled(5, f"w{worker}-{n}-")
                    answer = http.post(RECORDS, json=batch)
                    if answer.status_code == 200:
                        acknowledged.extend(one["id"] for one in batch)
                    else:
                        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "full")
                        assert int(answer.headers["retry-after"]) >= 1
                        refused.append(batch)

        threads = [threading.Thread(target=send, args=(n,)) for n in range(12)]
        for one in threads:
            one.start()
        for one in threads:
            one.join()
    assert refused
    assert acknowledged
    assert ids(store) == sorted(acknowledged)


def test_bodies_beyond_what_may_be_held_at_once_are_503(store: treering.Store, notes: treering.Corpus) -> None:
    with running(store, Limits(queue_bytes=100_000)) as server:
        with connect(server) as holder:
            head = b"POST %b HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: application/json\r\ncontent-length: 95000\r\n\r\n"
            holder.sendall(head % RECORDS.encode() + b" " * 90_000)
            end = time.monotonic() + 60
            while server.prepared.service.budget.bytes < 90_000 and time.monotonic() < end:
                time.sleep(0.01)
            answer = server.post(RECORDS, json.dumps(labelled(300)).encode())
            assert (answer.status_code, answer.json()["error"]["code"]) == (503, "full")
            assert server.post(RECORDS, labelled(1)).status_code == 200
        end = time.monotonic() + 60
        while server.prepared.service.budget.bytes and time.monotonic() < end:
            time.sleep(0.01)
        assert server.prepared.service.budget.bytes == 0  # what was held is given back when its sender goes away


def test_readers_that_take_long_hold_up_nothing_that_comes_in_and_too_many_are_503(
    store: treering.Store, notes: treering.Corpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    import httpx

    let_go = threading.Event()
    monkeypatch.setattr(treering, "status", lambda *_: let_go.wait(30) and {})
    answers: list[int] = []
    with running(store, Limits(max_reads=6)) as server:

        def look() -> None:
            answers.append(httpx.get(f"{server.url}/v1/corpora/notes/status", timeout=60).status_code)

        threads = [threading.Thread(target=look) for _ in range(8)]
        try:
            for one in threads:
                one.start()
            end = time.monotonic() + 60
            while len(answers) < 2 and time.monotonic() < end:
                time.sleep(0.01)
            assert answers == [503, 503]
            large = [{**one, "text": "x" * 2_000} for one in labelled(300)]
            assert server.post(RECORDS, large).json()["stored"] == 300
        finally:
            let_go.set()
            for one in threads:
                one.join()
    assert sorted(answers) == [200] * 6 + [503] * 2
