"""The held-out slices of a corpus: what a model is scored on and never trained on.

One slice per snapshot, one per domain pooled over snapshots, or that of any ref. Reads labelled records through the
store layer; does not predict or score.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from treering.errors import UsageError

if TYPE_CHECKING:
    from treering.store import BaseCorpus, Source

__all__ = ["HeldoutSlice", "domain_slices", "slice_of", "snapshot_slices"]

NO_DOMAIN = "(none)"  # records that name no domain still belong to a slice


@dataclass(frozen=True, slots=True)
class HeldoutSlice:
    """Texts and true labels of one slice, in record order; both of length `rows`.

    `parts` are the snapshot refs the records come from. `key` names the content: equal keys, equal records; None for
    what isn't sealed yet and so can't be named.
    """

    name: str  # "support@v1", or "support[domain=banking]"
    parts: tuple[str, ...]
    texts: tuple[str, ...]
    labels: tuple[str, ...]
    key: str | None

    @property
    def rows(self) -> int:
        """Number of records that can be scored."""
        return len(self.texts)


def slice_of(source: Source, *, name: str | None = None) -> HeldoutSlice:
    """The held-out records of one source, unlabelled ones left out.

    Raises UsageError when its records have no `text` and `label`.
    """
    texts, labels, _ = _read(source)
    return HeldoutSlice(
        name=name or source.ref,
        parts=_parts(source),
        texts=tuple(texts),
        labels=tuple(labels),
        key=_key(source),
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
    parts: dict[str, list[str]] = {}
    keys: list[str | None] = []
    for snapshot in corpus.evaluable():
        source = corpus.store.heldout(snapshot.ref)
        keys.append(_key(source))
        for text, label, domain in zip(*_read(source), strict=True):
            texts.setdefault(domain, []).append(text)
            labels.setdefault(domain, []).append(label)
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
        )
        for domain in texts
    ]


def _read(source: Source) -> tuple[list[str], list[str], list[str]]:
    """Text, label and domain of every labelled held-out record, in record order."""
    names = set(source.schema.names)
    missing = [column for column in ("text", "label") if column not in names]
    if missing:
        raise UsageError(
            f"{source.ref} has no column {' and '.join(missing)}, so a classifier can't be scored on it",
            code="not-labelled",
            hint="evaluation reads records of type 'labelled'",
        )
    columns = ["text", "label", *(["domain"] if "domain" in names else [])]
    table = source.heldout().to_table(columns)
    text, label = table.column("text").to_pylist(), table.column("label").to_pylist()
    domain = table.column("domain").to_pylist() if "domain" in names else [None] * len(text)
    kept = [
        (t, str(y), NO_DOMAIN if d is None else str(d))
        for t, y, d in zip(text, label, domain, strict=True)
        if t is not None and y is not None
    ]
    return [k[0] for k in kept], [k[1] for k in kept], [k[2] for k in kept]


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
