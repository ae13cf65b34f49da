"""ATIF: trajectories as the format's own models write them."""

from __future__ import annotations

import json
from typing import Any

import pytest
from atif import (
    Agent,
    ContentPart,
    FinalMetrics,
    ImageSource,
    Observation,
    ObservationResult,
    Step,
    ToolCall,
    Trajectory,
)
from atif import SubagentTrajectoryRef as Ref

from tests.formats.speaking import take
from treering.formats.atif import Atif

TOOLS = [{"type": "function", "function": {"name": "bash", "parameters": {"type": "object"}}}]


def steps() -> list[Step]:
    return [
        Step(step_id=1, source="system", message="Be brief."),
        Step(step_id=2, source="user", message="old question", is_copied_context=True),
        Step(step_id=3, source="agent", message="old answer", is_copied_context=True),
        Step(step_id=4, source="user", message=[
            ContentPart(type="text", text="List files."),
            ContentPart(type="image", source=ImageSource(media_type="image/png", path="shots/1.png"))]),
        Step(step_id=5, source="agent", message="", reasoning_content="ls it is", model_name="gpt-5-mini",
             tool_calls=[ToolCall(tool_call_id="c1", function_name="bash", arguments={"cmd": "ls"}),
                         ToolCall(tool_call_id="c2", function_name="bash", arguments={})],
             observation=Observation(results=[ObservationResult(source_call_id="c1", content="a.txt"),
                                              ObservationResult(source_call_id="c2", content="")])),
        Step(step_id=6, source="agent", message="One file: a.txt", timestamp="2026-11-22T12:00:00Z"),
    ]  # fmt: skip


def trajectory(**more: Any) -> Any:
    given: dict[str, Any] = {
        "schema_version": "ATIF-v1.8", "session_id": "s-1", "trajectory_id": "t-1",
        "agent": Agent(name="terminus", version="2.0", model_name="gpt-5", tool_definitions=TOOLS), "steps": steps(),
        "final_metrics": FinalMetrics(total_prompt_tokens=10, total_completion_tokens=4),
    }  # fmt: skip
    return Trajectory(**{**given, **more}).to_json_dict()


def test_a_trajectory_is_a_record_without_the_steps_it_was_given() -> None:
    assert Atif.recognises(trajectory())
    taken = take(Atif, [trajectory()])
    record = taken.one
    assert record["messages"] == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "List files.\n[image image/png, shots/1.png]"},
        {"role": "assistant", "reasoning_content": "ls it is", "tool_calls": [
            {"id": "c1", "type": "function", "function": {"name": "bash", "arguments": '{"cmd":"ls"}'}},
            {"id": "c2", "type": "function", "function": {"name": "bash", "arguments": "{}"}}]},
        {"role": "tool", "content": "a.txt", "tool_call_id": "c1", "name": "bash"},
        {"role": "tool", "content": "", "tool_call_id": "c2", "name": "bash"},
        {"role": "assistant", "content": "One file: a.txt"},
    ]  # fmt: skip
    assert json.loads(record["tools"]) == TOOLS
    assert (record["session_id"], record["origin"]) == ("s-1", "model:gpt-5-mini")
    assert record["ts"].isoformat() == "2026-11-22T12:00:00+00:00"
    assert record["meta"]["agent"] == "terminus"
    assert record["meta"]["usage"] == {"input_tokens": 10, "output_tokens": 4}
    assert taken.passed == {"copied steps": 2}


def test_subagents_inside_are_records_of_their_own_in_the_same_session() -> None:
    inner = Trajectory(schema_version="ATIF-v1.8", trajectory_id="sub-1", agent=Agent(name="helper", version="1"), steps=[
        Step(step_id=1, source="user", message="count"), Step(step_id=2, source="agent", message="1")])  # fmt: skip
    outer = [
        Step(step_id=1, source="user", message="go"),
        Step(step_id=2, source="agent", message="", tool_calls=[
            ToolCall(tool_call_id="c", function_name="delegate", arguments={})], observation=Observation(results=[
                ObservationResult(source_call_id="c", subagent_trajectory_ref=[Ref(trajectory_id="sub-1")])])),
    ]  # fmt: skip
    taken = take(Atif, [trajectory(steps=outer, subagent_trajectories=[inner])])
    main, sub = taken.records
    assert main["session_id"] == sub["session_id"] == "s-1"
    assert main["messages"][-1]["content"] == "[result of a subagent]"
    assert sub["meta"]["is_subagent"] is True
    assert [one["content"] for one in sub["messages"]] == ["count", "1"]


def test_steps_that_no_model_was_asked_for_weigh_nothing() -> None:
    given = [Step(step_id=1, source="user", message="go"),
             Step(step_id=2, source="agent", message="dispatched", llm_call_count=0),
             Step(step_id=3, source="agent", message="thought", llm_call_count=1)]  # fmt: skip
    assert [one.get("weight") for one in take(Atif, [trajectory(steps=given)]).messages] == [None, 0, None]


def test_what_the_environment_says_unasked_reaches_the_model_as_a_users_message() -> None:
    given = [Step(step_id=1, source="agent", message="run", observation=Observation(
        results=[ObservationResult(content="terminal output")]))]  # fmt: skip
    assert take(Atif, [trajectory(steps=given)]).messages == [
        {"role": "assistant", "content": "run"},
        {"role": "user", "content": "terminal output"},
    ]


def test_the_same_document_is_the_same_record_and_a_longer_one_another() -> None:
    longer = [*steps(), Step(step_id=7, source="user", message="more"), Step(step_id=8, source="agent", message="ok")]
    ids = [take(Atif, [trajectory(**more)]).one["id"] for more in ({}, {}, {"steps": longer})]
    assert ids[0] == ids[1] != ids[2]


def test_segments_that_share_a_session_are_told_apart() -> None:
    def one(text: str) -> Any:
        given = [Step(step_id=1, source="user", message=text), Step(step_id=2, source="agent", message="ok")]
        return trajectory(trajectory_id=None, schema_version="ATIF-v1.4", steps=given)

    assert len({take(Atif, [one(text)]).one["id"] for text in ("a", "b", "a")}) == 2


def test_only_copied_steps_are_no_record() -> None:
    given = [Step(step_id=1, source="user", message="x", is_copied_context=True)]
    assert take(Atif, [trajectory(steps=given)]).passed == {
        "copied steps": 1,
        "trajectories without steps of their own": 1,
    }


@pytest.mark.parametrize(
    ("change", "loc"),
    [
        ({"steps": [{"step_id": 1, "source": "narrator", "message": "x"}]}, ("steps", 0, "source")),
        ({"steps": [3]}, ("steps", 0)),
        ({"steps": None}, ()),
        ({"steps": [{"step_id": 1, "source": "agent", "message": "", "tool_calls": [{}]}]},
         ("steps", 0, "tool_calls", 0, "function_name")),
        ({"steps": [{"step_id": 1, "source": "user", "message": "x", "timestamp": "soon"}]}, ("steps", 0, "timestamp")),
    ],
)  # fmt: skip
def test_what_doesnt_fit_is_named(change: Any, loc: Any) -> None:
    (unfit,) = take(Atif, [{**trajectory(), **change}]).unfit
    assert unfit.problems[0].loc == loc
