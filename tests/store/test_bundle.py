"""Bundles: a snapshot as one file between stores. Sound ones come in whole; of any other, nothing does."""

from __future__ import annotations

import io
import itertools
import json
import os
import stat
import struct
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

import treering
from treering.errors import (
    AlreadyExistsError,
    CheckFailedError,
    ConflictError,
    NotFoundError,
    StoreError,
    TreeringError,
    UsageError,
)
from treering.store import bundle as bundling
from treering.store.corpus import BaseCorpus
from treering.store.documents import add_checksum


def fill(corpus: treering.Corpus, prefix: str, rows: int = 100, **fields: Any) -> None:
    with corpus.capture() as live:
        live.extend([{"id": f"{prefix}{n}", "text": f"text {n}", "label": "a", **fields} for n in range(rows)])


@pytest.fixture
def sealed(support: treering.Corpus) -> treering.Corpus:
    """`support@v1` and `support@v2`."""
    for prefix in "ab":
        fill(support, prefix)
        support.snapshot(message=f"of {prefix}")
    return support


@pytest.fixture
def other(tmp_path: Path) -> treering.Store:
    return treering.open(tmp_path / "other")


@pytest.fixture
def packed(store: treering.Store, sealed: treering.Corpus, tmp_path: Path) -> Path:
    return store.pack("support@v2", tmp_path / "v2.zip")


def files(store: treering.Store) -> set[str]:
    root = Path(store.root or "")
    kept = (path.relative_to(root) for path in root.rglob("*") if path.is_file())
    return {str(path) for path in kept if path.parts[0] not in ("leases", "cache", "spool")}


def table(store: treering.Store, ref: str) -> pa.Table:
    return store.load(ref).to_table()


# --- carried ----------------------------------------------------------------------------------------------------


def test_a_snapshot_is_the_same_one_in_another_store_under_a_number_of_its_own(
    store: treering.Store, sealed: treering.Corpus, other: treering.Store, packed: Path
) -> None:
    here = sealed.snapshots()[1]
    there = other.unpack(packed)
    assert (there.ref, there.rows, there.digest, there.message) == ("support@v1", here.rows, here.digest, "of b")
    assert table(other, "support@v1").equals(table(store, "support@v2"))
    origin = there.record.origin
    assert origin is not None
    assert (origin.ref, origin.store, origin.created_at) == ("support@v2", store.marker.id, here.created_at)
    # The corpus goes on as the one it comes from: the same records are split alike.
    fill(other.corpus("support"), "c")
    fill(sealed, "c")
    splits = [
        {row["id"]: row["split"] for row in table(s, "support@live").select(["id", "split"]).to_pylist()}
        for s in (store, other)
    ]
    assert splits[0] == splits[1]
    second = other.corpus("support").snapshot()
    assert second is not None
    assert second.name == "v2"
    with other.mix("support@v1").loader(10, ["id"]) as loader:
        assert len(list(loader)) > 5


def test_it_comes_into_a_corpus_that_is_there_as_the_next_snapshot_or_into_one_of_another_name(
    store: treering.Store, other: treering.Store, sealed: treering.Corpus, packed: Path, tmp_path: Path
) -> None:
    corpus = other.create("support", "labelled")
    fill(corpus, "mine")
    corpus.snapshot()
    mine = table(other, "support@v1")
    assert other.unpack(packed).ref == "support@v2"
    assert other.unpack(store.pack("support@v1", tmp_path / "v1.zip")).ref == "support@v3"
    assert other.unpack(packed, to="copy").ref == "copy@v1"
    assert table(other, "support@v1").equals(mine)
    assert table(other, "support@v2").equals(table(store, "support@v2"))
    assert table(other, "support@v3").equals(table(store, "support@v1"))
    assert len(other.load("support@live")) == 0
    intervals = [snapshot.row_ids for snapshot in corpus.snapshots()]
    assert all(a[1] <= b[0] for a, b in itertools.pairwise(intervals))
    with corpus.capture() as live:  # ids are known here too
        live.extend([{"id": "a1", "text": "text 1", "label": "a"}, {"id": "new", "text": "t", "label": "a"}])
        live.flush()
        assert (live.counts.stored, live.counts.duplicates) == (1, 0 if live.conflicts else 1)
    corpus.compact()
    corpus.clean_up(older_than_s=0)
    assert table(other, "support@v2").equals(table(store, "support@v2"))


