"""`treering adapters`, `promote` and `rollback`."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any, Self

import typer
from typer.core import TyperGroup

from treering.cli import completion
from treering.cli.options import CorpusArgument, JsonOption, StoreOption, open_store
from treering.cli.output import columns, facts, natural, render, say, tied, when

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table

    from treering import Store
    from treering.registry import AdapterRecord
    from treering.registry.compare import SliceChange

__all__ = ["AdapterView", "adapter_facts", "adapters", "add", "app", "export", "promote", "rollback", "show_adapter"]

AdapterArgument = Annotated[
    str,
    typer.Argument(help="CORPUS:candidate, CORPUS:production or CORPUS:NUMBER.", autocompletion=completion.adapters),
]


@dataclass(frozen=True)
class AdapterView:
    """An adapter, where it comes from and what became of it. Scores are fractions of 1, right after training."""

    ref: str
    status: str
    parent: str | None
    strategy: str | None
    base: str | None
    trained_on: list[str]
    metric: str
    scores: dict[str, float]
    passed: bool | None
    reasons: list[str]
    external: str | None
    baseline: bool
    digest: str
    lock_digest: str | None
    config: dict[str, Any]
    stats: dict[str, Any]
    created_at: datetime

    @classmethod
    def of(cls, record: AdapterRecord, **more: Any) -> Self:
        """The view of a registry's record."""
        return cls(
            ref=record.ref,
            status=record.status,
            parent=record.parent,
            strategy=record.strategy,
            base=record.base,
            trained_on=list(record.trained_on),
            metric=record.metric,
            scores=dict(record.scores),
            passed=record.verdict.passed if record.verdict else None,
            reasons=list(record.verdict.reasons) if record.verdict else [],
            external=record.external,
            baseline=record.baseline,
            digest=record.digest,
            lock_digest=record.lock_digest,
            config=dict(record.config),
            stats=dict(record.stats),
            created_at=record.created_at,
            **more,
        )


@dataclass(frozen=True)
class ShownAdapter(AdapterView):
    """One adapter, beside its parent."""

    against_parent: list[SliceChange]


class _Adapters(TyperGroup):
    """`treering adapters support` lists; verbs come before the corpus: `treering adapters add support`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Read the first word as a verb if it is one, else as what is listed."""
        if args and args[0] not in (*self.commands, "--help"):
            args = ["list", *args]
        return super().parse_args(ctx, args)


app = typer.Typer(
    name="adapters", cls=_Adapters, help="List the adapters of a corpus, add one, or export one.",
    rich_markup_mode=None, add_completion=False, no_args_is_help=False,
)  # fmt: skip


@app.command("add")
def add(
    name: CorpusArgument,
    external: Annotated[
        str, typer.Option("--external", metavar="ID", help="What the model is called where it was trained.")
    ],
    parent: Annotated[
        str | None, typer.Option(metavar="ADAPTER", help="What it continues from.", autocompletion=completion.adapters)
    ] = None,
    lock: Annotated[str | None, typer.Option(metavar="FILE", help="The mix lock that it was trained on.")] = None,
    store: StoreOption = None,
    json: JsonOption = False,
) -> None:
    """Add a model that was trained elsewhere.

    It becomes a candidate without weights.

    API: treering.rounds.add_external.
    """
    from treering import MixLock, rounds

    opened = open_store(store)
    record = rounds.add_external(
        opened, name, external, parent=parent, lock=None if lock is None else MixLock.load(lock)
    )
    view = AdapterView.of(record)
    render(view, json, lambda: adapter_facts(view))
    say(f"next: treering eval {view.ref} --predictions FILE")


@app.command("export")
def export(
    adapter: AdapterArgument,
    folder: Annotated[str, typer.Argument(metavar="DIR", help="A new directory.")],
    store: StoreOption = None,
    json: JsonOption = False,
) -> None:
    """Write a LoRA adapter in PEFT's layout.

    PEFT loads it and vLLM serves it. A classifier's head lies beside it.

    API: treering.rounds.export_adapter.
    """
    from treering import rounds

    told = rounds.export_adapter(open_store(store), adapter, folder)
    rows = [
        ("adapter", told.adapter),
        ("base", told.base),
        ("rank", told.rank),
        ("task type", told.task_type),
        ("directory", told.folder),
        ("files", ", ".join(told.files)),
    ]
    render(told, json, lambda: facts(rows))


