"""The model card: what an adapter is and where it comes from, as a JSON document beside its weights."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from treering.errors import StoreError, UsageError
from treering.training.config import TrainConfig

if TYPE_CHECKING:
    from treering.training.base import Base
    from treering.training.chat.base import ChatBase

__all__ = ["BaseCard", "Card", "ModelCard", "TrainStats"]

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Finite = Annotated[float, Field(allow_inf_nan=False)]


class _Document(BaseModel):
    model_config = ConfigDict(strict=True, frozen=True, extra="forbid")


class BaseCard(_Document):
    """The frozen base that the weights belong on."""

    name: str = Field(description='as configured: "minilm", a directory, or a name on the hub')
    digest: Sha256 = Field(description="of its weights, shape and tokenizer; an adapter is refused on any other base")
    precision: Literal["fp32", "bf16"] = Field(description="what it ran in")
    max_tokens: int = Field(ge=2)
    width: int = Field(ge=1, description="of its hidden states")
    layers: int = Field(ge=1)

    @classmethod
    def of(cls, base: Base | ChatBase) -> BaseCard:
        """What a loaded base says of itself."""
        return cls(**{name: getattr(base, name) for name in cls.model_fields})


class TrainStats(_Document):
    """What the run did."""

    steps: int = Field(ge=0, description="optimizer updates; 0 for what is learnt without a gradient")
    rows_drawn: int = Field(ge=1, description="records in all batches, repeats counted")
    rows_distinct: int = Field(ge=1, description="distinct texts among them")
    rows_unlabelled: int = Field(ge=0, description="records without a label, which can't be learnt from")
    rows_per_source: dict[str, int] = Field(default_factory=dict, description="records drawn, by source")
    texts_encoded: int = Field(ge=0, description="texts that weren't in the activation cache")
    texts_cut: int = Field(ge=0, description="of those encoded, how many were longer than max_tokens")
    trainable_parameters: int = Field(ge=0)
    state_bytes: int = Field(
        default=0, ge=0, description="of what the strategy keeps in the weights for the next round"
    )
    loss_first: Finite = Field(description="mean loss of the first tenth of the updates")
    loss_last: Finite = Field(description="mean loss of the last tenth")
    seconds_encode: Finite = Field(ge=0, description="reading the mix and running the frozen base, wall clock")
    seconds_train: Finite = Field(ge=0)
    stopped: str | None = Field(default=None, description="why it ended before its last update; null when it didn't")


class Card(_Document):
    """What the cards of all adapters have in common."""

    @classmethod
    def parse(cls, data: dict[str, Any] | bytes) -> Self:
        """The card of a JSON document. Raises StoreError when it isn't one."""
        from pydantic_core import to_json

        try:
            return cls.model_validate_json(data if isinstance(data, bytes) else to_json(data))
        except UsageError as exc:
            raise StoreError(f"not a model card: {exc.message}", code="bad-card") from exc
        except ValidationError as exc:
            first = exc.errors()[0]
            where = ".".join(map(str, first["loc"])) or "document"
            raise StoreError(f"not a model card: {where}: {first['msg']}", code="bad-card") from exc


class ModelCard(Card):
    """`card.json` of an adapter."""

    format: Literal["treering.model-card/1"] = "treering.model-card/1"
    base: BaseCard
    config: TrainConfig
    classes: list[str] = Field(min_length=1, description="labels it can answer with, in the order of the head's rows")
    domains: list[str] = Field(min_length=1, description="domains, in the order of the gates' rows")
    weights_digest: Sha256 = Field(description="SHA-256 of the safetensors bytes")
    parent: str | None = Field(default=None, description="adapter that training started from; null: from scratch")
    trained_on: list[str] = Field(default_factory=list, description="refs the run drew from")
    lock_digest: Sha256 | None = Field(default=None, description="of the mix lock; null when trained without a store")
    class_counts: dict[str, int] = Field(default_factory=dict, description="records drawn, by class")
    scores: dict[str, Finite] = Field(default_factory=dict, description="by held-out slice, fractions of 1")
    stats: TrainStats | None = None
