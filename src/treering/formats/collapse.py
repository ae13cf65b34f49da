"""Calls of a conversation that each repeat its history, as the few conversations they are.

A call of a model holds everything said before it: n turns would store n²/2 messages. Of each conversation only those calls
become records that no other call continues: one, or one per branch. Which they are doesn't depend on the order in which calls
come. Reasoning that later calls leave out is put back, and what was said about any call of a conversation (scores) is said
about its record. Memory is bounded: the conversations that were longest without a call are given early. Pure.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from jiter import from_json
from pydantic_core import to_json

from treering.formats.base import Found, Outcome, Passed
from treering.schema.fields import dump_json
from treering.schema.strict_json import parse_json

__all__ = ["Call", "Collapse", "Word", "annotations_of"]

#: Bytes of input whose conversations are held back; as Python objects they take a few times as much.
HELD_BYTES = 32 << 20
#: Scores that wait for the call they are about.
HELD_WORDS = 1_000_000

REPEATED = "calls that a later one repeats"
TWICE = "calls sent twice"
OF_AGENTS = "agents' spans whose calls are kept"
UNKNOWN = "scores of calls that aren't here"


@dataclass(frozen=True, slots=True)
class Word:
    """What somebody said about a call, a trace or a session: a score, a label, or both."""

    name: str
    score: float | None = None
    label: str | None = None
    comment: str | None = None
    by: str | None = None
    correction: Any = None  # what the answer should have been, as the format has it

    @property
    def said(self) -> Any:
        """The shortest value that says it all."""
        given = {"score": self.score, "label": self.label, "comment": self.comment, "correction": self.correction}
        given = {key: value for key, value in given.items() if value is not None}
        return next(iter(given.values())) if len(given) == 1 else given


@dataclass(slots=True)
class Call:
    """One call of a model: its record, all of the conversation that it holds, and where it stands."""

    record: dict[str, Any]  # a chat record; its messages end with what the call answered
    conversation: str  # calls are compared within it
    at: int  # when it ended, in any unit that is the same for the format; orders calls
    line: int
    size: int  # bytes of input it came from
    targets: tuple[str, ...] = ()  # what words may name it by, beside its record's id: "trace:…", "session:…"
    rank: int = 0  # of two that say the same the one of lower rank is kept
    is_summary: bool = False  # repeats what calls say, and counts only where there are none: an agent's span
    outcome: dict[str, Any] = field(default_factory=dict)  # what came of it: {"status": "error", "error": …}


@dataclass(slots=True)
class _Said:
    line: int
    word: Word
    is_heard: bool = False


class Collapse:
    """Takes calls in any order; gives those that no other call of their conversation continues."""

    def __init__(self, held_bytes: int = HELD_BYTES) -> None:
        self._held = held_bytes
        self._size = 0
        self._conversations: OrderedDict[str, _Conversation] = OrderedDict()  # the longest without a call first
        self._words: dict[str, list[_Said]] = {}
        self._waiting = 0

    def add(self, call: Call) -> Iterator[Outcome]:
        """Take a call. Gives what became of it if it says nothing new, and conversations that had to make room."""
        conversation = self._conversations.get(call.conversation)
        if conversation is None:
            conversation = self._conversations[call.conversation] = _Conversation()
        self._conversations.move_to_end(call.conversation)
        before = conversation.size
        for line, why in conversation.add(call):
            yield Passed(line, why)
        self._size += conversation.size - before
        while self._size > self._held and self._conversations:
            yield from self._give(next(iter(self._conversations)))

    def say(self, target: str, word: Word, line: int) -> Iterator[Outcome]:
        """Take a word about a call: by the id of its record, or by one of its `targets`. It may come before the call."""
        if self._waiting >= HELD_WORDS:
            yield Passed(line, UNKNOWN)
            return
        self._words.setdefault(target, []).append(_Said(line, word))
        self._waiting += 1

    def finish(self) -> Iterator[Outcome]:
        """Give everything that is held."""
        while self._conversations:
            yield from self._give(next(iter(self._conversations)))
        for words in self._words.values():
            yield from (Passed(one.line, UNKNOWN) for one in words if not one.is_heard)
        self._words.clear()
        self._waiting = 0

    def _give(self, name: str) -> Iterator[Outcome]:
        conversation = self._conversations.pop(name)
        self._size -= conversation.size
        for call, targets in conversation.records():
            words: list[Word] = []
            for target in dict.fromkeys(targets):
                for one in self._words.get(target, ()):
                    one.is_heard = True
                    words.append(one.word)
            yield Found(call.record, call.line, annotations_of(words, call.outcome))
        yield from (Passed(line, why) for line, why in conversation.left_over())


def annotations_of(words: Iterable[Word], outcome: Mapping[str, Any] | None = None) -> tuple[dict[str, Any], ...]:
    """What is to be said of a record: `outcome` with all scores by name, `quality` when there is just one number.

    Words of one name and different content become a list. They are put in an order of their own: the order in which they
    came says nothing.
    """
    said: dict[str, list[Any]] = {}
    numbers: list[float] = []
    by: set[str] = set()
    seen: set[str] = set()
    for word in sorted(words, key=_order):
        key = _order(word)
        if key in seen:
            continue
        seen.add(key)
        said.setdefault(word.name, []).append(word.said)
        if word.score is not None:
            numbers.append(word.score)
        if word.by:
            by.add(word.by)
    whole = dict(outcome or {})
    if said:
        whole["scores"] = {name: values[0] if len(values) == 1 else values for name, values in said.items()}
    if not whole:
        return ()
    annotation: dict[str, Any] = {"outcome": whole}
    if len(numbers) == 1:
        annotation["quality"] = numbers[0]
    if by:
        annotation["by"] = ", ".join(sorted(by))
    return (annotation,)


def _order(word: Word) -> str:
    return dump_json([word.name, word.score, word.label, word.comment, word.by, word.correction], sort_keys=True)


@dataclass(slots=True)
class _Leaf:
    call: Call  # without its messages:
    messages: bytes  # as JSON text, a tenth of what they take as objects
    chain: list[bytes]  # chain[i] stands for the messages up to and with the i-th


def _packed(call: Call) -> bytes:
    """A call's messages as text, taken out of its record."""
    return to_json(call.record.pop("messages"))


