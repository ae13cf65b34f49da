"""`treering demo`: the whole story on real data."""

from __future__ import annotations

from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from treering.cli.options import JsonOption
from treering.cli.output import columns, render, say

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.text import Text

    from treering.demo import DemoArm, DemoResult

__all__ = ["demo"]

DIRECTORY = "treering-demo"


def demo(
    clinc: Annotated[
        str | None, typer.Option(metavar="PATH|URL", help="Run on CLINC150 instead: its data_full.json.")
    ] = None,
    report: Annotated[
        str | None, typer.Option(metavar="FILE", help="The HTML page [default: beside the store].")
    ] = None,
    store: Annotated[
        str | None, typer.Option("--store", metavar="DIR", help=f"A new store [default: ./{DIRECTORY}, or -2, -3 …].")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of weights and of the order of records.")] = 0,
    json: JsonOption = False,
) -> None:
    """Run the whole story on real data, in about a minute.

    Dialogues are captured as a live stream and sealed round by round. One adapter is trained on new data only, one on
    the mix of new and old; both are evaluated on every snapshot, the gate judges both, and what it passes is promoted.

    API: treering.demo.run_demo.
    """
    from treering.demo import run_demo

    where = store or _unused()
    result = run_demo(where, report=report or f"{where.rstrip('/')}.html", clinc=clinc, seed=seed, progress=say)
    render(result, json, lambda: _story(result))


def _unused() -> str:
    """The first of `treering-demo`, `treering-demo-2`, … that isn't there: a demo never writes into an older one."""
    names = (DIRECTORY if n == 1 else f"{DIRECTORY}-{n}" for n in count(1))
    return next(name for name in names if not Path(name).exists())


def _story(result: DemoResult) -> RenderableType:
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    import treering

    names = [ref.rpartition("@")[2] for ref in result.snapshots]
    arms = [("new data only", result.live_only), ("the mix", result.mix)]
    panels = [Group(Text(title, "bold"), _matrix(arm, names), _sums(arm)) for title, arm in arms]
    parts: list[RenderableType] = [Text("macro-F1 on held-out records, in points of 100; a row per round\n")]
    if len(names) <= 4:  # two of them fit into 80 columns
        grid = Table.grid(padding=(0, 6))
        grid.add_row(*panels)
        parts.append(grid)
    else:
        parts += [panels[0], Text(), panels[1]]
    verdicts = {a.ref: a.verdict for a in treering.open(result.store).adapters(result.mix.adapter.partition(":")[0])}
    parts.append(Text())
    for title, arm in arms:
        verdict = verdicts[arm.adapter]
        said = Text("not asked") if verdict is None else _said(verdict.passed, verdict.reasons)
        parts.append(Text(f"gate on {title}: ").append_text(said))
    parts.append(Text(f"in production: {result.promoted or 'nothing, the gate passed none'}"))
    parts.append(Text(f"store {result.store}", overflow="fold"))
    parts.append(Text(f"page {result.report}", overflow="fold"))
    return Group(*parts)


def _matrix(arm: DemoArm, names: list[str]) -> RenderableType:
    from treering.evaluation.matrix import points

    rows = [(name, *("" if v is None else points(v) for v in row)) for name, row in zip(names, arm.matrix, strict=True)]
    return columns(["", *names], rows, right=names)


def _sums(arm: DemoArm) -> RenderableType:
    from rich.text import Text

    from treering.evaluation.matrix import points

    style = "red" if arm.bwt < 0 else "green"
    return Text(f"average {points(arm.average)}   BWT ").append(points(arm.bwt, signed=True), style)


def _said(passed: bool, reasons: list[str]) -> Text:
    from rich.text import Text

    return Text("passed", "green") if passed else Text("refused", "red").append(f": {'; '.join(reasons)}", "default")
