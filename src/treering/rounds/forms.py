"""Which trainer records ask for: a classifier for labelled ones, a chat model for conversations.

The one place that tells them apart; everything else of a round is the same for both.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from treering.errors import UsageError
from treering.training import TrainConfig

if TYPE_CHECKING:
    import os
    from pathlib import Path

    from treering.mixing import Loader
    from treering.mixing.sources import SourceLike
    from treering.training import Adapter, MixSource, Strategy
    from treering.training.chat import ChatAdapter
    from treering.training.loop import Progress

__all__ = ["Form", "form_of", "load_weights"]


class Form(ABC):
    """How records of one form are trained on."""

    columns: ClassVar[Sequence[str]]  # to read of each record, where the corpus has them
    metric: ClassVar[str]  # what an adapter is scored by right after training

    @abstractmethod
    def strategy(self, config: TrainConfig) -> Strategy:
        """The config's strategy. Raises UsageError for one that isn't there, or isn't for these."""

    @abstractmethod
    def settled(self, config: TrainConfig, parent: Any) -> TrainConfig:
        """The config with every field given, for a run that goes on from `parent` (None: from scratch)."""

    @abstractmethod
    def fit(
        self,
        loader: Loader,
        config: TrainConfig,
        *,
        cache_dir: Path,
        parent: Any,
        sources: Sequence[MixSource],
        progress: Progress | None,
        on_step: Any,
    ) -> Any:
        """The trained adapter; see `training.fit` and `training.chat.fit_chat`."""


class Labelled(Form):
    """A text and its label: classifiers."""

    columns = ("text", "label", "domain", "id")
    metric = "macro_f1"

    def strategy(self, config: TrainConfig) -> Strategy:
        """Any that is registered."""
        from treering.training import strategy

        return strategy(config.strategy)

    def settled(self, config: TrainConfig, parent: Any) -> TrainConfig:
        """As the parent is shaped and the strategy wants it."""
        return self.strategy(config).settle(config, parent)

    def fit(self, loader: Loader, config: TrainConfig, **how: Any) -> Adapter:
        """See `training.fit`."""
        from treering.training import fit

        return fit(loader, config, **how)


class Chat(Form):
    """Conversations: chat models."""

    columns = ("messages", "tools", "domain", "id")
    metric = "loss"

    def strategy(self, config: TrainConfig) -> Strategy:
        """One of those that conversations can be learnt by."""
        from treering.training.chat.fit import chat_config, chat_strategy

        return chat_strategy(chat_config(config).strategy)

    def settled(self, config: TrainConfig, parent: Any) -> TrainConfig:
        """As the strategy and conversations want it."""
        from treering.training.chat.fit import chat_config

        return chat_config(config)

    def fit(self, loader: Loader, config: TrainConfig, **how: Any) -> ChatAdapter:
        """See `training.chat.fit_chat`."""
        from treering.training.chat import fit_chat

        return fit_chat(loader, config, parent=how["parent"], progress=how["progress"], on_step=how["on_step"])


LABELLED, CHAT = Labelled(), Chat()


def form_of(sources: Sequence[SourceLike]) -> Form:
    """The form that all sources of a mix have.

    Raises UsageError for records that are neither labelled nor conversations, and for a mix of both.
    """
    found: dict[str, str] = {}  # form → the first source that has it
    for source in sources:
        names = set(source.schema.names)
        if names.issuperset(LABELLED.columns[:2]):
            found.setdefault("labelled", source.ref)
        elif names.issuperset(CHAT.columns[:1]):
            found.setdefault("chat", source.ref)
        else:
            missing = [name for name in LABELLED.columns[:2] if name not in names]
            raise UsageError(
                f"{source.ref} has no column {' and '.join(missing)}, and no messages, so nothing can be trained on it",
                code="not-labelled",
                hint="the trainers read records of type 'labelled' and 'chat'",
            )
    if len(found) > 1:
        raise UsageError(
            f"{found['labelled']} holds labelled records and {found['chat']} conversations: one adapter can't learn both",
            code="mixed-forms",
            hint="train an adapter on each",
        )
    return CHAT if "chat" in found else LABELLED


def load_weights(
    weights: bytes, card: Mapping[str, Any], *, cache_dir: str | os.PathLike[str] | None = None
) -> Adapter | ChatAdapter:
    """The adapter of these bytes, by what its model card says it is. Raises StoreError as `Adapter.load` does."""
    if card.get("format") == "treering.chat-card/1":
        from treering.training.chat import ChatAdapter

        return ChatAdapter.load(weights, card)
    from treering.training import Adapter

    return Adapter.load(weights, card, cache_dir=cache_dir)
