"""A round is killed wherever it can be; the next call ends as an unbroken one would have. Real processes, SIGKILL."""

from __future__ import annotations

import multiprocessing
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import treering
from tests.rounds import round_worker
from tests.rounds.test_round import config_of, grow
from tests.training.tiny import make_base
from treering.registry import Registry

KILLED = -9
Run = Callable[..., tuple[int | None, Any]]


@pytest.fixture(scope="module")
def run() -> Run:
    """Runs a round in a fresh process, forked from one that has imported torch and opened no store."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.rounds.round_worker"])

    def once(store: Path, config: dict[str, Any], point: str = "-") -> tuple[int | None, Any]:
        told = context.Queue()
        process = context.Process(target=round_worker.run, args=(str(store), config, point, told))
        process.start()
        process.join(120)
        return process.exitcode, None if process.exitcode == KILLED else told.get(timeout=10)

    return once


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return config_of(make_base(tmp_path_factory.mktemp("base")))


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory, run: Run, config: dict[str, Any]) -> Path:
    """A store after its first round, with new records in live."""
    path = tmp_path_factory.mktemp("begun") / "store"
    corpus = treering.open(path).create("support", "labelled")
    grow(corpus, "billing")
    assert run(path, config)[1][0] == "promoted"
    grow(corpus, "shipping")
    return path


@pytest.fixture(scope="module")
def unbroken(begun: Path, run: Run, config: dict[str, Any]) -> tuple[dict[str, Any], int]:
    """What a round comes to that nobody kills, and how many objects it creates."""
    path = begun.with_name("unbroken")
    shutil.copytree(begun, path)
    code, (outcome, created) = run(path, config)
    assert (code, outcome) == (0, "promoted")
    return state(path), created


def state(path: Path) -> dict[str, Any]:
    """All that a round changes: snapshots, adapters, events, production, runs."""
    store = treering.open(path)
    registry = Registry(store, "support")
    return {
        "snapshots": [(s.ref, s.rows, s.digest, s.message) for s in store.corpus("support").snapshots()],
        "live": store.corpus("support").live_rows(),
        "adapters": [
            (a.ref, a.digest, a.parent, a.run, a.status, a.trained_on, a.scores, a.lock_digest, a.verdict is not None)
            for a in registry.adapters()
        ],
        "events": [(e.number, e.event, e.adapter, e.previous, e.baseline) for e in registry.events()],
        "folders": sorted({p.split("/")[2] for p in store.objects.list("adapters/support")}),
        "runs": [path for path in store.objects.list("runs") if "notified" not in path],
    }


def broken(begun: Path, run: Run, config: dict[str, Any], *points: str) -> dict[str, Any]:
    """The state after a round that was killed at each of these points in turn, and then left alone."""
    path = begun.with_name("-".join(points).replace(":", "_"))
    shutil.copytree(begun, path)
    for point in points:
        code, _ = run(path, config, point)
        assert code in (KILLED, 0)
    code, told = run(path, config)
    # The round may have been through but for its last word; then there was nothing left to do.
    assert code == 0, told
    found = state(path)
    shutil.rmtree(path)
    return found


def test_killed_again_and_again_it_ends_as_if_it_never_was(
    begun: Path, run: Run, config: dict[str, Any], unbroken: tuple[dict[str, Any], int]
) -> None:
    expected, created = unbroken
    assert broken(begun, run, config, "before:2", *["after:6"] * (created // 6)) == expected


def test_of_two_rounds_at_once_one_gets_a_conflict(begun: Path, run: Run, config: dict[str, Any]) -> None:
    path = begun.with_name("twice")
    shutil.copytree(begun, path)
    before = state(path)
    with treering.open(path).lease("round-support"):
        assert run(path, config) == (5, ("round-running", 0))
    assert state(path) == before


@pytest.mark.slow
@pytest.mark.timeout(1_800)
def test_killed_around_every_single_object_and_at_any_moment_it_ends_the_same(
    begun: Path, run: Run, config: dict[str, Any], unbroken: tuple[dict[str, Any], int]
) -> None:
    expected, created = unbroken
    moments = random.Random(7)
    points = [f"{when}:{number}" for number in range(1, created + 1) for when in ("before", "after")]
    points += [f"late:{moments.uniform(0.05, 1.5):.3f}" for _ in range(40)]
    for point in points:
        assert broken(begun, run, config, point) == expected, point
