"""Versions of a corpus's columns, and how records of one version are read as another. Pure: no file is touched here.

A column is known by a number that outlives its names, so renamed, swapped and renamed-back columns are told apart.
A record is stored as it was captured, and stays so: a column of a new type gets a place of its own (`Column.stored`)
beside the old one, and reading joins the two. So nothing stored is ever rewritten, every record can still be read as
the version it was captured under, and whoever writes an older version needs to know nothing of the newer ones.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from typing import Any, TypeAlias, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from treering.errors import StoreError, UsageError
from treering.schema.arrow import COMMON
from treering.schema.record_type import RecordType

__all__ = [
    "SCHEMA_VERSION",
    "Alignment",
    "Column",
    "ColumnRule",
    "History",
    "Version",
    "as_stored",
    "column_rule",
    "converted",
    "decode_scalar",
    "encode_scalar",
    "evolved",
    "first_version",
    "newest_held",
    "shown",
    "widens",
]

#: The stored column that says under which version a record was captured; null is version 1. Tables get it with the
#: first evolution. No record field can have this name: those begin with a letter.
SCHEMA_VERSION = "_schema_version"


@dataclass(frozen=True, slots=True)
class Column:
    """A column at one version. `default` is what records of earlier versions get there where they hold nothing."""

    key: int  # who it is, whatever it is called
    field: pa.Field  # name, type, nullability as delivered
    stored: str  # name of the stored column that holds its values of this type
    default: pa.Scalar | None = None

    @property
    def name(self) -> str:
        """Its name at this version."""
        return str(self.field.name)


@dataclass(frozen=True)
class Version:
    """One version of a corpus's columns; numbered from 1."""

    number: int
    record_type: str
    columns: tuple[Column, ...]
    renames: tuple[tuple[str, str], ...] = ()  # (before, now), against the version before
    created_at: datetime | None = None  # None: not kept yet

    @cached_property
    def schema(self) -> pa.Schema:
        """The columns as delivered."""
        return pa.schema([column.field for column in self.columns])

    @cached_property
    def by_key(self) -> dict[int, Column]:
        """The columns by what they are known by."""
        return {column.key: column for column in self.columns}

    def named(self, name: str) -> Column | None:
        """The column of this name, or None."""
        return next((column for column in self.columns if column.name == name), None)


_Data = TypeVar("_Data", pa.Table, pa.RecordBatch)

#: All versions of a corpus, oldest first: entry n - 1 is version n.
History: TypeAlias = tuple[Version, ...]


def first_version(record_type: RecordType) -> Version:
    """Version 1 of a new corpus: each column is stored under its own name."""
    fields = enumerate(record_type.schema, start=1)
    return Version(1, record_type.name, tuple(Column(key, field, field.name) for key, field in fields))


# --- from one version to the next ------------------------------------------------------------------------------------


