"""What is promised must hold on an object store too: between processes, between hosts, through crashes and lost answers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import pytest
from typer.testing import CliRunner

import treering
from tests.cli.conftest import Outcome
from tests.s3.conftest import Meddler, ids, options, record
from treering.cli.app import app
from treering.store import lease
from treering.store.location import Location
from treering.store.objects import RemoteObjects
from treering.testing.objectstore import LocalS3

WRITER = """
import sys, treering, random, os, json
uri, name, rounds = sys.argv[1:]
support = treering.open(uri, create=False).corpus("support")
with support.capture() as live:
    for n in range(int(rounds)):
        live.extend([{"id": f"{name}-{n}-{i}", "text": "t", "label": "a"} for i in range(50)])
        live.extend([{"id": f"shared-{n}-{i}", "text": "t", "label": "a"} for i in range(10)])
        live.flush()
        if random.random() < 0.3:
            support.snapshot()
        if random.random() < 0.3:
            try:
                support.compact(wait_s=5)
                support.clean_up(older_than_s=30, wait_s=5)  # a commit may take seconds here, and needs its version
            except treering.ConflictError:
                pass
"""


def start(code: str, *arguments: str, server: LocalS3, state: Path, **environment: str) -> subprocess.Popen[str]:
    env = {**os.environ, **server.environment, "TREERING_STATE_DIR": str(state), **environment}
    return subprocess.Popen(
        [sys.executable, "-c", code, *arguments], env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def assert_ended(process: subprocess.Popen[str], code: int = 0) -> str:
    out, err = process.communicate(timeout=600)
    assert process.returncode == code, err
    return out


def everything(store: treering.Store) -> Counter[str]:
    support = store.corpus("support")
    support.quarantine()  # takes in what dead processes of this host left
    found = Counter(ids(store, "support@live"))
    for snapshot in support.snapshots():
        part = ids(store, snapshot.ref)
        assert len(part) == snapshot.rows
        found.update(part)
    return found


def check_writers(remote: treering.Store, s3: LocalS3, host: Path, writers: int, rounds: int) -> None:
    remote.create("support", "labelled")
    # Two processes a host: they share a state directory, and hosts share nothing but the bucket.
    running = [
        start(WRITER, remote.uri, f"w{n}", str(rounds), server=s3, state=host / f"host{n // 2}") for n in range(writers)
    ]
    for process in running:
        assert_ended(process)
    wanted = {f"w{n}-{r}-{i}" for n in range(writers) for r in range(rounds) for i in range(50)}
    wanted |= {f"shared-{r}-{i}" for r in range(rounds) for i in range(10)}
    found = everything(remote)
    assert [record_id for record_id, times in found.items() if times > 1] == []
    assert set(found) == wanted


def test_writers_on_two_hosts_that_also_seal_and_compact_store_every_record_once(
    remote: treering.Store, s3: LocalS3, host: Path
) -> None:
    check_writers(remote, s3, host, writers=3, rounds=4)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_eight_writers_on_four_hosts_store_every_record_once(remote: treering.Store, s3: LocalS3, host: Path) -> None:
    check_writers(remote, s3, host, writers=8, rounds=40)


CRASH = """
import os, signal, sys, treering
from treering.capture import recorder
recorder.FLUSH_AFTER_S = 600.0
support = treering.open(sys.argv[1], create=False).corpus("support")
live = support.capture()
live.add({"id": "acknowledged", "text": "t", "label": "a"})
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_record_acknowledged_before_a_kill_is_there_once_its_host_opens_the_store_again(
    remote: treering.Store, s3: LocalS3, host: Path
) -> None:
    remote.create("support", "labelled")
    assert_ended(start(CRASH, remote.uri, server=s3, state=host / "state"), -9)
    assert ids(remote, "support@live") == []
    with treering.open(remote.uri, storage_options=s3.storage_options).corpus("support").capture():
        pass
    assert ids(remote, "support@live") == ["acknowledged"]
    assert list(remote.host_dir.rglob("*.sqlite")) == []


