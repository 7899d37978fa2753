"""POPE's numbers. Yes is the positive class."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from eval.pope.parsers import PARSERS, Parser


@dataclass(frozen=True)
class PopeScore:
    """Shares between 0 and 1; None where a division has no value, and `notes` tells why under the name of the number.

    tp + fp + tn + fn is n, less the answers read as neither yes nor no by the parsers that know of such.
    """

    tp: int
    fp: int
    tn: int
    fn: int
    accuracy: float
    precision: float | None
    recall: float | None
    f1: float | None
    yes_ratio: float
    n: int
    unparsed: int
    notes: dict[str, str] = field(default_factory=dict)

    def as_json(self) -> dict[str, object]:
        numbers = {name: value for name, value in vars(self).items() if name != "notes"}
        return {**numbers, "notes": self.notes} if self.notes else numbers


def score(labels: Sequence[str], answers: Sequence[str], parser: Parser = PARSERS["official"]) -> PopeScore:
    """Labels as they stand in the question file, answers as the model gave them, in the same order.

    Raises:
        ValueError: none at all, or not as many of one as of the other.
    """
    if not labels:
        raise ValueError("there is nothing to score")
    pairs = [(parser.gold(each), parser.read(answer, each)) for each, answer in zip(labels, answers, strict=True)]
    tp, fp, tn = pairs.count(("yes", "yes")), pairs.count(("no", "yes")), pairs.count(("no", "no"))
    fn = pairs.count(("yes", "no")) + (pairs.count(("yes", None)) if parser.unread_yes_is_missed else 0)
    notes: dict[str, str] = {}
    precision = recall = f1 = None
    if tp + fp:
        precision = tp / (tp + fp)
    else:
        notes["precision"] = "no answer was read as yes"
    if tp + fn:
        recall = tp / (tp + fn)
    else:
        notes["recall"] = "no answer to a question labelled yes counts"
    if precision and recall:
        f1 = 2 * precision * recall / (precision + recall)
    else:
        notes["f1"] = "there is no true positive"
    ratio_of = [gold if parser.yes_ratio_of_labels else reading for gold, reading in pairs]
    return PopeScore(
        tp=tp,
        fp=fp,
        tn=tn,
        fn=fn,
        accuracy=(tp + tn) / len(pairs),
        precision=precision,
        recall=recall,
        f1=f1,
        yes_ratio=ratio_of.count("yes") / len(pairs),
        n=len(pairs),
        unparsed=sum(parser.unparsed(answer) for answer in answers),
        notes=notes,
    )


def correct(label: str, answer: str, parser: Parser = PARSERS["official"]) -> bool:
    """Whether one answer counts as right: what a paired test compares."""
    return parser.gold(label) is not None and parser.read(answer, label) == parser.gold(label)


def disagreement(labels: Sequence[str], answers: Sequence[str]) -> float:
    """The share of answers that the five parsers do not all take for the same."""
    pairs = list(zip(labels, answers, strict=True))
    split = [len({parser.read(answer, label) for parser in PARSERS.values()}) > 1 for label, answer in pairs]
    return sum(split) / len(split)
