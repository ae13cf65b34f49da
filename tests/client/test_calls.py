"""Calls become records in one line: of any function, and of the real OpenAI client against a server on loopback."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

import treering
from tests.server.running import Running, running
from treering.errors import UsageError

from .fake import Answer, answering


@pytest.fixture
def chats(store: treering.Store) -> Iterator[Running]:
    store.create("chats", "chat")
    with running(store) as found:
        yield found


@pytest.fixture
def remote(chats: Running, spool: Path) -> Iterator[treering.Client]:
    with treering.Client(chats.url, corpus="chats", spool=spool) as found:
        yield found


def captured(remote: treering.Client, chats: Running) -> list[dict[str, Any]]:
    from treering.capture import flush_spools

    assert remote.capture().flush().refused == 0, remote.capture().refusals
    flush_spools(chats.store.corpus("chats"))
    found: list[dict[str, Any]] = chats.store.live("chats").to_table().sort_by("ts").to_pylist()
    return found


def said(row: dict[str, Any]) -> list[tuple[str, str | None]]:
    return [(one["role"], one["content"]) for one in row["messages"]]


# --- functions -------------------------------------------------------------------------------------------------------


def test_a_decorated_function_is_captured_with_what_it_was_asked_and_what_it_said(
    remote: treering.Client, chats: Running
) -> None:
    @remote.capture_calls
    def answer(question: str, temperature: float = 0.5) -> str:
        """Answers."""
        return question.upper()

    @remote.capture_calls(session_id=lambda given: given["user"])
    def reply(messages: list[dict[str, str]], user: str) -> dict[str, str]:
        return {"role": "assistant", "content": "yes"}

    assert answer("hi") == "HI"
    assert (answer.__name__, answer.__doc__) == ("answer", "Answers.")
    reply([{"role": "system", "content": "be kind"}, {"role": "user", "content": "ok?"}], user="u1")
    first, second = captured(remote, chats)
    assert said(first) == [("user", "hi"), ("assistant", "HI")]
    assert said(second) == [("system", "be kind"), ("user", "ok?"), ("assistant", "yes")]
    assert second["session_id"] == "u1"


def test_async_functions_and_generators_are_captured_when_they_are_done(
    remote: treering.Client, chats: Running
) -> None:
    @remote.capture_calls
    async def waits(question: str) -> str:
        await asyncio.sleep(0)
        return "waited"

    @remote.capture_calls
    def streams(question: str) -> Iterator[str]:
        yield from ("a", "b")

    @remote.capture_calls
    async def streams_later(question: str) -> AsyncIterator[str]:
        for part in ("c", "d"):
            yield part

    async def every() -> list[str]:
        return [await waits("1"), *streams("2"), *[part async for part in streams_later("3")]]

    assert asyncio.run(every()) == ["waited", "a", "b", "c", "d"]
    assert [said(row)[-1][1] for row in captured(remote, chats)] == ["waited", "ab", "cd"]


def test_a_record_of_ones_own_making_and_none_at_all(remote: treering.Client, chats: Running) -> None:
    def make(given: Any, result: Any) -> dict[str, Any] | None:
        if result is None:
            return None
        return {
            "id": f"q-{given['n']}",
            "messages": [{"role": "user", "content": str(given["n"])}, {"role": "assistant", "content": result}],
        }

    @remote.capture_calls(record=make)
    def spell(n: int) -> str | None:
        return {1: "one"}.get(n)

    assert (spell(1), spell(n=2)) == ("one", None)
    (row,) = captured(remote, chats)
    assert row["id"] == "q-1"


def test_what_goes_wrong_in_capturing_never_reaches_the_caller(
    remote: treering.Client, chats: Running, caplog: pytest.LogCaptureFixture
) -> None:
    @remote.capture_calls(record=lambda given, result: {"x": object()})
    def works(n: int) -> int:
        return n + 1

    @remote.capture_calls
    def fails(question: str) -> str:
        raise KeyError(question)

    assert works(1) == 2
    assert "a call of" in caplog.text
    with pytest.raises(KeyError, match="hi"):
        fails("hi")
    assert captured(remote, chats) == []


# --- openai ----------------------------------------------------------------------------------------------------------

CALL = {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Rome"}'}}
TOOLS: list[Any] = [
    {
        "type": "function",
        "function": {"name": "weather", "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}},
    }
]


def completion(**message: Any) -> dict[str, Any]:
    return {
        "id": "chatcmpl-1", "object": "chat.completion", "created": 1, "model": "gpt-x-2026",
        "choices": [{"index": 0, "finish_reason": "stop", "logprobs": None, "message": {"role": "assistant", "content": None, "refusal": None, **message}}],
        "usage": {"prompt_tokens": 5, "completion_tokens": 2, "total_tokens": 7},
    }  # fmt: skip


def chunk(finish: str | None = None, **delta: Any) -> bytes:
    said = {
        "id": "chatcmpl-2", "object": "chat.completion.chunk", "created": 1, "model": "gpt-x-2026",
        "choices": [{"index": 0, "delta": delta, "finish_reason": finish}],
    }  # fmt: skip
    return b"data: " + json.dumps(said).encode() + b"\n\n"


def fake(path: str, body: bytes) -> Answer:
    """OpenAI's API as far as the tests ask it."""
    asked = json.loads(body)
    assert path == "/v1/chat/completions"
    if asked["model"] == "broken":
        return 400, {"content-type": "application/json"}, b'{"error": {"message": "no such model"}}'
    wants_tool = bool(asked.get("tools")) and asked["messages"][-1]["role"] == "user"
    if not asked.get("stream"):
        answer = completion(tool_calls=[CALL]) if wants_tool else completion(content="Sunny.")
        return 200, {"content-type": "application/json"}, json.dumps(answer).encode()
    if wants_tool:
        pieces = [
            chunk(role="assistant", tool_calls=[{"index": 0, "id": "call_1", "type": "function", "function": {"name": "weather", "arguments": ""}}]),
            chunk(tool_calls=[{"index": 0, "function": {"arguments": '{"city":'}}]),
            chunk(tool_calls=[{"index": 0, "function": {"arguments": ' "Rome"}'}}]),
            chunk("tool_calls"),
        ]  # fmt: skip
    else:
        pieces = [chunk(role="assistant", content="Sun"), chunk(content="ny."), chunk("stop")]
    return 200, {"content-type": "text/event-stream"}, b"".join([*pieces, b"data: [DONE]\n\n"])


