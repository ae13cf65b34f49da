"""`treering capture`: records from files of any format, or from standard input."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from threading import Event
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from treering.cli import completion
from treering.cli.options import CorpusArgument, EngineName, JsonOption, StoreOption, engine_for, open_store
from treering.cli.output import columns, counted, counter, facts, number, render, say
from treering.errors import CheckFailedError, UsageError

if TYPE_CHECKING:
    from rich.console import RenderableType

    from treering.capture.importer import ImportSummary
    from treering.errors import Problem

__all__ = ["capture"]

_NAMED = 3  # refused lines that the error spells out; the summary and the quarantine hold more


@dataclass(frozen=True)
class RefusedLine:
    """A line that went to quarantine; `line` counts from 1."""

    source: str
    line: int
    problems: tuple[Problem, ...]


@dataclass(frozen=True)
class CapturedFile:
    """What became of one file. `format` is what it was read as; `error` says why it wasn't read to its end."""

    source: str
    format: str | None
    read: int
    skipped: int
    records: int
    refused: int
    passed: dict[str, int]
    started_over: bool
    error: str | None


@dataclass(frozen=True)
class SealedPeriod:
    """A snapshot that a period of history became."""

    period: str
    ref: str
    rows: int


@dataclass(frozen=True)
class Captured:
    """What became of all that was read. `refused_lines` and `conflicting_ids` hold the first ones.

    `skipped` values were stored by an earlier run that was cut short, `refused_before` of them refused by it; `passed` says why
    values are rightly no records. With --snapshot-by, the `snapshots` that were sealed in this run, and how many records were
    `late` for theirs.
    """

    corpus: str
    source: str
    read: int
    skipped: int
    stored: int
    duplicates: int
    refused: int
    refused_before: int
    erased: int
    annotations: int
    passed: dict[str, int]
    redacted: dict[str, int]
    conflicts: int
    refused_lines: list[RefusedLine]
    conflicting_ids: list[str]
    files: list[CapturedFile]
    snapshots: list[SealedPeriod]
    late: int


