"""Hooks of Claude Code and Codex: payloads as their references have them, posted one by one."""

from __future__ import annotations

from typing import Any

import pytest

from tests.formats.speaking import CHAT, take
from treering.formats import Found
from treering.formats.hooks import Hooks


def claude(event: str, *, turn: str | None = "prompt-1", session: str = "s-1", **more: Any) -> dict[str, Any]:
    about = {"session_id": session, "transcript_path": "/home/a/.claude/projects/x/s-1.jsonl", "cwd": "/repo",
             "permission_mode": "default", "hook_event_name": event}  # fmt: skip
    return {**about, **({"prompt_id": turn} if turn else {}), **more}


def codex(event: str, *, turn: str = "turn-1", **more: Any) -> dict[str, Any]:
    return {"session_id": "019a", "transcript_path": None, "cwd": "/repo", "permission_mode": "default",
            "hook_event_name": event, "model": "gpt-5-codex", "turn_id": turn, **more}  # fmt: skip


def test_a_turn_of_claude_code_is_a_record() -> None:
    values = [
        claude("SessionStart", source="startup"),
        claude("UserPromptSubmit", prompt="List files"),
        claude("PreToolUse", tool_name="Bash", tool_input={"command": "ls"}, tool_use_id="t1"),
        claude("PostToolUse", tool_name="Bash", tool_input={"command": "ls"}, tool_use_id="t1",
               tool_response={"stdout": "a.txt", "stderr": "", "interrupted": False}),
        claude("PostToolUseFailure", tool_name="Read", tool_input={"file_path": "b"}, tool_use_id="t2", error="no such file"),
        claude("Stop", stop_hook_active=False, last_assistant_message="One file."),
        claude("SessionEnd", reason="exit"),
    ]  # fmt: skip
    assert all(map(Hooks.recognises, values))
    taken = take(Hooks, values)
    record = taken.one
    assert record["messages"] == [
        {"role": "user", "content": "List files"},
        {"role": "assistant", "tool_calls": [
            {"id": "t1", "type": "function", "function": {"name": "Bash", "arguments": '{"command":"ls"}'}}]},
        {"role": "tool", "content": '{"stdout":"a.txt","stderr":"","interrupted":false}', "tool_call_id": "t1", "name": "Bash"},
        {"role": "assistant", "tool_calls": [
            {"id": "t2", "type": "function", "function": {"name": "Read", "arguments": '{"file_path":"b"}'}}]},
        {"role": "tool", "content": "no such file", "tool_call_id": "t2", "name": "Read"},
        {"role": "assistant", "content": "One file."},
    ]  # fmt: skip
    assert record["session_id"] == "s-1"
    assert record["meta"]["agent"] == "claude-code"
    assert record["meta"]["failed_calls"] == ["t2"]
    assert taken.passed == {"events of other things": 3}


def test_a_turn_of_codex_is_a_record() -> None:
    values = [
        codex("UserPromptSubmit", prompt="run"),
        codex("PostToolUse", tool_name="Bash", tool_input={"command": "make"}, tool_response="ok", tool_use_id="c1"),
        codex("Stop", stop_hook_active=False, last_assistant_message="Done."),
    ]
    record = take(Hooks, values).one
    assert [one["role"] for one in record["messages"]] == ["user", "assistant", "tool", "assistant"]
    assert record["origin"] == "model:gpt-5-codex"
    assert (record["meta"]["agent"], record["meta"]["turn"]) == ("codex", "turn-1")


def test_a_record_comes_with_the_payload_that_ends_its_turn() -> None:
    hooks = Hooks(CHAT, None)
    assert list(hooks.feed(1, claude("UserPromptSubmit", prompt="hi"), b"")) == []
    (found,) = hooks.feed(2, claude("Stop", last_assistant_message="ho"), b"")
    assert isinstance(found, Found)
    assert list(hooks.finish()) == []


def test_what_is_posted_again_changes_nothing() -> None:
    begin, end = claude("UserPromptSubmit", prompt="hi"), claude("Stop", last_assistant_message="ho")
    result = claude("PostToolUse", tool_name="f", tool_input={}, tool_response="x", tool_use_id="t")
    taken = take(Hooks, [begin, begin, result, result, end, end, begin])
    assert len(taken.messages) == 4
    assert taken.passed == {"events sent twice": 4}


def test_ids_are_those_of_turns() -> None:
    def one(turn: str | None, prompt: str = "hi") -> str:
        values = [
            claude("UserPromptSubmit", turn=turn, prompt=prompt),
            claude("Stop", turn=turn, last_assistant_message="ho"),
        ]
        return str(take(Hooks, values).one["id"])

    assert one("a") == one("a") != one("b")
    assert one(None) == one(None) != one(None, "other")


def test_turns_of_many_sessions_at_once_dont_mix() -> None:
    values = [claude("UserPromptSubmit", session=name, prompt=name) for name in "abc"]
    values += [claude("Stop", session=name, last_assistant_message=name.upper()) for name in "cab"]
    assert [[one["content"] for one in record["messages"]] for record in take(Hooks, values).records] == [
        ["c", "C"], ["a", "A"], ["b", "B"],
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("end", "outcome"),
    [
        (claude("StopFailure", error="rate_limit"), {"status": "error", "error": "rate_limit"}),
        (claude("SessionEnd", reason="exit"), {"status": "interrupted"}),
        (claude("UserPromptSubmit", turn="prompt-2", prompt="stop it"), {"status": "interrupted"}),
        (None, {"status": "unfinished"}),
    ],
)
def test_turns_that_didnt_end_well_say_so(end: Any, outcome: Any) -> None:
    values = [claude("UserPromptSubmit", prompt="hi"),
              claude("PostToolUse", tool_name="f", tool_input={}, tool_response="x", tool_use_id="t")]  # fmt: skip
    taken = take(Hooks, [*values, *([end] if end else [])])
    assert taken.said[0] == ({"outcome": outcome},)


def test_the_end_of_a_turn_that_nobody_saw_begin_is_counted() -> None:
    assert take(Hooks, [claude("Stop", last_assistant_message="ho")]).passed == {
        "ends of turns whose beginning wasn't seen": 1
    }


def test_subagents_are_part_of_the_call_that_sent_them() -> None:
    values = [
        claude("UserPromptSubmit", prompt="hi"),
        claude("PostToolUse", agent_id="a1", tool_name="f", tool_input={}, tool_response="x", tool_use_id="t"),
        claude("SubagentStop", agent_id="a1", last_assistant_message="inner"),
        claude("Stop", last_assistant_message="ho"),
    ]
    taken = take(Hooks, values)
    assert [one["content"] for one in taken.messages] == ["hi", "ho"]
    assert taken.passed == {"events of other things": 2}


def test_turns_under_way_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    from treering.formats import hooks

    monkeypatch.setattr(hooks, "HELD_TURNS", 10)
    taken = take(Hooks, [claude("UserPromptSubmit", session=f"s{i}", prompt="hi") for i in range(15)])
    assert taken.passed["turns given up: too many were open"] == 5


@pytest.mark.parametrize(
    "value", [3, {}, {"hook_event_name": "Stop"}, claude("UserPromptSubmit"), claude("UserPromptSubmit", prompt=3)]
)
def test_what_doesnt_fit_is_named(value: Any) -> None:
    assert len(take(Hooks, [value]).unfit) == 1