@app.command("list")
def adapters(
    name: CorpusArgument,
    store: StoreOption = None,
    json: JsonOption = False,
) -> None:
    """List the adapters of a corpus.

    API: Store.adapters.
    """
    found = [AdapterView.of(record) for record in open_store(store).adapters(name)]
    if not found:
        say(f"{name} has no adapters yet; train one: treering train {name}@new=1")
    if json or found:
        render(found, json, lambda: _table(found))


def promote(adapter: AdapterArgument, store: StoreOption = None, json: JsonOption = False) -> None:
    """Put an adapter that passed the gate into production.

    API: Store.promote.
    """
    view = AdapterView.of(open_store(store).promote(adapter))
    render(view, json, lambda: f"{view.ref} is in production")


def rollback(name: CorpusArgument, store: StoreOption = None, json: JsonOption = False) -> None:
    """Bring back the adapter that was in production before.

    API: Store.rollback.
    """
    view = AdapterView.of(open_store(store).rollback(name))
    render(view, json, lambda: f"{view.ref} is in production again")


def show_adapter(store: Store, ref: str, *, as_json: bool) -> None:
    """Print one adapter. Raises UsageError, NotFoundError."""
    from treering.registry import Registry
    from treering.registry.compare import against_parent
    from treering.store import AdapterRef

    store.corpus(AdapterRef.parse(ref).corpus)
    view = ShownAdapter.of(Registry.of(store, ref).get(ref), against_parent=against_parent(store, ref))
    render(view, as_json, lambda: _shown(view))


def _shown(view: ShownAdapter) -> RenderableType:
    """One adapter, and beside its parent what each slice gained or lost."""
    from rich.console import Group
    from rich.text import Text

    from treering.evaluation.matrix import shown
    from treering.evaluation.metrics import better_of

    if not view.against_parent:
        return adapter_facts(view)
    better = better_of(view.metric)
    heads = ["held-out of", view.ref, str(view.parent), "change"]
    rows = [
        (row.slice, shown(row.score, better), shown(row.parent, better), shown(row.change, better, signed=True))
        for row in sorted(view.against_parent, key=lambda row: natural(row.slice))
    ]
    unit = " in points of 100" if better == "higher" else ""
    title = Text(f"against its parent, {view.metric}{unit}:")
    return Group(adapter_facts(view), Text(), title, columns(heads, rows, right=heads[1:]))


def adapter_facts(view: AdapterView) -> Table:
    """One adapter as lines."""
    from treering.evaluation.matrix import shown
    from treering.evaluation.metrics import better_of

    better = better_of(view.metric)
    scores = ", ".join(tied(f"{name} {shown(view.scores[name], better)}") for name in sorted(view.scores, key=natural))
    return facts(
        [
            ("adapter", view.ref),
            ("status", view.status),
            ("parent", view.parent or "none"),
            ("strategy", view.strategy),
            ("base", view.base),
            ("elsewhere", view.external),
            ("trained on", ", ".join(view.trained_on) or "live only"),
            (view.metric, scores or None),
            (
                "gate",
                {True: "passed", False: f"refused: {'; '.join(view.reasons)}", None: "not asked yet"}[view.passed],
            ),
            ("digest", view.digest),
            ("mix lock", view.lock_digest),
            ("made", when(view.created_at)),
        ]
    )


def _table(found: list[AdapterView]) -> Table:
    from treering.store.ref import shortened

    gates = {True: "passed", False: "refused", None: None}
    rows = [
        (
            v.ref,
            v.status,
            gates[v.passed],
            v.parent,
            shortened(v.trained_on, v.ref.partition(":")[0]),
            when(v.created_at),
        )
        for v in found
    ]
    return columns(["adapter", "status", "gate", "parent", "trained on", "made (UTC)"], rows)
