"""verify names what is damaged: the file and, where data is, the records."""

from __future__ import annotations

import os
import random
from pathlib import Path

import lance
import numpy as np
import pytest

import treering
from treering.store.digest import BLOCK_ROWS
from treering.store.verify import Verification


def put(corpus: treering.Corpus, prefix: str, count: int) -> None:
    rows = [{"id": f"{prefix}{i}", "text": f"{prefix} {i} {os.urandom(12).hex()}", "label": "a"} for i in range(count)]
    with corpus.capture() as live:
        assert live.extend(rows).refused == []


@pytest.fixture
def sealed(support: treering.Corpus) -> treering.Corpus:
    """`support@v1`: three commits of 800 records, two of which were compacted with deletions before."""
    for prefix in "abc":
        put(support, prefix, 800)
    snapshot = support.snapshot()
    assert snapshot is not None
    assert snapshot.digest
    put(support, "live", 10)
    return support


def files_of(corpus: treering.Corpus) -> list[Path]:
    """Every file that the snapshot consists of."""
    root, table = Path(corpus.store.uri), Path(corpus.uri)
    certificate = corpus.snapshots()[0].certificate
    return [
        *(table / path for path in certificate.files),
        table / "_refs" / "tags" / "v1.json",
        root / "treering.json",
        *(root / "corpora").rglob("*.json"),
        *(path for path in (root / "snapshots").rglob("*") if path.is_file()),
    ]


