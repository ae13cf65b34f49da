"""OpenTelemetry's own SDK and exporters, and hooks of coding agents, against the server."""

from __future__ import annotations

import base64
import contextlib
import gzip
import json
import socket
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from opentelemetry.exporter.otlp.common.http import Compression as JsonCompression
from opentelemetry.exporter.otlp.json.http.trace_exporter import OTLPSpanExporter as JsonSpanExporter
from opentelemetry.exporter.otlp.proto.http import Compression
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

import treering
from tests.waiting import wait_for
from treering.server.keys import create_key
from treering.server.limits import Limits

from .running import Running, running


@pytest.fixture
def chats(store: treering.Store) -> treering.Corpus:
    return store.create("chats", "chat")


@pytest.fixture
def server(store: treering.Store, chats: treering.Corpus) -> Iterator[Running]:
    with running(store, Limits(hold_s=0.5)) as found:
        yield found


@pytest.fixture
def patient(store: treering.Store, chats: treering.Corpus) -> Iterator[Running]:
    """Holds conversations until it is told to `settle`."""
    with running(store, Limits(hold_s=600)) as found:
        yield found


def stored(server: Running) -> list[dict[str, Any]]:
    from treering.capture import flush_spools

    flush_spools(server.store.corpus("chats"))
    found: list[dict[str, Any]] = server.store.live("chats").to_table().to_pylist()
    return found


def settle(server: Running) -> list[dict[str, Any]]:
    """Have records made of what is held, and from now on at once; gives what is stored."""
    for one in server.prepared.service.writers.all():
        one._limits = replace(one._limits, hold_s=0.0)
    return wait_for(lambda: stored(server))


def turns(count: int) -> list[dict[str, Any]]:
    """A conversation of `count` questions in GenAI's message form."""
    found = []
    for n in range(count):
        found.append({"role": "user", "parts": [{"type": "text", "content": f"question {n}"}]})
        found.append(
            {"role": "assistant", "parts": [{"type": "text", "content": f"answer {n}"}], "finish_reason": "stop"}
        )
    return found


def call(provider: TracerProvider, conversation: str, n: int, *, structured: bool = False) -> None:
    """The n-th call of a conversation, from 0: all that was said before, and the answer."""
    said = turns(n + 1)
    attributes: dict[str, Any] = {
        "gen_ai.operation.name": "chat",
        "gen_ai.request.model": "gpt-x",
        "gen_ai.conversation.id": conversation,
        "gen_ai.input.messages": json.dumps(said[:-1]),
        "gen_ai.output.messages": json.dumps(said[-1:]),
    }
    if structured:
        attributes |= {"gen_ai.input.messages": said[:-1], "gen_ai.output.messages": said[-1:]}
    with provider.get_tracer("agent").start_as_current_span("chat gpt-x", attributes=attributes):
        pass


@pytest.mark.parametrize("structured", [False, True])
@pytest.mark.parametrize("compression", [Compression.Gzip, Compression.NoCompression])
def test_the_sdk_with_its_exporter_writes_conversations(
    server: Running, compression: Compression, structured: bool
) -> None:
    exporter = OTLPSpanExporter(endpoint=f"{server.url}/v1/traces", compression=compression)
    provider = TracerProvider()
    provider.add_span_processor(BatchSpanProcessor(exporter))
    for n in range(3):
        call(provider, "c1", n, structured=structured)
    call(provider, "c2", 0, structured=structured)
    with provider.get_tracer("web").start_as_current_span("GET /"):
        pass
    provider.shutdown()
    rows = wait_for(lambda: found if len(found := stored(server)) == 2 else None)
    by_session = {row["session_id"]: row for row in rows}
    assert [m["content"] for m in by_session["c1"]["messages"]] == [
        text for n in range(3) for text in (f"question {n}", f"answer {n}")
    ]
    assert len(by_session["c2"]["messages"]) == 2
    assert by_session["c1"]["origin"] == "model:gpt-x"
    assert 'treering_otlp_items_total{corpus="chats",kind="content"} 4.0' in server.http.get("/metrics").text


