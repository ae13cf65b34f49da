"""Snapshots: sealing what live holds, in an order that every crash leaves right.

0. The caller flushes this host's spools. 1. The current version V is made durable. 2. The record is created if absent:
the commit point. 3. V is tagged. 4. The sealed rows are taken out of live. After 2 each step can be repeated by anybody.
The boundary is the version V, never a list of fragments: compaction rewrites those at any time.
"""

from __future__ import annotations

from contextlib import suppress
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from treering.errors import AlreadyExistsError, ConflictError, NotFoundError, StoreError
from treering.schema import fingerprint
from treering.schema.evolution import newest_held
from treering.store.certificate import build_certificate, find_certificate
from treering.store.documents import Certificate, PruneRecord, SnapshotRecord
from treering.store.place import sealed_in
from treering.store.table import created_up_to, describe, retry_conflicts

if TYPE_CHECKING:
    from treering.store.corpus import BaseCorpus

__all__ = [
    "NAME_TAKEN",
    "Listed",
    "Snapshot",
    "finish_pending",
    "list_records",
    "listed",
    "pruned_error",
    "seal",
    "standing",
]


#: Records, each with what says that its snapshot was pruned.
Listed = list[tuple[SnapshotRecord, PruneRecord | None]]

_SHOWN_VALUES = 6  # of a column, in a notebook


class Snapshot:
    """What live held when it was sealed; immutable."""

    def __init__(self, corpus: BaseCorpus, record: SnapshotRecord) -> None:
        self._corpus = corpus
        self.record = record

    name = property(lambda self: self.record.name, doc="`v1`, `v2`, …")
    number = property(lambda self: self.record.number, doc="1 for `v1`.")
    ref = property(lambda self: self.record.ref, doc="`support@v1`.")
    rows = property(lambda self: self.record.rows, doc="Records in it, held-out ones included.")
    row_ids = property(lambda self: self.record.row_ids, doc="Half-open interval of stable row ids.")
    created_at = property(lambda self: self.record.created_at, doc="When it was sealed (UTC).")
    schema_version = property(lambda self: self.record.schema_version, doc="Version of the schema it was sealed with.")
    message = property(lambda self: self.record.message, doc="What the sealer said about it.")
    parent = property(lambda self: self.record.parent, doc="Name of the snapshot before it, or None.")
    version = property(lambda self: self.record.version, doc="Version of the Lance table that it seals.")

    @property
    def uri(self) -> str:
        """The Lance table that holds it: `lance.dataset(snapshot.uri, version=snapshot.name)` opens it without treering."""
        return self._corpus.uri

    @property
    def certificate(self) -> Certificate:
        """The certificate; whoever needs it first builds it, which takes one pass over the snapshot's data."""
        return find_certificate(self._corpus, self.record) or build_certificate(self._corpus, self.record)

    @property
    def digest(self) -> str:
        """Content digest (SHA-256, hex) over the records in order; waits for the certificate."""
        return self.certificate.digest

    def _repr_html_(self) -> str:
        from treering.notebook import bar, card, table

        found = find_certificate(
            self._corpus, self.record
        )  # what takes a pass over the data is shown where it is known
        counts = {} if found is None else found.counts
        heldout = counts.get("split", {}).get("heldout", 0)
        shown = [
            (column, value or "(none)", f"{rows:,}", bar(rows / max(1, self.rows)))
            for column, values in counts.items()
            if column != "split" and set(values) != {""}
            for value, rows in sorted(values.items(), key=lambda one: -one[1])[:_SHOWN_VALUES]
        ]
        return card(
            "snapshot",
            self.ref,
            [
                ("records", f"{self.rows:,}" + (f", {heldout:,} held-out" if found is not None else "")),
                ("sealed", f"{self.created_at:%Y-%m-%d %H:%M} UTC"),
                ("message", self.message or None),
                ("after", self.parent),
                ("digest", "not certified yet" if found is None else found.digest),
            ],
            body=table(["column", "value", "records", "share"], shown, right=["records"]) if shown else "",
        )

    def __repr__(self) -> str:
        return f"Snapshot({self.ref!r}, rows={self.rows}, created_at={self.created_at:%Y-%m-%dT%H:%M:%SZ})"


def list_records(corpus: BaseCorpus) -> list[SnapshotRecord]:
    """The newest edition of every snapshot record, oldest snapshot first; pruned ones too, whose names stay taken."""
    return [record for record, _ in listed(corpus)]


