"""Four (or ten) rounds, two adapters: one trained on new data only, one on the mix. The gate looks at both.

The two differ in the weights of their mixes and in nothing else: base, strategy, config, seed and number of updates are
the same.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import zip_longest
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict, Field

import treering
from treering.demo.streams import Round, Stream, clinc150, dialogues
from treering.errors import AlreadyExistsError, CheckFailedError
from treering.evaluation import GatePolicy, ScoreMatrix, Verdict
from treering.report import write_matrices
from treering.rounds import Run, gate, score_matrix, train
from treering.training import TrainConfig

if TYPE_CHECKING:
    from treering.front import Corpus, Store
    from treering.store import Snapshot

__all__ = ["DemoArm", "DemoResult", "run_demo"]

Progress = Callable[[str], None]

PAST = 0.5  # share of everything sealed before in each batch of the mix
# A held-out slice of the dialogues has 60 to 200 exchanges in categories of uneven size, where one more mistake in the
# smallest costs a point or two of macro-F1. CLINC150's slices of 450 sentences allow the gate's own default.
# The story is about forgetting: how fast the machine is doesn't decide it.
DIALOGUES_POLICY = GatePolicy(regression_tolerance=0.05, max_p99_ms=None, max_memory_gb=None)
CLINC150_POLICY = GatePolicy(max_p99_ms=None, max_memory_gb=None)
DIALOGUES_CONFIG = TrainConfig(steps=300, batch_size=64)  # a round has 60 to 230 training records


class _Document(BaseModel):
    model_config = ConfigDict(strict=True, frozen=True, extra="forbid")


class DemoArm(_Document):
    """One of the two lineages. Scores are fractions of 1."""

    matrix: list[list[float | None]] = Field(
        description="macro-F1 on slice j after round i; null before slice j was learnt"
    )
    average: float
    bwt: float
    adapter: str = Field(description="the last round's")


class DemoResult(_Document):
    """What the demo found."""

    store: str
    live_only: DemoArm
    mix: DemoArm
    snapshots: list[str]
    promoted: str | None = Field(description="the adapter in production now; null when the gate passed none")
    report: str
    text: str = Field(default="", exclude=True, description="both matrices side by side and both verdicts, to be read")


def run_demo(
    store_path: str | os.PathLike[str],
    *,
    report: str | os.PathLike[str],
    clinc: str | None = None,
    config: TrainConfig | None = None,
    seed: int = 0,
    rounds: int | None = None,
    limit: int | None = None,
    shuffle_labels: bool = False,
    progress: Progress | None = None,
) -> DemoResult:
    """Run the story in a store at `store_path` and write the page to `report`.

    clinc: path or fsspec URL of CLINC150's `data_full.json`, to run on it instead of on the dialogues.
    config: the training config of both adapters. seed: of weights, noise and the order of records.
    rounds, limit: only the first so many rounds, at most so many CLINC150 training sentences an intent.
    shuffle_labels: give every record the label of another one; then nothing can be learnt, and scores show it.
    progress: is told what happens, a line at a time.

    Raises AlreadyExistsError when the store holds a demo already, NotFoundError and UsageError as `train` and the data
    do. That the gate refuses an adapter is a result, not an error.
    """
    say = progress or (lambda line: None)
    started = time.perf_counter()
    if clinc is None:
        stream, policy = dialogues(), DIALOGUES_POLICY
        config = config or DIALOGUES_CONFIG
    else:
        stream, policy = clinc150(clinc, limit=limit), CLINC150_POLICY
        config = config or TrainConfig()
    config = config.changed(seed=seed)
    stream = replace(stream, rounds=stream.rounds[:rounds])
    if shuffle_labels:
        stream = _shuffled(stream, seed)

    store = treering.open(os.fspath(store_path))
    corpus = _create(store, stream)
    say(f"store {store.uri}: {stream.about}")
    snapshots: list[Snapshot] = []
    last: dict[str, Run | None] = {"live_only": None, "mix": None}
    for number, round_ in enumerate(stream.rounds, 1):
        snapshots.append(_grow(corpus, round_))
        say(f"round {number} of {len(stream.rounds)}, {round_.domain}: {_counts(snapshots[-1], corpus)}")
        for arm, weight in (("live_only", 0.0), ("mix", PAST)):
            before = last[arm]
            run = train(
                store,
                _mix(store, corpus.name, number, weight, seed),
                config,
                parent=None if before is None else before.adapter.ref,
            )
            scores = ", ".join(f"{name.partition('@')[2]} {100 * score:.1f}" for name, score in run.scores.items())
            say(f"  {arm.replace('_', '-'):<9} {run.adapter.ref}  macro-F1 {scores}")
            last[arm] = run

    adapters = {arm: run.adapter.ref for arm, run in last.items() if run is not None}
    matrices = {arm: score_matrix(store, corpus.name, adapter=ref) for arm, ref in adapters.items()}
    verdicts = {arm: gate(store, ref, policy) for arm, ref in adapters.items()}
    for arm, verdict in verdicts.items():
        say(f"gate {arm.replace('_', '-')}: {_said(verdict)}")
    promoted = _promote(store, corpus.name, adapters["mix"], verdicts["mix"])
    say(f"in production: {promoted or 'nothing, the gate passed none'}")

    page = write_matrices(
        report,
        [("Trained on new data only", matrices["live_only"]), ("Trained on the mix", matrices["mix"])],
        title="Learning the new without losing the old",
        facts=_facts(stream, snapshots, config, policy, adapters, verdicts, promoted),
    )
    say(f"page: {page} ({time.perf_counter() - started:.0f} s)")
    return DemoResult(
        store=store.uri,
        live_only=_arm(matrices["live_only"], adapters["live_only"]),
        mix=_arm(matrices["mix"], adapters["mix"]),
        snapshots=[snapshot.ref for snapshot in snapshots],
        promoted=promoted,
        report=str(page),
        text=_text(matrices, verdicts, promoted),
    )


def _create(store: Store, stream: Stream) -> Corpus:
    try:
        corpus: Corpus = store.create(stream.name, "labelled", heldout=stream.heldout)
    except AlreadyExistsError as exc:
        raise AlreadyExistsError(
            f"{store.uri} holds a demo already", code="corpus-exists", hint="name another directory, or remove this one"
        ) from exc
    return corpus


def _grow(corpus: Corpus, round_: Round) -> Snapshot:
    """A round's records arrive one by one, then live is sealed."""
    with corpus.capture() as live:
        for record in round_.records:
            live.add(record)
    snapshot = corpus.snapshot(message=round_.domain)
    assert snapshot is not None  # every round has records
    return snapshot


