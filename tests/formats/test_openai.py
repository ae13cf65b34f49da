"""OpenAI's files for fine-tuning become records that say the same, and what our fields don't hold is kept."""

from __future__ import annotations

import json
from typing import Any

import pytest

from treering.errors import UsageError
from treering.formats import Found, Unfit
from treering.formats.chat import message, name_tools, original, taken, tool_call
from treering.formats.known import recognise
from treering.formats.openai import OpenAIImporter
from treering.schema import RecordType

CHAT, PREFERENCE = RecordType.of("chat"), RecordType.of("preference")
CALL = {"id": "call_1", "type": "function", "function": {"name": "find", "arguments": '{"b": 1,  "a":[2]}'}}
TALK: list[dict[str, Any]] = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Where is it?", "name": "anna"},
    {"role": "assistant", "tool_calls": [CALL], "weight": 0},
    {"role": "tool", "tool_call_id": "call_1", "content": "[]"},
    {"role": "assistant", "content": "On its way.", "weight": 1},
]
TOOLS = [{"type": "function", "function": {"name": "find", "parameters": {"type": "object", "properties": {}}}}]


def fed(value: Any, target: RecordType = CHAT, *, line: int = 1) -> Any:
    (outcome,) = OpenAIImporter(target, "/here/file.jsonl").feed(line, value, json.dumps(value).encode())
    return outcome


def valid(record: dict[str, Any], target: RecordType = CHAT) -> dict[str, Any]:
    """The record as it is stored."""
    checked = target.validate([record])
    assert checked.refused == []
    row: dict[str, Any] = checked.batch.to_pylist()[0]
    return row


def without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: without_nulls(one) for key, one in value.items() if one is not None}
    return [without_nulls(one) for one in value] if isinstance(value, list) else value


def test_a_conversation_keeps_roles_names_weights_calls_and_results() -> None:
    row = valid(fed({"messages": TALK, "tools": TOOLS, "parallel_tool_calls": False}).record)
    assert without_nulls(row["messages"]) == TALK
    assert json.loads(row["tools"]) == TOOLS
    assert json.loads(row["meta"]) == {"kept": {"parallel_tool_calls": False}}


def test_arguments_stay_the_text_they_are_byte_for_byte() -> None:
    for text in ('{"b": 1,  "a":[2]}', "", "not JSON", '{"cut": "o'):
        call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": text}}
        row = valid(fed({"messages": [{"role": "assistant", "content": None, "tool_calls": [call]}]}).record)
        assert row["messages"][0]["tool_calls"][0]["function"]["arguments"] == text


def test_content_in_parts_becomes_text_and_the_parts_are_kept() -> None:
    parts = [
        {"type": "text", "text": "What is this?"},
        {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}},
    ]
    said = [
        {"role": "user", "content": parts},
        {"role": "assistant", "content": [{"type": "refusal", "refusal": "No."}]},
    ]
    record = fed({"messages": said}).record
    row = valid(record)
    assert [one["content"] for one in row["messages"]] == ["What is this?\n[image_url]", "No."]
    assert original(record["messages"], json.loads(row["meta"])["kept"]["messages"]) == said


def test_what_the_sdk_writes_for_a_reply_is_taken_with_its_nulls() -> None:
    openai = pytest.importorskip("openai.types.chat")
    reply = openai.ChatCompletionMessage.model_validate(
        {"role": "assistant", "content": None, "refusal": None, "tool_calls": [CALL], "annotations": []}
    )
    refused = openai.ChatCompletionMessage(role="assistant", content=None, refusal="I won't.")
    line = {"messages": [{"role": "user", "content": "x"}, reply.model_dump(), refused.model_dump(mode="json")]}
    record = fed(line).record
    row = valid(record)
    assert without_nulls(row["messages"][1]) == {"role": "assistant", "tool_calls": [CALL]}
    assert row["messages"][2]["content"] == "I won't."
    kept = json.loads(row["meta"])["kept"]["messages"]
    assert kept["1"] == {"annotations": []}
    assert original(record["messages"], kept)[2] == {"role": "assistant", "refusal": "I won't."}


def test_calls_and_results_of_old_become_tool_calls() -> None:
    said = [
        {"role": "assistant", "content": None, "function_call": {"name": "f", "arguments": "{}"}},
        {"role": "function", "name": "f", "content": "7"},
    ]
    record = fed({"messages": said, "functions": [{"name": "f", "parameters": {}}]}).record
    row = valid(record)
    assert row["messages"][0]["tool_calls"][0]["function"] == {"name": "f", "arguments": "{}"}
    assert [one["role"] for one in row["messages"]] == ["assistant", "tool"]
    kept = json.loads(row["meta"])["kept"]
    assert original(record["messages"], kept["messages"]) == [without_nulls(one) for one in said]
    assert kept["functions"] == [{"name": "f", "parameters": {}}]