def test_unpacking_twice_adds_nothing(other: treering.Store, packed: Path) -> None:
    first = other.unpack(packed)
    before = files(other)
    assert other.unpack(packed).ref == first.ref
    assert files(other) == before


def test_a_pruned_snapshot_comes_back_from_its_bundle(
    store: treering.Store, sealed: treering.Corpus, packed: Path
) -> None:
    rows = table(store, "support@v2")
    sealed.prune(keep=0, dry_run=False)
    assert store.unpack(packed).ref == "support@v3"
    assert table(store, "support@v3").equals(rows)


def test_a_corpus_that_evolved_is_carried_with_its_schema_versions(
    store: treering.Store, sealed: treering.Corpus, other: treering.Store, tmp_path: Path
) -> None:
    sealed.annotate("a1", correction={"label": "old"})
    new = pa.schema([("body", pa.string()), ("label", pa.string()), ("n", pa.int64())])
    sealed.evolve(new, renames={"text": "body"}, defaults={"n": 5})
    with store.corpus("support").capture() as live:
        live.extend([{"id": f"c{n}", "body": "new", "label": "b", "n": n} for n in range(20)])
    sealed = store.corpus("support")
    sealed.snapshot()
    sealed.annotate("c1", correction={"body": "newer"})
    for number in (3, 1):
        path = store.pack(f"support@v{number}", tmp_path / f"{number}.zip", annotations=True)
        other.unpack(path)
    corpus = other.corpus("support")
    assert [s.digest for s in corpus.snapshots()] == [store.corpus("support").snapshots()[n].digest for n in (2, 0)]
    for here, there in (("v1", "v3"), ("v2", "v1")):
        assert table(other, f"support@{here}").equals(table(store, f"support@{there}"))
    rows = {row["id"]: row for row in table(other, "support@v1..v2").to_pylist()}
    assert (rows["a1"]["label"], rows["c1"]["body"], rows["a2"]["n"]) == ("old", "newer", 5)
    plain = treering.open(tmp_path / "plain")
    plain.create("support", "labelled")
    with pytest.raises(ConflictError, match="body is string in the bundle, not there here"):
        plain.unpack(tmp_path / "3.zip")
    assert plain.unpack(tmp_path / "1.zip").digest == sealed.snapshots()[0].digest


def test_annotations_and_selections_come_along_when_asked_to(
    store: treering.Store, sealed: treering.Corpus, other: treering.Store, tmp_path: Path
) -> None:
    sealed.annotate("b1", label="x", correction={"label": "y"}, by="ann", note="why")
    sealed.annotate("b1", label="z")
    sealed.annotate("a1", label="of another snapshot")
    chosen = store.load("support@v2").select(rows=10, name="ten", seed=4)
    store.load("support@v1..v2").select(rows=90, name="of-both", seed=4)
    path = store.pack("support@v2", tmp_path / "b.zip", annotations=True, selections=True)
    corpus = other.create("support", "labelled")
    fill(corpus, "mine")
    corpus.snapshot()
    for _ in range(2):
        other.unpack(path)
        said = corpus.annotations(history=True).drop_columns(["seq"])
        assert said.equals(sealed.annotations(["b1"], history=True).drop_columns(["seq"]))
        assert [selection.name for selection in corpus.selections()] == ["ten"]
    there = other.load("support/ten")
    assert set(there.to_table(["id"]).column(0).to_pylist()) == set(chosen.to_table(["id"]).column(0).to_pylist())
    assert {row["id"]: row["label"] for row in table(other, "support@v2").to_pylist()}["b1"] == "y"
    bare = store.pack("support@v2", tmp_path / "bare.zip")
    third = treering.open(tmp_path / "third")
    third.unpack(bare)
    assert len(third.corpus("support").annotations()) == 0
    assert third.corpus("support").selections() == []


