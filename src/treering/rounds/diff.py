"""Compare two refs: what came, what went, and whether it is still the same distribution.

Two passes: one over what is after, one over what is before. What is computed stands in evaluation (profile, drift, near).
"""

from __future__ import annotations

import math
from collections import Counter
from datetime import datetime
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from pydantic import BaseModel, ConfigDict, Field

from treering.errors import NotFoundError, UsageError
from treering.evaluation.content import said
from treering.evaluation.drift import (
    READ_TEXTS,
    Balance,
    Classified,
    ColumnDrift,
    DriftLines,
    Lengths,
    balance,
    column_drift,
    lengths,
)
from treering.evaluation.near import COMPARED_CHARS, NEARLY, NearIndex, Sketches
from treering.evaluation.profile import Profile
from treering.rounds.records import counted, excluded_rows, load_fresh
from treering.schema.evolution import Alignment
from treering.store.memory import giving_back
from treering.store.ref import Ref
from treering.store.source import Source

if TYPE_CHECKING:
    from treering.store import BaseStore

__all__ = ["Diff", "diff"]

_SHOWN_RECORDS = 5
_SHOWN_CHARS = 300


class _Model(BaseModel):
    model_config = ConfigDict(strict=True, frozen=True, extra="forbid")


class DiffSide(_Model):
    """One of the two refs. Excluded records are counted here and nowhere else."""

    ref: str
    rows: int
    training_rows: int
    heldout_rows: int
    excluded_rows: int
    captured_under: list[int] = Field(description="Schema versions that its records were captured under.")
    first_ts: datetime | None
    last_ts: datetime | None
    sampled_rows: int = Field(description="Numbers, lengths and words come from so many of its records.")


class SchemaChange(_Model):
    """How one column is other than before."""

    column: str
    change: str


class Overlap(_Model):
    """How many records after nearly equal one before; shares are fractions of 1."""

    looked_for: int = Field(description="Records after that were looked for among all records before.")
    nearly: int
    word_for_word: int = Field(description="Of these: the same text, but for case and spaces.")
    share: float
    error: float = Field(description="Of the share, as it comes from a sample: 95 % of the time it is within.")
    similarity: float = Field(description="From which two records nearly equal each other.")


class NewRecord(_Model):
    """A record after that is like nothing before."""

    id: str
    domain: str | None
    label: str | None
    text: str | None = Field(description="Its first 300 characters.")
    why: str


class Diff(_Model):
    """What two refs differ in. `drift`: a score per column, those over their line first."""

    before: DiffSide
    after: DiffSide
    schema_changes: list[SchemaChange]
    balance: list[Balance]
    lengths: list[Lengths]
    overlap: Overlap | None = Field(description="None where records hold no text.")
    drift: list[ColumnDrift]
    drifted: bool
    unscored: str | None = Field(description="Why no column has a score.")
    records: list[NewRecord] | None = Field(description="Given only when asked for.")


