"""`treering label`: say of a sample of records, one after another, how many things each asks for."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated

import typer

from treering.cli import completion
from treering.cli.options import CorpusArgument, JsonOption, StoreOption, open_store
from treering.cli.output import facts, render, say, waiting
from treering.errors import UsageError

__all__ = ["label"]


@dataclass(frozen=True)
class Labelled:
    """What came of a sitting. `sample`: records to look at; `left`: of those, still without a word."""

    corpus: str
    ref: str
    sample: int
    said: int
    several: int
    skipped: int
    left: int


def label(
    name: CorpusArgument,
    n: Annotated[int, typer.Option("-n", min=1, help="Records of the sample.")] = 50,
    on: Annotated[
        str | None,
        typer.Option("--on", metavar="REF", help="Sample this ref [default: live].", autocompletion=completion.refs),
    ] = None,
    by: Annotated[str | None, typer.Option(help="Who says so.")] = None,
    store: StoreOption = None,
    json: JsonOption = False,
) -> None:
    """Say of a sample of records how many things each asks for.

    A line per answer, from the terminal or stdin: a number, `s` to skip, `q` to stop. Each answer is stored at once, as an
    annotation `intents`; run again, it goes on with the rest of the same sample. `eval --diagnose` compares what came since
    training with what was trained on, so label some of both: --on CORPUS@v1.

    API: Corpus.annotate(id, intents=…).
    """
    from treering import rounds
    from treering.store.ref import Ref

    opened = open_store(store)
    corpus = opened.corpus(name)
    ref = f"{name}@live" if on is None else on
    if Ref.parse(ref).corpus != name:
        raise UsageError(f"{ref} isn't of {name}", code="bad-ref", hint=f"--on {name}@v1")
    with waiting(f"sampling {ref}"):
        found = rounds.to_label(opened, ref, n)
    said = several = skipped = 0
    answers = _answers()
    for position, (record, text) in enumerate(found.left, start=1):
        say(f"\n{position} of {len(found.left)}  [{record}]\n{text}")
        answer = _ask(answers)
        if answer is None:
            break
        if answer == 0:
            skipped += 1
            continue
        corpus.annotate(record, intents=answer, by=by)
        said += 1
        several += answer > 1
    left = len(found.left) - said
    result = Labelled(name, found.ref, found.sample, said, several, skipped, left)
    pairs = [("sample", f"{found.sample} records of {found.ref}"), ("said", said), ("several at once", several),
             ("skipped", skipped or None), ("left", left)]  # fmt: skip
    render(result, json, lambda: facts(pairs))
    if not found.sample:
        say(f"{found.ref} has no records with text; sample a snapshot: --on {name}@v1")


def _ask(answers: Iterator[str]) -> int | None:
    """How many things a record asks for; 0 to skip it, None to stop."""
    while True:
        say("how many things does it ask for?  [1, 2, …; s: skip; q: stop]")
        answer = next(answers, "q").strip().lower()
        if answer in ("q", "quit"):
            return None
        if answer in ("s", "skip", ""):
            return 0
        if answer.isdecimal() and 1 <= int(answer) <= 99:
            return int(answer)
        say(f"{answer!r} isn't a number from 1 to 99, s or q")


def _answers() -> Iterator[str]:
    """Lines of stdin, one when it is asked for."""
    while line := sys.stdin.readline():
        yield line
