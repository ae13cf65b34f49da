"""`treering report`: one HTML file that tells whether the model forgets."""

from __future__ import annotations

from typing import Annotated

import typer

from treering.cli import completion
from treering.cli.options import JsonOption, StoreOption, open_store
from treering.cli.output import render, say, waiting
from treering.errors import UsageError

__all__ = ["report"]


def report(
    corpus: Annotated[
        str | None, typer.Argument(help="A corpus [default: the only one].", autocompletion=completion.corpora)
    ] = None,
    adapter: Annotated[
        str | None,
        typer.Option(
            metavar="ADAPTER",
            help="Report on this one [default: production, else the newest].",
            autocompletion=completion.adapters,
        ),
    ] = None,
    output: Annotated[
        str | None,
        typer.Option("--output", "-o", metavar="FILE", help="Where to write it [default: CORPUS-report.html]."),
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Leave out diagnosis, drift and audit.")] = False,
    store: StoreOption = None,
    json: JsonOption = False,
) -> None:
    """Write a page that shows whether the model forgets, and why.

    And where it comes from. With --json: its figures on stdout; a page only where -o says.

    API: Store.report, treering.report.gather_report.
    """
    opened = open_store(store)
    if corpus is None:
        names = [one.name for one in opened.corpora()]
        if len(names) != 1:
            raise UsageError(
                f"which corpus? here are {', '.join(names) or 'none'}", code="no-corpus", hint="treering report NAME"
            )
        corpus = names[0]
    from treering.report import gather_report, render_report
    from treering.report.page import write_page

    with waiting(f"gathering what is known of {corpus}"):
        data = gather_report(opened, corpus, adapter=adapter, quick=quick)
    written = None
    if output or not json:
        written = write_page(output or f"{corpus}-report.html", render_report(data))
        say(f"wrote {written}")
    render(data, json, lambda: str(written))
