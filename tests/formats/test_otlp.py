"""OTLP: what real SDKs and exporters write, in each encoding and each convention."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.formats.speaking import Traced, hexed, take
from treering.formats.openinference import OpenInference
from treering.formats.otlp import Otlp, spans_of

OPENAI = {"gen_ai.operation.name": "chat", "gen_ai.provider.name": "openai", "gen_ai.request.model": "gpt-5"}


@pytest.fixture
def traced() -> Traced:
    return Traced()


@pytest.fixture
def genai(traced: Traced, monkeypatch: pytest.MonkeyPatch) -> Any:
    """OpenTelemetry's own GenAI handler, which instrumentations write their spans and events with."""
    from opentelemetry.util.genai.handler import TelemetryHandler

    monkeypatch.setenv("OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT", "SPAN_AND_EVENT")
    monkeypatch.setenv("OTEL_INSTRUMENTATION_GENAI_EMIT_EVENT", "true")
    return TelemetryHandler(tracer_provider=traced.tracers, logger_provider=traced.loggers)


def converse(handler: Any, turns: int = 3, conversation: str = "conv-1") -> None:
    """A conversation in which each call sends all before it, with a tool; reasoning isn't sent again."""
    from opentelemetry.util.genai import types as t

    tool = t.FunctionToolDefinition("lookup", "Looks up", {"type": "object", "properties": {"q": {"type": "string"}}})
    history = [t.InputMessage("user", [t.TextPart("Where is my order?"), t.BlobPart("image/png", "image", b"\x89PNG")])]
    for i in range(turns):
        with handler.inference("openai", request_model="gpt-5", conversation_id=conversation) as call:
            call.system_instruction = [t.TextPart("Be brief.")]
            call.tool_definitions = [tool]
            call.input_messages = list(history)
            asks = t.ToolCallRequestPart({"q": f"order {i}"}, "lookup", f"call_{i}")
            call.output_messages = [
                t.OutputMessage(
                    "assistant", [t.ReasoningPart(f"thought {i}"), t.TextPart("Looking."), asks], "tool_call"
                )
            ]
            call.response_model_name = "gpt-5-2026"
            call.input_tokens, call.output_tokens = 10 * i, 5
        history.append(t.InputMessage("assistant", [t.TextPart("Looking."), asks]))
        history.append(t.InputMessage("tool", [t.ToolCallResponsePart({"found": i}, f"call_{i}")]))


def test_a_conversation_of_the_real_sdk_is_one_record_with_all_that_was_said(traced: Traced, genai: Any) -> None:
    converse(genai)
    taken = take(Otlp, [traced.spans_json()])
    record = taken.one
    roles = [one["role"] for one in record["messages"]]
    assert roles == ["system", "user", "assistant", "tool", "assistant", "tool", "assistant"]
    system, user, first, result = record["messages"][:4]
    assert system["content"] == "Be brief."
    assert user["content"].startswith("Where is my order?\n[image image/png, 4 bytes, ")
    assert first["content"] == "Looking."
    assert first["reasoning_content"] == "thought 0"
    assert first["tool_calls"] == [
        {"id": "call_0", "type": "function", "function": {"name": "lookup", "arguments": '{"q":"order 0"}'}}
    ]
    assert result == {"role": "tool", "content": '{"found":0}', "tool_call_id": "call_0", "name": "lookup"}
    assert json.loads(record["tools"])[0]["function"]["name"] == "lookup"
    assert record["session_id"] == "conv-1"
    assert record["origin"] == "model:gpt-5-2026"
    assert record["meta"]["usage"] == {"input_tokens": 20, "output_tokens": 5}
    assert record["meta"]["service"] == "helpdesk"
    assert taken.passed == {"calls that a later one repeats": 2}


