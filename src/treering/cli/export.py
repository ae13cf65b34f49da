"""`treering export`: records out, as files of other programs."""

from __future__ import annotations

import sys
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from treering.cli import completion
from treering.cli.options import EngineOption, JsonOption, StoreOption, engine_for, open_store
from treering.cli.output import facts, gauge, number, render, say, size
from treering.errors import UsageError

if TYPE_CHECKING:
    from rich.console import RenderableType

    from treering import ExportSummary

__all__ = ["export"]

_SHOWN = 5  # records that were left out


class Split(StrEnum):
    """Which records of a ref."""

    all = "all"
    train = "train"
    heldout = "heldout"


class Erased(StrEnum):
    """What to do about rows of a lock that were erased since."""

    refuse = "refuse"
    skip = "skip"


def export(
    source: Annotated[
        str,
        typer.Argument(
            metavar="REF|LOCK",
            help="CORPUS@v1, @v1..v3, @live, @new, a selection CORPUS/NAME, or the file of a mix lock.",
        ),
    ],
    format_: Annotated[
        str,
        typer.Option(
            "--format",
            "-f",
            metavar="F",
            help="records, openai, trl, parquet, hf, or one that a package adds.",
            autocompletion=completion.exporters,
        ),
    ] = "records",
    output: Annotated[
        str,
        typer.Option(
            "-o", "--output", metavar="PATH|URL|-", help="A file (.gz, .zst compress), of hf a folder; - is stdout."
        ),
    ] = "-",
    split: Annotated[Split, typer.Option(help="Which records of a ref.")] = Split.all,
    column: Annotated[
        list[str] | None, typer.Option("-c", "--column", help="Only this column; repeat for more.")
    ] = None,
    shard_rows: Annotated[
        int | None,
        typer.Option("--shard-rows", metavar="N", help="A new file after N records: NAME-00000-of-00003.jsonl, …"),
    ] = None,
    with_ref: Annotated[
        bool, typer.Option("--with-ref", help="Of a lock: which source each row comes from, as `_ref`.")
    ] = False,
    epochs: Annotated[
        int | None, typer.Option(metavar="N", help="Of a lock: so many passes [default: as locked].")
    ] = None,
    erased: Annotated[
        Erased, typer.Option(help="Of a lock: what to do about records that were erased since.")
    ] = Erased.refuse,
    skip_unfit: Annotated[
        bool, typer.Option("--skip-unfit", help="Leave out, and count, records that the format can't hold.")
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace what is there.")] = False,
    engine: EngineOption = None,
    store: StoreOption = None,
    json: JsonOption = False,
) -> None:
    """Write records to files of other programs.

    All that a ref names, or exactly the rows of a mix lock.
    What the format has no place for is said. With `-o -` the records go to stdout and the summary to stderr.

    API: Store.export.
    """
    piped = output == "-"
    if piped and format_ == "parquet" and sys.stdout.isatty():
        raise UsageError("a terminal can't show parquet", code="bad-path", hint="name a file: -o FILE.parquet")
    if not piped and not Path(output).name:
        raise UsageError(f"{output!r} isn't the name of a file", code="bad-path")
    opened = open_store(store)
    to = sys.stdout.buffer if piped else output
    with gauge(f"exporting {source}") as progress, engine_for(engine, opened.uri) as workers:
        summary = opened.export(
            source,
            to,
            format=format_,
            split=split.value,
            columns=column or None,
            shard_rows=shard_rows,
            with_ref=with_ref,
            epochs="as-locked" if epochs is None else epochs,
            erased=erased.value,
            skip_unfit=skip_unfit,
            force=force,
            progress=progress,
            engine=workers,
        )
    render(summary, json, lambda: _told(summary), to_stderr=piped)
    if summary.heldout and "split" in summary.dropped:
        say(f"note: {number(summary.heldout)} of these records are held-out ones; --split train leaves them out")


def _told(summary: ExportSummary) -> RenderableType:
    several = f" in {len(summary.files)} files" if len(summary.files) > 1 else ""
    pairs: list[tuple[str, Any]] = [
        ("exported", summary.source),
        ("lock", summary.lock),
        ("to", None if summary.paths == ["-"] else _paths(summary.paths)),
        ("rows", f"{number(summary.rows)}{several}, {size(sum(file.bytes for file in summary.files))}"),
        ("held-out", f"{number(summary.heldout)} of them" if summary.heldout else None),
        ("excluded", f"{number(summary.excluded)}, not written" if summary.excluded else None),
        ("erased", f"{number(summary.erased)}, not written" if summary.erased else None),
        ("not held", _dropped(summary) or None),
        (
            "left out",
            f"{number(summary.left_out)}, which {summary.format} has no form for" if summary.left_out else None,
        ),
    ]
    pairs += [("", f"{one.id}: {one.problems[0]}") for one in summary.problems[:_SHOWN]]
    return facts(pairs)


def _paths(paths: list[str]) -> str:
    return paths[0] if len(paths) == 1 else f"{paths[0]} … {paths[-1]}"


def _dropped(summary: ExportSummary) -> str:
    """What the format has no place for; how many records said it, where not all did."""
    return ", ".join(name if n == summary.rows else f"{name} ({number(n)})" for name, n in summary.dropped.items())
