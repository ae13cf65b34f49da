"""PURE. The report as a page: what a reader must see first stands first, and every drawing has its table.

Draws a `ReportData`; gathers nothing (gather). The same data gives the same bytes.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from html import escape
from typing import TYPE_CHECKING

from treering.evaluation.gate import CheckedRow
from treering.evaluation.heatmap import heatmap, legend, short_names
from treering.evaluation.matrix import ScoreMatrix, points
from treering.store.ref import shortened

from .charts import Bar, Level, Node, Part, Slope, bars, curve, lineage, slopes
from .page import HOW_TO_READ, document

if TYPE_CHECKING:
    from treering.evaluation.drift import ColumnDrift

    from .gather import ReportData

__all__ = ["render_report"]

KEPT = -0.01  # BWT at or above it: what is left of forgetting is within the growth of the label set
SHOWN_SLICES = 18
SHOWN_NODES = 18
SHOWN_ROWS = 40  # of a table; the newest, or the worst


def render_report(data: ReportData) -> str:
    """The whole page as text."""
    matrices = [(one.name, ScoreMatrix.from_model(one.matrix)) for one in data.matrices]
    title = f"{data.corpus}: {_headline(data, matrices)[1]}"
    parts = [
        _hero(data, matrices),
        _matrices(matrices),
        _rounds(data),
        _causes(data),
        _domains(data),
        _questions(data),
        _mix(data),
        _lineage(data),
        _gate(data),
        _drift(data),
        _audit(data),
        _registry(data),
        _notes(data),
    ]
    return document(title, "\n".join(part for part in parts if part), rules=RULES)


# --- at a glance ---------------------------------------------------------------------------------------------------


def _headline(data: ReportData, matrices: Sequence[tuple[str, ScoreMatrix]]) -> tuple[str, str, str]:
    """(tone, sentence, what it rests on)."""
    if data.adapter is None:
        return "", "no adapter yet", "Nothing was trained on this corpus so far."
    name = data.adapter.ref
    if not matrices:
        return "", f"{name}, not measured", "There is no score matrix: see the notes at the end."
    matrix = matrices[0][1]
    if math.isnan(matrix.bwt):
        return "", f"{name} has one round behind it", "Nothing was learnt before it, so nothing could be forgotten yet."
    lost = f"{abs(100 * matrix.bwt):.1f} points {'less' if matrix.bwt < 0 else 'more'} on average than"
    if abs(matrix.bwt) < 0.0005:
        lost = "on average what it scored"
    worst = min(_slopes(matrix), key=lambda one: one.now - one.then)
    says = (
        f"After {len(matrix.rounds)} rounds, what was learnt before the last one scores {lost} right after it was learnt. "
        + (
            f"The largest change for the worse: {worst.name}, {points(worst.then)} → {points(worst.now)}."
            if points(worst.now) != points(worst.then) and worst.now < worst.then
            else "No slice scores less than it did then."
        )
    )
    if matrix.bwt < data.lines.severe:
        return "severe", f"{name} forgets", says
    if matrix.bwt < KEPT:
        return "slight", f"{name} forgets a little", says
    return "kept", f"{name} keeps what it learnt", says


def _slopes(matrix: ScoreMatrix) -> list[Slope]:
    """Slices learnt before the last round: then and now."""
    last = len(matrix.rounds) - 1
    names = short_names(matrix.slices)
    found = []
    for j, learned in enumerate(matrix.learned_in):
        if learned is None or learned == last:
            continue
        then, now = float(matrix.values[learned, j]), float(matrix.values[last, j])
        if not (math.isnan(then) or math.isnan(now)):
            found.append(Slope(names[j], then, now))
    return found


def _hero(data: ReportData, matrices: Sequence[tuple[str, ScoreMatrix]]) -> str:
    tone, headline, says = _headline(data, matrices)
    adapter = data.adapter
    about = [data.corpus, f"{len(data.snapshots)} snapshots"]
    if adapter is not None:
        state = "in production" if adapter.status == "production" else adapter.status
        about += [f"{adapter.ref} {state}", f"strategy {adapter.strategy or 'unknown'}", f"base {_short(adapter.base)}"]
    about.append(f"{data.created_at:%Y-%m-%d %H:%M} UTC")
    figures = []
    picture = ""
    if matrices:
        matrix = matrices[0][1]
        figures += [
            ("BWT", _points(matrix.bwt, signed=True), tone, "change since each slice was learnt"),
            ("Average", _points(matrix.average), "", f"{matrix.metric}, now"),
            ("Forgetting", _points(matrix.forgetting), "", "below the best it ever was"),
        ]
        every = _slopes(matrix)
        worst = sorted(every, key=lambda one: one.now - one.then)[:SHOWN_SLICES]
        found = [one for one in every if one in worst]
        if found:
            tolerance = data.lines.tolerance if data.lines.tolerance is not None else 0.02
            more = "" if len(found) == len(every) else f" The {len(found)} that changed for the worst, of {len(every)}."
            picture = (
                f'<figure class="then-now"><figcaption><b>Then and now.</b> <span class="k then"></span> when it was learnt '
                f'<span class="k now"></span> now.{more}</figcaption>{slopes(found, key="sl", tolerance=tolerance)}</figure>'
            )
    if data.diagnosis is not None:
        gap = next((one for one in data.diagnosis.findings if one.check == "head-tail-gap"), None)
        if gap is not None and gap.figure is not None:
            figures.append(
                (
                    "Head/tail gap",
                    _points(gap.figure, signed=True),
                    "severe" if gap.ok is False else "",
                    "frequent − rare domains",
                )
            )
    cells = "".join(
        f'<div class="{tone}"><dt>{escape(name)}</dt><dd>{value}</dd><p>{escape(note)}</p></div>'
        for name, value, tone, note in figures
    )
    return f"""<header>
