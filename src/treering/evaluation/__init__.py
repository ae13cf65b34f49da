"""How good an adapter is on every distribution it has learnt, and whether that is good enough.

Pure but for `slices`, which reads held-out records through the store layer. Does not load adapters (registry), compose
rounds (rounds) or render pages (report).
"""

from __future__ import annotations

from .budget import Budget
from .gate import CheckedRow, GatePolicy, Verdict, check, load_policy
from .matrix import ScoreMatrix, ScoreMatrixModel
from .metrics import METRICS, Metric, accuracy, macro_f1, measure, resolve_metric
from .slices import HeldoutSlice, domain_slices, slice_of, snapshot_slices

__all__ = [
    "METRICS",
    "Budget",
    "CheckedRow",
    "GatePolicy",
    "HeldoutSlice",
    "Metric",
    "ScoreMatrix",
    "ScoreMatrixModel",
    "Verdict",
    "accuracy",
    "check",
    "domain_slices",
    "load_policy",
    "macro_f1",
    "measure",
    "resolve_metric",
    "slice_of",
    "snapshot_slices",
]
