"""A server under load for as long as one likes: the exact count, flat memory, no file handle left behind."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path
from typing import Any

import httpx
import pytest

import treering

from .running import Look, ids, labelled, look, process

RECORDS = "/v1/corpora/notes/records"


def told(sent: int, again: int, stored: int, snapshots: int, seen: list[Look]) -> str:
    """What there was, for whoever runs this by hand."""
    seconds = seen[-1].at_s
    return (
        f"{sent:,} records sent in {seconds:.0f} s ({sent / seconds:,.0f}/s) and {again:,} of them once more, {stored:,} stored, "
        f"{snapshots} snapshots; {seen[0]}, {seen[-1]}, most {max(one.rss_mb for one in seen):.0f} MB "
        f"and {max(one.files for one in seen)} files"
    )


def soak(store: treering.Store, seconds: float, workers: int = 4) -> None:
    assert store.root is not None
    sent, again = [0] * workers, [0] * workers
    stop = threading.Event()
    seen: list[Look] = []
    with process(store.root) as server:

        def work(worker: int) -> None:
            with httpx.Client(base_url=server.url, timeout=30) as http:
                n = 0
                while not stop.is_set():
                    batch = labelled(100, f"w{worker}-{n}-")
                    answer = http.post(RECORDS, json=batch)
                    if answer.status_code == 503:
                        time.sleep(float(answer.headers["retry-after"]))
                        continue
                    assert answer.json()["stored"] == 100, answer.text
                    if n % 10 == 0:  # some is sent twice, some is wrong, some connections are new
                        assert http.post(RECORDS, json=batch).json()["duplicates"] == 100
                        again[worker] += 100
                        assert http.post(RECORDS, json={"text": 1}).status_code == 422
                        assert httpx.get(f"{server.url}/v1/corpora/notes/head", timeout=30).status_code == 200
                    sent[worker] += 100
                    n += 1
                    time.sleep(0.02)

        threads = [threading.Thread(target=work, args=(n,)) for n in range(workers)]
        for one in threads:
            one.start()
        began = time.monotonic()
        sealed = 0
        while (now := time.monotonic() - began) < seconds:
            time.sleep(min(1.0, seconds / 10))
            seen.append(look(server.popen.pid, now))
            if now > (sealed + 1) * max(60.0, seconds / 3):
                store.corpus("notes").snapshot()
                sealed += 1
        stop.set()
        for one in threads:
            one.join()
        assert server.end() == 0
    found: list[Any] = ids(store)
    snapshots = store.corpus("notes").snapshots()
    for snapshot in snapshots:
        found += store.load(snapshot.ref).to_table().column("id").to_pylist()
    print(told(sum(sent), sum(again), len(found), len(snapshots), seen))
    assert len(found) == len(set(found)) == sum(sent)
    half = len(seen) // 2
    early, late = max(one.files for one in seen[:half]), max(one.files for one in seen[half:])
    assert late <= early + 20, (early, late)
    if seconds >= 300:
        third = len(seen) // 3
        before = sorted(one.rss_mb for one in seen[third : 2 * third])[third // 2]
        after = sorted(one.rss_mb for one in seen[2 * third :])[third // 2]
        assert after <= 1.15 * before + 20, (before, after)


needs_proc = pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="no /proc here")


@needs_proc
def test_a_server_keeps_count_and_leaves_no_file_open(store: treering.Store, notes: treering.Corpus) -> None:
    soak(store, 4)


@needs_proc
@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_ten_minutes_of_load_leave_memory_and_file_handles_flat(
    store: treering.Store, notes: treering.Corpus, tmp_path: Path
) -> None:
    soak(store, 600)
    assert os.listdir(tmp_path) == ["store"]
