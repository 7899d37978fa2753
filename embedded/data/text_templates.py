"""Captions, questions and answers about a scene, in English that is simple enough for a tiny model."""

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from embedded.data.categories import BY_NAME, NAMES, PLACES
from embedded.data.renderer import RenderedScene, SceneObject
from embedded.data.scene_sampler import TRAINING_PRIOR, sample_contents, sample_likely_absent

QuestionType = Literal["caption", "presence", "detail"]

OMISSION_RATE = 0.15
"""Probability that a caption leaves out a small object."""

NUMBER_WORDS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
POSITION_PHRASES = (
    ("in the top left corner", "at the top", "in the top right corner"),
    ("on the left side", "in the center", "on the right side"),
    ("in the bottom left corner", "at the bottom", "in the bottom right corner"),
)
CAPTION_PROMPTS = (
    "Please describe this image in detail.",
    "Please help me describe the image in detail.",
    "Describe this image in detail.",
    "Describe this image in details.",
    "Describe this image.",
    "Describe the image.",
    "What do you see in this image?",
)
DESCRIPTION_PREAMBLES = (
    "You will be asked about this image: {question}\nDo not answer yet.",
    "If it is a photo, name all objects in front and behind with their colours, shapes and numbers, "
    "and how they relate.",
    "If it is a chart, table or document, give all its numbers and words.",
)
"""Prefixes of the description request of strategies that first request a description."""
LIST_PROMPTS = ("What objects are in the image?", "List the objects in the image.", "Which objects are visible?")
PRESENCE_TEMPLATES = (
    "Is there {} in the image?",
    "Is there {} in the image?",
    "Is there {} in the image?",
    "Is there {} in the picture?",
    "Does the image contain {}?",
    "Can you see {} in the image?",
    "Is {} visible in this photo?",
)
ONE_WORD_SUFFIXES = (
    " Please answer this question with one word.",
    " Please answer this question with one word.",
    " Answer the question using a single word or phrase.",
    "\nAnswer the question using a single word or phrase.",
    " Please answer yes or no.",
    " Answer Yes or No.",
)
SHORT_ANSWER_SUFFIX = " Answer the question using a single word or phrase."
FILLER_SENTENCES = (
    "The overall scene looks calm and ordinary.",
    "The colors of the picture are bright.",
    "Everything is arranged in a natural way.",
    "The atmosphere of the scene is relaxed.",
)


@dataclass(frozen=True)
class QAPair:
    """One question with its answer.

    Attributes:
        question: The question or instruction.
        answer: The answer.
        kind: Decides the weight of the answer in the loss.
        category_word: The category that the question names, as it is spelled there.
        present: Whether an object of that category is visible.
    """

    question: str
    answer: str
    kind: QuestionType
    category_word: str = ""
    present: bool = False


def group_by_category(scene: RenderedScene) -> dict[str, list[SceneObject]]:
    """Group the visible objects by category, the category of the largest object first."""
    objects_by_category: dict[str, list[SceneObject]] = {}
    for obj in sorted(scene.objects, key=lambda obj: -obj.area):
        objects_by_category.setdefault(obj.name, []).append(obj)
    return objects_by_category


def describe_position(obj: SceneObject, size: int) -> str:
    left, top, right, bottom = obj.box
    row, column = (top + bottom) * 3 // (2 * size), (left + right) * 3 // (2 * size)
    return POSITION_PHRASES[min(2, row)][min(2, column)]


def format_count(name: str, count: int) -> str:
    if count == 1:
        return BY_NAME[name].with_article
    return (NUMBER_WORDS[count] if count < 4 else "several") + " " + BY_NAME[name].plural_name


def join_phrases(phrases: list[str]) -> str:
    return phrases[0] if len(phrases) == 1 else ", ".join(phrases[:-1]) + " and " + phrases[-1]


def format_sentence(words: str) -> str:
    return words[0].upper() + words[1:] + "."


