"""Rows per second of a 30/30/40 mix whose store lies on S3, by chunk size, pool and the server's distance.

Starts SeaweedFS on loopback, and before it a proxy that holds every request back for some milliseconds, as a network
and a real object store would (`--latency-ms`: 0 is the server as it is; S3 in the same region answers in 15 to 40).
Records as in `loader.py`: 128 int32 tokens, a label, ~400 B of text; tokens and label are delivered, 256 rows a batch, in
one process. Cold: a fresh process each time, whose first read is included; it delivers `--batches` batches (600: half an
epoch). Rounds are interleaved.

    python benchmarks/s3.py [--rows 100000] [--rounds 3] [--batches 600] [--latency-ms 0,20]      prints a markdown table
    python benchmarks/s3.py --smoke                                                              tiny, for the tests
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import product
from urllib.parse import urlsplit

import treering
from treering.testing.objectstore import seaweedfs

WEIGHTS = [0.3, 0.3, 0.4]
BATCH = 256
NAMES = ("one", "two", "three")
_WRITES = re.compile(rb"(?:PUT|POST|DELETE) /[^\r\n]* HTTP/1\.1\r\n")


@dataclass
class Traffic:
    """What has passed since the last look: unlike rates, these figures don't depend on who else uses the machine."""

    requests: int = 0
    writes: int = 0  # of them: object stores take ten times as much for these
    read_mb: float = 0.0

    def taken(self) -> dict[str, float]:
        """The figures, which start at 0 again."""
        found = {"requests": float(self.requests), "writes": float(self.writes), "read_mb": self.read_mb}
        self.requests, self.writes, self.read_mb = 0, 0, 0.0
        return found


@contextmanager
def slowed(endpoint: str, latency_s: float) -> Iterator[tuple[str, Traffic]]:
    """An endpoint before `endpoint` that passes each request on after `latency_s` seconds, and answers at once."""
    traffic = Traffic()
    target = urlsplit(endpoint)
    loop = asyncio.new_event_loop()
    open_: set[asyncio.Task[None]] = set()

    async def serve(client: asyncio.StreamReader, answers: asyncio.StreamWriter) -> None:
        server, requests = await asyncio.open_connection(target.hostname, target.port)
        task = asyncio.current_task()
        if task is not None:
            open_.add(task)
            task.add_done_callback(open_.discard)
        try:
            await asyncio.gather(pump(client, requests, sends=True), pump(server, answers, sends=False))
        finally:
            requests.close()
            answers.close()

    async def pump(source: asyncio.StreamReader, sink: asyncio.StreamWriter, *, sends: bool) -> None:
        last = 0.0
        while data := await source.read(1 << 18):
            if not sends:
                traffic.read_mb += len(data) / 1e6
            else:
                traffic.requests += data.count(b" HTTP/1.1\r\n")
                traffic.writes += len(_WRITES.findall(data))
                if latency_s and time.monotonic() - last > latency_s / 2:  # what belongs to a request follows at once
                    await asyncio.sleep(latency_s)
            last = time.monotonic()
            sink.write(data)
            await sink.drain()
        with suppress(OSError, RuntimeError):
            sink.write_eof()

    started: list[str] = []
    ready = threading.Event()

    async def run() -> None:
        server = await asyncio.start_server(serve, "127.0.0.1", 0, limit=1 << 20)
        started.append(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}")
        ready.set()
        with suppress(asyncio.CancelledError):
            await server.serve_forever()
        for task in list(open_):
            task.cancel()
        await asyncio.gather(*open_, return_exceptions=True)

    main_task: list[asyncio.Task[None]] = []

    def run_loop() -> None:
        main_task.append(loop.create_task(run()))
        loop.run_until_complete(main_task[0])
        loop.close()

    thread = threading.Thread(target=run_loop, daemon=True)
    thread.start()
    ready.wait()
    try:
        yield started[0], traffic
    finally:
        loop.call_soon_threadsafe(main_task[0].cancel)
        thread.join()