@pytest.mark.parametrize("is_text", [True, False])
@pytest.mark.parametrize("before", [[], [{"role": "user", "parts": [{"type": "text", "content": "Hello."}]}]])
def test_a_history_that_was_changed_is_a_branch_of_its_own(is_text: bool, before: list[Any]) -> None:
    def attribute(key: str, value: Any) -> dict[str, Any]:
        return {"key": key, "value": {"stringValue": json.dumps(value)} if is_text else structured(value)}

    def said(role: str, text: str) -> dict[str, Any]:
        return {"role": role, "parts": [{"type": "text", "content": text}]}

    def span(number: int, system: str, asked: list[str], answer: str) -> dict[str, Any]:
        return {
            "traceId": "5b8efff798038103d269b633813fc60c", "spanId": f"{number:016x}", "name": "chat",
            "endTimeUnixNano": f"{number}000000000",
            "attributes": [
                attribute("gen_ai.system_instructions", [{"type": "text", "content": system}]),
                attribute("gen_ai.input.messages", [*before, *(said("user", one) for one in asked)]),
                attribute("gen_ai.output.messages", [said("assistant", answer)]),
            ],
        }  # fmt: skip

    spans = [
        span(1, "Be brief.", ["one"], "1"),
        span(2, "Be brief.", ["two", "three"], "2"),  # another question, in the place of the first
        span(3, "Be brief.", ["two", "three", "four"], "3"),
        span(4, "Be kind.", ["two", "three", "four"], "4"),
        span(5, "Be kind.", ["two"], "5"),
    ]
    request = {"resourceSpans": [{"scopeSpans": [{"spans": spans}]}]}
    each = [take(Otlp, [{"resourceSpans": [{"scopeSpans": [{"spans": [one]}]}]}]).one for one in spans]
    assert take(Otlp, [request]).records == each


def structured(value: Any) -> dict[str, Any]:
    """A value as OTLP's JSON writes it, when it isn't JSON text."""
    if isinstance(value, dict):
        return {"kvlistValue": {"values": [{"key": key, "value": structured(one)} for key, one in value.items()]}}
    if isinstance(value, list):
        return {"arrayValue": {"values": [structured(one) for one in value]}}
    return {"stringValue": value}


def test_spans_and_events_of_the_same_calls_add_nothing_to_each_other(traced: Traced, genai: Any) -> None:
    converse(genai)
    both = take(Otlp, [traced.logs_json(), traced.spans_json()])
    alone = take(Otlp, [traced.spans_json()])
    assert both.records == alone.records
    events = take(Otlp, [traced.logs_json()])  # structured attributes, where spans hold JSON text
    assert events.one["id"] == alone.one["id"]
    assert events.one["messages"] == alone.one["messages"]
    assert events.one["tools"] == alone.one["tools"]


def test_protobuf_hex_json_base64_json_and_snake_case_say_the_same(traced: Traced, genai: Any) -> None:
    from google.protobuf.json_format import MessageToDict

    converse(genai)
    for message in (traced.spans_message(), traced.logs_message()):
        forms = [
            message,
            hexed(message),
            MessageToDict(message),  # base64 ids: what protobuf's own writer makes of them
            MessageToDict(message, preserving_proto_field_name=True),
            json.loads(json.dumps(hexed(message)).replace('"intValue": "', '"intValue":"')),
        ]
        first, *others = [list(spans_of(form)) for form in forms]
        assert len(first) == 3
        assert all(other == first for other in others)
        assert all(len(one["trace_id"] or "") == 32 and len(one["span_id"] or "") == 16 for one in first)


