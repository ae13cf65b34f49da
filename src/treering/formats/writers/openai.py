"""OpenAI's fine-tuning files: `messages` and `tools` to train on, and input with two outputs to prefer between.

https://platform.openai.com/docs/guides/fine-tuning: arguments of a tool call are a JSON *string* there.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from typing_extensions import override

from treering.formats.writers.conversation import (
    COLUMNS,
    about,
    as_array,
    lay_over,
    messages_of,
    question_and_answer,
    refuse,
    shape_of,
)
from treering.formats.writers.json_lines import JsonLines

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["OpenAI"]

_KEEPS = frozenset({"role", "content", "name", "tool_calls", "tool_call_id", "weight"})
#: Of what an importer kept: members of a message, and of what stands beside the messages, that the service knows.
_BEYOND: dict[str, type] = {"refusal": str, "function_call": dict, "audio": dict}
_SAYING = frozenset({"tool_calls", *_BEYOND})  # one of them is enough for an assistant without content
_OFFERED: dict[str, type] = {"tools": list, "parallel_tool_calls": bool, "functions": list}


class OpenAI(JsonLines):
    """chat → `messages`, `tools`; preference → `input`, `preferred_output`, `non_preferred_output`; labelled → two messages.

    Not held: everything but the conversation (id, domain, ts, meta, …), `reasoning_content`, and a `weight` other than 0 or
    1, or of a message that isn't the assistant's. Refused, because the service refuses it: a message that says nothing, a
    tool call without an id, a result without its call's.
    """

    name = "openai"
    by_record = True

    def __init__(self, schema: pa.Schema, *, skip: bool = False) -> None:
        super().__init__(schema, skip=skip)
        self.shape = shape_of(schema, self.name, ("chat", "preference", "labelled"))

    @property
    @override
    def holds(self) -> frozenset[str]:
        return COLUMNS[self.shape] & frozenset(self.schema.names)

    @override
    def lines(self, record: dict[str, Any]) -> Iterable[Any]:
        if self.shape == "labelled":
            question, answer = question_and_answer(record)
            yield {"messages": question + answer}
            return
        told = about(record)
        kept = told.kept
        if told.all_of_it and not told.form:
            self.unnote("meta")
        beyond = kept.get("input") if self.shape == "preference" else kept
        offered: dict[str, Any] = (
            {} if record.get("tools") is None else {"tools": as_array(record["tools"], ("tools",))}
        )
        for name, value in beyond.items() if isinstance(beyond, dict) else ():
            if name in _OFFERED and isinstance(value, _OFFERED[name]):
                offered.setdefault(name, value)
            elif name in _OFFERED or beyond is not kept:
                self.note(name)
        for name in kept.keys() - COLUMNS[self.shape] - _OFFERED.keys() - {"input"}:
            self.note(name)
        if self.shape == "chat":
            yield {"messages": self._messages(record, "messages", kept), **offered}
        else:
            yield {
                "input": {"messages": self._messages(record, "prompt", kept), **offered},
                "preferred_output": self._messages(record, "chosen", kept),
                "non_preferred_output": self._messages(record, "rejected", kept),
            }

    def _messages(self, record: dict[str, Any], where: str, kept: dict[str, Any]) -> list[dict[str, Any]]:
        made = messages_of(record[where], where, keeps=_KEEPS, arguments=lambda text, _: text, note=self.note)
        laid = lay_over(made, record[where], kept.get(where), self.note, keeps=_BEYOND)
        for place, message in enumerate(laid):
            self._check(message, (where, place))  # as it goes out: calls as they were once have no ids
        return laid

    def _check(self, message: dict[str, Any], loc: tuple[str | int, ...]) -> None:
        if "weight" in message and not (message["role"] == "assistant" and message["weight"] in (0, 1)):
            del message["weight"]
            self.note("messages.weight")
        calls = message.get("tool_calls")
        says = "content" in message or (message["role"] == "assistant" and not _SAYING.isdisjoint(message))
        if not says:
            refuse((*loc, "content"), f"expected what the {message['role']} says, got nothing")
        for number, call in enumerate(calls or ()):
            if "id" not in call:
                refuse((*loc, "tool_calls", number, "id"), "expected the id of the call, got none")
        if message["role"] == "tool" and "tool_call_id" not in message:
            refuse((*loc, "tool_call_id"), "expected the id of the call that this answers, got none")