def build(uri: str, options: dict[str, str], rows: int) -> float:
    """A store of three corpora, sealed once each; the seconds it took to capture them."""
    sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
    from loader import SCHEMA, Texts, records

    store = treering.open(uri, storage_options=options)
    texts = Texts(None)
    took = 0.0
    for number, name in enumerate(NAMES):
        corpus = store.create(name, schema=SCHEMA)
        tables = [records(rows, low, min(low + 50_000, rows), texts, number) for low in range(0, rows, 50_000)]
        began = time.perf_counter()
        with corpus.capture() as live:
            for table in tables:
                live.extend(table)
        took += time.perf_counter() - began
        corpus.compact()
        snapshot = corpus.snapshot()
        assert snapshot is not None
        _ = snapshot.digest
    return took


def measure(uri: str, options: dict[str, str], settings: dict[str, int], batches: int) -> dict[str, float]:
    """One cold loader in a process of its own."""
    task = json.dumps([uri, options, settings, batches])
    command = [sys.executable, os.path.abspath(__file__), "--measure"]
    done = subprocess.run(command, input=task, check=True, capture_output=True, text=True)
    found: dict[str, float] = json.loads(done.stdout)
    return found


def measure_here() -> None:
    """What `measure` runs: reads its task from stdin, prints rates as JSON."""
    uri, options, settings, batches = json.load(sys.stdin)
    import torch  # not what is measured

    torch.set_num_threads(1)
    store = treering.open(uri, create=False, storage_options=options)
    mix = treering.mix(*[store.load(f"{name}@v1") for name in NAMES], weights=WEIGHTS, seed=1)
    began = time.perf_counter()
    first, rows = 0.0, 0
    with mix.loader(batch_size=BATCH, columns=["tokens", "target"], epochs=None, **settings) as loader:
        for number, batch in enumerate(loader):
            now = time.perf_counter() - began
            first = first or now
            rows += len(batch["tokens"])
            if number + 1 == batches:
                break
    print(json.dumps({"rate": rows / (time.perf_counter() - began), "first": first}))


def main() -> None:
    """Print a table for each latency."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=100_000, help="records in each of the three corpora")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batches", type=int, default=600, help="for each setting in each round")
    parser.add_argument("--latency-ms", default="0,20")
    parser.add_argument("--chunks", default="32,64,256,1024")
    parser.add_argument("--pools", default="65536,131072,262144")
    parser.add_argument("--smoke", action="store_true")
    parser.add_argument("--measure", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        measure_here()
        return
    rows, rounds, batches = options.rows, options.rounds, options.batches
    latencies = [float(text) for text in options.latency_ms.split(",")]
    settings = [{"chunk_rows": int(chunk), "pool_rows": int(pool)}
                for chunk, pool in product(options.chunks.split(","), options.pools.split(","))]  # fmt: skip
    if options.smoke:
        rows, rounds, batches, latencies, settings = 1_500, 1, 3, [2.0], settings[:1]
    with tempfile.TemporaryDirectory(prefix="treering-bench-") as folder, seaweedfs() as server:
        os.environ["TREERING_STATE_DIR"] = os.environ["TREERING_CACHE_DIR"] = folder
        uri = server.uri("bench")
        took = build(uri, server.storage_options, rows)
        captured = "smoke" if options.smoke else f"captured at {3 * rows / took / 1e3:,.0f}k rows/s"
        print(f"{rows:,} rows × 3 on SeaweedFS, batch {BATCH}, {rounds} interleaved rounds; {captured}\n")
        print(
            "| latency, ms | chunk_rows | pool_rows | rows/s | first batch, s | requests | MB read |\n"
            "| --- | --- | --- | --- | --- | --- | --- |"
        )
        for latency in latencies:
            with slowed(server.endpoint, latency / 1e3) as (endpoint, traffic):
                given = {**server.storage_options, "aws_endpoint": endpoint}
                found: list[list[dict[str, float]]] = [[] for _ in settings]
                for _ in range(rounds):
                    for figures, setting in zip(found, settings, strict=True):
                        traffic.taken()
                        figures.append({**measure(uri, given, setting, batches), **traffic.taken()})
            for figures, setting in zip(found, settings, strict=True):
                rate, first, requests, read_mb = (
                    statistics.median(one[name] for one in figures) for name in ("rate", "first", "requests", "read_mb")
                )
                shown = f"{rate / 1e3:,.0f}k | {first:.2f} | {requests:,.0f} | {read_mb:,.0f}"
                shown = "smoke | – | – | –" if options.smoke else shown
                print(f"| {latency:g} | {setting['chunk_rows']} | {setting['pool_rows']} | {shown} |", flush=True)


if __name__ == "__main__":
    main()
