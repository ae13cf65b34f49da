"""Sessions of agents as the programs around them write them down: what `imports.py` reads beside plain chats.

One session is the same in every form: a system prompt, tools on offer, and turns in which the agent thinks, calls tools, reads
their results and answers. Envelopes have the members that the programs write, among them those that no importer takes. Telemetry
(OTLP, OpenInference, Langfuse, LangSmith) has a span for each call of the model, and each repeats all that was said before it.
"""

from __future__ import annotations

import base64
import json
import random
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

__all__ = ["FORMS", "write", "write_each"]

SYSTEM = (
    "You are the support agent of a shop that sells parts for bicycles. Look orders and parts up with your tools before you "
    "answer, never guess a price or a date, and answer in at most three sentences. When a customer asks for a refund, find the "
    "order first, then say what the rules allow: thirty days for parts that were not fitted, two years for what broke."
)
TOOLS: list[dict[str, Any]] = [
    {
        "type": "function",
        "function": {
            "name": name,
            "description": told,
            "parameters": {
                "type": "object",
                "properties": {one: {"type": "string", "description": f"the {one} to look for"} for one in given},
                "required": list(given[:1]),
            },
        },
    }
    for name, told, given in (
        ("find_order", "Finds an order and where it is.", ("order", "customer")),
        ("find_part", "Finds a part by what it fits.", ("fits", "kind", "brand")),
        ("refund", "Refunds an order, or a part of it.", ("order", "reason")),
    )
]
_TEXT = (
    "the chain of this bicycle was fitted in spring and has run two thousand kilometres since then without any trouble but the "
    "cassette shows wear on its smallest sprockets while the derailleur hanger looks slightly bent so that gears skip under load"
)
_WORDS = _TEXT.split()
_START = datetime(2026, 8, 10, 12, tzinfo=UTC)


@dataclass(frozen=True)
class Step:
    """A call of a tool: what was thought and said before it, and its result."""

    thought: str
    said: str
    call: str
    tool: str
    given: dict[str, Any]
    result: str


@dataclass(frozen=True)
class Turn:
    """What the user asked, the steps taken, and the answer."""

    asked: str
    steps: list[Step]
    answer: str


@dataclass(frozen=True)
class Session:
    """The i-th session; `chance` draws the ids that its envelopes need."""

    number: int
    name: str
    turns: list[Turn]
    chance: random.Random

    def uuid(self) -> str:
        """A fresh uuid."""
        return str(uuid.UUID(int=self.chance.getrandbits(128), version=4))

    def hex(self, size: int) -> str:
        """So many fresh bytes as hex."""
        return f"{self.chance.getrandbits(size * 8):0{size * 2}x}"

    def sealed(self, size: int) -> str:
        """So many fresh bytes as base64, as makers of models hide reasoning."""
        return base64.b64encode(self.chance.randbytes(size)).decode()

    def at(self, second: int) -> str:
        """A time of it as ISO 8601 text."""
        return (_START + timedelta(minutes=self.number, seconds=second, milliseconds=123)).isoformat()[:-9] + "Z"

    def ns(self, second: int) -> str:
        """A time of it in nanoseconds, as OTLP's JSON has them."""
        when = _START + timedelta(minutes=self.number, seconds=second)
        return str(int(when.timestamp()) * 1_000_000_000 + 123_456_789)


def session(number: int, *, turns: int, steps: int) -> Session:
    """A session with so many turns, and so many calls of tools in each."""
    chance = random.Random(number)

    def text(words: int) -> str:
        start = chance.randrange(len(_WORDS))
        return " ".join(_WORDS[(start + n) % len(_WORDS)] for n in range(words))

    def step(turn: int, n: int) -> Step:
        tool = TOOLS[(turn + n) % len(TOOLS)]["function"]["name"]
        given = {"order": f"{number}-{turn}", "fits": text(3), "limit": n + 3}
        result = json.dumps({"found": n + 1, "order": f"{number}-{turn}", "notes": [text(24), text(24)]}, indent=1)
        call = f"toolu_{chance.getrandbits(120):030x}"
        return Step(text(20), text(10) if n == 0 else "", call, tool, given, result)

    made = [
        Turn(
            f"Order {number}-{turn}: {text(25)}?", [step(turn, n) for n in range(steps)], f"{text(40)}.\n\n{text(30)}."
        )
        for turn in range(turns)
    ]
    return Session(number, str(uuid.UUID(int=chance.getrandbits(128), version=4)), made, chance)


