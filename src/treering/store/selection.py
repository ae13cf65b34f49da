"""Stored selections: rows of a source chosen under a budget; named, immutable, found again by `support/NAME`.

Streams the columns it needs, asks `strategies` for the order and keeps the row ids as an object beside the record that
names them. Only training rows that no annotation excludes are candidates. Memory: ids and groups of all candidates
(about 100 bytes each while they are sorted), for `reservoir` only of about twice the budget.
"""

from __future__ import annotations

import hashlib
import io
import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeAlias

import numpy as np
import pyarrow as pa

from treering.errors import AlreadyExistsError, ConflictError, NotFoundError, StoreError, UsageError
from treering.store.documents import Occupancy, SelectionRecord, SelectionReport
from treering.store.measure import Int64Array, UInt64Array, arrow_bytes, hash_texts, opening_words, token_counts
from treering.store.ref import check_selection_name
from treering.store.source import Source
from treering.store.strategies import BottomK, distances, importance_shares, in_turn, within
from treering.store.table import ROW_ID

if TYPE_CHECKING:
    from treering.store.corpus import BaseCorpus

__all__ = [
    "HasForgetting",
    "Strategy",
    "find_selection",
    "list_selections",
    "load_selection",
    "row_ids_in",
    "select",
    "selected",
    "store_selection",
]

Strategy = Literal["reservoir", "balanced", "diverse", "importance"]
Unit = Literal["rows", "bytes", "tokens"]
By = str | Callable[[pa.RecordBatch], Any]

STRATEGIES: tuple[Strategy, ...] = ("reservoir", "balanced", "diverse", "importance")
DIVERSE_ROWS = 10_000  # the budget of `diverse` when none is given
NO_VALUE = "(none)"  # the domain of records that name none, as in evaluation
OPENING = "opening words"

_MOST_DOMAINS = 10_000  # kept in a report: beyond it a column is free text
_MEGABYTE = 1_000_000


class HasForgetting(Protocol):
    """Whatever knows how much of each domain was forgotten; a score matrix by domain does."""

    def domain_forgetting(self) -> dict[str, float]:
        """Domain → what was lost of it, ≥ 0."""


