"""PURE. From a corpus's adapter numbers and its events to who is in production, and back to who was before.

No status is stored anywhere: it is what the events add up to. So two writers can only race for the next event number.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType

from treering.errors import StoreError

from .records import AdapterEvent, Status

__all__ = ["RegistryState", "Status", "fold"]


@dataclass(frozen=True, slots=True)
class RegistryState:
    """What the events add up to. At most one adapter is in production, and rollback never leads to that same one."""

    statuses: Mapping[int, Status]  # a fresh baseline is "baseline" until it is promoted
    production: int | None = None
    past: tuple[int, ...] = ()  # adapters that rollback goes back to, the next one last
    verdicts: Mapping[int, AdapterEvent] = field(default_factory=dict)  # the latest one of each adapter
    eligible: frozenset[int] = frozenset()  # passed a gate since they were last taken out of production
    events: int = 0  # number of the last event

    @property
    def candidate(self) -> int | None:
        """The newest adapter that was never promoted or retired, refused or not.

        A refused one counts: otherwise "promote the candidate" would, right after a refusal, quietly take an older one.
        """
        open_ones = [n for n, status in self.statuses.items() if status in ("candidate", "refused")]
        return max(open_ones, default=None)

    @property
    def leading(self) -> int | None:
        """The adapter in production, else the newest one that wasn't made to compare with."""
        if self.production is not None:
            return self.production
        return max((n for n, status in self.statuses.items() if status != "baseline"), default=None)


def fold(
    adapters: Iterable[int], events: Sequence[AdapterEvent], baselines: Container[int] = frozenset()
) -> RegistryState:
    """State after `events`, in any order given. Raises StoreError for a history that no registry can have written.

    `baselines`: adapters that were made to compare with. They are no candidates, but a gate may pass them like others.
    """
    statuses: dict[int, Status] = {n: "baseline" if n in baselines else "candidate" for n in sorted(adapters)}
    production: int | None = None
    past: list[int] = []
    verdicts: dict[int, AdapterEvent] = {}
    eligible: set[int] = set()
    ordered = sorted(events, key=lambda event: event.number)
    for position, event in enumerate(ordered, start=1):
        n = event.adapter
        if event.number != position:
            raise _damaged(f"event {position} is missing or there twice")
        if n not in statuses:
            raise _damaged(f"event {event.number} names adapter {n}, which isn't there")
        if event.event == "verdict":
            if event.verdict is None:
                raise _damaged(f"event {event.number} holds no verdict")
            verdicts[n] = event
            passed = event.verdict.passed
            (eligible.add if passed else eligible.discard)(n)
            if statuses[n] in ("candidate", "refused"):
                statuses[n] = "candidate" if passed else "refused"
            continue
        if event.previous != production:
            raise _damaged(f"event {event.number} expects adapter {event.previous} in production, it was {production}")
        if event.event == "promote":
            if n == production or n not in eligible:
                raise _damaged(f"event {event.number} promotes adapter {n}, which hadn't passed a gate")
            if production is not None:
                statuses[production] = "retired"
                past.append(production)
            elif past and past[-1] == n:  # b was retired and is back: rollback must lead past it, not to it
                past.pop()
        elif event.event == "rollback":
            if n not in past:
                raise _damaged(f"event {event.number} rolls back to adapter {n}, which wasn't in production before")
            if production is not None:
                statuses[production] = "retired"
                eligible.discard(production)
            while past.pop() != n:
                pass
        else:  # retire
            if statuses[n] == "retired":
                raise _damaged(f"event {event.number} retires adapter {n} again")
            statuses[n] = "retired"
            eligible.discard(n)
            if n == production:
                production = None
            continue
        production = n
        statuses[n] = "production"
    return RegistryState(
        statuses=MappingProxyType(statuses),
        production=production,
        past=tuple(past),
        verdicts=MappingProxyType(verdicts),
        eligible=frozenset(eligible),
        events=len(ordered),
    )


def _damaged(what: str) -> StoreError:
    return StoreError(
        f"the registry's history doesn't add up: {what}",
        code="registry-damaged",
        hint="an object under adapters/…/events/ was changed or removed by hand",
    )
