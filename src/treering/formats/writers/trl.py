"""TRL's datasets as JSON Lines: conversational language modelling, prompt and completion, preference, and token ids.

https://huggingface.co/docs/trl/dataset_formats: arguments of a tool call are an *object* there.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from typing_extensions import override

from treering.formats.writers.conversation import (
    COLUMNS,
    as_array,
    as_object,
    messages_of,
    question_and_answer,
    shape_of,
)
from treering.formats.writers.json_lines import JsonLines

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["Trl"]

_KEEPS = frozenset({"role", "content", "name", "tool_calls", "tool_call_id", "reasoning_content"})


class Trl(JsonLines):
    """chat → `messages`, `tools`; preference → `prompt`, `chosen`, `rejected`, `tools`; labelled → `prompt`, `completion`.

    A text and its label become a question and an answer (one message each): joined as bare texts, the label would be read
    as the text's last word. tokens → `input_ids`. Not held: everything else of the record, and `weight`. Refused:
    arguments that aren't a JSON object.
    """

    name = "trl"

    def __init__(self, schema: pa.Schema, *, skip: bool = False) -> None:
        super().__init__(schema, skip=skip)
        self.shape = shape_of(schema, self.name, ("chat", "preference", "labelled", "tokens"))

    @property
    @override
    def holds(self) -> frozenset[str]:
        return COLUMNS[self.shape] & frozenset(self.schema.names)

    @override
    def lines(self, record: dict[str, Any]) -> Iterable[Any]:
        if self.shape == "tokens":
            yield {"input_ids": record["tokens"]}
            return
        if self.shape == "labelled":
            question, answer = question_and_answer(record)
            yield {"prompt": question, "completion": answer}
            return
        names = ("messages",) if self.shape == "chat" else ("prompt", "chosen", "rejected")
        line: dict[str, Any] = {name: self._messages(record[name], name) for name in names}
        if record.get("tools") is not None:
            line["tools"] = as_array(record["tools"], ("tools",))
        yield line

    def _messages(self, messages: list[dict[str, Any]], where: str) -> list[dict[str, Any]]:
        return messages_of(messages, where, keeps=_KEEPS, arguments=as_object, note=self.note)
