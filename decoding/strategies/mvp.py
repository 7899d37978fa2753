"""Multi-view multi-path reasoning: describe the picture three ways, answer along several paths, and let them vote."""

import math
import re
from dataclasses import replace
from itertools import accumulate
from typing import Annotated

from pydantic import Field

from decoding.ask import Answer, Ask, Prompt, Sampling
from decoding.strategies.parameters import DescriptionTokens
from decoding.strategy import Program, Strategy

ANSWERS = ("Yes", "No")
ANSWER = re.compile(r"\b(yes|no)\b", re.IGNORECASE)
CAPTIONED = "Here is the caption of the image:\n{}\nQuestion: {}"
VIEWS = {
    "bottom_up": "Examine this image step by step, from its details upwards: look at shapes, colours and textures "
    "first, tell from them which objects there are, and then write a detailed description of the image.",
    "top_down": "Look at this image as a whole first: its scene, setting and context, and what in it hints at them. "
    "Then write a detailed description of the image.",
    "regular": "Describe this image in details.",
}


class MVP(Strategy):
    """answer = argmax_a sum_v w_v S_v(a), with S_v(a) = the sum of q c over the paths of view v that end in a.

    Look: the model describes the picture three times, from its details upwards, from the scene downwards, and as it
    likes; each description, before the question, is a view. Compare: the `paths` likeliest first tokens of an answer,
    of probability q >= `least` each, are continued by sampling. Decide: a path that comes to Yes or No is certain of it
    by c = p_1 - p_2, the gap between the two likeliest tokens where the word begins; a path whose first token begins
    the word has c = 1. Qu et al., COLING 2025, arXiv:2408.17150.

    Where no path comes to Yes or No, as with an open question, the question is asked as it is; so are questions of
    other strategies that are not for an answer in words.

    Deviations from the official code:
    - Words are found in the tokens of the path itself, in any case and before any punctuation; the code decodes all
      paths' tokens together and splits at blanks, which misplaces the probabilities, and does not find "yes,".
    - A path without an answer contributes nothing, where the code gives it to Yes; paths go on from ids, not from text.
    - c is measured before the temperature, as all log-probabilities here are; the code measures it after.
    - The prompts of the first two views are worded anew. The request's own seed is added to `seed`.
    """

    name = "mvp"
    paper = "arXiv:2408.17150"

    bottom_up: Annotated[float, Field(ge=0, le=1, description="Weight of the view from the details; 0 skips it.")] = 0.4
    top_down: Annotated[float, Field(ge=0, le=1, description="Weight of the view from the scene; 0 skips it.")] = 0.4
    regular: Annotated[float, Field(ge=0, le=1, description="Weight of the plain description; 0 skips it.")] = 0.2
    paths: Annotated[int, Field(ge=1, le=20, description="First tokens that are followed in each view.")] = 3
    least: Annotated[float, Field(ge=0, le=1, description="Probability below which a first token is dropped.")] = 0.001
    temperature: Annotated[float, Field(ge=0, le=2, description="Of descriptions and paths.")] = 0.7
    top_p: Annotated[float, Field(gt=0, le=1, description="Of descriptions.")] = 0.95
    description_tokens: DescriptionTokens = 512
    path_tokens: Annotated[int, Field(ge=1, le=8192, description="Longest path, after its first token.")] = 50
    lower_case: Annotated[bool, Field(description="Put the question in lower case, as the paper's code does.")] = True
    seed: Annotated[int, Field(ge=0, lt=2**31, description="Of descriptions and paths.")] = 336

    @classmethod
    def refuses(cls, outer: type[Strategy]) -> str | None:
        if outer.hooks():
            return f"{cls.name} votes among answers to its own questions, on which only what is inside it acts"
        return None

    def run(self, ask: Ask) -> Program:
        ask.prompt.require_pictures(self.name)
        weights = {view: weight for view in VIEWS if (weight := getattr(self, view)) > 0}
        if ask.choices or ask.digest or not weights:
            return ask
        seed = self.seed + (ask.sampling.seed or 0)
        drawn = Sampling(max_tokens=self.description_tokens, temperature=self.temperature, top_p=self.top_p)
        described: list[Answer] = yield [
            Ask(ask.prompt.with_question(VIEWS[view]), replace(drawn, seed=seed + n)) for n, view in enumerate(weights)
        ]
        views = [self.captioned(ask.prompt, said.text) for said in described]
        onwards = Sampling(max_tokens=1 + self.path_tokens, temperature=self.temperature, top_logprobs=2)
        first = Sampling(max_tokens=1, top_logprobs=self.paths, ignore_eos=True)
        begun: list[Answer] = yield [Ask(view, first) for view in views]
        votes = dict.fromkeys(ANSWERS, 0.0)
        paths: list[tuple[float, Ask]] = []  # and what each is worth
        for weight, view, said in zip(weights.values(), views, begun, strict=True):
            for token in said.tokens[0].top if said.tokens else ():
                q = math.exp(token.logprob)
                if q >= self.least and (word := answer_of(token.text)):
                    votes[word] += weight * q
                elif q >= self.least:
                    walk = replace(onwards, seed=seed + len(paths), begin=(token.id,))
                    paths.append((weight * q, Ask(view, walk)))
        walked: list[Answer] = yield [path for _, path in paths]
        for (worth, _), end in zip(paths, map(conclusion, walked), strict=True):
            if end is not None:
                word, certainty = end
                votes[word] += worth * certainty
        if not any(votes.values()):
            return ask
        return Answer.decided(votes, max(said.end.usage.prompt_tokens for said in begun), ask.sampling.top_logprobs)

    def captioned(self, prompt: Prompt, description: str) -> Prompt:
        question = prompt.question.lower() if self.lower_case else prompt.question
        return prompt.with_question(CAPTIONED.format(description.strip(), question))


def answer_of(token: str) -> str | None:
    """The answer that a token is by itself."""
    word = token.strip(" \n.,:;!\"'").capitalize()
    return word if word in ANSWERS else None


def conclusion(path: Answer) -> tuple[str, float] | None:
    """The first answer in a path's text, and how certain the model was of it; None where there is none."""
    found = ANSWER.search(path.text)
    if found is None:
        return None
    ends = accumulate(len(token.text) for token in path.tokens)
    at = next(number for number, end in enumerate(ends) if end > found.start())
    likeliest, second = (math.exp(token.logprob) for token in path.tokens[at].top[:2])
    return found[0].capitalize(), likeliest - second if at > 0 else 1.0