@pytest.mark.parametrize("structured", [False, True])
@pytest.mark.parametrize("compression", [JsonCompression.NONE, JsonCompression.GZIP])
def test_the_sdk_with_its_json_exporter_writes_the_same(
    server: Running, compression: JsonCompression, structured: bool
) -> None:
    provider = TracerProvider()
    both = [
        JsonSpanExporter(endpoint=f"{server.url}/v1/traces", compression=compression),
        OTLPSpanExporter(endpoint=f"{server.url}/v1/traces"),
    ]
    for exporter in both:
        provider.add_span_processor(BatchSpanProcessor(exporter))
    for n in range(3):
        call(provider, "c1", n, structured=structured)
    provider.shutdown()
    (row,) = wait_for(lambda: stored(server))
    assert [m["content"] for m in row["messages"]] == [
        text for n in range(3) for text in (f"question {n}", f"answer {n}")
    ]
    assert 'treering_otlp_items_total{corpus="chats",kind="content"} 6.0' in server.http.get("/metrics").text
    time.sleep(1.0)  # longer than a conversation is held
    assert len(stored(server)) == 1


def test_calls_that_come_in_requests_of_their_own_become_one_record_of_their_conversation(patient: Running) -> None:
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(OTLPSpanExporter(endpoint=f"{patient.url}/v1/traces")))
    for n in range(4):
        call(provider, "c1", n)
    provider.shutdown()
    (row,) = settle(patient)
    assert len(row["messages"]) == 8


def exported(finished: tuple[ReadableSpan, ...]) -> Any:
    from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans

    return encode_spans(finished)


def test_what_an_exporter_sends_again_is_stored_once_before_and_after_it_was_settled(patient: Running) -> None:
    memory = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(memory))
    call(provider, "c1", 1)
    body = exported(memory.get_finished_spans()).SerializeToString()
    headers = {"content-type": "application/x-protobuf"}
    for _ in range(2):
        assert patient.http.post("/v1/traces", content=body, headers=headers).status_code == 200
    assert len(settle(patient)) == 1
    assert (
        patient.http.post(
            "/v1/traces", content=gzip.compress(body), headers={**headers, "content-encoding": "gzip"}
        ).status_code
        == 200
    )
    metric = 'treering_records_total{corpus="chats",outcome="duplicate"} 1.0'
    assert wait_for(lambda: metric in patient.http.get("/metrics").text)
    assert len(stored(patient)) == 1


@dataclass
class Losing:
    """A proxy that carries every request out, and loses the answers to the first ones as it is told: 503, or no answer."""

    target: str
    losses: list[str]
    before: Callable[[], Any] = lambda: None  # what is waited for before an answer is lost
    seen: list[tuple[bytes, str | None]] = field(default_factory=list)  # body as it came, and its encoding

    @contextlib.contextmanager
    def listening(self) -> Iterator[str]:
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                proxy.seen.append((body, self.headers.get("content-encoding")))
                named = {
                    name: self.headers[name] for name in ("content-type", "content-encoding") if name in self.headers
                }
                answer = httpx.post(proxy.target + self.path, content=body, headers=named, timeout=30)
                assert answer.status_code == 200
                loss = proxy.losses.pop(0) if proxy.losses else None
                if loss:
                    proxy.before()
                if loss == "cut":
                    self.connection.shutdown(socket.SHUT_RDWR)
                    return
                self.send_response(int(loss) if loss else 200)
                self.send_header("content-type", answer.headers["content-type"])
                self.send_header("content-length", "0" if loss else str(len(answer.content)))
                self.end_headers()
                self.wfile.write(b"" if loss else answer.content)

            def log_message(self, *args: Any) -> None:
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            server.server_close()
            thread.join()


PROTOBUF = (OTLPSpanExporter, Compression.Gzip)


