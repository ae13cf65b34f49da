"""`treering select`: rows chosen under a budget, stored for good."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from treering.cli import completion
from treering.cli.options import JsonOption, StoreOption, open_store
from treering.cli.output import columns, counted, facts, number, render, short, waiting
from treering.errors import NotFoundError, UsageError

if TYPE_CHECKING:
    from rich.console import RenderableType

    from treering import Store
    from treering.store.documents import SelectionRecord

__all__ = ["select"]

_SHOWN = 20


@dataclass(frozen=True)
class SelectionView:
    """A stored selection: its ref, and its record."""

    ref: str
    record: SelectionRecord


def select(
    ref: Annotated[
        str,
        typer.Argument(
            help="CORPUS@v1, @v1..v3, @live, @new, or CORPUS/NAME of another selection.", autocompletion=completion.refs
        ),
    ],
    rows: Annotated[int | None, typer.Option(min=1, help="Budget in rows.")] = None,
    mb: Annotated[float | None, typer.Option(help="Budget in 10⁶ bytes, as Arrow holds them.")] = None,
    tokens: Annotated[
        int | None, typer.Option(min=1, help="Budget in tokens; words where there are no tokens.")
    ] = None,
    strategy: Annotated[
        str, typer.Option(metavar="S", help="reservoir, balanced, diverse or importance.")
    ] = "reservoir",
    by: Annotated[
        str | None, typer.Option(metavar="COLUMN", help="Groups [default: domain; diverse: opening words].")
    ] = None,
    spread: Annotated[
        str | None,
        typer.Option(metavar="COLUMN", help="Spread each group's rows evenly over this column's values: label."),
    ] = None,
    name: Annotated[str | None, typer.Option(help="What to call it [default: by its content].")] = None,
    seed: Annotated[int, typer.Option(help="What chance is drawn from.")] = 0,
    column: Annotated[
        list[str] | None, typer.Option("-c", "--column", help="With --mb: count this column; repeat for more.")
    ] = None,
    floor: Annotated[
        str | None, typer.Option(metavar="N", help="Rows (10) or share (0.02) that every group gets at least.")
    ] = None,
    forgetting: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="For importance: JSON of domain → loss, or a score matrix by domain [default: that of production].",
        ),
    ] = None,
    store: StoreOption = None,
    json: JsonOption = False,
) -> None:
    """Choose training records under a budget.

    The choice is named, never changes, and is a ref: CORPUS/NAME. Held-out and excluded records are never chosen.

    API: Source.select.
    """
    opened = open_store(store)
    source = opened.load(ref)
    with waiting(f"reading {ref}"):
        lost = _forgetting(opened, source.corpus, forgetting) if strategy == "importance" or forgetting else None
        chosen = source.select(
            rows=rows,
            mb=mb,
            tokens=tokens,
            strategy=cast("Any", strategy),
            by=by,
            name=name,
            seed=seed,
            columns=column or None,
            floor=_floor(floor),
            forgetting=lost,
            spread=spread,
        )
    assert chosen.selection is not None
    view = SelectionView(chosen.ref, chosen.selection)
    render(view, json, lambda: _tables(view.record))


def _floor(text: str | None) -> float | None:
    if text is None:
        return None
    try:
        return int(text) if text.isdigit() else float(text)
    except ValueError as exc:
        raise UsageError(f"{text!r} isn't a floor", code="bad-floor", hint="rows (10) or a share (0.02)") from exc


def _forgetting(store: Store, corpus: str, path: str | None) -> Any:
    import json

    import treering
    from treering.evaluation import ScoreMatrix

    if path is None:
        return treering.score_matrix(store, corpus, by="domain")
    try:
        with open(path, "rb") as file:
            data = json.load(file)
    except OSError as exc:
        raise NotFoundError(f"can't read {path}: {exc.strerror}", code="no-file") from exc
    except (ValueError, RecursionError) as exc:
        raise UsageError(f"{path} isn't JSON: {exc}", code="bad-forgetting") from exc
    if isinstance(data, dict) and "slices" in data:
        return ScoreMatrix.from_model(data)
    if not isinstance(data, dict) or not all(
        isinstance(v, int | float) and not isinstance(v, bool) for v in data.values()
    ):
        raise UsageError(f"{path} holds neither domain → loss nor a score matrix", code="bad-forgetting")
    return data


def _tables(record: SelectionRecord) -> RenderableType:
    from rich.console import Group
    from rich.text import Text

    report = record.report
    total = sum(d.available for d in report.domains)
    groups = f" by {record.by}" if record.strategy != "reservoir" else ""
    groups += f", spread over {record.spread}" if record.spread else ""
    pairs = [
        ("selection", record.ref),
        ("from", str(record.source["ref"])),
        ("strategy", record.strategy + groups),
        ("rows", f"{number(record.rows)} of {number(total)} that could be drawn"),
        ("budget", f"{number(record.used)} of {number(record.budget)} {record.unit}"),
        ("digest", short(record.digest)),
        (
            "distance",
            f"{report.total_variation:.3f} total variation, {report.jensen_shannon:.3f} bit Jensen–Shannon, "
            f"to the source over {report.by}",
        ),
        ("starving", _starving(record) if report.starving else "none"),
        ("too large", f"{counted(report.too_large, 'row')} above the budget alone" if report.too_large else None),
    ]
    shown = report.domains[:_SHOWN]
    heads = [report.by, "in the source", "chosen", "share", "aimed at"]
    rows: list[tuple[str | None, ...]] = [
        (
            d.domain if len(d.domain) <= 30 else d.domain[:29] + "…",
            number(d.available),
            number(d.rows),
            f"{100 * d.rows / record.rows:.1f} %",
            f"{100 * record.weights[d.domain]:.1f} %" if d.domain in record.weights else None,
        )
        for d in shown
    ]
    if not record.weights:
        heads, rows = heads[:-1], [row[:-1] for row in rows]
    parts: list[RenderableType] = [facts(pairs), Text(), columns(heads, rows, right=heads[1:])]
    if report.domains_total > len(shown):
        parts.append(Text(f"and {report.domains_total - len(shown):,} more"))
    return Group(*parts)


def _starving(record: SelectionRecord) -> str:
    report = record.report
    named = ", ".join(report.starving[:5]) + (", …" if report.starving_total > 5 else "")
    return f"{number(report.starving_total)} with fewer than {number(report.floor_rows)} rows: {named}"
