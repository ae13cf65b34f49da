"""A loader for those who ask for torchdata's `StatefulDataLoader`.

    from treering.plugins.torchdata import TreeringDataLoader

    batches = TreeringDataLoader(mix.loader(batch_size=32, columns=["text", "label"]))
    batches.load_state_dict(saved)

treering doesn't need it: a loader has `state_dict()` and `load_state_dict()` of its own, and this class has the loader's.
torchdata's state machine stays out of it. There, an iterator made before `load_state_dict` goes on at row 0; here it says
that its run was ended.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch.utils.data import IterableDataset

from treering.errors import UsageError
from treering.mixing.loader import Loader
from treering.plugins import missing

try:
    from torchdata.stateful_dataloader import StatefulDataLoader
except ImportError as exc:
    raise missing("torchdata", "torchdata") from exc

__all__ = ["TreeringDataLoader"]


class TreeringDataLoader(StatefulDataLoader):  # type: ignore[misc]
    """A loader as a StatefulDataLoader: the same batches, order and state. Batch size, workers and ranks are the loader's.

    `accelerate.prepare` leaves it as it is: it has its rank's rows, and would be sharded a second time.
    """

    _is_accelerate_prepared = True  # what accelerate marks loaders with that it has seen

    def __init__(self, loader: Loader) -> None:
        if not isinstance(loader, Loader):
            raise UsageError(f"loader is {loader!r}, not a treering loader", code="not-a-loader", hint="mix.loader(…)")
        super().__init__(_Batches(loader), batch_size=None)

    def __iter__(self) -> Iterator[Any]:
        """From batch 0, or once from the state loaded; ends the iterator before."""
        return iter(self.dataset)

    def __len__(self) -> int:
        """Batches; raises TypeError when endless."""
        return len(self.dataset.loader)

    def state_dict(self) -> dict[str, Any]:
        """The loader's: JSON-ready, batches handed out."""
        return self.dataset.loader.state_dict()  # type: ignore[no-any-return]

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Let the next `iter()` start there. Raises as the loader's does, for the state of another mix."""
        self.dataset.loader.load_state_dict(state_dict)

    def close(self) -> None:
        """End the loader's threads and worker processes."""
        self.dataset.loader.close()


class _Batches(IterableDataset[Any]):
    def __init__(self, loader: Loader) -> None:
        self.loader = loader

    def __iter__(self) -> Iterator[Any]:
        return iter(self.loader)