def select(
    source: Source,
    *,
    rows: int | None = None,
    mb: float | None = None,
    tokens: int | None = None,
    strategy: Strategy = "reservoir",
    by: By | None = None,
    name: str | None = None,
    seed: int = 0,
    columns: Sequence[str] | None = None,
    floor: float | None = None,
    forgetting: Mapping[str, float] | HasForgetting | None = None,
    spread: str | None = None,
) -> Source:
    """Choose training rows of `source` under a budget and store the choice.

    rows, mb, tokens: the budget, one of them (`diverse`: 10,000 rows when none is given). It is filled in the strategy's
        order up to the first row that doesn't fit, and never exceeded; rows that alone exceed it are passed over. mb: 10⁶
        bytes of `columns` (all, when left out) as Arrow holds them (`measure.arrow_bytes`). tokens: the lengths of the
        column `tokens`, or without one the words of the payload (`measure.token_counts`).
    strategy: "reservoir" (uniform), "balanced" (the same from every group), "diverse" (from every group of records that
        begin alike, in turn), "importance" (more from what is forgotten more); see `treering.store.strategies`.
    by: column that the groups are values of, or a function of a record batch that gives one value a row; "domain" when
        left out, for `diverse` the first five words of the user's first message (or of the text).
    name: by default made from the strategy and a digest of recipe and rows: the same choice is the same selection.
    seed: what chance is drawn from.
    floor: what each group gets at least, if it has that many rows: a whole number of rows, or for `importance` a share of
        the budget below 1 (by default half of an even share). Groups left below it are reported as starving.
    forgetting: for `importance`, domain → what was lost of it (≥ 0), or a score matrix by domain.
    spread: column whose values each group's rows are spread over, as evenly as there are any: more from domains that were
        forgotten, and of each label of such a domain as many as of the next. Not for `reservoir`, which has no groups.

    Raises UsageError for arguments that don't fit and for a source without training rows, ConflictError when another
    selection has the name.
    """
    unit, budget = _budget(rows, mb, tokens, strategy)
    if name is not None:
        check_selection_name(name)
    if isinstance(seed, bool) or not isinstance(seed, int):
        raise UsageError(f"seed is {seed!r}; it is a whole number", code="bad-seed")
    if strategy not in STRATEGIES:
        raise UsageError(f"strategy is {strategy!r}; it is one of {', '.join(STRATEGIES)}", code="bad-strategy")
    if (forgetting is not None) != (strategy == "importance"):
        raise UsageError(
            "importance needs to know what was forgotten" if forgetting is None else f"{strategy} takes no forgetting",
            code="bad-forgetting",
            hint="forgetting={domain: loss ≥ 0}, or a score matrix by domain, with strategy='importance'",
        )
    if by is not None and not isinstance(by, str) and not callable(by):
        raise UsageError(f"by is {by!r}; it is a column, or a function of a record batch", code="bad-by")
    if columns is not None and unit != "bytes":
        raise UsageError("columns say whose bytes count; they go with mb", code="bad-budget")
    _check_floor(floor, strategy)
    spread = spread or None
    if spread is not None and strategy == "reservoir":
        raise UsageError(
            "reservoir has no groups whose rows could be spread",
            code="bad-spread",
            hint=f"strategy='balanced' with by={spread!r}, or leave out spread",
        )
    if source.split == "heldout":
        raise _nothing(source)
    if not source.segments:
        raise _nothing(source)
    candidates = _Candidates(source, strategy, by, unit, columns, f"selection/{seed}", spread)
    floor_rows = int(floor) if floor is not None and floor >= 1 else 0
    weights: dict[str, float] = {}
    if strategy == "reservoir":
        chosen = candidates.smallest(budget)
    elif strategy == "importance":
        assert forgetting is not None
        lost = forgetting if isinstance(forgetting, Mapping) else _told_by(forgetting)
        candidates.read()
        names = candidates.domains.names
        share = floor if floor is not None and floor < 1 else 0.0 if floor_rows else 0.5 / max(1, len(names))
        shares = importance_shares(names, lost, share) if names else np.empty(0)
        weights = dict(zip(names, shares.tolist(), strict=True))
        chosen = candidates.in_turn(budget, shares, floor_rows)
        floor_rows = floor_rows or math.floor(share * budget if unit == "rows" else share * len(chosen[0]))
    else:
        candidates.read()
        chosen = candidates.in_turn(budget, np.ones(len(candidates.groups.names)), floor_rows)
    row_ids, domains, used = chosen
    if not len(row_ids):
        raise (
            _nothing(source)
            if not candidates.count
            else UsageError(
                f"no row of {source.ref} fits into {budget:,} {unit}", code="bad-budget", hint="choose a larger budget"
            )
        )
    row_ids = np.sort(row_ids)
    corpus: BaseCorpus = source.segments[0]._corpus
    payload = _encode(row_ids)
    digest = _digest(corpus, row_ids)
    recipe: tuple[Any, ...] = (strategy, candidates.by, seed, unit, budget, candidates.measured, floor)
    recipe += (sorted(weights.items()), *([spread] if spread else []))
    record = SelectionRecord(
        name=name or f"{strategy}-{hashlib.sha256(repr((digest, *recipe)).encode()).hexdigest()[:12]}",
        corpus=corpus.name,
        incarnation=corpus.record.incarnation,
        digest=digest,
        source=source._like(sampling=None).pin(),
        strategy=strategy,
        by=candidates.by,
        spread=spread or "",
        seed=seed,
        unit=unit,
        budget=budget,
        used=used,
        columns=list(candidates.measured) if unit == "bytes" else [],
        weights=dict(sorted(weights.items())[:_MOST_DOMAINS]),
        rows=len(row_ids),
        row_ids=f"selections/{corpus.record.table}/{digest[:32]}.arrow",
        row_ids_sha256=hashlib.sha256(payload).hexdigest(),
        report=candidates.report(domains, floor_rows),
        created_at=datetime.now(UTC),
    )
    # The rows say it all: what narrowed the source before is kept in the record, and the pin stays as short as by name.
    whole = source._like(segments=[s.narrowed(replace(s.narrowing, where=(), rows=None)) for s in source.segments])
    return selected(whole, corpus, _store(corpus, record, payload))


