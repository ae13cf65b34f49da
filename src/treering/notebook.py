"""PURE. What notebooks show of our objects: small self-contained HTML, in light and in dark. Every text is escaped.

A card brings its own background: whatever theme surrounds it, it can be read. JupyterLab and VS Code say which theme they
are in; elsewhere what the browser prefers counts.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from typing import Any

__all__ = ["bar", "card", "table"]

LIGHT = "--card:#ffffff;--ink:#17211d;--soft:#5b6762;--line:#e2e1d8;--good:#17614f;color-scheme:light"
DARK = "--card:#1a1e1b;--ink:#e9eee9;--soft:#9aa69f;--line:#2c332f;--good:#8fdcae;color-scheme:dark"

_RULES = """.treering-card{background:var(--card);color:var(--ink);border:1px solid var(--line);border-radius:10px;
padding:12px 16px;margin:2px 0;display:inline-block;max-width:100%;box-sizing:border-box;overflow-x:auto;
font:13px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,sans-serif;font-variant-numeric:tabular-nums;text-align:left}
.treering-card b.name{font-size:15px;font-weight:650;overflow-wrap:anywhere}.treering-card .kind{color:var(--soft);margin-left:8px}
.treering-card dl{display:grid;grid-template-columns:max-content minmax(0,1fr);gap:1px 16px;margin:8px 0 0}
.treering-card dt{color:var(--soft);font-weight:400}.treering-card dd{margin:0;overflow-wrap:anywhere}
.treering-card table{border-collapse:collapse;margin:10px 0 0;border:0;background:none;color:inherit}
.treering-card th,.treering-card td{padding:2px 16px 2px 0;border:0;text-align:left;background:none;color:inherit;font-weight:400}
.treering-card th{color:var(--soft)}.treering-card .num{text-align:right}
.treering-card .bar{display:inline-block;height:8px;border-radius:4px;background:var(--good);vertical-align:middle}"""


def card(
    kind: str,
    name: str,
    facts: Iterable[tuple[str, Any]],
    *,
    body: str = "",
    light: str = "",
    dark: str = "",
    rules: str = "",
) -> str:
    """A card: what it is, what it is called, lines of (label, value), and `body`, which is HTML already.

    A value of None is left out. `light` and `dark`: CSS declarations for each theme; `rules`: rules that use them.
    """
    lines = "".join(
        f"<dt>{escape(label)}</dt><dd>{escape(str(value))}</dd>" for label, value in facts if value is not None
    )
    return (
        f"<style>{_themes(light, dark)}{_RULES}{rules}</style>"
        f'<div class="treering-card"><b class="name">{escape(name)}</b><span class="kind">{escape(kind)}</span>'
        f"{f'<dl>{lines}</dl>' if lines else ''}{body}</div>"
    )


def _themes(light: str, dark: str) -> str:
    one, other = f"{{{LIGHT};{light}}}", f"{{{DARK};{dark}}}"
    return (
        f".treering-card{one}@media (prefers-color-scheme:dark){{.treering-card{other}}}"
        f'[data-jp-theme-light="true"] .treering-card,body.vscode-light .treering-card{one}'
        f'[data-jp-theme-light="false"] .treering-card,body.vscode-dark .treering-card{other}'
    )


def table(heads: Sequence[str], rows: Iterable[Sequence[Any]], *, right: Sequence[str] = ()) -> str:
    """A table; cells that are `bar`s stand as they are, the columns named in `right` are flush right."""
    kinds = [' class="num"' if head in right else "" for head in heads]
    head = "".join(f'<th scope="col"{kind}>{escape(name)}</th>' for name, kind in zip(heads, kinds, strict=True))
    body = "".join(
        "<tr>" + "".join(f"<td{kind}>{_cell(cell)}</td>" for cell, kind in zip(row, kinds, strict=True)) + "</tr>"
        for row in rows
    )
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


class bar:  # noqa: N801  (reads as what it makes)
    """A share in [0, 1] as a bar and in percent."""

    def __init__(self, share: float) -> None:
        self.html = f'<span class="bar" style="width:{round(120 * share) or 1}px"></span> {100 * share:.1f} %'


def _cell(cell: Any) -> str:
    return cell.html if isinstance(cell, bar) else "·" if cell is None else escape(str(cell))
