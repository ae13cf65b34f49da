"""How long an agent is held up: by nothing but its own record's JSON and, at most, the stated wait for the disk."""

from __future__ import annotations

import json
import logging
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

import pytest

import treering
from tests.server.running import labelled
from tests.waiting import wait_for
from treering.client import CaptureWarning
from treering.client import sender as sender_module
from treering.client.spool import Spool
from treering.errors import StoreError

from .fake import Answer, answering, lines, spread, stored

AWAY = "http://127.0.0.1:9"  # nobody listens there
BLOCK_S = 0.05


class Watched:
    """Stands in for `threading` in the sender: who holds its lock, and for how long the agent's thread would wait."""

    Condition, Thread = threading.Condition, threading.Thread

    def __init__(self) -> None:
        self.holder: int | None = None
        self.waits: list[float | None] = []  # timeouts given in the agent's thread
        self.outside: list[str] = []  # what went to disk, network or log
        self.wrong: list[str] = []
        self.agent = threading.get_ident()

    def Lock(self) -> Any:
        watched, inner = self, threading.Lock()

        class Owned:
            def acquire(self, *args: Any) -> bool:
                taken = inner.acquire(*args)
                if taken:
                    watched.holder = threading.get_ident()
                return taken

            def release(self) -> None:
                watched.holder = None
                inner.release()

            def __enter__(self) -> None:
                self.acquire()

            def __exit__(self, *exc: object) -> None:
                self.release()

        return Owned()

    def Event(self) -> threading.Event:
        watched = self

        class Waited(threading.Event):
            def wait(self, timeout: float | None = None) -> bool:
                if threading.get_ident() == watched.agent:
                    watched.waits.append(timeout)
                    timeout = 1.0 if timeout is None else timeout
                return super().wait(timeout)

        return Waited()

    def goes_outside(self, what: str) -> None:
        """Called where disk, network or log are used."""
        self.outside.append(what)
        if threading.get_ident() == self.agent:
            self.wrong.append(f"{what} in the agent's thread")
        if self.holder == threading.get_ident():
            self.wrong.append(f"{what} while the lock is held")


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> Watched:
    made = Watched()
    monkeypatch.setattr(sender_module, "threading", made)
    names = [name for name, value in vars(Spool).items() if callable(value) and name[0] != "_" and name != "close"]
    assert {"append", "read", "remove"} <= set(names)
    for name in names:
        real = getattr(Spool, name)

        def noted(self: Spool, *args: Any, _name: str = name, _real: Any = real) -> Any:
            made.goes_outside(_name)
            return _real(self, *args)

        monkeypatch.setattr(Spool, name, noted)
    return made


@pytest.fixture
def slow_log(watched: Watched) -> Iterator[None]:
    handler = logging.Handler()
    handler.emit = lambda record: watched.goes_outside("log")  # type: ignore[method-assign]
    logger = logging.getLogger("treering.client")
    logger.addHandler(handler)
    yield
    logger.removeHandler(handler)


