"""Classes by the name of their format: ours, and what other packages bring as entry points.

A package's class is loaded when it is used. One that is broken says so then, and breaks nothing else.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Mapping
from contextlib import suppress
from functools import cache, lru_cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Generic, TypeVar

from treering.errors import UsageError

__all__ = ["BROKEN", "Formats"]

#: The code of the error for a format whose package is broken.
BROKEN = "broken-format"

T = TypeVar("T")


class Formats(Generic[T]):
    """The formats of one direction: subclasses of `kind`, ours as `module:name`, others' under the entry points `group`."""

    def __init__(self, kind: type[T], group: str, ours: Mapping[str, str], where: str) -> None:
        self._kind, self._group, self._ours, self._where = kind, group, ours, where

    def names(self) -> list[str]:
        """All names, sorted. Loads none."""
        return sorted({*self._ours, *self._foreign()})

    def find(self, name: str) -> type[T] | None:
        """The class of a format, None when there is none of that name. Raises UsageError when its package is broken."""
        if name in self._ours:
            found: type[T] = _loaded(self._ours[name])
            return found
        point = self._foreign().get(name)
        if point is None:
            return None
        try:
            found = point.load()
        except Exception as exc:  # whatever a package raises when it is imported
            raise _broken(point, f"{type(exc).__name__}: {exc}") from exc
        if not (isinstance(found, type) and issubclass(found, self._kind)):
            raise _broken(point, f"{point.value} is not a subclass of {self._where}")
        return found

    def _foreign(self) -> dict[str, EntryPoint]:
        return {name: point for name, point in _packages(self._group, _places()).items() if name not in self._ours}


@cache
def _loaded(where: str) -> Any:
    """A class of ours."""
    module, _, attribute = where.partition(":")
    return getattr(importlib.import_module(module), attribute)


def _places() -> tuple[tuple[str, int], ...]:
    """Where packages are looked for, and when something was last put there."""
    found = []
    for one in sys.path:
        with suppress(OSError, ValueError):
            found.append((one, os.stat(one or ".").st_mtime_ns))
    return tuple(found)


@lru_cache(maxsize=8)
def _packages(group: str, places: tuple[tuple[str, int], ...]) -> Mapping[str, EntryPoint]:
    """What packages bring. Looking at all of them takes ten times as long as importing a small file."""
    return {point.name: point for point in entry_points(group=group)}


def _broken(point: EntryPoint, why: str) -> UsageError:
    package = point.dist.name if point.dist is not None else point.value
    return UsageError(
        f"the format {point.name} of the package {package} can't be loaded: {why}",
        code=BROKEN,
        hint=f"repair or remove {package}; the other formats go on working",
    )
