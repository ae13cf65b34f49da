"""The helper processes that Python starts for worker processes: a fork server and a resource tracker.

They are one of each per program and end with it; the fork server holds what it has preloaded, torch among it, until then.
What a loader was the first to need is ended again when the last loader has closed, unless somebody else uses it by now.
"""

from __future__ import annotations

import gc
import multiprocessing
import threading
from multiprocessing import forkserver, resource_tracker
from pathlib import Path
from typing import Any

__all__ = ["end_helpers", "note_helpers"]

_lock = threading.Lock()
#: Which helpers weren't running when a loader first started workers: those it may end.
_ours: set[str] = set()


def _helpers() -> dict[str, tuple[Any, bool]]:
    """(object, whether it runs) of each; nothing where this Python has them otherwise: they stay until its end then."""
    server, tracker = getattr(forkserver, "_forkserver", None), getattr(resource_tracker, "_resource_tracker", None)
    found = {
        "server": (server, getattr(server, "_forkserver_pid", None) is not None),
        "tracker": (tracker, getattr(tracker, "_pid", None) is not None),
    }
    return {name: (helper, runs) for name, (helper, runs) in found.items() if hasattr(helper, "_stop")}


def note_helpers() -> None:
    """Called before worker processes are started: what doesn't run yet is started for them."""
    with _lock:
        _ours.update(name for name, (_, runs) in _helpers().items() if not runs)


def end_helpers() -> None:
    """End what was started for workers of ours and has nobody to serve any more; the next workers start it again."""
    with _lock:
        if not _ours or multiprocessing.active_children():
            return
        helpers = _helpers()
        if "server" in _ours and "server" in helpers:
            helpers["server"][0]._stop()
            _ours.discard("server")
        # The tracker removes what is registered with it when it ends: only when nothing is. It can't be asked, but what this
        # process shares by a name is mapped. Queues of workers that have ended go when they are collected.
        gc.collect()
        if "tracker" in _ours and "tracker" in helpers and not _shares_memory():
            helpers["tracker"][0]._stop()
            _ours.discard("tracker")


def _shares_memory() -> bool:
    try:
        return "/dev/shm/" in Path("/proc/self/maps").read_text()  # noqa: S108  (a place that is looked at)
    except OSError:  # not Linux: nobody knows
        return True
