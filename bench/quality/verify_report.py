"""Tables and the reliability diagram of the study of `verify` in docs/results.md, from bench/results/verify_*.json.

python -m bench.quality.verify_report
"""

import json
import re
from collections.abc import Iterable, Mapping
from typing import Any

from bench.harness.docs_page import DOCS, RESULTS, describe_origin, fill_section
from eval.core.results import DetectionResult
from eval.report.formatting import describe_detection, format_estimate
from eval.report.plots import plot_reliability

PLAYGROUND = DOCS.parent / "server" / "routes" / "playground_page" / "figures.js"
TITLES = {
    "chair_i": "CHAIR_i",
    "chair_i_distinct": "CHAIR_i, distinct",
    "chair_s": "CHAIR_s",
    "recall": "Recall",
    "repetitive": "Repetitive",
}


def format_value(cell: Mapping[str, Any], digits: int = 1, *, sign: bool = False) -> str:
    """Format a value with its interval, if it has one: a difference of zero in every scene has none."""
    value, *bounds = (
        f"{cell[name]:{'+' if sign else ''}.{digits}f}" for name in ("value", "low", "high") if cell[name] is not None
    )
    return f"{value} [{', '.join(bounds)}]" if bounds else value


def format_p(p: float) -> str:
    """Format a p-value."""
    return "p < 0.001" if p < 0.001 else f"p = {p:.3f}" if p < 0.1 else f"p = {p:.2f}"


def format_arm_rows(arms: Mapping[str, Any]) -> Iterable[str]:
    """Format the metrics of each arm, with the paired difference to plain decoding.

    Yields:
        Lines of Markdown.
    """
    metrics = [name for name in TITLES if name in arms["plain"]]
    titles = " | ".join(TITLES[name] for name in metrics)
    yield f"| strategy | {titles} | CHAIR_i over plain's | images better, worse | passes | drafts | checks | words |"
    yield "| --- " * (len(metrics) + 7) + "|"
    for name, arm in arms.items():
        cells = [format_value(arm[metric]) for metric in metrics]
        ratio = images = ""
        if name != "plain":
            cells = [
                f"{cell}<br>{format_value(arm[metric]['difference'], sign=True)}, {format_p(arm[metric]['p'])}"
                for cell, metric in zip(cells, metrics, strict=True)
            ]
            ratio = format_value(arm["chair_i"]["ratio"], 2)
            images = "{improved}, {worsened}".format(**arm["images"])
        cost = " | ".join(f"{arm[part]:.1f}" for part in ("forward_passes", "drafts", "checks", "words"))
        yield f"| `{name}` | {' | '.join(cells)} | {ratio} | {images} | {cost} |"


def format_signal_rows(result: DetectionResult) -> Iterable[str]:
    """Format area and average precision of each signal.

    Yields:
        Lines of Markdown.
    """
    yield "| signal | AUROC | average precision | AUROC of the check minus this |"
    yield "| --- | --- | --- | --- |"
    for name, signal in result.signals.items():
        lead = "" if signal.check_lead is None else format_estimate(signal.check_lead, sign=True)
        area, precision = format_estimate(signal.auroc), format_estimate(signal.average_precision)
        yield f"| {name} | {area} | {precision} | {lead} |"


def format_check_rows(results: Mapping[str, Any]) -> Iterable[str]:
    """Format area and calibration of the check for each value of a parameter.

    Yields:
        Lines of Markdown.
    """
    yield "| check | AUROC | average precision | expected calibration error |"
    yield "| --- | --- | --- | --- |"
    for parameter, figures in results.items():
        result = DetectionResult.model_validate(figures)
        check = result.signals["check"]
        cells = (check.auroc, check.average_precision, result.calibration_error)
        yield f"| `{parameter}` | {' | '.join(map(format_estimate, cells))} |"


def format_time_rows(times: Mapping[str, Any]) -> Iterable[str]:
    """Format the time of a caption over plain decoding.

    Yields:
        Lines of Markdown.
    """
    yield "| captions at once | strategy | over plain | quartiles of the rounds | rounds | first text, over plain |"
    yield "| --- | --- | --- | --- | --- | --- |"
    for at_once, arms in times.items():
        for name, arm in arms.items():
            low, high = arm["quartiles"]
            quartiles, first = f"{low:.2f} to {high:.2f}", f"{arm['first_text_ratio']:.2f}"
            yield f"| {at_once} | {name} | {arm['ratio']:.2f} | {quartiles} | {arm['rounds']} | {first} |"


def format_report(figures: Mapping[str, Any], tuning: Mapping[str, Any]) -> str:
    """Format the tables of all parts that have been measured."""
    signals = DetectionResult.model_validate(figures["signals"])
    parts = [f"{figures['scenes']} scenes of the seed {figures['seed']}. {describe_origin(figures['greedy_measured'])}"]
    titles = {"greedy": "Greedy:", "sampled": f"Temperature 1, seeds {', '.join(map(str, figures['seeds']))}:"}
    parts += [
        title + "\n\n" + "\n".join(format_arm_rows(figures[part])) for part, title in titles.items() if part in figures
    ]
    parts += [
        f"Mentions of plain decoding, greedy: {describe_detection(signals)}.\n\n"
        + "\n".join(format_signal_rows(signals)),
        "![Share of real mentions over the probability of the check](reliability.svg)",
        f"Parameters of `verify` on {tuning['scenes']} other scenes, of the seed {tuning['seed']}:\n\n"
        + "\n".join(format_arm_rows(tuning["parameters"])),
        "\n".join(format_check_rows(tuning["checks"])),
    ]
    if "time" in figures:
        rows = "\n".join(format_time_rows(figures["time"]))
        parts.append(f"Time of a caption. {describe_origin(figures['time_measured'])}\n\n{rows}")
    return "\n\n".join(parts)


def fill_playground(scenes: int, auroc: str, greedy: Mapping[str, Any]) -> None:
    """Write the figures of the playground's legend."""
    constants = {"CHECK_AUROC": auroc, "VERIFY_IMAGES": {"scenes": scenes, **greedy["verify"]["images"]}}
    text = PLAYGROUND.read_text()
    for name, value in constants.items():
        text = re.sub(rf"const {name} = .*;", f"const {name} = {json.dumps(value)};", text)
    PLAYGROUND.write_text(text)


def main() -> None:
    figures, tuning = (json.loads((RESULTS / f"verify_{name}.json").read_text()) for name in ("study", "tuning"))
    fill_section(DOCS / "results.md", "verify", format_report(figures, tuning))
    signals = DetectionResult.model_validate(figures["signals"])
    fill_playground(figures["scenes"], format_estimate(signals.signals["check"].auroc), figures["greedy"])
    (DOCS / "reliability.svg").write_text(plot_reliability([signals], background="white"))


if __name__ == "__main__":
    main()
