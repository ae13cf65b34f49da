"""Erased is gone: everywhere below the store, for good, and nothing else with it."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

import lance
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import treering
from tests.erasing import SCHEMA, contents, files_with, keep_text_plain, record, tree, without
from treering.capture import recorder as recorder_module
from treering.errors import ConflictError, InvalidRecordError, StoreError, UsageError
from treering.store import erase as erase_module
from treering.store.corpus import BaseCorpus
from treering.store.denylist import Denylist, Hashes, KeyedHash, denylist
from treering.store.snapshot import list_records

WHO = "canary-4711@example.org"
OTHERS = ["ann", "bob", "cy", "dora"]


class Killed(BaseException):
    """Stands in for the kernel's kill: nothing in the package may catch it."""


@pytest.fixture
def corpus(store: treering.Store, monkeypatch: pytest.MonkeyPatch) -> treering.Corpus:
    keep_text_plain(monkeypatch)
    return store.create("support", SCHEMA, heldout=0.2)


def fill(corpus: treering.Corpus, *subjects: str, start: int = 0, rows: int = 12) -> None:
    """`rows` records of each subject, in turn."""
    with corpus.capture() as live:
        live.extend([record(start + n, subject) for n in range(rows) for subject in subjects])


def sealed(corpus: treering.Corpus) -> None:
    """v1 and v3 and live hold records of WHO, v2 doesn't."""
    fill(corpus, WHO, *OTHERS)
    assert corpus.snapshot()
    fill(corpus, *OTHERS, start=100)
    assert corpus.snapshot()
    fill(corpus, *OTHERS, WHO, start=200)
    assert corpus.snapshot()
    fill(corpus, WHO, *OTHERS, start=300, rows=3)


def mentioned(store: treering.Store) -> list[str]:
    assert store.root is not None
    return files_with(store.root, WHO)


# --- what goes and what stays --------------------------------------------------------------------------------------


def test_nothing_of_a_subject_is_left_below_the_store_and_every_other_record_is_as_it_was(
    store: treering.Store, corpus: treering.Corpus
) -> None:
    sealed(corpus)
    corpus.annotate(f"{WHO}-1", label="other", note=f"{WHO} said so", by="human", exclude=True)
    corpus.annotate("ann-1", label="other")
    with corpus.capture() as live:
        for odd in (
            {"id": "x1", "subject": WHO, "text": 5},
            {"id": f"{WHO}-2", "subject": "ann", "text": 5},
            {"id": "x2", "text": "fine", "extra": {"deep": [{"who": WHO}]}},
            {"id": "x3", "text": "fine", "extra": json.dumps({"subject": WHO})},
            {"id": "x4", "subject": "ann", "text": 5},
        ):
            with pytest.raises(InvalidRecordError):
                live.add(odd)
        live.refuse(f'{{"id": "x5", "subject": "{WHO}", "text": ', [], "file:7")
    corpus.quarantine()
    store.load("support@v1").where(subject=[WHO, "ann"]).select(rows=5, name="chosen")
    store.load("support@v3").select(rows=5, strategy="diverse", name="diverse")
    store.load("support@v3").select(rows=5, strategy="balanced", name="balanced")
    loader = store.mix("support@v1", "support@v3").loader(batch_size=16, columns=["text", "label"])
    store.cache.build(store.load("support@v1"), ["text", "label"])
    list(loader)
    (store.cache_dir / "activations" / "base").mkdir(parents=True)
    (store.cache_dir / "activations" / "base" / "block.safetensors").write_bytes(b"made of " + WHO.encode())
    for snapshot in corpus.snapshots():
        assert snapshot.certificate
    before, digests = contents(store), {s.name: s.digest for s in corpus.snapshots()}
    found = mentioned(store)
    # The search would find it: in data, index, quarantine, certificate, selection and cache.
    for place in (
        "/data/",
        "quarantine/",
        "certificate.json",
        "selections/",
        "cache/columns",
        "activations",
        ".annotations.lance",
    ):
        assert any(place in path for path in found), place

    receipt = corpus.erase(where={"subject": WHO}, reason="request 12")

    assert mentioned(store) == []
    assert contents(store) == without(before, WHO)
    after = {s.name: s.digest for s in corpus.snapshots()}
    assert after["v2"] == digests["v2"]
    assert [(s.name, s.digest_before, s.digest_after) for s in receipt.snapshots] == [
        (name, digests[name], after[name]) for name in ("v1", "v3")
    ]
    assert receipt.records == {"v1": 12, "v3": 12, "live": 3}
    assert (receipt.annotations, receipt.quarantined, receipt.selections) == (2, 5, 3)
    assert [q.record["id"] for q in corpus.quarantine()] == ["x4"]
    assert corpus.annotations().column("id").to_pylist() == ["ann-1"]
    assert corpus.erasures() == [receipt]
    assert len(store.load("support/chosen")) <= 5
    assert [entry.domain for entry in corpus.selections()[2].report.domains if entry.domain.startswith("domain ann")]


