"""A server that answers what a test says; and how long calls took."""

from __future__ import annotations

import gzip
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from statistics import median
from typing import Any

Answer = tuple[int, dict[str, str], bytes]


@contextmanager
def answering(answer: Callable[[str, bytes], Answer]) -> Iterator[str]:
    """Its URL; `answer` gets path and body (decompressed) of each POST."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("content-length", 0)))
            if self.headers.get("content-encoding") == "gzip":
                body = gzip.decompress(body)
            status, headers, content = answer(self.path, body)
            self.send_response(status)
            for name, value in {"content-length": str(len(content)), **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def lines(body: bytes) -> list[dict[str, Any]]:
    return [json.loads(line) for line in body.splitlines()]


def stored(body: bytes) -> Answer:
    """As the server answers records that are new."""
    found = lines(body)
    said = {
        "stored": len(found), "duplicates": 0, "refused": 0, "erased": 0,
        "records": [{"id": one["id"], "status": "stored"} for one in found],
    }  # fmt: skip
    return 200, {"content-type": "application/json"}, json.dumps(said).encode()


def failed(status: int, **headers: str) -> Answer:
    body = json.dumps({"error": {"code": "full", "message": "no room", "hint": None}}).encode()
    return status, {"content-type": "application/json", **{k.replace("_", "-"): v for k, v in headers.items()}}, body


def spread(took: list[float], over_s: float = 0.05) -> str:
    """How long calls took, in words."""
    share = sum(one > over_s for one in took) / len(took)
    return (
        f"{len(took):,} calls: median {1_000 * median(took):.2f} ms, {share:.2%} over {1_000 * over_s:.0f} ms, "
        f"longest {1_000 * max(took):.0f} ms"
    )
