"""Official question and answer files, paired by the order of their lines as the official script pairs them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from eval.inputs import ANSWER_KEYS, Record, records
from eval.pope.parsers import Parser


@dataclass(frozen=True)
class Answered:
    """`doubts` are lines for the user's eyes: what was scored as the parser demands, but is hardly what was meant."""

    labels: list[str]
    answers: list[str]
    doubts: list[str] = field(default_factory=list)


def answered(questions: Path, answers: Path, parsers: list[Parser]) -> Answered:
    """The labels of one file and the answers of the other.

    Raises:
        InputError: a label or an answer that is missing or no text, a label that a parser refuses, not as many answers
            as questions, or an answer that says it belongs to another question.
    """
    asked, said = records(questions), records(answers)
    pairs = Answered([_label(each, parsers) for each in asked], [each.text(*ANSWER_KEYS) for each in said])
    if len(asked) != len(said):
        raise said[-1].error(f"is the last of {len(said)} answers, but {questions} has {len(asked)} questions")
    for question, answer in zip(asked, said, strict=True):
        _must_match(question, answer)
        if not answer.text(*ANSWER_KEYS).strip():
            pairs.doubts.append(str(answer.error("is empty", answer.field(*ANSWER_KEYS))))
        if question.text("label") not in ("yes", "no"):
            pairs.doubts.append(str(question.error(f"is {question.text('label')!r}, not yes or no", "label")))
    pairs.doubts.extend(_strays(asked, said))
    return pairs


def _label(question: Record, parsers: list[Parser]) -> str:
    label = question.text("label")
    for parser in parsers:
        # VCD counts a question with another label in the total and nowhere else; the others stop.
        if parser.gold(label) is None and parser.name != "vcd":
            raise question.error(f"is {label!r}, and {parser.name} takes only yes or no", "label")
    return label


def _strays(asked: list[Record], said: list[Record]) -> Iterator[str]:
    """Answers that repeat the text of another question of the file."""
    texts = [question.value.get("text") for question in asked]
    known = {text for text in texts if isinstance(text, str)}
    for text, answer in zip(texts, said, strict=True):
        replied = answer.value.get("question")
        if isinstance(replied, str) and replied != text and replied in known:
            yield str(answer.error(f"is {replied[:60]!r}, but the question in this place is another", "question"))


def _must_match(question: Record, answer: Record) -> None:
    asked, replied = question.value.get("question_id"), answer.value.get("question_id")
    if asked is not None and replied is not None and str(asked) != str(replied):
        raise answer.error(f"is {replied!r}, but the question in this place has {asked!r}", "question_id")
