"""Quality against cost: forward passes, which do not depend on the machine, and not time, which does."""

from __future__ import annotations

import io

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from eval.report.plots import GOOD, INK, PALE, STYLE, front
from eval.results import Results


@matplotlib.rc_context({**STYLE, "svg.hashsalt": "results"})
def drawn(pope: Results, chair: Results) -> str:
    """An SVG file of two panels: POPE's accuracy and CHAIR_i, greedy; cheap strategies on top."""
    rows = max(len(results.costs) for results in (pope, chair))
    figure = Figure(figsize=(12, 1.5 + 0.24 * rows), layout="constrained")
    left, right = figure.subplots(1, 2)
    panel(left, pope, "accuracy", "POPE accuracy, higher is better")
    panel(right, chair, "chair_i", "CHAIR_i, lower is better")
    written = io.StringIO()
    figure.savefig(written, format="svg", metadata={"Date": None}, facecolor="white")
    return written.getvalue()


FARTHEST = 2.5  # times the spread of the others: what lies beyond stands at the edge with its value, lest it hide them


def panel(axes: Axes, results: Results, metric: str, title: str) -> None:
    """One line a strategy, by its passes a token: points of a cost-and-quality plot would hide each other."""
    whole = results.parts[-1]
    points = [
        (cost.passes_per_token.value, row.metrics[metric], row.strategy)
        for row, cost in zip(whole.rows, results.costs, strict=True)
        if cost.passes_per_token and cost.passes_per_token.value and row.metrics[metric].value is not None
    ]
    points.sort(key=lambda point: (-round(point[0], 2), point[2] == "plain", point[2]))
    best = set(front([(cost, estimate.value or 0) for cost, estimate, _ in points], lower=metric == "chair_i"))
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
    edges = np.array([middle - FARTHEST * spread, middle + FARTHEST * spread])
    for height in np.flatnonzero((values < edges[0]) | (values > edges[1])):
        at, side = (edges[0], "left") if values[height] < edges[0] else (edges[1], "right")
        arrow = (
            f"\N{LEFTWARDS ARROW} {values[height]:.1f}"
            if side == "left"
            else f"{values[height]:.1f} \N{RIGHTWARDS ARROW}"
        )
        axes.text(at, height, arrow, ha=side, va="center", fontsize=8)
    if spread and (values < edges[0]).any():
        axes.set_xlim(left=edges[0])
    if spread and (values > edges[1]).any():
        axes.set_xlim(right=edges[1])
    axes.set_yticks(range(len(points)), [f"{label}   {cost:.2f}" for cost, _, label in points], fontsize=8)
    axes.set_xlabel(title)
    axes.set_title("passes a token", fontsize=8, loc="left")
