"""PURE. The drawings of the report beside its heatmaps: then and now, curves with gate lines, bars, and the lineage.

Each is one inline `<svg>` with a title for those who can't see it and hover text for those who can; the page sets the colours by
class, so that both themes draw the same lines.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from treering.evaluation.matrix import points

__all__ = ["Bar", "Level", "Node", "Part", "Slope", "bars", "curve", "lineage", "slopes"]

WIDTH = 520
LARGE_CHAR = 11.6  # of a 19 px character
LABEL = 26  # characters of a label at most
CHAR = 7.4  # width of a 12.5 px character in the widest of the usual fonts


@dataclass(frozen=True, slots=True)
class Slope:
    """One slice: its score right after it was learnt, and now; fractions of 1."""

    name: str
    then: float
    now: float


@dataclass(frozen=True, slots=True)
class Level:
    """A horizontal line that something must not cross."""

    name: str
    at: float
    kind: str  # "gate" or "severe"


@dataclass(frozen=True, slots=True)
class Part:
    """A piece of a bar."""

    value: float
    kind: str  # class of its colour
    says: str


@dataclass(frozen=True, slots=True)
class Bar:
    """One bar, its pieces end to end, and what is written behind it."""

    name: str
    parts: tuple[Part, ...]
    note: str = ""


@dataclass(frozen=True, slots=True)
class Node:
    """A snapshot or an adapter of the lineage; `sources` are (number of a snapshot node, whether it was new to it)."""

    name: str
    says: str
    kind: str
    weight: float = 1.0
    parent: int | None = None
    sources: tuple[tuple[int, bool], ...] = ()


def slopes(found: Sequence[Slope], *, key: str, tolerance: float) -> str:
    """A row per slice on one scale: a ring where it stood when it was learnt, a dot where it stands now."""
    longest = max(len(_cut(one.name)) for one in found)
    few = longest <= 6  # there is room for larger letters, which a phone needs; else it scrolls
    left = 16 + longest * (LARGE_CHAR if few else CHAR)
    row, top, right = 27, 30, 70 if few else 52
    low = max(0.0, math.floor(10 * (min(min(one.then, one.now) for one in found) - 0.02)) / 10)
    height = top + row * len(found) + 8

    def x(score: float) -> float:
        return left + (score - low) / (1 - low) * (WIDTH - left - right)

    out = [
        _open(
            WIDTH,
            height,
            key,
            "Each slice, when it was learnt and now",
            f"{len(found)} slices; the table has all",
            kind="few",
        )
    ]
    for tick in _ticks(low, 1.0, 5):
        out.append(f'<line class="grid" x1="{x(tick):.1f}" x2="{x(tick):.1f}" y1="{top - 6}" y2="{height - 8}"/>')
        out.append(_text(x(tick), top - 13, f"{100 * tick:.0f}", "axis", "middle"))
    for n, one in enumerate(found):
        y = top + row * (n + 0.5)
        drop = one.then - one.now
        kind = "lost" if drop > tolerance else "held"
        says = (
            f"{one.name}: {points(one.then)} when it was learnt, {points(one.now)} now ({points(-drop, signed=True)})"
        )
        out.append(f'<g class="{kind}"><title>{escape(says)}</title>')
        out.append(f'<rect class="hit" x="0" y="{y - row / 2:.1f}" width="{WIDTH}" height="{row}"/>')
        out.append(_text(left - 12, y, _cut(one.name), "axis", "end"))
        out.append(f'<line class="span" x1="{x(one.then):.1f}" x2="{x(one.now):.1f}" y1="{y:.1f}" y2="{y:.1f}"/>')
        out.append(f'<circle class="then" cx="{x(one.then):.1f}" cy="{y:.1f}" r="5.5"/>')
        out.append(f'<circle class="now" cx="{x(one.now):.1f}" cy="{y:.1f}" r="5.5"/>')
        out.append(_text(WIDTH - 4, y, points(-drop, signed=True).replace("-", "−"), "delta", "end"))
        out.append("</g>")
    return "".join([*out, "</svg>"])


def curve(
    found: Sequence[tuple[str, float | None]],
    *,
    key: str,
    title: str,
    levels: Sequence[Level] = (),
    signed: bool = False,
) -> str:
    """A value after each round, and the lines that it must stay above. Fractions of 1, drawn in points of 100."""
    left, right, top, bottom, height = 42, 16, 16, 30, 210
    known = [value for _, value in found if value is not None]
    every = [*known, *(level.at for level in levels), *([0.0] if signed else [])]
    low, high = min(every), max(every)
    pad = max(0.01, 0.12 * (high - low))
    low, high = low - pad, (max(high, 0.0) + pad / 2 if signed else min(1.0, high + pad))

    def x(n: int) -> float:
        return left + (n + 0.5) * (WIDTH - left - right) / max(1, len(found))

    def y(value: float) -> float:
        return top + (high - value) / (high - low) * (height - top - bottom)

    out = [
        _open(
            WIDTH,
            height,
            key,
            title,
            ", ".join(f"{name}: {points(v, signed=signed)}" for name, v in found[-6:]),
            kind="few",
        )
    ]
    severe = next((level for level in levels if level.kind == "severe"), None)
    if severe is not None:
        out.append(
            f'<rect class="danger" x="{left}" y="{y(severe.at):.1f}" width="{WIDTH - left - right}" '
            f'height="{max(0.0, height - bottom - y(severe.at)):.1f}"/>'
        )
    for tick in _ticks(low, high, 4):
        out.append(f'<line class="grid" x1="{left}" x2="{WIDTH - right}" y1="{y(tick):.1f}" y2="{y(tick):.1f}"/>')
        text = f"{100 * tick:+.0f}".replace("-", "−").replace("+0", "0") if signed else f"{100 * tick:.0f}"
        out.append(_text(left - 8, y(tick), text, "axis", "end"))
    for level in levels:
        at = y(level.at)
        out.append(f'<line class="level {level.kind}" x1="{left}" x2="{WIDTH - right}" y1="{at:.1f}" y2="{at:.1f}"/>')
        beside = at + 10 if level.kind == "severe" else at - 9  # two lines may lie close together
        out.append(_text(WIDTH - right - 4, beside, level.name, f"axis {level.kind}", "end"))
    path, pen = [], "M"
    for n, (_, value) in enumerate(found):
        if value is None:
            pen = "M"
            continue
        path.append(f"{pen}{x(n):.1f} {y(value):.1f}")
        pen = "L"
    out.append(f'<path class="curve" d="{" ".join(path)}"/>')
    every_nth = math.ceil(len(found) / 10)
    for n, (name, value) in enumerate(found):
        if n % every_nth == 0:
            out.append(_text(x(n), height - 10, _cut(name, 8), "axis", "middle"))
        if value is not None:
            says = f"{name}: {points(value, signed=signed)}"
            bad = any(value < level.at for level in levels)
            out.append(f'<g><title>{escape(says)}</title><circle class="point{" below" if bad else ""}" ')
            out.append(f'cx="{x(n):.1f}" cy="{y(value):.1f}" r="4.5"/></g>')
    return "".join([*out, "</svg>"])


def bars(found: Sequence[Bar], *, key: str, title: str, scale: float | None = None) -> str:
    """A row per bar; `scale` is the value of a full row, by default the longest bar's."""
    left = 14 + CHAR * max(len(_cut(one.name)) for one in found)
    right = 12 + CHAR * max(len(one.note) for one in found)
    row, top = 27, 4
    longest = scale or max((sum(part.value for part in one.parts) for one in found), default=0.0) or 1.0
    room = max(60.0, WIDTH - left - right)
    height = top + row * len(found) + 4
    out = [_open(WIDTH, height, key, title, f"{len(found)} bars; the table has the figures", kind="bars")]
    for n, one in enumerate(found):
        y = top + row * n
        out.append(_text(left - 10, y + row / 2, _cut(one.name), "axis", "end", full=one.name))
        x = left
        for part in one.parts:
            width = min(room, part.value / longest * room)
            if width <= 0:
                continue
            out.append(f'<g><title>{escape(part.says)}</title><rect class="{part.kind}" x="{x:.1f}" y="{y + 5}" ')
            out.append(f'width="{max(1.5, width):.1f}" height="{row - 10}" rx="3"/></g>')
            x += width
        out.append(_text(x + 8, y + row / 2, one.note, "axis", "start"))
    return "".join([*out, "</svg>"])


