"""OpenAI's files for fine-tuning: conversations (supervised) and preferences (DPO), one a line.

    {"messages": [{"role", "content", "name"?, "tool_calls"?, "tool_call_id"?, "weight"?}], "tools"?, "parallel_tool_calls"?}
    {"input": {"messages", "tools"?, "parallel_tool_calls"?}, "preferred_output": […], "non_preferred_output": […]}

Arguments of tool calls are text and stay the text they are. What our fields don't hold is kept in `meta` (formats.chat).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, ClassVar

from treering.errors import Problem
from treering.formats.base import Found, Importer, Outcome, Unfit, tools_text
from treering.formats.chat import taken_all
from treering.schema.record_type import safe_repr

__all__ = ["OpenAIImporter"]

_OUTPUTS = ("preferred_output", "non_preferred_output")
_PREFERENCE = frozenset({"input", *_OUTPUTS})


class OpenAIImporter(Importer):
    """Conversations and preferences in the files that OpenAI's fine-tuning takes."""

    name: ClassVar[str] = "openai"
    makes: ClassVar[tuple[str, ...]] = ("chat", "preference")
    stands_alone: ClassVar[bool] = True

    @classmethod
    def recognises(cls, value: Any) -> bool:
        """Whether it is an object with messages, whose calls have text as arguments, or one with preferred outputs.

        Not with what only treering's own records or TRL's rows have.
        """
        from treering.formats.records import RecordsImporter
        from treering.formats.trl import TRLImporter

        if not isinstance(value, dict) or RecordsImporter.recognises(value) or TRLImporter.recognises(value):
            return False
        return _PREFERENCE.issubset(value) or has_messages(value)

    @property
    def remembers(self) -> bool:
        """Only how often it has seen a text that brings no id of its own."""
        return bool(self._ids)

    def feed(self, line: int, value: Any, text: bytes) -> Iterable[Outcome]:
        """The conversation, or the preference."""
        if isinstance(value, dict) and "messages" in value:
            return self._conversation(line, value, text)
        if isinstance(value, dict) and not _PREFERENCE.isdisjoint(value):
            return self._preference(line, value, text)
        shown = safe_repr(value)[:80]
        problem = Problem((), "missing-field", f"expected `messages`, or `input` and two outputs, got {shown}")
        return (Unfit(line, (problem,), value),)

    def _conversation(self, line: int, value: dict[str, Any], text: bytes) -> Iterable[Outcome]:
        if (misfit := self.needs("chat", line, value)) is not None:
            return (misfit,)
        messages, kept = taken_all(value["messages"])
        record: dict[str, Any] = {"messages": messages}
        if kept:
            kept = {"messages": kept}
        if len(value) > 1:
            self.take_rest(value, {"messages"}, record, kept)
        self.complete(record, kept, text)
        return (Found(record, line),)

    def _preference(self, line: int, value: dict[str, Any], text: bytes) -> Iterable[Outcome]:
        if (misfit := self.needs("preference", line, value)) is not None:
            return (misfit,)
        given = value.get("input")
        problems = [
            Problem((name,), "missing-field", "expected this field, got none")
            for name in sorted(_PREFERENCE - set(value))
        ]
        if "input" in value and not isinstance(given, dict):
            problems.append(Problem(("input",), "wrong-type", f"expected an object, got {safe_repr(given)[:48]}"))
        if problems:
            return (Unfit(line, tuple(problems), value),)
        assert isinstance(given, dict)
        kept: dict[str, Any] = {}
        record: dict[str, Any] = {}
        sides = zip(
            ("prompt", "chosen", "rejected"), (given.get("messages"), *(value[o] for o in _OUTPUTS)), strict=True
        )
        for ours, said in sides:
            record[ours], beyond = taken_all(said)
            if beyond:
                kept[ours] = beyond
        if given.get("tools"):
            record["tools"] = _tools(given["tools"])
        more = {key: one for key, one in given.items() if one is not None and key not in ("messages", "tools")}
        if more:
            kept["input"] = more
        self.take_rest(value, _PREFERENCE, record, kept)
        self.complete(record, kept, text)
        return (Found(record, line),)


def has_messages(value: dict[str, Any]) -> bool:
    """Whether its `messages` are a list of objects with roles."""
    messages = value.get("messages")
    return isinstance(messages, list) and bool(messages) and all(isinstance(m, dict) and "role" in m for m in messages)


def _tools(given: Any) -> Any:
    return tools_text(given) if isinstance(given, list) else given
