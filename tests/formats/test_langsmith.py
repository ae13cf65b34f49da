"""LangSmith: runs as its SDK posts them, in LangChain's shapes too, and feedback."""

from __future__ import annotations

import json
import uuid
from datetime import UTC, datetime
from typing import Any

import pytest

from tests.formats.speaking import take
from treering.formats.langsmith import LangSmith

TRACE = "01a20305-5bf1-7348-9432-028a634de6ad"


def run(name: str = "run-1", **more: Any) -> dict[str, Any]:
    return {
        "id": name, "name": "ChatOpenAI", "run_type": "llm", "trace_id": TRACE, "session_id": "the-project",
        "start_time": "2026-11-22T12:00:00.000001", "end_time": "2026-11-22T12:00:01.000001",
        "inputs": {"messages": [{"role": "user", "content": "hi"}]},
        "outputs": {"choices": [{"index": 0, "message": {"role": "assistant", "content": "ho"}}],
                    "usage_metadata": {"input_tokens": 3, "output_tokens": 4}},
        "extra": {"metadata": {"ls_model_name": "gpt-5", "ls_provider": "openai", "thread_id": "t-1", "user_id": "u-1"}},
        "parent_run_ids": [TRACE], "error": None, **more,
    }  # fmt: skip


class Posted:
    """A session of `requests` that keeps what LangSmith's client would send."""

    def __init__(self) -> None:
        self.runs: dict[str, dict[str, Any]] = {}

    def request(self, method: str, url: str, **more: Any) -> Any:
        import requests

        body = more.get("data") or b"{}"
        given = json.loads(body)
        key = given.get("id") or url.rpartition("/")[2]
        if "runs" in url:
            self.runs.setdefault(key, {}).update({name: one for name, one in given.items() if one is not None})
        answer = requests.Response()
        answer.status_code = 200
        answer._content = b"{}"
        return answer

    def mount(self, *_: Any) -> None: ...

    def close(self) -> None: ...


def test_what_the_real_sdk_posts_for_a_wrapped_openai_client(monkeypatch: pytest.MonkeyPatch) -> None:
    import httpx
    import langsmith
    from langsmith.wrappers import wrap_openai
    from openai import OpenAI

    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": '{"a":1}'}}
    answers = iter(
        [{"role": "assistant", "content": None, "tool_calls": [call]}, {"role": "assistant", "content": "42!"}]
    )

    def answer(_: httpx.Request) -> httpx.Response:
        choice = {"index": 0, "finish_reason": "stop", "message": next(answers)}
        usage = {"prompt_tokens": 5, "completion_tokens": 2, "total_tokens": 7}
        whole = {
            "id": "r",
            "object": "chat.completion",
            "created": 0,
            "model": "gpt-5",
            "choices": [choice],
            "usage": usage,
        }
        return httpx.Response(200, json=whole)

    posted = Posted()
    client = langsmith.Client(
        api_url="http://127.0.0.1:1", api_key="none", session=posted, auto_batch_tracing=False,  # type: ignore[arg-type]
        info={"version": "0"},
    )  # fmt: skip
    openai = wrap_openai(OpenAI(api_key="none", http_client=httpx.Client(transport=httpx.MockTransport(answer))))
    tools: list[Any] = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]

    @langsmith.traceable(run_type="tool", name="f")
    def f(a: int) -> str:
        return "42"

    @langsmith.traceable(run_type="chain", name="agent")
    def agent(messages: list[Any]) -> str:
        first = openai.chat.completions.create(model="gpt-5", messages=messages, tools=tools)
        assert first.choices[0].message.tool_calls
        result = {"role": "tool", "tool_call_id": "c", "content": f(1)}
        again = [*messages, {"role": "assistant", "tool_calls": [call]}, result]
        return str(
            openai.chat.completions.create(model="gpt-5", messages=again, tools=tools).choices[0].message.content
        )

    with langsmith.tracing_context(enabled=True, client=client, metadata={"session_id": "t-9", "user_id": "u-9"}):
        agent([{"role": "user", "content": "hi"}])
    client.flush()
    runs = list(posted.runs.values())
    assert [one["run_type"] for one in runs] == ["chain", "llm", "tool", "llm"]
    assert all(LangSmith.recognises(one) for one in runs)
    taken = take(LangSmith, runs)
    record = taken.one
    assert record["messages"] == [
        {"role": "user", "content": "hi"},
        {"role": "assistant", "tool_calls": [call]},
        {"role": "tool", "content": "42", "tool_call_id": "c", "name": "f"},
        {"role": "assistant", "content": "42!"},
    ]
    assert json.loads(record["tools"]) == tools
    assert (record["session_id"], record["subject"], record["origin"]) == ("t-9", "u-9", "model:gpt-5")
    assert record["meta"]["usage"] == {"input_tokens": 5, "output_tokens": 2}
    assert taken.passed == {
        "calls that a later one repeats": 1,
        "runs of tools, whose results come with the next call": 1,
        "agents' spans whose calls are kept": 1,
    }


def test_a_session_id_is_a_project_and_the_thread_stands_in_metadata() -> None:
    record = take(LangSmith, [run()]).one
    assert record["session_id"] == "t-1"
    assert record["meta"]["project"] == "the-project"
    assert record["ts"] == datetime(2026, 11, 22, 12, 0, 1, 1, tzinfo=UTC)  # without an offset it is UTC
    assert take(LangSmith, [run(extra={})]).one["session_id"] == TRACE


