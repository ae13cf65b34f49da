"""Conversations to token ids by the tokenizer's own chat template, and which of the tokens the assistant said.

Only those are learnt from. Where the template marks them with `{% generation %}` they are the marked ones; otherwise they
follow from rendering a conversation up to each reply and through it. Does not cut or pack (fit), or run a model.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from treering.errors import UsageError
from treering.training.conversation import Conversation

__all__ = ["DEFAULT_TEMPLATE", "ChatTemplate", "Rendered", "parse_reply"]

# For tokenizers that bring none: a line with the role, what was said, and the end-of-text token after what the assistant
# said, by which it learns to stop. Calls of tools stand in <tool_call> tags, as Hermes and Qwen write them.
DEFAULT_TEMPLATE = """\
{%- if tools -%}{{- '<|tools|>\\n' + (tools | tojson) + '\\n' -}}{%- endif -%}
{%- for message in messages -%}
{{- '<|' + message.role + '|>\\n' -}}
{%- if message.role == 'assistant' -%}
{%- generation -%}
{{- message.content -}}
{%- for call in message.tool_calls or [] -%}
{{- '<tool_call>' + ({'name': call.function.name, 'arguments': call.function.arguments} | tojson) + '</tool_call>' -}}
{%- endfor -%}
{{- eos_token -}}
{%- endgeneration -%}
{{- '\\n' -}}
{%- else -%}
{{- message.content + '\\n' -}}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|assistant|>\\n' -}}{%- endif -%}
"""

_GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")
_TOOL_CALL = re.compile(r"<tool_call>\s*(.*?)\s*</tool_call>", re.DOTALL)
_MISTRAL = "[TOOL_CALLS]"
_PYTHON_TAG = "<|python_tag|>"


@dataclass(frozen=True, slots=True)
class Rendered:
    """One sequence of tokens: `ids` int32 (n,), and which of them are to be learnt, bool (n,)."""

    ids: npt.NDArray[np.int32]
    learn: npt.NDArray[np.bool_]


class ChatTemplate:
    """A tokenizer with its chat template, or with the default one when it has none (`is_default`)."""

    def __init__(self, tokenizer: Any) -> None:
        found = tokenizer.chat_template
        if isinstance(found, dict):  # several by name, as Cohere's
            found = found.get("tool_use") or found.get("default")
        self.is_default = not found
        self.text: str = found or DEFAULT_TEMPLATE
        self.marks_replies = bool(_GENERATION.search(self.text))
        self._tokenizer = tokenizer

    def rendered(self, conversation: Conversation) -> list[Rendered]:
        """The sequences to learn from: one, or one per reply.

        The latter where the template shows earlier replies differently later on (Qwen3 takes their thoughts out), so that
        each is learnt in the form in which it will be asked for. A conversation without a reply gives none. Raises UsageError when the template refuses it.
        """
        replies = list(conversation.replies())
        if not replies:
            return []
        skipped = any(m["role"] == "assistant" and m.get("weight") == 0 for m in conversation.messages)
        if self.marks_replies and not skipped:
            return [self._by_marks(conversation)]
        whole = self._text(conversation)
        spans = []
        for number, _ in replies:
            upto = self._text(conversation.before(number + 1))
            start = self._reply_starts(conversation, number, upto)
            if not whole.startswith(upto):
                return [self._alone(conversation, number) for number, _ in replies]
            spans.append((start, len(upto)))
        return [self._encoded(whole, spans)]

    def prompt(self, conversation: Conversation) -> npt.NDArray[np.int32]:
        """Token ids that ask for the next reply, int32 (n,). Raises UsageError when the template refuses it."""
        return self._encoded(self._text(conversation, ask=True), []).ids

    def _alone(self, conversation: Conversation, number: int) -> Rendered:
        text = self._text(conversation.before(number + 1))
        return self._encoded(text, [(self._reply_starts(conversation, number, text), len(text))])

    def _reply_starts(self, conversation: Conversation, number: int, upto: str) -> int:
        """Where in the text up to and with message `number` the reply begins: after what asks for it."""
        if number == 0:  # nothing to render before it; templates refuse an empty conversation
            return 0
        before = conversation.before(number)
        asked = self._text(before, ask=True)
        shared = _common(asked, upto)
        if shared < len(asked) and shared < len(self._text(before)):
            raise UsageError(
                "the chat template renders what was said before a reply differently with it and without it, so the reply "
                "can't be told from the rest",
                code="bad-template",
                hint="mark what the assistant says with {% generation %} … {% endgeneration %}",
            )
        return shared

    def _text(self, conversation: Conversation, *, ask: bool = False) -> str:
        return str(self._apply(conversation, add_generation_prompt=ask, tokenize=False))

    def _by_marks(self, conversation: Conversation) -> Rendered:
        found = self._apply(conversation, tokenize=True, return_dict=True, return_assistant_tokens_mask=True)
        ids = np.asarray(found["input_ids"], np.int32)
        return Rendered(ids, np.asarray(found["assistant_masks"], np.bool_))

    def _apply(self, conversation: Conversation, **how: Any) -> Any:
        import jinja2

        messages = [{k: v for k, v in message.items() if k != "weight"} for message in conversation.messages]
        tools = None if conversation.tools is None else list(conversation.tools)
        try:
            return self._tokenizer.apply_chat_template(messages, tools=tools, chat_template=self.text, **how)
        except (jinja2.TemplateError, ValueError, TypeError, KeyError, AttributeError) as exc:
            why = (str(exc).strip().splitlines() or [type(exc).__name__])[0]
            raise UsageError(
                f"the chat template can't render a conversation: {why}", code="bad-conversation",
                hint="look at the order of roles, and at what the base's template takes",
            ) from exc  # fmt: skip

    def _encoded(self, text: str, spans: Sequence[tuple[int, int]]) -> Rendered:
        """Tokens of a rendered text; learnt are those that hold a character of a span."""
        text = text.encode("utf-8", "replace").decode()  # a lone surrogate is no UTF-8
        found = self._tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        ids = np.asarray(found["input_ids"], np.int32)
        offsets = np.asarray(found["offset_mapping"], np.int64).reshape(-1, 2)
        learn = np.zeros(len(ids), np.bool_)
        for start, stop in spans:
            learn |= (offsets[:, 0] < stop) & (offsets[:, 1] > start) & (offsets[:, 0] < offsets[:, 1])
        return Rendered(ids, learn)


def parse_reply(text: str) -> dict[str, Any]:
    """A generated text as an assistant message: `content`, and `tool_calls` where it makes any.

    Understands calls in <tool_call> tags (Hermes, Qwen), after `[TOOL_CALLS]` (Mistral), and a reply that is nothing but
    JSON with `name` and `arguments` or `parameters` (Llama 3). What can't be read as a call stays in the content.
    """
    calls: list[dict[str, Any]] = []
    rest = text

    def taken(match: re.Match[str]) -> str:
        found = _calls(match[1])
        calls.extend(found)
        return "" if found else match[0]

    if "<tool_call>" in text:
        rest = _TOOL_CALL.sub(taken, text)
    elif _MISTRAL in text:
        before, _, after = text.partition(_MISTRAL)
        calls = _calls(after)
        rest = before if calls else text
    elif text.lstrip().removeprefix(_PYTHON_TAG).lstrip().startswith(("{", "[")):
        calls = _calls(text.lstrip().removeprefix(_PYTHON_TAG))
        rest = "" if calls else text
    message: dict[str, Any] = {"role": "assistant", "content": rest.strip()}
    if calls:
        message["tool_calls"] = calls
    return message


def _calls(text: str) -> list[dict[str, Any]]:
    """The calls that a JSON text holds: one, or a list of them; none when any of it isn't a call."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return []
    calls = []
    for one in found if isinstance(found, list) else [found]:
        if not isinstance(one, Mapping) or not isinstance(one.get("name"), str):
            return []
        if "arguments" not in one and "parameters" not in one:
            return []
        arguments = one.get("arguments", one.get("parameters"))
        calls.append({"type": "function", "function": {"name": one["name"], "arguments": arguments or {}}})
    return calls


def _common(one: str, other: str) -> int:
    """Length of what both begin with."""
    low, high = 0, min(len(one), len(other))
    if one[:high] == other[:high]:
        return high
    while low < high - 1:
        middle = (low + high) // 2
        low, high = (middle, high) if one[:middle] == other[:middle] else (low, middle)
    return low
