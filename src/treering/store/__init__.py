"""The store: corpora, snapshots and sources on Lance tables. The only layer that imports Lance or LanceDB.

Exports are lazy, since Lance takes half a second to import.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from treering.store.base import BaseStore
    from treering.store.corpus import BaseCorpus
    from treering.store.documents import EraseReceipt
    from treering.store.location import Location
    from treering.store.objects import Objects
    from treering.store.ref import AdapterRef, Ref, parse_target
    from treering.store.snapshot import Snapshot
    from treering.store.source import Segment, Source

__all__ = [
    "AdapterRef",
    "BaseCorpus",
    "BaseStore",
    "EraseReceipt",
    "Location",
    "Objects",
    "Ref",
    "Segment",
    "Snapshot",
    "Source",
    "parse_target",
]

_HOMES = {
    "AdapterRef": "ref",
    "BaseCorpus": "corpus",
    "BaseStore": "base",
    "EraseReceipt": "documents",
    "Objects": "objects",
    "Location": "location",
    "Ref": "ref",
    "Segment": "source",
    "Snapshot": "snapshot",
    "Source": "source",
    "parse_target": "ref",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
