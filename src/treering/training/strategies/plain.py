"""Plain fine-tuning, with and without replay, over one kind of adapter or another."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from treering.errors import UsageError
from treering.training.config import TrainConfig
from treering.training.strategies.base import Draw, MixSource, Strategy

__all__ = ["LORA", "PLAIN", "Full", "Joint", "Lora", "LoraReplay", "Naive", "Recommended", "Replay"]

# As the published methods train: ordinary cross-entropy.
PLAIN: dict[str, Any] = {"prior_correction": False}
# LoRA learns with fewer, larger steps than a bottleneck on pooled features, and each of them costs fifty times as much.
LORA: dict[str, Any] = {
    **PLAIN,
    "kind": "lora",
    "adapt_layers": 1,
    "feature_noise": 0.0,
    "steps": 40,
    "batch_size": 128,
    "lr": 3e-3,
    "warmup": 4,
}


class Naive(Strategy):
    """New data only, from the parent on: what sequential fine-tuning does, and why it forgets.

    McCloskey & Cohen, "Catastrophic Interference in Connectionist Networks" (1989).
    """

    name = "naive"

    def draw(self, sources: Sequence[MixSource], config: TrainConfig) -> list[Draw]:
        """As given, but nothing of what the parent was trained on. Raises UsageError when nothing is left."""
        chosen = [Draw(0.0 if source.replay or source.general else source.weight) for source in sources]
        if not any(draw.weight for draw in chosen):
            raise UsageError(
                f"strategy {self.name} trains on new data only, and the parent has seen every source of this mix",
                code="nothing-new",
                hint="add new or live data to the mix, or train with strategy replay",
            )
        return chosen


class Replay(Strategy):
    """The mix as given, from the parent on.

    Rehearsal (Robins, "Catastrophic Forgetting, Rehearsal and Pseudorehearsal", 1995) from everything ever sealed
    instead of from a buffer.
    """

    name = "replay"


class Recommended(Replay):
    """What did best on CLINC150's validation split: whole-store replay, prior correction, features of three layers.

    `replay` with three changes. The features are the means of the top three hidden states, because those below the last
    still hold what the last has given up for its own task (Tenney et al., "BERT Rediscovers the Classical NLP Pipeline",
    2019). Replay is balanced by class, so that a large domain doesn't crowd out a small one. And nothing of the base is
    trained, so that only the head can forget; balanced softmax (`Strategy.loss`) and replay keep it from that. Small
    domains get as many updates as large ones: `steps` counts updates, not passes.
    """

    name = "recommended"
    defaults: ClassVar[Mapping[str, Any]] = {"feature_layers": 3, "replay_balance": "label"}


class Joint(Strategy):
    """Everything at once, from scratch: the upper bound that continual training is measured against.

    Each record of the sources with a weight above 0 is as likely as any other.
    """

    name = "joint"
    continues = False

    def draw(self, sources: Sequence[MixSource], config: TrainConfig) -> list[Draw]:
        """As many as there are records; 0 stays 0."""
        return [Draw(float(s.train_rows) if s.weight and not s.general else 0.0) for s in sources]


class Full(Naive):
    """Sequential fine-tuning of every weight in the base's top layers, on new data only. As `Naive`."""

    name = "full"
    defaults: ClassVar[Mapping[str, Any]] = {**LORA, "kind": "full", "adapter_lr_scale": 0.03}


class Lora(Naive):
    """Sequential LoRA on new data only: Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models" (2022)."""

    name = "lora"
    defaults: ClassVar[Mapping[str, Any]] = LORA


class LoraReplay(Strategy):
    """LoRA and one reservoir buffer, 500 records of all that was seen, each as likely as any other.

    The strongest simple baseline of "Parameter-Efficient Dual-Replay" (Hei, 2025). The buffer: Vitter, "Random Sampling
    with a Reservoir" (1985); Chaudhry et al., "On Tiny Episodic Memories in Continual Learning" (2019).
    """

    name = "lora-replay"
    defaults: ClassVar[Mapping[str, Any]] = {**LORA, "replay_rows": 500}
