"""Whole-file JSON cut into its elements, each with its own text, while no more than one of them is held.

An array is opened up; so is an object's list under a name that is asked for; anything else is a value of its own, and several
may follow each other. Only strings and brackets are looked at: an element that isn't JSON is cut out like any other and can be
refused alone. (The streaming parsers there are, ijson and the standard library's, stop for good at the first bad byte, and give
values without the text that quarantine and ids need.) Pure.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Iterator
from typing import Any

from treering.schema import parse_json
from treering.schema.strict_json import MOST_BYTES

__all__ = ["Cutter", "is_document"]

_STRING = rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"'
#: Strings and brackets; a quotation mark alone opens a string whose end hasn't come yet.
_INSIDE = re.compile(_STRING + rb'|[\[\]{}]|"', re.DOTALL)
#: The same and commas, where they part elements.
_BETWEEN = re.compile(_STRING + rb'|[\[\]{},]|"', re.DOTALL)


def _nested(deep: int) -> bytes:
    """A pattern for what stands in brackets and has so many more levels inside; which bracket it is says nothing, as below."""
    inside = _STRING + (rb"|" + _nested(deep - 1) if deep else b"")
    return rb'[\[{][^"\[\]{}]*+(?:(?:' + inside + rb')[^"\[\]{}]*+)*+[\]}]'


#: A whole element up to its comma, or the end of the list: one step where brackets and strings are some dozens. Deeper ones go the
#: longer way.
_ELEMENT = re.compile(rb"\s*+(" + _nested(20) + rb")\s*+(?:,|(?=[\]}]))", re.DOTALL)
_COLON = re.compile(rb"\s*:\s*")
_OPEN, _CLOSE, _COMMA, _QUOTE = frozenset(b"[{"), frozenset(b"]}"), ord(","), ord('"')


class Cutter:
    """Takes the bytes of a document piece by piece and gives the texts of its elements."""

    def __init__(self, members: Collection[str] = ()) -> None:
        """`members`: names under which an object may hold the list of elements."""
        self._members = frozenset(members)
        self._data = bytearray()
        self._at = 0  # looked through up to here
        self._start = 0  # where the element begins
        self._depth = 0  # of brackets
        self._level = (
            0  # at this depth elements stand side by side: 0 in the file, 1 in its array, 2 in an object's list
        )
        self._opened = False  # whether this object's list was opened up: then it isn't an element itself
        self._is_long = False  # the element is beyond what one may have, and its beginning has been given
        self._string = (0, 0)  # the last one at depth 1 of an object, its first byte and its end

    def feed(self, data: bytes) -> Iterator[bytes]:
        """The texts that end in these bytes. One of more than `MOST_BYTES` comes cut off, one byte longer than that.

        Raises ValueError when a single string is longer than that.
        """
        self._data += data
        while True:
            yield from self._elements()
            if (found := self._next()) is None:
                break
            if found:
                yield found
        size = len(self._data) - self._start
        if not self._is_long and size > MOST_BYTES and (self._level or self._depth):
            yield bytes(self._data[self._start : self._start + MOST_BYTES + 1])
            self._is_long = True
        self._trim()

    def finish(self) -> Iterator[bytes]:
        """What stands after the last element, if that is anything. Raises ValueError when the document isn't complete."""
        if self._depth or self._level:
            raise ValueError("it ends in the middle of a value")
        rest = bytes(self._data[self._start :]).strip()
        if rest:
            yield rest[: MOST_BYTES + 1]

    @property
    def is_inside(self) -> bool:
        """Whether a value is open."""
        return bool(self._depth or self._level)

    def _elements(self) -> Iterator[bytes]:
        """Whole elements that stand where the look-through is, as long as there are some."""
        if not self._level or self._depth != self._level or self._at != self._start or self._is_long:
            return
        while (element := _ELEMENT.match(self._data, self._at)) is not None:
            self._at = self._start = element.end()
            yield bytes(element[1])

    def _next(self) -> bytes | None:
        """The next text, b"" when the look-through has to go on another way, None when more bytes are needed."""
        pattern = _BETWEEN if self._level and self._depth == self._level else _INSIDE
        data, depth = self._data, self._depth
        for token in pattern.finditer(data, self._at):
            first = data[token.start()]
            if first in _OPEN:
                if depth == self._level or depth == 1:
                    self._depth, self._at = depth, token.end()
                    return self._open(token.start(), first)
                depth += 1
            elif first in _CLOSE:
                if depth - 1 <= self._level or depth <= 1:
                    self._depth, self._at = depth, token.end()
                    return self._close(token.start(), token.end())
                depth -= 1
            elif first == _COMMA:
                self._at = token.end()
                return self._cut(token.start(), token.end())
            elif first == _QUOTE and token.end() - token.start() == 1:  # its end hasn't come yet
                self._depth, self._at = depth, token.start()
                if len(data) - token.start() > MOST_BYTES:
                    raise ValueError(f"a string has more than {MOST_BYTES:,} bytes")
                return None
            elif depth == 1:
                self._string = token.span()
        self._depth, self._at = depth, len(data)
        return None

    def _open(self, at: int, bracket: int) -> bytes:
        self._depth += 1
        if self._level == 0 and self._depth == 1:
            before = bytes(self._data[self._start : at]).strip()
            self._start, self._string = at, (0, 0)
            if bracket == ord("["):
                self._level, self._start = 1, at + 1
            return before[: MOST_BYTES + 1]
        if self._level == 0 and self._depth == 2 and bracket == ord("[") and self._is_named(at):
            self._level, self._start, self._opened, self._is_long = 2, at + 1, True, False
        return b""

    def _is_named(self, at: int) -> bool:
        first, end = self._string
        if not end or not self._members or not _COLON.fullmatch(self._data, end, at):
            return False
        try:
            return json.loads(self._data[first:end]) in self._members
        except ValueError:
            return False

    def _close(self, at: int, end: int) -> bytes:
        self._depth = max(0, self._depth - 1)
        if self._level and self._depth < self._level:  # the list itself ends
            self._level = 0
            found = self._cut(at, end)
            self._string = (0, 0)
            return found
        if self._level == 0 and self._depth == 0:
            if self._opened:
                self._opened, self._start, self._is_long = False, end, False
                return b""
            return self._cut(end, end)
        return b""

    def _cut(self, at: int, end: int) -> bytes:
        """The element that ends before `at`; the next begins at `end`."""
        found = b"" if self._is_long else bytes(self._data[self._start : at]).strip()
        self._start, self._is_long = end, False
        return found

    def _trim(self) -> None:
        # What of an opened object stands beside its list is of no use, but for the name before a colon.
        keep = self._at if self._is_long else self._start
        if self._opened and self._level == 0:
            keep = min(self._at, self._string[0]) if self._string[1] else self._at
        if keep:
            del self._data[:keep]
            self._at -= keep
            self._start = max(0, self._start - keep)
            first, end = self._string
            self._string = (first - keep, end - keep) if first >= keep else (0, 0)