def test_what_isnt_one_snapshot_isnt_packed_and_no_file_is_overwritten(
    store: treering.Store, sealed: treering.Corpus, tmp_path: Path
) -> None:
    for ref in ("support@live", "support@v1..v2", "support@new"):
        with pytest.raises(UsageError, match="isn't a snapshot"):
            store.pack(ref, tmp_path / "x.zip")
    with pytest.raises(NotFoundError):
        store.pack("support@v9", tmp_path / "x.zip")
    (tmp_path / "x.zip").write_text("mine")
    with pytest.raises(AlreadyExistsError):
        store.pack("support@v1", tmp_path / "x.zip")
    assert (tmp_path / "x.zip").read_text() == "mine"
    with pytest.raises(StoreError):
        store.pack("support@v1", tmp_path / "no" / "x.zip")
    sealed.prune(keep=1, dry_run=False)
    with pytest.raises(NotFoundError, match="pruned"):
        store.pack("support@v1", tmp_path / "y.zip")
    assert [p.name for p in tmp_path.glob("*.zip")] == ["x.zip"]


# --- refused ----------------------------------------------------------------------------------------------------


def test_a_live_that_holds_records_and_ids_that_are_there_refuse_it(
    store: treering.Store, sealed: treering.Corpus, other: treering.Store, packed: Path, tmp_path: Path
) -> None:
    corpus = other.create("support", "labelled")
    fill(corpus, "mine", 3)
    with pytest.raises(ConflictError, match="live holds 3 records"):
        other.unpack(packed)
    corpus.snapshot()
    fill(corpus, "b", 7)
    corpus.snapshot()
    with pytest.raises(ConflictError, match="7 of the 100 records") as caught:
        other.unpack(packed)
    assert caught.value.code == "ids-exist"
    assert [s.name for s in corpus.snapshots()] == ["v1", "v2"]
    assert len(other.load("support@live")) == 0


Edit = Callable[[dict[str, bytes]], None]


def rewritten(packed: Path, target: Path, edit: Edit) -> Path:
    """The bundle with other files, named and sized honestly unless `edit` says otherwise."""
    with zipfile.ZipFile(packed) as archive:
        content = {info.filename: archive.read(info) for info in archive.infolist()}
    edit(content)
    with zipfile.ZipFile(target, "w", zipfile.ZIP_STORED) as archive:
        for name, data in content.items():
            archive.writestr(zipfile.ZipInfo(name), data)
    return target


def manifest(content: dict[str, bytes], **changed: Any) -> dict[str, Any]:
    data = json.loads(content["bundle.json"])
    del data["sha256"]  # the checksum is made to fit: what is refused isn't refused for that
    data.update(changed)
    content["bundle.json"] = add_checksum(json.dumps(data, indent=2).encode())
    return data


def resized(content: dict[str, bytes], name: str, data: bytes, unpacked: int) -> None:
    """Replace a file and let the manifest say so."""
    import hashlib

    content[name] = data
    entries = json.loads(content["bundle.json"])["entries"]
    for entry in entries:
        if entry["name"] == name:
            entry |= {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest(), "unpacked": unpacked}
    manifest(content, entries=entries)


def stream(batches: list[pa.RecordBatch], schema: pa.Schema, **options: Any) -> tuple[bytes, int]:
    sink = io.BytesIO()
    with pa.ipc.new_stream(sink, schema, options=pa.ipc.IpcWriteOptions(**options)) as writer:
        for batch in batches:
            writer.write_batch(batch)
    plain = sink.getvalue()
    return pa.compress(plain, codec="zstd", asbytes=True), len(plain)


def data_of(packed: Path) -> pa.Table:
    with zipfile.ZipFile(packed) as archive:
        raw = pa.CompressedInputStream(io.BytesIO(archive.read("data.arrow.zst")), "zstd").read()
    return pa.ipc.open_stream(raw).read_all()


