"""JSON as RFC 8259 has it, and no more: what another reader would take for something else is refused by name.

Python's own parser takes NaN, lets the last of two equal keys win, turns 1e999 into infinity and can run out of stack.
"""

from __future__ import annotations

import json
import re
from typing import Any

import jiter

__all__ = ["MOST_BYTES", "parse_json"]

#: Bytes of one JSON text. A record larger than this isn't one, and reading it would take a multiple in memory.
MOST_BYTES = 64 << 20

#: Where a number may lie beyond a double's range: only then is the text looked through once more.
#: It begins with a digit, so that the search goes from digit to digit: beginning with [eE] it takes three times the parse.
_HUGE = re.compile(rb"[0-9](?:\.?[eE]\+?0*[0-9]{3}|[0-9]{299})")


def parse_json(text: str | bytes) -> Any:
    """The value that a JSON text says. Raises ValueError that says what is wrong, and where.

    Refused: NaN and infinities, by name or as a number beyond a double's range; an object's key said twice; lone
    surrogates and other bytes that aren't UTF-8; nesting beyond about 200; integers of more than 4,300 digits.
    """
    data = text.encode("utf-8", "surrogatepass") if isinstance(text, str) else text
    if len(data) > MOST_BYTES:
        raise ValueError(f"{len(data):,} bytes are more than the {MOST_BYTES:,} that one record may have")
    value = jiter.from_json(data, allow_inf_nan=False, catch_duplicate_keys=True)
    if _HUGE.search(data):
        json.loads(data, parse_float=_finite)
    return value


def _finite(number: str) -> float:
    value = float(number)
    if value in (float("inf"), float("-inf")):
        raise ValueError(f"the number {number[:40]} is beyond what a double can hold")
    return value
