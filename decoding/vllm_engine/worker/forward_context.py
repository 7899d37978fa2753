"""vLLM's settings of the step that runs."""

from __future__ import annotations


def disable_cuda_graphs() -> None:
    """Run this step without CUDA graphs, which would not call Python code."""
    from vllm.config import CUDAGraphMode
    from vllm.forward_context import get_forward_context

    get_forward_context().cudagraph_runtime_mode = CUDAGraphMode.NONE


def disable_compiled_code() -> None:
    """Run this step uncompiled and without CUDA graphs, so that the layers call the taps."""
    from vllm.forward_context import get_forward_context

    disable_cuda_graphs()
    get_forward_context().skip_compiled = True