def test_upper_case_ids_numbers_for_integers_and_unknown_fields_are_taken() -> None:
    span = {
        "traceId": "5B8EFFF798038103D269B633813FC60C", "spanId": "EEE19B7EC3C1B174", "name": "chat", "flags": 256,
        "startTimeUnixNano": 1544712660000000000, "endTimeUnixNano": "1544712661000000000", "fromTheFuture": {"a": 1},
        "attributes": [
            {"key": "n", "value": {"intValue": 7}}, {"key": "m", "value": {"intValue": "8"}},
            {"key": "none", "value": {}}, {"key": "d", "value": {"doubleValue": "NaN"}},
            {"key": "b", "value": {"bytesValue": "AAE="}},
        ],
    }  # fmt: skip
    (signal,) = spans_of({"resourceSpans": [{"scopeSpans": [{"spans": [span]}], "schemaUrl": "x"}], "newer": True})
    assert signal["trace_id"] == "5b8efff798038103d269b633813fc60c"
    assert signal["span_id"] == "eee19b7ec3c1b174"
    assert (signal["start"], signal["end"]) == (1544712660000000000, 1544712661000000000)
    assert signal["attributes"]["n"] == 7
    assert signal["attributes"]["m"] == 8
    assert signal["attributes"]["none"] is None
    assert signal["attributes"]["b"] == b"\x00\x01"


def test_an_element_of_a_file_that_is_one_json_object_is_taken_too(traced: Traced, genai: Any) -> None:
    converse(genai)
    whole = traced.spans_json()
    assert Otlp.recognises(whole)
    assert all(map(Otlp.recognises, whole["resourceSpans"]))
    parts = take(Otlp, whole["resourceSpans"])
    assert parts.records == take(Otlp, [whole]).records
    assert parts.one["meta"]["service"] == "helpdesk"


def test_dicts_of_a_receiver_are_fed_one_by_one(traced: Traced, genai: Any) -> None:
    converse(genai)
    assert take(Otlp, spans_of(traced.spans_message())).records == take(Otlp, [traced.spans_json()]).records


def test_spans_without_content_are_counted_and_never_stored(traced: Traced, monkeypatch: pytest.MonkeyPatch) -> None:
    from opentelemetry.util.genai.handler import TelemetryHandler

    monkeypatch.delenv("OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT", raising=False)  # as SDKs come
    converse(TelemetryHandler(tracer_provider=traced.tracers, logger_provider=traced.loggers))
    with traced.span("GET /orders", **{"http.request.method": "GET"}):
        pass
    taken = take(Otlp, [traced.spans_json()])
    assert taken.found == []
    assert taken.passed == {"spans without content": 3, "spans of other things": 1}


def test_spans_that_a_retry_sent_again_add_nothing(traced: Traced, genai: Any) -> None:
    converse(genai)
    once, again = take(Otlp, [traced.spans_json()]), take(Otlp, [traced.spans_json()] * 3)
    assert again.records == once.records
    assert len(again.found) + sum(again.passed.values()) == 9


def test_a_failed_call_says_so(traced: Traced, genai: Any) -> None:
    from opentelemetry.util.genai import types as t

    call = genai.inference("openai", request_model="gpt-5")
    call.input_messages = [t.InputMessage("user", [t.TextPart("hi")])]
    call.fail(TimeoutError("too slow"))
    taken = take(Otlp, [traced.spans_json()])
    assert taken.messages == [{"role": "user", "content": "hi"}]
    assert taken.said == [({"outcome": {"status": "error", "error": "TimeoutError: too slow"}},)]


def test_a_call_that_failed_and_was_sent_again_is_the_call_that_worked(traced: Traced, genai: Any) -> None:
    from opentelemetry.util.genai import types as t

    asked = [t.InputMessage("user", [t.TextPart("hi")])]
    call = genai.inference("openai", conversation_id="c")
    call.input_messages = asked
    call.fail(TimeoutError("too slow"))
    with genai.inference("openai", conversation_id="c") as call:
        call.input_messages = asked
        call.output_messages = [t.OutputMessage("assistant", [t.TextPart("hello")])]
    taken = take(Otlp, [traced.spans_json()])
    assert [one["content"] for one in taken.messages] == ["hi", "hello"]
    assert taken.said == [()]


