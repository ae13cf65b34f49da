from __future__ import annotations

import json
import subprocess
import sys
import threading
from itertools import chain as joined
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import lance
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings

import treering
from tests import evolving
from tests.schema.test_evolution import distinct
from tests.waiting import wait_for
from treering.capture import Recorder
from treering.schema import Labelled, Record
from treering.store import Source
from treering.store.corpus import BaseCorpus
from treering.store.documents import add_checksum
from treering.store.schemas import version_path

ADDED = pa.schema([pa.field("text", pa.string(), False), pa.field("label", pa.string(), False), ("lang", pa.string())])


class Tagged(Labelled):
    lang: str = "en"


class Renamed(Record):
    body: str
    label: str
    lang: str = "en"


def rows(prefix: str, n: int, **more: Any) -> list[dict[str, Any]]:
    return [{"id": f"{prefix}{i}", "text": f"{prefix} {i}", "label": "a", **more} for i in range(n)]


def put(corpus: treering.Corpus, records: list[dict[str, Any]]) -> None:
    with corpus.capture() as live:
        assert live.extend(records).refused == []
        live.flush()
        assert live.counts.conflicts == 0


def by_id(source: Source, columns: list[str]) -> dict[str, Any]:
    return {row["id"]: tuple(row[c] for c in columns) for row in source.to_table(["id", *columns]).to_pylist()}


# --- histories ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("examples", [pytest.param(3, id="short"), pytest.param(150, id="long", marks=[pytest.mark.slow, pytest.mark.timeout(1800)])])  # fmt: skip
def test_everything_is_read_as_the_newest_whatever_it_was_captured_and_sealed_under(
    tmp_path_factory: pytest.TempPathFactory, examples: int
) -> None:
    """Random chains; records of every version into live, by recorders of that version and of older ones; seals between."""

    @given(st.data())
    @settings(max_examples=examples, deadline=None, suppress_health_check=list(HealthCheck), database=None)
    def history(data: st.DataObject) -> None:
        chain = distinct(data.draw(evolving.chains(most=4)))
        store = treering.open(tmp_path_factory.mktemp("store"))
        corpus = store.create("support", chain[0].schema, heldout=0)
        open_recorders: list[tuple[int, Recorder]] = []
        live: list[evolving.ModelRecord] = []
        sealed: dict[str, list[evolving.ModelRecord]] = {}
        digests: dict[str, str] = {}
        pins: list[tuple[int, dict[str, Any], list[evolving.ModelRecord]]] = []
        for number, step in enumerate(chain, start=1):
            if number > 1:
                corpus.evolve(step.schema, renames=step.renames, defaults=step.defaults)
            assert len(corpus.versions) == number
            open_recorders.append((number, corpus.capture()))
            for captured, recorder in open_recorders:
                batch = data.draw(evolving.records(chain, captured, f"{number}.{captured}-", most=3))
                assert recorder.extend([evolving.given(chain, record) for record in batch]).refused == []
                live += batch
                if data.draw(st.booleans()):
                    recorder.flush()
            if data.draw(st.booleans()):
                snapshot = corpus.snapshot()
                assert (snapshot is not None) == bool(live)
                if snapshot is not None:
                    sealed[snapshot.name], live = live, []
                    if data.draw(st.booleans()):
                        digests[snapshot.name] = snapshot.digest
            else:
                for _, recorder in open_recorders:
                    recorder.flush()
            if data.draw(st.booleans()):
                corpus.compact()
            for ref, expected in [("live", live), *sealed.items()]:
                if data.draw(st.booleans()):
                    pins.append((number, json.loads(json.dumps(store.load(f"support@{ref}").pin())), list(expected)))
            check(chain, store, {"live": live, **sealed}, number, data)
        for _, recorder in open_recorders:
            recorder.close()
            assert (recorder.counts.refused, recorder.counts.conflicts, recorder.counts.duplicates) == (0, 0, 0)
        assert corpus.quarantine() == []
        corpus.compact()
        corpus.clean_up(older_than_s=0)
        check(chain, store, {"live": live, **sealed}, len(chain), data)
        for number, pin, expected in pins:
            compare(chain, Source.from_pin(treering.open(store.uri), pin), expected, number, data)
        for snapshot in corpus.snapshots():
            assert digests.get(snapshot.name, snapshot.digest) == snapshot.digest

    history()


