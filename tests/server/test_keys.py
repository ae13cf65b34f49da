"""Who may do what: keys are shown once, hashed at rest, scoped, expiring; no credential makes a server fail."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import pytest

import treering
from tests.waiting import wait_for
from treering.errors import NotFoundError, StoreError, UsageError
from treering.server import keys
from treering.server.keys import create_key, list_keys, parse_expiry, revoke_key
from treering.server.run import prepare

from .running import Running, labelled, running


@pytest.fixture
def locked(store: treering.Store, notes: treering.Corpus) -> Iterator[tuple[Running, str]]:
    """A server with a key for `notes`, and a corpus beside it."""
    store.create("other", "labelled")
    _, token = create_key(store, ["notes"])
    with running(store) as found:
        yield found, token


def bearer(token: str) -> dict[str, str]:
    return {"authorization": f"Bearer {token}"}


def test_the_store_keeps_the_hash_of_a_key_and_not_the_key(store: treering.Store, notes: treering.Corpus) -> None:
    made, token = create_key(store, ["notes"])
    assert store.root is not None
    kept = b"".join(path.read_bytes() for path in (store.root / "keys").rglob("*") if path.is_file())
    assert token.encode() not in kept
    assert token.rpartition("_")[2].encode() not in kept
    assert hashlib.sha256(token.encode()).hexdigest().encode() in kept
    assert made.corpora == ["notes"]


def test_a_key_opens_its_corpus_for_its_verbs_and_nothing_else(store: treering.Store, notes: treering.Corpus) -> None:
    store.create("other", "labelled")
    _, writes = create_key(store, ["notes"], verbs=["capture"])
    _, reads = create_key(store, ["notes"], verbs=["read"])
    _, counts = create_key(store, ["notes"], verbs=["metrics"])
    _, everything = create_key(store, ["*"], verbs=["capture", "read", "metrics"])
    with running(store) as server:

        def status(token: str, method: str, path: str) -> int:
            body = labelled(1) if method == "POST" else None
            return server.http.request(method, path, json=body, headers=bearer(token)).status_code

        assert status(writes, "POST", "/v1/corpora/notes/records") == 200
        assert status(writes, "POST", "/v1/corpora/other/records") == 403
        assert status(writes, "GET", "/v1/corpora/notes/head") == 403
        assert status(writes, "POST", "/v1/corpora/notes/annotations") == 403
        assert status(reads, "GET", "/v1/corpora/notes/head") == 200
        assert status(reads, "POST", "/v1/corpora/notes/records") == 403
        assert status(reads, "GET", "/metrics") == 403
        assert status(everything, "POST", "/v1/corpora/other/records") == 200
        assert status(everything, "GET", "/metrics") == 200
        assert status(counts, "GET", "/metrics") == 403  # it tells of all corpora
        # A key tells nothing of corpora beyond it, not even whether they are there.
        assert status(reads, "GET", "/v1/corpora/nobody") == 403
        listed = server.http.get("/v1/corpora", headers=bearer(reads)).json()
        assert [one["name"] for one in listed] == ["notes"]


ROUTES = [
    ("POST", "/v1/corpora/notes/records"),
    ("POST", "/v1/corpora/notes/annotations"),
    ("POST", "/v1/corpora/nobody/records"),
    ("POST", "/v1/traces"),
    ("POST", "/v1/logs"),
    ("POST", "/v1/hooks/claude-code"),
    ("POST", "/v1/hooks/codex"),
    ("GET", "/v1/corpora"),
    ("GET", "/v1/corpora/notes"),
    ("GET", "/v1/corpora/notes/snapshots"),
    ("GET", "/v1/corpora/notes/head"),
    ("GET", "/v1/corpora/notes/status"),
    ("GET", "/metrics"),
    ("GET", "/page/overview"),
    ("GET", "/page/matrices"),
]
OPEN = [("GET", "/"), ("GET", "/health"), ("GET", "/openapi.json"), ("GET", "/page/live.js"), ("GET", "/page/live.css")]


def test_every_route_under_every_credential_is_answered_by_name_and_never_by_500(
    store: treering.Store, notes: treering.Corpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.create("other", "labelled")
    _, good = create_key(store, ["notes"], verbs=["capture", "annotate", "read", "metrics"])
    _, elsewhere = create_key(store, ["other"], verbs=["capture", "annotate", "read"])
    _, mute = create_key(store, ["notes"], verbs=["metrics"])
    soon, expired = create_key(store, ["notes"], expires_at=datetime.now(UTC) + timedelta(seconds=0.2))
    gone, revoked = create_key(store, ["notes"])
    revoke_key(store, gone.id)
    assert soon.expires_at is not None
    while datetime.now(UTC) <= soon.expires_at:
        pass
    credentials: dict[str, tuple[str | bytes | None, set[int]]] = {
        "none": (None, {401}),
        "empty": ("", {401}),
        "another scheme": ("Basic dXNlcjpwYXNz", {401}),
        "garbage": ("Bearer " + "x" * 500, {401}),
        "bytes": (b"Bearer \xff\xfe\x80", {401}),
        "a made-up key": ("Bearer trk_0123456789ab_" + "0" * 64, {401}),
        "a real id with another secret": (f"Bearer {good[:17]}" + "0" * 64, {401}),
        "of another corpus": (f"Bearer {elsewhere}", {200, 400, 403, 415, 422}),
        "for another verb": (f"Bearer {mute}", {200, 403}),
        "expired": (f"Bearer {expired}", {401}),
        "revoked": (f"Bearer {revoked}", {401}),
        "good": (f"Bearer {good}", {200, 400, 403, 415, 422}),
    }
    with running(store) as server:
        for method, path in ROUTES:
            for name, (header, expected) in credentials.items():
                headers = {} if header is None else {"authorization": header}
                body = b"{}" if method == "POST" else None
                sent = server.http.build_request(
                    method, path, content=body, headers={"content-type": "application/json", **headers}
                )
                answer = server.http.send(sent)
                assert answer.status_code in expected, (method, path, name, answer.status_code, answer.text)
                if answer.status_code == 401:
                    assert answer.headers["www-authenticate"] == "Bearer"
        for method, path in OPEN:
            assert server.http.request(method, path).status_code == 200, path
    assert len(store.live("notes").to_table()) == 0


def test_a_server_that_runs_knows_a_new_key_at_once_and_a_revoked_one_soon(
    locked: tuple[Running, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    server, _ = locked
    monkeypatch.setattr(keys, "_LOOK_AGAIN_S", 0.0)
    made, token = create_key(server.store, ["notes"], verbs=["read"])
    assert server.http.get("/v1/corpora/notes", headers=bearer(token)).status_code == 200
    revoke_key(server.store, made.id)
    server.prepared.service.ring.refresh()  # what a thread does every 2 seconds
    answer = server.http.get("/v1/corpora/notes", headers=bearer(token))
    assert (answer.status_code, answer.json()["error"]["code"]) == (401, "revoked-key")


def test_made_up_keys_do_not_keep_the_store_busy(locked: tuple[Running, str], monkeypatch: pytest.MonkeyPatch) -> None:
    server, _ = locked
    looks = []
    listed = keys.list_keys
    monkeypatch.setattr(keys, "list_keys", lambda store: looks.append(1) or listed(store))
    for n in range(50):
        assert server.http.get("/metrics", headers=bearer(f"trk_{n:012x}_" + "0" * 64)).status_code == 401
    assert len(looks) <= 5


def test_losing_the_last_key_opens_nothing(store: treering.Store, notes: treering.Corpus) -> None:
    made, _ = create_key(store, ["notes"])
    revoke_key(store, made.id)
    with running(store) as server:
        assert server.http.get("/v1/corpora").status_code == 401


def test_the_first_key_closes_a_server_that_ran_without(server: Running) -> None:
    assert server.http.get("/v1/corpora").status_code == 200
    create_key(server.store, ["notes"])
    server.prepared.service.ring.refresh()
    assert server.http.get("/v1/corpora").status_code == 401


def test_beyond_this_machine_a_server_without_keys_is_refused(store: treering.Store, notes: treering.Corpus) -> None:
    for host in ("0.0.0.0", "::", "192.0.2.1"):
        with pytest.raises(UsageError, match="without keys"):
            prepare(store, host, 0)


def test_without_keys_names_of_other_hosts_and_pages_of_other_origins_are_refused(server: Running) -> None:
    def code(**headers: str) -> str:
        answer = server.http.post("/v1/corpora/notes/records", json=labelled(1), headers=headers)
        assert answer.status_code == 403
        return str(answer.json()["error"]["code"])

    assert code(host="evil.example") == "bad-host"  # DNS rebinding
    assert code(host="evil.example:8321") == "bad-host"
    assert code(host="127.0.0.1.evil.example:8321") == "bad-host"  # a name, however it begins
    assert code(host="127.evil.example") == "bad-host"
    assert code(origin="https://evil.example") == "bad-origin"
    assert code(origin="null") == "bad-origin"
    own = server.url.removeprefix("http://")
    assert server.http.get("/v1/corpora", headers={"origin": server.url}).status_code == 200
    assert server.http.get("/v1/corpora", headers={"host": own.replace("127.0.0.1", "localhost")}).status_code == 200


def test_a_damaged_key_document_stops_no_revocation_and_opens_nothing(
    store: treering.Store, notes: treering.Corpus, caplog: pytest.LogCaptureFixture
) -> None:
    made, token = create_key(store, ["notes"])
    good, other = create_key(store, ["notes"])
    damaged, _ = create_key(store, ["notes"])
    assert store.root is not None
    with running(store) as server:
        (store.root / "keys" / damaged.id / "key.json").write_bytes(b"{")
        assert revoke_key(store, made.id).revoked_at is not None
        (store.root / "keys" / good.id / "revoked.json").write_bytes(b"")  # a host that went down while it revoked
        server.prepared.service.ring.refresh()
        for gone in (token, other):
            answer = server.http.get("/v1/corpora", headers=bearer(gone))
            assert (answer.status_code, answer.json()["error"]["code"]) == (401, "revoked-key")
    assert damaged.id in caplog.text
    for look in (lambda: list_keys(store), lambda: revoke_key(store, damaged.id)):
        with pytest.raises(StoreError, match=damaged.id):
            look()
    assert (store.root / "keys" / damaged.id / "revoked.json").exists()
    for one in (made, good):
        (store.root / "keys" / one.id / "key.json").unlink()
    with running(store) as server:  # of keys there is only one left, which can't be read
        assert server.http.get("/v1/corpora").status_code == 401


def test_a_look_at_the_keys_that_fails_is_logged_and_not_the_last_one(
    store: treering.Store, notes: treering.Corpus, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    made, token = create_key(store, ["notes"])
    monkeypatch.setattr(keys, "REFRESH_S", 0.05)
    with running(store) as server:
        real = type(store.objects).list

        def fails(*args: object, **kwargs: object) -> object:
            raise RuntimeError("nobody thought of this")

        monkeypatch.setattr(type(store.objects), "list", fails)
        wait_for(lambda: "nobody thought of this" in caplog.text)
        monkeypatch.setattr(type(store.objects), "list", real)
        revoke_key(store, made.id)
        wait_for(lambda: server.http.get("/v1/corpora", headers=bearer(token)).status_code == 401)


def test_keys_that_cannot_be_meant_are_refused(store: treering.Store, notes: treering.Corpus) -> None:
    with pytest.raises(UsageError, match="no verb 'fly'"):
        create_key(store, ["notes"], verbs=["fly"])
    with pytest.raises(UsageError, match="without verbs"):
        create_key(store, ["notes"], verbs=[])
    with pytest.raises(UsageError, match="for a corpus"):
        create_key(store, [])
    with pytest.raises(NotFoundError, match="no corpus 'nobody'"):
        create_key(store, ["nobody"])
    with pytest.raises(UsageError, match="is past"):
        create_key(store, ["notes"], expires_at=datetime(2020, 1, 1, tzinfo=UTC))
    with pytest.raises(NotFoundError, match="no key"):
        revoke_key(store, "nobody")
    assert list_keys(store) == []


def test_an_expiry_is_an_age_or_a_moment() -> None:
    near = parse_expiry("90d") - datetime.now(UTC)
    assert timedelta(days=89, hours=23) < near < timedelta(days=90, seconds=1)
    assert parse_expiry("2030-01-31") == datetime(2030, 1, 31, tzinfo=UTC)
    assert parse_expiry("2030-01-31T12:00:00+02:00") == datetime(2030, 1, 31, 10, tzinfo=UTC)
    for bad in ("soon", "0d", "-3d", "3y", ""):
        with pytest.raises(UsageError, match="neither a time nor an age"):
            parse_expiry(bad)
    for beyond in ("9999-12-31T23:59:59-10:00", "999999w"):
        with pytest.raises(UsageError, match="beyond the year 9999"):
            parse_expiry(beyond)


def test_revoking_twice_keeps_the_first_time(store: treering.Store, notes: treering.Corpus) -> None:
    made, _ = create_key(store, ["notes"])
    first = revoke_key(store, made.id)
    assert first.revoked_at is not None
    assert revoke_key(store, made.id).revoked_at == first.revoked_at


def test_the_command_shows_a_key_once(tmp_path: Path, store: treering.Store, notes: treering.Corpus) -> None:
    from typer.testing import CliRunner

    from treering.cli.app import app

    def run(*words: str) -> str:
        done = CliRunner().invoke(app, ["--store", str(store.uri), "keys", *words, "--json"])
        assert done.exit_code == 0, done.output
        return done.stdout

    made = json.loads(run("create", "--corpus", "notes", "--verbs", "capture", "--expires", "30d", "--note", "bot"))
    assert made["token"].startswith("trk_")
    listed = run("list")
    assert made["token"] not in listed
    (view,) = json.loads(listed)
    assert (view["status"], view["note"], view["verbs"]) == ("active", "bot", ["capture"])
    assert json.loads(run("revoke", made["id"]))["status"] == "revoked"
    with running(store) as server, httpx.Client(base_url=server.url) as http:
        assert http.get("/v1/corpora", headers=bearer(made["token"])).status_code == 401
