"""PURE. Whether it is time for a round: a policy over what is new since the adapter in production was trained."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from treering.evaluation.drift import ColumnDrift, DriftLines

__all__ = ["NewData", "RoundPolicy", "Unseen", "reasons"]

_NAMED = 3


class _Model(BaseModel):
    model_config = ConfigDict(strict=True, frozen=True, extra="forbid")


class RoundPolicy(_Model):
    """When a round is due: any of these, once there are `fewest` new training records. What is null or false isn't asked.

    As TOML, with every key optional:

        min_new = 1000        # new training records
        max_age_days = 7.0    # since the oldest of them happened
        on_drift = true       # a column drifted from what production was trained on
        on_unseen = true      # a label or domain that production has never seen
        fewest = 100          # below it nothing makes a round due

        [lines]               # from which scores on a column has drifted
        js_distance = 0.1
        psi = 0.1
        auc = 0.55
    """

    min_new: Annotated[int, Field(ge=1)] | None = 1_000
    max_age_days: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = 7.0
    on_drift: bool = True
    on_unseen: bool = True
    fewest: Annotated[int, Field(ge=1)] = 100
    lines: DriftLines = DriftLines()


class Unseen(_Model):
    """A value among the new records that production wasn't trained on."""

    column: str
    value: str
    rows: int


class NewData(_Model):
    """What the adapter in production wasn't trained on; everything, when none is. Excluded records don't count."""

    rows: int
    training_rows: int
    first_ts: datetime | None
    last_ts: datetime | None
    oldest_days: float | None = Field(description="Since the oldest happened.")
    unseen: list[Unseen] | None = Field(description="Most frequent first; null when nothing is in production.")
    drift: list[ColumnDrift] | None = Field(description="Against what it was trained on; null when nothing is.")


def reasons(new: NewData, policy: RoundPolicy, production: str | None) -> list[str]:
    """Why a round is due; empty when it isn't."""
    n = new.training_rows
    if n < policy.fewest:
        return []
    found = []
    if policy.min_new is not None and n >= policy.min_new:
        found.append(f"{n:,} new training records; {policy.min_new:,} are enough")
    if policy.max_age_days is not None and new.oldest_days is not None and new.oldest_days >= policy.max_age_days:
        found.append(f"the oldest new record is {new.oldest_days:.1f} days old; {policy.max_age_days:g} are the most")
    if policy.on_unseen and new.unseen:
        for column in dict.fromkeys(u.column for u in new.unseen):
            values = [u.value for u in new.unseen if u.column == column]
            found.append(f"{production} has never seen {column} {_some(values)}")
    if policy.on_drift:
        drifted = [f"{d.column} ({d.what})" for d in new.drift or [] if d.drifted]
        if drifted:
            found.append(f"drift in {_some(drifted)}")
    return found


def _some(values: Sequence[str]) -> str:
    rest = len(values) - _NAMED
    return ", ".join(values[:_NAMED]) + (f" and {rest:,} more" if rest > 0 else "")
