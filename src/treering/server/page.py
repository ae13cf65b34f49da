"""The live page: what comes in, what is refused, what was sealed, and whether the model forgets.

A page without data of its own, whose script fetches fragments of HTML with the reader's key. The fragments are drawn here,
with the report's own parts; every text in them is escaped.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from html import escape
from importlib import resources
from typing import TYPE_CHECKING, Any

import numpy as np
from fastapi import FastAPI, Request, Response

from treering.evaluation.heatmap import legend, table
from treering.evaluation.matrix import ScoreMatrix
from treering.registry import Registry
from treering.registry.scores import StoredScore, every_score
from treering.report.page import panel, style
from treering.server.requests import ERRORS, Allowed, service_of
from treering.server.writers import SECONDS_KEPT, Tally

if TYPE_CHECKING:
    from treering.front import Store
    from treering.server.service import Service

__all__ = ["add_page", "matrices_fragment", "overview_fragment", "stored_matrix"]

#: The page runs its own script and asks its own server; nothing else. Drawings say their width in a style attribute.
_POLICY = (
    "default-src 'none'; script-src 'self'; connect-src 'self'; style-src 'self' 'unsafe-inline'; img-src data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_LOOK_S = 2.0  # the store is asked at most so often, however many look
_MATRIX_S = 10.0
_SHOWN_SNAPSHOTS = 6


@dataclass(frozen=True, slots=True)
class _Facts:
    """What the store says of a corpus."""

    name: str
    record_type: str
    live_rows: int
    snapshots: Sequence[Any]


class _Kept:
    """An answer, kept for a while."""

    def __init__(self) -> None:
        self._found: dict[str, tuple[float, Any]] = {}

    def get(self, name: str, seconds: float, look: Callable[[], Any]) -> Any:
        """The answer under a name, found anew when it is older than so many seconds."""
        at, value = self._found.get(name, (-math.inf, None))
        if time.monotonic() - at > seconds:
            value = look()
            self._found[name] = (time.monotonic(), value)
        return value


def add_page(app: FastAPI) -> None:
    """Put the routes in."""
    kept = _Kept()

    @app.get("/", include_in_schema=False)
    async def page() -> Response:
        return Response(
            _asset("live.html"), media_type="text/html; charset=utf-8", headers={"content-security-policy": _POLICY}
        )

    @app.get("/page/live.js", include_in_schema=False)
    async def script() -> Response:
        return Response(_asset("live.js"), media_type="text/javascript; charset=utf-8")

    @app.get("/page/live.css", include_in_schema=False)
    async def sheet() -> Response:
        return Response(style() + _asset("live.css"), media_type="text/css; charset=utf-8")

    @app.get("/page/overview", tags=["page"], responses=ERRORS)
    async def overview(request: Request, access: Allowed) -> Response:
        """What comes in, corpus by corpus, as a fragment of HTML."""
        access.require("read")
        service = service_of(request)

        def draw() -> str:
            found = kept.get("overview", _LOOK_S, lambda: [_facts(one) for one in service.store.corpora()])
            return overview_fragment(service, [one for one in found if access.allows("read", one.name)])

        return _fragment(await service.read(draw))

    @app.get("/page/matrices", tags=["page"], responses=ERRORS)
    async def matrices(request: Request, access: Allowed) -> Response:
        """The score matrices of the lineages in use, as a fragment of HTML."""
        access.require("read")
        service = service_of(request)

        def look() -> list[tuple[str, ScoreMatrix]]:
            made = [(one.name, stored_matrix(service.store, one.name)) for one in service.store.corpora()]
            return [(name, matrix) for name, matrix in made if matrix is not None]

        def draw() -> str:
            found = kept.get("matrices", _MATRIX_S, look)
            return matrices_fragment([one for one in found if access.allows("read", one[0])])

        return _fragment(await service.read(draw))


def _fragment(text: str) -> Response:
    return Response(
        text, media_type="text/html; charset=utf-8", headers={"content-security-policy": "sandbox; " + _POLICY}
    )


@cache
def _asset(name: str) -> str:
    return (resources.files("treering.server") / "assets" / name).read_text("utf-8")


def _facts(corpus: Any) -> _Facts:
    return _Facts(corpus.name, corpus.record_type.name, corpus.live_rows(), corpus.snapshots())


def overview_fragment(service: Service, found: Sequence[_Facts]) -> str:
    """A card a corpus; `found` are the corpora that may be shown."""
    if not found:
        return '<p class="sub">No corpora here yet that this key may read.</p>'
    return f'<div class="cards">{"".join(_card(service, one) for one in found)}</div>'


def _card(service: Service, facts: _Facts) -> str:
    writer = service.writers.known(facts.name)
    tally = writer.tally if writer is not None else Tally()
    now = int(time.monotonic())
    each = [tally.seconds.get(second, 0) for second in range(now - SECONDS_KEPT, now)]
    rate = sum(each[-10:]) / 10
    name = escape(facts.name)
    figures = "".join(
        f'<div class="{tone}"><dt>{what}</dt><dd>{value}</dd></div>'
        for what, value, tone in (
            ("records/s", f"{rate:,.1f}" if rate < 100 else f"{rate:,.0f}", "kept" if rate else ""),
            ("stored", f"{tally.stored:,}", ""),
            ("duplicates", f"{tally.duplicates:,}", ""),
            ("refused", f"{tally.refused:,}", "severe" if tally.refused else ""),
        )
    )
    return f"""<article aria-label="{name}">