def listed(corpus: BaseCorpus) -> Listed:
    """`list_records`, each with what says that it was pruned."""
    newest: dict[int, tuple[int, str]] = {}
    pruned: dict[int, str] = {}
    named: set[int] = set()  # folders, whatever lies in them
    for path in corpus.store.objects.list(f"snapshots/{corpus.record.table}"):
        folder, _, file = path.rpartition("/")
        stem, _, rest = file.partition(".")
        name = folder.rpartition("/")[2]
        if not name[1:].isdigit():
            continue
        named.add(int(name[1:]))
        if rest == "json" and stem.isdigit():
            newest[int(name[1:])] = max(newest.get(int(name[1:]), (0, "")), (int(stem), path))
        elif rest == "json" and stem == "pruned":
            pruned[int(name[1:])] = path
    if not _none_missing(corpus, named, set(newest)):
        return listed(corpus)  # one was sealed while the others were being listed
    read = corpus.store.read_document
    found = [
        (read(SnapshotRecord, path), read(PruneRecord, pruned[number]) if number in pruned else None)
        for number, (_, path) in sorted(newest.items())
    ]
    # The engine opens an older version when the newest is missing; no version before a sealed one can be the newest.
    corpus.table.floor = max([corpus.table.floor, *(record.boundary for record, _ in found)])
    return found


def standing(corpus: BaseCorpus) -> list[SnapshotRecord]:
    """`list_records` without the pruned ones: those whose records can be read."""
    return [record for record, pruned in listed(corpus) if pruned is None]


def _none_missing(corpus: BaseCorpus, named: set[int], found: set[int]) -> bool:
    """Raise StoreError when a record is gone: names are never used again, so the records are one unbroken row.

    That the newest is gone shows by what else lies in its folder, and in a directory by the witness. False when one wasn't
    listed and is there by now.
    """
    witness = corpus.table.witness
    seen = None if witness is None else witness.read()
    last = max([0, *named, seen.snapshots if seen is not None else 0])
    unlisted = [number for number in range(1, last + 1) if number not in found]
    folder = f"snapshots/{corpus.record.table}"
    missing = [number for number in unlisted if not corpus.store.objects.exists(f"{folder}/v{number}/1.json")]
    if missing:
        raise StoreError(
            f"the record of {corpus.name}@v{missing[0]} is missing, and it was sealed",
            code="record-missing",
            hint="restore the store's files from a backup, or have it written again from its certificate or tag: "
            f"treering doctor --repair --store {corpus.store.uri}",
        )
    return not unlisted


def pruned_error(pruned: PruneRecord) -> NotFoundError:
    """What is said to whoever asks for the records of a pruned snapshot."""
    kept = f"its held-out records were kept, for evaluation: store.heldout({pruned.ref!r})"
    return NotFoundError(
        f"{pruned.ref} was pruned on {pruned.pruned_at:%Y-%m-%d %H:%M} UTC ({pruned.why})",
        code="pruned",
        hint=kept if pruned.heldout else "its name stays taken; a bundle of it can be unpacked as the next snapshot",
    )


class _NameTaken:
    """Another process sealed under the name that was next: start over at step 0."""


NAME_TAKEN = _NameTaken()


def seal(corpus: BaseCorpus, *, to: int | None, message: str) -> SnapshotRecord | _NameTaken | None:
    """Steps 1 to 4. Returns the record, None when live is empty, or NAME_TAKEN when another sealer was faster.

    Raises ConflictError when `to` isn't the next number.
    """
    with corpus.lease() as held:
        finish_pending(corpus)
        # Parent and name are read before V: a snapshot sealed in between then takes this name first, and we start over.
        records = list_records(corpus)
        parent = records[-1] if records else None
        number = parent.number + 1 if parent else 1
        if to is not None and to != number:
            taken = f"{corpus.name}@v{to} is already sealed" if to < number else f"{corpus.name}@v{number} comes first"
            raise ConflictError(
                f"{taken}; the next snapshot is {corpus.name}@v{number}",
                code="snapshot-name",
                hint=f"seal to {corpus.name}@v{number}, or just to {corpus.name}; names are never used again",
            )
        head = corpus.table.head()
        if parent and corpus.table.count(head, created_up_to(parent.boundary)):
            return NAME_TAKEN  # finishing was undone or raced: V must not hold a row of the parent
        rows = corpus.table.count(head)
        if rows == 0:
            return None
        # Asked after the head was opened: no record in it is of a later version than the store knows by now.
        versions = corpus.known_versions()
        schema = versions[newest_held(versions, head.schema) - 1]
        corpus.step("before-durable")
        corpus.table.make_durable(head)
        record = SnapshotRecord(
            corpus=corpus.name,
            incarnation=corpus.record.incarnation,
            name=f"v{number}",
            number=number,
            edition=1,
            branch=None,
            version=head.version,
            manifest_sha256=corpus.table.manifest_sha256(head.version),
            schema_version=schema.number,
            schema_fingerprint=fingerprint(schema.schema),
            parent=parent.name if parent else None,
            parent_version=parent.boundary if parent else 0,
            rows=rows,
            row_ids=(parent.row_ids[1] if parent else 0, corpus.table.last_row_id(head) + 1),
            created_at=datetime.now(UTC),
            message=message,
        )
        corpus.step("before-record")
        held.check()
        try:
            corpus.store.objects.create(record.path(), record.to_json())
        except AlreadyExistsError:
            return NAME_TAKEN
        corpus.step("after-record")
        finish(corpus, record)
        return record


