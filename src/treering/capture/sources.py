"""Where imports come from: paths, URLs, globs and streams, compressed or not; as lines, elements of a document, or rows.

Any fsspec URL; gz, bz2 and xz by fsspec, zst by zstandard. Never more than one value (at most 64 MiB), or one batch of rows, is
in memory. Does not know formats or records.
"""

from __future__ import annotations

import codecs
import csv
import glob
import io
import lzma
import os
import re
import stat
import zlib
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from itertools import count
from typing import IO, TYPE_CHECKING, Any, Literal, NamedTuple, TypeAlias

from treering.errors import NotFoundError, StoreError
from treering.formats.cutting import Cutter, is_document
from treering.schema.strict_json import MOST_BYTES

if TYPE_CHECKING:
    import pyarrow.parquet as pq

__all__ = [
    "UNREAD",
    "Piece",
    "Shape",
    "Source",
    "beginning",
    "compression_of",
    "expand",
    "has_wildcards",
    "inode_of",
    "name_of",
    "opened",
    "origin_of",
    "parquet_file",
    "pieces",
    "read_bytes",
    "read_lines",
    "reading",
    "shape_of",
    "without_nulls",
]

Source: TypeAlias = str | IO[bytes]
#: How a file holds its values: a line each, as elements of JSON that is one document, as rows of CSV or of Parquet.
Shape = Literal["lines", "document", "csv", "parquet"]

_LONGEST = MOST_BYTES + 1  # of a longer line no more is read than what shows that it is too long
_CHUNK = 1 << 18
_HEAD = 1 << 20  # bytes that tell lines from a document: two lines of most files …
_HEAD_LINE = 8 << 20  # … and where the first is longer, so much of it: no exporter sends more at a time …
_PACKED_HEAD = 1 << 16  # … of a compressed one fewer, that what comes before a damage is taken
_ROWS = 1_024  # of Parquet, as objects, at a time
_GLOB = re.compile(r"[*?\[]")
_COMPRESSED = (".gz", ".bz2", ".xz", ".lzma", ".zip", ".zst", ".zstd")


class _Unread:
    """Stands where a value hasn't been parsed."""


UNREAD = _Unread()


class Piece(NamedTuple):
    """One value of a file: its number from 1 (line, element, row), its text, and itself where reading it parsed it."""

    line: int
    text: bytes
    value: Any = UNREAD


# --- which, and what they are called -----------------------------------------------------------------------------


def expand(given: Iterable[Source] | Source) -> list[Source]:
    """The files that paths, URLs and globs name, each once, those of a glob in order of their names; streams as they are.

    Raises NotFoundError for a glob that matches nothing.
    """
    several: Iterable[Any] = [given] if isinstance(given, str | os.PathLike) or hasattr(given, "read") else given
    found: dict[Any, Source] = {}
    for one in several:
        if isinstance(one, str | os.PathLike):
            found.update((path, path) for path in _matches(os.fspath(one)))
        else:
            found[id(one)] = one
    return list(found.values())


def _matches(pattern: str) -> list[str]:
    if not has_wildcards(pattern):
        return [pattern]
    if "://" not in pattern:
        matches = sorted(path for path in glob.glob(pattern, recursive=True) if not os.path.isdir(path))
    elif "?" in pattern and pattern.startswith(("http://", "https://")):
        return [pattern]  # a query
    else:
        import fsspec

        try:
            files = fsspec.open_files(pattern, "rb", compression=None)
            matches = sorted(file.fs.unstrip_protocol(file.path) for file in files)
        except (OSError, ValueError, ImportError) as exc:
            raise StoreError(f"can't look for {pattern}: {exc}", code="read-failed") from exc
    if not matches:
        raise NotFoundError(f"no file matches {pattern}", code="no-file")
    return matches


def has_wildcards(path: str) -> bool:
    """Whether it is a glob, and not just a file with such a name."""
    return _GLOB.search(path) is not None and ("://" in path or not os.path.exists(path))


