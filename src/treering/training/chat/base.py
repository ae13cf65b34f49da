"""The frozen causal language model that chat adapters sit on, with its tokenizer and chat template.

One copy of its weights serves every adapter of the process. Does not learn (fit) or generate (adapter).
"""

from __future__ import annotations

import functools
import hashlib
import json
import threading
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from treering.errors import NotFoundError, UsageError
from treering.training.base import _first_line, _multiplies_bf16, _quiet, _resolve
from treering.training.chat.packing import IGNORED, Packed
from treering.training.chat.template import ChatTemplate, Rendered
from treering.training.conversation import Conversation

__all__ = ["ChatBase", "token_losses"]

_LOADING = threading.Lock()
_SHAPE = (
    "model_type", "hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim",
    "hidden_act", "rms_norm_eps", "layer_norm_epsilon", "rope_theta", "rope_parameters", "sliding_window",
)  # fmt: skip


class ChatBase:
    """A frozen causal language model. `digest` is the SHA-256 of weights, shape, tokenizer and chat template."""

    def __init__(self, name: str, model: Any, tokenizer: Any, *, precision: Literal["fp32", "bf16"], max_tokens: int):
        self.name = name
        self.precision: Literal["fp32", "bf16"] = precision
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.template = ChatTemplate(tokenizer)
        self.tokenizer = tokenizer
        self.digest = _digest(model, tokenizer, self.template.text)
        dtype = torch.bfloat16 if precision == "bf16" else torch.float32
        self.model = model.to(self.device, dtype).eval().requires_grad_(False)
        config = model.config.get_text_config()
        #: Numbers in its weights, and the bytes they take as loaded.
        self.parameters = sum(int(weight.numel()) for weight in model.parameters())
        self.weight_bytes = sum(int(weight.numel() * weight.element_size()) for weight in self.model.parameters())
        self.width = int(config.hidden_size)
        self.layers = int(config.num_hidden_layers)
        self.context = int(getattr(config, "max_position_embeddings", None) or max_tokens)  # tokens it can look back on
        self.max_tokens = min(max_tokens, self.context)
        self.pad = int(tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id)

    @classmethod
    def load(
        cls, name: str, *, precision: Literal["auto", "fp32", "bf16"] = "auto", max_tokens: int = 1_024
    ) -> ChatBase:
        """The causal language model of that name: a directory, or a name on the hub. Loaded once per process.

        HF_HUB_OFFLINE is respected; weights must be safetensors, and no code of the model's repository is run; its chat
        template is rendered in a sandbox. Raises NotFoundError when it isn't there, UsageError when a package is missing
        or it isn't a causal language model with safetensors and a fast tokenizer that knows an end of text.
        """
        wanted = ("bf16" if _multiplies_bf16() else "fp32") if precision == "auto" else precision
        with _LOADING:  # or two threads would each hold one
            return _load(name, wanted, max_tokens)

    @property
    def stops(self) -> list[int]:
        """Tokens that end a reply: the tokenizer's end of text, and those that the model itself names."""
        named = getattr(self.model.generation_config, "eos_token_id", None)
        said = named if isinstance(named, list) else [] if named is None else [named]
        return sorted({int(self.tokenizer.eos_token_id), *map(int, said)})

    @functools.cached_property
    def can_pack(self) -> bool:
        """Whether the model keeps sequences of one row apart by their positions; tried out on two of random tokens.

        Attention of most models in transformers does. One that carries a state along (Mamba, say) can't, and takes one
        conversation a row.
        """
        ids = torch.randint(0, self.model.config.get_text_config().vocab_size, (12,), generator=torch.Generator())
        ids = ids.to(self.device)[None]
        apart = torch.tensor([[*range(5), *range(7)]], device=self.device)
        through = torch.arange(12, device=self.device)[None]
        with torch.inference_mode(), self.autocast():
            try:
                alone = self.model(input_ids=ids[:, 5:], use_cache=False).logits
                packed, joined = (
                    self.model(input_ids=ids, position_ids=positions, use_cache=False).logits[:, 5:]
                    for positions in (apart, through)
                )
            except TypeError:  # it takes no positions
                return False
        off, mixed = ((found - alone).abs().max().item() for found in (packed, joined))
        return bool(off < 0.1 * mixed)

    def autocast(self) -> Any:
        """The context it runs in: bfloat16 matrix products when that is its precision."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16")

    def rendered(self, conversation: Conversation) -> tuple[list[Rendered], int]:
        """Sequences to learn from, cut to `max_tokens`, those without anything to learn left out; and the tokens cut off.

        Raises UsageError when the template refuses the conversation.
        """
        whole = self.template.rendered(conversation)
        cut = sum(max(0, len(one.ids) - self.max_tokens) for one in whole)
        kept = [Rendered(one.ids[: self.max_tokens], one.learn[: self.max_tokens]) for one in whole]
        return [one for one in kept if one.learn[1:].any()], cut

    def count(self, messages: Any, tools: Any = None) -> int:
        """Tokens of a conversation in this model's template, uncut; 0 when the template refuses it."""
        try:
            return sum(len(one.ids) for one in self.template.rendered(Conversation.of(messages, tools)))
        except UsageError:
            return 0


