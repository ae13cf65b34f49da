"""Audit a ref before training on it. Two passes: one over the ref, one over its corpus for near twins.

Counts here; what is a finding is decided in evaluation.audit.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from treering.errors import NotFoundError, UsageError
from treering.evaluation.audit import Audit, AuditLines, Counted, Leak, Subtype, judge
from treering.evaluation.content import LABEL, content_of, said
from treering.evaluation.near import COMPARED_CHARS, NearIndex, Sketches
from treering.evaluation.sample import GroupSample, RowSample
from treering.evaluation.templates import Template, commonest, has_miner
from treering.registry import Registry
from treering.rounds.records import counted, counted_in, load_fresh
from treering.store.measure import hash_texts
from treering.store.memory import giving_back
from treering.store.table import ROW_ID

if TYPE_CHECKING:
    from treering.evaluation.content import Content
    from treering.store import BaseStore, Source
    from treering.store.source import Segment

__all__ = ["audit"]

#: Of the records whose near twins are looked for: of a ref's own, and of held-out ones. Beyond it, a sample.
COMPARED_ROWS = 20_000
HELDOUT_ROWS = 60_000

_MOST_SUBTYPES = 10_000
_TEMPLATE_TEXTS = 200  # of a subtype
_TEMPLATE_TEXTS_IN_ALL = 80_000
_TEMPLATE_CHARS = 300

_SAMPLED = pa.schema(
    [
        pa.field("id", pa.string()),
        pa.field("text", pa.large_string()),
        pa.field("place", pa.string()),
    ]
)


@giving_back()
def audit(
    store: BaseStore,
    ref: str | Source,
    *,
    by: Sequence[str] | None = None,
    text: str | None = None,
    lines: AuditLines | Mapping[str, Any] | None = None,
) -> Audit:
    """What is wrong with the records of a ref, found without any model; each finding with its figure, line and remedy.

    by: the columns whose values make a subtype; label within domain when left out. text: the column that holds what
    records say, when it isn't the messages or the text. lines: what is a finding.

    Looks at: subtypes of few training records; subtypes whose records come from one template (by Drain, on up to 200
    records each; needs the extra `audit`); the share of synthetic records, and of those that the adapter in production
    wrote, by `origin`; near-duplicates within the ref (up to 20,000 records are looked for among all); domains with few
    held-out records; and leaks: held-out records of this ref that nearly equal a training record of any snapshot or live,
    and training records of this ref that nearly equal a held-out one of any (up to 60,000 held-out ones each way).
    Excluded records count for nothing. Memory is bounded, about 700 MB whatever the ref holds.
    Raises UsageError, NotFoundError.
    """
    source = load_fresh(store, ref) if isinstance(ref, str) else ref
    rules = _lines(lines)
    pass_one = _Count(source, _columns(source, by), text)
    found = pass_one.found
    for segment, batch in counted(source, pass_one.columns):
        pass_one.update(segment, batch)
    pass_one.finish()
    if not source.segments:
        return judge(found, rules)
    corpus = source.segments[0]._corpus
    found.production = _production(corpus.store, corpus.name)
    if found.has_content:
        _compare(source, pass_one, rules)
    return judge(found, rules)


def _lines(given: AuditLines | Mapping[str, Any] | None) -> AuditLines:
    if given is None or isinstance(given, AuditLines):
        return given or AuditLines()
    try:
        return AuditLines.model_validate(dict(given))
    except ValueError as exc:
        raise UsageError(
            f"these aren't lines of an audit: {exc}", code="bad-policy",
            hint=f"known: {', '.join(AuditLines.model_fields)}",
        ) from exc  # fmt: skip


def _columns(source: Source, by: Sequence[str] | None) -> tuple[str, ...]:
    names = source.schema.names
    if by is None:
        return tuple(name for name in ("domain", LABEL) if name in names and _is_plain(source.schema.field(name).type))
    for name in by:
        if name not in names:
            raise NotFoundError(
                f"{source.ref} has no column {name!r}", code="no-column", hint=f"columns here: {', '.join(names)}"
            )
        if not _is_plain(source.schema.field(name).type):
            raise UsageError(
                f"{name} is of type {source.schema.field(name).type}; subtypes are told by plain values",
                code="bad-argument",
            )
    return tuple(dict.fromkeys(by))


def _is_plain(kind: pa.DataType) -> bool:
    t = pa.types
    return bool(t.is_string(kind) or t.is_large_string(kind) or t.is_integer(kind) or t.is_boolean(kind))


class _Count:
    """The first pass: counts, and samples of texts."""

    def __init__(self, source: Source, by: tuple[str, ...], text: str | None) -> None:
        self.content: Content = content_of(source.schema, text)
        corpus = source.segments[0]._corpus.name if source.segments else source.corpus
        self.found = Counted(ref=source.ref, corpus=corpus, by=by, has_content=bool(self.content.columns))
        self.own = RowSample(COMPARED_ROWS, _SAMPLED)
        self.heldout = RowSample(HELDOUT_ROWS, _SAMPLED)
        self._said_by = bool(by)
        self._groups: dict[Subtype, int] = {}
        self._texts = GroupSample(_TEMPLATE_TEXTS, _TEMPLATE_TEXTS_IN_ALL)
        self.columns = list(dict.fromkeys(["id", "split", "domain", "origin", *by, *self.content.columns]))

    def update(self, segment: Segment, batch: pa.RecordBatch) -> None:
        found = self.found
        found.rows += len(batch)
        training = np.asarray(pc.fill_null(pc.equal(batch.column("split"), "train"), False))
        found.training += int(training.sum())
        for (domain, split, origin), n in _grouped(batch, ("domain", "split", "origin")):
            found.origins[(origin, split, domain)] += n
            if found.domains is not None:
                found.domains[(domain, split)] += n
        if found.domains is not None and len(found.domains) > 2 * _MOST_SUBTYPES:
            found.domains = None
        if len(found.origins) > 2 * _MOST_SUBTYPES:  # domains that are names: told apart no more
            sums: Counter[tuple[str | None, str, str | None]] = Counter()
            for (origin, split, _), n in found.origins.items():
                sums[(origin, split, None)] += n
            found.origins = sums
        texts = said(batch, self.content, most=COMPARED_CHARS) if found.has_content else None
        ids = hash_texts(batch.column("id"), "audit")
        if self._said_by and found.subtypes is not None:
            self._subtypes(batch, training, texts, ids)
        if texts is not None:
            self._sample(self.own, segment, batch, texts, ids, np.arange(len(batch)))
            self._sample(self.heldout, segment, batch, texts, ids, np.flatnonzero(~training))

    def _subtypes(
        self, batch: pa.RecordBatch, training: npt.NDArray[np.bool_], texts: pa.Array | None, ids: Any
    ) -> None:
        assert self.found.subtypes is not None
        rows = np.flatnonzero(training)
        if not len(rows):
            return
        chosen = batch.take(pa.array(rows))
        coded = [chosen.column(name).cast(pa.string()).dictionary_encode("encode") for name in self.found.by]
        codes = np.stack([np.asarray(column.indices).astype(np.int64) for column in coded], axis=1)
        unique, inverse, counts = np.unique(codes, axis=0, return_inverse=True, return_counts=True)
        values = [column.dictionary.to_pylist() for column in coded]
        names = [tuple(values[i][at] for i, at in enumerate(row)) for row in unique.tolist()]
        for name, n in zip(names, counts.tolist(), strict=True):
            self.found.subtypes[name] += n
        if len(self.found.subtypes) > _MOST_SUBTYPES:
            self.found.subtypes = None
            self._texts = GroupSample(_TEMPLATE_TEXTS, _TEMPLATE_TEXTS_IN_ALL)
            return
        if texts is not None and has_miner():
            numbers = np.array([self._groups.setdefault(name, len(self._groups)) for name in names], np.int64)
            cut = pc.utf8_slice_codeunits(texts.take(pa.array(rows)), 0, _TEMPLATE_CHARS)
            groups = numbers[inverse.reshape(-1)]
            filled = np.flatnonzero(np.asarray(pc.is_valid(cut)))
            self._texts.add(groups[filled], ids[rows][filled], cut.take(pa.array(filled)))

    @staticmethod
    def _sample(
        sample: RowSample, segment: Segment, batch: pa.RecordBatch, texts: pa.Array, ids: Any, rows: Any
    ) -> None:
        wanted = rows[sample.wanted(ids[rows])]
        chosen = pa.array(wanted)
        place = pa.array([segment.ref] * len(wanted), pa.string())
        sample.add(
            pa.RecordBatch.from_arrays(
                [batch.column("id").take(chosen).cast(pa.string()), texts.take(chosen), place], schema=_SAMPLED
            ),
            ids[wanted],
        )

    def finish(self) -> None:
        """Mine the templates."""
        found = self.found
        if not has_miner():
            found.no_templates = "the extra isn't installed: pip install 'treering[audit]'"
        elif found.subtypes is not None and found.by and found.has_content:
            names = {number: name for name, number in self._groups.items()}
            mined: dict[Subtype, Template] = {
                names[group]: commonest(texts) for group, texts in self._texts.groups().items()
            }
            found.templates = mined


def _grouped(batch: pa.RecordBatch, names: tuple[str, ...]) -> list[tuple[tuple[Any, ...], int]]:
    table = pa.Table.from_batches([batch.select(list(names))])
    counts = table.group_by(list(names)).aggregate([([], "count_all")])
    columns = [counts.column(name).to_pylist() for name in names]
    return [((*key,), n) for *key, n in zip(*columns, counts.column("count_all").to_pylist(), strict=True)]


def _compare(source: Source, counts: _Count, lines: AuditLines) -> None:
    """The second pass: every record of the corpus goes by once."""
    found = counts.found
    corpus = source.segments[0]._corpus
    ref_rows = _rows_of(source)
    others = _heldout_elsewhere(source, counts, ref_rows)
    (own, _), (heldout, heldout_in), (elsewhere, elsewhere_in) = (
        _index(sample, lines.similarity) for sample in (counts.own, counts.heldout, others)
    )
    # Live too, wherever the ref lies: what is trained on tomorrow is in it.
    live = corpus.store.live(corpus.name).segments
    refs = {segment.name: segment for segment in (*_all_sealed(source), *live, *source.segments)}
    for segment in refs.values():
        at = segment.schema_version
        names = ["id", "split", ROW_ID, *counts.content.columns]
        if at != source.schema_version or any(name not in segment.schema.names for name in names[:2]):
            continue
        for batch in counted_in(segment, names):
            inside = _inside(batch, segment, ref_rows, source)
            training = np.asarray(pc.fill_null(pc.equal(batch.column("split"), "train"), False))
            # What no index asks for needs no signature.
            wanted = np.flatnonzero(inside | (training & (len(heldout) > 0)))
            if not len(wanted):
                continue
            rows = batch.take(pa.array(wanted))
            sketches = Sketches(rows.column("id"), said(rows, counts.content, most=COMPARED_CHARS))
            inside, training = inside[wanted], training[wanted]
            if len(own) and inside.any():
                own.pass_by(sketches.only(inside), segment.ref)
            if len(heldout) and training.any():
                heldout.pass_by(sketches.only(training), segment.ref)
            if len(elsewhere) and (inside & training).any():
                elsewhere.pass_by(sketches.only(inside & training), segment.ref)
    twins = own.twins()
    found.compared, found.duplicates, found.sampled = own.with_text, len(twins), len(own) < counts.own.offered
    found.examples = [(own.ids[t.query].as_py(), t.id, t.similarity) for t in twins[:20]]
    found.heldout = counts.heldout.offered + others.offered
    found.looked_for = len(heldout) + len(elsewhere)
    leaks = []
    for index, places in ((heldout, heldout_in), (elsewhere, elsewhere_in)):
        leaks += [
            Leak(
                heldout_id=index.ids[twin.query].as_py(),
                heldout_in=places[twin.query],
                training_id=twin.id,
                training_in=twin.place,
                similarity=twin.similarity,
            )
            for twin in index.twins()
        ]
    found.leaks = sorted(leaks, key=lambda leak: (-leak.similarity, leak.heldout_id, leak.training_id))


def _index(sample: RowSample, line: float) -> tuple[NearIndex, list[str]]:
    """What is looked for, and the ref that each of it lies in."""
    batch, _ = sample.batch()
    sample.clear()
    return NearIndex(batch.column("id"), batch.column("text"), line=line), batch.column("place").to_pylist()


def _all_sealed(source: Source) -> list[Segment]:
    """Every snapshot of the source's corpus."""
    corpus = source.segments[0]._corpus
    return [segment for s in corpus.snapshots() for segment in corpus.store.load(s.ref).segments]


