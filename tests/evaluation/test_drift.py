"""Known drift is found, chance isn't taken for it, and any column can be looked at."""

from __future__ import annotations

import random
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from treering.evaluation.content import content_of, said, words
from treering.evaluation.drift import DriftLines, balance, column_drift, js_distance, lengths, psi
from treering.evaluation.profile import MOST_VALUES, SAMPLE_ROWS, Profile
from treering.evaluation.sample import GroupSample, RowSample
from treering.schema import RecordType
from treering.schema.arrow import COMMON
from treering.store.measure import hash_texts

NOW = datetime(2026, 1, 1, tzinfo=UTC)
SCHEMA = pa.schema(
    [*COMMON, pa.field("text", pa.string()), pa.field("label", pa.string()), pa.field("score", pa.float64())]
)
TOPICS = {
    "refund": ["please", "send", "my", "money", "back", "for", "order", "it", "was", "broken", "and", "late", "again"],
    "login": [
        "i",
        "forgot",
        "the",
        "password",
        "of",
        "my",
        "account",
        "and",
        "the",
        "mail",
        "never",
        "came",
        "to",
        "me",
    ],
    "delivery": [
        "where",
        "is",
        "my",
        "parcel",
        "the",
        "driver",
        "said",
        "today",
        "but",
        "nobody",
        "rang",
        "at",
        "the",
        "door",
    ],
}


def rows(rng: random.Random, n: int, *, topics: list[str] | None = None, mean: float = 0.0) -> list[dict[str, Any]]:
    found = []
    for _ in range(n):
        label = rng.choice(topics or list(TOPICS))
        text = " ".join(rng.choices(TOPICS[label], k=rng.randint(4, 14)))
        found.append({"text": text, "label": label, "domain": label[:1], "score": rng.gauss(mean, 1)})
    return found


def profile(records: list[dict[str, Any]], schema: pa.Schema = SCHEMA, *, name: str = "r", batch: int = 700) -> Profile:
    table = pa.Table.from_pylist(
        [{"id": f"{name}{i}", "split": "train", "ts": NOW + timedelta(hours=i), **r} for i, r in enumerate(records)],
        schema=schema,
    )
    found = Profile(schema)
    for piece in table.to_batches(max_chunksize=batch):
        found.update(piece.select(found.columns))
    return found


def drifted(before: Profile, after: Profile) -> set[tuple[str, str]]:
    return {(d.column, d.what) for d in column_drift(before, after)[0] if d.drifted}


@pytest.mark.parametrize(("size", "pairs"), [(30, 100), (60, 100), (300, 50), (3_000, 8)])
def test_two_samples_of_one_distribution_are_not_called_drift(size: int, pairs: int) -> None:
    # Each column is wrongly called drifted once in 1,000 comparisons: of 5 columns × 258 pairs one or two at most.
    alarms = []
    for seed in range(pairs):
        rng = random.Random(f"{size} {seed}")
        alarms += drifted(profile(rows(rng, size), name=f"a{seed}-"), profile(rows(rng, size), name=f"b{seed}-"))
    assert len(alarms) <= 1


def test_nor_are_two_samples_of_many_rare_labels() -> None:
    # Three records a label: there the textbook χ² line cries drift in three comparisons of four.
    alarms = 0
    for seed in range(12):
        rng = random.Random(seed)
        sides = [[{"text": "x", "label": f"l{rng.randrange(900)}"} for _ in range(3_000)] for _ in "ab"]
        scores = {
            (d.column, d.what): d for d in column_drift(*(profile(s, name=f"{i}") for i, s in enumerate(sides)))[0]
        }
        alarms += scores["label", "values"].drifted
    assert alarms == 0


