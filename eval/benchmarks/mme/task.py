"""The task `mme`: the hallucination subset, two questions for each image, in four subtasks."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from eval.benchmarks.mme.score import SUBTASKS, parse_yes_no
from eval.core.jsonl import read_lines
from eval.core.metrics import Metric
from eval.core.task import BenchmarkQuestion, BenchmarkTask, Score, TaskOptions
from eval.errors import InputError

SUFFIXES = (".jpg", ".jpeg", ".png")
ALL = {"n": 1.0}

METRICS = (
    Metric(
        "score",
        "Score",
        {"right": 1, "both": 2},
        ALL,
        primary=True,
        meaning="sum of accuracy and accuracy+, at most 200",
    ),  # 100 x (accuracy + accuracy+)
    Metric("accuracy", "Accuracy", {"right": 1}, ALL, per_question=True, meaning="share of right answers"),
    Metric("accuracy_plus", "Accuracy+", {"both": 1}, {"pairs": 1}, meaning="share of images with both answers right"),
    Metric("yes_ratio", "Yes", {"yes": 1}, ALL, better="neither"),
)


class MmeTask(BenchmarkTask):
    """MME's hallucination subset in the released layout."""

    name = "mme"
    title = "MME, hallucination subset"
    max_tokens = 64
    metrics = METRICS
    overall_scope = "mean over the questions of all subtasks"
    joint_drop_warnings = ()
    is_yes_no = True

    def __init__(self, data: Path, options: TaskOptions) -> None:
        self.data = data
        self.suffix = options.suffix or ""  # The questions already request yes or no.

    def list_source_files(self) -> list[Path]:
        """List the question files. A subtask is a folder with a text file beside every image, or one level deeper.

        Returns:
            The question files.

        Raises:
            InputError: There is none.
        """
        files = [
            file
            for subtask in SUBTASKS
            for folder in (self.data / subtask, self.data / subtask / "questions_answers_YN")
            for file in sorted(folder.glob("*.txt"))
        ]
        if not files:
            raise InputError(f"none of the folders {', '.join(SUBTASKS)} has question files", self.data)
        return files

    def load_questions(self) -> list[BenchmarkQuestion]:
        """Read all question files."""
        return [question for file in self.list_source_files() for question in self._read_questions(file)]

    def score_answers(self, questions: Sequence[BenchmarkQuestion], answers: Sequence[str]) -> list[Score]:
        """Score the answers. The second question of an image carries the counts of the pair.

        Args:
            questions: The questions.
            answers: The answers, in the same order.

        Returns:
            One score for each answer. A question without the other one of its image has no counts.
        """
        parsed = [parse_yes_no(answer) for answer in answers]
        correct = [each == question.truth["label"] for question, each in zip(questions, parsed, strict=True)]
        pairs: dict[str, list[int]] = {}
        for index, question in enumerate(questions):
            pairs.setdefault(f"{question.scope}/{question.cluster}", []).append(index)
        scores = [
            Score({"n": 1, "right": int(right), "yes": int(each == "yes")}, {"parsed": each, "right": right})
            for right, each in zip(correct, parsed, strict=True)
        ]
        for indices in pairs.values():
            if len(indices) != 2:  # The other question has no answer.
                scores[indices[0]] = Score({}, scores[indices[0]].detail)
            else:
                last = scores[indices[-1]]
                pair_counts = {"pairs": 1, "both": int(all(correct[index] for index in indices))}
                scores[indices[-1]] = Score({**last.counts, **pair_counts}, last.detail)
        return scores

    def summarize_answers(self, questions: Sequence[BenchmarkQuestion], answers: Sequence[str]) -> dict[str, Any]:
        """Count the answers that are neither yes nor no."""
        return {"unparsed": sum(parse_yes_no(answer) == "other" for answer in answers)}

    def _read_questions(self, file: Path) -> list[BenchmarkQuestion]:
        subtask = file.relative_to(self.data).parts[0]
        image = self._find_image(file)
        rows = [(number, line) for number, line in enumerate(read_lines(file), 1) if line.strip()]
        if len(rows) != 2:
            raise InputError(f"has {len(rows)} questions, not 2", file)
        questions = []
        for number, line in rows:
            text, tab, label = line.rpartition("\t")
            if not tab or label.strip() not in {"Yes", "No"}:
                raise InputError("must be a question, a tab, and Yes or No", file, number)
            prompt = f"{text.strip()} {self.suffix}".strip()
            truth = {"label": label.strip().lower(), "question": text.strip()}
            questions.append(
                BenchmarkQuestion(f"{subtask}/{file.stem}/{number}", subtask, image, prompt, truth, file.stem)
            )
        return questions

    def _find_image(self, file: Path) -> Path:
        subtask = self.data / file.relative_to(self.data).parts[0]
        for folder in (file.parent, subtask / "images", subtask):
            for suffix in SUFFIXES:
                if (image := folder / f"{file.stem}{suffix}").is_file():
                    return image
        raise InputError("there is no image with this name", file)
