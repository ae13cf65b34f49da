"""What a file holds, as chunks of checked records: all of an import that needs no store, and so can go on in a worker.

Reads one source, knows formats and record types. Does not store, redact, or know what was stored or erased before (importer).
"""

from __future__ import annotations

import base64
import codecs
import gc
import importlib
import json
import math
import os
import re
import time
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import lru_cache
from operator import itemgetter
from typing import IO, Any, TypeAlias

import pyarrow as pa
import xxhash

from treering.capture.sources import (
    UNREAD,
    Piece,
    Source,
    beginning,
    compression_of,
    name_of,
    opened,
    parquet_file,
    pieces,
    shape_of,
    without_nulls,
)
from treering.engine.base import decode_error, encode_error, name_of_class
from treering.errors import InvalidRecordError, Problem, StoreError, TreeringError, UsageError
from treering.formats import Found, Importer, Outcome, Passed, Unfit
from treering.formats.known import find_importer, importer_names, recognise
from treering.formats.records import ParquetImporter, RecordsImporter
from treering.schema import RecordType, parse_json
from treering.schema.plain import plain

__all__ = [
    "AUTO",
    "ROWS",
    "Chunk",
    "Chunker",
    "Columns",
    "Order",
    "Reached",
    "Share",
    "Turning",
    "asked_for",
    "bad_json",
    "chunks_of_file",
    "chunks_of_files",
    "is_value",
    "members_of",
    "pack",
    "together",
    "unpack",
]

#: The format that is found out by looking.
AUTO = "auto"

#: Values that are a chunk, or records and refused ones that they made.
ROWS = 8_000
_FIRST, _FIRST_BYTES = 1_000, 1 << 20  # values of a file that is shared, or bytes of them, before turns are taken
_CHECKED = 1_000  # records that turn into columns at a time: few enough that they never lie about as objects …
_CHECKED_BYTES = 4 << 20  # … made from so many bytes at most, or from one value
_BYTES = 16 << 20  # bytes of values, from which they are a chunk whatever their number
_ASKED = 16  # values after which it is asked whether they are a chunk
LATE_S = 1.0  # a chunk is no older: what comes slowly is stored soon, too
_SAID = 4_096  # annotations in a chunk
_TOGETHER_BYTES = 4 << 20  # of records from several small files that are stored together
_KEPT = 1_000_000  # bytes that quarantine keeps of a line that doesn't parse
_OBJECTS = 200_000  # new ones after which Python may look for garbage: more than a thousand records have
_LOOKED_AT = 1_000  # values that `auto` looks at before it gives up …
_LOOKED_AT_BYTES = 128 << 20  # … or so many bytes of them: two lines that are too long are no reason
_METADATA = b"treering"
_TASK = "treering.capture.chunks:chunks_of_files"

#: Something that was refused: its line, what quarantine keeps of it (a JSON value), what is wrong with it.
Refused: TypeAlias = tuple[int, Any, tuple[Problem, ...]]


@dataclass(frozen=True, slots=True)
class Reached:
    """How far a file was read, with the digest of all its values so far. `remembers`: see `Importer.remembers`."""

    format: str
    values: int
    bytes: int
    digest: str
    remembers: bool


@dataclass(frozen=True, slots=True)
class Share:
    """Of portions of a file, which ones a worker takes: every `of`-th, beginning with `part` (from 0).

    All read the whole file: cutting it into values is the smaller part of the work, and each knows by itself where a portion
    begins. `size`: bytes that the file had when they were told; what came later isn't there for any.
    """

    part: int
    of: int
    size: int


@dataclass
class Chunk:
    """What some values of a file made, in their order. Counts are those of this chunk alone."""

    format: str | None = None  # None while it isn't known
    read: int = 0  # values, those that were skipped included
    skipped: int = 0  # of them, those that an import which was cut short had stored
    refused_before: int = 0  # by that earlier import
    found: int = 0  # records, refused ones included
    passed: dict[str, int] = field(default_factory=dict)
    refused: list[Refused] = field(default_factory=list)
    said: list[dict[str, Any]] = field(default_factory=list)  # annotations, each with the `id` of its record
    reached: Reached | None = None  # None where an import can't be continued
    file: int = 0  # where several files are read together: which of them it is of
    is_last: bool = False  # … and whether it is the last one of that
    error: TreeringError | None = (
        None  # where several files are read together: why this one couldn't be read to its end
    )
    is_another: bool = False  # the file isn't the one that an earlier import has begun with: nothing comes after it
    #: The accepted records, under the record type's schema; those of files that are read together are with the last chunk.
    batch: pa.RecordBatch | None = None
    # Where a file is shared:
    begins: str | None = None  # the digest of all values before it
    ends: str | None = None  # the digest of all values with it
    is_portion: bool = False  # a portion is done with it: the next one is another worker's


