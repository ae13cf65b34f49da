"""A run goes on after any batch with any number of workers and ranks: the same record ids in the same order.

That holds for every pair (saved with, resumed with) because of two facts that are tested apart: a state doesn't depend
on who saved it, byte for byte, and from each state every topology gives the rest of the run. Small pools and chunks, so
that windows begin and end inside the run; once plainly and once with events in between (weights that change, a source
that grows).
"""

from __future__ import annotations

import ast
import gc
import itertools
import json
import multiprocessing.forkserver
import os
import random
import subprocess
import sys
import threading
import time
from collections import Counter
from functools import cache
from itertools import chain, islice
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import treering
from treering.mixing import GrowthEvent, MixLock, WeightEvent, mix
from treering.testing import MemoryStore

from .conftest import records

pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")  # more workers than cores: meant so

WORKERS = (0, 1, 2, 4)
BATCH = 16
RUN = 36  # batches: enough for each source's windows, of about 64 draws, to end several times
SMALL: dict[str, Any] = {"columns": ["id"], "chunk_rows": 4, "pool_rows": 64}


def plain(store: MemoryStore) -> MixLock:
    store.add("support@v1", records("a", 300))
    store.add("support@v2", records("b", 200))
    store.add("support@live", records("c", 300))
    sources = [store.load(ref) for ref in ("support@v1", "support@v2", "support@live")]
    return mix(*sources, weights=[0.3, 0.3, 0.4], seed=7).lock(BATCH, **SMALL)


def eventful(store: MemoryStore) -> MixLock:
    """Live held 128 training rows when the run began, 160 from its 64th draw on, and 192 from its second pass on."""
    old = store.add("support@v1", records("a", 300))
    rows = records("c", 240)
    live = store.add("support@live", rows[:160])
    lock = mix(old, live, weights=[9, 7], seed=3).lock(BATCH, epochs=None, **SMALL)
    ends = [store.add("support@live", rows[low : low + 40]).segments[-1].row_ids[1] for low in (160, 200)]
    events: list[Any] = [GrowthEvent(batch=8, source=1, draw=64, train_rows=160, end=ends[0])]
    plan = lock.with_events(events, 8).plan()
    events.append(WeightEvent(batch=13, units=(3, 1), taken=plan.taken_before(13)))
    second = plan.sources[1].draws_in(1)
    assert plan.sources[1].is_boundary(second)
    plan = lock.with_events(events, 13).plan()
    events.append(GrowthEvent(batch=14, source=1, draw=second, train_rows=192, end=ends[1]))
    assert 14 < plan.batch_of(1, second) < RUN
    return MixLock.from_json(lock.with_events(events, 14).to_json())


LOCKS = {"plain": plain, "events": eventful}


@cache
def a_run(name: str) -> Run:
    """Nothing below changes a run, so the tests share it."""
    return Run(name)


@pytest.fixture(params=LOCKS)
def run(request: pytest.FixtureRequest) -> Run:
    return a_run(request.param)


def ids(batch: dict[str, Any]) -> list[str]:
    return list(batch["id"])