# --- coding agents ------------------------------------------------------------------------------------------------


def _claude_code(one: Session) -> Iterator[dict[str, Any]]:
    """`~/.claude/projects/…/*.jsonl`: a block a line, each line in its envelope, results once for the model and once for the screen."""
    last: str | None = None
    second = 0

    def line(kind: str, **more: Any) -> dict[str, Any]:
        nonlocal last, second
        second += 1
        parent, last = last, one.uuid()
        return {
            "parentUuid": parent, "isSidechain": False, "userType": "external", "cwd": "/home/alice/shop",
            "sessionId": one.name, "version": "2.1.230", "gitBranch": "main", "type": kind, **more,
            "uuid": last, "timestamp": one.at(second),
        }  # fmt: skip

    def said(message: str, block: dict[str, Any]) -> dict[str, Any]:
        usage = {
            "input_tokens": 12, "cache_creation_input_tokens": 1034, "cache_read_input_tokens": 18_231, "output_tokens": 210,
            "cache_creation": {"ephemeral_5m_input_tokens": 1034, "ephemeral_1h_input_tokens": 0}, "service_tier": "standard",
        }  # fmt: skip
        whole = {
            "id": message, "type": "message", "role": "assistant", "model": "claude-sonnet-5", "content": [block],
            "stop_reason": "tool_use" if block["type"] == "tool_use" else None, "stop_sequence": None, "usage": usage,
        }  # fmt: skip
        return line("assistant", message=whole, requestId=f"req_{one.hex(12)}")

    yield {"type": "file-history-snapshot", "messageId": one.uuid(), "isSnapshotUpdate": False,
           "snapshot": {"messageId": one.uuid(), "trackedFileBackups": {}, "timestamp": one.at(0)}}  # fmt: skip
    for turn in one.turns:
        yield line("user", message={"role": "user", "content": turn.asked}, permissionMode="default")
        for step in turn.steps:
            message = f"msg_{one.hex(12)}"
            yield said(message, {"type": "thinking", "thinking": step.thought, "signature": one.sealed(220)})
            if step.said:
                yield said(message, {"type": "text", "text": step.said})
            yield said(message, {"type": "tool_use", "id": step.call, "name": step.tool, "input": step.given})
            result = {"tool_use_id": step.call, "type": "tool_result", "content": step.result, "is_error": False}
            screen = {"stdout": step.result, "stderr": "", "interrupted": False, "isImage": False}
            yield line("user", message={"role": "user", "content": [result]}, toolUseResult=screen)
        yield said(f"msg_{one.hex(12)}", {"type": "text", "text": turn.answer})
        yield line("system", subtype="turn_duration", durationMs=8124, isMeta=False)
    yield {"type": "ai-title", "aiTitle": f"Order {one.number}", "sessionId": one.name}


