"""Prune: give a snapshot's bytes back, for good. Its name, number and digest stay.

Under the lease. 1. What must outlive it is written: hashes of its ids, so that a late retry isn't taken for a new
record, and its held-out records if they are to be kept. 2. The record `pruned.json` is created if absent: the commit
point. 3. The tag goes, so that cleaning up may take the version. 4. Versions that nobody names are cleaned up. After 2
each step can be repeated by anybody; what a crash before 2 left is removed by whoever maintains the corpus next.
Doesn't decide what to prune, nor who needs it (registry.prune).
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from threading import Lock
from typing import TYPE_CHECKING, Any

import numpy as np

from treering.errors import AlreadyExistsError, NotFoundError, StoreError
from treering.store.certificate import build_certificate, find_certificate, stable_hash
from treering.store.documents import PruneRecord, SnapshotRecord
from treering.store.heldout import clear_heldout, folder_of, keep_heldout
from treering.store.place import sealed_in
from treering.store.snapshot import check_record, finish_pending, listed
from treering.store.table import RECENT_S

if TYPE_CHECKING:
    from treering.store.corpus import BaseCorpus

__all__ = ["age_of", "bytes_of", "finish_prunes", "heldout_rows", "prune_snapshots", "pruned_ids"]

#: Versions of live younger than this many seconds stay: commits that are under way may be on top of one.
MARGIN_S = RECENT_S

_MOST_ID_BYTES = 256 << 20  # of hashes of pruned ids that a process keeps


def age_of(corpus: BaseCorpus, record: SnapshotRecord, now: datetime) -> timedelta:
    """How old a snapshot is by the store's clock, `now`.

    A host whose clock is wrong stamps what it seals wrongly; the store's stamp is later for a store that was copied. The
    younger of both counts: what is in doubt isn't pruned.
    """
    written = corpus.store.objects.written_at(f"{folder_of(record)}/1.json")
    return now - max(written.astimezone(UTC), record.created_at.astimezone(UTC))


def bytes_of(corpus: BaseCorpus, chosen: Sequence[SnapshotRecord]) -> dict[str, int]:
    """Name → bytes of the files that only this snapshot references, of each of `chosen`.

    What several of them share, and nobody else, counts for the first. Old versions of live don't count as anybody: they
    are cleaned up.
    """
    table, going = corpus.table, {record.name for record in chosen}
    sizes = table.sizes()
    held = set(table.files(table.head()))
    for record, pruned in listed(corpus):
        if pruned is None and record.name not in going:
            held |= set(table.files(sealed_in(corpus, record).dataset))
    found = {}
    for record in chosen:
        files = set(table.files(sealed_in(corpus, record).dataset)) - held
        held |= files
        found[record.name] = sum(sizes.get(path, 0) for path in files)
    return found


def heldout_rows(corpus: BaseCorpus, record: SnapshotRecord) -> int:
    """How many held-out records a snapshot has."""
    place = sealed_in(corpus, record)
    return sum(map(len, place.within(["id"], *record.row_ids, split="heldout")))


def prune_snapshots(
    corpus: BaseCorpus, names: Sequence[str], *, why: str, keep: bool = False, sizes: Mapping[str, int] | None = None
) -> tuple[list[PruneRecord], int]:
    """Prune snapshots by name; those that were pruned meanwhile are left alone. `keep`: keep their held-out records.

    Returns their records and the bytes freed at once; what versions of the last minute still reference goes with a later
    cleaning up. Raises NotFoundError for a name that was never sealed, StoreError for a snapshot that isn't what was
    sealed, ConflictError when the lease stays taken or is lost.
    """
    made = []
    with corpus.lease() as held:
        finish_pending(corpus)
        records = {record.name: (record, pruned) for record, pruned in listed(corpus)}
        for name in names:
            if name not in records:
                raise NotFoundError(f"there is no snapshot {corpus.name}@{name}", code="no-snapshot")
        for name in names:
            record, pruned = records[name]
            if pruned is None:
                made.append(_prepared(corpus, record, why, keep, (sizes or {}).get(name, 0)))
                corpus.step("before-prune")
                held.check()
                corpus.store.objects.create(f"{folder_of(record)}/pruned.json", made[-1].to_json())
                corpus.step("after-prune")
        freed = 0
        if made:
            finish_prunes(corpus, listed(corpus))
            corpus.step("after-untag")
            held.check()
            freed = corpus.table.clean_up(MARGIN_S)
            corpus.step("after-prune-cleanup")
    return made, freed


def _prepared(corpus: BaseCorpus, record: SnapshotRecord, why: str, keep: bool, size: int) -> PruneRecord:
    """What must outlive the snapshot is stored; the record that will say so."""
    check_record(corpus, record)
    certificate = find_certificate(corpus, record) or build_certificate(corpus, record)
    hashes = _hashes(_ids(corpus, record))
    if len(hashes) != 16 * record.rows:
        raise StoreError(
            f"{record.ref} holds {len(hashes) // 16} distinct ids, its record says {record.rows} records",
            code="snapshot-damaged",
            hint="restore the store's files from a backup",
        )
    path, digest = f"{folder_of(record)}/pruned.{record.edition}.ids", hashlib.sha256(hashes).hexdigest()
    try:
        corpus.store.objects.create(path, hashes)
    except AlreadyExistsError:  # of a prune that was cut short: the same records have the same hashes
        if corpus.store.objects.sha256(path) != digest:
            raise StoreError(f"{path} isn't what it should be", code="document-damaged") from None
    corpus.step("after-prune-ids")
    if keep:
        keep_heldout(corpus, record)
        corpus.step("after-prune-heldout")
    return PruneRecord(
        corpus=record.corpus,
        incarnation=record.incarnation,
        name=record.name,
        edition=record.edition,
        digest=certificate.digest,
        rows=record.rows,
        why=why,
        ids=path,
        ids_sha256=digest,
        heldout=keep,
        bytes=size,
        pruned_at=datetime.now(UTC),
    )


def _ids(corpus: BaseCorpus, record: SnapshotRecord) -> Iterator[str]:
    for batch in sealed_in(corpus, record).scan(["id"]):
        yield from batch.column("id").to_pylist()


def _hashes(ids: Iterable[str]) -> bytes:
    """The distinct 128-bit hashes of ids, ascending, 16 bytes each."""
    data = b"".join(stable_hash(record_id).to_bytes(16, "big", signed=True) for record_id in ids)
    return b"" if not data else np.unique(_as_keys(data)).tobytes()


def _as_keys(data: bytes) -> np.ndarray[Any, Any]:
    """16-byte keys that sort and compare as numbers: two big-endian halves each."""
    return np.frombuffer(data, np.dtype([("high", ">u8"), ("low", ">u8")]))


def finish_prunes(corpus: BaseCorpus, found: Sequence[tuple[SnapshotRecord, PruneRecord | None]]) -> None:
    """Steps 3 of every prune, and the removal of what one that never came to be has left. Under the lease."""
    if not found:
        return
    objects = corpus.store.objects
    left: dict[str, list[str]] = {}  # by folder, what prunes have written there
    for path in objects.list(f"snapshots/{corpus.record.table}"):
        folder, _, name = path.rpartition("/")
        if name.startswith(("pruned.", "heldout.")):
            left.setdefault(folder, []).append(path)
    tags = set(corpus.table.tags()) if left else set()
    for record, pruned in found:
        folder = folder_of(record)
        paths = left.get(folder)
        if paths is None:
            continue
        clear_heldout(corpus, folder, paths, pruned=pruned is not None and pruned.heldout)
        if pruned is None:
            for path in paths:
                if path.startswith(f"{folder}/pruned."):
                    objects.delete(path)
            continue
        if record.name in tags:
            objects.make_durable(f"{folder}/pruned.json")  # its creator may have died before it was
            corpus.table.untag(record.name)
        if record.branch is not None:  # an erased edition lies on a branch of its own
            corpus.table.drop_branch(record.branch)


class _PrunedIds:
    """Hashes of pruned ids that this process has read, the least recently used ones dropped."""

    def __init__(self) -> None:
        self._known: OrderedDict[tuple[str, str], np.ndarray[Any, Any]] = OrderedDict()
        self._lock = Lock()

    def of(self, corpus: BaseCorpus, pruned: PruneRecord) -> np.ndarray[Any, Any]:
        key = (corpus.uri, pruned.ids)
        with self._lock:
            found = self._known.get(key)
            if found is not None:
                self._known.move_to_end(key)
                return found
        data = corpus.store.objects.get(pruned.ids)
        if hashlib.sha256(data).hexdigest() != pruned.ids_sha256:
            raise StoreError(
                f"{pruned.ids} isn't what {pruned.ref} left when it was pruned",
                code="document-damaged",
                hint="restore it from a backup",
            )
        found = _as_keys(data)
        with self._lock:
            self._known[key] = found
            while len(self._known) > 1 and sum(one.nbytes for one in self._known.values()) > _MOST_ID_BYTES:
                self._known.popitem(last=False)
        return found


_PRUNED_IDS = _PrunedIds()


def pruned_ids(corpus: BaseCorpus, pruned: PruneRecord, ids: Sequence[str]) -> set[str]:
    """Those of `ids` that a pruned snapshot held. By 128 bits: no other id is taken for one of them."""
    known = _PRUNED_IDS.of(corpus, pruned)
    if not len(known):  # all its records had been erased
        return set()
    asked = _as_keys(b"".join(stable_hash(record_id).to_bytes(16, "big", signed=True) for record_id in ids))
    at = np.minimum(np.searchsorted(known, asked), len(known) - 1)
    return {record_id for record_id, same in zip(ids, known[at] == asked, strict=True) if same}
