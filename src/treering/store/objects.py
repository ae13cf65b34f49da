"""Small immutable objects beside the tables: created once, never changed, durable when `create` returns.

Whatever must be decided by exactly one of several processes is decided by `create`: the second gets an error. The same
on a directory (exclusive link, fsync) and on an object store (conditional PUT, which is durable once acknowledged).
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import secrets
import stat
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import obstore
from obstore.exceptions import AlreadyExistsError as TakenError
from obstore.exceptions import BaseError, PreconditionError, UnknownConfigurationKeyError
from obstore.store import from_url

from treering.errors import AlreadyExistsError, NotFoundError, StoreError, UsageError
from treering.store.durable import make_directory, sync_directory, sync_file
from treering.store.location import Location, remote_failure

__all__ = ["LocalObjects", "Objects", "RemoteObjects", "objects_at"]


class Objects(ABC):
    """Create-if-absent objects of one store. Paths look like `a/b/c.json`, relative to the store."""

    def __init__(self, location: Location) -> None:
        self.location = location

    @abstractmethod
    def create(self, path: str, data: bytes) -> None:
        """Store `data` under `path`, durably. Raises AlreadyExistsError when something is there, and leaves it alone."""

    @abstractmethod
    def make_durable(self, path: str) -> None:
        """See to it that an object which another process created outlives a power cut."""

    @abstractmethod
    def get(self, path: str) -> bytes:
        """The whole object. Raises NotFoundError."""

    @abstractmethod
    def sha256(self, path: str) -> str:
        """SHA-256 (hex) of an object of any size, read piece by piece. Raises NotFoundError."""

    @abstractmethod
    def exists(self, path: str) -> bool:
        """Whether there is an object at `path`."""

    def list(self, prefix: str) -> list[str]:
        """Paths of all objects below `prefix` (a folder, with or without its slash), sorted."""
        return sorted(self.sizes(prefix))

    @abstractmethod
    def sizes(self, prefix: str) -> dict[str, int]:
        """Bytes of all objects below `prefix`, by path."""

    @abstractmethod
    def written(self, prefix: str) -> dict[str, datetime]:
        """Path → when it was written, by the store's clock, of all objects below `prefix`."""

    @abstractmethod
    def written_at(self, path: str) -> datetime:
        """When an object was written, by the store's clock. Raises NotFoundError."""

    @abstractmethod
    def now(self) -> datetime:
        """The time by the store's clock, which its hosts' may differ from."""

    @abstractmethod
    def delete(self, path: str) -> None:
        """Remove an object; nothing happens when it isn't there. Raises StoreError."""

    @abstractmethod
    def replace(self, path: str, data: bytes) -> None:
        """Put other bytes in the place of an object, at once: for what must be forgotten. Nothing else changes one."""

    @contextmanager
    def _reading(self, path: str) -> Iterator[None]:
        """The libraries' errors become ours, here and in `create`."""
        try:
            yield
        except (BaseError, OSError) as exc:
            known = remote_failure("can't read", str(exc), self.location)  # a missing bucket says "not found" too
            if known is not None:
                raise known from exc
            if isinstance(exc, FileNotFoundError | NotADirectoryError | IsADirectoryError):
                raise NotFoundError(f"{path} isn't in the store", code="object-missing") from exc
            raise StoreError(f"can't read {path}: {self._reason(exc)}", code="read-failed") from exc

    def _reason(self, exc: Exception) -> str:
        text = str(exc).strip() or type(exc).__name__
        return self.location.options.scrub(text.splitlines()[0])