<h3>{name}</h3>
<p class="sub">{escape(facts.record_type)} records · {facts.live_rows:,} in live</p>
<dl class="figures">{figures}</dl>
{_sparkline(each, facts.name)}
{_refusals(tally)}
{_snapshots(facts)}
</article>"""


def _sparkline(each: Sequence[int], name: str) -> str:
    """Records a second over the last two minutes."""
    most = max(each)
    width, height = 360, 56
    step = width / len(each)
    bars = "".join(
        f'<rect class="new" x="{n * step:.1f}" y="{height - 1 - (height - 6) * count / most:.1f}" width="{step * 0.8:.1f}" '
        f'height="{(height - 6) * count / most:.1f}"/>'
        for n, count in enumerate(each)
        if count
    )
    says = f"{escape(name)}: records stored each second of the last two minutes, {most:,} at most"
    return (
        f'<svg class="chart spark" viewBox="0 0 {width} {height}" role="img" aria-label="{says}"><title>{says}</title>'
        f'<line class="grid" x1="0" y1="{height - 1}" x2="{width}" y2="{height - 1}"/>{bars}</svg>'
    )


def _refusals(tally: Tally) -> str:
    if not tally.problems:
        return ""
    items = "".join(
        f"<li><time>{datetime.fromtimestamp(at, UTC):%H:%M:%S}</time> "
        f"{escape('.'.join(map(str, problem.loc)) or 'record')}: {escape(problem.kind)}</li>"
        for at, problem in reversed(tally.problems)
    )
    return f'<h4>Last refusals</h4><ul class="aside">{items}</ul>'


def _snapshots(facts: _Facts) -> str:
    if not facts.snapshots:
        return '<p class="sub">No snapshots yet.</p>'
    rows = "".join(
        f'<tr><th scope="row">{escape(one.name)}</th><td>{one.rows:,}</td><td>{one.created_at:%Y-%m-%d %H:%M}</td></tr>'
        for one in list(reversed(facts.snapshots))[:_SHOWN_SNAPSHOTS]
    )
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="Snapshots of {escape(facts.name)}"><table><caption>'
        f"Snapshots, the newest of {len(facts.snapshots):,} first</caption><thead><tr>"
        '<th scope="col">snapshot</th><th scope="col">records</th><th scope="col">sealed (UTC)</th></tr></thead>'
        f"<tbody>{rows}</tbody></table></div>"
    )


def matrices_fragment(found: Sequence[tuple[str, ScoreMatrix]]) -> str:
    """A panel a corpus: the heatmap of its matrix, and the same numbers as a table."""
    if not found:
        return '<p class="sub">No scores yet: they come with the first round.</p>'
    panels = "".join(panel(k, name, matrix) for k, (name, matrix) in enumerate(found, 1))
    tables = "".join(
        f'<div class="scroll" tabindex="0" role="region" aria-label="Scores of {escape(name)}">'
        f"{table(matrix, f'{name}: {matrix.metric} in points of 100')}</div>"
        for name, matrix in found
    )
    return (
        f'<div class="panels">{panels}</div><div class="key"><p>{legend()} <span>points of 100, on held-out records</span></p></div>'
        f'<details id="numbers"><summary>The same numbers as tables</summary>{tables}</details>'
    )


def stored_matrix(store: Store, corpus: str) -> ScoreMatrix | None:
    """The score matrix of the lineage in production (else of the newest adapter), of the scores that are stored.

    Measures nothing, unlike `treering.score_matrix`: None without an adapter or a score of a snapshot it learnt.
    """
    registry = Registry(store, corpus)
    state = registry.state()
    number = state.production if state.production is not None else max(state.statuses, default=None)
    if number is None:
        return None
    lineage = registry.lineage(f"{corpus}:{number}")
    metric = lineage[-1].metric
    scores: list[dict[str, StoredScore]] = [
        {one.slice: one for one in every_score(store, record) if one.metric == metric} for record in lineage
    ]
    learned: dict[str, int] = {}
    for round_, record in enumerate(lineage):
        for ref in record.trained_on:
            if any(ref in found for found in scores):
                learned.setdefault(ref, round_)
    if not learned:
        return None
    values = np.full((len(lineage), len(learned)), math.nan)
    for i, found in enumerate(scores):
        for j, ref in enumerate(learned):
            if ref in found:
                values[i, j] = found[ref].score
    return ScoreMatrix(
        tuple(one.ref for one in lineage), tuple(learned), values, learned_in=tuple(learned.values()), metric=metric
    )
