"""Spans and log records that hold calls of a model, as calls: OpenTelemetry's GenAI conventions, new and old, and Vercel's.

Knows what attributes mean. Does not decode OTLP (otlp) or choose which calls become records (collapse).
"""

from __future__ import annotations

import math
import re
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from operator import is_
from typing import TYPE_CHECKING, Any

from treering.formats.base import hashed_id, tools_text
from treering.formats.collapse import Call, Word
from treering.formats.shapes import (
    MisfitError,
    Turns,
    conversation_of,
    from_ns,
    json_or_same,
    named,
    tools_of,
    trace_record,
)
from treering.schema.strict_json import parse_json

if TYPE_CHECKING:
    from treering.formats.otlp import Signal

__all__ = ["EVALUATION", "LOGS", "Recall", "calls_of", "indexed", "words_of"]

DETAILS = "gen_ai.client.inference.operation.details"
EVALUATION = "gen_ai.evaluation.result"
_SINGLE = re.compile(r"^gen_ai\.((system|user|assistant|tool)\.message|choice)$")

EMPTY = "spans without content"
OTHER = "spans of other things"
TOOL_RUNS = "runs of tools, whose results come with the next call"
LOGS = "log records of other things"

_SUMMARIES = frozenset({"invoke_agent", "invoke_workflow", "create_agent"})
_INFERENCE = frozenset({"chat", "generate_content", "text_completion", "completion"})
_SESSIONS = (
    "gen_ai.conversation.id", "session.id", "langfuse.session.id", "traceloop.association.properties.session_id",
    "traceloop.association.properties.thread_id", "ai.telemetry.metadata.sessionId", "ai.telemetry.metadata.chatId",
    "thread.id",
)  # fmt: skip
_USERS = (
    "user.id", "enduser.id", "langfuse.user.id", "traceloop.association.properties.user_id",
    "ai.telemetry.metadata.userId",
)  # fmt: skip
_MODELS = (
    "gen_ai.response.model", "gen_ai.request.model", "llm.response.model_name", "llm.model_name", "ai.response.model",
    "ai.model.id", "langfuse.observation.model.name", "llm.request.model_name",
)  # fmt: skip
_USAGE = {
    "gen_ai.usage.input_tokens": "input_tokens", "gen_ai.usage.prompt_tokens": "input_tokens",
    "gen_ai.usage.output_tokens": "output_tokens", "gen_ai.usage.completion_tokens": "output_tokens",
    "gen_ai.usage.cache_read.input_tokens": "cache_read_tokens",
    "gen_ai.usage.cache_creation.input_tokens": "cache_write_tokens",
    "gen_ai.usage.cache_write.input_tokens": "cache_write_tokens",
    "gen_ai.usage.reasoning.output_tokens": "reasoning_tokens",
    "llm.token_count.prompt": "input_tokens", "llm.token_count.completion": "output_tokens",
    "llm.token_count.prompt_details.cache_read": "cache_read_tokens",
    "llm.token_count.completion_details.reasoning": "reasoning_tokens",
    "ai.usage.inputTokens": "input_tokens", "ai.usage.promptTokens": "input_tokens",
    "ai.usage.outputTokens": "output_tokens", "ai.usage.completionTokens": "output_tokens",
}  # fmt: skip
_ABOUT = {
    "gen_ai.agent.name": "agent", "agent.name": "agent", "gen_ai.provider.name": "provider", "gen_ai.system": "provider",
    "llm.provider": "provider", "ai.model.provider": "provider", "gen_ai.operation.name": "operation",
    "gen_ai.response.id": "response_id", "ai.response.id": "response_id", "gen_ai.conversation.compacted": "compacted",
    "ai.response.finishReason": "finish_reason", "llm.finish_reason": "finish_reason",
}  # fmt: skip
_FAILED = frozenset({"error", "content_filter", "content-filter", "failure"})


# --- a signal ----------------------------------------------------------------------------------------------------


