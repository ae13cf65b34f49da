"""Small immutable objects beside the tables: created once, never changed, durable when `create` returns.

Whatever must be decided by exactly one of several processes is decided by `create`: the second gets an error.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import obstore
from obstore.store import LocalStore

from treering.errors import AlreadyExistsError, NotFoundError, StoreError
from treering.store.durable import sync_directory, sync_file

__all__ = ["Objects"]


class Objects:
    """Create-if-absent objects under one root. Paths look like `a/b/c.json`, relative to the root."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._store: Any = LocalStore(root)

    def create(self, path: str, data: bytes) -> None:
        """Store `data` under `path`, durably. Raises AlreadyExistsError when something is there, and leaves it alone."""
        missing = [d for d in self._parents(path) if not d.exists()]
        try:
            obstore.put(self._store, path, data, mode="create")
        except obstore.exceptions.AlreadyExistsError as exc:
            raise AlreadyExistsError(f"{path} is already there", code="object-exists") from exc
        except (obstore.exceptions.BaseError, OSError) as exc:
            raise StoreError(f"can't write {path}: {_reason(exc)}", code="write-failed") from exc
        file = self._root / path
        sync_file(file)
        sync_directory(file.parent)
        for directory in missing:
            sync_directory(directory.parent)

    def _parents(self, path: str) -> list[Path]:
        parents = []
        directory = (self._root / path).parent
        while directory != self._root:
            parents.append(directory)
            directory = directory.parent
        return parents

    def get(self, path: str) -> bytes:
        """The whole object. Raises NotFoundError."""
        try:
            return bytes(obstore.get(self._store, path).bytes())
        except FileNotFoundError as exc:
            raise NotFoundError(f"{path} isn't in the store", code="object-missing") from exc
        except (obstore.exceptions.BaseError, OSError) as exc:
            raise StoreError(f"can't read {path}: {_reason(exc)}", code="read-failed") from exc

    def exists(self, path: str) -> bool:
        """Whether there is an object at `path`."""
        try:
            obstore.head(self._store, path)
        except FileNotFoundError:
            return False
        return True

    def list(self, prefix: str) -> list[str]:
        """Paths of all objects below `prefix` (a folder, with or without its slash), sorted."""
        prefix = prefix.rstrip("/")
        found = [str(meta["path"]) for batch in obstore.list(self._store, prefix) for meta in batch]
        # `name#1` is a local upload that a crash cut short; it never got its name, so it was never an object.
        return sorted(path for path in found if "#" not in path.rpartition("/")[2])


def _reason(exc: Exception) -> str:
    return str(exc).strip().splitlines()[0]
