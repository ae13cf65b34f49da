"""PURE. What an adapter costs to serve, and what the same would cost over a larger base.

Where the lines come from: Hei, "Trained on 52 Product Domains, the Earlier 51 All Regressed" (2026): edge deployment at
p99 ≤ 100 ms and ≤ 16 GB. Holds figures, never takes them (rounds).
"""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

__all__ = ["MAX_MEMORY_GB", "MAX_P99_MS", "PROJECTED_PARAMETERS", "Budget", "Projected", "project"]

MAX_P99_MS = 100.0
MAX_MEMORY_GB = 16.0
PROJECTED_PARAMETERS = 7_000_000_000
_PROJECTED_BYTES = 2  # bf16, as such a base is served
_PROJECTED_WIDTH = 4_096  # of the hidden states of a 7B base

Positive = Annotated[float, Field(ge=0.0, allow_inf_nan=False)]


class _Document(BaseModel):
    model_config = ConfigDict(strict=True, frozen=True, extra="forbid")


class Projected(_Document):
    """What isn't measured: the same adapter over a larger base on the same machine. `formula` says how it was reckoned."""

    base_parameters: int = Field(ge=1)
    p99_ms: Positive
    memory_gb: Positive
    formula: str


class Budget(_Document):
    """What serving took on this machine, one text at a time after a warm-up; 1 GB is 10⁹ bytes."""

    texts: int = Field(ge=1, description="held-out texts that were predicted one by one, the warm-up left out")
    passes: int = Field(ge=1, description="how often; of each text the quickest answer counts")
    p50_ms: Positive
    p99_ms: Positive
    memory_gb: Positive = Field(
        description="resident memory of the process that measured, so an upper bound of what serving alone takes"
    )
    base_parameters: int | None = Field(description="null for a model that isn't ours")
    base_gb: Positive | None = Field(description="weights of the base as loaded")
    adapter_mb: Positive | None = Field(description="weights of the adapter, 10⁶ bytes")
    threads: int = Field(ge=1)
    machine: str
    projected: Projected | None = Field(default=None, description="a projection, not a measurement")


def project(p99_ms: float, base_parameters: int, adapter_bytes: int, width: int) -> Projected:
    """What a 7B base would take on the same machine, from what a base of `base_parameters` and `width` took.

    Time is that of multiplying with every weight once a token, so it grows with the parameters; memory is bf16 weights,
    plus the adapter, whose matrices grow with the width.
    """
    times = PROJECTED_PARAMETERS / base_parameters
    wider = _PROJECTED_WIDTH / width
    adapter_gb = adapter_bytes * wider / 1e9
    return Projected(
        base_parameters=PROJECTED_PARAMETERS,
        p99_ms=p99_ms * times,
        memory_gb=PROJECTED_PARAMETERS * _PROJECTED_BYTES / 1e9 + adapter_gb,
        formula=(
            f"p99 = {p99_ms:.3g} ms × 7·10⁹ / {base_parameters:,} parameters; memory = 7·10⁹ × {_PROJECTED_BYTES} bytes "
            f"(bf16) + the adapter's {adapter_bytes / 1e6:.3g} MB × {_PROJECTED_WIDTH:,} / {width:,} of width"
        ),
    )
