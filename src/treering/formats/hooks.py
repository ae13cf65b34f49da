"""What the hooks of Claude Code and Codex post, one payload after the other, as one record for each turn.

A turn is the user's prompt, the calls of tools with their results, and the last answer. What the agent says between its
calls, and what was said in earlier turns, no hook carries: transcripts do (claude_code, codex).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from treering.errors import Problem
from treering.formats.base import Found, Importer, Outcome, Passed, Unfit, hashed_id
from treering.formats.chat import tool_call
from treering.formats.shapes import Turns, as_text, moment, named, trace_record
from treering.schema import RecordType

__all__ = ["Hooks"]

#: Turns under way that are held; beyond that those are given up which were longest without a word.
HELD_TURNS = 10_000

OTHER = "events of other things"
WITHOUT_PROMPT = "ends of turns whose beginning wasn't seen"
TWICE = "events sent twice"
GIVEN_UP = "turns given up: too many were open"

_BEGIN = "UserPromptSubmit"
_RESULTS = frozenset({"PostToolUse", "PostToolUseFailure"})
_ENDS = frozenset({"Stop", "StopFailure", "SessionEnd"})


@dataclass(slots=True)
class _Turn:
    prompt: str
    name: str | None  # the agent's own id of the turn
    line: int
    calls: dict[str, tuple[str, Any, str, bool]] = field(default_factory=dict)  # id → name, input, result, failed


class Hooks(Importer):
    """Fed each payload as it comes. A turn is held until its `Stop`; what was sent twice changes nothing."""

    name = "hooks"
    makes = ("chat",)

    def __init__(self, target: RecordType, origin: str | None) -> None:
        super().__init__(target, origin)
        self._turns: OrderedDict[str, _Turn] = OrderedDict()  # by session
        self._done: OrderedDict[tuple[str, str], None] = OrderedDict()  # turns by their own ids, to know a repetition

    @classmethod
    def recognises(cls, value: Any) -> bool:
        """A payload of a hook."""
        return isinstance(value, dict) and isinstance(value.get("hook_event_name"), str) and "session_id" in value

    def feed(self, line: int, value: Any, text: bytes) -> Iterable[Outcome]:
        """As `Importer.feed`; a record comes with the payload that ends its turn."""
        session = named(value.get("session_id")) if isinstance(value, dict) else None
        if session is None or not isinstance(value.get("hook_event_name"), str):
            problem = Problem(
                (), "missing-field", "expected the payload of a hook, with hook_event_name and session_id"
            )
            return (Unfit(line, (problem,), value),)
        event = value["hook_event_name"]
        if named(value.get("agent_id")) is not None:
            return (Passed(line, OTHER),)  # of a subagent: its result is that of the call that sent it
        if event == _BEGIN:
            return self._begin(line, session, value)
        if event in _RESULTS:
            return self._result(line, session, event, value)
        if event in _ENDS:
            return self._end(line, session, event, value)
        return (Passed(line, OTHER),)

    def finish(self) -> Iterator[Outcome]:
        """Turns that never ended, without an answer."""
        for session in list(self._turns):
            yield from self._give(session, self._turns[session].line, None, {"status": "unfinished"}, {})

    def _begin(self, line: int, session: str, value: Mapping[str, Any]) -> Iterator[Outcome]:
        prompt = value.get("prompt")
        if not isinstance(prompt, str):
            yield Unfit(
                line, (Problem(("prompt",), "missing-field", "expected the user's prompt as text"),), dict(value)
            )
            return
        name = _turn_id(value)
        before = self._turns.get(session)
        if (name is not None and (session, name) in self._done) or (
            before is not None and name is not None and before.name == name
        ):
            yield Passed(line, TWICE)
            return
        if before is not None:
            yield from self._give(session, line, None, {"status": "interrupted"}, {})
        self._turns[session] = _Turn(prompt, name, line)
        if len(self._turns) > HELD_TURNS:
            _, lost = self._turns.popitem(last=False)
            yield Passed(lost.line, GIVEN_UP)

    def _result(self, line: int, session: str, event: str, value: Mapping[str, Any]) -> tuple[Outcome, ...]:
        turn = self._turns.get(session)
        tool = named(value.get("tool_name"))
        if turn is None or tool is None:
            return (Passed(line, WITHOUT_PROMPT),)
        self._turns.move_to_end(session)
        call = named(value.get("tool_use_id")) or f"call_{len(turn.calls) + 1}"
        if call in turn.calls:
            return (Passed(line, TWICE),)
        failed = event == "PostToolUseFailure"
        given = value.get("error") if failed else value.get("tool_response")
        turn.calls[call] = (tool, value.get("tool_input"), as_text(given), failed)
        return ()

    def _end(self, line: int, session: str, event: str, value: Mapping[str, Any]) -> Iterator[Outcome]:
        turn = self._turns.get(session)
        if turn is None:
            name = _turn_id(value)
            known = name is not None and (session, name) in self._done
            yield Passed(line, OTHER if event == "SessionEnd" else TWICE if known else WITHOUT_PROMPT)
            return
        outcome: dict[str, Any] = {}
        if event == "StopFailure":
            outcome = {
                "status": "error",
                "error": named(value.get("error")) or named(value.get("error_details")) or "unknown",
            }
        elif event == "SessionEnd":
            outcome = {"status": "interrupted"}
        yield from self._give(session, line, named(value.get("last_assistant_message")), outcome, value)

    def _give(
        self, session: str, line: int, answer: str | None, outcome: dict[str, Any], value: Mapping[str, Any]
    ) -> Iterator[Outcome]:
        turn = self._turns.pop(session)
        turns = Turns()
        turns.say("user", turn.prompt)
        for call, (tool, given, result, failed) in turn.calls.items():
            arguments = given if isinstance(given, str | dict) or given is None else {"input": given}
            turns.say("assistant", None, calls=[tool_call(tool, arguments, call)])
            turns.result(result, call, failed=failed)
        if answer is not None:
            turns.say("assistant", answer)
        if turn.name is not None:
            self._done[(session, turn.name)] = None
            if len(self._done) > HELD_TURNS:
                self._done.popitem(last=False)
        if not any(one["role"] == "assistant" for one in turns.messages):
            yield Passed(line, "turns without an answer")
            return
        model = named(value.get("model"))
        record = trace_record(
            turns,
            id=hashed_id("hooks", session, turn.name or "", "" if turn.name else repr(turns.done())),
            model=model,
            session_id=session,
            ts=moment(value.get("timestamp")) if isinstance(value.get("timestamp"), str) else None,
            meta={
                "format": "hooks",
                "agent": "codex" if "turn_id" in value else "claude-code",
                "turn": turn.name,
                "cwd": named(value.get("cwd")),
                "transcript": named(value.get("transcript_path")),
                "permission_mode": named(value.get("permission_mode")),
            },
        )
        yield Found(record, line, ({"outcome": outcome},) if outcome else ())


def _turn_id(value: Mapping[str, Any]) -> str | None:
    return named(value.get("turn_id")) or named(value.get("prompt_id"))
