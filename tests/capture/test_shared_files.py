"""Files that several workers share become the very same as when one process reads them, and a mixture of two states never does."""

from __future__ import annotations

import gzip
import json
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import treering
from treering.capture import chunks
from treering.capture import importer as module
from treering.capture.chunks import chunks_of_file
from treering.errors import StoreError, TreeringError, UsageError


class Sharing:
    """An engine whose workers are generators of this process: it shows who takes what, and lets files change meanwhile."""

    name = "local"

    def __init__(self, slots: int, *, before: Callable[[int], None] | None = None) -> None:
        self.slots = slots
        self.shares: list[Any] = []
        self.made: list[int] = []  # chunks of each worker
        self._before = before

    def stream(self, task: str, arguments: Mapping[str, Any], *, ahead: int = 4) -> Iterator[bytes]:
        number = len(self.shares)
        self.shares.append(arguments["share"])
        self.made.append(0)

        def results() -> Iterator[bytes]:
            if self._before is not None:
                self._before(number)
            for data in chunks_of_file(**arguments):
                self.made[number] += 1
                yield data

        return results()

    def close(self) -> None:
        """Nothing is open."""


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Portions of sixteen values or a thousand bytes, with chunks inside them, and every file is worth it."""
    monkeypatch.setattr(module, "_WORKERS_FROM", 1)
    monkeypatch.setattr(module, "ROWS", 16)
    monkeypatch.setattr(chunks, "_BYTES", 1_000)
    monkeypatch.setattr(chunks, "_SAID", 5)


def use(monkeypatch: pytest.MonkeyPatch, engine: Sharing) -> Sharing:
    monkeypatch.setattr(module, "LocalEngine", lambda: engine)
    return engine


def watch_parsing(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """The texts that are parsed from now on, by whichever worker."""
    parsed: list[bytes] = []
    parse = chunks.parse_json

    def watched(text: bytes) -> Any:
        parsed.append(text)
        return parse(text)

    monkeypatch.setattr(chunks, "parse_json", watched)
    return parsed


def write(path: Path, lines: list[Any]) -> str:
    path.write_text("".join((one if isinstance(one, str) else json.dumps(one)) + "\n" for one in lines), "utf-8")
    return str(path)


def outcome(corpus: treering.Corpus, path: str, format: str = "auto") -> Any:  # noqa: A002
    """All there is to see of an import: what it says, what it stored in which order, what waits in quarantine."""
    said: Any
    try:
        done = corpus.capture_file(path, format=format)
    except TreeringError as exc:
        said = (type(exc), exc.code, str(exc))
    else:
        said = (done.read, done.stored, done.duplicates, done.refused, done.annotations, done.passed, done.problems)
    stored = corpus.store.live(corpus.name).to_table(["id", "session_id", "meta"]).sort_by("id").to_pylist()
    waiting = sorted((one.source or "", str(one.problems)) for one in corpus.quarantine())
    words = sorted(map(str, corpus.annotations().select(["id", "key", "value", "by"]).to_pylist()))
    return said, stored, waiting, words


def chat(said: str, **more: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": said}], **more}


LINES = st.one_of(
    st.sampled_from("abc").map(lambda word: chat(word, kind="x")),  # copies, whose ids are made
    st.integers(0, 40).map(lambda n: chat(str(n), session_id=f"s{n}", odd=n)),
    st.sampled_from(["one", "two"]).map(lambda name: chat("has an id", id=name, model="m")),
    st.just(chat("other content", id="one", model="m")),
    st.sampled_from(["", "  ", "{broken", "[1, 2]", "7", '{"text": "t"}', '{"messages": 3}']),
    st.just({"input": {"messages": []}, "preferred_output": [], "non_preferred_output": []}),
    st.just({"prompt": "p", "completion": "c", "label": True}),
    st.integers(0, 9).map(lambda n: {"prompt": "p" * 40 * n, "completion": "c", "label": False}),
    st.just({"chosen": [], "rejected": []}),
)


@pytest.mark.usefixtures("small")
@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    runs=st.lists(st.tuples(LINES, st.integers(1, 24)), max_size=24),
    kind=st.sampled_from(["auto", "openai", "trl", "records"]),
    workers=st.integers(2, 4),
)
def test_a_shared_file_becomes_the_same_as_one_read_here(
    tmp_path_factory: pytest.TempPathFactory, runs: list[tuple[Any, int]], kind: str, workers: int
) -> None:
    root = tmp_path_factory.mktemp("shared")
    path = write(root / "file.jsonl", [line for line, often in runs for _ in range(often)])
    store = treering.open(root / "store")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "can_start_workers", lambda: False)
        alone = outcome(store.create("here", "chat"), path, kind)
    with pytest.MonkeyPatch.context() as patch:
        engine = use(patch, Sharing(workers))
        assert outcome(store.create("there", "chat"), path, kind) == alone
    assert len(engine.shares) in (0, workers)


@pytest.mark.usefixtures("small")
def test_each_worker_makes_its_share_and_no_more(
    support: treering.Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, parsed = use(monkeypatch, Sharing(3)), watch_parsing(monkeypatch)
    path = write(tmp_path / "a.jsonl", [{"text": f"text {i}", "label": "a"} for i in range(1_600)])
    done = support.capture_file(path)
    assert (done.read, done.stored) == (1_600, 1_600)
    assert engine.made == [34, 34, 33]  # a hundred portions, and a word of each that it is at the end
    assert (
        len(parsed) - len(set(parsed)) == 2 * 16 + 3
    )  # the first portion is everybody's, and its first value looked at
    assert len(support.store.live("support")) == 1_600


def test_whether_a_file_fits_is_settled_by_what_comes_first_in_it(
    store: treering.Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, small: None
) -> None:
    other = {"input": {"messages": []}, "preferred_output": [], "non_preferred_output": []}
    lines = [*["{broken"] * 32, *[chat(str(n)) for n in range(16)], *[other] * 40]
    for name, rows, stored in (("late", lines, 16), ("never", [*lines[:32], *lines[48:]], 0)):
        path = write(tmp_path / f"{name}.jsonl", rows)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(module, "can_start_workers", lambda: False)
            alone = outcome(store.create(f"{name}-here", "chat"), path, "openai")
        use(monkeypatch, Sharing(3))
        assert outcome(store.create(f"{name}-there", "chat"), path, "openai") == alone
        assert len(alone[1]) == stored


def test_a_format_whose_values_dont_stand_alone_is_not_shared(
    store: treering.Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, small: None
) -> None:
    def line(n: int, role: str) -> dict[str, Any]:
        message = {"role": role, "content": f"{role} {n}"}
        names = {"uuid": f"{n}-{role}", "sessionId": f"s{n // 5}", "timestamp": "2026-01-01T00:00:00Z"}
        return {"type": role, "message": message, "parentUuid": None, **names}

    corpus = store.create("agents", "chat")
    engine, parsed = use(monkeypatch, Sharing(3)), watch_parsing(monkeypatch)
    path = write(tmp_path / "a.jsonl", [line(n, role) for n in range(200) for role in ("user", "assistant")])
    assert corpus.capture_file(path).stored == 200
    assert len(engine.shares) == 3
    assert engine.made[1:] == [0, 0]
    assert len(parsed) <= 400 + 3 * 16 + 3
    corpus.capture_file(path, format="claude-code")
    assert engine.shares[3:] == [None]  # asked for by name, nobody else begins with it


def test_what_is_written_to_the_end_meanwhile_is_for_the_next_import(
    support: treering.Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, small: None
) -> None:
    path = tmp_path / "a.jsonl"
    write(path, [{"text": f"text {i}", "label": "a"} for i in range(100)])

    def before(number: int) -> None:
        with path.open("a") as file:
            file.write("".join(json.dumps({"text": f"more {number} {i}", "label": "a"}) + "\n" for i in range(50)))

    use(monkeypatch, Sharing(2, before=before))
    assert support.capture_file(str(path)).read == 100
    use(monkeypatch, Sharing(2))
    assert support.capture_file(str(path)).stored == 100
    assert len(support.store.live("support")) == 200


@pytest.mark.parametrize("changed", [3, 90])
def test_a_file_that_is_changed_meanwhile_is_never_a_mixture(
    support: treering.Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, small: None, changed: int
) -> None:
    path = tmp_path / "a.jsonl"
    rows = [{"text": f"text {i:03}", "label": "a"} for i in range(160)]
    first = [one["text"] for one in rows]
    write(path, rows)

    def before(number: int) -> None:
        if number == 1:
            rows[changed]["text"] = "changed!"
            write(path, rows)

    use(monkeypatch, Sharing(2, before=before))
    with pytest.raises(StoreError, match=r"a\.jsonl was changed while it was read"):
        support.capture_file(str(path))
    stored = sorted(support.store.live("support").to_table(["text"]).column(0).to_pylist())
    assert len(stored) < 160
    assert stored in (first[: len(stored)], sorted(one["text"] for one in rows[: len(stored)]))
    support.capture_file(str(path))
    assert set(support.store.live("support").to_table(["text"]).column(0).to_pylist()) >= {one["text"] for one in rows}


def test_what_comes_before_a_damage_is_stored_whoever_meets_it_first(
    store: treering.Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, small: None
) -> None:
    lines = "".join(json.dumps({"text": f"{i} {os.urandom(600).hex()}", "label": "a"}) + "\n" for i in range(600))
    whole = gzip.compress(lines.encode())
    path = tmp_path / "a.jsonl.gz"
    for cut in range(len(whole) // 2, len(whole), len(whole) // 8):
        path.write_bytes(whole[:cut])
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(module, "can_start_workers", lambda: False)
            alone = outcome(store.create(f"here{cut}", "labelled"), str(path))
        use(monkeypatch, Sharing(3))
        assert outcome(store.create(f"there{cut}", "labelled"), str(path)) == alone
        assert len(alone[1]) > 100
        assert alone[0][1] == "read-failed"


def test_a_mistake_in_a_format_ends_the_import_where_it_is(
    store: treering.Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, small: None
) -> None:
    from treering.formats.records import RecordsImporter

    feed = RecordsImporter.feed

    def broken(self: RecordsImporter, line: int, value: Any, text: bytes) -> Any:
        if line == 40:
            raise KeyError("a mistake")
        return feed(self, line, value, text)

    monkeypatch.setattr(RecordsImporter, "feed", broken)
    path = write(tmp_path / "a.jsonl", [{"text": f"text {i}", "label": "a"} for i in range(200)])
    for workers in (2, 3):
        use(monkeypatch, Sharing(workers))
        corpus = store.create(f"c{workers}", "labelled")
        with pytest.raises(UsageError, match="failed at line 40"):
            corpus.capture_file(path)
        assert len(corpus.store.live(corpus.name)) == 39


def test_a_format_made_from_another_is_shared_only_if_it_says_so_itself(
    store: treering.Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, small: None
) -> None:
    from treering.formats.openai import OpenAIImporter

    class Paired(OpenAIImporter):
        """Joins a line with the one before."""

        name = "paired"

    assert not Paired.stands_alone
    assert OpenAIImporter.stands_alone


def test_values_that_begin_with_their_id_are_passed_over_without_being_remembered(tmp_path: Path) -> None:
    from treering.formats.openai import OpenAIImporter
    from treering.schema import RecordType

    one = OpenAIImporter(RecordType.of("chat"), "/a")
    for n in range(10):
        one.pass_over(b'{"id": "%d", "messages": []}' % n)
    assert not one._ids._seen
    one.pass_over(b'{"id": null, "messages": []}')
    one.pass_over(b'{"messages": [{"id": "1"}]}')
    assert len(one._ids._seen) == 2
