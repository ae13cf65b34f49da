"""Records from a JSONL file or stream, checked line by line and captured as they come.

Knows treering's own record format; other formats become importers of their own.
"""

from __future__ import annotations

import codecs
import hashlib
import lzma
import os
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import IO, Any

from treering.capture.recorder import Recorder
from treering.errors import NotFoundError, Problem, StoreError
from treering.schema import parse_json
from treering.schema.strict_json import MOST_BYTES
from treering.store.corpus import BaseCorpus

__all__ = [
    "ImportSummary",
    "capture_lines",
    "identify",
    "import_file",
    "opened",
    "origin_of",
    "read_bytes",
    "read_lines",
]

#: Completes a record that was read, and says what is wrong with it.
Look = Callable[[Any], Iterable[Problem]]

_LINES = 8_192  # lines read, checked and spooled at a time …
_BYTES = 16 << 20  # … or so many bytes of them
_KEPT = 1_000_000  # bytes that quarantine keeps of a line that doesn't parse
_LONGEST = MOST_BYTES + 1  # of a longer line no more is read than what shows that it is too long
_SHOWN = 20


@dataclass
class ImportSummary:
    """What became of a file's lines. `problems` holds the first ones, as (line number from 1, problems)."""

    read: int = 0
    stored: int = 0
    duplicates: int = 0
    refused: int = 0
    erased: int = 0  # dropped, because they were erased before
    redacted: dict[str, int] = field(default_factory=dict)  # marker → how often it was put in
    conflicts: list[str] = field(default_factory=list)
    problems: list[tuple[int, tuple[Problem, ...]]] = field(default_factory=list)


def import_file(
    corpus: BaseCorpus,
    source: str | IO[bytes],
    *,
    progress: Callable[[int], None] | None = None,
    redact: bool | Sequence[str] | None = None,
) -> ImportSummary:
    """Capture every line of a JSONL file (a path, any fsspec URL, or a binary stream) as a record.

    A bad line goes to quarantine with its number and never blocks the rest. A record without an id gets one from the
    file's path and the line's text, so importing a file twice adds nothing; one from a stream gets a fresh id. `progress`
    is called with the number of lines done so far; `redact` is `Corpus.capture`'s. Raises NotFoundError when there is no such file, StoreError when it
    can't be read or stored; what came before the damage is captured then.
    """
    name, stream = opened(source)
    summary = ImportSummary()
    seen: Counter[bytes] = Counter()
    origin = origin_of(source)
    with stream, Recorder(corpus, redact=redact) as recorder:
        lines: list[tuple[int, bytes]] = []
        size = 0
        for line in _lines(stream, name):
            summary.read += 1
            if line.strip():
                lines.append((summary.read, line))
                size += len(line)
            if len(lines) >= _LINES or size >= _BYTES:
                capture_lines(recorder, name, origin, lines, seen, summary)
                lines, size = [], 0
                if progress is not None:
                    progress(summary.read)
        capture_lines(recorder, name, origin, lines, seen, summary)
        recorder.flush()
    if progress is not None:
        progress(summary.read)
    summary.stored = recorder.counts.stored
    summary.duplicates = recorder.counts.duplicates
    summary.erased = recorder.counts.erased
    summary.redacted = dict(recorder.redacted)
    summary.conflicts = recorder.conflicts
    return summary


def read_lines(source: str | IO[bytes]) -> Iterator[bytes]:
    """The lines of a file (a path, any fsspec URL, or a binary stream), decompressed. Raises as `import_file` does."""
    name, stream = opened(source)
    with stream:
        yield from _lines(stream, name)


def read_bytes(source: str | IO[bytes]) -> bytes:
    """All of a file, decompressed. Raises as `import_file` does."""
    name, stream = opened(source)
    with stream, _reading(name):
        return stream.read()


def opened(source: str | IO[bytes]) -> tuple[str, IO[bytes]]:
    """What a source is called, and its bytes, decompressed. Raises as `import_file` does."""
    if not isinstance(source, str):
        return getattr(source, "name", "<stream>"), source
    import fsspec

    try:
        return source, fsspec.open(source, "rb", compression="infer").open()
    except IsADirectoryError as exc:
        raise NotFoundError(f"{source} is a directory, not a file", code="no-file") from exc
    except (FileNotFoundError, NotADirectoryError) as exc:
        raise NotFoundError(f"there is no file {source}", code="no-file") from exc
    except (OSError, ValueError, ImportError) as exc:
        raise StoreError(f"can't read {source}: {exc}", code="read-failed") from exc


def _lines(stream: IO[bytes], name: str) -> Iterator[bytes]:
    with _reading(name):
        line = stream.readline(_LONGEST).removeprefix(codecs.BOM_UTF8)
        while line:
            yield line
            while len(line) >= _LONGEST and not line.endswith(
                b"\n"
            ):  # too long for a record: the rest of it is passed over
                line = stream.readline(_LONGEST)
            line = stream.readline(_LONGEST)


@contextmanager
def _reading(name: str) -> Iterator[None]:
    try:
        yield
    except (OSError, EOFError, zlib.error, lzma.LZMAError) as exc:
        raise StoreError(f"can't read {name}: {exc}", code="read-failed") from exc


def capture_lines(
    recorder: Recorder,
    name: str,
    origin: str | None,
    lines: list[tuple[int, bytes]],
    seen: Counter[bytes],
    summary: ImportSummary,
    look: Look | None = None,
) -> None:
    """Capture lines with their numbers; `look` may complete each record, and says what is wrong with it."""
    numbers: list[int] = []
    records: list[dict[str, Any]] = []
    for number, line in lines:
        try:
            record = parse_json(line)
        except ValueError as exc:
            problem = Problem((), "bad-json", f"expected a JSON object, got a line that doesn't parse: {exc}")
            kept = line[:_KEPT].decode("utf-8", "replace").rstrip("\r\n")
            if recorder.refuse(kept, [problem], f"{name}:{number}"):
                _note(summary, number, (problem,))
            continue
        identify(record, origin, line, seen)
        problems = tuple(look(record)) if look is not None else ()
        if problems:
            recorder.refuse(record, problems, f"{name}:{number}")
            _note(summary, number, problems)
            continue
        numbers.append(number)
        records.append(record)
    receipts = recorder.extend(records, sources=[f"{name}:{number}" for number in numbers])
    for position, wrong in receipts.refused:
        _note(summary, numbers[position], wrong)


def identify(record: Any, origin: str | None, line: bytes, seen: Counter[bytes]) -> None:
    """Give a record without an id one by the file it comes from (`origin`) and its line."""
    if origin is not None and isinstance(record, dict) and record.get("id") is None:
        # The n-th copy of a line is a record of its own: two users may well say the same.
        key = hashlib.blake2b(origin.encode() + b"\0" + line.strip(), digest_size=16).digest()
        record["id"] = hashlib.blake2b(key + seen[key].to_bytes(8, "big"), digest_size=16).hexdigest()
        seen[key] += 1


def origin_of(source: str | IO[bytes]) -> str | None:
    """What ids of a file's records are made from; None for a stream, whose records get fresh ones."""
    if not isinstance(source, str):
        return None
    return source if "://" in source else os.path.abspath(source)


def _note(summary: ImportSummary, line: int, problems: tuple[Problem, ...]) -> None:
    summary.refused += 1
    if len(summary.problems) < _SHOWN:
        summary.problems.append((line, problems))
