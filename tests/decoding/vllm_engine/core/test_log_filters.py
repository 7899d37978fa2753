"""The dump of a failed step does not show the running requests."""

import logging
from types import SimpleNamespace
from typing import Any

import pytest

from decoding.vllm_engine.core.log_filters import DUMP_LOGGER, has_no_requests

dump_input = pytest.importorskip("vllm.logging_utils.dump_input")


def test_the_dump_of_a_failed_step_has_no_requests(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    logger = logging.getLogger(DUMP_LOGGER)
    monkeypatch.setattr(logger, "filters", [])  # an engine of another test may have added the filter
    output: Any = SimpleNamespace(sampling_params="a secret")
    config: Any = "the config"
    logger.addHandler(caplog.handler)
    try:
        dump_input.dump_engine_exception(config, output, None)
        assert "a secret" in caplog.text  # without the filter
        caplog.clear()
        logger.addFilter(has_no_requests)
        dump_input.dump_engine_exception(config, output, None)
    finally:
        logger.removeHandler(caplog.handler)
    assert "the config" in caplog.text
    assert "a secret" not in caplog.text
