"""`treering create` and `schema`: corpora."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from treering.cli import completion
from treering.cli.options import CorpusArgument, JsonOption, StoreOption, open_store
from treering.cli.output import columns, render, when
from treering.errors import NotFoundError, StoreError, UsageError

if TYPE_CHECKING:
    from rich.console import RenderableType

    from treering import Corpus
    from treering.schema import ColumnRule, SchemaSpec

__all__ = ["create", "rules", "schema"]

_COMMON = ("id", "session_id", "subject", "domain", "ts", "split", "origin", "meta")


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
class VersionView:
    """One version of a corpus's columns. `changes` gives the rule of each column that isn't as in the version before."""

    version: int
    created_at: datetime | None
    changes: dict[str, str]


@dataclass(frozen=True)
class SchemaView:
    """What a corpus's records look like at one version of its schema, and how that came about."""

    corpus: str
    record_type: str
    version: int
    fingerprint: str
    columns: list[ColumnView]
    versions: list[VersionView]
    json_schema: dict[str, Any]


@dataclass(frozen=True)
class EvolvedView:
    """How records of the version before are read from now on; `dry_run`: how they would be."""

    corpus: str
    before: int
    version: int
    dry_run: bool
    columns: list[ColumnRule]


def create(
    name: Annotated[str, typer.Argument(help="What to call it: a-z, then a-z 0-9 _ -.")],
    schema: Annotated[
        str,
        typer.Option(
            "--schema",
            metavar="S",
            help="chat, labelled, preference, tokens, or MODULE:NAME of your own.",
            autocompletion=completion.schemas,
        ),
    ],
    heldout: Annotated[float, typer.Option(help="Share of the groups that becomes held-out.")] = 0.1,
    group_by: Annotated[str, typer.Option(help="Records that share this field share a split.")] = "session_id",
    redact: Annotated[
        bool, typer.Option("--redact", help="Put markers in the place of secrets and obvious personal data at capture.")
    ] = False,
    store: StoreOption = None,
    json: JsonOption = False,
) -> None:
    """Make a corpus.

    API: Store.create.
    """
    opened = open_store(store)
    corpus = opened.create(name, _schema(schema), heldout=heldout, group_by=group_by, redact=redact)
    record = corpus.record
    made = NewCorpus(corpus.name, corpus.record_type.name, record.heldout, record.group_by, corpus.uri)
    render(made, json, lambda: f"made the corpus {made.corpus} of {made.record_type} records")


def schema(
    name: CorpusArgument,
    evolve: Annotated[
        str | None,
        typer.Option(
            "--evolve",
            metavar="S",
            help="Go on with these columns: a record type, or MODULE:NAME of your own.",
            autocompletion=completion.schemas,
        ),
    ] = None,
    rename: Annotated[
        list[str] | None,
        typer.Option("--rename", metavar="OLD=NEW", help="With --evolve: a column's new name; repeat."),
    ] = None,
    default: Annotated[
        list[str] | None,
        typer.Option(
            "--default", metavar="COL=JSON", help="With --evolve: what earlier records get (bytes as base64); repeat."
        ),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="With --evolve: only say what would become of it.")
    ] = False,
    version: Annotated[
        int | None, typer.Option("--version", metavar="N", help="Show this version, not the newest.")
    ] = None,
    arrow: Annotated[
        Path | None, typer.Option("--arrow", metavar="FILE", help="Write the Arrow schema (an IPC message) to FILE.")
    ] = None,
    store: StoreOption = None,
    json: JsonOption = False,
) -> None:
    """Show the columns of a corpus, or let them evolve.

    Columns can be added, renamed, widened and made optional. No record is rewritten: earlier ones are read by a rule.

    API: Corpus.record_type, Corpus.evolve.
    """
    corpus = open_store(store).corpus(name)
    if evolve is not None:
        if version is not None or arrow is not None:
            raise UsageError(
                "--version and --arrow show a schema, --evolve makes one", code="usage", hint="one at a time"
            )
        _evolve(corpus, evolve, rename or [], default or [], dry_run=dry_run, as_json=json)
        return
    if rename or default or dry_run:
        raise UsageError("--rename, --default and --dry-run belong to --evolve", code="usage", hint="add --evolve S")
    newest = corpus.versions[-1].number
    if version is not None and not 1 <= version <= newest:
        raise NotFoundError(
            f"{name} has no schema version {version}", code="no-version", hint=f"versions here: 1 to {newest}"
        )
    kind = corpus.record_type if version in (None, newest) else corpus.at_schema(version).record_type
    if arrow is not None:
        try:
            arrow.write_bytes(kind.schema.serialize())
        except OSError as exc:
            raise StoreError(f"can't write {arrow}: {exc.strerror}", code="write-failed") from exc
    payload = set(kind.payload)
    view = SchemaView(
        corpus=corpus.name,
        record_type=kind.name,
        version=version or newest,
        fingerprint=kind.fingerprint,
        columns=[ColumnView(f.name, str(f.type), f.nullable, f.name in payload) for f in kind.schema],
        versions=[_version(corpus, number) for number in range(1, newest + 1)],
        json_schema=kind.json_schema(),
    )

    def table() -> RenderableType:
        from rich.console import Group
        from rich.text import Text

        rows = [
            (c.name, "payload" if c.payload else "common", "optional" if c.nullable else "always there", c.type)
            for c in view.columns
        ]
        shown = columns(["column", "field", "value", "type"], rows)
        if newest == 1:
            return shown
        past = [
            (
                f"{'>' if v.version == view.version else ' '} {v.version}",
                when(v.created_at) if v.created_at else None,
                text,
            )
            for v in view.versions
            for text in ["; ".join(f"{column} {rule}" for column, rule in v.changes.items()) or "made"]
        ]
        return Group(shown, Text(), columns(["version", "since", "what changed"], past))

    render(view, json, table)


