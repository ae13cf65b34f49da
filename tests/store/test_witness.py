"""A table that was rolled back is an error, never an older view; what never reached the disk is taken back."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import lance
import pytest

import treering
from treering.store import table as table_module
from treering.store import witness as witness_module
from treering.store.witness import HeadWitness, Seen


def put(corpus: treering.Corpus, prefix: str, count: int = 5) -> None:
    with corpus.capture() as live:
        live.extend([{"id": f"{prefix}{i}", "text": f"{prefix} {i}", "label": "a"} for i in range(count)])


def ids(corpus: treering.Corpus, ref: str = "live") -> set[str]:
    return set(corpus.store.load(f"{corpus.name}@{ref}").to_table(["id"])["id"].to_pylist())


def again(corpus: treering.Corpus) -> treering.Corpus:
    return treering.open(corpus.store.uri, create=False).corpus(corpus.name)


def manifest(corpus: treering.Corpus, version: int | None = None) -> Path:
    return Path(corpus.uri) / corpus.table.manifest_path(version or corpus.table.latest_version())


def the_power_goes(*_: object) -> None:
    raise treering.StoreError("the power is gone")


def restart(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (witness_module, table_module):
        monkeypatch.setattr(module, "boot_id", lambda: "the next boot")


@pytest.fixture
def filled(support: treering.Corpus) -> treering.Corpus:
    put(support, "a")
    put(support, "b")
    return support


@pytest.mark.parametrize("held", ["the same handle", "another process"])
def test_a_missing_newest_manifest_is_an_error_with_the_command_never_an_older_view(
    filled: treering.Corpus, held: str
) -> None:
    manifest(filled).unlink()
    corpus = filled if held == "the same handle" else again(filled)
    for use in (
        lambda: corpus.store.load("support@live"),
        corpus.live_rows,
        corpus.snapshot,
        corpus.compact,
        lambda: put(corpus, "c"),
    ):
        with pytest.raises(treering.StoreError, match=f"treering doctor --repair --store {corpus.store.uri}") as caught:
            use()
        assert caught.value.code == "rolled-back"


def test_a_newest_manifest_with_other_content_is_an_error(filled: treering.Corpus) -> None:
    older, newest = manifest(filled, filled.table.latest_version() - 1), manifest(filled)
    newest.write_bytes(older.read_bytes())
    with pytest.raises(treering.StoreError) as caught:
        again(filled).live_rows()
    assert caught.value.code in ("manifest-changed", "rolled-back", "manifest-damaged")


def test_a_restored_old_copy_of_a_table_is_an_error(filled: treering.Corpus, tmp_path: Path) -> None:
    shutil.copytree(filled.uri, tmp_path / "copy")
    put(filled, "c")
    shutil.rmtree(filled.uri)
    shutil.copytree(tmp_path / "copy", filled.uri)
    with pytest.raises(treering.StoreError, match="rolled back"):
        again(filled).live_rows()


def test_a_missing_snapshot_record_is_an_error_whichever_it_is(filled: treering.Corpus) -> None:
    for prefix in "cd":
        filled.snapshot()
        put(filled, prefix)
    for name in ("v1", "v2"):
        record = next((Path(filled.store.uri) / "snapshots").glob(f"*/{name}/1.json"))
        kept = record.read_bytes()
        record.unlink()
        with pytest.raises(treering.StoreError, match=f"record of support@{name} is missing"):
            again(filled).live_rows()
        assert again(filled).store.doctor(repair=True).ok  # written again from what the tag tells
        record.unlink()
        record.write_bytes(kept)


def test_the_newest_manifest_of_a_seal_is_missed_too(filled: treering.Corpus) -> None:
    filled.snapshot()
    manifest(filled).unlink()
    with pytest.raises(treering.StoreError, match="rolled back"):
        again(filled).live_rows()


def test_a_rolled_back_annotation_table_is_an_error(filled: treering.Corpus) -> None:
    filled.annotate("a1", label="x")
    log = filled.annotation_log.table
    assert log.root is not None
    (log.root / log.manifest_path(log.latest_version())).unlink()
    with pytest.raises(treering.StoreError, match="rolled back"):
        again(filled).annotations()


@pytest.mark.parametrize("damage", ["truncated", "empty", "zeros"])
def test_a_torn_manifest_that_was_never_acknowledged_is_taken_back_and_its_records_come_from_the_spool(
    filled: treering.Corpus, monkeypatch: pytest.MonkeyPatch, damage: str
) -> None:
    # The commit happens, and the power goes before it is made durable: so the spool still holds its records.
    monkeypatch.setattr(type(filled.table), "make_durable", the_power_goes)
    with pytest.raises(treering.StoreError, match="the power"):
        put(filled, "c")
    monkeypatch.undo()
    file = manifest(filled)
    data = file.read_bytes()
    file.write_bytes({"truncated": data[: len(data) // 2], "empty": b"", "zeros": bytes(len(data))}[damage])
    corpus = again(filled)
    assert ids(corpus) == {f"{p}{i}" for p in "ab" for i in range(5)}
    corpus.quarantine()  # adopts the spool
    assert ids(corpus) == {f"{p}{i}" for p in "abc" for i in range(5)}


def test_after_a_restart_what_was_never_synced_is_taken_back_even_if_it_can_be_read(
    filled: treering.Corpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    witnessed = filled.table.latest_version()
    monkeypatch.setattr(type(filled.table), "make_durable", the_power_goes)
    with pytest.raises(treering.StoreError, match="the power"):
        put(filled, "c")
    monkeypatch.undo()
    data = max((Path(filled.uri) / "data").iterdir(), key=os.path.getmtime)
    data.write_bytes(bytes(data.stat().st_size))  # as a file system may leave it
    restart(monkeypatch)
    corpus = again(filled)
    assert corpus.table.head().version == witnessed
    corpus.quarantine()
    assert ids(corpus) == {f"{p}{i}" for p in "abc" for i in range(5)}


def test_within_a_boot_what_a_killed_process_committed_stays(
    filled: treering.Corpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(type(filled.table), "make_durable", the_power_goes)
    with pytest.raises(treering.StoreError, match="the power"):
        put(filled, "c")
    monkeypatch.undo()
    assert ids(again(filled)) == {f"{p}{i}" for p in "abc" for i in range(5)}  # readers keep what they saw


def test_a_damaged_manifest_that_was_acknowledged_is_refused_with_the_command(filled: treering.Corpus) -> None:
    manifest(filled).write_bytes(b"")
    with pytest.raises(treering.StoreError, match="treering doctor --repair") as caught:
        again(filled).live_rows()
    assert caught.value.code == "manifest-damaged"
    assert manifest(filled).exists()


def test_cleaning_up_keeps_the_version_that_is_on_disk_until_the_next_one_is(
    filled: treering.Corpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = lance.LanceDataset.cleanup_old_versions
    left: list[list[int]] = []
    witnessed = filled.table.head().version

    def beside_a_commit(dataset: object, **options: object) -> object:
        # A neighbour commits right now, and its commit isn't on disk yet.
        with monkeypatch.context() as patched:
            patched.setattr(type(filled.table), "make_durable", lambda *_: None)
            put(again(filled), "c")
        dataset.checkout_latest()  # type: ignore[attr-defined]
        stats = real(dataset, **options)
        left.append(filled.table.newest_manifests())
        return stats

    monkeypatch.setattr(lance.LanceDataset, "cleanup_old_versions", beside_a_commit)
    filled.table.clean_up(0.0)
    assert left == [[witnessed + 1, witnessed]]
    seen = filled.table.witness.read() if filled.table.witness else None
    assert seen is not None
    assert seen.version == witnessed + 1
    monkeypatch.undo()
    filled.table.clean_up(0.0)
    assert filled.table.newest_manifests() == [witnessed + 1]
    assert filled.table.tags() == []


def test_a_witness_only_grows_and_outlasts_a_torn_write(tmp_path: Path) -> None:
    witness = HeadWitness(tmp_path / "w" / "t.head", tmp_path / "t.lock")
    assert witness.read() is None
    for version in (3, 5, 4, 9):
        witness.advance(version, f"{version:064x}")
    witness.sealed(2)
    witness.sealed(1)
    seen = witness.read()
    assert seen is not None
    assert (seen.version, seen.manifest_sha256, seen.snapshots) == (9, f"{9:064x}", 2)
    for torn in (0, 512):
        data = bytearray(witness.path.read_bytes())
        data[torn + 40] ^= 1
        copy = HeadWitness(tmp_path / "w" / "torn.head", tmp_path / "torn.lock")
        copy.path.write_bytes(data)
        left = copy.read()
        assert left is not None
        assert left.version == 9  # both slots know it: the last two writings were version 9 and snapshot 2
        assert copy.slots() == 1
    witness.path.write_bytes(bytes(1024))
    with pytest.raises(treering.StoreError, match="doctor --repair"):
        witness.read()


def test_witnessing_from_many_processes_keeps_the_highest(tmp_path: Path) -> None:
    import subprocess
    import sys

    code = (
        "import sys; from pathlib import Path; from treering.store.witness import HeadWitness\n"
        "w = HeadWitness(Path(sys.argv[1]) / 'w' / 't.head', Path(sys.argv[1]) / 't.lock')\n"
        "for v in range(int(sys.argv[2]), 300, 3): w.advance(v + 1, f'{v + 1:064x}')\n"
    )
    started = [subprocess.Popen([sys.executable, "-c", code, str(tmp_path), str(n)]) for n in range(3)]
    assert [p.wait(60) for p in started] == [0, 0, 0]
    seen = HeadWitness(tmp_path / "w" / "t.head", tmp_path / "t.lock").read()
    assert seen == Seen(300, f"{300:064x}", 0, witness_module.boot_id(), seen.turn if seen else 0)


def test_a_table_that_a_power_cut_left_half_made_is_made_anew(filled: treering.Corpus) -> None:
    log = filled.annotation_log.table
    assert log.root is not None
    (log.root / "_versions").mkdir(parents=True)
    (log.root / log.manifest_path(1)).write_bytes(bytes(400))
    assert ids(again(filled)) == {f"{p}{i}" for p in "ab" for i in range(5)}
    assert filled.store.doctor().ok
    filled.annotate("a1", label="x")
    assert again(filled).annotations()["id"].to_pylist() == ["a1"]
