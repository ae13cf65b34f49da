"""TRL's datasets as JSON Lines: conversational language modelling, prompt and completion, preference, and token ids.

https://huggingface.co/docs/trl/dataset_formats: arguments of a tool call are an *object* there.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from typing_extensions import override

from treering.formats.writers.conversation import (
    COLUMNS,
    about,
    as_array,
    as_object,
    lay_over,
    messages_of,
    question_and_answer,
    shape_of,
)
from treering.formats.writers.json_lines import JsonLines

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["Trl"]

_KEEPS = frozenset({"role", "content", "name", "tool_calls", "tool_call_id", "reasoning_content"})
_TEXTS = ("prompt", "completion", "chosen", "rejected")  # what may be bare text


class Trl(JsonLines):
    """chat → `messages`, `tools`; preference → `prompt`, `chosen`, `rejected`, `tools`; labelled → `prompt`, `completion`.

    A conversation that was captured as prompt and completion goes out as such again. A text and its label become a question and an answer (one message each): joined as bare texts, the label would be read
    as the text's last word. tokens → `input_ids`. Not held: everything else of the record, and `weight`. Refused:
    arguments that aren't a JSON object.
    """

    name = "trl"
    by_record = True

    def __init__(self, schema: pa.Schema, *, skip: bool = False) -> None:
        super().__init__(schema, skip=skip)
        self.shape = shape_of(schema, self.name, ("chat", "preference", "labelled", "tokens"))

    @property
    @override
    def holds(self) -> frozenset[str]:
        return COLUMNS[self.shape] & frozenset(self.schema.names)

    @property
    @override
    def has_outcomes(self) -> bool:
        return self.shape == "chat"  # as `label`, where the file had it

    @override
    def lines(self, record: dict[str, Any]) -> Iterable[Any]:
        if self.shape == "tokens":
            yield {"input_ids": record["tokens"]}
            return
        if self.shape == "labelled":
            question, answer = question_and_answer(record)
            yield {"prompt": question, "completion": answer}
            return
        told = about(record)
        if told.all_of_it:
            self.unnote("meta")
        names = ("messages",) if self.shape == "chat" else ("prompt", "chosen", "rejected")
        line: dict[str, Any] = {name: self._messages(record, name, told.kept) for name in names}
        if told.form:
            line = _in_form(line, told.form)
            if "label" in line:
                line["label"] = self.outcomes.get(record.get("id", ""), line["label"])
        if record.get("tools") is not None:
            line["tools"] = as_array(record["tools"], ("tools",))
        if "tools" not in line and isinstance(told.kept.get("tools"), list):
            line["tools"] = told.kept["tools"]
        yield line | {key: value for key, value in told.kept.items() if key not in COLUMNS[self.shape] | line.keys()}

    def _messages(self, record: dict[str, Any], where: str, kept: dict[str, Any]) -> list[dict[str, Any]]:
        made = messages_of(record[where], where, keeps=_KEEPS, arguments=as_object, note=self.note)
        return lay_over(made, record[where], kept.get(where), self.note)


def _in_form(line: dict[str, Any], form: dict[str, Any]) -> dict[str, Any]:
    """The line in the form that it was captured in: see `treering.formats.trl`. A form that doesn't fit it isn't its own."""
    made = dict(line)
    cut = form.get("prompt")
    if "messages" in line and type(cut) is int and 0 <= cut <= len(line["messages"]):
        messages = made.pop("messages")
        made = {"prompt": messages[:cut], "completion": messages[cut:]}
        if isinstance(form.get("label"), bool):
            made["label"] = form["label"]
    if form.get("implicit_prompt") is True and "chosen" in line:
        prompt = made.pop("prompt")
        made |= {name: [*prompt, *made[name]] for name in ("chosen", "rejected")}
    texts = form.get("text")
    for name in texts if isinstance(texts, list) else ():
        said = made.get(name) if name in _TEXTS else None
        if isinstance(said, list) and len(said) == 1 and isinstance(said[0].get("content"), str):
            made[name] = said[0]["content"]
    return made
