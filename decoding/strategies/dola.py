"""Decoding by contrasting layers: subtract the logits of an earlier layer."""

from typing import Annotated, Literal

from pydantic import Field
from torch import Tensor

from decoding.logits_ops import js_divergence, mask_logits, mean_kl_divergence, plausibility_mask, subtract
from decoding.parameters import EarlyLayer, Normed, Plausibility
from decoding.strategy import EarlyExits, Step, Strategy

MAX_BUCKET = 20  # layers


class DoLa(Strategy):
    """z_f = z - alpha z_j* where p(w) >= beta max p, -inf elsewhere; j* = argmax_j JSD(p || p_j) over early layers j.

    z_j, [vocab], is the output of the model's head on the hidden state after j layers, and p_j its softmax. The layer
    that disagrees most with the last one is subtracted. The candidates are every second layer of a bucket of the N
    layers: `low` is 0 ... N/2, for long reasoning; `high` is N/2 ... N, for short facts. A bucket has at most 20
    layers. A model whose head is its embedding starts at 2. `layers` names the candidates instead; a single one is a
    static contrast. There is no second row: each candidate costs one product with the head.

    Source: Chuang et al., ICLR 2024, arXiv:2309.03883.

    Deviations from the official code, because of which published numbers are not comparable. `divergence` "official",
    `normed` false and a repetition penalty of 1.2 in the request give the code's rule:
    - The divergence is the Jensen-Shannon divergence of the paper. The code has its arguments the other way round,
      (KL(m || p) + KL(m || p_j)) / 2 with the mean m of the two distributions. Both choose the same layer in 152 of 200
      random steps. `divergence` "official" is that of the code.
    - Early states go through the final norm first, as the last one does. `normed` false takes the raw state, as the
      code does. The choice changes answers.
    - z is log p. The difference is one number per row, and alpha, 1 in the paper, can turn the contrast off.
    - The code applies a repetition penalty of 1.2 by default. Here the request's own penalty applies, which is 1 by
      default.
    """

    name = "dola"
    paper = "arXiv:2309.03883"
    official_code = "voidism/DoLa, licence not checked"
    neutral = {"alpha": 0, "beta": 0}
    needs_images = True
    uncut = {"beta": 0.0}

    bucket: Annotated[Literal["low", "high"], Field(description="Half of the model that candidates come from.")] = "low"
    layers: Annotated[
        tuple[Annotated[int, Field(ge=0, le=1000)], ...] | None,
        Field(min_length=1, max_length=64, description="Candidates, as numbers of layers passed, instead of a bucket."),
    ] = None
    divergence: Annotated[
        Literal["jensen-shannon", "official"],
        Field(description="Distance of a layer from the last one, that of the paper or of the official code."),
    ] = "jensen-shannon"
    alpha: EarlyLayer = 1.0
    beta: Plausibility = 0.1
    normed: Normed = True

    def early_exit_layers(self, layers: int, tied: bool) -> EarlyExits:
        return EarlyExits(self.layers or self.select_bucket(layers, tied), self.normed)

    def select_bucket(self, layers: int, tied: bool) -> tuple[int, ...]:
        """Return the layers of the bucket."""
        if self.bucket == "high":
            return tuple(range(max(layers // 2, layers - MAX_BUCKET), layers, 2))
        first, end = min(2, layers // 2) if tied else 0, min(layers // 2, MAX_BUCKET)
        return tuple(range(first, end, 2)) or (first,)

    def logits(self, step: Step) -> Tensor:
        assert step.early_logits is not None, "the strategy selects early layers"
        diverge = js_divergence if self.divergence == "jensen-shannon" else mean_kl_divergence
        candidate = diverge(step.raw[..., None, :], step.early_logits).argmax(dim=-1)  # [...]
        early = step.early_logits.take_along_dim(candidate[..., None, None], dim=-2)[..., 0, :]
        return mask_logits(subtract(step.scores, early, self.alpha), plausibility_mask(step.raw, self.beta))
