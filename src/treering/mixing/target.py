"""Where an export goes: files that appear whole, under their final names, or not at all.

Everything is written beside the final name (for a URL: on this host's disk) and moved there at the end. Knows no formats and no
records.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import pyarrow as pa

from treering.errors import AlreadyExistsError, StoreError, TreeringError, UsageError
from treering.formats.writers import WrittenFile

__all__ = ["Sink", "Target", "target_of"]

_COMPRESSED = {".gz": "gzip", ".zst": "zstd"}
_UNKNOWN = (".bz2", ".xz", ".lz4", ".br", ".zip")
# Where an object is there once its upload has been completed, and not before. Elsewhere it is uploaded under another name.
_APPEARS_WHOLE = frozenset({"s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "adl", "oss", "memory"})
_LEFT_BY_DATASETS = r"cache-[0-9a-f]+[\w.-]*\.arrow"  # what `datasets` derives from a folder it keeps there


class Sink:
    """A file that is being written: compressed as its name says, counted and hashed as it lies there."""

    def __init__(self, file: IO[bytes], shown: str, codec: str | None = None, *, durable: bool = False) -> None:
        self._file = file
        self._shown = shown
        self._durable = durable  # a file of ours, to be synced and closed
        self._sha256 = hashlib.sha256()
        self.bytes = 0
        self._out: Any = pa.CompressedOutputStream(pa.PythonFile(_Tap(self), mode="w"), codec) if codec else None

    def write(self, data: bytes) -> None:
        """Append bytes of the content. Raises StoreError."""
        with _translated(self._shown):
            if self._out is None:
                self.pass_on(data)
            elif data:
                self._out.write(data)

    def pass_on(self, data: bytes) -> None:
        """Append bytes as they are to lie there."""
        self._file.write(data)
        self._sha256.update(data)
        self.bytes += len(data)

    def close(self) -> None:
        """Complete the file, and have it on the disk. Raises StoreError."""
        with _translated(self._shown):
            if self._out is not None:
                self._out.close()
            self._file.flush()
            if self._durable:
                os.fsync(self._file.fileno())
                self._file.close()

    def drop(self) -> None:
        """Let go of a file of ours, complete or not."""
        if self._durable and not self._file.closed:
            self._file.close()

    def written(self, name: str, rows: int) -> WrittenFile:
        """What there is to say of it."""
        return WrittenFile(name, rows, self.bytes, self._sha256.hexdigest())


class _Tap:
    """The compressed bytes, on their way into a sink."""

    def __init__(self, sink: Sink) -> None:
        self._sink = sink
        self.closed = False

    def write(self, data: Any) -> int:
        piece = bytes(data)
        self._sink.pass_on(piece)
        return len(piece)

    def tell(self) -> int:
        return self._sink.bytes

    def flush(self) -> None: ...

    def close(self) -> None:
        self.closed = True


class Target(ABC):
    """Takes the files of one export, in order. Nothing is there before `commit`; `abort` leaves nothing behind."""

    @abstractmethod
    def begin(self) -> Sink:
        """The next file."""

    @abstractmethod
    def name(self, number: int, files: int) -> str:
        """What file `number` of so many is called, without folders."""

    @abstractmethod
    def commit(self, beside: dict[str, bytes]) -> list[str]:
        """Put all of it in its place; the paths or URLs of the files, and of a folder just its own."""

    @abstractmethod
    def abort(self) -> None:
        """Remove what was written."""


class _Stream(Target):
    """A stream such as stdout: what was written is gone, whatever comes after."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream

    def begin(self) -> Sink:
        return Sink(self._stream, getattr(self._stream, "name", "the stream"))

    def name(self, number: int, files: int) -> str:
        return "-"

    def commit(self, beside: dict[str, bytes]) -> list[str]:
        return ["-"]

    def abort(self) -> None: ...


