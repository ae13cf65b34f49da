"""Policies as TOML files: read, with every problem named. Knows files and models, not what they decide."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from treering.errors import NotFoundError, UsageError

__all__ = ["parse_policy", "problems", "read_toml"]

Model = TypeVar("Model", bound=BaseModel)


def read_toml(path: str | Path, what: str) -> dict[str, Any]:
    """The tables of a TOML file. Raises NotFoundError when it isn't there, UsageError when it isn't TOML."""
    path = Path(path)
    try:
        return tomllib.loads(path.read_text("utf-8"))
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError) as exc:
        raise NotFoundError(f"no {what} at {path}", code="no-policy") from exc
    except tomllib.TOMLDecodeError as exc:
        raise UsageError(f"{path} isn't TOML: {exc}", code="bad-policy") from exc
    except (OSError, UnicodeDecodeError) as exc:
        raise UsageError(f"{path} can't be read as a {what}: {exc}", code="bad-policy") from exc


def parse_policy(
    kind: type[Model], given: Model | Mapping[str, Any] | str | Path | None, what: str, **also: Any
) -> Model:
    """A policy: itself, of a mapping or of a TOML file; the defaults for None. `also`: values that win, unless None.

    Raises NotFoundError for a file that isn't there, UsageError that names every unknown or bad key.
    """
    if isinstance(given, kind):
        data = given.model_dump()
    elif given is None or isinstance(given, Mapping):
        data = dict(given or {})
    elif isinstance(given, str | Path):
        data = read_toml(given, what)
    else:
        raise UsageError(f"a {what} is a file, a table or a {kind.__name__}, not {given!r}", code="bad-policy")
    data.update({name: value for name, value in also.items() if value is not None})
    try:
        return kind.model_validate(data)
    except ValidationError as exc:
        where = str(given) if isinstance(given, str | Path) else what
        raise UsageError(
            f"{where}: {'; '.join(problems(exc))}", code="bad-policy",
            hint=f"known keys: {', '.join(sorted(kind.model_fields))}",
        ) from exc  # fmt: skip


def problems(exc: ValidationError) -> list[str]:
    """Everything that is wrong, a text each."""
    return [_problem(error) for error in exc.errors()]


def _problem(error: Any) -> str:
    where = ".".join(str(part) for part in error["loc"]) or "policy"
    if error["type"] == "extra_forbidden":
        return f"unknown key {where!r}"
    return f"{where}: {error['msg']}"
