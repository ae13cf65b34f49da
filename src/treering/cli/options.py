"""What commands have in common: `--store`, `--json`, and where the store is.

`treering.toml` in the working directory may hold `store = "s3://bucket/prefix"` and a table `[storage_options]`. Credentials
are better left to the environment, which object stores read by themselves.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from treering.cli import completion
from treering.errors import UsageError

if TYPE_CHECKING:
    from treering import Store
    from treering.engine import Engine

__all__ = [
    "CONFIG_FILE",
    "DEFAULT_STORE",
    "CorpusArgument",
    "EngineName",
    "EngineOption",
    "JsonOption",
    "StoreOption",
    "engine_for",
    "locate",
    "open_at",
    "open_store",
    "options_for",
]

CONFIG_FILE = "treering.toml"
DEFAULT_STORE = ".treering"

CorpusArgument = Annotated[str, typer.Argument(metavar="CORPUS", help="A corpus.", autocompletion=completion.corpora)]
StoreOption = Annotated[
    str | None,
    typer.Option(
        "--store",
        metavar="DIR|URI",
        help=f"The store, a directory or s3://bucket/prefix [default: $TREERING_STORE, then `store` in ./{CONFIG_FILE}, "
        f"then ./{DEFAULT_STORE}].",
    ),
]


class EngineName(StrEnum):
    """Who does a command's work."""

    local = "local"
    ray = "ray"


EngineOption = Annotated[
    EngineName | None,
    typer.Option(
        "--engine",
        help="Who does the work: worker processes of this machine (local), or those of Ray. [default: this process]",
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON on stdout.")]


@contextmanager
def engine_for(name: EngineName | None, *uris: str) -> Iterator[Engine | None]:
    """The engine of `--engine` while a command does its work on these paths or URIs; it is gone before data goes to stdout.

    What Ray prints about its processes goes to stderr.
    """
    from treering.engine import engine_of

    if name is None:
        yield None
        return
    with redirect_stdout(sys.stderr), engine_of(name.value, *uris) as found:
        yield found


def locate(given: str | None) -> str:
    """Where the store is: `given`, else TREERING_STORE, else `store` in ./treering.toml, else ./.treering.

    Raises UsageError for a treering.toml that can't be read.
    """
    found = given or os.environ.get("TREERING_STORE")
    if found:
        return found
    store = _settings().get("store", DEFAULT_STORE)
    if not (isinstance(store, str) and store):
        raise UsageError(
            f"{CONFIG_FILE}: store is {store!r}, not a path", code="bad-settings", hint='write store = "path/to/store"'
        )
    return store


def open_store(given: str | None, *, create: bool = False) -> Store:
    """The store that `locate` finds. Raises NotFoundError when there is none and it isn't to be made."""
    return open_at(locate(given), create=create)


def open_at(where: str, *, create: bool = False) -> Store:
    """The store at `where`; one on an object store gets the `[storage_options]` of ./treering.toml."""
    import treering

    return treering.open(where, create=create, storage_options=options_for(where))


def options_for(where: str) -> dict[str, str | int | bool] | None:
    """The `[storage_options]` of ./treering.toml for a store on an object store, None for a directory."""
    from treering.store.location import is_remote

    return _storage_options() if is_remote(where) else None


def _storage_options() -> dict[str, str | int | bool]:
    found = _settings().get("storage_options", {})
    if not isinstance(found, dict) or not all(isinstance(value, str | int) for value in found.values()):
        raise UsageError(
            f"{CONFIG_FILE}: storage_options isn't a table of texts",
            code="bad-settings",
            hint='write [storage_options] and below it lines such as aws_endpoint = "https://…"',
        )
    return found


def _settings() -> dict[str, Any]:
    path = Path(CONFIG_FILE)
    if not path.is_file():
        return {}
    import tomllib

    try:
        return tomllib.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as exc:
        raise UsageError(f"can't read {path}: {exc}", code="bad-settings") from exc
