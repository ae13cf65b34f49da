"""Whatever is sent to a server is answered by 2xx or by an error with a name, and what it stores is what was sent."""

from __future__ import annotations

import json
import urllib.parse
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

import treering
from tests.server.running import Running, running
from treering.schema import parse_json

RECORDS = "/v1/corpora/notes/records"
POSTS = [
    RECORDS, "/v1/corpora/notes/annotations", "/v1/traces", "/v1/logs", "/v1/hooks/claude-code", "/v1/hooks/codex",
]  # fmt: skip
MEDIA = [
    "application/json", "application/x-ndjson", "application/vnd.apache.arrow.stream", "application/x-protobuf",
]  # fmt: skip


@pytest.fixture
def server(store: treering.Store) -> Iterator[Running]:
    store.create("notes", "labelled")
    store.create("chats", "chat")
    with running(store) as found:
        yield found


def check(answer: httpx.Response, what: Any) -> None:
    """2xx, or an error with a name."""
    assert answer.status_code < 500, (what, answer.status_code, answer.text)
    if answer.status_code >= 300 and answer.headers["content-type"] == "application/json":
        said = answer.json()
        assert said.get("error", {}).get("code") or said.get("records") or said.get("message"), (what, said)


def test_every_case_of_the_json_suite_is_answered_by_name(server: Running, json_cases: list[dict[str, Any]]) -> None:
    for case in json_cases:
        body = case["input"].encode("utf-8", "surrogatepass")
        for path in (RECORDS, "/v1/traces"):
            headers = {"content-type": "application/json", "x-treering-corpus": "chats"}
            answer = server.http.post(path, content=body, headers=headers)
            check(answer, (path, case["name"]))
            if case["name"].startswith("n_"):
                assert answer.status_code in (400, 422), case["name"]
        lines = body.replace(b"\n", b" ")
        check(server.http.post(RECORDS, content=lines, headers={"content-type": MEDIA[1]}), case["name"])
    assert server.http.get("/health").status_code == 200


def test_naughty_strings_come_back_as_they_went_in(server: Running, naughty_strings: list[str]) -> None:
    sent = [
        {"id": f"{n}", "text": text, "label": text, "domain": text, "subject": text, "meta": {text: text}}
        for n, text in enumerate(naughty_strings)
    ]
    answer = server.post(RECORDS, sent)
    assert answer.status_code == 200
    taken = {one["id"] for one in answer.json()["records"] if one["status"] == "stored"}
    assert len(taken) >= len(sent) - 1  # an empty string names no column of `meta`, say
    treering.capture.flush_spools(server.store.corpus("notes"))
    rows = {row["id"]: row for row in server.store.live("notes").to_table().to_pylist()}
    assert set(rows) == taken
    for one in sent:
        if one["id"] in taken:
            row = rows[str(one["id"])]
            assert (row["text"], row["label"], parse_json(row["meta"])) == (one["text"], one["label"], one["meta"])


def test_naughty_strings_as_names_headers_and_parameters_are_answered_by_name(
    server: Running, naughty_strings: list[str]
) -> None:
    for text in [*naughty_strings, "../../etc/passwd", "..%2f..", "notes\0", "/abs", "s3://b/store#notes", "notes@v1"]:
        quoted = urllib.parse.quote(text, safe="")
        for path in (
            f"/v1/corpora/{quoted}/records", f"/v1/corpora/{quoted}", f"/v1/corpora/{quoted}/head",
            f"/v1/corpora/notes/head?of={quoted}&n={quoted}", f"/{quoted}",
        ):  # fmt: skip
            if len(path) > 8_000:
                continue
            post = path.endswith("records")
            check(server.http.request("POST" if post else "GET", path, json={} if post else None), path)
        raw = text.encode("utf-8", "replace").translate(None, b"\r\n\0")
        headers: list[tuple[bytes, bytes]] = [
            (b"x-treering-corpus", raw),
            (b"idempotency-key", raw),
            (b"authorization", raw),
        ]
        headers += [(b"content-type", b"application/json")]
        try:
            answer = server.http.post("/v1/traces", content=b"{}", headers=headers)
        except httpx.LocalProtocolError:
            continue  # the client itself won't send it
        check(answer, text)


@pytest.mark.parametrize("path", POSTS)
def test_every_route_answers_every_media_type_and_noise_by_name(server: Running, path: str) -> None:
    noise = [
        b"",
        b"\0",
        b"null",
        b"[]",
        b"{}",
        b"[[]]",
        b'"x"',
        b"1e999",
        b"\xff\xfe",
        b"[" * 5_000,
        b"\x0a\x05hello",
        b"{}\n" * 3,
    ]
    noise.append(json.dumps({"resourceSpans": [{"resource": 1, "scopeSpans": {}}]}).encode())
    for media in MEDIA:
        for body in noise:
            headers = {"content-type": media, "x-treering-corpus": "chats"}
            check(server.http.post(path, content=body, headers=headers), (path, media, body[:20]))
