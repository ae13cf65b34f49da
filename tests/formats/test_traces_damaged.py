"""Damaged input: whatever stands where, importers answer by records, by counts, or by named problems; they never fail."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.formats import test_claude_code, test_codex, test_hooks, test_langfuse, test_langsmith
from tests.formats.speaking import CHAT, Traced
from tests.formats.test_traces_stored import SAMPLES
from treering.formats import Found, Passed, Unfit
from treering.formats.known import find_importer, importer_names

anything = st.one_of(
    st.none(), st.booleans(), st.integers(-(2**70), 2**70), st.floats(allow_nan=False, allow_infinity=False),
    st.text(st.characters(exclude_categories=["Cs"]), max_size=8), st.sampled_from(["", "[", "{", "[3]", '{"role": "user"}', "user"]),
    st.lists(st.none() | st.integers() | st.just({}) | st.text("ab", max_size=2), max_size=3),
    st.dictionaries(st.sampled_from(["type", "role", "content", "id", "text", "parts", "name", "message"]),
                    st.none() | st.integers() | st.text("ab", max_size=2) | st.lists(st.integers(), max_size=2), max_size=3),
)  # fmt: skip


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Paths of everything inside a value; text that holds JSON is looked into, too."""
    found = [path] if path else []
    if isinstance(value, str) and value[:1] in ("[", "{"):
        try:
            return found + places(json.loads(value), (*path, json))
        except ValueError:
            return found
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, one in inner:
        found += places(one, (*path, key))
    return found


def replaced(value: Any, path: tuple[Any, ...], by: Any) -> Any:
    if not path:
        return by
    if path[0] is json and len(path) == 1:
        return json.dumps(None if by is ... else by)
    if path[0] is json:
        return json.dumps(replaced(json.loads(value), path[1:], by))
    value = copy.copy(value)
    if by is ... and len(path) == 1:
        del value[path[0]]
    else:
        value[path[0]] = replaced(value[path[0]], path[1:], by)
    return value


@pytest.mark.parametrize("name", SAMPLES)
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_whatever_stands_anywhere_is_answered(name: str, data: st.DataObject) -> None:
    values = list(WHOLE[name])
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(values) - 1))
        path = data.draw(st.sampled_from(places(values[at]) or [()]))
        by = data.draw(st.just(...) | anything) if path else data.draw(anything)
        values[at] = replaced(values[at], path, by)
    importer = find_importer(name)(CHAT, "/data/x.jsonl")
    outcomes = []
    for line, value in enumerate(values, start=1):
        for each in importer_names():
            find_importer(each).recognises(value)
        outcomes += list(importer.feed(line, value, json.dumps(value).encode()))
    outcomes += list(importer.finish())
    assert all(isinstance(one, Found | Passed | Unfit) for one in outcomes)
    for one in outcomes:
        if isinstance(one, Unfit):
            assert one.problems
            json.dumps(one.kept)
    CHAT.validate([one.record for one in outcomes if isinstance(one, Found)])


def richer() -> dict[str, list[Any]]:
    """Values with calls, results and the other shapes of each format."""
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    script = test_claude_code.Transcript()
    script.user([{"type": "text", "text": "hi"}, {"type": "image", "source": {"type": "base64", "data": "AAAA"}}])
    script.assistant(test_claude_code.thinking("hm"), test_claude_code.call("t", a=1))
    script.result("t", [{"type": "text", "text": "x"}], is_error=True)
    script.assistant("done")
    one = test_codex.Rollout()
    one.item("reasoning", summary=[{"type": "summary_text", "text": "hm"}])
    one.item("function_call", name="f", arguments="{}", call_id="c")
    one.item("function_call_output", call_id="c", output={"content": "x", "success": False})
    one.line("compacted", {"message": "m", "replacement_history": [{"type": "message", "role": "user", "content": []}]})
    one.event("thread_rolled_back", num_turns=1)
    asked = [[test_langsmith.constructor("HumanMessage", content="hi"),
              test_langsmith.constructor("AIMessage", content="", tool_calls=[{"name": "f", "args": {}, "id": "c"}])]]  # fmt: skip
    traced = Traced()
    parts = [{"role": "assistant", "parts": [{"type": "tool_call", "id": "c", "name": "f", "arguments": {}}]},
             {"role": "tool", "parts": [{"type": "tool_call_response", "id": "c", "response": {}}]},
             {"role": "user", "parts": [{"type": "blob", "modality": "image", "content": "AAAA"}]}]  # fmt: skip
    traced.record(
        {"gen_ai.input.messages": json.dumps(parts), "gen_ai.tool.definitions": '[{"type": "function", "name": "f"}]'}
    )
    traced.record(
        {"gen_ai.prompt.0.role": "user", "gen_ai.prompt.0.tool_calls.0.name": "f", "gen_ai.completion.0.content": "x"}
    )
    traced.record({"ai.operationId": "ai.generateText.doGenerate", "ai.prompt.messages": json.dumps([
        {"role": "tool", "content": [{"type": "tool-result", "toolCallId": "c", "toolName": "f", "output": {"type": "json", "value": 1}}]}]),
        "ai.response.toolCalls": '[{"toolCallId": "c", "toolName": "f", "input": "{}"}]'})  # fmt: skip
    tooled = {
        "tools": [{"type": "function", "function": {"name": "f"}}],
        "messages": [{"role": "assistant", "tool_calls": [call]}],
    }
    return {
        "otlp": [traced.spans_json()],
        "langfuse": [test_langfuse.observation("more", input=tooled, output={"choices": [{"message": {"content": "x", "role": "user"}}]})],
        "langsmith": [test_langsmith.run("lc", inputs={"messages": asked}, outputs={"generations": [[{"text": "x"}]]})],
        "claude-code": [{**line, "uuid": f"more-{line['uuid']}"} for line in script.lines],
        "codex": one.lines,
        "hooks": [test_hooks.claude("UserPromptSubmit", turn="p2", prompt="x"), test_hooks.codex("PostToolUse", tool_name="f", tool_input={}, tool_response=[], tool_use_id="t")],
    }  # fmt: skip


MORE = richer()
WHOLE = {name: [*sample(), *MORE.get(name, [])] for name, sample in SAMPLES.items()}


@pytest.mark.parametrize("name", SAMPLES)
def test_feeding_anything_else_refuses_it(name: str) -> None:
    importer = find_importer(name)(CHAT, None)
    for value in (None, 3, "text", [], {}, [{}], {"a": 1}):
        assert [type(one) for one in importer.feed(1, value, b"x")] == [Unfit]
