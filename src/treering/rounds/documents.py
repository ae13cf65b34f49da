"""PURE but for reading a config file. What a round is told, what it writes down step by step, and what it came to."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError, field_serializer, field_validator

from treering.errors import NotFoundError, StoreError, UsageError
from treering.evaluation.budget import Budget
from treering.evaluation.due import RoundPolicy
from treering.evaluation.gate import GatePolicy, Verdict
from treering.evaluation.policy import problems, read_toml
from treering.store.ref import check_corpus_name
from treering.training.config import TrainConfig

__all__ = [
    "STEPS",
    "NotedFinding",
    "Notified",
    "Outcome",
    "ReplayRule",
    "RoundConfig",
    "RoundPlan",
    "RoundResult",
    "RoundStep",
    "SourceShare",
    "StepName",
]

StepName = Literal["snapshot", "train", "evaluate", "diagnose", "gate", "end"]
STEPS: tuple[StepName, ...] = ("snapshot", "train", "evaluate", "diagnose", "gate", "end")
Outcome = Literal["not-due", "planned", "promoted", "refused", "kept", "failed", "abandoned"]
Share = Annotated[float, Field(ge=0.0, lt=1.0, allow_inf_nan=False)]
Finite = Annotated[float, Field(allow_inf_nan=False)]


class _Document(BaseModel):
    model_config = ConfigDict(strict=True, frozen=True, extra="forbid")


class ReplayRule(_Document):
    """How much of each batch is replay, from what the last round's verdict measured; see `treering.ReplayController`."""

    base: Share = 0.3
    on_regression: Share = Field(default=0.5, description="after a past slice fell by more than the gate tolerates")
    on_slow: Share = Field(default=0.2, description="after the new slices rose by less than min_gain")
    min_gain: Finite = 0.005


class RoundConfig(_Document):
    """Everything that a round is told, as TOML; every key but `corpus` is optional.

    corpus = "support"
    message = "weekly round"         # of the snapshot
    diagnose = true
    webhook = "https://…"            # is sent the result as JSON; "$NAME" takes it from the environment
    webhook_timeout_s = 10.0
    webhook_tries = 3
    track = "mlflow:sqlite:///runs.db"

    [due]                            # when a round is due: the keys of `treering status --policy`
    min_new = 1000

    [replay]                         # share of replay in each batch
    base = 0.3
    on_regression = 0.5
    on_slow = 0.2

    [train]                          # the keys of `treering train --config`
    strategy = "replay"

    [gate]                           # the keys of `treering gate --policy`
    min_bwt = -0.05
    """

    corpus: str
    message: str = ""
    diagnose: bool = True
    webhook: str | None = None
    webhook_timeout_s: Annotated[float, Field(gt=0, le=300, allow_inf_nan=False)] = 10.0
    webhook_tries: Annotated[int, Field(ge=1, le=10)] = 3
    track: str | None = None
    due: RoundPolicy = RoundPolicy()
    replay: ReplayRule = ReplayRule()
    train: TrainConfig = TrainConfig()
    gate: GatePolicy = GatePolicy()

    @field_validator("corpus")
    @classmethod
    def _names_a_corpus(cls, name: str) -> str:
        return check_corpus_name(name)

    @field_validator("webhook")
    @classmethod
    def _is_a_url(cls, url: str | None) -> str | None:
        if url is not None and not re.match(r"https?://[^\s/]+|\$[A-Za-z_][A-Za-z0-9_]*$", url):
            raise ValueError(f"{url!r} is neither an http(s) URL nor $NAME")
        return url

    @field_serializer("train")
    def _as_given(self, config: TrainConfig) -> dict[str, Any]:
        """Without what wasn't said: that is the strategy's to fill in, or the record type's, after a resume too."""
        return config.model_dump(mode="json", exclude_unset=True)

    @classmethod
    def of(cls, given: RoundConfig | Mapping[str, Any] | str | os.PathLike[str]) -> RoundConfig:
        """The config itself, of a mapping, or of a TOML file.

        Raises NotFoundError for a file that isn't there, UsageError that names every unknown or bad key.
        """
        if isinstance(given, cls):
            return given
        where = "round config"
        if isinstance(given, str | os.PathLike):
            where = os.fspath(given)
            try:
                given = read_toml(Path(given), "round config")
            except NotFoundError as exc:
                raise NotFoundError(
                    exc.message, code="no-config", hint='write one; corpus = "support" is enough to begin with'
                ) from exc
        if not isinstance(given, Mapping):
            raise UsageError(f"a round config is a file, a table or a RoundConfig, not {given!r}", code="bad-config")
        try:
            return cls.model_validate(dict(given))
        except ValidationError as exc:
            raise UsageError(
                f"{where}: {'; '.join(text.replace('Value error, ', '') for text in problems(exc))}",
                code="bad-config",
                hint=f"known keys: {', '.join(sorted(cls.model_fields))}",
            ) from exc

    def recorded(self) -> dict[str, JsonValue]:
        """What is kept of it in the store: all but where results are sent, which may hold a secret."""
        kept: dict[str, JsonValue] = self.model_dump(mode="json", exclude={"webhook", "track"})
        return kept

    @classmethod
    def recalled(cls, kept: Mapping[str, JsonValue]) -> RoundConfig:
        """The config that `recorded` kept. Raises StoreError when this version can't read it."""
        try:
            return cls.model_validate_json(json.dumps(dict(kept)))
        except ValidationError as exc:
            raise StoreError(
                f"this treering can't read the config of an earlier round: {'; '.join(problems(exc))}",
                code="newer-format",
                hint="continue it with the version that began it, or give it up: treering round --abandon",
            ) from exc


