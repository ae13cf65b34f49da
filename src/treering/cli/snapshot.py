"""`treering snapshot` and `log`."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Annotated

import typer

from treering.cli import completion
from treering.cli.options import CorpusArgument, JsonOption, StoreOption, open_store
from treering.cli.output import counted, facts, number, plain, render, say, waiting, when
from treering.errors import UsageError

if TYPE_CHECKING:
    from rich.console import RenderableType

    from treering import Snapshot

__all__ = ["log", "snapshot"]

_LONGEST = 120  # characters of a message in the line of snapshots


@dataclass(frozen=True)
class SealedView:
    """A snapshot just sealed."""

    ref: str
    rows: int
    digest: str
    created_at: datetime
    message: str
    uri: str
    version: str


@dataclass(frozen=True)
class LogEntry:
    """One snapshot in the line, without what would take a pass over its data."""

    ref: str
    name: str
    parent: str | None
    rows: int
    created_at: datetime
    message: str
    trained: bool
    pruned_at: datetime | None = None
    pruned_by: str | None = None


@dataclass(frozen=True)
class Log:
    """The line of snapshots, newest first, and the records that aren't sealed yet."""

    corpus: str
    live_rows: int
    production: str | None
    snapshots: list[LogEntry]


def snapshot(
    live: Annotated[
        str, typer.Argument(metavar="live", help="What is sealed; the word `live`.", autocompletion=completion.live)
    ],
    to: Annotated[
        str,
        typer.Option(
            "--to",
            metavar="NAME[@vN]",
            help="The corpus, or the snapshot it must become.",
            autocompletion=completion.targets,
        ),
    ],
    message: Annotated[str, typer.Option("-m", "--message", metavar="TEXT", help="Kept with the snapshot.")] = "",
    store: StoreOption = None,
    json: JsonOption = False,
) -> None:
    """Seal what live holds as the next snapshot.

    An empty live seals nothing and says so.

    API: Store.snapshot.
    """
    if live != "live":
        raise UsageError(f"only live can be sealed, not {live!r}", hint="write: treering snapshot live --to NAME")
    with waiting("sealing"):
        sealed = open_store(store).snapshot(to, message=message)
    if sealed is None:
        say(f"{to.partition('@')[0]}@live is empty: nothing was sealed")
        if json:
            render(None, True, str)
        return
    with waiting(f"certifying {sealed.ref}"):
        view = _sealed(sealed)
    render(
        view,
        json,
        lambda: facts(
            [
                ("sealed", view.ref),
                ("rows", number(view.rows)),
                ("digest", view.digest),
                ("at", when(view.created_at)),
                ("message", view.message or None),
                ("opens with", f'lance.dataset("{view.uri}", version="{view.version}")'),
            ]
        ),
    )


def _sealed(sealed: Snapshot) -> SealedView:
    return SealedView(
        ref=sealed.ref,
        rows=sealed.rows,
        digest=sealed.digest,
        created_at=sealed.created_at,
        message=sealed.message,
        uri=sealed.uri,
        version=sealed.name,
    )


def log(name: CorpusArgument, store: StoreOption = None, json: JsonOption = False) -> None:
    """Draw the line of snapshots, live on top.

    API: Corpus.snapshots.
    """
    from treering.capture import flush_spools
    from treering.store.snapshot import listed

    opened = open_store(store)
    corpus = opened.corpus(name)
    flush_spools(corpus)
    trained = opened.trained_snapshots(name)
    production = next((a.ref for a in opened.adapters(name) if a.status == "production"), None)
    found = Log(
        corpus=name,
        live_rows=corpus.live_rows(),
        production=production,
        snapshots=[
            LogEntry(
                ref=record.ref,
                name=record.name,
                parent=record.parent,
                rows=record.rows,
                created_at=record.created_at,
                message=record.message,
                trained=record.ref in trained,
                pruned_at=pruned.pruned_at if pruned else None,
                pruned_by=pruned.why if pruned else None,
            )
            for record, pruned in reversed(listed(corpus))
        ],
    )
    render(found, json, lambda: _drawing(found))


def _drawing(found: Log) -> RenderableType:
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    sealed = sum(entry.rows for entry in found.snapshots)
    head = Text(plain(found.corpus), "bold")
    head.append(f"  {counted(sealed, 'record')} in {counted(len(found.snapshots), 'snapshot')}", "default")
    if found.production:
        head.append(f", {found.production} in production", "default")
    # What a snapshot is called, holds and is used for stays in columns; a message may be of any length, and folds.
    line = Table.grid(padding=(0, 2, 0, 0))
    line.add_column(no_wrap=True)
    line.add_column(justify="right", no_wrap=True)
    line.add_column(no_wrap=True)
    line.add_column(overflow="fold")
    line.add_row("○ live", number(found.live_rows), "not sealed yet", "")
    for entry in found.snapshots:
        line.add_row("│", "", "", "")
        sign = Text("◌" if entry.pruned_at else "●", "yellow" if entry.pruned_at else "green" if entry.trained else "")
        said = Text()
        if entry.trained:
            said.append(f"← {found.production}", "green")
        if entry.pruned_at:
            said.append(f"{'  ' if said else ''}pruned {when(entry.pruned_at)} ({entry.pruned_by})", "yellow")
        if entry.message:
            said.append(f"{'  ' if said else ''}{_brief(entry.message)}")
        line.add_row(sign + Text(f" {entry.name}", "default"), number(entry.rows), when(entry.created_at), said)
    return Group(head, line)


def _brief(message: str) -> str:
    """A message on one line; the rest of a long one is for `show`."""
    line = plain(" ".join(message.split()))
    return line if len(line) <= _LONGEST else f"{line[: _LONGEST - 1]}…"
