"""`treering show` and `head`: what a ref names."""

from __future__ import annotations

import json as json_
from collections import Counter
from dataclasses import dataclass, field
from datetime import datetime
from itertools import islice
from typing import TYPE_CHECKING, Annotated, Any

import typer

from treering.cli import completion
from treering.cli.options import JsonOption, StoreOption, open_store
from treering.cli.output import columns, counted, facts, number, plain, render, say, short, tied, waiting, when
from treering.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rich.console import RenderableType

    from treering import Source, Store
    from treering.schema import ColumnRule
    from treering.store.documents import SelectionRecord

__all__ = ["head", "show"]

_SHOWN_VALUES = 8


@dataclass(frozen=True)
class PartView:
    """One snapshot, or live, of what a ref names. Live has no digest yet."""

    ref: str
    rows: int
    row_ids: tuple[int, int]
    digest: str | None
    created_at: datetime | None
    message: str | None
    uri: str
    version: str | None


@dataclass(frozen=True)
class AlignmentView:
    """How records that were captured under one schema version are read, column by column."""

    captured_under: int
    read_as: int
    parts: list[str]
    columns: list[ColumnRule]


@dataclass(frozen=True)
class SelectionView:
    """How the rows of a selection were chosen. `parts` then say what they were chosen from."""

    digest: str
    chosen_from: str
    strategy: str
    by: str
    budget: int
    used: int
    unit: str
    rows: int
    created_at: datetime


@dataclass(frozen=True)
class SourceView:
    """What a ref names. `counts` gives rows per value of each counted column ("" for none); null when live is part of it."""

    ref: str
    corpus: str
    record_type: str
    rows: int
    heldout_rows: int
    counts: dict[str, dict[str, int]] | None
    parts: list[PartView]
    schema_version: int
    alignments: list[AlignmentView] | None = None
    selection: SelectionView | None = None
    annotated: dict[str, int] = field(default_factory=dict)  # records by key of what was said of them later
    excluded_rows: int = 0


def show(
    ref: Annotated[
        str,
        typer.Argument(
            help="CORPUS@v1, @v1..v3, @live, @new, a selection CORPUS/NAME, or an adapter: CORPUS:1, CORPUS:production.",
            autocompletion=completion.named,
        ),
    ],
    align: Annotated[
        bool, typer.Option("--align", help="How records of earlier schema versions are read, column by column.")
    ] = False,
    store: StoreOption = None,
    json: JsonOption = False,
) -> None:
    """Say what a ref names.

    API: Store.load, Segment.alignments, Store.adapters.
    """
    opened = open_store(store)
    if ":" in ref and "@" not in ref:
        if align:
            raise UsageError("--align is about records; an adapter has none", code="usage")
        from treering.cli.adapters import show_adapter

        show_adapter(opened, ref, as_json=json)
        return
    source = opened.load(ref)
    with waiting(f"reading {ref}"):
        view = _view(opened, source, align=align)
    render(view, json, lambda: _aligned(view) if align else _details(view))


def head(
    ref: Annotated[
        str,
        typer.Argument(
            help="CORPUS@v1, @v1..v3, @live, @new, or a selection CORPUS/NAME.", autocompletion=completion.refs
        ),
    ],
    rows: Annotated[int, typer.Option("-n", "--rows", min=0, help="How many records.")] = 5,
    column: Annotated[
        list[str] | None, typer.Option("-c", "--column", help="Only this column; repeat for more.")
    ] = None,
    annotated: Annotated[
        bool, typer.Option("--annotated", help="With --json: what was said of a record later, as `_annotations`.")
    ] = False,
    store: StoreOption = None,
    json: JsonOption = False,
) -> None:
    """Print the first records of a ref.

    Each with what was said of it later: the newest word per key.

    API: Source.scan, Source.annotations.
    """
    source = open_store(store).load(ref)
    names = list(column) if column else source.schema.names
    records = list(islice(_records(source, [*names, *(["id"] if "id" not in names else [])]), rows))
    said = _said(source, [record["id"] for record in records])
    words = [said.get(record["id"], {}) for record in records]
    if "id" not in names:
        records = [{name: record[name] for name in names} for record in records]
    if not records and rows:
        say(f"{ref} holds no records")
    if json and annotated:
        records = [{**record, "_annotations": word} for record, word in zip(records, words, strict=True)]
    if json or records:
        render(records, json, lambda: _blocks(records, words))


