"""Create the engine that the settings name."""

from decoding.engine import Engine
from decoding.errors import Unsupported
from decoding.malloc import limit_arenas
from server.settings import Settings


def create_engine(settings: Settings) -> Engine:
    """Create an engine without starting it. Slow: it imports the engine's libraries.

    Args:
        settings: The settings of the server.

    Returns:
        The engine.

    Raises:
        Unsupported: vLLM is not installed in a tested version, or the settings select a quantization for it.
    """  # noqa: DOC502 - `create_vllm_engine` raises it
    match settings.engine:
        case "hf":
            from decoding.hf_engine.engine import HFEngine
            from decoding.hf_engine.settings import HFSettings

            return HFEngine(
                HFSettings(
                    model=settings.model,
                    matcher=settings.matcher_source,
                    attention_statistics=settings.attention_statistics,
                    vectors=settings.steering_vectors,
                    name=settings.name,
                    chat_template=settings.chat_template,
                    device=settings.device,
                    dtype=settings.dtype,
                    quantization=settings.quantization,
                    max_rows=settings.resolved_max_rows,
                    max_waiting=settings.max_waiting,
                    cache_bytes=settings.cache_bytes,
                    prefix_cache_bytes=settings.prefix_cache_mb << 20,
                )
            )
        case "vllm":
            return create_vllm_engine(settings)


def create_vllm_engine(settings: Settings) -> Engine:
    """Create a vLLM engine without starting it.

    Args:
        settings: The settings of the server.

    Returns:
        The engine.

    Raises:
        Unsupported: vLLM is not installed in a tested version, or the settings select a quantization.
    """
    from decoding.vllm_engine.engine import VllmEngine
    from decoding.vllm_engine.frontend import engine_args
    from decoding.vllm_engine.settings import VllmSettings

    engine_args.require_tested_version()
    if settings.quantization is not None:
        raise Unsupported(
            "--quantization works with --engine hf only. vLLM reads the quantization from the checkpoint."
        )
    limit_arenas()  # as `HFEngine` does: images are decoded in this process
    return VllmEngine(
        VllmSettings(
            model=settings.model,
            matcher=settings.matcher_source,
            attention_statistics=settings.attention_statistics,
            vectors=settings.steering_vectors,
            name=settings.name,
            chat_template=settings.chat_template,
            dtype=settings.dtype,
            context=settings.context,
            max_rows=settings.resolved_max_rows,
            max_waiting=settings.max_waiting,
            cache_bytes=settings.cache_bytes,
            tensor_parallel=settings.tensor_parallel,
            async_scheduling=settings.async_scheduling,
        )
    )
