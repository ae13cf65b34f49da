"""treering: a versioned dataset store and replay loader for continual fine-tuning.

Live data grows on the outside; a snapshot seals what has grown; training draws from many snapshots and from live at once.
Importing this package does no work: torch and Lance are imported by the first call that needs them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from treering.client import Client
    from treering.errors import (
        AlreadyExistsError,
        CheckFailedError,
        ConflictError,
        InvalidRecordError,
        NotFoundError,
        Problem,
        StoreError,
        TreeringError,
        UsageError,
    )
    from treering.evaluation import GatePolicy, Metric, ScoreMatrix, Verdict
    from treering.evaluation.audit import Audit
    from treering.evaluation.diagnosis import Diagnosis
    from treering.evaluation.due import RoundPolicy
    from treering.front import Corpus, Store, open  # noqa: A004
    from treering.mixing import Loader, Mix, MixLock, ReplayController, Schedule, mix, streams
    from treering.mixing.export import ExportSummary
    from treering.registry.trace import lineage
    from treering.rounds.audit import audit
    from treering.rounds.diagnose import diagnose
    from treering.rounds.diff import Diff, diff
    from treering.rounds.documents import RoundConfig, RoundResult
    from treering.rounds.driver import round  # noqa: A004
    from treering.rounds.evaluate import evaluate, gate, load_adapter, score_matrix
    from treering.rounds.features import cache_features
    from treering.rounds.status import Status, status
    from treering.rounds.train import Run, train
    from treering.store import EraseReceipt, Snapshot, Source
    from treering.training import TrainConfig

__version__ = "0.1.0"

_HOMES = {
    "AlreadyExistsError": "errors",
    "Audit": "rounds",
    "CheckFailedError": "errors",
    "Client": "client",
    "ConflictError": "errors",
    "Corpus": "front",
    "Diagnosis": "rounds",
    "Diff": "rounds",
    "EraseReceipt": "store",
    "ExportSummary": "mixing.export",
    "GatePolicy": "evaluation",
    "InvalidRecordError": "errors",
    "Loader": "mixing",
    "Metric": "evaluation",
    "Mix": "mixing",
    "MixLock": "mixing",
    "NotFoundError": "errors",
    "Problem": "errors",
    "ReplayController": "mixing",
    "RoundConfig": "rounds",
    "RoundPolicy": "rounds",
    "RoundResult": "rounds",
    "Run": "rounds",
    "Schedule": "mixing",
    "ScoreMatrix": "evaluation",
    "Snapshot": "store",
    "Source": "store",
    "Status": "rounds",
    "Store": "front",
    "StoreError": "errors",
    "TrainConfig": "training",
    "TreeringError": "errors",
    "UsageError": "errors",
    "Verdict": "evaluation",
    "audit": "rounds",
    "cache_features": "rounds",
    "diagnose": "rounds",
    "diff": "rounds",
    "evaluate": "rounds",
    "gate": "rounds",
    "lineage": "registry.trace",
    "load_adapter": "rounds",
    "mix": "mixing",
    "open": "front",
    "round": "rounds",
    "score_matrix": "rounds",
    "status": "rounds",
    "streams": "mixing",
    "train": "rounds",
}

__all__ = [
    "AlreadyExistsError",
    "Audit",
    "CheckFailedError",
    "Client",
    "ConflictError",
    "Corpus",
    "Diagnosis",
    "Diff",
    "EraseReceipt",
    "ExportSummary",
    "GatePolicy",
    "InvalidRecordError",
    "Loader",
    "Metric",
    "Mix",
    "MixLock",
    "NotFoundError",
    "Problem",
    "ReplayController",
    "RoundConfig",
    "RoundPolicy",
    "RoundResult",
    "Run",
    "Schedule",
    "ScoreMatrix",
    "Snapshot",
    "Source",
    "Status",
    "Store",
    "StoreError",
    "TrainConfig",
    "TreeringError",
    "UsageError",
    "Verdict",
    "audit",
    "cache_features",
    "diagnose",
    "diff",
    "evaluate",
    "gate",
    "lineage",
    "load_adapter",
    "mix",
    "open",
    "round",
    "score_matrix",
    "status",
    "streams",
    "train",
]


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    value = getattr(import_module(f"{__name__}.{home}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
