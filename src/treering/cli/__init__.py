"""The command line, one file per noun. Each command parses, calls the API once, and renders table or JSON from one model.

Data goes to stdout, talk and progress to stderr. Nothing heavy is imported before a command runs.
"""

from __future__ import annotations

__all__ = ["main"]


def main() -> None:
    """Entry point of the `treering` script."""
    from treering.cli.app import app

    app()
