"""Langfuse: observations and scores as its own models write them, and as its exports spell them."""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime
from typing import Any

import pytest
from langfuse.api.commons.types.categorical_score import CategoricalScore
from langfuse.api.commons.types.correction_score import CorrectionScore
from langfuse.api.commons.types.numeric_score import NumericScore
from langfuse.api.commons.types.observation_v2 import ObservationV2

from tests.formats.speaking import take
from treering.formats.langfuse import Langfuse

NOON = datetime(2026, 11, 22, 12, tzinfo=UTC)


def dumped(model: Any) -> dict[str, Any]:
    """A model as Langfuse's API writes it: camelCase, nulls left out."""
    found: dict[str, Any] = json.loads(model.json())
    return found


def snaked(given: dict[str, Any]) -> dict[str, Any]:
    return {re.sub("([A-Z])", lambda match: f"_{match[1].lower()}", name): one for name, one in given.items()}


def observation(name: str = "obs-1", **more: Any) -> dict[str, Any]:
    given: dict[str, Any] = {
        "id": name, "traceId": "trace-1", "startTime": NOON, "endTime": NOON.replace(second=1), "projectId": "p",
        "type": "GENERATION", "name": "answer", "level": "DEFAULT", "sessionId": "s-1", "userId": "u-1",
        "input": [{"role": "user", "content": "hi"}], "output": {"role": "assistant", "content": "ho"},
        "model": "gpt-5", "usageDetails": {"input": 3, "output": 4, "total": 7}, "traceName": "support",
    }  # fmt: skip
    return dumped(ObservationV2(**snaked({**given, **more})))


def score(kind: Any = NumericScore, **more: Any) -> dict[str, Any]:
    given = {
        "id": "score-1", "traceId": "trace-1", "name": "helpful", "source": "EVAL", "timestamp": NOON,
        "createdAt": NOON, "updatedAt": NOON, "environment": "default", "value": 0.5,
    }  # fmt: skip
    kinds = {NumericScore: "NUMERIC", CategoricalScore: "CATEGORICAL", CorrectionScore: "CORRECTION"}
    return {**dumped(kind(**snaked({**given, **more}))), "dataType": kinds[kind]}


def test_a_generation_is_a_record() -> None:
    assert Langfuse.recognises(observation())
    record = take(Langfuse, [observation()]).one
    assert record["messages"] == [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]
    assert (record["session_id"], record["subject"], record["origin"]) == ("s-1", "u-1", "model:gpt-5")
    assert record["ts"] == NOON.replace(second=1)
    assert record["meta"]["usage"] == {"input_tokens": 3, "output_tokens": 4, "total_tokens": 7}
    assert record["meta"]["trace_name"] == "support"


def test_rows_of_blob_storage_are_the_same_records() -> None:
    row = {
        "id": "obs-1", "trace_id": "trace-1", "type": "GENERATION", "start_time": "2026-11-22 12:00:00.000000",
        "end_time": "2026-11-22 12:00:01.000000", "provided_model_name": "gpt-5", "session_id": "s-1", "user_id": "u-1",
        "input": '[{"role":"user","content":"hi"}]', "output": '{"role":"assistant","content":"ho"}',
        "usage_details": '{"input":"3","output":4,"total":7}', "name": "answer", "trace_name": "support", "level": "DEFAULT",
    }  # fmt: skip
    assert Langfuse.recognises(row)
    assert take(Langfuse, [row]).one == take(Langfuse, [observation()]).one


def test_tools_and_calls_as_its_openai_wrapper_keeps_them() -> None:
    function = {"name": "f", "description": "d", "parameters": {"type": "object"}}
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": '{"a":  1}'}}
    asked = {"tools": [{"type": "function", "function": function}],
             "messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": None, "tool_calls": [call]},
                          {"role": "tool", "tool_call_id": "c", "content": "42"}]}  # fmt: skip
    record = take(Langfuse, [observation(input=asked)]).one
    assert record["messages"][1] == {"role": "assistant", "tool_calls": [call]}
    assert record["messages"][2] == {"role": "tool", "content": "42", "tool_call_id": "c", "name": "f"}
    assert json.loads(record["tools"]) == asked["tools"]


@pytest.mark.parametrize("output", ["ho", {"role": "assistant", "content": "ho"}, [{"role": "assistant", "content": "ho"}],
                                    {"choices": [{"message": {"role": "assistant", "content": "ho"}}]}])  # fmt: skip
