"""A store: a directory that holds corpora, snapshots and adapters.

Layout: `treering.json` (the marker), `corpora/`, `snapshots/`, `adapters/` … (objects), `tables/` (Lance), `spool/`,
`leases/` and `cache/` (droppable).
"""

from __future__ import annotations

import secrets
from contextlib import suppress
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

import treering
from treering.errors import AlreadyExistsError, NotFoundError, StoreError, UsageError
from treering.schema import RecordType, SchemaSpec
from treering.schema.evolution import first_version
from treering.store.documents import FORMAT, CorpusRecord, Document, SchemaVersion, StoreMarker, parse_document
from treering.store.objects import Objects
from treering.store.ref import check_corpus_name
from treering.store.schemas import read_versions, version_path

if TYPE_CHECKING:
    from treering.store.corpus import BaseCorpus
    from treering.store.source import Source

__all__ = ["BaseStore"]

_MARKER = "treering.json"


class BaseStore:
    """An open store. What every layer may do with one; `treering.Store` adds what stands further right."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.uri = str(root)
        self.objects = Objects(root)

    def __getstate__(self) -> Path:
        return self.root

    def __setstate__(self, root: Path) -> None:
        self.__init__(root)  # type: ignore[misc]

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.uri!r})"

    @classmethod
    def at(cls, uri: str | Path, *, create: bool = True) -> Any:
        """Open the store at `uri`, making it if `create` and nothing is there.

        Raises NotFoundError (no store, and not to be made), UsageError (a scheme that isn't supported, a directory that
        holds something else), StoreError (a newer format).
        """
        text = str(uri)
        if "://" in text:
            scheme, _, rest = text.partition("://")
            if scheme != "file":
                raise UsageError(
                    f"{scheme}:// stores aren't supported by this version",
                    code="unsupported-scheme",
                    hint="use a local directory",
                )
            text = rest
        root = Path(text).expanduser().absolute()
        if not (root / _MARKER).exists():
            if not create:
                raise NotFoundError(f"there is no store at {root}", code="no-store", hint="make one: treering init")
            if root.exists() and (not root.is_dir() or any(root.iterdir())):
                raise UsageError(
                    f"{root} isn't a store, and it isn't an empty directory either",
                    code="not-a-store",
                    hint="name an empty or a new directory",
                )
            try:
                root.mkdir(parents=True, exist_ok=True)
            except OSError as exc:
                raise StoreError(f"can't make {root}: {exc.strerror}", code="write-failed") from exc
            marker = StoreMarker(
                format=FORMAT,
                id=secrets.token_hex(8),
                created_at=datetime.now(UTC),
                created_by=f"treering {treering.__version__}",
            )
            with suppress(AlreadyExistsError):  # another process made it at the same moment
                Objects(root).create(_MARKER, marker.to_json())
        store = cls(root)
        _ = store.marker
        return store

    @cached_property
    def marker(self) -> StoreMarker:
        """What kind of store this is. Raises StoreError for a damaged marker or a newer format."""
        import json

        data = self.objects.get(_MARKER)
        try:
            found = json.loads(data).get("format")
            if isinstance(found, int) and found > FORMAT:
                raise StoreError(
                    f"{self.uri} has store format {found}; treering {treering.__version__} reads up to {FORMAT}",
                    code="newer-format",
                    hint="install a newer treering",
                )
            return StoreMarker.model_validate_json(data)
        except (ValueError, AttributeError, ValidationError) as exc:
            raise StoreError(f"{self.uri}/{_MARKER} is damaged", code="document-damaged") from exc

    @property
    def cache_dir(self) -> Path:
        """A local directory whose content may be dropped at any time."""
        path = self.root / "cache"
        path.mkdir(exist_ok=True)
        return path

    def read_document(self, kind: type[Document], path: str) -> Document:
        """A stored document. Raises NotFoundError, and StoreError when it isn't what it should be."""
        return parse_document(kind, path, self.objects.get(path))

    # --- corpora -------------------------------------------------------------------------------------------------

    def _corpus_type(self) -> type[BaseCorpus]:
        from treering.store.corpus import BaseCorpus

        return BaseCorpus

    def create(
        self, name: str, schema: SchemaSpec, *, heldout: float = 0.1, group_by: str = "session_id", split_key: str = ""
    ) -> Any:
        """Make a corpus.

        `schema`: a built-in record type's name, a pydantic model class, or a `pyarrow.Schema`. `heldout`: share in
        [0, 1) of the groups that become held-out; records with equal `group_by` share a split, and one without that
        field is a group of its own. `split_key` keys the hash that draws them (by default the corpus's name: the same
        records are split alike in every store). Raises AlreadyExistsError, UsageError.
        """
        check_corpus_name(name)
        record_type = RecordType.of(schema)
        if not 0 <= heldout < 1:
            raise UsageError(f"heldout is a share in [0, 1), not {heldout}", code="bad-share")
        if group_by not in ("session_id", "subject", "domain", "id"):
            raise UsageError(f"group_by is session_id, subject, domain or id, not {group_by!r}", code="bad-group")
        path = f"corpora/{name}/corpus.json"
        if self.objects.exists(path):
            raise AlreadyExistsError(f"there is a corpus {name!r} already", code="corpus-exists")
        now = datetime.now(UTC)
        record = CorpusRecord(
            name=name,
            incarnation=secrets.token_hex(4),
            record_type=record_type.name,
            heldout=float(heldout),
            group_by=group_by,
            split_key=split_key or name,
            created_at=now,
        )
        first = first_version(record_type)
        corpus = self._corpus_type()(self, record, record_type, (first,))
        (self.root / "tables").mkdir(exist_ok=True)
        corpus.table.create(record_type.schema)
        # The corpus record comes last: it is the commit point. A crash before it leaves a table that nothing names.
        self.objects.create(version_path(record, 1), SchemaVersion.of(first, now).to_json())
        try:
            self.objects.create(path, record.to_json())
        except AlreadyExistsError as exc:
            raise AlreadyExistsError(f"there is a corpus {name!r} already", code="corpus-exists") from exc
        return corpus

    def corpus(self, name: str, *, schema: SchemaSpec | None = None) -> Any:
        """A corpus by name. With a `schema` that has its columns, records are checked against that schema's rules too.

        Raises NotFoundError; UsageError when `schema` has other columns.
        """
        check_corpus_name(name)
        path = f"corpora/{name}/corpus.json"
        if not self.objects.exists(path):
            known = ", ".join(corpus.name for corpus in self.corpora()) or "none yet"
            raise NotFoundError(
                f"there is no corpus {name!r} in {self.uri}", code="no-corpus", hint=f"corpora here: {known}"
            )
        record = self.read_document(CorpusRecord, path)
        versions = read_versions(self, record)
        record_type = RecordType.stored(versions[-1].record_type, versions[-1].schema)
        if schema is not None:
            record_type = record_type.with_rules_of(RecordType.of(schema))
        return self._corpus_type()(self, record, record_type, versions)

    def corpora(self) -> list[Any]:
        """All corpora, by name."""
        names = [p.split("/")[1] for p in self.objects.list("corpora") if p.endswith("/corpus.json")]
        return [self.corpus(name) for name in sorted(names)]

    # --- reading -------------------------------------------------------------------------------------------------

    def load(self, ref: str) -> Source:
        """What a ref names, pinned now: `support@v1`, `support@v1..v3`, `support@live`, `support@new`, `support/NAME`.

        Raises UsageError for what isn't a ref, NotFoundError for what isn't there.
        """
        from treering.store.source import resolve

        return resolve(self, ref)

    def live(self, name: str) -> Source:
        """What live holds now: `load("NAME@live")`."""
        return self.load(f"{name}@live")

    def trained_snapshots(self, corpus: str) -> set[str]:
        """Refs of the snapshots that the production adapter was trained on; nothing in this layer knows adapters."""
        return set()
