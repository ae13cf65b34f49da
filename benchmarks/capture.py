"""Speed of durable capture and of sealing.

Reference: the same JSON inserted into SQLite (WAL, synchronous=FULL, 1,000 rows a transaction), interleaved in the same
run on the same file system. Every treering record is validated and durable. Prints medians and ratios as Markdown.

    python benchmarks/capture.py [--rows 100000] [--rounds 3] [--dir DIR] [--json]
"""

from __future__ import annotations

import argparse
import json
import shutil
import sqlite3
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import treering


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


def timed(work: Callable[[], Any]) -> float:
    """Seconds that `work` takes."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def sqlite_insert(path: Path, records: list[dict[str, Any]], texts: list[str] | None) -> None:
    """Row by row, 1,000 rows a transaction. Without `texts` the records are turned to JSON on the way, as a user would."""
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=FULL")
    connection.execute("CREATE TABLE records (id TEXT PRIMARY KEY, record TEXT NOT NULL)")
    for start in range(0, len(records), 1_000):
        connection.execute("BEGIN")
        for i in range(start, min(start + 1_000, len(records))):
            connection.execute(
                "INSERT INTO records VALUES (?, ?)",
                (records[i]["id"], texts[i] if texts else json.dumps(records[i])),
            )
        connection.execute("COMMIT")
    connection.close()


def capture_round(directory: Path, records: list[dict[str, Any]], texts: list[str]) -> dict[str, float]:
    """One interleaved round: rows/s acknowledged, rows/s in the table, rows/s of the reference."""
    n = len(records)
    figures = {
        "sqlite_rows_s": n / timed(lambda: sqlite_insert(directory / "text.sqlite", records, texts)),
        "sqlite_from_dicts_rows_s": n / timed(lambda: sqlite_insert(directory / "dicts.sqlite", records, None)),
    }
    store = treering.open(directory / "store")
    corpus = store.create("support", "chat")
    start = time.perf_counter()
    recorder = corpus.capture()
    recorder.extend(records)
    figures["acknowledged_rows_s"] = n / (time.perf_counter() - start)
    recorder.close()
    figures["committed_rows_s"] = n / (time.perf_counter() - start)
    assert recorder.counts.stored == n
    return figures


def rot(directory: Path) -> dict[str, float]:
    """2,000 single adds on top of a table, then its scan time against that of a compacted copy, in turn."""
    corpus = treering.open(directory / "store").corpus("support")
    with corpus.capture() as live:
        seconds = timed(lambda: [live.add(chat(10_000_000 + i)) for i in range(2_000)])
    shutil.copytree(directory / "store", directory / "copy")
    compacted = treering.open(directory / "copy").corpus("support")
    compacted.compact()

    def scan(which: treering.Corpus) -> int:
        return sum(len(batch) for batch in which.table.scan(which.table.head(), which.record_type.schema.names))

    assert scan(corpus) == scan(compacted)
    ratios = [timed(lambda: scan(corpus)) / timed(lambda: scan(compacted)) for _ in range(15)]
    return {
        "add_ms": seconds / 2_000 * 1e3,
        "fragments": len(corpus.table.head().get_fragments()),
        "scan_against_compacted": median(ratios),
    }


def sealing(directory: Path, rows: int, spooled: int = 0) -> float:
    """Milliseconds to seal `rows` rows in the table and `spooled` rows still in the spool."""
    import pyarrow as pa

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


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seal-rows", type=int, nargs="*", default=[10_000, 1_000_000])
    parser.add_argument("--spooled", type=int, default=50_000)
    parser.add_argument("--dir", type=Path, default=None, help="where to write (default: the temporary directory)")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    records = [chat(i) for i in range(args.rows)]
    texts = [json.dumps(record) for record in records]
    rounds = []
    results: dict[str, Any] = {}
    for _ in range(args.rounds):
        directory = Path(tempfile.mkdtemp(prefix="treering-bench-", dir=args.dir))
        try:
            rounds.append(capture_round(directory, records, texts))
            results["rot"] = rot(directory)
        finally:
            shutil.rmtree(directory)
    results["capture"] = {name: median(r[name] for r in rounds) for name in rounds[0]}
    for name in ("acknowledged", "committed"):
        ratios = [r[f"{name}_rows_s"] / r["sqlite_rows_s"] for r in rounds]
        results["capture"][f"{name}_against_sqlite"] = median(ratios)
        ratios = [r[f"{name}_rows_s"] / r["sqlite_from_dicts_rows_s"] for r in rounds]
        results["capture"][f"{name}_against_sqlite_from_dicts"] = median(ratios)
    directory = Path(tempfile.mkdtemp(prefix="treering-bench-", dir=args.dir))
    try:
        results["sealing_ms"] = {str(rows): sealing(directory, rows) for rows in args.seal_rows}
        results["sealing_ms"][f"10000 + {args.spooled} spooled"] = sealing(directory, 10_000, args.spooled)
    finally:
        shutil.rmtree(directory)
    if args.json:
        print(json.dumps(results, indent=2))
        return
    c, r = results["capture"], results["rot"]
    print("| what | figure |\n| --- | --- |")
    print(
        f"| SQLite (WAL, FULL, 1,000 rows a transaction), JSON text made beforehand | {c['sqlite_rows_s']:,.0f} rows/s |"
    )
    print(f"| the same, from the dicts that treering gets | {c['sqlite_from_dicts_rows_s']:,.0f} rows/s |")
    print(f"| `extend`, validated and durable | {c['acknowledged_rows_s']:,.0f} rows/s |")
    print(
        f"| … against SQLite, from text; from dicts | {c['acknowledged_against_sqlite']:.2f}; {c['acknowledged_against_sqlite_from_dicts']:.2f} |"
    )
    print(f"| `extend` and `close`, all rows in the Lance table | {c['committed_rows_s']:,.0f} rows/s |")
    print(
        f"| … against SQLite, from text; from dicts | {c['committed_against_sqlite']:.2f}; {c['committed_against_sqlite_from_dicts']:.2f} |"
    )
    print(f"| one `add`, acknowledged | {r['add_ms']:.2f} ms |")
    print(
        f"| fragments after 2,000 adds; scan against compacted | {r['fragments']}; {r['scan_against_compacted']:.2f} |"
    )
    for rows, ms in results["sealing_ms"].items():
        print(f"| sealing {rows} rows | {ms:,.0f} ms |")


if __name__ == "__main__":
    main()
