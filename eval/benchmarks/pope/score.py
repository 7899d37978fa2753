"""POPE's metrics over official question and answer files. Yes is the positive class."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from eval.benchmarks.pope.parsers import PARSERS, AnswerParser
from eval.core.jsonl import ANSWER_KEYS, JsonRecord, read_records


@dataclass(frozen=True)
class LabelledAnswers:
    """The labels of a question file and the answers of an answer file, in the same order.

    Attributes:
        labels: Labels as they are in the file.
        answers: The answers.
        warnings: Lines that are scored as the parser requires but are probably mistakes.
    """

    labels: list[str]
    answers: list[str]
    warnings: list[str] = field(default_factory=list)


def read_labelled_answers(questions: Path, answers: Path, parsers: list[AnswerParser]) -> LabelledAnswers:
    """Read question and answer files and pair their lines by order, like the official script.

    `InputError` is raised for a missing label or answer, a label that a parser refuses, different numbers of questions
    and answers, and an answer with the `question_id` of another question.

    Args:
        questions: Question file.
        answers: Answer file.
        parsers: Parsers that are going to be used.

    Returns:
        The pairs.
    """
    question_records, answer_records = read_records(questions), read_records(answers)
    pairs = LabelledAnswers(
        [read_label(each, parsers) for each in question_records],
        [each.get_string(*ANSWER_KEYS) for each in answer_records],
    )
    if len(question_records) != len(answer_records):
        raise answer_records[-1].build_error(
            f"is the last of {len(answer_records)} answers, but {questions} has {len(question_records)} questions. "
            "For labels of other authors, such as RePOPE, --questions is the file of POPE and --labels theirs"
        )
    for question, answer in zip(question_records, answer_records, strict=True):
        _check_ids(question, answer)
        if not answer.get_string(*ANSWER_KEYS).strip():
            pairs.warnings.append(str(answer.build_error("is empty", answer.find_first_key(*ANSWER_KEYS))))
        if question.get_string("label") not in ("yes", "no"):
            pairs.warnings.append(
                str(question.build_error(f"is {question.get_string('label')!r}, not yes or no", "label"))
            )
    pairs.warnings.extend(_find_misplaced_answers(question_records, answer_records))
    return pairs


def read_label(question: JsonRecord, parsers: list[AnswerParser]) -> str:
    """Read the label of a question. A label that is missing, or that a parser refuses, raises `InputError`."""
    label = question.get_string("label")
    for parser in parsers:
        # VCD counts a question with another label only in the total. The other scripts stop.
        if parser.parse_label(label) is None and parser.name != "vcd":
            raise question.build_error(f"is {label!r}, and {parser.name} accepts only yes or no", "label")
    return label


def _find_misplaced_answers(questions: list[JsonRecord], answers: list[JsonRecord]) -> Iterator[str]:
    """Find answers that repeat the text of another question of the file."""
    texts = [question.value.get("text") for question in questions]
    all_texts = {text for text in texts if isinstance(text, str)}
    for text, answer in zip(texts, answers, strict=True):
        repeated = answer.value.get("question")
        if isinstance(repeated, str) and repeated != text and repeated in all_texts:
            yield str(
                answer.build_error(f"is {repeated[:60]!r}, but the question at this position differs", "question")
            )


def _check_ids(question: JsonRecord, answer: JsonRecord) -> None:
    expected, given = question.value.get("question_id"), answer.value.get("question_id")
    if expected is not None and given is not None and str(expected) != str(given):
        raise answer.build_error(f"is {given!r}, but the question at this position has {expected!r}", "question_id")


@dataclass(frozen=True)
class PopeScore:
    """POPE's metrics, between 0 and 1.

    A metric is None if its division has no value. `notes` then has the reason under the name of the metric. The sum
    tp + fp + tn + fn is n, without answers that a parser treats as neither yes nor no.
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
        """Return the numbers by name, and `notes` if there are any."""
        numbers = {name: value for name, value in vars(self).items() if name != "notes"}
        return {**numbers, "notes": self.notes} if self.notes else numbers


def compute_score(
    labels: Sequence[str], answers: Sequence[str], parser: AnswerParser = PARSERS["official"]
) -> PopeScore:
    """Compute the metrics.

    Args:
        labels: Labels as they are in the question file.
        answers: Answers of the model, in the same order.
        parser: The parser.

    Returns:
        The metrics.

    Raises:
        ValueError: There are no answers, or not as many labels as answers.
    """
    if not labels:
        raise ValueError("there is nothing to score")
    pairs = [
        (parser.parse_label(label), parser.parse(answer, label)) for label, answer in zip(labels, answers, strict=True)
    ]
    tp, fp, tn = pairs.count(("yes", "yes")), pairs.count(("no", "yes")), pairs.count(("no", "no"))
    fn = pairs.count(("yes", "no")) + (pairs.count(("yes", None)) if parser.counts_unparsed_yes_as_fn else 0)
    notes: dict[str, str] = {}
    precision = recall = f1 = None
    if tp + fp:
        precision = tp / (tp + fp)
    else:
        notes["precision"] = "no answer is parsed as yes"
    if tp + fn:
        recall = tp / (tp + fn)
    else:
        notes["recall"] = "no answer to a question with the label yes counts"
    if precision and recall:
        f1 = 2 * precision * recall / (precision + recall)
    else:
        notes["f1"] = "there is no true positive"
    ratio_values = [label if parser.yes_ratio_of_labels else parsed for label, parsed in pairs]
    return PopeScore(
        tp=tp,
        fp=fp,
        tn=tn,
        fn=fn,
        accuracy=(tp + tn) / len(pairs),
        precision=precision,
        recall=recall,
        f1=f1,
        yes_ratio=ratio_values.count("yes") / len(pairs),
        n=len(pairs),
        unparsed=sum(parser.is_unparsed(answer) for answer in answers),
        notes=notes,
    )


def is_correct(label: str, answer: str, parser: AnswerParser = PARSERS["official"]) -> bool:
    """Return whether one answer is correct."""
    return parser.parse_label(label) is not None and parser.parse(answer, label) == parser.parse_label(label)


def measure_parser_disagreement(labels: Sequence[str], answers: Sequence[str]) -> float:
    """Compute the share of answers that the five parsers do not all parse alike."""
    pairs = list(zip(labels, answers, strict=True))
    differs = [len({parser.parse(answer, label) for parser in PARSERS.values()}) > 1 for label, answer in pairs]
    return sum(differs) / len(differs)
