"""PURE. From what was measured to findings: each with its figure, its line, and a remedy to run.

The lines are those of Hei, "Trained on 52 Product Domains, the Earlier 51 All Regressed" (2026), sections 4 and 7. Measures
nothing (rounds.diagnose).
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .diagnosis import DomainFacts, Finding, Growth, ProbedSlice, Projection, RoundFacts
from .matrix import points

__all__ = [
    "Remedies",
    "baseline_diff",
    "buffer_occupancy",
    "fresh_baseline",
    "groups_by_traffic",
    "growth_of",
    "head_tail_gap",
    "heldout_size",
    "multi_intent",
    "parameter_growth",
    "router_accuracy",
    "router_drift",
    "severe_forgetting",
    "spurious_forgetting",
]

SEVERE_BWT = -0.05  # for two rounds
SEVERE_DROP = 0.05  # of one slice, from where its cause is worth asking for
HEAD_TAIL_GAP = 0.05
TEN = 10  # domains of the head, and of the tail, at most
OCCUPANCY = 0.5  # of an even share of the buffer, for every domain
MANY_INTENTS, FEW_INTENTS, INTENT_GAP = 0.15, 0.02, 0.10
ROUTER_ACCURACY = 0.96
ROUTER_DRIFT = -0.05  # of the mean largest route probability, live against held-out
HELDOUT_ROWS = 1_000
REGRESSION = -0.02  # of the worst slice against the parent
BASELINE_DAYS = 30.0
PROJECTED = (50, 500)  # domains


@dataclass(frozen=True, slots=True)
class Remedies:
    """The commands that cure things, for one adapter of one corpus.

    learned: the snapshots that it and its ancestors were trained on and that are still there, as refs, ranges where they
    stand in a row. past: the same without the newest.
    parent: what it continues from; None when it was trained from scratch.
    """

    corpus: str
    adapter: str
    learned: tuple[str, ...]
    past: tuple[str, ...]
    newest: str | None
    parent: str | None
    base: str | None = None
    replays: bool = True  # whether the run drew anything that was learnt before
    gated: bool = False  # whether it has gates by domain

    def more_replay(self) -> str:
        """The round again, half of it replay."""
        if not self.past or self.newest is None:
            return self._train(self._everything(), self.parent)
        past = [f"{ref}={0.5 / len(self.past):g}" for ref in self.past]
        how = [] if self.replays else ["--strategy", "replay"]
        return self._train([*past, f"{self.newest}=0.5"], self.parent, *how)

    def retrain_output(self) -> str:
        """The head alone, on everything learnt so far and no mere buffer of it: what the probe has shown to work."""
        return self._train(self._everything(), self.adapter, "--only-head", "--strategy", "replay")

    def balanced_buffer(self, rows: int) -> str:
        """A replay buffer with as much of every domain."""
        refs = self.learned or (f"{self.corpus}@v1",)
        return _command("select", refs[0], "--rows", str(max(1, rows)), "--strategy", "balanced", "--by", "domain")

    def shared_adapter(self) -> str:
        """From scratch with one adapter that all domains share."""
        base = ["--base", self.base] if self.base else []
        return self._train(self._everything(), None, "--strategy", "replay", *base)

    def take_in_live(self) -> str:
        """A round on what came since, beside what was learnt."""
        return self._train([*self._everything(0.3), f"{self.corpus}@live=0.7"], self.adapter)

    def label(self, ref: str | None = None) -> str:
        """Say of fifty records how many things each asks for."""
        return _command("label", self.corpus, "-n", "50", *(["--on", ref] if ref else []))

    def capture_more(self) -> str:
        """Take in records that ask for several things at once."""
        return _command("capture", self.corpus, "multi-intent.jsonl")

    def more_held_out(self, domain: str) -> str:
        """A test set of one's own for a domain, in the matrix from now on."""
        name = "".join(c if c.isalnum() or c in "_-." else "_" for c in domain).lstrip("-.") or "test"
        return _command("eval", self.adapter, "--matrix", "--by", "domain", "--extra", f"{name}={name}.jsonl")

    def fresh_baseline(self) -> str:
        """Train on everything at once, and compare."""
        return _command("eval", self.adapter, "--matrix", "--fresh-baseline")

    def _everything(self, share: float = 1.0) -> list[str]:
        refs = self.learned or (f"{self.corpus}@v1",)
        return [f"{ref}={share / len(refs):g}" for ref in refs]

    def _train(self, mix: Sequence[str], parent: str | None, *options: str) -> str:
        return _command("train", *mix, "--parent", parent or "none", *options)


