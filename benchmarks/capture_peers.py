"""The references of benchmarks/capture.py: each takes the same records and makes them durable in its own way.

A contender is a function of (directory, records as dicts, their JSON texts, the same as an Arrow table) that returns when
everything is on disk as far as it goes: `synced` says whether it calls fsync at all.
"""

from __future__ import annotations

import json
import os
import sqlite3
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

__all__ = ["PEERS", "Peer", "Records"]

BATCH = 1_000


@dataclass(frozen=True)
class Records:
    """The same records in three forms."""

    dicts: list[dict[str, Any]]
    texts: list[str]
    table: pa.Table


@dataclass(frozen=True)
class Peer:
    """A way to store records. `synced`: whether a power cut loses nothing of it. `given`: the form it starts from."""

    name: str
    synced: bool
    given: str
    run: Callable[[Path, Records], None]


def _sqlite(directory: Path, records: Records, texts: list[str] | None) -> None:
    connection = sqlite3.connect(directory / "records.sqlite", isolation_level=None)
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=FULL")
    connection.execute("CREATE TABLE records (id TEXT PRIMARY KEY, record TEXT NOT NULL)")
    dicts = records.dicts
    for start in range(0, len(dicts), BATCH):
        connection.execute("BEGIN")
        for i in range(start, min(start + BATCH, len(dicts))):
            text = texts[i] if texts else json.dumps(dicts[i])
            connection.execute("INSERT INTO records VALUES (?, ?)", (dicts[i]["id"], text))
        connection.execute("COMMIT")
    connection.close()


def sqlite_from_texts(directory: Path, records: Records) -> None:
    """Row by row, a thousand rows a transaction, the JSON made beforehand."""
    _sqlite(directory, records, records.texts)


def sqlite_from_dicts(directory: Path, records: Records) -> None:
    """The same, the JSON made on the way, as a user would."""
    _sqlite(directory, records, None)


def jsonl(directory: Path, records: Records) -> None:
    """Lines appended, one fsync a thousand."""
    with (directory / "records.jsonl").open("w") as file:
        for start in range(0, len(records.dicts), BATCH):
            file.writelines(json.dumps(record) + "\n" for record in records.dicts[start : start + BATCH])
            file.flush()
            os.fsync(file.fileno())


def arrow_log(directory: Path, records: Records) -> None:
    """An Arrow stream appended to, one fdatasync a batch of a thousand rows. No key, no check, no table."""
    with (directory / "records.arrows").open("wb") as file, pa.ipc.new_stream(file, records.table.schema) as writer:
        for batch in records.table.to_batches(max_chunksize=BATCH):
            writer.write_batch(batch)
            file.flush()
            os.fdatasync(file.fileno())


def lance_append(directory: Path, records: Records) -> None:
    """Plain Lance: a commit a thousand rows. It calls no fsync."""
    import lance

    for start in range(0, len(records.table), BATCH):
        part = records.table.slice(start, BATCH)
        lance.write_dataset(part, str(directory / "records.lance"), mode="append" if start else "create")


def lancedb_add(directory: Path, records: Records) -> None:
    """LanceDB: `add` of a thousand rows."""
    import lancedb

    table = lancedb.connect(str(directory / "lancedb")).create_table("records", schema=records.table.schema)
    for start in range(0, len(records.table), BATCH):
        table.add(records.table.slice(start, BATCH))


def deeplake_append(directory: Path, records: Records) -> None:
    """Deep Lake: append and commit a thousand rows of id and JSON text (it has no type for a list of structs)."""
    import deeplake

    dataset = deeplake.create(str(directory / "deeplake"))
    dataset.add_column("id", deeplake.types.Text())
    dataset.add_column("record", deeplake.types.Text())
    for start in range(0, len(records.dicts), BATCH):
        end = start + BATCH
        ids = [record["id"] for record in records.dicts[start:end]]
        dataset.append({"id": ids, "record": records.texts[start:end]})
        dataset.commit()


def delta_write(directory: Path, records: Records) -> None:
    """delta-rs: `write_deltalake` of a thousand rows."""
    from deltalake import write_deltalake

    for start in range(0, len(records.table), BATCH):
        write_deltalake(str(directory / "delta"), records.table.slice(start, BATCH), mode="append")


PEERS = (
    Peer("SQLite (WAL, FULL, 1,000 rows a transaction)", True, "JSON text", sqlite_from_texts),
    Peer("SQLite, the same", True, "dicts", sqlite_from_dicts),
    Peer("JSONL, a fsync per 1,000 lines", True, "dicts", jsonl),
    Peer("bare Arrow log, a fdatasync per 1,000 rows", True, "Arrow", arrow_log),
    Peer("Lance, append per 1,000 rows", False, "Arrow", lance_append),
    Peer("LanceDB, add per 1,000 rows", False, "Arrow", lancedb_add),
    Peer("Deep Lake, append and commit per 1,000 rows", False, "JSON text", deeplake_append),
    Peer("delta-rs, write per 1,000 rows", False, "Arrow", delta_write),
)
