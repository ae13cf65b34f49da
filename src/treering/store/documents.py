"""The documents a store keeps as objects, as strict models; their JSON Schemas stand in `schemas/`."""

from __future__ import annotations

import base64
import hashlib
import re
from datetime import datetime
from typing import Annotated, Any, Literal, TypeVar

import pyarrow as pa
from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError

from treering.errors import StoreError
from treering.schema import Version, fingerprint
from treering.schema.evolution import Column, decode_scalar, encode_scalar, shown

__all__ = [
    "FORMAT",
    "AffectedSnapshot",
    "BundleEntry",
    "BundleManifest",
    "Certificate",
    "CorpusRecord",
    "EraseReceipt",
    "ErasedFound",
    "ErasureRecord",
    "HeldoutPart",
    "HeldoutRecord",
    "ImportPosition",
    "Occupancy",
    "PruneRecord",
    "RewrittenSnapshot",
    "SchemaVersion",
    "SeenBy",
    "SelectionRecord",
    "SelectionReport",
    "SnapshotOrigin",
    "SnapshotRecord",
    "StoreMarker",
    "StoredRows",
    "UnpackIntent",
    "add_checksum",
    "check_document",
    "parse_document",
]

#: Version of the layout on disk. A store of a newer format is refused; older ones stay readable.
FORMAT = 1

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
RowIds = tuple[int, int]
Document = TypeVar("Document", bound=BaseModel)


#: The last member of a stored document: the SHA-256 of the document without it. A flipped bit anywhere shows.
_SEAL = re.compile(rb',\n  "sha256": "([0-9a-f]{64})"\n}\Z')


def _with_checksum(schema: dict[str, Any]) -> None:
    described = "SHA-256 (hex) of the document's bytes without this member, which comes last."
    schema["properties"]["sha256"] = {"description": described, "pattern": "^[0-9a-f]{64}$", "type": "string"}
    schema["required"].append("sha256")


class _Part(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)


class _Document(_Part):
    model_config = ConfigDict(json_schema_extra=_with_checksum)

    def to_json(self) -> bytes:
        """Indented UTF-8 JSON with its checksum as the last member, the form it is stored in."""
        return add_checksum(self.model_dump_json(indent=2).encode())


def add_checksum(text: bytes) -> bytes:
    """An object as JSON, indented, with its checksum as the last member."""
    return text.removesuffix(b"\n}") + b',\n  "sha256": "' + hashlib.sha256(text).hexdigest().encode() + b'"\n}'


def check_document(path: str, data: bytes) -> bytes:
    """A stored document of any kind without its checksum. Raises StoreError when that doesn't fit."""
    found = _SEAL.search(data)
    text = data[: found.start()] + b"\n}" if found else data
    if found is None or hashlib.sha256(text).hexdigest().encode() != found[1]:
        raise StoreError(
            f"{path} is damaged: its checksum doesn't fit", code="document-damaged", hint="restore it from a backup"
        )
    return text


def parse_document(kind: type[Document], path: str, data: bytes) -> Document:
    """The document that stands at `path`, of this layer or of one to the right, whose documents have no checksum.

    Raises StoreError when it isn't one of its kind, or isn't byte for byte as it was made.
    """
    try:
        return kind.model_validate_json(check_document(path, data) if issubclass(kind, _Document) else data)
    except ValidationError as exc:
        first = exc.errors()[0]
        where = ".".join(map(str, first["loc"])) or "document"
        raise StoreError(
            f"{path} is damaged: {where}: {first['msg']}", code="document-damaged", hint="restore it from a backup"
        ) from exc


class StoreMarker(_Document):
    """`treering.json`: this directory is a store."""

    format: int
    id: str
    created_at: datetime
    created_by: str


class CorpusRecord(_Document):
    """`corpora/NAME/corpus.json`: a corpus and where its table lies."""

    name: str
    incarnation: str = Field(description="Random part of the table's path: a name made again never reuses a path.")
    record_type: str
    heldout: float = Field(ge=0, lt=1, description="Share of groups whose records become held-out.")
    group_by: str = Field(description="Common field whose records share a split.")
    split_key: str = Field(description="Key of the hash that draws the split.")
    redact: list[str] = Field(default=[], description="What is replaced by markers at capture: secret, email, …")
    created_at: datetime

    @property
    def table(self) -> str:
        """Name of the Lance table, `NAME-INCARNATION`."""
        return f"{self.name}-{self.incarnation}"


