from __future__ import annotations

import pickle
from datetime import UTC, datetime
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from pydantic import BaseModel, Field

import treering
from tests import evolving
from treering.schema import Alignment, Labelled, RecordType
from treering.schema.evolution import (
    SCHEMA_VERSION,
    History,
    as_stored,
    column_rule,
    evolved,
    first_version,
    newest_held,
    widens,
)
from treering.store.documents import SchemaVersion, parse_document

CHECKS = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])


def history_of(chain: list[evolving.Step]) -> History:
    history: History = (first_version(RecordType.of(chain[0].schema)),)
    for step in chain[1:]:
        history = (*history, evolved(history, RecordType.of(step.schema), step.renames, step.defaults))
    return history


def distinct(chain: list[evolving.Step]) -> list[evolving.Step]:
    """Without the steps that change nothing: they make no version."""
    kept = chain[:1]
    for step in chain[1:]:
        if step.columns != kept[-1].columns:
            kept.append(step)
    return kept


def table(chain: list[evolving.Step], rows: list[evolving.ModelRecord], history: History, number: int) -> pa.Table:
    """Records of one version as that version's columns."""
    schema = history[number - 1].schema
    return pa.Table.from_pylist([evolving.given(chain, row) for row in rows], schema=schema)


def check(chain: list[evolving.Step], rows: list[evolving.ModelRecord], got: pa.Table, target: int) -> None:
    names = [column.name for column in chain[target - 1].columns]
    assert got.select(names).to_pylist() == [evolving.read(chain, row, target) for row in rows]
    got.validate(full=True)


@given(st.data())
@settings(CHECKS, max_examples=60)
def test_records_of_any_version_are_read_as_any_later_one_by_the_rule(data: st.DataObject) -> None:
    chain = distinct(data.draw(evolving.chains()))
    history = history_of(chain)
    assert [[c.name for c in step.columns] for step in chain] == [v.schema.names[8:] for v in history]
    parts, everything = [], []
    for number in range(1, len(history) + 1):
        rows = data.draw(evolving.records(chain, number, f"{number}-"))
        captured = table(chain, rows, history, number)
        for target in range(number, len(history) + 1):
            got = Alignment.between(history, number, target).apply(captured)
            assert got.schema == history[target - 1].schema
            check(chain, rows, got, target)
            # What holds of records of several versions in one table holds of the way through the versions between.
            step_by_step = captured
            for k in range(number, target):
                step_by_step = Alignment.between(history, k, k + 1).apply(step_by_step)
            assert got.to_pylist() == step_by_step.to_pylist()
        parts.append((number, captured))
        everything += rows
    for shown in range(1, len(history) + 1):  # a table that got its columns version by version
        fields = {f.name: f for v in history[:shown] for f in (pa.field(c.stored, c.field.type) for c in v.columns)}
        layout = pa.schema([*fields.values(), *([pa.field(SCHEMA_VERSION, pa.int32())] if shown > 1 else [])])
        assert newest_held(history, layout) >= shown
        stored = [as_stored(captured, history[number - 1], layout) for number, captured in parts[:shown]]
        whole = pa.concat_tables([part for part in stored if part is not None])
        order = data.draw(st.permutations(range(len(whole))))
        rows = [everything[n] for n in order]
        for target in range(shown, len(history) + 1):
            alignment = Alignment.of_stored(history[:target], layout, sealed=shown)
            reads = alignment.reads(history[target - 1].schema.names)
            got = alignment.apply(
                whole.take(pa.array(order, pa.int64())).select(reads), history[target - 1].schema.names
            )
            check(chain, rows, got, target)


TYPES = list(evolving.WIDER)


