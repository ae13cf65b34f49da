"""The page around the heatmaps, and the one place that writes it to disk."""

from __future__ import annotations

import math
import os
import tempfile
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path

from treering.errors import StoreError, UsageError
from treering.evaluation.colour import ramp, text_on
from treering.evaluation.heatmap import heatmap, legend, table
from treering.evaluation.matrix import ScoreMatrix, points

__all__ = [
    "HOW_TO_READ", "document", "fact_list", "figure", "panel", "render_matrices", "style", "write_matrices", "write_page",
]  # fmt: skip

Fact = str | tuple[str, str]

# A page that can't fetch or run anything even if a name slipped through the escaping.
POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"


def write_matrices(
    path: str | os.PathLike[str],
    matrices: Sequence[tuple[str, ScoreMatrix]],
    *,
    title: str = "Score matrices",
    facts: Iterable[Fact] = (),
) -> Path:
    """Write one HTML file with the matrices side by side; whole or not at all. Returns its absolute path.

    `matrices`: (name, matrix) in reading order; `facts`: lines, or (label, value) pairs, set above them. Every text is
    escaped. Raises UsageError without a matrix, StoreError when the file can't be written.
    """
    return write_page(path, render_matrices(matrices, title=title, facts=facts))


def write_page(path: str | os.PathLike[str], text: str) -> Path:
    """Write a page; whole or not at all. Returns its absolute path. Raises StoreError when it can't be written."""
    target = Path(path).absolute()
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(
            "w", encoding="utf-8", dir=target.parent, suffix=".part", delete=False
        ) as file:
            file.write(text)
        try:
            os.chmod(file.name, 0o644)
            os.replace(file.name, target)
        except OSError:
            os.unlink(file.name)
            raise
    except OSError as exc:
        raise StoreError(f"can't write the report to {target}: {exc.strerror or exc}", code="write-failed") from exc
    return target


def render_matrices(
    matrices: Sequence[tuple[str, ScoreMatrix]],
    *,
    title: str = "Score matrices",
    facts: Iterable[Fact] = (),
) -> str:
    """The page as text; the same arguments give the same bytes. Raises UsageError without a matrix."""
    if not matrices:
        raise UsageError("a report needs at least one score matrix", code="empty-report")
    panels = "\n".join(panel(k, name, matrix) for k, (name, matrix) in enumerate(matrices, start=1))
    tables = "\n".join(
        f'<div class="scroll">{table(m, f"{name}: {m.metric} in points of 100")}</div>' for name, m in matrices
    )
    crowded = max(len(matrix.slices) for _, matrix in matrices) > 8
    metrics = ", ".join(dict.fromkeys(m.metric for _, m in matrices))
    body = f"""<header>
<p class="mark">treering</p>
<h1>{escape(title)}</h1>
{fact_list(facts)}
</header>
<section class="panels{" stacked" if crowded else ""}" aria-label="Score matrices">
{panels}
</section>
<section class="key">
<p>{legend()} <span>{escape(metrics)} on held-out records, points of 100</span></p>
<p><span class="swatch" aria-hidden="true"></span> the round in which a slice was learnt: down from there, what became of it</p>
</section>
<section class="notes">
<h2>How to read it</h2>
{HOW_TO_READ}
</section>
<details>
<summary>The same numbers as tables</summary>
{tables}
</details>"""
    return document(title, body)


