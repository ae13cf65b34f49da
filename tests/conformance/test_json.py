"""What comes as JSON is what RFC 8259 says it is, or it is refused by name and nothing of it is stored."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest

import treering
from treering.capture.importer import import_file
from treering.schema import parse_json
from treering.schema.strict_json import MOST_BYTES


@pytest.fixture
def notes(store: treering.Store) -> treering.Corpus:
    return store.create("notes", "labelled")


def stored(store: treering.Store) -> dict[str, Any]:
    return {row["id"]: row for row in store.live("notes").to_table().to_pylist()}


def refusal(text: str) -> str | None:
    """What `parse_json` says against a text; None when it takes it."""
    try:
        parse_json(text)
    except ValueError as exc:
        return str(exc)
    return None


def imported(corpus: treering.Corpus, *lines: bytes) -> Any:
    return import_file(corpus, io.BytesIO(b"\n".join(lines) + b"\n"), format="records")


def test_every_case_of_the_suite_is_taken_or_refused_as_it_says(json_cases: list[dict[str, Any]]) -> None:
    for case in json_cases:
        said = refusal(case["input"])
        assert said != ""
        if case["name"].startswith("y_"):
            assert said is None or "uplicate" in said, case["name"]
        elif case["name"].startswith("n_"):
            assert said is not None, case["name"]


def test_a_file_of_all_cases_stores_only_the_records_among_them_and_names_every_other_line(
    store: treering.Store, notes: treering.Corpus, json_cases: list[dict[str, Any]]
) -> None:
    lines = [case["input"].replace("\n", " ").encode("utf-8", "surrogatepass") for case in json_cases]
    good = json.dumps({"id": "good", "text": "between them", "label": "l"}).encode()
    middle = len(lines) // 2
    summary = imported(notes, *lines[:middle], good, *lines[middle:])
    assert set(stored(store)) == {"good"}
    filled = sum(bool(line.strip()) for line in lines)
    assert (summary.stored, summary.refused) == (1, filled)
    waiting = notes.quarantine()
    assert len(waiting) == filled
    assert all(q.problems and q.problems[0].message for q in waiting)
    assert {q.source for q in waiting} == {
        f"<stream>:{n}"
        for n, line in enumerate([*lines[:middle], good, *lines[middle:]], 1)
        if line.strip() and line != good
    }


def test_every_case_as_a_value_inside_a_record_is_kept_exactly_or_refused(
    store: treering.Store, notes: treering.Corpus, json_cases: list[dict[str, Any]]
) -> None:
    taken = {}
    lines = []
    for number, case in enumerate(json_cases):
        value = case["input"].replace("\n", " ")
        lines.append(
            f'{{"id": "r{number}", "text": "t", "label": "l", "meta": {{"v": {value}}}}}'.encode(
                "utf-8", "surrogatepass"
            )
        )
        if case["name"].startswith("y_"):
            taken[f"r{number}"] = value
    imported(notes, *lines)
    found = stored(store)
    for record_id, value in taken.items():
        said = refusal(value)
        if said is None:
            assert json.loads(found[record_id]["meta"]) == {"v": parse_json(value)}
        else:
            assert "uplicate" in said
            assert record_id not in found
    refused = {f"r{n}" for n, case in enumerate(json_cases) if case["name"].startswith("n_")}
    # Some that are no JSON by themselves are some inside an object, where what follows completes them.
    for record_id in refused & set(found):
        assert json.loads(lines[int(record_id[1:])])["meta"] == json.loads(found[record_id]["meta"])


HOSTILE = {
    "nan": b'{"id": "x", "text": "t", "label": "l", "meta": {"a": NaN}}',
    "infinity": b'{"id": "x", "text": "t", "label": "l", "meta": {"a": -Infinity}}',
    "overflow": b'{"id": "x", "text": "t", "label": "l", "meta": {"a": 1e999}}',
    "overflow by digits": b'{"id": "x", "text": "t", "label": "l", "meta": {"a": 1' + b"0" * 400 + b".0}}",
    "overflow in text": b'{"id": "x", "text": "t", "label": "l", "meta": "{\\"a\\": 1e999}"}',
    "a key twice": b'{"id": "x", "text": "one", "text": "two", "label": "l"}',
    "a key twice inside": b'{"id": "x", "text": "t", "label": "l", "meta": {"a": {"b": 1, "b": 2}}}',
    "a key twice in text": b'{"id": "x", "text": "t", "label": "l", "meta": "{\\"a\\": 1, \\"a\\": 2}"}',
    "a key twice by escape": b'{"id": "x", "text": "one", "te\\u0078t": "two", "label": "l"}',
    "a lone surrogate": b'{"id": "x", "text": "\\ud800", "label": "l"}',
    "a surrogate in UTF-8": b'{"id": "x", "text": "\xed\xa0\x80", "label": "l"}',
    "not UTF-8": b'{"id": "x", "text": "\xff", "label": "l"}',
    "a bomb of arrays": b"[" * 1_000_000,
    "a bomb inside": b'{"id": "x", "text": "t", "label": "l", "meta": {"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}}",
    "a bomb in text": b'{"id": "x", "text": "t", "label": "l", "meta": "{\\"a\\": '
    + b"[" * 100_000
    + b"]" * 100_000
    + b'}"}',
    "an enormous integer": b'{"id": "x", "text": "t", "label": "l", "meta": {"a": ' + b"9" * 1_000_000 + b"}}",
    "a NUL in the id": b'{"id": "x\\u0000", "text": "t", "label": "l", "extra": 1}',
    "trailing words": b'{"id": "x", "text": "t", "label": "l"} {}',
    "an array": b'[{"id": "x", "text": "t", "label": "l"}]',
    "an unknown field": b'{"id": "x", "text": "t", "label": "l", "__proto__": {}}',
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_json_is_refused_by_name_and_its_neighbours_are_stored(
    store: treering.Store, notes: treering.Corpus, name: str
) -> None:
    before, after = (json.dumps({"id": i, "text": "t", "label": "l"}).encode() for i in "ab")
    summary = imported(notes, before, HOSTILE[name], after)
    assert set(stored(store)) == {"a", "b"}
    assert (summary.stored, summary.refused) == (2, 1)
    (waiting,) = notes.quarantine()
    assert waiting.source == "<stream>:2"
    assert waiting.problems
    assert len(str(waiting.problems[0])) < 2_000


def test_a_record_of_nine_megabytes_comes_back_whole(store: treering.Store, notes: treering.Corpus) -> None:
    text = "naïve ⚑ " * 1_000_000
    summary = imported(notes, json.dumps({"id": "big", "text": text, "label": "l"}).encode())
    assert summary.stored == 1
    assert stored(store)["big"]["text"] == text


def test_a_line_without_an_end_is_refused_and_what_follows_it_is_stored(
    store: treering.Store, notes: treering.Corpus, tmp_path: Path
) -> None:
    path = tmp_path / "long.jsonl"
    with path.open("wb") as file:
        file.write(b'{"id": "long", "label": "l", "text": "')
        for _ in range(MOST_BYTES // (1 << 20) + 8):
            file.write(b"x" * (1 << 20))
        file.write(b'"}\n{"id": "next", "text": "t", "label": "l"}\n')

    class Bounded(io.BufferedReader):
        def readline(self, size: int | None = -1) -> bytes:
            assert size is not None
            assert 0 < size <= MOST_BYTES + 1  # no more of it than that is ever in memory
            return super().readline(size)

    summary = import_file(notes, Bounded(io.FileIO(path)))
    assert set(stored(store)) == {"next"}
    assert (summary.read, summary.stored, summary.refused) == (2, 1, 1)
    assert "bytes" in summary.problems[0][1][0].message
    assert len(notes.quarantine()[0].record) <= 1_000_000


def test_half_of_a_surrogate_pair_is_called_one() -> None:
    for text in (r'"\ud800"', r'"a\ud83d"'):
        with pytest.raises(ValueError, match="half of a surrogate pair"):
            parse_json(text)
    assert parse_json(r'"\ud83d\ude00"') == "\N{GRINNING FACE}"
