"""PURE but for reading a policy file. Decides from scores whether a candidate may go to production, and says why not.

Knows numbers and slice names. Does not evaluate (rounds), remember verdicts or promote (registry).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from treering.errors import UsageError

from .budget import MAX_MEMORY_GB, MAX_P99_MS, Budget
from .matrix import points
from .metrics import METRICS, Metric
from .policy import problems, read_toml

__all__ = ["CheckedRow", "GatePolicy", "Verdict", "check", "load_policy"]

# Scores are sums of floats: 0.92 - 0.90 is 0.020000000000000018. A drop or a shortfall counts once it is larger than
# any rounding, and far smaller than one record of any slice that fits on this planet.
NOISE = 1e-9

Score = Annotated[float, Field(ge=0.0, allow_inf_nan=False)]  # a fraction of 1 where higher is better
Change = Annotated[float, Field(allow_inf_nan=False)]
Limit = Annotated[float, Field(gt=0.0, allow_inf_nan=False)]
Unit = Literal["points", "nats", "plain", "ms", "GB"]


class GatePolicy(BaseModel):
    """What a candidate must reach. Scores are fractions of 1; what isn't set isn't asked.

    As TOML, with every key optional:

        metric = "macro_f1"            # when left out: what the candidate was scored by when it was trained
        regression_tolerance = 0.02    # a slice may lose this much against the baseline, and no more
        min_score = 0.60               # every slice
        min_average = 0.80             # their mean
        min_bwt = -0.05                # backward transfer over the candidate's lineage
        max_p99_ms = 100.0             # one text at a time on this machine; false: not asked
        max_memory_gb = 16.0           # of the process that serves it; false: not asked
        by = ["snapshot", "domain"]    # which held-out slices are compared

        [slices]                       # single slices; one named here must have been evaluated
        "support@v1" = 0.85

        [extra]                        # test sets from elsewhere, judged like any slice; paths as seen from this file
        hard_cases = "tests/hard.jsonl"

    By a metric that is better the lower (loss, perplexity) a slice may rise by `regression_tolerance`, and `min_score`,
    `min_average` and [slices] are what it may not exceed; BWT is below 0 for forgetting all the same.
    """

    model_config = ConfigDict(strict=True, frozen=True, extra="forbid")

    metric: str | None = (
        None  # None: what the candidate was scored by when it was trained; macro_f1, of chat models loss
    )
    regression_tolerance: Score = 0.02
    min_score: Score | None = None
    min_average: Score | None = None
    min_bwt: Change | None = None
    max_p99_ms: Limit | None = MAX_P99_MS
    max_memory_gb: Limit | None = MAX_MEMORY_GB
    by: list[Literal["snapshot", "domain"]] = Field(default=["snapshot"], min_length=1)
    slices: dict[str, Score] = Field(default_factory=dict)
    extra: dict[str, str] = Field(
        default_factory=dict, description="test sets by name: JSONL, CSV or Parquet files, by path or URL"
    )

    @field_validator("metric")
    @classmethod
    def _known_metric(cls, name: str | None) -> str | None:
        if name is not None and name not in METRICS:
            raise ValueError(f"unknown metric {name!r}; built in: {', '.join(sorted(METRICS))}")
        return name

    @model_validator(mode="after")
    def _fractions_of_1(self) -> GatePolicy:
        if self.metric is None or METRICS[self.metric].better == "higher":
            named = {name: getattr(self, name) for name in ("regression_tolerance", "min_score", "min_average")}
            named |= {f"slices.{name}": score for name, score in self.slices.items()}
            for name, value in [*named.items(), ("min_bwt", None if self.min_bwt is None else abs(self.min_bwt))]:
                if value is not None and value > 1:
                    raise ValueError(f"{name}: a fraction of 1 should be less than or equal to 1; 0.02 is 2 points")
        return self

    @field_validator("max_p99_ms", "max_memory_gb", mode="before")
    @classmethod
    def _false_is_none(cls, value: Any) -> Any:
        return None if value is False else value  # TOML has no null

    def __init__(self, **data: Any) -> None:
        try:
            super().__init__(**data)
        except ValidationError as exc:
            raise _bad_policy(exc, "gate policy") from exc

    def by_metric(self, metric: str) -> GatePolicy:
        """The policy itself if it names a metric, else with this one: what a candidate was scored by."""
        return self.changed(metric=metric) if self.metric is None and metric in METRICS else self

    def changed(self, **changes: Any) -> GatePolicy:
        """A copy with other values, checked like a new policy."""
        return GatePolicy(**{**self.model_dump(), **changes})

    @classmethod
    def parse(cls, data: Mapping[str, Any], *, where: str = "gate policy") -> GatePolicy:
        """A policy from parsed TOML or JSON. Raises UsageError that names every bad or unknown key."""
        try:
            return cls.model_validate(dict(data))
        except ValidationError as exc:
            raise _bad_policy(exc, where) from exc


class CheckedRow(BaseModel):
    """One line that the gate looked at."""

    model_config = ConfigDict(strict=True, frozen=True, extra="forbid")

    what: str  # a slice name, "average", "BWT", "p99 latency" or "memory"
    unit: Unit = "points"  # points: fractions of 1, as everywhere; nats; plain: as the metric is; ms; GB of 10⁹ bytes
    score: float | None  # the candidate's, in this unit; None: not evaluated
    previous: float | None = None  # the baseline's; None: the slice is new
    change: float | None = None  # score - previous
    minimum: float | None = None
    maximum: float | None = None
    passed: bool
    reason: str | None = None  # why not; None when passed


class Verdict(BaseModel):
    """What the gate said. `passed` is true exactly when `reasons` is empty."""

    model_config = ConfigDict(strict=True, frozen=True, extra="forbid")

    passed: bool
    reasons: list[str]
    rows: list[CheckedRow]
    policy: GatePolicy
    candidate: str | None = None  # adapter refs, filled in by whoever knows them
    baseline: str | None = None
    budget: Budget | None = None  # what was measured of serving it, if it was

    def _repr_html_(self) -> str:
        from treering.notebook import card, table

        def told(value: float | None, unit: Unit) -> str | None:
            return None if value is None else points(value) if unit == "points" else f"{value:.4g} {unit}"

        rows = [
            (row.what, told(row.previous, row.unit), told(row.score, row.unit), "ok" if row.passed else row.reason)
            for row in self.rows
        ]
        heads = ["slice", "before", "now", "verdict"]
        facts = [("verdict", "passed" if self.passed else "refused"), ("against", self.baseline)]
        return card("gate", self.candidate or "candidate", facts, body=table(heads, rows, right=heads[1:3]))


def check(
    scores: Mapping[str, float],
    previous: Mapping[str, float] | None = None,
    policy: GatePolicy | None = None,
    *,
    bwt: float | None = None,
    budget: Budget | None = None,
    candidate: str | None = None,
    baseline: str | None = None,
) -> Verdict:
    """Judge a candidate's `scores` by slice against a baseline's `previous` ones; fractions of 1.

    A slice without a previous score is new: only minimum scores apply to it. A previous score of 0.0 is a score. A slice
    the baseline was scored on and the candidate wasn't is refused, and so is a NaN: what wasn't measured hasn't passed.
    `bwt` is None or NaN where a lineage has no earlier slice yet; the BWT line is skipped then, as latency and memory are
    without a `budget`.
    Raises UsageError when there is nothing to judge.
    """
    policy = (policy or GatePolicy()).by_metric("macro_f1")
    previous = previous or {}
    names = list(dict.fromkeys([*scores, *previous, *policy.slices]))
    if not names:
        raise UsageError("the gate has no slice to look at", code="empty-slice", hint="evaluate the candidate first")
    rows = [_check_slice(name, scores.get(name), previous.get(name), policy) for name in names]
    if policy.min_average is not None:
        measured = [_measured(scores.get(name)) for name in scores]
        average = (
            math.nan if not measured or None in measured else math.fsum(v or 0.0 for v in measured) / len(measured)
        )
        rows.append(_check_line("average", _measured(average), policy.min_average, policy))
    if policy.min_bwt is not None and _measured(bwt) is not None:
        rows.append(_check_line("BWT", bwt, policy.min_bwt, policy, better="higher"))
    if budget is not None:
        limits: list[tuple[str, Unit, float, float | None]] = [
            ("p99 latency", "ms", budget.p99_ms, policy.max_p99_ms),
            ("memory", "GB", budget.memory_gb, policy.max_memory_gb),
        ]
        rows += [_check_maximum(*limit, budget) for limit in limits if limit[3] is not None]
    reasons = [row.reason for row in rows if row.reason is not None]
    return Verdict(
        passed=not reasons,
        reasons=reasons,
        rows=rows,
        policy=policy,
        candidate=candidate,
        baseline=baseline,
        budget=budget,
    )


def _bad_policy(exc: ValidationError, where: str) -> UsageError:
    return UsageError(
        f"{where}: {'; '.join(problems(exc))}",
        code="bad-policy",
        hint=f"known keys: {', '.join(sorted(GatePolicy.model_fields))}; scores are fractions of 1",
    )


def load_policy(policy: GatePolicy | Mapping[str, Any] | str | Path | None) -> GatePolicy:
    """The policy itself, of a mapping or of a TOML file; the defaults for None.

    Raises NotFoundError when the file isn't there, UsageError when it isn't TOML or holds an unknown or bad key.
    """
    if policy is None:
        return GatePolicy()
    if isinstance(policy, GatePolicy):
        return policy
    if isinstance(policy, Mapping):
        return GatePolicy.parse(policy)
    found = GatePolicy.parse(read_toml(policy, "gate policy"), where=str(Path(policy)))
    beside = {name: _beside(Path(policy), path) for name, path in found.extra.items()}
    return found.model_copy(update={"extra": beside})


def _beside(policy: Path, path: str) -> str:
    """A relative path as seen from the policy file's directory; URLs and absolute paths as they are."""
    return path if "://" in path or "::" in path else str(policy.parent / path)