@pytest.mark.usefixtures("slow_log")
def test_the_agents_thread_uses_no_disk_network_or_log_and_waits_for_nobody_who_does(
    watched: Watched, spool: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = [500, 422, 200]

    def answer(path: str, body: bytes) -> Answer:
        status = answers.pop(0) if len(answers) > 1 else answers[0]
        said = [{"id": one["id"], "status": "refused", "problems": [{"loc": ["text"], "kind": "k", "message": "m"}]}
                for one in lines(body)]  # fmt: skip
        if status == 422:
            told = {"stored": 0, "duplicates": 0, "refused": len(said), "erased": 0, "records": said}
            return 422, {"content-type": "application/json"}, json.dumps(told).encode()
        return stored(body) if status == 200 else (status, {}, b"")

    with answering(answer) as url, treering.Client(url, corpus="notes", spool=spool, block_s=BLOCK_S) as remote:
        post = remote._http.post

        def noted(*args: Any, **more: Any) -> Any:
            watched.goes_outside("post")
            return post(*args, **more)

        monkeypatch.setattr(remote._http, "post", noted)
        live = remote.capture()
        live.extend(labelled(1_200))
        end = time.monotonic() + 60
        while live.counts.refused == 0 and time.monotonic() < end:
            live.add(labelled(1)[0])
            time.sleep(0.01)
        watched.agent = 0  # `flush` waits, and asks the spool: it is there for that
        live.flush()
        watched.agent = threading.get_ident()
        assert not watched.wrong
        assert {"append", "post", "log", "remove"} <= set(watched.outside)
        assert watched.waits
        assert all(one is not None and one <= BLOCK_S for one in watched.waits)
        watched.agent = 0


def test_a_disk_that_never_answers_costs_an_agent_one_bounded_wait_a_call(
    watched: Watched, spool: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers_again = threading.Event()

    def hangs(self: Spool, entries: object) -> None:
        answers_again.wait()  # for as long as this test likes: whoever waits for it doesn't come back
        raise StoreError("the disk hangs")

    with monkeypatch.context() as broken:
        broken.setattr(Spool, "append", hangs)
        remote = treering.Client(AWAY, corpus="notes", spool=spool, block_s=BLOCK_S)
        live = remote.capture()
        try:
            assert live.add(labelled(1)[0]).status == "queued"
            assert live.extend(labelled(2_000)).acknowledged == 2_000  # four entries, and one wait together
            assert watched.waits[0] is not None
            assert all(one is not None and 0 <= one <= BLOCK_S for one in watched.waits)
            assert sum(one or 0.0 for one in watched.waits[1:]) <= 2 * BLOCK_S
            assert not watched.wrong
        finally:
            answers_again.set()
    remote.close(0)


def test_a_disk_that_is_known_to_be_full_costs_an_agent_no_wait_at_all(
    watched: Watched, spool: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    is_full = threading.Event()
    append = Spool.append

    def fails(self: Spool, entries: Any) -> None:
        if is_full.is_set():
            raise StoreError("the disk is full")
        append(self, entries)

    monkeypatch.setattr(Spool, "append", fails)
    with answering(lambda path, body: stored(body)) as url:
        remote = treering.Client(url, corpus="notes", spool=spool, block_s=BLOCK_S)
        live = remote.capture()
        is_full.set()
        assert live.add(labelled(1)[0]).status == "queued"
        end = time.monotonic() + 60
        while remote._sender.spool_error is None and time.monotonic() < end:
            time.sleep(0.01)
        watched.waits.clear()
        assert {live.add(one).status for one in labelled(50)} == {"queued"}
        assert watched.waits == []
        is_full.clear()
        watched.agent = 0
        assert live.flush().stored == 51  # room again: nothing was lost
        assert live.add(labelled(1)[0]).status in ("spooled", "queued")
        assert remote._sender.spool_error is None
        remote.close()


def test_records_that_no_disk_took_are_lost_aloud_at_the_end(
    spool: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fails(self: Spool, entries: Any) -> None:
        raise StoreError("the disk is full")

    monkeypatch.setattr(Spool, "append", fails)
    remote = treering.Client(AWAY, corpus="notes", spool=spool, block_s=BLOCK_S)
    live = remote.capture()
    live.extend(labelled(7))
    with pytest.raises(StoreError, match="7 records for notes aren't at the server yet: the disk is full") as refused:
        live.flush(1)
    assert "see to its disk" in (refused.value.hint or "")
    with pytest.warns(CaptureWarning, match=r"\(the disk is full\); they are lost when this process ends"):
        live.close(0)
    assert remote.close(0) == 0  # no next client will find any
    assert (live.counts.added, live.counts.dropped, live.counts.waiting) == (0, 7, 0)
    assert "7 records for notes are lost: the disk is full" in caplog.text


def test_a_spool_that_cant_be_taken_over_is_no_trouble_of_what_is_captured(
    spool: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fails(self: Spool, numbers: Any) -> None:
        raise StoreError("a dead process' spool can't be read")

    monkeypatch.setattr(Spool, "adopt", fails)
    with treering.Client(AWAY, corpus="notes", spool=spool, block_s=60, close_s=0) as remote:
        wait_for(lambda: "can't be read" in caplog.text)
        live = remote.capture()
        assert live.add(labelled(1)[0]).status == "spooled"
        with pytest.raises(StoreError) as refused:
            live.flush(0.5)
        assert refused.value.hint == "they wait on this host and are sent when it can be reached"


@pytest.fixture
def silent() -> Iterator[str]:
    """A server that takes connections and never says a word."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"


@pytest.mark.parametrize("what", ["the server never answers", "nobody listens", "the disk is full", "the disk is slow"])
def test_calls_take_as_long_as_stated_whatever_happens(
    what: str, silent: str, spool: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    append = Spool.append

    def fails(self: Spool, entries: Any) -> None:
        raise StoreError("the disk is full")

    def dawdles(self: Spool, entries: Any) -> None:
        time.sleep(0.2)  # as a disk does whose syncs stall
        append(self, entries)

    if what.startswith("the disk"):
        monkeypatch.setattr(Spool, "append", fails if what.endswith("full") else dawdles)
    url = AWAY if what == "nobody listens" else silent
    remote = treering.Client(url, corpus="notes", spool=spool, block_s=BLOCK_S, timeout_s=1)
    live = remote.capture()
    took = []
    for n in range(60 if what.startswith("the disk") else 300):
        began = time.perf_counter()
        receipt = live.add({"id": f"r{n}", "text": "t" * 200, "label": "l"})
        took.append(time.perf_counter() - began)
        assert receipt.status in ("spooled", "queued")
    print(f"{what}: {spread(took)}")
    # The clock of a busy machine decides nothing here: most calls are in time, and a wait for what hangs would be in all of them.
    assert median(took) < 2 * BLOCK_S
    assert sum(one > 4 * BLOCK_S for one in took) <= 0.2 * len(took)
    monkeypatch.undo()
    remote.close(0)