def evolved(history: History, new: RecordType, renames: Mapping[str, str], defaults: Mapping[str, Any]) -> Version:
    """The version that makes `new` of the newest one; that one itself when nothing changes.

    `renames`: name → new name, all at once. `defaults`: what earlier records get in a column that is added or that is no
    longer optional. An added column without one takes the default of its model's field. A column that `new` doesn't have
    stays, and is optional from then on. Raises UsageError that lists every problem.
    """
    old = history[-1]
    problems, before = _renamed(old, new, renames)
    number = old.number + 1
    taken = {name.lower() for version in history for name in (c.stored for c in version.columns)} | {SCHEMA_VERSION}
    next_key = 1 + max(column.key for version in history for column in version.columns)
    made: dict[str, Column] = {}
    for field in new.schema:
        name, was = field.name, before.get(field.name)
        if name in COMMON.names:
            made[name] = old.columns[old.schema.get_field_index(name)]
            made[name] = Column(made[name].key, made[name].field, made[name].stored)
            if name in defaults:
                problems.append(f"{name}: a common field takes no default")
            continue
        default = _default(new, name, defaults, problems, added=was is None)
        if was is None:
            if not field.nullable and default is None and not any(p.startswith(f"{name}: ") for p in problems):
                problems.append(f"{name}: required, and earlier records have no value: give it a default")
            made[name] = Column(next_key, field, _stored_name(name, number, taken), default)
            next_key += 1
            continue
        stored = was.stored
        if field.type != was.field.type:
            if widens(was.field.type, field.type):
                stored = _stored_name(name, number, taken)
            else:
                problems.append(f"{name}: {was.field.type} can't become {field.type}, which can't hold all its values")
        if was.field.nullable and not field.nullable:
            if default is None and name not in defaults:
                problems.append(f"{name}: becomes required, and earlier records may lack it: give it a default")
        elif name in defaults:
            always = "is there already: a default would change what its nulls say"
            problems.append(
                f"{name}: {always if was.field.nullable else 'is in every earlier record: it needs no default'}"
            )
        made[name] = Column(was.key, field, stored, default)
    problems += [
        f"{name}: a default for a column that isn't there" for name in defaults if name not in new.schema.names
    ]
    if problems:
        raise UsageError(
            f"the schema can't evolve: {'; '.join(problems)}",
            code="bad-evolution",
            hint="columns can be added (required ones with a default), renamed (with renames), widened and made optional",
        )
    names = {column.key: name for name, column in made.items()}
    columns = []
    for column in old.columns:  # in their old places; one that `new` doesn't have stays
        kept = Column(column.key, column.field.with_nullable(True), column.stored)
        columns.append(made.pop(names[column.key]) if column.key in names else kept)
    columns += made.values()
    if [(c.key, c.field) for c in columns] == [(c.key, c.field) for c in old.columns]:
        return old
    moved = tuple((a, b) for a, b in renames.items() if a != b)
    return Version(number, new.name, tuple(columns), moved)


def _renamed(old: Version, new: RecordType, renames: Mapping[str, str]) -> tuple[list[str], dict[str, Column]]:
    """Problems of the renames, and new name → the column that it was."""
    problems: list[str] = []
    before = {column.name: column for column in old.columns if column.name not in renames}
    for name, to in renames.items():
        column, where = old.named(name), f"{name} → {to}"
        if name in COMMON.names or to in COMMON.names:
            problems.append(f"{where}: common fields keep their names")
        elif column is None:
            problems.append(f"{where}: there is no column {name}")
        elif to not in new.schema.names:
            problems.append(f"{where}: the new schema has no column {to}")
        elif to in before:
            problems.append(f"{where}: two columns would be called {to}")
        else:
            before[to] = column
    return problems, {name: column for name, column in before.items() if name in new.schema.names}


def _default(
    new: RecordType, name: str, defaults: Mapping[str, Any], problems: list[str], *, added: bool
) -> pa.Scalar | None:
    # A model's default is what *new* records get; it says something about old ones only where they have no column.
    value = defaults[name] if name in defaults else new.default(name) if added else None
    if value is None:
        if name in defaults and not new.schema.field(name).nullable:
            problems.append(f"{name}: required, so its default can't be null")
        return None
    try:
        return new.scalar(name, value)
    except UsageError as exc:
        problems.append(f"{name}: {exc.message}")
        return None


def _stored_name(name: str, number: int, taken: set[str]) -> str:
    """A name for a new stored column: its own if that is free, in whatever case."""
    chosen = name
    if chosen.lower() in taken:
        chosen = f"{name}__{number}"
    while chosen.lower() in taken:
        chosen += "_"
    taken.add(chosen.lower())
    return chosen


