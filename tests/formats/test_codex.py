"""Codex: rollouts in the shapes of codex-rs' protocol, of 2025 and of 2026."""

from __future__ import annotations

from typing import Any

import pytest

from tests.formats.speaking import take
from treering.formats.codex import Codex

ID = "019a2d7a-41c4-78b1-b7cc-a45d62a89cd5"


class Rollout:
    def __init__(self, session: str = ID, **header: Any) -> None:
        self.lines: list[dict[str, Any]] = []
        self.line("session_meta", {
            "id": session, "timestamp": "2026-08-10T13:02:51.000Z", "cwd": "/repo", "originator": "codex_cli_rs",
            "cli_version": "0.130.0", "source": "cli", "model_provider": "openai",
            "base_instructions": {"text": "You are Codex."}, "git": {"branch": "main"}, **header})  # fmt: skip
        self.line("turn_context", {"cwd": "/repo", "model": "gpt-5-codex", "effort": "high", "summary": "auto"})

    def line(self, kind: str, payload: dict[str, Any]) -> None:
        stamp = f"2026-08-10T13:02:{len(self.lines) % 60:02}.123Z"
        self.lines.append({"timestamp": stamp, "type": kind, "payload": payload})

    def item(self, kind: str, **payload: Any) -> None:
        self.line("response_item", {"type": kind, **payload})

    def event(self, what: str, **payload: Any) -> None:
        self.line("event_msg", {"type": what, **payload})

    def user(self, text: str) -> None:
        self.item("message", role="user", content=[{"type": "input_text", "text": text}])
        self.event("user_message", message=text, kind="plain")

    def answer(self, text: str) -> None:
        self.event("agent_message", message=text)
        self.item("message", role="assistant", content=[{"type": "output_text", "text": text}])


@pytest.fixture
def rollout() -> Rollout:
    return Rollout()


def told(record: dict[str, Any]) -> list[tuple[str, str | None]]:
    return [(one["role"], one.get("content")) for one in record["messages"]]


def test_a_rollout_is_a_record_of_its_items_alone(rollout: Rollout) -> None:
    rollout.item("message", role="developer", content=[{"type": "input_text", "text": "<permissions>"}])
    rollout.user("run the tests")
    rollout.event("agent_reasoning", text="**Running**")
    rollout.item(
        "reasoning", summary=[{"type": "summary_text", "text": "**Running**"}], content=None, encrypted_content="gAA"
    )
    rollout.item("message", role="assistant", content=[{"type": "output_text", "text": "On it."}])
    rollout.item("function_call", name="exec_command", arguments='{"cmd": ["make"]}', call_id="call_1")
    rollout.item("custom_tool_call", status="completed", call_id="call_2", name="apply_patch", input="*** Begin Patch")
    rollout.event("exec_command_end", call_id="call_1", aggregated_output="ok", exit_code=0)
    rollout.item("function_call_output", call_id="call_1", output="ok")
    rollout.item("custom_tool_call_output", call_id="call_2", output='{"output":"Success"}')
    rollout.answer("Done.")
    rollout.event("token_count", info={"total_token_usage": {"input_tokens": 9, "output_tokens": 2}})
    rollout.event("task_complete", last_agent_message="Done.")
    assert all(Codex.recognises(one) for one in rollout.lines)
    taken = take(Codex, rollout.lines)
    record = taken.one
    assert record["messages"] == [
        {"role": "system", "content": "You are Codex."},
        {"role": "developer", "content": "<permissions>"},
        {"role": "user", "content": "run the tests"},
        {"role": "assistant", "content": "On it.", "reasoning_content": "**Running**", "tool_calls": [
            {"id": "call_1", "type": "function", "function": {"name": "exec_command", "arguments": '{"cmd": ["make"]}'}},
            {"id": "call_2", "type": "function", "function": {"name": "apply_patch", "arguments": "*** Begin Patch"}}]},
        {"role": "tool", "content": "ok", "tool_call_id": "call_1", "name": "exec_command"},
        {"role": "tool", "content": '{"output":"Success"}', "tool_call_id": "call_2", "name": "apply_patch"},
        {"role": "assistant", "content": "Done."},
    ]  # fmt: skip
    assert (record["session_id"], record["origin"]) == (ID, "model:gpt-5-codex")
    assert record["meta"]["usage"] == {"input_tokens": 9, "output_tokens": 2}
    assert (record["meta"]["agent"], record["meta"]["cwd"]) == ("codex_cli_rs", "/repo")
    assert taken.passed["events, which say again what items say"] == 5


def test_outputs_in_parts_and_of_older_versions(rollout: Rollout) -> None:
    rollout.user("look")
    rollout.item("function_call", name="view", arguments="{}", call_id="a")
    rollout.item("function_call_output", call_id="a", output=[
        {"type": "input_text", "text": "seen"}, {"type": "input_image", "image_url": "data:image/png;base64,iVBORw0KGgo="}])  # fmt: skip
    rollout.item("local_shell_call", call_id="b", status="completed", action={"type": "exec", "command": ["ls"]})
    rollout.item("function_call_output", call_id="b", output={"content": "no such file", "success": False})
    rollout.item("web_search_call", status="completed", action={"type": "search", "query": "weather"})
    rollout.item("ghost_snapshot", ghost_commit={})
    rollout.answer("Done.")
    taken = take(Codex, rollout.lines)
    messages = taken.messages
    assert messages[3]["content"] == "seen\n[input_image image/png, 8 bytes, 4c4b6a3b]"
    assert messages[4]["tool_calls"][0]["function"] == {
        "name": "local_shell",
        "arguments": '{"type":"exec","command":["ls"]}',
    }
    assert messages[5]["name"] == "local_shell"
    assert messages[6]["tool_calls"][0]["function"]["name"] == "web_search"
    assert taken.one["meta"]["failed_calls"] == ["b"]
    assert taken.passed["items that hold nothing readable"] == 1


