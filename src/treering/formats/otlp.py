"""What OpenTelemetry's exporters send: spans and log records with their attributes flattened, and the importer of them.

Takes protobuf messages and OTLP's JSON form alike, and needs neither protobuf nor an SDK for it. Knows nothing of what
the attributes mean (genai).
"""

from __future__ import annotations

import base64
import binascii
import math
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from typing import Any, TypedDict

from treering.errors import Problem
from treering.formats.base import Importer, Outcome, Passed, Unfit
from treering.formats.collapse import Collapse
from treering.formats.genai import EVALUATION, Recall, calls_of, words_of
from treering.formats.shapes import MisfitError
from treering.schema import RecordType
from treering.schema.record_type import safe_repr

__all__ = ["Event", "Otlp", "Signal", "Telemetry", "is_otlp", "spans_of", "speaks_openinference"]

_RESOURCES = ("resourceSpans", "resource_spans", "resourceLogs", "resource_logs")
_SCOPES = ("scopeSpans", "scope_spans", "instrumentationLibrarySpans", "scopeLogs", "scope_logs")


class Event(TypedDict):
    """Something that happened during a span."""

    name: str
    at: int | None  # nanoseconds since 1970
    attributes: dict[str, Any]


class Signal(TypedDict):
    """One span or log record. Times are nanoseconds since 1970, ids lower-case hex; None where the sender gave none."""

    kind: str  # "span" or "log"
    trace_id: str | None  # 32 characters
    span_id: str | None  # 16 characters; of a log record the span it belongs to
    parent_id: str | None
    name: str  # of a log record its event name; the attribute event.name of older senders counts
    start: int | None
    end: int | None  # of a log record when it happened, or else was observed
    attributes: dict[str, Any]  # text, int, float, bool, bytes, lists and dicts of these
    resource: dict[str, Any]
    scope: str  # name of the instrumentation
    events: list[Event]
    error: str | None  # what a span whose status is an error says of it; "" when it says nothing
    body: Any  # of log records


def is_otlp(value: Any) -> bool:
    """Whether a parsed JSON value is in OTLP's JSON form: an export request, or a resource's or scope's part of one."""
    return isinstance(value, dict) and any(isinstance(value.get(name), list) for name in (*_RESOURCES, *_SCOPES))


def spans_of(request: Any) -> Iterator[Signal]:
    """The spans and log records of an export request, in order.

    `request` is a protobuf message (`ExportTraceServiceRequest`, `ExportLogsServiceRequest`, `TracesData`, `LogsData`) or
    the parsed JSON form of one, in camelCase or snake_case; ids may be hex, as OTLP says, or base64, as protobuf's own
    JSON writer has them, integers may be text, and unknown fields are passed over. A resource's or scope's part of a request
    counts, too. Raises ValueError, which names the place, for JSON that isn't of this form; what came before was given.
    """
    if isinstance(request, dict):
        yield from _from_json(request)
    else:
        yield from _from_messages(request)


# Protobuf: fields are read by name, so whatever generated the classes will do.


def _from_messages(request: Any) -> Iterator[Signal]:
    fields = request.DESCRIPTOR.fields_by_name
    for resources, scopes, items, read in (
        ("resource_spans", "scope_spans", "spans", _span_message),
        ("resource_logs", "scope_logs", "log_records", _log_message),
    ):
        if resources not in fields:
            continue
        for of_resource in getattr(request, resources):
            resource = _attributes_of_message(of_resource.resource.attributes)
            for of_scope in getattr(of_resource, scopes):
                for item in getattr(of_scope, items):
                    yield read(item, resource, of_scope.scope.name)