def test_agents_and_tool_runs_of_the_real_sdk_repeat_nothing(traced: Traced, genai: Any) -> None:
    from opentelemetry.util.genai import types as t

    with genai.invoke_local_agent(agent_name="helper", request_model="gpt-5") as agent:
        agent.input_messages = [t.InputMessage("user", [t.TextPart("hi")])]
        with genai.inference("openai", request_model="gpt-5") as call:
            call.input_messages = [t.InputMessage("user", [t.TextPart("hi")])]
            call.output_messages = [t.OutputMessage("assistant", [t.TextPart("hello")])]
        with genai.tool("lookup", tool_call_id="c") as tool:
            tool.tool_result = "x"
        agent.output_messages = [t.OutputMessage("assistant", [t.TextPart("hello")])]
    taken = take(Otlp, [traced.spans_json()])
    assert taken.one["meta"]["operation"] == "chat"
    assert taken.passed == {
        "runs of tools, whose results come with the next call": 1,
        "agents' spans whose calls are kept": 1,
    }


def test_each_answer_that_was_asked_for_is_a_branch(traced: Traced) -> None:
    answers = [{"role": "assistant", "parts": [{"type": "text", "content": text}]} for text in ("a", "b")]
    asked = [{"role": "user", "parts": [{"type": "text", "content": "?"}]}]
    traced.record({**OPENAI, "gen_ai.input.messages": json.dumps(asked), "gen_ai.output.messages": json.dumps(answers)})
    taken = take(Otlp, [traced.spans_json()])
    assert sorted(record["messages"][-1]["content"] for record in taken.records) == ["a", "b"]
    assert len({record["id"] for record in taken.records}) == 2


def details(number: int, messages: list[dict[str, Any]], *answers: str) -> dict[str, Any]:
    """A log record outside any span, of a call with these messages."""

    def said(role: str, text: str) -> dict[str, Any]:
        return {"role": role, "parts": [{"type": "text", "content": text}]}

    texts = {
        "gen_ai.operation.name": "chat",
        "gen_ai.input.messages": json.dumps(messages),
        "gen_ai.output.messages": json.dumps([said("assistant", text) for text in answers]),
    }
    record = {
        "timeUnixNano": str(1_760_000_000_000_000_000 + number * 10**9),
        "traceId": "0af7651916cd43dd8448eb211c80319c",
        "eventName": "gen_ai.client.inference.operation.details",
        "attributes": [{"key": key, "value": {"stringValue": text}} for key, text in texts.items()],
    }
    return {"resourceLogs": [{"scopeLogs": [{"logRecords": [record]}]}]}


LOOKED_UP: list[dict[str, Any]] = [
    {"role": "user", "parts": [{"type": "text", "content": "hi"}]},
    {"role": "assistant", "parts": [{"type": "tool_call", "id": "c1", "name": "lookup", "arguments": {"q": 1}}]},
    {"role": "tool", "parts": [{"type": "tool_call_response", "id": "c1", "response": "r"}]},
]


def test_a_call_outside_any_span_has_the_same_id_whatever_was_read_before() -> None:
    """The name of a tool is filled in at its result: that must not change what the ids of others are made of."""
    answered = {"role": "assistant", "parts": [{"type": "text", "content": "a"}]}
    more = {"role": "user", "parts": [{"type": "text", "content": "more"}]}
    first, second = details(0, LOOKED_UP, "a"), details(1, [*LOOKED_UP, answered, more], "b")
    (after,) = take(Otlp, [first, second]).records
    (alone,) = take(Otlp, [second]).records
    assert after == alone
    assert [one.get("name") for one in alone["messages"]] == [None, None, "lookup", None, None, None]


def test_answers_outside_any_span_have_ids_of_what_was_asked_and_nothing_that_was_filled_in() -> None:
    found = take(Otlp, [details(0, LOOKED_UP, "a", "b")]).records
    ids = {one["messages"][-1]["content"]: one["id"] for one in found}
    assert ids == {
        "a": "95d35ca30d5ee12b6a4bcf1031144144",
        "b": "39950e2deeeb163bdf2b9605cf4a153a",
    }  # of the first release: others would store what is there once more