def test_preferences_become_prompt_chosen_and_rejected() -> None:
    line = {
        "input": {"messages": TALK[:2], "tools": TOOLS, "parallel_tool_calls": True},
        "preferred_output": [{"role": "assistant", "content": "Gladly."}],
        "non_preferred_output": [{"role": "assistant", "content": "No."}],
    }
    row = valid(fed(line, PREFERENCE).record, PREFERENCE)
    assert without_nulls(row["prompt"]) == TALK[:2]
    assert [one[0]["content"] for one in (row["chosen"], row["rejected"])] == ["Gladly.", "No."]
    assert json.loads(row["tools"]) == TOOLS
    assert json.loads(row["meta"])["kept"]["input"] == {"parallel_tool_calls": True}


def test_a_corpus_of_another_type_is_named_before_anything_is_stored_and_a_stray_line_is_refused() -> None:
    with pytest.raises(UsageError, match="--schema preference"):
        fed({"input": {"messages": []}, "preferred_output": [], "non_preferred_output": []}, CHAT)
    with pytest.raises(UsageError, match="can't fill") as failure:
        OpenAIImporter(RecordType.of("labelled"), None)
    assert failure.value.code == "wrong-record-type"
    importer = OpenAIImporter(CHAT, None)
    assert isinstance(next(iter(importer.feed(1, {"messages": TALK}, b"")), None), Found)
    assert isinstance(next(iter(importer.feed(2, {"input": {}, "preferred_output": []}, b"")), None), Unfit)


@pytest.mark.parametrize("value", [7, "text", [], {}, {"prompt": "x"}, {"input": 3, "preferred_output": []}])
def test_what_is_neither_is_unfit_and_kept(value: Any) -> None:
    target = PREFERENCE if isinstance(value, dict) else CHAT
    outcome = fed(value, target)
    assert isinstance(outcome, Unfit)
    assert outcome.kept == value
    assert outcome.problems


def test_broken_messages_are_left_for_validation_to_name() -> None:
    for messages in ("text", [], [3], [{"content": "x"}], [{"role": "assistant", "tool_calls": [{"function": 1}]}]):
        checked = CHAT.validate([fed({"messages": messages}).record])
        assert checked.refused, messages
        assert checked.refused[0][1][0].loc[0] == "messages"


def test_a_file_at_the_same_place_gives_the_same_ids_and_equal_lines_are_records_of_their_own() -> None:
    def ids() -> list[str]:
        importer = OpenAIImporter(CHAT, "/here/file.jsonl")
        return [next(iter(importer.feed(n, {"messages": TALK}, b"the same")), None).record["id"] for n in range(3)]  # type: ignore[union-attr]

    assert ids() == ids()
    assert len(set(ids())) == 3
    assert fed({"messages": TALK, "id": "mine"}).record["id"] == "mine"


def test_common_fields_in_a_line_are_the_records_and_other_members_are_kept() -> None:
    record = fed({"messages": TALK, "id": "a", "session_id": "s", "meta": {"mine": 1}, "source": "web"}).record
    assert (record["id"], record["session_id"]) == ("a", "s")
    assert record["meta"] == {"mine": 1, "kept": {"source": "web"}}


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ({"messages": TALK}, "openai"),
        ({"messages": TALK, "tools": TOOLS, "parallel_tool_calls": True}, "openai"),
        ({"messages": TALK, "id": "x", "session_id": "s"}, "records"),
        ({"input": {"messages": TALK}, "preferred_output": [], "non_preferred_output": []}, "openai"),
        ({"prompt": "a", "completion": "b"}, "trl"),
        ({"prompt": "a", "completion": "b", "label": True}, "trl"),
        ({"prompt": TALK, "chosen": TALK, "rejected": TALK}, "trl"),
        ({"text": "a"}, "trl"),
        ({"text": "a", "label": "b"}, "records"),
        ({"tokens": [1, 2]}, "records"),
        ({"messages": [{"role": "assistant", "thinking": "hm", "content": "x"}]}, "trl"),
        ({"run_type": "llm", "inputs": {}}, None),
        ({"type": "user", "message": {"role": "user"}, "sessionId": "x"}, None),
        ({"session_id": "x", "hook_event_name": "Stop", "prompt": "x"}, None),
    ],
)
def test_a_value_is_of_one_format_at_most(value: dict[str, Any], expected: str | None) -> None:
    found, broken = recognise(value, CHAT)
    assert broken == []
    assert [one.name for one in found if one.name in ("openai", "trl", "records")] == ([expected] if expected else [])


def test_what_formats_say_by_themselves_becomes_messages_whose_results_are_named() -> None:
    said = [
        message(
            "assistant", None, tool_calls=[tool_call("find", {"z": 1, "a": 2}, "c1"), tool_call("look", "raw", "c2")]
        ),
        message("tool", "3", tool_call_id="c2"),
        message("tool", "4", tool_call_id="unknown"),
    ]
    name_tools(said)
    assert [one.get("name") for one in said] == [None, "look", None]
    assert said[0]["tool_calls"][0]["function"]["arguments"] == '{"z":1,"a":2}'  # in the order it came
    assert said[0]["tool_calls"][1]["function"]["arguments"] == "raw"
    assert taken("no message") == ("no message", {})