class LocalObjects(Objects):
    """Objects in a directory.

    Read by plain calls of the system: a document takes 0.01 ms so, and four times that by the threads of obstore, more on a busy
    machine.
    """

    def __init__(self, root: Path) -> None:
        super().__init__(Location.local(root))
        self._root = root

    def get(self, path: str) -> bytes:
        """The whole object. Raises NotFoundError."""
        with self._reading(path), open(self._root / path, "rb") as file:
            return file.read()

    def exists(self, path: str) -> bool:
        """Whether there is an object at `path`."""
        try:
            return stat.S_ISREG(self._status(path).st_mode)
        except NotFoundError:
            return False

    def sizes(self, prefix: str) -> dict[str, int]:
        """Bytes of all objects below `prefix`, by path."""
        return {path: found.st_size for path, found in self._below(prefix)}

    def written(self, prefix: str) -> dict[str, datetime]:
        """Path → when it was written, by the file system's clock, of all objects below `prefix`."""
        return {path: datetime.fromtimestamp(found.st_mtime, UTC) for path, found in self._below(prefix)}

    def written_at(self, path: str) -> datetime:
        """When an object was written, by the file system's clock. Raises NotFoundError."""
        return datetime.fromtimestamp(self._status(path).st_mtime, UTC)

    def delete(self, path: str) -> None:
        """Remove an object; nothing happens when it isn't there. Raises StoreError."""
        try:
            (self._root / path).unlink(missing_ok=True)
        except NotADirectoryError:
            return
        except OSError as exc:
            raise StoreError(f"can't remove {path}: {exc.strerror}", code="write-failed") from exc

    def _status(self, path: str) -> os.stat_result:
        with self._reading(path):
            return os.stat(self._root / path)

    def _below(self, prefix: str) -> Iterator[tuple[str, os.stat_result]]:
        """Path and status of each file below a folder; what goes away meanwhile isn't there."""
        folders = [prefix.strip("/")]
        while folders:
            folder = folders.pop()
            try:
                with self._reading(folder), os.scandir(self._root / folder) as entries:
                    found = list(entries)
            except NotFoundError:
                continue
            for entry in found:
                path = f"{folder}/{entry.name}" if folder else entry.name
                with suppress(NotFoundError), self._reading(path):
                    if entry.is_dir():
                        if not entry.is_symlink() or not _leads_back(entry.path):
                            folders.append(path)
                    elif (
                        entry.is_file() and "#" not in entry.name
                    ):  # that is what a crash cut short: it never got its name
                        yield path, entry.stat()

    def create(self, path: str, data: bytes) -> None:
        """Store `data` under `path`, durably. Raises AlreadyExistsError when something is there, and leaves it alone.

        The bytes are on disk before they get their name: after a power cut there is the whole object or none.
        """
        file = self._root / path
        try:
            make_directory(file.parent, below=self._root)
            _write_then_link(file, data)
        except FileExistsError as exc:
            self.make_durable(path)  # whoever is told that it is there may rely on it
            raise AlreadyExistsError(f"{path} is already there", code="object-exists") from exc
        except OSError as exc:
            hint = "free some space, then try again" if exc.errno == errno.ENOSPC else None
            raise StoreError(f"can't write {path}: {exc.strerror}", code="write-failed", hint=hint) from exc
        sync_directory(file.parent)

    def replace(self, path: str, data: bytes) -> None:
        """Put other bytes in the place of an object, durably: there is the old one or the new one, whatever happens."""
        file = self._root / path
        temporary = file.with_name(f"{file.name}#{secrets.token_hex(6)}")
        try:
            try:
                temporary.write_bytes(data)
                sync_file(temporary)
                temporary.replace(file)
            finally:
                temporary.unlink(missing_ok=True)
        except OSError as exc:
            hint = "free some space, then try again" if exc.errno == errno.ENOSPC else None
            raise StoreError(f"can't write {path}: {exc.strerror}", code="write-failed", hint=hint) from exc
        sync_directory(file.parent)

    def now(self) -> datetime:
        """The time by the clock of the file system, which may be another host's."""
        try:
            with tempfile.TemporaryFile(
                dir=self._root
            ) as file:  # without a name, where there are such: a kill leaves nothing
                return datetime.fromtimestamp(os.fstat(file.fileno()).st_mtime, UTC)
        except OSError as exc:
            raise StoreError(f"can't write to {self._root}: {exc.strerror}", code="write-failed") from exc

    def sha256(self, path: str) -> str:
        """SHA-256 (hex) of a file of any size; lets other threads go on meanwhile. Raises NotFoundError."""
        with self._reading(path), (self._root / path).open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    def make_durable(self, path: str) -> None:
        """Fsync an object that another process created, and its name."""
        sync_file(self._root / path)
        sync_directory((self._root / path).parent)


