"""Repeated history: what becomes a record doesn't depend on the order of calls, and memory is bounded."""

from __future__ import annotations

import dataclasses
from collections import Counter
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.formats.speaking import Taken
from treering.formats import Found, Passed
from treering.formats import collapse as module
from treering.formats.collapse import Call, Collapse, Word, annotations_of


def said(role: str, text: str, reasoning: str | None = None) -> dict[str, Any]:
    return {"role": role, "content": text, **({"reasoning_content": reasoning} if reasoning else {})}


def call(name: str, messages: list[dict[str, Any]], *, at: int = 0, conversation: str = "c", **more: Any) -> Call:
    record = {"id": name, "messages": [dict(one) for one in messages]}
    return Call(record=record, conversation=conversation, at=at, line=1, size=100, **more)


def collapsed(calls: list[Call], words: list[tuple[str, Word]] = [], held: int = 1 << 20) -> Taken:  # noqa: B006
    def outcomes() -> Any:
        collapse = Collapse(held)
        for one in calls:
            yield from collapse.add(one)
        for target, word in words:
            yield from collapse.say(target, word, 1)
        yield from collapse.finish()

    return Taken(outcomes())


def turns(count: int, think: bool = True) -> list[Call]:
    """Calls of one conversation, each repeating all before it, without the reasoning of earlier answers."""
    history: list[dict[str, Any]] = []
    calls = []
    for i in range(count):
        history.append(said("user", f"question {i}"))
        calls.append(
            call(f"call{i}", [*history, said("assistant", f"answer {i}", f"thought {i}" if think else None)], at=i)
        )
        history.append(said("assistant", f"answer {i}"))
    return calls


def test_of_a_conversation_only_the_last_call_becomes_a_record() -> None:
    taken = collapsed(turns(5))
    assert taken.one["id"] == "call4"
    assert len(taken.messages) == 10
    assert taken.passed == {"calls that a later one repeats": 4}


def test_reasoning_that_later_calls_leave_out_is_put_back() -> None:
    assert [one.get("reasoning_content") for one in collapsed(turns(3)).messages if one["role"] == "assistant"] == [
        "thought 0",
        "thought 1",
        "thought 2",
    ]


def test_a_call_sent_twice_adds_nothing() -> None:
    calls = turns(2)
    taken = collapsed([*calls, *turns(2)])
    assert len(taken.found) == 1
    assert taken.passed["calls sent twice"] + taken.passed["calls that a later one repeats"] == 3


def test_both_branches_of_a_conversation_are_kept() -> None:
    start = [said("user", "hi")]
    one = call("one", [*start, said("assistant", "a"), said("user", "x"), said("assistant", "b")], at=2)
    other = call("other", [*start, said("assistant", "a"), said("user", "y"), said("assistant", "c")], at=3)
    first = call("first", [*start, said("assistant", "a", "why")], at=1)
    for order in ([first, one, other], [one, other, first], [one, first, other]):
        taken = collapsed([call(str(o.record["id"]), o.record["messages"], at=o.at) for o in order])
        assert [r["id"] for r in taken.records] == ["one", "other"]
        assert all(r["messages"][1]["reasoning_content"] == "why" for r in taken.records)


def test_two_conversations_that_begin_alike_are_two_records() -> None:
    short = call("short", [said("user", "hi"), said("assistant", "hello")], conversation="a")
    long = call("long", [said("user", "hi"), said("assistant", "hello"), said("user", "?"), said("assistant", "!")],
                conversation="b")  # fmt: skip
    assert len(collapsed([short, long]).found) == 2


def test_arguments_in_another_spelling_are_the_same_call() -> None:
    def asks(arguments: str) -> dict[str, Any]:
        function = {"name": "f", "arguments": arguments}
        return {"role": "assistant", "tool_calls": [{"id": "c", "type": "function", "function": function}]}

    first = call("first", [said("user", "u"), asks('{"a": 1, "b": 2}')])
    second = call("second", [said("user", "u"), asks('{"b":2,"a":1}'), said("user", "go on")], at=1)
    assert collapsed([first, second]).one["id"] == "second"


def test_an_agents_span_counts_only_where_no_call_is() -> None:
    agent = [said("user", "u"), said("assistant", "done")]
    steps = [said("user", "u"), said("assistant", "step"), said("user", "result"), said("assistant", "done")]
    for order in (1, -1):
        calls = [call("agent", agent, is_summary=True), call("call", steps)][::order]
        taken = collapsed(calls)
        assert taken.one["id"] == "call"
        assert taken.passed == {"agents' spans whose calls are kept": 1}
    assert collapsed([call("agent", agent, is_summary=True)]).one["id"] == "agent"


def test_what_is_said_about_any_call_is_said_about_its_conversation() -> None:
    word = Word("helpful", score=0.5, label="fine", by="judge")
    taken = collapsed(turns(3), [("call0", word), ("nobody", Word("x", score=1.0))])
    assert taken.said == [
        ({"outcome": {"scores": {"helpful": {"score": 0.5, "label": "fine"}}}, "quality": 0.5, "by": "judge"},)
    ]
    assert taken.passed["scores of calls that aren't here"] == 1


def test_two_numbers_are_no_quality() -> None:
    (said_of_it,) = annotations_of([Word("a", score=1.0), Word("b", score=0.0), Word("a", score=1.0)])
    assert said_of_it == {"outcome": {"scores": {"a": 1.0, "b": 0.0}}}