def check(
    chain: list[evolving.Step],
    store: treering.Store,
    places: dict[str, list[evolving.ModelRecord]],
    target: int,
    data: st.DataObject,
) -> None:
    for name, expected in places.items():
        compare(chain, store.load(f"support@{name}"), expected, target, data)
    names = [name for name in places if name != "live"]
    if len(names) > 1:
        expected = [record for name in names for record in places[name]]
        compare(chain, store.load(f"support@{names[0]}..{names[-1]}"), expected, target, data)


def compare(
    chain: list[evolving.Step],
    source: Source,
    expected: list[evolving.ModelRecord],
    target: int,
    data: st.DataObject,
) -> None:
    want = {record.id: evolving.read(chain, record, target) for record in expected}
    names = [column.name for column in chain[target - 1].columns]
    assert source.schema_version == target
    table = source.to_table()
    assert table.schema == source.schema
    table.validate(full=True)
    assert len(table) == len(source) == len(want)
    assert {row["id"]: {name: row[name] for name in names} for row in table.to_pylist()} == want
    some = data.draw(st.lists(st.sampled_from(names), unique=True))  # columns alone, in any order
    assert source.to_table(["id", *some]).select(some).to_pylist() == table.select(some).to_pylist()
    for segment in source.segments:
        runs = segment.runs()
        ids = np.concatenate([np.arange(a, a + n) for a, n in runs]) if len(runs) else np.empty(0, np.int64)
        order = np.asarray(data.draw(st.permutations(ids.tolist())), np.int64)
        taken = segment.take(order, [*some, "id"])
        assert [{n: row[n] for n in some} for row in taken.to_pylist()] == [
            {n: want[row["id"]][n] for n in some} for row in taken.to_pylist()
        ]
        assert taken.schema.types[:-1] == [source.schema.field(name).type for name in some]
        for name in names:
            stored = segment.stored_as(name)
            if stored is not None:
                plain = [
                    batch.column(0).to_pylist() for _, _, place in segment._places() for batch in place.scan([name])
                ]
                raw = [
                    batch.column(0).to_pylist()
                    for _, _, place in segment._places()
                    for batch in place.dataset.to_table(columns=[stored]).to_batches()
                ]
                assert list(joined.from_iterable(plain)) == list(joined.from_iterable(raw))


# --- what evolving promises, one by one -------------------------------------------------------------------------------


def test_evolving_renames_widens_and_fills_and_a_loader_delivers_it(store: treering.Store) -> None:
    corpus = store.create("c", pa.schema([("text", pa.string()), ("n", pa.int32())]), heldout=0)
    put(corpus, [{"id": f"a{i}", "text": f"t{i}", "n": i} for i in range(20)])
    assert corpus.snapshot()
    put(corpus, [{"id": f"b{i}", "text": f"u{i}", "n": i} for i in range(10)])
    rule = corpus.evolve(
        pa.schema([("body", pa.string()), ("n", pa.int64()), ("lang", pa.string())]),
        renames={"text": "body"},
        defaults={"lang": "en"},
    )
    assert {r.column: r.rule for r in rule.describe() if r.rule != "kept"} == {
        "body": "renamed",
        "n": "widened",
        "lang": "filled",
    }
    put(corpus, [{"id": f"c{i}", "body": f"v{i}", "n": 2**40 + i, "lang": None if i % 2 else "de"} for i in range(10)])
    mix = treering.mix(store.load("c@v1"), store.live("c"), seed=3)
    got = {}
    for batch in mix.loader(batch_size=10, epochs=3):
        got.update(
            {i: (body, int(n), lang)
             for i, body, n, lang in zip(batch["id"], batch["body"], batch["n"], batch["lang"], strict=True)}
        )  # fmt: skip
    assert got == {
        **{f"a{i}": (f"t{i}", i, "en") for i in range(20)},
        **{f"b{i}": (f"u{i}", i, "en") for i in range(10)},
        **{f"c{i}": (f"v{i}", 2**40 + i, None if i % 2 else "de") for i in range(10)},
    }


