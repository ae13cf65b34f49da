"""Turn history into snapshots: records from a file, sealed period by period, as if they had been captured then.

In time order: a file whose periods stand in order is read as a stream, twice; any other is first split by period into a
temporary file on this host's disk, so neither is ever held in memory. Running it again, after a kill too, adds nothing:
what was sealed is known by its ids, and records of a period that was cut short wait in live for the rest of it. A new
record of a period that is sealed already is late: it lies in live and joins the next snapshot.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from functools import partial
from itertools import groupby, islice
from typing import IO, Any, Literal

from pydantic_core import to_json

from treering.capture.annotations import unknown_ids
from treering.capture.chunks import AUTO, Order, Turning, asked_for, bad_json, is_value, members_of
from treering.capture.importer import FileSummary, ImportSummary, annotate_found
from treering.capture.recorder import Recorder, flush_spools
from treering.capture.sources import Source, expand, name_of, opened, origin_of, pieces, read_lines, shape_of
from treering.errors import ConflictError, NotFoundError, Problem, UsageError
from treering.formats import Found, Outcome, Passed, TextIds, Unfit
from treering.formats.records import RecordsImporter
from treering.schema import parse_json
from treering.schema.record_type import safe_repr
from treering.store.certificate import build_certificate
from treering.store.corpus import BaseCorpus
from treering.store.documents import SnapshotRecord
from treering.store.prune import pruned_ids
from treering.store.snapshot import NAME_TAKEN, listed, seal
from treering.store.source import Segment, resolve

__all__ = ["BackfillSummary", "Period", "backfill"]

Period = Literal["day", "week", "month"]
_Line = tuple[int, bytes]  # number from 1, text

_FORMS: dict[str, Callable[[datetime], str]] = {
    "day": lambda moment: f"{moment:%Y-%m-%d}",
    "week": lambda moment: "{}-W{:02}".format(*moment.isocalendar()[:2]),
    "month": lambda moment: f"{moment:%Y-%m}",
}
_LINES = 8_192  # lines read, checked and spooled at a time …
_BYTES = 16 << 20  # … or so many bytes of them
_HELD = 64 << 20  # bytes of lines held before they go to the temporary file
_MOST_SEALS = 20
_SHOWN = 20  # problems that a summary holds


@dataclass
class BackfillSummary(ImportSummary):
    """What became of a file's lines, and the snapshots they became: (period, ref, records), in order.

    `late` records are new and of periods that had been sealed: they lie in live. `in_order`: whether the file's periods
    stood in order. `undated` lines are among the refused.
    """

    snapshots: list[tuple[str, str, int]] = field(default_factory=list)
    late: int = 0
    undated: int = 0
    in_order: bool = True


def backfill(
    corpus: BaseCorpus,
    source: Source | Sequence[Source],
    *,
    as_of: str,
    snapshot_by: Period,
    format: str = AUTO,  # noqa: A002  (as the option is called)
    progress: Callable[[int], None] | None = None,
) -> BackfillSummary:
    """Capture a file (a path, any fsspec URL, a glob, a binary stream, or several of them); seal a snapshot for each period.

    format: as for `Corpus.capture_file`; a stream holds records unless it is named. What isn't a record a line is first turned
        into records, in a temporary file on this host's disk.
    as_of: the column that says when a record is from: ISO 8601 text (without a zone: UTC), or seconds since 1970. A record
        without a `ts` gets it as that. One without a time is refused, named, and waits in quarantine.
    snapshot_by: "month", "week" (ISO) or "day", in UTC; each snapshot's message is its period, "2026-03".

    Records that others capture meanwhile would be sealed along: fill a corpus before it goes live. Raises NotFoundError
    (no such file or column), UsageError, ConflictError when live holds records that aren't the beginning of a period to be
    continued, StoreError.
    """
    if snapshot_by not in _FORMS:
        raise UsageError(f"snapshots are by day, week or month, not by {snapshot_by!r}", code="bad-period")
    if as_of not in corpus.record_type.schema.names:
        raise NotFoundError(
            f"{corpus.name} has no column {as_of!r}",
            code="no-column",
            hint=f"columns here: {', '.join(corpus.record_type.schema.names)}",
        )
    given = expand(source)
    flush_spools(corpus)
    with tempfile.TemporaryFile(dir=corpus.store.cache_dir) as late, _Turned(corpus, format) as turned:
        if len(given) == 1 and _holds_records(corpus, given[0], format):
            run = _Run(corpus, given[0], as_of, snapshot_by)
        else:
            for one in given:
                turned.read(one, progress)
            run = _Run(corpus, turned, as_of, snapshot_by)
        run.look_at_the_store()
        with Recorder(corpus) as recorder:
            for period, lines in run.by_period(progress):
                if period is None:
                    run.capture(recorder, lines)  # refused, each with its reason
                elif run.is_behind(period):
                    run.pass_over(period, lines, late)
                else:
                    run.capture(recorder, lines)
                    run.seal(recorder, period)
            recorder.flush()
            late.seek(0)
            run.capture(recorder, (_numbered(line) for line in late))
            recorder.flush()
            turned.annotate(recorder, run.summary)
            run.summary.stored = recorder.counts.stored
            run.summary.duplicates += recorder.counts.duplicates
            run.summary.conflicts = recorder.conflicts
    if progress is not None:
        progress(run.summary.read)
    return run.summary


def _holds_records(corpus: BaseCorpus, source: Source, format_: str) -> bool:
    """Whether a source holds a record a line, and can be read as it is. Raises UsageError when its format isn't known."""
    if not isinstance(source, str):
        return format_ in (AUTO, RecordsImporter.name)
    asked = asked_for(format_)
    members = members_of(asked)
    _, stream = opened(source)
    with stream:
        shape, stream = shape_of(source, stream, members, is_value(asked, corpus.record_type))
        if shape != "lines":
            return False
        with stream:
            order = Order(source, corpus.record_type, origin_of(source), asked, asked)
            turning = Turning(order, lambda outcomes: None)  # only looked at
            for piece in pieces(source, stream, shape, members):
                turning.push(piece)
                if turning.format is not None:
                    return turning.format == RecordsImporter.name
            turning.end()
    return turning.format in (None, RecordsImporter.name)


