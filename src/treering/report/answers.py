"""PURE. Five questions to ask whoever sells continual learning, answered for this store with its own figures.

The questions are those of Hei, "Trained on 52 Product Domains, the Earlier 51 All Regressed" (2026), section 8.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict, Field

if TYPE_CHECKING:
    from treering.evaluation.diagnosis import Diagnosis, Finding

    from .gather import ReportData

__all__ = ["Answer", "answers"]


class Answer(BaseModel):
    """One question, and what the figures say."""

    model_config = ConfigDict(strict=True, frozen=True, extra="forbid")

    question: str
    short: str = Field(description="The answer in a few words.")
    says: str
    ok: bool | None = Field(description="null: there is no figure for it.")


def answers(data: ReportData) -> list[Answer]:
    """All five, in the article's order."""
    return [_growth(data.diagnosis), _starvation(data), _spurious(data), _general(data), _identity(data.diagnosis)]


def _growth(found: Diagnosis | None) -> Answer:
    question = "Do trainable parameters grow with the number of tasks?"
    growth = found.growth if found else None
    if growth is None:
        return _unknown(question, "the adapter's shapes weren't looked at")
    ahead = "; ".join(
        f"{p.domains} domains: {p.parameters:,} parameters, {p.bytes / 1e6:,.1f} MB" for p in growth.projected
    )
    return Answer(
        question=question,
        short=growth.order,
        says=f"A further domain adds {growth.per_domain:,} parameters and each of its classes {growth.per_class:,}, to "
        f"{growth.parameters:,} today. Projected: {ahead}.",
        ok=growth.order == "O(1)",
    )


def _starvation(data: ReportData) -> Answer:
    question = "How are rare domains kept from starving in the replay buffer?"
    replay = sum(one.planned for one in data.mix if one.kind == "replay")
    how = (
        f"Replay is {100 * replay:.0f} % of each batch, drawn from "
        + (
            "stored selections."
            if any("/" in one.ref for one in data.mix)
            else "every snapshot ever sealed: nothing is evicted."
        )
        if replay
        else "The adapter was trained without replay."
    )
    gap = _finding(data.diagnosis, "head-tail-gap")
    held = [one.buffer_rows for one in data.diagnosis.domains if one.buffer_rows is not None] if data.diagnosis else []
    if held:
        how += f" The scarcest domain has {min(held):,} records in it."
    if gap is None or gap.figure is None:
        return Answer(question=question, short="no figure", says=f"{how} The head/tail gap wasn't measured.", ok=None)
    return Answer(
        question=question, short=f"gap {100 * gap.figure:+.1f}", says=f"{how} {_sentence(gap.says)}", ok=gap.ok
    )


def _spurious(data: ReportData) -> Answer:
    question = "Is spurious forgetting told from real forgetting, and how?"
    found = data.diagnosis
    if found is None:
        return _unknown(question, "no linear probe was run")
    if not found.probed:
        return Answer(
            question=question,
            short="nothing dropped",
            says="A fresh linear head on frozen features is fitted for every slice that drops; none dropped far enough.",
            ok=True,
        )
    lost, drop = sum(one.lost for one in found.probed), sum(one.drop for one in found.probed)
    share = found.spurious_share if found.spurious_share is not None else 1 - lost / drop if drop else 0.0
    return Answer(
        question=question,
        short=f"{100 * share:.0f} % is drift",
        says=f"By a fresh linear head on the frozen features of {len(found.probed)} slices that dropped: {100 * share:.0f} % of "
        f"what was lost is alignment drift, {100 * (1 - share):.0f} % knowledge.",
        ok=True,
    )


def _general(data: ReportData) -> Answer:
    question = "Is there a general-knowledge buffer?"
    general = [one for one in data.mix if one.kind == "general"]
    if not data.mix:
        return _unknown(question, "the mix isn't known")
    if general:
        share = sum(one.planned for one in general)
        names = ", ".join(one.ref for one in general)
        return Answer(
            question=question,
            short=f"{100 * share:.0f} % of each batch",
            says=f"Drawn from {names}, beside the domains' own replay.",
            ok=True,
        )
    return Answer(
        question=question,
        short="no",
        says="This mix has no general stream. It guards shared weights, of which a small adapter over a frozen base has few. "
        "treering.streams adds one (70/30); whether it pays is for the score matrix to say.",
        ok=None,
    )


def _identity(found: Diagnosis | None) -> Answer:
    question = "At inference, how does the system know which task a request belongs to?"
    router = _finding(found, "router-accuracy")
    if router is None or router.figure is None:
        return _unknown(question, "how well the model tells domains apart wasn't measured")
    return Answer(
        question=question,
        short=f"from the text, {100 * router.figure:.1f} % right",
        says=f"The model tells the domain from the text; no request is tagged by hand. {_sentence(router.says)}",
        ok=router.ok,
    )


def _finding(found: Diagnosis | None, check: str) -> Finding | None:
    return next((one for one in found.findings if one.check == check), None) if found else None


def _unknown(question: str, why: str) -> Answer:
    return Answer(question=question, short="not measured", says=_sentence(why), ok=None)


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}" + ("" if text.endswith(".") else ".")
