"""Encode a ref's texts ahead of training: what the frozen base says of each lies beside the store from then on."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict, Field

from treering.engine import engine_of
from treering.errors import UsageError
from treering.rounds.forms import CHAT, form_of
from treering.training import TrainConfig

if TYPE_CHECKING:
    from treering.engine import Engine
    from treering.store import BaseStore

__all__ = ["Features", "cache_features"]

_AT_ONCE = 65_536  # texts: several blocks, for workers to encode side by side


class Features(BaseModel):
    """What encoding a ref's texts came to."""

    model_config = ConfigDict(strict=True, frozen=True, extra="forbid")

    ref: str
    base: str
    base_digest: str
    texts: int = Field(description="Distinct texts of the ref, held-out ones included.")
    encoded: int = Field(description="Of those, how many weren't cached yet.")
    cut: int = Field(description="Of those that were encoded now, how many were longer than the base takes.")


def cache_features(
    store: BaseStore,
    ref: str,
    config: TrainConfig | None = None,
    *,
    engine: str | Engine | None = None,
    progress: Callable[[int, int | None], None] | None = None,
) -> Features:
    """Encode the texts of a ref with the frozen base, as training by `config` (and evaluating what comes of it) reads them.

    They lie in the store's cache directory, where `train` and `evaluate` find them; dropping them costs time and nothing else.
    engine: who encodes, this process by default; "local" (worker processes), "ray", or an engine at hand: each worker with the base
    loaded. This process writes the files, and they are the same, to the last bit.

    Raises UsageError for conversations, whose training caches nothing, and as `TrainConfig` and `Base.load` do.
    """
    from treering.training.base import Base
    from treering.training.cache import ActivationCache
    from treering.training.nets import header_for

    source = store.load(ref)
    form = form_of([source])
    if form is CHAT:
        raise UsageError(
            f"{source.ref} holds conversations, and chat models are trained without a cache of features",
            code="no-features",
            hint="name a ref of labelled records",
        )
    settled = form.settled(config or TrainConfig(), None)
    base = Base.load(settled.base, precision=settled.precision, max_tokens=settled.max_tokens)
    shape = header_for(settled, base, ["?"], ["?"])
    total = len(source)
    known: set[int] = set()
    with engine_of(engine, *([] if engine is None else [store.uri])) as workers:
        cache = ActivationCache(base, store.cache_dir, depth=shape.depth, layers=shape.feature_layers)
        texts: list[str] = []
        read = 0

        def encode() -> None:
            known.update(cache.numbers(texts, engine=workers).tolist())
            texts.clear()
            if progress is not None:
                progress(read, total)

        for batch in source.scan(["text"]):
            for text in batch.column("text").to_pylist():
                read += 1
                if text is not None:
                    texts.append(text)
                if len(texts) == _AT_ONCE:
                    encode()
        encode()
    return Features(
        ref=source.ref,
        base=settled.base,
        base_digest=base.digest,
        texts=len(known),
        encoded=cache.encoded,
        cut=cache.cut,
    )
