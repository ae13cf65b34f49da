"""Low-rank adapters by PEFT: put them into a frozen model, take their tensors out and in, read and write PEFT's layout.

Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models" (2022): a linear map W becomes W + (alpha/rank)·B·A with
A (rank, in) and B (out, rank), of which only A and B are trained. Knows no strategy, no head and no text; encoders and
causal models use it alike.
"""

from __future__ import annotations

import copy
import json
import math
import re
import warnings
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from treering.errors import StoreError, UsageError

__all__ = [
    "LoraShape",
    "Targets",
    "attach",
    "check_adapter_config",
    "export_peft",
    "fresh_and_past",
    "import_peft",
    "is_transposed",
    "load_lora",
    "lora_layers",
    "lora_tensors",
    "share",
    "target_modules",
]

Targets = Literal["attention", "mlp", "all"]

PREFIX = "lora."  # of tensor names in a treering file: lora.<module>.A, lora.<module>.B
PEFT_PREFIX = "base_model.model."
LAYER = re.compile(r"(?:^|\.)(?:layers?|h|blocks?)\.(\d+)\.")
PAST, FRESH = "past", "default"  # names of the two adapters inside the model

# What an adapter_config.json may say. PEFT imports modules that some of its fields name (peft #3085) and silently ignores
# tensors it doesn't know (peft #2090); so a field outside this list has to be empty, and the tensors have to be exact.
_ALLOWED: dict[str, Any] = {
    "peft_type": {"LORA"},
    "task_type": {None, "FEATURE_EXTRACTION", "SEQ_CLS", "CAUSAL_LM"},
    "bias": {"none"},
    "fan_in_fan_out": {True, False},
    "init_lora_weights": {True, False, "gaussian"},
    "inference_mode": {True, False},
    "r": int,
    "lora_alpha": (int, float),
    "lora_dropout": (int, float),
    "target_modules": list,
    "base_model_name_or_path": (str, type(None)),
    "peft_version": (str, type(None)),
    "revision": (str, type(None)),
    "qalora_group_size": int,  # a number that counts only with use_qalora, which isn't allowed
    "megatron_core": {"megatron.core"},  # PEFT's default; imported only with a megatron_config, which has to be empty
}

_AUTO = re.compile(r"transformers(\.\w+)*")


class LoraShape(BaseModel):
    """What the tensors of a LoRA adapter are: rank and alpha, and the linear maps it changes as name → [in, out]."""

    model_config = ConfigDict(strict=True, frozen=True, extra="forbid")

    rank: int = Field(ge=1)
    alpha: float = Field(gt=0, allow_inf_nan=False)
    modules: dict[str, list[int]] = Field(min_length=1)
    transposed: bool = Field(default=False, description="the base keeps these maps as (in, out), as GPT-2 does")

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Names and shapes of the tensors, all float32."""
        found: dict[str, tuple[int, ...]] = {}
        for name, (inner, outer) in self.modules.items():
            found[f"{PREFIX}{name}.A"] = (self.rank, inner)
            found[f"{PREFIX}{name}.B"] = (outer, self.rank)
        return found

    def grown(self, more: int) -> LoraShape:
        """The same with `more` added to its rank, at the same scale alpha/rank."""
        rank = self.rank + more
        return self.model_copy(update={"rank": rank, "alpha": self.alpha * rank / self.rank})


def target_modules(model: nn.Module, *, top: int | None = None, targets: Targets = "all") -> dict[str, list[int]]:
    """The linear maps inside the top `top` layers (all, when None) of a transformer: name → [in, out].

    targets: those of the attention, those of the feed-forward part, or all. Raises UsageError when there are none, or
    fewer layers than `top`.
    """
    linear = {
        name: (int(found.group(1)), size)
        for name, module in model.named_modules()
        if (size := _size(module)) and (found := LAYER.search(name))
    }
    layers = 1 + max((layer for layer, _ in linear.values()), default=-1)
    if top is not None and top > layers:
        raise UsageError(f"the base has {layers} layers, adapt_layers is {top}", code="bad-config")
    first = 0 if top is None else layers - top
    chosen = {
        name: size
        for name, (layer, size) in linear.items()
        if layer >= first and (targets == "all" or ("att" in name.lower()) == (targets == "attention"))
    }
    if not chosen:
        raise UsageError(
            f"found no linear map to adapt ({targets}) in the layers of this base",
            code="bad-base",
            hint="adapt its pooled features instead: kind='gated', adapt_layers=0",
        )
    return chosen


def is_transposed(model: nn.Module, modules: Collection[str]) -> bool:
    """Whether the base keeps these maps as (in, out): `LoraShape.transposed`."""
    return any(name in modules and type(module).__name__ == "Conv1D" for name, module in model.named_modules())


def share(model: nn.Module, own: Collection[str] = ()) -> Any:
    """A copy of `model` whose parameters and buffers are the same memory, but for the parameters named in `own`.

    So the frozen base stays what it was whatever is put into the copy, and isn't held twice.
    """
    memo: dict[int, Any] = {id(p): p for name, p in model.named_parameters() if name not in own}
    memo.update({id(b): b for b in model.buffers()})
    return copy.deepcopy(model, memo)


def attach(model: Any, shape: LoraShape, *, generator: torch.Generator, past: int = 0) -> None:
    """Put LoRA into `model` (a `share`d copy), in place; all its other parameters become frozen.

    A starts uniform as PEFT's does, from `generator`; B at 0, so that a fresh adapter changes nothing. past: how many of
    the rank's first rows are frozen: subspaces of earlier rounds, that are used and not trained. Global random state is
    neither read nor changed. Raises UsageError when peft isn't installed.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as exc:
        raise UsageError("LoRA needs peft", code="missing-extra", hint="pip install 'treering[train]'") from exc
    scale = shape.alpha / shape.rank
    parts = {PAST: past, FRESH: shape.rank - past}
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that there is an adapter already: the past
        for name, rank in parts.items():
            if rank:
                config = LoraConfig(
                    r=rank,
                    lora_alpha=rank * scale,  # type: ignore[arg-type]
                    target_modules=list(shape.modules),
                    bias="none",
                    fan_in_fan_out=shape.transposed,
                )
                inject_adapter_in_model(config, model, adapter_name=name)
    active = [name for name, rank in parts.items() if rank]
    for _, module in lora_layers(model):
        module.set_adapter(active)
        for name in active:
            down, up = module.lora_A[name].weight, module.lora_B[name].weight
            bound = 1.0 / math.sqrt(down.shape[1])  # kaiming_uniform_(a=√5), as in PEFT
            down.data = (2.0 * torch.rand(down.shape, generator=generator) - 1.0).mul_(bound).to(down.device)
            up.data = torch.zeros(up.shape, device=up.device)
            down.requires_grad_(name == FRESH)
            up.requires_grad_(name == FRESH)


