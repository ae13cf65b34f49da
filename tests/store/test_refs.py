from __future__ import annotations

import re

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

import treering
from treering.store import AdapterRef, Ref, parse_target

names = st.from_regex(r"[a-z][a-z0-9_-]{0,20}", fullmatch=True).filter(
    lambda n: n not in {"runs", "evaluations", "adapters", "annotations", "live", "new", "all"}
)
number = st.integers(1, 999_999_999)


@given(names, number, st.integers(1, 50), st.sampled_from(["snapshot", "range", "live", "new"]), st.booleans())
def test_a_ref_prints_the_way_it_parses(name: str, first: int, more: int, kind: str, store: bool) -> None:
    selector = {"snapshot": f"v{first}", "range": f"v{first % 1000 + 1}..v{first % 1000 + 1 + more}"}.get(kind, kind)
    text = ("s3://bucket/store#" if store else "") + f"{name}@{selector}"
    ref = Ref.parse(text)
    assert str(ref) == text
    assert (ref.corpus, ref.kind) == (name, kind)


@given(names, st.from_regex(r"[a-z0-9][a-z0-9_.-]{0,20}", fullmatch=True), st.booleans())
def test_a_selections_ref_prints_the_way_it_parses(corpus: str, name: str, store: bool) -> None:
    text = ("s3://bucket/store#" if store else "") + f"{corpus}/{name}"
    ref = Ref.parse(text)
    assert str(ref) == text
    assert (ref.corpus, ref.kind, ref.name, ref.selector) == (corpus, "selection", name, name)


@given(st.text(max_size=30))
def test_any_other_text_is_refused_by_name(text: str) -> None:
    assume(not re.fullmatch(r"(.*#)?[a-z][a-z0-9_-]*(@(v[1-9].*|live|new)|/[a-z0-9].*)", text, re.DOTALL))
    with pytest.raises(treering.UsageError) as caught:
        Ref.parse(text)
    assert caught.value.code in ("bad-ref", "bad-corpus-name", "bad-selection-name")


@pytest.mark.parametrize(
    "text",
    ["", "support", "@v1", "support@", "support@v0", "support@v01", "support@v3..v1", "support@v1..v1", "../x@v1",
     "Support@v1", "support@live..v2", "support@v1@v2", "live@v1", "support@v1 ", "sup/port@v1",
     "support/", "support/../x", "support/Name", "/name", "support/a/b", "support/-x"],
)  # fmt: skip
def test_what_is_not_a_ref_is_refused(text: str) -> None:
    with pytest.raises(treering.UsageError):
        Ref.parse(text)


def test_adapters_are_named_by_status_or_number() -> None:
    assert AdapterRef.parse("support:production").which == "production"
    assert AdapterRef.parse("support:12").which == 12
    for text in ("support", "support:", "support:0", "support:prod", ":1", "../x:1"):
        with pytest.raises(treering.UsageError):
            AdapterRef.parse(text)


def test_a_target_is_a_corpus_or_its_next_snapshot() -> None:
    assert parse_target("support") == ("support", None)
    assert parse_target("support@v3") == ("support", 3)
    for text in ("support@live", "support@v1..v2", "../x", "x#support@v1"):
        with pytest.raises(treering.UsageError):
            parse_target(text)