@pytest.mark.parametrize(
    ("exporter", "loss", "settled"),
    [
        (PROTOBUF, "503", False),
        (PROTOBUF, "503", True),
        (PROTOBUF, "cut", False),
        (PROTOBUF, "cut", True),
        ((JsonSpanExporter, JsonCompression.GZIP), "503", True),
    ],
)
def test_an_export_whose_answer_is_lost_is_sent_again_by_the_sdk_and_stored_once(
    store: treering.Store, chats: treering.Corpus, exporter: tuple[Any, Any], loss: str, settled: bool
) -> None:
    with running(store, Limits(hold_s=0.1 if settled else 3_600)) as server:

        def counted(metric: str) -> bool:
            return metric in server.http.get("/metrics").text

        are_records = 'treering_records_total{corpus="chats",outcome="stored"} 2.0'
        proxy = Losing(server.url, [loss], before=lambda: settled and wait_for(lambda: counted(are_records)))
        with proxy.listening() as url:
            kind, compression = exporter
            provider = TracerProvider()
            provider.add_span_processor(BatchSpanProcessor(kind(endpoint=f"{url}/v1/traces", compression=compression)))
            for conversation in ("c1", "c2"):
                for n in range(2):
                    call(provider, conversation, n)
            provider.force_flush()
            assert len(proxy.seen) == 2
            assert proxy.seen[0] == proxy.seen[1]  # the SDK's own doing, to the byte
            assert proxy.seen[0][1] == "gzip"
            provider.shutdown()
        assert counted('treering_otlp_items_total{corpus="chats",kind="content"} 8.0')
        assert counted(are_records) == settled
        assert counted(f'treering_records_total{{corpus="chats",outcome="duplicate"}} {4.0 if settled else 0.0}')
    found: list[dict[str, Any]] = store.live("chats").to_table().to_pylist()
    assert sorted(row["session_id"] for row in found) == ["c1", "c2"]
    assert len({row["id"] for row in found}) == 2
    for row in found:
        said = [m["content"] for m in row["messages"]]
        assert said == ["question 0", "answer 0", "question 1", "answer 1"]


def test_the_json_form_says_the_same_as_protobuf(server: Running) -> None:
    from google.protobuf.json_format import MessageToDict

    memory = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(memory))
    call(provider, "c1", 0)
    message = exported(memory.get_finished_spans())
    told = MessageToDict(message)
    for span in told["resourceSpans"][0]["scopeSpans"][0]["spans"]:  # OTLP's JSON has ids in hex
        real = message.resource_spans[0].scope_spans[0].spans[0]
        span["traceId"], span["spanId"] = real.trace_id.hex(), real.span_id.hex()
    answer = server.post("/v1/traces", told)
    assert (answer.status_code, answer.json()) == (200, {"partialSuccess": {}})
    assert (
        server.http.post(
            "/v1/traces", content=message.SerializeToString(), headers={"content-type": "application/x-protobuf"}
        ).content
        == b""
    )
    assert len(wait_for(lambda: stored(server))) == 1


def test_spans_without_content_are_said_to_be_so_and_store_nothing(server: Running) -> None:
    memory = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(memory))
    for _ in range(5):
        with provider.get_tracer("agent").start_as_current_span("chat", attributes={"gen_ai.operation.name": "chat"}):
            pass
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceResponse

    body = exported(memory.get_finished_spans()).SerializeToString()
    answer = server.http.post("/v1/traces", content=body, headers={"content-type": "application/x-protobuf"})
    said = ExportTraceServiceResponse.FromString(answer.content).partial_success
    assert said.rejected_spans == 0
    assert said.error_message.startswith("0 of 5 spans had content")
    text = server.http.get("/metrics").text
    assert 'treering_otlp_items_total{corpus="chats",kind="without_content"} 5.0' in text
    assert stored(server) == []


