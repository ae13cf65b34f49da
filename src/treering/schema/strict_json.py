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

#: Every digit as 0, every E as e: then three searches for fixed bytes tell whether a number may lie beyond a double's range, in
#: half the time of one for a pattern. Only where it may, the text is looked through once more.
_SHAPE = bytes(
    ord("0") if chr(byte).isdigit() and byte < 128 else ord("e") if byte == ord("E") else byte for byte in range(256)
)
_HUGE = (b"0e000", b"0e+000", b"0" * 300)


def parse_json(text: str | bytes) -> Any:
    """The value that a JSON text says. Raises ValueError that says what is wrong, and where.

    Refused: NaN and infinities, by name or as a number beyond a double's range; an object's key said twice; lone
    surrogates and other bytes that aren't UTF-8; nesting beyond about 200; integers of more than 4,300 digits.
    """
    data = text.encode("utf-8", "surrogatepass") if isinstance(text, str) else text
    if len(data) > MOST_BYTES:
        raise ValueError(f"{len(data):,} bytes are more than the {MOST_BYTES:,} that one record may have")
    value = jiter.from_json(data, allow_inf_nan=False, catch_duplicate_keys=True)
    shape = data.translate(_SHAPE)
    if _HUGE[0] in shape or _HUGE[1] in shape or _HUGE[2] in shape:
        json.loads(data, parse_float=_finite)
    return value


def _finite(number: str) -> float:
    value = float(number)
    if value in (float("inf"), float("-inf")):
        raise ValueError(f"the number {number[:40]} is beyond what a double can hold")
    return value
