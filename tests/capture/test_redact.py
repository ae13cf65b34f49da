"""Secrets and obvious personal data give way to markers before anything reaches the disk."""

from __future__ import annotations

import builtins
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import treering
from tests.erasing import files_with
from treering.capture import redact as redact_module
from treering.capture.redact import KINDS, Redactor, redaction_kinds
from treering.errors import InvalidRecordError, UsageError

EVERYTHING = Redactor(KINDS)

FOUND = [
    ("mail me at joe.d+x@mail.example.org, please", "mail me at [EMAIL], please"),
    ("a@b.co and ÄÖ@exämple.de", "[EMAIL] and [EMAIL]"),
    ("key AKIAIOSFODNN7EXAMPLE.", "key [SECRET]."),
    ("ghp_abcdefghijklmnopqrstuvwxyzABCDEF1234 is it", "[SECRET] is it"),
    ("sk-abcdefghijklmnopqrstT3BlbkFJabcdefghijklmnopqrst", "[SECRET]"),
    (
        "eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9.eyJzdWIiOiIxMjM0NTY3ODkwIn0.dozjgNryP4J3jVmNHl0w5N_XgL0n3I9PlFUP0THsR8U!",
        "[SECRET]!",
    ),
    ("https://joe:secret12@example.org/x", "https://joe:[SECRET]@example.org/x"),
    ('password = "hunter2abc"', 'password = "[SECRET]"'),
    ("-----BEGIN RSA PRIVATE KEY-----\nMIIB\nabc=\n-----END RSA PRIVATE KEY-----\nbye", "[SECRET]\nbye"),
    ("-----BEGIN PRIVATE KEY-----\ncut short", "[SECRET]"),
    ("card 4111 1111 1111 1111 ok", "card [CARD] ok"),
    ("card 378282246310005", "card [CARD]"),
    ("to DE89 3704 0044 0532 0130 00 today", "to [IBAN] today"),
    ("from 192.168.10.1 to 2001:0db8:85a3:0000:0000:8a2e:0370:7334", "from [IP] to [IP]"),
    ("call +49 170 1234567 or +1 (415) 555-2671.", "call [PHONE] or [PHONE]."),
]

LEFT_ALONE = [
    "what is the minimum balance of my account?",
    "order 4111111111111112 of 2026-11-22, room 1.2.3.4.5",
    "version 10.11.12, 0000000000000000, def f(password: str): return password",
    "it's 5 @ 3 each; see me@home",
    "call 5551234 or 0170 1234567",
    "d41d8cd98f00b204e9800998ecf8427e",
    "",
]


@pytest.mark.parametrize(("text", "expected"), FOUND)
def test_what_has_a_form_of_its_own_is_replaced(text: str, expected: str) -> None:
    counts: Counter[str] = Counter()
    assert EVERYTHING.text(text, counts) == expected
    assert sum(counts.values()) == sum(expected.count(f"[{kind.upper()}]") for kind in KINDS)


@pytest.mark.parametrize("text", LEFT_ALONE)
def test_what_only_looks_like_it_stays(text: str) -> None:
    assert EVERYTHING.text(text, Counter()) == text


@given(st.text(max_size=200) | st.lists(st.sampled_from([t for t, _ in FOUND] + LEFT_ALONE), max_size=4).map(" ".join))
@settings(max_examples=150, deadline=None)
def test_the_same_text_gives_the_same_text_and_a_second_pass_changes_nothing(text: str) -> None:
    once = EVERYTHING.text(text, Counter())
    assert EVERYTHING.text(text, Counter()) == once
    assert EVERYTHING.text(once, Counter()) == once


def test_only_what_was_asked_for_is_replaced() -> None:
    text = "joe@example.org has 4111 1111 1111 1111"
    assert Redactor(redaction_kinds(["card"])).text(text, Counter()) == "joe@example.org has [CARD]"
    assert Redactor(redaction_kinds("email")).text(text, Counter()) == "[EMAIL] has 4111 1111 1111 1111"
    assert redaction_kinds(True) == KINDS
    assert redaction_kinds(False) == redaction_kinds([]) == ()


