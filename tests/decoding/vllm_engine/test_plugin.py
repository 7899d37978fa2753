"""What the plugin changes in vLLM's processes, beside the engine core and the model runner."""

from __future__ import annotations

import logging

import pytest

from decoding.vllm_engine.plugin import GRAMMAR_LOGGER, keep_first_line, shorten_grammar_errors


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of the import of vLLM
def test_an_error_of_a_grammar_does_not_log_the_grammar(monkeypatch: pytest.MonkeyPatch) -> None:
    from vllm.v1.structured_output import backend_guidance

    assert backend_guidance.logger.name == GRAMMAR_LOGGER
    logger, records = logging.getLogger(GRAMMAR_LOGGER), list[logging.LogRecord]()
    shorten_grammar_errors()
    handler = logging.Handler()
    monkeypatch.setattr(handler, "emit", records.append)
    logger.addHandler(handler)
    try:
        logger.warning("LLMatcher error: %s", "Parser Error: too many items\n<grammar>" + "x" * 60_000)
        logger.warning("LLMatcher error: %s", "y" * 60_000)
    finally:
        logger.removeHandler(handler)
        logger.removeFilter(keep_first_line)
    first, second = (record.getMessage() for record in records)
    assert first == "LLMatcher error: Parser Error: too many items"
    assert len(second) < 300
