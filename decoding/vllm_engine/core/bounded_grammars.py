"""Grammars in vLLM's engine core, within the limits of the server's check and without their text in the log.

With vLLM's own limits and an automaton for each answer, eight requests with eight choices each took 3.5 GB.
"""

from __future__ import annotations

import logging
from threading import Lock
from typing import Any
from weakref import WeakValueDictionary

from llguidance import LLMatcher, LLTokenizer

from decoding.malloc import trim_heap
from decoding.sampling_params import Grammar
from decoding.text.grammar_check import compile_grammar

GRAMMAR_LOGGER = "vllm.v1.structured_output.backend_guidance"
MAX_LOGGED_ERROR = 200  # characters


class SharedGrammar:
    """The grammar of a request. The answers to its choices share the automaton, and so its limit."""

    def __init__(self, schema: str) -> None:
        self._schema = schema
        self._start: LLMatcher | None = None
        self._lock = Lock()  # vLLM compiles in several threads

    def __del__(self) -> None:
        # The small parts of a large automaton leave gaps, which the C library would keep.
        if self._start is not None:
            self._start = None
            trim_heap()

    def create_ll_matcher(self, tokenizer: LLTokenizer) -> LLMatcher:
        """Create the `LLMatcher` of an answer. The first call compiles the grammar."""
        with self._lock:
            if self._start is None:
                self._start = compile_grammar(tokenizer, self._schema)
            return self._start.deep_copy()


# The references are weak, because an automaton may take 130 MB and nothing reports the end of a request here. vLLM
# drops the grammar of an answer with the answer. The last answer frees the compiled grammar.
_shared_grammars: WeakValueDictionary[str, SharedGrammar] = WeakValueDictionary()
_lock = Lock()


def build_grammar_spec(grammar: Grammar) -> str:
    """Build the text that vLLM passes on to the engine core: the id of the request's grammar, and its schema."""
    return f"{grammar.grammar_id} {grammar.text}"


def install() -> None:
    """Let vLLM's guidance backend compile grammars as the transformers engine does."""
    from vllm.v1.structured_output.backend_guidance import GuidanceBackend

    GuidanceBackend.compile_grammar = compile_shared_grammar
    logging.getLogger(GRAMMAR_LOGGER).addFilter(truncate_grammar_errors)


def compile_shared_grammar(backend: Any, request_type: Any, grammar_spec: str, *_: Any, **__: Any) -> Any:
    """Compile the grammar of an answer.

    Args:
        backend: vLLM's GuidanceBackend.
        request_type: Kind of the grammar, which is JSON.
        grammar_spec: The text of `build_grammar_spec`.

    Returns:
        vLLM's GuidanceGrammar at the start of the answer.
    """
    from vllm.v1.structured_output.backend_guidance import GuidanceGrammar

    with _lock:
        shared = _shared_grammars.setdefault(grammar_spec, SharedGrammar(grammar_spec.partition(" ")[2]))
    grammar = GuidanceGrammar(
        ll_matcher=shared.create_ll_matcher(backend.ll_tokenizer),
        ll_tokenizer=backend.ll_tokenizer,
        vocab_size=backend.vocab_size,
    )
    grammar.shared = shared  # the only reference that keeps the compiled grammar alive
    grammar.check_error()
    return grammar


def truncate_grammar_errors(record: logging.LogRecord) -> bool:
    """Shorten the arguments of a log record to their first line. The others repeat the grammar, up to 64 kB.

    Args:
        record: A record of `GRAMMAR_LOGGER`. It is changed in place.

    Returns:
        True: the record is logged in any case.
    """
    if isinstance(record.args, tuple):
        record.args = tuple(
            each.partition("\n")[0][:MAX_LOGGED_ERROR] if isinstance(each, str) else each for each in record.args
        )
    return True