def test_memory_is_bounded_by_giving_the_oldest_conversations_early() -> None:
    collapse = Collapse(1_000)
    most = 0
    found: list[str] = []
    for i in range(200):
        for one in collapse.add(call(f"call{i}", [said("user", "u"), said("assistant", str(i))], conversation=str(i))):
            assert isinstance(one, Found)
            found.append(one.record["id"])
        most = max(most, collapse._size)
    assert most <= 1_000
    assert found == [f"call{i}" for i in range(len(found))]
    rest = [one.record["id"] for one in collapse.finish() if isinstance(one, Found)]
    assert found + rest == [f"call{i}" for i in range(200)]


def test_a_conversation_that_never_ends_is_bounded_too() -> None:
    collapse = Collapse(1_000)
    found = 0
    for i in range(100):
        found += sum(isinstance(one, Found) for one in collapse.add(call(f"{i}", [said("assistant", str(i))], at=i)))
        assert collapse._size <= 1_000
    assert found + sum(isinstance(one, Found) for one in collapse.finish()) == 100


@st.composite
def conversations(draw: st.DrawFn) -> list[Call]:
    """Calls over a small alphabet of messages, so that they continue, repeat and branch from each other."""
    texts = st.sampled_from("ab")
    calls = []
    for number in range(draw(st.integers(1, 7))):
        messages = [
            said(
                "assistant" if i % 2 else "user",
                draw(texts),
                draw(st.sampled_from([None, "t1", "t2"])) if i % 2 else None,
            )
            for i in range(draw(st.integers(1, 5)))
        ]
        calls.append(
            call(
                f"call{number}",
                messages,
                at=draw(st.integers(0, 2)),
                conversation=draw(st.sampled_from("xy")),
                is_summary=draw(st.booleans()) and draw(st.booleans()),
                rank=draw(st.integers(0, 1)),
                targets=(f"t{number % 2}",),
            )
        )
    return calls


@settings(max_examples=300, deadline=None)
@given(conversations(), st.randoms(use_true_random=False))
def test_any_order_of_the_calls_collapses_to_the_same_records(calls: list[Call], chance: Any) -> None:
    def outcome(order: list[Call]) -> Any:
        fresh = [
            call(str(o.record["id"]), o.record["messages"], at=o.at, conversation=o.conversation, targets=o.targets,
                 is_summary=o.is_summary, rank=o.rank)
            for o in order
        ]  # fmt: skip
        words = [("t0", Word("w", score=1.0)), ("call1", Word("v", label="l"))]
        taken = collapsed(fresh, words)
        kept = sorted((repr(sorted(r.items())), a) for r, a in zip(taken.records, taken.said, strict=True))
        return [repr(one) for one in kept], sum(taken.passed.values())

    shuffled = list(calls)
    chance.shuffle(shuffled)
    assert outcome(shuffled) == outcome(calls)


@settings(max_examples=200, deadline=None)
@given(conversations(), st.sampled_from([0, 100, 250]))
def test_messages_held_as_text_come_to_the_same_records(calls: list[Call], loose: int) -> None:
    def outcome(bytes_as_objects: int) -> Any:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(module, "LOOSE_BYTES", bytes_as_objects)
            fresh = [
                dataclasses.replace(one, record={**one.record, "messages": [dict(m) for m in one.record["messages"]]})
                for one in calls
            ]
            taken = collapsed(fresh)
        return taken.records, taken.said, taken.passed

    assert outcome(loose) == outcome(1 << 20)


def test_beyond_a_bound_messages_are_held_as_text(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LOOSE_BYTES", 250)
    packed: list[Any] = []
    to_json = module.to_json
    monkeypatch.setattr(module, "to_json", lambda messages: packed.append(messages) or to_json(messages))
    calls = [call(str(i), [said("user", "hi"), said("assistant", str(i))], conversation=str(i), at=i) for i in range(4)]
    assert [one["messages"][1]["content"] for one in collapsed(calls).records] == ["0", "1", "2", "3"]
    assert [one[1]["content"] for one in packed] == ["0", "1"]  # the oldest


def test_calls_may_share_messages() -> None:
    question, answer = said("user", "why?"), said("assistant", "because")
    thinking = call("a", [question, said("assistant", "because", "hm")])
    one = call("b", [question, answer, said("user", "and?"), said("assistant", "so")], at=1)
    other = call("c", [question, answer, said("user", "or?"), said("assistant", "no")], at=2, conversation="d")
    one.record["messages"][1] = other.record["messages"][1] = answer
    taken = collapsed([thinking, one, other])
    assert [record["messages"][1].get("reasoning_content") for record in taken.records] == ["hm", None]
    assert "reasoning_content" not in answer


@settings(max_examples=200, deadline=None)
@given(conversations())
def test_every_message_of_every_call_is_in_some_record(calls: list[Call]) -> None:
    calls = [one for one in calls if not one.is_summary]
    texts = [(one.conversation, [m["content"] for m in one.record["messages"]]) for one in calls]
    taken = collapsed(calls)
    kept = [[m["content"] for m in record["messages"]] for record in taken.records]
    for _, one in texts:
        assert any(whole[: len(one)] == one for whole in kept)
    assert len(taken.found) + sum(taken.passed[why] for why in ("calls that a later one repeats", "calls sent twice")) == len(calls)  # fmt: skip


def test_a_passed_call_says_why() -> None:
    outcomes = list(Collapse().say("nobody", Word("x", score=1.0), 3))
    assert outcomes == []
    collapse = Collapse()
    list(collapse.say("nobody", Word("x", score=1.0), 3))
    assert Counter(type(one) for one in collapse.finish()) == {Passed: 1}