def _codex(one: Session) -> Iterator[dict[str, Any]]:
    """`~/.codex/sessions/…/rollout-*.jsonl`: items, and events that say the same for the screen."""
    second = 0

    def line(kind: str, payload: dict[str, Any]) -> dict[str, Any]:
        nonlocal second
        second += 1
        return {"timestamp": one.at(second), "type": kind, "payload": payload}

    def item(kind: str, /, **payload: Any) -> dict[str, Any]:
        return line("response_item", {"type": kind, **payload})

    def event(kind: str, /, **payload: Any) -> dict[str, Any]:
        return line("event_msg", {"type": kind, **payload})

    yield line("session_meta", {
        "id": one.name, "timestamp": one.at(0), "cwd": "/home/alice/shop", "originator": "codex_cli_rs",
        "cli_version": "0.130.0", "source": "cli", "model_provider": "openai", "base_instructions": {"text": SYSTEM},
        "git": {"commit_hash": one.hex(20), "branch": "main", "repository_url": "git@example.org:shop.git"},
    })  # fmt: skip
    tokens = {
        "input_tokens": 18_000,
        "cached_input_tokens": 16_000,
        "output_tokens": 900,
        "reasoning_output_tokens": 300,
    }
    for turn in one.turns:
        yield line("turn_context", {
            "turn_id": one.uuid(), "cwd": "/home/alice/shop", "approval_policy": "on-request", "model": "gpt-5.2-codex",
            "sandbox_policy": {"type": "workspace-write", "network_access": False}, "effort": "high", "summary": "auto",
        })  # fmt: skip
        yield item("message", role="user", content=[{"type": "input_text", "text": turn.asked}])
        yield event("user_message", message=turn.asked, images=[], kind="plain")
        for step in turn.steps:
            yield event("agent_reasoning", text=step.thought)
            summary = [{"type": "summary_text", "text": step.thought}]
            yield item("reasoning", summary=summary, content=None, encrypted_content=one.sealed(450))
            if step.said:
                yield event("agent_message", message=step.said)
                yield item("message", role="assistant", content=[{"type": "output_text", "text": step.said}])
            yield item("function_call", name=step.tool, arguments=json.dumps(step.given), call_id=step.call)
            yield event(
                "exec_command_end",
                call_id=step.call,
                aggregated_output=step.result,
                exit_code=0,
                duration={"secs": 1, "nanos": 9},
            )
            yield item("function_call_output", call_id=step.call, output=step.result)
            yield event(
                "token_count",
                info={"total_token_usage": tokens, "last_token_usage": tokens, "model_context_window": 272_000},
            )
        yield event("agent_message", message=turn.answer)
        yield item("message", role="assistant", content=[{"type": "output_text", "text": turn.answer}])


def _hooks(one: Session) -> Iterator[dict[str, Any]]:
    """What Claude Code's hooks post. A record is a turn here."""
    about = {
        "session_id": one.name,
        "transcript_path": f"/home/alice/.claude/projects/shop/{one.name}.jsonl",
        "cwd": "/home/alice/shop",
    }
    yield {**about, "hook_event_name": "SessionStart", "source": "startup"}
    for turn in one.turns:
        about["prompt_id"] = one.uuid()
        yield {**about, "hook_event_name": "UserPromptSubmit", "permission_mode": "default", "prompt": turn.asked}
        for step in turn.steps:
            tool = {"tool_name": step.tool, "tool_input": step.given, "tool_use_id": step.call}
            yield {**about, "hook_event_name": "PreToolUse", "permission_mode": "default", **tool}
            told = {"stdout": step.result, "stderr": "", "interrupted": False}
            yield {
                **about,
                "hook_event_name": "PostToolUse",
                "permission_mode": "default",
                **tool,
                "tool_response": told,
            }
        yield {**about, "hook_event_name": "Stop", "stop_hook_active": False, "last_assistant_message": turn.answer}


def _atif(one: Session) -> Iterator[dict[str, Any]]:
    """A trajectory, as the format's own models write it."""
    steps: list[dict[str, Any]] = [{"step_id": 1, "source": "system", "message": SYSTEM}]
    for turn in one.turns:
        steps.append(
            {"step_id": len(steps) + 1, "timestamp": one.at(len(steps)), "source": "user", "message": turn.asked}
        )
        for step in turn.steps:
            steps.append({
                "step_id": len(steps) + 1, "timestamp": one.at(len(steps)), "source": "agent", "model_name": "gpt-5",
                "message": step.said, "reasoning_content": step.thought,
                "tool_calls": [{"tool_call_id": step.call, "function_name": step.tool, "arguments": step.given}],
                "observation": {"results": [{"source_call_id": step.call, "content": step.result}]},
                "metrics": {"prompt_tokens": 1200, "completion_tokens": 80, "cached_tokens": 1000, "cost_usd": 0.0031},
            })  # fmt: skip
        steps.append(
            {"step_id": len(steps) + 1, "timestamp": one.at(len(steps)), "source": "agent", "message": turn.answer}
        )
    agent = {"name": "terminus", "version": "2.0", "model_name": "gpt-5", "tool_definitions": TOOLS}
    metrics = {
        "total_prompt_tokens": 15_000,
        "total_completion_tokens": 900,
        "total_cached_tokens": 12_000,
        "total_cost_usd": 0.04,
    }
    yield {
        "schema_version": "ATIF-v1.8", "session_id": one.name, "trajectory_id": one.uuid(), "agent": agent, "steps": steps,
        "final_metrics": metrics,
    }  # fmt: skip


