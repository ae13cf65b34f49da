"""Speed and memory of imports, beside plain `extend` of the same records as dicts, interleaved in the same run.

Conversations as a file in each form: treering's records, OpenAI's and TRL's lines (with and without ids, so that ids are made),
one JSON array, gz, zst and Parquet. Sessions of agents in the format of each program that writes them (agent_files.py), those of
coding agents also a file each, as they leave them: a twentieth of the rows, for a session is twenty times as long, each beside
`extend` of the very records that its import makes.
Every contender has a store of its own, and ends when all records are in the table. Each file is also imported by a fresh process
that reports the most memory it had beyond what it started with, and all that its worker had. Prints medians and ratios as
Markdown, and the processor time of this process and of its workers.

`--cpu` measures what one process computes instead: reading, parsing and making the records of a file, without storing them,
beside all of `extend`, in microseconds of processor time a record. No other load of the machine changes that.

    python benchmarks/imports.py [--rows 100000] [--rounds 3] [--dir DIR] [--only TEXT …] [--cpu] [--json]
"""

from __future__ import annotations

import argparse
import gc
import gzip
import json
import random
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import agent_files
import treering

#: The promise: an import has at least this share of the rows/s of `extend`.
PROMISED = 0.5
#: Plain chats for each session of an agent.
CHATS_A_SESSION = 20
CHATS = "chats as dicts"
KEPT = "openai, and what our fields don't hold"
EACH = ", a file each"


class Taken(NamedTuple):
    """Seconds that something took: of the clock, of processors in this process, of processors in its workers."""

    wall: float
    cpu: float
    workers: float


@dataclass
class Case:
    """A file, which format it has, and the records that `extend` is given beside it."""

    path: Path
    format: str
    beside: str
    rows: int
    taken: list[Taken] = field(default_factory=list)
    memory: tuple[float, float] | None = None  # MiB: beyond the start here, and of workers


@dataclass
class Plain:
    """Records for `extend`."""

    records: list[dict[str, Any]]
    taken: list[Taken] = field(default_factory=list)


def middle(taken: list[Taken]) -> Taken:
    """The median of each."""
    return Taken(*map(median, zip(*taken, strict=True)))


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


def write_chats(directory: Path, rows: int) -> dict[str, Case]:
    """The same chats in every form, by what to call it."""
    records = [conversation(i) for i in range(rows)]
    named = [{"id": f"r{i:09d}", "session_id": f"s{i // 3}", **record} for i, record in enumerate(records)]
    files = {
        "records, with ids": ("records", directory / "records.jsonl"),
        "records, ids made": ("records", directory / "noids.jsonl"),
        "openai, ids made": ("openai", directory / "openai.jsonl"),
        "trl, ids made": ("trl", directory / "trl.jsonl"),
        "openai, one JSON array": ("openai", directory / "array.json"),
        KEPT: ("openai", directory / "more.jsonl"),
        "openai, gz": ("openai", directory / "openai.jsonl.gz"),
        "openai, zst": ("openai", directory / "openai.jsonl.zst"),
        "parquet": ("parquet", directory / "records.parquet"),
    }
    cases = {what: Case(path, format_, CHATS, rows) for what, (format_, path) in files.items()}
    _write(cases["records, with ids"].path, named)
    _write(cases["records, ids made"].path, [{**record, "domain": "billing"} for record in records])
    _write(cases["openai, ids made"].path, records)
    more = [{**record, "parallel_tool_calls": False} for record in records]
    _write(cases[KEPT].path, more)
    _write(cases["trl, ids made"].path, [as_trl(record) for record in records])
    cases["openai, one JSON array"].path.write_text(json.dumps(records))
    text = cases["openai, ids made"].path.read_bytes()
    cases["openai, gz"].path.write_bytes(gzip.compress(text, 6))
    import pyarrow as pa
    import pyarrow.parquet as pq
    import zstandard

    cases["openai, zst"].path.write_bytes(zstandard.ZstdCompressor().compress(text))
    for row in named:
        if "tools" in row:
            row["tools"] = json.dumps(row["tools"])
    pq.write_table(pa.Table.from_pylist(named), cases["parquet"].path, row_group_size=10_000)
    return cases


def write_sessions(directory: Path, what: str, sessions: int) -> tuple[Case, Plain]:
    """A file of agents' sessions, and the records that its import makes."""
    form = agent_files.FORMS[what]
    case = Case(directory / f"{what.replace(', ', '-').replace(' ', '-')}.jsonl", form.format, what, 0)
    agent_files.write(what, case.path, sessions)
    made = list(made_of(case))
    case.rows = len(made)
    return case, Plain(made)


