"""Plug-ins for other people's trainers. Nothing is imported here: each plug-in needs its own framework."""

from __future__ import annotations

from treering.errors import UsageError


def missing(package: str, install: str) -> UsageError:
    """The error of a plug-in whose framework isn't installed; `install` is what follows `pip install`."""
    return UsageError(f"this plug-in needs {package}", code="missing-extra", hint=f"pip install {install}")