def _mix(store: Store, corpus: str, number: int, past: float, seed: int) -> treering.Mix:
    """The newest snapshot, and everything before it as one source of weight `past`."""
    new = f"{corpus}@v{number}"
    if number == 1:
        return store.mix(new, seed=seed)
    before = f"{corpus}@v1" if number == 2 else f"{corpus}@v1..v{number - 1}"
    return store.mix(before, new, weights=[past, 1.0 - past], seed=seed)


def _promote(store: Store, corpus: str, adapter: str, verdict: Verdict) -> str | None:
    """Ask for promotion whatever the gate said: that it is refused then is the registry's to show."""
    try:
        return store.promote(adapter).ref
    except CheckFailedError:
        if verdict.passed:
            raise
    return None


def _shuffled(stream: Stream, seed: int) -> Stream:
    labels = [record["label"] for round_ in stream.rounds for record in round_.records]
    random.Random(seed).shuffle(labels)
    dealt = iter(labels)
    rounds = [
        replace(round_, records=tuple({**record, "label": next(dealt)} for record in round_.records))
        for round_ in stream.rounds
    ]
    return replace(stream, rounds=tuple(rounds))


def _arm(matrix: ScoreMatrix, adapter: str) -> DemoArm:
    values = matrix.to_model().values
    return DemoArm(matrix=values, average=matrix.average, bwt=matrix.bwt, adapter=adapter)


def _counts(snapshot: Snapshot, corpus: Corpus) -> str:
    heldout = len(corpus.store.load(snapshot.ref).heldout())
    return f"captured {snapshot.rows} records, sealed as {snapshot.ref} ({heldout} held out)"


def _said(verdict: Verdict) -> str:
    return "passed" if verdict.passed else f"refused: {'; '.join(verdict.reasons)}"


def _facts(
    stream: Stream,
    snapshots: list[Snapshot],
    config: TrainConfig,
    policy: GatePolicy,
    adapters: dict[str, str],
    verdicts: dict[str, Verdict],
    promoted: str | None,
) -> Iterator[tuple[str, str]]:
    yield "Data", stream.about
    yield "Rounds", ", ".join(f"{s.ref} {r.domain}" for s, r in zip(snapshots, stream.rounds, strict=True))
    yield (
        "Both",
        f"base {config.base}, strategy {config.strategy}, {config.steps} updates of {config.batch_size} records a round, seed {config.seed}",
    )
    yield "New data only", "weight 0 for every earlier snapshot"
    yield "The mix", f"{100 * PAST:.0f} % of each batch from everything sealed before"
    yield (
        "Gate",
        f"a slice may lose {100 * policy.regression_tolerance:g} points of macro-F1 against the adapter's parent",
    )
    yield f"Verdict on {adapters['live_only']}, new data only", _said(verdicts["live_only"])
    yield f"Verdict on {adapters['mix']}, the mix", _said(verdicts["mix"])
    yield "In production", promoted or "nothing"


def _text(matrices: dict[str, ScoreMatrix], verdicts: dict[str, Verdict], promoted: str | None) -> str:
    # Side by side but for the last lines, which say the same of both.
    said = len(matrices["mix"].formulas().splitlines())
    left = ["new data only", *matrices["live_only"].table().splitlines()[:-said]]
    right = ["the mix", *matrices["mix"].table().splitlines()[:-said]]
    width = max(map(len, left))
    lines = [f"{a:<{width}}    {b}".rstrip() for a, b in zip_longest(left, right, fillvalue="")]
    lines += [
        matrices["mix"].formulas(),
        "",
        f"gate on new data only: {_said(verdicts['live_only'])}",
        f"gate on the mix: {_said(verdicts['mix'])}",
    ]
    lines += [f"in production: {promoted or 'nothing'}"]
    return "\n".join(lines)
