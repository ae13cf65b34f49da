"""`treering pack` and `unpack`: a snapshot as one file."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import typer

from treering.cli import completion
from treering.cli.options import JsonOption, StoreOption, open_store
from treering.cli.output import facts, number, render, size, waiting, when

__all__ = ["pack", "unpack"]


@dataclass(frozen=True)
class PackedView:
    """A bundle that was written."""

    ref: str
    file: str
    bytes: int


@dataclass(frozen=True)
class UnpackedView:
    """The snapshot that came out of a bundle; `origin` is what it was called in the store `origin_store`."""

    ref: str
    rows: int
    digest: str
    origin: str | None
    origin_store: str | None
    sealed_there: str | None


def pack(
    ref: Annotated[str, typer.Argument(help="A snapshot: CORPUS@v1.", autocompletion=completion.snapshots)],
    output: Annotated[
        str | None,
        typer.Option("-o", "--output", metavar="FILE", help="Where to write it [default: CORPUS-vN.treering.zip]."),
    ] = None,
    annotations: Annotated[bool, typer.Option("--annotations", help="And what was said of its records later.")] = False,
    selections: Annotated[bool, typer.Option("--selections", help="And the selections that lie in it.")] = False,
    store: StoreOption = None,
    json: JsonOption = False,
) -> None:
    """Write a snapshot to one file.

    With its record, schema versions and certificate.

    API: Store.pack.
    """
    opened = open_store(store)
    with waiting(f"packing {ref}"):
        path = opened.pack(ref, output, annotations=annotations, selections=selections)
    view = PackedView(ref, str(path), path.stat().st_size)
    render(view, json, lambda: f"{view.ref} packed: {view.file}, {size(view.bytes)}")


def unpack(
    file: Annotated[str, typer.Argument(metavar="FILE", help="What `pack` wrote.")],
    to: Annotated[
        str | None,
        typer.Option(
            "--to",
            metavar="NAME",
            help="The corpus that gets it [default: its own name].",
            autocompletion=completion.corpora,
        ),
    ] = None,
    store: StoreOption = None,
    json: JsonOption = False,
) -> None:
    """Take a packed file in as the next snapshot of a corpus.

    All of it or nothing.
    Exits with 3 when the file isn't a sound bundle, with 5 when some of its records are there already.

    API: Store.unpack.
    """
    opened = open_store(store)
    with waiting(f"unpacking {file}"):
        snapshot = opened.unpack(file, to=to)
    origin = snapshot.record.origin
    view = UnpackedView(
        ref=snapshot.ref,
        rows=snapshot.rows,
        digest=snapshot.digest,
        origin=origin.ref if origin else None,
        origin_store=origin.store if origin else None,
        sealed_there=when(origin.created_at) if origin else None,
    )
    render(
        view,
        json,
        lambda: facts(
            [
                ("unpacked", view.ref),
                ("rows", number(view.rows)),
                ("digest", view.digest),
                ("was", f"{view.origin} of store {view.origin_store}" if view.origin else None),
                ("sealed there", view.sealed_there),
            ]
        ),
    )
