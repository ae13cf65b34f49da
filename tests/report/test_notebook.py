"""What notebooks show: self-contained, escaped, readable in either theme, and drawn by a real browser."""

from __future__ import annotations

import math
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import treering
from treering.evaluation import ScoreMatrix
from treering.evaluation.gate import GatePolicy, check

from .browser import browser, find_chromium

EVIL = '<script>alert("x")</script><img src=x onerror=alert(1)>'


def a_matrix(size: int = 4, **more: Any) -> ScoreMatrix:
    values = np.full((size, size), math.nan)
    for i in range(size):
        for j in range(i + 1):
            values[i, j] = 0.97 - 0.2 * (i - j)
    names = [f"support@v{n + 1}" for n in range(size)]
    return ScoreMatrix(tuple(f"support:{n + 1}" for n in range(size)), tuple(names), values.clip(0, 1), **more)


@pytest.fixture
def shown(store: treering.Store, support: treering.Corpus) -> dict[str, Any]:
    """One of each, with what an attacker may have had captured."""
    with support.capture() as live:
        live.extend(
            {"id": f"a{n}", "text": "t", "label": EVIL if n < 5 else "refund", "domain": "d"} for n in range(40)
        )
    sealed = support.snapshot(message=EVIL)
    assert sealed is not None
    with support.capture() as live:
        live.extend({"id": f"b{n}", "text": "t", "label": "refund"} for n in range(30))
    mix = store.mix("support@v1", "support@live", weights=[0.25, 0.75], seed=3)
    verdict = check({"support@v1": 0.5, EVIL: 0.9}, {"support@v1": 0.9}, GatePolicy(), candidate="support:2")
    return {
        "mix": mix,
        "lock": mix.lock(batch_size=8),
        "snapshot": sealed,
        "matrix": a_matrix(),
        "loss": ScoreMatrix(("r:1",), (EVIL,), np.array([[2.5]]), better="lower", metric="loss"),
        "verdict": verdict,
        "large": a_matrix(30),
    }


FACTS = {
    "mix": ["support@v1", "25.0 %", "75.0 %", "an epoch is", "one pass over support@live"],
    "lock": ["mix lock", "batches of", "digest"],
    "snapshot": ["support@v1", "40, ", "held-out", "UTC", "refund"],
    "matrix": ["average", "BWT", "-40.0", "macro_f1, in points of 100"],
    "loss": ["loss", "2.500", "1 round by 1 slice"],
    "verdict": ["refused", "50.0", "90.0"],
}


class Tags(HTMLParser):
    """Every tag, and whether they are closed in order."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: set[str] = set()

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.seen.add(tag)
        assert not [name for name, _ in attrs if name.startswith("on") or name in ("src", "href")]
        self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_each_says_its_facts_and_nothing_of_it_is_markup_of_somebody_elses(shown: dict[str, Any]) -> None:
    for name, value in shown.items():
        html = value._repr_html_()
        tags = Tags()
        tags.feed(html)
        assert tags.open == [] or set(tags.open) <= {"rect", "path"}, name  # SVG's empty elements
        assert not tags.seen & {"script", "img", "link", "iframe"}, name
        assert "<script" not in html.replace("&lt;script", "")
        text = re.sub(r"<style>.*?</style>|<[^>]+>", " ", html)
        for fact in FACTS.get(name, []):
            assert fact in text, (name, fact)
        assert len(html) < 80_000, name


def test_looking_at_a_snapshot_certifies_nothing(store: treering.Store, support: treering.Corpus) -> None:
    with support.capture() as live:
        live.add({"text": "a", "label": "b"})
    sealed = support.snapshot()
    assert sealed is not None
    assert "not certified yet" in sealed._repr_html_()
    assert sealed.digest in sealed._repr_html_()


def test_two_outputs_of_a_notebook_share_no_ids_and_style_nothing_else(shown: dict[str, Any]) -> None:
    one, other = a_matrix(3)._repr_html_(), a_matrix(4)._repr_html_()
    ids = [set(re.findall(r'id="([^"]+)"', html)) for html in (one, other)]
    assert ids[0]
    assert not ids[0] & ids[1]
    rules = re.search(r"<style>(.*?)</style>", one, re.DOTALL)
    assert rules is not None
    selectors = re.findall(r"(?:^|[}{])\s*([^{}@]+)\{", rules[1])
    assert [s for part in selectors for s in part.split(",") if "treering-" not in s] == []


@pytest.mark.skipif(find_chromium() is None, reason="no Chromium here")
def test_a_browser_draws_them_alike_in_either_theme(shown: dict[str, Any], tmp_path: Path) -> None:
    cells = "".join(f'<div class="cell" id="{name}">{value._repr_html_()}</div>' for name, value in shown.items())
    page = tmp_path / "notebook.html"
    page.write_text(
        f'<!doctype html><meta charset="utf-8"><link rel="icon" href="data:,"><body>{cells}</body>', "utf-8"
    )
    contrast = """(() => { const lum = c => { const [r, g, b] = c.match(/[\\d.]+/g).map(Number).map(x => x / 255)
        .map(x => x <= 0.04045 ? x / 12.92 : ((x + 0.055) / 1.055) ** 2.4); return 0.2126*r + 0.7152*g + 0.0722*b };
      let worst = 99;
      for (const card of document.querySelectorAll('.treering-card')) {
        const back = lum(getComputedStyle(card).backgroundColor);
        for (const part of card.querySelectorAll('b, dd, dt, td, th')) {
          const ink = lum(getComputedStyle(part).color);
          worst = Math.min(worst, (Math.max(ink, back) + 0.05) / (Math.min(ink, back) + 0.05));
        } }
      return worst })()"""
    fills = "[...document.querySelectorAll('#matrix rect')].map(r => getComputedStyle(r).fill).join()"
    seen = {}
    with browser() as tab:
        for theme, dark, mark in (
            ("light", False, ""),
            ("dark", True, ""),
            ("light in a dark system", True, "document.body.setAttribute('data-jp-theme-light', 'true')"),
            ("VS Code's dark", False, "document.body.classList.add('vscode-dark')"),
        ):
            tab.show(page, width=900, dark=dark)
            if mark:
                tab.run(mark)
            assert tab.run(contrast) > 4.5, theme
            assert tab.run("document.documentElement.scrollWidth") <= 900
            seen[theme] = tab.run(fills)
            assert tab.shot(tmp_path / f"{theme}.png").stat().st_size > 10_000
        assert tab.said == []
        assert [url for url in tab.asked if not url.startswith(("file:", "data:"))] == []
    assert seen["light"] == seen["light in a dark system"] != seen["dark"] == seen["VS Code's dark"]
    assert "rgb(0, 0, 0)" not in seen["light"].split(",")[0]
