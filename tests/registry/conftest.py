from __future__ import annotations

import threading
from collections.abc import Callable

import pytest

from treering.errors import AlreadyExistsError, NotFoundError


class MemoryObjects:
    """The store layer's objects as a dict. `before_create` runs first, to let another writer in at the worst moment."""

    def __init__(self) -> None:
        self.data: dict[str, bytes] = {}
        self.before_create: Callable[[str], None] | None = None
        self._lock = threading.Lock()

    def create(self, path: str, data: bytes) -> None:
        if (hook := self.before_create) is not None:
            hook(path)
        with self._lock:
            if path in self.data:
                raise AlreadyExistsError(f"{path} is there already")
            self.data[path] = data

    def get(self, path: str) -> bytes:
        try:
            return self.data[path]
        except KeyError:
            raise NotFoundError(f"no object {path}") from None

    def list(self, prefix: str) -> list[str]:
        with self._lock:
            return sorted(path for path in self.data if path.startswith(prefix))


class MemoryStore:
    def __init__(self) -> None:
        self.objects = MemoryObjects()


@pytest.fixture
def store() -> MemoryStore:
    return MemoryStore()


@pytest.fixture
def new_store() -> type[MemoryStore]:
    """For tests that need a fresh store more than once."""
    return MemoryStore
