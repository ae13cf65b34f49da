"""Claude Code: transcripts in the shapes of versions 1.0 to 2.1, with the ways in which their lines hang together."""

from __future__ import annotations

from itertools import count
from typing import Any

import pytest

from tests.formats.speaking import take
from treering.formats.claude_code import ClaudeCode

SESSION = "3f2a0000-0000-4000-8000-000000000000"


class Transcript:
    """Writes lines as the program does; each hangs on the one before unless said otherwise."""

    def __init__(self, session: str = SESSION) -> None:
        self.session = session
        self.lines: list[dict[str, Any]] = []
        self._numbers = count(1)
        self.last: str | None = None

    def line(self, kind: str, *, parent: Any = ..., **more: Any) -> str:
        number = next(self._numbers)
        uuid = f"{kind[:1]}{number}"
        self.lines.append(
            {
                "parentUuid": self.last if parent is ... else parent, "isSidechain": False, "userType": "external",
                "cwd": "/home/alice/app", "sessionId": self.session, "version": "2.1.230", "gitBranch": "main",
                "type": kind, "uuid": uuid, "timestamp": f"2026-08-{10 + number // 3600:02}T12:{number // 60 % 60:02}:{number % 60:02}.123Z", **more,
            }
        )  # fmt: skip
        self.last = uuid
        return uuid

    def user(self, content: Any, **more: Any) -> str:
        return self.line("user", message={"role": "user", "content": content}, **more)

    def result(self, call: str, content: Any, *, is_error: bool | None = None, **more: Any) -> str:
        block = {"type": "tool_result", "tool_use_id": call, "content": content}
        if is_error is not None:
            block["is_error"] = is_error
        return self.user([block], toolUseResult={"stdout": "for the screen"}, **more)

    def assistant(
        self, *blocks: Any, message_id: str | None = None, parent: Any = ..., model: str = "claude-fable-5", **more: Any
    ) -> str:
        content = [{"type": "text", "text": one} if isinstance(one, str) else one for one in blocks]
        usage = {"input_tokens": 3, "output_tokens": 5, "cache_read_input_tokens": 100}
        message = {"id": message_id or f"msg_{next(self._numbers)}", "type": "message", "role": "assistant", "model": model,
                   "content": content, "stop_reason": "end_turn", "usage": usage}  # fmt: skip
        return self.line("assistant", parent=parent, message=message, requestId="req_1", **more)


def call(name: str, tool: str = "Bash", **given: Any) -> dict[str, Any]:
    return {"type": "tool_use", "id": name, "name": tool, "input": given}


def thinking(text: str) -> dict[str, Any]:
    return {"type": "thinking", "thinking": text, "signature": "EqQB"}


@pytest.fixture
def script() -> Transcript:
    return Transcript()


def told(record: dict[str, Any]) -> list[tuple[str, str | None]]:
    return [(one["role"], one.get("content")) for one in record["messages"]]


def test_a_session_is_a_record(script: Transcript) -> None:
    script.lines.append({"type": "file-history-snapshot", "messageId": "m", "snapshot": {}, "isSnapshotUpdate": False})
    script.user("List files")
    script.assistant(thinking("ls it is"), message_id="m1")  # an answer is written a block a line
    script.assistant("I'll look.", message_id="m1")
    script.assistant(call("t1", command="ls"), message_id="m1")
    script.result("t1", [{"type": "text", "text": "a.txt"}, {"type": "image", "source": {
        "type": "base64", "media_type": "image/png", "data": "iVBORw0KGgo="}}])  # fmt: skip
    script.assistant("One file.")
    script.lines.append({"type": "ai-title", "aiTitle": "Listing", "sessionId": SESSION})
    assert all(ClaudeCode.recognises(one) for one in script.lines)
    taken = take(ClaudeCode, script.lines)
    record = taken.one
    assert record["messages"] == [
        {"role": "user", "content": "List files"},
        {"role": "assistant", "content": "I'll look.", "reasoning_content": "ls it is", "tool_calls": [
            {"id": "t1", "type": "function", "function": {"name": "Bash", "arguments": '{"command":"ls"}'}}]},
        {"role": "tool", "content": "a.txt\n[image image/png, 8 bytes, 4c4b6a3b]", "tool_call_id": "t1", "name": "Bash"},
        {"role": "assistant", "content": "One file."},
    ]  # fmt: skip
    assert (record["session_id"], record["origin"]) == (SESSION, "model:claude-fable-5")
    assert record["ts"].isoformat().startswith("2026-08-10T12:00:")
    meta = record["meta"]
    assert (meta["title"], meta["cwd"], meta["git_branch"]) == ("Listing", "/home/alice/app", "main")
    assert meta["usage"] == {
        "calls": 2,
        "input_tokens": 6,
        "output_tokens": 10,
        "cache_read_tokens": 200,
    }  # not once a line
    assert taken.passed == {"lines about other things": 1, "titles and summaries": 1}


