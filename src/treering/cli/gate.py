"""`treering gate`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from treering.cli import completion
from treering.cli.options import JsonOption, StoreOption, open_store
from treering.cli.output import columns, render, waiting
from treering.errors import CheckFailedError

if TYPE_CHECKING:
    from rich.console import RenderableType

    from treering import Verdict
    from treering.evaluation import Budget, CheckedRow

__all__ = ["gate"]


def gate(
    adapter: Annotated[
        str, typer.Argument(help="CORPUS:candidate or CORPUS:NUMBER.", autocompletion=completion.adapters)
    ],
    policy: Annotated[str | None, typer.Option(metavar="FILE", help="TOML: minimum scores and tolerance.")] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Measure again what was measured before.")] = False,
    store: StoreOption = None,
    json: JsonOption = False,
) -> None:
    """Judge a candidate against what is in production.

    Exits with 3 when it is refused. Without a policy: no slice may lose more than 2 points, and on this machine one text
    takes at most 100 ms (p99) and 16 GB.

    API: treering.gate.
    """
    import treering

    opened = open_store(store)
    with waiting(f"judging {adapter}"):
        verdict = treering.gate(opened, adapter, policy=policy, fresh=fresh)
    render(verdict, json, lambda: _table(verdict))
    if not verdict.passed:
        raise CheckFailedError(
            f"the gate refused {verdict.candidate or adapter}: {'; '.join(verdict.reasons)}",
            code="gate-refused",
            hint="train another candidate with more replay, or change the policy",
        )


def _table(verdict: Verdict) -> RenderableType:
    from rich.console import Group
    from rich.text import Text

    heads = ["slice", "score", "before", "change", "line", "verdict"]
    rows = [
        (
            row.what,
            _figure(row, row.score),
            _figure(row, row.previous),
            _figure(row, row.change, signed=True),
            _line(row),
            "passed" if row.passed else "refused",
        )
        for row in verdict.rows
    ]
    outcome = Text("passed", "bold green") if verdict.passed else Text("refused", "bold red")
    line = Text(f"{verdict.candidate or 'candidate'} against {verdict.baseline or 'nothing'}: ").append_text(outcome)
    parts: list[RenderableType] = [columns(heads, rows, right=heads[1:5]), Text()]
    if verdict.budget is not None:
        parts.append(Text(budget_line(verdict.budget)))
    return Group(*parts, line)


def budget_line(budget: Budget) -> str:
    """What serving took, and the projection, labelled as one."""
    said = (
        f"measured on {budget.texts} texts one by one ({budget.machine}): p50 {budget.p50_ms:.3g} ms, "
        f"p99 {budget.p99_ms:.3g} ms, {budget.memory_gb:.2f} GB resident"
    )
    if budget.projected is None:
        return said
    far = budget.projected
    return f"{said}\nprojected, not measured, over a 7B base: p99 {far.p99_ms:,.0f} ms, {far.memory_gb:.1f} GB ({far.formula})"


def _figure(row: CheckedRow, value: float | None, *, signed: bool = False) -> str:
    from treering.evaluation.matrix import points

    if row.unit == "points" or value is None:
        return points(value, signed=signed)
    if row.unit in ("nats", "plain"):
        return f"{value:{'+' if signed else ''}.3f}"
    return f"{value:.3g} {row.unit}"


def _line(row: CheckedRow) -> str:
    if row.maximum is not None:
        return f"≤ {_figure(row, row.maximum)}"
    return "·" if row.minimum is None else f"≥ {_figure(row, row.minimum)}"