def pack(chunks: Sequence[Chunk]) -> bytes:
    """Chunks as an Arrow IPC stream: the last one's records, and all else as JSON in the schema's metadata."""
    said = []
    for chunk in chunks:
        one = {name: value for name, value in vars(chunk).items() if value and name != "batch"}
        if chunk.reached is not None:
            one["reached"] = asdict(chunk.reached)
        if chunk.refused:
            one["refused"] = [
                (line, kept, [(wrong.loc, wrong.kind, wrong.message) for wrong in problems])
                for line, kept, problems in chunk.refused
            ]
        if chunk.error is not None:
            one["error"] = encode_error(_TASK, chunk.error).decode()
        said.append(one)
    batch = chunks[-1].batch
    schema = batch.schema if batch is not None else pa.schema([])
    schema = schema.with_metadata({_METADATA: json.dumps(said).encode()})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, schema) as writer:
        if batch is not None:
            writer.write_batch(batch.replace_schema_metadata(schema.metadata))
    return bytes(sink.getvalue())


def unpack(data: bytes) -> list[Chunk]:
    """The chunks again."""
    with pa.ipc.open_stream(data) as reader:
        said = json.loads(reader.schema.metadata[_METADATA])
        batch = next(iter(reader), None)
    chunks = []
    for one in said:
        if "reached" in one:
            one["reached"] = Reached(**one["reached"])
        if "refused" in one:
            one["refused"] = [
                (line, kept, tuple(Problem(tuple(loc), kind, message) for loc, kind, message in problems))
                for line, kept, problems in one["refused"]
            ]
        if "error" in one:
            one["error"] = decode_error(one["error"].encode())
        chunks.append(Chunk(**one))
    if batch is not None:
        chunks[-1].batch = batch.replace_schema_metadata(None)
    return chunks