# --- telemetry ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Called:
    """A call of the model: all that it was sent, as OpenAI's messages, its answer, and the run of the tool that follows."""

    second: int
    sent: list[dict[str, Any]]
    answer: dict[str, Any]
    step: Step | None


def _calls(one: Session) -> Iterator[Called]:
    sent: list[dict[str, Any]] = [{"role": "system", "content": SYSTEM}]
    second = 0
    for turn in one.turns:
        sent.append({"role": "user", "content": turn.asked})
        for step in turn.steps:
            call = {
                "id": step.call,
                "type": "function",
                "function": {"name": step.tool, "arguments": json.dumps(step.given)},
            }
            answer = {"role": "assistant", "content": step.said or None, "tool_calls": [call]}
            yield Called(second := second + 2, list(sent), answer, step)
            sent += [answer, {"role": "tool", "tool_call_id": step.call, "content": step.result}]
        answer = {"role": "assistant", "content": turn.answer}
        yield Called(second := second + 2, list(sent), answer, None)
        sent.append(answer)


def _any_value(value: Any) -> dict[str, Any]:
    if isinstance(value, bool):
        return {"boolValue": value}
    if isinstance(value, int):
        return {"intValue": str(value)}
    if isinstance(value, float):
        return {"doubleValue": value}
    if isinstance(value, dict):
        return {"kvlistValue": {"values": _attributes(value)}}
    if isinstance(value, list):
        return {"arrayValue": {"values": [_any_value(inner) for inner in value]}}
    return {"stringValue": value}


def _attributes(given: dict[str, Any]) -> list[dict[str, Any]]:
    return [{"key": key, "value": _any_value(value)} for key, value in given.items()]


_RESOURCE = {
    "telemetry.sdk.language": "python", "telemetry.sdk.name": "opentelemetry", "telemetry.sdk.version": "1.45.2",
    "service.name": "helpdesk", "service.instance.id": "0b8f7c52-6c0e-4d1b-9f0a-3d0c2c1f8a11",
}  # fmt: skip


def _spans(one: Session, name: str, attributes: Callable[[Called], dict[str, Any]]) -> dict[str, Any]:
    """An export request with a session's spans, one for each call of the model and of a tool."""
    trace, spans = one.hex(16), []
    parent = one.hex(8)
    for call in _calls(one):
        about = {"traceId": trace, "parentSpanId": parent, "kind": 3, "flags": 256, "status": {}}
        spans.append(
            {
                **about, "spanId": one.hex(8), "name": name, "startTimeUnixNano": one.ns(call.second),
                "endTimeUnixNano": one.ns(call.second + 1), "attributes": _attributes(attributes(call)),
            }
        )  # fmt: skip
        if call.step is not None:
            tool = {"gen_ai.operation.name": "execute_tool", "gen_ai.tool.name": call.step.tool, "gen_ai.tool.call.id": call.step.call,
                    "openinference.span.kind": "TOOL"}  # fmt: skip
            if name != "ChatCompletion":
                del tool["openinference.span.kind"]
            spans.append(
                {
                    **about, "spanId": one.hex(8), "name": "execute_tool", "startTimeUnixNano": one.ns(call.second + 1),
                    "endTimeUnixNano": one.ns(call.second + 2), "attributes": _attributes(tool),
                }
            )  # fmt: skip
    scope = {"name": "opentelemetry.util.genai.handler", "version": "1.3b0"}
    resource = {"attributes": _attributes(_RESOURCE)}
    return {"resourceSpans": [{"resource": resource, "scopeSpans": [{"scope": scope, "spans": spans}]}]}


