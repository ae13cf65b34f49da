"""Random evolutions, and a model of them in plain Python: lists, dicts, and no Arrow but for the names of types."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

import hypothesis.strategies as st
import pyarrow as pa

PAIR = pa.struct([("a", pa.int32()), ("b", pa.string())])
WIDER_PAIR = pa.struct([("a", pa.int64()), ("c", pa.list_(pa.int8())), ("b", pa.string())])

#: Type → what it may be widened to.
WIDER: dict[pa.DataType, list[pa.DataType]] = {
    pa.int8(): [pa.int16(), pa.int64(), pa.float64()],
    pa.int16(): [pa.int32()],
    pa.int32(): [pa.int64(), pa.float64()],
    pa.int64(): [],
    pa.uint8(): [pa.uint32(), pa.int16()],
    pa.uint32(): [pa.int64()],
    pa.float32(): [pa.float64()],
    pa.float64(): [],
    pa.string(): [pa.large_string()],
    pa.large_string(): [],
    pa.binary(): [],
    pa.bool_(): [],
    pa.timestamp("us", tz="UTC"): [],
    pa.list_(pa.int8()): [pa.list_(pa.int32())],
    pa.list_(pa.int32()): [pa.list_(pa.int64()), pa.large_list(pa.int32())],
    pa.list_(pa.float32(), 2): [pa.list_(pa.float64(), 2)],
    pa.list_(PAIR): [pa.list_(WIDER_PAIR)],
    PAIR: [WIDER_PAIR],
}


def values(kind: pa.DataType) -> st.SearchStrategy[Any]:
    """Python values of a type; a struct's null members are spelt out."""
    t = pa.types
    if t.is_integer(kind):
        bits = kind.bit_width
        low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if t.is_signed_integer(kind) else (0, 2**bits - 1)
        return st.sampled_from([low, high, 0, 1, 7])
    if t.is_floating(kind):
        return st.sampled_from([0.0, -1.5, 0.25, 2.0**20])
    if t.is_boolean(kind):
        return st.booleans()
    if t.is_binary(kind):
        return st.sampled_from([b"", b"\x00\xff", b"x"])
    if t.is_timestamp(kind):
        return st.sampled_from([datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=UTC), datetime(1970, 1, 1, tzinfo=UTC)])
    if t.is_fixed_size_list(kind):
        return st.lists(values(kind.value_type), min_size=kind.list_size, max_size=kind.list_size)
    if t.is_list(kind) or t.is_large_list(kind):
        return st.lists(values(kind.value_type), max_size=3)
    if t.is_struct(kind):
        return st.fixed_dictionaries({f.name: values(f.type) for f in kind})
    return st.sampled_from(["", "a", "für 🌲", "b" * 50])


def as_type(value: Any, kind: pa.DataType) -> Any:
    """A value of a narrower type, as a wider one shows it: structs get their new members."""
    if value is None:
        return None
    if pa.types.is_struct(kind):
        return {f.name: as_type(value.get(f.name), f.type) for f in kind}
    if isinstance(value, list):
        return [as_type(item, kind.value_type) for item in value]
    return value


@dataclass(frozen=True)
class ModelColumn:
    key: int
    name: str
    type: pa.DataType
    nullable: bool


@dataclass(frozen=True)
class Step:
    """One version: its columns, how it came about, and the schema to ask for it by."""

    columns: tuple[ModelColumn, ...]
    renames: dict[str, str] = field(default_factory=dict)
    defaults: dict[str, Any] = field(default_factory=dict)
    dropped: frozenset[int] = frozenset()  # keys that the schema asked for doesn't name

    @property
    def schema(self) -> pa.Schema:
        """What is asked for."""
        return pa.schema([pa.field(c.name, c.type, c.nullable) for c in self.columns if c.key not in self.dropped])


@dataclass(frozen=True)
class ModelRecord:
    id: str
    version: int
    values: dict[int, Any]  # by key


