"""What the commands that look say in 80 columns: the point is there, and nothing is wider, cut short or torn apart."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import typer.main
from rich.cells import cell_len

import treering
from tests.rounds.looking import produce, tickets
from treering.cli.app import app
from treering.cli.completion import SCHEMAS
from treering.formats.known import IMPORTERS
from treering.formats.writers.base import EXPORTERS
from treering.schema import BUILT_IN

from .conftest import Run, jsonl

LONG = "after the release of 3.2, when everybody asked about the new shipping fees and nobody about passwords " * 3


@pytest.fixture(params=[80, 120])
def wide(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """Columns of the terminal."""
    monkeypatch.setenv("COLUMNS", str(request.param))
    return int(request.param)


@pytest.fixture(scope="module")
def a_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight snapshots, one pruned, one with a long message, two in production; an unknown topic in live."""
    where = tmp_path_factory.mktemp("glance") / "store"
    store = treering.open(where)
    support = store.create("support", "labelled")
    for number in range(1, 9):
        with support.capture() as live:
            live.extend(tickets(60, seed=number))
        support.snapshot(message=LONG if number == 3 else f"week {number}")
    support.prune(keep=7, dry_run=False)
    odd = tickets(160, seed=99, topics=["delivery"])
    with support.capture() as live:
        live.extend({**one, "id": f"odd-{n}", "domain": "an area of its own"} for n, one in enumerate(odd))
    produce(store, "support", ["support@v2", "support@v3"])
    return where


@pytest.fixture
def grown(run: Run, a_store: Path) -> Run:
    """Runs a command against that store, which none of them changes."""
    return lambda *words: run("--store", str(a_store), *words)


LOOKS = {
    "log support": [
        r"^support  480 records in 8 snapshots, support:1 in production$",
        r"^○ live +160 +not sealed yet$",
        r"^● v8 +60 +\d{4}-\d\d-\d\d \d\d:\d\d +week 8$",
        r"^● v3 +60 .*← support:1",
        r"^◌ v1 .*pruned",
    ],
    "status support": [r"^round due +yes$", r"^live +160 records", r"^unseen domains +an area of its own 160$"],
    "status": [r"^corpus +type +live +sealed +newest +quarantined +production$", r"^support +labelled +160 "],
    "show support@v3": [r"^rows +60 \(\d+ held-out\)$", r"^digest +[0-9a-f]{64}$"],
    "show support@v2..v8": [r"^support@v8 +60 ", r"^rows +420 "],
    "show support:1": [r"^status +production$"],
    "diff support": [r"^records +60 +160 +\+100$", r"drifted$", r"an area of its own"],
    "audit support@v2..v3": [r"^check +found +figure$", r"^leaks "],
}


@pytest.mark.parametrize("command", LOOKS)
def test_each_look_fits_the_terminal_and_says_the_point(grown: Run, wide: int, command: str) -> None:
    done = grown(*command.split())
    assert done.code == 0
    lines = done.out.splitlines()
    assert max(map(cell_len, lines)) <= wide
    assert [line for line in lines if line.endswith(" ")] == []
    assert "\x1b" not in done.out  # a pipe gets no colours
    assert "\ue000" not in done.out
    for fact in LOOKS[command]:
        assert any(re.search(fact, line) for line in lines), fact


def test_a_long_message_folds_beside_the_line_of_snapshots_and_not_across_it(grown: Run, wide: int) -> None:
    lines = grown("log", "support").out.splitlines()
    at = next(n for n, line in enumerate(lines) if line.startswith("● v3"))
    folded = [line for line in lines[at + 1 :] if not line.startswith(("●", "◌", "│"))]
    assert folded
    assert all(line.startswith(" " * 20) for line in folded)
    assert LONG.strip() not in " ".join(lines)  # what is longer is for `show`
    assert len(lines) < 2 * 8 + 2 + 6


