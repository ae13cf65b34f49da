"""Give memory back that nobody needs any more.

The engine's threads, numpy and Arrow free what a commit or a pass needed, but the allocators keep it: glibc in arenas, up to
eight for each core. A process that had captured 300,000 records of 1 kB held 360 MB; 280 when it gave back what it could;
200 with few arenas, and 170 with both (benchmarks/RESULTS.md).
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from typing import Any

import pyarrow as pa

__all__ = ["few_arenas", "give_back", "giving_back"]

_M_ARENA_MAX = -8  # of malloc.h


@cache
def _glibc() -> Any:
    """The C library when it is glibc, else None."""
    with suppress(OSError, AttributeError, TypeError):
        library = ctypes.CDLL(None)
        library.gnu_get_libc_version  # noqa: B018
        return library
    return None


@cache
def few_arenas() -> None:
    """Let malloc keep an arena a core, instead of eight; call it before the engine starts its threads.

    Does nothing where the environment says something about malloc itself.
    """
    said = "MALLOC_ARENA_MAX" in os.environ or "glibc.malloc" in os.environ.get("GLIBC_TUNABLES", "")
    if _glibc() is not None and not said:
        _glibc().mallopt(_M_ARENA_MAX, max(2, os.cpu_count() or 2))


def give_back() -> None:
    """Give free memory back to the system; some milliseconds."""
    pa.default_memory_pool().release_unused()
    if _glibc() is not None:
        _glibc().malloc_trim(0)


@contextmanager
def giving_back() -> Iterator[None]:
    """`give_back` at the end."""
    try:
        yield
    finally:
        give_back()