def finish_pending(corpus: BaseCorpus) -> None:
    """Complete what was begun, whoever began it: the newest seal, earlier ones were complete before it; prunes, erasures."""
    from treering.store.erase import finish_erasures
    from treering.store.landing import undo_landings
    from treering.store.prune import finish_prunes

    found = listed(corpus)
    undo_landings(corpus, {record.name for record, _ in found})
    if found and found[-1][1] is None:  # a seal was complete before its snapshot could be pruned
        finish(corpus, found[-1][0])
    finish_prunes(corpus, found)
    finish_erasures(corpus)


def finish(corpus: BaseCorpus, record: SnapshotRecord) -> None:
    """Steps 3 and 4 of a seal; does nothing where they are done."""
    table, boundary = corpus.table, record.boundary
    corpus.store.objects.make_durable(record.path())  # its creator may have died before it was
    settle_tag(corpus, record)
    corpus.step("after-tag")
    changed = False

    def attempt() -> bool:
        nonlocal changed
        head = table.head()
        # A fragment that V held is old as a whole. One that V didn't hold may mix old rows and new: compaction did that.
        # Of a snapshot that was erased from since V is gone; its seal was finished before.
        held = table.at(boundary).get_fragments() if record.edition == 1 else []
        sealed = {fragment.fragment_id for fragment in held}
        old = [f.fragment_id for f in head.get_fragments() if f.fragment_id in sealed]
        # Counting looks at every row: first what takes no look.
        if not old and table.count(head, created_up_to(boundary)) == 0:
            return True
        changed = True
        if old:
            table.drop_fragments(head, old)
            corpus.step("after-drop")
        else:
            table.delete_created_up_to(head, boundary)
        return False

    table.note_sealed(record.number)
    retry_conflicts(attempt, what=f"finishing {record.ref}")
    if table.index_names_gone(table.head()):
        # Else the next snapshot's index would name records of this one, and erasing those couldn't leave it untouched.
        with suppress(ConflictError):
            table.reindex(None)
            changed = True
    if changed:
        table.make_durable(table.head())
    corpus.step("after-finish")


def edition_before(corpus: BaseCorpus, record: SnapshotRecord) -> SnapshotRecord | None:
    """The record of the edition before this one; None for the first."""
    if record.edition == 1:
        return None
    return corpus.store.read_document(SnapshotRecord, record.model_copy(update={"edition": record.edition - 1}).path())


def settle_tag(corpus: BaseCorpus, record: SnapshotRecord) -> None:
    """Let the tag name what the record names: new, there already, or one edition behind. Raises StoreError else."""
    before = edition_before(corpus, record)
    moves = None if before is None else (before.branch, before.version)
    corpus.table.tag(record.name, record.version, record.branch, moves=moves)


def check_record(corpus: BaseCorpus, record: SnapshotRecord) -> None:
    """Raise StoreError when the engine's version is no longer the one that was sealed, or lacks a file.

    What is cheap and certain, before anything is read: the manifest's hash, the tag, which files there are and their
    sizes. What is in them takes reading them: `certificate.check_files`, `verify`.
    """
    found = corpus.table.manifest_sha256(record.version, record.branch)
    if found != record.manifest_sha256:
        raise StoreError(
            f"{record.ref}: the manifest of {describe((record.branch, record.version))} isn't the one that was sealed",
            code="manifest-changed",
            hint="restore the store's files from a backup; nothing was read",
        )
    tagged = corpus.table.tagged(record.name)
    if tagged is not None and tagged != (record.branch, record.version):
        before = edition_before(corpus, record)
        # One edition behind is fine: whoever maintains the corpus next moves it.
        if before is None or tagged != (before.branch, before.version):
            raise StoreError(
                f"{record.ref}: the tag names {describe(tagged)}, the record says "
                f"{describe((record.branch, record.version))}",
                code="tag-moved",
                hint="somebody moved the tag; the record is what counts: treering doctor --repair",
            )
    corpus.table.check_present(sealed_in(corpus, record).dataset)
