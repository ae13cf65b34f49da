"""The front: `Store` and `Corpus` as users hold them. Each method is one call into the layer that does the work."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, cast

from treering.errors import ConflictError, UsageError
from treering.store.base import BaseStore
from treering.store.corpus import BaseCorpus
from treering.store.ref import AdapterRef, parse_target
from treering.store.snapshot import NAME_TAKEN, Snapshot, seal
from treering.store.source import Source

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from treering.capture import Quarantined, Recorder
    from treering.mixing import Mix
    from treering.mixing.cache import SnapshotCache
    from treering.registry import AdapterRecord, Registry
    from treering.schema import SchemaSpec
    from treering.store.documents import SnapshotRecord

__all__ = ["Corpus", "Store", "open"]

#: Sealers that find their name taken begin again; more often than this in a row, it is worth telling the caller.
_MOST_SEALS = 20


class Corpus(BaseCorpus):
    """A named, append-only stream of records of one type."""

    store: Store

    def capture(self, *, durability: Literal["disk", "store"] = "disk") -> Recorder:
        """A recorder for this corpus: `with corpus.capture() as live: live.add({...})`."""
        from treering.capture import Recorder

        return Recorder(self, durability=durability)

    def quarantine(self) -> list[Quarantined]:
        """Refused records, each with its problems, oldest first."""
        from treering.capture import flush_spools, list_quarantine

        flush_spools(self)
        return list_quarantine(self)

    def snapshot(self, *, message: str = "", to: int | None = None) -> Snapshot | None:
        """Seal what live holds as the next snapshot; None when live is empty.

        `to`: the number it must get. Raises ConflictError when that isn't the next one, or the lease stays taken.
        """
        from treering.capture import flush_spools

        if not isinstance(message, str):
            raise UsageError(f"a message is text, not {message!r}", code="bad-message")
        if to is not None and (isinstance(to, bool) or not isinstance(to, int) or to < 1):
            raise UsageError(f"snapshots are numbered from 1, not {to!r}", code="bad-number")
        message = message.encode("utf-8", "backslashreplace").decode()  # what came as stray bytes is spelt out
        for _ in range(_MOST_SEALS):
            flush_spools(self)
            sealed = seal(self, to=to, message=message)
            if sealed is not NAME_TAKEN:
                return Snapshot(self, cast("SnapshotRecord", sealed)) if sealed else None
        raise ConflictError(
            f"other processes kept sealing {self.name} first", code="seal-raced", hint="look at its log, then try again"
        )


class Store(BaseStore):
    """A directory of corpora, snapshots, evaluations and adapters. Made by `treering.open`."""

    def _corpus_type(self) -> type[BaseCorpus]:
        return Corpus

    def corpus(self, name: str, *, schema: SchemaSpec | None = None) -> Corpus:
        """A corpus by name; see `BaseStore.corpus`."""
        return cast(Corpus, super().corpus(name, schema=schema))

    def snapshot(self, target: str, *, message: str = "") -> Snapshot | None:
        """Seal live to `support` or `support@vN`; see `Corpus.snapshot`."""
        name, number = parse_target(target)
        return self.corpus(name).snapshot(message=message, to=number)

    def mix(self, *sources: str | Source, weights: Sequence[float] | None = None, seed: int = 0) -> Mix:
        """A mix of sources, or of those that refs name; see `treering.mix`."""
        from treering.mixing import mix

        loaded = [source if isinstance(source, Source) else self.load(source) for source in sources]
        return mix(*loaded, weights=weights, seed=seed)

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

    def trained_snapshots(self, corpus: str) -> set[str]:
        """Refs of the snapshots that the production adapter, or one that it continues, was trained on."""
        from treering.registry import trained_snapshots

        return trained_snapshots(self, corpus)

    def _registry(self, corpus: str) -> Registry:
        from treering.registry import Registry

        self.corpus(corpus)
        return Registry(self, corpus)


def open(uri: str | Path, *, create: bool = True) -> Store:  # noqa: A001  (treering.open, as gzip.open)
    """Open the store at `uri` (a local directory), making it if `create` and nothing is there.

    Raises NotFoundError (no store, and not to be made), UsageError (a directory that holds something else, a scheme that
    isn't supported), StoreError (damaged, or of a newer format).
    """
    return cast(Store, Store.at(uri, create=create))
