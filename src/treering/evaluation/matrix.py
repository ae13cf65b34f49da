"""PURE. The score matrix and the numbers that are read off it.

Holds scores, never computes them. Does not know what an adapter or a snapshot is beyond its name.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from treering.errors import UsageError

__all__ = ["ScoreMatrix", "ScoreMatrixModel"]

FloatArray = npt.NDArray[np.float64]

SUMMARY = ("average", "bwt", "forgetting", "forward_transfer", "intransigence")
_WIDTH = 80
_DOMAIN = re.compile(r".*?\[domain=(.*)\]", re.DOTALL)  # what evaluation calls the slice of a domain


class ScoreMatrixModel(BaseModel):
    """A score matrix as JSON: `null` where a cell wasn't evaluated; scores are fractions of 1, losses are in nats."""

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
    forward_transfer: float | None = None
    intransigence: float | None = None
    better: Literal["higher", "lower"] = "higher"
    chance: list[float | None] = Field(default_factory=list, description="by slice, of a model that knows no record")
    reference: list[float | None] = Field(default_factory=list, description="by slice, of the fresh baseline")
    reference_name: str | None = Field(default=None, description="adapter that the fresh baseline is")
    notes: list[str] = Field(default_factory=list)


@dataclass(frozen=True, slots=True, eq=False)
class ScoreMatrix:
    """`values[i, j]` is the score on slice j after round i, shape (T, S), float64, fractions of 1, NaN: not evaluated.

    `learned_in[j]` is the round (0-based) that first trained on slice j, None for a slice that no round trained on.
    Left out, it is the diagonal: round j learns slice j. The numbers below are those of Lopez-Paz & Ranzato,
    "Gradient Episodic Memory for Continual Learning" (2017), with R[j, j] read as "right after slice j was learnt", so
    that a round may learn two snapshots or none. They are NaN where a cell they need wasn't evaluated: a mean over
    whatever happens to be there would flatter. With `better="lower"` (a loss) differences are turned round, so that BWT
    below 0 and forgetting above 0 mean forgetting whatever is measured.

    `chance[j]`: the score on slice j of a model that has learnt nothing; `reference[j]`: that of a fresh baseline, trained
    on everything at once; NaN, or left out altogether, where unknown.

    Raises UsageError when shapes don't fit, names repeat or a value is infinite.
    """

    rounds: tuple[str, ...]
    slices: tuple[str, ...]
    values: FloatArray
    learned_in: tuple[int | None, ...] = ()
    metric: str = "macro_f1"
    notes: tuple[str, ...] = field(default=())
    better: Literal["higher", "lower"] = "higher"
    chance: tuple[float, ...] = ()
    reference: tuple[float, ...] = ()
    reference_name: str | None = None

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
        for name in ("chance", "reference"):
            given = tuple(float(value) for value in getattr(self, name))
            if len(given) not in (0, shape[1]) or any(map(math.isinf, given)):
                raise UsageError(f"{name} must be a finite number or NaN for each of {shape[1]} slices",
                                 code="bad-matrix")  # fmt: skip
            object.__setattr__(self, name, given or (math.nan,) * shape[1])
        if self.better not in ("higher", "lower"):
            raise UsageError(f"better is {self.better!r}; it is higher or lower", code="bad-matrix")

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
        return _mean([self._gain(self.values[r, j], self.values[-1, j]) for j, r in self._earlier()])

    @property
    def forgetting(self) -> float:
        """Mean over slices learnt before the last round T of max over learned_in[j] ≤ i < T of R[i, j], − R[T, j].

        This is "max − last" (Chaudhry et al., "Riemannian Walk for Incremental Learning", 2018); some libraries print
        "first − last", which is −BWT. Above 0 means forgetting, never below −BWT. NaN as for `bwt`; rounds between
        that weren't evaluated are passed over, the round that learnt the slice and the last round must have been.
        """
        return _mean([self._drop(j, r) for j, r in self._earlier()])

    @property
    def forward_transfer(self) -> float:
        """Mean over slices learnt in round r ≥ 2 of R[r − 1, j] − b[j]: what was known of them before they were learnt.

        b[j] is `chance[j]`, where Lopez-Paz & Ranzato (2017) take a network with random weights. Above 0 means that
        earlier slices helped. NaN unless those cells were evaluated (`score_matrix(full=True)`).
        """
        later = [(j, r) for j, r in enumerate(self.learned_in) if r is not None and r > 0]
        return _mean([self._gain(self.chance[j], self.values[r - 1, j]) for j, r in later])

    @property
    def intransigence(self) -> float:
        """Mean over learnt slices of reference[j] − R[learned_in[j], j]: what learning one after another couldn't learn.

        Chaudhry et al., "Riemannian Walk for Incremental Learning" (2018), where the reference of slice j is trained on
        everything up to j; ours is one fresh baseline, trained on everything there is. Above 0: the baseline is better.
        NaN without a reference.
        """
        learned = [(j, r) for j, r in enumerate(self.learned_in) if r is not None]
        return _mean([self._gain(self.values[r, j], self.reference[j]) for j, r in learned])

    def bwt_by_round(self) -> list[float]:
        """`bwt` as it was after each round, NaN while no earlier slice was there: what a sustained fall is told by."""
        return [self.until(n).bwt for n in range(1, len(self.rounds) + 1)]

    def until(self, rounds: int) -> ScoreMatrix:
        """The matrix as it was after the first `rounds` rounds; slices learnt later are learnt by none."""
        learned = tuple(None if r is None or r >= rounds else r for r in self.learned_in)
        return replace(self, rounds=self.rounds[:rounds], values=self.values[:rounds], learned_in=learned)

    def _gain(self, before: float, after: float) -> float:
        """How much better the second score is than the first."""
        return float(after - before if self.better == "higher" else before - after)

    def _drop(self, j: int, r: int) -> float:
        """How far slice j, learnt in round r, has fallen from its best; NaN where that can't be told."""
        seen = self.values[r:-1, j]
        if math.isnan(seen[0]):
            return math.nan
        best = float(np.nanmax(seen) if self.better == "higher" else np.nanmin(seen))
        return -self._gain(best, float(self.values[-1, j]))

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
        """`average`, `bwt`, `forgetting`, `forward_transfer` and `intransigence`; None where NaN, as JSON has it."""
        return {name: _none(getattr(self, name)) for name in SUMMARY}

    def to_model(self) -> ScoreMatrixModel:
        """The matrix as a JSON model; NaN becomes null."""
        return ScoreMatrixModel(
            metric=self.metric,
            rounds=list(self.rounds),
            slices=list(self.slices),
            learned_in=list(self.learned_in),
            values=[[_none(float(v)) for v in row] for row in self.values],
            notes=list(self.notes),
            better=self.better,
            chance=[_none(v) for v in self.chance],
            reference=[_none(v) for v in self.reference],
            reference_name=self.reference_name,
            average=_none(self.average),
            bwt=_none(self.bwt),
            forgetting=_none(self.forgetting),
            forward_transfer=_none(self.forward_transfer),
            intransigence=_none(self.intransigence),
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
            better=model.better,
            chance=tuple(math.nan if v is None else v for v in model.chance),
            reference=tuple(math.nan if v is None else v for v in model.reference),
            reference_name=model.reference_name,
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
        """The matrix as lines of text, `·` where a cell wasn't evaluated; no trailing newline.

        In points of 100, a loss in nats. Below the rounds stands the fresh baseline, if there is one; the last line says
        what the numbers above it are.
        """
        head = ["", *self.slices]
        body = [
            [name, *(self.shown(v) for v in row)] for name, row in zip(self.rounds, self.values.tolist(), strict=True)
        ]
        if self.reference_name is not None:
            body.append([f"{self.reference_name} (fresh)", *map(self.shown, self.reference)])
        widths = [max(len(line[k]) for line in [head, *body]) for k in range(len(head))]
        lines = [
            "  ".join([line[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(line[1:], widths[1:], strict=True))])
            for line in [head, *body]
        ]
        numbers = [
            ("average", self.average, False),
            ("BWT", self.bwt, True),
            ("forgetting", self.forgetting, False),
            ("forward transfer", self.forward_transfer, True),
            ("intransigence", self.intransigence, True),
        ]
        told = [f"{name} {self.shown(v, signed=signed)}" for name, v, signed in numbers[:3]]
        told += [f"{name} {self.shown(v, signed=signed)}" for name, v, signed in numbers[3:] if not math.isnan(v)]
        unit = "points of 100" if self.better == "higher" else "the lower the better"
        lines += ["", *_filled([*told, f"({self.metric}, {unit})"], "   "), self.formulas()]
        return "\n".join(line.rstrip() for line in lines)

    def formulas(self) -> str:
        """What the numbers below the table are, in lines of 80: libraries differ in what they call forgetting."""
        change, drop = "R[T,j] − R[l,j]", "max over l≤i<T of R[i,j] − R[T,j]"
        if self.better == "lower":
            change, drop = "R[l,j] − R[T,j]", "R[T,j] − min over l≤i<T of R[i,j]"
        said = [f"BWT: mean of {change}", f"forgetting: mean of {drop}"]
        if not math.isnan(self.forward_transfer):
            said.append("forward transfer: mean of R[l−1,j] − a guess, each label as likely as any other")
        if not math.isnan(self.intransigence):
            said.append("intransigence: mean of fresh[j] − R[l,j]")
        said.append("R[i,j] is slice j after round i, l the round that learnt it, T the last")
        return "\n".join(_filled([*(f"{one};" for one in said[:-1]), said[-1]], " "))

    def shown(self, score: float | None, *, signed: bool = False) -> str:
        """One score as the table prints it: in points of 100, a loss in nats; `·` for None and NaN."""
        return shown(score, self.better, signed=signed)

    def _repr_html_(self) -> str:
        from treering.evaluation.heatmap import notebook_card

        return notebook_card(self)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, ScoreMatrix):
            return NotImplemented
        names = ("rounds", "slices", "learned_in", "metric", "notes", "better", "reference_name")
        numbers = ("values", "chance", "reference")
        return all(getattr(self, n) == getattr(other, n) for n in names) and all(
            np.array_equal(getattr(self, n), getattr(other, n), equal_nan=True) for n in numbers
        )

    def __hash__(self) -> int:
        return hash((self.rounds, self.slices, self.learned_in, self.metric))

    def __str__(self) -> str:
        return self.table()

    def _earlier(self) -> list[tuple[int, int]]:
        """(slice, the round that learnt it) for every slice learnt before the last round."""
        last = len(self.rounds) - 1
        return [(j, r) for j, r in enumerate(self.learned_in) if r is not None and r < last]


