"""The front: `Store` and `Corpus` as users hold them. Each method is one call into the layer that does the work."""

from __future__ import annotations

from typing import IO, TYPE_CHECKING, Any, Literal, cast

from treering.errors import UsageError
from treering.store.base import BaseStore
from treering.store.corpus import BaseCorpus
from treering.store.ref import AdapterRef, parse_target
from treering.store.snapshot import Snapshot
from treering.store.source import Source

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from datetime import timedelta
    from pathlib import Path
    from threading import Event

    import pyarrow as pa

    from treering.capture import Quarantined, Recorder
    from treering.capture.backfill import BackfillSummary
    from treering.capture.importer import ImportSummary
    from treering.capture.retrying import Retried
    from treering.engine import Engine
    from treering.mixing import Mix, MixLock, Schedule
    from treering.mixing.cache import SnapshotCache
    from treering.mixing.export import ExportSummary
    from treering.mixing.tokens import CountTokens
    from treering.registry import AdapterRecord, Registry
    from treering.registry.prune import PruneReport
    from treering.schema import Alignment, SchemaSpec
    from treering.store.doctor import Diagnosis
    from treering.store.documents import EraseReceipt, SeenBy, SelectionRecord
    from treering.store.erase import ErasePreview
    from treering.store.runs import RowIds
    from treering.store.verify import Verification

__all__ = ["Corpus", "Store", "open"]


