"""How much does one corpus take on an object store? Commits, writers, rows a day, disk and money; measured, then simulated.

    python benchmarks/capacity.py [--latency-ms 0,20] [--writers 1,2,4] [--batches 100,1000,10000] [--seconds 20] [--json]
    python benchmarks/capacity.py --smoke                                       tiny, for the tests

Measured on SeaweedFS on loopback, behind a proxy that holds each request back (`s3.py`): writers are processes with spools
of their own, as hosts are; each extends by a batch and flushes, again and again. The records are `capture.py`'s chats, about
450 bytes of JSON. Simulated: the same writers as a queue of optimistic commits. An attempt takes as long as a lone writer's
commit did; it fails when another has landed since it opened the table, waits as `retry_conflicts` does and starts over. The
simulation is shown beside what was measured, and only then goes on to writers and distances that this machine doesn't have.

Read: the ranks of one cold loader at once, each a process, on the records of `s3.py`.

Prices are options, by default those of S3 Standard in us-east-1 (aws.amazon.com/s3/pricing, as of 2026).
"""

from __future__ import annotations

import argparse
import heapq
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any

import s3
import treering
from capture import chat
from s3 import slowed
from treering.testing.objectstore import seaweedfs

DAY_S = 86_400


@dataclass(frozen=True)
class Writing:
    """What some writers came to in one setting."""

    latency_ms: float
    writers: int
    batch: int
    commits_s: float  # all writers together
    rows_s: float
    p50_ms: float  # of one flush, conflicts included
    p99_ms: float
    requests: float  # for one commit
    writes: float  # of them, those that write
    fragments: int  # of live at the end, as it was left
    simulated_commits_s: float = 0.0


@dataclass(frozen=True)
class Reading:
    """What the ranks of one cold loader came to, each a process that reads its own share."""

    latency_ms: float
    ranks: int
    rows_s: float  # all ranks together
    rows_s_of_a_rank: float  # the median
    requests_per_1000_rows: float
    read_kb_per_row: float


def write_here(uri: str, options: dict[str, str], name: str, batch: int, seconds: float) -> None:
    """One writer: says `ready`, waits for a line, and prints the seconds of each flush as JSON."""
    support = treering.open(uri, create=False, storage_options=options).corpus("support")
    took = []
    with support.capture() as live:
        live.extend([{**chat(0), "id": f"{name}-first"}])
        live.flush()
        print("ready", flush=True)
        sys.stdin.readline()
        number, end = 0, time.perf_counter() + seconds
        while time.perf_counter() < end:
            live.extend([{**chat(i), "id": f"{name}-{number}-{i}"} for i in range(batch)])
            began = time.perf_counter()
            live.flush()
            took.append(time.perf_counter() - began)
            number += 1
    print(json.dumps(took))


def write(server: Any, latency_ms: float, writers: int, batch: int, seconds: float, folder: str) -> Writing:
    """So many writers for so many seconds, on a corpus of their own."""
    store = treering.open(server.uri("capacity"), storage_options=server.storage_options)
    store.create("support", "chat")
    with slowed(server.endpoint, latency_ms / 1e3) as (endpoint, traffic):
        options = {**server.storage_options, "aws_endpoint": endpoint}
        running = []
        for number in range(writers):
            task = json.dumps([store.uri, options, f"w{number}", batch, seconds])
            env = {**os.environ, "TREERING_STATE_DIR": f"{folder}/host-{number}"}
            running.append(
                subprocess.Popen([sys.executable, os.path.abspath(__file__), "--write", task], stdin=subprocess.PIPE,
                                 stdout=subprocess.PIPE, text=True, env=env)
            )  # fmt: skip
        for one in running:
            assert one.stdout is not None
            assert one.stdout.readline() == "ready\n"
        traffic.taken()
        for one in running:
            assert one.stdin is not None
            one.stdin.write("go\n")
            one.stdin.flush()
        took = [json.loads(one.communicate()[0]) for one in running]
        passed = traffic.taken()
    flushes = sorted(second for each in took for second in each)
    support = store.corpus("support")
    rows = len(store.load("support@live"))
    assert rows == writers + batch * len(flushes), "records were lost or doubled"
    return Writing(
        latency_ms=latency_ms,
        writers=writers,
        batch=batch,
        commits_s=len(flushes) / seconds,
        rows_s=batch * len(flushes) / seconds,
        p50_ms=1e3 * statistics.median(flushes),
        p99_ms=1e3 * flushes[min(len(flushes) - 1, int(0.99 * len(flushes)))],
        requests=passed["requests"] / max(1, len(flushes)),
        writes=passed["writes"] / max(1, len(flushes)),
        fragments=len(support.table.fragment_rows(support.table.head())),
    )


