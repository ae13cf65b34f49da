"""Looking for a person in a store: in every file below it, as bytes and, where an engine may have packed them, unpacked."""

from __future__ import annotations

import hashlib
import warnings
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from lance.file import LanceFileReader

import treering
from treering.store.table import LanceTable

SCHEMA = pa.schema([("text", pa.string()), ("label", pa.string()), ("tokens", pa.list_(pa.int32()))])


def keep_text_plain(patch: pytest.MonkeyPatch) -> None:
    """From now on tables are made so that text lies in them as it is: packed, a search of bytes would prove nothing."""
    create = LanceTable.create

    def plain(self: LanceTable, schema: pa.Schema) -> None:
        fields = [
            field.with_metadata({**(field.metadata or {}), b"lance-encoding:compression": b"none"})
            if pa.types.is_string(field.type)
            else field
            for field in schema
        ]
        create(self, pa.schema(fields))

    patch.setattr(LanceTable, "create", plain)


def record(number: int, subject: str, **more: Any) -> dict[str, Any]:
    """A record that names its subject in every place where text can stand."""
    return {
        "id": f"{subject}-{number}",
        "session_id": f"session of {subject}",
        "subject": subject,
        "domain": f"domain {subject}",
        "origin": f"human:{subject}",
        "meta": f'{{"of": "{subject}"}}',
        "text": f"text {number} by {subject}",
        "label": f"label {subject}",
        "tokens": list(range(number % 5)),
        **more,
    }


def files_with(root: Path, *canaries: str) -> list[str]:
    """Files below `root` that hold any of the texts, as they are or in a Lance file's columns."""
    wanted = [canary.encode() for canary in canaries]
    found = []
    for path in sorted(root.rglob("*")):
        if not path.is_file() or path.suffix in (".door", ".writing"):
            continue
        data = path.read_bytes()
        if path.suffix == ".lance":
            data += unpacked(path)
        if any(canary in data or canary in str(path.relative_to(root)).encode() for canary in wanted):
            found.append(str(path.relative_to(root)))
    return found


def unpacked(path: Path) -> bytes:
    """All bytes of a Lance file's columns, unpacked; nothing for one that was cut short."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            table = LanceFileReader(str(path)).read_all().to_table()
    except (OSError, ValueError, RuntimeError):
        return b""
    parts = [buffer.to_pybytes() for column in table.columns for chunk in column.chunks
             for buffer in chunk.buffers() if buffer is not None]  # fmt: skip
    return b"\0".join(parts)


def contents(store: treering.Store, corpus: str = "support") -> dict[str, list[dict[str, Any]]]:
    """Every record by place, in order."""
    refs = [*(snapshot.ref for snapshot in store.corpus(corpus).snapshots()), f"{corpus}@live"]
    return {ref.partition("@")[2]: store.load(ref).to_table().to_pylist() for ref in refs}


def without(places: dict[str, list[dict[str, Any]]], *subjects: str) -> dict[str, list[dict[str, Any]]]:
    return {name: [row for row in rows if row["subject"] not in subjects] for name, rows in places.items()}


def tree(root: Path) -> dict[str, str]:
    """Every file below a directory, by digest."""
    return {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }
