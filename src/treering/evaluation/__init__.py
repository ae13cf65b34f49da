"""How good an adapter is on every distribution it has learnt, and whether that is good enough.

Pure but for `slices`, which reads held-out records through the store layer, and `tables`, which reads files. Does not load adapters (registry), compose
rounds (rounds) or render pages (report).
"""

from __future__ import annotations

from .budget import Budget
from .diagnosis import Diagnosis, DomainFacts, Finding, Growth, ProbedSlice, Projection, RoundFacts
from .gate import CheckedRow, GatePolicy, Verdict, check, load_policy
from .matrix import ScoreMatrix, ScoreMatrixModel
from .metrics import (
    METRICS,
    Answers,
    Metric,
    MetricLike,
    Uniform,
    accuracy,
    better_of,
    log_loss,
    macro_f1,
    measure,
    resolve_metric,
    score_answers,
    tool_call_match,
)
from .predictions import Predictions
from .probe import LinearProbe, fit_probe
from .slices import HeldoutSlice, domain_slices, extra_slices, file_slice, slice_of, snapshot_slices
from .summary import Spread, Summary, summarise

__all__ = [
    "METRICS",
    "Answers",
    "Budget",
    "CheckedRow",
    "Diagnosis",
    "DomainFacts",
    "Finding",
    "GatePolicy",
    "Growth",
    "HeldoutSlice",
    "LinearProbe",
    "Metric",
    "MetricLike",
    "Predictions",
    "ProbedSlice",
    "Projection",
    "RoundFacts",
    "ScoreMatrix",
    "ScoreMatrixModel",
    "Spread",
    "Summary",
    "Uniform",
    "Verdict",
    "accuracy",
    "better_of",
    "check",
    "domain_slices",
    "extra_slices",
    "file_slice",
    "fit_probe",
    "load_policy",
    "log_loss",
    "macro_f1",
    "measure",
    "resolve_metric",
    "score_answers",
    "slice_of",
    "snapshot_slices",
    "summarise",
    "tool_call_match",
]