def _told_by(matrix: HasForgetting) -> Mapping[str, float]:
    """What a score matrix says was forgotten, by domain. Raises UsageError for anything else."""
    if not hasattr(matrix, "domain_forgetting"):
        raise UsageError(
            f"forgetting is {matrix!r}",
            code="bad-forgetting",
            hint="give {domain: loss ≥ 0}, or a score matrix by domain: treering.score_matrix(…, by='domain')",
        )
    return matrix.domain_forgetting()


def _digest(corpus: BaseCorpus, row_ids: Int64Array) -> str:
    """Of which records these are."""
    named = f"{corpus.name}\0{corpus.record.incarnation}\0".encode()
    return hashlib.sha256(named + row_ids.astype("<i8").tobytes()).hexdigest()


def store_selection(
    corpus: BaseCorpus, theirs: SelectionRecord, row_ids: Int64Array, pin: dict[str, Any]
) -> SelectionRecord:
    """Store a selection that was made elsewhere: of these rows (ascending) of the source that `pin` names.

    Raises ConflictError when another one has its name.
    """
    payload, digest = _encode(row_ids), _digest(corpus, row_ids)
    record = theirs.model_copy(
        update={
            "corpus": corpus.name,
            "incarnation": corpus.record.incarnation,
            "digest": digest,
            "source": pin,
            "rows": len(row_ids),
            "row_ids": f"selections/{corpus.record.table}/{digest[:32]}.arrow",
            "row_ids_sha256": hashlib.sha256(payload).hexdigest(),
        }
    )
    return _store(corpus, record, payload)


def find_selection(corpus: BaseCorpus, name: str) -> SelectionRecord:
    """The record of a selection. Raises UsageError for what can't be its name, NotFoundError when there is none."""
    check_selection_name(name)
    try:
        return corpus.store.read_document(SelectionRecord, _path(corpus, name))
    except NotFoundError as exc:
        known = ", ".join(record.name for record in list_selections(corpus)) or "none yet"
        raise NotFoundError(
            f"there is no selection {corpus.name}/{name}", code="no-selection", hint=f"selections here: {known}"
        ) from exc


def list_selections(corpus: BaseCorpus) -> list[SelectionRecord]:
    """All selections of a corpus, oldest first."""
    paths = [p for p in corpus.store.objects.list(f"selections/{corpus.record.table}") if p.endswith(".json")]
    found = [corpus.store.read_document(SelectionRecord, path) for path in paths]
    return sorted(found, key=lambda record: (record.created_at, record.name))


def load_selection(corpus: BaseCorpus, name: str) -> Source:
    """A selection as a source; what annotations exclude by now is left out of it. Raises NotFoundError, ConflictError."""
    record = find_selection(corpus, name)
    pin = {**record.source, "annotations": None, "where": None, "selection": None}
    pin["schema_version"] = len(corpus.known_versions())  # as any other ref: read as the newest
    whole = Source.from_pin(corpus.store, pin, erased="fewer")
    version = corpus.annotation_log.version()
    segments = [segment.narrowed(replace(segment.narrowing, annotations=version)) for segment in whole.segments]
    return selected(whole._like(segments=segments), corpus, record)


def selected(source: Source, corpus: BaseCorpus, record: SelectionRecord) -> Source:
    """What `record` chose of `source`, as a source. Raises StoreError when the stored row ids aren't those it names."""
    row_ids = row_ids_in(corpus, record)
    segments = []
    for segment in source.segments:
        low, high = np.searchsorted(row_ids, segment.row_ids)
        segments.append(segment.narrowed(replace(segment.narrowing, rows=row_ids[low:high])))
    ref = corpus.store.prefix + record.ref
    return Source(ref, source.corpus, segments, source.schema, source.split, selection=record)


