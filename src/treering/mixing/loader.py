"""Hand out batches of a mix as torch tensors, exactly resumable.

A loader holds a position (batches handed out) and nothing else that matters: what batch t is, the plan decides, so a
state is one number with the lock it belongs to. Batches are made in a thread beside the training step, or in worker
processes. This is the only module of the layer that imports torch.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import multiprocessing
import os
import pickle
import queue
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any, Protocol, TypeGuard

import numpy as np
import pyarrow.compute as pc
import torch
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from treering.errors import ConflictError, TreeringError, UsageError
from treering.mixing.cache import Job, LoaderCache
from treering.mixing.columns import Columns, Kind, drop_rows, kind_of, token_count
from treering.mixing.delivered import delivered_types
from treering.mixing.events import Agree, Course, Stretch, asked_for, compact, expand, same_course
from treering.mixing.helpers import end_helpers, note_helpers
from treering.mixing.lock import MixLock
from treering.mixing.permute import Int64Array
from treering.mixing.plan import MixPlan
from treering.mixing.reader import REF, SPAN, BatchReader, Share
from treering.mixing.sources import SourceLike, TrainRows

__all__ = ["Loader", "Transform"]

Transform = Callable[[dict[str, Any]], Any]

PREFETCH = 8  # batches made ahead when nothing is said: a few tens of milliseconds of a training step's reserve
_STATE = 1  # version of the state's form
_ROOM = 600  # bytes of a state for what merely helps to name a difference: a state is 1 KB and 64 B an event at most
_LAST_BATCH = 2**45  # positions beyond it could overflow 64 bits at the largest batch
_Made = tuple[Any, Int64Array, int]  # a batch as delivered, how many rows each source gave to it, and its tokens


class Loader:
    """An iterable of batches, made by `Mix.loader` or `MixLock.loader`.

    Each `iter()` starts at batch 0, or once at the state loaded; a new one ends the one before. A context manager:
    `close()` ends threads and worker processes.
    """

    def __init__(
        self,
        lock: MixLock,
        sources: Sequence[SourceLike],
        rows: Sequence[TrainRows] | None = None,
        *,
        transform: Transform | None = None,
        num_workers: int = 0,
        rank: int | None = None,
        world_size: int | None = None,
        prefetch: int | None = None,
        start_method: str = "forkserver",
        follow: bool = False,
        adaptive: bool = False,
        cache: bool = True,
    ) -> None:
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
        for name, value in (("follow", follow), ("adaptive", adaptive)):
            if not isinstance(value, bool):
                raise UsageError(f"{name} is {value!r}; it is True or False", code=f"bad-{name}")
        self.rank, self.world_size = _rank(rank, world_size)
        self._ranks_given = rank is not None
        self._endless: Loader | None = None
        if lock.batch_size % self.world_size:
            raise UsageError(
                f"a batch of {lock.batch_size} rows can't be divided among {self.world_size} ranks",
                code="indivisible-batch",
                hint="choose a batch_size that is a multiple of world_size",
            )
        self._kinds = _kinds(lock, sources, adaptive=adaptive)
        lock = lock.model_copy(update={"columns": tuple(self.columns)})
        self._course = Course(lock, sources, rows, follow=follow, adaptive=adaptive)
        self._follow = follow
        self._lead = 0
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
        self._spans: dict[int, tuple[int, float | None, float | None]] = {}
        self._served = np.zeros(len(lock.sources), dtype=np.int64)
        self._tokens = 0
        self._wait_s = 0.0
        self._run_s = 0.0

    @property
    def _lock(self) -> MixLock:
        return self._course.lock

    @property
    def _plan(self) -> MixPlan:
        return self._course.plan

    @property
    def _total(self) -> int | None:
        return self._course.total

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
        """The lock of exactly this run, with the events that are settled so far."""
        return self._lock

    def reweigh(self, weights: Sequence[float]) -> None:
        """Mix at other weights (one per source) from the next checkpoint on, at most 64 batches after those in flight.

        An event in the lock. Needs `adaptive=True` (or `follow`, or a schedule, which then sets the weights at its next
        checkpoint). Among ranks, what rank 0 asks for counts. Raises UsageError for weights that don't fit.
        """
        self._check_adaptive()
        self._course.want(weights)
        if self._endless is not None:
            self._endless.reweigh(weights)

    def set_replay(self, share: float) -> None:
        """Let what isn't live or new make up this share of each batch, from the next checkpoint on; see `reweigh`.

        With a `ReplayController`: `loader.set_replay(controller.update(past_scores, new_score))`.
        """
        self._check_adaptive()
        self._course.want_replay(share)
        if self._endless is not None:
            self._endless.set_replay(share)

    def _check_adaptive(self) -> None:
        if not self._course.adaptive:
            raise UsageError(
                "the weights of this loader are fixed",
                code="not-adaptive",
                hint="make it with adaptive=True: then what changes is settled every 64 batches, with all ranks",
            )

    def endless(self) -> Loader:
        """The same loader without an end, at batch 0: batch t stays batch t, for those who count epochs themselves.

        It is the one that runs, in a trainer: asked for other weights, this loader passes the word on.
        """
        lock = self._lock
        endless = Loader(
            lock if lock.once else lock.model_copy(update={"epochs": None}),
            self._course.sources,
            transform=self._transform,
            num_workers=self._workers,
            rank=self.rank,
            world_size=self.world_size,
            prefetch=self._prefetch,
            start_method=self._start_method,
            follow=self._follow,
            adaptive=self._course.adaptive,
            cache=self._cache is not None,
        )
        endless._ranks_given = self._ranks_given
        self._endless = endless
        return endless

    def __len__(self) -> int:
        """Batches from the first to the last, as settled by now: a run grows with a source that it follows.

        Raises TypeError when endless.
        """
        if self._total is None:
            raise TypeError(
                "an endless loader (epochs=None) has no length: iterate it, and stop after a number of batches"
            )
        return self._total

    def __getitem__(self, number: object) -> Any:
        """Refused: whoever picks rows out of a dataset by number would shuffle, batch and shard a second time.

        A torch `DataLoader` and the Trainers that make one end here, instead of training on some of the rows.
        """
        raise UsageError(
            "a treering loader gives batches in their order, and is no dataset to pick rows from",
            code="not-a-dataset",
            hint="iterate it as it is, without a DataLoader around it; for trainers: treering.plugins.hf.TreeringTrainer"
            "(loader=…), .trl.TreeringSFTTrainer(loader=…), .lightning.TreeringDataModule, .torchdata.TreeringDataLoader; as eval_dataset, rows of their own: "
            "store.load(ref).heldout().to_table()",
        )

    def __iter__(self) -> Iterator[Any]:
        if self._closed:
            raise UsageError("the loader is closed", code="closed", hint="make a new one")
        if get_worker_info() is not None:
            raise UsageError(
                "a loader can't be iterated in another DataLoader's worker: each worker would deliver every batch",
                code="nested-workers",
                hint="iterate the loader itself; it takes num_workers",
            )
        connected = None if self._ranks_given else _connected()
        if connected is not None and connected != (self.rank, self.world_size):
            raise UsageError(
                f"the loader was made for rank {self.rank} of {self.world_size}, and this process is rank "
                f"{connected[0]} of {connected[1]} by now: rows would come twice, or never",
                code="other-rank",
                hint="make the loader after init_process_group, or give rank= and world_size=",
            )
        self._stop()
        start, self._resume = self._resume or 0, None
        self._handed = start
        agree = _agreement(self.world_size) if self._course.adaptive and self.world_size > 1 else None
        self._start_cache(start)
        self._at_work = self._maker(start)
        running = _Iteration(self, self._at_work, agree)
        self._running = weakref.ref(running)
        return running

    def _settle(self, batch: int, agree: Agree | None) -> bool:
        """Settle what changes up to this batch and as far ahead as batches are made; whether anything was settled."""
        course = self._course
        return course.adaptive and course.settle(batch + self._lead, agree, leads=self.rank == 0)

    def state_dict(self) -> dict[str, Any]:
        """Where the loader stands, JSON-ready: batches handed out (not prefetched), the lock they belong to, its events.

        At most 1 KB, and 64 B for each event of a mix of up to eight sources.
        """
        lock = self._lock
        return {
            "version": _STATE,
            "batch": self._handed if self._resume is None else self._resume,
            "lock": lock.recipe_digest,
            "seed": lock.seed,
            "batch_size": lock.batch_size,
            "chunk_rows": lock.chunk_rows,
            **_contents(lock),
            "events": compact(lock.events),
            "decided": lock.decided,
            **({} if self._course.wanted is None else {"wanted": list(self._course.wanted)}),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Let the next `iter()` start where the state was saved, whatever the workers, ranks and columns were.

        Raises ConflictError, naming the difference, when it is the state of another lock, content, batch size or
        seed, and UsageError when it isn't a loader's state.
        """
        mine = self.state_dict()
        if not isinstance(state, Mapping) or state.get("version") != _STATE:
            raise UsageError("this isn't the state of a treering loader", code="bad-state")
        batch, decided = state.get("batch"), state.get("decided")
        if not _is_batch(batch) or not _is_batch(decided):
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
        lock = same_course(self._lock, expand(state.get("events"), self._lock), decided)
        wanted = asked_for(state.get("wanted"), self._lock)
        self._stop()
        self._course.adopt(lock)
        self._course.wanted = wanted
        self._resume = batch

    def stats(self) -> dict[str, Any]:
        """JSON-ready figures.

        `batches` handed out since batch 0; `rows` and `tokens` delivered here, `rows_per_s`, `tokens_per_s` and `wait_s`
        (time the caller was kept waiting) since this loader was made; a token is an element of a delivered column of
        lists of integers. `events` so far. Per source its ref, share, training rows, draws `planned` up to the position
        over all ranks (and `planned_total` to the end), rows `served` by this loader, `epochs` (passes so far), how many
        of its planned draws are `repeats`, beyond one pass, how many of its training rows were `erased` since it was locked
        and are left out of the batches, and how many seconds ago its oldest and newest records were
        made (`oldest_s`, `newest_s`; None without the column `ts`, which the first call reads).
        Of the snapshot cache (None when off) the `columns` in use, those `built` in this run, the damaged files `dropped`,
        and why something wasn't built (`skipped`).
        """
        course = self._course
        at = self._handed if self._resume is None else self._resume
        planned = course.plan.taken_before(at)
        total = None if course.total is None else course.plan.taken_before(course.total)
        units = next((c.units for c in reversed(course.plan.changes) if c.batch <= at), course.lock.units)
        rows = int(self._served.sum())
        sources = []
        for n, ref in enumerate(self.refs):
            plan = course.plan.sources[n]
            drawn = planned[n]
            passes = plan.epoch_of(drawn) if plan.size else 0
            begun = plan.draws_in(passes) if passes else 0
            size = plan.draws_in(passes + 1) - begun if plan.size else 1
            oldest, newest = self._ages(n)
            sources.append(
                {
                    "ref": ref,
                    "share": units[n] / sum(units),
                    "train_rows": course.rows[n].size,
                    "planned": drawn,
                    "planned_total": None if total is None else total[n],
                    "served": int(self._served[n]),
                    "epochs": passes + (drawn - begun) / size,
                    "repeats": max(0, drawn - course.rows[n].size),
                    "erased": sum(len(getattr(segment, "erased", ())) for segment in course.rows[n].segments),
                    "oldest_s": oldest,
                    "newest_s": newest,
                }
            )
        return {
            "batches": at,
            "batches_total": course.total,
            "rows": rows,
            "rows_per_s": rows / self._run_s if self._run_s else 0.0,
            "tokens": self._tokens,
            "tokens_per_s": self._tokens / self._run_s if self._run_s else 0.0,
            "wait_s": self._wait_s,
            "wait_share": self._wait_s / self._run_s if self._run_s else 0.0,
            "cache": None if self._cache is None else self._cache.stats(),
            "events": len(course.lock.events),
            "sources": sources,
        }

    def close(self) -> None:
        """End threads and worker processes. Calling it again does nothing; iterating afterwards is refused."""
        self._closed = True
        self._stop()
        if self._workers:
            end_helpers()
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
        self._at_work = _Nothing()

    def _start_cache(self, start: int) -> None:
        """Use what is cached of the snapshots, and build what this run will gain by, beside it."""
        if self._cache is None:
            return
        now = self._plan.taken_before(start)
        end = None if self._total is None else self._plan.taken_before(max(start, self._total))
        jobs = []
        for number, rows in enumerate(self._course.rows):
            draws = None if end is None else end[number] - now[number]
            if draws == 0 or not rows.size or not (self._lock.units[number] or self._course.adaptive):
                continue
            held = np.bincount(rows.segment, np.diff(rows.start), len(rows.segments))
            jobs += [
                Job(segment, None if draws is None else int(draws * held[place] / rows.size))
                for place, segment in enumerate(rows.segments)
                if held[place]
            ]
        # One process of a host builds; the others take up what it has built at their next window.
        self._cache.start(jobs, self.columns, build=int(os.environ.get("LOCAL_RANK", self.rank)) == 0)

    def _ages(self, number: int) -> tuple[float | None, float | None]:
        rows = self._course.rows[number]
        if self._spans.get(number, (-1,))[0] != rows.size:
            self._spans[number] = (rows.size, *_time_span(self._course.source(number)))
        _, oldest, newest = self._spans[number]
        now = time.time()
        return None if oldest is None else now - oldest, None if newest is None else now - newest

    def _maker(self, start: int) -> _Maker:
        stretch = self._course.stretch
        share = Share(self.rank, self.world_size, 0, max(1, self._workers), start, stretch.stop)
        recipe = _Recipe(stretch, self._kinds, share, self._transform, self._cache)
        prefetch = PREFETCH if self._prefetch is None else self._prefetch
        self._lead = 0
        if self._total is not None and start >= self._total:
            return _Nothing()
        if self._workers:
            self._lead = SPAN * self._workers + max(prefetch, SPAN * self._workers)
            return _Processes(recipe, self._workers, prefetch, self._start_method, learns=self._course.adaptive)
        if self._prefetch is None and self._transform is None:
            # Gathering a batch from rows in memory costs less than handing it from thread to thread: 0.1 ms against a
            # fight over the interpreter's lock. Rows are still read ahead in the background.
            return _Inline(recipe, read_ahead=True)
        self._lead = prefetch
        return _Thread(recipe, prefetch) if prefetch else _Inline(recipe, read_ahead=False)