def _leads_back(link: str) -> bool:
    """Whether a link to a folder leads to one that it lies in."""
    there, here = os.path.realpath(link), os.path.realpath(os.path.dirname(link))
    return os.path.commonpath([there, here]) == there


def _write_then_link(file: Path, data: bytes) -> None:
    """Give synced bytes their name. Raises FileExistsError when the name is taken, and other OSErrors.

    The bytes lie in a file without a name until then, where the file system has such: a kill leaves nothing behind.
    """
    try:
        descriptor = os.open(file.parent, os.O_TMPFILE | os.O_WRONLY, 0o666)
    except (AttributeError, OSError) as exc:  # not Linux, or a file system that can't (or is full: said below)
        if isinstance(exc, OSError) and exc.errno not in (errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL, errno.ENOENT):
            raise
        temporary = file.with_name(f"{file.name}#{secrets.token_hex(6)}")
        try:
            temporary.write_bytes(data)
            sync_file(temporary)
            os.link(temporary, file)
        finally:
            temporary.unlink(missing_ok=True)
        return
    with open(descriptor, "wb") as unnamed:
        unnamed.write(data)
        unnamed.flush()
        os.fsync(descriptor)
        # By its name in /proc: linking a descriptor itself takes a privilege. And relative to a directory that is open:
        # else Python calls `link`, which doesn't follow that name.
        folder = os.open(file.parent, os.O_RDONLY)
        try:
            os.link(f"/proc/self/fd/{descriptor}", file.name, dst_dir_fd=folder, follow_symlinks=True)
        finally:
            os.close(folder)


#: A server that can't be reached, or that takes a connection and says nothing, is given up within 30 s: two tries of
#: 10 s and the pauses between them.
_SMALL = {"connect_timeout": "5s", "timeout": "10s"}
_RETRIES: Any = {
    "max_retries": 5,
    "retry_timeout": timedelta(seconds=15),
    "backoff": {"init_backoff": timedelta(milliseconds=100), "max_backoff": timedelta(seconds=3), "base": 2},
}
#: What may be large has no limit as a whole: downloads end when nothing comes for so long, uploads by their size.
_DOWNLOAD = {"connect_timeout": "5s", "timeout": "1h", "read_timeout": "10s"}
_UPLOAD = {"connect_timeout": "5s", "timeout": "1h"}
_LARGE = 1 << 20
#: How long `create` keeps at it while the server answers with errors that may pass.
_CREATE_S = 20.0
_PASSING = re.compile(r"status code: (?:5\d\d|408|429)|error sending request|HTTP error")

#: Options that say how to talk to a server: obstore takes them apart from the rest, Lance takes all in one.
_CLIENT_KEYS = frozenset(
    [
        "allow_http",
        "allow_invalid_certificates",
        "connect_timeout",
        "default_content_type",
        "http1_only",
        "http2_only",
        "http2_keep_alive_interval",
        "http2_keep_alive_timeout",
        "http2_keep_alive_while_idle",
        "http2_max_frame_size",
        "pool_idle_timeout",
        "pool_max_idle_per_host",
        "proxy_ca_certificate",
        "proxy_excludes",
        "proxy_url",
        "read_timeout",
        "timeout",
        "user_agent",
    ]
)
#: Options that Lance alone takes.
_LANCE_KEYS = frozenset(
    [
        "client_max_retries",
        "client_retry_timeout",
        "download_retry_count",
        "block_size",
        "s3_express",
        "new_table_enable_stable_row_ids",
        "new_table_data_storage_version",
    ]
)
#: Metadata of an object: who wrote it.
_WRITER = "treering-writer"