def read(server: Any, uri: str, latency_ms: float, ranks: int, batches: int) -> Reading:
    """So many ranks of one loader at once, each for so many batches; nothing is cached."""
    with slowed(server.endpoint, latency_ms / 1e3) as (endpoint, traffic), ThreadPoolExecutor(ranks) as pool:
        options = {**server.storage_options, "aws_endpoint": endpoint}
        settings = [{"rank": rank, "world_size": ranks} for rank in range(ranks)]
        found = list(pool.map(lambda one: s3.measure(uri, options, one, batches), settings))
        passed = traffic.taken()
    rows = ranks * batches * s3.BATCH
    return Reading(
        latency_ms=latency_ms,
        ranks=ranks,
        rows_s=sum(one["rate"] for one in found),
        rows_s_of_a_rank=statistics.median(one["rate"] for one in found),
        requests_per_1000_rows=1e3 * passed["requests"] / rows,
        read_kb_per_row=1e3 * passed["read_mb"] / rows,
    )


def simulate(attempt_s: float, prepare_s: float, writers: int, *, seconds: float = 600.0, seed: int = 0) -> float:
    """Commits a second of optimistic writers, each of which prepares a batch and then tries until it lands."""
    chance = random.Random(seed)
    landed, last = 0, -1.0
    # (when it ends, number of the writer, when it opened the table or -1 while preparing, failures so far)
    events = [(chance.uniform(0, attempt_s + prepare_s), n, -1.0, 0) for n in range(writers)]
    heapq.heapify(events)
    while events[0][0] < seconds:
        now, writer, opened, failures = heapq.heappop(events)
        wait = 0.0
        if opened >= 0 and last > opened:
            wait = chance.uniform(0, min(0.001 * 2 ** min(failures, 7), 0.2))
            failures += 1
        elif opened >= 0:
            landed, last, failures = landed + 1, now, 0
            heapq.heappush(events, (now + prepare_s, writer, -1.0, 0))
            continue
        begin = now + wait
        heapq.heappush(events, (begin + attempt_s * chance.uniform(0.8, 1.2), writer, begin, failures))
    return landed / seconds


def bytes_per_record(rows: int, folder: str) -> dict[str, float]:
    """What a sealed and compacted record of capture.py's takes on disk, by what it is for."""
    store = treering.open(f"{folder}/disk")
    support = store.create("support", "chat")
    with support.capture() as live:
        for start in range(0, rows, 10_000):
            live.extend([chat(i) for i in range(start, min(start + 10_000, rows))])
    support.compact()
    snapshot = support.snapshot()
    assert snapshot is not None
    _ = snapshot.digest  # the certificate
    support.clean_up(older_than_s=0)
    found: dict[str, float] = {
        "JSON": sum(len(json.dumps(chat(i))) for i in range(0, rows, 97)) / len(range(0, rows, 97))
    }
    assert store.root is not None
    for path in store.root.rglob("*"):
        if path.is_file():
            inside = path.relative_to(store.root)
            kind = "index" if "_indices" in inside.parts else "data" if "data" in inside.parts else inside.parts[0]
            found[kind] = found.get(kind, 0.0) + path.stat().st_size / rows
    return found


