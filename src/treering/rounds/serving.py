"""A model as whoever serves it holds it: what a ref names now, asked by many threads, swapped without a restart.

Finds and loads by what it is given. Does not evaluate or promote.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from treering.errors import UsageError

if TYPE_CHECKING:
    from treering.registry import AdapterRecord

__all__ = ["Served"]


@dataclass(frozen=True, slots=True)
class _Now:
    record: AdapterRecord
    model: Any  # Adapter or ChatAdapter


class Served:
    """The model that an adapter ref names, ready to answer; any number of threads may ask at once.

        model = treering.load_adapter(store, "support:production")
        model.predict(["where is my parcel?"])
        model.refresh()          # after a promotion or a rollback: True, and the next question is the new adapter's

    The frozen base is loaded once per process and shared by all adapters on it. A question that is being answered is
    answered to its end by the adapter that it was asked of. Whatever else an adapter has (`probabilities`, `classes`, …) is
    asked for by the same names.
    """

    def __init__(self, find: Callable[[], AdapterRecord], load: Callable[[AdapterRecord], Any]) -> None:
        self._find = find
        self._load = load
        self._refreshing = threading.Lock()
        record = find()
        self._now = _Now(record, load(record))

    @property
    def ref(self) -> str:
        """The adapter that answers now, by number: `support:12`."""
        return self._now.record.ref

    @property
    def adapter(self) -> Any:
        """That adapter: an `Adapter`, or a `ChatAdapter` for conversations."""
        return self._now.model

    def refresh(self) -> bool:
        """Look what the ref names by now and, if that is another adapter, load it and let it answer; whether it was.

        Loading happens beside the questions that are being answered, and the swap is one assignment: no question fails or
        waits for it. When it can't be loaded the present one stays, and what `load_adapter` raises is raised.
        """
        with self._refreshing:  # two at once would load it twice
            record = self._find()
            if record.ref == self._now.record.ref:
                return False
            model = self._load(record)
            if hasattr(model, "prepare"):
                model.prepare()
            self._now = _Now(record, model)
            return True

    def predict(self, texts: Sequence[Any]) -> list[str]:
        """One label per text; of a chat model one reply per conversation."""
        found: list[str] = self._now.model.predict(texts)
        return found

    def generate(self, messages: Any, tools: Any = None, **how: Any) -> dict[str, Any]:
        """The reply to a conversation: see `ChatAdapter.generate`. Raises UsageError when it is no chat model."""
        now = self._now
        if not hasattr(now.model, "generate"):
            raise UsageError(
                f"{now.record.ref} is a classifier: it predicts labels and says nothing",
                code="no-chat-model",
                hint='model.predict(["…"])',
            )
        said: dict[str, Any] = now.model.generate(messages, tools, **how)
        return said

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return getattr(self._now.model, name)

    def __repr__(self) -> str:
        return f"Served({self.ref})"
