"""Exported files in the hands of those they are for: a real TRL trainer, on a tiny model."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest

import treering
from tests.training.tiny_chat import WEATHER, make_chat_base, say

pytestmark = [
    pytest.mark.filterwarnings("ignore"),  # other packages' warnings of what they deprecate
    pytest.mark.timeout(240),
]


def called(city: str, tool: str, arguments: dict[str, Any]) -> list[dict[str, Any]]:
    call = {"id": "c1", "type": "function", "function": {"name": tool, "arguments": arguments}}
    return [
        {"role": "user", "content": f"What about {city}?"},
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": "rain", "name": tool, "tool_call_id": "c1"},
        {"role": "assistant", "content": "It is raining."},
    ]


def trained(dataset: Any, where: Path, trainer: str = "sft") -> list[float]:
    """The losses of two steps."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer
    how: dict[str, Any] = {
        "output_dir": str(where / "out"),
        "max_steps": 2,
        "per_device_train_batch_size": 4,
        "logging_steps": 1,
        "report_to": [],
        "save_strategy": "no",
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
    }
    base = make_chat_base(where / "base")
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model, tokenizer = AutoModelForCausalLM.from_pretrained(base), AutoTokenizer.from_pretrained(base)
    config, made = (DPOConfig, DPOTrainer) if trainer == "dpo" else (SFTConfig, SFTTrainer)
    run = made(model=model, args=config(**how), train_dataset=dataset, processing_class=tokenizer)
    run.train()
    return [entry["loss"] for entry in run.state.log_history if "loss" in entry]


def read(path: Path, tmp_path: Path) -> Any:
    datasets = pytest.importorskip("datasets")
    return datasets.load_dataset("json", data_files=str(path), split="train", cache_dir=str(tmp_path / "cache"))


def test_trl_trains_on_exported_conversations_with_tool_calls(store: treering.Store, tmp_path: Path) -> None:
    pytest.importorskip("trl")
    chats = store.create("chats", "chat", heldout=0)
    with chats.capture() as live:
        for n in range(8):
            live.add({"id": f"a{n}", "messages": called("Paris", "get_weather", {"city": "Paris"}), "tools": [WEATHER]})
            live.add({"id": f"b{n}", "messages": called("bus 7", "find", {"line": n}), "tools": [WEATHER]})
    store.export("chats@live", tmp_path / "sft.jsonl", format="trl")
    rows = read(tmp_path / "sft.jsonl", tmp_path)
    assert len(rows) == 16
    losses = trained(rows, tmp_path)
    assert len(losses) == 2
    assert all(0 < loss < 20 for loss in losses)


def test_trl_trains_on_the_mix_of_a_lock_as_prompt_and_completion(store: treering.Store, tmp_path: Path) -> None:
    pytest.importorskip("trl")
    support = store.create("support", "labelled", heldout=0)
    with support.capture() as live:
        live.extend({"id": f"r{n}", "text": f"where is parcel {n}", "label": "courier"} for n in range(16))
    lock = store.mix("support@live").lock(batch_size=8)
    store.export(lock, tmp_path / "mix.jsonl", format="trl")
    assert len(trained(read(tmp_path / "mix.jsonl", tmp_path), tmp_path)) == 2


def test_trl_trains_on_exported_preferences(store: treering.Store, tmp_path: Path) -> None:
    pytest.importorskip("trl")
    prefs = store.create("prefs", "preference", heldout=0)
    with prefs.capture() as live:
        for n in range(8):
            question, good = say(f"How do I change password {n}?", "Open the settings.")
            live.add({"prompt": [question], "chosen": [good], "rejected": [{"role": "assistant", "content": "No."}]})
    store.export("prefs@live", tmp_path / "dpo.jsonl", format="trl")
    assert len(trained(read(tmp_path / "dpo.jsonl", tmp_path), tmp_path, "dpo")) == 2
