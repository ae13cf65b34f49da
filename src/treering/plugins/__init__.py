"""Plug-ins for other people's trainers. Nothing is imported here: each plug-in needs its own framework."""

from __future__ import annotations

from collections.abc import Mapping

from treering.errors import UsageError


def missing(package: str, install: str) -> UsageError:
    """The error of a plug-in whose framework isn't installed; `install` is what follows `pip install`."""
    return UsageError(f"this plug-in needs {package}", code="missing-extra", hint=f"pip install {install}")


def refuse_ranks(options: Mapping[str, object], giver: str) -> None:
    """Raise UsageError when options of a loader hold the rank or world size that the trainer, `giver`, has to give."""
    if given := sorted({"rank", "world_size"} & set(options)):
        come, them = ("come", "them") if len(given) > 1 else ("comes", "it")
        raise UsageError(f"{' and '.join(given)} {come} from {giver}", code="rank-given", hint=f"leave {them} out")
