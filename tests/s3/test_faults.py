"""A network that fails: one request in ten is refused, cut off, or carried out without an answer. Nothing is lost or doubled."""

from __future__ import annotations

import http.client
import logging
import random
import signal
import threading
import urllib.parse
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

import treering
from tests.s3.test_promises import everything, start
from treering.testing.objectstore import LocalS3


@dataclass
class Faults:
    """A proxy before a real server. A faulty request is refused, or carried out and then answered by 500 or by nothing."""

    target: str
    share: float = 0.1
    chance: random.Random = field(default_factory=lambda: random.Random(7))
    requests: int = 0
    made: Counter[str] = field(default_factory=Counter)

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Any:
        self.requests += 1
        fault = self.chance.choice(("refused", "unanswered", "cut")) if self.chance.random() < self.share else None
        body = environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
        if fault is not None:
            self.made[f"{fault} {environ['REQUEST_METHOD']}"] += 1
        if fault == "refused":
            start_response("503 Slow Down", [("Content-Length", "0")])
            return [b""]
        answer, said = self._forward(environ, body)
        if fault == "unanswered":
            start_response("500 Internal Server Error", [("Content-Length", "0")])
            return [b""]
        if fault == "cut":
            environ["werkzeug.socket"].shutdown(2)  # SHUT_RDWR
            said = b""
        headers = [
            (k, v) for k, v in answer.getheaders() if k.lower() not in ("transfer-encoding", "connection", "server")
        ]
        if environ["REQUEST_METHOD"] != "HEAD":
            headers = [(k, v) for k, v in headers if k.lower() != "content-length"] + [
                ("Content-Length", str(len(said)))
            ]
        start_response(f"{answer.status} {answer.reason or 'Unknown'}", headers)
        return [said]

    def _forward(self, environ: dict[str, Any], body: bytes) -> tuple[http.client.HTTPResponse, bytes]:
        url = urllib.parse.urlsplit(self.target)
        headers = {k[5:].replace("_", "-").title(): v for k, v in environ.items() if k.startswith("HTTP_")}
        headers |= {"Content-Type": environ["CONTENT_TYPE"]} if environ.get("CONTENT_TYPE") else {}
        if environ["REQUEST_METHOD"] in ("PUT", "POST"):
            headers["Content-Length"] = str(len(body))
        connection = http.client.HTTPConnection(url.hostname or "", url.port, timeout=60)
        try:
            # As it came: the signature is over the escaped path and the Host header.
            connection.request(environ["REQUEST_METHOD"], environ["RAW_URI"], body or None, headers)
            answer = connection.getresponse()
            return answer, answer.read()
        finally:
            connection.close()


@contextmanager
def faulty(server: LocalS3) -> Iterator[tuple[LocalS3, Faults]]:
    from werkzeug.serving import make_server

    logging.getLogger("werkzeug").setLevel(logging.CRITICAL)  # it calls cut connections errors
    faults = Faults(server.endpoint)
    proxy = make_server("127.0.0.1", 0, faults, threaded=True)
    thread = threading.Thread(target=proxy.serve_forever, daemon=True)
    thread.start()
    try:
        yield replace(server, endpoint=f"http://127.0.0.1:{proxy.port}"), faults
    finally:
        proxy.shutdown()
        thread.join()
        proxy.server_close()


HOST = """
import sys, treering
uri, name, batches, durability = sys.argv[1:]
support = treering.open(uri, create=False).corpus("support")
with support.capture(durability=durability) as live:
    for n in range(int(batches)):
        live.extend([{"id": f"{name}-{n}-{i}", "text": "t", "label": "a"} for i in range(50)])
        live.extend([{"id": f"shared-{n}-{i}", "text": "t", "label": "a"} for i in range(10)])
        print(n, flush=True)  # acknowledged
        if n % 4 == 3:
            live.flush()
            support.snapshot()
"""


def names(host: str, batches: int) -> set[str]:
    return {f"{host}-{n}-{i}" for n in range(batches) for i in range(50)}


def shared(batches: int) -> set[str]:
    return {f"shared-{n}-{i}" for n in range(batches) for i in range(10)}


def two_hosts(server: LocalS3, host: Path, batches: int) -> None:
    with faulty(server) as (through, faults):
        store = treering.open(server.uri(), storage_options=server.storage_options)
        store.create("support", "labelled")
        running = [
            start(HOST, store.uri, f"h{n}", str(batches), "disk", server=through, state=host / f"host{n}")
            for n in range(2)
        ]
        for process in running:
            _, err = process.communicate(timeout=1200)
            assert process.returncode == 0, err
    found = everything(store)
    assert [one for one, times in found.items() if times > 1] == []
    assert set(found) == names("h0", batches) | names("h1", batches) | shared(batches)
    assert sum(faults.made.values()) > 0.05 * faults.requests
    assert {what.partition(" ")[0] for what in faults.made} == {"refused", "unanswered", "cut"}


def test_two_hosts_store_every_record_once_though_one_request_in_ten_fails(s3: LocalS3, host: Path) -> None:
    two_hosts(s3, host, batches=8)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_two_hosts_store_every_record_once_through_thousands_of_faults(s3: LocalS3, host: Path) -> None:
    two_hosts(s3, host, batches=80)


def test_of_a_host_that_is_gone_for_good_nothing_acknowledged_into_the_store_is_lost(s3: LocalS3, host: Path) -> None:
    with faulty(s3) as (through, _):
        store = treering.open(s3.uri(), storage_options=s3.storage_options)
        store.create("support", "labelled")
        running = [
            start(HOST, store.uri, f"h{n}", "6", "store", server=through, state=host / f"host{n}") for n in range(2)
        ]
        lost, left = running
        assert lost.stdout is not None
        acknowledged = -1
        for line in lost.stdout:
            acknowledged = int(line)
            if acknowledged == 2:
                lost.send_signal(signal.SIGKILL)
        lost.wait(timeout=60)
        _, err = left.communicate(timeout=600)
        assert left.returncode == 0, err
    # Its state directory went with it: nobody opens its spool again.
    found = everything(store)
    assert [one for one, times in found.items() if times > 1] == []
    assert set(found) >= names("h0", acknowledged + 1) | names("h1", 6) | shared(6)
    assert acknowledged >= 2
