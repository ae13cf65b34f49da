"""PURE. One score matrix as an inline SVG heatmap and as an HTML table that says the same."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from html import escape

import numpy as np

from treering.evaluation.colour import STEPS, ramp, step_of, text_on
from treering.evaluation.matrix import ScoreMatrix, points

__all__ = ["heatmap", "legend", "notebook_card", "short_names", "table"]

# In SVG units, which are CSS pixels when nothing has to be scaled down.
CELL_H = 46
GAP = 3
DOMAIN = "[domain="
LONGEST = 24  # characters of a label; the whole name is in its hover text
MANY_CELLS = 400
CHAR = 7.3  # mean width of a 13 px label character


def heatmap(matrix: ScoreMatrix, *, key: str) -> str:
    """An `<svg>`: a row per round, a column per slice, the number in each cell, details as hover text.

    `key` makes the ids of this page unique. A ring marks the cell where a slice was learnt. Beyond 400 cells there is room
    for colours alone, and a column tells on hover what became of it: the page stays small.
    """
    if matrix.values.size > MANY_CELLS:
        return _dense(matrix, key=key)
    slices, rounds = short_names(matrix.slices), _cut(matrix.rounds)
    if max(map(len, rounds)) > 14:
        rounds = short_names(matrix.rounds)
    n_rows, n_cols = matrix.values.shape
    cell_h = CELL_H if n_cols <= 6 else 40
    decimals = 1 if n_cols <= 10 else 0
    left = max(46.0, 16 + CHAR * max(len(name) for name in rounds))
    cell_w = max(
        42.0, min(104.0, (470 - left) / n_cols)
    )  # fills the usual panel; beyond ten columns the page scales it
    longest = CHAR * max(len(name) for name in slices)
    slanted = longest > cell_w - 6
    top = 20 + (longest * 0.72 if slanted else 12)
    right = longest * 0.62 if slanted else 4.0
    width, height = left + n_cols * cell_w + right, top + n_rows * cell_h + 2
    out = [
        f'<svg viewBox="0 0 {width:.0f} {height:.0f}" style="max-width:{width * 1.15:.0f}px" role="img" '
        f'aria-labelledby="{key}-t {key}-d">',
        f'<title id="{key}-t">Score matrix, {n_rows} rounds by {n_cols} slices</title>',
        f'<desc id="{key}-d">Average {points(matrix.average)}, backward transfer {points(matrix.bwt, signed=True)} '
        "points. The table below holds every number.</desc>",
    ]
    for j, name in enumerate(slices):
        x = left + (j + 0.5) * cell_w
        turn = f' transform="rotate(-38 {x - 6:.1f} {top - 9:.1f})" text-anchor="start"' if slanted else ""
        at = f'x="{x - 6:.1f}"' if slanted else f'x="{x:.1f}" text-anchor="middle"'
        out.append(f'<text class="axis" {at} y="{top - 9:.1f}"{turn}>{_named(name, matrix.slices[j])}</text>')
    for i, name in enumerate(rounds):
        y = top + i * cell_h
        middle = y + cell_h / 2
        out.append(
            f'<text class="axis" x="{left - 10:.1f}" y="{middle:.1f}" dy=".35em" text-anchor="end">'
            f"{_named(name, matrix.rounds[i])}</text>"
        )
        out.extend(
            _cell(matrix, i, j, left + j * cell_w, y, cell_w - GAP, cell_h - GAP, decimals) for j in range(n_cols)
        )
    out.append("</svg>")
    return "\n".join(out)


def legend() -> str:
    """The colour scale, as a small `<svg>` from 0 to 100."""
    steps = [round(k / 20, 2) for k in range(21)]
    bars = "".join(
        f'<rect class="s{step_of(s)}" x="{24 + 8 * k}" y="2" width="8.2" height="12"/>' for k, s in enumerate(steps)
    )
    return (
        '<svg class="legend" viewBox="0 0 228 16" width="228" height="16" role="img" aria-label="Colour scale from 0 to 100">'
        f'<text class="axis" x="16" y="8" dy=".35em" text-anchor="end">0</text>{bars}'
        '<text class="axis" x="200" y="8" dy=".35em">100</text></svg>'
    )


def table(matrix: ScoreMatrix, caption: str) -> str:
    """The matrix as a `<table>` with row and column headers, in points of 100."""
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in matrix.slices)
    rows = []
    for name, values in zip(matrix.rounds, matrix.values.tolist(), strict=True):
        cells = "".join(f"<td>{'not evaluated' if math.isnan(v) else points(v)}</td>" for v in values)
        rows.append(f'<tr><th scope="row">{escape(name)}</th>{cells}</tr>')
    body = "\n".join(rows)
    return (
        f"<table><caption>{escape(caption)}</caption><thead><tr><th scope='col'>after round</th>{head}</tr></thead>\n"
        f"<tbody>{body}</tbody></table>"
    )


def notebook_card(matrix: ScoreMatrix) -> str:
    """The matrix as HTML that stands by itself: figures, heatmap, scale. A loss has no scale: its numbers stand in a table."""
    from treering.notebook import card
    from treering.notebook import table as plain_table

    higher = matrix.better == "higher"
    figures = [
        ("average", matrix.shown(matrix.average)),
        ("BWT", matrix.shown(matrix.bwt, signed=True)),
        ("forgetting", matrix.shown(matrix.forgetting)),
        *(("note", note) for note in matrix.notes),
    ]
    told = f"{matrix.metric}{', in points of 100' if higher else ''}"
    counts = [(len(matrix.rounds), "round"), (len(matrix.slices), "slice")]
    name = " by ".join(f"{count} {noun}{'' if count == 1 else 's'}" for count, noun in counts)
    if not higher:
        rows = [
            (round_, *(matrix.shown(value) for value in values))
            for round_, values in zip(matrix.rounds, matrix.values.tolist(), strict=True)
        ]
        heads = ["after", *matrix.slices]
        return card(f"score matrix, {told}", name, figures, body=plain_table(heads, rows, right=heads[1:]))
    # Ids and classes are the page's: a notebook holds many outputs, of which none may colour another.
    key = (
        "treering-"
        + hashlib.sha256(repr((matrix.rounds, matrix.slices)).encode() + matrix.values.tobytes()).hexdigest()[:12]
    )
    drawn = f'<div class="treering-matrix">{heatmap(matrix, key=key)}{legend()}</div>'
    light, dark = (
        ";".join(f"--s{k}:{colour};--i{k}:{text_on(colour)}" for k, colour in enumerate(ramp(dark=is_dark)))
        for is_dark in (False, True)
    )
    rules = _NOTEBOOK_RULES + "".join(
        f".treering-matrix .s{k}{{fill:var(--s{k})}}.treering-matrix .i{k}{{fill:var(--i{k})}}" for k in range(STEPS)
    )
    return card(f"score matrix, {told}", name, figures, body=drawn, light=light, dark=dark, rules=rules)


_NOTEBOOK_RULES = """.treering-matrix{margin-top:10px;width:560px;max-width:100%}.treering-matrix svg{display:block;width:100%;height:auto}
.treering-matrix svg.legend{width:228px;margin-top:8px}
.treering-matrix text{font-family:inherit}.treering-matrix .axis{font-size:13px;fill:var(--soft)}
.treering-matrix .n{font-size:15px;font-weight:560}.treering-matrix .none{fill:none;stroke:var(--line);stroke-dasharray:3 3}
.treering-matrix .ring{fill:none;stroke:var(--card);stroke-width:1.5}"""


def short_names(names: Sequence[str]) -> list[str]:
    """The names without what they all start with, up to and including the last `@`, `:` or `[domain=` of it."""
    if all(DOMAIN in name and name.endswith("]") for name in names):
        heads = {name.partition(DOMAIN)[0] for name in names}
        if len(heads) == 1:
            return _cut([name.partition(DOMAIN)[2][:-1] for name in names])
    first = names[0]
    cut = max(
        (k + 1 for k, c in enumerate(first) if c in "@:" and all(n.startswith(first[: k + 1]) for n in names)),
        default=0,
    )
    kept = first[cut - 1 : cut] if cut and first[cut - 1] == ":" else ""  # ":12" still looks like an adapter
    return _cut([kept + name[cut:] for name in names])


def _cut(names: Sequence[str]) -> list[str]:
    return [name if len(name) <= LONGEST else name[: LONGEST - 1] + "…" for name in names]


def _cell(matrix: ScoreMatrix, i: int, j: int, x: float, y: float, w: float, h: float, decimals: int) -> str:
    score, learned = float(matrix.values[i, j]), matrix.learned_in[j]
    where = f"{matrix.slices[j]} after {matrix.rounds[i]}"
    box = f'x="{x:.1f}" y="{y:.1f}" width="{w:.1f}" height="{h:.1f}" rx="5"'
    if math.isnan(score):
        return f'<g><title>{escape(where)}: not evaluated</title><rect class="none" {box}/></g>'
    hover = [f"{where}: {points(score)}"]
    ring = ""
    if i == learned:
        hover.append("learnt in this round")
        ring = (
            f'<rect class="ring" x="{x + 1.5:.1f}" y="{y + 1.5:.1f}" width="{w - 3:.1f}" height="{h - 3:.1f}" rx="4"/>'
        )
    elif learned is not None and i > learned and not math.isnan(then := float(matrix.values[learned, j])):
        hover.append(f"{points(score - then, signed=True)} since it was learnt")
    elif learned is None or i < learned:
        hover.append("not learnt yet")
    step = step_of(score)
    return (
        f"<g><title>{escape('; '.join(hover))}</title>"
        f'<rect class="s{step}" {box}/>{ring}'
        f'<text class="n i{step}" x="{x + w / 2:.1f}" y="{y + h / 2:.1f}" dy=".35em" text-anchor="middle">'
        f"{100 * score + 0.0:.{decimals}f}</text></g>"
    )


def _dense(matrix: ScoreMatrix, *, key: str) -> str:
    """Colours alone, one path a colour; every nth name."""
    n_rows, n_cols = matrix.values.shape
    slices, rounds = short_names(matrix.slices), short_names(matrix.rounds)
    side = max(5, min(16, 800 // max(n_rows, n_cols)))
    left, top = 20 + round(CHAR * max(map(len, rounds))), 26
    width, height = left + side * n_cols + 4, top + side * n_rows + 4
    drawn: dict[str, list[str]] = {}
    for (i, j), value in np.ndenumerate(matrix.values):
        if not math.isnan(value):
            drawn.setdefault(f"s{step_of(float(value))}", []).append(
                f"M{left + j * side} {top + i * side}h{side}v{side}h-{side}z"
            )
    out = [
        f'<svg viewBox="0 0 {width} {height}" style="max-width:{round(width * 1.15)}px" role="img" aria-labelledby="{key}-t {key}-d">',
        f'<title id="{key}-t">Score matrix, {n_rows} rounds by {n_cols} slices</title>',
        f'<desc id="{key}-d">Average {points(matrix.average)}, backward transfer {points(matrix.bwt, signed=True)} '
        "points. The table below has a row per slice.</desc>",
        *(f'<path class="{kind}" d="{"".join(squares)}"/>' for kind, squares in sorted(drawn.items())),
    ]
    nth = max(1, math.ceil(26 / side))
    for i in range(0, n_rows, nth):
        middle = top + (i + 0.5) * side
        out.append(
            f'<text class="axis" x="{left - 8}" y="{middle:.1f}" dy=".35em" text-anchor="end">{escape(rounds[i])}</text>'
        )
    wide = max(1, math.ceil(CHAR * (1 + max(map(len, slices))) / side))
    for j, name in enumerate(matrix.slices):
        if j % wide == 0:
            out.append(
                f'<text class="axis" x="{left + (j + 0.5) * side:.1f}" y="{top - 10}" text-anchor="middle">{escape(slices[j])}</text>'
            )
        learned, now = matrix.learned_in[j], float(matrix.values[-1, j])
        then = float(matrix.values[learned, j]) if learned is not None else math.nan
        says = f"{name}: {points(then)} when it was learnt, {points(now)} now"
        out.append(
            f'<g><title>{escape(says)}</title><rect x="{left + j * side}" y="{top}" width="{side}" '
            f'height="{side * n_rows}" fill="transparent"/></g>'
        )
    return "\n".join([*out, "</svg>"])


def _named(short: str, full: str) -> str:
    return escape(short) if short == full else f"<title>{escape(full)}</title>{escape(short)}"
