"""Erasing from a store on an object store: nothing is left in the bucket, and other hosts' spools bring nothing back."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import lance
import pytest

import treering
from tests.erasing import SCHEMA, contents, files_with, keep_text_plain, record, without
from treering.testing.objectstore import LocalS3

WHO = "canary-4711@example.org"


def objects_with(store: treering.Store, canary: str) -> list[str]:
    return [path for path in store.objects.list("") if canary.encode() in store.objects.get(path)]


@pytest.fixture
def corpus(remote: treering.Store, monkeypatch: pytest.MonkeyPatch) -> treering.Corpus:
    keep_text_plain(monkeypatch)
    corpus = remote.create("support", SCHEMA, heldout=0.2)
    for start, subjects in ((0, [WHO, "ann"]), (100, ["ann"]), (200, ["ann", WHO])):
        with corpus.capture() as live:
            live.extend([record(start + n, who) for n in range(8) for who in subjects])
        if start < 200:
            corpus.snapshot()
    return corpus


def test_nothing_of_a_subject_is_left_in_the_bucket_and_the_rest_is_as_it_was(
    remote: treering.Store, corpus: treering.Corpus, host: Path
) -> None:
    corpus.annotate(f"{WHO}-1", label="x", note=WHO)
    before, digest = contents(remote), corpus.snapshots()[1].digest
    _ = corpus.snapshots()[0].certificate
    list(remote.mix("support@v1").loader(batch_size=8, columns=["text"]))
    remote.cache.build(remote.load("support@v1"), ["text"])
    assert len(objects_with(remote, WHO)) > 3
    assert any("columns" in path for path in files_with(host / "cache", WHO))
    receipt = corpus.erase(where={"subject": WHO})
    assert objects_with(remote, WHO) == []
    assert files_with(host, WHO) == []
    assert contents(remote) == without(before, WHO)
    assert receipt.records == {"v1": 8, "live": 8}
    assert corpus.snapshots()[1].digest == digest
    location = remote.location
    options = {**location.options}
    plain = lance.dataset(corpus.uri, version="v1", storage_options=options)
    assert plain.count_rows() == 8
    with corpus.capture() as live:
        assert live.add(record(1, WHO)).status == "erased"
        live.extend([record(900, "ann")])
    assert corpus.snapshot() is not None
    corpus.erase(where={"subject": "ann"})
    assert objects_with(remote, "by ann") == []


def test_what_killed_writers_left_goes_once_it_can_belong_to_no_commit(
    remote: treering.Store, corpus: treering.Corpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = f"tables/{corpus.record.table}.lance/data"
    remote.objects.create(f"{folder}/left-behind.lance", WHO.encode())
    receipt = corpus.erase(where={"subject": WHO})
    assert objects_with(remote, WHO) == [f"{folder}/left-behind.lance"]  # it may be about to be committed
    assert any("1 files" in text and "erase again" in text for text in receipt.not_covered)
    now = remote.objects.now
    monkeypatch.setattr(type(remote.objects), "now", lambda self: now() + timedelta(hours=2))
    assert corpus.erase(where={"subject": WHO}).not_covered == [
        t for t in receipt.not_covered if "erase again" not in t
    ]
    assert objects_with(remote, WHO) == []


def test_the_spool_of_another_host_brings_nothing_back(
    remote: treering.Store, corpus: treering.Corpus, s3: LocalS3, host: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = contents(remote)
    monkeypatch.setenv("TREERING_STATE_DIR", str(host / "elsewhere"))
    elsewhere = treering.open(remote.uri, storage_options=s3.storage_options).corpus("support")
    away = elsewhere.capture()
    monkeypatch.setattr(away, "_drain", lambda: 0)  # cut off from the store
    away.extend([record(n, who) for n in range(400, 404) for who in (WHO, "ann")])
    monkeypatch.setenv("TREERING_STATE_DIR", str(host / "state"))
    corpus.erase(where={"subject": WHO})
    assert files_with(host / "elsewhere", WHO) != []
    monkeypatch.undo()
    monkeypatch.setenv("TREERING_STATE_DIR", str(host / "elsewhere"))
    away.flush()
    assert away.counts.erased == 4
    assert files_with(host / "elsewhere", WHO) == []
    assert objects_with(remote, WHO) == []
    left = without(before, WHO)["live"]
    assert [row["id"] for row in contents(remote)["live"]] == [
        *(r["id"] for r in left),
        *(f"ann-{n}" for n in range(400, 404)),
    ]
    away.close()