def lineage(snapshots: Sequence[Node], adapters: Sequence[Node], *, key: str) -> str:
    """Snapshots above, adapters below: which was trained on which, and which continues which."""
    step, left = 74, 46
    columns = max(len(snapshots), len(adapters))
    width = left + step * columns
    above, below, height = 52, 178, 232
    top = max((one.weight for one in snapshots), default=1.0) or 1.0

    def at(n: int, of: int) -> float:
        return left / 2 + step * (n + 0.5) + step * (columns - of) / 2

    out = [
        _open(
            width,
            height,
            key,
            "Which adapter was trained on which snapshots",
            "Every edge stands in the tables.",
            fixed=True,
        )
    ]
    for n, one in enumerate(adapters):
        x = at(n, len(adapters))
        for number, new in sorted(one.sources, key=lambda edge: edge[1]):
            sx = at(number, len(snapshots))
            out.append(
                f'<path class="edge {"fresh" if new else "again"}" d="M{sx:.1f} {above + 18} '
                f'C{sx:.1f} {above + 74} {x:.1f} {below - 76} {x:.1f} {below - 17}"/>'
            )
        if one.parent is not None:
            px = at(one.parent, len(adapters))
            deep = below + 22 + min(26.0, 6.0 * abs(n - one.parent))
            out.append(
                f'<path class="edge parent" d="M{px:.1f} {below + 16} C{px:.1f} {deep:.1f} {x:.1f} {deep:.1f} {x:.1f} {below + 16}"/>'
            )
    for n, one in enumerate(snapshots):
        x = at(n, len(snapshots))
        r = 8 + 9 * math.sqrt(one.weight / top)
        out.append(f'<g class="ringed {one.kind}"><title>{escape(one.says)}</title>')
        out += [f'<circle cx="{x:.1f}" cy="{above}" r="{r * share:.1f}"/>' for share in (1.0, 0.66, 0.32)]
        out.append(_text(x, above - 30, _cut(one.name, 9), "axis", "middle"))
        out.append("</g>")
    for n, one in enumerate(adapters):
        x = at(n, len(adapters))
        out.append(f'<g class="box {one.kind}"><title>{escape(one.says)}</title>')
        out.append(f'<rect x="{x - 27:.1f}" y="{below - 16}" width="54" height="32" rx="9"/>')
        out.append(_text(x, below, _cut(one.name, 8), "boxed", "middle"))
        out.append("</g>")
    return "".join([*out, "</svg>"])


