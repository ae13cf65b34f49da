"""Records over HTTP: what each becomes, and that what was answered is there."""

from __future__ import annotations

import gzip
import io
import json
from typing import Any

import httpx
import pyarrow as pa
import pytest

import treering

from .running import Running, ids, labelled

RECORDS = "/v1/corpora/notes/records"


def statuses(answer: httpx.Response) -> list[str]:
    return [one["status"] for one in answer.json()["records"]]


def arrow(table: pa.Table, **options: Any) -> bytes:
    sink = io.BytesIO()
    with pa.ipc.new_stream(sink, table.schema, options=pa.ipc.IpcWriteOptions(**options)) as writer:
        writer.write_table(table)
    return sink.getvalue()


def test_one_object_an_array_lines_and_arrow_data_all_become_records(server: Running) -> None:
    one, *rest = labelled(7)
    assert server.post(RECORDS, one).json()["stored"] == 1
    assert server.post(RECORDS, rest[:2]).json()["stored"] == 2
    lines = "\n".join(map(json.dumps, rest[2:4])).encode() + b"\n\n"
    assert server.post(RECORDS, lines, content_type="application/x-ndjson").json()["stored"] == 2
    table = pa.Table.from_pylist(rest[4:])
    sent = server.post(RECORDS, arrow(table), content_type="application/vnd.apache.arrow.stream")
    assert (sent.status_code, statuses(sent)) == (200, ["stored", "stored"])
    server.store.corpus("notes").snapshot()
    found = server.store.load("notes@v1").to_table().column("id").to_pylist()
    assert sorted(found) == [f"r{n}" for n in range(7)]


def test_each_record_is_answered_by_what_became_of_it(server: Running) -> None:
    sent = [
        {"id": "a", "text": "t", "label": "l"},
        {"text": "t"},
        {"id": "a", "text": "t", "label": "l"},
        3,
        {"text": "u", "label": "l"},
    ]
    answer = server.post(RECORDS, sent)
    assert answer.status_code == 200
    assert statuses(answer) == ["stored", "refused", "duplicate", "refused", "stored"]
    found = answer.json()["records"]
    assert found[1]["problems"][0] == {
        "loc": ["label"],
        "kind": "missing-field",
        "message": "expected this field, got none",
    }
    assert len(found[4]["id"]) == 32
    assert answer.json() | {"records": 0} == {"stored": 2, "duplicates": 1, "refused": 2, "erased": 0, "records": 0}
    assert len(server.store.corpus("notes").quarantine()) == 2
    assert ids(server.store) == sorted(["a", found[4]["id"]])


def test_a_batch_of_which_nothing_was_taken_is_422_and_in_quarantine(server: Running) -> None:
    answer = server.post(RECORDS, [{"text": 1}, {}])
    assert answer.status_code == 422
    assert answer.json()["refused"] == 2
    assert len(server.store.corpus("notes").quarantine()) == 2


def test_lines_that_do_not_parse_go_to_quarantine_and_their_neighbours_are_stored(server: Running) -> None:
    body = b'{"id":"a","text":"t","label":"l"}\n{"id":"b",\n{"id":"c","text":"t","label":"l"}'
    answer = server.post(RECORDS, body, content_type="application/x-ndjson")
    assert statuses(answer) == ["stored", "refused", "stored"]
    assert answer.json()["records"][1]["problems"][0]["kind"] == "bad-json"
    (kept,) = server.store.corpus("notes").quarantine()
    assert kept.source == "http:2"
    assert ids(server.store) == ["a", "c"]


def test_a_request_sent_again_is_answered_as_duplicates_and_stored_once(server: Running) -> None:
    batch = labelled(50)
    assert server.post(RECORDS, batch).json()["stored"] == 50
    assert server.post(RECORDS, batch).json()["duplicates"] == 50
    reordered = [dict(reversed(one.items())) for one in batch[:3]]
    assert server.post(RECORDS, reordered).json()["duplicates"] == 3
    assert len(ids(server.store)) == 50


def test_an_id_with_other_content_is_refused_and_waits_in_quarantine(server: Running) -> None:
    server.post(RECORDS, labelled(1))
    answer = server.post(RECORDS, {"id": "r0", "text": "other", "label": "l"})
    assert answer.status_code == 422
    assert answer.json()["records"][0]["problems"][0]["kind"] == "id-conflict"
    assert server.store.live("notes").to_table().column("text").to_pylist() == ["text r 0"]


