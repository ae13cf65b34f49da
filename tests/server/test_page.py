"""The live page in a real browser: by keyboard, on a phone, under its policy."""

from __future__ import annotations

import math
import re
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import treering
from tests.report.browser import Browser, browser, find_chromium
from tests.report.test_page import Page
from treering.evaluation import ScoreMatrix
from treering.server import page
from treering.server.keys import create_key

from .running import Running, labelled, running

RECORDS = "/v1/corpora/notes/records"


def test_a_fragment_says_what_came_in_and_what_was_refused(server: Running) -> None:
    server.post(RECORDS, [*labelled(3), {"id": "<b>x", "text": 1}])
    server.store.corpus("notes").snapshot()
    server.post(RECORDS, labelled(3, "s"))
    text = server.http.get("/page/overview").text
    shown = " ".join(Page(text).words)
    for word in ("notes", "labelled records", "6", "v1", "text: wrong-type"):
        assert word in shown, word
    assert "<b>" not in text


def test_names_in_fragments_are_escaped() -> None:
    name = "<script>alert(1)</script>"
    hostile = ScoreMatrix((name,), (name,), np.array([[0.5]]), metric=name)
    assert Page(page.matrices_fragment([(name, hostile)])).named("script") == []


def test_a_fragment_shows_only_what_the_key_may_read(store: treering.Store, notes: treering.Corpus) -> None:
    store.create("secret", "labelled")
    _, token = create_key(store, ["notes"])
    with running(store) as server:
        text = server.http.get("/page/overview", headers={"authorization": f"Bearer {token}"}).text
    assert "notes" in text
    assert "secret" not in text


def test_the_page_itself_tells_nothing_and_may_run_its_own_script_alone(server: Running) -> None:
    server.post(RECORDS, labelled(3))
    answer = server.http.get("/")
    assert "notes" not in answer.text
    policy = answer.headers["content-security-policy"]
    for rule in ("default-src 'none'", "script-src 'self'", "connect-src 'self'", "frame-ancestors 'none'"):
        assert rule in policy
    found = Page(answer.text)
    for _, attributes in found.tags:
        assert not [name for name in attributes if name.startswith("on")]
        assert "style" not in attributes
    assert not re.search(r"https?://", answer.text + server.http.get("/page/live.js").text)


def test_the_matrix_is_of_scores_that_are_stored_and_measures_nothing(store: treering.Store) -> None:
    from treering.registry import Registry
    from treering.registry.scores import ScoreLog

    corpus = store.create("support", "labelled")
    refs = []
    parent = None
    for n in (1, 2):
        with corpus.capture() as live:
            live.extend(labelled(20, f"v{n}-"))
        corpus.snapshot()
        registry = Registry(store, "support")
        record = registry.add(
            weights=f"w{n}".encode(), card={"format": "x"}, lock=None, lock_digest=None, parent=parent,
            trained_on=[f"support@v{n}"], trained_rows={}, metric="macro_f1",
        )  # fmt: skip
        parent = record.ref
        refs.append(record.ref)
        for k in range(1, n + 1):
            ScoreLog(store, record).put(f"support@v{k}", "ab" * 32, "macro_f1", score=0.9 - 0.3 * (n - k), rows=5)
    matrix = page.stored_matrix(store, "support")
    assert matrix is not None
    assert (matrix.rounds, matrix.slices, matrix.learned_in) == (tuple(refs), ("support@v1", "support@v2"), (0, 1))
    assert matrix.values[1].tolist() == pytest.approx([0.6, 0.9])
    assert math.isnan(matrix.values[0, 1])
    assert page.stored_matrix(store, store.create("empty", "labelled").name) is None
    with running(store) as server:
        text = server.http.get("/page/matrices").text
    assert "−30.0" in " ".join(Page(text).words)


# --- in a browser ----------------------------------------------------------------------------------------------------

needs_browser = pytest.mark.skipif(find_chromium() is None, reason="no Chromium here")


def show(tab: Browser, url: str, *, width: int, dark: bool = False) -> None:
    class Address:
        def as_uri(self) -> str:
            return url

    tab.show(Address(), width=width, dark=dark)  # type: ignore[arg-type]


