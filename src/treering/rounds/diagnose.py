"""What an adapter suffers from: the modes and checks of `evaluation.findings`, measured over one store.

Gathers what they need (score matrix, linear probe, counts by domain, routes, the run's buffer, what was said of records
by hand) and judges nothing itself.
"""

from __future__ import annotations

import hashlib
import heapq
import json
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import numpy as np

from treering.capture import flush_spools
from treering.errors import NotFoundError, TreeringError, UsageError
from treering.evaluation import (
    Diagnosis,
    DomainFacts,
    Growth,
    HeldoutSlice,
    MetricLike,
    ProbedSlice,
    RoundFacts,
    ScoreMatrix,
    domain_slices,
    findings,
    fit_probe,
    measure,
    resolve_metric,
    snapshot_slices,
)
from treering.evaluation.probe import probed, spurious_share
from treering.evaluation.slices import NO_DOMAIN
from treering.mixing import MixLock
from treering.registry import AdapterRecord, Registry
from treering.registry.trained import overlaps
from treering.rounds.baseline import newest_baseline
from treering.rounds.evaluate import Scorer, learned_snapshots, score_matrix
from treering.store.selection import find_selection

if TYPE_CHECKING:
    from treering.store import BaseCorpus, BaseStore
    from treering.store.source import Segment

__all__ = ["diagnose"]

PER_CLASS = 200  # training records that the probe is fitted on, a class
LIVE_ROWS = 2_000  # records of live that are routed
BUFFER_SHARE = 0.2  # of the training records: the buffer that a remedy makes, when there is none to take the size of


def diagnose(
    store: BaseStore, adapter: str, *, metric: MetricLike = "macro_f1", now: datetime | None = None
) -> Diagnosis:
    """Look at one adapter and its lineage: five ways of forgetting, and what else goes wrong from round to round.

    Severe forgetting; spurious forgetting, told by a linear probe; head and tail domains, and the replay buffer's
    occupancy; growth with domains; requests with several intents (from `treering label`); router accuracy and drift; thin
    held-out slices; the difference to the parent; the age of the fresh baseline. See `evaluation.findings` for the lines.

    The probe is a fresh linear head over all classes that the adapter knows, fitted in closed form on its features of up to
    200 training records a class, and scored on the slices that dropped: the same task as the adapter's own head has, so
    that what it gets back is what a better head would. Needs the training records' snapshots; pruned ones are left out.
    metric: one of predictions, better the higher. now: what ages are counted to.

    Raises NotFoundError for an adapter that isn't there or was trained on no sealed held-out records, UsageError for
    another metric.
    """
    chosen = resolve_metric(metric)
    if chosen.reads != "predictions" or chosen.better != "higher":
        raise UsageError(
            f"a diagnosis goes by a metric of predictions, better the higher, and {chosen.name!r} is none",
            code="bad-metric",
            hint="macro_f1 or accuracy",
        )
    registry = Registry.of(store, adapter)
    corpus = store.corpus(registry.corpus)
    flush_spools(corpus)
    record = registry.get(adapter)
    if record.metric == "loss":
        raise UsageError(
            f"{record.ref} is a chat model, and a diagnosis is of classifiers",
            code="chat-model",
            hint=f"look at its score matrix instead: treering eval {record.ref} --matrix",
        )
    look = _Look(store, corpus, registry, record, registry.lineage(record.ref))
    matrix = score_matrix(store, corpus.name, adapter=record.ref, metric=metric)
    scorer = Scorer(store, metric, fresh=False)
    told: Any = scorer.model(record)
    slices = {piece.name: piece for piece in snapshot_slices(corpus) if piece.name in matrix.slices}
    remedies = look.remedies(gated=getattr(getattr(told, "header", None), "kind", None) == "gated")

    rounds = _rounds(matrix)
    dropped = _probe(look, matrix, slices, told, chosen.function)
    share = spurious_share(dropped)
    domains, buffer, buffer_rows = look.domains(scorer)
    live, route_rows = _live_certainty(corpus, store, told)
    certainty, right, routed, worst = _routes(slices.values(), told)
    baseline = newest_baseline(store, record.ref)
    days = gap = None
    lacks: list[str] = []
    if baseline is not None:
        days = max(0.0, ((now or datetime.now(UTC)) - baseline.created_at).total_seconds()) / 86_400.0
        lacks = [name for name in slices if name not in baseline.trained_on]
        shared = [piece for name, piece in slices.items() if name not in lacks]
        if shared:
            reference = scorer.scores(baseline, shared)
            gap = float(np.mean([reference[one.name] - matrix.row(record.ref)[one.name] for one in shared]))
    parent = look.parent
    before = {}
    if parent is not None:
        known = [name for name, r in zip(matrix.slices, matrix.learned_in, strict=True)
                 if r is not None and r < len(matrix.rounds) - 1]  # fmt: skip
        before = scorer.scores(parent, [slices[name] for name in known])
    growth = _growth(told)
    rows = buffer_rows or max(1, round(BUFFER_SHARE * sum(one.train_rows for one in domains)))
    domain_of = {name: _only(piece.domains) for name, piece in slices.items()}
    return Diagnosis(
        adapter=record.ref,
        metric=chosen.name,
        findings=[
            findings.severe_forgetting(rounds, dropped, remedies),
            findings.spurious_forgetting(dropped, share, remedies, domain_of),
            findings.head_tail_gap(domains, remedies, rows),
            findings.buffer_occupancy(domains, buffer, remedies, buffer_rows),
            findings.parameter_growth(growth, remedies),
            *findings.multi_intent(*look.intents(), remedies),
            findings.router_accuracy(right, routed, remedies, worst=worst),
            findings.router_drift(live, certainty, route_rows, remedies),
            findings.heldout_size(domains, remedies),
            findings.baseline_diff(matrix.row(record.ref), before, remedies, parent.ref if parent else None),
            findings.fresh_baseline(baseline.ref if baseline else None, days, gap, remedies, lacks=lacks),
        ],
        rounds=rounds,
        domains=domains,
        probed=dropped,
        spurious_share=share,
        growth=growth,
        created_at=now or datetime.now(UTC),
    )


