"""Servers for tests: in a thread where the process doesn't matter, in a process of their own where it does."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

import treering
from treering.capture import flush_spools
from treering.server.limits import Limits
from treering.server.run import Prepared, prepare


@dataclass
class Running:
    """A server in a thread of this process."""

    url: str
    store: treering.Store
    prepared: Prepared
    http: httpx.Client

    def post(self, path: str, body: Any, **headers: str) -> httpx.Response:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        if isinstance(body, bytes):
            return self.http.post(path, content=body, headers={"content-type": "application/json", **named})
        return self.http.post(path, json=body, headers=named)


@contextlib.contextmanager
def running(store: treering.Store, limits: Limits | None = None) -> Iterator[Running]:
    prepared = prepare(store, port=0, limits=limits)
    thread = threading.Thread(target=prepared.run)
    thread.start()
    try:
        with httpx.Client(base_url=prepared.url, timeout=30) as http:
            yield Running(prepared.url, store, prepared, http)
    finally:
        prepared.stop()
        thread.join(30)
        assert not thread.is_alive()


def lasting_port() -> int:
    """A free port that nobody is given by the system: it is still free when a server on it ends and another begins."""
    for port in random.SystemRandom().sample(range(15_000, 32_000), 1_000):
        with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port
    raise AssertionError("no port is free")


class Process:
    """`treering serve` as it is run."""

    def __init__(
        self, store: Path | str, *words: str, port: int = 0, environment: Mapping[str, str] | None = None
    ) -> None:
        command = [sys.executable, "-m", "treering.cli", "--store", str(store), "serve", "--json"]
        self.popen = subprocess.Popen(
            [*command, "--port", str(port), *words],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1", **(environment or {})},
        )
        assert self.popen.stdout is not None
        text = ""
        while not text.rstrip().endswith("}"):
            line = self.popen.stdout.readline()
            if not line:
                assert self.popen.stderr is not None
                raise AssertionError(self.popen.stderr.read())
            text += line
        self.url: str = json.loads(text)["url"]

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2])

    def end(self, how: int = signal.SIGTERM) -> int:
        """Its exit code."""
        if self.popen.poll() is None:
            self.popen.send_signal(how)
        code = self.popen.wait(60)
        for pipe in (self.popen.stdout, self.popen.stderr):
            assert pipe is not None
            pipe.close()
        return code


@contextlib.contextmanager
def process(store: Path, *words: str) -> Iterator[Process]:
    made = Process(store, *words)
    try:
        yield made
    finally:
        made.end(signal.SIGKILL)


def labelled(count: int, prefix: str = "r") -> list[dict[str, Any]]:
    return [{"id": f"{prefix}{n}", "text": f"text {prefix} {n}", "label": "l"} for n in range(count)]


def ids(store: treering.Store, corpus: str = "notes") -> list[str]:
    """Ids of live, each as often as it is there; what this process acknowledged counts."""
    flush_spools(store.corpus(corpus))
    found: list[str] = store.live(corpus).to_table().column("id").to_pylist()
    return sorted(found)


@dataclass(frozen=True)
class Look:
    """What the server's process held at one moment."""

    at_s: float
    rss_mb: float
    files: int

    def __str__(self) -> str:
        return f"{self.rss_mb:.0f} MB and {self.files} files at {self.at_s:.0f} s"


def look(pid: int, at_s: float) -> Look:
    about = Path(f"/proc/{pid}")
    pages = int((about / "statm").read_text().split()[1])
    return Look(at_s, pages * os.sysconf("SC_PAGE_SIZE") / 1e6, len(os.listdir(about / "fd")))