@giving_back()
def diff(
    store: BaseStore,
    before: str | Source,
    after: str | Source | None = None,
    *,
    records: bool | int = False,
    text: str | None = None,
    lines: DriftLines | None = None,
) -> Diff:
    """What `after` holds that `before` doesn't, and how far its distribution moved.

    Any two refs, or sources. With one ref alone, live (or a corpus's name) is compared with the newest snapshot, and a
    snapshot with the one before it: the early alarm. `records`: also give records like nothing before, 5 or so many.
    `text`: the column that holds what records say, when it isn't the messages or the text. `lines`: from which scores on a
    column has drifted.

    Counts are exact; numbers and lengths come from up to 20,000 records a side, drawn by a hash of their ids, words from 5,000; the
    overlap looks for those of `after` among all of `before`. The same refs give the same diff. Memory is bounded: about
    600 MB whatever the refs hold. Raises UsageError, NotFoundError.
    """
    if after is None:
        before, after = _pair(store, before)
    one, other = (load_fresh(store, ref) if isinstance(ref, str) else ref for ref in (before, after))
    changes, added = _schema_changes(one, other)
    then, now = (pa.schema([field for field in source.schema if field.name not in added]) for source in (one, other))
    later = Profile(now, text=text)
    for _, batch in counted(other, later.columns):
        later.update(batch.select(later.columns))
    sample, _ = later.sample
    has_text = sample.column("text").null_count < len(sample)
    near = NearIndex(sample.column("id"), sample.column("text")) if has_text else None
    earlier = Profile(then, text=text if text in then.names else None)
    for _, batch in counted(one, earlier.columns):
        earlier.update(batch.select(earlier.columns))
        if near is not None and earlier.content.columns:
            near.pass_by(Sketches(batch.column("id"), said(batch, earlier.content, most=COMPARED_CHARS)))
    drift, told = column_drift(earlier, later, lines)
    unscored = None
    if not drift:
        fewer = min((earlier.rows, one.ref), (later.rows, other.ref))
        unscored = f"{fewer[1]} holds {fewer[0]:,} records; fewer than 30 can't be told from chance"
    balances = [balance(earlier, later, name) for name in _balanced(earlier, later)]
    wanted = _SHOWN_RECORDS if records is True else int(records)
    return Diff(
        before=_side(one, earlier),
        after=_side(other, later),
        schema_changes=changes,
        balance=[b for b in balances if b is not None],
        lengths=lengths(earlier, later),
        overlap=_overlap(near, later) if near is not None and earlier.content.columns else None,
        drift=drift,
        drifted=any(d.drifted for d in drift),
        unscored=unscored,
        records=_new_records(wanted, earlier, later, near, told, one.ref) if wanted else None,
    )


def _pair(store: BaseStore, given: str | Source) -> tuple[str, str]:
    """What one ref alone is compared with."""
    if not isinstance(given, str):
        raise UsageError("a source is compared with another one", code="bad-ref", hint="name both")
    ref = Ref.parse(given if "@" in given or "/" in given else f"{given}@live")
    at = f"{ref.store}#{ref.corpus}" if ref.store else ref.corpus
    home = store.neighbour(ref.store) if ref.store else store
    snapshots = home.corpus(ref.corpus).snapshots()
    if ref.kind == "live":
        if not snapshots:
            raise NotFoundError(
                f"{at} has no snapshot to compare live with", code="no-snapshot",
                hint=f"seal one (treering snapshot live --to {ref.corpus}), or name two refs",
            )  # fmt: skip
        return f"{at}@{snapshots[-1].name}", str(ref)
    if ref.kind == "snapshot":
        earlier = [snapshot for snapshot in snapshots if snapshot.number < ref.first]
        if not earlier:
            raise NotFoundError(f"there is no snapshot before {ref}", code="no-snapshot", hint="name two refs")
        return f"{at}@{earlier[-1].name}", str(ref)
    raise UsageError(f"{ref} alone can't be compared", code="bad-ref", hint="name the ref to compare it with first")


def _side(source: Source, profile: Profile) -> DiffSide:
    return DiffSide(
        ref=source.ref,
        rows=profile.rows,
        training_rows=profile.splits["train"],
        heldout_rows=profile.splits["heldout"],
        excluded_rows=excluded_rows(source),
        captured_under=_captured_under(source),
        first_ts=profile.first_ts,
        last_ts=profile.last_ts,
        sampled_rows=profile.sampled,
    )


def _captured_under(source: Source) -> list[int]:
    return sorted({version for segment in source.segments for version in segment.alignments()})