def test_text_that_was_cut_off_at_a_limit_is_named(traced: Traced) -> None:
    whole = json.dumps([{"role": "user", "parts": [{"type": "text", "content": "x" * 100}]}])
    traced.record({**OPENAI, "gen_ai.input.messages": whole[:80]})
    (unfit,) = take(Otlp, [traced.spans_json()]).unfit
    (problem,) = unfit.problems
    assert problem.loc == ("attributes", "gen_ai.input.messages")
    assert problem.kind == "bad-json"
    assert "OTEL_ATTRIBUTE_VALUE_LENGTH_LIMIT" in problem.message
    assert unfit.kept["attributes"]["gen_ai.request.model"] == "gpt-5"


@pytest.mark.parametrize(
    ("messages", "loc"),
    [
        ([{"role": "narrator", "parts": []}], "role"),
        ([{"parts": [{"type": "text", "content": "x"}]}], "role"),
        (["just text"], 0),
        ([{"role": "assistant", "parts": [{"type": "tool_call", "id": "c"}]}], "name"),
        ([{"role": "user", "parts": [3]}], 0),
        ("3", "gen_ai.input.messages"),
    ],
)
def test_messages_that_cant_be_meant_are_named(traced: Traced, messages: Any, loc: Any) -> None:
    given = messages if isinstance(messages, str) else json.dumps(messages)
    traced.record({**OPENAI, "gen_ai.input.messages": given})
    taken = take(Otlp, [traced.spans_json()])
    assert taken.found == []
    assert taken.unfit[0].problems[0].loc[-1] == loc


@pytest.mark.parametrize(
    "value",
    [
        None, 3, [], {"resourceSpans": [3]}, {"resourceSpans": [{"scopeSpans": 1}]},
        {"resourceSpans": [{"scopeSpans": [{"spans": [{"traceId": "xyz"}]}]}]},
        {"resourceSpans": [{"scopeSpans": [{"spans": [{"attributes": [{"value": {}}]}]}]}]},
        {"resourceSpans": [{"scopeSpans": [{"spans": [{"startTimeUnixNano": "soon"}]}]}]},
        {"resourceSpans": [{"scopeSpans": [{"spans": [{"attributes": [{"key": "k", "value": {"intValue": 1.5}}]}]}]}]},
    ],
)  # fmt: skip
def test_what_is_no_export_is_refused_by_name(value: Any) -> None:
    taken = take(Otlp, [value])
    assert len(taken.unfit) == 1
    assert "expected" in taken.unfit[0].problems[0].message


@pytest.mark.parametrize("odd", [5, "abc", {"a": 1}])
def test_an_odd_member_beside_good_ones_is_refused_alone(traced: Traced, genai: Any, odd: Any) -> None:
    converse(genai)
    whole = traced.spans_json()
    taken = take(Otlp, [{**whole, "resourceLogs": odd}])
    assert taken.records == take(Otlp, [whole]).records
    assert [one.kept for one in taken.unfit] == [{"resourceLogs": odd}]
    beside = {"scopeSpans": whole["resourceSpans"][0]["scopeSpans"]}
    taken = take(Otlp, [{"resourceSpans": [{"scopeSpans": 1}], **beside}])
    assert len(taken.unfit) == len(taken.records) == 1


# --- older conventions -------------------------------------------------------------------------------------------


