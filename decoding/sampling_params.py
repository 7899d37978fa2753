"""Parameters by which the next token is sampled from the scores."""

import itertools
from dataclasses import dataclass, field


@dataclass(frozen=True, eq=False, slots=True, weakref_slot=True)
class Grammar:
    """A constraint on answers: a JSON Schema as text with llguidance's options, a regular expression or a Lark grammar.

    `build_grammar`, `build_regex_grammar` and `build_lark_grammar` build it.

    Requests that hold the same object share its compiled form. Equal grammars of two clients do not, because the time
    of a request would reveal that the other one has used the schema.
    """

    text: str
    grammar_id: int = field(default_factory=itertools.count().__next__)  # identifies it in vLLM's engine core


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """Sampling parameters, applied after the strategies.

    The order is that of the fields from `logit_bias` to `min_p`.

    `temperature` 0 selects the likeliest token. `top_k` 0 and `min_p` 0 are off.
    """

    max_tokens: int | None = None  # None: as many as the context has room for
    min_tokens: int = 0
    logit_bias: tuple[tuple[int, float], ...] = ()  # token ids, each once, and what is added to their scores
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    seed: int | None = None  # None: a fresh one is drawn
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()  # tokens that end the answer beside the model's own end tokens
    ignore_eos: bool = False
    grammar: Grammar | None = None  # constrains the answer
    forced_token_ids: tuple[int, ...] = ()  # tokens at the start of the answer, whatever their scores
    top_logprobs: int | None = None  # None: no log-probabilities; 0: the chosen token's alone
