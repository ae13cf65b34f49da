"""What commands have in common: `--store`, `--json`, and where the store is."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from treering.errors import UsageError

if TYPE_CHECKING:
    from treering import Store

__all__ = ["CONFIG_FILE", "DEFAULT_STORE", "JsonOption", "StoreOption", "locate", "open_store"]

CONFIG_FILE = "treering.toml"
DEFAULT_STORE = ".treering"

StoreOption = Annotated[
    str | None,
    typer.Option(
        "--store",
        metavar="DIR",
        help=f"The store [default: $TREERING_STORE, then `store` in ./{CONFIG_FILE}, then ./{DEFAULT_STORE}].",
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON on stdout.")]


def locate(given: str | None) -> str:
    """Where the store is: `given`, else TREERING_STORE, else `store` in ./treering.toml, else ./.treering.

    Raises UsageError for a treering.toml that can't be read.
    """
    return given or os.environ.get("TREERING_STORE") or _configured(Path(CONFIG_FILE)) or DEFAULT_STORE


def open_store(given: str | None, *, create: bool = False) -> Store:
    """The store that `locate` finds. Raises NotFoundError when there is none and it isn't to be made."""
    import treering

    return treering.open(locate(given), create=create)


def _configured(path: Path) -> str | None:
    if not path.is_file():
        return None
    import tomllib

    try:
        store = tomllib.loads(path.read_text("utf-8")).get("store")
    except (OSError, ValueError) as exc:
        raise UsageError(f"can't read {path}: {exc}", code="bad-settings") from exc
    if store is not None and not (isinstance(store, str) and store):
        raise UsageError(
            f"{path}: store is {store!r}, not a path", code="bad-settings", hint='write store = "path/to/store"'
        )
    return store
