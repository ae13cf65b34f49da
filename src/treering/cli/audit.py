"""`treering audit`: what is wrong with the records of a ref, before any model is trained on them."""

from __future__ import annotations

import json as json_
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from treering.cli import completion
from treering.cli.options import JsonOption, StoreOption, open_store
from treering.cli.output import columns, counted, indented, number, plain, render, say, waiting
from treering.errors import CheckFailedError, StoreError

if TYPE_CHECKING:
    from rich.console import RenderableType

    from treering import Audit

__all__ = ["audit"]

_SHOWN = 5  # findings of a check


def audit(
    ref: Annotated[
        str,
        typer.Argument(
            help="CORPUS@v1, @v1..v3, @live, @new, or a selection CORPUS/NAME.", autocompletion=completion.refs
        ),
    ],
    by: Annotated[
        list[str] | None,
        typer.Option("--by", metavar="COLUMN", help="What makes a subtype; repeat [label within domain]."),
    ] = None,
    text: Annotated[
        str | None, typer.Option(metavar="COLUMN", help="Where records say it [default: messages, else text].")
    ] = None,
    small: Annotated[int | None, typer.Option(min=0, metavar="N", help="A subtype of N or fewer is small [6].")] = None,
    thin: Annotated[
        int | None, typer.Option(min=0, metavar="N", help="A domain of fewer held-out records is thin [100].")
    ] = None,
    similarity: Annotated[
        float | None, typer.Option(min=0.5, max=1.0, metavar="S", help="From where records nearly equal [0.8].")
    ] = None,
    exclusions: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Write what would exclude the leaking held-out records, for annotate --from."
        ),
    ] = None,
    fail_on_finding: Annotated[bool, typer.Option("--fail-on-finding", help="Exit with 3 on any finding.")] = False,
    store: StoreOption = None,
    json: JsonOption = False,
) -> None:
    """Look for what will hurt a model trained on these records.

    No model is needed.
    Small subtypes, templates, synthetic and own output, near-duplicates, thin held-out slices, and held-out records that
    leaked into training. Exits with 0 whatever it finds, or with --fail-on-finding with 3.

    API: treering.audit.
    """
    import treering
    from treering.evaluation.audit import AuditLines

    given = {"small_subtype": small, "thin_heldout": thin, "similarity": similarity}
    lines = AuditLines(**{name: value for name, value in given.items() if value is not None})  # type: ignore[arg-type]
    opened = open_store(store)
    with waiting(f"auditing {ref}"):
        found = treering.audit(opened, ref, by=by or None, text=text, lines=lines)
    if exclusions is not None:
        _write(exclusions, found)
    render(found, json, lambda: _shown(found))
    if exclusions is not None:
        corpus = ref.partition("@")[0].partition("/")[0]
        say(f"{len(found.leaks):,} exclusions in {exclusions}: treering annotate {corpus} --from {exclusions}")
    if fail_on_finding and not found.passed:
        over = ", ".join(f"{check.check} {check.findings:,}" for check in found.checks if check.findings)
        raise CheckFailedError(f"the audit of {found.ref} found: {over}", code="audit-failed")


def _write(path: Path, found: Audit) -> None:
    rows = [
        {
            "id": leak.heldout_id,
            "exclude": True,
            "by": "treering audit",
            "note": f"{leak.similarity:.2f} alike {leak.training_id}, which trains in {leak.training_in}",
        }
        for leak in found.leaks
    ]
    try:
        path.write_text("".join(json_.dumps(row, ensure_ascii=False) + "\n" for row in rows), "utf-8")
    except OSError as exc:
        raise StoreError(f"can't write {path}: {exc.strerror}", code="write-failed") from exc


def _shown(found: Audit) -> RenderableType:
    from rich.console import Group
    from rich.text import Text

    head = (
        f"{found.ref}: {counted(found.rows, 'record')}, {number(found.training_rows)} training, "
        f"{number(found.heldout_rows)} held-out"
    )
    parts: list[RenderableType] = [Text(plain(head)), Text()]
    rows = []
    for check in found.checks:
        mark = (
            Text("skipped", "dim")
            if check.skipped
            else Text(f"{check.findings:,}", "yellow")
            if check.findings
            else Text("ok", "green")
        )
        rows.append((check.check, mark, check.skipped or check.says))
    parts.append(columns(["check", "found", "figure"], rows))
    for check in found.checks:
        over = [f for f in found.findings if f.check == check.check]
        if not over:
            continue
        parts += [Text(), Text(check.check, "bold")]
        for finding in over[:_SHOWN]:
            parts.append(indented(f"{finding.where}: {finding.says}", 2))
            if check.check != "leaks" or finding is over[0]:
                parts.append(indented(Text(plain(f"→ {finding.remedy}"), "dim"), 4))
        if check.findings > _SHOWN:
            parts.append(indented(f"and {check.findings - _SHOWN:,} more; --json lists them", 2))
        if check.check == "leaks":
            parts.append(
                indented(Text("→ or all of them: --exclusions FILE, then treering annotate --from FILE", "dim"), 4)
            )
    return Group(*parts)
