"""Pruning, bundles and backfill on an object store."""

from __future__ import annotations

from pathlib import Path

import lance
import pytest

import treering
from tests.s3.conftest import ids, record
from treering.errors import NotFoundError
from treering.store import prune as pruning
from treering.testing.objectstore import LocalS3


def sealed(store: treering.Store, *prefixes: str, rows: int = 100) -> treering.Corpus:
    support = store.create("support", "labelled")
    for prefix in prefixes:
        with support.capture() as live:
            live.extend([record(f"{prefix}{n}") for n in range(rows)])
        support.snapshot()
    return support


def test_pruning_on_an_object_store_leaves_names_and_held_out_records(
    remote: treering.Store, s3: LocalS3, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pruning, "MARGIN_S", 0.0)
    support = sealed(remote, "a", "b", "c")
    heldout = remote.load("support@v1").heldout().to_table()
    assert support.prune(older_than=1).snapshots == []  # by the server's clock
    files = remote.objects.sizes(f"tables/{support.record.table}.lance")
    plan = support.prune(keep=1)
    assert [one.ref for one in plan.snapshots] == ["support@v1", "support@v2"]
    report = support.prune(keep=1, dry_run=False, keep_heldout=True)
    left = remote.objects.sizes(f"tables/{support.record.table}.lance")
    assert sum(files.values()) - sum(left.values()) >= report.bytes == plan.bytes > 0
    again = treering.open(remote.uri, create=False, storage_options=s3.storage_options)
    assert again.heldout("support@v1").to_table().equals(heldout)
    with pytest.raises(NotFoundError, match="was pruned"):
        again.load("support@v2")
    with pytest.raises(ValueError, match="not found"):
        lance.dataset(support.uri, version="v1", storage_options=s3.storage_options)
    with again.corpus("support").capture() as live:
        live.extend([record("a1"), record("b2"), record("c3"), record("new")])
        live.flush()
        assert (live.counts.stored, live.counts.duplicates) == (1, 3)
    assert ids(again, "support@live") == ["new"]


def test_a_bundle_goes_from_a_directory_to_an_object_store_and_back(
    remote: treering.Store, store: treering.Store, tmp_path: Path
) -> None:
    here = sealed(store, "a", "b")
    there = sealed(remote, "x")
    digest = here.snapshots()[1].digest
    assert remote.unpack(store.pack("support@v2", tmp_path / "b.zip")).digest == digest
    assert [s.name for s in there.snapshots()] == ["v1", "v2"]
    assert ids(remote, "support@v2") == ids(store, "support@v2")
    assert ids(remote, "support@live") == []
    assert store.unpack(remote.pack("support@v1", tmp_path / "x.zip")).ref == "support@v3"
    assert ids(store, "support@v3") == ids(remote, "support@v1")


def test_corrections_and_lineage_on_an_object_store(remote: treering.Store) -> None:
    support = sealed(remote, "a")
    support.annotate("a3", correction={"label": "corrected"})
    with remote.mix("support@v1").loader(10, ["id", "label"]) as loader:
        labels = {i: label for batch in loader for i, label in zip(batch["id"], batch["label"], strict=True)}
    assert labels.get("a3", "corrected") == "corrected"
    found = treering.lineage(remote, "a3")
    assert found.places[0].ref == "support@v1"  # type: ignore[union-attr]
    assert [word.key for word in found.places[0].annotations] == ["correction"]  # type: ignore[union-attr]
