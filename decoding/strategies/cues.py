"""What has to be looked for in a picture to answer a question, in words: ZoomEye's visual cues."""

import re
from collections.abc import Generator

from decoding.ask import Answer, Ask, Prompt, Sampling

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
ALL = "all "


def wanted(prompt: Prompt, given: str | None) -> Generator[Ask, Answer, list[str]]:
    """The cues that were given, with commas between; or the question's own; or those that the model names."""
    if given is not None:
        return [cue for part in given.split(",") if (cue := part.strip())]
    if (named := asked_for(prompt.question)) is not None:
        return [named]
    examples = prompt.with_question(EXAMPLES.replace("{question}", prompt.question))
    reply = yield Ask(examples, Sampling(max_tokens=64))
    return listed(reply.text)


def asked_for(question: str) -> str | None:
    """The cue of a question whether something is there, which names it."""
    found = EXISTENCE.search(question)
    return bare(found[1]) if found else None


def listed(text: str) -> list[str]:
    """The cues of a reply that follows the examples; none of one that does not."""
    sentence = re.split(r"[.\n]", text.partition(LEAD)[2], maxsplit=1)[0]
    cues = [bare(part.strip()) for part in re.split(r",? and |, ", sentence)]
    return list(dict.fromkeys(cue for cue in cues if cue and not PRONOUN.search(cue)))


def bare(cue: str) -> str:
    return ARTICLE.sub("", cue)


def means_all(cue: str) -> bool:
    """Of type 2: every one of the things has to be found, not one of them."""
    return cue.lower().startswith(ALL)


def single(cue: str) -> str:
    """One of the things that a cue of type 2 wants all of."""
    return cue[len(ALL) :].removesuffix("s") if means_all(cue) else cue


def with_article(cue: str) -> str:
    return f"{'an' if cue[:1].lower() in 'aeiou' else 'a'} {cue}"
