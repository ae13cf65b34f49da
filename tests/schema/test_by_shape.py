"""Columns made at once are those that the validator makes record by record, and it is asked whenever it would differ."""

from __future__ import annotations

from collections import OrderedDict
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from treering.schema import RecordType
from treering.schema import record_type as record_types


class Text(str):
    """Not quite a str."""

    __slots__ = ()


ODD = st.sampled_from(
    [
        None,
        0,
        1,
        True,
        1.0,
        2**40,
        b"x",
        "",
        "x",
        Text("x"),
        "\ud800",
        [],
        ["a"],
        (),
        {},
        [("a", "b")],
        datetime(2024, 1, 1),
    ]
)
TEXT = st.one_of(st.text(max_size=4), ODD)
JSON = st.one_of(
    st.sampled_from(
        [
            None,
            "{}",
            "[]",
            "{",
            '{"a": 1, "a": 2}',
            {"b": 1, "a": [None]},
            [{"z": 1, "y": 2}],
            {"a": float("nan")},
            {1: 2},
        ]
    ),
    ODD,
)
TIME = st.one_of(
    st.sampled_from(
        [
            "2024-01-01T00:00:00Z", "2024-01-01T00:00:00", "9999-12-31T23:59:59-23:59", "soon", None, 5,
            datetime(2024, 1, 1, tzinfo=UTC), datetime(2024, 1, 1, tzinfo=timezone(timedelta(hours=3))), datetime(2024, 1, 1),
        ]
    ),
    ODD,
)  # fmt: skip
CALL = st.fixed_dictionaries(
    {"function": st.fixed_dictionaries({"name": TEXT, "arguments": JSON}, optional={"strict": TEXT})},
    optional={"id": TEXT, "type": st.sampled_from(["function", "tool", None])},
)
MESSAGE = st.fixed_dictionaries(
    {"role": st.sampled_from(["user", "assistant", "tool", "robot", None])},
    optional={
        "content": TEXT, "tool_calls": st.one_of(st.lists(CALL, max_size=2), ODD), "weight": st.one_of(st.integers(-3, 3), ODD),
        "mood": TEXT,
    },
)  # fmt: skip
COMMON = {
    "id": TEXT, "subject": TEXT, "ts": TIME, "split": st.sampled_from(["train", "heldout", "test", None]),
    "origin": st.sampled_from(["human", "model:x", "nobody", None]), "meta": JSON,
}  # fmt: skip
MESSAGES = st.one_of(st.lists(st.one_of(MESSAGE, ODD), max_size=3), st.lists(MESSAGE, min_size=1, max_size=3), ODD)
PLAIN = st.fixed_dictionaries(
    {"messages": st.lists(st.fixed_dictionaries({"role": st.just("user")}), min_size=1, max_size=2)}
)
RECORDS = {
    "chat": st.one_of(
        PLAIN, st.fixed_dictionaries({"messages": MESSAGES}, optional={**COMMON, "tools": JSON, "b": TEXT})
    ),
    "preference": st.fixed_dictionaries(
        {"prompt": MESSAGES, "chosen": MESSAGES, "rejected": MESSAGES}, optional=COMMON
    ),
    "labelled": st.fixed_dictionaries({"text": TEXT}, optional={**COMMON, "label": TEXT}),
    "tokens": st.fixed_dictionaries(
        {"tokens": st.one_of(st.lists(st.one_of(st.integers(-1, 9), ODD), max_size=3), ODD)}
    ),
}


def compare(kind: str, rows: list[Any]) -> None:
    record_type = RecordType.of(kind)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(record_types, "_WORTH_COLUMNS", 0)
        ours = record_type.validate(rows)
        patch.setattr(RecordType, "_plain_batch", lambda *_: None)
        theirs = record_type.validate(rows)
    assert ours.refused == theirs.refused
    assert list(ours.accepted) == list(theirs.accepted)
    assert ours.batch.equals(theirs.batch, check_metadata=True)
    ours.batch.validate(full=True)


@settings(max_examples=400, deadline=None)
@given(
    st.sampled_from(sorted(RECORDS)).flatmap(lambda kind: st.tuples(st.just(kind), st.lists(RECORDS[kind], max_size=4)))
)
def test_records_come_to_the_same_columns_and_the_same_refusals_either_way(case: tuple[str, list[Any]]) -> None:
    compare(*case)


CHAT = {"messages": [{"role": "user", "content": "hi"}, {"role": "assistant"}]}


@pytest.mark.parametrize(
    "record",
    [
        {**CHAT, "b": "x"}, {"messages": [{"role": "user", "b": "x"}]}, OrderedDict(CHAT), {**CHAT, "id": b"a"}, {**CHAT, "id": Text("a")}, {b"messages": CHAT["messages"]}, {**CHAT, "ts": 5},
        {"messages": [[("role", "user")]]}, {"messages": "user"}, {"messages": [{"role": "user", "weight": 1.0}]},
        {"messages": [{"role": "user", "weight": True}]}, {"messages": [{"role": "user", "weight": 2**31}]}, {}, None,
        {"messages": [None]}, {**CHAT, "meta": {"a": float("inf")}}, {**CHAT, "tools": {}}, {"messages": ({"role": "user"},)},
    ],
)  # fmt: skip
def test_what_arrow_would_take_and_the_validator_would_not_is_left_to_the_validator(record: Any) -> None:
    compare("chat", [record])
    compare("chat", [CHAT, record, CHAT])


def test_plain_records_are_never_looked_at_one_by_one() -> None:
    record_type = RecordType.of("chat")
    call = {"id": "c", "type": "function", "function": {"name": "find", "arguments": {"b": 1, "a": 2}}}
    rows = [
        {**CHAT, "id": "1", "ts": "2024-01-01T00:00:00+02:00", "meta": {"b": 1, "a": 2}},
        {
            "messages": [*CHAT["messages"], {"role": "assistant", "tool_calls": [call], "weight": 0}],
            "tools": [{"a": 1}],
        },
    ]
    assert record_type._plain_batch(rows) is not None
    compare("chat", rows)
    assert RecordType.of("labelled")._plain_batch([{"text": "a", "label": "b"}]) is not None
    assert RecordType.of("tokens")._plain_batch([{"tokens": [1, 2]}]) is not None
