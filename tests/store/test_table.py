"""What the store relies on the engine for."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

import treering


def rows(corpus: treering.Corpus, *ids: str) -> pa.Table:
    schema = corpus.table.head().schema
    columns = {name: [None] * len(ids) for name in schema.names} | {"id": list(ids), "split": ["train"] * len(ids)}
    return pa.table(columns, schema=schema)


@pytest.mark.parametrize("indexed", [False, True])
def test_two_writers_of_one_id_conflict_whether_or_not_the_index_covers_the_table(
    support: treering.Corpus, indexed: bool
) -> None:
    table = support.table
    assert table.insert_new(table.head(), rows(support, "a", "b")) == 2
    if indexed:
        support.compact()  # brings the index up to date as well
    stale = table.head()
    assert table.insert_new(table.head(), rows(support, "shared", "one")) == 2
    with pytest.raises(treering.ConflictError):
        table.insert_new(stale, rows(support, "shared", "two"))
    assert table.insert_new(table.head(), rows(support, "shared", "two")) == 1
    assert sorted(table.head().to_table(columns=["id"]).column(0).to_pylist()) == ["a", "b", "one", "shared", "two"]


def test_a_snapshot_whose_last_commit_compacted_indexed_rows_is_certified(
    store: treering.Store, support: treering.Corpus
) -> None:
    """The library can't show such a transaction, and says so with a TypeError."""
    for start in (0, 100):
        with support.capture() as live:
            live.extend([{"id": f"r{start + n}", "text": "t", "label": "l"} for n in range(100)])
        support.table.reindex(None)
    support.table.delete_rows(None, np.arange(50, 60))
    support.table.drop_deleted()
    snapshot = support.snapshot()
    assert snapshot is not None
    assert snapshot.certificate.rows == 190
