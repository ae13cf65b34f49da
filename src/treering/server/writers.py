"""One writer a corpus: a thread that stores what requests bring, many requests at once, and says what became of each record.

Requests that wait for the disk anyway share validation, a spool write and its sync. Nothing is answered before the
recorder has acknowledged it.
"""

from __future__ import annotations

import contextlib
import logging
import queue
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import partial
from itertools import groupby, islice
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeVar

from treering.capture import Recorder
from treering.capture.erasing import held_path
from treering.errors import InvalidRecordError, NotFoundError, Problem, StoreError, TreeringError
from treering.formats.base import Found, Importer, Passed, Unfit
from treering.formats.hooks import Hooks
from treering.formats.otlp import Otlp
from treering.server.bodies import Given
from treering.server.held import Held, Piece, unpacked
from treering.server.limits import Limits
from treering.store.denylist import denylist

if TYPE_CHECKING:
    import pyarrow as pa

    from treering.capture.recorder import Counts
    from treering.front import Corpus, Store

__all__ = ["SECONDS_KEPT", "Outcome", "Tally", "Writer", "Writers"]

logger = logging.getLogger("treering.server")

Done = TypeVar("Done")
Status = Literal["stored", "duplicate", "refused", "erased"]

#: Records of several requests that are stored at once.
_TOGETHER = 8_192
#: Ids remembered with a hash of what they said, so that what is sent again is answered without storing it once more.
_REMEMBERED = 100_000
#: How often a writer looks whether its corpus evolved.
_LOOK_S = 5.0
#: How often a writer looks whether conversations are complete.
_TICK_S = 0.5
#: A turn of a coding agent ends with an event; one that never came is given up for so long.
_TURN_S = 6 * 3_600.0


class Outcome(NamedTuple):
    """What became of one record. `stored`: it is on disk; should its id turn out to be taken, commit sees to that."""

    id: str | None
    status: Status
    problems: tuple[Problem, ...] = ()


#: Seconds of which the page shows how many records came.
SECONDS_KEPT = 120

_IMPORTERS: dict[str, type[Importer]] = {"otlp": Otlp, "hooks": Hooks}


@dataclass
class Tally:
    """Counts of a corpus since the server began."""

    stored: int = 0
    duplicates: int = 0
    refused: int = 0
    erased: int = 0
    passed: Counter[str] = field(default_factory=Counter)  # parts of conversations that made nothing, by why
    seconds: dict[int, int] = field(default_factory=dict)  # stored, by the second of the monotonic clock
    problems: deque[tuple[float, Problem]] = field(default_factory=lambda: deque(maxlen=5))  # the last ones, and when

    def refuse(self, problem: Problem) -> None:
        """Count a refusal."""
        self.refused += 1
        self.problems.append((time.time(), problem))

    def add(self, outcomes: Sequence[Outcome]) -> None:
        """Count outcomes."""
        before = self.stored
        self._add(outcomes)
        now = int(time.monotonic())
        self.seconds[now] = self.seconds.get(now, 0) + self.stored - before
        for old in [second for second in self.seconds if second < now - SECONDS_KEPT]:
            del self.seconds[old]

    def _add(self, outcomes: Sequence[Outcome]) -> None:
        found = [one.status for one in outcomes]
        self.stored += found.count("stored")
        self.duplicates += found.count("duplicate")
        self.erased += found.count("erased")
        if "refused" in found:
            for one in outcomes:
                if one.status == "refused":
                    self.refuse(one.problems[0])


@dataclass(slots=True)
class _Batch:
    given: Given
    source: str
    future: Future[list[Outcome]]


@dataclass(slots=True)
class _Call:
    """Something else to be done in the writer's thread, between two batches."""

    work: Callable[[Recorder], Any]
    future: Future[Any]


@dataclass(slots=True)
class _Joined:
    """Records of several batches, one after the other, and where each comes from."""

    records: list[Any] = field(default_factory=list)
    origins: list[tuple[int, int]] = field(default_factory=list)  # batch, position in it


class _Sources(Sequence[str]):
    """Where joined records come from, said only of those that quarantine takes."""

    def __init__(self, batches: Sequence[_Batch], origins: Sequence[tuple[int, int]]) -> None:
        self._batches, self._origins = batches, origins

    def __len__(self) -> int:
        return len(self._origins)

    def __getitem__(self, n: Any) -> Any:
        batch, position = self._origins[n]
        return f"{self._batches[batch].source}:{position + 1}"


