"""PURE. What a round came to, in words: one screen, the outcome first."""

from __future__ import annotations

from textwrap import wrap

from treering.evaluation.gate import CheckedRow
from treering.evaluation.matrix import points
from treering.rounds.documents import RoundResult, SourceShare

__all__ = ["summary"]

_SHOWN = 4
_WIDTH = 80
_OUTCOMES = {
    "not-due": "nothing to do",
    "planned": "would run",
    "promoted": "promoted",
    "refused": "refused by the gate",
    "kept": "kept as it was",
    "failed": "failed",
    "abandoned": "given up",
}


def summary(result: RoundResult) -> str:
    """Lines of text: what was learnt, what was kept, what the gate said, what comes next."""
    lines = [_head(result)]
    lines += [_line("" if n else "because", reason) for n, reason in enumerate(result.why)]
    name = "" if result.outcome == "not-due" else "due"
    lines += [_line("" if n else name, reason) for n, reason in enumerate(result.reasons)]
    if result.sealed:
        lines.append(_line("seals" if result.outcome == "planned" else "sealed", result.sealed))
    if result.sources:
        start = f" from {result.parent}" if result.parent else " from scratch"
        lines.append(_line("trains" if result.outcome == "planned" else "trained", f"{result.adapter or ''}{start}"))
        lines += [_line("", _source(source)) for source in result.sources]
    if result.share is not None and any(source.replay for source in result.sources):
        lines.append(_line("replay", f"{100 * result.share:g} %: {result.share_reason}"))
    lines += _learnt(result)
    if result.average is not None:
        lines.append(
            _line("average", f"{points(result.average)}, BWT {points(result.bwt, signed=True)} (points of 100)")
        )
    if result.budget is not None:
        lines.append(_line("serving", f"p99 {result.budget.p99_ms:.3g} ms, {result.budget.memory_gb:.2f} GB resident"))
    if result.checked:
        lines.append(_line("diagnosis", f"{result.checked - len(result.findings)} of {result.checked} checks are fine"))
        for finding in result.findings[:_SHOWN]:
            lines.append(_line("", finding.says + (":" if finding.remedy else "")))
            if finding.remedy:  # in one piece, however long: a command that is broken isn't one
                lines.append(f"{'':15}{finding.remedy}")
        if len(result.findings) > _SHOWN:
            lines.append(
                _line("", f"and {len(result.findings) - _SHOWN} more: treering eval {result.adapter} --diagnose")
            )
    if result.production is not None:
        lines.append(_line("production", result.production))
    if result.next_share is not None:
        lines.append(_line("next", f"{100 * result.next_share:g} % replay: {result.next_reason}"))
    if result.notified is not None:
        lines.append(
            _line("webhook", result.notified.says + ("" if result.notified.ok else f", {result.notified.tries} tries"))
        )
    return "\n".join(lines)


def _head(result: RoundResult) -> str:
    name = f"round {result.number} of {result.corpus}" if result.number else f"round of {result.corpus}"
    outcome = _OUTCOMES[result.outcome]
    if result.outcome == "promoted":
        outcome = f"promoted {result.adapter}"
    elif result.outcome == "refused":
        outcome = f"the gate refused {result.adapter}"
    return f"{name}: {outcome}" + (" (continued after an interruption)" if result.resumed else "")


def _line(name: str, text: str) -> str:
    lines = wrap(text, _WIDTH - 13, break_long_words=False, break_on_hyphens=False) or [""]
    return "\n".join(f"  {'' if n else name:<11}{line}" for n, line in enumerate(lines))


def _source(source: SourceShare) -> str:
    kind = "replay" if source.replay else "new"
    return f"{100 * source.share:5.1f} %  {source.ref} ({source.rows:,} records, {kind})"


def _learnt(result: RoundResult) -> list[str]:
    """New slices first, then what was known before, the worst change first."""
    if result.verdict is None:
        return []
    rows = [row for row in result.verdict.rows if row.unit == "points" and row.what not in ("average", "BWT")]
    fresh = _new_refs(result)
    lines = [_line("learnt" if not n else "", _change(row)) for n, row in enumerate(_some(rows, fresh, True))]
    lines += [_line("kept" if not n else "", _change(row)) for n, row in enumerate(_some(rows, fresh, False))]
    hidden = len(rows) - len(lines)
    return lines + ([_line("", f"and {hidden} more slices")] if hidden > 0 else [])


def _some(rows: list[CheckedRow], fresh: set[str], new: bool) -> list[CheckedRow]:
    chosen = [row for row in rows if (row.what in fresh) is new]
    return sorted(chosen, key=lambda row: row.change if row.change is not None else 0.0)[:_SHOWN]


def _change(row: CheckedRow) -> str:
    before = "" if row.previous is None else f", {points(row.previous)} before ({points(row.change, signed=True)})"
    return f"{row.what} {points(row.score)}{before}"


def _new_refs(result: RoundResult) -> set[str]:
    return {one for source in result.sources if not source.replay for one in expanded(source.ref)}


def expanded(ref: str) -> list[str]:
    """The snapshots that a ref of snapshots names."""
    from treering.store.ref import Ref

    parsed = Ref.parse(ref)
    if parsed.kind not in ("snapshot", "range"):
        return [ref]
    return [f"{parsed.corpus}@v{number}" for number in range(parsed.first, parsed.last + 1)]
