"""Records from files and streams of any format: read, turned into records, and captured as they come.

One pass, in bounded memory, whatever the file's size: values come from `sources`, formats make records of them, a recorder
stores those. What doesn't fit goes to quarantine with its file and line and never blocks the rest. Does not know any format.
"""

from __future__ import annotations

import codecs
import gc
import os
import re
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import IO, Any, Protocol

import xxhash

from treering.capture.annotations import annotate_rows, unknown_ids
from treering.capture.positions import find_position, forget_position, keep_position, position_key
from treering.capture.recorder import Recorder
from treering.capture.sources import (
    UNREAD,
    Piece,
    Source,
    expand,
    inode_of,
    name_of,
    opened,
    origin_of,
    parquet_file,
    pieces,
    shape_of,
    without_nulls,
)
from treering.errors import InvalidRecordError, Problem, StoreError, TreeringError, UsageError
from treering.formats import Found, Importer, Outcome, Passed, Unfit
from treering.formats.known import find_importer, importer_names, recognise
from treering.formats.records import ParquetImporter, RecordsImporter
from treering.schema import RecordType, parse_json
from treering.schema.fields import dump_json
from treering.store.corpus import BaseCorpus
from treering.store.documents import ImportPosition

__all__ = [
    "AUTO",
    "FileImport",
    "FileSummary",
    "ImportJob",
    "ImportSummary",
    "Taker",
    "annotate_found",
    "bad_json",
    "import_file",
    "is_value",
    "members_of",
]

#: The format that is found out by looking.
AUTO = "auto"

_VALUES = 8_192  # rows, or refused values, that are spooled at a time
_BYTES = 16 << 20  # bytes of lines that wait for it when a file is followed
_KEPT = 1_000_000  # bytes that quarantine keeps of a line that doesn't parse
_HANDED = 64  # records that pass from the format to the recorder at a time
_OBJECTS = 200_000  # new ones after which Python may look for garbage: more than a thousand records have
_SHOWN = 20  # problems that a summary holds
_LOOKED_AT = 1_000  # values that `auto` looks at before it gives up …
_LOOKED_AT_BYTES = 128 << 20  # … or so many bytes of them: two lines that are too long are no reason
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
) -> ImportSummary:
    """Capture what a file holds (a path, any fsspec URL, a glob, a binary stream, or several of them). See `Corpus.capture_file`.

    `progress` is called with the number of values done so far. Raises NotFoundError when there is no such file, StoreError when
    it can't be read or stored; what came before the damage is captured then. What is wrong with one file of a list, of whatever
    length, or of a glob is in its summary.
    """
    given = expand(source)
    alone = len(given) == 1 and not isinstance(source, list | tuple)
    job = ImportJob(corpus, format=format, progress=progress, redact=redact)
    with job:
        for one in given:
            try:
                job.read(one)
            except TreeringError as exc:
                if alone:
                    raise
                job.files[-1].error = exc
    return job.summary()


class _Flow:
    """The records of one file as the recorder pulls them, in stretches after which positions can be kept."""

    def __init__(self, job: ImportJob, going: FileImport, values: Iterator[Piece]) -> None:
        self._job = job
        self._going = going
        self._values = values
        self.summary = going.summary
        self.places = _Lines(going.summary.source)
        self.goes_on = True
        self.is_same = True  # whether the file is the one that an earlier import has begun with
        self.error: Exception | None = None  # what ended it: raised where the recorder can't lose anything by it

    def records(self) -> Iterator[dict[str, Any]]:
        """The next stretch: so long, or as many."""
        lines = self.places.lines
        lines.clear()
        job, going = self._job, self._going
        until = time.monotonic() + _SETTLE_S
        try:
            for count, piece in enumerate(self._values, start=1):
                if not going.push(piece):
                    self.goes_on, self.is_same = False, False
                    return
                if job.waiting >= _HANDED:
                    yield from job.hand_on(lines)
                if count % 1024 == 0 and (job.is_due or time.monotonic() >= until):
                    break
            else:
                self.goes_on = False
                self.is_same = going.end()
        except Exception as exc:
            self.goes_on, self.error = False, exc
        yield from job.hand_on(lines)


class Taker(Protocol):
    """Who takes what the imports of files make."""

    corpus: BaseCorpus
    format: str

    def hand_over(self, summary: FileSummary, outcomes: Iterable[Outcome], size: int) -> None:
        """Take what a value made; `size` is about how many bytes that is."""

    def read_on(self, values: int) -> None:
        """Count values that were read."""


