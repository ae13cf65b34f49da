"""Imports: any source, any format, continued where they were cut short, and nothing is lost or doubled on the way."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import treering
from treering.capture import importer as module
from treering.capture import recorder
from treering.capture.importer import ImportSummary
from treering.capture.recorder import Recorder
from treering.engine import LocalEngine
from treering.errors import InvalidRecordError, NotFoundError, StoreError, UsageError
from treering.formats import Found, Importer, Outcome, Passed, known, registry
from treering.formats.records import RecordsImporter


def talk(i: int, **more: Any) -> dict[str, Any]:
    return {
        "messages": [{"role": "user", "content": f"question {i}"}, {"role": "assistant", "content": f"answer {i}"}],
        **more,
    }


def write(path: Path, rows: Iterable[Any]) -> str:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows), "utf-8")
    return str(path)


class Kept(LocalEngine):
    """Workers that outlive an import: starting one takes longer than most tests."""

    def close(self) -> None:
        """Not now."""


@pytest.fixture(scope="module")
def workers() -> Iterator[LocalEngine]:
    engine = Kept(2)
    yield engine
    LocalEngine.close(engine)


@pytest.fixture(params=["here", "in workers"], autouse=True)
def place(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, workers: LocalEngine) -> str:
    """Where files are read: every claim holds in workers as it does here."""
    where: str = request.param
    if where == "in workers":
        monkeypatch.setattr(module, "_WORKERS_FROM", 0)
        monkeypatch.setattr(module, "LocalEngine", lambda: workers)
    return where


def settle_often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Note how far an import has come after each thousand values."""
    monkeypatch.setattr(module, "_SETTLE_S", 0.0)
    monkeypatch.setattr(recorder, "PACED_ROWS", 1_000)
    monkeypatch.setattr(module, "ROWS", 1_000)


@pytest.fixture
def chats(store: treering.Store) -> treering.Corpus:
    return store.create("chats", "chat")


def questions(corpus: treering.Corpus) -> list[str]:
    rows = corpus.store.live(corpus.name).to_table(["messages"]).column(0).to_pylist()
    return sorted(row[0]["content"] for row in rows)


def counted(done: ImportSummary) -> tuple[int, int, int]:
    return done.stored, done.duplicates, done.refused


# --- where from --------------------------------------------------------------------------------------------------


def test_every_compression_and_url_gives_the_same_records(chats: treering.Corpus, tmp_path: Path) -> None:
    zstandard = pytest.importorskip("zstandard")
    text = "".join(json.dumps(talk(i)) + "\n" for i in range(40)).encode()
    frames = b"".join(zstandard.ZstdCompressor().compress(text[at : at + 500]) for at in range(0, len(text), 500))
    forms = {
        "a.jsonl": text,
        "a.jsonl.gz": gzip.compress(text),
        "a.jsonl.bz2": bz2.compress(text),
        "a.jsonl.zst": frames,
    }
    forms["appended.jsonl.gz"] = gzip.compress(text[:100]) + gzip.compress(text[100:])
    for name, data in forms.items():
        (tmp_path / name).write_bytes(data)
        assert counted(chats.capture_file(str(tmp_path / name))) == (40, 0, 0), name
        assert counted(chats.capture_file(f"file://{tmp_path / name}", format="openai"))[2] == 0
    with fsspec.open("memory://imports/a.jsonl", "wb") as file:
        file.write(text)
    assert counted(chats.capture_file("memory://imports/*.jsonl")) == (40, 0, 0)
    assert counted(chats.capture_file(io.BytesIO(text))) == (40, 0, 0)


def test_a_name_that_no_file_can_have_is_said_to_be_unreadable(chats: treering.Corpus, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"can't read .*null byte"):
        chats.capture_file("a\0b.jsonl")
    path = write(tmp_path / "a.jsonl", [talk(1)])
    done = chats.capture_file(["a\0b.jsonl", path, ""])
    assert (done.stored, [one.error is None for one in done.files]) == (1, [False, True, False])


