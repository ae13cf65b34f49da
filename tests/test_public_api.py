from __future__ import annotations

import subprocess
import sys

import treering

EXPECTED = [
    "AlreadyExistsError", "Audit", "CheckFailedError", "Client", "ConflictError", "Corpus", "Diagnosis", "Diff", "EraseReceipt", "ExportSummary", "GatePolicy",
    "InvalidRecordError", "Loader", "Metric", "Mix", "MixLock", "NotFoundError", "Problem", "ReplayController", "RoundConfig",
    "RoundPolicy", "RoundResult", "Run", "Schedule", "ScoreMatrix", "Snapshot", "Source", "Status", "Store", "StoreError", "TrainConfig",
    "TreeringError", "UsageError", "Verdict", "audit", "cache_features", "diagnose", "diff", "evaluate", "gate", "lineage", "load_adapter", "mix",
    "open", "round", "score_matrix", "status", "streams", "train",
]  # fmt: skip  # growing this list is a review topic


def test_the_front_door_has_these_names_in_order() -> None:
    assert treering.__all__ == sorted(EXPECTED)
    for name in treering.__all__:
        assert getattr(treering, name) is not None


def test_importing_treering_imports_nothing_heavy() -> None:
    code = (
        "import sys, treering\n"
        "heavy = {'torch', 'lance', 'lancedb', 'pyarrow', 'numpy', 'pydantic', 'typer', 'rich'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_errors_say_what_the_caller_should_do() -> None:
    tree = {cls.__name__: cls for cls in (treering.UsageError, treering.NotFoundError, treering.ConflictError)}
    assert all(issubclass(cls, treering.TreeringError) for cls in tree.values())
    assert issubclass(treering.NotFoundError, LookupError)
    assert issubclass(treering.InvalidRecordError, ValueError)
    codes = {"UsageError": 2, "CheckFailedError": 3, "NotFoundError": 4, "ConflictError": 5, "StoreError": 6}
    assert {name: getattr(treering, name).exit_code for name in codes} == codes
