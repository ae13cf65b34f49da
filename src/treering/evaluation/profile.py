"""PURE. What the records of a ref are like, learnt in one pass: counts of all of them, and a sample of the rest.

Values of short columns, splits, nulls and times are counted exactly; numbers, lengths and words come from a sample of
20,000 records. Memory doesn't grow with the number of records. Compares nothing (drift).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from datetime import datetime
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from treering.evaluation.content import LABEL, Content, content_of, payload_columns, said
from treering.evaluation.near import COMPARED_CHARS
from treering.evaluation.sample import RowSample
from treering.store.measure import hash_texts

__all__ = ["MOST_VALUES", "SAMPLE_ROWS", "Profile", "is_category", "is_number"]

SAMPLE_ROWS = 20_000
#: Beyond so many different values a column is free text, and isn't counted any more.
MOST_VALUES = 10_000

_FEW_VALUES = 20
_COUNTED = ("domain", "origin")
_CHARS, _WORDS = "chars", "words"


def is_category(kind: pa.DataType) -> bool:
    """Whether a column's values can be counted one by one."""
    return bool(
        pa.types.is_string(kind)
        or pa.types.is_large_string(kind)
        or pa.types.is_boolean(kind)
        or pa.types.is_dictionary(kind)
    )


def is_number(kind: pa.DataType) -> bool:
    """Whether a column holds numbers."""
    return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind))


def _is_list(kind: pa.DataType) -> bool:
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind))


class Profile:
    """What has been learnt of the batches given to `update`. `columns` are those that they must have."""

    def __init__(self, schema: pa.Schema, *, text: str | None = None) -> None:
        self.schema = schema
        self.content: Content = content_of(schema, text)
        payload = payload_columns(schema)
        self.categories = [name for name in _COUNTED if name in schema.names]
        self.categories += [f.name for f in payload if is_category(f.type)]
        self.numbers = [f.name for f in payload if is_number(f.type)]
        self.lists = [f.name for f in payload if _is_list(f.type) and f.name not in self.content.columns]
        self.others = [
            f.name
            for f in payload
            if f.name not in {*self.categories, *self.numbers, *self.lists, *self.content.columns}
        ]
        self.rows = 0
        self.splits: Counter[str] = Counter()
        self.nulls: Counter[str] = Counter()
        self.first_ts: datetime | None = None
        self.last_ts: datetime | None = None
        self._kinds = [name for name in ("domain", LABEL) if name in self.categories]
        self._values: dict[str, Counter[Any] | None] = {name: Counter() for name in self.categories}
        self._sample = RowSample(SAMPLE_ROWS, self._sample_schema())

    @property
    def columns(self) -> list[str]:
        """The columns that a batch must have."""
        wanted = ["id", "split", "ts", *self.categories, *self.numbers, *self.lists, *self.others]
        return list(dict.fromkeys([*wanted, *self.content.columns]))

    def _sample_schema(self) -> pa.Schema:
        fields = [pa.field("id", pa.string()), pa.field("split", pa.string()), pa.field("text", pa.large_string())]
        fields += [pa.field(f"value:{name}", pa.string()) for name in self._kinds]
        fields += [pa.field(f"number:{name}", pa.float64()) for name in (_CHARS, _WORDS, *self.numbers, *self.lists)]
        return pa.schema(fields)

    def update(self, batch: pa.RecordBatch) -> None:
        """Take in records."""
        if not len(batch):
            return
        self.rows += len(batch)
        self.splits.update(_counts(batch.column("split")))
        for name in (*self.numbers, *self.lists, *self.others, *self.content.columns):
            self.nulls[name] += batch.column(name).null_count
        ts = pc.min_max(batch.column("ts")).as_py()
        if ts["min"] is not None:
            self.first_ts = ts["min"] if self.first_ts is None else min(self.first_ts, ts["min"])
            self.last_ts = ts["max"] if self.last_ts is None else max(self.last_ts, ts["max"])
        for name, counter in self._values.items():
            if counter is not None:
                counter.update(_counts(batch.column(name)))
                if len(counter) > MOST_VALUES:
                    self._values[name] = None
        hashes = hash_texts(batch.column("id"), "profile")
        wanted = self._sample.wanted(hashes)
        if len(wanted):
            self._sample.add(self._sampled(batch.take(pa.array(wanted))), hashes[wanted])

    def _sampled(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        texts = said(batch, self.content, most=2**31 - 1)
        arrays = [
            batch.column("id").cast(pa.string()),
            batch.column("split").cast(pa.string()),
            pc.utf8_slice_codeunits(texts, 0, COMPARED_CHARS),
        ]
        arrays += [_plain(batch.column(name)) for name in self._kinds]
        arrays.append(pc.utf8_length(texts).cast(pa.float64()))
        arrays.append(pc.count_substring_regex(texts, r"\S+").cast(pa.float64()))
        arrays += [_float(batch.column(name)) for name in self.numbers]
        arrays += [pc.list_value_length(batch.column(name)).cast(pa.float64()) for name in self.lists]
        return pa.RecordBatch.from_arrays(arrays, schema=self._sample.schema)

    def recall(self, name: str, counts: Mapping[str, int] | None) -> None:
        """Add values of records that can't be read any more; None: it isn't known which, so the column isn't counted."""
        known = self._values.get(name)
        if known is None or counts is None:
            self._values[name] = None
        else:
            known.update({value: n for value, n in counts.items() if value})

    # --- what was learnt ---------------------------------------------------------------------------------------------

    def values(self, name: str) -> Counter[Any] | None:
        """Rows per value of a column, None among them for null; None when it has more than 10,000."""
        return self._values.get(name)

    def has_kinds(self, name: str) -> bool:
        """Whether a column's values are kinds: neither free text, nor names that nearly each record has its own of."""
        values = self._values.get(name)
        return values is not None and (len(values) <= _FEW_VALUES or len(values) <= self.rows / 3)

    @property
    def sampled(self) -> int:
        """Rows in the sample."""
        return len(self.sample[0])

    @property
    def sample(self) -> tuple[pa.RecordBatch, npt.NDArray[np.uint64]]:
        """Sampled records and the hashes of their ids: id, split, text, `value:domain`, `value:label`, `number:COLUMN`."""
        return self._sample.batch()

    def number(self, name: str) -> npt.NDArray[np.float64]:
        """Sampled numbers of a column, lengths of a list, or `chars` and `words` of the content; NaN for null."""
        return np.asarray(self.sample[0].column(f"number:{name}").fill_null(np.nan)).astype(np.float64)


def _counts(column: Any) -> dict[Any, int]:
    values, times = _plain(column).value_counts().flatten()
    return dict(zip(values.to_pylist(), times.to_pylist(), strict=True))


def _plain(column: Any) -> pa.Array:
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    return column.cast(pa.string())


def _float(column: Any) -> pa.Array:
    """As float64; what isn't finite is kept out of quantiles as null is."""
    numbers = column.cast(pa.float64(), safe=False)
    return pc.if_else(pc.is_finite(numbers), numbers, pa.scalar(None, pa.float64()))
