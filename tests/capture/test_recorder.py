from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pytest

import treering
from treering.capture.spool import Spool


def record(record_id: str, text: str = "t") -> dict[str, str]:
    return {"id": record_id, "text": text, "label": "a"}


def live_ids(store: treering.Store) -> list[str]:
    return sorted(store.live("support").to_table(["id"]).column(0).to_pylist())


def test_a_record_is_visible_after_flush_and_after_close(store: treering.Store, support: treering.Corpus) -> None:
    with support.capture() as live:
        assert live.add(record("a")).status == "stored"
        live.flush()
        assert live_ids(store) == ["a"]
        live.add(record("b"))
    assert live_ids(store) == ["a", "b"]


def test_what_is_missing_is_filled_in(store: treering.Store, support: treering.Corpus) -> None:
    with support.capture() as live:
        receipt = live.add({"text": "hello", "label": "a"})
    row = store.live("support").to_table().to_pylist()[0]
    assert row["id"] == receipt.id
    assert len(receipt.id) == 32
    assert row["ts"] is not None
    assert row["split"] in ("train", "heldout")
    assert row["domain"] is None


def test_two_records_that_say_the_same_are_two_records(store: treering.Store, support: treering.Corpus) -> None:
    with support.capture() as live:
        live.add({"text": "hi", "label": "a"})
        live.add({"text": "hi", "label": "a"})
    assert len(live_ids(store)) == 2


@pytest.mark.parametrize("between", ["nothing", "flush", "snapshot", "certificate", "new process", "two snapshots"])
def test_sent_twice_is_stored_once(store: treering.Store, support: treering.Corpus, between: str) -> None:
    sent = [record(f"r{i}") for i in range(20)]
    live = support.capture()
    live.extend(sent)
    if between == "flush":
        live.flush()
    elif between == "snapshot":
        support.snapshot()
    elif between == "certificate":
        snapshot = support.snapshot()
        assert snapshot
        assert snapshot.digest
    elif between == "two snapshots":
        support.snapshot()
        live.add(record("other"))
        support.snapshot()
    elif between == "new process":
        live.close()
        live = support.capture()
    live.extend(sent)
    assert live.add(sent[3]).status == "duplicate"
    live.close()
    everything = live_ids(store) + [
        i for s in support.snapshots() for i in store.load(s.ref).to_table(["id"]).column(0).to_pylist()
    ]
    assert Counter(everything)["r3"] == 1
    assert len(set(everything) - {"other"}) == len(everything) - everything.count("other") == 20
    assert support.quarantine() == []


@pytest.mark.parametrize("sealed", [False, True])
def test_the_same_id_with_other_content_is_refused_and_kept_aside(
    store: treering.Store, support: treering.Corpus, sealed: bool
) -> None:
    with support.capture() as live:
        live.add(record("a", "first"))
    if sealed:
        support.snapshot()
    with support.capture() as live:
        live.extend([record("a", "second"), record("b")])
    assert (live.counts.stored, live.counts.conflicts, live.conflicts) == (1, 1, ["a"])
    assert [(q.record["text"], q.problems[0].kind) for q in support.quarantine()] == [("second", "id-conflict")]
    with support.capture() as live:
        live.add(record("c", "first"))
        with pytest.raises(treering.InvalidRecordError, match="taken by other content") as caught:
            live.add(record("c", "second"))
    assert caught.value.problems[0].kind == "id-conflict"


def test_a_time_that_was_filled_in_makes_no_difference_and_a_given_one_does(
    store: treering.Store, support: treering.Corpus
) -> None:
    for ts, counted in ((None, "stored"), (None, "duplicates"), ("2020-01-01T00:00:00Z", "conflicts")):
        with support.capture() as live:
            live.extend([{**record("a"), **({"ts": ts} if ts else {})}])
        assert getattr(live.counts, counted) == 1, (ts, counted, live.counts)


def test_a_refused_record_never_blocks_the_rest(store: treering.Store, support: treering.Corpus) -> None:
    batch = [record(f"r{i}") for i in range(3_000)]
    batch[1_500] = {"id": "bad", "text": 7, "lable": "x"}  # type: ignore[dict-item]
    with support.capture() as live:
        receipts = live.extend(batch)
    assert receipts.acknowledged == 2_999
    [(position, problems)] = receipts.refused
    assert position == 1_500
    assert {(p.loc, p.kind) for p in problems} == {
        (("text",), "wrong-type"),
        (("label",), "missing-field"),
        (("lable",), "unknown-field"),
    }
    assert len(live_ids(store)) == 2_999
    [kept] = support.quarantine()
    assert kept.record == batch[1_500]
    assert kept.problems == problems


def test_a_whole_session_shares_a_split_and_the_share_is_kept(store: treering.Store) -> None:
    corpus = store.create("talks", "labelled", heldout=0.2)
    with corpus.capture() as live:
        live.extend([{"text": "t", "label": "l", "session_id": f"s{i % 1000}"} for i in range(4_000)])
    rows = store.live("talks").to_table(["session_id", "split"]).to_pylist()
    splits: dict[str, set[str]] = {}
    for row in rows:
        splits.setdefault(row["session_id"], set()).add(row["split"])
    assert all(len(found) == 1 for found in splits.values())
    share = sum(row["split"] == "heldout" for row in rows) / len(rows)
    assert 0.15 < share < 0.25  # 1,000 groups at 0.2: sd 0.013


def test_the_same_records_are_split_alike_in_every_store(tmp_path: Path) -> None:
    found = []
    for name in ("one", "two"):
        store = treering.open(tmp_path / name)
        with store.create("support", "labelled").capture() as live:
            live.extend([record(f"r{i}") for i in range(200)])
        rows = store.live("support").to_table(["id", "split"]).to_pylist()
        found.append(sorted((r["id"], r["split"]) for r in rows))
    assert found[0] == found[1]


