"""A message, whatever shape a program writes it in, as messages of our `chat` record type.

Knows the shapes that traces hold: OpenAI's chat completions and Responses, Anthropic's blocks, GenAI's parts, Gemini's parts,
LangChain's messages, Vercel's. Names of kinds don't clash between them, so one reader takes them all. What can't be text stays
visible as a placeholder (`[image image/png, 512 bytes, 5feceb66]`), never silently gone. Pure; knows no file format.
"""

from __future__ import annotations

import ast
import base64
import binascii
import hashlib
from collections.abc import Iterable, Mapping, Sequence, Set
from datetime import UTC, datetime, timedelta
from typing import Any

from treering.errors import Problem, ProblemKind
from treering.formats.chat import message, name_tools, record_of, tool_call
from treering.schema.fields import dump_json
from treering.schema.record_type import safe_repr
from treering.schema.strict_json import parse_json

__all__ = [
    "MisfitError",
    "Turns",
    "as_text",
    "conversation_of",
    "from_ns",
    "json_or_same",
    "micros",
    "moment",
    "named",
    "placeholder",
    "tools_of",
    "trace_record",
]

Loc = tuple[str | int, ...]

_ROLES = {
    "system": "system", "developer": "developer", "user": "user", "assistant": "assistant", "tool": "tool",
    "human": "user", "ai": "assistant", "model": "assistant", "function": "tool", "bot": "assistant",
    "AIMessageChunk": "assistant", "HumanMessageChunk": "user",
}  # fmt: skip
_LANGCHAIN = {
    "SystemMessage": "system", "HumanMessage": "user", "AIMessage": "assistant", "ToolMessage": "tool",
    "FunctionMessage": "tool", "ChatMessage": "", "AIMessageChunk": "assistant", "HumanMessageChunk": "user",
}  # fmt: skip

_TEXTS = frozenset({"text", "input_text", "output_text", "refusal", "summary_text", "reasoning_text"})
_RESULTS = frozenset({"tool_call_response", "server_tool_call_response", "tool-result", "tool_result"})
_UNTYPED = frozenset({"", "function_call"})  # what Gemini's calls say
_THOUGHTS = frozenset({"reasoning", "thinking", "thought"})
_HIDDEN = frozenset({"redacted_thinking", "redacted-reasoning", "cache_control", "step-start", "ghost_snapshot"})
_CALLS = frozenset({"tool_call", "tool_use", "tool-call", "server_tool_use", "mcp_tool_use", "server_tool_call"})
_ITEMS = frozenset({"message", "reasoning"})  # of OpenAI's Responses; others end in _call or _output
#: The members of the plainest messages, and who may say them.
_SAID, _PARTED = frozenset({"role", "content"}), frozenset({"role", "parts"})
_RESULT = frozenset({"role", "content", "tool_call_id"})
_SPEAKERS = frozenset({"system", "developer", "user", "assistant"})
_SAYS = frozenset({"content", "parts", "tool_calls", "refusal", "function_call", "audio"})
_REASONS = ("reasoning_content", "thinking", "reasoning")
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class MisfitError(ValueError):
    """Something in a value that can't be meant; becomes a problem of the value."""

    def __init__(self, loc: Loc, kind: ProblemKind, message: str) -> None:
        super().__init__(message)
        self.problem = Problem(loc, kind, message)


def _wrong(loc: Loc, expected: str, got: Any) -> MisfitError:
    return MisfitError(loc, "wrong-type", f"expected {expected}, got {safe_repr(got)[:80]}")


# --- values ------------------------------------------------------------------------------------------------------


