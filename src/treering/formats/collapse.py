"""Calls of a conversation that each repeat its history, as the few conversations they are.

A call of a model holds everything said before it: n turns would store n²/2 messages. Of each conversation only those calls
become records that no other call continues: one, or one per branch. Which they are doesn't depend on the order in which calls
come. Reasoning that later calls leave out is put back, and what was said about any call of a conversation (scores) is said
about its record. Memory is bounded: the conversations that were longest without a call are given early. Pure.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from jiter import from_json
from pydantic_core import to_json

from treering.formats.base import Found, Outcome, Passed
from treering.schema.fields import dump_json
from treering.schema.strict_json import parse_json

__all__ = ["Call", "Collapse", "Word", "annotations_of"]

#: Bytes of input whose conversations are held back; as Python objects they take a few times as much.
HELD_BYTES = 32 << 20
#: Of these so many bytes as Python objects; the messages of the rest are text again.
LOOSE_BYTES = 4 << 20
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

    #: A chat record, or its `id` and `messages` alone when `late` makes the rest; the messages end with what the call answered.
    record: dict[str, Any]
    conversation: str  # calls are compared within it
    at: int  # when it ended, in any unit that is the same for the format; orders calls
    line: int
    size: int  # bytes of input it came from
    targets: tuple[str, ...] = ()  # what words may name it by, beside its record's id: "trace:…", "session:…"
    rank: int = 0  # of two that say the same the one of lower rank is kept
    is_summary: bool = False  # repeats what calls say, and counts only where there are none: an agent's span
    outcome: dict[str, Any] = field(default_factory=dict)  # what came of it: {"status": "error", "error": …}
    #: Makes the record without its messages. Most calls are repeated by a later one, and nobody needs theirs. Must not fail.
    late: Callable[[], dict[str, Any]] | None = None

    def complete(self) -> None:
        """Make the rest of the record."""
        if self.late is not None:
            self.record, self.late = {**self.late(), **self.record}, None


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
        self._loose: OrderedDict[str, int] = (
            OrderedDict()
        )  # those that hold objects, and of how many bytes; in the same order
        self._loose_size = 0
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
        self._pack(call.conversation, conversation.loose)
        while self._size > self._held and self._conversations:
            yield from self._give(next(iter(self._conversations)))

    def _pack(self, name: str, loose: int) -> None:
        """Note how much a conversation holds as objects, and turn what was longest without a call into text."""
        self._loose_size += loose - self._loose.pop(name, 0)
        self._loose[name] = loose
        while self._loose_size > LOOSE_BYTES:
            oldest, size = self._loose.popitem(last=False)
            self._loose_size -= size
            self._conversations[oldest].pack()

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
        self._loose_size -= self._loose.pop(name, 0)
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
    messages: list[dict[str, Any]] | bytes  # or as JSON text, a tenth of what they take as objects
    chain: list[bytes]  # chain[i] stands for the messages up to and with the i-th


def _taken(call: Call) -> list[dict[str, Any]]:
    """A call's messages, taken out of its record."""
    messages: list[dict[str, Any]] = call.record.pop("messages")
    return messages


def _packed(messages: list[dict[str, Any]] | bytes) -> bytes:
    return messages if isinstance(messages, bytes) else to_json(messages)


def _unpacked(messages: list[dict[str, Any]] | bytes) -> list[dict[str, Any]]:
    if isinstance(messages, bytes):
        found: list[dict[str, Any]] = from_json(messages)
        return found
    return messages


