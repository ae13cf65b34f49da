"""JSON Lines: a record is one line of JSON, or several."""

from __future__ import annotations

import json
import re
import secrets
from abc import abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import date, datetime
from itertools import zip_longest
from typing import TYPE_CHECKING, Any

from typing_extensions import override

from treering.errors import InvalidRecordError, Problem
from treering.formats.writers.base import Exporter, LeftOut

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["JsonLines", "Raw", "one_line"]

_AT_ONCE = 256  # records that are Python values at the same time
_PLACE = secrets.token_hex(16)  # stands where `Raw` goes, while the rest is written: text that nobody else can have
# JSON allows these inside text, but readers that cut a file by `str.splitlines` take some for ends of lines, and terminals
# take others for commands.
_CONTROLS = re.compile("[\x7f-\x9f\u2028\u2029]")


@dataclass(frozen=True, slots=True)
class Raw:
    """JSON text that goes out as it stands: no number and no order of keys is changed by parsing it and writing it anew."""

    text: str


class JsonLines(Exporter):
    """An exporter that says in `lines` what becomes of a record."""

    suffix = ".jsonl"

    @abstractmethod
    def lines(self, record: dict[str, Any]) -> Iterable[Any]:
        """The JSON values (dicts and lists, of which any part may be `Raw`) of a record, a line each; None is a null column.

        `note` what the format has no place for. Raises InvalidRecordError for a record that it can't hold.
        """

    def note(self, what: str) -> None:
        """Say that the record in hand holds something that the format has no place for."""
        self._noted.add(what)

    def unnote(self, what: str) -> None:
        """Say that a column of the record in hand comes back out of the file after all."""
        self._noted.discard(what)

    @override
    def encode(self, batch: pa.RecordBatch) -> bytes:
        return b"".join([made for made in self.each(batch) if made is not None])

    @override
    def each(self, batch: pa.RecordBatch) -> Iterator[bytes | None]:
        held = self.holds
        unheld = [name for name in batch.schema.names if name not in held]
        for record in _records(batch):
            self._noted = {name for name in unheld if record[name] is not None}
            try:
                made = [one_line(value) for value in self.lines(record)]
            except InvalidRecordError as exc:
                if not self.skip:
                    raise InvalidRecordError(
                        f"record {record.get('id')} has no form in {self.name}: {exc.problems[0]}",
                        exc.problems,
                        hint="leave such records out, and have them counted: --skip-unfit (skip_unfit=True)",
                    ) from exc
                self.left_out.append(LeftOut(str(record.get("id")), exc.problems))
                yield None
                continue
            self.rows += 1
            self.dropped.update(self._noted)
            yield "".join([f"{line}\n" for line in made]).encode()


def one_line(value: Any) -> str:
    """JSON text of a value, without line ends. Raises InvalidRecordError for what JSON has no form for: NaN, infinity, bytes."""
    raw: list[str] = []

    def spelt(part: Any) -> str:
        if isinstance(part, Raw):
            raw.append(part.text)
            return _PLACE
        if isinstance(part, datetime | date):
            return part.isoformat()
        raise TypeError

    try:
        text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"), default=spelt)
    except (ValueError, TypeError) as exc:
        problem = _unspeakable(value, ())
        raise InvalidRecordError(str(problem), [problem]) from exc
    if raw:
        pieces = text.split(f'"{_PLACE}"')
        text = "".join([part for pair in zip_longest(pieces, raw, fillvalue="") for part in pair])
    return _CONTROLS.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def _unspeakable(value: Any, loc: tuple[str | int, ...]) -> Problem:
    """What in a value JSON has no form for, and where."""
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, part in inside:
        try:
            one_line(part)
        except InvalidRecordError:
            return _unspeakable(part, (*loc, key))
    return Problem(loc, "bad-value", f"expected a value that JSON can hold, got {value!r:.40}")


def _records(batch: pa.RecordBatch) -> Iterator[dict[str, Any]]:
    for start in range(0, len(batch), _AT_ONCE):
        yield from batch.slice(start, _AT_ONCE).to_pylist()