def document(title: str, body: str, *, rules: str = "") -> str:
    """A whole HTML document around `body`, with our style and `rules`, and nothing to fetch or run."""
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{POLICY}">
<meta name="color-scheme" content="light dark">
<link rel="icon" href="data:,">
<title>{escape(title)}</title>
<style>
{style()}{rules}
</style>
</head>
<body>
<main>
{body}
</main>
</body>
</html>
"""


HOW_TO_READ = """<dl>
<dt>Row, column</dt><dd>A row is one round of training, a column the held-out records of one slice. None of them was ever in a training batch.</dd>
<dt>Average</dt><dd>Mean of the last row, over the slices learnt by then.</dd>
<dt>BWT</dt><dd>Backward transfer: mean over slices learnt before the last round of (score after the last round − score right after the slice was learnt). Below zero is forgetting.</dd>
<dt>Forgetting</dt><dd>Mean over the same slices of (best score in any earlier round since it was learnt − score after the last round).</dd>
</dl>"""


def panel(number: int, name: str, matrix: ScoreMatrix) -> str:
    """One matrix with its three figures, as an article; `number` makes its ids unique on the page."""
    notes = "".join(f"<li>{escape(note)}</li>" for note in matrix.notes)
    return f"""<article aria-labelledby="m{number}-h">
<h2 id="m{number}-h">{escape(name)}</h2>
<dl class="figures">
<div><dt>Average</dt><dd>{figure(matrix.average)}</dd></div>
<div class="{_tone(matrix.bwt)}"><dt>BWT</dt><dd>{figure(matrix.bwt, signed=True)}</dd></div>
<div><dt>Forgetting</dt><dd>{figure(matrix.forgetting)}</dd></div>
</dl>
{heatmap(matrix, key=f"m{number}")}
{f'<ul class="aside">{notes}</ul>' if notes else ""}
</article>"""


def fact_list(facts: Iterable[Fact]) -> str:
    """Lines, or (label, value) pairs, as a definition list."""
    lines = []
    for fact in facts:
        label, value = ("", fact) if isinstance(fact, str) else fact
        lines.append(
            f"<div><dt>{escape(str(label))}</dt><dd>{escape(str(value))}</dd></div>"
            if label
            else f"<div><dd>{escape(value)}</dd></div>"
        )
    return f'<dl class="facts">{"".join(lines)}</dl>' if lines else ""


def figure(value: float, *, signed: bool = False) -> str:
    """A fraction in points, or that it isn't defined."""
    text = points(value, signed=signed).replace("-", "−")
    return '<span class="missing">not defined</span>' if math.isnan(value) else text


def _tone(bwt: float) -> str:
    """More than five points of backward loss is the line the literature and our gate call severe."""
    return "severe" if bwt < -0.05 else "kept"


def _scale(*, dark: bool) -> str:
    return "".join(f".s{k}{{fill:{c}}}.i{k}{{fill:{text_on(c)}}}" for k, c in enumerate(ramp(dark=dark)))


def style() -> str:
    """The rules of every page: colours of both themes, type, tables, drawings."""
    return f"""{LIGHT_TOKENS}
{_scale(dark=False)}
@media (prefers-color-scheme: dark) {{ @media screen {{
{DARK_TOKENS}
{_scale(dark=True)}
}} }}
{RULES}"""


LIGHT_TOKENS = """:root { color-scheme: light dark;
--page:#fbfaf6; --card:#ffffff; --ink:#17211d; --soft:#5b6762; --line:#e2e1d8; --bad:#a8321f; --good:#17614f;
--new:#1f7a63; --old:#7d93b8; --warn:#b9791a; --tint:#f3f1e9 }"""

DARK_TOKENS = """:root { --page:#121513; --card:#1a1e1b; --ink:#e9eee9; --soft:#9aa69f; --line:#2c332f;
--bad:#ff9a80; --good:#8fdcae; --new:#6cc79d; --old:#7f97c4; --warn:#e2b25c; --tint:#20251f }"""

