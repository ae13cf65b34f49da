"""`treering verify`, `compact` and `doctor`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from treering.cli import completion
from treering.cli.options import CorpusArgument, EngineOption, JsonOption, StoreOption, engine_for, open_store
from treering.cli.output import columns, number, plain, render, short, stages, waiting
from treering.errors import CheckFailedError

if TYPE_CHECKING:
    from rich.console import RenderableType

    from treering.store.doctor import Diagnosis
    from treering.store.verify import Verification

__all__ = ["compact", "doctor", "verify"]


@dataclass(frozen=True)
class Verified:
    """What was verified, and whether all of it is as it was."""

    ok: bool
    checked: list[Verification]


def verify(
    ref: Annotated[
        str | None,
        typer.Argument(
            help="CORPUS@v1, @v1..v3 or @live, or a CORPUS. [default: all there is]", autocompletion=completion.refs
        ),
    ] = None,
    engine: EngineOption = None,
    store: StoreOption = None,
    json: JsonOption = False,
) -> None:
    """Compare snapshots with all that is known of them.

    That is documents, tags, files and records.
    A finding names the file and, where data is damaged, the records. A snapshot that nobody has certified yet is
    certified. Exits with 3 when anything isn't as it was.

    API: Store.verify.
    """
    from treering.store.verify import verify_store

    opened = open_store(store)
    with stages({}) as progress, engine_for(engine, opened.uri) as workers:
        checked = verify_store(opened, ref, progress=progress, engine=workers)
    result = Verified(all(one.ok for one in checked), checked)
    render(result, json, lambda: _verified(result))
    if not result.ok:
        wrong = [finding for one in checked for finding in one.findings]
        raise CheckFailedError(
            f"{len(wrong)} {'thing is' if len(wrong) == 1 else 'things are'} not as {'it was' if len(wrong) == 1 else 'they were'}: "
            f"{wrong[0].file}: {wrong[0].what}" + ("" if len(wrong) == 1 else ", …"),
            code="verify-failed",
            hint="restore those files from a backup; what can be repaired without one: treering doctor",
        )


def _verified(result: Verified) -> RenderableType:
    from rich.console import Group
    from rich.text import Text

    heads = ["ref", "records", "files", "digest", "verdict"]
    rows = [
        (
            one.ref,
            number(one.rows),
            number(one.files),
            short(one.digest),
            ("pruned" if one.pruned else "certified now" if one.certified_now else "ok")
            if one.ok
            else f"{len(one.findings)} findings",
        )
        for one in result.checked
    ]
    lines: list[Any] = [Text(plain(str(finding)), "red") for one in result.checked for finding in one.findings]
    return Group(columns(heads, rows, right=heads[1:3]), *lines)


def compact(
    corpus: CorpusArgument,
    engine: EngineOption = None,
    store: StoreOption = None,
    json: JsonOption = False,
) -> None:
    """Join the small files of live.

    The id index is brought up to date, too. Recorders do both bit by bit; it pays before many random reads of live, and after
    many small commits from elsewhere. No record changes, and no snapshot.

    API: Corpus.compact.
    """
    opened = open_store(store)
    home = opened.corpus(corpus)
    with waiting(f"compacting {corpus}"), engine_for(engine, opened.uri) as workers:
        done = home.compact(engine=workers)
    render(
        done,
        json,
        lambda: f"{done.corpus}@live: {number(done.fragments_before)} files, now {number(done.fragments_after)}",
    )


def doctor(
    repair: Annotated[
        bool, typer.Option("--repair", help="Do what can be done without guessing; the rest is said.")
    ] = False,
    store: StoreOption = None,
    json: JsonOption = False,
) -> None:
    """Look whether the store is fit to be relied on.

    At documents, permissions, versions, spools, tags, space and rot.
    Exits with 3 when something is left that needs action.

    API: Store.doctor.
    """
    opened = open_store(store)
    with waiting("examining the store"):
        found = opened.doctor(repair=repair)
    render(found, json, lambda: _diagnosis(found))
    left = [remark for remark in found.remarks if remark.level != "note" and not remark.repaired]
    if not found.ok:
        raise CheckFailedError(
            f"{left[0].where}: {left[0].line}" + (f"; and {len(left) - 1} more" if len(left) > 1 else ""),
            code="doctor",
            hint=left[0].remedy,
        )


def _diagnosis(found: Diagnosis) -> RenderableType:
    from rich.console import Group
    from rich.text import Text

    lines: list[Any] = []
    for remark in found.remarks:
        done = " (repaired)" if remark.repaired else ""
        style = {"problem": "red", "warning": "yellow", "note": ""}[remark.level] if not remark.repaired else "green"
        lines.append(Text(plain(f"{remark.level}: {remark.where}: {remark.line}{done}"), style))
        if remark.remedy and not remark.repaired:
            lines.append(Text(plain(f"    {remark.remedy}")))
    if not lines:
        lines.append(Text("nothing to remark"))
    heads = ["table", "records", "version", "fragments", "of at least", "manifests", "bytes", "needed"]
    rows = [
        (
            table.table,
            number(table.rows),
            number(table.version),
            number(table.fragments),
            number(table.fragments_compacted),
            number(table.manifests),
            number(table.bytes_on_disk),
            number(table.bytes_needed),
        )
        for table in found.tables
    ]
    return Group(*lines, Text(), columns(heads, rows, right=heads[1:]))