def _check_slice(name: str, score: float | None, previous: float | None, policy: GatePolicy) -> CheckedRow:
    score, previous = _measured(score), _measured(previous)
    unit, higher = _unit(policy), _metric(policy).better == "higher"
    lines = [line for line in (policy.min_score, policy.slices.get(name)) if line is not None]
    line = (max(lines) if higher else min(lines)) if lines else None
    why = []
    if score is None:
        was = "" if previous is None else f"; it scored {_shown(previous, unit)} before"
        why.append(f"{name} wasn't evaluated{was}")
    else:
        if line is not None and (beyond := _beyond(score, line, unit, higher=higher)):
            why.append(f"{name} scores {beyond}")
        if previous is not None:
            drop = previous - score if higher else score - previous
            if drop > policy.regression_tolerance + NOISE:
                why.append(
                    f"{name} {_fell(drop, policy.regression_tolerance, unit)}, from {_shown(previous, unit)} to "
                    f"{_shown(score, unit)}; {_plain(policy.regression_tolerance, unit)} are tolerated"
                )
    return CheckedRow(
        what=name,
        unit=unit,
        score=score,
        previous=previous,
        change=None if score is None or previous is None else score - previous,
        minimum=line if higher else None,
        maximum=None if higher else line,
        passed=not why,
        reason="; ".join(why) or None,
    )


