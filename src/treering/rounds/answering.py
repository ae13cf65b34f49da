"""An adapter that answers in workers of an engine: one that is loaded there, once a worker, and asked by name.

What it is asked goes as JSON, its answers come back as they are: texts as JSON, probabilities as the bytes of their array. So a
score is the one that the adapter gets here. Does not score (evaluation).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from treering.engine.packed import pack, unpack
from treering.registry import AdapterRecord, Registry
from treering.rounds.forms import load_weights
from treering.store.base import reopened

if TYPE_CHECKING:
    from treering.engine import Engine
    from treering.store import BaseStore

__all__ = ["elsewhere"]


class _Answers:
    """What both kinds of adapters answer."""

    def __init__(self, engine: Engine, store: BaseStore, record: AdapterRecord) -> None:
        self._engine = engine
        self._shared = {"store": store.address, "adapter": record.ref}

    def predict(self, texts: Sequence[str]) -> list[str]:
        """A label, or a reply, per text."""
        found: list[str] = self._ask("predict", texts)
        return found

    def _ask(self, what: str, texts: Sequence[str]) -> Any:
        (result,) = self._engine.map(
            "treering.rounds.answering:answer", [{**self._shared, "what": what, "texts": list(texts)}]
        )
        said, parts = unpack(result)
        if "array" in parts:
            return np.frombuffer(parts["array"], said["dtype"]).reshape(said["shape"])
        return said["answer"]


class _Classifier(_Answers):
    def __init__(self, engine: Engine, store: BaseStore, record: AdapterRecord, classes: Sequence[str]) -> None:
        super().__init__(engine, store, record)
        self.classes = tuple(classes)

    def probabilities(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        """(n, classes)."""
        found: npt.NDArray[np.float32] = self._ask("probabilities", texts)
        return found


class _Chat(_Answers):
    generate = True  # the sign of a chat model; nobody asks it for free here

    def loss(self, texts: Sequence[str]) -> float:
        """Nats per token of what an assistant said."""
        found: float = self._ask("loss", texts)
        return found

    def calls(self, texts: Sequence[str]) -> tuple[list[str], list[str]]:
        """(those that are in the records, those that it makes), a JSON array a reply."""
        truth, made = self._ask("calls", texts)
        return truth, made


def elsewhere(engine: Engine, store: BaseStore, record: AdapterRecord, card: Mapping[str, Any]) -> _Answers:
    """An adapter as scores are made of it, answering in workers."""
    if card.get("format") == "treering.chat-card/1":
        return _Chat(engine, store, record)
    return _Classifier(engine, store, record, card["classes"])


def answer(store: Mapping[str, Any], adapter: str, what: str, texts: list[str]) -> bytes:
    """In a worker: what an adapter answers to texts."""
    found = getattr(_loaded(json.dumps(store, sort_keys=True), adapter), what)(texts)
    if isinstance(found, np.ndarray):
        said = {"dtype": found.dtype.str, "shape": list(found.shape)}
        return pack(said, array=np.ascontiguousarray(found).tobytes())
    return pack({"answer": found})


@lru_cache(1)
def _loaded(store: str, adapter: str) -> Any:
    """The adapter, which by number never changes; the one before it makes room."""
    opened = reopened(json.loads(store))
    registry = Registry.of(opened, adapter)
    record = registry.get(adapter)
    return load_weights(registry.weights(record.ref), registry.card(record.ref), cache_dir=opened.cache_dir)
