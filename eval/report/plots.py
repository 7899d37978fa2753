"""Plots as inline SVG, with error bars on every point."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator

from eval.core.results import DetectionResult, Estimate, MetricColumn, Results, ScopeResult, StrategyCost

INK, PALE, GOOD, BAD, NEUTRAL = "#1f2933", "#9aa5b1", "#14795b", "#b42318", "#52606d"
STYLE: dict[Any, Any] = {  # rcParams of matplotlib
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": PALE,
    "axes.labelcolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "text.color": INK,
}


@matplotlib.rc_context(STYLE)
def plot_differences(scope: ScopeResult, results: Results) -> str:
    """Plot the difference of every strategy to plain decoding, one panel for each metric."""
    rows = [row for row in scope.rows if row.against_plain]
    columns = results.columns
    if not rows:
        return ""
    figure = Figure(figsize=(2.5 * len(columns) + 1.5, 0.42 * len(rows) + 1.2), layout="constrained")
    panels = figure.subplots(1, len(columns), sharey=True, squeeze=False)[0]
    for panel, column in zip(panels, columns, strict=True):
        panel.axvline(0, color=PALE, linewidth=1)
        for height, row in enumerate(reversed(rows)):
            difference = row.against_plain[column.name]
            estimate = Estimate(value=difference.value, low=difference.low, high=difference.high)
            colour = {"better": GOOD, "worse": BAD, "unclear": NEUTRAL}[difference.verdict]
            _draw_estimate(panel, estimate, column, height, colour)
        direction = {"higher": "higher is better", "lower": "lower is better", "neither": ""}[column.better]
        panel.set_title(column.title, fontsize=10, fontweight="bold")
        panel.set_xlabel(direction, fontsize=8, color=NEUTRAL)
        panel.margins(y=0.6 / len(rows))
    panels[0].set_yticks(range(len(rows)), [_escape_mathtext(row.strategy) for row in reversed(rows)])
    return _render_svg(figure, "differences")


def _draw_estimate(panel: Axes, estimate: Estimate, column: MetricColumn, height: float, colour: str) -> None:
    if estimate.value is None:
        return
    scale = 100 if column.percent else 1
    if estimate.low is not None and estimate.high is not None:
        panel.plot(
            [estimate.low * scale, estimate.high * scale], [height, height], color=colour, linewidth=2, alpha=0.6
        )
    panel.plot([estimate.value * scale], [height], "o", color=colour, markersize=6)


@matplotlib.rc_context(STYLE)
def plot_pareto(scope: ScopeResult, results: Results) -> str:
    """Plot the first primary metric over the slowdown. The line is the Pareto front."""
    column = next(column for column in results.columns if column.primary)
    points = [
        (cost.slowdown, row.metrics[column.name], row.strategy, cost)
        for row, cost in zip(scope.rows, results.costs, strict=True)
        if cost.slowdown is not None and row.metrics[column.name].value is not None
    ]
    if len(points) < 2:
        return ""
    figure = Figure(figsize=(7.2, 4.2), layout="constrained")
    panel = figure.subplots()
    scale = 100 if column.percent else 1
    positions = [(slowdown, (estimate.value or 0) * scale) for slowdown, estimate, _, _ in points]
    front = sorted(pareto_front(positions, lower=column.better == "lower"))
    panel.plot(
        [x for x, _ in front], [y for _, y in front], color=GOOD, linewidth=1.5, alpha=0.5, drawstyle="steps-post"
    )
    for index, ((x, y), (_, estimate, label, cost)) in enumerate(zip(positions, points, strict=True)):
        colour = GOOD if (x, y) in front else NEUTRAL
        if estimate.low is not None and estimate.high is not None:
            panel.plot([x, x], [estimate.low * scale, estimate.high * scale], color=colour, alpha=0.35, linewidth=2)
        if (bounds := _compute_slowdown_interval(cost, x)) is not None:
            panel.plot(bounds, [y, y], color=colour, alpha=0.35, linewidth=2)
        panel.plot([x], [y], "o", color=colour, markersize=7)
        panel.annotate(
            _escape_mathtext(label), (x, y), xytext=(6, (6, -12)[index % 2]), textcoords="offset points", fontsize=9
        )
    panel.set_xscale("log")  # One strategy with many passes must not push all others together.
    panel.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    panel.xaxis.set_major_formatter("{x:g}")
    panel.xaxis.set_minor_locator(NullLocator())
    panel.set_xlabel("time per token, relative to plain")
    panel.set_ylabel(f"{column.title} ({'lower' if column.better == 'lower' else 'higher'} is better)")
    panel.margins(0.14)
    return _render_svg(figure, "pareto")


@matplotlib.rc_context(STYLE)
def plot_reliability(results: Sequence[DetectionResult], background: str | None = None) -> str:
    """Plot the share of real mentions over P(yes) of the check. A calibrated check lies on the diagonal.

    Args:
        results: Results of the strategies, one panel each.
        background: Colour of the background, transparent by default.

    Returns:
        The plot as SVG, empty without results.
    """
    if not results:
        return ""
    count = len(results)
    figure = Figure(figsize=(2.7 * count + 0.9, 3.2), layout="constrained")
    panels = figure.subplots(1, count, sharey=True, squeeze=False)[0]
    for panel, result in zip(panels, results, strict=True):
        panel.plot([0, 1], [0, 1], color=PALE, linewidth=1)
        most = max(each.mentions for each in result.calibration)
        for each in result.calibration:
            panel.plot(
                [each.probability], [each.real], "o", color=GOOD, markersize=3 + 9 * (each.mentions / most) ** 0.5
            )
        panel.plot(
            [each.probability for each in result.calibration],
            [each.real for each in result.calibration],
            color=GOOD,
            alpha=0.5,
        )
        panel.set_title(_escape_mathtext(result.strategy), fontsize=10, fontweight="bold")
        panel.set_xlabel("P(yes) of the check")
    panels[0].set_ylabel("share in the image")
    return _render_svg(figure, "reliability", background)


def pareto_front(points: Sequence[tuple[float, float]], *, lower: bool) -> list[tuple[float, float]]:
    """Select the points that no other point dominates.

    Args:
        points: Cost and quality.
        lower: Whether a lower quality value is better.

    Returns:
        The selected points, in order.
    """
    sign = -1 if lower else 1
    return [
        (x, y)
        for x, y in points
        if not any(a <= x and sign * b >= sign * y and (a, sign * b) != (x, sign * y) for a, b in points)
    ]


def _compute_slowdown_interval(cost: StrategyCost, slowdown: float) -> list[float] | None:
    speed = cost.tokens_per_second
    if not speed.value or not speed.low or not speed.high:
        return None
    return [slowdown * speed.value / speed.high, slowdown * speed.value / speed.low]


def _escape_mathtext(text: str) -> str:
    return text.replace("$", r"\$")


def _render_svg(figure: Figure, name: str, background: str | None = None) -> str:
    """Render a figure without the XML header. `name` makes ids unique on one page."""
    with matplotlib.rc_context({"svg.hashsalt": name}):
        buffer = io.StringIO()
        colour = background or "none"
        figure.savefig(buffer, format="svg", transparent=not background, facecolor=colour, metadata={"Date": None})
    text = buffer.getvalue()
    return text[text.index("<svg") :]
