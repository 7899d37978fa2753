"""Quality against cost: forward passes, which do not depend on the machine, and not time, which does."""

from __future__ import annotations

import io

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from eval.report.plots import GOOD, INK, PALE, STYLE, front
from eval.results import Results


@matplotlib.rc_context({**STYLE, "svg.fonttype": "path", "svg.hashsalt": "results"})
def drawn(pope: Results, chair: Results) -> str:
    """An SVG file of two panels: POPE's accuracy and CHAIR_i, greedy."""
    figure = Figure(figsize=(11, 4.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    panel(left, pope, "accuracy", "POPE accuracy, higher is better")
    panel(right, chair, "chair_i", "CHAIR_i, lower is better")
    written = io.StringIO()
    figure.savefig(written, format="svg", metadata={"Date": None}, facecolor="white")
    return written.getvalue()


def panel(axes: Axes, results: Results, metric: str, title: str) -> None:
    whole = results.parts[-1]
    points = [
        (cost.passes_per_token.value, row.metrics[metric], row.strategy)
        for row, cost in zip(whole.rows, results.costs, strict=True)
        if cost.passes_per_token and cost.passes_per_token.value and row.metrics[metric].value is not None
    ]
    places = [(x, 100 * (estimate.value or 0)) for x, estimate, _ in points]
    best = set(front(places, lower=metric == "chair_i"))
    for (x, y), (_, estimate, label) in zip(places, points, strict=True):
        colour = INK if label == "plain" else GOOD if (x, y) in best else PALE
        if estimate.low is not None and estimate.high is not None:
            axes.plot([x, x], [100 * estimate.low, 100 * estimate.high], color=colour, alpha=0.4, linewidth=1.5)
        axes.plot([x], [y], "o" if ":" not in label else "D", color=colour, markersize=5)
        axes.annotate(label, (x, y), xytext=(4, 3), textcoords="offset points", fontsize=6.5)
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(matplotlib.ticker.FormatStrFormatter("%g"))
    axes.set_xlabel("forward passes per token (log scale)")
    axes.set_ylabel(title)
    axes.grid(color=PALE, alpha=0.25)
