"""What Langfuse exports: observations and scores, from its API, its user interface and its blob storage.

Names come in camelCase (API) or snake_case (blob storage); values that hold JSON may be its text.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any

from treering.errors import Problem
from treering.formats.base import Importer, Outcome, Passed, Unfit, hashed_id, tools_text
from treering.formats.collapse import Call, Collapse, Word
from treering.formats.shapes import (
    MisfitError,
    Turns,
    conversation_of,
    json_or_same,
    micros,
    moment,
    named,
    trace_record,
)
from treering.schema import RecordType
from treering.schema.fields import dump_json

__all__ = ["Langfuse"]

EMPTY = "observations without content"
OTHER = "observations of other things"
TOOL_RUNS = "runs of tools, whose results come with the next call"
TRACES = "traces, whose calls are observations"

_TYPES = frozenset(
    {
        "GENERATION", "SPAN", "EVENT", "AGENT", "TOOL", "CHAIN", "RETRIEVER", "EVALUATOR", "EMBEDDING", "GUARDRAIL",
    }
)  # fmt: skip
_WHOLE = frozenset({"AGENT", "SPAN", "CHAIN"})


class Langfuse(Importer):
    """Observations (one record for each conversation of generations) and scores, one an element; traces with both inside."""

    name = "langfuse"
    makes = ("chat",)
    elements = ("data",)

    def __init__(self, target: RecordType, origin: str | None) -> None:
        super().__init__(target, origin)
        self._collapse = Collapse()

    @classmethod
    def recognises(cls, value: Any) -> bool:
        """An observation, a score, or a trace that holds observations."""
        if not isinstance(value, dict) or "run_type" in value or "resourceSpans" in value:
            return False
        return _is_observation(value) or _is_score(value) or _is_trace(value)

    def feed(self, line: int, value: Any, text: bytes) -> Iterator[Outcome]:
        """As `Importer.feed`."""
        if not isinstance(value, dict):
            problem = Problem((), "wrong-type", "expected an observation, a score or a trace of Langfuse's")
            yield Unfit(line, (problem,), value)
            return
        try:
            yield from self._take(line, value, len(text), value)
        except MisfitError as exc:
            yield Unfit(line, (exc.problem,), value)

    def finish(self) -> Iterator[Outcome]:
        """The conversations that are left."""
        return self._collapse.finish()

    def _take(self, line: int, value: Mapping[str, Any], size: int, trace: Mapping[str, Any]) -> Iterator[Outcome]:
        if _is_trace(value):
            yield from self._trace(line, value, size)
        elif _is_score(value):
            yield from self._score(line, value, trace)
        elif _is_observation(value):
            yield from self._observation(line, value, size, trace)
        elif _get(value, "traceId") is None and named(value.get("id")) and ("input" in value or "sessionId" in value):
            yield Passed(line, TRACES)
        else:
            raise MisfitError((), "bad-value", "expected an observation, a score or a trace of Langfuse's")

    def _trace(self, line: int, value: Mapping[str, Any], size: int) -> Iterator[Outcome]:
        inside = value.get("trace")
        trace: Mapping[str, Any] = inside if isinstance(inside, dict) else value
        listed = [*_listed(value, "observations"), *_listed(value, "scores")]
        for one in listed:
            if isinstance(one, dict):
                try:
                    yield from self._take(line, one, size // len(listed), trace)
                except MisfitError as exc:
                    yield Unfit(line, (exc.problem,), one)

    def _observation(
        self, line: int, value: Mapping[str, Any], size: int, trace: Mapping[str, Any]
    ) -> Iterator[Outcome]:
        kind = value["type"].upper()
        is_call = kind == "GENERATION"
        if kind == "TOOL":
            yield Passed(line, TOOL_RUNS)
            return
        if not is_call and (kind not in _WHOLE or (kind != "AGENT" and _get(value, "parentObservationId"))):
            yield Passed(line, OTHER)
            return
        given, made = json_or_same(value.get("input")), json_or_same(value.get("output"))
        if given in (None, "", [], {}) and made in (None, "", [], {}):
            yield Passed(line, EMPTY)
            return
        asked = _said(given, "user", is_call)
        answered = _said(made, "assistant", is_call)
        if asked is None and answered is None:
            yield Passed(line, OTHER)
            return
        turns = Turns()
        turns.extend(asked[0] if asked else (), ("input",), default="user")
        turns.extend(answered[0] if answered else (), ("output",), default="assistant")
        messages = turns.done()
        if not messages:
            yield Passed(line, EMPTY)
            return
        yield from self._collapse.add(self._call(line, value, size, trace, turns, asked[1] if asked else None, is_call))

    def _call(
        self,
        line: int,
        value: Mapping[str, Any],
        size: int,
        trace: Mapping[str, Any],
        turns: Turns,
        tools: list[Any] | None,
        is_call: bool,
    ) -> Call:
        name = named(value.get("id")) or ""
        trace_id = named(_get(value, "traceId")) or named(trace.get("id")) or ""
        session = named(_get(value, "sessionId")) or named(_get(trace, "sessionId"))
        ended = moment(_get(value, "endTime"), ("endTime",)) or moment(_get(value, "startTime"), ("startTime",))
        record_id = hashed_id("langfuse", trace_id, name)
        offered = tools_text(tools) if tools else None

        def late() -> dict[str, Any]:
            record = trace_record(
                turns,
                id=record_id,
                model=named(value.get("model")) or named(_get(value, "providedModelName")),
                tools=offered,
                session_id=session or trace_id or None,
                subject=named(_get(value, "userId")) or named(_get(trace, "userId")),
                ts=ended,
                meta={
                    "format": "langfuse",
                    "trace_id": trace_id or None,
                    "observation_id": name,
                    "name": named(value.get("name")),
                    "trace_name": named(_get(value, "traceName")) or named(trace.get("name")),
                    "environment": named(value.get("environment")),
                    "release": named(value.get("release")) or named(trace.get("release")),
                    "prompt": named(_get(value, "promptName")),
                    "tags": json_or_same(value.get("tags") or trace.get("tags")) or None,
                    "usage": _usage(value),
                },
            )
            del record["messages"]
            return record

        outcome: dict[str, Any] = {}
        if value.get("level") == "ERROR":
            outcome = {"status": "error", "error": named(_get(value, "statusMessage")) or "unknown"}
        return Call(
            record={"id": record_id, "messages": turns.done()},
            conversation=f"session:{session}" if session else f"trace:{trace_id or name}",
            at=micros(ended),
            line=line,
            size=size,
            targets=tuple([f"observation:{name}", f"trace:{trace_id}"] + ([f"session:{session}"] if session else [])),
            is_summary=not is_call,
            outcome=outcome,
            late=late,
        )

    def _score(self, line: int, value: Mapping[str, Any], trace: Mapping[str, Any]) -> Iterator[Outcome]:
        about = (
            ("observation", _get(value, "observationId")),
            ("trace", _get(value, "traceId")),
            ("session", _get(value, "sessionId")),
            ("trace", trace.get("id") if trace is not value else None),
        )
        target = next((f"{kind}:{found}" for kind, given in about if (found := named(given))), None)
        kind = str(_get(value, "dataType") or "").upper()
        number = _number(value.get("value"))
        text = named(_get(value, "stringValue"))
        if number is None and text is None:
            text = named(value.get("value"))
        word = Word(
            name=named(value.get("name")) or "score",
            score=None if kind in ("CATEGORICAL", "TEXT", "CORRECTION") else number,
            label=None if kind in ("CORRECTION", "BOOLEAN", "NUMERIC") else text,
            comment=named(value.get("comment")),
            by=named(value.get("source")),
            correction=text if kind == "CORRECTION" else None,
        )
        if target is None:
            yield Passed(line, "scores of nothing")
            return
        yield from self._collapse.say(target, word, line)


@cache
def _snake(name: str) -> str:
    return "".join(f"_{letter.lower()}" if letter.isupper() else letter for letter in name)


def _get(value: Mapping[str, Any], name: str) -> Any:
    found = value.get(name)
    return found if found is not None else value.get(_snake(name))


def _listed(value: Mapping[str, Any], name: str) -> list[Any]:
    found = json_or_same(value.get(name))
    return found if isinstance(found, list) else []


def _is_trace(value: Mapping[str, Any]) -> bool:
    return isinstance(value.get("observations"), list) and any(isinstance(one, dict) for one in value["observations"])


def _is_observation(value: Mapping[str, Any]) -> bool:
    kind = value.get("type")
    return (
        isinstance(kind, str)
        and kind.upper() in _TYPES
        and named(value.get("id")) is not None
        and _get(value, "startTime") is not None
    )


def _is_score(value: Mapping[str, Any]) -> bool:
    if not isinstance(value.get("name"), str) or not isinstance(value.get("source"), str) or "type" in value:
        return False
    return value["source"] in ("API", "EVAL", "ANNOTATION") and (
        "value" in value or _get(value, "stringValue") is not None
    )


def _said(value: Any, role: str, is_call: bool) -> tuple[list[Any], list[Any] | None] | None:
    if value in (None, "", [], {}):
        return None
    found = conversation_of(value, default=role)
    if found is None and is_call:  # a structured answer, or the variables of a prompt
        try:
            return [{"role": role, "content": dump_json(value)}], None
        except ValueError:
            return None
    return found


def _usage(value: Mapping[str, Any]) -> dict[str, float] | None:
    given = json_or_same(_get(value, "usageDetails") or value.get("usage"))
    if not isinstance(given, dict):
        return None
    names = {"input": "input_tokens", "output": "output_tokens", "total": "total_tokens"}
    usage = {
        names.get(str(name), str(name)): found for name, one in given.items() if (found := _number(one)) is not None
    }
    return usage or None


def _number(value: Any) -> float | None:
    if isinstance(value, str):
        try:
            value = float(value) if not value.strip().lstrip("-").isdecimal() else int(value)
        except ValueError:
            return None
    if isinstance(value, bool):
        return float(value)
    return value if isinstance(value, int | float) and math.isfinite(value) else None
