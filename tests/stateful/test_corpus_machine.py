"""Histories, not single calls: capture, resend, seal, crash, compact, correct, prune, erase, mix, resume, reopen; against a
model of lists.
"""

from __future__ import annotations

import shutil
import tempfile
from itertools import islice
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

import treering
from treering.capture import Recorder, recorder
from treering.store.corpus import BaseCorpus
from treering.store.snapshot import list_records


class _Killed(BaseException):
    """Stands in for the kernel's kill: nothing in the package may catch it."""


class CorpusMachine(RuleBasedStateMachine):
    """The model: `live` and `sealed` map ids to texts; `spooled` are acknowledged and not committed yet.

    `pruned` are numbers of snapshots; what they held is known by its ids alone. `erased` ids never come back.
    """

    most_workers = 1  # processes that make batches
    look_every = 1  # steps after which everything is read and compared: that takes most of a step's time

    def __init__(self) -> None:
        super().__init__()
        self.steps = 0
        self.directory = tempfile.mkdtemp(prefix="treering-machine-")
        self.waiting = recorder.FLUSH_ROWS, recorder.FLUSH_AFTER_S
        recorder.FLUSH_ROWS, recorder.FLUSH_AFTER_S = 10**9, 1e9  # only explicit flushes: histories stay repeatable
        self.live: dict[str, str] = {}
        self.spooled: dict[str, str] = {}
        self.sealed: list[dict[str, str]] = []
        self.conflicts: set[tuple[str, str]] = set()
        self.pinned: list[tuple[Any, set[str]]] = []
        self.pruned: set[int] = set()
        self.gone: set[str] = set()
        self.erased: set[str] = set()
        self.corrected: dict[str, str] = {}

    @initialize()
    def open(self) -> None:
        self.store = treering.open(self.directory)
        self.corpus = self.store.create("support", "labelled")
        self.recorder: Recorder = self.corpus.capture()

    def teardown(self) -> None:
        try:
            self._compare()
        finally:
            if hasattr(self, "recorder"):
                self.recorder.close()
            recorder.FLUSH_ROWS, recorder.FLUSH_AFTER_S = self.waiting
            shutil.rmtree(self.directory)

    def _known(self) -> dict[str, str]:
        return {k: v for place in (self.live, self.spooled, *self.sealed) for k, v in place.items()}

    @rule(numbers=st.lists(st.integers(0, 40), min_size=1, max_size=12), text=st.sampled_from("xy"))
    def extend(self, numbers: list[int], text: str) -> None:
        """Some ids are new, some are resent, some come with other content, some twice in one batch."""
        self.recorder.extend([{"id": f"r{n}", "text": text, "label": "l"} for n in numbers])
        known = self._known()
        for n in numbers:
            record_id = f"r{n}"
            if record_id in self.erased | self.gone:
                continue  # dropped, or a late retry of what was pruned
            if record_id not in known:
                known[record_id] = self.spooled[record_id] = text
            elif known[record_id] != text:
                self.conflicts.add((record_id, text))

    def _flushed(self) -> None:
        self.live.update(self.spooled)
        self.spooled = {}

    @rule()
    def flush(self) -> None:
        self.recorder.flush()
        self._flushed()

    @rule()
    def snapshot(self) -> None:
        snapshot = self.corpus.snapshot()
        self._flushed()
        if self.live:
            assert snapshot is not None
            assert snapshot.name == f"v{len(self.sealed) + 1}"
            self.sealed.append(self.live)
            self.live = {}
        else:
            assert snapshot is None

    @rule(step=st.sampled_from(["before-durable", "before-record", "after-record", "after-tag", "after-drop"]))
    def snapshot_cut_short(self, step: str) -> None:
        def die(corpus: BaseCorpus, name: str) -> None:
            # A seal first finishes the one before it; this kill is meant for the seal itself.
            begun = len(list_records(corpus)) > len(self.sealed)
            if name == step and (begun or step.startswith("before")):
                raise _Killed

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(BaseCorpus, "step", die)
            try:
                self.corpus.snapshot()
            except _Killed:
                died = True
            else:
                died = False
        self._flushed()
        # The record is the commit point: what is cut short after it is a snapshot, whatever else is left to do.
        if self.live and (not died or step in ("after-record", "after-tag", "after-drop")):
            self.sealed.append(self.live)
            self.live = {}

    @rule()
    def compact(self) -> None:
        self.corpus.compact()

    @rule()
    def clean_up(self) -> None:
        self.corpus.clean_up(older_than_s=0)

    @rule()
    def certify(self) -> None:
        for snapshot in self.corpus.snapshots():
            assert snapshot.certificate.rows == snapshot.rows

    @precondition(lambda self: self.live or self.sealed)
    @rule(data=st.data())
    def correct(self, data: st.DataObject) -> None:
        there = sorted(self._known().keys() - self.spooled.keys())
        if there:
            record_id = data.draw(st.sampled_from(there))
            self.corpus.annotate(record_id, correction={"text": "right"})
            self.corrected[record_id] = "right"
            self.pinned.clear()  # they say what was right when they were pinned; only their ids are compared here

    @precondition(lambda self: len(self.sealed) > len(self.pruned))
    @rule(keep=st.integers(0, 2))
    def prune(self, keep: int) -> None:
        self.corpus.prune(keep=keep, dry_run=False)
        standing = [n for n in range(1, len(self.sealed) + 1) if n not in self.pruned]
        if len(standing) > keep:
            self._flushed()
        for number in standing[: len(standing) - keep]:
            self.pruned.add(number)
            self.gone |= self.sealed[number - 1].keys()
            self.sealed[number - 1] = {}
        self.pinned.clear()

    @rule(numbers=st.lists(st.integers(0, 40), min_size=1, max_size=4))
    def erase(self, numbers: list[int]) -> None:
        ids = {f"r{n}" for n in numbers}
        self.corpus.erase(ids=sorted(ids))
        self._flushed()
        for place in (self.live, *self.sealed, self.corrected):
            for record_id in ids:
                place.pop(record_id, None)
        self.conflicts = {one for one in self.conflicts if one[0] not in ids}
        self.erased |= ids
        self.pinned.clear()

    @rule(stop=st.integers(0, 5), workers=st.sampled_from([0, 0, 0, 0, 0, 0, 0, 1]))
    def mix_and_resume(self, stop: int, workers: int) -> None:
        refs = ["support@live", *(f"support@v{n}" for n in range(1, len(self.sealed) + 1) if n not in self.pruned)]
        sources = [self.store.load(ref) for ref in refs]
        sources = [s for s in sources if "train" in s.to_table(["split"]).column(0).to_pylist()]
        if not sources:
            return
        mixed = treering.mix(*sources, seed=3)

        def run(state: dict[str, Any] | None, most: int, workers: int = 0) -> tuple[list[list[str]], dict[str, Any]]:
            with mixed.loader(4, columns=["id", "text"], num_workers=workers) as loader:
                if state is not None:
                    loader.load_state_dict(state)
                found = []
                for batch in islice(loader, most):
                    found.append(batch["id"])
                    for record_id, text in zip(batch["id"], batch["text"], strict=True):
                        assert text == self._seen()[record_id]
                return found, loader.state_dict()

        whole, _ = run(None, 12)
        head, state = run(None, stop)
        rest, _ = run(state, 12 - stop, min(workers, self.most_workers))
        assert head + rest == whole

    @rule()
    def reopen(self) -> None:
        self.recorder.close()
        self._flushed()
        assert {(q.record["id"], q.record["text"]) for q in self.corpus.quarantine()} == self.conflicts
        self.store = treering.open(self.directory, create=False)
        self.corpus = self.store.corpus("support")
        self.recorder = self.corpus.capture()

    @precondition(lambda self: len(self.pinned) < 3)
    @rule()
    def pin_live(self) -> None:
        self.pinned.append((self.store.live("support"), set(self.live)))

    @invariant()
    def every_record_is_where_the_model_says(self) -> None:
        self.steps += 1
        if self.steps % self.look_every == 0:
            self._compare()

    def _compare(self) -> None:
        if not hasattr(self, "store"):
            return
        assert self._read("support@live") == self._as_delivered(self.live)
        standing = [n for n in range(1, len(self.sealed) + 1) if n not in self.pruned]
        assert [s.name for s in self.corpus.snapshots()] == [f"v{n}" for n in standing]
        for number in standing:
            assert self._read(f"support@v{number}") == self._as_delivered(self.sealed[number - 1])
        for source, ids in self.pinned:
            assert set(source.to_table(["id"]).column(0).to_pylist()) == ids

    def _as_delivered(self, rows: dict[str, str]) -> dict[str, str]:
        return {record_id: self.corrected.get(record_id, text) for record_id, text in rows.items()}

    def _seen(self) -> dict[str, str]:
        return self._as_delivered(self._known())

    def _read(self, ref: str) -> dict[str, str]:
        rows = self.store.load(ref).to_table(["id", "text"]).to_pylist()
        assert len({row["id"] for row in rows}) == len(rows)
        return {row["id"]: row["text"] for row in rows}