def _version(corpus: Corpus, number: int) -> VersionView:
    from treering.schema import Alignment

    changes = {}
    if number > 1:
        for rule in Alignment.between(corpus.versions, number - 1, number).describe():
            if (said := str(rule)) != "kept":
                changes[rule.column] = said if rule.was else f"added, {said}"
    return VersionView(number, corpus.versions[number - 1].created_at, changes)


def _evolve(
    corpus: Corpus, spec: str, renames: list[str], defaults: list[str], *, dry_run: bool, as_json: bool
) -> None:
    new = _schema(spec)
    rule = corpus.evolve(
        new, renames=_pairs("--rename", renames, "OLD=NEW"), defaults=_defaults(new, defaults), dry_run=dry_run
    )
    assert rule.source is not None
    view = EvolvedView(corpus.name, rule.source.number, rule.target.number, dry_run, rule.describe())

    def table() -> RenderableType:
        from rich.console import Group

        if view.before == view.version:
            return Text(f"nothing changes: {view.corpus} has these columns already (schema version {view.version})")
        would = "would be" if dry_run else "is now"
        head = Text(f"{view.corpus} {would} at schema version {view.version}; records of version {view.before}:")
        return Group(head, Text(), rules(view.columns))

    from rich.text import Text

    render(view, as_json, table)


def rules(shown: list[ColumnRule]) -> RenderableType:
    """How each column comes about; the common ones, which never change, in one line."""
    common = [rule for rule in shown if rule.column in _COMMON]
    rows = [(rule.column, str(rule), rule.type) for rule in shown if rule.column not in _COMMON]
    return columns(["column", "value", "type"], [*rows, (f"({len(common)} common fields)", "kept", "")])


def _pairs(option: str, words: list[str], form: str) -> dict[str, str]:
    """{left: right} of words that hold an equals sign."""
    found: dict[str, str] = {}
    for word in words:
        left, equals, right = word.partition("=")
        if not (left and equals and right) or left in found:
            raise UsageError(f"{option} {word}: expected {form}, each column once", code="usage")
        found[left] = right
    return found


def _defaults(spec: SchemaSpec, words: list[str]) -> dict[str, Any]:
    import base64
    import json

    import pyarrow as pa

    from treering.schema import RecordType

    columns = RecordType.of(spec).schema
    found: dict[str, Any] = {}
    for name, value in _pairs("--default", words, "COL=JSON").items():
        try:
            found[name] = json.loads(value)
            kind = columns.field(name).type if name in columns.names else None
            if (
                kind is not None
                and isinstance(found[name], str)
                and (pa.types.is_binary(kind) or pa.types.is_large_binary(kind))
            ):
                found[name] = base64.b64decode(found[name], validate=True)
        except ValueError as exc:
            raise UsageError(
                f"--default {name}={value}: {exc}",
                code="bad-default",
                hint=f"write JSON, text in its own quotes: --default '{name}=\"text\"'; bytes as base64",
            ) from exc
    return found


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