@dataclass(frozen=True)
class _Look:
    """One adapter in its store."""

    store: BaseStore
    corpus: BaseCorpus
    registry: Registry
    record: AdapterRecord
    lineage: list[AdapterRecord]

    @property
    def parent(self) -> AdapterRecord | None:
        return self.lineage[-2] if len(self.lineage) > 1 else None

    def learned(self) -> list[str]:
        """Refs of the corpus's snapshots that are there and that the lineage drew from, oldest first."""
        snapshot_rows = {s.ref: s.row_ids for s in self.corpus.snapshots()}
        found = set().union(*(learned_snapshots(one, snapshot_rows) for one in self.lineage))
        return [ref for ref in snapshot_rows if ref in found]

    def remedies(self, *, gated: bool) -> findings.Remedies:
        learned = self.learned()
        own = learned_snapshots(self.record, {s.ref: s.row_ids for s in self.corpus.snapshots()})
        newest = next((ref for ref in reversed(learned) if ref in own), None)
        return findings.Remedies(
            corpus=self.corpus.name,
            adapter=self.record.ref,
            learned=tuple(_ranges(learned)),
            past=tuple(_ranges([ref for ref in learned if ref != newest])),
            newest=newest,
            parent=None if self.parent is None else self.parent.ref,
            base=self.record.base,
            replays=self.replays(),
            gated=gated,
        )

    def training_records(self, classes: Iterable[str]) -> tuple[list[str], list[str]]:
        """Texts and labels of at most `PER_CLASS` training records of each class, chosen by a hash of the text."""
        kept: dict[str, list[tuple[int, str]]] = {label: [] for label in classes}
        for ref in self.learned():
            for segment in self.store.load(ref).segments:
                for text, label in _columns(segment, ("text", "label"), "train"):
                    heap = kept.get(str(label)) if text is not None and label is not None else None
                    if heap is None:
                        continue
                    entry = (-_hash(text), text)
                    if len(heap) < PER_CLASS:
                        heapq.heappush(heap, entry)
                    elif entry > heap[0]:
                        heapq.heapreplace(heap, entry)
        texts = [text for heap in kept.values() for _, text in sorted(heap)]
        labels = [label for label, heap in kept.items() for _ in heap]
        return texts, labels

    def domains(self, scorer: Scorer) -> tuple[list[DomainFacts], str | None, int]:
        """Every domain that the lineage learnt, by traffic; the buffer of the run, and how many rows it has."""
        train: Counter[str] = Counter()
        traffic: Counter[str] = Counter()
        for ref in self.learned():
            for segment in self.store.load(ref).segments:
                for domain, split in _columns(segment, ("domain", "split"), None):
                    name = NO_DOMAIN if domain is None else str(domain)
                    traffic[name] += 1
                    train[name] += split == "train"
        live: Counter[str] = Counter()
        for segment in self.store.live(self.corpus.name).segments:
            live.update(NO_DOMAIN if d is None else str(d) for (d,) in _columns(segment, ("domain",), None))
        learned = set(self.learned())
        held = [s for s in domain_slices(self.corpus) if s.rows and not learned.isdisjoint(s.parts)]
        scores = scorer.scores(self.record, held)
        by_domain = {piece.domains[0]: piece for piece in held}
        buffer, occupancy = self.buffer()
        names = sorted({*train, *by_domain})
        group = findings.groups_by_traffic({name: traffic[name] + live[name] for name in names})
        facts = [
            DomainFacts(
                domain=name,
                train_rows=train[name],
                live_rows=live[name],
                heldout_rows=by_domain[name].rows if name in by_domain else 0,
                buffer_rows=None if occupancy is None else occupancy.get(name),
                group=group[name],
                score=scores[by_domain[name].name] if name in by_domain else None,
            )
            for name in names
        ]
        facts.sort(key=lambda one: (-(one.train_rows + one.live_rows), one.domain))
        return facts, buffer, sum((occupancy or {}).values())

    def buffer(self) -> tuple[str | None, dict[str, int] | None]:
        """The selections that the run replayed, and how many rows of each domain are in them; None without any."""
        text = self.registry.lock(self.record.ref)
        if text is None:
            return None, None
        found: list[str] = []
        rows: Counter[str] = Counter()
        for source in MixLock.from_json(text).sources:
            if source.pin.selection is None or source.pin.corpus != self.corpus.name or not source.units:
                continue
            with suppress(TreeringError):  # a selection that isn't there any more has nothing to tell
                chosen = find_selection(self.corpus, source.pin.selection.name)
                found.append(chosen.ref)
                if chosen.report.by == "domain":
                    rows.update({one.domain: one.rows for one in chosen.report.domains if one.available})
        return (", ".join(found), dict(rows)) if found else (None, None)

    def replays(self) -> bool:
        """Whether the run drew from a snapshot that its ancestors had learnt; True where nobody knows."""
        text = self.registry.lock(self.record.ref)
        if text is None or self.parent is None:
            return True
        known = set(self.registry.trained_on(self.parent.ref))
        pins = [source.pin for source in MixLock.from_json(text).sources if source.units]
        return any(f"{pin.corpus}@{segment.name}" in known for pin in pins for segment in pin.segments)

    def intents(self) -> tuple[tuple[int, int], tuple[int, int]]:
        """(records that ask for several things, records looked at): of what the lineage hasn't learnt, and of what it has."""
        log = self.corpus.annotation_log
        said = log.read(log.version(), key="intents")
        counts = dict(
            zip(said.column("id").to_pylist(), map(json.loads, said.column("value").to_pylist()), strict=True)
        )
        if not counts:
            return (0, 0), (0, 0)
        learned = set(self.learned())
        rows = self.registry.trained_rows(self.record.ref)
        tally = {False: [0, 0], True: [0, 0]}
        sources = [*(self.store.load(s.ref) for s in self.corpus.snapshots()), self.store.live(self.corpus.name)]
        for segment in (segment for source in sources for segment in source.segments):
            row_ids, names = segment.find_ids(list(counts))
            for row_id, name in zip(row_ids.tolist(), names, strict=True):
                known = segment.ref in learned or overlaps(rows, (row_id, row_id + 1))
                tally[known][0] += counts[name] > 1
                tally[known][1] += 1
        return (tally[False][0], tally[False][1]), (tally[True][0], tally[True][1])