def _said(source: Source, ids: list[str]) -> dict[str, dict[str, dict[str, Any]]]:
    """Record id → key → value, by, note and ts of the newest word."""
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for row in source.annotations(ids).to_pylist() if ids else []:
        word = {"value": json_.loads(row["value"]), "by": row["by"], "note": row["note"], "ts": row["ts"]}
        found.setdefault(row["id"], {})[row["key"]] = word
    return found


def _records(source: Source, names: list[str] | None) -> Iterator[dict[str, Any]]:
    for batch in source.scan(names):
        for start in range(0, len(batch), 64):  # a batch may hold thousands of rows, and a few are asked for
            yield from batch.slice(start, 64).to_pylist()


def _view(store: Store, source: Source, *, align: bool = False) -> SourceView:
    corpus = store.corpus(source.corpus)
    sealed = {snapshot.name: snapshot for snapshot in corpus.snapshots()}
    counts: dict[str, Counter[str]] = {}
    parts = []
    for segment in source.segments:
        snapshot = sealed.get(segment.name)
        parts.append(
            PartView(
                ref=segment.ref,
                rows=segment.rows,
                row_ids=segment.row_ids,
                digest=snapshot.digest if snapshot else None,
                created_at=snapshot.created_at if snapshot else None,
                message=snapshot.message if snapshot else None,
                uri=corpus.uri,
                version=snapshot.name if snapshot else None,
            )
        )
        if snapshot:
            for name, values in snapshot.certificate.counts.items():
                counts.setdefault(name, Counter()).update(values)
    said = source.annotations().select(["key", "value"]).to_pylist()
    # What is counted are whole snapshots.
    whole = source.is_whole and all(segment.name in sealed for segment in source.segments)
    return SourceView(
        ref=source.ref,
        corpus=source.corpus,
        record_type=corpus.record_type.name,
        rows=len(source),
        heldout_rows=len(source.heldout()),
        counts={name: dict(values.most_common()) for name, values in counts.items()} if whole else None,
        parts=parts,
        schema_version=source.schema_version,
        alignments=_alignments(source) if align else None,
        selection=_selection(source.selection) if source.selection is not None else None,
        annotated=dict(Counter(row["key"] for row in said if row["value"] != "false")),
        excluded_rows=sum(1 for row in said if (row["key"], row["value"]) == ("exclude", "true")),
    )


def _selection(record: SelectionRecord) -> SelectionView:
    return SelectionView(
        digest=record.digest,
        chosen_from=str(record.source["ref"]),
        strategy=record.strategy,
        by=record.by,
        budget=record.budget,
        used=record.used,
        unit=record.unit,
        rows=record.rows,
        created_at=record.created_at,
    )


def _alignments(source: Source) -> list[AlignmentView]:
    found: dict[int, AlignmentView] = {}
    for segment in source.segments:
        for version, alignment in segment.alignments().items():
            made = AlignmentView(version, source.schema_version, [], alignment.describe())
            found.setdefault(version, made).parts.append(segment.ref)
    return [found[version] for version in sorted(found)]


def _aligned(view: SourceView) -> RenderableType:
    from rich.console import Group
    from rich.text import Text

    from treering.cli.corpus import rules

    shown: list[RenderableType] = []
    for alignment in view.alignments or []:
        where = ", ".join(alignment.parts)
        head = f"captured under schema version {alignment.captured_under}, read as {alignment.read_as}: {where}"
        shown += [*([Text()] if shown else []), Text(head), Text(), rules(alignment.columns)]
    return Group(*shown) if shown else Text(f"{view.ref} holds no records")