class _Staged(Target):
    """Files (or a folder of them) that are written elsewhere and then moved."""

    def __init__(self, place: _Place, suffix: str, *, folder: bool, packed: bool, sharded: bool, force: bool) -> None:
        self._place = place
        self._folder = folder
        self._sharded = sharded or folder
        self._force = force
        base = place.name
        self._compression = next((ending for ending in _COMPRESSED if base.endswith(ending)), "")
        unknown = next((ending for ending in _UNKNOWN if base.endswith(ending)), "")
        if unknown or (packed and self._compression):
            raise UsageError(
                f"{base}: "
                + (f"can't compress to {unknown}" if unknown else "files of this format are compressed inside"),
                code="bad-path",
                hint=f"it is the name of a folder: end it without {unknown or self._compression}"
                if folder
                else f"end the name with {suffix}" + ("" if packed else f", {suffix}.gz or {suffix}.zst"),
            )
        stem, dot, ending = base.removesuffix(self._compression).rpartition(".")
        self._stem, self._ending = ("data", suffix) if folder else (stem, dot + ending) if dot else (ending, "")
        self._sinks: list[Sink] = []
        self._check_free()
        self._stage = place.stage()

    def _check_free(self) -> None:
        """Raise unless the final names are free, or may be taken."""
        taken = self._taken()
        if taken and not self._force:
            raise AlreadyExistsError(
                f"{taken[0]} is there already" + (f", and {len(taken) - 1} more" if len(taken) > 1 else ""),
                code="file-exists",
                hint="choose another name, or let it be replaced: --force (force=True)",
            )

    def _taken(self) -> list[str]:
        place = self._place
        if self._folder:
            inside = place.list()
            if inside is None:
                return [place.shown] if place.exists() else []
            pattern = re.compile(rf"data-\d+-of-\d+{re.escape(self._ending)}|[a-z_]+\.json|{_LEFT_BY_DATASETS}")
            strange = sorted(name for name in inside if not pattern.fullmatch(name))
            if strange and self._force:  # nobody means to lose a home directory by --force
                raise UsageError(
                    f"{place.shown} holds more than a dataset: {', '.join(strange[:3])}",
                    code="not-a-dataset",
                    hint="choose another folder, or empty this one yourself",
                )
            return [place.shown] if inside else []
        if place.is_folder():
            raise UsageError(f"{place.shown} is a folder, not a file", code="bad-path", hint="name a file in it")
        if self._sharded:
            pattern = self._shard_pattern()
            return sorted(place.sibling(name) for name in place.neighbours() if pattern.fullmatch(name))
        return [place.shown] if place.exists() else []

    def _shard_pattern(self) -> re.Pattern[str]:
        return re.compile(rf"{re.escape(self._stem)}-\d{{5}}-of-\d{{5}}{re.escape(self._ending + self._compression)}")

    def begin(self) -> Sink:
        with _translated(self._place.shown):
            file = open(self._stage / str(len(self._sinks)), "wb")  # noqa: SIM115  (closed with its sink)
        self._sinks.append(Sink(file, self._place.shown, _COMPRESSED.get(self._compression), durable=True))
        return self._sinks[-1]

    def name(self, number: int, files: int) -> str:
        if not self._sharded:
            return self._place.name
        return f"{self._stem}-{number:05d}-of-{files:05d}{self._ending}{self._compression}"

    def commit(self, beside: dict[str, bytes]) -> list[str]:
        with _translated(self._place.shown):
            return self._move(beside)

    def _move(self, beside: dict[str, bytes]) -> list[str]:
        names = [self.name(number, len(self._sinks)) for number in range(len(self._sinks))]
        staged = [self._stage / str(number) for number in range(len(self._sinks))]
        self._check_free()  # somebody may have been quicker
        if self._folder:
            files = list(zip(staged, names, strict=True))
            for name, content in beside.items():
                (self._stage / name).write_bytes(content)
                files.append((self._stage / name, name))
            self._place.put_folder(self._stage, files)
            return [self._place.shown]
        stale = [name for name in self._taken() if name not in {self._place.sibling(name) for name in names}]
        for path, name in zip(staged, names, strict=True):
            self._place.put(path, name)
        for old in stale:  # shards of an earlier export with another number of them
            self._place.remove(old)
        shutil.rmtree(self._stage, ignore_errors=True)
        return [self._place.sibling(name) for name in names]

    def abort(self) -> None:
        for sink in self._sinks:
            sink.drop()
        shutil.rmtree(self._stage, ignore_errors=True)


class _Place(ABC):
    """A final name, on a disk or elsewhere."""

    name: str  # without folders
    shown: str  # as errors and summaries call it

    @abstractmethod
    def stage(self) -> Path:
        """An empty directory from which files can be moved to the place."""

    @abstractmethod
    def exists(self) -> bool: ...

    @abstractmethod
    def is_folder(self) -> bool: ...

    @abstractmethod
    def list(self) -> Sequence[str] | None:
        """Names of what lies in it, or None when it isn't a folder."""

    @abstractmethod
    def neighbours(self) -> Sequence[str]:
        """Names of what lies beside it."""

    @abstractmethod
    def sibling(self, name: str) -> str:
        """The path or URL of a name beside it."""

    @abstractmethod
    def put(self, staged: Path, name: str) -> None:
        """Have a staged file appear under a name beside it, whole, in the place of what is there."""

    @abstractmethod
    def put_folder(self, stage: Path, files: Sequence[tuple[Path, str]]) -> None:
        """Have staged files appear in a folder of its name, in the place of what is there; the last ones last."""

    @abstractmethod
    def remove(self, path: str) -> None: ...


