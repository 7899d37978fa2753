"""What the transformers engine is started with."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class HFSettings:
    """`model` and `matcher` are folders or hub ids. `device` "auto" takes a GPU where there is one."""

    model: str
    matcher: str | None = None  # None: relevance (AGLA) is refused
    name: str | None = None  # how clients call the model; None: the last part of `model`
    device: str = "auto"
    dtype: str = "auto"  # float32 on a CPU, bfloat16 on a GPU
    quantization: str | None = None  # "4bit" or "8bit", through bitsandbytes
    max_rows: int = 64  # prompts and branches that run at once
    max_waiting: int = 256  # rows that may queue for a place
    prefix_cache_bytes: int = 128 << 20  # of keys and values of pictures, kept for the next question; 0: none