def lora_tensors(model: Any) -> dict[str, Tensor]:
    """The tensors of the LoRA inside `model`, by treering's names; those of earlier rounds first. Not copied if alone."""
    found: dict[str, Tensor] = {}
    for name, module in lora_layers(model):
        downs = [module.lora_A[part].weight for part in (PAST, FRESH) if part in module.lora_A]
        ups = [module.lora_B[part].weight for part in (PAST, FRESH) if part in module.lora_B]
        found[f"{PREFIX}{name}.A"] = downs[0] if len(downs) == 1 else torch.cat(downs)
        found[f"{PREFIX}{name}.B"] = ups[0] if len(ups) == 1 else torch.cat(ups, 1)
    return found


@torch.no_grad()
def load_lora(model: Any, tensors: Mapping[str, Tensor]) -> None:
    """Copy tensors in. Those of a smaller rank fill the first rows: of an adapter with earlier subspaces, exactly those."""
    for name, module in lora_layers(model):
        start = 0
        down, up = tensors[f"{PREFIX}{name}.A"], tensors[f"{PREFIX}{name}.B"]
        for part in (PAST, FRESH):
            if part not in module.lora_A or start >= len(down):
                continue
            own_down, own_up = module.lora_A[part].weight, module.lora_B[part].weight
            rank = min(len(own_down), len(down) - start)
            own_down[:rank].copy_(down[start : start + rank])
            own_up[:, :rank].copy_(up[:, start : start + rank])
            start += rank


def fresh_and_past(model: Any) -> list[tuple[Tensor, Tensor]]:
    """For each adapted map that has earlier subspaces: the A that is trained (rank, in), and the frozen A (past, in)."""
    return [
        (module.lora_A[FRESH].weight, module.lora_A[PAST].weight)
        for _, module in lora_layers(model)
        if PAST in module.lora_A and FRESH in module.lora_A
    ]


def export_peft(
    folder: Path, tensors: Mapping[str, Tensor], shape: LoraShape, *, base: str, task_type: str = "FEATURE_EXTRACTION"
) -> None:
    """Write `adapter_config.json` and `adapter_model.safetensors` as PEFT reads them, and so vLLM does.

    base: name or path of the base, for `base_model_name_or_path`. task_type: FEATURE_EXTRACTION, SEQ_CLS or CAUSAL_LM.
    """
    from safetensors.torch import save_file

    config = {
        "base_model_name_or_path": base,
        "bias": "none",
        "fan_in_fan_out": shape.transposed,
        "inference_mode": True,
        "init_lora_weights": True,
        "lora_alpha": shape.alpha,
        "lora_dropout": 0.0,
        "peft_type": "LORA",
        "r": shape.rank,
        "target_modules": sorted(shape.modules),
        "task_type": task_type,
    }
    folder.mkdir(parents=True, exist_ok=True)
    weights = {_peft_name(name): tensors[name].detach().cpu().contiguous() for name in shape.shapes()}
    (folder / "adapter_config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", "utf-8")
    save_file(weights, folder / "adapter_model.safetensors", metadata={"format": "pt"})