def test_an_evolved_corpus_still_opens_with_plain_lance(store: treering.Store, support: treering.Corpus) -> None:
    put(support, rows("a", 7))
    assert support.snapshot()
    support.evolve(Renamed, renames={"text": "body"})
    with support.capture() as live:
        live.extend([{"id": f"b{i}", "body": "x", "label": "a"} for i in range(5)])
    second = support.snapshot()
    assert second
    first = lance.dataset(support.uri, version="v1")
    assert "_schema_version" not in first.schema.names
    assert first.to_table(columns=["text"]).num_rows == 7
    newest = lance.dataset(support.uri, version="v2").to_table(columns=["text", "lang", "_schema_version"]).to_pylist()
    assert newest == [{"text": "x", "lang": "en", "_schema_version": 2}] * 5
    assert (second.schema_version, support.snapshots()[0].schema_version) == (2, 1)


def test_evolving_changes_no_digest_certified_before_or_after(tmp_path: Path) -> None:
    at = "2026-01-01T00:00:00Z"
    digests = []
    for name in ("still", "evolves"):
        store = treering.open(tmp_path / name)
        corpus = store.create("support", "labelled", heldout=0)
        put(corpus, rows("a", 5, ts=at))
        first = corpus.snapshot()
        put(corpus, rows("b", 5, ts=at))
        second = corpus.snapshot()
        assert first
        assert second
        early = first.digest
        if name == "evolves":
            corpus.evolve(Renamed, renames={"text": "body"})
            put(corpus, [{"id": "c", "body": "x", "label": "a"}])
        fresh = treering.open(tmp_path / name).corpus("support").snapshots()
        digests.append((early, fresh[0].digest, fresh[1].digest, fresh[1].certificate.train_runs))
    assert digests[0] == digests[1]


def test_records_of_an_older_version_have_the_digest_of_what_the_newer_one_reads(tmp_path: Path) -> None:
    """A snapshot's digest speaks of its records as they were read when it was sealed, however they lie in the table."""
    at = "2026-01-01T00:00:00Z"
    one = treering.open(tmp_path / "one").create("support", "labelled", heldout=0)
    put(one, rows("a", 5, ts=at))
    one.evolve(Tagged)
    other = treering.open(tmp_path / "other").create("support", Tagged, heldout=0)
    put(other, rows("a", 5, ts=at))
    put(one, rows("b", 5, ts=at, lang="de"))
    put(other, rows("b", 5, ts=at, lang="de"))
    digests = [snapshot.digest for snapshot in (one.snapshot(), other.snapshot()) if snapshot]
    assert len(digests) == 2
    assert len(set(digests)) == 1


def test_a_lock_gives_the_batches_of_its_time_and_a_new_mix_reads_as_the_newest(
    store: treering.Store, support: treering.Corpus, tmp_path: Path
) -> None:
    put(support, rows("a", 40))
    assert support.snapshot()
    put(support, rows("b", 40))
    loader = store.mix("support@v1", "support@live", seed=1).loader(batch_size=8)
    loader.lock().save(tmp_path / "mix.lock.json")
    before = list(loader)
    support.evolve(Renamed, renames={"text": "body"}, defaults={"lang": "de"})
    with support.capture() as live:
        live.extend([{"id": f"c{i}", "body": "x", "label": "a"} for i in range(9)])
    support.compact()
    assert support.snapshot()
    support.clean_up(older_than_s=0)
    again = list(treering.MixLock.load(tmp_path / "mix.lock.json").loader(treering.open(store.uri)))
    assert len(before) == len(again) == 10
    for mine, theirs in zip(before, again, strict=True):
        assert mine.keys() == theirs.keys()
        assert "lang" not in theirs
        assert all(np.array_equal(mine[name], theirs[name]) if hasattr(mine[name], "shape") else mine[name] == theirs[name] for name in mine)  # fmt: skip
    lock = store.mix("support@v1", "support@v2").lock()
    assert [source.pin.schema_version for source in lock.sources] == [2, 2]
    [batch, *_] = store.mix("support@v1", "support@v2").loader(batch_size=8)
    assert "text" not in batch
    assert set(batch["lang"]) == {"de", "en"}
    assert "schema_version" not in json.loads((tmp_path / "mix.lock.json").read_text())["sources"][0]["pin"]


