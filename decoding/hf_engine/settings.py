"""Settings of the transformers engine."""

from dataclasses import dataclass

from decoding.engine import EngineSettings


@dataclass(frozen=True, slots=True)
class HFSettings(EngineSettings):
    """Settings of the transformers engine. The device "auto" is a GPU if there is one."""

    device: str = "auto"
    dtype: str = "auto"  # float32 on a CPU, bfloat16 on a GPU
    quantization: str | None = None  # "4bit" or "8bit", through bitsandbytes
    prefix_cache_bytes: int = 128 << 20  # keys and values of prompt prefixes with images; 0 turns the cache off