@pytest.fixture
def api() -> Iterator[str]:
    with answering(fake) as url:
        yield f"{url}/v1"


def test_completions_are_captured_with_tools_and_tool_calls(remote: treering.Client, chats: Running, api: str) -> None:
    wrapped = remote.wrap_openai(openai.OpenAI(base_url=api, api_key="k"), session_id="s1")
    assert isinstance(wrapped, openai.OpenAI)
    messages: list[Any] = [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": [{"type": "text", "text": "weather?"}]},
    ]
    first = wrapped.chat.completions.create(model="gpt-x", messages=messages, tools=TOOLS)
    call = first.choices[0].message.tool_calls
    assert call is not None
    messages += [first.choices[0].message, {"role": "tool", "tool_call_id": call[0].id, "content": "22°"}]
    last = wrapped.chat.completions.create(model="gpt-x", messages=messages, tools=TOOLS)
    assert last.choices[0].message.content == "Sunny."
    one, two = captured(remote, chats)
    assert said(one) == [("system", "be brief"), ("user", "weather?"), ("assistant", None)]
    assert one["messages"][-1]["tool_calls"][0]["function"] == CALL["function"]
    assert json.loads(one["tools"])[0]["function"]["name"] == "weather"
    assert (one["session_id"], one["origin"]) == ("s1", "model:gpt-x-2026")
    meta = json.loads(one["meta"])
    assert (meta["response_id"], meta["usage"]["total_tokens"]) == ("chatcmpl-1", 7)
    assert [role for role, _ in said(two)] == ["system", "user", "assistant", "tool", "assistant"]
    assert two["messages"][3]["tool_call_id"] == "call_1"


def test_streamed_completions_are_captured_once_they_have_gone_by(
    remote: treering.Client, chats: Running, api: str
) -> None:
    wrapped = remote.wrap_openai(openai.OpenAI(base_url=api, api_key="k"))
    asked: list[Any] = [{"role": "user", "content": "weather?"}]
    heard = ""
    with wrapped.chat.completions.create(model="gpt-x", messages=asked, stream=True) as stream:
        for piece in stream:
            heard += piece.choices[0].delta.content or ""
    assert heard == "Sunny."
    list(wrapped.chat.completions.create(model="gpt-x", messages=asked, tools=TOOLS, stream=True))
    text, tool = captured(remote, chats)
    assert said(text) == [("user", "weather?"), ("assistant", "Sunny.")]
    assert tool["messages"][-1]["tool_calls"][0]["function"] == CALL["function"]
    assert json.loads(tool["meta"])["finish_reason"] == "tool_calls"