class ImportJob:
    """An import of some files through one recorder. A context manager: leaving it stores all that was taken."""

    def __init__(
        self,
        corpus: BaseCorpus,
        *,
        format: str = AUTO,  # noqa: A002
        progress: Callable[[int], None] | None = None,
        redact: bool | Sequence[str] | None = None,
    ) -> None:
        """Raises UsageError for a format that isn't there, or can't fill the corpus' record type."""
        self.corpus = corpus
        self.format = format
        if format != AUTO:
            find_importer(format)(corpus.record_type, None)
        self.files: list[FileSummary] = []
        self.words = 0
        self.recorder = Recorder(corpus, redact=redact)
        self._progress = progress or (lambda done: None)
        self._records: list[dict[str, Any]] = []
        self._places: list[tuple[FileSummary, int]] = []
        self._unfit: list[tuple[FileSummary, Unfit]] = []
        self._said: list[dict[str, Any]] = []  # annotations, each with the id of its record
        self._size = 0
        self._done = 0
        self._going: dict[str, FileImport] = {}  # imports whose position is to be kept, by its key
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

    def read(self, source: Source) -> FileSummary:
        """Take everything that a file or stream holds. Raises as `import_file` does; what came before is taken."""
        summary = FileSummary(name_of(source))
        self.files.append(summary)
        going = FileImport(self, source, summary)
        try:
            if not self._read(source, going):
                summary.started_over = True
                self._going.clear()
                going = FileImport(self, source, summary, resume=False)
                going.keeps_position = True  # that of before, until it is forgotten
                self._read(source, going)
        finally:
            self.take()
        if going.is_renamed:  # without its position it would be another file the next time, under its new name
            self.settle()
        self._going.pop(going.key or "", None)
        if going.keeps_position and not going.is_renamed and going.key is not None:
            self.settle()
            forget_position(self.corpus, going.key)
        return summary

    def keep_up(self, going: FileImport) -> None:
        """Keep noting how far a file has come that isn't read to its end."""
        assert going.key is not None
        self._going[going.key] = going

    def let_go(self, going: FileImport) -> None:
        """Note where a file stands that nothing more will be read of."""
        self.settle()
        self._going.pop(going.key or "", None)

    def _read(self, source: Source, going: FileImport) -> bool:
        """False when the file isn't the one that an earlier import has begun with."""
        members = members_of(self.format)
        _, stream = opened(source)
        with stream:
            shape, stream = shape_of(source, stream, members, is_value(self.format, self.corpus.record_type))
            with stream:
                if shape == "parquet" and going.takes_columns(self, stream):
                    return True
                if self.format == ParquetImporter.name:
                    raise StoreError(f"{name_of(source)} isn't a Parquet file", code="read-failed")
                if going.key is not None:
                    self.keep_up(going)
                return self._take_in(going, pieces(source, stream, shape, members))

    def _take_in(self, going: FileImport, values: Iterator[Piece]) -> bool:
        """Take all values of a file; False when it isn't the one that an earlier import has begun with."""
        flow = _Flow(self, going, values)
        with _few_collections():
            while flow.goes_on:
                # The recorder pulls: records turn into columns a thousand at a time, and never many lie about as objects.
                try:
                    receipts = self.recorder.extend(flow.records(), sources=flow.places)
                except (
                    BaseException
                ):  # Ctrl-C too: what it had pulled may be nowhere, so nothing is noted of this stretch
                    self._going.pop(going.key or "", None)
                    raise
                for position, wrong in receipts.refused:
                    self._refused(flow.summary, flow.places.lines[position], wrong)
                self.take()
        if flow.error is not None:
            raise flow.error
        return flow.is_same

    @property
    def waiting(self) -> int:
        """Records that were handed over."""
        return len(self._records)

    @property
    def is_full(self) -> bool:
        """Whether what was handed over should be taken."""
        return len(self._records) >= _VALUES or self._size >= _BYTES or self.is_due

    @property
    def is_due(self) -> bool:
        """Whether much else waits: what doesn't fit, or annotations."""
        return len(self._unfit) >= _VALUES or len(self._said) >= _ANNOTATIONS

    def hand_on(self, lines: list[int]) -> list[dict[str, Any]]:
        """The records that were handed over; the lines they come from are added to `lines`."""
        records = self._records
        lines += [line for _, line in self._places]
        self._records, self._places, self._size = [], [], 0
        return records

    # --- what the files' imports hand over -----------------------------------------------------------------------

    def hand_over(self, summary: FileSummary, outcomes: Iterable[Outcome], size: int) -> None:
        """Take what a value made; `size` is about how many bytes that is."""
        for outcome in outcomes:
            if type(outcome) is Found:
                record = outcome.record
                if outcome.annotations:
                    self._note(record, outcome.annotations)
                self._records.append(record)
                self._places.append((summary, outcome.line))
                summary.found += 1
            elif type(outcome) is Passed:
                summary.passed[outcome.why] += 1
            else:
                assert isinstance(outcome, Unfit)
                self._unfit.append((summary, outcome))
        self._size += size

    def _note(self, record: dict[str, Any], annotations: Sequence[dict[str, Any]]) -> None:
        if record.get("id") is None:
            record["id"] = os.urandom(16).hex()
        self._said += [{"id": record["id"], **one} for one in annotations]

    def take_table(self, summary: FileSummary, table: Any, first: int) -> None:
        """Take rows as they are; the first one's number is `first`."""
        receipts = self.recorder.extend(table, sources=_Rows(summary.source, first, len(table)))
        summary.found += len(table)
        for position, wrong in receipts.refused:
            self._refused(summary, first + position, wrong)
        self._went_on(len(table))

    def take(self) -> None:
        """Put everything that was handed over on disk."""
        records, places = self._records, self._places
        self._records, self._places, self._size = [], [], 0
        try:
            self._put_on_disk(records, places)
        except BaseException:
            self._going.clear()  # as above
            raise
        waits = bool(self._said) or any(one.has_news for one in self._going.values())
        if len(self._said) >= _ANNOTATIONS or (waits and time.monotonic() - self._settled >= _SETTLE_S):
            self.settle()
        else:
            self._progress(self._done)

    def _put_on_disk(self, records: list[dict[str, Any]], places: list[tuple[FileSummary, int]]) -> None:
        if self._unfit:
            unfit, self._unfit = self._unfit, []
            refused = [(one.kept, one.problems, f"{of.source}:{one.line}") for of, one in unfit]
            for at in self.recorder.refuse_all(refused):
                self._refused(unfit[at][0], unfit[at][1].line, unfit[at][1].problems)
        if records:
            receipts = self.recorder.extend(records, sources=_Places(places))
            for position, wrong in receipts.refused:
                self._refused(*places[position], wrong)

    def _refused(self, summary: FileSummary, line: int, problems: tuple[Problem, ...]) -> None:
        summary.refused += 1
        if len(summary.problems) < _SHOWN:
            summary.problems.append((line, self.recorder.presentable(problems)))

    def read_on(self, values: int) -> None:
        """Count values that were read."""
        self._done += values

    def _went_on(self, values: int) -> None:
        self.read_on(values)
        self._progress(self._done)

    def settle(self) -> None:
        """Commit all that was taken, store the annotations, then note how far each file has come."""
        if self._records or self._unfit:
            self._settled = time.monotonic()
            self.take()
        self.recorder.flush()
        said, self._said = self._said, []
        if said:
            words, refused = annotate_found(self.recorder, said)
            self.words += words
            self.files[-1].refused += refused
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
    """The import of one file, value by value: which format it has, what it makes, how far it has come."""

    def __init__(
        self,
        job: Taker,
        source: Source,
        summary: FileSummary,
        *,
        resume: bool = True,
        size: int | None = None,
        inode: int | None = None,
    ) -> None:
        """Continues an import that was cut short, if the file still begins as it did; `resume=False` starts over.

        `size`, `inode`: of a file that is open and isn't read to its end now. Raises UsageError for a format that can't fill the
        corpus' record type.
        """
        self._job = job
        self._source = source
        self.summary = summary
        self.origin = origin_of(source)
        #: What its position is found by; None when none is kept.
        self.key: str | None = None
        if self.origin is not None:
            self.key = position_key(self.origin, inode_of(self.origin) if inode is None else inode)
        self.is_renamed = (
            False  # an earlier import has begun with it under another name: ids go on being made from that
        )
        self.keeps_position = False  # whether there is one
        self.is_spent = False  # what the format held back was taken: nothing more may be fed
        self._digest = xxhash.xxh3_128()
        self._values = 0
        self._bytes = 0
        self._kept = -1  # values that the position which is kept counts
        self._refused_at = summary.refused
        self._refused_before = 0
        self._before: ImportPosition | None = None
        if resume and self.key is not None:
            self._before = self._found_position(self.key)
            if self._before is not None and size is not None and size < self._before.bytes:
                self._before, summary.started_over = None, True
        if self._before is not None:
            self.is_renamed = self._before.origin != self.origin
            self.origin = self._before.origin
        self._importer: Importer | None = None
        format_ = self._before.format if self._before is not None else job.format
        if format_ != AUTO:
            self._use(find_importer(format_))
        self._held: list[Piece] = []
        self._held_bytes = 0

    def _found_position(self, key: str) -> ImportPosition | None:
        found = find_position(self._job.corpus, key)
        if found is None:
            return None
        self.keeps_position = True
        return found if self._job.format in (AUTO, found.format) else None

    def _use(self, importer: type[Importer]) -> None:
        self._importer = importer(self._job.corpus.record_type, self.origin)
        self.summary.format = importer.name

    # --- values --------------------------------------------------------------------------------------------------

    def push(self, piece: Piece) -> bool:
        """Take a value; False when the file isn't the one that an earlier import has begun with. Raises UsageError."""
        text = piece.text
        self._digest.update(text)
        self._values += 1
        self._bytes += len(text)
        summary = self.summary
        summary.read += 1
        self._job.read_on(1)
        if self._before is not None:
            return self._pass_over(piece)
        if self._importer is None:
            if text.strip():
                self._look_at(piece)
        elif text.strip():
            self._job.hand_over(summary, self._made(piece), len(text))
        return True

    def _pass_over(self, piece: Piece) -> bool:
        """A value that an earlier import has stored; the importer sees it when what follows depends on it."""
        before, summary = self._before, self.summary
        assert before is not None
        if before.remembers and piece.text.strip():
            for _ in self._made(piece):
                pass
        if self._values == before.values or self._bytes > before.bytes:
            if self._values != before.values or self._digest.hexdigest() != before.digest:
                return self._is_another()
            summary.skipped += before.values
            summary.refused_before += before.refused
            self._refused_before = before.refused
            self._before, self._kept = None, before.values
        return True

    def _is_another(self) -> bool:
        self.summary.read -= self._values  # they are read again
        self._before, self.key, self.is_renamed = None, None, False  # nothing more is noted here
        return False

    def _made(self, piece: Piece) -> Iterable[Outcome]:
        value = piece.value
        if value is UNREAD:
            try:
                value = parse_json(piece.text)
            except ValueError as exc:
                return (bad_json(piece.line, piece.text, exc),)
        assert self._importer is not None
        try:
            made = self._importer.feed(piece.line, value, piece.text)
            return made if isinstance(made, tuple) else list(made)
        except TreeringError:
            raise
        except Exception as exc:
            raise self._failed(f"at line {piece.line:,}", exc) from exc

    def _failed(self, where: str, exc: Exception) -> UsageError:
        return UsageError(
            f"the format {self.summary.format} failed {where} of {self.summary.source}: {type(exc).__name__}: {exc}",
            code="broken-format",
            hint="what came before is stored; this is a mistake in the format's importer",
        )

    def end(self) -> bool:
        """The file is at its end: take what was held back; False as `push` says. Raises UsageError."""
        if self._before is not None:
            return self._is_another()  # it has become shorter
        if self._importer is None and self._held:
            self._use(self._fallback())
            self._take_held()
        if self._importer is not None and not self.is_spent:
            try:
                outcomes = list(self._importer.finish())
            except TreeringError:
                raise
            except Exception as exc:
                raise self._failed("at the end", exc) from exc
            self.is_spent = bool(outcomes)
            self._job.hand_over(self.summary, outcomes, 0)
        return True

    @property
    def has_news(self) -> bool:
        """Whether it has come further than is noted."""
        return self._kept != self._values

    def keep_position(self) -> None:
        """Note how far it has come; all of that is stored."""
        if self.key is None or self._importer is None or self._held or self._before is not None or not self.has_news:
            return
        assert self.origin is not None
        keep_position(
            self._job.corpus,
            self.key,
            origin=self.origin,
            format=self._importer.name,
            values=self._values,
            bytes=self._bytes,
            digest=self._digest.hexdigest(),
            remembers=self._importer.remembers,
            refused=self.summary.refused - self._refused_at + self._refused_before,
        )
        self.keeps_position, self._kept = True, self._values

    # --- which format --------------------------------------------------------------------------------------------

    def _look_at(self, piece: Piece) -> None:
        """Hold the value until one is recognised."""
        self._held.append(piece)
        self._held_bytes += len(piece.text)
        importer = self._recognised(piece)
        if importer is None and (len(self._held) >= _LOOKED_AT or self._held_bytes >= _LOOKED_AT_BYTES):
            importer = self._fallback()
        if importer is not None:
            self._use(importer)
            self._take_held()

    def _recognised(self, piece: Piece) -> type[Importer] | None:
        value = _parsed(piece)
        found, _ = recognise(value, self._job.corpus.record_type)
        if len(found) > 1:
            raise UsageError(
                f"{self.summary.source} could be {' or '.join(one.name for one in found)}, by line {piece.line:,}",
                code="unknown-format",
                hint=f"say which: --format {found[0].name}",
            )
        return found[0] if found else None

    def _fallback(self) -> type[Importer]:
        """Records, when some value has a field of theirs: they are refused one by one then. Raises UsageError otherwise."""
        payload = set(self._job.corpus.record_type.payload)
        values = [_parsed(piece) for piece in self._held]
        if any(isinstance(value, dict) and not payload.isdisjoint(value) for value in values):
            return RecordsImporter
        _, broken = recognise(
            next((value for value in values if isinstance(value, dict)), {}), self._job.corpus.record_type
        )
        first = self._held[0]
        if _is_utf16(first.text):
            raise UsageError(
                f"{self.summary.source} looks like UTF-16, and files here are UTF-8",
                code="unknown-format",
                hint="convert it: iconv -f UTF-16 -t UTF-8 FILE > NEW",
            )
        shown = first.text[:60].decode("utf-8", "replace").strip()
        said = "".join(f"; {one.message}" for one in broken)
        raise UsageError(
            f"{self.summary.source} is of no format known here: line {first.line:,} is {shown!r}{said}",
            code="unknown-format",
            hint=f"if it is one of these, say --format: {', '.join(importer_names())}",
        )

    def _take_held(self) -> None:
        for piece in self._held:
            self._job.hand_over(self.summary, self._made(piece), len(piece.text))
        self._held = []

    # --- Parquet -------------------------------------------------------------------------------------------------

    def takes_columns(self, job: ImportJob, stream: IO[bytes]) -> bool:
        """Take a Parquet file batch by batch, when its columns are the record type's; False when its rows are of a format.

        Raises InvalidRecordError that names every column that doesn't fit.
        """
        record_type = self._job.corpus.record_type
        file = parquet_file(self.summary.source, stream)
        columns = file.schema_arrow
        if self._job.format == AUTO:
            first = next(iter(file.iter_batches(1)), None)
            row = without_nulls(first.to_pylist()[0]) if first is not None and len(first) else {}
            if set(columns.names) - set(record_type.schema.names) and recognise(row, record_type)[0]:
                stream.seek(0)
                return False
        elif self._job.format not in (ParquetImporter.name, RecordsImporter.name):
            stream.seek(0)
            return False
        self._importer = ParquetImporter(record_type, self.origin)
        self.summary.format = ParquetImporter.name
        try:
            record_type.check_columns(columns.empty_table())
        except InvalidRecordError as exc:
            raise InvalidRecordError(
                f"the columns of {self.summary.source} don't fit: {'; '.join(map(str, exc.problems))}",
                exc.problems,
                hint="rename or drop them, or make a corpus for them: treering create NAME --schema MODULE:NAME",
            ) from exc
        for table in self._tables(file):
            self.summary.read += len(table)
            job.take_table(self.summary, self._with_ids(table), self.summary.read - len(table) + 1)
        return True

    def _tables(self, file: Any) -> Iterator[Any]:
        import pyarrow as pa

        try:
            for batch in file.iter_batches(_VALUES):
                yield pa.Table.from_batches([batch])
        except (pa.ArrowException, OSError) as exc:
            reason = str(exc).partition("\n")[0][:200]
            raise StoreError(
                f"can't read {self.summary.source} beyond row {self.summary.read:,}: {reason}", code="read-failed"
            ) from exc

    def _with_ids(self, table: Any) -> Any:
        """The table with ids made of their rows where they have none."""
        import pyarrow as pa
        from pydantic_core import to_json

        if self.origin is None:
            return table
        has_ids = "id" in table.column_names
        ids = table.column("id").to_pylist() if has_ids else [None] * len(table)
        wanting = [at for at, one in enumerate(ids) if one is None]
        if not wanting:
            return table
        assert self._importer is not None
        rows = table.take(pa.array(wanting)).to_pylist()
        for at, row in zip(wanting, rows, strict=True):
            ids[at] = self._importer.own_id(to_json(without_nulls(row), bytes_mode="base64", inf_nan_mode="constants"))
        made = pa.chunked_array([pa.array(ids, pa.string())])
        if not has_ids:
            return table.append_column("id", made)
        return table.set_column(table.column_names.index("id"), "id", made)