class ColumnPlace(_Part):
    """Where the values of a column are stored, as of one version."""

    key: int = Field(ge=1, description="The column, whatever it is called: the same in every version that has it.")
    stored: str = Field(description="Column of the Lance table that holds its values of this version's type.")


class ColumnDefault(_Part):
    """What earlier records get in a column where they hold nothing."""

    value: JsonValue = Field(description="For readers; times as ISO 8601 text, bytes as base64.")
    arrow: str = Field(description="The value with its type, exactly: an Arrow IPC stream of one row, base64.")


class SchemaVersion(_Document):
    """`corpora/NAME/schemas/INCARNATION-N.json`: one version of a corpus's columns. Creating it is what evolves."""

    version: int = Field(ge=1)
    record_type: str
    fingerprint: Sha256
    arrow: str = Field(description="Arrow IPC schema message, base64: the columns in order.")
    places: list[ColumnPlace] = Field(description="One per column, in the same order.")
    renames: dict[str, str] = Field(description="Name in the version before → name in this one.")
    defaults: dict[str, ColumnDefault] = Field(description="By column: what records of earlier versions get.")
    created_at: datetime

    def columns(self) -> Version:
        """The version. Raises StoreError when the document contradicts itself."""
        try:
            schema = pa.ipc.read_schema(pa.py_buffer(base64.b64decode(self.arrow)))
            if fingerprint(schema) != self.fingerprint:
                raise ValueError("the fingerprint isn't that of the columns")
            defaults = {name: decode_scalar(default.arrow) for name, default in self.defaults.items()}
            columns = tuple(
                Column(place.key, field, place.stored, defaults.get(field.name))
                for field, place in zip(schema, self.places, strict=True)
            )
        except (ValueError, LookupError, pa.ArrowException) as exc:
            raise StoreError(
                f"version {self.version} of a schema is damaged: {exc}",
                code="document-damaged",
                hint="restore it from a backup",
            ) from exc
        return Version(self.version, self.record_type, columns, tuple(self.renames.items()), self.created_at)

    @classmethod
    def of(cls, version: Version, created_at: datetime) -> SchemaVersion:
        """The document that keeps a version."""
        return cls(
            version=version.number,
            record_type=version.record_type,
            fingerprint=fingerprint(version.schema),
            arrow=base64.b64encode(version.schema.serialize().to_pybytes()).decode(),
            places=[ColumnPlace(key=column.key, stored=column.stored) for column in version.columns],
            renames=dict(version.renames),
            defaults={
                column.name: ColumnDefault(value=shown(column.default), arrow=encode_scalar(column.default))
                for column in version.columns
                if column.default is not None
            },
            created_at=created_at,
        )


class SnapshotOrigin(_Document):
    """Where a snapshot that came in a bundle was sealed."""

    store: str = Field(description="Id of the store.")
    ref: str = Field(description="What it was called there.")
    created_at: datetime = Field(description="When it was sealed there.")