def name_of(source: Source) -> str:
    """What a source is called."""
    return source if isinstance(source, str) else str(getattr(source, "name", "<stream>"))


def origin_of(source: Source) -> str | None:
    """What ids of a file's records are made from, however its path is spelt; None for a stream: its records get fresh ones."""
    if not isinstance(source, str):
        return None
    path = source
    for scheme in ("file://", "local://"):
        path = path.removeprefix(scheme)
    if "://" in path:
        return source
    try:
        return os.path.realpath(path)
    except ValueError:  # no file has such a name, and who opens it says so
        return path


def inode_of(origin: str) -> int | None:
    """What a local file goes by under any name; None for anything else, and where there is no such file."""
    try:
        return os.stat(origin).st_ino or None
    except (OSError, ValueError):
        return None


def compression_of(source: str) -> str | None:
    """The ending that says how a file is compressed; None when none does."""
    return next((ending for ending in _COMPRESSED if source.lower().endswith(ending)), None)


# --- bytes -------------------------------------------------------------------------------------------------------


def opened(source: Source) -> tuple[str, IO[bytes]]:
    """What a source is called, and its bytes, decompressed.

    Raises NotFoundError when there is no such file, StoreError when it can't be read.
    """
    if not isinstance(source, str):
        return name_of(source), source
    is_zstd = compression_of(source) in (".zst", ".zstd")
    try:
        if is_pipe(source):  # it can't be sought in, which fsspec's files are first of all
            return source, open(source, "rb")
        if _is_plain(source):  # fsspec takes ten times as long to open it, and twice as long for a line
            return source, open(source, "rb", _CHUNK)
        import fsspec

        file = fsspec.open(source, "rb", compression=None if is_zstd else "infer").open()
    except IsADirectoryError as exc:
        raise NotFoundError(f"{source} is a directory, not a file", code="no-file") from exc
    except (FileNotFoundError, NotADirectoryError) as exc:
        if (cause := _unreached(exc)) is not None:
            raise StoreError(f"can't read {source}: {cause}", code="read-failed") from exc
        raise NotFoundError(f"there is no file {source}", code="no-file") from exc
    except (OSError, ValueError, ImportError) as exc:
        raise StoreError(f"can't read {source}: {exc}", code="read-failed") from exc
    return source, io.BufferedReader(_Zstd(file, source), _CHUNK) if is_zstd else file


def _is_plain(source: str) -> bool:
    """Whether a path names a file as the system does: no URL, nothing compressed, no home folder to be filled in."""
    return "::" not in source and "://" not in source and source[:1] != "~" and compression_of(source) is None


def is_pipe(source: Source) -> bool:
    """Whether a path names a pipe: `mkfifo`, or what a shell makes of `<(…)`."""
    try:
        return isinstance(source, str) and stat.S_ISFIFO(os.stat(source).st_mode)
    except (OSError, ValueError):
        return False


def _unreached(exc: OSError) -> BaseException | None:
    """Why a server couldn't be asked; None when it said that there is no such file. fsspec's HTTP says that of either."""
    cause = exc.__cause__
    if cause is None or isinstance(cause, FileNotFoundError):
        return None
    status = getattr(cause, "status", None)
    if status is not None:
        return None if status in (404, 410) else cause
    return cause if isinstance(cause, OSError) or type(cause).__module__.startswith("aiohttp") else None