def test_openllmetrys_flat_attributes(traced: Traced) -> None:
    traced.record(
        {
            "gen_ai.system": "OpenAI", "gen_ai.request.model": "gpt-4o", "llm.request.type": "chat",
            "gen_ai.prompt.0.role": "system", "gen_ai.prompt.0.content": "Be brief.",
            "gen_ai.prompt.1.role": "user", "gen_ai.prompt.1.content": '[{"type": "text", "text": "hi"}]',
            "gen_ai.prompt.2.role": "assistant", "gen_ai.prompt.2.tool_calls.0.id": "c1",
            "gen_ai.prompt.2.tool_calls.0.name": "f", "gen_ai.prompt.2.tool_calls.0.arguments": '{"a": 1}',
            "gen_ai.prompt.3.role": "tool", "gen_ai.prompt.3.content": "42", "gen_ai.prompt.3.tool_call_id": "c1",
            **{f"gen_ai.prompt.{i}.role": "user" for i in range(4, 11)},
            **{f"gen_ai.prompt.{i}.content": f"line {i}" for i in range(4, 11)},
            "gen_ai.completion.0.role": "assistant", "gen_ai.completion.0.content": "done",
            "gen_ai.completion.0.finish_reason": "stop",
            "llm.request.functions.0.name": "f", "llm.request.functions.0.parameters": '{"type": "object"}',
            "gen_ai.usage.prompt_tokens": 9, "gen_ai.usage.completion_tokens": 2,
            "traceloop.association.properties.session_id": "s-1", "traceloop.association.properties.user_id": "u-1",
        }
    )  # fmt: skip
    taken = take(Otlp, [traced.spans_json()])
    record = taken.one
    assert [m["content"] for m in record["messages"][4:11]] == [f"line {i}" for i in range(4, 11)]  # 10 after 9
    assert record["messages"][1]["content"] == "hi"
    assert record["messages"][3] == {"role": "tool", "content": "42", "tool_call_id": "c1", "name": "f"}
    assert record["messages"][-1] == {"role": "assistant", "content": "done"}
    assert json.loads(record["tools"])[0]["function"] == {"name": "f", "parameters": {"type": "object"}}
    assert record["session_id"] == "s-1"
    assert record["subject"] == "u-1"
    assert record["meta"]["usage"] == {"input_tokens": 9, "output_tokens": 2}


def test_vercels_attributes(traced: Traced) -> None:
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "hi"}, {"type": "image", "image": "https://x/y.png"}]},
        {"role": "assistant", "content": [{"type": "tool-call", "toolCallId": "c", "toolName": "f", "input": {"a": 1}}]},
        {"role": "tool", "content": [
            {"type": "tool-result", "toolCallId": "c", "toolName": "f", "output": {"type": "json", "value": {"b": 2}}}]},
    ]  # fmt: skip
    inner = {
        "ai.operationId": "ai.streamText.doStream", "ai.model.id": "gpt-5", "ai.model.provider": "openai.responses",
        "ai.prompt.messages": json.dumps(messages), "ai.response.text": "done",
        "ai.response.toolCalls": json.dumps([{"toolCallId": "d", "toolName": "g", "input": '{"z":1}'}]),
        "ai.prompt.tools": [json.dumps({"type": "function", "name": "f", "inputSchema": {"type": "object"}})],
        "ai.usage.promptTokens": 3, "ai.telemetry.metadata.userId": "u", "ai.response.finishReason": "tool-calls",
    }  # fmt: skip
    outer = {
        "ai.operationId": "ai.streamText",
        "ai.prompt": json.dumps({"messages": messages}),
        "ai.response.text": "done",
    }
    with traced.span("ai.streamText", **outer), traced.span("ai.streamText.doStream", **inner):
        pass
    taken = take(Otlp, [traced.spans_json()])
    record = taken.one
    assert record["messages"][1]["content"] == "hi\n[image, https://x/y.png]"
    assert record["messages"][3] == {"role": "tool", "content": '{"b":2}', "tool_call_id": "c", "name": "f"}
    assert record["messages"][4]["tool_calls"][0]["function"] == {"name": "g", "arguments": '{"z":1}'}
    assert json.loads(record["tools"])[0]["function"]["name"] == "f"
    assert record["subject"] == "u"
    assert taken.passed == {"agents' spans whose calls are kept": 1}


