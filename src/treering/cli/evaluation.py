"""`treering eval`: scores on held-out records, or the score matrix of a lineage."""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from treering.cli.options import JsonOption, StoreOption, open_store
from treering.cli.output import columns, number, render, waiting
from treering.errors import UsageError

if TYPE_CHECKING:
    from rich.console import RenderableType

    from treering.rounds import Evaluation

__all__ = ["evaluate"]


class By(StrEnum):
    """What a slice is."""

    snapshot = "snapshot"
    domain = "domain"


def evaluate(
    adapter: Annotated[str, typer.Argument(help="CORPUS:candidate, CORPUS:production or CORPUS:NUMBER.")],
    on: Annotated[
        list[str] | None,
        typer.Option("--on", metavar="REF", help="Score on this ref's held-out records; repeat for more."),
    ] = None,
    metric: Annotated[str, typer.Option(help="macro_f1 or accuracy.")] = "macro_f1",
    matrix: Annotated[bool, typer.Option("--matrix", help="The score matrix of the adapter's lineage.")] = False,
    by: Annotated[By, typer.Option(help="With --matrix: a slice per snapshot or per domain.")] = By.snapshot,
    fresh: Annotated[bool, typer.Option("--fresh", help="Measure again what was measured before.")] = False,
    store: StoreOption = None,
    json: JsonOption = False,
) -> None:
    """Score an adapter on held-out records.

    Without --on: on every snapshot of its corpus. Tables print points of 100, JSON fractions of 1.

    API: treering.evaluate, treering.score_matrix.
    """
    from treering import rounds

    if matrix and on:
        raise UsageError("--matrix has its own slices", hint="leave out --on, or leave out --matrix")
    opened = open_store(store)
    with waiting(f"evaluating {adapter}"):
        if matrix:
            from treering.store import AdapterRef

            corpus = AdapterRef.parse(adapter).corpus
            found = rounds.score_matrix(opened, corpus, adapter=adapter, metric=metric, by=by.value, fresh=fresh)
        else:
            scores = rounds.evaluate(opened, adapter, on=on or None, metric=metric, fresh=fresh)
    if matrix:
        render(found.to_model(), json, found.table)
    else:
        render(scores, json, lambda: _table(scores))


def _table(scores: Evaluation) -> RenderableType:
    from treering.evaluation.matrix import points

    rows = [(ref, points(score), number(scores.rows[ref])) for ref, score in scores.scores.items()]
    return columns(["held-out of", scores.metric, "records"], rows, right=[scores.metric, "records"])
