"""AMBER's captions: which nouns of its vocabulary are in the image, and which are annotated as likely hallucinations.

The official script takes nouns from nltk. It treats two words as equal if spaCy's en_core_web_lg gives a similarity
above 0.8, so its numbers depend on the version of that model. Errors name missing packages. Without the similarity,
CHAIR and Cog differ slightly from published numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path

from eval.benchmarks.amber.answers import GENERATIVE, AmberAnswer
from eval.benchmarks.nltk_data import require_packages
from eval.core.jsonl import read_lines, read_object
from eval.errors import EvaluationError, InputError

SIMILARITY_THRESHOLD = 0.8
NLTK_PACKAGES = ("punkt_tab", "averaged_perceptron_tagger_eng", "wordnet")

NounExtractor = Callable[[str], list[str]]
SimilarityTest = Callable[[str, str], bool]
IndexedWord = tuple[str, int]
"""A word, and the index of the annotated object that it names."""


@dataclass(frozen=True)
class AmberVocabulary:
    """AMBER's vocabulary.

    Attributes:
        associated: Words that name each object, from `relation.json`.
        safe: Words that never count as hallucinations, from `safe_words.txt`.
    """

    associated: Mapping[str, Sequence[str]]
    safe: frozenset[str]

    @classmethod
    def load(cls, relation: Path, safe_words: Path) -> AmberVocabulary:
        """Load the official files.

        Args:
            relation: The file relation.json.
            safe_words: safe_words.txt.

        Returns:
            The vocabulary.

        Raises:
            InputError: The file relation.json has another form. Unreadable files raise it as well.
        """
        associated = read_object(relation)
        for word, others in associated.items():
            if not isinstance(others, list) or not all(isinstance(each, str) for each in others):
                raise InputError("must be a list of strings", relation, None, word)
        return cls(associated, frozenset(read_lines(safe_words)))

    @cached_property
    def all_words(self) -> frozenset[str]:
        """All objects and all words that name them."""
        return frozenset(self.associated).union(*self.associated.values())

    def expand(self, answer: AmberAnswer, key: str) -> list[IndexedWord]:
        """List the words that name the objects under a key of an annotation.

        An object without an entry in relation.json raises `InputError`.

        Args:
            answer: The answer.
            key: `truth` or `hallu`.

        Returns:
            Associated words first, then the objects themselves.
        """
        objects = answer.annotation.get_strings(key)
        for word in objects:
            if word not in self.associated:
                raise answer.annotation.build_error(f"{word!r} is not in the relations", key)
        associated = [(other, index) for index, word in enumerate(objects) for other in self.associated[word]]
        return associated + [(word, index) for index, word in enumerate(objects)]


@dataclass(frozen=True)
class CaptionCounts:
    """What a caption mentions.

    Attributes:
        nouns: Nouns of the vocabulary.
        unsupported: Nouns that are neither safe nor in the image.
        present: Annotated objects.
        covered: Annotated objects that the caption mentions.
        likely: Annotated likely hallucinations.
        confirmed: Likely hallucinations that the caption mentions.
    """

    nouns: int
    unsupported: int
    present: int
    covered: int
    likely: int
    confirmed: int


def count_caption(
    caption: AmberAnswer, vocabulary: AmberVocabulary, extract_nouns: NounExtractor, are_similar: SimilarityTest
) -> CaptionCounts:
    """Count what a caption mentions.

    Args:
        caption: The caption.
        vocabulary: AMBER's vocabulary.
        extract_nouns: Extracts nouns from a caption.
        are_similar: Whether two words count as equal.

    Returns:
        The counts.
    """
    words = vocabulary.all_words
    nouns = [noun for noun in extract_nouns(caption.response) if noun in words]
    correct, hallucinated, unsupported = _match_nouns(
        nouns,
        vocabulary.expand(caption, "truth"),
        vocabulary.expand(caption, "hallu"),
        vocabulary.safe,
        are_similar,
    )
    return CaptionCounts(
        nouns=len(nouns),
        unsupported=unsupported,
        present=len(caption.annotation.get_strings("truth")),
        covered=len(correct),
        likely=len(caption.annotation.get_strings("hallu")),
        confirmed=len(hallucinated),
    )


def score_captions(
    answers: Sequence[AmberAnswer],
    vocabulary: AmberVocabulary,
    extract_nouns: NounExtractor,
    are_similar: SimilarityTest,
) -> dict[str, float]:
    """Score the captions.

    Args:
        answers: Answers; yes/no questions among them are ignored.
        vocabulary: AMBER's vocabulary.
        extract_nouns: Extracts nouns from a caption.
        are_similar: Whether two words count as equal.

    Returns:
        The numbers of `compute_official_scores`.
    """
    captions = [each for each in answers if each.type == GENERATIVE]
    return compute_official_scores([count_caption(each, vocabulary, extract_nouns, are_similar) for each in captions])


def compute_official_scores(captions: Sequence[CaptionCounts]) -> dict[str, float]:
    """Compute the numbers of the official script, which adds 0.001 to every count.

    Args:
        captions: The counts of the captions.

    Returns:
        CHAIR, Cover, Hal and Cog in percent, rounded.
    """

    def divide(part: str, whole: str) -> float:
        sums = [float(sum(getattr(each, name) for each in captions)) for name in (part, whole)]
        return round(sums[0] / (sums[1] + 0.001) * 100, 1)

    clean = sum(each.unsupported == 0 for each in captions)
    return {
        "chair": divide("unsupported", "nouns"),
        "cover": divide("covered", "present"),
        "hal": round(100 - clean / (len(captions) + 0.001) * 100, 1),
        "cog": divide("confirmed", "likely"),
        "n": len(captions),
    }


def _match_nouns(
    nouns: Sequence[str],
    truth: Sequence[IndexedWord],
    likely_hallucinations: Sequence[IndexedWord],
    safe: frozenset[str],
    are_similar: SimilarityTest,
) -> tuple[set[int], set[int], int]:
    """Match the nouns of a caption.

    Args:
        nouns: Nouns of the caption.
        truth: Words for the objects in the image.
        likely_hallucinations: Words for the annotated likely hallucinations.
        safe: Words that never count.
        are_similar: Whether two words count as equal.

    Returns:
        Indices of mentioned objects, indices of mentioned hallucinations, number of nouns that are neither safe nor
        in the image.
    """
    correct: set[int] = set()
    hallucinated: set[int] = set()
    unsupported = 0
    for noun in nouns:
        if noun in safe:
            continue
        exact = next(_find_equal_words(truth, noun), None)
        if exact is not None:
            correct.add(exact)
            continue
        for index in (
            next(_find_equal_words(likely_hallucinations, noun), None),
            _find_first_similar(likely_hallucinations, noun, are_similar),
        ):
            hallucinated.update([] if index is None else [index])
        similar = _find_first_similar(truth, noun, are_similar)
        if similar is None:
            unsupported += 1
        else:
            correct.add(similar)
    return correct, hallucinated, unsupported


def _find_equal_words(words: Sequence[IndexedWord], noun: str) -> Iterator[int]:
    return (index for word, index in words if word == noun)


def _find_first_similar(words: Sequence[IndexedWord], noun: str, are_similar: SimilarityTest) -> int | None:
    return next((index for word, index in words if are_similar(noun, word)), None)


def build_noun_extractor() -> NounExtractor:
    """Build the official noun extractor from nltk. Missing data of nltk raise `EvaluationError`."""
    import nltk
    from nltk.stem import WordNetLemmatizer

    require_packages(NLTK_PACKAGES, "AMBER's generative score")
    lemmatize = WordNetLemmatizer().lemmatize
    return lambda text: [
        lemmatize(word) for word, tag in nltk.pos_tag(nltk.word_tokenize(text)) if tag.startswith("NN")
    ]


def build_similarity_test() -> SimilarityTest:
    """Build the official similarity test from spaCy.

    Returns:
        A function of two words.

    Raises:
        EvaluationError: The package spaCy or its model is not installed.
    """
    try:
        import spacy  # type: ignore[import-not-found]

        model = spacy.load("en_core_web_lg")
    except (ImportError, OSError) as error:
        raise EvaluationError(
            "AMBER's generative score needs spaCy: pip install spacy && python -m spacy download en_core_web_lg. "
            "--no-similarity scores without it"
        ) from error

    @cache
    def are_similar(first: str, second: str) -> bool:
        return bool(model(first).similarity(model(second)) > SIMILARITY_THRESHOLD)

    return are_similar
