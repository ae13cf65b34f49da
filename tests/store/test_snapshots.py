from __future__ import annotations

import json
import pickle
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

import lance
import numpy as np
import pyarrow as pa
import pytest

import treering
from treering.store import Source
from treering.store import snapshot as snapshot_module
from treering.store.corpus import BaseCorpus
from treering.store.lease import Lease


def rows(prefix: str, n: int, **more: str) -> list[dict[str, str]]:
    return [{"id": f"{prefix}{i}", "text": f"{prefix} {i}", "label": "a", **more} for i in range(n)]


def ids(source: Source) -> list[str]:
    return source.to_table(["id"]).column(0).to_pylist()


def put(corpus: treering.Corpus, records: list[dict[str, str]]) -> None:
    with corpus.capture() as live:
        assert live.extend(records).refused == []


def test_snapshots_are_disjoint_and_live_starts_anew(store: treering.Store, support: treering.Corpus) -> None:
    put(support, rows("a", 30))
    first = support.snapshot(message="one")
    put(support, rows("b", 20))
    second = support.snapshot()
    put(support, rows("c", 10))
    assert first
    assert second
    assert (first.name, first.rows, first.message, second.parent) == ("v1", 30, "one", "v1")
    assert set(ids(store.load("support@v1"))) == {f"a{i}" for i in range(30)}
    assert set(ids(store.load("support@v2"))) == {f"b{i}" for i in range(20)}
    assert set(ids(store.live("support"))) == {f"c{i}" for i in range(10)}
    assert len(store.load("support@v1..v2")) == 50
    assert [len(s.runs("train")) + len(s.runs("heldout")) > 0 for s in store.load("support@v1..v2").segments] == [
        True
    ] * 2


def test_plain_lance_opens_a_snapshot(support: treering.Corpus) -> None:
    put(support, rows("a", 7))
    snapshot = support.snapshot()
    put(support, rows("b", 5))
    assert snapshot
    assert lance.dataset(snapshot.uri, version="v1").to_table(columns=["id"]).num_rows == 7


def test_sealing_an_empty_live_seals_nothing(support: treering.Corpus) -> None:
    assert support.snapshot() is None
    put(support, rows("a", 1))
    assert support.snapshot()
    assert support.snapshot() is None
    assert [s.name for s in support.snapshots()] == ["v1"]


def test_only_the_next_name_can_be_sealed(store: treering.Store, support: treering.Corpus) -> None:
    put(support, rows("a", 1))
    with pytest.raises(treering.ConflictError, match="next snapshot is support@v1"):
        store.snapshot("support@v2")
    assert store.snapshot("support@v1")
    put(support, rows("b", 1))
    with pytest.raises(treering.ConflictError, match="already sealed"):
        store.snapshot("support@v1")
    assert [s.name for s in support.snapshots()] == ["v1"]
    assert len(store.live("support")) == 1


def test_a_digest_depends_on_the_records_not_on_their_files(tmp_path: Path) -> None:
    digests = []
    for commits in ([50], [20, 30], [1] * 50):
        corpus = treering.open(tmp_path / str(len(commits))).create("support", "labelled", heldout=0)
        records, at = rows("a", 50, ts="2026-01-01T00:00:00Z"), 0
        with corpus.capture() as live:
            for n in commits:
                live.extend(records[at : at + n])
                live.flush()
                at += n
        corpus.compact()
        snapshot = corpus.snapshot()
        assert snapshot
        digests.append(snapshot.digest)
    assert len(set(digests)) == 1


def test_a_digest_changes_with_any_value(tmp_path: Path) -> None:
    digests = set()
    for n, change in enumerate([{}, {"text": "other"}, {"domain": "x"}, {"domain": ""}, {"id": "z"}]):
        corpus = treering.open(tmp_path / str(n)).create("support", "labelled", heldout=0)
        put(corpus, [{"id": "a", "text": "t", "label": "l", "ts": "2026-01-01T00:00:00Z", **change}])
        snapshot = corpus.snapshot()
        assert snapshot
        digests.add(snapshot.digest)
    assert len(digests) == 5


def test_the_certificate_counts_what_is_there(support: treering.Corpus) -> None:
    put(support, rows("a", 40, domain="billing") + rows("b", 10, domain="returns", split="heldout", origin="human"))
    snapshot = support.snapshot()
    assert snapshot
    certificate = snapshot.certificate
    assert certificate.counts["domain"] == {"billing": 40, "returns": 10}
    assert certificate.counts["origin"] == {"": 40, "human": 10}
    assert sum(n for _, n in certificate.train_runs) == certificate.counts["split"]["train"]
    assert set(certificate.files) >= {f"_versions/{2**64 - 1 - snapshot.version:020d}.manifest"}


