"""Whatever a power cut leaves of a real run: nothing that was acknowledged is lost, and the store opens by itself."""

from __future__ import annotations

import random
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

import treering
from treering.store import table, witness

from . import power
from .power_worker import SCENES, record


@pytest.fixture(scope="module", autouse=True)
def recorder() -> None:
    if why := power.can_trace():
        pytest.skip(f"NO POWER CUT IS TESTED: {why}")


def check(store: treering.Store, said: list[dict[str, Any]]) -> None:
    """The store holds what had been acknowledged, each record once and as it was sent, and goes on."""
    corpus = store.corpus("support")
    assert corpus.quarantine() == []  # which commits what dead processes left in their spools
    refs = ["support@live", *(snapshot.ref for snapshot in corpus.snapshots())]
    rows = [row for ref in refs for row in store.load(ref).to_table(["id", "text"]).to_pylist()]
    counts = Counter(row["id"] for row in rows)
    assert [i for i, n in counts.items() if n > 1] == []
    assert {i for line in said for i in line.get("captured", [])} - set(counts) == set()
    assert [row for row in rows if row["text"] != record(row["id"])["text"]] == []
    sealed = {snapshot.name: snapshot for snapshot in corpus.snapshots()}
    for line in said:
        if "sealed" in line:
            assert sealed[line["sealed"]].rows == line["rows"]
        if "certified" in line:
            assert sealed[line["certified"]].digest == line["digest"]
        if "annotated" in line:
            assert line["annotated"] in corpus.annotations()["id"].to_pylist()
    assert [str(finding) for one in store.verify() for finding in one.findings] == []
    with corpus.capture() as live:
        live.add(record("new"))
    assert corpus.snapshot() is not None
    assert [r for r in store.doctor().remarks if r.level != "note" and r.code != "little-space"] == []


def crash_everywhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scene: str, states: int, seed: int
) -> Counter[str]:
    where = tmp_path / "store"
    treering.open(where).create("support", "labelled")
    before = tmp_path / "before"
    shutil.copytree(where, before)
    power.record(where, scene, tmp_path / "trace")
    calls = list(power.calls(tmp_path / "trace"))
    # A first pass finds the instants at which anything changes; states are taken at some of them.
    disk = power.Disk(before, where)
    instants = []
    for number, call in enumerate(calls):
        disk.do(call)
        if disk.changed:
            instants.append(number)
    assert any("ended" in line for line in disk.said)
    after = disk.root
    assert {p.relative_to(where).as_posix() for p in where.rglob("*.manifest")} == set(names(after, ".manifest"))
    choose = random.Random(seed)
    chosen = Counter(choose.choices(instants, k=states))
    for module in (witness, table):  # the machine was started again
        monkeypatch.setattr(module, "boot_id", lambda: "the next boot")
    modes: Counter[str] = Counter()
    disk = power.Disk(before, where)
    for number, call in enumerate(calls):
        disk.do(call)
        for _ in range(chosen[number]):
            mode = choose.choice(power.MODES)
            modes[mode] += 1
            state = tmp_path / "state"
            disk.crash(state, mode, choose)
            try:
                check(treering.open(state, create=False), disk.said)
            except BaseException as exc:
                exc.add_note(
                    f"after call {number} of {len(calls)} ({call.name} {call.arguments[:1]}), {mode}, seed {seed}"
                )
                raise
            shutil.rmtree(state)
    return modes


def names(directory: power.Directory, suffix: str, prefix: str = "") -> list[str]:
    found = []
    for name, target in directory.names.items():
        if isinstance(target, power.Directory):
            found += names(target, suffix, f"{prefix}{name}/")
        elif name.endswith(suffix):
            found.append(prefix + name)
    return found


@pytest.mark.parametrize("scene", ["capture", "seal", "maintain"])
def test_after_a_power_cut_nothing_acknowledged_is_lost_and_the_store_opens(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scene: str
) -> None:
    modes = crash_everywhere(tmp_path, monkeypatch, scene, 20, seed=1)
    assert sum(modes.values()) == 20


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("scene", SCENES)
def test_500_power_cuts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scene: str) -> None:
    modes = crash_everywhere(tmp_path, monkeypatch, scene, 125, seed=2)
    assert set(modes) == set(power.MODES)