class Writer:
    """Stores what comes for one corpus. `submit` from any thread."""

    def __init__(self, corpus: Corpus, limits: Limits) -> None:
        self.corpus = corpus
        self.tally = Tally()
        self._limits = limits
        self._held: Held | None = None
        self._waiting: queue.SimpleQueue[_Batch | _Call | None] = queue.SimpleQueue()
        self._recorder: Recorder | None = None
        self._seen: dict[str, int] = {}
        self._denied = denylist(corpus, look=False).known
        self._looked = self._ticked = time.monotonic()
        self._failure: Exception | None = None
        self._thread = threading.Thread(target=self._run, name=f"treering-writer-{corpus.name}", daemon=True)
        self._thread.start()

    @property
    def counts(self) -> Counts | None:
        """What its recorder has done so far; None before the first record."""
        return self._recorder.counts if self._recorder is not None else None

    def submit(self, given: Given, source: str) -> Future[list[Outcome]]:
        """Store what a request gives; the outcomes, one a record in order, once all of it is on disk or in quarantine.

        The future raises InvalidRecordError when a table's columns don't fit, StoreError.
        """
        return self._put(_Batch(given, source, _future()))

    def call(self, work: Callable[[Recorder], Done]) -> Future[Done]:
        """Do something with the recorder, after what was submitted before."""
        return self._put(_Call(work, _future()))

    def _put(self, one: _Batch | _Call) -> Future[Any]:
        self._waiting.put(one)
        if not self.is_alive:  # it may have ended just now, and nobody would come for this one
            self._give_up(StoreError(f"the writer of {self.corpus.name} has ended", code="stopping"))
        return one.future

    @property
    def is_alive(self) -> bool:
        """Whether it takes what comes."""
        return self._thread.is_alive()

    def hold(self, pieces: Sequence[Piece], misfits: Sequence[Unfit], ended: Sequence[str] = ()) -> Future[None]:
        """Keep pieces of conversations; done once they are on disk, and misfits in quarantine.

        Records are made of a conversation when nothing came for it for `Limits.hold_s`, or now if it is among `ended`.
        """
        return self.call(partial(self._hold, pieces, misfits, ended))

    def close(self) -> None:
        """Store what waits, commit it and let go. Raises StoreError, ConflictError when the spool couldn't be emptied."""
        self._waiting.put(None)
        self._thread.join()
        if self._failure is not None:
            raise self._failure

    # --- the thread ----------------------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            while self._turn():
                pass
        except BaseException as exc:  # a defect; requests must hear of it, and `close` must not say that all is well
            logger.exception("the writer of %s has ended", self.corpus.name)
            self._failure = _ended(self.corpus.name, exc)
        for let_go in (self._let_go_of_held, self._let_go_of_recorder):
            try:
                let_go()
            except Exception as exc:
                self._failure = exc if isinstance(exc, TreeringError) else _ended(self.corpus.name, exc)
        self._give_up(self._failure or StoreError("the server is stopping", code="stopping"))

    def _turn(self) -> bool:
        """Serve what waits; whether to go on."""
        try:
            one = self._waiting.get(timeout=_TICK_S if self._held is not None else None)
        except queue.Empty:
            self._settle_due()
            return True
        batches: list[_Batch] = []
        call: _Call | None = None
        going_on = True
        count = 0
        while True:
            if one is None:
                going_on = False
                break
            if isinstance(one, _Call):
                call = one
                break
            batches.append(one)
            count += one.given.count
            if count >= _TOGETHER:
                break
            try:
                one = self._waiting.get_nowait()
            except queue.Empty:
                break
        try:
            if batches:
                self._serve(batches)
            if call is not None:
                _settle(call.future, partial(self._done, call))
        except BaseException as exc:
            for given in (*batches, *((call,) if call is not None else ())):
                if not given.future.done():
                    given.future.set_exception(_ended(self.corpus.name, exc))
            raise
        if self._held is not None and time.monotonic() - self._ticked >= _TICK_S:
            self._settle_due()
        return going_on

    def _give_up(self, why: Exception) -> None:
        """Answer what waits, and what nobody will come for any more."""
        while True:
            try:
                one = self._waiting.get_nowait()
            except queue.Empty:
                return
            if one is not None:
                one.future.set_exception(why)

    def _let_go_of_held(self) -> None:
        if self._held is not None:
            try:
                self._settle_due(last=True)
            finally:
                self._held.close()

    def _let_go_of_recorder(self) -> None:
        if self._recorder is not None:
            self._recorder.close()

    def _done(self, call: _Call) -> Any:
        return call.work(self._ready())

    def _ready(self) -> Recorder:
        """The recorder, of the newest schema."""
        now = time.monotonic()
        if self._recorder is not None and now - self._looked > _LOOK_S:
            self._looked = now
            with contextlib.suppress(TreeringError):  # if the store can't be asked now, the spool still takes records
                denylist(self.corpus)  # another process may have erased something
                newest = self.corpus.store.corpus(self.corpus.name)
                if len(newest.versions) != len(self.corpus.versions):
                    old, self._recorder, self.corpus = self._recorder, None, newest
                    old.close()
        if self._recorder is None:
            self._recorder = self.corpus.capture()
        known = denylist(self.corpus, look=False).known
        if known != self._denied:
            self._denied = known
            self._seen.clear()  # what was erased isn't a duplicate when it comes again
            self._recorder.flush()  # a recorder learns of erasures by committing
            if self._held is not None:
                self._settle_denied(self._recorder, self._held)
        return self._recorder

    def _serve(self, batches: list[_Batch]) -> None:
        try:
            recorder = self._ready()
        except Exception as exc:
            for batch in batches:
                batch.future.set_exception(exc)
            return
        plain = [batch for batch in batches if batch.given.table is None]
        if plain:
            self._serve_plain(recorder, plain)
        # Tables with the same columns are one table: storing costs most by the piece, whatever its length.
        for _, joined in groupby((one for one in batches if one.given.table is not None), key=_columns_of):
            self._serve_tables(recorder, list(joined))

    def _serve_plain(self, recorder: Recorder, batches: list[_Batch]) -> None:
        self._answer(batches, partial(self._store, recorder, batches))

    def _serve_tables(self, recorder: Recorder, batches: list[_Batch]) -> None:
        self._answer(batches, partial(self._store_tables, recorder, batches))

    def _answer(self, batches: list[_Batch], store: Callable[[], list[list[Outcome]]]) -> None:
        try:
            found = store()
        except Exception as exc:
            for batch in batches:
                batch.future.set_exception(exc)
            return
        for batch, outcomes in zip(batches, found, strict=True):
            self.tally.add(outcomes)
            batch.future.set_result(outcomes)

    def _store(self, recorder: Recorder, batches: list[_Batch]) -> list[list[Outcome]]:
        found: list[list[Outcome | None]] = [[None] * batch.given.count for batch in batches]
        new, again = _Joined(), _Joined()
        hashes: dict[str, int] = {}
        later: list[tuple[int, int, str]] = []
        for b, batch in enumerate(batches):
            given = batch.given
            news = self._all_new(given, hashes)
            if news is not None:
                hashes.update(news)
                new.records += given.records
                new.origins += [(b, position) for position in given.positions]
            for position, record in zip(given.positions, given.records, strict=True) if news is None else ():
                record_id = record.get("id") if type(record) is dict else None
                if isinstance(record_id, str):
                    said = hash(repr(record))
                    before = self._seen.get(record_id)
                    if before is None and record_id in hashes:  # twice in what came at once
                        if hashes[record_id] == said:
                            later.append((b, position, record_id))
                            continue
                        before = hashes[record_id]
                    if before == said:
                        found[b][position] = Outcome(record_id, "duplicate")
                        continue
                    if before is not None:  # other content, or the same in another form: the recorder knows
                        again.records.append(record)
                        again.origins.append((b, position))
                        continue
                    hashes[record_id] = said
                new.records.append(record)
                new.origins.append((b, position))
            for line in given.unread:
                kept = recorder.refuse(line.kept, [line.problem], f"{batch.source}:{line.position + 1}")
                status: Status = "refused" if kept else "erased"
                found[b][line.position] = Outcome(None, status, (line.problem,) if kept else ())
        if new.records:
            self._extend(recorder, new, batches, hashes, found)
        for b, position, record_id in later:
            first = next(one for outcomes in found for one in outcomes if one is not None and one.id == record_id)
            found[b][position] = (
                Outcome(record_id, "duplicate") if first.status == "stored" else Outcome(*_parts(first))
            )
        for (b, position), record in zip(again.origins, again.records, strict=True):
            found[b][position] = _added(recorder, record)
        return [[one for one in outcomes if one is not None] for outcomes in found]

    def _all_new(self, given: Given, before: Mapping[str, int]) -> dict[str, int] | None:
        """Ids and hashes of what a request gives, when each record has an id that nobody has used: most requests are so."""
        ids: list[Any] = [record.get("id") if type(record) is dict else None for record in given.records]
        if set(map(type, ids)) != {str}:
            return None
        found: dict[str, int] = dict(zip(ids, map(hash, map(repr, given.records)), strict=True))
        is_new = len(found) == len(ids) and all(found.keys().isdisjoint(one.keys()) for one in (self._seen, before))
        return found if is_new else None

    def _extend(
        self,
        recorder: Recorder,
        joined: _Joined,
        batches: Sequence[_Batch],
        hashes: Mapping[str, int],
        found: list[list[Outcome | None]],
    ) -> None:
        receipts = recorder.extend(joined.records, sources=_Sources(batches, joined.origins))
        refused = dict(receipts.refused)
        denied = denylist(self.corpus, look=False) if receipts.erased else None
        if not refused and denied is None:
            for (b, position), record in zip(joined.origins, joined.records, strict=True):
                found[b][position] = Outcome(record["id"], "stored")
            self._remember(hashes)
            return
        for n, ((b, position), record) in enumerate(zip(joined.origins, joined.records, strict=True)):
            if n in refused:
                found[b][position] = Outcome(_id_of(record), "refused", refused[n])
            elif denied is not None and (
                denied.denies_record(record.get("id"), record.get("subject")) or not self._fits(record)
            ):
                found[b][position] = Outcome(record["id"], "erased")
            else:
                found[b][position] = Outcome(record["id"], "stored")
        stored = {one.id for outcomes in found for one in outcomes if one is not None and one.status == "stored"}
        self._remember({one: said for one, said in hashes.items() if one in stored})

    def _remember(self, hashes: Mapping[str, int]) -> None:
        self._seen.update(hashes)
        for old in list(islice(self._seen, max(0, len(self._seen) - _REMEMBERED))):
            del self._seen[old]

    def _fits(self, record: Any) -> bool:
        """Whether it breaks no rule; one that does and wasn't refused names what was erased."""
        return not self.corpus.record_type.validate([record]).refused

    def _store_tables(self, recorder: Recorder, batches: list[_Batch]) -> list[list[Outcome]]:
        import pyarrow as pa

        table = pa.concat_tables([one.given.table for one in batches])
        origins = [(b, position) for b, batch in enumerate(batches) for position in range(batch.given.count)]
        receipts = recorder.extend(table, sources=_Sources(batches, origins))
        refused = dict(receipts.refused)
        ids = table.column("id").to_pylist()
        erased: set[int] = set()
        if receipts.erased:
            denied = denylist(self.corpus, look=False)
            has_subject = "subject" in table.column_names
            subjects = table.column("subject").to_pylist() if has_subject else [None] * len(ids)
            erased = {n for n, pair in enumerate(zip(ids, subjects, strict=True)) if denied.denies_record(*pair)}
        outcomes = iter(
            Outcome(one if isinstance(one, str) else None, "refused", refused[n])
            if n in refused
            else Outcome(one, "erased" if n in erased else "stored")
            for n, one in enumerate(ids)
        )
        return [list(islice(outcomes, one.given.count)) for one in batches]

    # --- conversations that come piece by piece --------------------------------------------------------------------

    def _hold(
        self, pieces: Sequence[Piece], misfits: Sequence[Unfit], ended: Sequence[str], recorder: Recorder
    ) -> None:
        for one in misfits:
            recorder.refuse(one.kept, one.problems, "telemetry")
            self.tally.refuse(one.problems[0])
        if not pieces:
            if held_path(self.corpus).exists():  # of an earlier server, while something may have been erased
                self._settle_denied(recorder, self._holding())
            return
        if self.corpus.record.redact:
            # Nothing of it may lie on the disk as it came: of calls, what came at once is all that is collapsed. An event
            # of a hook says nothing alone, so those wait in memory for the end of their turn.
            calls = [(one.value, 0) for one in pieces if one.format == "otlp"]
            if calls:
                self._import(recorder, "otlp", calls)
            pieces = [one for one in pieces if one.format != "otlp"]
            if not pieces:
                return
        held = self._holding()
        self.tally.duplicates += held.add(pieces)
        for conversation in ended:
            for kind in sorted({one.format for one in pieces if one.conversation == conversation}):
                self._settle_one(recorder, held, kind, conversation)

    def _holding(self) -> Held:
        if self._held is None:
            self._held = Held(held_path(self.corpus), in_memory=bool(self.corpus.record.redact))
        return self._held

    def _settle_due(self, *, last: bool = False) -> None:
        """Make records of the conversations that are complete. Raises only at last: else the next look tries again."""
        self._ticked = time.monotonic()
        failure: Exception | None = None
        try:
            held = self._holding()
            idle = 0.0 if last else self._limits.hold_s
            turn = 0.0 if last and held.in_memory else _TURN_S
            if time.monotonic() - self._looked > _LOOK_S:
                self._ready()  # something may have been erased meanwhile
            due = held.due({"otlp": idle, "hooks": turn}, self._limits.hold_bytes)
        except TreeringError as exc:
            due, failure = [], exc
        for kind, conversation in due:
            try:
                self._settle_one(self._ready(), held, kind, conversation)
            except Exception as exc:  # what holds this one up holds up no other
                failure = exc
        if failure is not None:
            defect = None if isinstance(failure, TreeringError) else failure
            logger.error("conversations of %s wait: %s", self.corpus.name, failure, exc_info=defect)  # on disk
            if last:
                raise failure

    def _settle_denied(self, recorder: Recorder, held: Held) -> None:
        """Settle what names somebody or something that was erased: the recorder drops it, and here nothing is left of it."""
        denied = denylist(self.corpus)
        for kind, conversation in held.conversations():
            _, kept = held.pieces(kind, conversation)
            try:
                is_named = any(denied.mentions(unpacked(text)) for text, _ in kept)
            except ValueError:
                is_named = True
            if is_named:
                self._settle_one(recorder, held, kind, conversation)

    def _settle_one(self, recorder: Recorder, held: Held, kind: str, conversation: str) -> None:
        numbers, kept = held.pieces(kind, conversation)
        try:
            values = [(unpacked(text), size) for text, size in kept]
        except Exception as exc:
            self._misread(recorder, kind, [text for text, _ in kept], exc)
        else:
            if conversation:
                self._import(recorder, kind, values)
            else:
                problem = Problem(
                    (), "bad-value", "expected a score of a call that is under way, got one of another call"
                )
                for value, _ in values:
                    recorder.refuse(value, [problem], kind)
                    self.tally.refuse(problem)
        held.forget(numbers)

    def _import(self, recorder: Recorder, kind: str, values: Sequence[tuple[Any, int]]) -> None:
        """Make records of pieces; what no importer is prepared for goes to quarantine, and holds up nothing else."""
        try:
            self._make_records(recorder, kind, values)
        except TreeringError:
            raise  # the store's: they wait, and are tried again
        except Exception as exc:
            self._misread(recorder, kind, [value for value, _ in values], exc)

    def _misread(self, recorder: Recorder, kind: str, values: Sequence[Any], exc: Exception) -> None:
        """Put into quarantine what can't be read."""
        logger.error("pieces of %s can't be read", self.corpus.name, exc_info=exc)
        problem = Problem((), "bad-value", f"expected a conversation, got {type(exc).__name__} while reading it")
        for value in values:
            recorder.refuse(value, [problem], kind)
            self.tally.refuse(problem)

    def _make_records(self, recorder: Recorder, kind: str, values: Sequence[tuple[Any, int]]) -> None:
        importer = _IMPORTERS[kind](self.corpus.record_type, None)
        found: list[Found] = []

        def take(outcomes: Iterable[Any]) -> None:
            for one in outcomes:
                if isinstance(one, Found):
                    found.append(one)
                elif isinstance(one, Unfit):
                    recorder.refuse(one.kept, one.problems, kind)
                    self.tally.refuse(one.problems[0])
                elif isinstance(one, Passed):
                    self.tally.passed[one.why] += 1

        for line, (value, size) in enumerate(values, 1):
            take(importer.feed(line, value, b" " * size))  # of its text an importer of these looks at the size alone
        take(importer.finish())
        given = Given(len(found), [one.record for one in found], list(range(len(found))))
        (outcomes,) = self._store(recorder, [_Batch(given, kind, Future())])
        self.tally.add(outcomes)
        said = [
            {"id": one.record["id"], **words}
            for one, outcome in zip(found, outcomes, strict=True)
            if outcome.status in ("stored", "duplicate")
            for words in one.annotations
        ]
        if said:
            try:
                self.corpus.annotate_many(said)
            except NotFoundError:  # one turned out to be erased, or another's: what is said of the others holds
                for words in said:
                    with contextlib.suppress(NotFoundError):
                        self.corpus.annotate_many([words])


