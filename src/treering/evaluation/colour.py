"""PURE. A sequential colour scale for scores that reads in light and in dark.

One hue, lightness monotone, mixed in OKLab (Björn Ottosson, 2020) so that equal steps look equal. The low end recedes
into the page in either theme: what was lost fades away.
"""

from __future__ import annotations

__all__ = ["STEPS", "contrast", "mix", "ramp", "step_of", "text_on"]

STEPS = 21  # a step is 5 points: finer ones can't be told apart, and the number stands in the cell anyway

LIGHT = ("#f1f0e8", "#d3e2c8", "#93c39a", "#41927a", "#11594f")
DARK = ("#232724", "#274038", "#2f6b58", "#57a582", "#a9e3b4")

Lab = tuple[float, float, float]


def ramp(*, dark: bool) -> list[str]:
    """`STEPS` colours as #rrggbb, from score 0 to score 1."""
    stops = DARK if dark else LIGHT
    colours = []
    for step in range(STEPS):
        at = step / (STEPS - 1) * (len(stops) - 1)
        k = min(int(at), len(stops) - 2)
        colours.append(mix(stops[k], stops[k + 1], at - k))
    return colours


def step_of(score: float) -> int:
    """Index into `ramp` of a score in [0, 1]; scores beyond either end take its colour."""
    return round(min(max(score, 0.0), 1.0) * (STEPS - 1))


def mix(a: str, b: str, share: float) -> str:
    """The colour `share` of the way from `a` to `b`, share in [0, 1]."""
    x, y = _to_lab(a), _to_lab(b)
    return _to_hex((x[0] + (y[0] - x[0]) * share, x[1] + (y[1] - x[1]) * share, x[2] + (y[2] - x[2]) * share))


def text_on(background: str) -> str:
    """Near-black or near-white, whichever can be read better on `background`."""
    return max(("#030604", "#ffffff"), key=lambda ink: contrast(ink, background))


def contrast(a: str, b: str) -> float:
    """WCAG 2 contrast ratio of two colours, 1 to 21."""
    x, y = sorted((_luminance(a), _luminance(b)))
    return (y + 0.05) / (x + 0.05)


def _linear(colour: str) -> Lab:
    channels = (int(colour[k : k + 2], 16) / 255 for k in (1, 3, 5))
    r, g, b = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels)
    return r, g, b


def _luminance(colour: str) -> float:
    r, g, b = _linear(colour)
    return 0.2126 * r + 0.7152 * g + 0.0722 * b


def _to_lab(colour: str) -> Lab:
    r, g, b = _linear(colour)
    l = (0.4122214708 * r + 0.5363325363 * g + 0.0514459929 * b) ** (1 / 3)  # noqa: E741 - the source's names
    m = (0.2119034982 * r + 0.6806995451 * g + 0.1073969566 * b) ** (1 / 3)
    s = (0.0883024619 * r + 0.2817188376 * g + 0.6299787005 * b) ** (1 / 3)
    return (
        0.2104542553 * l + 0.7936177850 * m - 0.0040720468 * s,
        1.9779984951 * l - 2.4285922050 * m + 0.4505937099 * s,
        0.0259040371 * l + 0.7827717662 * m - 0.8086757660 * s,
    )


def _to_hex(lab: Lab) -> str:
    lightness, a, b = lab
    l = (lightness + 0.3963377774 * a + 0.2158037573 * b) ** 3  # noqa: E741
    m = (lightness - 0.1055613458 * a - 0.0638541728 * b) ** 3
    s = (lightness - 0.0894841775 * a - 1.2914855480 * b) ** 3
    linear = (
        4.0767416621 * l - 3.3077115913 * m + 0.2309699292 * s,
        -1.2684380046 * l + 2.6097574011 * m - 0.3413193965 * s,
        -0.0041960863 * l - 0.7034186147 * m + 1.7076147010 * s,
    )
    encoded = (12.92 * c if c <= 0.0031308 else 1.055 * c ** (1 / 2.4) - 0.055 for c in (max(0.0, c) for c in linear))
    return "#" + "".join(f"{round(255 * min(1.0, c)):02x}" for c in encoded)