class _Disk(_Place):
    def __init__(self, path: Path) -> None:
        self._path = path
        self.name = path.name
        self.shown = str(path)

    def _beside(self, ending: str) -> Path:
        return self._path.parent / f".{self.name}.{os.getpid()}.{ending}"

    def stage(self) -> Path:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        return Path(tempfile.mkdtemp(prefix=f".{self.name}.", suffix=".tmp", dir=self._path.parent))

    def exists(self) -> bool:
        return os.path.lexists(self._path)

    def is_folder(self) -> bool:
        return self._path.is_dir()

    def list(self) -> Sequence[str] | None:
        return os.listdir(self._path) if self._path.is_dir() else None

    def neighbours(self) -> Sequence[str]:
        return os.listdir(self._path.parent) if self._path.parent.is_dir() else []

    def sibling(self, name: str) -> str:
        return str(self._path.parent / name)

    def put(self, staged: Path, name: str) -> None:
        os.replace(staged, self._path.parent / name)
        _sync(self._path.parent)

    def put_folder(self, stage: Path, files: Sequence[tuple[Path, str]]) -> None:
        for staged, name in files:
            os.replace(staged, stage / name)
        stage.chmod(0o777 & ~_umask())  # a temporary directory is its maker's alone
        old = self._beside("old")
        if self._path.is_dir():
            os.replace(self._path, old)
        os.replace(stage, self._path)
        _sync(self._path.parent)
        shutil.rmtree(old, ignore_errors=True)

    def remove(self, path: str) -> None:
        os.unlink(path)


class _Url(_Place):
    def __init__(self, url: str) -> None:
        import fsspec

        self._fs, path = fsspec.url_to_fs(url)
        self._path = path.rstrip("/")
        self._folder, _, self.name = self._path.rpartition("/")
        self.shown = url.rstrip("/")
        self._url_folder = self.shown.rpartition("/")[0]
        protocols = self._fs.protocol
        protocol = {protocols} if isinstance(protocols, str) else set(protocols)
        self._appears_whole = bool(protocol & _APPEARS_WHOLE)

    def stage(self) -> Path:
        return Path(tempfile.mkdtemp(prefix="treering-export-"))

    def exists(self) -> bool:
        return bool(self._fs.exists(self._path))

    def is_folder(self) -> bool:
        return bool(self._fs.isdir(self._path))

    def list(self) -> Sequence[str] | None:
        return self._names(self._path) if self._fs.isdir(self._path) else None

    def neighbours(self) -> Sequence[str]:
        return self._names(self._folder) if self._fs.isdir(self._folder) else []

    def _names(self, folder: str) -> Sequence[str]:
        return [path.rstrip("/").rpartition("/")[2] for path in self._fs.ls(folder, detail=False, refresh=True)]

    def sibling(self, name: str) -> str:
        return f"{self._url_folder}/{name}"

    def put(self, staged: Path, name: str) -> None:
        self._upload(staged, f"{self._folder}/{name}")

    def _upload(self, staged: Path, path: str) -> None:
        if self._appears_whole:
            self._fs.put_file(str(staged), path)
            return
        folder, _, name = path.rpartition("/")
        self._fs.makedirs(folder, exist_ok=True)
        self._fs.put_file(str(staged), f"{folder}/.{name}.tmp")
        self._fs.mv(f"{folder}/.{name}.tmp", path)

    def put_folder(self, stage: Path, files: Sequence[tuple[Path, str]]) -> None:
        if self._fs.isdir(self._path):
            self._fs.rm(self._path, recursive=True)
        self._fs.makedirs(self._path, exist_ok=True)
        for staged, name in files:
            self._upload(staged, f"{self._path}/{name}")
        shutil.rmtree(stage, ignore_errors=True)

    def remove(self, path: str) -> None:
        self._fs.rm_file(f"{self._folder}/{path.rpartition('/')[2]}")


@contextmanager
def target_of(
    to: str | os.PathLike[str] | IO[bytes], suffix: str, *, folder: bool, packed: bool, sharded: bool, force: bool
) -> Iterator[Target]:
    """What takes the files of an export to `to`: a path, any fsspec URL, or a binary stream; aborted unless committed.

    suffix: of the format's files. folder, packed: see `Exporter`. Raises AlreadyExistsError for a name that is taken, unless
    `force`; UsageError for one that can't be written to; StoreError when writing fails.
    """
    if not isinstance(to, str | os.PathLike):
        if not hasattr(to, "write"):
            raise UsageError(f"{to!r} is neither a path nor a binary stream", code="bad-path")
        if folder or sharded:
            raise UsageError(
                "one stream can't hold " + ("a folder" if folder else "several files"),
                code="bad-path",
                hint="name a place for it: -o PATH",
            )
        yield _Stream(to)
        return
    name = os.fspath(to)
    with _translated(name):
        place = _place(name)
        target = _Staged(place, suffix, folder=folder, packed=packed, sharded=sharded, force=force)
    try:
        yield target
    finally:
        target.abort()


def _place(name: str) -> _Place:
    name = name.removeprefix("file://")
    if "://" in name:
        return _Url(name)
    if not Path(name).name:
        raise UsageError(f"{name!r} isn't the name of a file", code="bad-path")
    return _Disk(Path(name))


@contextmanager
def _translated(name: str) -> Iterator[None]:
    try:
        yield
    except BrokenPipeError:  # whoever reads us has seen enough
        raise
    except (OSError, ImportError, ValueError, pa.ArrowException) as exc:
        if isinstance(exc, TreeringError):
            raise
        reason = getattr(exc, "strerror", None) or exc
        raise StoreError(f"can't write {name}: {reason}", code="write-failed") from exc


def _sync(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _umask() -> int:
    current = os.umask(0o022)
    os.umask(current)
    return current
