"""Pruning: a snapshot's bytes come back, its name and digest stay, nothing dangles, and no late retry slips in."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import lance
import pytest

import treering
from treering.capture import recorder
from treering.errors import CheckFailedError, ConflictError, NotFoundError, StoreError, UsageError
from treering.registry import Registry, training_data
from treering.registry import prune as registry_prune
from treering.store import prune as pruning
from treering.store.corpus import BaseCorpus
from treering.store.heldout import find_heldout, keep_heldout_without
from treering.store.snapshot import finish_pending, list_records


@pytest.fixture(autouse=True)
def no_margin(monkeypatch: pytest.MonkeyPatch) -> None:
    """Versions of live that are a moment old may go: nobody else is at them here."""
    monkeypatch.setattr(pruning, "MARGIN_S", 0.0)


def records(prefix: str, rows: int, **fields: Any) -> list[dict[str, Any]]:
    text = "some text that takes a little room, said by one user to another " * 4
    return [{"id": f"{prefix}-{n}", "text": f"{prefix} {n} {text}", "label": "l", **fields} for n in range(rows)]


def seal(corpus: treering.Corpus, prefix: str, rows: int = 200, **fields: Any) -> treering.Snapshot:
    with corpus.capture() as live:
        live.extend(records(prefix, rows, **fields))
    snapshot = corpus.snapshot()
    assert snapshot is not None
    return snapshot


def filled(corpus: treering.Corpus, count: int = 3) -> list[treering.Snapshot]:
    return [seal(corpus, chr(ord("a") + n)) for n in range(count)]


def bytes_of_tables(store: treering.Store) -> int:
    assert store.root is not None
    return sum(path.stat().st_size for path in (store.root / "tables").rglob("*") if path.is_file())


def ids(source: treering.Source) -> set[str]:
    return set(source.to_table(["id"]).column(0).to_pylist())


def train(store: treering.Store, *refs: str, production: bool = False, **fields: Any) -> str:
    """An adapter that says it was trained on these, with the lock it would have been trained from."""
    from tests.registry.test_registry import verdict

    lock = store.mix(*refs).lock(4)
    trained_on, rows = training_data(source.pin.model_dump(mode="json") for source in lock.sources)
    registry = Registry(store, "support")
    added = registry.add(
        weights=os.urandom(8),
        card={"labels": ["a"]},
        lock=lock.to_json().encode(),
        lock_digest=lock.digest,
        trained_on=trained_on,
        trained_rows=rows,
        **fields,
    )
    if production:
        state = registry.state()
        verdict(registry, added.ref, baseline=f"support:{state.production}" if state.production else None)
        registry.promote(added.ref)
    return added.ref


# --- what it takes, and doing it --------------------------------------------------------------------------------


def test_a_dry_run_changes_nothing_and_says_what_would_be_freed_and_who_would_miss_it(
    store: treering.Store, support: treering.Corpus
) -> None:
    filled(support)
    adapter = train(store, "support@v1")
    before = bytes_of_tables(store)
    report = support.prune(keep=1)
    assert [one.ref for one in report.snapshots] == ["support@v1", "support@v2"]
    assert (report.dry_run, report.kept, report.freed) == (True, ["support@v3"], None)
    assert [one.adapters for one in report.snapshots] == [[adapter], []]
    assert report.snapshots[0].locks == [Registry(store, "support").get(adapter).lock_digest]
    assert [one.rows for one in report.snapshots] == [200, 200]
    assert all(one.bytes > 5_000 for one in report.snapshots)
    assert bytes_of_tables(store) == before
    assert len(support.snapshots()) == 3


def test_what_the_plan_says_is_what_the_disk_gets_back(store: treering.Store, support: treering.Corpus) -> None:
    filled(support)
    support.clean_up(older_than_s=0)
    before = bytes_of_tables(store)
    report = support.prune(keep=1, dry_run=False)
    assert report.freed is not None
    got = before - bytes_of_tables(store)
    assert report.bytes <= report.freed <= got <= report.bytes + 2 * 40_000  # and a transaction file each, and the tags
    assert [s.name for s in support.snapshots()] == ["v3"]
    assert ids(store.load("support@v3")) == {f"c-{n}" for n in range(200)}


def test_a_pruned_snapshot_says_when_and_by_what_rule_and_its_name_stays_taken(
    store: treering.Store, support: treering.Corpus
) -> None:
    digest = filled(support)[0].digest
    support.prune(keep=2, dry_run=False)
    for text in ("support@v1", "support@v1..v3"):
        with pytest.raises(NotFoundError, match=r"support@v1 was pruned on \d{4}-\d\d-\d\d .*keep 2") as caught:
            store.load(text)
        assert caught.value.code == "pruned"
    assert [s.ref for s in support.snapshots()] == ["support@v2", "support@v3"]
    assert [(p.ref, p.digest, p.rows) for p in support.pruned()] == [("support@v1", digest, 200)]
    assert {segment.name for segment in store.load("support@new").segments} == {"v2", "v3", "live"}
    with pytest.raises(ValueError, match="not found"):
        lance.dataset(support.uri, version="v1")
    assert seal(support, "d").name == "v4"
    assert support.prune(keep=3, dry_run=False).snapshots == []
    support.prune(keep=0, dry_run=False)  # the newest one too
    assert ids(store.load("support@live")) == set()
    assert seal(support, "e").name == "v5"
    assert ids(store.load("support@v5")) == {f"e-{n}" for n in range(200)}


def test_a_lock_and_a_source_on_a_pruned_snapshot_say_so(store: treering.Store, support: treering.Corpus) -> None:
    filled(support)
    source = store.load("support@v1")
    lock = store.mix("support@v1", "support@v2").lock(8)
    pinned = store.load("support@v2")
    support.prune(keep=2, dry_run=False)
    with pytest.raises(NotFoundError, match="support@v1 was pruned"):
        lock.loader(store)
    with pytest.raises(NotFoundError, match="support@v1 was pruned"):
        source.to_table()
    assert len(pinned.to_table()) == 200


def test_a_source_that_was_live_when_its_rows_were_sealed_and_pruned_says_so(
    store: treering.Store, support: treering.Corpus
) -> None:
    with support.capture() as live:
        live.extend(records("a", 50))
    source = store.live("support")
    assert len(source.to_table()) == 50
    support.snapshot()
    support.prune(keep=0, dry_run=False)
    with pytest.raises(NotFoundError, match="support@v1 was pruned"):
        source.to_table()


def test_cached_columns_of_pruned_snapshots_are_dropped(store: treering.Store, support: treering.Corpus) -> None:
    filled(support, 2)
    for ref in ("support@v1", "support@v2"):
        store.cache.build(store.load(ref), ["text"])
    assert len(store.cache.entries()) == 2
    support.prune(keep=1, dry_run=False)
    assert [entry.ref for entry in store.cache.entries()] == ["support@v2"]


# --- rules ------------------------------------------------------------------------------------------------------


def test_snapshots_that_a_neighbour_prunes_while_they_are_looked_at_are_looked_at_no_more(
    store: treering.Store, support: treering.Corpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    filled(support)
    first = next(iter(ids(store.load("support@v1"))))
    support.erase(ids=[first])  # v1 lies on a branch of its own now, which goes with it
    neighbour = treering.open(store.uri).corpus("support")
    look = registry_prune.bytes_of
    refs = []

    def late(corpus: BaseCorpus, chosen: Any) -> dict[str, int]:
        if not refs:
            refs.append("")
            neighbour.prune(keep=2, dry_run=False)
        refs[0] += ",".join(record.name for record in chosen) + ";"
        return look(corpus, chosen)

    monkeypatch.setattr(registry_prune, "bytes_of", late)
    support = treering.open(store.uri).corpus("support")
    report = support.prune(keep=1, dry_run=False)
    assert refs == ["v1;v1,v2;v2;"]  # the neighbour's look, then ours, twice
    assert [one.ref for one in report.snapshots] == ["support@v2"]
    monkeypatch.setattr(registry_prune, "bytes_of", lambda *_: (_ for _ in ()).throw(StoreError("a disk that is ill")))
    with pytest.raises(StoreError, match="a disk that is ill"):
        support.prune(keep=0)


def test_one_rule_at_a_time(support: treering.Corpus) -> None:
    for wrong in ({}, {"keep": 1, "older_than": 3}, {"keep": -1}, {"keep": True}, {"older_than": -1}, {"keep": 1.5}):
        with pytest.raises(UsageError):
            support.prune(**wrong)


def test_ages_come_from_the_store_and_not_from_a_host_whose_clock_is_wrong(
    store: treering.Store, support: treering.Corpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    filled(support, 2)
    # A sealer whose clock stands at 1990: its record says so, the store's own stamp doesn't.
    record = list_records(support)[0]
    path = Path(store.root or "") / record.path()
    stamp = path.stat()
    path.write_bytes(record.model_copy(update={"created_at": datetime(1990, 1, 1, tzinfo=UTC)}).to_json())
    os.utime(path, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    assert support.prune(older_than=30).snapshots == []
    assert [one.ref for one in support.prune(older_than=timedelta(0)).snapshots] == ["support@v1", "support@v2"]
    old = stamp.st_mtime - 91 * 86_400
    os.utime(path, (old, old))
    assert [one.ref for one in support.prune(older_than=90).snapshots] == ["support@v1"]
    # A host's clock that runs ahead by a year makes nothing older.
    monkeypatch.setattr(pruning, "datetime", _Ahead)
    assert [one.ref for one in support.prune(older_than=90).snapshots] == ["support@v1"]


class _Ahead(datetime):
    @classmethod
    def now(cls, tz: Any = None) -> datetime:  # type: ignore[override]
        return datetime.now(tz) + timedelta(days=365)


def test_uninformative_needs_rounds_and_goes_by_held_out_scores_of_one_lineage(
    store: treering.Store, support: treering.Corpus
) -> None:
    filled(support, 3)
    with pytest.raises(CheckFailedError, match="takes its held-out scores after 3 rounds") as caught:
        support.prune(uninformative=True)
    assert caught.value.code == "too-few-rounds"
    parent = None
    rounds = [
        ("support@v1", {"support@v1": 0.70}),
        ("support@v2", {"support@v1": 0.91, "support@v2": 0.50}),
        ("support@v3", {"support@v1": 0.915, "support@v2": 0.60, "support@v3": 0.8}),
        ("support@v3", {"support@v1": 0.914, "support@v2": 0.75, "support@v3": 0.8}),
    ]
    for ref, scores in rounds:
        parent = train(store, ref, parent=parent, scores=scores)
    report = support.prune(uninformative=True)
    assert [one.ref for one in report.snapshots] == ["support@v1"]  # v2 still moves, v3 was scored twice
    assert any("support@v3" in note and "2 of 3" in note for note in report.notes)


# --- who needs it -----------------------------------------------------------------------------------------------


def test_what_production_or_its_ancestors_were_trained_on_is_pruned_by_force_alone(
    store: treering.Store, support: treering.Corpus
) -> None:
    filled(support, 3)
    first = train(store, "support@v1")
    train(store, "support@v2")
    last = train(store, "support@v3", parent=first, production=True)
    report = support.prune(keep=0)
    assert report.blocked == ["support@v1", "support@v3"]
    assert [one.needed_by for one in report.snapshots] == [[first], [], [last]]
    with pytest.raises(CheckFailedError, match="support@v1 is needed by support:1") as caught:
        support.prune(keep=1, dry_run=False)
    assert caught.value.code == "snapshot-needed"
    assert len(support.snapshots()) == 3
    support.prune(keep=1, dry_run=False, force=True)
    assert [s.name for s in support.snapshots()] == ["v3"]
    assert [p.why for p in support.pruned()] == ["keep 1 by force"] * 2


# --- late retries -----------------------------------------------------------------------------------------------


def test_a_late_retry_of_a_pruned_record_is_still_a_duplicate_and_no_new_record_is_taken_for_one(
    store: treering.Store, support: treering.Corpus
) -> None:
    filled(support, 2)
    support.prune(keep=1, dry_run=False)
    again = treering.open(store.uri, create=False).corpus("support")
    with again.capture() as live:
        live.extend([*records("a", 200), *records("b", 200), *records("n", 300)])
        live.flush()
        assert (live.counts.stored, live.counts.duplicates) == (300, 400)
    assert ids(store.load("support@live")) == {f"n-{n}" for n in range(300)}
    assert again.quarantine() == []
    with pytest.raises(NotFoundError, match="a-1"):
        again.annotate("a-1", label="x")


def test_what_was_acknowledged_before_a_prune_is_compared_with_what_it_takes_away(
    support: treering.Corpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recorder, "FLUSH_AFTER_S", 1e9)
    filled(support, 1)
    with support.capture() as live:
        live.extend([{"id": "a-1", "text": "something else", "label": "l"}])
        support.prune(keep=0, dry_run=False)
        live.flush()
        assert live.counts.conflicts == 1
    assert [one.record["id"] for one in support.quarantine()] == ["a-1"]


def test_no_false_positive_of_the_id_filter_drops_a_record(
    store: treering.Store, support: treering.Corpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    from treering.capture import commit

    class Everything:
        def may_hold(self, ids: list[str]) -> list[bool]:
            return [True] * len(ids)

    filled(support, 1)
    support.prune(keep=0, dry_run=False)
    monkeypatch.setattr(commit.FILTERS, "of", lambda *_: Everything())
    with support.capture() as live:
        live.extend([*records("n", 100), *records("a", 5)])
        live.flush()
        assert (live.counts.stored, live.counts.duplicates) == (100, 5)


def test_hashes_of_pruned_ids_that_were_changed_are_refused(store: treering.Store, support: treering.Corpus) -> None:
    filled(support, 1)
    support.prune(keep=0, dry_run=False)
    path = Path(store.root or "") / support.pruned()[0].ids
    path.write_bytes(bytes([path.read_bytes()[0] ^ 1]) + path.read_bytes()[1:])
    with support.capture() as live:
        live.extend(records("a", 1))
        with pytest.raises(StoreError, match=r"pruned\.1\.ids"):
            live.flush()
        path.write_bytes(bytes([path.read_bytes()[0] ^ 1]) + path.read_bytes()[1:])


# --- held-out records -------------------------------------------------------------------------------------------


def test_kept_held_out_records_are_the_same_ones_and_nothing_else_is_readable(
    store: treering.Store, support: treering.Corpus
) -> None:
    filled(support, 2)
    support.annotate("a-0", exclude=True)
    heldout = store.load("support@v1").heldout()
    table, count = heldout.to_table(), len(heldout)
    assert 5 < count < 60
    support.prune(keep=1, dry_run=False, keep_heldout=True)
    kept = store.heldout("support@v1")
    assert len(kept) == count
    assert kept.to_table().equals(table)
    assert kept.pin()["segments"] == heldout.pin()["segments"]
    assert treering.Source.from_pin(store, heldout.pin()).to_table().equals(table)
    assert len(store.heldout("support@v1..v2")) == count + len(store.heldout("support@v2"))
    with pytest.raises(NotFoundError, match=r"store\.heldout"):
        store.load("support@v1")
    for segment in kept.segments:
        with pytest.raises(NotFoundError, match="was pruned"):
            segment.runs("train")
        with pytest.raises(NotFoundError, match="was pruned"):
            list(segment.scan(["id"]))
    with pytest.raises(UsageError, match="no training rows"):
        store.mix(kept)


def test_without_keeping_them_held_out_records_are_gone_too(store: treering.Store, support: treering.Corpus) -> None:
    filled(support, 1)
    support.prune(keep=0, dry_run=False)
    with pytest.raises(NotFoundError, match="was pruned"):
        store.heldout("support@v1")


def test_kept_records_are_read_as_later_schema_versions_say(store: treering.Store, support: treering.Corpus) -> None:
    import pyarrow as pa

    seal(support, "a")
    support.prune(keep=0, dry_run=False, keep_heldout=True)
    support.evolve(
        pa.schema([("body", pa.string()), ("label", pa.string()), ("stars", pa.int64())]),
        renames={"text": "body"},
        defaults={"stars": 3},
    )
    rows = store.heldout("support@v1").to_table(["id", "body", "stars"]).to_pylist()
    assert rows
    assert all(row["body"].startswith(row["id"].replace("-", " ")) and row["stars"] == 3 for row in rows)


def test_kept_records_that_were_changed_are_refused(store: treering.Store, support: treering.Corpus) -> None:
    seal(support, "a")
    support.prune(keep=0, dry_run=False, keep_heldout=True)
    kept = find_heldout(support, support.pruned()[0])
    assert kept is not None
    path = Path(store.root or "") / kept.parts[0].path
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(bytes(data))
    with pytest.raises(StoreError, match="isn't what was kept"):
        store.heldout("support@v1").to_table()


def test_records_can_be_taken_out_of_what_was_kept(store: treering.Store, support: treering.Corpus) -> None:
    import numpy as np

    seal(support, "a")
    support.prune(keep=0, dry_run=False, keep_heldout=True)
    record = list_records(support)[0]
    before = store.heldout("support@v1").to_table(["id"]).column(0).to_pylist()
    victim = before[3]
    made = keep_heldout_without(support, record, lambda b: np.array([i == victim for i in b.column("id").to_pylist()]))
    assert made is not None
    assert made.edition == 2
    assert store.heldout("support@v1").to_table(["id"]).column(0).to_pylist() == [i for i in before if i != victim]
    with support.lease():
        finish_pending(support)
    text = b"".join(p.read_bytes() for p in (Path(store.root or "") / "snapshots").rglob("heldout.*"))
    assert victim.encode() not in text
    assert [p.name for p in (Path(store.root or "") / "snapshots").rglob("heldout.*.json")] == ["heldout.2.json"]


# --- verify and doctor ------------------------------------------------------------------------------------------


def test_verify_and_doctor_take_a_pruned_snapshot_for_what_it_is(
    store: treering.Store, support: treering.Corpus
) -> None:
    filled(support, 2)
    for snapshot in support.snapshots():
        assert snapshot.digest
    support.prune(keep=1, dry_run=False, keep_heldout=True)
    heldout = len(store.heldout("support@v1"))
    checked = {one.ref: one for one in store.verify()}
    assert all(one.ok for one in checked.values())
    assert (checked["support@v1"].rows, checked["support@v2"].rows) == (heldout, 200)
    diagnosis = store.doctor()
    assert [remark for remark in diagnosis.remarks if remark.level != "note"] == []
    kept = find_heldout(support, support.pruned()[0])
    assert kept is not None
    for damaged in (kept.parts[0].path, support.pruned()[0].ids):
        path = Path(store.root or "") / damaged
        data = path.read_bytes()
        path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
        fresh = treering.open(store.uri, create=False)
        (found,) = fresh.verify("support@v1")
        assert not found.ok
        path.write_bytes(data)
    support.prune(keep=0, dry_run=False)
    assert all(one.ok for one in store.verify())
    assert store.doctor().ok


# --- crashes and races ------------------------------------------------------------------------------------------


class Killed(BaseException):
    """Stands in for the kernel's kill: nothing in the package may catch it. tests/crash kills real processes."""


