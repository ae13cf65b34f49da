"""The registry of one corpus: add, look up, promote, roll back.

Every change is one object created if absent: nothing is overwritten, and of two writers one gets ConflictError. Does not
decide whether an adapter is good (evaluation.gate) or turn weights into a model (rounds).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ValidationError

from treering.errors import AlreadyExistsError, CheckFailedError, ConflictError, NotFoundError, StoreError, UsageError
from treering.evaluation.predictions import Predictions, PredictionsModel
from treering.store.documents import parse_document
from treering.store.ref import AdapterRef, Ref

from .fold import RegistryState, fold
from .objects import HasObjects, Objects, sha256, to_bytes
from .records import AdapterEvent, AdapterRecord, EventKind, StoredAdapter

if TYPE_CHECKING:
    from treering.evaluation.gate import Verdict

__all__ = ["Registry"]

WEIGHTS, CARD, LOCK, RECORD = "weights.safetensors", "card.json", "lock.json", "record.json"
BASELINE = "baseline"  # an empty object beside the record: who is no candidate is told by listing alone
PREDICTIONS = "predictions/"  # of a model that was trained elsewhere
_LONGEST_NAME = 1_000
ATTEMPTS = 50  # writers of one corpus that may get in first before an append that can't conflict gives up


class Registry:
    """Adapters of one corpus. Holds no state: every call reads what is in the store now."""

    def __init__(self, store: HasObjects, corpus: str) -> None:
        AdapterRef.parse(f"{corpus}:production")  # a corpus name becomes part of a path: refuse "../x" here too
        self.corpus = corpus
        self._objects = store.objects
        self._root = f"adapters/{corpus}/"

    @classmethod
    def of(cls, store: HasObjects, ref: str) -> Registry:
        """The registry that an adapter ref belongs to. Raises UsageError when it isn't one."""
        return cls(store, AdapterRef.parse(ref).corpus)

    # -- reading

    def adapters(self) -> list[AdapterRecord]:
        """Every adapter, oldest first, with its present status."""
        state = self.state()
        return [self._record(n, state) for n in state.statuses]

    def state(self) -> RegistryState:
        """Statuses, production and what rollback leads to, folded from the events."""
        # Events first: an event names an adapter whose record was there before it.
        events = self.events()
        return self._folded(events)

    def events(self) -> list[AdapterEvent]:
        """The whole history, oldest first."""
        return [
            parse_document(AdapterEvent, path, self._objects.get(path))
            for path in self._objects.list(f"{self._root}events/")
        ]

    def get(self, ref: str) -> AdapterRecord:
        """The adapter a ref names, its role resolved now. Raises NotFoundError, or UsageError for another corpus."""
        state = self.state()
        return self._record(self._resolve(ref, state), state)

    def lineage(self, ref: str) -> list[AdapterRecord]:
        """The adapter and those it was trained from, oldest first. A parent of another corpus ends the chain."""
        state = self.state()
        chain = [self._record(self._resolve(ref, state), state)]
        while (number := chain[-1].parent_number) is not None:
            if number >= chain[-1].number or number not in state.statuses:
                raise StoreError(
                    f"{chain[-1].ref} names a parent that can't be: {chain[-1].parent}", code="registry-damaged"
                )
            chain.append(self._record(number, state))
        return chain[::-1]

    def trained_on(self, ref: str) -> list[str]:
        """Snapshot refs that the adapter or one it descends from drew from, in order of first use."""
        return list(dict.fromkeys(source for record in self.lineage(ref) for source in record.trained_on))

    def trained_rows(self, ref: str) -> list[tuple[int, int]]:
        """Half-open intervals of this corpus's stable row ids that the adapter's lineage drew from, merged and sorted.

        Names what `trained_on` can't: rows drawn from live, whichever snapshot they were sealed into since.
        """
        merged: list[tuple[int, int]] = []
        for lo, hi in sorted(iv for record in self.lineage(ref) for iv in record.trained_rows.get(self.corpus, [])):
            if merged and lo <= merged[-1][1]:
                merged[-1] = (merged[-1][0], max(hi, merged[-1][1]))
            else:
                merged.append((lo, hi))
        return merged

    def trained_with(self, data_ref: str) -> list[AdapterRecord]:
        """Adapters that drew from a snapshot themselves, oldest first: the other direction of lineage."""
        return [record for record in self.adapters() if data_ref in record.trained_on]

    def weights(self, ref: str) -> bytes:
        """Bytes of the adapter's safetensors. Raises StoreError when they aren't those that were added."""
        record = self.get(ref)
        return self._checked(record, WEIGHTS, record.weights_sha256)

    def card(self, ref: str) -> dict[str, Any]:
        """The adapter's model card. Raises StoreError when it isn't the one that was added."""
        record = self.get(ref)
        card: dict[str, Any] = json.loads(self._checked(record, CARD, record.card_sha256))
        return card

    def lock(self, ref: str) -> bytes | None:
        """The mix lock it was trained on, as JSON bytes; None when none was given."""
        path = self.get(ref).prefix + LOCK
        try:
            return self._objects.get(path)
        except NotFoundError:
            return None

    # -- writing

    def add(
        self,
        *,
        weights: bytes,
        card: BaseModel | Mapping[str, Any] | bytes,
        lock: bytes | None = None,
        lock_digest: str | None = None,
        parent: str | None = None,
        base: str | None = None,
        base_digest: str | None = None,
        strategy: str | None = None,
        config: Mapping[str, Any] | None = None,
        trained_on: Sequence[str] = (),
        trained_rows: Mapping[str, Sequence[tuple[int, int]]] | None = None,
        metric: str = "macro_f1",
        scores: Mapping[str, float] | None = None,
        stats: Mapping[str, Any] | None = None,
        run: str | None = None,
        external: str | None = None,
        baseline: bool = False,
    ) -> AdapterRecord:
        """Add a candidate under the next number: weights, card and lock first, the record last.

        Creating the weights claims the number, so racing adders get different ones and a crash before the record leaves
        bytes but no adapter, and its number is never used again. `weights` is a safetensors file. `parent` may be a
        role; it is written down by number. `trained_on` and `trained_rows` are what `training_data` makes of the pins of
        the sources that were drawn from: snapshot refs (a range counts as its snapshots), and row intervals of live.
        run: the round that it was made by. A run that was killed here and is made again goes on with the number that it had
        claimed, as training it again gives the same weights. external: what a model that was trained elsewhere is called
        there; its `weights` are empty. baseline: it is there to compare with, and no candidate. Raises NotFoundError when
        the parent isn't there, UsageError when a value can't be recorded.
        """
        if parent is not None:
            parent = self._parent(parent)
        card_bytes = to_bytes(card)
        record_of = _RecordMaker(
            corpus=self.corpus,
            parent=parent,
            base=base,
            base_digest=base_digest,
            strategy=strategy,
            config=dict(config or {}),
            lock_digest=lock_digest,
            trained_on=_snapshot_refs(trained_on),
            trained_rows={name: [(int(lo), int(hi)) for lo, hi in rows] for name, rows in (trained_rows or {}).items()},
            metric=metric,
            scores={name: float(score) for name, score in (scores or {}).items()},
            stats=dict(stats or {}),
            run=run,
            weights_sha256=sha256(weights),
            card_sha256=sha256(card_bytes),
            weights_bytes=len(weights),
            external=external,
            baseline=baseline,
        )
        to_bytes(record_of(1))  # refuse what can't be recorded before anything is written
        for _ in range(ATTEMPTS):
            claimed = None if run is None else self._claimed(weights, card_bytes)
            number, card_bytes = claimed or (max(self._numbers(committed=False), default=0) + 1, to_bytes(card))
            record = record_of(number, card_sha256=sha256(card_bytes))
            marker = b"" if baseline else None
            parts = {WEIGHTS: weights, CARD: card_bytes, LOCK: lock, BASELINE: marker, RECORD: to_bytes(record)}
            if all(self._put(record.prefix + name, data) for name, data in parts.items() if data is not None):
                return AdapterRecord.model_validate(record.model_dump())
            # someone else has this number, or took it over: take the next one
        raise ConflictError(
            f"no free adapter number for {self.corpus} after {ATTEMPTS} attempts", hint="too many writers; try again"
        )

    def add_external(
        self,
        name: str,
        *,
        parent: str | None = None,
        lock: bytes | None = None,
        lock_digest: str | None = None,
        trained_on: Sequence[str] = (),
        trained_rows: Mapping[str, Sequence[tuple[int, int]]] | None = None,
    ) -> AdapterRecord:
        """Add a model that was trained elsewhere, by what it is called there: a candidate without weights.

        It is scored on predictions (`add_predictions`), and goes through gate and promotion like any other. Raises
        NotFoundError when the parent isn't there, UsageError for an empty name.
        """
        if not name.strip() or len(name) > _LONGEST_NAME:
            raise UsageError(
                "a model from elsewhere needs a name",
                code="bad-external",
                hint="what it is called there: a path, a hub name, a run's id",
            )
        return self.add(
            weights=b"",
            card={"format": "treering.external/1", "external": name},
            lock=lock,
            lock_digest=lock_digest,
            parent=parent,
            trained_on=trained_on,
            trained_rows=trained_rows,
            external=name,
        )

    def add_predictions(self, ref: str, predictions: PredictionsModel) -> None:
        """Keep what a model from elsewhere said of held-out records; the same again changes nothing.

        Raises UsageError for an adapter whose weights are here, ConflictError when it said something else of a record
        before.
        """
        record = self.get(ref)
        if record.external is None:
            raise UsageError(
                f"{record.ref} was trained here: it is asked itself",
                code="not-external",
                hint=f"treering eval {record.ref}; or treering adapters add {self.corpus} --external ID for another model",
            )
        changed = self.predictions(record.ref).conflicts(predictions)
        if changed:
            raise ConflictError(
                f"{record.ref} has other predictions for {changed:,} of these records already",
                code="other-predictions",
                hint=f"another model is another adapter: treering adapters add {self.corpus} --external ID",
            )
        data = to_bytes(predictions)
        with suppress(AlreadyExistsError):
            self._objects.create(f"{record.prefix}{PREDICTIONS}{sha256(data)[:32]}.json", data)

    def predictions(self, ref: str) -> Predictions:
        """All that a model from elsewhere said so far."""
        record = self.get(ref)
        paths = self._objects.list(f"{record.prefix}{PREDICTIONS}")
        return Predictions(
            record.ref, [parse_document(PredictionsModel, path, self._objects.get(path)) for path in paths]
        )

    def record_verdict(self, ref: str, verdict: Verdict, *, message: str = "") -> AdapterRecord:
        """Write down what the gate said of an adapter; the latest verdict counts.

        A refused candidate has status "refused" until a later verdict passes it. One in production or retired keeps its
        status: taking it out is `rollback`'s or `retire`'s to say.
        """
        number = self._resolve(ref, self.state())
        baseline = None
        if verdict.baseline is not None and AdapterRef.parse(verdict.baseline).corpus == self.corpus:
            baseline = self._resolve(verdict.baseline, self.state())

        def next_event(state: RegistryState) -> AdapterEvent:
            return _event(state, "verdict", number, verdict=verdict, baseline=baseline, message=message)

        for _ in range(ATTEMPTS):  # a verdict holds whatever else happens meanwhile, so losing a race only moves it on
            try:
                return self._append(next_event)
            except ConflictError:
                continue
        raise ConflictError(f"couldn't write the verdict on {ref} down: too many writers", hint="try again")

    def promote(self, ref: str, *, message: str = "") -> AdapterRecord:
        """Put an adapter into production and retire the one that was; the adapter in production already stays there.

        Raises CheckFailedError with the reasons when its latest verdict refused it, when it has no verdict since it was
        last taken out of production, or when it was compared with something else than what is in production now;
        ConflictError when another writer changed the registry meanwhile; NotFoundError when it isn't there.
        """

        def next_event(state: RegistryState) -> AdapterEvent | int:
            number = self._resolve(ref, state)
            if number == state.production:
                return number
            name = f"{self.corpus}:{number}"
            hint = f"run the gate first: treering gate {name}"
            said = state.verdicts.get(number)
            if said is None or said.verdict is None:
                raise CheckFailedError(f"{name} hasn't passed a gate", code="not-gated", hint=hint)
            if not said.verdict.passed:
                raise CheckFailedError(
                    f"the gate refused {name}: {'; '.join(said.verdict.reasons)}",
                    code="gate-refused",
                    hint="train another candidate, or change the policy and run the gate again",
                )
            if number not in state.eligible:
                raise CheckFailedError(
                    f"{name} was taken out of production after it passed its gate", code="not-gated", hint=hint
                )
            if state.production is not None and said.baseline != state.production:
                raise CheckFailedError(
                    f"{name} was compared with {said.verdict.baseline or 'nothing'}, "
                    f"but {self.corpus}:{state.production} is in production now",
                    code="stale-verdict",
                    hint=hint,
                )
            return _event(state, "promote", number, message=message)

        return self._append(next_event)

    def rollback(self, *, to: str | None = None, message: str = "") -> AdapterRecord:
        """Retire the adapter in production and bring back the one before it, or an earlier one given as `to`.

        Needs no gate: it was in production before. Each call without `to` goes one step further back; with `to`, the
        adapter in production already stays there. Raises NotFoundError when there is nothing to go back to, ConflictError when
        another writer changed the registry meanwhile.
        """

        def next_event(state: RegistryState) -> AdapterEvent | int:
            if to is None:
                number = state.past[-1] if state.past else None
            else:
                number = self._resolve(to, state)
                if number == state.production:
                    return number
                if number not in state.past:
                    number = None
            if number is None:
                what = f"{to} was never in production" if to else f"{self.corpus} has no earlier production adapter"
                raise NotFoundError(f"{what}, so there is nothing to go back to", code="no-rollback")
            return _event(state, "rollback", number, message=message)

        return self._append(next_event)

    def retire(self, ref: str, *, message: str = "") -> AdapterRecord:
        """Take an adapter out of use for good, or until a new gate passes it; a retired one stays so.

        Raises NotFoundError when it isn't there, ConflictError when another writer changed the registry meanwhile.
        """

        def next_event(state: RegistryState) -> AdapterEvent | int:
            number = self._resolve(ref, state)
            if state.statuses[number] == "retired":
                return number
            return _event(state, "retire", number, message=message)

        return self._append(next_event)

    # -- inside

    def _claimed(self, weights: bytes, card: bytes) -> tuple[int, bytes] | None:
        """The number that a run had claimed when it was killed, and its card: one without a record, of the same weights.

        A card that is there already may tell other seconds than ours.
        """
        for number in sorted(set(self._numbers(committed=False)) - set(self._numbers(committed=True))):
            folder = f"{self._root}{number}/"
            found = self._objects.list(folder)
            if folder + WEIGHTS not in found or self._objects.get(folder + WEIGHTS) != weights:
                continue
            kept = self._objects.get(folder + CARD) if folder + CARD in found else card
            if _without_stats(kept) == _without_stats(card):
                return number, kept
        return None

    def _put(self, path: str, data: bytes) -> bool:
        """Create an object; False when there is another one. The same bytes are as good as ours."""
        try:
            self._objects.create(path, data)
        except AlreadyExistsError:
            return not path.endswith(RECORD) and self._objects.get(path) == data
        return True

    def _append(self, next_event: Callable[[RegistryState], AdapterEvent | int]) -> AdapterRecord:
        """Write the event decided on the present state; a number instead of an event means: nothing to do."""
        events = self.events()
        state = self._folded(events)
        event = next_event(state)
        if isinstance(event, int):
            return self._record(event, state)
        try:
            self._objects.create(f"{self._root}events/{event.number:06d}.json", to_bytes(event))
        except AlreadyExistsError as exc:
            raise ConflictError(
                f"another writer changed the adapters of {self.corpus} meanwhile",
                code="registry-race",
                hint=f"look at `treering adapters {self.corpus}`, then try again",
            ) from exc
        baselines = {number for number, status in state.statuses.items() if status == "baseline"}
        return self._record(event.adapter, fold(state.statuses, [*events, event], baselines))

    def _folded(self, events: Sequence[AdapterEvent]) -> RegistryState:
        names: dict[int, set[str]] = {}
        for path in self._objects.list(self._root):
            folder, _, name = path.removeprefix(self._root).partition("/")
            if folder.isdecimal():
                names.setdefault(int(folder), set()).add(name)
        there = [number for number, objects in names.items() if RECORD in objects]
        return fold(there, events, {number for number in there if BASELINE in names[number]})

    def _numbers(self, *, committed: bool) -> list[int]:
        """Adapter numbers in use; `committed`: only those whose record is there."""
        numbers = set()
        for path in self._objects.list(self._root):
            folder, _, name = path.removeprefix(self._root).partition("/")
            if folder.isdecimal() and (name == RECORD or not committed):
                numbers.add(int(folder))
        return sorted(numbers)

    def _resolve(self, ref: str, state: RegistryState) -> int:
        parsed = AdapterRef.parse(ref)
        if parsed.corpus != self.corpus:
            raise UsageError(f"{ref} isn't an adapter of {self.corpus}", code="wrong-corpus")
        hint = f"see `treering adapters {self.corpus}`"
        if parsed.which == "production":
            if state.production is None:
                raise NotFoundError(f"{self.corpus} has no adapter in production", code="no-production", hint=hint)
            return state.production
        if parsed.which == "candidate":
            if state.candidate is None:
                raise NotFoundError(f"{self.corpus} has no candidate", code="no-candidate", hint=hint)
            return state.candidate
        if parsed.which not in state.statuses:
            raise NotFoundError(f"no adapter {ref}", code="no-adapter", hint=hint)
        return parsed.which

    def _parent(self, ref: str) -> str:
        parsed = AdapterRef.parse(ref)
        if parsed.corpus == self.corpus:
            return f"{self.corpus}:{self._resolve(ref, self.state())}"
        other = Registry(_Holder(self._objects), parsed.corpus)
        return other.get(ref).ref

    def _record(self, number: int, state: RegistryState) -> AdapterRecord:
        path = f"{self._root}{number}/{RECORD}"
        stored = parse_document(StoredAdapter, path, self._objects.get(path))
        if (stored.corpus, stored.number) != (self.corpus, number):
            raise StoreError(f"{path} is the record of {stored.ref}", code="registry-damaged")
        said = state.verdicts.get(number)
        return AdapterRecord.model_validate(
            {**stored.model_dump(), "status": state.statuses[number], "verdict": said.verdict if said else None}
        )

    def _checked(self, record: AdapterRecord, name: str, expected: str) -> bytes:
        path = record.prefix + name
        try:
            data = self._objects.get(path)
        except NotFoundError as exc:
            raise StoreError(f"{record.ref} has lost its {name}", code="adapter-damaged") from exc
        if sha256(data) != expected:
            raise StoreError(
                f"{name} of {record.ref} isn't what was added: SHA-256 {sha256(data)[:12]}…, recorded {expected[:12]}…",
                code="adapter-damaged",
                hint="restore the object from a copy, or roll back to another adapter",
            )
        return data


