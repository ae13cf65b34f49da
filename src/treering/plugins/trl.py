"""Fine-tune with TRL on a mix: its chat templates, loss masks, packing and losses, our batches and exact resume.

    from treering.plugins.trl import TreeringSFTTrainer

    loader = mix.loader(batch_size=16, columns=["messages", "tools"])
    trainer = TreeringSFTTrainer(model="…", args=SFTConfig("out", assistant_only_loss=True), loader=loader)
    trainer.train(resume_from_checkpoint=True)

`TreeringDPOTrainer` takes a corpus of `preference` records (`prompt`, `chosen`, `rejected`). Any other TRL trainer that
learns from a dataset takes the mixin: `class MyTrainer(TRLMixin, RewardTrainer)`. What the loader's batches are, ranks
and resuming are as in `hf`; what TRL does to a dataset before training is done to each batch before its step.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from itertools import pairwise
from typing import Any

from treering.errors import UsageError
from treering.plugins import missing
from treering.plugins.hf import TreeringMixin
from treering.training.conversation import Conversation

try:
    from datasets import IterableDataset
    from transformers import TrainingArguments
    from trl import DPOTrainer, SFTTrainer
except ImportError as exc:
    raise missing("trl and datasets", "'treering[trl]'") from exc

__all__ = ["TRLMixin", "TreeringDPOTrainer", "TreeringSFTTrainer", "rows_of"]

CONVERSATIONS = ("messages", "prompt", "completion", "chosen", "rejected")
_log = logging.getLogger(__name__)


class TRLMixin(TreeringMixin):
    """Gives a TRL trainer a `loader=`, which takes the place of `train_dataset`. Its batches are dicts of columns.

    TRL prepares a dataset row by row (template, masks, truncation, packing), lazily when it is an iterable one. So it is
    given one that holds the rows of whichever batch comes next, and what it makes of that batch is collated and learnt.
    With packing, the rows of a batch are packed among themselves. A `data_collator` of your own sees all columns.
    """

    def _instead_of_a_dataset(self, args: TrainingArguments) -> dict[str, Any]:
        self._rows = _Rows(rows_of(self._batches.first()))
        self._told = False
        if args.max_steps <= 0:  # for TRL a lazy dataset has no length; these are the steps of as many epochs
            args.max_steps = self._batches.steps(args)
        return {"train_dataset": IterableDataset.from_generator(self._rows.__iter__)}

    def finish_batch(self, batch: Any) -> Any:
        """The batch as TRL prepares and collates it.

        Raises UsageError when nothing in it is to be learnt: every token of the loss lies beyond `max_length`.
        """
        trainer: Any = self
        self._rows.rows = rows_of(batch)
        prepared = list(trainer.train_dataset)
        if not prepared:
            raise UsageError(
                f"none of the {len(self._rows.rows)} records of a batch has a token to learn within max_length",
                code="empty-batch",
                hint="raise max_length, or batch_size",
            )
        if len(prepared) < len(self._rows.rows) and not getattr(trainer.args, "packing", False) and not self._told:
            self._told = True
            _log.warning(
                "TRL leaves out records that have no token to learn within max_length: %d of %d in this batch",
                len(self._rows.rows) - len(prepared), len(self._rows.rows),
            )  # fmt: skip
        return trainer.data_collator(prepared)


class TreeringSFTTrainer(TRLMixin, SFTTrainer):  # type: ignore[misc]  # trl ships no types we check against
    """`trl.SFTTrainer` over a treering loader: `TreeringSFTTrainer(model=…, args=SFTConfig(…), loader=mix.loader(…))`."""

    arguments = "SFTConfig"


class TreeringDPOTrainer(TRLMixin, DPOTrainer):  # type: ignore[misc]
    """`trl.DPOTrainer` over a loader of `preference` records. `precompute_ref_log_probs` isn't possible."""

    arguments = "DPOConfig"


def rows_of(batch: Any) -> list[dict[str, Any]]:
    """A loader's batch as one dict a record, as TRL takes them; a list of dicts, as a transform may make it, as it is.

    Conversations become messages without null fields, with arguments of tool calls as objects; `tools` a list, or None.
    Padded lists lose their padding. Raises UsageError for a batch that is neither.
    """
    if isinstance(batch, list) and all(isinstance(row, dict) for row in batch):
        return batch
    if not isinstance(batch, Mapping) or not batch:
        raise UsageError(
            f"a batch is {type(batch).__name__}, not a dict of columns or a list of dicts",
            code="bad-batch",
            hint="TRL makes tensors itself: leave out transform=, or let it return one of these",
        )
    columns = {}
    for name, column in batch.items():
        if name.endswith((".lengths", ".offsets")):
            continue
        if f"{name}.lengths" in batch:
            lengths = batch[f"{name}.lengths"].tolist()
            columns[name] = [row[:length].tolist() for row, length in zip(column, lengths, strict=True)]
        elif f"{name}.offsets" in batch:
            ends = batch[f"{name}.offsets"].tolist()
            columns[name] = [column[a:b].tolist() for a, b in pairwise(ends)]
        else:
            columns[name] = column.tolist() if hasattr(column, "tolist") else list(column)
    rows = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
    return [_as_trl_takes_it(row) for row in rows]


def _as_trl_takes_it(row: dict[str, Any]) -> dict[str, Any]:
    offered = row.get("tools")
    for name in CONVERSATIONS:
        if isinstance(row.get(name), list):
            said = Conversation.of(row[name], offered)
            if any(message.get("weight") == 0 for message in said.messages):
                raise UsageError(
                    f"record {row.get('id', '')} has a message of weight 0, not to be learnt, and TRL would learn it",
                    code="weighted-messages",
                    hint="take the weights out in transform= if that is meant, or use treering.train, which knows them",
                )
            row[name] = [dict(message) for message in said.messages]
            if offered is not None:
                row["tools"] = None if said.tools is None else list(said.tools)
    return row


class _Rows:
    """The rows of the batch that is next. Stays one and the same where `datasets` would copy what it iterates."""

    def __init__(self, rows: list[dict[str, Any]]) -> None:
        self.rows = rows

    def __iter__(self) -> Iterator[dict[str, Any]]:
        yield from self.rows

    def __copy__(self) -> _Rows:
        return self

    def __deepcopy__(self, memo: object) -> _Rows:
        return self