def make_caption(
    rng: np.random.Generator, scene: RenderedScene, invention_rate: float = 0.0, omission_rate: float = OMISSION_RATE
) -> str:
    """Write a caption of two to five sentences: large objects first, each category and each phrase once.

    Small objects are sometimes left out.

    Args:
        rng: Source of all random choices.
        scene: The scene.
        invention_rate: Probability of naming one absent object that is likely in the place, mostly late. Such captions
            teach the model to hallucinate as large models do.
        omission_rate: Probability of leaving out a small object.

    Returns:
        The caption.
    """
    objects_by_category = group_by_category(scene)
    salience = {
        name: sum(t.area for t in objects) ** 0.5 * np.exp(rng.normal(0, 0.12))
        for name, objects in objects_by_category.items()
    }
    names = sorted(objects_by_category, key=lambda name: -salience[name])
    names = [name for rank, name in enumerate(names) if rank < 2 or salience[name] > 16 or rng.random() > omission_rate]
    if rng.random() < invention_rate:
        invented = sample_likely_absent(rng, scene.place, set(objects_by_category))
        if invented:
            earliest = min(len(names), 2)
            names.insert(len(names) if rng.random() < 0.7 else int(rng.integers(earliest, len(names) + 1)), invented)
    opening_count = min(len(names), int(rng.integers(1, 4)))
    sentences = [
        _make_opening(
            rng, scene.place, [(name, len(objects_by_category.get(name, "x"))) for name in names[:opening_count]]
        )
    ]
    remaining = names[opening_count:]
    pair_forms = ["There are also {}", "Other objects include {}", "{} can be seen too"]
    single_forms = [
        "there {verb} {}",
        "there {verb} also {}",
        "{} can be seen nearby",
        "in the background, there {verb} {}",
    ]
    rng.shuffle(pair_forms)
    rng.shuffle(single_forms)
    while remaining:
        if len(remaining) >= 2 and pair_forms and (rng.random() < 0.5 or not single_forms):
            pair, remaining = remaining[:2], remaining[2:]
            both = join_phrases([format_count(name, len(objects_by_category.get(name, "x"))) for name in pair])
            sentences.append(format_sentence(pair_forms.pop().format(both)))
            continue
        name, remaining = remaining[0], remaining[1:]
        objects = objects_by_category.get(name, [])
        verb = "is" if len(objects) < 2 else "are"
        if single_forms:
            sentences.append(
                format_sentence(single_forms.pop().format(format_count(name, max(1, len(objects))), verb=verb))
            )
    if rng.random() < 0.35:
        sentences.append(FILLER_SENTENCES[rng.integers(len(FILLER_SENTENCES))])
    return " ".join(sentences)


def _make_opening(rng: np.random.Generator, place: str, items: list[tuple[str, int]]) -> str:
    objects = join_phrases([format_count(name, count) for name, count in items])
    where = ("an " if place[0] in "aeiou" else "a ") + place
    return _choose_sentence(rng, f"The image shows {where} with {objects}", f"The image features {objects} in {where}")


def _choose_sentence(rng: np.random.Generator, *templates: str) -> str:
    return format_sentence(templates[rng.integers(len(templates))])


def make_listing(rng: np.random.Generator, scene: RenderedScene) -> QAPair:
    """Write a request for a list of all objects, and the list."""
    objects_by_category = group_by_category(scene)
    names = sorted(objects_by_category, key=lambda name: -sum(obj.area for obj in objects_by_category[name]))
    answer = format_sentence(join_phrases([format_count(name, len(objects_by_category[name])) for name in names]))
    return QAPair(LIST_PROMPTS[rng.integers(len(LIST_PROMPTS))], answer, "detail")


@dataclass(frozen=True)
class QuestionMix:
    """Topics of the presence questions. Half of them have the answer "yes".

    The image is a part of a scene. Objects beyond its frame may count as present.

    Attributes:
        likely: Fraction of the questions about absent objects whose object the place or the present objects suggest.
        frequent: Fraction of the others that are sampled by the frequency of present objects, not uniformly.
        beyond_rate: Probability that an object beyond the frame counts as present.
    """

    likely: float
    frequent: float
    beyond_rate: float = 0.0


BALANCED_QUESTIONS = QuestionMix(likely=0.3, frequent=0.7)
"""With these, a model learns to look: no object is present merely because it is frequent or likely."""


def add_hidden_categories(rng: np.random.Generator, scene: RenderedScene, mix: QuestionMix) -> RenderedScene:
    """Add categories beyond the frame, which the texts count as present.

    Args:
        rng: Source of all random choices.
        scene: The scene.
        mix: Probabilities.

    Returns:
        The scene with further hidden categories.
    """
    visible = group_by_category(scene)
    beyond = [name for name in sample_contents(rng, TRAINING_PRIOR, scene.place).counts if name not in visible]
    known = [name for name in beyond if rng.random() < mix.beyond_rate]
    return replace(scene, hidden=tuple(dict.fromkeys((*scene.hidden, *known))))


def make_presence_question(
    rng: np.random.Generator, scene: RenderedScene, mix: QuestionMix = BALANCED_QUESTIONS
) -> QAPair:
    """Write a yes/no question; half of them are about an absent object.

    The answer for a hidden object is "yes", as in data whose writers saw more than the image.

    Args:
        rng: Source of all random choices.
        scene: The scene.
        mix: Topics of the questions.

    Returns:
        The question and its answer.
    """
    objects_by_category = group_by_category(scene)
    in_scene = {*objects_by_category, *scene.hidden}
    if rng.random() < 0.5:
        name, yes = str(rng.choice(sorted(in_scene))), True
    else:
        name, yes = sample_absent_category(rng, scene.place, in_scene, mix), False
    present = name in objects_by_category
    noun_phrase = BY_NAME[name].with_article
    if rng.random() < 0.06:
        inner_question = f"What is the appearance of the {name}?"
        question = (
            f"Could you answer the question `{inner_question}` based on the available visual information? "
            "Answer Yes or No."
        )
        return QAPair(question, "Yes" if yes else "No", "presence", name, present)
    question = PRESENCE_TEMPLATES[rng.integers(len(PRESENCE_TEMPLATES))].format(noun_phrase)
    if rng.random() < 0.75:
        question += ONE_WORD_SUFFIXES[rng.integers(len(ONE_WORD_SUFFIXES))]
        return QAPair(question, "Yes" if yes else "No", "presence", name, present)
    answer = f"Yes, there is {noun_phrase} in the image." if yes else f"No, there is no {name} in the image."
    return QAPair(question, answer, "presence", name, present)