def test_planted_drift_is_found_where_it_is_and_nowhere_else() -> None:
    rng = random.Random(1)
    before = rows(rng, 600)
    assert drifted(profile(before), profile(rows(rng, 600, mean=1.0), name="s")) == {("score", "numbers")}
    longer = [{**r, "text": f"{r['text']} {r['text']}"} for r in rows(rng, 600)]
    assert drifted(profile(before), profile(longer, name="s")) == {("text", "length")}
    some = column_drift(profile(before), profile(rows(rng, 600, topics=["refund", "login"]), name="s"))[0]
    some.sort(key=lambda d: d.column)
    assert {(d.column, d.what) for d in some if d.drifted} == {
        ("domain", "values"),
        ("label", "values"),
        ("text", "words"),
    }
    assert {d.telling[0][:-1] for d in some[:2]} == {"d -3", "delivery -3"}
    other = [{**r, "text": r["text"].replace("money", "cash").replace("password", "passkey")} for r in rows(rng, 600)]
    (found,) = [d for d in column_drift(profile(before), profile(other, name="s"))[0] if d.drifted]
    assert (found.column, found.what, found.measure) == ("text", "words", "auc")
    assert set(found.telling[:2]) == {"cash", "passkey"}


def test_a_line_is_the_customary_one_or_what_chance_exceeds_once_in_a_thousand() -> None:
    rng = random.Random(1)
    many, few = ([profile(rows(rng, n), name=name) for name in "ab"] for n in (5_000, 40))
    assert {d.line for d in column_drift(*many)[0]} == {0.1, 0.55}
    assert all(d.chance and d.line > 0.1 for d in column_drift(*few)[0])
    assert column_drift(*many, DriftLines(js_distance=1e-4))[0][0].drifted is False  # chance still counts
    assert column_drift(profile(rows(rng, 29)), many[1]) == ([], None)


def test_the_measures_are_those_of_the_books() -> None:
    assert js_distance([1, 0], [0, 1]) == 1.0
    assert js_distance([3, 3], [50, 50]) == 0.0
    scipy = pytest.importorskip("scipy.spatial.distance")
    assert js_distance([60, 40], [30, 70]) == pytest.approx(scipy.jensenshannon([0.6, 0.4], [0.3, 0.7], 2), abs=1e-12)
    rng = np.random.default_rng(0)
    shift, bins = psi(rng.normal(size=20_000), rng.normal(0.5, size=20_000))
    assert (shift, bins) == (pytest.approx(0.25, abs=0.02), 10)  # ∫ (q − p) ln(q / p) of two normals = 0.5²


@given(
    st.lists(st.sampled_from("abc") | st.none(), max_size=40),
    st.lists(st.sampled_from("bcd") | st.none(), max_size=40),
)
@settings(max_examples=30, deadline=None)
def test_balance_adds_up_whatever_the_values(before: list[str | None], after: list[str | None]) -> None:
    sides = [profile([{"label": v} for v in values], name=n) for n, values in (("a", before), ("b", after))]
    found = balance(*sides, "label")
    if not {*before, *after} - {None}:
        assert found is None
        return
    assert found is not None
    assert sum(v.before for v in found.values) == len(before)
    assert sum(v.after for v in found.values) == len(after)
    assert set(found.new) == {*after} - {*before, None}
    assert set(found.gone) == {*before} - {*after, None}


def test_columns_of_any_type_are_looked_at_and_nulls_are_a_value() -> None:
    schema = pa.schema(
        [
            *COMMON,
            pa.field("flag", pa.bool_()),
            pa.field("kind", pa.dictionary(pa.int32(), pa.string())),
            pa.field("count", pa.int16()),
            pa.field("price", pa.decimal128(9, 2)),
            pa.field("tags", pa.list_(pa.string())),
            pa.field("vector", pa.list_(pa.float32(), 2)),
            pa.field("place", pa.struct([("x", pa.int32())])),
            pa.field("raw", pa.binary()),
            pa.field("when", pa.timestamp("us", tz="UTC")),
            pa.field("empty", pa.float64()),
        ]
    )
    full = {
        "flag": True, "kind": "k", "count": 3, "price": 2, "tags": ["a", "b"], "vector": [0.1, 0.2],
        "place": {"x": 1}, "raw": b"\xff", "when": NOW,
    }  # fmt: skip
    one, other = profile([full] * 50, schema), profile([{}] * 50, schema, name="s")
    assert drifted(one, profile([full] * 60, schema, name="t")) == set()
    found = {d.column for d in column_drift(one, other)[0] if d.drifted}
    assert found == {"flag", "kind", "count", "price", "vector", "place", "raw", "when", "tags"}
    assert drifted(other, profile([{}] * 50, schema, name="u")) == set()
    assert [length.after for length in lengths(one, other)] == [None, None]
    column_drift(profile([], schema), other)