@dataclass(frozen=True)
class Order:
    """What is to be read, as what; the same for whoever reads it.

    `asked` is the importer that the caller named, `importer` the one to use (also that of an earlier import), None of either: to be
    found out. `before`: where an earlier import stands, whose values are passed over.
    """

    source: Source
    target: RecordType
    origin: str | None
    asked: type[Importer] | None = None
    importer: type[Importer] | None = None
    before: Reached | None = None
    refused_before: int = 0
    rows: int = ROWS  # of a chunk
    late_s: float | None = LATE_S  # no chunk is older; None: what a chunk holds follows from the file alone
    share: Share | None = None  # None: all of it

    @property
    def hindrance(self) -> str:
        """Why `arguments` has none."""
        if not isinstance(self.source, str):
            return f"{name_of(self.source)} is a stream of this process"
        for one in (self.asked, self.importer, self.target.given):
            if one is not None and name_of_class(one) is None:
                return f"{one.__qualname__} isn't in a module that a worker can import"
        if self.target.model is not None and self.target.given is None:
            return f"the rules of {self.target.name} can't be told to a worker"
        return f"{self.source} lies where this process alone finds it"

    def arguments(self) -> dict[str, Any] | None:
        """What `chunks_of_file` takes in a worker; None when a worker couldn't find all that is needed."""
        if not isinstance(self.source, str) or ("://" not in self.source and not os.path.isfile(self.source)):
            return None  # a stream, a pipe (/dev/fd/63 is one of this process alone), or nothing at all
        classes = [one for one in (self.asked, self.importer, self.target.given) if one is not None]
        config = _remote(self.source)
        if self.target.model is not None and self.target.given is None:
            return None
        if config is None or any(name_of_class(one) is None for one in classes):
            return None
        return {
            "source": self.source,
            "target": {
                "name": self.target.name,
                "schema": base64.b64encode(self.target.schema.serialize()).decode(),
                "model": _named(self.target.given),
            },
            "origin": self.origin,
            "rows": self.rows,
            "late_s": self.late_s,
            "asked": _named(self.asked),
            "importer": _named(self.importer),
            "before": None if self.before is None else asdict(self.before),
            "refused_before": self.refused_before,
            "config": config,
            "share": None if self.share is None else asdict(self.share),
        }

    def chunks(self, columns: Columns | None = None) -> Generator[Chunk, None, None]:
        """Read it. What came before a damage comes before the error: TreeringErrors, as `import_file` says.

        `columns`: of several files, where their records are gathered, which the chunks haven't then.
        """
        asked = self.asked
        chunker = Chunker(self, columns)
        _, stream = opened(self.source)
        with stream, _few_collections():
            members = members_of(asked)
            shape, stream = shape_of(self.source, stream, members, is_value(asked, self.target))
            with stream:
                if shape == "parquet" and (file := self._columns(stream)) is not None:
                    if self.share is None or not self.share.part:
                        yield from self._tables(file)
                    return
                if asked is ParquetImporter:
                    raise StoreError(f"{name_of(self.source)} isn't a Parquet file", code="read-failed")
                if self.share is None:
                    yield from chunker.chunks(pieces(self.source, stream, shape, members))
                    return
                if shape != "parquet" and compression_of(name_of(self.source)) is None:
                    stream = beginning(stream, self.share.size)
                yield from chunker.portions(pieces(self.source, stream, shape, members), self.share)

    # --- Parquet -------------------------------------------------------------------------------------------------

    def _columns(self, stream: IO[bytes]) -> Any | None:
        """A Parquet file whose columns should be the record type's; None when its rows are of a format."""
        file = parquet_file(name_of(self.source), stream)
        names = file.schema_arrow.names
        if self.asked is None:
            first = next(iter(file.iter_batches(1)), None)
            row = without_nulls(first.to_pylist()[0]) if first is not None and len(first) else {}
            if not set(names) - set(self.target.schema.names) or not recognise(row, self.target)[0]:
                return file
        elif self.asked in (ParquetImporter, RecordsImporter):
            return file
        stream.seek(0)
        return None

    def _tables(self, file: Any) -> Iterator[Chunk]:
        """Its rows by columns. Raises InvalidRecordError that names every column that doesn't fit."""
        importer = ParquetImporter(self.target, self.origin)
        yield Chunk(importer.name)
        try:
            self.target.check_columns(file.schema_arrow.empty_table())
        except InvalidRecordError as exc:
            raise InvalidRecordError(
                f"the columns of {name_of(self.source)} don't fit: {'; '.join(map(str, exc.problems))}",
                exc.problems,
                hint="rename or drop them, or make a corpus for them: treering create NAME --schema MODULE:NAME",
            ) from exc
        number = 0
        for batch in self._row_groups(file):
            table = self._with_ids(pa.Table.from_batches([batch]), importer)
            checked = self.target.validate_arrow(table)
            refused = [
                (number + 1 + position, plain(_raw_row(table, position)), problems)
                for position, problems in checked.refused
            ]
            yield Chunk(importer.name, len(table), found=len(table), refused=refused, batch=checked.batch)
            number += len(table)

    def _row_groups(self, file: Any) -> Iterator[pa.RecordBatch]:
        number = 0
        try:
            for batch in file.iter_batches(self.rows):
                number += len(batch)
                yield batch
        except (pa.ArrowException, OSError) as exc:
            reason = str(exc).partition("\n")[0][:200]
            raise StoreError(
                f"can't read {name_of(self.source)} beyond row {number:,}: {reason}", code="read-failed"
            ) from exc

    def _with_ids(self, table: pa.Table, importer: Importer) -> pa.Table:
        """The table with ids made of their rows where they have none."""
        from pydantic_core import to_json

        if self.origin is None:
            return table
        has_ids = "id" in table.column_names
        ids = table.column("id").to_pylist() if has_ids else [None] * len(table)
        wanting = [at for at, one in enumerate(ids) if one is None]
        if not wanting:
            return table
        rows = table.take(pa.array(wanting)).to_pylist()
        for at, row in zip(wanting, rows, strict=True):
            ids[at] = importer.own_id(to_json(without_nulls(row), bytes_mode="base64", inf_nan_mode="constants"))
        made = pa.chunked_array([pa.array(ids, pa.string())])
        if not has_ids:
            return table.append_column("id", made)
        return table.set_column(table.column_names.index("id"), "id", made)


