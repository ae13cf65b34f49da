"""Speed of durable capture, of sealing and of certificates, beside other ways to store the same records.

References: the same JSON inserted into SQLite (WAL, synchronous=FULL, 1,000 rows a transaction), JSONL with fsync, a bare
fsynced Arrow log, plain Lance, LanceDB, Deep Lake and delta-rs (`capture_peers.py`), interleaved in the same run on the same
file system. Every treering record is validated, has its id looked up and is durable. Prints medians and ratios as Markdown.

    python benchmarks/capture.py [--rows 100000] [--rounds 3] [--dir DIR] [--json]
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import random
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import pyarrow as pa

import treering
from capture_peers import PEERS, Peer, Records


def chat(i: int) -> dict[str, Any]:
    """A chat record of about 450 bytes of JSON."""
    return {
        "id": f"r{i:09d}",
        "session_id": f"s{i // 3}",
        "domain": "billing",
        "messages": [
            {"role": "system", "content": "You are a helpful support agent."},
            {"role": "user", "content": f"My order {i} has not arrived and I would like to know where it is, please."},
            {
                "role": "assistant",
                "content": f"I am sorry. Order {i} left the warehouse yesterday, it is due tomorrow.",
            },
            {"role": "user", "content": "Thank you, then I shall wait until tomorrow before I call again."},
        ],
    }


#: What the promises are about: ours, and what it is compared with, round by round.
RATIOS = (
    ("treering dicts, acknowledged", "SQLite (WAL, FULL, 1,000 rows a transaction) (JSON text)"),
    ("treering dicts, acknowledged", "SQLite, the same (dicts)"),
    ("treering dicts, committed", "SQLite, the same (dicts)"),
    ("treering Arrow, acknowledged", "bare Arrow log, a fdatasync per 1,000 rows (Arrow)"),
    ("treering Arrow, committed", "bare Arrow log, a fdatasync per 1,000 rows (Arrow)"),
)


def timed(work: Callable[[], Any]) -> float:
    """Seconds that `work` takes."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def treering_round(directory: Path, records: Records, form: str) -> dict[str, float]:
    """Seconds until `extend` has acknowledged all records, and until all are in the Lance table."""
    corpus = treering.open(directory / "store").create("support", "chat")
    start = time.perf_counter()
    recorder = corpus.capture()
    recorder.extend(records.dicts if form == "dicts" else records.table)
    acknowledged = time.perf_counter() - start
    recorder.close()
    committed = time.perf_counter() - start
    assert recorder.counts.stored == len(records.dicts)
    return {"acknowledged": acknowledged, "committed": committed}


def capture_round(directory: Path, records: Records, order: random.Random) -> dict[str, float | str]:
    """Rows/s of every contender, each in a directory of its own, in an order of its own."""
    figures: dict[str, float | str] = {}
    n = len(records.dicts)
    contenders: list[tuple[str, Peer | None]] = [(f"{peer.name} ({peer.given})", peer) for peer in PEERS]
    contenders += [("treering dicts", None), ("treering Arrow", None)]
    order.shuffle(contenders)
    for number, (name, peer) in enumerate(contenders):
        place = directory / str(number)
        place.mkdir()
        gc.collect()
        try:
            if peer is None:
                for what, seconds in treering_round(place, records, name.partition(" ")[2]).items():
                    figures[f"{name}, {what}"] = n / seconds
            else:
                figures[name] = n / timed(lambda peer=peer, place=place: peer.run(place, records))  # type: ignore[misc]
        except ImportError as exc:
            figures[name] = f"doesn't run: {exc}"
        shutil.rmtree(place)
    return figures


def single(directory: Path, adds: int) -> dict[str, float]:
    """Medians in ms: one `add` until it is acknowledged, and a bare write and fdatasync of as many bytes, in turn."""
    corpus = treering.open(directory / "single").create("support", "chat")
    path = directory / "bare"
    ours, bare = [], []
    with path.open("wb") as file, corpus.capture() as live:
        for i in range(adds):
            record = chat(i)
            data = json.dumps(record).encode()
            ours.append(timed(lambda record=record: live.add(record)))  # type: ignore[misc]

            def write(data: bytes = data) -> None:
                file.write(data)
                file.flush()
                os.fdatasync(file.fileno())

            bare.append(timed(write))
    return {"add_ms": median(ours) * 1e3, "bare_ms": median(bare) * 1e3}


def rot(directory: Path, records: list[dict[str, Any]]) -> dict[str, float]:
    """2,000 single adds on top of a table, then its scan time against that of a compacted copy, in turn."""
    corpus = treering.open(directory / "store").create("support", "chat")
    with corpus.capture() as live:
        live.extend(records)
        live.flush()
        for i in range(2_000):
            live.add(chat(10_000_000 + i))
    shutil.copytree(directory / "store", directory / "copy")
    compacted = treering.open(directory / "copy").corpus("support")
    compacted.compact()

    def scan(which: treering.Corpus) -> int:
        return sum(len(batch) for batch in which.table.scan(which.table.head(), which.record_type.schema.names))

    assert scan(corpus) == scan(compacted)
    ratios = [timed(lambda: scan(corpus)) / timed(lambda: scan(compacted)) for _ in range(15)]
    return {
        "fragments": len(corpus.table.head().get_fragments()),
        "scan_against_compacted": median(ratios),
    }


