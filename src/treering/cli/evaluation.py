"""`treering eval`: scores on held-out records, the score matrix of a lineage, or what an adapter suffers from."""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer

from treering.cli import completion
from treering.cli.options import EngineName, EngineOption, JsonOption, StoreOption, engine_for, open_store
from treering.cli.output import columns, number, render, waiting
from treering.errors import CheckFailedError, UsageError

if TYPE_CHECKING:
    from rich.console import RenderableType

    from treering import Diagnosis, Store
    from treering.evaluation import Finding
    from treering.rounds import Evaluation

__all__ = ["evaluate", "named_files"]

TOLERANCE = 0.02


class By(StrEnum):
    """What a slice is."""

    snapshot = "snapshot"
    domain = "domain"


def evaluate(
    adapter: Annotated[
        str,
        typer.Argument(
            help="CORPUS:candidate, CORPUS:production or CORPUS:NUMBER.", autocompletion=completion.adapters
        ),
    ],
    on: Annotated[
        list[str] | None,
        typer.Option(
            "--on",
            metavar="REF[,REF …]",
            help="Look at these refs' held-out records, a slice per snapshot, and exit with 3 when one has dropped.",
            autocompletion=completion.refs,
        ),
    ] = None,
    tolerance: Annotated[
        float | None, typer.Option(metavar="X", help="With --on: what a slice may have dropped [default: 0.02].")
    ] = None,
    metric: Annotated[
        str | None,
        typer.Option(
            help="macro_f1, accuracy, loss or perplexity, of chat models tool_call_match; else what it was trained by."
        ),
    ] = None,
    matrix: Annotated[bool, typer.Option("--matrix", help="The score matrix of the adapter's lineage.")] = False,
    by: Annotated[By, typer.Option(help="With --matrix: a slice per snapshot or per domain.")] = By.snapshot,
    full: Annotated[
        bool, typer.Option("--full", help="With --matrix: score slices before they were learnt, too.")
    ] = False,
    fresh_baseline: Annotated[
        bool,
        typer.Option("--fresh-baseline", help="With --matrix: compare with an adapter trained on everything at once."),
    ] = False,
    diagnose: Annotated[
        bool, typer.Option("--diagnose", help="What it suffers from, and what to run against that.")
    ] = False,
    extra: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=FILE", help="A test set (JSONL, CSV, Parquet) as one more slice; repeat for more."),
    ] = None,
    predictions: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="What a model trained elsewhere says: id, predicted[, probability]."),
    ] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Measure again what was measured before.")] = False,
    engine: EngineOption = None,
    store: StoreOption = None,
    json: JsonOption = False,
) -> None:
    """Score an adapter on held-out records.

    Without --on: on every snapshot of its corpus. With --on it is a canary: measured anew, and compared with the scores right
    after training, else with the last ones; exits with 3 when a slice has dropped. Tables print points of 100, JSON
    fractions of 1.

    API: treering.evaluate, treering.score_matrix, treering.diagnose.
    """
    _check(on, tolerance, matrix, by, full, fresh_baseline, diagnose, extra, predictions, engine)
    tests = named_files(extra)
    opened = open_store(store)
    with waiting(f"evaluating {adapter}"):
        if diagnose:
            _diagnose(opened, adapter, metric, as_json=json)
        elif matrix:
            _matrix(opened, adapter, engine, as_json=json, metric=metric, by=by.value, full=full, fresh=fresh, extra=tests,
                    fresh_baseline=fresh_baseline)  # fmt: skip
        else:
            _scores(opened, adapter, on, tolerance, engine, as_json=json, metric=metric, fresh=fresh, extra=tests,
                    predictions=predictions)  # fmt: skip


def named_files(given: list[str] | None) -> dict[str, str]:
    """What `--extra NAME=FILE` names. Raises UsageError."""
    found: dict[str, str] = {}
    for text in given or []:
        name, equals, path = text.partition("=")
        if not (name and equals and path):
            raise UsageError(
                f"expected NAME=FILE, got {text!r}", code="bad-extra", hint="--extra hard=tests/hard.jsonl"
            )
        if name in found:
            raise UsageError(f"two test sets are called {name}", code="bad-extra", hint="name each once")
        found[name] = path
    return found