def test_the_sdks_model_of_a_run_is_what_we_read() -> None:
    from langsmith.schemas import Run

    given = Run(
        **{**run(str(uuid.uuid4())), "session_id": uuid.uuid4(), "feedback_stats": {"ok": {"n": 1, "avg": 1.0}}}
    )
    taken = take(LangSmith, [json.loads(given.model_dump_json(exclude={"attachments"}))])
    assert [one["content"] for one in taken.messages] == ["hi", "ho"]
    assert taken.said == [({"outcome": {"scores": {"ok": 1.0}}, "quality": 1.0},)]


def constructor(kind: str, **kwargs: Any) -> dict[str, Any]:
    return {"lc": 1, "type": "constructor", "id": ["langchain", "schema", "messages", kind], "kwargs": kwargs}


def test_messages_as_langchain_serialises_them() -> None:
    calls = [{"name": "f", "args": {"a": 1}, "id": "c", "type": "tool_call"}]
    asked = [[
        constructor("SystemMessage", content="Be brief.", type="system"),
        constructor("HumanMessage", content="hi", type="human"),
        constructor("AIMessage", content="", tool_calls=calls, additional_kwargs={"tool_calls": [
            {"id": "c", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}]}),
        constructor("ToolMessage", content="42", tool_call_id="c", status="error"),
    ]]  # fmt: skip
    answer = constructor("AIMessage", content=[{"type": "thinking", "thinking": "hm"}, {"type": "text", "text": "ho"}])
    outputs = {"generations": [[{"text": "ho", "message": answer, "type": "ChatGeneration"}]], "llm_output": None}
    record = take(LangSmith, [run(inputs={"messages": asked}, outputs=outputs)]).one
    assert [one["role"] for one in record["messages"]] == ["system", "user", "assistant", "tool", "assistant"]
    assert record["messages"][2]["tool_calls"] == [
        {"id": "c", "type": "function", "function": {"name": "f", "arguments": '{"a":1}'}}
    ]
    assert record["messages"][3] == {"role": "tool", "content": "42", "tool_call_id": "c", "name": "f"}
    assert record["messages"][4] == {"role": "assistant", "content": "ho", "reasoning_content": "hm"}
    assert record["meta"]["failed_calls"] == ["c"]


def test_messages_in_langchains_other_spellings() -> None:
    asked = [{"type": "human", "content": "hi"}, {"type": "ai", "data": {"content": "ho", "type": "ai"}}]
    record = take(LangSmith, [run(inputs={"messages": asked}, outputs={"output": {"type": "ai", "content": "!"}})]).one
    assert [(one["role"], one["content"]) for one in record["messages"]] == [
        ("user", "hi"), ("assistant", "ho"), ("assistant", "!"),
    ]  # fmt: skip


def test_exports_with_json_as_text() -> None:
    given = run()
    as_text = {name: json.dumps(one) if name in ("inputs", "outputs", "extra") else one for name, one in given.items()}
    assert take(LangSmith, [as_text]).one == take(LangSmith, [given]).one


def test_runs_inside_runs_are_found() -> None:
    root = run(TRACE, run_type="chain", parent_run_ids=[], child_runs=[run()])
    taken = take(LangSmith, [root])
    assert taken.one["meta"]["run_id"] == "run-1"


def test_an_error_and_feedback_become_annotations() -> None:
    stats = {"user_score": {"n": 2, "avg": 0.5, "values": {}}, "tone": {"n": 2, "avg": None, "values": {"warm": 2}}}
    taken = take(LangSmith, [run(error="ValueError('x')", status="error", outputs=None, feedback_stats=stats)])
    assert taken.said == [
        (
            {
                "outcome": {
                    "status": "error",
                    "error": "ValueError('x')",
                    "scores": {"tone": "warm", "user_score": 0.5},
                },
                "quality": 0.5,
            },
        )
    ]


def test_feedback_is_said_of_its_run_wherever_it_stands() -> None:
    from langsmith.schemas import Feedback, FeedbackSourceBase

    now = datetime.now(UTC)
    given = Feedback(created_at=now, modified_at=now, id=uuid.uuid4(), run_id=uuid.UUID(TRACE), trace_id=uuid.UUID(TRACE), key="correct", score=True,
                     comment="yes", correction={"answer": "hello"}, feedback_source=FeedbackSourceBase(type="app"))  # fmt: skip
    feedback = json.loads(given.model_dump_json())
    assert LangSmith.recognises(feedback)
    for values in ([feedback, run()], [run(), feedback]):
        (said,) = take(LangSmith, values).said[0]
        assert said["quality"] == 1.0
        assert said["outcome"]["scores"]["correct"]["correction"] == {"answer": "hello"}
        assert said["by"] == "app"


def test_a_chain_is_kept_only_where_no_call_is() -> None:
    chain = run(TRACE, run_type="chain", parent_run_ids=[], inputs={"input": "hi"}, outputs={"output": "ho"})
    assert [one["content"] for one in take(LangSmith, [chain]).messages] == ["hi", "ho"]
    graph = run(TRACE, run_type="chain", parent_run_ids=None, outputs={"messages": [
        {"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]})  # fmt: skip
    assert [one["content"] for one in take(LangSmith, [graph]).messages] == ["hi", "ho"]  # its state holds the question


def test_everything_else_is_counted() -> None:
    others = [
        run(f"r{i}", run_type=kind) for i, kind in enumerate(["retriever", "prompt", "parser", "embedding", "tool"])
    ]
    taken = take(LangSmith, [*others, run("empty", inputs={}, outputs=None)])
    assert taken.found == []
    assert taken.passed["runs of other things"] == 4
    assert taken.passed["runs without content"] == 1


@pytest.mark.parametrize("value", [3, {}, {"run_type": 3}, {"run_type": "llm", "inputs": {}}])
def test_what_is_nothing_of_langsmiths_is_refused(value: Any) -> None:
    assert len(take(LangSmith, [value]).unfit) == 1