@given(st.sampled_from([(a, b) for a, wider in evolving.WIDER.items() for b in wider]), st.data())
@settings(CHECKS, max_examples=80)
def test_widening_keeps_every_value_also_in_slices_and_beside_nulls(
    kinds: tuple[Any, Any], data: st.DataObject
) -> None:
    old, new = kinds
    assert widens(old, new)
    assert not widens(new, old)
    history = (first_version(RecordType.of(pa.schema([("x", old)]))),)
    history = (*history, evolved(history, RecordType.of(pa.schema([("x", new)])), {}, {}))
    rows = data.draw(st.lists(st.none() | evolving.values(old), max_size=12))
    low = data.draw(st.integers(0, len(rows)))
    high = data.draw(st.integers(low, len(rows)))
    captured = pa.table(
        {name: pa.nulls(len(rows), history[0].schema.field(name).type) for name in history[0].schema.names}
    )
    captured = captured.set_column(8, "x", pa.array(rows, old))
    got = Alignment.between(history, 1, 2).apply(captured.slice(low, high - low), ["x"])
    assert got.column("x").type == new
    assert got.column("x").to_pylist() == [evolving.as_type(value, new) for value in rows[low:high]]


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (pa.int64(), pa.int32()), (pa.int64(), pa.float64()), (pa.int32(), pa.float32()), (pa.uint64(), pa.int64()),
        (pa.int8(), pa.uint16()), (pa.float64(), pa.float32()), (pa.large_string(), pa.string()),
        (pa.string(), pa.binary()), (pa.int32(), pa.string()), (pa.timestamp("us"), pa.timestamp("us", tz="UTC")),
        (pa.list_(pa.int8(), 2), pa.list_(pa.int8(), 3)), (pa.list_(pa.int8(), 2), pa.list_(pa.int8())),
        (pa.list_(pa.int64()), pa.list_(pa.int32())), (pa.large_list(pa.int8()), pa.list_(pa.int8())),
        (pa.struct([("a", pa.int8())]), pa.struct([("b", pa.int8())])),
        (pa.struct([("a", pa.int8())]), pa.struct([("a", pa.int8()), pa.field("b", pa.int8(), nullable=False)])),
        (pa.struct([("a", pa.int8())]), pa.struct([pa.field("a", pa.int8(), nullable=False)])),
        (pa.list_(pa.int8()), pa.list_(pa.field("item", pa.int8(), nullable=False))),
    ],
)  # fmt: skip
def test_a_type_that_can_not_hold_every_value_exactly_is_no_widening(old: pa.DataType, new: pa.DataType) -> None:
    assert not widens(old, new)


def test_every_problem_is_named_at_once() -> None:
    old = first_version(
        RecordType.of(pa.schema([("a", pa.int64()), ("b", pa.string()), ("c", pa.int8()), ("z", pa.int8())]))
    )
    new = pa.schema([
        ("a", pa.int32()), ("b", pa.binary()), pa.field("c", pa.int8(), nullable=False), pa.field("d", pa.int8(), False),
        ("e", pa.int8()), ("f", pa.int8()), pa.field("g", pa.int8(), nullable=False),
    ])  # fmt: skip
    renames = {"nope": "e", "ts": "f", "z": "a", "a": "gone"}
    defaults = {"h": 1, "e": 300, "split": "train", "b": "x", "g": None}
    with pytest.raises(treering.UsageError) as caught:
        evolved((old,), RecordType.of(new), renames, defaults)
    said = caught.value.message
    for problem in (
        "nope → e: there is no column nope",
        "ts → f: common fields keep their names",
        "a → gone: the new schema has no column gone",
        "b: string can't become binary",
        "c: becomes required, and earlier records may lack it: give it a default",
        "d: required, and earlier records have no value: give it a default",
        "e: int 300 can't be a value of int8: Input should be less than or equal to 127",
        "b: is there already: a default would change what its nulls say",
        "h: a default for a column that isn't there",
        "split: a common field takes no default",
        "g: required, so its default can't be null",
    ):
        assert problem in said
    with pytest.raises(treering.UsageError, match="two columns would be called b"):
        evolved((old,), RecordType.of(pa.schema([("b", pa.string())])), {"a": "b"}, {})
    with pytest.raises(treering.UsageError, match="two columns would be called e"):
        evolved((old,), RecordType.of(pa.schema([("e", pa.int64())])), {"a": "e", "c": "e"}, {})
    with pytest.raises(treering.UsageError, match="int64 can't become int32"):
        evolved((old,), RecordType.of(pa.schema([("a", pa.int32())])), {}, {})


