"""Grids, curves and code as HTML and SVG; every text from outside is escaped."""

from collections.abc import Sequence
from html import escape

from ..tasks.plots import ARC_PALETTE, SERIES, Grid


def grid_html(grid: Grid, label: str) -> str:
    """A grid as a table of coloured cells; `label` and the digits are what a screen reader says."""
    side = max(6, min(30, 150 // max(len(grid), len(grid[0]))))
    rows = "".join(
        "<tr>"
        + "".join(
            f'<td style="width:{side}px;height:{side}px;background:{ARC_PALETTE[cell % 10]}" data-color="{cell}"></td>'
            for cell in row
        )
        + "</tr>"
        for row in grid
    )
    words = "; ".join(" ".join(map(str, row)) for row in grid)
    return f'<table class="grid" role="img" aria-label="{escape(f"{label}: {words}")}">{rows}</table>'


def answers_html(titles: Sequence[str], grids: Sequence[Grid], truths: Sequence[Grid | None]) -> str:
    """Grids side by side under their titles; right or wrong where the truth is known."""
    figures = []
    for title, grid, truth in zip(titles, grids, truths, strict=True):
        verdict = ""
        if truth is not None:
            word = "right" if grid == truth else "wrong"
            verdict = f' <span class="{word}">{word}</span>'
        figures.append(
            f'<figure class="answer"><figcaption>{escape(title)}{verdict}</figcaption>{grid_html(grid, title)}</figure>'
        )
    return f'<div class="answers">{"".join(figures)}</div>'


def curve_svg(points: Sequence[tuple[int, float]]) -> str:
    """The best log-likelihood against the decoder evaluations spent."""
    finite = [(spent, value) for spent, value in points if value > -1e30]
    if not finite:
        return ""
    width, height, left, bottom, top = 400, 160, 70, 26, 12
    low, high = finite[0][1], finite[-1][1]
    most, span = max(finite[-1][0], 2), max(high - low, 1e-6)
    xy = [
        (
            left + (width - left - 10) * (spent - 1) / (most - 1),
            height - bottom - (height - bottom - top) * (value - low) / span,
        )
        for spent, value in finite
    ]
    line = " ".join(f"{x:.1f},{y:.1f}" for x, y in xy)
    axis = f'<path d="M{left} {top}V{height - bottom}H{width - 10}" fill="none" stroke="currentColor" opacity="0.5"/>'
    texts = [
        (left - 6, xy[-1][1] + 4, "end", f"{high:.3g}"),
        (left - 6, height - bottom + 4, "end", f"{low:.3g}"),
        (left, height - 8, "middle", "1"),
        (width - 10, height - 8, "end", f"{most} decoder evaluations"),
    ]
    labels = "".join(
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{text}</text>' for x, y, anchor, text in texts
    )
    said = f"Best log-likelihood: {low:.3g} nats at the start, {high:.3g} after {finite[-1][0]} decoder evaluations"
    return (
        f'<svg class="curve" viewBox="0 0 {width} {height}" role="img" aria-label="{said}">{axis}{labels}'
        f'<polyline points="{line}" fill="none" stroke="{SERIES[0]}" stroke-width="2"/>'
        f'<circle cx="{xy[-1][0]:.1f}" cy="{xy[-1][1]:.1f}" r="3.5" fill="{SERIES[1]}"/></svg>'
    )


def code_html(parts: Sequence[tuple[str, str]]) -> str:
    """Texts with their kind, a class of the style sheet or empty, as one block of code."""
    marked = [f'<mark class="{kind}">{escape(text)}</mark>' if kind else escape(text) for text, kind in parts]
    return f'<pre class="code">{"".join(marked)}</pre>'


def problem_html(error: Exception | str) -> str:
    """A user's mistake, said where it was made."""
    text = str(error)
    return f'<div class="problem" role="alert">{escape(text if len(text) <= 400 else text[:400] + " ...")}</div>'


__all__ = ["answers_html", "code_html", "curve_svg", "grid_html", "problem_html"]
