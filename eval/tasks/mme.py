"""MME's hallucination subset: two questions a picture, in four subtasks."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from eval.errors import InputError
from eval.inputs import lines
from eval.metrics import Metric
from eval.mme import SUBTASKS, read
from eval.question import Mark, Question
from eval.tasks.options import Options
from eval.tasks.task import Task

SUFFIXES = (".jpg", ".jpeg", ".png")
ALL = {"n": 1.0}

METRICS = (
    Metric("score", "Score", {"right": 1, "both": 2}, ALL, primary=True),  # 100 x (accuracy + accuracy+)
    Metric("accuracy", "Accuracy", {"right": 1}, ALL, per_question=True),
    Metric("accuracy_plus", "Accuracy+", {"both": 1}, {"pairs": 1}),
    Metric("yes_ratio", "Yes", {"yes": 1}, ALL, better="neither"),
)


class MME(Task):
    name = "mme"
    title = "MME, hallucination subset"
    max_tokens = 64
    metrics = METRICS
    whole = "mean of the subtasks' questions"
    cautions = ()

    def __init__(self, data: Path, options: Options) -> None:
        self.data = data
        self.suffix = options.suffix or ""  # the questions ask for yes or no themselves

    def files(self) -> list[Path]:
        """As released: a folder for each subtask, in it a text beside every picture, or one level deeper."""
        found = [
            file
            for subtask in SUBTASKS
            for place in (self.data / subtask, self.data / subtask / "questions_answers_YN")
            for file in sorted(place.glob("*.txt"))
        ]
        if not found:
            raise InputError(f"none of the folders {', '.join(SUBTASKS)} holds questions", self.data)
        return found

    def questions(self) -> list[Question]:
        return [question for file in self.files() for question in self._read(file)]

    def marks(self, questions: Sequence[Question], answers: Sequence[str]) -> list[Mark]:
        right = [read(answer) == question.truth["label"] for question, answer in zip(questions, answers, strict=True)]
        pairs: dict[str, list[int]] = {}
        for at, question in enumerate(questions):
            pairs.setdefault(f"{question.scope}/{question.cluster}", []).append(at)
        marks = [
            Mark({"n": 1, "right": int(good), "yes": int(read(answer) == "yes")}, {"right": good})
            for good, answer in zip(right, answers, strict=True)
        ]
        for places in pairs.values():
            if len(places) != 2:  # its other question has no answer, or was left out by --limit
                marks[places[0]] = Mark({}, marks[places[0]].detail)
            else:
                last = marks[places[-1]]
                both = {"pairs": 1, "both": int(all(right[at] for at in places))}
                marks[places[-1]] = Mark({**last.counts, **both}, last.detail)
        return marks

    def notes(self, questions: Sequence[Question], answers: Sequence[str]) -> dict[str, Any]:
        return {"unparsed": sum(read(answer) == "other" for answer in answers)}

    def _read(self, file: Path) -> list[Question]:
        subtask = file.relative_to(self.data).parts[0]
        image = self._picture(file)
        rows = [(number, line) for number, line in enumerate(lines(file), 1) if line.strip()]
        if len(rows) != 2:
            raise InputError(f"has {len(rows)} questions, not 2", file)
        found = []
        for number, line in rows:
            asked, tab, label = line.rpartition("\t")
            if not tab or label.strip() not in {"Yes", "No"}:
                raise InputError("must be a question, a tab, and Yes or No", file, number)
            prompt = f"{asked.strip()} {self.suffix}".strip()
            truth = {"label": label.strip().lower(), "asked": asked.strip()}
            found.append(Question(f"{subtask}/{file.stem}/{number}", subtask, image, prompt, truth))
        return found

    def _picture(self, file: Path) -> Path:
        subtask = self.data / file.relative_to(self.data).parts[0]
        for folder in (file.parent, subtask / "images", subtask):
            for suffix in SUFFIXES:
                if (image := folder / f"{file.stem}{suffix}").is_file():
                    return image
        raise InputError("there is no picture of that name beside it", file)