def widens(old: pa.DataType, new: pa.DataType) -> bool:
    """Whether every value of `old` is exactly a value of `new`; equal types do."""
    t = pa.types
    if old == new:
        return True
    if t.is_integer(old) and t.is_integer(new):
        if t.is_signed_integer(old) == t.is_signed_integer(new):
            return bool(old.bit_width <= new.bit_width)
        return bool(t.is_signed_integer(new) and old.bit_width < new.bit_width)
    if t.is_integer(old) and t.is_float64(new):
        return bool(old.bit_width <= 32)  # 53 bits hold it
    if t.is_floating(old) and t.is_floating(new):
        return bool(old.bit_width <= new.bit_width)
    if (t.is_string(old) and t.is_large_string(new)) or (t.is_binary(old) and t.is_large_binary(new)):
        return True
    if t.is_fixed_size_list(old) or t.is_fixed_size_list(new):
        same = t.is_fixed_size_list(old) and t.is_fixed_size_list(new) and old.list_size == new.list_size
        return bool(same and _field_widens(old.value_field, new.value_field))
    if t.is_list(old) or t.is_large_list(old):
        grows = t.is_large_list(new) or (t.is_list(new) and t.is_list(old))
        return bool(grows and _field_widens(old.value_field, new.value_field))
    if t.is_struct(old) and t.is_struct(new):
        members = {field.name: field for field in new}
        there = all(field.name in members and _field_widens(field, members[field.name]) for field in old)
        names = {field.name for field in old}
        return there and all(field.nullable for field in new if field.name not in names)
    return False


def _field_widens(old: pa.Field, new: pa.Field) -> bool:
    return (new.nullable or not old.nullable) and widens(old.type, new.type)


# --- reading one version as another ----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Rule:
    field: pa.Field  # as delivered
    sources: tuple[pa.Field, ...]  # what it is read from, newest type first: a record holds a value in one at most
    fills: tuple[
        tuple[int, pa.Scalar], ...
    ]  # (n, value): where a record of a version before n holds nothing; ascending


@dataclass(frozen=True, slots=True)
class ColumnRule:
    """How one column comes about, for people and JSON."""

    column: str
    type: str
    nullable: bool
    rule: str  # kept, or some of renamed, widened and filled, joined by " and "
    was: str | None  # its name in the older version; None when it wasn't there
    was_type: str | None
    was_nullable: bool | None
    default: Any  # what fills it, as `shown` gives it; None: null
    since: int | None  # the version that the default came with

    def __str__(self) -> str:
        """`kept`, `renamed from text`, `widened from int32`, `filled with "en"`."""
        fill = "null" if self.default is None else _json(self.default)
        if self.was is None:
            return f"filled with {fill}"
        parts = []
        if self.was != self.column:
            parts.append(f"renamed from {self.was}")
        if self.was_type != self.type:
            parts.append(f"widened from {self.was_type}")
        if self.since is not None:
            parts.append(f"nulls become {fill}")
        if self.nullable and not self.was_nullable:
            parts.append("now optional")
        return ", ".join(parts) or "kept"


