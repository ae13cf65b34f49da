"""What changes while a run goes on: weights that move and sources that grow, settled before anybody plans with them.

Every `EVENT_EVERY` batches there is a checkpoint. For each one, in order and before any rank or worker plans a batch
from it on, rank 0 settles what changes there, and all others take it over. So a run is its lock and its events: nothing
depends on when a worker looked. Draws no rows (plan) and moves no batches (loader).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import TypeAdapter, ValidationError

from treering.errors import ConflictError, UsageError
from treering.mixing.lock import Event, GrowthEvent, MixLock, WeightEvent, pinned_sampling
from treering.mixing.plan import MAX_GROWTHS_PER_EPOCH, MixPlan
from treering.mixing.shares import MAX_UNITS, quantise
from treering.mixing.sources import SourceLike, TrainRows, is_growing
from treering.mixing.weights import regroup

__all__ = [
    "EVENT_EVERY",
    "Agree",
    "Course",
    "Stretch",
    "asked_for",
    "compact",
    "expand",
    "planned_batches",
    "same_course",
]

EVENT_EVERY = 64  # batches between two checkpoints

_EVENTS: TypeAdapter[list[Event]] = TypeAdapter(list[Event])

Agree = Callable[[bytes], bytes]  # what rank 0 passes, every rank gets


@dataclass(frozen=True, slots=True)
class Stretch:
    """What is settled of a run: before batch `until` nothing changes any more (None: ever)."""

    until: int | None
    stop: int | None  # batch to stop before; None: endless
    plan: MixPlan
    rows: tuple[TrainRows, ...]


class Course:
    """A run's lock as it stands, and what follows from it: plan, rows and length. Settles the events as it goes."""

    def __init__(
        self,
        lock: MixLock,
        sources: Sequence[SourceLike],
        rows: Sequence[TrainRows] | None = None,
        *,
        follow: bool = False,
        adaptive: bool = False,
    ) -> None:
        self.sources = tuple(sources)
        self.adaptive = adaptive or follow or lock.schedule is not None
        self._pinned = tuple(TrainRows.of(source) for source in sources) if rows is None else tuple(rows)
        for locked, source, found in zip(lock.sources, self.sources, self._pinned, strict=True):
            _check_rows(locked.pin.ref, locked.train_rows, found.size)
            if locked.sampling != pinned_sampling(source, found):
                raise ConflictError(
                    f"{locked.pin.ref} is drawn by other weights than the lock says",
                    code="content-changed",
                    hint="the records aren't those that were locked: make a new mix and lock that",
                )
        self._followed = [n for n, source in enumerate(sources) if is_growing(source.ref)] if follow else []
        if follow and not self._followed:
            raise UsageError(
                "there is nothing to follow: no source of the mix is live or new",
                code="nothing-to-follow",
                hint='add store.live("NAME") to the mix, or leave out follow=True',
            )
        for number in self._followed:
            if self.sources[number].sampling is not None:
                raise UsageError(
                    f"{self.sources[number].ref} is drawn by weight: what comes in later would change all weights",
                    code="weighted-growth",
                    hint="follow it uniformly, or leave out follow=True",
                )
        self._latest: dict[int, SourceLike] = {n: self.sources[n] for n in self._followed}
        self.wanted: tuple[int, ...] | None = None  # weights that were asked for, and hold from the next checkpoint on
        self.adopt(lock)

    def adopt(self, lock: MixLock) -> None:
        """Take on a lock of the same recipe with other events. Raises ConflictError when the rows they name are gone."""
        rows = list(self._pinned)
        for number, source in enumerate(self.sources):
            for event in lock.growths(number):
                source = source.up_to(event.end, event.annotations)
                rows[number] = TrainRows.of(source)
                _check_rows(source.ref, event.train_rows, rows[number].size)
                if number in self._latest:
                    self._latest[number] = source
        self._take(lock, tuple(rows))

    def _take(self, lock: MixLock, rows: tuple[TrainRows, ...]) -> None:
        plan = lock.plan(rows)
        self.total = planned_batches(lock, plan)
        self.lock, self.rows, self.plan = lock, rows, plan

    def source(self, number: int) -> SourceLike:
        """A source with what it has grown by, as far as this run knows."""
        source = self.sources[number]
        for event in self.lock.growths(number):
            source = source.up_to(event.end, event.annotations)
        return source

    @property
    def stretch(self) -> Stretch:
        """What is settled by now."""
        until = self.lock.decided + EVENT_EVERY if self.adaptive else None
        if until is not None and self.total is not None and until >= self.total:
            until = None
        return Stretch(until, self.total, self.plan, self.rows)

    def want(self, weights: Sequence[float]) -> None:
        """Ask for other weights from the next checkpoint on. Raises UsageError for weights that don't fit."""
        if isinstance(weights, str) or not isinstance(weights, Iterable):
            raise UsageError(f"weights is {weights!r}; it is a list of numbers", code="bad-weights")
        weights = list(weights)
        if len(weights) != len(self.sources):
            raise UsageError(f"{len(weights)} weights for {len(self.sources)} sources", code="weights-length")
        units = self._units(weights)
        for source, rows, unit in zip(self.sources, self.rows, units, strict=True):
            if unit and not rows.size:
                raise UsageError(
                    f"{source.ref} has no training rows to give weight to",
                    code="empty-source",
                    hint="ask again once some have come: with follow=True they are taken in at the next checkpoint",
                )
        if not units[self.lock.anchor]:
            raise UsageError(
                f"{self.sources[self.lock.anchor].ref} measures the epochs of this mix and can't lose all its weight",
                code="anchor-weight",
            )
        self.wanted = units

    def want_replay(self, share: float) -> None:
        """Ask for another share of replay: of what isn't live or new."""
        replayed = [not is_growing(source.ref) for source in self.sources]
        # The newest weights that tell the proportions within both groups: at a share of 0 one of them has none.
        every = [self.lock.units, *(change.units for change in self.plan.changes)]
        told = [units for units in every if any(u for u, old in zip(units, replayed, strict=True) if old)]
        units = (told or every)[-1]
        tokens = [source.tokens_per_row or 1.0 for source in self.lock.sources]
        self.want(regroup([u * t for u, t in zip(units, tokens, strict=True)], replayed, share))

    def settle(self, batch: int, agree: Agree | None, *, leads: bool) -> bool:
        """Settle every checkpoint up to `batch`; whether anything is settled that wasn't before.

        `agree` hands what the leading rank decides to all of them; None when there is one only.
        """
        before = self.lock.decided
        while self.stretch.until is not None and self.lock.decided + EVENT_EVERY <= batch:
            at = self.lock.decided + EVENT_EVERY
            events = self._decide(at) if leads else []
            self.wanted = None  # what the leading rank was asked for counts
            if agree is not None:
                told = _EVENTS.validate_json(agree(_EVENTS.dump_json(events)))
                if not leads:
                    self._follow_along(told)
                    events = told
            lock = self.lock.with_events([*self.lock.events, *events], at)
            if events:
                rows = tuple(
                    TrainRows.of(self._latest[n]) if any(e.kind == "growth" and e.source == n for e in events) else old
                    for n, old in enumerate(self.rows)
                )
                self._take(lock, rows)
            else:
                self.lock = lock
        return self.lock.decided != before

    def _follow_along(self, events: Sequence[Event]) -> None:
        """Look up the rows that another rank saw."""
        for event in events:
            if event.kind == "growth":
                source = self._latest[event.source].up_to(event.end, event.annotations)
                _check_rows(source.ref, event.train_rows, TrainRows.of(source).size)
                self._latest[event.source] = source

    def _decide(self, batch: int) -> list[Event]:
        events: list[Event] = []
        taken = self.plan.taken_before(batch)
        units = self.wanted
        if units is None and self.lock.schedule is not None:
            units = self._units(self.lock.schedule.at(batch), passing=True)
        if units is not None and units != (self.plan.changes[-1].units if self.plan.changes else self.lock.units):
            events.append(WeightEvent(batch=batch, units=units, taken=taken))
        for number in self._followed:
            event = self._growth(number, batch, taken[number])
            if event is not None:
                events.append(event)
        return events

    def _growth(self, number: int, batch: int, draw: int) -> GrowthEvent | None:
        plan = self.plan.sources[number]
        draw = plan.next_boundary(draw)
        # At most 16 growths an epoch: so each waits until a sixteenth of the source has been drawn since the last.
        last = plan.growth[-1] if plan.growth else None
        if last is not None and draw < last.draw + -(-last.size // MAX_GROWTHS_PER_EPOCH):
            return None
        if plan.growths_at(draw) >= MAX_GROWTHS_PER_EPOCH:
            return None
        source = self._latest[number].up_to()
        if source is self._latest[number]:
            return None
        size = TrainRows.of(source).size
        if size == self.rows[number].size:  # held-out records only
            return None
        self._latest[number] = source
        live = source.segments[-1]
        return GrowthEvent(
            batch=batch, source=number, draw=draw, train_rows=size, end=live.row_ids[1], annotations=live.said
        )

    def _units(self, weights: Sequence[float], *, passing: bool = False) -> tuple[int, ...]:
        tokens = [source.tokens_per_row or 1.0 for source in self.lock.sources]
        return quantise([weight / t for weight, t in zip(weights, tokens, strict=True)], passing=passing)


def planned_batches(lock: MixLock, plan: MixPlan) -> int | None:
    """Batches from the first to the last; None when endless.

    Raises UsageError when a source would be exhausted and `exhaustion` is "error", or "stop" and no batch is left.
    """
    total = None if lock.epochs is None else plan.batches_in(lock.epochs)
    if lock.exhaustion == "repeat":
        return total
    ends: dict[int, int] = {}
    weights = [lock.units, *(change.units for change in plan.changes)]
    for number, source in enumerate(plan.sources):
        # How often the anchor is passed over, `epochs` says.
        if number == lock.anchor or not any(units[number] for units in weights):
            continue
        once = source.draws_in(1)
        end = plan.batch_reaching(number, once)
        if end is not None and (total is None or end < total):
            ends[number] = end
    if not ends:
        return total
    first = min(ends, key=lambda number: ends[number])
    if lock.exhaustion == "error" or not ends[first]:
        ref, run = lock.refs[first], "without end" if total is None else f"of {total:,} batches"
        raise UsageError(
            f"{ref} holds {plan.sources[first].size:,} training rows, exhausted in batch {ends[first]:,} of a run {run}",
            code="source-exhausted",
            hint='give it less weight, or let it be repeated (exhaustion="repeat") or end the run ("stop")',
        )
    return ends[first]


def compact(events: Sequence[Event]) -> list[list[int]]:
    """Events as short rows of numbers, for a state: [batch, units…] or [-1, batch, source, draw, train rows, end, …]."""
    return [
        [event.batch, *event.units]
        if event.kind == "weights"
        else [-1, event.batch, event.source, event.draw, event.train_rows, event.end, event.annotations]
        for event in events
    ]


def expand(rows: Any, lock: MixLock) -> list[Event]:
    """The events of a state, for the mix of `lock`. Raises UsageError when they aren't events of it."""
    events: list[Event] = []
    try:
        for row in rows:
            if row[0] == -1:
                _, batch, source, draw, size, end, said = row
                events.append(
                    GrowthEvent(batch=batch, source=source, draw=draw, train_rows=size, end=end, annotations=said)
                )
            else:
                taken = lock.with_events(events, 0).plan().taken_before(row[0])
                events.append(WeightEvent(batch=row[0], units=tuple(row[1:]), taken=taken))
    except (TypeError, ValueError, IndexError, OverflowError, ValidationError, UsageError) as exc:
        raise UsageError("the events of this state aren't those of a treering loader", code="bad-state") from exc
    return events


def asked_for(units: Any, lock: MixLock) -> tuple[int, ...] | None:
    """The weights of a state that nobody had settled yet. Raises UsageError when they aren't weights of this mix."""
    if units is None:
        return None
    fits = isinstance(units, list) and len(units) == len(lock.sources)
    if not fits or not all(type(unit) is int and 0 <= unit <= MAX_UNITS for unit in units) or not units[lock.anchor]:
        raise UsageError("the weights of this state aren't those of a treering loader", code="bad-state")
    return tuple(units)


def same_course(mine: MixLock, events: Sequence[Event], decided: int) -> MixLock:
    """The lock of the run that went further, when one of the two is how the other began.

    Raises ConflictError when neither is.
    """
    shorter, further = (mine.events, tuple(events)) if len(mine.events) <= len(events) else (tuple(events), mine.events)
    settled = mine.decided if shorter is mine.events else decided
    ahead = further[len(shorter) :]
    if further[: len(shorter)] != shorter or (ahead and ahead[0].batch <= settled):
        raise ConflictError(
            f"the state's {len(events)} events and the {len(mine.events)} of this loader's lock are of different runs",
            code="state-mismatch",
            hint="make the loader from the lock that the run was started with",
        )
    return mine.with_events(further, max(mine.decided, decided))


def _check_rows(ref: str, expected: int, found: int) -> None:
    if expected != found:
        raise ConflictError(
            f"{ref} has {found:,} training rows, the lock says {expected:,}",
            code="content-changed",
            hint="the records aren't those that were locked: make a new mix and lock that",
        )
