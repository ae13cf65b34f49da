"""Tasks for the tests of engines. A worker finds them by this module's name."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from treering.errors import InvalidRecordError, Problem, UsageError


class OddError(UsageError):
    """An error of somebody else's kind."""


def count(upto: int, note: str | None = None) -> Iterator[bytes]:
    """Numbers; each is noted in a file before it is given."""
    for i in range(upto):
        if note is not None:
            with Path(note).open("a") as file:
                file.write(f"{i}\n")
        yield str(i).encode()


def large(size: int) -> Iterator[bytes]:
    for i in range(4):
        yield bytes([i]) * size


def chatty() -> Iterator[bytes]:
    print("this is no result")
    os.write(1, b"neither is this\n")
    yield b"one"


def environment(name: str) -> Iterator[bytes]:
    yield os.environ[name].encode()


def square(x: int, wait_s: float = 0.0) -> bytes:
    time.sleep(wait_s)
    return b"%d %d" % (x * x, os.getpid())


def fails(how: str) -> Iterator[bytes]:
    yield b"first"
    if how == "usage":
        raise UsageError("too many cooks", code="cooks", hint="send some home")
    if how == "odd":
        raise OddError("odd", code="odd")
    if how == "invalid":
        raise InvalidRecordError("no", [Problem(("a", 1), "bad-value", "expected b")], hint="look")
    if how == "interrupt":
        raise KeyboardInterrupt
    raise ValueError("a mistake")


def dies(how: str) -> Iterator[bytes]:
    yield b"first"
    if how == "exit":
        os._exit(7)
    os.kill(os.getpid(), signal.SIGKILL)


def dies_once(note: str) -> bytes:
    """The first call takes its worker along."""
    if not Path(note).exists():
        Path(note).write_text("")
        os.kill(os.getpid(), signal.SIGKILL)
    return b"lived"


def rewrites_and_dies(**arguments: Any) -> bytes:
    """A worker of a compaction that is killed when it has written its files."""
    from treering.store.table import rewrite

    rewrite(**arguments)
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError


def forever(note: str) -> Iterator[bytes]:
    """Says who it is, then keeps computing."""
    Path(note).write_text(str(os.getpid()))
    yield b"begun"
    while True:
        pass


def around() -> Iterator[bytes]:
    yield repr((os.environ.get("TREERING_TEST"), os.environ.get("PYTHONPATH"), os.getcwd(), sys.path)).encode()


def loaded() -> Iterator[bytes]:
    yield " ".join(sys.modules).encode()
