"""`treering cache`: decoded columns of snapshots, beside the store."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import typer

from treering.cli import completion
from treering.cli.options import JsonOption, StoreOption, open_store
from treering.cli.output import columns, number, render, say, short, size, waiting

if TYPE_CHECKING:
    from rich.console import RenderableType

    from treering.mixing.cache import CacheEntry

__all__ = ["app"]

app = typer.Typer(
    name="cache",
    add_completion=False,
    rich_markup_mode=None,
    help="Columns of snapshots, decoded and memory-mapped. Loaders build and use them on their own.",
)


@app.callback(invoke_without_command=True)
def _start(context: typer.Context) -> None:
    if context.invoked_subcommand is None:
        typer.echo(context.get_help(), err=True)
        raise typer.Exit(2)


@dataclass(frozen=True)
class CacheView:
    """What is cached, and how much there may be."""

    folder: str
    bytes: int
    limit: int
    entries: list[CacheEntry]


@app.command()
def show(store: StoreOption = None, json: JsonOption = False) -> None:
    """List what is cached.

    API: Store.cache.entries.
    """
    cache = open_store(store).cache
    view = CacheView(str(cache.folder), cache.size, cache.limit, cache.entries())
    render(view, json, lambda: _table(view))


@app.command()
def build(
    ref: Annotated[str, typer.Argument(help="CORPUS@v1 or @v1..v3.", autocompletion=completion.snapshots)],
    column: Annotated[
        list[str] | None, typer.Option("-c", "--column", help="Only this column; repeat for more. [default: all]")
    ] = None,
    store: StoreOption = None,
    json: JsonOption = False,
) -> None:
    """Cache the columns of a snapshot's training rows now.

    Instead of in the first run that gains by it.

    API: Store.cache.build.
    """
    opened = open_store(store)
    source = opened.load(ref)
    names = column or source.schema.names
    cache = opened.cache
    with waiting(f"caching {ref}"):
        made = cache.build(source, names)
    missing = [
        f"{segment.ref} {name}" for segment in source.segments for name in names if not cache.holds(segment, name)
    ]
    if missing:
        say(f"no room for {', '.join(missing)}: the limit is {size(cache.limit)}")
    view = CacheView(str(cache.folder), cache.size, cache.limit, made)
    render(view, json, lambda: _table(view))


@app.command()
def drop(
    ref: Annotated[
        str | None,
        typer.Argument(help="CORPUS@v1 or @v1..v3. [default: everything]", autocompletion=completion.snapshots),
    ] = None,
    store: StoreOption = None,
    json: JsonOption = False,
) -> None:
    """Remove cached columns. Costs speed and nothing else; runs that use them go on.

    API: Store.cache.drop.
    """
    opened = open_store(store)
    cache = opened.cache
    if ref is None:
        gone = cache.drop()
    else:
        named = {segment.ref for segment in opened.load(ref).segments}
        gone = cache.drop(lambda entry: entry.ref not in named)
    view = CacheView(str(cache.folder), cache.size, cache.limit, gone)
    render(view, json, lambda: f"{number(len(gone))} columns dropped, {size(sum(one.bytes for one in gone))} freed")


def _table(view: CacheView) -> RenderableType:
    from rich.console import Group
    from rich.text import Text

    rows = [(e.ref, e.column, number(e.rows), size(e.bytes), short(e.digest)) for e in view.entries]
    return Group(
        columns(["snapshot", "column", "rows", "size", "digest"], rows, right=["rows", "size"]),
        Text(f"{size(view.bytes)} of at most {size(view.limit)} in {view.folder}"),
    )
