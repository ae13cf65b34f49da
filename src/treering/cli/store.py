"""`treering init`."""

from __future__ import annotations

from dataclasses import dataclass

from treering.cli.options import JsonOption, StoreOption, locate, open_at
from treering.cli.output import render

__all__ = ["init"]


@dataclass(frozen=True)
class OpenedStore:
    """A store, and whether it was made just now."""

    store: str
    created: bool


def init(store: StoreOption = None, json: JsonOption = False) -> None:
    """Make a store; does nothing when there is one.

    API: treering.open.
    """
    from treering.errors import NotFoundError

    where = locate(store)
    try:
        opened, created = open_at(where), False
    except NotFoundError:
        opened, created = open_at(where, create=True), True
    result = OpenedStore(opened.uri, created)
    render(result, json, lambda: f"{'made the store' if created else 'there is a store already:'} {result.store}")