def _path(corpus: BaseCorpus, name: str) -> str:
    return f"selections/{corpus.record.table}/{name}.json"


def _encode(row_ids: Int64Array) -> bytes:
    table = pa.table({"row_id": row_ids})
    sink = io.BytesIO()
    with pa.ipc.new_stream(sink, table.schema, options=pa.ipc.IpcWriteOptions(compression="zstd")) as writer:
        writer.write_table(table)
    return sink.getvalue()


def row_ids_in(corpus: BaseCorpus, record: SelectionRecord) -> Int64Array:
    """The stable row ids of a selection, ascending. Raises StoreError when they aren't those that it names."""
    data = corpus.store.objects.get(record.row_ids)
    if hashlib.sha256(data).hexdigest() != record.row_ids_sha256:
        raise StoreError(
            f"{record.row_ids} isn't what {record.ref} names", code="document-damaged", hint="restore it from a backup"
        )
    return np.asarray(pa.ipc.open_stream(data).read_all().column("row_id")).astype(np.int64)


def _store(corpus: BaseCorpus, record: SelectionRecord, payload: bytes) -> SelectionRecord:
    """Keep the row ids, then the record that names them. The same choice under the same name is there already."""
    try:
        corpus.store.objects.create(record.row_ids, payload)
    except AlreadyExistsError:  # the same rows, chosen before; compressed by another library version, perhaps
        kept = corpus.store.objects.get(record.row_ids)
        record = record.model_copy(update={"row_ids_sha256": hashlib.sha256(kept).hexdigest()})
        row_ids_in(corpus, record)
    try:
        corpus.store.objects.create(_path(corpus, record.name), record.to_json())
    except AlreadyExistsError as exc:
        there = find_selection(corpus, record.name)
        made = ("digest", "strategy", "by", "spread", "seed", "unit", "budget", "columns")
        if any(getattr(there, field) != getattr(record, field) for field in made):
            raise ConflictError(
                f"{record.ref} is another selection: {there.rows:,} rows by {there.strategy} of {there.source['ref']}, "
                f"{there.budget:,} {there.unit}" + (f", spread over {there.spread}" if there.spread else ""),
                code="selection-exists",
                hint="selections never change: choose another name",
            ) from exc
        return there
    return record


def _budget(rows: int | None, mb: float | None, tokens: int | None, strategy: str) -> tuple[Unit, int]:
    given: list[tuple[Unit, Any, int]] = [("rows", rows, 1), ("bytes", mb, _MEGABYTE), ("tokens", tokens, 1)]
    named = [(unit, value, factor) for unit, value, factor in given if value is not None]
    if not named and strategy == "diverse":
        return "rows", DIVERSE_ROWS
    if len(named) != 1:
        raise UsageError(
            "a selection has one budget", code="bad-budget", hint="give one of rows=…, mb=… (10⁶ bytes) and tokens=…"
        )
    unit, value, factor = named[0]
    numeric = isinstance(value, int | float) if unit == "bytes" else isinstance(value, int)
    if isinstance(value, bool) or not numeric or not 1 <= value * factor < 2**60:
        raise UsageError(f"a budget of {value!r} {unit if factor == 1 else 'mb'} holds nothing", code="bad-budget")
    return unit, int(value * factor)


def _check_floor(floor: float | None, strategy: str) -> None:
    if floor is None:
        return
    rows = isinstance(floor, int) and not isinstance(floor, bool) and floor >= 1
    share = isinstance(floor, float) and 0 <= floor < 1 and strategy == "importance"
    if not rows and not share:
        raise UsageError(
            f"floor is {floor!r}; it is a whole number of rows ≥ 1, or for importance a share of the budget below 1",
            code="bad-floor",
        )