def test_calls_made_at_once_are_no_branch(script: Transcript) -> None:
    script.user("Look twice")
    first = script.assistant(call("t1", "Read"), message_id="m1")
    second = script.assistant(call("t2", "Grep"), message_id="m1")
    script.result("t2", "two", parent=second)
    script.result("t1", "one", parent=first)  # hangs on another line of the same answer
    script.assistant("Done.", parent=script.lines[3]["uuid"])
    taken = take(ClaudeCode, script.lines)
    assert told(taken.one) == [
        ("user", "Look twice"), ("assistant", None), ("tool", "one"), ("tool", "two"), ("assistant", "Done."),
    ]  # fmt: skip
    assert [one.get("name") for one in taken.messages if one["role"] == "tool"] == ["Read", "Grep"]


def test_calls_whose_results_come_between_them_are_one_answer(script: Transcript) -> None:
    script.user("Look twice")
    script.assistant(call("t1"), message_id="m1")
    script.result("t1", "one")
    script.assistant(call("t2"), message_id="m1")
    script.result("t2", "two")
    script.assistant("Done.")
    messages = take(ClaudeCode, script.lines).messages
    assert [one["role"] for one in messages] == ["user", "assistant", "tool", "tool", "assistant"]
    assert len(messages[1]["tool_calls"]) == 2


def test_whoever_rewinds_makes_a_branch_and_both_are_kept(script: Transcript) -> None:
    script.user("hi")
    fork = script.assistant("hello")
    script.user("first try", parent=fork)
    script.assistant("one")
    script.user("second try", parent=fork)
    script.assistant("two")
    taken = take(ClaudeCode, script.lines)
    assert [told(one)[2:] for one in taken.records] == [
        [("user", "first try"), ("assistant", "one")],
        [("user", "second try"), ("assistant", "two")],
    ]
    assert len({one["id"] for one in taken.records}) == 2
    assert {one["session_id"] for one in taken.records} == {SESSION}


def test_a_branch_without_an_answer_is_counted(script: Transcript) -> None:
    script.user("hi")
    fork = script.assistant("hello")
    script.user("never sent", parent=fork)
    script.user("sent", parent=fork)
    script.assistant("answered")
    taken = take(ClaudeCode, script.lines)
    assert told(taken.one)[2:] == [("user", "sent"), ("assistant", "answered")]
    assert taken.passed == {"branches without an answer": 1}


def test_what_waits_for_its_answer_stays_in_its_conversation(script: Transcript) -> None:
    script.user("hi")
    fork = script.assistant("hello")
    script.user("older", parent=fork)
    script.user("newer", parent=fork)
    taken = take(ClaudeCode, script.lines)
    assert told(taken.one)[-1] == ("user", "newer")
    assert take(ClaudeCode, Transcript().lines).found == []
    script = Transcript()
    script.user("only a question")
    assert take(ClaudeCode, script.lines).passed == {"branches without an answer": 1}