class _Holder:
    """A store as far as the registry needs one."""

    def __init__(self, objects: Objects) -> None:
        self.objects = objects


class _RecordMaker:
    """One adapter's record, but for its number."""

    def __init__(self, **fields: Any) -> None:
        self._fields = fields

    def __call__(self, number: int, **changed: Any) -> StoredAdapter:
        try:
            return StoredAdapter(number=number, created_at=datetime.now(UTC), **{**self._fields, **changed})
        except ValidationError as exc:
            first = exc.errors()[0]
            where = ".".join(str(part) for part in first["loc"])
            raise UsageError(f"an adapter can't be recorded so: {where}: {first['msg']}", code="bad-adapter") from exc


def _without_stats(card: bytes) -> Any:
    try:
        said = json.loads(card)
    except ValueError:
        return card
    return {name: value for name, value in said.items() if name != "stats"} if isinstance(said, dict) else said


def _snapshot_refs(refs: Iterable[str]) -> list[str]:
    """The snapshots that refs name, each once. Raises UsageError for live and new, which name other rows tomorrow."""
    found: dict[str, None] = {}
    for text in refs:
        ref = Ref.parse(text)
        if ref.kind not in ("snapshot", "range"):
            raise UsageError(
                f"{text} can't be recorded as trained on: it will name other rows tomorrow",
                code="bad-adapter",
                hint="say which rows they were by trained_rows",
            )
        found.update((str(Ref(ref.corpus, "snapshot", n, n, ref.store)), None) for n in range(ref.first, ref.last + 1))
    return list(found)


def _event(state: RegistryState, kind: EventKind, adapter: int, **fields: Any) -> AdapterEvent:
    previous = None if kind == "verdict" else state.production
    return AdapterEvent(
        number=state.events + 1, event=kind, adapter=adapter, previous=previous, at=datetime.now(UTC), **fields
    )