def write_files(directory: Path, what: str, case: Case) -> Case:
    """The same sessions, a file each; what is made of them is the same but for ids."""
    folder = directory / f"{what}-each"
    agent_files.write_each(what, folder, case.rows)
    return Case(folder / "*.jsonl", case.format, what, case.rows)


def _write(path: Path, rows: list[dict[str, Any]]) -> None:
    with path.open("w") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)


def made_of(case: Case) -> Iterator[dict[str, Any]]:
    """The records that a file's format makes of it: read, parsed and made, but neither checked nor stored."""
    from treering.capture.chunks import is_value
    from treering.capture.sources import opened, pieces, shape_of
    from treering.formats import Found
    from treering.formats.known import find_importer
    from treering.schema import RecordType, parse_json

    format_ = find_importer(case.format)
    importer = format_(RecordType.of("chat"), str(case.path))
    _, stream = opened(str(case.path))
    with stream:
        chat = RecordType.of("chat")
        shape, stream = shape_of(str(case.path), stream, format_.elements, is_value(format_, chat))
        for piece in pieces(str(case.path), stream, shape, format_.elements):
            for outcome in importer.feed(piece.line, parse_json(piece.text), piece.text):
                if type(outcome) is Found:
                    yield outcome.record
    for outcome in importer.finish():
        if type(outcome) is Found:
            yield outcome.record


def timed(work: Callable[[], Any]) -> Taken:
    """What `work` takes."""
    gc.collect()
    before = (time.perf_counter(), time.process_time(), _children())
    work()
    after = (time.perf_counter(), time.process_time(), _children())
    return Taken(*(now - then for now, then in zip(after, before, strict=True)))


def _children() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def extend_round(directory: Path, plain: Plain) -> None:
    """Take the time until `extend` has all records in the table."""
    corpus = treering.open(directory / "store").create("support", "chat")

    def work() -> None:
        with corpus.capture() as live:
            live.extend(plain.records)

    plain.taken.append(timed(work))


def import_round(directory: Path, case: Case) -> None:
    """Take the time until a file's records are in the table."""
    corpus = treering.open(directory / "store").create("support", "chat")
    found: list[Any] = []
    taken = timed(lambda: found.append(corpus.capture_file(str(case.path), format=case.format)))
    assert (found[0].stored, found[0].refused) == (case.rows, 0), found[0]
    case.taken.append(taken)


def making_round(case: Case) -> None:
    """Take the processor time of making a file's records, none of which is held."""
    found: list[int] = []
    before = gc.get_threshold()
    gc.set_threshold(200_000, *before[1:])  # as imports do
    taken = timed(lambda: found.append(sum(1 for _ in made_of(case))))
    gc.set_threshold(*before)
    assert found == [case.rows], found
    case.taken.append(taken)


_MEMORY = """
import re, sys, threading, time, treering
from pathlib import Path
most = {}
def peak(pid):  # not getrusage: what that says has in it what the process had that started this one
    return int(re.search(r"VmHWM:\\s*(\\d+)", Path(f"/proc/{pid}/status").read_text())[1])
def watch():
    while True:
        for task in Path("/proc/self/task").glob("*/children"):
            for pid in task.read_text().split():
                try:
                    if b"treering.engine.worker" in Path(f"/proc/{pid}/cmdline").read_bytes():
                        most[pid] = peak(pid)
                except (OSError, TypeError):
                    pass
        time.sleep(0.02)
corpus = treering.open(sys.argv[1]).create("support", "chat")
with corpus.capture() as live:
    live.extend([{"messages": [{"role": "user", "content": str(i)}]} for i in range(1000)])
threading.Thread(target=watch, daemon=True).start()
before = peak("self")
corpus.capture_file(sys.argv[2])
print(peak("self") - before, sum(most.values()))
"""


