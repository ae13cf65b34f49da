"""Nested Arrow data fitted to a record type's columns and checked by columns: no Python per row.

Knows the field types that the built-in models are made of. What it can't judge, records are checked for one by one.
"""

from __future__ import annotations

import types
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from annotated_types import MinLen
from pydantic import BaseModel, WithJsonSchema
from pydantic.fields import FieldInfo

from treering.schema.fields import Arguments, Int32, JsonArray, JsonObject
from treering.schema.strict_json import parse_json

__all__ = ["Mask", "broken", "fit", "same_values"]

Mask = np.ndarray[Any, np.dtype[np.bool_]]


def same_values(given: pa.DataType, wanted: pa.DataType) -> bool:
    """Whether a cast changes only the layout, never a value."""
    t = pa.types
    if given == wanted or t.is_null(given):
        return True
    if t.is_dictionary(given):
        return same_values(given.value_type, wanted)
    strings = (t.is_string, t.is_large_string, t.is_string_view)
    binaries = (t.is_binary, t.is_large_binary, t.is_binary_view)
    for family in (strings, binaries):
        if any(f(given) for f in family) and any(f(wanted) for f in family):
            return True
    if _is_list(given) and t.is_list(wanted):
        return same_values(given.value_type, wanted.value_type)
    return bool(t.is_timestamp(given) and t.is_timestamp(wanted) and given.tz and wanted.tz and given.unit != "ns")


def fit(array: pa.Array, wanted: pa.DataType) -> pa.Array:
    """The same values as `wanted`: members of structs in its order, missing ones null, narrower integers where all fit.

    Raises pa.ArrowInvalid when they are of another kind, or a struct has a member too many.
    """
    given, t = array.type, pa.types
    if given == wanted:
        return array
    if t.is_struct(given) and t.is_struct(wanted):
        members = dict(zip((field.name for field in given), array.flatten(), strict=True))
        unknown = set(members) - {field.name for field in wanted}
        if unknown or len(members) < given.num_fields:
            raise pa.ArrowInvalid(f"members that are unknown, or there twice: {sorted(unknown)}")
        children = [
            fit(members[field.name], field.type) if field.name in members else pa.nulls(len(array), field.type)
            for field in wanted
        ]
        return pa.StructArray.from_arrays(children, fields=list(wanted), mask=array.is_null())
    if _is_list(given) and t.is_list(wanted):
        lengths = np.asarray(pc.fill_null(pc.list_value_length(array), 0)).astype(np.int64)
        offsets = pa.array(np.concatenate([[0], np.cumsum(lengths)]), pa.int32())
        values = fit(pc.list_flatten(array), wanted.value_type)
        return pa.ListArray.from_arrays(offsets, values, type=wanted, mask=array.is_null())
    if not same_values(given, wanted) and not (t.is_integer(given) and t.is_integer(wanted)):
        raise pa.ArrowInvalid(f"{given} isn't {wanted}")
    return array.cast(wanted)


def broken(array: pa.Array, annotation: Any, rules: tuple[Any, ...] = ()) -> Mask:
    """Which values (n,) break a rule of a model's field that its Arrow type doesn't hold: bool (n,).

    Knows strings and Int32, Literals, lists with a least length, JSON text, and models of these. Raises TypeError for others.
    """
    annotation, rules, optional = _unwrapped(annotation, rules)
    if optional and array.null_count == len(array):
        return np.zeros(len(array), bool)
    valid = np.asarray(array.is_valid())
    wrong = np.zeros(len(array), bool) if optional else ~valid
    if annotation is str and rules in (_rules(JsonObject), _rules(JsonArray)):
        kind = dict if rules == _rules(JsonObject) else list
        wrong[valid] = np.array([not _holds_json(text, kind) for text in array.drop_null().to_pylist()], bool)
    elif (annotation is str and rules in ((), _rules(Arguments))) or (annotation is int and rules == _rules(Int32)):
        pass
    elif get_origin(annotation) is Literal and not rules:
        wrong |= valid & ~np.asarray(pc.is_in(array, pa.array(get_args(annotation))))
    elif get_origin(annotation) is list and all(isinstance(rule, MinLen) for rule in rules):
        (item,) = get_args(annotation)
        inside = broken(pc.list_flatten(array), item)
        wrong[np.asarray(pc.list_parent_indices(array))[inside]] = True
        least = max((rule.min_length for rule in rules), default=0)
        wrong |= valid & (np.asarray(pc.fill_null(pc.list_value_length(array), least)) < least)
    elif isinstance(annotation, type) and issubclass(annotation, BaseModel) and not rules:
        for child, info in zip(array.flatten(), annotation.model_fields.values(), strict=True):
            wrong |= valid & broken(child, info.annotation, tuple(info.metadata))
    else:
        raise TypeError(f"{annotation} with {rules} isn't checked by columns")
    return wrong


def _unwrapped(annotation: Any, rules: tuple[Any, ...]) -> tuple[Any, tuple[Any, ...], bool]:
    """The annotation without `Annotated` and `| None`, the rules that came with it, and whether it may be null."""
    optional = False
    while True:
        origin = get_origin(annotation)
        if origin in (Union, types.UnionType):
            members = [member for member in get_args(annotation) if member is not type(None)]
            if len(members) != 1:
                raise TypeError(f"{annotation} isn't checked by columns")
            optional, annotation = True, members[0]
        elif origin is Annotated:
            annotation, *more = get_args(annotation)
            rules = (*rules, *more)
        else:
            # A Field brings several rules along; how JSON Schema shows them is none.
            plain = [one for rule in rules for one in (rule.metadata if isinstance(rule, FieldInfo) else [rule])]
            return annotation, tuple(rule for rule in plain if not isinstance(rule, WithJsonSchema)), optional


def _rules(field_type: Any) -> tuple[Any, ...]:
    return _unwrapped(field_type, ())[1]


def _is_list(kind: pa.DataType) -> bool:
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind))


def _holds_json(text: str, kind: type) -> bool:
    try:
        return isinstance(parse_json(text), kind)
    except ValueError:
        return False
