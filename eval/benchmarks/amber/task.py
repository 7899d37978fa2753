"""The tasks `amber` and `amber-generative`: AMBER's yes/no questions and captions, from the official files.

The metrics with intervals and tests are plain ratios. The official numbers, which are rounded and have small constants
in their denominators, stand in tables beside them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from eval.benchmarks.amber import discriminative, generative
from eval.benchmarks.amber.answers import GENERATIVE, AmberAnswer
from eval.benchmarks.amber.dataset import AmberFolder, AmberQuery
from eval.benchmarks.caption_metrics import ALL, build_caption_rate, build_length, build_mention_rate
from eval.benchmarks.pope.parsers import AnswerParser, YesNo
from eval.benchmarks.yes_no import select_parser
from eval.core.jsonl import JsonRecord
from eval.core.metrics import Metric
from eval.core.results import ExtraTable, TableRow
from eval.core.task import BenchmarkQuestion, BenchmarkTask, Score, TaskOptions

DISCRIMINATIVE = "discriminative"
PARTS = ("existence", "attribute", "state", "number", "action", "relation")
WORDS: Mapping[str | None, str] = {"yes": "Yes", "no": "No", None: ""}

# The positive class is no. An image has 14 questions, which depend on each other, so that no metric has McNemar's test.
QUESTION_METRICS = (
    Metric("accuracy", "Accuracy", {"right": 1}, ALL, primary=True, meaning="share of right answers"),
    Metric(
        "precision",
        "Precision of no",
        {"true_no": 1},
        {"said_no": 1},
        meaning="share of right answers among those with no",
    ),
    Metric(
        "recall",
        "Recall of no",
        {"true_no": 1},
        {"labelled_no": 1},
        meaning="share of questions with the label no that are denied",
    ),
    Metric(
        "f1",
        "F1 of no",
        {"true_no": 2},
        {"said_no": 1, "labelled_no": 1},
        primary=True,
        meaning="harmonic mean of precision and recall of the answer no",
    ),
    Metric("yes_ratio", "Yes", {"yes": 1}, ALL, better="neither"),
)
CAPTION_METRICS = (
    build_mention_rate("chair", "CHAIR", "unsupported", "nouns"),
    Metric(
        "cover", "Cover", {"covered": 1}, {"present": 1}, meaning="share of annotated objects that captions mention"
    ),
    build_caption_rate("hal", "Hal"),
    Metric(
        "cog",
        "Cog",
        {"confirmed": 1},
        {"likely": 1},
        better="lower",
        meaning="share of likely hallucinations that captions mention",
    ),
    build_length("words", "Words", "words", "number of words of a caption"),
)


class AmberParser(AnswerParser):
    """The answers `Yes` and `No`, without any other character. Others are wrong."""

    name = "official"

    def parse(self, answer: str, label: str) -> YesNo | None:
        return "yes" if answer == "Yes" else "no" if answer == "No" else None

    def is_unparsed(self, answer: str) -> bool:
        return self.parse(answer, "") is None


class AmberTask(BenchmarkTask):
    """AMBER's yes/no questions.

    Args:
        data: Copy of the authors' repository with images, or of its folder `data`.
        options: `parser` and `suffix` apply.
    """

    name = "amber"
    title = "AMBER, discriminative"
    max_tokens = 64
    metrics = QUESTION_METRICS
    overall_scope = "all questions"
    joint_drop_warnings = ()
    is_yes_no = True

    def __init__(self, data: Path, options: TaskOptions) -> None:
        self.folder = AmberFolder(data)
        self.parser = select_parser(options.parser, AmberParser())
        self.suffix = options.suffix or ""  # The official queries have none.

    def list_source_files(self) -> list[Path]:
        """List annotations and queries."""
        return [self.folder.annotations, *self.folder.list_query_files(DISCRIMINATIVE)]

    def load_questions(self) -> list[BenchmarkQuestion]:
        """Read the questions. A scope is a dimension: existence, attribute or relation."""
        return [self._build_question(query) for query in self.folder.read_queries(DISCRIMINATIVE)]

    def score_answers(self, questions: Sequence[BenchmarkQuestion], answers: Sequence[str]) -> list[Score]:
        """Parse and count each answer."""
        return [
            self._score_answer(str(question.truth["label"]), answer)
            for question, answer in zip(questions, answers, strict=True)
        ]

    def summarize_answers(self, questions: Sequence[BenchmarkQuestion], answers: Sequence[str]) -> dict[str, Any]:
        """Return the parser and the number of unparsed answers."""
        return {"parser": self.parser.name, "unparsed": sum(map(self.parser.is_unparsed, answers))}

    def build_tables(
        self, questions: Sequence[BenchmarkQuestion], answers: Mapping[str, Sequence[str]]
    ) -> list[ExtraTable]:
        """Build tables of the official numbers: of all questions, and accuracy and F1 of every dimension."""
        constants = {name: [answer] * len(questions) for name, answer in self.constant_answers.items()}
        scores = {
            label: discriminative.score_questions(list(self._iter_official(questions, texts)))
            for label, texts in {**answers, **constants}.items()
        }
        parts = [part for part in PARTS if any(part in each for each in scores.values())]
        names = ("accuracy", "precision", "recall", "f1")
        tables = [
            ExtraTable(
                title="Official numbers, all questions",
                headers=[name.capitalize() for name in names],
                rows=[
                    TableRow(strategy=label, values=[each["all"][name] / 100 for name in names])
                    for label, each in scores.items()
                ],
            )
        ]
        for name in ("accuracy", "f1"):
            rows = [
                TableRow(strategy=label, values=[each[part][name] / 100 for part in parts])
                for label, each in scores.items()
            ]
            tables.append(ExtraTable(title=f"Official {name} by dimension", headers=parts, rows=rows))
        return tables

    def _iter_official(self, questions: Sequence[BenchmarkQuestion], answers: Sequence[str]) -> Iterator[AmberAnswer]:
        """Yield the answers as the official script reads them: what the parser reads as yes or no is `Yes` or `No`."""
        for question, answer in zip(questions, answers, strict=True):
            label = str(question.truth["label"])
            annotation = JsonRecord({"truth": label}, self.folder.annotations)
            yield AmberAnswer(WORDS[self.parser.parse(answer, label)], str(question.truth["type"]), annotation)

    def _score_answer(self, label: str, answer: str) -> Score:
        parsed = self.parser.parse(answer, label)
        counts = {
            "n": 1.0,
            "right": float(parsed == label),
            "yes": float(parsed == "yes"),
            "said_no": float(parsed == "no"),
            "labelled_no": float(label == "no"),
            "true_no": float(label == parsed == "no"),
        }
        return Score(counts, {"label": label, "parsed": parsed, "right": parsed == label})

    def _build_question(self, query: AmberQuery) -> BenchmarkQuestion:
        label = query.annotation.get_string("truth")
        if label not in ("yes", "no"):
            raise query.annotation.build_error(f"is {label!r}, not yes or no", "truth")
        attributes = (discriminative.STATE, discriminative.NUMBER, discriminative.ACTION)
        scope = "existence" if query.type == discriminative.EXISTENCE else "relation"
        return BenchmarkQuestion(
            str(query.id),
            "attribute" if query.type in attributes else scope,
            query.image,
            f"{query.text} {self.suffix}".strip(),
            {"label": label, "question": query.text, "type": query.type},
        )


class AmberGenerativeTask(BenchmarkTask):
    """AMBER's captions.

    Args:
        data: Copy of the authors' repository with images, or of its folder `data`.
        options: `prompt` and `similarity` apply.
    """

    name = "amber-generative"
    title = "AMBER, generative"
    max_tokens = 512
    metrics = CAPTION_METRICS
    overall_scope = None
    joint_drop_warnings = (("chair", "cover"), ("hal", "cover"))

    def __init__(self, data: Path, options: TaskOptions) -> None:
        self.folder = AmberFolder(data)
        self.prompt = options.prompt
        self.similarity = options.similarity

    def list_source_files(self) -> list[Path]:
        """List annotations, queries and the two word lists."""
        words = [self.folder.find_file(name) for name in ("relation.json", "safe_words.txt")]
        return [self.folder.annotations, *self.folder.list_query_files(GENERATIVE), *words]

    def load_questions(self) -> list[BenchmarkQuestion]:
        """Read the queries. Their objects must be in relation.json."""
        return [self._build_question(query) for query in self.folder.read_queries(GENERATIVE)]

    def check_scorable(self, questions: Sequence[BenchmarkQuestion]) -> None:
        """Load nltk's data and spaCy's model, which raises `EvaluationError` if they are missing."""
        self.score_answers(questions[:1], [""])

    def score_answers(self, questions: Sequence[BenchmarkQuestion], answers: Sequence[str]) -> list[Score]:
        """Count what each caption mentions."""
        return [
            _build_score(counts, answer)
            for counts, answer in zip(self._count_captions(questions, answers), answers, strict=True)
        ]

    def summarize_answers(self, questions: Sequence[BenchmarkQuestion], answers: Sequence[str]) -> dict[str, Any]:
        """Return whether similar words count as equal."""
        return {"similarity": "en_core_web_lg" if self.similarity else "none"}

    def build_tables(
        self, questions: Sequence[BenchmarkQuestion], answers: Mapping[str, Sequence[str]]
    ) -> list[ExtraTable]:
        """Build a table of the official numbers."""
        names = ("chair", "cover", "hal", "cog")
        rows = []
        for label, texts in answers.items():
            scores = generative.compute_official_scores(self._count_captions(questions, texts))
            rows.append(TableRow(strategy=label, values=[scores[name] / 100 for name in names]))
        return [ExtraTable(title="Official numbers", headers=["CHAIR", "Cover", "Hal", "Cog"], rows=rows)]

    @cached_property
    def _vocabulary(self) -> generative.AmberVocabulary:
        return generative.AmberVocabulary.load(*self.list_source_files()[-2:])

    @cached_property
    def _extract_nouns(self) -> generative.NounExtractor:
        return generative.build_noun_extractor()

    @cached_property
    def _are_similar(self) -> generative.SimilarityTest:
        return generative.build_similarity_test() if self.similarity else lambda first, second: False

    def _count_captions(
        self, questions: Sequence[BenchmarkQuestion], answers: Sequence[str]
    ) -> list[generative.CaptionCounts]:
        return [
            generative.count_caption(
                self._build_caption(question, answer), self._vocabulary, self._extract_nouns, self._are_similar
            )
            for question, answer in zip(questions, answers, strict=True)
        ]

    def _build_caption(self, question: BenchmarkQuestion, answer: str) -> AmberAnswer:
        annotation = question.truth["annotation"]
        record = JsonRecord(annotation if isinstance(annotation, dict) else {}, self.folder.annotations)
        return AmberAnswer(answer, GENERATIVE, record)

    def _build_question(self, query: AmberQuery) -> BenchmarkQuestion:
        for key in ("truth", "hallu"):
            self._vocabulary.expand(AmberAnswer("", GENERATIVE, query.annotation), key)
        prompt = query.text if self.prompt is None else self.prompt
        return BenchmarkQuestion(
            str(query.id),
            "captions",
            query.image,
            prompt,
            {"question": query.text, "annotation": query.annotation.value},
        )


def _build_score(counts: generative.CaptionCounts, answer: str) -> Score:
    numbers = {
        "n": 1.0,
        "bad": float(counts.unsupported > 0),
        "words": float(len(answer.split())),
        "nouns": float(counts.nouns),
        "unsupported": float(counts.unsupported),
        "present": float(counts.present),
        "covered": float(counts.covered),
        "likely": float(counts.likely),
        "confirmed": float(counts.confirmed),
    }
    return Score(numbers, {"right": counts.unsupported == 0})