def _span_message(span: Any, resource: dict[str, Any], scope: str) -> Signal:
    return {
        "kind": "span",
        "trace_id": span.trace_id.hex() or None,
        "span_id": span.span_id.hex() or None,
        "parent_id": span.parent_span_id.hex() or None,
        "name": span.name,
        "start": span.start_time_unix_nano or None,
        "end": span.end_time_unix_nano or None,
        "attributes": _attributes_of_message(span.attributes),
        "resource": resource,
        "scope": scope,
        "events": [
            {"name": e.name, "at": e.time_unix_nano or None, "attributes": _attributes_of_message(e.attributes)}
            for e in span.events
        ],
        "error": span.status.message if span.status.code == _STATUS_ERROR else None,
        "body": None,
    }


def _log_message(log: Any, resource: dict[str, Any], scope: str) -> Signal:
    attributes = _attributes_of_message(log.attributes)
    return {
        "kind": "log",
        "trace_id": log.trace_id.hex() or None,
        "span_id": log.span_id.hex() or None,
        "parent_id": None,
        "name": getattr(log, "event_name", "") or _text(attributes.get("event.name")),
        "start": None,
        "end": log.time_unix_nano or log.observed_time_unix_nano or None,
        "attributes": attributes,
        "resource": resource,
        "scope": scope,
        "events": [],
        "error": None,
        "body": _value_of_message(log.body),
    }


_STATUS_ERROR = 2


def _attributes_of_message(pairs: Iterable[Any]) -> dict[str, Any]:
    return {pair.key: _value_of_message(pair.value) for pair in pairs}


def _value_of_message(value: Any) -> Any:
    which = value.WhichOneof("value")
    if which is None:
        return None
    inner = getattr(value, which)
    if which == "array_value":
        return [_value_of_message(item) for item in inner.values]
    if which == "kvlist_value":
        return _attributes_of_message(inner.values)
    return inner


# JSON


#: The lists that attributes held last in a request, as they came and as values, by trace and name: a call's messages begin with
#: those of the call before.
_Lists = dict[tuple[Any, str], tuple[list[Any], list[Any]]]


def _from_json(request: Mapping[str, Any]) -> Iterator[Signal]:
    lists: _Lists = {}
    for name in _RESOURCES:
        for at, of_resource in enumerate(_list(request, name)):
            here = f"{name}[{at}]"
            resource = _attributes(_get(_object(of_resource, here), "resource"), f"{here}.resource")
            yield from _scopes(of_resource, resource, f"{here}.", lists)
    yield from _scopes(request, {}, "", lists)


def _scopes(of_resource: Mapping[str, Any], resource: dict[str, Any], where: str, lists: _Lists) -> Iterator[Signal]:
    if not resource and isinstance(of_resource.get("resource"), dict):
        resource = _attributes(of_resource["resource"], f"{where}resource")
    for name in _SCOPES:
        for at, of_scope in enumerate(_list(of_resource, name)):
            here = f"{where}{name}[{at}]"
            scope = _get(_object(of_scope, here), "scope") or _get(of_scope, "instrumentationLibrary")
            called = _text(scope.get("name")) if isinstance(scope, dict) else ""
            for i, span in enumerate(_list(of_scope, "spans")):
                place = f"{here}.spans[{i}]"
                yield _span(_object(span, place), resource, called, place, lists)
            for items in ("logRecords", "log_records"):
                for i, log in enumerate(_list(of_scope, items)):
                    yield _log(_object(log, f"{here}.{items}[{i}]"), resource, called, f"{here}.{items}[{i}]", lists)


def _span(span: Mapping[str, Any], resource: dict[str, Any], scope: str, where: str, lists: _Lists) -> Signal:
    status = _get(span, "status")
    status = status if isinstance(status, dict) else {}
    failed = status.get("code") in (_STATUS_ERROR, str(_STATUS_ERROR), "STATUS_CODE_ERROR")
    events: list[Event] = []
    for i, event in enumerate(_list(span, "events")):
        here = f"{where}.events[{i}]"
        event = _object(event, here)
        events.append(
            {
                "name": _text(event.get("name")),
                "at": _time(event, "timeUnixNano", here),
                "attributes": _attributes(event, here),
            }
        )
    return {
        "kind": "span",
        "trace_id": _id(span, "traceId", 16, where),
        "span_id": _id(span, "spanId", 8, where),
        "parent_id": _id(span, "parentSpanId", 8, where),
        "name": _text(span.get("name")),
        "start": _time(span, "startTimeUnixNano", where),
        "end": _time(span, "endTimeUnixNano", where),
        "attributes": _attributes(span, where, lists),
        "resource": resource,
        "scope": scope,
        "events": events,
        "error": _text(status.get("message")) if failed else None,
        "body": None,
    }


