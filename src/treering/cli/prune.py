"""`treering prune`: what old snapshots take, and giving it back."""

from __future__ import annotations

import re
from datetime import timedelta
from typing import TYPE_CHECKING, Annotated

import typer

from treering.cli.options import CorpusArgument, JsonOption, StoreOption, open_store
from treering.cli.output import columns, number, render, say, size, waiting, when
from treering.errors import UsageError

if TYPE_CHECKING:
    from rich.console import RenderableType

    from treering.registry.prune import PruneReport

__all__ = ["prune"]

_UNITS = {"h": timedelta(hours=1), "d": timedelta(days=1), "w": timedelta(weeks=1)}


def prune(
    name: CorpusArgument,
    keep: Annotated[int | None, typer.Option("--keep", metavar="N", help="All but the newest N.")] = None,
    older_than: Annotated[
        str | None, typer.Option("--older-than", metavar="AGE", help="Those older than that: 90d, 12w, 36h.")
    ] = None,
    uninformative: Annotated[
        bool, typer.Option("--uninformative", help="Those whose held-out scores no longer move (0.01 over 3 rounds).")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do it; without, only say what it would take.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Prune what production was trained on too.")] = False,
    keep_heldout: Annotated[
        bool, typer.Option("--keep-heldout", help="Keep the held-out records, for evaluation.")
    ] = False,
    store: StoreOption = None,
    json: JsonOption = False,
) -> None:
    """Give back the bytes of old snapshots, for good. Without --yes nothing is changed.

    Exits with 3 when production needs one of them and --force isn't given.

    API: Corpus.prune.
    """
    age = None if older_than is None else _age(older_than)
    corpus = open_store(store).corpus(name)
    with waiting("pruning" if yes else "looking"):
        report = corpus.prune(
            keep=keep,
            older_than=age,
            uninformative=uninformative,
            dry_run=not yes,
            force=force,
            keep_heldout=keep_heldout,
        )
    render(report, json, lambda: _table(report))
    for note in report.notes:
        say(note)
    if not report.snapshots:
        say(f"nothing of {name} is to be pruned by that rule ({report.rule})")
    elif report.dry_run:
        needed = f"; {', '.join(report.blocked)} only with --force: production needs it" if report.blocked else ""
        say(f"nothing was pruned yet: {size(report.bytes)} would be freed with --yes{needed}")
    else:
        say(f"{len(report.snapshots)} pruned, {size(report.freed or 0)} freed; names and digests stay")


def _table(report: PruneReport) -> RenderableType | str:
    if not report.snapshots:
        return f"{len(report.kept)} snapshots stay"
    rows = [
        (
            one.ref,
            number(one.rows),
            when(one.created_at),
            size(one.bytes),
            ", ".join(one.adapters) or None,
            number(len(one.locks)),
            ", ".join(one.needed_by) or None,
        )
        for one in report.snapshots
    ]
    heads = ["snapshot", "records", "sealed", "frees", "not repeatable", "locks", "needed by"]
    return columns(heads, rows, right=["records", "frees", "locks"])


def _age(text: str) -> timedelta:
    found = re.fullmatch(r"(\d{1,6})\s*([hdw]?)", text.strip())
    if found is None:
        raise UsageError(f"{text!r} isn't an age", code="bad-prune", hint="write 90d, 12w or 36h")
    return int(found[1]) * _UNITS[found[2] or "d"]
