"""Random histories: the registry against a model that keeps the states in a list instead of folding events."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from treering.errors import CheckFailedError, NotFoundError, StoreError
from treering.evaluation import GatePolicy, check
from treering.registry import AdapterEvent, Registry, fold

numbers = st.integers(1, 6)


class RegistryMachine(RuleBasedStateMachine):
    new_store: type

    def __init__(self) -> None:
        super().__init__()
        self.registry = Registry(self.new_store(), "support")
        self.statuses: dict[int, str] = {}
        self.stack: list[int] = []  # production history, the present one last; None: nothing in production
        self.empty = True  # nothing in production although the stack may hold older ones
        self.passed: dict[int, int | None] = {}  # adapter -> the production adapter it passed against

    @property
    def production(self) -> int | None:
        return None if self.empty else self.stack[-1]

    @rule()
    def add(self) -> None:
        if len(self.statuses) < 6:
            record = self.registry.add(weights=b"w", card={})
            self.statuses[record.number] = "candidate"

    @rule(n=numbers, passed=st.booleans())
    def judge(self, n: int, passed: bool) -> None:
        if n not in self.statuses:
            return
        baseline = None if self.production is None else f"support:{self.production}"
        said = check({"s": 1.0 if passed else 0.0}, {}, GatePolicy(min_score=0.5), baseline=baseline)
        self.registry.record_verdict(f"support:{n}", said)
        self.passed.pop(n, None)
        if passed:
            self.passed[n] = self.production
        if self.statuses[n] in ("candidate", "refused"):
            self.statuses[n] = "candidate" if passed else "refused"

    @rule(n=numbers)
    def promote(self, n: int) -> None:
        ref = f"support:{n}"
        if n not in self.statuses:
            with pytest.raises(NotFoundError):
                self.registry.promote(ref)
        elif n == self.production:
            self.registry.promote(ref)
        elif n not in self.passed or (self.production is not None and self.passed[n] != self.production):
            with pytest.raises(CheckFailedError):
                self.registry.promote(ref)
        else:
            self.registry.promote(ref)
            if self.production is not None:
                self.statuses[self.production] = "retired"
            elif self.stack and self.stack[-1] == n:
                self.stack.pop()
            self.stack.append(n)
            self.empty = False
            self.statuses[n] = "production"

    @rule()
    def rollback(self) -> None:
        earlier = self.stack if self.empty else self.stack[:-1]
        if not earlier:
            with pytest.raises(NotFoundError):
                self.registry.rollback()
            return
        if self.production is not None:
            self.statuses[self.production] = "retired"
            self.passed.pop(self.production, None)
        self.stack, self.empty = earlier, False
        assert self.registry.rollback().number == earlier[-1]
        self.statuses[earlier[-1]] = "production"

    @rule(n=numbers)
    def retire(self, n: int) -> None:
        if n not in self.statuses:
            return
        self.registry.retire(f"support:{n}")
        if n == self.production:
            self.stack.pop()
            self.empty = True
        if self.statuses[n] != "retired":
            self.passed.pop(n, None)
        self.statuses[n] = "retired"

    @invariant()
    def statuses_are_the_models(self) -> None:
        state = self.registry.state()
        assert dict(state.statuses) == self.statuses
        assert state.production == self.production
        assert state.past == tuple(self.stack if self.empty else self.stack[:-1])

    @invariant()
    def at_most_one_is_in_production_and_rollback_leads_elsewhere(self) -> None:
        state = self.registry.state()
        assert sum(status == "production" for status in state.statuses.values()) == (state.production is not None)
        assert state.production is None or not state.past or state.past[-1] != state.production

    @invariant()
    def the_order_events_are_listed_in_does_not_matter(self) -> None:
        events = self.registry.events()
        assert fold(self.statuses, events[::-1]) == fold(self.statuses, events)


def test_any_history_of_calls_ends_in_the_models_state(new_store) -> None:
    RegistryMachine.new_store = new_store
    run_state_machine_as_test(
        RegistryMachine, settings=settings(max_examples=60, stateful_step_count=25, deadline=None)
    )


@pytest.fixture
def history(new_store) -> list[AdapterEvent]:
    """Two promotions and a rollback."""
    registry = Registry(new_store(), "support")
    for baseline in (None, "support:1"):
        ref = registry.add(weights=b"w", card={}).ref
        registry.record_verdict(ref, check({"s": 1.0}, {}, baseline=baseline))
        registry.promote(ref)
    registry.rollback()
    return registry.events()


def test_a_history_with_a_hole_or_a_double_is_refused(history: list[AdapterEvent]) -> None:
    assert fold([1, 2], history).production == 1
    for position, event in enumerate(history):
        if position < len(history) - 1:  # without its last event a history is only shorter
            with pytest.raises(StoreError, match="missing or there twice"):
                fold([1, 2], history[:position] + history[position + 1 :])
        with pytest.raises(StoreError, match="missing or there twice"):
            fold([1, 2], [*history, event])


def test_an_event_of_an_adapter_that_is_not_there_is_refused(history: list[AdapterEvent]) -> None:
    with pytest.raises(StoreError, match="names adapter 2"):
        fold([1], history)


def test_a_promotion_that_no_gate_allowed_is_refused(history: list[AdapterEvent]) -> None:
    forged = [history[1].model_copy(update={"number": 1})]
    with pytest.raises(StoreError, match="hadn't passed a gate"):
        fold([1, 2], forged)
