"""JSON as RFC 8259 has it, and no more: what another reader would take for something else is refused by name.

Python's own parser takes NaN, lets the last of two equal keys win, turns 1e999 into infinity and can run out of stack.
"""

from __future__ import annotations

import json
from typing import Any

import jiter

__all__ = ["MOST_BYTES", "parse_json"]

#: Bytes of one JSON text. A record larger than this isn't one, and reading it would take a multiple in memory.
MOST_BYTES = 64 << 20

#: Every digit as 0, every E as e, and a plus, which may stand after it, as one digit more: then two searches for fixed bytes tell
#: where a number may lie beyond a double's range, in a fraction of the time of one for a pattern.
_SHAPE = bytes(ord("0") if byte in b"0123456789+" else ord("e") if byte == ord("E") else byte for byte in range(256))
_POWER, _LONG = b"0e000", b"0" * 300
_DIGITS = b"0."
_HALF = "unexpected end of hex escape"  # as the parser calls either
#: What stands before a number that is a value of its own.
_BEFORE = frozenset(b":,[ \t\r\n")


def parse_json(text: str | bytes) -> Any:
    """The value that a JSON text says. Raises ValueError that says what is wrong, and where.

    Refused: NaN and infinities, by name or as a number beyond a double's range; an object's key said twice; lone
    surrogates and other bytes that aren't UTF-8; nesting beyond about 200; integers of more than 4,300 digits.
    """
    data = text.encode("utf-8", "surrogatepass") if isinstance(text, str) else text
    if len(data) > MOST_BYTES:
        raise ValueError(f"{len(data):,} bytes are more than the {MOST_BYTES:,} that one record may have")
    try:
        value = jiter.from_json(data, allow_inf_nan=False, catch_duplicate_keys=True)
    except ValueError as exc:
        said = str(exc)
        if _HALF not in said:
            raise
        raise ValueError(said.replace(_HALF, "a \\u escape that ends too soon, or half of a surrogate pair")) from None
    shape = data.translate(_SHAPE)
    at = shape.find(_POWER)
    if (at >= 0 and _has_power(shape, at)) or _LONG in shape:
        json.loads(data, parse_float=_finite)  # looked through once more
    return value


def _has_power(shape: bytes, at: int) -> bool:
    """Whether what looks like a number with a large exponent, first at `at`, stands alone, not in text: hex has it all the time."""
    while at >= 0:
        before = shape[max(0, at - len(_LONG)) : at].rstrip(_DIGITS).removesuffix(b"-")
        if not before or before[-1] in _BEFORE:
            return True
        at = shape.find(_POWER, at + len(_POWER))
    return False


def _finite(number: str) -> float:
    value = float(number)
    if value in (float("inf"), float("-inf")):
        raise ValueError(f"the number {number[:40]} is beyond what a double can hold")
    return value
