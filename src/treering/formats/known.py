"""Which formats there are: ours, and what other packages bring as entry points (`treering.importers`, `treering.exporters`).

A package's format is loaded when it is used. One that is broken says so then, and breaks nothing else.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from importlib.metadata import EntryPoint, entry_points
from typing import TYPE_CHECKING, Any

from treering.errors import TreeringError, UsageError
from treering.formats.base import Importer

if TYPE_CHECKING:
    from treering.schema import RecordType

__all__ = ["BROKEN", "IMPORTERS", "IMPORTER_GROUP", "find_importer", "importer_names", "recognise"]

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

#: The code of the error for a format whose package is broken.
BROKEN = "broken-format"


def importer_names() -> list[str]:
    """Names of all importers, sorted. Loads none."""
    return sorted({*IMPORTERS, *_foreign()})


def find_importer(name: str) -> type[Importer]:
    """The importer of a format. Raises UsageError when there is none of that name, or the package that brings it is broken."""
    if name in IMPORTERS:
        module, _, attribute = IMPORTERS[name].partition(":")
        ours: type[Importer] = getattr(importlib.import_module(module), attribute)
        return ours
    point = _foreign().get(name)
    if point is None:
        raise UsageError(
            f"there is no format {name!r}", code="unknown-format", hint=f"one of auto, {', '.join(importer_names())}"
        )
    try:
        found = point.load()
    except Exception as exc:  # whatever a package raises when it is imported
        raise _broken(point, f"{type(exc).__name__}: {exc}") from exc
    if not (isinstance(found, type) and issubclass(found, Importer)):
        raise _broken(point, f"{point.value} is not a subclass of treering.formats.Importer")
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


def _foreign() -> dict[str, EntryPoint]:
    return {point.name: point for point in entry_points(group=IMPORTER_GROUP) if point.name not in IMPORTERS}


def _broken(point: EntryPoint, why: str) -> UsageError:
    package = point.dist.name if point.dist is not None else point.value
    return UsageError(
        f"the format {point.name} of the package {package} can't be loaded: {why}",
        code=BROKEN,
        hint=f"repair or remove {package}; the other formats go on working",
    )