class _Tree:
    """Calls of one conversation; of those that are each other's beginning only the longest are held."""

    def __init__(self) -> None:
        self.size = 0  # bytes of input that the held calls came from
        self.loose = 0  # of these, bytes of calls whose messages are objects
        self.leaves: dict[bytes, _Leaf] = {}  # by what stands for all their messages
        self.inner: set[bytes] = set()  # what some leaf has before its end
        self.ends: dict[bytes, set[str]] = {}  # what words may name the calls by that end there, held or not
        self.thoughts: dict[bytes, tuple[int, str, str]] = {}  # the first reasoning of what was said there
        self._last: tuple[list[dict[str, Any]], list[bytes]] = [], []  # the messages of the last call, and its chain

    def add(self, call: Call) -> Iterator[tuple[int, str]]:
        messages = _taken(call)
        chain = _chain(messages, *self._last)
        self._last = messages, chain
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
                self.loose += call.size - (loser.size if isinstance(held.messages, list) else 0)
                held.call, held.messages = call, messages
            yield loser.line, TWICE if loser.record.get("id") == winner.record.get("id") else REPEATED
            return
        if end in self.inner:
            yield call.line, REPEATED
            return
        counted = 0  # of the chain's steps, those that a shorter call has counted
        for step in chain[:-1]:
            if (shorter := self.leaves.pop(step, None)) is not None:
                counted = len(shorter.chain) - 1
                self.size -= shorter.call.size
                if isinstance(shorter.messages, list):
                    self.loose -= shorter.call.size
                yield shorter.call.line, REPEATED
        self.leaves[end] = _Leaf(call, messages, chain)
        self.size += call.size
        self.loose += call.size
        self.inner.update(chain[counted:-1])

    def pack(self) -> None:
        for leaf in self.leaves.values() if self.loose else ():
            leaf.messages = _packed(leaf.messages)
            leaf.call.complete()
        self.loose, self._last = 0, ([], [])

    def records(self) -> Iterator[tuple[Call, list[str]]]:
        for leaf in sorted(self.leaves.values(), key=lambda one: (one.call.at, str(one.call.record.get("id")))):
            messages = []
            targets: list[str] = []
            for one, step in zip(_unpacked(leaf.messages), leaf.chain, strict=True):
                if step in self.thoughts and one["role"] == "assistant" and not one.get("reasoning_content"):
                    one = {**one, "reasoning_content": self.thoughts[step][2]}  # calls share the messages they repeat
                messages.append(one)
                targets += sorted(self.ends.get(step, ()))
            leaf.call.complete()
            leaf.call.record["messages"] = messages
            yield leaf.call, targets


_NONE = _Tree()  # nothing is ever put into it


class _Conversation:
    """The calls of one conversation. Many have just one, and what there is to compare is made for the second."""

    def __init__(self) -> None:
        self._only: tuple[Call, list[dict[str, Any]] | bytes] | None = None
        self._calls: _Tree | None = None
        self._summaries = _NONE
        self.size = 0
        self.loose = 0  # bytes of calls whose messages are objects

    def add(self, call: Call) -> Iterator[tuple[int, str]]:
        if self._calls is None and self._only is None:
            self.size = self.loose = call.size
            self._only = call, _taken(call)
            return
        if self._calls is None:
            self._calls, self._summaries = _Tree(), _Tree()
            assert self._only is not None
            first, messages = self._only
            first.record["messages"] = _unpacked(messages)
            self._only = None
            yield from self._tree(first).add(first)
        yield from self._tree(call).add(call)
        self.size = self._calls.size + self._summaries.size
        self.loose = self._calls.loose + self._summaries.loose

    def pack(self) -> None:
        """Hold messages as text."""
        if self._calls is not None:
            self._calls.pack()
            self._summaries.pack()
        elif self._only is not None:
            self._only[0].complete()
            self._only = self._only[0], _packed(self._only[1])
        self.loose = 0

    def _tree(self, call: Call) -> _Tree:
        assert self._calls is not None
        return self._summaries if call.is_summary else self._calls

    def records(self) -> Iterator[tuple[Call, list[str]]]:
        if self._calls is None:
            assert self._only is not None
            call, messages = self._only
            call.complete()
            call.record["messages"] = _unpacked(messages)
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


def _chain(
    messages: Sequence[Mapping[str, Any]], before: Sequence[Mapping[str, Any]], known: Sequence[bytes]
) -> list[bytes]:
    """What stands for the messages up to each; of those that the last call had `before`, that is `known`."""
    same = min(len(messages), len(before))
    if messages[:same] != before[:same]:
        same = next(at for at, (one, other) in enumerate(zip(messages, before, strict=False)) if one != other)
    chain = list(known[:same])
    last = chain[-1] if chain else b""
    for one in messages[len(chain) :]:
        last = hashlib.blake2b(last + _same(one), digest_size=16).digest()
        chain.append(last)
    return chain


def _same(one: Mapping[str, Any]) -> bytes:
    """What must be equal for two messages to be the same: not reasoning, which later calls leave out, nor names."""
    calls = [
        [call.get("id"), call["function"]["name"], _canonical(call["function"]["arguments"])]
        for call in one.get("tool_calls") or ()
    ]
    about = repr([one["role"], one.get("tool_call_id"), calls])
    return f"{about}{(one.get('content') or '').strip()}".encode("utf-8", "surrogatepass")


def _canonical(arguments: str) -> str:
    """Arguments in one spelling: programs parse them and write them anew when they repeat a call."""
    return _sorted(arguments) if len(arguments) <= 1_000 else _sorted.__wrapped__(arguments)


@lru_cache(1_000)  # a call comes as an answer, then in all that follows
def _sorted(arguments: str) -> str:
    try:
        return dump_json(parse_json(arguments), sort_keys=True)
    except ValueError:
        return arguments
