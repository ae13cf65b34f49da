"""The report's page, drawn from made-up data."""

from __future__ import annotations

import re
from pathlib import Path
from xml.etree import ElementTree

import pytest

from tests.report.browser import browser, find_chromium
from tests.report.sample import report_data
from tests.report.test_page import Page
from treering.report import render_report
from treering.report.gather import curve_of

ATTACKS = ["<script>alert(1)</script>", "</style><b>", "\"'><img src=x onerror=alert(1)>", "&lt;"]


def test_the_first_thing_said_is_whether_the_model_forgets() -> None:
    assert "<h1>support:7 keeps what it learnt</h1>" in render_report(report_data())
    assert "<h1>support:7 forgets a little</h1>" in render_report(report_data(loss=0.005))
    assert "<h1>support:7 forgets</h1>" in render_report(report_data(loss=0.06))
    assert "<h1>support:1 has one round behind it</h1>" in render_report(report_data(rounds=1))


def test_every_section_is_there() -> None:
    text = render_report(report_data())
    page = Page(text)
    ids = {attrs["id"] for _, attrs in page.tags if "id" in attrs}
    parts = {
        "matrix",
        "rounds",
        "diagnosis",
        "domains",
        "questions",
        "mix",
        "lineage",
        "gate",
        "drift",
        "audit",
        "registry",
    }
    assert parts <= ids
    shown = " ".join(page.words)
    for words in (
        "97.1 % right", "O(1)", "50 % is drift", "gap +6.2", "10 % of each batch",  # the five answers
        "severe: −5.0", "gate: −3.0", "gate: 85.0",  # the lines
        "Projected, not measured", "14.0 GB", "22,700,000 parameters",  # the gate's budget, its formula shown
        "2.40× its line", "support:8", "refused", "treering label support --sample 50", "90 of 1,500",
    ):  # fmt: skip
        assert words in shown, words


def test_it_asks_the_network_for_nothing_and_runs_nothing() -> None:
    text = render_report(report_data(noise=" https://example.com/x"))
    page = Page(text)
    assert page.named("script") == []
    assert not re.search(r"@import|url\(", text)
    for _, attrs in page.tags:
        assert not [name for name in attrs if name.startswith("on")]
        for name in ("src", "href"):
            assert (attrs.get(name) or "data:").startswith("data:")


@pytest.mark.parametrize("attack", ATTACKS)
def test_every_text_is_escaped(attack: str) -> None:
    page, plain = Page(render_report(report_data(noise=attack))), Page(render_report(report_data(noise="x")))
    assert {tag for tag, _ in page.tags} <= {tag for tag, _ in plain.tags}
    assert page.named("script") == page.named("img") == []
    assert attack in " ".join(page.words)


def test_every_drawing_is_well_formed_named_and_tells_more_on_hover() -> None:
    text = render_report(report_data())
    drawings = re.findall(r"<svg.*?</svg>", text, re.S)
    assert len(drawings) >= 9
    hover = []
    for drawing in drawings:
        root = ElementTree.fromstring(drawing)
        assert root.get("role") == "img"
        assert root.get("aria-labelledby") or root.get("aria-label")
        hover += [title.text for title in root.iter("title")]
    for words in (
        "v2: 93.0 when it was learnt, 91.1 now (-1.9)",
        "support@v3: 2.0 points are lost knowledge",
        "support:7, production; trained on support@v1, support@v2, support@v3, support@v4 and 3 more; continues support:6",
        "support@v3: 1,742 records, sealed 2026-12-06; dining; edition 2: records were erased",
        "support@v7, new: 59.9 % served",
        "banking: 90 of 1,500 are in support/replay",
    ):
        assert words in hover, words


def test_a_screen_reader_gets_the_figures_in_tables_with_headers() -> None:
    page = Page(render_report(report_data()))
    assert len(page.named("table")) >= 9
    assert {attrs.get("scope") for attrs in page.named("th")} == {"col", "row"}
    assert len(page.named("caption")) == len(page.named("table"))