class Run:
    """One run by its lock, and what the unbroken run gives."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.store = MemoryStore()
        self.lock: MixLock = LOCKS[name](self.store)
        self.whole, self.states = self.record()

    def loader(self, workers: int = 0, **options: Any) -> Any:
        return self.lock.loader(self.store, num_workers=workers, **options)

    def record(self, workers: int = 0, **options: Any) -> tuple[list[list[str]], list[str]]:
        """The batches of the run, and the state after 0, 1, 2, … of them as JSON."""
        with self.loader(workers, **options) as loader:
            states, batches = [json.dumps(loader.state_dict())], []
            for batch in islice(loader, RUN):
                batches.append(ids(batch))
                states.append(json.dumps(loader.state_dict()))
        return batches, states

    def check_rest(self, loader: Any, stop: int) -> None:
        loader.load_state_dict(json.loads(self.states[stop]))
        assert [ids(batch) for batch in islice(loader, RUN - stop)] == self.whole[stop:]


def test_the_run_is_long_enough_to_mean_something(run: Run) -> None:
    assert len(run.whole) == RUN
    plan = run.lock.plan()
    inside = 0
    for source, planned in enumerate(plan.sources):
        drawn = plan.taken_before(RUN)[source]
        windows = {planned.window(draw) for draw in range(drawn)}
        assert len(windows) >= 3
        begun = {plan.taken_before(batch)[source] for batch in range(RUN + 1)}
        inside += sum(low not in begun for low, _ in windows)
    assert inside >= 2  # windows end inside batches, too
    assert len({one for batch in run.whole for one in batch}) > 200


@pytest.mark.parametrize("workers", WORKERS[1:])
def test_workers_change_neither_a_batch_nor_a_byte_of_any_state(run: Run, workers: int) -> None:
    assert run.record(workers) == (run.whole, run.states)


def test_without_workers_a_run_resumes_at_every_batch(run: Run) -> None:
    for stop in range(RUN + 1):
        with run.loader() as loader:
            run.check_rest(loader, stop)


def resume_with_workers(run: Run, stops: Any) -> None:
    for workers in WORKERS[1:]:
        with run.loader(workers) as loader:  # one loader, loaded anew for each stop: its processes start faster
            for stop in stops:
                run.check_rest(loader, stop)


def test_with_workers_a_run_resumes_inside_spans_windows_and_at_events(run: Run) -> None:
    resume_with_workers(run, (5, 13))  # a worker makes 8 batches in a row; one event is at batch 13


@pytest.mark.slow
def test_with_any_workers_a_run_resumes_at_every_batch(run: Run) -> None:
    resume_with_workers(run, range(RUN + 1))


def check_chain(run: Run, chain_of: list[tuple[int, int]]) -> None:
    """Go from topology to topology inside the run: [(workers, batches), …]; the last one finishes it."""
    got: list[list[str]] = []
    state = run.states[0]
    for workers, batches in chain_of:
        with run.loader(workers) as loader:
            loader.load_state_dict(json.loads(state))
            got += [ids(batch) for batch in islice(loader, min(batches, RUN - len(got)))]
            state = json.dumps(loader.state_dict())
        assert state == run.states[len(got)]
    assert got == run.whole


def test_three_resumes_in_one_epoch_with_other_workers_each_time_lose_nothing(run: Run) -> None:
    assert run.lock.epochs is None or len(run.loader()) > RUN - 12  # the stops are inside the first pass over live
    check_chain(run, [(0, 3), (2, 6), (1, 9), (4, RUN)])


@pytest.mark.slow
@pytest.mark.parametrize("order", list(itertools.permutations(WORKERS)), ids=str)
def test_three_resumes_in_every_order_of_workers_lose_nothing(run: Run, order: tuple[int, ...]) -> None:
    rng = random.Random(str(order))
    check_chain(run, [*((workers, rng.randint(1, 9)) for workers in order[:-1]), (order[-1], RUN)])


# ---- ranks

WORLDS = (1, 2, 4, 8, 16)


def rank_loaders(run: Run, world_size: int) -> list[Any]:
    """One loader a rank; without threads, so they needn't be closed."""
    return [run.loader(rank=rank, world_size=world_size, prefetch=0) for rank in range(world_size)]


def check_ranks(run: Run, loaders: list[Any], stop: int, batches: int, state: str) -> list[str]:
    """All ranks, resumed at `stop`, give slices of the same global batches, in the order of the ranks."""
    slices = []
    for loader in loaders:
        loader.load_state_dict(json.loads(state))
        slices.append([ids(batch) for batch in islice(loader, batches)])
    assert [list(chain(*parts)) for parts in zip(*slices, strict=True)] == run.whole[stop : stop + batches]
    return [json.dumps(loader.state_dict()) for loader in loaders]


def test_a_state_is_the_same_whichever_rank_of_whatever_world_saved_it(run: Run) -> None:
    for world_size in WORLDS[1:]:
        for rank in (0, world_size - 1):
            assert run.record(rank=rank, world_size=world_size, prefetch=0)[1] == run.states


def test_every_world_size_that_divides_the_batch_resumes_at_every_batch(run: Run) -> None:
    for world_size in WORLDS[1:]:
        loaders = rank_loaders(run, world_size)
        for stop in range(RUN):
            check_ranks(run, loaders, stop, min(2, RUN - stop), run.states[stop])
        check_ranks(run, loaders, 4, RUN - 4, run.states[4])


