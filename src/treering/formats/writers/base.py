"""The seam of exporters: records in, the bytes of one file out, and what became of everything that doesn't fit.

Knows no format. Choosing rows, compressing, and writing files whole or not at all is mixing's.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from treering.errors import UsageError
from treering.formats.registry import Formats

if TYPE_CHECKING:
    import pyarrow as pa

    from treering.errors import Problem

__all__ = ["EXPORTERS", "EXPORTER_GROUP", "Exporter", "LeftOut", "WrittenFile", "exporter_names", "find_exporter"]

EXPORTER_GROUP = "treering.exporters"

#: Ours, as pyproject declares them too; nobody else's takes the place of one.
EXPORTERS: Mapping[str, str] = {
    "hf": "treering.formats.writers.tables:HuggingFace",
    "openai": "treering.formats.writers.openai:OpenAI",
    "parquet": "treering.formats.writers.tables:Parquet",
    "records": "treering.formats.writers.records:Records",
    "trl": "treering.formats.writers.trl:Trl",
}


@dataclass(frozen=True, slots=True)
class LeftOut:
    """A record that the format can't hold."""

    id: str
    problems: tuple[Problem, ...]


@dataclass(frozen=True, slots=True)
class WrittenFile:
    """A file of an export: its name without folders, and what it holds."""

    name: str
    rows: int
    bytes: int
    sha256: str  # hex, over the bytes of the file as it lies there


class Exporter(ABC):
    """Turns records into the bytes of one file; each file of a sharded export gets an exporter of its own.

    The bytes are a function of the records and their order alone (no clock, no chance).
    """

    name: ClassVar[str]  # as --format says it
    suffix: ClassVar[str]  # of its files: ".jsonl"
    #: Whether it writes a folder of such files, with what `beside` gives, and not a file.
    folder: ClassVar[bool] = False
    #: Whether its files are compressed inside, so that a suffix .gz or .zst makes no sense.
    packed: ClassVar[bool] = False
    #: Whether a file is its records' bytes one after the other, each a function of that record alone: then `each` gives them, and
    #: several exporters may make one file's side by side.
    by_record: ClassVar[bool] = False

    def __init__(self, schema: pa.Schema, *, skip: bool = False) -> None:
        """For records of these columns. skip: leave out records that the format can't hold, into `left_out`.

        Raises UsageError when the format can't hold such records at all.
        """
        self.schema = schema
        self.skip = skip
        self.rows = 0  # records that were written
        #: What the format has no place for, a column or `messages.weight`, → in how many written records it said something.
        self.dropped: Counter[str] = Counter()
        self.left_out: list[LeftOut] = []
        #: Record id → whether it turned out well, by the newest word; given to formats that have `has_outcomes`.
        self.outcomes: Mapping[str, bool] = {}

    @property
    def has_outcomes(self) -> bool:
        """Whether its lines say how a record turned out."""
        return False

    @property
    def holds(self) -> frozenset[str]:
        """The columns that come back out of its files."""
        return frozenset(self.schema.names)

    @abstractmethod
    def encode(self, batch: pa.RecordBatch) -> bytes:
        """The bytes of these records, as far as they are ready. Raises InvalidRecordError for one it can't hold."""

    def each(self, batch: pa.RecordBatch) -> Iterator[bytes | None]:
        """Of a format that writes `by_record`: each record's bytes; None for one that is left out."""
        raise NotImplementedError

    def finish(self) -> bytes:
        """The last bytes of the file."""
        return b""

    def beside(self, files: Sequence[WrittenFile]) -> dict[str, bytes]:
        """Of a folder: further files, name → content. They are written last, in this order: with them it is complete."""
        return {}


_KNOWN = Formats(Exporter, EXPORTER_GROUP, EXPORTERS, "treering.formats.writers.Exporter")  # type: ignore[type-abstract]


def exporter_names() -> list[str]:
    """Names of all exporters, sorted. Loads none."""
    return _KNOWN.names()


def find_exporter(name: str) -> type[Exporter]:
    """The exporter of a format. Raises UsageError when there is none of that name, or the package that brings it is broken."""
    found = _KNOWN.find(name)
    if found is None:
        raise UsageError(
            f"there is no format {name!r} to export to",
            code="unknown-format",
            hint=f"one of {', '.join(exporter_names())}",
        )
    return found
