"""`treering annotate`: what is said about records later."""

from __future__ import annotations

import json as json_
import sys
from dataclasses import dataclass
from typing import Annotated, Any, cast

import typer

from treering.cli.options import CorpusArgument, JsonOption, StoreOption, open_store
from treering.cli.output import number, render, say, waiting
from treering.errors import UsageError

__all__ = ["annotate"]


@dataclass(frozen=True)
class AnnotatedRecords:
    """How many words were stored: one per record and key."""

    corpus: str
    stored: int


def annotate(
    name: CorpusArgument,
    record: Annotated[str | None, typer.Argument(metavar="ID", help="The record.", show_default=False)] = None,
    label: Annotated[str | None, typer.Option(help="What it should be labelled.")] = None,
    outcome: Annotated[str | None, typer.Option(help="What came of it.")] = None,
    quality: Annotated[float | None, typer.Option(help="A number, the higher the better.")] = None,
    correction: Annotated[
        str | None,
        typer.Option(metavar="JSON", help='What should have stood in it, {"COLUMN": VALUE, …}; {} takes that back.'),
    ] = None,
    exclude: Annotated[
        bool | None,
        typer.Option("--exclude/--include", help="Keep it out of training and evaluation, or let it back in."),
    ] = None,
    intents: Annotated[int | None, typer.Option(help="How many things it asks for at once.")] = None,
    by: Annotated[str | None, typer.Option(help="Who says so.")] = None,
    note: Annotated[str | None, typer.Option(help="Why.")] = None,
    file: Annotated[
        str | None,
        typer.Option(
            "--from", metavar="FILE|-", help="JSONL, CSV or Parquet: a row per record, with id, label, exclude, …"
        ),
    ] = None,
    format: Annotated[  # noqa: A002
        str | None, typer.Option("--format", metavar="F", help="jsonl, csv or parquet [by the file's ending].")
    ] = None,
    store: StoreOption = None,
    json: JsonOption = False,
) -> None:
    """Say something about a record, or about many.

    With --from FILE about all that it names, or none.
    The newest word counts. Snapshots stay as they are, and locks replay with what had been said by then.

    API: Corpus.annotate, Corpus.annotate_many.
    """
    said: dict[str, Any] = {
        "label": label,
        "outcome": outcome,
        "quality": quality,
        "correction": None if correction is None else _json_or_text(correction),
        "exclude": exclude,
        "intents": intents,
    }
    if (record is None) == (file is None):
        raise UsageError(
            "say something about one record, or --from FILE about many",
            code="no-record",
            hint="treering annotate support ID --exclude, or treering annotate support --from words.csv",
        )
    if file is not None and any(value is not None for value in (*said.values(), by, note)):
        raise UsageError("with --from, the lines say it all", code="bad-argument", hint="leave the other options out")
    if file is None and all(value is None for value in said.values()):
        raise UsageError("nothing is said", code="bad-argument", hint="--exclude, --label, --quality, …")
    if file is None and format is not None:
        raise UsageError("--format is that of a file", code="bad-argument", hint="name it: --from FILE")
    corpus = open_store(store).corpus(name)
    with waiting("storing"):
        if file is not None:
            from treering.capture.annotation_files import annotate_file

            given: Any = sys.stdin.buffer if file == "-" else file
            stored = annotate_file(corpus, given, format=cast("Any", format))
        else:
            stored = corpus.annotate_many([{"id": record, **said, "by": by, "note": note}])
    result = AnnotatedRecords(name, stored)
    render(result, json, lambda: f"{number(stored)} {'annotation' if stored == 1 else 'annotations'} stored")
    if not stored:
        say(f"{file} is empty: nothing was stored")


def _json_or_text(text: str) -> Any:
    try:
        return json_.loads(text)
    except ValueError:
        return text
