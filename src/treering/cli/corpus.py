"""`treering create`, `schema` and `status`: corpora."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from treering.cli.options import JsonOption, StoreOption, open_store
from treering.cli.output import columns, facts, number, render
from treering.errors import UsageError

if TYPE_CHECKING:
    from rich.console import RenderableType

    from treering import Corpus, Store
    from treering.schema import SchemaSpec

__all__ = ["create", "schema", "status"]


@dataclass(frozen=True)
class NewCorpus:
    """A corpus just made."""

    corpus: str
    record_type: str
    heldout: float
    group_by: str
    uri: str


@dataclass(frozen=True)
class ColumnView:
    """One column of a corpus."""

    name: str
    type: str
    nullable: bool
    payload: bool


@dataclass(frozen=True)
class SchemaView:
    """What a corpus's records look like."""

    corpus: str
    record_type: str
    fingerprint: str
    columns: list[ColumnView]
    json_schema: dict[str, Any]


@dataclass(frozen=True)
class CorpusStatus:
    """Where the records of a corpus are. Rows are records, held-out ones included."""

    corpus: str
    record_type: str
    live_rows: int
    sealed_rows: int
    snapshots: int
    newest: str | None
    quarantined: int
    production: str | None
    candidate: str | None
    uri: str


def create(
    name: str,
    schema: Annotated[
        str,
        typer.Option("--schema", metavar="S", help="chat, labelled, preference, tokens, or MODULE:NAME of your own."),
    ],
    heldout: Annotated[float, typer.Option(help="Share of the groups that becomes held-out.")] = 0.1,
    group_by: Annotated[str, typer.Option(help="Records that share this field share a split.")] = "session_id",
    store: StoreOption = None,
    json: JsonOption = False,
) -> None:
    """Make a corpus.

    API: Store.create.
    """
    opened = open_store(store)
    corpus = opened.create(name, _schema(schema), heldout=heldout, group_by=group_by)
    record = corpus.record
    made = NewCorpus(corpus.name, corpus.record_type.name, record.heldout, record.group_by, corpus.uri)
    render(made, json, lambda: f"made the corpus {made.corpus} of {made.record_type} records")


def schema(name: str, store: StoreOption = None, json: JsonOption = False) -> None:
    """Show the columns of a corpus.

    API: Corpus.record_type.
    """
    corpus = open_store(store).corpus(name)
    kind = corpus.record_type
    payload = set(kind.payload)
    view = SchemaView(
        corpus=corpus.name,
        record_type=kind.name,
        fingerprint=kind.fingerprint,
        columns=[ColumnView(f.name, str(f.type), f.nullable, f.name in payload) for f in kind.schema],
        json_schema=kind.json_schema(),
    )

    def table() -> RenderableType:
        rows = [
            (c.name, "payload" if c.payload else "common", "optional" if c.nullable else "always there", c.type)
            for c in view.columns
        ]
        return columns(["column", "field", "value", "type"], rows)

    render(view, json, table)


def status(
    name: Annotated[str | None, typer.Argument(help="A corpus [default: all of them].")] = None,
    store: StoreOption = None,
    json: JsonOption = False,
) -> None:
    """Say where the records of a corpus are.

    API: Store.corpus.
    """
    opened = open_store(store)
    if name is None:
        every = [_status(opened, corpus) for corpus in opened.corpora()]
        render(every, json, lambda: _overview(every) if every else "no corpora yet; make one: treering create")
        return
    found = _status(opened, opened.corpus(name))
    render(
        found,
        json,
        lambda: facts(
            [
                ("corpus", found.corpus),
                ("record type", found.record_type),
                ("live", f"{number(found.live_rows)} records"),
                ("sealed", f"{number(found.sealed_rows)} records in {found.snapshots} snapshots"),
                ("newest snapshot", found.newest),
                ("quarantine", f"{number(found.quarantined)} records"),
                ("production", found.production or "none"),
                ("candidate", found.candidate or "none"),
                ("table", found.uri),
            ]
        ),
    )


def _status(store: Store, corpus: Corpus) -> CorpusStatus:
    quarantined = len(corpus.quarantine())  # first: it also commits what waits in spools
    snapshots = corpus.snapshots()
    adapters = store.adapters(corpus.name)
    by_status = {adapter.status: adapter.ref for adapter in adapters}  # the newest of each
    return CorpusStatus(
        corpus=corpus.name,
        record_type=corpus.record_type.name,
        live_rows=corpus.live_rows(),
        sealed_rows=sum(snapshot.rows for snapshot in snapshots),
        snapshots=len(snapshots),
        newest=snapshots[-1].ref if snapshots else None,
        quarantined=quarantined,
        production=by_status.get("production"),
        candidate=by_status.get("candidate"),
        uri=corpus.uri,
    )


def _overview(every: list[CorpusStatus]) -> RenderableType:
    heads = ["corpus", "type", "live", "sealed", "newest", "refused", "production"]
    rows = [
        (
            s.corpus,
            s.record_type,
            number(s.live_rows),
            number(s.sealed_rows),
            s.newest,
            number(s.quarantined),
            s.production,
        )
        for s in every
    ]
    return columns(heads, rows, right=["live", "sealed", "refused"])


def _schema(spec: str) -> SchemaSpec:
    """What `--schema` names. Raises UsageError for a module or a name in it that isn't there."""
    if ":" not in spec:
        return spec
    from importlib import import_module

    module_name, _, path = spec.partition(":")
    if "" not in sys.path and "." not in sys.path:
        sys.path.insert(
            0, ""
        )  # a script's path starts at the script: find modules in this directory as `python -m` does
    try:
        found: Any = import_module(module_name)
        for part in path.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError, ValueError, SyntaxError) as exc:
        raise UsageError(
            f"can't load the schema {spec}: {exc}", code="bad-schema", hint="write MODULE:NAME, as in records:Ticket"
        ) from exc
    return cast("SchemaSpec", found)
