"""Runs one round in a process of its own, which dies at a given point: `STORE CONFIG KILL`.

KILL is `-` for none, `before:N` or `after:N`: around the N-th object that the round creates in the store. What is between two
objects is undone work, so these are all the points that can differ.
"""

from __future__ import annotations

import os
import signal
import sys
from typing import Any


def main(where: str, config: str, kill: str) -> None:
    import torch

    import treering
    from treering.errors import TreeringError
    from treering.store.objects import LocalObjects

    torch.set_num_threads(1)
    when, _, number = kill.partition(":")
    created = 0
    create = LocalObjects.create

    def die() -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def counted(self: LocalObjects, path: str, data: bytes) -> Any:
        nonlocal created
        created += 1
        if when == "before" and created == int(number):
            die()
        try:
            return create(self, path, data)
        finally:
            if when == "after" and created == int(number):
                die()

    store = treering.open(where, create=False)
    LocalObjects.create = counted  # type: ignore[method-assign]
    try:
        result = treering.round(store, config)
    except TreeringError as exc:
        print(exc.code, flush=True)
        os._exit(exc.exit_code)
    print(result.outcome, created, flush=True)
    os._exit(0 if result.ok else 3)  # torch takes a second to go


if __name__ == "__main__":
    main(*sys.argv[1:4])
