"""`treering diff`: what two refs differ in."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from treering.cli import completion
from treering.cli.options import JsonOption, StoreOption, open_store
from treering.cli.output import columns, number, plain, render, tied, waiting, when
from treering.errors import CheckFailedError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import RenderableType

    from treering import Diff
    from treering.evaluation.drift import Balance, ColumnDrift

__all__ = ["diff", "drift_table"]

_SHOWN_VALUES = 6
_MEASURES = {"js_distance": "JS", "psi": "PSI", "auc": "AUC"}


def diff(
    before: Annotated[
        str,
        typer.Argument(
            metavar="REF", help="What it was: CORPUS@v1, @v1..v3, @live, CORPUS/NAME.", autocompletion=completion.refs
        ),
    ],
    after: Annotated[
        str | None,
        typer.Argument(
            metavar="[REF]",
            help="What it is. With one REF alone: live (or a corpus) against the newest snapshot, a snapshot against the "
            "one before it.",
            show_default=False,
            autocompletion=completion.refs,
        ),
    ] = None,
    records: Annotated[bool, typer.Option("--records", help="Also show records like nothing before.")] = False,
    number_of: Annotated[int, typer.Option("-n", "--rows", min=1, help="With --records: how many.")] = 5,
    text: Annotated[
        str | None, typer.Option(metavar="COLUMN", help="Where records say it [default: messages, else text].")
    ] = None,
    fail_on_drift: Annotated[bool, typer.Option("--fail-on-drift", help="Exit with 3 when a column drifted.")] = False,
    store: StoreOption = None,
    json: JsonOption = False,
) -> None:
    """Say what two refs differ in, and whether they drifted apart.

    Scores: JS, the Jensen–Shannon distance of values; PSI, the population stability index of numbers and lengths; AUC, how
    well a word-counting classifier tells the texts apart. Exits with 0 whatever it finds, or with --fail-on-drift with 3.

    API: treering.diff.
    """
    import treering

    opened = open_store(store)
    with waiting("comparing"):
        found = treering.diff(opened, before, after, records=number_of if records else False, text=text)
    render(found, json, lambda: _shown(found))
    if fail_on_drift and found.drifted:
        drifted = [f"{d.column} ({d.what})" for d in found.drift if d.drifted]
        raise CheckFailedError(
            f"{found.after.ref} drifted from {found.before.ref}: {', '.join(drifted)}",
            code="drifted",
            hint=f"look at what is new: treering diff {found.before.ref} {found.after.ref} --records",
        )


def _shown(found: Diff) -> RenderableType:
    from rich.console import Group
    from rich.text import Text

    b, a = found.before, found.after
    rows: list[tuple[Any, ...]] = [
        ("records", number(b.rows), number(a.rows), _by(b.rows, a.rows)),
        ("training", number(b.training_rows), number(a.training_rows), _by(b.training_rows, a.training_rows)),
        ("held-out", number(b.heldout_rows), number(a.heldout_rows), _by(b.heldout_rows, a.heldout_rows)),
    ]
    if b.excluded_rows or a.excluded_rows:
        rows.append(("excluded", number(b.excluded_rows), number(a.excluded_rows), ""))
    if b.captured_under != a.captured_under:
        rows.append(("schema version", _versions(b.captured_under), _versions(a.captured_under), ""))
    rows.append(
        ("earliest of them", when(b.first_ts) if b.first_ts else None, when(a.first_ts) if a.first_ts else None, "")
    )
    for length in found.lengths:
        cells = [f"{q.p5:.0f} · {q.p50:.0f} · {q.p95:.0f}" if q else None for q in (length.before, length.after)]
        rows.append((f"{length.unit}, 5 · 50 · 95 %", *cells, ""))
    right = [plain(b.ref), plain(a.ref)] if b.ref != a.ref else [plain(b.ref)]
    parts: list[RenderableType] = [columns(["", plain(b.ref), plain(a.ref), "change"], rows, right=[*right, "change"])]
    if found.schema_changes:
        changes = [(change.column, change.change) for change in found.schema_changes]
        parts += [Text(), columns(["column", "what changed"], changes)]
    for balance in found.balance:
        if balance.values_total > 1:
            parts += [Text(), *_balance(balance)]
    if found.overlap is not None:
        o = found.overlap
        error = f" ± {100 * o.error:.1f}" if o.error else ""
        said = f"{100 * o.share:.1f}{error} % of {a.ref} nearly equals a record of {b.ref} ({o.word_for_word:,} word for word)"
        parts += [Text(), Text(said)]
    parts.append(Text())
    if found.unscored:
        parts.append(Text(f"no drift scores: {found.unscored}"))
    else:
        parts.append(drift_table(found.drift))
    if found.drift:
        drifted = sum(1 for d in found.drift if d.drifted)
        outcome = (
            Text(f"{drifted} of {len(found.drift)} drifted", "bold yellow") if drifted else Text("no drift", "green")
        )
        parts += [Text(), outcome]
    for record in found.records or []:
        kind = " / ".join(part for part in (record.domain, record.label) if part)
        head = f"{record.id}  {kind}  ({record.why})" if kind else f"{record.id}  ({record.why})"
        parts += [Text(), Text(plain(head), "bold"), Text(plain(record.text or ""))]
    if found.records == []:
        parts += [Text(), Text(f"every record looked at has a near twin in {b.ref}")]
    return Group(*parts)


def drift_table(drift: Sequence[ColumnDrift]) -> RenderableType:
    """Score and line per column; a line that was raised because there are few records is marked."""
    from rich.console import Group
    from rich.text import Text

    rows = [
        (
            d.column,
            d.what,
            _MEASURES[d.measure],
            f"{d.score:.3f}",
            f"{d.line:.3f}{'*' if d.chance else ' '}",
            Text("drift", "yellow") if d.drifted else Text("no"),
            ", ".join(map(tied, d.telling[:5])),
        )
        for d in drift
    ]
    heads = ["column", "of", "by", "score", "line", "", "most"]
    table = columns(heads, rows, right=["score", "line"])
    if not any(d.chance for d in drift):
        return table
    return Group(table, Text("* fewer records, a higher line: below it may be chance", "dim"))


def _balance(balance: Balance) -> list[RenderableType]:
    from rich.text import Text

    moved = [v for v in balance.values if abs(v.after_share - v.before_share) >= 0.0005][:_SHOWN_VALUES]
    head = f"{balance.column}: {balance.values_total:,} {'value' if balance.values_total == 1 else 'values'}"
    for word, values in (("new", balance.new), ("gone", balance.gone)):
        if values:
            head += f", {len(values):,} {word}"
    if not moved:
        return [Text(plain(f"{head}, spread as before"))]
    rows = [
        (
            v.value if v.value is not None else "(none)",
            number(v.before),
            number(v.after),
            f"{100 * v.before_share:.1f} %",
            f"{100 * v.after_share:.1f} %",
            f"{100 * (v.after_share - v.before_share):+.1f}",
        )
        for v in moved
    ]
    if balance.values_total > len(moved):
        head += ", the most moved:"
    heads = ["value", "before", "after", "share", "share now", "points"]
    return [Text(plain(head)), columns(heads, rows, right=heads[1:])]


def _versions(numbers: list[int]) -> str:
    return ", ".join(map(str, numbers)) or "·"


def _by(before: int, after: int) -> str:
    if before == after:
        return "="
    return f"{after - before:+,}"
