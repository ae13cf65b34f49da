"""Rows per second of a shuffled 30/30/40 mix of three corpora: treering beside the physical limit and its peers.

Rows of 128 int32 tokens, a label and ~400 B of text, captured and sealed in three corpora *sorted by label*, the worst
case for a shuffle. Delivered: tokens and labels as torch tensors, 256 rows a batch, in one process (contenders "with
text": the text too, as Python strings). What each contender does stands in `contenders.py`.

What is timed: every contender runs in a fresh process in each round, rounds are interleaved, the files are in the page
cache. The clock starts after the imports, with the call that makes the loader, and stops at the first batch after
`--seconds`; opening, permuting and the first read are all inside. "the limit" is a numpy memmap gather: random row
numbers per source and batch, one fancy index per source, one concatenation, `torch.from_numpy`.

Beside the rate: seconds to the first batch; anonymous memory at its highest (RssAnon + RssShmem of the process and its
children, imports included); label entropy per batch over the first 200 batches, as a share of a full shuffle's.

    pip install 'treering[bench]'                                      the peers
    python benchmarks/loader.py [--rows 300000] [--rounds 4] [--seconds 4] [--only KEY …] [--text FILE] [--json]
    python benchmarks/loader.py --python mosaic=OTHER/bin/python       a peer that needs an environment of its own
    python benchmarks/loader.py --dir DIR                              keeps the data and uses it again
    python benchmarks/loader.py --smoke                                tiny, untimed, in this process, for the tests
"""

from __future__ import annotations

import argparse
import importlib
import importlib.metadata
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from contenders import BATCH, CONTENDERS, LABELS, NAMES, TOKENS, Contender, Data, Unavailable

SCHEMA = pa.schema([("text", pa.string()), ("tokens", pa.list_(pa.int32(), TOKENS)), ("target", pa.int64())])
SAMPLED = 200  # batches whose labels are looked at
LIMIT = "gather"

IntArray = np.ndarray[Any, np.dtype[np.int64]]


# ---- the data


class Texts:
    """Texts of about 400 bytes: stretches of a file's lines, or made-up words."""

    def __init__(self, file: Path | None) -> None:
        self._words = np.random.default_rng(0).integers(97, 123, (5_000, 8), dtype=np.uint8)
        self._words[:, 7] = ord(" ")
        self._bytes: np.ndarray[Any, np.dtype[np.uint8]] | None = None
        if file is not None:
            lines = [line.strip().encode() + b" " for line in file.read_text(encoding="utf-8").splitlines()]
            lines = [line for line in lines if len(line) > 1]
            self._starts = np.cumsum([0, *map(len, lines)])
            self._bytes = np.frombuffer(b"".join(lines), dtype=np.uint8)
            if len(self._bytes) < 10_000:
                raise SystemExit(f"{file}: too little text, at least 10 kB are needed")

    def make(self, rows: int, rng: np.random.Generator) -> pa.Array:
        """`rows` strings."""
        if self._bytes is None:
            words = rng.integers(30, 71, rows)
            bounds = np.concatenate([[0], np.cumsum(words * 8)])
            flat = self._words[rng.integers(0, len(self._words), int(words.sum()))].reshape(-1)
        else:
            last = int(np.searchsorted(self._starts, self._starts[-1] - 600)) - 1
            first = self._starts[rng.integers(0, last, rows)]
            after = self._starts[np.searchsorted(self._starts, first + rng.integers(330, 430, rows))]
            bounds = np.concatenate([[0], np.cumsum(after - first)])
            flat = self._bytes[np.arange(bounds[-1]) + np.repeat(first - bounds[:-1], after - first)]
        buffers = [None, pa.py_buffer(bounds.astype(np.int32)), pa.py_buffer(flat)]
        return pa.StringArray.from_buffers(rows, buffers[1], buffers[2])