def read(chain: list[Step], record: ModelRecord, target: int) -> dict[str, Any]:
    """The rule, one record at a time."""
    row = {}
    for column in chain[target - 1].columns:
        value = record.values.get(column.key)
        for number, step in enumerate(chain[:target], start=1):
            name = next((c.name for c in step.columns if c.key == column.key), None)
            if value is None and record.version < number and name in step.defaults:
                value = step.defaults[name]
        row[column.name] = as_type(value, column.type)
    return row


_NAMES = ["a", "b", "c", "d", "e", "A1", "a__2"]


@st.composite
def chains(draw: st.DrawFn, *, most: int = 5) -> list[Step]:
    """A first version and some that follow, each changing one thing or several."""
    kinds = st.sampled_from(list(WIDER))
    first = draw(st.lists(st.tuples(kinds, st.booleans()), min_size=1, max_size=3))
    columns = [ModelColumn(k, _NAMES[k], kind, nullable) for k, (kind, nullable) in enumerate(first)]
    chain = [Step(tuple(columns))]
    keys = len(columns)
    for _ in range(draw(st.integers(1, most - 1))):
        names = draw(st.permutations(_NAMES))[: len(columns)]
        moving = [draw(st.booleans()) for _ in columns] if draw(st.booleans()) else [False] * len(columns)
        kept = {c.name for c, moves in zip(columns, moving, strict=True) if not moves}
        renames = {
            c.name: name for c, moves, name in zip(columns, moving, names, strict=True) if moves and name not in kept
        }
        columns = [replace(c, name=renames.get(c.name, c.name)) for c in columns]
        if len({c.name for c in columns}) < len(columns):  # a permutation of names that isn't one of the movers alone
            back = {b: a for a, b in renames.items()}
            columns = [replace(c, name=back.get(c.name, c.name)) for c in chain[-1].columns]
            columns, renames = list(chain[-1].columns), {}
        defaults: dict[str, Any] = {}
        dropped: set[int] = set()
        for n, column in enumerate(columns):
            what = draw(st.sampled_from(["keep", "keep", "widen", "optional", "require", "drop"]))
            if what == "widen" and WIDER.get(column.type):
                columns[n] = replace(column, type=draw(st.sampled_from(WIDER[column.type])))
            elif what == "optional":
                columns[n] = replace(column, nullable=True)
            elif what == "require" and column.nullable:
                columns[n] = replace(column, nullable=False)
                defaults[column.name] = draw(values(column.type))
            elif what == "drop" and column.name not in renames.values() and len(dropped) < len(columns) - 1:
                columns[n] = replace(column, nullable=True)
                dropped.add(column.key)
        free = [name for name in _NAMES if name not in {c.name for c in columns}]
        if free and draw(st.booleans()):
            kind, nullable = draw(kinds), draw(st.booleans())
            columns.append(ModelColumn(keys, free[0], kind, nullable))
            keys += 1
            if not nullable or draw(st.booleans()):
                defaults[free[0]] = draw(values(kind))
        chain.append(Step(tuple(columns), renames, defaults, frozenset(dropped)))
    return chain


@st.composite
def records(draw: st.DrawFn, chain: list[Step], version: int, prefix: str, most: int = 4) -> list[ModelRecord]:
    """Records captured under one version."""
    made = []
    for n in range(draw(st.integers(0, most))):
        found = {
            c.key: None if c.nullable and draw(st.booleans()) else draw(values(c.type))
            for c in chain[version - 1].columns
        }
        made.append(ModelRecord(f"{prefix}{n}", version, found))
    return made


def given(chain: list[Step], record: ModelRecord) -> dict[str, Any]:
    """A record as it is handed to `capture`."""
    columns = chain[record.version - 1].columns
    found = {c.name: record.values[c.key] for c in columns if record.values[c.key] is not None}
    return {"id": record.id, **found}
