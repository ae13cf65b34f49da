"""Hand out batches of a mix as torch tensors, exactly resumable.

A loader holds a position (batches handed out) and nothing else that matters: what batch t is, the plan decides, so a
state is one number with the lock it belongs to. Batches are made in a thread beside the training step, or in worker
processes. This is the only module of the layer that imports torch.
"""

from __future__ import annotations

import itertools
import math
import multiprocessing
import os
import pickle
import queue
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any, Protocol

import numpy as np
import torch
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from treering.errors import ConflictError, NotFoundError, TreeringError, UsageError
from treering.mixing.cache import Job, LoaderCache
from treering.mixing.columns import Columns, Kind, kind_of
from treering.mixing.lock import MixLock
from treering.mixing.permute import Int64Array
from treering.mixing.plan import MixPlan
from treering.mixing.reader import REF, SPAN, BatchReader, Share
from treering.mixing.sources import SourceLike, TrainRows

__all__ = ["Loader", "Transform"]

Transform = Callable[[dict[str, Any]], Any]

PREFETCH = 8  # batches made ahead when nothing is said: a few tens of milliseconds of a training step's reserve
_STATE = 1  # version of the state's form
_LAST_BATCH = 2**45  # positions beyond it could overflow 64 bits at the largest batch
_Made = tuple[Any, Int64Array]  # a batch as delivered, and how many rows each source gave to it