def _rounds(matrix: ScoreMatrix) -> list[RoundFacts]:
    partial = [matrix.until(n) for n in range(1, len(matrix.rounds) + 1)]
    return [
        RoundFacts(adapter=name, average=_known(one.average), bwt=_known(one.bwt))
        for name, one in zip(matrix.rounds, partial, strict=True)
    ]


def _probe(
    look: _Look, matrix: ScoreMatrix, slices: Mapping[str, HeldoutSlice], model: Any, metric: Any
) -> list[ProbedSlice]:
    """Every slice that scores less than right after it was learnt, with what a fresh head gets back."""
    last = len(matrix.rounds) - 1
    dropped = [
        (name, float(matrix.values[r, j]), float(matrix.values[last, j]))
        for j, (name, r) in enumerate(zip(matrix.slices, matrix.learned_in, strict=True))
        if r is not None and r < last and matrix.values[last, j] < matrix.values[r, j]
    ]
    if not dropped or not hasattr(model, "features"):
        return []
    try:
        texts, labels = look.training_records(model.classes)
    except NotFoundError:
        return []
    if not texts:
        return []
    head = fit_probe(model.features(texts), labels)
    return [
        probed(
            name,
            learned=learned,
            final=final,
            probe=measure(metric, slices[name].labels, head.predict(model.features(list(slices[name].texts)))),
        )
        for name, learned, final in dropped
    ]


