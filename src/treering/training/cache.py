"""Activations of the frozen base, kept on disk so that each text is encoded once.

`<cache_dir>/activations/<base>/<keys>.safetensors`: one immutable file per block of texts, memory-mapped when read.
Nothing is lost by deleting any of it, whole or in part; a damaged file is encoded again. Does not decide what is
encoded (loop).
"""

from __future__ import annotations

import hashlib
import json
import os
import uuid
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from treering.engine.packed import pack, unpack
from treering.errors import ConflictError
from treering.training.base import WHOLE, Activations, Base

if TYPE_CHECKING:
    from treering.engine import Engine

__all__ = ["ActivationCache"]

BLOCK = 8_192  # texts encoded, held in memory and written together: 12 MB of pooled MiniLM features
VERSION = 1  # of the file layout and of what goes into a key
DTYPES = {"U8": np.uint8, "I32": np.int32, "I64": np.int64, "F16": np.float16, "F32": np.float32}


@dataclass(frozen=True, slots=True)
class _Block:
    pooled: npt.NDArray[np.float32]
    tokens: npt.NDArray[np.int32]
    states: npt.NDArray[np.float16] | npt.NDArray[np.int32]
    starts: npt.NDArray[np.int64]  # (n + 1,): first row of each text in `states`


class ActivationCache:
    """Activations of one base at one depth, by text; the means of its top `layers` hidden states.

    Texts are numbered 0, 1, … as they become known to this object; a number stays good for its lifetime. Without a
    directory everything is held in memory. Two processes may write at once: files are put in place whole, under a name
    made of their keys.
    """

    def __init__(
        self, base: Base, cache_dir: str | os.PathLike[str] | None = None, *, depth: int = 0, layers: int = 1
    ) -> None:
        self.base = base
        self.depth = depth
        self.layers = layers
        self.encoded = 0  # texts that had to be encoded, by this object
        self.cut = 0  # of those, how many were longer than max_tokens
        self._number: dict[bytes, int] = {}
        self._blocks: list[_Block] = []
        self._first: list[int] = []  # number of each block's first text
        self._folder: Path | None = None
        if cache_dir is not None:
            name = f"v{VERSION}-{base.digest[:32]}-{base.precision}-t{base.max_tokens}-{'ids' if depth == WHOLE else f'd{depth}'}"
            name += f"-f{layers}" if layers > 1 else ""
            self._folder = Path(cache_dir) / "activations" / name
            for path in sorted(self._folder.glob("*.safetensors")):
                self._open(path)

    @property
    def _state_width(self) -> int:
        return 1 if self.depth == WHOLE else self.base.width

    def __len__(self) -> int:
        return len(self._number)

    def numbers(self, texts: Sequence[str], *, engine: Engine | None = None) -> npt.NDArray[np.int64]:
        """The number of each text, int64 (n,); texts that aren't known yet are encoded first, by workers if there are any."""
        keys = [text_key(text) for text in texts]
        missing = {key: text for key, text in zip(keys, texts, strict=True) if key not in self._number}
        todo = list(missing.items())
        blocks = [dict(todo[start : start + BLOCK]) for start in range(0, len(todo), BLOCK)]
        if engine is None:
            for block in blocks:
                found = self.base.encode(list(block.values()), depth=self.depth, layers=self.layers)
                self._take_in(list(block), found)
        else:
            base = self.base
            how = {"base": base.name, "precision": base.precision, "max_tokens": base.max_tokens, "digest": base.digest}
            each = [{**how, "depth": self.depth, "layers": self.layers, "texts": list(b.values())} for b in blocks]
            results = engine.map("treering.training.cache:encode", each)
            for block, result in zip(blocks, results, strict=True):
                self._take_in(list(block), _unpacked(result))
        return np.fromiter((self._number[key] for key in keys), np.int64, len(keys))

    def pooled(self, numbers: npt.NDArray[np.int64]) -> Tensor:
        """Pooled features of texts by number: float32 (n, layers · hidden), on the CPU."""
        out = np.empty((len(numbers), self.layers * self.base.width), np.float32)
        for block, rows, local in self._located(numbers):
            out[rows] = block.pooled[local]
        return torch.from_numpy(out)

    def states(self, numbers: npt.NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        """Hidden states below the adapted layers: float32 (n, length, width), and the mask int64 (n, length).

        At depth WHOLE token ids instead: int64 (n, length, 1).
        """
        tokens = np.zeros(len(numbers), np.int64)
        for block, rows, local in self._located(numbers):
            tokens[rows] = block.tokens[local]
        length = int(tokens.max(initial=1))
        shape = (len(numbers), length, self._state_width)
        out = np.zeros(shape, np.int64 if self.depth == WHOLE else np.float32)
        for block, rows, local in self._located(numbers):
            for row, text in zip(rows.tolist(), local.tolist(), strict=True):
                out[row, : tokens[row]] = block.states[block.starts[text] : block.starts[text + 1]]
        mask = np.arange(length)[None, :] < tokens[:, None]
        return torch.from_numpy(out), torch.from_numpy(mask.astype(np.int64))

    def _located(
        self, numbers: npt.NDArray[np.int64]
    ) -> Iterable[tuple[_Block, npt.NDArray[np.intp], npt.NDArray[np.int64]]]:
        """(block, positions in `numbers`, texts within the block) for each block that holds any of them."""
        owner = np.searchsorted(np.asarray(self._first, np.int64), numbers, side="right") - 1
        for n in np.unique(owner).tolist():
            rows = np.flatnonzero(owner == n)
            yield self._blocks[n], rows, numbers[rows] - self._first[n]

    def _take_in(self, keys: Sequence[bytes], found: Activations) -> None:
        self.encoded += len(keys)
        self.cut += found.cut
        if self._folder is not None:
            path = self._folder / f"{hashlib.sha256(b''.join(keys)).hexdigest()[:32]}.safetensors"
            packed = np.frombuffer(b"".join(keys), np.uint8).reshape(-1, 32)
            _write(path, keys=packed, pooled=found.pooled, tokens=found.tokens, states=found.states)
            if self._open(path):
                return
        self._add(keys, found.pooled, found.tokens, found.states)

    def _open(self, path: Path) -> bool:
        """Take in a file; False when it is damaged or of another shape, which a cache may be."""
        try:
            tensors = _map(path)
            keys, pooled, tokens, states = (tensors[name] for name in ("keys", "pooled", "tokens", "states"))
        except (OSError, ValueError, KeyError, TypeError):
            return False
        n, width = len(keys), self.layers * self.base.width
        if (
            keys.shape != (n, 32)
            or pooled.shape != (n, width)
            or tokens.shape != (n,)
            or states.shape != (int(tokens.sum()) if self.depth else 0, self._state_width)
        ):
            return False
        self._add([row.tobytes() for row in keys], pooled, tokens, states)
        return True

    def _add(self, keys: Sequence[bytes], pooled: Any, tokens: Any, states: Any) -> None:
        first = self._first[-1] + len(self._blocks[-1].pooled) if self._blocks else 0
        starts = np.concatenate([[0], np.cumsum(tokens, dtype=np.int64)])
        self._first.append(first)
        self._blocks.append(_Block(pooled, tokens, states, starts))
        for n, key in enumerate(keys):
            self._number.setdefault(key, first + n)  # two processes may have encoded the same text


def encode(
    base: str, precision: Any, max_tokens: int, digest: str, depth: int, layers: int, texts: Sequence[str]
) -> bytes:
    """In a worker: the activations of some texts. Raises ConflictError when its base is another one."""
    loaded = Base.load(base, precision=precision, max_tokens=max_tokens)
    if loaded.digest != digest:
        raise ConflictError(
            f"a worker's {base} is {loaded.digest[:12]}…, the caller's {digest[:12]}…",
            code="other-base",
            hint="every machine of the cluster needs the same base",
        )
    found = loaded.encode(texts, depth=depth, layers=layers)
    arrays = {"pooled": found.pooled, "tokens": found.tokens, "states": found.states}
    said = {name: [array.dtype.str, list(array.shape)] for name, array in arrays.items()}
    return pack({"arrays": said, "cut": found.cut}, **{name: array.tobytes() for name, array in arrays.items()})


def _unpacked(result: bytes) -> Activations:
    said, parts = unpack(result)
    arrays = {name: np.frombuffer(parts[name], kind).reshape(shape) for name, (kind, shape) in said["arrays"].items()}
    return Activations(**arrays, cut=said["cut"])


def text_key(text: str) -> bytes:
    """SHA-256 of the text; lone surrogates, which JSON can carry, included."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()


def _write(path: Path, **tensors: npt.NDArray[Any]) -> None:
    """One safetensors file, in place whole or not at all. Not synced: what a crash takes is encoded again."""
    from safetensors.numpy import save

    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{uuid.uuid4().hex}.tmp")
    try:
        temporary.write_bytes(save({name: np.ascontiguousarray(value) for name, value in tensors.items()}))
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _map(path: Path) -> dict[str, npt.NDArray[Any]]:
    """The tensors of a safetensors file, memory-mapped: safetensors itself would read them whole."""
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > size - 8:
            raise ValueError(f"{path} is cut short")
        header = json.loads(file.read(length))
    tensors = {}
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        begin, end = entry["data_offsets"]
        dtype, shape = np.dtype(DTYPES[entry["dtype"]]), tuple(entry["shape"])
        if end - begin != dtype.itemsize * int(np.prod(shape)) or 8 + length + end > size:
            raise ValueError(f"{path} is cut short")
        if end > begin:  # as a plain array over the map: np.memmap takes its time over each index
            tensors[name] = np.asarray(np.memmap(path, dtype, "r", 8 + length + begin, shape))
        else:  # mmap has no empty maps
            tensors[name] = np.empty(shape, dtype)
    return tensors
