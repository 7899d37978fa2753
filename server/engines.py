"""The engine that the settings name."""

from decoding.engine import Engine
from decoding.errors import Unsupported
from server.settings import Settings


def create(settings: Settings) -> Engine:
    """An engine that is not started yet. Slow: it imports the engine's libraries.

    Raises:
        Unsupported: this installation has no such engine.
    """
    match settings.engine:
        case "hf":
            from decoding.hf_engine.engine import HFEngine
            from decoding.hf_engine.settings import HFSettings

            return HFEngine(
                HFSettings(
                    model=settings.model,
                    matcher=settings.matcher_source,
                    name=settings.name,
                    device=settings.device,
                    dtype=settings.dtype,
                    quantization=settings.quantization,
                    max_rows=settings.max_rows,
                    max_waiting=settings.max_waiting,
                )
            )
        case "vllm":
            raise Unsupported("The vLLM engine is not part of this version: start with --engine hf.")
