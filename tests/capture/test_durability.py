"""The order that durability rests on: synced first, trimmed or sealed second."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

import treering
from treering.capture.spool import Spool
from treering.store import durable, objects, table
from treering.store.corpus import BaseCorpus
from treering.store.objects import LocalObjects


@pytest.fixture
def synced(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """Paths that were fsynced so far."""
    seen: set[str] = set()
    original = durable.sync_file

    def recorded(path: Path) -> None:
        original(path)
        seen.add(str(path))

    for module in (durable, objects, table):
        monkeypatch.setattr(module, "sync_file", recorded)
    return seen


def referenced(corpus: treering.Corpus) -> set[str]:
    head = corpus.table.head()
    files = [Path(corpus.uri) / path for path in corpus.table.files(head)]
    return {str(path) for path in (*files, *(file.parent for file in files))}


def test_the_spool_syncs_every_transaction(support: treering.Corpus) -> None:
    with support.capture() as live:
        assert live._spool._writer.execute("PRAGMA synchronous").fetchone() == (2,)  # FULL
        assert live._spool._writer.execute("PRAGMA journal_mode").fetchone() == ("wal",)


def test_a_snapshots_tag_is_synced(support: treering.Corpus, synced: set[str]) -> None:
    with support.capture() as live:
        live.add({"id": "r", "text": "t", "label": "l"})
    assert support.snapshot()
    tags = Path(support.uri) / "_refs" / "tags"
    assert {str(tags / "v1.json"), str(tags)} <= synced


def test_the_spool_lets_go_only_of_what_is_synced(
    support: treering.Corpus, synced: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    missing: list[set[str]] = []
    original = Spool.trim

    def checked(spool: Spool, which: str, up_to: int) -> None:
        missing.append(referenced(support) - synced)
        original(spool, which, up_to)

    monkeypatch.setattr(Spool, "trim", checked)
    synced.clear()
    support.table._synced.clear()
    with support.capture() as live:
        for i in range(3):
            live.add({"id": f"r{i}", "text": "t", "label": "l"})
            live.flush()
    assert missing == [set()] * 3


def test_a_neighbours_files_are_synced_too(support: treering.Corpus, synced: set[str]) -> None:
    other = treering.open(support.store.uri).corpus("support")
    with other.capture() as live:
        live.add({"id": "theirs", "text": "t", "label": "l"})
    synced.clear()
    support.table._synced.clear()
    with support.capture() as live:
        live.add({"id": "ours", "text": "t", "label": "l"})
    assert referenced(support) <= synced


def test_the_record_is_written_only_when_its_version_is_synced(
    support: treering.Corpus, synced: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with support.capture() as live:
        live.add({"id": "r", "text": "t", "label": "l"})
    synced.clear()
    support.table._synced.clear()
    missing: list[set[str]] = []

    def step(corpus: BaseCorpus, name: str) -> None:
        if name == "before-record":
            missing.append(referenced(support) - synced)

    monkeypatch.setattr(BaseCorpus, "step", step)
    assert support.snapshot()
    assert missing == [set()]


@pytest.mark.parametrize("unnamed", [True, False])
def test_an_object_gets_its_name_when_its_bytes_are_synced_and_its_new_folders_are_too(
    store: treering.Store, synced: set[str], monkeypatch: pytest.MonkeyPatch, unnamed: bool
) -> None:
    if not unnamed:  # as on a file system without files that have no name
        monkeypatch.delattr(os, "O_TMPFILE")
    inodes: set[int] = set()
    fsync, link = os.fsync, os.link

    def noted(descriptor: int) -> None:
        fsync(descriptor)
        inodes.add(os.fstat(descriptor).st_ino)

    def checked(source: Any, *arguments: Any, **options: Any) -> None:
        assert os.stat(source).st_ino in inodes
        link(source, *arguments, **options)

    monkeypatch.setattr(os, "fsync", noted)
    monkeypatch.setattr(os, "link", checked)
    LocalObjects(store.root).create("a/b/c.json", b"{}")
    root = Path(store.uri)
    assert {str(root / "a/b"), str(root / "a"), str(root)} <= synced
    assert [path.name for path in (root / "a/b").iterdir()] == ["c.json"]
    with pytest.raises(treering.AlreadyExistsError):
        LocalObjects(store.root).create("a/b/c.json", b"other")
    assert [path.name for path in (root / "a/b").iterdir()] == ["c.json"]
    assert LocalObjects(store.root).get("a/b/c.json") == b"{}"