def _schema_changes(one: Source, other: Source) -> tuple[list[SchemaChange], list[str]]:
    """What changed, and the columns that weren't there before: those can't be compared."""
    if one.segments and other.segments and one.corpus == other.corpus:
        versions = [max(_captured_under(source), default=1) for source in (one, other)]
        if versions[0] == versions[1]:
            return [], []
        old, new = min(versions), max(versions)
        history = other.segments[0]._corpus.versions
        rules = [rule for rule in Alignment.between(history, old, new).describe() if str(rule) != "kept"]
        said = [SchemaChange(column=rule.column, change=str(rule) if rule.was else f"added, {rule}") for rule in rules]
        if versions[0] > versions[1]:
            said = [SchemaChange(column=c.column, change=f"not yet: {c.change}") for c in said]
        return said, [rule.column for rule in rules if rule.was is None]
    here, there = ({field.name: field.type for field in source.schema} for source in (one, other))
    changes = [SchemaChange(column=name, change="not there") for name in here if name not in there]
    changes += [SchemaChange(column=name, change="added") for name in there if name not in here]
    changes += [
        SchemaChange(column=name, change=f"{here[name]} became {there[name]}")
        for name in here
        if name in there and here[name] != there[name]
    ]
    return changes, []


def _balanced(earlier: Profile, later: Profile) -> list[str]:
    both = [n for n in later.categories if n in earlier.categories]
    both = [n for n in both if n in ("domain", "label") or (earlier.has_kinds(n) and later.has_kinds(n))]
    return sorted(both, key=lambda name: (name not in ("domain", "label", "origin"), both.index(name)))


def _overlap(near: NearIndex, later: Profile) -> Overlap:
    twins = near.twins()
    looked, found = near.with_text, len(twins)
    share = found / max(looked, 1)
    whole = later.sampled == later.rows
    return Overlap(
        looked_for=looked,
        nearly=found,
        word_for_word=sum(1 for twin in twins if twin.similarity == 1),
        share=round(share, 4),
        error=0.0 if whole else round(1.96 * math.sqrt(share * (1 - share) / looked), 4),
        similarity=NEARLY,
    )


def _new_records(
    wanted: int, earlier: Profile, later: Profile, near: NearIndex | None, told: Classified | None, ref: str
) -> list[NewRecord]:
    """Records after without a near twin before: those of new labels and domains, then those that read most unlike before.

    One of each label first, so that a few show as much as they can.
    """
    sample, _ = later.sample
    fresh = np.ones(len(sample), bool) if near is None else ~near.has_twin()
    scores = np.zeros(len(sample))
    if told is not None and len(sample):
        read = min(len(sample), READ_TEXTS)
        scores[:read] = told.scores[-read:]
    kinds = {name: _plain(sample, name) for name in ("label", "domain")}
    new = {name: _new_values(earlier, later, name) for name in kinds}
    why: list[str | None] = [
        next(
            (f"{name} {values[at]} is not in {ref}" for name, values in kinds.items() if values[at] in new[name]), None
        )
        for at in range(len(sample))
    ]
    order = sorted(np.flatnonzero(fresh).tolist(), key=lambda at: (why[at] is None, -scores[at], at))
    seen: Counter[Any] = Counter()
    turns: list[tuple[int, int, int]] = []
    for at in order:
        kind = (kinds["domain"][at], kinds["label"][at])
        turns.append((seen[kind], len(turns), at))
        seen[kind] += 1
    ids, texts = sample.column("id"), sample.column("text")
    return [
        NewRecord(
            id=ids[at].as_py(),
            domain=kinds["domain"][at],
            label=kinds["label"][at],
            text=(texts[at].as_py() or "")[:_SHOWN_CHARS] or None,
            why=why[at] or f"nothing in {ref} nearly equals it",
        )
        for _, _, at in sorted(turns)[:wanted]
    ]


def _plain(sample: pa.RecordBatch, name: str) -> list[str | None]:
    column = f"value:{name}"
    return list(sample.column(column).to_pylist()) if column in sample.schema.names else [None] * len(sample)


def _new_values(earlier: Profile, later: Profile, name: str) -> set[str]:
    before, after = earlier.values(name), later.values(name)
    return set() if before is None or after is None else {v for v in after if v is not None and not before.get(v)}
