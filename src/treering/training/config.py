"""How an adapter is trained, as one frozen document. Decides nothing about data: that is the mix."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from treering.errors import UsageError

__all__ = ["TrainConfig"]

Positive = Annotated[float, Field(gt=0.0, allow_inf_nan=False)]
NotNegative = Annotated[float, Field(ge=0.0, allow_inf_nan=False)]


class TrainConfig(BaseModel):
    """Everything but the data that decides what an adapter becomes: the same lock, config and base give the same bytes.

    Defaults were chosen on CLINC150's validation split (ten domains in order, 20 % replay, MiniLM), never on its test
    split: `benchmarks/RESULTS.md`. Raises UsageError that names every bad or unknown field.
    """

    model_config = ConfigDict(strict=True, frozen=True, extra="forbid")

    strategy: str = Field(default="replay", description="naive, replay, joint, or a strategy of your own")
    base: str = Field(default="minilm", description='frozen encoder: "minilm", a directory, or a name on the hub')
    steps: int = Field(default=300, ge=1, description="optimizer updates")
    batch_size: int = Field(default=256, ge=1, description="records of one update; a mix lock brings its own")
    lr: Positive = Field(default=1e-3, description="peak learning rate of the class head (AdamW, cosine decay to 0)")
    adapter_lr_scale: NotNegative = Field(
        default=0.3,
        description="learning rate of the adapter and its gates, as a multiple of lr; 0 leaves the head alone",
    )
    weight_decay: NotNegative = 0.01
    warmup: int = Field(default=20, ge=0, description="updates over which the learning rate rises from 0")
    bottleneck: int = Field(default=64, ge=1, description="width of the adapter between its down and up projection")
    adapt_layers: int = Field(
        default=0, ge=0, description="adapt inside the top n layers of the base; 0 adapts its pooled features"
    )
    feature_noise: NotNegative = Field(
        default=1.0, description="Gaussian noise on pooled features in training, in units of their root mean square"
    )
    prior_correction: bool = Field(
        default=True, description="balanced softmax: the class shares of the mix don't become a bias of the model"
    )
    absent_classes: Literal["compete", "protect"] = Field(
        default="compete",
        description="what a class known to the parent does while the mix holds none of it: compete in the softmax as "
        "in ordinary fine-tuning, or protect it by leaving it out of the softmax",
    )
    precision: Literal["auto", "fp32", "bf16"] = Field(
        default="auto", description="of the frozen base; auto is bf16 where the processor multiplies it natively"
    )
    max_tokens: int = Field(default=128, ge=2, description="longer texts are cut, and counted")
    only: str | None = Field(
        default=None,
        pattern=r"^(head|gate:.+)$",
        description='touch up one part of the parent and nothing else: "head", or "gate:DOMAIN"',
    )
    eval_every: int = Field(
        default=0,
        ge=0,
        description="updates between looks at the held-out slices that the parent learnt; 0 never looks",
    )
    eval_tolerance: NotNegative = Field(
        default=0.05, description="a slice that scores less than the parent did by more than this ends the run"
    )
    seed: int = Field(default=0, ge=0, description="initial weights and noise; the order of the data is the mix's")

    def __init__(self, **data: Any) -> None:
        try:
            super().__init__(**data)
        except ValidationError as exc:
            problems = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in exc.errors())
            raise UsageError(
                f"bad training config: {problems}",
                code="bad-config",
                hint=f"known fields: {', '.join(sorted(type(self).model_fields))}",
            ) from exc

    def changed(self, **changes: Any) -> TrainConfig:
        """A copy with other values, checked like a new config."""
        return TrainConfig(**{**self.model_dump(), **changes})
