"""Results of tasks as bytes: Arrow IPC, with what else there is as JSON in the schema's metadata."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["pack", "pack_batches", "unpack", "unpack_batches"]

_SAID = b"treering"


def pack(said: Mapping[str, Any], **parts: bytes) -> bytes:
    """JSON-able values and named bytes."""
    import pyarrow as pa

    schema = pa.schema([pa.field(name, pa.large_binary()) for name in parts])
    batch = pa.RecordBatch.from_arrays([pa.array([part], pa.large_binary()) for part in parts.values()], schema=schema)
    return pack_batches(schema, [batch] if parts else [], said)


def unpack(data: bytes) -> tuple[dict[str, Any], dict[str, memoryview]]:
    """What `pack` was given; the bytes uncopied."""
    schema, batches, said = unpack_batches(data)
    parts = {name: memoryview(batches[0].column(name)[0].as_buffer()) for name in schema.names}
    return said, parts


def pack_batches(schema: pa.Schema, batches: Iterable[pa.RecordBatch], said: Mapping[str, Any] | None = None) -> bytes:
    """Batches, each as it is cut, and JSON-able values beside them."""
    import pyarrow as pa

    kept = {**(schema.metadata or {}), _SAID: json.dumps(said or {}).encode()}
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, schema.with_metadata(kept)) as writer:
        for batch in batches:
            writer.write_batch(batch.replace_schema_metadata(kept))
    found: bytes = sink.getvalue().to_pybytes()
    return found


def unpack_batches(data: bytes) -> tuple[pa.Schema, list[pa.RecordBatch], dict[str, Any]]:
    """(schema, batches, what was said) of `pack_batches`; the batches lie in `data`, uncopied."""
    import pyarrow as pa

    with pa.ipc.open_stream(pa.py_buffer(data)) as reader:
        kept = dict(reader.schema.metadata or {})
        said: dict[str, Any] = json.loads(kept.pop(_SAID))
        schema = reader.schema.with_metadata(kept or None)
        return schema, [batch.replace_schema_metadata(kept or None) for batch in reader], said
