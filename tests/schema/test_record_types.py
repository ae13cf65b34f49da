from __future__ import annotations

import json
import math
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, TypeAdapter, ValidationError, field_validator

import treering
from treering.capture.commit import encode_row
from treering.schema import BUILT_IN, RecordType

MESSAGE = {"role": "user", "content": "hi"}
GOOD: dict[str, dict[str, Any]] = {
    "chat": {"messages": [MESSAGE]},
    "labelled": {"text": "t", "label": "l"},
    "preference": {"prompt": [MESSAGE], "chosen": [MESSAGE], "rejected": [MESSAGE]},
    "tokens": {"tokens": [1, 2]},
}


def problems(kind: str, record: Any) -> set[tuple[tuple[str | int, ...], str]]:
    [(_, found)] = RecordType.of(kind).validate([record]).refused
    return {(p.loc, p.kind) for p in found}


@pytest.mark.parametrize("kind", sorted(BUILT_IN))
def test_only_the_payload_is_required(kind: str) -> None:
    checked = RecordType.of(kind).validate([GOOD[kind]])
    assert checked.refused == []
    assert len(checked.batch) == 1


def test_every_problem_is_listed_with_its_path_and_code() -> None:
    bad = {
        "messages": [MESSAGE, {"role": "bot", "content": 3}],
        "ts": "yesterday",
        "meta": [1],
        "split": "test",
        "origin": "martian",
        "sesion_id": "x",
        "id": "",
    }
    assert problems("chat", bad) == {
        (("messages", 1, "role"), "bad-value"),
        (("messages", 1, "content"), "wrong-type"),
        (("ts",), "bad-value"),
        (("meta",), "wrong-type"),
        (("split",), "bad-value"),
        (("origin",), "bad-value"),
        (("sesion_id",), "unknown-field"),
        (("id",), "bad-value"),
    }


@pytest.mark.parametrize(
    ("kind", "record", "loc"),
    [
        ("labelled", {"text": 12, "label": "l"}, ("text",)),
        ("tokens", {"tokens": [1.0]}, ("tokens", 0)),
        ("tokens", {"tokens": ["12"]}, ("tokens", 0)),
        ("tokens", {"tokens": [True]}, ("tokens", 0)),
        ("labelled", {"text": "t", "label": "l", "ts": 1700000000}, ("ts",)),
        ("labelled", "text", ()),
    ],
)
def test_nothing_is_coerced(kind: str, record: Any, loc: tuple[str | int, ...]) -> None:
    assert problems(kind, record) == {(loc, "wrong-type")}


@pytest.mark.parametrize(
    "record",
    [
        {"tokens": [2**31]},
        {"tokens": [-1]},
        {"tokens": []},
        {"tokens": [1], "meta": {"x": math.nan}},
        {"tokens": [1], "meta": "{not json"},
        {"tokens": [1], "ts": "2026-01-01T00:00:00"},
        {"tokens": [1], "domain": "\ud800"},
    ],
)
def test_values_that_no_column_can_hold_are_refused(record: Any) -> None:
    checked = RecordType.of("tokens").validate([record, {"tokens": [1]}])
    assert [i for i, _ in checked.refused] == [0]
    assert list(checked.accepted) == [1]


def test_tool_arguments_and_tools_of_any_shape_survive() -> None:
    arguments = {"a": {"b": [1, None, {"c": "ä"}]}}
    record = {
        "messages": [
            {"role": "assistant", "tool_calls": [{"id": "1", "function": {"name": "f", "arguments": arguments}}]},
            {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": '{"x": 1}'}}]},
            {"role": "tool", "tool_call_id": "1", "content": "42"},
        ],
        "tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}],
    }
    [row] = RecordType.of("chat").validate([record]).batch.to_pylist()
    import json

    calls = [m["tool_calls"][0]["function"]["arguments"] for m in row["messages"][:2]]
    assert json.loads(calls[0]) == arguments
    assert calls[1] == '{"x": 1}'
    assert json.loads(row["tools"]) == record["tools"]


values = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | st.floats() | st.text(max_size=4),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["role", "content", "x"]), inner, max_size=3)
    ),
    max_leaves=6,
)
keys = st.sampled_from(["id", "domain", "split", "origin", "meta", "ts", "messages", "tools", "extra"])


@settings(max_examples=300, deadline=None)
@given(st.dictionaries(keys, values, max_size=5), st.booleans())
def test_the_fast_path_admits_exactly_what_the_model_admits(record: dict[str, Any], complete: bool) -> None:
    if complete:
        record = {**record, "messages": [MESSAGE]}
    kind = RecordType.of("chat")
    assert kind._typed is not None
    try:
        TypeAdapter(BUILT_IN["chat"]).validate_python(record, strict=True)
        admitted = True
    except ValidationError:
        admitted = False
    try:
        kind._adapter.validate_python([record], strict=True)
        fast = True
    except ValidationError:
        fast = False
    assert fast == admitted


class Ticket(BaseModel):
    subject_line: str
    priority: int
    extra: dict[str, Any]
    tags: list[str] = []

    @field_validator("subject_line")
    @classmethod
    def _short(cls, value: str) -> str:
        if len(value) > 10:
            raise ValueError("at most 10 characters")
        return value.strip()