def sealing(directory: Path, rows: int, spooled: int = 0) -> float:
    """Milliseconds to seal `rows` rows in the table and `spooled` rows still in the spool."""
    from treering.capture import recorder as recorder_module

    corpus = treering.open(directory / f"seal-{rows}-{spooled}").create("support", "labelled")
    with corpus.capture() as live:
        for start in range(0, rows, 100_000):
            n = min(100_000, rows - start)
            live.extend(pa.table({"text": [f"text {start + i}" for i in range(n)], "label": ["a"] * n}))
    if not spooled:
        return timed(corpus.snapshot) * 1e3
    waiting = recorder_module.FLUSH_ROWS, recorder_module.FLUSH_AFTER_S
    recorder_module.FLUSH_ROWS, recorder_module.FLUSH_AFTER_S = 10**9, 1e9
    live = corpus.capture()
    live.extend(pa.table({"text": [f"late {i}" for i in range(spooled)], "label": ["a"] * spooled}))
    seconds = timed(corpus.snapshot)
    live.close()
    recorder_module.FLUSH_ROWS, recorder_module.FLUSH_AFTER_S = waiting
    return seconds * 1e3


def certifying(directory: Path, rows: int) -> dict[str, float]:
    """MB/s of a certificate over records of about 1 kB, by the bytes of their Arrow columns."""
    corpus = treering.open(directory / "certify").create("support", "labelled")
    with corpus.capture() as live:
        for start in range(0, rows, 20_000):
            n = min(20_000, rows - start)
            texts = [f"{start + i} " + "".join(random.choices("abcdefgh ", k=100)) * 10 for i in range(n)]
            live.extend(pa.table({"text": texts, "label": ["a"] * n}))
    snapshot = corpus.snapshot()
    assert snapshot is not None
    size = sum(batch.nbytes for batch in treering.open(directory / "certify").load(snapshot.ref).scan())
    return {"rows": rows, "mb_s": size / 1e6 / timed(lambda: snapshot.certificate)}


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--adds", type=int, default=500)
    parser.add_argument("--seal-rows", type=int, nargs="*", default=[10_000, 10_000_000])
    parser.add_argument("--spooled", type=int, default=50_000)
    parser.add_argument("--certify-rows", type=int, default=300_000)
    parser.add_argument("--dir", type=Path, default=None, help="where to write (default: the temporary directory)")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    dicts = [chat(i) for i in range(args.rows)]
    records = Records(dicts, [json.dumps(record) for record in dicts], pa.Table.from_pylist(dicts))
    order = random.Random(0)
    directory = Path(tempfile.mkdtemp(prefix="treering-bench-", dir=args.dir))
    try:
        few = Records(dicts[:2_000], records.texts[:2_000], records.table.slice(0, 2_000))
        capture_round(directory, few, order)  # imports, and whatever else happens once
        rounds = [capture_round(directory, records, order) for _ in range(args.rounds)]
        results: dict[str, Any] = {"capture": {}, "ratios": {}}
        for name, first in rounds[0].items():
            results["capture"][name] = first if isinstance(first, str) else median(float(r[name]) for r in rounds)
        for name, reference in RATIOS:
            ratios = [float(r[name]) / float(r[reference]) for r in rounds]
            results["ratios"][f"{name} / {reference}"] = median(ratios)
        results["single"] = single(directory, args.adds)
        results["rot"] = rot(directory, dicts)
        shutil.rmtree(directory / "store")
        results["sealing_ms"] = {str(rows): sealing(directory, rows) for rows in args.seal_rows}
        results["sealing_ms"][f"10000 + {args.spooled} spooled"] = sealing(directory, 10_000, args.spooled)
        results["certificate"] = certifying(directory, args.certify_rows)
    finally:
        shutil.rmtree(directory)
    if args.json:
        print(json.dumps(results, indent=2))
        return
    print("| what | rows/s | survives a power cut |\n| --- | --- | --- |")
    synced = {f"{peer.name} ({peer.given})": peer.synced for peer in PEERS}
    for name, rate in sorted(results["capture"].items(), key=lambda item: -item[1] if item[1] != str(item[1]) else 0):
        shown = rate if isinstance(rate, str) else f"{rate:,.0f}"
        print(f"| {name} | {shown} | {'yes' if synced.get(name, True) else 'no'} |")
    print("\n| what | figure |\n| --- | --- |")
    for name, ratio in results["ratios"].items():
        print(f"| {name} | {ratio:.2f} |")
    s, r, c = results["single"], results["rot"], results["certificate"]
    print(f"| one `add`, acknowledged; a bare write and fdatasync | {s['add_ms']:.3f} ms; {s['bare_ms']:.3f} ms |")
    print(f"| … ratio | {s['add_ms'] / s['bare_ms']:.2f} |")
    print(
        f"| fragments after 2,000 adds; scan against compacted | {r['fragments']}; {r['scan_against_compacted']:.2f} |"
    )
    for rows, ms in results["sealing_ms"].items():
        print(f"| sealing {rows} rows | {ms:,.0f} ms |")
    print(f"| the certificate of {c['rows']:,} records of 1 kB | {c['mb_s']:,.0f} MB/s |")


if __name__ == "__main__":
    main()