def test_a_snapshot_without_an_affected_record_keeps_every_byte(store: treering.Store, corpus: treering.Corpus) -> None:
    sealed(corpus)
    assert store.root is not None
    v2 = corpus.snapshots()[1]
    files = dict(v2.certificate.files)
    objects = tree(store.root / "snapshots" / corpus.record.table / "v2")
    corpus.erase(where={"subject": WHO})
    assert {path: corpus.table.file_sha256(path) for path in files} == files
    assert tree(store.root / "snapshots" / corpus.record.table / "v2") == objects
    assert corpus.snapshots()[1].record == v2.record


def test_records_are_erased_by_id_and_no_others(store: treering.Store, corpus: treering.Corpus) -> None:
    sealed(corpus)
    before = contents(store)
    ids = {"ann-0", "bob-101", f"{WHO}-300"}
    receipt = corpus.erase(ids=[*ids, "nobody"])
    assert contents(store) == {name: [r for r in rows if r["id"] not in ids] for name, rows in before.items()}
    assert receipt.records == {"v1": 1, "v2": 1, "live": 1}
    assert files_with(store.root, "ann-0\0", "bob-101", f"{WHO}-300") == []  # type: ignore[arg-type]
    assert corpus.capture().add(record(0, "ann")).status == "erased"


def test_an_id_that_was_never_there_is_denied_all_the_same(corpus: treering.Corpus) -> None:
    receipt = corpus.erase(ids=["ghost"])
    assert receipt.records == {}
    with corpus.capture() as live:
        assert live.add(record(0, "x", id="ghost")).status == "erased"


def test_erasing_again_goes_on_from_the_edition_before(store: treering.Store, corpus: treering.Corpus) -> None:
    sealed(corpus)
    before = contents(store)
    corpus.erase(where={"subject": WHO})
    corpus.erase(where={"subject": ["ann", "bob"]})
    corpus.erase(ids=["cy-0"])
    left = without(before, WHO, "ann", "bob")
    assert contents(store) == {name: [r for r in rows if r["id"] != "cy-0"] for name, rows in left.items()}
    assert files_with(store.root, WHO, "by ann", "by bob") == []  # type: ignore[arg-type]
    assert [record.edition for record in list_records(corpus)] == [4, 2, 3]
    assert [receipt.number for receipt in corpus.erasures()] == [1, 2, 3]


def test_a_snapshot_all_of_whose_records_were_erased_stays_as_an_empty_one(
    store: treering.Store, corpus: treering.Corpus
) -> None:
    fill(corpus, WHO)
    corpus.snapshot()
    fill(corpus, "ann")
    corpus.erase(where={"subject": WHO})
    (snapshot,) = corpus.snapshots()
    assert (snapshot.name, snapshot.rows, len(store.load("support@v1"))) == ("v1", 0, 0)
    sealed_next = corpus.snapshot()
    assert sealed_next is not None
    assert (sealed_next.name, sealed_next.parent, sealed_next.rows) == ("v2", "v1", 12)
    assert mentioned(store) == []
    with pytest.raises(UsageError, match="no training rows"):
        store.mix("support@v1")


def test_sealing_goes_on_by_the_boundary_on_the_main_branch(store: treering.Store, corpus: treering.Corpus) -> None:
    fill(corpus, WHO, *OTHERS)
    corpus.snapshot()
    corpus.erase(where={"subject": WHO})
    for start in (100, 200):  # more commits on the main branch than the other branch has versions, and fewer
        fill(corpus, *OTHERS, start=start)
    assert len(store.live("support")) == 96
    snapshot = corpus.snapshot()
    assert snapshot is not None
    assert snapshot.rows == 96
    assert len(store.live("support")) == 0
    assert [len(rows) for rows in contents(store).values()] == [48, 96, 0]


def test_plain_lance_opens_the_newest_edition_by_its_tag(store: treering.Store, corpus: treering.Corpus) -> None:
    sealed(corpus)
    corpus.erase(where={"subject": WHO})
    for snapshot in corpus.snapshots():
        plain = lance.dataset(snapshot.uri, version=snapshot.name).to_table(columns=["id"]).column(0).to_pylist()
        assert plain == store.load(snapshot.ref).to_table(["id"]).column(0).to_pylist()