def test_own_models_keep_their_validators_and_stay_strict() -> None:
    kind = RecordType.of(Ticket)
    assert kind.payload == ["subject_line", "priority", "extra", "tags"]
    good = {"subject_line": " hi ", "priority": 1, "extra": {"a": [1]}}
    checked = kind.validate(
        [good, {**good, "priority": "1"}, {**good, "subject_line": "x" * 11}, {**good, "priority": 2**70}]
    )
    assert [(i, p[0].kind) for i, p in checked.refused] == [(1, "wrong-type"), (2, "bad-value"), (3, "bad-value")]
    [row] = checked.batch.to_pylist()
    assert (row["subject_line"], row["extra"], row["tags"]) == ("hi", '{"a":[1]}', [])


class Clash(BaseModel):
    id: int
    text: str


@pytest.mark.parametrize(
    "spec",
    ["chatt", Clash, pa.schema([("ts", pa.string()), ("x", pa.int8())]), pa.schema([("_x", pa.int8())]), pa.schema([]),
     pa.schema([("x", pa.map_(pa.string(), pa.string()))]), 7],
)  # fmt: skip
def test_what_is_no_record_schema_is_refused_with_the_reason(spec: Any) -> None:
    with pytest.raises(treering.UsageError):
        RecordType.of(spec)


def test_an_arrow_schema_may_omit_the_common_fields_and_id_becomes_non_null() -> None:
    kind = RecordType.of(
        pa.schema([("id", pa.string()), ("x", pa.list_(pa.float32(), 3)), pa.field("y", pa.int8(), False)])
    )
    assert not kind.schema.field("id").nullable
    assert kind.payload == ["x", "y"]
    checked = kind.validate([{"y": 1}, {"x": [1.0, 2.0], "y": 1}, {"y": 128}, {}])
    assert [i for i, _ in checked.refused] == [1, 2, 3]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.fixed_dictionaries({"text": st.text(max_size=5) | st.none(), "label": st.just("l")},
                                      optional={"split": st.sampled_from(["train", "heldout", "test"]),
                                                "origin": st.sampled_from(["human", "robot", "model:x"]),
                                                "meta": st.sampled_from(["{}", "[", '{"a":1}'])}), min_size=1, max_size=20))  # fmt: skip
def test_arrow_tables_are_judged_like_their_rows(rows: list[dict[str, Any]]) -> None:
    kind = RecordType.of("labelled")
    columns = ["text", "label", "split", "origin", "meta"]
    table = pa.table({c: pa.array([r.get(c) for r in rows], pa.string()) for c in columns})
    by_rows = kind.validate([{k: v for k, v in r.items() if v is not None} for r in rows])
    by_columns = kind.validate_arrow(table)
    assert [i for i, _ in by_columns.refused] == [i for i, _ in by_rows.refused]
    assert by_columns.batch.to_pylist() == by_rows.batch.to_pylist()


class Odd(BaseModel):
    number: int
    share: float | None = None
    flags: list[bool] = []


ODD: list[tuple[Any, dict[str, Any]]] = [
    *((kind, record) for kind, record in GOOD.items()),
    ("labelled", {"text": "ä\u0000\u2028\U0001f600\"\\", "label": "", "ts": "0001-01-01T00:00:00Z", "meta": {"b": 1, "a": []}}),
    ("labelled", {"text": "t", "label": "l", "id": "i", "ts": "2026-11-22T09:30:00.123456+05:30", "split": "heldout"}),
    ("chat", {"messages": [{"role": "tool", "content": None, "weight": -(2**31), "tool_calls": [
        {"function": {"name": "f", "arguments": {"x": [1, None]}}}]}], "tools": [{}], "subject": "s", "origin": "model:m"}),
    ("tokens", {"tokens": [0, 2**31 - 1]}),
    (Odd, {"number": -(2**63), "share": math.nan, "flags": [True, False]}),
    (Odd, {"number": 2**63 - 1, "share": -math.inf}),
    (Odd, {"number": 1, "share": 5e-324}),
    (pa.schema([("x", pa.float32()), ("y", pa.large_string()), ("z", pa.list_(pa.int8(), 2))]), {"x": 0.1, "y": "y", "z": [1, 2]}),
]  # fmt: skip


@pytest.mark.parametrize(("spec", "record"), ODD)
def test_a_record_that_is_kept_as_json_has_the_columns_that_validation_gives_it(
    spec: Any, record: dict[str, Any]
) -> None:
    kind = RecordType.of(spec)
    row = kind.row(record)
    assert row is not None
    text = encode_row(1, row)
    columns = pa.array([json.loads(text)["row"]], pa.struct(list(kind.schema))).flatten()
    wanted = kind.validate([record]).batch
    # As text: NaN equals itself there.
    assert repr(pa.RecordBatch.from_arrays(columns, schema=wanted.schema).to_pylist()) == repr(wanted.to_pylist())


@pytest.mark.parametrize(
    ("spec", "record"),
    [
        ("labelled", {"text": "t"}),
        ("labelled", {"text": "t", "label": "l", "ts": "0001-01-01T00:00:00+01:00"}),  # of the year 0 in UTC
        (Odd, {"number": 2**63}),
        (pa.schema([("x", pa.binary())]), {"x": b"x"}),
        (pa.schema([("x", pa.date32())]), {"x": "2026-01-01"}),
    ],
)
def test_what_breaks_a_rule_or_json_cannot_hold_is_no_row(spec: Any, record: dict[str, Any]) -> None:
    assert RecordType.of(spec).row(record) is None


def test_text_that_is_not_unicode_is_no_json() -> None:
    row = RecordType.of("labelled").row({"text": "\ud800", "label": "l"})
    with pytest.raises(ValueError, match=r"surrogate|utf-?8"):
        encode_row(1, row or {"text": "\ud800"})