def _nothing(source: Source) -> UsageError:
    return UsageError(
        f"{source.ref} has no training rows to choose from",
        code="empty-source",
        hint="held-out and excluded records are never chosen",
    )


class _Groups:
    """Numbers for values, in order of appearance."""

    def __init__(self) -> None:
        self._numbers: dict[Any, int] = {}

    def __call__(self, values: Any) -> Int64Array:
        """The number of each value (n,); null is a value."""
        found = pa.array(values) if not isinstance(values, pa.Array | pa.ChunkedArray) else values
        if isinstance(found, pa.ChunkedArray):
            found = found.combine_chunks()
        coded = found if pa.types.is_dictionary(found.type) else found.dictionary_encode(null_encoding="encode")
        known = [self._numbers.setdefault(value, len(self._numbers)) for value in coded.dictionary.to_pylist()]
        return np.asarray(known, np.int64)[np.asarray(coded.indices)] if len(known) else np.empty(0, np.int64)

    @property
    def names(self) -> list[str]:
        """The values as text, by number."""
        return [NO_VALUE if value is None else str(value) for value in self._numbers]


_Rows: TypeAlias = tuple[UInt64Array, Int64Array, Int64Array, Int64Array, Int64Array, Int64Array]


class _Candidates:
    """The training rows of a source as arrays: hash, row id, group, domain, cost, what they are spread over."""

    def __init__(
        self,
        source: Source,
        strategy: Strategy,
        by: By | None,
        unit: Unit,
        columns: Sequence[str] | None,
        key: str,
        spread: str | None,
    ) -> None:
        schema = source.schema
        self._source = source.segments
        self._key = key
        self._unit = unit
        self._payload = [name for name in source.segments[0]._corpus.record_type.payload if name in schema.names]
        default = None if strategy == "diverse" else "domain"
        self._by: By | None = default if by is None else by
        if isinstance(self._by, str):
            self.by: str = self._by
        else:
            self.by = OPENING if self._by is None else getattr(self._by, "__name__", type(self._by).__name__)
        # A report is about domains: the groups themselves, unless those are finer or made up.
        self._domain = self._by if isinstance(self._by, str) and strategy != "diverse" else "domain"
        self.measured = list(columns if columns is not None else schema.names) if unit == "bytes" else []
        if unit == "tokens":
            self.measured = ["tokens"] if "tokens" in schema.names else self._payload
        extra = self._payload if self._by is None else [self._by] if isinstance(self._by, str) else schema.names
        self._spread = spread
        over = [] if spread is None else [spread]
        self._columns = list(dict.fromkeys(["id", self._domain, *self.measured, *extra, *over]))
        for segment in source.segments:
            segment.check_columns(self._columns)
            for name in (self._by, spread):
                if name in segment.schema.names and pa.types.is_nested(segment.schema.field(name).type):
                    kind = segment.schema.field(name).type
                    raise UsageError(f"{name} is of type {kind}; groups are made of plain values", code="bad-groups")
        self.groups = _Groups()
        self.domains = _Groups()
        self._over = _Groups()
        self._available: Counter[int] = Counter()
        self._parts: list[_Rows] = []
        self.count = 0
        self.too_large = 0

    def _batches(self, budget: int) -> Iterator[_Rows]:
        """(hashes, row ids, groups, domains, costs, parts of groups) of the candidates that fit into the budget at all."""
        for segment in self._source:
            for batch in segment.scan([*self._columns, ROW_ID], "train"):
                if not len(batch):
                    continue
                domains = self.domains(batch.column(self._domain))
                self.count += len(batch)
                numbers, counts = np.unique(domains, return_counts=True)
                self._available.update(dict(zip(numbers.tolist(), counts.tolist(), strict=True)))
                costs = self._costs(batch)
                fits = costs <= budget
                self.too_large += int(len(batch) - fits.sum())
                hashes = hash_texts(batch.column("id"), self._key)
                row_ids = np.asarray(batch.column(ROW_ID)).astype(np.int64)
                groups = domains if self._by == self._domain else self._grouped(batch)
                parts = (
                    np.zeros(len(batch), np.int64) if self._spread is None else self._over(batch.column(self._spread))
                )
                yield hashes[fits], row_ids[fits], groups[fits], domains[fits], costs[fits], parts[fits]

    def _costs(self, batch: pa.RecordBatch) -> Int64Array:
        if self._unit == "rows":
            return np.ones(len(batch), np.int64)
        measured = batch.select(self.measured)
        return arrow_bytes(measured) if self._unit == "bytes" else token_counts(measured)

    def _grouped(self, batch: pa.RecordBatch) -> Int64Array:
        if self._by is None:
            return self.groups(opening_words(batch, self._payload))
        if isinstance(self._by, str):
            return self.groups(batch.column(self._by))
        values = self._by(batch)
        if not isinstance(values, Sequence | pa.Array | pa.ChunkedArray | np.ndarray) or isinstance(values, str):
            raise UsageError(f"{self.by} gave {values!r}, not one value a record", code="bad-by")
        if len(values) != len(batch):
            raise UsageError(f"{self.by} gave {len(values)} values for {len(batch)} records", code="bad-by")
        try:
            return self.groups(values)
        except (pa.ArrowException, TypeError) as exc:
            raise UsageError(
                f"{self.by} gave values that can't be grouped by: {str(exc).splitlines()[0]}",
                code="bad-by",
                hint="give text, numbers or None, all of one type",
            ) from exc

    def smallest(self, budget: int) -> tuple[Int64Array, Int64Array, int]:
        """(row ids, domains, cost) of the rows of smallest hash."""
        bottom = BottomK(budget)
        for hashes, row_ids, _, domains, costs, _ in self._batches(budget):
            bottom.add(hashes, row_ids, domains, costs)
        return bottom.rows()

    def read(self, budget: int = 2**62) -> None:
        """Read all candidates into memory."""
        self._parts = list(self._batches(budget))
        if self._by == self._domain:
            self.groups = self.domains

    def in_turn(self, budget: int, weights: Any, floor_rows: int) -> tuple[Int64Array, Int64Array, int]:
        """(row ids, domains, cost) of the rows that groups get in turn."""
        if not self._parts:
            return np.empty(0, np.int64), np.empty(0, np.int64), 0
        rows = [np.concatenate(part) for part in zip(*self._parts, strict=True)]
        self._parts = []
        fits = rows[4] <= budget
        self.too_large = int(len(fits) - fits.sum())
        hashes, row_ids, groups, domains, costs, parts = (one[fits] for one in rows)
        over = None if self._spread is None else parts
        order = in_turn(groups, hashes, row_ids, np.asarray(weights, np.float64), floor_rows, over)
        order = order[: within(costs[order], budget)]
        return row_ids[order], domains[order], int(costs[order].sum())

    def report(self, chosen: Int64Array, floor_rows: int) -> SelectionReport:
        """How the rows of these domains stand to all."""
        names = self.domains.names
        available = np.array([self._available[n] for n in range(len(names))], np.int64)
        taken = np.bincount(chosen, minlength=len(names))
        # Without a floor of the caller's: half of what an even share would be.
        floor_rows = floor_rows or max(1, len(chosen) // (2 * len(names)))
        variation, divergence = distances(available, taken)
        order = sorted(range(len(names)), key=lambda n: (-available[n], names[n]))
        starving = [names[n] for n in order if taken[n] < floor_rows]
        return SelectionReport(
            by=self._domain,
            domains=[
                Occupancy(domain=names[n], available=int(available[n]), rows=int(taken[n]))
                for n in order[:_MOST_DOMAINS]
            ],
            domains_total=len(names),
            starving=starving[:_MOST_DOMAINS],
            starving_total=len(starving),
            floor_rows=floor_rows,
            total_variation=variation,
            jensen_shannon=divergence,
            too_large=self.too_large,
        )