class Alignment:
    """The rule by which records are read as one version of their corpus, column by column.

    Made by `between` (records of one version) or `of_stored` (a table as stored, whose records may be of several).
    """

    def __init__(
        self, target: Version, rules: Sequence[_Rule], source: Version | None, *, versioned: bool = False
    ) -> None:
        self.target = target
        self.source = source  # None: a stored table
        self._versioned = versioned  # whether that says of each record which version it is of
        self._rules = {rule.field.name: rule for rule in rules}

    @classmethod
    def between(cls, history: History, source: int, target: int) -> Alignment:
        """From version `source` to version `target`. Raises UsageError unless 1 ≤ source ≤ target ≤ the newest."""
        if not 1 <= source <= target <= len(history):
            raise UsageError(
                f"records of version {source} can't be read as version {target}",
                code="bad-version",
                hint=f"versions here: 1 to {len(history)}; a record is read as its own or a later one",
            )
        old, new = history[source - 1], history[target - 1]
        rules = []
        for column in new.columns:
            was = old.by_key.get(column.key)
            fills = [(n, scalar) for n, scalar in _fills(history, target, column.key) if n > source]
            rules.append(_Rule(column.field, (was.field,) if was else (), tuple(fills)))
        return cls(new, rules, old)

    @classmethod
    def of_stored(
        cls, history: History, layout: pa.Schema, *, where: str = "the table", sealed: int | None = None
    ) -> Alignment:
        """From a table as stored to the newest version in `history`; its records may be of any version up to that.

        A column that isn't stored yet is one that no record has; `sealed` is a version whose columns are known to be
        there. Raises StoreError when a stored column is of another type, or missing although it must be there: `where`
        names the table.
        """
        target = history[-1]
        held = {field.name: field for field in layout}
        rules, wrong = [], []
        for column in target.columns:
            sources = []
            for stored in _stored(history, column.key):
                found = held.get(stored.name)
                if found is not None:
                    sources.append(found)
                    if _shape(found.type) != _shape(stored.type):
                        wrong.append(f"{stored.name} is {found.type}, not {stored.type}")
            rules.append(
                _Rule(column.field, tuple(reversed(sources)), tuple(_fills(history, len(history), column.key)))
            )
        for version in history[: sealed or newest_held(history, layout)]:
            wrong += [f"{column.stored} is missing" for column in version.columns if column.stored not in held]
        if wrong:
            raise StoreError(
                f"the columns of {where} aren't those of its schema: {'; '.join(dict.fromkeys(wrong))}",
                code="schema-changed",
                hint="restore the store's files from a backup; nothing was read",
            )
        return cls(target, rules, None, versioned=SCHEMA_VERSION in held)

    def reads(self, columns: Sequence[str]) -> list[str]:
        """Names of what must be read for these columns; a name that isn't a column of the target passes (`_rowid`)."""
        names: dict[str, None] = {}
        for name in columns:
            rule = self._rules.get(name)
            if rule is None:
                if name != SCHEMA_VERSION or self._versioned:
                    names[name] = None
                continue
            names.update(dict.fromkeys(source.name for source in rule.sources))
            if rule.fills and rule.sources and self._versioned:
                names[SCHEMA_VERSION] = None
        return list(names)

    def stored_as(self, column: str) -> str | None:
        """What holds exactly the values that are delivered as `column`; None when they are put together."""
        rule = self._rules.get(column)
        if rule is None or len(rule.sources) != 1 or rule.fills or rule.sources[0].type != rule.field.type:
            return None
        return str(rule.sources[0].name)

    def apply(self, data: _Data, columns: Sequence[str] | None = None) -> _Data:
        """`data` (what `reads` names, at least) as the target: these columns in this order, all of them by default.

        A table gives a table, a record batch a record batch. `_schema_version` may be asked for: int32, the version that
        each record was captured under. Column by column; what isn't changed is passed on without a copy.
        """
        names = list(self._rules) if columns is None else list(columns)
        fields, arrays = [], []
        for name in names:
            rule = self._rules.get(name)
            if name == SCHEMA_VERSION:
                fields.append(pa.field(name, pa.int32()))
                arrays.append(pa.array(self._versions(data), pa.int32()))
            elif rule is None:
                fields.append(data.schema.field(name))
                arrays.append(data.column(name))
            else:
                fields.append(rule.field)
                arrays.append(self._column(rule, data))
        if not arrays:
            return data.select([])  # made anew it would lose its rows
        return type(data).from_arrays(arrays, schema=pa.schema(fields))

    def _column(self, rule: _Rule, data: _Data) -> Any:
        kind = rule.field.type
        if len(rule.sources) == 1 and (not rule.fills or data.column(rule.sources[0].name).null_count == 0):
            only = data.column(rule.sources[0].name)
            if only.type == kind:
                return only
            if isinstance(only, pa.ChunkedArray):
                return pa.chunked_array([converted(chunk, kind) for chunk in only.chunks], kind)
            return converted(only, kind)
        value = pa.nulls(len(data), kind)
        for source in rule.sources:
            if value.null_count == 0 and len(value):
                break
            older = converted(_whole(data.column(source.name)), kind)
            value = _chosen(np.asarray(pc.is_valid(value)), value, older)
        if not rule.fills or value.null_count == 0:
            return value
        versions = self._versions(data) if rule.sources else np.ones(len(data))  # not there: no record had it
        for number, scalar in rule.fills:
            empty = np.asarray(pc.is_null(value)) & (versions < number)
            if empty.any():
                default = converted(pa.array([scalar.as_py()], scalar.type), kind)
                places = np.arange(len(value))
                places[empty] = len(value)
                value = pa.concat_arrays([value, default]).take(pa.array(places))
        return value

    def _versions(self, data: _Data) -> Any:
        """The version each record was captured under: an integer array."""
        if self.source is not None:
            return np.full(len(data), self.source.number, np.int32)
        if not self._versioned:
            return np.ones(len(data), np.int32)
        return np.asarray(pc.fill_null(_whole(data.column(SCHEMA_VERSION)), 1))

    def describe(self) -> list[ColumnRule]:
        """How each column of the target comes about, in order. For an alignment between two versions."""
        described = []
        for name, rule in self._rules.items():
            was = rule.sources[0] if rule.sources else None
            changes = [] if was is None else [word for word, yes in (
                ("renamed", was.name != name), ("widened", was.type != rule.field.type), ("filled", rule.fills)) if yes]  # fmt: skip
            since, default = rule.fills[0] if rule.fills else (None, None)
            described.append(
                ColumnRule(
                    column=name,
                    type=str(rule.field.type),
                    nullable=rule.field.nullable,
                    rule="filled" if was is None else " and ".join(changes) or "kept",
                    was=None if was is None else was.name,
                    was_type=None if was is None else str(was.type),
                    was_nullable=None if was is None else was.nullable,
                    default=None if default is None else shown(default),
                    since=since,
                )
            )
        return described

    def __repr__(self) -> str:
        source = "stored" if self.source is None else f"version {self.source.number}"
        changed = [f"{rule.column}: {rule}" for rule in self.describe() if str(rule) != "kept"]
        return f"Alignment({source} → version {self.target.number}; {'; '.join(changed) or 'nothing changes'})"