def test_another_hosts_spool_is_left_alone_and_joins_later(
    remote: treering.Store, s3: LocalS3, host: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    support = remote.create("support", "labelled")
    assert_ended(start(CRASH, remote.uri, server=s3, state=host / "elsewhere"), -9)
    with support.capture() as live:
        live.add(record("mine"))
    assert support.snapshot().rows == 1  # type: ignore[union-attr]
    monkeypatch.setenv("TREERING_STATE_DIR", str(host / "elsewhere"))
    assert support.snapshot().rows == 1  # type: ignore[union-attr]
    assert ids(remote, "support@v2") == ["acknowledged"]


VANISH = CRASH.replace("capture()", 'capture(durability="store")')


def test_a_host_that_vanishes_takes_nothing_along_that_was_acknowledged_into_the_store(
    remote: treering.Store, s3: LocalS3, host: Path
) -> None:
    remote.create("support", "labelled")
    assert_ended(start(VANISH, remote.uri, server=s3, state=host / "vanished"), -9)
    assert ids(remote, "support@live") == ["acknowledged"]


def test_spools_of_stores_that_share_a_name_never_mix(s3: LocalS3, moto: tuple[LocalS3, Meddler], host: Path) -> None:
    # The same URI at two endpoints, as it happens when a bucket is mirrored.
    server, _ = moto
    locations = [Location.parse(f"s3://{server.bucket}/x", each.storage_options) for each in (s3, server)]
    assert locations[0].uri == locations[1].uri
    assert locations[0].host_dir("id-of-one") != locations[1].host_dir("id-of-another")


SEAL = """
import os, sys, treering
from treering.store.corpus import BaseCorpus
BaseCorpus.step = lambda self, name: os._exit(9) if name == sys.argv[2] else None
treering.open(sys.argv[1], create=False).corpus("support").snapshot()
"""


@pytest.mark.parametrize("step", ["before-record", "after-record", "after-tag"])
def test_a_seal_cut_short_is_completed_by_the_next_on_the_same_host_at_once(
    remote: treering.Store, s3: LocalS3, host: Path, step: str
) -> None:
    support = remote.create("support", "labelled")
    with support.capture() as live:
        live.extend([record(str(n)) for n in range(20)])
    assert_ended(start(SEAL, remote.uri, step, server=s3, state=host / "state"), 9)
    began = time.monotonic()
    support.snapshot()
    assert time.monotonic() - began < lease.EXPIRES_S / 2  # the dead one's lease is known to be dead
    assert [snapshot.rows for snapshot in support.snapshots()] == [20]
    assert ids(remote, "support@live") == []


def test_the_lease_of_a_host_that_died_is_taken_over_and_its_late_return_is_noticed(
    remote: treering.Store, host: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert isinstance(remote.objects, RemoteObjects)
    monkeypatch.setattr(lease, "EXPIRES_S", 1.0)
    monkeypatch.setattr(lease, "_RENEW_S", 0.2)
    stopped = threading.Event()
    original = lease._ObjectLease._renew
    monkeypatch.setattr(lease._ObjectLease, "_renew", lambda self: stopped.wait(10))  # a process that stands still
    monkeypatch.setattr(lease, "_host", lambda: "dead")
    with lease.object_lease(remote.objects, "t", lock=host / "dead.lock") as dead:
        dead.check()
        monkeypatch.setattr(lease._ObjectLease, "_renew", original)
        monkeypatch.setattr(lease, "_host", lambda: "heir")
        with (
            pytest.raises(treering.ConflictError, match="maintaining"),
            lease.object_lease(remote.objects, "t", lock=host / "heir.lock", wait_s=0.3),
        ):
            pass
        with lease.object_lease(remote.objects, "t", lock=host / "heir.lock", wait_s=5) as heir:
            with pytest.raises(treering.ConflictError, match="lost"):
                dead.check()
            time.sleep(1.3)  # longer than it lasts without being renewed
            heir.check()
            monkeypatch.setattr(lease, "_host", lambda: "third")
            with (
                pytest.raises(treering.ConflictError, match="maintaining"),
                lease.object_lease(remote.objects, "t", lock=host / "third.lock", wait_s=1.5),
            ):
                pass
        with lease.object_lease(remote.objects, "t", lock=host / "third.lock", wait_s=0):  # let go at once
            pass
        stopped.set()


def test_an_object_is_created_once_however_many_try(remote: treering.Store) -> None:
    won: list[int] = []

    def attempt(number: int) -> None:
        try:
            remote.objects.create("race/one", str(number).encode())
        except treering.AlreadyExistsError:
            return
        won.append(number)

    threads = [threading.Thread(target=attempt, args=(n,)) for n in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [str(number).encode() for number in won] == [remote.objects.get("race/one")]


def test_a_put_whose_answer_was_lost_is_known_for_ones_own(moto: tuple[LocalS3, Meddler]) -> None:
    server, meddler = moto
    store = treering.open(server.uri(), storage_options=server.storage_options)
    meddler.lose_answers.append("some/object")
    store.objects.create("some/object", b"mine")
    assert meddler.lose_answers == []
    assert store.objects.get("some/object") == b"mine"
    with pytest.raises(treering.AlreadyExistsError):
        store.objects.create("some/object", b"mine")


def test_a_seal_and_a_commit_whose_answers_were_lost_count_once(moto: tuple[LocalS3, Meddler]) -> None:
    server, meddler = moto
    store = treering.open(server.uri(), storage_options=server.storage_options)
    support = store.create("support", "labelled")
    with support.capture() as live:
        live.extend([record(str(n)) for n in range(10)])
        meddler.lose_answers.append("_versions/")
        live.flush()
        assert meddler.lose_answers == []
        meddler.lose_answers.append("/v1/1.json")
        assert support.snapshot().name == "v1"  # type: ignore[union-attr]
    assert meddler.lose_answers == []
    assert everything(store) == Counter(str(n) for n in range(10))


# --- what is refused, and how fast ----------------------------------------------------------------------------------


def test_a_server_that_ignores_if_none_match_is_refused_before_anything_is_written(
    moto: tuple[LocalS3, Meddler],
) -> None:
    server, meddler = moto
    good = treering.open(server.uri(), storage_options=server.storage_options)
    meddler.ignore_conditions = True
    try:
        for uri in (server.uri(), good.uri):  # a new store, and one that was made when the server still did
            with pytest.raises(treering.StoreError, match="If-None-Match") as caught:
                treering.open(uri, storage_options=server.storage_options)
            assert caught.value.code == "no-conditional-put"
    finally:
        meddler.ignore_conditions = False
    assert treering.open(good.uri, storage_options=server.storage_options).marker == good.marker


def closed_port() -> str:
    import socket

    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{found.getsockname()[1]}"


def faulty(server: LocalS3, kind: str) -> tuple[str, dict[str, str]]:
    """A URI and the options that make opening it fail."""
    if kind == "no-bucket":
        return "s3://there-is-none/p", dict(options(server))
    changed = {
        "wrong-key": {"aws_access_key_id": "unknown"},
        "wrong-secret": {"aws_secret_access_key": "wrong-secret-value"},
        "unreachable": {"aws_endpoint": closed_port()},
        "https-wanted": {"allow_http": "false"},
    }[kind]
    return server.uri(), dict(options(server, **changed))


@pytest.mark.parametrize(
    ("kind", "code"),
    [
        ("no-bucket", "no-bucket"),
        ("wrong-key", "access-denied"),
        ("wrong-secret", "access-denied"),
        ("unreachable", "store-unreachable"),
        ("https-wanted", "bad-options"),
    ],
)
def test_what_cant_be_opened_says_why_in_time(s3: LocalS3, kind: str, code: str) -> None:
    uri, given = faulty(s3, kind)
    began = time.monotonic()
    with pytest.raises(treering.StoreError) as caught:
        treering.open(uri, storage_options=given)
    assert time.monotonic() - began < 10
    assert (caught.value.code, caught.value.exit_code) == (code, 6)
    assert caught.value.hint
    assert given["aws_secret_access_key"] not in str(caught.value)


@pytest.mark.slow
def test_a_server_that_takes_connections_and_says_nothing_is_given_up_within_30_seconds(s3: LocalS3) -> None:
    import socket

    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen(50)
        given = {**s3.storage_options, "aws_endpoint": f"http://127.0.0.1:{silent.getsockname()[1]}"}
        began = time.monotonic()
        with pytest.raises(treering.StoreError, match="can't be reached"):
            treering.open(s3.uri(), storage_options=given)
        assert time.monotonic() - began < 30


def test_a_prefix_that_holds_something_else_is_refused_and_left_as_it_was(s3: LocalS3) -> None:
    location = Location.parse(s3.uri(), s3.storage_options)
    objects = RemoteObjects(location)
    objects.create("holiday.jpg", b"x")
    with pytest.raises(treering.UsageError, match="isn't a store"):
        treering.open(location.uri, storage_options=s3.storage_options)
    assert objects.list("") == ["holiday.jpg"]
    with pytest.raises(treering.NotFoundError, match="no store"):
        treering.open(s3.uri(), create=False, storage_options=s3.storage_options)


# --- the command ----------------------------------------------------------------------------------------------------


def run(*words: str) -> Outcome:
    result = CliRunner().invoke(app, [*words, "--json"])
    return Outcome(result.exit_code, result.stdout, result.stderr)


def test_the_command_works_on_an_object_store_by_environment_or_settings(
    s3: LocalS3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    uri = s3.uri()
    with monkeypatch.context() as environment:
        for name, value in s3.environment.items():
            environment.setenv(name, value)
        assert run("init", "--store", uri).data == {"store": uri, "created": True}
        environment.setenv("TREERING_STORE", uri)
        assert run("create", "support", "--schema", "labelled").code == 0
        records = [json.dumps({"id": str(n), "text": "t", "label": "a"}) + "\n" for n in range(30)]
        Path("in.jsonl").write_text("".join(records))
        assert run("capture", "support", "in.jsonl").code == 0
        assert run("snapshot", "live", "--to", "support@v1").data["rows"] == 30
        assert run("mix", f"{uri}#support@v1=1", "--batch-size", "8").data["digest"]
    lines = "".join(f'{key} = "{value}"\n' for key, value in s3.storage_options.items())
    Path("treering.toml").write_text(f'store = "{uri}"\n[storage_options]\n{lines}')
    assert run("log", "support").data["snapshots"][0]["rows"] == 30
    Path("treering.toml").write_text(f'store = "{uri}"\nstorage_options = 7\n')
    assert run("log", "support").code == 2


@pytest.mark.parametrize("kind", ["unreachable", "wrong-secret", "no-bucket"])
def test_the_command_ends_with_6_and_no_traceback(
    s3: LocalS3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.chdir(tmp_path)
    uri, given = faulty(s3, kind)
    lines = "".join(f'{key} = "{value}"\n' for key, value in given.items())
    Path("treering.toml").write_text(f'store = "{uri}"\n[storage_options]\n{lines}')
    ended = run("log", "support")
    assert (ended.code, ended.out) == (6, "")
    assert "Traceback" not in ended.err
    assert given["aws_secret_access_key"] not in ended.err
