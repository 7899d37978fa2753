"""Counts of yes/no answers, shared by the tasks."""

from __future__ import annotations

from eval.benchmarks.pope.parsers import PARSERS, AnswerParser
from eval.core.task import Score
from eval.errors import EvaluationError


def select_parser(name: str, official: AnswerParser) -> AnswerParser:
    """Select the parser of a task.

    Args:
        name: `official` for the rule of the benchmark's authors, or one of the other parsers of `score pope`.
        official: The parser with the authors' rule.

    Returns:
        The parser.

    Raises:
        EvaluationError: There is no parser with the name.
    """
    if name not in PARSERS:
        raise EvaluationError(f"There is no parser '{name}'. Choose one of {', '.join(PARSERS)}.")
    return official if name == "official" else PARSERS[name]


def score_answer(parser: AnswerParser, label: str, answer: str) -> Score:
    """Parse and count an answer.

    Args:
        parser: The parser.
        label: The label.
        answer: The answer.

    Returns:
        The counts `n`, `right` and `yes`, `positive` or `negative` by the label, and one of `tp`, `fp`, `tn` and `fn`.
        An answer that is not parsed is in none of the four, unless the parser counts it as a false negative. Label,
        parsed answer and whether it is right are details.
    """
    parsed_label, parsed = parser.parse_label(label), parser.parse(answer, label)
    counts = {
        "n": 1.0,
        "right": float(parsed == parsed_label),
        "yes": float((parsed_label if parser.yes_ratio_of_labels else parsed) == "yes"),
    }
    if parsed_label is not None:
        counts["positive" if parsed_label == "yes" else "negative"] = 1.0
    match parsed_label, parsed:
        case "yes", "yes":
            counts["tp"] = 1.0
        case "no", "yes":
            counts["fp"] = 1.0
        case "no", "no":
            counts["tn"] = 1.0
        case "yes", "no":
            counts["fn"] = 1.0
        case "yes", None if parser.counts_unparsed_yes_as_fn:
            counts["fn"] = 1.0
        case _:
            pass
    return Score(counts, {"label": label, "parsed": parsed, "right": parsed == parsed_label})
