"""Everything that a store does, on an object store."""

from __future__ import annotations

import pickle
from pathlib import Path

import lance
import pyarrow as pa
import pytest

import treering
from tests.s3.conftest import Meddler, ids, record
from treering.mixing.recipe import CHUNK_ROWS, REMOTE_CHUNK_ROWS
from treering.store.location import StorageOptions
from treering.testing import check_resume
from treering.testing.objectstore import LocalS3


def fill(store: treering.Store) -> treering.Corpus:
    """v1 of 300 records, v2 of 200, live of 100."""
    support = store.create("support", "labelled")
    for prefix, rows in (("a", 300), ("b", 200), ("c", 100)):
        with support.capture() as live:
            live.extend([record(f"{prefix}{n}") for n in range(rows)])
        if prefix != "c":
            support.snapshot(message=prefix)
    return support


def test_a_store_does_on_an_object_store_what_it_does_in_a_directory(
    remote: treering.Store, store: treering.Store, s3: LocalS3, host: Path
) -> None:
    there, here = fill(remote), fill(store)
    for snapshot, twin in zip(there.snapshots(), here.snapshots(), strict=True):
        assert (snapshot.ref, snapshot.rows, snapshot.digest) == (twin.ref, twin.rows, twin.digest)
        plain = lance.dataset(snapshot.uri, version=snapshot.name, storage_options=s3.storage_options)
        assert plain.count_rows() == snapshot.rows
    assert ids(remote, "support@live") == ids(store, "support@live")  # training rows first
    there.compact()
    there.clean_up(older_than_s=0)
    again = treering.open(remote.uri, create=False, storage_options=s3.storage_options)
    assert ids(again, "support@v1..v2") == ids(store, "support@v1..v2")
    with again.corpus("support").capture() as live:
        receipts = live.extend([record("a1"), record("c1"), {**record("b1"), "label": "other"}, {"text": 1}])
        live.flush()
        assert (receipts.acknowledged, live.counts.duplicates, live.counts.stored) == (3, 2, 0)
    assert len(again.corpus("support").quarantine()) == 2


def test_batches_are_those_of_a_local_store_and_resume_in_other_processes(
    remote: treering.Store, store: treering.Store
) -> None:
    fill(remote), fill(store)
    mixes = [s.mix("support@v1", "support@v2", "support@live", weights=[1, 1, 2], seed=5) for s in (remote, store)]
    there, here = ([batch["id"] for batch in mix.loader(batch_size=16, chunk_rows=4)] for mix in mixes)
    assert there == here
    assert [mix.lock(16).chunk_rows for mix in mixes] == [REMOTE_CHUNK_ROWS, CHUNK_ROWS]  # when nothing is said
    lock = mixes[0].loader(batch_size=16, chunk_rows=4).lock()
    with lock.loader(remote, columns=["id"], num_workers=1) as loader:  # the store goes to the worker by pickle
        assert [batch["id"] for batch in loader] == there
    check_resume(lambda: lock.loader(remote, columns=["id"], transform=lambda batch: batch["id"]), stops=(3,))


def test_adapters_of_any_size_fit_on_an_object_store(remote: treering.Store) -> None:
    from treering.registry import Registry

    fill(remote)
    registry = Registry(remote, "support")
    added = registry.add(card={"labels": ["a"]}, weights=b"\0" * (3 << 20), trained_on=["support@v1"])
    assert registry.adapters()[0].ref == added.ref
    assert len(remote.objects.get(f"adapters/support/{added.number}/weights.safetensors")) == 3 << 20


