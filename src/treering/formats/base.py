"""The seam of importers: parsed values in, records out, and what became of everything else.

Knows no format. Reading files, cutting them into values and storing what is found is capture's.
"""

from __future__ import annotations

import hashlib
import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Set
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, ClassVar, TypeAlias

import xxhash
from pydantic_core import to_json

from treering.errors import Problem, UsageError
from treering.schema import RecordType, parse_json
from treering.schema.fields import dump_json

__all__ = ["KEPT", "Found", "Importer", "Outcome", "Passed", "TextIds", "Unfit", "hashed_id", "tools_text"]

#: The member of a record's `meta` that holds what its fields don't; see formats.chat.
KEPT = "kept"

_HAS_ID = re.compile(rb'\s*\{\s*"id"\s*:\s*"')


@dataclass(frozen=True, slots=True)
class Found:
    """A record that was found in the input."""

    record: dict[str, Any]  # fields of the corpus' record type, in the shape `Recorder.extend` takes; `id` is set
    line: int  # from 1: the line (row, element) it comes from; of a conversation over many lines the last
    annotations: tuple[
        dict[str, Any], ...
    ] = ()  # JSON values: arguments of `Corpus.annotate` but the id; stored once the record is


@dataclass(frozen=True, slots=True)
class Unfit:
    """Something that doesn't fit; it goes to quarantine with its problems."""

    line: int
    problems: tuple[Problem, ...]
    kept: Any  # what quarantine keeps of it: the parsed value, or the text


@dataclass(frozen=True, slots=True)
class Passed:
    """Rightly not a record: a span without content, a line about the editor, a copied step."""

    line: int
    why: str  # a short fixed phrase in the plural ("spans without content"): the summary counts by it


Outcome: TypeAlias = Found | Unfit | Passed


class TextIds:
    """Ids for values that bring none: from where they come and what they say."""

    def __init__(self, origin: str | None) -> None:
        self._origin = None if origin is None else origin.encode("utf-8", "surrogateescape") + b"\0"
        self._seen: dict[bytes, int] = {}
        self._has_made = False

    def of(self, text: bytes) -> str | None:
        """32 hex characters; None where there is no origin: each value of a stream is a record of its own.

        The n-th copy of a text has an id of its own: two users may well say the same.
        """
        if self._origin is None:
            return None
        self._has_made = True
        text = text.strip()
        copy = self._count(text)
        key = hashlib.blake2b(self._origin + text, digest_size=16).digest()
        return hashlib.blake2b(key + copy.to_bytes(8, "big"), digest_size=16).hexdigest() if copy else key.hex()

    def pass_over(self, text: bytes) -> None:
        """Count a text whose id somebody else makes, if it needs one at all: whether it does is the same of each of its copies."""
        if self._origin is not None:
            self._count(text.strip())

    def _count(self, text: bytes) -> int:
        """How often it was seen before."""
        key = xxhash.xxh3_128_digest(text)
        copy = self._seen.get(key, 0)
        self._seen[key] = copy + 1
        return copy

    def __bool__(self) -> bool:
        """Whether any ids were made."""
        return self._has_made

    def clear(self) -> None:
        """Begin to count anew."""
        self._seen.clear()
        self._has_made = False