class _Zstd(io.RawIOBase):
    """A zst file, decompressed: all of its frames, and one that is cut short is an error.

    zstandard's own reader ends in silence where a frame is cut short.
    """

    def __init__(self, file: IO[bytes], name: str) -> None:
        try:
            import zstandard
        except ImportError as exc:
            file.close()
            raise StoreError(
                f"can't read {name}: zst needs zstandard", code="missing-extra", hint="pip install 'treering[zst]'"
            ) from exc
        self._file = file
        self._zstandard = zstandard
        self._frame: Any = None
        self._rest = b""  # compressed
        self._ready = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._ready:
            data = self._rest or self._file.read(_CHUNK)
            self._rest = b""
            if not data:
                if self._frame is not None:
                    raise EOFError("the zst data ends in the middle of a frame")
                return 0
            if self._frame is None:
                self._frame = self._zstandard.ZstdDecompressor().decompressobj()
            try:
                self._ready = memoryview(self._frame.decompress(data))
            except self._zstandard.ZstdError as exc:
                raise OSError(f"not zst data: {exc}") from exc
            if self._frame.eof:
                self._rest, self._frame = self._frame.unused_data, None
        size = min(len(buffer), len(self._ready))
        buffer[:size] = self._ready[:size]
        self._ready = self._ready[size:]
        return size

    def close(self) -> None:
        self._file.close()
        super().close()


def read_lines(source: Source) -> Iterator[bytes]:
    """The lines of a file (a path, any fsspec URL, or a binary stream), decompressed. Raises as `opened` does."""
    name, stream = opened(source)
    with stream:
        yield from _lines(stream, name)


def read_bytes(source: Source) -> bytes:
    """All of a file, decompressed. Raises as `opened` does."""
    name, stream = opened(source)
    with stream, reading(name):
        return stream.read()


@contextmanager
def reading(name: str) -> Iterator[None]:
    """What goes wrong while a file is read, as errors of ours."""
    try:
        yield
    except (OSError, EOFError, zlib.error, lzma.LZMAError) as exc:
        raise StoreError(f"can't read {name}: {exc}", code="read-failed") from exc


def _lines(stream: IO[bytes], name: str) -> Iterator[bytes]:
    with reading(name):
        line = stream.readline(_LONGEST).removeprefix(codecs.BOM_UTF8)
        while line:
            yield line
            while len(line) >= _LONGEST and not line.endswith(b"\n"):
                line = stream.readline(_LONGEST)  # too long for a record: the rest of it is passed over
            line = stream.readline(_LONGEST)


# --- values ------------------------------------------------------------------------------------------------------


class _Ahead(io.RawIOBase):
    """A stream whose first bytes were read already."""

    def __init__(self, head: bytes, stream: IO[bytes]) -> None:
        self._head, self._stream = memoryview(head), stream

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data: Any = self._head[: len(buffer)] if self._head else self._stream.read(len(buffer))
        self._head = self._head[len(data) :] if self._head else self._head
        buffer[: len(data)] = data
        return len(data)


class _Begin(io.RawIOBase):
    """The first `size` bytes of a stream, whatever is written to its end meanwhile."""

    def __init__(self, stream: IO[bytes], size: int) -> None:
        self._stream, self._left = stream, size

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._stream.read(min(len(buffer), self._left))
        self._left -= len(data)
        buffer[: len(data)] = data
        return len(data)


def beginning(stream: IO[bytes], size: int) -> IO[bytes]:
    """The next `size` bytes of a stream and no more."""
    return io.BufferedReader(_Begin(stream, size), _CHUNK)


def shape_of(
    source: Source, stream: IO[bytes], members: Collection[str], is_value: Callable[[Any, bool], bool] | None = None
) -> tuple[Shape, IO[bytes]]:
    """How a file holds its values, by its first bytes and the ending of its name, and a stream that still begins with them.

    Of a pipe only what is there already is looked at. `members` and `is_value` as for `is_document`.
    """
    name = name_of(source).lower()
    is_seekable = stream.seekable() and compression_of(name) is None
    is_all = False
    with reading(name_of(source)):
        if is_seekable:
            at = stream.tell()
            head = stream.read(_HEAD)
            # An array, or Parquet, is known by its first bytes.
            if b"\n" not in head and head.removeprefix(codecs.BOM_UTF8).lstrip()[:1] == b"{":
                head += stream.readline(_HEAD_LINE) + stream.read(_CHUNK)
            is_all = not stream.read(1)
            stream.seek(at)
        elif isinstance(source, str):
            head = stream.read(_PACKED_HEAD)
            stream = io.BufferedReader(_Ahead(head, stream), _CHUNK)
        elif hasattr(stream, "peek"):
            head = stream.peek(_HEAD)  # waits for something, not for so much
        else:
            return "lines", stream
    if head[:4] == b"PAR1" and is_seekable:
        return "parquet", stream
    if name.removesuffix(compression_of(name) or "").endswith(".csv"):
        return "csv", stream
    is_one = is_document(head.removeprefix(codecs.BOM_UTF8), members, is_value, is_all=is_all)
    return ("document" if is_one else "lines"), stream


