"""Checked by columns is checked as by records: the same are taken, as the same values, and the same refused."""

from __future__ import annotations

from typing import Any

import hypothesis.strategies as st
import pyarrow as pa
import pytest
from hypothesis import given, settings

from treering.schema import RecordType
from treering.schema.by_columns import broken, fit

TEXT = st.one_of(st.none(), st.text(max_size=5))
CALL = st.one_of(
    st.none(),
    st.fixed_dictionaries(
        {
            "type": st.sampled_from(["function", None, "tool"]),
            "function": st.one_of(
                st.none(), st.fixed_dictionaries({"name": TEXT, "arguments": st.sampled_from(["{}", "no JSON", None])})
            ),
        }
    ),
)
MESSAGE = st.one_of(
    st.none(),
    st.fixed_dictionaries(
        {
            "role": st.sampled_from(["user", "assistant", "tool", "robot", None]),
            "content": TEXT,
            "tool_calls": st.one_of(st.none(), st.lists(CALL, max_size=2)),
            "weight": st.one_of(st.none(), st.integers(-5, 5), st.just(2**40)),
        }
    ),
)
MESSAGES = st.one_of(st.none(), st.lists(MESSAGE, max_size=3))
TOOLS = st.sampled_from([None, "[]", '[{"a": 1}]', "{}", "[1", '[{"a": 1, "a": 2}]', "[1e999]", ""])
META = st.sampled_from([None, "{}", "[]", "{", '{"a": NaN}'])

CALLS = pa.list_(
    pa.struct([("type", pa.string()), ("function", pa.struct([("arguments", pa.string()), ("name", pa.string())]))])
)
STRUCT = pa.struct(
    [("weight", pa.int64()), ("content", pa.large_string()), ("role", pa.string()), ("tool_calls", CALLS)]
)
CHATS = pa.schema([("tools", pa.string()), ("meta", pa.string()), ("messages", pa.large_list(STRUCT))])
PAIRS = pa.schema([("meta", pa.string()), *((name, pa.list_(STRUCT)) for name in ("prompt", "chosen", "rejected"))])


def compare(kind: str, table: pa.Table) -> None:
    record_type = RecordType.of(kind)
    quick, slow = record_type.validate_arrow(table), record_type._validate_rows(table, range(len(table)))
    assert list(quick.accepted) == list(slow.accepted)
    assert quick.refused == slow.refused
    assert quick.batch.to_pylist() == slow.batch.to_pylist()
    assert quick.batch.schema == slow.batch.schema


@settings(max_examples=150, deadline=None)
@given(st.lists(st.fixed_dictionaries({"messages": MESSAGES, "tools": TOOLS, "meta": META}), min_size=1, max_size=4))
def test_chats_are_checked_as_their_records_are(rows: list[dict[str, Any]]) -> None:
    table = pa.Table.from_pylist([{}, *rows, {}], schema=CHATS)
    compare("chat", table.slice(1, len(rows)))


@settings(max_examples=80, deadline=None)
@given(
    st.lists(
        st.fixed_dictionaries({"prompt": MESSAGES, "chosen": MESSAGES, "rejected": MESSAGES, "meta": META}),
        min_size=1,
        max_size=3,
    )
)
def test_preferences_are_checked_as_their_records_are(rows: list[dict[str, Any]]) -> None:
    compare("preference", pa.Table.from_pylist(rows, schema=PAIRS))


def test_good_chats_are_never_looked_at_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    def no(*_: Any) -> None:
        raise AssertionError("records were checked one by one")

    monkeypatch.setattr(RecordType, "_validate_rows", no)
    message = {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "{}"}, "type": "function"}]}
    table = pa.Table.from_pylist([{"messages": [{"role": "user", "content": "hi"}, message], "tools": "[]"}] * 50)
    assert len(RecordType.of("chat").validate_arrow(table).accepted) == 50


def test_a_member_too_many_is_named_whichever_way_it_is_found() -> None:
    table = pa.Table.from_pylist([{"messages": [{"role": "user", "content": "hi", "mood": "good"}]}])
    ((_, (problem,)),) = RecordType.of("chat").validate_arrow(table).refused
    assert problem.kind == "unknown-field"


def test_what_columns_cant_judge_is_an_error_and_not_a_pass() -> None:
    with pytest.raises(TypeError):
        broken(pa.array(["a"]), float)
    with pytest.raises(pa.ArrowInvalid):
        fit(pa.array([1.5]), pa.int32())
    with pytest.raises(pa.ArrowInvalid):
        fit(pa.array([2**40]), pa.int32())