class _Iteration(Iterator[Any]):
    """One run over a loader; the newest is the one that moves the loader's position."""

    def __init__(self, loader: Loader, maker: _Maker, agree: Agree | None) -> None:
        self._loader = loader
        self._maker = maker
        self._agree = agree
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
            if loader._settle(loader._handed, self._agree):
                self._maker.learn(loader._course.stretch)
            batch, counts, tokens = self._maker.make()
        except BaseException:
            self._done = True
            self.close()
            raise
        now = time.perf_counter()
        if loader._running is not None and loader._running() is self:
            loader._handed += 1
            loader._served += counts
            loader._tokens += tokens
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
        stretch: Stretch,
        kinds: Sequence[Kind],
        share: Share,
        transform: Transform | None,
        cache: LoaderCache | None,
    ) -> None:
        self.stretch = stretch
        self.kinds = kinds
        self.share = share
        self.transform = transform
        self.cache = cache

    def share_of(self, worker: int) -> Share:
        return dataclasses.replace(self.share, worker=worker)

    def reader(self, worker: int = 0, *, read_ahead: bool = True) -> BatchReader:
        return BatchReader(
            self.stretch.plan,
            self.stretch.rows,
            self.kinds,
            self.share_of(worker),
            read_ahead=read_ahead,
            cache=self.cache,
        )

    def make(self, reader: BatchReader, batch: int) -> _Made:
        columns, counts = reader.read(batch)
        gone = reader.gone(batch)
        if gone is not None and gone.any():
            columns = drop_rows(columns, gone)
            counts = np.bincount(columns[REF], minlength=len(counts)).astype(np.int64)
        tokens = token_count(self.kinds, columns)
        made = _tensors(columns)
        if self.transform is None:
            return made, counts, tokens
        try:
            return self.transform(made), counts, tokens
        except StopIteration as exc:  # would read as the end of the epoch (as in PEP 479)
            raise RuntimeError("the transform raised StopIteration") from exc


