"""Grammars in the engine core: what they share, and what they log."""

from __future__ import annotations

import gc
import logging
from types import SimpleNamespace

import pytest
from llguidance import LLTokenizer

from decoding.sampling_params import Grammar
from decoding.vllm_engine.core import bounded_grammars
from decoding.vllm_engine.core.bounded_grammars import (
    GRAMMAR_LOGGER,
    build_grammar_spec,
    compile_shared_grammar,
    truncate_grammar_errors,
)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of the import of vLLM
def test_an_error_of_a_grammar_does_not_log_the_grammar(monkeypatch: pytest.MonkeyPatch) -> None:
    from vllm.v1.structured_output import backend_guidance

    assert backend_guidance.logger.name == GRAMMAR_LOGGER
    logger, records = logging.getLogger(GRAMMAR_LOGGER), list[logging.LogRecord]()
    logger.addFilter(truncate_grammar_errors)
    handler = logging.Handler()
    monkeypatch.setattr(handler, "emit", records.append)
    logger.addHandler(handler)
    try:
        logger.warning("LLMatcher error: %s", "Parser Error: too many items\n<grammar>" + "x" * 60_000)
        logger.warning("LLMatcher error: %s", "y" * 60_000)
    finally:
        logger.removeHandler(handler)
        logger.removeFilter(truncate_grammar_errors)
    first, second = (record.getMessage() for record in records)
    assert first == "LLMatcher error: Parser Error: too many items"
    assert len(second) < 300


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of the import of vLLM
def test_choices_share_a_grammar_as_long_as_one_of_them_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    trims = list[None]()
    monkeypatch.setattr(bounded_grammars, "trim_heap", lambda: trims.append(None))
    backend = SimpleNamespace(ll_tokenizer=LLTokenizer("byte"), vocab_size=257)
    grammars = [Grammar('{"enum": ["a"]}') for _ in range(2)]
    choices = [
        compile_shared_grammar(backend, "json", build_grammar_spec(grammar), stop_token_ids=set())
        for grammar in grammars
        for _ in range(2)
    ]
    assert choices[0].shared is choices[1].shared is not choices[2].shared
    assert choices[0].accept_tokens("first", list(b'"a'))
    assert choices[1].accept_tokens("second", list(b'"')), "the answers are apart"
    assert len(bounded_grammars._shared_grammars) == 2
    assert not trims
    del choices
    gc.collect()
    assert not bounded_grammars._shared_grammars
    assert len(trims) == 2, "the memory of both grammars returns to the system"