def newest_held(history: History, layout: pa.Schema) -> int:
    """Number of the newest version whose columns a stored table has: none of its records is of a later one.

    The columns of a version are added before its first record is stored, and never go again.
    """
    held = set(layout.names)
    if SCHEMA_VERSION not in held:
        return 1
    return max(v.number for v in history if v.number == 1 or all(column.stored in held for column in v.columns))


def as_stored(rows: pa.Table, version: Version, layout: pa.Schema) -> pa.Table | None:
    """Records of one version in the columns of a stored table; None when it lacks one of them: add those first."""
    sources = {column.stored: column.name for column in version.columns}
    if not sources.keys() <= set(layout.names) or (version.number > 1 and SCHEMA_VERSION not in layout.names):
        return None
    arrays = []
    for field in layout:
        if field.name == SCHEMA_VERSION:
            arrays.append(pa.array(np.full(len(rows), version.number), field.type))
        elif field.name in sources:
            column = rows.column(sources[field.name])
            arrays.append(column if column.type == field.type else column.cast(field.type))
        else:
            arrays.append(pa.nulls(len(rows), field.type))
    return pa.Table.from_arrays(arrays, schema=layout)


def column_rule(history: History, name: str) -> str:
    """Text that changes whenever what is delivered as this column could: its name, its type, and how it comes about."""
    target = history[-1]
    column = target.named(name)
    if column is None:
        raise KeyError(name)
    plain = f"{name}:{column.field.type}"
    stored = [f"{field.name}:{field.type}" for field in _stored(history, column.key)]
    fills = [
        f"{number}={hashlib.sha256(encode_scalar(scalar).encode()).hexdigest()[:16]}"
        for number, scalar in _fills(history, len(history), column.key)
    ]
    return plain if stored == [plain] and not fills else f"{plain}<-{','.join(stored)};{','.join(fills)}"


def _stored(history: Iterable[Version], key: int) -> list[pa.Field]:
    """The stored columns of a column, oldest first: one for each type it has had."""
    found: dict[str, pa.Field] = {}
    for version in history:
        if (column := version.by_key.get(key)) is not None:
            found.setdefault(column.stored, pa.field(column.stored, column.field.type))
    return list(found.values())


