"""What a chat adapter is and where it comes from: its model card, and what its tensors mean, as strict documents."""

from __future__ import annotations

import re
from typing import Literal

from pydantic import Field, field_validator

from treering.training.card import BaseCard, Card, Finite, Sha256, _Document
from treering.training.config import TrainConfig
from treering.training.lora import LoraShape

__all__ = ["ChatCard", "ChatHeader", "ChatStats"]

STATE = re.compile(r"state\.[a-z]+\.lora\.[A-Za-z0-9_.]{1,300}\.[AB]")


class ChatHeader(_Document):
    """What the tensors of a chat adapter are; kept inside its safetensors file, so that they can't be parted."""

    format: Literal["treering.chat-weights/1"] = "treering.chat-weights/1"
    kind: Literal["lora"] = "lora"
    base_digest: Sha256
    lora: LoraShape
    state: dict[str, list[int]] = Field(
        default_factory=dict, description="what the strategy keeps for the next round: tensor → shape"
    )

    @field_validator("state")
    @classmethod
    def _named(cls, state: dict[str, list[int]]) -> dict[str, list[int]]:
        if bad := [name for name in state if not STATE.fullmatch(name)]:
            raise ValueError(f"{bad[0][:80]} doesn't name what a strategy keeps")
        return state

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Names and shapes of the tensors, all float32."""
        return {**self.lora.shapes(), **{name: tuple(shape) for name, shape in self.state.items()}}


class ChatStats(_Document):
    """What the run did."""

    steps: int = Field(ge=1)
    rows_drawn: int = Field(ge=1, description="conversations in all batches, repeats counted")
    rows_distinct: int = Field(ge=1, description="distinct conversations among them")
    rows_per_source: dict[str, int] = Field(default_factory=dict, description="conversations drawn, by source")
    rows_refused: int = Field(ge=0, description="drawn, but refused by the chat template")
    rows_without_reply: int = Field(ge=0, description="drawn, without a word of the assistant's within max_tokens")
    texts_cut: int = Field(ge=0, description="drawn, and longer than max_tokens")
    tokens_cut: int = Field(ge=0, description="tokens that were cut off them")
    tokens_drawn: int = Field(ge=1, description="tokens read, padding left out")
    tokens_learnt: int = Field(ge=1, description="of those, the assistant's")
    tokens_per_source: dict[str, int] = Field(default_factory=dict, description="tokens read, by source")
    packed: bool = Field(description="conversations shared rows, kept apart by their positions")
    fill: Finite = Field(gt=0, le=1, description="share of the positions of all passes that held a token")
    passes: int = Field(ge=1, description="forward passes; more than steps where gradients were accumulated")
    template: Literal["tokenizer", "default"] = Field(description="whose chat template it was")
    trainable_parameters: int = Field(ge=1)
    loss_first: Finite = Field(description="mean loss of the first tenth of the updates, nats per learnt token")
    loss_last: Finite = Field(description="mean loss of the last tenth")
    seconds_read: Finite = Field(ge=0, description="reading the mix and rendering it, wall clock")
    seconds_train: Finite = Field(ge=0)
    stopped: str | None = Field(default=None, description="why it ended before its last update")


class ChatCard(Card):
    """`card.json` of a chat adapter."""

    format: Literal["treering.chat-card/1"] = "treering.chat-card/1"
    base: BaseCard
    config: TrainConfig
    weights_digest: Sha256 = Field(description="SHA-256 of the safetensors bytes")
    parent: str | None = Field(default=None, description="adapter that training started from; null: from scratch")
    trained_on: list[str] = Field(default_factory=list, description="refs the run drew from")
    lock_digest: Sha256 | None = Field(default=None, description="of the mix lock; null when trained without a store")
    scores: dict[str, Finite] = Field(default_factory=dict, description="loss by held-out slice, nats per token")
    stats: ChatStats | None = None