def test_a_compaction_ends_one_record_and_its_history_begins_another(rollout: Rollout) -> None:
    rollout.user("one")
    rollout.answer("1")
    kept = {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "summary of it"}]}
    rollout.line(
        "compacted", {"message": "", "replacement_history": [kept, {"type": "compaction", "encrypted_content": "x"}]}
    )
    rollout.user("two")
    rollout.answer("2")
    before, after = take(Codex, rollout.lines).records
    assert told(before) == [("system", "You are Codex."), ("user", "one"), ("assistant", "1")]
    assert told(after) == [("system", "You are Codex."), ("user", "summary of it"), ("user", "two"), ("assistant", "2")]
    assert (before["meta"]["ended"], after["meta"]["is_compacted"]) == ("compacted", True)
    assert before["session_id"] == after["session_id"]


def test_a_compaction_of_2025_begins_with_its_summary(rollout: Rollout) -> None:
    rollout.user("one")
    rollout.answer("1")
    rollout.line("compacted", {"message": "We counted."})
    rollout.user("two")
    rollout.answer("2")
    assert told(take(Codex, rollout.lines).records[1])[1:] == [
        ("user", "We counted."),
        ("user", "two"),
        ("assistant", "2"),
    ]


def test_turns_that_were_undone_are_a_branch(rollout: Rollout) -> None:
    rollout.user("keep")
    rollout.answer("kept")
    rollout.user("wrong")
    rollout.answer("undone")
    rollout.event("thread_rolled_back", num_turns=1)
    rollout.user("right")
    rollout.answer("good")
    undone, whole = take(Codex, rollout.lines).records
    assert told(undone)[-1] == ("assistant", "undone")
    assert told(whole)[1:] == [("user", "keep"), ("assistant", "kept"), ("user", "right"), ("assistant", "good")]
    assert undone["meta"]["ended"] == "undone"


def test_a_fork_repeats_the_header_of_its_origin_and_shares_its_session() -> None:
    origin, middle = "019a0000-0000-7000-8000-000000000001", "019a0000-0000-7000-8000-000000000002"
    fork = Rollout(forked_from_id=middle)
    fork.line("session_meta", {"id": middle, "forked_from_id": origin, "timestamp": "2026-08-10T13:00:00Z"})
    fork.line("session_meta", {"id": origin, "timestamp": "2026-08-10T12:00:00Z"})
    fork.user("hi")
    fork.answer("hello")
    taken = take(Codex, fork.lines)
    assert taken.one["session_id"] == origin
    assert taken.one["meta"]["session"] == ID
    assert taken.passed["headers of the sessions it was forked from"] == 2


def test_rollouts_one_after_the_other_are_sessions_of_their_own() -> None:
    lines = []
    for number in range(3):
        one = Rollout(f"session-{number}")
        one.user("hi")
        one.answer(f"hello {number}")
        lines += one.lines
    assert [record["session_id"] for record in take(Codex, lines).records] == ["session-0", "session-1", "session-2"]


def test_an_interruption_and_an_error_are_outcomes(rollout: Rollout) -> None:
    rollout.user("hi")
    rollout.answer("hello")
    rollout.event("turn_aborted", reason="interrupted")
    assert take(Codex, rollout.lines).said == [({"outcome": {"status": "interrupted"}},)]
    rollout.event("error", message="usage limit")
    assert take(Codex, rollout.lines).said == [({"outcome": {"status": "error", "error": "usage limit"}},)]
    rollout.user("again")
    rollout.answer("fine")
    assert take(Codex, rollout.lines).said == [()]


def test_a_session_without_an_answer_is_counted(rollout: Rollout) -> None:
    rollout.user("hi")
    assert take(Codex, rollout.lines).passed["conversations without an answer"] == 1


def test_a_session_that_grew_is_another_record_and_the_same_file_the_same(rollout: Rollout) -> None:
    rollout.user("hi")
    rollout.answer("hello")
    first = take(Codex, rollout.lines).one["id"]
    assert take(Codex, rollout.lines).one["id"] == first
    rollout.answer("and more")
    assert take(Codex, rollout.lines).one["id"] != first


def test_unknown_lines_and_items_of_later_versions_do_no_harm(rollout: Rollout) -> None:
    rollout.user("hi")
    rollout.line("world_state", {"x": 1})
    rollout.item("tool_search_call", call_id="s", execution="client", arguments={"query": "mail"})
    rollout.item("tool_search_output", call_id="s", status="completed", tools=[{"name": "send"}])
    rollout.answer("done")
    taken = take(Codex, rollout.lines)
    assert told(taken.one)[2:] == [("assistant", None), ("tool", '[{"name":"send"}]'), ("assistant", "done")]
    assert taken.passed["lines about other things"] == 1


@pytest.mark.parametrize("value", [3, {}, {"type": "response_item"}, {"type": "response_item", "payload": {"type": "message"}},
                                   {"timestamp": "soon", "type": "event_msg", "payload": {}}])  # fmt: skip
def test_what_doesnt_fit_is_named(value: Any) -> None:
    assert len(take(Codex, [value]).unfit) == 1