class _Turned:
    """What files of any format hold, turned into records: a JSON line each in a temporary file, with its number before it."""

    def __init__(self, corpus: BaseCorpus, format_: str) -> None:
        self._corpus = corpus
        self._asked = asked_for(format_)
        self.files: list[FileSummary] = []
        self._lines = tempfile.TemporaryFile(dir=corpus.store.cache_dir)  # noqa: SIM115  (closed on leaving)
        self._said = tempfile.TemporaryFile(dir=corpus.store.cache_dir)  # noqa: SIM115
        self._unfit: list[tuple[FileSummary, Unfit]] = []
        self._done = 0  # values

    def __enter__(self) -> _Turned:
        return self

    def __exit__(self, *_: object) -> None:
        self._lines.close()
        self._said.close()

    def read(self, source: Source, progress: Callable[[int], None] | None) -> None:
        """Take in all of a file."""
        summary = FileSummary(name_of(source))
        self.files.append(summary)
        members = members_of(self._asked)
        target = self._corpus.record_type
        order = Order(source, target, origin_of(source), self._asked, self._asked)
        turning = Turning(order, partial(self._take, summary))
        _, stream = opened(source)
        with stream:
            shape, stream = shape_of(source, stream, members, is_value(self._asked, target))
            with stream:
                for piece in pieces(source, stream, shape, members):
                    turning.push(piece)
                    self._done += 1
                    summary.read = turning.values
                    if progress is not None and self._done % _LINES == 0:
                        progress(self._done)
                turning.end()
        summary.format = turning.format
        self._put_aside()

    def _take(self, summary: FileSummary, outcomes: Iterable[Outcome]) -> None:
        """Write what a value made."""
        for outcome in outcomes:
            if isinstance(outcome, Found):
                summary.found += 1
                number = _number(len(self.files) - 1, outcome.line)
                self._lines.write(b"%d\t" % number + to_json(outcome.record) + b"\n")
                said = [{"id": outcome.record["id"], **one} for one in outcome.annotations if outcome.record.get("id")]
                self._said.writelines(to_json(one) + b"\n" for one in said)
            elif isinstance(outcome, Passed):
                summary.passed[outcome.why] += 1
            else:
                self._unfit.append((summary, outcome))
        if len(self._unfit) >= _LINES:
            self._put_aside()

    def _put_aside(self) -> None:
        unfit, self._unfit = self._unfit, []
        if not unfit:
            return
        with Recorder(self._corpus) as recorder:
            for at in recorder.refuse_all([(one.kept, one.problems, f"{of.source}:{one.line}") for of, one in unfit]):
                summary, one = unfit[at]
                summary.refused += 1
                summary.problems.append((one.line, one.problems))

    def where(self, number: int) -> str:
        """`FILE:LINE` of a numbered record."""
        place, line = _place(number)
        return f"{self.files[place].source}:{line}"

    def lines(self) -> Iterator[_Line]:
        """The records that were found, in order."""
        self._lines.seek(0)
        return map(_numbered, self._lines)

    def annotate(self, recorder: Recorder, summary: BackfillSummary) -> None:
        """Store what was found about the records, once they are in, and add up what became of the files."""
        self._said.seek(0)
        while lines := list(islice(self._said, _LINES)):
            words, refused = annotate_found(recorder, [parse_json(line) for line in lines])
            summary.annotations += words
            summary.refused += refused
        for one in self.files:
            summary.refused += one.refused
            summary.problems = [*one.problems, *summary.problems]
        if self.files:
            summary.files, summary.read = self.files, self._done


