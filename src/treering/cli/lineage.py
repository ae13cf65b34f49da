"""`treering lineage`: where something comes from, and what was made with it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from treering.cli import completion
from treering.cli.options import JsonOption, StoreOption, open_store
from treering.cli.output import columns, facts, number, plain, render, short, waiting, when

if TYPE_CHECKING:
    from rich.console import RenderableType

    from treering.registry.trace import AdapterLineage, Lineage, LockLineage, RecordLineage, RefLineage, ScoreOn, SeenBy

__all__ = ["lineage"]


def lineage(
    what: Annotated[
        str,
        typer.Argument(
            metavar="RECORD|REF|RUN|ADAPTER",
            help="A record's id, CORPUS@v1, a lock (file, digest), CORPUS:1.",
            autocompletion=completion.named,
        ),
    ],
    record: Annotated[bool, typer.Option("--record", help="It is the id of a record, whatever it looks like.")] = False,
    store: StoreOption = None,
    json: JsonOption = False,
) -> None:
    """Say where something comes from and what was made with it.

    Text that could be several things is a lock's file or digest, else an adapter or a ref of a corpus that is there, else
    the id of a record.

    API: treering.lineage.
    """
    from treering.registry.trace import lineage as find

    with waiting("looking"):
        found = find(open_store(store), what, record=record)
    render(found, json, lambda: _view(found))


def _view(found: Lineage) -> RenderableType:
    views: dict[str, Any] = {"record": _record, "ref": _ref, "adapter": _adapter, "lock": _lock}
    shown: RenderableType = views[found.kind](found)
    return shown


def _record(found: RecordLineage) -> RenderableType:
    from rich.console import Group
    from rich.text import Text

    blocks: list[Any] = []
    for place in found.places:
        said = [f"{word.key}={word.value}" + (f" by {word.by}" if word.by else "") for word in place.annotations]
        blocks.append(
            facts(
                [
                    ("record", found.id),
                    ("lies in", place.ref or f"quarantine of {place.corpus}"),
                    ("state", place.where + ("" if place.readable else ": its bytes are gone")),
                    ("split", place.split),
                    ("problems", "; ".join(place.problems) or None),
                    ("excluded", "yes" if place.excluded else None),
                    ("annotations", "\n".join(said) or None),
                    ("selections", ", ".join(place.selections) or None),
                    ("adapters", _seen(place.adapters) or ("none" if place.where != "quarantine" else None)),
                ]
            )
        )
        blocks.append(Text())
    return Group(*blocks[:-1])


def _seen(adapters: list[SeenBy]) -> str:
    lines = [
        f"{one.adapter} ({one.status}{', was promoted' if one.promoted and one.status != 'production' else ''})"
        + (f" through {one.through}" if one.through else "")
        + ("" if one.known_by == "lock" else ", by its snapshot")
        for one in adapters
    ]
    return "\n".join(lines)


def _ref(found: RefLineage) -> RenderableType:
    from rich.console import Group
    from rich.text import Text

    blocks: list[Any] = []
    for part in found.parts:
        scores = [f"{one.adapter}: {one.metric} {_score(one)}" for one in part.scores]
        blocks.append(
            facts(
                [
                    ("ref", part.ref),
                    ("records", number(part.rows)),
                    ("digest", part.digest),
                    ("sealed", when(part.created_at) if part.created_at else None),
                    ("message", part.message or None),
                    ("pruned", when(part.pruned_at) if part.pruned_at else None),
                    ("parents", ", ".join(part.parents) or None),
                    ("adapters", _seen(part.adapters) or "none"),
                    ("continued by", ", ".join(part.descendants) or None),
                    ("selections", ", ".join(part.selections) or None),
                    ("scores", "\n".join(scores) or None),
                ]
            )
        )
        blocks.append(Text())
    head = [Text(plain(f"{found.ref}, chosen from {found.chosen_from}")), Text()] if found.chosen_from else []
    return Group(*head, *blocks[:-1])


def _sources(found: AdapterLineage | LockLineage) -> RenderableType:
    rows = [
        (
            source.ref,
            f"{100 * source.share:.1f} %",
            number(source.train_rows),
            part.name + (f" → {', '.join(part.sealed_as)}" if part.sealed_as else ""),
            short(part.digest),
            ", ".join(part.pruned) or None,
        )
        for source in found.sources
        for part in source.parts
    ]
    heads = ["source", "share", "training rows", "part", "digest", "pruned"]
    return columns(heads, rows, right=["share", "training rows"])


def _score(one: ScoreOn) -> str:
    from treering.evaluation.matrix import shown
    from treering.evaluation.metrics import better_of

    return shown(one.score, better_of(one.metric))


def _adapter(found: AdapterLineage) -> RenderableType:
    from rich.console import Group
    from rich.text import Text

    verdicts = [f"{'passed' if v.passed else 'refused'} {when(v.at)}" for v in found.verdicts]
    scores = [f"{one.slice}: {one.metric} {_score(one)}" for one in found.scores]
    about = facts(
        [
            ("adapter", found.ref),
            ("status", found.status),
            ("made", when(found.created_at)),
            ("base", found.base),
            ("strategy", found.strategy),
            ("lock", found.lock),
            ("parents", ", ".join(found.parents) or "none"),
            ("continued by", ", ".join(found.descendants) or "none"),
            ("verdicts", "\n".join(verdicts) or None),
            ("events", "\n".join(found.events) or None),
            ("scores", "\n".join(scores) or None),
        ]
    )
    return Group(about, *([Text(), _sources(found)] if found.sources else []))


def _lock(found: LockLineage) -> RenderableType:
    from rich.console import Group
    from rich.text import Text

    about = facts([("lock", found.digest), ("adapters", ", ".join(found.adapters) or "none")])
    return Group(about, *([Text(), _sources(found)] if found.sources else []))