def test_content_is_what_people_and_models_said() -> None:
    chat = RecordType.of("chat").schema
    batch = pa.RecordBatch.from_pylist(
        [
            {"messages": [{"role": "system", "content": "be kind"}, {"role": "user", "content": "hi"},
                          {"role": "assistant", "content": None}, {"role": "assistant", "content": "hello"}]},
            {"messages": [{"role": "system", "content": "be kind"}]},
        ],
        schema=pa.schema([chat.field("messages")]),
    )  # fmt: skip
    assert content_of(chat).columns == ("messages",)
    assert said(batch, content_of(chat), most=100).to_pylist() == ["hi\nhello", None]
    tokens = RecordType.of("tokens").schema
    batch = pa.RecordBatch.from_pylist(
        [{"tokens": [1, 22, 3]}, {"tokens": []}], schema=pa.schema([tokens.field("tokens")])
    )
    assert said(batch, content_of(tokens), most=100).to_pylist() == ["1 22 3", None]
    assert words(pa.array(["It’s 5 o'clock!", "東京タワー", None, "…"], pa.large_string())).to_pylist() == [
        ["it’s", "5", "o'clock"], ["東", "京", "タ", "ワ", "ー"], [], [],
    ]  # fmt: skip


def test_a_profile_is_the_same_whatever_the_batches_and_holds_no_more_than_its_sample() -> None:
    records = rows(random.Random(0), SAMPLE_ROWS + 12_000)
    one, other = profile(records, batch=900), profile(records, batch=20_000)
    assert one.sample[0].equals(other.sample[0])
    assert one.sampled == SAMPLE_ROWS
    assert one.rows == len(records)
    many = profile([{"text": "x", "label": f"l{i}"} for i in range(MOST_VALUES + 2)])
    assert many.values("label") is None
    assert all(d.column != "label" for d in column_drift(many, many)[0])


def test_a_sample_is_within_its_rows_and_its_bytes_and_stays_uniform() -> None:
    schema = pa.schema([pa.field("id", pa.string()), pa.field("text", pa.large_string())])
    sample = RowSample(1_000, schema, most_bytes=30_000)
    for start in range(0, 20_000, 500):
        ids = pa.array([f"{i}" for i in range(start, start + 500)])
        hashes = hash_texts(ids, "k")
        wanted = pa.array(sample.wanted(hashes))
        sample.add(
            pa.RecordBatch.from_arrays([ids.take(wanted), pa.array(["x" * 60] * len(wanted), pa.large_string())], schema=schema),
            hashes[np.asarray(wanted)],
        )  # fmt: skip
        assert sample._bytes <= 1.5 * 30_000
    batch, _ = sample.batch()
    everything = pa.array([f"{i}" for i in range(20_000)])
    lowest = np.argsort(hash_texts(everything, "k"))[: len(batch)]
    assert 250 < len(batch) < 350
    assert batch.column("id").to_pylist() == everything.take(pa.array(lowest)).to_pylist()
    groups = GroupSample(50, 400)
    for start in range(0, 9_000, 300):
        ids = np.arange(start, start + 300)
        groups.add(
            ids % 30,
            hash_texts(pa.array([f"{i}" for i in ids]), "k"),
            pa.array([f"{i}" for i in ids], pa.large_string()),
        )
    found = groups.groups()
    assert {len(texts) for texts in found.values()} == {12}
    by_hash = sorted(range(7, 9_000, 30), key=lambda i: hash_texts(pa.array([f"{i}"]), "k")[0])
    assert found[7] == [f"{i}" for i in by_hash[:12]]