def test_labels_of_any_type_are_counted(store: treering.Store) -> None:
    for name, kind, values in (("ints", pa.int64(), [0, 1, None]), ("lists", pa.list_(pa.int8()), [[0], [], None])):
        corpus = store.create(name, pa.schema([("label", kind)]))
        with corpus.capture() as live:
            assert live.extend([{"label": value} for value in values]).refused == []
        snapshot = corpus.snapshot()
        assert snapshot
        assert snapshot.certificate.counts.get("label") == ({"": 1, "0": 1, "1": 1} if name == "ints" else None)


def test_a_moved_tag_is_an_error_never_another_answer(store: treering.Store, support: treering.Corpus) -> None:
    put(support, rows("a", 5))
    assert support.snapshot()
    put(support, rows("b", 5))
    lance.dataset(support.uri).tags.update("v1", lance.dataset(support.uri).version)
    with pytest.raises(treering.StoreError, match="tag names version"):
        store.load("support@v1")


def test_a_pinned_live_source_reads_on_after_sealing_and_compaction(
    store: treering.Store, support: treering.Corpus
) -> None:
    put(support, rows("a", 50))
    source = store.live("support")
    want, runs = ids(source), source.segments[0].runs()
    put(support, rows("b", 50))
    support.snapshot()
    put(support, rows("c", 50))
    support.compact()
    support.clean_up(older_than_s=0)
    again = pickle.loads(pickle.dumps(source))
    assert sorted(ids(again)) == sorted(want)
    assert np.array_equal(again.segments[0].runs(), runs)
    wanted = np.array([7, 3, 41])
    assert again.segments[0].take(wanted, ["id"]).equals(source.segments[0].take(wanted, ["id"]))


def test_rows_that_are_gone_are_an_error_not_a_shorter_answer(store: treering.Store, support: treering.Corpus) -> None:
    put(support, rows("a", 5))
    segment = store.live("support").segments[0]
    with pytest.raises(treering.StoreError, match="1 of 2 rows are gone"):
        segment.take(np.array([1, 99]), ["id"])


def test_a_pin_finds_the_same_rows_or_says_what_differs(
    store: treering.Store, support: treering.Corpus, tmp_path: Path
) -> None:
    put(support, rows("a", 20))
    support.snapshot()
    put(support, rows("b", 20))
    for ref in ("support@v1", "support@live"):
        source = store.load(ref)
        pin = json.loads(json.dumps(source.pin()))
        assert ids(Source.from_pin(store, pin)) == ids(source)
    other = treering.open(tmp_path / "other")
    put(other.create("support", "labelled"), rows("x", 20))
    other.corpus("support").snapshot()
    with pytest.raises(treering.ConflictError, match="isn't what was pinned"):
        Source.from_pin(other, json.loads(json.dumps(store.load("support@v1").pin())))


def test_new_is_everything_until_an_adapter_is_in_production(store: treering.Store, support: treering.Corpus) -> None:
    put(support, rows("a", 5))
    support.snapshot()
    put(support, rows("b", 5))
    assert len(store.load("support@new")) == 10
    store.trained_snapshots = lambda corpus: {"support@v1"}  # type: ignore[method-assign]
    assert set(ids(store.load("support@new"))) == {f"b{i}" for i in range(5)}


def test_unknown_names_are_not_found_and_say_what_there_is(store: treering.Store, support: treering.Corpus) -> None:
    with pytest.raises(treering.NotFoundError, match="corpora here: support"):
        store.load("sales@v1")
    with pytest.raises(treering.NotFoundError, match="none yet"):
        store.load("support@v1")
    with pytest.raises(treering.NotFoundError, match="columns here: id"):
        store.live("support").to_table(["nope"])
    with pytest.raises(treering.UsageError):
        store.corpus("../x")


def test_two_processes_that_seal_at_once_get_two_snapshots_or_one(
    store: treering.Store, support: treering.Corpus
) -> None:
    code = (
        "import sys, treering\n"
        "c = treering.open(sys.argv[1], create=False).corpus('support')\n"
        "with c.capture() as live: live.extend([{'text': sys.argv[2], 'label': 'a'} for _ in range(50)])\n"
        "s = c.snapshot(); print(s.name if s else '-')\n"
    )
    started = [
        subprocess.Popen([sys.executable, "-c", code, store.uri, who], stdout=subprocess.PIPE, text=True)
        for who in "ab"
    ]
    names = [p.communicate(timeout=120)[0].strip() for p in started]
    assert all(p.returncode == 0 for p in started)
    sealed = [s.name for s in support.snapshots()]
    assert sorted(n for n in names if n != "-") == sealed
    assert sum(len(store.load(f"support@{name}")) for name in sealed) + len(store.live("support")) == 100


