"""Workers of this machine: a process each, with pipes, that is used again for the next task.

Not multiprocessing: its `spawn` runs the caller's script once more, and its `fork` copies threads' locks. Nothing is pickled. Does
not know what tasks do.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from typing import IO, Any, Self

from treering.engine.base import AHEAD, decode_error
from treering.engine.frames import read_frame, write_frame
from treering.errors import StoreError, TreeringError, UsageError

__all__ = ["LocalEngine", "can_start_workers"]

_PIPE = 1 << 20  # bytes that a pipe holds, where the system lets us say so
_LEAVE_S = 5.0  # a worker that was told to end has so long


class LocalEngine:
    """Runs tasks in processes of this machine; see `Engine`. They have this one's environment and `sys.path`.

    slots: as many as cores that this process may use, unless given. A worker ends when this process does, however that ends.
    """

    name = "local"

    def __init__(self, slots: int | None = None) -> None:
        self.slots = max(1, slots if slots is not None else _cores())
        self._idle: list[_Worker] = []
        self._busy: set[_Worker] = set()
        self._closed = False
        self._lock = threading.Lock()

    def stream(self, task: str, arguments: Mapping[str, Any], *, ahead: int = AHEAD) -> Iterator[bytes]:
        """See `Engine.stream`."""
        return _Stream(self, task, arguments, streams=True, ahead=ahead)

    def map(self, task: str, each: Sequence[Mapping[str, Any]]) -> Iterator[bytes]:
        """See `Engine.map`."""
        going: deque[_Stream] = deque()
        waiting = iter(each)
        try:
            for arguments in waiting:
                going.append(_Stream(self, task, arguments, streams=False, ahead=1))
                if len(going) == self.slots:
                    yield _only(going.popleft())
            while going:
                yield _only(going.popleft())
        finally:
            for one in going:
                one.close()

    def check_reach(self, *uris: str) -> None:
        """See `Engine.check_reach`: they see all that this process does."""

    def close(self) -> None:
        """Stop what still goes on and end the workers."""
        with self._lock:
            self._closed = True
            workers = [*self._idle, *self._busy]
            self._idle.clear()
            self._busy.clear()
        for worker in workers:
            worker.stop()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def take(self) -> _Worker:
        """A worker that is at nothing, begun if there is none. Raises UsageError when the engine was closed."""
        with self._lock:
            if self._closed:
                raise UsageError("this engine is closed", code="closed", hint="make another LocalEngine")
            worker = self._idle.pop() if self._idle else None
        if worker is None:
            worker = _Worker()
        with self._lock:
            self._busy.add(worker)
        return worker

    def give_back(self, worker: _Worker, *, is_done: bool) -> None:
        """A task has ended; a worker that isn't done with it is stopped."""
        with self._lock:
            known = worker in self._busy
            self._busy.discard(worker)
            if known and is_done:
                self._idle.append(worker)
                return
        worker.stop()


class _Worker:
    """One process and its pipes."""

    def __init__(self) -> None:
        # Only so that it finds this package: path and environment come with each task. -P: no folder of the moment before it.
        environment = {**_environment(), "PYTHONPATH": os.pathsep.join(_path())}
        command = [sys.executable, "-P", "-m", "treering.engine.worker"]
        try:
            # A group of its own: Ctrl-C in a terminal is for the caller, who stops the worker when it has put all in order.
            self.process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment, process_group=0
            )
        except OSError as exc:
            raise StoreError(f"can't start a worker ({sys.executable}): {exc}", code="no-worker") from exc
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.commands: IO[bytes] = self.process.stdin
        self.results: IO[bytes] = self.process.stdout
        _widen(self.results)

    def tell(self, letter: bytes, data: bytes = b"") -> None:
        """Send a frame; a worker that is gone is found out when its results are read."""
        with suppress(OSError):
            write_frame(self.commands, letter, data)

    def stop(self) -> None:
        """End it, whatever it is at."""
        self.process.kill()
        self._wait()

    def _wait(self) -> int | None:
        for pipe in (self.commands, self.results):
            with suppress(OSError):
                pipe.close()
        try:
            return self.process.wait(_LEAVE_S)
        except subprocess.TimeoutExpired:  # in a system call that can't be interrupted
            return None

    def cause(self) -> str:
        """Why it ended by itself."""
        status = self._wait()
        if status is None:
            return "it closed its pipe and goes on"
        if status < 0:
            with suppress(ValueError):
                return f"signal {-status} ({signal.Signals(-status).name})"
            return f"signal {-status}"
        return f"exit code {status}"


class _Stream:
    """The results of one task, as they come."""

    _worker: _Worker | None = None

    def __init__(
        self, engine: LocalEngine, task: str, arguments: Mapping[str, Any], *, streams: bool, ahead: int
    ) -> None:
        self._engine = engine
        self._task = task
        # What a task may find out of the ordinary: a worker may have been begun long before.
        process = {"path": _path(), "environment": _environment(), "folder": _folder()}
        said = {"task": task, "arguments": dict(arguments), "streams": streams, "ahead": max(1, ahead), **process}
        data = json.dumps(said).encode()
        self._worker = engine.take()
        self._worker.tell(b"T", data)

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        worker = self._worker
        if worker is None:
            raise StopIteration
        try:
            frame = read_frame(worker.results)
        except BaseException as exc:  # an interrupt may have come in the middle of a frame
            self.close()
            if isinstance(exc, OSError | ValueError):  # closed by another thread
                raise self._died("it was stopped") from exc
            raise
        if frame is None:
            self._worker = None
            cause = worker.cause()
            self._engine.give_back(worker, is_done=False)
            raise self._died(cause)
        letter, data = frame
        if letter == b"R":
            worker.tell(b"C")
            return data
        self._worker = None
        self._engine.give_back(worker, is_done=True)
        if letter == b"E":
            raise decode_error(data)
        raise StopIteration

    def _died(self, cause: str) -> TreeringError:
        return StoreError(
            f"the worker of {self._task} died: {cause}",
            code="worker-died",
            hint="run it again; a lack of memory kills so (dmesg says whether)",
        )

    def close(self) -> None:
        """Stop the task."""
        worker, self._worker = self._worker, None
        if worker is not None:
            self._engine.give_back(worker, is_done=False)

    def __del__(self) -> None:
        self.close()


def _only(stream: _Stream) -> bytes:
    """The result of a task that has one."""
    try:
        result = next(stream)
        next(stream, None)  # that it is done: its worker is free again
    finally:
        stream.close()
    return result


def _environment() -> dict[str, str]:
    """What tasks see; but a worker that runs out of memory in Rust is to die at once: printing a backtrace it may hang."""
    return {**os.environ, "RUST_BACKTRACE": "0"}


def _folder() -> str | None:
    """The working directory, unless it is gone."""
    try:
        return os.getcwd()
    except FileNotFoundError:
        return None


def _path() -> list[str]:
    folder = _folder()
    return [one for one in (entry or folder for entry in sys.path) if one is not None]


def can_start_workers() -> bool:
    """Whether there is a Python to start: a program that was frozen into one file would start itself."""
    return bool(sys.executable) and not getattr(sys, "frozen", False)


def _cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _widen(pipe: IO[bytes]) -> None:
    """Let a pipe hold more than 64 KiB, on Linux."""
    with suppress(ImportError, AttributeError, OSError):
        import fcntl

        fcntl.fcntl(pipe.fileno(), fcntl.F_SETPIPE_SZ, _PIPE)
