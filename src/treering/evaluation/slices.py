"""The held-out slices of a corpus: what a model is scored on and never trained on.

One slice per snapshot, one per domain pooled over snapshots, that of any ref, or that of a file from elsewhere. Reads
labelled records through the store layer; does not predict or score.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from treering.errors import Problem, UsageError

from .tables import read_rows, refuse

if TYPE_CHECKING:
    from treering.store import BaseCorpus, Source

__all__ = ["HeldoutSlice", "domain_slices", "extra_slices", "file_slice", "slice_of", "snapshot_slices"]

_NAME = re.compile(r"[\w][\w .-]{0,99}")
NO_DOMAIN = "(none)"  # records that name no domain still belong to a slice


@dataclass(frozen=True, slots=True)
class HeldoutSlice:
    """Texts and true labels of one slice, in record order; of length `rows`, as are ids and domains where there are any.

    `parts` are the snapshot refs the records come from, none for a file. `key` names the content: equal keys, equal
    records; None for what isn't sealed yet and so can't be named. Of conversations, those with a reply: a text is one as
    JSON, its label what the assistant said last.
    """

    name: str  # "support@v1", or "support[domain=banking]"
    parts: tuple[str, ...]
    texts: tuple[str, ...]
    labels: tuple[str, ...]
    key: str | None
    ids: tuple[str, ...] = ()
    domains: tuple[str, ...] = ()
    chat: bool = False  # conversations, which a chat model is asked about

    @property
    def rows(self) -> int:
        """Number of records that can be scored."""
        return len(self.texts)


def slice_of(source: Source, *, name: str | None = None) -> HeldoutSlice:
    """The held-out records of one source, unlabelled ones left out.

    Raises UsageError when its records have neither `text` and `label` nor `messages`.
    """
    texts, labels, domains, ids = _read(source)
    return HeldoutSlice(
        name=name or source.ref,
        parts=_parts(source),
        texts=tuple(texts),
        labels=tuple(labels),
        key=_key(source),
        ids=tuple(ids),
        domains=tuple(domains),
        chat=_is_chat(set(source.schema.names)),
    )


def snapshot_slices(corpus: BaseCorpus) -> list[HeldoutSlice]:
    """One slice per snapshot, oldest first; a snapshot without held-out records gives a slice of 0 rows.

    A pruned one has a slice when its held-out records were kept.
    """
    return [slice_of(corpus.store.heldout(snapshot.ref)) for snapshot in corpus.evaluable()]


def domain_slices(corpus: BaseCorpus) -> list[HeldoutSlice]:
    """One slice per domain, pooled over all snapshots, in order of first appearance."""
    texts: dict[str, list[str]] = {}
    labels: dict[str, list[str]] = {}
    ids: dict[str, list[str]] = {}
    parts: dict[str, list[str]] = {}
    keys: list[str | None] = []
    chat = False
    for snapshot in corpus.evaluable():
        source = corpus.store.heldout(snapshot.ref)
        chat = _is_chat(set(source.schema.names))
        keys.append(_key(source))
        for text, label, domain, id_ in zip(*_read(source), strict=True):
            texts.setdefault(domain, []).append(text)
            labels.setdefault(domain, []).append(label)
            ids.setdefault(domain, []).append(id_)
            if snapshot.ref not in parts.setdefault(domain, []):
                parts[domain].append(snapshot.ref)
    whole = None if None in keys else "+".join(key for key in keys if key is not None)
    return [
        HeldoutSlice(
            name=f"{corpus.name}[domain={domain}]",
            parts=tuple(parts[domain]),
            texts=tuple(texts[domain]),
            labels=tuple(labels[domain]),
            key=None if whole is None else f"{whole}[domain={domain}]",
            ids=tuple(ids[domain]),
            domains=(domain,) * len(texts[domain]),
            chat=chat,
        )
        for domain in texts
    ]


def file_slice(name: str, source: str) -> HeldoutSlice:
    """A test set from a file as a slice called `name`: JSONL, CSV or Parquet with text, label and perhaps domain and id.

    source: a path or any fsspec URL. Raises UsageError for a name that could be taken for another slice and for a file
    without a row, NotFoundError, StoreError, InvalidRecordError that names bad rows.
    """
    if not _NAME.fullmatch(name):
        raise UsageError(
            f"{name!r} can't name a test set", code="bad-extra", hint="letters, digits, spaces and . _ - alone"
        )
    rows = read_rows(source, {"text": str, "label": str}, {"domain": str, "id": str})
    if not rows:
        raise UsageError(f"{source} holds no records to score", code="empty-slice", hint="a row needs text and label")
    ids = [row["id"] for _, row in rows if row["id"] is not None]
    if ids and len(ids) < len(rows):
        missing = [
            Problem((n, "id"), "missing-field", "expected an id as in other rows") for n, r in rows if not r["id"]
        ]
        raise refuse(source, missing)
    told = [(row["text"], row["label"], row["domain"], row["id"]) for _, row in rows]
    return HeldoutSlice(
        name=name,
        parts=(),
        texts=tuple(row["text"] for _, row in rows),
        labels=tuple(row["label"] for _, row in rows),
        key=f"file:{hashlib.sha256(json.dumps(told).encode()).hexdigest()}",
        ids=tuple(ids),
        domains=tuple(NO_DOMAIN if row["domain"] is None else row["domain"] for _, row in rows),
    )


def extra_slices(extra: Mapping[str, Any] | None) -> list[HeldoutSlice]:
    """Slices of test sets by name: files (paths, URLs) or slices at hand. Raises as `file_slice` does."""
    found = []
    for name, given in (extra or {}).items():
        if isinstance(given, HeldoutSlice):
            if given.name != name:
                raise UsageError(f"slice {given.name!r} is given as {name!r}", code="bad-extra")
            if not given.rows:
                raise UsageError(f"{name} has no records to score", code="empty-slice")
            found.append(given)
        else:
            found.append(file_slice(name, str(given)))
    return found


def _read(source: Source) -> tuple[list[str], list[str], list[str], list[str]]:
    """Text, label, domain and id of every labelled held-out record, in record order."""
    names = set(source.schema.names)
    if _is_chat(names):
        return _read_chat(source, names)
    missing = [column for column in ("text", "label") if column not in names]
    if missing:
        raise UsageError(
            f"{source.ref} has no column {' and '.join(missing)}, so a classifier can't be scored on it",
            code="not-labelled",
            hint="evaluation reads records of type 'labelled'",
        )
    table = source.heldout().to_table(["text", "label", "id", *(["domain"] if "domain" in names else [])])
    text, label, ids = (table.column(name).to_pylist() for name in ("text", "label", "id"))
    domain = table.column("domain").to_pylist() if "domain" in names else [None] * len(text)
    kept = [
        (t, str(y), NO_DOMAIN if d is None else str(d), i)
        for t, y, d, i in zip(text, label, domain, ids, strict=True)
        if t is not None and y is not None
    ]
    return [k[0] for k in kept], [k[1] for k in kept], [k[2] for k in kept], [k[3] for k in kept]


def _is_chat(names: set[str]) -> bool:
    return "messages" in names and not names.issuperset(("text", "label"))


def _read_chat(source: Source, names: set[str]) -> tuple[list[str], list[str], list[str], list[str]]:
    """As JSON, last reply, domain and id of every held-out conversation in which the assistant says something."""
    from treering.training.conversation import Conversation

    columns = ["messages", "id", *(name for name in ("tools", "domain") if name in names)]
    kept: list[tuple[str, str, str, str]] = []
    for row in source.heldout().to_table(columns).to_pylist():
        talk = Conversation.of(row["messages"], row.get("tools"))
        if any(True for _ in talk.replies()):
            domain = NO_DOMAIN if row.get("domain") is None else str(row["domain"])
            kept.append((talk.to_json(), talk.reply_text(), domain, row["id"]))
    return [k[0] for k in kept], [k[1] for k in kept], [k[2] for k in kept], [k[3] for k in kept]


def _parts(source: Source) -> tuple[str, ...]:
    return tuple(segment.ref for segment in source.segments)


def _key(source: Source) -> str | None:
    """Name of the content of a sealed source: its segments' content digests, and what is left out of them."""
    pin = source.pin()
    digests = [segment["digest"] for segment in pin["segments"]]
    if None in digests:
        return None
    narrowed: dict[str, Any] = {name: pin[name] for name in ("selection", "where") if name in pin}
    annotations = pin.get("annotations", {})
    if annotations.get("excluded"):
        narrowed["excluded"] = annotations["digest"]
    if annotations.get("corrected"):
        found = [
            segment.corrections.within(segment.runs("heldout")) for segment in source.segments if segment.corrections
        ]
        if any(one.columns for one in found):  # of what isn't held out, nothing is scored
            narrowed["corrected"] = [one.digest for one in found]
    if not narrowed:
        return "+".join(digests)
    told = hashlib.sha256(json.dumps(narrowed, sort_keys=True).encode()).hexdigest()
    return "+".join([*digests, told])