def test_a_sealer_that_lost_its_lease_never_takes_the_name_of_another_ones_snapshot(
    store: treering.Store, support: treering.Corpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Right before its record another process seals, and live goes on: correctness doesn't rest on the lease."""
    monkeypatch.setattr(BaseCorpus, "lease", lambda self, **_: nullcontext(Lease()))
    with support.capture() as live:
        live.extend([{"id": f"a{i}", "text": "t", "label": "l"} for i in range(10)])
    other = treering.open(store.uri, create=False).corpus("support")
    sealed = []

    def step(self: BaseCorpus, name: str) -> None:
        if name == "before-record" and not sealed:
            sealed.append(None)
            sealed[0] = other.snapshot(message="the other one")
            with other.capture() as live:
                live.extend([{"id": f"b{i}", "text": "t", "label": "l"} for i in range(5)])

    monkeypatch.setattr(BaseCorpus, "step", step)
    mine = support.snapshot(message="mine")
    assert [s.message for s in support.snapshots()] == ["the other one", "mine"]
    assert (sealed[0].rows, mine.rows) == (10, 5)  # type: ignore[union-attr]
    ids = [
        store.load(ref).to_table(["id"]).column(0).to_pylist() for ref in ("support@v1", "support@v2", "support@live")
    ]
    assert [{i[0] for i in each} for each in ids] == [{"a"}, {"b"}, set()]


def test_a_version_that_still_holds_sealed_rows_is_never_sealed(
    store: treering.Store, support: treering.Corpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A seal was cut short right after its record, and whoever comes next misses that there is something to finish."""

    class Killed(BaseException):
        pass

    def die(self: BaseCorpus, name: str) -> None:
        if name == "after-record":
            raise Killed

    put(support, rows("a", 10))
    with monkeypatch.context() as patch:
        patch.setattr(BaseCorpus, "step", die)
        with pytest.raises(Killed):
            support.snapshot()
    put(support, rows("b", 5))
    finish, missed = snapshot_module.finish_pending, []

    def miss_once(corpus: BaseCorpus) -> None:
        if missed:
            finish(corpus)
        missed.append(True)

    monkeypatch.setattr(snapshot_module, "finish_pending", miss_once)
    support.snapshot()
    assert sorted(ids(store.load("support@v1"))) == [f"a{i}" for i in range(10)]
    assert sorted(ids(store.load("support@v2"))) == [f"b{i}" for i in range(5)]
    assert [s.rows for s in support.snapshots()] == [10, 5]
    assert lance.dataset(support.uri, version="v2").count_rows() == 5
    assert len(store.live("support")) == 0


def test_two_processes_that_create_one_corpus_get_one_corpus(store: treering.Store) -> None:
    code = (
        "import sys, treering\n"
        "try: treering.open(sys.argv[1]).create('support', 'labelled'); print('made')\n"
        "except treering.AlreadyExistsError: print('exists')\n"
    )
    started = [
        subprocess.Popen([sys.executable, "-c", code, store.uri], stdout=subprocess.PIPE, text=True) for _ in "ab"
    ]
    assert sorted(p.communicate(timeout=120)[0].strip() for p in started) == ["exists", "made"]
    assert [c.name for c in store.corpora()] == ["support"]


def test_a_store_of_a_newer_format_is_refused(store: treering.Store) -> None:
    marker = Path(store.uri) / "treering.json"
    marker.write_text(marker.read_text().replace('"format": 1', '"format": 99'))
    with pytest.raises(treering.StoreError, match="format 99"):
        treering.open(store.uri)


def test_a_directory_that_holds_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("x")
    with pytest.raises(treering.UsageError, match="isn't a store"):
        treering.open(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.txt"]


def test_own_schemas_come_back_with_their_columns(store: treering.Store) -> None:
    schema = pa.schema([("tokens", pa.list_(pa.int32(), 4)), ("score", pa.float32())])
    store.create("tok", schema)
    again = treering.open(store.uri).corpus("tok")
    assert again.record_type.schema.field("tokens").type == pa.list_(pa.int32(), 4)
    with again.capture() as live:
        receipts = live.extend([{"tokens": [1, 2, 3, 4], "score": 0.5}, {"tokens": [1], "score": 0.5}])
    assert receipts.acknowledged == 1
    assert receipts.refused[0][1][0].loc == ("tokens",)


def test_a_snapshot_that_is_sealed_while_the_others_are_being_listed_isnt_missing(
    store: treering.Store, support: treering.Corpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The witness, which is asked after the listing, knows of it already."""
    other = treering.open(store.uri, create=False).corpus("support")
    put(support, rows("a", 5))
    support.snapshot()
    put(support, rows("b", 5))
    real, armed = other.store.objects.list, [True]

    def seal_meanwhile(prefix: str) -> list[str]:
        found = real(prefix)
        if armed and prefix.startswith("snapshots/"):
            armed.clear()
            support.snapshot()
        return found

    monkeypatch.setattr(other.store.objects, "list", seal_meanwhile)
    assert [snapshot.name for snapshot in other.snapshots()] == ["v1", "v2"]