def test_a_store_that_was_moved_still_holds_its_erased_snapshots(
    store: treering.Store, corpus: treering.Corpus
) -> None:
    """The engine's branches name files of another by absolute paths: a copy would read the original's, or none."""
    for start, subjects in ((0, OTHERS), (100, [WHO, *OTHERS]), (200, OTHERS)):  # a fragment each; one holds WHO
        fill(corpus, *subjects, start=start)
    corpus.snapshot()
    corpus.erase(where={"subject": WHO})
    before = contents(store)
    assert store.root is not None
    moved = store.root.with_name("moved")
    shutil.move(store.root, moved)
    there = treering.open(moved, create=False)
    assert contents(there) == before
    there.corpus("support").erase(where={"subject": "ann"})
    assert contents(there) == without(before, "ann")
    assert files_with(moved, WHO, "by ann") == []


def test_the_index_of_a_snapshot_names_no_record_of_an_earlier_one(
    store: treering.Store, corpus: treering.Corpus
) -> None:
    fill(corpus, WHO, *OTHERS)
    corpus.compact()  # brings the ids into the index
    corpus.snapshot()
    fill(corpus, *OTHERS, start=100)
    corpus.snapshot()
    assert all(WHO not in path for path in mentioned(store) if "_indices" in path)
    low, _ = list_records(corpus)[1].row_ids
    held = [
        ids.min() for ids in corpus.table.indexed_row_ids(corpus.table.at(list_records(corpus)[1].version)) if len(ids)
    ]
    assert all(first >= low for first in held)