class _Track:
    """What a maker knows of the run; where its knowledge ends, it waits for more."""

    def __init__(
        self, recipe: _Recipe, reader: BatchReader, more: Callable[[], Stretch | None], worker: int = 0
    ) -> None:
        self._stretch = recipe.stretch
        self._share = recipe.share_of(worker)
        self._reader = reader
        self._more = more

    def reaches(self, batch: int) -> bool:
        """Whether there is such a batch in the run; False as well when the run is ended from outside."""
        while self._stretch.until is not None and batch >= self._stretch.until:
            stretch = self._more()
            if stretch is None:
                return False
            self.learn(stretch)
        return self._stretch.stop is None or batch < self._stretch.stop

    def learn(self, stretch: Stretch) -> None:
        """Take on what was settled since."""
        if not _same_events(stretch.plan, self._stretch.plan):
            self._share = dataclasses.replace(self._share, stop=stretch.stop)
            self._reader.replan(stretch.plan, stretch.rows, share=self._share)
        self._stretch = stretch


def _tensors(columns: Columns) -> dict[str, Any]:
    return {k: torch.from_numpy(v) if isinstance(v, np.ndarray) else v for k, v in columns.items()}


class _Maker(Protocol):
    """Makes the batches of one run, in order."""

    def make(self) -> _Made:
        """The next batch; StopIteration after the last."""

    def learn(self, stretch: Stretch) -> None:
        """Hear what was settled since. The batch to be made next is always within what was heard."""

    def close(self) -> None:
        """End whatever runs, and wait for it."""

    def let_go(self) -> None:
        """Tell whatever runs to end; from any thread, without waiting."""