def test_names_may_be_swapped_given_on_and_given_back() -> None:
    kinds = {"a": pa.int8(), "b": pa.string(), "c": pa.bool_()}
    history: History = (first_version(RecordType.of(pa.schema(list(kinds.items())))),)

    def step(columns: dict[str, Any], renames: dict[str, str], defaults: dict[str, Any] | None = None) -> None:
        nonlocal history
        history = (*history, evolved(history, RecordType.of(pa.schema(list(columns.items()))), renames, defaults or {}))

    step({"b": pa.int8(), "a": pa.string(), "c": pa.bool_()}, {"a": "b", "b": "a"})  # swapped
    step({"c": pa.int8(), "b": pa.string(), "a": pa.bool_()}, {"b": "c", "a": "b", "c": "a"})  # in a ring
    step(
        {"x": pa.int8(), "b": pa.string(), "a": pa.bool_(), "c": pa.int64()}, {"c": "x"}, {"c": 9}
    )  # a name taken anew
    step({"a": pa.int8(), "b": pa.string(), "c": pa.bool_(), "d": pa.int64()}, {"x": "a", "a": "c", "c": "d"})
    captured = pa.Table.from_pylist([{"id": "1", "a": 1, "b": "s", "c": True}], schema=history[0].schema)
    got = Alignment.between(history, 1, 5).apply(captured)
    assert got.select(["a", "b", "c", "d"]).to_pylist() == [{"a": 1, "b": "s", "c": True, "d": 9}]
    # Names that are back where they were say the same again; the ninth payload column has a place of its own.
    assert [column_rule(history, name) for name in "abc"] == ["a:int8", "b:string", "c:bool"]
    assert column_rule(history, "d").startswith("d:int64<-c__4:int64;4=")


def test_what_does_not_change_makes_no_version_and_what_is_left_out_stays_optional() -> None:
    history: History = (first_version(RecordType.of("labelled")),)
    assert evolved(history, RecordType.of("labelled"), {}, {}) is history[0]
    assert evolved(history, RecordType.of(pa.schema([pa.field("label", pa.string(), False), pa.field("text", pa.string(), False)])), {}, {}) is history[0]  # fmt: skip
    with_out = evolved(history, RecordType.of(pa.schema([pa.field("text", pa.string(), False)])), {}, {})
    assert [(f.name, f.nullable) for f in with_out.schema][-2:] == [("text", False), ("label", True)]


class Tagged(Labelled):
    lang: str = "en"
    tags: list[str] = Field(default_factory=list)
    score: float | None = None
    at: datetime = datetime(2026, 1, 1, tzinfo=UTC)
    extra: dict[str, Any] = Field({"a": [1, None]})


def test_a_model_gives_its_defaults_to_earlier_records_unless_others_are_given() -> None:
    history: History = (first_version(RecordType.of("labelled")),)
    captured = pa.Table.from_pylist([{"id": "1", "text": "t", "label": "l"}], schema=history[0].schema)
    history = (*history, evolved(history, RecordType.of(Tagged), {}, {"lang": "de", "score": 0.5}))
    [row] = Alignment.between(history, 1, 2).apply(captured).to_pylist()
    assert (row["lang"], row["tags"], row["score"], row["extra"]) == ("de", [], 0.5, '{"a":[1,null]}')
    assert row["at"] == datetime(2026, 1, 1, tzinfo=UTC)


class Twin(BaseModel):
    x: int


