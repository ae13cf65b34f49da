"""Stores of each format stay readable; one of a newer format is refused with what it takes."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path

import pytest

import treering
from treering.store.documents import FORMAT

STORES = Path(__file__).parents[1] / "stores"
FORMATS = sorted(STORES.glob("format-*.tar.gz"))


def test_there_is_a_store_of_every_format() -> None:
    assert [path.name for path in FORMATS] == [f"format-{n + 1}.tar.gz" for n in range(FORMAT)]


@pytest.mark.parametrize("path", FORMATS, ids=lambda path: path.name)
def test_a_store_of_each_format_is_read_verified_and_written_on(path: Path, tmp_path: Path) -> None:
    with tarfile.open(path) as tar:
        tar.extractall(tmp_path)  # our own archive; `filter=` is younger than the oldest Python this runs on
    expected = json.loads(path.with_name(path.name.replace(".tar.gz", ".json")).read_text("utf-8"))
    store = treering.open(tmp_path / "store", create=False)
    corpus = store.corpus("support")
    for ref, rows in expected["rows"].items():
        assert len(store.load(ref)) == rows
        assert store.load(ref).to_table(["id", "body", "lang"]).sort_by("id").to_pylist() == expected["records"][ref]
    for ref, rows in expected["training_rows"].items():
        assert sum(int(segment.runs()[:, 1].sum()) for segment in store.load(ref).segments) == rows
    assert {snapshot.ref: snapshot.digest for snapshot in corpus.snapshots()} == expected["digests"]
    assert (len(corpus.quarantine()), len(corpus.annotations())) == (expected["quarantined"], expected["annotations"])
    assert [str(finding) for one in store.verify() for finding in one.findings] == []
    assert store.doctor().ok
    with corpus.capture() as live:
        live.extend([{"id": "v1-3", "body": "v1 number 3", "label": "b", "lang": None}, {"body": "new", "label": "a"}])
        live.flush()
        assert live.counts.stored == 1  # the other one is known
    sealed = corpus.snapshot()
    assert sealed is not None
    assert sealed.name == "v3"


def test_a_newer_store_is_refused_with_the_version_it_takes(store: treering.Store) -> None:
    marker = Path(store.uri) / "treering.json"
    newer = {"format": FORMAT + 1, "created_by": "treering 9.9.9", "whatever": ["else", {"it": "holds"}]}
    marker.write_text(json.dumps(newer), "utf-8")
    with pytest.raises(treering.StoreError, match=r"install treering 9\.9\.9 or a newer one") as caught:
        treering.open(store.uri)
    assert caught.value.code == "newer-format"
    marker.write_text(json.dumps({**newer, "created_by": "x\x1b[2J" * 50}), "utf-8")
    with pytest.raises(treering.StoreError, match="install the treering that made it"):
        treering.open(store.uri)
