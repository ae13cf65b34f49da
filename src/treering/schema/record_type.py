"""A record type: the Arrow schema of a corpus and the strict validation in front of it.

Pure: takes records, gives Arrow data and problems. Does not fill in ids or splits (capture) or store anything (store).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from functools import cached_property
from typing import Annotated, Any, TypeAlias

import pyarrow as pa
import pyarrow.compute as pc
from pydantic import BaseModel, TypeAdapter, ValidationError

from treering.errors import InvalidRecordError, Problem, ProblemKind, UsageError
from treering.schema.arrow import (
    COMMON,
    annotation_to_arrow,
    arrow_to_annotation,
    check_field_name,
    plain_annotation,
    plain_fields,
    plain_model,
    typed_dict,
)
from treering.schema.by_columns import broken, fit, same_values
from treering.schema.by_shape import columns_of
from treering.schema.fields import dump_json
from treering.schema.records import BUILT_IN, Record

__all__ = ["RecordType", "Validated", "fingerprint", "safe_repr"]

SchemaSpec: TypeAlias = "str | type[BaseModel] | pa.Schema"

_COMMON_NAMES = frozenset(COMMON.names)
_KINDS: dict[str, ProblemKind] = {
    "missing": "missing-field",
    "extra_forbidden": "unknown-field",
    "bad_json": "bad-json",
    "json_type": "wrong-type",
    "frozen_set_type": "wrong-type",
}


@dataclass(frozen=True, slots=True)
class Validated:
    """What validation made of a sequence of records.

    `batch` holds the accepted ones under the record type's schema (`id`, `ts`, `split` still null where not given),
    `accepted` their positions in the input, `refused` the others as (position, problems).
    """

    batch: pa.RecordBatch
    accepted: Sequence[int]
    refused: list[tuple[int, tuple[Problem, ...]]]


def fingerprint(schema: pa.Schema) -> str:
    """SHA-256 (hex) over names, types and nullability; metadata doesn't count."""
    lines = (f"{field.name}\0{field.type}\0{field.nullable}" for field in schema)
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