<p class="mark">treering <span>report</span></p>
<div class="hero is-{tone}">
<div>
<h1>{escape(headline)}</h1>
<p class="lead">{escape(says)}</p>
<dl class="figures">{cells}</dl>
<p class="about">{escape(" · ".join(about))}</p>
</div>
{picture}
</div>
</header>"""


def _questions(data: ReportData) -> str:
    if data.adapter is None:
        return ""
    items = "".join(
        f'<li class="{_tone(one.ok)}"><h3>{escape(one.question)}</h3><p class="short">{escape(one.short)}</p>'
        f"<p>{escape(one.says)}</p></li>"
        for one in data.answers
    )
    return _section("questions", "Five questions, answered with figures", f'<ol class="questions">{items}</ol>')


# --- the matrix, and the rounds ---------------------------------------------------------------------------------------


def _matrices(matrices: Sequence[tuple[str, ScoreMatrix]]) -> str:
    if not matrices:
        return ""
    cards = []
    for number, (name, matrix) in enumerate(matrices, 1):
        facts = f"average {points(matrix.average)} · BWT {points(matrix.bwt, signed=True)}".replace("-", "−")
        notes = "".join(f"<li>{escape(note)}</li>" for note in matrix.notes[:SHOWN_ROWS])
        cards.append(
            f'<article class="{"wide" if len(matrix.slices) > 8 or len(matrices) == 1 else ""}">'
            f"<h3>{escape(name)}</h3><p class='sub'>{escape(facts)}</p>"
            f'<div class="scroll">{heatmap(matrix, key=f"m{number}")}</div>'
            + (f'<ul class="aside">{notes}</ul>' if notes else "")
            + "</article>"
        )
    metric = matrices[0][1].metric
    key = (
        f'<div class="key"><p>{legend()} <span>{escape(metric)} on held-out records, points of 100</span></p>'
        '<p><span class="swatch" aria-hidden="true"></span> the round in which a slice was learnt: down from there, what became of it</p></div>'
    )
    lead = "A row per round, a column per held-out slice. A column that fades downwards is being forgotten."
    body = f'<div class="cards">{"".join(cards)}</div>{key}'
    body += _tables(_matrix_table(name, matrix) for name, matrix in matrices)
    return _section("matrix", "Score matrix", body, lead)


def _matrix_table(name: str, matrix: ScoreMatrix) -> str:
    """All cells, or of a large matrix a row per slice: when it was learnt, its best, and now."""
    if matrix.values.size <= 400:
        heads = ["after round", *matrix.slices]
        rows = [
            [round_, *("not evaluated" if math.isnan(v) else points(v) for v in values)]
            for round_, values in zip(matrix.rounds, matrix.values.tolist(), strict=True)
        ]
        return _table(f"{name}: {matrix.metric} in points of 100", heads, rows)
    rows = []
    for j, slice_ in enumerate(matrix.slices):
        learned = matrix.learned_in[j]
        column = [v for v in matrix.values[:, j].tolist() if not math.isnan(v)]
        then = float(matrix.values[learned, j]) if learned is not None else math.nan
        now = float(matrix.values[-1, j])
        rows.append(
            [slice_, matrix.rounds[learned] if learned is not None else "·", points(then), points(max(column, default=math.nan)), points(now), points(now - then, signed=True)]
        )  # fmt: skip
    return _table(
        f"{name}: {matrix.metric} in points of 100, by slice",
        ["slice", "learnt by", "then", "best", "now", "change"],
        rows,
    )


def _rounds(data: ReportData) -> str:
    cards = []
    if data.curve:
        severe = [Level(f"severe: {points(data.lines.severe)}".replace("-", "−"), data.lines.severe, "severe")]
        gate_bwt, gate_average = data.lines.min_bwt, data.lines.min_average
        bwt_lines = severe + (
            [Level(f"gate: {points(gate_bwt)}".replace("-", "−"), gate_bwt, "gate")] if gate_bwt is not None else []
        )
        average_lines = (
            [Level(f"gate: {points(gate_average)}", gate_average, "gate")] if gate_average is not None else []
        )
        short = [one.adapter.rpartition(":")[2] for one in data.curve]
        for title, what, lines, signed in (
            ("BWT after each round", "bwt", bwt_lines, True),
            ("Average after each round", "average", average_lines, False),
        ):
            values = [(f":{name}", getattr(one, what)) for name, one in zip(short, data.curve, strict=True)]
            if not any(value is not None for _, value in values):
                continue
            drawn = curve(values, key=f"c-{what}", title=title, levels=lines, signed=signed)
            cards.append(f"<article><h3>{title}</h3>{drawn}</article>")
        table = _table(
            "Average and BWT after each round, points of 100",
            ["after round", "average", "BWT"],
            [[one.adapter, points(one.average), points(one.bwt, signed=True)] for one in data.curve[-SHOWN_ROWS:]],
        )
    if not cards:
        return ""
    lead = "Each point is what was true then: over the slices that had been learnt by that round."
    return _section("rounds", "Round by round", f'<div class="cards">{"".join(cards)}</div>{_tables([table])}', lead)


# --- why, where, with what ----------------------------------------------------------------------------------------------


def _causes(data: ReportData) -> str:
    found = data.diagnosis
    if found is None:
        return ""
    probe = ""
    if found.probed:
        worst = sorted(found.probed, key=lambda one: -one.drop)[:SHOWN_SLICES]
        names = short_names([one.slice for one in worst]) if len(worst) > 1 else [worst[0].slice]
        drawn = bars(
            [
                Bar(
                    name,
                    (
                        Part(
                            one.recovered, "drift", f"{one.slice}: {points(one.recovered)} points are alignment drift"
                        ),
                        Part(one.lost, "loss", f"{one.slice}: {points(one.lost)} points are lost knowledge"),
                    ),
                    f"−{points(one.drop)}",
                )
                for name, one in zip(names, worst, strict=True)
            ],
            key="probe",
            title="Why each slice dropped, by a linear probe",
        )
        table = _table(
            "Slices that dropped, points of 100",
            ["slice", "learnt", "now", "probe", "drop", "drift", "loss", "cause"],
            [
                [
                    one.slice,
                    *map(points, (one.learned, one.final, one.probe, one.drop, one.recovered, one.lost)),
                    one.cause,
                ]
                for one in found.probed[:SHOWN_ROWS]
            ],
        )
        share = (
            "" if found.spurious_share is None else f" {100 * found.spurious_share:.0f} % of all that dropped is drift."
        )
        probe = (
            f'<article class="wide split"><div><h3>Drift or loss</h3><p class="sub"><span class="k drift"></span> the output '
            f'drifted, a fresh head gets it back <span class="k loss"></span> knowledge is gone.{escape(share)}</p>{drawn}</div>'
            f'<div class="scroll">{table}</div></article>'
        )
    mark = {True: "fine", False: "over its line", None: "not told"}
    rows = [
        f'<tr><th scope="row">{escape(one.title)}</th><td class="v {_tone(one.ok)}">{mark[one.ok]}</td><td class="says">'
        f"{escape(one.says)}{f'<code>{escape(one.remedy)}</code>' if one.remedy else ''}</td></tr>"
        for one in found.findings
    ]
    checks = (
        '<article class="wide"><div class="scroll"><table class="plain"><caption>Every check, what it found and a remedy</caption>'
        '<thead><tr><th scope="col">check</th><th scope="col">verdict</th><th scope="col">what was found</th></tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div></article>"
        if rows
        else ""
    )
    return _section("diagnosis", "What is wrong, and why", f'<div class="cards">{checks}{probe}</div>')


def _domains(data: ReportData) -> str:
    cards, tables = [], []
    domains = data.diagnosis.domains if data.diagnosis else []
    scored = sorted(
        (one for one in domains if one.score is not None), key=lambda one: -(one.live_rows or one.train_rows)
    )
    if scored:
        shown = scored if len(scored) <= SHOWN_SLICES else [*scored[: SHOWN_SLICES // 2], *scored[-SHOWN_SLICES // 2 :]]
        drawn = bars(
            [
                Bar(
                    one.domain,
                    (Part(one.score or 0.0, one.group, f"{one.domain} ({one.group}): {points(one.score)}"),),
                    points(one.score),
                )
                for one in shown
            ],
            key="domains",
            title="Score by domain, the most frequent first",
            scale=1.0,
        )
        cards.append(
            '<article><h3>Head and tail</h3><p class="sub"><span class="k head"></span> frequent <span class="k middle"></span> in '
            f'between <span class="k tail"></span> rare; the most frequent first.</p>{drawn}</article>'
        )
        tables.append(
            _table(
                "Domains",
                ["domain", "group", "score", "training", "live", "held out", "in the buffer"],
                [
                    [
                        one.domain,
                        one.group,
                        points(one.score),
                        one.train_rows,
                        one.live_rows,
                        one.heldout_rows,
                        one.buffer_rows,
                    ]
                    for one in domains[: 5 * SHOWN_ROWS]
                ],
            )
        )
    if data.buffers:
        newest = data.buffers[-1].selection
        held = sorted((one for one in data.buffers if one.selection == newest), key=lambda one: -one.available)
        most = max(one.available for one in held)
        drawn = bars(
            [
                Bar(
                    one.domain,
                    (
                        Part(one.taken, "taken", f"{one.domain}: {one.taken:,} of {one.available:,} are in {newest}"),
                        Part(one.available - one.taken, "left", f"{one.domain}: {one.available - one.taken:,} are not"),
                    ),
                    f"{one.taken:,} of {one.available:,}",
                )
                for one in held[:SHOWN_SLICES]
            ],
            key="buffer",
            title=f"Occupancy of {newest} by domain",
            scale=float(most),
        )
        cards.append(
            f'<article><h3>Buffer {escape(newest)}</h3><p class="sub">{escape(held[0].strategy)}: records of each domain '
            f'<span class="k taken"></span> in it <span class="k left"></span> not.</p>{drawn}</article>'
        )
        tables.append(
            _table(
                "Stored selections by domain",
                ["selection", "strategy", "domain", "in it", "available"],
                [[one.selection, one.strategy, one.domain, one.taken, one.available] for one in data.buffers],
            )
        )
    if not cards:
        return ""
    return _section("domains", "By domain", f'<div class="cards">{"".join(cards)}</div>{_tables(tables)}')


def _mix(data: ReportData) -> str:
    if not data.mix or data.adapter is None:
        return ""
    rows = []
    for name, value in (("planned", "planned"), ("served", "served")):
        parts = tuple(
            Part(share, one.kind, f"{one.ref}, {one.kind}: {100 * share:.1f} % {name}")
            for one in data.mix[:SHOWN_ROWS]
            if (share := getattr(one, value)) is not None
        )
        rows.append(Bar(name, parts, ""))
    kinds = " ".join(
        f'<span class="k {kind}"></span> {kind}'
        for kind in ("replay", "new", "general")
        if any(one.kind == kind for one in data.mix)
    )
    drawn = bars(rows, key="mix", title="The mix as planned and as served", scale=1.0)
    table = _table(
        f"Mix of {data.adapter.ref}",
        ["source", "kind", "planned", "served", "records drawn"],
        [
            [
                one.ref,
                one.kind,
                f"{100 * one.planned:.1f} %",
                "·" if one.served is None else f"{100 * one.served:.1f} %",
                one.rows,
            ]
            for one in data.mix[:SHOWN_ROWS]
        ],
    )
    body = (
        f'<div class="cards"><article class="wide split"><div><p class="sub">{kinds}</p>{drawn}</div>'
        f'<div class="scroll">{table}</div></article></div>'
    )
    return _section("mix", f"What {data.adapter.ref} was trained on", body)


def _lineage(data: ReportData) -> str:
    if not data.snapshots:
        return ""
    snapshots, adapters = data.snapshots[-SHOWN_NODES:], data.adapters[-SHOWN_NODES:]
    number = {one.ref: n for n, one in enumerate(snapshots)}
    place = {one.ref: n for n, one in enumerate(adapters)}
    known: dict[str, set[str]] = {}
    for one in data.adapters:
        known[one.ref] = set(one.trained_on) | known.get(one.parent or "", set())
    boxes = [
        Node(
            name=f":{one.ref.rpartition(':')[2]}",
            says=f"{one.ref}, {one.status}; trained on {_some(one.trained_on)}"
            + (f"; continues {one.parent}" if one.parent else ""),
            kind=one.status,
            parent=place.get(one.parent or ""),
            sources=tuple(
                (number[ref], ref not in known.get(one.parent or "", set())) for ref in one.trained_on if ref in number
            ),
        )
        for one in adapters
    ]
    rings = [
        Node(
            name=f"v{one.number}",
            says=f"{one.ref}: {one.rows:,} records, sealed {one.created_at:%Y-%m-%d}"
            + (f"; {one.message}" if one.message else "")
            + ("; pruned" if one.pruned else "")
            + (f"; edition {one.edition}: records were erased" if one.edition > 1 else ""),
            kind="pruned" if one.pruned else "whole",
            weight=float(one.rows),
        )
        for one in snapshots
    ]
    hidden = len(data.snapshots) - len(snapshots)
    lead = "Snapshots above, adapters below. A thick line is what was new to an adapter, a thin one replay; an arc is what it continues."
    if hidden:
        lead += f" The newest {len(snapshots)}; {hidden} earlier snapshots stand in the table."
    table = _table(
        "Snapshots",
        ["snapshot", "records", "training", "sealed", "message", "learnt by"],
        [
            [one.ref, one.rows, one.training, f"{one.created_at:%Y-%m-%d}", one.message, _some(one.learned_by)]
            for one in reversed(data.snapshots)
        ],
        plain=True,
    )
    body = f'<div class="cards"><article class="wide"><div class="scroll">{lineage(rings, boxes, key="lineage")}</div></article></div>'
    return _section("lineage", "Where it comes from", body + _tables([table]), lead)


# --- gate, data, registry ------------------------------------------------------------------------------------------------


def _gate(data: ReportData) -> str:
    found = data.verdict
    if found is None:
        return ""
    said = "passed" if found.passed else "refused"
    rows = "".join(
        f'<tr><th scope="row">{escape(row.what)}</th><td>{_value(row, row.score)}</td>'
        f"<td>{_value(row, row.previous)}</td><td>{_value(row, row.change, signed=True)}</td><td>{_limit(row)}</td>"
        f"<td class='v {_tone(row.passed)}'>{'passed' if row.passed else 'refused'}</td></tr>"
        for row in found.rows[: 5 * SHOWN_ROWS]
    )
    reasons = "".join(f"<li>{escape(reason)}</li>" for reason in found.reasons[:SHOWN_ROWS])
    budget = ""
    if found.budget is not None:
        one = found.budget
        budget = (
            f"<p class='sub'>Serving, measured on {one.texts} texts one by one ({escape(one.machine)}): p50 {one.p50_ms:.3g} ms, "
            f"p99 {one.p99_ms:.3g} ms, {one.memory_gb:.2f} GB resident.</p>"
        )
        if one.projected is not None:
            far = one.projected
            budget += (
                f"<p class='sub'><b>Projected, not measured</b>, over a 7B base: p99 {far.p99_ms:,.0f} ms, "
                f"{far.memory_gb:.1f} GB. {escape(far.formula)}.</p>"
            )
    body = (
        f'<div class="cards"><article class="wide"><h3 class="{_tone(found.passed)}">{escape(found.candidate or "the candidate")} '
        f"against {escape(found.baseline or 'nothing')}: {said}</h3>"
        + (f"<ul class='aside'>{reasons}</ul>" if reasons else "")
        + '<div class="scroll"><table class="plain"><caption>What the gate looked at</caption><thead><tr>'
        + "".join(f'<th scope="col">{name}</th>' for name in ("line", "score", "before", "change", "limit", "verdict"))
        + f"</tr></thead><tbody>{rows}</tbody></table></div>{budget}</article></div>"
    )
    return _section("gate", "The gate's verdict", body)


def _drift(data: ReportData) -> str:
    found = data.status
    if found is None:
        return ""
    new = found.new
    due = "A round is due: " + "; ".join(found.reasons) + "." if found.due else "No round is due."
    says = f"{new.rows:,} records are new to production, {new.training_rows:,} of them for training. {due}"
    unseen = [f"{one.column} {one.value} ({one.rows:,})" for one in (new.unseen or [])[:8]]
    if unseen:
        says += f" Never seen by production: {', '.join(unseen)}."
    body = f"<p>{escape(says)}</p>"
    if new.drift:
        worst = sorted(new.drift, key=lambda one: -_over(one))[:SHOWN_SLICES]
        drawn = bars(
            [
                Bar(
                    f"{one.column} ({one.what})",
                    (
                        Part(
                            min(_over(one), 3.0),
                            "over" if one.drifted else "under",
                            f"{one.column}: {one.measure} {one.score:.3f}, line {one.line:.3f}",
                        ),
                    ),
                    f"{_over(one):.2f}× its line",
                )
                for one in worst
            ],
            key="drift",
            title="Drift of what is new, as multiples of each line",
            scale=3.0,
        )
        table = _table(
            "Drift by column",
            ["column", "of", "measure", "score", "line", "drifted", "telling"],
            [
                [
                    one.column,
                    one.what,
                    one.measure,
                    f"{one.score:.3f}",
                    f"{one.line:.3f}",
                    "yes" if one.drifted else "no",
                    _some(one.telling),
                ]
                for one in new.drift[:SHOWN_ROWS]
            ],
            plain=True,
        )
        body += f'<div class="cards"><article class="wide split"><div>{drawn}</div><div class="scroll">{table}</div></article></div>'
    return _section("drift", "What is new, and how far it has drifted", body)


def _over(one: ColumnDrift) -> float:
    return one.score / one.line if one.line else 0.0


def _audit(data: ReportData) -> str:
    found = data.audit
    if found is None:
        return ""
    rows = "".join(
        f'<tr><th scope="row">{escape(one.check)}</th><td class="v {_tone(None if one.skipped else not one.findings)}">'
        f"{'skipped' if one.skipped else f'{one.findings:,}'}</td><td class='says'>{escape(one.skipped or one.says)}</td></tr>"
        for one in found.checks
    )
    listed = "".join(
        f"<li>{escape(one.where)}: {escape(one.says)}<code>{escape(one.remedy)}</code></li>"
        for one in found.findings[:8]
    )
    more = len(found.findings) - 8
    listed += f"<li>and {more:,} more: <code>treering audit {escape(found.ref)}</code></li>" if more > 0 else ""
    body = (
        '<div class="cards"><article class="wide"><div class="scroll"><table class="plain"><caption>Checks of the newest snapshot</caption>'
        '<thead><tr><th scope="col">check</th><th scope="col">findings</th><th scope="col">what was found</th></tr></thead>'
        f"<tbody>{rows}</tbody></table></div>{f'<ul class=aside>{listed}</ul>' if listed else ''}</article></div>"
    )
    return _section("audit", f"Audit of {found.ref}", body)


def _registry(data: ReportData) -> str:
    if not data.adapters:
        return ""
    said = {True: "passed", False: "refused", None: "not asked"}
    adapters = _table(
        "Adapters, the newest first",
        ["adapter", "status", "gate", "strategy", "parent", "round", "trained on", "made"],
        [
            [one.ref, one.status, said[one.passed], one.strategy, one.parent, one.run, shortened(one.trained_on, data.corpus), f"{one.created_at:%Y-%m-%d %H:%M}"]
            for one in reversed(data.adapters[-5 * SHOWN_ROWS :])
        ],
        plain=True,
    )  # fmt: skip
    rounds = ""
    if data.rounds:
        rounds = _table(
            "Rounds, the newest first",
            ["round", "outcome", "adapter", "replay", "average", "BWT", "why not"],
            [
                [one.number, "interrupted" if one.outcome == "planned" else one.outcome, one.adapter, f"{100 * (one.share or 0):g} %", points(one.average), points(one.bwt, signed=True), "; ".join(one.why)[:200]]
                for one in reversed(data.rounds[-SHOWN_ROWS:])
            ],
            plain=True,
        )  # fmt: skip
    body = f'<div class="cards"><article class="wide"><div class="scroll">{adapters}</div></article>'
    body += f'<article class="wide"><div class="scroll">{rounds}</div></article>' if rounds else ""
    return _section("registry", "Registry", body + "</div>")


def _notes(data: ReportData) -> str:
    missing = "".join(f"<li>{escape(one)}</li>" for one in data.missing)
    left_out = f"<h3>What isn't here</h3><ul class='aside'>{missing}</ul>" if missing else ""
    return (
        f'<section class="notes" id="notes"><h2>How to read it</h2>{HOW_TO_READ}{left_out}'
        f"<p class='about'>treering {escape(data.version)} · {escape(data.store)}</p></section>"
    )


# --- small pieces --------------------------------------------------------------------------------------------------------


def _section(key: str, title: str, body: str, lead: str = "") -> str:
    said = f'<p class="sub">{escape(lead)}</p>' if lead else ""
    return f'<section id="{key}" class="part" aria-labelledby="{key}-h"><h2 id="{key}-h">{escape(title)}</h2>{said}\n{body}</section>'


def _tables(tables: Iterable[str]) -> str:
    inside = "".join(f'<div class="scroll">{one}</div>' for one in tables)
    return f"<details><summary>As tables</summary>{inside}</details>" if inside else ""


def _table(caption: str, heads: Sequence[str], rows: Sequence[Sequence[object]], *, plain: bool = False) -> str:
    """`plain`: words rather than figures, so set flush left."""
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in heads)
    body = "".join(
        "<tr>"
        + "".join(
            f'<th scope="row">{escape(str(value))}</th>' if n == 0 else f"<td>{escape(_cell(value))}</td>"
            for n, value in enumerate(row)
        )
        + "</tr>"
        for row in rows
    )
    kind = ' class="plain"' if plain else ""
    return (
        f"<table{kind}><caption>{escape(caption)}</caption><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
    )


def _cell(value: object) -> str:
    if value is None:
        return "·"
    if isinstance(value, int):
        return f"{value:,}"
    return re.sub(r"^-(?=\d)", "−", str(value))


def _points(value: float, *, signed: bool = False) -> str:
    return (
        "<span class=missing>not defined</span>"
        if math.isnan(value)
        else points(value, signed=signed).replace("-", "−")
    )


def _value(row: CheckedRow, value: float | None, *, signed: bool = False) -> str:
    if row.unit == "points" or value is None:
        return points(value, signed=signed).replace("-", "−")
    return f"{value:.3g} {row.unit}"


def _limit(row: CheckedRow) -> str:
    if row.maximum is not None:
        return f"≤ {_value(row, row.maximum)}"
    return "·" if row.minimum is None else f"≥ {_value(row, row.minimum)}"


def _tone(ok: bool | None) -> str:
    return {True: "kept", False: "severe", None: ""}[ok]


def _some(names: Sequence[str], most: int = 4) -> str:
    if not names:
        return "·"
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def _short(name: str | None) -> str:
    return "unknown" if name is None else name.rstrip("/").rpartition("/")[2][:40]


RULES = """
.mark span { color:var(--soft); font-weight:400 }
.hero { display:grid; grid-template-columns:minmax(0,1fr); gap:1.4rem 3rem; align-items:center; margin-top:.9rem; padding:clamp(1.2rem,3vw,2.2rem);
 background:var(--card); border:1px solid var(--line); border-top:4px solid var(--soft); border-radius:16px }