def test_messages_in_span_events_as_conventions_had_them_until_2025(traced: Traced) -> None:
    with traced.span("chat", **OPENAI) as span:
        span.add_event("gen_ai.system.message", {"content": "Be brief."})
        span.add_event("gen_ai.user.message", {"content": "hi"})
        calls = [{"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}]
        span.add_event("gen_ai.assistant.message", {"tool_calls": json.dumps(calls)})
        span.add_event("gen_ai.tool.message", {"content": "42", "id": "c"})
        span.add_event("gen_ai.choice", {"index": 0, "finish_reason": "stop", "message": json.dumps({"content": "ok"})})
    messages = take(Otlp, [traced.spans_json()]).messages
    assert [one["role"] for one in messages] == ["system", "user", "assistant", "tool", "assistant"]
    assert messages[3] == {"role": "tool", "content": "42", "tool_call_id": "c", "name": "f"}


def test_a_prompt_and_a_completion_in_span_events(traced: Traced) -> None:
    with traced.span("chat", **OPENAI) as span:
        span.add_event("gen_ai.content.prompt", {"gen_ai.prompt": json.dumps([{"role": "user", "content": "hi"}])})
        answer = json.dumps([{"role": "assistant", "content": "ho"}])
        span.add_event("gen_ai.content.completion", {"gen_ai.completion": answer})
    assert [one["content"] for one in take(Otlp, [traced.spans_json()]).messages] == ["hi", "ho"]


def test_what_langfuses_own_sdk_sends(traced: Traced) -> None:
    from langfuse._client.attributes import create_generation_attributes

    given = [{"role": "user", "content": "hi"}]
    attributes = create_generation_attributes(
        input=given, output={"role": "assistant", "content": "ho"}, model="gpt-5", usage_details={"input": 1}
    )
    traced.record({**attributes, "session.id": "s", "user.id": "u"})
    record = take(Otlp, [traced.spans_json()]).one
    assert [one["content"] for one in record["messages"]] == ["hi", "ho"]
    assert (record["session_id"], record["subject"], record["origin"]) == ("s", "u", "model:gpt-5")


def test_the_older_name_of_a_tools_result_is_known(traced: Traced) -> None:
    asked = [{"role": "tool", "parts": [{"type": "tool_call_response", "id": "c", "result": {"x": 1}}]}]
    traced.record({**OPENAI, "gen_ai.input.messages": json.dumps(asked)})
    assert take(Otlp, [traced.spans_json()]).messages == [{"role": "tool", "content": '{"x":1}', "tool_call_id": "c"}]


def test_parts_that_arent_text_stay_visible(traced: Traced) -> None:
    parts = [
        {"type": "uri", "modality": "image", "mime_type": "image/png", "uri": "https://x/y.png"},
        {"type": "file", "modality": "document", "mime_type": None, "file_id": "file-1"},
        {"type": "blob", "modality": "audio", "mime_type": "audio/wav", "content": "AAAA"},
        {"type": "compaction", "content": "what came before"},
        {"type": "from-the-future", "level": 9},
    ]
    traced.record({**OPENAI, "gen_ai.input.messages": json.dumps([{"role": "user", "parts": parts}])})
    record = take(Otlp, [traced.spans_json()]).one
    assert record["messages"][0]["content"].split("\n") == [
        "[image image/png, https://x/y.png]",
        "[document, file-1]",
        "[audio audio/wav, 3 bytes, 709e80c8]",
        "[compaction, what came before]",
        "[from-the-future]",
    ]
    assert record["meta"]["placeholders"] == 5


# --- scores ------------------------------------------------------------------------------------------------------


def test_evaluations_of_any_call_become_annotations_of_its_conversation(traced: Traced, genai: Any) -> None:
    from opentelemetry._logs import LogRecord
    from opentelemetry.trace import set_span_in_context

    converse(genai, turns=1)
    span = traced._spans.get_finished_spans()[0]
    converse(genai, turns=2, conversation="conv-1")
    from opentelemetry.trace import NonRecordingSpan

    logger = traced.loggers.get_logger("judge")
    attributes = {
        "gen_ai.evaluation.name": "relevance",
        "gen_ai.evaluation.score.value": 0.9,
        "gen_ai.evaluation.score.label": "relevant",
    }
    context = set_span_in_context(NonRecordingSpan(span.context))
    logger.emit(LogRecord(event_name="gen_ai.evaluation.result", attributes=attributes, context=context))
    taken = take(Otlp, [traced.logs_json(), traced.spans_json()])
    scores = {"relevance": {"score": 0.9, "label": "relevant"}}
    assert taken.said == [({"outcome": {"scores": scores}, "quality": 0.9},)]


# --- attributes survive ------------------------------------------------------------------------------------------

scalars = st.one_of(st.text(max_size=20), st.booleans(), st.integers(-(2**63), 2**63 - 1), st.floats(allow_nan=False, allow_infinity=False))  # fmt: skip
values = st.one_of(scalars, st.lists(st.text(max_size=5), max_size=4), st.lists(st.integers(0, 9), max_size=4))


@settings(max_examples=150, deadline=None)
@given(st.dictionaries(st.text(min_size=1, max_size=20).filter(lambda key: key.isprintable()), values, max_size=6))
def test_any_attributes_come_back_through_both_encodings(attributes: dict[str, Any]) -> None:
    traced = Traced()
    traced.record(attributes)
    message = traced.spans_message()
    for form in (message, json.loads(json.dumps(hexed(message)))):
        (signal,) = spans_of(form)
        assert signal["attributes"] == attributes


json_values = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-(2**53), 2**53), st.text(max_size=10)),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)


