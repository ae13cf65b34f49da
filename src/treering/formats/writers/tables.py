"""Arrow's own formats: parquet files, and folders that Hugging Face `datasets` opens."""

from __future__ import annotations

import hashlib
import json
from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

import pyarrow as pa
import pyarrow.parquet as pq
from typing_extensions import override

from treering.formats.writers.base import Exporter, WrittenFile

__all__ = ["HuggingFace", "Parquet", "features_of"]

_GROUP_ROWS = 65_536  # rows of a parquet row group …
_GROUP_BYTES = 64 << 20  # … or so many bytes of them
_BATCH_ROWS = 1_000  # of a batch in an Arrow file: what `datasets` writes itself


class _Drain:
    """Takes what a writer of Arrow's writes, and hands it on in pieces: nothing of a file stays in memory."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self._at = 0
        self.closed = False

    def write(self, data: Any) -> int:
        piece = bytes(data)
        self._parts.append(piece)
        self._at += len(piece)
        return len(piece)

    def tell(self) -> int:
        return self._at

    def flush(self) -> None: ...

    def close(self) -> None:
        self.closed = True

    def taken(self) -> bytes:
        parts, self._parts = self._parts, []
        return b"".join(parts)


class _Table(Exporter):
    """Collects batches, and writes them in groups; or as they come, where a file has no groups."""

    groups: ClassVar[bool] = True

    def __init__(self, schema: pa.Schema, *, skip: bool = False) -> None:
        super().__init__(schema, skip=skip)
        self._drain = _Drain()
        self._held: list[pa.RecordBatch] = []
        self._held_rows = 0
        self._held_bytes = 0

    def encode(self, batch: pa.RecordBatch) -> bytes:
        if len(batch):
            self._held.append(batch)
            self._held_rows += len(batch)
            self._held_bytes += batch.nbytes  # of these rows alone, however the batch was cut
            self.rows += len(batch)
        if not self.groups or self._held_rows >= _GROUP_ROWS or self._held_bytes >= _GROUP_BYTES:
            self._write_held()
        return self._drain.taken()

    def finish(self) -> bytes:
        self._write_held()
        self._close()
        return self._drain.taken()

    def _write_held(self) -> None:
        held, self._held = self._held, []
        self._held_rows = self._held_bytes = 0
        if held:
            self._write(pa.Table.from_batches(held))

    @abstractmethod
    def _write(self, table: pa.Table) -> None:
        """Write a group of records."""

    @abstractmethod
    def _close(self) -> None:
        """Write what ends the file."""


class Parquet(_Table):
    """Every column with its Arrow type, nullability and metadata; zstd inside."""

    name = "parquet"
    suffix = ".parquet"
    packed = True

    def __init__(self, schema: pa.Schema, *, skip: bool = False) -> None:
        super().__init__(schema, skip=skip)
        self._writer = pq.ParquetWriter(pa.PythonFile(self._drain, mode="w"), schema, compression="zstd")

    def _write(self, table: pa.Table) -> None:
        self._writer.write_table(table.cast(self.schema), row_group_size=_GROUP_ROWS)

    def _close(self) -> None:
        self._writer.close()


class HuggingFace(_Table):
    """A folder for `datasets.load_from_disk`, with explicit features: nobody has to guess a type from the first rows.

    Columns that hold JSON as text stay text (TRL parses `tools` itself). Nullability isn't held: `datasets` has none.
    """

    name = "hf"
    suffix = ".arrow"
    folder = True
    packed = True
    groups = False

    def __init__(self, schema: pa.Schema, *, skip: bool = False) -> None:
        super().__init__(schema, skip=skip)
        self.features = {field.name: features_of(field.type) for field in schema}
        info = json.dumps({"info": {"features": self.features}})
        fields = [pa.field(field.name, field.type) for field in schema]
        self._stored = pa.schema(fields, {"huggingface": info})
        self._writer = pa.ipc.new_stream(pa.PythonFile(self._drain, mode="w"), self._stored)

    def _write(self, table: pa.Table) -> None:
        self._writer.write_table(table.cast(self._stored), max_chunksize=_BATCH_ROWS)

    def _close(self) -> None:
        self._writer.close()

    @override
    def beside(self, files: Sequence[WrittenFile]) -> dict[str, bytes]:
        told = hashlib.sha256("\n".join(file.sha256 for file in files).encode()).hexdigest()
        state: dict[str, Any] = {
            "_data_files": [{"filename": file.name} for file in files],
            "_fingerprint": told[:16],  # `datasets` keys its cache of derived data by it
            "_format_columns": None,
            "_format_kwargs": {},
            "_format_type": None,
            "_output_all_columns": False,
            "_split": None,
        }
        info = {"citation": "", "description": "", "features": self.features, "homepage": "", "license": ""}
        return {
            name: (json.dumps(document, indent=2) + "\n").encode()
            for name, document in (("dataset_info.json", info), ("state.json", state))
        }


def features_of(kind: pa.DataType) -> dict[str, Any]:
    """The feature of `datasets` that an Arrow type is, as its JSON says it."""
    t = pa.types
    if t.is_struct(kind):
        return {field.name: features_of(field.type) for field in kind}
    if t.is_fixed_size_list(kind):
        return {"feature": features_of(kind.value_type), "length": kind.list_size, "_type": "List"}
    if t.is_list(kind):
        return {"feature": features_of(kind.value_type), "_type": "List"}
    if t.is_large_list(kind):
        return {"feature": features_of(kind.value_type), "_type": "LargeList"}
    return {"dtype": _DTYPES.get(str(kind), str(kind)), "_type": "Value"}


_DTYPES = {
    "float": "float32",
    "double": "float64",
    "halffloat": "float16",
    "date32[day]": "date32",
    "date64[ms]": "date64",
}