STEPS = ["after-prune-ids", "after-prune-heldout", "before-prune", "after-prune", "after-untag", "after-prune-cleanup"]


@pytest.mark.parametrize("step", STEPS)
def test_a_prune_that_is_killed_at_any_step_is_as_if_it_hadnt_begun_or_is_completed(
    store: treering.Store, support: treering.Corpus, step: str
) -> None:
    filled(support, 2)

    def die(corpus: BaseCorpus, name: str) -> None:
        if name == step:
            raise Killed

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(BaseCorpus, "step", die)
        with pytest.raises(Killed):
            support.prune(keep=1, dry_run=False, keep_heldout=True)
    begun = STEPS.index(step) >= STEPS.index("after-prune")
    assert [s.name for s in support.snapshots()] == (["v2"] if begun else ["v1", "v2"])
    if not begun:
        assert ids(store.load("support@v1")) == {f"a-{n}" for n in range(200)}
    else:
        assert len(store.heldout("support@v1")) > 5
    support.clean_up(older_than_s=0)  # whoever maintains the corpus next
    left = [p.name for p in (Path(store.root or "") / "snapshots").rglob("*") if p.name.startswith(("pruned", "held"))]
    if begun:
        assert support.table.tags() == ["v2"]
        assert bytes_of_tables(store) < 200_000
        assert {"pruned.json", "pruned.1.ids", "heldout.1.json"} <= set(left)
    else:
        assert support.table.tags() == ["v1", "v2"]
        assert left == []
        assert ids(store.load("support@v1")) == {f"a-{n}" for n in range(200)}
    report = support.prune(keep=1, dry_run=False, keep_heldout=True)
    assert [one.ref for one in report.snapshots] == ([] if begun else ["support@v1"])