def test_messages_that_can_be_gone_through_once_reach_the_api_all_the_same(
    remote: treering.Client, chats: Running, api: str
) -> None:
    wrapped = remote.wrap_openai(openai.OpenAI(base_url=api, api_key="k"))
    heard: list[Any] = []
    completions: Any = wrapped.chat.completions
    post = completions._post

    def hear(path: str, *, body: Any, **more: Any) -> Any:
        heard.append(list(body["messages"]))
        return post(path, body=body, **more)

    completions._post = hear
    asked = [{"role": "user", "content": "weather?"}]
    messages: Any = iter(asked)
    wrapped.chat.completions.create(model="gpt-x", messages=messages)
    assert heard == [asked]

    class Odd(list[Any]):
        turns = 0

        def __iter__(self) -> Iterator[Any]:
            self.turns += 1
            if self.turns == 1:
                raise RuntimeError("can't be read now")
            return super().__iter__()

    assert wrapped.chat.completions.create(model="gpt-x", messages=Odd(asked)).choices
    (row,) = captured(remote, chats)
    assert said(row)[0] == ("user", "weather?")


def test_arguments_named_like_secrets_are_in_no_record(remote: treering.Client, chats: Running) -> None:
    @remote.capture_calls
    def ask(question: str, api_key: str = "sk-CANARY", token: str = "CANARY", keyword: str = "rain") -> str:
        return question

    ask("weather?")
    (row,) = captured(remote, chats)
    assert said(row) == [("user", "weather?"), ("user", "rain"), ("assistant", "weather?")]


def test_the_async_client_is_captured_streams_too(remote: treering.Client, chats: Running, api: str) -> None:
    async def ask() -> None:
        async with remote.wrap_openai(openai.AsyncOpenAI(base_url=api, api_key="k")) as wrapped:
            asked: list[Any] = [{"role": "user", "content": "weather?"}]
            await wrapped.chat.completions.create(model="gpt-x", messages=asked)
            stream = await wrapped.chat.completions.create(model="gpt-x", messages=asked, stream=True)
            assert [piece async for piece in stream]

    asyncio.run(ask())
    assert [said(row)[-1][1] for row in captured(remote, chats)] == ["Sunny.", "Sunny."]


def test_the_helpers_that_parse_and_stream_are_captured_once(remote: treering.Client, chats: Running, api: str) -> None:
    wrapped = remote.wrap_openai(openai.OpenAI(base_url=api, api_key="k"))
    asked: list[Any] = [{"role": "user", "content": "weather?"}]
    assert wrapped.chat.completions.parse(model="gpt-x", messages=asked).choices[0].message.content == "Sunny."
    with wrapped.chat.completions.stream(model="gpt-x", messages=asked) as stream:
        for _ in stream:
            pass
    assert [said(row)[-1][1] for row in captured(remote, chats)] == ["Sunny.", "Sunny."]


def test_a_call_that_fails_raises_as_ever_and_is_no_record(remote: treering.Client, chats: Running, api: str) -> None:
    wrapped = remote.wrap_openai(openai.OpenAI(base_url=api, api_key="k", max_retries=0))
    with pytest.raises(openai.BadRequestError):
        wrapped.chat.completions.create(model="broken", messages=[{"role": "user", "content": "x"}])
    assert captured(remote, chats) == []


def test_two_calls_that_say_the_same_are_two_records(remote: treering.Client, chats: Running, api: str) -> None:
    wrapped = remote.wrap_openai(openai.OpenAI(base_url=api, api_key="k"))
    for _ in range(2):
        wrapped.chat.completions.create(model="gpt-x", messages=[{"role": "user", "content": "weather?"}])
    assert len(captured(remote, chats)) == 2


def test_what_is_no_openai_client_or_is_wrapped_already_is_refused(remote: treering.Client, api: str) -> None:
    wrapped = remote.wrap_openai(openai.OpenAI(base_url=api, api_key="k"))
    with pytest.raises(UsageError, match="captured already"):
        remote.wrap_openai(wrapped)
    with pytest.raises(UsageError, match="isn't an OpenAI client"):
        remote.wrap_openai(object())
