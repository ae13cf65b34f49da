"""A round over one store: look, train, evaluate, gate. Each function composes the layers to the left; none holds state.

Functions are bound here when the package is imported, so that `rounds.evaluate` is the function and not the module.
"""

from __future__ import annotations

from treering.evaluation.audit import Audit
from treering.evaluation.diagnosis import Diagnosis
from treering.evaluation.due import RoundPolicy
from treering.rounds.audit import audit
from treering.rounds.diagnose import diagnose
from treering.rounds.diff import Diff, diff
from treering.rounds.documents import RoundConfig, RoundResult
from treering.rounds.driver import past_rounds, round  # noqa: A004
from treering.rounds.evaluate import Evaluation, Model, each_snapshot, evaluate, gate, load_adapter, score_matrix
from treering.rounds.export import Exported, export_adapter
from treering.rounds.external import add_external
from treering.rounds.features import Features, cache_features
from treering.rounds.label import ToLabel, to_label
from treering.rounds.serving import Served
from treering.rounds.status import Status, status
from treering.rounds.train import Run, train

__all__ = [
    "Audit",
    "Diagnosis",
    "Diff",
    "Evaluation",
    "Exported",
    "Features",
    "Model",
    "RoundConfig",
    "RoundPolicy",
    "RoundResult",
    "Run",
    "Served",
    "Status",
    "ToLabel",
    "add_external",
    "audit",
    "cache_features",
    "diagnose",
    "diff",
    "each_snapshot",
    "evaluate",
    "export_adapter",
    "gate",
    "load_adapter",
    "past_rounds",
    "round",
    "score_matrix",
    "status",
    "to_label",
    "train",
]
