"""Histories, not single calls: capture, resend, seal, crash, compact, reopen; against a model of lists."""

from __future__ import annotations

import shutil
import tempfile
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

import treering
from treering.capture import Recorder, recorder
from treering.store.corpus import BaseCorpus


class _Killed(BaseException):
    """Stands in for the kernel's kill: nothing in the package may catch it."""


class CorpusMachine(RuleBasedStateMachine):
    """The model: `live` and `sealed` map ids to texts; `spooled` are acknowledged and not committed yet."""

    def __init__(self) -> None:
        super().__init__()
        self.directory = tempfile.mkdtemp(prefix="treering-machine-")
        self.waiting = recorder.FLUSH_ROWS, recorder.FLUSH_AFTER_S
        recorder.FLUSH_ROWS, recorder.FLUSH_AFTER_S = 10**9, 1e9  # only explicit flushes: histories stay repeatable
        self.live: dict[str, str] = {}
        self.spooled: dict[str, str] = {}
        self.sealed: list[dict[str, str]] = []
        self.conflicts: set[tuple[str, str]] = set()
        self.pinned: list[tuple[Any, set[str]]] = []

    @initialize()
    def open(self) -> None:
        self.store = treering.open(self.directory)
        self.corpus = self.store.create("support", "labelled")
        self.recorder: Recorder = self.corpus.capture()

    def teardown(self) -> None:
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
            begun = len(corpus.snapshots()) > len(self.sealed)
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
        if not hasattr(self, "store"):
            return
        assert self._read("support@live") == self.live
        assert [s.name for s in self.corpus.snapshots()] == [f"v{i + 1}" for i in range(len(self.sealed))]
        for number, rows in enumerate(self.sealed, 1):
            assert self._read(f"support@v{number}") == rows

    @invariant()
    def a_pinned_source_keeps_its_rows(self) -> None:
        for source, ids in self.pinned:
            assert set(source.to_table(["id"]).column(0).to_pylist()) == ids

    def _read(self, ref: str) -> dict[str, str]:
        rows = self.store.load(ref).to_table(["id", "text"]).to_pylist()
        assert len({row["id"] for row in rows}) == len(rows)
        return {row["id"]: row["text"] for row in rows}


_CHECKS = [HealthCheck.too_slow, HealthCheck.data_too_large]

TestCorpusMachine = CorpusMachine.TestCase
TestCorpusMachine.settings = settings(
    max_examples=15, stateful_step_count=25, deadline=None, suppress_health_check=_CHECKS
)


@pytest.mark.slow
@pytest.mark.timeout(7200)
class TestCorpusMachineLong(CorpusMachine.TestCase):  # type: ignore[misc, name-defined]
    settings = settings(max_examples=200, stateful_step_count=75, deadline=None, suppress_health_check=_CHECKS)
