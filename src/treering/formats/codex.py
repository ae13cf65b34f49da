"""Rollouts of Codex: `~/.codex/sessions/YYYY/MM/DD/rollout-*.jsonl`, lines of `{timestamp, type, payload}`.

`response_item` lines hold what the model was sent and answered; `event_msg` lines say the same again for the screen, so only
what nothing else says is taken from them: that turns were undone, failed, or what they used.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime
from typing import Any

from treering.errors import Problem
from treering.formats.base import Found, Importer, Outcome, Passed, Unfit, hashed_id
from treering.formats.shapes import MisfitError, Turns, moment, named, tools_of, trace_record
from treering.schema import RecordType
from treering.schema.fields import dump_json

__all__ = ["Codex"]

EVENTS = "events, which say again what items say"
CONTEXTS = "lines about other things"
COPIED = "headers of the sessions it was forked from"
HIDDEN = "items that hold nothing readable"
UNANSWERED = "conversations without an answer"

_TYPES = frozenset({"session_meta", "response_item", "event_msg", "turn_context", "compacted"})
_HIDDEN = frozenset(
    {"ghost_snapshot", "compaction", "compaction_summary", "context_compaction", "compaction_trigger", "other"}
)
#: Events that say nothing else.
_REPEATING = frozenset(
    {"agent_message", "agent_reasoning", "exec_command_begin", "exec_command_end", "exec_command_output_delta"}
)
#: The members of the plainest messages, and of their only part.
_MESSAGE, _TEXT = frozenset({"type", "role", "content"}), frozenset({"type", "text"})
_SCAFFOLDING = (
    "<environment_context>",
    "<user_instructions>",
    "# AGENTS.md",
    "<turn_aborted>",
    "<permissions",
    "<INSTRUCTIONS>",
)


class Codex(Importer):
    """One record for each session; one more for what a compaction closed, and for turns that were undone."""

    name = "codex"
    makes = ("chat",)

    def __init__(self, target: RecordType, origin: str | None) -> None:
        super().__init__(target, origin)
        self._open = _Session({}, None)
        self._line = 0

    @classmethod
    def recognises(cls, value: Any) -> bool:
        """A line of a rollout."""
        return isinstance(value, dict) and named(value.get("type")) in _TYPES and isinstance(value.get("payload"), dict)

    def feed(self, line: int, value: Any, text: bytes) -> Iterable[Outcome]:
        """As `Importer.feed`."""
        payload = value.get("payload") if isinstance(value, dict) else None
        if not isinstance(payload, dict) or not isinstance(value.get("type"), str):
            problem = Problem((), "bad-value", "expected a line of a rollout, with timestamp, type and payload")
            return (Unfit(line, (problem,), value),)
        try:
            when = moment(value.get("timestamp"), ("timestamp",))
            kind = value["type"]
            if kind == "response_item":
                return self._item(line, payload, when)
            if kind == "event_msg" and named(payload.get("type")) in _REPEATING:
                return (Passed(line, EVENTS),)
        except MisfitError as exc:
            return (Unfit(line, (exc.problem,), value),)
        return self._taken(line, kind, payload, value)

    def _item(self, line: int, payload: Mapping[str, Any], when: datetime | None) -> Iterable[Outcome]:
        if named(payload.get("type")) in _HIDDEN:
            return (Passed(line, HIDDEN),)
        session = self._open
        if (text := _plain_text(payload)) is not None:
            session.turns.say(payload["role"], text)
        else:
            session.turns.add(payload, ("payload",))
        session.line, session.items = line, session.items + 1
        session.last = when or session.last
        return ()

    def _taken(self, line: int, kind: str, payload: Mapping[str, Any], value: Any) -> Iterator[Outcome]:
        try:
            yield from self._take(line, kind, payload)
        except MisfitError as exc:
            yield Unfit(line, (exc.problem,), value)

    def finish(self) -> Iterator[Outcome]:
        """The session that is left."""
        yield from self._open.close(None)
        self._open = _Session({}, None)

    def _take(self, line: int, kind: str, payload: Mapping[str, Any]) -> Iterator[Outcome]:
        if kind == "session_meta":
            inner = payload.get("meta")  # very early rollouts
            payload = inner if isinstance(inner, dict) else payload
            if self._open.is_ancestor(payload):
                yield Passed(line, COPIED)
                return
            yield from self._open.close(None)
            self._open = _Session(payload, self.origin)
            self._open.line = line
            return
        session = self._open
        if kind == "compacted":
            yield from session.close("compacted")
            session.restart(payload)
            session.line, session.items = line, session.items + 1
        elif kind == "turn_context":
            session.model = named(payload.get("model")) or session.model
            session.effort = named(payload.get("effort")) or session.effort
        elif kind == "event_msg":
            yield from self._event(line, payload)
        else:
            yield Passed(line, CONTEXTS)

    def _event(self, line: int, payload: Mapping[str, Any]) -> Iterator[Outcome]:
        session, kind = self._open, payload.get("type")
        if kind == "thread_rolled_back" and isinstance(payload.get("num_turns"), int):
            yield from session.close("undone")
            session.undo(payload["num_turns"])
            session.line, session.items = line, session.items + 1
        elif kind == "token_count":
            info = payload.get("info")
            usage = info.get("total_token_usage") if isinstance(info, dict) else None
            if isinstance(usage, dict):
                session.usage = usage
        elif kind in ("turn_aborted", "error", "stream_error"):
            told = named(payload.get("message")) or named(payload.get("reason")) or "unknown"
            session.outcome = {"status": "interrupted"} if told == "interrupted" else {"status": "error", "error": told}
        else:
            if kind in ("task_complete", "turn_complete", "user_message"):
                session.outcome = {}
            yield Passed(line, EVENTS)


def _plain_text(payload: Mapping[str, Any]) -> str | None:
    """What is said in a message as most are, of one part that is text; None for any other item."""
    if payload.keys() != _MESSAGE or payload["type"] != "message" or payload["role"] not in ("user", "assistant"):
        return None
    content = payload["content"]
    part = content[0] if type(content) is list and len(content) == 1 else None
    if type(part) is not dict or part.keys() != _TEXT or part["type"] not in ("input_text", "output_text"):
        return None
    return part["text"] if type(part["text"]) is str else None


class _Session:
    """What is known of the session that is being read."""

    def __init__(self, header: Mapping[str, Any], origin: str | None) -> None:
        self.header = header
        self.id = named(header.get("id")) or named(header.get("conversation_id"))
        self.parent = named(header.get("forked_from_id"))
        self.root = named(header.get("session_id")) or self.parent or self.id or origin
        self._ancestors = {self.parent} - {None}
        self.turns = Turns()
        self.model: str | None = None
        self.effort: str | None = None
        self.usage: Mapping[str, Any] | None = None
        self.outcome: dict[str, Any] = {}
        self.last = moment(header.get("timestamp"), ("payload", "timestamp"))
        self.line = 0
        self.items = 0  # read so far; names what was said up to a point
        self.given = ""  # what was given of it last
        self.is_compacted = False
        self._instruct()

    def _instruct(self) -> None:
        given = self.header.get("base_instructions") or self.header.get("instructions")
        if isinstance(given, dict):
            given = given.get("text")
        if isinstance(given, str) and given:
            self.turns.say("system", given)

    def is_ancestor(self, payload: Mapping[str, Any]) -> bool:
        """Whether a further header is that of a session this one was forked from, whose lines it repeats; or its own again."""
        own = named(payload.get("id"))
        if own is None or (own != self.id and own not in self._ancestors):
            return False
        if own != self.id:
            self.root = named(payload.get("session_id")) or named(payload.get("forked_from_id")) or own
            self._ancestors |= {named(payload.get("forked_from_id"))} - {None}
        return True

    def restart(self, payload: Mapping[str, Any]) -> None:
        """Begin the window that a compaction leaves: the history that took the place of the old one, or its summary."""
        self.turns = Turns()
        self._instruct()
        self.is_compacted = True
        history = payload.get("replacement_history")
        for position, item in enumerate(history if isinstance(history, list) else ()):
            inner = item.get("item") if isinstance(item, dict) and "item" in item else item
            if isinstance(inner, dict) and named(inner.get("type")) not in _HIDDEN:
                self.turns.add(inner, ("payload", "replacement_history", position))
        summary = payload.get("message")
        if not history and isinstance(summary, str) and summary:
            self.turns.say("user", summary)

    def undo(self, count: int) -> None:
        """Take the user's last turns back, and what followed them."""
        kept = list(self.turns.messages)
        while count > 0 and kept:
            last = kept.pop()
            text = str(last.get("content") or "").lstrip()
            if last["role"] == "user" and not text.startswith(_SCAFFOLDING):
                count -= 1
        replaced, self.turns = self.turns.replaced, Turns()
        self.turns.messages, self.turns.replaced = kept, replaced
        self.outcome = {}

    def close(self, why: str | None) -> Iterator[Outcome]:
        """The record of what has been said; `why` it isn't the session's end."""
        messages = self.turns.done()
        if not any(one["role"] == "assistant" for one in messages):
            if messages and self.items:
                yield Passed(self.line, UNANSWERED)
            return
        said = hashlib.blake2b(dump_json(messages).encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()
        if said == self.given:
            return
        self.given = said
        header = self.header
        source = header.get("source")
        git = header.get("git")
        record = trace_record(
            self.turns,
            id=hashed_id("codex", self.id or self.root or "", said),
            model=self.model,
            tools=tools_of(header.get("dynamic_tools")),
            session_id=self.root,
            ts=self.last,
            meta={
                "format": "codex",
                "agent": named(header.get("originator")) or "codex",
                "version": named(header.get("cli_version")),
                "provider": named(header.get("model_provider")),
                "session": self.id,
                "forked_from": self.parent,
                "is_subagent": True if isinstance(source, dict) and "subagent" in source else None,
                "is_compacted": True if self.is_compacted else None,
                "ended": why,
                "cwd": named(header.get("cwd")),
                "git_branch": named(git.get("branch")) if isinstance(git, dict) else None,
                "reasoning_effort": self.effort,
                "usage": dict(self.usage) if self.usage is not None else None,
            },
        )
        # What goes on must not change what was given.
        record["messages"] = [dict(one) for one in record["messages"]]
        yield Found(record, self.line, ({"outcome": self.outcome},) if self.outcome else ())