def test_a_pin_of_a_later_schema_than_the_store_has_is_refused(
    store: treering.Store, support: treering.Corpus, tmp_path: Path
) -> None:
    put(support, rows("a", 3))
    pin = {**store.live("support").pin(), "schema_version": 2}
    with pytest.raises(treering.ConflictError, match="pinned with schema version 2"):
        Source.from_pin(store, pin)


def test_a_column_fingerprint_changes_with_whatever_could_change_its_bytes(
    store: treering.Store, support: treering.Corpus
) -> None:
    put(support, rows("a", 3))
    [segment] = store.live("support").segments
    assert segment.column_fingerprint("text") == "text:string"
    before = {name: segment.column_fingerprint(name) for name in segment.schema.names}
    support.evolve(Tagged)
    [segment] = store.live("support").segments
    after = {name: segment.column_fingerprint(name) for name in segment.schema.names}
    lang = after.pop("lang")
    assert after == before  # a cache of the others still serves
    assert lang.startswith("lang:string<-lang:string;2=")
    support.evolve(Renamed, renames={"text": "body"})
    [segment] = store.live("support").segments
    assert segment.column_fingerprint("body") == "body:string<-text:string;"
    with pytest.raises(treering.NotFoundError):
        segment.column_fingerprint("text")


# --- beside writers -----------------------------------------------------------------------------------------------------


def test_a_recorder_keeps_its_record_type_and_a_new_one_has_the_new(
    store: treering.Store, support: treering.Corpus
) -> None:
    with support.capture() as old:
        old.extend(rows("a", 3))
        support.evolve(Renamed, renames={"text": "body"})
        with support.capture() as new:
            assert new.extend([{"id": "n", "body": "x", "label": "l"}]).refused == []
            assert len(new.extend(rows("refused", 1)).refused) == 1
            assert old.extend(rows("b", 3)).refused == []
            assert len(old.extend([{"id": "m", "body": "x", "label": "l"}]).refused) == 1
    assert by_id(store.live("support"), ["body", "lang"]) == {
        **{f"a{i}": (f"a {i}", "en") for i in range(3)},
        **{f"b{i}": (f"b {i}", "en") for i in range(3)},
        "n": ("x", "en"),
    }
    assert len(support.quarantine()) == 2


def test_a_record_sent_again_under_another_version_is_a_duplicate_not_a_conflict(
    store: treering.Store, support: treering.Corpus
) -> None:
    old = support.capture()
    old.extend(rows("a", 4))
    old.flush()
    support.evolve(pa.schema([("body", pa.string()), ("label", pa.large_string()), ("lang", pa.string())]), renames={"text": "body"}, defaults={"lang": "en"})  # fmt: skip
    with support.capture() as new:
        same = [{"id": f"a{i}", "body": f"a {i}", "label": "a"} for i in range(4)]
        new.extend([same[0], {**same[1], "lang": "en"}, {**same[2], "lang": "fr"}, {**same[3], "body": "other"}])
        new.flush()
        assert (new.counts.stored, new.counts.duplicates, new.counts.conflicts) == (0, 2, 2)
        assert sorted(new.conflicts) == ["a2", "a3"]
        new.extend([{"id": "n", "body": "x", "label": "a"}])
        new.flush()
        assert new.add({"id": "n", "body": "x", "label": "a"}).status == "duplicate"
    old.extend([{"id": "n", "text": "x", "label": "a"}, *rows("a", 4)])
    old.flush()
    assert (old.counts.stored, old.counts.duplicates, old.counts.conflicts) == (4, 5, 0)
    assert old.add({"id": "a1", "text": "a 1", "label": "a"}).status == "duplicate"
    with pytest.raises(treering.InvalidRecordError, match="taken by other content"):
        old.add({"id": "a1", "text": "a 2", "label": "a"})
    old.close()
    assert {q.record["id"] for q in support.quarantine()} == {"a1", "a2", "a3"}