def test_a_server_that_cant_be_reached_is_no_missing_file(chats: treering.Corpus) -> None:
    pytest.importorskip("aiohttp")
    from http.server import BaseHTTPRequestHandler, HTTPServer

    class Answers(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_error(503 if "busy" in self.path else 404)

        do_HEAD = do_GET

        def log_message(self, *_: Any) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Answers) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        url = f"http://127.0.0.1:{server.server_port}"
        try:
            with pytest.raises(NotFoundError, match="there is no file"):
                chats.capture_file(f"{url}/none.jsonl")
            with pytest.raises(StoreError, match=r"can't read .*503"):
                chats.capture_file(f"{url}/busy.jsonl")
        finally:
            server.shutdown()
            thread.join()
    with pytest.raises(StoreError, match=r"can't read .*connect"):
        chats.capture_file(f"{url}/none.jsonl")


def test_a_file_is_the_same_however_its_path_is_spelt(store: treering.Store, tmp_path: Path) -> None:
    corpus = store.create("spelt", "labelled")
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "a.jsonl").write_text('{"text": "same", "label": "l"}\n')
    (tmp_path / "link").symlink_to("logs")
    spelt = [f"{tmp_path}/logs/a.jsonl", f"file://{tmp_path}/logs/a.jsonl", f"local://{tmp_path}/link/a.jsonl"]
    assert [corpus.capture_file(one).stored for one in spelt] == [1, 0, 0]


@pytest.mark.parametrize("ending", ["gz", "zst"])
def test_what_came_before_a_cut_in_an_archive_is_stored_and_the_cut_is_named(
    chats: treering.Corpus, tmp_path: Path, ending: str
) -> None:
    zstandard = pytest.importorskip("zstandard")
    text = "".join(json.dumps(talk(i, noise=os.urandom(200).hex())) + "\n" for i in range(2_000)).encode()
    data = gzip.compress(text) if ending == "gz" else zstandard.ZstdCompressor().compress(text)
    path = tmp_path / f"cut.jsonl.{ending}"
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(StoreError, match=r"cut\.jsonl"):
        chats.capture_file(str(path))
    assert 100 < len(questions(chats)) < 2_000
    path.write_bytes(b"no archive at all")
    with pytest.raises(StoreError, match="can't read"):
        chats.capture_file(str(path))


def test_a_glob_is_its_files_in_order_and_one_that_cant_be_read_stops_no_other(
    chats: treering.Corpus, tmp_path: Path
) -> None:
    for n in range(3):
        write(tmp_path / f"part-{n}.jsonl", [talk(n * 10 + i) for i in range(5)])
    (tmp_path / "part-1.jsonl.gz").write_bytes(b"\x1f\x8b no")
    (tmp_path / "part-9").mkdir()
    done = chats.capture_file([str(tmp_path / "part-*"), str(tmp_path / "part-0.jsonl")])
    assert [(Path(one.source).name, one.found, one.error is None) for one in done.files] == [
        ("part-0.jsonl", 5, True), ("part-1.jsonl", 5, True), ("part-1.jsonl.gz", 0, False), ("part-2.jsonl", 5, True),
    ]  # fmt: skip
    assert (done.read, done.stored) == (15, 15)
    with pytest.raises(NotFoundError, match="no file matches"):
        chats.capture_file(str(tmp_path / "none-*"))
    odd = write(tmp_path / "odd[1].jsonl", [talk(99)])
    assert chats.capture_file(odd).stored == 1  # a file with such a name is no glob


def test_json_that_is_one_array_is_taken_element_by_element(chats: treering.Corpus, tmp_path: Path) -> None:
    path = tmp_path / "all.json"
    path.write_text(json.dumps([talk(i) for i in range(30)], indent=2)[:-1] + ', {"messages": NaN}, 7]')
    done = chats.capture_file(str(path))
    assert counted(done) == (30, 0, 2)
    assert [line for line, _ in done.problems] == [31, 32]
    assert counted(chats.capture_file(str(path))) == (0, 30, 2)
    path.write_text(json.dumps([talk(i) for i in range(30)])[:-30])
    with pytest.raises(StoreError, match="beyond element 29"):
        chats.capture_file(str(path))


