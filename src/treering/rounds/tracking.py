"""Experiment trackers behind one small protocol: MLflow and trackio, each an extra that is imported when it is named.

A tracker is a convenience beside the registry, which knows everything already. So one that can't be reached costs a warning
and never a round.
"""

from __future__ import annotations

import math
import re
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from typing import Any, Literal, Protocol, runtime_checkable

from treering.errors import TreeringError, UsageError

__all__ = ["Finish", "MlflowTracker", "NoTracker", "Tracker", "TrackioTracker", "tracked", "tracker"]

Finish = Literal["finished", "failed"]


@runtime_checkable
class Tracker(Protocol):
    """Where figures go as a run makes them. Called in this order: start, log any number of times, finish."""

    def start(self, run: str, config: Mapping[str, Any]) -> None:
        """A run of that name begins, with these settings."""
        ...

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Figures by name, as they were at an update."""
        ...

    def finish(self, status: Finish) -> None:
        """The run is over."""
        ...


class NoTracker:
    """Tells nobody."""

    def start(self, run: str, config: Mapping[str, Any]) -> None:
        """Nothing."""

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Nothing."""

    def finish(self, status: Finish) -> None:
        """Nothing."""


class MlflowTracker:
    """Runs of an MLflow experiment, at a tracking URI: a server's, `sqlite:///runs.db` or a directory.

    The extra brings mlflow-skinny, which talks to servers and, with MLFLOW_ALLOW_FILE_STORE=true, to a directory; databases
    need mlflow itself. The experiment is "treering" unless the URI ends in `#NAME`. Raises UsageError when mlflow isn't installed.
    """

    def __init__(self, uri: str) -> None:
        try:
            import mlflow
            from mlflow.tracking import MlflowClient
        except ImportError as exc:
            raise _missing("mlflow") from exc
        place, _, experiment = uri.partition("#")
        self._version = str(mlflow.__version__)
        self._client = MlflowClient(tracking_uri=place)
        self._experiment = experiment or "treering"
        self._run = ""

    def start(self, run: str, config: Mapping[str, Any]) -> None:
        """A run with the config as its params; values longer than MLflow takes are cut."""
        found = self._client.get_experiment_by_name(self._experiment)
        number = found.experiment_id if found else self._client.create_experiment(self._experiment)
        self._run = self._client.create_run(number, run_name=run).info.run_id
        for name, value in config.items():
            self._client.log_param(self._run, _name(name), str(value)[:500])

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Metrics; names are brought into MLflow's alphabet."""
        for name, value in values.items():
            if math.isfinite(value):
                self._client.log_metric(self._run, _name(name), float(value), step=step)

    def finish(self, status: Finish) -> None:
        """FINISHED or FAILED."""
        self._client.set_terminated(self._run, {"finished": "FINISHED", "failed": "FAILED"}[status])


class TrackioTracker:
    """Runs of a trackio project, on this machine. Raises UsageError when trackio isn't installed."""

    def __init__(self, project: str) -> None:
        try:
            import trackio
        except ImportError as exc:
            raise _missing("trackio") from exc
        self._trackio: Any = trackio
        self._project = project or "treering"
        self._run: Any = None

    def start(self, run: str, config: Mapping[str, Any]) -> None:
        """A run with its config."""
        with redirect_stdout(sys.stderr):  # it talks, and stdout is for data
            self._run = self._trackio.init(
                project=self._project, name=run, config=dict(config), auto_log_cpu=False, auto_log_gpu=False
            )

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Metrics."""
        if values:
            self._run.log(dict(values), step=step)

    def finish(self, status: Finish) -> None:
        """Trackio knows no failed runs; the last figure says it."""
        self._run.log({"failed": float(status == "failed")})
        with redirect_stdout(sys.stderr):
            self._trackio.finish()  # of the current run, which is ours; its own finish would speak again at exit


_KINDS: dict[str, Callable[[str], Tracker]] = {"mlflow": MlflowTracker, "trackio": TrackioTracker}


def tracker(track: str | Tracker | None) -> Tracker:
    """The tracker of a text `mlflow:URI` or `trackio:PROJECT`; one that tells nobody for None. Raises UsageError."""
    if track is None:
        return NoTracker()
    if not isinstance(track, str):
        if isinstance(track, Tracker):
            return track
        raise UsageError(f"a tracker has start, log and finish, {track!r} hasn't", code="bad-tracker")
    kind, colon, where = track.partition(":")
    if kind not in _KINDS or not colon:
        raise UsageError(f"unknown tracker {track!r}", code="bad-tracker", hint="write mlflow:URI or trackio:PROJECT")
    return _KINDS[kind](where)


@contextmanager
def tracked(track: str | Tracker | None, run: str, config: Mapping[str, Any]) -> Iterator[Tracker]:
    """A started tracker that is finished whatever happens. What goes wrong in it becomes a warning."""
    guard = _Guard(tracker(track))
    guard.start(run, config)
    try:
        yield guard
    except BaseException:
        guard.finish("failed")
        raise
    guard.finish("finished")


class _Guard:
    """Passes calls on until one fails; then warns once and stays silent."""

    def __init__(self, inner: Tracker) -> None:
        self._inner: Tracker | None = inner

    def start(self, run: str, config: Mapping[str, Any]) -> None:
        self._call("start", run, config)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self._call("log", step, values)

    def finish(self, status: Finish) -> None:
        self._call("finish", status)

    def _call(self, name: str, *arguments: Any) -> None:
        if self._inner is None:
            return
        try:
            getattr(self._inner, name)(*arguments)
        except TreeringError:
            raise
        except Exception as exc:
            self._inner = None
            warnings.warn(f"the tracker failed and is told nothing more: {exc}", stacklevel=4)


def _name(name: str) -> str:
    """MLflow takes letters, digits and `_-. :/` in names."""
    return re.sub(r"[^0-9A-Za-z_\-. :/]", "_", name)[:250]


def _missing(package: str) -> UsageError:
    return UsageError(
        f"{package} isn't installed",
        code="missing-extra",
        hint=f"pip install 'treering[{package}]', or leave track out",
    )
