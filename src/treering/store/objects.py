"""Small immutable objects beside the tables: created once, never changed, durable when `create` returns.

Whatever must be decided by exactly one of several processes is decided by `create`: the second gets an error.
"""

from __future__ import annotations

import errno
import os
import secrets
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
        """Store `data` under `path`, durably. Raises AlreadyExistsError when something is there, and leaves it alone.

        The bytes are on disk before they get their name: after a power cut there is the whole object or none.
        """
        file = self._root / path
        temporary = file.with_name(f"{file.name}#{secrets.token_hex(6)}")
        try:
            missing = [d for d in file.parents if d.is_relative_to(self._root) and not d.exists()]
            file.parent.mkdir(parents=True, exist_ok=True)
            for directory in reversed(missing):
                sync_directory(directory.parent)
            try:
                temporary.write_bytes(data)
                sync_file(temporary)
                os.link(temporary, file)
            finally:
                temporary.unlink(missing_ok=True)
        except FileExistsError as exc:
            self.make_durable(path)  # whoever is told that it is there may rely on it
            raise AlreadyExistsError(f"{path} is already there", code="object-exists") from exc
        except OSError as exc:
            hint = "free some space, then try again" if exc.errno == errno.ENOSPC else None
            raise StoreError(f"can't write {path}: {exc.strerror}", code="write-failed", hint=hint) from exc
        sync_directory(file.parent)

    def make_durable(self, path: str) -> None:
        """Fsync an object that another process created, and its name."""
        sync_file(self._root / path)
        sync_directory((self._root / path).parent)

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
        # `name#…` is what a crash cut short; it never got its name, so it was never an object.
        return sorted(path for path in found if "#" not in path.rpartition("/")[2])


def _reason(exc: Exception) -> str:
    return str(exc).strip().splitlines()[0]
