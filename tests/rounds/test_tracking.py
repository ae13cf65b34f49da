"""Trackers: MLflow and trackio for real where they are installed, and what a tracker may not do to a run."""

from __future__ import annotations

import builtins
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

import treering
from tests.rounds.test_round import config_of, grow
from tests.training.tiny import make_base
from treering.errors import UsageError
from treering.rounds.tracking import Tracker, tracked, tracker


class Recorded:
    """Keeps what it was told."""

    def __init__(self) -> None:
        self.told: list[tuple[Any, ...]] = []

    def start(self, run: str, config: Mapping[str, Any]) -> None:
        self.told.append(("start", run, dict(config)))

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self.told.append(("log", step, dict(values)))

    def finish(self, status: str) -> None:
        self.told.append(("finish", status))


def test_mlflow_gets_params_metrics_and_the_status(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    from mlflow.tracking import MlflowClient

    uri = (tmp_path / "runs").as_uri()
    with tracked(f"mlflow:{uri}#support", "support/1", {"lr": 0.1}) as log:
        log.log(0, {"loss": 2.0})
        log.log(10, {"loss": 0.5, "macro_f1/support@v1": 0.9, "odd": float("nan")})
    with pytest.raises(KeyError), tracked(f"mlflow:{uri}#support", "support/2", {}):
        raise KeyError("the round failed")
    client = MlflowClient(tracking_uri=uri)
    experiment = client.get_experiment_by_name("support")
    assert experiment is not None
    done = {run.info.run_name: run for run in client.search_runs([experiment.experiment_id])}
    assert {name: run.info.status for name, run in done.items()} == {"support/1": "FINISHED", "support/2": "FAILED"}
    run = done["support/1"]
    assert run.data.params == {"lr": "0.1"}
    assert run.data.metrics == {"loss": 0.5, "macro_f1/support_v1": 0.9}
    assert [(m.step, m.value) for m in client.get_metric_history(run.info.run_id, "loss")] == [(0, 2.0), (10, 0.5)]


def test_trackio_gets_the_run_and_stdout_stays_ours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path))
    pytest.importorskip("trackio")
    import sqlite3

    import trackio.sqlite_storage

    monkeypatch.setattr(trackio.sqlite_storage, "TRACKIO_DIR", tmp_path)
    with tracked("trackio:support", "support/1", {"lr": 0.1}) as log:
        log.log(10, {"loss": 0.5})
    assert capsys.readouterr().out == ""
    with sqlite3.connect(tmp_path / "support.db") as db:
        rows = db.execute("select * from metrics").fetchall()
    assert any("0.5" in str(row) and "support/1" in str(row) for row in rows)


def test_a_run_tells_its_tracker_and_so_does_a_round(support: treering.Corpus, tmp_path: Path) -> None:
    config = config_of(make_base(tmp_path / "base"))
    grow(support, "billing")
    support.snapshot()
    mine = Recorded()
    assert isinstance(mine, Tracker)
    settings = treering.RoundConfig.of(config).train
    run = treering.train(support.store, support.store.mix("support@v1"), settings, track=mine)
    assert mine.told[0] == ("start", f"support {run.config.strategy}", run.config.model_dump(mode="json"))
    assert mine.told[1][1] == 0
    assert mine.told[1][2]["loss"] > mine.told[2][2]["loss"]
    assert mine.told[2][1] == settings.steps
    assert mine.told[2][2]["macro_f1/support@v1"] == run.scores["support@v1"]
    assert mine.told[3:] == [("finish", "finished")]


def test_a_tracker_that_fails_costs_a_warning_and_nothing_else() -> None:
    class Broken(Recorded):
        def log(self, step: int, values: Mapping[str, float]) -> None:
            raise OSError("no route to host")

    with tracked(Broken(), "r", {}) as log:
        with pytest.warns(UserWarning, match="no route to host"):
            log.log(0, {"loss": 1.0})
        log.log(1, {"loss": 1.0})  # and nothing more


def test_what_is_no_tracker_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for bad in ("paper:notes", "mlflow", ""):
        with pytest.raises(UsageError, match="unknown tracker"):
            tracker(bad)
    with pytest.raises(UsageError, match="start, log and finish"):
        tracker(7)  # type: ignore[arg-type]
    imported = builtins.__import__

    def without(name: str, *rest: Any, **more: Any) -> Any:
        if name.startswith(("mlflow", "trackio")):
            raise ImportError(name)
        return imported(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", without)
    for kind in ("mlflow", "trackio"):
        with pytest.raises(UsageError) as caught:
            tracker(f"{kind}:x")
        assert f"treering[{kind}]" in str(caught.value.hint)