def test_with_an_idempotency_key_records_without_ids_are_stored_once_too(server: Running) -> None:
    batch = [{"text": "hi", "label": "l"}, {"text": "hi", "label": "l"}]
    first = server.post(RECORDS, batch, idempotency_key="k1").json()
    again = server.post(RECORDS, batch, idempotency_key="k1").json()
    other = server.post(RECORDS, batch, idempotency_key="k2").json()
    assert (first["stored"], again["duplicates"], other["stored"]) == (2, 2, 2)
    assert [one["id"] for one in first["records"]] == [one["id"] for one in again["records"]]
    server.store.corpus("notes").snapshot()
    assert len(server.store.load("notes@v1")) == 4


def test_with_an_idempotency_key_arrow_data_without_ids_is_stored_once_too(server: Running) -> None:
    table = pa.table({"id": pa.array([None, "mine"], pa.string()), "text": ["a", "b"], "label": ["l", "l"]})
    for sent in (table, table.drop_columns(["id"])):
        body = arrow(sent)
        headers = {"content_type": "application/vnd.apache.arrow.stream", "idempotency_key": f"k{sent.num_columns}"}
        first, second = (server.post(RECORDS, body, **headers).json()["records"] for _ in range(2))
        assert [one["id"] for one in first] == [one["id"] for one in second]
    assert len(ids(server.store)) == 4
    twice = pa.Table.from_arrays([table["text"], table["text"], table["label"]], names=["text", "text", "label"])
    answer = server.post(RECORDS, arrow(twice), content_type="application/vnd.apache.arrow.stream")
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "bad-arrow")
    assert "new_stream" in answer.json()["error"]["hint"]


def test_what_was_erased_is_answered_so_and_never_comes_back(server: Running) -> None:
    about = [{**one, "subject": "u1"} for one in labelled(2)]
    server.post(RECORDS, about)
    server.store.corpus("notes").erase(where={"subject": "u1"})
    again = server.post(RECORDS, [*about, {"id": "new", "text": "t", "label": "l"}, {"subject": "u1", "text": 5}])
    assert statuses(again) == ["erased", "erased", "stored", "erased"]
    table = pa.Table.from_pylist(about)
    sent = server.post(RECORDS, arrow(table), content_type="application/vnd.apache.arrow.stream")
    assert statuses(sent) == ["erased", "erased"]
    assert ids(server.store) == ["new"]


def test_a_body_that_is_no_json_is_400_and_stores_nothing(server: Running) -> None:
    answer = server.post(RECORDS, b'[{"id":"a","text":"t","label":"l"},')
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "bad-json")
    assert ids(server.store) == []


@pytest.mark.parametrize("media", ["text/plain", "", "application/xml", "multipart/form-data"])
def test_other_content_types_are_415(server: Running, media: str) -> None:
    # text/plain is what a page in a browser may send anywhere without asking.
    answer = server.post(RECORDS, b'{"text":"t","label":"l"}', content_type=media)
    assert (answer.status_code, answer.json()["error"]["code"]) == (415, "bad-media-type")


def test_a_corpus_that_is_not_there_is_404(server: Running) -> None:
    assert server.post("/v1/corpora/nobody/records", {}).json()["error"]["code"] == "no-corpus"
    assert server.post("/v1/corpora/..%2Fx/records", {}).status_code in (400, 404)