@st.composite
def dialogues(draw: st.DrawFn) -> list[dict[str, Any]]:
    messages: list[dict[str, Any]] = []
    for number in range(draw(st.integers(1, 4))):
        messages.append({"role": "user", "parts": [{"type": "text", "content": draw(texts)}]})
        parts: list[dict[str, Any]] = [{"type": "text", "content": draw(texts.filter(bool))}]
        arguments = draw(st.dictionaries(st.text(max_size=5), json_values, max_size=3))
        parts.append({"type": "tool_call", "id": f"c{number}", "name": "f", "arguments": arguments})
        messages.append({"role": "assistant", "parts": parts})
        response = {"type": "tool_call_response", "id": f"c{number}", "response": draw(texts)}
        messages.append({"role": "tool", "parts": [response]})
    return messages


@settings(max_examples=100, deadline=None)
@given(dialogues())
def test_roles_texts_calls_and_results_survive_structured_or_as_text(messages: list[dict[str, Any]]) -> None:
    def whole(record: dict[str, Any]) -> Iterator[Any]:
        for one in record["messages"]:
            calls = one.get("tool_calls") or []
            yield one["role"], one.get("content"), [json.loads(call["function"]["arguments"]) for call in calls]

    expected = []
    for one in messages:
        part = one["parts"][0]
        text = part["content"] if part["type"] == "text" else part["response"]
        expected.append((one["role"], text, [p["arguments"] for p in one["parts"] if p["type"] == "tool_call"]))
    for given_as in (messages, json.dumps(messages)):
        signal = next(
            iter(spans_of({"resourceSpans": [{"scopeSpans": [{"spans": [{"name": "chat", "spanId": "aa" * 8}]}]}]}))
        )
        signal["attributes"] = {**OPENAI, "gen_ai.input.messages": given_as}
        record = take(Otlp, [signal]).one
        assert list(whole(record)) == expected
        results = [one for one in record["messages"] if one["role"] == "tool"]
        assert all(one["name"] == "f" for one in results)


def test_openinference_and_genai_are_told_apart(traced: Traced, genai: Any) -> None:
    converse(genai, turns=1)
    assert Otlp.recognises(traced.spans_json())
    assert not OpenInference.recognises(traced.spans_json())
