"""The task `mmhal`: MMHal-Bench (arXiv:2309.14525), 96 questions whose answers another model rates from 0 to 6.

The judge sees no image, but the objects in it and a correct answer. Numbers of different judges, and of different
prompts of one judge, are not comparable.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import JsonValue

from eval.benchmarks.caption_metrics import ALL, build_length
from eval.benchmarks.llm_judge import HALLUCINATED_BELOW, fill_template, hash_verdict, parse_rating
from eval.core.dataset import ImageFolder
from eval.core.hashing import hash_json
from eval.core.jsonl import JsonRecord, read_records
from eval.core.metrics import Metric
from eval.core.results import ExtraTable, TableRow
from eval.core.task import BenchmarkQuestion, BenchmarkTask, Score, TaskOptions
from eval.errors import InputError

FILE = "response_template.json"
IMAGE_FOLDERS = ("images", ".")

METRICS = (
    Metric(
        "rating", "Rating", {"rating": 1}, ALL, percent=False, primary=True, meaning="mean rating of the judge, 0 to 6"
    ),
    Metric(
        "hallucination_rate",
        "Hallucinated",
        {"hallucinated": 1},
        ALL,
        better="lower",
        per_question=True,
        primary=True,
        meaning="share of answers that the judge rates below 3",
    ),
    build_length("words", "Words", "words", "number of words of an answer"),
)


class MmhalTask(BenchmarkTask):
    """MMHal-Bench from the released template and its images.

    Args:
        data: Folder with the template and with a folder `images`.
        options: `judge` applies.
    """

    name = "mmhal"
    title = "MMHal-Bench, rated by a judge"
    max_tokens = 512
    metrics = METRICS
    overall_scope = None
    joint_drop_warnings = ()
    needs_judge = True

    def __init__(self, data: Path, options: TaskOptions) -> None:
        self.data = data
        self.judge = options.judge
        self._verdicts: dict[str, str] = {}

    def list_source_files(self) -> list[Path]:
        """List the template.

        Returns:
            The file.

        Raises:
            InputError: There is none.
        """
        if not (self.data / FILE).is_file():
            raise InputError(f"there is no {FILE}", self.data)
        return [self.data / FILE]

    def load_questions(self) -> list[BenchmarkQuestion]:
        """Read the questions. The prompt is the question alone."""
        [file] = self.list_source_files()
        images = ImageFolder(self.data, IMAGE_FOLDERS)
        return [self._build_question(index, record, images) for index, record in enumerate(read_records(file))]

    def build_judge_prompt(self, question: BenchmarkQuestion, answer: str) -> str:
        """Build the prompt of the judge about an answer.

        Args:
            question: The question.
            answer: The answer.

        Returns:
            The prompt of the settings, with the fields of the row.

        Raises:
            ValueError: The task has no judge.
        """
        if self.judge is None:
            raise ValueError("the task has no judge")
        row = question.truth["row"]
        fields = {**(row if isinstance(row, dict) else {}), "model_answer": answer}
        return fill_template(self.judge.prompt, JsonRecord(fields, self.data / FILE, index=int(question.id)))

    def add_verdicts(self, verdicts: Mapping[str, str]) -> None:
        """Add verdicts by the hash of judge and prompt."""
        self._verdicts |= verdicts

    def has_verdict(self, question: BenchmarkQuestion, answer: str) -> bool:
        """Return whether the judge has rated the answer."""
        return self._find_verdict(question, answer) is not None

    def check_scorable(self, questions: Sequence[BenchmarkQuestion]) -> None:
        """Build a prompt of the judge for every question, because a field that it names may be missing."""
        if self.judge is not None:
            for question in questions:
                self.build_judge_prompt(question, "")

    def score_answers(self, questions: Sequence[BenchmarkQuestion], answers: Sequence[str]) -> list[Score]:
        """Read the rating of each answer. As in the official script, a verdict without one rating counts as 0.

        Args:
            questions: The questions.
            answers: The answers, in the same order.

        Returns:
            One score for each answer, without counts if it has no verdict.
        """
        return [
            _build_score(self._find_verdict(question, answer), answer)
            for question, answer in zip(questions, answers, strict=True)
        ]

    def summarize_answers(self, questions: Sequence[BenchmarkQuestion], answers: Sequence[str]) -> dict[str, Any]:
        """Return the judge, the hash of its prompt, and the number of verdicts without one rating."""
        verdicts = [self._find_verdict(question, text) for question, text in zip(questions, answers, strict=True)]
        return {
            "judge": self.judge and self.judge.model,
            "prompt": self.judge and hash_json(self.judge.prompt)[:16],
            "unparsed": sum(verdict is not None and parse_rating(verdict) is None for verdict in verdicts),
        }

    def build_tables(
        self, questions: Sequence[BenchmarkQuestion], answers: Mapping[str, Sequence[str]]
    ) -> list[ExtraTable]:
        """Build the table of mean ratings by type of question."""
        types = list(dict.fromkeys(str(question.truth["label"]) for question in questions))
        rows = []
        for label, texts in answers.items():
            ratings: defaultdict[str, list[float]] = defaultdict(list)
            for question, score in zip(questions, self.score_answers(questions, texts), strict=True):
                ratings[str(question.truth["label"])].append(score.counts["rating"])
            means = [sum(ratings[type]) / len(ratings[type]) for type in types]
            rows.append(TableRow(strategy=label, values=[*means]))
        return [ExtraTable(title="Rating by type of question", headers=types, rows=rows, percent=False, decimals=2)]

    def _find_verdict(self, question: BenchmarkQuestion, answer: str) -> str | None:
        if self.judge is None:
            return None
        return self._verdicts.get(hash_verdict(self.judge.model, self.build_judge_prompt(question, answer)))

    def _build_question(self, index: int, record: JsonRecord, images: ImageFolder) -> BenchmarkQuestion:
        record.get_strings("image_content")
        record.get_string("gt_answer")
        name = record.get_string("image_src").rpartition("/")[2]
        image = images.find_image(name)
        if image is None:
            raise record.build_error(f"there is no image {name} under {self.data}", "image_src")
        question = record.get_string("question")
        truth: dict[str, JsonValue] = {
            "label": record.get_string("question_type"),
            "question": question,
            "row": record.value,
        }
        return BenchmarkQuestion(str(index), "questions", image, question, truth)


def _build_score(verdict: str | None, answer: str) -> Score:
    if verdict is None:
        return Score({})
    rating = parse_rating(verdict)
    is_hallucinated = (rating or 0) < HALLUCINATED_BELOW
    counts = {
        "n": 1.0,
        "rating": float(rating or 0),
        "hallucinated": float(is_hallucinated),
        "words": float(len(answer.split())),
    }
    return Score(counts, {"parsed": rating, "right": not is_hallucinated})