class Recall:
    """What the last call of each trace was sent, so that what the next one repeats isn't read again."""

    #: Traces, and bytes of input, that are remembered.
    _TRACES, _BYTES = 256, 4 << 20

    def __init__(self) -> None:
        self._calls: OrderedDict[str, _Sent] = OrderedDict()  # by trace; the longest without a call first
        self._size = 0

    def sent(self, trace: str | None, system: Any, given: Any, size: int) -> Turns:
        """What `gen_ai.system_instructions` and `gen_ai.input.messages` say together. Raises MisfitError."""
        before = self._calls.pop(trace, None) if trace is not None else None
        if before is not None:
            self._size -= before.size
        where = ("attributes", "gen_ai.input.messages")
        if (
            before is not None
            and (before.system is system or _rest(before.system, system) == [])
            and (rest := _rest(before.given, given)) is not None
        ):
            asked, count = before.turns.copy(), before.count
            asked.extend(rest, where, first=count)
            count += len(rest)
        else:
            asked = Turns()
            if instructions := _texts(system):
                parts = instructions if isinstance(instructions, list) else [instructions]
                asked.say("system", asked.text_of(parts))
            listed = _listed(found, where[1]) if (found := _parsed(given, where[1])) is not None else []
            asked.extend(listed, where)
            count = len(listed) if isinstance(found, list) else 0
        if trace is not None and count:
            self._keep(trace, _Sent(system, given, count, asked, size))
        return asked

    def members(self, trace: str | None, given: list[dict[str, Any]], size: int) -> Turns:
        """What messages say whose members stand in attributes of their own: `{"message.role": …}`. Raises MisfitError."""
        before = self._calls.pop(trace, None) if trace is not None else None
        if before is not None:
            self._size -= before.size
        if before is not None and before.system is Turns and given[: before.count] == before.given:
            asked, count = before.turns.copy(), before.count
        else:
            asked, count = Turns(), 0
        rest = given[count:]
        asked.extend(
            map(_openinference_message, rest), ("attributes", "llm.input_messages"), default="user", first=count
        )
        if trace is not None and given and all(type(one) is str for members in rest for one in members.values()):
            self._keep(trace, _Sent(Turns, given, len(given), asked, size))  # text equals nothing but itself
        return asked

    def _keep(self, trace: str, sent: _Sent) -> None:
        self._calls[trace] = sent
        self._size += sent.size
        while len(self._calls) > self._TRACES or self._size > self._BYTES:
            self._size -= self._calls.popitem(last=False)[1].size


@dataclass(frozen=True, slots=True)
class _Sent:
    system: Any  # the class Turns for messages whose members are attributes
    given: Any  # a list of messages, or JSON text that holds one
    count: int  # of messages
    turns: Turns  # nothing is added to it
    size: int


def _rest(before: Any, given: Any) -> list[Any] | None:
    """The messages that come after those of before; None when it can't be told cheaply that these are the same."""
    if isinstance(given, list):
        if isinstance(before, list) and len(before) <= len(given) and all(map(is_, before, given)):
            return given[len(before) :]
        return None
    if not isinstance(given, str) or not isinstance(before, str):
        return None
    if given == before:
        return []
    stem = before.rstrip()[:-1].rstrip()  # to the end of its last message
    if not given.startswith(stem) or given[len(stem) : len(stem) + 1] != ",":
        return None
    try:
        rest = parse_json(f"[{given[len(stem) + 1 :]}")
    except ValueError:
        return None
    return rest or None


def calls_of(signal: Signal, line: int, size: int, recall: Recall | None = None) -> list[Call] | str:
    """The calls that a span or log record holds, one for each answer that was asked for; or why it holds none.

    `recall` knows the calls before. Raises MisfitError for content that can't be meant.
    """
    attributes = signal["attributes"]
    operation = attributes.get("gen_ai.operation.name")
    if signal["kind"] == "log" and signal["name"] != DETAILS:
        return LOGS
    for event in signal["events"]:
        if event["name"] == DETAILS:
            attributes = {**attributes, **event["attributes"]}
    if operation == "execute_tool" or attributes.get("openinference.span.kind") == "TOOL":
        return TOOL_RUNS
    said = _content(attributes, signal, size, recall or Recall())
    if said is None:
        return EMPTY if _is_inference(attributes) else OTHER
    asked, answers, tools = said
    if not answers and not asked.messages:
        return EMPTY
    return [
        _call(signal, attributes, line, size, asked, answer, tools, choice)
        for choice, answer in enumerate(answers or [Turns()])
    ]


