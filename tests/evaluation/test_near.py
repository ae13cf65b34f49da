"""Near twins are found and others aren't; templates too."""

from __future__ import annotations

import random

import pyarrow as pa
import pytest

from treering.evaluation.near import NearIndex, Sketches
from treering.evaluation.templates import commonest

LETTERS = "abcdefghijklmnopqrstuvwxyz"


def text(rng: random.Random, n: int = 12) -> str:
    return " ".join("".join(rng.choices(LETTERS, k=rng.randint(2, 8))) for _ in range(n))


def shingles(one: str) -> set[str]:
    return {one[i : i + 5] for i in range(max(len(one) - 4, 1))}


def jaccard(one: str, other: str) -> float:
    a, b = shingles(one), shingles(other)
    return len(a & b) / len(a | b)


def changed(rng: random.Random, one: str, letters: int) -> str:
    for _ in range(letters):
        at = rng.randrange(len(one))
        one = one[:at] + rng.choice(LETTERS) + one[at + 1 :]
    return one


def index(texts: list[str | None], *, line: float = 0.8) -> NearIndex:
    return NearIndex(
        pa.array([f"q{i}" for i in range(len(texts))], pa.string()), pa.array(texts, pa.large_string()), line=line
    )


def sketches(texts: list[str | None], name: str = "t") -> Sketches:
    return Sketches(
        pa.array([f"{name}{i}" for i in range(len(texts))], pa.string()), pa.array(texts, pa.large_string())
    )


def test_what_nearly_equals_is_found_with_its_exact_similarity_and_the_rest_is_not() -> None:
    rng = random.Random(5)
    queries = [text(rng) for _ in range(600)]
    stream = [changed(rng, query, i % 8) for i, query in enumerate(queries)]
    near = index(queries)
    for start in range(0, 600, 128):
        near.pass_by(Sketches(pa.array([f"t{i}" for i in range(start, min(start + 128, 600))]),
                              pa.array(stream[start : start + 128])), "place")  # fmt: skip
    found = {twin.query: twin for twin in near.twins()}
    expected = {i for i in range(600) if jaccard(queries[i], stream[i]) >= 0.8}
    assert 150 < len(expected) < 500
    assert set(found) <= expected
    assert (
        len(found) >= len(expected) - 2
    )  # bands find 99.99 % at the line; signatures come 3.5 standard errors short at worst
    for i, twin in found.items():
        assert (twin.id, twin.place) == (f"t{i}", "place")
        assert twin.similarity == pytest.approx(jaccard(queries[i], stream[i]), abs=1e-4)


def test_case_spaces_and_wide_letters_make_no_difference_and_the_same_text_wins() -> None:
    near = index(["Where is  my parcel\tplease?", "東京タワーはどこですか教えて", "ＡＢＣ ｄｅｆｇｈ"])
    near.pass_by(sketches(["where is my parcel, please?", "東京タワーはどこですか教えて", "nothing like it at all"]))
    near.pass_by(sketches([" WHERE IS MY PARCEL PLEASE? ", "abc DEFGH"], "u"))
    assert {(twin.query, twin.id, twin.similarity) for twin in near.twins()} == {
        (0, "u0", 1.0), (1, "t1", 1.0), (2, "u1", 1.0),
    }  # fmt: skip


def test_a_record_is_not_its_own_twin_and_one_without_text_has_none() -> None:
    texts = ["the very same words", "the very same words", "alone with these", None, "", None]
    near = index(texts)
    near.pass_by(sketches(texts, "q"))
    assert {(twin.query, twin.id) for twin in near.twins()} == {(0, "q1"), (1, "q0")}
    assert near.with_text == 3
    assert near.has_twin().tolist() == [True, True, False, False, False, False]
    index([]).pass_by(sketches(texts))
    near.pass_by(sketches([]))


def test_a_copy_is_found_behind_the_record_itself_and_wins_over_what_came_before() -> None:
    near = index(["where is my parcel, please tell me"])
    near.pass_by(sketches(["where is my parcel, please tell us"]))
    near.pass_by(Sketches(pa.array(["q0", "copy"]), pa.array(["where is my parcel, please tell me"] * 2)))
    assert [(twin.id, twin.similarity) for twin in near.twins()] == [("copy", 1.0)]


def test_many_of_one_mould_are_matched_without_comparing_each_with_each() -> None:
    texts: list[str | None] = [f"dear team, the parcel with the number {i} has not arrived" for i in range(3_000)]
    near = index(texts)
    near.pass_by(sketches(texts, "q"))
    assert near.has_twin().mean() > 0.99


def test_the_twins_are_the_same_in_any_batches() -> None:
    rng = random.Random(2)
    queries = [text(rng) for _ in range(200)]
    stream: list[str | None] = [changed(rng, q, 1) for q in queries]
    found = []
    for size in (200, 37):
        near = index(queries)
        for start in range(0, 200, size):
            near.pass_by(Sketches(pa.array([f"t{i}" for i in range(start, min(start + size, 200))]),
                                  pa.array(stream[start : start + size])))  # fmt: skip
        found.append(near.twins())
    assert found[0] == found[1]


def test_a_template_is_found_and_varied_texts_have_none() -> None:
    pytest.importorskip("drain3")
    names = ["Ann", "Bob", "Eve", "Li", "Max", "Zoe"]
    mould = [f"Hello, I am {name} and I want a refund for order {i * 37}, thanks" for i, name in enumerate(names)]
    found = commonest([*mould, "Give me my money back now"])
    assert (found.count, found.of) == (6, 7)
    assert found.text == "Hello, I am <*> and I want a refund for order <*> thanks"
    rng = random.Random(1)
    assert commonest([text(rng) for _ in range(50)]).count == 1
    assert commonest([""]).share == 1
