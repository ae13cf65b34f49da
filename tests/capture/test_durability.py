"""The order that durability rests on: synced first, trimmed or sealed second."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

import treering
from tests.crash import power
from tests.waiting import wait_for
from treering.capture import recorder, spool
from treering.capture.spool import Spool
from treering.store import durable, objects, table
from treering.store.corpus import BaseCorpus
from treering.store.objects import LocalObjects


@pytest.fixture
def synced(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """Paths that were fsynced so far."""
    seen: set[str] = set()
    original = durable.sync_file

    def recorded(path: Path) -> None:
        original(path)
        seen.add(str(path))

    for module in (durable, objects, table):
        monkeypatch.setattr(module, "sync_file", recorded)
    return seen


def referenced(corpus: treering.Corpus) -> set[str]:
    head = corpus.table.head()
    files = [Path(corpus.uri) / path for path in corpus.table.files(head)]
    return {str(path) for path in (*files, *(file.parent for file in files))}


def test_the_spool_syncs_every_transaction(support: treering.Corpus) -> None:
    with support.capture() as live:
        assert live._spool._writer.execute("PRAGMA synchronous").fetchone() == (2,)  # FULL
        assert live._spool._writer.execute("PRAGMA journal_mode").fetchone() == ("wal",)


def test_a_snapshots_tag_is_synced(support: treering.Corpus, synced: set[str]) -> None:
    with support.capture() as live:
        live.add({"id": "r", "text": "t", "label": "l"})
    assert support.snapshot()
    tags = Path(support.uri) / "_refs" / "tags"
    assert {str(tags / "v1.json"), str(tags)} <= synced


def test_the_spool_lets_go_only_of_what_is_synced(
    support: treering.Corpus, synced: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    missing: list[set[str]] = []
    original = Spool.trim

    def checked(spool: Spool, which: str, up_to: int) -> None:
        missing.append(referenced(support) - synced)
        original(spool, which, up_to)

    monkeypatch.setattr(Spool, "trim", checked)
    synced.clear()
    support.table._synced.clear()
    with support.capture() as live:
        for i in range(3):
            live.add({"id": f"r{i}", "text": "t", "label": "l"})
            live.flush()
    assert missing == [set()] * 3


def test_a_neighbours_files_are_synced_too(support: treering.Corpus, synced: set[str]) -> None:
    other = treering.open(support.store.uri).corpus("support")
    with other.capture() as live:
        live.add({"id": "theirs", "text": "t", "label": "l"})
    synced.clear()
    support.table._synced.clear()
    with support.capture() as live:
        live.add({"id": "ours", "text": "t", "label": "l"})
    assert referenced(support) <= synced


def test_the_record_is_written_only_when_its_version_is_synced(
    support: treering.Corpus, synced: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with support.capture() as live:
        live.add({"id": "r", "text": "t", "label": "l"})
    synced.clear()
    support.table._synced.clear()
    missing: list[set[str]] = []

    def step(corpus: BaseCorpus, name: str) -> None:
        if name == "before-record":
            missing.append(referenced(support) - synced)

    monkeypatch.setattr(BaseCorpus, "step", step)
    assert support.snapshot()
    assert missing == [set()]


@pytest.mark.parametrize("unnamed", [True, False])
def test_an_object_gets_its_name_when_its_bytes_are_synced_and_its_new_folders_are_too(
    store: treering.Store, synced: set[str], monkeypatch: pytest.MonkeyPatch, unnamed: bool
) -> None:
    if not unnamed:  # as on a file system without files that have no name
        monkeypatch.delattr(os, "O_TMPFILE")
    inodes: set[int] = set()
    fsync, link = os.fsync, os.link

    def noted(descriptor: int) -> None:
        fsync(descriptor)
        inodes.add(os.fstat(descriptor).st_ino)

    def checked(source: Any, *arguments: Any, **options: Any) -> None:
        assert os.stat(source).st_ino in inodes
        link(source, *arguments, **options)

    monkeypatch.setattr(os, "fsync", noted)
    monkeypatch.setattr(os, "link", checked)
    LocalObjects(store.root).create("a/b/c.json", b"{}")
    root = Path(store.uri)
    assert {str(root / "a/b"), str(root / "a"), str(root)} <= synced
    assert [path.name for path in (root / "a/b").iterdir()] == ["c.json"]
    with pytest.raises(treering.AlreadyExistsError):
        LocalObjects(store.root).create("a/b/c.json", b"other")
    assert [path.name for path in (root / "a/b").iterdir()] == ["c.json"]
    assert LocalObjects(store.root).get("a/b/c.json") == b"{}"


def test_threads_that_add_at_once_share_a_sync(support: treering.Corpus, tmp_path: Path) -> None:
    if why := power.can_trace():
        pytest.skip(f"SHARED SYNCS ARE NOT COUNTED: {why}")
    code = (
        "import sys, threading, treering\n"
        "live = treering.open(sys.argv[1]).corpus('support').capture()\n"
        "def adds(t):\n"
        "    for i in range(25): live.add({'id': f'{t}-{i}', 'text': 't', 'label': 'l'})\n"
        "threads = [threading.Thread(target=adds, args=(t,)) for t in range(16)]\n"
        "[t.start() for t in threads]; [t.join() for t in threads]; live.close()\n"
    )
    trace = tmp_path / "trace"
    strace = ["strace", "-f", "-qq", "-y", "-o", str(trace), "-e", "trace=fsync,fdatasync", "--seccomp-bpf"]
    # Syncs that take a while, as on a disk: that is when others come to wait for the next one.
    strace += ["-e", "inject=fdatasync:delay_enter=10000"]
    subprocess.run([*strace, sys.executable, "-c", code, support.store.uri], check=True, timeout=120)
    syncs = [line for line in trace.read_text("utf-8", "replace").splitlines() if ".sqlite-wal>" in line]
    assert support.live_rows() == 400
    assert 10 < len(syncs) < 300  # each add was acknowledged by one of them


def test_with_durability_batch_the_spool_is_synced_in_time_and_not_for_each_record(
    support: treering.Corpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[float] = []
    real = spool._sync_log

    def noted(path: Path) -> object:
        synced.append(time.monotonic())
        return real(path)

    monkeypatch.setattr(spool, "_sync_log", noted)
    live = support.capture(durability="batch", sync_every_s=0.05)
    assert live._spool._writer.execute("PRAGMA synchronous").fetchone() == (1,)  # NORMAL
    began = time.monotonic()
    for i in range(200):
        live.add({"id": f"r{i}", "text": "t", "label": "l"})
    last = time.monotonic()
    wait_for(lambda: any(at >= last for at in synced))  # the last one, too
    assert len(synced) <= (synced[-1] - began) / 0.05 + 1
    live.close()
    assert support.live_rows() == 200


def test_a_batch_that_cant_be_synced_is_told_to_whoever_writes_next_and_still_reaches_the_table(
    support: treering.Corpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spool, "_sync_log", lambda path: treering.StoreError("the disk is ill", code="spool"))
    live = support.capture(durability="batch", sync_every_s=0.01)
    live.add({"id": "a", "text": "t", "label": "l"})
    wait_for(lambda: live._spool._log.failure)
    with pytest.raises(treering.StoreError, match="the disk is ill"):
        live.add({"id": "b", "text": "t", "label": "l"})
    live.close()
    assert support.live_rows() == 1


def test_a_killed_process_loses_nothing_of_a_batch(store: treering.Store, support: treering.Corpus) -> None:
    code = (
        "import os, sys, treering\n"
        "live = treering.open(sys.argv[1]).corpus('support').capture(durability='batch', sync_every_s=60)\n"
        "for i in range(50): live.add({'id': f'r{i}', 'text': 't', 'label': 'l'})\n"
        "os.kill(os.getpid(), 9)\n"
    )
    assert subprocess.run([sys.executable, "-c", code, store.uri], check=False).returncode == -9
    assert support.quarantine() == []
    assert support.live_rows() == 50


@pytest.mark.parametrize(
    "wrong", [{"durability": "maybe"}, {"sync_every_s": 0}, {"sync_every_s": 61}, {"sync_every_s": "x"}]
)
def test_a_durability_that_cant_be_is_refused(support: treering.Corpus, wrong: dict[str, Any]) -> None:
    with pytest.raises(treering.UsageError):
        support.capture(**wrong)


def test_a_file_whose_sync_failed_is_written_anew_before_it_counts_as_synced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"bytes")
    inode = path.stat().st_ino
    with monkeypatch.context() as patched:
        patched.setattr(durable.os, "fsync", lambda descriptor: (_ for _ in ()).throw(OSError(5, "Input/output error")))
        with pytest.raises(treering.StoreError, match="Input/output error"):
            durable.sync_file(path)
    durable.sync_file(path)
    assert (path.read_bytes(), path.stat().st_ino == inode) == (b"bytes", False)
    durable.sync_file(path)
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_a_spools_folder_lasts_from_the_store_down(store: treering.Store, monkeypatch: pytest.MonkeyPatch) -> None:
    named: list[str] = []
    monkeypatch.setattr(durable, "sync_directory", lambda path: named.append(str(path)))
    monkeypatch.setattr(durable, "_NAMED", set())
    corpus = store.create("other", "labelled")
    corpus.capture().close()
    assert {store.uri, f"{store.uri}/spool"} <= set(named)


def large(start: int = 0, rows: int = 2_000) -> pa.Table:
    """Records that are spooled as a file of their own."""
    ids = [f"r{start + i}" for i in range(rows)]
    return pa.table({"id": ids, "text": ["x" * 200] * rows, "label": ["a"] * rows})


def test_a_large_batch_lies_in_a_file_that_is_on_disk_before_a_row_names_it(
    support: treering.Corpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recorder, "FLUSH_AFTER_S", 1e9)
    happened: list[str] = []
    sync, sync_directory = os.fdatasync, spool.sync_directory

    def noted(descriptor: int) -> None:
        sync(descriptor)
        happened.append(Path(f"/proc/self/fd/{descriptor}").resolve().suffix)

    monkeypatch.setattr(os, "fdatasync", noted)
    monkeypatch.setattr(spool, "sync_directory", lambda path: (sync_directory(path), happened.append("its name")))
    with support.capture() as live:
        live._spool._writer.set_trace_callback(lambda said: happened.append(said.split()[0]))
        happened.clear()
        live.extend(large())
        folder = live._spool.path.parent
        assert len(list(folder.glob("*.arrows"))) == 1
        assert happened == [".arrows", "its name", "BEGIN", "INSERT", "COMMIT"]
        live.flush()
        assert list(folder.glob("*.arrows")) == []  # nor is a byte of it kept when it is in the table
    assert support.live_rows() == 2_000


def test_a_killed_process_leaves_large_batches_whole_and_no_file_that_nobody_needs(
    store: treering.Store, support: treering.Corpus
) -> None:
    code = (
        "import os, sys, treering\n"
        "from tests.capture.test_durability import large\n"
        "from treering.capture import recorder, spool\n"
        "recorder.FLUSH_AFTER_S = recorder.FLUSH_ROWS = 10**9\n"
        "live = treering.open(sys.argv[1]).corpus('support').capture()\n"
        "live.extend(large())\n"
        "write_file = spool._Log.write_file\n"
        "spool._Log.write_file = lambda *given: (write_file(*given), os.kill(os.getpid(), 9))\n"
        "live.extend(large(10_000))\n"  # written, and no row names it yet
    )
    root = str(Path(__file__).parents[2])
    command = [sys.executable, "-c", code, store.uri]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([root, os.environ.get("PYTHONPATH", "")])}
    assert subprocess.run(command, check=False, env=environment).returncode == -9
    folder = Path(store.uri) / "spool" / support.record.table
    assert len(list(folder.glob("*.arrows"))) == 2
    assert support.quarantine() == []  # looks, and so takes the spool in
    assert support.live_rows() == 2_000
    assert list(folder.glob("*.*")) == []


def test_a_large_batch_that_cant_be_written_is_refused_as_a_whole_and_the_next_one_isnt(
    support: treering.Corpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with support.capture() as live:
        with monkeypatch.context() as patch:
            patch.setattr(os, "fdatasync", full)
            with pytest.raises(treering.StoreError, match="No space left") as caught:
                live.extend(large())
            assert caught.value.hint
        assert list(live._spool.path.parent.glob("*.arrows")) == []
        assert live.extend(large()).acknowledged == 2_000
    assert support.live_rows() == 2_000


def test_one_add_is_one_sync(support: treering.Corpus, tmp_path: Path) -> None:
    if why := power.can_trace():
        pytest.skip(f"SYNCS ARE NOT COUNTED: {why}")
    code = (
        "import sys, treering\n"
        "from treering.capture import recorder\n"
        "recorder.FLUSH_AFTER_S = 1e9\n"
        "live = treering.open(sys.argv[1]).corpus('support').capture()\n"
        "mark = open(sys.argv[2], 'wb')\n"
        "os.fsync(mark.fileno())\n"
        "for i in range(20): live.add({'text': f't{i}', 'label': 'l'})\n"
        "os.fsync(mark.fileno())\n"
        "live.close()\n"
    )
    trace, mark = tmp_path / "trace", tmp_path / "mark"
    strace = ["strace", "-f", "-qq", "-y", "-o", str(trace), "-e", "trace=fsync,fdatasync,pwrite64", "--seccomp-bpf"]
    code = f"import os\n{code}"
    subprocess.run([*strace, sys.executable, "-c", code, support.store.uri, str(mark)], check=True, timeout=120)
    lines = trace.read_text("utf-8", "replace").splitlines()
    first, last = (at for at, line in enumerate(lines) if f"{mark}>" in line)
    during = [line for line in lines[first + 1 : last] if "/spool/" in line]
    syncs = [at for at, line in enumerate(during) if "sync(" in line]
    assert 20 <= len(syncs) <= 21  # SQLite syncs the head of a log that it begins anew
    assert max(b - a - 1 for a, b in pairwise(syncs)) <= 6  # writes: a page or two, each with its frame