def _open(width: float, height: float, key: str, title: str, says: str, *, kind: str = "", fixed: bool = False) -> str:
    size = f' style="width:{width:.0f}px;max-width:none"' if fixed else ""
    return (
        f'<svg class="chart {kind}" viewBox="0 0 {width:.0f} {height:.0f}"{size} role="img" aria-labelledby="{key}-t {key}-d">'
        f'<title id="{key}-t">{escape(title)}</title><desc id="{key}-d">{escape(says)}</desc>'
    )


def _text(x: float, y: float, text: str, kind: str, anchor: str, *, full: str | None = None) -> str:
    hover = f"<title>{escape(full)}</title>" if full is not None and full != text else ""
    return (
        f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" dy=".35em" text-anchor="{anchor}">{hover}{escape(text)}</text>'
    )


def _cut(name: str, most: int = LABEL) -> str:
    return name if len(name) <= most else name[: most - 1] + "…"


def _ticks(low: float, high: float, about: int) -> list[float]:
    """Round values between low and high, some `about` of them."""
    span = high - low
    if span <= 0:
        return [low]
    raw = span / about
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * k for k in (1, 2, 5, 10) if power * k >= raw)
    first = math.ceil(low / step - 1e-9)
    return [k * step for k in range(first, math.floor(high / step + 1e-9) + 1)]
