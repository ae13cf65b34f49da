"""`treering quarantine`: what was refused, why, and once more."""

from __future__ import annotations

import json as json_
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer

from treering.cli.options import CorpusArgument, JsonOption, StoreOption, open_store
from treering.cli.output import columns, facts, number, render, say, when
from treering.errors import CheckFailedError

if TYPE_CHECKING:
    from treering.capture import Quarantined
    from treering.errors import Problem

__all__ = ["app", "list_", "retry"]

_SHOWN = 60  # characters of a record in the table; --json has all of it

app = typer.Typer(
    name="quarantine",
    add_completion=False,
    rich_markup_mode=None,
    help="List records that were refused, or try them again.",
    no_args_is_help=True,
)


@dataclass(frozen=True)
class RefusedRecord:
    """A record that was refused: when, where it came from, why, and what is kept of it."""

    at: datetime
    source: str | None
    problems: tuple[Problem, ...]
    record: Any

    @classmethod
    def of(cls, one: Quarantined) -> RefusedRecord:
        """As the store has it."""
        return cls(one.at, one.source, one.problems, one.record)


@app.command("list")
def list_(
    name: CorpusArgument,
    rows: Annotated[int, typer.Option("-n", min=1, metavar="N", help="The newest N.")] = 20,
    store: StoreOption = None,
    json: JsonOption = False,
) -> None:
    """List what waits in quarantine, the newest last.

    Each with all its problems.

    API: Corpus.quarantine.
    """
    waiting = open_store(store).corpus(name).quarantine()
    found = [RefusedRecord.of(one) for one in waiting[-rows:]]
    if not found:
        say(f"nothing of {name} is in quarantine")
    elif len(waiting) > rows:
        say(f"the newest {number(rows)} of {number(len(waiting))}; more with -n")
    if json or found:
        render(found, json, lambda: columns(["since", "from", "problems", "record"], [_row(one) for one in found]))


@app.command("retry")
def retry(name: CorpusArgument, store: StoreOption = None, json: JsonOption = False) -> None:
    """Try again what waits in quarantine.

    As after the schema has evolved; what fits is stored and leaves it. Exits with 3 when some of it still waits.

    API: Corpus.retry_quarantine.
    """
    done = open_store(store).corpus(name).retry_quarantine()
    rows = [
        ("tried", number(done.tried)),
        ("stored", number(done.stored)),
        ("duplicates", number(done.duplicates)),
        ("erased before", number(done.erased) if done.erased else None),
        ("still wait", number(done.waits)),
    ]
    render(done, json, lambda: facts(rows))
    if done.waits:
        raise CheckFailedError(
            f"{number(done.waits)} of {number(done.tried)} records still don't fit",
            code="records-refused",
            hint=f"treering quarantine list {name}",
        )


def _row(one: RefusedRecord) -> tuple[str, str, str, str]:
    text = one.record if isinstance(one.record, str) else json_.dumps(one.record, ensure_ascii=False)
    shown = text if len(text) <= _SHOWN else text[: _SHOWN - 1] + "…"
    return when(one.at), one.source or "", "; ".join(map(str, one.problems)), shown