def chunks_of_file(**told: Any) -> Iterator[bytes]:
    """The task of engines: the chunks of a file, from what `Order.arguments` gives, each as `pack` makes it."""
    for chunk in _order(**told).chunks():
        yield pack([chunk])


def chunks_of_files(files: Sequence[tuple[str, str | None]], **told: Any) -> Iterator[bytes]:
    """The task of engines: the chunks of several small files (source, origin), otherwise as `Order.arguments` tells of one."""
    for chunks in together(_order(**told), files):
        yield pack(chunks)


def together(order: Order, files: Sequence[tuple[str, str | None]]) -> Iterator[list[Chunk]]:
    """The chunks of several small files (source, origin), some at a time, the records of all of them with the last one.

    `order` says what is the same for all. What is wrong with a file is the `error` of its last chunk, and the next one follows.
    """
    columns = Columns(order.target)
    made: list[Chunk] = []
    until = math.inf if order.late_s is None else time.monotonic() + order.late_s

    def taken() -> list[Chunk]:
        nonlocal made, until
        done, made = made, []
        done[-1].batch = columns.taken()
        for chunk in done:
            chunk.refused.sort(key=_line_of)
        until = math.inf if order.late_s is None else time.monotonic() + order.late_s
        return done

    for number, (source, origin) in enumerate(files):
        try:
            for chunk in replace(order, source=source, origin=origin).chunks(columns):
                chunk.file = number
                made.append(chunk)
                if chunk.batch is not None:  # of a table
                    columns.add(chunk.batch)
                    chunk.batch = None
        except TreeringError as exc:
            made.append(Chunk(file=number, error=exc))
        made[-1].is_last = True  # every file has a chunk at least
        if columns.size >= _TOGETHER_BYTES or len(columns) >= order.rows or time.monotonic() >= until:
            yield taken()
    if made:
        yield taken()


def _order(
    source: str,
    target: Mapping[str, Any],
    origin: str | None,
    rows: int,
    late_s: float | None,
    asked: str | None,
    importer: str | None,
    before: Mapping[str, Any] | None,
    refused_before: int,
    config: Mapping[str, Any],
    share: Mapping[str, int] | None = None,
) -> Order:
    """What `Order.arguments` has told."""
    if "://" in source and config:
        import fsspec

        fsspec.config.conf.update(config)
    return Order(
        source,
        _record_type(target["name"], target["schema"], target["model"]),
        origin,
        _class(asked),
        _class(importer),
        None if before is None else Reached(**before),
        refused_before,
        rows,
        late_s,
        None if share is None else Share(**share),
    )


@lru_cache(maxsize=4)
def _record_type(name: str, schema: str, model: str | None) -> RecordType:
    """The record type that a worker was told, once for all files of an import."""
    found = RecordType.stored(name, pa.ipc.read_schema(pa.py_buffer(base64.b64decode(schema))))
    return found if model is None else found.with_rules_of(RecordType.of(_class(model)))