class SnapshotRecord(_Document):
    """`snapshots/TABLE/vN/EDITION.json`: creating it is what seals a snapshot."""

    corpus: str
    incarnation: str
    name: str = Field(pattern=r"^v[1-9][0-9]*$")
    number: int = Field(ge=1)
    edition: int = Field(ge=1)
    branch: str | None = Field(description="Lance branch that holds it; null for the main one.")
    version: int = Field(
        ge=1,
        description="Table version that holds it; without a branch the boundary: sealed rows were created by then.",
    )
    main_version: int | None = Field(
        default=None, description="With a branch: the version of the main one that was sealed, still the boundary."
    )
    receipt: str | None = Field(
        default=None, description="The receipt of the erasure that made this edition; null for the first one."
    )
    manifest_sha256: Sha256
    schema_version: int = Field(
        ge=1, description="Version of the schema that it was sealed with: its records are of this one or earlier ones."
    )
    schema_fingerprint: Sha256
    parent: str | None
    parent_version: int = Field(ge=0, description="The parent's boundary; 0 without a parent.")
    rows: int = Field(ge=0, description="Records; 0 once all of them were erased.")
    row_ids: RowIds = Field(description="Half-open interval of stable row ids that holds its rows and no others.")
    created_at: datetime
    message: str
    origin: SnapshotOrigin | None = Field(default=None, description="Of one that came in a bundle.")

    @property
    def boundary(self) -> int:
        """The version of the main branch that was sealed: sealed rows are those created at or before it."""
        return self.version if self.main_version is None else self.main_version

    def path(self, suffix: str = "json") -> str:
        """The object that holds it, or with another suffix one that belongs to it."""
        return f"snapshots/{self.corpus}-{self.incarnation}/{self.name}/{self.edition}.{suffix}"

    @property
    def ref(self) -> str:
        """`support@v1`."""
        return f"{self.corpus}@{self.name}"


class Certificate(_Document):
    """`snapshots/TABLE/vN/EDITION.certificate.json`: what it takes a pass over a snapshot's data to know.

    Said of the records as the schema version that they were sealed with reads them: later versions change none of it.
    """

    corpus: str
    incarnation: str
    name: str
    edition: int
    digest: Sha256 = Field(description="Content digest over the records in order, independent of file layout.")
    rows: int
    train_runs: list[RowIds] = Field(description="(first stable row id, length) of each run of training rows.")
    counts: dict[Literal["split", "domain", "label", "origin"], dict[str, int]] = Field(
        description="Rows per value; the empty string stands for null. A column of over 10,000 values is left out."
    )
    files: dict[str, Sha256] = Field(description="SHA-256 of each data, deletion, index and manifest file.")
    id_filter: str = Field(description="Object with the static filter of the ids (a Bloom filter, 1e-4).")
    id_filter_sha256: Sha256
    blocks: str = Field(
        description="XXH3 (64 bit, little-endian, base64) of each 512 records in order: says which records a damaged file "
        "concerns."
    )
    tag: str | None = Field(description="The engine's tag file as it was then; null when there was none yet.")
    record: SnapshotRecord = Field(
        description="The snapshot's record: each of the two says whether the other is right."
    )
    created_at: datetime


class StoredRows(_Part):
    """An object of bytes beside a document, and what it must be."""

    path: str
    sha256: Sha256
    count: int = Field(ge=0)


class ErasureRecord(_Document):
    """`erasures/TABLE/N.json`: creating it is what decides an erasure; whoever comes next completes it.

    Whom and what it is about stands here as hashes alone, keyed by the store's `erasures/key`.
    """

    corpus: str
    incarnation: str
    number: int = Field(ge=1)
    subjects: list[str] = Field(description="Keyed hashes (128 bits, hex) of the subjects whose records are erased.")
    ids: StoredRows | None = Field(description="Keyed hashes of the ids that were asked for: 16 bytes each, ascending.")
    block_subjects: bool = Field(
        description="Whether records of these subjects are dropped from now on, whatever their id."
    )
    reason: str
    requested_at: datetime

    def path(self, suffix: str = "json") -> str:
        """The object that holds it, or with another suffix one that belongs to it."""
        return f"erasures/{self.corpus}-{self.incarnation}/{self.number}.{suffix}"


class SeenBy(_Part):
    """An adapter whose run could draw erased records."""

    adapter: str
    lock_digest: str | None = Field(description="Digest of the run's mix lock.")
    records: int = Field(ge=0, description="Erased training records among those that its run drew from.")
    inherits_from: str | None = Field(description="The adapter that saw them, when this one only continues from it.")


class AffectedSnapshot(_Part):
    """What of one snapshot is to be erased."""

    name: str
    edition: int = Field(ge=1, description="The edition that held it.")
    digest: Sha256 = Field(description="Content digest of that edition.")
    records: int = Field(
        ge=0, description="0: none of its records, but its index still names ids of an earlier snapshot's."
    )


