"""A store and two tiny models on disk, made once for all tests of plug-ins; some of them run in processes of their own."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

import treering
from tests.training.tiny import make_base
from tests.training.tiny_chat import WEATHER, call, make_chat_base, say


@dataclass(frozen=True)
class Shared:
    """Paths of what is shared: `store` with the corpora support, chats and choices; `bert` and `chat` are models."""

    store: Path
    bert: str
    chat: str

    def mix(self, corpus: str = "support") -> treering.Mix:
        """The mix that the examples train on."""
        return treering.open(self.store).mix(f"{corpus}@v1", f"{corpus}@live", weights=[0.5, 0.5], seed=7)


def _tickets(name: str, rows: int) -> list[dict[str, object]]:
    return [
        {"id": f"{name}{k}", "text": "where is my money " * (k % 4 + 1), "label": ("refund", "other")[k % 2]}
        for k in range(rows)
    ]


def _chats(name: str, rows: int) -> list[dict[str, object]]:
    """Of several lengths, every third with a tool call and the tools on offer."""
    plain = [say(f"question {k} " * (k % 5 + 1), f"answer {k}") for k in range(rows)]
    return [
        {"id": f"{name}{k}", "messages": call("Paris"), "tools": [WEATHER]}
        if k % 3 == 0
        else {"id": f"{name}{k}", "messages": plain[k]}
        for k in range(rows)
    ]


def _choices(name: str, rows: int) -> list[dict[str, object]]:
    return [
        {"id": f"{name}{k}", "prompt": said[:1], "chosen": said[1:], "rejected": [{**said[1], "content": "no " * (k % 3 + 1)}]}
        for k in range(rows)
        for said in [say(f"question {k}", f"answer {k}")]
    ]  # fmt: skip


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Shared:
    root = tmp_path_factory.mktemp("plugins")
    store = treering.open(root / "store")
    for corpus, schema, make in (
        ("support", "labelled", _tickets),
        ("chats", "chat", _chats),
        ("choices", "preference", _choices),
    ):
        made = store.create(corpus, schema=schema)
        with made.capture() as live:
            live.extend(make("a", 50))
        made.snapshot()
        with made.capture() as live:
            live.extend(make("b", 35))
    return Shared(root / "store", make_base(root / "bert"), make_chat_base(root / "chat"))
