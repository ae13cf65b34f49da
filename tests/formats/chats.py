"""Conversations drawn by chance, as captured records."""

from __future__ import annotations

import json
from typing import Any

import hypothesis.strategies as st

# Any text that UTF-8 can hold, with what readers of lines trip over.
texts = st.text(st.characters(codec="utf-8"), max_size=12) | st.sampled_from(
    ["a\u2028b\u2029c\x85d", "tab\there\nand there", '"', "\\", "😀", "\x00"]
)
keys = st.text(st.characters(codec="utf-8"), min_size=1, max_size=6)
numbers = st.integers(-(10**20), 10**20) | st.floats(allow_nan=False, allow_infinity=False)
values = st.recursive(
    st.none() | st.booleans() | numbers | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=3),
    max_leaves=6,
)
objects = st.dictionaries(keys, values, max_size=4)


@st.composite
def json_texts(draw: st.DrawFn, value: st.SearchStrategy[Any]) -> str:
    """JSON as somebody else may write it: spaced, ordered and escaped in one way or another."""
    return json.dumps(
        draw(value),
        ensure_ascii=draw(st.booleans()),
        separators=draw(st.sampled_from([(",", ":"), (", ", ": ")])),
        indent=draw(st.sampled_from([None, None, 1])),
    )


@st.composite
def conversations(draw: st.DrawFn, arguments: st.SearchStrategy[str], *, thoughts: bool) -> list[dict[str, Any]]:
    """One to five messages, tool calls answered by results; every message says something."""
    made: list[dict[str, Any]] = []
    for turn in range(draw(st.integers(1, 3))):
        made.append({"role": draw(st.sampled_from(["system", "developer", "user"])), "content": draw(texts)})
        said: dict[str, Any] = {"role": "assistant"}
        called = draw(st.integers(0, 2))
        if called:
            said["tool_calls"] = [
                {
                    "id": f"call_{turn}_{n}",
                    "type": "function",
                    "function": {"name": "look", "arguments": draw(arguments)},
                }
                for n in range(called)
            ]
        if not called or draw(st.booleans()):
            said["content"] = draw(texts)
        if thoughts and draw(st.booleans()):
            said["reasoning_content"] = draw(texts)
        if not thoughts and draw(st.booleans()):
            said["weight"] = draw(st.integers(0, 1))
        made.append(said)
        made += [
            {"role": "tool", "content": draw(texts), "name": "look", "tool_call_id": f"call_{turn}_{n}"}
            for n in range(called)
        ]
    return made


tools = st.none() | json_texts(
    st.lists(st.fixed_dictionaries({"type": st.just("function"), "function": objects}), min_size=1, max_size=2)
)
