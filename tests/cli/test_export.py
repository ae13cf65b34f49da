"""`treering export`, as typed."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from .conftest import Run, jsonl, labelled


@pytest.fixture
def sealed(support: Run, where: Path) -> Run:
    """`support@v1` with 40 records, ten of them held out."""
    records = [{**one, "split": "heldout" if n % 4 == 0 else "train"} for n, one in enumerate(labelled(40))]
    support("capture", "support", jsonl(where / "records.jsonl", records))
    support("snapshot", "live", "--to", "support@v1")
    return support


def test_records_go_to_stdout_and_what_is_said_of_them_to_stderr(sealed: Run) -> None:
    done = sealed("export", "support@v1")
    assert done.code == 0
    assert [json.loads(line)["id"] for line in done.out.splitlines()][:2] == ["refund-1", "refund-2"]
    assert len(done.out.splitlines()) == 40
    assert re.search(r"rows +40, \d\.\d KiB", done.err)
    assert "note:" not in done.err  # these lines say their split
    quiet = sealed("export", "support@v1", "--json")
    assert (quiet.out, json.loads(quiet.err)["rows"]) == (done.out, 40)


def test_a_file_is_written_and_what_it_doesnt_hold_is_said(sealed: Run, where: Path) -> None:
    done = sealed("export", "support@v1", "--format", "openai", "-o", "out.jsonl.gz")
    assert done.code == 0
    assert "not held  id, split, ts" in done.out
    assert "note: 10 of these records are held-out ones; --split train leaves them out" in done.err
    assert sealed("export", "support@v1", "-o", "out.jsonl.gz").code == 5
    train = sealed("export", "support@v1", "-f", "trl", "-o", "out.jsonl.gz", "--split", "train", "--force", "--json")
    assert (train.code, train.data["rows"], train.data["heldout"], train.err) == (0, 30, 0, "")
    assert train.data["files"][0]["sha256"]
    assert {path.name for path in where.iterdir()} == {"records.jsonl", "out.jsonl.gz", ".treering"}


def test_a_lock_gives_exactly_the_mix(sealed: Run, where: Path) -> None:
    assert sealed("mix", "support@v1=1", "--lock", "mix.lock.json", "--batch-size", "8").code == 0
    done = sealed("export", "mix.lock.json", "--with-ref", "-c", "id", "-o", "-")
    lines = [json.loads(line) for line in done.out.splitlines()]
    assert len(lines) == 32  # the last batch is filled up
    assert {tuple(line) for line in lines} == {("id", "_ref")}
    assert "lock" in done.err
    twice = sealed("export", "mix.lock.json", "--epochs", "2", "--shard-rows", "32", "-o", "two.jsonl", "--json")
    assert twice.data["paths"] == ["two-00000-of-00002.jsonl", "two-00001-of-00002.jsonl"]


def test_records_that_a_format_has_no_form_for_are_named_or_left_out(run: Run, where: Path) -> None:
    run("init")
    run("create", "chats", "--schema", "chat")
    good, silent = (
        {"id": "g", "messages": [{"role": "user", "content": "hi"}]},
        {"id": "s", "messages": [{"role": "user"}]},
    )
    run("capture", "chats", jsonl(where / "c.jsonl", [good, silent]))
    done = run("export", "chats@live", "-f", "openai", "-o", "o.jsonl")
    assert done.code == 3
    assert "record s has no form in openai: messages.0.content: expected what the user says" in done.err
    assert not (where / "o.jsonl").exists()
    done = run("export", "chats@live", "-f", "openai", "-o", "o.jsonl", "--skip-unfit")
    assert done.code == 0
    assert "left out  1, which openai has no form for" in done.out
    assert "s: messages.0.content" in done.out


def test_a_reader_that_has_seen_enough_ends_it_without_a_word(sealed: Run, where: Path) -> None:
    script = f'"{sys.executable}" -m treering.cli export support@v1 | head -n 1'
    done = subprocess.run(["bash", "-c", script], cwd=where, capture_output=True, text=True, check=True)
    assert len(done.stdout.splitlines()) == 1
    assert "Traceback" not in done.stderr
