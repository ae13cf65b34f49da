"""PURE. Records out of a request's body: JSON, NDJSON, Arrow IPC. What can't be read as a record is named, by its line."""

from __future__ import annotations

import hashlib
import os
import struct
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from treering.errors import Problem
from treering.schema import parse_json
from treering.server.limits import Limits, Refusal

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["ARROW", "JSON", "NDJSON", "Given", "Unread", "identify", "parse_records", "read_arrow"]

JSON = ("application/json",)
NDJSON = ("application/x-ndjson", "application/ndjson", "application/jsonl", "application/x-jsonlines")
ARROW = ("application/vnd.apache.arrow.stream",)

_KEPT = 1_000_000  # characters that quarantine keeps of a line that doesn't parse


@dataclass(frozen=True, slots=True)
class Unread:
    """A line that doesn't parse: its position in the request, what quarantine keeps of it, and what is wrong."""

    position: int
    kept: str
    problem: Problem


@dataclass(slots=True)
class Given:
    """What a request gives: records at their positions, or a table; and the lines that aren't records."""

    count: int
    records: list[Any] = field(default_factory=list)
    positions: Sequence[int] = ()
    table: pa.Table | None = None
    unread: list[Unread] = field(default_factory=list)


def parse_records(body: bytes, media: str, limits: Limits) -> Given:
    """What a body of that media type holds. Raises Refusal when it can't be read at all, or is of another type."""
    if media in ARROW:
        table = read_arrow(body, limits)
        return Given(len(table), table=table)
    if media in NDJSON:
        return _lines(body, limits)
    if media not in JSON:
        raise Refusal(
            415,
            "bad-media-type",
            f"can't read {media[:80]!r}" if media else "there is no Content-Type",
            f"send {', '.join((*JSON, NDJSON[0], *ARROW))}",
        )
    try:
        value = parse_json(body)
    except ValueError as exc:
        raise Refusal(
            400, "bad-json", f"the body isn't JSON: {exc}", "send one object, an array of objects, or NDJSON"
        ) from exc
    records = value if isinstance(value, list) else [value]
    _check_count(len(records), limits)
    return Given(len(records), records, range(len(records)))


def _lines(body: bytes, limits: Limits) -> Given:
    lines = [line for line in body.split(b"\n") if line.strip()]
    _check_count(len(lines), limits)
    positions: list[int] = []
    given = Given(len(lines), positions=positions)
    for position, line in enumerate(lines):
        try:
            record = parse_json(line)
        except ValueError as exc:
            problem = Problem((), "bad-json", f"expected a JSON object, got a line that doesn't parse: {exc}")
            given.unread.append(Unread(position, line[:_KEPT].decode("utf-8", "replace").rstrip("\r"), problem))
        else:
            given.records.append(record)
            positions.append(position)
    return given


def read_arrow(body: bytes, limits: Limits) -> pa.Table:
    """The table of an Arrow IPC stream, every buffer of it checked. Raises Refusal.

    Compressed buffers are refused: what they become couldn't be bounded beforehand.
    """
    import pyarrow as pa

    try:
        batches, schema = [], None
        rows = 0
        for message in pa.ipc.MessageReader.open_stream(pa.py_buffer(body)):
            if message.type == "schema":
                schema = pa.ipc.read_schema(message)
                if len(set(schema.names)) < len(schema):
                    raise pa.ArrowInvalid("two columns have one name")
                _check_types(schema)
            elif message.type == "record batch":
                if _is_compressed(message.metadata.to_pybytes()):
                    raise Refusal(
                        415, "compressed-arrow", "the buffers of the Arrow data are compressed",
                        "send it plain, with Content-Encoding: gzip if it must be small",
                    )  # fmt: skip
                if schema is None:
                    raise pa.ArrowInvalid("there is no schema before the first batch")
                batch = pa.ipc.read_record_batch(message, schema)
                rows += batch.num_rows
                _check_count(rows, limits)
                batch.validate(full=True)
                batches.append(batch)
            else:
                raise pa.ArrowInvalid(f"a message of kind {message.type} has no place here")
        if schema is None:
            raise pa.ArrowInvalid("there is no schema")
        return pa.Table.from_batches(batches, schema)
    except (pa.ArrowException, OSError, ValueError, struct.error, IndexError, EOFError) as exc:
        raise Refusal(
            400,
            "bad-arrow",
            f"the body isn't an Arrow IPC stream: {str(exc).splitlines()[0][:200]}",
            "pyarrow writes one: pa.ipc.new_stream(sink, table.schema), with plain columns rather than dictionaries",
        ) from exc


def _check_types(schema: pa.Schema) -> None:
    """Dictionaries come in messages of their own, which would have to be bounded too; no record type has any."""
    import pyarrow as pa

    def nested(kind: pa.DataType) -> Iterable[pa.DataType]:
        yield kind
        for i in range(kind.num_fields):
            yield from nested(kind.field(i).type)

    for field_ in schema:
        for kind in nested(field_.type):
            if pa.types.is_dictionary(kind) or pa.types.is_run_end_encoded(kind) or isinstance(kind, pa.ExtensionType):
                raise pa.ArrowInvalid(f"{field_.name} is {kind}; send plain columns")


def _is_compressed(metadata: bytes) -> bool:
    """Whether a record batch message (a flatbuffer) names a compression of its body.

    Message: version 0, header type 1, header 2, …; RecordBatch: length 0, nodes 1, buffers 2, compression 3.
    """

    def member(table: int, number: int) -> int:
        """Where a table's member lies; 0 when it isn't there."""
        vtable = table - struct.unpack_from("<i", metadata, table)[0]
        size = struct.unpack_from("<H", metadata, vtable)[0]
        at = 4 + 2 * number
        return table + offset if at < size and (offset := struct.unpack_from("<H", metadata, vtable + at)[0]) else 0

    root: int = struct.unpack_from("<I", metadata, 0)[0]
    header = member(root, 2)
    if not header:
        return False
    batch = header + struct.unpack_from("<I", metadata, header)[0]
    return bool(member(batch, 3))


def identify(given: Given, name: str, key: str | None) -> None:
    """Give each record without an id one, so that each has a name in the answer.

    Fresh, or the same each time a request with this key is sent to this corpus. A column `id` of another type than text
    stays as it is: the recorder says what is wrong with it.
    """

    def made(position: int) -> str:
        if key is None:
            return os.urandom(16).hex()
        text = f"{name}\0{key}\0{position}"
        return hashlib.blake2b(text.encode("utf-8", "replace"), digest_size=16).hexdigest()

    for position, record in zip(given.positions, given.records, strict=True):
        if type(record) is dict and record.get("id") is None:
            record["id"] = made(position)
    if given.table is not None:
        given.table = _with_ids(given.table, made)


def _with_ids(table: pa.Table, made: Callable[[int], str]) -> pa.Table:
    import pyarrow as pa

    at = table.schema.get_field_index("id")
    if at < 0:
        return table.append_column("id", pa.array([made(n) for n in range(len(table))], pa.string()))
    if not (pa.types.is_string(table.schema.field(at).type) and table.column(at).null_count):
        return table
    ids = [made(n) if one is None else one for n, one in enumerate(table.column(at).to_pylist())]
    return table.set_column(at, "id", pa.array(ids, pa.string()))


def _check_count(count: int, limits: Limits) -> None:
    if count > limits.max_records:
        raise Refusal(
            413,
            "too-many",
            f"more than {limits.max_records:,} records in one request",
            "send smaller batches",
        )
