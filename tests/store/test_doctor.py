"""The doctor names what isn't fit to be relied on, and repairs what needs no guess."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

import treering
from treering.store.doctor import Diagnosis


def put(corpus: treering.Corpus, prefix: str, count: int = 20) -> None:
    with corpus.capture() as live:
        live.extend([{"id": f"{prefix}{i}", "text": f"{prefix} {i}", "label": "a"} for i in range(count)])


def codes(found: Diagnosis) -> list[str]:
    return [remark.code for remark in found.remarks if remark.level != "note" and not remark.repaired]


def ids(store: treering.Store, ref: str) -> set[str]:
    return set(treering.open(store.uri).load(ref).to_table(["id"])["id"].to_pylist())


@pytest.fixture
def sealed(support: treering.Corpus) -> treering.Corpus:
    put(support, "a")
    snapshot = support.snapshot(message="the first")
    assert snapshot is not None
    assert snapshot.digest
    put(support, "b")
    return support


def test_a_sound_store_has_nothing_that_needs_action_and_says_how_tables_fare(sealed: treering.Corpus) -> None:
    found = sealed.store.doctor()
    assert (found.ok, codes(found)) == (True, [])
    (table,) = found.tables
    assert (table.rows, table.fragments, table.fragments_compacted) == (20, 1, 1)
    assert table.version == table.witnessed == sealed.table.head().version
    assert table.bytes_on_disk >= table.bytes_needed > 0
    assert table.manifests == len(sealed.table.newest_manifests())


def test_a_rolled_back_table_goes_on_with_what_its_files_still_hold(sealed: treering.Corpus) -> None:
    store, version = sealed.store, sealed.table.latest_version()
    put(sealed, "c")
    for lost in (version + 1, version):
        (Path(sealed.uri) / sealed.table.manifest_path(lost)).unlink()
    assert codes(store.doctor()) == ["rolled-back"]
    done = store.doctor(repair=True)
    assert done.ok
    assert [r.line for r in done.remarks if r.code == "taken-in-again"] == [
        "40 records were found in files that no version named"
    ]
    assert ids(store, "support@live") == {f"{p}{i}" for p in "bc" for i in range(20)}
    assert ids(store, "support@v1") == {f"a{i}" for i in range(20)}
    assert treering.open(store.uri).corpus("support").table.head().version > version + 1  # no number comes back
    assert store.doctor().ok


def test_a_damaged_newest_manifest_is_set_aside_and_its_records_are_taken_in_again(sealed: treering.Corpus) -> None:
    manifest = Path(sealed.uri) / sealed.table.manifest_path(sealed.table.latest_version())
    manifest.write_bytes(manifest.read_bytes()[:-20])
    assert codes(sealed.store.doctor()) == ["manifest-damaged"]
    assert sealed.store.doctor(repair=True).ok
    assert ids(sealed.store, "support@live") == {f"b{i}" for i in range(20)}
    assert len(list((Path(sealed.store.uri) / "damaged").iterdir())) == 1


@pytest.mark.parametrize("how", ["from its certificate", "from its tag"])
def test_a_lost_record_is_written_anew(sealed: treering.Corpus, how: str) -> None:
    (record,) = Path(sealed.store.uri).glob("snapshots/*/v1/1.json")
    before, digest = record.read_bytes(), sealed.snapshots()[0].digest
    record.unlink()
    if how == "from its tag":
        for path in record.parent.iterdir():
            path.unlink()
    assert codes(sealed.store.doctor()) == ["record-missing"]
    assert sealed.store.doctor(repair=True).ok
    again = treering.open(sealed.store.uri).corpus("support").snapshots()[0]
    assert again.digest == digest
    assert (record.read_bytes() == before) == (how == "from its certificate")


def test_a_damaged_record_filter_or_tag_is_written_anew(sealed: treering.Corpus) -> None:
    root = Path(sealed.store.uri)
    (record,) = root.glob("snapshots/*/v1/1.json")
    (bloom,) = root.glob("snapshots/*/v1/*.bloom")
    tag = Path(sealed.uri) / "_refs" / "tags" / "v1.json"
    for path, code in ((record, "document-damaged"), (bloom, "filter-damaged"), (tag, "tag-moved")):
        whole = path.read_bytes()
        path.write_bytes(whole[:100] + bytes([whole[100] ^ 1]) + whole[101:] if path != tag else b"{}")
        assert codes(treering.open(root).doctor()) == [code]
        assert treering.open(root).doctor(repair=True).ok
        assert path.read_bytes() == whole
    tag.unlink()
    assert codes(sealed.store.doctor()) == ["tag-missing"]
    assert sealed.store.doctor(repair=True).ok
    assert sealed.verify("v1").ok


def test_a_damaged_certificate_is_never_made_up(sealed: treering.Corpus) -> None:
    (path,) = Path(sealed.store.uri).glob("snapshots/*/v1/1.certificate.json")
    path.write_bytes(path.read_bytes().replace(b'"rows": 20', b'"rows": 21'))
    found = treering.open(sealed.store.uri).doctor(repair=True)
    assert codes(found) == ["document-damaged"]
    assert "backup" in (found.remarks[0].remedy or "")


def test_a_witness_that_is_damaged_or_gone_is_written_anew(sealed: treering.Corpus) -> None:
    assert sealed.table.witness is not None
    path = sealed.table.witness.path
    before = sealed.table.witness.read()
    whole = path.read_bytes()
    for damage, code in (
        (lambda: path.write_bytes(whole[:20] + b"#" + whole[21:]), "witness-torn"),
        (lambda: path.write_bytes(bytes(1024)), "witness-damaged"),
        (path.unlink, "witness-missing"),
    ):
        damage()
        assert codes(sealed.store.doctor())[0] == code
        assert sealed.store.doctor(repair=True).remarks[0].repaired
        assert sealed.store.doctor().ok
        after = sealed.table.witness.read()
        assert after is not None
        assert before is not None
        assert (after.version, after.manifest_sha256, after.snapshots) == (
            before.version,
            before.manifest_sha256,
            before.snapshots,
        )


def test_what_anybody_can_write_is_named_and_closed(sealed: treering.Corpus) -> None:
    root = Path(sealed.store.uri)
    (root / "spool").chmod(0o777)
    found = sealed.store.doctor()
    assert codes(found) == ["world-writable"]
    assert sealed.store.doctor(repair=True).ok
    assert (root / "spool").stat().st_mode & 0o777 == 0o775


def test_a_link_that_leaves_the_store_is_named_and_refused_at_open(sealed: treering.Corpus, tmp_path: Path) -> None:
    root = Path(sealed.store.uri)
    (root / "snapshots" / "away").symlink_to(tmp_path)
    assert codes(sealed.store.doctor()) == ["symlink"]
    (root / "snapshots" / "away").unlink()
    shutil.move(root / "snapshots", tmp_path / "elsewhere")
    (root / "snapshots").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(treering.StoreError, match="snapshots is a link that leaves the store") as caught:
        treering.open(root)
    assert caught.value.code == "symlink"
    (root / "snapshots").unlink()
    (root / "snapshots").symlink_to(root / "within")
    shutil.move(tmp_path / "elsewhere", root / "within")
    assert len(treering.open(root).load("support@v1")) == 20


def test_a_store_that_anybody_can_write_is_warned_about_at_open(sealed: treering.Corpus) -> None:
    root = Path(sealed.store.uri)
    root.chmod(0o777)
    with pytest.warns(UserWarning, match="anybody on this machine can change"):
        treering.open(root)
    root.chmod(0o755)
    treering.open(root)


def test_spools_of_gone_processes_are_counted_and_taken_in(store: treering.Store, support: treering.Corpus) -> None:
    code = (
        "import os, sys, treering\n"
        "live = treering.open(sys.argv[1]).corpus('support').capture()\n"
        "live.extend([{'id': f'x{i}', 'text': 't', 'label': 'a'} for i in range(7)])\n"
        "os._exit(9)\n"
    )
    assert subprocess.run([sys.executable, "-c", code, store.uri], check=False).returncode == 9
    (remark,) = [r for r in store.doctor().remarks if r.code == "spool-orphaned"]
    assert remark.level == "warning"
    assert "7 records" in remark.line
    assert store.doctor(repair=True).ok
    assert len(store.live("support")) == 7
    with support.capture() as live:
        live.extend([{"text": "t", "label": "a"}])
        assert store.doctor().ok  # a running process's spool is as it should be
    (Path(store.uri) / "spool" / support.record.table / "1-x.damaged").write_bytes(
        b"SQLite format 3\0 and then nothing"
    )
    assert codes(store.doctor()) == ["spool-damaged"]


def test_what_a_killed_process_was_still_writing_is_removed_once_it_is_old(sealed: treering.Corpus) -> None:
    folder = next((Path(sealed.store.uri) / "snapshots").glob("*/v1"))
    new, old = folder / "2.json#00", folder / "2.json#01"
    for path in (new, old):
        path.write_bytes(b"half")
    os.utime(old, (time.time() - 3600,) * 2)
    assert sealed.store.doctor(repair=True).ok
    assert (new.exists(), old.exists()) == (True, False)


def test_a_seal_that_was_cut_short_is_completed(support: treering.Corpus, monkeypatch: pytest.MonkeyPatch) -> None:
    put(support, "a")

    def die(corpus: object, name: str) -> None:
        if name == "after-record":
            raise KeyboardInterrupt

    monkeypatch.setattr(type(support), "step", die)
    with pytest.raises(KeyboardInterrupt):
        support.snapshot()
    monkeypatch.undo()
    assert [r.code for r in support.store.doctor().remarks] == ["uncertified", "seal-pending"]
    assert support.verify("v1").ok  # pending isn't damaged
    assert support.store.doctor(repair=True).ok
    assert support.table.tagged("v1") == (None, support.snapshots()[0].version)
    assert support.table.head().count_rows() == 0
