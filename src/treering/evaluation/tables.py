"""Rows of a file that somebody else made: test sets and predictions. JSONL, CSV or Parquet, by path or any fsspec URL.

Reads and checks cells; what they mean is said by slices and predictions.
"""

from __future__ import annotations

import codecs
import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from pathlib import PurePath
from typing import Any

from treering.capture.sources import read_bytes, read_lines
from treering.errors import InvalidRecordError, Problem, StoreError
from treering.schema import parse_json
from treering.schema.record_type import safe_repr

__all__ = ["read_rows", "refuse"]

_NAMED = 5


def read_rows(
    source: str, required: Mapping[str, type], optional: Mapping[str, type]
) -> list[tuple[int, dict[str, Any]]]:
    """(line or row number from 1, its values) of every row of a file; columns that aren't asked for are passed over.

    A value is text, or for a column of `float` a finite number; an optional one may be missing, empty or null, and is
    None then. By the ending of the name it is CSV (with a header), Parquet, or else JSONL. Raises NotFoundError when
    there is no such file, StoreError when it can't be read, InvalidRecordError that names every bad row.
    """
    kind = _kind(source)
    what = "row" if kind == "parquet" else "line"
    raw = _parquet(source) if kind == "parquet" else _csv(source) if kind == "csv" else _jsonl(source)
    rows: list[tuple[int, dict[str, Any]]] = []
    problems: list[Problem] = []
    for number, row in raw:
        if isinstance(row, Problem):
            problems.append(row)
            continue
        values: dict[str, Any] = {}
        for name, wanted in [*required.items(), *optional.items()]:
            given = row.get(name)
            value = _number(given) if wanted is float else given
            if given is None or (given == "" and name in optional):
                if name in required:
                    problems.append(Problem((number, name), "missing-field", "expected a value, got nothing"))
                values[name] = None
            elif not isinstance(value, wanted) or value == "":
                expected = "a finite number" if wanted is float else "text"
                said = f"expected {expected}, got {safe_repr(given)[:80]}"
                problems.append(Problem((number, name), "wrong-type", said))
            else:
                values[name] = value
        rows.append((number, values))
    if problems:
        raise refuse(source, problems, what)
    return rows


def refuse(source: str, problems: Sequence[Problem], what: str = "line") -> InvalidRecordError:
    """The error for a file with these problems, whose `loc` begins with a number."""
    shown = "; ".join(f"{what} {one.loc[0]}: {_about(one)}" for one in problems[:_NAMED])
    rest = len(problems) - _NAMED
    return InvalidRecordError(
        f"{source}: {shown}" + (f"; and {rest:,} more" if rest > 0 else ""), problems, hint="nothing was stored"
    )


def _about(problem: Problem) -> str:
    where = ".".join(str(part) for part in problem.loc[1:])
    return f"{where}: {problem.message}" if where else problem.message


def _kind(source: str) -> str:
    for ending in reversed(PurePath(source.lower()).suffixes):  # test.csv.gz
        if ending in (".csv", ".tsv"):
            return "csv"
        if ending in (".parquet", ".pq"):
            return "parquet"
    return "jsonl"


def _jsonl(source: str) -> Iterator[tuple[int, Any]]:
    for number, line in enumerate(read_lines(source), start=1):
        if not line.strip():
            continue
        try:
            row = parse_json(line)
        except ValueError as exc:
            yield number, Problem((number,), "bad-json", f"expected a JSON object, got: {exc}")
            continue
        if isinstance(row, dict):
            yield number, row
        else:
            yield number, Problem((number,), "wrong-type", f"expected a JSON object, got {safe_repr(row)[:80]}")


def _csv(source: str) -> Iterator[tuple[int, Any]]:
    data = read_bytes(source).removeprefix(codecs.BOM_UTF8)
    try:
        text = data.decode()
    except UnicodeDecodeError as exc:
        line = data.count(b"\n", 0, exc.start) + 1
        raise refuse(source, [Problem((line,), "bad-value", "expected UTF-8 text, got other bytes")]) from exc
    tabs = ".tsv" in PurePath(source.lower()).suffixes
    reader = csv.reader(io.StringIO(text, newline=""), delimiter="\t" if tabs else ",", strict=True)
    heads: list[str] | None = None
    line = 1
    try:
        for row in reader:
            first, line = line, reader.line_num + 1
            if not any(cell.strip() for cell in row):
                continue
            if heads is None:
                heads = [cell.strip() for cell in row]
            elif len(row) != len(heads):
                said = f"expected {len(heads)} cells as in the header, got {len(row)}"
                yield first, Problem((first,), "bad-value", said)
            else:
                yield first, dict(zip(heads, row, strict=True))
    except csv.Error as exc:
        raise refuse(source, [Problem((reader.line_num,), "bad-value", f"expected CSV, got: {exc}")]) from exc


def _parquet(source: str) -> Iterator[tuple[int, Any]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    data = read_bytes(source)
    try:
        table = pq.read_table(io.BytesIO(data))
    except (pa.ArrowException, OSError) as exc:
        reason = safe_repr(str(exc).partition("\n")[0])[:200]
        raise StoreError(f"can't read {source} as Parquet: {reason}", code="read-failed") from exc
    yield from enumerate(table.to_pylist(), start=1)


def _number(given: Any) -> Any:
    """A cell of CSV is text; what isn't a finite number stays as it is, and is refused."""
    try:
        value = float(given) if isinstance(given, str | int | float) and not isinstance(given, bool) else None
    except (ValueError, OverflowError):
        return given
    return given if value is None or value - value != 0 else value