def _routes(slices: Iterable[HeldoutSlice], model: Any) -> tuple[float | None, int, int, str | None]:
    """Over held-out records: mean largest route probability, domains told rightly, of how many, and the worst domain."""
    if not hasattr(model, "route") or len(model.domains) < 2:
        return None, 0, 0, None
    number = {domain: n for n, domain in enumerate(model.domains)}
    largest: list[float] = []
    right: Counter[str] = Counter()
    rows: Counter[str] = Counter()
    for piece in slices:
        route = model.route(list(piece.texts))
        largest += route.max(1).tolist()
        for domain, at in zip(piece.domains, route.argmax(1).tolist(), strict=True):
            if domain in number:
                rows[domain] += 1
                right[domain] += at == number[domain]
    worst = min(rows, key=lambda name: (right[name] / rows[name], name), default=None)
    said = None if worst is None else f"{worst}, {right[worst]:,} of {rows[worst]:,}"
    return float(np.mean(largest)) if largest else None, right.total(), rows.total(), said


def _live_certainty(corpus: BaseCorpus, store: BaseStore, model: Any) -> tuple[float | None, int]:
    """Mean largest route probability over records of live, and how many."""
    if not hasattr(model, "route") or len(model.domains) < 2:
        return None, 0
    live = [
        text
        for segment in store.live(corpus.name).segments
        for (text,) in _columns(segment, ("text",), None)
        if text is not None
    ]
    texts = sorted(live, key=_hash)[:LIVE_ROWS]
    return (float(np.mean(model.route(texts).max(1))), len(texts)) if texts else (None, 0)


def _growth(model: Any) -> Growth | None:
    """From the shapes that the adapter's header tells of, with other numbers of domains and classes."""
    header = getattr(model, "header", None)
    if header is None or not hasattr(header, "shapes"):
        return None
    rank = _rank_a_round(model)
    wide = {name: tensor.element_size() for name, tensor in model.tensors.items()}
    trained = {name for name, tensor in model.tensors.items() if tensor.is_floating_point()}

    def sizes(domains: int, classes: int) -> tuple[int, int]:
        changed: dict[str, Any] = {
            "domains": [f"d{n}" for n in range(domains)],
            "classes": [f"c{n}" for n in range(classes)],
        }
        if rank:  # a round brings a domain
            lora = header.lora
            changed["lora"] = lora.model_copy(update={"rank": lora.rank + rank * (domains - len(header.domains))})
        shapes = header.model_copy(update=changed).shapes()
        parameters = sum(math.prod(shape) for name, shape in shapes.items() if name in trained or name not in wide)
        return parameters, sum(math.prod(shape) * wide.get(name, 4) for name, shape in shapes.items())

    known = header.shapes()
    kept = sum(t.numel() * t.element_size() for name, t in model.tensors.items() if name not in known)
    return findings.growth_of(
        sizes,
        domains=len(header.domains),
        classes=len(header.classes),
        head=sum(math.prod(shape[1:]) for name, shape in known.items() if name.startswith("head.")),
        extra_bytes=kept,
    )


def _rank_a_round(model: Any) -> int:
    """What each round adds to the rank of a LoRA whose strategy keeps earlier rounds' subspaces beside the new one."""
    from treering.training import strategy

    header = model.header
    config = getattr(getattr(model, "card", None), "config", None)
    if getattr(header, "lora", None) is None or config is None:
        return 0
    return int(config.rank) if strategy(config.strategy).past(model) else 0


def _columns(segment: Segment, names: Sequence[str], split: Any) -> Iterator[tuple[Any, ...]]:
    """The values of these columns, a tuple a record; a column that the corpus doesn't have is None."""
    there = [name for name in names if name in segment.schema.names]
    for batch in segment.scan(there, split):
        lists = [batch.column(name).to_pylist() if name in there else [None] * len(batch) for name in names]
        yield from zip(*lists, strict=True)


def _ranges(refs: Sequence[str]) -> list[str]:
    """Refs of snapshots, oldest first, with neighbours joined: `support@v1..v3`."""
    runs: list[list[str]] = []
    for ref in refs:
        if runs and int(runs[-1][-1].rpartition("@v")[2]) + 1 == int(ref.rpartition("@v")[2]):
            runs[-1].append(ref)
        else:
            runs.append([ref])
    return [run[0] if len(run) == 1 else f"{run[0]}..v{run[-1].rpartition('@v')[2]}" for run in runs]


def _only(domains: Sequence[str]) -> str | None:
    """The one domain of a slice; None when it holds several, or none that is named."""
    names = set(domains)
    return names.pop() if len(names) == 1 and names != {NO_DOMAIN} else None


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "replace"), digest_size=8).digest(), "big")


def _known(value: float) -> float | None:
    return None if math.isnan(value) else value