def test_answers_in_every_shape(output: Any) -> None:
    assert take(Langfuse, [observation(output=output)]).messages[1] == {"role": "assistant", "content": "ho"}


def test_a_structured_answer_is_kept_as_json() -> None:
    record = take(Langfuse, [observation(input={"question": "?"}, output={"answer": 42})]).one
    assert [one["content"] for one in record["messages"]] == ['{"question":"?"}', '{"answer":42}']


def test_a_session_that_grew_is_one_record() -> None:
    longer = [
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": "ho"},
        {"role": "user", "content": "?"},
    ]
    later = observation("obs-2", traceId="trace-2", input=longer, output="!", endTime=NOON.replace(minute=1))
    taken = take(Langfuse, [later, observation()])
    assert len(taken.messages) == 4
    assert taken.passed == {"calls that a later one repeats": 1}


def test_everything_but_generations_is_counted() -> None:
    values = [observation(f"o{i}", type=kind, parentObservationId="x") for i, kind in enumerate(
        ["SPAN", "EVENT", "TOOL", "RETRIEVER", "EMBEDDING", "EVALUATOR", "GUARDRAIL", "CHAIN", "AGENT"])]  # fmt: skip
    values.append(observation("empty", input=None, output=None, sessionId="other"))
    taken = take(Langfuse, [*values, observation()])
    assert taken.one["meta"]["observation_id"] == "obs-1"
    assert sum(taken.passed.values()) == 10
    assert taken.passed["observations without content"] == 1


def test_an_error_is_an_outcome() -> None:
    taken = take(Langfuse, [observation(level="ERROR", statusMessage="rate limited", output=None)])
    assert taken.said == [({"outcome": {"status": "error", "error": "rate limited"}},)]


def test_scores_find_their_records_before_or_after_them() -> None:
    numeric = score(observationId="obs-1", comment="good")
    label = score(CategoricalScore, id="2", name="tone", value=1, stringValue="warm", source="ANNOTATION")
    correction = score(CorrectionScore, id="3", name="output", value=0, stringValue="hello there", source="ANNOTATION")
    lost = score(id="4", traceId="elsewhere")
    assert all(Langfuse.recognises(one) for one in (numeric, label, correction))
    expected = {
        "outcome": {"scores": {"helpful": {"score": 0.5, "comment": "good"}, "output": "hello there", "tone": "warm"}},
        "quality": 0.5,
        "by": "ANNOTATION, EVAL",
    }
    for values in (
        [numeric, label, correction, lost, observation()],
        [observation(), lost, correction, label, numeric],
    ):
        taken = take(Langfuse, values)
        assert taken.said == [(expected,)]
        assert taken.passed == {"scores of calls that aren't here": 1}


def test_a_trace_with_its_observations_and_scores_inside() -> None:
    inner = observation()
    for name in ("sessionId", "userId", "traceName"):
        inner.pop(name)
    trace = {"id": "trace-1", "name": "support", "sessionId": "s-1", "userId": "u-1", "timestamp": "2026-11-22T12:00:00Z",
             "observations": [inner], "scores": [score()]}  # fmt: skip
    assert Langfuse.recognises(trace)
    taken = take(Langfuse, [trace])
    assert taken.one == take(Langfuse, [observation()]).one
    assert taken.said[0][0]["quality"] == 0.5
    apart = {"trace": {name: trace[name] for name in ("id", "name", "sessionId", "userId")},
             "observations": trace["observations"], "scores": trace["scores"]}  # fmt: skip
    assert take(Langfuse, [apart]).one == taken.one


def test_an_agents_span_counts_where_no_generation_is() -> None:
    taken = take(Langfuse, [observation(type="AGENT", input="hi", output="ho")])
    assert [one["content"] for one in taken.messages] == ["hi", "ho"]


@pytest.mark.parametrize("value", [3, {}, {"id": "x"}, {"id": "x", "type": "GENERATION"}])
def test_what_is_nothing_of_langfuses_is_refused(value: Any) -> None:
    assert len(take(Langfuse, [value]).unfit) == 1


def test_a_time_that_cant_be_meant_is_named() -> None:
    (unfit,) = take(Langfuse, [{**observation(), "endTime": "soon"}]).unfit
    assert unfit.problems[0].loc == ("endTime",)