class Turning:
    """The values of one file, turned into records one after the other: which format it has, what it makes, how far it has come."""

    def __init__(self, order: Order, take: Callable[[Iterable[Outcome]], None]) -> None:
        """`take` is given what each value makes. Raises UsageError for a format that can't fill the record type."""
        self._target = order.target
        self._origin = order.origin
        self._source = name_of(order.source)
        self._take = take
        self._digest = xxhash.xxh3_128()
        self.values = 0
        self.bytes = 0
        self.skipped = 0  # values that an earlier import had stored
        self.refused_before = 0
        self.is_spent = False  # what the format held back was taken: nothing more may be fed
        self._before = order.before
        self._before_refused = order.refused_before
        self._importer: Importer | None = None
        self._held: list[Piece] = []
        self._held_bytes = 0
        if order.importer is not None:
            self._use(order.importer)

    @property
    def format(self) -> str | None:
        """The format's name; None while it isn't known."""
        return None if self._importer is None else self._importer.name

    @property
    def reached(self) -> Reached | None:
        """How far it has come; None while an import that ends here would have to begin anew."""
        if self._importer is None or self._held or self._before is not None:
            return None
        return Reached(self._importer.name, self.values, self.bytes, self.digest, self._importer.remembers)

    def push(self, piece: Piece) -> bool:
        """Take a value; False when the file isn't the one that an earlier import has begun with. Raises UsageError."""
        text = self._counted(piece)
        if self._before is not None:
            return self._skip(piece)
        if text and not text.isspace():
            if self._importer is None:
                self._look_at(piece)
            else:
                self._take(self._made(piece))
        return True

    def pass_over(self, piece: Piece) -> None:
        """Know of a value that another worker takes; once the format is known, and its values stand alone."""
        text = self._counted(piece)
        if text and not text.isspace():
            assert self._importer is not None
            self._importer.pass_over(text)

    def _counted(self, piece: Piece) -> bytes:
        """The text of one value more."""
        text = piece.text
        self._digest.update(text)
        self.values += 1
        self.bytes += len(text)
        return text

    @property
    def stands_alone(self) -> bool:
        """Whether the format is known for one whose values several workers may share."""
        return self._importer is not None and self._importer.stands_alone

    @property
    def digest(self) -> str:
        """Of all values so far."""
        return self._digest.hexdigest()

    def _use(self, importer: type[Importer]) -> None:
        self._importer = importer(self._target, self._origin)

    def _skip(self, piece: Piece) -> bool:
        """A value that an earlier import has stored; the importer sees it when what follows depends on it."""
        before = self._before
        assert before is not None
        if before.remembers and piece.text.strip():
            for _ in self._made(piece):
                pass
        if self.values == before.values or self.bytes > before.bytes:
            if self.values != before.values or self.digest != before.digest:
                return False
            self.skipped, self.refused_before = before.values, self._before_refused
            self._before = None
        return True

    def _made(self, piece: Piece) -> Iterable[Outcome]:
        value = piece.value
        if value is UNREAD:
            try:
                value = parse_json(piece.text)
            except ValueError as exc:
                return (bad_json(piece.line, piece.text, exc),)
        assert self._importer is not None
        try:
            made = self._importer.feed(piece.line, value, piece.text)
            return made if isinstance(made, tuple) else list(made)
        except TreeringError:
            raise
        except Exception as exc:
            raise self._failed(f"at line {piece.line:,}", exc) from exc

    def _failed(self, where: str, exc: Exception) -> UsageError:
        return UsageError(
            f"the format {self.format} failed {where} of {self._source}: {type(exc).__name__}: {exc}",
            code="broken-format",
            hint="what came before is stored; this is a mistake in the format's importer",
        )

    def end(self) -> bool:
        """The file is at its end: take what was held back; False as `push` says. Raises UsageError."""
        if self._before is not None:
            return False  # it has become shorter
        if self._importer is None and self._held:
            self._use(self._fallback())
            self._take_held()
        if self._importer is not None and not self.is_spent:
            try:
                outcomes = list(self._importer.finish())
            except TreeringError:
                raise
            except Exception as exc:
                raise self._failed("at the end", exc) from exc
            self.is_spent = bool(outcomes)
            self._take(outcomes)
        return True

    # --- which format --------------------------------------------------------------------------------------------

    def _look_at(self, piece: Piece) -> None:
        """Hold the value until one is recognised."""
        self._held.append(piece)
        self._held_bytes += len(piece.text)
        importer = self._recognised(piece)
        if importer is None and (len(self._held) >= _LOOKED_AT or self._held_bytes >= _LOOKED_AT_BYTES):
            importer = self._fallback()
        if importer is not None:
            self._use(importer)
            self._take_held()

    def _recognised(self, piece: Piece) -> type[Importer] | None:
        value = _parsed(piece)
        found, _ = recognise(value, self._target)
        if len(found) > 1:
            raise UsageError(
                f"{self._source} could be {' or '.join(one.name for one in found)}, by line {piece.line:,}",
                code="unknown-format",
                hint=f"say which: --format {found[0].name}",
            )
        return found[0] if found else None

    def _fallback(self) -> type[Importer]:
        """Records, when some value has a field of theirs: they are refused one by one then. Raises UsageError otherwise."""
        payload = set(self._target.payload)
        values = [_parsed(piece) for piece in self._held]
        if any(isinstance(value, dict) and not payload.isdisjoint(value) for value in values):
            return RecordsImporter
        _, broken = recognise(next((value for value in values if isinstance(value, dict)), {}), self._target)
        first = self._held[0]
        if _is_utf16(first.text):
            raise UsageError(
                f"{self._source} looks like UTF-16, and files here are UTF-8",
                code="unknown-format",
                hint="convert it: iconv -f UTF-16 -t UTF-8 FILE > NEW",
            )
        shown = first.text[:60].decode("utf-8", "replace").strip()
        said = "".join(f"; {one.message}" for one in broken)
        raise UsageError(
            f"{self._source} is of no format known here: line {first.line:,} is {shown!r}{said}",
            code="unknown-format",
            hint=f"if it is one of these, say --format: {', '.join(importer_names())}",
        )

    def _take_held(self) -> None:
        held, self._held = self._held, []
        for piece in held:
            self._take(self._made(piece))


