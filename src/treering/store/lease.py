"""One maintainer of a corpus at a time: sealing, compaction and cleanup share a lease.

On one host a file lock, which the kernel frees when its holder dies. Among the hosts of an object store an object as
well, which its holder renews; one that nobody renewed for a while is taken over. No clocks are compared: whoever waits
watches the object's ETag by his own monotonic clock. The lease spares work and conflicts; correctness never rests on it
alone, since Lance can't check a fencing number.
"""

from __future__ import annotations

import json
import platform
import secrets
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from treering.errors import ConflictError, StoreError
from treering.store.location import private_dir, user_state_dir
from treering.store.objects import RemoteObjects

__all__ = ["Lease", "file_lease", "is_held", "object_lease"]

#: An object lease that wasn't renewed for so long is taken over: its host died, or is cut off from the store.
EXPIRES_S = 20.0
_RENEW_S = 5.0
_POLL_S = 0.2

#: (object, ETag) → when this process saw it first. Kept between calls: one that never waits may take over, too.
_seen: dict[tuple[str, str], float] = {}


class Lease:
    """A lease that is held. One of a file can't be lost; one of an object can."""

    def check(self) -> None:
        """Raise ConflictError when it may be another's by now. Called before what can't be undone."""


@contextmanager
def file_lease(path: Path, *, wait_s: float = 30.0) -> Iterator[Lease]:
    """Hold the lease file at `path`. The kernel frees it when the process dies.

    Raises ConflictError when it isn't free within `wait_s` seconds.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(path, timeout=wait_s, thread_local=False)
        lock.acquire()
    except Timeout as exc:
        raise _held(path.stem, wait_s) from exc
    except OSError as exc:
        raise StoreError(f"can't lock {path}: {exc.strerror}", code="write-failed") from exc
    try:
        yield Lease()
    finally:
        lock.release()


def is_held(path: Path) -> bool:
    """Whether a process on this host holds the lock file at `path` right now."""
    if not path.exists():
        return False
    lock = FileLock(path, timeout=0, thread_local=False)
    try:
        lock.acquire()
    except Timeout:
        return True
    lock.release()
    return False


@contextmanager
def object_lease(objects: RemoteObjects, name: str, *, lock: Path, wait_s: float = 30.0) -> Iterator[Lease]:
    """Hold the lease object `name` and, among the processes of this host, the lease file at `lock`.

    Raises ConflictError when they aren't free within `wait_s` seconds, StoreError.
    """
    end = time.monotonic() + wait_s
    with file_lease(lock, wait_s=wait_s):
        held = _ObjectLease(objects, f"leases/{name}.json", max(0.0, end - time.monotonic()))
        try:
            yield held
        finally:
            held.release()


class _ObjectLease(Lease):
    """An object that names its holder, and changes while he lives."""

    def __init__(self, objects: RemoteObjects, path: str, wait_s: float) -> None:
        self._objects = objects
        self._path = path
        self._me = _host()
        self._done = threading.Event()
        self._tag = self._take(wait_s)
        self._renewed = time.monotonic()
        self._thread = threading.Thread(target=self._renew, name="treering-lease", daemon=True)
        self._thread.start()

    def _take(self, wait_s: float) -> str:
        end = time.monotonic() + wait_s
        while True:
            asked = time.monotonic()
            found = self._objects.read_tagged(self._path)
            if found is None or self._is_free(*found):
                tag = self._objects.write_tagged(self._path, self._says(self._me), found[1] if found else None)
                if tag is not None:
                    if time.monotonic() - asked > EXPIRES_S:  # so slow that another may have thought us gone
                        continue
                    return tag
            if time.monotonic() >= end:
                raise _held(Path(self._path).stem, wait_s)
            time.sleep(min(_POLL_S, max(0.0, end - time.monotonic())))

    def _is_free(self, data: bytes, tag: str) -> bool:
        try:
            holder = json.loads(data)["holder"]
        except (ValueError, KeyError, TypeError):
            holder = "?"
        # We hold this host's lock file, so a holder on this host is dead.
        if holder in ("", self._me):
            return True
        key = (f"{self._objects.location.uri}/{self._path}", tag)
        now = time.monotonic()
        for known in [known for known in _seen if known[0] == key[0] and known != key]:
            del _seen[known]
        return now - _seen.setdefault(key, now) >= EXPIRES_S

    @staticmethod
    def _says(holder: str) -> bytes:
        # The beat makes each writing differ from the one before: an ETag may be a hash of the content.
        return json.dumps({"holder": holder, "beat": secrets.token_hex(8)}).encode()

    def _renew(self) -> None:
        while not self._done.wait(_RENEW_S):
            began = time.monotonic()
            with suppress(StoreError):  # perhaps the next time; `check` knows how long it has been
                tag = self._objects.write_tagged(self._path, self._says(self._me), self._tag)
                if tag is None:
                    self._renewed = float("-inf")
                    return
                self._tag, self._renewed = tag, began

    def check(self) -> None:
        if time.monotonic() - self._renewed >= EXPIRES_S - _RENEW_S:
            raise ConflictError(
                f"the lease on {Path(self._path).stem} was lost: this process stood still, or the store was out of reach",
                code="lease-lost",
                hint="try again",
            )

    def release(self) -> None:
        self._done.set()
        self._thread.join()
        with suppress(StoreError):  # it expires by itself
            self._objects.write_tagged(self._path, self._says(""), self._tag)


def _held(name: str, wait_s: float) -> ConflictError:
    return ConflictError(
        f"another process has been maintaining {name} for {wait_s:g} s",
        code="lease-held",
        hint="wait for it to end and try again",
    )


def _host() -> str:
    """A name for this host, or container, that no other bears."""
    path = private_dir(user_state_dir()) / "host"
    try:
        with path.open("x") as file:
            file.write(secrets.token_hex(8))
    except FileExistsError:
        pass
    except OSError as exc:
        raise StoreError(f"can't write {path}: {exc.strerror}", code="write-failed") from exc
    return f"{platform.node()}-{path.read_text().strip()}"