def pieces(source: Source, stream: IO[bytes], shape: Shape, members: Collection[str]) -> Iterator[Piece]:
    """The values of a file, in order; of lines also the empty ones. Raises StoreError when it can't be read on."""
    name = name_of(source)
    if shape == "parquet":
        return _rows(name, stream)
    if shape == "csv":
        return _cells(name, stream)
    if shape == "document":
        return _elements(name, stream, members)
    return map(Piece, count(1), _lines(stream, name))


def _elements(name: str, stream: IO[bytes], members: Collection[str]) -> Iterator[Piece]:
    cutter = Cutter(members)
    number = 0
    with reading(name):
        data = stream.read(_CHUNK).removeprefix(codecs.BOM_UTF8)
        try:
            while data:
                for text in cutter.feed(data):
                    number += 1
                    yield Piece(number, text)
                data = stream.read(_CHUNK)
            for text in cutter.finish():
                number += 1
                yield Piece(number, text)
        except ValueError as exc:
            raise StoreError(
                f"can't read {name} beyond element {number:,}: {exc}",
                code="read-failed",
                hint="it was taken for one JSON document, which may have been cut off; a value a line is read as far as it goes",
            ) from exc


def _cells(name: str, stream: IO[bytes]) -> Iterator[Piece]:
    """Rows as objects of text by the header's names; one with another number of cells as a list, which fits no format."""
    from pydantic_core import to_json

    csv.field_size_limit(MOST_BYTES)
    rows = csv.reader(io.TextIOWrapper(stream, "utf-8-sig", newline=""), strict=True)
    heads: list[str] | None = None
    first = 1
    with reading(name):
        try:
            for row in rows:
                number, first = first, rows.line_num + 1
                if heads is None:
                    heads = row
                elif any(cell.strip() for cell in row):
                    value: Any = dict(zip(heads, row, strict=True)) if len(row) == len(heads) else row
                    yield Piece(number, to_json(value), value)
        except (csv.Error, UnicodeDecodeError) as exc:
            raise StoreError(f"can't read {name} beyond line {first:,}: {exc}", code="read-failed") from exc


def parquet_file(name: str, stream: IO[bytes]) -> pq.ParquetFile:
    """A Parquet file that is open. Raises StoreError when it isn't one."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return pq.ParquetFile(stream)
    except (pa.ArrowException, OSError) as exc:
        reason = str(exc).partition("\n")[0][:200]
        raise StoreError(f"can't read {name} as Parquet: {reason}", code="read-failed") from exc


def _rows(name: str, stream: IO[bytes]) -> Iterator[Piece]:
    import pyarrow as pa
    from pydantic_core import to_json

    file = parquet_file(name, stream)
    number = 0
    try:
        for batch in file.iter_batches(_ROWS):
            for row in batch.to_pylist():
                number += 1
                value = without_nulls(row)
                yield Piece(number, to_json(value, bytes_mode="base64", inf_nan_mode="constants"), value)
    except (pa.ArrowException, OSError, ValueError, ArithmeticError) as exc:
        reason = str(exc).partition("\n")[0][:200]
        raise StoreError(f"can't read {name} beyond row {number:,}: {reason}", code="read-failed") from exc


def without_nulls(value: Any) -> Any:
    """Objects without their null members: Arrow has no other way to say that one is missing."""
    if isinstance(value, dict):
        return {key: without_nulls(item) for key, item in value.items() if item is not None}
    return [without_nulls(item) for item in value] if isinstance(value, list) else value
