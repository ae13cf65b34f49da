"""`treering status`: where corpora stand, and whether it is time for a round."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from treering.cli import completion
from treering.cli.diff import drift_table
from treering.cli.options import JsonOption, StoreOption, open_store
from treering.cli.output import columns, counted, facts, number, render, tied, waiting, when
from treering.errors import CheckFailedError, UsageError

if TYPE_CHECKING:
    from rich.console import RenderableType

    from treering import Corpus, Status, Store

__all__ = ["status"]

_SHOWN = 6


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


def status(
    name: Annotated[
        str | None, typer.Argument(help="A corpus [default: all of them, briefly].", autocompletion=completion.corpora)
    ] = None,
    policy: Annotated[
        str | None, typer.Option(metavar="FILE", help="TOML: min_new, max_age_days, on_drift, on_unseen, fewest.")
    ] = None,
    min_new: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="So many new training records make a round due [1000].")
    ] = None,
    max_age_days: Annotated[float | None, typer.Option(metavar="D", help="So does one that is so old [7].")] = None,
    fail_when_due: Annotated[bool, typer.Option("--fail-when-due", help="Exit with 3 when a round is due.")] = False,
    store: StoreOption = None,
    json: JsonOption = False,
) -> None:
    """Say where a corpus stands and whether a round is due.

    What is new to production is compared with what it was trained on.
    Exits with 0 whatever it says, or with --fail-when-due with 3 when a round is due.

    API: treering.status; without a name Store.corpora.
    """
    import treering

    opened = open_store(store)
    if name is None:
        if policy or min_new or max_age_days or fail_when_due:
            raise UsageError("a policy is about one corpus", code="usage", hint="treering status NAME --min-new N")
        every = [_status(opened, corpus) for corpus in opened.corpora()]
        render(every, json, lambda: _overview(every) if every else "no corpora yet; make one: treering create")
        return
    with waiting(f"looking at {name}"):
        found = treering.status(opened, name, policy, min_new=min_new, max_age_days=max_age_days)
    render(found, json, lambda: _details(found))
    if fail_when_due and found.due:
        raise CheckFailedError(
            f"a round of {name} is due: {'; '.join(found.reasons)}",
            code="round-due",
            hint=f"treering snapshot live --to {name}, then train on {name}@new mixed with the snapshots before it",
        )


def _details(found: Status) -> RenderableType:
    from rich.console import Group
    from rich.text import Text

    new = found.new
    parts: list[RenderableType] = []
    due = Text("yes", "bold yellow") if found.due else Text("no", "green")
    if found.due:
        for reason in found.reasons:
            due.append(f"\n{reason}", "default")
    elif new.training_rows < found.policy.fewest:
        due.append(
            f", {counted(new.training_rows, 'new training record')}; {found.policy.fewest:,} are the fewest", "default"
        )
    files = f" in {counted(found.live_fragments, 'file')}"
    pairs: list[tuple[str, Any]] = [
        ("corpus", f"{found.corpus}, {found.record_type} records"),
        ("round due", due),
        ("live", counted(found.live_rows, "record") + (files if found.live_rows else "")),
        ("sealed", f"{counted(found.sealed_rows, 'record')} in {counted(found.snapshots, 'snapshot')}"),
        ("newest snapshot", f"{found.newest}, sealed {when(found.newest_at)}" if found.newest_at else None),
        ("quarantined", counted(found.quarantined, "record")),
        ("production", f"{found.production}, {_days(found.production_days)} old" if found.production else "none"),
        ("candidate", found.candidate or "none"),
        ("new", f"{counted(new.rows, 'record')}, {number(new.training_rows)} of them training" + _oldest(found)),
        *(_unseen(found, column) for column in ("label", "domain")),
        ("table", found.uri),
    ]
    parts.append(facts(pairs))
    if new.drift:
        drifted = [d for d in new.drift if d.drifted]
        head = f"drift of what is new, against what {found.production} was trained on:"
        parts += [Text(), Text(head if drifted else f"{head} none"), *([drift_table(drifted)] if drifted else [])]
    return Group(*parts)


def _oldest(found: Status) -> str:
    return (
        ""
        if found.new.oldest_days is None or not found.new.rows
        else f", the oldest {_days(found.new.oldest_days)} old"
    )


def _days(days: float | None) -> str:
    if days is None:
        return "·"
    if days >= 1:
        return f"{days:.1f} days"
    hours = 24 * days
    return counted(round(hours), "hour") if hours >= 1 else counted(round(60 * hours), "minute")


def _unseen(found: Status, column: str) -> tuple[str, str | None]:
    values = [u for u in found.new.unseen or [] if u.column == column]
    shown = ", ".join(tied(f"{u.value} {number(u.rows)}") for u in values[:_SHOWN])
    rest = len(values) - _SHOWN
    return f"unseen {column}s", f"{shown}{f', and {rest:,} more' if rest > 0 else ''}" if values else None


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
    heads = ["corpus", "type", "live", "sealed", "newest", "quarantined", "production"]
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
    return columns(heads, rows, right=["live", "sealed", "quarantined"])