def test_documents_keep_defaults_exactly_with_their_types() -> None:
    fields = [
        ("at", pa.timestamp("ms", tz="UTC"), datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC), "2026-01-02T03:04:05+00:00"),
        ("raw", pa.binary(), b"\x00\xff", "AP8="),
        ("half", pa.float16(), 0.5, 0.5),
        ("nan", pa.float32(), float("nan"), "nan"),
        ("nested", pa.list_(pa.struct([("a", pa.list_(pa.int8())), ("b", pa.string())])), [{"a": [1], "b": "s"}], None),
        ("pair", pa.list_(pa.float32(), 2), [0.1, 0.2], None),
        ("big", pa.uint64(), 2**64 - 1, 2**64 - 1),
    ]
    history: History = (first_version(RecordType.of(pa.schema([("x", pa.int8())]))),)
    new = RecordType.of(pa.schema([("x", pa.int8()), *((name, kind) for name, kind, *_ in fields)]))
    version = evolved(history, new, {}, {name: value for name, _, value, _ in fields})
    document = SchemaVersion.of(version, datetime.now(UTC))
    again = parse_document(SchemaVersion, "1.json", document.to_json()).columns()
    for mine, theirs in zip(version.columns, again.columns, strict=True):
        assert (mine.key, mine.field, mine.stored) == (theirs.key, theirs.field, theirs.stored)
        assert repr(mine.default) == repr(theirs.default)
    for name, kind, _, shown in fields:
        column = again.named(name)
        assert column is not None
        assert column.default is not None
        assert column.default.type == kind
        if shown is not None:
            assert document.defaults[name].value == shown
    assert pickle.loads(pickle.dumps(version)).schema == version.schema
    captured = pa.Table.from_pylist([{"id": "1"}], schema=history[0].schema)
    got = Alignment.between((*history, again), 1, 2).apply(captured)
    assert got.column("half").to_pylist() == [np.float16(0.5)]


def test_a_table_whose_columns_were_tampered_with_is_refused() -> None:
    history: History = (first_version(RecordType.of(pa.schema([("x", pa.int8())]))),)
    history = (*history, evolved(history, RecordType.of(pa.schema([("x", pa.int64()), ("y", pa.string())])), {}, {}))
    stored = pa.schema([*history[0].schema, (SCHEMA_VERSION, pa.int32()), ("x__2", pa.int64()), ("y", pa.string())])
    Alignment.of_stored(history, stored)
    with pytest.raises(treering.StoreError, match="x__2 is int32, not int64"):
        Alignment.of_stored(history, stored.set(stored.get_field_index("x__2"), pa.field("x__2", pa.int32())))
    with pytest.raises(treering.StoreError, match="x is missing"):
        Alignment.of_stored(history, stored.remove(stored.get_field_index("x")))
    without = stored.remove(stored.get_field_index("y"))
    Alignment.of_stored(history, without)  # not added yet: nobody has stored a record of version 2
    with pytest.raises(treering.StoreError, match="y is missing"):
        Alignment.of_stored(history, without, sealed=2)


def test_the_rule_reads_well() -> None:
    old = pa.schema([("text", pa.string()), ("score", pa.int32()), ("who", pa.string())])
    history: History = (first_version(RecordType.of(old)),)
    new = pa.schema([("body", pa.string()), ("score", pa.float64()), pa.field("who", pa.string(), False), ("lang", pa.string()), ("more", pa.int8())])  # fmt: skip
    history = (*history, evolved(history, RecordType.of(new), {"text": "body"}, {"who": "?", "lang": "en"}))
    alignment = Alignment.between(history, 1, 2)
    assert {rule.column: str(rule) for rule in alignment.describe()[8:]} == {
        "body": "renamed from text",
        "score": "widened from int32",
        "who": 'nulls become "?"',
        "lang": 'filled with "en"',
        "more": "filled with null",
    }
    assert "version 1 → version 2" in repr(alignment)