def test_a_json_bomb_is_refused_alone_wherever_it_lies(chats: treering.Corpus, tmp_path: Path) -> None:
    bomb = '{"messages": ' + "[" * 200_000 + "]" * 200_000 + "}"
    lines = write(tmp_path / "lines.jsonl", [talk(1), bomb, talk(2)])
    assert counted(chats.capture_file(lines)) == (2, 0, 1)
    array = tmp_path / "array.json"
    array.write_text(f"[{json.dumps(talk(3))},{bomb},{json.dumps(talk(4))}]")
    assert counted(chats.capture_file(str(array))) == (2, 0, 1)


def test_csv_gives_an_object_a_row(store: treering.Store, tmp_path: Path) -> None:
    corpus = store.create("tickets", "labelled")
    path = tmp_path / "t.csv"
    path.write_text('text,label\n"two\nlines",a\nshort\nthird,b\n')
    done = corpus.capture_file(str(path))
    assert counted(done) == (2, 0, 1)
    assert done.problems[0][0] == 4


# --- which format ------------------------------------------------------------------------------------------------


def test_auto_names_what_it_recognised_past_broken_lines(chats: treering.Corpus, tmp_path: Path) -> None:
    for row, name in (
        (talk(1), "openai"),
        ({"prompt": "a", "completion": "b"}, "trl"),
        (talk(2, session_id="s", ts="2026-01-01T00:00:00Z"), "records"),
    ):
        done = chats.capture_file(write(tmp_path / f"{name}.jsonl", ["", "{cut", "[1]", row]))
        assert [one.format for one in done.files] == [name]
        assert (done.read, done.stored, done.refused) == (4, 1, 2)


def test_auto_says_what_the_candidates_are_when_it_recognises_nothing(chats: treering.Corpus, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="openai, openinference, otlp, parquet, records, trl") as failure:
        chats.capture_file(write(tmp_path / "other.jsonl", [{"foo": 1}] * 3))
    assert failure.value.code == "unknown-format"
    assert "line 1" in str(failure.value)
    with pytest.raises(UsageError, match="no format 'nope'"):
        chats.capture_file(str(tmp_path / "other.jsonl"), format="nope")
    assert questions(chats) == []


def test_a_corpus_of_its_own_type_takes_its_own_columns_as_records(store: treering.Store, tmp_path: Path) -> None:
    corpus = store.create("own", pa.schema([("text", pa.string()), ("lang", pa.string())]))
    done = corpus.capture_file(write(tmp_path / "own.jsonl", [{"text": "a", "lang": "de"}]))
    assert (done.files[0].format, done.stored) == ("records", 1)


def test_a_list_under_a_name_that_whole_files_have_is_a_column_where_the_corpus_or_the_format_says_so(
    plugins: Path, store: treering.Store, chats: treering.Corpus, tmp_path: Path
) -> None:
    own = store.create("own", pa.schema([("notes", pa.list_(pa.string()))]))
    path = write(tmp_path / "own.jsonl", [{"notes": ["a", "b"]}, {"notes": []}])
    assert (own.capture_file(path).files[0].format, len(store.live("own"))) == ("records", 2)
    path = write(tmp_path / "chats.jsonl", [talk(i, notes=[{"note": "x", "n": 1}]) for i in range(3)])
    assert counted(chats.capture_file(path)) == (3, 0, 0)


