"""Field types that the built-in record types share, and that users may use in their own models.

Knows how one value is checked. Does not know records (records.py), Arrow (arrow.py) or whole batches (record_type.py).
"""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, WithJsonSchema
from pydantic_core import PydanticCustomError

from treering.schema.strict_json import parse_json

__all__ = ["Arguments", "Int32", "Json", "JsonArray", "JsonObject", "Origin", "Split", "Timestamp", "dump_json"]


def _encoder(*, sort_keys: bool) -> Callable[[Any], str]:
    encoder = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":"), sort_keys=sort_keys)
    make = getattr(json.encoder, "c_make_encoder", None)
    if make is None:
        return encoder.encode
    # What `encode` makes anew for each value takes longer than a small value itself. Without `markers` a circle ends as too deep.
    chunks = make(None, encoder.default, json.encoder.encode_basestring, None, ":", ",", sort_keys, False, False)
    return lambda value: "".join(chunks(value, 0))


_PLAIN, _SORTED = _encoder(sort_keys=False), _encoder(sort_keys=True)


def dump_json(value: Any, *, sort_keys: bool = False) -> str:
    """Compact JSON text of `value`. Raises ValueError on NaN, infinities and foreign types."""
    try:
        return (_SORTED if sort_keys else _PLAIN)(value)
    except (TypeError, ValueError, RecursionError) as exc:
        raise ValueError(f"expected a value that JSON can hold: {exc}") from exc


def _encode(value: Any, kind: type) -> Any:
    """A `kind` (dict or list) becomes JSON text; text that already is such JSON passes; the rest is left to fail."""
    name = "object" if kind is dict else "array"
    if isinstance(value, str):
        try:
            parsed = parse_json(value)
        except ValueError as exc:
            raise PydanticCustomError("bad_json", f"Input should be a JSON {name}, or text that holds one") from exc
        if not isinstance(parsed, kind):
            raise PydanticCustomError("json_type", f"Input should be a JSON {name}, or text that holds one")
        return value
    if isinstance(value, kind):
        try:
            # Keys in order: an object that is sent again with its keys elsewhere is the same object.
            return dump_json(value, sort_keys=True)
        except ValueError as exc:
            raise PydanticCustomError("bad_json", "Input should hold only what JSON can hold") from exc
    raise PydanticCustomError("json_type", f"Input should be a JSON {name}, or text that holds one")


def _encode_object(value: Any) -> Any:
    return value if value is None else _encode(value, dict)


def _encode_array(value: Any) -> Any:
    return value if value is None else _encode(value, list)


def _encode_any(value: Any) -> Any:
    return value if value is None or isinstance(value, str) else dump_json(value)


def _encode_arguments(value: Any) -> Any:
    # Text passes untouched even when it isn't JSON: it is what a model produced, and losing it would hide the mistake.
    return value if isinstance(value, str) else _encode(value, dict)


def _parse_time(value: Any) -> Any:
    if isinstance(value, str):
        try:
            value = datetime.fromisoformat(value)
        except ValueError as exc:
            raise PydanticCustomError("datetime_parsing", "Input should be an ISO 8601 time with its offset") from exc
    if isinstance(value, datetime) and value.tzinfo is None:
        raise PydanticCustomError("timezone_aware", "Input should be a time with its UTC offset")
    if isinstance(value, datetime):
        try:
            value.astimezone(UTC)  # as which it is stored: Python couldn't read it again
        except OverflowError as exc:
            raise PydanticCustomError("datetime_range", "Input should be a time of the years 1 to 9999 in UTC") from exc
    return value


#: A JSON object, stored as its text. Any nesting survives because no column type is asked to fit it.
JsonObject = Annotated[
    str, BeforeValidator(_encode_object), WithJsonSchema({"anyOf": [{"type": "object"}, {"type": "string"}]})
]
#: A JSON array, stored as its text.
JsonArray = Annotated[
    str, BeforeValidator(_encode_array), WithJsonSchema({"anyOf": [{"type": "array"}, {"type": "string"}]})
]
#: Anything JSON can hold, stored as its text; text is stored as it stands.
Json = Annotated[str, BeforeValidator(_encode_any), WithJsonSchema({})]
#: Tool-call arguments: text (OpenAI) or an object (TRL), stored as text.
Arguments = Annotated[
    str, BeforeValidator(_encode_arguments), WithJsonSchema({"anyOf": [{"type": "object"}, {"type": "string"}]})
]
#: A moment with its offset: an aware datetime, or ISO 8601 text. Numbers are refused: seconds or milliseconds?
Timestamp = Annotated[datetime, BeforeValidator(_parse_time)]
Split = Literal["train", "heldout"]
#: Who wrote it: `human`, `model` or `synthetic`, optionally `:by what`, e.g. `model:support-bot-7`.
Origin = Annotated[str, Field(pattern=r"^(human|model|synthetic)(:.+)?$")]
Int32 = Annotated[int, Field(ge=-(2**31), le=2**31 - 1)]
