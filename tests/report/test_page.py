from __future__ import annotations

import math
import re
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from treering.errors import StoreError, UsageError
from treering.evaluation import ScoreMatrix
from treering.evaluation.colour import contrast, ramp, step_of, text_on
from treering.report import render_matrices, write_matrices

calm = settings(deadline=None)  # two busy cores make any time limit flaky


NAN = math.nan


def matrix(values: list[list[float]], corpus: str = "support", **fields: object) -> ScoreMatrix:
    array = np.array(values)
    return ScoreMatrix(
        tuple(f"{corpus}:{i + 1}" for i in range(array.shape[0])),
        tuple(f"{corpus}@v{j + 1}" for j in range(array.shape[1])),
        array,
        **fields,  # type: ignore[arg-type]
    )


LIVE = matrix([[0.931, NAN], [0.124, 0.902]])
MIX = matrix([[0.931, NAN], [0.905, 0.889]])
VOID = {"meta", "link", "br", "img", "input", "hr"}


class Page(HTMLParser):
    """Checks nesting, and collects tags, attributes and text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self._open: list[str] = []
        self.feed(text)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    def named(self, tag: str) -> list[dict[str, str | None]]:
        return [attrs for name, attrs in self.tags if name == tag]


def test_two_matrices_stand_side_by_side_with_their_figures() -> None:
    text = render_matrices(
        [("Live only", LIVE), ("Mix", MIX)], title="Two runs", facts=[("Base", "minilm"), "one line"]
    )
    page = Page(text)
    assert len([a for a in page.named("svg") if a.get("class") != "legend"]) == 2
    assert len(page.named("table")) == 2
    shown = " ".join(page.words)
    for word in ("Two runs", "Live only", "Mix", "minilm", "one line", "−80.7", "−2.6", "51.3", "89.7", "12.4"):
        assert word in shown, word


def test_the_page_asks_the_network_for_nothing_and_runs_nothing() -> None:
    text = render_matrices([("a", LIVE), ("b", MIX)])
    page = Page(text)
    assert page.named("script") == []
    assert not re.search(r"https?://|@import|url\(", text)
    for _, attrs in page.tags:
        assert not [name for name in attrs if name.startswith("on")]
        for name in ("src", "href"):
            assert (attrs.get(name) or "data:").startswith("data:")
    (policy,) = [a["content"] for a in page.named("meta") if a.get("http-equiv") == "Content-Security-Policy"]
    assert policy is not None
    assert policy.startswith("default-src 'none'")


@calm
@given(st.text(min_size=1, max_size=30), st.sampled_from(["<script>alert(1)</script>", "</style>", "\"'><b>", "&lt;"]))
def test_every_text_is_escaped(noise: str, attack: str) -> None:
    name = attack + noise
    hostile = ScoreMatrix((name,), (name,), np.array([[0.5]]), metric=name, notes=(name,))
    page = Page(render_matrices([(name, hostile)], title=name, facts=[(name, name), name]))
    plain = Page(render_matrices([("a", matrix([[0.5]], notes=("n",)))], title="t", facts=[("f", "v"), "g"]))
    # Labels get a <title> when they are shortened; otherwise the same elements, whatever the names say.
    known = {tag for tag, _ in plain.tags}
    assert {tag for tag, _ in page.tags} <= known
    assert len(page.named("b")) == len(page.named("script")) == 0


def test_the_drawings_are_well_formed_and_every_cell_says_what_it_is_on_hover() -> None:
    text = render_matrices([("a", LIVE)])
    drawings = re.findall(r"<svg.*?</svg>", text, re.S)
    titles = [t.text for d in drawings for t in ElementTree.fromstring(d).iter("title")]
    assert "support@v1 after support:1: 93.1; learnt in this round" in titles
    assert "support@v1 after support:2: 12.4; -80.7 since it was learnt" in titles
    assert "support@v2 after support:1: not evaluated" in titles


def test_a_screen_reader_gets_every_number_in_a_table_with_headers() -> None:
    page = Page(render_matrices([("a", LIVE)]))
    assert [a["scope"] for a in page.named("th")] == ["col"] * 3 + ["row"] * 2
    assert len(page.named("td")) == 4
    assert page.words.count("not evaluated") == 1
    for svg in page.named("svg"):
        assert svg["role"] == "img"
        assert svg.get("aria-labelledby") or svg.get("aria-label")


def test_ids_are_unique() -> None:
    page = Page(render_matrices([("a", LIVE), ("a", LIVE), ("b", MIX)]))
    ids = [attrs["id"] for _, attrs in page.tags if "id" in attrs]
    assert len(set(ids)) == len(ids)


def test_numbers_can_be_read_on_every_colour_in_both_themes() -> None:
    for dark in (False, True):
        for colour in ramp(dark=dark):
            assert contrast(colour, text_on(colour)) >= 4.5


def test_the_scale_is_monotone_in_lightness_and_runs_the_other_way_in_the_dark() -> None:
    for dark in (False, True):
        from_page = [contrast(colour, "#000000") for colour in ramp(dark=dark)]
        assert from_page == sorted(from_page, reverse=not dark)


@calm
@given(st.floats(-2, 2))
def test_scores_beyond_the_scale_take_its_ends(score: float) -> None:
    assert 0 <= step_of(score) < len(ramp(dark=False))


def test_the_page_knows_light_and_dark() -> None:
    text = render_matrices([("a", LIVE)])
    assert "prefers-color-scheme: dark" in text
    assert 'name="color-scheme" content="light dark"' in text


def test_the_same_matrices_give_the_same_bytes() -> None:
    assert render_matrices([("a", LIVE)]) == render_matrices([("a", LIVE)])


def test_a_figure_that_is_not_defined_says_so() -> None:
    page = Page(render_matrices([("a", matrix([[0.5]]))]))
    assert page.words.count("not defined") == 2


def test_many_columns_are_stacked_rather_than_shrunk() -> None:
    text = render_matrices([("a", matrix(np.full((12, 12), 0.5).tolist())), ("b", MIX)])
    assert 'class="panels stacked"' in text
    assert 'class="panels stacked"' not in render_matrices([("b", MIX)])


def test_the_file_is_written_whole_into_a_folder_that_is_made(tmp_path: Path) -> None:
    path = write_matrices(tmp_path / "out" / "report.html", [("a", LIVE)], title="ü")
    assert path == tmp_path / "out" / "report.html"
    assert path.read_text("utf-8") == render_matrices([("a", LIVE)], title="ü")
    assert list(path.parent.iterdir()) == [path]
    write_matrices(path, [("b", MIX)])
    assert "89.7" in path.read_text("utf-8")


def test_a_report_without_a_matrix_and_a_path_that_cannot_be_written_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="at least one score matrix"):
        write_matrices(tmp_path / "x.html", [])
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="can't write the report"):
        write_matrices(tmp_path / "file" / "x.html", [("a", LIVE)])
    (tmp_path / "folder").mkdir()
    with pytest.raises(StoreError, match="can't write the report"):
        write_matrices(tmp_path / "folder", [("a", LIVE)])
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "folder"]
