"""`treering erase`: records that have to go, and the receipts of those that went."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import typer

from treering.cli.options import CorpusArgument, JsonOption, StoreOption, open_store
from treering.cli.output import columns, counted, facts, number, render, say, short, waiting, when
from treering.errors import NotFoundError, StoreError, UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from rich.console import RenderableType

    from treering.store.documents import EraseReceipt, SeenBy
    from treering.store.erase import ErasePreview

__all__ = ["erase"]


@dataclass(frozen=True)
class PreviewView:
    """What would be erased; nothing was."""

    erased: bool
    preview: ErasePreview


@dataclass(frozen=True)
class ErasedView:
    """What was erased."""

    erased: bool
    receipt: EraseReceipt


def erase(
    name: CorpusArgument,
    subject: Annotated[
        list[str] | None,
        typer.Option("--subject", metavar="S", help="Whom the records are about; repeat for more."),
    ] = None,
    record: Annotated[
        list[str] | None, typer.Option("--id", metavar="ID", help="A record, by its id; repeat for more.")
    ] = None,
    ids_from: Annotated[
        str | None, typer.Option("--ids-from", metavar="FILE|-", help="Ids, one a line; - is stdin.")
    ] = None,
    reason: Annotated[str, typer.Option("--reason", metavar="TEXT", help="Kept with the receipt: why, not who.")] = "",
    let_back_in: Annotated[
        bool,
        typer.Option("--let-back-in", help="Take new records about the subject; the erased ones stay denied by id."),
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Erase. Without it, only say what would be erased.")] = False,
    receipts: Annotated[bool, typer.Option("--list", help="List the receipts.")] = False,
    store: StoreOption = None,
    json: JsonOption = False,
) -> None:
    """Erase records by subject or id, everywhere, for good.

    From the whole store; there is no way back.
    Options are seen by others on the machine and kept in shells' histories: --ids-from - takes ids from stdin.

    API: Corpus.erase, Corpus.erase_preview, Corpus.erasures.
    """
    corpus = open_store(store).corpus(name)
    if receipts:
        if subject or record or ids_from or yes:
            raise UsageError("--list lists, and erases nothing", code="bad-argument", hint="leave out the rest")
        found = corpus.erasures()
        render(found, json, lambda: _list(found))
        return
    ids = [*(record or []), *(_ids(ids_from) if ids_from is not None else [])]
    where = {"subject": subject} if subject else None
    if not ids and where is None:
        raise UsageError(
            "nothing was named to erase", code="bad-argument", hint="--subject S, --id ID, --ids-from FILE"
        )
    if not yes:
        with waiting("looking"):
            preview = corpus.erase_preview(where=where, ids=ids or None)
        render(PreviewView(False, preview), json, lambda: _preview(preview))
        say("nothing was erased: add --yes to erase it for good")
        return
    with waiting("erasing"):
        receipt = corpus.erase(where=where, ids=ids or None, reason=reason, block_subject=not let_back_in)
    render(ErasedView(True, receipt), json, lambda: _receipt(receipt))


def _ids(file: str) -> list[str]:
    try:
        text = sys.stdin.buffer.read() if file == "-" else _read(file)
        return [line for line in text.decode().splitlines() if line.strip()]
    except UnicodeDecodeError as exc:
        raise UsageError(f"{file} isn't text in UTF-8", code="bad-argument", hint="one id a line") from exc


def _read(file: str) -> bytes:
    try:
        with open(file, "rb") as stream:
            return stream.read()
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError) as exc:
        raise NotFoundError(f"there is no file {file}", code="no-file") from exc
    except OSError as exc:
        raise StoreError(f"can't read {file}: {exc.strerror}", code="read-failed") from exc


def _places(records: Mapping[str, int]) -> str:
    return ", ".join(f"{number(count)} in {place}" for place, count in records.items()) or "none"


def _seen(seen: list[SeenBy]) -> str | None:
    shown = [
        f"{one.adapter} ({number(one.records)} drawn from)"
        if one.inherits_from is None
        else f"{one.adapter} (goes on from {one.inherits_from})"
        for one in seen
    ]
    return ", ".join(shown) or "no adapter of this store"


def _preview(preview: ErasePreview) -> RenderableType:
    return facts(
        [
            ("would erase", f"{counted(preview.total, 'record')} of {preview.corpus}: {_places(preview.records)}"),
            ("annotations", number(preview.annotations)),
            ("quarantine", number(preview.quarantined)),
            ("rewritten", ", ".join(preview.snapshots) or "no snapshot"),
            ("seen by", _seen(preview.seen_by)),
        ]
    )


def _receipt(receipt: EraseReceipt) -> RenderableType:
    rewritten = [f"{one.name} {short(one.digest_before)} → {short(one.digest_after)}" for one in receipt.snapshots]
    return facts(
        [
            ("erased", f"{counted(receipt.total, 'record')} of {receipt.corpus}: {_places(receipt.records)}"),
            ("annotations", number(receipt.annotations)),
            ("quarantine", number(receipt.quarantined)),
            ("from spools", number(receipt.spooled)),
            ("rewritten", ", ".join(rewritten) or "no snapshot"),
            ("seen by", _seen(receipt.seen_by)),
            ("not covered", "\n".join(receipt.not_covered)),
            ("receipt", f"{receipt.number} of {receipt.corpus}, {when(receipt.completed_at)}"),
        ]
    )


def _list(receipts: list[EraseReceipt]) -> RenderableType:
    rows = [
        (
            number(one.number),
            when(one.completed_at),
            number(one.total),
            ", ".join(snapshot.name for snapshot in one.snapshots) or None,
            ", ".join(seen.adapter for seen in one.seen_by) or None,
            one.reason or None,
        )
        for one in receipts
    ]
    return columns(["receipt", "when (UTC)", "records", "rewritten", "seen by", "reason"], rows, right=["records"])