def test_nothing_found_reaches_the_disk_and_what_was_is_counted(store: treering.Store) -> None:
    canaries = ["joe@canary.org", "AKIAIOSFODNN7CANARYX", "+49 170 7654321", "4111 1111 1111 1111", "4111111111111111"]
    corpus = store.create("support", "chat", redact=True)
    with corpus.capture() as live:
        live.add(
            {
                "id": "c-1",
                "subject": "joe@subject.org",
                "meta": '{"mail": "joe@canary.org", "card": 4111111111111111, "n": 7}',
                "messages": [
                    {"role": "user", "content": "I am joe@canary.org, call +49 170 7654321"},
                    {"role": "assistant", "content": "AKIAIOSFODNN7CANARYX is no password"},
                ],
            }
        )
        with pytest.raises(InvalidRecordError):
            live.add({"id": "c-2", "messages": "joe@canary.org", "extra": {"card": "4111 1111 1111 1111"}})
        live.refuse('{"messages": "joe@canary.org', [], "file:1")
        assert live.redacted == {"[EMAIL]": 5, "[PHONE]": 1, "[SECRET]": 1, "[CARD]": 2}
        live.flush()
        assert files_with(Path(store.uri), *canaries) == []
    (row,) = store.live("support").to_table().to_pylist()
    assert [message["content"] for message in row["messages"]] == [
        "I am [EMAIL], call [PHONE]",
        "[SECRET] is no password",
    ]
    assert row["meta"] == '{"mail": "[EMAIL]", "card": "[CARD]", "n": 7}'
    assert (row["id"], row["subject"]) == ("c-1", "joe@subject.org")  # what a record is called stays
    assert [q.record for q in corpus.quarantine()] == [
        {"id": "c-2", "messages": "[EMAIL]", "extra": {"card": "[CARD]"}}, '{"messages": "[EMAIL]'
    ]  # fmt: skip


def test_a_record_that_is_sent_twice_is_one_and_a_recorder_may_redact_more_or_less(store: treering.Store) -> None:
    corpus = store.create("support", "labelled")
    row = {"id": "x", "text": "joe@example.org", "label": "a"}
    with corpus.capture(redact=True) as live:
        live.add(row)
        live.extend(pa.Table.from_pylist([row, {**row, "id": "y"}]))
        live.flush()
        assert (live.counts.stored, live.counts.duplicates, live.counts.conflicts) == (2, 1, 0)
        assert live.add(row).status == "duplicate"
    made = treering.open(store.uri).create("other", "labelled", redact=["email"])
    with made.capture(redact=False) as live:
        live.add(row)
    assert made.record.redact == ["email"]
    assert store.live("other").to_table().column("text").to_pylist() == ["joe@example.org"]
    assert store.live("support").to_table().column("text").to_pylist() == ["[EMAIL]", "[EMAIL]"]


def test_lists_and_nulls_keep_their_places() -> None:
    kind = pa.list_(pa.struct([("role", pa.string()), ("content", pa.large_string())]))
    rows = [
        [{"role": "a", "content": "x@y.org"}, None],
        None,
        [],
        [{"role": None, "content": None}],
        [{"role": "b", "content": "z"}],
    ]
    array = pa.array(rows, kind)
    for start in range(5):
        batch = pa.RecordBatch.from_arrays([array.slice(start), pa.array(rows[start:], kind)], ["messages", "again"])
        redacted = EVERYTHING.batch(batch, Counter())
        redacted.validate(full=True)
        expected = [r if r != rows[0] else [{"role": "a", "content": "[EMAIL]"}, None] for r in rows[start:]]
        assert redacted.column("messages").to_pylist() == redacted.column("again").to_pylist() == expected


@pytest.mark.parametrize("wrong", [["names"], "emails", [7]])
def test_an_unknown_kind_is_a_usage_error(store: treering.Store, wrong: Any) -> None:
    with pytest.raises(UsageError, match="to redact"):
        store.create("support", "labelled", redact=wrong)
    assert store.corpora() == []


def test_without_the_extra_it_says_which_one_to_install(store: treering.Store, monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.startswith("detect_secrets"):
            raise ImportError(f"No module named {name!r}")
        return real(name, *args, **kwargs)

    redact_module._detectors.cache_clear()
    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(UsageError, match=r"treering\[redact\]") as error:
        store.create("support", "labelled", redact=True)
    assert error.value.code == "missing-extra"
