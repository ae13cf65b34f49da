"""How the registry's documents become objects of the store."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any, Protocol

from pydantic import BaseModel

from treering.errors import UsageError

__all__ = ["HasObjects", "Objects", "sha256", "to_bytes"]


class Objects(Protocol):
    """What the registry needs of the store layer's objects: immutable, by path, created if absent."""

    def create(self, path: str, data: bytes) -> None:
        """Write durably; raises AlreadyExistsError when the path is taken."""
        ...

    def get(self, path: str) -> bytes:
        """Raises NotFoundError."""
        ...

    def list(self, prefix: str) -> list[str]:
        """Full paths under a folder, sorted."""
        ...


class HasObjects(Protocol):
    """A store, as far as the registry needs one."""

    @property
    def objects(self) -> Objects:
        """The store's small objects."""
        ...


def to_bytes(document: BaseModel | Mapping[str, Any] | bytes) -> bytes:
    """UTF-8 JSON with sorted keys, so that equal documents are equal bytes; bytes as they are. Raises UsageError."""
    if isinstance(document, bytes):
        return document
    try:
        data = document.model_dump(mode="json") if isinstance(document, BaseModel) else dict(document)
        text = json.dumps(data, ensure_ascii=False, indent=1, sort_keys=True, allow_nan=False)
    except (TypeError, ValueError) as exc:
        raise UsageError(f"not JSON: {exc}", code="not-json") from exc
    return (text + "\n").encode()


def sha256(data: bytes) -> str:
    """SHA-256 in hex."""
    return hashlib.sha256(data).hexdigest()