def capture(
    name: CorpusArgument,
    source: Annotated[
        list[str],
        typer.Argument(metavar="FILE|-…", help="Paths, URLs or globs, gz and zst too; or - for standard input."),
    ],
    format_: Annotated[
        str,
        typer.Option(
            "--format",
            metavar="F",
            help="What the files hold: auto (by looking), records, openai, trl, parquet; claude-code, codex, hooks; otlp, "
            "openinference, langfuse, langsmith, atif; or a format that a package adds.",
            autocompletion=completion.importers,
        ),
    ] = "auto",
    follow: Annotated[
        bool, typer.Option("--follow", help="Go on with what is appended, until Ctrl-C or SIGTERM; all is stored then.")
    ] = False,
    as_of: Annotated[
        str | None,
        typer.Option("--as-of", metavar="COLUMN", help="When each record is from; with --snapshot-by."),
    ] = None,
    snapshot_by: Annotated[
        str | None,
        typer.Option("--snapshot-by", metavar="PERIOD", help="month, week or day: seal a snapshot for each, in order."),
    ] = None,
    redact: Annotated[
        bool | None,
        typer.Option(
            "--redact/--no-redact",
            help="Put markers in the place of secrets, e-mail addresses, phone and card numbers … [default: as the corpus was "
            "made]",
        ),
    ] = None,
    engine: Annotated[
        EngineName | None,
        typer.Option(
            "--engine",
            help="Who reads: worker processes of this machine (local), or those of Ray. [default: local if the files are large]",
        ),
    ] = None,
    store: StoreOption = None,
    json: JsonOption = False,
) -> None:
    """Capture what files hold; what doesn't fit waits in quarantine.

    Exits with 3 when any record was refused. A file captured twice adds nothing; a run that was cut short is continued by the
    same command. With --as-of and --snapshot-by, history becomes v1 to vN.

    API: Corpus.capture_file, Corpus.backfill.
    """
    from treering.capture.backfill import BackfillSummary

    if (as_of is None) != (snapshot_by is None):
        raise UsageError(
            "--as-of and --snapshot-by go together",
            code="bad-argument",
            hint="treering capture support history.jsonl --as-of created --snapshot-by month",
        )
    if as_of is not None and (follow or redact is not None):
        raise UsageError(
            f"--as-of and {'--follow' if follow else '--redact'} don't go together",
            code="bad-argument",
            hint="bring history in first, then follow" if follow else "make the corpus with --redact",
        )
    if engine is not None and (follow or as_of is not None):
        raise UsageError(
            f"--engine and {'--follow' if follow else '--as-of'} don't go together",
            code="bad-argument",
            hint="leave out --engine",
        )
    corpus = open_store(store).corpus(name)
    given: Any = [sys.stdin.buffer if one == "-" else one for one in source]
    summary: ImportSummary
    with counter("lines read") as shown, _until_told(follow) as stop, _told_where(history=as_of is not None) as reached:

        def progress(done: int) -> None:
            reached(done)
            shown(done)

        if as_of is not None:
            summary = corpus.backfill(
                given, as_of=as_of, snapshot_by=cast("Any", snapshot_by), format=format_, progress=progress
            )
        else:
            with engine_for(engine, *(one for one in given if isinstance(one, str))) as workers:
                summary = corpus.capture_file(
                    given, format=format_, redact=redact, follow=follow, stop=stop, progress=progress, engine=workers
                )
    is_history = isinstance(summary, BackfillSummary)
    result = _result(name, source, summary)
    failed = [one.error for one in summary.files if one.error is not None]
    if failed and len(summary.files) == 1 and not (summary.files[0].found or result.refused or result.skipped):
        raise failed[0]  # nothing came of it: there is nothing to sum up
    render(result, json, lambda: _view(result))
    for one in result.files:
        if one.started_over:
            say(f"{one.source} was cut off, or is another file than before: it was read from its beginning")
        if one.skipped:
            say(f"{one.source}: {counted(one.skipped, 'line')} skipped: an earlier run has stored them")
    if is_history and result.late:
        say(f"{number(result.late)} new records are of periods that are sealed already: they lie in {name}@live")
    if not result.read:
        say(f"{', '.join(source)} {'is' if len(source) == 1 else 'are'} empty: nothing was captured")
    if failed:
        raise failed[0]
    # What is followed was refused, and said, by the run before; a file that is continued is judged as a whole.
    if result.refused or result.conflicts or (result.refused_before and not follow):
        raise CheckFailedError(_refusal(result), code="records-refused", hint=_hint(name, result))


@contextmanager
def _until_told(follow: bool) -> Iterator[Event | None]:
    """An event that Ctrl-C and SIGTERM set, the first time; the second time they end the process as ever.

    Without `follow` SIGTERM unwinds, as Ctrl-C does: what was acknowledged is committed.
    """
    if not follow:

        def end(which: int, _: object) -> None:
            sys.exit(128 + which)

        usual = signal.signal(signal.SIGTERM, end)
        try:
            yield None
        finally:
            signal.signal(signal.SIGTERM, usual)
        return
    stop = Event()

    def told(which: int, _: object) -> None:
        stop.set()
        signal.signal(which, before[which])

    before: dict[int, Any] = {one: signal.getsignal(one) for one in (signal.SIGINT, signal.SIGTERM)}
    for one in before:
        signal.signal(one, told)
    try:
        yield stop
    finally:
        for one, handler in before.items():
            signal.signal(one, handler)


@contextmanager
def _told_where(*, history: bool) -> Iterator[Callable[[int], None]]:
    """Gives a function that takes how many lines are done; whoever stops the command is told."""
    done = 0

    def reach(lines: int) -> None:
        nonlocal done
        done = lines

    try:
        yield reach
    except (KeyboardInterrupt, SystemExit):
        say("stopped" if history else f"stopped after {number(done)} lines")
        say("the same command goes on, and stores what isn't stored of them")
        raise


