"""Settings of the transformers engine."""

from dataclasses import dataclass

from decoding.engine import EngineSettings

# Rows of the model's maximum length that the KV cache holds by default. With the embedded model, one request must take
# less than 300 MB, with its images and its answers.
DEFAULT_CONTEXTS = 7


@dataclass(frozen=True, slots=True)
class HFSettings(EngineSettings):
    """Settings of the transformers engine. The device "auto" is a GPU if there is one."""

    device: str = "auto"
    dtype: str = "auto"  # float32 on a CPU, bfloat16 on a GPU
    quantization: str | None = None  # "4bit" or "8bit", through bitsandbytes
    cache_bytes: int | None = None  # size of the KV cache of running rows; None: `DEFAULT_CONTEXTS` full contexts
    prefix_cache_bytes: int = 128 << 20  # keys and values of prompt prefixes with images; 0 turns the cache off
