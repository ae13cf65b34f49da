"""A worker process: runs one task after the other, and ends when its standard input does. See `local`.

Whoever started it may be killed at any moment: then the pipe is at its end, and so is the worker, whatever it is at.
"""

from __future__ import annotations

import json
import os
import queue
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import closing, suppress
from typing import IO, Any

from treering.engine.base import encode_error, find_task
from treering.engine.frames import read_frame, write_frame

__all__ = ["main"]

_Task = tuple[dict[str, Any], threading.Semaphore]


def main() -> None:
    """Run until standard input ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent's business
    signal.signal(signal.SIGTTOU, signal.SIG_IGN)  # it is in a process group of its own, and stderr may be a terminal
    # What a task, or a library, prints must not come between the results.
    results = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)
    sys.stdout = sys.stderr  # which is written line by line
    commands = os.fdopen(os.dup(0), "rb")
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    tasks: queue.SimpleQueue[_Task] = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(commands, tasks), daemon=True).start()
    out = _Sender(results)
    while True:
        said, may_go_on = tasks.get()
        _run(said, may_go_on, out)


def _listen(commands: IO[bytes], tasks: queue.SimpleQueue[_Task]) -> None:
    may_go_on = threading.Semaphore(0)
    while (frame := read_frame(commands)) is not None:
        letter, data = frame
        if letter == b"T":
            said = json.loads(data)
            may_go_on = threading.Semaphore(said["ahead"])
            tasks.put((said, may_go_on))
        else:
            may_go_on.release()
    os._exit(0)


class _Sender:
    """Writes frames in a thread: the task goes on while the pipe is full."""

    def __init__(self, pipe: IO[bytes]) -> None:
        self._pipe = os.fdopen(pipe.fileno(), "wb", closefd=False)
        self._held = pipe
        self._frames: queue.SimpleQueue[tuple[bytes, bytes]] = queue.SimpleQueue()
        threading.Thread(target=self._send, daemon=True).start()

    def put(self, letter: bytes, data: bytes = b"") -> None:
        self._frames.put((letter, data))

    def _send(self) -> None:
        while True:
            letter, data = self._frames.get()
            try:
                write_frame(self._pipe, letter, data)
            except OSError:
                os._exit(0)  # nobody reads any more
            del data


def _run(said: dict[str, Any], may_go_on: threading.Semaphore, out: _Sender) -> None:
    task: str = said["task"]
    try:
        _stand_in(said)
        function = find_task(task)
        if said["streams"]:
            results: Iterator[bytes] = function(**said["arguments"])
            with closing(results):  # type: ignore[type-var]  # a generator
                while True:
                    may_go_on.acquire()
                    result = next(results, None)
                    if result is None:
                        break
                    out.put(b"R", result)
                    del result
        else:
            out.put(b"R", function(**said["arguments"]))
    except BaseException as exc:
        with suppress(OSError):
            out.put(b"E", encode_error(task, exc))
        return
    out.put(b"D")


def _stand_in(said: dict[str, Any]) -> None:
    """Make path, environment and working directory those of whoever gave the task."""
    sys.path[:] = said["path"]
    if said["environment"] != dict(os.environ):
        os.environ.clear()
        os.environ.update(said["environment"])
    if said["folder"] is not None:
        os.chdir(said["folder"])


if __name__ == "__main__":
    main()
