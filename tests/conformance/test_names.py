"""Names from outside never become files outside the store, and strings come back as they went in."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import hypothesis.strategies as st
import pytest
from hypothesis import HealthCheck, given, settings

import treering
from treering.store.ref import parse_target

TRAVERSAL = [
    "../evil", "..", ".", "/etc/evil", "a/../../evil", "a/b", "a\\b", "C:\\evil", "~", "~root", "~nobody-here#x", "$HOME", "%2e%2e%2fevil",
    "..%c0%af", "evil\0", "evil\n", "evil\r", " evil", "evil ", "con", "NUL", "-rf", "--store=/tmp", "a" * 300, "é", "support@v1",
    "support#x", "s3://b/x", "file:///etc", "treering.json", "tables", "spool", ".hidden", "evil.lance", "ａ", "a\u202eb",
]  # fmt: skip


def files(root: Path) -> set[str]:
    return {str(path.relative_to(root)) for path in root.rglob("*")}


def try_name(store: treering.Store, name: str) -> bool:
    """Use a name wherever one is taken. Only our own errors may come of it; True if it is a name."""
    made = False
    try:
        store.create(name, "labelled")
        made = True
    except treering.TreeringError:
        pass
    for use in (
        lambda: store.corpus(name),
        lambda: store.load(name),
        lambda: store.load(f"{name}@v1"),
        lambda: store.load(f"{name}/sel"),
        lambda: store.load(f"support/{name}"),
        lambda: store.snapshot(f"{name}@v1"),
        lambda: store.adapters(name),
        lambda: store.promote(f"{name}:candidate"),
        lambda: parse_target(name),
        lambda: store.live("support").select(rows=1, name=name),
        lambda: store.corpus("support").verify(name) if hasattr(store.corpus("support"), "verify") else None,
    ):
        with suppress(treering.TreeringError):
            use()
    return made


@pytest.fixture
def inner(tmp_path: Path) -> treering.Store:
    """A store two folders down, with something in it to be selected from."""
    store = treering.open(tmp_path / "outer" / "store")
    with store.create("support", "labelled").capture() as live:
        live.extend([{"text": f"t{i}", "label": "l"} for i in range(20)])
    return store


def outside(tmp_path: Path) -> set[str]:
    return {path for path in files(tmp_path) if not path.startswith("outer/store/")} - {"outer", "outer/store"}


def test_no_name_of_the_naughty_list_or_of_traversal_leaves_the_store(
    tmp_path: Path, inner: treering.Store, naughty_strings: list[str]
) -> None:
    made = [name for name in [*TRAVERSAL, *naughty_strings] if try_name(inner, name)]
    assert outside(tmp_path) == set()
    assert sorted(corpus.name for corpus in inner.corpora()) == sorted({"support", *made})
    assert all(name.isascii() and "/" not in name and not name.startswith((".", "-")) for name in made)


NAMES = st.one_of(
    st.text(max_size=40),
    st.lists(
        st.sampled_from(["..", "/", "\\", ".", "a", "\0", "@v1", ":", "#", "%2f", "~", "\n", "tables", "é"]), max_size=8
    ).map("".join),
)


def try_generated(tmp_path_factory: pytest.TempPathFactory, examples: int) -> None:
    root = tmp_path_factory.mktemp("names")
    store = treering.open(root / "outer" / "store")
    with store.create("support", "labelled").capture() as live:
        live.extend([{"text": f"t{i}", "label": "l"} for i in range(20)])

    @settings(max_examples=examples, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(NAMES)
    def never_outside(name: str) -> None:
        try_name(store, name)
        assert outside(root) == set()

    never_outside()


def test_no_generated_name_leaves_the_store(tmp_path_factory: pytest.TempPathFactory) -> None:
    try_generated(tmp_path_factory, 150)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_no_generated_name_of_ten_thousand_leaves_the_store(tmp_path_factory: pytest.TempPathFactory) -> None:
    try_generated(tmp_path_factory, 10_000)


def test_naughty_strings_come_back_as_they_went_in_whatever_field_they_stand_in(
    store: treering.Store, support: treering.Corpus, naughty_strings: list[str]
) -> None:
    sent = [
        {
            "id": f"{n} {text}"[:500],
            "text": text,
            "label": text,
            "domain": text,
            "session_id": text,
            "subject": text,
            "meta": {text: text},
        }
        for n, text in enumerate(naughty_strings)
    ]
    with support.capture() as live:
        receipts = live.extend(sent)
    assert receipts.refused == []
    support.snapshot()
    with support.capture() as live:
        live.extend(sent)  # sent twice, whatever is in it
    assert (live.counts.duplicates, live.counts.conflicts) == (len(sent), 0)
    found = {row["id"]: row for row in store.load("support@v1").to_table().to_pylist()}
    for record in sent:
        row = found[record["id"]]
        assert {name: row[name] for name in ("text", "label", "domain", "session_id", "subject")} == {
            name: record[name] for name in ("text", "label", "domain", "session_id", "subject")
        }
    for text in naughty_strings[:100]:
        assert len(store.load("support@v1").where(domain=text).to_table(["id"])) == naughty_strings.count(text)