class RemoteObjects(Objects):
    """Objects below a prefix of a bucket."""

    def __init__(self, location: Location) -> None:
        super().__init__(location)
        self._store = self._client(location, _DOWNLOAD)
        self._small = self._client(location, _SMALL)
        self._upload = self._client(location, _UPLOAD)

    @staticmethod
    def _client(location: Location, limits: dict[str, str]) -> Any:
        talk = {key: value for key, value in location.options.items() if key in _CLIENT_KEYS}
        if "AWS_ALLOW_HTTP" in os.environ:  # which obstore reads only if it is given no client options at all
            talk.setdefault("allow_http", os.environ["AWS_ALLOW_HTTP"])
        rest = {k: v for k, v in location.options.items() if k not in _CLIENT_KEYS and k not in _LANCE_KEYS}
        try:
            return from_url(location.uri, config=rest, client_options={**limits, **talk}, retry_config=_RETRIES)  # type: ignore
        except UnknownConfigurationKeyError as exc:
            key = str(exc).split("'")[1] if "'" in str(exc) else "one"
            raise UsageError(
                f"{location.scheme}:// stores have no storage option {key!r}",
                code="bad-options",
                hint="take the keys that Lance takes, such as aws_access_key_id, aws_endpoint, aws_region, allow_http",
            ) from exc
        except (BaseError, ValueError, TypeError) as exc:
            reason = location.options.scrub(str(exc).strip().splitlines()[0])
            raise UsageError(f"the storage options don't fit {location.uri}: {reason}", code="bad-options") from exc

    def get(self, path: str) -> bytes:
        """The whole object. Raises NotFoundError."""
        with self._reading(path):
            return bytes(obstore.get(self._store, path).bytes())

    def sha256(self, path: str) -> str:
        """SHA-256 (hex) of an object of any size, read piece by piece. Raises NotFoundError."""
        digest = hashlib.sha256()
        with self._reading(path):
            for piece in obstore.get(self._store, path).stream():
                digest.update(piece)
        return digest.hexdigest()

    def sizes(self, prefix: str) -> dict[str, int]:
        """Bytes of all objects below `prefix`, by path."""
        prefix = prefix.rstrip("/")
        with self._reading(prefix):
            found = {str(m["path"]): int(m["size"]) for batch in obstore.list(self._store, prefix) for m in batch}
        # `name#…` is what a crash cut short; it never got its name, so it was never an object.
        return {path: size for path, size in found.items() if "#" not in path.rpartition("/")[2]}

    def written(self, prefix: str) -> dict[str, datetime]:
        """Path → when it was written, by the store's clock, of all objects below `prefix`."""
        with self._reading(prefix):
            return {str(m["path"]): m["last_modified"] for part in obstore.list(self._store, prefix) for m in part}

    def written_at(self, path: str) -> datetime:
        """When an object was written, by the store's clock. Raises NotFoundError."""
        with self._reading(path):
            return obstore.head(self._store, path)["last_modified"]

    def delete(self, path: str) -> None:
        """Remove an object; nothing happens when it isn't there. Raises StoreError."""
        try:
            obstore.delete(self._store, path)
        except (BaseError, OSError) as exc:
            if isinstance(exc, FileNotFoundError):
                return
            known = remote_failure("can't remove from", str(exc), self.location)
            if known is not None:
                raise known from exc
            raise StoreError(f"can't remove {path}: {self._reason(exc)}", code="write-failed") from exc

    def create(self, path: str, data: bytes) -> None:
        """Store `data` under `path`, durably. Raises AlreadyExistsError when something is there, and leaves it alone.

        A PUT whose answer got lost is sent again, and then finds itself there already: the writer's mark tells.
        """
        mark = secrets.token_hex(8)
        client = self._upload if len(data) > _LARGE else self._small
        give_up = time.monotonic() + _CREATE_S
        pause = 0.1
        while True:
            try:
                obstore.put(client, path, data, mode="create", attributes={_WRITER: mark}, use_multipart=False)
            except TakenError as exc:
                if self._writer_of(path) == mark:
                    return
                raise AlreadyExistsError(f"{path} is already there", code="object-exists") from exc
            except (BaseError, OSError) as exc:
                known = remote_failure("can't write to", str(exc), self.location)
                if _PASSING.search(str(exc)) and time.monotonic() + pause < give_up:
                    time.sleep(pause)
                    pause = min(2 * pause, 3.0)
                    continue
                if known is not None:
                    raise known from exc
                raise StoreError(f"can't write {path}: {self._reason(exc)}", code="write-failed") from exc
            return

    def replace(self, path: str, data: bytes) -> None:
        """Put other bytes in the place of an object, at once."""
        try:
            obstore.put(self._upload if len(data) > _LARGE else self._small, path, data, use_multipart=False)
        except (BaseError, OSError) as exc:
            known = remote_failure("can't write to", str(exc), self.location)
            if known is not None:
                raise known from exc
            raise StoreError(f"can't write {path}: {self._reason(exc)}", code="write-failed") from exc

    def now(self) -> datetime:
        """The time by the server's clock: that of an object written for it."""
        try:
            obstore.put(self._small, _CLOCK, secrets.token_bytes(8), use_multipart=False)
        except (BaseError, OSError) as exc:
            known = remote_failure("can't write to", str(exc), self.location)
            if known is not None:
                raise known from exc
            raise StoreError(f"can't write {_CLOCK}: {self._reason(exc)}", code="write-failed") from exc
        return self.written_at(_CLOCK)

    def make_durable(self, path: str) -> None:
        """Nothing to do: what can be read from an object store is durable."""

    def _writer_of(self, path: str) -> str | None:
        try:
            with self._reading(path):
                return obstore.get(self._small, path).attributes.get(_WRITER)
        except NotFoundError:
            return None

    def exists(self, path: str) -> bool:
        """Whether there is an object at `path`."""
        try:
            with self._reading(path):
                obstore.head(self._small, path)
        except NotFoundError:
            return False
        return True

    def is_empty(self) -> bool:
        """Whether there is nothing at all below the prefix, but for what `probe` leaves."""
        with self._reading("the prefix"):
            for batch in obstore.list(self._small, chunk_size=10):
                if any(meta["path"] != _PROBE for meta in batch):
                    return False
        return True

    def probe(self) -> None:
        """Raise StoreError unless the server keeps the first of two objects that are created under one name.

        One that ignores `If-None-Match` would let two writers overwrite each other's commits without a word (100 of 330
        rows were lost in a trial). The object stays, so that later probes cost one request. Who mayn't write can't lose
        anything either, and passes.
        """
        for _ in range(2):
            try:
                obstore.put(self._small, _PROBE, b"probe of conditional writes\n", mode="create", use_multipart=False)
            except (TakenError, PreconditionError):
                return
            except (BaseError, OSError) as exc:
                known = remote_failure("can't write to", str(exc), self.location)
                if known is not None and known.code == "access-denied":
                    return
                if known is not None:
                    raise known from exc
                raise StoreError(
                    f"can't write to {self.location.uri}: {self._reason(exc)}", code="write-failed"
                ) from exc
        raise StoreError(
            f"{self.location.uri}: this server ignores If-None-Match, so writers would overwrite each other unnoticed",
            code="no-conditional-put",
            hint="use one that honours it (S3, GCS, Azure, MinIO, SeaweedFS, Ceph), or a local directory",
        )

    # --- the lease's one mutable object ----------------------------------------------------------------------------

    def read_tagged(self, path: str) -> tuple[bytes, str] | None:
        """An object that changes, and its ETag; None when there is none."""
        try:
            with self._reading(path):
                found = obstore.get(self._small, path)
                return bytes(found.bytes()), str(found.meta["e_tag"])
        except NotFoundError:
            return None

    def write_tagged(self, path: str, data: bytes, tag: str | None) -> str | None:
        """Write an object that changes, if its ETag still is `tag` (None: if it isn't there).

        Returns the new ETag, None when somebody else was faster.
        """
        mode: Any = "create" if tag is None else {"e_tag": tag}
        try:
            return str(obstore.put(self._small, path, data, mode=mode, use_multipart=False)["e_tag"])
        except (TakenError, PreconditionError, FileNotFoundError):
            return None
        except (BaseError, OSError) as exc:
            known = remote_failure("can't write to", str(exc), self.location)
            if known is not None:
                raise known from exc
            raise StoreError(f"can't write {path}: {self._reason(exc)}", code="write-failed") from exc


_PROBE = "probe"
_CLOCK = "clock"


def objects_at(location: Location) -> Objects:
    """The objects of the store at a location."""
    return LocalObjects(location.root) if location.root is not None else RemoteObjects(location)
