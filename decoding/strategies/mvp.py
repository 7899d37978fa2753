"""Multi-view multi-path reasoning: answer on several descriptions along several paths, and vote."""

import math
import re
from dataclasses import replace
from itertools import accumulate
from typing import Annotated, Literal

from pydantic import Field

from decoding.parameters import DescriptionTokens
from decoding.requests import Answer, GenerateRequest, Prompt, SamplingParams
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

    The model describes the image three times: from its details upwards, from the scene downwards, and without
    instruction. Each description, placed before the question, is a view. The `paths` likeliest first tokens of an
    answer, of probability q >= `least` each, are continued by sampling. A path that comes to Yes or No has the
    certainty c = p_1 - p_2, the gap between the two likeliest tokens where the word begins. A path whose first token
    begins the word has c = 1.

    Where no path comes to Yes or No, as with an open question, the question runs unchanged. So do requests of outer
    strategies for scored texts or states.

    Source: Qu et al., COLING 2025, arXiv:2408.17150.

    Deviations from the official code:
    - Words are found in the tokens of the path itself, in any case and before any punctuation. The code decodes all
      paths' tokens together and splits at blanks, which misplaces the probabilities and does not find "yes,".
    - `least` also drops first tokens that are Yes or No themselves. The code keeps those, as `keeps_answers` does.
    - A path without an answer contributes nothing. The code counts its q for Yes, as `unanswered` "yes" does. Paths
      continue from ids, not from text.
    - c is measured before the temperature, as all log-probabilities of this project. The code measures it after.
    - The prompts of the first two views have other words. The request's own seed is added to `seed`.
    """

    name = "mvp"
    paper = "arXiv:2408.17150"
    official_code = "GasolSun36/MVP, no licence"
    neutral = {"bottom_up": 0, "top_down": 0, "regular": 0}
    needs_images = True

    bottom_up: Annotated[float, Field(ge=0, le=1, description="Weight of the view from the details; 0 skips it.")] = 0.4
    top_down: Annotated[float, Field(ge=0, le=1, description="Weight of the view from the scene; 0 skips it.")] = 0.4
    regular: Annotated[float, Field(ge=0, le=1, description="Weight of the plain description; 0 skips it.")] = 0.2
    paths: Annotated[int, Field(ge=1, le=20, description="Number of first tokens that are continued in each view.")] = 3
    least: Annotated[float, Field(ge=0, le=1, description="Probability below which a first token is dropped.")] = 0.001
    temperature: Annotated[float, Field(ge=0, le=2, description="Temperature of descriptions and paths.")] = 0.7
    top_p: Annotated[float, Field(gt=0, le=1, description="Nucleus of descriptions.")] = 0.95
    description_tokens: DescriptionTokens = 512
    path_tokens: Annotated[int, Field(ge=1, le=8192, description="Longest path, after its first token.")] = 50
    lower_case: Annotated[bool, Field(description="Put the question in lower case, as the official code does.")] = True
    keeps_answers: Annotated[
        bool, Field(description="Count first tokens that are Yes or No below `least` too, as the official code does.")
    ] = False
    unanswered: Annotated[
        Literal["none", "yes"],
        Field(description="Answer for which a path without an answer votes; the official code has yes."),
    ] = "none"
    seed: Annotated[int, Field(ge=0, lt=2**31, description="Seed of descriptions and paths.")] = 336

    @classmethod
    def incompatible_with(cls, outer: type[Strategy]) -> str | None:
        if outer.list_hooks() or outer.overrides_stream():
            return f"{cls.name} votes among answers to requests of its own, on which only strategies inside it act"
        return None

    def run(self, request: GenerateRequest) -> Program:
        weights = {view: weight for view in VIEWS if (weight := getattr(self, view)) > 0}
        if request.scored_texts or request.updates_state or not weights:
            return request
        seed = self.seed + (request.sampling.seed or 0)
        drawn = SamplingParams(max_tokens=self.description_tokens, temperature=self.temperature, top_p=self.top_p)
        descriptions: list[Answer] = yield [
            GenerateRequest(request.prompt.with_question(VIEWS[view]), replace(drawn, seed=seed + n))
            for n, view in enumerate(weights)
        ]
        views = [self.add_description(request.prompt, description.text) for description in descriptions]
        continuation = SamplingParams(max_tokens=1 + self.path_tokens, temperature=self.temperature, top_logprobs=2)
        first = SamplingParams(max_tokens=1, top_logprobs=self.paths, ignore_eos=True)
        starts: list[Answer] = yield [GenerateRequest(view, first) for view in views]
        votes = dict.fromkeys(ANSWERS, 0.0)
        paths: list[tuple[float, GenerateRequest]] = []  # with the vote of each
        for weight, view, start in zip(weights.values(), views, starts, strict=True):
            for token in start.tokens[0].top if start.tokens else ():
                q = math.exp(token.logprob)
                if (word := find_answer(token.text)) and (self.keeps_answers or q >= self.least):
                    votes[word] += weight * q
                elif word is None and q >= self.least:
                    sampling = replace(continuation, seed=seed + len(paths), forced_token_ids=(token.id,))
                    paths.append((weight * q, GenerateRequest(view, sampling)))
        ends: list[Answer] = yield [path for _, path in paths]
        for (worth, _), conclusion in zip(paths, map(extract_vote, ends), strict=True):
            if conclusion is not None:
                word, certainty = conclusion
                votes[word] += worth * certainty
            elif self.unanswered == "yes":
                votes["Yes"] += worth
        if not any(votes.values()):
            return request
        return Answer.from_votes(
            votes, max(start.finish.usage.prompt_tokens for start in starts), request.sampling.top_logprobs
        )

    def add_description(self, prompt: Prompt, description: str) -> Prompt:
        """Put a description before the question."""
        question = prompt.question.lower() if self.lower_case else prompt.question
        return prompt.with_question(CAPTIONED.format(description.strip(), question))


def find_answer(token: str) -> str | None:
    """Return the answer that a token is by itself, or None."""
    word = token.strip(" \n.,:;!\"'").capitalize()
    return word if word in ANSWERS else None


def extract_vote(path: Answer) -> tuple[str, float] | None:
    """Return the first answer in a path's text with its certainty, or None."""
    found = ANSWER.search(path.text)
    if found is None:
        return None
    ends = accumulate(len(token.text) for token in path.tokens)
    at = next(number for number, end in enumerate(ends) if end > found.start())
    likeliest, second = (math.exp(token.logprob) for token in path.tokens[at].top[:2])
    return found[0].capitalize(), likeliest - second if at > 0 else 1.0
