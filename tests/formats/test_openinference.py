"""OpenInference: attributes as its own instrumentation package writes them, over OTLP and as Phoenix exports them."""

from __future__ import annotations

import json
from typing import Any

from openinference.instrumentation import (
    get_annotation_attributes,
    get_evaluation_attributes,
    get_llm_attributes,
    get_session_attributes,
    get_span_kind_attributes,
    get_user_id_attributes,
)

from tests.formats.speaking import Traced, take
from treering.formats.openinference import OpenInference
from treering.formats.otlp import Otlp

QUESTION: list[Any] = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "contents": [
        {"type": "text", "text": "What is this?"}, {"type": "image", "image": {"url": "https://x/y.png"}}]},
    {"role": "assistant", "tool_calls": [{"id": "c1", "function": {"name": "look", "arguments": {"at": "y.png"}}}]},
    {"role": "tool", "tool_call_id": "c1", "content": "a cat"},
]  # fmt: skip
ANSWER: list[Any] = [
    {"role": "assistant", "contents": [{"type": "reasoning", "text": "cats"}, {"type": "text", "text": "A cat."}]}
]


def attributes(**more: Any) -> dict[str, Any]:
    llm = get_llm_attributes(
        provider="openai",
        model_name="gpt-5",
        input_messages=more.pop("question", QUESTION),
        output_messages=more.pop("answer", ANSWER),
        token_count={"prompt": 7, "completion": 3},
        tools=[{"json_schema": {"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}}],
    )
    return {
        **get_span_kind_attributes("llm"),
        **llm,
        **get_session_attributes(session_id="s-1"),
        **get_user_id_attributes(user_id="u-1"),
        **more,
    }


def check(record: dict[str, Any]) -> None:
    assert record["messages"] == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "What is this?\n[image, https://x/y.png]"},
        {"role": "assistant", "tool_calls": [
            {"id": "c1", "type": "function", "function": {"name": "look", "arguments": '{"at": "y.png"}'}}]},
        {"role": "tool", "content": "a cat", "tool_call_id": "c1", "name": "look"},
        {"role": "assistant", "content": "A cat.", "reasoning_content": "cats"},
    ]  # fmt: skip
    assert json.loads(record["tools"])[0]["function"]["name"] == "look"
    assert (record["session_id"], record["subject"], record["origin"]) == ("s-1", "u-1", "model:gpt-5")
    assert record["meta"]["usage"] == {"input_tokens": 7, "output_tokens": 3}


def exported(traced: Traced, nested: bool = False) -> list[dict[str, Any]]:
    """Spans in the shape of Phoenix's REST interface, from those that the SDK finished."""
    spans = []
    for span in traced._spans.get_finished_spans():
        context, given = span.get_span_context(), dict(span.attributes or {})
        spans.append(
            {
                "id": "U3Bhbjox", "name": span.name, "span_kind": given.get("openinference.span.kind"),
                "context": {"trace_id": f"{context.trace_id:032x}", "span_id": f"{context.span_id:016x}"},
                "parent_id": None, "start_time": "2026-11-22T10:00:00.000001+00:00",
                "end_time": "2026-11-22T10:00:01.000001+00:00", "status_code": "OK", "status_message": "",
                "attributes": given, "events": [],
            }
        )  # fmt: skip
    return spans


def test_its_own_packages_attributes_over_otlp() -> None:
    traced = Traced()
    traced.record(attributes())
    check(take(OpenInference, [traced.spans_json()]).one)


def test_a_history_that_was_changed_is_a_branch_of_its_own() -> None:
    def exported_span(number: int, *asked: str) -> dict[str, Any]:
        given = attributes(question=[{"role": "user", "content": one} for one in asked], answer=ANSWER)
        return {
            "name": "chat", "span_kind": "LLM", "attributes": given, "start_time": "2026-11-22T10:00:00+00:00",
            "end_time": f"2026-11-22T10:00:0{number}+00:00", "context": {"trace_id": "5b8e" * 8, "span_id": f"{number:016x}"},
        }  # fmt: skip

    spans = [exported_span(1, "one"), exported_span(2, "two", "three"), exported_span(3, "two", "three", "four")]
    assert take(OpenInference, spans).records == [take(OpenInference, [one]).one for one in spans]


def test_a_receiver_of_otlp_takes_them_too() -> None:
    traced = Traced()
    traced.record(attributes())
    check(take(Otlp, [traced.spans_json()]).one)


def test_what_phoenix_exports_is_the_same_record() -> None:
    traced = Traced()
    traced.record(attributes())
    taken = take(OpenInference, exported(traced))
    check(taken.one)
    assert taken.one["id"] == take(OpenInference, [traced.spans_json()]).one["id"]
    assert taken.one["ts"].isoformat() == "2026-11-22T10:00:01.000001+00:00"


def test_rows_of_phoenixs_data_frames() -> None:
    row = {
        "name": "chat", "span_kind": "LLM", "parent_id": None, "start_time": 1795345612000, "end_time": 1795345613000,
        "status_code": "ERROR", "status_message": "boom", "events": [],
        "context.span_id": "7c757dea32295009", "context.trace_id": "6d00221d39ef3a90c1258c4ab7ad22e9",
        "attributes.openinference.span.kind": "LLM", "attributes.llm.model_name": "gpt-5",
        "attributes.llm.input_messages": [{"message.role": "user", "message.content": "hi"}],
        "attributes.llm.output_messages": [{"message": {"role": "assistant", "content": "ho", "tool_calls": [
            {"tool_call": {"id": "c", "function": {"name": "f", "arguments": "{}"}}}]}}],
        "attributes.session.id": "s",
    }  # fmt: skip
    assert OpenInference.recognises(row)
    taken = take(OpenInference, [row])
    assert [one.get("content") for one in taken.messages] == ["hi", "ho"]
    assert taken.messages[1]["tool_calls"][0]["function"]["name"] == "f"
    assert taken.one["ts"].isoformat() == "2026-11-22T11:06:53+00:00"
    assert taken.said == [({"outcome": {"status": "error", "error": "boom"}},)]


def test_spans_of_other_kinds_are_no_records() -> None:
    traced = Traced()
    question = [{"role": "user", "content": "hi"}]
    answer = [{"role": "assistant", "content": "ho"}]
    for kind in ("chain", "retriever", "embedding", "guardrail"):
        traced.record({**get_span_kind_attributes(kind), "input.value": "x", "output.value": "y"})  # type: ignore[arg-type]
    traced.record({**get_span_kind_attributes("tool"), "tool.name": "f", "input.value": "{}"})
    traced.record(attributes(question=question, answer=answer))
    taken = take(OpenInference, [traced.spans_json()])
    assert len(taken.found) == 1
    assert taken.passed == {"spans of other things": 4, "runs of tools, whose results come with the next call": 1}


def test_llm_spans_without_messages_are_counted() -> None:
    traced = Traced()
    traced.record({**get_span_kind_attributes("llm"), "llm.model_name": "gpt-5"})
    assert take(OpenInference, [traced.spans_json()]).passed == {"spans without content": 1}


def test_annotations_and_evaluations_are_said_of_the_record() -> None:
    traced = Traced()
    said = get_annotation_attributes(annotations=[{"name": "thumbs", "label": "up", "annotator_kind": "HUMAN"}])
    judged = get_evaluation_attributes(
        evaluations=[{"name": "correct", "score": 1, "explanation": "yes"}], scope="session"
    )
    traced.record(attributes(**said, **judged))
    taken = take(OpenInference, [traced.spans_json()])
    scores = {"correct": {"score": 1.0, "comment": "yes"}, "thumbs": "up"}
    assert taken.said == [({"outcome": {"scores": scores}, "quality": 1.0, "by": "HUMAN"},)]


def test_it_is_told_apart_from_plain_otlp() -> None:
    traced = Traced()
    traced.record(attributes())
    assert OpenInference.recognises(traced.spans_json())
    assert not Otlp.recognises(traced.spans_json())
