"""Which importers there are, ours and those of the entry points `treering.importers`, and whose a value is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from treering.errors import TreeringError, UsageError
from treering.formats.base import Importer
from treering.formats.registry import BROKEN, Formats

if TYPE_CHECKING:
    from treering.schema import RecordType

__all__ = ["IMPORTERS", "IMPORTER_GROUP", "find_importer", "importer_names", "recognise"]

IMPORTER_GROUP = "treering.importers"

#: Ours, as pyproject declares them too; nobody else's takes the place of one.
IMPORTERS: Mapping[str, str] = {
    "atif": "treering.formats.atif:Atif",
    "claude-code": "treering.formats.claude_code:ClaudeCode",
    "codex": "treering.formats.codex:Codex",
    "hooks": "treering.formats.hooks:Hooks",
    "langfuse": "treering.formats.langfuse:Langfuse",
    "langsmith": "treering.formats.langsmith:LangSmith",
    "openai": "treering.formats.openai:OpenAIImporter",
    "openinference": "treering.formats.openinference:OpenInference",
    "otlp": "treering.formats.otlp:Otlp",
    "parquet": "treering.formats.records:ParquetImporter",
    "records": "treering.formats.records:RecordsImporter",
    "trl": "treering.formats.trl:TRLImporter",
}

_KNOWN = Formats(Importer, IMPORTER_GROUP, IMPORTERS, "treering.formats.Importer")  # type: ignore[type-abstract]


def importer_names() -> list[str]:
    """Names of all importers, sorted. Loads none."""
    return _KNOWN.names()


def find_importer(name: str) -> type[Importer]:
    """The importer of a format. Raises UsageError when there is none of that name, or the package that brings it is broken."""
    found = _KNOWN.find(name)
    if found is None:
        raise UsageError(
            f"there is no format {name!r}", code="unknown-format", hint=f"one of auto, {', '.join(importer_names())}"
        )
    return found


def recognise(value: Any, target: RecordType) -> tuple[list[type[Importer]], list[TreeringError]]:
    """The importers that say a value is theirs, and what is wrong with those that can't be asked.

    One is what to expect. An object whose members are all columns of a corpus with a record type of its own is a record.
    """
    if not isinstance(value, dict):
        return [], []
    if value and target.built_in is None and not set(value) - set(target.schema.names):
        return [find_importer("records")], []
    found: list[type[Importer]] = []
    broken: list[TreeringError] = []
    for name in importer_names():
        try:
            importer = find_importer(name)
        except UsageError as exc:
            broken.append(exc)
            continue
        try:
            is_one = importer.recognises(value)
        except Exception as exc:  # a foreign importer's mistake
            broken.append(UsageError(f"the format {name} can't tell its own: {type(exc).__name__}: {exc}", code=BROKEN))
            continue
        if is_one:
            found.append(importer)
    return found, broken
