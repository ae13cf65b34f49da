"""One maintainer of a corpus at a time: sealing, compaction and cleanup share a lease.

The lease spares work and conflicts; correctness never rests on it, since Lance can't check a fencing number.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from treering.errors import ConflictError

__all__ = ["lease"]


@contextmanager
def lease(path: Path, *, wait_s: float = 30.0) -> Iterator[None]:
    """Hold the lease file at `path`. The kernel frees it when the process dies.

    Raises ConflictError when it isn't free within `wait_s` seconds.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path, timeout=wait_s, thread_local=False)
    try:
        lock.acquire()
    except Timeout as exc:
        raise ConflictError(
            f"another process has been maintaining {path.stem} for {wait_s:g} s",
            code="lease-held",
            hint="wait for it to end and try again",
        ) from exc
    try:
        yield
    finally:
        lock.release()