def test_scores_that_come_as_log_records_are_said_of_their_call(patient: Running) -> None:
    memory = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(memory))
    call(provider, "c1", 0)
    (span,) = memory.get_finished_spans()
    context = span.get_span_context()
    assert context is not None
    log = {
        "traceId": f"{context.trace_id:032x}",
        "spanId": f"{context.span_id:016x}",
        "timeUnixNano": str(time.time_ns()),
        "eventName": "gen_ai.evaluation.result",
        "attributes": [
            {"key": "gen_ai.evaluation.name", "value": {"stringValue": "helpful"}},
            {"key": "gen_ai.evaluation.score.value", "value": {"doubleValue": 0.75}},
        ],
    }
    sent = patient.post("/v1/logs", {"resourceLogs": [{"scopeLogs": [{"logRecords": [log]}]}]})
    assert sent.status_code == 200
    body = exported((span,)).SerializeToString()
    patient.http.post("/v1/traces", content=body, headers={"content-type": "application/x-protobuf"})
    (row,) = settle(patient)
    said = wait_for(lambda: patient.store.corpus("chats").annotations([row["id"]]).to_pylist())
    assert {one["key"]: json.loads(one["value"]) for one in said}["quality"] == 0.75


def test_which_corpus_a_header_says_or_the_key(store: treering.Store, chats: treering.Corpus) -> None:
    store.create("more", "chat")
    _, one = create_key(store, ["chats"])
    _, both = create_key(store, ["chats", "more"])
    empty = {"resourceSpans": []}
    with running(store) as server:

        def send(token: str, **headers: str) -> httpx.Response:
            return server.post("/v1/traces", empty, authorization=f"Bearer {token}", **headers)

        assert send(one).status_code == 200
        assert "which corpus" in send(both).json()["message"]
        assert send(both, x_treering_corpus="more").status_code == 200
        assert send(one, x_treering_corpus="more").status_code == 403


def test_what_is_no_export_is_refused_in_the_form_that_was_sent(server: Running) -> None:
    wrong = server.http.post("/v1/traces", content=b"\xff\xff", headers={"content-type": "application/x-protobuf"})
    assert (wrong.status_code, wrong.headers["content-type"]) == (400, "application/x-protobuf")
    assert b"isn't an OTLP export" in wrong.content
    assert wrong.content[0] == 0x12  # google.rpc.Status.message
    for body in (
        b"[]",
        b"{",
        b'{"resourceSpans": 3}',
        b'{"resourceSpans":[{"scopeSpans":[{"spans":[{"traceId":"zz"}]}]}]}',
    ):
        answer = server.post("/v1/traces", body)
        assert answer.status_code == 400, body
        assert answer.json()["message"]
    assert server.http.post("/v1/traces", content=b"x", headers={"content-type": "text/plain"}).status_code == 415


def test_a_corpus_of_another_record_type_says_so(store: treering.Store, notes: treering.Corpus) -> None:
    with running(store) as server:
        answer = server.post("/v1/traces", {"resourceSpans": []})
        assert answer.status_code == 400
        assert "labelled" in answer.json()["message"]


def test_conversations_that_wait_are_there_after_a_stop(store: treering.Store, chats: treering.Corpus) -> None:
    memory = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(memory))
    call(provider, "c1", 0)
    body = exported(memory.get_finished_spans()).SerializeToString()
    with running(store, Limits(hold_s=600)) as server:
        server.http.post("/v1/traces", content=body, headers={"content-type": "application/x-protobuf"})
        assert stored(server) == []
    assert len(store.live("chats").to_table()) == 1