_CHECKS = [HealthCheck.too_slow, HealthCheck.data_too_large]

TestCorpusMachine = CorpusMachine.TestCase
TestCorpusMachine.settings = settings(
    max_examples=20, stateful_step_count=30, deadline=None, suppress_health_check=_CHECKS
)


@pytest.mark.slow
@pytest.mark.timeout(7200)
class TestCorpusMachineLong(CorpusMachine.TestCase):  # type: ignore[misc, name-defined]
    settings = settings(max_examples=200, stateful_step_count=75, deadline=None, suppress_health_check=_CHECKS)


class SeldomComparedMachine(CorpusMachine):
    """Compared after every eighth step and at the end: what is lost, doubled or changed stays so until then.

    Batches are made here: starting a process for them takes as long as a hundred steps, and the other forms do it.
    """

    look_every = 8
    most_workers = 0


@pytest.mark.slow
@pytest.mark.timeout(12 * 3600)
@pytest.mark.parametrize("piece", range(8))
def test_a_thousand_histories_of_500_steps(piece: int) -> None:
    """In pieces for several cores, without waiting for a disk: `TMPDIR=/dev/shm pytest -m slow -n2 tests/stateful -k thousand`."""
    run_state_machine_as_test(
        SeldomComparedMachine,
        settings=settings(
            max_examples=125, stateful_step_count=500, deadline=None, suppress_health_check=_CHECKS, database=None
        ),
    )