def test_a_spool_of_an_earlier_version_is_committed_after_the_evolution(
    store: treering.Store, support: treering.Corpus
) -> None:
    code = (
        "import os, sys, treering\n"
        "live = treering.open(sys.argv[1]).corpus('support').capture()\n"
        "live._drain = lambda: None\n"
        "live.extend([{'id': f'a{i}', 'text': 't', 'label': 'l'} for i in range(50)])\n"
        "os._exit(9)\n"
    )
    assert subprocess.run([sys.executable, "-c", code, store.uri], check=False).returncode == 9
    stale = treering.open(store.uri).corpus("support")
    support.evolve(Renamed, renames={"text": "body"})
    assert len(store.live("support")) == 0
    assert support.quarantine() == []
    assert by_id(store.live("support"), ["body", "lang"]) == {f"a{i}": ("t", "en") for i in range(50)}
    # And the other way round: a process that knows the first version only adopts what was spooled under the second.
    code = code.replace("'text'", "'body'").replace("a{i}", "b{i}")
    assert subprocess.run([sys.executable, "-c", code, store.uri], check=False).returncode == 9
    assert stale.quarantine() == []
    assert len(stale.versions) == 1
    assert len(store.live("support")) == 100


WRITER = """
import json, os, sys, treering
uri, name, said, stop = sys.argv[1:]
corpus = treering.open(uri, create=False).corpus("support")
field, n = "text" if len(corpus.versions) == 1 else "body", 0
with corpus.capture() as live, open(said, "w") as file:
    print("ready", flush=True)
    while not os.path.exists(stop):
        ids = [f"{name}-{n + i}" for i in range(20)]
        n += 20
        receipts = live.extend([{"id": i, field: i, "label": "l"} for i in ids])
        assert receipts.refused == []
        live.flush()
        print(json.dumps(ids), file=file, flush=True)
assert (live.counts.conflicts, live.counts.duplicates, live.counts.refused) == (0, 0, 0), live.counts
"""


def test_recorders_in_other_processes_go_on_while_the_corpus_evolves(
    store: treering.Store, support: treering.Corpus, tmp_path: Path
) -> None:
    stop = tmp_path / "stop"
    files: list[Path] = []

    def writer(name: str) -> subprocess.Popen[str]:
        files.append(tmp_path / f"{name}.jsonl")
        command = [sys.executable, "-c", WRITER, store.uri, name, str(files[-1]), str(stop)]
        started = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert started.stdout is not None
        assert started.stdout.readline() == "ready\n"
        return started

    def batches() -> list[int]:
        return [file.read_text().count("\n") for file in files]

    writers = [writer("old")]
    try:
        support.evolve(Renamed, renames={"text": "body"})
        writers.append(writer("new"))
        assert wait_for(support.snapshot)
        support.evolve(
            pa.schema([("body", pa.large_string()), ("label", pa.string()), ("lang", pa.string()), ("n", pa.int8())])
        )
        support.compact()
        support.evolve(pa.schema([("text", pa.large_string()), ("label", pa.string()), ("lang", pa.string()), ("n", pa.int64())]), renames={"body": "text"})  # fmt: skip
        assert wait_for(support.snapshot)
        before = batches()
        wait_for(lambda: all(now > then for now, then in zip(batches(), before, strict=True)))
    finally:
        stop.touch()
    for one in writers:
        one.communicate(timeout=120)
    assert [one.returncode for one in writers] == [0, 0]
    assert support.quarantine() == []
    got = [
        row
        for ref in ("v1", "v2", "live")
        for row in by_id(store.load(f"support@{ref}"), ["text", "lang", "n"]).items()
    ]
    ids = [i for file in files for line in file.read_text().splitlines() for i in json.loads(line)]
    assert len(got) == len(ids)
    # A default is for earlier records. The new writer knows no model, gives no `lang`, and its records have none.
    assert dict(got) == {i: (i, "en" if i.startswith("old") else None, None) for i in ids}


