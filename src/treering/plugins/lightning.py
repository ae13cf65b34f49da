"""Train a LightningModule on a mix, and resume it at the exact batch.

    from treering.plugins.lightning import TreeringDataModule

    data = TreeringDataModule(mix.loader, batch_size=32, columns=["text", "label"], transform=tokenise)
    Trainer(max_epochs=3).fit(model, data, ckpt_path="last")

The loader is made when Lightning has its processes, for the rank of each: Lightning's own launcher sets no RANK, so a
loader made in the script would be of rank 0 everywhere. An epoch of Lightning is one length of the loader, each in a
fresh order; with `epochs=None` it is endless, and `max_steps` says where to stop. Where the loader stands lies in the
checkpoint. For a lock: `TreeringDataModule(lock.loader, store, …)`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from treering.errors import ConflictError, UsageError
from treering.mixing.loader import Loader
from treering.plugins import missing

try:
    import pytorch_lightning as pl  # the package `lightning` was quarantined on PyPI for malware; this one never was
except ImportError as exc:
    raise missing("pytorch-lightning", "'treering[lightning]'") from exc

__all__ = ["TreeringDataModule"]


class TreeringDataModule(pl.LightningDataModule):  # type: ignore[misc]
    """A data module of one training loader. Subclass it for `val_dataloader`.

    make: `mix.loader`, or another function that returns a treering loader; it is called with the arguments that follow
    and the trainer's `rank` and `world_size`.
    """

    def __init__(self, make: Callable[..., Loader], *args: Any, **options: Any) -> None:
        super().__init__()
        if isinstance(make, Loader) or not callable(make):
            raise UsageError(
                "the data module makes its loader itself, once Lightning knows the ranks",
                code="not-a-maker",
                hint="TreeringDataModule(mix.loader, batch_size=…), without calling mix.loader",
            )
        if given := {"rank", "world_size"} & set(options):
            raise UsageError(
                f"{' and '.join(sorted(given))} {'come' if len(given) > 1 else 'comes'} from Lightning's trainer",
                code="rank-given",
            )
        self._make: Callable[..., Loader] = partial(make, *args, **options)
        self._stream: _Stream | None = None
        self._of: Any = None  # whose the stream is
        self._resume: dict[str, Any] | None = None

    def train_dataloader(self) -> Any:
        """The batches of this process. Raises ConflictError when the checkpoint is of another mix."""
        trainer = self.trainer
        if trainer is None:
            raise UsageError("the data module isn't in use", code="no-trainer", hint="trainer.fit(model, data)")
        if trainer.overfit_batches:
            raise UsageError(
                "overfit_batches wants the same batches in each epoch, and here each is a fresh order",
                code="overfit-batches",
                hint="trainer.fit(model, mix.loader(…)): without the data module each epoch begins at batch 0",
            )
        if self._stream is not None:
            self._stream.rest()
            if self._resume is None and self._of is trainer:  # reload_dataloaders_every_n_epochs
                self._resume = self._stream.state(self._trained())
        self._of = trainer
        loader = self._make(rank=trainer.global_rank, world_size=trainer.world_size)
        self._stream = _Stream(loader, self._trained, self._resume)
        self._resume = None
        return self._stream

    @property
    def loader(self) -> Loader | None:
        """The loader that runs, for `reweigh()`, `stats()` and `lock()`; None before training."""
        return None if self._stream is None else self._stream.loader

    def teardown(self, stage: str) -> None:
        """Let the loader's threads go."""
        if self._stream is not None:
            self._stream.rest()

    def state_dict(self) -> dict[str, Any]:
        """What goes into the checkpoint: the loader's state, at the batches that were trained on."""
        if self._stream is None:
            return {}
        return {"loader": self._stream.state(self._trained())}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on where the checkpoint stands; Lightning calls it."""
        self._resume = state_dict.get("loader")

    def _trained(self) -> int:
        """Batches trained on since the run began, over all epochs and resumptions.

        Lightning fetches a batch ahead where there is no length, so what was handed out isn't what was trained on.
        """
        assert self.trainer is not None
        return int(self.trainer.fit_loop.epoch_loop.batch_progress.total.processed)


class _Stream:
    """The batches of a loader from wherever training stands; how many make an epoch is its length.

    Has no `state_dict`: Lightning would save one beside the data module's, counting what it fetched ahead.
    """

    def __init__(self, loader: Loader, trained: Callable[[], int], resume: dict[str, Any] | None) -> None:
        self.loader = loader.endless()
        self._length = None if loader.lock().epochs is None and not loader.lock().once else len(loader)
        self._trained = trained
        if resume is not None:
            self.loader.load_state_dict(resume)
            if resume["batch"] != trained():
                raise ConflictError(
                    f"the checkpoint's loader stands at batch {resume['batch']}, Lightning at {trained()}",
                    code="resume-mismatch",
                    hint="resume with the checkpoint's own ckpt_path, trainer and data module",
                )

    def __len__(self) -> int:
        if self._length is None:
            raise TypeError("an endless loader (epochs=None) has no length")
        return self._length

    def __iter__(self) -> Iterator[Any]:
        number = self._trained()
        self.loader.load_state_dict(self.state(number))
        yield from self.loader
        raise UsageError(
            f"the run is over after {len(self.loader)} batches, and Lightning asks for more: with replay_ratio each new "
            "record is drawn once",
            code="run-over",
            hint="set max_epochs=1, and leave out max_steps",
        )

    def state(self, batch: int) -> dict[str, Any]:
        return {**self.loader.state_dict(), "batch": batch}

    def rest(self) -> None:
        self.loader.close()
