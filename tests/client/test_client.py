"""The client: what it acknowledged is stored once, and it never holds the agent up."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import warnings
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

import treering
from tests.server.running import Process, Running, ids, labelled, lasting_port, look
from treering.client import CaptureWarning
from treering.client.sender import Sender
from treering.client.spool import spool_directory
from treering.errors import InvalidRecordError, NotFoundError, StoreError, UsageError

from .fake import Answer, answering, failed, lines, spread, stored

AWAY = "http://127.0.0.1:9"  # nobody listens there


def client(url: str, spool: Path | bool, **more: Any) -> treering.Client:
    return treering.Client(url, corpus="notes", spool=spool, **more)  # type: ignore[arg-type]


def test_importing_the_client_imports_nothing_heavy() -> None:
    code = (
        "import sys, treering\n"
        "c = treering.Client('http://127.0.0.1:9', 'k', corpus='notes', spool=False)\n"
        "c.capture().add({'text': 't'})\n"
        "c.close(0)\n"
        "heavy = {'torch', 'lance', 'lancedb', 'pyarrow', 'numpy', 'pydantic', 'fastapi'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_same_calls_as_the_local_recorder_store_the_same(server: Running, spool: Path) -> None:
    records = labelled(30)
    with client(server.url, spool, block_s=60) as remote:
        with remote.capture() as live:
            receipt = live.add(records[0])
            assert (receipt.id, receipt.status) == ("r0", "spooled")
            assert live.extend(records[1:]).acknowledged == 29
            fresh = live.add({"text": "t", "label": "l"})
            assert len(fresh.id) == 32
            counts = live.flush()
        assert (counts.added, counts.stored, counts.waiting, counts.dropped) == (31, 31, 0, 0)
    assert ids(server.store) == sorted([*(one["id"] for one in records), fresh.id])
    assert list(spool.rglob("*.sqlite*")) == []


def test_a_record_has_the_time_at_which_it_was_added(server: Running, spool: Path) -> None:
    before = datetime.now(UTC)
    with client(server.url, spool) as remote, remote.capture() as live:
        live.add({"id": "a", "text": "t", "label": "l"})
        after = datetime.now(UTC)
        live.add({"id": "b", "text": "t", "label": "l", "ts": datetime(2026, 1, 2, tzinfo=UTC)})
    ids(server.store)
    rows = {row["id"]: row for row in server.store.live("notes").to_table().to_pylist()}
    assert before <= rows["a"]["ts"] <= after
    assert rows["b"]["ts"] == datetime(2026, 1, 2, tzinfo=UTC)


def test_what_the_server_refuses_is_counted_and_told_and_its_neighbours_are_stored(
    server: Running, spool: Path
) -> None:
    with client(server.url, spool) as remote, remote.capture() as live:
        live.extend([{"id": "bad", "text": 1, "label": "l"}, *labelled(2)])
        counts = live.flush()
        assert (counts.stored, counts.refused, counts.waiting) == (2, 1, 0)
        ((record_id, problems),) = live.refusals
        assert record_id == "bad"
        assert problems[0]["loc"] == ["text"]
    assert len(server.store.corpus("notes").quarantine()) == 1


def test_while_the_server_is_away_records_wait_and_are_sent_when_it_is_back(
    store: treering.Store, notes: treering.Corpus, spool: Path
) -> None:
    assert store.root is not None
    first = Process(store.root, port=(port := lasting_port()))
    with client(first.url, spool, block_s=60) as remote:
        live = remote.capture()
        live.add({"id": "before", "text": "t", "label": "l"})
        live.flush()
        assert first.end() == 0
        for one in labelled(20):
            assert live.add(one).status == "spooled"
        with pytest.raises(StoreError, match="aren't at the server yet"):
            live.flush(timeout=0.3)
        again = Process(store.root, port=port)
        try:
            assert live.flush(timeout=20).stored == 21
        finally:
            assert again.end() == 0
    assert ids(store) == sorted(["before", *(one["id"] for one in labelled(20))])


def test_what_a_process_left_behind_is_sent_by_the_next_one_and_stored_once(server: Running, spool: Path) -> None:
    code = (
        "import os, sys, treering\n"
        "live = treering.Client(sys.argv[1], corpus='notes', spool=sys.argv[2], block_s=60).capture()\n"
        "for n in range(50):\n"
        "    assert live.add({'id': f'r{n}', 'text': 't', 'label': 'l'}).status == 'spooled'\n"
        "os.kill(os.getpid(), 9)\n"
    )
    gone = subprocess.run([sys.executable, "-c", code, server.url, str(spool)])
    assert gone.returncode == -signal.SIGKILL
    with client(server.url, spool) as remote:
        remote.capture().add({"id": "mine", "text": "t", "label": "l"})
        end = time.monotonic() + 60
        while len(ids(server.store)) < 51 and time.monotonic() < end:
            time.sleep(0.05)
    assert ids(server.store) == sorted(["mine", *(f"r{n}" for n in range(50))])
    assert [path.suffix for path in spool.rglob("*") if path.is_file()] == []


def test_what_finds_no_room_is_dropped_counted_and_said_aloud(spool: Path) -> None:
    remote = client(AWAY, spool, spool_mb=0.01)
    live = remote.capture()
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        for n in range(200):
            live.add({"id": f"r{n}", "text": "x" * 200, "label": "l"})
    assert said[0].category is CaptureWarning
    assert "records for notes were dropped: the spool is full" in str(said[0].message)
    assert len(said) < 10  # when they have doubled, not for each
    counts = live.counts
    assert counts.dropped > 0
    assert counts.added + counts.dropped == 200
    assert live.add({"text": "x" * 200}).status == "dropped"
    with pytest.warns(CaptureWarning, match="aren't at the server after 0 s"):
        live.close(0)
    assert remote.close(0) == counts.added


def test_without_a_spool_records_wait_in_memory_and_a_close_says_what_is_lost() -> None:
    remote = client(AWAY, False)
    live = remote.capture()
    assert live.add({"text": "t"}).status == "queued"
    with pytest.warns(CaptureWarning, match="are lost when this process ends"):
        live.close(0.1)
    assert remote.close(0) == 1


def test_a_record_whose_answer_got_lost_is_sent_again_with_the_same_id(spool: Path) -> None:
    seen: list[str] = []

    def answer(path: str, body: bytes) -> Answer:
        seen.extend(one["id"] for one in lines(body))
        return failed(500) if len(seen) == 1 else stored(body)

    with answering(answer) as url, client(url, spool) as remote, remote.capture() as live:
        given = live.add({"text": "t", "label": "l"})
        live.flush()
    assert seen == [given.id, given.id]


def test_retry_after_is_honoured_even_when_somebody_waits(spool: Path) -> None:
    times: list[float] = []

    def answer(path: str, body: bytes) -> Answer:
        times.append(time.monotonic())
        return failed(503, retry_after="1") if len(times) == 1 else stored(body)

    with answering(answer) as url, client(url, spool) as remote, remote.capture() as live:
        live.add({"text": "t", "label": "l"})
        live.flush()
    assert times[1] - times[0] >= 1.0


def test_a_batch_that_is_too_large_is_sent_in_smaller_ones_and_one_record_that_is_alone_is_given_up(
    spool: Path,
) -> None:
    taken: list[str] = []

    def answer(path: str, body: bytes) -> Answer:
        if len(body) > 1_500:
            return failed(413)
        taken.extend(one["id"] for one in lines(body))
        return stored(body)

    with answering(answer) as url, client(url, spool) as remote, remote.capture() as live:
        live.extend([*labelled(100), {"id": "huge", "text": "x" * 3_000, "label": "l"}])
        counts = live.flush()
        assert (counts.stored, counts.refused) == (100, 1)
        assert [one for one, _ in live.refusals] == ["huge"]
    assert sorted(taken) == sorted(one["id"] for one in labelled(100))


@pytest.mark.parametrize("status", [400, 422])
def test_a_proxy_that_says_bad_request_costs_no_record(spool: Path, status: int) -> None:
    is_back = threading.Event()

    def answer(path: str, body: bytes) -> Answer:
        return stored(body) if is_back.is_set() else (status, {"content-type": "text/html"}, b"<h1>HTTPS port</h1>")

    with answering(answer) as url:
        remote = client(url, spool, close_s=0.2)
        live = remote.capture()
        live.extend(labelled(20))
        with pytest.warns(CaptureWarning, match=str(status)):
            live.close()
        assert live.counts.refused == 0
        assert remote.close(0) == 20
        is_back.set()
        with client(url, spool) as again, again.capture() as live:
            live.add({"text": "t"})
            end = time.monotonic() + 60
            while live.counts.stored < 21 and time.monotonic() < end:
                time.sleep(0.05)
            assert live.counts.stored == 21


def test_what_is_refused_is_in_no_log(server: Running, spool: Path, caplog: pytest.LogCaptureFixture) -> None:
    with client(server.url, spool) as remote, remote.capture() as live:
        live.add({"id": "r", "text": "t", "label": ["CANARY"]})
        assert live.flush().refused == 1
        assert "refused r: [('label', 'wrong-type')]" in caplog.text
    assert "CANARY" not in caplog.text


def test_a_key_that_is_refused_keeps_records_and_stops_no_other_corpus(
    spool: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def answer(path: str, body: bytes) -> Answer:
        return failed(403) if "/closed/" in path else stored(body)

    with answering(answer) as url:
        remote = client(url, spool, close_s=0.2)
        closed = remote.capture("closed")
        closed.add({"text": "t"})
        with remote.capture("open") as live:
            live.add({"text": "t"})
            assert live.flush().stored == 1
        with pytest.warns(CaptureWarning, match="403"):
            closed.close()
        assert remote.close(0) == 1
    assert "records for closed wait on this host: 403" in caplog.text


def test_what_was_taken_over_and_ones_key_is_not_good_for_is_left_to_whose_is(
    server: Running, spool: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from treering.client import sender
    from treering.server.keys import create_key

    monkeypatch.setattr(sender, "_ADOPT_EVERY_S", 0.2)
    server.store.create("other", "labelled")
    _, good = create_key(server.store, ["notes"])
    _, wrong = create_key(server.store, ["other"])
    server.prepared.service.ring.refresh()  # from now on it asks for keys
    dead = client("http://127.0.0.1:9", spool, close_s=0)  # whose records wait
    with pytest.warns(CaptureWarning), dead.capture() as live:
        live.extend(labelled(3))
    assert dead.close(0) == 3
    (before,) = spool.iterdir()
    before.rename(spool_directory(server.url, spool))
    stranger = treering.Client(server.url, wrong, corpus="other", spool=spool)
    with stranger.capture() as live:
        live.add({"text": "t", "label": "l"})
        assert live.flush().stored == 1
    end = time.monotonic() + 60
    while not stranger._sender._spool._released and time.monotonic() < end:
        time.sleep(0.05)
    assert stranger._sender._spool._released
    with client(server.url, spool, key=good):
        while len(ids(server.store)) < 3 and time.monotonic() < end:
            time.sleep(0.05)
    assert ids(server.store) == ["r0", "r1", "r2"]
    assert stranger.close() == 0


def test_a_client_belongs_to_its_process(spool: Path) -> None:
    code = (
        "import os, sys, treering\n"
        "remote = treering.Client('http://127.0.0.1:9', corpus='notes', spool=sys.argv[1])\n"
        "live = remote.capture()\n"
        "child = os.fork()\n"
        "if child == 0:\n"
        "    codes = []\n"
        "    for call in (lambda: live.add({'text': 't'}), remote.capture, live.flush):\n"
        "        try:\n"
        "            call()\n"
        "        except treering.UsageError as exc:\n"
        "            codes.append(exc.code)\n"
        "    os._exit(0 if codes == ['forked'] * 3 else 1)\n"
        "assert os.waitpid(child, 0)[1] == 0\n"
        "remote.close(0)\n"
    )
    subprocess.run([sys.executable, "-c", code, str(spool)], check=True, timeout=30)


def test_threads_share_a_recorder(server: Running, spool: Path) -> None:
    with client(server.url, spool) as remote, remote.capture() as live:

        def work(name: int) -> None:
            for n in range(25):
                live.add({"id": f"{name}-{n}", "text": "t", "label": "l"})

        threads = [threading.Thread(target=work, args=(n,)) for n in range(8)]
        for one in threads:
            one.start()
        for one in threads:
            one.join()
        assert live.flush().stored == 200
    assert len(ids(server.store)) == 200


def test_words_about_a_record_go_after_it(server: Running, spool: Path) -> None:
    with client(server.url, spool) as remote:
        remote.capture().add({"id": "a", "text": "t", "label": "l"})
        remote.annotate("a", label="better", by="ann")
        with pytest.raises(NotFoundError, match="no record 'nobody'"):
            remote.annotate("nobody", label="x")
        with pytest.raises(InvalidRecordError, match="quality"):
            remote.annotate("a", quality="high")
    (said,) = server.store.corpus("notes").annotations().to_pylist()
    assert (said["key"], said["value"], said["by"]) == ("label", '"better"', "ann")


def test_what_cannot_be_sent_is_refused_at_once(spool: Path) -> None:
    remote = client(AWAY, spool)
    live = remote.capture()
    for bad in (3, {"text": object()}, {"text": float("nan")}, {"text": "\ud800"}, {"x": {1, 2}}):
        with pytest.raises(UsageError):
            live.add(bad)
    with pytest.raises(UsageError, match="use add for one"):
        live.extend({"text": "t"})
    with pytest.raises(UsageError, match="which corpus"):
        treering.Client(AWAY, spool=False).capture()
    with pytest.raises(UsageError, match="isn't a server's URL"):
        treering.Client("ftp://x")
    assert live.counts.added == 0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        live.close(0)
    with pytest.raises(UsageError, match="closed"):
        live.add({"text": "t"})
    remote.close(0)
    with pytest.raises(UsageError, match="closed"):
        remote.capture()


def test_a_client_never_shows_its_key() -> None:
    remote = treering.Client(AWAY, "trk_secret", spool=False)
    assert "secret" not in repr(remote)
    remote.close(0)


def test_clients_that_live_for_a_moment_send_what_those_before_them_left(server: Running, spool: Path) -> None:
    for n in range(3):
        away = client("http://127.0.0.1:9", spool, close_s=0)
        with pytest.warns(CaptureWarning), away.capture() as live:
            live.add({"id": f"left{n}", "text": "t", "label": "l"})
        assert away.close(0) == 1
        (folder,) = (one for one in spool.iterdir() if one != spool_directory(server.url, spool))
        folder.rename(spool_directory(server.url, spool))  # the server has come back under its address
        with client(server.url, spool) as remote:
            remote.capture().add({"id": f"own{n}", "text": "t", "label": "l"})
        shutil.rmtree(spool)
    assert ids(server.store) == sorted(f"{name}{n}" for name in ("left", "own") for n in range(3))


def test_a_spool_that_cannot_be_read_is_kept_aside(server: Running, spool: Path) -> None:
    with client(server.url, spool):
        (folder,) = list(spool.iterdir())
    (folder / "1-aa.sqlite").write_bytes(b"not a database, " * 1000)
    with client(server.url, spool) as remote, remote.capture() as live:
        live.add({"id": "a", "text": "t", "label": "l"})
        assert live.flush().stored == 1
        end = time.monotonic() + 60
        while not (kept := list(folder.glob("*.damaged"))) and time.monotonic() < end:
            time.sleep(0.02)
    assert len(kept) == 1


def kills(store: treering.Store, spool: Path, lives: int) -> None:
    """Kill the server again and again while a client captures; then everything that was acknowledged is there once."""
    assert store.root is not None
    server = Process(store.root, port=(port := lasting_port()))
    acknowledged: list[str] = []
    took: list[float] = []
    stop = threading.Event()
    remote = client(server.url, spool)
    live = remote.capture()

    def capture(worker: int) -> None:
        n = 0
        while not stop.is_set():
            call = time.perf_counter()
            receipt = live.add({"id": f"w{worker}-{n}", "text": f"text {n}", "label": "l"})
            took.append(time.perf_counter() - call)
            if receipt.status != "dropped":
                acknowledged.append(receipt.id)
            n += 1
            time.sleep(0.002)

    threads = [threading.Thread(target=capture, args=(n,)) for n in range(3)]
    began, before = time.monotonic(), look(os.getpid(), 0.0)
    for one in threads:
        one.start()
    try:
        for life in range(lives):
            time.sleep(0.15 + 0.13 * (life % 5))
            server.end(signal.SIGKILL)
            server = Process(store.root, port=port)
    finally:
        stop.set()
        for one in threads:
            one.join()
    seconds = time.monotonic() - began
    counts = live.flush(timeout=60)
    after = look(os.getpid(), seconds)
    remote.close()
    assert server.end() == 0
    print(
        f"{lives} kills in {seconds:.0f} s; {len(acknowledged):,} records acknowledged ({len(acknowledged) / seconds:,.0f}/s), "
        f"{counts.stored:,} stored, {counts.duplicates:,} sent twice, {counts.dropped} dropped; {spread(took)}; "
        f"this process: {before}, {after}"
    )
    assert counts.waiting == counts.dropped == 0
    found = ids(store)
    assert len(acknowledged) > 100 * lives**0.5
    assert found == sorted(acknowledged)


@pytest.mark.timeout(120)
def test_a_server_that_is_killed_under_load_loses_and_doubles_nothing(
    store: treering.Store, notes: treering.Corpus, spool: Path
) -> None:
    kills(store, spool, 5)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_server_that_is_killed_fifty_times_loses_and_doubles_nothing(
    store: treering.Store, notes: treering.Corpus, spool: Path
) -> None:
    kills(store, spool, 50)


def test_spools_lie_where_the_state_of_this_host_lies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TREERING_STATE_DIR", str(tmp_path / "state"))
    remote = treering.Client(AWAY, corpus="notes")
    remote.capture().add({"text": "t"})
    remote.close(0)
    assert len(list((tmp_path / "state" / "client").rglob("*.sqlite"))) == 1


def test_the_threads_of_a_client_outlive_whatever_the_network_raises(
    server: Running, spool: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    remote = client(server.url, spool)
    post = remote._http.post
    calls = []

    def odd(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        if len(calls) == 1:
            raise RuntimeError("something nobody thought of")
        return post(*args, **kwargs)

    monkeypatch.setattr(remote._http, "post", odd)
    assert isinstance(remote._sender, Sender)
    with remote, remote.capture() as live:
        live.add({"id": "a", "text": "t", "label": "l"})
        assert live.flush().stored == 1