def _rows_of(source: Source) -> dict[str, Any]:
    """What of each segment belongs to the source: its ids' hashes where not all do, else None."""
    rows: dict[str, Any] = {}
    for segment in source.segments:
        if segment.narrowing.is_whole and source.split is None:
            rows[segment.name] = None
            continue
        ids = [np.asarray(b.column(0)).astype(np.int64) for b in segment.scan([ROW_ID], source.split)]
        rows[segment.name] = np.sort(np.concatenate(ids)) if ids else np.empty(0, np.int64)
    return rows


def _inside(batch: pa.RecordBatch, segment: Segment, ref_rows: dict[str, Any], source: Source) -> Any:
    """Which records of a batch belong to the source: bool (n,)."""
    if segment.name not in ref_rows:
        return np.zeros(len(batch), bool)
    rows = ref_rows[segment.name]
    if rows is None:
        return np.ones(len(batch), bool)
    return np.isin(np.asarray(batch.column(ROW_ID)).astype(np.int64), rows)


def _heldout_elsewhere(source: Source, counts: _Count, ref_rows: dict[str, Any]) -> RowSample:
    """Held-out records of the corpus that aren't the source's."""
    sample = RowSample(HELDOUT_ROWS, _SAMPLED)
    corpus = source.segments[0]._corpus
    for segment in [*_all_sealed(source), *corpus.store.live(corpus.name).segments]:
        if segment.name in ref_rows or segment.schema_version != source.schema_version:
            continue
        for batch in segment.scan(["id", *counts.content.columns], "heldout"):
            texts = said(batch, counts.content, most=COMPARED_CHARS)
            ids = hash_texts(batch.column("id"), "audit")
            counts._sample(sample, segment, batch, texts, ids, np.arange(len(batch)))
    return sample


def _production(store: BaseStore, corpus: str) -> tuple[str, ...]:
    """What `origin` may call the adapter in production: `support:3`, `support:production`, its digest."""
    registry = Registry(store, corpus)
    number = registry.state().production
    if number is None:
        return ()
    ref = f"{corpus}:{number}"
    return (ref, f"{corpus}:production", registry.get(ref).digest)