def test_findings_stay_in_their_column_when_they_wrap(grown: Run, where: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    lines = grown("audit", "support@live", "--thin", "50").out.splitlines()
    told = lines[lines.index("thin-heldout", 3) + 1 :] if "thin-heldout" in lines else lines
    assert any(line.startswith("    →") for line in told)
    assert all(line.startswith("  ") or not line or re.fullmatch(r"[a-z-]+", line) for line in told)


def test_a_name_and_its_number_stay_together(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = treering.open(tmp_path / "store")
    with store.create("support", "labelled").capture() as live:
        live.extend({"id": f"r{n}", "text": "t", "label": f"a label {n % 7}"} for n in range(70))
    store.snapshot("support")
    for columns in range(40, 81, 3):
        monkeypatch.setenv("COLUMNS", str(columns))
        done = run("--store", str(tmp_path / "store"), "show", "support@v1")
        assert len(re.findall(r"a label \d 10\b", done.out)) == 7, columns


def test_a_digest_stays_on_one_line_beside_every_fact_of_an_adapter(run: Run, tmp_path: Path) -> None:
    treering.open(tmp_path / "store").create("support", "labelled")
    done = run("--store", str(tmp_path / "store"), "adapters", "add", "support", "--external", "ft:hosted:1")
    assert re.search(r"^digest +[0-9a-f]{64}$", done.out, re.MULTILINE)
    assert re.search(r"^elsewhere +ft:hosted:1$", done.out, re.MULTILINE)


def test_slices_are_in_the_order_of_their_numbers(grown: Run, where: Path) -> None:
    from treering.cli.output import natural

    names = ["support@v10", "support@v2", "support@v1", "support@v2[domain=a]"]
    assert sorted(names, key=natural) == ["support@v1", "support@v2", "support@v2[domain=a]", "support@v10"]


def test_no_color_and_pipes_get_plain_text(grown: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert "\x1b[" in grown("log", "support").out
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b[3" not in grown("log", "support").out


def test_a_line_leads_from_each_snapshot_to_the_one_before_it(grown: Run, wide: int) -> None:
    signs = [line[0] for line in grown("log", "support").out.splitlines()[1:] if line[0] in "○●◌│"]
    assert "".join(signs) == "○" + "│●" * 7 + "│◌"


def groups() -> Iterator[tuple[Any, dict[str, Any]]]:
    """The command itself, and its nouns, each with the commands below it."""
    every = typer.main.get_command(app)
    for one in (every, *every.commands.values()):  # type: ignore[attr-defined]
        if hasattr(one, "commands"):
            yield one, one.commands


def test_the_help_says_what_each_command_is_for_in_a_line_that_is_whole() -> None:
    for _, below in groups():
        room = 80 - 2 - 6 - max(map(len, below))  # as the parser reckons
        assert [name for name, one in below.items() if one.get_short_help_str(room).endswith("...")] == []


@pytest.mark.parametrize(
    ("verb", "option", "names"),
    [
        ("capture", "--format", IMPORTERS),
        ("export", "--format", EXPORTERS),
        ("create", "--schema", BUILT_IN),
    ],
)
def test_the_help_names_every_format_and_record_type(verb: str, option: str, names: Mapping[str, Any]) -> None:
    command = typer.main.get_command(app).commands[verb]  # type: ignore[attr-defined]
    (told,) = (one.help for one in command.params if option in one.opts)
    assert set(names) <= set(re.findall(r"[a-z-]+", told))
    assert set(BUILT_IN) == set(SCHEMAS)


def test_quarantine_is_called_the_same_in_every_form(grown: Run) -> None:
    assert "quarantined" in grown("status").out
    assert "quarantined" in grown("status", "support").out
    assert "quarantined" in grown("status", "support", "--json").data


def test_one_record_is_not_one_records(support: Run, where: Path) -> None:
    support("capture", "support", jsonl(where / "one.jsonl", [{"id": "a", "text": "Hi", "label": "x"}]))
    told = [support("status", "support").out, support("audit", "support@live").out]
    support("snapshot", "live", "--to", "support")
    told += [support("log", "support").out, support("status", "support").out]
    assert [text for text in told if "1 record" not in text or "1 records" in text] == []


@pytest.mark.parametrize("sign", ["\u202e", "\u2066", "\u2069", "\u202a", "\x1b", "\x9b"])
def test_a_record_neither_steers_the_terminal_nor_turns_its_lines_around(support: Run, where: Path, sign: str) -> None:
    support("capture", "support", jsonl(where / "one.jsonl", [{"id": "a", "text": f"a{sign}b", "label": "x"}]))
    shown = support("head", "support@live").out
    assert sign not in shown
    assert "a\ufffdb" in shown
