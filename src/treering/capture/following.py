"""Follow files that grow: what is appended is captured within half a second, until somebody says stop.

A file that was cut off or replaced is read from its beginning; of one that was replaced, the end of the old one first. New files
of a glob join in. What lies in a file is taken once it ends with a line end. Where it stopped is noted, so that the next
`follow_files`, or `import_file`, goes on there, after a kill too. Looks at files twice a second rather than asking the system
for word of changes: that works on network file systems too, and costs a `stat` a file.
"""

from __future__ import annotations

import codecs
import os
import select
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import IO, Any

from treering.capture.chunks import is_value, members_of
from treering.capture.importer import AUTO, FileImport, FileSummary, ImportJob, ImportSummary
from treering.capture.sources import (
    Piece,
    Source,
    compression_of,
    expand,
    has_wildcards,
    name_of,
    opened,
    reading,
    shape_of,
)
from treering.errors import InvalidRecordError, NotFoundError, StoreError, UsageError
from treering.schema.strict_json import MOST_BYTES
from treering.store.corpus import BaseCorpus

__all__ = ["follow_files"]

#: How often files are looked at; what a line waits at most before it is on disk.
_POLL_S = 0.5
_READ = 1 << 20  # bytes of one file at a time, so that every file gets its turn
_CHECKED = 256  # bytes before where a file was left: if they are others now, it was written anew
#: A file that brought nothing for so long has what its format holds back stored: a conversation that nobody closes.
_QUIET_S = 120.0


def follow_files(
    corpus: BaseCorpus,
    source: Source | Sequence[Source],
    *,
    format: str = AUTO,  # noqa: A002
    redact: bool | Sequence[str] | None = None,
    stop: threading.Event | None = None,
    progress: Callable[[int], None] | None = None,
) -> ImportSummary:
    """Capture what local files hold and what is appended to them, until `stop` is set; see `Corpus.capture_file`.

    A stream is followed to its end. Files that can't grow (compressed ones, Parquet, JSON that is one document) are captured
    once. Everything that was read is stored when this returns. Raises as `import_file` does, and UsageError for a URL.
    """
    stop = stop or threading.Event()
    given: list[Any] = [source] if isinstance(source, str | os.PathLike) or hasattr(source, "read") else list(source)
    patterns = [os.fspath(one) for one in given if isinstance(one, str | os.PathLike)]
    streams = [one for one in given if not isinstance(one, str | os.PathLike)]
    if remote := [one for one in patterns if "://" in one]:
        raise UsageError(
            f"{remote[0]} can't be followed: only local files grow",
            code="bad-follow",
            hint="capture it again from time to time",
        )
    if len(streams) > 1 or (streams and patterns):
        raise UsageError("a stream is followed alone", code="bad-follow", hint="one command for each")
    with ImportJob(corpus, format=format, redact=redact, progress=progress) as job:
        if streams:
            _follow_stream(job, streams[0], stop)
        else:
            _Following(job, patterns).run(stop)
    return job.summary()


