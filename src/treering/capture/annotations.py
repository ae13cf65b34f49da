"""What is said about records later: checked, then stored for good.

A batch is stored as a whole or not at all: a word about a record that isn't there, or a value that can't be meant, names
itself and stores nothing. Does not decide what annotations do (store.source).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from functools import partial
from itertools import compress
from typing import Any

import pyarrow as pa

from treering.capture.commit import FILTERS
from treering.capture.recorder import flush_spools
from treering.errors import InvalidRecordError, NotFoundError, Problem, UsageError
from treering.schema import RecordType
from treering.schema.fields import dump_json
from treering.schema.record_type import safe_repr
from treering.store.annotations import ANNOTATION_SCHEMA, KEYS, chunks
from treering.store.corpus import BaseCorpus
from treering.store.corrections import encode_correction
from treering.store.denylist import all_denied
from treering.store.erase import Wanted, erase
from treering.store.place import sealed_in
from treering.store.snapshot import standing
from treering.store.table import text_in

__all__ = ["annotate", "annotate_rows", "refusal"]

_NAMED = 5  # problems and ids that an error spells out
_ABOUT = ("by", "note")


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and value != ""


def _is_quality(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _is_json(value: Any) -> bool:
    try:
        dump_json(value)
    except ValueError:
        return False
    return True


_EXPECTED: dict[str, tuple[Callable[[Any], bool], str]] = {
    "label": (_is_text, "text"),
    "outcome": (_is_json, "a value that JSON can hold"),
    "quality": (_is_quality, "a finite number"),
    "correction": (lambda value: isinstance(value, Mapping), "an object of columns and their values"),
    "exclude": (lambda value: isinstance(value, bool), "true or false"),
    "intents": (_is_count, "a whole number from 1"),
}


def annotate(corpus: BaseCorpus, rows: Iterable[Mapping[str, Any]] | pa.Table | pa.RecordBatch) -> int:
    """Store what `rows` say, each a dict (or Arrow row) of `id`, any of `KEYS`, and optionally `by` and `note`.

    None and null say nothing. Durable when this returns; gives the number of words stored: one per record and key.
    Raises InvalidRecordError, NotFoundError for records that are in neither live nor a snapshot, StoreError.
    """
    if isinstance(rows, pa.Table | pa.RecordBatch):
        rows = rows.to_pylist()
    elif isinstance(rows, str | bytes | Mapping) or not isinstance(rows, Iterable):
        raise UsageError(
            f"annotations are a list of dicts or an Arrow table, not {safe_repr(rows)[:80]}", code="bad-rows"
        )
    given = list(rows)
    return annotate_rows(corpus, given, what="annotation", numbers=range(len(given)))


def annotate_rows(corpus: BaseCorpus, rows: Sequence[Any], *, what: str, numbers: Sequence[int] | None = None) -> int:
    """As `annotate`; problems name a row by `what` it is ("line") and its number, from 1 when not given."""
    version = corpus.known_versions()[-1]
    newest = corpus.record_type
    if version.number != corpus.versions[-1].number:
        newest = RecordType.stored(version.record_type, version.schema)
    _checked = partial(encode_correction, newest, version.number)
    problems: list[Problem] = []
    said: list[tuple[str, str, str, str | None, str | None]] = []
    for number, row in zip(numbers or range(1, len(rows) + 1), rows, strict=True):
        found = list(_problems(row, number))
        words: dict[str, str] = {}
        for key in () if found else KEYS:
            if row.get(key) is None:
                continue
            worded = _checked(row[key]) if key == "correction" else dump_json(row[key], sort_keys=True)
            if isinstance(worded, str):
                words[key] = worded
            else:
                found += [Problem((number, key, *one.loc), one.kind, one.message) for one in worded]
        problems += found
        if not found:
            said += [(row["id"], key, word, row.get("by"), row.get("note")) for key, word in words.items()]
    if problems:
        raise refusal(problems, what)
    if not said:
        return 0
    ids = [word[0] for word in said]
    if unknown_ids(corpus, ids):
        flush_spools(corpus)  # acknowledged, and on its way into the table
    if unknown := unknown_ids(corpus, ids):
        named = ", ".join(map(repr, unknown[:_NAMED])) + (", …" if len(unknown) > _NAMED else "")
        raise NotFoundError(
            f"{corpus.name} has no record {named}",
            code="no-record",
            hint=f"{len(unknown):,} of the ids are in neither live nor a snapshot; nothing was stored",
        )
    columns = [list(column) for column in zip(*said, strict=True)]
    now = [datetime.now(UTC)] * len(said)
    table = pa.Table.from_arrays([pa.array(c, f.type) for c, f in zip([*columns, now], ANNOTATION_SCHEMA, strict=True)],
                                 schema=ANNOTATION_SCHEMA)  # fmt: skip
    corpus.annotation_log.append(table)
    if gone := all_denied(corpus, sorted(set(ids))):  # erased while this was said: what was said goes, too
        erase(corpus, Wanted(ids=tuple(gone), reason="annotated while an erasure was under way"))
    return len(said)


def _problems(row: Any, number: int) -> Iterable[Problem]:
    if not isinstance(row, Mapping):
        yield Problem((number,), "wrong-type", f"expected an object, got {safe_repr(row)[:80]}")
        return
    if row.get("id") is None:
        yield Problem((number, "id"), "missing-field", "expected the id of a record, got nothing")
    elif not _is_text(row["id"]):
        yield Problem((number, "id"), "wrong-type", f"expected the id of a record, got {safe_repr(row['id'])[:80]}")
    for name in row:
        if name not in ("id", *KEYS, *_ABOUT):
            yield Problem((number, str(name)), "unknown-field", f"expected one of {', '.join(KEYS)}, by and note")
    for name in _ABOUT:
        if row.get(name) is not None and not isinstance(row[name], str):
            yield Problem((number, name), "wrong-type", f"expected text, got {safe_repr(row[name])[:80]}")
    said = [key for key in KEYS if row.get(key) is not None]
    for key in said:
        is_fine, expected = _EXPECTED[key]
        if not is_fine(row[key]):
            yield Problem((number, key), "wrong-type", f"expected {expected}, got {safe_repr(row[key])[:80]}")
    if not said and all(name in ("id", *KEYS, *_ABOUT) for name in row):
        yield Problem((number,), "missing-field", f"expected something said: one of {', '.join(KEYS)}")
    texts = [row[name] for name in ("id", *KEYS, *_ABOUT) if isinstance(row.get(name), str)]
    for text in texts:
        try:
            text.encode()
        except UnicodeEncodeError:
            yield Problem((number,), "bad-value", "expected text that UTF-8 can hold, got a lone surrogate")


def refusal(problems: Sequence[Problem], what: str) -> InvalidRecordError:
    """The error that names what is wrong with rows; each problem's `loc` begins with its row's number."""
    shown = "; ".join(
        f"{what} {problem.loc[0]}: {Problem(problem.loc[1:], problem.kind, problem.message)}"
        for problem in problems[:_NAMED]
    )
    more = f"; and {len(problems) - _NAMED:,} more" if len(problems) > _NAMED else ""
    return InvalidRecordError(f"nothing was stored: {shown}{more}", problems)


def unknown_ids(corpus: BaseCorpus, ids: Iterable[str]) -> list[str]:
    """Those ids that no committed record has, each once, in order; looked up by index, snapshot after snapshot."""
    missing = dict.fromkeys(ids)
    head = corpus.table.head()  # first: what is sealed right after it is found in its snapshot
    records = standing(corpus)
    for dataset, denies in [(head, None), *((sealed_in(corpus, r).dataset, FILTERS.of(corpus, r)) for r in records)]:
        asked = list(missing)
        if denies is not None and asked:
            asked = list(compress(asked, denies.may_hold(asked)))
        for part in chunks(asked):
            for batch in corpus.table.scan(dataset, ["id"], text_in("id", part)):
                for found in batch.column("id").to_pylist():
                    missing.pop(found, None)
        if not missing:
            break
    return list(missing)