def test_arrow_data_is_checked_as_strictly_as_records(store: treering.Store, support: treering.Corpus) -> None:
    with support.capture() as live:
        good = live.extend(
            pa.table({"text": ["a", "b", None], "label": ["x", "y", "z"], "split": ["train", "test", "train"]})
        )
        assert (good.acknowledged, [i for i, _ in good.refused]) == (1, [1, 2])
        with pytest.raises(treering.InvalidRecordError) as caught:
            live.extend(pa.table({"text": [1], "lable": ["x"]}))
    assert {(p.loc, p.kind) for p in caught.value.problems} == {
        (("text",), "wrong-type"),
        (("lable",), "unknown-field"),
        (("label",), "missing-field"),
    }
    assert len(live_ids(store)) == 1


def test_threads_share_a_recorder_and_its_syncs(store: treering.Store, support: treering.Corpus) -> None:
    inserts: list[int] = []
    original = Spool._insert

    def counted(self: Spool, group: object) -> None:
        inserts.append(len(group))  # type: ignore[arg-type]
        original(self, group)  # type: ignore[arg-type]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Spool, "_insert", counted)
        with support.capture() as live:
            threads = [
                threading.Thread(target=lambda t=t: [live.add(record(f"{t}-{i}")) for i in range(100)])
                for t in range(8)
            ]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
    assert len(live_ids(store)) == 800
    assert sum(inserts) == 800
    assert len(inserts) < 800


def test_a_killed_process_loses_nothing_it_acknowledged(store: treering.Store, support: treering.Corpus) -> None:
    code = (
        "import os, sys, treering\n"
        "from treering.capture import recorder\n"
        "recorder.FLUSH_AFTER_S = recorder.FLUSH_ROWS = 10**9\n"
        "live = treering.open(sys.argv[1]).corpus('support').capture()\n"
        "live.extend([{'id': f'r{i}', 'text': 't', 'label': 'l'} for i in range(500)] + [{'text': 'no label'}])\n"
        "os.kill(os.getpid(), 9)\n"
    )
    assert subprocess.run([sys.executable, "-c", code, store.uri], check=False).returncode == -9
    assert live_ids(store) == []
    assert support.snapshot().rows == 500  # type: ignore[union-attr]
    assert len(support.quarantine()) == 1
    assert list((Path(store.uri) / "spool").rglob("*.*")) == []


def test_a_spool_in_use_is_left_to_its_owner(store: treering.Store, support: treering.Corpus) -> None:
    code = (
        "import sys, treering\n"
        "from treering.capture import recorder\n"
        "recorder.FLUSH_AFTER_S = recorder.FLUSH_ROWS = 10**9\n"
        "live = treering.open(sys.argv[1]).corpus('support').capture()\n"
        "live.add({'id': 'a', 'text': 't', 'label': 'l'})\n"
        "print('added', flush=True); sys.stdin.readline(); live.close()\n"
    )
    other = subprocess.Popen(
        [sys.executable, "-c", code, store.uri], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert other.stdout
    assert other.stdout.readline() == "added\n"
    assert support.snapshot() is None
    other.communicate("\n", timeout=60)
    assert live_ids(store) == ["a"]


def test_a_recorder_is_refused_in_a_forked_child(support: treering.Corpus) -> None:
    with support.capture() as live:
        owner, live._pid = live._pid, -1
        with pytest.raises(treering.UsageError, match="belongs to the process"):
            live.add(record("a"))
        live._pid = owner


def test_a_closed_recorder_says_so(support: treering.Corpus) -> None:
    live = support.capture()
    live.close()
    live.close()
    with pytest.raises(treering.UsageError, match="closed"):
        live.add(record("a"))


def test_store_durability_acknowledges_what_is_in_the_table(store: treering.Store, support: treering.Corpus) -> None:
    with support.capture(durability="store") as live:
        live.add(record("a"))
        assert live_ids(store) == ["a"]


def test_fragments_stay_bounded_however_records_arrive(store: treering.Store, support: treering.Corpus) -> None:
    with support.capture() as live:
        for i in range(60):
            live.add(record(f"r{i}"))
            live.flush()
            live._compact_if_due()
    assert len(support.table.head().get_fragments()) <= 16
    assert len(live_ids(store)) == 60


def test_importing_a_file_twice_adds_nothing(store: treering.Store, support: treering.Corpus, tmp_path: Path) -> None:
    from treering.capture.importer import import_file

    lines = [json.dumps({"text": f"t{i % 50}", "label": "a"}) for i in range(100)]  # every line is there twice
    lines[10] = '{"text": "cut o'
    path = tmp_path / "records.jsonl"
    path.write_text("\n".join(lines) + "\n\n")
    first = import_file(support, str(path))
    assert (first.read, first.stored, first.refused) == (101, 99, 1)
    assert [(line, problems[0].kind) for line, problems in first.problems] == [(11, "bad-json")]
    assert support.quarantine()[0].source == f"{path}:11"
    second = import_file(support, str(path))
    assert (second.stored, second.duplicates, second.refused) == (0, 99, 1)
    assert len(live_ids(store)) == 99


def test_capture_never_imports_torch(store: treering.Store, support: treering.Corpus) -> None:
    code = (
        "import sys, treering\n"
        "c = treering.open(sys.argv[1]).corpus('support')\n"
        "with c.capture() as live: live.add({'text': 't', 'label': 'l'})\n"
        "c.snapshot().digest\n"
        "assert 'torch' not in sys.modules\n"
    )
    env = {k: v for k, v in os.environ.items() if not k.startswith("COV")}
    subprocess.run([sys.executable, "-c", code, store.uri], check=True, env=env)