def import_peft(config: bytes, weights: bytes) -> tuple[LoraShape, dict[str, Tensor]]:
    """The adapter of PEFT's two files, checked; nothing in them is run.

    Raises StoreError for a config beyond plain LoRA, weights that aren't safetensors (a pickle, say), and tensors that
    aren't exactly those of one LoRA of that rank.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    said = check_adapter_config(config)
    try:
        given = load(weights)
    except (SafetensorError, ValueError, KeyError) as exc:
        raise StoreError(
            "not an adapter: adapter_model isn't a safetensors file",
            code="bad-adapter",
            hint="pickles (adapter_model.bin) are refused: save it again with safe_serialization=True",
        ) from exc
    modules: dict[str, list[int]] = {}
    tensors: dict[str, Tensor] = {}
    for name, value in given.items():
        found = re.fullmatch(rf"{re.escape(PEFT_PREFIX)}(.+)\.lora_([AB])\.weight", name)
        if not found or value.ndim != 2 or not value.is_floating_point() or not bool(torch.isfinite(value).all()):
            raise StoreError(f"not a LoRA adapter: tensor {name[:120]}", code="bad-adapter")
        module, part = found.groups()
        tensors[f"{PREFIX}{module}.{part}"] = value.float()
        modules.setdefault(module, [0, 0])[0 if part == "A" else 1] = value.shape[1 if part == "A" else 0]
    if not modules:
        raise StoreError("not a LoRA adapter: it has no tensors", code="bad-adapter")
    shape = LoraShape(
        rank=said["r"],
        alpha=float(said["lora_alpha"]),
        modules=dict(sorted(modules.items())),
        transposed=said.get("fan_in_fan_out", False),
    )
    wanted = shape.shapes()
    if {name: tuple(value.shape) for name, value in tensors.items()} != wanted:
        raise StoreError(f"not a LoRA adapter of rank {shape.rank}: its tensors have other shapes", code="bad-adapter")
    targets = said["target_modules"]
    for module in modules:
        if not any(module == target or module.endswith(f".{target}") for target in targets):
            raise StoreError(f"{module[:120]} isn't among the adapter's target_modules", code="bad-adapter")
    return shape, tensors


def check_adapter_config(data: bytes) -> dict[str, Any]:
    """What an `adapter_config.json` says, if it is plain LoRA. Raises StoreError, naming the field that isn't."""
    try:
        said = json.loads(data)
    except (ValueError, RecursionError) as exc:
        raise StoreError("adapter_config.json isn't JSON", code="bad-adapter") from exc
    if not isinstance(said, dict):
        raise StoreError("adapter_config.json isn't a table", code="bad-adapter")

    def refuse(field: str) -> StoreError:
        return StoreError(
            f"adapter_config.json says {field[:60]}={str(said.get(field))[:60]!r}, which isn't loaded",
            code="bad-adapter",
            hint="plain LoRA is: linear maps, no bias, nothing that names code",
        )

    for field, value in said.items():
        allowed = _ALLOWED.get(field)
        if allowed is None:
            # PEFT's own note of the base's class, which nothing here imports
            own = (
                field == "auto_mapping"
                and isinstance(value, dict)
                and _AUTO.fullmatch(str(value.get("parent_library")))
            )
            if value not in (None, False, [], {}, "") and not own:
                raise refuse(field)
        elif isinstance(allowed, set):
            if isinstance(value, list | dict) or value not in allowed:
                raise refuse(field)
        elif not isinstance(value, allowed) or (isinstance(value, bool) and allowed is not bool):
            raise refuse(field)
    for field in ("peft_type", "r", "lora_alpha", "target_modules"):
        if field not in said:
            raise refuse(field)
    if not 1 <= said["r"] <= 65_536:
        raise refuse("r")
    if not 0 < said["lora_alpha"] < math.inf:
        raise refuse("lora_alpha")
    if not said["target_modules"] or not all(
        isinstance(name, str) and re.fullmatch(r"[A-Za-z0-9_.]+", name) for name in said["target_modules"]
    ):
        raise refuse("target_modules")
    return said


def _size(module: nn.Module) -> list[int] | None:
    """[in, out] of a linear map, or of GPT-2's Conv1D, which is one with its weight turned; None for anything else."""
    if isinstance(module, nn.Linear):
        return [module.in_features, module.out_features]
    if type(module).__name__ == "Conv1D":
        weight: Any = module.weight
        return [int(size) for size in weight.shape]
    return None


def _peft_name(name: str) -> str:
    module, _, part = name.removeprefix(PREFIX).rpartition(".")
    return f"{PEFT_PREFIX}{module}.lora_{part}.weight"


def lora_layers(model: Any) -> list[tuple[str, Any]]:
    """(name, module) of each map that LoRA sits on, in the order of the model."""
    from peft.tuners.lora import LoraLayer

    return [(name, module) for name, module in model.named_modules() if isinstance(module, LoraLayer)]