def test_a_corpus_that_redacts_holds_nothing_as_it_came(store: treering.Store) -> None:
    pytest.importorskip("phonenumbers")
    store.create("chats", "chat", redact=True)
    said = [{"role": "user", "parts": [{"type": "text", "content": "I am ann@example.com"}]}]
    memory = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(memory))
    attributes = {
        "gen_ai.operation.name": "chat",
        "gen_ai.input.messages": json.dumps(said),
        "gen_ai.output.messages": json.dumps([{"role": "assistant", "parts": [{"type": "text", "content": "hi"}]}]),
    }
    with provider.get_tracer("a").start_as_current_span("chat", attributes=attributes):
        pass
    body = exported(memory.get_finished_spans()).SerializeToString()
    with running(store, Limits(hold_s=600)) as server:
        server.http.post("/v1/traces", content=body, headers={"content-type": "application/x-protobuf"})
        (row,) = wait_for(lambda: stored(server))
        assert row["messages"][0]["content"] == "I am [EMAIL]"
    assert store.root is not None
    kept = [path for path in store.root.rglob("*") if path.is_file() and b"ann@example.com" in path.read_bytes()]
    assert kept == []


# --- hooks -----------------------------------------------------------------------------------------------------------


def turn(session: str, **about: Any) -> list[dict[str, Any]]:
    events: list[dict[str, Any]] = [
        {"hook_event_name": "UserPromptSubmit", "prompt": "list files"},
        {"hook_event_name": "PostToolUse", "tool_name": "Bash", "tool_input": {"command": "ls"}, "tool_response": "a\nb", "tool_use_id": "t1"},
        {"hook_event_name": "Stop", "last_assistant_message": "two files"},
    ]  # fmt: skip
    return [{"session_id": session, **about, **event} for event in events]


@pytest.mark.parametrize("agent", ["claude-code", "codex"])
def test_a_turn_becomes_a_record_with_the_hook_that_ends_it(server: Running, agent: str) -> None:
    about = {"turn_id": "7"} if agent == "codex" else {"prompt_id": "p7"}
    for event in turn("s1", **about):
        answer = server.post(f"/v1/hooks/{agent}", event)
        assert (answer.status_code, answer.json()) == (200, {})
        if event["hook_event_name"] != "Stop":
            assert stored(server) == []
    (row,) = stored(server)
    assert [m["role"] for m in row["messages"]] == ["user", "assistant", "tool", "assistant"]
    assert row["messages"][-1]["content"] == "two files"
    assert (row["session_id"], json.loads(row["meta"])["agent"]) == ("s1", agent)
    for event in turn("s1", **about):  # a hook that was sent again
        server.post(f"/v1/hooks/{agent}", event)
    assert len(stored(server)) == 1


def test_a_turn_under_way_outlives_the_server(store: treering.Store, chats: treering.Corpus) -> None:
    first, second, last = turn("s1")
    with running(store) as server:
        server.post("/v1/hooks/claude-code", [first, second])
    assert len(store.live("chats").to_table()) == 0
    with running(store) as server:
        server.post("/v1/hooks/claude-code", last)
        (row,) = stored(server)
    assert len(row["messages"]) == 4


def test_events_that_make_no_record_are_counted(server: Running) -> None:
    assert server.post("/v1/hooks/claude-code", turn("s1")[2:]).status_code == 200
    assert stored(server) == []
    metric = 'treering_passed_items_total{corpus="chats",why="ends of turns whose beginning wasn\'t seen"} 1.0'
    assert metric in server.http.get("/metrics").text


def test_what_is_no_hook_is_400(server: Running) -> None:
    for body in (
        b"{}",
        b"3",
        b'{"hook_event_name": 1, "session_id": "s"}',
        b'{"hook_event_name": "Stop", "session_id": ""}',
        b"nope",
    ):
        assert server.post("/v1/hooks/codex", body).status_code == 400


# --- noise -----------------------------------------------------------------------------------------------------------

