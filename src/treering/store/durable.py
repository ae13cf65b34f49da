"""Make files survive a power cut.

Neither Lance nor obstore calls fsync; everything that is acknowledged passes through here first.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

__all__ = ["make_directory", "sync_directory", "sync_file", "sync_files"]


#: Directories whose names this process knows to be on disk: path and inode, since one may be removed and made again.
_NAMED: set[tuple[str, int]] = set()


def make_directory(path: Path, below: Path | None = None, *, mode: int = 0o777) -> None:
    """Make a directory and those above it that are missing, such that their names last.

    With `below` every name from there on is synced, also of those that were there: whoever made them may not have got to
    it. Raises OSError.
    """
    missing = [folder for folder in (path, *path.parents) if not folder.exists()]
    path.mkdir(mode=mode, parents=True, exist_ok=True)
    for folder in (path, *path.parents):
        if folder == below or (below is None and folder not in missing):
            break
        key = (str(folder), folder.stat().st_ino)
        if key not in _NAMED:
            sync_directory(folder.parent)
            _NAMED.add(key)


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