class _Following:
    """Local files that are followed, and where each was left."""

    def __init__(self, job: ImportJob, patterns: Sequence[str]) -> None:
        self._job = job
        self._patterns = patterns
        self._tails: dict[str, _Tail | None] = {}  # None: captured once, or under the name it had before
        self._left: dict[tuple[int, int], bytes] = {}  # files that were replaced: how they begin
        missing = [one for one in patterns if not has_wildcards(one) and not os.path.exists(one)]
        if missing:
            raise NotFoundError(f"there is no file {missing[0]}", code="no-file")

    def run(self, stop: threading.Event) -> None:
        """Until `stop`; a last look takes what was there when it was set."""
        try:
            while True:
                last = stop.is_set()
                self._look_for_files()
                news = False
                for tail in self._growing():
                    with self._alone(tail.path):
                        news |= tail.read_on()
                self._job.take()
                if last and not news:
                    break
                if not news:
                    stop.wait(_POLL_S)
            for tail in self._growing():
                with self._alone(tail.path):
                    tail.finish()
            self._job.settle()
        finally:
            for tail in self._growing():
                tail.close()

    @contextmanager
    def _alone(self, path: str) -> Iterator[None]:
        """What is wrong with one file ends that file's following; of the only one it is an error."""
        try:
            yield
        except (UsageError, InvalidRecordError, StoreError) as exc:
            if (isinstance(exc, StoreError) and exc.code != "read-failed") or not self._is_of_many(path):
                raise
            summary = next((one for one in reversed(self._job.files) if one.source == path), None)
            if summary is None:
                summary = FileSummary(path)
                self._job.files.append(summary)
            summary.error = exc
            if (tail := self._tails.get(path)) is not None:
                tail.close()
            self._tails[path] = None

    def _is_of_many(self, path: str) -> bool:
        return self._patterns != [path]

    def _growing(self) -> list[_Tail]:
        return [tail for tail in self._tails.values() if tail is not None]

    def _look_for_files(self) -> None:
        for pattern in self._patterns:
            with suppress(NotFoundError):  # a glob that matches nothing yet
                for path in expand(pattern):
                    if isinstance(path, str) and path not in self._tails:
                        with suppress(FileNotFoundError), self._alone(path):
                            self._tails[path] = None if self._is_renamed(path) else self._begin(path)

    def _is_renamed(self, path: str) -> bool:
        """Whether a file was read under another name. An inode alone doesn't tell: another file may get it later."""
        key = _key(os.stat(path))
        if any(tail.key == key for tail in self._growing()):
            return True
        head = self._left.get(key)
        if head is None:
            return False
        with open(path, "rb") as file:
            return file.read(len(head)) == head

    def _begin(self, path: str) -> _Tail | None:
        if _can_grow(self._job, path):
            return _Tail(self._job, path, self._left)
        self._job.read(path)
        return None


class _Tail:
    """One file that grows."""

    def __init__(self, job: ImportJob, path: str, left: dict[tuple[int, int], bytes]) -> None:
        self._job = job
        self.path = path
        self._left = left
        self._summary = FileSummary(path)
        job.files.append(self._summary)
        self.key: tuple[int, int] | None = None  # device and inode of the file that is open
        self._file: IO[bytes] | None = None
        self._going: FileImport | None = None
        self._is_first = True  # nothing under this name was read by this process
        self._finished_at: int | None = None  # what was held back was taken, at this size
        self._begin()

    def _begin(self) -> None:
        self._rest = bytearray()  # a line without its end
        self._is_long = False  # that line is too long, and its beginning was taken
        self._offset = 0
        self._line = 0
        self._behind = b""  # the last bytes before the offset
        self._news = time.monotonic()

    def read_on(self) -> bool:
        """Take what has come; whether anything has. Raises UsageError, StoreError."""
        with reading(self.path):
            if self._file is None and not self._open():
                return False
            assert self._file is not None
            size = os.fstat(self._file.fileno()).st_size
            if size < self._offset or (size > self._offset and self._was_written_anew()):
                self._start_over()
                return True
            if size > self._offset:
                if self._finished_at is not None:
                    self._go_on_after_quiet()
                self._take(self._file.read(_READ))
                return True
            if self._was_replaced():
                self._leave()
                return True
        if self._finished_at is None and time.monotonic() - self._news > _QUIET_S:
            self.finish()
            self._finished_at = size
        return False

    def _open(self) -> bool:
        try:
            self._file = open(self.path, "rb", buffering=0)  # noqa: SIM115  (kept open)
        except FileNotFoundError:
            return False
        self.key = _key(os.fstat(self._file.fileno()))
        self._begin()
        self._start(resume=self._is_first)
        self._is_first = False
        return True

    def _start(self, *, resume: bool) -> None:
        assert self._file is not None
        size = os.fstat(self._file.fileno()).st_size
        self._going = FileImport(
            self._job, self.path, self._summary, resume=resume, size=size, inode=self.key[1] if self.key else None
        )
        self._finished_at = None
        self._job.keep_up(self._going)

    def _was_written_anew(self) -> bool:
        assert self._file is not None
        return os.pread(self._file.fileno(), len(self._behind), self._offset - len(self._behind)) != self._behind

    def _was_replaced(self) -> bool:
        try:
            return _key(os.stat(self.path)) != self.key
        except FileNotFoundError:
            return False  # the next one isn't there yet; whoever still writes into this one is heard

    def _take(self, data: bytes) -> None:
        self._news = time.monotonic()
        self._offset += len(data)
        self._behind = (self._behind + data)[-_CHECKED:]
        lines = (bytes(self._rest) + data).split(b"\n")
        self._rest = bytearray(lines.pop())
        for line in lines:
            if self._is_long:  # the rest of it
                self._is_long = False
            elif not self._push(line + b"\n"):
                self._start_over()
                return
        if len(self._rest) > MOST_BYTES:
            if not self._is_long:
                self._is_long = self._push(bytes(self._rest[: MOST_BYTES + 1]))
            self._rest.clear()

    def _push(self, line: bytes) -> bool:
        self._line += 1
        if self._line == 1:
            line = line.removeprefix(codecs.BOM_UTF8)
        assert self._going is not None
        is_same = self._going.push(Piece(self._line, line))
        if self._going.is_full:
            self._job.take()
        return is_same

    def _start_over(self) -> None:
        """It was cut off or written anew, or isn't the file that an earlier import began with."""
        self.finish()
        assert self._file is not None
        self._file.seek(0)
        self._begin()
        self._summary.started_over = True
        self._start(resume=False)

    def _go_on_after_quiet(self) -> None:
        """What was held back is stored; whoever holds it back sees all that came before again, and leaves out what is stored."""
        assert self._going is not None
        if self._going.is_spent:
            assert self._file is not None
            self._job.settle()
            self._file.seek(0)
            self._begin()
            self._start(resume=True)
        self._finished_at = None

    def _leave(self) -> None:
        """The file was replaced: what is left of it is a line even without an end, and what was held back is complete."""
        assert self._file is not None
        assert self.key is not None
        if self._rest and not self._is_long:
            self._push(bytes(self._rest))
        self.finish()
        if self._going is not None:
            self._job.let_go(self._going)  # whoever follows next may find it under another name
        self._left[self.key] = os.pread(self._file.fileno(), min(_CHECKED, self._offset), 0)
        self.close()

    def finish(self) -> None:
        """Take what the format holds back; a line without its end is left for the next time."""
        if self._going is not None and self._finished_at is None:
            self._going.end()

    def close(self) -> None:
        """Let go of the file."""
        if self._file is not None:
            self._file.close()
        self._file, self.key = None, None


