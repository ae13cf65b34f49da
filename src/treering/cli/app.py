"""The `treering` command: which verbs there are, and how a run that fails ends.

Exit codes: 0 ok, 1 unexpected, 2 usage, 3 a check said no, 4 not found, 5 conflict, 6 store; they are those of
`treering.errors`. An error is one line on stderr and a hint, with --json one JSON object there; never a traceback unless
TREERING_DEBUG is set.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from treering.cli import (
    adapters,
    annotation,
    audit,
    bundle,
    cache,
    capture,
    completion,
    corpus,
    demo,
    diff,
    erasure,
    evaluation,
    export,
    gate,
    integrity,
    keys,
    label,
    lineage,
    mix,
    prune,
    quarantine,
    report,
    rounds,
    selection,
    serve,
    snapshot,
    source,
    status,
    store,
    training,
)
from treering.cli.output import say
from treering.errors import TreeringError

__all__ = ["app"]

INTERRUPTED = 130  # 128 + SIGINT, as shells count


class _Commands(TyperGroup):
    """The verbs; turns whatever goes wrong below it into a line and an exit code."""

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        windows_expand_args: bool = True,
        **extra: Any,
    ) -> Any:
        words = list(sys.argv[1:] if args is None else args)
        name = prog_name or "treering"  # of `python -m treering.cli` too: that is what a shell completes

        def run() -> Any:
            return super(_Commands, self).main(words, name, complete_var, False, windows_expand_args, **extra)

        if completion.completing():
            sys.exit(completion.quietly(run))
        try:
            code = run()
            sys.stdout.flush()
        except BrokenPipeError:
            # Whoever read us has seen enough. Python would complain once more when it flushes at exit.
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            code = 1
        except KeyboardInterrupt:
            code = INTERRUPTED
        except Exception as exc:
            if os.environ.get("TREERING_DEBUG"):
                raise
            code = _report(exc, as_json="--json" in words)
        sys.exit(code if isinstance(code, int) else 0)


def _report(exc: Exception, *, as_json: bool) -> int:
    """Say on stderr what went wrong; the exit code it ends with."""
    hint: str | None
    if isinstance(exc, TreeringError):
        message, code, hint, status = exc.message, exc.code, exc.hint, exc.exit_code
    elif hasattr(exc, "format_message"):  # the parser's own: an unknown option, a missing argument
        message, code, status = exc.format_message(), "usage", 2
        context = getattr(exc, "ctx", None)
        hint = f"try: {context.command_path} --help" if context else "try: treering --help"
    else:
        message, code, status = f"{type(exc).__name__}: {exc}", "unexpected", 1
        hint = "set TREERING_DEBUG=1 to see where it comes from"
    message = " ".join(message.split())
    if as_json:
        sys.stderr.write(json.dumps({"error": {"code": code, "message": message, "hint": hint}}) + "\n")
    else:
        say(f"error: {message}")
        if hint:
            say(f"hint: {hint}")
    return status


app = typer.Typer(
    name="treering",
    cls=_Commands,
    rich_markup_mode=None,  # plain help: it is on the screen before rich would be imported
    pretty_exceptions_enable=False,
    help="Live data in, snapshots sealed, mixes out: a dataset store and replay loader for continual fine-tuning.",
)


@app.callback(invoke_without_command=True)
def _start(
    context: typer.Context,
    store: Annotated[str | None, typer.Option("--store", metavar="DIR|URI", help="The store, for any command.")] = None,
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    if version:
        import treering

        typer.echo(f"treering {treering.__version__}")
        raise typer.Exit(0)
    if context.invoked_subcommand is None:
        typer.echo(context.get_help(), err=True)
        raise typer.Exit(2)
    if store:
        command: Any = context.command
        verbs = getattr(command.commands.get(context.invoked_subcommand), "commands", {})  # of a noun with verbs
        given: dict[str, Any] = {"store": store, **{verb: {"store": store} for verb in verbs}}
        context.default_map = {context.invoked_subcommand: given}


for name, command in (
    ("init", store.init),
    ("create", corpus.create),
    ("schema", corpus.schema),
    ("capture", capture.capture),
    ("annotate", annotation.annotate),
    ("label", label.label),
    ("snapshot", snapshot.snapshot),
    ("log", snapshot.log),
    ("status", status.status),
    ("diff", diff.diff),
    ("audit", audit.audit),
    ("verify", integrity.verify),
    ("compact", integrity.compact),
    ("doctor", integrity.doctor),
    ("show", source.show),
    ("head", source.head),
    ("export", export.export),
    ("pack", bundle.pack),
    ("unpack", bundle.unpack),
    ("prune", prune.prune),
    ("select", selection.select),
    ("mix", mix.mix),
    ("train", training.train),
    ("eval", evaluation.evaluate),
    ("gate", gate.gate),
    ("promote", adapters.promote),
    ("rollback", adapters.rollback),
    ("lineage", lineage.lineage),
    ("erase", erasure.erase),
    ("round", rounds.run_round),
    ("report", report.report),
    ("serve", serve.serve),
    ("demo", demo.demo),
):
    app.command(name)(command)
app.add_typer(adapters.app)
app.add_typer(cache.app)
app.add_typer(keys.app)
app.add_typer(quarantine.app)
