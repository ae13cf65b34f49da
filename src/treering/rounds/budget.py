"""Measure what an adapter costs to serve: latency of one text at a time, and memory. What is too much is the gate's to say."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from treering.evaluation.budget import Budget, project

if TYPE_CHECKING:
    from treering.rounds.evaluate import Model

__all__ = ["measure_budget", "resident_bytes"]

TEXTS = 200
WARM_UP = 10
LONGEST_S = 20.0  # a pass over a slow model ends after so long, …
FEWEST = 20  # … but not before so many texts
PASSES = 3  # while the line is missed: a moment in which the machine was busy isn't the adapter's


def measure_budget(model: Model, texts: Sequence[str], *, enough_ms: float | None = None) -> Budget | None:
    """Latency and memory of a loaded model over held-out texts, one at a time; None without texts.

    Of a chat model it is the latency of a reply's first token. While the p99 is above `enough_ms`, the texts are asked again,
    up to three times in all, and of each text the quickest answer counts: other work on the machine only ever adds.
    """
    asked = list(texts[:TEXTS])
    if not asked:
        return None
    answer = getattr(model, "begin", model.predict)
    for text in asked[:WARM_UP]:
        answer([text])
    best = _pass(answer, asked)
    passes = 1
    while enough_ms is not None and _p(best, 99) > enough_ms and passes < PASSES:
        best = [min(pair) for pair in zip(best, _pass(answer, asked), strict=False)]
        passes += 1
    p99 = _p(best, 99)
    parameters, base_bytes, adapter_bytes, width = _weights(model)
    return Budget(
        texts=len(best),
        passes=passes,
        p50_ms=_p(best, 50),
        p99_ms=p99,
        memory_gb=resident_bytes() / 1e9,
        base_parameters=parameters,
        base_gb=None if base_bytes is None else base_bytes / 1e9,
        adapter_mb=None if adapter_bytes is None else adapter_bytes / 1e6,
        threads=_threads(),
        machine=f"{platform.machine()}, {os.cpu_count() or 1} CPUs, {platform.system()}",
        projected=project(p99, parameters, adapter_bytes or 0, width) if parameters and width else None,
    )


def resident_bytes() -> int:
    """Resident memory of this process now; where the system doesn't tell, its highest so far."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except (OSError, ValueError, IndexError):
        import resource

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if platform.system() == "Darwin" else peak * 1024
    return pages * os.sysconf("SC_PAGE_SIZE")


def _pass(answer: Callable[[list[str]], Any], texts: Sequence[str]) -> list[float]:
    """Milliseconds of each text."""
    taken: list[float] = []
    began = time.perf_counter()
    for text in texts:
        start = time.perf_counter()
        answer([text])
        end = time.perf_counter()
        taken.append(1e3 * (end - start))
        if end - began > LONGEST_S and len(taken) >= FEWEST:
            break
    return taken


def _p(taken: Sequence[float], percent: float) -> float:
    return float(np.percentile(taken, percent))


def _weights(model: Any) -> tuple[int | None, int | None, int | None, int | None]:
    """Parameters and bytes of the base, bytes of the adapter, width of the base; None for what isn't known."""
    base, tensors = getattr(model, "base", None), getattr(model, "tensors", None)
    parameters = getattr(base, "parameters", None)
    return (
        parameters if isinstance(parameters, int) else None,
        getattr(base, "weight_bytes", None),
        sum(t.numel() * t.element_size() for t in tensors.values()) if tensors else None,
        getattr(base, "width", None),
    )


def _threads() -> int:
    import torch

    return torch.get_num_threads()
