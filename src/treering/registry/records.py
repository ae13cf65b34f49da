"""PURE. What the registry writes down, as pydantic models: an adapter's record, and one event in a corpus's history."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from treering.evaluation.gate import Verdict

__all__ = ["AdapterEvent", "AdapterRecord", "EventKind", "Status", "StoredAdapter"]

Status = Literal["candidate", "refused", "production", "retired", "baseline"]
EventKind = Literal["verdict", "promote", "rollback", "retire"]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Finite = Annotated[float, Field(allow_inf_nan=False)]


class StoredAdapter(BaseModel):
    """`adapters/<corpus>/<number>/record.json`: written once, last, and never changed; its presence is the adapter's."""

    model_config = ConfigDict(strict=True, frozen=True, extra="forbid")

    format: Literal["treering.adapter/1"] = "treering.adapter/1"
    corpus: str
    number: int = Field(ge=1)
    parent: str | None = None  # adapter ref by number whose weights this one started from
    base: str | None = None  # the frozen base model, by name
    base_digest: str | None = None
    strategy: str | None = None
    config: dict[str, Any] = Field(default_factory=dict)
    run: str | None = None  # the round that made it, `support/3`; None: trained by hand
    lock_digest: str | None = None  # of the mix lock beside it, lock.json
    trained_on: list[str] = Field(default_factory=list)  # snapshot refs this run drew from; its parents' not repeated
    trained_rows: dict[str, list[tuple[int, int]]] = Field(default_factory=dict)
    # ^ by corpus: half-open intervals of stable row ids, so that what was drawn from live is known once it is sealed
    metric: str = "macro_f1"
    scores: dict[str, Finite] = Field(default_factory=dict)  # by held-out slice, right after training; fractions of 1
    stats: dict[str, Any] = Field(default_factory=dict)  # rows served, seconds, steps … of the run
    external: str | None = None  # what it is called where it was trained; its weights aren't here
    baseline: bool = False  # trained on everything at once to compare with, not to go on from
    weights_sha256: Sha256  # of weights.safetensors, an empty object for a model that was trained elsewhere
    card_sha256: Sha256  # of card.json
    weights_bytes: int = Field(ge=0)
    created_at: datetime

    @property
    def ref(self) -> str:
        """`support:12`."""
        return f"{self.corpus}:{self.number}"

    @property
    def digest(self) -> str:
        """SHA-256 of the weights, hex: the same lock, config and base give the same one."""
        return self.weights_sha256

    @property
    def prefix(self) -> str:
        """Where its objects lie in the store, with the closing slash."""
        return f"adapters/{self.corpus}/{self.number}/"


class AdapterRecord(StoredAdapter):
    """A stored adapter with what the events say of it now."""

    status: Status = "candidate"
    verdict: Verdict | None = None  # the latest one

    @property
    def parent_number(self) -> int | None:
        """Number of the parent when it is of the same corpus."""
        if self.parent is None or not self.parent.startswith(f"{self.corpus}:"):
            return None
        return int(self.parent.rpartition(":")[2])


class AdapterEvent(BaseModel):
    """`adapters/<corpus>/events/<number>.json`. Numbers start at 1 and leave no gap; a number is taken once."""

    model_config = ConfigDict(strict=True, frozen=True, extra="forbid")

    format: Literal["treering.adapter-event/1"] = "treering.adapter-event/1"
    number: int = Field(ge=1)
    event: EventKind
    adapter: int = Field(ge=1)  # rollback: the adapter that is in production again
    previous: int | None = None  # the adapter that was in production until this event, if it changed that
    verdict: Verdict | None = None  # for event "verdict"
    baseline: int | None = None  # for event "verdict": the adapter compared with, if it is of this corpus
    message: str = ""
    at: datetime