.hero > * { min-width:0 }
.is-kept { border-top-color:var(--good) } .is-slight { border-top-color:var(--warn) } .is-severe { border-top-color:var(--bad) }
@media (min-width:58rem) { .hero:has(figure) { grid-template-columns:minmax(0,1fr) minmax(0,1.08fr) } }
.hero h1 { font-size:clamp(1.7rem,4.2vw,2.7rem); margin:0 } .is-kept h1 { color:var(--good) }
.is-slight h1 { color:var(--warn) } .is-severe h1 { color:var(--bad) }
.lead { margin-top:.75rem; font-size:1.03rem; max-width:58ch }
.hero .figures { display:grid; grid-template-columns:repeat(auto-fit,minmax(8.4rem,1fr)); margin:1.4rem 0 1.2rem; gap:1rem 1.6rem } .figures p { font-size:.76rem; color:var(--soft); max-width:11rem; line-height:1.35 }
.figures .severe dd { color:var(--bad) } .figures .slight dd { color:var(--warn) } .figures .kept dd { color:var(--good) }
.about { font-size:.84rem; color:var(--soft); overflow-wrap:anywhere }
figcaption { font-size:.86rem; color:var(--soft); margin-bottom:.5rem } figcaption b { color:var(--ink); font-weight:600 }
.part { margin-top:3rem } .part > h2 { font-size:1.28rem; letter-spacing:-.01em } .part > p { margin-top:.25rem }
h3 { font-size:1rem; font-weight:620; overflow-wrap:anywhere } h3.severe { color:var(--bad) } h3.kept { color:var(--good) }
.sub { color:var(--soft); font-size:.9rem; max-width:86ch } article > .sub { margin:.1rem 0 .8rem }
.cards { display:grid; grid-template-columns:repeat(auto-fit,minmax(min(100%,25rem),1fr)); gap:1.1rem; margin-top:1rem }
.cards .wide { grid-column:1/-1 } .cards .wide > .chart { max-width:36rem } .part .key { margin-top:.9rem } .part > details { margin-top:1.1rem }
.questions { list-style:none; padding:0; display:grid; grid-template-columns:repeat(auto-fit,minmax(min(100%,19rem),1fr)); gap:1.1rem; margin-top:1rem }
.questions li { background:var(--card); border:1px solid var(--line); border-left:4px solid var(--line); border-radius:12px; padding:1.05rem 1.2rem; font-size:.88rem }
.questions li.kept { border-left-color:var(--good) } .questions li.severe { border-left-color:var(--bad) }
.questions h3 { font-size:.92rem; font-weight:560; color:var(--soft); line-height:1.35 }
.questions .short { font-size:1.25rem; font-weight:620; letter-spacing:-.01em; margin:.35rem 0 .3rem }
.questions .kept .short { color:var(--good) } .questions .severe .short { color:var(--bad) }
.plain td, .plain th { text-align:left; vertical-align:top } .plain .says { white-space:normal; min-width:17rem }
.v.kept { color:var(--good) } .v.severe { color:var(--bad); font-weight:600 }
@media (min-width:58rem) { .split { display:grid; grid-template-columns:minmax(0,1fr) minmax(0,1fr); gap:2.4rem; align-items:start } }
.split > * { min-width:0 } .split table { margin-top:0 } article > .scroll:first-child > table { margin-top:0 }
.scroll > svg.chart { margin:0 auto }
caption { white-space:nowrap } .part table { font-size:.87rem; margin-top:.7rem }
code { font:.84em/1.5 ui-monospace,SFMono-Regular,Menlo,Consolas,monospace; background:var(--tint); border-radius:5px; padding:.1em .45em; overflow-wrap:anywhere;
 display:inline-block; margin-left:.45rem } .says code { display:block; width:fit-content; margin:.3rem 0 0 }
