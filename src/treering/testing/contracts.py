"""Contracts as functions: every implementation must pass them, ours and yours."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from itertools import islice
from typing import Any, Protocol

__all__ = ["ResumableLoader", "check_resume"]


class ResumableLoader(Protocol):
    """What `check_resume` needs: `treering.mixing.Loader` has it, and so has anything that resumes like one."""

    def __iter__(self) -> Iterator[Any]: ...

    def state_dict(self) -> dict[str, Any]:
        """Where it stands, JSON-ready."""

    def load_state_dict(self, state: Any, /) -> None:
        """Let the next `iter()` start there."""

    def close(self) -> None:
        """End what runs."""


def check_resume(
    make: Callable[[], ResumableLoader],
    *,
    stops: Iterable[int] = (0, 1, 7),
    length: int | None = None,
    key: Callable[[Any], Any] = lambda batch: batch,
    remake: Callable[[], ResumableLoader] | None = None,
) -> None:
    """Stop after k batches, load the state into a new loader: the rest is what the unbroken run gives.

    `make` makes fresh loaders that give the same batches; `remake`, if given, the ones that resume (with other workers,
    say). `key` turns a batch into what is compared by ==, e.g. its record ids. `length` bounds an endless loader. The
    state goes through JSON. Raises AssertionError with the first stop that fails.
    """
    with closing(make()) as loader:
        whole = [key(batch) for batch in islice(loader, length)]
    for stop in stops:
        with closing(make()) as first:
            head = [key(batch) for batch in islice(first, stop)]
            state = json.loads(json.dumps(first.state_dict()))
        with closing((remake or make)()) as second:
            second.load_state_dict(state)
            rest = [key(batch) for batch in islice(second, None if length is None else max(0, length - stop))]
            again = [key(batch) for batch in islice(second, 1)]
        assert head == whole[:stop], f"the first {stop} batches differ between two loaders"
        assert rest == whole[stop:], f"resumed after {stop} batches, the rest differs"
        assert again == whole[:1], "a second iter() after a resume starts at batch 0"
