"""Following files that grow: every line once, whatever happens to the file, to its name and to the process."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import treering
from tests.waiting import wait_for
from treering.capture import following
from treering.capture.importer import ImportSummary
from treering.errors import NotFoundError, UsageError


def lines(*numbers: int) -> str:
    return "".join(json.dumps({"id": f"r{n}", "text": f"t{n}", "label": "l"}) + "\n" for n in numbers)


def append(path: Path, text: str) -> None:
    with path.open("a", encoding="utf-8") as file:
        file.write(text)


def live(corpus: treering.Corpus) -> list[str]:
    return sorted(corpus.store.live(corpus.name).to_table(["text"]).column(0).to_pylist())


class Follower:
    """`capture_file(…, follow=True)` in a thread of its own."""

    def __init__(self, corpus: treering.Corpus, source: Any, **how: Any) -> None:
        self.corpus = corpus
        self.stop = threading.Event()
        self.read = 0
        self.result: ImportSummary | None = None
        self.error: Exception | None = None
        self._thread = threading.Thread(target=self._run, args=(source,), kwargs=how)
        self._thread.start()

    def _run(self, source: Any, **how: Any) -> None:
        def tell(done: int) -> None:
            self.read = done

        try:
            self.result = self.corpus.capture_file(source, follow=True, stop=self.stop, progress=tell, **how)
        except Exception as exc:
            self.error = exc

    def has_read(self, count: int) -> None:
        wait_for(lambda: self.read >= count or self.error is not None)
        assert self.error is None, self.error

    def end(self) -> ImportSummary:
        self.stop.set()
        self._thread.join(60)
        assert self.error is None, self.error
        assert self.result is not None
        return self.result


@pytest.fixture
def follow(support: treering.Corpus, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Follower]]:
    monkeypatch.setattr(following, "_POLL_S", 0.02)
    made: list[Follower] = []

    def begin(source: Any, **how: Any) -> Follower:
        made.append(Follower(support, source, **how))
        return made[-1]

    yield begin
    for one in made:
        one.stop.set()
        one._thread.join(60)


def test_what_is_appended_is_captured_and_half_a_line_waits_for_its_end(
    follow: Callable[..., Follower], support: treering.Corpus, tmp_path: Path
) -> None:
    path = tmp_path / "log.jsonl"
    path.write_text(lines(1, 2))
    one = follow(str(path))
    one.has_read(2)
    append(path, lines(3)[:-5])
    time.sleep(0.1)
    assert one.read == 2
    append(path, lines(3)[-5:] + "{broken\n" + lines(4))
    one.has_read(5)
    done = one.end()
    assert (done.stored, done.refused, done.read) == (4, 1, 5)
    assert live(support) == ["t1", "t2", "t3", "t4"]
    assert support.quarantine()[0].source == f"{path}:4"


def test_what_was_read_is_on_disk_at_once_and_a_restart_goes_on_where_it_stopped(
    follow: Callable[..., Follower], support: treering.Corpus, tmp_path: Path
) -> None:
    path = tmp_path / "log.jsonl"
    path.write_text('{"text": "same", "label": "l"}\n' * 5)  # without ids: how many came before counts
    one = follow(str(path))
    one.has_read(5)
    assert one.end().stored == 5
    append(path, '{"text": "same", "label": "l"}\n' * 3)
    two = follow(str(path))
    two.has_read(8)
    done = two.end()
    assert (done.skipped, done.stored, done.duplicates) == (5, 3, 0)
    append(path, '{"text": "same", "label": "l"}\n')
    whole = support.capture_file(str(path))  # a plain import goes on there, too
    assert (whole.skipped, whole.stored, len(live(support))) == (8, 1, 9)


def test_a_file_that_was_cut_off_is_read_from_its_beginning(
    follow: Callable[..., Follower], support: treering.Corpus, tmp_path: Path
) -> None:
    path = tmp_path / "log.jsonl"
    path.write_text(lines(1, 2, 3))
    one = follow(str(path))
    one.has_read(3)
    path.write_text(lines(4))  # cut off and written to (copytruncate)
    one.has_read(4)
    path.write_text(lines(5, 6, 7, 8))  # as long as it was and longer
    one.has_read(8)
    assert one.end().stored == 8
    assert live(support) == [f"t{n}" for n in range(1, 9)]


def test_of_a_file_that_was_replaced_the_end_of_the_old_one_is_read_first(
    follow: Callable[..., Follower], support: treering.Corpus, tmp_path: Path
) -> None:
    path = tmp_path / "log.jsonl"
    path.write_text(lines(1))
    one = follow(str(tmp_path / "log.jsonl*"))  # the glob finds the old one under its new name, too
    one.has_read(1)
    append(path, lines(2))
    path.rename(tmp_path / "log.jsonl.1")
    append(tmp_path / "log.jsonl.1", lines(3).rstrip("\n"))  # its writer was about to say something
    path.write_text(lines(4))
    one.has_read(4)
    (tmp_path / "log.jsonl.1").rename(tmp_path / "log.jsonl.2")
    path.rename(tmp_path / "log.jsonl.1")
    path.write_text(lines(5))
    one.has_read(5)
    time.sleep(0.2)
    done = one.end()
    assert (done.read, done.stored, done.duplicates) == (5, 5, 0)
    assert live(support) == [f"t{n}" for n in range(1, 6)]


def test_a_file_that_was_rotated_is_not_read_twice_after_a_restart(
    follow: Callable[..., Follower], support: treering.Corpus, tmp_path: Path
) -> None:
    def said(*texts: str) -> str:  # without ids: they are made from the file's name
        return "".join(json.dumps({"text": text, "label": "l"}) + "\n" for text in texts)

    path, older, oldest = (tmp_path / name for name in ("a.log", "a.log.1", "a.log.2"))
    path.write_text(said("a1", "a1", "a2"))
    one = follow(str(tmp_path / "a.log*"))
    one.has_read(3)
    path.rename(older)  # while it runs
    path.write_text(said("b1"))
    one.has_read(4)
    assert one.end().stored == 4
    assert follow(str(tmp_path / "a.log*")).end().stored == 0
    append(older, said("a1"))  # its writer was late: the third of these
    append(path, said("b2"))
    older.rename(oldest)  # while it doesn't
    path.rename(older)
    path.write_text(said("c1"))
    three = follow(str(tmp_path / "a.log*"))
    three.has_read(7)
    assert three.end().stored == 3
    for file in (oldest, oldest, older):  # nor by a plain import, however often
        assert support.capture_file(str(file)).stored == 0
    assert live(support) == ["a1", "a1", "a1", "a2", "b1", "b2", "c1"]
    older.unlink()
    older.write_text(said("another file, perhaps under the same inode, that is longer than it was"))
    assert follow(str(tmp_path / "a.log*")).end().stored == 1


def test_new_files_of_a_glob_join_in_and_what_cant_grow_is_taken_once(
    follow: Callable[..., Follower], support: treering.Corpus, tmp_path: Path
) -> None:
    import gzip

    one = follow([str(tmp_path / "*.jsonl"), str(tmp_path / "*.jsonl.gz")])
    time.sleep(0.1)
    (tmp_path / "a.jsonl").write_text(lines(1))
    (tmp_path / "b.jsonl").write_text("")
    (tmp_path / "old.jsonl.gz").write_bytes(gzip.compress(lines(2).encode()))
    one.has_read(2)
    append(tmp_path / "b.jsonl", lines(3))
    one.has_read(3)
    done = one.end()
    assert done.stored == 3
    assert sorted(Path(one.source).name for one in done.files) == ["a.jsonl", "b.jsonl", "old.jsonl.gz"]


@pytest.mark.parametrize(("before", "size"), [(0, 1), (1, 1), (2, 1), (1, 2 << 20)])
def test_export_requests_are_followed_however_many_there_are_at_first_and_however_long(
    store: treering.Store, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, before: int, size: int
) -> None:
    monkeypatch.setattr(following, "_POLL_S", 0.02)

    def request(n: int) -> str:
        names = {"gen_ai.operation.name": "chat", "gen_ai.request.model": "m", "gen_ai.conversation.id": f"c{n}"}
        names["gen_ai.input.messages"] = json.dumps(
            [{"role": "user", "parts": [{"type": "text", "content": f"q{n}" + "x" * size}]}]
        )
        names["gen_ai.output.messages"] = json.dumps(
            [{"role": "assistant", "parts": [{"type": "text", "content": "a"}], "finish_reason": "stop"}]
        )
        attributes = [{"key": key, "value": {"stringValue": value}} for key, value in names.items()]
        span = {"traceId": f"{n + 1:032x}", "spanId": f"{n + 1:016x}", "name": "chat", "attributes": attributes}
        return json.dumps({"resourceSpans": [{"scopeSpans": [{"spans": [span]}]}]}) + "\n"

    path = tmp_path / "traces.jsonl"
    path.write_text("".join(map(request, range(before))))
    one = Follower(store.create("chats", "chat"), str(path))
    try:
        one.has_read(before)
        append(path, "".join(map(request, range(before, 4))))
        one.has_read(4)
    finally:
        done = one.end()
    assert (done.read, done.stored) == (4, 4)


def test_a_file_of_no_known_format_ends_no_other_s_following(
    follow: Callable[..., Follower], support: treering.Corpus, tmp_path: Path
) -> None:
    (tmp_path / "a.jsonl").write_text('{"foo": 1}\n')
    (tmp_path / "b.jsonl").write_text(lines(1))
    (tmp_path / "c.jsonl.gz").write_bytes(b"no archive")
    one = follow(str(tmp_path / "*.jsonl*"))
    one.has_read(2)
    append(tmp_path / "b.jsonl", lines(2))
    one.has_read(3)
    done = one.end()
    assert done.stored == 2
    errors = {Path(file.source).name: file.error for file in done.files}
    assert isinstance(errors["a.jsonl"], UsageError)
    assert errors["b.jsonl"] is None
    assert isinstance(errors["c.jsonl.gz"], treering.StoreError)
    (tmp_path / "c.jsonl.gz").unlink()
    alone = follow(str(tmp_path / "a.jsonl"))
    alone.stop.set()
    wait_for(lambda: alone.error is not None)
    assert "no format known" in str(alone.error)
    alone.error = None


def test_a_changed_file_is_begun_anew_at_the_next_start(
    follow: Callable[..., Follower], support: treering.Corpus, tmp_path: Path
) -> None:
    path = tmp_path / "log.jsonl"
    path.write_text(lines(1, 2, 3))
    one = follow(str(path))
    one.has_read(3)
    one.end()
    for rows in ((4,), (5, 6, 7, 8, 9)):  # shorter; longer, and another
        path.write_text(lines(*rows))
        two = follow(str(path))
        wait_for(lambda rows=rows, two=two: {f"t{n}" for n in rows} <= set(live(support)) or not two._thread.is_alive())
        done = two.end()
        assert (done.stored, done.files[0].started_over) == (len(rows), True)
    assert live(support) == [f"t{n}" for n in range(1, 10)]


def test_what_a_format_holds_back_is_taken_when_nothing_more_comes_and_the_history_is_not_lost(
    follow: Callable[..., Follower], support: treering.Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tests.capture import test_imports
    from treering.formats import known

    home = f"{test_imports.__name__}:Collapsing"
    monkeypatch.setitem(known.IMPORTERS, "collapsing", home)
    monkeypatch.setattr(following, "_QUIET_S", 0.2)
    path = tmp_path / "calls.jsonl"
    path.write_text('{"talk": "a", "said": 1}\n{"talk": "a", "said": 2}\n')
    one = follow(str(path), format="collapsing")
    one.has_read(2)
    wait_for(lambda: live(support) == ["2"])
    append(path, '{"talk": "a", "said": 3}\n')
    wait_for(lambda: live(support) == ["2", "3"])
    done = one.end()
    assert (done.stored, done.duplicates) == (2, 0)


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_the_command_ends_cleanly_when_told_and_loses_nothing_when_killed(
    store: treering.Store, support: treering.Corpus, tmp_path: Path, how: signal.Signals
) -> None:
    path = tmp_path / "log.jsonl"
    path.write_text("")
    command = [sys.executable, "-m", "treering.cli", "capture", "support", str(path), "--follow", "--json"]
    process = subprocess.Popen(
        command,
        env={**os.environ, "TREERING_STORE": store.uri},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    for n in range(20):
        append(path, lines(n))
        time.sleep(0.01)
    wait_for(lambda: len(live(support)) > 0)
    append(path, lines(*range(20, 40)))
    if how == signal.SIGKILL:
        time.sleep(0.7)
    process.send_signal(how)
    out, err = process.communicate(timeout=60)
    if how == signal.SIGKILL:
        assert process.returncode == -signal.SIGKILL
        with support.capture():
            pass  # whoever opens the corpus next takes over what was acknowledged
    else:
        assert process.returncode == 0, err
        assert json.loads(out)["stored"] == 40
    before = len(live(support))
    assert before == 40 or how == signal.SIGKILL
    done = support.capture_file(str(path))
    assert (len(live(support)), done.read, done.stored) == (40, 40, 40 - before)


def test_a_pipe_is_followed_line_by_line(store: treering.Store, support: treering.Corpus) -> None:
    command = [
        sys.executable,
        "-m",
        "treering.cli",
        "capture",
        "support",
        "-",
        "--follow",
        "--json",
        "--format",
        "records",
    ]
    process = subprocess.Popen(
        command,
        env={**os.environ, "TREERING_STORE": store.uri},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdin is not None
    process.stdin.write(lines(1, 2) + lines(3)[:-9])
    process.stdin.flush()
    wait_for(lambda: live(support) == ["t1", "t2"])
    process.stdin.write(lines(3)[-9:] + lines(4).rstrip("\n"))
    out, _ = process.communicate(timeout=60)
    assert json.loads(out)["stored"] == 4


def test_what_cant_be_followed_says_so(support: treering.Corpus, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="only local files grow"):
        support.capture_file("memory://a.jsonl", follow=True)
    with pytest.raises(UsageError, match="followed alone"):
        support.capture_file([sys.stdin.buffer, str(tmp_path)], follow=True)
    with pytest.raises(NotFoundError, match="no file"):
        support.capture_file(str(tmp_path / "none.jsonl"), follow=True)
