"""What a record is: record types, their Arrow columns, and strict validation. Pure: no file is touched here."""

from treering.schema.arrow import COMMON
from treering.schema.evolution import Alignment, ColumnRule, Version
from treering.schema.fields import Arguments, Int32, Json, JsonArray, JsonObject, Origin, Split, Timestamp
from treering.schema.record_type import RecordType, SchemaSpec, Validated, fingerprint
from treering.schema.records import (
    BUILT_IN,
    Chat,
    FunctionCall,
    Labelled,
    Message,
    Preference,
    Record,
    Tokens,
    ToolCall,
)
from treering.schema.strict_json import parse_json

__all__ = [
    "BUILT_IN",
    "COMMON",
    "Alignment",
    "Arguments",
    "Chat",
    "ColumnRule",
    "FunctionCall",
    "Int32",
    "Json",
    "JsonArray",
    "JsonObject",
    "Labelled",
    "Message",
    "Origin",
    "Preference",
    "Record",
    "RecordType",
    "SchemaSpec",
    "Split",
    "Timestamp",
    "Tokens",
    "ToolCall",
    "Validated",
    "Version",
    "fingerprint",
    "parse_json",
]
