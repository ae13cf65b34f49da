"""Waiting for what another thread or process does: how long that takes, a busy machine decides."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

__all__ = ["wait_for"]

T = TypeVar("T")


def wait_for(what: Callable[[], T], seconds: float = 60.0) -> T:
    """What it gives once that is true. Fails after so many seconds, which no machine that works takes."""
    end = time.monotonic() + seconds
    while not (found := what()):
        assert time.monotonic() < end, "it didn't come"
        time.sleep(0.01)
    return found