#: Of several files the numbers of lines are kept apart by which file it is.
_LINE_BITS = 48


def _number(file: int, line: int) -> int:
    return file << _LINE_BITS | line


def _place(number: int) -> tuple[int, int]:
    return number >> _LINE_BITS, number & ((1 << _LINE_BITS) - 1)


def capture_lines(
    recorder: Recorder,
    where: Callable[[int], str],
    ids: TextIds,
    lines: list[_Line],
    summary: ImportSummary,
    look: Callable[[Any], Iterable[Problem]],
) -> None:
    """Capture numbered lines; `look` may complete each record, and says what is wrong with it."""
    numbers: list[int] = []
    records: list[dict[str, Any]] = []
    for number, line in lines:
        try:
            record = parse_json(line)
        except ValueError as exc:
            unfit = bad_json(number, line, exc)
            if recorder.refuse(unfit.kept, unfit.problems, where(number)):
                _note(summary, number, recorder.presentable(unfit.problems))
            continue
        identify(record, ids, line)
        if problems := tuple(look(record)):
            recorder.refuse(record, problems, where(number))
            _note(summary, number, recorder.presentable(problems))
            continue
        numbers.append(number)
        records.append(record)
    receipts = recorder.extend(records, sources=list(map(where, numbers)))
    for position, wrong in receipts.refused:
        _note(summary, numbers[position], recorder.presentable(wrong))


def identify(record: Any, ids: TextIds, line: bytes) -> None:
    """Give a record without an id one by the file it comes from and its line."""
    if isinstance(record, dict) and record.get("id") is None and (made := ids.of(line)) is not None:
        record["id"] = made


def _note(summary: ImportSummary, number: int, problems: tuple[Problem, ...]) -> None:
    summary.refused += 1
    if len(summary.problems) < _SHOWN:
        summary.problems.append((_place(number)[1], problems))


