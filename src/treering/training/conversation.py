"""PURE. A conversation as trainers read it: messages and tools, out of whatever a loader or a table delivers.

Says which calls of tools a message makes, as text that can be compared. Does not render (chat.template) or judge
(evaluation).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from treering.errors import UsageError

__all__ = ["Conversation", "calls_json"]

ROLES = ("system", "developer", "user", "assistant", "tool")


@dataclass(frozen=True, slots=True)
class Conversation:
    """Messages, oldest first, and the tools that were on offer; values are plain JSON.

    A message has `role` and `content` (text, "" where there is none), and what else was said of it; fields that are null
    are left out. Arguments of tool calls are objects where they were JSON objects, as chat templates expect them, else
    the text that was captured.
    """

    messages: tuple[Mapping[str, Any], ...]
    tools: tuple[Any, ...] | None = None

    @classmethod
    def of(cls, messages: Any, tools: Any = None) -> Conversation:
        """A conversation from lists of dicts or from JSON text of them. Raises UsageError for what is neither."""
        said = _parsed(messages, "messages")
        if not said:
            raise _bad("it has no messages")
        offered = None if tools is None else tuple(_parsed(tools, "tools"))
        return cls(tuple(map(_message, said)), offered or None)

    @classmethod
    def from_json(cls, text: str) -> Conversation:
        """The conversation of `to_json`: an object with `messages` and, if there are any, `tools`; or a list of messages."""
        try:
            found = json.loads(text)
        except (ValueError, RecursionError) as exc:
            raise _bad(f"it isn't JSON: {exc}") from exc
        if isinstance(found, dict):
            return cls.of(found.get("messages"), found.get("tools"))
        return cls.of(found)

    def to_json(self) -> str:
        """One JSON object; `from_json` gives an equal conversation."""
        said: dict[str, Any] = {"messages": list(self.messages)}
        if self.tools is not None:
            said["tools"] = list(self.tools)
        return json.dumps(said, ensure_ascii=False, separators=(",", ":"))

    def before(self, number: int) -> Conversation:
        """What was said before message `number`, with the same tools."""
        return Conversation(self.messages[:number], self.tools)

    def prompt(self) -> Conversation:
        """What a reply would answer: everything, but for a last message that is itself the assistant's."""
        last = len(self.messages) - 1
        return self.before(last) if last and self.messages[last]["role"] == "assistant" else self

    def replies(self) -> Iterator[tuple[int, Mapping[str, Any]]]:
        """(number, message) of what the assistant said, but for what has a `weight` of 0: that isn't to be learnt."""
        for number, message in enumerate(self.messages):
            if message["role"] == "assistant" and message.get("weight") != 0:
                yield number, message

    def reply_text(self) -> str:
        """The assistant's last message as text: what it said, and its calls of tools as JSON lines; "" without one."""
        said = [message for message in self.messages if message["role"] == "assistant"]
        return message_text(said[-1]) if said else ""


def calls_json(message: Mapping[str, Any]) -> str:
    """The tool calls of a message as a JSON array of {"name", "arguments"}; `[]` when it makes none."""
    calls = [call["function"] for call in message.get("tool_calls") or []]
    found = [{"name": call["name"], "arguments": _arguments(call.get("arguments"))} for call in calls]
    return json.dumps(found, ensure_ascii=False, separators=(",", ":"))


def message_text(message: Mapping[str, Any]) -> str:
    """Content and tool calls of a message as one text."""
    calls = json.loads(calls_json(message))
    lines = [json.dumps(call, ensure_ascii=False, sort_keys=True) for call in calls]
    return "\n".join([part for part in [message.get("content") or "", *lines] if part])


def _parsed(given: Any, what: str) -> Sequence[Any]:
    if isinstance(given, str):
        try:
            given = json.loads(given)
        except (ValueError, RecursionError) as exc:
            raise _bad(f"its {what} aren't JSON: {exc}") from exc
    if not isinstance(given, list | tuple):
        raise _bad(f"its {what} are {type(given).__name__}, not a list")
    return given


def _message(given: Any) -> dict[str, Any]:
    if not isinstance(given, Mapping) or given.get("role") not in ROLES:
        raise _bad("a message is a dict with a role: " + ", ".join(ROLES))
    said = {name: value for name, value in given.items() if value is not None}
    content = said.get("content", "")
    if not isinstance(content, str):
        raise _bad(f"the content of a message is text, not {type(content).__name__}")
    said["content"] = content
    calls = said.pop("tool_calls", None)
    if calls:
        said["tool_calls"] = [_call(call) for call in calls]
    return said


def _call(given: Any) -> dict[str, Any]:
    function = given.get("function", given) if isinstance(given, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        raise _bad("a tool call names its function")
    call: dict[str, Any] = {"type": "function"}
    if isinstance(given.get("id"), str):
        call["id"] = given["id"]
    call["function"] = {"name": function["name"], "arguments": _arguments(function.get("arguments"))}
    return call


def _arguments(given: Any) -> Any:
    """A JSON object as such; other text as it stands: it is what a model produced."""
    if isinstance(given, str):
        try:
            found = json.loads(given)
        except (ValueError, RecursionError):
            return given
        return found if isinstance(found, dict) else given
    return {} if given is None else given


def _bad(why: str) -> UsageError:
    return UsageError(
        f"not a conversation: {why}",
        code="bad-conversation",
        hint='as in [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "Hello!"}]',
    )