def severe_forgetting(rounds: Sequence[RoundFacts], probed: Sequence[ProbedSlice], remedies: Remedies) -> Finding:
    """Mode 1: backward transfer below −5 points for two rounds in a row."""
    told = [one.bwt for one in rounds if one.bwt is not None]
    if not told:
        return _finding("severe-forgetting", None, says="there is no round after the first yet, so nothing to forget")
    last, before = told[-1], told[-2] if len(told) > 1 else None
    says = f"BWT is {points(last, signed=True)} points"
    ok: bool | None = True
    if last < SEVERE_BWT and before is None:
        ok, says = None, f"{says} after the first round that could forget; a second one below −5 makes it severe"
    elif last < SEVERE_BWT and before is not None:
        ok = before >= SEVERE_BWT
        says += f", and was {points(before, signed=True)} the round before" + ("" if ok else ": a lasting loss")
    drifted = sum(one.recovered for one in probed) > sum(one.lost for one in probed)
    return _finding(
        "severe-forgetting",
        last,
        line=SEVERE_BWT,
        ok=ok,
        says=says,
        remedy=remedies.retrain_output() if drifted else remedies.more_replay(),
    )


def spurious_forgetting(
    probed: Sequence[ProbedSlice], share: float | None, remedies: Remedies, domain_of: Mapping[str, str | None]
) -> Finding:
    """Mode 2: a slice lost 5 points or more, and a fresh head gets most of them back.

    domain_of: slice → its domain, where it holds only one.
    """
    if share is None:
        return _finding("spurious-forgetting", 0.0, line=0.5, ok=True, says="no slice has dropped since it was learnt")
    severe = [one for one in probed if one.drop >= SEVERE_DROP]
    drifted = [one for one in severe if one.cause == "alignment drift"]
    worst = max(probed, key=lambda one: one.drop)
    says = (
        f"{100 * share:.0f} % of all drops come back with a fresh head; the largest, {worst.slice} by {points(worst.drop)} "
        f"points, is {worst.cause}: {points(worst.recovered)} come back, {points(worst.lost)} are lost"
    )
    domains = {domain_of.get(one.slice) for one in drifted}
    if remedies.gated and len(domains) == 1 and (domain := domains.pop()) is not None:
        says += f"; --only-gate {shlex.quote(domain)} would leave all other domains as they are"
    return _finding(
        "spurious-forgetting",
        share,
        line=0.5,
        ok=not drifted,
        says=says if severe else f"no slice has dropped by 5 points; {says}",
        remedy=remedies.retrain_output(),
    )


def head_tail_gap(domains: Sequence[DomainFacts], remedies: Remedies, rows: int) -> Finding:
    """Mode 3: domains of much traffic are answered better than those of little, by more than 5 points."""
    scored = [one for one in domains if one.score is not None]
    head = [one.score for one in scored if one.group == "head" and one.score is not None]
    tail = [one.score for one in scored if one.group == "tail" and one.score is not None]
    if not head or not tail:
        return _finding("head-tail-gap", None, line=HEAD_TAIL_GAP, says="it takes two domains with held-out records")
    best, least = sum(head) / len(head), sum(tail) / len(tail)
    gap = best - least
    worst = min((one for one in scored if one.group == "tail"), key=lambda one: one.score or 0.0)
    return _finding(
        "head-tail-gap",
        gap,
        line=HEAD_TAIL_GAP,
        ok=gap <= HEAD_TAIL_GAP,
        says=f"of most traffic: {_many(len(head), 'domain')} at {points(best)}; of least: {_many(len(tail), 'domain')} at "
        f"{points(least)}; {worst.domain} scores {points(worst.score)}",
        remedy=remedies.balanced_buffer(rows),
    )