def _filled(pieces: Sequence[str], between: str) -> list[str]:
    """The pieces, as many on a line as fit into 80 columns."""
    lines = [pieces[0]]
    for piece in pieces[1:]:
        longer = f"{lines[-1]}{between}{piece}"
        if len(longer) <= _WIDTH:
            lines[-1] = longer
        else:
            lines.append(piece)
    return lines


def points(score: float | None, *, signed: bool = False) -> str:
    """A fraction of 1 in points of 100 with one decimal; `·` for None and NaN."""
    if score is None or math.isnan(score):
        return "·"
    value = round(100 * score, 1) + 0.0  # + 0.0: never print -0.0
    return f"{value:+.1f}" if signed else f"{value:.1f}"


def shown(score: float | None, better: str, *, signed: bool = False) -> str:
    """A score as tables print it: in points of 100 where higher is better, else as it is; `·` for None and NaN."""
    if better == "higher" or score is None or math.isnan(score):
        return points(score, signed=signed)
    return f"{score + 0.0:+.3f}" if signed else f"{score:.3f}"


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values)) if values else math.nan


def _none(value: float) -> float | None:
    return None if math.isnan(value) else value


def _not_a_matrix(exc: ValidationError) -> UsageError:
    first = exc.errors()[0]
    where = ".".join(str(part) for part in first["loc"]) or "document"
    return UsageError(f"not a score matrix: {where}: {first['msg']}", code="bad-matrix")
