"""torchdata's real StatefulDataLoader, as a class and as a trap."""

from __future__ import annotations

import json
from typing import Any

import pytest

pytest.importorskip("torchdata")

from torchdata.stateful_dataloader import StatefulDataLoader

from treering.errors import ConflictError, UsageError
from treering.mixing import Mix, mix
from treering.plugins.torchdata import TreeringDataLoader
from treering.testing import MemoryStore, check_resume

pytestmark = pytest.mark.filterwarnings("ignore:.set_vital. is deprecated:UserWarning")  # torchdata against newer torch


def a_mix(seed: int = 3) -> Mix:
    store = MemoryStore()
    for name in ("v1", "live"):
        store.add(f"c@{name}", [{"id": f"{name}-{n}"} for n in range(40)])
    return mix(store.load("c@v1"), store.live("c"), weights=[1, 1], seed=seed)


class Ids(TreeringDataLoader):
    def __iter__(self) -> Any:
        return (list(batch["id"]) for batch in super().__iter__())


def test_it_is_one_of_torchdatas_with_the_loaders_batches_and_resume() -> None:
    with a_mix().loader(batch_size=8) as loader:
        whole = [list(batch["id"]) for batch in loader]
        wrapped = Ids(loader)
        assert isinstance(wrapped, StatefulDataLoader)
        assert len(wrapped) == len(whole)
        assert list(wrapped) == whole
    check_resume(lambda: Ids(a_mix().loader(batch_size=8)))


def test_an_iterator_made_before_the_state_was_loaded_ends_instead_of_starting_over() -> None:
    with a_mix().loader(batch_size=8) as loader:
        wrapped = TreeringDataLoader(loader)
        running = iter(wrapped)
        next(running)
        state = json.loads(json.dumps(wrapped.state_dict()))
        early = iter(wrapped)
        wrapped.load_state_dict(state)
        with pytest.raises(UsageError, match="ended early"):
            next(early)


def test_torchdata_by_itself_starts_over_there() -> None:
    """The trap that the class is for: should torchdata mend it, we would like to know."""

    class Numbers:
        def __len__(self) -> int:
            return 10

        def __getitem__(self, number: int) -> int:
            return number

    loader = StatefulDataLoader(Numbers(), batch_size=None)
    running = iter(loader)
    next(running), next(running)
    state = loader.state_dict()
    early = iter(loader)
    loader.load_state_dict(state)
    assert next(early) == 0
    assert next(iter(loader)) == 2


def test_the_state_of_another_mix_is_refused() -> None:
    with a_mix().loader(batch_size=8) as one, a_mix(seed=4).loader(batch_size=8) as other:
        with pytest.raises(ConflictError, match="seed"):
            TreeringDataLoader(other).load_state_dict(TreeringDataLoader(one).state_dict())
        with pytest.raises(UsageError, match="not a treering loader"):
            TreeringDataLoader([1])  # type: ignore[arg-type]
