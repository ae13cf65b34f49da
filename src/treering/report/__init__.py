"""Reports as one self-contained HTML file: inline SVG, no script, nothing fetched.

Draws what it is given. Does not evaluate, and opens no store.
"""

from __future__ import annotations

from .page import render_matrices, write_matrices

__all__ = ["render_matrices", "write_matrices"]
