"""Methods about what is replayed, and what is remembered of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from treering.training.config import TrainConfig
from treering.training.strategies.base import Draw, MixSource, Round, Step, Strategy
from treering.training.strategies.plain import PLAIN

__all__ = ["Der", "DualReplay"]


class Der(Strategy):
    """Dark experience replay: a reservoir buffer remembers not only labels, but what the model said on insertion.

    DER++ of Buzzega et al., "Dark Experience for General Continual Learning: a Strong, Simple Baseline" (2020): α · mean
    squared distance to those logits, beside the labels' cross-entropy on new and buffered records (whose β is the mix's
    replay share). α is `strength`. A record enters the buffer at the end of the round that brought it; classes that came
    later have no remembered logit and are left out. Logits are kept in the adapter's file under hashes of record ids.
    """

    name = "der"
    defaults: ClassVar[Mapping[str, Any]] = {**PLAIN, "replay_rows": 500, "strength": 0.3}

    def before(self, round_: Round) -> None:
        """Logits of the buffer: those that are remembered, and of what was inserted since the parent's own."""
        buffer = round_.records.where(round_.records.replay & (round_.records.labels >= 0))
        if round_.parent is None or not len(buffer):
            return
        known: dict[bytes, int] = {}
        state = round_.state
        if "der.keys" in state:
            known = {key.tobytes(): n for n, key in enumerate(state["der.keys"].numpy())}
        classes = len(round_.parent.header.classes)
        logits = torch.zeros((len(buffer), classes))
        counts = torch.full((len(buffer),), classes)
        new = [n for n, key in enumerate(buffer.keys) if key.tobytes() not in known]
        if new:
            with torch.no_grad():
                logits[new] = round_.run(round_.parent_net(), buffer.texts[np.asarray(new)]).answer.float().cpu()
        for n, key in enumerate(buffer.keys):
            if (there := known.get(key.tobytes())) is not None:
                counts[n] = state["der.classes"][there]
                logits[n, : int(counts[n])] = state["der.logits"][there, : int(counts[n])]
        round_.memory["der"] = (torch.from_numpy(buffer.keys.copy()), logits, counts)
        round_.memory["row"] = {key.tobytes(): n for n, key in enumerate(buffer.keys)}

    def loss(self, step: Step) -> Tensor:
        """Cross-entropy, and α times the mean squared distance to the remembered logits of what is replayed."""
        loss = super().loss(step)
        if "der" not in step.round.memory or not step.round.config.strength:
            return loss
        logits: Tensor
        counts: Tensor
        _, logits, counts = step.round.memory["der"]
        row = step.round.memory["row"]
        pairs = [(n, row[key.tobytes()]) for n, key in enumerate(step.keys) if key.tobytes() in row]
        if not pairs:
            return loss
        here, there = torch.tensor(pairs).T
        said = step.out.answer[here.to(step.labels.device)][:, : logits.shape[1]].float()
        kept = torch.arange(logits.shape[1])[None, :] < counts[there][:, None]
        distance = ((said - logits[there].to(said.device)) * kept.to(said.device)) ** 2
        return loss + step.round.config.strength * distance.sum() / kept.sum()

    def after(self, round_: Round) -> dict[str, Tensor]:
        """The buffer's logits as they were on insertion."""
        if "der" not in round_.memory:
            return {}
        keys, logits, counts = round_.memory["der"]
        return {"der.keys": keys, "der.logits": logits, "der.classes": counts}


class DualReplay(Strategy):
    """A frozen base, one shared bottleneck per layer with a gate per domain, a learned router, and two streams of replay.

    "Parameter-Efficient Dual-Replay" (Hei, 2025). Of what is replayed 70 % is the domain stream: a bounded selection in
    which domains that forget more get more room, each spread over its classes (`replay_spread=""` leaves that to chance,
    which passes over some of them); 30 % (`general_share`) the general stream: texts of `general`, a corpus that isn't
    learnt from. The article's base is a language model, for which general text is a target; a classifier has
    none in it, so here general texts tie the adapted features to the frozen ones: mean squared distance, times `strength`.
    Without `general` the domain stream gets all of the replay.
    """

    name = "dual-replay"
    unlabelled = True
    defaults: ClassVar[Mapping[str, Any]] = {
        **PLAIN,
        "router": "mlp",
        "replay_rows": 500,
        "replay_by": "importance",
        "replay_spread": "label",
    }

    def draw(self, sources: Sequence[MixSource], config: TrainConfig) -> list[Draw]:
        """The replay's budget and share, parted into the two streams."""
        general = sum(source.general for source in sources)
        share = config.general_share if general else 0.0
        kept = config.changed(
            replay_rows=config.replay_rows and max(1, round(config.replay_rows * (1.0 - share))),
            replay_mb=config.replay_mb * (1.0 - share),
        )
        replayed = sum(source.weight for source in sources if source.replay)
        found = []
        for source, draw in zip(sources, super().draw(sources, kept), strict=True):
            if source.general:
                rows = round(config.replay_rows * share) // general or None
                rows = None if rows is None or rows >= source.train_rows else rows
                found.append(Draw(replayed * share / general, rows=rows))
            else:
                found.append(replace(draw, weight=draw.weight * (1.0 - share)) if source.replay else draw)
        return found

    def loss(self, step: Step) -> Tensor:
        """Cross-entropy of answer and router, and the general stream's anchor."""
        loss = super().loss(step)
        general = step.labels < 0
        if not bool(general.any()) or not step.round.config.strength:
            return loss
        anchor = functional.mse_loss(step.out.features[general], step.pooled[general])
        return loss + step.round.config.strength * anchor