class Writers:
    """The writers of a store's corpora, each made when it is first needed."""

    def __init__(self, store: Store, limits: Limits) -> None:
        self._store, self._limits = store, limits
        self._lock = threading.Lock()
        self._writers: dict[str, Writer] = {}
        self._closed = False

    def known(self, name: str) -> Writer | None:
        """The writer of a corpus, if there is one already, and it goes on."""
        found = self._writers.get(name)
        return found if found is not None and found.is_alive else None

    @property
    def failed(self) -> list[str]:
        """Corpora whose writer has ended though nobody closed it; the next request makes another one."""
        with self._lock:
            return [] if self._closed else [name for name, one in self._writers.items() if not one.is_alive]

    def of(self, name: str) -> Writer:
        """The writer of a corpus. Raises NotFoundError, UsageError, StoreError; asks the store, so not in an event loop."""
        with self._lock:
            if self._closed:
                raise StoreError("the server is stopping", code="stopping")
            if self.known(name) is None:
                self._writers[name] = Writer(self._store.corpus(name), self._limits)
            return self._writers[name]

    def all(self) -> list[Writer]:
        """Those that there are."""
        return list(self._writers.values())

    def resume(self) -> None:
        """Go on with what an earlier server held of conversations. Raises StoreError."""
        for corpus in self._store.corpora():
            if held_path(corpus).exists():
                self.of(corpus.name).hold([], []).add_done_callback(lambda _: None)

    def close(self) -> None:
        """Close all. Raises the first error, after all were closed."""
        with self._lock:
            self._closed = True
        failures = []
        for writer in self.all():
            try:
                writer.close()
            except Exception as exc:
                failures.append(exc)
        if failures:
            raise failures[0]