def prune_behind_the_listing(
    reader: BaseCorpus, pruner: treering.Corpus, monkeypatch: pytest.MonkeyPatch
) -> list[bool]:
    """Once it is armed (True in the list), the reader's next listing of snapshots is older than a prune: files are gone."""
    from treering.capture import commit

    real, armed = commit.listed, [False]

    def stale(corpus: BaseCorpus) -> Any:
        found = real(corpus)
        if armed[0] and corpus is reader:
            armed[0] = False
            pruner.prune(keep=1, dry_run=False)
        return found

    monkeypatch.setattr(commit, "listed", stale)
    # Whoever prunes meanwhile is another process: it can't wait for the spool of this one.
    monkeypatch.setattr(registry_prune, "flush_spools", lambda corpus: 0)
    return armed


def test_a_commit_that_meets_a_prune_half_way_still_knows_its_ids(
    store: treering.Store, support: treering.Corpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    filled(support, 2)
    other = treering.open(store.uri, create=False).corpus("support")
    armed = prune_behind_the_listing(other, support, monkeypatch)
    with other.capture() as live:
        armed[0] = True
        live.extend([*records("a", 20), *records("n", 5)])
        live.flush()
        assert (live.counts.stored, live.counts.duplicates) == (5, 20)


def test_a_retry_of_one_record_that_meets_a_prune_half_way_is_stored_once(
    store: treering.Store, support: treering.Corpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = treering.open(store.uri, create=False).corpus("support")
    armed = prune_behind_the_listing(other, support, monkeypatch)
    (record,) = records("a", 1)
    with other.capture() as live:
        live.add(record)
        live.flush()
        support.snapshot()
        seal(support, "b")
        armed[0] = True
        live.add(record)  # the recorder remembers its id, and asks what is stored under it
        live.flush()
        assert not armed[0]
        assert (live.counts.stored, live.counts.duplicates) == (1, 1)


def race(store: treering.Store, rounds: int) -> None:
    """One process seals, one prunes, this one captures, in as many rounds of all three at once."""
    corpus = store.corpus("support")
    roles = {
        "snapshotter": "c.snapshot()",
        "pruner": "c.prune(keep=random.randint(1, 2), dry_run=False, keep_heldout=random.random() < 0.3)",
    }
    code = (
        "import random, sys, time, treering\n"
        "from treering.store import prune\n"
        "prune.MARGIN_S = 0.0\n"
        "c = treering.open(sys.argv[1]).corpus('support')\n"
        "print('ready', flush=True)\n"
        "for line in sys.stdin:\n"
        "    time.sleep(random.uniform(0, 0.004))\n"
        "    {what}\n"
        "    print('done', flush=True)\n"
    )
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", code.format(what=what), store.uri],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            bufsize=1,
        )
        for what in roles.values()
    ]
    captured: set[str] = set()
    try:
        for process in processes:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
        with corpus.capture() as live:
            for number in range(rounds):
                for process in processes:
                    assert process.stdin is not None
                    process.stdin.write("go\n")
                new = [f"r{number}-{n}" for n in range(random.randint(1, 8))]
                live.extend([{"id": i, "text": "t", "label": "l"} for i in new])
                live.flush()
                captured |= set(new)
                for process in processes:
                    assert process.stdout is not None
                    assert process.stdout.readline() == "done\n"
                if number % 20 == 0:
                    nothing_dangles(store)
    finally:
        for process in processes:
            process.communicate("", timeout=60)
    nothing_dangles(store)
    where = [ids(store.load(s.ref)) for s in corpus.snapshots()] + [ids(store.load("support@live"))]
    assert sum(map(len, where)) + sum(p.rows for p in corpus.pruned()) == len(captured)
    present = set().union(*where)
    gone = captured - present
    assert present <= captured
    known = set()
    for pruned in corpus.pruned():
        known |= pruning.pruned_ids(corpus, pruned, sorted(captured))
    assert known == gone
    assert len(corpus.pruned()) > rounds // 4


