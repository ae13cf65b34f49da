"""Where the parts of one task go on side by side: workers of this machine, or those of a cluster. Knows no task."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import cast

from treering.engine.base import Engine
from treering.engine.local import LocalEngine, can_start_workers
from treering.errors import UsageError

__all__ = ["ENGINES", "Engine", "LocalEngine", "can_start_workers", "engine_of", "find_engine"]

ENGINES = ("local", "ray")


def find_engine(which: str | Engine) -> Engine:
    """The engine of a name: "local" or "ray"; one that was made already is given back. Whoever asks by name closes it.

    Raises UsageError for another name, and when a package is missing.
    """
    if not isinstance(which, str):
        if not all(hasattr(which, name) for name in ("stream", "map", "check_reach", "close")):
            raise UsageError(f"{which!r} is no engine", code="bad-engine", hint=f"one of {', '.join(ENGINES)}")
        return which
    if which == "local":
        return LocalEngine()
    if which == "ray":
        from treering.engine.ray import RayEngine

        return cast("Engine", RayEngine())
    raise UsageError(f"there is no engine {which!r}", code="bad-engine", hint=f"one of {', '.join(ENGINES)}")


@contextmanager
def engine_of(which: str | Engine | None, *uris: str) -> Iterator[Engine | None]:
    """The engine for one call that works on these paths or URIs; None is this process itself.

    One that was named is closed afterwards. Raises UsageError as `find_engine` does, and when its workers don't see one of them.
    """
    if which is None:
        yield None
        return
    found = find_engine(which)
    try:
        found.check_reach(*uris)
        yield found
    finally:
        if found is not which:
            found.close()
