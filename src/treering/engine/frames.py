"""What goes through the pipes between a process and its worker: a letter, a length, and so many bytes.

To the worker: `T` a task (JSON), `C` one more result may be made. From it: `R` a result, `E` the error that ended the task, `D` the
task is done.
"""

from __future__ import annotations

import struct
from typing import IO

__all__ = ["read_frame", "write_frame"]

_HEAD = struct.Struct(">cQ")


def read_frame(pipe: IO[bytes]) -> tuple[bytes, bytes] | None:
    """The next frame, as (letter, bytes); None at the pipe's end, also when it comes in the middle of a frame."""
    head = pipe.read(_HEAD.size)
    if len(head) < _HEAD.size:
        return None
    letter, size = _HEAD.unpack(head)
    data = pipe.read(size) if size else b""
    return (letter, data) if len(data) == size else None


def write_frame(pipe: IO[bytes], letter: bytes, data: bytes = b"") -> None:
    """Write a frame whole. Raises OSError when nobody reads any more."""
    pipe.write(_HEAD.pack(letter, len(data)))
    pipe.write(data)
    pipe.flush()