def buffer_occupancy(domains: Sequence[DomainFacts], buffer: str | None, remedies: Remedies, rows: int) -> Finding:
    """Mode 3: how much of the replay buffer the domain with the least of it has, of an even share.

    Of the domains that it was chosen from; what the round brought isn't in it. buffer: the selection that the run replayed; None when it replayed whole snapshots, which evict nothing. `rows`: in it.
    """
    if buffer is None:
        return _finding(
            "buffer-occupancy",
            None,
            ok=True,
            says="no buffer: replay draws from whole snapshots, so nothing is evicted",
        )
    held = [one for one in domains if one.buffer_rows is not None and one.train_rows]
    if not held:
        return _finding("buffer-occupancy", None, line=OCCUPANCY, says=f"{buffer} names no domains")
    even = sum(one.buffer_rows or 0 for one in held) / len(held)
    # A domain with fewer records than an even share can't fill one.
    shares = {one.domain: (one.buffer_rows or 0) / max(1e-9, min(even, one.train_rows)) for one in held}
    starving = min(shares, key=lambda name: shares[name])
    count = next(one.buffer_rows for one in held if one.domain == starving)
    return _finding(
        "buffer-occupancy",
        shares[starving],
        line=OCCUPANCY,
        ok=shares[starving] >= OCCUPANCY,
        says=f"{starving} has {count:,} of the {rows:,} rows in {buffer}, where an even share is {even:,.0f}",
        remedy=remedies.balanced_buffer(rows),
    )


def growth_of(
    sizes: Callable[[int, int], tuple[int, int]], *, domains: int, classes: int, head: int, extra_bytes: int = 0
) -> Growth:
    """How an adapter grows, from `sizes(domains, classes)` → (parameters, bytes): what its shapes come to.

    head: parameters that one class takes in the head. extra_bytes: of what it keeps beside its weights. The order is O(K)
    when fifty more domains would outweigh what all domains share: then a domain brings matrices of its own, not a vector.
    """
    parameters, size = sizes(domains, classes)
    per_domain = sizes(domains + 1, classes)[0] - parameters
    per_class = sizes(domains, classes + 1)[0] - parameters
    shared = parameters - per_domain * domains - head * classes
    each = classes / max(1, domains)
    projected = []
    for many in PROJECTED:
        found = sizes(many, max(classes, round(each * many)))
        projected.append(Projection(domains=many, parameters=found[0], bytes=found[1] + extra_bytes))
    return Growth(
        parameters=parameters,
        bytes=size + extra_bytes,
        per_domain=per_domain,
        per_class=per_class,
        order="O(K)" if per_domain > 0 and 50 * per_domain > max(shared, 0) else "O(1)",
        projected=projected,
    )


def parameter_growth(growth: Growth | None, remedies: Remedies) -> Finding:
    """Mode 4: whether a domain brings weight matrices of its own; then memory grows until it doesn't fit."""
    if growth is None:
        return _finding("parameter-growth", None, says="the weights aren't here, so nobody can count them")
    at = "; ".join(
        f"at {one.domains} domains {one.parameters / 1e6:,.2f} million parameters, {one.bytes / 1e6:,.1f} MB"
        for one in growth.projected
    )
    return _finding(
        "parameter-growth",
        float(growth.per_domain),
        ok=growth.order == "O(1)",
        says=f"{growth.order}: {growth.parameters:,} parameters now, {growth.per_domain:,} more for a domain and "
        f"{growth.per_class:,} for a class; {at}",
        remedy=remedies.shared_adapter(),
    )


