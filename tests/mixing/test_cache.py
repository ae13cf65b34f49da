"""The snapshot cache: the same batches as without it, never a damaged byte, and nothing left behind."""

from __future__ import annotations

import gc
import json
import multiprocessing
import os
import shutil
import subprocess
import sys
import threading
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import treering
from tests.waiting import wait_for
from treering.errors import StoreError, UsageError
from treering.mixing import cache as cache_module
from treering.mixing.cache import LoaderCache, SnapshotCache, cache_limit, worth_building
from treering.mixing.columnfile import ColumnWriter, column_in, stored_type

SCHEMA = pa.schema(
    [
        ("text", pa.string()),
        ("tokens", pa.list_(pa.int32(), 8)),
        ("tail", pa.list_(pa.int64())),
        ("flag", pa.bool_()),
        ("score", pa.float64()),
        ("turns", pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))),
    ]
)
COLUMNS = ["id", *SCHEMA.names]


def fill(corpus: treering.Corpus, prefix: str, rows: int) -> None:
    with corpus.capture() as live:
        live.extend(
            [
                {
                    "id": f"{prefix}-{n}",
                    "text": None if n % 17 == 0 else f"{prefix} says {n}",
                    "tokens": [n] * 8,
                    "tail": [n] * (n % 4),
                    "flag": n % 3 == 0,
                    "score": None if n % 5 == 0 else n / 2,
                    "turns": [{"role": "user", "content": f"{prefix}{n}"}] * (n % 3),
                }
                for n in range(rows)
            ]
        )


