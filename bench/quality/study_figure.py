"""Figure of quality against cost in forward passes, which unlike time do not depend on the machine."""

from __future__ import annotations

import io

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from eval.core.results import Results
from eval.report.plots import GOOD, INK, PALE, STYLE, pareto_front


@matplotlib.rc_context({**STYLE, "svg.hashsalt": "results"})
def draw_figure(pope: Results, chair: Results) -> str:
    """Draw two panels as SVG: greedy POPE accuracy and CHAIR_i, strategies by increasing cost."""
    rows = max(len(results.costs) for results in (pope, chair))
    figure = Figure(figsize=(12, 1.5 + 0.24 * rows), layout="constrained")
    left, right = figure.subplots(1, 2)
    draw_panel(left, pope, "accuracy", "POPE accuracy, higher is better")
    draw_panel(right, chair, "chair_i", "CHAIR_i, lower is better")
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None}, facecolor="white")
    return buffer.getvalue()


# Times the spread of the values. Points beyond are drawn at the edge with their value, so that they hide no others.
MAX_SPREADS = 2.5


def draw_panel(axes: Axes, results: Results, metric: str, title: str) -> None:
    """Draw one line per strategy, sorted by passes per token, because points of a cost-quality plot would overlap."""
    overall = results.scopes[-1]
    points = [
        (cost.passes_per_token.value, row.metrics[metric], row.strategy)
        for row, cost in zip(overall.rows, results.costs, strict=True)
        if cost.passes_per_token and cost.passes_per_token.value and row.metrics[metric].value is not None
    ]
    points.sort(key=lambda point: (-round(point[0], 2), point[2] == "plain", point[2]))
    best = set(pareto_front([(cost, estimate.value or 0) for cost, estimate, _ in points], lower=metric == "chair_i"))
    for height, (cost, estimate, label) in enumerate(points):
        value = estimate.value or 0
        colour = INK if label == "plain" else GOOD if (cost, value) in best else PALE
        if estimate.low is not None and estimate.high is not None:
            axes.plot([100 * estimate.low, 100 * estimate.high], [height, height], color=colour, linewidth=2, alpha=0.5)
        axes.plot([100 * value], [height], "D" if ":" in label else "o", color=colour, markersize=5)
        if label == "plain":
            axes.axvline(100 * value, color=INK, linewidth=0.8, alpha=0.4)
    values = np.array([100 * (estimate.value or 0) for _, estimate, _ in points])
    middle, spread = np.median(values), np.percentile(values, 90) - np.percentile(values, 10)
    edges = np.array([middle - MAX_SPREADS * spread, middle + MAX_SPREADS * spread])
    for height in map(int, np.flatnonzero((values < edges[0]) | (values > edges[1]))):
        edge, side = (edges[0], "left") if values[height] < edges[0] else (edges[1], "right")
        arrow = (
            f"\N{LEFTWARDS ARROW} {values[height]:.1f}"
            if side == "left"
            else f"{values[height]:.1f} \N{RIGHTWARDS ARROW}"
        )
        axes.text(edge, height, arrow, ha=side, va="center", fontsize=8)
    if spread and (values < edges[0]).any():
        axes.set_xlim(left=edges[0])
    if spread and (values > edges[1]).any():
        axes.set_xlim(right=edges[1])
    axes.set_yticks(range(len(points)), [f"{label}   {cost:.2f}" for cost, _, label in points], fontsize=8)
    axes.set_xlabel(title)
    axes.set_title("passes per token", fontsize=8, loc="left")