def _log(log: Mapping[str, Any], resource: dict[str, Any], scope: str, where: str, lists: _Lists) -> Signal:
    attributes = _attributes(log, where, lists)
    body = log.get("body")
    return {
        "kind": "log",
        "trace_id": _id(log, "traceId", 16, where),
        "span_id": _id(log, "spanId", 8, where),
        "parent_id": None,
        "name": _text(_get(log, "eventName")) or _text(attributes.get("event.name")),
        "start": None,
        "end": _time(log, "timeUnixNano", where) or _time(log, "observedTimeUnixNano", where),
        "attributes": attributes,
        "resource": resource,
        "scope": scope,
        "events": [],
        "error": None,
        "body": None if body is None else _value(body, f"{where}.body"),
    }


@cache
def _snake(name: str) -> str:
    return "".join(f"_{letter.lower()}" if letter.isupper() else letter for letter in name)


def _get(value: Mapping[str, Any], name: str) -> Any:
    """A field by its camelCase name, as OTLP has it, or in snake_case."""
    found = value.get(name)
    return found if found is not None else value.get(_snake(name))


def _list(value: Mapping[str, Any], name: str) -> list[Any]:
    found = value.get(name)
    if found is None:
        return []
    if not isinstance(found, list):
        raise ValueError(f"expected a list as {name}, got {safe_repr(found)[:80]}")
    return found


def _object(value: Any, where: str) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"expected an object as {where}, got {safe_repr(value)[:80]}")
    return value


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""


