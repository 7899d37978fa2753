"""Tap on the attention: it computes the attention of single tokens a second time.

vLLM's attention is an opaque operator, compiled or not, which calls the `forward` of a layer's implementation. After
that call the keys and values of all tokens are in the KV cache, and each `SecondAttention` reads them there.
Edits of scores and branches that see a part of the image replace the output. Captures of probes leave it as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from decoding.pipeline.attention_statistics import STATISTICS_KEY, load_attention_statistics
from decoding.vllm_engine.worker.attention.attention_capture import GangAttentionCapture
from decoding.vllm_engine.worker.attention.attention_edits import GangAttentionEdits
from decoding.vllm_engine.worker.attention.paged_attention import AttentionCall, check_attention
from decoding.vllm_engine.worker.attention.second_attention import AttentionContext, SecondAttention
from decoding.vllm_engine.worker.attention.token_pruning import GangTokenPruning
from decoding.vllm_engine.worker.attention_layers import has_attention
from decoding.vllm_engine.worker.forward_context import disable_cuda_graphs
from decoding.vllm_engine.worker.head_shards import HeadShards
from decoding.vllm_engine.worker.image_tokens import find_image_tokens
from decoding.vllm_engine.worker.state_store import StateStore
from decoding.vllm_engine.worker.step_rows import StepRows, TokenInfo


class GangAttentionTap:
    """The attention tap of one model runner.

    Args:
        layers: vLLM's attention layers. The `forward` of their implementations is wrapped.
        context: The model and the strategy states.
    """

    def __init__(self, layers: Sequence[Any], context: AttentionContext) -> None:
        self.context = context
        self._capture = GangAttentionCapture(context)
        self._second_attentions: Sequence[SecondAttention] = (
            self._capture,
            GangTokenPruning(context),
            GangAttentionEdits(context),
        )
        self._active: list[SecondAttention] = []
        for layer, module in enumerate(layers):
            module.impl.forward = self._wrap(module.impl, layer)

    @classmethod
    def from_runner(cls, runner: Any, states: StateStore, shards: HeadShards) -> GangAttentionTap:
        """Tap the model of a model runner.

        Args:
            runner: vLLM's model runner.
            states: Store of the strategy states.
            shards: The heads that this process runs.

        Returns:
            The tap. `ValueError` gives the reason if the attention cannot be computed a second time.

        Raises:
            ValueError: The model has no attention with a KV cache.
        """
        layers = [module.attn for module in runner.model.modules() if has_attention(module)]
        if not layers:
            raise ValueError("the model has no attention with a KV cache")
        config = runner.vllm_config
        check_attention(layers, bool(config.compilation_config.pass_config.fuse_attn_quant))
        context = AttentionContext(
            len(layers),
            states,
            lambda request_id: find_image_tokens(runner.requests[request_id]),
            runner.device,
            shards,
            load_attention_statistics(find_statistics_file(config), runner.model_config.hf_config, runner.device),
        )
        return cls(layers, context)

    @property
    def captured_attention(self) -> Mapping[int, Tensor]:
        """Row of a probed prompt -> [heads, image tokens] of its last token, in the layer that has just run."""
        return self._capture.captured_attention

    def before_forward(self, rows: StepRows, token_info: TokenInfo) -> None:
        """Find the tokens of the step whose attention is computed a second time.

        Args:
            rows: Rows of the step.
            token_info: Receives failures.
        """
        for each in self._second_attentions:
            each.before_forward(rows, token_info)
        self._active = [each for each in self._second_attentions if not each.is_idle]
        if self._active and self.context.device.type == "cuda":
            disable_cuda_graphs()

    def after_forward(self, rows: StepRows, token_info: TokenInfo) -> None:
        """Drop the step, and report hooks that failed.

        Args:
            rows: Rows of the step.
            token_info: Receives failures.
        """
        self._active = []
        for each in self._second_attentions:
            each.after_forward(rows, token_info)

    def reset(self) -> None:
        """Drop the step."""
        self._active = []
        for each in self._second_attentions:
            each.reset()

    def _wrap(self, impl: Any, layer: int) -> Callable[..., Any]:
        """Wrap the `forward` of an attention implementation."""
        original = impl.forward

        def forward(
            module: Any,
            query: Tensor,
            key: Tensor,
            value: Tensor,
            kv_cache: Tensor,
            metadata: Any,
            output: Tensor,
            *args: Any,
            **kwargs: Any,
        ) -> Any:
            result = original(module, query, key, value, kv_cache, metadata, output, *args, **kwargs)
            if self._active and metadata is not None:
                call = AttentionCall(module, layer, query, kv_cache, metadata.block_table, output)
                for each in self._active:
                    each.apply(call)
            return result

        return forward


def find_statistics_file(config: Any) -> Path | None:
    """Return the file of attention statistics that the engine has put into vLLM's configuration, or None."""
    file = (config.additional_config or {}).get(STATISTICS_KEY)
    return None if file is None else Path(file)
