"""A whole round in one call: status → snapshot → train → evaluate → diagnose → gate → promote or keep.

Made for cron. What a round does is written down step by step under `runs/CORPUS/N/`, each step as one object that is created
if absent, and each step can be done again without doing it twice: a snapshot by its number, an adapter by the run in its
record, a verdict and a promotion by the registry's events. So a round that was killed anywhere is continued by the next call and
ends in the same state. One round of a corpus runs at a time (a lease).
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, JsonValue, TypeAdapter

from treering.capture.sealing import seal_live
from treering.errors import (
    AlreadyExistsError,
    CheckFailedError,
    ConflictError,
    NotFoundError,
    TreeringError,
    UsageError,
)
from treering.evaluation.gate import GatePolicy, Verdict
from treering.mixing import ReplayController, mix
from treering.mixing.sources import TrainRows
from treering.mixing.weights import regroup
from treering.registry import AdapterRecord, Registry, trained_snapshots
from treering.rounds.documents import (
    STEPS,
    NotedFinding,
    Notified,
    Outcome,
    ReplayRule,
    RoundConfig,
    RoundPlan,
    RoundResult,
    RoundStep,
    SourceShare,
    StepName,
)
from treering.rounds.evaluate import gate, score_matrix
from treering.rounds.status import Status, status
from treering.rounds.summary import expanded
from treering.rounds.train import train, with_weights
from treering.rounds.webhook import notify
from treering.store.documents import parse_document
from treering.store.lease import EXPIRES_S
from treering.store.snapshot import list_records

if TYPE_CHECKING:
    from treering.store import BaseStore
    from treering.store.lease import Lease
    from treering.store.objects import Objects

__all__ = ["next_share", "past_rounds", "round"]

Progress = Callable[[str], None]
_SOURCES = TypeAdapter(list[SourceShare])


def round(  # noqa: A001  (treering.round, as the command)
    store: BaseStore,
    config: RoundConfig | Mapping[str, Any] | str | os.PathLike[str],
    *,
    now: bool = False,
    dry_run: bool = False,
    abandon: bool = False,
    progress: Progress | None = None,
) -> RoundResult:
    """Run one round if it is due, or go on with the one that was interrupted; at most one round a call.

    Trains on what is new to production, and on what it was trained on as replay: 30 % of each batch, more after a verdict that
    found regression, less after one that found slow learning (`[replay]`). The same records, settings and share aren't trained
    on again after they were refused. An interrupted round goes on with the config that it began with.

    config: a `RoundConfig`, a table or a TOML file. now: whether or not a round is due. dry_run: say what would be done, and
    do nothing. abandon: give the interrupted round up; what it sealed and trained stays. progress: is told each step.

    Raises UsageError for a bad config, ConflictError while another round of the corpus runs, NotFoundError, and what the steps
    raise: the round stays interrupted then. That the gate refuses, or that training diverges, is a result: see
    `RoundResult.outcome`.
    """
    settings = RoundConfig.of(config)
    store.corpus(settings.corpus)  # says so if there is none
    _check(settings)
    say = progress or (lambda line: None)
    if dry_run:
        return _forecast(store, settings, now=now)
    with ExitStack() as stack:
        try:
            # Beside an object store a lease whose host died is free once nobody has renewed it for a while.
            wait_s = 0.0 if store.root is not None else EXPIRES_S + 5.0
            lease = stack.enter_context(store.lease(f"round-{settings.corpus}", wait_s=wait_s))
        except ConflictError as exc:
            raise ConflictError(
                f"another round of {settings.corpus} is running",
                code="round-running",
                hint="wait for it to end; two at once would train the same records twice",
            ) from exc
        last = _newest(store, settings.corpus)
        if last is not None and "end" not in last.done:
            current = _Round(store, last, settings, lease, say, resumed=True)
            return current.give_up() if abandon else current.go()
        if abandon:
            raise NotFoundError(f"no round of {settings.corpus} was interrupted", code="no-round")
        if last is not None:
            _Round(store, last, settings, lease, say, resumed=True).tell()  # killed before it could
        plan, found, why_not = _plan(store, settings, last, now=now)
        if plan is None:
            return _nothing(settings.corpus, found, why_not)
        lease.check()
        store.objects.create(_path(plan, "plan"), _bytes(plan))
        say(f"round {plan.number} of {plan.corpus}")
        return _Round(store, _Journal(plan, {}), settings, lease, say, resumed=False).go()


def next_share(rule: ReplayRule, tolerance: float, verdict: Verdict | None, fresh: Iterable[str]) -> tuple[float, str]:
    """The share of replay to train with, and why, after a verdict on a candidate that had `fresh` slices to learn.

    The rule is that of `ReplayController`, told first what the baseline scored and then what the candidate did.
    """
    controller = ReplayController(
        base=rule.base,
        on_regression=rule.on_regression,
        on_slow=rule.on_slow,
        tolerance=tolerance,
        min_gain=rule.min_gain,
    )
    if verdict is None:
        return controller.share, "no verdict yet"
    new = set(fresh)
    worse = [row for row in verdict.rows if row.unit != "points" and row.previous is not None and not row.passed]
    if any(row.what not in new for row in worse):  # nats, say, which the controller's thresholds aren't about
        return rule.on_regression, f"{worse[0].what} was refused"
    rows = [row for row in verdict.rows if row.unit == "points" and row.previous is not None and row.score is not None]
    past = [row for row in rows if row.what not in new]
    learnt = [row for row in rows if row.what in new]
    controller.update({row.what: row.previous or 0.0 for row in past}, _mean([row.previous or 0.0 for row in learnt]))
    share = controller.update({row.what: row.score or 0.0 for row in past}, _mean([row.score or 0.0 for row in learnt]))
    return share, controller.reason


def past_rounds(store: BaseStore, corpus: str) -> list[RoundResult]:
    """The rounds of a corpus, oldest first, as far as they got; one that is interrupted has the outcome of a plan."""
    return [_result(store, journal, resumed=False) for journal in _journals(store, corpus)]


# --- what was written down ----------------------------------------------------------------------------------------


class _Journal:
    """The objects of one round."""

    def __init__(self, plan: RoundPlan, done: dict[str, RoundStep], notified: Notified | None = None) -> None:
        self.plan = plan
        self.done = done
        self.notified = notified

    @property
    def sources(self) -> list[SourceShare]:
        return _SOURCES.validate_python(self.done["snapshot"].data["sources"]) if "snapshot" in self.done else []

    @property
    def verdict(self) -> Verdict | None:
        if "gate" not in self.done:
            return None
        return Verdict.model_validate_json(json.dumps(self.done["gate"].data["verdict"]))

    @property
    def outcome(self) -> Outcome:
        said: Any = self.done["end"].data["outcome"] if "end" in self.done else "planned"
        outcome: Outcome = said
        return outcome

    @property
    def fresh(self) -> list[str]:
        return [one for source in self.sources if not source.replay for one in expanded(source.ref)]


def _path(plan: RoundPlan, name: str) -> str:
    return f"runs/{plan.corpus}/{plan.number:06d}/{name}.json"


def _bytes(document: BaseModel) -> bytes:
    return (document.model_dump_json(indent=1) + "\n").encode()


def _journals(store: BaseStore, corpus: str) -> list[_Journal]:
    objects = store.objects
    found: dict[str, list[str]] = {}
    for path in objects.list(f"runs/{corpus}/"):
        folder, _, name = path.rpartition("/")
        found.setdefault(folder, []).append(name)
    return [_read(objects, folder, names) for folder, names in sorted(found.items()) if "plan.json" in names]


def _newest(store: BaseStore, corpus: str) -> _Journal | None:
    paths = [path for path in store.objects.list(f"runs/{corpus}/") if path.endswith("/plan.json")]
    if not paths:
        return None
    folder = max(paths).removesuffix("/plan.json")
    names = [path.rpartition("/")[2] for path in store.objects.list(f"{folder}/")]
    return _read(store.objects, folder, names)


def _read(objects: Objects, folder: str, names: Sequence[str]) -> _Journal:
    plan = parse_document(RoundPlan, f"{folder}/plan.json", objects.get(f"{folder}/plan.json"))
    done: dict[str, RoundStep] = {}
    for step in STEPS:
        if f"{step}.json" in names:
            path = f"{folder}/{step}.json"
            done[step] = parse_document(RoundStep, path, objects.get(path))
    notified = None
    if "notified.json" in names:
        notified = parse_document(Notified, f"{folder}/notified.json", objects.get(f"{folder}/notified.json"))
    return _Journal(plan, done, notified)


# --- whether, and with what ----------------------------------------------------------------------------------------


def _check(settings: RoundConfig) -> None:
    """What would only be found out in the middle of a round. Raises UsageError."""
    from treering.rounds.tracking import tracker
    from treering.training import strategy

    strategy(settings.train.strategy)
    tracker(settings.track)


def _plan(
    store: BaseStore, settings: RoundConfig, last: _Journal | None, *, now: bool
) -> tuple[RoundPlan | None, Status, list[str]]:
    """The plan of the next round, or why there is none."""
    found = status(store, settings.corpus, settings.due)
    if not found.new.training_rows:
        return None, found, ["there are no new training records"]
    if not found.due and not now:
        few = found.new.training_rows
        calm = f"{few:,} new training records, and no reason to hurry: treering status {settings.corpus}"
        return None, found, found.reasons or [calm]  # that there are fewer than the fewest, for one
    share, why = settings.replay.base, "the first round"
    if last is not None:
        share, why = next_share(settings.replay, settings.gate.regression_tolerance, last.verdict, last.fresh)
    records = list_records(store.corpus(settings.corpus))
    plan = RoundPlan(
        corpus=settings.corpus,
        number=1 if last is None else last.plan.number + 1,
        config=settings.recorded(),
        reasons=found.reasons or ["asked for"],
        seals=records[-1].number + 1 if records and found.live_rows else 1 if found.live_rows else None,
        share=share,
        share_reason=why,
        began_at=datetime.now(UTC),
    )
    if not now and last is not None and plan.seals is None and _is_again(store, plan, last):
        return None, found, [
            f"round {last.plan.number} ended as {last.outcome} on the same records with the same settings; "
            "waiting for new ones"
        ]  # fmt: skip
    return plan, found, []


def _is_again(store: BaseStore, plan: RoundPlan, last: _Journal) -> bool:
    """Whether the last round came to nothing on just what this one would train on."""
    if last.outcome in ("promoted", "abandoned") or (last.plan.config, last.plan.share) != (plan.config, plan.share):
        return False
    production = Registry(store, plan.corpus).state().production
    parent = None if production is None else f"{plan.corpus}:{production}"
    sources = _sources(store, plan)
    return last.done["snapshot"].data["parent"] == parent and last.sources == sources


def _sources(store: BaseStore, plan: RoundPlan, *, live: bool = False) -> list[SourceShare]:
    """Every sealed snapshot, neighbours joined: new ones, and as replay those that production was trained on.

    live: as if live were sealed already.
    """
    trained = trained_snapshots(store, plan.corpus)
    spans: list[tuple[int, int, bool]] = []
    for snapshot in store.corpus(plan.corpus).snapshots():
        replay = snapshot.ref in trained
        if spans and spans[-1][1] + 1 == snapshot.number and spans[-1][2] == replay:
            spans[-1] = (spans[-1][0], snapshot.number, replay)
        else:
            spans.append((snapshot.number, snapshot.number, replay))
    found = []
    for first, last, replay in sorted(spans, key=lambda span: not span[2]):
        ref = f"{plan.corpus}@v{first}" + (f"..v{last}" if last > first else "")
        rows = TrainRows.of(store.load(ref)).size
        if rows:
            found.append((ref, rows, replay))
    if live and (rows := TrainRows.of(store.live(plan.corpus)).size):
        found.append((f"{plan.corpus}@live", rows, False))
    replayed = [replay for _, _, replay in found]
    if not found or all(replayed):
        return []
    weights = [float(rows) for _, rows, _ in found]
    shares = regroup(weights, replayed, plan.share if any(replayed) else 0.0)
    total = math.fsum(shares)
    return [
        SourceShare(ref=ref, share=share / total, rows=rows, replay=replay)
        for (ref, rows, replay), share in zip(found, shares, strict=True)
    ]


def _forecast(store: BaseStore, settings: RoundConfig, *, now: bool) -> RoundResult:
    """What a round would do now."""
    last = _newest(store, settings.corpus)
    if last is not None and "end" not in last.done:
        result = _result(store, last, resumed=True)
        undone = next(step for step in STEPS if step not in last.done)
        return result.model_copy(
            update={
                "outcome": "planned",
                "reasons": [f"round {last.plan.number} was interrupted; it goes on at: {undone}"],
            }
        )
    plan, found, why_not = _plan(store, settings, last, now=now)
    if plan is None:
        return _nothing(settings.corpus, found, why_not)
    sources = _sources(store, plan, live=plan.seals is not None)
    return RoundResult(
        corpus=plan.corpus,
        number=plan.number,
        outcome="planned",
        reasons=plan.reasons,
        sealed=None
        if plan.seals is None
        else f"{plan.corpus}@v{plan.seals}, {found.live_rows:,} record{'' if found.live_rows == 1 else 's'}",
        sources=sources,
        share=plan.share,
        share_reason=plan.share_reason,
        parent=found.production,
        production=found.production,
    )


def _nothing(corpus: str, found: Status, why: list[str]) -> RoundResult:
    return RoundResult(corpus=corpus, number=None, outcome="not-due", reasons=why, production=found.production)


# --- one round -----------------------------------------------------------------------------------------------------


class _Round:
    """One round, from wherever it stands."""

    def __init__(
        self, store: BaseStore, journal: _Journal, settings: RoundConfig, lease: Lease, say: Progress, *, resumed: bool
    ) -> None:
        self.store = store
        self.journal = journal
        self.plan = journal.plan
        self.corpus = store.corpus(self.plan.corpus)
        self.registry = Registry(store, self.plan.corpus)
        self.settings = settings  # for where to send the result; what is trained is the plan's to say
        self.config = RoundConfig.recalled(self.plan.config)
        self.lease = lease
        self.say = say
        self.resumed = resumed

    def go(self) -> RoundResult:
        """Do what isn't done yet."""
        if self.resumed:
            self.say(
                f"going on with round {self.plan.number} of {self.plan.corpus}, begun {self.plan.began_at:%Y-%m-%d %H:%M}"
            )
            if self.plan.config != self.settings.recorded():
                self.say("the config was changed meanwhile; the round goes on with the one it began with")
        work: dict[StepName, Callable[[], tuple[str, dict[str, Any]]]] = {
            "snapshot": self._snapshot,
            "train": self._train,
            "evaluate": self._evaluate,
            "diagnose": self._diagnose,
            "gate": self._gate,
            "end": self._end,
        }
        failed = False
        for name, make in work.items():
            if failed and name != "end":
                continue
            try:
                self._step(name, make)
            except TreeringError as exc:
                if exc.code != "lease-lost":  # who holds it goes on
                    again = "then call again; to begin anew with another config: treering round --abandon"
                    exc.hint = f"{exc.hint}; {again}" if exc.hint else f"mend that, {again}"
                raise
            failed = failed or (name == "train" and self._data("train")["adapter"] is None)
        notified = self.tell()
        result = _result(self.store, self.journal, resumed=self.resumed)
        return result.model_copy(update={"notified": notified})

    def give_up(self) -> RoundResult:
        """End it here."""
        self._step("end", lambda: ("given up", {"outcome": "abandoned", "why": [], "production": self._production()}))
        return _result(self.store, self.journal, resumed=True)

    def tell(self) -> Notified | None:
        """Tell the webhook, once."""
        if self.settings.webhook is None or self.journal.notified is not None:
            return self.journal.notified
        result = _result(self.store, self.journal, resumed=self.resumed)
        said = notify(
            self.settings.webhook,
            result.model_dump_json().encode(),
            run=self.plan.ref,
            timeout_s=self.settings.webhook_timeout_s,
            tries=self.settings.webhook_tries,
        )
        self.say(f"webhook: {said.says}")
        _create(self.store, _path(self.plan, "notified"), said)
        self.journal.notified = said
        return said

    def _step(self, name: StepName, make: Callable[[], tuple[str, dict[str, Any]]]) -> None:
        if name in self.journal.done:
            return
        began = time.perf_counter()
        says, data = make()
        self.lease.check()
        step = RoundStep(
            step=name,
            says=says,
            data=_json(data),
            seconds=time.perf_counter() - began,
            at=datetime.now(UTC),
        )
        _create(self.store, _path(self.plan, name), step)
        self.journal.done[name] = step
        self.say(f"{name}: {says}")

    def _data(self, name: StepName) -> dict[str, Any]:
        return dict(self.journal.done[name].data)

    def _production(self) -> str | None:
        number = self.registry.state().production
        return None if number is None else f"{self.plan.corpus}:{number}"

    def _snapshot(self) -> tuple[str, dict[str, Any]]:
        number = self.plan.seals
        sealed = None
        if number is not None:
            try:
                if number not in self._sealed():
                    seal_live(self.corpus, message=self.config.message or f"round {self.plan.number}", to=number)
            except ConflictError:
                if number not in self._sealed():  # somebody else sealed it just now, which is as good
                    raise
            sealed = f"{self.plan.corpus}@v{number}" if number in self._sealed() else None
        sources = _sources(self.store, self.plan)
        says = f"sealed {sealed}" if sealed else "live is empty; what is new was sealed before"
        data = {
            "sealed": sealed,
            "parent": self._production(),
            "sources": [source.model_dump(mode="json") for source in sources],
        }
        return says, data

    def _sealed(self) -> set[int]:
        return {record.number for record in list_records(self.corpus)}

    def _train(self) -> tuple[str, dict[str, Any]]:
        from treering.training import DivergedError, strategy

        done = [adapter for adapter in self.registry.adapters() if adapter.run == self.plan.ref]
        if done:  # killed between the registry's word and ours
            return self._trained(done[-1])
        sources = self.journal.sources
        if not sources:
            return "there is nothing new to train on", {"adapter": None, "why": "nothing new to train on was sealed"}
        config = self.config.train
        recipe = mix(
            *(self.store.load(source.ref) for source in sources),
            weights=[source.share for source in sources],
            seed=config.seed,
        )
        parent: Any = self._data("snapshot")["parent"] if strategy(config.strategy).continues else "auto"
        if parent not in ("auto", None):
            production = self.registry.get(parent)
            start = with_weights(self.registry, production)
            parent = None if start is None else start.ref
            if start is not production:
                self.say(f"{production.ref} was trained elsewhere: training goes on from {parent or 'scratch'}")
        try:
            run = train(
                self.store,
                recipe,
                config,
                parent=parent,
                corpus=self.plan.corpus,
                run=self.plan.ref,
                track=self.settings.track,
            )
        except DivergedError as exc:
            return exc.message, {"adapter": None, "why": str(exc)}
        return self._trained(run.adapter)

    def _trained(self, adapter: AdapterRecord) -> tuple[str, dict[str, Any]]:
        return f"trained {adapter.ref} from {adapter.parent or 'scratch'}", {"adapter": adapter.ref, "why": None}

    @property
    def _adapter(self) -> str:
        return str(self._data("train")["adapter"])

    def _evaluate(self) -> tuple[str, dict[str, Any]]:
        try:
            matrix = score_matrix(self.store, self.plan.corpus, adapter=self._adapter, metric=self.config.gate.metric)
        except NotFoundError as exc:
            return exc.message, {"average": None, "bwt": None}
        found = matrix.summary()
        text = ", ".join(f"{name} {_figure(value)}" for name, value in found.items())
        return f"{text} ({matrix.metric})", {
            "average": found["average"],
            "bwt": found["bwt"],
            "matrix": matrix.to_model().model_dump(mode="json"),
        }

    def _diagnose(self) -> tuple[str, dict[str, Any]]:
        if not self.config.diagnose:
            return "not asked for", {"checked": 0, "findings": []}
        from treering.rounds.diagnose import diagnose

        try:
            found = diagnose(self.store, self._adapter)
        except (UsageError, NotFoundError) as exc:  # what can't be looked at isn't wrong, and a round has to end
            return f"couldn't be made: {exc.message}", {"checked": 0, "findings": []}
        over = [finding for finding in found.findings if finding.ok is False]
        checked = sum(finding.ok is not None for finding in found.findings)
        noted = [NotedFinding(title=f.title, says=f.says, remedy=f.remedy).model_dump(mode="json") for f in over]
        return f"{len(over)} of {checked} checks over their line", {"checked": checked, "findings": noted}

    def _gate(self) -> tuple[str, dict[str, Any]]:
        """The verdict, from the registry when it is there already: asking again would write it down twice."""
        policy = self.config.gate.by_metric(self.registry.get(self._adapter).metric)
        number = int(self._adapter.rpartition(":")[2])
        events = self.registry.events()
        said = [event.verdict for event in events if event.event == "verdict" and event.adapter == number]
        known = [verdict for verdict in said if verdict is not None and verdict.policy == policy]
        try:
            verdict = known[-1] if known else gate(self.store, self._adapter, policy)
        except UsageError as exc:
            if exc.code != "empty-slice":
                raise
            verdict = self._nothing_to_judge(policy, exc)
        says = "passed" if verdict.passed else f"refused: {'; '.join(verdict.reasons)}"
        return says, {"verdict": verdict.model_dump(mode="json")}

    def _nothing_to_judge(self, policy: GatePolicy, exc: UsageError) -> Verdict:
        """A corpus without held-out records: what wasn't measured hasn't passed."""
        verdict = Verdict(
            passed=False,
            reasons=[str(exc)],
            rows=[],
            policy=policy,
            candidate=self._adapter,
            baseline=self._production(),
        )
        self.registry.record_verdict(self._adapter, verdict)
        return verdict

    def _end(self) -> tuple[str, dict[str, Any]]:
        trained = self._data("train")
        if trained["adapter"] is None:
            return self._ended("failed", [str(trained["why"])])
        verdict = self.journal.verdict
        assert verdict is not None
        if not verdict.passed:
            return self._ended("refused", verdict.reasons)
        number = int(self._adapter.rpartition(":")[2])
        if not any(event.event == "promote" and event.adapter == number for event in self.registry.events()):
            try:
                self.lease.check()
                self.registry.promote(self._adapter, message=f"round {self.plan.number}")
            except CheckFailedError as exc:
                return self._ended("kept", [str(exc)])
        return self._ended("promoted", [])

    def _ended(self, outcome: Outcome, why: list[str]) -> tuple[str, dict[str, Any]]:
        return outcome, {"outcome": outcome, "why": why, "production": self._production()}


