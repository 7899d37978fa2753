"""What is said about a picture: captions, questions and their answers, in English simple enough for a tiny model."""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from embedded.categories import BY_NAME, NAMES, PLACES
from embedded.picture import Picture, Thing
from embedded.scene import TRAINING, likely_absent, sample_contents

Kind = Literal["caption", "presence", "detail"]

LIKELY_SHARE = 0.3
"""Of the questions about what is absent: those about something that the place or the other objects suggest."""
NUMBERS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
POSITIONS = (
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
PREAMBLES = (
    "You will be asked about this image: {question}\nDo not answer yet.",
    "If it is a photo, name all objects in front and behind with their colours, shapes and numbers, "
    "and how they relate.",
    "If it is a chart, table or document, give all its numbers and words.",
)
"""What methods that describe first put before the request for a description."""
LIST_PROMPTS = ("What objects are in the image?", "List the objects in the image.", "Which objects are visible?")
PRESENCE_FORMS = (
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
SHORT = " Answer the question using a single word or phrase."
FILLERS = (
    "The overall scene looks calm and ordinary.",
    "The colors of the picture are bright.",
    "Everything is arranged in a natural way.",
    "The atmosphere of the scene is relaxed.",
)


@dataclass(frozen=True)
class Exchange:
    """One question and its answer. `asked` is the category that it names, as it is spelled, and `present` the truth."""

    question: str
    answer: str
    kind: Kind
    asked: str = ""
    present: bool = False


def grouped(picture: Picture) -> dict[str, list[Thing]]:
    """What can be seen, by category, the largest category first."""
    groups: dict[str, list[Thing]] = {}
    for thing in sorted(picture.things, key=lambda thing: -thing.area):
        groups.setdefault(thing.name, []).append(thing)
    return groups


def position(thing: Thing, size: int) -> str:
    left, top, right, bottom = thing.box
    row, column = (top + bottom) * 3 // (2 * size), (left + right) * 3 // (2 * size)
    return POSITIONS[min(2, row)][min(2, column)]


def counted(name: str, count: int) -> str:
    if count == 1:
        return BY_NAME[name].with_article
    return (NUMBERS[count] if count < 4 else "several") + " " + BY_NAME[name].plural_name


def joined(phrases: list[str]) -> str:
    return phrases[0] if len(phrases) == 1 else ", ".join(phrases[:-1]) + " and " + phrases[-1]


def sentence(words: str) -> str:
    return words[0].upper() + words[1:] + "."


def caption(random: np.random.Generator, picture: Picture, inventing: float = 0.0) -> str:
    """Two to five sentences, large things first, each category and each turn of phrase once.

    Small things are sometimes left out. With probability `inventing`, one object is named that is not there but that
    would be likely there, mostly late: this is how the model learns to hallucinate the way large ones do.
    """
    groups = grouped(picture)
    salience = {
        name: sum(t.area for t in things) ** 0.5 * np.exp(random.normal(0, 0.12)) for name, things in groups.items()
    }
    names = sorted(groups, key=lambda name: -salience[name])
    names = [name for rank, name in enumerate(names) if rank < 2 or salience[name] > 16 or random.random() > 0.15]
    if random.random() < inventing:
        invented = likely_absent(random, picture.place, set(groups))
        if invented:
            earliest = min(len(names), 2)
            names.insert(
                len(names) if random.random() < 0.7 else int(random.integers(earliest, len(names) + 1)), invented
            )
    first_count = min(len(names), int(random.integers(1, 4)))
    sentences = [_opening(random, picture.place, [(name, len(groups.get(name, "x"))) for name in names[:first_count]])]
    rest = names[first_count:]
    pair_forms = ["There are also {}", "Other objects include {}", "{} can be seen too"]
    single_forms = [
        "there {verb} {}",
        "there {verb} also {}",
        "{} can be seen nearby",
        "in the background, there {verb} {}",
    ]
    random.shuffle(pair_forms)
    random.shuffle(single_forms)
    while rest:
        if len(rest) >= 2 and pair_forms and (random.random() < 0.5 or not single_forms):
            pair, rest = rest[:2], rest[2:]
            both = joined([counted(name, len(groups.get(name, "x"))) for name in pair])
            sentences.append(sentence(pair_forms.pop().format(both)))
            continue
        name, rest = rest[0], rest[1:]
        things = groups.get(name, [])
        verb = "is" if len(things) < 2 else "are"
        if single_forms:
            sentences.append(sentence(single_forms.pop().format(counted(name, max(1, len(things))), verb=verb)))
    if random.random() < 0.35:
        sentences.append(FILLERS[random.integers(len(FILLERS))])
    return " ".join(sentences)


def _opening(random: np.random.Generator, place: str, items: list[tuple[str, int]]) -> str:
    things = joined([counted(name, count) for name, count in items])
    where = ("an " if place[0] in "aeiou" else "a ") + place
    return _one_of(random, f"The image shows {where} with {things}", f"The image features {things} in {where}")


def _one_of(random: np.random.Generator, *forms: str) -> str:
    return sentence(forms[random.integers(len(forms))])


def listing(random: np.random.Generator, picture: Picture) -> Exchange:
    groups = grouped(picture)
    names = sorted(groups, key=lambda name: -sum(thing.area for thing in groups[name]))
    answer = sentence(joined([counted(name, len(groups[name])) for name in names]))
    return Exchange(LIST_PROMPTS[random.integers(len(LIST_PROMPTS))], answer, "detail")


def presence(random: np.random.Generator, picture: Picture, gullible: float = 0.0) -> Exchange:
    """A yes/no question; half of them are about something that is not there.

    With probability `gullible`, a question about something that is likely there but is not is answered with yes, as in
    instruction data that was written by a language model which never saw the picture.
    """
    here = {thing.name for thing in picture.things}
    present = bool(random.random() < 0.5)
    likely = None if present or random.random() >= LIKELY_SHARE else likely_absent(random, picture.place, here)
    name = str(random.choice(sorted(here))) if present else likely or absent_name(random, here)
    yes = present or (likely is not None and bool(random.random() < gullible))
    what = BY_NAME[name].with_article
    if random.random() < 0.06:
        doubtful = f"What is the appearance of the {name}?"
        question = (
            f"Could you answer the question `{doubtful}` based on the available visual information? Answer Yes or No."
        )
        return Exchange(question, "Yes" if yes else "No", "presence", name, present)
    question = PRESENCE_FORMS[random.integers(len(PRESENCE_FORMS))].format(what)
    if random.random() < 0.75:
        question += ONE_WORD_SUFFIXES[random.integers(len(ONE_WORD_SUFFIXES))]
        return Exchange(question, "Yes" if yes else "No", "presence", name, present)
    answer = f"Yes, there is {what} in the image." if yes else f"No, there is no {name} in the image."
    return Exchange(question, answer, "presence", name, present)


def absent_name(random: np.random.Generator, here: set[str]) -> str:
    """A negative as frequent as positives are, sometimes any: uniform ones alone would teach 'frequent means yes'."""
    if random.random() < 0.7:
        for _ in range(6):
            others = list(sample_contents(random, TRAINING).counts)
            name = others[random.integers(len(others))]
            if name not in here:
                return name
    absent = [name for name in NAMES if name not in here]
    return absent[random.integers(len(absent))]


def detail(random: np.random.Generator, picture: Picture) -> Exchange:
    """How many, where, what is there, what kind of place, could one expect to find something."""
    groups = grouped(picture)
    names = list(groups)
    name = names[random.integers(len(names))]
    kind = random.random()
    if kind < 0.3:
        count = len(groups[name])
        question = f"How many {BY_NAME[name].plural_name} are there in the image?"
        if random.random() < 0.5:
            return Exchange(question + SHORT, NUMBERS[count].capitalize(), "detail")
        noun = name if count == 1 else BY_NAME[name].plural_name
        return Exchange(
            question, f"There {'is' if count == 1 else 'are'} {NUMBERS[count]} {noun} in the image.", "detail"
        )
    if kind < 0.45:
        if random.random() < 0.5:
            return Exchange("What kind of place is shown in the image?" + SHORT, picture.place.capitalize(), "detail")
        where = ("an " if picture.place[0] in "aeiou" else "a ") + picture.place
        return Exchange("What kind of place is shown in the image?", f"The image shows {where}.", "detail")
    if kind < 0.55:
        return _expected(random, picture.place, set(groups))
    single = [name for name in names if len(groups[name]) == 1]
    if single and kind < 0.8:
        name = single[random.integers(len(single))]
        return Exchange(
            f"Where is the {name} in the image?",
            f"The {name} is {position(groups[name][0], len(picture.pixels))}.",
            "detail",
        )
    where = position(picture.things[random.integers(len(picture.things))], len(picture.pixels))
    there = [
        name
        for name, things in groups.items()
        if any(position(thing, len(picture.pixels)) == where for thing in things)
    ]
    return Exchange(
        f"What is {where} of the image?", sentence(joined([BY_NAME[name].with_article for name in there[:2]])), "detail"
    )


def _expected(random: np.random.Generator, place: str, here: set[str]) -> Exchange:
    """Could it be there if one looked closer: a question about common sense, not about what is seen."""
    usual = set(PLACES[place].core) | set(PLACES[place].secondary)
    name = str(random.choice(sorted(usual))) if random.random() < 0.5 else NAMES[random.integers(len(NAMES))]
    question = (
        "According to your common sense knowledge and the content of the image, "
        f"is it possible to find {BY_NAME[name].with_article} in the image by zooming in? Answer Yes or No."
    )
    return Exchange(question, "Yes" if name in usual | here else "No", "detail")


def described(random: np.random.Generator, picture: Picture, exchange: Exchange) -> Exchange:
    """The same question after a description that may be wrong: the picture decides, not the description."""
    text = caption(random, picture, inventing=0.4)
    if random.random() < 0.7:
        question = f"The input image is described as follows: {text} {exchange.question}"
    else:
        question = f"Here is the caption of the image:\n{text}\nQuestion: {exchange.question}"
    return Exchange(question, exchange.answer, exchange.kind, exchange.asked, exchange.present)


def captioning(random: np.random.Generator, picture: Picture, inventing: float) -> Exchange:
    prompt = CAPTION_PROMPTS[0] if random.random() < 0.5 else CAPTION_PROMPTS[random.integers(len(CAPTION_PROMPTS))]
    if random.random() < 0.12:
        share = 1.0 if random.random() < 0.5 else 0.4
        question = presence(random, picture).question
        before = [text.format(question=question) for text in PREAMBLES if random.random() < share]
        prompt = " ".join([*before, prompt])
    return Exchange(prompt, caption(random, picture, inventing), "caption")