def multi_intent(production: tuple[int, int], training: tuple[int, int], remedies: Remedies) -> list[Finding]:
    """Mode 5: many requests in production ask for several things at once, and hardly any in training do.

    production, training: (records that ask for several things, records that were looked at) of what it wasn't trained on and
    of what it was.
    """
    asked = production[0] / production[1] if production[1] else None
    taught = training[0] / training[1] if training[1] else None
    if asked is None:
        says = "no record that came since training was looked at yet"
        return [
            _finding("multi-intent-share", None, line=MANY_INTENTS, says=says, remedy=remedies.label()),
            _finding("multi-intent-gap", None, line=INTENT_GAP, says=says, remedy=remedies.label()),
        ]
    there = f"{production[0]} of {production[1]} records in production ask for several things"
    if taught is None:
        where = remedies.learned[-1] if remedies.learned else None
        cure, here = remedies.label(where), "of the training records none was looked at yet"
        share_ok, gap_ok = (None if asked > MANY_INTENTS else True), (None if asked > INTENT_GAP else True)
    else:
        cure, here = remedies.capture_more(), f"of {training[1]} training records {training[0]} do"
        share_ok = not (asked > MANY_INTENTS and taught < FEW_INTENTS)
        gap_ok = asked - taught <= INTENT_GAP
    return [
        _finding(
            "multi-intent-share", asked, line=MANY_INTENTS, ok=share_ok, says=f"{there}; {here}", remedy=cure
        ),
        _finding(
            "multi-intent-gap",
            asked if taught is None else asked - taught,
            line=INTENT_GAP,
            ok=gap_ok,
            says=f"{there}; {here}",
            remedy=cure,
        ),
    ]  # fmt: skip


def router_accuracy(right: int, rows: int, remedies: Remedies, *, worst: str | None = None) -> Finding:
    """How often the domain of a held-out request is told rightly."""
    if not rows:
        says = "there are no held-out records with a domain that it was trained on, or it has one domain alone"
        return _finding("router-accuracy", None, line=ROUTER_ACCURACY, says=says)
    figure = right / rows
    return _finding(
        "router-accuracy",
        figure,
        line=ROUTER_ACCURACY,
        ok=figure >= ROUTER_ACCURACY,
        says=f"the domain of {right:,} of {rows:,} held-out records is told rightly" + (f"; worst is {worst}" if worst else ""),
        remedy=remedies.retrain_output(),
    )  # fmt: skip


def router_drift(live: float | None, heldout: float | None, rows: int, remedies: Remedies) -> Finding:
    """Whether the router is less sure of live than of held-out records: something new has come, or weakened its signal."""
    if live is None or heldout is None:
        return _finding("router-drift", None, line=ROUTER_DRIFT, says="there is nothing in live to route")
    change = live - heldout
    return _finding(
        "router-drift",
        change,
        line=ROUTER_DRIFT,
        ok=change >= ROUTER_DRIFT,
        says=f"the mean largest route probability is {live:.2f} on {rows:,} live records and {heldout:.2f} on held-out ones",
        remedy=remedies.take_in_live(),
    )


def heldout_size(domains: Sequence[DomainFacts], remedies: Remedies) -> Finding:
    """Every domain has a thousand held-out records, so that a point is more than chance."""
    if not domains:
        return _finding("heldout-size", None, line=float(HELDOUT_ROWS), says="there are no held-out records")
    least = min(domains, key=lambda one: one.heldout_rows)
    thin = sum(one.heldout_rows < HELDOUT_ROWS for one in domains)
    return _finding(
        "heldout-size",
        float(least.heldout_rows),
        line=float(HELDOUT_ROWS),
        ok=not thin,
        says=f"{thin} of {len(domains)} domains have fewer than {HELDOUT_ROWS:,} held-out records; "
        f"{least.domain} has {least.heldout_rows:,}",
        remedy=remedies.more_held_out(least.domain),
    )


