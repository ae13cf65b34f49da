"""How an adapter is trained, as one frozen document. Decides nothing about data but what a strategy is told of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from treering.errors import UsageError

__all__ = ["Kind", "TrainConfig"]

Kind = Literal["gated", "linear", "lora", "full", "slda"]
Positive = Annotated[float, Field(gt=0.0, allow_inf_nan=False)]
NotNegative = Annotated[float, Field(ge=0.0, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0.0, le=1.0)]


class TrainConfig(BaseModel):
    """Everything but the data that decides what an adapter becomes: the same lock, config and base give the same bytes.

    A field that isn't given is as the parent's shape demands, else the strategy's own value (`Strategy.defaults`), else the
    default here.
    Both were chosen on CLINC150's validation split (ten domains in order, 20 % replay, MiniLM), never on its test split:
    `benchmarks/RESULTS.md`. Raises UsageError that names every bad or unknown field.
    """

    model_config = ConfigDict(strict=True, frozen=True, extra="forbid")

    strategy: str = Field(default="recommended", description="treering.training.strategies, or one of your own")
    base: str = Field(default="minilm", description='frozen encoder: "minilm", a directory, or a name on the hub')
    kind: Kind = Field(
        default="gated",
        description="what is trained over the base: gated (a shared bottleneck with a gate per domain), linear (the head "
        "alone), lora, full (copies of its top layers), slda (a statistic, nothing by gradient)",
    )
    steps: int = Field(default=300, ge=1, description="optimizer updates")
    batch_size: int = Field(default=256, ge=1, description="records of one update; a mix lock brings its own")
    lr: Positive = Field(default=1e-3, description="peak learning rate of the class head (AdamW, cosine decay to 0)")
    adapter_lr_scale: NotNegative = Field(
        default=0.3,
        description="learning rate of everything but the head, as a multiple of lr; 0 leaves the head alone",
    )
    weight_decay: NotNegative = 0.01
    warmup: int = Field(default=20, ge=0, description="updates over which the learning rate rises from 0")
    bottleneck: int = Field(default=64, ge=1, description="gated: width between its down and up projection")
    rank: int = Field(default=16, ge=1, description="lora: of each round's matrices")
    lora_scale: Positive = Field(default=2.0, description="lora: alpha / rank")
    targets: Literal["attention", "mlp", "all"] = Field(default="all", description="lora: which linear maps it sits on")
    adapt_layers: int = Field(
        default=0,
        ge=0,
        description="adapt inside the top n layers of the base, and freeze those below; 0: gated adapts its pooled "
        "features, lora and full adapt all layers",
    )
    feature_layers: int = Field(
        default=1,
        ge=1,
        description="features are the means of so many of the base's top hidden states, each of one length, side by side; "
        "of a base with fewer layers all; more than 1 for kinds gated (on pooled features), linear and slda",
    )
    gates: Literal["soft", "hard", "off"] = Field(
        default="soft", description="gated: mixed by the domain posterior, the likeliest domain's alone, or none"
    )
    router: Literal["posterior", "mlp"] = Field(
        default="posterior",
        description="gated: the domain posterior is that of the classes, summed by domain, or of a learned classifier",
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
    replay_rows: int = Field(
        default=0, ge=0, description="replay from at most so many records, chosen anew each round; 0: from all of them"
    )
    replay_mb: NotNegative = Field(default=0.0, description="the same budget in 10⁶ bytes instead; 0: no such bound")
    replay_by: Literal["reservoir", "balanced", "importance"] = Field(
        default="reservoir",
        description="how the bounded replay is chosen: uniformly, the same from each class, or more from domains of "
        "which more was forgotten",
    )
    replay_spread: Literal["", "label"] = Field(
        default="",
        description="bounded replay by importance: as many of each label of a domain as of its next, where records have labels",
    )
    replay_balance: Literal["", "label", "domain"] = Field(
        default="", description="draw replay so that each class, or each domain, comes equally often"
    )
    general: str = Field(
        default="",
        description="ref of a general corpus (dual-replay): texts that only keep the features in place; it has columns text "
        "and label, whose labels aren't learnt",
    )
    general_share: Share = Field(default=0.3, description="of the replay that the general corpus gets")
    strength: NotNegative = Field(
        default=1.0, description="weight of the strategy's own term: EWC's penalty, LwF's and DER's distillation, …"
    )
    temperature: Positive = Field(default=2.0, description="of distillation (lwf)")
    fisher_rows: int = Field(default=256, ge=1, description="records that the Fisher information is estimated on (ewc)")
    shrinkage: Share = Field(default=0.01, description="of the pooled covariance towards a multiple of 1 (slda)")
    precision: Literal["auto", "fp32", "bf16"] = Field(
        default="auto", description="of the base; auto is bf16 where the processor multiplies it natively"
    )
    max_tokens: int = Field(default=128, ge=2, description="longer texts are cut, and counted")
    packing: bool = Field(
        default=True,
        description="conversations: several in a row of max_tokens, kept apart, where the base can do that",
    )
    tokens_per_pass: int = Field(
        default=4_096,
        ge=2,
        description="conversations: positions of one pass; gradients of an update accumulate over them",
    )
    clip_norm: NotNegative = Field(
        default=1.0, description="conversations: longer gradients are shortened to this norm; 0: none is"
    )
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
        """A copy with other values, checked like a new config; fields that weren't given stay so."""
        return TrainConfig(**{**self.model_dump(exclude_unset=True), **changes})

    def settled(self, defaults: Mapping[str, Any]) -> TrainConfig:
        """A copy in which every field is given: those that weren't by `defaults`, else by their own default.

        Who says which layers to adapt, or to adapt them at all, means features of the last layer: those of several are
        the frozen base's. Raises UsageError for a `replay_spread` that nothing would come of.
        """
        given = self.model_dump(exclude_unset=True)
        if self.adapt_layers or given.get("kind") in ("lora", "full"):
            given.setdefault("feature_layers", 1)
        settled = TrainConfig(**{**self.model_dump(), **defaults, **given})
        if settled.replay_by == "importance":
            return settled
        if given.get("replay_spread"):
            raise UsageError(
                f"replay_spread goes with replay_by='importance', and here it is {settled.replay_by!r}",
                code="bad-config",
                hint="leave it out; replay_by='balanced' takes the same from each class as it is",
            )
        return settled.changed(replay_spread="")
