"""Numbers, intervals and verdicts as text. All reports use these functions."""

from __future__ import annotations

from collections.abc import Sequence

from eval.core.results import (
    BiasResult,
    ControlComparison,
    DelongComparison,
    DetectionResult,
    Difference,
    Estimate,
    ExtraTable,
    MetricColumn,
    Results,
    ScopeResult,
)

NO_VALUE = "n/a"
MINUS = "\N{MINUS SIGN}"
BIAS_HEADERS = (
    "strategy", "threshold", "constant", "metric", "plain at 0", "control", "value", "gain", "of which bias",
    "beyond bias",
)  # fmt: skip
BIAS_EXPLANATION = (
    "Control is plain decoding at the threshold on ln p(yes) - ln p(no) that gives the yes ratio of the strategy. The "
    "constant moves that threshold to 0 when it is added to the logit of yes. Gain is the strategy minus plain "
    "decoding at the threshold 0. Of this, bias is the control minus plain decoding, and beyond bias is the strategy "
    "minus the control."
)
SPLIT_HEADERS = ("strategy", "control", "constant", "metric", "plain", "value", "gain", "cut", "bias", "rest")
SPLIT_EXPLANATION = (
    "The gain over sampled plain decoding is the sum of three parts. Cut is the gain of the matched control truncate. "
    "Bias is the expected gain if the constant is added to the logit of yes under the same cut and temperature. The "
    "yes ratio then changes as under the strategy. Rest is what remains."
)
DETECTION_HEADERS = ("strategy", "signal", "AUROC", "average precision", "check minus this", "DeLong's test")
DETECTION_EXPLANATION = (
    "A mention is hallucinated by CHAIR's labels. AUROC is the probability that a hallucinated mention is ranked above "
    "a real one. Check minus this is the AUROC of the check minus that of the signal. Intervals are resampled by "
    "image, but DeLong's test of this difference takes mentions as independent. A combination of signals is the mean "
    "of their ranks."
)
VERDICT_PHRASES = {
    "better": "is better than",
    "worse": "is worse than",
    "unclear": "does not differ significantly from",
}


def format_number(value: float | None, column: MetricColumn, *, sign: bool = False) -> str:
    """Format a metric with one decimal, in percent if the metric is shown in percent."""
    if value is None:
        return NO_VALUE
    return f"{value * (100 if column.percent else 1):{'+' if sign else ''}.1f}".replace("-", MINUS)


def format_table_value(value: float | None, table: ExtraTable) -> str:
    """Format a value of an extra table."""
    if value is None:
        return NO_VALUE
    return f"{value * 100:.1f}" if table.percent else f"{value:.{table.decimals}f}"


def format_estimate(estimate: Estimate | None, *, sign: bool = False) -> str:
    """Format a value between 0 and 1 with three decimals and its interval."""
    if estimate is None or estimate.value is None:
        return NO_VALUE
    plus = "+" if sign else ""
    text = f"{estimate.value:{plus}.3f}"
    if estimate.low is not None and estimate.high is not None:
        text += f" [{estimate.low:{plus}.3f}, {estimate.high:{plus}.3f}]"
    return text.replace("-", MINUS)


def describe_detection(result: DetectionResult) -> str:
    """Return the number of mentions and the calibration error."""
    return (
        f"{result.mentions} mentions that are claims, {result.hallucinated} of them not in the image; "
        f"{result.mentions_without_claim} mentions are no claims. "
        f"Expected calibration error of the check: {format_estimate(result.calibration_error)}"
    )


def list_detection_rows(results: Sequence[DetectionResult]) -> list[list[str]]:
    """List the cells of the table of signals, in the order of `DETECTION_HEADERS`."""
    rows: list[list[str]] = []
    for result in results:
        name = result.strategy
        for signal, each in result.signals.items():
            areas = [format_estimate(each.auroc), format_estimate(each.average_precision)]
            lead = [format_estimate(each.check_lead, sign=True), _format_delong(each.delong)]
            rows.append([name, signal, *areas, *([""] * len(lead) if each.check_lead is None else lead)])
            name = ""
    return rows


def _format_delong(test: DelongComparison | None) -> str:
    """Format p-value and interval of DeLong's test."""
    if test is None or test.p is None:
        return NO_VALUE
    text = _format_p(test.p)
    if test.low is not None and test.high is not None:
        text += f" [{test.low:+.3f}, {test.high:+.3f}]".replace("-", MINUS)
    return text


def format_interval(estimate: Estimate | Difference, column: MetricColumn, *, sign: bool = False) -> str:
    """Format a confidence interval, or return an empty string if there is none."""
    if estimate.low is None or estimate.high is None:
        return ""
    return f"[{format_number(estimate.low, column, sign=sign)}, {format_number(estimate.high, column, sign=sign)}]"


def format_p_value(difference: Difference) -> str:
    """Format the effective p-value, state that no question differs, or return an empty string if there is none."""
    if difference.is_without_discordance:
        return "no question differs"
    p = difference.effective_p
    if p is None:
        return ""
    return _format_p(p)


