"""PURE. What a model that is trained round by round suffers from, by how much, and what to do about it.

The modes and checks are those of Hei, "Trained on 52 Product Domains, the Earlier 51 All Regressed" (2026): five ways in
which sequential fine-tuning goes wrong, and ten things to look at. From numbers to findings; measures nothing (rounds).
"""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

__all__ = [
    "Diagnosis",
    "DomainFacts",
    "Finding",
    "Growth",
    "ProbedSlice",
    "Projection",
    "RoundFacts",
]

Check = Literal[
    "severe-forgetting",  # mode 1
    "spurious-forgetting",  # mode 2
    "head-tail-gap",  # mode 3
    "buffer-occupancy",  # mode 3
    "parameter-growth",  # mode 4
    "multi-intent-share",  # mode 5
    "multi-intent-gap",  # mode 5
    "router-accuracy",
    "router-drift",
    "heldout-size",
    "baseline-diff",
    "fresh-baseline",
]
Unit = Literal["points", "share", "records", "parameters", "days"]
Finite = Annotated[float, Field(allow_inf_nan=False)]


class _Document(BaseModel):
    model_config = ConfigDict(strict=True, frozen=True, extra="forbid")


class Finding(_Document):
    """One thing that was looked at."""

    check: Check
    mode: int | None = Field(
        default=None,
        ge=1,
        le=5,
        description="1 standard forgetting, 2 spurious forgetting, 3 buffer starvation, 4 memory, 5 multi-intent",
    )
    title: str = Field(description="a few words for a table's first column")
    unit: Unit = Field(description="points: a difference or a score, as a fraction of 1; share: a fraction of 1")
    figure: Finite | None = Field(description="what was measured; null: it couldn't be, and `says` tells why")
    line: Finite | None = Field(description="what the figure must not cross; null: there is no line, it is shown")
    ok: bool | None = Field(description="null: it couldn't be told")
    says: str = Field(description="one sentence, with the figures that matter")
    remedy: str | None = Field(
        default=None, description="a `treering …` command to run; null when there is nothing to do"
    )


class RoundFacts(_Document):
    """One round of the lineage; fractions of 1, null where a round has no earlier slice."""

    adapter: str
    average: Finite | None
    bwt: Finite | None


class ProbedSlice(_Document):
    """Why one slice dropped. Scores are fractions of 1, by the metric of the diagnosis.

    `recovered` is what a fresh linear head on the last round's frozen features gets back of `drop`: the knowledge is still
    there and the output has drifted away from it. What it doesn't get back is `lost`.
    """

    slice: str
    learned: Finite = Field(description="score right after the slice was learnt")
    final: Finite = Field(description="score now")
    probe: Finite = Field(description="score of a fresh linear head on the features that the adapter has now")
    drop: Finite = Field(ge=0.0, description="learned - final")
    recovered: Finite = Field(ge=0.0, description="min(drop, probe - final), at least 0")
    lost: Finite = Field(ge=0.0, description="drop - recovered")
    cause: Literal["alignment drift", "knowledge loss"]


class DomainFacts(_Document):
    """One domain: how much there is of it, and how well it is answered."""

    domain: str
    train_rows: int = Field(ge=0, description="training records in sealed snapshots")
    live_rows: int = Field(ge=0, description="records in live: its traffic now")
    heldout_rows: int = Field(ge=0, description="labelled held-out records in sealed snapshots")
    buffer_rows: int | None = Field(default=None, description="records of it in the selection that the run replayed")
    group: Literal["head", "middle", "tail"] = Field(description="by traffic: the upper and the lower third")
    score: Finite | None = Field(default=None, description="on its held-out records; null without any")


class Projection(_Document):
    """What the adapter would be with so many domains, all else equal. Bytes are those of float32 weights."""

    domains: int = Field(ge=1)
    parameters: int = Field(ge=0)
    bytes: int = Field(ge=0)


class Growth(_Document):
    """How the adapter grows with its domains: from the shapes of its tensors, not from a guess."""

    parameters: int = Field(ge=0)
    bytes: int = Field(ge=0)
    per_domain: int = Field(ge=0, description="parameters that one more domain adds to the adapter itself")
    per_class: int = Field(ge=0, description="parameters that one more class adds, in the head")
    order: Literal["O(1)", "O(K)"] = Field(description="O(K): a domain adds its own weight matrices")
    projected: list[Projection]


class Diagnosis(_Document):
    """Everything that was looked at in one adapter, and the facts behind it."""

    format: Literal["treering.diagnosis/1"] = "treering.diagnosis/1"
    adapter: str
    metric: str
    findings: list[Finding]
    rounds: list[RoundFacts] = Field(default_factory=list)
    domains: list[DomainFacts] = Field(default_factory=list)
    probed: list[ProbedSlice] = Field(default_factory=list, description="slices that dropped since they were learnt")
    spurious_share: Finite | None = Field(
        default=None, description="share of all drops that is alignment drift: sum of recovered / sum of drop"
    )
    growth: Growth | None = None
    created_at: datetime

    @property
    def ok(self) -> bool:
        """Whether nothing crossed its line; what couldn't be told doesn't count."""
        return all(finding.ok is not False for finding in self.findings)
