"""Make files survive a power cut.

Neither Lance nor obstore calls fsync; everything that is acknowledged passes through here first.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterable
from pathlib import Path

from treering.errors import StoreError

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


#: Files that a sync failed for in this process. The system forgets what it couldn't write once it has said so: a second
#: sync would succeed and mean nothing. So their bytes, which can still be read, are written anew.
_FAILED: set[str] = set()


def sync_file(path: Path) -> None:
    """Fsync one file that isn't changed any more. A file that is gone (a temporary one of another writer) is no error.

    Raises StoreError when the disk can't take it.
    """
    try:
        if str(path) in _FAILED and path.is_file():
            _write_anew(path)
            _FAILED.discard(str(path))
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except FileNotFoundError:
        return
    except OSError as exc:
        _FAILED.add(str(path))
        hint = (
            "free some space, then try again" if exc.errno == errno.ENOSPC else "look at the disk; nothing is lost yet"
        )
        raise StoreError(f"can't put {path} on disk: {exc.strerror}", code="write-failed", hint=hint) from exc


def _write_anew(path: Path) -> None:
    """Put a copy, synced, in a file's place."""
    temporary = path.with_name(f".{path.name}.anew")
    try:
        shutil.copyfile(path, temporary)
        descriptor = os.open(temporary, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    sync_directory(path.parent)


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
