"""What the chat formats share: which kind of records these are, and messages without what a format has no place for."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NoReturn

from treering.errors import InvalidRecordError, Problem, UsageError
from treering.formats.chat import KEPT, MESSAGE_FIELDS, fitting, original
from treering.formats.writers.json_lines import Raw
from treering.schema.strict_json import parse_json

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = [
    "COLUMNS",
    "Shape",
    "about",
    "as_array",
    "as_object",
    "lay_over",
    "messages_of",
    "question_and_answer",
    "refuse",
    "shape_of",
]

Shape = Literal["chat", "preference", "labelled", "tokens"]
Loc = tuple[str | int, ...]

#: The columns that a format makes its lines of, by the kind of records.
COLUMNS: dict[str, frozenset[str]] = {
    "chat": frozenset({"messages", "tools"}),
    "preference": frozenset({"prompt", "chosen", "rejected", "tools"}),
    "labelled": frozenset({"text", "label"}),
    "tokens": frozenset({"tokens"}),
}


def shape_of(schema: pa.Schema, name: str, takes: Sequence[Shape]) -> Shape:
    """Which kind of records have these columns, whatever their type is called. Raises UsageError when `takes` has none such."""
    import pyarrow as pa

    def has(column: str, fits: Callable[[Any], bool]) -> bool:
        return column in schema.names and fits(schema.field(column).type)

    def messages(kind: Any) -> bool:
        held = pa.types.is_list(kind) and pa.types.is_struct(kind.value_type)
        return held and {"role", "content"} <= {field.name for field in kind.value_type}

    def text(kind: Any) -> bool:
        return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))

    def numbers(kind: Any) -> bool:
        return bool(pa.types.is_list(kind) and pa.types.is_integer(kind.value_type))

    fits: dict[Shape, bool] = {
        "chat": has("messages", messages),
        "preference": all(has(column, messages) for column in ("prompt", "chosen", "rejected")),
        "labelled": has("text", text) and has("label", text),
        "tokens": has("tokens", numbers),
    }
    for shape in takes:
        if fits[shape]:
            return shape
    raise UsageError(
        f"{name} has no form for records of the columns {', '.join(schema.names)}",
        code="bad-columns",
        hint=f"it takes {', '.join(takes)} records; --format records and parquet take any",
    )


def messages_of(
    messages: Sequence[dict[str, Any]] | None,
    where: str,
    *,
    keeps: Collection[str],
    arguments: Callable[[str, Loc], Any],
    note: Callable[[str], None],
) -> list[dict[str, Any]]:
    """The messages with the fields that a format `keeps` and that say something; the others are noted as `messages.NAME`.

    `arguments` makes what a format has for a call's arguments out of their text.
    """
    if messages is None:
        refuse((where,), "expected messages, got none")
    made = []
    for number, message in enumerate(messages):
        said = {key: value for key, value in message.items() if value is not None}
        for key in said.keys() - keeps:
            note(f"messages.{key}")
        kept = {key: value for key, value in said.items() if key in keeps}
        if "tool_calls" in kept:
            kept["tool_calls"] = [
                _call(call, (where, number, "tool_calls", n), arguments) for n, call in enumerate(kept["tool_calls"])
            ]
        made.append(kept)
    return made


@dataclass(frozen=True, slots=True)
class About:
    """What importers left in `meta` for exporters."""

    kept: dict[str, Any]  # what the file said beyond our fields: `treering.formats.chat`
    form: dict[str, Any]  # of TRL's forms, where the record doesn't show it
    all_of_it: bool  # nothing else stands in `meta`


def about(record: dict[str, Any]) -> About:
    """What a record's `meta` says of the file that it was captured from."""
    meta = record.get("meta")
    if not meta or (f'"{KEPT}"' not in meta and '"trl"' not in meta):
        return About({}, {}, all_of_it=False)
    try:
        told = parse_json(meta)
    except ValueError:  # text of a record type of somebody's own
        told = None
    if not isinstance(told, dict):
        return About({}, {}, all_of_it=False)
    kept, form = (one if isinstance(one := told.get(name), dict) else {} for name in (KEPT, "trl"))
    return About(kept, form, all_of_it=told.keys() <= {KEPT, "trl"})


def lay_over(
    made: list[dict[str, Any]],
    messages: Sequence[dict[str, Any]],
    kept: Any,
    note: Callable[[str], None],
    *,
    keeps: Mapping[str, type] | None = None,
) -> list[dict[str, Any]]:
    """What a format `made` of `messages`, as they were captured: with what was kept of them, where it was kept of these.

    `keeps`: the further members that the format has, and their types; None for any. What isn't put back is noted.
    """
    fits = fitting(messages, kept)
    if kept is not None and (not isinstance(kept, dict) or len(fits) < len(kept)):
        note("meta")
    laid = []
    for place, message in enumerate(made):
        over = dict(fits.get(str(place), {}))
        if keeps is not None:  # a member of ours in another shape is right: it was taken as what the record says
            for key in over.keys() - MESSAGE_FIELDS:
                if not isinstance(over[key], keeps.get(key, ())):
                    note(f"messages.{key}")
                    del over[key]
        laid.append(original(message, over))
    return laid


def _call(call: dict[str, Any], loc: Loc, arguments: Callable[[str, Loc], Any]) -> dict[str, Any]:
    function = call["function"]
    made = {"name": function["name"], "arguments": arguments(function["arguments"], (*loc, "function", "arguments"))}
    # A call is of a function; both formats want that said even where the record leaves it out.
    return {**({"id": call["id"]} if call.get("id") is not None else {}), "type": "function", "function": made}


def question_and_answer(record: dict[str, Any]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """A text and its label, as what the user says and what the assistant answers. Raises InvalidRecordError."""
    for name in ("text", "label"):
        if record[name] is None:
            refuse((name,), "expected text, got none")
    return [{"role": "user", "content": record["text"]}], [{"role": "assistant", "content": record["label"]}]


def as_array(text: str, loc: Loc) -> Raw:
    """JSON text of an array, as it stands but on one line. Raises InvalidRecordError."""
    return _as(text, list, "array", loc)


def as_object(text: str, loc: Loc) -> Raw:
    """JSON text of an object, as it stands but on one line. Raises InvalidRecordError."""
    return _as(text, dict, "object", loc)


def _as(text: str, kind: type, name: str, loc: Loc) -> Raw:
    try:
        fits = isinstance(parse_json(text), kind)
    except ValueError:
        fits = False
    if not fits:
        refuse(loc, f"expected a JSON {name}, got {text!r:.60}")
    return Raw(" ".join(text.split("\n")).replace("\r", " "))  # line ends stand between values only: text escapes them


def refuse(loc: Loc, message: str) -> NoReturn:
    """Raise InvalidRecordError for one thing that a format can't hold."""
    problem = Problem(loc, "bad-value", message)
    raise InvalidRecordError(str(problem), [problem])
