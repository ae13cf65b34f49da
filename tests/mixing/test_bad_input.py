"""Whatever is wrong with a call, a lock or a state: one error that says so."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import treering
from treering.mixing import MixLock


@pytest.fixture
def sealed(store: treering.Store) -> treering.Store:
    corpus = store.create("support", "labelled")
    with corpus.capture() as live:
        live.extend([{"id": f"r{i}", "text": f"t{i}", "label": "l"} for i in range(60)])
    assert corpus.snapshot()
    return store


@pytest.mark.parametrize(
    "weights", [[1, 2], [float("nan")], [-1], [0], [float("inf")], [10**400], [1e308], "1", 0.5, ["1"], [True], []]
)
def test_weights_that_are_no_weights_are_refused(sealed: treering.Store, weights: Any) -> None:
    with pytest.raises(treering.UsageError):
        sealed.mix("support@v1", weights=weights)


@pytest.mark.parametrize("refs", [(None,), (3,), (["support@v1"],), ("support",), ("support@v1 ",)])
def test_what_is_neither_ref_nor_source_is_refused(sealed: treering.Store, refs: tuple[Any, ...]) -> None:
    with pytest.raises(treering.UsageError):
        sealed.mix(*refs)


@pytest.mark.parametrize(
    "arguments",
    [
        {"columns": "text"}, {"columns": [1]}, {"pad_value": "x"}, {"pad_value": float("nan")}, {"transform": 3},
        {"epochs": 0}, {"epochs": -3}, {"epochs": 2.5}, {"epochs": "all"}, {"ragged": "zz"},
    ],
)  # fmt: skip
def test_loader_arguments_are_checked_wherever_the_loader_comes_from(
    sealed: treering.Store, arguments: dict[str, Any]
) -> None:
    mix = sealed.mix("support@v1")
    with pytest.raises(treering.UsageError):
        mix.loader(**arguments)
    with pytest.raises(treering.UsageError):
        mix.lock().loader(sealed, **arguments)


def test_the_environment_of_ranks_is_checked(sealed: treering.Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "x")
    with pytest.raises(treering.UsageError, match="RANK"):
        sealed.mix("support@v1").loader()


def test_an_unknown_column_is_not_found_and_the_known_ones_are_named(sealed: treering.Store) -> None:
    with pytest.raises(treering.NotFoundError, match="label"):
        sealed.mix("support@v1").loader(columns=["nope"])


def test_the_held_out_part_of_a_source_is_never_a_member_of_a_mix(sealed: treering.Store) -> None:
    source = sealed.load("support@v1")
    for weights in ([1.0, 1.0], [0.0, 1.0]):
        with pytest.raises(treering.UsageError, match="held-out"):
            treering.mix(source.heldout(), source, weights=weights)


def test_a_pin_keeps_the_held_out_part_apart(sealed: treering.Store) -> None:
    heldout = sealed.load("support@v1").heldout()
    again = treering.Source.from_pin(sealed, json.loads(json.dumps(heldout.pin())))
    assert again.to_table().equals(heldout.to_table())
    assert len(again) == len(heldout) < 60


def changed(lock: MixLock, **changes: Any) -> str:
    return json.dumps({**json.loads(lock.to_json()), **changes})


@pytest.mark.parametrize(
    "change",
    [
        {"anchor": 9}, {"epochs": 0}, {"sources": []}, {"digest": None}, {"seed": "x"}, {"extra": 1},
        {"events": [{"kind": "growth", "source": 7, "draw": 0, "train_rows": 5}]},
        {"events": [{"kind": "weights", "batch": 1, "units": [1, 1], "taken": [0]}]},
    ],
)  # fmt: skip
def test_a_lock_that_makes_no_sense_is_refused(sealed: treering.Store, change: dict[str, Any]) -> None:
    with pytest.raises((treering.UsageError, treering.ConflictError)):
        MixLock.from_json(changed(sealed.mix("support@v1").lock(), **change))


@pytest.mark.parametrize("text", ["", "[]", "{}", "null", "[" * 100_000, '{"digest": "x"}', "\ud800"])
def test_what_is_no_lock_is_refused(text: str) -> None:
    with pytest.raises(treering.UsageError):
        MixLock.from_json(text)


def test_a_lock_edited_by_hand_is_refused(sealed: treering.Store) -> None:
    lock = sealed.mix("support@v1").lock()
    with pytest.raises(treering.ConflictError, match="digest"):
        MixLock.from_json(changed(lock, seed=lock.seed + 1))


def test_paths_that_can_hold_no_lock_are_errors_of_ours(sealed: treering.Store, tmp_path: Path) -> None:
    lock = sealed.mix("support@v1").lock()
    (tmp_path / "file").write_text("x")
    for bad in (tmp_path, tmp_path / "file" / "x", tmp_path / "none.json"):
        with pytest.raises(treering.NotFoundError):
            MixLock.load(bad)
    for bad in (tmp_path, tmp_path / "file" / "x"):
        with pytest.raises(treering.StoreError):
            lock.save(bad)
    assert [p.name for p in tmp_path.iterdir() if p.name.endswith(".tmp")] == []


def test_a_transform_cannot_end_the_epoch(sealed: treering.Store) -> None:
    def stops(batch: Any) -> Any:
        raise StopIteration

    for prefetch in (0, None):
        loader = sealed.mix("support@v1").loader(8, transform=stops, prefetch=prefetch)
        with loader, pytest.raises(RuntimeError, match="StopIteration"):
            list(loader)


def test_a_state_beyond_all_batches_is_refused(sealed: treering.Store) -> None:
    loader = sealed.mix("support@v1").loader(8, epochs=None)
    with pytest.raises(treering.UsageError):
        loader.load_state_dict({**loader.state_dict(), "batch": 2**63})
    loader.close()


def test_a_run_over_live_outlives_compaction_and_cleanup(store: treering.Store) -> None:
    corpus = store.create("support", "labelled")
    for part in range(4):
        with corpus.capture() as live:
            live.extend([{"id": f"{part}-{i}", "text": "t", "label": "l"} for i in range(200)])
    mix = treering.mix(store.live("support"), seed=3)
    arguments: dict[str, Any] = {"columns": ["id"], "epochs": None, "chunk_rows": 1, "pool_rows": 100}
    with mix.loader(16, **arguments) as loader:
        whole = [batch["id"] for batch, _ in zip(loader, range(60), strict=False)]
    with mix.loader(16, **arguments) as loader:
        batches = iter(loader)
        broken = [next(batches)["id"] for _ in range(10)]
        corpus.compact()
        corpus.clean_up(older_than_s=0)
        broken += [next(batches)["id"] for _ in range(50)]
    assert broken == whole


def test_what_cannot_be_trained_or_evaluated_is_refused(sealed: treering.Store) -> None:
    for mix in (None, "support@v1"):
        with pytest.raises(treering.UsageError):
            treering.train(sealed, mix)  # type: ignore[arg-type]
    for ref in (None, 42, "support"):
        with pytest.raises(treering.UsageError):
            treering.evaluate(sealed, ref)  # type: ignore[arg-type]
    with pytest.raises(treering.UsageError, match="min_score"):
        treering.GatePolicy(min_score=3.0)


def test_a_run_that_was_ended_early_says_so_and_does_not_look_like_an_epochs_end(sealed: treering.Store) -> None:
    loader = sealed.mix("support@v1").loader(8)
    first = iter(loader)
    next(first)
    second = iter(loader)
    with pytest.raises(treering.UsageError, match="ended early"):
        next(first)
    assert len(list(second)) == len(loader)
    with pytest.raises(StopIteration):
        next(second)
    third = iter(loader)
    loader.close()
    with pytest.raises(treering.UsageError, match="ended early"):
        next(third)
