"""Annotations from files: JSONL, CSV and Parquet, one row a record. All of a file is stored, or nothing.

Knows formats, and which line or row is bad. What may be said is checked in annotations.
"""

from __future__ import annotations

import codecs
import csv
import io
from collections.abc import Callable, Iterator
from pathlib import PurePath
from typing import IO, Any, Literal

from treering.capture.annotations import annotate_rows, refusal
from treering.capture.sources import read_bytes, read_lines
from treering.errors import Problem, StoreError, UsageError
from treering.schema import parse_json
from treering.schema.record_type import safe_repr
from treering.store.annotations import KEYS
from treering.store.corpus import BaseCorpus

__all__ = ["FORMATS", "annotate_file"]

Format = Literal["jsonl", "csv", "parquet"]

FORMATS: tuple[Format, ...] = ("jsonl", "csv", "parquet")

_ENDINGS: dict[str, Format] = {
    ".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "jsonl", ".csv": "csv", ".parquet": "parquet", ".pq": "parquet",
}  # fmt: skip
_COLUMNS = ("id", *KEYS, "by", "note")
_WORDS = {"true": True, "false": False, "1": True, "0": False, "yes": True, "no": False}


def annotate_file(corpus: BaseCorpus, source: str | IO[bytes], *, format: Format | None = None) -> int:  # noqa: A002
    """Store what a file says (a path, any fsspec URL, or a binary stream); gives the number of words stored.

    Each line or row has an `id`, any of label, outcome, quality, correction, exclude, and optionally `by` and `note`; what
    is empty or null says nothing. In CSV, which has a header, `quality` is a number, `exclude` true or false, `outcome` and
    `correction` JSON or else text. `format`: by the ending of the name when left out, JSONL for a stream. The whole file is
    held in memory, since it is stored as one. Raises InvalidRecordError that names lines (from 1; in Parquet rows) and
    stores nothing; else as `Corpus.annotate_many`.
    """
    kind = format or _format(source)
    if kind not in FORMATS:
        raise UsageError(f"there is no format {kind!r}", code="bad-format", hint=f"one of {', '.join(FORMATS)}")
    if kind == "parquet":
        return annotate_rows(corpus, _parquet(source), what="row")
    rows = list(_jsonl(source) if kind == "jsonl" else _csv(source))
    return annotate_rows(corpus, [row for _, row in rows], what="line", numbers=[number for number, _ in rows])


def _format(source: str | IO[bytes]) -> Format:
    if not isinstance(source, str):
        return "jsonl"
    for ending in reversed(PurePath(source.lower()).suffixes):  # words.csv.gz
        if ending in _ENDINGS:
            return _ENDINGS[ending]
    return "jsonl"


def _jsonl(source: str | IO[bytes]) -> Iterator[tuple[int, Any]]:
    for number, line in enumerate(read_lines(source), start=1):
        if not line.strip():
            continue
        try:
            yield number, parse_json(line)
        except ValueError as exc:
            problem = Problem((number,), "bad-json", f"expected a JSON object, got a line that doesn't parse: {exc}")
            raise refusal([problem], "line") from exc


def _csv(source: str | IO[bytes]) -> Iterator[tuple[int, dict[str, Any]]]:
    data = read_bytes(source).removeprefix(codecs.BOM_UTF8)
    try:
        text = data.decode()
    except UnicodeDecodeError as exc:
        line = data.count(b"\n", 0, exc.start) + 1
        raise refusal([Problem((line,), "bad-value", "expected UTF-8 text, got other bytes")], "line") from exc
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    first, at = 1, 1
    heads: list[str] | None = None
    problems: list[Problem] = []
    try:
        for row in reader:
            first, at = at, reader.line_num + 1
            if not any(cell.strip() for cell in row):
                continue
            if heads is None:
                heads = _heads(row, first)
            elif len(row) != len(heads):
                expected = f"expected {len(heads)} cells as in the header, got {len(row)}"
                problems.append(Problem((first,), "bad-value", expected))
            else:
                yield first, {name: _cell(name, cell) for name, cell in zip(heads, row, strict=True)}
    except csv.Error as exc:
        raise refusal([Problem((reader.line_num,), "bad-value", f"expected CSV, got: {exc}")], "line") from exc
    if problems:
        raise refusal(problems, "line")


def _heads(row: list[str], line: int) -> list[str]:
    heads = [cell.strip() for cell in row]
    problems = [
        Problem((line, name or "header"), "unknown-field", f"expected a header of {', '.join(_COLUMNS)}")
        for name in heads
        if name not in _COLUMNS
    ]
    problems += [
        Problem((line, name), "bad-value", "expected each column once")
        for name in dict.fromkeys(heads)
        if heads.count(name) > 1
    ]
    if "id" not in heads:
        problems.append(Problem((line, "id"), "missing-field", "expected a column id"))
    if problems:
        raise refusal(problems, "line")
    return heads


def _cell(name: str, cell: str) -> Any:
    """What a cell says; text that can't be meant stays as it is, and is refused with its line."""
    if cell == "":
        return None
    if name == "quality":
        return _try(float, cell)
    if name == "intents":
        return _try(int, cell)
    if name == "exclude":
        return _WORDS.get(cell.strip().lower(), cell)
    if name in ("outcome", "correction"):
        return _try(parse_json, cell)
    return cell


def _try(read: Callable[[str], Any], cell: str) -> Any:
    try:
        return read(cell)
    except ValueError:
        return cell


def _parquet(source: str | IO[bytes]) -> list[dict[str, Any]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    data = read_bytes(source)
    try:
        table = pq.read_table(io.BytesIO(data))
    except (pa.ArrowException, OSError) as exc:
        name = source if isinstance(source, str) else getattr(source, "name", "<stream>")
        reason = safe_repr(str(exc).partition("\n")[0])[:200]
        raise StoreError(f"can't read {name} as Parquet: {reason}", code="read-failed") from exc
    rows: list[dict[str, Any]] = table.to_pylist()
    return rows