def test_ranks_with_workers_give_the_same_slices(run: Run) -> None:
    with run.loader(2, rank=1, world_size=2) as loader:
        loader.load_state_dict(json.loads(run.states[3]))
        got = [ids(batch) for batch in islice(loader, RUN - 3)]
    assert got == [batch[BATCH // 2 :] for batch in run.whole[3:]]


@cache
def rank_loaders_of(name: str) -> dict[int, list[Any]]:
    return {world_size: rank_loaders(a_run(name), world_size) for world_size in WORLDS}


@given(st.data())
@settings(max_examples=25, deadline=None)
def test_random_histories_of_ranks_equal_the_unbroken_run(data: st.DataObject) -> None:
    """Stop and go on with another world size, again and again; any rank's state will do."""
    run = a_run(data.draw(st.sampled_from(sorted(LOCKS))))
    loaders = rank_loaders_of(run.name)
    at, state = 0, run.states[0]
    while at < RUN:
        world_size = data.draw(st.sampled_from(WORLDS))
        batches = data.draw(st.integers(1, RUN - at))
        states = check_ranks(run, loaders[world_size], at, batches, state)
        state = data.draw(st.sampled_from(states))
        at += batches


# ---- nothing stays behind


def handles() -> tuple[int, list[str], list[int]]:
    """Open files, threads of ours, and child processes of this process.

    Worker processes are children of multiprocessing's fork server, which runs since before these tests (conftest).
    """
    gc.collect()
    files = len(os.listdir("/proc/self/fd"))
    threads = sorted(thread.name for thread in threading.enumerate() if thread is not threading.main_thread())
    return files, threads, workers_of_this_process()


def workers_of_this_process() -> list[int]:
    """The children of the fork server, and multiprocessing's own children."""
    server = getattr(multiprocessing.forkserver, "_forkserver", None)
    pid = getattr(server, "_forkserver_pid", None)
    found = [child.pid for child in multiprocessing.active_children() if child.pid is not None]
    if pid is not None:
        text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
        found += [int(one) for one in text.split()]
    return sorted(set(found))


@pytest.mark.parametrize("options", [{}, {"prefetch": 4}, {"prefetch": 0}, {"num_workers": 2}], ids=str)
def test_no_thread_process_or_file_handle_is_left_after_close(
    store: treering.Store, support: treering.Corpus, options: dict[str, Any]
) -> None:
    with support.capture() as live:
        live.extend([{"id": f"r{n}", "text": f"t{n}", "label": "l"} for n in range(400)])
    support.snapshot()

    def use(ending: str) -> None:
        loader = store.mix("support@v1", seed=1).loader(BATCH, epochs=None, chunk_rows=4, pool_rows=64, **options)
        batches = iter(loader)
        for _ in range(20):
            next(batches)
        if ending == "twice":
            next(iter(loader))
        loader.close()

    use("once")  # what is opened once and kept for all loaders: the table, the fork server
    before = handles()
    for ending in ("once", "twice", "once"):
        use(ending)

    def left() -> tuple[int, list[str], list[int]]:
        """What is there beyond what was there before: of that, something may end meanwhile, as a queue's feeder does."""
        files, threads, workers = handles()
        more = Counter(threads) - Counter(before[1])
        return max(0, files - before[0]), sorted(more.elements()), workers

    end = time.monotonic() + 60
    while left() != (0, [], []) and time.monotonic() < end:
        time.sleep(0.05)  # an ended process stays in the server's list until it is reaped
    assert left() == (0, [], [])


def left_behind(script: str) -> list[str]:
    """What a program prints that ends with `left()`: the command lines of its child processes."""
    program = """
import multiprocessing, os
from pathlib import Path
from treering.mixing import mix
from treering.testing import MemoryStore

def left():
    children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
    print([Path(f"/proc/{child}/cmdline").read_bytes().replace(b"\\0", b" ").decode() for child in children])

def used(n=3):
    loader = mix(MemoryStore().add("a@v1", [{"x": n} for n in range(200)])).loader(8, num_workers=2, epochs=None)
    batches = iter(loader)
    for _ in range(n):
        next(batches)
    return loader, batches

if __name__ == "__main__":
"""
    body = "".join(f"    {line}\n" for line in script.strip().splitlines())
    done = subprocess.run([sys.executable, "-c", program + body], capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    return [str(line) for line in ast.literal_eval(done.stdout.splitlines()[-1])]


def test_no_process_at_all_is_left_when_the_last_loader_has_closed() -> None:
    script = """
first, _ = used()
second, _ = used()
first.close()
assert len(multiprocessing.active_children()) == 2  # the other one goes on
second.close()
third, _ = used()  # and whoever comes next has what it needs
third.close()
left()
"""
    assert left_behind(script) == []


def test_helpers_of_multiprocessing_that_somebody_else_uses_are_left_to_him() -> None:
    script = """
from multiprocessing.shared_memory import SharedMemory
mine = SharedMemory(create=True, size=16)  # registered with the tracker, which would remove it
loader, _ = used()
loader.close()
again = SharedMemory(mine.name)
again.close()
left()
mine.close()
mine.unlink()
"""
    (kept,) = left_behind(script)
    assert "resource_tracker" in kept


@pytest.mark.parametrize("end", ["pass", pytest.param("loader.close()", marks=pytest.mark.slow)])
def test_a_program_that_used_workers_ends_and_lets_go_of_its_output(end: str) -> None:
    """A fork server that outlives the program would keep the pipe open, and whoever reads it would wait for ever."""
    script = """
from treering.mixing import mix
from treering.testing import MemoryStore

if __name__ == "__main__":
    source = MemoryStore().add("a@v1", [{"x": n} for n in range(200)])
    loader = mix(source).loader(8, columns=["x"], num_workers=1)
    batches = iter(loader)
    print(len(next(batches)["x"]), flush=True)
    {end}
"""
    program = [sys.executable, "-c", script.replace("{end}", end)]
    done = subprocess.run(program, capture_output=True, text=True, timeout=100)
    assert (done.returncode, done.stdout) == (0, "8\n"), done.stderr