.notes h3 { margin-top:1.4rem } .notes .about { margin-top:1.6rem }
.k { display:inline-block; width:12px; height:12px; border-radius:4px; margin:0 .2rem 0 .55rem; vertical-align:-1px }
.k.then { border-radius:50%; border:2px solid var(--soft) } .k.now { border-radius:50%; background:var(--good) }
.k.drift, .k.middle { background:var(--old) } .k.loss { background:var(--bad) } .k.head, .k.new, .k.taken { background:var(--new) }
.k.tail, .k.general { background:var(--warn) } .k.replay { background:var(--old) } .k.left { background:var(--line) }
.chart text { font-size:12.5px } svg.chart .boxed { font-size:12.5px; font-weight:600; fill:var(--ink) }
.chart .grid { stroke:var(--line); stroke-width:1 } .chart .hit { fill:transparent }
.chart .then { fill:var(--card); stroke:var(--soft); stroke-width:2 } .chart .now { fill:var(--good) } .chart .span { stroke:var(--good); stroke-width:3; opacity:.55 }
.chart .lost .now { fill:var(--bad) } .chart .lost .span { stroke:var(--bad) } .chart .delta { fill:var(--soft); font-variant-numeric:tabular-nums }
.chart .lost .delta { fill:var(--bad); font-weight:600 } .chart g:hover > .hit { fill:var(--tint); stroke:none }
.chart .curve { fill:none; stroke:var(--new); stroke-width:2.5; stroke-linejoin:round } .chart .point { fill:var(--new); stroke:var(--card); stroke-width:1.5 }
.chart .below { fill:var(--bad) } .chart .danger { fill:var(--bad); opacity:.07 }
.chart .level { stroke-width:1.5; stroke-dasharray:5 4 } .chart line.severe { stroke:var(--bad) } .chart line.gate { stroke:var(--warn) }
.chart text.severe { fill:var(--bad) } .chart text.gate { fill:var(--warn) }
.chart .drift, .chart .middle, .chart .replay { fill:var(--old) } .chart .loss, .chart .over { fill:var(--bad) }
.chart .head, .chart .new, .chart .taken, .chart .under { fill:var(--new) } .chart .tail, .chart .general { fill:var(--warn) } .chart rect.left { fill:var(--line) }
.chart .edge { fill:none } .chart .fresh { stroke:var(--new); stroke-width:2.4 } .chart .again { stroke:var(--old); stroke-width:1; opacity:.5 }
.chart .parent { stroke:var(--soft); stroke-width:1.4; stroke-dasharray:3 3 }
.chart .ringed circle { fill:var(--card); stroke:var(--new); stroke-width:1.6 } .chart .pruned circle { stroke:var(--soft); stroke-dasharray:2 3 }
.chart .box rect { fill:var(--card); stroke:var(--soft); stroke-width:1.5 } .chart .production rect { fill:var(--good); stroke:var(--good) }
svg.chart .production .boxed { fill:var(--card) } .chart .refused rect { stroke:var(--bad) } svg.chart .refused .boxed { fill:var(--bad) }
.chart .retired rect { stroke:var(--line) } svg.chart .retired .boxed { fill:var(--soft) }
@media (max-width:40rem) { .scroll > svg { min-width:30rem } .scroll > svg.chart { min-width:0 }
 .few.chart text { font-size:19px } .bars.chart { min-width:25rem } article:has(> .bars), .split > div:has(> .bars) { overflow-x:auto } .part { margin-top:2.3rem } }
@media print { .part { break-inside:auto } .cards, .questions { display:block } .cards > *, .questions li { margin-bottom:1rem; break-inside:avoid }
 .hero { break-inside:avoid } details::details-content { content-visibility:visible; block-size:auto } .scroll { overflow:visible } }
"""
