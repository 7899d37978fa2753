"""Visual cues of ZoomEye: the objects that must be visible to answer a question."""

import re
from collections.abc import Generator

from decoding.requests import Answer, GenerateRequest, Prompt, SamplingParams

LEAD = "I need to look at"
EXAMPLES = f"""Tell which objects must be seen to answer a question about an image.
Question: What color is the umbrella?
Answer: {LEAD} the umbrella.
Question: Is the dog to the left of the bench?
Answer: {LEAD} the dog and the bench.
Question: How many boats are on the lake?
Answer: {LEAD} all boats.
Question: What is written on the sign above the door?
Answer: {LEAD} the sign above the door.
Question: Is the bag of the man larger than the hat of the woman?
Answer: {LEAD} the bag of the man and the hat of the woman.
Question: Do the children play with a ball, a kite or a dog?
Answer: {LEAD} all children, the ball, the kite and the dog.
Question: {{question}}
Answer:"""
EXISTENCE = re.compile(r"\b(?:is|are) there (.+?) (?:in|on) (?:the|this) (?:image|picture|photo)", re.IGNORECASE)
ARTICLE = re.compile(r"^(?:an?|the|any|some) ", re.IGNORECASE)
PRONOUN = re.compile(
    r"\b(?:i|you|he|she|it|we|they|me|him|her|us|them|his|its|our|their|this|that|these|those)\b", re.IGNORECASE
)
ALL_PREFIX = "all "


def find_cues(prompt: Prompt, given: str | None) -> Generator[GenerateRequest, Answer, list[str]]:
    """Find the cues of a question.

    Args:
        prompt: The prompt with the question.
        given: Cues that replace those of the question, separated by commas.

    Yields:
        A request for the cues, if the question does not name its cue.

    Returns:
        The cues. Those that the model names may be none.
    """
    if given is not None:
        return [cue for part in given.split(",") if (cue := part.strip())]
    if (named := parse_existence_cue(prompt.question)) is not None:
        return [named]
    examples = prompt.with_question(EXAMPLES.replace("{question}", prompt.question))
    reply = yield GenerateRequest(examples, SamplingParams(max_tokens=64))
    return parse_cues(reply.text)


def parse_existence_cue(question: str) -> str | None:
    """Return the cue of a question whether an object exists, which names it."""
    match = EXISTENCE.search(question)
    return without_article(match[1]) if match else None


def parse_cues(reply: str) -> list[str]:
    """Parse the cues of a reply that follows the examples. Any other reply has none."""
    sentence = re.split(r"[.\n]", reply.partition(LEAD)[2], maxsplit=1)[0]
    cues = [without_article(part.strip()) for part in re.split(r",? and |, ", sentence)]
    return list(dict.fromkeys(cue for cue in cues if cue and not PRONOUN.search(cue)))


def without_article(cue: str) -> str:
    """Remove the article of a cue."""
    return ARTICLE.sub("", cue)


def with_article(cue: str) -> str:
    """Add an indefinite article to a cue."""
    return f"{'an' if cue[:1].lower() in 'aeiou' else 'a'} {cue}"


def is_all_cue(cue: str) -> bool:
    """Return whether a cue is of type 2, which needs every object and not one of them."""
    return cue.lower().startswith(ALL_PREFIX)


def singularize(cue: str) -> str:
    """Name one of the objects of a cue of type 2."""
    return cue[len(ALL_PREFIX) :].removesuffix("s") if is_all_cue(cue) else cue
