"""Imports whose files are read by workers: which ones are, that nothing is lost with a worker, and none stays behind.

That every other claim about imports holds in workers too is in `test_imports`: each runs both ways.
"""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import fsspec
import pytest
from pydantic import BaseModel, field_validator

import treering
from tests.engine import tasks
from tests.waiting import wait_for
from treering.capture import importer as module
from treering.capture.chunks import Order, pack, unpack
from treering.capture.importer import ImportSummary, import_file
from treering.capture.positions import positions
from treering.engine import LocalEngine, local
from treering.errors import InvalidRecordError, StoreError, TreeringError, UsageError
from treering.schema import RecordType


class Watched(LocalEngine):
    """Workers of this machine; knows what they were asked to read."""

    def __init__(self, slots: int | None = 2) -> None:
        super().__init__(slots)
        self.asked: list[str] = []

    def stream(self, task: str, arguments: Mapping[str, Any], *, ahead: int = 4) -> Iterator[bytes]:
        self.asked += [source for source, _ in arguments.get("files", ())] or [arguments["source"]]
        return super().stream(task, arguments, ahead=ahead)

    @classmethod
    def of_this_machine(cls) -> LocalEngine:
        return cls(None)

    @property
    def pids(self) -> list[int]:
        return [one.process.pid for one in (*self._idle, *self._busy)]


class Remark(BaseModel):
    """A record type of somebody's own, with a rule that Arrow doesn't know."""

    remark: str

    @field_validator("remark")
    @classmethod
    def _is_short(cls, value: str) -> str:
        if len(value) > 20:
            raise ValueError("at most 20 characters")
        return value


class Deadly(BaseModel):
    """A record type whose check kills whoever reads a path, unless that file is there: then it was killed before."""

    remark: str

    @field_validator("remark")
    @classmethod
    def _kills(cls, value: str) -> str:
        if value.startswith("/") and not Path(value).exists():
            Path(value).touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return value


@pytest.fixture
def engine() -> Iterator[Watched]:
    with Watched() as engine:
        yield engine


def write(path: Path, rows: Sequence[Any]) -> str:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows), "utf-8")
    return str(path)


def labelled(*numbers: int, **more: Any) -> list[dict[str, Any]]:
    return [{"text": f"text {i}", "label": f"l{i % 3}", **more} for i in numbers]


def rows_of(corpus: treering.Corpus) -> list[tuple[str, str]]:
    table = corpus.store.live(corpus.name).to_table(["id", "text"])
    return sorted(zip(table.column(0).to_pylist(), table.column(1).to_pylist(), strict=True))


def said(done: ImportSummary) -> Any:
    return [{**vars(one), "error": one.error and (type(one.error), str(one.error))} for one in done.files], [
        (done.read, done.stored, done.duplicates, done.refused, done.erased, done.annotations, done.redacted)
    ]


# --- what is read by workers -------------------------------------------------------------------------------------