RULES = """* { box-sizing:border-box; margin:0 }
body { background:var(--page); color:var(--ink); font:16px/1.55 system-ui,-apple-system,"Segoe UI",Inter,Roboto,"Helvetica Neue",sans-serif;
 -webkit-font-smoothing:antialiased }
main { max-width:1120px; margin:0 auto; padding:clamp(1.25rem,4vw,3.5rem) clamp(1rem,4vw,2.5rem) 4rem }
.mark { color:var(--good); font-weight:650; font-size:.82rem; letter-spacing:.08em }
h1 { font-size:clamp(1.5rem,3.4vw,2.15rem); line-height:1.18; letter-spacing:-.018em; font-weight:680; margin:.35rem 0 0; text-wrap:balance;
 overflow-wrap:anywhere }
h2 { font-size:1.06rem; line-height:1.35; font-weight:640; letter-spacing:-.004em; overflow-wrap:anywhere }
.facts { display:grid; grid-template-columns:fit-content(13rem) minmax(0,1fr); gap:.3rem 1.4rem; margin-top:1.1rem; font-size:.9rem; max-width:84ch }
.facts div { display:contents } .facts dd { overflow-wrap:anywhere } .facts dd:only-child { grid-column:1/-1 }
.facts dt, .figures dt, .notes dt { color:var(--soft) }
.panels { display:grid; grid-template-columns:repeat(auto-fit,minmax(min(100%,25rem),1fr)); gap:1.25rem; margin:2.2rem 0 1.1rem }
.stacked { grid-template-columns:1fr } .stacked svg { max-width:54rem !important }
article { background:var(--card); border:1px solid var(--line); border-radius:14px; padding:1.35rem 1.5rem 1.25rem; min-width:0 }
.figures { display:flex; flex-wrap:wrap; gap:.4rem 2.1rem; margin:.7rem 0 1rem }
.figures dt { font-size:.8rem }
.figures dd { font-size:1.72rem; line-height:1.15; font-weight:620; letter-spacing:-.022em; font-variant-numeric:tabular-nums }
.figures .missing { font-size:.95rem; font-weight:400; letter-spacing:0; color:var(--soft) }
.severe dd { color:var(--bad) } .kept dd { color:var(--good) }
svg { display:block; width:100%; height:auto }
svg text { font-family:inherit; font-variant-numeric:tabular-nums }
svg .axis { font-size:13px; fill:var(--soft) }
svg .n { font-size:15px; font-weight:560 }
svg .none { fill:none; stroke:var(--line); stroke-dasharray:3 3 }
svg .ring { fill:none; stroke:var(--card); stroke-width:1.5 }
g:hover > rect:first-of-type { stroke:var(--ink); stroke-width:1.5 }
.aside { margin:.9rem 0 0; padding-left:1.1rem; font-size:.86rem; color:var(--soft) }
.key { display:flex; flex-wrap:wrap; gap:.5rem 2.2rem; font-size:.86rem; color:var(--soft) }
.key p { display:flex; align-items:center; gap:.6rem }
.key .legend { width:228px; flex:none }
.swatch { width:22px; height:16px; border-radius:4px; background:var(--good); box-shadow:inset 0 0 0 1.5px var(--good),inset 0 0 0 3px var(--card); flex:none }
.notes { margin-top:2.4rem; max-width:74ch; font-size:.92rem }
.notes dl { display:grid; grid-template-columns:max-content 1fr; gap:.45rem 1.4rem; margin-top:.7rem }
details { margin-top:2.2rem; border-top:1px solid var(--line); padding-top:1.1rem; font-size:.9rem }
summary { cursor:pointer; font-weight:600 }
.scroll { overflow-x:auto }
table { border-collapse:collapse; margin-top:1.3rem; font-variant-numeric:tabular-nums }
caption { text-align:left; color:var(--soft); padding-bottom:.35rem }
th, td { padding:.32rem 1.1rem .32rem 0; text-align:right; border-bottom:1px solid var(--line); font-weight:400; white-space:nowrap }
th { color:var(--soft) } tbody th, thead th:first-child { text-align:left } td { color:var(--ink) }
@media (max-width:34rem) { .notes dl { grid-template-columns:1fr; gap:.1rem } .notes dd { margin-bottom:.6rem } article { padding:1.1rem } }
@media print { body { background:#fff } main { max-width:none; padding:0 } article { break-inside:avoid }
 svg rect { print-color-adjust:exact; -webkit-print-color-adjust:exact } }"""
