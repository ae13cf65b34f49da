"""A run that was killed while it added its adapter goes on with the number that it had claimed."""

from __future__ import annotations

from typing import Any

import pytest

from treering.errors import TreeringError
from treering.registry import Registry
from treering.registry.compare import against_parent


def add(store: Any, run: str | None, weights: bytes = b"w", seconds: float = 1.0, **more: Any) -> Any:
    card = {"known": ["a"], "stats": {"seconds": seconds}}
    return Registry(store, "support").add(weights=weights, card=card, lock=b"lock", run=run, **more)


class Killed(Exception):
    pass


@pytest.mark.parametrize("last", ["weights.safetensors", "card.json", "lock.json"])
def test_the_claimed_number_is_taken_up_again(store: Any, last: str) -> None:
    def kill(path: str) -> None:
        if path.endswith(
            {"weights.safetensors": "card.json", "card.json": "lock.json", "lock.json": "record.json"}[last]
        ):
            raise Killed

    store.objects.before_create = kill
    with pytest.raises(Killed):
        add(store, "support/1")
    store.objects.before_create = None
    assert Registry(store, "support").adapters() == []
    record = add(store, "support/1", seconds=2.0)
    assert (record.ref, record.run) == ("support:1", "support/1")
    assert [a.ref for a in Registry(store, "support").adapters()] == ["support:1"]
    assert Registry(store, "support").card("support:1")["known"] == ["a"]
    assert add(store, "support/2").ref == "support:2"


def test_other_weights_and_adapters_without_a_run_take_the_next_number(store: Any) -> None:
    store.objects.create("adapters/support/1/weights.safetensors", b"w")
    assert add(store, None).ref == "support:2"
    assert add(store, "support/1", weights=b"other").ref == "support:3"
    assert add(store, "support/1").ref == "support:1"


def test_whoever_loses_a_number_on_the_way_takes_the_next(store: Any) -> None:
    """Another adder of the same weights is there while ours stands between its weights and its record."""

    def other(path: str) -> None:
        if path == "adapters/support/1/card.json":
            store.objects.before_create = None
            assert add(store, "support/1", seconds=9.0).ref == "support:1"

    store.objects.before_create = other
    assert add(store, "support/2").ref == "support:2"
    assert [a.run for a in Registry(store, "support").adapters()] == ["support/1", "support/2"]


def test_an_adapter_stands_beside_its_parent_slice_by_slice(store: Any) -> None:
    add(store, None, scores={"support@v1": 0.9})
    second = add(store, None, parent="support:1", scores={"support@v1": 0.85, "support@v2": 0.7})
    changes = against_parent(store, second.ref)
    assert [(c.slice, c.score, c.parent, c.change and round(c.change, 3)) for c in changes] == [
        ("support@v1", 0.85, 0.9, -0.05),
        ("support@v2", 0.7, None, None),
    ]
    assert against_parent(store, "support:1") == []
    with pytest.raises(TreeringError):
        against_parent(store, "support:9")