def test_only_files_that_are_large_enough_together_are_read_by_workers(
    support: treering.Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[Watched] = []

    def engine() -> Watched:
        made.append(Watched())
        return made[-1]

    monkeypatch.setattr(module, "LocalEngine", engine)
    paths = [write(tmp_path / f"{n}.jsonl", labelled(*range(n * 100, n * 100 + 50))) for n in range(3)]
    size = os.stat(paths[0]).st_size
    monkeypatch.setattr(module, "_WORKERS_FROM", 2 * size)
    support.capture_file(paths[0])
    assert made == []
    support.capture_file(paths)
    assert [one.asked for one in made] == [paths]
    with monkeypatch.context() as frozen:
        frozen.setattr(sys, "frozen", True, raising=False)  # another process would be this whole program once more
        support.capture_file(paths)
    assert len(made) == 1
    monkeypatch.setattr(local, "_cores", lambda: 1)  # nothing goes on beside anything
    monkeypatch.setattr(module, "LocalEngine", Watched.of_this_machine)
    monkeypatch.setattr(Watched, "stream", None)
    support.capture_file(paths)
    assert len(rows_of(support)) == 150


def test_what_only_this_process_has_is_read_here(store: treering.Store, tmp_path: Path, engine: Watched) -> None:
    class Own(BaseModel):
        remark: str

    corpus, own = store.create("notes", Remark), store.create("own", Own)
    text = b'{"remark": "short"}\n{"remark": "so long that it breaks the rule"}\n'
    with fsspec.open("memory://workers/a.jsonl", "wb") as file:
        file.write(text)
    path = tmp_path / "a.jsonl"
    path.write_bytes(text)
    assert import_file(corpus, "memory://workers/a.jsonl", engine=engine).stored == 1
    assert import_file(corpus, io.BytesIO(text), engine=engine).stored == 1
    assert import_file(own, str(path), engine=engine).stored == 2
    assert engine.asked == []
    done = import_file(corpus, str(path), engine=engine)  # whose rule a worker finds by its module
    assert engine.asked == [str(path)]
    assert (done.stored, done.refused) == (1, 1)
    assert "at most 20 characters" in str(done.problems[0][1][0])


def test_a_url_is_opened_by_the_worker_as_it_would_be_here(
    support: treering.Corpus, tmp_path: Path, engine: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "a.jsonl", labelled(1, 2))
    monkeypatch.setitem(fsspec.config.conf, "dir", {"path": str(tmp_path)})
    assert import_file(support, "dir://a.jsonl", engine=engine).stored == 2
    assert import_file(support, f"local://{tmp_path}/a.jsonl", engine=engine).stored == 2
    assert len(engine.asked) == 2


def test_what_is_followed_is_read_here(support: treering.Corpus, tmp_path: Path, engine: Watched) -> None:
    with pytest.raises(UsageError, match="read here"):
        support.capture_file(write(tmp_path / "a.jsonl", labelled(1)), follow=True, engine=engine)


def test_a_worker_loads_neither_store_nor_trainer(support: treering.Corpus, tmp_path: Path) -> None:
    with Watched(1) as engine:
        assert import_file(support, write(tmp_path / "a.jsonl", labelled(1)), engine=engine).stored == 1
        (loaded,) = LocalEngine.stream(engine, f"{tasks.__name__}:loaded", {})
        assert len(engine.pids) == 1
    modules = loaded.decode().split()
    assert "treering.capture.chunks" in modules
    assert not {"lance", "lancedb", "torch", "transformers", "treering.capture.recorder"} & set(modules)


# --- the same as here --------------------------------------------------------------------------------------------


def test_several_files_become_the_same_in_the_same_order(
    store: treering.Store, tmp_path: Path, engine: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "ROWS", 1_000)
    paths = [write(tmp_path / "a.jsonl", labelled(*range(5_000)))]
    paths += [write(tmp_path / f"{n}.jsonl", [*labelled(n, n), "{broken", *labelled(7, id="same")]) for n in range(4)]
    paths += [str(tmp_path / "none.jsonl"), write(tmp_path / "odd.jsonl", [{"odd": 1}]), write(tmp_path / "empty", [])]
    write(tmp_path / "0.jsonl", [*labelled(8, id="same"), {"text": "x", "label": 3}])  # whoever comes first has the id
    here, there = store.create("here", "labelled"), store.create("there", "labelled")
    shown: list[int] = []
    first = import_file(here, paths)
    second = import_file(there, paths, engine=engine, progress=shown.append)
    assert said(second) == said(first)
    assert rows_of(there) == rows_of(here)
    assert second.conflicts == first.conflicts == ["same"] * len(first.conflicts)
    waiting, waiting_too = (
        sorted((q.source, str(q.record), q.problems) for q in corpus.quarantine() if q.source)
        for corpus in (here, there)
    )
    assert len(waiting) == 4
    assert waiting_too == waiting
    assert shown == sorted(shown)
    assert 1_000 <= shown[0] < 3_000
    assert len(set(engine.pids)) == 2  # that went from file to file


def test_redaction_and_erasure_reach_what_workers_read(store: treering.Store, tmp_path: Path, engine: Watched) -> None:
    corpus = store.create("private", "labelled", redact=["email"])
    path = write(
        tmp_path / "a.jsonl",
        [
            *({"id": f"r{i}", "text": f"write to a{i}@example.org", "label": "l"} for i in range(4)),
            {"id": "r9", "text": "from b@example.org", "label": 4},
        ],
    )
    done = import_file(corpus, path, engine=engine)
    assert (done.stored, done.refused, done.redacted) == (4, 1, {"[EMAIL]": 5})
    assert "example.org" not in str(corpus.quarantine()) + str(rows_of(corpus))
    corpus.erase(ids=["r2"], reason="asked")
    again = import_file(corpus, path, engine=engine)
    assert (again.stored, again.duplicates, again.erased) == (0, 3, 1)


def test_what_doesnt_fit_comes_over_whole(support: treering.Corpus, tmp_path: Path, engine: Watched) -> None:
    long = "x" * (40 << 20)
    rows = [
        *labelled(1),
        {"text": long, "label": 1},
        '{"text": "\\ud800", "label": "l"}',
        {"text": "t", "label": "l", "meta": {"deep": [[1.5, None]]}, "odd \N{SNOWMAN}": [{"a": 1}]},
    ]
    done = import_file(support, write(tmp_path / "a.jsonl", rows), engine=engine)
    assert (done.stored, done.refused) == (1, 3)
    waiting = {int(q.source.rpartition(":")[2]): q.record for q in support.quarantine() if q.source}
    assert waiting[2] == {"text": long, "label": 1, "id": waiting[2]["id"]}
    assert waiting[4]["odd \N{SNOWMAN}"] == [{"a": 1}]


def test_a_chunk_is_the_same_after_the_pipe(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", [*labelled(*range(30)), "{", {"text": "t", "label": 1}])
    for chunk in Order(path, RecordType.of("labelled"), "/a", rows=10).chunks():
        (again,) = unpack(pack([chunk]))
        assert vars(again) == vars(chunk)


# --- when something goes wrong -----------------------------------------------------------------------------------


@pytest.mark.parametrize("sharing", [1, 2])
def test_a_worker_that_is_killed_loses_nothing_and_the_same_import_goes_on(
    support: treering.Corpus, tmp_path: Path, engine: Watched, monkeypatch: pytest.MonkeyPatch, sharing: int
) -> None:
    monkeypatch.setattr(module, "_WORKERS_FROM", 1)
    monkeypatch.setattr(module, "LocalEngine", lambda: engine)
    monkeypatch.setattr(module, "_SETTLE_S", 0.0)
    monkeypatch.setattr(module, "ROWS", 1_000)
    path = write(tmp_path / "a.jsonl", labelled(*range(8_000)))
    killed: list[int] = []

    def kill(done: int) -> None:
        if done >= 2_000 and not killed:
            killed.append(engine.pids[-1])
            os.kill(killed[0], signal.SIGKILL)

    with pytest.raises(
        StoreError, match=r"who read .*a\.jsonl died some lines after line [2-7],[0-9]{3}: .*signal 9 \(SIGKILL\)"
    ) as caught:
        import_file(support, path, engine=engine if sharing == 1 else None, progress=kill)
    assert len(engine.asked) == sharing
    assert caught.value.code == "worker-died"
    there = len(rows_of(support))
    assert 2_000 <= there < 8_000
    monkeypatch.setattr(module, "LocalEngine", Watched)
    done = import_file(support, path)
    assert (done.skipped, done.stored, done.duplicates) == (there, 8_000 - there, 0)


def test_small_files_whose_worker_dies_are_read_one_by_one_and_nothing_is_lost(
    store: treering.Store, tmp_path: Path, engine: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    corpus = store.create("deadly", Deadly)
    monkeypatch.setattr(module, "_WORKERS_FROM", 1)
    monkeypatch.setattr(module, "LocalEngine", lambda: engine)
    monkeypatch.setattr(module, "_TOGETHER", 5)
    rows = [[{"remark": f"{n}"}, "{broken", {"remark": f"{n + 100}"}] for n in range(20)]
    rows[7][2] = {"remark": f"{tmp_path}/once"}
    paths = [write(tmp_path / f"{n:02}.jsonl", some) for n, some in enumerate(rows)]
    done = import_file(corpus, paths)
    assert [(one.read, one.found, one.refused, one.error) for one in done.files] == [(3, 2, 1, None)] * 20
    assert (done.read, done.refused) == (60, 20)
    assert done.stored == len(store.live("deadly")) == 40
    assert sorted(engine.asked) == sorted([*paths, *paths[5:10]])


def test_small_files_of_all_kinds_are_read_once_by_workers_that_end_well(
    store: treering.Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    monkeypatch.setattr(module, "_WORKERS_FROM", 0)
    made: list[Watched] = []
    monkeypatch.setattr(module, "LocalEngine", lambda: made.append(Watched()) or made[-1])
    monkeypatch.setattr(module, "_TOGETHER", 4)
    ended: list[str] = []
    decoded = local.decode_error
    monkeypatch.setattr(local, "decode_error", lambda data: (ended.append(str(data)), decoded(data))[1])
    kinds = [
        write(tmp_path / "a.jsonl", labelled(1, 2)),
        write(tmp_path / "empty.jsonl", []),
        write(tmp_path / "odd.jsonl", [{"odd": 1}]),
        str(tmp_path / "table.parquet"),
        str(tmp_path / "list.json"),
        str(tmp_path / "none.jsonl"),
        str(tmp_path / "again.parquet"),
    ]
    for number, path in ((5, kinds[3]), (6, kinds[6])):
        pq.write_table(pa.Table.from_pylist([{"id": f"p{number}", "text": "t", "label": "l"}]), path)
    Path(kinds[4]).write_text(json.dumps(labelled(3, 4)))
    corpora = [store.create(name, "labelled") for name in ("here", "there")]
    with monkeypatch.context() as alone:
        alone.setattr(module, "_small", lambda *_: None)
        first = import_file(corpora[0], kinds)
    second = import_file(corpora[1], kinds)
    assert said(second) == said(first)
    assert (second.stored, second.duplicates) == (6, 0)
    assert rows_of(corpora[0]) == rows_of(corpora[1])
    assert sorted(made[1].asked) == sorted(one for one in kinds if Path(one).exists())
    assert [one for one in ended if "task-failed" in one] == []


def test_a_small_file_whose_import_was_cut_short_goes_on_alone_where_it_was(
    support: treering.Corpus, tmp_path: Path, engine: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = [write(tmp_path / f"{n}.jsonl", labelled(*range(n * 1_000, n * 1_000 + 300))) for n in range(3)]
    monkeypatch.setattr(module, "ROWS", 100)
    monkeypatch.setattr(module, "_SETTLE_S", 0.0)

    def stop(done: int) -> None:
        if done >= 100:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        import_file(support, paths[1], progress=stop)
    there = len(rows_of(support))
    assert 100 <= there < 300
    done = import_file(support, paths)
    assert [(one.read, one.skipped) for one in done.files] == [(300, 0), (300, there), (300, 0)]
    assert (done.stored, done.duplicates) == (900 - there, 0)
    assert positions(support) == []


def test_a_mistake_in_a_records_own_rules_ends_the_import_by_name(
    store: treering.Store, tmp_path: Path, engine: Watched
) -> None:
    corpus = store.create("notes", Remark)
    (tmp_path / "a.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(StoreError, match="as Parquet"):
        import_file(corpus, str(tmp_path / "a.parquet"), engine=engine)
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"remark": ["a"], "more": [1]}), tmp_path / "b.parquet")
    with pytest.raises(InvalidRecordError, match=r"columns of .*b\.parquet don't fit") as caught:
        import_file(corpus, str(tmp_path / "b.parquet"), engine=engine)
    assert caught.value.problems[0].loc == ("more",)
    with pytest.raises(TreeringError, match="there is no file"):
        import_file(corpus, str(tmp_path / "c.parquet"), engine=engine)


COMMAND = """
import sys, time
from treering.capture import importer
from treering.engine import local

importer._WORKERS_FROM, importer.ROWS = 0, 1_000
local._cores = lambda: 2
store = importer.ImportJob._store

def slowly(self, taken):
    store(self, taken)
    time.sleep(0.2)

importer.ImportJob._store = slowly
from treering.cli.__main__ import main

main()
"""


@pytest.mark.parametrize("which", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_command_that_is_stopped_leaves_no_worker_and_loses_nothing(
    support: treering.Corpus, tmp_path: Path, which: signal.Signals
) -> None:
    path = write(tmp_path / "a.jsonl", labelled(*range(20_000)))
    script = tmp_path / "script.py"
    script.write_text(COMMAND)
    command = [sys.executable, str(script), "capture", "support", path, "--store", support.store.uri, "--json"]
    process = subprocess.Popen(
        command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    wait_for(lambda: len(support.store.live("support")) >= 2_000)
    workers = [int(pid) for pid in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()]
    assert len(workers) == 2
    if which == signal.SIGINT:
        os.killpg(process.pid, which)  # as a terminal does
    else:
        process.send_signal(which)
    _, wrong = process.communicate(timeout=60)
    assert process.returncode == (-which if which == signal.SIGKILL else 128 + which)
    wait_for(lambda: not any(Path(f"/proc/{pid}/exe").exists() for pid in workers))
    assert "Traceback" not in wrong
    there = len(rows_of(support))
    assert 2_000 <= there < 20_000
    done = support.capture_file(path)
    assert (done.read, done.stored + done.duplicates + done.skipped) == (20_000, 20_000)
    # A signal may come when a chunk is on disk and not yet counted: that one is read again, and known.
    missed = 0 if which == signal.SIGKILL else there - done.skipped
    assert 0 <= missed <= 1_008
    assert done.duplicates >= missed
    assert which != signal.SIGKILL or done.skipped == 0
    assert len(rows_of(support)) == 20_000


def test_a_pipe_with_a_name_is_read_here(support: treering.Corpus, tmp_path: Path, engine: Watched) -> None:
    read, write_ = os.pipe()
    os.write(write_, b'{"text": "t", "label": "l"}\n')
    os.close(write_)
    assert Order(f"/dev/fd/{read}", RecordType.of("labelled"), None).arguments() is None
    os.close(read)
