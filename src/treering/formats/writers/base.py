"""The seam of exporters: records in, the bytes of one file out, and what became of everything that doesn't fit.

Knows no format. Choosing rows, compressing, and writing files whole or not at all is mixing's.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any, ClassVar

from treering.errors import UsageError

if TYPE_CHECKING:
    import pyarrow as pa

    from treering.errors import Problem

__all__ = ["GROUP", "Exporter", "LeftOut", "WrittenFile", "exporter_names", "find_exporter"]

GROUP = "treering.exporters"  # entry points: name of the format → class

#: Ours, by name. They are found without asking which packages are installed.
OWN = {
    "records": "treering.formats.writers.records:Records",
    "openai": "treering.formats.writers.openai:OpenAI",
    "trl": "treering.formats.writers.trl:Trl",
    "parquet": "treering.formats.writers.tables:Parquet",
    "hf": "treering.formats.writers.tables:HuggingFace",
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

    @property
    def holds(self) -> frozenset[str]:
        """The columns that come back out of its files."""
        return frozenset(self.schema.names)

    @abstractmethod
    def encode(self, batch: pa.RecordBatch) -> bytes:
        """The bytes of these records, as far as they are ready. Raises InvalidRecordError for one it can't hold."""

    def finish(self) -> bytes:
        """The last bytes of the file."""
        return b""

    def beside(self, files: Sequence[WrittenFile]) -> dict[str, bytes]:
        """Of a folder: further files, name → content. They are written last, in this order: with them it is complete."""
        return {}


def exporter_names() -> list[str]:
    """The formats there are, ours first."""
    return [*OWN, *sorted({found.name for found in entry_points(group=GROUP)} - set(OWN))]


def find_exporter(name: str) -> type[Exporter]:
    """The exporter of a format. Raises UsageError when there is none, or more than one."""
    found = {point.value for point in entry_points(group=GROUP, name=name)} | {OWN[n] for n in (name,) if n in OWN}
    if not found:
        raise UsageError(
            f"there is no format {name!r} to export to",
            code="unknown-format",
            hint=f"formats here: {', '.join(exporter_names())}",
        )
    if len(found) > 1:
        raise UsageError(
            f"the format {name!r} is claimed by {' and by '.join(sorted(found))}",
            code="ambiguous-format",
            hint="uninstall one of the packages",
        )
    (where,) = found
    module, _, attribute = where.partition(":")
    try:
        made: Any = getattr(import_module(module), attribute)
    except (ImportError, AttributeError) as exc:
        raise UsageError(
            f"the exporter of {name!r} can't be imported: {exc}",
            code="broken-exporter",
            hint="reinstall the package that brings it",
        ) from exc
    if not (isinstance(made, type) and issubclass(made, Exporter)):
        raise UsageError(
            f"{where} isn't an exporter", code="broken-exporter", hint="subclass treering.formats.writers.Exporter"
        )
    return made