class _Run:
    """One backfill."""

    def __init__(self, corpus: BaseCorpus, source: Source | _Turned, as_of: str, snapshot_by: str) -> None:
        self._corpus = corpus
        self._source = source
        self._ids = TextIds(None if isinstance(source, _Turned) else origin_of(source))
        self._name = source.files[0].source if isinstance(source, _Turned) else name_of(source)
        self._as_of = as_of
        self._form = _FORMS[snapshot_by]
        self._sealed: str | None = None  # the last period that is sealed
        self._begun: str | None = None  # the period whose records lie in live
        self.summary = BackfillSummary()

    # --- what is there -------------------------------------------------------------------------------------------

    def look_at_the_store(self) -> None:
        """Up to which period it is sealed, and which one was begun."""
        sealed: set[str] = set()
        for record, pruned in listed(self._corpus):
            if pruned is None:
                sealed |= self._periods(Segment(self._corpus, record.name, record.row_ids, record.rows))
        self._sealed = max(sealed, default=None)
        live = resolve(self._corpus.store, f"{self._corpus.name}@live").segments[0]
        waiting = {period for period in self._periods(live) if self._sealed is None or period > self._sealed}
        if len(waiting) > 1:
            raise self._unfit(f"records of {len(waiting)} periods, from {min(waiting)} to {max(waiting)}")
        self._begun = max(waiting, default=None)

    def _periods(self, segment: Segment) -> set[str]:
        moments = {m for batch in segment.scan([self._as_of]) for m in batch.column(0).unique().to_pylist()}
        return {self._form(moment) for moment in map(_moment, moments) if isinstance(moment, datetime)}

    def _unfit(self, what: str) -> ConflictError:
        return ConflictError(
            f"{self._corpus.name}@live holds {what}, and a snapshot is what live holds",
            code="live-not-empty",
            hint="bring history into a corpus of its own, before it goes live",
        )

    def is_behind(self, period: str) -> bool:
        """Whether a period comes before what the store has reached: nothing more can be sealed for it."""
        return period < (self._begun or "") or period <= (self._sealed or "")

    # --- lines, period by period ---------------------------------------------------------------------------------

    def by_period(self, progress: Callable[[int], None] | None) -> Iterator[tuple[str | None, Iterator[_Line]]]:
        """The lines of each period, in time order; None for those that have no time."""
        if not isinstance(self._source, str | _Turned):
            pass  # read once
        elif self._stands_in_order():
            lines = self._counted(self._numbered_lines(), progress)
            for period, group in groupby(_carried(lines, self._period_of), key=lambda one: one[0]):
                self._ids.clear()  # equal lines have equal times
                yield period, ((number, line) for _, number, line in group)
            return
        else:
            self.summary.in_order = False
        with tempfile.TemporaryFile(dir=self._corpus.store.cache_dir) as file:  # without a name: a kill leaves nothing
            split = _Split(file)
            last = ""
            for number, line in self._counted(self._numbered_lines(), progress):
                period = self._period_of(line)
                self.summary.in_order &= period is None or period >= last
                last = period or last
                split.add(period, number, line)
            for period in split.periods():
                self._ids.clear()
                yield period, split.lines(period)

    def _numbered_lines(self) -> Iterator[_Line]:
        if isinstance(self._source, _Turned):
            return self._source.lines()
        return enumerate(read_lines(self._source), start=1)

    def _counted(self, lines: Iterator[_Line], progress: Callable[[int], None] | None) -> Iterator[_Line]:
        for number, line in lines:
            self.summary.read = number
            if progress is not None and number % _LINES == 0:
                progress(number)
            if line.strip():
                yield number, line if line.endswith(b"\n") else line + b"\n"

    def _stands_in_order(self) -> bool:
        last = ""
        for _, line in self._numbered_lines():
            period = self._period_of(line) if line.strip() else None
            if period is not None:
                if period < last:
                    return False
                last = period
        return True

    def _period_of(self, line: bytes) -> str | None:
        try:
            record = parse_json(line)
        except ValueError:
            return None
        moment = _moment(record.get(self._as_of)) if isinstance(record, dict) else None
        return self._form(moment) if isinstance(moment, datetime) else None

    # --- taking them in ------------------------------------------------------------------------------------------

    def capture(self, recorder: Recorder, lines: Iterator[_Line]) -> None:
        """Hand lines to the recorder; refused ones are noted."""
        for chunk in _chunks(lines):
            capture_lines(recorder, self._where, self._ids, chunk, self.summary, self._look)

    def _where(self, number: int) -> str:
        return self._source.where(number) if isinstance(self._source, _Turned) else f"{self._name}:{number}"

    def _look(self, record: Any) -> Iterable[Problem]:
        """Date the record; what is wrong with its time."""
        if not isinstance(record, dict):
            return
        given = record.get(self._as_of)
        moment = _moment(given)
        if moment is None:
            self.summary.undated += 1
            yield Problem((self._as_of,), "missing-field", "expected the time that the record is from, got none")
        elif isinstance(moment, str):
            self.summary.undated += 1
            yield Problem((self._as_of,), "bad-value", f"expected ISO 8601 text or seconds since 1970, got {moment}")
        elif record.get("ts") is None:
            record["ts"] = moment

    def pass_over(self, period: str, lines: Iterator[_Line], late: IO[bytes]) -> None:
        """Lines of a period that is behind: known records are duplicates, others come late."""
        for chunk in _chunks(lines):
            found: dict[str, list[_Line]] = {}
            for number, line in chunk:
                if self._period_of(line) is None:  # refused at the end, with its reason
                    late.write(b"%d\t" % number + line)
                    continue
                record = parse_json(line)
                identify(record, self._ids, line)
                record_id = record.get("id")
                found.setdefault(record_id if isinstance(record_id, str) else "", []).append((number, line))
            unknown = self._unknown([record_id for record_id in found if record_id])
            new = [one for record_id, ones in found.items() if not record_id or record_id in unknown for one in ones]
            self.summary.duplicates += sum(map(len, found.values())) - len(new)
            if new and period > (self._sealed or ""):
                raise self._unfit(
                    f"records of {self._begun}, while {self._name} has some of {period} that aren't stored"
                )
            self.summary.late += len(new)
            for number, line in sorted(new):
                late.write(b"%d\t" % number + line)

    def _unknown(self, ids: Sequence[str]) -> set[str]:
        unknown = set(unknown_ids(self._corpus, ids))
        for _, pruned in listed(self._corpus):
            if pruned is not None and unknown:
                unknown -= pruned_ids(self._corpus, pruned, sorted(unknown))
        return unknown

    def seal(self, recorder: Recorder, period: str) -> None:
        """Seal what live holds by now as the snapshot of a period."""
        recorder.flush()
        for _ in range(_MOST_SEALS):
            sealed = seal(self._corpus, to=None, message=period)
            if isinstance(sealed, SnapshotRecord):
                build_certificate(self._corpus, sealed)  # its id filter is what makes the next commits quick
                self.summary.snapshots.append((period, sealed.ref, sealed.rows))
            if sealed is not NAME_TAKEN:
                break
        else:
            raise ConflictError(f"other processes kept sealing {self._corpus.name} first", code="seal-raced")
        self._sealed, self._begun = max(period, self._sealed or ""), None