def memory(directory: Path, path: Path) -> tuple[float, float]:
    """MiB that a process needs for an import beyond what it had before, and all that its workers need."""
    done = subprocess.run(
        [sys.executable, "-c", _MEMORY, str(directory / "store"), str(path)], capture_output=True, text=True, check=True
    )
    here, workers = map(int, done.stdout.split())
    return here / 1024, workers / 1024


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--dir", type=Path, default=None, help="where files and stores go, instead of the system's temporary directory"
    )
    parser.add_argument(
        "--only", nargs="*", default=[], metavar="TEXT", help="only forms whose names hold one of these"
    )
    parser.add_argument("--cpu", action="store_true", help="processor time of making the records alone")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.dir) as name:
        root = Path(name)
        cases, plains = written(root, options.rows, options.only, cpu=options.cpu)
        gc.collect()
        gc.freeze()  # what is held here for `extend` must not cost the others anything
        for round_ in range(options.rounds):
            contenders: list[tuple[str, Case | Plain]] = [*plains.items(), *cases.items()]
            random.Random(round_).shuffle(contenders)
            for _, one in contenders:
                place = root / f"round-{round_}"
                place.mkdir()
                if isinstance(one, Plain):
                    extend_round(place, one)
                elif options.cpu:
                    making_round(one)
                else:
                    import_round(place, one)
                shutil.rmtree(place)
        for case in cases.values() if not options.cpu else ():
            place = root / "memory"
            place.mkdir()
            case.memory = memory(place, case.path)
            shutil.rmtree(place)
        sizes = {
            what: sum(file.stat().st_size for file in case.path.parent.glob(case.path.name)) / (1 << 20)
            for what, case in cases.items()
        }
    if options.cpu:
        show_cpu(cases, plains, as_json=options.json)
    else:
        show(cases, plains, sizes, as_json=options.json)


def written(root: Path, rows: int, only: list[str], *, cpu: bool) -> tuple[dict[str, Case], dict[str, Plain]]:
    """The files to read, and the records beside them; columns of Parquet need no making."""
    cases: dict[str, Case] = {}
    plains: dict[str, Plain] = {}

    def is_asked(what: str) -> bool:
        return not only or any(text in what for text in only)

    chats = {what: case for what, case in write_chats(root, rows).items() if is_asked(what)}
    if cpu:
        chats.pop("parquet", None)
    if chats:
        cases.update(chats)
        for what in chats.keys() & {KEPT}:
            chats[what].beside, plains[what] = what, Plain(list(made_of(chats[what])))
        plains[CHATS] = Plain([{"id": f"r{i:09d}", **conversation(i)} for i in range(rows)])
    for what in filter(is_asked, agent_files.FORMS):
        cases[what], plains[what] = write_sessions(root, what, max(1, rows // CHATS_A_SESSION))
        if what in ("claude-code", "codex") and not cpu:
            cases[what + EACH] = write_files(root, what, cases[what])
    return cases, plains


def show(cases: dict[str, Case], plains: dict[str, Plain], sizes: dict[str, float], *, as_json: bool) -> None:
    """Print how fast imports are, of how fast `extend` is."""
    if as_json:
        shown = {
            what: {
                "rows": case.rows,
                "rows_per_s": case.rows / middle(case.taken).wall,
                "of_extend": middle(plains[case.beside].taken).wall / middle(case.taken).wall,
                "cpu_s": middle(case.taken)[1:],
                "extend_cpu_s": middle(plains[case.beside].taken).cpu,
                "memory_mib": case.memory,
                "file_mib": sizes[what],
            }
            for what, case in cases.items()
        }
        print(json.dumps({"promised": PROMISED, "imports": shown}, indent=2))
        return
    print(
        "| what | rows | `extend`, rows/s | rows/s | of `extend` | processor: `extend`; here, workers | memory | file |"
    )
    print("| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |")
    for what, case in cases.items():
        plain, taken = middle(plains[case.beside].taken), middle(case.taken)
        rates = f"{case.rows / plain.wall:,.0f} | {case.rows / taken.wall:,.0f} | {plain.wall / taken.wall:.2f}"
        used = f"{plain.cpu:.2f} s; {taken.cpu:.2f} s, {taken.workers:.2f} s"
        memory = "{:,.0f} + {:,.0f} MiB".format(*(case.memory or (0, 0)))
        print(f"| {what} | {case.rows:,} | {rates} | {used} | {memory} | {sizes[what]:,.1f} MiB |")


def show_cpu(cases: dict[str, Case], plains: dict[str, Plain], *, as_json: bool) -> None:
    """Print the processor time a record that making takes, and `extend`."""
    used = {
        what: (1e6 * middle(case.taken).cpu / case.rows, 1e6 * middle(plains[case.beside].taken).cpu / case.rows)
        for what, case in cases.items()
    }
    if as_json:
        print(
            json.dumps(
                {what: {"making_us": made, "extend_us": plain} for what, (made, plain) in used.items()}, indent=2
            )
        )
        return
    print("| what | records | making one, µs | `extend`, µs | of `extend` |")
    print("| --- | ---: | ---: | ---: | ---: |")
    for what, (made, plain) in used.items():
        print(f"| {what} | {cases[what].rows:,} | {made:,.1f} | {plain:,.1f} | {made / plain:.2f} |")


if __name__ == "__main__":
    main()
