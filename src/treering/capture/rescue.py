"""What the doctor knows of acknowledged records that aren't in the table: spools, and data files that nothing names.

Records found in either are captured again as if they had just been sent: what the store holds already is dropped as a
duplicate, whoever was erased stays erased. Nothing else is done to the store here.
"""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

from treering.capture.recorder import Recorder, adopt_orphans, spool_directory
from treering.schema import Alignment
from treering.store.corpus import BaseCorpus
from treering.store.lease import is_held
from treering.store.place import sealed_in
from treering.store.snapshot import standing

if TYPE_CHECKING:
    from treering.store.doctor import Chart

__all__ = ["look_at", "take_in_again"]

#: What a repair of these may have left in files that no version names any more.
_LOST = ("rolled-back", "manifest-changed", "manifest-damaged")


def look_at(chart: Chart, corpus: BaseCorpus) -> None:
    """Spools of this host and, after a table went on from an older version, data files that nothing names."""
    _spools(chart, corpus)
    mine = corpus.table.path_of("_versions")
    if any(remark.code in _LOST and remark.repaired and remark.where == mine for remark in chart.remarks):
        taken = take_in_again(corpus)
        chart.add("note", "taken-in-again", mine, f"{taken:,} records were found in files that no version named")


def _spools(chart: Chart, corpus: BaseCorpus) -> None:
    """Spools on this host: of processes that live, of ones that are gone, and damaged ones."""
    folder = spool_directory(corpus)
    where = f"spool/{corpus.record.table}"
    for path in sorted(folder.glob("*")) if folder.is_dir() else []:
        if path.suffix == ".damaged":
            rows, readable = _waiting(path)
            line = (
                f"can't be read as a spool; of its records {rows:,} can still be counted"
                if readable
                else "can't be read"
            )
            chart.add("problem", "spool-damaged", f"{where}/{path.name}", line,
                      "send those records again, then remove the file; a backup of it may be whole")  # fmt: skip
        elif path.suffix == ".sqlite":
            rows, readable = _waiting(path)
            if is_held(path.with_suffix(".lock")):
                if rows:
                    chart.add("note", "spool", f"{where}/{path.name}", f"{rows:,} records of a running process wait")
            elif not readable:
                chart.add("problem", "spool-damaged", f"{where}/{path.name}", "can't be read",
                          "it is set aside as *.damaged", cure=lambda: adopt_orphans(corpus))  # fmt: skip
            else:
                chart.add("warning" if rows else "note", "spool-orphaned", f"{where}/{path.name}",
                          f"{rows:,} records of a process that is gone wait for their commit",
                          "whoever captures next commits them", cure=lambda: adopt_orphans(corpus))  # fmt: skip


def _waiting(path: Path) -> tuple[int, bool]:
    """Accepted rows in a spool, and whether it could be read. Changes nothing in it."""
    try:
        with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, timeout=5)) as connection:
            return int(connection.execute("SELECT coalesce(sum(rows), 0) FROM batches").fetchone()[0]), True
    except sqlite3.Error:
        return 0, False


def take_in_again(corpus: BaseCorpus) -> int:
    """Capture again the records of data files that nothing names: what was committed and then lost with its version.

    Returns how many the store didn't hold. Raises StoreError for a file that isn't whole, after the others.
    """
    table = corpus.table
    sealed = [sealed_in(corpus, record).dataset for record in standing(corpus)]
    versions = corpus.known_versions()
    with Recorder(corpus.at_schema(len(versions))) as live:
        for path in table.orphans(sealed):
            rows = table.read_orphan(path)
            alignment = Alignment.of_stored(versions, rows.schema, where=path)
            live.extend(alignment.apply(rows, [*versions[-1].schema.names]))
        live.flush()
        return live.counts.stored