class Corpus(BaseCorpus):
    """A named, append-only stream of records of one type."""

    store: Store

    def capture(
        self,
        *,
        durability: Literal["disk", "batch", "store"] = "disk",
        sync_every_s: float = 0.1,
        redact: bool | Sequence[str] | None = None,
    ) -> Recorder:
        """A recorder for this corpus: `with corpus.capture() as live: live.add({...})`.

        What `add` has returned for is on disk ("disk"), in the table ("store"), or will be on disk within `sync_every_s`
        seconds ("batch": 0.1 s unless you say otherwise; a power cut may take that much, a kill nothing).
        redact: replace secrets and obvious personal data in what records say by markers such as `[EMAIL]`, before anything
        reaches the disk: True, or some of secret, email, iban, card, ip, phone; as the corpus was made when left out. Needs
        the extra `redact`. It finds what has a form of its own, and neither names nor addresses.
        """
        from treering.capture import Recorder

        return Recorder(self, durability=durability, sync_every_s=sync_every_s, redact=redact)

    def quarantine(self) -> list[Quarantined]:
        """Refused records, each with its problems, oldest first."""
        from treering.capture import flush_spools, list_quarantine

        flush_spools(self)
        return list_quarantine(self)

    def retry_quarantine(self) -> Retried:
        """Capture once more what waits in quarantine, say after `evolve`; what still doesn't fit stays there.

        What fits leaves quarantine once it is stored. A record without an id gets one from what it says, so that a retry that
        is cut short, or two at once, store nothing twice; without a time it has the one it was refused at. Lines that didn't
        parse, and records whose id is taken by other content, wait on. Raises StoreError, ConflictError.
        """
        from treering.capture.retrying import retry

        return retry(self)

    def evolve(
        self,
        schema: SchemaSpec,
        *,
        renames: Mapping[str, str] | None = None,
        defaults: Mapping[str, Any] | None = None,
        dry_run: bool = False,
    ) -> Alignment:
        """Go on with other columns: add, rename, widen, make optional. Every record is read as the newest version.

        `schema`: what `Store.create` takes. `renames`: {name: new name}, all at once. `defaults`: {column: value}, what
        earlier records get in a column that is added, or no longer optional; an added one without takes its model
        field's default, else null. A column that `schema` lacks stays, optional. No record is rewritten: snapshots keep
        their digests, and recorders that are open go on with the columns they know. Returns the rule by which records of
        the version before are read; `.describe()` lists it. `dry_run`: only that.

        Raises UsageError that lists everything that doesn't fit, ConflictError when the schema evolved meanwhile or the
        lease stays taken.
        """
        from treering.store.schemas import evolve

        return evolve(self, schema, renames or {}, defaults or {}, dry_run=dry_run)

    def annotate(
        self,
        id: str,  # noqa: A002  (as the column is called)
        *,
        label: str | None = None,
        outcome: Any = None,
        quality: float | None = None,
        correction: Mapping[str, Any] | None = None,
        exclude: bool | None = None,
        intents: int | None = None,
        by: str | None = None,
        note: str | None = None,
    ) -> None:
        """Say something about a record later. Durable when this returns; the newest word under each key counts.

        label: what it should be labelled. outcome: what came of it. quality: a number, the higher the better.
        correction: {column: what should have stood there}, checked as a record is; sources that are loaded from now on deliver
        it, to training and evaluation alike, while the snapshot stays as it is. It takes the place of an earlier one; {} takes
        that back. intents: how many things it asks for at once. `id`, `session_id`, `subject`, `ts`, `split` and `origin` can't be corrected. exclude: True keeps it out of training and evaluation from the next `load` on
        (snapshots and locks stay as they are), False lets it back in. by, note: who says so, and why. Raises NotFoundError
        for an id that is in neither live nor a snapshot, InvalidRecordError for values of another kind.
        """
        self.annotate_many(
            [
                {
                    "id": id,
                    "label": label,
                    "outcome": outcome,
                    "quality": quality,
                    "correction": correction,
                    "exclude": exclude,
                    "intents": intents,
                    "by": by,
                    "note": note,
                }
            ]
        )

    def annotate_many(self, rows: Iterable[Mapping[str, Any]] | pa.Table) -> int:
        """Say something about many records at once: dicts, or an Arrow table, of `annotate`'s arguments.

        All are stored or none. Gives the number of words stored: one per record and key. Raises as `annotate` does.
        """
        from treering.capture.annotations import annotate

        return annotate(self, rows)

    def annotations(
        self, ids: Sequence[str] | None = None, *, key: str | None = None, history: bool = False
    ) -> pa.Table:
        """What has been said, in order: columns `id`, `key`, `value` (JSON text), `by`, `note`, `ts` and `seq` (int64).

        The newest word per id and key, with `history` all of them; about all records or about `ids`, under all keys or one.
        """
        log = self.annotation_log
        return log.read(log.version(), ids=ids, key=key, history=history)

    def erase(
        self,
        *,
        where: Mapping[str, str | Sequence[str]] | None = None,
        ids: Iterable[str] | None = None,
        reason: str = "",
        block_subject: bool = True,
    ) -> EraseReceipt:
        """Erase records for good, everywhere in the store, and return the receipt; acts at once.

        where: {"subject": one, or a list of them}: every record that is about them. ids: records by id. Gone are they from
        live, from every snapshot (the next edition of it: another digest; the other records and their order stay), from
        annotations, quarantine, spools and caches of this host, old versions, indices and leftover files. Their ids are
        denied for ever, so that a late retry can't bring one back: it is dropped and counted. So is, with `block_subject`,
        whatever else comes about the subjects, from anybody; without it, new records about them are taken.

        Locks and sources of a former content refuse and name the receipt; `MixLock.loader(erased="skip")` goes on without
        the records. `reason` is kept and names nobody. Nothing personal is kept: keyed hashes and row ids. Raises
        UsageError, ConflictError when the lease stays taken, StoreError; what was begun is completed by whoever maintains
        the corpus next.
        """
        from treering.capture.erasing import erase

        return erase(self, where=where, ids=ids, reason=reason, block_subject=block_subject)

    def erase_preview(
        self, *, where: Mapping[str, str | Sequence[str]] | None = None, ids: Iterable[str] | None = None
    ) -> ErasePreview:
        """What `erase` would take, and which adapters saw it. Stores nothing. Raises UsageError."""
        from treering.capture.erasing import preview

        return preview(self, where=where, ids=ids)

    def erasures(self) -> list[EraseReceipt]:
        """The receipts of all erasures, oldest first."""
        from treering.store.erase import erasures

        return erasures(self)

    def seen_by(self, train_rows: RowIds) -> list[SeenBy]:
        """The adapters whose runs could draw any of these rows (ascending stable row ids), and those that go on from them."""
        from treering.registry.seen import seen_by

        return seen_by(self.store, self, train_rows)

    def selections(self) -> list[SelectionRecord]:
        """The stored selections of this corpus, oldest first; `store.load(selection.ref)` gives one as a source."""
        from treering.store.selection import list_selections

        return list_selections(self)

    def capture_file(
        self,
        source: str | IO[bytes] | Sequence[str | IO[bytes]],
        *,
        format: str = "auto",  # noqa: A002  (as the option is called)
        redact: bool | Sequence[str] | None = None,
        follow: bool = False,
        stop: Event | None = None,
        progress: Callable[[int], None] | None = None,
        engine: str | Engine | None = None,
    ) -> ImportSummary:
        """Capture what files hold: a path, any fsspec URL, a glob, a binary stream, or several of them.

        format: "auto" looks at the first values, or one of records, openai, trl, parquet, … (`treering capture --help`). What
        doesn't fit goes to quarantine with its file and line and never blocks the rest. A record without an id gets one from
        the file's path and its text, so that a file captured twice adds nothing; one from a stream a fresh one. An import that
        was cut short is continued where it stood; a file that has changed since is begun anew. follow: go on with what is
        appended to local files, and with new files of a glob, until `stop` is set. redact: as for `capture`. progress: is
        called with the number of values read so far. engine: who reads files and checks their records: "local" (worker
        processes), "ray", or an engine at hand; without one large files are read by workers of this machine, all others here. Returns what became of everything.

        Raises NotFoundError (no such file), UsageError (a format that isn't known, or can't fill the corpus' record type),
        InvalidRecordError (columns of a Parquet file that don't fit), StoreError; what came before is captured then. Of a list,
        what is wrong with a file is said in its summary (`error`) instead.
        """
        if follow:
            if engine is not None:
                raise UsageError(
                    "what is followed is read here, by no engine", code="bad-follow", hint="leave out engine, or follow"
                )
            from treering.capture.following import follow_files

            return follow_files(self, source, format=format, redact=redact, stop=stop, progress=progress)
        from treering.capture.importer import import_file
        from treering.engine import engine_of

        given = source if isinstance(source, list | tuple) else [source]
        with engine_of(engine, *(one for one in given if isinstance(one, str))) as workers:
            return import_file(self, source, format=format, redact=redact, progress=progress, engine=workers)

    def backfill(
        self,
        source: str | IO[bytes] | Sequence[str | IO[bytes]],
        *,
        as_of: str,
        snapshot_by: Literal["day", "week", "month"],
        format: str = "auto",  # noqa: A002
        progress: Callable[[int], None] | None = None,
    ) -> BackfillSummary:
        """Turn files of history into snapshots, one per period of their records' times, oldest first.

        Running it again adds nothing, also after a kill. See `treering.capture.backfill.backfill`.
        """
        from treering.capture.backfill import backfill

        return backfill(self, source, as_of=as_of, snapshot_by=snapshot_by, format=format, progress=progress)

    def prune(
        self,
        *,
        keep: int | None = None,
        older_than: timedelta | float | None = None,
        uninformative: bool = False,
        dry_run: bool = True,
        force: bool = False,
        keep_heldout: bool = False,
    ) -> PruneReport:
        """Give back the bytes of old snapshots, for good; by default only say what that would take.

        By one rule: keep: the newest so many stay. older_than: a timedelta, or days, by the store's clock. uninformative:
        those whose held-out score stayed within 0.01 over the last 3 rounds of the lineage in production. The report says
        for each what it would free and which adapters and locks couldn't be repeated. Those that production, or an adapter
        it continues from, was trained on are pruned by `force` alone. keep_heldout: their held-out records stay readable,
        for evaluation: `store.heldout("support@v1")`, score matrix and gate. Names are never used again, digests stay known,
        and a late retry of a pruned record is still a duplicate (whatever it says: there is nothing to compare it with).

        Raises UsageError, CheckFailedError (needed in production; too few rounds to tell), ConflictError, StoreError.
        """
        from treering.registry.prune import prune

        return prune(
            self,
            keep=keep,
            older_than=older_than,
            uninformative=uninformative,
            dry_run=dry_run,
            force=force,
            keep_heldout=keep_heldout,
        )

    def snapshot(self, *, message: str = "", to: int | None = None) -> Snapshot | None:
        """Seal what live holds as the next snapshot; None when live is empty.

        `to`: the number it must get. Raises ConflictError when that isn't the next one, or the lease stays taken.
        """
        from treering.capture.sealing import seal_live

        if not isinstance(message, str):
            raise UsageError(f"a message is text, not {message!r}", code="bad-message")
        if to is not None and (isinstance(to, bool) or not isinstance(to, int) or to < 1):
            raise UsageError(f"snapshots are numbered from 1, not {to!r}", code="bad-number")
        message = message.encode("utf-8", "backslashreplace").decode()  # what came as stray bytes is spelt out
        sealed = seal_live(self, message=message, to=to)
        return Snapshot(self, sealed) if sealed else None

    def verify(self, name: str, *, engine: str | Engine | None = None) -> Verification:
        """Compare a snapshot (`v1`, or `live`) with all that is known of it: documents, tag, files, records.

        Reads every record (300 MB/s and more). Damage doesn't raise: `.ok` says, `.findings` name the file and the records.
        engine: who reads; see `Store.verify`. Raises NotFoundError, UsageError.
        """
        from treering.engine import engine_of
        from treering.store.verify import verify, verify_live

        with engine_of(engine, self.store.uri) as workers:
            return verify_live(self, engine=workers) if name == "live" else verify(self, name, engine=workers)


