"""`treering gate`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from treering.cli.options import JsonOption, StoreOption, open_store
from treering.cli.output import columns, render, waiting
from treering.errors import CheckFailedError

if TYPE_CHECKING:
    from rich.console import RenderableType

    from treering import Verdict

__all__ = ["gate"]


def gate(
    adapter: Annotated[str, typer.Argument(help="CORPUS:candidate or CORPUS:NUMBER.")],
    policy: Annotated[str | None, typer.Option(metavar="FILE", help="TOML: minimum scores and tolerance.")] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Measure again what was measured before.")] = False,
    store: StoreOption = None,
    json: JsonOption = False,
) -> None:
    """Judge a candidate against what is in production.

    Exits with 3 when it is refused. Without a policy: no slice may lose more than 2 points.

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

    from treering.evaluation.matrix import points

    heads = ["slice", "score", "before", "change", "at least", "verdict"]
    rows = [
        (
            row.what,
            points(row.score),
            points(row.previous),
            points(row.change, signed=True),
            points(row.minimum),
            "passed" if row.passed else "refused",
        )
        for row in verdict.rows
    ]
    outcome = Text("passed", "bold green") if verdict.passed else Text("refused", "bold red")
    line = Text(f"{verdict.candidate or 'candidate'} against {verdict.baseline or 'nothing'}: ").append_text(outcome)
    return Group(columns(heads, rows, right=heads[1:5]), Text(), line)