def _parts(message: dict[str, Any]) -> dict[str, Any]:
    """A message in GenAI's parts."""
    if message["role"] == "tool":
        part = {"type": "tool_call_response", "id": message["tool_call_id"], "response": message["content"]}
        return {"role": "tool", "parts": [part]}
    parts: list[dict[str, Any]] = []
    if message.get("content"):
        parts.append({"type": "text", "content": message["content"]})
    for call in message.get("tool_calls", ()):
        function = call["function"]
        given = json.loads(function["arguments"])
        parts.append({"type": "tool_call", "id": call["id"], "name": function["name"], "arguments": given})
    return {"role": message["role"], "parts": parts}


def _genai(one: Session, call: Called, write: Callable[[Any], Any]) -> dict[str, Any]:
    answer = {**_parts(call.answer), "finish_reason": "tool_call" if call.step else "stop"}
    tools = [{"type": "function", **tool["function"]} for tool in TOOLS]
    return {
        "gen_ai.operation.name": "chat", "gen_ai.provider.name": "openai", "gen_ai.request.model": "gpt-5",
        "gen_ai.request.temperature": 0.2, "gen_ai.conversation.id": one.name, "server.address": "api.openai.com",
        "server.port": 443, "gen_ai.response.model": "gpt-5-2026-08-01", "gen_ai.response.id": f"chatcmpl-{one.hex(12)}",
        "gen_ai.response.finish_reasons": [answer["finish_reason"]],
        "gen_ai.usage.input_tokens": 1400, "gen_ai.usage.output_tokens": 70,
        "gen_ai.system_instructions": write([{"type": "text", "content": SYSTEM}]),
        "gen_ai.input.messages": write([_parts(message) for message in call.sent[1:]]),
        "gen_ai.output.messages": write([answer]), "gen_ai.tool.definitions": write(tools),
    }  # fmt: skip