class Columns:
    """Records on their way into columns: those of one chunk, or of the chunks of several small files.

    To make columns of one record takes as long as of thirty.
    """

    def __init__(self, target: RecordType) -> None:
        self._target = target
        self.records: list[dict[str, Any]] = []  # not yet checked, each …
        self.lines: list[int] = []  # … with its line
        self.size = 0  # bytes of columns
        self._batches: list[pa.RecordBatch] = []
        self._chunks: list[
            tuple[int, list[Refused]]
        ] = []  # from which record on it is of whose, and what is refused there

    def __len__(self) -> int:
        return len(self.records) + sum(map(len, self._batches))

    def begin(self, refused: list[Refused]) -> None:
        """A chunk begins; what is wrong with its records is to be put there."""
        self._chunks.append((len(self.records), refused))

    def add(self, batch: pa.RecordBatch) -> None:
        """Take records that are columns already."""
        self._batches.append(batch)
        self.size += batch.nbytes

    def check(self) -> None:
        """Turn the records so far into columns."""
        records, lines, chunks = self.records, self.lines, self._chunks
        self.records, self.lines, self._chunks = [], [], [(0, refused) for _, refused in chunks[-1:]]
        for start in range(0, len(records), _CHECKED):  # at the end a format may give all that it held back
            part = records[start : start + _CHECKED]
            checked = self._target.validate(part)
            for at, problems in checked.refused:
                _, refused = chunks[bisect_right(chunks, start + at, key=itemgetter(0)) - 1]
                refused.append((lines[start + at], plain(part[at]), problems))
            if len(checked.batch):
                self.add(checked.batch)

    def portions(self, most: int) -> Iterator[pa.RecordBatch]:
        """Of more batches than so many as many at a time, until no more than that are left."""
        while len(self._batches) > most:
            batches = self._batches[:most]
            del self._batches[:most]
            yield _one_batch(batches)

    def taken(self) -> pa.RecordBatch | None:
        """The columns of all records, which are gone from here then; None when there are none."""
        self.check()
        batches, self._batches, self.size = self._batches, [], 0
        return _one_batch(batches) if batches else None