class _Nothing:
    def make(self) -> _Made:
        raise StopIteration

    def learn(self, stretch: Stretch) -> None: ...

    def close(self) -> None: ...

    def let_go(self) -> None: ...


class _Inline:
    """In the calling thread, one by one."""

    def __init__(self, recipe: _Recipe, *, read_ahead: bool) -> None:
        self._recipe = recipe
        self._reader = recipe.reader(read_ahead=read_ahead)
        self._track = _Track(recipe, self._reader, lambda: None)
        self._next = recipe.share.start

    def make(self) -> _Made:
        if not self._track.reaches(self._next):
            raise StopIteration
        made = self._recipe.make(self._reader, self._next)
        self._next += 1
        return made

    def learn(self, stretch: Stretch) -> None:
        self._track.learn(stretch)

    def close(self) -> None:
        self._reader.close()

    def let_go(self) -> None:
        self._reader.close(wait=False)


class _Thread:
    """In a thread, up to `prefetch` batches ahead."""

    def __init__(self, recipe: _Recipe, prefetch: int) -> None:
        self._ready: queue.SimpleQueue[_Made | BaseException] = queue.SimpleQueue()
        self._news: queue.SimpleQueue[Stretch | None] = queue.SimpleQueue()
        self._room = threading.Semaphore(prefetch)
        self._stop = threading.Event()
        # The thread gets no reference to this object: what isn't referenced any more can then be collected, and ends it.
        arguments = (recipe, self._ready, self._news.get, self._room, self._stop)
        self._thread = threading.Thread(target=_produce, args=arguments, name="treering-batches", daemon=True)
        self._thread.start()

    def make(self) -> _Made:
        made = self._ready.get()
        if isinstance(made, BaseException):
            self._ready.put(made)  # asked again, the same answer
            raise made
        self._room.release()
        return made

    def learn(self, stretch: Stretch) -> None:
        self._news.put(stretch)

    def let_go(self) -> None:
        self._stop.set()
        self._news.put(None)
        self._room.release()

    def close(self) -> None:
        self.let_go()
        self._thread.join()