class _Tree:
    """Calls of one conversation; of those that are each other's beginning only the longest are held."""

    def __init__(self) -> None:
        self.size = 0  # bytes of input that the held calls came from
        self.leaves: dict[bytes, _Leaf] = {}  # by what stands for all their messages
        self.inner: dict[bytes, int] = {}  # how many leaves have it before their end
        self.ends: dict[bytes, set[str]] = {}  # what words may name the calls by that end there, held or not
        self.thoughts: dict[bytes, tuple[int, str, str]] = {}  # the first reasoning of what was said there

    def add(self, call: Call) -> Iterator[tuple[int, str]]:
        messages = call.record["messages"]
        chain = _chain(messages)
        end = chain[-1]
        name = str(call.record.get("id"))
        self.ends.setdefault(end, set()).update((name, *call.targets))
        for position, one in enumerate(messages):
            if thought := one.get("reasoning_content"):
                mark = (call.at, name, thought)
                if mark < self.thoughts.get(chain[position], (call.at + 1, "", "")):
                    self.thoughts[chain[position]] = mark
        held = self.leaves.get(end)
        if held is not None:
            loser, winner = sorted((held.call, call), key=_preference, reverse=True)
            self.size += winner.size - held.call.size
            if winner is call:
                held.call, held.messages = call, _packed(call)
            yield loser.line, TWICE if loser.record.get("id") == winner.record.get("id") else REPEATED
            return
        if end in self.inner:
            yield call.line, REPEATED
            return
        for step in chain[:-1]:
            if (shorter := self.leaves.pop(step, None)) is not None:
                self._count(shorter.chain, -1)
                self.size -= shorter.call.size
                yield shorter.call.line, REPEATED
        self.leaves[end] = _Leaf(call, _packed(call), chain)
        self.size += call.size
        self._count(chain, 1)

    def _count(self, chain: Sequence[bytes], by: int) -> None:
        for step in chain[:-1]:
            count = self.inner.get(step, 0) + by
            if count:
                self.inner[step] = count
            else:
                del self.inner[step]

    def records(self) -> Iterator[tuple[Call, list[str]]]:
        for leaf in sorted(self.leaves.values(), key=lambda one: (one.call.at, str(one.call.record.get("id")))):
            messages = []
            targets: list[str] = []
            for one, step in zip(from_json(leaf.messages), leaf.chain, strict=True):
                if one["role"] == "assistant" and not one.get("reasoning_content") and step in self.thoughts:
                    one["reasoning_content"] = self.thoughts[step][2]
                messages.append(one)
                targets += sorted(self.ends.get(step, ()))
            leaf.call.record["messages"] = messages
            yield leaf.call, targets


