"""Start workers, read what they said, and check that every record is in exactly one place."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import lance

import treering
from treering.store.snapshot import finish_pending

WORKER = Path(__file__).with_name("worker.py")


def start(role: str, store: treering.Store, seconds: float, name: str = "") -> subprocess.Popen[str]:
    command = [sys.executable, str(WORKER), role, store.uri, str(seconds), name]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def said(process: subprocess.Popen[str], *, expect: int | None = 0) -> list[dict[str, Any]]:
    out, err = process.communicate(timeout=240)
    if expect is not None:
        assert process.returncode == expect, err
    lines = out.splitlines()
    if out and not out.endswith("\n"):
        lines.pop()  # cut off by the kill: never acknowledged
    return [json.loads(line) for line in lines]


def ids_by_place(store: treering.Store) -> dict[str, list[str]]:
    """Ids in live and in every snapshot, by treering; and that plain Lance says the same of the snapshots."""
    corpus = store.corpus("support")
    places = {"live": store.live("support").to_table(["id"]).column(0).to_pylist()}
    for snapshot in corpus.snapshots():
        ids = store.load(snapshot.ref).to_table(["id"]).column(0).to_pylist()
        assert len(ids) == snapshot.rows
        plain = lance.dataset(corpus.uri, version=snapshot.name).to_table(columns=["id"]).column(0).to_pylist()
        assert plain == ids
        places[snapshot.name] = ids
    return places


def assert_each_in_one_place(store: treering.Store, captured: set[str]) -> None:
    store.corpus("support").quarantine()  # commits what dead processes left in their spools
    places = ids_by_place(store)
    counts = Counter(record_id for ids in places.values() for record_id in ids)
    assert [i for i, n in counts.items() if n > 1] == []
    assert captured - set(counts) == set()
    assert set(counts) - captured == set()
    finish_pending(store.corpus("support"))
    assert store.corpus("support").table.head().count_rows() == len(places["live"])