class SourceShare(_Document):
    """One source of the round's mix."""

    ref: str
    share: Finite = Field(description="Of each batch.")
    rows: int = Field(ge=0, description="Training records.")
    replay: bool = Field(description="Production was trained on it.")


class RoundPlan(_Document):
    """`runs/CORPUS/N/plan.json`: a round begins with it; everything later is decided by it and by the data."""

    format: Literal["treering.round-plan/1"] = "treering.round-plan/1"
    corpus: str
    number: int = Field(ge=1)
    config: dict[str, JsonValue]
    reasons: list[str] = Field(description="Why it was due.")
    seals: int | None = Field(description="Number of the snapshot that it seals; null when live was empty.")
    share: Share = Field(description="Of replay, when there is something to replay.")
    share_reason: str
    began_at: datetime

    @property
    def ref(self) -> str:
        """`support/3`."""
        return f"{self.corpus}/{self.number}"


class RoundStep(_Document):
    """`runs/CORPUS/N/STEP.json`: written once, when the step is done."""

    format: Literal["treering.round-step/1"] = "treering.round-step/1"
    step: StepName
    says: str
    data: dict[str, JsonValue]
    seconds: Finite
    at: datetime


class Notified(_Document):
    """`runs/CORPUS/N/notified.json`: what came of telling the webhook."""

    format: Literal["treering.round-notified/1"] = "treering.round-notified/1"
    ok: bool
    tries: int
    says: str
    at: datetime


class NotedFinding(_Document):
    """What a diagnosis found over its line."""

    title: str
    says: str
    remedy: str | None


class RoundResult(_Document):
    """What a round came to. Scores are fractions of 1."""

    format: Literal["treering.round/1"] = "treering.round/1"
    corpus: str
    number: int | None = Field(description="Null when no round was begun.")
    outcome: Outcome = Field(
        description="promoted: in production. refused: by the gate. kept: passed, but production had changed meanwhile. "
        "failed: training diverged. planned: a dry run. not-due, abandoned: nothing was trained."
    )
    resumed: bool = Field(default=False, description="It had been interrupted before.")
    reasons: list[str] = Field(description="Why it was due, or why it wasn't.")
    why: list[str] = Field(default_factory=list, description="Why the candidate wasn't promoted.")
    sealed: str | None = None
    sources: list[SourceShare] = Field(default_factory=list)
    share: Share | None = Field(default=None, description="Of replay in each batch.")
    share_reason: str | None = None
    parent: str | None = None
    adapter: str | None = None
    production: str | None = Field(default=None, description="Now.")
    average: Finite | None = None
    bwt: Finite | None = None
    verdict: Verdict | None = None
    findings: list[NotedFinding] = Field(default_factory=list, description="Of the diagnosis, over their line.")
    checked: int = Field(default=0, description="How many things the diagnosis looked at.")
    next_share: Share | None = Field(default=None, description="Of replay in the next round.")
    next_reason: str | None = None
    steps: list[RoundStep] = Field(default_factory=list, exclude=True)
    notified: Notified | None = None
    seconds: Finite = 0.0

    @property
    def ok(self) -> bool:
        """Whether the command may exit with 0: promoted, or nothing to do."""
        return self.outcome not in ("refused", "kept", "failed")

    @property
    def budget(self) -> Budget | None:
        """What serving the candidate took."""
        return self.verdict.budget if self.verdict else None
