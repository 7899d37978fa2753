"""Plots as SVG that stands inside a page, with error bars on every point."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator

from eval.results import Column, Cost, Estimate, Part, Results

INK, PALE, GOOD, BAD, PLAIN = "#1f2933", "#9aa5b1", "#14795b", "#b42318", "#52606d"
STYLE: dict[Any, Any] = {  # of matplotlib, which knows its keys by name
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
def differences(part: Part, results: Results) -> str:
    """Every strategy minus plain, metric by metric."""
    rows = [row for row in part.rows if row.against_plain]
    columns = results.columns
    if not rows:
        return ""
    figure = Figure(figsize=(2.5 * len(columns) + 1.5, 0.42 * len(rows) + 1.2), layout="constrained")
    panels = figure.subplots(1, len(columns), sharey=True, squeeze=False)[0]
    for panel, column in zip(panels, columns, strict=True):
        panel.axvline(0, color=PALE, linewidth=1)
        for height, row in enumerate(reversed(rows)):
            difference = row.against_plain[column.name]
            colour = {"better": GOOD, "worse": BAD, "unclear": PLAIN}[difference.verdict]
            bar(
                panel,
                Estimate(value=difference.value, low=difference.low, high=difference.high),
                column,
                height,
                colour,
            )
        arrow = {"higher": "higher is better", "lower": "lower is better", "neither": ""}[column.better]
        panel.set_title(column.title, fontsize=10, fontweight="bold")
        panel.set_xlabel(arrow, fontsize=8, color=PLAIN)
        panel.margins(y=0.6 / len(rows))
    panels[0].set_yticks(range(len(rows)), [literal(row.strategy) for row in reversed(rows)])
    return svg(figure, "differences")


def bar(panel: Axes, estimate: Estimate, column: Column, height: float, colour: str) -> None:
    if estimate.value is None:
        return
    scale = 100 if column.percent else 1
    if estimate.low is not None and estimate.high is not None:
        panel.plot(
            [estimate.low * scale, estimate.high * scale], [height, height], color=colour, linewidth=2, alpha=0.6
        )
    panel.plot([estimate.value * scale], [height], "o", color=colour, markersize=6)


@matplotlib.rc_context(STYLE)
def pareto(part: Part, results: Results) -> str:
    """Quality over cost. The line joins the strategies that none beats in both."""
    column = next(column for column in results.columns if column.primary)
    points = [
        (cost.slowdown, row.metrics[column.name], row.strategy, cost)
        for row, cost in zip(part.rows, results.costs, strict=True)
        if cost.slowdown is not None and row.metrics[column.name].value is not None
    ]
    if len(points) < 2:
        return ""
    figure = Figure(figsize=(7.2, 4.2), layout="constrained")
    panel = figure.subplots()
    scale = 100 if column.percent else 1
    places = [(slowdown, (estimate.value or 0) * scale) for slowdown, estimate, _, _ in points]
    best = sorted(front(places, lower=column.better == "lower"))
    panel.plot([x for x, _ in best], [y for _, y in best], color=GOOD, linewidth=1.5, alpha=0.5, drawstyle="steps-post")
    for turn, ((x, y), (_, estimate, label, cost)) in enumerate(zip(places, points, strict=True)):
        colour = GOOD if (x, y) in best else PLAIN
        if estimate.low is not None and estimate.high is not None:
            panel.plot([x, x], [estimate.low * scale, estimate.high * scale], color=colour, alpha=0.35, linewidth=2)
        if (sides := sideways(cost, x)) is not None:
            panel.plot(sides, [y, y], color=colour, alpha=0.35, linewidth=2)
        panel.plot([x], [y], "o", color=colour, markersize=7)
        panel.annotate(literal(label), (x, y), xytext=(6, (6, -12)[turn % 2]), textcoords="offset points", fontsize=9)
    panel.set_xscale("log")  # a vote of many paths must not press the others together
    panel.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    panel.xaxis.set_major_formatter("{x:g}")
    panel.xaxis.set_minor_locator(NullLocator())
    panel.set_xlabel("time per token, relative to plain")
    panel.set_ylabel(f"{column.title} ({'lower' if column.better == 'lower' else 'higher'} is better)")
    panel.margins(0.14)
    return svg(figure, "pareto")


def front(places: Sequence[tuple[float, float]], *, lower: bool) -> list[tuple[float, float]]:
    sign = -1 if lower else 1
    return [
        (x, y)
        for x, y in places
        if not any(a <= x and sign * b >= sign * y and (a, sign * b) != (x, sign * y) for a, b in places)
    ]


def sideways(cost: Cost, slowdown: float) -> list[float] | None:
    speed = cost.tokens_per_second
    if not speed.value or not speed.low or not speed.high:
        return None
    return [slowdown * speed.value / speed.high, slowdown * speed.value / speed.low]


def literal(text: str) -> str:
    return text.replace("$", r"\$")


def svg(figure: Figure, name: str) -> str:
    """Without the heading of a file of its own. `name` keeps ids apart on one page."""
    with matplotlib.rc_context({"svg.hashsalt": name}):
        written = io.StringIO()
        figure.savefig(written, format="svg", transparent=True, metadata={"Date": None})
    text = written.getvalue()
    return text[text.index("<svg") :]
