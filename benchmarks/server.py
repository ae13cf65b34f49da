"""What HTTP costs: capture through `treering serve` against the local recorder, and how long a request takes.

Rounds take turns: the same records by `extend` in this process, all at once and in batches of 100, and over HTTP in batches
of 100 from a process of its own with some connections; durable at the end each time. Then latency, of batches of 100 at a
steady rate: alone, beside snapshots, and beside clients that send a byte now and then. Percentiles in milliseconds.

    python benchmarks/server.py [--rows 100000] [--rounds 3] [--connections 8] [--seconds 60] [--slow 500] [--dir DIR] [--json]
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import resource
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

import treering
from treering.server.limits import Limits

_BATCH = 100
_WORDS = 20  # of six letters and a space: 140 bytes a text


def records(count: int, prefix: str) -> list[dict[str, Any]]:
    """Labelled records with ids of their own."""
    draw = np.random.default_rng(7)
    words = np.array([bytes(draw.integers(97, 123, 6, dtype=np.uint8)).decode() for _ in range(5_000)])
    chosen = words[draw.integers(0, len(words), (count, _WORDS))]
    return [
        {
            "id": f"{prefix}{n}",
            "session_id": f"{prefix}s{n // 5}",
            "text": " ".join(chosen[n]),
            "label": f"label-{n % 50}",
        }
        for n in range(count)
    ]


def batched(rows: Iterable[dict[str, Any]], size: int) -> Iterator[list[dict[str, Any]]]:
    """Pieces of so many."""
    iterator = iter(rows)
    while piece := list(islice(iterator, size)):
        yield piece


def request(batch: list[dict[str, Any]]) -> bytes:
    """A whole request of one batch."""
    body = json.dumps(batch, separators=(",", ":")).encode()
    head = (
        "POST /v1/corpora/records/records HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: application/json\r\n"
        f"content-length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


def answered(connection: socket.socket) -> bytes:
    """One answer, whole."""
    found = b""
    while b"\r\n\r\n" not in found:
        piece = connection.recv(1 << 16)
        if not piece:
            raise ConnectionError("the server is gone")
        found += piece
    head, _, body = found.partition(b"\r\n\r\n")
    length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
    while len(body) < length:
        body += connection.recv(1 << 16)
    if not head.startswith(b"HTTP/1.1 200"):
        raise ConnectionError(head.split(b"\r\n")[0].decode())
    return body


def send(port: int, connections: int, path: Path) -> None:
    """In a process of its own: send what the file holds, a request a line, then say how many seconds that took."""
    requests = [request(json.loads(line)) for line in path.read_text().splitlines()]
    print("ready", flush=True)
    sys.stdin.readline()
    lock = threading.Lock()
    left = iter(requests)

    def work() -> None:
        with socket.create_connection(("127.0.0.1", port)) as connection:
            while True:
                with lock:
                    one = next(left, None)
                if one is None:
                    return
                connection.sendall(one)
                answered(connection)

    threads = [threading.Thread(target=work) for _ in range(connections)]
    start = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    print(time.perf_counter() - start, flush=True)


@contextlib.contextmanager
def serving(root: Path) -> Iterator[int]:
    """The port of a server over a new store with the corpus `records`."""
    treering.open(root).create("records", "labelled")
    command = [sys.executable, "-m", "treering.cli", "--store", str(root), "serve", "--port", "0", "--json"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert process.stdout is not None
    said = ""
    while not said.rstrip().endswith("}"):
        line = process.stdout.readline()
        assert line, "the server didn't start"
        said += line
    try:
        yield int(json.loads(said)["url"].rpartition(":")[2])
    finally:
        process.send_signal(signal.SIGTERM)
        code = process.wait(120)
        assert code == 0, code


def over_http(root: Path, rows: list[dict[str, Any]], connections: int) -> float:
    """Seconds until the server has acknowledged all of them."""
    path = root / "requests"
    root.mkdir()
    path.write_text("\n".join(json.dumps(batch) for batch in batched(rows, _BATCH)))
    with serving(root / "store") as port:
        with socket.create_connection(("127.0.0.1", port)) as warm:
            warm.sendall(request(records(1, "warm")))
            answered(warm)
        command = [sys.executable, __file__, "--send", str(port), "--connections", str(connections), "--dir", str(path)]
        sender = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert sender.stdin is not None
        assert sender.stdout is not None
        sender.stdout.readline()
        sender.stdin.write("go\n")
        sender.stdin.flush()
        seconds = float(sender.stdout.readline())
        assert sender.wait(60) == 0
    assert len(treering.open(root / "store").live("records").to_table()) == len(rows) + 1
    return seconds


def locally(root: Path, rows: list[dict[str, Any]], batch: int | None) -> float:
    """Seconds until the local recorder has acknowledged all of them."""
    live = treering.open(root).create("records", "labelled").capture()
    try:
        live.add(records(1, "warm")[0])
        start = time.perf_counter()
        for part in [rows] if batch is None else batched(rows, batch):
            live.extend(part)
        return time.perf_counter() - start
    finally:
        live.close()


class SlowClients:
    """Connections that send a byte now and then and never end their request; for each one that ends another one comes.

    The server gives each up when its time for a body is over. The first ones leave by themselves, one after the other over
    that time, so that it doesn't do so with all of them in one instant.
    """

    def __init__(self, port: int, count: int) -> None:
        self._port = port
        self._open = [self._connect() for _ in range(count)]
        began, allowed = time.monotonic(), Limits().body_s
        self._leaves_at = [began + allowed * (n + 1) / (count + 1) for n in range(count)]
        self.replaced = self.given_up = 0

    def _connect(self) -> socket.socket:
        made = socket.create_connection(("127.0.0.1", self._port))
        made.sendall(b"POST /v1/corpora/records/records HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-length: 100000\r\n\r\n[")
        made.setblocking(False)
        return made

    def tick(self) -> None:
        """A byte from each."""
        now = time.monotonic()
        for n, one in enumerate(self._open):
            was_given_up = not _is_open(one)
            if was_given_up or now >= self._leaves_at[n]:
                one.close()
                self._open[n], self._leaves_at[n] = self._connect(), math.inf
                self.replaced += 1
                self.given_up += was_given_up
            else:
                one.send(b" ")

    @property
    def connected(self) -> int:
        """How many the server holds a connection with right now."""
        return sum(map(_is_open, self._open))

    def close(self) -> None:
        """End all."""
        for one in self._open:
            one.close()


def _is_open(one: socket.socket) -> bool:
    """Whether the other side has said nothing yet: the server says something when it gives a request up."""
    try:
        one.recv(1, socket.MSG_PEEK)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def latency(root: Path, seconds: float, *, every: float, snapshot_s: float | None, slow: int) -> dict[str, float]:
    """Percentiles of a request of 100 records, one each `every` seconds; beside snapshots, and beside slow clients.

    With slow clients also how many were connected at the end (`connected`), how many the server gave up meanwhile
    (`given_up`) and how many places were taken by another one (`replaced`).
    """
    took: list[float] = []
    stop = threading.Event()
    failed: list[Exception] = []
    with serving(root) as port, contextlib.closing(SlowClients(port, slow)) as others:

        def beside() -> None:
            store = treering.open(root)
            last = time.monotonic()
            try:
                while not stop.wait(0.25):
                    others.tick()
                    if snapshot_s is not None and time.monotonic() - last >= snapshot_s:
                        last = time.monotonic()
                        store.corpus("records").snapshot()
            except Exception as exc:
                failed.append(exc)

        helper = threading.Thread(target=beside)
        helper.start()
        try:
            with socket.create_connection(("127.0.0.1", port)) as connection:
                end = time.monotonic() + seconds
                number = 0
                while time.monotonic() < end and not failed:
                    sent = request(records(_BATCH, f"b{number}-"))
                    number += 1
                    start = time.perf_counter()
                    connection.sendall(sent)
                    answered(connection)
                    took.append(1_000 * (time.perf_counter() - start))
                    time.sleep(every)
            connected = others.connected
        finally:
            stop.set()
            helper.join()
    if failed:
        raise failed[0]
    warm = took[min(5, len(took) - 1) :]
    found = {name: float(np.percentile(warm, q)) for name, q in (("p50", 50), ("p99", 99), ("max", 100))}
    if slow:
        if connected < 0.98 * slow:  # a tick's worth of them may just have been given up
            raise RuntimeError(
                f"{connected} of {slow} slow clients were connected at the end: this measures something else"
            )
        found |= {"connected": connected, "given_up": others.given_up, "replaced": others.replaced}
    return found


def allow_files() -> None:
    """Each slow client is a file of this process, too; the soft limit is often 1,024."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def main() -> None:
    """See the module's text."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--connections", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=60.0, help="of each measurement of latency; 0: none")
    parser.add_argument("--slow", type=int, default=500)
    parser.add_argument("--snapshot-s", type=float, default=60.0)
    parser.add_argument("--every", type=float, default=0.02, help="seconds between requests when latency is measured")
    parser.add_argument("--dir", type=Path)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--send", type=int, metavar="PORT", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.send is not None:
        send(arguments.send, arguments.connections, arguments.dir)
        return
    allow_files()
    root = Path(tempfile.mkdtemp(dir=arguments.dir))
    rates: dict[str, list[float]] = {"extend": [], "extend by 100": [], "http by 100": []}
    results: dict[str, Any] = {"rows": arguments.rows, "connections": arguments.connections}
    try:
        rows = records(arguments.rows, "r")
        for number in range(arguments.rounds):
            here = root / str(number)
            here.mkdir()
            rates["extend"].append(len(rows) / locally(here / "all", rows, None))
            rates["extend by 100"].append(len(rows) / locally(here / "batches", rows, _BATCH))
            rates["http by 100"].append(len(rows) / over_http(here / "http", rows, arguments.connections))
        results["rows_s"] = {name: median(found) for name, found in rates.items()}
        ratios = [h / e for h, e in zip(rates["http by 100"], rates["extend"], strict=True)]
        results["ratio"] = {"median": median(ratios), "lowest": min(ratios), "highest": max(ratios)}
        if arguments.seconds:
            each = {"every": arguments.every}
            results["latency_ms"] = {
                "alone": latency(root / "alone", arguments.seconds, **each, snapshot_s=None, slow=0),
                "beside snapshots": latency(
                    root / "snapshots", arguments.seconds, **each, snapshot_s=arguments.snapshot_s, slow=0
                ),
                f"beside {arguments.slow} slow clients": latency(
                    root / "slow", arguments.seconds, **each, snapshot_s=None, slow=arguments.slow
                ),
            }
    finally:
        shutil.rmtree(root)
    if arguments.json:
        print(json.dumps(results, indent=2))
        return
    print("| what | figure |\n| --- | --- |")
    for name, rate in results["rows_s"].items():
        print(f"| {name} | {rate:,.0f} records/s |")
    print(f"| HTTP against extend | {results['ratio']['median']:.2f}× |")
    for name, found in results.get("latency_ms", {}).items():
        line = f"p50 {found['p50']:.1f}, p99 {found['p99']:.1f}, max {found['max']:.1f} ms"
        if "connected" in found:
            line += f"; {found['connected']} connected at the end, {found['given_up']} given up by the server meanwhile"
        print(f"| {name} | {line} |")


if __name__ == "__main__":
    main()