_NONE = _Tree()  # nothing is ever put into it


class _Conversation:
    """The calls of one conversation. Many have just one, and what there is to compare is made for the second."""

    def __init__(self) -> None:
        self._only: tuple[Call, bytes] | None = None
        self._calls: _Tree | None = None
        self._summaries = _NONE
        self.size = 0

    def add(self, call: Call) -> Iterator[tuple[int, str]]:
        if self._calls is None and self._only is None:
            self.size = call.size
            self._only = call, _packed(call)
            return
        if self._calls is None:
            self._calls, self._summaries = _Tree(), _Tree()
            assert self._only is not None
            first, messages = self._only
            first.record["messages"] = from_json(messages)
            self._only = None
            yield from self._tree(first).add(first)
        yield from self._tree(call).add(call)
        self.size = self._calls.size + self._summaries.size

    def _tree(self, call: Call) -> _Tree:
        assert self._calls is not None
        return self._summaries if call.is_summary else self._calls

    def records(self) -> Iterator[tuple[Call, list[str]]]:
        if self._calls is None:
            assert self._only is not None
            call, messages = self._only
            call.record["messages"] = from_json(messages)
            yield call, [str(call.record.get("id")), *call.targets]
            return
        given = False
        summary = {name for names in self._summaries.ends.values() for name in names}
        for call, targets in self._calls.records():
            given = True
            yield call, [*targets, *sorted(summary)]  # what was said of the agent's whole run is said of its calls
        if not given:
            yield from self._summaries.records()

    def left_over(self) -> Iterator[tuple[int, str]]:
        if self._calls is not None and self._calls.leaves:
            yield from ((leaf.call.line, OF_AGENTS) for leaf in self._summaries.leaves.values())


def _preference(call: Call) -> tuple[int, int, str, str]:
    return call.rank, call.at, str(call.record.get("id")), dump_json(call.outcome, sort_keys=True)


def _chain(messages: Sequence[Mapping[str, Any]]) -> list[bytes]:
    chain: list[bytes] = []
    last = b""
    for one in messages:
        last = hashlib.blake2b(last + _same(one), digest_size=16).digest()
        chain.append(last)
    return chain


def _same(one: Mapping[str, Any]) -> bytes:
    """What must be equal for two messages to be the same: not reasoning, which later calls leave out, nor names."""
    calls = [
        [call.get("id"), call["function"]["name"], _canonical(call["function"]["arguments"])]
        for call in one.get("tool_calls") or ()
    ]
    parts = [one["role"], (one.get("content") or "").strip(), one.get("tool_call_id"), calls]
    return repr(parts).encode("utf-8", "surrogatepass")


def _canonical(arguments: str) -> str:
    """Arguments in one spelling: programs parse them and write them anew when they repeat a call."""
    try:
        return dump_json(parse_json(arguments), sort_keys=True)
    except ValueError:
        return arguments