def test_a_subagent_is_a_record_of_its_own_in_the_same_session(script: Transcript) -> None:
    script.user("delegate")
    script.assistant(call("t1", "Task", prompt="count"))
    script.user("count", parent=None, isSidechain=True, agentId="a1")
    script.assistant("1", isSidechain=True, agentId="a1")
    script.result("t1", "1", parent=script.lines[1]["uuid"])
    script.assistant("It is 1.")
    main, sub = take(ClaudeCode, script.lines).records
    assert told(main)[-1] == ("assistant", "It is 1.")
    assert told(sub) == [("user", "count"), ("assistant", "1")]
    assert (sub["meta"]["is_subagent"], sub["meta"]["agent_id"]) == (True, "a1")
    assert "is_subagent" not in main["meta"]
    assert main["session_id"] == sub["session_id"]


def test_a_compaction_ends_one_record_and_its_summary_begins_another(script: Transcript) -> None:
    script.user("hi")
    last = script.assistant("hello")
    script.line("system", parent=None, logicalParentUuid=last, subtype="compact_boundary", content="Conversation compacted",
                compactMetadata={"trigger": "auto", "preTokens": 155000})  # fmt: skip
    script.user("This session is being continued…", isCompactSummary=True, isVisibleInTranscriptOnly=True)
    script.user("go on")
    script.assistant("going")
    before, after = take(ClaudeCode, script.lines).records
    assert told(before) == [("user", "hi"), ("assistant", "hello")]
    assert told(after)[0] == ("user", "This session is being continued…")
    assert after["meta"]["is_compacted"] is True


def test_lines_that_say_nothing_link_those_that_do(script: Transcript) -> None:
    script.user("hi")
    script.line("attachment", attachment={"type": "hook_success", "content": "x"})
    script.line("progress", data={})
    script.assistant("hello")
    script.line("attachment", attachment={"type": "queued_command", "prompt": "and quickly", "commandMode": "prompt"})
    script.assistant("done")
    taken = take(ClaudeCode, script.lines)
    assert told(taken.one) == [
        ("user", "hi"), ("assistant", "hello"), ("user", "and quickly"), ("assistant", "done"),
    ]  # fmt: skip
    assert taken.passed == {"lines about other things": 2}


def test_errors_of_the_api_and_interruptions_are_outcomes(script: Transcript) -> None:
    script.user("hi")
    script.assistant("hello")
    script.user("more")
    script.assistant("API Error: 529 overloaded", model="<synthetic>", isApiErrorMessage=True)
    taken = take(ClaudeCode, script.lines)
    assert told(taken.one)[-1] == ("user", "more")
    assert taken.said == [({"outcome": {"status": "error", "error": "API Error: 529 overloaded"}},)]
    script = Transcript()
    script.user("hi")
    script.assistant("hello")
    script.user([{"type": "text", "text": "[Request interrupted by user]"}])
    assert take(ClaudeCode, script.lines).said == [({"outcome": {"status": "interrupted"}},)]


def test_a_failed_tool_is_named(script: Transcript) -> None:
    script.user("hi")
    script.assistant(call("t1"))
    script.result("t1", "Exit code 1", is_error=True)
    script.assistant("It failed.")
    assert take(ClaudeCode, script.lines).one["meta"]["failed_calls"] == ["t1"]


def test_a_summary_titles_the_branch_of_its_leaf(script: Transcript) -> None:
    script.user("hi")
    leaf = script.assistant("hello")
    record = take(ClaudeCode, [{"type": "summary", "summary": "Greeting", "leafUuid": leaf}, *script.lines]).one
    assert record["meta"]["title"] == "Greeting"


def test_the_order_of_lines_and_repeated_lines_change_nothing(script: Transcript) -> None:
    script.user("hi")
    script.assistant("part one", message_id="m1")
    script.assistant(call("t1"), message_id="m1")
    script.result("t1", "x")
    script.assistant("done")
    once = take(ClaudeCode, script.lines)
    twice = take(ClaudeCode, script.lines * 2)
    assert twice.records == once.records
    assert twice.passed == {"lines that stand twice": 5}


