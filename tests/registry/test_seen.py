"""Who saw the erased records: by the rows of each adapter's lock, and by descent."""

from __future__ import annotations

from typing import Any

import pytest

import treering
from tests.erasing import SCHEMA, record
from treering.mixing import MixLock
from treering.registry import Registry
from treering.registry.trained import training_data


@pytest.fixture
def real(tmp_path: Any) -> treering.Store:
    return treering.open(tmp_path / "store")


def trained(store: treering.Store, lock: MixLock | None, parent: str | None = None, home: str = "support") -> str:
    """An adapter that a run of this lock left."""
    pins = [source.pin.model_dump(mode="json") for source in lock.sources if source.units] if lock else []
    refs, rows = training_data(pins)
    added = Registry(store, home).add(
        weights=b"weights of nobody", card={}, lock=lock.to_json().encode() if lock else None,
        lock_digest=lock.digest if lock else None, parent=parent, trained_on=refs, trained_rows=rows,
    )  # fmt: skip
    return added.ref


def test_adapters_are_named_by_the_rows_they_drew_and_by_descent(real: treering.Store) -> None:
    corpus = real.create("support", SCHEMA, heldout=0.2)
    real.create("other", SCHEMA)
    for start, who in ((0, ["ann", "bob"]), (100, ["bob"]), (200, ["ann", "bob"])):
        with corpus.capture() as live:
            live.extend([record(start + n, one) for n in range(40) for one in who])
        if start < 200:
            corpus.snapshot()
    mixes = {
        "both": real.mix("support@v1", "support@v2"),
        "without": real.mix("support@v2"),
        "live": real.mix("support@v2", "support@live"),
        "weight 0": real.mix("support@v1", "support@v2", weights=[0, 1]),
        "narrowed to bob": real.mix(real.load("support@v1").where(subject="bob")),
        "narrowed to both": real.mix(real.load("support@v1").where(subject=["ann", "bob"])),
    }
    locks = {name: mix.lock(batch_size=8) for name, mix in mixes.items()}
    made = {name: trained(real, lock) for name, lock in locks.items()}
    made["child"] = trained(real, locks["without"], parent=made["both"])
    made["grandchild elsewhere"] = trained(real, None, parent=made["child"], home="other")

    train = real.load("support@v1").where(subject="ann").segments[0].runs("train")[:, 1].sum()
    receipt = corpus.erase(where={"subject": "ann"})

    seen = {one.adapter: one for one in receipt.seen_by}
    named = {name for name, ref in made.items() if ref in seen}
    assert named == {"both", "live", "narrowed to both", "child", "grandchild elsewhere"}
    assert seen[made["both"]].records == seen[made["narrowed to both"]].records == train
    assert seen[made["both"]].lock_digest == locks["both"].digest
    assert 0 < seen[made["live"]].records <= receipt.records["live"]
    assert seen[made["child"]].inherits_from == seen[made["grandchild elsewhere"]].inherits_from == made["both"]


def test_held_out_records_were_seen_by_no_adapter(real: treering.Store) -> None:
    corpus = real.create("support", SCHEMA, heldout=0.2)
    with corpus.capture() as live:
        live.extend([record(n, "ann", split="heldout") for n in range(9)])
        live.extend([record(n, "bob", split="train") for n in range(9)])
    corpus.snapshot()
    trained(real, real.mix("support@v1").lock(batch_size=4))
    assert corpus.erase(where={"subject": "ann"}).seen_by == []
    assert [one.records for one in corpus.erase(where={"subject": "bob"}).seen_by] == [9]