class Chunker(Turning):
    """The same, and the records gathered and checked until they are a chunk."""

    def __init__(self, order: Order, columns: Columns | None = None) -> None:
        """Into `columns` that others use, too, the chunks' records go. Raises UsageError for a format that can't fill the record type."""
        self._rows = order.rows
        self._late_s = math.inf if order.late_s is None else order.late_s
        self._columns = Columns(order.target) if columns is None else columns
        self._has_own = columns is None
        self._refused: list[Refused] = []
        self._columns.begin(self._refused)
        self._said: list[dict[str, Any]] = []
        self._passed: Counter[str] = Counter()
        self._found = 0
        self._seen = (0, 0, 0)  # values, skipped, refused_before at the last chunk
        self._cut_at = self._checked_at = 0  # bytes
        super().__init__(order, self._gather)

    @property
    def is_full(self) -> bool:
        """Whether what was gathered should be taken."""
        return (
            self.values - self._seen[0] >= self._rows
            or self._found + len(self._refused) >= self._rows
            or self.bytes - self._cut_at >= _BYTES
            or len(self._said) >= _SAID
        )

    def cut(self) -> Chunk:
        """What was gathered; its records only where no other chunk's are with them."""
        batch = self._columns.taken() if self._has_own else None
        seen, self._seen = self._seen, (self.values, self.skipped, self.refused_before)
        read, skipped, refused_before = (now - then for now, then in zip(self._seen, seen, strict=True))
        if self._has_own:
            self._refused.sort(key=_line_of)
        chunk = Chunk(
            self.format,
            read,
            skipped,
            refused_before,
            self._found,
            dict(self._passed),
            self._refused,
            self._said,
            self.reached,
            batch=batch,
        )
        self._refused, self._said, self._passed = [], [], Counter()
        self._columns.begin(self._refused)
        self._found, self._cut_at = 0, self.bytes
        return chunk

    def chunks(self, values: Iterable[Piece]) -> Iterator[Chunk]:
        """All values of a file; what came before an error comes before it."""
        is_same = True
        until = time.monotonic() + self._late_s
        try:
            for piece in values:
                if not self.push(piece):
                    is_same = False
                    break
                # Asking takes as long as making a record of a short line.
                if (self.values % _ASKED == 0 or self.bytes - self._cut_at >= _BYTES) and (
                    self.is_full or time.monotonic() >= until
                ):
                    yield self.cut()
                    until = time.monotonic() + self._late_s
            is_same = is_same and self.end()
            # A format may have held back all that a file has, and gives it at the end.
            for batch in self._columns.portions(self._rows // _CHECKED + 1) if self._has_own else ():
                yield Chunk(self.format, batch=batch)
        except Exception:
            yield self.cut()
            raise
        chunk = self.cut()
        chunk.is_another = not is_same
        yield chunk

    def portions(self, values: Iterator[Piece], share: Share) -> Iterator[Chunk]:
        """The chunks of this worker's portions; of a format whose values don't stand alone, the first worker's are all of them.

        The first portion is made by everybody, and given by the first worker: what format it is, and whether it fits at all, is
        settled in it. Where portions end follows from the file alone.
        """
        number, is_settled = 0, False
        is_same = True
        first, start = self.values, self.bytes  # of the portion
        begins = self.digest

        def gives() -> Iterator[Chunk]:
            """What was gathered, if the portion is this worker's."""
            chunk = self.cut()
            if number % share.of == share.part:
                chunk.begins, chunk.ends = begins, self.digest
                yield chunk

        try:
            for piece in values:
                takes = not number or number % share.of == share.part
                if not takes:
                    self.pass_over(piece)
                elif not self.push(piece):
                    is_same = False
                    break
                if self.values % _ASKED and self.bytes - start < _BYTES:
                    continue
                if not number and self.format is not None and not self.stands_alone:
                    if not share.part:
                        yield from self.chunks(values)
                    return
                if number:
                    is_done = self.values - first >= self._rows or self.bytes - start >= _BYTES
                else:
                    is_settled = is_settled or self._found > 0
                    is_done = is_settled and (
                        self.values - first >= min(_FIRST, self._rows) or self.bytes - start >= _FIRST_BYTES
                    )
                if is_done or (takes and self.is_full):
                    for chunk in gives():
                        chunk.is_portion = is_done
                        yield chunk
                    begins = self.digest
                if is_done:
                    number += 1
                    first, start = self.values, self.bytes
            is_same = is_same and self.end()
        except Exception:
            yield from gives()
            raise
        for chunk in gives():
            chunk.is_another = not is_same
            yield chunk

    def _gather(self, outcomes: Iterable[Outcome]) -> None:
        records, lines = self._columns.records, self._columns.lines
        for outcome in outcomes:
            if type(outcome) is Found:
                if outcome.annotations:
                    self._note(outcome)
                records.append(outcome.record)
                lines.append(outcome.line)
                self._found += 1
            elif type(outcome) is Passed:
                self._passed[outcome.why] += 1
            else:
                assert isinstance(outcome, Unfit)
                self._refused.append((outcome.line, plain(outcome.kept), outcome.problems))
        if len(records) >= _CHECKED or self.bytes - self._checked_at >= _CHECKED_BYTES:
            self._checked_at = self.bytes
            self._columns.check()

    def _note(self, found: Found) -> None:
        record = found.record
        if record.get("id") is None:
            record["id"] = os.urandom(16).hex()
        for one in found.annotations:
            said = {"id": record["id"], **one}
            try:
                json.dumps(said)
            except (TypeError, ValueError, RecursionError) as exc:
                wrong = Problem((), "bad-value", f"expected an annotation that JSON can hold: {exc}")
                self._refused.append((found.line, plain(said), (wrong,)))
            else:
                self._said.append(said)


def bad_json(line: int, text: bytes, exc: ValueError) -> Unfit:
    """What becomes of a line that doesn't parse."""
    # The parser counts lines within the line, which has a number of its own.
    why = re.sub(
        r" at line 1 column (\d+)$", r" at column \1", re.sub(r" at line 2 column 0$", " at its end", str(exc))
    )
    said = f"expected a JSON object, got a line that doesn't parse: {why}"
    if _is_utf16(text):
        said = "expected UTF-8, got what looks like UTF-16: convert the file"
    problem = Problem((), "bad-json", said)
    return Unfit(line, (problem,), text[:_KEPT].decode("utf-8", "replace").rstrip("\r\n"))


def asked_for(format: str) -> type[Importer] | None:  # noqa: A002  (as the option is called)
    """The importer of a format; None for `auto`. Raises UsageError when there is none."""
    return None if format == AUTO else find_importer(format)


def members_of(asked: type[Importer] | None) -> frozenset[str]:
    """Names under which an object that is a whole file of this format holds its values; of every format when None."""
    if asked is not None:
        return frozenset(asked.elements)
    members: set[str] = set()
    for name in importer_names():
        try:
            members.update(find_importer(name).elements)
        except UsageError:  # somebody else's that is broken; who needs it is told
            continue
    return frozenset(members)


def is_value(asked: type[Importer] | None, target: RecordType) -> Callable[[Any, bool], bool]:
    """What tells that an object is a value as it stands, though it has a list under a name that files have, too.

    It is given the object, and whether another one follows in the next line.
    """

    def stands_alone(value: Any, goes_on: bool) -> bool:
        if asked is not None:
            return goes_on and asked.takes_whole(value)
        return any(
            not set(one.elements) & set(value) or (goes_on and one.takes_whole(value))
            for one in recognise(value, target)[0]
        )

    return stands_alone


@contextmanager
def _few_collections() -> Iterator[None]:
    """Let Python look for garbage less often: a thousand parsed records make it look again and again, and find nothing."""
    before = gc.get_threshold()
    if 0 < before[0] < _OBJECTS:
        gc.set_threshold(_OBJECTS, *before[1:])
    try:
        yield
    finally:
        gc.set_threshold(*before)


def _one_batch(batches: list[pa.RecordBatch]) -> pa.RecordBatch:
    return batches[0] if len(batches) == 1 else pa.concat_batches(batches)


def _line_of(refused: Refused) -> int:
    return refused[0]


def _is_utf16(text: bytes) -> bool:
    return text.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) or text[1:2] == b"\0" or text[:1] == b"\0"