def from_ns(nanoseconds: int | None) -> datetime | None:
    """A time from nanoseconds since 1970, to the microsecond; None for none and for what no calendar holds."""
    if not nanoseconds:
        return None
    try:
        return _EPOCH + timedelta(microseconds=nanoseconds // 1000)
    except OverflowError:
        return None


def moment(value: Any, loc: Loc = ()) -> datetime | None:
    """A time from ISO 8601 text; text without an offset is UTC, which the formats that write so promise."""
    if value is None or value == "":
        return None
    if not isinstance(value, str):
        raise _wrong(loc, "a time as ISO 8601 text", value)
    try:
        found = datetime.fromisoformat(value)
    except ValueError:
        try:
            found = datetime.fromisoformat(value.strip().removesuffix(" UTC"))
        except ValueError:
            raise MisfitError(
                loc, "bad-value", f"expected a time as ISO 8601 text, got {safe_repr(value)[:80]}"
            ) from None
    return found.replace(tzinfo=UTC) if found.tzinfo is None else found


def micros(when: datetime | None) -> int:
    """Microseconds since 1970, exactly; 0 for none."""
    return 0 if when is None else (when - _EPOCH) // timedelta(microseconds=1)


def json_or_same(value: Any) -> Any:
    """What text says when it is a JSON object or list; any other value, and other text, as it is."""
    if isinstance(value, str) and value.lstrip()[:1] in ("{", "["):
        try:
            return parse_json(value)
        except ValueError:
            return value
    return value


def named(value: Any) -> str | None:
    """A name or id as text; integers, which some senders use as ids, become text; None for anything else and for ""."""
    if isinstance(value, str):
        return value or None
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else None


def as_text(value: Any) -> str:
    """A tool's result or the like as text: text as it is, parts joined, other values as JSON."""
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    if isinstance(value, list) and value and all(isinstance(part, dict) and "type" in part for part in value):
        turns = Turns()
        return turns.text_of(value)
    try:
        return dump_json(value)
    except ValueError:
        return safe_repr(value)


def _raw(data: str | bytes) -> bytes:
    """The bytes that data stands for: base64, Python's `b'…'` (how the SDK writes bytes into an event), or the text itself."""
    if isinstance(data, bytes):
        return data
    try:
        return base64.b64decode(data, validate=True)
    except (ValueError, binascii.Error):
        pass
    if data[:2] in ("b'", 'b"'):
        try:
            value = ast.literal_eval(data)
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            value = None
        if isinstance(value, bytes):
            return value
    return data.encode("utf-8", "surrogatepass")


def placeholder(
    kind: str,
    media: Any = None,
    *,
    data: Any = None,
    where: Any = None,
    text: str | None = None,
) -> str:
    """What stands for a part that isn't text: its kind, its media type, and where it lies or its size and a hash of it.

    `data` is text (base64 as it came) or bytes; the hash tells parts apart and is the same for the same data.
    """
    says = [kind if not isinstance(media, str) or not media else f"{kind} {media}"]
    if isinstance(where, str) and where.startswith("data:"):
        head, _, data = where.partition(",")
        where = None
        if not media and head[5:].split(";")[0]:
            says[0] = f"{kind} {head[5:].split(';')[0]}"
    if isinstance(where, str | int) and not isinstance(where, bool) and where != "":
        says.append(str(where))
    if isinstance(data, str | bytes) and data:
        raw = _raw(data)
        says += [f"{len(raw)} bytes", hashlib.sha256(raw).hexdigest()[:8]]
    if text:
        says.append(text)
    return f"[{', '.join(says)}]"


# --- tools on offer ----------------------------------------------------------------------------------------------


def tools_of(value: Any) -> list[Any] | None:
    """Tools on offer in the shape OpenAI's files and chat templates take: `{"type": "function", "function": {…}}`.

    Takes lists of GenAI's, Anthropic's, Responses', Vercel's or OpenAI's definitions, each an object or its JSON text, and
    Vercel's object by name. What is of no such shape (a provider's own tool) stays as it is. None for no tools.
    """
    value = json_or_same(value)
    if isinstance(value, dict):
        value = [{"name": name, **one} for name, one in value.items() if isinstance(one, dict)]
    if not isinstance(value, list):
        return None
    return [_tool(json_or_same(one)) for one in value] or None


def _tool(one: Any) -> Any:
    if not isinstance(one, dict):
        return one
    if isinstance(one.get("function"), dict) or not isinstance(one.get("name"), str):
        return dict(one)
    schemas = ("parameters", "input_schema", "inputSchema", "jsonSchema")
    if one.get("type") not in (None, "function", "custom") and not any(name in one for name in schemas):
        return dict(one)  # a provider's own: {"type": "web_search", "name": …}
    function: dict[str, Any] = {"name": one["name"]}
    if one.get("description") is not None:
        function["description"] = one["description"]
    for name in schemas:
        if one.get(name) is not None:
            function["parameters"] = json_or_same(one[name])
            break
    if one.get("strict") is not None:
        function["strict"] = one["strict"]
    return {"type": "function", "function": function}


# --- messages ----------------------------------------------------------------------------------------------------


class Turns:
    """Messages as they come, put together: one for each turn of a speaker, one for each result of a tool.

    `replaced` counts parts that became placeholders, `failed` are the ids of calls whose result was marked as an error.
    """

    def __init__(self) -> None:
        self.messages: list[dict[str, Any]] = []
        self.replaced = 0
        self.failed: list[str] = []
        self._thought: list[str] = []  # reasoning of Responses' that stands before what it led to

    def say(
        self,
        role: str,
        text: str | None,
        *,
        reasoning: str | None = None,
        calls: list[dict[str, Any]] | None = None,
    ) -> None:
        """Add a message; nothing at all, when nothing is said."""
        self._push(role, [text] if text is not None else [], [reasoning] if reasoning else [], calls or [])

    def result(self, text: str, call_id: str | None, *, name: str | None = None, failed: bool = False) -> None:
        """Add a tool's result."""
        self.messages.append(message("tool", text, tool_call_id=call_id, name=name))
        if failed and call_id is not None:
            self.failed.append(call_id)

    def copy(self) -> Turns:
        """The same so far; neither is changed by what is added to the other."""
        made = Turns()
        made.messages, made.failed, made._thought = list(self.messages), list(self.failed), list(self._thought)
        made.replaced = self.replaced
        return made

    def extend(self, values: Iterable[Any], loc: Loc = (), *, default: str | None = None, first: int = 0) -> None:
        """Add messages; each in any shape. `default` is the role of those that don't say theirs, `first` the position of the
        first one at `loc`. Raises MisfitError.
        """  # noqa: D205
        for position, value in enumerate(values, first):
            self.add(value, (*loc, position), default=default)

    def _adds_plain(self, value: dict[str, Any]) -> bool:
        """Add a message as most are, text that somebody says or a result; False for any other."""
        content, role = value.get("content"), value.get("role")
        call = value.get("tool_call_id")
        members: Set[str] = value.keys()
        if members == _PARTED and type(parts := value["parts"]) is list and len(parts) == 1 and type(parts[0]) is dict:
            part = parts[0]
            kind = part.get("type")
            if kind == "text" and len(part) == 2:
                content, members = part.get("content"), _SAID
            elif kind == "tool_call_response" and len(part) == 3:
                content, call, role, members = part.get("response"), part.get("id"), "tool", _RESULT
        if type(content) is not str or type(role) is not str:
            return False
        if role in _SPEAKERS and members == _SAID:
            if self._thought and role == "assistant":
                return False
            if content or role != "assistant":
                self.messages.append({"role": role, "content": content})
            return True
        if role == "tool" and members == _RESULT and type(call) is str and call:
            self.messages.append({"role": "tool", "content": content, "tool_call_id": call})
            return True
        return False

    def add(self, value: Any, loc: Loc = (), *, default: str | None = None) -> None:
        """Add a message in any shape. Raises MisfitError that names the place, for what is no message."""
        if type(value) is dict and self._adds_plain(value):
            return
        if isinstance(value, str) and default is not None:
            self.say(default, value)
            return
        if isinstance(value, list):  # a batch of one, as LangChain writes it
            self.extend(value, loc, default=default)
            return
        if not isinstance(value, dict):
            raise _wrong(loc, "a message", value)
        value = _unwrapped(value)
        kind = value.get("type")
        if "role" not in value and isinstance(kind, str) and _is_item(kind):
            self._item(kind, value, loc)
            return
        self._message(value, _role(value, loc, default), loc)

    def _message(self, value: Mapping[str, Any], role: str, loc: Loc) -> None:
        content = value.get("parts") if isinstance(value.get("parts"), list) else value.get("content")
        name = named(value.get("name"))
        call_id = named(value.get("tool_call_id")) or named(value.get("toolCallId"))
        before = len(self.messages)
        if role == "tool" and not _holds_results(content):
            self.result(self.text_of(content), call_id, name=name, failed=value.get("status") == "error")
            return
        thoughts = [one for key in _REASONS if key in value and (one := _thought(value[key]))]
        extra = value.get("additional_kwargs")
        if isinstance(extra, dict) and not thoughts and (one := _thought(extra.get("reasoning_content"))):
            thoughts.append(one)
        calls = _calls(value, loc)
        refusal = value.get("refusal")
        if content is None and isinstance(refusal, str):
            content = refusal
        self._parts(role, content, (*loc, "content"), thoughts[:1], calls)
        if name is not None and role != "tool":
            for made in self.messages[before:]:
                if made["role"] == role:
                    made["name"] = name

    def _parts(self, role: str, content: Any, loc: Loc, thoughts: list[str], calls: list[dict[str, Any]]) -> None:
        """Add what parts say, in order: a result of a tool ends what was being said."""
        if isinstance(content, dict):
            content = [content]
        if not isinstance(content, list):
            if content is not None and not isinstance(content, str):
                raise _wrong(loc, "text or a list of parts", content)
            self._push(role, [content] if content is not None else [], thoughts, calls)
            return
        texts: list[str] = []
        called = {call.get("id") for call in calls}
        for position, part in enumerate(content):
            if isinstance(part, str):
                texts.append(part)
                continue
            if not isinstance(part, dict):
                raise _wrong((*loc, position), "a part", part)
            kind = str(part.get("type") or "")
            if kind == "text" and type(text := part.get("text")) is str and part.get("thought") is not True:
                texts.append(text)
            elif kind in _THOUGHTS:
                if thought := _thought(part):
                    thoughts.append(thought)
            elif (kind in _CALLS or kind in _UNTYPED) and (
                call := _call_part(kind, part, (*loc, position))
            ) is not None:
                if call.get("id") is None or call["id"] not in called:  # LangChain writes calls as parts, too
                    calls.append(call)
                    called.add(call.get("id"))
            elif (kind in _RESULTS or not kind or kind.endswith("_tool_result")) and (
                answer := _result_part(kind, part)
            ) is not None:
                if texts or thoughts or calls:
                    self._push(role, texts, thoughts, calls)
                    texts, thoughts, calls = [], [], []
                given, call_id, name, failed = answer
                self.result(self.text_of(given), call_id, name=name, failed=failed)
            elif part.get("thought") is True:
                if thought := _thought(part):
                    thoughts.append(thought)
            elif kind not in _HIDDEN:
                texts.append(self._part(kind, part))
        if texts or thoughts or calls or not content:
            self._push(role, texts, thoughts, calls)

    def _push(self, role: str, texts: Sequence[str], thoughts: Sequence[str], calls: list[dict[str, Any]]) -> None:
        if role == "assistant" and self._thought:
            thoughts = [*self._thought, *thoughts]
            self._thought = []
        text = "\n".join(texts) if texts else None
        if not text and not calls and not thoughts and role == "assistant":
            return  # nothing was said
        if text is None and not calls and not thoughts:
            return
        self.messages.append(message(role, text, tool_calls=calls, reasoning="\n".join(thoughts) if thoughts else None))

    def text_of(self, content: Any) -> str:
        """Content as text; what isn't text becomes a placeholder, other values JSON."""
        if content is None:
            return ""
        if isinstance(content, str):
            return content
        if isinstance(content, list) and all(isinstance(part, str) or _is_part(part) for part in content):
            return "\n".join(
                part if isinstance(part, str) else self._part(str(part.get("type") or ""), part) for part in content
            )
        if isinstance(content, dict) and content.get("type") in (
            "text",
            "json",
            "error-text",
            "error-json",
            "content",
        ):
            inner = content.get("value", content.get("text"))  # Vercel's result of a tool
            if inner is not None:
                return self.text_of(inner)
        return as_text(content)

    def _part(self, kind: str, part: Mapping[str, Any]) -> str:
        """A part as text, by a placeholder when it isn't text."""
        if kind in _TEXTS or kind == "":
            for key in ("text", "content", "refusal"):
                if isinstance(part.get(key), str):
                    return str(part[key])
        self.replaced += 1
        inner = part.get("source") if isinstance(part.get("source"), dict) else None
        inner = inner or _first(
            part,
            (
                "image_url",
                "input_audio",
                "file",
                "inlineData",
                "inline_data",
                "fileData",
                "image",
                "audio",
                "document",
                "video",
            ),
        )
        inner = inner if isinstance(inner, dict) else {}
        media = _either(part, inner, ("mime_type", "media_type", "mimeType", "mediaType", "format"))
        where = _either(part, inner, ("uri", "url", "image_url", "file_id", "fileUri", "file_uri", "path"))
        if where is None and isinstance(part.get("image"), str):
            where = part["image"]
        data = _either(part, inner, ("data", "file_data"))
        if kind in ("blob", "binary", "image-data", "file") and isinstance(part.get("content"), str | bytes):
            data = part["content"]
        shown = (
            str(part.get("modality"))
            if kind in ("blob", "uri", "file") and isinstance(part.get("modality"), str)
            else kind
        )
        title = _either(part, inner, ("filename", "name", "title"))
        told = part.get("content") if kind == "compaction" and isinstance(part.get("content"), str) else None
        shown = shown or ("image" if "inlineData" in part or "inline_data" in part else "part")
        return placeholder(shown, media, data=data, where=where, text=told or title)

    def _item(self, kind: str, item: Mapping[str, Any], loc: Loc) -> None:
        """An item of OpenAI's Responses, as Codex writes them, too."""
        if kind == "message":
            self._message(item, _role(item, loc, None), loc)
        elif kind == "reasoning":
            given = item.get("content") or item.get("summary")
            parts = given if isinstance(given, list) else [given]
            texts = [text for part in parts if (text := _thought(part))]
            self._thought += texts  # encrypted reasoning says nothing to anybody else
        elif kind.endswith("_output"):
            given = item.get("output", item.get("tools", item.get("result")))
            failed = False
            if isinstance(given, dict) and "content" in given:  # Codex of 2025: {"content": …, "success": false}
                failed = given.get("success") is False
                given = given["content"]
            self.result(self.text_of(given), named(item.get("call_id")), name=named(item.get("name")), failed=failed)
        else:
            called = named(item.get("name")) or kind.removesuffix("_call")
            given = _first(item, ("arguments", "args", "input", "action", "queries", "code", "prompt"))
            call_id = named(item.get("call_id")) or named(item.get("id"))
            try:
                call = tool_call(called, given, call_id)
            except ValueError as exc:
                raise MisfitError(loc, "bad-value", str(exc)) from exc
            last = self.messages[-1] if self.messages else None
            if last is not None and last["role"] == "assistant" and not self._thought:
                # A copy of these turns may have the same message.
                self.messages[-1] = {**last, "tool_calls": [*last.get("tool_calls", ()), call]}
            else:
                self._push("assistant", [], [], [call])
            if item.get("result") is not None and kind.endswith("_call"):  # image_generation_call holds what it made
                self.replaced += 1
                self.result(placeholder("image", data=item["result"]), call_id)

    def parts(self, role: str, parts: list[Any], loc: Loc = ()) -> None:
        """Add what somebody says in parts, as `add` does a message that holds nothing else."""
        self._parts(role, parts, (*loc, "content"), [], [])

    def done(self) -> list[dict[str, Any]]:
        """The messages, with the names of tools filled in at their results."""
        if self._thought:
            self._push("assistant", [], [], [])
        name_tools(self.messages)
        return self.messages


def trace_record(
    turns: Turns,
    *,
    id: str,  # noqa: A002  (as the column is called)
    meta: Mapping[str, Any],
    model: str | None = None,
    tools: list[Any] | str | None = None,
    session_id: str | None = None,
    subject: str | None = None,
    ts: datetime | None = None,
) -> dict[str, Any]:
    """The chat record of a trace: who answered becomes its origin, and `meta` gets what is known, without nulls."""
    about = {"model": model, "placeholders": turns.replaced or None, "failed_calls": turns.failed or None}
    record = record_of(
        turns.done(),
        id=id,
        tools=tools,
        session_id=session_id,
        ts=ts,
        origin=f"model:{' '.join(model.split())}" if model and model.strip() else "model",
        meta={name: value for name, value in {**meta, **about}.items() if value is not None},
    )
    return record if subject is None else {**record, "subject": subject}


def conversation_of(given: Any, *, default: str = "user") -> tuple[list[Any], list[Any] | None] | None:
    """Messages and tools on offer out of what a tracer kept of a call's input or output; None when it holds no messages.

    Takes a list of messages, `{"messages": …}`, `{"input": …, "instructions": …}` of Responses, `{"contents": …}` of Gemini,
    `{"choices": …}`, `{"generations": …}` of LangChain, `{"output": …}`, one message, and plain text, whose role is `default`.
    """
    given = json_or_same(given)
    if isinstance(given, str):
        return [{"role": default, "content": given}], None
    if isinstance(given, list):
        if len(given) == 1 and isinstance(given[0], list):  # LangChain's batch of one
            given = given[0]
        return (given, None) if given and all(map(_is_message, given)) else None
    if not isinstance(given, dict):
        return None
    if _is_message(given):
        return [given], None
    tools = tools_of(given.get("tools") or given.get("functions"))
    head: list[Any] = []
    for key in ("instructions", "system", "systemInstruction", "system_instruction"):
        told = given.get(key)
        if isinstance(told, dict) and isinstance(told.get("parts"), list):
            head = [{"role": "system", "parts": told["parts"]}]
        elif told:
            head = [{"role": "system", "content": told}]
    for key in (
        "messages",
        "chat_history",
        "contents",
        "input",
        "prompt",
        "prompts",
        "output",
        "outputs",
        "text",
        "content",
    ):
        if given.get(key) is None:
            continue
        inner = conversation_of(given[key], default=default)
        if inner is not None:
            return [*head, *inner[0]], tools or inner[1]
    for key in ("choices", "generations", "candidates"):
        options = given.get(key)
        while isinstance(options, list) and options and isinstance(options[0], list):
            options = options[0]
        if isinstance(options, list) and options and isinstance(options[0], dict):
            one = options[0]
            inner = conversation_of(one.get("message") or one.get("content") or one.get("text"), default=default)
            if inner is not None:
                return inner[0], tools
    return None


# --- shapes ------------------------------------------------------------------------------------------------------


def _unwrapped(value: Mapping[str, Any]) -> Mapping[str, Any]:
    """LangChain's two ways to write a message down, as its members and a role."""
    if value.get("type") == "constructor" and isinstance(value.get("kwargs"), dict):
        path = value.get("id")
        role = _LANGCHAIN.get(str(path[-1]) if isinstance(path, list) and path else "")
        inner = value["kwargs"]
        return {**inner, "role": role or inner.get("role") or inner.get("type")}
    if isinstance(value.get("data"), dict) and named(value.get("type")) in _ROLES and "content" in value["data"]:
        return {**value["data"], "role": value["data"].get("role") or value["type"]}
    if isinstance(value.get("message"), dict) and "role" not in value:
        return _unwrapped(value["message"])
    return value


def _role(value: Mapping[str, Any], loc: Loc, default: str | None) -> str:
    given = value.get("role")
    if given is None and named(value.get("type")) in _ROLES:
        given = value["type"]
    if given is None:
        given = default
    if given is None:
        raise MisfitError((*loc, "role"), "missing-field", "expected the role of a message, got none")
    role = _ROLES.get(given) if isinstance(given, str) else None
    if role is None and isinstance(given, str):
        role = _ROLES.get(given.lower())
    if role is None:
        raise MisfitError(
            (*loc, "role"), "bad-value", f"expected a role like user or assistant, got {safe_repr(given)[:80]}"
        )
    return role


def _is_item(kind: str) -> bool:
    return kind in _ITEMS or kind.endswith(("_call", "_call_output", "_output"))


def _is_part(value: Any) -> bool:
    return isinstance(value, dict) and ("type" in value or "text" in value)


def _is_message(value: Any) -> bool:
    if not isinstance(value, dict):
        return False
    if "type" in value or "message" in value:
        value = _unwrapped(value)
    if isinstance(value.get("role"), str):
        return "content" in value or not _SAYS.isdisjoint(value)
    kind = value.get("type")
    if not isinstance(kind, str):
        return False
    return (kind in _ROLES and "content" in value) or kind in _ITEMS or kind.endswith(("_call", "_call_output"))


def _holds_results(content: Any) -> bool:
    return isinstance(content, list) and any(
        isinstance(part, dict) and _result_part(str(part.get("type") or ""), part) is not None for part in content
    )


def _first(value: Mapping[str, Any], names: Sequence[str]) -> Any:
    return next((value[name] for name in names if value.get(name) is not None), None)


def _either(outer: Mapping[str, Any], inner: Mapping[str, Any], names: Sequence[str]) -> Any:
    for value in (inner, outer):
        for name in names:
            if isinstance(value.get(name), str | bytes) and value[name]:
                return value[name]
    return None


def _thought(value: Any) -> str | None:
    if isinstance(value, str):
        return value or None
    if isinstance(value, dict):
        for name in ("content", "thinking", "text", "reasoning"):
            if isinstance(value.get(name), str) and value[name]:
                return str(value[name])
        parts = value.get("summary")
        if isinstance(parts, list):
            return "\n".join(text for part in parts if (text := _thought(part))) or None
    return None


def _calls(value: Mapping[str, Any], loc: Loc) -> list[dict[str, Any]]:
    """Calls that stand beside a message's content."""
    given = value.get("tool_calls")
    extra = value.get("additional_kwargs")
    if not given and isinstance(extra, dict):
        given = extra.get("tool_calls")
        value = extra if not given and isinstance(extra.get("function_call"), dict) else value
    if given is None and isinstance(value.get("function_call"), dict):
        given = [{"function": value["function_call"]}]
    if given is None:
        return []
    if not isinstance(given, list):
        raise _wrong((*loc, "tool_calls"), "a list of tool calls", given)
    return [_call(one, (*loc, "tool_calls", position)) for position, one in enumerate(given)]


def _call(one: Any, loc: Loc) -> dict[str, Any]:
    if not isinstance(one, dict):
        raise _wrong(loc, "a tool call", one)
    function = one.get("function")
    if not isinstance(function, dict):
        function = one.get("custom")
    inner: Mapping[str, Any] = function if isinstance(function, dict) else one
    name = inner.get("name")
    if name is None:
        name = _first(inner, ("toolName", "tool_name", "function_name"))
    if not isinstance(name, str):
        raise MisfitError((*loc, "name"), "missing-field", f"expected the name of the tool, got {safe_repr(name)[:80]}")
    given = inner.get("arguments")
    if given is None:
        given = _first(inner, ("args", "input", "server_tool_call", "parameters"))
    call_id = one.get("id")
    if type(call_id) is not str or not call_id:
        call_id = named(_first(one, ("id", "toolCallId", "tool_call_id", "call_id")))
    try:
        return tool_call(name, given, call_id)
    except ValueError as exc:
        raise MisfitError((*loc, "arguments"), "bad-value", str(exc)) from exc


def _call_part(kind: str, part: Mapping[str, Any], loc: Loc) -> dict[str, Any] | None:
    if kind in _CALLS:
        return _call(part, loc)
    inner = part.get("functionCall") or part.get("function_call")  # Gemini's parts have no type
    return _call(inner, loc) if kind in ("", "function_call") and isinstance(inner, dict) else None


def _result_part(kind: str, part: Mapping[str, Any]) -> tuple[Any, str | None, str | None, bool] | None:
    """Result, call id, tool's name and whether it failed, of a part that is the result of a tool."""
    if kind == "tool_call_response":
        return _first(part, ("response", "result", "content")), named(part.get("id")), named(part.get("name")), False
    if kind == "server_tool_call_response":
        return part.get("server_tool_call_response"), named(part.get("id")), None, False
    if kind == "tool-result":
        given = _first(part, ("output", "result"))
        failed = part.get("isError") is True
        if isinstance(given, dict) and str(given.get("type")).startswith("error"):
            failed = True
        return given, named(part.get("toolCallId")), named(part.get("toolName")), failed
    if kind == "tool_result" or kind.endswith("_tool_result"):
        return part.get("content"), named(part.get("tool_use_id")), None, part.get("is_error") is True
    inner = part.get("functionResponse") or part.get("function_response")
    if kind == "" and isinstance(inner, dict):
        return inner.get("response"), named(inner.get("id")), named(inner.get("name")), False
    return None
