"""Real Ray: the same functions as everywhere, the same digests, and nothing that is lost with a worker."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("ray")

import ray
from pydantic import BaseModel

import treering
from tests.training.tiny import make_base
from treering.capture import importer, recorder
from treering.engine import Engine, engine_of, find_engine
from treering.engine.base import find_task
from treering.engine.packed import pack, unpack
from treering.engine.ray import RayEngine
from treering.errors import InvalidRecordError, StoreError, UsageError
from treering.store.digest import ContentDigest, aligned

TASKS = "tests.engine.tasks"


@pytest.fixture(scope="module")
def engine() -> Iterator[RayEngine]:
    with RayEngine(2) as engine:
        yield engine
    assert not ray.is_initialized()


@pytest.fixture(autouse=True)
def _lines_are_few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks, commits and pieces are small, so that several workers have something to do."""
    monkeypatch.setattr(importer, "ROWS", 1_000)
    monkeypatch.setattr(recorder, "PACED_ROWS", 3_000)
    monkeypatch.setattr("treering.mixing.export._PIECE", 4_000)
    monkeypatch.setattr("treering.mixing.cache._WORKER_ROWS", 4_000)


def record(n: int) -> dict[str, Any]:
    return {
        "id": f"r{n}",
        "session_id": f"s{n // 7}",
        "ts": "2026-01-02T03:04:05Z",
        "text": f"where is parcel {n}, sent {n % 31} days ago?",
        "label": ("lost", "late", "here")[n % 3],
        "domain": "post",
    }


def write(folder: Path, rows: int, files: int = 3) -> list[str]:
    """Files of records with one line among them that is none."""
    folder.mkdir(exist_ok=True)
    paths = [folder / f"{n}.jsonl" for n in range(files)]
    for n, path in enumerate(paths):
        with path.open("w") as file:
            file.writelines(json.dumps(record(i)) + "\n" for i in range(n, rows, files))
            file.write("{not json\n")
    return [str(path) for path in paths]


def imported(where: Path, paths: list[str], engine: str | Engine | None) -> treering.Corpus:
    corpus = treering.open(where).create("support", "labelled")
    summary = corpus.capture_file(paths, engine=engine)
    assert summary.refused == len(paths)
    return corpus


def digest_of_live(corpus: treering.Corpus) -> str:
    """Of what live holds, in its order."""
    source = corpus.store.live(corpus.name)
    digest = ContentDigest(source.schema)
    for batch in aligned(source.scan()):
        digest.update(batch.select(source.schema.names))
    return digest.hexdigest()