class Importer(ABC):
    """Turns the values of one file or stream into records, in order.

    What it gives is a function of the values it was fed and of `origin` alone (no clock, no chance): ids stay the same at
    every import, and an import that was cut short is continued by feeding it again and leaving out what is stored.
    """

    name: ClassVar[str]  # as --format says it
    makes: ClassVar[tuple[str, ...]]  # the record types it can fill: ("chat",), ("chat", "preference"); () is any
    #: A whole file may be one JSON object whose list under one of these names holds the values: ("data",).
    elements: ClassVar[tuple[str, ...]] = ()
    #: Whether a value's records depend on no other value, but for ids by `own_id` of its whole text, and `finish` gives nothing:
    #: then several workers may share a file's values. Each class says it for itself; none inherits it.
    stands_alone: ClassVar[bool] = False

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        cls.stands_alone = cls.__dict__.get("stands_alone", False)

    def __init__(self, target: RecordType, origin: str | None) -> None:
        """For a corpus' record type. `origin` is what ids of values without own ids hash: a path or URL; None for a stream.

        Raises UsageError when the format can't fill that record type.
        """
        if not self.can_fill(target):
            kinds = " or ".join(f"--schema {kind}" for kind in self.makes)
            raise UsageError(
                f"the format {self.name} can't fill records of the type {target.name}",
                code="wrong-record-type",
                hint=f"make a corpus for it: treering create NAME {kinds}",
            )
        self.target = target
        self.origin = origin
        self.kind = target.built_in
        self._columns = frozenset(target.schema.names)
        self._ids = TextIds(origin)
        self._began = False

    @classmethod
    def can_fill(cls, target: RecordType) -> bool:
        """Whether some form of this format fits a record type."""
        return not cls.makes or target.built_in in cls.makes

    @classmethod
    def takes_whole(cls, value: dict[str, Any]) -> bool:
        """Whether an object with a list under one of `elements` may be fed as it stands: then files have one a line."""
        return False

    @classmethod
    @abstractmethod
    def recognises(cls, value: Any) -> bool:
        """Whether this parsed value is of this format; at most one format says so of any value."""

    @abstractmethod
    def feed(self, line: int, value: Any, text: bytes) -> Iterable[Outcome]:
        """What a value (any JSON value, from `text`) makes; `line` counts from 1. Nothing while it is held back."""

    def finish(self) -> Iterable[Outcome]:
        """What was held back until the input ended, such as conversations that were still open."""
        return ()

    @property
    def remembers(self) -> bool:
        """Whether what it makes of later values depends on those it has been fed; False lets an import be continued faster."""
        return True

    def pass_over(self, text: bytes) -> None:
        """Know of a value that another worker takes; of formats whose values stand alone."""
        if _HAS_ID.match(text) is None:  # else it needs none: most files put it first
            self._ids.pass_over(text)

    def own_id(self, text: bytes) -> str | None:
        """An id for a value without one; see `TextIds`."""
        return self._ids.of(text)

    # --- what formats of one record a value share ------------------------------------------------------------------

    def needs(self, kind: str, line: int, value: Any) -> Unfit | None:
        """None when the corpus holds records of that built-in type; else what to answer. Raises as `misfit` does."""
        if self.kind == kind:
            self._began = True
            return None
        return self.misfit(kind, line, value)

    def misfit(self, schema: str, line: int, value: Any) -> Unfit:
        """The answer to a value of a form that needs another record type: `schema`, as `create --schema` takes it.

        Raises UsageError when nothing has fitted so far: then it is the corpus that doesn't fit the file.
        """
        has = f"the corpus holds records of the type {self.target.name}"
        if not self._began:
            raise UsageError(
                f"line {line:,} is {self.name} data of a form that needs another record type; {has}",
                code="wrong-record-type",
                hint=f"make a corpus for it: treering create NAME --schema {schema}",
            )
        return Unfit(
            line, (Problem((), "bad-value", f"expected what fits the corpus: this form needs {schema}; {has}"),), value
        )

    def take_rest(self, value: Mapping[str, Any], done: Set[str], record: dict[str, Any], kept: dict[str, Any]) -> None:
        """Put members that aren't `done` where they belong: into the column of their name, or else to what is kept."""
        for key, one in value.items():
            if key in done or one is None:
                continue
            if key == "tools" and key in self._columns:
                if one:
                    record[key] = tools_text(one) if isinstance(one, list) else one
                else:
                    kept[key] = one
            elif key in self._columns:
                record[key] = one
            else:
                kept[key] = one

    def complete(
        self, record: dict[str, Any], kept: Mapping[str, Any], text: bytes, *, about: Mapping[str, Any] | None = None
    ) -> None:
        """Give a record its id, unless it has one, and its `meta` what is kept and `about` it."""
        if kept or about:
            meta = record.get("meta")
            if isinstance(meta, str):
                with suppress(ValueError):  # refused by validation, with its words
                    meta = parse_json(meta)
            if meta is None or isinstance(meta, dict):
                record["meta"] = {**(meta or {}), **(about or {}), **({KEPT: kept} if kept else {})}
        if record.get("id") is None and (made := self.own_id(text)) is not None:
            record["id"] = made


_TOOLS: dict[bytes, str] = {}
_MOST_TOOLS, _TOOLS_BYTES = 64, 32 << 10


def tools_text(tools: Any) -> str:
    """Tools on offer as JSON text, in the order of their keys: mostly those of the record before.

    Raises ValueError for what JSON can't hold.
    """
    try:
        key = to_json(tools)  # four times as fast, but numbers look another way in it
    except ValueError:
        return dump_json(tools)
    text = _TOOLS.get(key)
    if text is None:
        text = dump_json(tools)
        if len(key) <= _TOOLS_BYTES:
            if len(_TOOLS) >= _MOST_TOOLS:
                _TOOLS.clear()
            _TOOLS[key] = text
    return text


def hashed_id(*parts: str | int) -> str:
    """An id (32 hex characters) from what names a record in its format: format, session, position.

    Parts are kept apart: ("a", "bc") and ("ab", "c") differ.
    """
    digest = hashlib.blake2b(digest_size=16)
    for part in parts:
        data = str(part).encode("utf-8", "surrogatepass")
        digest.update(len(data).to_bytes(8, "big") + data)
    return digest.hexdigest()
