"""Refs: text that names data or adapters. Pure: parses and prints, opens nothing.

Read from the right: the selector after the last `@`, the corpus before it, and whatever stands before `#` is the store.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from treering.errors import UsageError

__all__ = [
    "RESERVED_NAMES",
    "AdapterRef",
    "Ref",
    "check_corpus_name",
    "check_selection_name",
    "parse_target",
    "shortened",
]

#: Names that tables of the store's own have or will have.
RESERVED_NAMES = frozenset({"runs", "evaluations", "adapters", "annotations", "live", "new", "all"})

_NAME = re.compile(r"[a-z][a-z0-9_-]{0,62}")
_SELECTION = re.compile(r"[a-z0-9][a-z0-9_.-]{0,62}")
_SELECTOR = re.compile(r"v([1-9][0-9]{0,8})(?:\.\.v([1-9][0-9]{0,8}))?|live|new")


def check_corpus_name(name: str) -> str:
    """The name itself. Raises UsageError unless it matches [a-z][a-z0-9_-]{0,62} and isn't reserved."""
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise UsageError(
            f"{name!r} can't name a corpus",
            code="bad-corpus-name",
            hint="a lower-case letter, then up to 62 of a-z 0-9 _ -",
        )
    if name in RESERVED_NAMES:
        raise UsageError(f"the name {name!r} is reserved", code="bad-corpus-name", hint="choose another")
    return name


def check_selection_name(name: str) -> str:
    """The name itself. Raises UsageError unless it matches [a-z0-9][a-z0-9_.-]{0,62}."""
    if not isinstance(name, str) or not _SELECTION.fullmatch(name):
        raise UsageError(
            f"{name!r} can't name a selection",
            code="bad-selection-name",
            hint="a lower-case letter or digit, then up to 62 of a-z 0-9 _ . -",
        )
    return name


def _check_text(ref: object) -> None:
    if not isinstance(ref, str):
        raise UsageError(f"a ref is text such as support@v1, not a {type(ref).__name__}", code="bad-ref")


@dataclass(frozen=True, slots=True)
class Ref:
    """One state of a corpus. `str(Ref.parse(text)) == text` for every valid text.

    `kind` is `snapshot` (`first == last`), `range` (`first`..`last`, one source), `live`, `new` or `selection` (then
    `name` is its name).
    """

    corpus: str
    kind: Literal["snapshot", "range", "live", "new", "selection"]
    first: int = 0
    last: int = 0
    store: str | None = None
    name: str = ""

    @classmethod
    def parse(cls, text: str) -> Ref:
        """`support@v1`, `support@v1..v3`, `support@live`, `support@new`, `support/NAME`, each optionally after `store#`."""
        _check_text(text)
        store, _, rest = text.rpartition("#")
        if "@" not in rest and "/" in rest:
            corpus, _, name = rest.partition("/")
            return cls(check_corpus_name(corpus), "selection", store=store or None, name=check_selection_name(name))
        corpus, at, selector = rest.rpartition("@")
        match = _SELECTOR.fullmatch(selector) if at else None
        if match is None:
            raise UsageError(
                f"{text!r} isn't a ref",
                code="bad-ref",
                hint="write CORPUS@v1, CORPUS@v1..v3, CORPUS@live, CORPUS@new, or CORPUS/NAME for a selection",
            )
        check_corpus_name(corpus)
        if match[1] is None:
            return cls(corpus, "live" if selector == "live" else "new", store=store or None)
        first, last = int(match[1]), int(match[2] or match[1])
        if match[2] is not None and last <= first:
            raise UsageError(f"{text!r}: a range runs upwards, as in {corpus}@v1..v3", code="bad-ref")
        return cls(corpus, "range" if match[2] else "snapshot", first, last, store or None)

    @property
    def selector(self) -> str:
        """What stands after the `@` (of a selection, after the `/`)."""
        if self.kind == "selection":
            return self.name
        if self.kind == "range":
            return f"v{self.first}..v{self.last}"
        return f"v{self.first}" if self.kind == "snapshot" else self.kind

    def __str__(self) -> str:
        prefix = f"{self.store}#" if self.store else ""
        return f"{prefix}{self.corpus}{'/' if self.kind == 'selection' else '@'}{self.selector}"


def parse_target(text: str) -> tuple[str, int | None]:
    """What `--to` names: `support` → ("support", None), `support@v3` → ("support", 3)."""
    _check_text(text)
    if "@" not in text:
        return check_corpus_name(text), None
    ref = Ref.parse(text)
    if ref.kind != "snapshot" or ref.store:
        raise UsageError(f"{text!r} can't be sealed to", code="bad-ref", hint="write --to CORPUS or --to CORPUS@vN")
    return ref.corpus, ref.first


@dataclass(frozen=True, slots=True)
class AdapterRef:
    """`support:production`, `support:candidate` or `support:12`."""

    corpus: str
    which: int | Literal["production", "candidate"]

    @classmethod
    def parse(cls, text: str) -> AdapterRef:
        """Raises UsageError for anything else."""
        _check_text(text)
        corpus, colon, which = text.rpartition(":")
        if colon and which in ("production", "candidate"):
            return cls(check_corpus_name(corpus), which)  # type: ignore[arg-type]
        if colon and re.fullmatch(r"[1-9][0-9]{0,8}", which):
            return cls(check_corpus_name(corpus), int(which))
        raise UsageError(
            f"{text!r} doesn't name an adapter",
            code="bad-ref",
            hint="write CORPUS:production, CORPUS:candidate or CORPUS:NUMBER",
        )

    def __str__(self) -> str:
        return f"{self.corpus}:{self.which}"


def shortened(refs: Sequence[str], corpus: str) -> str | None:
    """Snapshot refs with neighbours joined, and without the name of the corpus: `v1..v3, v5, other@v1`."""
    runs: list[tuple[str, int, int]] = []
    for ref in refs:
        name, _, version = ref.rpartition("@v")
        if runs and (runs[-1][0], runs[-1][2] + 1) == (name, int(version)):
            runs[-1] = (name, runs[-1][1], int(version))
        else:
            runs.append((name, int(version), int(version)))
    texts = [
        ("" if name == corpus else f"{name}@") + (f"v{first}" if first == last else f"v{first}..v{last}")
        for name, first, last in runs
    ]
    return ", ".join(texts) or None
