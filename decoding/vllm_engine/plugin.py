"""Entry point `vllm.general_plugins`, which vLLM calls in each of its processes.

It does nothing unless our engine has set the environment variable. vLLM only logs a plugin that fails. The engine
therefore requests a report from every process afterwards, and does not start if something is missing.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from multiprocessing.process import BaseProcess

STOP_SECONDS = 10.0  # for an orderly end, after which the process is killed
ENABLE_VARIABLE = "_ONLYSEEN_IN_VLLM"  # the underscore keeps it apart from the server's settings


def register() -> None:
    """Patch vLLM's engine core, its grammars and its model runner, if our engine has started this process."""
    if os.environ.get(ENABLE_VARIABLE) != "1":
        return
    # First: vLLM's functions read the backend where they are defined.
    avoid_cpp_compiler()
    from decoding.vllm_engine.core import bounded_grammars, log_filters, utility_methods
    from decoding.vllm_engine.worker import model_runner_patch

    bounded_grammars.install()
    log_filters.install()
    utility_methods.install()
    model_runner_patch.install()
    end_with_parent()


def end_with_parent() -> None:
    """End this process of vLLM when the process that has started it is gone. A killed server could not stop it."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=end_after, args=(parent,), name="onlyseen-parent", daemon=True).start()


def end_after(parent: BaseProcess) -> None:
    """Wait for the end of a process, then end this one, with its shared memory if that takes no longer than allowed."""
    parent.join()
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(STOP_SECONDS)
    os.kill(os.getpid(), signal.SIGKILL)


def avoid_cpp_compiler() -> None:
    """Run the small functions that vLLM compiles apart from the model without compiling them, on a CPU.

    Inductor needs a C++ compiler there, whose absence or failure would end the engine core at the first request that
    reaches such a function: one with log-probabilities. It would also hold all requests back while it compiles.
    """
    from vllm.platforms import current_platform

    if current_platform.is_cpu():
        current_platform.simple_compile_backend = "eager"