class ErasedFound(_Document):
    """`erasures/TABLE/N.found.json`: what was found to erase, once nobody who doesn't know of it could add to it."""

    corpus: str
    incarnation: str
    number: int = Field(ge=1)
    rows: StoredRows = Field(
        description="Arrow IPC stream of row ids and what each is: a training or held-out record, or an annotation."
    )
    ids: StoredRows = Field(description="Keyed hashes of the ids of the erased records: they are dropped from now on.")
    live: int = Field(ge=0, description="Records found in live.")
    snapshots: list[AffectedSnapshot]
    annotations: int = Field(ge=0)
    seen_by: list[SeenBy]
    found_at: datetime


class RewrittenSnapshot(_Part):
    """A snapshot that has another edition now."""

    name: str
    edition: int = Field(ge=2)
    digest_before: Sha256
    digest_after: Sha256
    rows_before: int = Field(ge=0)
    rows_after: int = Field(ge=0)


class EraseReceipt(_Document):
    """`erasures/TABLE/N.receipt.json`: an erasure was carried out; what it took, and whom else it concerns."""

    corpus: str
    incarnation: str
    number: int = Field(ge=1)
    reason: str
    subjects: int = Field(ge=0, description="How many subjects were named; the store keeps only keyed hashes of them.")
    block_subjects: bool
    records: dict[str, int] = Field(description="Records erased, by place: `live`, `v1`, …")
    annotations: int = Field(ge=0)
    quarantined: int = Field(ge=0, description="Refused records erased from quarantine.")
    spooled: int = Field(ge=0, description="Records dropped from spools of this host before they reached the table.")
    selections: int = Field(ge=0, description="Stored selections whose description named an erased value.")
    cached: int = Field(ge=0, description="Files of this host's caches that were dropped.")
    freed_bytes: int = Field(ge=0)
    snapshots: list[RewrittenSnapshot]
    seen_by: list[SeenBy] = Field(description="Adapters (with the locks of their runs) that had seen the records.")
    not_covered: list[str] = Field(description="Where copies may still be.")
    requested_at: datetime
    completed_at: datetime

    @property
    def total(self) -> int:
        """Records erased, over all places."""
        return sum(self.records.values())


class PruneRecord(_Document):
    """`snapshots/TABLE/vN/pruned.json`: creating it is what prunes a snapshot. Its name, number and digest stay."""

    corpus: str
    incarnation: str
    name: str
    edition: int = Field(ge=1, description="The edition that was pruned.")
    digest: Sha256 = Field(description="Content digest that the snapshot had.")
    rows: int = Field(ge=0)
    why: str = Field(description="The rule that it was pruned by.")
    ids: str = Field(description="Object with 128-bit hashes of its ids, ascending, 16 bytes each: late retries.")
    ids_sha256: Sha256
    heldout: bool = Field(description="Whether its held-out records were kept; see the newest `heldout.E.json`.")
    bytes: int = Field(ge=0, description="Bytes of files that only it referenced.")
    pruned_at: datetime

    @property
    def ref(self) -> str:
        """`support@v1`."""
        return f"{self.corpus}@{self.name}"


class ImportPosition(_Document):
    """`imports/TABLE/KEY.json`: how far an import of a file has come that isn't at its end.

    KEY is a hash of the file's folder and inode (of anything remote, its URL): a file that is renamed keeps it. Everything up
    to there is in the table, in quarantine and in the annotations.
    """

    corpus: str
    incarnation: str
    origin: str = Field(
        description="The path or URL that the file had: what ids of records without own ids are made from."
    )
    format: str = Field(description="The format that the file was read as.")
    values: int = Field(ge=0, description="Lines (elements, rows) that were read, empty ones included.")
    bytes: int = Field(ge=0, description="Of their texts: a file that is shorter is another.")
    digest: str = Field(
        pattern=r"^[0-9a-f]{32}$", description="XXH3-128 over their texts: a file that begins otherwise is another."
    )
    remembers: bool = Field(description="Whether the importer has to be fed them again before it can go on.")
    refused: int = Field(ge=0, description="Of them, those that went to quarantine.")
    at: datetime