def test_a_form_that_needs_another_corpus_stores_nothing_and_says_which(chats: treering.Corpus, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--schema preference"):
        chats.capture_file(write(tmp_path / "dpo.jsonl", [{"prompt": "a", "chosen": "b", "rejected": "c"}] * 5))
    assert chats.quarantine() == []


# --- others' formats ---------------------------------------------------------------------------------------------

PLUGIN = """
from treering.formats import Found, Importer, Passed, hashed_id

class Notes(Importer):
    name = "notes"
    makes = ("labelled",)
    elements = ("notes",)

    @classmethod
    def recognises(cls, value):
        return isinstance(value, dict) and "note" in value

    def feed(self, line, value, text):
        if not value["note"]:
            yield Passed(line, "notes without a word")
            return
        if value["note"] == "crash":
            raise RuntimeError("a mistake of the plug-in")
        yield Found({"id": hashed_id("notes", value["n"]), "text": value["note"], "label": "note"}, line)
"""


@pytest.fixture
def plugins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A package with one format that works, one that can't be imported, and one that is no importer."""
    place = tmp_path / "site"
    about = place / "others-1.0.dist-info"
    about.mkdir(parents=True)
    (place / "others_notes.py").write_text(PLUGIN)
    (place / "others_broken.py").write_text("raise OSError('no such library')\n")
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: others\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text(
        "[treering.importers]\nnotes = others_notes:Notes\nbroken = others_broken:X\nwrong = json:loads\nopenai = json:dumps\n"
    )
    monkeypatch.syspath_prepend(str(place))
    yield place
    for name in ("others_notes", "others_broken"):
        sys.modules.pop(name, None)


def test_a_format_that_another_package_brings_is_used_and_recognised(
    plugins: Path, support: treering.Corpus, tmp_path: Path
) -> None:
    rows = [{"note": f"n{i}" if i % 3 else "", "n": i} for i in range(9)]
    path = write(tmp_path / "notes.jsonl", rows)
    done = support.capture_file(path)
    assert (done.files[0].format, done.stored, done.passed) == ("notes", 6, {"notes without a word": 3})
    whole = tmp_path / "elsewhere.json"
    whole.write_text(json.dumps({"version": 1, "notes": rows}, indent=1))
    again = support.capture_file(str(whole))  # ids of its own: the same notes at another place
    assert (again.stored, again.duplicates, again.read) == (0, 6, 9)


def test_a_broken_package_breaks_nothing_until_it_is_used_and_is_named_then(
    plugins: Path, chats: treering.Corpus, tmp_path: Path
) -> None:
    path = write(tmp_path / "a.jsonl", [talk(1)])
    assert chats.capture_file(path).files[0].format == "openai"
    for name, said in (("broken", "no such library"), ("wrong", "not a subclass")):
        with pytest.raises(UsageError, match=f"{name} of the package others.*{said}") as failure:
            chats.capture_file(path, format=name)
        assert failure.value.code == known.BROKEN
    with pytest.raises(UsageError, match="no such library"):  # auto says whom it couldn't ask
        chats.capture_file(write(tmp_path / "b.jsonl", [{"foo": 1}]))
    assert known.find_importer("openai").name == "openai"  # nobody takes the place of ours


def test_a_mistake_in_a_format_names_format_and_line_and_keeps_what_came_before(
    plugins: Path, support: treering.Corpus, tmp_path: Path
) -> None:
    path = write(tmp_path / "n.jsonl", [{"note": "a", "n": 1}, {"note": "crash", "n": 2}])
    with pytest.raises(UsageError, match=r"notes failed at line 2 .*a mistake of the plug-in"):
        support.capture_file(path)
    assert len(support.store.live("support")) == 1


def test_small_files_are_written_together_and_packages_are_looked_through_once(
    chats: treering.Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken, looked = [], []
    take, look = Recorder.take, registry.entry_points

    def counted(self: Recorder, batches: Any, refused: Any) -> Any:
        taken.append((sum(map(len, batches)), len(refused)))
        return take(self, batches, refused)

    monkeypatch.setattr(Recorder, "take", counted)
    monkeypatch.setattr(registry, "entry_points", lambda **of: (looked.append(of), look(**of))[1])
    registry._packages.cache_clear()
    for n in range(40):
        write(tmp_path / f"{n:02}.jsonl", [talk(n), *(["{"] if n == 7 else [])])
    (tmp_path / "20.jsonl").write_text("neither JSON nor anything else\n")
    done = chats.capture_file(str(tmp_path / "*.jsonl"))
    assert (done.read, done.stored, done.refused) == (41, 39, 1)
    assert [Path(one.source).name for one in done.files if one.error is not None] == ["20.jsonl"]
    assert [(Path(one.source).name, one.refused, one.problems[0][0]) for one in done.files if one.problems] == [
        ("07.jsonl", 1, 2)
    ]
    assert (sum(rows for rows, _ in taken), sum(refused for _, refused in taken)) == (39, 1)
    assert (
        len(taken) <= 10
    )  # on a machine that is slower than this one, too: what waits longer than a second is written
    assert len(looked) <= 1  # workers look for themselves
    assert chats.capture_file(str(tmp_path / "*.jsonl")).duplicates == 39


def test_what_small_files_share_goes_wrong_for_all_of_them_and_is_stored_the_next_time(
    support: treering.Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    take, failing = Recorder.take, [True]

    def full(self: Recorder, batches: Any, refused: Any) -> Any:
        if failing and failing.pop():
            raise StoreError("the disk is full")
        return take(self, batches, refused)

    monkeypatch.setattr(Recorder, "take", full)
    monkeypatch.setattr(module, "_TOGETHER_BYTES", 300)
    for n in range(10):
        write(tmp_path / f"{n}.jsonl", [{"text": f"{n} {i}", "label": "l"} for i in range(3)])
    done = support.capture_file(str(tmp_path / "*.jsonl"))
    failed = [one for one in done.files if one.error is not None]
    assert 1 < len(failed) < 10
    assert {str(one.error) for one in failed} == {"the disk is full"}
    assert (done.stored, sum(one.read for one in done.files if one.error is None)) == (3 * (10 - len(failed)),) * 2
    again = support.capture_file(str(tmp_path / "*.jsonl"))
    assert (again.stored, again.duplicates) == (3 * len(failed), 3 * (10 - len(failed)))


def test_small_files_that_were_read_are_stored_when_the_caller_fails(
    support: treering.Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_TOGETHER", 2)
    for n in range(10):
        write(tmp_path / f"{n}.jsonl", [{"text": f"{n}", "label": "l"}])

    def progress(done: int) -> None:
        if done == 6:
            raise ValueError("a bar that broke")

    with pytest.raises(ValueError, match="a bar that broke"):
        support.capture_file(str(tmp_path / "*.jsonl"), progress=progress)
    assert support.capture_file(str(tmp_path / "*.jsonl")).duplicates == 6


def test_a_package_that_comes_while_a_program_runs_is_found(
    support: treering.Corpus, plugins: Path, tmp_path: Path
) -> None:
    path = write(tmp_path / "notes.jsonl", [{"note": "a", "n": 1}])
    with pytest.raises(UsageError, match="there is no format 'late'"):
        support.capture_file(path, format="late")
    about = plugins / "late-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: late\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text("[treering.importers]\nlate = others_notes:Notes\n")
    assert support.capture_file(path, format="late").stored == 1


def test_ours_are_declared_as_entry_points_too() -> None:
    import tomllib

    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    assert project["entry-points"][known.IMPORTER_GROUP] == dict(known.IMPORTERS)


# --- twice, and cut short ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["openai", "trl"])
def test_a_file_imported_twice_adds_nothing_not_even_annotations(
    chats: treering.Corpus, tmp_path: Path, form: str
) -> None:
    rows: list[Any] = [talk(i % 7) for i in range(20)]
    if form == "trl":
        rows = [{"prompt": f"question {i % 7}", "completion": "x", "label": i % 2 == 0} for i in range(20)]
    path = write(tmp_path / "rows.jsonl", rows)
    first = chats.capture_file(path, format=form)
    second = chats.capture_file(path, format=form)
    assert (counted(first), counted(second)) == ((20, 0, 0), (0, 20, 0))
    assert (first.annotations, second.annotations) == ((40, 0) if form == "trl" else (0, 0))
    assert len(chats.annotations(history=True)) == first.annotations


def interrupted(corpus: treering.Corpus, path: str, after: int, **how: Any) -> None:
    def tell(done: int) -> None:
        if done >= after:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        corpus.capture_file(path, progress=tell, **how)


@pytest.mark.parametrize("with_ids", [True, False])
def test_an_import_that_was_cut_short_is_continued_where_it_stood(
    chats: treering.Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, with_ids: bool
) -> None:
    settle_often(monkeypatch)
    rows: list[Any] = [talk(i % 50, **({"id": f"r{i}"} if with_ids else {})) for i in range(6_000)]
    rows[100] = "{cut"
    path = write(tmp_path / "rows.jsonl", rows)
    interrupted(chats, path, 2_000)
    there = len(questions(chats))
    assert 1_000 < there < 5_000
    done = chats.capture_file(path)
    assert done.skipped >= there
    assert (done.read, done.stored, done.duplicates) == (6_000, 5_999 - there, 0)
    assert (done.refused, done.refused_before) == (0, 1)
    again = chats.capture_file(path)  # it was read to its end: the next one looks at all of it
    assert (again.skipped, again.duplicates, again.refused) == (0, 5_999, 1)
    assert len(questions(chats)) == 5_999


def test_an_import_that_was_interrupted_is_continued_without_a_gap(
    chats: treering.Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    settle_often(monkeypatch)
    path = write(tmp_path / "in.jsonl", [talk(i) for i in range(5_000)])
    feed, take = RecordsImporter.feed, Recorder.take

    def interrupted_feed(self: RecordsImporter, line: int, value: Any, text: bytes) -> Any:
        if line == 3_000:
            raise KeyboardInterrupt
        return feed(self, line, value, text)

    def interrupted_take(self: Recorder, batches: Any, refused: Any) -> Any:
        if self.counts.acknowledged >= 3_000:
            raise KeyboardInterrupt
        return take(self, batches, refused)

    with monkeypatch.context() as patched:
        if place == "here":
            patched.setattr(RecordsImporter, "feed", interrupted_feed)
        else:
            patched.setattr(Recorder, "take", interrupted_take)
        with pytest.raises(KeyboardInterrupt):
            chats.capture_file(path, format="records")
    assert len(questions(chats)) >= 2_000
    done = chats.capture_file(path, format="records")
    assert done.skipped >= 1_000
    assert len(questions(chats)) == 5_000


@pytest.mark.parametrize("change", ["other", "shorter", "inserted"])
def test_a_file_that_has_changed_is_begun_anew(
    chats: treering.Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    settle_often(monkeypatch)
    rows = [talk(i, id=f"r{i}") for i in range(6_000)]
    path = write(tmp_path / "rows.jsonl", rows)
    interrupted(chats, path, 2_000)
    new = {
        "other": [talk(i, id=f"s{i}") for i in range(6_000)],
        "shorter": rows[:500],
        "inserted": [talk(9, id="first"), *rows],
    }[change]
    write(tmp_path / "rows.jsonl", new)
    done = chats.capture_file(path)
    assert (done.files[0].started_over, done.skipped, done.read) == (True, 0, len(new))
    assert done.stored + done.duplicates == len(new)
    assert not chats.capture_file(path).files[0].started_over


class Collapsing(Importer):
    """Holds the newest line of each conversation until the end: what formats that repeat history do."""

    name: ClassVar[str] = "collapsing"
    makes: ClassVar[tuple[str, ...]] = ("labelled",)

    def __init__(self, target: Any, origin: str | None) -> None:
        super().__init__(target, origin)
        self._newest: dict[str, tuple[int, Any]] = {}

    @classmethod
    def recognises(cls, value: Any) -> bool:
        return isinstance(value, dict) and "talk" in value

    def feed(self, line: int, value: Any, text: bytes) -> Iterable[Outcome]:
        before = self._newest.get(value["talk"])
        self._newest[value["talk"]] = line, value
        return () if before is None else (Passed(before[0], "calls that a later one repeats"),)

    def finish(self) -> Iterable[Outcome]:
        for line, value in self._newest.values():
            yield Found({"id": f"{value['talk']}-{value['said']}", "text": str(value["said"]), "label": "l"}, line)


def test_what_a_format_holds_back_outlives_a_cut(
    support: treering.Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settle_often(monkeypatch)
    monkeypatch.setitem(known.IMPORTERS, "collapsing", f"{__name__}:Collapsing")
    rows = [{"talk": f"t{i % 5}", "said": i} for i in range(5_000)]
    path = write(tmp_path / "calls.jsonl", rows)
    interrupted(support, path, 2_000, format="collapsing")
    assert len(support.store.live("support")) == 0
    done = support.capture_file(path, format="collapsing")
    assert done.skipped > 0
    texts = support.store.live("support").to_table(["text"]).column(0).to_pylist()
    assert sorted(map(int, texts)) == [4995, 4996, 4997, 4998, 4999]


def test_an_import_that_was_killed_loses_and_doubles_nothing(
    store: treering.Store, chats: treering.Corpus, tmp_path: Path
) -> None:
    path = write(tmp_path / "rows.jsonl", [talk(i % 100) for i in range(8_000)])
    code = (
        "import sys, time, treering\n"
        "from treering.capture import importer, recorder\n"
        "importer._SETTLE_S, importer.ROWS, recorder.PACED_ROWS = 0.0, 1_000, 1_000\n"
        "importer._WORKERS_FROM = int(sys.argv[3])\n"
        "from treering.engine import local\n"
        "local._cores = lambda: 2\n"
        "def tell(done):\n"
        "    print(done, flush=True); time.sleep(0.2)\n"
        "treering.open(sys.argv[1]).corpus('chats').capture_file(sys.argv[2], progress=tell)\n"
    )
    command = [sys.executable, "-c", code, store.uri, path, str(module._WORKERS_FROM)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    while int(process.stdout.readline()) < 3_000:
        pass
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    done = chats.capture_file(path)
    assert done.skipped >= 1_000
    assert done.read == 8_000
    assert len(questions(chats)) == 8_000


# --- Parquet -----------------------------------------------------------------------------------------------------


def test_parquet_comes_in_by_columns_with_ids_of_its_rows(store: treering.Store, tmp_path: Path) -> None:
    corpus = store.create("tickets", "labelled")
    rows = [{"text": f"t{i % 40}", "label": "a"} for i in range(100)]
    path = tmp_path / "rows.parquet"
    pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=30)
    assert counted(corpus.capture_file(str(path))) == (100, 0, 0)
    assert counted(corpus.capture_file(str(path))) == (0, 100, 0)
    assert corpus.capture_file(str(path)).files[0].format == "parquet"
    mixed = tmp_path / "mixed.parquet"
    pq.write_table(pa.table({"id": ["x", None], "text": ["a", None], "label": ["l", "l"]}), mixed)
    done = corpus.capture_file(str(mixed), format="parquet")
    assert (counted(done), done.problems[0][0]) == ((1, 0, 1), 2)


def test_columns_that_dont_fit_are_all_named_and_nothing_is_stored(store: treering.Store, tmp_path: Path) -> None:
    corpus = store.create("tickets", "labelled")
    path = tmp_path / "rows.parquet"
    pq.write_table(pa.table({"text": ["a"], "tag": ["b"], "__index_level_0__": [1]}), path)
    with pytest.raises(InvalidRecordError, match=r"tag: .*__index_level_0__: .*label: expected a column"):
        corpus.capture_file(str(path))
    plain = tmp_path / "plain.jsonl"
    plain.write_text('{"text": "a", "label": "b"}\n')
    with pytest.raises(StoreError, match="isn't a Parquet file"):
        corpus.capture_file(str(plain), format="parquet")
    broken = tmp_path / "broken.parquet"
    broken.write_bytes(b"PAR1" + b"x" * 50)
    with pytest.raises(StoreError, match="as Parquet"):
        corpus.capture_file(str(broken))


def test_rows_of_a_format_in_parquet_are_recognised(chats: treering.Corpus, tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    pq.write_table(pa.Table.from_pylist([talk(i, source="web") for i in range(5)]), path)
    done = chats.capture_file(str(path))
    assert (done.files[0].format, done.stored) == ("openai", 5)
    assert '"source":"web"' in chats.store.live("chats").to_table(["meta"]).column(0)[0].as_py()


# --- history, redaction, annotations -----------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["jsonl", "array", "parquet", "several"])
def test_history_in_any_format_becomes_snapshots(chats: treering.Corpus, tmp_path: Path, form: str) -> None:
    rows = [talk(i, ts=f"2026-0{1 + i // 10}-05T00:00:00+00:00", source="web") for i in range(30)]
    path = tmp_path / "h"
    sources: Any = str(path)
    if form == "jsonl":
        write(path, [*rows, {"messages": "no"}])
    elif form == "array":
        path.write_text(json.dumps(rows[::-1]))
    elif form == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    else:
        sources = [write(tmp_path / f"h{n}", rows[n * 15 : n * 15 + 15]) for n in range(2)]
    for again in (False, True):
        done = chats.backfill(sources, as_of="ts", snapshot_by="month")
        assert (done.stored, done.duplicates) == ((0, 30) if again else (30, 0))
        assert done.refused == (1 if form == "jsonl" else 0)
    assert [(s.message, s.rows) for s in chats.snapshots()] == [("2026-01", 10), ("2026-02", 10), ("2026-03", 10)]
    if form == "several":
        assert done.files[1].found == 15


def test_annotations_of_history_are_stored_once(chats: treering.Corpus, tmp_path: Path) -> None:
    rows = [
        {"prompt": f"q{i}", "completion": "a", "label": True, "ts": f"2026-0{i + 1}-01T00:00:00Z"} for i in range(3)
    ]
    path = write(tmp_path / "h.jsonl", rows)
    done = [chats.backfill(path, as_of="ts", snapshot_by="month") for _ in range(2)]
    assert [one.annotations for one in done] == [6, 0]


def test_what_formats_bring_is_redacted_before_it_reaches_the_disk(chats: treering.Corpus, tmp_path: Path) -> None:
    pytest.importorskip("detect_secrets")
    rows = [talk(1, contact="anna@example.org"), {"messages": [{"role": "user", "content": "I am anna@example.org"}]}]
    done = chats.capture_file(write(tmp_path / "a.jsonl", rows), redact=["email"])
    assert done.redacted == {"[EMAIL]": 2}
    below = b"".join(path.read_bytes() for path in Path(chats.store.uri).rglob("*") if path.is_file())
    assert b"anna@example.org" not in below


def test_what_is_said_of_refused_lines_is_redacted_too(store: treering.Store, tmp_path: Path) -> None:
    corpus = store.create("mails", "chat", redact=True)
    path = write(tmp_path / "a.jsonl", [{"messages": "bob@example.com"}])
    done = corpus.capture_file(path, format="records")
    ((_, (problem,)),) = done.problems
    assert "[EMAIL]" in str(problem)
    assert "bob" not in str(problem)


def test_a_line_that_doesnt_parse_has_one_number_and_utf16_is_named(chats: treering.Corpus, tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", [talk(1), '{"messages": [', '{"messages": ]}'])
    done = chats.capture_file(path)
    said = [str(problems[0]) for _, problems in done.problems]
    assert not [one for one in said if "at line" in one]
    assert "at its end" in said[0]
    assert "at column 14" in said[1]
    (tmp_path / "b.jsonl").write_text(json.dumps(talk(1)) + "\n", "utf-16")
    with pytest.raises(UsageError, match="looks like UTF-16"):
        chats.capture_file(str(tmp_path / "b.jsonl"))
    done = chats.capture_file(str(tmp_path / "b.jsonl"), format="openai")
    assert "looks like UTF-16" in str(done.problems[0][1][0])


def test_an_annotation_that_cant_be_meant_waits_in_quarantine_and_the_others_are_stored(
    support: treering.Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Judging(Collapsing):
        name: ClassVar[str] = "judging"

        def feed(self, line: int, value: Any, text: bytes) -> Iterable[Outcome]:
            said = {"quality": value["quality"], "by": "judge"}
            return (Found({"id": value["talk"], "text": "t", "label": "l"}, line, (said,)),)

        def finish(self) -> Iterable[Outcome]:
            return ()

    monkeypatch.setattr(module, "find_importer", lambda name: Judging)
    path = write(tmp_path / "j.jsonl", [{"talk": "a", "quality": 0.5}, {"talk": "b", "quality": "high"}])
    done = support.capture_file(path, format="judging")
    assert (done.stored, done.annotations, done.refused) == (2, 1, 1)
    assert support.quarantine()[0].problems[0].loc == ("quality",)


def test_a_pipe_is_read_as_it_comes(support: treering.Corpus, tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    lines = b"".join(b'{"text": "%d", "label": "l"}\n' % n for n in range(5))
    writer = threading.Thread(target=pipe.write_bytes, args=(lines,))
    writer.start()
    done = support.capture_file(str(pipe))
    writer.join()
    assert (done.read, done.stored, done.refused) == (5, 5, 0)