def _fills(history: History, target: int, key: int) -> list[tuple[int, pa.Scalar]]:
    found = []
    for version in history[:target]:
        column = version.by_key.get(key)
        if column is not None and column.default is not None:
            found.append((version.number, column.default))
    return found


# --- values ----------------------------------------------------------------------------------------------------------


def _whole(column: Any) -> Any:
    if not isinstance(column, pa.ChunkedArray):
        return column
    return column.chunk(0) if column.num_chunks == 1 else pa.concat_arrays(column.chunks or [pa.array([], column.type)])


def _chosen(first: Any, one: Any, other: Any) -> Any:
    """Where `first` (bool) the value of `one`, else that of `other`."""
    if not first.any():
        return other
    if first.all():
        return one
    places = np.arange(len(one)) + np.where(first, 0, len(one))
    return pa.concat_arrays([one, other]).take(pa.array(places))  # unlike if_else it takes every type


def converted(array: Any, kind: pa.DataType) -> Any:
    """The same values in a type that holds them all (`widens`)."""
    t = pa.types
    if array.type == kind:
        return array
    if t.is_struct(kind):
        members = {field.name: child for field, child in zip(array.type, array.flatten(), strict=True)}
        children = [
            converted(members[f.name], f.type) if f.name in members else pa.nulls(len(array), f.type) for f in kind
        ]
        return pa.StructArray.from_arrays(children, fields=list(kind), mask=pc.is_null(array))
    if t.is_fixed_size_list(kind):
        size = kind.list_size
        values = converted(array.values.slice(array.offset * size, len(array) * size), kind.value_type)
        return pa.FixedSizeListArray.from_arrays(values, type=kind, mask=pc.is_null(array))
    if t.is_list(kind) or t.is_large_list(kind):
        offsets = np.zeros(len(array) + 1, np.int64)
        np.cumsum(np.asarray(pc.fill_null(pc.list_value_length(array), 0)), out=offsets[1:])
        values = converted(pc.list_flatten(array), kind.value_type)
        large = t.is_large_list(kind)
        made = pa.LargeListArray if large else pa.ListArray
        places = pa.array(offsets, pa.int64() if large else pa.int32())
        return made.from_arrays(places, values, type=kind, mask=pc.is_null(array))
    return array.cast(kind)


def _shape(kind: pa.DataType) -> str:
    """A type without what the engine may give back differently: names of list items, nullability of members."""
    t = pa.types
    if t.is_struct(kind):
        return f"struct<{', '.join(f'{field.name}: {_shape(field.type)}' for field in kind)}>"
    if t.is_fixed_size_list(kind):
        return f"list<{_shape(kind.value_type)}>[{kind.list_size}]"
    if t.is_list(kind) or t.is_large_list(kind):
        return f"{'large_' if t.is_large_list(kind) else ''}list<{_shape(kind.value_type)}>"
    return str(kind)


def encode_scalar(scalar: pa.Scalar) -> str:
    """A value with its type, exactly: an Arrow IPC stream of one row, base64."""
    sink = pa.BufferOutputStream()
    batch = pa.record_batch([pa.array([scalar.as_py()], scalar.type)], names=["value"])
    with pa.ipc.new_stream(sink, batch.schema) as writer:
        writer.write_batch(batch)
    return base64.b64encode(sink.getvalue().to_pybytes()).decode()


def decode_scalar(text: str) -> pa.Scalar:
    """What `encode_scalar` gave."""
    return pa.ipc.open_stream(base64.b64decode(text)).read_all().column("value")[0]


def shown(scalar: pa.Scalar) -> Any:
    """A value as JSON can hold it, for readers: times as ISO 8601 text, bytes as base64, NaN as text."""
    return _plain(scalar.as_py())


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    if isinstance(value, float) and value - value != 0:  # NaN and infinities
        return str(value)
    return value if value is None or isinstance(value, str | int | float | bool) else value.isoformat()


def _json(value: Any) -> str:
    import json

    return json.dumps(value, ensure_ascii=False)