def _follow_stream(job: ImportJob, stream: IO[bytes], stop: threading.Event) -> None:
    """A stream to its end, or until `stop`: lines are on disk half a second after they came."""
    try:
        descriptor = stream.fileno()
    except OSError:  # io.UnsupportedOperation: it lies in memory
        job.read(stream)
        return
    summary = FileSummary(name_of(stream))
    job.files.append(summary)
    going = FileImport(job, stream, summary)
    rest, number, is_long = b"", 0, False
    while not stop.is_set():
        with reading(summary.source):
            if not select.select([descriptor], [], [], _POLL_S)[0]:
                job.take()
                continue
            data = os.read(descriptor, _READ)
        if not data:
            break
        *lines, rest = (rest + data).split(b"\n")
        for line in lines:
            if not is_long:
                number += 1
                going.push(Piece(number, line + b"\n"))
                if going.is_full:
                    job.take()
            is_long = False
        if len(rest) > MOST_BYTES:
            if not is_long:
                number += 1
                going.push(Piece(number, rest[: MOST_BYTES + 1]))
            rest, is_long = b"", True
        job.take()
    if rest and not is_long:
        going.push(Piece(number + 1, rest))
    going.end()


def _can_grow(job: ImportJob, path: str) -> bool:
    """Whether a file holds lines as they are, so that appending to it means something."""
    if compression_of(path) is not None:
        return False
    _, stream = opened(path)
    with stream:
        known = is_value(job.asked, job.corpus.record_type)
        # A line that is whole may be followed by others, whether or not they are there.
        shape, _ = shape_of(path, stream, members_of(job.asked), lambda value, goes_on: known(value, True))
        return shape == "lines"


def _key(found: os.stat_result) -> tuple[int, int]:
    return found.st_dev, found.st_ino