def _call(
    signal: Signal,
    attributes: Mapping[str, Any],
    line: int,
    size: int,
    asked: Turns,
    answer: Turns,
    tools: list[Any] | None,
    choice: int,
) -> Call:
    whole = Turns()
    whole.messages = [*asked.messages, *answer.messages]
    whole.replaced = asked.replaced + answer.replaced
    whole.failed = [*asked.failed, *answer.failed]
    if not whole.messages:
        raise MisfitError((), "bad-value", "expected messages, got content that says nothing")
    trace, span = signal["trace_id"], signal["span_id"]
    session = next((found for name in _SESSIONS if (found := named(attributes.get(name)))), None)
    position: tuple[str | int, ...] = (trace or "", span or "", choice)
    if span is None:  # a log record outside any span
        position = (signal["end"] or 0, named(attributes.get("gen_ai.response.id")) or "", repr(whole.messages), choice)
    record_id = hashed_id("otlp", *position)
    offered = tools_text(tools) if tools else None

    def late() -> dict[str, Any]:
        record = trace_record(
            whole,
            id=record_id,
            model=next((found for name in _MODELS if (found := named(attributes.get(name)))), None),
            tools=offered,
            session_id=session or trace,
            subject=next((found for name in _USERS if (found := named(attributes.get(name)))), None),
            ts=from_ns(signal["end"] or signal["start"]),
            meta=_meta(signal, attributes),
        )
        del record["messages"]
        return record

    targets = [f"span:{trace}/{span}"] if span else []
    if trace:
        targets.append(f"trace:{trace}")
    if session:
        targets.append(f"session:{session}")
    if response := named(attributes.get("gen_ai.response.id")):
        targets.append(f"response:{response}")
    return Call(
        record={"id": record_id, "messages": whole.done()},
        conversation=f"session:{session}" if session else f"trace:{trace}" if trace else record_id,
        at=signal["end"] or signal["start"] or 0,
        line=line,
        size=size,
        targets=tuple(targets),
        rank=0 if signal["kind"] == "span" else 1,
        is_summary=_is_summary(attributes),
        outcome=_outcome(signal, attributes),
        late=late,
    )


def _is_inference(attributes: Mapping[str, Any]) -> bool:
    operation = named(attributes.get("gen_ai.operation.name"))
    if operation is not None:
        return operation in _INFERENCE or operation in _SUMMARIES
    kind = attributes.get("openinference.span.kind")
    if kind is not None:
        return bool(kind == "LLM")
    return any(
        name.startswith(("gen_ai.", "llm.")) or name == "ai.operationId" or name == "langfuse.observation.model.name"
        for name in attributes
    )


def _is_summary(attributes: Mapping[str, Any]) -> bool:
    if named(attributes.get("gen_ai.operation.name")) in _SUMMARIES:
        return True
    if attributes.get("openinference.span.kind") not in (None, "LLM"):
        return True
    if attributes.get("langfuse.observation.type") not in (None, "generation"):
        return True
    operation = attributes.get("ai.operationId")
    return isinstance(operation, str) and not operation.endswith((".doGenerate", ".doStream"))


def _meta(signal: Signal, attributes: Mapping[str, Any]) -> dict[str, Any]:
    meta: dict[str, Any] = {"format": "otlp"}
    for name, ours in _ABOUT.items():
        value = attributes.get(name)
        if ours not in meta and isinstance(value, str | bool) and value != "":
            meta[ours] = value
    reasons = attributes.get("gen_ai.response.finish_reasons")
    if isinstance(reasons, list) and reasons:
        meta["finish_reason"] = reasons[0] if len(reasons) == 1 else reasons
    usage: dict[str, int | float] = {}
    for name, ours in _USAGE.items():
        value = attributes.get(name)
        if (
            ours not in usage
            and isinstance(value, int | float)
            and not isinstance(value, bool)
            and math.isfinite(value)
        ):
            usage[ours] = value
    if usage:
        meta["usage"] = usage
    service = signal["resource"].get("service.name")
    if isinstance(service, str) and service and not service.startswith("unknown_service"):
        meta["service"] = service
    if signal["trace_id"]:
        meta["trace_id"] = signal["trace_id"]
    if signal["span_id"]:
        meta["span_id"] = signal["span_id"]
    return meta


