"""The mix lock: a mix with everything resolved, as a small JSON document.

Holds what decides which records come in which order: the pinned sources, integer weights, seed, batch size, chunk and
block sizes, and the events of the run. The same lock gives the same batches again, anywhere the data is. Reads no
records itself (sources) and draws none (plan, loader).
"""

from __future__ import annotations

import hashlib
import json
import os
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    JsonValue,
    SerializerFunctionWrapHandler,
    ValidationError,
    model_serializer,
    model_validator,
)

from treering.errors import ConflictError, NotFoundError, StoreError, UsageError
from treering.mixing.plan import Growth, MixPlan, WeightChange
from treering.mixing.shares import MAX_UNITS
from treering.mixing.sources import SourceLike, TrainRows
from treering.mixing.weights import Schedule

if TYPE_CHECKING:
    from treering.mixing.loader import Loader, Transform

__all__ = [
    "Event",
    "GrowthEvent",
    "LockedSource",
    "MixLock",
    "PinnedAnnotations",
    "PinnedSampling",
    "PinnedSegment",
    "PinnedSelection",
    "SourcePin",
    "WeightEvent",
    "pinned_sampling",
]


class _Document(BaseModel):
    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")


class _Compact(_Document):
    """A document that leaves out what it doesn't say: one from before a field was there keeps its digest."""

    @model_serializer(mode="wrap")
    def _brief(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        said: dict[str, Any] = handler(self)
        fields = type(self).model_fields
        return {k: v for k, v in said.items() if fields[k].is_required() or getattr(self, k) != fields[k].default}


class PinnedSegment(_Document):
    """One snapshot, or an interval of live, by content and stable row ids."""

    name: str = Field(description='"v1", or "live" for an interval of live')
    incarnation: str = Field(description="which corpus of that name: dropped and made again, it is another one")
    digest: str | None = Field(description="content digest, SHA-256 in hex; null for live, whose rows are named by id")
    row_ids: tuple[int, int] = Field(description="half-open interval of stable row ids")
    rows: int = Field(ge=0, description="records in it, held-out ones included")


class PinnedSelection(_Document):
    """A stored selection, by name and content."""

    name: str
    digest: str = Field(description="SHA-256 in hex over the row ids")


class PinnedAnnotations(_Compact):
    """What annotations said when the source was loaded."""

    version: int = Field(ge=1, description="version of the table of annotations; later ones don't count")
    excluded: int = Field(ge=0, description="records of the source that were excluded")
    digest: str = Field(description="SHA-256 in hex over their stable row ids")
    corrected: int = Field(default=0, ge=0, description="records of the source with corrected values")
    corrections: str | None = Field(default=None, description="SHA-256 in hex over those values and where they stand")


class SourcePin(_Compact):
    """What a ref named when it was resolved."""

    ref: str
    corpus: str
    segments: tuple[PinnedSegment, ...]
    schema_version: int = Field(default=1, ge=1, description="version of the corpus's schema that it is read as")
    selection: PinnedSelection | None = None
    where: dict[str, tuple[str | int | bool | None, ...]] | None = Field(
        default=None, description="column → the values it was narrowed to"
    )
    annotations: PinnedAnnotations | None = None


class PinnedSampling(_Document):
    """How the rows of a source are drawn when not all alike."""

    kind: Literal["balanced", "weighted"]
    by: str = Field(description="column or annotation key")
    missing: float = Field(default=0.0, ge=0, allow_inf_nan=False, description="weight of rows without a value")
    digest: str = Field(description="SHA-256 in hex over the cumulative integer weights")


class LockedSource(_Compact):
    """One source of the mix."""

    pin: SourcePin
    units: int = Field(ge=0, description="integer weight; the share is units / the sum of all units")
    train_rows: int = Field(ge=0, description="records that may be drawn")
    block_rows: int = Field(ge=1, description="rows that are shuffled together")
    tokens_per_row: float | None = Field(
        default=None, gt=0, allow_inf_nan=False, description="mean tokens of its rows, when shares count tokens"
    )
    sampling: PinnedSampling | None = None

    @property
    def content(self) -> str:
        """SHA-256 (hex) of the pin and the sampling: which records these are, and how often each comes."""
        return _sha256(self.model_dump(mode="json", include={"pin", "train_rows", "sampling"}))


class WeightEvent(_Document):
    """From this batch on the shares are others."""

    kind: Literal["weights"] = "weights"
    batch: int = Field(ge=0)
    units: tuple[int, ...]
    taken: tuple[int, ...] = Field(description="draws of each source before that batch")


class GrowthEvent(_Document):
    """From this draw on a source holds more training rows: those that came after the pinned ones, up to `end`."""

    kind: Literal["growth"] = "growth"
    batch: int = Field(ge=0, description="checkpoint at which it was settled")
    source: int = Field(ge=0)
    draw: int = Field(ge=0)
    train_rows: int = Field(ge=1)
    end: int = Field(ge=0, description="stable row id that the last segment now ends before")
    annotations: int = Field(default=0, ge=0, description="version of the annotations that excluded some of them")


Event = WeightEvent | GrowthEvent


_DELIVERY = {"columns", "ragged", "pad_value", "epochs", "exhaustion", "decided"}  # how much is delivered, and how


def _with_digest(schema: dict[str, Any]) -> None:
    """The digest stands in the document, where it tells of edits, but isn't a field: it follows from the others."""
    schema["properties"]["digest"] = {"type": "string", "description": "SHA-256 of what decides the batches"}


class MixLock(_Document):
    """A mix with everything resolved: `loader()` gives the same batches again, `save()` and `load()` keep it.

    `digest` covers what decides which records come in which order. `columns`, `ragged`, `pad_value`, `epochs` and
    `exhaustion` say how much of it is delivered and how; they are the loader's defaults and outside the digest.
    """

    model_config = ConfigDict(json_schema_extra=_with_digest)

    format: Literal["treering.mix-lock/1"] = "treering.mix-lock/1"
    seed: int
    batch_size: int = Field(ge=1, description="rows of a global batch, over all ranks")
    chunk_rows: int = Field(ge=1, description="neighbouring rows that are read together; 1 is a full shuffle")
    anchor: int = Field(ge=0, description="number of the source whose pass is an epoch of the mix")
    sources: tuple[LockedSource, ...] = Field(min_length=1)
    once: bool = Field(default=False, description="the anchor is passed over once and the rest in proportion")
    schedule: Schedule | None = Field(default=None, description="weights to take on as the run goes")
    events: tuple[Event, ...] = ()
    decided: int = Field(default=0, ge=0, description="batch up to which the events are settled")
    columns: tuple[str, ...] | None = Field(default=None, description="null: every column that all sources have")
    ragged: Literal["pad", "values"] = "pad"
    pad_value: float = Field(default=0, allow_inf_nan=False)
    epochs: int | None = Field(default=1, ge=1, description="passes over the anchor source; null is endless")
    exhaustion: Literal["repeat", "stop", "error"] = Field(
        default="repeat", description="when a source has been passed over once: again, end the run, or refuse to begin"
    )

    @model_validator(mode="after")
    def _consistent(self) -> MixLock:
        n = len(self.sources)
        if not 1 <= sum(self.units) <= MAX_UNITS:
            raise ValueError(f"the units of the sources add up to {sum(self.units)}, not to 1 … {MAX_UNITS}")
        if self.anchor >= n or not self.units[self.anchor]:
            raise ValueError(f"anchor {self.anchor} isn't a source that is drawn from")
        if self.schedule is not None and len(self.schedule.points[0].weights) != n:
            raise ValueError(f"the schedule doesn't give {n} weights")
        for event in self.events:
            if isinstance(event, GrowthEvent):
                if event.source >= n:
                    raise ValueError(f"an event is about source {event.source} of {n}")
            elif len(event.units) != n or len(event.taken) != n or not 1 <= sum(event.units) <= MAX_UNITS:
                raise ValueError(f"an event doesn't give {n} weights")
        return self

    @classmethod
    def checked(cls, **fields: Any) -> MixLock:
        """A lock of these fields. Raises UsageError that names what doesn't fit."""
        try:
            return cls(**fields)
        except ValidationError as exc:
            raise UsageError(_problems(exc), code="bad-argument") from exc

    @property
    def refs(self) -> list[str]:
        """The refs of the sources, by source number."""
        return [source.pin.ref for source in self.sources]

    @property
    def units(self) -> tuple[int, ...]:
        """Integer weights, by source number."""
        return tuple(source.units for source in self.sources)

    @property
    def shares(self) -> tuple[float, ...]:
        """The fraction of each batch that comes from each source."""
        total = sum(self.units)
        return tuple(unit / total for unit in self.units)

    @property
    def digest(self) -> str:
        """SHA-256 (hex) of what decides which records come in which order."""
        return _sha256(self.model_dump(mode="json", exclude=_DELIVERY))

    @property
    def recipe_digest(self) -> str:
        """The digest without the events: what a run was begun with, and what its states are known by."""
        return _sha256(self.model_dump(mode="json", exclude={*_DELIVERY, "events"}))

    def _repr_html_(self) -> str:
        from treering.notebook import bar, card, table

        rows = [
            (source.pin.ref, bar(share), f"{source.train_rows:,}")
            for source, share in zip(self.sources, self.shares, strict=True)
        ]
        return card(
            "mix lock",
            " + ".join(self.refs),
            [
                ("digest", self.digest),
                ("batches of", f"{self.batch_size:,}"),
                ("epochs", "without end" if self.epochs is None else self.epochs),
                ("seed", self.seed),
                ("events", len(self.events) or None),
            ],
            body=table(["source", "share of a batch", "training records"], rows, right=["training records"]),
        )

    def with_events(self, events: Sequence[Event], decided: int) -> MixLock:
        """The same mix with these events, settled up to batch `decided`."""
        return self.model_copy(update={"events": tuple(events), "decided": decided})

    def growths(self, source: int) -> list[GrowthEvent]:
        """The growths of a source, in order."""
        return [event for event in self.events if event.kind == "growth" and event.source == source]

    def plan(self, rows: Sequence[TrainRows] = ()) -> MixPlan:
        """The plan this lock decides; which rows sources drawn by weight give, it knows with their `rows` alone."""
        return MixPlan(
            sizes=tuple(source.train_rows for source in self.sources),
            units=self.units,
            batch_size=self.batch_size,
            seed=self.seed,
            chunk_rows=self.chunk_rows,
            block_rows=tuple(source.block_rows for source in self.sources),
            anchor=self.anchor,
            changes=tuple(WeightChange(e.batch, e.units, e.taken) for e in self.events if e.kind == "weights"),
            growth=tuple((e.source, Growth(e.draw, e.train_rows)) for e in self.events if e.kind == "growth"),
            once=self.once,
            cumulative=tuple(None if one.sampled is None else one.sampled.cumulative for one in rows),
        )

    def to_json(self) -> str:
        """The document as text, with its digest beside it."""
        return json.dumps({**self.model_dump(mode="json"), "digest": self.digest}, indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str | bytes) -> MixLock:
        """Read a document. Raises UsageError when it isn't a mix lock, ConflictError when it was changed by hand."""
        try:
            data = json.loads(text)
            if not isinstance(data, dict):
                raise ValueError("not a JSON object")
            digest = data.pop("digest")
            lock = cls.model_validate_json(json.dumps(data))
        except ValidationError as exc:
            raise UsageError(f"this isn't a mix lock: {_problems(exc)}", code="bad-lock") from exc
        except KeyError as exc:
            raise UsageError("this isn't a mix lock: it has no digest", code="bad-lock") from exc
        except (ValueError, RecursionError) as exc:
            raise UsageError(f"this isn't a mix lock: {exc}", code="bad-lock") from exc
        if digest != lock.digest:
            raise ConflictError(
                f"the lock says its digest is {str(digest)[:12]}…, but its content makes {lock.digest[:12]}…",
                code="lock-edited",
                hint="locks aren't edited: make a new mix and lock that",
            )
        return lock

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the document to `path`, whole or not at all. Raises StoreError when it can't be written."""
        target = Path(path)
        temporary = target.parent / f".{target.name}.{os.getpid()}.tmp"
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            try:
                temporary.write_text(self.to_json(), encoding="utf-8")
                temporary.replace(target)
            finally:
                temporary.unlink(missing_ok=True)
        except OSError as exc:
            reason = exc.strerror or exc
            raise StoreError(f"can't write the mix lock to {target}: {reason}", code="write-failed") from exc

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> MixLock:
        """Read the document at `path`. Raises NotFoundError, StoreError, and what `from_json` raises."""
        if not isinstance(path, str | os.PathLike):
            raise UsageError(f"{path!r} isn't the path of a mix lock", code="bad-path")
        try:
            text = Path(path).read_bytes()
        except (FileNotFoundError, IsADirectoryError, NotADirectoryError) as exc:
            raise NotFoundError(f"there is no mix lock at {os.fspath(path)}", code="no-lock") from exc
        except OSError as exc:
            raise StoreError(f"can't read {os.fspath(path)}: {exc.strerror}", code="read-failed") from exc
        return cls.from_json(text)

    def resolve(self, store: Any, *, erased: Literal["refuse", "skip"] = "refuse") -> tuple[SourceLike, ...]:
        """The pinned sources, from `store`; with `erased="skip"` also those that records were erased from since.

        Raises NotFoundError when one isn't there and ConflictError when it holds something else by now (code "erased",
        naming the receipts, when erasures are why).
        """
        if not hasattr(store, "objects") and not hasattr(store, "from_pin"):
            raise UsageError(
                f"a lock is resolved in a store, not in {store!r}", code="bad-store", hint="treering.open(…) gives one"
            )
        found = []
        for source in self.sources:
            pin = source.pin.model_dump(mode="json")
            if hasattr(store, "from_pin"):  # a store of another make, such as the in-memory one for tests
                one = store.from_pin(pin)
            else:
                from treering.store.source import Source

                one = Source.from_pin(store, pin, erased=erased)
            if source.sampling is not None:
                if any(len(getattr(segment, "erased", ())) for segment in one.segments):
                    raise ConflictError(
                        f"{pin['ref']} was drawn by {source.sampling.by}, and nobody knows that of the erased records any more",
                        code="erased",
                        hint="such a lock can't be served again: make a new mix",
                    )
                by, missing = source.sampling.by, source.sampling.missing
                one = one.balanced(by) if source.sampling.kind == "balanced" else one.weighted(by, missing=missing)
            found.append(one)
        return tuple(found)

    def loader(
        self,
        store: Any,
        *,
        columns: Sequence[str] | None = None,
        transform: Transform | None = None,
        num_workers: int = 0,
        epochs: int | Literal["as-locked"] | None = "as-locked",
        rank: int | None = None,
        world_size: int | None = None,
        prefetch: int | None = None,
        ragged: Literal["pad", "values"] | None = None,
        pad_value: float | None = None,
        start_method: str = "forkserver",
        follow: bool = False,
        adaptive: bool = False,
        cache: bool = True,
        erased: Literal["refuse", "skip"] = "refuse",
    ) -> Loader:
        """A loader that gives the batches of this lock again, from `store`; see `Mix.loader` for the arguments.

        When records of it were erased since, it refuses and names the receipts; with `erased="skip"` it gives the same
        batches without those records, so some are shorter (one may be empty). It warns, and `stats()` counts them.

        Columns, epochs and padding are as locked unless given. `follow` and `adaptive` go on where the events of the
        lock end, as a run does that was interrupted. Raises what `resolve` and `Mix.loader` raise.
        """
        from treering.mixing.loader import Loader

        changed: dict[str, Any] = {}
        if columns is not None:
            changed["columns"] = column_names(columns)
        if epochs != "as-locked":
            changed["epochs"] = epochs
        if ragged is not None:
            changed["ragged"] = ragged
        if pad_value is not None:
            changed["pad_value"] = pad_value
        sources = self.resolve(store, erased=_erased(erased))
        loader = Loader(
            MixLock.checked(**{**dict(self), **changed}),
            sources,
            transform=transform,
            num_workers=num_workers,
            rank=rank,
            world_size=world_size,
            prefetch=prefetch,
            start_method=start_method,
            follow=follow,
            adaptive=adaptive,
            cache=cache,
        )
        _warn_of_erased(sources)
        return loader


def _erased(given: Any) -> Any:
    if given not in ("refuse", "skip"):
        raise UsageError(f"erased is {given!r}; it is 'refuse' or 'skip'", code="bad-erased")
    return given


def _warn_of_erased(sources: tuple[SourceLike, ...]) -> None:
    for source in sources:
        gone = sum(len(getattr(segment, "erased", ())) for segment in source.segments)
        if gone:
            warnings.warn(
                f"{gone:,} training records of {source.ref} were erased; batches go without them", stacklevel=3
            )


def pinned_sampling(source: SourceLike, rows: TrainRows) -> PinnedSampling | None:
    """How the rows of a source are drawn, as a lock keeps it; None when all alike."""
    if rows.sampled is None:
        return None
    how = source.sampling
    return PinnedSampling(kind=how.kind, by=how.by, missing=float(how.missing), digest=rows.sampled.digest)


def column_names(columns: Sequence[str]) -> tuple[str, ...]:
    """The names as a tuple. Raises UsageError for a bare text or names that aren't text."""
    listed = isinstance(columns, Iterable) and not isinstance(columns, str)
    if not listed or not all(isinstance(name, str) for name in columns):
        raise UsageError(f"columns is {columns!r}; it is a list of names", code="bad-columns")
    return tuple(columns)


def _problems(exc: ValidationError) -> str:
    return "; ".join(f"{'.'.join(map(str, e['loc'])) or 'lock'}: {e['msg']}" for e in exc.errors()[:3])


def _sha256(value: JsonValue | Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
