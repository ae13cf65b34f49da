"""Records from files and streams of any format: read, turned into records, and captured as they come.

One pass, in bounded memory, whatever the file's size: `chunks` reads files and makes checked records of them, here or, of large
files, in workers; a recorder here stores those. What doesn't fit goes to quarantine with its file and line and never blocks the
rest. Does not know any format.
"""

from __future__ import annotations

import os
import stat
import time
from collections import Counter, deque
from collections.abc import Callable, Collection, Generator, Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from treering.capture.annotations import annotate_rows, unknown_ids
from treering.capture.chunks import AUTO, LATE_S, ROWS, Chunk, Chunker, Order, Reached, Share, together, unpack
from treering.capture.positions import find_position, forget_position, keep_position, position_key, positions
from treering.capture.recorder import PACED_AFTER_S, Recorder
from treering.capture.sources import Piece, Source, compression_of, expand, inode_of, name_of, origin_of
from treering.engine import Engine, LocalEngine, can_start_workers
from treering.errors import InvalidRecordError, Problem, StoreError, TreeringError, UsageError
from treering.formats.known import find_importer
from treering.schema.fields import dump_json
from treering.store.corpus import BaseCorpus
from treering.store.documents import ImportPosition

__all__ = ["AUTO", "FileImport", "FileSummary", "ImportJob", "ImportSummary", "annotate_found", "import_file"]

#: Bytes of files from which workers read them, and for each of which one is worth it. A worker takes 0.3 s of a core to start; in
#: that time 6 MB of lines are imported without one. From here on it is worth it even where lines are simple, and the import is done
#: the sooner the larger they are.
_WORKERS_FROM = 16 << 20
#: Workers that share one file: what is left to do here takes a third of what they do.
_MOST_SHARES = 4
#: What a compressed file holds, taken to be so many times as much: what agents say repeats itself.
_PACKED = 16
#: Chunks that a worker may be ahead, each of up to ROWS records or 16 MiB of text: what it needs of memory.
_AHEAD = 2
#: Files of so many bytes are small; so many of them, and bytes, are read and stored together.
_SMALL, _TOGETHER, _TOGETHER_BYTES = 1 << 20, 256, 4 << 20
_CHUNKS = "treering.capture.chunks:chunks_of_file"
_CHUNKS_TOGETHER = "treering.capture.chunks:chunks_of_files"
_SHOWN = 20  # problems that a summary holds
_SETTLE_S = 5.0  # an import that is killed has so much to look at again
_ABOUT = frozenset({"id", "by", "note"})  # what an annotation has beside what it says
_ANNOTATIONS = 4_096  # waiting for their records to be in the table, before they are stored


@dataclass
class FileSummary:
    """What became of one file. `problems` holds the first ones, as (line from 1, problems)."""

    source: str
    format: str | None = None  # None while it isn't known, as for an empty file
    read: int = 0  # lines, elements or rows, those that were skipped included
    skipped: int = 0  # of them, those that an import which was cut short had stored
    found: int = 0  # records
    refused: int = 0
    refused_before: int = 0  # by that earlier import
    passed: Counter[str] = field(default_factory=Counter)  # why → how many values are rightly no records
    started_over: bool = (
        False  # it was cut off while it was followed, or has changed since an earlier import was cut short
    )
    problems: list[tuple[int, tuple[Problem, ...]]] = field(default_factory=list)
    error: TreeringError | None = None  # it couldn't be read, or not to its end


@dataclass
class ImportSummary:
    """What became of all that was read. `problems` holds the first ones, as (line number from 1, problems)."""

    read: int = 0
    stored: int = 0
    duplicates: int = 0
    refused: int = 0
    erased: int = 0  # dropped, because they were erased before
    annotations: int = 0  # words stored about the records
    redacted: dict[str, int] = field(default_factory=dict)  # marker → how often it was put in
    conflicts: list[str] = field(default_factory=list)
    problems: list[tuple[int, tuple[Problem, ...]]] = field(default_factory=list)
    files: list[FileSummary] = field(default_factory=list)

    @property
    def skipped(self) -> int:
        """Values that an import which was cut short had stored."""
        return sum(one.skipped for one in self.files)

    @property
    def refused_before(self) -> int:
        """Values that this earlier import refused."""
        return sum(one.refused_before for one in self.files)

    @property
    def passed(self) -> dict[str, int]:
        """Why → how many values are rightly no records."""
        return dict(sum((one.passed for one in self.files), Counter[str]()))