def _outcome(signal: Signal, attributes: Mapping[str, Any]) -> dict[str, Any]:
    kind = named(attributes.get("error.type"))
    told = signal["error"]
    for event in signal["events"]:
        if event["name"] == "exception":
            kind = kind or named(event["attributes"].get("exception.type"))
            told = told or named(event["attributes"].get("exception.message"))
    if kind is not None or signal["error"] is not None:
        return {"status": "error", "error": ": ".join(part for part in (kind, told) if part) or "unknown"}
    reasons = attributes.get("gen_ai.response.finish_reasons")
    reason = reasons[0] if isinstance(reasons, list) and reasons else attributes.get("ai.response.finishReason")
    return {"status": "error", "error": str(reason)} if named(reason) in _FAILED else {}


# --- content -----------------------------------------------------------------------------------------------------


Said = tuple[Turns, list[Turns], list[Any] | None]  # what was asked, each answer to it, the tools on offer


def _content(attributes: Mapping[str, Any], signal: Signal, size: int, recall: Recall) -> Said | None:
    if (said := _genai(attributes, signal["trace_id"], size, recall)) is not None:
        return said
    names = "\n".join(attributes)
    if "gen_ai." in names and (said := _flat(attributes)) is not None:
        return said
    if "llm." in names and (said := _openinference(attributes, signal["trace_id"], size, recall)) is not None:
        return said
    for read, mark in ((_vercel, "ai."), (_langfuse, "langfuse.")):
        if mark in names and (said := read(attributes)) is not None:
            return said
    return _of_events(signal)


def _parsed(value: Any, name: str) -> Any:
    """An attribute that is structured or JSON text, which some exporters cut off at their limit."""
    if not isinstance(value, str):
        return value
    if not value.strip():
        return None
    try:
        return parse_json(value)
    except ValueError as exc:
        raise MisfitError(
            ("attributes", name), "bad-json",
            f"expected JSON, got text that doesn't parse: {exc}; was it cut off at OTEL_ATTRIBUTE_VALUE_LENGTH_LIMIT?",
        ) from exc  # fmt: skip


def _listed(value: Any, name: str) -> list[Any]:
    if isinstance(value, dict):
        return [value]
    if not isinstance(value, list):
        raise MisfitError(
            ("attributes", name), "wrong-type", f"expected a list of messages, got {type(value).__name__}"
        )
    return value


def _genai(attributes: Mapping[str, Any], trace: str | None, size: int, recall: Recall) -> Said | None:
    given = attributes.get("gen_ai.input.messages")
    made = attributes.get("gen_ai.output.messages")
    if given is None and made is None:
        return None
    try:
        made = _parsed(made, "gen_ai.output.messages")
    except MisfitError:
        _parsed(given, "gen_ai.input.messages")  # what was sent comes first
        raise
    if made is None and (given is None or (isinstance(given, str) and given.strip() in ("", "null"))):
        return None
    asked = recall.sent(trace, attributes.get("gen_ai.system_instructions"), given, size)
    answers = []
    for position, one in enumerate(_listed(made, "gen_ai.output.messages") if made is not None else ()):
        answer = Turns()
        answer.add(one, ("attributes", "gen_ai.output.messages", position), default="assistant")
        if answer.messages:
            answers.append(answer)
    return asked, answers, _tools(attributes.get("gen_ai.tool.definitions"), "gen_ai.tool.definitions")


def _tools(value: Any, name: str) -> list[Any] | None:
    if isinstance(value, str) and len(value) <= _TOOLS_SIZE:
        return _tools_said(value, name)
    return tools_of(_parsed(value, name))


#: Characters of a text about tools that is worth remembering.
_TOOLS_SIZE = 32 << 10


@lru_cache(64)
def _tools_said(text: str, name: str) -> list[Any] | None:
    """Tools from JSON text, mostly that of the call before; not to be changed."""
    return tools_of(_parsed(text, name))


@lru_cache(64)
def _schemas_said(texts: tuple[str, ...]) -> list[Any] | None:
    return tools_of([one for text in texts if (one := json_or_same(text)) is not None])