def _result(store: BaseStore, journal: _Journal, *, resumed: bool) -> RoundResult:
    """What is known of a round."""
    plan, done = journal.plan, journal.done
    data: dict[str, dict[str, Any]] = {step: dict(found.data) for step, found in done.items()}
    verdict = journal.verdict
    share, why = None, None
    if verdict is not None:
        config = RoundConfig.recalled(plan.config)
        share, why = next_share(config.replay, config.gate.regression_tolerance, verdict, journal.fresh)
    production = Registry(store, plan.corpus).state().production
    return RoundResult(
        corpus=plan.corpus,
        number=plan.number,
        outcome=journal.outcome,
        resumed=resumed,
        reasons=plan.reasons,
        why=data.get("end", {}).get("why", []),
        sealed=data.get("snapshot", {}).get("sealed"),
        sources=journal.sources,
        share=plan.share,
        share_reason=plan.share_reason,
        parent=data.get("snapshot", {}).get("parent"),
        adapter=data.get("train", {}).get("adapter"),
        production=None if production is None else f"{plan.corpus}:{production}",
        average=data.get("evaluate", {}).get("average"),
        bwt=data.get("evaluate", {}).get("bwt"),
        verdict=verdict,
        findings=[NotedFinding.model_validate(one) for one in data.get("diagnose", {}).get("findings", [])],
        checked=data.get("diagnose", {}).get("checked", 0),
        next_share=share,
        next_reason=why,
        steps=list(done.values()),
        notified=journal.notified,
        seconds=math.fsum(step.seconds for step in done.values()),
    )


def _create(store: BaseStore, path: str, document: BaseModel) -> None:
    try:
        store.objects.create(path, _bytes(document))
    except AlreadyExistsError as exc:  # only whoever holds the lease writes here, so ours was lost
        raise ConflictError(f"another process went on with this round: {path}", code="round-running") from exc


def _json(data: dict[str, Any]) -> dict[str, JsonValue]:
    """Plain JSON; NaN becomes null."""
    from pydantic_core import to_json

    plain: dict[str, JsonValue] = json.loads(to_json(data, inf_nan_mode="null"))
    return plain


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values) if values else math.nan


def _figure(value: float | None) -> str:
    return "not told" if value is None else f"{value:.3f}"
