"""Pure functions over [..., vocab] logits. None of them changes its input or the dtype, or makes nan from -inf."""

from decoding.logits_ops import (
    add,
    contrast,
    entropy,
    js_divergence,
    mask_logits,
    plausibility_mask,
    scale,
    shift,
    subtract,
    top_k_mask,
    top_p_mask,
)

__all__ = [
    "add",
    "contrast",
    "entropy",
    "js_divergence",
    "mask_logits",
    "plausibility_mask",
    "scale",
    "shift",
    "subtract",
    "top_k_mask",
    "top_p_mask",
]
