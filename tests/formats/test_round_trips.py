"""Out by `export`, in by `capture_file`: the same records, and for whole records the same snapshot."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import treering

CALL = {"id": "c1", "type": "function", "function": {"name": "look", "arguments": '{"b": 1.50, "a": [2e0]}'}}


def chats(corpus: treering.Corpus) -> treering.Snapshot:
    with corpus.capture() as live:
        live.extend(
            {
                "id": f"r{n:03d}",
                "session_id": f"s{n // 3}",
                "domain": "orders" if n % 2 else None,
                "origin": "model:bot-7",
                "meta": {"n": n, "nested": {"z": 1, "a": [None, 0.1]}},
                "messages": [
                    {"role": "user", "content": f"say\u2028 {n} 😀"},
                    {"role": "assistant", "tool_calls": [CALL], "reasoning_content": "hm" if n % 5 == 0 else None},
                    {"role": "tool", "name": "look", "tool_call_id": "c1", "content": ""},
                    {"role": "assistant", "content": "done", "weight": n % 2},
                ],
                "tools": '[{"type": "function", "function": {"name": "look"}}]' if n % 3 else None,
            }
            for n in range(200)
        )
    sealed = corpus.snapshot()
    assert sealed is not None
    return sealed


@pytest.mark.parametrize("name", ["out.jsonl", "out.jsonl.gz", "out.jsonl.zst", "out.parquet"])
def test_a_snapshot_that_goes_out_and_in_again_has_the_same_digest(
    store: treering.Store, tmp_path: Path, name: str
) -> None:
    sealed = chats(store.create("support", "chat", heldout=0.2))
    store.export("support@v1", tmp_path / name, format="parquet" if name.endswith("parquet") else "records")
    other = treering.open(tmp_path / "other").create("support", "chat", heldout=0.2)
    summary = other.capture_file(str(tmp_path / name))
    assert (summary.stored, summary.refused) == (200, 0)
    again = other.snapshot()
    assert again is not None
    assert again.digest == sealed.digest


@pytest.mark.parametrize("format_", ["openai", "trl"])
def test_conversations_that_go_out_and_in_again_say_the_same(
    store: treering.Store, tmp_path: Path, format_: str
) -> None:
    chats(store.create("support", "chat"))
    summary = store.export("support@v1", tmp_path / "out.jsonl", format=format_)
    other = store.create("again", "chat")
    assert other.capture_file(str(tmp_path / "out.jsonl"), format=format_).stored == 200
    lost = {name.removeprefix("messages.") for name in summary.dropped if name.startswith("messages.")}
    assert lost == ({"reasoning_content"} if format_ == "openai" else {"weight"})

    def said(ref: str) -> list[Any]:
        rows = store.load(ref).to_table(["messages", "tools"]).to_pylist()
        for row in rows:
            row["tools"] = row["tools"] and row["tools"].replace(" ", "")  # parsed on the way in, and written anew
            for message in row["messages"]:
                message.update(dict.fromkeys(lost))
                for call in message["tool_calls"] or []:
                    if format_ == "trl":
                        call["function"]["arguments"] = '{"b":1.5,"a":[2.0]}'
        return sorted(rows, key=str)

    assert said("again@live") == said("support@v1")
    store.export("again@live", tmp_path / "again.jsonl", format=format_)
    once, twice = ((tmp_path / f"{name}.jsonl").read_bytes().splitlines() for name in ("out", "again"))
    if format_ == "openai":
        strip = lambda lines: sorted(line.replace(b" ", b"") for line in lines)  # noqa: E731
        assert strip(once) == strip(twice)