class RecordType:
    """A named Arrow schema with its validator."""

    def __init__(
        self,
        name: str,
        schema: pa.Schema,
        model: type[BaseModel] | None = None,
        given: type[BaseModel] | None = None,
    ) -> None:
        self.name = name
        self.schema: pa.Schema = schema
        self.model = model  # with the common fields
        self.given = given  # as the user wrote it
        self._column_adapters: dict[str, TypeAdapter[Any]] = {}

    def __reduce__(self) -> tuple[Any, ...]:
        return _restored, (self.name, self.schema.serialize().to_pybytes(), self.given)

    @classmethod
    def of(cls, spec: SchemaSpec) -> RecordType:
        """From a built-in name, a pydantic model, or a `pyarrow.Schema` (which may omit the common fields).

        Raises UsageError for an unknown name, a type that no column can hold, or a payload that redefines a common field.
        """
        if isinstance(spec, str):
            if spec not in BUILT_IN:
                raise UsageError(
                    f"there is no record type {spec!r}",
                    code="unknown-record-type",
                    hint=f"built in: {', '.join(sorted(BUILT_IN))}; or pass a pydantic model or a pyarrow.Schema",
                )
            return cls._of_model(spec, BUILT_IN[spec])
        if isinstance(spec, pa.Schema):
            return cls._of_arrow("custom", spec)
        if isinstance(spec, type) and issubclass(spec, BaseModel):
            return cls._of_model(spec.__name__, spec)
        raise UsageError(
            f"a schema is a built-in name, a pydantic model class or a pyarrow.Schema, not {type(spec).__name__}",
            code="unknown-record-type",
        )

    @classmethod
    def _of_model(cls, name: str, model: type[BaseModel]) -> RecordType:
        given = model
        if not issubclass(model, Record):
            clash = sorted(_COMMON_NAMES & set(model.model_fields))
            if clash:
                raise UsageError(
                    f"{name} defines the common field(s) {', '.join(clash)} itself",
                    code="reserved-field",
                    hint="leave them out, or subclass treering.schema.Record",
                )
            # Record last: its strict, closed config is the one that wins.
            model = type(model.__name__, (model, Record), {"__module__": model.__module__, "__doc__": model.__doc__})
        fields = list(COMMON)
        for field_name, info in model.model_fields.items():
            if field_name in _COMMON_NAMES:
                kind, _ = annotation_to_arrow(info.annotation, f"{name}.{field_name}", tuple(info.metadata))
                if kind != COMMON.field(field_name).type:
                    raise UsageError(
                        f"{name}.{field_name} is a common field of type {COMMON.field(field_name).type}, not {kind}",
                        code="reserved-field",
                    )
                continue
            check_field_name(field_name, f"{name}.{field_name}")
            kind, nullable = annotation_to_arrow(info.annotation, f"{name}.{field_name}", tuple(info.metadata))
            fields.append(pa.field(field_name, kind, nullable=nullable or not info.is_required()))
        if len(fields) == len(COMMON):
            raise UsageError(f"{name} has no payload field", code="empty-schema")
        return cls(name, pa.schema(fields), model, given)

    @classmethod
    def _of_arrow(cls, name: str, schema: pa.Schema) -> RecordType:
        payload: list[pa.Field] = []
        problems: list[str] = []
        for field in schema:
            if field.name in _COMMON_NAMES:
                wanted = COMMON.field(field.name).type
                if field.type != wanted:
                    problems.append(f"{field.name} must be {wanted}, not {field.type}")
            else:
                check_field_name(field.name, field.name)
                arrow_to_annotation(field.type, field.name)  # raises for what can't be a record field
                payload.append(field.remove_metadata())
        if len(set(schema.names)) < len(schema.names):
            problems.append("field names must differ")
        if not payload:
            problems.append("there is no payload field")
        if problems:
            raise UsageError(f"not a record schema: {'; '.join(problems)}", code="bad-schema")
        return cls(name, pa.schema([*COMMON, *payload]))

    @classmethod
    def stored(cls, name: str, schema: pa.Schema) -> RecordType:
        """The record type of a stored corpus: the built-in one when it still has that schema, else by Arrow alone."""
        if name in BUILT_IN:
            built_in = cls.of(name)
            if fingerprint(built_in.schema) == fingerprint(schema):
                return built_in
        return cls._of_arrow(name, schema)

    def with_rules_of(self, other: RecordType) -> RecordType:
        """The same columns, checked by the other's model. Raises UsageError when the other has other columns.

        It may lack optional ones: a column that a schema gave up stays in its corpus, and stays null.
        """
        wanted = {field.name: field for field in other.schema}
        if any(not field.nullable for field in self.schema if field.name not in wanted) or any(
            name not in self.schema.names or self.schema.field(name) != field for name, field in wanted.items()
        ):
            raise UsageError(
                "the schema given has other columns than the corpus",
                code="schema-mismatch",
                hint="to change the corpus's columns: corpus.evolve(schema)",
            )
        return RecordType(self.name, self.schema, other.model, other.given)

    def default(self, name: str) -> Any:
        """What the model gives a field that a record doesn't have; None without a model, or when it gives nothing."""
        info = self.model.model_fields.get(name) if self.model is not None else None
        if info is None or info.is_required():
            return None
        if info.default_factory in (list, dict):  # others may give each record another value (a time, an id)
            return info.default_factory()
        return None if info.default_factory is not None else info.default

    def scalar(self, name: str, value: Any) -> pa.Scalar:
        """A value as the column holds it; times also as ISO 8601 text. Raises UsageError for one no record could have."""
        field = self.schema.field(name)
        try:
            if isinstance(value, str) and pa.types.is_temporal(field.type):
                value = (date if pa.types.is_date(field.type) else datetime).fromisoformat(value)
            bare = TypeAdapter(Any).dump_python(value, exclude_none=True)  # models as dicts
            checked = self._column_adapter(name).validate_python(bare, strict=True)
            stored = _to_storage(TypeAdapter(Any).dump_python(checked, exclude_none=True), field.type)
            return pa.array([stored], field.type)[0]
        except ValidationError as exc:
            reason = exc.errors(include_url=False, include_context=False)[0]["msg"]
        except (pa.ArrowException, ValueError, TypeError, OverflowError) as exc:
            reason = str(exc)
        raise UsageError(f"{_short(value)} can't be a value of {field.type}: {reason}", code="bad-default")

    def _column_adapter(self, name: str) -> TypeAdapter[Any]:
        """What checks one value of a column; kept, since making one takes longer than using it a thousand times."""
        adapter = self._column_adapters.get(name)
        if adapter is None:
            kind = arrow_to_annotation(self.schema.field(name).type, name)
            if self.model is not None:
                info = self.model.model_fields[name]
                full = Annotated[(info.annotation, *info.metadata)] if info.metadata else info.annotation
                plain = plain_annotation(full)
                kind = full if plain is None else plain
            adapter = self._column_adapters[name] = TypeAdapter(kind)
        return adapter

    @property
    def fingerprint(self) -> str:
        """See `fingerprint`."""
        return fingerprint(self.schema)

    @property
    def payload(self) -> list[str]:
        """Names of the columns that aren't common fields."""
        return [name for name in self.schema.names if name not in _COMMON_NAMES]

    @cached_property
    def built_in(self) -> str | None:
        """The built-in type whose payload these records have, whatever else they have: what formats can fill; None if none."""
        for name in BUILT_IN:
            other = RecordType.of(name)
            if all(
                field.name in self.schema.names and self.schema.field(field.name).type == field.type
                for field in (other.schema.field(column) for column in other.payload)
            ):
                return name
        return None

    def json_schema(self) -> dict[str, Any]:
        """JSON Schema (draft 2020-12) of one record as it is given to `capture`."""
        if self.model is not None:
            return self.model.model_json_schema()
        return self._adapter_of(self._typed).json_schema()

    @cached_property
    def _typed(self) -> Any | None:
        """The TypedDict that checks batches, or None when only the model itself will do."""
        if self.model is not None:
            return plain_model(self.model)
        fields = plain_fields(Record)
        assert fields is not None
        for name in self.payload:
            field = self.schema.field(name)
            annotation = arrow_to_annotation(field.type, name)
            fields[name] = (annotation | None if field.nullable else annotation, not field.nullable)
        return typed_dict(self.name, fields)

    @cached_property
    def _adapter(self) -> TypeAdapter[list[Any]]:
        item: Any = self._typed if self._typed is not None else self.model
        return self._adapter_of(list[item])

    @staticmethod
    def _adapter_of(kind: Any) -> TypeAdapter[Any]:
        return TypeAdapter(kind)

    @cached_property
    def _struct(self) -> pa.StructType:
        return pa.struct([pa.field(field.name, field.type) for field in self.schema])

    def validate(self, records: Sequence[Mapping[str, Any] | BaseModel]) -> Validated:
        """Check records strictly; every problem of every record is listed.

        Keep calls to some thousand records: a failing call costs a second pass over the good ones.
        """
        if len(records) >= _WORTH_COLUMNS and (batch := self._plain_batch(records)) is not None:
            return Validated(batch, range(len(records)), [])
        rows: list[Any] = [r.model_dump(exclude_none=True) if isinstance(r, BaseModel) else r for r in records]
        positions: Sequence[int] = range(len(rows))
        refused: dict[int, tuple[Problem, ...]] = {}
        try:
            values = self._adapter.validate_python(rows, strict=True)
        except ValidationError as exc:
            refused = _problems_by_position(exc)
            positions = [i for i in range(len(rows)) if i not in refused]
            values = self._adapter.validate_python([rows[i] for i in positions], strict=True)
        if self._typed is None:
            values = [_to_storage(value.model_dump(), self._struct) for value in values]
        try:
            batch = self._to_batch(values)
        except (pa.ArrowException, UnicodeError, OverflowError):
            kept = []
            for position, value in zip(positions, values, strict=True):
                try:
                    self._to_batch([value])
                except (pa.ArrowException, UnicodeError, OverflowError) as exc:
                    refused[position] = (Problem((), "bad-value", f"expected values that fit the columns, got: {exc}"),)
                else:
                    kept.append((position, value))
            positions = [position for position, _ in kept]
            batch = self._to_batch([value for _, value in kept])
        return Validated(batch, positions, sorted(refused.items()))

    def _plain_batch(self, records: Sequence[Any]) -> pa.RecordBatch | None:
        """Records of a built-in type that break no rule, in columns; None when they have to be validated one by one."""
        if self.model is None or self.model is not BUILT_IN.get(self.name):
            return None
        try:
            columns = columns_of(records, self._struct)
        except (pa.ArrowException, ValueError, OverflowError):  # UnicodeError is a ValueError
            return None
        if columns is None:
            return None
        batch = pa.RecordBatch.from_arrays(columns, schema=_nullable_id(self.schema))
        return None if self._bad_rows(batch).any() else batch

    def row(self, record: Mapping[str, Any] | BaseModel) -> dict[str, Any] | None:
        """One record as its columns hold it, with `ts` in microseconds since 1970; all its values are ones JSON has.

        None when it breaks a rule, which `validate` names, or when JSON can't hold it. Takes a tenth of the time that
        `validate` takes to make columns of one record.
        """
        if not self._is_json:
            return None
        given = record.model_dump(exclude_none=True) if isinstance(record, BaseModel) else record
        try:
            (value,) = self._adapter.validate_python([given], strict=True)
            if self._typed is None:
                value = _to_storage(value.model_dump(), self._struct)
            if self.model is not BUILT_IN.get(self.name):
                self._to_batch([value])  # an integer that is too large for its column
        except (ValidationError, pa.ArrowException, UnicodeError, OverflowError):
            return None
        row: dict[str, Any] = value
        if row.get("ts") is not None:
            row["ts"] = (row["ts"] - _EPOCH) // _MICROSECOND
            if not _FIRST <= row["ts"] <= _LAST:  # its year isn't one in UTC
                return None
        return row

    @cached_property
    def _is_json(self) -> bool:
        """Whether JSON has all values of the record type, but for `ts`."""
        return all(_is_json_type(field.type) for field in self.schema if field.name != "ts")

    def _to_batch(self, values: list[dict[str, Any]]) -> pa.RecordBatch:
        columns = pa.array(values, self._struct).flatten()
        for name in self._own_times:
            years = pc.year(columns[self.schema.get_field_index(name)])
            if pc.any(pc.or_(pc.less(years, 1), pc.greater(years, 9999))).as_py():
                raise OverflowError(f"a time in {name} that isn't of the years 1 to 9999 in UTC")
        return pa.RecordBatch.from_arrays(columns, schema=_nullable_id(self.schema))

    @cached_property
    def _own_times(self) -> list[str]:
        """Columns of times whose zone may take them out of the years that Python knows; `ts` is checked as it is read."""
        return [f.name for f in self.schema if f.name != "ts" and pa.types.is_timestamp(f.type)]

    def check_columns(self, table: pa.Table) -> None:
        """Raise InvalidRecordError, with every problem, when the table's columns don't fit: nothing of it can be stored."""
        problems = [
            Problem((name,), "bad-value", "expected one column of this name")
            for name in sorted({name for name in table.column_names if table.column_names.count(name) > 1})
        ]
        for field in table.schema:
            if field.name not in self.schema.names:
                known = ", ".join(self.schema.names)
                problems.append(Problem((field.name,), "unknown-field", f"expected one of {known}"))
            elif self._checks_columns and not same_values(field.type, self.schema.field(field.name).type):
                wanted = self.schema.field(field.name).type
                problems.append(Problem((field.name,), "wrong-type", f"expected {wanted}, got {field.type}"))
        problems += [
            Problem((field.name,), "missing-field", f"expected a column of {field.type}")
            for field in self.schema
            if not field.nullable and field.name != "id" and field.name not in table.column_names
        ]
        if problems:
            shown = "; ".join(map(str, problems[:3])) + ("; …" if len(problems) > 3 else "")
            raise InvalidRecordError(f"the table's columns don't fit: {shown}", problems)

    @property
    def _checks_columns(self) -> bool:
        """Whether Arrow types and `_bad_rows` say all that the record type demands; else its records are checked."""
        if any(_holds_times(field.type) for field in self.schema if pa.types.is_nested(field.type)):
            return False
        return self.model is None or (self.name in _BY_COLUMNS and self.model is BUILT_IN[self.name])

    @property
    def _is_nested_built_in(self) -> bool:
        """Whether it is a built-in type of messages: checked by columns as well, when its data is of the right kinds."""
        return self.model is not None and not self._checks_columns and self.model is BUILT_IN.get(self.name)

    def validate_arrow(self, table: pa.Table) -> Validated:
        """Check Arrow data by columns where the Arrow type says it all, by records otherwise.

        Raises InvalidRecordError when the table's columns themselves don't fit.
        """
        self.check_columns(table)
        if not self._checks_columns and not self._is_nested_built_in:
            return self._validate_rows(table, range(len(table)))
        try:
            columns = [
                fit(_one_chunk(table[field.name]), field.type)
                if field.name in table.column_names
                else pa.nulls(len(table), field.type)
                for field in self.schema
            ]
            batch = pa.RecordBatch.from_arrays(columns, schema=_nullable_id(self.schema))
            batch.validate(full=True)  # text that isn't UTF-8 would make a whole file of the store unreadable
        except pa.ArrowException:
            return self._validate_rows(table, range(len(table)))
        bad = self._bad_rows(batch)
        if not bad.any():
            return Validated(batch, range(len(batch)), [])
        # The few bad rows go the slow way: it finds the words for what is wrong with them.
        refused = dict(self._validate_rows(table, bad.nonzero()[0].tolist()).refused)
        unnamed = (Problem((), "bad-value", "expected values that the record type admits"),)
        accepted = (~bad).nonzero()[0]
        named = [(int(i), refused.get(int(i), unnamed)) for i in bad.nonzero()[0]]
        return Validated(batch.take(pa.array(accepted)), accepted.tolist(), named)

    def _validate_rows(self, table: pa.Table, positions: Sequence[int]) -> Validated:
        """Check some rows as records; positions count in the table."""
        rows, readable = [], []
        refused: list[tuple[int, tuple[Problem, ...]]] = []
        for position in positions:
            try:
                rows.append(_without_nulls(table.slice(position, 1).to_pylist()[0]))
                readable.append(position)
            except (ArithmeticError, ValueError) as exc:  # UnicodeDecodeError is a ValueError
                refused.append((position, (Problem((), "bad-value", f"expected values that Python can hold: {exc}"),)))
        checked = self.validate(rows)
        refused += [(readable[i], problems) for i, problems in checked.refused]
        return Validated(checked.batch, [readable[i] for i in checked.accepted], sorted(refused))

    def _bad_rows(self, batch: pa.RecordBatch) -> Any:
        """Boolean numpy mask of the rows that break a rule which Arrow types alone don't hold."""
        import numpy as np

        bad = np.zeros(len(batch), dtype=bool)

        def refuse(mask: Any) -> None:
            nonlocal bad
            bad |= np.asarray(pc.fill_null(mask, False))

        for field in self.schema:
            column = batch.column(field.name)
            if not field.nullable and field.name != "id" and column.null_count:
                refuse(pc.is_null(column))
            if column.null_count == len(column):
                continue
            if pa.types.is_timestamp(field.type) or pa.types.is_date(field.type):
                years = pc.year(column)
                refuse(pc.or_(pc.less(years, 1), pc.greater(years, 9999)))  # what Python's times can't hold
        ids, meta = batch.column("id"), batch.column("meta")
        split, origin = batch.column("split"), batch.column("origin")
        if ids.null_count < len(ids):
            refuse(pc.or_(pc.equal(pc.utf8_length(ids), 0), pc.greater(pc.utf8_length(ids), 512)))
        if split.null_count < len(split):
            refuse(pc.invert(pc.is_in(split, pa.array(["train", "heldout", None]))))
        if origin.null_count < len(origin):
            refuse(pc.invert(pc.match_substring_regex(origin, r"^(human|model|synthetic)(:.+)?$")))
        if self.model is not None and self.name == "tokens":  # a stored type of that name may have evolved since
            tokens = batch.column("tokens")  # a list of any length, whatever came
            refuse(pc.equal(pc.list_value_length(tokens), 0))
            wrong = pc.fill_null(pc.less(pc.list_flatten(tokens), 0), True)
            if pc.any(wrong).as_py():
                bad[np.unique(np.asarray(pc.list_parent_indices(tokens).filter(wrong)))] = True
        if self._is_nested_built_in:
            assert self.model is not None
            for name in self.payload:
                info = self.model.model_fields[name]
                bad |= broken(batch.column(name), info.annotation, tuple(info.metadata))
        rule = Record.model_fields["meta"]
        bad |= broken(meta, rule.annotation, tuple(rule.metadata))
        return bad


