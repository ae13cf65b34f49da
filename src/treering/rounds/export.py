"""Take an adapter out of the store in PEFT's layout, which PEFT loads and vLLM serves.

Reads the registry and writes a directory. Weights and config are training.lora's to write; this says what else belongs
beside them.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict

from treering.errors import AlreadyExistsError, StoreError, UsageError
from treering.registry import AdapterRecord, Registry

if TYPE_CHECKING:
    import os

    from treering.store import BaseStore
    from treering.training.lora import LoraShape

__all__ = ["Exported", "export_adapter"]

CARD = "README.md"
HEAD, CLASSES = "head.safetensors", "classes.json"


class Exported(BaseModel):
    """What an export wrote."""

    model_config = ConfigDict(strict=True, frozen=True, extra="forbid")

    adapter: str  # by number
    folder: str
    files: list[str]
    base: str
    rank: int
    task_type: str


def export_adapter(store: BaseStore, adapter: str, folder: str | os.PathLike[str]) -> Exported:
    """Write a LoRA adapter into `folder` as PEFT reads it: adapter_config.json, adapter_model.safetensors, README.md.

    A classifier's head lies beside them: head.safetensors (weight (classes, width), bias (classes,)) and classes.json, which
    says how the features are made that it reads. The base isn't copied; the config names it.

    Raises UsageError for an adapter that isn't LoRA, with what to do instead, and for a folder that is a file;
    AlreadyExistsError for a folder with something in it, NotFoundError, StoreError for weights that were changed.
    """
    registry = Registry.of(store, adapter)
    store.corpus(registry.corpus)  # says so if there is none
    record = registry.get(adapter)
    found = _loaded(registry, record)
    shape: LoraShape | None = found.header.lora
    if shape is None:
        raise UsageError(
            f"{record.ref} is of kind {found.header.kind}, which PEFT has no layout for",
            code="not-lora",
            hint="serve it by treering.load_adapter, or train one with --strategy lora-replay",
        )
    target = Path(folder)
    if target.exists() and not target.is_dir():
        raise UsageError(f"{target} is a file", code="bad-folder", hint="name a new directory")
    if target.is_dir() and any(target.iterdir()):
        raise AlreadyExistsError(f"{target} isn't empty", code="folder-taken", hint="name a new directory")
    chat = hasattr(found, "generate")
    task = "CAUSAL_LM" if chat else "FEATURE_EXTRACTION"
    from treering.training.lora import export_peft

    try:
        export_peft(target, found.tensors, shape, base=_base_path(found.card.base.name), task_type=task)
        if not chat:
            _write_head(target, found)
        (target / CARD).write_text(_card(record, found, shape, chat=chat), "utf-8")
    except OSError as exc:
        raise StoreError(f"can't write into {target}: {exc.strerror or exc}", code="write-failed") from exc
    return Exported(
        adapter=record.ref,
        folder=str(target),
        files=sorted(path.name for path in target.iterdir()),
        base=found.card.base.name,
        rank=shape.rank,
        task_type=task,
    )


def _loaded(registry: Registry, record: AdapterRecord) -> Any:
    from treering.rounds.forms import load_weights

    return load_weights(registry.weights(record.ref), registry.card(record.ref))


def _base_path(name: str) -> str:
    """What PEFT and vLLM can load the base by: a hub name as it is, else a directory."""
    from treering.training.base import _resolve

    return _resolve(name)[0]


def _write_head(folder: Path, adapter: Any) -> None:
    import torch
    from safetensors.torch import save_file

    from treering.training.nets import SCALE

    weight, bias = adapter.head
    tensors = {"weight": torch.from_numpy(weight), "bias": torch.from_numpy(bias)}
    save_file(tensors, folder / HEAD, metadata={"format": "pt"})
    told = {
        "classes": adapter.header.classes,
        "max_tokens": adapter.card.base.max_tokens,
        "features": "mean of the last hidden states over the tokens, at unit length, times scale",
        "scale": SCALE * adapter.header.width**0.5,
    }
    (folder / CLASSES).write_text(json.dumps(told, indent=2, ensure_ascii=False) + "\n", "utf-8")


def _card(record: AdapterRecord, found: Any, shape: LoraShape, *, chat: bool) -> str:
    """The model card: YAML that the hub reads, then what this adapter is and where it comes from."""
    base = found.card.base
    scores = [f"| {_cell(name)} | {score:.4f} |" for name, score in record.scores.items()]
    lines = [
        "---",
        f"base_model: {json.dumps(base.name)}",
        "library_name: peft",
        f"pipeline_tag: {'text-generation' if chat else 'text-classification'}",
        "tags: [lora, treering]",
        "---",
        "",
        f"# {record.ref}",
        "",
        f"LoRA of rank {shape.rank} (alpha {shape.alpha:g}) on {len(shape.modules)} maps of `{base.name}`, trained by treering "
        f"with strategy `{record.strategy}`.",
        "",
        f"* Weights in the store: SHA-256 `{record.digest}`",
        f"* Base: SHA-256 `{base.digest}` of its weights, shape and tokenizer, run in {base.precision}",
        f"* Trained on: {', '.join(map(_code, record.trained_on)) or 'live records alone'}",
        f"* Mix lock: `{record.lock_digest}`",
        f"* Parent: {_code(record.parent) if record.parent else 'none'}",
        "",
        "```python",
        "from peft import PeftModel",
        f"from transformers import AutoModel{'ForCausalLM' if chat else ''}",
        "",
        f"base = AutoModel{'ForCausalLM' if chat else ''}.from_pretrained({_base_path(base.name)!r})",
        'model = PeftModel.from_pretrained(base, "this directory")',
        "```",
    ]
    if chat:
        lines += ["", "vLLM: `vllm serve BASE --enable-lora --lora-modules NAME=DIR --max-lora-rank RANK`."]
        if found.card.stats is not None and found.card.stats.template == "default":
            lines += ["", "The base has no chat template; it was trained with treering's own:", "", "```jinja"]
            from treering.training.chat.template import DEFAULT_TEMPLATE

            lines += [DEFAULT_TEMPLATE.rstrip(), "```"]
    else:
        lines += ["", f"Its head over {len(found.header.classes)} classes: `{HEAD}`, `{CLASSES}`."]
    if scores:
        lines += ["", f"| held-out of | {_cell(record.metric)} |", "| --- | --- |", *scores]
    return "\n".join(lines) + "\n"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def _code(text: str) -> str:
    return f"`{text}`"
