"""Scores that were measured, kept in the store by what they depend on, so that they needn't be measured again.

A score is a function of weights, card, records and metric. Its object is named by their digests, so a name can only ever
hold one score. Does not measure (rounds).
"""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from treering.errors import AlreadyExistsError, ConflictError, NotFoundError, StoreError
from treering.store.documents import parse_document

from .objects import HasObjects, to_bytes
from .records import StoredAdapter

__all__ = ["CanaryLog", "CanaryLook", "ScoreLog", "StoredScore", "every_score"]

_ATTEMPTS = 50  # lookers at one adapter that may get in first


class StoredScore(BaseModel):
    """`evaluations/<corpus>/<adapter number>/<key>.json`."""

    model_config = ConfigDict(strict=True, frozen=True, extra="forbid")

    format: Literal["treering.score/1"] = "treering.score/1"
    adapter: str
    weights_sha256: str
    slice: str
    slice_key: str  # content digests of the slice's snapshots
    rows: int = Field(ge=1)
    metric: str
    score: Annotated[float, Field(allow_inf_nan=False)]
    created_at: datetime


def every_score(store: HasObjects, record: StoredAdapter) -> list[StoredScore]:
    """All stored scores of an adapter, oldest first."""
    objects = store.objects
    paths = objects.list(f"evaluations/{record.corpus}/{record.number}/")
    found = [parse_document(StoredScore, path, objects.get(path)) for path in paths]
    return sorted(found, key=lambda score: (score.created_at, score.slice))


class CanaryLook(BaseModel):
    """`canaries/<corpus>/<adapter number>/<look>.json`: what an adapter scored when it was looked at."""

    model_config = ConfigDict(strict=True, frozen=True, extra="forbid")

    format: Literal["treering.canary/1"] = "treering.canary/1"
    adapter: str
    metric: str
    scores: dict[str, Annotated[float, Field(allow_inf_nan=False)]] = Field(description="by held-out slice")
    rows: dict[str, int]
    at: datetime


class CanaryLog:
    """The looks at one adapter, in order. What scored live, which no digest names, is only known from here."""

    def __init__(self, store: HasObjects, record: StoredAdapter) -> None:
        self._objects = store.objects
        self._folder = f"canaries/{record.corpus}/{record.number}/"

    def looks(self) -> list[CanaryLook]:
        """Oldest first."""
        return [parse_document(CanaryLook, path, self._objects.get(path)) for path in self._objects.list(self._folder)]

    def last(self, slice_name: str, metric: str) -> float | None:
        """What a slice scored when it was last looked at."""
        found = [
            look.scores[slice_name] for look in self.looks() if look.metric == metric and slice_name in look.scores
        ]
        return found[-1] if found else None

    def add(self, look: CanaryLook) -> None:
        """Keep a look. Raises ConflictError when others keep getting in first."""
        for _ in range(_ATTEMPTS):
            number = len(self._objects.list(self._folder)) + 1
            try:
                self._objects.create(f"{self._folder}{number:06d}.json", to_bytes(look))
            except AlreadyExistsError:
                continue
            return
        raise ConflictError(f"couldn't keep a look at {look.adapter}: too many others", hint="try again")


class ScoreLog:
    """The stored scores of one adapter."""

    def __init__(self, store: HasObjects, record: StoredAdapter) -> None:
        self._objects = store.objects
        self._record = record

    def get(self, slice_name: str, slice_key: str, metric: str) -> StoredScore | None:
        """The score measured before on just these records; None when there is none."""
        path = self._path(slice_name, slice_key, metric)
        try:
            data = self._objects.get(path)
        except NotFoundError:
            return None
        return parse_document(StoredScore, path, data)

    def put(self, slice_name: str, slice_key: str, metric: str, *, score: float, rows: int) -> StoredScore:
        """Keep a score. When one is there already, the first one stays and is returned."""
        try:
            stored = StoredScore(
                adapter=self._record.ref,
                weights_sha256=self._record.weights_sha256,
                slice=slice_name,
                slice_key=slice_key,
                rows=rows,
                metric=metric,
                score=score,
                created_at=datetime.now(UTC),
            )
        except ValidationError as exc:
            raise StoreError(f"a score of {score} on {rows} records can't be kept", code="bad-score") from exc
        path = self._path(slice_name, slice_key, metric)
        try:
            self._objects.create(path, to_bytes(stored))
        except AlreadyExistsError:
            return parse_document(StoredScore, path, self._objects.get(path))
        return stored

    def _path(self, slice_name: str, slice_key: str, metric: str) -> str:
        parts = [self._record.weights_sha256, self._record.card_sha256, slice_name, slice_key, metric]
        key = hashlib.sha256("\0".join(parts).encode()).hexdigest()[:32]
        return f"evaluations/{self._record.corpus}/{self._record.number}/{key}.json"
