"""The entry point `vllm.general_plugins`: vLLM calls it in every one of its processes.

It does nothing unless our engine has asked for it. vLLM only logs a plugin that fails, so the engine asks every process
afterwards what is in place, and refuses to start when something is not.
"""

from __future__ import annotations

import os

ASKED = "_ONLYSEEN_IN_VLLM"  # set by our engine; the underscore keeps it apart from the settings


def register() -> None:
    if os.environ.get(ASKED) != "1":
        return
    from decoding.vllm_engine import core, runner

    core.install()
    runner.install()