def _parsed(piece: Piece) -> Any:
    if piece.value is not UNREAD:
        return piece.value
    try:
        return parse_json(piece.text)
    except ValueError:
        return None


def _raw_row(table: pa.Table, position: int) -> Any:
    """A row as it came, for quarantine."""
    try:
        return table.slice(position, 1).to_pylist()[0]
    except (ArithmeticError, ValueError):
        return table.slice(position, 1).to_string()


# --- what a worker is told ---------------------------------------------------------------------------------------


def _named(cls: type | None) -> str | None:
    return None if cls is None else name_of_class(cls)


def _class(name: str | None) -> Any:
    if name is None:
        return None
    module, _, attribute = name.partition(":")
    found: Any = importlib.import_module(module)
    for part in attribute.split("."):
        found = getattr(found, part)
    return found


def _remote(source: str) -> dict[str, Any] | None:
    """What this process has set for fsspec, that a worker opens a URL as it would; None when a worker can't."""
    if "://" not in source:
        return {}
    import fsspec

    protocol = source.partition("://")[0].rpartition("::")[2]
    if protocol == "memory" or protocol not in fsspec.available_protocols():
        return None  # it lies in this process' memory
    try:
        config: dict[str, Any] = json.loads(json.dumps(fsspec.config.conf))
    except (TypeError, ValueError):
        return None
    return config