def other_data(change: Callable[[pa.Table], pa.Table], **options: Any) -> Callable[[dict[str, bytes], Path], None]:
    def edit(content: dict[str, bytes], packed: Path) -> None:
        rows = change(data_of(packed))
        resized(content, "data.arrow.zst", *stream(rows.to_batches(), rows.schema, **options))

    return edit


def swap(column: str, values: Callable[[pa.Table], Any]) -> Callable[[pa.Table], pa.Table]:
    return lambda t: t.set_column(t.schema.get_field_index(column), t.schema.field(column), values(t))


def flip(name: str, at: float) -> Callable[[dict[str, bytes], Path], None]:
    def edit(content: dict[str, bytes], packed: Path) -> None:
        data = bytearray(content[name])
        data[int(len(data) * at)] ^= 1
        content[name] = bytes(data)

    return edit


EVIL: dict[str, tuple[Callable[[dict[str, bytes], Path], Any], str]] = {
    "absolute": (lambda c, p: c.update({"/etc/x": b""}), "isn't a name"),
    "above": (lambda c, p: c.update({"../x.json": b""}), "isn't a name"),
    "above in a folder": (lambda c, p: c.update({"schemas/../../x.json": b""}), "isn't a name"),
    "backslash": (lambda c, p: c.update({"schemas\\1.json": b""}), "isn't a name"),
    "drive": (lambda c, p: c.update({"C:x.json": b""}), "isn't a name"),
    "unlisted": (lambda c, p: c.update({"schemas/7.json": b"{}"}), "aren't those that bundle.json lists"),
    "directory": (lambda c, p: c.update({"schemas/": b""}), "isn't a name"),
    "no manifest": (lambda c, p: c.pop("bundle.json"), "has no bundle.json"),
    "not JSON": (lambda c, p: c.update({"bundle.json": b"{"}), "damaged"),
    "deep JSON": (lambda c, p: c.update({"bundle.json": b"[" * 100_000}), "damaged"),
    "another format": (lambda c, p: manifest(c, format="treering.bundle/9"), "damaged"),
    "missing data": (lambda c, p: c.pop("data.arrow.zst"), "aren't those that bundle.json lists"),
    "flipped data": (flip("data.arrow.zst", 0.5), "."),
    "flipped certificate": (flip("certificate.json", 0.5), "certificate.json isn't what"),
    "flipped schema": (flip("schemas/1.json", 0.5), "schemas/1.json isn't what"),
    "other digest": (lambda c, p: manifest(c, digest="0" * 64), "not 0000"),
    "other content": (other_data(swap("text", lambda t: pa.array(["x"] * len(t)))), "its records have the digest"),
    "fewer records": (other_data(lambda t: t.slice(1)), "doesn't hold 100 records"),
    "more records": (other_data(lambda t: pa.concat_tables([t, t])), "doesn't hold 100 records"),
    "one id twice": (other_data(swap("id", lambda t: pa.array(["same"] * len(t)))), "."),
    "another split": (other_data(swap("split", lambda t: pa.array(["test"] * len(t)))), "in neither split"),
    "other columns": (other_data(lambda t: t.drop_columns(["label"])), "columns of data.arrow.zst"),
    "compressed batches": (other_data(lambda t: t, compression="zstd"), "compressed itself"),
    "trailing bytes": (
        lambda c, p: resized(c, "data.arrow.zst", c["data.arrow.zst"] + b"tail", _unpacked(c)),
        ".",
    ),
    "bomb": (lambda c, p: _bomb(c, p), "more than the 1,000 bytes"),
    "not zstd": (lambda c, p: resized(c, "data.arrow.zst", b"x" * 100, 1000), "."),
    "huge message": (lambda c, p: resized(c, "data.arrow.zst", *_huge_message()), "were asked for|was asked for|."),
}


def _unpacked(content: dict[str, bytes]) -> int:
    return next(e["unpacked"] for e in json.loads(content["bundle.json"])["entries"] if e["name"] == "data.arrow.zst")