def test_nothing_of_a_remote_store_lies_in_the_working_directory(
    s3: LocalS3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    store = treering.open(s3.uri(), storage_options=s3.storage_options)
    fill(store)
    assert list(Path.cwd().iterdir()) == []
    assert store.cache_dir.is_relative_to(tmp_path / "cache")
    assert store.host_dir.is_relative_to(tmp_path / "state")
    assert store.host_dir.stat().st_mode & 0o077 == 0  # acknowledged records lie there


def test_a_ref_may_name_a_store_of_its_own(remote: treering.Store, store: treering.Store, s3: LocalS3) -> None:
    fill(remote), fill(store)
    foreign = remote.load(f"{store.uri}#support@v2")
    assert (foreign.ref, foreign.corpus) == (f"{store.uri}#support@v2", f"{store.uri}#support")
    mix = remote.mix("support@v1", f"{store.uri}#support@v2", seed=3)
    lock = mix.lock(32)
    served = [batch["id"] for batch in lock.loader(remote)]
    assert [batch["id"] for batch in mix.loader(batch_size=32)] == served
    own = remote.load(f"{remote.uri}#support@v1")
    assert (own.ref, own.corpus) == ("support@v1", "support")  # the store's own name says nothing new
    second = treering.open(s3.uri(), storage_options=s3.storage_options)
    assert ids(second, f"{remote.uri}#support@v1") == ids(remote, "support@v1")  # with the same options
    with pytest.raises(treering.NotFoundError, match="no store"):
        second.load(f"{s3.uri()}#support@v1")


def test_training_on_another_stores_snapshot_doesnt_count_as_training_on_ones_own(
    remote: treering.Store, store: treering.Store
) -> None:
    from treering.registry import Registry
    from treering.registry.trained import training_data

    fill(remote), fill(store)
    foreign = [remote.load(f"{store.uri}#support@{selector}").pin() for selector in ("v1", "live")]
    refs, rows = training_data(foreign)
    registry = Registry(remote, "support")
    record = registry.add(card={"labels": ["a"]}, weights=b"w", trained_on=refs, trained_rows=rows)
    assert registry.trained_on(record.ref) == [f"{store.uri}#support@v1"]
    assert registry.trained_rows(record.ref) == []


def test_no_secret_is_written_or_shown(remote: treering.Store, s3: LocalS3, host: Path) -> None:
    support = fill(remote)
    lock = remote.mix("support@v1", "support@live").lock(16)
    shown = [repr(remote), repr(remote.location), repr(support), repr(support.table), repr(remote.load("support@v1"))]
    shown += [repr(vars(remote)), repr(vars(support)), lock.to_json(), repr(remote.load("support@v1").pin())]
    assert [text for text in shown if s3.secret in text] == []
    assert s3.secret.encode() in pickle.dumps(remote)  # workers need it
    stored = [remote.objects.get(path) for path in remote.objects.list("") if not path.startswith("tables/")]
    files = [path.read_bytes() for path in host.rglob("*") if path.is_file()]
    assert [data for data in stored + files if s3.secret.encode() in data] == []


def test_options_are_checked_and_printed_without_their_values() -> None:
    found = StorageOptions({"AWS_Secret_Access_Key": "hidden-value", "allow_http": True})
    assert dict(found) == {"aws_secret_access_key": "hidden-value", "allow_http": "true"}
    assert "hidden-value" not in repr(found)
    assert found.scrub("it said hidden-value") == "it said ***"
    with pytest.raises(treering.UsageError, match="is a text"):
        StorageOptions({"aws_region": None})  # type: ignore[dict-item]
    with pytest.raises(treering.UsageError, match="no storage option 'nonsense'"):
        treering.open("s3://bucket/p", storage_options={"nonsense": "1", "aws_endpoint": "http://127.0.0.1:1"})


@pytest.mark.parametrize(
    "uri",
    [
        "s3://",
        "s3:///p",
        "s3://KEYISHERE:secret@b/p",
        "s3://b/../c",
        "s3://b//c",
        "s3://b/a b",
        "s3://b/p?x=1",
        "s3://b/%2e",
    ],
)
def test_a_uri_that_isnt_one_is_refused_without_repeating_it(uri: str) -> None:
    with pytest.raises(treering.UsageError) as caught:
        treering.open(uri)
    assert "KEYISHERE" not in str(caught.value)


def test_options_for_a_directory_and_a_uri_as_a_path_are_refused(tmp_path: Path) -> None:
    with pytest.raises(treering.UsageError, match="object stores"):
        treering.open(tmp_path / "s", storage_options={"aws_region": "x"})
    with pytest.raises(treering.UsageError, match="as a path"):
        treering.open(Path("s3://bucket/p"))
    with pytest.raises(treering.UsageError, match="ftp"):
        treering.open("ftp://host/p")


def test_moto_holds_the_same(moto: tuple[LocalS3, Meddler], store: treering.Store) -> None:
    server, _ = moto
    remote = treering.open(server.uri(), storage_options=server.storage_options)
    support, twin = fill(remote), fill(store)
    assert [s.digest for s in support.snapshots()] == [s.digest for s in twin.snapshots()]
    assert ids(remote, "support@live") == ids(store, "support@live")


def test_a_corpus_evolves_on_an_object_store_and_its_snapshots_are_read_as_the_newest(remote: treering.Store) -> None:
    support = fill(remote)
    newer = pa.schema([("text", pa.string()), ("label", pa.string()), ("note", pa.string())])
    support.evolve(newer, defaults={"note": "none yet"})
    with support.capture() as live:
        live.add({"id": "late", "text": "t", "label": "a", "note": "mine"})
    assert set(remote.load("support@v1").to_table(["note"]).column(0).to_pylist()) == {"none yet"}
    assert "mine" in remote.load("support@live").to_table(["note"]).column(0).to_pylist()
