"""Locks, pins and selections of what lost records to erasure: refused by name, or served with the rest as it was."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

import treering
from tests.erasing import SCHEMA, record
from treering.errors import ConflictError
from treering.mixing import MixLock
from treering.store.source import Source

WHO = "somebody"


@pytest.fixture
def corpus(store: treering.Store) -> treering.Corpus:
    corpus = store.create("support", SCHEMA, heldout=0.2)
    for start in (0, 1000):
        with corpus.capture() as live:
            live.extend(
                [record(start + n, who, tokens=[n] * (n % 4)) for n in range(60) for who in (WHO, "ann", "bob")]
            )
        if start == 0:
            corpus.snapshot()
    return corpus


def rows(batch: dict[str, Any]) -> list[tuple[str, str, int]]:
    return list(zip(batch["id"], batch["text"], batch["_ref"].tolist(), strict=True))


def lock_of(store: treering.Store, **how: Any) -> MixLock:
    mix = store.mix("support@v1", "support@live", weights=[0.4, 0.6], seed=5)
    return MixLock.from_json(mix.lock(batch_size=12, columns=["id", "text", "tokens"], epochs=2, **how).to_json())


def test_a_lock_of_the_former_content_refuses_and_names_the_receipt(
    store: treering.Store, corpus: treering.Corpus, tmp_path: Path
) -> None:
    for ref in ("support@v1", "support@live"):
        lock = store.mix(ref).lock(batch_size=8)
        lock.save(tmp_path / f"{ref}.json")
    receipt = corpus.erase(where={"subject": WHO})
    for ref in ("support@v1", "support@live"):
        with pytest.raises(
            ConflictError, match=rf"{ref} were erased since it was pinned \(receipt 1 of support\)"
        ) as error:
            MixLock.load(tmp_path / f"{ref}.json").loader(store)
        assert error.value.code == "erased"
        assert WHO not in str(error.value)
    assert receipt.number == 1
    again = store.mix("support@v1").lock(batch_size=8)  # made anew, it simply has fewer rows
    assert sum(len(batch["_ref"]) for batch in again.loader(store)) >= again.sources[0].train_rows


@pytest.mark.parametrize("chunk", [1, 4, None])
def test_skip_serves_the_same_batches_without_the_erased_rows(
    store: treering.Store, corpus: treering.Corpus, chunk: int | None
) -> None:
    lock = lock_of(store, chunk_rows=chunk)
    before = [rows(batch) for batch in lock.loader(store, cache=False)]
    corpus.erase(where={"subject": WHO})
    with pytest.warns(UserWarning, match="records of support@(v1|live) were erased; batches go without them"):
        loader = lock.loader(store, erased="skip")
    after = [rows(batch) for batch in loader]
    assert after == [[row for row in batch if not row[0].startswith(WHO)] for batch in before]
    assert sum(map(len, after)) < sum(map(len, before))
    stats = loader.stats()
    assert [source["erased"] > 0 for source in stats["sources"]] == [True, True]
    assert stats["rows"] == sum(map(len, after)) == sum(source["served"] for source in stats["sources"])
    assert loader.lock().digest == lock.digest


@pytest.mark.filterwarnings("ignore:.*were erased")
@pytest.mark.parametrize(("workers", "world", "ragged"), [(0, 1, "values"), (0, 3, "pad"), (2, 1, "pad")])
def test_skip_is_the_same_for_ranks_workers_and_ragged_columns(
    store: treering.Store, corpus: treering.Corpus, workers: int, world: int, ragged: str
) -> None:
    lock = lock_of(store, ragged=ragged)

    def served(erased: str) -> list[list[Any]]:
        out = []
        for rank in range(world):
            with lock.loader(
                store, erased=erased, rank=rank, world_size=world, num_workers=workers, cache=False
            ) as loader:  # type: ignore[arg-type]
                for batch in loader:
                    if ragged == "values":
                        ends = batch["tokens.offsets"].tolist()
                        tokens = [batch["tokens"][a:b].tolist() for a, b in pairwise(ends)]
                    else:
                        lengths = batch["tokens.lengths"].tolist()
                        tokens = [row[:n].tolist() for row, n in zip(batch["tokens"], lengths, strict=True)]
                    out.append(list(zip(batch["id"], batch["_ref"].tolist(), tokens, strict=True)))
        return out

    before = served("refuse")
    corpus.erase(where={"subject": WHO})
    assert served("skip") == [[row for row in batch if not row[0].startswith(WHO)] for batch in before]


@pytest.mark.filterwarnings("ignore:.*were erased")
def test_a_skipping_run_resumes_where_it_stood(store: treering.Store, corpus: treering.Corpus) -> None:
    lock = lock_of(store)
    corpus.erase(where={"subject": WHO})
    whole = [rows(batch) for batch in lock.loader(store, erased="skip")]
    loader = lock.loader(store, erased="skip")
    head = [rows(batch) for _, batch in zip(range(3), loader, strict=False)]
    rest = lock.loader(store, erased="skip")
    rest.load_state_dict(json.loads(json.dumps(loader.state_dict())))
    assert head + [rows(batch) for batch in rest] == whole


@pytest.mark.filterwarnings("ignore:.*were erased")
def test_live_rows_that_were_sealed_before_they_were_erased_are_skipped_too(
    store: treering.Store, corpus: treering.Corpus
) -> None:
    lock = lock_of(store)
    before = [rows(batch) for batch in lock.loader(store)]
    corpus.snapshot()
    corpus.erase(where={"subject": WHO})
    corpus.erase(where={"subject": "bob"})
    after = [rows(batch) for batch in lock.loader(store, erased="skip")]
    assert after == [[row for row in batch if row[0].startswith("ann")] for batch in before]


@pytest.mark.filterwarnings("ignore:.*were erased")
def test_a_lock_from_between_two_erasures_misses_what_the_second_took(
    store: treering.Store, corpus: treering.Corpus
) -> None:
    corpus.erase(where={"subject": WHO})
    lock = lock_of(store)
    before = [rows(batch) for batch in lock.loader(store)]
    corpus.erase(where={"subject": "bob"})
    with pytest.raises(ConflictError, match="receipt 2 of support"):
        lock.loader(store)
    after = [rows(batch) for batch in lock.loader(store, erased="skip")]
    assert after == [[row for row in batch if row[0].startswith("ann")] for batch in before]


@pytest.mark.filterwarnings("ignore:.*were erased")
def test_what_annotations_had_excluded_keeps_its_place_outside(store: treering.Store, corpus: treering.Corpus) -> None:
    corpus.annotate_many([{"id": f"{who}-{n}", "exclude": True} for n in range(9) for who in (WHO, "ann")])
    lock = lock_of(store)
    before = [rows(batch) for batch in lock.loader(store)]
    corpus.annotate_many([{"id": f"{WHO}-{n}", "exclude": False} for n in range(9)])
    corpus.erase(where={"subject": WHO})
    after = [rows(batch) for batch in lock.loader(store, erased="skip")]
    assert after == [[row for row in batch if not row[0].startswith(WHO)] for batch in before]


@pytest.mark.filterwarnings("ignore:.*were erased")
def test_a_selection_loses_the_erased_rows_and_its_lock_skips_them(
    store: treering.Store, corpus: treering.Corpus
) -> None:
    chosen = store.load("support@v1").select(rows=50, name="chosen")
    kept = [i for i in chosen.to_table(["id"]).column(0).to_pylist() if not i.startswith(WHO)]
    lock = MixLock.from_json(store.mix("support/chosen").lock(batch_size=8, columns=["id", "text"]).to_json())
    before = [rows(batch) for batch in lock.loader(store)]
    corpus.erase(where={"subject": WHO})
    assert store.load("support/chosen").to_table(["id"]).column(0).to_pylist() == kept
    with pytest.raises(ConflictError, match="erased"):
        lock.loader(store)
    after = [rows(batch) for batch in lock.loader(store, erased="skip")]
    assert after == [[row for row in batch if not row[0].startswith(WHO)] for batch in before]


def test_what_cannot_be_served_again_without_the_rows_is_refused_and_says_why(
    store: treering.Store, corpus: treering.Corpus
) -> None:
    narrowed = store.mix(store.load("support@v1").where(label=f"label {WHO}")).lock(batch_size=8)
    weighted = store.mix(store.load("support@v1").balanced("label")).lock(batch_size=8)
    corpus.erase(where={"subject": WHO})
    for lock, why in ((narrowed, "narrowed by label"), (weighted, "drawn by label")):
        with pytest.raises(ConflictError, match=why) as error:
            lock.loader(store, erased="skip")
        assert error.value.code == "erased"


def test_a_source_that_was_pinned_before_says_so(store: treering.Store, corpus: treering.Corpus) -> None:
    for ref in ("support@v1", "support@live"):
        source = store.load(ref)
        pin = source.pin()
        ids = source.segments[0].runs("train")[:, 0]
        corpus.erase(ids=[source.to_table(["id"]).column(0)[0].as_py()])
        number = len(corpus.erasures())
        for use in (source.to_table, source.scan(["id"]).__next__, lambda p=pin: Source.from_pin(store, p)):
            with pytest.raises(ConflictError, match=f"receipt {number} of support") as error:
                use()
            assert error.value.code == "erased"
        assert len(ids)


def test_a_pin_that_lost_no_row_is_as_good_as_before(store: treering.Store, corpus: treering.Corpus) -> None:
    lock = store.mix("support@v1").lock(batch_size=8)
    live = store.live("support")
    before = [batch["id"] for batch in lock.loader(store)]
    corpus.erase(ids=["nobody"])
    assert [batch["id"] for batch in lock.loader(store)] == before
    assert len(live.to_table()) == 180


@pytest.mark.filterwarnings("ignore:.*were erased")
def test_a_source_all_of_whose_rows_were_erased_gives_empty_batches(store: treering.Store) -> None:
    corpus = store.create("everyone", SCHEMA, heldout=0)
    with corpus.capture() as live:
        live.extend([record(n, WHO) for n in range(20)])
    corpus.snapshot()
    lock = store.mix("everyone@v1").lock(batch_size=8)
    batches = len(list(lock.loader(store)))
    corpus.erase(where={"subject": WHO})
    after = list(lock.loader(store, erased="skip"))
    assert [len(batch["_ref"]) for batch in after] == [0] * batches
    assert [batch["id"] for batch in after] == [[]] * batches


def test_tombstones_of_every_type_have_something_to_stand_for_them() -> None:
    from treering.store.gone import _empty

    kinds = [
        pa.int8(), pa.uint64(), pa.float32(), pa.bool_(), pa.string(), pa.large_binary(), pa.timestamp("us", tz="UTC"),
        pa.date32(), pa.list_(pa.int32()), pa.list_(pa.float32(), 3),
        pa.list_(pa.struct([("role", pa.string()), ("n", pa.int16())])), pa.struct([("a", pa.list_(pa.string()))]),
    ]  # fmt: skip
    for kind in kinds:
        column = _empty(kind, 3)
        assert (column.type, len(column), column.null_count) == (kind, 3, 0)


def test_rows_left_out_of_a_batch_leave_every_kind_of_column_whole() -> None:
    from treering.mixing.columns import ArrowColumn, drop_rows

    columns = {
        "n": np.arange(4), "text": list("abcd"), "nested": ArrowColumn(pa.array([[1], [2], [], [4]])),
        "flat": np.array([1, 2, 2, 4, 4]), "flat.offsets": np.array([0, 1, 3, 3, 5]),
        "padded": np.array([[1, 0], [2, 2], [0, 0], [4, 4]]), "padded.lengths": np.array([1, 2, 0, 2]),
    }  # fmt: skip
    kept = drop_rows(columns, np.array([False, True, False, False]))
    assert {k: v.tolist() if hasattr(v, "tolist") else v for k, v in kept.items()} == {
        "n": [0, 2, 3], "text": ["a", "c", "d"], "nested": [[1], [], [4]],
        "flat": [1, 4, 4], "flat.offsets": [0, 1, 1, 3],
        "padded": [[1, 0], [0, 0], [4, 4]], "padded.lengths": [1, 0, 2],
    }  # fmt: skip
