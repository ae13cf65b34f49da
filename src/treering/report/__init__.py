"""Reports as one self-contained HTML file: inline SVG, no script, nothing fetched.

`gather_report` asks a store for everything that stands on the page, as one document; the rest draws what it is given.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .page import render_matrices, write_matrices, write_page

if TYPE_CHECKING:
    from treering.store import BaseStore

    from .gather import ReportData, gather_report
    from .render import render_report

__all__ = ["ReportData", "gather_report", "render_matrices", "render_report", "write_matrices", "write_report"]

# Drawing a matrix costs nothing; what asks a store imports much.
_LAZY = {"ReportData": "gather", "gather_report": "gather", "render_report": "render"}


def write_report(path: str | os.PathLike[str], store: BaseStore, corpus: str, **options: Any) -> Path:
    """Gather and write the report of a corpus, whole or not at all; its absolute path. `options` are those of `gather_report`."""
    from .gather import gather_report
    from .render import render_report

    return write_page(path, render_report(gather_report(store, corpus, **options)))


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    value = getattr(import_module(f"{__name__}.{_LAZY[name]}"), name)
    globals()[name] = value
    return value
