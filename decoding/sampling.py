"""How the next token is chosen from the scores."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Sampling:
    """Applied in the order of the fields from `repetition_penalty` to `min_p`, after the strategies.

    `temperature` 0 takes the likeliest token. `top_k` 0 and `min_p` 0 are off.
    """

    max_tokens: int | None = None  # None: as many as the context holds
    min_tokens: int = 0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    seed: int | None = None  # None: a fresh one is drawn
    stop: tuple[str, ...] = ()
    ignore_eos: bool = False
    grammar: str | None = None  # what the answer must look like, as decoding.grammar.grammar_of made it
    begin: tuple[int, ...] = ()  # tokens that the answer begins with, whatever their scores
    top_logprobs: int | None = None  # None: no log-probabilities; 0: the chosen token's alone
