"""Workers of this machine: results whole and in order, errors by name, and no process that stays."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

import treering
from tests.waiting import wait_for
from treering.engine import LocalEngine
from treering.engine.base import name_of_class
from treering.errors import InvalidRecordError, StoreError, TreeringError, UsageError

TASKS = "tests.engine.tasks"


@pytest.fixture
def engine() -> Iterator[LocalEngine]:
    with LocalEngine(2) as engine:
        yield engine


def is_there(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


def test_results_come_whole_and_in_order(engine: LocalEngine) -> None:
    assert list(engine.stream(f"{TASKS}:count", {"upto": 100})) == [str(i).encode() for i in range(100)]
    assert list(engine.stream(f"{TASKS}:large", {"size": 3 << 20})) == [bytes([i]) * (3 << 20) for i in range(4)]
    assert list(engine.stream(f"{TASKS}:large", {"size": 0})) == [b""] * 4


def test_a_task_is_never_further_ahead_than_it_may_be(engine: LocalEngine, tmp_path: Path) -> None:
    note = tmp_path / "note"

    def made() -> int:
        return len(note.read_text().split()) if note.exists() else 0

    results = engine.stream(f"{TASKS}:count", {"upto": 50, "note": str(note)}, ahead=3)
    wait_for(lambda: made() == 3)
    time.sleep(0.2)
    assert made() == 3
    for taken in range(1, 6):
        assert next(results) == str(taken - 1).encode()
        wait_for(lambda taken=taken: made() == taken + 3)  # type: ignore[misc]
        time.sleep(0.05)
        assert made() == taken + 3
    results.close()  # type: ignore[attr-defined]


def test_what_a_task_prints_is_no_result(engine: LocalEngine, capfd: pytest.CaptureFixture[str]) -> None:
    assert list(engine.stream(f"{TASKS}:chatty", {})) == [b"one"]
    said = capfd.readouterr()
    assert (said.out, sorted(said.err.splitlines())) == ("", ["neither is this", "this is no result"])


def test_an_error_comes_over_whole(engine: LocalEngine) -> None:
    results = engine.stream(f"{TASKS}:fails", {"how": "usage"})
    assert next(results) == b"first"
    with pytest.raises(UsageError, match="too many cooks") as caught:
        next(results)
    assert (caught.value.code, caught.value.hint) == ("cooks", "send some home")
    assert "tasks.py" in caught.value.__notes__[0]
    assert list(results) == []
    with pytest.raises(InvalidRecordError) as invalid:
        list(engine.stream(f"{TASKS}:fails", {"how": "invalid"}))
    assert [str(one) for one in invalid.value.problems] == ["a.1: expected b [bad-value]"]
    with pytest.raises(UsageError) as odd:
        list(engine.stream(f"{TASKS}:fails", {"how": "odd"}))
    assert type(odd.value) is UsageError
    assert odd.value.code == "odd"


@pytest.mark.parametrize(("how", "said"), [("other", "ValueError: a mistake"), ("interrupt", "KeyboardInterrupt")])
def test_a_mistake_of_a_task_names_task_and_cause_and_the_worker_goes_on(
    engine: LocalEngine, how: str, said: str
) -> None:
    with pytest.raises(StoreError, match=rf"the task {TASKS}:fails failed: {said}") as caught:
        list(engine.stream(f"{TASKS}:fails", {"how": how}))
    assert caught.value.code == "task-failed"
    with pytest.raises(StoreError, match=r"can't find the task treering\.nowhere:x"):
        list(engine.stream("treering.nowhere:x", {}))
    (pid,) = {one.split()[1] for one in engine.map(f"{TASKS}:square", [{"x": 1}])}
    assert pid != str(os.getpid()).encode()


@pytest.mark.parametrize(("how", "said"), [("kill", r"signal 9 \(SIGKILL\)"), ("exit", "exit code 7")])
def test_a_worker_that_dies_is_an_error_that_says_of_what(engine: LocalEngine, how: str, said: str) -> None:
    results = engine.stream(f"{TASKS}:dies", {"how": how})
    with pytest.raises(StoreError, match=said) as caught:
        list(results)
    assert caught.value.code == "worker-died"
    assert f"{TASKS}:dies" in caught.value.message
    assert list(engine.stream(f"{TASKS}:count", {"upto": 1})) == [b"0"]  # another one


def test_all_calls_are_made_in_order_and_workers_are_used_again(engine: LocalEngine) -> None:
    calls = [{"x": x, "wait_s": 0.05 * (x % 2)} for x in range(12)]
    found = [one.split() for one in engine.map(f"{TASKS}:square", calls)]
    assert [int(one[0]) for one in found] == [x * x for x in range(12)]
    assert len({one[1] for one in found}) == 2
    with pytest.raises(TreeringError):
        list(engine.map(f"{TASKS}:square", [{"x": 1}, {"y": 1}, {"x": 2}]))


def test_closing_a_stream_or_the_engine_stops_the_worker(tmp_path: Path) -> None:
    engine = LocalEngine(2)
    pids = []
    for name in "ab":
        results = engine.stream(f"{TASKS}:forever", {"note": str(tmp_path / name)})
        assert next(results) == b"begun"
        pids.append(int((tmp_path / name).read_text()))
        if name == "a":
            results.close()  # type: ignore[attr-defined]
            assert not is_there(pids[0])
    assert is_there(pids[1])
    engine.close()
    assert not is_there(pids[1])
    with pytest.raises(StoreError, match="it was stopped"):
        next(results)


def test_path_environment_and_folder_are_those_of_the_caller(
    engine: LocalEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(2):
        monkeypatch.setenv("TREERING_TEST", str(number))
        monkeypatch.syspath_prepend(str(tmp_path))
        monkeypatch.chdir(tmp_path)
        (said,) = engine.stream(f"{TASKS}:around", {})
        wanted = ("0" if number == 0 else "1", os.environ.get("PYTHONPATH"), str(tmp_path))
        assert eval(said)[:3] == wanted
        assert eval(said)[3] == [one or str(tmp_path) for one in sys.path]


PARENT = """
import signal
import sys
from pathlib import Path
from treering.engine import LocalEngine

signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored by what a shell began in the background
results = LocalEngine().stream("tests.engine.tasks:forever", {"note": sys.argv[1]})
if sys.argv[2] == "late":
    next(results)
print("begun", flush=True)
for _ in range(2):
    next(results)
"""


@pytest.mark.parametrize(
    ("which", "when"), [(signal.SIGKILL, "late"), (signal.SIGINT, "late"), (signal.SIGINT, "while it starts")]
)
def test_a_parent_that_is_killed_or_interrupted_leaves_no_worker(
    tmp_path: Path, which: signal.Signals, when: str
) -> None:
    # A script without a guard, too: it isn't run once more.
    script = tmp_path / "script.py"
    script.write_text(PARENT)
    note = tmp_path / "pid"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(one for one in sys.path if one)}
    with subprocess.Popen(
        [sys.executable, str(script), str(note), when],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        start_new_session=True,
    ) as parent:
        assert parent.stdout is not None
        assert parent.stdout.readline() == "begun\n"
        (pid,) = Path(f"/proc/{parent.pid}/task/{parent.pid}/children").read_text().split()
        assert note.exists() == (when == "late")
        assert os.getpgid(int(pid)) != os.getpgid(parent.pid)  # from its first moment on: else it may end in silence
        if which == signal.SIGINT:
            os.killpg(parent.pid, which)  # as a terminal does: to all of the group
        else:
            parent.send_signal(which)
        said, wrong = parent.communicate()
    try:
        wait_for(lambda: not is_there(int(pid)))
    finally:
        with suppress(ProcessLookupError):
            os.kill(int(pid), signal.SIGKILL)
    assert said == ""
    assert wrong.count("KeyboardInterrupt") == (1 if which == signal.SIGINT else 0)


def test_a_worker_that_does_nothing_has_loaded_nothing_heavy(engine: LocalEngine) -> None:
    (said,) = engine.stream(f"{TASKS}:loaded", {})
    assert not {b"torch", b"lance", b"lancedb", b"pyarrow", b"numpy", b"pydantic"} & set(said.split())


def test_a_closed_engine_begins_nothing() -> None:
    with LocalEngine(1) as engine:
        pass
    with pytest.raises(UsageError, match="closed"):
        engine.stream(f"{TASKS}:loaded", {})


def test_a_worker_that_runs_out_of_memory_doesnt_stop_to_print_a_backtrace(
    engine: LocalEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RUST_BACKTRACE", "1")
    (said,) = engine.stream(f"{TASKS}:environment", {"name": "RUST_BACKTRACE"})
    assert said == b"0"


class Local:
    """A class that other processes find."""


def test_a_class_has_a_name_only_where_others_find_it() -> None:
    class Hidden:
        pass

    assert name_of_class(Local) == f"{__name__}:Local"
    assert name_of_class(Hidden) is None
    Hidden.__module__ = "__main__"
    assert name_of_class(Hidden) is None


def test_what_was_erased_between_two_exports_is_known_to_workers_that_made_the_first(tmp_path: Path) -> None:
    store = treering.open(tmp_path / "store")
    corpus = store.create("support", "labelled")
    with corpus.capture() as live:
        live.extend([{"id": f"r{n}", "text": f"question {n}", "label": "a"} for n in range(60)])
    corpus.snapshot()
    lock = store.mix("support@v1").lock(batch_size=10, epochs=1)

    def exported(workers: LocalEngine | None) -> bytes:
        store.export(lock, tmp_path / "out.jsonl", erased="skip", force=True, engine=workers)
        return (tmp_path / "out.jsonl").read_bytes()

    with LocalEngine(1) as engine:
        before = exported(engine)
        corpus.erase(ids=["r5"], reason="asked for it")
        assert exported(engine) == exported(None) != before