def records(rows: int, low: int, high: int, texts: Texts, seed: int) -> pa.Table:
    """Records [low, high) of `rows`, about 930 B each, sorted by label over the whole corpus."""
    rng = np.random.default_rng([seed, low])
    tokens = pa.array(rng.integers(0, 32_000, (high - low) * TOKENS, dtype=np.int32))
    columns = [
        texts.make(high - low, rng),
        pa.FixedSizeListArray.from_arrays(tokens, TOKENS),
        pa.array(np.arange(low, high) * LABELS // rows),
    ]
    return pa.table(columns, schema=SCHEMA)


def build(data: Data, rows: int, text: Path | None) -> None:
    """A store of three corpora, sealed once each, and their training rows as Arrow files for the peers.

    A folder that holds them already is taken as it is.
    """
    import treering

    made = data.root / "made.json"
    recipe = {"rows": rows, "text": str(text)}
    if made.exists():
        if json.loads(made.read_text()) != recipe:
            raise SystemExit(f"{data.root} holds the data of {made.read_text()}, not of {json.dumps(recipe)}")
        return
    store = treering.open(data.root / "store")
    texts = Texts(text)
    for number, name in enumerate(NAMES):
        corpus = store.create(name, schema=SCHEMA)
        with corpus.capture() as live:
            for low in range(0, rows, 50_000):
                live.extend(records(rows, low, min(low + 50_000, rows), texts, number))
        corpus.compact()
        corpus.snapshot()
        table = store.load(f"{name}@v1").to_table(["text", "tokens", "target", "split"])
        table = table.filter(pa.compute.equal(table["split"], "train")).drop_columns(["split"])
        with pa.ipc.new_file(str(data.root / f"{name}.arrow"), table.schema) as file:
            file.write_table(table, max_chunksize=50_000)
    made.write_text(json.dumps(recipe))


# ---- one contender, in its own process


def entropy(labels: Sequence[IntArray]) -> float:
    """Mean label entropy of the batches, in nats."""
    found = []
    for batch in labels:
        shares = np.bincount(batch, minlength=LABELS) / len(batch)
        found.append(-(shares[shares > 0] * np.log(shares[shares > 0])).sum())
    return float(np.mean(found))


def full_shuffle_entropy() -> float:
    """The same for batches of uniformly random rows."""
    return entropy(list(np.random.default_rng(0).integers(0, LABELS, (1_000, BATCH))))


def require(contender: Contender) -> None:
    """Import what it needs. Raises Unavailable."""
    try:
        if contender.before is not None:
            contender.before()
        for name in contender.modules:
            importlib.import_module(name)
    except Exception as exc:  # a peer may fail to import in any way: the table says so
        raise Unavailable(f"{type(exc).__name__}: {exc}".splitlines()[0]) from exc


def prepare(contender: Contender, data: Data) -> dict[str, Any]:
    """Write its own form of the data, once."""
    folder = data.own(contender.shared or contender.key)
    began = time.perf_counter()
    if contender.prepare is not None and not folder.exists():
        try:
            contender.prepare(data)
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
    return {"prepared_s": time.perf_counter() - began}


def version(package: str) -> str:
    """`numpy 2.4.6`; a checkout that isn't installed has no version."""
    try:
        return f"{package} {importlib.metadata.version(package)}"
    except importlib.metadata.PackageNotFoundError:
        return package


def measure(contender: Contender, data: Data, seconds: float, most: int) -> dict[str, Any]:
    """Rate over at least `seconds`, or `most` batches; checks what arrives."""
    labels: list[IntArray] = []
    rows = number = 0
    began = time.perf_counter()
    batches = contender.run(data)
    for number, (tokens, label, text) in enumerate(batches, 1):
        now = time.perf_counter()
        rows += len(label)
        if number == 1:
            first = now - began
            assert tuple(tokens.shape) == (BATCH, TOKENS), tokens.shape
            assert tokens.dtype == torch.int32
            assert label.dtype == torch.int64
            if contender.text:
                assert len(text) == BATCH
                assert all(isinstance(one, str) for one in text)
        if number <= SAMPLED:
            labels.append(label.numpy().copy())
        if number >= most or now - began >= seconds:
            break
    took = time.perf_counter() - began
    batches.close()  # type: ignore[attr-defined]
    figures = {"rows_per_s": rows / took, "first_batch_s": first, "batches": number, "entropy": entropy(labels)}
    return figures | {"versions": [version(package) for package in contender.packages]}


def child(options: argparse.Namespace) -> None:
    """Prepare or measure one contender and leave the figures in a file; stdout belongs to the libraries."""
    contender = next(one for one in CONTENDERS if one.key == options.child)
    try:
        require(contender)
        data = Data(options.dir)
        work = prepare(contender, data) if options.prepare else measure(contender, data, options.seconds, 10**12)
    except Unavailable as exc:
        work = {"failed": str(exc)}
    except BaseException as exc:
        traceback.print_exc()
        work = {"failed": f"{type(exc).__name__}: {exc}".splitlines()[0]}
    options.out.with_suffix(".part").write_text(json.dumps(work))
    options.out.with_suffix(".part").rename(options.out)


# ---- the run


def anonymous_kb(pid: int) -> int:
    """Anonymous and shared memory of a process and its descendants; 0 for what is gone."""
    total = 0
    try:
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith(("RssAnon:", "RssShmem:")):
                total += int(line.split()[1])
        for task in Path(f"/proc/{pid}/task").iterdir():
            total += sum(anonymous_kb(int(one)) for one in (task / "children").read_text().split())
    except (OSError, ValueError):
        pass
    return total


class Processes:
    """Runs contenders in processes of their own, each with the Python that has its packages."""

    def __init__(self, data: Data, pythons: dict[str, str], log: Path) -> None:
        self._data = data
        self._pythons = pythons
        self._log = log

    def run(self, contender: Contender, words: Iterable[str], limit_s: float) -> dict[str, Any]:
        """The child's figures, with `anonymous_mb` at its highest; {"failed": why} when there are none."""
        out = self._data.root / "result.json"
        out.unlink(missing_ok=True)
        command = [
            self._pythons.get(contender.key, sys.executable), __file__, "--dir", str(self._data.root),
            "--child", contender.key, "--out", str(out), *words,
        ]  # fmt: skip
        environment = {**os.environ, "HF_HOME": str(self._data.root / "hf-home"), "HF_HUB_OFFLINE": "1"}
        peak, deadline = 0, time.monotonic() + limit_s
        with self._log.open("a") as log:
            process = subprocess.Popen(
                command, stdout=log, stderr=log, stdin=subprocess.DEVNULL, env=environment, start_new_session=True
            )
            try:
                while process.poll() is None and time.monotonic() < deadline:
                    peak = max(peak, anonymous_kb(process.pid))
                    if out.exists():  # some peers never end by themselves: the figures are there
                        deadline = min(deadline, time.monotonic() + 10)
                    time.sleep(0.05)
            finally:
                if process.poll() is None:
                    os.killpg(process.pid, 9)
                    process.wait()
        if not out.exists():
            why = f"exit code {process.returncode}" if time.monotonic() < deadline else f"no result in {limit_s:.0f} s"
            return {"failed": why}
        found: dict[str, Any] = json.loads(out.read_text())
        return found | {"anonymous_mb": peak / 1024}


def here(contender: Contender, data: Data) -> dict[str, Any]:
    """A few batches in this process: for the smoke test."""
    try:
        require(contender)
        return prepare(contender, data) | measure(contender, data, 60, 3)
    except Unavailable as exc:
        return {"failed": str(exc)}


def summary(contender: Contender, prepared: dict[str, Any], rounds: list[dict[str, Any]]) -> dict[str, Any]:
    """One contender's figures over all rounds."""
    row = {"key": contender.key, "name": contender.name, "kind": contender.kind, "shares": contender.shares,
           "stored": contender.stored, "text": contender.text, **prepared}  # fmt: skip
    good = [one for one in rounds if "failed" not in one]
    if not good:
        return row | ({"failed": rounds[-1]["failed"]} if rounds else {})
    for key in ("rows_per_s", "first_batch_s", "anonymous_mb", "entropy"):
        if key in good[0]:
            row[key] = median(one[key] for one in good)
    return row | {
        "versions": good[0]["versions"],
        "rates": [round(one["rows_per_s"]) for one in good],
        "failed_rounds": len(rounds) - len(good),
    }


def best_peer(rows: Sequence[dict[str, Any]], *, text: bool) -> float | None:
    """The rate of the fastest store-backed peer that delivers the same columns."""
    peers = [row for row in rows if row["kind"] == "peer" and row["stored"] and row["text"] == text]
    return max((row["rows_per_s"] for row in peers if "rows_per_s" in row), default=None)


def with_ratios(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Adds what each rate is of the limit and of the best store-backed peer's, and the entropy of a full shuffle's."""
    limit = next((row.get("rows_per_s") for row in rows if row["key"] == LIMIT), None)
    full = full_shuffle_entropy()
    for row in rows:
        if "rows_per_s" not in row:
            continue
        peer = best_peer(rows, text=row["text"])
        row["of_limit"] = None if limit is None else row["rows_per_s"] / limit
        row["of_best_peer"] = None if peer is None else row["rows_per_s"] / peer
        row["entropy_of_full_shuffle"] = row["entropy"] / full
    return rows


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Markdown, fastest first inside each kind, then what didn't run."""
    lines = [
        "| median | rows/s | of the limit | × best peer | first batch, s | anonymous MB | label entropy | shares | "
        "made in, s |",
        "| --- " * 9 + "|",
    ]
    kinds = ("reference", "treering", "peer")
    for row in sorted(rows, key=lambda row: (kinds.index(row["kind"]), -row.get("rows_per_s", 0))):
        if "rows_per_s" not in row:
            lines.append(f"| {row['name']} | doesn't run: {row.get('failed', '?').replace('|', '/')} |" + " – |" * 7)
            continue
        name = row["name"]
        if row["kind"] == "peer":
            name += f" ({', '.join(row['versions'])})"
        figures = [
            f"{row['rows_per_s'] / 1e3:,.0f}k" if row["rows_per_s"] >= 10_000 else f"{row['rows_per_s'] / 1e3:,.1f}k",
            "–" if row["of_limit"] is None else f"{row['of_limit']:.3f}",
            "–" if row["of_best_peer"] is None else f"{row['of_best_peer']:.2f}",
            f"{row['first_batch_s']:.3f}",
            f"{row['anonymous_mb']:,.0f}" if "anonymous_mb" in row else "–",
            f"{row['entropy_of_full_shuffle']:.3f}",
            row["shares"],
            f"{row['prepared_s']:.1f}",
        ]
        lines.append(f"| {name} | " + " | ".join(figures) + " |")
    return "\n".join(lines)


def chosen(only: Sequence[str] | None) -> list[Contender]:
    """The contenders of these keys, in the table's order."""
    known = [one.key for one in CONTENDERS]
    unknown = [key for key in only or () if key not in known]
    if unknown:
        raise SystemExit(f"no contender {', '.join(unknown)}; there are {', '.join(known)}")
    return [one for one in CONTENDERS if not only or one.key in only]


def run(options: argparse.Namespace, data: Data) -> list[dict[str, Any]]:
    """Build, prepare, measure in interleaved rounds."""
    build(data, options.rows, options.text)
    contenders = chosen(options.only)
    if options.smoke:
        return [summary(one, {"prepared_s": 0.0}, [here(one, data)]) for one in contenders]
    processes = Processes(data, dict(word.split("=", 1) for word in options.python), data.root / "log.txt")
    notes = data.root / "prepared.json"
    prepared: dict[str, dict[str, Any]] = json.loads(notes.read_text()) if notes.exists() else {}
    rounds: dict[str, list[dict[str, Any]]] = {one.key: [] for one in contenders}
    for one in contenders:
        if one.prepare is None:
            prepared[one.key] = {"prepared_s": 0.0}
        elif "failed" in prepared.get(one.key, {"failed": ""}):
            print(f"preparing {one.key}", file=sys.stderr)
            prepared[one.key] = processes.run(one, ["--prepare"], 3_600)
            prepared[one.key].pop("anonymous_mb", None)
    # Who shares a folder was prepared by the first of them; all of them show its cost.
    for one in contenders:
        same = [prepared[two.key].get("prepared_s", 0.0) for two in contenders if two.shared == one.shared]
        if one.shared and "failed" not in prepared[one.key]:
            prepared[one.key]["prepared_s"] = max(same)
    notes.write_text(json.dumps(prepared))
    for number in range(options.rounds):
        # Another order each round: nobody always runs after the same neighbour.
        for one in np.random.default_rng(number).permutation(len(contenders)).tolist():
            contender = contenders[one]
            if "failed" in prepared[contender.key]:
                continue
            found = processes.run(contender, ["--seconds", str(options.seconds)], 300 + options.seconds)
            rounds[contender.key].append(found)
            said = found.get("failed") or f"{found['rows_per_s']:,.0f} rows/s"
            print(f"round {number + 1}: {contender.key}: {said}", file=sys.stderr)
    return [summary(one, prepared[one.key], rounds[one.key]) for one in contenders]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=300_000, help="records in each of the three corpora")
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--seconds", type=float, default=4.0, help="for each contender in each round")
    parser.add_argument("--only", nargs="+", metavar="KEY", help="contenders: " + ", ".join(c.key for c in CONTENDERS))
    parser.add_argument("--text", type=Path, metavar="FILE", help="real text, one piece a line; made up when left out")
    parser.add_argument("--python", action="append", default=[], metavar="KEY=PYTHON", help="another Python for a peer")
    parser.add_argument("--dir", type=Path, help="where the data is made, or lies from an earlier run; kept")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--smoke", action="store_true")
    for word in ("--child", "--out"):
        parser.add_argument(word, type=Path if word == "--out" else str, help=argparse.SUPPRESS)
    parser.add_argument("--prepare", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        child(options)
        return
    if options.smoke:
        options.rows, options.rounds = 2_000, 1
    with tempfile.TemporaryDirectory(prefix="treering-bench-") as folder:
        root = Path(folder) if options.dir is None else options.dir.resolve()
        root.mkdir(parents=True, exist_ok=True)
        rows = with_ratios(run(options, Data(root)))
    if options.json:
        print(json.dumps({"rows": options.rows, "batch": BATCH, "rounds": options.rounds, "results": rows}, indent=1))
    else:
        print(f"{options.rows:,} rows × 3, batch {BATCH}, {options.rounds} interleaved rounds\n")
        print(table(rows))


if __name__ == "__main__":
    main()