def _bomb(content: dict[str, bytes], packed: Path) -> None:
    """A few KB that come to 100 MB and say 1,000 bytes."""
    other_data(swap("text", lambda t: pa.array(["\0" * (1 << 20)] * len(t))))(content, packed)
    resized(content, "data.arrow.zst", content["data.arrow.zst"], 1000)
    assert len(content["data.arrow.zst"]) < 50_000


def _huge_message() -> tuple[bytes, int]:
    plain = b"\xff\xff\xff\xff" + struct.pack("<i", 2**31 - 8) + b"\0" * 64
    return pa.compress(plain, codec="zstd", asbytes=True), len(plain)


@pytest.mark.parametrize("what", EVIL)
@pytest.mark.parametrize("there", [False, True], ids=["new", "existing"])
def test_what_isnt_a_sound_bundle_leaves_nothing(
    packed: Path, tmp_path: Path, what: str, there: bool, built: dict[bool, treering.Store]
) -> None:
    edit, says = EVIL[what]
    path = rewritten(packed, tmp_path / "evil.zip", lambda content: edit(content, packed))
    other = built[there]
    before = files(other)
    with pytest.raises(CheckFailedError, match=says) as caught:
        other.unpack(path)
    assert caught.value.code == "bad-bundle"
    assert files(other) == before
    assert [corpus.name for corpus in other.corpora()] == (["support"] if there else [])
    if there:
        corpus = other.corpus("support")
        assert [s.name for s in corpus.snapshots()] == ["v1"]
        assert corpus.table.head().count_rows() == 0


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> dict[bool, treering.Store]:
    """An empty store, and one with `support@v1`: nothing that is refused changes them."""
    empty = treering.open(tmp_path_factory.mktemp("empty") / "store")
    full = treering.open(tmp_path_factory.mktemp("full") / "store")
    corpus = full.create("support", "labelled")
    fill(corpus, "mine", 20)
    corpus.snapshot()
    return {False: empty, True: full}


def raw_zip(path: Path, entries: list[tuple[zipfile.ZipInfo, bytes]], **options: Any) -> Path:
    with pytest.MonkeyPatch.context() as patch, zipfile.ZipFile(path, "w") as archive:
        patch.setattr("warnings.warn", lambda *_, **__: None)  # of a name that is there twice
        for info, data in entries:
            archive.writestr(info, data, **options)
    return path


def contents(packed: Path) -> list[tuple[zipfile.ZipInfo, bytes]]:
    with zipfile.ZipFile(packed) as archive:
        return [(zipfile.ZipInfo(info.filename), archive.read(info)) for info in archive.infolist()]