def check_same(folder: Path, rows: int, engine: RayEngine) -> dict[str, Any]:
    """Import, compaction, sealing and export, here and by Ray. Gives digests and seconds."""
    paths = write(folder / "files", rows)
    told: dict[str, Any] = {}
    for name, workers in (("here", None), ("ray", engine)):
        began = time.monotonic()
        corpus = imported(folder / name, paths, workers or "local")
        took = [time.monotonic() - began]
        digests = [digest_of_live(corpus)]
        before = len(corpus.table.head().get_fragments())
        began = time.monotonic()
        done = corpus.compact(rows_per_fragment=2 * rows, engine=workers)
        took.append(time.monotonic() - began)
        assert done.fragments_before == before > done.fragments_after  # what the id index doesn't cover yet stays apart
        digests.append(digest_of_live(corpus))
        snapshot = corpus.snapshot()
        assert snapshot is not None
        digests.append(snapshot.digest)
        began = time.monotonic()
        out = corpus.store.export("support@v1", folder / f"{name}.jsonl", shard_rows=rows // 3 + 1, engine=workers)
        took.append(time.monotonic() - began)
        assert out.rows == rows
        digests += [file.sha256 for file in out.files]
        began = time.monotonic()
        assert all(one.ok for one in corpus.store.verify(engine=workers))
        took.append(time.monotonic() - began)
        told[name] = {"digests": digests, "seconds": [round(s, 1) for s in took]}
    return told


def test_import_compaction_and_export_have_the_same_digests_here_and_by_ray(tmp_path: Path, engine: RayEngine) -> None:
    told = check_same(tmp_path, 20_000, engine)
    assert told["here"]["digests"] == told["ray"]["digests"]


@pytest.mark.slow
@pytest.mark.timeout(1_200)
def test_a_million_records_have_the_same_digests_here_and_by_ray(
    tmp_path: Path, engine: RayEngine, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.undo()
    told = check_same(tmp_path, 1_000_000, engine)
    with capsys.disabled():
        for name, one in told.items():
            print(f"\n{name}: import, compaction, export, verification took {one['seconds']} s; {one['digests']}")
    assert told["here"]["digests"] == told["ray"]["digests"]


def test_an_import_by_an_engine_is_cut_alike_however_slow_a_step_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = write(tmp_path / "files", 24_000)

    def fragments(corpus: treering.Corpus) -> list[int]:
        return [one.count_rows() for one in corpus.table.head().get_fragments()]

    quick = imported(tmp_path / "a", paths, "local")
    monkeypatch.setattr(recorder, "FLUSH_AFTER_S", 0.0)
    monkeypatch.setattr(importer, "_SETTLE_S", 0.0)
    taken = importer.ImportJob.take_chunks

    def slowly(self: importer.ImportJob, *given: Any) -> None:
        time.sleep(0.05)
        taken(self, *given)

    monkeypatch.setattr(importer.ImportJob, "take_chunks", slowly)
    slow = imported(tmp_path / "b", paths, "local")
    assert digest_of_live(slow) == digest_of_live(quick)
    assert fragments(slow) == fragments(quick)  # joined after the same commits, whoever made them
    assert len(fragments(quick)) < 8


@pytest.mark.parametrize("form", ["records", "trl", "parquet", "hf"])
def test_an_export_by_ray_is_the_same_byte_for_byte(tmp_path: Path, engine: RayEngine, form: str) -> None:
    store = treering.open(tmp_path / "store")
    corpus = store.create("support", "labelled")
    with corpus.capture() as live:
        live.extend([record(n) for n in range(9_000)])
    corpus.snapshot()
    with corpus.capture() as live:
        live.extend([record(n) for n in range(9_000, 12_000)])
    corpus.annotate("r5", exclude=True)
    corpus.annotate("r4001", correction={"label": "found"})
    mix = treering.mix(store.load("support@v1"), store.live("support"), weights=[1, 2], seed=3)
    sources: list[Any] = ["support@v1", "support@live", mix.lock(batch_size=32, epochs=1)]
    for n, what in enumerate(sources):
        found = []
        for name, workers in (("here", None), ("ray", engine)):
            target = tmp_path / f"{form}-{n}-{name}" / "out.jsonl"
            target.parent.mkdir()
            if form == "parquet":
                target = target.with_suffix(".parquet")
            done = store.export(what, target, format=form, shard_rows=2_500, engine=workers)
            found.append(([(f.rows, f.sha256) for f in done.files], done.heldout, done.excluded, done.dropped))
        assert found[0] == found[1]
        assert len(found[0][0]) > 1


def test_records_that_a_format_cannot_hold_are_left_out_alike(tmp_path: Path, engine: RayEngine) -> None:
    store = treering.open(tmp_path / "store")
    corpus = store.create("calls", "chat")
    with corpus.capture() as live:
        for n in range(300):
            call = {"name": "look", "arguments": "{}" if n % 3 else "[1]"}
            said = {
                "role": "assistant",
                "content": "",
                "tool_calls": [{"id": "1", "type": "function", "function": call}],
            }
            live.add({"id": f"c{n}", "messages": [{"role": "user", "content": "hi"}, said]})
    found = []
    for name, workers in (("here", None), ("ray", engine)):
        target = tmp_path / f"{name}.jsonl"
        done = store.export("calls@live", target, format="trl", skip_unfit=True, shard_rows=90, engine=workers)
        found.append(([(f.rows, f.sha256) for f in done.files], done.left_out, done.problems))
    assert found[0] == found[1]
    assert found[0][1] == 100
    with pytest.raises(InvalidRecordError) as here:
        store.export("calls@live", tmp_path / "a.jsonl", format="trl")
    with pytest.raises(InvalidRecordError) as there:
        store.export("calls@live", tmp_path / "b.jsonl", format="trl", engine=engine)
    assert (there.value.message, there.value.problems, there.value.hint) == (
        here.value.message,
        here.value.problems,
        here.value.hint,
    )
    assert not (tmp_path / "b.jsonl").exists()


def test_verification_by_ray_finds_the_same_flipped_byte(tmp_path: Path, engine: RayEngine) -> None:
    corpus = treering.open(tmp_path / "store").create("support", "labelled")
    for part in range(3):
        with corpus.capture() as live:
            live.extend([record(n) for n in range(part * 2_000, part * 2_000 + 2_000)])
    snapshot = corpus.snapshot()
    assert snapshot is not None
    assert snapshot.digest
    clean = [corpus.store.verify(engine=workers) for workers in (None, engine)]
    assert clean[0] == clean[1]
    assert all(one.ok for one in clean[0])
    damaged = max((Path(corpus.uri) / "data").glob("*.lance"), key=lambda path: path.stat().st_size)
    data = bytearray(damaged.read_bytes())
    data[len(data) // 3] ^= 1
    damaged.write_bytes(data)
    found = [corpus.store.verify("support@v1", engine=workers) for workers in (None, engine)]
    assert found[0] == found[1]
    (finding,) = found[1][0].findings
    assert finding.file.endswith(damaged.name)
    assert finding.records


class Shortening:
    """An engine that runs tasks here, and loses a record of one column."""

    name, slots = "shortening", 2

    def map(self, task: str, each: Sequence[Mapping[str, Any]]) -> Iterator[bytes]:
        for arguments in each:
            result = find_task(task)(**arguments)
            if arguments.get("columns") == ["text"]:
                said, parts = unpack(result)
                result = pack({**said, "rows": said["rows"] - 1}, **{name: bytes(one) for name, one in parts.items()})
            yield result

    def stream(self, task: str, arguments: Mapping[str, Any], *, ahead: int = 4) -> Iterator[bytes]:
        raise AssertionError

    def check_reach(self, *uris: str) -> None: ...

    def close(self) -> None: ...


def test_columns_of_another_length_are_noticed(tmp_path: Path) -> None:
    corpus = imported(tmp_path / "store", write(tmp_path / "files", 600), None)
    snapshot = corpus.snapshot()
    assert snapshot is not None
    assert snapshot.digest
    found = corpus.verify("v1", engine=Shortening())
    assert [finding.what for finding in found.findings if "columns are of different lengths: 599, 600" in finding.what]


def test_a_snapshot_that_ray_certifies_first_is_certified_as_here(tmp_path: Path, engine: RayEngine) -> None:
    corpus = treering.open(tmp_path / "here").create("support", "labelled")
    with corpus.capture() as live:
        live.extend([record(n) for n in range(3_000)])
    corpus.snapshot()
    shutil.copytree(tmp_path / "here", tmp_path / "there")
    made = []
    for name, workers in (("here", None), ("there", engine)):
        store = treering.open(tmp_path / name)
        (one,) = store.verify("support@v1", engine=workers)
        assert one.certified_now
        made.append(store.corpus("support").snapshots()[0].certificate.model_dump(exclude={"created_at"}))
    assert made[0] == made[1]


def test_columns_that_ray_decoded_are_the_same_files(tmp_path: Path, engine: RayEngine) -> None:
    store = treering.open(tmp_path / "store")
    corpus = store.create("support", "labelled")
    with corpus.capture() as live:
        live.extend([record(n) for n in range(9_000)])
    corpus.snapshot()
    columns = ["id", "text", "ts", "label"]
    made = []
    for workers in (None, engine):
        made.append(store.cache.build(store.load("support@v1"), columns, engine=workers))
        store.cache.drop()
    assert len(made[0]) == 4
    assert made[0] == made[1]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(make_base(tmp_path_factory.mktemp("base") / "tiny"))


def test_features_and_scores_by_ray_are_the_same(tmp_path: Path, base: str, engine: RayEngine) -> None:
    store = treering.open(tmp_path / "store")
    corpus = store.create("support", "labelled", heldout=0.3)
    for part in range(2):
        with corpus.capture() as live:
            live.extend([record(n) for n in range(part * 120, part * 120 + 120)])
        corpus.snapshot()
    config = treering.TrainConfig(base=base, precision="fp32", max_tokens=32, steps=4, batch_size=8)
    files = []
    for workers in (None, engine):
        made = treering.cache_features(store, "support@v1..v2", config, engine=workers)
        assert (made.texts, made.encoded) == (240, 240)
        folder = store.cache_dir / "activations"
        files.append({str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*.safetensors")})
        shutil.rmtree(folder)
    assert files[0] == files[1]
    assert files[0]
    run = treering.train(store, store.mix("support@v1", "support@v2", weights=[1, 1]), config)
    for metric in ("macro_f1", "loss"):
        here = treering.evaluate(store, run.adapter.ref, metric=metric, fresh=True)
        there = treering.evaluate(store, run.adapter.ref, metric=metric, fresh=True, engine=engine)
        assert there.scores == here.scores
        assert len(there.scores) == 2
    matrix = treering.score_matrix(store, "support", adapter=run.adapter.ref, fresh=True, engine=engine)
    same = treering.score_matrix(store, "support", adapter=run.adapter.ref, fresh=True)
    assert np.array_equal(matrix.values, same.values)


# --- what goes wrong -------------------------------------------------------------------------------------------------


def test_errors_come_over_whole(engine: RayEngine) -> None:
    with pytest.raises(UsageError, match="too many cooks") as cooks:
        list(engine.stream(f"{TASKS}:fails", {"how": "usage"}))
    assert (cooks.value.code, cooks.value.hint) == ("cooks", "send some home")
    with pytest.raises(InvalidRecordError) as invalid:
        list(engine.stream(f"{TASKS}:fails", {"how": "invalid"}))
    assert [problem.loc for problem in invalid.value.problems] == [("a", 1)]
    results = engine.stream(f"{TASKS}:fails", {"how": "else"})
    assert next(results) == b"first"
    with pytest.raises(StoreError, match=r"tests\.engine\.tasks:fails failed: ValueError: a mistake") as told:
        next(results)
    assert told.value.code == "task-failed"
    with pytest.raises(StoreError, match="can't find the task"):
        list(engine.map("tests.engine.tasks:nothing", [{}]))


def test_results_are_in_order_and_few_wait(engine: RayEngine, tmp_path: Path) -> None:
    made = engine.map(f"{TASKS}:square", [{"x": x, "wait_s": 0.2 if x == 0 else 0.0} for x in range(6)])
    assert [int(one.split()[0]) for one in made] == [x * x for x in range(6)]
    note = tmp_path / "note"
    results = engine.stream(f"{TASKS}:count", {"upto": 100, "note": str(note)}, ahead=3)
    assert next(results) == b"0"
    time.sleep(0.5)
    assert len(note.read_text().split()) <= 5
    assert [int(one) for one in results] == list(range(1, 100))


def test_a_stream_that_is_closed_stops_its_task(engine: RayEngine, tmp_path: Path) -> None:
    note = tmp_path / "pid"
    results: Any = engine.stream(f"{TASKS}:forever", {"note": str(note)})
    assert next(results) == b"begun"
    worker = int(note.read_text())
    results.close()
    until = time.monotonic() + 60
    while Path(f"/proc/{worker}").exists() and time.monotonic() < until:
        time.sleep(0.05)
    assert not Path(f"/proc/{worker}").exists()


def test_a_worker_that_dies_is_said_and_a_call_is_made_again(engine: RayEngine, tmp_path: Path) -> None:
    assert list(engine.map(f"{TASKS}:dies_once", [{"note": str(tmp_path / "note")}])) == [b"lived"]
    with pytest.raises(StoreError, match=r"the worker of tests\.engine\.tasks:dies died") as died:
        list(engine.stream(f"{TASKS}:dies", {"how": "kill"}))  # what it gave right before may be gone with it
    assert died.value.code == "worker-died"


def kill_workers(task: str) -> int:
    """Kill Ray's processes that are at a task; Ray has them bear its name."""
    killed = 0
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                title = (folder / "cmdline").read_bytes()
            except OSError:
                continue
            if title.startswith(f"ray::{task}".encode()):
                os.kill(int(folder.name), signal.SIGKILL)
                killed += 1
    return killed


def test_an_import_whose_worker_is_killed_loses_nothing(tmp_path: Path, engine: RayEngine) -> None:
    paths = write(tmp_path / "files", 20_000, files=1)
    corpus = treering.open(tmp_path / "store").create("support", "labelled")
    killed = []

    def kill_once(done: int) -> None:
        if not killed and done >= 2_000:
            killed.append(kill_workers("treering.capture.chunks:chunks_of_file"))

    with pytest.raises(StoreError) as died:
        corpus.capture_file(paths[0], engine=engine, progress=kill_once)
    assert died.value.code == "worker-died"
    assert killed == [1]
    again = corpus.capture_file(paths[0], engine=engine)
    assert again.stored + again.duplicates + again.skipped >= 20_000
    assert sorted(corpus.store.live("support").to_table(["id"]).column(0).to_pylist()) == sorted(
        f"r{n}" for n in range(20_000)
    )
    assert all(one.ok for one in corpus.store.verify(engine=engine))


class Dying:
    """An engine whose compactions are killed when they have written all they were to write."""

    name = "dying"

    def __init__(self, engine: RayEngine) -> None:
        self._engine = engine
        self.slots = engine.slots
        self.stream, self.check_reach, self.close = engine.stream, engine.check_reach, engine.close

    def map(self, task: str, each: Sequence[Mapping[str, Any]]) -> Iterator[bytes]:
        assert task == "treering.store.table:rewrite"
        return self._engine.map(f"{TASKS}:rewrites_and_dies", each)


def test_a_compaction_whose_workers_are_killed_changes_nothing(tmp_path: Path, engine: RayEngine) -> None:
    corpus = imported(tmp_path / "store", write(tmp_path / "files", 9_000), "local")
    before, version = digest_of_live(corpus), corpus.table.head().version
    with pytest.raises(StoreError) as died:
        corpus.compact(rows_per_fragment=100_000, engine=Dying(engine))
    assert died.value.code == "worker-died"
    assert (digest_of_live(corpus), corpus.table.head().version) == (before, version)
    assert all(one.ok for one in corpus.store.verify())
    assert corpus.compact(rows_per_fragment=100_000, engine=engine).fragments_after == 1
    assert digest_of_live(corpus) == before
    assert all(one.ok for one in corpus.store.verify())


def test_what_no_worker_can_import_is_refused(tmp_path: Path, engine: RayEngine) -> None:
    class Ticket(BaseModel):
        text: str

    corpus = treering.open(tmp_path / "store").create("tickets", Ticket)
    path = tmp_path / "rows.jsonl"
    path.write_text('{"text": "a"}\n')
    with pytest.raises(UsageError, match="Ticket isn't in a module that a worker can import") as told:
        corpus.capture_file(str(path), engine=engine)
    assert told.value.code == "not-elsewhere"
    with path.open("rb") as stream, pytest.raises(UsageError, match="stream of this process"):
        corpus.capture_file(stream, engine=engine)
    assert corpus.capture_file(str(path)).stored == 1


def test_a_path_of_one_machine_is_refused_on_a_cluster_of_two(
    tmp_path: Path, engine: RayEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    corpus = imported(tmp_path / "store", write(tmp_path / "files", 10), None)
    monkeypatch.setattr(ray, "nodes", lambda: [{"Alive": True}, {"Alive": True}, {"Alive": False}])
    with pytest.raises(UsageError, match="this Ray cluster has 2 machines") as told:
        corpus.compact(engine=engine)
    assert told.value.code == "not-shared"
    with pytest.raises(UsageError, match="2 machines"):
        corpus.capture_file(str(tmp_path / "files" / "0.jsonl"), engine=engine)
    engine.check_reach("s3://bucket/store")


def test_a_worker_with_another_treering_is_refused(engine: RayEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(treering, "__version__", "9.9.9")
    with pytest.raises(StoreError, match=r"9\.9\.9 sent it a task") as told:
        list(engine.map(f"{TASKS}:square", [{"x": 1}]))
    assert told.value.code == "other-version"


def test_without_ray_the_line_that_installs_it_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UsageError, match=r"pip install 'treering\[ray\]'"):
        find_engine("ray")
    monkeypatch.setattr(sys, "version_info", (3, 14, 0))
    with pytest.raises(UsageError, match=r"no Ray for Python 3\.14"):
        find_engine("ray")
    with pytest.raises(UsageError, match="no engine 'spark'"), engine_of("spark"):
        pass


def test_a_cluster_that_is_not_there_is_said_within_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(**_: Any) -> None:
        raise AssertionError("Ray tries for minutes")

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", never)
    monkeypatch.setattr("treering.engine.ray._CONNECT_S", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        for named, why in ((address, "nothing answered within"), ("127.0.0.1:1", "refused")):
            monkeypatch.setenv("RAY_ADDRESS", named)
            with pytest.raises(StoreError, match=f"can't reach Ray at {named}: .*{why}") as told:
                RayEngine().check_reach("s3://bucket/store")
            assert told.value.code == "no-worker"
            assert "RAY_AUTH_TOKEN" in (told.value.hint or "")


def test_a_cluster_that_asks_for_a_token_is_told_from_one_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(**_: Any) -> None:
        raise ConnectionError("Failed to connect") from RuntimeError("ray.exceptions.AuthenticationError: RPC error")

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", refused)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with pytest.raises(StoreError, match="it asks for a token") as told:
        RayEngine().check_reach()
    assert "RAY_AUTH_MODE=token" in (told.value.hint or "")


def run(script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """A process of its own, whose Ray is its own."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    environment.pop("RAY_ADDRESS", None)
    return subprocess.run(
        [sys.executable, "-c", script, *arguments], env=environment, capture_output=True, text=True, timeout=110
    )


GONE = """
import os, signal, subprocess, sys, threading, time
import treering
import treering.engine.ray as seam

def mine(*_): pass

def kept():
    return [signal.getsignal(signal.SIGTERM) is mine, sys.excepthook is hook, dict(os.environ) == environment]

signal.signal(signal.SIGTERM, mine)
hook, environment = sys.excepthook, dict(os.environ)
seam._TICK_S, seam._GONE_S = 0.5, 1.0
engine = seam.RayEngine(1)
engine.check_reach(".")
print(kept())
signal.signal(signal.SIGTERM, lambda which, _: sys.exit(128 + which))
threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGTERM)).start()
try:
    next(engine.map("tests.engine.tasks:square", [{"x": 1, "wait_s": 100.0}]))
except SystemExit as exc:
    print(exc.code)
signal.signal(signal.SIGTERM, mine)
(head,) = subprocess.check_output(["pgrep", "-P", str(os.getpid()), "gcs_server"]).split()
results = engine.map("tests.engine.tasks:square", [{"x": 1, "wait_s": 100.0}])
threading.Timer(1.0, os.kill, (int(head), signal.SIGKILL)).start()
try:
    next(results)
except treering.errors.StoreError as exc:
    print(exc.code, exc.message)
engine.close()
print(kept())
"""


@pytest.mark.timeout(120)
def test_a_cluster_that_goes_while_a_task_is_awaited_is_said_and_the_process_is_left_as_it_was() -> None:
    done = run(GONE)
    kept = "[True, True, True]"
    gone = "no-worker the Ray cluster of tests.engine.tasks:square can't be reached any more"
    assert done.stdout.splitlines() == [kept, "143", gone, kept], done.stderr


ENDED = """
import os, signal, sys, threading, time
import ray

def end():
    while not ray.is_initialized():
        time.sleep(0.01)
    time.sleep(1)
    os.kill(os.getpid(), signal.SIGTERM)

threading.Thread(target=end, daemon=True).start()
from treering.cli import main
sys.argv[0] = "treering"
main()
"""


@pytest.mark.timeout(120)
def test_sigterm_ends_an_import_by_ray_as_any_other(tmp_path: Path) -> None:
    paths = write(tmp_path / "files", 60_000, files=1)
    treering.open(tmp_path / "store").create("support", "labelled")
    done = run(ENDED, "capture", "support", *paths, "--store", str(tmp_path / "store"), "--engine", "ray")
    assert done.returncode == 128 + signal.SIGTERM, done.stderr
    assert "the same command goes on" in done.stderr
    assert "***" not in done.stderr  # the stack that Ray's own handler prints


def test_lance_ray_reads_a_snapshot_by_its_name(tmp_path: Path, engine: RayEngine) -> None:
    lance_ray = pytest.importorskip("lance_ray")
    corpus = imported(tmp_path / "store", write(tmp_path / "files", 500), None)
    corpus.snapshot()
    assert engine.slots == 2
    read = lance_ray.read_lance(corpus.uri, columns=["id"], dataset_options={"version": "v1"})
    assert sorted(row["id"] for row in read.take_all()) == sorted(f"r{n}" for n in range(500))
