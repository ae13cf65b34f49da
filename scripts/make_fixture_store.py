"""Write `tests/stores/format-N.tar.gz`: a small store of this treering's format, for later ones to open.

`python scripts/make_fixture_store.py`. One that was released is never written again: stores of each release stay
readable, and `tests/store/test_formats.py` opens them all. Beside it lies what it holds, as JSON.
"""

from __future__ import annotations

import json
import sys
import tarfile
import tempfile
from pathlib import Path

import treering
from treering.schema import Record
from treering.store.documents import FORMAT

STORES = Path(__file__).parents[1] / "tests" / "stores"


class Ticket(Record):
    """The labelled record, evolved."""

    body: str
    label: str
    lang: str = "en"


def make(root: Path) -> dict[str, object]:
    """Fill a store with a bit of everything; gives what there is to find in it."""
    store = treering.open(root)
    corpus = store.create("support", "labelled", heldout=0.25)
    for name, said in (("v1", "text"), ("v2", "body")):
        with corpus.capture() as live:
            live.extend(
                [
                    {
                        "id": f"{name}-{i}",
                        said: f"{name} number {i}",
                        "label": "ab"[i % 2],
                        "ts": "2026-01-01T00:00:00Z",
                    }
                    for i in range(12)
                ]
            )
            live.extend([{"id": f"{name}-refused", said: 12}])
        corpus.snapshot(message=name)
        if name == "v1":
            corpus.evolve(Ticket, renames={"text": "body"})
    with corpus.capture() as live:
        live.extend([{"id": f"live-{i}", "body": f"live number {i}", "label": "a", "lang": "de"} for i in range(3)])
    corpus.annotate("v1-3", exclude=True, by="ann")
    corpus.annotate("v2-1", label="b", quality=0.5)
    store.load("support@v1").select(rows=4, name="replay")
    corpus.clean_up(older_than_s=0.0)
    refs = ["support@v1", "support@v2", "support@live", "support/replay"]
    return {
        "rows": {ref: len(store.load(ref)) for ref in refs},
        "digests": {snapshot.ref: snapshot.digest for snapshot in corpus.snapshots()},
        "records": {ref: store.load(ref).to_table(["id", "body", "lang"]).sort_by("id").to_pylist() for ref in refs},
        "quarantined": len(corpus.quarantine()),
        "annotations": len(corpus.annotations()),
        "training_rows": {ref: sum(int(s.runs()[:, 1].sum()) for s in store.load(ref).segments) for ref in refs[:3]},
    }


def main() -> int:
    """See the module's text."""
    STORES.mkdir(exist_ok=True)
    archive = STORES / f"format-{FORMAT}.tar.gz"
    with tempfile.TemporaryDirectory() as scratch:
        expected = make(Path(scratch) / "store")
        with tarfile.open(archive, "w:gz") as tar:
            tar.add(Path(scratch) / "store", "store")
    archive.with_name(f"format-{FORMAT}.json").write_text(
        json.dumps(expected, indent=1, sort_keys=True) + "\n", "utf-8"
    )
    print(f"{archive.name}: {archive.stat().st_size:,} bytes")
    return 0


if __name__ == "__main__":
    sys.exit(main())
