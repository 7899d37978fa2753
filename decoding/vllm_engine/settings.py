"""Settings of the vLLM engine."""

from dataclasses import dataclass

from decoding.engine import EngineSettings


@dataclass(frozen=True, slots=True)
class VllmSettings(EngineSettings):
    """Settings of the vLLM engine. The model or vLLM chooses sizes that are None.

    The model runs on the device for which vLLM was built, the matcher on the CPU.
    """

    dtype: str = "auto"  # float32 on a CPU, bfloat16 on a GPU
    context: int | None = None  # tokens of prompt and answer together
    step_tokens: int | None = None  # most tokens in one step; longer prompts are cut into chunks
    cache_bytes: int | None = None  # size of the KV cache; None: 1 GiB on a CPU, the free memory of a GPU
    cache_blocks: int | None = None  # size of the KV cache, instead of `cache_bytes`
    block_tokens: int | None = None  # tokens in a block of the KV cache
    prefix_cache: bool = True
    tensor_parallel: int = 1  # devices, or processes on a CPU, that share each layer
    compiled: bool | None = None  # torch.compile and CUDA graphs; None: on a GPU, where they repay their start-up time
    async_scheduling: bool = False  # plan a step while the last one runs
    scheduler: str | None = None  # class of the scheduler; tests replace it