def import_file(
    corpus: BaseCorpus,
    source: Source | Sequence[Source],
    *,
    format: str = AUTO,  # noqa: A002  (as the option is called)
    progress: Callable[[int], None] | None = None,
    redact: bool | Sequence[str] | None = None,
    engine: Engine | None = None,
) -> ImportSummary:
    """Capture what a file holds (a path, any fsspec URL, a glob, a binary stream, or several of them). See `Corpus.capture_file`.

    `progress` is called with the number of values done so far. `engine` is who reads and checks what files hold, when they can
    be read elsewhere; without one large files are read by workers of this machine. Raises NotFoundError when there is no such
    file, StoreError when it can't be read or stored; what came before the damage is captured then. What is wrong with one file
    of a list, of whatever length, or of a glob is in its summary.
    """
    given = expand(source)
    alone = len(given) == 1 and not isinstance(source, list | tuple)
    # Smaller commits take longer, so that the order of an import is the same every time only where somebody says who reads.
    paced = engine is not None and all(isinstance(one, str) and not _may_wait(one) for one in given)
    with ImportJob(corpus, format=format, progress=progress, redact=redact, paced=paced) as job:
        job.read_all(given, engine=engine, alone=alone)
    return job.summary()


class ImportJob:
    """An import of some files through one recorder. A context manager: leaving it stores all that was taken."""

    def __init__(
        self,
        corpus: BaseCorpus,
        *,
        format: str = AUTO,  # noqa: A002
        progress: Callable[[int], None] | None = None,
        redact: bool | Sequence[str] | None = None,
        paced: bool = False,
    ) -> None:
        """With `paced`, for files that are there as a whole, records are committed in portions that no clock decides.

        Raises UsageError for a format that isn't there, or can't fill the corpus' record type.
        """
        self.corpus = corpus
        #: The importer that was asked for; None is whoever recognises a file.
        self.asked = None if format == AUTO else find_importer(format)
        if self.asked is not None:
            self.asked(corpus.record_type, None)
        self.files: list[FileSummary] = []
        self.words = 0
        self.recorder = Recorder(corpus, redact=redact, paced=paced)
        self.is_paced = paced
        self._over: list[str] = []  # keys of files that were read to their end, whose positions are to be forgotten
        self._progress = progress or (lambda done: None)
        self._said: list[tuple[FileSummary, dict[str, Any]]] = []  # annotations, each with the id of its record
        self._done = 0
        self._fed: list[FileImport] = []  # those that hold values which weren't taken
        self._going: dict[str, FileImport] = {}  # those whose position is to be kept, by its key
        self._settled = time.monotonic()

    def __enter__(self) -> ImportJob:
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, trace: object) -> None:
        try:
            if not isinstance(exc, Exception) or isinstance(exc, TreeringError):
                self.settle()
        finally:
            self.recorder.close()

    def summary(self) -> ImportSummary:
        """What has become of everything so far; `stored` and its like are whole once the job is left."""
        counts = self.recorder.counts
        return ImportSummary(
            read=sum(one.read for one in self.files),
            stored=counts.stored,
            duplicates=counts.duplicates,
            refused=sum(one.refused for one in self.files),
            erased=counts.erased,
            annotations=self.words,
            redacted=dict(self.recorder.redacted),
            conflicts=self.recorder.conflicts,
            problems=[found for one in self.files for found in one.problems][:_SHOWN],
            files=self.files,
        )

    # --- whole files ---------------------------------------------------------------------------------------------

    def read_all(self, sources: Sequence[Source], *, engine: Engine | None, alone: bool) -> None:
        """Take files in their order. What is wrong with one is raised when it is `alone`, else said in its summary.

        Where they are read elsewhere, the next ones begin while one is taken.
        """
        size = _size_of(sources) if engine is None and can_start_workers() else 0
        local = LocalEngine() if size >= _WORKERS_FROM else None
        elsewhere = engine or (local if local is not None and local.slots > 1 else None)
        # With an engine that somebody names, what is stored together follows from the files alone, and not from the machine.
        shares = (
            min(_MOST_SHARES, local.slots, size // max(1, _WORKERS_FROM))
            if local is not None and len(sources) == 1
            else 1
        )
        must = engine is not None and engine.name != "local"
        waiting = deque([[one] for one in sources] if engine is not None else self._parted(sources))
        begun: deque[_Reading | _Together] = deque()
        try:
            while waiting or begun:
                while waiting and len(begun) < (elsewhere.slots if elsewhere is not None else 1):
                    files = waiting.popleft()
                    if len(files) > 1:
                        begun.append(_Together(self, files, elsewhere))
                    else:
                        begun.append(_Reading(self, files[0], elsewhere, must=must, shares=shares))
                one = begun.popleft()
                try:
                    with one:
                        one.run()
                except TreeringError as exc:
                    if alone:
                        raise
                    one.fail(exc)
        finally:
            for one in begun:
                one.close()
            if local is not None:
                local.close()

    def _parted(self, sources: Sequence[Source]) -> Iterator[list[Source]]:
        """Sources in their order, small files that follow each other together: each alone costs a sync and a worker's turn."""
        files: list[Source] = []
        size = 0
        begun = set(positions(self.corpus)) if len(sources) > 1 else set()
        for one in sources:
            found = _small(one, begun) if len(sources) > 1 else None
            if files and (found is None or size + found > _TOGETHER_BYTES or len(files) >= _TOGETHER):
                yield files
                files, size = [], 0
            files.append(one)
            if found is None:
                yield files
                files = []
            else:
                size += found
        if files:
            yield files

    def read(self, source: Source) -> FileSummary:
        """Take everything that a file or stream holds, here. Raises as `import_file` does; what came before is taken."""
        with _Reading(self, source, None) as one:
            one.run()
        return one.summary

    def keep_up(self, going: FileImport) -> None:
        """Keep noting how far a file has come, instead of who imported it before."""
        if going.key is not None:
            self._going[going.key] = going

    def let_go(self, going: FileImport) -> None:
        """Note where a file stands that nothing more will be read of."""
        self.settle()
        self.drop(going)

    def end(self, key: str) -> None:
        """Forget the position of a file that was read to its end, once all of it is in the store."""
        self._over.append(key)
        if not self.is_paced:
            self.settle()

    def drop(self, going: FileImport) -> None:
        """Note nothing more of a file."""
        if going.key is not None and self._going.get(going.key) is going:
            del self._going[going.key]

    # --- what the files' imports hand over -----------------------------------------------------------------------

    def feed(self, going: FileImport) -> None:
        """Know that a file's import holds values now."""
        if going not in self._fed:
            self._fed.append(going)

    def take(self) -> None:
        """Put everything that was fed on disk."""
        fed, self._fed = self._fed, []
        try:
            self._store([(one, one.cut()) for one in fed])
        except BaseException:
            for one in fed:  # what it held may be nowhere
                self.drop(one)
            raise
        self.look_up()

    def take_chunks(self, taken: Sequence[tuple[FileImport, Chunk]]) -> None:
        """Put chunks of files on disk together, and what is due in the store."""
        self._store(taken)
        self.look_up()

    def look_up(self) -> None:
        """Say how far it is; settle when that is due."""
        waits = bool(self._said) or any(one.has_news for one in self._going.values())
        since = time.monotonic() - self._settled
        is_due = (
            waits and since >= _SETTLE_S and (not self.is_paced or self.recorder.is_at_cut or since >= PACED_AFTER_S)
        )
        if len(self._said) >= _ANNOTATIONS or is_due:
            self.settle()
        else:
            self._progress(self._done)

    def _store(self, taken: Sequence[tuple[FileImport, Chunk]]) -> None:
        batches = [chunk.batch for _, chunk in taken if chunk.batch is not None]
        refused = [(going.summary, *one) for going, chunk in taken for one in chunk.refused]
        kept = self.recorder.take(
            batches, [(raw, problems, f"{of.source}:{line}") for of, line, raw, problems in refused]
        )
        for at in kept:
            of, line, _, problems = refused[at]
            of.refused += 1
            if len(of.problems) < _SHOWN:
                of.problems.append((line, self.recorder.presentable(problems)))
        for going, chunk in taken:
            self._said += [(going.summary, one) for one in chunk.said]
            self._done += chunk.read
            going.took(chunk)  # last: only what is on disk counts as read

    def settle(self) -> None:
        """Commit all that was taken, store the annotations, then note how far each file has come."""
        if self._fed:
            self._settled = time.monotonic()
            self.take()
        self.recorder.flush()
        said, self._said = self._said, []
        if said:
            words, refused = annotate_found(self.recorder, [one for _, one in said])
            self.words += words
            said[-1][0].refused += refused
        over, self._over = self._over, []
        for key in over:
            forget_position(self.corpus, key)
        for one in self._going.values():
            one.keep_position()
        self._settled = time.monotonic()
        self._progress(self._done)


def annotate_found(recorder: Recorder, said: Sequence[dict[str, Any]]) -> tuple[int, int]:
    """Store annotations of records that are in, but those that were stored before; bad ones go to quarantine.

    Each has the `id` of its record, which is committed unless it was refused. Gives how many words were stored, and how many
    annotations were refused.
    """
    corpus = recorder.corpus
    said = recorder.without_secrets(said)
    ids = list(dict.fromkeys(one["id"] for one in said))
    absent = {*unknown_ids(corpus, ids), *recorder.conflicts}
    log = corpus.annotation_log
    known = {
        (row["id"], row["key"], row["value"], row["by"])
        for row in log.read(log.version(), ids=ids, history=True).to_pylist()
    }
    new: list[dict[str, Any]] = []
    for one in said:
        fresh = {
            key: value
            for key, value in one.items()
            if key in _ABOUT or (value is not None and (one["id"], key, _worded(value), one.get("by")) not in known)
        }
        if one["id"] not in absent and fresh.keys() - _ABOUT:
            new.append(fresh)
    try:
        return (annotate_rows(corpus, new, what="annotation") if new else 0), 0
    except InvalidRecordError as exc:
        wrong: dict[int, list[Problem]] = {}
        for problem in exc.problems:
            wrong.setdefault(int(problem.loc[0]), []).append(Problem(problem.loc[1:], problem.kind, problem.message))
        recorder.refuse_all([(new[at - 1], tuple(found), None) for at, found in wrong.items()])
        good = [one for at, one in enumerate(new, start=1) if at not in wrong]
        return (annotate_rows(corpus, good, what="annotation") if good else 0), len(wrong)


class FileImport:
    """The import of one file into the store: how far it has come, what became of it.

    What is `push`ed is made records here; what was read elsewhere comes as chunks.
    """

    def __init__(
        self,
        job: ImportJob,
        source: Source,
        summary: FileSummary,
        *,
        resume: bool = True,
        is_noted: bool = True,
        size: int | None = None,
        inode: int | None = None,
    ) -> None:
        """Continues an import that was cut short, if the file still begins as it did; `resume=False` starts over.

        With `is_noted=False` no position of it is found or kept. `size`, `inode`: of a file that is open and isn't read to its end now. Raises StoreError for a position that is damaged.
        """
        self._job = job
        self.summary = summary
        origin = origin_of(source)
        #: What its position is found by; None when none is kept.
        self.key: str | None = None
        if origin is not None and is_noted:
            self.key = position_key(origin, inode_of(origin) if inode is None else inode)
        self.is_renamed = (
            False  # an earlier import has begun with it under another name: ids go on being made from that
        )
        self.keeps_position = False  # whether there is one
        before = self._found_position(self.key) if resume and self.key is not None else None
        if before is not None and size is not None and size < before.bytes:
            before, summary.started_over = None, True
        importer = job.asked
        if before is not None:
            self.is_renamed = before.origin != origin
            origin = before.origin
            importer = find_importer(before.format)
        if importer is not None:
            summary.format = importer.name
        self._origin = origin
        self.order = Order(
            source,
            job.corpus.record_type,
            origin,
            job.asked,
            importer,
            None if before is None else _reached(before),
            0 if before is None else before.refused,
            ROWS,
            None if job.is_paced else LATE_S,
        )
        self._chunker: Chunker | None = None
        self._reached: Reached | None = None
        self._kept = -1  # values that the position which is kept counts
        self._read = 0
        self._refused_at = summary.refused
        self._refused_before = 0

    def _found_position(self, key: str) -> ImportPosition | None:
        found = find_position(self._job.corpus, key)
        if found is None:
            return None
        self.keeps_position = True
        return found if self._job.asked is None or self._job.asked.name == found.format else None

    # --- value by value ------------------------------------------------------------------------------------------

    def push(self, piece: Piece) -> bool:
        """Take a value; False when the file isn't the one that an earlier import has begun with. Raises UsageError."""
        self._job.feed(self)
        return self._made().push(piece) or self._is_another()

    def end(self) -> bool:
        """The file is at its end: take what was held back; False as `push` says. Raises UsageError."""
        self._job.feed(self)
        return self._made().end() or self._is_another()

    @property
    def is_spent(self) -> bool:
        """Whether what the format held back was taken: nothing more may be fed."""
        return self._chunker is not None and self._chunker.is_spent

    @property
    def is_full(self) -> bool:
        """Whether what was pushed should be taken."""
        return self._chunker is not None and self._chunker.is_full

    def cut(self) -> Chunk:
        """What the values that were pushed have made."""
        return self._made().cut()

    def _made(self) -> Chunker:
        if self._chunker is None:
            self._chunker = Chunker(self.order)
        return self._chunker

    # --- how far -------------------------------------------------------------------------------------------------

    def took(self, chunk: Chunk) -> None:
        """Count a chunk that is on disk."""
        summary = self.summary
        summary.format = chunk.format or summary.format
        summary.read += chunk.read
        summary.skipped += chunk.skipped
        summary.refused_before += chunk.refused_before
        summary.found += chunk.found
        summary.passed.update(chunk.passed)
        self._read += chunk.read
        self._refused_before += chunk.refused_before
        if chunk.skipped:
            self._kept = chunk.skipped
        reached, before = chunk.reached, self._reached
        if reached is not None and before is not None and before.remembers and not reached.remembers:
            reached = replace(reached, remembers=True)  # of another share
        self._reached = reached
        if chunk.is_another:
            self._is_another()

    def _is_another(self) -> bool:
        """Nothing more is noted of it here: all of it is read again."""
        if self._chunker is not None:
            self.took(self._chunker.cut())
        self.summary.read -= self._read
        self._read = 0
        self._job.drop(self)
        self.key, self.is_renamed, self._reached = None, False, None
        return False

    @property
    def has_news(self) -> bool:
        """Whether it has come further than is noted."""
        return self._reached is not None and self._reached.values != self._kept

    def keep_position(self) -> None:
        """Note how far it has come; all of that is stored."""
        reached = self._reached
        if self.key is None or reached is None or not self.has_news:
            return
        assert self._origin is not None
        keep_position(
            self._job.corpus,
            self.key,
            origin=self._origin,
            format=reached.format,
            values=reached.values,
            bytes=reached.bytes,
            digest=reached.digest,
            remembers=reached.remembers,
            refused=self.summary.refused - self._refused_at + self._refused_before,
        )
        self.keeps_position, self._kept = True, reached.values


class _Reading:
    """A file that is read from its beginning to its end; elsewhere at once, or here when its turn comes."""

    def __init__(
        self,
        job: ImportJob,
        source: Source,
        elsewhere: Engine | None,
        *,
        must: bool = False,
        shares: int = 1,
        summary: FileSummary | None = None,
    ) -> None:
        """`must`: refuse what is there and can't be read elsewhere; workers of this machine are a help, and no place.

        `shares`: workers that share a file which can be read several times.
        """
        self._job, self._source, self._elsewhere, self._must, self._shares = job, source, elsewhere, must, shares
        self.summary = FileSummary(name_of(source)) if summary is None else summary
        if summary is None:
            job.files.append(self.summary)
        self._streams: list[Iterator[bytes]] = []
        self._going: FileImport | None = None
        self._error: TreeringError | None = None
        try:
            self._begin()
        except TreeringError as exc:  # raised when it is this file's turn
            self._error = exc

    def __enter__(self) -> _Reading:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _begin(self, *, resume: bool = True) -> FileImport:
        going = self._going = FileImport(self._job, self._source, self.summary, resume=resume)
        if self._elsewhere is not None and (arguments := going.order.arguments()) is not None:
            for share in self._shared(going.order):
                told = {**arguments, "share": None if share is None else asdict(share)}
                self._streams.append(self._elsewhere.stream(_CHUNKS, told, ahead=_AHEAD))
        elif self._must and _is_there(self._source):
            raise UsageError(
                f"no worker can read it: {going.order.hindrance}",
                code="not-elsewhere",
                hint="leave out engine (--engine): then it is read here; or put the class into a module of its own",
            )
        return going

    def run(self) -> None:
        """Take all of it. Raises as `import_file` does; what came before is taken."""
        if self._error is not None:
            raise self._error
        going = self._going
        assert going is not None
        if not self._take(going):
            self.summary.started_over = True
            self.close()
            going = self._begin(resume=False)
            going.keeps_position = True  # that of before, until it is forgotten
            self._take(going)
        job = self._job
        if going.is_renamed:  # without its position it would be another file the next time, under its new name
            job.settle()
        job.drop(going)
        if going.keeps_position and not going.is_renamed and going.key is not None:
            job.end(going.key)

    def _take(self, going: FileImport) -> bool:
        """False when the file isn't the one that an earlier import has begun with."""
        self._job.keep_up(going)
        with closing(self._in_turn() if self._streams else going.order.chunks()) as chunks:
            try:
                for chunk in chunks:
                    self._job.take_chunks([(going, chunk)])
                    if chunk.is_another:
                        return False
            except StoreError as exc:
                if exc.code != "worker-died":
                    raise
                raise StoreError(
                    f"who read {self.summary.source} died some lines after line {self.summary.read:,}: {exc.message}",
                    code=exc.code,
                    hint="what came before is stored; run it again, and if it dies there once more, look at those lines or add memory",
                ) from exc
        return True

    def _shared(self, order: Order) -> list[Share | None]:
        """Who is to take what of it."""
        origin = origin_of(self._source)
        may = order.importer is None or order.importer.stands_alone
        if self._shares == 1 or not may or origin is None or "://" in origin:
            return [None]
        with suppress(OSError, ValueError):
            size = os.stat(origin).st_size
            return [Share(part, self._shares, size) for part in range(self._shares)]
        return [None]

    def _in_turn(self) -> Generator[Chunk, None, None]:
        """The chunks that workers make, in the order of the file. Raises StoreError when they haven't read the same."""
        turns, ends = deque(self._streams), None
        while turns:
            data = next(turns[0], None)
            if data is None:  # all that are left of a file whose portions are at their end, or that can't be shared
                turns.popleft()
                continue
            (chunk,) = unpack(data)
            if chunk.begins is not None and ends is not None and chunk.begins != ends:
                raise StoreError(
                    f"{self.summary.source} was changed while it was read",
                    code="read-failed",
                    hint="what came before is stored; run it again when nobody writes to it",
                )
            ends = chunk.ends
            yield chunk
            if chunk.is_portion:
                turns.rotate(-1)

    def fail(self, exc: TreeringError) -> None:
        """Say that it couldn't be taken to its end."""
        self.summary.error = exc

    def close(self) -> None:
        """Stop whoever reads it."""
        streams, self._streams = self._streams, []
        for stream in streams:
            getattr(stream, "close", lambda: None)()


class _Together:
    """Small files that one worker, or this process, reads one after the other, and whose records are stored together.

    No position of them is noted: whoever imports such a file again looks at all of it.
    """

    def __init__(self, job: ImportJob, sources: Sequence[Source], elsewhere: Engine | None) -> None:
        self._job, self._sources, self._elsewhere = job, sources, elsewhere
        self._first = len(job.files)
        job.files += [FileSummary(name_of(one)) for one in sources]
        self._going = [
            FileImport(job, one, summary, is_noted=False)
            for one, summary in zip(sources, job.files[self._first :], strict=True)
        ]
        self._done = 0  # files that are at their end
        self._stream: Iterator[bytes] | None = None
        self._order = self._going[0].order
        self._files = [(str(one.order.source), one.order.origin) for one in self._going]
        if elsewhere is not None and (arguments := self._order.arguments()) is not None:
            told = {**arguments, "files": self._files}
            self._stream = elsewhere.stream(_CHUNKS_TOGETHER, told, ahead=_AHEAD)

    def __enter__(self) -> _Together:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def run(self) -> None:
        """Take all of them. Raises what `import_file` does of the store; what is wrong with a file is in its summary."""
        try:
            with closing(self._chunks()) as some:
                for chunks in some:
                    self._job.take_chunks([(self._going[chunk.file], chunk) for chunk in chunks])
                    for chunk in chunks:
                        self._going[chunk.file].summary.error = chunk.error
                        self._done = chunk.file + chunk.is_last
        except StoreError as exc:
            left = range(self._done, len(self._sources))
            if exc.code not in ("worker-died", "task-failed") or not left:
                raise
            for at in left:  # that shows which of them it was
                self._take_alone(at)

    def _chunks(self) -> Generator[list[Chunk], None, None]:
        yield from together(self._order, self._files) if self._stream is None else map(unpack, self._stream)

    def _take_alone(self, at: int) -> None:
        summary = FileSummary(name_of(self._sources[at]))
        self._job.files[self._first + at] = summary
        with _Reading(self._job, self._sources[at], self._elsewhere, summary=summary) as one:
            try:
                one.run()
            except TreeringError as exc:
                one.fail(exc)

    def fail(self, exc: TreeringError) -> None:
        """Say that those that aren't at their end couldn't be taken; at least of the last one, that nothing goes unsaid."""
        for one in self._going[min(self._done, len(self._going) - 1) :]:
            one.summary.error = one.summary.error or exc

    def close(self) -> None:
        """Stop whoever reads them."""
        stream, self._stream = self._stream, None
        getattr(stream, "close", lambda: None)()


def _small(source: Source, begun: Collection[str]) -> int | None:
    """Bytes of a small file, about; None for any other, and for one whose import was begun."""
    if not isinstance(source, str) or "://" in source:
        return None
    try:
        found = os.stat(source)
    except (OSError, ValueError):
        return None
    size = found.st_size * (_PACKED if compression_of(source) is not None else 1)
    if not stat.S_ISREG(found.st_mode) or size > _SMALL:
        return None
    origin = origin_of(source) if begun else None
    return size if origin is None or position_key(origin, found.st_ino or None) not in begun else None


def _reached(before: ImportPosition) -> Reached:
    return Reached(before.format, before.values, before.bytes, before.digest, before.remembers)


def _is_there(source: Source) -> bool:
    """Whether reading it here wouldn't end in saying that there is no such file."""
    return not isinstance(source, str) or "://" in source or os.path.exists(source)


def _may_wait(source: str) -> bool:
    """Whether reading may wait for somebody who writes: a pipe, a device."""
    if "://" in source:
        return False
    with suppress(OSError, ValueError):
        return not stat.S_ISREG(os.stat(source).st_mode)
    return False


def _size_of(sources: Sequence[Source]) -> int:
    """Bytes there are to read, about. What lies elsewhere isn't asked for its size: it is taken to be worth a worker."""
    total = 0
    for one in sources:
        if isinstance(one, str) and "://" in one and not one.startswith(("file://", "local://")):
            return _WORKERS_FROM
        with suppress(OSError, ValueError):
            if isinstance(one, str):
                packed = _PACKED if compression_of(one) is not None else 1
                total += os.stat(origin_of(one) or one).st_size * packed
    return total


def _worded(value: Any) -> str | None:
    """A value as annotations hold it; None for one that they can't."""
    try:
        return dump_json(value, sort_keys=True)
    except ValueError:
        return None
