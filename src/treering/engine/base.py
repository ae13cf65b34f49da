"""The seam of engines: a task is a function that can be named, and its results are bytes.

Knows how a task is named and how its errors come over. Does not know what tasks do, or where they go on.
"""

from __future__ import annotations

import importlib
import json
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol

from treering import errors
from treering.errors import InvalidRecordError, Problem, StoreError, TreeringError

__all__ = [
    "AHEAD",
    "WORKER_CODES",
    "Engine",
    "decode_error",
    "encode_error",
    "find_task",
    "is_of_this_machine",
    "name_of_class",
]

#: Codes of errors that say something of workers, and nothing of what they were at.
WORKER_CODES = frozenset({"no-worker", "other-version", "task-failed", "worker-died"})

#: Results of a stream that wait at most, unless its caller says otherwise.
AHEAD = 4


class Engine(Protocol):
    """Runs functions that are named ("package.module:function") elsewhere, with JSON-able keyword arguments.

    What a task raises is raised by the iterator that gives its results: a TreeringError as what it was (class, code, message,
    hint), anything else as StoreError(code="task-failed") that names task and cause. A worker that dies is
    StoreError(code="worker-died"). Tasks of one engine may be begun and read by several threads.
    """

    name: str
    #: Tasks that can go on at once; at least 1.
    slots: int

    def stream(self, task: str, arguments: Mapping[str, Any], *, ahead: int = AHEAD) -> Iterator[bytes]:
        """The results of a generator function, in order; it begins at once, and at most `ahead` (from 1) wait to be taken.

        Closing the iterator stops the task.
        """
        ...

    def map(self, task: str, each: Sequence[Mapping[str, Any]]) -> Iterator[bytes]:
        """The one result of each call of a function, in the order given; as many go on at once as there are slots."""
        ...

    def check_reach(self, *uris: str) -> None:
        """Raise UsageError when workers don't see what these paths or URIs name as this process does."""
        ...

    def close(self) -> None:
        """Stop what still goes on and let go of the workers."""
        ...


def is_of_this_machine(uri: str) -> bool:
    """Whether a path or URI means something on this machine alone."""
    scheme, separator, _ = uri.partition("://")
    return not separator or scheme.lower() in ("file", "local", "memory")


def find_task(name: str) -> Callable[..., Any]:
    """The function of a task's name. Raises StoreError when there is none."""
    module, _, attribute = name.partition(":")
    try:
        found: Any = importlib.import_module(module)
        for part in attribute.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError) as exc:
        raise StoreError(f"a worker can't find the task {name}: {exc}", code="task-failed") from exc
    task: Callable[..., Any] = found
    return task


def name_of_class(cls: type) -> str | None:
    """The name by which a worker finds this very class ("package.module:Name"); None when no other process can."""
    module = sys.modules.get(cls.__module__)
    if module is None or cls.__module__ == "__main__" or getattr(module, "__spec__", None) is None:
        return None
    found: Any = module
    for part in cls.__qualname__.split("."):
        found = getattr(found, part, None)
    return f"{cls.__module__}:{cls.__qualname__}" if found is cls else None


def encode_error(task: str, exc: BaseException) -> bytes:
    """An exception of a task as JSON, to be raised again by `decode_error`."""
    told = exc
    if not isinstance(exc, TreeringError):
        told = StoreError(f"the task {task} failed: {type(exc).__name__}: {exc}", code="task-failed")
    assert isinstance(told, TreeringError)
    # A class of somebody else's is raised as the nearest one of ours: callers know no other.
    kind = next(one.__name__ for one in type(told).__mro__ if one.__module__ == errors.__name__)
    problems = [[list(p.loc), p.kind, p.message] for p in getattr(told, "problems", ())]
    said = {"kind": kind, "message": told.message, "code": told.code, "hint": told.hint, "problems": problems}
    said["trace"] = "".join(traceback.format_exception(exc))
    return json.dumps(said).encode()


def decode_error(data: bytes) -> TreeringError:
    """The error again; where in the worker it was raised is a note to it."""
    said = json.loads(data)
    kind: type[TreeringError] = getattr(errors, said["kind"])
    exc: TreeringError
    if issubclass(kind, InvalidRecordError):
        problems = [Problem(tuple(loc), what, message) for loc, what, message in said["problems"]]
        exc = kind(said["message"], problems, hint=said["hint"])
        exc.code = said["code"]
    else:
        exc = kind(said["message"], code=said["code"], hint=said["hint"])
    exc.add_note(f"in a worker:\n{said['trace']}")
    return exc
