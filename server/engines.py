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
                    max_rows=settings.rows,
                    max_waiting=settings.max_waiting,
                    prefix_cache_bytes=settings.prefix_cache_mb << 20,
                )
            )
        case "vllm":
            return vllm(settings)


def vllm(settings: Settings) -> Engine:
    from decoding.vllm_engine import versions
    from decoding.vllm_engine.engine import VllmEngine
    from decoding.vllm_engine.settings import VllmSettings

    versions.installed()
    if settings.quantization is not None:
        raise Unsupported("--quantization is for --engine hf: vLLM reads it from the checkpoint.")
    return VllmEngine(
        VllmSettings(
            model=settings.model,
            matcher=settings.matcher_source,
            name=settings.name,
            dtype=settings.dtype,
            context=settings.context,
            max_rows=settings.rows,
            max_waiting=settings.max_waiting,
            cache_bytes=None if settings.cache_gb is None else int(settings.cache_gb * (1 << 30)),
        )
    )