def bad_json(line: int, text: bytes, exc: ValueError) -> Unfit:
    """What becomes of a line that doesn't parse."""
    # The parser counts lines within the line, which has a number of its own.
    why = re.sub(
        r" at line 1 column (\d+)$", r" at column \1", re.sub(r" at line 2 column 0$", " at its end", str(exc))
    )
    said = f"expected a JSON object, got a line that doesn't parse: {why}"
    if _is_utf16(text):
        said = "expected UTF-8, got what looks like UTF-16: convert the file"
    problem = Problem((), "bad-json", said)
    return Unfit(line, (problem,), text[:_KEPT].decode("utf-8", "replace").rstrip("\r\n"))


def _is_utf16(text: bytes) -> bool:
    return text.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) or text[1:2] == b"\0" or text[:1] == b"\0"


def members_of(format: str) -> frozenset[str]:  # noqa: A002
    """Names under which an object that is a whole file of this format holds its values; of every format for `auto`."""
    names = importer_names() if format == AUTO else [format]
    members: set[str] = set()
    for name in names:
        try:
            members.update(find_importer(name).elements)
        except UsageError:
            if format != AUTO:
                raise
    return frozenset(members)


@contextmanager
def _few_collections() -> Iterator[None]:
    """Let Python look for garbage less often: a thousand parsed records make it look again and again, and find nothing."""
    before = gc.get_threshold()
    if 0 < before[0] < _OBJECTS:
        gc.set_threshold(_OBJECTS, *before[1:])
    try:
        yield
    finally:
        gc.set_threshold(*before)