def until(tab: Browser, code: str, seconds: float = 15.0) -> Any:
    end = time.monotonic() + seconds
    while not (found := tab.run(code)):
        assert time.monotonic() < end, (code, tab.run("document.body.innerText"), tab.said)
        time.sleep(0.05)
    return found


@needs_browser
def test_the_page_goes_with_what_comes_in_on_a_phone_and_on_a_desk(server: Running) -> None:
    server.store.create("a-corpus-with-a-very-long-name-that-no-phone-can-show", "labelled")
    server.post(RECORDS, labelled(3))
    with browser() as tab:
        for width, dark in ((390, False), (1280, True)):
            show(tab, server.url + "/", width=width, dark=dark)
            until(
                tab,
                "document.querySelector('#overview article') !== null && document.querySelector('#matrices').innerText.length > 9",
            )
            assert tab.run("document.documentElement.scrollWidth") == width  # nothing hangs over the edge
        assert tab.run("document.getElementById('state').textContent") == "Live"
        server.post(RECORDS, [*labelled(4, "more"), {"text": 3}])
        until(tab, "document.getElementById('overview').innerText.includes('text: wrong-type')")
        assert tab.said == []  # no complaint of the policy or the script
        assert all(url.startswith((server.url, "data:")) for url in tab.asked)


@needs_browser
@pytest.mark.parametrize("width", [390, 1280])
def test_the_page_opens_with_a_key_and_pauses_by_keyboard_alone(
    store: treering.Store, notes: treering.Corpus, width: int
) -> None:
    _, token = create_key(store, ["notes"], verbs=["read"])
    with running(store) as server, browser() as tab:
        show(tab, server.url + "/", width=width)
        until(tab, "document.activeElement.id === 'key'")
        assert tab.run("document.getElementById('overview').innerText") == ""
        tab.call("Input.insertText", text="trk_wrong")
        tab.press("Enter", 13, "\r")
        until(tab, "document.getElementById('state').textContent.includes(\"isn't good\")")
        until(tab, "document.activeElement.id === 'key'")
        tab.call("Input.insertText", text=token)
        tab.press("Enter", 13, "\r")
        until(tab, "document.getElementById('overview').innerText.includes('notes')")
        assert tab.run("document.activeElement.id") == "pause"
        tab.press(" ", 32, " ")
        assert tab.run("document.getElementById('pause').getAttribute('aria-pressed')") == "true"
        tab.press(" ", 32, " ")
        until(tab, "document.getElementById('state').textContent === 'Live'")
        assert token not in tab.run("document.documentElement.outerHTML")
        assert token not in tab.run("location.href")
        # From the top, Tab reaches all there is to do, and shows where it is; the key lasts as long as the tab.
        show(tab, server.url + "/", width=width)
        until(tab, "document.getElementById('state').textContent === 'Live'")
        reached = []
        for _ in range(2):
            tab.press("Tab", 9)
            reached.append(tab.run("document.activeElement.id || document.activeElement.className"))
            assert tab.run("getComputedStyle(document.activeElement).outlineStyle") != "none"
        assert reached == ["skip", "pause"]


@needs_browser
def test_the_page_says_when_the_server_is_gone_and_comes_back_with_it(
    store: treering.Store, notes: treering.Corpus, tmp_path: Path
) -> None:
    with browser() as tab:
        with running(store) as server:
            show(tab, server.url + "/", width=800)
            until(tab, "document.getElementById('state').textContent === 'Live'")
        until(tab, "document.getElementById('state').textContent.includes(\"can't be reached\")")
        assert tab.run("document.body.classList.contains('stale')")


def test_figures_are_of_the_last_seconds() -> None:
    from treering.server.writers import Outcome, Tally

    tally = Tally()
    tally.add([Outcome("a", "stored"), Outcome("b", "duplicate")])
    assert sum(tally.seconds.values()) == 1
    tally.seconds[int(time.monotonic()) - 500] = 7
    tally.add([Outcome("c", "stored")])
    assert sum(tally.seconds.values()) == 2