def _details(view: SourceView) -> RenderableType:
    from rich.console import Group
    from rich.text import Text

    pairs: list[tuple[str, Any]] = [
        ("ref", view.ref),
        ("record type", view.record_type),
        ("rows", f"{number(view.rows)} ({number(view.heldout_rows)} held-out)"),
    ]
    words = {key: n for key, n in view.annotated.items() if key != "exclude"}
    if view.excluded_rows:
        pairs.append(("excluded", f"{number(view.excluded_rows)}, in no batch and no score"))
    if words:
        pairs.append(("annotated", ", ".join(f"{key} {number(n)}" for key, n in words.items())))
    for name, values in (view.counts or {}).items():
        if name != "split" and set(values) != {""}:
            pairs.append((name, _most(values)))
    if view.selection is not None:
        chosen = view.selection
        by = f" by {chosen.by}" if chosen.by else ""
        pairs += [
            ("selection", f"{chosen.strategy}{by}, {counted(chosen.rows, 'row')} of {chosen.chosen_from}"),
            ("budget", f"{number(chosen.used)} of {number(chosen.budget)} {chosen.unit}"),
            ("digest", chosen.digest),
            ("chosen", when(chosen.created_at)),
        ]
        return facts(pairs)
    if len(view.parts) == 1:
        part = view.parts[0]
        pairs += [
            ("digest", part.digest or "none before it is sealed"),
            ("sealed", when(part.created_at) if part.created_at else None),
            ("message", part.message or None),
            ("table", f"{part.uri}" + (f', version="{part.version}"' if part.version else "")),
        ]
        return facts(pairs)
    rows = [(p.ref, number(p.rows), when(p.created_at) if p.created_at else None, short(p.digest)) for p in view.parts]
    return Group(facts(pairs), Text(), columns(["part", "rows", "sealed", "digest"], rows, right=["rows"]))


def _most(values: dict[str, int]) -> str:
    shown = [tied(f"{name or '(none)'} {number(n)}") for name, n in islice(values.items(), _SHOWN_VALUES)]
    rest = len(values) - len(shown)
    return ", ".join(shown) + (f", and {rest:,} more" if rest > 0 else "")


def _blocks(records: list[dict[str, Any]], words: list[dict[str, dict[str, Any]]]) -> RenderableType:
    """A block per record: each field that has a value, then what was said of it later."""
    from rich.console import Group
    from rich.text import Text

    parts: list[RenderableType] = []
    for record, said in zip(records, words, strict=True):
        if parts:
            parts.append(Text())
        pairs: list[tuple[str, Any]] = [(name, _shown(value)) for name, value in record.items() if value is not None]
        parts.append(facts([*pairs, *(_word(key, word) for key, word in said.items() if not _let_back(key, word))]))
    return Group(*parts)


def _let_back(key: str, word: dict[str, Any]) -> bool:
    return key == "exclude" and word["value"] is False


def _word(key: str, word: dict[str, Any]) -> tuple[Any, Any]:
    """One word on a record, as `→ label  refund (ann: at second sight)`."""
    from rich.text import Text

    about = ": ".join(part for part in (word["by"], word["note"]) if part)
    if key == "exclude":
        return Text("→ excluded", "bold yellow"), f"by {plain(about)}" if word["by"] else about or "yes"
    value = word["value"] if isinstance(word["value"], str) else json_.dumps(word["value"], ensure_ascii=False)
    return Text(f"→ {key}", "cyan"), f"{value} ({about})" if about else value


def _shown(value: Any) -> str:
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, list) and value and all(isinstance(item, dict) and "role" in item for item in value):
        return "\n".join(_message(item) for item in value)
    return plain(str(value))


def _message(message: dict[str, Any]) -> str:
    calls = message.get("tool_calls") or []
    called = " ".join(f"[{call['function']['name']}({call['function']['arguments']})]" for call in calls)
    return f"{message['role']}: {' '.join(filter(None, [message.get('content'), called]))}"