def _compact(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def _otlp_text(one: Session) -> Iterator[dict[str, Any]]:
    """Spans: the SDK has messages as JSON text in attributes."""
    yield _spans(one, "chat gpt-5", lambda call: _genai(one, call, _compact))


def _otlp_structured(one: Session) -> Iterator[dict[str, Any]]:
    """Log records (`gen_ai.client.inference.operation.details`): the SDK has messages as structured values."""
    trace = one.hex(16)
    records = [
        {
            "timeUnixNano": one.ns(call.second + 1), "observedTimeUnixNano": one.ns(call.second + 1), "severityNumber": 9,
            "eventName": "gen_ai.client.inference.operation.details", "traceId": trace, "spanId": one.hex(8), "flags": 1,
            "attributes": _attributes(_genai(one, call, lambda value: value)),
        }
        for call in _calls(one)
    ]  # fmt: skip
    resource = {"attributes": _attributes(_RESOURCE)}
    yield {
        "resourceLogs": [{"resource": resource, "scopeLogs": [{"scope": {"name": "helpdesk"}, "logRecords": records}]}]
    }


def _openinference(one: Session) -> Iterator[dict[str, Any]]:
    """Spans with an attribute for each member of each message, as OpenInference's instrumentations write them."""

    def attributes(call: Called) -> dict[str, Any]:
        given: dict[str, Any] = {
            "openinference.span.kind": "LLM", "llm.provider": "openai", "llm.system": "openai", "llm.model_name": "gpt-5",
            "session.id": one.name, "user.id": f"user-{one.number % 97}",
            "llm.invocation_parameters": '{"model": "gpt-5", "temperature": 0.2}',
            "llm.token_count.prompt": 1400, "llm.token_count.completion": 70, "llm.token_count.total": 1470,
            "input.mime_type": "application/json", "input.value": _compact({"messages": call.sent, "model": "gpt-5", "tools": TOOLS}),
            "output.mime_type": "application/json", "output.value": _compact({"choices": [{"index": 0, "message": call.answer}]}),
        }  # fmt: skip
        for prefix, messages in (("llm.input_messages", call.sent), ("llm.output_messages", [call.answer])):
            for n, message in enumerate(messages):
                start = f"{prefix}.{n}.message"
                for member in ("role", "content", "tool_call_id"):
                    if message.get(member) is not None:
                        given[f"{start}.{member}"] = message[member]
                for k, called in enumerate(message.get("tool_calls", ())):
                    inner = f"{start}.tool_calls.{k}.tool_call"
                    given[f"{inner}.id"] = called["id"]
                    given[f"{inner}.function.name"] = called["function"]["name"]
                    given[f"{inner}.function.arguments"] = called["function"]["arguments"]
        given.update({f"llm.tools.{n}.tool.json_schema": _compact(tool) for n, tool in enumerate(TOOLS)})
        return given

    yield _spans(one, "ChatCompletion", attributes)


def _langfuse(one: Session) -> Iterator[dict[str, Any]]:
    """Observations as its API writes them: the agent's span, a generation for each call of the model, the tools' runs."""
    trace, root = one.hex(16), one.hex(8)

    def observation(kind: str, second: int, **more: Any) -> dict[str, Any]:
        return {
            "id": one.hex(8), "traceId": trace, "startTime": one.at(second), "endTime": one.at(second + 1), "projectId": "shop",
            "parentObservationId": root, "type": kind, "level": "DEFAULT", "statusMessage": None, "version": None,
            "environment": "default", "bookmarked": False, "public": False, "sessionId": one.name,
            "userId": f"user-{one.number % 97}", "traceName": "support", "createdAt": one.at(second), "updatedAt": one.at(second + 1),
            "metadata": {"resourceAttributes": _RESOURCE, "scope": {"name": "langfuse-sdk", "version": "5.0.4"}}, **more,
        }  # fmt: skip

    for call in _calls(one):
        yield observation(
            "GENERATION", call.second, name="OpenAI-generation", input={"tools": TOOLS, "messages": call.sent}, output=call.answer,
            model="gpt-5", providedModelName="gpt-5", modelParameters={"temperature": 0.2},
            usageDetails={"input": 1400, "output": 70, "total": 1470}, costDetails={"input": 0.002, "output": 0.0007},
        )  # fmt: skip
        if call.step is not None:
            yield observation(
                "TOOL", call.second + 1, name=call.step.tool, input=call.step.given, output=call.step.result
            )
    yield {
        **observation("AGENT", 1, name="support", input={"messages": [call.sent[1]]}, output=one.turns[-1].answer),
        "id": root, "parentObservationId": None,
    }  # fmt: skip


def _langsmith(one: Session) -> Iterator[dict[str, Any]]:
    """Runs as its SDK posts them: of a wrapped OpenAI client, and of LangChain in every second session."""
    root = one.uuid()
    is_langchain = one.number % 2 == 1

    def run(kind: str, name: str, second: int, **more: Any) -> dict[str, Any]:
        runtime = {
            "sdk": "langsmith-py",
            "sdk_version": "0.15.0",
            "library": "langsmith",
            "platform": "Linux",
            "runtime": "python",
        }
        metadata = {
            "thread_id": one.name,
            "user_id": f"user-{one.number % 97}",
            "ls_method": "traceable",
            **more.pop("about", {}),
        }
        run_id = one.uuid()
        return {
            "id": run_id, "name": name, "run_type": kind, "trace_id": root, "session_id": "6c2f3a1e-0000-4000-8000-000000000000",
            "start_time": one.at(second)[:-1], "end_time": one.at(second + 1)[:-1], "parent_run_ids": [root], "parent_run_id": root,
            "dotted_order": f"20260810T120000000000Z{root}.20260810T120001000000Z{run_id}", "error": None, "status": "success",
            "tags": [], "events": [], "extra": {"metadata": metadata, "runtime": runtime, **more.pop("extra", {})}, **more,
        }  # fmt: skip

    for call in _calls(one):
        about = {"ls_provider": "openai", "ls_model_type": "chat", "ls_model_name": "gpt-5", "ls_temperature": 0.2}
        if is_langchain:
            inputs: dict[str, Any] = {"messages": [[_constructor(message) for message in call.sent]]}
            generation = {
                "text": call.answer["content"] or "",
                "type": "ChatGeneration",
                "message": _constructor(call.answer),
            }
            outputs: dict[str, Any] = {
                "generations": [[generation]],
                "llm_output": {"token_usage": {"prompt_tokens": 1400}},
                "type": "LLMResult",
            }
        else:
            inputs = {"messages": call.sent, "model": "gpt-5", "tools": TOOLS}
            outputs = {"id": f"chatcmpl-{one.hex(12)}", "object": "chat.completion", "model": "gpt-5-2026-08-01",
                       "choices": [{"index": 0, "finish_reason": "stop", "message": call.answer}],
                       "usage_metadata": {"input_tokens": 1400, "output_tokens": 70, "total_tokens": 1470}}  # fmt: skip
        extra = (
            {"invocation_params": {"model": "gpt-5", "_type": "openai-chat", "tools": TOOLS}} if is_langchain else {}
        )
        yield run("llm", "ChatOpenAI", call.second, inputs=inputs, outputs=outputs, about=about, extra=extra)
        if call.step is not None:
            yield run(
                "tool", call.step.tool, call.second + 1, inputs=call.step.given, outputs={"output": call.step.result}
            )
    inputs = {"messages": [{"role": "user", "content": one.turns[-1].asked}]}
    whole = run("chain", "agent", 1, inputs=inputs, outputs={"output": one.turns[-1].answer})
    yield {**whole, "id": root, "parent_run_ids": [], "parent_run_id": None}


def _constructor(message: dict[str, Any]) -> dict[str, Any]:
    """A message as LangChain writes it down."""
    names = {"system": "SystemMessage", "user": "HumanMessage", "assistant": "AIMessage", "tool": "ToolMessage"}
    inside: dict[str, Any] = {"content": message.get("content") or "", "type": names[message["role"]][:-7].lower()}
    if message["role"] == "assistant":
        inside |= {"additional_kwargs": {}, "response_metadata": {}, "invalid_tool_calls": []}
    if "tool_calls" in message:
        inside["tool_calls"] = [
            {"name": call["function"]["name"], "args": json.loads(call["function"]["arguments"]), "id": call["id"], "type": "tool_call"}
            for call in message["tool_calls"]
        ]  # fmt: skip
    if "tool_call_id" in message:
        inside |= {"tool_call_id": message["tool_call_id"], "status": "success"}
    return {
        "lc": 1,
        "type": "constructor",
        "id": ["langchain", "schema", "messages", names[message["role"]]],
        "kwargs": inside,
    }


@dataclass(frozen=True)
class Form:
    """How sessions are written in one format, and how long they are."""

    format: str
    write: Callable[[Session], Iterator[dict[str, Any]]]
    turns: int
    steps: int


#: By what to call it. A session of a coding agent has three times the calls of one at a help desk.
FORMS: dict[str, Form] = {
    "claude-code": Form("claude-code", _claude_code, 3, 3),
    "codex": Form("codex", _codex, 3, 3),
    "hooks": Form("hooks", _hooks, 3, 3),
    "atif": Form("atif", _atif, 3, 3),
    "otlp, attributes as JSON text": Form("otlp", _otlp_text, 3, 1),
    "otlp, structured attributes": Form("otlp", _otlp_structured, 3, 1),
    "openinference": Form("openinference", _openinference, 3, 1),
    "langfuse": Form("langfuse", _langfuse, 3, 1),
    "langsmith": Form("langsmith", _langsmith, 3, 1),
}


def write(what: str, path: Path, sessions: int) -> None:
    """Write a file of so many sessions in one of `FORMS`, a value a line."""
    with path.open("w") as file:
        for number in range(sessions):
            file.write(_lines(what, number))


def write_each(what: str, folder: Path, sessions: int) -> None:
    """The same, a file a session, as coding agents leave them."""
    folder.mkdir()
    for number in range(sessions):
        (folder / f"{number:06d}.jsonl").write_text(_lines(what, number))


def _lines(what: str, number: int) -> str:
    form = FORMS[what]
    values = form.write(session(number, turns=form.turns, steps=form.steps))
    return "".join(_compact(value) + "\n" for value in values)