def _produce(
    recipe: _Recipe,
    ready: queue.SimpleQueue[_Made | BaseException],
    news: Callable[[], Stretch | None],
    room: threading.Semaphore,
    stop: threading.Event,
) -> None:
    try:
        with recipe.reader() as reader:
            track = _Track(recipe, reader, news)
            for batch in itertools.count(recipe.share.start):
                room.acquire()
                if stop.is_set():
                    return
                if not track.reaches(batch):
                    break
                ready.put(recipe.make(reader, batch))
        ready.put(StopIteration())
    except BaseException as exc:  # handed to the thread that iterates, whatever it is
        ready.put(exc)


def _same_events(one: MixPlan, other: MixPlan) -> bool:
    return (one.changes, one.growth) == (other.changes, other.growth)


class _Hearing:
    """In a worker process: what `_Processes.learn` tells, put together with what was known."""

    def __init__(self, stretch: Stretch, news: Any) -> None:
        self._stretch = stretch
        self._news = news

    def __call__(self) -> Stretch | None:
        told = self._news.get() if self._news is not None else None
        if told is None:
            return None
        until, stop, events, grown = told
        plan, rows = self._stretch.plan, self._stretch.rows
        if events is not None:
            plan = dataclasses.replace(plan, changes=events[0], growth=events[1])
        if grown:
            rows = tuple(grown.get(number, old) for number, old in enumerate(rows))
        self._stretch = Stretch(until, stop, plan, rows)
        return self._stretch


