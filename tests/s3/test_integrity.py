"""On an object store: documents, files and records are verified as in a directory; what can be missed there is."""

from __future__ import annotations

import obstore
import pytest

import treering
from treering.store.objects import RemoteObjects

from .conftest import LocalS3, record


@pytest.fixture
def sealed(remote: treering.Store) -> treering.Corpus:
    corpus = remote.create("support", "labelled")
    for name in ("v1", "v2"):
        with corpus.capture() as live:
            live.extend([record(f"{name}-{i}") for i in range(30)])
        snapshot = corpus.snapshot()
        assert snapshot is not None
        assert snapshot.digest
    return corpus


def again(corpus: treering.Corpus, s3: LocalS3) -> treering.Store:
    return treering.open(corpus.store.uri, storage_options=s3.storage_options)


def test_a_flipped_bit_in_any_object_of_a_snapshot_is_named(sealed: treering.Corpus, s3: LocalS3) -> None:
    objects = sealed.store.objects
    assert isinstance(objects, RemoteObjects)
    assert [one.ok for one in again(sealed, s3).verify()] == [True, True, True]
    table = sealed.table.path_of("")
    certificate = sealed.snapshots()[0].certificate
    paths = [*(f"{table}{path}" for path in certificate.files), *objects.list(f"snapshots/{sealed.table.name}/v1")]
    paths += [f"{table}_refs/tags/v1.json", *objects.list("corpora")]
    assert len(paths) >= 9
    for path in paths:
        data = objects.get(path)
        middle = len(data) // 2
        changed = data[:middle] + bytes([data[middle] ^ 4]) + data[middle + 1 :]
        obstore.put(objects._store, path, changed, use_multipart=False)
        findings = [finding for one in again(sealed, s3).verify() for finding in one.findings]
        assert path in [finding.file for finding in findings], path
        obstore.put(objects._store, path, data, use_multipart=False)
    assert [one.ok for one in again(sealed, s3).verify()] == [True, True, True]
    assert again(sealed, s3).doctor().ok


def test_a_version_older_than_a_snapshot_and_a_missing_record_are_errors(sealed: treering.Corpus, s3: LocalS3) -> None:
    objects = sealed.store.objects
    newest = sealed.table.latest_version()
    kept = {}
    for version in range(sealed.snapshots()[-1].version, newest + 1):
        path = sealed.table.path_of(sealed.table.manifest_path(version))
        kept[path] = objects.get(path)
        obstore.delete(objects._store, path)
    store = again(sealed, s3)
    with pytest.raises(treering.StoreError, match="rolled back"):
        store.live("support")
    with pytest.raises(treering.StoreError, match="rolled back"), store.corpus("support").capture() as live:
        live.extend([record("new")])
    for path, data in kept.items():
        obstore.put(objects._store, path, data, use_multipart=False)
    store.corpus("support").quarantine()  # what was acknowledged meanwhile had to wait in its spool
    assert len(again(sealed, s3).live("support")) == 1
    for name in ("v1", "v2"):
        path = f"snapshots/{sealed.table.name}/{name}/1.json"
        data = objects.get(path)
        obstore.delete(objects._store, path)
        with pytest.raises(treering.StoreError, match=f"record of support@{name} is missing"):
            again(sealed, s3).live("support")
        assert not again(sealed, s3).doctor().ok
        assert again(sealed, s3).doctor(repair=True).ok
        assert objects.get(path) == data


def test_loading_with_verify_reads_the_files_of_an_object_store(sealed: treering.Corpus, s3: LocalS3) -> None:
    objects = sealed.store.objects
    assert len(again(sealed, s3).load("support@v1", verify=True)) == 30
    path = next(
        sealed.table.path_of(path) for path in sealed.snapshots()[0].certificate.files if path.startswith("data/")
    )
    data = objects.get(path)
    obstore.put(objects._store, path, data[:-9] + bytes([data[-9] ^ 1]) + data[-8:], use_multipart=False)
    with pytest.raises(treering.StoreError, match="isn't the file that was certified"):
        again(sealed, s3).load("support@v1", verify=True)
