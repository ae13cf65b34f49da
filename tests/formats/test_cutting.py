"""Whole-file JSON comes apart into its elements, however it is laid out and wherever the pieces end."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from treering.formats.cutting import Cutter, is_document
from treering.schema import strict_json

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)
LAYOUTS = st.sampled_from([{}, {"indent": 2}, {"separators": (",", ":")}, {"ensure_ascii": False}])


def cut(data: bytes, size: int, *members: str) -> list[bytes]:
    cutter = Cutter(members)
    found = [text for at in range(0, len(data), size) for text in cutter.feed(data[at : at + size])]
    return found + list(cutter.finish())


def values(data: bytes, size: int, *members: str) -> list[Any]:
    return [json.loads(text) for text in cut(data, size, *members)]


@given(elements=st.lists(VALUES, max_size=6), layout=LAYOUTS, size=st.integers(1, 40))
def test_an_array_comes_apart_into_its_elements(elements: list[Any], layout: dict[str, Any], size: int) -> None:
    assert values(json.dumps(elements, **layout).encode("utf-8", "surrogatepass"), size) == elements


@given(
    elements=st.lists(VALUES, max_size=5),
    before=st.dictionaries(st.text(), VALUES, max_size=3),
    after=st.dictionaries(st.text(), VALUES, max_size=3),
    layout=LAYOUTS,
    size=st.integers(1, 40),
)
def test_an_object_comes_apart_at_the_list_that_is_asked_for(
    elements: list[Any], before: dict[str, Any], after: dict[str, Any], layout: dict[str, Any], size: int
) -> None:
    document = {**before, "data": elements, **{key: one for key, one in after.items() if key != "data"}}
    assert values(json.dumps(document, **layout).encode("utf-8", "surrogatepass"), size, "data") == elements


@given(
    objects=st.lists(st.dictionaries(st.text(), VALUES, max_size=3), max_size=4),
    layout=LAYOUTS,
    size=st.integers(1, 40),
)
def test_objects_one_after_the_other_are_each_an_element(objects: list[Any], layout: dict[str, Any], size: int) -> None:
    data = "\n".join(json.dumps(one, **layout) for one in objects).encode("utf-8", "surrogatepass")
    assert values(data, size, "no such member \0") == objects


@pytest.mark.parametrize("size", [1, 7, 1000])
def test_an_element_that_isnt_json_is_cut_out_alone(size: int) -> None:
    assert cut(b'[{"a": 1}, {"b": nope}, {"c": NaN, "c": 2}, "a]b", 7]', size) == [
        b'{"a": 1}', b'{"b": nope}', b'{"c": NaN, "c": 2}', b'"a]b"', b"7",
    ]  # fmt: skip


@pytest.mark.parametrize("data", [b'[{"a": 1}, {"b": ', b'[{"a": 1}', b'[{"a": 1}, {"b": "cut o', b'{"a": [1'])
def test_a_document_that_ends_too_soon_says_so(data: bytes) -> None:
    with pytest.raises(ValueError, match="in the middle"):
        cut(data, 5)


def test_no_more_than_one_element_is_held_and_one_that_is_too_long_comes_cut_off(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import treering.formats.cutting as module

    monkeypatch.setattr(module, "MOST_BYTES", 10_000)
    cutter = Cutter()
    small, long = b'{"a": "' + b"x" * 1_000 + b'"},', b'["' + b"y" * 500 + b'",'
    held, found = 0, []
    for chunk in [b"[", *[small] * 200, long, *[b'"' + b"z" * 500 + b'",'] * 100, b"1],", *[small] * 20, b"0]"]:
        found += list(cutter.feed(chunk))
        held = max(held, len(cutter._data))
    assert held < 12_000
    assert [len(text) for text in found].count(10_001) == 1
    assert sum(text.startswith(b'{"a"') for text in found) == 220
    assert found[-1] == b"0"
    assert list(cutter.finish()) == []


@pytest.mark.parametrize("size", [3, 1000])
def test_elements_of_any_depth_stand_side_by_side(size: int) -> None:
    elements = [b"[" * depth + b'{"a": "]}"}' + b"]" * depth for depth in range(30)]
    assert cut(b"[" + b" , ".join(elements) + b"]", size) == elements


def test_depth_costs_no_stack() -> None:
    deep = b"[" * 1_000_000 + b"]" * 1_000_000
    assert [len(text) for text in cut(b'[{"a": 1},' + deep + b',{"b": 2}]', 1 << 16)] == [8, 2_000_000, 8]


@pytest.mark.parametrize(
    ("head", "expected"),
    [
        (b'{"a": 1}\n{"b": 2}\n', False),
        (b'\n  [{"a": 1},\n {"b": 2}]', True),
        (b"[\n{", True),
        (b'{\n  "a": 1,\n', True),
        (b'{"id": "a", "text": "cut o\n{"id": "b"}\n', False),  # a broken line, then a whole one
        (b'{"a": 1, nope}\n{"b": 2}\n', False),
        (b'{"data": [{"a": 1}', True),
        (b'{"data": [{"a": 1}], "more": 2}\n', True),
        (b'{"other": {"data": [1]}}\n', False),
        (b"[1, 2]\n[3]\n", False),
        (b"plain text\n", False),
        (b"", False),
    ],
)
def test_a_document_is_told_from_lines(head: bytes, expected: bool) -> None:
    assert is_document(head, ["data"]) is expected
    assert not is_document(b'{"data": [1], "mine": 2}\n', ["data"], lambda value, goes_on: "mine" in value)
    assert is_document(b'{"data": [1]}\n\n', ["data"], lambda value, goes_on: goes_on)


def test_one_broken_line_is_a_line_once_nothing_comes_after_it() -> None:
    assert is_document(b'{"messages": [\n', ["data"])
    assert not is_document(b'{"messages": [\n', ["data"], is_all=True)
    assert not is_document(b'{"data": [1]}\n\n {"data": [2', ["data"], lambda value, goes_on: goes_on)
    assert strict_json.MOST_BYTES == 64 << 20