def test_ids_are_unique_and_the_same_data_gives_the_same_bytes() -> None:
    text = render_report(report_data())
    ids = [attrs["id"] for _, attrs in Page(text).tags if "id" in attrs]
    assert len(set(ids)) == len(ids)
    assert render_report(report_data()) == text


def test_a_hundred_snapshots_still_make_a_small_page() -> None:
    text = render_report(report_data(rounds=100))
    assert len(text.encode()) < 500_000
    assert "82 earlier snapshots stand in the table" in text
    assert "support@v1: 95.0 when it was learnt" in text  # hover text of a column


def test_what_could_not_be_gathered_is_said() -> None:
    data = report_data().model_copy(
        update={"diagnosis": None, "audit": None, "status": None, "mix": [], "buffers": [], "verdict": None, "rounds": [],
                "missing": ["audit: there is no disk"]}
    )  # fmt: skip
    assert "audit: there is no disk" in render_report(data)
    nothing = data.model_copy(update={"adapter": None, "adapters": [], "matrices": [], "curve": [], "snapshots": []})
    assert "<h1>no adapter yet</h1>" in render_report(nothing)


def test_average_and_bwt_of_a_round_are_those_that_it_had_then() -> None:
    from tests.report.sample import matrix_of

    matrix = matrix_of(4, loss=0.1)
    curve = curve_of(matrix)
    assert curve[0].bwt is None
    assert curve[1].bwt == pytest.approx(matrix.values[1, 0] - matrix.values[0, 0])
    assert curve[2].average == pytest.approx(matrix.values[2, :3].mean())
    assert (curve[3].average, curve[3].bwt) == (pytest.approx(matrix.average), pytest.approx(matrix.bwt))


@pytest.mark.skipif(find_chromium() is None, reason="no Chromium on this machine")
def test_a_browser_shows_it_in_both_themes_on_a_phone_and_on_paper_without_a_word_of_complaint(tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    path.write_text(render_report(report_data()), "utf-8")
    background = "getComputedStyle(document.body).backgroundColor"
    clipped = """[...document.querySelectorAll('svg.chart text')].filter(t => {
        const a = t.getBoundingClientRect(), b = t.closest('svg').getBoundingClientRect();
        return a.left < b.left - 1 || a.right > b.right + 1 }).map(t => t.textContent)"""
    with browser() as tab:
        shots = {}
        colours = set()
        for name, width, dark in (("light", 1280, False), ("dark", 1280, True), ("phone", 390, False)):
            tab.show(path, width=width, dark=dark)
            shots[name] = tab.shot(tmp_path / f"{name}.png").read_bytes()
            colours.add(tab.run(background))
            assert tab.run("document.documentElement.scrollWidth") == width  # nothing hangs over the edge
            assert tab.run(clipped) == [], name
            assert tab.run("document.querySelector('h1').getBoundingClientRect().top") < 300
        assert len(colours) == 2
        assert all(shot.startswith(b"\x89PNG") and len(shot) > 50_000 for shot in shots.values())
        assert shots["light"] != shots["dark"]
        assert tab.printed().startswith(b"%PDF")
        assert tab.said == []
        assert set(tab.asked) == {path.as_uri()}


@pytest.mark.skipif(find_chromium() is None, reason="no Chromium on this machine")
@pytest.mark.parametrize("width", [390, 1280])
def test_all_there_is_to_do_in_it_is_done_by_keyboard_alone(tmp_path: Path, width: int) -> None:
    path = tmp_path / "report.html"
    path.write_text(render_report(report_data()), "utf-8")
    with browser() as tab:
        tab.show(path, width=width)
        folded = tab.run("document.querySelectorAll('details').length")
        assert folded > 0
        assert tab.run("document.querySelectorAll('details[open]').length") == 0
        for number in range(folded):
            for _ in range(20):
                tab.press("Tab", 9)
                assert tab.run("getComputedStyle(document.activeElement).outlineStyle") != "none"
                if tab.run("document.activeElement.matches('details:not([open]) > summary')"):
                    break
            tab.press("Enter", 13, "\r")
            assert tab.run("document.querySelectorAll('details[open]').length") == number + 1
        assert tab.run("document.documentElement.scrollWidth") == width  # tables scroll by themselves
