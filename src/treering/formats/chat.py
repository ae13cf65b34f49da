"""Messages of our `chat` record type from what other programs call a message, and back.

A message of a file may say more than ours holds: content in parts, a refusal, a key of somebody's own. What it says is put
into our fields, and what that loses is *kept*: an overlay that makes the original again, for exporters. It lies in the
record's `meta` under "kept". Under the name of a field of the record it mirrors that field: `{"messages": {"2": {"content":
[{"type": "text", …}]}}}` says that the third message's content was a list of parts, null that there was no such member. Under
any other name it is a further member that the line had. Pure; knows no file format.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from treering.formats.base import KEPT, tools_text
from treering.schema.fields import dump_json
from treering.schema.strict_json import parse_json

__all__ = [
    "KEPT",
    "MESSAGE_FIELDS",
    "content_text",
    "fitting",
    "kept_after",
    "message",
    "name_tools",
    "original",
    "record_of",
    "taken",
    "taken_all",
    "tool_call",
]

MESSAGE_FIELDS = frozenset({"role", "content", "name", "tool_calls", "tool_call_id", "reasoning_content", "weight"})
_PLAIN = frozenset({"role", "content"})
_CALL_FIELDS = frozenset({"id", "type", "function"})
_FUNCTION_FIELDS = frozenset({"name", "arguments"})


# --- made from what a format says --------------------------------------------------------------------------------


def message(
    role: str,
    content: str | None = None,
    *,
    name: str | None = None,
    tool_calls: list[dict[str, Any]] | None = None,
    tool_call_id: str | None = None,
    reasoning: str | None = None,
) -> dict[str, Any]:
    """A message; what is None or an empty list of calls is left out."""
    made: dict[str, Any] = {"role": role}
    if content is not None:
        made["content"] = content
    if reasoning is not None:
        made["reasoning_content"] = reasoning
    if name is not None:
        made["name"] = name
    if tool_calls:
        made["tool_calls"] = tool_calls
    if tool_call_id is not None:
        made["tool_call_id"] = tool_call_id
    return made


def tool_call(name: str, arguments: Any, call_id: str | None = None) -> dict[str, Any]:
    """A call of a tool. Arguments that are text stay as they came, JSON or not; an object keeps the order of its keys.

    No arguments at all are an empty object. Raises ValueError for what JSON can't hold.
    """
    text = arguments if isinstance(arguments, str) else dump_json({} if arguments is None else arguments)
    function = {"name": name, "arguments": text}
    if call_id is None:
        return {"type": "function", "function": function}
    return {"id": call_id, "type": "function", "function": function}


def name_tools(messages: list[dict[str, Any]]) -> None:
    """Give each tool result without a name that of the call it answers, by the call's id.

    In the list, not in the messages: those may stand in other conversations too, which know other calls.
    """
    names: dict[str, str] = {}
    for n, one in enumerate(messages):
        if calls := one.get("tool_calls"):
            for call in calls:
                if call.get("id") is not None:
                    names[call["id"]] = call["function"]["name"]
        if one.get("role") == "tool" and one.get("name") is None and (call := one.get("tool_call_id")) in names:
            messages[n] = {**one, "name": names[call]}


def content_text(parts: Iterable[Any], separator: str = "\n") -> str:
    """Content in parts (OpenAI's, Anthropic's, Responses') as text: texts joined, others named by their type (`[image_url]`)."""
    return separator.join(map(_part_text, parts))


def _part_text(part: Any) -> str:
    if isinstance(part, str):
        return part
    if not isinstance(part, Mapping):
        return dump_json(part)
    kind = part.get("type")
    for member in ("text", "refusal", "content"):
        if isinstance(part.get(member), str) and (kind is None or member in kind or kind.endswith("_text")):
            return str(part[member])
    return f"[{kind or 'part'}]"


def record_of(
    messages: list[dict[str, Any]],
    *,
    id: str | None,  # noqa: A002  (as the column is called)
    tools: Any = None,
    session_id: str | None = None,
    ts: Any = None,
    origin: str | None = None,
    meta: Mapping[str, Any] | None = None,
    kept: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """A chat record; what is None or empty is left out.

    `tools` keep the order of their keys; `meta`, and what is kept in it, is stored with its keys sorted.
    """
    record: dict[str, Any] = {"messages": messages}
    if tools:
        record["tools"] = tools if isinstance(tools, str) else tools_text(tools)
    about = {**(meta or {}), **({KEPT: kept} if kept else {})}
    if id is not None:
        record["id"] = id
    if session_id is not None:
        record["session_id"] = session_id
    if ts is not None:
        record["ts"] = ts
    if origin is not None:
        record["origin"] = origin
    if about:
        record["meta"] = about
    return record


# --- taken from a message in OpenAI's or TRL's shape -------------------------------------------------------------


def taken_all(messages: Any) -> tuple[Any, dict[str, Any]]:
    """`taken` for a list of messages, and what is kept by position; what isn't a list is left for validation to refuse."""
    if not isinstance(messages, list):
        return messages, {}
    made: list[Any] = []
    kept: dict[str, Any] = {}
    for position, one in enumerate(messages):
        if type(one) is dict and one.keys() == _PLAIN and type(one["content"]) is str and one["role"] != "function":
            made.append(one)  # most are so: no need to look closer
            continue
        ours, beyond = taken(one)
        made.append(ours)
        if beyond:
            kept[str(position)] = beyond
    return made, kept


def taken(given: Any) -> tuple[Any, dict[str, Any]]:
    """Our message from one in the shape that OpenAI and TRL files share, and what is kept of it (`{}`: ours says it all).

    Arguments of calls stay text when they are text; objects become text in the order of their keys. Content in parts becomes
    text, `thinking` becomes `reasoning_content`, a `function_call` a tool call, a refusal the content. Nulls are left out.
    What isn't a message at all comes back as it is, for validation to name.
    """
    if not isinstance(given, dict):
        return given, {}
    content = given.get("content")
    is_plain = MESSAGE_FIELDS.issuperset(given) and (content is None or isinstance(content, str))
    if is_plain and given.get("role") != "function" and ("tool_calls" not in given or _are_plain(given["tool_calls"])):
        return given, {}
    ours = {key: value for key, value in given.items() if value is not None and key in MESSAGE_FIELDS}
    kept = {key: value for key, value in given.items() if value is not None and key not in MESSAGE_FIELDS}
    if isinstance(content, list):
        ours["content"], kept["content"] = content_text(content), content
    if isinstance(given.get("refusal"), str) and content is None:
        ours["content"], kept["content"] = given["refusal"], None
    if isinstance(given.get("thinking"), str) and "reasoning_content" not in ours:
        ours["reasoning_content"], kept["reasoning_content"] = given["thinking"], None
    if "tool_calls" in ours:
        _take_calls(ours, kept)
    called = given.get("function_call")
    if isinstance(called, dict) and "tool_calls" not in ours and isinstance(called.get("name"), str):
        ours["tool_calls"], kept["tool_calls"] = [tool_call(called["name"], called.get("arguments"))], None
    if given.get("role") == "function":
        ours["role"], kept["role"] = "tool", "function"
    return ours, kept


def _are_plain(calls: Any) -> bool:
    """Whether calls are as ours: nothing but what we have, arguments as text."""
    if not isinstance(calls, list) or not calls:
        return False
    for call in calls:
        if not isinstance(call, dict) or not _CALL_FIELDS.issuperset(call):
            return False
        function = call.get("function")
        if not isinstance(function, dict) or not _FUNCTION_FIELDS.issuperset(function):
            return False
        if not isinstance(function.get("arguments"), str):
            return False
    return True


def _take_calls(ours: dict[str, Any], kept: dict[str, Any]) -> None:
    calls = ours["tool_calls"]
    if not isinstance(calls, list):
        return
    if not calls:
        del ours["tool_calls"]
        kept["tool_calls"] = []
        return
    made: list[Any] = []
    beyond: dict[str, Any] = {}
    for position, call in enumerate(calls):
        function = call.get("function") if isinstance(call, dict) else None
        if not isinstance(function, dict):
            made.append(call)  # refused, with its place
            continue
        inside: dict[str, Any] = {
            key: value for key, value in call.items() if value is not None and key not in _CALL_FIELDS
        }
        own = {key: value for key, value in call.items() if value is not None and key in _CALL_FIELDS}
        own["function"] = {
            key: value for key, value in function.items() if value is not None and key in _FUNCTION_FIELDS
        }
        more = {key: value for key, value in function.items() if value is not None and key not in _FUNCTION_FIELDS}
        if more:
            inside["function"] = more
        if isinstance(function.get("arguments"), dict):
            own["function"]["arguments"] = dump_json(function["arguments"])
        made.append(own)
        if inside:
            beyond[str(position)] = inside
    ours["tool_calls"] = made
    if beyond:
        kept["tool_calls"] = beyond


# --- and back ----------------------------------------------------------------------------------------------------


def original(value: Any, kept: Any) -> Any:
    """`value` with what is kept laid over it: members are put back, taken out where it says null, and lists changed by place.

    Neither is changed. `original(ours, kept)` of `taken(given)` is `given` without its nulls, but for objects that stood as a
    call's arguments: whoever writes them says whether they are text or object.
    """
    if isinstance(value, Mapping) and isinstance(kept, Mapping):
        made = {key: one for key, one in value.items() if key not in kept}
        for key, one in kept.items():
            if one is not None:
                made[key] = original(value.get(key), one)
        return made
    if isinstance(value, list) and isinstance(kept, Mapping):
        return [original(one, kept[str(place)]) if str(place) in kept else one for place, one in enumerate(value)]
    return kept


def fitting(messages: Iterable[Any], kept: Any) -> dict[str, Any]:
    """What is kept of these messages (as they were captured), by place, without what another message was kept of.

    It fits when the original that it makes is taken as this very message: what doesn't is stale, or was made by somebody
    else, and would say what the record doesn't.
    """
    if not isinstance(kept, Mapping):
        return {}
    return {
        str(place): kept[str(place)]
        for place, message in enumerate(messages)
        if str(place) in kept and _fits(_said(message), kept[str(place)])
    }


def _fits(message: Any, beyond: Any) -> bool:
    return isinstance(beyond, Mapping) and taken(original(message, beyond)) == (message, beyond)


def kept_after(meta: str, column: str, before: Any, after: Any) -> str:
    """`meta` (JSON text) of a record after a correction of a column: without what was kept of messages that are others now.

    What is kept of the rest stays, and so does TRL's form unless other roles speak than before.
    """
    if f'"{KEPT}"' not in meta and '"trl"' not in meta:
        return meta
    try:
        told = parse_json(meta)
    except ValueError:  # text of a record type of somebody's own
        return meta
    if not isinstance(told, dict):
        return meta
    kept = told.get(KEPT)
    if isinstance(kept, dict) and column in kept:
        left: dict[str, Any] = {}
        if isinstance(kept[column], dict) and isinstance(before, list) and isinstance(after, list):
            same = {str(place) for place, (old, new) in enumerate(zip(before, after, strict=False)) if old == new}
            left = {place: one for place, one in kept[column].items() if place in same}
        kept = {**kept, column: left}
        told[KEPT] = {name: one for name, one in kept.items() if name != column or one}
        if not told[KEPT]:
            del told[KEPT]
    if _roles(before) != _roles(after):
        told.pop("trl", None)
    return dump_json(told, sort_keys=True)


def _roles(messages: Any) -> list[Any]:
    return [one.get("role") for one in messages if isinstance(one, dict)] if isinstance(messages, list) else []


def _said(value: Any) -> Any:
    """Without the nulls that Arrow has for what is absent."""
    if isinstance(value, dict):
        return {key: _said(one) for key, one in value.items() if one is not None}
    return [_said(one) for one in value] if isinstance(value, list) else value