PLAIN = st.one_of(
    st.text(max_size=20), st.integers(-(2**70), 2**70), st.floats(), st.booleans(), st.binary(max_size=10),
    st.sampled_from(["[]", "{}", "null", "[1]", '[{"role": 1}]', '[{"role":"user","parts":[{"type":"text"}]}]', '{"a":', "0"]),
)  # fmt: skip
KEYS = st.one_of(
    st.sampled_from(
        [
            "gen_ai.operation.name", "gen_ai.input.messages", "gen_ai.output.messages", "gen_ai.system_instructions",
            "gen_ai.tool.definitions", "gen_ai.conversation.id", "gen_ai.prompt.0.role", "gen_ai.prompt.0.content",
            "gen_ai.completion.0.content", "ai.prompt.messages", "ai.response.text", "llm.input_messages.0.message.role",
            "llm.input_messages.0.message.content", "llm.output_messages.0.message.tool_calls.0.tool_call.function.name",
            "openinference.span.kind", "session.id", "gen_ai.evaluation.name", "gen_ai.evaluation.score.value",
        ]
    ),
    st.text(max_size=10),
)  # fmt: skip


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(st.dictionaries(KEYS, PLAIN, max_size=6), max_size=4), st.sampled_from(["traces", "logs"]))
def test_whatever_spans_hold_is_answered_by_name(server: Running, spans: list[dict[str, Any]], kind: str) -> None:
    def value(one: Any) -> dict[str, Any]:
        if isinstance(one, bool):
            return {"boolValue": one}
        if isinstance(one, bytes):
            return {"bytesValue": base64.b64encode(one).decode()}
        name = {str: "stringValue", int: "intValue", float: "doubleValue"}[type(one)]
        return {name: str(one) if isinstance(one, int | float) else one}

    items = [
        {"spanId": f"{n + 1:016x}", "traceId": f"{n + 1:032x}", "name": "chat",
         "attributes": [{"key": key, "value": value(one)} for key, one in attributes.items()]}
        for n, attributes in enumerate(spans)
    ]  # fmt: skip
    body = (
        {"resourceSpans": [{"scopeSpans": [{"spans": items}]}]}
        if kind == "traces"
        else {"resourceLogs": [{"scopeLogs": [{"logRecords": items}]}]}
    )
    answer = server.post(f"/v1/{kind}", json.dumps(body).encode())
    assert answer.status_code in (200, 400), answer.text


JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.text(max_size=8)),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=8), inner, max_size=3)),
    max_leaves=6,
)


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    st.sampled_from(["UserPromptSubmit", "PostToolUse", "PostToolUseFailure", "Stop", "StopFailure", "SessionEnd", "x"]),
    st.dictionaries(st.sampled_from(["prompt", "tool_name", "tool_input", "tool_response", "tool_use_id", "turn_id", "prompt_id", "last_assistant_message", "error", "model", "timestamp", "cwd", "agent_id"]), JSON),
)  # fmt: skip
def test_whatever_hooks_hold_is_answered_by_name(server: Running, event: str, about: dict[str, Any]) -> None:
    answer = server.post("/v1/hooks/claude-code", {"session_id": "s", "hook_event_name": event, **about})
    assert answer.status_code in (200, 400), answer.text
    assert server.http.get("/health").status_code == 200