def is_document(
    head: bytes,
    members: Collection[str] = (),
    is_value: Callable[[Any, bool], bool] | None = None,
    *,
    is_all: bool = False,
) -> bool:
    """Whether what begins like this is whole-file JSON rather than a value a line.

    An array of objects is; so is an object that goes on over lines, or holds a list under one of `members`, unless the first line
    is known for a value as it stands (`is_value`, of the object and whether the next line begins another one). A first line
    that is merely broken is not, when the second is an object, or there is none: `is_all` says that nothing follows.
    """
    text = head.lstrip()
    if text[:1] == b"[":
        return text[1:].lstrip()[:1] in (b"{", b"]")
    if text[:1] != b"{" or text[1:].lstrip()[:1] not in (b'"', b"}", b""):
        return False
    first, newline, rest = text.partition(b"\n")
    if (value := _object(first)) is not None:
        holds = any(isinstance(value.get(name), list) for name in members)
        return holds and (is_value is None or not is_value(value, rest.lstrip()[:1] == b"{"))
    look = Cutter(members)
    for _ in look.feed(first):
        pass
    if look._opened or look._level:
        return True
    if not newline or not look.is_inside:
        return False
    second = next((line for line in rest.split(b"\n") if line.strip()), None)
    return not is_all if second is None else _object(second) is None


def _object(line: bytes) -> dict[str, Any] | None:
    try:
        value = parse_json(line)
    except ValueError:
        return None
    return value if isinstance(value, dict) else None
