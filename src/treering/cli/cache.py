"""`treering cache`: decoded columns of snapshots, and what the frozen base says of texts, beside the store."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import typer

from treering.cli import completion
from treering.cli.options import EngineOption, JsonOption, StoreOption, engine_for, open_store
from treering.cli.output import columns, facts, gauge, number, render, say, short, size, waiting

if TYPE_CHECKING:
    from rich.console import RenderableType

    from treering.mixing.cache import CacheEntry
    from treering.rounds import Features

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
    engine: EngineOption = None,
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
    with waiting(f"caching {ref}"), engine_for(engine, opened.uri) as workers:
        made = cache.build(source, names, engine=workers)
    missing = [
        f"{segment.ref} {name}" for segment in source.segments for name in names if not cache.holds(segment, name)
    ]
    if missing:
        say(f"no room for {', '.join(missing)}: the limit is {size(cache.limit)}")
    view = CacheView(str(cache.folder), cache.size, cache.limit, made)
    render(view, json, lambda: _table(view))


@app.command()
def features(
    ref: Annotated[
        str, typer.Argument(help="A ref of labelled records, such as CORPUS@v1.", autocompletion=completion.refs)
    ],
    config: Annotated[str | None, typer.Option(metavar="FILE", help="TOML with fields of TrainConfig.")] = None,
    strategy: Annotated[
        str | None, typer.Option(help="How it will be trained, as `train` takes it [default: recommended].")
    ] = None,
    base: Annotated[str | None, typer.Option(help='The frozen base: "minilm", a directory, a hub name.')] = None,
    engine: EngineOption = None,
    store: StoreOption = None,
    json: JsonOption = False,
) -> None:
    """Encode a ref's texts with the frozen base now.

    Instead of in the first training and evaluation that read them. Say what `train` will be told.

    API: treering.cache_features.
    """
    from treering.cli.training import train_config

    settings = train_config(config, {}, strategy=strategy, base=base)
    opened = open_store(store)
    from treering import rounds

    with gauge(f"encoding {ref}") as progress, engine_for(engine, opened.uri) as workers:
        made = rounds.cache_features(opened, ref, settings, engine=workers, progress=progress)
    render(made, json, lambda: _features(made))


def _features(made: Features) -> RenderableType:
    cut = f", {number(made.cut)} of them longer than it takes" if made.cut else ""
    return facts(
        [
            ("ref", made.ref),
            ("base", f"{made.base} ({short(made.base_digest)})"),
            ("texts", number(made.texts)),
            ("encoded now", f"{number(made.encoded)}{cut}"),
        ]
    )


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
