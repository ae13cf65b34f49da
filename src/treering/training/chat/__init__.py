"""Chat models: LoRA over a frozen causal language model, learnt from conversations with the loss on what the assistant said.

Handed a loader, gives back an adapter, as the rest of training does. Modules: template (tokens, and which are learnt),
packing, base (the language model), adapter (generates, measures, is saved), fit (the loop).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from treering.training.chat.adapter import ChatAdapter
    from treering.training.chat.base import ChatBase
    from treering.training.chat.fit import CHAT_STRATEGIES, fit_chat

__all__ = ["CHAT_STRATEGIES", "ChatAdapter", "ChatBase", "fit_chat"]

_LAZY = {"CHAT_STRATEGIES": "fit", "ChatAdapter": "adapter", "ChatBase": "base", "fit_chat": "fit"}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    value = getattr(import_module(f"{__name__}.{_LAZY[name]}"), name)
    globals()[name] = value
    return value
