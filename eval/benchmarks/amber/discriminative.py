"""AMBER's yes/no questions. No is the positive class, and only the exact answers `Yes` and `No` count.

Rounding and the small constants in the denominators follow the official script. It adds 0.001 to every count, and
0.0001 (0.001 for existence) to the denominator of F1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from eval.benchmarks.amber.answers import GENERATIVE, AmberAnswer

STATE, NUMBER, ACTION = (f"discriminative-attribute-{each}" for each in ("state", "number", "action"))
EXISTENCE = "discriminative-hallucination"


def score_questions(answers: Sequence[AmberAnswer], constant: str | None = None) -> dict[str, dict[str, float]]:
    """Score the yes/no questions.

    Args:
        answers: Answers; captions among them are ignored.
        constant: An answer that replaces all answers to yes/no questions.

    Returns:
        Numbers in percent, for all questions and for each dimension that has any. Unknown types count as relation.
    """
    questions = [each for each in answers if each.type != GENERATIVE]
    if constant is not None:
        questions = [replace(each, response=constant) for each in questions]
    relation = [each for each in questions if each.type not in (STATE, NUMBER, ACTION, EXISTENCE)]
    dimensions = {
        "all": (questions, 1, 0.0001),
        "existence": ([each for each in questions if each.type == EXISTENCE], 1, 0.001),
        "attribute": ([each for each in questions if each.type in (STATE, NUMBER, ACTION)], 3, 0.0001),
        "state": ([each for each in questions if each.type == STATE], 1, 0.0001),
        "number": ([each for each in questions if each.type == NUMBER], 1, 0.0001),
        "action": ([each for each in questions if each.type == ACTION], 1, 0.0001),
        "relation": (relation, 1, 0.0001),
    }
    return {
        name: _score_dimension(group, 0.001 * parts, epsilon)
        for name, (group, parts, epsilon) in dimensions.items()
        if group
    }


def _score_dimension(answers: Sequence[AmberAnswer], offset: float, epsilon: float) -> dict[str, float]:
    truths = [each.annotation.get_string("truth") for each in answers]
    responses = [each.response for each in answers]
    pairs = list(zip(truths, responses, strict=True))
    correct = sum(response == ("Yes" if truth == "yes" else "No") for truth, response in pairs)
    predicted_no = responses.count("No")
    labelled_no = len(truths) - truths.count("yes")
    precision = round(pairs.count(("no", "No")) / (predicted_no + offset) * 100, 1)
    true_no = sum(truth != "yes" and response == "No" for truth, response in pairs)
    recall = round(true_no / (labelled_no + offset) * 100, 1)
    f1 = 2 * (precision / 100) * (recall / 100) / ((precision / 100) + (recall / 100) + epsilon)
    return {
        "accuracy": round(correct / (len(answers) + offset) * 100, 1),
        "precision": precision,
        "recall": recall,
        "f1": round(f1 * 100, 1),
        "n": len(answers),
        "unparsed": sum(response not in ("Yes", "No") for response in responses),
    }