def _format_p(p: float) -> str:
    return "p < 0.001" if p < 0.001 else f"p = {p:.3f}" if p < 0.1 else f"p = {p:.2f}"


def describe_size(scope: ScopeResult, results: Results) -> str:
    """Return the number of questions, images and clusters; with several seeds every question has several answers."""
    clusters = "" if results.cluster == "image" else f", {scope.clusters} {results.cluster}s"
    if len(results.seeds) > 1:
        return f"{scope.questions} answers under {len(results.seeds)} seeds on {scope.images} images{clusters}"
    return f"{scope.questions} questions on {scope.images} images{clusters}"


def format_detectable(difference: Difference, column: MetricColumn) -> str:
    """Format the minimum detectable difference, or return an empty string if nothing varied."""
    return "" if difference.detectable is None else f"detectable {format_number(difference.detectable, column)}"


def format_significance(difference: Difference, column: MetricColumn) -> str:
    """Format p-value and minimum detectable difference."""
    return ", ".join(filter(None, (format_p_value(difference), format_detectable(difference, column))))


def describe_test(difference: Difference, cluster: str) -> str:
    """Describe the test of a difference, for a tooltip."""
    test = "exact McNemar" if difference.test == "mcnemar" else f"permutation within {cluster}s"
    parts = [f"{test}, p = {difference.p:.4f}" if difference.p is not None else test]
    if difference.p_holm is not None:
        parts.append(f"after Holm {difference.p_holm:.4f}")
    if difference.gained is not None:
        parts.append(f"{difference.gained} questions gained, {difference.lost} lost")
    if difference.tango_low is not None and difference.tango_high is not None:
        parts.append(f"Tango's interval [{difference.tango_low:+.4f}, {difference.tango_high:+.4f}]")
    return "; ".join(parts)


def describe_control_comparison(comparison: ControlComparison, column: MetricColumn) -> str:
    """Return verdict, control, difference and significance, without the name of the strategy."""
    difference = comparison.differences[column.name]
    change = f"{format_number(difference.value, column, sign=True)} {format_interval(difference, column, sign=True)}"
    numbers = ", ".join(filter(None, (change.strip(), format_significance(difference, column))))
    return f"{VERDICT_PHRASES[difference.verdict]} {comparison.control} in {column.title} ({numbers})"


def describe_bias(bias: BiasResult) -> str:
    """Return the area under the ROC curve of p(yes), and the numbers of missing and bounded scores."""
    unlike = "" if bias.unlike_score is None else f". {bias.unlike_score} greedy answers are read unlike their score"
    return (
        f"AUROC of p(yes) of plain decoding: {format_estimate(bias.auroc)}. {bias.answers} answers have "
        f"log-probabilities of yes or no, {bias.bounded} of them of one word only. {bias.left_out} answers are left out"
        f"{unlike}"
    )


def list_bias_rows(bias: BiasResult, results: Results, *, intervals: bool = True) -> list[list[str]]:
    """List the cells of the table of gains beyond bias, in the order of `BIAS_HEADERS`."""
    rows: list[list[str]] = []
    for control in bias.controls:
        threshold = "per scope" if control.threshold == "scope" else "for all"
        name = [control.strategy, threshold, _format_constant(control.added)]
        for column in results.columns:
            if (metric := control.metrics.get(column.name)) is None:
                continue
            beyond = _format_change(metric.beyond, column, intervals)
            if column.better != "neither":  # The yes ratio is equal by construction.
                beyond = ", ".join(filter(None, (beyond, format_p_value(metric.beyond))))
            values = [format_number(each, column) for each in (metric.plain, metric.control, metric.strategy)]
            changes = [format_number(each, column, sign=True) for each in (metric.gain, metric.bias)]
            rows.append([*name, column.title, *values, *changes, beyond])
            name = ["", "", ""]
    return rows


def list_split_rows(bias: BiasResult, results: Results, *, intervals: bool = True) -> list[list[str]]:
    """List the cells of the table of the parts of a gain, in the order of `SPLIT_HEADERS`."""
    rows: list[list[str]] = []
    for split in bias.splits:
        name = [split.strategy, split.control or NO_VALUE, _format_constant(split.added)]
        for column in results.columns:
            if (metric := split.metrics.get(column.name)) is None:
                continue
            values = [format_number(each, column) for each in (metric.plain, metric.strategy)]
            parts = [
                _format_change(each, column, intervals) for each in (metric.gain, metric.cut, metric.bias, metric.rest)
            ]
            rows.append([*name, column.title, *values, *parts])
            name = ["", "", ""]
    return rows


def _format_change(change: Estimate | Difference | None, column: MetricColumn, intervals: bool) -> str:
    if change is None:
        return NO_VALUE
    text = format_number(change.value, column, sign=True)
    return f"{text} {format_interval(change, column, sign=True)}".strip() if intervals else text


def _format_constant(value: float | None) -> str:
    return NO_VALUE if value is None else f"{value:+.2f}".replace("-", MINUS)