def test_a_conversation_that_an_importer_stumbles_over_is_in_quarantine_and_holds_up_no_other(
    server: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    from treering.formats.hooks import Hooks

    feed = Hooks.feed

    def stumbles(self: Hooks, line: int, value: Any, text: bytes) -> Any:
        if value["session_id"] == "bad":
            raise KeyError("nobody thought of this")
        return feed(self, line, value, text)

    monkeypatch.setattr(Hooks, "feed", stumbles)
    for session in ("bad", "good"):
        assert server.post("/v1/hooks/codex", turn(session)).status_code == 200
    assert [row["session_id"] for row in stored(server)] == ["good"]
    kept = server.store.corpus("chats").quarantine()
    assert len(kept) == 3
    assert "KeyError" in kept[0].problems[0].message


def span(conversation: str, *more: dict[str, Any], text: str = "hi", number: int = 1) -> dict[str, Any]:
    """An export of one call in OTLP's JSON."""
    said = [{"role": "user", "parts": [{"type": "text", "content": text}]}]
    answer = [{"role": "assistant", "parts": [{"type": "text", "content": "ok"}]}]
    attributes = {
        "gen_ai.operation.name": "chat",
        "gen_ai.conversation.id": conversation,
        "gen_ai.input.messages": json.dumps(said),
        "gen_ai.output.messages": json.dumps(answer),
    }
    one = {
        "traceId": f"{number:032x}", "spanId": f"{number:016x}", "name": "chat",
        "startTimeUnixNano": "1700000000000000000", "endTimeUnixNano": "1700000001000000000",
        "attributes": [*({"key": key, "value": {"stringValue": value}} for key, value in attributes.items()), *more],
    }  # fmt: skip
    return {"resourceSpans": [{"scopeSpans": [{"spans": [one]}]}]}


def test_what_is_sent_is_never_taken_for_the_servers_own_marks(server: Running) -> None:
    poison = {"key": "x", "value": {"kvlistValue": {"values": [{"key": "__bytes__", "value": {"stringValue": "a"}}]}}}
    assert server.post("/v1/traces", span("c1", poison)).status_code == 200
    events = turn("s1")
    events[1]["tool_input"] = {"__bytes__": "a"}
    assert server.post("/v1/hooks/claude-code", events).status_code == 200
    rows = wait_for(lambda: found if len(found := stored(server)) == 2 else None)
    (arguments,) = [
        one["function"]["arguments"] for row in rows for m in row["messages"] for one in m["tool_calls"] or ()
    ]
    assert json.loads(arguments) == {"__bytes__": "a"}


@given(st.recursive(
    st.one_of(st.none(), st.integers(), st.text(), st.binary()),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(st.one_of(st.text(max_size=5), st.from_regex(r"__bytes___{0,2}x?_?", fullmatch=True)), inner, max_size=2),
    ),
))  # fmt: skip
def test_what_is_held_comes_back_as_it_came(value: Any) -> None:
    from treering.server.held import _packed, unpacked

    assert unpacked(_packed(value)) == value


def test_a_piece_that_cannot_be_read_is_in_quarantine_and_holds_up_no_other(server: Running) -> None:
    from treering.capture.erasing import held_path

    assert server.post("/v1/hooks/codex", turn("bad")[:2]).status_code == 200
    path = held_path(server.store.corpus("chats"))
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("""UPDATE pieces SET payload = '{"__bytes__": "a"}' WHERE seq = 1""")
    assert server.post("/v1/hooks/codex", turn("bad")[2:]).status_code == 200
    assert server.post("/v1/hooks/codex", turn("good")).status_code == 200
    assert [row["session_id"] for row in stored(server)] == ["good"]
    assert len(server.store.corpus("chats").quarantine()) == 3


def test_a_call_that_is_sent_again_after_its_conversation_went_on_and_was_stored_doubles_nothing(
    store: treering.Store, chats: treering.Corpus
) -> None:
    provider = TracerProvider()
    memory = InMemorySpanExporter()
    provider.add_span_processor(SimpleSpanProcessor(memory))
    for n in range(2):
        call(provider, "c1", n)
    first, second = (exported((one,)).SerializeToString() for one in memory.get_finished_spans())
    for _ in range(2):  # again by a server that was started anew
        with running(store, Limits(hold_s=600)) as server:
            for body in (first, second):
                answer = server.http.post(
                    "/v1/traces", content=body, headers={"content-type": "application/x-protobuf"}
                )
                assert answer.status_code == 200
            settle(server)
            server.http.post("/v1/traces", content=first, headers={"content-type": "application/x-protobuf"})
            settle(server)
        assert len(store.live("chats").to_table()) == 1


SCORE = {
    "timeUnixNano": "1700000002000000000", "traceId": f"{1:032x}", "spanId": f"{1:016x}",
    "eventName": "gen_ai.evaluation.result",
    "attributes": [
        {"key": "gen_ai.evaluation.name", "value": {"stringValue": "quality"}},
        {"key": "gen_ai.evaluation.score.value", "value": {"doubleValue": 0.9}},
    ],
}  # fmt: skip
SCORES = {"resourceLogs": [{"scopeLogs": [{"logRecords": [SCORE]}]}]}