def test_arrow_data_that_is_compressed_damaged_or_of_other_columns_is_refused_by_name(server: Running) -> None:
    table = pa.Table.from_pylist(labelled(100))
    media = "application/vnd.apache.arrow.stream"

    def code(body: bytes) -> tuple[int, str]:
        answer = server.post(RECORDS, body, content_type=media)
        return answer.status_code, answer.json()["error"]["code"]

    plain = arrow(table)
    assert code(arrow(table, compression="zstd")) == (415, "compressed-arrow")
    assert code(arrow(table, compression="lz4")) == (415, "compressed-arrow")
    assert code(plain[: len(plain) // 2]) == (400, "bad-arrow")
    assert code(b"ARROW1\0\0") == (400, "bad-arrow")
    assert code(b"") == (400, "bad-arrow")
    assert code(arrow(table.append_column("more", table["text"]))) == (422, "invalid-record")
    assert code(arrow(table.set_column(1, "text", table["text"].dictionary_encode()))) == (400, "bad-arrow")
    for at in range(8, len(plain) - 8, 97):  # whatever is flipped: an answer, and the server stands
        flipped = plain[:at] + bytes([plain[at] ^ 0xFF]) + plain[at + 1 :]
        assert server.post(RECORDS, flipped, content_type=media).status_code in (200, 400, 413, 415, 422)
    assert server.http.get("/health").status_code == 200


def test_gzip_bodies_are_read(server: Running) -> None:
    body = gzip.compress(json.dumps(labelled(5)).encode())
    assert server.post(RECORDS, body, content_encoding="gzip").json()["stored"] == 5


def test_a_server_goes_on_with_the_new_columns_of_a_corpus_that_evolved(
    server: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pydantic import BaseModel

    from treering.server import writers

    class Wider(BaseModel):
        text: str
        label: str
        mood: str | None = None

    monkeypatch.setattr(writers, "_LOOK_S", 0.0)
    server.post(RECORDS, labelled(1))
    server.store.corpus("notes").evolve(Wider)
    answer = server.post(RECORDS, {"id": "x", "text": "t", "label": "l", "mood": "good"})
    assert statuses(answer) == ["stored"]


def test_words_about_records_are_all_stored_or_none(server: Running) -> None:
    server.post(RECORDS, labelled(2))
    path = "/v1/corpora/notes/annotations"
    assert server.post(path, [{"id": "r0", "label": "x"}, {"id": "r1", "quality": 0.5, "by": "ann"}]).json() == {
        "stored": 2
    }
    unknown = server.post(path, [{"id": "r0", "label": "y"}, {"id": "nobody", "label": "y"}])
    assert (unknown.status_code, unknown.json()["error"]["code"]) == (404, "no-record")
    wrong = server.post(path, {"id": "r0", "quality": "high"})
    assert wrong.status_code == 422
    assert "quality" in wrong.json()["error"]["message"]
    said = server.store.corpus("notes").annotations(["r0"]).to_pylist()
    assert [(one["key"], one["value"]) for one in said] == [("label", '"x"')]


def test_reading_says_what_the_store_says(server: Running) -> None:
    server.post(RECORDS, labelled(3))
    sealed = server.store.corpus("notes").snapshot(message="first")
    assert sealed is not None
    server.post(RECORDS, labelled(2, "s"))
    treering.capture.flush_spools(server.store.corpus("notes"))
    (corpus,) = server.http.get("/v1/corpora").json()
    assert (corpus["name"], corpus["record_type"], corpus["snapshots"]) == ("notes", "labelled", 1)
    assert "label" in server.http.get("/v1/corpora/notes").json()["schema"]["properties"]
    (snapshot,) = server.http.get("/v1/corpora/notes/snapshots").json()
    assert (snapshot["ref"], snapshot["rows"], snapshot["message"]) == ("notes@v1", 3, "first")
    assert [one["id"] for one in server.http.get("/v1/corpora/notes/head?n=9").json()] == ["s0", "s1"]
    assert len(server.http.get("/v1/corpora/notes/head?of=v1&n=2").json()) == 2
    status = server.http.get("/v1/corpora/notes/status").json()
    assert (status["live_rows"], status["sealed_rows"]) == (2, 3)
    for bad, code in (
        ("of=v9", 404),
        ("of=x", 400),
        ("n=-1", 400),
        ("n=a", 400),
        ("n=5000", 400),
        ("of=live%23x@v1", 400),
    ):
        assert server.http.get(f"/v1/corpora/notes/head?{bad}").status_code == code, bad


def test_metrics_count_what_became_of_records(server: Running) -> None:
    server.post(RECORDS, [*labelled(3), {"text": 1}])
    server.post(RECORDS, labelled(3))
    text = server.http.get("/metrics").text
    for line in (
        'treering_records_total{corpus="notes",outcome="stored"} 3.0',
        'treering_records_total{corpus="notes",outcome="duplicate"} 3.0',
        'treering_records_total{corpus="notes",outcome="refused"} 1.0',
        'treering_requests_total{route="/v1/corpora/{name}/records",status="200"} 2.0',
    ):
        assert line in text


def test_the_api_describes_itself(server: Running) -> None:
    described = server.http.get("/openapi.json").json()
    assert described["components"]["securitySchemes"]["key"]["scheme"] == "bearer"
    assert described["paths"]["/v1/corpora/{name}/head"]["get"]["security"] == [{"key": []}]
    assert "security" not in described["paths"]["/health"]["get"]
    paths = described["paths"]
    content = paths["/v1/corpora/{name}/records"]["post"]["requestBody"]["content"]
    assert set(content) == {"application/json", "application/x-ndjson", "application/vnd.apache.arrow.stream"}
    assert "503" in paths["/v1/corpora/{name}/records"]["post"]["responses"]
    assert {"/v1/corpora", "/v1/corpora/{name}/head", "/health", "/metrics"} <= set(paths)


def test_what_is_not_there_is_said_as_the_api_says_errors(server: Running) -> None:
    assert server.http.get("/nowhere").json()["error"]["code"] == "no-route"
    assert server.http.delete("/v1/corpora").json()["error"]["code"] == "bad-method"