def is_value(format: str, target: RecordType) -> Callable[[Any], bool] | None:  # noqa: A002
    """What tells, for `auto`, that an object is a value as it stands, though it has a list under a name that files have, too."""

    def stands_alone(value: Any) -> bool:
        return any(not set(one.elements) & set(value) for one in recognise(value, target)[0])

    return stands_alone if format == AUTO else None


def _parsed(piece: Piece) -> Any:
    if piece.value is not UNREAD:
        return piece.value
    try:
        return parse_json(piece.text)
    except ValueError:
        return None


def _worded(value: Any) -> str | None:
    """A value as annotations hold it; None for one that they can't."""
    try:
        return dump_json(value, sort_keys=True)
    except ValueError:
        return None


class _Lines(Sequence[str]):
    """`FILE:LINE` of each record of a file, made only for those that are asked for."""

    def __init__(self, source: str) -> None:
        self._source = source
        self.lines: list[int] = []

    def __len__(self) -> int:
        return len(self.lines)

    def __bool__(self) -> bool:
        return True  # it fills up as it is asked

    def __getitem__(self, at: Any) -> Any:
        return f"{self._source}:{self.lines[at]}"


class _Places(Sequence[str]):
    """`FILE:LINE` of each record, made only for those that are asked for."""

    def __init__(self, places: list[tuple[FileSummary, int]]) -> None:
        self._places = places

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, at: Any) -> Any:
        summary, line = self._places[at]
        return f"{summary.source}:{line}"


class _Rows(Sequence[str]):
    """The same for the rows of a table."""

    def __init__(self, source: str, first: int, size: int) -> None:
        self._source, self._first, self._size = source, first, size

    def __len__(self) -> int:
        return self._size

    def __getitem__(self, at: Any) -> Any:
        return f"{self._source}:{self._first + at}"
