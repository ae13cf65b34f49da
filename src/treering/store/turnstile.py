"""Writers of one table pass a turnstile, each on his own; whoever must be alone closes it and waits until all are through.

Between processes of one host, by file locks that the kernel frees when their holder dies. Knows no tables. On an object
store there is none: there nobody can be held up.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from treering.errors import ConflictError, StoreError

try:
    import fcntl
except ImportError:  # Windows: one at a time, which is as right and slower
    fcntl = None  # type: ignore[assignment]

__all__ = ["Turnstile"]

_POLL_S = 0.005


class Turnstile:
    """The turnstile at `path` (`.door` and `.writing` beside it); without a path everybody passes and nobody can close it."""

    def __init__(self, path: Path | None) -> None:
        self._path = path

    @contextmanager
    def passed(self) -> Iterator[None]:
        """Be one of those who are inside; waits while it is closed."""
        if self._path is None:
            yield
            return
        # The door first: with one lock alone, writers that come and go would never let anybody be alone.
        with self._locked("writing") as inside:
            with self._locked("door") as door:
                _lock(door, alone=False)
                _lock(inside, alone=False)
            yield

    @contextmanager
    def closed(self, wait_s: float) -> Iterator[None]:
        """Be alone: nobody enters, and those inside have left. Raises ConflictError when one doesn't within `wait_s`."""
        if self._path is None:
            yield
            return
        end = time.monotonic() + wait_s
        with self._locked("door") as door, self._locked("writing") as inside:
            for descriptor in (door, inside):
                while not _lock(descriptor, alone=True, wait=False):
                    if time.monotonic() >= end:
                        raise ConflictError(
                            f"a process has been committing to {self._path.name} for {wait_s:g} s",
                            code="writers-inside",
                            hint="wait for it to end, or end it, and try again",
                        )
                    time.sleep(_POLL_S)
            yield

    @contextmanager
    def _locked(self, suffix: str) -> Iterator[int]:
        """A descriptor of one of the two files, of our own: locks belong to it, and go with it."""
        assert self._path is not None
        path = self._path.with_name(f"{self._path.name}.{suffix}")
        try:
            try:
                descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
            except FileNotFoundError:
                path.parent.mkdir(parents=True, exist_ok=True)
                descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        except OSError as exc:
            raise StoreError(f"can't open {path}: {exc.strerror}", code="write-failed") from exc
        try:
            yield descriptor
        finally:
            os.close(descriptor)


def _lock(descriptor: int, *, alone: bool, wait: bool = True) -> bool:
    """Lock it; False when it is another's and `wait` is off."""
    if fcntl is None:
        import msvcrt  # type: ignore[unreachable, unused-ignore]

        mode = msvcrt.LK_LOCK if wait else msvcrt.LK_NBLCK
        try:
            msvcrt.locking(descriptor, mode, 1)
        except OSError:
            return False
        return True
    try:
        fcntl.flock(descriptor, (fcntl.LOCK_EX if alone else fcntl.LOCK_SH) | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    return True
