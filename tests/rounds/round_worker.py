"""Runs one round in a process of its own, which dies at a given point.

A point is `before:N` or `after:N`: around the N-th object that the round creates in the store. Between two of them a round does
work that it can do again, so these are the points that differ; `late:SECONDS` is any moment at all.
"""

from __future__ import annotations

import os
import signal
import threading
from typing import Any

import torch
import transformers  # noqa: F401 - imported once, by the fork server; Lance, which has threads, is not

import treering
import treering.rounds
from treering.errors import TreeringError
from treering.store.objects import LocalObjects

_create = LocalObjects.create


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def run(where: str, config: dict[str, Any], point: str, told: Any) -> None:
    """Exits with the command's code; says the outcome, or the error's code, and how many objects were created."""
    torch.set_num_threads(1)
    when, _, number = point.partition(":")
    if when == "late":
        threading.Timer(float(number), die).start()
    created = 0

    def counted(self: LocalObjects, path: str, data: bytes) -> None:
        nonlocal created
        created += 1
        if when == "before" and created == int(number):
            die()
        _create(self, path, data)
        if when == "after" and created == int(number):
            die()

    store = treering.open(where, create=False)
    LocalObjects.create = counted  # type: ignore[method-assign]
    try:
        result = treering.round(store, config)
        told.put((result.outcome, created))
        code = 0 if result.ok else 3
    except TreeringError as exc:
        told.put((exc.code, created))
        code = exc.exit_code
    told.close()
    told.join_thread()
    os._exit(code)
