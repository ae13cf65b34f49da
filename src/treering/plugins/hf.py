"""Train a Hugging Face `Trainer` on a mix, and resume it at the exact batch.

    from treering.plugins.hf import TreeringTrainer

    loader = mix.loader(batch_size=32, columns=["text", "label"], transform=tokenise)
    trainer = TreeringTrainer(model=model, args=args, loader=loader)
    trainer.train(resume_from_checkpoint=True)

An epoch of the Trainer is one length of the loader, each in a fresh order; an endless loader needs `max_steps`. The
batch is the loader's, whatever `per_device_train_batch_size` says; under torchrun each rank takes its slice of it. The
loader's state lies in the checkpoint's `trainer_state.json`, written with it, so there is no checkpoint without one.

Any other Trainer class takes the mixin: `class MyTrainer(TreeringMixin, SomeTrainer)`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

from torch.utils.data import DataLoader, Dataset

from treering.errors import ConflictError, UsageError
from treering.mixing.loader import Loader
from treering.plugins import missing

try:
    from transformers import Trainer, TrainerCallback, TrainingArguments
    from transformers.trainer_callback import ExportableState
except ImportError as exc:
    raise missing("transformers and accelerate", "'treering[train]'") from exc

__all__ = ["TreeringCallback", "TreeringMixin", "TreeringTrainer"]


class TreeringMixin:
    """Gives a Trainer class a `loader=`, which takes the place of `train_dataset`.

    With `remove_unused_columns` (the Trainer's default) a batch is cut down to what the model's `forward` takes; switch
    it off to see `_ref`, `id` and the like in `compute_loss`.
    """

    arguments = "TrainingArguments"  # what the Trainer's args are called, for the hint where they are missing

    def __init__(self, *args: Any, loader: Loader, **kwargs: Any) -> None:
        if not isinstance(loader, Loader):
            raise UsageError(f"loader is {loader!r}, not a treering loader", code="not-a-loader", hint="mix.loader(…)")
        if kwargs.pop("train_dataset", None) is not None:
            raise UsageError(
                "there is a loader, and a train_dataset as well", code="two-sources", hint="give one of them"
            )
        arguments = next((one for one in (*args, kwargs.get("args")) if isinstance(one, TrainingArguments)), None)
        if arguments is None:
            raise UsageError("the Trainer needs args", code="no-arguments", hint=f'args={self.arguments}("out")')
        _check_arguments(arguments, loader)
        # or the Trainer's throughput would count another batch size
        arguments.per_device_train_batch_size = max(1, loader.local_batch_size // max(1, arguments.n_gpu))
        self._batches = _Batches(loader)
        super().__init__(*args, **kwargs, **self._instead_of_a_dataset(arguments))
        self.add_callback(TreeringCallback())  # type: ignore[attr-defined]

    @property
    def loader(self) -> Loader:
        """The loader that runs, for `stats()` and `lock()`: the one that was given, without an end."""
        return self._batches.loader

    def _instead_of_a_dataset(self, args: TrainingArguments) -> dict[str, Any]:
        """Arguments for Trainers that insist on a `train_dataset`."""
        return {}

    def get_train_dataloader(self) -> DataLoader[Any]:
        """The loader in the shape of a DataLoader, not prepared by accelerate: it would shard a second time."""
        self._batches.finish = self.finish_batch
        return DataLoader(self._batches, batch_sampler=_Positions(self._batches), collate_fn=_the_one)

    def finish_batch(self, batch: Any) -> Any:
        """What the model gets of a batch of the loader: here, the columns that it takes."""
        trainer: Any = self
        if not trainer.args.remove_unused_columns or not isinstance(batch, dict):
            return batch
        trainer._set_signature_columns_if_needed()
        kept = {name: value for name, value in batch.items() if name in trainer._signature_columns}
        if not kept:
            raise UsageError(
                f"the model takes none of the loader's columns ({', '.join(batch)})",
                code="no-model-inputs",
                hint="make its inputs in the loader's transform=, or set remove_unused_columns=False",
            )
        return kept


class TreeringTrainer(TreeringMixin, Trainer):  # type: ignore[misc]  # transformers ships no types we check against
    """`transformers.Trainer` over a treering loader: `TreeringTrainer(model=…, args=…, loader=mix.loader(…))`."""


class TreeringCallback(TrainerCallback, ExportableState):  # type: ignore[misc]
    """Saves where the loader stands with every checkpoint, and checks it when one is resumed. The mixin adds it."""

    def __init__(self) -> None:
        self._batches: _Batches | None = None
        self.loader_state: dict[str, Any] | None = None

    def state(self) -> dict[str, Any]:
        """What goes into `trainer_state.json`."""
        now = self._batches.state_dict() if self._batches is not None else self.loader_state
        return {"args": {}, "attributes": {"loader_state": now}}

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Check a checkpoint's loader state. Raises ConflictError when it belongs to another lock, or isn't there."""
        # Found by way of the data loader: the Trainer may have made this callback anew from a checkpoint.
        self._batches = kwargs["train_dataloader"].dataset
        batches = self._batches
        saved = state.stateful_callbacks.get(type(self).__name__) if state.global_step else None
        name = type(self).__name__
        if state.global_step:
            loader_state = (saved or {}).get("attributes", {}).get("loader_state")
            if loader_state is None:
                raise ConflictError(
                    f"the checkpoint at step {state.global_step} holds no loader state",
                    code="no-loader-state",
                    hint="it was made by another Trainer class; start a new run from its weights",
                )
            batches.resume(loader_state)
        else:
            batches.resume(None)
        state.stateful_callbacks.setdefault(name, self.state())

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Tell the loader which of the Trainer's epochs begins."""
        assert self._batches is not None
        if self._batches.length is not None:
            updates = max(1, math.ceil(self._batches.length / args.gradient_accumulation_steps))
            self._batches.epoch = state.global_step // updates

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Let the loader's threads go."""
        assert self._batches is not None
        self._batches.rest()


class _Batches(Dataset[Any]):
    """The batches of a loader by number, counted over all of the Trainer's epochs.

    The Trainer skips to where it was by skipping numbers, so resuming reads nothing that isn't trained on.
    """

    def __init__(self, loader: Loader) -> None:
        self.loader = loader.endless()
        self._rows = loader.local_batch_size
        self.length = len(loader) if loader.lock().epochs is not None else None  # batches of an epoch of the Trainer
        self.epoch = 0
        self.finish: Callable[[Any], Any] = _the_same
        self._next = 0
        self._expected: int | None = None
        self._iterator: Iterator[Any] | None = None

    def __len__(self) -> int:
        if self.length is None:
            raise TypeError("an endless loader has no length")
        return self.length * self._rows  # for the Trainer's log; sampling goes by number

    def first(self) -> Any:
        """The loader's first batch, for a look at it."""
        return next(iter(self.loader))

    def steps(self, args: TrainingArguments) -> int:
        """Updates in `num_train_epochs`, as the Trainer counts them."""
        assert self.length is not None
        updates = math.ceil(self.length / int(args.gradient_accumulation_steps))
        return math.ceil(float(args.num_train_epochs) * updates)

    def state_dict(self) -> dict[str, Any]:
        return {**self.loader.state_dict(), "batch": self._next}

    def resume(self, state: dict[str, Any] | None) -> None:
        self.rest()
        self._expected = None
        self._next = 0
        if state is not None:
            self.loader.load_state_dict(state)
            self._expected = self._next = state["batch"]

    def rest(self) -> None:
        self._iterator = None

    def __getitem__(self, number: int) -> Any:
        if self._expected is not None and number != self._expected:
            raise ConflictError(
                f"the Trainer goes on at batch {number}, the loader stood at {self._expected}",
                code="resume-mismatch",
                hint="keep gradient_accumulation_steps, and leave ignore_data_skip off: skipping costs nothing here",
            )
        self._expected = None
        if self._iterator is None or number != self._next:
            self.loader.load_state_dict({**self.loader.state_dict(), "batch": number})
            self._iterator = iter(self.loader)
        try:
            batch = next(self._iterator)
        except StopIteration:
            raise UsageError(
                f"the Trainer asks for batch {number}, and the run is over after {len(self.loader)}: "
                "with replay_ratio each new record is drawn once",
                code="run-over",
                hint="set num_train_epochs=1, and leave out max_steps",
            ) from None
        self._next = number + 1
        return self.finish(batch)


class _Positions:
    """The batch numbers of one epoch of the Trainer, each as a list of one."""

    def __init__(self, batches: _Batches) -> None:
        self._batches = batches

    def __iter__(self) -> Iterator[list[int]]:
        length, epoch = self._batches.length, self._batches.epoch
        number = 0 if length is None else epoch * length
        end = None if length is None else number + length
        while end is None or number < end:
            yield [number]
            number += 1

    def __len__(self) -> int:
        if self._batches.length is None:
            raise TypeError("an endless loader has no length")
        return self._batches.length


def _the_one(items: list[Any]) -> Any:
    return items[0]


def _the_same(batch: Any) -> Any:
    return batch


def _check_arguments(args: TrainingArguments, loader: Loader) -> None:
    """Raise UsageError for a loader of another rank than the Trainer's process, and for a run without an end."""
    there = (args.process_index, args.world_size)
    # with tensor or context parallelism several processes share the rows of one rank, which only the caller knows
    if getattr(args, "parallelism_config", None) is None and (loader.rank, loader.world_size) != there:
        raise UsageError(
            f"the loader is of rank {loader.rank} of {loader.world_size}, the Trainer's process of rank "
            f"{there[0]} of {there[1]}: rows would come twice, or never",
            code="other-rank",
            hint="leave out rank= and world_size=, and start the script with torchrun or accelerate launch",
        )
    if args.max_steps <= 0 and not loader.lock().once and loader.lock().epochs is None:
        raise UsageError("an endless loader (epochs=None) needs max_steps", code="no-max-steps", hint="max_steps=1000")
