"""How the registry's documents become objects of the store and back."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any, Protocol, TypeVar

from pydantic import BaseModel, ValidationError

from treering.errors import StoreError, UsageError

__all__ = ["HasObjects", "Objects", "from_bytes", "sha256", "to_bytes"]

Model = TypeVar("Model", bound=BaseModel)


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


def from_bytes(model: type[Model], path: str, data: bytes) -> Model:
    """The document at `path`. Raises StoreError when it isn't one of its kind."""
    try:
        return model.model_validate_json(data)
    except ValidationError as exc:
        first = exc.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "document"
        raise StoreError(f"{path} can't be read: {where}: {first['msg']}", code="registry-damaged") from exc


def sha256(data: bytes) -> str:
    """SHA-256 in hex."""
    return hashlib.sha256(data).hexdigest()