@pytest.fixture(scope="module")
def grown(tmp_path_factory: pytest.TempPathFactory) -> treering.Store:
    """Three snapshots and live, of 300, 200, 250 and 150 records."""
    store = treering.open(tmp_path_factory.mktemp("cache") / "store")
    corpus = store.create("support", schema=SCHEMA)
    for prefix, rows in (("a", 300), ("b", 200), ("c", 250)):
        fill(corpus, prefix, rows // 2)
        fill(corpus, prefix + prefix, rows - rows // 2)
        corpus.snapshot()
    fill(corpus, "d", 150)
    return store


@pytest.fixture
def empty(grown: treering.Store) -> treering.Store:
    shutil.rmtree(grown.root / "cache", ignore_errors=True)
    return grown


def plain(batch: dict[str, Any]) -> dict[str, Any]:
    # by way of text: NaN equals itself there
    return {k: repr(v.tolist() if isinstance(v, torch.Tensor) else list(v)) for k, v in batch.items()}


def batches(loader: Any, count: int) -> list[dict[str, Any]]:
    with loader:
        return [plain(batch) for batch in islice(loader, count)]


def build(store: treering.Store, *refs: str, columns: list[str] = COLUMNS) -> SnapshotCache:
    for ref in refs:
        store.cache.build(store.load(ref), columns)
    return store.cache


# ---- the files of columns


ROWS = 500
ARRAYS = {
    "int32": pa.array([None if n % 7 == 0 else n for n in range(ROWS)], pa.int32()),
    "bool": pa.array([None if n % 11 == 0 else n % 3 == 0 for n in range(ROWS)]),
    "string": pa.array([None if n % 5 == 0 else "x" * (n % 9) for n in range(ROWS)]),
    "string view": pa.array([None if n % 5 == 0 else "x" * (n % 29) for n in range(ROWS)], pa.string_view()),
    "dictionary": pa.array([f"w{n % 4}" for n in range(ROWS)]).dictionary_encode(),
    "list": pa.array([None if n % 6 == 0 else [n] * (n % 4) for n in range(ROWS)], pa.list_(pa.int16())),
    "fixed": pa.array([None if n % 4 == 0 else [n, None] for n in range(ROWS)], pa.list_(pa.int64(), 2)),
    "nested": pa.array([[{"role": "u", "c": None if n % 3 else f"hi {n}"}] * (n % 3) for n in range(ROWS)]),
    "grid": pa.array([[[n, 1], [2, n]] for n in range(ROWS)], pa.list_(pa.list_(pa.int32(), 2), 2)),
    "time": pa.array([None if n == 5 else n for n in range(ROWS)], pa.timestamp("us", "UTC")),
    "bytes": pa.array([bytes([n % 256] * 3) for n in range(ROWS)], pa.binary(3)),
    "null": pa.nulls(ROWS),
}


@given(st.sampled_from(sorted(ARRAYS)), st.lists(st.integers(0, ROWS), max_size=6), st.integers(0, 99))
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_column_reads_as_it_was_written_however_it_was_cut(
    tmp_path: Path, kind: str, cuts: list[int], offset: int
) -> None:
    array = ARRAYS[kind].slice(offset)
    folder = tmp_path / os.urandom(8).hex()
    writer = ColumnWriter(kind, array.type, folder / "buffers")
    edges = [0, *sorted(cut for cut in cuts if cut < len(array)), len(array)]
    for low, high in pairwise(edges):
        writer.add(array.slice(low, high - low))
    writer.finish(folder.parent / f"{folder.name}.arrow")
    writer.close()
    found = column_in(pa.memory_map(str(folder.parent / f"{folder.name}.arrow")).read_buffer())
    found.validate(full=True)
    assert found.to_pylist() == array.to_pylist()
    assert not (folder / "buffers").exists()


def test_a_type_that_cant_be_stored_is_known() -> None:
    assert stored_type(pa.map_(pa.string(), pa.int32())) is None
    assert stored_type(pa.struct([("a", pa.map_(pa.string(), pa.int32()))])) is None


# ---- the same batches


@given(
    refs=st.lists(
        st.sampled_from(["support@v1", "support@v2", "support@v1..v3", "support@v2..v3", "support@new", "support@live"]),
        min_size=1, max_size=3,
    ),
    cached=st.sets(st.sampled_from(["support@v1", "support@v2", "support@v3"])),
    chunk=st.sampled_from([1, 4, 64]),
    pool=st.sampled_from([64, 200, 100_000]),
    seed=st.integers(0, 3),
    start=st.integers(0, 12),
    ranks=st.sampled_from([1, 2, 4]),
    ragged=st.sampled_from(["pad", "values"]),
)  # fmt: skip
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_batches_with_the_cache_are_those_without_it(
    empty: treering.Store,
    refs: list[str],
    cached: set[str],
    chunk: int,
    pool: int,
    seed: int,
    start: int,
    ranks: int,
    ragged: Any,
) -> None:
    shutil.rmtree(empty.root / "cache", ignore_errors=True)
    mix = empty.mix(*refs, seed=seed)
    options: dict[str, Any] = {
        "batch_size": 16, "epochs": None, "chunk_rows": chunk, "pool_rows": pool, "columns": COLUMNS, "ragged": ragged,
        "rank": ranks - 1, "world_size": ranks,
    }  # fmt: skip
    with mix.loader(**options, cache=False) as loader:
        state = {**loader.state_dict(), "batch": start}
        loader.load_state_dict(state)
        want = [plain(batch) for batch in islice(loader, 12)]
    build(empty, *sorted(cached))
    with mix.loader(**options) as loader:
        loader.load_state_dict(state)
        got = [plain(batch) for batch in islice(loader, 12)]
        skipped = loader.stats()["cache"]["skipped"]
    assert got == want
    assert skipped is None


def test_narrowed_and_weighted_sources_are_served_from_the_cache_as_well(tmp_path: Path) -> None:
    store = treering.open(tmp_path / "store")
    corpus = store.create("support", schema=SCHEMA)
    for prefix in "ab":
        fill(corpus, prefix, 200)
        corpus.snapshot()
    for n in (3, 4, 50):
        corpus.annotate(f"a-{n}", exclude=True, by="ann")
    whole = store.load("support@v1..v2")
    replay = whole.select(rows=60, strategy="reservoir", name="replay")
    mix = treering.mix(whole.where(flag=True), whole.balanced("flag"), replay, store.load("support@v1"), seed=5)
    options: dict[str, Any] = {"batch_size": 24, "epochs": None, "columns": COLUMNS, "pool_rows": 64, "chunk_rows": 4}
    want = batches(mix.loader(**options, cache=False), 60)
    build(store, "support@v1..v2")
    with mix.loader(**options) as loader:
        assert [plain(batch) for batch in islice(loader, 60)] == want
        assert loader.stats()["cache"]["built"] == 0
    assert not any(f"'a-{n}'" in batch["id"] for batch in want for n in (3, 4, 50))


def test_once_all_is_cached_neither_the_reader_nor_workers_open_lance(empty: treering.Store) -> None:
    mix = empty.mix("support@v1..v3", seed=3)
    options: dict[str, Any] = {"batch_size": 16, "epochs": None, "columns": COLUMNS, "chunk_rows": 1}
    want = batches(mix.loader(**options, cache=False), 40)
    build(empty, "support@v1..v3")
    hidden = empty.root / "hidden"
    (empty.root / "tables").rename(hidden)
    try:
        assert batches(mix.loader(**options), 40) == want
        assert batches(mix.loader(**options, num_workers=2), 40) == want
    finally:
        hidden.rename(empty.root / "tables")


def test_a_restricted_segment_finds_its_rows_in_the_snapshots_columns(empty: treering.Store) -> None:
    source = empty.load("support@v1..v2")
    for segment in source.segments:  # as a selection narrows them
        runs = segment.runs("train")
        segment._runs["train"] = np.concatenate([[[a + 1, n // 2]] for a, n in runs if n > 3]).astype(np.int64)
    mix = treering.mix(source, seed=1)
    options: dict[str, Any] = {"batch_size": 8, "epochs": 2, "columns": COLUMNS}
    want = batches(mix.loader(**options, cache=False), 10**6)
    build(empty, "support@v1..v2")
    with mix.loader(**options) as loader:
        assert [plain(batch) for batch in loader] == want
        assert loader.stats()["cache"]["columns"] == 2 * len(COLUMNS)
    heldout = {
        one
        for ref in ("support@v1", "support@v2")
        for one in empty.load(ref).heldout().to_table(["id"])["id"].to_pylist()
    }
    assert not heldout & {one for batch in want for one in eval(batch["id"])}


def test_writing_into_a_batch_changes_neither_another_one_nor_the_cache(empty: treering.Store) -> None:
    mix = empty.mix("support@v1", "support@v2..v3", seed=3)
    options: dict[str, Any] = {"batch_size": 16, "epochs": 3, "columns": COLUMNS, "chunk_rows": 1}
    build(empty, "support@v1..v3")
    want = batches(mix.loader(**options, cache=False), 60)
    with mix.loader(**options) as loader:
        for batch, expected in zip(loader, want, strict=False):
            assert plain(batch) == expected
            for value in batch.values():
                if isinstance(value, torch.Tensor):
                    value.zero_()
                elif isinstance(value, list):
                    value.clear()
    assert batches(mix.loader(**options), 60) == want


# ---- building beside a run


def test_a_run_that_passes_over_its_snapshots_builds_them_beside_it(empty: treering.Store) -> None:
    mix = empty.mix("support@v1", "support@live", seed=1)
    options: dict[str, Any] = {"batch_size": 16, "epochs": None, "columns": COLUMNS, "pool_rows": 64, "chunk_rows": 1}
    want = batches(mix.loader(**options, cache=False), 200)
    with mix.loader(**options) as loader:
        iterator = iter(loader)
        got = [plain(next(iterator)) for _ in range(100)]
        wait_for(lambda: loader.stats()["cache"]["built"] == len(COLUMNS))
        got += [plain(next(iterator)) for _ in range(100)]
        assert loader.stats()["cache"]["columns"] == len(COLUMNS)
    assert got == want
    assert {entry.ref for entry in empty.cache.entries()} == {"support@v1"}


def test_a_run_that_wont_pay_for_building_doesnt_build(empty: treering.Store) -> None:
    with empty.mix("support@v1", "support@live", weights=[1, 9]).loader(10, columns=["id"]) as loader:
        list(loader)
    with empty.mix("support@v1").loader(10, columns=["id"], cache=False, epochs=None) as loader:
        next(iter(loader))
        assert loader.stats()["cache"] is None
    assert empty.cache.entries() == []


@pytest.mark.parametrize(
    ("draws", "rows", "size", "room", "worth"),
    [
        (None, 10, 5, 5, True),
        (10, 10, 5, 5, True),
        (9, 10, 5, 5, False),
        (None, 10, 6, 5, False),
        (None, 0, 0, 5, False),
    ],
)
def test_building_pays_from_one_pass_on_and_while_it_fits(
    draws: int | None, rows: int, size: int, room: int, worth: bool
) -> None:
    assert worth_building(draws, rows, size, room) is worth


def test_live_is_never_cached_nor_a_pin_of_live_that_was_sealed_since(store: treering.Store) -> None:
    corpus = store.create("support", schema=SCHEMA)
    fill(corpus, "a", 50)
    live = store.live("support")
    corpus.snapshot()
    with treering.mix(live).loader(4, columns=["id"], epochs=None) as loader:
        list(islice(loader, 40))
    assert store.cache.entries() == []
    with pytest.raises(UsageError, match="live is never cached"):
        store.cache.build(live, ["id"])


def test_the_first_batch_doesnt_wait_for_building(empty: treering.Store, monkeypatch: pytest.MonkeyPatch) -> None:
    going = threading.Event()
    building = cache_module.SnapshotCache.build

    def slow(self: Any, *args: Any, **more: Any) -> Any:
        assert going.wait(20)
        return building(self, *args, **more)

    monkeypatch.setattr(cache_module.SnapshotCache, "build", slow)
    with empty.mix("support@v1").loader(8, columns=["id"], epochs=None, chunk_rows=1, pool_rows=64) as loader:
        iterator = iter(loader)
        assert len(next(iterator)["id"]) == 8
        going.set()
        wait_for(lambda: loader.stats()["cache"]["built"] == 1)


# ---- damage


@pytest.mark.parametrize("damage", ["byte", "cut", "document", "swapped"])
def test_what_is_damaged_is_counted_dropped_and_built_anew(empty: treering.Store, damage: str) -> None:
    mix = empty.mix("support@v1", "support@v2")
    want = batches(mix.loader(16, columns=["id", "text"], cache=False, epochs=None), 30)
    cache = build(empty, "support@v1..v2", columns=["id", "text"])
    entries = {(entry.ref, entry.column): entry for entry in cache.entries()}
    victim = entries["support@v1", "text"]
    file = cache.folder / victim.file
    if damage == "byte":
        data = bytearray(file.read_bytes())
        data[len(data) // 2] ^= 4
        file.write_bytes(data)
    elif damage == "cut":
        os.truncate(file, victim.bytes - 1)
    elif damage == "document":
        (cache.folder / f"{victim.file.split('.')[0]}.json").write_text("{")
    else:
        shutil.copy(cache.folder / entries["support@v2", "text"].file, file)
    with mix.loader(16, columns=["id", "text"], epochs=None) as loader:
        assert [plain(batch) for batch in islice(loader, 30)] == want
        wait_for(lambda: loader.stats()["cache"]["built"] == 1)
        assert loader.stats()["cache"]["dropped"] == 1
    assert cache.open(empty.load("support@v1").segments[0], "text") is not None
    assert len(cache.entries()) == 4


def test_a_damaged_snapshot_is_named_and_nothing_of_it_cached(tmp_path: Path) -> None:
    store = treering.open(tmp_path / "store")
    corpus = store.create("support", schema=SCHEMA)
    fill(corpus, "a", 200)
    corpus.snapshot()
    mix = store.mix("support@v1")
    lock = mix.lock(8, columns=["id"], epochs=None)
    assert lock.sources[0].pin.segments[0].digest
    (file,) = Path(corpus.uri).glob("data/*.lance")
    data = bytearray(file.read_bytes())
    data[len(data) // 3] ^= 1
    file.write_bytes(data)
    with pytest.raises(StoreError) as caught:
        store.cache.build(store.load("support@v1"), ["id"])
    assert caught.value.code == "snapshot-damaged"
    with mix.loader(8, columns=["flag"], epochs=None) as loader:
        iter(loader)
        wait_for(lambda: "certified" in str(loader.stats()["cache"]["skipped"]))
        with pytest.raises(StoreError) as caught:
            next(iter(loader))
    assert caught.value.code == "snapshot-damaged"
    assert store.cache.entries() == []
    assert [path.name for path in store.cache.folder.iterdir()] == []


# ---- bounds


def test_the_least_recently_used_make_room(empty: treering.Store) -> None:
    cache = build(empty, "support@v1", "support@v2", "support@v3", columns=["text"])
    sizes = {entry.ref: entry.bytes for entry in cache.entries()}
    for age, ref in enumerate(["support@v2", "support@v3", "support@v1"]):
        (entry,) = (entry for entry in cache.entries() if entry.ref == ref)
        os.utime(cache.folder / f"{entry.file.split('.')[0]}.json", (1000 + age, 1000 + age))
    small = SnapshotCache(empty.cache_dir, limit=sum(sizes.values()))
    assert cache.open(empty.load("support@v2").segments[0], "text") is not None  # now the newest
    assert small.build(empty.load("support@v1").segments[0], ["flag"])
    assert {(entry.ref, entry.column) for entry in cache.entries()} == {
        ("support@v1", "text"), ("support@v2", "text"), ("support@v1", "flag"),
    }  # fmt: skip
    assert cache.size <= small.limit
    assert SnapshotCache(empty.cache_dir, limit=10).build(empty.load("support@v1").segments[0], ["id"]) == []


def test_a_run_too_large_for_the_limit_says_so_and_reads_on(
    empty: treering.Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TREERING_CACHE_LIMIT", "1K")
    with empty.mix("support@v1").loader(8, columns=["text"], epochs=None) as loader:
        list(islice(loader, 5))
        wait_for(lambda: loader.stats()["cache"]["skipped"] is not None)
        assert "don't fit" in loader.stats()["cache"]["skipped"]
    assert empty.cache.entries() == []


def test_the_limit_comes_from_the_environment_or_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert 0 < cache_limit(tmp_path) <= min(20 << 30, shutil.disk_usage(tmp_path).total // 2)
    for text, size in (("5G", 5 << 30), ("500MB", 500 << 20), ("1.5 KiB", 1536), ("0", 0)):
        monkeypatch.setenv("TREERING_CACHE_LIMIT", text)
        assert cache_limit(tmp_path) == size
    monkeypatch.setenv("TREERING_CACHE_LIMIT", "plenty")
    with pytest.raises(UsageError) as caught:
        cache_limit(tmp_path)
    assert caught.value.code == "bad-cache-limit"


def test_a_directory_dropped_in_the_middle_of_a_run_only_costs_speed(empty: treering.Store) -> None:
    mix = empty.mix("support@v1", "support@v2", seed=2)
    options: dict[str, Any] = {"batch_size": 16, "epochs": None, "columns": COLUMNS, "pool_rows": 64}
    want = batches(mix.loader(**options, cache=False), 120)
    build(empty, "support@v1")
    with mix.loader(**options) as loader:
        iterator = iter(loader)
        got = [plain(next(iterator)) for _ in range(30)]
        shutil.rmtree(empty.root / "cache", ignore_errors=True)  # a build may be under way in it
        got += [plain(next(iterator)) for _ in range(90)]
    assert got == want


def test_what_dead_processes_left_is_tidied_up(empty: treering.Store) -> None:
    cache = build(empty, "support@v1", columns=["id"])
    orphans = [cache.folder / "0.1.arrow", cache.folder / ".dead.tmp"]
    orphans[0].write_bytes(b"x")
    orphans[1].mkdir()
    young = cache.folder / ".alive.tmp"
    young.mkdir()
    for path in orphans:
        os.utime(path, (1000, 1000))
    build(empty, "support@v1", columns=["flag"])
    assert not any(path.exists() for path in orphans)
    assert young.exists()


# ---- other processes


def build_there(root: str, gate: Any) -> None:
    store = treering.open(root)
    gate.wait(60)
    store.cache.build(store.load("support@v1..v3"), COLUMNS)


def test_processes_that_build_the_same_leave_one_sound_file_each(empty: treering.Store) -> None:
    context = multiprocessing.get_context("spawn")
    gate = context.Barrier(3)
    others = [context.Process(target=build_there, args=(str(empty.root), gate)) for _ in range(2)]
    for process in others:
        process.start()
    gate.wait(60)
    want = batches(empty.mix("support@v1..v3").loader(16, columns=COLUMNS, epochs=None), 30)
    for process in others:
        process.join(60)
        assert process.exitcode == 0
    cache = empty.cache
    entries = cache.entries()
    assert len(entries) == 3 * len(COLUMNS)
    assert {path.name for path in cache.folder.glob("*.arrow")} == {entry.file for entry in entries}
    assert list(cache.folder.glob(".*")) == []
    with empty.mix("support@v1..v3").loader(16, columns=COLUMNS, epochs=None) as loader:
        assert [plain(batch) for batch in islice(loader, 30)] == want
        assert loader.stats()["cache"] == {"columns": len(entries), "built": 0, "dropped": 0, "skipped": None}


# ---- nothing is left


def test_no_thread_and_no_file_is_left_after_close(empty: treering.Store) -> None:
    def handles() -> list[str]:
        gc.collect()
        links = []
        for fd in os.listdir("/proc/self/fd"):
            try:
                links.append(os.readlink(f"/proc/self/fd/{fd}"))
            except OSError:
                continue
        return sorted(one for one in links if str(empty.root) in one)

    def mapped() -> list[str]:
        return [line for line in Path("/proc/self/maps").read_text().splitlines() if str(empty.root) in line]

    before = set(threading.enumerate())
    open_before = handles()
    for _ in range(2):
        for options in ({}, {"prefetch": 4}, {"prefetch": 0}, {"cache": False}):
            with empty.mix("support@v1", "support@live").loader(8, epochs=None, columns=COLUMNS, **options) as loader:  # type: ignore[arg-type]
                for batch in islice(loader, 20):
                    del batch
            assert {one for one in threading.enumerate() if one.name.startswith("treering")} <= before
    del loader
    assert handles() == open_before
    assert mapped() == []
    assert list((empty.root / "cache").rglob(".*.tmp")) == []


def test_closing_ends_a_build_and_removes_its_temporary_files(
    empty: treering.Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache_module, "_BLOCK_ROWS", 1)
    with empty.mix("support@v1").loader(8, epochs=None, columns=COLUMNS) as loader:
        next(iter(loader))
        wait_for(lambda: bool(list((empty.root / "cache").rglob(".*.tmp"))))
    assert list((empty.root / "cache").rglob(".*.tmp")) == []
    assert empty.cache.entries() == []


def test_a_process_that_ends_while_building_removes_its_temporary_files(empty: treering.Store) -> None:
    script = (
        "import sys, time, treering\n"
        "from treering.mixing import cache\n"
        "cache._BLOCK_ROWS = 1\n"
        "store = treering.open(sys.argv[1])\n"
        "loader = store.mix('support@v1').loader(8, epochs=None)\n"
        "next(iter(loader))\n"
        "while not list((store.root / 'cache').rglob('.*.tmp')): time.sleep(0.001)\n"
    )
    subprocess.run([sys.executable, "-c", script, str(empty.root)], check=True, timeout=60)
    assert list((empty.root / "cache").rglob(".*.tmp")) == []


def test_the_cache_of_a_loader_goes_to_workers_without_its_thread(empty: treering.Store) -> None:
    import pickle

    cache = LoaderCache()
    assert json.dumps(pickle.loads(pickle.dumps(cache)).stats())