def _moment(value: Any) -> datetime | str | None:
    """When that is, in UTC; None for nothing, text that shows the value when it isn't a time."""
    if value is None:
        return None
    try:
        if isinstance(value, str):
            value = datetime.fromisoformat(value.strip())
        elif isinstance(value, int | float) and not isinstance(value, bool):
            value = datetime.fromtimestamp(value, UTC)
        elif isinstance(value, date) and not isinstance(value, datetime):
            value = datetime(value.year, value.month, value.day, tzinfo=UTC)
        if isinstance(value, datetime):
            return value.astimezone(UTC) if value.tzinfo else value.replace(tzinfo=UTC)
    except (ValueError, OverflowError, OSError):
        pass
    return safe_repr(value)[:80]


def _carried(
    lines: Iterator[_Line], period_of: Callable[[bytes], str | None]
) -> Iterator[tuple[str | None, int, bytes]]:
    """Each line with its period; one without a time goes with the line before it, so that it ends no period."""
    last: str | None = None
    for number, line in lines:
        last = period_of(line) or last
        yield last, number, line


def _chunks(lines: Iterator[_Line]) -> Iterator[list[_Line]]:
    chunk: list[_Line] = []
    size = 0
    for one in lines:
        chunk.append(one)
        size += len(one[1])
        if len(chunk) >= _LINES or size >= _BYTES:
            yield chunk
            chunk, size = [], 0
    if chunk:
        yield chunk


def _numbered(line: bytes) -> _Line:
    number, _, text = line.partition(b"\t")
    return int(number), text


class _Split:
    """Lines by period, in a temporary file; what is held in memory is bounded, however many periods there are."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._waiting: dict[str | None, list[bytes]] = {}
        self._sizes: Counter[str | None] = Counter()
        self._held = 0
        self._places: dict[str | None, list[tuple[int, int]]] = {}

    def add(self, period: str | None, number: int, line: bytes) -> None:
        """Keep a line."""
        self._waiting.setdefault(period, []).append(b"%d\t" % number + line)
        self._sizes[period] += len(line)
        self._held += len(line)
        if self._held > _HELD:  # half of it goes, in large pieces
            for largest, _ in self._sizes.most_common():
                self._write(largest)
                if self._held <= _HELD // 2:
                    break

    def _write(self, period: str | None) -> None:
        data = b"".join(self._waiting.pop(period, []))
        self._held -= self._sizes.pop(period, 0)
        self._places.setdefault(period, []).append((self._file.seek(0, 2), len(data)))
        self._file.write(data)

    def periods(self) -> list[str | None]:
        """The periods, in time order; those without a time last."""
        for period in list(self._waiting):
            self._write(period)
        dated = sorted(period for period in self._places if period is not None)
        return [*dated, *([None] if None in self._places else [])]

    def lines(self, period: str | None) -> Iterator[_Line]:
        """The lines of a period, in the order they came."""
        for start, size in self._places[period]:
            self._file.seek(start)
            data = self._file.read(size)
            yield from map(partial(_numbered), data.splitlines(keepends=True))
