"""Spans in OpenInference's attributes: as OTLP, or as Phoenix exports them, one span an object.

What the attributes mean stands in genai: a receiver of OTLP meets both conventions.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from treering.formats.base import Outcome, Unfit
from treering.formats.otlp import Event, Signal, Telemetry, is_otlp, speaks_openinference
from treering.formats.shapes import MisfitError, micros, moment, named

__all__ = ["OpenInference"]

_FRAME = "attributes."


class OpenInference(Telemetry):
    """OpenInference spans: OTLP requests, spans of Phoenix's REST interface, or rows of its data frames."""

    name = "openinference"
    elements = ("resourceSpans", "data", "spans")

    @classmethod
    def recognises(cls, value: Any) -> bool:
        """An OTLP export whose spans are marked as OpenInference's, or a span as Phoenix exports it."""
        if is_otlp(value):
            return speaks_openinference(value)
        return _is_span(value)

    def feed(self, line: int, value: Any, text: bytes) -> Iterator[Outcome]:
        """As `Importer.feed`."""
        if not _is_span(value):
            yield from super().feed(line, value, text)
            return
        try:
            signal = _signal(value)
        except MisfitError as exc:
            yield Unfit(line, (exc.problem,), value)
            return
        yield from self.take(line, signal, len(text))


def _is_span(value: Any) -> bool:
    if not isinstance(value, dict):
        return False
    if "context.span_id" in value:
        return "span_kind" in value or any(name.startswith(f"{_FRAME}openinference") for name in value)
    context = value.get("context")
    return isinstance(context, dict) and "span_id" in context and "span_kind" in value


def _signal(value: Mapping[str, Any]) -> Signal:
    inside = value.get("context")
    context: Mapping[str, Any] = inside if isinstance(inside, dict) else {
        "trace_id": value.get("context.trace_id"), "span_id": value.get("context.span_id"),
    }  # fmt: skip
    given = value.get("attributes")
    attributes: dict[str, Any] = dict(_flat(given)) if isinstance(given, dict) else {}
    for name, inner in value.items():  # a data frame's columns
        if name.startswith(_FRAME) and inner is not None:
            attributes[name.removeprefix(_FRAME)] = inner
    attributes.setdefault("openinference.span.kind", str(value.get("span_kind") or "").upper())
    failed = str(value.get("status_code") or "").upper() in ("ERROR", "STATUS_CODE_ERROR")
    listed = value.get("events")
    events: list[Event] = []
    for one in listed if isinstance(listed, list) else ():
        if isinstance(one, dict):
            inner = one.get("attributes")
            told = dict(inner) if isinstance(inner, dict) else {}
            events.append({"name": named(one.get("name")) or "", "at": None, "attributes": told})
    return {
        "kind": "span",
        "trace_id": named(context.get("trace_id")),
        "span_id": named(context.get("span_id")),
        "parent_id": named(value.get("parent_id")),
        "name": named(value.get("name")) or "",
        "start": _ns(value, "start_time"),
        "end": _ns(value, "end_time"),
        "attributes": attributes,
        "resource": {},
        "scope": "",
        "events": events,
        "error": (named(value.get("status_message")) or "") if failed else None,
        "body": None,
    }


def _flat(value: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, Any]]:
    """Attributes by their dotted names; lists (of messages) stay whole, for genai reads them so, too."""
    for name, inner in value.items():
        if isinstance(inner, dict):
            yield from _flat(inner, f"{before}{name}.")
        else:
            yield f"{before}{name}", inner


def _ns(value: Mapping[str, Any], name: str) -> int | None:
    given = value.get(name)
    if isinstance(given, int) and not isinstance(given, bool):
        return given * 1_000_000  # pandas writes milliseconds
    found = moment(given, (name,))
    return None if found is None else micros(found) * 1000