def _texts(value: Any) -> Any:
    value = json_or_same(value)
    if isinstance(value, list):
        return [one if isinstance(one, str | dict) else str(one) for one in value]
    return value


def indexed(attributes: Mapping[str, Any], prefix: str) -> list[dict[str, Any]]:
    """Members of `prefix.{i}.member` attributes, one dict for each i, in the order of the numbers."""
    found: dict[int, dict[str, Any]] = {}
    start = f"{prefix}."
    for name, value in attributes.items():
        if name.startswith(start):
            number, dot, member = name[len(start) :].partition(".")
            if dot and number.isdecimal():
                found.setdefault(int(number), {})[member] = value
    return [found[number] for number in sorted(found)]


def _flat(attributes: Mapping[str, Any]) -> Said | None:
    """OpenLLMetry's attributes, a name for each member: `gen_ai.prompt.0.content`."""
    given, made = indexed(attributes, "gen_ai.prompt"), indexed(attributes, "gen_ai.completion")
    if not given and not made:
        return None
    asked, answers = Turns(), []
    for position, one in enumerate(given):
        asked.add(_flat_message(one), ("attributes", f"gen_ai.prompt.{position}"), default="user")
    for position, one in enumerate(made):
        answer = Turns()
        answer.add(_flat_message(one), ("attributes", f"gen_ai.completion.{position}"), default="assistant")
        if answer.messages:
            answers.append(answer)
    tools = [
        {**one, "parameters": json_or_same(one.get("parameters"))}
        for one in indexed(attributes, "llm.request.functions")
    ]
    return asked, answers, tools_of(tools)


def _flat_message(one: Mapping[str, Any]) -> dict[str, Any]:
    made: dict[str, Any] = {name: one[name] for name in ("role", "tool_call_id", "name") if one.get(name) is not None}
    content = json_or_same(one.get("content"))  # parts, as JSON text
    is_parts = isinstance(content, list) and all(isinstance(part, dict) and "type" in part for part in content)
    made["content"] = content if is_parts else one.get("content")
    if one.get("reasoning") is not None:
        made["reasoning_content"] = one["reasoning"]
    if calls := indexed(one, "tool_calls"):
        made["tool_calls"] = calls
    return made


def _openinference(attributes: Mapping[str, Any], trace: str | None, size: int, recall: Recall) -> Said | None:
    members = _llm_members(attributes)
    given = _messages(attributes.get("llm.input_messages"), members["input_messages"])
    made = list(
        map(_openinference_message, _messages(attributes.get("llm.output_messages"), members["output_messages"]))
    )
    if not given and not made:
        return None
    asked, answers = recall.members(trace, given, size), []
    for position, one in enumerate(made):
        answer = Turns()
        answer.add(one, ("attributes", "llm.output_messages", position), default="assistant")
        if answer.messages:
            answers.append(answer)
    tools = attributes.get("llm.tools")
    listed = [_members(one) for one in tools] if isinstance(tools, list) else _in_order(members["tools"])
    schemas = [one.get("tool.json_schema") for one in listed]
    texts = tuple(one for one in schemas if isinstance(one, str))
    if len(texts) == len(schemas) and sum(map(len, texts)) <= _TOOLS_SIZE:
        return asked, answers, _schemas_said(texts)
    return asked, answers, tools_of([found for one in schemas if (found := json_or_same(one)) is not None])


#: The plainest messages have no members but these.
_PLAIN = frozenset({"message.role", "message.name", "message.tool_call_id", "message.content"})


def _llm_members(attributes: Mapping[str, Any]) -> dict[str, dict[int, dict[str, Any]]]:
    """What `indexed` finds under `llm.input_messages`, `llm.output_messages` and `llm.tools`, by number, in one pass."""
    found: dict[str, dict[int, dict[str, Any]]] = {"input_messages": {}, "output_messages": {}, "tools": {}}
    for name, value in attributes.items():
        if name.startswith(("llm.input_messages.", "llm.output_messages.", "llm.tools.")):
            split = name.split(".", 3)
            if len(split) == 4 and (number := split[2]).isdecimal():
                of = found[split[1]]
                at = int(number)
                members = of.get(at)
                if members is None:
                    of[at] = members = {}
                members[split[3]] = value
    return found