class BundleEntry(_Part):
    """One file in a bundle."""

    name: str
    bytes: int = Field(ge=0, description="As it lies in the bundle.")
    sha256: Sha256 = Field(description="Of those bytes.")
    unpacked: int = Field(ge=0, description="Bytes that it comes to; the same unless its name ends in .zst.")


class BundleManifest(_Document):
    """`bundle.json` in a bundle: one snapshot, to be carried to another store."""

    format: Literal["treering.bundle/1"] = "treering.bundle/1"
    store: str = Field(description="Id of the store that it comes from.")
    corpus: CorpusRecord
    snapshot: SnapshotRecord
    digest: Sha256 = Field(
        description="Content digest of the records, as the schema version it was sealed with reads them."
    )
    entries: list[BundleEntry] = Field(description="Every other file in the bundle.")
    annotations: int = Field(ge=0, description="Words about its records that came along.")
    selections: list[str] = Field(description="Names of the selections that came along.")


class UnpackIntent(_Document):
    """`unpacking/TABLE/vN.json`: a snapshot is about to come in. Without its record later on, it is undone."""

    read_version: int = Field(ge=0, description="Version of the table before its records were added.")
    files: list[str] = Field(description="The data files that add them, relative to the table.")


class HeldoutPart(_Part):
    """Some held-out records of a pruned snapshot."""

    path: str = Field(description="Object: an Arrow IPC stream of the stored columns and `_rowid`, in record order.")
    sha256: Sha256
    rows: int = Field(ge=1)


class HeldoutRecord(_Document):
    """`snapshots/TABLE/vN/heldout.E.json`: the held-out records that were kept of a pruned snapshot; the newest E counts."""

    corpus: str
    incarnation: str
    name: str
    edition: int = Field(ge=1)
    rows: int = Field(ge=0)
    parts: list[HeldoutPart] = Field(description="In record order.")
    created_at: datetime


class Occupancy(_Part):
    """How much of one domain a selection took."""

    domain: str
    available: int = Field(ge=0, description="Rows that could have been taken.")
    rows: int = Field(ge=0, description="Rows taken.")


class SelectionReport(_Part):
    """How a selection stands to what it was taken from."""

    by: str = Field(description="Column whose values are the domains.")
    domains: list[Occupancy] = Field(description="The largest ones, by rows available.")
    domains_total: int = Field(
        ge=0, description="How many domains there are; above the length of `domains`, some are left out."
    )
    starving: list[str] = Field(description="Domains of the source with fewer rows taken than the floor.")
    starving_total: int = Field(ge=0)
    floor_rows: int = Field(ge=0)
    total_variation: float = Field(
        ge=0, le=1, description="Distance to the source's distribution: half the sum of differences."
    )
    jensen_shannon: float = Field(ge=0, le=1, description="Jensen–Shannon divergence to it, in bits.")
    too_large: int = Field(ge=0, description="Rows that alone exceed the budget; never taken.")


class SelectionRecord(_Document):
    """`selections/TABLE/NAME.json`: rows that were chosen under a budget; immutable."""

    name: str
    corpus: str
    incarnation: str
    digest: Sha256 = Field(description="Over the corpus's incarnation and the row ids: which records these are.")
    source: dict[str, JsonValue] = Field(description="Pin of the source they were chosen from.")
    strategy: Literal["reservoir", "balanced", "diverse", "importance"]
    by: str = Field(description="Column, or a name for whatever else made the groups; empty for none.")
    spread: str = Field(
        default="", description="Column whose values each group's rows were spread over; empty for none."
    )
    seed: int
    unit: Literal["rows", "bytes", "tokens"]
    budget: int = Field(ge=1)
    used: int = Field(ge=0, description="How much of the budget the rows fill.")
    columns: list[str] = Field(description="Columns whose bytes count; empty unless the unit is bytes.")
    weights: dict[str, float] = Field(description="Share of each domain that importance aimed at; empty otherwise.")
    rows: int = Field(ge=1)
    row_ids: str = Field(
        description="Object with the stable row ids, ascending: an Arrow IPC stream of one int64 column."
    )
    row_ids_sha256: Sha256
    report: SelectionReport
    created_at: datetime

    @property
    def ref(self) -> str:
        """`support/NAME`."""
        return f"{self.corpus}/{self.name}"