def test_an_index_that_names_erased_records_is_made_anew_and_the_digest_stays(
    store: treering.Store, corpus: treering.Corpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A store from before finishing a seal cleared the index: there, a later snapshot's index names earlier ids."""
    monkeypatch.setattr("treering.store.table.LanceTable.index_names_gone", lambda self, dataset: False)
    fill(corpus, WHO, *OTHERS)
    corpus.compact()
    corpus.snapshot()
    fill(corpus, *OTHERS, start=100)
    v2 = corpus.snapshot()
    assert v2 is not None
    digest = v2.digest
    receipt = corpus.erase(where={"subject": WHO})
    assert mentioned(store) == []
    assert [(s.name, s.digest_before == s.digest_after) for s in receipt.snapshots] == [("v1", False), ("v2", True)]
    assert corpus.snapshots()[1].digest == digest
    assert len(store.load("support@v2")) == 48


def test_what_a_killed_writer_left_in_the_table_goes_too(store: treering.Store, corpus: treering.Corpus) -> None:
    sealed(corpus)
    assert store.root is not None
    table = store.root / "tables" / f"{corpus.record.table}.lance"
    some = next((table / "data").iterdir())
    shutil.copy(some, table / "data" / "0000000000000000000000000000.lance")
    (table / "data" / ".tmp-cut-short").write_bytes(WHO.encode())
    corpus.erase(where={"subject": WHO})
    assert mentioned(store) == []


def test_trimmed_bytes_leave_the_spools_of_this_host(store: treering.Store, corpus: treering.Corpus) -> None:
    with corpus.capture() as mine:
        mine.extend([record(n, WHO) for n in range(50)])
        mine._spool._writer.execute("PRAGMA wal_checkpoint(TRUNCATE)")  # as SQLite does on its own after some megabytes
        mine._spool._reader.execute("PRAGMA secure_delete=OFF")  # as many builds of it have it
        mine.flush()
        assert any(path.endswith(".sqlite") for path in mentioned(store))
        corpus.erase(where={"subject": WHO})
        assert mentioned(store) == []


def test_no_predicate_transaction_receipt_or_error_names_anybody(
    store: treering.Store, corpus: treering.Corpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    sealed(corpus)
    deleted: list[str] = []
    before = lance.LanceDataset.delete

    def watched(self: Any, predicate: Any, *args: Any, **kwargs: Any) -> Any:
        deleted.append(str(predicate))
        return before(self, predicate, *args, **kwargs)

    monkeypatch.setattr(lance.LanceDataset, "delete", watched)
    receipt = corpus.erase(where={"subject": WHO})
    assert deleted
    assert not any(WHO in predicate or "text" in predicate for predicate in deleted)
    assert WHO not in receipt.model_dump_json()
    for reason in (f"asked by {WHO}", WHO):
        with pytest.raises(UsageError, match="names what is to be erased") as raised:
            corpus.erase(where={"subject": WHO}, reason=reason)
        assert WHO not in str(raised.value)


@pytest.mark.parametrize(
    "wrong",
    [
        {},
        {"ids": []},
        {"ids": "u42"},
        {"ids": [""]},
        {"ids": [7]},
        {"where": {}},
        {"where": {"domain": "billing"}},
        {"where": {"subject": ""}},
        {"where": {"subject": []}},
        {"where": "u42"},
        {"ids": ["a"], "reason": 7},
    ],
)
def test_what_does_not_name_records_erases_nothing(corpus: treering.Corpus, wrong: dict[str, Any]) -> None:
    fill(corpus, "ann", rows=1)
    with pytest.raises(UsageError):
        corpus.erase(**wrong)
    assert corpus.erasures() == []


def test_a_preview_stores_nothing_and_finds_what_erasing_takes(
    store: treering.Store, corpus: treering.Corpus, tmp_path: Path
) -> None:
    sealed(corpus)
    corpus.annotate(f"{WHO}-1", label="other")
    (tmp_path / "bad.jsonl").write_text(json.dumps({"text": 5, "subject": WHO}) + "\n" + json.dumps({"text": 5}) + "\n")
    corpus.capture_file(str(tmp_path / "bad.jsonl"), format="records")
    assert store.root is not None
    before = tree(store.root)
    preview = corpus.erase_preview(where={"subject": WHO})
    assert {k: v for k, v in tree(store.root).items() if not k.startswith("leases")} == {
        k: v for k, v in before.items() if not k.startswith("leases")
    }
    receipt = corpus.erase(where={"subject": WHO})
    assert (preview.records, preview.annotations) == (receipt.records, receipt.annotations)
    assert preview.quarantined == receipt.quarantined == 1
    assert preview.snapshots == ["support@v1", "support@v3"]


# --- editions ------------------------------------------------------------------------------------------------------


def test_a_tag_one_edition_behind_is_completed_and_anything_else_is_an_error(
    store: treering.Store, corpus: treering.Corpus
) -> None:
    fill(corpus, WHO, *OTHERS)
    corpus.snapshot()
    with killed_at("after-edition"), pytest.raises(Killed):
        corpus.erase(where={"subject": WHO})
    (newest,) = list_records(corpus)
    assert newest.edition == 2
    assert corpus.table.tagged("v1") == (None, newest.main_version)
    assert WHO not in {row["subject"] for row in store.load("support@v1").to_table().to_pylist()}
    corpus.compact()  # whoever maintains next
    assert corpus.table.tagged("v1") == (newest.branch, newest.version)
    lance.dataset(corpus.uri).tags.update("v1", lance.dataset(corpus.uri).version)
    with pytest.raises(StoreError, match="tag") as raised:
        store.load("support@v1")
    assert raised.value.code == "tag-moved"


def killed_at(step: str, *, after: int = 1) -> Any:
    """A context in which the process dies the `after`-th time it comes to a step."""
    patch = pytest.MonkeyPatch()

    class Context:
        def __enter__(self) -> None:
            reached = 0

            def die(corpus: BaseCorpus, name: str) -> None:
                nonlocal reached
                reached += name == step
                if name == step and reached == after:
                    raise Killed

            patch.setattr(BaseCorpus, "step", die)

        def __exit__(self, *exc: object) -> None:
            patch.undo()

    return Context()


STEPS = [
    "before-erasure", "after-erasure", "before-found", "after-found", "after-branch", "after-delete", "after-rewrite",
    "before-edition", "after-edition", "after-retag", "after-certificate", "after-live", "after-annotations",
    "after-quarantine", "after-purge", "before-receipt",
]  # fmt: skip


@pytest.mark.parametrize("step", STEPS)
def test_whoever_maintains_next_completes_an_erasure_that_was_cut_short(
    store: treering.Store, corpus: treering.Corpus, step: str
) -> None:
    fill(corpus, WHO, *OTHERS, rows=4)
    corpus.snapshot()
    fill(corpus, *OTHERS, WHO, start=300, rows=4)
    corpus.annotate(f"{WHO}-1", note=WHO, label="x")
    with corpus.capture() as live, pytest.raises(InvalidRecordError):
        live.add({"id": "x1", "subject": WHO, "text": 5})
    before = contents(store)
    with killed_at(step), pytest.raises(Killed):
        corpus.erase(where={"subject": WHO})
    again = treering.open(store.uri, create=False).corpus("support")
    if step == "before-erasure":
        assert (again.erasures(), mentioned(store) != []) == ([], True)  # nothing was decided
        return
    with again.capture() as live:
        live.extend([record(999, "ann"), record(1, WHO), record(1000, WHO)])
    again.compact()
    (receipt,) = again.erasures()
    assert mentioned(store) == []
    assert receipt.total == 8
    left = without(before, WHO)
    left["live"].append(next(row for row in contents(store)["live"] if row["id"] == "ann-999"))
    assert contents(store) == left


def test_a_seal_completes_a_pending_erasure_before_it_seals(store: treering.Store, corpus: treering.Corpus) -> None:
    fill(corpus, WHO, *OTHERS)
    with killed_at("after-erasure"), pytest.raises(Killed):
        corpus.erase(where={"subject": WHO})
    snapshot = corpus.snapshot()
    assert snapshot is not None
    assert (snapshot.rows, mentioned(store)) == (48, [])


def test_two_who_erase_at_once_take_turns(store: treering.Store, corpus: treering.Corpus) -> None:
    sealed(corpus)
    before = contents(store)
    threads = [
        threading.Thread(target=treering.open(store.uri).corpus("support").erase, kwargs={"where": {"subject": who}})
        for who in (WHO, "ann", "bob")
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert contents(store) == without(before, WHO, "ann", "bob")
    assert [receipt.number for receipt in corpus.erasures()] == [1, 2, 3]


# --- what comes late -----------------------------------------------------------------------------------------------


def test_a_late_retry_is_dropped_and_counted_and_never_kept(store: treering.Store, corpus: treering.Corpus) -> None:
    sealed(corpus)
    corpus.erase(where={"subject": WHO})
    with corpus.capture() as live:
        receipt = live.add(record(1, WHO))
        assert (receipt.id, receipt.status) == (f"{WHO}-1", "erased")
        assert (
            live.add(record(1, "ann", id=f"{WHO}-2")).status == "erased"
        )  # an erased id, whoever it is said to be about
        assert live.add(record(9999, WHO)).status == "erased"  # something new about the subject
        done = live.extend([record(3, WHO), record(9000, "ann"), {"id": "bad", "subject": WHO, "text": 5}])
        assert (done.acknowledged, done.erased, done.refused) == (1, 2, [])
        rows = pa.Table.from_pylist([record(4, WHO), record(9001, "ann")])
        rows = rows.set_column(8, SCHEMA.field("tokens"), rows.column("tokens").cast(SCHEMA.field("tokens").type))
        assert live.extend(rows).erased == 1
        live.refuse(f'{{"subject": "{WHO}"', [], "file:1")
        assert live.flush().erased == 7
        assert mentioned(store) == []
    assert corpus.quarantine() == []
    assert {row["subject"] for row in contents(store)["live"]} == set(OTHERS)


def test_with_block_subject_off_a_person_may_come_back_and_the_erased_records_not(
    store: treering.Store, corpus: treering.Corpus
) -> None:
    sealed(corpus)
    corpus.erase(where={"subject": WHO}, block_subject=False)
    with corpus.capture() as live:
        assert live.add(record(1, WHO)).status == "erased"
        assert live.add(record(9999, WHO)).status == "stored"
    assert [row["id"] for row in contents(store)["live"] if row["subject"] == WHO] == [f"{WHO}-9999"]


def test_a_recorder_that_was_open_learns_of_it(store: treering.Store, corpus: treering.Corpus) -> None:
    sealed(corpus)
    elsewhere = treering.open(store.uri, create=False).corpus("support")
    with elsewhere.capture() as live:
        assert live.add(record(5, "ann")).status == "stored"
        corpus.erase(where={"subject": WHO})
        live.add(record(1, WHO))  # whether it knows already or not
        live.flush()
        assert live.add(record(2, WHO)).status == "erased"
        assert live.counts.erased == 2
        assert mentioned(store) == []


WRITER = """
import sys, treering
sys.path.insert(0, sys.argv[2])
from tests.erasing import record
corpus = treering.open(sys.argv[1], create=False).corpus("support")
live = corpus.capture()
live._drain = lambda: 0   # acknowledged on disk, and never committed
live.extend([record(n, who) for n in range(400, 405) for who in ("ann", sys.argv[3])])
print("ready", flush=True)
sys.stdin.readline()
import os; os._exit(9)
"""


def test_the_spool_of_a_process_that_died_before_the_erasure_brings_nothing_back(
    store: treering.Store, corpus: treering.Corpus
) -> None:
    sealed(corpus)
    root = str(Path(__file__).parents[2])
    writer = subprocess.Popen(
        [sys.executable, "-c", WRITER, store.uri, root, WHO], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert writer.stdout is not None
    assert writer.stdout.readline() == "ready\n"
    before = contents(store)
    assert store.root is not None
    spools = store.root / "spool" / corpus.record.table
    aside = store.root.with_name("aside")
    writer.communicate("die\n")
    shutil.move(spools, aside)  # a host that is away while the others erase
    corpus.erase(where={"subject": WHO})
    assert mentioned(store) == []
    shutil.rmtree(spools, ignore_errors=True)
    shutil.move(aside, spools)
    assert mentioned(store) != []
    with corpus.capture():  # its next open
        pass
    assert mentioned(store) == []
    left = without(before, WHO)
    assert [row["id"] for row in contents(store)["live"]] == [
        *(row["id"] for row in left["live"]), *(f"ann-{n}" for n in range(400, 405))
    ]  # fmt: skip


def test_a_commit_that_was_under_way_when_the_erasure_was_decided_is_undone_by_its_writer(
    store: treering.Store, corpus: treering.Corpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between its look at the denylist and its commit, a writer can't know; right after it, it looks again."""
    fill(corpus, *OTHERS)
    from treering.store.table import LanceTable

    insert = LanceTable.insert_new
    erased: list[Any] = []

    def beside(self: LanceTable, head: Any, rows: pa.Table) -> int:
        if not erased:
            erased.append(None)
            elsewhere = treering.open(store.uri, create=False).corpus("support")
            erase_module.erase(elsewhere, erase_module.Wanted(subjects=(WHO,)))
            head = self.head()  # as the engine does, which rebases over what doesn't conflict
        return insert(self, head, rows)

    monkeypatch.setattr(LanceTable, "insert_new", beside)
    with corpus.capture() as live:
        live.extend([record(1, WHO), record(500, "ann")])
        counts = live.flush()
        assert counts.erased == 1
        live._spool.scrub()
    assert mentioned(store) == []
    assert [row["id"] for row in contents(store)["live"]][-1] == "ann-500"
    assert [receipt.records for receipt in corpus.erasures()] == [{}, {"live": 1}]


def test_a_writer_that_died_right_after_such_a_commit_leaves_it_to_whoever_takes_its_spool(
    store: treering.Store, corpus: treering.Corpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(corpus, *OTHERS)
    from treering.capture import commit

    corpus.erase(where={"subject": WHO})
    with monkeypatch.context() as patch:  # who doesn't know of any erasure, and dies before the look after the commit
        patch.setattr(commit, "denylist", lambda corpus, look=True: Denylist(None, Hashes(), Hashes(), frozenset()))
        patch.setattr(
            recorder_module, "denylist", lambda corpus, look=True: Denylist(None, Hashes(), Hashes(), frozenset())
        )
        live = corpus.capture()
        live.add(record(1, WHO))
        entries = live._spool.read("batches", 9, 99, 1 << 20)
        live.flush()
        for entry in entries:  # not trimmed yet when it died
            live._spool.append_one(entry.payload)
    assert WHO in {row["subject"] for row in contents(store)["live"]}
    live.flush()
    live._spool.scrub()
    assert mentioned(store) == []
    live.close()


def test_an_annotation_that_crossed_the_erasure_goes_too(
    store: treering.Store, corpus: treering.Corpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    sealed(corpus)
    from treering.store.annotations import AnnotationLog

    append = AnnotationLog.append

    def beside(self: AnnotationLog, rows: pa.Table) -> int:
        monkeypatch.setattr(AnnotationLog, "append", append)
        treering.open(store.uri, create=False).corpus("support").erase(where={"subject": WHO})
        return append(self, rows)

    monkeypatch.setattr(AnnotationLog, "append", beside)
    corpus.annotate_many([{"id": f"{WHO}-1", "label": WHO}, {"id": "ann-1", "label": "kept"}])
    assert corpus.annotations().column("id").to_pylist() == ["ann-1"]
    assert mentioned(store) == []


# --- parts ---------------------------------------------------------------------------------------------------------


@given(st.lists(st.binary(min_size=16, max_size=16)), st.lists(st.binary(min_size=16, max_size=16)))
def test_a_set_of_hashes_holds_what_was_put_in_and_nothing_else(held: list[bytes], asked: list[bytes]) -> None:
    hashes = Hashes(b"".join(held))
    everything = [*held, *asked]
    assert hashes.among(b"".join(everything)).tolist() == [item in set(held) for item in everything]
    assert Hashes(hashes.to_bytes()).to_bytes() == b"".join(sorted(set(held)))
    # The upper half alone decides nothing.
    assert not any(hashes.among(b"".join(item[:8] + bytes(7) + b"\1" for item in held if item[8:] != bytes(7) + b"\1")))


def test_the_key_differs_from_store_to_store_and_stays_in_each(tmp_path: Path) -> None:
    keys = set()
    for name in ("a", "b"):
        corpus = treering.open(tmp_path / name).create("support", SCHEMA)
        corpus.erase(ids=["x"])
        key = (tmp_path / name / "erasures" / "key").read_bytes()
        corpus.erase(ids=["y"])
        assert (tmp_path / name / "erasures" / "key").read_bytes() == key
        assert len(key) == 32
        keys.add(key)
    assert len(keys) == 2


def test_without_its_key_a_store_refuses_to_take_records_in(store: treering.Store, corpus: treering.Corpus) -> None:
    corpus.erase(ids=["x"])
    assert store.root is not None
    (store.root / "erasures" / "key").unlink()
    from treering.store.denylist import _READ

    _READ.clear()
    with pytest.raises(StoreError, match="could come back"):
        denylist(corpus)


@pytest.mark.parametrize(
    ("value", "found"),
    [
        (WHO, True),
        ({"subject": WHO}, True),
        ({WHO: 1}, True),
        ({"a": [{"b": [[WHO]]}]}, True),
        (f'{{"subject": "{WHO}", "text": ', True),
        (f"{{'subject': '{WHO}'}}", True),
        ({"raw": f'[{{"id": "{WHO}"}}]'}, True),
        ({"raw": json.dumps({"id": "sp ace"})}, True),
        ('{"id": "sp\\u0020ace", ', True),
        (12345, True),
        ({"subject": 12345}, True),
        ({"text": f"I saw {WHO} there"}, False),
        ({"text": "nothing"}, False),
        ({"n": [None, True, 1.5]}, False),
    ],
)
def test_a_refused_record_that_names_somebody_is_known_wherever_it_does(value: Any, found: bool) -> None:
    hash_of = KeyedHash(b"k" * 32)
    denied = Denylist(hash_of, Hashes(hash_of.many([WHO, "sp ace"])), Hashes(hash_of.one("12345")), frozenset())
    assert denied.mentions(value) is found


# --- histories -----------------------------------------------------------------------------------------------------


@given(st.data())
@settings(max_examples=6, deadline=None, suppress_health_check=list(HealthCheck))
def test_after_any_history_exactly_the_rest_remains(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    store = treering.open(tmp_path_factory.mktemp("history") / "store")
    corpus = store.create("support", SCHEMA, heldout=0.2)
    people = [f"person-{n}-of-ours" for n in range(5)]
    live: list[str] = []
    places: dict[str, list[str]] = {}
    gone: set[str] = set()
    number = 0
    for _ in range(data.draw(st.integers(4, 9))):
        step = data.draw(
            st.sampled_from(["capture", "capture", "snapshot", "erase", "erase ids", "compact", "cut short"])
        )
        if step == "capture":
            rows = [
                record(number + n, data.draw(st.sampled_from(people))) for n in range(data.draw(st.integers(1, 30)))
            ]
            number += len(rows)
            with corpus.capture() as recorder:
                recorder.extend(rows)
            live += [row["id"] for row in rows if row["subject"] not in gone]
        elif step == "snapshot":
            snapshot = corpus.snapshot()
            assert (snapshot is None) == (not live)
            if snapshot is not None:
                places[snapshot.name], live = live, []
        elif step == "compact":
            corpus.compact()
            corpus.clean_up(older_than_s=0)
        else:
            everything = [i for ids in (*places.values(), live) for i in ids]
            if step == "erase ids":
                chosen = set(data.draw(st.lists(st.sampled_from(everything), max_size=5))) if everything else set()
                chosen.add("nobody")
                corpus.erase(ids=sorted(chosen))
            else:
                who = data.draw(st.sampled_from(people))
                gone.add(who)
                chosen = {i for i in everything if i.startswith(who)}
                if step == "cut short":
                    with killed_at(data.draw(st.sampled_from(STEPS[1:]))), suppress(Killed):
                        corpus.erase(where={"subject": who})
                    corpus.compact()
                else:
                    corpus.erase(where={"subject": who})
            places = {name: [i for i in ids if i not in chosen] for name, ids in places.items()}
            live = [i for i in live if i not in chosen]
        held = contents(store)
        assert {name: {row["id"] for row in rows} for name, rows in held.items()} == {
            name: set(ids) for name, ids in {**places, "live": live}.items()
        }
        for rows in held.values():
            assert all(row == {**row, **record(int(row["id"].rpartition("-")[2]), row["subject"])} for row in rows)
    for who in gone:
        assert files_with(Path(store.uri), who) == []


def test_readers_beside_an_erasure_read_all_or_are_told(store: treering.Store, corpus: treering.Corpus) -> None:
    sealed(corpus)
    stop, wrong = threading.Event(), []

    def read() -> None:
        mine = treering.open(store.uri, create=False)
        while not stop.is_set():
            for ref in ("support@v1", "support@live"):
                try:
                    rows = mine.load(ref).to_table(["id", "text", "subject"]).to_pylist()
                except treering.ConflictError as exc:
                    if exc.code != "erased":
                        wrong.append(exc)
                except Exception as exc:
                    wrong.append(exc)
                else:
                    wrong.extend(r for r in rows if r["text"] != f"text {r['id'].rpartition('-')[2]} by {r['subject']}")

    threads = [threading.Thread(target=read) for _ in range(2)]
    for thread in threads:
        thread.start()
    for who in (WHO, "ann", "bob"):
        corpus.erase(where={"subject": who})
    stop.set()
    for thread in threads:
        thread.join()
    assert wrong == []


# --- with verify and doctor ----------------------------------------------------------------------------------------


def test_an_erased_edition_is_verified_like_any_other_and_a_flipped_bit_in_it_named(
    store: treering.Store, corpus: treering.Corpus
) -> None:
    sealed(corpus)
    corpus.erase(where={"subject": WHO})
    assert all(corpus.verify(name).ok for name in ("v1", "v2", "v3"))
    assert store.root is not None
    (data,) = (store.root / "tables" / f"{corpus.record.table}.lance" / "tree" / "v1-erased" / "data").iterdir()
    spoilt = bytearray(data.read_bytes())
    spoilt[len(spoilt) // 2] ^= 1
    data.write_bytes(bytes(spoilt))
    said = corpus.verify("v1")
    assert [finding.file for finding in said.findings] == [data.relative_to(store.root).as_posix()]
    assert corpus.verify("v2").ok
    data.unlink()
    with pytest.raises(StoreError, match="is missing"):
        treering.open(store.uri, create=False).load("support@v1")


# --- with pruning and bundles --------------------------------------------------------------------------------------


def test_held_out_records_that_were_kept_of_a_pruned_snapshot_are_erased_too(
    store: treering.Store, corpus: treering.Corpus
) -> None:
    with corpus.capture() as live:
        live.extend(
            [
                record(n, who, split=split)
                for n in range(6)
                for who in (WHO, "ann")
                for split in [("train", "heldout")[n % 2]]
            ]
        )
    corpus.snapshot()
    fill(corpus, "ann", start=100)
    corpus.snapshot()
    corpus.prune(keep=1, dry_run=False, keep_heldout=True)
    assert len(store.heldout("support@v1")) == 6
    receipt = corpus.erase(where={"subject": WHO})
    assert receipt.records == {"v1": 3}
    assert mentioned(store) == []
    assert store.heldout("support@v1").to_table(["subject"]).column(0).unique().to_pylist() == ["ann"]
    assert corpus.erase(where={"subject": "nobody"}).records == {}


def test_pruning_an_erased_edition_takes_its_branch_along(store: treering.Store, corpus: treering.Corpus) -> None:
    sealed(corpus)
    corpus.erase(where={"subject": WHO})
    assert corpus.table.branches() == ["v1-erased", "v3-erased"]
    corpus.prune(keep=1, dry_run=False)
    assert corpus.table.branches() == ["v3-erased"]
    assert files_with(Path(store.uri), "by ann") != []
    assert [snapshot.name for snapshot in corpus.snapshots()] == ["v3"]
    corpus.erase(where={"subject": OTHERS})
    corpus.prune(keep=0, dry_run=False)
    assert corpus.table.branches() == []
    with corpus.capture() as live:
        assert live.add(record(1, "new")).status == "stored"
    assert len(store.live("support")) == 1


def test_a_bundle_brings_nothing_erased_back_and_an_erased_edition_travels(
    store: treering.Store, corpus: treering.Corpus, tmp_path: Path
) -> None:
    fill(corpus, WHO, *OTHERS)
    corpus.snapshot()
    before = store.pack("support@v1", tmp_path / "before.zip")
    corpus.erase(where={"subject": WHO})
    after = store.pack("support@v1", tmp_path / "after.zip")
    corpus.prune(keep=0, dry_run=False)
    with pytest.raises(ConflictError, match=r"12 of the 60 records .* were erased from support") as error:
        store.unpack(tmp_path / "before.zip")
    assert error.value.code == "erased"
    back = store.unpack(tmp_path / "after.zip")
    assert (back.name, back.rows, mentioned(store)) == ("v2", 48, [])
    assert {row["subject"] for row in contents(store)["v2"]} == set(OTHERS)
    del before, after
