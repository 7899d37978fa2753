"""What the server process can ask of the worker, through vLLM's collective_rpc."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from decoding.vllm_engine.runner import hooked


class WorkerExtension:
    """Mixed into vLLM's worker class. `model_runner` is the worker's."""

    model_runner: Any

    def onlyseen_forget(self, handles: Sequence[str]) -> None:
        for handle in handles:
            self.model_runner.stage.memories.forget(handle)

    def onlyseen_told(self) -> dict[str, Any]:
        """What is in place next to the model, and what it holds."""
        stage = getattr(self.model_runner, "stage", None)
        return {
            "runner": "v1" if stage is not None else None,
            "hooks": hooked(self.model_runner),
            **(stage.told() if stage is not None else {}),
        }
