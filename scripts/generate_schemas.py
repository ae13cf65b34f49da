"""Write `schemas/` from the code: JSON Schema and Arrow schema of every record type, JSON Schema of every document.

`python scripts/generate_schemas.py` writes what is out of date; with `--check` it names that and exits 1.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from treering.evaluation import Diagnosis, GatePolicy, ScoreMatrixModel, Summary, Verdict
from treering.evaluation.predictions import PredictionsModel
from treering.mixing import MixLock
from treering.registry import AdapterEvent, CanaryLook, StoredAdapter, StoredScore
from treering.report import ReportData
from treering.rounds import Audit, Diff, Evaluation, RoundConfig, RoundPolicy, RoundResult, Status
from treering.rounds.documents import Notified, RoundPlan, RoundStep
from treering.schema import BUILT_IN, RecordType
from treering.schema.interchange import schema_to_json
from treering.server.keys import Revocation, StoredKey
from treering.store.documents import (
    BundleManifest,
    Certificate,
    CorpusRecord,
    ErasedFound,
    EraseReceipt,
    ErasureRecord,
    HeldoutRecord,
    ImportPosition,
    PruneRecord,
    SchemaVersion,
    SelectionRecord,
    SnapshotRecord,
    StoreMarker,
    UnpackIntent,
)
from treering.training.card import ModelCard
from treering.training.chat.card import ChatCard

SCHEMAS = Path(__file__).parents[1] / "schemas"
DOCUMENTS = {
    "adapter": StoredAdapter,
    "adapter-event": AdapterEvent,
    "audit": Audit,
    "bundle": BundleManifest,
    "canary": CanaryLook,
    "certificate": Certificate,
    "chat-card": ChatCard,
    "corpus": CorpusRecord,
    "corpus-schema": SchemaVersion,
    "diagnosis": Diagnosis,
    "diff": Diff,
    "erase-receipt": EraseReceipt,
    "erasure": ErasureRecord,
    "erasure-found": ErasedFound,
    "evaluation": Evaluation,
    "gate-policy": GatePolicy,
    "heldout": HeldoutRecord,
    "import-position": ImportPosition,
    "key": StoredKey,
    "key-revoked": Revocation,
    "mix-lock": MixLock,
    "model-card": ModelCard,
    "predictions": PredictionsModel,
    "prune": PruneRecord,
    "report": ReportData,
    "round": RoundResult,
    "round-config": RoundConfig,
    "round-notified": Notified,
    "round-plan": RoundPlan,
    "round-policy": RoundPolicy,
    "round-step": RoundStep,
    "score": StoredScore,
    "score-matrix": ScoreMatrixModel,
    "selection": SelectionRecord,
    "snapshot": SnapshotRecord,
    "status": Status,
    "store": StoreMarker,
    "summary": Summary,
    "unpack-intent": UnpackIntent,
    "verdict": Verdict,
}


def generate() -> dict[str, dict[str, Any]]:
    """File name → content. A released `*.v1.*` never changes; a change is a `*.v2.*`."""
    files: dict[str, dict[str, Any]] = {}
    for name in BUILT_IN:
        record_type = RecordType.of(name)
        files[f"{name}.v1.schema.json"] = record_type.json_schema()
        files[f"{name}.v1.arrow.json"] = schema_to_json(record_type.schema)
    for name, model in DOCUMENTS.items():
        files[f"{name}.v1.schema.json"] = model.model_json_schema()
    return files


def main(arguments: list[str]) -> int:
    """See the module's text."""
    files = {name: json.dumps(content, indent=2, sort_keys=True) + "\n" for name, content in generate().items()}
    found = {path.name: path.read_text() for path in SCHEMAS.glob("*.json")}
    stale = sorted(name for name in files.keys() | found.keys() if files.get(name) != found.get(name))
    if "--check" in arguments:
        for name in stale:
            print(f"schemas/{name} is out of date: run scripts/generate_schemas.py", file=sys.stderr)
        return 1 if stale else 0
    SCHEMAS.mkdir(exist_ok=True)
    for name in stale:
        if name in files:
            (SCHEMAS / name).write_text(files[name])
        else:
            (SCHEMAS / name).unlink()
        print(f"schemas/{name}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
