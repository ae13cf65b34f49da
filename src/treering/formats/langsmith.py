"""Runs and feedback of LangSmith, as its SDK and its exports write them.

A run's `session_id` is its project; the conversation stands in its metadata.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

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
    tools_of,
    trace_record,
)
from treering.schema import RecordType
from treering.schema.fields import dump_json

__all__ = ["LangSmith"]

EMPTY = "runs without content"
OTHER = "runs of other things"
TOOL_RUNS = "runs of tools, whose results come with the next call"

_THREADS = ("session_id", "thread_id", "conversation_id")  # what LangSmith itself groups a thread by
_USERS = ("user_id", "userId", "ls_user_id", "langgraph_auth_user_id")


class LangSmith(Importer):
    """Runs (one record for each conversation of `llm` runs), with what they have been scored, and feedback."""

    name = "langsmith"
    makes = ("chat",)
    elements = ("runs", "data")

    def __init__(self, target: RecordType, origin: str | None) -> None:
        super().__init__(target, origin)
        self._collapse = Collapse()

    @classmethod
    def recognises(cls, value: Any) -> bool:
        """A run, or a piece of feedback."""
        return isinstance(value, dict) and (_is_run(value) or _is_feedback(value))

    def feed(self, line: int, value: Any, text: bytes) -> Iterator[Outcome]:
        """As `Importer.feed`."""
        try:
            if isinstance(value, dict) and _is_run(value):
                yield from self._run(line, value, len(text))
            elif isinstance(value, dict) and _is_feedback(value):
                yield from self._collapse.say(f"run:{value['run_id']}", _word(value), line)
            else:
                raise MisfitError(
                    (), "bad-value", "expected a run (with run_type and inputs) or feedback of LangSmith's"
                )
        except MisfitError as exc:
            yield Unfit(line, (exc.problem,), value)

    def finish(self) -> Iterator[Outcome]:
        """The conversations that are left."""
        return self._collapse.finish()

    def _run(self, line: int, value: Mapping[str, Any], size: int) -> Iterator[Outcome]:
        children = value.get("child_runs")
        if isinstance(children, list):
            for child in children:
                if isinstance(child, dict):
                    try:
                        yield from self._run(line, child, size // (len(children) + 1))
                    except MisfitError as exc:
                        yield Unfit(line, (exc.problem,), child)
        run = named(value.get("id"))
        if run is None:
            raise MisfitError(("id",), "missing-field", "expected the id of the run, got none")
        for word in _stats(json_or_same(value.get("feedback_stats"))):
            yield from self._collapse.say(f"run:{run}", word, line)
        kind = value["run_type"]
        is_call = kind == "llm"
        parents = json_or_same(value.get("parent_run_ids"))
        is_inner = bool(value.get("parent_run_id")) or bool(parents)
        if kind == "tool":
            yield Passed(line, TOOL_RUNS)
            return
        if not is_call and (kind != "chain" or is_inner):
            yield Passed(line, OTHER)
            return
        given, made = json_or_same(value.get("inputs")), json_or_same(value.get("outputs"))
        if not given and not made:
            yield Passed(line, EMPTY)
            return
        asked, answered = conversation_of(given), conversation_of(made, default="assistant")
        if is_call and asked is None and given:
            asked = [{"role": "user", "content": _shown(given)}], None
        if is_call and answered is None and made:
            answered = [{"role": "assistant", "content": _shown(made)}], None
        if asked is None and answered is None:
            yield Passed(line, OTHER)
            return
        turns = Turns()
        says = answered[0] if answered else []
        if not is_call and asked is not None and len(says) > len(asked[0]) and says[: len(asked[0])] == asked[0]:
            says = says[len(asked[0]) :]  # a graph's state holds what it was given
        turns.extend(asked[0] if asked else (), ("inputs",), default="user")
        turns.extend(says, ("outputs",), default="assistant")
        if not turns.done():
            yield Passed(line, EMPTY)
            return
        tools = asked[1] if asked else None
        yield from self._collapse.add(_call(line, value, run, size, turns, tools, is_call))


def _call(
    line: int, value: Mapping[str, Any], run: str, size: int, turns: Turns, tools: list[Any] | None, is_call: bool
) -> Call:
    extra = _object(value.get("extra"))
    about = _object(extra.get("metadata")) or _object(value.get("metadata"))
    asked = _object(extra.get("invocation_params")) or _object(about.get("ls_invocation_params"))
    thread = next((found for name in _THREADS if (found := named(about.get(name)))), None)
    trace = named(value.get("trace_id")) or run
    ended = moment(value.get("end_time"), ("end_time",)) or moment(value.get("start_time"), ("start_time",))
    record_id = hashed_id("langsmith", run)
    tools = tools or tools_of(asked.get("tools") or asked.get("functions"))
    offered = tools_text(tools) if tools else None

    def late() -> dict[str, Any]:
        models = (about.get("ls_model_name"), asked.get("model"), asked.get("model_name"))
        record = trace_record(
            turns,
            id=record_id,
            model=next((found for given in models if (found := named(given))), None),
            tools=offered,
            session_id=thread or trace,
            subject=next((found for name in _USERS if (found := named(about.get(name)))), None),
            ts=ended,
            meta={
                "format": "langsmith",
                "run_id": run,
                "trace_id": trace,
                "provider": named(about.get("ls_provider")),
                "name": named(value.get("name")),
                "project": named(value.get("session_name")) or named(value.get("session_id")),
                "tags": json_or_same(value.get("tags")) or None,
                "usage": _usage(value),
            },
        )
        del record["messages"]
        return record

    outcome: dict[str, Any] = {}
    if value.get("error") or value.get("status") == "error":
        outcome = {"status": "error", "error": named(value.get("error")) or "unknown"}
    return Call(
        record={"id": record_id, "messages": turns.done()},
        conversation=f"thread:{thread}" if thread else f"trace:{trace}",
        at=micros(ended),
        line=line,
        size=size,
        targets=(f"run:{run}", f"run:{trace}"),  # what is said of a trace's root run is said of its calls
        is_summary=not is_call,
        outcome=outcome,
        late=late,
    )


def _is_run(value: Mapping[str, Any]) -> bool:
    return isinstance(value.get("run_type"), str) and ("inputs" in value or "outputs" in value or "trace_id" in value)


def _is_feedback(value: Mapping[str, Any]) -> bool:
    return named(value.get("run_id")) is not None and isinstance(value.get("key"), str) and "score" in value


def _object(value: Any) -> Mapping[str, Any]:
    value = json_or_same(value)
    return value if isinstance(value, dict) else {}


def _shown(value: Any) -> str:
    if isinstance(value, dict) and len(value) == 1 and isinstance(inner := next(iter(value.values())), str):
        return inner
    try:
        return dump_json(value)
    except ValueError as exc:
        raise MisfitError((), "bad-value", str(exc)) from exc


def _number(value: Any) -> float | None:
    if isinstance(value, bool):
        return float(value)
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None


def _word(value: Mapping[str, Any]) -> Word:
    source = _object(value.get("feedback_source"))
    said = value.get("value")
    return Word(
        name=value["key"],
        score=_number(value.get("score")),
        label=said if isinstance(said, str) and said else None,
        comment=named(value.get("comment")),
        by=named(source.get("type")),
        correction=value.get("correction"),
    )


def _stats(value: Any) -> Iterator[Word]:
    """What `feedback_stats` sums up: the mean of a key's scores, or the value that was said most."""
    for key, one in (value if isinstance(value, dict) else {}).items():
        if not isinstance(one, dict):
            continue
        said = one.get("values")
        label = None
        if isinstance(said, dict) and said:
            label = max(sorted(said), key=lambda name: _number(said[name]) or 0)
        score = _number(one.get("avg"))
        comments = one.get("comments")
        comment = named(comments[0]) if isinstance(comments, list) and comments else None
        if score is not None or label is not None or comment is not None:
            yield Word(name=str(key), score=score, label=named(label), comment=comment)


def _usage(value: Mapping[str, Any]) -> dict[str, float] | None:
    outputs = _object(value.get("outputs"))
    told = _object(outputs.get("usage_metadata"))
    usage: dict[str, float] = {}
    for ours, names in (
        ("input_tokens", ("prompt_tokens", "input_tokens")),
        ("output_tokens", ("completion_tokens", "output_tokens")),
    ):
        for given in (value, told):
            number = next((found for name in names if (found := _number(given.get(name))) is not None), None)
            if number is not None:
                usage[ours] = int(number)
                break
    return usage or None
