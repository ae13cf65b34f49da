"""A run on a disk that fails now and then: `python io_worker.py STORE ROUNDS`.

Goes on after every error, as a service would, and prints what was acknowledged and how what wasn't was refused.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any

import treering
from tests.crash.power_worker import record


def say(**what: Any) -> None:
    with suppress(OSError):  # this write can be the one that fails: what nobody heard was never acknowledged
        os.write(1, (json.dumps(what) + "\n").encode())


def trying(what: str, work: Callable[[], Any]) -> Any:
    try:
        return work()
    except treering.TreeringError as exc:
        say(error=exc.code, what=what)
    except Exception:
        say(untyped=traceback.format_exc()[-1500:], what=what)
    return None


def rounds(uri: str, count: int) -> None:
    for n in range(count):
        corpus = trying("open", partial(open_corpus, uri))
        live = trying("capture", corpus.capture) if corpus is not None else None
        if live is None:
            continue
        for part in range(3):
            ids = [f"r{n}-{part}-{i}" for i in range(1 + 10 * part)]
            if trying("extend", partial(live.extend, [record(i) for i in ids])) is not None:
                say(captured=ids)
            trying("flush", live.flush)
        trying("close", live.close)
        sealed = trying("snapshot", corpus.snapshot)
        if sealed is not None:
            say(sealed=sealed.name, rows=sealed.rows)
            certificate = trying("certify", partial(getattr, sealed, "certificate"))
            if certificate is not None:
                say(certified=sealed.name, digest=certificate.digest)
        if trying("annotate", partial(corpus.annotate_many, [{"id": f"r{n}-0-0", "quality": 1.0}])):
            say(annotated=f"r{n}-0-0")
        trying("compact", corpus.compact)
        trying("clean up", partial(corpus.clean_up, older_than_s=0.0))
    say(ended=True)


def open_corpus(uri: str) -> treering.Corpus:
    return treering.open(uri).corpus("support")


if __name__ == "__main__":
    rounds(sys.argv[1], int(sys.argv[2]))
