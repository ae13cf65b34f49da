"""PURE. Texts that were written from one template, by Drain (He et al., ICWS 2017): the library `drain3`.

Drain joins texts of the same number of words of which most are equal, word by word; what differs becomes a slot, `<*>`.
A template with slots of varying length shows as several. Needs the extra `audit`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from treering.errors import UsageError

__all__ = ["Template", "commonest", "has_miner"]

_SLOT = "<*>"
_WORDS = 40  # of a text: a mould shows in its beginning
_ALIKE = 0.6  # share of equal words from which two texts are of one template
_CLUSTERS = 1_000

_VARIABLE = re.compile(r"\S*\d\S*")  # numbers, order ids, dates: a slot by themselves


@dataclass(frozen=True, slots=True)
class Template:
    """The commonest template of some texts: how many of them it made, and how it reads."""

    text: str
    count: int
    of: int

    @property
    def share(self) -> float:
        """`count` in `of`."""
        return self.count / self.of


def has_miner() -> bool:
    """Whether the extra `audit` is installed."""
    from importlib.util import find_spec

    return find_spec("drain3") is not None


def commonest(texts: Sequence[str]) -> Template:
    """The template that most of these texts are of; at least one text. Raises UsageError without the extra `audit`."""
    try:
        from drain3.drain import Drain
    except ImportError as exc:
        raise UsageError(
            "templates can't be looked for", code="missing-extra", hint="pip install 'treering[audit]'"
        ) from exc
    miner = Drain(sim_th=_ALIKE, depth=3, max_clusters=_CLUSTERS, param_str=_SLOT)
    for text in texts:
        masked = _VARIABLE.sub(_SLOT, text)
        miner.add_log_message(" ".join(masked.split()[:_WORDS]))
    best = max(miner.clusters, key=lambda cluster: (cluster.size, cluster.get_template()))
    return Template(best.get_template(), best.size, len(texts))
