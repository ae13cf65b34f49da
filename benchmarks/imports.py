"""Speed and memory of imports, beside plain `extend` of the same records as dicts, interleaved in the same run.

Conversations as a file in each form: treering's records, OpenAI's and TRL's lines (with and without ids, so that ids are made),
one JSON array, gz, zst and Parquet. Every contender has a store of its own, and ends when all records are in the table. Each file
is also imported by a fresh process that reports the most memory it had beyond what it started with. Prints medians and ratios as
Markdown.

    python benchmarks/imports.py [--rows 100000] [--rounds 3] [--dir DIR] [--json]
"""

from __future__ import annotations

import argparse
import gc
import gzip
import json
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import treering

#: The promise: an import has at least this share of the rows/s of `extend`.
PROMISED = 0.5


def conversation(i: int) -> dict[str, Any]:
    """A chat record of about 700 bytes of JSON, with a tool call and its result in every fourth."""
    messages: list[dict[str, Any]] = [
        {"role": "system", "content": "You are a helpful support agent."},
        {"role": "user", "content": f"My order {i} has not arrived and I would like to know where it is, please."},
    ]
    record: dict[str, Any] = {"messages": messages}
    if i % 4 == 0:
        call = {"name": "find_order", "arguments": json.dumps({"order": i, "with": ["route", "carrier"]})}
        messages.append(
            {"role": "assistant", "tool_calls": [{"id": f"call_{i}", "type": "function", "function": call}]}
        )
        messages.append({"role": "tool", "tool_call_id": f"call_{i}", "content": '{"state": "under way"}'})
        record["tools"] = [{"type": "function", "function": {"name": "find_order", "parameters": {"type": "object"}}}]
    messages.append(
        {"role": "assistant", "content": f"I am sorry. Order {i} left the warehouse yesterday, it is due tomorrow."}
    )
    messages.append({"role": "user", "content": "Thank you, then I shall wait until tomorrow before I call again."})
    return record


def as_trl(record: dict[str, Any]) -> dict[str, Any]:
    """The same with objects as arguments."""
    row: dict[str, Any] = json.loads(json.dumps(record))
    for message in row["messages"]:
        for call in message.get("tool_calls", ()):
            call["function"]["arguments"] = json.loads(call["function"]["arguments"])
    return row


def write_files(directory: Path, rows: int) -> dict[str, Path]:
    """The same conversations in every form, by what to call it."""
    records = [conversation(i) for i in range(rows)]
    named = [{"id": f"r{i:09d}", "session_id": f"s{i // 3}", **record} for i, record in enumerate(records)]
    files = {
        "records, with ids": directory / "records.jsonl",
        "records, ids made": directory / "noids.jsonl",
        "openai, ids made": directory / "openai.jsonl",
        "trl, ids made": directory / "trl.jsonl",
        "openai, one JSON array": directory / "array.json",
        "openai, and what our fields don't hold": directory / "more.jsonl",
        "openai, gz": directory / "openai.jsonl.gz",
        "openai, zst": directory / "openai.jsonl.zst",
        "parquet": directory / "records.parquet",
    }
    _write(files["records, with ids"], named)
    _write(files["records, ids made"], [{**record, "domain": "billing"} for record in records])
    _write(files["openai, ids made"], records)
    more = [{**record, "parallel_tool_calls": False} for record in records]
    _write(files["openai, and what our fields don't hold"], more)
    _write(files["trl, ids made"], [as_trl(record) for record in records])
    files["openai, one JSON array"].write_text(json.dumps(records))
    text = files["openai, ids made"].read_bytes()
    files["openai, gz"].write_bytes(gzip.compress(text, 6))
    import pyarrow as pa
    import pyarrow.parquet as pq
    import zstandard

    files["openai, zst"].write_bytes(zstandard.ZstdCompressor().compress(text))
    for row in named:
        if "tools" in row:
            row["tools"] = json.dumps(row["tools"])
    pq.write_table(pa.Table.from_pylist(named), files["parquet"], row_group_size=10_000)
    return files


def _write(path: Path, rows: list[dict[str, Any]]) -> None:
    with path.open("w") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)


def timed(work: Callable[[], Any]) -> float:
    """Seconds that `work` takes."""
    gc.collect()
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def extend_round(directory: Path, records: list[dict[str, Any]]) -> float:
    """Seconds until `extend` has all records in the table."""
    corpus = treering.open(directory / "store").create("support", "chat")

    def work() -> None:
        with corpus.capture() as live:
            live.extend(records)

    return timed(work)


def import_round(directory: Path, path: Path, rows: int) -> float:
    """Seconds until a file's records are in the table."""
    corpus = treering.open(directory / "store").create("support", "chat")
    found: list[Any] = []
    seconds = timed(lambda: found.append(corpus.capture_file(str(path))))
    assert (found[0].stored, found[0].refused) == (rows, 0), found[0]
    return seconds


_MEMORY = """
import resource, sys, treering
corpus = treering.open(sys.argv[1]).create("support", "chat")
with corpus.capture() as live:
    live.extend([{"messages": [{"role": "user", "content": str(i)}]} for i in range(1000)])
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
corpus.capture_file(sys.argv[2])
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def memory(directory: Path, path: Path) -> float:
    """MiB that a process needs for an import beyond what it had before."""
    done = subprocess.run(
        [sys.executable, "-c", _MEMORY, str(directory / "store"), str(path)], capture_output=True, text=True, check=True
    )
    return int(done.stdout) / 1024


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--dir", type=Path, default=None, help="where files and stores go, instead of the system's temporary directory"
    )
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    seconds: dict[str, list[float]] = {}
    most: dict[str, float] = {}
    with tempfile.TemporaryDirectory(dir=options.dir) as name:
        root = Path(name)
        files = write_files(root, options.rows)
        records = [{"id": f"r{i:09d}", **conversation(i)} for i in range(options.rows)]
        gc.collect()
        gc.freeze()  # what is held here for `extend` must not cost the others anything
        for round_ in range(options.rounds):
            contenders: list[tuple[str, Path | None]] = [("extend of dicts", None), *files.items()]
            random.Random(round_).shuffle(contenders)
            for what, path in contenders:
                place = root / f"round-{round_}"
                place.mkdir()
                taken = extend_round(place, records) if path is None else import_round(place, path, options.rows)
                seconds.setdefault(what, []).append(taken)
                shutil.rmtree(place)
        for what, path in files.items():
            place = root / "memory"
            place.mkdir()
            most[what] = memory(place, path)
            shutil.rmtree(place)
        sizes = {what: path.stat().st_size for what, path in files.items()}
    rates = {what: options.rows / median(taken) for what, taken in seconds.items()}
    plain = rates["extend of dicts"]
    if options.json:
        shown = {"rows": options.rows, "rows_per_s": rates, "memory_mib": most, "bytes": sizes, "promised": PROMISED}
        print(json.dumps(shown, indent=2))
        return
    print("| what | rows/s | of `extend` | memory beyond the start | file |")
    print("| --- | ---: | ---: | ---: | ---: |")
    print(f"| extend of dicts | {plain:,.0f} | 1.00 | | |")
    for what in files:
        size = f"{sizes[what] / (1 << 20):,.1f} MiB"
        print(f"| {what} | {rates[what]:,.0f} | {rates[what] / plain:.2f} | {most[what]:,.0f} MiB | {size} |")


if __name__ == "__main__":
    main()