def test_of_two_that_evolve_at_once_one_gets_a_clear_conflict(store: treering.Store, support: treering.Corpus) -> None:
    started = threading.Barrier(2)
    outcomes: list[str] = []

    def evolve(column: str) -> None:
        mine = treering.open(store.uri).corpus("support")
        started.wait()
        try:
            mine.evolve(ADDED.set(2, pa.field(column, pa.string())))
            outcomes.append(column)
        except treering.ConflictError as exc:
            outcomes.append(exc.code)

    threads = [threading.Thread(target=evolve, args=(name,)) for name in ("one", "two")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    [winner] = {"one", "two"} & set(outcomes)
    assert sorted(outcomes) == sorted([winner, "schema-raced"])
    assert store.corpus("support").record_type.payload == ["text", "label", winner]
    with pytest.raises(treering.ConflictError, match="version 1 isn't the newest"):
        support.evolve(ADDED)  # a handle from before: what it would change isn't what is there


def test_a_source_that_follows_live_grows_to_the_first_record_of_a_later_schema(
    store: treering.Store, support: treering.Corpus
) -> None:
    old = support.capture()
    old.extend(rows("a", 5))
    old.flush()
    source = store.live("support")
    support.evolve(Tagged)
    old.extend(rows("b", 5))
    old.flush()
    grown = source.up_to()
    assert len(grown) == 10  # captured under the schema that it is read as
    put(support, rows("c", 5, lang="fr"))
    old.extend(rows("d", 5))
    old.close()
    assert grown.up_to() is grown
    assert support.snapshot()
    assert len(source.up_to()) == 10
    assert "lang" not in source.up_to().to_table().column_names
    with pytest.raises(treering.ConflictError, match="captured under a later schema than version 1"):
        source.up_to(20)
    assert len(store.load("support@v1")) == 20


# --- crashes ------------------------------------------------------------------------------------------------------------


class _Killed(BaseException):
    """Stands in for the kernel's kill: nothing in the package may catch it."""


@pytest.mark.parametrize("step", ["before-schema", "after-schema", "after-columns"])
@pytest.mark.parametrize(
    "next_comes", ["a new recorder", "an old recorder", "a seal", "the evolution again", "another"]
)
def test_an_evolution_cut_short_is_done_or_undone_and_whoever_comes_next_completes_it(
    store: treering.Store, support: treering.Corpus, step: str, next_comes: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(support, rows("a", 3))

    def die(corpus: BaseCorpus, name: str) -> None:
        if name == step:
            raise _Killed

    old = support.capture()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(BaseCorpus, "step", die)
        with pytest.raises(_Killed):
            support.evolve(Renamed, renames={"text": "body"})
    done = step != "before-schema"
    corpus = store.corpus("support")
    assert len(corpus.versions) == 1 + done
    name = "body" if done else "text"
    expected = {f"a{i}": f"a {i}" for i in range(3)}

    def read() -> dict[str, str]:
        return {i: value for i, (value,) in by_id(store.live("support"), [name]).items()}

    assert read() == expected
    if next_comes == "a new recorder":
        put(corpus, [{"id": "n", name: "x", "label": "l"}])
        expected["n"] = "x"
    elif next_comes == "an old recorder":
        old.extend(rows("b", 2))
        old.flush()
        expected |= {f"b{i}": f"b {i}" for i in range(2)}
    elif next_comes == "a seal":
        snapshot = corpus.snapshot()
        assert snapshot
        # What it is sealed with is a version whose columns the table has; a certificate of it never changes.
        assert snapshot.schema_version == 1 + (step == "after-columns")
        assert snapshot.digest == store.corpus("support").snapshots()[0].digest
        assert by_id(store.load("support@v1"), [name]) == {i: (value,) for i, value in expected.items()}
        expected = {}
    elif next_comes == "the evolution again":
        renames = {} if done else {"text": "body"}
        corpus.evolve(Renamed, renames=renames)
        name = "body"
        assert len(corpus.versions) == 2
        assert "lang" in corpus.table.head().schema.names
    else:
        corpus.evolve(pa.schema([(name, pa.string()), ("label", pa.string()), ("more", pa.int8())]))
        assert {"more"} <= set(corpus.table.head().schema.names)
    put(corpus, [{"id": "last", name: "y", "label": "l"}])
    old.close()
    assert read() == {**expected, "last": "y"}
    assert corpus.quarantine() == []


def test_a_table_that_can_not_be_changed_right_now_does_not_undo_an_evolution(
    store: treering.Store, support: treering.Corpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    from treering.store.table import LanceTable

    def fail(self: LanceTable, head: Any, fields: Any) -> None:
        raise treering.StoreError("failed adding columns: No space left on device", code="engine")

    with monkeypatch.context() as patch:
        patch.setattr(LanceTable, "add_columns", fail)
        support.evolve(Tagged)
    put(support, rows("a", 2, lang="fr"))
    assert by_id(store.live("support"), ["lang"]) == {"a0": ("fr",), "a1": ("fr",)}


# --- bad input ----------------------------------------------------------------------------------------------------------


def test_a_missing_or_edited_schema_version_is_an_error(store: treering.Store, support: treering.Corpus) -> None:
    put(support, rows("a", 2))
    support.evolve(Tagged)
    support.evolve(pa.schema([("text", pa.string()), ("label", pa.string()), ("lang", pa.string()), ("n", pa.int8())]))
    path = Path(store.uri) / version_path(support.record, 2)
    kept = path.read_text()
    path.unlink()
    with pytest.raises(treering.StoreError, match="version of the schema of corpus 'support' is missing"):
        store.load("support@live")
    document = json.loads(kept)
    del document["sha256"]
    edited = json.dumps({**document, "places": document["places"][:-1]}, indent=2).encode()
    for data, said in (
        (edited, "its checksum doesn't fit"),
        (add_checksum(edited), "version 2 of a schema is damaged"),
    ):
        path.write_bytes(data)
        with pytest.raises(treering.StoreError, match=said):
            store.load("support@live")


def test_a_table_changed_behind_its_schema_stops_before_the_first_batch(
    store: treering.Store, support: treering.Corpus
) -> None:
    put(support, rows("a", 20))
    support.evolve(Tagged)
    put(support, rows("b", 20))
    lance.dataset(support.uri).drop_columns(["label"])
    with pytest.raises(treering.StoreError, match="label is missing"):
        store.mix("support@live").loader(batch_size=4)


def test_a_column_of_several_types_is_refused_with_the_way_out_and_evolving_is_that(store: treering.Store) -> None:
    for name, kind in (("narrow", pa.int32()), ("wide", pa.int64()), ("other", pa.string())):
        put(store.create(name, pa.schema([("n", kind)]), heldout=0), [{"n": "1" if name == "other" else 1}] * 8)
    mix = store.mix("narrow@live", "wide@live")
    with pytest.raises(treering.UsageError, match="int32 in narrow@live, int64 in wide@live") as caught:
        mix.loader(batch_size=4)
    assert caught.value.hint is not None
    assert "evolve the corpus narrow so that n is int64" in caught.value.hint
    with pytest.raises(treering.UsageError, match="several types") as caught:
        store.mix("narrow@live", "other@live").loader(batch_size=4)
    assert "no type here holds the values of all of them: leave n out" in (caught.value.hint or "")
    store.corpus("narrow").evolve(pa.schema([("n", pa.int64())]))
    [batch, *_] = store.mix("narrow@live", "wide@live").loader(batch_size=4)
    assert batch["n"].tolist() == [1, 1, 1, 1]


def test_arguments_of_the_wrong_kind_are_named(support: treering.Corpus) -> None:
    for bad in ({"renames": ["a"]}, {"renames": {"text": 1}}, {"defaults": "x"}):
        with pytest.raises(treering.UsageError, match="it maps"):
            support.evolve(Tagged, **bad)  # type: ignore[arg-type]
    with pytest.raises(treering.UsageError, match="no record type"):
        support.evolve("nope")


def test_a_dry_run_changes_nothing(store: treering.Store, support: treering.Corpus) -> None:
    rule = support.evolve(Tagged, dry_run=True)
    assert str(next(r for r in rule.describe() if r.column == "lang")) == 'filled with "en"'
    assert len(support.versions) == len(store.corpus("support").versions) == 1
    assert "lang" not in support.table.head().schema.names


def test_rules_of_a_model_apply_again_when_it_is_given_at_opening(
    store: treering.Store, support: treering.Corpus
) -> None:
    class Strict(Record):  # without `label`: it stays in the corpus, optional
        text: str
        lang: str = "en"

    support.evolve(Strict)
    again = store.corpus("support", schema=Strict)
    with again.capture() as live:
        live.add({"id": "x", "text": "t"})
        with pytest.raises(treering.InvalidRecordError):
            live.add({"text": "t", "label": "a"})
    assert by_id(store.live("support"), ["label", "lang"]) == {"x": (None, "en")}
    with pytest.raises(treering.UsageError, match="other columns"):
        store.corpus("support", schema="labelled")
