"""The fold of a probe: activations of its prompts go into a strategy state, layer by layer."""

from __future__ import annotations

from torch import Tensor

from decoding.pipeline.composition import attribute_errors, combine_head_scales
from decoding.tensor_hooks import Activations, TensorHooks, Tensors


class ProbeFold:
    """The state of one probe during its pass, and the hooks that it calls in each layer.

    A hook that fails, fails its own probe. Other requests of the pass go on.

    Attributes:
        state: State after the layers that have run.
        failure: Exception of a hook. No hook runs after it.

    Args:
        strategy: Strategy of the probe.
        layerwise: Whether the head scales of the state act on each layer of the probe itself.
    """

    def __init__(self, strategy: TensorHooks, layerwise: bool) -> None:
        self.strategy = strategy
        self.layerwise = layerwise
        self.state: Tensors = {}
        self.failure: Exception | None = None

    def fold(self, activations: Activations) -> Tensor | None:
        """Fold the activations of a layer into the state.

        Args:
            activations: Activations of the probe's prompts, with the [heads, head_dim] outputs of at least one.

        Returns:
            [heads] scales of the main prompt in this layer, or None.
        """
        if self.failure is not None:
            return None
        strategy = self.strategy
        try:
            with attribute_errors(strategy):
                self.state = strategy.update_state(self.state, activations)
            if not self.layerwise:
                return None
            num_heads = next(iter(activations.heads.values())).shape[0]
            scales = combine_head_scales((strategy,), {strategy.name: self.state}, (activations.layers, num_heads))
        except Exception as error:
            self.failure = error
            return None
        return None if scales is None else scales[activations.layer]