class Store(BaseStore):
    """A directory of corpora, snapshots, evaluations and adapters. Made by `treering.open`."""

    def _corpus_type(self) -> type[BaseCorpus]:
        return Corpus

    def create(
        self,
        name: str,
        schema: SchemaSpec,
        *,
        heldout: float = 0.1,
        group_by: str = "session_id",
        split_key: str = "",
        redact: bool | Sequence[str] = False,
    ) -> Corpus:
        """Make a corpus; see `BaseStore.create`. `redact`: what its recorders replace by markers; see `Corpus.capture`."""
        from treering.capture.redact import redaction_kinds

        kinds = redaction_kinds(redact)
        made = super().create(name, schema, heldout=heldout, group_by=group_by, split_key=split_key, redact=kinds)
        return cast(Corpus, made)

    def corpus(self, name: str, *, schema: SchemaSpec | None = None) -> Corpus:
        """A corpus by name; see `BaseStore.corpus`."""
        return cast(Corpus, super().corpus(name, schema=schema))

    def snapshot(self, target: str, *, message: str = "") -> Snapshot | None:
        """Seal live to `support` or `support@vN`; see `Corpus.snapshot`."""
        name, number = parse_target(target)
        return self.corpus(name).snapshot(message=message, to=number)

    def pack(
        self,
        ref: str,
        path: str | os.PathLike[str] | None = None,
        *,
        annotations: bool = False,
        selections: bool = False,
    ) -> Path:
        """Write a snapshot to one file, to be carried to another store; see `treering.store.bundle.pack`."""
        from treering.store.bundle import pack

        return pack(self, ref, path, annotations=annotations, selections=selections)

    def export(
        self,
        what: str | os.PathLike[str] | MixLock,
        to: str | os.PathLike[str] | IO[bytes],
        *,
        format: str = "records",  # noqa: A002  (as the command calls it)
        split: Literal["all", "train", "heldout"] = "all",
        columns: Sequence[str] | None = None,
        shard_rows: int | None = None,
        with_ref: bool = False,
        epochs: int | Literal["as-locked"] = "as-locked",
        erased: Literal["refuse", "skip"] = "refuse",
        skip_unfit: bool = False,
        force: bool = False,
        progress: Callable[[int, int | None], None] | None = None,
        engine: str | Engine | None = None,
    ) -> ExportSummary:
        """Write records to files that other programs read, in bounded memory.

        what: a ref, for every record of it in record order, or a mix lock (or the path of one), for exactly the rows of its
            batches in their order, repeats and all. Values are as loaders deliver them: corrected ones corrected, excluded
            records left out and counted.
        to: a path, any fsspec URL, or a binary stream. A file appears under its name whole, or not at all; .gz and .zst
            compress. A name that is taken is refused, unless `force`.
        format: records, openai, trl, parquet, hf (a folder for `datasets.load_from_disk`), or one that a package adds
            through the entry points `treering.exporters`.
        split: of a ref, only its training or its held-out records.
        columns: only these; all that the ref, or every source of the lock, has when left out.
        shard_rows: begin a new file after so many records: NAME-00000-of-00003.jsonl and so on.
        with_ref: of a lock, say in a column `_ref` which source each row came from.
        epochs, erased: of a lock, as `MixLock.loader` takes them.
        skip_unfit: leave out records that the format can't hold, and count them; else the first one is an error.
        progress: called with the number of records done, and of all of them (None where that isn't known).
        engine: who reads and formats the records, this process by default; "local" (worker processes), "ray", or an engine at hand.
            This process writes the files, and they are the same. Refused for a lock whose weights follow a schedule.

        Raises UsageError, NotFoundError, AlreadyExistsError, ConflictError (what was erased, or isn't what was locked),
        InvalidRecordError (a record that the format can't hold), StoreError.
        """
        from treering.mixing.export import export

        return export(
            self,
            what,
            to,
            format=format,
            split=split,
            columns=columns,
            shard_rows=shard_rows,
            with_ref=with_ref,
            epochs=epochs,
            erased=erased,
            skip_unfit=skip_unfit,
            force=force,
            progress=progress,
            engine=engine,
        )

    def unpack(self, path: str | os.PathLike[str], *, to: str | None = None) -> Snapshot:
        """Take the snapshot of a packed file in, all of it or nothing; see `treering.store.bundle.unpack`."""
        from treering.capture import flush_spools
        from treering.store.bundle import unpack

        for corpus in self.corpora():
            flush_spools(corpus)  # what was acknowledged counts as there
        return unpack(self, path, to=to)

    def mix(
        self,
        *sources: str | Source,
        weights: Sequence[float] | Schedule | None = None,
        seed: int = 0,
        replay_ratio: float | None = None,
        share_by: Literal["rows", "tokens"] = "rows",
        count_tokens: CountTokens | None = None,
    ) -> Mix:
        """A mix of sources, or of those that refs name; see `treering.mix`."""
        from treering.mixing import mix

        loaded = [source if isinstance(source, Source) else self.load(source) for source in sources]
        return mix(
            *loaded,
            weights=weights,
            seed=seed,
            replay_ratio=replay_ratio,
            share_by=share_by,
            count_tokens=count_tokens,
        )

    def verify(self, ref: str | None = None, *, engine: str | Engine | None = None) -> list[Verification]:
        """Compare what a ref names (a snapshot, a range, live, a whole corpus), or all there is, with what is known of it.

        One `Verification` a snapshot or live; damage doesn't raise. engine: who reads, this process by default; "local" (worker
        processes), "ray", or an engine at hand: they find the same. Raises NotFoundError, UsageError; StoreError when a worker dies.
        """
        from treering.store.verify import verify_store

        return verify_store(self, ref, engine=engine)

    def doctor(self, *, repair: bool = False) -> Diagnosis:
        """Whether the store is fit to be relied on: documents, permissions, versions, spools, tags, space, rot.

        `repair` does what can be done without guessing; where a choice is left, `.remarks` say which. Whether the records
        are what was sealed is for `verify` to say.
        """
        from treering.capture.rescue import look_at
        from treering.store.doctor import Chart, examine

        return examine(Chart(self, repair), look_at)

    @property
    def cache(self) -> SnapshotCache:
        """The snapshot cache that lies beside this store: `entries()`, `build(source, columns)`, `drop()`.

        Loaders use it, and build what they gain by, on their own.
        """
        from treering.mixing.cache import SnapshotCache

        return SnapshotCache(self.cache_dir)

    def adapters(self, corpus: str) -> list[AdapterRecord]:
        """All adapters of a corpus with their status, oldest first."""
        return self._registry(corpus).adapters()

    def promote(self, adapter: str) -> AdapterRecord:
        """Make an adapter production. Raises CheckFailedError unless the gate passed it."""
        return self._registry(AdapterRef.parse(adapter).corpus).promote(adapter)

    def rollback(self, corpus: str) -> AdapterRecord:
        """Make the production adapter before this one production again. Raises NotFoundError when there is none."""
        return self._registry(corpus).rollback()

    def report(
        self, corpus: str, path: str | os.PathLike[str], *, adapter: str | None = None, quick: bool = False
    ) -> Path:
        """Write one HTML file that tells whether the model forgets, and why; its absolute path.

        On `adapter`, by default the one in production, else the newest. quick: without what reads records (diagnosis, drift,
        audit). Opens without a network. Raises NotFoundError, UsageError, StoreError.
        """
        from treering.report import write_report

        return write_report(path, self, corpus, adapter=adapter, quick=quick)

    def trained_snapshots(self, corpus: str) -> set[str]:
        """Refs of the snapshots that the production adapter, or one that it continues, was trained on."""
        from treering.registry import trained_snapshots

        return trained_snapshots(self, corpus)

    def _registry(self, corpus: str) -> Registry:
        from treering.registry import Registry

        self.corpus(corpus)
        return Registry(self, corpus)


def open(  # noqa: A001  (treering.open, as gzip.open)
    uri: str | Path,
    *,
    create: bool = True,
    storage_options: Mapping[str, str | int | bool] | None = None,
) -> Store:
    """Open the store at `uri` (a directory, or `s3://bucket/prefix`), making it if `create` and nothing is there.

    `storage_options` are for object stores, under the keys that Lance takes: `aws_access_key_id`,
    `aws_secret_access_key`, `aws_endpoint`, `aws_region`, `allow_http`, `timeout`, …; what isn't given comes from the
    environment (`AWS_ACCESS_KEY_ID`, …). They are kept in memory only.

    Raises NotFoundError (no store, and not to be made), UsageError (a place that holds something else, a scheme that
    isn't supported, options that don't exist), StoreError (damaged, or of a newer format; an object store that can't be
    reached, that refuses the credentials, or that lacks the bucket or conditional writes: within 30 s).
    """
    return Store.at(uri, create=create, storage_options=storage_options)