def _check_line(
    what: str, score: float | None, line: float, policy: GatePolicy, *, better: str | None = None
) -> CheckedRow:
    """Whether one number keeps to a line: not below it, or not above it where lower is better."""
    unit, higher = _unit(policy), (better or _metric(policy).better) == "higher"
    reason = None
    if score is None:
        reason = f"{what} can't be computed: a slice wasn't evaluated"
    elif beyond := _beyond(score, line, unit, higher=higher):
        reason = f"{what} is {beyond}"
    lines = {"minimum": line} if higher else {"maximum": line}
    return CheckedRow(what=what, unit=unit, score=score, passed=reason is None, reason=reason, **lines)


def _beyond(score: float, line: float, unit: Unit, *, higher: bool) -> str | None:
    """How a score breaks its line; None when it doesn't."""
    if (line - score if higher else score - line) <= NOISE:
        return None
    where = "below its minimum" if higher else "above its maximum"
    return f"{_shown(score, unit)}, {where} of {_shown(line, unit)}"


def _metric(policy: GatePolicy) -> Metric:
    return METRICS[policy.metric or "macro_f1"]


def _unit(policy: GatePolicy) -> Unit:
    metric = _metric(policy)
    if metric.better == "higher":
        return "points"
    return "nats" if metric.name == "loss" else "plain"


def _shown(score: float, unit: Unit) -> str:
    if unit == "points":
        return points(score)
    return f"{score:.3f} nats" if unit == "nats" else f"{score:.3f}"


def _check_maximum(what: str, unit: Unit, value: float, maximum: float | None, budget: Budget) -> CheckedRow:
    reason = None
    if maximum is not None and value > maximum:
        held = f", of which the base's weights are {budget.base_gb:.3g} GB" if unit == "GB" and budget.base_gb else ""
        reason = f"{what} is {value:.3g} {unit}, above its maximum of {maximum:g} {unit}{held}"
    return CheckedRow(what=what, unit=unit, score=value, maximum=maximum, passed=reason is None, reason=reason)


def _measured(score: float | None) -> float | None:
    """None for what wasn't measured. 0.0 was: never ask a score for its truth."""
    return None if score is None or math.isnan(score) else float(score)


def _plain(tolerance: float, unit: Unit) -> str:
    return f"{round((100 if unit == 'points' else 1) * tolerance, 6):g}"


def _fell(drop: float, tolerance: float, unit: Unit) -> str:
    """By how much it got worse, with as many decimals as it takes not to look like the tolerance it broke."""
    times, verb, of = (100, "fell", " points") if unit == "points" else (1, "rose", " nats" if unit == "nats" else "")
    for decimals in (1, 2, 4) if unit == "points" else (3, 5):
        text = f"{times * drop:.{decimals}f}"
        if float(text) > times * tolerance + NOISE:
            return f"{verb} by {text}{of}"
    return f"{verb} by {times * drop:.7f}{of}"
