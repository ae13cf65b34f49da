"""`treering mix`: the recipe, resolved; its shares, its lock, its first batches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from treering.cli import completion
from treering.cli.options import JsonOption, StoreOption, open_store
from treering.cli.output import columns, counted, number, render, say, waiting
from treering.errors import StoreError, UsageError

if TYPE_CHECKING:
    from rich.console import RenderableType

    from treering import Mix, MixLock, Store

__all__ = ["RefsArgument", "build", "mix", "save_lock"]


class ShareBy(StrEnum):
    """What weights are shares of."""

    rows = "rows"
    tokens = "tokens"


RefsArgument = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="REF=W …",
        help="Sources and their weights: support@v1=0.3 support@live=0.7.",
        autocompletion=completion.refs,
    ),
]


@dataclass(frozen=True)
class MixedSource:
    """One source of a mix. `units` is the integer weight that the share is made of."""

    ref: str
    weight: float
    share: float
    units: int
    train_rows: int
    most_in_a_batch: int | None  # draws of it, when they are more than its training rows; else null


@dataclass(frozen=True)
class MixView:
    """A mix, resolved. `preview` holds rows per source of the first batches."""

    sources: list[MixedSource]
    seed: int
    batch_size: int
    batches_per_epoch: int
    digest: str
    lock: str | None
    preview: list[list[int]]  # no further than to the epoch's end
    once: dict[str, int] | None = None  # with --replay-ratio: the rows that the whole run draws of each ref


def mix(
    refs: RefsArgument = None,
    lock: Annotated[str | None, typer.Option(metavar="FILE", help="Write the mix lock here.")] = None,
    preview: Annotated[
        int, typer.Option(metavar="N", min=0, help="Show what the first N batches of the epoch hold.")
    ] = 0,
    batch_size: Annotated[int, typer.Option(min=1, help="Rows of a batch.")] = 256,
    seed: Annotated[int, typer.Option(help="What the order is drawn from.")] = 0,
    replay_ratio: Annotated[
        float | None,
        typer.Option(
            metavar="R", help="Draw each record of the live or new source once, and replay to make up R of all."
        ),
    ] = None,
    share_by: Annotated[ShareBy, typer.Option(help="What weights are shares of.")] = ShareBy.rows,
    store: StoreOption = None,
    json: JsonOption = False,
) -> None:
    """Resolve a mix: its shares, its first batches, its lock.

    Held-out records are never part of it.

    API: Store.mix.
    """
    if not refs:
        raise UsageError("a mix needs sources", code="no-sources", hint="treering mix support@v1=0.3 support@live=0.7")
    import numpy as np

    with waiting("resolving the mix"):
        recipe = build(open_store(store), refs, seed=seed, replay_ratio=replay_ratio, share_by=share_by.value)
        locked = recipe.lock(batch_size)
    if lock is not None:
        save_lock(locked, lock)
    plan = locked.plan()
    crowded, length = plan.crowded(), plan.batches_in(1)
    view = MixView(
        sources=[
            MixedSource(source.ref, weight, share, units, pinned.train_rows, crowded.get(number))
            for number, (source, weight, share, units, pinned) in enumerate(
                zip(recipe.sources, recipe.weights, recipe.shares, recipe.units, locked.sources, strict=True)
            )
        ],
        seed=seed,
        batch_size=batch_size,
        batches_per_epoch=length,
        digest=locked.digest,
        lock=lock,
        preview=np.diff(plan.taken(np.arange(min(preview, length) + 1)), axis=0).tolist(),
        once=None if replay_ratio is None else recipe.counts_once(batch_size),
    )
    render(view, json, lambda: _tables(view))
    if lock is not None:
        say(f"wrote the lock to {lock}")


def build(
    store: Store,
    members: Sequence[str],
    *,
    seed: int,
    replay_ratio: float | None = None,
    share_by: Literal["rows", "tokens"] = "rows",
) -> Mix:
    """The mix that REF=W arguments describe; REF alone has weight 1. Raises UsageError, NotFoundError."""
    pairs = [_member(member) for member in members]
    return store.mix(
        *[ref for ref, _ in pairs],
        weights=[weight for _, weight in pairs],
        seed=seed,
        replay_ratio=replay_ratio,
        share_by=share_by,
    )


def save_lock(lock: MixLock, path: str) -> None:
    """Write a lock. Raises StoreError when it can't be written."""
    try:
        lock.save(path)
    except OSError as exc:
        raise StoreError(f"can't write {path}: {exc.strerror or exc}", code="write-failed") from exc


def _member(text: str) -> tuple[str, float]:
    ref, equals, weight = text.rpartition("=")
    if not equals:
        return text, 1.0
    try:
        return ref, float(weight)
    except ValueError as exc:
        raise UsageError(
            f"{text!r}: {weight!r} isn't a weight", code="bad-weight", hint="write REF=W, as in support@v1=0.3"
        ) from exc


def _tables(view: MixView) -> RenderableType:
    from rich.console import Group
    from rich.text import Text

    rows = [
        (k, s.ref, f"{s.weight:g}", f"{100 * s.share:.2f} %", number(s.train_rows)) for k, s in enumerate(view.sources)
    ]
    parts: list[RenderableType] = [
        columns(
            ["#", "source", "weight", "share", "training rows"], rows, right=["#", "weight", "share", "training rows"]
        ),
        Text(f"\none epoch is {counted(view.batches_per_epoch, 'batch')} of {view.batch_size:,}, seed {view.seed}"),
        Text(f"lock digest {view.digest}"),
    ]
    parts += [
        Text(
            f"a batch draws up to {s.most_in_a_batch:,} rows of {s.ref}, which has {s.train_rows:,}: "
            "some come several times in it; a smaller --batch-size avoids that",
            "yellow",
        )
        for s in view.sources
        if s.most_in_a_batch is not None
    ]
    if view.once is not None:
        counts = ", ".join(f"{count:,} of {ref}" for ref, count in view.once.items())
        parts.append(Text(f"the run draws {counts}; its last batch is as short as that makes it"))
    if view.preview:
        heads = ["batch", *(f"#{k}" for k in range(len(view.sources)))]
        parts += [Text(), columns(heads, [(t, *counts) for t, counts in enumerate(view.preview)], right=heads)]
    return Group(*parts)
