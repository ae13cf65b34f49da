"""Make files survive a power cut.

Neither Lance nor obstore calls fsync; everything that is acknowledged passes through here first.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

__all__ = ["sync_directory", "sync_file", "sync_files"]


def sync_file(path: Path) -> None:
    """Fsync one file. A file that is gone (a temporary one of another writer) is no error."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_directory(path: Path) -> None:
    """Fsync a directory, so that the names in it last."""
    if os.name == "posix":
        sync_file(path)


def sync_files(paths: Iterable[Path]) -> None:
    """Fsync files and, once each, the directories that hold them."""
    directories = set()
    for path in paths:
        sync_file(path)
        directories.add(path.parent)
    for directory in directories:
        sync_directory(directory)
