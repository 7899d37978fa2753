"""What the vLLM engine is started with."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class VllmSettings:
    """`model` and `matcher` are folders or hub ids. Sizes that are None are chosen by the model and by vLLM.

    The model runs on what vLLM was built for, the matcher on the CPU.
    """

    model: str
    matcher: str | None = None  # None: relevance (AGLA) is refused
    name: str | None = None  # how clients call the model; None: the last part of `model`
    dtype: str = "auto"  # float32 on a CPU, bfloat16 on a GPU
    context: int | None = None  # tokens, prompt and answer together
    max_rows: int = 64  # prompts and branches that run at once
    max_waiting: int = 256  # rows that may queue for a place
    step_tokens: int | None = None  # most tokens in one step; longer prompts are cut into chunks
    cache_bytes: int | None = None  # of keys and values; None: 1 GiB on a CPU, what is free on a GPU
    cache_blocks: int | None = None  # of keys and values, instead of bytes
    block_tokens: int | None = None  # tokens in a block of the cache
    prefix_cache: bool = True
    compiled: bool | None = None  # torch.compile and CUDA graphs; None: on a GPU, where they pay for their minutes
    scheduler: str = "decoding.vllm_engine.scheduler.GangScheduler"  # tests put others in its place
