"""POPE: is there such an object in the picture? Three splits, which share their positive questions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from eval.dataset import Pictures
from eval.errors import EvaluationError, InputError
from eval.inputs import records
from eval.metrics import Metric
from eval.pope.parsers import PARSERS
from eval.pope.score import disagreement
from eval.question import Mark, Question
from eval.tasks.options import Options
from eval.tasks.task import Task

SPLITS = ("random", "popular", "adversarial")
SUFFIX = "Please answer this question with one word."
ALL = {"n": 1.0}

METRICS = (
    Metric("accuracy", "Accuracy", {"right": 1}, ALL, per_question=True, primary=True),
    Metric("f1", "F1", {"tp": 2}, {"tp": 2, "fp": 1, "fn": 1}),
    Metric("precision", "Precision", {"tp": 1}, {"tp": 1, "fp": 1}),
    Metric("recall", "Recall", {"tp": 1}, {"tp": 1, "fn": 1}),
    Metric("yes_ratio", "Yes", {"yes": 1}, ALL, better="neither"),
)


class Pope(Task):
    name = "pope"
    title = "POPE"
    max_tokens = 64
    metrics = METRICS
    whole = "all splits"
    cautions = ()

    def __init__(self, data: Path, options: Options) -> None:
        if options.parser not in PARSERS:
            raise EvaluationError(f"There is no parser '{options.parser}'. There are {', '.join(PARSERS)}.")
        self.data = data
        self.parser = PARSERS[options.parser]
        self.suffix = SUFFIX if options.suffix is None else options.suffix

    def files(self) -> list[Path]:
        found = [file for split in SPLITS for file in self._files(split)]
        if not found:
            raise InputError("no question files: expected pope/random.jsonl and the like", self.data)
        return found

    def questions(self) -> list[Question]:
        _ = self.files()
        pictures = Pictures(self.data)
        return [
            question
            for split in SPLITS
            for file in self._files(split)
            for question in self._read(split, file, pictures)
        ]

    def marks(self, questions: Sequence[Question], answers: Sequence[str]) -> list[Mark]:
        return [
            self._mark(str(question.truth["label"]), text) for question, text in zip(questions, answers, strict=True)
        ]

    def notes(self, questions: Sequence[Question], answers: Sequence[str]) -> dict[str, Any]:
        labels = [str(question.truth["label"]) for question in questions]
        return {
            "parser": self.parser.name,
            "unparsed": sum(map(self.parser.unparsed, answers)),
            "parsers_disagree": disagreement(labels, answers),
        }

    def _files(self, split: str) -> list[Path]:
        """Ours is named by the split; official names end in it: coco_pope_random.json."""
        for folder in (self.data / "pope", self.data):
            if found := sorted([*folder.glob(f"{split}.json*"), *folder.glob(f"*_pope_{split}.json*")]):
                if len(found) > 1:
                    names = ", ".join(file.name for file in found)
                    raise InputError(f"{len(found)} files hold the split {split} ({names}): leave one", folder)
                return found
        return []

    def _read(self, split: str, file: Path, pictures: Pictures) -> list[Question]:
        found = []
        for record in records(file):
            name, label = record.text("image"), record.text("label")
            if label not in {"yes", "no"}:
                raise record.error(f"must be yes or no, not {label[:40]!r}", "label")
            if (image := pictures.find(name)) is None:
                raise record.error(f"there is no picture {name} under {self.data}", "image")
            prompt = f"{record.text('text')} {self.suffix}".strip()
            truth = {"label": label, "asked": record.text("text")}
            found.append(Question(f"{split}/{record.identifier('question_id')}", split, image, prompt, truth))
        if repeated := [identity for identity, times in Counter(q.id for q in found).items() if times > 1]:
            raise InputError(f"{repeated[0].partition('/')[2]} is used twice", file, None, "question_id")
        return found

    def _mark(self, label: str, answer: str) -> Mark:
        gold, read = self.parser.gold(label), self.parser.read(answer, label)
        counts = {
            "n": 1.0,
            "right": float(read == gold),
            "yes": float((gold if self.parser.yes_ratio_of_labels else read) == "yes"),
        }
        match gold, read:
            case "yes", "yes":
                counts["tp"] = 1.0
            case "no", "yes":
                counts["fp"] = 1.0
            case "no", "no":
                counts["tn"] = 1.0
            case "yes", "no":
                counts["fn"] = 1.0
            case "yes", None if self.parser.unread_yes_is_missed:
                counts["fn"] = 1.0
            case _:
                pass
        return Mark(counts, {"label": label, "read": read, "right": read == gold})
