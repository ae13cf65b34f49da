"""What was refused is tried again: stored once, whatever happens in between, and the rest waits on."""

from __future__ import annotations

from typing import Any

import pytest

import treering
from treering.capture import retrying
from treering.capture.quarantine import replace
from treering.schema import Record


class Ticket(Record):
    text: str


class TicketWithLabel(Record):
    text: str
    label: str | None = None


@pytest.fixture
def tickets(store: treering.Store) -> treering.Corpus:
    """20 tickets stored; in quarantine ten of a later schema, one of another, and a line that doesn't parse."""
    corpus = store.create("tickets", schema=Ticket)
    with corpus.capture() as live:
        live.extend([{"id": f"t{n}", "text": "hi"} for n in range(20)])
        live.extend([{"text": f"late {n}", "label": "a"} for n in range(10)] + [{"id": "odd", "colour": "red"}])
        live.refuse("not JSON", [treering.Problem((), "bad-json", "expected a JSON object")], "file:7")
    assert len(corpus.quarantine()) == 12
    return corpus


def texts(corpus: treering.Corpus) -> list[str]:
    return sorted(corpus.store.live(corpus.name).to_table(["text"]).column(0).to_pylist())


def test_what_fits_after_evolving_is_stored_and_the_rest_waits(tickets: treering.Corpus) -> None:
    came = {one.record["text"]: one.at for one in tickets.quarantine() if "text" in one.record}
    tickets.evolve(TicketWithLabel)
    done = tickets.retry_quarantine()
    assert (done.tried, done.stored, done.duplicates, done.waits) == (12, 10, 0, 2)
    assert texts(tickets) == sorted(["hi"] * 20 + [f"late {n}" for n in range(10)])
    assert [one.source for one in tickets.quarantine()] == [None, "file:7"]
    rows: list[dict[str, Any]] = tickets.store.live("tickets").to_table(["text", "ts"]).to_pylist()
    assert {row["text"]: row["ts"] for row in rows if row["text"] in came} == came
    again = tickets.retry_quarantine()
    assert (again.tried, again.stored, again.waits) == (2, 0, 2)


def test_a_retry_that_is_cut_short_stores_nothing_twice(
    tickets: treering.Corpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    tickets.evolve(TicketWithLabel)

    def die(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(retrying.quarantine, "replace", die)
        with pytest.raises(KeyboardInterrupt):
            tickets.retry_quarantine()
    assert len(tickets.quarantine()) == 12
    done = tickets.retry_quarantine()
    assert (done.stored, done.duplicates, done.waits) == (0, 10, 2)
    assert len(texts(tickets)) == 30
    assert replace is retrying.quarantine.replace


def test_a_record_whose_id_is_taken_waits_on(store: treering.Store) -> None:
    corpus = store.create("tickets", schema=Ticket)
    with corpus.capture() as live:
        live.add({"id": "one", "text": "hi"})
        live.flush()
        live.extend([{"id": "one", "text": "something else"}])
    assert [one.problems[0].kind for one in corpus.quarantine()] == ["id-conflict"]
    done = corpus.retry_quarantine()
    assert (done.tried, done.stored, done.waits) == (1, 0, 1)
    assert len(corpus.quarantine()) == 1
