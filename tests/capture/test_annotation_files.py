"""Annotations from files: every format says the same, bad lines are named, and then nothing is stored."""

from __future__ import annotations

import gzip
import io
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import treering
from treering.capture.annotation_files import annotate_file
from treering.errors import InvalidRecordError, NotFoundError, StoreError, UsageError


@pytest.fixture
def filled(support: treering.Corpus) -> treering.Corpus:
    with support.capture() as live:
        live.extend([{"id": f"r-{n}", "text": f"text {n}", "label": "l"} for n in range(5)])
    return support


def said(corpus: treering.Corpus) -> list[tuple[Any, ...]]:
    return [(r["id"], r["key"], r["value"], r["by"], r["note"]) for r in corpus.annotations().to_pylist()]


WORDS = [
    ("r-1", "label", '"a, \\"b\\"\\nc"', "ann", None),
    ("r-1", "quality", "0.5", "ann", None),
    ("r-2", "outcome", '{"solved":true}', None, "why"),
    ("r-3", "outcome", '"plain words"', None, None),
    ("r-3", "exclude", "true", None, None),
    ("r-4", "exclude", "false", None, None),
]


def test_jsonl_csv_and_parquet_say_the_same(store: treering.Store, filled: treering.Corpus, tmp_path: Path) -> None:
    (tmp_path / "w.csv").write_bytes(
        b"\xef\xbb\xbfid,label,quality,outcome,exclude,by,note\r\n"
        b'r-1,"a, ""b""\nc",0.5,,,ann,\r\n'
        b'\r\nr-2,,,"{""solved"": true}",,,why\r\n'
        b"r-3,,,plain words,TRUE,,\r\n"
        b"r-4,,,,no,,\r\n"
    )
    (tmp_path / "w.jsonl.gz").write_bytes(
        gzip.compress(
            b'{"id": "r-1", "label": "a, \\"b\\"\\nc", "quality": 0.5, "by": "ann"}\n\n'
            b'{"id": "r-2", "outcome": {"solved": true}, "note": "why"}\n'
            b'{"id": "r-3", "outcome": "plain words", "exclude": true}\n{"id": "r-4", "exclude": false}'
        )
    )
    table = pa.table(
        {
            "id": ["r-1", "r-3", "r-4"], "label": ['a, "b"\nc', None, None], "quality": [0.5, None, None],
            "by": ["ann", None, None], "exclude": [None, True, False],
        }
    )  # fmt: skip
    pq.write_table(table, tmp_path / "w.parquet")
    assert annotate_file(filled, str(tmp_path / "w.csv")) == 6
    assert said(filled) == WORDS
    for name in ("two", "three"):
        other = store.create(name, "labelled")
        with other.capture() as live:
            live.extend([{"id": f"r-{n}", "text": f"text {n}", "label": "l"} for n in range(5)])
        if name == "two":
            assert annotate_file(other, str(tmp_path / "w.jsonl.gz")) == 6
            assert said(other) == WORDS
        else:
            assert annotate_file(other, (tmp_path / "w.parquet").as_uri()) == 4
            assert said(other) == [word for word in WORDS if word[1] != "outcome"]


BAD = [
    ("x.csv", "id,label\nr-1,a\n\nr-2,b,c\nr-3\n", ["line 4: record: expected 2 cells as in the header, got 3", "line 5"]),
    ("x.csv", "id,label\nr-1,a\nr-9\n", ["line 3: record: expected 2 cells"]),
    ("x.csv", 'id,label\n"r-1\n",a\nr-1,"b', ["unexpected end of data"]),
    ("x.csv", 'id,note,exclude\nr-1,"two\nlines",true\nr-2,,perhaps\n', ["line 4: exclude: expected true or false, got 'perhaps'"]),
    ("x.csv", "id,quality\nr-1,nan\nr-2,1e999\nr-3,0x1\n", ["line 2: quality", "line 3: quality", "line 4: quality"]),
    ("x.csv", "record,label,label\nr-1,a,b\n", ["line 1: record", "line 1: label: expected each column once", "line 1: id"]),
    ("x.csv", b"id,label\nr-1,a\nr-2,\xff\n", ["line 3: record: expected UTF-8 text"]),
    ("x.jsonl", '{"id": "r-1", "label": "a"}\n\n{}\n[1]\n{"id": "r-1"}\n', ["line 3: id", "line 4", "line 5"]),
    ("x.jsonl", '{"id": "r-1", "label": "a"}\n\n{"id"', ["line 3: record: expected a JSON object"]),
    ("x.jsonl", "[" * 100_000, ["line 1"]),
]  # fmt: skip


@pytest.mark.parametrize(("name", "content", "expected"), BAD)
def test_a_bad_line_is_named_and_nothing_is_stored(
    filled: treering.Corpus, tmp_path: Path, name: str, content: str | bytes, expected: list[str]
) -> None:
    (tmp_path / name).write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(InvalidRecordError) as caught:
        annotate_file(filled, str(tmp_path / name))
    assert all(text in caught.value.message for text in expected), caught.value.message
    assert caught.value.message.startswith("nothing was stored: ")
    assert said(filled) == []


def test_a_bad_row_of_a_parquet_file_is_named_by_its_number(filled: treering.Corpus, tmp_path: Path) -> None:
    pq.write_table(pa.table({"id": ["r-1", None], "label": ["a", "b"]}), tmp_path / "w.parquet")
    with pytest.raises(InvalidRecordError, match="row 2: id: expected the id of a record"):
        annotate_file(filled, str(tmp_path / "w.parquet"))
    (tmp_path / "no.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(StoreError, match="as Parquet"):
        annotate_file(filled, str(tmp_path / "no.parquet"))
    with pytest.raises(NotFoundError, match="no file"):
        annotate_file(filled, str(tmp_path / "none.parquet"))
    with pytest.raises(NotFoundError, match="no record 'r-77'"):
        annotate_file(filled, io.BytesIO(b"id,label\nr-1,a\nr-77,b\n"), format="csv")
    with pytest.raises(UsageError, match="no format"):
        annotate_file(filled, io.BytesIO(b""), format="xml")  # type: ignore[arg-type]
    assert annotate_file(filled, io.BytesIO(b"")) == annotate_file(filled, io.BytesIO(b""), format="csv") == 0
    assert said(filled) == []
