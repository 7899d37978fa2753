"""AMBER's yes/no questions. No is the positive class; an answer counts only if it is exactly `Yes` or `No`.

Rounded, and with the small constants in the denominators, as the official script has them: 0.001 to every count, and
0.0001 (0.001 for existence) to the denominator of F1.
"""

from __future__ import annotations

from collections.abc import Sequence

from eval.amber.answers import Item

STATE, NUMBER, ACTION = (f"discriminative-attribute-{each}" for each in ("state", "number", "action"))
EXISTENCE = "discriminative-hallucination"
GENERATIVE = "generative"


def score(items: Sequence[Item]) -> dict[str, dict[str, float]]:
    """In per cent, for all questions and for each dimension that has any; everything unknown is a relation."""
    asked = [item for item in items if item.kind != GENERATIVE]
    relation = [item for item in asked if item.kind not in (STATE, NUMBER, ACTION, EXISTENCE)]
    dimensions = {
        "all": (asked, 1, 0.0001),
        "existence": ([item for item in asked if item.kind == EXISTENCE], 1, 0.001),
        "attribute": ([item for item in asked if item.kind in (STATE, NUMBER, ACTION)], 3, 0.0001),
        "state": ([item for item in asked if item.kind == STATE], 1, 0.0001),
        "number": ([item for item in asked if item.kind == NUMBER], 1, 0.0001),
        "action": ([item for item in asked if item.kind == ACTION], 1, 0.0001),
        "relation": (relation, 1, 0.0001),
    }
    return {name: _numbers(part, 0.001 * parts, tiny) for name, (part, parts, tiny) in dimensions.items() if part}


def _numbers(items: Sequence[Item], offset: float, tiny: float) -> dict[str, float]:
    truths = [item.annotation.text("truth") for item in items]
    said = [item.response for item in items]
    pairs = list(zip(truths, said, strict=True))
    right = sum(reply == ("Yes" if truth == "yes" else "No") for truth, reply in pairs)
    denied = said.count("No")
    absent = len(truths) - truths.count("yes")
    precision = round(pairs.count(("no", "No")) / (denied + offset) * 100, 1)
    recall = round(sum(truth != "yes" and reply == "No" for truth, reply in pairs) / (absent + offset) * 100, 1)
    f1 = 2 * (precision / 100) * (recall / 100) / ((precision / 100) + (recall / 100) + tiny)
    return {
        "accuracy": round(right / (len(items) + offset) * 100, 1),
        "precision": precision,
        "recall": recall,
        "f1": round(f1 * 100, 1),
        "n": len(items),
        "unparsed": sum(reply not in ("Yes", "No") for reply in said),
    }