def nothing_dangles(store: treering.Store) -> None:
    corpus = store.corpus("support")
    with corpus.lease():
        finish_pending(corpus)
        names = [s.name for s in corpus.snapshots()]
        assert sorted(corpus.table.tags()) == sorted(names)
        for snapshot in corpus.snapshots():
            assert lance.dataset(corpus.uri, version=snapshot.name).to_table().num_rows == snapshot.rows
        assert [record.number for record in list_records(corpus)] == list(range(1, len(list_records(corpus)) + 1))


def test_snapshots_and_prunes_at_once_leave_nothing_dangling(store: treering.Store, support: treering.Corpus) -> None:
    race(store, 40)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_a_thousand_snapshots_and_prunes_at_once_leave_nothing_dangling(
    store: treering.Store, support: treering.Corpus
) -> None:
    race(store, 1_000)


def test_a_lease_that_was_lost_stops_a_prune_before_it_is_said(
    store: treering.Store, support: treering.Corpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    from treering.store.lease import Lease

    filled(support, 2)

    def lost(self: Lease) -> None:
        raise ConflictError("the lease was lost", code="lease-lost")

    monkeypatch.setattr(Lease, "check", lost)
    with pytest.raises(ConflictError, match="lost"):
        support.prune(keep=1, dry_run=False)
    assert [s.name for s in support.snapshots()] == ["v1", "v2"]


@pytest.mark.parametrize("step", ["after-prune-ids", "after-prune"])
def test_a_prune_of_an_erased_snapshot_that_is_cut_short_leaves_all_of_it_or_nothing(
    store: treering.Store, support: treering.Corpus, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    """An erased snapshot lies on a branch: it stays whole until it is pruned, and goes with it."""

    class Killed(BaseException):
        pass

    filled(support, 2)
    gone = store.load("support@v1").to_table(["id"]).column(0).to_pylist()[0]
    support.erase(ids=[gone])
    before = store.load("support@v1").to_table()

    def die(corpus: Any, name: str) -> None:
        if name == step:
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(type(support), "step", die)
        with pytest.raises(Killed):
            support.prune(keep=1, dry_run=False)
    support.compact()  # whoever maintains the corpus next forgets the prune, or completes it
    if step == "after-prune-ids":
        assert store.load("support@v1").to_table().equals(before)
        assert all(found.ok for found in store.verify())
        support.prune(keep=1, dry_run=False)
    assert [s.name for s in support.snapshots()] == ["v2"]
    assert support.table.branches() == []
    assert all(found.ok for found in store.verify())