def _id(value: Mapping[str, Any], name: str, size: int, where: str) -> str | None:
    """An id of `size` bytes as lower-case hex, from hex or base64; None for none and for the invalid id of all zeros."""
    text = _get(value, name)
    if text is None or text == "":
        return None
    try:
        if isinstance(text, str) and len(text) == size * 2:
            raw = bytes.fromhex(text)
        elif isinstance(text, str) and len(text) == -(-size // 3) * 4:
            raw = base64.b64decode(text, validate=True)
        else:
            raise ValueError
    except (ValueError, binascii.Error):
        raise ValueError(f"expected {where}.{name} in hex, got {safe_repr(text)[:80]}") from None
    return raw.hex() if any(raw) else None


def _time(value: Mapping[str, Any], name: str, where: str) -> int | None:
    found = value.get(name)
    if type(found) is str and found.isdecimal():  # as exporters write it
        return int(found) or None
    found = _get(value, name)
    if found is None:
        return None
    return _integer(found, f"{where}.{name}") or None


def _integer(value: Any, where: str) -> int:
    try:
        if isinstance(value, bool) or not isinstance(value, int | str):
            raise ValueError
        return int(value)
    except ValueError:
        raise ValueError(f"expected an integer as {where}, got {safe_repr(value)[:80]}") from None


def _attributes(value: Any, where: str, lists: _Lists | None = None) -> dict[str, Any]:
    pairs = value.get("attributes") if isinstance(value, dict) else None
    if pairs is None:
        return {}
    if not isinstance(pairs, list):
        raise ValueError(f"expected a list as {where}.attributes, got {safe_repr(pairs)[:80]}")
    try:
        if lists is None:
            return {pair["key"]: _quick(pair["value"]) for pair in pairs if _is_key(pair["key"])}
        found = {}
        for pair in pairs:
            key, inner = pair["key"], pair["value"]
            if "arrayValue" in inner:
                found[key] = _quick_list(inner, (value.get("traceId"), key), lists)
            elif type(key) is str:
                found[key] = _quick(inner)
            else:
                raise TypeError
        return found
    except (ValueError, TypeError, KeyError, AttributeError):
        return _pairs(
            pairs, f"{where}.attributes"
        )  # says what is odd about it, and where; or takes it in another spelling


def _quick_list(value: Any, name: tuple[Any, str], lists: _Lists) -> list[Any]:
    """`_quick` of a list, which shares with the list before what both begin with."""
    [inner] = value.values()
    given = inner["values"]
    if type(given) is not list or type(name[1]) is not str:
        raise TypeError
    came, made = lists.get(name) or ([], [])
    if came and given[: len(came)] == came:
        made = made + list(map(_quick, given[len(came) :]))
    else:
        made = list(map(_quick, given))
    lists[name] = given, made
    return made


def _is_key(key: Any) -> bool:
    if type(key) is str:
        return True
    raise TypeError


def _quick(value: Any) -> Any:
    """`_value` of what exporters write: one field, in camelCase. Raises one error or another when it isn't so."""
    [(name, inner)] = value.items()
    if name == "stringValue":
        if type(inner) is str:
            return inner
    elif name == "kvlistValue":
        return {pair["key"]: _quick(pair["value"]) for pair in inner["values"] if _is_key(pair["key"])}
    elif name == "arrayValue":
        return list(map(_quick, inner["values"]))
    elif name == "intValue":
        if type(inner) is str or type(inner) is int:
            return int(inner)
    elif name == "boolValue":
        if type(inner) is bool:
            return inner
    elif name == "doubleValue" and type(inner) is float:
        return inner
    raise ValueError


def _pairs(pairs: list[Any], where: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for i, pair in enumerate(pairs):
        pair = _object(pair, f"{where}[{i}]")
        key = pair.get("key")
        if not isinstance(key, str):
            raise ValueError(f"expected text as {where}[{i}].key, got {safe_repr(key)[:80]}")
        found[key] = _value(pair.get("value"), f"{where}[{i}]")
    return found


def _value(value: Any, where: str) -> Any:
    """An AnyValue: an object with one of its fields. An empty one is null, as in protobuf."""
    if value is None:
        return None
    value = _object(value, where)
    for name in ("stringValue", "boolValue", "intValue", "doubleValue", "arrayValue", "kvlistValue", "bytesValue"):
        inner = _get(value, name)
        if inner is None:
            continue
        if name == "intValue":
            return _integer(inner, f"{where}.{name}")
        if name == "doubleValue":
            return _double(inner, f"{where}.{name}")
        if name == "bytesValue":
            return _bytes(inner, f"{where}.{name}")
        if name == "arrayValue":
            items = _list(_object(inner, f"{where}.{name}"), "values")
            return [_value(item, f"{where}[{i}]") for i, item in enumerate(items)]
        if name == "kvlistValue":
            return _pairs(_list(_object(inner, f"{where}.{name}"), "values"), where)
        if not isinstance(inner, str if name == "stringValue" else bool):
            raise ValueError(f"expected {where}.{name} to hold what its name says, got {safe_repr(inner)[:80]}")
        return inner
    return None


def _double(value: Any, where: str) -> float:
    try:
        if isinstance(value, bool) or not isinstance(value, int | float | str):
            raise ValueError
        return float(value)  # "NaN" and "Infinity" are how protobuf's JSON has them
    except ValueError:
        raise ValueError(f"expected a number as {where}, got {safe_repr(value)[:80]}") from None


def _bytes(value: Any, where: str) -> bytes:
    try:
        return base64.b64decode(value, validate=True)
    except (TypeError, ValueError):
        raise ValueError(f"expected base64 as {where}, got {safe_repr(value)[:80]}") from None


# --- the importer ---


class Telemetry(Importer):
    """What importers of spans share: they are fed export requests, or the dicts of `otlp.spans_of` one by one."""

    makes = ("chat",)

    def __init__(self, target: RecordType, origin: str | None) -> None:
        super().__init__(target, origin)
        self._collapse = Collapse()
        self._recall = Recall()

    def feed(self, line: int, value: Any, text: bytes) -> Iterator[Outcome]:
        """As `Importer.feed`; `value` is an export request in JSON, a part of one, or a dict of `otlp.spans_of`."""
        if isinstance(value, dict) and value.keys() == Signal.__annotations__.keys():
            yield from self.take(line, value, len(text))  # type: ignore[arg-type]
            return
        if not is_otlp(value):
            problem = Problem((), "bad-value", "expected an OTLP export (resourceSpans or resourceLogs)")
            yield Unfit(line, (problem,), value)
            return
        signals: list[Signal] = []
        try:
            signals.extend(spans_of(value))
        except ValueError as exc:
            parts: list[Any] = []
            for name in _RESOURCES:
                given = value.get(name)
                parts += given if isinstance(given, list) else [{name: given}] if given is not None else []
            if scopes := {name: value[name] for name in ("resource", *_SCOPES) if value.get(name) is not None}:
                parts.append(scopes)
            if len(parts) > 1:  # what is wrong with one resource's is no fault of the others
                for part in parts:
                    yield from self.feed(line, part, text)
            else:
                yield Unfit(line, (Problem((), "bad-value", str(exc)),), value)
            return
        size = len(text) // max(len(signals), 1)
        for signal in signals:
            yield from self.take(line, signal, size)

    @classmethod
    def takes_whole(cls, value: dict[str, Any]) -> bool:
        """Export requests."""
        return is_otlp(value)

    def finish(self) -> Iterator[Outcome]:
        """The conversations that are left."""
        return self._collapse.finish()

    def take(self, line: int, signal: Signal, size: int) -> Iterator[Outcome]:
        """What a span or log record makes; `size` are the bytes of input it stands for."""
        heard = False
        for target, word in words_of(signal):
            heard = True
            yield from self._collapse.say(target, word, line)
        try:
            made = calls_of(signal, line, size, self._recall)
        except ValueError as exc:  # also what JSON can't hold, which protobuf can: NaN among a tool's arguments
            problem = exc.problem if isinstance(exc, MisfitError) else Problem((), "bad-value", str(exc))
            yield Unfit(line, (problem,), _kept(signal))
            return
        if isinstance(made, str):
            if not (heard and signal["name"] == EVALUATION):
                yield Passed(line, made)
            return
        for call in made:
            yield from self._collapse.add(call)


class Otlp(Telemetry):
    """Spans and log records of OpenTelemetry, as the OTLP file exporter and collectors write them, one request a line."""

    name = "otlp"
    elements = ("resourceSpans", "resourceLogs", "resource_spans", "resource_logs")

    @classmethod
    def recognises(cls, value: Any) -> bool:
        """An export request, or a resource's part of one, whose spans aren't OpenInference's."""
        return is_otlp(value) and not speaks_openinference(value)


def speaks_openinference(value: Any) -> bool:
    """Whether the first spans of an export are marked as OpenInference's."""
    try:
        for seen, signal in enumerate(spans_of(value)):
            if "openinference.span.kind" in signal["attributes"]:
                return True
            if seen >= 100:
                break
    except ValueError:
        pass
    return False


def _kept(signal: Signal) -> dict[str, Any]:
    """What quarantine keeps of a span: all but what JSON can't hold."""

    def plain(value: Any) -> Any:
        if isinstance(value, bytes):
            return value.hex()
        if isinstance(value, float) and not math.isfinite(value):
            return str(value)
        if isinstance(value, dict):
            return {str(key): plain(one) for key, one in value.items()}
        return [plain(one) for one in value] if isinstance(value, list) else value

    return {name: plain(value) for name, value in signal.items() if value not in (None, [], {}, "")}
