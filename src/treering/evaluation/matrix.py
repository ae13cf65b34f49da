"""PURE. The score matrix and the three numbers that are read off it.

Holds scores, never computes them. Does not know what an adapter or a snapshot is beyond its name.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from treering.errors import UsageError

__all__ = ["ScoreMatrix", "ScoreMatrixModel"]

FloatArray = npt.NDArray[np.float64]

_DOMAIN = re.compile(r".*?\[domain=(.*)\]", re.DOTALL)  # what evaluation calls the slice of a domain


class ScoreMatrixModel(BaseModel):
    """A score matrix as JSON: `null` where a cell wasn't evaluated; scores are fractions of 1."""

    model_config = ConfigDict(strict=True, frozen=True, extra="forbid")

    format: Literal["treering.score-matrix/1"] = "treering.score-matrix/1"
    metric: str
    rounds: list[str]
    slices: list[str]
    learned_in: list[int | None]
    values: list[list[float | None]]
    average: float | None = None
    bwt: float | None = None
    forgetting: float | None = None
    notes: list[str] = Field(default_factory=list)


@dataclass(frozen=True, slots=True, eq=False)
class ScoreMatrix:
    """`values[i, j]` is the score on slice j after round i, shape (T, S), float64, fractions of 1, NaN: not evaluated.

    `learned_in[j]` is the round (0-based) that first trained on slice j, None for a slice that no round trained on.
    Left out, it is the diagonal: round j learns slice j. The numbers below are those of Lopez-Paz & Ranzato,
    "Gradient Episodic Memory for Continual Learning" (2017), with R[j, j] read as "right after slice j was learnt", so
    that a round may learn two snapshots or none. They are NaN where a cell they need wasn't evaluated: a mean over
    whatever happens to be there would flatter.

    Raises UsageError when shapes don't fit, names repeat or a value is infinite.
    """

    rounds: tuple[str, ...]
    slices: tuple[str, ...]
    values: FloatArray
    learned_in: tuple[int | None, ...] = ()
    metric: str = "macro_f1"
    notes: tuple[str, ...] = field(default=())

    def __post_init__(self) -> None:
        values = np.array(self.values, dtype=np.float64)  # a copy: freezing it must not freeze the caller's array
        rounds, slices = tuple(self.rounds), tuple(self.slices)
        shape = (len(rounds), len(slices))
        if 0 in shape:
            raise UsageError("a score matrix needs at least one round and one slice", code="empty-matrix")
        if values.shape != shape:
            raise UsageError(
                f"values of shape {values.shape} for {shape[0]} rounds and {shape[1]} slices", code="bad-matrix"
            )
        for what, names in (("round", rounds), ("slice", slices)):
            if len(set(names)) != len(names):
                raise UsageError(f"a {what} is named twice: {', '.join(names)}", code="bad-matrix")
        if np.isinf(values).any():
            raise UsageError("a score is infinite", code="bad-matrix")
        learned = tuple(self.learned_in) or tuple(j if j < shape[0] else None for j in range(shape[1]))
        if len(learned) != shape[1] or any(r is not None and not 0 <= r < shape[0] for r in learned):
            raise UsageError(
                f"learned_in must name a round below {shape[0]} or None for each of {shape[1]} slices",
                code="bad-matrix",
            )
        values.setflags(write=False)
        for name, value in (("values", values), ("rounds", rounds), ("slices", slices), ("learned_in", learned)):
            object.__setattr__(self, name, value)
        object.__setattr__(self, "notes", tuple(self.notes))

    @property
    def average(self) -> float:
        """Mean of R[T, j] over the slices learnt by the last round T; NaN when no round has learnt any."""
        learned = [j for j, r in enumerate(self.learned_in) if r is not None]
        return _mean([self.values[-1, j] for j in learned])

    @property
    def bwt(self) -> float:
        """Backward transfer: mean over slices learnt before the last round T of R[T, j] − R[learned_in[j], j].

        With one slice a round this is the mean over j < T of R[T, j] − R[j, j]. Below 0 means forgetting. NaN when no
        slice was learnt before the last round (T = 1, say).
        """
        return _mean([self.values[-1, j] - self.values[r, j] for j, r in self._earlier()])

    @property
    def forgetting(self) -> float:
        """Mean over slices learnt before the last round T of max over learned_in[j] ≤ i < T of R[i, j], − R[T, j].

        This is "max − last" (Chaudhry et al., "Riemannian Walk for Incremental Learning", 2018); some libraries print
        "first − last", which is −BWT. Above 0 means forgetting, never below −BWT. NaN as for `bwt`; rounds between
        that weren't evaluated are passed over, the round that learnt the slice and the last round must have been.
        """
        return _mean([self._drop(j, r) for j, r in self._earlier()])

    def _drop(self, j: int, r: int) -> float:
        """How far slice j, learnt in round r, has fallen from its best; NaN where that can't be told."""
        seen = self.values[r:-1, j]
        best = math.nan if math.isnan(seen[0]) else float(np.nanmax(seen))
        return best - float(self.values[-1, j])

    def forgetting_by_slice(self) -> dict[str, float]:
        """What was lost of each slice learnt before the last round: its part of `forgetting`, but never below 0.

        Slices where that can't be told are left out.
        """
        drops = {self.slices[j]: self._drop(j, r) for j, r in self._earlier()}
        return {name: max(0.0, drop) for name, drop in drops.items() if not math.isnan(drop)}

    def domain_forgetting(self) -> dict[str, float]:
        """`forgetting_by_slice` of a matrix by domain, by the domains' names: what a selection by importance takes.

        Raises UsageError when no slice is a domain.
        """
        found = {name: _DOMAIN.fullmatch(name) for name in self.slices}
        if not any(found.values()):
            raise UsageError(
                "this score matrix has no slice of a domain", code="not-by-domain", hint='score_matrix(…, by="domain")'
            )
        return {m[1]: drop for name, drop in self.forgetting_by_slice().items() if (m := found[name]) is not None}

    def row(self, round_name: str) -> dict[str, float]:
        """Scores by slice after one round, without the cells that weren't evaluated. Raises UsageError if unknown."""
        if round_name not in self.rounds:
            raise UsageError(f"no round {round_name!r} in {', '.join(self.rounds)}", code="unknown-round")
        scores = self.values[self.rounds.index(round_name)]
        return {name: float(score) for name, score in zip(self.slices, scores, strict=True) if not math.isnan(score)}

    def summary(self) -> dict[str, float | None]:
        """`average`, `bwt` and `forgetting`; None where NaN, as JSON has it."""
        return {"average": _none(self.average), "bwt": _none(self.bwt), "forgetting": _none(self.forgetting)}

    def to_model(self) -> ScoreMatrixModel:
        """The matrix as a JSON model; NaN becomes null."""
        return ScoreMatrixModel(
            metric=self.metric,
            rounds=list(self.rounds),
            slices=list(self.slices),
            learned_in=list(self.learned_in),
            values=[[_none(float(v)) for v in row] for row in self.values],
            notes=list(self.notes),
            average=_none(self.average),
            bwt=_none(self.bwt),
            forgetting=_none(self.forgetting),
        )

    @classmethod
    def from_model(cls, model: ScoreMatrixModel | Mapping[str, Any]) -> ScoreMatrix:
        """The matrix of a JSON model or of its dict. Raises UsageError when it isn't one."""
        if not isinstance(model, ScoreMatrixModel):
            try:
                model = ScoreMatrixModel.model_validate(dict(model))
            except ValidationError as exc:
                raise _not_a_matrix(exc) from exc
        rows: Sequence[Sequence[float | None]] = model.values
        if len({len(row) for row in rows}) > 1:
            raise UsageError("not a score matrix: rows of different lengths", code="bad-matrix")
        return cls(
            rounds=tuple(model.rounds),
            slices=tuple(model.slices),
            values=np.array([[math.nan if v is None else v for v in row] for row in rows], dtype=np.float64),
            learned_in=tuple(model.learned_in),
            metric=model.metric,
            notes=tuple(model.notes),
        )

    def to_json(self) -> str:
        """One JSON document; `from_json` gives an equal matrix, every score to the last bit."""
        return self.to_model().model_dump_json()

    @classmethod
    def from_json(cls, text: str | bytes) -> ScoreMatrix:
        """Raises UsageError when `text` isn't a score matrix."""
        try:
            return cls.from_model(ScoreMatrixModel.model_validate_json(text))
        except ValidationError as exc:
            raise _not_a_matrix(exc) from exc

    def table(self) -> str:
        """The matrix as lines of text in points of 100, `·` where a cell wasn't evaluated; no trailing newline."""
        head = ["", *self.slices]
        body = [[name, *(points(v) for v in row)] for name, row in zip(self.rounds, self.values.tolist(), strict=True)]
        widths = [max(len(line[k]) for line in [head, *body]) for k in range(len(head))]
        lines = [
            "  ".join([line[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(line[1:], widths[1:], strict=True))])
            for line in [head, *body]
        ]
        lines.append("")
        lines.append(
            f"average {points(self.average)}   BWT {points(self.bwt, signed=True)}   "
            f"forgetting {points(self.forgetting)}   ({self.metric}, points of 100)"
        )
        return "\n".join(line.rstrip() for line in lines)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, ScoreMatrix):
            return NotImplemented
        names = ("rounds", "slices", "learned_in", "metric", "notes")
        return all(getattr(self, n) == getattr(other, n) for n in names) and np.array_equal(
            self.values, other.values, equal_nan=True
        )

    def __hash__(self) -> int:
        return hash((self.rounds, self.slices, self.learned_in, self.metric))

    def __str__(self) -> str:
        return self.table()

    def _earlier(self) -> list[tuple[int, int]]:
        """(slice, the round that learnt it) for every slice learnt before the last round."""
        last = len(self.rounds) - 1
        return [(j, r) for j, r in enumerate(self.learned_in) if r is not None and r < last]


def points(score: float | None, *, signed: bool = False) -> str:
    """A fraction of 1 in points of 100 with one decimal; `·` for None and NaN."""
    if score is None or math.isnan(score):
        return "·"
    value = round(100 * score, 1) + 0.0  # + 0.0: never print -0.0
    return f"{value:+.1f}" if signed else f"{value:.1f}"


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values)) if values else math.nan


def _none(value: float) -> float | None:
    return None if math.isnan(value) else value


def _not_a_matrix(exc: ValidationError) -> UsageError:
    first = exc.errors()[0]
    where = ".".join(str(part) for part in first["loc"]) or "document"
    return UsageError(f"not a score matrix: {where}: {first['msg']}", code="bad-matrix")
