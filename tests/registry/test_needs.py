from __future__ import annotations

from pathlib import Path

import pytest

import treering
from treering.errors import NotFoundError
from treering.registry import Registry
from treering.registry.needs import adapters_of, ancestry, in_production

from .test_registry import add, promoted


@pytest.fixture
def real(tmp_path: Path) -> treering.Store:
    store = treering.open(tmp_path / "store")
    for name in ("support", "billing"):
        corpus = store.create(name, schema="labelled", heldout=0.0)
        for number in range(2):
            with corpus.capture() as live:
                live.extend([{"id": f"{name}-{number}-{i}", "text": "hi", "label": "a"} for i in range(10)])
            corpus.snapshot()
    return store


def names(adapters: list[object]) -> list[str]:
    return [adapter.ref for adapter in adapters]  # type: ignore[attr-defined]


def test_adapters_are_found_in_every_registry_by_name_and_by_rows_that_were_live_then(real: treering.Store) -> None:
    support, billing = Registry(real, "support"), Registry(real, "billing")
    add(support, trained_on=["support@v1"])
    add(support, trained_rows={"support": [(12, 15)]})  # of v2, when it was live
    add(billing, trained_on=["support@v1..v2"])
    add(billing, trained_on=["billing@v1"], trained_rows={"support": [(20, 30)]})
    assert names(adapters_of(real, "support", "v1")) == ["billing:1", "support:1"]
    assert names(adapters_of(real, "support", "v2")) == ["billing:1", "support:2"]
    assert names(adapters_of(real, "billing", "v1")) == ["billing:2"]
    assert adapters_of(real, "billing", "v2") == []
    with pytest.raises(NotFoundError, match="support@v3"):
        adapters_of(real, "support", "v3")


def test_what_production_continues_from_counts_across_corpora(real: treering.Store) -> None:
    support, billing = Registry(real, "support"), Registry(real, "billing")
    add(support)
    add(support, parent="support:1")
    promoted(billing, parent="support:2")
    promoted(billing, parent="billing:1")
    assert names(ancestry(real, "billing:2")) == ["billing:2", "billing:1", "support:2", "support:1"]
    assert names(in_production(real)) == ["billing:2", "billing:1", "support:2", "support:1"]
