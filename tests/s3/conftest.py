"""Object stores on loopback: SeaweedFS for what must hold, moto as a second opinion and for servers that misbehave."""

from __future__ import annotations

import logging
import secrets
import threading
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

import treering
from treering.store.location import StorageOptions
from treering.testing.objectstore import LocalS3, seaweedfs

Application = Callable[[dict[str, Any], Any], Any]


@pytest.fixture(scope="session")
def s3() -> Iterator[LocalS3]:
    with seaweedfs() as server:
        yield server


@pytest.fixture(autouse=True)
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """This host's state and cache directories, of this test alone; and nothing of the caller's environment."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_ENDPOINT", "AWS_REGION", "AWS_ALLOW_HTTP"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TREERING_STATE_DIR", str(tmp_path / "state"))
    monkeypatch.setenv("TREERING_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path


@pytest.fixture
def remote(s3: LocalS3) -> treering.Store:
    return treering.open(s3.uri(), storage_options=s3.storage_options)


@dataclass
class Meddler:
    """A WSGI layer before moto: loses `If-None-Match`, or answers that a request failed after it was carried out."""

    inner: Application
    ignore_conditions: bool = False
    lose_answers: list[str] = field(default_factory=list)  # parts of paths; each PUT that matches uses one up
    seen: list[str] = field(default_factory=list)

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Any:
        self.seen.append(f"{environ['REQUEST_METHOD']} {environ['PATH_INFO']}")
        if self.ignore_conditions:
            environ.pop("HTTP_IF_NONE_MATCH", None)
        lost = next((part for part in self.lose_answers if part in environ["PATH_INFO"]), None)
        if lost is None or environ["REQUEST_METHOD"] != "PUT":
            return self.inner(environ, start_response)
        self.lose_answers.remove(lost)
        list(self.inner(environ, lambda *_: None))
        start_response("500 Internal Server Error", [("Content-Length", "0")])
        return [b""]


@pytest.fixture(scope="session")
def moto() -> Iterator[tuple[LocalS3, Meddler]]:
    from moto.server import DomainDispatcherApplication, create_backend_app

    with serving(Meddler(DomainDispatcherApplication(create_backend_app))) as (endpoint, application):
        server = LocalS3(endpoint, f"moto-{secrets.token_hex(4)}", "tester", "moto-secret-0123456789")
        urllib.request.urlopen(urllib.request.Request(f"{endpoint}/{server.bucket}", method="PUT"), timeout=10).close()
        yield server, application


@contextmanager
def serving(application: Meddler) -> Iterator[tuple[str, Meddler]]:
    from werkzeug.serving import make_server

    logging.getLogger("werkzeug").setLevel(logging.ERROR)

    server = make_server("127.0.0.1", 0, application, threaded=True)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.port}", application
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def record(record_id: str) -> dict[str, Any]:
    return {"id": record_id, "text": f"text of {record_id}", "label": "a", "ts": datetime(2026, 1, 1, tzinfo=UTC)}


def ids(store: treering.Store, ref: str) -> list[str]:
    return store.load(ref).to_table(["id"]).column(0).to_pylist()


def options(server: LocalS3, **changed: str) -> StorageOptions:
    return StorageOptions({**server.storage_options, **changed})
