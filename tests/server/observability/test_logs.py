"""Texts of clients in the log: control characters are escaped, and free texts of parameters do not appear."""

import io
import sys

import pytest
import structlog

from decoding import registry
from decoding.strategies.icd import ICD
from decoding.strategy import Strategy
from server.observability.logs import MAX_LOGGED_CHARACTERS, configure_logging, describe_parameters

CONTROLS = ("\x1b]0;title\x07", "\x1b[2J", "\x9b31m", "\x85", "\u202e")


class Terminal(io.StringIO):
    """A stream that looks like a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("stream_class", [Terminal, io.StringIO])
def test_control_characters_of_clients_are_escaped(
    stream_class: type[io.StringIO], monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = stream_class()
    monkeypatch.setattr(sys, "stderr", stream)
    configure_logging()
    try:
        log = structlog.get_logger()
        log.info("response_sent", path="/v1/" + "".join(CONTROLS), user="a" * 2 * MAX_LOGGED_CHARACTERS)
        try:
            raise ValueError("".join(CONTROLS))
        except ValueError as error:
            log.error("request_failed", exc_info=error)
    finally:
        structlog.reset_defaults()
    shown = stream.getvalue()
    assert "title" in shown
    assert "ValueError" in shown
    assert not [control for control in CONTROLS if control in shown]
    assert "a" * (MAX_LOGGED_CHARACTERS + 1) not in shown


def test_free_texts_of_parameters_are_logged_as_their_length() -> None:
    shown = describe_parameters(ICD(sentence="a secret"))
    assert shown == ICD().model_dump(mode="json") | {"sentence": "<8 characters>"}


@pytest.mark.parametrize("strategy_class", registry.list_strategies().values())
def test_no_strategy_logs_a_text_that_is_not_one_of_its_constants(strategy_class: type[Strategy]) -> None:
    strategy = strategy_class()
    texts = [value for value in strategy.model_dump(mode="json").values() if isinstance(value, str) and " " in value]
    assert not [text for text in texts if text in str(describe_parameters(strategy))]