def main() -> None:
    """Print the tables, or JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--latency-ms", default="0,20")
    parser.add_argument("--writers", default="1,2,4")
    parser.add_argument("--batches", default="100,1000,10000")
    parser.add_argument("--seconds", type=float, default=20.0, help="for each setting")
    parser.add_argument("--ranks", default="1,2,4", help="of a cold loader")
    parser.add_argument("--read-batches", type=int, default=300, help="for each rank")
    parser.add_argument("--rows", type=int, default=200_000, help="for the bytes of a record")
    parser.add_argument("--gb-month", type=float, default=0.023, help="dollars for a gigabyte a month")
    parser.add_argument("--puts", type=float, default=0.005, help="dollars for 1,000 writing requests")
    parser.add_argument("--gets", type=float, default=0.0004, help="dollars for 1,000 reading requests")
    parser.add_argument("--smoke", action="store_true")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--write", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.write:
        write_here(*json.loads(options.write))
        return
    latencies, writers, batches = (
        [float(text) for text in given.split(",")] for given in (options.latency_ms, options.writers, options.batches)
    )
    ranks = [int(text) for text in options.ranks.split(",")]
    seconds, rows, read_rows, read_batches = options.seconds, options.rows, 50_000, options.read_batches
    if options.smoke:
        latencies, writers, batches, seconds, rows = [1.0], [2.0], [10.0], 0.5, 500
        ranks, read_rows, read_batches = [2], 1_500, 3
    with tempfile.TemporaryDirectory(prefix="treering-bench-") as folder, seaweedfs() as server:
        os.environ["TREERING_STATE_DIR"] = os.environ["TREERING_CACHE_DIR"] = folder
        found: list[Writing] = []
        for latency in latencies:
            for batch in batches:
                alone = write(server, latency, 1, int(batch), seconds, folder)
                # A lone writer never fails: its flush is one attempt. What it does between flushes is preparing.
                attempt = alone.p50_ms / 1e3
                prepare = max(0.0, 1.0 / alone.commits_s - attempt) if alone.commits_s else 0.0
                for number in writers:
                    one = alone if number == 1 else write(server, latency, int(number), int(batch), seconds, folder)
                    simulated = simulate(attempt, prepare, int(number))
                    found.append(Writing(**{**asdict(one), "simulated_commits_s": simulated}))
        uri = server.uri("ranks")
        s3.build(uri, server.storage_options, read_rows)
        readings = [read(server, uri, latency, number, read_batches) for latency in latencies for number in ranks]
        beyond = {
            (attempt, number): simulate(attempt, 0.5, number)
            for attempt in (0.05, 0.1, 0.2, 0.4, 0.8)
            for number in (1, 4, 16, 64)
        }
        size = bytes_per_record(rows, folder)
    report(found, readings, beyond, size, options)


def report(
    found: list[Writing],
    readings: list[Reading],
    beyond: dict[tuple[float, int], float],
    size: dict[str, float],
    options: argparse.Namespace,
) -> None:
    """Tables in Markdown, or everything as JSON."""
    stored = sum(value for name, value in size.items() if name != "JSON")
    dollars = {
        "a month of storage for 10⁶ records": stored * 1e6 / 1e9 * options.gb_month,
        "requests to write 10⁶ records": {
            f"{one.latency_ms:g} ms, {one.batch} rows a commit": (
                (one.writes * options.puts + (one.requests - one.writes) * options.gets) / 1e3 * 1e6 / one.batch
            )
            for one in found
            if one.writers == 1
        },
    }
    if options.json:
        rows = [asdict(one) for one in found]
        read_rows = [asdict(one) for one in readings]
        simulated = [{"attempt_s": a, "writers": n, "commits_s": rate} for (a, n), rate in beyond.items()]
        print(
            json.dumps(
                {
                    "measured": rows,
                    "readings": read_rows,
                    "simulated": simulated,
                    "bytes_per_record": size,
                    "dollars": dollars,
                },
                indent=1,
            )
        )
        return
    print(
        "| latency, ms | writers | rows a commit | commits/s | simulated | rows/s | flush p50; p99, ms | requests a commit | writing | fragments |"
    )
    print("| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |")
    for one in found:
        print(
            f"| {one.latency_ms:g} | {one.writers} | {one.batch:,} | {one.commits_s:.1f} | {one.simulated_commits_s:.1f} | "
            f"{one.rows_s:,.0f} | {one.p50_ms:.0f}; {one.p99_ms:.0f} | {one.requests:.0f} | {one.writes:.0f} | {one.fragments} |"
        )
    print("\n| latency, ms | ranks | rows/s | of a rank | requests for 1,000 rows | kB read a row |")
    print("| --- | --- | --- | --- | --- | --- |")
    for each in readings:
        print(
            f"| {each.latency_ms:g} | {each.ranks} | {each.rows_s:,.0f} | {each.rows_s_of_a_rank:,.0f} | "
            f"{each.requests_per_1000_rows:.1f} | {each.read_kb_per_row:.2f} |"
        )
    print(
        "\n| an attempt takes, ms | "
        + " | ".join(f"{n} writers" for n in (1, 4, 16, 64))
        + " | rows a day at 1,000 rows a commit |"
    )
    print("| --- | --- | --- | --- | --- | --- |")
    for attempt in sorted({a for a, _ in beyond}):
        rates = [beyond[attempt, n] for n in (1, 4, 16, 64)]
        most = max(rates) * 1_000 * DAY_S
        print(f"| {attempt * 1e3:.0f} | " + " | ".join(f"{rate:.1f}" for rate in rates) + f" | {most / 1e6:,.0f}M |")
    print("\nBytes a record: " + ", ".join(f"{name} {value:.0f}" for name, value in sorted(size.items())))
    print(f"A million records: ${dollars['a month of storage for 10⁶ records']:.4f} a month")
    written: dict[str, float] = dollars["requests to write 10⁶ records"]
    for setting, price in written.items():
        print(f"Requests to write them at {setting}: ${price:.2f}")


if __name__ == "__main__":
    main()