class _Failure:
    """An error of ours on its way out of a worker: torch would rebuild it from its text and lose code and hint."""

    def __init__(self, error: TreeringError) -> None:
        self.error = error


class _Spans(IterableDataset[Any]):
    """The spans of batches that one worker process makes."""

    def __init__(self, recipe: _Recipe, news: Sequence[Any]) -> None:
        self._recipe = recipe
        self._news = news  # a queue for each worker; none when all is settled from the start

    def __iter__(self) -> Iterator[list[_Made] | _Failure]:
        info = get_worker_info()
        worker = info.id if info is not None else 0
        recipe, share = self._recipe, self._recipe.share
        try:
            with recipe.reader(worker) as reader:
                track = _Track(
                    recipe, reader, _Hearing(recipe.stretch, self._news[worker] if self._news else None), worker
                )
                for first in itertools.count(share.start + worker * SPAN, SPAN * share.workers):
                    span = [recipe.make(reader, n) for n in range(first, first + SPAN) if track.reaches(n)]
                    if span:
                        yield span
                    if len(span) < SPAN:
                        return
        except TreeringError as exc:
            yield _Failure(exc)


def _as_is(item: Any) -> Any:
    return item


class _Processes:
    """In worker processes, a span of batches at a time, taken from the workers in turn."""

    def __init__(self, recipe: _Recipe, workers: int, prefetch: int, start_method: str, *, learns: bool) -> None:
        try:
            pickle.dumps(recipe.transform)
        except (pickle.PicklingError, AttributeError, TypeError) as exc:
            raise UsageError(
                f"the transform can't be sent to a worker process: {exc}",
                code="transform-not-picklable",
                hint="define it at the top of a module, or use num_workers=0",
            ) from exc
        context = multiprocessing.get_context(start_method)
        note_helpers()
        if start_method == "forkserver":
            # Without "__main__", which is there by default: the user's script may have used Lance when it is imported,
            # and what the server has used, its forked children hang on.
            context.set_forkserver_preload(["treering.mixing.loader"])
        self._known = recipe.stretch
        self._news: list[Any] = [context.Queue() for _ in range(workers)] if learns else []
        for news in self._news:
            news._ignore_epipe = True  # as concurrent.futures does: what a worker that ended doesn't read is no error
        spans: DataLoader[Any] = DataLoader(
            _Spans(recipe, self._news),
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

    def learn(self, stretch: Stretch) -> None:
        # Only what is new, which is mostly one number: plans may hold a weight for each row, and rows a run for each.
        before, self._known = self._known, stretch
        events = None if _same_events(before.plan, stretch.plan) else (stretch.plan.changes, stretch.plan.growth)
        grown = {n: new for n, (old, new) in enumerate(zip(before.rows, stretch.rows, strict=True)) if new is not old}
        for news in self._news:
            news.put((stretch.until, stretch.stop, events, grown))

    def close(self) -> None:
        self.let_go()

    def let_go(self) -> None:
        spans, self._spans = self._spans, iter(())
        queues, self._news = self._news, []
        for news in queues:
            news.put(None)  # a worker that waits to hear more would not hear that it is to end
        if hasattr(spans, "_shutdown_workers"):  # what torch itself calls when the iterator is collected
            spans._shutdown_workers()
        for news in queues:
            news._reader.close()  # else the thread that writes would wait for a reader for ever
            news.close()
            news.join_thread()
        self._span = iter(())


def _whole(name: str, value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise UsageError(f"{name} is {value!r}; it is a whole number ≥ 0", code="bad-" + name.replace("_", "-"))
    return value


def _rank(rank: int | None, world_size: int | None) -> tuple[int, int]:
    """(rank, world size): as given, else as torch.distributed or torchrun have them, else (0, 1)."""
    if rank is None and world_size is None:
        connected = _connected()
        if connected is not None:
            return connected
        try:
            rank, world_size = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
        except ValueError as exc:
            raise UsageError(f"RANK and WORLD_SIZE in the environment aren't numbers: {exc}", code="bad-rank") from exc
        if world_size > 1 and "RANK" not in os.environ:  # as Lightning starts its processes: all would be rank 0
            raise UsageError(
                f"WORLD_SIZE is {world_size} in the environment, and RANK isn't set: every process would get the same rows",
                code="no-rank",
                hint="give rank= and world_size=; under Lightning, treering.plugins.lightning.TreeringDataModule does",
            )
    if rank is None or world_size is None:
        raise UsageError("rank and world_size are given together, or neither", code="bad-rank")
    _whole("rank", rank)
    if _whole("world_size", world_size) < 1 or rank >= world_size:
        raise UsageError(f"rank {rank} of world_size {world_size}: ranks are 0 … world_size - 1", code="bad-rank")
    return rank, world_size


def _connected() -> tuple[int, int] | None:
    """(rank, world size) of this process in torch.distributed; None when it isn't in use."""
    from torch import distributed

    if not (distributed.is_available() and distributed.is_initialized()):
        return None
    return distributed.get_rank(), distributed.get_world_size()


def _kinds(lock: MixLock, sources: Sequence[SourceLike], *, adaptive: bool) -> list[Kind]:
    """The columns to deliver, one type each over all sources that are, or may be, drawn from."""
    types = delivered_types(lock, sources, adaptive=adaptive)
    return [kind_of(name, found, ragged=lock.ragged, pad_value=lock.pad_value) for name, found in types.items()]


def _contents(lock: MixLock) -> dict[str, Any]:
    """Units, and (ref, short content digest) of each source: enough to tell which differs, as far as there is room."""
    sources = [[source.pin.ref, source.content[:12]] for source in lock.sources]
    for told in ({"units": list(lock.units), "sources": sources}, {"sources": [digest[:6] for _, digest in sources]}):
        if len(json.dumps(told)) <= _ROOM:
            return told
    return {}


def _is_batch(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= _LAST_BATCH


def _time_span(source: Any) -> tuple[float | None, float | None]:
    """When the oldest and the newest record were made, in seconds since 1970."""
    if "ts" not in source.schema.names or not hasattr(source, "scan"):
        return None, None
    low: list[Any] = []
    high: list[Any] = []
    for batch in source.scan(["ts"]):
        ends = pc.min_max(batch.column(0)).as_py()
        if ends["min"] is not None:
            low.append(ends["min"])
            high.append(ends["max"])
    return (min(low).timestamp(), max(high).timestamp()) if low else (None, None)


def _agreement(world_size: int) -> Agree:
    """What rank 0 passes, every rank gets: by torch.distributed, over gloo whatever the gradients take."""
    from torch import distributed

    if not (distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() == world_size):
        raise UsageError(
            f"what changes during the run has to be settled among {world_size} ranks, and they aren't connected",
            code="no-process-group",
            hint="call torch.distributed.init_process_group first, or leave out follow, schedules and adaptive",
        )
    group = None if distributed.get_backend() == "gloo" else distributed.new_group(backend="gloo")

    def agree(message: bytes) -> bytes:
        size = torch.tensor([len(message)], dtype=torch.int64)
        distributed.broadcast(size, 0, group=group)
        text = torch.frombuffer(bytearray(message.ljust(int(size), b" ")), dtype=torch.uint8)[: int(size)].clone()
        if int(size):
            distributed.broadcast(text, 0, group=group)
        return text.numpy().tobytes()

    return agree
