"""One exception tree, sorted by what the caller will do about it.

Every error carries a `code` that is never reworded and an optional `hint` that says what to do next. The CLI prints
both and exits with the class's `exit_code`; nothing else in the package decides exit codes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

__all__ = [
    "AlreadyExistsError",
    "CheckFailedError",
    "ConflictError",
    "InvalidRecordError",
    "NotFoundError",
    "Problem",
    "StoreError",
    "TreeringError",
    "UsageError",
]

ProblemKind = Literal["missing-field", "unknown-field", "wrong-type", "bad-value", "bad-json", "id-conflict"]


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong with one record."""

    loc: tuple[str | int, ...]  # path inside the record, e.g. ("messages", 2, "role")
    kind: ProblemKind  # never renamed: quarantines are queried by it
    message: str  # expected X, got Y

    def __str__(self) -> str:
        """`messages.2.role: expected …, got … [wrong-type]`."""
        where = ".".join(str(part) for part in self.loc) or "record"
        return f"{where}: {self.message} [{self.kind}]"


class TreeringError(Exception):
    """Base of everything treering raises on purpose."""

    exit_code: ClassVar[int] = 1
    default_code: ClassVar[str] = "error"

    def __init__(self, message: str, *, code: str | None = None, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.code = code or self.default_code
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message} ({self.hint})" if self.hint else self.message


class UsageError(TreeringError, ValueError):
    """The call itself is wrong: fix the arguments."""

    exit_code = 2
    default_code = "usage"


class InvalidRecordError(TreeringError, ValueError):
    """A record breaks its schema: fix the input. `.problems` lists everything that is wrong with it."""

    exit_code = 3
    default_code = "invalid-record"

    def __init__(self, message: str, problems: Sequence[Problem], *, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.problems = tuple(problems)


class CheckFailedError(TreeringError):
    """A check said no (the gate, `verify`): nothing is broken, but don't go on."""

    exit_code = 3
    default_code = "check-failed"


class NotFoundError(TreeringError, LookupError):
    """What was named isn't there: fall back, or create it."""

    exit_code = 4
    default_code = "not-found"


class AlreadyExistsError(TreeringError):
    """The name is taken: use what is there, or choose another name."""

    exit_code = 5
    default_code = "already-exists"


class ConflictError(TreeringError):
    """Another writer came first, or the data isn't what was recorded: look, then try again."""

    exit_code = 5
    default_code = "conflict"


class StoreError(TreeringError):
    """The store can't be read or written as it is: damaged, unsupported, out of space."""

    exit_code = 6
    default_code = "store"
