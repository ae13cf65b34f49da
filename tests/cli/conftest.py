"""The `treering` command against a store of the test's own."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from treering.cli.app import app


@dataclass(frozen=True)
class Outcome:
    """How a run of the command ended."""

    code: int
    out: str
    err: str

    @property
    def data(self) -> Any:
        """What it printed, as JSON."""
        return json.loads(self.out)

    @property
    def lines(self) -> list[str]:
        """What it said."""
        return self.err.splitlines()


Run = Callable[..., Outcome]


@pytest.fixture
def where(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The directory that the command runs in."""
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    for name in ("TREERING_STORE", "TREERING_DEBUG", "NO_COLOR", "FORCE_COLOR", "COLUMNS"):
        monkeypatch.delenv(name, raising=False)
    return here


@pytest.fixture
def run(where: Path) -> Run:
    """Runs `treering WORD …` in `where`."""

    def invoke(*words: str, stdin: str | bytes | None = None) -> Outcome:
        result = CliRunner().invoke(app, [str(word) for word in words], input=stdin)
        return Outcome(result.exit_code, result.stdout, result.stderr)

    return invoke


@pytest.fixture
def support(run: Run) -> Run:
    """The same, in a store with the empty corpus `support` of labelled records."""
    assert run("init").code == 0
    assert run("create", "support", "--schema", "labelled").code == 0
    return run


def jsonl(path: Path, records: Iterable[Any]) -> str:
    """Writes records (or lines of text as they are) to `path`; its name."""
    lines = [record if isinstance(record, str) else json.dumps(record) for record in records]
    path.write_text("\n".join(lines) + "\n", "utf-8")
    return str(path)


def labelled(count: int, *, topic: str = "refund") -> list[dict[str, Any]]:
    """Labelled records with ids of their own."""
    return [{"id": f"{topic}-{i}", "text": f"{topic} number {i}", "label": topic} for i in range(count)]
