"""The task `pope`: questions whether an object is in the image, in three splits that share their positive questions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from eval.benchmarks.pope.parsers import PARSERS
from eval.benchmarks.pope.relabelling import AskedQuestion, LabelFile, LabelJoin, build_key
from eval.benchmarks.pope.score import measure_parser_disagreement
from eval.benchmarks.yes_no import score_answer, select_parser
from eval.core.dataset import ImageFolder
from eval.core.jsonl import read_records
from eval.core.metrics import Metric
from eval.core.results import ExtraTable, TableRow
from eval.core.task import BenchmarkQuestion, BenchmarkTask, Score, TaskOptions
from eval.errors import InputError

SPLITS = ("random", "popular", "adversarial")
NAMES = ("{}.json*", "*_pope_{}.json*", "*_pope_seem_{}.json*")  # of this repository, and official
RELABELLED_NAMES = ("*_repope_{}.json*",)
SETS = {"aokvqa": "A-OKVQA", "gqa": "GQA"}  # sets of images besides COCO, by the first part of official names
SUFFIX = "Please answer this question with one word."
ALL = {"n": 1.0}

METRICS: tuple[Metric, ...] = (
    Metric(
        "accuracy", "Accuracy", {"right": 1}, ALL, per_question=True, primary=True, meaning="share of right answers"
    ),
    Metric("f1", "F1", {"tp": 2}, {"tp": 2, "fp": 1, "fn": 1}, meaning="harmonic mean of precision and recall"),
    Metric(
        "precision", "Precision", {"tp": 1}, {"tp": 1, "fp": 1}, meaning="share of right answers among those with yes"
    ),
    Metric("recall", "Recall", {"tp": 1}, {"tp": 1, "fn": 1}, meaning="share of present objects that are confirmed"),
    Metric("yes_ratio", "Yes", {"yes": 1}, ALL, better="neither"),
)
SPECIFICITY = Metric(
    "specificity", "Specificity", {"tn": 1}, {"tn": 1, "fp": 1}, meaning="share of absent objects that are denied"
)


def find_label_files(labels: str, data: Path) -> dict[str, Path]:
    """Find files of labels by split.

    Args:
        labels: A file whose name contains that of a split, a folder with such files, or `repope`.
        data: Data folder, whose files of RePOPE are used for `repope`.

    Returns:
        Split to file.

    Raises:
        InputError: There is no file for a split, or more than one.
    """
    path = Path(labels).expanduser()
    if labels == "repope":
        path = data
        files = [file for folder in (data / "pope", data) for file in folder.glob("*_repope_*.json*")]
    else:
        files = sorted(path.glob("*.json*")) if path.is_dir() else [path]
    found: dict[str, Path] = {}
    for split in SPLITS:
        named = [file for file in files if split in file.name]
        if len(named) > 1:
            names = ", ".join(file.name for file in named)
            raise InputError(f"{len(named)} files for the split {split} ({names}). Name one of them", path)
        if named:
            found[split] = named[0]
    if not found:
        raise InputError(f"no file of labels has one of the names {', '.join(SPLITS)} in its name", path)
    return found


class PopeTask(BenchmarkTask):
    """POPE from question files of this repository, of the official one, or of RePOPE.

    The official files are about images of COCO, A-OKVQA or GQA. One folder has the splits of one of them.
    RePOPE has other labels, and lacks ambiguous questions. Its files are used if a folder has none of POPE.

    Args:
        data: Folder with images and question files.
        options: `parser`, `suffix`, `labels` and `allow_missing` apply.
    """

    name = "pope"
    title = "POPE"
    max_tokens = 64
    metrics = METRICS
    overall_scope = "all splits"
    joint_drop_warnings = ()
    is_yes_no = True

    def __init__(self, data: Path, options: TaskOptions) -> None:
        self.data = data
        self.parser = select_parser(options.parser, PARSERS["official"])
        self.suffix = SUFFIX if options.suffix is None else options.suffix
        self._names: tuple[str, ...] = NAMES
        if not any(self._find_files(split) for split in SPLITS):
            self._names = RELABELLED_NAMES
            if any(self._find_files(split) for split in SPLITS):
                self.title = "RePOPE"
        if name := self._find_set():
            self.title = f"{self.title} on {name}"
        self._allow_missing = options.allow_missing
        self._label_files: dict[str, Path] = {}
        self._joins: dict[str, LabelJoin] = {}
        if options.labels is not None:
            self._label_files = find_label_files(options.labels, data)
            self.title = f"{self.title} with the labels of {Path(options.labels).name}"
            self.metrics = (*METRICS, SPECIFICITY)

    def list_source_files(self) -> list[Path]:
        """List the question files.

        Returns:
            The question files, at most one for each split.

        Raises:
            InputError: There is none.
        """
        files = [file for split in SPLITS for file in self._find_files(split)]
        if not files:
            raise InputError("no question files, expected pope/random.jsonl and others", self.data)
        return [*files, *self._label_files.values()]

    def load_questions(self) -> list[BenchmarkQuestion]:
        """Read the questions of all splits."""
        _ = self.list_source_files()
        images = ImageFolder(self.data)
        return [
            question
            for split in SPLITS
            for file in self._find_files(split)
            for question in self._read_questions(split, file, images)
        ]

    def score_answers(self, questions: Sequence[BenchmarkQuestion], answers: Sequence[str]) -> list[Score]:
        """Score each answer with the parser."""
        return [
            score_answer(self.parser, str(question.truth["label"]), answer)
            for question, answer in zip(questions, answers, strict=True)
        ]

    def replace_labels(self, questions: list[BenchmarkQuestion]) -> list[BenchmarkQuestion]:
        """Replace the labels, and drop the questions that the files of labels lack.

        Splits without a file of labels are dropped. A label whose question is not among the questions raises
        `InputError`, unless that is allowed.

        Args:
            questions: The questions of a run.

        Returns:
            The questions with their new labels.
        """
        if not self._label_files:
            return questions
        relabelled: list[BenchmarkQuestion] = []
        for split, file in self._label_files.items():
            members = [question for question in questions if question.scope == split]
            asked = [
                AskedQuestion(
                    build_key(each.image.name if each.image else "", str(each.truth["question"])),
                    str(each.truth["label"]),
                    each.id.partition("/")[2],
                )
                for each in members
            ]
            labels = LabelFile.read(file, [self.parser])
            join = labels.join(asked, f"the split {split} of the run", allow_missing=self._allow_missing)
            self._joins[split] = join
            relabelled += [
                replace(question, truth={**question.truth, "label": label})
                for question, label in zip(members, join.labels, strict=True)
                if label is not None
            ]
        return relabelled

    def build_tables(
        self, questions: Sequence[BenchmarkQuestion], answers: Mapping[str, Sequence[str]]
    ) -> list[ExtraTable]:
        """Build the table of the join with other labels, if there are any.

        Args:
            questions: The questions.
            answers: The answers of each strategy.

        Returns:
            The table, or an empty list.
        """
        if not self._joins:
            return []
        changes = list(dict.fromkeys(sorted(name for join in self._joins.values() for name in join.changes)))
        rows = [
            TableRow(
                strategy=split,
                values=[
                    join.matched,
                    len(join.labels) - join.matched,
                    join.unanswered,
                    join.moved_ids,
                    *(join.changes.get(name, 0) for name in changes),
                ],
            )
            for split, join in self._joins.items()
        ]
        headers = ["matched", "dropped", "unanswered", "moved ids", *changes]
        return [ExtraTable(title="Questions with other labels", headers=headers, rows=rows, percent=False)]

    def summarize_answers(self, questions: Sequence[BenchmarkQuestion], answers: Sequence[str]) -> dict[str, Any]:
        """Return the parser, the number of unparsed answers and the disagreement of the parsers."""
        labels = [str(question.truth["label"]) for question in questions]
        return {
            "parser": self.parser.name,
            "unparsed": sum(map(self.parser.is_unparsed, answers)),
            "parsers_disagree": measure_parser_disagreement(labels, answers),
        }

    def _find_files(self, split: str) -> list[Path]:
        """Find the file of a split."""
        for folder in (self.data / "pope", self.data):
            if files := sorted(file for name in self._names for file in folder.glob(name.format(split))):
                if len(files) > 1:
                    names = ", ".join(file.name for file in files)
                    raise InputError(f"{len(files)} files for the split {split} ({names}). Keep one of them", folder)
                return files
        return []

    def _find_set(self) -> str | None:
        """Return the name of a set of images besides COCO that the names of all files have."""
        files = {split: file.name for split in SPLITS for file in self._find_files(split)}
        names = {name.partition("_")[0] if "_pope_" in name else "" for name in files.values()}
        if len(names) > 1 and names & SETS.keys():
            listed = ", ".join(files.values())
            raise InputError(f"the splits are of different sets of images ({listed}). Keep those of one", self.data)
        return SETS.get("".join(names)) if len(names) == 1 else None

    def _read_questions(self, split: str, file: Path, images: ImageFolder) -> list[BenchmarkQuestion]:
        questions = []
        for record in read_records(file):
            name, label = record.get_string("image"), record.get_string("label")
            if label not in {"yes", "no"}:
                raise record.build_error(f"must be yes or no, not {label[:40]!r}", "label")
            if (image := images.find_image(name)) is None:
                raise record.build_error(f"there is no image {name} under {self.data}", "image")
            text = record.get_string("text")
            truth = {"label": label, "question": text}
            questions.append(
                BenchmarkQuestion(
                    f"{split}/{record.get_identifier('question_id')}",
                    split,
                    image,
                    f"{text} {self.suffix}".strip(),
                    truth,
                )
            )
        if repeated := [id for id, times in Counter(question.id for question in questions).items() if times > 1]:
            raise InputError(f"{repeated[0].partition('/')[2]} is used twice", file, None, "question_id")
        return questions