def test_links_devices_twins_compression_and_overlaps_are_refused(
    packed: Path, tmp_path: Path, built: dict[bool, treering.Store]
) -> None:
    other = built[False]
    for number, mode in enumerate((stat.S_IFLNK, stat.S_IFCHR, stat.S_IFIFO, stat.S_IFDIR)):
        entries = contents(packed)
        entries[0][0].external_attr = (mode | 0o777) << 16
        with pytest.raises(CheckFailedError, match="isn't a plain file"):
            other.unpack(raw_zip(tmp_path / f"mode{number}.zip", entries))
    entries = contents(packed)
    with pytest.raises(CheckFailedError, match="in it twice"):
        other.unpack(raw_zip(tmp_path / "twice.zip", [*entries, (zipfile.ZipInfo("bundle.json"), b"{}")]))
    with pytest.raises(CheckFailedError, match="isn't stored as it is"):
        other.unpack(raw_zip(tmp_path / "deflated.zip", contents(packed), compress_type=zipfile.ZIP_DEFLATED))
    data = packed.read_bytes()
    for cut in (10, len(data) // 2, len(data) - 5):
        (tmp_path / "cut.zip").write_bytes(data[:cut])
        with pytest.raises(CheckFailedError):
            other.unpack(tmp_path / "cut.zip")
    (tmp_path / "none.zip").write_bytes(b"")
    with pytest.raises(CheckFailedError, match="isn't a zip archive"):
        other.unpack(tmp_path / "none.zip")
    with pytest.raises(NotFoundError):
        other.unpack(tmp_path / "nowhere.zip")
    with pytest.raises(UsageError, match="can't name a corpus"):
        other.unpack(packed, to="../x")
    assert other.corpora() == []


def test_no_flipped_bit_comes_in(packed: Path, tmp_path: Path, built: dict[bool, treering.Store]) -> None:
    """Each flip ends in a refusal, or changed nothing that is read: then the snapshot is the same one."""
    rng = np.random.default_rng(7)
    data = packed.read_bytes()
    other, digest = built[True], None
    refused = 0
    for at in rng.integers(0, len(data), 60).tolist():
        changed = bytearray(data)
        changed[at] ^= 1 << int(rng.integers(8))
        (tmp_path / "flipped.zip").write_bytes(bytes(changed))
        store = treering.open(tmp_path / f"s{at}")
        try:
            digest = store.unpack(tmp_path / "flipped.zip").digest
        except TreeringError:
            refused += 1
            assert store.corpora() == []
        else:
            with zipfile.ZipFile(packed) as archive:
                assert digest == json.loads(archive.read("bundle.json"))["digest"]
    assert refused >= 45
    assert other.corpora()


# --- killed, raced, large ---------------------------------------------------------------------------------------


def kill_at(step: str, store: treering.Store, packed: Path) -> None:
    code = (
        "import os, sys, treering\n"
        "from treering.store.corpus import BaseCorpus\n"
        "BaseCorpus.step = lambda self, name: os._exit(9) if name == sys.argv[3] else None\n"
        "treering.open(sys.argv[1]).unpack(sys.argv[2])\n"
    )
    words = [sys.executable, "-c", code, store.uri, str(packed), step]
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 9, done.stderr


@pytest.mark.parametrize("step", ["after-intent", "after-landing", "before-unpacked", "after-unpacked"])
def test_an_unpacking_that_is_killed_is_undone_or_completed_by_whoever_comes_next(
    other: treering.Store, packed: Path, step: str
) -> None:
    corpus = other.create("support", "labelled")
    fill(corpus, "mine", 10)
    corpus.snapshot()
    kill_at(step, other, packed)
    again = treering.open(other.uri, create=False)
    corpus = again.corpus("support")
    corpus.compact()
    assert len(again.load("support@live")) == 0
    assert corpus.table.head().count_rows() == 0
    came = step == "after-unpacked"
    assert [s.name for s in corpus.snapshots()] == (["v1", "v2"] if came else ["v1"])
    assert not [name for name in files(again) if "unpacking" in name]
    assert len(again.unpack(packed).digest) == 64
    assert [s.rows for s in corpus.snapshots()] == [10, 100]
    fill(corpus, "more", 5)
    assert len(again.load("support@live")) == 5


@pytest.mark.parametrize("step", ["after-landing", "before-corpus"])
def test_a_new_corpus_is_there_whole_or_not_at_all(other: treering.Store, packed: Path, step: str) -> None:
    kill_at(step, other, packed)
    assert treering.open(other.uri, create=False).corpora() == []
    assert other.unpack(packed).ref == "support@v1"
    assert len(table(other, "support@v1")) == 100


def test_records_that_come_in_at_the_same_moment_stop_it_and_stay(
    other: treering.Store, packed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    corpus = other.create("support", "labelled")

    def capture_meanwhile(self: BaseCorpus, name: str) -> None:
        if name == "after-intent":
            monkeypatch.undo()
            fill(corpus, "mine", 3)

    monkeypatch.setattr(BaseCorpus, "step", capture_meanwhile)
    with pytest.raises(ConflictError, match="came in at the same moment"):
        other.unpack(packed)
    assert set(table(other, "support@live").column("id").to_pylist()) == {"mine0", "mine1", "mine2"}
    assert corpus.snapshots() == []
    corpus.snapshot()
    assert other.unpack(packed).ref == "support@v2"


def test_a_record_that_is_sent_while_its_bundle_comes_in_is_stored_once(
    other: treering.Store, packed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    corpus = other.create("support", "labelled")
    real = corpus.table.__class__.insert_new
    armed = [True]

    def unpack_meanwhile(self: Any, head: Any, rows: pa.Table) -> int:
        if armed:
            armed.clear()
            bundling.unpack(other, packed)  # of another process: this one's spool is being drained
        return real(self, head, rows)

    monkeypatch.setattr(corpus.table.__class__, "insert_new", unpack_meanwhile)
    with corpus.capture() as live:
        live.extend([{"id": "b1", "text": "text 1", "label": "a"}, {"id": "n", "text": "t", "label": "a"}])
        live.flush()
        assert (live.counts.stored, live.counts.duplicates) == (1, 1)
    assert table(other, "support@live").column("id").to_pylist() == ["n"]


def test_pieces_are_bounded_however_large_a_batch_was_scanned(
    store: treering.Store, sealed: treering.Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bundling, "_PIECE", 2_000)
    path = store.pack("support@v1", tmp_path / "small.zip")
    with zipfile.ZipFile(path) as archive:
        raw = pa.CompressedInputStream(io.BytesIO(archive.read("data.arrow.zst")), "zstd").read()
    sizes = [batch.nbytes for batch in pa.ipc.open_stream(raw)]
    assert len(sizes) > 3
    assert max(sizes) <= 2_600
    assert treering.open(tmp_path / "s").unpack(path).digest == sealed.snapshots()[0].digest


def test_a_bundle_that_no_disk_here_could_hold_is_refused(
    packed: Path, other: treering.Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bundling.shutil, "disk_usage", lambda _: os.terminal_size((0, 0)) and _Full())
    with pytest.raises(StoreError, match="are free"):
        other.unpack(packed)


class _Full:
    free = 10


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_million_records_are_packed_and_unpacked_in_bounded_memory(tmp_path: Path) -> None:
    """Each in a process of its own: at most 768 MB of anonymous memory at its peak."""
    make = (
        "import sys, os, treering, pyarrow as pa\n"
        "c = treering.open(sys.argv[1]).create('big', 'labelled')\n"
        "with c.capture() as live:\n"
        "    for k in range(100):\n"
        "        text = [os.urandom(450).hex() for _ in range(10_000)]\n"
        "        ids = [f'{k}-{n}' for n in range(10_000)]\n"
        "        live.extend(pa.table({'id': ids, 'text': text, 'label': ['l'] * 10_000}))\n"
        "s = c.snapshot(); print(s.digest)\n"
    )
    tail = (
        "\nimport re\n"
        "peak = [int(l.split()[1]) for l in open('/proc/self/status') if l.startswith('VmHWM')][0]\n"
        "print(peak // 1024)\n"
    )
    store, bundle = str(tmp_path / "store"), str(tmp_path / "big.zip")
    run(make, store)
    packing = run(_WATCHED.format(what="treering.open(sys.argv[1]).pack('big@v1', sys.argv[2])") + tail, store, bundle)
    unpacking = run(
        _WATCHED.format(what="print(treering.open(sys.argv[1]).unpack(sys.argv[2]).rows)") + tail,
        str(tmp_path / "other"),
        bundle,
    )
    print("anonymous MB, pack and unpack:", packing[0], unpacking[0])
    assert max(int(packing[0]), int(unpacking[0])) <= 768


_WATCHED = (
    "import sys, threading, time, treering\n"
    "peak = [0]\n"
    "def watch():\n"
    "    while True:\n"
    "        found = [int(l.split()[1]) for l in open('/proc/self/status') if l.startswith('RssAnon')][0]\n"
    "        peak[0] = max(peak[0], found)\n"
    "        time.sleep(0.02)\n"
    "threading.Thread(target=watch, daemon=True).start()\n"
    "begun = time.monotonic()\n"
    "{what}\n"
    "print('ANON', peak[0] // 1024, round(time.monotonic() - begun, 1))\n"
)


def run(code: str, *words: str) -> tuple[str, str]:
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = [line for line in done.stdout.splitlines() if line.startswith("ANON")]
    print(done.stdout)
    return tuple(found[0].split()[1:]) if found else ("0", "0")  # type: ignore[return-value]
