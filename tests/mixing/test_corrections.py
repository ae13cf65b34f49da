"""Corrections: what a source delivers changes, whichever way it is read; what a snapshot holds never does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lance
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import treering
from treering.errors import InvalidRecordError
from treering.evaluation import slice_of
from treering.store.corrections import Corrections

calm = settings(deadline=None, max_examples=60)


def fill(corpus: treering.Corpus, prefix: str, rows: int, **fields: Any) -> None:
    with corpus.capture() as live:
        live.extend(
            [{"id": f"{prefix}{n}", "text": f"text {n}", "label": "a", "split": "train", **fields} for n in range(rows)]
        )


@pytest.fixture
def sealed(store: treering.Store, support: treering.Corpus) -> treering.Corpus:
    """`support@v1` with 60 training records and 10 held-out ones."""
    with support.capture() as live:
        live.extend([{"id": f"h{n}", "text": f"held {n}", "label": "a", "split": "heldout"} for n in range(10)])
        live.flush()
    fill(support, "r", 60)
    support.snapshot()
    return support


def delivered(store: treering.Store, ref: str, **how: Any) -> dict[str, tuple[str, str]]:
    """id → (text, label) as one epoch of a loader delivers them."""
    found: dict[str, tuple[str, str]] = {}
    with store.mix(ref, seed=3).loader(10, ["id", "text", "label"], **how) as loader:
        for batch in loader:
            found.update(zip(batch["id"], zip(batch["text"], batch["label"], strict=True), strict=True))
    return found


def labels(source: treering.Source) -> dict[str, str]:
    return {row["id"]: row["label"] for row in source.to_table(["id", "label"]).to_pylist()}


def test_every_way_to_a_source_delivers_the_corrected_values_and_the_snapshot_keeps_its_own(
    store: treering.Store, sealed: treering.Corpus
) -> None:
    before = sealed.snapshots()[0].digest
    sealed.annotate("r3", correction={"label": "b", "text": "corrected"}, by="ann")
    sealed.annotate("h4", correction={"label": "c"})
    source = store.load("support@v1")
    wanted = {**{f"r{n}": ("text " + str(n), "a") for n in range(60)}, "r3": ("corrected", "b")}
    assert delivered(store, "support@v1", cache=False) == wanted
    store.cache.build(source, ["id", "text", "label"])
    assert delivered(store, "support@v1") == wanted
    assert delivered(store, "support@v1", chunk_rows=1, prefetch=0) == wanted
    assert labels(source)["r3"] == "b"
    assert labels(source.where(label="b")) == {"r3": "b"}  # asked of what is delivered
    assert "r3" not in labels(source.where(label="a"))
    piece = slice_of(source)
    assert piece.labels.count("c") == 1
    assert [row["text"] for batch in source.scan(["text", "_rowid"]) for row in batch.to_pylist()].count(
        "corrected"
    ) == 1
    # What was sealed is as it was.
    plain = lance.dataset(sealed.uri, version="v1").to_table(columns=["id", "label"]).to_pylist()
    assert {row["label"] for row in plain} == {"a"}
    again = treering.open(store.uri, create=False).corpus("support").snapshots()[0]
    assert again.digest == before
    assert again.certificate.counts["label"] == {"a": 70}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(source.segments[0]), "corrections", None)
        assert delivered(store, "support@v1")["r3"] == ("text 3", "a")  # the cached columns hold what was sealed


def test_the_cache_gives_the_same_batches_whether_built_before_or_after_a_correction(
    store: treering.Store, sealed: treering.Corpus
) -> None:
    def batches(**how: Any) -> list[dict[str, Any]]:
        with store.mix("support@v1", "support@live", weights=[3, 1], seed=5).loader(
            9, ["id", "label"], **how
        ) as loader:
            return [{"id": b["id"], "label": b["label"]} for b in loader]

    fill(sealed, "n", 20)
    store.cache.build(store.load("support@v1"), ["id", "label"])
    for n in (0, 7, 8, 59):
        sealed.annotate(f"r{n}", correction={"label": f"c{n}"})
    sealed.annotate("n5", correction={"label": "cn"})
    with_cache, without = batches(), batches(cache=False)
    assert with_cache == without
    pairs = {pair for b in with_cache for pair in zip(b["id"], b["label"], strict=True)}
    assert {("r0", "c0"), ("r59", "c59"), ("n5", "cn"), ("r1", "a")} <= pairs
    store.cache.drop()
    store.cache.build(store.load("support@v1"), ["id", "label"])
    assert batches() == without


def test_what_a_loader_caches_on_its_own_holds_what_was_sealed(store: treering.Store, sealed: treering.Corpus) -> None:
    import time

    sealed.annotate("r3", correction={"label": "b"})
    with store.mix("support@v1").loader(10, ["id", "label"], epochs=None) as loader:
        batches = iter(loader)
        end = time.monotonic() + 60
        while len(store.cache.entries()) < 2 and time.monotonic() < end:
            next(batches)
        for _ in range(12):
            batch = next(batches)
            if "r3" in batch["id"]:
                assert batch["label"][batch["id"].index("r3")] == "b"
    assert len(store.cache.entries()) == 2
    segment = store.load("support@v1").segments[0].as_sealed()
    column = store.cache.open(segment, "label")
    assert column is not None
    assert set(column.to_pylist()) == {"a"}


def test_many_corrections_are_found_in_the_snapshots_that_hold_them(
    store: treering.Store, support: treering.Corpus
) -> None:
    for prefix in "ab":
        fill(support, prefix, 700)
        support.snapshot()
    assert support.snapshots()[0].certificate
    support.annotate_many([{"id": f"{p}{n}", "correction": {"label": p}} for p in "ab" for n in range(0, 700, 2)])
    for name, prefix in (("v1", "a"), ("v2", "b")):
        found = labels(store.load(f"support@{name}"))
        assert {i: label for i, label in found.items() if label != "a" or prefix == "a"} == {
            f"{prefix}{n}": prefix if n % 2 == 0 else "a" for n in range(700) if n % 2 == 0 or prefix == "a"
        }


def test_a_lock_keeps_the_corrections_of_its_time_and_a_later_one_changes_nothing(
    store: treering.Store, sealed: treering.Corpus
) -> None:
    sealed.annotate("r1", correction={"label": "first"})
    lock = store.mix("support@v1", seed=1).lock(6, columns=["id", "label"])

    def served() -> list[tuple[str, str]]:
        with treering.MixLock.from_json(lock.to_json()).loader(store) as loader:
            return [pair for batch in loader for pair in zip(batch["id"], batch["label"], strict=True)]

    first = served()
    assert ("r1", "first") in first
    sealed.annotate("r1", correction={"label": "second"})
    sealed.annotate("r2", correction={"label": "other"})
    assert served() == first
    now = delivered(store, "support@v1")
    assert (now["r1"][1], now["r2"][1]) == ("second", "other")
    assert store.mix("support@v1", seed=1).lock(6).digest != lock.digest
    pinned = lock.sources[0].pin.annotations
    assert pinned is not None
    assert pinned.corrected == 1


def test_a_lock_whose_corrections_arent_those_of_the_store_is_refused(
    store: treering.Store, sealed: treering.Corpus
) -> None:
    sealed.annotate("r1", correction={"label": "first"})
    pin = store.load("support@v1").pin()
    pin["annotations"]["corrections"] = "0" * 64
    with pytest.raises(treering.ConflictError, match="excludes or corrects other records"):
        treering.Source.from_pin(store, pin)


def test_the_newest_correction_counts_as_a_whole_and_an_empty_one_takes_it_back(
    store: treering.Store, sealed: treering.Corpus
) -> None:
    sealed.annotate("r1", correction={"label": "x", "text": "y"})
    sealed.annotate("r1", correction={"label": "z"})
    row = next(r for r in store.load("support@v1").to_table().to_pylist() if r["id"] == "r1")
    assert (row["label"], row["text"]) == ("z", "text 1")
    sealed.annotate("r1", correction={})
    source = store.load("support@v1")
    assert labels(source)["r1"] == "a"
    assert source.segments[0].corrections is None
    assert "corrected" not in source.pin()["annotations"]
    history = sealed.annotations(["r1"], key="correction", history=True).column("value").to_pylist()
    assert history == ['{"label":"x","text":"y"}', '{"label":"z"}', "{}"]


WRONG: list[tuple[Any, str, str]] = [
    ("Sorry!", "wrong-type", "correction"),
    (["label"], "wrong-type", "correction"),
    ({"labl": "x"}, "unknown-field", "correction.labl"),
    ({"label": 7}, "wrong-type", "correction.label"),
    ({"text": None}, "wrong-type", "correction.text"),
    ({"id": "r2"}, "bad-value", "correction.id"),
    ({"split": "train"}, "bad-value", "correction.split"),
    ({"ts": "2026-01-01T00:00:00Z"}, "bad-value", "correction.ts"),
    ({"subject": "u"}, "bad-value", "correction.subject"),
    ({"origin": "human"}, "bad-value", "correction.origin"),
]


@pytest.mark.parametrize(("correction", "kind", "where"), WRONG)
def test_what_cant_stand_in_a_record_cant_correct_one(
    sealed: treering.Corpus, correction: Any, kind: str, where: str
) -> None:
    with pytest.raises(InvalidRecordError, match=where) as caught:
        sealed.annotate("r1", correction=correction)
    assert caught.value.problems[0].kind == kind
    assert len(sealed.annotations()) == 0


def test_all_kinds_of_columns_can_be_corrected(store: treering.Store) -> None:
    schema = pa.schema(
        [
            ("n", pa.int32()),
            ("x", pa.float64()),
            ("ok", pa.bool_()),
            ("at", pa.timestamp("us", tz="UTC")),
            ("day", pa.date32()),
            ("tokens", pa.list_(pa.int32())),
            ("vector", pa.list_(pa.float32(), 2)),
            ("turns", pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))),
        ]
    )
    corpus = store.create("mixed", schema, heldout=0.0)
    row = {
        "n": 1, "x": 0.5, "ok": True, "at": "2026-01-01T00:00:00Z", "tokens": [1, 2], "vector": [0.0, 1.0],
        "turns": [{"role": "user", "content": "hi"}],
    }  # fmt: skip
    from datetime import UTC, date, datetime

    row |= {"at": datetime(2026, 1, 1, tzinfo=UTC), "day": date(2026, 1, 1)}
    with corpus.capture() as live:
        live.extend([{"id": f"m{n}", **row} for n in range(20)])
    corpus.snapshot()
    said = {
        "n": 2, "x": 1.5, "ok": False, "at": "2026-02-01T00:00:00+00:00", "day": "2026-02-02", "tokens": [3],
        "vector": [2.0, 3.0], "turns": [{"role": "user", "content": "bye"}, {"role": "assistant", "content": None}],
        "domain": "d",
    }  # fmt: skip
    corpus.annotate("m3", correction=said)
    wanted = {
        **row, **said, "at": datetime(2026, 2, 1, tzinfo=UTC), "day": date(2026, 2, 2),
    }  # fmt: skip
    source = store.load("mixed@v1")
    rows = {r["id"]: r for r in source.to_table().to_pylist()}
    assert {name: rows["m3"][name] for name in wanted} == wanted
    assert {name: rows["m4"][name] for name in row} == row
    for build in (False, True):
        if build:
            store.cache.build(source, ["id", "tokens", "vector", "n"])
        with store.mix("mixed@v1").loader(20, ["id", "tokens", "vector", "n"], ragged="pad") as loader:
            batch = next(iter(loader))
        at = batch["id"].index("m3")
        assert batch["n"].tolist()[at] == 2
        assert batch["vector"].tolist()[at] == [2.0, 3.0]
        assert batch["tokens"].tolist()[at] == [3, 0]
        assert batch["tokens.lengths"].tolist() == [1 if n == at else 2 for n in range(20)]


def test_a_column_that_is_copied_out_of_its_file_is_corrected_too(store: treering.Store) -> None:
    import numpy as np

    kind = pa.list_(pa.float32(), 128)
    corpus = store.create("vectors", pa.schema([("v", kind)]), heldout=0.0)
    values = np.arange(2_000 * 128, dtype=np.float32)
    ids = [f"v{n}" for n in range(2_000)]
    with corpus.capture() as live:
        live.extend(pa.table({"id": ids, "v": pa.FixedSizeListArray.from_arrays(pa.array(values), 128)}))
    corpus.snapshot()
    out = np.empty((2_000, 128), np.float32)
    rows = np.arange(2_000, dtype=np.int64)
    assert store.load("vectors@v1").segments[0].fill(rows, pa.field("v", kind), out)  # the quick way is taken
    corpus.annotate("v7", correction={"v": [1.0] * 128})
    assert not store.load("vectors@v1").segments[0].fill(rows, pa.field("v", kind), out)
    found = {}
    with store.mix("vectors@v1").loader(500, ["id", "v"], cache=False) as loader:
        for batch in loader:
            found.update(zip(batch["id"], batch["v"].tolist(), strict=True))
    assert found["v7"] == [1.0] * 128
    assert found["v8"] == values[8 * 128 : 9 * 128].tolist()


def test_corrections_follow_their_column_through_renames_and_widening(store: treering.Store) -> None:
    corpus = store.create("e", pa.schema([("a", pa.string()), ("b", pa.string()), ("n", pa.int32())]), heldout=0.0)
    with corpus.capture() as live:
        live.extend([{"id": f"e{i}", "a": "A", "b": "B", "n": 1} for i in range(3)])
    corpus.snapshot()
    corpus.annotate("e0", correction={"a": "corrected a", "n": 7})
    lock = store.mix("e@v1").lock(3, columns=["id", "a", "n"])
    new = pa.schema([("a", pa.string()), ("b", pa.string()), ("n", pa.int64())])
    corpus.evolve(new, renames={"a": "b", "b": "a"})
    corpus.annotate("e1", correction={"a": "of the column that was b"})
    rows = {r["id"]: r for r in store.load("e@v1").to_table().to_pylist()}
    assert (rows["e0"]["b"], rows["e0"]["a"], rows["e0"]["n"]) == ("corrected a", "B", 7)
    assert (rows["e1"]["b"], rows["e1"]["a"]) == ("A", "of the column that was b")
    with lock.loader(store) as loader:  # read as the schema of its time
        batch = next(iter(loader))
    assert dict(zip(batch["id"], batch["a"], strict=True)) == {"e0": "corrected a", "e1": "A", "e2": "A"}


def test_weights_balance_and_selections_go_by_corrected_values(store: treering.Store, sealed: treering.Corpus) -> None:
    sealed.annotate_many([{"id": f"r{n}", "correction": {"label": "rare"}} for n in range(2)])
    source = store.load("support@v1")
    with store.mix(source.balanced("label"), seed=1).loader(60, ["label"]) as loader:
        batch = next(iter(loader))
    assert 20 <= batch["label"].count("rare") <= 40
    chosen = source.select(rows=4, strategy="balanced", by="label", name="even")
    assert sorted(labels(chosen).values()) == ["a", "a", "rare", "rare"]


def test_shares_by_tokens_count_corrected_tokens(store: treering.Store) -> None:
    corpus = store.create("t", "tokens", heldout=0.0)
    for _ in range(2):
        with corpus.capture() as live:
            live.extend([{"tokens": [1] * 10, "split": "train"} for _ in range(30)])
        corpus.snapshot()
    ids = store.load("t@v1").to_table(["id"]).column(0).to_pylist()
    corpus.annotate_many([{"id": i, "correction": {"tokens": [1] * 30}} for i in ids])
    lock = store.mix("t@v1", "t@v2", weights=[1, 1], share_by="tokens").lock(8)
    assert [source.tokens_per_row for source in lock.sources] == [30.0, 10.0]
    assert lock.shares[0] == pytest.approx(0.25, abs=0.01)


def test_a_followed_source_delivers_what_was_corrected_by_the_time_it_grew(
    store: treering.Store, support: treering.Corpus
) -> None:
    fill(support, "a", 30)
    mix = store.mix("support@live", seed=2)
    with mix.loader(6, ["id", "label"], epochs=None, follow=True) as loader:
        batches = iter(loader)
        next(batches)
        fill(support, "b", 30)
        support.annotate("a1", correction={"label": "too late"})  # pinned before
        support.annotate("b1", correction={"label": "in time"})
        seen: dict[str, set[str]] = {}
        for _ in range(80):
            batch = next(batches)
            for record, label in zip(batch["id"], batch["label"], strict=True):
                seen.setdefault(record, set()).add(label)
        lock = loader.lock()
    assert seen["a1"] == {"a"}
    assert seen["b1"] == {"in time"}
    support.annotate("b1", correction={"label": "later"})
    with lock.loader(store, columns=["id", "label"]) as again:
        replayed: dict[str, set[str]] = {}
        for _, batch in zip(range(80), again, strict=False):
            for record, label in zip(batch["id"], batch["label"], strict=True):
                replayed.setdefault(record, set()).add(label)
    assert replayed["b1"] == {"in time"}


def test_workers_deliver_them_too(store: treering.Store, sealed: treering.Corpus) -> None:
    sealed.annotate("r3", correction={"label": "b"})
    store.cache.build(store.load("support@v1"), ["id", "text", "label"])
    assert delivered(store, "support@v1", num_workers=1)["r3"][1] == "b"


def test_scores_depend_on_corrected_held_out_records_alone(store: treering.Store, sealed: treering.Corpus) -> None:
    key = slice_of(store.load("support@v1")).key
    sealed.annotate("r1", correction={"label": "b"})
    assert slice_of(store.load("support@v1")).key == key
    sealed.annotate("h1", correction={"label": "b"})
    assert slice_of(store.load("support@v1")).key != key


def test_kept_held_out_records_of_a_pruned_snapshot_are_corrected_too(
    store: treering.Store, sealed: treering.Corpus
) -> None:
    sealed.annotate("h2", correction={"label": "b"})
    sealed.prune(keep=0, dry_run=False, keep_heldout=True)
    assert labels(store.heldout("support@v1"))["h2"] == "b"


@calm
@given(
    data=st.lists(st.integers(0, 30), unique=True, max_size=12),
    row_ids=st.lists(st.integers(0, 30), unique=True, max_size=20),
)
def test_laying_over_changes_just_the_rows_that_were_corrected(data: list[int], row_ids: list[int]) -> None:
    import numpy as np

    ids = np.array(sorted(data), np.int64)
    if not len(ids):
        return
    laid = Corrections({"x": (ids, pa.array([f"c{i}" for i in ids.tolist()]))})
    rows = np.array(row_ids, np.int64)
    batch = pa.record_batch([pa.array([f"o{i}" for i in row_ids], pa.string()), pa.array(rows)], names=["x", "y"])
    found = laid.apply(batch, rows).to_pydict()
    assert found["x"] == [f"c{i}" if i in set(data) else f"o{i}" for i in row_ids]
    assert found["y"] == row_ids
    table = laid.apply(pa.Table.from_batches([batch.slice(0, 3), batch.slice(3)]), rows)
    assert table.column("x").to_pylist() == found["x"]


def test_a_source_without_corrections_looks_none_up_and_costs_nothing(
    store: treering.Store, sealed: treering.Corpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: object) -> None:
        raise AssertionError("laid over")

    monkeypatch.setattr(Corrections, "apply", never)
    sealed.annotate("r1", label="x", quality=1.0)
    assert len(delivered(store, "support@v1")) == 60
    assert (Path(store.root or "") / "tables").exists()
