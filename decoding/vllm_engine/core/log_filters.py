"""Keep the texts of requests out of vLLM's log."""

from __future__ import annotations

import logging

DUMP_LOGGER = "vllm.logging_utils.dump_input"
DUMPED_REQUESTS = "Dumping scheduler output"


def install() -> None:
    """Drop the dump of the running requests that vLLM logs when a step fails: it has their grammars and parameters."""
    logging.getLogger(DUMP_LOGGER).addFilter(has_no_requests)


def has_no_requests(record: logging.LogRecord) -> bool:
    """Return whether a record of vLLM's dump does not show the running requests."""
    return not str(record.msg).startswith(DUMPED_REQUESTS)