def flip(path: Path, at: int, bit: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1 << bit
    path.write_bytes(bytes(data))


def named(store: treering.Store) -> list[str]:
    try:
        return [finding.file for one in treering.open(store.uri, create=False).verify() for finding in one.findings]
    except treering.StoreError as exc:  # the marker itself: nothing else can be looked at
        return [word.removeprefix(f"{store.uri}/") for word in exc.message.split()]


def flip_bits(corpus: treering.Corpus, count: int, seed: int) -> None:
    choose = random.Random(seed)
    root, files = Path(corpus.store.uri), files_of(corpus)
    assert len(files) >= 12
    assert named(corpus.store) == []
    for turn in range(count):
        file = files[turn % len(files)]
        at, bit = choose.randrange(file.stat().st_size), choose.randrange(8)
        flip(file, at, bit)
        assert str(file.relative_to(root)) in named(corpus.store), (file, at, bit)
        flip(file, at, bit)
    assert named(corpus.store) == []


def test_every_flipped_bit_is_named(sealed: treering.Corpus) -> None:
    flip_bits(sealed, 100, seed=1)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_thousand_flipped_bits_are_named(sealed: treering.Corpus) -> None:
    flip_bits(sealed, 1_000, seed=2)


def test_a_sound_snapshot_is_ok_and_what_nobody_had_certified_is_said(support: treering.Corpus) -> None:
    put(support, "a", 20)
    assert support.snapshot() is not None
    first, second = support.verify("v1"), support.verify("v1")
    assert (first.ok, first.certified_now, second.ok, second.certified_now) == (True, True, True, False)
    assert (second.ref, second.snapshot, second.edition, second.rows) == ("support@v1", "v1", 1, 20)
    assert second.digest == support.snapshots()[0].digest


def test_a_damaged_data_file_names_the_records_it_concerns(sealed: treering.Corpus) -> None:
    snapshot = sealed.snapshots()[0]
    dataset = lance.dataset(sealed.uri, version="v1")
    path = Path(sealed.uri) / "data" / dataset.get_fragments()[1].metadata.files[0].path
    data = path.read_bytes()
    at = data.index(b"b 700 ")  # in the clear, so that the flipped bit still decodes
    flip(path, at, 0)
    assert lance.dataset(sealed.uri, version="v1").to_table().num_rows == snapshot.rows  # the engine reads it as data
    (finding,) = sealed.verify("v1").findings
    assert finding.file == f"tables/{Path(sealed.uri).name}/data/{path.name}"
    row = next(
        int(batch.column("_rowid")[i].as_py())
        for batch in dataset.scanner(columns=["id"], with_row_id=True).to_batches()
        for i, name in enumerate(batch.column("id").to_pylist())
        if name == "b700"
    )
    assert any(low <= row < high for low, high in finding.records)
    assert sum(high - low for low, high in finding.records) <= BLOCK_ROWS
    assert "by row id" in str(finding)
    assert "b700" not in str(finding)  # nothing personal leaves the store


def test_a_missing_file_a_missing_tag_and_a_missing_filter_are_named(sealed: treering.Corpus) -> None:
    table = Path(sealed.uri)
    for path in (
        next((table / "data").iterdir()),
        table / "_refs" / "tags" / "v1.json",
        next(Path(sealed.store.uri).rglob("*.ids.bloom")),
        table / sealed.table.manifest_path(sealed.snapshots()[0].version),
    ):
        kept = path.read_bytes()
        path.unlink()
        found = sealed.verify("v1")
        if path.parent.name == "data" and found.ok:  # the one of live
            assert not sealed.verify("live").ok
        else:
            assert str(path.relative_to(sealed.store.uri)) in [finding.file for finding in found.findings]
        path.write_bytes(kept)
    assert sealed.verify("v1").ok


def test_a_swapped_file_is_named(sealed: treering.Corpus) -> None:
    first, second = sorted((Path(sealed.uri) / "data").iterdir(), key=lambda path: path.stat().st_size)[-2:]
    one, other = first.read_bytes(), second.read_bytes()
    first.write_bytes(other)
    second.write_bytes(one)
    assert {finding.file.rpartition("/")[2] for finding in sealed.verify("v1").findings} == {first.name, second.name}


def test_a_record_of_another_snapshot_in_its_place_is_named(sealed: treering.Corpus) -> None:
    sealed.snapshot()
    first, second = (next(Path(sealed.store.uri).glob(f"snapshots/*/v{n}/1.json")) for n in (1, 2))
    first.write_bytes(second.read_bytes())
    assert not sealed.verify("v1").ok


def test_loading_refuses_a_snapshot_that_lacks_a_file_or_some_bytes_of_one(sealed: treering.Corpus) -> None:
    path = Path(sealed.uri) / "data" / lance.dataset(sealed.uri, version="v1").get_fragments()[0].metadata.files[0].path
    data = path.read_bytes()
    source = sealed.store.load("support@v1")
    for damage in (path.unlink, lambda: path.write_bytes(data[:-1])):
        damage()
        with pytest.raises(treering.StoreError, match=f"data/{path.name}"):
            treering.open(sealed.store.uri).load("support@v1")
        path.write_bytes(data)
    assert len(source.to_table()) == 2_400


def test_loading_with_verify_refuses_a_flipped_bit_before_the_first_batch_and_pays_once(
    sealed: treering.Corpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = Path(sealed.uri) / "data" / lance.dataset(sealed.uri, version="v1").get_fragments()[0].metadata.files[0].path
    read: list[str] = []
    real = type(sealed.table).file_sha256

    def counted(table: object, name: str) -> str:
        read.append(name)
        return real(table, name)  # type: ignore[arg-type]

    monkeypatch.setattr(type(sealed.table), "file_sha256", counted)
    sealed.store.load("support@v1", verify=True)
    assert f"data/{path.name}" in read
    read.clear()
    sealed.store.load("support@v1", verify=True)
    assert [name for name in read if name.startswith("data/")] == []
    flip(path, path.stat().st_size // 2, 3)
    assert len(sealed.store.load("support@v1")) == 2_400  # what takes reading the files is not looked at by default
    with pytest.raises(treering.StoreError, match="isn't the file that was certified"):
        sealed.store.load("support@v1", verify=True)


def test_live_is_verified_as_far_as_it_can_be(sealed: treering.Corpus) -> None:
    assert sealed.verify("live").model_dump(include={"ok", "ref", "snapshot", "rows"}) == {
        "ok": True,
        "ref": "support@live",
        "snapshot": None,
        "rows": 10,
    }
    newest = Path(sealed.uri) / sealed.table.manifest_path(sealed.table.latest_version())
    newest.unlink()
    assert "rolled back" in sealed.verify("live").findings[0].what


def test_a_whole_store_a_corpus_a_range_and_what_isnt_there(sealed: treering.Corpus, store: treering.Store) -> None:
    sealed.snapshot()
    store.create("other", "chat")

    def refs(found: list[Verification]) -> list[str]:
        return [one.ref for one in found]

    assert refs(store.verify()) == ["other@live", "support@v1", "support@v2", "support@live"]
    assert refs(store.verify("support")) == ["support@v1", "support@v2", "support@live"]
    assert refs(store.verify("support@v1..v2")) == ["support@v1", "support@v2"]
    assert refs(store.verify("support@live")) == ["support@live"]
    for wrong, error in (
        ("support@v9", treering.NotFoundError),
        ("nobody", treering.NotFoundError),
        ("nobody@v1", treering.NotFoundError),
        ("support@new", treering.UsageError),
        ("../x", treering.UsageError),
    ):
        with pytest.raises(error):
            store.verify(wrong)
    with pytest.raises(treering.UsageError):
        sealed.verify("v0")


def test_a_damaged_certificate_or_filter_stops_no_capture(sealed: treering.Corpus) -> None:
    for pattern in ("*.ids.bloom", "*.certificate.json"):
        path = next(Path(sealed.store.uri).rglob(pattern))
        flip(path, path.stat().st_size // 2, 1)
    corpus = treering.open(sealed.store.uri).corpus("support")
    with corpus.capture() as live:
        live.extend([{"id": "a1", "text": "other", "label": "a"}, {"id": "new", "text": "t", "label": "a"}])
        live.flush()
        assert (live.counts.stored, live.conflicts) == (1, ["a1"])  # looked up one by one instead


def test_the_hash_of_a_block_doesnt_depend_on_how_batches_are_cut() -> None:
    import pyarrow as pa

    from treering.store.digest import ContentDigest, aligned

    rng = np.random.default_rng(3)
    rows = 3 * BLOCK_ROWS + 77
    table = pa.table(
        {
            "text": [None if i % 7 == 0 else "x" * int(rng.integers(0, 9)) for i in range(rows)],
            "parts": pa.array(
                [None if i % 5 == 0 else [{"a": k, "b": ["y"] * k} for k in range(i % 4)] for i in range(rows)]
            ),
            "fixed": pa.array([[i, i + 1] for i in range(rows)], pa.list_(pa.int32(), 2)),
            "flag": [i % 3 == 0 for i in range(rows)],
        }
    )

    def of(*cuts: int) -> tuple[str, list[int]]:
        digest, at = ContentDigest(table.schema), 0
        parts = []
        for cut in (*cuts, rows):
            parts += table.slice(at, cut - at).combine_chunks().to_batches()
            at = cut
        for batch in aligned(parts):
            digest.update(batch)
        return digest.hexdigest(), digest.blocks()

    whole = of()
    assert len(whole[1]) == 4
    assert of(1) == of(5, 6, 700) == of(BLOCK_ROWS) == of(BLOCK_ROWS - 1, 2 * BLOCK_ROWS + 1) == whole
    changed = table.set_column(3, "flag", pa.array([i % 3 == 0 or i == BLOCK_ROWS + 2 for i in range(rows)]))
    table = changed
    assert [a == b for a, b in zip(of()[1], whole[1], strict=True)] == [True, False, True, True]