def _check(
    on: Any, tolerance: Any, matrix: bool, by: By, full: bool, fresh_baseline: bool, diagnose: bool, extra: Any,
    predictions: Any, engine: Any,
) -> None:  # fmt: skip
    """Raise UsageError for options that don't go together."""
    if matrix and on:
        raise UsageError("--matrix has its own slices", hint="leave out --on, or leave out --matrix")
    if diagnose and (matrix or on or extra or predictions or engine):
        raise UsageError("--diagnose looks at what it needs", hint="leave the other options out")
    if not matrix and (full or fresh_baseline or by is not By.snapshot):
        raise UsageError("--by, --full and --fresh-baseline are about a score matrix", hint="add --matrix")
    if matrix and predictions:
        raise UsageError("predictions are scored first", hint="leave out --matrix, then ask for it")
    if tolerance is not None and not on:
        raise UsageError("a tolerance is about refs that are looked at again", hint="name them: --on support@v1")


def _scores(
    store: Store,
    adapter: str,
    on: list[str] | None,
    tolerance: float | None,
    engine: EngineName | None,
    *,
    as_json: bool,
    **how: Any,
) -> None:
    from treering import rounds

    if on and not how["predictions"]:
        how["tolerance"] = TOLERANCE if tolerance is None else tolerance
    with engine_for(engine, store.uri) as workers:
        found = rounds.evaluate(store, adapter, on=rounds.each_snapshot(on) if on else None, engine=workers, **how)
    render(found, as_json, lambda: _table(found))
    if found.dropped:
        falls = [f"{name} from {_shown(found, found.before[name])} to {_shown(found, found.scores[name])}" for name in found.dropped]  # fmt: skip
        raise CheckFailedError(
            f"{found.adapter} has dropped: {', '.join(falls)}",
            code="canary-dropped",
            hint=f"treering eval {found.adapter} --diagnose; treering rollback {found.adapter.partition(':')[0]}",
        )


def _matrix(store: Store, adapter: str, engine: EngineName | None, *, as_json: bool, **how: Any) -> None:
    from treering import rounds
    from treering.store import AdapterRef

    with engine_for(engine, store.uri) as workers:
        found = rounds.score_matrix(store, AdapterRef.parse(adapter).corpus, adapter=adapter, engine=workers, **how)
    render(found.to_model(), as_json, found.table)


def _diagnose(store: Store, adapter: str, metric: str | None, *, as_json: bool) -> None:
    import treering

    found = treering.diagnose(store, adapter, metric=metric or "macro_f1")
    render(found, as_json, lambda: _findings(found))
    cures = [f"\n{one.title}:\n{one.remedy}" for one in found.findings if one.remedy is not None]
    if cures and not as_json:
        render(found, False, lambda: "\n".join(["\nto run:", *cures]))  # as text: a command that is broken isn't one


def _findings(found: Diagnosis) -> RenderableType:
    from rich.text import Text

    marks = {True: Text("ok", "green"), False: Text("NOT OK", "bold red"), None: Text("?", "yellow")}
    rows = [(marks[f.ok], f.title, _figure(f, f.figure), _figure(f, f.line), f.says) for f in found.findings]
    return columns(["", found.adapter, "figure", "line", "what it says"], rows, right=["figure", "line"])


def _figure(finding: Finding, value: float | None) -> str | None:
    if value is None:
        return None
    if finding.unit in ("points", "share"):
        return f"{100 * value:+.1f}" if finding.unit == "points" else f"{100 * value:.1f} %"
    return f"{value:,.0f}"


def _table(scores: Evaluation) -> RenderableType:
    heads = ["held-out of", scores.metric, "records"]
    if scores.tolerance is None:
        rows: list[Any] = [
            (ref, _shown(scores, score), number(scores.rows[ref])) for ref, score in scores.scores.items()
        ]
        return columns(heads, rows, right=heads[1:])
    heads = [*heads, "before", "change", "verdict"]
    rows = []
    for ref, score in scores.scores.items():
        was = scores.before.get(ref)
        change = None if was is None else _shown(scores, score - was, signed=True)
        verdict = "new" if was is None else "DROPPED" if ref in scores.dropped else "ok"
        before = None if was is None else _shown(scores, was)
        rows.append((ref, _shown(scores, score), number(scores.rows[ref]), before, change, verdict))
    return columns(heads, rows, right=heads[1:5])


def _shown(scores: Evaluation, score: float, *, signed: bool = False) -> str:
    """In points of 100; a loss as it is."""
    from treering.evaluation import resolve_metric
    from treering.evaluation.matrix import points

    if resolve_metric(scores.metric).better == "higher":
        return points(score, signed=signed)
    return f"{score:+.3f}" if signed else f"{score:.3f}"
