"""A disk that is full but for some pages: `python disk_worker.py STORE PAGES…`, on a file system of its own.

For each number of free pages: fills the disk up to that, works, notes what was refused and how; makes room, works again.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import treering

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.crash.power_worker import record, say

PAGE = 4096


def fill(ballast: Path, free_pages: int) -> None:
    with ballast.open("wb", buffering=0) as file, suppress(OSError):
        while True:
            file.write(bytes(64 * PAGE))
    with ballast.open("ab", buffering=0) as file, suppress(OSError):
        while True:
            file.write(bytes(PAGE))
    os.truncate(ballast, max(0, ballast.stat().st_size // PAGE - free_pages) * PAGE)


def trying(what: str, work: Callable[[], Any]) -> bool:
    try:
        work()
    except treering.TreeringError as exc:
        say(error=exc.code, what=what)
        return False
    except Exception as exc:
        say(untyped=repr(exc), what=what)
        return False
    return True


def work(uri: str, pages: int, part: str) -> None:
    """Capture, seal and annotate; each may be refused, and what isn't is said."""
    corpus = treering.open(uri, create=False).corpus("support")
    ids = [f"p{pages}-{part}-{i}" for i in range(12)]

    def capture() -> None:
        with corpus.capture() as live:
            live.extend([record(i) for i in ids])
            say(captured=ids)

    def seal() -> None:
        snapshot = corpus.snapshot()
        if snapshot is not None:
            say(sealed=snapshot.name, rows=snapshot.rows)
            say(certified=snapshot.name, digest=snapshot.digest)

    done = [trying("capture", capture), trying("seal", seal)]
    done.append(trying("annotate", lambda: corpus.annotate(ids[0], quality=1.0)))
    done.append(trying("compact", corpus.compact))
    if all(done):
        say(annotated=ids[0])
    elif part == "room":
        say(untyped="refused though there is room")


if __name__ == "__main__":
    uri, counts = sys.argv[1], json.loads(sys.argv[2])
    ballast = Path(uri).parent / "ballast"
    for pages in counts:
        fill(ballast, pages)
        work(uri, pages, "full")
        ballast.unlink()
        work(uri, pages, "room")
    say(ended=True)
