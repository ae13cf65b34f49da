"""`treering capture`: records from a file or from standard input."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from treering.cli.options import CorpusArgument, JsonOption, StoreOption, open_store
from treering.cli.output import counter, facts, number, render, say
from treering.errors import CheckFailedError, UsageError

if TYPE_CHECKING:
    from treering.capture.importer import ImportSummary
    from treering.errors import Problem

__all__ = ["capture"]

_NAMED = 3  # refused lines that the error spells out; the summary and the quarantine hold more


@dataclass(frozen=True)
class RefusedLine:
    """A line that went to quarantine; `line` counts from 1."""

    line: int
    problems: tuple[Problem, ...]


@dataclass(frozen=True)
class SealedPeriod:
    """A snapshot that a period of history became."""

    period: str
    ref: str
    rows: int


@dataclass(frozen=True)
class Captured:
    """What became of a file's lines. `refused_lines` and `conflicts` hold the first ones.

    With --snapshot-by, the `snapshots` that were sealed in this run, and how many records were `late` for theirs.
    """

    corpus: str
    source: str
    read: int
    stored: int
    duplicates: int
    refused: int
    erased: int
    redacted: dict[str, int]
    conflicts: int
    refused_lines: list[RefusedLine]
    conflicting_ids: list[str]
    snapshots: list[SealedPeriod]
    late: int


def capture(
    name: CorpusArgument,
    source: Annotated[str, typer.Argument(metavar="FILE|-", help="JSONL: a path, a URL, or - for standard input.")],
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
    store: StoreOption = None,
    json: JsonOption = False,
) -> None:
    """Capture the lines of a JSONL file; refused ones wait in quarantine.

    Exits with 3 when any record was refused. A file captured twice adds nothing. With --as-of and --snapshot-by, history
    becomes v1 to vN; a run that was cut short is continued by the same command.

    API: Corpus.capture, Corpus.backfill.
    """
    from treering.capture.backfill import BackfillSummary
    from treering.capture.importer import import_file

    if (as_of is None) != (snapshot_by is None):
        raise UsageError(
            "--as-of and --snapshot-by go together",
            code="bad-argument",
            hint="treering capture support history.jsonl --as-of created --snapshot-by month",
        )
    corpus = open_store(store).corpus(name)
    with counter("lines read") as progress:
        given: Any = sys.stdin.buffer if source == "-" else source
        summary: ImportSummary
        if as_of is not None:
            summary = corpus.backfill(given, as_of=as_of, snapshot_by=cast("Any", snapshot_by), progress=progress)
        else:
            summary = import_file(corpus, given, progress=progress, redact=redact)
    periods = [SealedPeriod(*one) for one in summary.snapshots] if isinstance(summary, BackfillSummary) else []
    late = summary.late if isinstance(summary, BackfillSummary) else 0
    result = Captured(
        corpus=name,
        source=source,
        read=summary.read,
        stored=summary.stored,
        duplicates=summary.duplicates,
        refused=summary.refused,
        erased=summary.erased,
        redacted=summary.redacted,
        conflicts=len(summary.conflicts),
        refused_lines=[RefusedLine(line, problems) for line, problems in sorted(summary.problems, key=_line)],
        conflicting_ids=summary.conflicts[:20],
        snapshots=periods,
        late=late,
    )
    render(
        result,
        json,
        lambda: facts(
            [
                ("read", f"{number(result.read)} lines"),
                ("stored", number(result.stored)),
                ("duplicates", number(result.duplicates)),
                ("refused", number(result.refused)),
                ("redacted", ", ".join(f"{number(n)} {what}" for what, n in sorted(result.redacted.items())) or None),
                ("erased before", number(result.erased) if result.erased else None),
                ("id conflicts", number(result.conflicts)),
                *((one.period, f"{one.ref}, {number(one.rows)} records") for one in periods),
            ]
        ),
    )
    if late:
        say(f"{number(late)} new records are of periods that are sealed already: they lie in {name}@live")
    if not result.read:
        say(f"{source} is empty: nothing was captured")
    if result.refused or result.conflicts:
        raise CheckFailedError(_refusal(summary), code="records-refused", hint=_HINT.format(name=name))


_HINT = "the rest was stored; refused records wait in quarantine: treering.open(…).corpus({name!r}).quarantine()"


def _line(found: tuple[int, tuple[Problem, ...]]) -> int:
    return found[0]


def _refusal(summary: ImportSummary) -> str:
    total = summary.refused + len(summary.conflicts)
    parts = [
        f"line {line:,}: {problems[0]}" + (f" and {len(problems) - 1} more" if len(problems) > 1 else "")
        for line, problems in sorted(summary.problems, key=_line)[:_NAMED]
    ]
    if summary.conflicts:
        ids = ", ".join(map(repr, summary.conflicts[:_NAMED]))
        parts.append(f"taken by other content: {ids}{', …' if len(summary.conflicts) > _NAMED else ''}")
    more = summary.refused - min(summary.refused, _NAMED)
    if more:
        parts.append(f"and {more:,} more lines")
    return f"{total:,} of {summary.read:,} records {'was' if total == 1 else 'were'} refused: {'; '.join(parts)}"