def _in_order(found: Mapping[int, dict[str, Any]]) -> list[dict[str, Any]]:
    return [found[number] for number in sorted(found)]


def _members(value: Any) -> dict[str, Any]:
    """Nested objects as dotted names: Phoenix writes `{"message": {"role": …}}` for `message.role`."""
    found: dict[str, Any] = {}
    if isinstance(value, dict):
        for name, inner in value.items():
            if isinstance(inner, dict):
                found.update({f"{name}.{member}": one for member, one in _members(inner).items()})
            elif isinstance(inner, list):
                for position, one in enumerate(inner):
                    found.update({f"{name}.{position}.{member}": deep for member, deep in _members(one).items()})
                found.setdefault(str(name), inner)
            else:
                found[str(name)] = inner
    return found


def _messages(whole: Any, found: Mapping[int, dict[str, Any]]) -> list[dict[str, Any]]:
    whole = json_or_same(whole)
    return [_members(one) for one in whole] if isinstance(whole, list) else _in_order(found)


def _openinference_message(one: Mapping[str, Any]) -> dict[str, Any]:
    made: dict[str, Any] = {}
    for name in ("role", "name", "tool_call_id", "content"):
        if one.get(f"message.{name}") is not None:
            made[name] = one[f"message.{name}"]
    if _PLAIN.issuperset(one):
        return made
    parts: list[dict[str, Any]] = []
    for part in indexed(one, "message.contents"):
        kind = part.get("message_content.type")
        if kind == "text" or (kind is None and "message_content.text" in part):
            parts.append({"type": "text", "text": part.get("message_content.text") or ""})
        elif kind in ("reasoning", "thinking"):
            parts.append({"type": "reasoning", "content": part.get("message_content.text")})
        else:
            links = ("image.image.url", "image.url", "audio.audio.url", "video.video.url", "document.document.url")
            where = next((part[f"message_content.{name}"] for name in links if f"message_content.{name}" in part), None)
            media = part.get("message_content.audio.audio.mime_type") or part.get(
                "message_content.document.document.mime_type"
            )
            parts.append({"type": kind or "part", "url": where, "mime_type": media})
    if parts:
        made["content"] = parts
    calls = [
        {
            "id": call.get("tool_call.id"),
            "name": call.get("tool_call.function.name"),
            "arguments": call.get("tool_call.function.arguments"),
        }
        for call in indexed(one, "message.tool_calls")
    ]
    if calls:
        made["tool_calls"] = calls
    elif one.get("message.function_call_name") is not None:
        called = {
            "name": one["message.function_call_name"],
            "arguments": one.get("message.function_call_arguments_json"),
        }
        made["tool_calls"] = [called]
    return made


def _vercel(attributes: Mapping[str, Any]) -> Said | None:
    given = _parsed(attributes.get("ai.prompt.messages"), "ai.prompt.messages")
    prompt = _parsed(attributes.get("ai.prompt"), "ai.prompt") if given is None else None
    asked, answer = Turns(), Turns()
    if given is not None:
        asked.extend(_listed(given, "ai.prompt.messages"), ("attributes", "ai.prompt.messages"))
    elif prompt is not None:
        found = conversation_of(prompt)
        if found is None:
            return None
        asked.extend(found[0], ("attributes", "ai.prompt"))
    text = attributes.get("ai.response.text")
    if text is None:
        text = attributes.get("ai.response.object")
    calls = _parsed(attributes.get("ai.response.toolCalls"), "ai.response.toolCalls")
    thought = attributes.get("ai.response.reasoning")
    if given is None and prompt is None and text is None and calls is None:
        return None
    made: dict[str, Any] = {"role": "assistant", "content": text if isinstance(text, str) and text else None}
    if isinstance(calls, list) and calls:
        made["tool_calls"] = calls
    if isinstance(thought, str) and thought:
        made["reasoning_content"] = thought
    answer.add(made, ("attributes", "ai.response"))
    return asked, [answer] if answer.messages else [], tools_of(attributes.get("ai.prompt.tools"))


