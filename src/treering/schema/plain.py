"""Any value as JSON can hold it: what is kept of a record that was refused. Pure."""

from __future__ import annotations

import json
import re
from typing import Any

from treering.schema.record_type import safe_repr

__all__ = ["plain", "printable"]

_SURROGATE = re.compile("[\ud800-\udfff]")  # lone, since they stand in a Python string: UTF-8 can't hold them
_LONGEST = 1_000_000  # characters that are kept of a record that JSON can't hold


def plain(record: Any) -> Any:
    """A refused record as JSON can hold it; else its `repr`. The same again for what it has given."""
    try:
        text = json.dumps(record, default=safe_repr, ensure_ascii=False)
        return json.loads(_SURROGATE.sub(lambda found: rf"\\u{ord(found[0]):04x}", text), parse_constant=str)
    except (TypeError, ValueError, RecursionError):
        return printable(safe_repr(record)[:_LONGEST])


def printable(text: str) -> str:
    """The text with lone surrogates spelt out: UTF-8 can't hold them."""
    return text.encode("utf-8", "backslashreplace").decode()