def _restored(name: str, schema: bytes, given: type[BaseModel] | None) -> RecordType:
    stored = RecordType.stored(name, pa.ipc.read_schema(pa.py_buffer(schema)))
    return stored if given is None else stored.with_rules_of(RecordType.of(given))


_EPOCH, _MICROSECOND = datetime(1970, 1, 1, tzinfo=UTC), timedelta(microseconds=1)
_FIRST = (datetime.min.replace(tzinfo=UTC) - _EPOCH) // _MICROSECOND
_LAST = (datetime.max.replace(tzinfo=UTC) - _EPOCH) // _MICROSECOND

#: Fewer records are validated one by one: columns take 450 µs to begin with (a chat), and are the faster way from some 60 to 300 on.
_WORTH_COLUMNS = 64
_BY_COLUMNS = frozenset({"labelled", "tokens"})  # built-in types whose rules _bad_rows knows in full


def _nullable_id(schema: pa.Schema) -> pa.Schema:
    return schema.set(schema.get_field_index("id"), schema.field("id").with_nullable(True))


def _one_chunk(column: pa.ChunkedArray) -> pa.Array:
    return column.chunk(0) if column.num_chunks == 1 else pa.concat_arrays(column.chunks or [pa.array([], column.type)])


def _to_storage(value: Any, kind: pa.DataType) -> Any:
    """A dumped model value as its Arrow column takes it: free-form values become JSON text."""
    if value is None:
        return None
    if pa.types.is_string(kind):
        return value if isinstance(value, str) else dump_json(value)
    if pa.types.is_struct(kind):
        return {field.name: _to_storage(value.get(field.name), field.type) for field in kind}
    if pa.types.is_list(kind):
        return [_to_storage(item, kind.value_type) for item in value]
    return value


