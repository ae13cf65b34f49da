"""TRL's dataset rows, one a line: each of its forms becomes the record type it fits.

    messages (+ tools)                 chat
    prompt + completion                chat; with `label`, what was said of it is an annotation
    prompt? + chosen + rejected        preference; without a prompt it is what both begin with
    text + label                       labelled
    text                               a record type with a column `text` of your own

Arguments of tool calls are objects; they keep the order of their keys. Prompts and completions that are bare text become a
user's and an assistant's message. `meta["trl"]` says which form it was, where the record doesn't show it.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, ClassVar

from treering.errors import Problem
from treering.formats.base import Found, Importer, Outcome, Unfit
from treering.formats.chat import taken_all
from treering.formats.openai import has_messages
from treering.schema import RecordType
from treering.schema.record_type import safe_repr

__all__ = ["TRLImporter"]

_BY = "trl"


class TRLImporter(Importer):
    """Rows of TRL's trainers: SFT, DPO, KTO, and plain text."""

    name: ClassVar[str] = "trl"
    makes: ClassVar[tuple[str, ...]] = ("chat", "preference", "labelled")
    stands_alone: ClassVar[bool] = True

    @classmethod
    def can_fill(cls, target: RecordType) -> bool:
        """Also any record type with a column of text."""
        return super().can_fill(target) or "text" in target.schema.names

    @classmethod
    def recognises(cls, value: Any) -> bool:
        """Whether it has a prompt with completions, chosen and rejected, nothing but text, or calls with objects as arguments."""
        from treering.formats.records import RecordsImporter

        if not isinstance(value, dict) or RecordsImporter.recognises(value):
            return False
        if {"chosen", "rejected"}.issubset(value) or {"prompt", "completion"}.issubset(value):
            return True
        if set(value) == {"text"}:
            return isinstance(value["text"], str)
        return has_messages(value) and any(map(_is_trl, value["messages"]))

    @property
    def remembers(self) -> bool:
        """Only how often it has seen a text that brings no id of its own."""
        return bool(self._ids)

    def feed(self, line: int, value: Any, text: bytes) -> Iterable[Outcome]:
        """The row as a record."""
        if not isinstance(value, dict):
            problem = Problem((), "wrong-type", f"expected an object, got {safe_repr(value)[:48]}")
            return (Unfit(line, (problem,), value),)
        if "messages" in value:
            return self._conversation(line, value, text)
        if "chosen" in value and "rejected" in value:
            return self._preference(line, value, text)
        if "prompt" in value and "completion" in value:
            return self._completion(line, value, text)
        if "text" in value:
            return self._text(line, value, text)
        shown = ", ".join(map(repr, list(value)[:8])) or "none"
        problem = Problem(
            (),
            "missing-field",
            f"expected text, messages, prompt and completion, or chosen and rejected, got the members {shown}",
        )
        return (Unfit(line, (problem,), value),)

    def _conversation(self, line: int, value: dict[str, Any], text: bytes) -> Iterable[Outcome]:
        if (misfit := self.needs("chat", line, value)) is not None:
            return (misfit,)
        messages, beyond = taken_all(value["messages"])
        record: dict[str, Any] = {"messages": messages}
        kept: dict[str, Any] = {"messages": beyond} if beyond else {}
        self.take_rest(value, {"messages"}, record, kept)
        self.complete(record, kept, text)
        return (Found(record, line),)

    def _preference(self, line: int, value: dict[str, Any], text: bytes) -> Iterable[Outcome]:
        if (misfit := self.needs("preference", line, value)) is not None:
            return (misfit,)
        form: dict[str, Any] = {}
        prompt, chosen, rejected = value.get("prompt"), value["chosen"], value["rejected"]
        if prompt is None:
            at = _common(chosen, rejected) if isinstance(chosen, list) and isinstance(rejected, list) else 0
            if not at:
                problem = Problem(
                    ("prompt",),
                    "missing-field",
                    "expected a prompt, or chosen and rejected that begin with the same messages: add `prompt`",
                )
                return (Unfit(line, (problem,), value),)
            prompt, chosen, rejected = chosen[:at], chosen[at:], rejected[at:]
            form["implicit_prompt"] = True
        record: dict[str, Any] = {}
        kept: dict[str, Any] = {}
        for name, said, role in (
            ("prompt", prompt, "user"),
            ("chosen", chosen, "assistant"),
            ("rejected", rejected, "assistant"),
        ):
            if isinstance(said, str):
                form.setdefault("text", []).append(name)
            record[name], beyond = taken_all(_messages(said, role))
            if beyond:
                kept[name] = beyond
        self.take_rest(value, {"prompt", "chosen", "rejected"}, record, kept)
        self.complete(record, kept, text, about={"trl": form} if form else None)
        return (Found(record, line),)

    def _completion(self, line: int, value: dict[str, Any], text: bytes) -> Iterable[Outcome]:
        if (misfit := self.needs("chat", line, value)) is not None:
            return (misfit,)
        prompt, completion = _messages(value["prompt"], "user"), _messages(value["completion"], "assistant")
        problems = [
            Problem((name,), "wrong-type", f"expected text or messages, got {safe_repr(value[name])[:48]}")
            for name, said in (("prompt", prompt), ("completion", completion))
            if not isinstance(said, list)
        ]
        label = value.get("label")
        if label is not None and not isinstance(label, bool):
            problems.append(Problem(("label",), "wrong-type", f"expected true or false, got {safe_repr(label)[:48]}"))
        if problems:
            return (Unfit(line, tuple(problems), value),)
        form: dict[str, Any] = {"prompt": len(prompt)}  # the messages before the completion
        texts = [name for name in ("prompt", "completion") if isinstance(value[name], str)]
        if texts:
            form["text"] = texts
        if label is not None:
            form["label"] = label
        messages, beyond = taken_all([*prompt, *completion])
        record: dict[str, Any] = {"messages": messages}
        kept: dict[str, Any] = {"messages": beyond} if beyond else {}
        self.take_rest(value, {"prompt", "completion", "label"}, record, kept)
        self.complete(record, kept, text, about={"trl": form})
        said = () if label is None else ({"outcome": label, "quality": float(label), "by": _BY},)
        return (Found(record, line, said),)

    def _text(self, line: int, value: dict[str, Any], text: bytes) -> Iterable[Outcome]:
        if "label" in value:
            if (misfit := self.needs("labelled", line, value)) is not None:
                return (misfit,)
        elif self.kind == "labelled" or "text" not in self.target.schema.names:
            return (self.misfit("MODULE:NAME, a record type of your own with a field `text`", line, value),)
        record: dict[str, Any] = {"text": value["text"]}
        kept: dict[str, Any] = {}
        self.take_rest(value, {"text"}, record, kept)
        self.complete(record, kept, text)
        return (Found(record, line),)


def _messages(said: Any, role: str) -> Any:
    return [{"role": role, "content": said}] if isinstance(said, str) else said


def _common(one: list[Any], other: list[Any]) -> int:
    """How many messages both begin with; the last of each is its answer in any case."""
    most = max(0, min(len(one), len(other)) - 1)
    return next((at for at in range(most) if one[at] != other[at]), most)


def _is_trl(message: dict[str, Any]) -> bool:
    if "thinking" in message:
        return True
    calls = message.get("tool_calls")
    return isinstance(calls, list) and any(
        isinstance(call, dict)
        and isinstance(call.get("function"), dict)
        and isinstance(call["function"].get("arguments"), dict)
        for call in calls
    )