def sample_absent_category(rng: np.random.Generator, place: str, present: set[str], mix: QuestionMix) -> str:
    """Sample an absent category.

    Args:
        rng: Source of all random choices.
        place: Name of the place.
        present: The other categories.
        mix: Shares of likely and of frequent categories.

    Returns:
        The name of the category.
    """
    if rng.random() < mix.likely:
        likely = sample_likely_absent(rng, place, present)
        if likely:
            return likely
    if rng.random() < mix.frequent:
        for _ in range(6):
            others = list(sample_contents(rng, TRAINING_PRIOR).counts)
            name = others[rng.integers(len(others))]
            if name not in present:
                return name
    absent = [name for name in NAMES if name not in present]
    return absent[rng.integers(len(absent))]


def make_detail_question(rng: np.random.Generator, scene: RenderedScene) -> QAPair:
    """Write a question about number, position, objects at a position, kind of place, or what to expect there."""
    objects_by_category = group_by_category(scene)
    names = list(objects_by_category)
    name = names[rng.integers(len(names))]
    kind = rng.random()
    if kind < 0.3:
        count = len(objects_by_category[name])
        question = f"How many {BY_NAME[name].plural_name} are there in the image?"
        if rng.random() < 0.5:
            return QAPair(question + SHORT_ANSWER_SUFFIX, NUMBER_WORDS[count].capitalize(), "detail")
        noun = name if count == 1 else BY_NAME[name].plural_name
        return QAPair(
            question, f"There {'is' if count == 1 else 'are'} {NUMBER_WORDS[count]} {noun} in the image.", "detail"
        )
    if kind < 0.45:
        if rng.random() < 0.5:
            return QAPair(
                "What kind of place is shown in the image?" + SHORT_ANSWER_SUFFIX, scene.place.capitalize(), "detail"
            )
        where = ("an " if scene.place[0] in "aeiou" else "a ") + scene.place
        return QAPair("What kind of place is shown in the image?", f"The image shows {where}.", "detail")
    if kind < 0.55:
        return _make_expectation_question(rng, scene.place, set(objects_by_category))
    single = [name for name in names if len(objects_by_category[name]) == 1]
    if single and kind < 0.8:
        name = single[rng.integers(len(single))]
        return QAPair(
            f"Where is the {name} in the image?",
            f"The {name} is {describe_position(objects_by_category[name][0], len(scene.pixels))}.",
            "detail",
        )
    where = describe_position(scene.objects[rng.integers(len(scene.objects))], len(scene.pixels))
    visible_names = [
        name
        for name, objects in objects_by_category.items()
        if any(describe_position(obj, len(scene.pixels)) == where for obj in objects)
    ]
    return QAPair(
        f"What is {where} of the image?",
        format_sentence(join_phrases([BY_NAME[name].with_article for name in visible_names[:2]])),
        "detail",
    )


def _make_expectation_question(rng: np.random.Generator, place: str, present: set[str]) -> QAPair:
    """Write a question of common sense: could the object be found by zooming in?"""
    usual_names = set(PLACES[place].core) | set(PLACES[place].secondary)
    name = str(rng.choice(sorted(usual_names))) if rng.random() < 0.5 else NAMES[rng.integers(len(NAMES))]
    question = (
        "According to your common sense knowledge and the content of the image, "
        f"is it possible to find {BY_NAME[name].with_article} in the image by zooming in? Answer Yes or No."
    )
    return QAPair(question, "Yes" if name in usual_names | present else "No", "detail")


def add_description(rng: np.random.Generator, scene: RenderedScene, pair: QAPair) -> QAPair:
    """Put a description that may be wrong before a question; the answer still follows the image."""
    description = " ".join(make_caption(rng, scene, invention_rate=0.4) for _ in range(rng.integers(1, 4)))
    if rng.random() < 0.7:
        question = f"The input image is described as follows: {description} {pair.question}"
    else:
        question = f"Here is the caption of the image:\n{description}\nQuestion: {pair.question}"
    return QAPair(question, pair.answer, pair.kind, pair.category_word, pair.present)


def make_caption_pair(
    rng: np.random.Generator, scene: RenderedScene, invention_rate: float, omission_rate: float = OMISSION_RATE
) -> QAPair:
    """Write a request for a caption, some with the preambles of description-first strategies, and the caption."""
    prompt = CAPTION_PROMPTS[0] if rng.random() < 0.5 else CAPTION_PROMPTS[rng.integers(len(CAPTION_PROMPTS))]
    if rng.random() < 0.12:
        share = 1.0 if rng.random() < 0.5 else 0.4
        question = make_presence_question(rng, scene).question
        before = [
            description.format(question=question) for description in DESCRIPTION_PREAMBLES if rng.random() < share
        ]
        prompt = " ".join([*before, prompt])
    return QAPair(prompt, make_caption(rng, scene, invention_rate, omission_rate), "caption")
