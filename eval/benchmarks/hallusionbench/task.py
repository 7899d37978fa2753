"""The task `hallusionbench`: all questions of HallusionBench, also those that are asked without an image.

The questions of a set share figures and questions, so they are resampled, and sampled for `--limit`, together.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from eval.benchmarks.hallusionbench.score import (
    PARSER,
    HallusionAnswer,
    HallusionQuestion,
    group_answers,
    parse_question,
    read_questions,
)
from eval.benchmarks.yes_no import select_parser
from eval.core.jsonl import JsonRecord
from eval.core.metrics import Metric
from eval.core.task import BenchmarkQuestion, BenchmarkTask, Score, TaskOptions
from eval.errors import InputError

FILE = "HallusionBench.json"
FOLDERS = ("hallusion_bench", ".", "images")  # the first one is that of the authors' archive
GROUPS = {"fAcc": "figure", "qAcc": "question", "easy": "easy", "hard": "hard"}
"""The counts of each official number over groups of answers."""
MEANINGS = {
    "fAcc": "share of figures with every answer right",
    "qAcc": "share of questions with the right answer about every figure",
    "easy": "qAcc without edited images",
    "hard": "qAcc of edited images",
}

# Answers of a set depend on each other, so that no metric has McNemar's test, which takes single questions.
METRICS = (
    Metric("accuracy", "aAcc", {"right": 1}, {"n": 1}, primary=True, meaning="share of right answers"),
    *(
        Metric(
            f"{count}_accuracy",
            name,
            {f"{count}_right": 1},
            {count: 1},
            primary=name == "qAcc",
            meaning=MEANINGS[name],
        )
        for name, count in GROUPS.items()
    ),
    Metric("yes_ratio", "Yes", {"yes": 1}, {"n": 1}, better="neither"),
)


class HallusionBenchTask(BenchmarkTask):
    """HallusionBench from the official array, with its images.

    Args:
        data: Folder with the array, or with a folder `hallusion_bench` that has it.
        options: `parser` and `suffix` apply.
    """

    name = "hallusionbench"
    title = "HallusionBench, without a judge"
    max_tokens = 128
    metrics = METRICS
    overall_scope = "all questions"
    joint_drop_warnings = ()
    is_yes_no = True
    cluster = "set"

    def __init__(self, data: Path, options: TaskOptions) -> None:
        self.data = data
        self.parser = select_parser(options.parser, PARSER)
        self.suffix = options.suffix or ""  # The official questions have none.

    def list_source_files(self) -> list[Path]:
        """List the array.

        Returns:
            The file.

        Raises:
            InputError: There is none.
        """
        for file in (self.data / FILE, self.data / FOLDERS[0] / FILE):
            if file.is_file():
                return [file]
        raise InputError(f"there is no {FILE}", self.data)

    def load_questions(self) -> list[BenchmarkQuestion]:
        """Read the questions, sorted by category, because each category is a scope."""
        [file] = self.list_source_files()
        rows = sorted(read_questions(file), key=lambda row: row[1].category)
        sizes = Counter(question.set for _, question in rows)
        return [self._build_question(record, question, sizes[question.set]) for record, question in rows]

    def score_answers(self, questions: Sequence[BenchmarkQuestion], answers: Sequence[str]) -> list[Score]:
        """Score the answers. The last answer of a figure, and of a question, carries the counts of the group.

        Args:
            questions: The questions.
            answers: The answers, in the same order.

        Returns:
            One score for each answer. The questions of a set that lacks an answer have no counts.
        """
        parsed = [
            HallusionAnswer(parse_question(_read_row(question)), self.parser.parse(text, str(question.truth["label"])))
            for question, text in zip(questions, answers, strict=True)
        ]
        counts: list[dict[str, float]] = [
            {"n": 1, "right": float(each.is_correct), "yes": float(each.parsed == "yes")} for each in parsed
        ]
        places = {id(each): index for index, each in enumerate(parsed)}
        for name, groups in group_answers(parsed).items():
            for group in groups.values():
                correct = float(all(each.is_correct for each in group))
                counts[places[id(group[-1])]] |= {GROUPS[name]: 1, f"{GROUPS[name]}_right": correct}
        answered = Counter(question.group for question in questions)
        complete = [answered[question.group] == question.truth["set_size"] for question in questions]
        return [
            Score(
                each if is_complete else {},
                {"label": answer.question.truth, "parsed": answer.parsed, "right": answer.is_correct},
            )
            for each, is_complete, answer in zip(counts, complete, parsed, strict=True)
        ]

    def summarize_answers(self, questions: Sequence[BenchmarkQuestion], answers: Sequence[str]) -> dict[str, Any]:
        """Return the parser and the number of unclear answers."""
        return {"parser": self.parser.name, "unparsed": sum(self.parser.parse(each, "") is None for each in answers)}

    def _build_question(self, record: JsonRecord, question: HallusionQuestion, set_size: int) -> BenchmarkQuestion:
        text, name = record.get_string("question"), "/".join(question.set)
        return BenchmarkQuestion(
            f"{name}/{question.figure_id}/{question.question_id}",
            question.category,
            self._find_image(record, question),
            f"{text} {self.suffix}".strip(),
            {"label": question.truth, "question": text, "row": record.value, "set_size": set_size},
            group=name,
            cluster_name=name,
        )

    def _find_image(self, record: JsonRecord, question: HallusionQuestion) -> Path | None:
        """Find the image as the official script does, by its set and figure. Questions without one have none."""
        if question.visual_input == "0":
            return None
        category, subcategory, set_id = question.set
        name = Path(category, subcategory, f"{set_id}_{question.figure_id}.png")
        for folder in FOLDERS:
            if (image := self.data / folder / name).is_file():
                return image
        raise record.build_error(f"there is no image {name} under {self.data}", "figure_id")


def _read_row(question: BenchmarkQuestion) -> JsonRecord:
    row = question.truth["row"]
    return JsonRecord(row if isinstance(row, dict) else {}, Path(FILE))
