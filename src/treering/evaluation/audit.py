"""PURE. What is wrong with a body of training records before any model is trained on it: counts in, findings out.

Where the checks come from: an audit of 800 records whose subtypes had four to six examples each, all from one template, so
that the model learnt templates and lost them at the next fine-tune (small subtypes, templates); 500 human records blown up
to 50,000 synthetic ones, forgotten faster than the 500 alone (synthetic share); models that learn from their own output
(Shumailov et al., "AI models collapse when trained on recursively generated data", Nature 2024); duplicates (Lee et al., ACL
2022, who found 3 to 14 % in common corpora); held-out records that say what training records say, so that scores flatter.
Lines that no source gives are ours, and can be set.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from treering.evaluation.templates import Template

__all__ = ["Audit", "AuditCheck", "AuditLines", "Counted", "Finding", "Leak", "Origin", "judge"]

Check = Literal[
    "small-subtypes", "templates", "synthetic", "own-output", "near-duplicates", "thin-heldout", "leaks"
]  # fmt: skip

#: Findings of one check that are listed; all are counted.
LISTED = 1_000
#: Texts that must be of one template before it is called one.
_TEMPLATE_TEXTS = 3

NO_VALUE = "(none)"

Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
Subtype = tuple[str | None, ...]


class _Model(BaseModel):
    model_config = ConfigDict(strict=True, frozen=True, extra="forbid")


class AuditLines(_Model):
    """What is a finding. Shares are fractions of 1."""

    small_subtype: Annotated[int, Field(ge=0)] = 6  # training records or fewer
    template: Share = 0.5  # of a subtype's training records from one template
    synthetic: Share = 0.5  # of the training records, overall or of one domain
    own_output: Share = 0.1  # of the training records written by the adapter in production
    near_duplicates: Share = 0.1  # of the records that nearly equal another one
    similarity: Annotated[float, Field(ge=0.5, le=1)] = 0.8  # from which two records nearly equal each other
    thin_heldout: Annotated[int, Field(ge=0)] = (
        100  # held-out records of a domain: fewer can't be scored to ± 10 points
    )


class Finding(_Model):
    """One thing that is over its line."""

    check: Check
    where: str  # a subtype, a domain, a record; the ref for what is said of it as a whole
    figure: float
    line: float
    says: str  # the figure in words
    remedy: str  # a command, or a step


class AuditCheck(_Model):
    """One check: what it came to."""

    check: Check
    says: str
    findings: int
    skipped: str | None = None  # why it couldn't be made


class Leak(_Model):
    """A held-out record that nearly equals a training record; each with the ref that it lies in."""

    heldout_id: str
    heldout_in: str
    training_id: str
    training_in: str
    similarity: float


class Origin(_Model):
    """Records by who wrote them."""

    origin: str | None
    training: int
    heldout: int


class Audit(_Model):
    """What an audit of a ref came to. `passed`: nothing is over its line."""

    ref: str
    rows: int  # excluded ones left out, here and everywhere
    training_rows: int
    heldout_rows: int
    subtypes: int
    by: list[str]  # the columns that make a subtype
    passed: bool
    checks: list[AuditCheck]
    findings: list[Finding]  # at most 1,000 a check
    leaks: list[Leak]  # at most 1,000
    origins: list[Origin]
    lines: AuditLines


@dataclass
class Counted:
    """What an audit has counted of a ref's records; excluded ones don't count."""

    ref: str
    corpus: str
    by: tuple[str, ...]  # columns that make a subtype; empty when there are none
    rows: int = 0
    training: int = 0
    subtypes: Counter[Subtype] | None = field(default_factory=Counter)  # training rows; None: too many
    domains: Counter[tuple[str | None, str]] | None = field(default_factory=Counter)  # rows by (domain, split)
    origins: Counter[tuple[str | None, str, str | None]] = field(default_factory=Counter)  # (origin, split, domain)
    templates: Mapping[Subtype, Template] | None = None  # None: the extra isn't installed
    no_templates: str = ""
    production: tuple[str, ...] = ()  # what an origin calls the adapter in production
    compared: int = 0  # records looked at for near-duplicates, whether only a sample, and how many have one
    sampled: bool = False
    duplicates: int = 0
    examples: Sequence[tuple[str, str, float]] = ()  # (id, id, similarity)
    looked_for: int = 0  # held-out records whose twins in training were looked for, of how many
    heldout: int = 0
    leaks: Sequence[Leak] = ()
    has_content: bool = True


def judge(counted: Counted, lines: AuditLines) -> Audit:
    """Hold what was counted to the lines."""
    checks: list[AuditCheck] = []
    findings: list[Finding] = []
    for make in (_small, _templates, _synthetic, _own_output, _near_duplicates, _thin, _leaks):
        check, found = make(counted, lines)
        checks.append(check)
        findings += found[:LISTED]
    origins: dict[str | None, Counter[str]] = {}
    for (origin, split, _), rows in counted.origins.items():
        origins.setdefault(origin, Counter())[split] += rows
    return Audit(
        ref=counted.ref,
        rows=counted.rows,
        training_rows=counted.training,
        heldout_rows=counted.rows - counted.training,
        subtypes=len(counted.subtypes or ()),
        by=list(counted.by),
        passed=not any(check.findings for check in checks),
        checks=checks,
        findings=findings,
        leaks=list(counted.leaks[:LISTED]),
        origins=[
            Origin(origin=origin, training=rows["train"], heldout=rows["heldout"])
            for origin, rows in sorted(origins.items(), key=lambda item: (-item[1].total(), item[0] or ""))
        ],
        lines=lines,
    )


Judged = tuple[AuditCheck, list[Finding]]


def name_of(subtype: Subtype) -> str:
    """`banking / transfer`."""
    return " / ".join(NO_VALUE if part is None else part for part in subtype)


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %" if share >= 0.1 or share == 0 else f"{100 * share:.1f} %"


def _skipped(check: Check, why: str) -> Judged:
    return AuditCheck(check=check, says="not checked", findings=0, skipped=why), []


def _no_subtypes(counted: Counted) -> str:
    if not counted.by:
        return "the records have no label and no domain; name columns: --by COLUMN"
    return f"{' and '.join(counted.by)} have too many values to be subtypes; name others: --by COLUMN"


def _small(counted: Counted, lines: AuditLines) -> Judged:
    if not counted.by or counted.subtypes is None:
        return _skipped("small-subtypes", _no_subtypes(counted))
    small = sorted((n, name_of(subtype)) for subtype, n in counted.subtypes.items() if n <= lines.small_subtype)
    findings = [
        Finding(
            check="small-subtypes",
            where=name,
            figure=n,
            line=lines.small_subtype,
            says=f"{n} training {_records(n)}",
            remedy=f"capture at least {lines.small_subtype + 1 - n} more that differ in wording, or join it with a kindred "
            "subtype",
        )
        for n, name in small
    ]
    fewest = min(counted.subtypes.values(), default=0)
    says = f"{len(small):,} of {len(counted.subtypes):,} subtypes have {lines.small_subtype} training records or fewer"
    if not small and counted.subtypes:
        says = f"every one of {len(counted.subtypes):,} subtypes has at least {fewest:,} training records"
    return AuditCheck(check="small-subtypes", says=says, findings=len(small)), findings


def _templates(counted: Counted, lines: AuditLines) -> Judged:
    if not counted.has_content:
        return _skipped("templates", "the records have no text")
    if counted.templates is None:
        return _skipped("templates", counted.no_templates or _no_subtypes(counted))
    worst = sorted(counted.templates.items(), key=lambda item: (-item[1].share, name_of(item[0])))
    worst = [(subtype, t) for subtype, t in worst if t.count >= _TEMPLATE_TEXTS]
    over = [(subtype, t) for subtype, t in worst if t.share > lines.template]
    findings = [
        Finding(
            check="templates",
            where=name_of(subtype),
            figure=round(t.share, 4),
            line=lines.template,
            says=f"{t.count} of {t.of} from one template: {t.text}",
            remedy="have some written in other words; until then draw less of it: "
            f"treering select {counted.ref} --strategy diverse --rows N",
        )
        for subtype, t in over
    ]
    if over:
        says = f"{len(over):,} of {len(counted.templates):,} subtypes come mostly from one template"
    elif worst:
        says = f"no template makes more than {_percent(worst[0][1].share)} of a subtype"
    else:
        says = "no template was found"
    return AuditCheck(check="templates", says=says, findings=len(over)), findings


def _synthetic(counted: Counted, lines: AuditLines) -> Judged:
    training = {key: n for key, n in counted.origins.items() if key[1] == "train"}
    if not any(origin for origin, _, _ in training):
        return _skipped(
            "synthetic", "no record says its origin; capture with origin: human, model:NAME, synthetic:NAME"
        )
    by_domain: dict[str | None, list[int]] = {}
    for (origin, _, domain), n in training.items():
        sums = by_domain.setdefault(domain, [0, 0])
        sums[0] += n if (origin or "").startswith("synthetic") else 0
        sums[1] += n
    made, total = (sum(sums[i] for sums in by_domain.values()) for i in (0, 1))
    shares = [(counted.ref, made, total)]
    if len(by_domain) > 1:
        shares += [(f"domain {domain or NO_VALUE}", m, t) for domain, (m, t) in sorted(by_domain.items(), key=str)]
    findings = [
        Finding(
            check="synthetic",
            where=where,
            figure=round(m / t, 4),
            line=lines.synthetic,
            says=f"{_percent(m / t)} of {t:,} training records are synthetic",
            remedy="capture human ones; until then give both the same weight: "
            f"treering select {counted.ref} --strategy balanced --by origin --rows N",
        )
        for where, m, t in shares
        if t and m / t > lines.synthetic
    ]
    unsaid = sum(n for (origin, _, _), n in training.items() if origin is None)
    says = f"{_percent(made / max(total, 1))} of {total:,} training records are synthetic"
    says += f"; {unsaid:,} don't say their origin" if unsaid else ""
    return AuditCheck(check="synthetic", says=says, findings=len(findings)), findings


def _own_output(counted: Counted, lines: AuditLines) -> Judged:
    if not any(origin for origin, _, _ in counted.origins):
        return _skipped("own-output", "no record says its origin; capture with origin: model:NAME")
    by_model = sum(
        n for (o, split, _), n in counted.origins.items() if (o or "").startswith("model") and split == "train"
    )
    total = max(counted.training, 1)
    if not counted.production:
        return AuditCheck(
            check="own-output",
            says=f"{_percent(by_model / total)} of the training records were written by models; none is in production",
            findings=0,
        ), []
    names = {f"model:{name}" for name in counted.production}
    own = {split: sum(n for (o, s, _), n in counted.origins.items() if o in names and s == split)
           for split in ("train", "heldout")}  # fmt: skip
    production = counted.production[0]
    findings = []
    if own["train"] / total > lines.own_output:
        findings.append(
            Finding(
                check="own-output",
                where=counted.ref,
                figure=round(own["train"] / total, 4),
                line=lines.own_output,
                says=f"{_percent(own['train'] / total)} of the training records were written by {production}, which is in "
                "production",
                remedy="have people correct or drop them: "
                f"treering annotate {counted.corpus} --from FILE (id, label or exclude)",
            )
        )
    if own["heldout"]:
        findings.append(
            Finding(
                check="own-output",
                where=counted.ref,
                figure=own["heldout"],
                line=0,
                says=f"{own['heldout']:,} held-out {_records(own['heldout'])} came from {production}: it would be scored "
                "against its own output",
                remedy=f"exclude them: treering annotate {counted.corpus} --from FILE (id, exclude)",
            )
        )
    says = (
        f"{_percent(own['train'] / total)} of the training records were written by {production}, "
        f"{_percent(by_model / total)} by any model"
    )
    return AuditCheck(check="own-output", says=says, findings=len(findings)), findings


def _near_duplicates(counted: Counted, lines: AuditLines) -> Judged:
    if not counted.has_content:
        return _skipped("near-duplicates", "the records have no text")
    share = counted.duplicates / max(counted.compared, 1)
    among = (
        f"a sample of {counted.compared:,}"
        if counted.sampled
        else f"{counted.compared:,} record{'' if counted.compared == 1 else 's'}"
    )
    error = ""
    if counted.sampled and share:
        error = f" (± {196 * math.sqrt(share * (1 - share) / counted.compared):.1f})"
    says = f"{_percent(share)}{error} of {among} nearly equal another one"
    findings = []
    if share > lines.near_duplicates:
        pairs = ", ".join(f"{a} and {b} ({s:.2f})" for a, b, s in counted.examples[:3])
        findings.append(
            Finding(
                check="near-duplicates",
                where=counted.ref,
                figure=round(share, 4),
                line=lines.near_duplicates,
                says=f"{says}, such as {pairs}",
                remedy=f"draw from what differs: treering select {counted.ref} --strategy diverse --rows N",
            )
        )
    return AuditCheck(check="near-duplicates", says=says, findings=len(findings)), findings


def _thin(counted: Counted, lines: AuditLines) -> Judged:
    if counted.domains is None:
        return _skipped("thin-heldout", "domain has too many values")
    heldout = {domain: counted.domains.get((domain, "heldout"), 0) for domain, _ in counted.domains}
    thin = sorted((n, domain or NO_VALUE) for domain, n in heldout.items() if n < lines.thin_heldout)
    findings = [
        Finding(
            check="thin-heldout",
            where=f"domain {domain}",
            figure=n,
            line=lines.thin_heldout,
            says=f"{n:,} held-out {_records(n)}: " + (f"a score moves by ± {100 / math.sqrt(n):.0f} points by chance" if n else "nothing to score"),
            remedy=f"capture {lines.thin_heldout - n:,} more with split heldout, or create the corpus with a larger --heldout",
        )
        for n, domain in thin
    ]  # fmt: skip
    says = f"{len(thin):,} of {len(heldout):,} domains have fewer than {lines.thin_heldout:,} held-out records"
    if not thin and heldout:
        says = f"each of {len(heldout):,} domains has at least {min(heldout.values()):,} held-out records"
    return AuditCheck(check="thin-heldout", says=says, findings=len(thin)), findings


def _leaks(counted: Counted, lines: AuditLines) -> Judged:
    if not counted.has_content:
        return _skipped("leaks", "the records have no text")
    findings = [
        Finding(
            check="leaks",
            where=leak.heldout_id,
            figure=leak.similarity,
            line=lines.similarity,
            says=f"held out in {leak.heldout_in}, {_equals(leak.similarity)} {leak.training_id}, "
            f"which trains in {leak.training_in}",
            remedy=f"treering annotate {counted.corpus} {leak.heldout_id} --exclude",
        )
        for leak in counted.leaks
    ]
    among = f"{counted.heldout:,} held-out records"
    if counted.looked_for < counted.heldout:
        among = f"a sample of {counted.looked_for:,} of {among}"
    says = f"{len(counted.leaks):,} of {among} nearly equal a training record of {counted.corpus}"
    return AuditCheck(check="leaks", says=says, findings=len(counted.leaks)), findings


def _equals(similarity: float) -> str:
    return "the same text as" if similarity == 1 else f"{similarity:.2f} alike"


def _records(n: float) -> str:
    return "record" if n == 1 else "records"