def test_a_session_that_grew_is_another_record_and_the_same_file_the_same(script: Transcript) -> None:
    script.user("hi")
    script.assistant("hello")
    first = take(ClaudeCode, script.lines).one["id"]
    assert take(ClaudeCode, script.lines).one["id"] == first
    script.user("more")
    script.assistant("ok")
    assert take(ClaudeCode, script.lines).one["id"] != first


def test_a_lost_parent_and_a_circle_begin_conversations_of_their_own(script: Transcript) -> None:
    script.user("hi", parent="gone")
    script.assistant("hello")
    assert told(take(ClaudeCode, script.lines).one) == [("user", "hi"), ("assistant", "hello")]
    script.lines[0]["parentUuid"] = script.lines[1]["uuid"]
    taken = take(ClaudeCode, script.lines)
    assert sum(len(record["messages"]) for record in taken.records) == 2


def test_a_circle_that_is_met_at_the_results_of_calls_is_cut_at_their_answer(script: Transcript) -> None:
    script.assistant("after all", parent="u5")
    script.assistant("first", call("c1"), parent="u7")
    script.assistant("second", call("c2"), parent="u5")
    first, second = (line["uuid"] for line in script.lines[1:])
    one, two = script.result("c1", "r1", parent=first), script.result("c2", "r2", parent=second)
    script.lines[0]["parentUuid"] = script.lines[2]["parentUuid"] = one
    script.lines[1]["parentUuid"] = two
    said = [[content for _, content in told(record)] for record in take(ClaudeCode, script.lines).records]
    assert said == [["first", "r1", "after all"], ["first", "r1", "second", "r2"]]


def test_many_sessions_in_a_stream_are_given_as_they_end(monkeypatch: pytest.MonkeyPatch) -> None:
    from tests.formats.speaking import CHAT
    from treering.formats import Found, claude_code

    monkeypatch.setattr(claude_code, "HELD_BYTES", 1_000)
    importer = ClaudeCode(CHAT, None)
    early = 0
    for number in range(20):
        script = Transcript(f"session-{number}")
        script.user("hi")
        script.assistant("hello")
        for line in script.lines:
            renamed = {**line, "uuid": f"{number}-{line['uuid']}"}
            if line["parentUuid"] is not None:
                renamed["parentUuid"] = f"{number}-{line['parentUuid']}"
            early += sum(isinstance(one, Found) for one in importer.feed(1, renamed, b"x" * 600))
        assert importer._size <= 1_200
    assert early + sum(isinstance(one, Found) for one in importer.finish()) == 20


def test_a_session_that_was_resumed_under_another_id_is_not_cut(
    script: Transcript, monkeypatch: pytest.MonkeyPatch
) -> None:
    from treering.formats import claude_code

    monkeypatch.setattr(claude_code, "HELD_BYTES", 10)
    script.user("hi")
    script.assistant("hello")
    script.session = "resumed"
    script.user("still here?")
    script.assistant("yes")
    taken = take(ClaudeCode, script.lines)
    assert len(taken.messages) == 4
    assert taken.one["session_id"] == "resumed"


@pytest.mark.parametrize(
    ("value", "loc"),
    [
        (3, ("type",)), ({"type": "user", "uuid": "u", "sessionId": "s"}, ("message",)),
        ({"type": "user", "sessionId": "s", "message": {"role": "user", "content": "x"}}, ("uuid",)),
    ],
)  # fmt: skip
def test_what_doesnt_fit_is_named(value: Any, loc: Any) -> None:
    (unfit,) = take(ClaudeCode, [value]).unfit
    assert unfit.problems[0].loc == loc


def test_a_deep_transcript_is_read_without_recursion(script: Transcript) -> None:
    for i in range(5_000):
        script.user(f"q{i}")
        script.assistant(f"a{i}")
    assert len(take(ClaudeCode, script.lines).messages) == 10_000