class Loader:
    """An iterable of batches, made by `Mix.loader` or `MixLock.loader`.

    Each `iter()` starts at batch 0, or once at the state loaded; a new one ends the one before. A context manager:
    `close()` ends threads and worker processes.
    """

    def __init__(
        self,
        lock: MixLock,
        sources: Sequence[SourceLike],
        rows: Sequence[TrainRows],
        *,
        transform: Transform | None = None,
        num_workers: int = 0,
        rank: int | None = None,
        world_size: int | None = None,
        prefetch: int | None = None,
        start_method: str = "forkserver",
        cache: bool = True,
    ) -> None:
        for number, (locked, found) in enumerate(zip(lock.sources, rows, strict=True)):
            grown = [event.train_rows for event in lock.events if event.kind == "growth" and event.source == number]
            expected = grown[-1] if grown else locked.train_rows
            if expected != found.size:
                raise ConflictError(
                    f"{locked.pin.ref} has {found.size:,} training rows, the lock says {expected:,}",
                    code="content-changed",
                    hint="the records aren't those that were locked: make a new mix and lock that",
                )
        self._lock = lock
        self._sources = tuple(sources)
        self._rows = tuple(rows)
        if transform is not None and not callable(transform):
            raise UsageError(f"transform is {transform!r}; it is called with each batch", code="bad-transform")
        self._transform = transform
        self._workers = _whole("num_workers", num_workers)
        self._prefetch = None if prefetch is None else _whole("prefetch", prefetch)
        if start_method not in ("forkserver", "spawn"):
            raise UsageError(
                f"start_method={start_method!r}: a process forked after Lance was used hangs (it did in 11 of 20 trials)",
                code="fork",
                hint='use "forkserver" or "spawn", or num_workers=0',
            )
        self._start_method = start_method
        self.rank, self.world_size = _rank(rank, world_size)
        if lock.batch_size % self.world_size:
            raise UsageError(
                f"a batch of {lock.batch_size} rows can't be divided among {self.world_size} ranks",
                code="indivisible-batch",
                hint="choose a batch_size that is a multiple of world_size",
            )
        self._plan: MixPlan = lock.plan()
        self._kinds = _kinds(lock, sources)
        self._lock = lock.model_copy(update={"columns": tuple(self.columns)})
        self._total = None if lock.epochs is None else self._plan.batches_in(lock.epochs)
        self._handed = 0
        self._resume: int | None = None
        self._running: weakref.ref[_Iteration] | None = None  # weak: whoever iterates keeps it, and dropping it ends it
        self._at_work: _Maker = _Nothing()
        self._closed = False
        if not isinstance(cache, bool):
            raise UsageError(f"cache is {cache!r}; it is True or False", code="bad-cache")
        self._cache = LoaderCache() if cache else None
        if self._cache is not None:
            weakref.finalize(self, self._cache.let_go)
        self._served = np.zeros(len(rows), dtype=np.int64)
        self._wait_s = 0.0
        self._run_s = 0.0

    @property
    def refs(self) -> list[str]:
        """The refs of the sources; `batch["_ref"]` holds indices into this list."""
        return self._lock.refs

    @property
    def columns(self) -> list[str]:
        """The record columns that are delivered."""
        return [kind.name for kind in self._kinds]

    @property
    def batch_size(self) -> int:
        """Rows of a global batch."""
        return self._lock.batch_size

    @property
    def local_batch_size(self) -> int:
        """Rows of the batches this loader hands out: its rank's part of the global batch."""
        return self.batch_size // self.world_size

    def lock(self) -> MixLock:
        """The lock of exactly this run."""
        return self._lock

    def endless(self) -> Loader:
        """The same loader without an end, at batch 0: batch t stays batch t, for those who count epochs themselves."""
        return Loader(
            self._lock.model_copy(update={"epochs": None}),
            self._sources,
            self._rows,
            transform=self._transform,
            num_workers=self._workers,
            rank=self.rank,
            world_size=self.world_size,
            prefetch=self._prefetch,
            start_method=self._start_method,
            cache=self._cache is not None,
        )

    def __len__(self) -> int:
        """Batches from the first to the last. Raises TypeError when endless."""
        if self._total is None:
            raise TypeError("an endless loader (epochs=None) has no length")
        return self._total

    def __iter__(self) -> Iterator[Any]:
        if self._closed:
            raise UsageError("the loader is closed", code="closed", hint="make a new one")
        if get_worker_info() is not None:
            raise UsageError(
                "a loader can't be iterated in another DataLoader's worker: each worker would deliver every batch",
                code="nested-workers",
                hint="iterate the loader itself; it takes num_workers",
            )
        self._stop()
        start, self._resume = self._resume or 0, None
        self._handed = start
        self._start_cache(start)
        self._at_work = self._maker(start)
        running = _Iteration(self, self._at_work)
        self._running = weakref.ref(running)
        return running

    def state_dict(self) -> dict[str, Any]:
        """Where the loader stands, JSON-ready: batches handed out (not prefetched), and the lock they belong to."""
        lock = self._lock
        return {
            "version": _STATE,
            "batch": self._handed if self._resume is None else self._resume,
            "lock": lock.digest,
            "seed": lock.seed,
            "batch_size": lock.batch_size,
            "chunk_rows": lock.chunk_rows,
            "units": list(lock.units),
            "sources": _contents(lock),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Let the next `iter()` start where the state was saved, whatever the workers, ranks and columns were.

        Raises ConflictError, naming the difference, when it is the state of another lock, content, batch size or
        seed, and UsageError when it isn't a loader's state.
        """
        mine = self.state_dict()
        batch = state.get("batch") if isinstance(state, Mapping) else None
        if (
            not isinstance(batch, int)
            or isinstance(batch, bool)
            or not 0 <= batch <= _LAST_BATCH
            or state.get("version") != _STATE
        ):
            raise UsageError("this isn't the state of a treering loader", code="bad-state")
        if state.get("lock") != mine["lock"]:
            names = ("sources", "units", "seed", "batch_size", "chunk_rows")
            different = [f"{name}: {state.get(name)} there, {mine[name]} here" for name in names
                         if state.get(name) != mine[name]]  # fmt: skip
            raise ConflictError(
                "the state belongs to another lock: "
                + ("; ".join(different) or f"{str(state.get('lock'))[:12]}… there, {mine['lock'][:12]}… here"),
                code="state-mismatch",
                hint="make the loader from the lock that the run was started with",
            )
        self._stop()
        self._resume = batch

    def stats(self) -> dict[str, Any]:
        """JSON-ready figures.

        `batches` handed out since batch 0; `rows` delivered here and `rows_per_s`, `wait_s` (time the caller was kept
        waiting) since this loader was made; of the snapshot cache (null when off) the `columns` in use, those `built` in
        this run, the damaged files `dropped`, and why something wasn't built (`skipped`); per source its ref, share, training rows, draws `planned` up to the
        position over all ranks (and `planned_total` to the end), rows `served` by this loader, and `epochs`: passes so
        far, above 1 where rows are repeated.
        """
        at = self._handed if self._resume is None else self._resume
        planned = self._plan.taken_before(at)
        total = None if self._total is None else self._plan.taken_before(self._total)
        rows = int(self._served.sum())
        return {
            "batches": at,
            "batches_total": self._total,
            "rows": rows,
            "rows_per_s": rows / self._run_s if self._run_s else 0.0,
            "wait_s": self._wait_s,
            "wait_share": self._wait_s / self._run_s if self._run_s else 0.0,
            "cache": None if self._cache is None else self._cache.stats(),
            "sources": [
                {
                    "ref": ref,
                    "share": self._lock.shares[n],
                    "train_rows": self._rows[n].size,
                    "planned": planned[n],
                    "planned_total": None if total is None else total[n],
                    "served": int(self._served[n]),
                    "epochs": planned[n] / self._rows[n].size if self._rows[n].size else 0.0,
                }
                for n, ref in enumerate(self.refs)
            ],
        }

    def close(self) -> None:
        """End threads and worker processes. Calling it again does nothing; iterating afterwards is refused."""
        self._closed = True
        self._stop()
        if self._cache is not None:
            self._cache.close()

    def __enter__(self) -> Loader:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def _stop(self) -> None:
        running = self._running() if self._running is not None else None
        self._running = None
        if running is not None:
            running.cut_short()
        # A run that was dropped has told its threads to end; this waits for them.
        self._at_work.close()

    def _start_cache(self, start: int) -> None:
        """Use what is cached of the snapshots, and build what this run will gain by, beside it."""
        if self._cache is None:
            return
        now = self._plan.taken_before(start)
        end = None if self._total is None else self._plan.taken_before(max(start, self._total))
        jobs = []
        for number, rows in enumerate(self._rows):
            draws = None if end is None else end[number] - now[number]
            if not self._lock.units[number] or draws == 0:
                continue
            held = np.bincount(rows.segment, np.diff(rows.start), len(rows.segments))
            jobs += [
                Job(segment, None if draws is None else int(draws * held[place] / rows.size))
                for place, segment in enumerate(rows.segments)
                if held[place]
            ]
        # One process of a host builds; the others take up what it has built at their next window.
        self._cache.start(jobs, self.columns, build=int(os.environ.get("LOCAL_RANK", self.rank)) == 0)

    def _maker(self, start: int) -> _Maker:
        share = Share(self.rank, self.world_size, 0, max(1, self._workers), start, self._total)
        recipe = _Recipe(self._plan, self._rows, self._kinds, share, self._transform, self._cache)
        if self._total is not None and start >= self._total:
            return _Nothing()
        if self._workers:
            return _Processes(recipe, self._workers, self._prefetch or PREFETCH, self._start_method)
        if self._prefetch is None and self._transform is None:
            # Gathering a batch from rows in memory costs less than handing it from thread to thread: 0.1 ms against a
            # fight over the interpreter's lock. Rows are still read ahead in the background.
            return _Inline(recipe, read_ahead=True)
        prefetch = PREFETCH if self._prefetch is None else self._prefetch
        return _Thread(recipe, prefetch) if prefetch else _Inline(recipe, read_ahead=False)


class _Iteration(Iterator[Any]):
    """One run over a loader; the newest is the one that moves the loader's position."""

    def __init__(self, loader: Loader, maker: _Maker) -> None:
        self._loader = loader
        self._maker = maker
        self._left: float | None = None  # when the caller got the last batch
        self._done = False
        self._cut_short = False

    def __next__(self) -> Any:
        if self._cut_short:
            raise UsageError(
                "this run over the loader was ended early: the loader was iterated again, closed, or given another state",
                code="run-ended",
                hint="one run at a time; make a second loader for a second run",
            )
        loader = self._loader
        asked = time.perf_counter()
        try:
            if loader._cache is not None:
                loader._cache.check()
            batch, counts = self._maker.make()
        except BaseException:
            self._done = True
            self.close()
            raise
        now = time.perf_counter()
        if loader._running is not None and loader._running() is self:
            loader._handed += 1
            loader._served += counts
            loader._wait_s += now - asked
            loader._run_s += now - (self._left if self._left is not None else asked)
            self._left = now
        return batch

    def close(self) -> None:
        maker, self._maker = self._maker, _Nothing()
        maker.close()

    def cut_short(self) -> None:
        """End it from outside. Asked again it says so: a plain end would read as the end of the epoch."""
        self._cut_short = not self._done
        self.close()

    def __del__(self) -> None:
        # Not `close`: a collection may run in the very thread that closing would wait for.
        self._maker.let_go()


class _Recipe:
    """What it takes to make the batches of one run; goes to worker processes, so all of it pickles."""

    def __init__(
        self,
        plan: MixPlan,
        rows: tuple[TrainRows, ...],
        kinds: Sequence[Kind],
        share: Share,
        transform: Transform | None,
        cache: LoaderCache | None,
    ) -> None:
        self.plan = plan
        self.rows = rows
        self.kinds = kinds
        self.share = share
        self.transform = transform
        self.cache = cache

    def reader(self, worker: int = 0, *, read_ahead: bool = True) -> BatchReader:
        s = self.share
        share = Share(s.rank, s.world_size, worker, s.workers, s.start, s.stop)
        return BatchReader(self.plan, self.rows, self.kinds, share, read_ahead=read_ahead, cache=self.cache)

    def batches(self) -> Iterable[int]:
        return (
            itertools.count(self.share.start) if self.share.stop is None else range(self.share.start, self.share.stop)
        )

    def make(self, reader: BatchReader, batch: int) -> _Made:
        columns, counts = reader.read(batch)
        made = _tensors(columns)
        if self.transform is None:
            return made, counts
        try:
            return self.transform(made), counts
        except StopIteration as exc:  # would read as the end of the epoch (as in PEP 479)
            raise RuntimeError("the transform raised StopIteration") from exc


def _tensors(columns: Columns) -> dict[str, Any]:
    return {k: torch.from_numpy(v) if isinstance(v, np.ndarray) else v for k, v in columns.items()}


class _Maker(Protocol):
    """Makes the batches of one run, in order."""

    def make(self) -> _Made:
        """The next batch; StopIteration after the last."""

    def close(self) -> None:
        """End whatever runs, and wait for it."""

    def let_go(self) -> None:
        """Tell whatever runs to end; from any thread, without waiting."""


class _Nothing:
    def make(self) -> _Made:
        raise StopIteration

    def close(self) -> None: ...

    def let_go(self) -> None: ...


class _Inline:
    """In the calling thread, one by one."""

    def __init__(self, recipe: _Recipe, *, read_ahead: bool) -> None:
        self._recipe = recipe
        self._reader = recipe.reader(read_ahead=read_ahead)
        self._batches = iter(recipe.batches())

    def make(self) -> _Made:
        return self._recipe.make(self._reader, next(self._batches))

    def close(self) -> None:
        self._reader.close()

    def let_go(self) -> None:
        self._reader.close(wait=False)


class _Thread:
    """In a thread, up to `prefetch` batches ahead."""

    def __init__(self, recipe: _Recipe, prefetch: int) -> None:
        self._ready: queue.SimpleQueue[_Made | BaseException] = queue.SimpleQueue()
        self._room = threading.Semaphore(prefetch)
        self._stop = threading.Event()
        # The thread gets no reference to this object: what isn't referenced any more can then be collected, and ends it.
        arguments = (recipe, self._ready, self._room, self._stop)
        self._thread = threading.Thread(target=_produce, args=arguments, name="treering-batches", daemon=True)
        self._thread.start()

    def make(self) -> _Made:
        made = self._ready.get()
        if isinstance(made, BaseException):
            self._ready.put(made)  # asked again, the same answer
            raise made
        self._room.release()
        return made

    def let_go(self) -> None:
        self._stop.set()
        self._room.release()

    def close(self) -> None:
        self.let_go()
        self._thread.join()


def _produce(
    recipe: _Recipe,
    ready: queue.SimpleQueue[_Made | BaseException],
    room: threading.Semaphore,
    stop: threading.Event,
) -> None:
    try:
        with recipe.reader() as reader:
            for batch in recipe.batches():
                room.acquire()
                if stop.is_set():
                    return
                ready.put(recipe.make(reader, batch))
        ready.put(StopIteration())
    except BaseException as exc:  # handed to the thread that iterates, whatever it is
        ready.put(exc)


class _Failure:
    """An error of ours on its way out of a worker: torch would rebuild it from its text and lose code and hint."""

    def __init__(self, error: TreeringError) -> None:
        self.error = error


class _Spans(IterableDataset[Any]):
    """The spans of batches that one worker process makes."""

    def __init__(self, recipe: _Recipe) -> None:
        self._recipe = recipe

    def __iter__(self) -> Iterator[list[_Made] | _Failure]:
        info = get_worker_info()
        worker = info.id if info is not None else 0
        share = self._recipe.share
        try:
            with self._recipe.reader(worker) as reader:
                for first in itertools.count(share.start + worker * SPAN, SPAN * share.workers):
                    last = first + SPAN if share.stop is None else min(first + SPAN, share.stop)
                    if first >= last:
                        return
                    yield [self._recipe.make(reader, batch) for batch in range(first, last)]
        except TreeringError as exc:
            yield _Failure(exc)


def _as_is(item: Any) -> Any:
    return item


class _Processes:
    """In worker processes, a span of batches at a time, taken from the workers in turn."""

    def __init__(self, recipe: _Recipe, workers: int, prefetch: int, start_method: str) -> None:
        try:
            pickle.dumps(recipe.transform)
        except (pickle.PicklingError, AttributeError, TypeError) as exc:
            raise UsageError(
                f"the transform can't be sent to a worker process: {exc}",
                code="transform-not-picklable",
                hint="define it at the top of a module, or use num_workers=0",
            ) from exc
        context = multiprocessing.get_context(start_method)
        if start_method == "forkserver":
            # Without "__main__", which is there by default: the user's script may have used Lance when it is imported,
            # and what the server has used, its forked children hang on.
            context.set_forkserver_preload(["treering.mixing.loader"])
        spans: DataLoader[Any] = DataLoader(
            _Spans(recipe),
            batch_size=None,
            num_workers=workers,
            multiprocessing_context=context,
            prefetch_factor=max(1, math.ceil(prefetch / (SPAN * workers))),
            collate_fn=_as_is,
        )
        self._spans: Any = iter(spans)
        self._span: Iterator[_Made] = iter(())

    def make(self) -> _Made:
        for made in self._span:
            return made
        try:
            item = next(self._spans)
        except RuntimeError as exc:
            if "DataLoader worker" not in str(exc):
                raise
            raise TreeringError(
                f"a worker process died: {exc}",
                code="worker-died",
                hint='is the script\'s work under `if __name__ == "__main__":`? Else try num_workers=0',
            ) from exc
        if isinstance(item, _Failure):
            raise item.error
        self._span = iter(item)
        return next(self._span)

    def close(self) -> None:
        self.let_go()

    def let_go(self) -> None:
        spans, self._spans = self._spans, iter(())
        if hasattr(spans, "_shutdown_workers"):  # what torch itself calls when the iterator is collected
            spans._shutdown_workers()
        self._span = iter(())


def _whole(name: str, value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise UsageError(f"{name} is {value!r}; it is a whole number ≥ 0", code="bad-" + name.replace("_", "-"))
    return value


def _rank(rank: int | None, world_size: int | None) -> tuple[int, int]:
    """(rank, world size): as given, else as torchrun sets them, else (0, 1)."""
    if rank is None and world_size is None:
        try:
            rank, world_size = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
        except ValueError as exc:
            raise UsageError(f"RANK and WORLD_SIZE in the environment aren't numbers: {exc}", code="bad-rank") from exc
    if rank is None or world_size is None:
        raise UsageError("rank and world_size are given together, or neither", code="bad-rank")
    _whole("rank", rank)
    if _whole("world_size", world_size) < 1 or rank >= world_size:
        raise UsageError(f"rank {rank} of world_size {world_size}: ranks are 0 … world_size - 1", code="bad-rank")
    return rank, world_size


def _kinds(lock: MixLock, sources: Sequence[SourceLike]) -> list[Kind]:
    """The columns to deliver, one type each over all sources that are drawn from."""
    drawn = [source for source, units in zip(sources, lock.units, strict=True) if units or lock.events]
    shared = [name for name in drawn[0].schema.names if all(name in source.schema.names for source in drawn)]
    names = shared if lock.columns is None else list(dict.fromkeys(lock.columns))
    kinds = []
    for name in names:
        for source in drawn:
            if name == REF:
                raise UsageError(f"{REF!r} is the loader's own: leave it out of columns", code="reserved-column")
            if name not in source.schema.names:
                raise NotFoundError(
                    f"{source.ref} has no column {name!r}",
                    code="no-column",
                    hint="it has " + ", ".join(source.schema.names),
                )
        types = {source.ref: source.schema.field(name).type for source in drawn}
        if len(set(types.values())) > 1:
            listed = ", ".join(f"{kind} in {ref}" for ref, kind in types.items())
            raise UsageError(f"column {name!r} has several types: {listed}", code="column-types")
        kinds.append(kind_of(name, next(iter(types.values())), ragged=lock.ragged, pad_value=lock.pad_value))
    return kinds


def _contents(lock: MixLock) -> list[list[str]]:
    """(ref, short content digest) of each source: enough to tell which one differs."""
    return [[source.pin.ref, source.content[:12]] for source in lock.sources]