def _columns_of(batch: _Batch) -> pa.Schema:
    """What tables that are stored as one have in common."""
    assert batch.given.table is not None
    return batch.given.table.schema.remove_metadata()


def _future() -> Future[Any]:
    """A future that its waiter can't cancel: one who doesn't wait any longer must not stop what others wait for."""
    made: Future[Any] = Future()
    made.set_running_or_notify_cancel()
    return made


def _ended(name: str, exc: BaseException) -> StoreError:
    made = StoreError(
        f"the writer of {name} has ended: {type(exc).__name__}", code="writer-ended", hint="the server's log says more"
    )
    made.__cause__ = exc
    return made


def _settle(future: Future[Done], work: Callable[[], Done]) -> None:
    try:
        future.set_result(work())
    except Exception as exc:
        future.set_exception(exc)


def _added(recorder: Recorder, record: Any) -> Outcome:
    """Add one record whose id came before: the recorder compares it with what is stored."""
    try:
        receipt = recorder.add(record)
    except InvalidRecordError as exc:
        return Outcome(_id_of(record), "refused", exc.problems)
    return Outcome(receipt.id or _id_of(record), receipt.status)


def _id_of(record: Any) -> str | None:
    found = record.get("id") if isinstance(record, dict) else None
    return found if isinstance(found, str) else None


def _parts(outcome: Outcome) -> tuple[str | None, Status, tuple[Problem, ...]]:
    return outcome.id, outcome.status, outcome.problems
