"""Taking rows straight from data files: the rows that were asked for, in the order asked, or the engine's own way."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import treering
from treering.store.certificate import split_runs
from treering.store.rows import FileContents, FileReaders, row_runs
from treering.store.table import ROW_ID


@pytest.fixture(scope="module")
def grown(tmp_path_factory: pytest.TempPathFactory) -> treering.Corpus:
    """A snapshot of several fragments, some of their rows deleted, and compacted beside appends."""
    store = treering.open(tmp_path_factory.mktemp("rows") / "store")
    corpus = store.create("support", "labelled")
    for part in range(4):
        with corpus.capture() as live:
            live.extend([{"id": f"{part}-{n}", "text": f"text {part} {n}", "label": str(n % 5)} for n in range(100)])
        if part == 1:
            corpus.compact()
    return corpus


@given(
    st.lists(st.integers(0, 399), min_size=1, max_size=300),
    st.sampled_from([("text",), ("label", "id"), ("id", "meta")]),
)
@settings(max_examples=60, deadline=None)
def test_rows_come_in_the_order_asked_and_as_often(grown: treering.Corpus, wanted: list[int], columns: Any) -> None:
    table, head = grown.table, grown.table.head()
    ids = np.array(wanted, dtype=np.int64)
    everything = head.to_table(columns=[*columns, ROW_ID])
    by_id = {row[ROW_ID]: {name: row[name] for name in columns} for row in everything.to_pylist()}
    found = table.take(head, ids, list(columns))
    assert found.column_names == list(columns)
    assert found.to_pylist() == [by_id[one] for one in wanted]
    places = table._row_places(head)
    assert places.take(ids, tuple(columns), table._readers) is not None  # it was the short way
    table.release()


def test_what_the_files_cant_answer_the_engine_does(grown: treering.Corpus) -> None:
    table, head = grown.table, grown.table.head()
    places = table._row_places(head)
    assert places.take(np.array([3, 4_000]), ("id",), table._readers) is None
    assert len(table.take(head, np.array([3, 4_000]), ["id"])) == 1
    before = table.take(head, np.array([3, 250]), ["text", "label"]).to_pylist()
    head.alter_columns({"path": "text", "name": "body"})
    head.add_columns({"text": "label"})
    renamed = table.head()
    try:
        assert table._row_places(renamed).take(np.array([3, 250]), ("text",), table._readers) is None
        assert table.take(renamed, np.array([3, 250]), ["text"])["text"].to_pylist() == [row["label"] for row in before]
        assert table.take(renamed, np.array([3]), ["body"])["body"].to_pylist() == [before[0]["text"]]
    finally:
        renamed.drop_columns(["text"])
        table.head().alter_columns({"path": "body", "name": "text"})


def test_several_threads_take_at_once(grown: treering.Corpus) -> None:
    table, head = grown.table, grown.table.head()
    everything = head.to_table(columns=["id", ROW_ID])
    names = dict(zip(everything[ROW_ID].to_pylist(), everything["id"].to_pylist(), strict=True))
    wrong: list[Any] = []

    def work(seed: int) -> None:
        try:
            for ids in np.random.default_rng(seed).integers(0, 400, (40, 50)):
                found = table.take(head, ids, ["id"])["id"].to_pylist()
                if found != [names[one] for one in ids.tolist()]:
                    wrong.append(found)
        except BaseException as exc:
            wrong.append(exc)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_the_least_recently_used_files_are_closed() -> None:
    opened: list[str] = []

    class Reader:
        def __init__(self, path: str) -> None:
            opened.append(path)

        def take_rows(self, rows: list[int], *more: int) -> list[Any]:
            return [pa.record_batch({"n": rows})]

    readers = FileReaders(lambda path, columns: Reader(path), lambda path: FileContents(("n",), {}), limit=2)
    for path in ("a", "b", "a", "c", "a", "b"):
        readers.take(path, ("n",), [1])
    assert opened == ["a", "b", "c", "b"]


@given(st.lists(st.integers(0, 60), unique=True, max_size=60), st.integers(1, 9))
@settings(max_examples=100, deadline=None)
def test_runs_hold_exactly_the_rows_in_order(ids: list[int], cut: int) -> None:
    splits = ["train" if one % 3 else "heldout" for one in ids]
    batches = [
        pa.record_batch(
            {"split": pa.array(splits[low : low + cut], pa.string()), ROW_ID: np.array(ids[low : low + cut], np.uint64)}
        )
        for low in range(0, len(ids), cut)
    ]
    runs = split_runs(batches, "train")
    found = [one for first, count in runs.tolist() for one in range(first, first + count)]
    assert found == sorted(one for one in ids if one % 3)
    assert all(b > a + n for (a, n), (b, _) in zip(runs.tolist(), runs.tolist()[1:], strict=False))
    addresses = [one + 1_000 * (one > 30) for one in ids]
    places = row_runs([(np.array(ids, np.uint64), np.array(addresses, np.uint64))])
    spelt = {a + k: b + k for a, b, n in places.tolist() for k in range(n)}
    assert spelt == dict(zip(ids, addresses, strict=True))