def test_a_score_before_its_call_is_said_of_it_at_a_stop_too(store: treering.Store, chats: treering.Corpus) -> None:
    with running(store, Limits(hold_s=600)) as server:
        assert server.post("/v1/logs", SCORES).status_code == 200
        time.sleep(0.2)
        assert server.post("/v1/traces", span("c1")).status_code == 200
    (row,) = store.live("chats").to_table().to_pylist()
    said = store.corpus("chats").annotations([row["id"]]).to_pylist()
    assert {one["key"]: json.loads(one["value"]) for one in said}["quality"] == 0.9


def test_a_score_without_a_call_waits_over_a_stop_and_ends_in_quarantine(
    store: treering.Store, chats: treering.Corpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    from treering.server import held

    with running(store) as server:
        assert server.post("/v1/logs", SCORES).status_code == 200
    assert chats.quarantine() == []
    monkeypatch.setattr(held, "_WORDS_WAIT_S", 0.0)
    with running(store):
        pass
    (kept,) = chats.quarantine()
    assert "a score" in kept.problems[0].message


def test_hooks_into_a_corpus_that_redacts_become_records_and_lie_nowhere_as_they_came(store: treering.Store) -> None:
    pytest.importorskip("phonenumbers")
    store.create("chats", "chat", redact=True)

    def kept() -> list[Any]:
        assert store.root is not None
        return [one for one in store.root.rglob("*") if one.is_file() and b"ann@example.com" in one.read_bytes()]

    with running(store) as server:
        for event in turn("s1"):
            event = {**event, **({"prompt": "I am ann@example.com"} if "prompt" in event else {})}
            assert server.post("/v1/hooks/claude-code", event).status_code == 200
            assert kept() == []
        (row,) = stored(server)
        assert row["messages"][0]["content"] == "I am [EMAIL]"
        server.post("/v1/hooks/claude-code", turn("under way")[:2])
    assert store.live("chats").to_table().column("session_id").to_pylist() == ["s1", "under way"]
    assert kept() == []


def test_what_was_erased_is_held_no_longer(
    store: treering.Store, chats: treering.Corpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    from treering.server import writers

    monkeypatch.setattr(writers, "_LOOK_S", 0.2)
    assert store.root is not None
    folder = store.root

    def holding(text: bytes) -> list[Any]:
        found = [one for one in folder.rglob("held/*") if one.is_file()]
        return [one for one in found if text in one.read_bytes()]

    user = {"key": "user.id", "value": {"stringValue": "u42"}}
    with running(store, Limits(hold_s=600)) as server:
        server.post("/v1/corpora/chats/records", {"id": "x", "subject": "u42", "messages": turns_of("a", "b")})
        server.post("/v1/traces", span("c1", user, text="CANARY one"))
        server.post("/v1/traces", span("c2", text="another", number=2))
        assert holding(b"CANARY one")
        receipt = server.store.corpus("chats").erase(where={"subject": "u42"})
        assert any("under way" in one for one in receipt.not_covered)
        wait_for(lambda: not holding(b"CANARY one"), 10)
        assert holding(b"CANARY one") == []
        assert holding(b"another")
    (row,) = store.live("chats").to_table().to_pylist()
    assert row["session_id"] == "c2"
    assert holding(b"another") == []
    with running(store) as server:  # what a turn says waits for its end, over a stop too
        prompt, *_ = turn("s-u43")
        server.post("/v1/hooks/claude-code", {**prompt, "prompt": "CANARY two"})
        server.post("/v1/corpora/chats/records", {"id": "s-u43", "messages": turns_of("a", "b")})
    chats.erase(ids=["s-u43"])
    assert holding(b"CANARY two")
    with running(store):
        wait_for(lambda: not holding(b"CANARY two"), 10)
        assert holding(b"CANARY two") == []


def turns_of(asked: str, said: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": asked}, {"role": "assistant", "content": said}]