def token_losses(net: Any, base: ChatBase, batch: Packed, *, packed: bool) -> tuple[Tensor, Tensor]:
    """Loss of every token that is to be learnt, float32 (k,), in nats; and the number of its sequence, int64 (k,).

    net: the base, or a copy of it with an adapter inside. packed: sequences share rows, kept apart by their positions.
    """
    ids = torch.from_numpy(batch.ids).to(base.device)
    if packed:
        how = {"position_ids": torch.from_numpy(batch.positions).to(base.device)}
    else:
        how = {"attention_mask": torch.from_numpy(batch.mask).to(base.device)}
    with base.autocast():
        logits = net(input_ids=ids, use_cache=False, **how).logits
    learnt = batch.targets != IGNORED
    at = torch.from_numpy(learnt).to(base.device)
    targets = torch.from_numpy(batch.targets[learnt]).to(base.device)
    losses = functional.cross_entropy(logits[at].float(), targets, reduction="none")
    return losses, torch.from_numpy(batch.owner[learnt])


@functools.lru_cache(maxsize=4)
def _load(name: str, precision: Literal["fp32", "bf16"], max_tokens: int) -> ChatBase:
    path, local = _resolve(name)
    try:
        with _quiet():
            from transformers import AutoModelForCausalLM, AutoTokenizer

            options = {"local_files_only": local, "trust_remote_code": False}
            tokenizer = AutoTokenizer.from_pretrained(path, **options)
            model, loaded = AutoModelForCausalLM.from_pretrained(
                path, use_safetensors=True, dtype="auto", output_loading_info=True, **options
            )
    except ImportError as exc:
        raise UsageError(
            "training needs transformers", code="missing-extra", hint="pip install 'treering[train]'"
        ) from exc
    except (OSError, ValueError) as exc:
        if local:
            raise UsageError(
                f"{name} isn't a causal language model: {_first_line(exc)}",
                code="bad-base",
                hint="conversations need a causal base: a directory with config.json, a tokenizer and model.safetensors; "
                "pickles are refused",
            ) from exc
        raise NotFoundError(
            f"can't get base {name}: {_first_line(exc)}",
            code="no-base",
            hint="check the name and HF_HUB_OFFLINE, or give a directory",
        ) from exc
    if loaded["missing_keys"] or not _is_causal(model):
        raise UsageError(
            f"{name} isn't a causal language model: it is {model.config.model_type}, which "
            + ("has no head to say the next token with" if loaded["missing_keys"] else "looks ahead"),
            code="bad-base",
            hint="conversations need a base that writes text from left to right: --base DIR or a hub name",
        )
    if not getattr(tokenizer, "is_fast", False) or tokenizer.eos_token_id is None:
        raise UsageError(
            f"the tokenizer of {name} {'has no end-of-text token' if tokenizer.is_fast else 'is a slow one'}",
            code="bad-base",
            hint="a chat base needs a fast tokenizer (tokenizer.json) with an eos_token, by which replies end",
        )
    return ChatBase(name, model, tokenizer, precision=precision, max_tokens=max_tokens)


@torch.inference_mode()
def _is_causal(model: Any) -> bool:
    """Whether what it says of a token depends on earlier ones alone; an encoder with a head for words looks ahead."""
    ids = torch.randint(0, model.config.get_text_config().vocab_size, (2, 12), generator=torch.Generator())
    ids[1, :6] = ids[0, :6]
    one, other = model.eval()(input_ids=ids).logits[:, :6].float()
    return bool((one - other).abs().max() <= 1e-5 * one.abs().max())  # the same sums over the same numbers


def _digest(model: Any, tokenizer: Any, template: str) -> str:
    """SHA-256 of what decides what the model says: not of files, whose layout differs between the hub and a directory."""
    config = model.config.get_text_config().to_dict()
    probe = "Ünïcode, CASE  and—dashes: 42 % of £3.50?\t日本 don't"  # tells normalisers apart that share a vocabulary
    shape = {
        "config": {key: config.get(key) for key in _SHAPE},
        "vocabulary": sorted(tokenizer.get_vocab().items()),
        "special": tokenizer.special_tokens_map,
        "probe": tokenizer(probe)["input_ids"],
        "template": template,
    }
    sha = hashlib.sha256(json.dumps(shape, sort_keys=True, default=str).encode())
    for name, tensor in sorted(model.state_dict().items()):
        value = tensor.detach().cpu().contiguous().reshape(-1)
        sha.update(f"{name} {value.dtype} {tuple(tensor.shape)}\n".encode())
        sha.update(np.asarray(value.view(torch.uint8).numpy()).data if value.numel() else b"")
    return sha.hexdigest()
