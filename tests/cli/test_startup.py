"""What the command imports, and when. In processes of their own: this one has imported everything already."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import treering

HEAVY = ["torch", "lance", "lancedb", "pyarrow", "pydantic", "numpy", "transformers", "rich"]
TORCH = ["torch", "transformers"]


def imported(code: str, where: Path, watched: list[str]) -> list[str]:
    """Which of the watched modules are loaded after `code`."""
    program = (
        f"{code}\nimport sys, json\njson.dump([m for m in {watched!r} if m in sys.modules], open('seen.json', 'w'))"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=where, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    found: list[str] = json.loads((where / "seen.json").read_text())
    return found


def command(*words: str) -> str:
    """Python that runs `treering WORD …` and carries on."""
    return (
        f"import sys; from treering.cli import main; sys.argv = ['treering', *{list(words)!r}]\n"
        "try: main()\nexcept SystemExit as end: assert not end.code, end.code"
    )


def test_importing_treering_imports_nothing_heavy(tmp_path: Path) -> None:
    assert imported("import treering", tmp_path, [*HEAVY, "typer"]) == []


def test_help_imports_nothing_heavy(tmp_path: Path) -> None:
    assert imported(command("--help"), tmp_path, HEAVY) == []


def test_no_command_imports_torch_unless_it_trains_or_evaluates(tmp_path: Path) -> None:
    (tmp_path / "records.jsonl").write_text('{"text": "hi", "label": "greeting"}\n' * 40)
    commands = [
        ("init",),
        ("create", "support", "--schema", "labelled"),
        ("schema", "support"),
        ("capture", "support", "records.jsonl"),
        ("snapshot", "live", "--to", "support@v1"),
        ("log", "support"),
        ("status", "support"),
        ("show", "support@v1"),
        ("head", "support@v1"),
        ("mix", "support@v1=1", "--lock", "lock.json", "--preview", "2"),
        ("adapters", "support"),
    ]
    assert imported("\n".join(command(*words) for words in commands), tmp_path, TORCH) == []


def test_the_command_is_also_a_module(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "treering.cli", "--version"], cwd=tmp_path, capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stdout.split()[0]) == (0, "treering")


@pytest.mark.skipif(os.name != "posix", reason="pipes of a shell")
def test_a_reader_that_leaves_early_gets_no_complaint(tmp_path: Path) -> None:
    with treering.open(tmp_path / ".treering").create("support", "labelled").capture() as live:
        live.extend({"text": f"{'x' * 200} {i}", "label": "a"} for i in range(2_000))  # more than a pipe holds
    script = f"{sys.executable} -m treering.cli head support@live -n 2000 --json | head -n 1"
    done = subprocess.run(["bash", "-c", script], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert (done.stdout, done.stderr) == ("[\n", "")