def _result(name: str, source: list[str], summary: ImportSummary) -> Captured:
    from treering.capture.backfill import BackfillSummary

    history = summary if isinstance(summary, BackfillSummary) else None
    lines = [RefusedLine(one.source, *found) for one in summary.files for found in sorted(one.problems, key=_line)]
    if not summary.files:
        lines = [RefusedLine(", ".join(source), *found) for found in sorted(summary.problems, key=_line)]
    return Captured(
        corpus=name,
        source=", ".join(source),
        read=summary.read,
        skipped=summary.skipped,
        stored=summary.stored,
        duplicates=summary.duplicates,
        refused=summary.refused,
        refused_before=summary.refused_before,
        erased=summary.erased,
        annotations=summary.annotations,
        passed=summary.passed,
        redacted=summary.redacted,
        conflicts=len(summary.conflicts),
        refused_lines=lines[:20],
        conflicting_ids=summary.conflicts[:20],
        files=[
            CapturedFile(
                source=one.source,
                format=one.format,
                read=one.read,
                skipped=one.skipped,
                records=one.found,
                refused=one.refused,
                passed=dict(one.passed),
                started_over=one.started_over,
                error=None if one.error is None else str(one.error),
            )
            for one in summary.files
        ],
        snapshots=[SealedPeriod(*one) for one in history.snapshots] if history is not None else [],
        late=history.late if history is not None else 0,
    )


def _view(result: Captured) -> RenderableType:
    from rich.console import Group

    only = result.files[0] if len(result.files) == 1 else None
    table = facts(
        [
            ("format", only.format if only is not None else None),
            ("read", counted(result.read, "line")),
            ("skipped", f"{number(result.skipped)} stored by an earlier run" if result.skipped else None),
            ("stored", number(result.stored)),
            ("duplicates", number(result.duplicates)),
            ("refused", number(result.refused)),
            *(("passed over", f"{number(count)} {why}") for why, count in sorted(result.passed.items())),
            ("annotations", number(result.annotations) if result.annotations else None),
            ("redacted", ", ".join(f"{number(n)} {what}" for what, n in sorted(result.redacted.items())) or None),
            ("erased before", number(result.erased) if result.erased else None),
            ("id conflicts", number(result.conflicts)),
            *((one.period, f"{one.ref}, {counted(one.rows, 'record')}") for one in result.snapshots),
        ]
    )
    if len(result.files) < 2:
        return table
    rows = [
        (one.source, one.format, number(one.read), number(one.records), number(one.refused), one.error or "")
        for one in result.files
    ]
    heads = ("file", "format", "read", "records", "refused", "")
    return Group(columns(heads, rows, right=("read", "records", "refused")), "", table)


def _hint(name: str, result: Captured) -> str:
    hint = f"the rest was stored; refused records wait in quarantine: treering quarantine list {name}"
    if any(problem.kind == "unknown-field" for line in result.refused_lines for problem in line.problems):
        hint += f"; give the corpus the fields that it lacks (treering schema {name} --evolve …), then quarantine retry {name}"
    return hint


def _line(found: tuple[int, tuple[Problem, ...]]) -> int:
    return found[0]


def _refusal(result: Captured) -> str:
    before = result.refused_before
    total = result.refused + result.conflicts + before
    several = len(result.files) > 1
    parts = [
        (f"{found.source} " if several else "")
        + f"line {found.line:,}: {found.problems[0]}"
        + (f" and {len(found.problems) - 1} more" if len(found.problems) > 1 else "")
        for found in result.refused_lines[:_NAMED]
    ]
    if result.conflicts:
        ids = ", ".join(map(repr, result.conflicting_ids[:_NAMED]))
        parts.append(f"taken by other content: {ids}{', …' if result.conflicts > _NAMED else ''}")
    more = result.refused - min(result.refused, _NAMED)
    if more:
        parts.append(f"and {more:,} more lines")
    if before:
        parts.append(f"{before:,} by an earlier run, which this one has gone on from")
    return (
        f"{total:,} of {counted(result.read, 'record')} {'was' if total == 1 else 'were'} refused: {'; '.join(parts)}"
    )