def _problems_by_position(exc: ValidationError) -> dict[int, tuple[Problem, ...]]:
    found: dict[int, list[Problem]] = {}
    for error in exc.errors(include_url=False, include_context=False):
        position, *loc = error["loc"]
        code = error["type"]
        kind = _KINDS.get(code) or ("wrong-type" if code.endswith("_type") else "bad-value")
        message = error["msg"][:1].lower() + error["msg"][1:]
        if kind == "missing-field":
            message = "expected this field, got none"
        elif kind == "unknown-field":
            message = "expected only the record type's fields"
        else:
            message = f"{message.replace('input should be', 'expected')}, got {_short(error['input'])}"
        found.setdefault(int(position), []).append(Problem(tuple(loc), kind, message))
    return {position: tuple(problems) for position, problems in found.items()}


def _without_nulls(value: Any) -> Any:
    """Structs with their null members left out: Arrow has no other way to say that a member is missing."""
    if isinstance(value, dict):
        return {key: _without_nulls(item) for key, item in value.items() if item is not None}
    return [_without_nulls(item) for item in value] if isinstance(value, list) else value


def _is_json_type(kind: pa.DataType) -> bool:
    t = pa.types
    if pa.types.is_nested(kind):
        return all(_is_json_type(kind.field(i).type) for i in range(kind.num_fields))
    plain = (t.is_string, t.is_large_string, t.is_boolean, t.is_integer, t.is_float32, t.is_float64)
    return any(is_one(kind) for is_one in plain)


def _holds_times(kind: pa.DataType) -> bool:
    if pa.types.is_nested(kind):
        return any(_holds_times(kind.field(i).type) for i in range(kind.num_fields))
    return bool(pa.types.is_temporal(kind))


def safe_repr(value: Any) -> str:
    """`repr(value)`, whatever the value does about it."""
    try:
        return repr(value)
    except Exception:
        return f"<{type(value).__name__} that can't be shown>"


def _short(value: Any) -> str:
    text = safe_repr(value)
    return f"{type(value).__name__} {text if len(text) <= 48 else text[:45] + '...'}"
