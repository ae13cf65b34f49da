"""PURE. What changed between two profiles: balance, lengths, and a drift score per column with the line it is held to.

What is compared, by what, and the line from which it counts as drift:

    values of a column    Jensen–Shannon distance (base 2, in [0, 1]; Lin, "Divergence Measures Based on the Shannon
                          Entropy", 1991)                                                                       0.1
    numbers and lengths   population stability index over ten bins of equal shares before, with one for nulls   0.1
    words of the content  how well a word-counting classifier tells the two apart: area under the ROC curve of naive Bayes
                          on records it wasn't fitted to (a classifier two-sample test: Lopez-Paz & Oquab, ICLR 2017;
                          Rabanser et al., "Failing Loudly", NeurIPS 2019); 0.5 can't tell, 1 always            0.55

The lines are customary: PSI 0.1 "some change", 0.25 "major change" (Siddiqi, "Credit Risk Scorecards", 2006); distance 0.1
and ROC AUC 0.55 are the defaults of Evidently and, the former, of NannyML. But two samples of one distribution differ as
well, and small ones by more than that. So no line lies below what chance alone exceeds once in 1,000 comparisons: for PSI
(1/n + 1/m) χ²₀.₉₉₉ (Yurdakul, "Statistical Properties of the Population Stability Index", 2018), for the distance the same
through JS ≈ χ² (1/n + 1/m) / (8 ln 2), corrected for rare values, for the area the normal approximation of Mann & Whitney (1947). `chance` marks a
line that was raised so. That takes records to be independent of one another: long conversations cut into many records
aren't, and drift a little sooner.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import BaseModel, ConfigDict, Field

from treering.evaluation.content import words
from treering.evaluation.profile import Profile

__all__ = [
    "READ_TEXTS",
    "Balance",
    "ColumnDrift",
    "DriftLines",
    "Lengths",
    "Quantiles",
    "ValueShare",
    "balance",
    "classifier",
    "column_drift",
    "js_distance",
    "lengths",
    "psi",
]

FloatArray = npt.NDArray[np.float64]
Int64Array = npt.NDArray[np.int64]

#: A side with fewer records isn't scored: nothing could be said of it.
FEWEST = 30
SHOWN_VALUES = 50
#: Texts a side whose words are compared.
READ_TEXTS = 5_000

_Z = 3.0902  # of the normal distribution: exceeded once in 1,000
_BINS = 10
_MANY_DRAWS = 40
_READ_CHARS = 1_000  # of a text, for its words
_TELLING = 8  # words named


class _Model(BaseModel):
    model_config = ConfigDict(strict=True, frozen=True, extra="forbid")


Line = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class DriftLines(_Model):
    """From which score on a column has drifted; where they come from stands in `treering.evaluation.drift`."""

    js_distance: Line = 0.1
    psi: Line = 0.1
    auc: Annotated[float, Field(ge=0.5, lt=1, allow_inf_nan=False)] = 0.55


class ColumnDrift(_Model):
    """How far one column moved. `drifted`: the score reaches the line."""

    column: str
    what: Literal["values", "numbers", "length", "words", "nulls"]
    measure: Literal["js_distance", "psi", "auc"]
    score: float
    line: float
    chance: bool = Field(description="The line was raised to what chance alone would exceed once in 1,000.")
    drifted: bool
    telling: list[str] = Field(description="What tells them apart: values whose share moved most, or words.")


class ValueShare(_Model):
    """One value of a column before and after: rows, and shares as fractions of 1."""

    value: str | None
    before: int
    after: int
    before_share: float
    after_share: float


class Balance(_Model):
    """How the values of a column are spread. `values`: at most 50, those whose share moved most first."""

    column: str
    values: list[ValueShare]
    values_total: int
    new: list[str]  # in after and not in before, most frequent first
    gone: list[str]


class Quantiles(_Model):
    """Of lengths."""

    mean: float
    p5: float
    p50: float
    p95: float
    p99: float


class Lengths(_Model):
    """How long the content is; None for a side that says nothing."""

    unit: Literal["characters", "words"]
    before: Quantiles | None
    after: Quantiles | None


# --- measures --------------------------------------------------------------------------------------------------------


def js_distance(before: Sequence[int], after: Sequence[int]) -> float:
    """Jensen–Shannon distance of two lists of counts over the same values, base 2: in [0, 1]."""
    p, q = np.asarray(before, float), np.asarray(after, float)
    p, q = p / p.sum(), q / q.sum()
    middle = (p + q) / 2
    with np.errstate(divide="ignore", invalid="ignore"):
        divergence = np.nansum(p * np.log2(p / middle)) + np.nansum(q * np.log2(q / middle))
    return float(math.sqrt(min(max(divergence / 2, 0.0), 1.0)))


def psi(before: FloatArray, after: FloatArray) -> tuple[float, int]:
    """Population stability index of two samples (NaN is null), and the number of bins: ten at most, and one for nulls."""
    known = before[~np.isnan(before)]
    edges = np.unique(np.quantile(known, np.linspace(0, 1, _BINS + 1)[1:-1])) if len(known) else np.empty(0)

    def counts(values: FloatArray) -> FloatArray:
        held = values[~np.isnan(values)]
        bins = np.bincount(np.searchsorted(edges, held, "left"), minlength=len(edges) + 1)
        return np.append(bins, len(values) - len(held)).astype(float)

    b, a = counts(before), counts(after)
    used = (b + a) > 0
    b, a = b[used] + 0.5, a[used] + 0.5  # an empty bin would make it infinite
    p, q = b / b.sum(), a / a.sum()
    return float(np.sum((q - p) * np.log(q / p))), int(used.sum())


def _chi2(freedom: float) -> float:
    """χ² that is exceeded once in 1,000 (Wilson & Hilferty, 1931: within 1 %)."""
    if freedom <= 0:
        return 0.0
    spread = 2 / (9 * freedom)
    return float(freedom * (1 - spread + _Z * math.sqrt(spread)) ** 3)


def _js_by_chance(counts: Int64Array, n: int, m: int) -> float:
    """What the Jensen–Shannon divergence (nats) of n and m draws from these pooled counts exceeds once in 1,000.

    The sum of what each value adds: about χ²₁ (1/n + 1/m) / 8, but for values of few draws up to 1.4 times that, so for those
    mean and variance are taken over their binomial splits; a scaled χ² has the sum's (Satterthwaite, 1946).
    """
    counts = counts[counts > 0]
    if len(counts) < 2:
        return 0.0
    scale = (1 / n + 1 / m) / 8
    share = n / (n + m)
    mean, variance = 0.0, 0.0
    for count, times in zip(*np.unique(counts, return_counts=True), strict=True):
        if count >= _MANY_DRAWS:
            mean, variance = mean + times * scale, variance + times * 2 * scale**2
            continue
        x = np.arange(count + 1)
        ways = np.array([math.comb(int(count), int(k)) for k in x], float)
        chance = ways * share**x * (1 - share) ** (count - x)
        p, q = x / n, (count - x) / m
        middle = (p + q) / 2
        with np.errstate(divide="ignore", invalid="ignore"):
            added = (np.nan_to_num(p * np.log(p / middle)) + np.nan_to_num(q * np.log(q / middle))) / 2
        first = float(chance @ added)
        mean, variance = mean + times * first, variance + times * (float(chance @ added**2) - first**2)
    kept = 1 - 1 / len(counts)
    mean, variance = mean * kept, variance * kept
    return float(_chi2(2 * mean**2 / variance) * variance / (2 * mean))


def _words_of(texts: pa.Array) -> tuple[Int64Array, Int64Array, list[str]]:
    """(document, word) pairs, each once, and the words: int64 (k,), int64 (k,), (v,)."""
    found = words(texts)
    sizes = np.asarray(pc.fill_null(pc.list_value_length(found), 0)).astype(np.int64)
    coded = pc.list_flatten(found).dictionary_encode()
    documents = np.repeat(np.arange(len(texts)), sizes)
    pairs = np.unique(documents * np.int64(len(coded.dictionary) + 1) + np.asarray(coded.indices).astype(np.int64))
    return pairs // (len(coded.dictionary) + 1), pairs % (len(coded.dictionary) + 1), coded.dictionary.to_pylist()


def classifier(texts: pa.Array, is_after: npt.NDArray[np.bool_], half: npt.NDArray[np.bool_]) -> Classified:
    """Fit naive Bayes on one half of the texts, rank the other, and the other way round.

    texts: (n,); is_after, half: bool (n,), drawn independently of each other.
    """
    document, word, vocabulary = _words_of(texts)
    scores = np.zeros(len(texts))
    areas, noise = [], []
    weights = np.zeros(len(vocabulary))
    for fitted in (half, ~half):
        sides = [
            np.bincount(word[(fitted & side)[document]], minlength=len(vocabulary)) for side in (~is_after, is_after)
        ]
        sizes = [int((fitted & side).sum()) for side in (~is_after, is_after)]
        telling = np.log((sides[1] + 0.5) / (sizes[1] + 1)) - np.log((sides[0] + 0.5) / (sizes[0] + 1))
        telling[(sides[0] + sides[1]) == 0] = 0
        scores += np.where(fitted, 0, np.bincount(document, weights=telling[word], minlength=len(texts)))
        held = ~fitted
        n, m = int((held & ~is_after).sum()), int((held & is_after).sum())
        areas.append(_area(scores[held & ~is_after], scores[held & is_after]))
        noise.append(math.sqrt((n + m + 1) / (12 * n * m)))
        weights += np.maximum(sides[1] / max(sizes[1], 1) - sides[0] / max(sizes[0], 1), 0) * telling
    # Both halves see the same difference, so their mean is no surer than either.
    return Classified(float(np.mean(areas)), _Z * max(noise), scores, weights, vocabulary)


class Classified:
    """How well two sets of texts are told apart: `area` under the ROC curve, `noise` that chance adds to 0.5."""

    def __init__(
        self, area: float, noise: float, scores: FloatArray, weights: FloatArray, vocabulary: list[str]
    ) -> None:
        self.area = area
        self.noise = noise
        self.scores = scores  # of each text: the higher, the more it reads like those after
        self._weights = weights  # of each word: by how much its share of texts grew, times the logarithm of that
        self._vocabulary = vocabulary

    def telling(self) -> list[str]:
        """The words of those after that tell most."""
        best = np.argsort(-self._weights, kind="stable")[: 4 * _TELLING].tolist()
        order = sorted(best, key=lambda at: (-self._weights[at], self._vocabulary[at]))[:_TELLING]
        return [self._vocabulary[at] for at in order if self._weights[at] > 0]


def _area(before: FloatArray, after: FloatArray) -> float:
    """Probability that one of after scores higher than one of before; ties count half."""
    both = np.concatenate([before, after])
    _, inverse, counts = np.unique(both, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[inverse]
    n, m = len(before), len(after)
    return float((ranks[n:].sum() - m * (m + 1) / 2) / (n * m))


# --- comparisons -----------------------------------------------------------------------------------------------------


def balance(before: Profile, after: Profile, name: str) -> Balance | None:
    """How the values of a column are spread on both sides; None when there are too many to count, or none at all."""
    b, a = before.values(name), after.values(name)
    if b is None or a is None or not {*b, *a} - {None}:
        return None
    shares = [
        ValueShare(
            value=value,
            before=b[value],
            after=a[value],
            before_share=b[value] / max(before.rows, 1),
            after_share=a[value] / max(after.rows, 1),
        )
        for value in {**b, **a}
    ]
    shares.sort(key=lambda s: (-abs(s.after_share - s.before_share), -s.after - s.before, s.value or ""))
    return Balance(
        column=name,
        values=shares[:SHOWN_VALUES],
        values_total=len(shares),
        new=_only(a, b),
        gone=_only(b, a),
    )


def _only(here: Counter[Any], there: Counter[Any]) -> list[str]:
    found = [value for value in here if value is not None and not there.get(value)]
    return sorted(found, key=lambda value: (-here[value], value))


def lengths(before: Profile, after: Profile) -> list[Lengths]:
    """How long the contents of both sides are; empty for records without content."""
    if not (before.content.columns or after.content.columns):
        return []
    return [
        Lengths(unit="characters", before=_quantiles(before.number("chars")), after=_quantiles(after.number("chars"))),
        Lengths(unit="words", before=_quantiles(before.number("words")), after=_quantiles(after.number("words"))),
    ]


def _quantiles(values: FloatArray) -> Quantiles | None:
    values = values[~np.isnan(values)]
    if not len(values):
        return None
    p5, p50, p95, p99 = (float(v) for v in np.quantile(values, [0.05, 0.5, 0.95, 0.99]))
    return Quantiles(mean=round(float(values.mean()), 2), p5=p5, p50=p50, p95=p95, p99=p99)


def column_drift(
    before: Profile, after: Profile, lines: DriftLines | None = None
) -> tuple[list[ColumnDrift], Classified | None]:
    """Every column that both profiles hold, those that moved most (against their line) first; and the text classifier.

    Nothing is scored when a side has fewer than 30 records. Ids, sessions, subjects, times and
    `meta` are never scored: they differ by nature.
    """
    lines = lines or DriftLines()
    if min(before.rows, after.rows) < FEWEST:
        return [], None
    found: list[ColumnDrift] = []
    for name in before.categories:
        if name in after.categories:
            found += _values_drift(before, after, name, lines)
    for name in before.numbers:
        if name in after.numbers:
            found += _psi_drift(name, "numbers", before.number(name), after.number(name), lines)
    for name in before.lists:
        if name in after.lists:
            found += _psi_drift(name, "length", before.number(name), after.number(name), lines)
    for name in before.others:
        if name in after.others:
            found += _js_drift(name, "nulls", _nulls(before, name), _nulls(after, name), lines)
    told = None
    if before.content.columns and after.content.columns:
        column = "+".join(after.content.columns)
        found += _psi_drift(column, "length", before.number("chars"), after.number("chars"), lines)
        told = _text_drift(before, after)
        if told is not None:
            found.append(_drift(column, "words", "auc", told.area, lines.auc, 0.5 + told.noise, telling=told.telling()))
    found.sort(key=lambda d: (not d.drifted, -_excess(d), d.column, d.what))
    return found, told


def _nulls(profile: Profile, name: str) -> dict[str, int]:
    return {"null": profile.nulls[name], "value": profile.rows - profile.nulls[name]}


def _excess(drift: ColumnDrift) -> float:
    """How many times its line a score is; areas begin at 0.5."""
    zero = 0.5 if drift.measure == "auc" else 0.0
    return (drift.score - zero) / (drift.line - zero)


def _drift(
    column: str, what: Any, measure: Any, score: float, line: float, chance: float, *, telling: list[str]
) -> ColumnDrift:
    score, line, raised = round(score, 4), round(max(line, chance), 4), chance > line
    return ColumnDrift(
        column=column,
        what=what,
        measure=measure,
        score=score,
        line=line,
        chance=raised,
        drifted=score >= line,
        telling=telling if score >= line else [],
    )


def _values_drift(before: Profile, after: Profile, name: str, lines: DriftLines) -> list[ColumnDrift]:
    b, a = before.values(name), after.values(name)
    if b is None or a is None or not {*b, *a} - {None}:
        return []
    if not (before.has_kinds(name) and after.has_kinds(name)):
        return []
    return _js_drift(name, "values", b, a, lines)


def _js_drift(
    name: str, what: str, before: Mapping[Any, int], after: Mapping[Any, int], lines: DriftLines
) -> list[ColumnDrift]:
    values = sorted({*before, *after}, key=lambda v: (v is None, str(v)))
    b, a = (np.array([side.get(v, 0) for v in values], np.int64) for side in (before, after))
    n, m = int(b.sum()), int(a.sum())
    moved = 100 * (a / m - b / n)
    order = np.argsort(-np.abs(moved), kind="stable")[:_TELLING]
    telling = [
        f"{'(none)' if values[at] is None else values[at]} {moved[at]:+.0f}" for at in order if abs(moved[at]) >= 0.5
    ]
    chance = math.sqrt(_js_by_chance(b + a, n, m) / math.log(2))
    return [
        _drift(
            name, what, "js_distance", js_distance(b.tolist(), a.tolist()), lines.js_distance, chance, telling=telling
        )
    ]


def _psi_drift(name: str, what: str, before: FloatArray, after: FloatArray, lines: DriftLines) -> list[ColumnDrift]:
    n, m = len(before), len(after)
    score, bins = psi(before, after)
    chance = (1 / n + 1 / m) * _chi2(bins - 1)
    medians = [float(np.nanmedian(v)) if not np.isnan(v).all() else math.nan for v in (before, after)]
    telling = [f"median {medians[0]:g} → {medians[1]:g}"]
    return [_drift(name, what, "psi", score, lines.psi, chance, telling=telling)]


def _text_drift(before: Profile, after: Profile) -> Classified | None:
    samples, hashes = zip(*(_some(profile) for profile in (before, after)), strict=True)
    texts = pc.utf8_slice_codeunits(pa.concat_arrays([sample.column("text") for sample in samples]), 0, _READ_CHARS)
    is_after = np.repeat([False, True], [len(sample) for sample in samples])
    # The lowest bit decides: by the high ones records came into the sample.
    half = (np.concatenate(hashes) & np.uint64(1)) == 1
    sizes = [int((side & part).sum()) for side in (is_after, ~is_after) for part in (half, ~half)]
    if min(sizes) < 5 or texts.null_count == len(texts):
        return None
    return classifier(texts, is_after, half)


def _some(profile: Profile) -> tuple[pa.RecordBatch, npt.NDArray[np.uint64]]:
    sample, hashes = profile.sample
    return sample.slice(0, READ_TEXTS), hashes[:READ_TEXTS]
