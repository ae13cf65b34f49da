"""`treering round`: the whole round in one command, for cron."""

from __future__ import annotations

from typing import Annotated

import typer

from treering.cli.options import JsonOption, StoreOption, open_store
from treering.cli.output import render, say
from treering.errors import CheckFailedError, UsageError

__all__ = ["run_round"]

CONFIG = "round.toml"


def run_round(
    config: Annotated[str, typer.Argument(metavar="CONFIG", help="TOML; every key but `corpus` is optional.")] = CONFIG,
    now: Annotated[bool, typer.Option("--now", help="Whether or not a round is due.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be done; do nothing.")] = False,
    abandon: Annotated[bool, typer.Option("--abandon", help="Give up a round that was interrupted.")] = False,
    store: StoreOption = None,
    json: JsonOption = False,
) -> None:
    """Run one round, if one is due.

    Snapshot, train, evaluate, diagnose, ask the gate, promote.
    Continues a round that was interrupted. Exits with 0 when the candidate was promoted or there was nothing to do, with 3
    when production stays as it is, with 5 while another round runs.

    API: treering.round.
    """
    from treering import rounds
    from treering.rounds.summary import summary

    if abandon and (dry_run or now):
        raise UsageError("--abandon goes alone", code="usage", hint="treering round --abandon, then treering round")
    opened = open_store(store)
    result = rounds.round(opened, config, now=now, dry_run=dry_run, abandon=abandon, progress=say)
    render(result, json, lambda: summary(result))
    if not result.ok:
        raise CheckFailedError(
            f"round {result.number} of {result.corpus} ended as {result.outcome}: {'; '.join(result.why)}",
            code=f"round-{result.outcome}",
            hint=f"production is {result.production or 'none'}, as before",
        )