def _langfuse(attributes: Mapping[str, Any]) -> Said | None:
    """What Langfuse's own SDK sends: an observation's input and output as JSON text."""
    if "langfuse.observation.type" not in attributes:
        return None
    given = conversation_of(attributes.get("langfuse.observation.input"))
    made = conversation_of(attributes.get("langfuse.observation.output"), default="assistant")
    if given is None and made is None:
        return None
    asked, answer = Turns(), Turns()
    if given is not None:
        asked.extend(given[0], ("attributes", "langfuse.observation.input"))
    if made is not None:
        answer.extend(made[0], ("attributes", "langfuse.observation.output"), default="assistant")
    return asked, [answer] if answer.messages else [], given[1] if given is not None else None


def _of_events(signal: Signal) -> Said | None:
    """Content in a span's events, as conventions had it until 2025: one event a message, or a prompt and a completion."""
    asked, answers = Turns(), []
    for position, event in enumerate(signal["events"]):
        loc = ("events", position)
        inside = event["attributes"]
        if event["name"] == "gen_ai.content.prompt":
            found = conversation_of(inside.get("gen_ai.prompt"))
            asked.extend(found[0] if found else (), loc, default="user")
        elif event["name"] == "gen_ai.content.completion":
            found = conversation_of(inside.get("gen_ai.completion"), default="assistant")
            for one in found[0] if found else ():
                answers.append(Turns())
                answers[-1].add(one, loc, default="assistant")
        elif matched := _SINGLE.match(event["name"]):
            one = {name: json_or_same(value) for name, value in inside.items()}
            if matched[1] == "choice":
                inner = one.get("message")
                answers.append(Turns())
                answers[-1].add(inner if isinstance(inner, dict) else one, loc, default="assistant")
            else:
                if matched[2] == "tool" and one.get("id") is not None:
                    one["tool_call_id"] = one["id"]
                asked.add(one, loc, default=matched[2])
    answers = [answer for answer in answers if answer.messages]
    return (asked, answers, None) if asked.messages or answers else None


# --- scores ------------------------------------------------------------------------------------------------------


def words_of(signal: Signal) -> Iterator[tuple[str, Word]]:
    """What is said about calls: target and word."""
    at = f"span:{signal['trace_id']}/{signal['span_id']}"
    if signal["name"] == EVALUATION:
        yield from _evaluation(signal["attributes"], at)
    for event in signal["events"]:
        if event["name"] == EVALUATION:
            yield from _evaluation(event["attributes"], at)
    attributes = signal["attributes"]
    names = "\n".join(attributes)
    if "annotations." not in names and "evaluations." not in names:
        return
    session = next((found for name in _SESSIONS if (found := named(attributes.get(name)))), None)
    for scope, target in (("", at), ("trace.", f"trace:{signal['trace_id']}"), ("session.", f"session:{session}")):
        for terms, one in (("annotations", "annotation"), ("evaluations", "evaluation")):
            for word in _words_under(attributes, f"{scope}{terms}", one):
                yield target, word


def _evaluation(attributes: Mapping[str, Any], at: str) -> Iterator[tuple[str, Word]]:
    word = _word(
        attributes.get("gen_ai.evaluation.name"),
        attributes.get("gen_ai.evaluation.score.value"),
        attributes.get("gen_ai.evaluation.score.label"),
        attributes.get("gen_ai.evaluation.explanation"),
        None,
    )
    response = named(attributes.get("gen_ai.response.id"))
    if word is not None:
        yield f"response:{response}" if response else at, word


def _words_under(attributes: Mapping[str, Any], prefix: str, one: str) -> Iterable[Word]:
    """OpenInference's annotations or evaluations: `annotations.{i}.annotation.score`."""
    for given in indexed(attributes, prefix):
        word = _word(
            given.get(f"{one}.name"), given.get(f"{one}.score"), given.get(f"{one}.label"),
            given.get(f"{one}.explanation"), given.get(f"{one}.annotator_kind"),
        )  # fmt: skip
        if word is not None:
            yield word


def _word(name: Any, score: Any, label: Any, comment: Any, by: Any) -> Word | None:
    number = isinstance(score, int | float) and not isinstance(score, bool) and math.isfinite(score)
    word = Word(named(name) or "score", float(score) if number else None, named(label), named(comment), named(by))
    return word if word.said != {} else None
