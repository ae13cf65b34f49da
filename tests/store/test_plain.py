"""Columns copied straight out of data files: the same bytes that the engine reads, or none at all."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import treering
from treering.store import plain
from treering.store.plain import PlainColumn, PlainLayout, plain_layouts
from treering.store.table import ROW_ID

ITEMS = {"tokens": pa.int32(), "vector": pa.float32(), "half": pa.float16()}
SCHEMA = pa.schema(
    [
        *((name, pa.list_(kind, 160)) for name, kind in ITEMS.items()),
        ("pairs", pa.list_(pa.struct([("role", pa.string()), ("text", pa.string())]))),
        ("short", pa.list_(pa.int32(), 2)),
        ("holes", pa.list_(pa.int32(), 160)),
        ("label", pa.int64()),
    ]
)


def fixed(rng: np.random.Generator, kind: pa.DataType, rows: int, items: int = 160) -> pa.Array:
    numbers = rng.integers(0, 2_000, rows * items)
    values = pa.array(numbers.astype(np.float16)) if kind == pa.float16() else pa.array(numbers).cast(kind)
    return pa.FixedSizeListArray.from_arrays(values, items)


def records(rows: int, seed: int) -> pa.Table:
    rng = np.random.default_rng(seed)
    columns: dict[str, Any] = {name: fixed(rng, kind, rows) for name, kind in ITEMS.items()}
    columns["pairs"] = pa.array([[{"role": "user", "text": str(n)}] for n in range(rows)], SCHEMA.field("pairs").type)
    columns["short"] = fixed(rng, pa.int32(), rows, 2)
    holes = [None if n == 7 and seed == 0 else [n] * 160 for n in range(rows)]
    columns["holes"] = pa.array(holes, SCHEMA.field("holes").type)
    columns["label"] = pa.array(np.arange(rows))
    return pa.table(columns, schema=SCHEMA)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> treering.Corpus:
    """Several fragments, compacted beside appends, some rows deleted."""
    made = treering.open(tmp_path_factory.mktemp("plain") / "store").create("support", schema=SCHEMA)
    for part in range(4):
        with made.capture() as live:
            live.extend(records(3_000 if part == 1 else 200, part))
        if part == 1:
            made.compact()
    made.table.head().delete(f"{ROW_ID} IN (3, 250, 251, 3500)")
    return made


def room(kind: pa.DataType, rows: int) -> np.ndarray[Any, Any]:
    return np.full((rows, 160), 77, dtype=kind.to_pandas_dtype())


@given(st.lists(st.integers(0, 3_599), min_size=1, max_size=300), st.sampled_from(sorted(ITEMS)), st.booleans())
@settings(max_examples=80, deadline=None)
def test_what_is_copied_is_what_the_engine_reads(
    corpus: treering.Corpus, wanted: list[int], name: str, ascending: bool
) -> None:
    head = corpus.table.head()
    ids = np.array([one for one in wanted if one not in (3, 250, 251, 3_500)] or [0])
    ids = np.unique(ids) if ascending else ids
    out = room(ITEMS[name], len(ids))
    assert corpus.table.fill(head, ids, SCHEMA.field(name), out)
    read = head._take_rows(ids.astype(np.uint64), columns=[name])[name].combine_chunks().flatten()
    np.testing.assert_array_equal(out.reshape(-1), read.to_numpy(zero_copy_only=False))


@pytest.mark.parametrize("name", ["pairs", "short", "holes", "label", "id"])
def test_whatever_stands_otherwise_is_left_to_the_engine(corpus: treering.Corpus, name: str) -> None:
    head = corpus.table.head()
    kind = SCHEMA.field(name) if name != "id" else pa.field("id", pa.string())
    out = np.full((20, 160), 77, np.int32)
    assert not corpus.table.fill(head, np.arange(20, 40), kind, out)
    assert (out == 77).all()


def test_rows_that_arent_there_are_left_to_the_engine(corpus: treering.Corpus) -> None:
    head, out = corpus.table.head(), np.full((2, 160), 77, np.int32)
    for gone in (3, 250, 9_999, -1):
        assert not corpus.table.fill(head, np.array([10, gone]), SCHEMA.field("tokens"), out)
    assert not corpus.table.fill(head, np.array([10, 11]), pa.field("tokens", pa.list_(pa.int64(), 80)), out)
    assert not corpus.table.fill(head, np.array([10, 11]), pa.field("nothing", pa.list_(pa.int32(), 160)), out)
    assert (out == 77).all()


def test_a_column_is_known_by_its_field_and_not_by_its_name(tmp_path: Any) -> None:
    made = treering.open(tmp_path / "store").create("support", schema=SCHEMA)
    with made.capture() as live:
        live.extend(records(300, 5))
    made.table.head().alter_columns({"path": "tokens", "name": "words"})
    head, out = made.table.head(), np.zeros((300, 160), np.int32)
    ids = np.arange(300)
    assert not made.table.fill(head, ids, SCHEMA.field("tokens"), out)
    assert made.table.fill(head, ids, SCHEMA.field("tokens").with_name("words"), out)
    words = head.to_table(columns=["words"])["words"].combine_chunks()
    np.testing.assert_array_equal(out.reshape(-1), np.asarray(words.flatten()))
    head.add_columns([pa.field("tokens", SCHEMA.field("tokens").type)])
    assert not made.table.fill(made.table.head(), ids, SCHEMA.field("tokens"), out)


def test_batches_are_the_same_by_either_way(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    store = treering.open(tmp_path / "store")
    corpus = store.create("support", schema=SCHEMA)
    for part in range(2):
        with corpus.capture() as live:
            live.extend(records(900, part + 1))
        corpus.snapshot()
    with corpus.capture() as live:
        live.extend(records(500, 3))
    mix = store.mix("support@v1..v2", "support@live", seed=3)
    copied: list[bool] = []
    fill = treering.store.source.Segment.fill

    def batches(copy: bool) -> list[Any]:
        def asked(*args: Any) -> bool:
            copied.append(copy and fill(*args))
            return copied[-1]

        monkeypatch.setattr("treering.store.source.Segment.fill", asked)
        names = ["tokens", "vector", "holes", "label"]
        with mix.loader(64, columns=names, cache=False, chunk_rows=8, pool_rows=256) as loader:
            return [[batch[name].numpy().copy() for name in names] for batch in loader]

    straight = batches(True)
    assert any(copied)
    for one, other in zip(straight, batches(False), strict=True):
        for a, b in zip(one, other, strict=True):
            np.testing.assert_array_equal(a, b)


@dataclass
class Buffer:
    position: int
    size: int


@dataclass
class Page:
    buffers: list[Buffer]
    encoding: str


@dataclass
class Column:
    pages: list[Page]


@dataclass
class Metadata:
    columns: list[Column]
    num_rows: int
    major_version: int = 2
    minor_version: int = 2


def test_one_word_that_is_not_as_expected_and_the_engine_reads(corpus: treering.Corpus) -> None:
    from lance.file import LanceFileReader

    table = corpus.table
    (path, *_) = [file.path for file in table._row_places(table.head())._files.values()]
    real = LanceFileReader(path).metadata()
    number = min(plain_layouts(real))
    pages = [Page([Buffer(b.position, b.size) for b in p.buffers], p.encoding) for p in real.columns[number].pages]
    good = Metadata([Column(pages)], real.num_rows)
    found = plain_layouts(good)[0]
    assert found == plain_layouts(real)[number]
    assert found.row_bytes * real.num_rows == sum(buffer.size for page in pages for buffer in page.buffers)

    def refused(**other: Any) -> bool:
        return not plain_layouts(replace(good, **other))

    assert refused(minor_version=1)
    assert refused(major_version=3)
    assert refused(num_rows=real.num_rows - 1)
    (page, *more) = pages
    for old, new in [
        ("bits_rep: 0", "bits_rep: 1"), ("bits_def: 0", "bits_def: 1"), ("has_validity: false", "has_validity: true"),
        ("data: None", "data: Some"), ("Flat", "Bitpacked"), ("RepdefAllValidItem", "RepdefNullableItem"),
        ("BitsPerValue", "BitsPerOffset"), ("num_items: ", "num_items: 1"), ("items_per_value: ", "items_per_value: 1"),
        ("bits_per_value: ", "bits_per_value: 1"), ("PageLayout", "extra: 1, PageLayout"),
    ]:  # fmt: skip
        assert old in page.encoding
        assert refused(columns=[Column([replace(page, encoding=page.encoding.replace(old, new, 1)), *more])]), old
    assert refused(columns=[Column([replace(page, encoding=page.encoding + " more: 1"), *more])])
    assert refused(columns=[Column([replace(page, buffers=[]), *more])])
    assert refused(columns=[Column([replace(page, buffers=page.buffers * 2), *more])])
    assert refused(columns=[Column([replace(page, buffers=[Buffer(0, page.buffers[0].size + 1)]), *more])])


def test_closing_lets_go_of_mapped_files(corpus: treering.Corpus) -> None:
    table, out = corpus.table, np.zeros((1, 160), np.int32)

    def mapped() -> int:
        with open("/proc/self/maps") as maps:
            return sum(table.uri in line for line in maps)

    assert table.fill(table.head(), np.array([10]), SCHEMA.field("tokens"), out)
    assert mapped() > 0
    table.release()
    assert mapped() == 0


def test_a_layout_holds_only_types_of_its_width() -> None:
    layout = PlainLayout(160, 4, ((0, 10),))
    assert layout.holds(pa.list_(pa.int32(), 160))
    assert layout.holds(pa.list_(pa.float32(), 160))
    for other in (pa.list_(pa.int64(), 80), pa.list_(pa.int32(), 80), pa.list_(pa.int32()), pa.int32(), pa.string()):
        assert not layout.holds(other)


def test_the_kernel_is_told_what_comes_only_when_it_isnt_in_memory(
    corpus: treering.Corpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    head, ids, out = corpus.table.head(), np.arange(500, 700), np.full((200, 160), 0, np.int32)
    assert corpus.table.fill(head, ids, SCHEMA.field("tokens"), out)  # reads them: in memory from here on
    told: list[int] = []
    announce = PlainColumn._announce

    def counted(self: PlainColumn, at: int, rows: Any) -> None:
        told.append(len(rows))
        announce(self, at, rows)

    monkeypatch.setattr(PlainColumn, "_announce", counted)
    assert corpus.table.fill(head, ids, SCHEMA.field("tokens"), out)
    assert told == []
    once_more = np.zeros_like(out)
    monkeypatch.setattr(plain, "_mincore", lambda: None)  # a system that can't say
    assert corpus.table.fill(head, ids, SCHEMA.field("tokens"), once_more)
    assert told == [200]
    np.testing.assert_array_equal(once_more, out)