def baseline_diff(
    scores: Mapping[str, float], before: Mapping[str, float], remedies: Remedies, parent: str | None
) -> Finding:
    """Slice by slice against the adapter that it continues from."""
    changes = {name: scores[name] - before[name] for name in scores if name in before}
    if parent is None or not changes:
        return _finding("baseline-diff", None, line=REGRESSION, says="it continues from no adapter with these slices")
    worst = min(changes, key=lambda name: changes[name])
    mean = sum(changes.values()) / len(changes)
    return _finding(
        "baseline-diff",
        changes[worst],
        line=REGRESSION,
        ok=changes[worst] >= REGRESSION,
        says=f"against {parent} the {len(changes)} slices that both know changed by {points(mean, signed=True)} points on "
        f"average; {worst} by {points(changes[worst], signed=True)}",
        remedy=remedies.more_replay(),
    )


def fresh_baseline(
    name: str | None, days: float | None, gap: float | None, remedies: Remedies, *, lacks: Sequence[str] = ()
) -> Finding:
    """Whether there is a model that was trained on everything at once, no older than a month, to compare with.

    gap: how much better it scores on average, as a fraction of 1, on what both learnt. lacks: slices that came after it.
    """
    if name is None or days is None:
        return _finding(
            "fresh-baseline",
            None,
            line=BASELINE_DAYS,
            ok=False,
            says="no baseline was trained on everything that this lineage learnt",
            remedy=remedies.fresh_baseline(),
        )
    compared = "" if gap is None else f"; it scores {points(gap, signed=True)} points against this one, on average"
    compared += f", and hasn't learnt {', '.join(lacks)}" if lacks else ""
    return _finding(
        "fresh-baseline",
        days,
        line=BASELINE_DAYS,
        ok=days <= BASELINE_DAYS,
        says=f"{name} was trained on everything at once, {days:.0f} days ago{compared}",
        remedy=remedies.fresh_baseline(),
    )


def groups_by_traffic(traffic: Mapping[str, int]) -> dict[str, Any]:
    """Domain → head, middle or tail: a third each by traffic, ten domains at most; ties by name."""
    order = sorted(traffic, key=lambda name: (-traffic[name], name))
    n = min(TEN, max(1, len(order) // 3)) if len(order) > 1 else 0
    return {
        name: "head" if at < n else "tail" if at >= len(order) - n else "middle" for at, name in enumerate(order)
    }  # fmt: skip


_ABOUT: dict[str, tuple[int | None, str, str]] = {
    "severe-forgetting": (1, "severe forgetting", "points"),
    "spurious-forgetting": (2, "spurious forgetting", "share"),
    "head-tail-gap": (3, "head and tail", "points"),
    "buffer-occupancy": (3, "buffer occupancy", "share"),
    "parameter-growth": (4, "growth with domains", "parameters"),
    "multi-intent-share": (5, "several intents at once", "share"),
    "multi-intent-gap": (5, "several intents, gap", "points"),
    "router-accuracy": (None, "router accuracy", "share"),
    "router-drift": (None, "router drift", "points"),
    "heldout-size": (None, "held-out records", "records"),
    "baseline-diff": (None, "against the parent", "points"),
    "fresh-baseline": (None, "fresh baseline", "days"),
}


def _finding(
    check: str,
    figure: float | None,
    *,
    says: str,
    line: float | None = None,
    ok: bool | None = None,
    remedy: str | None = None,
) -> Finding:
    mode, title, unit = _ABOUT[check]
    return Finding.model_validate(
        {
            "check": check,
            "mode": mode,
            "title": title,
            "unit": unit,
            "figure": figure,
            "line": line,
            "ok": ok,
            "says": says,
            "remedy": None if ok else remedy,  # nothing to do; what couldn't be told may have one
        }
    )


def _many(count: int, what: str) -> str:
    return f"{count} {what}{'' if count == 1 else 's'}"


def _command(*words: str) -> str:
    return shlex.join(["treering", *words])
