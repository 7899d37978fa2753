"""InstructBLIP's way from pictures and ids to hidden states, which transformers offers only together with the head."""

from __future__ import annotations

from typing import Any

from torch import Tensor


class InstructBlipBody:
    """The Q-Former reads the instruction beside the picture, and its queries stand before the text's first token.

    Rows without a picture are the language model's alone: the text, and no queries.
    """

    def __init__(self, network: Any) -> None:
        self.network = network
        self.longest: int = network.config.qformer_config.max_position_embeddings

    def __call__(
        self,
        input_ids: Tensor,
        pixel_values: Tensor | None = None,
        qformer_input_ids: Tensor | None = None,
        qformer_attention_mask: Tensor | None = None,
        **others: Any,
    ) -> Any:
        embedded = self.network.get_input_embeddings()(input_ids)
        if pixel_values is not None:
            assert qformer_input_ids is not None
            assert qformer_attention_mask is not None
            # The Q-Former has no positions past `longest`; the language model still reads the whole text.
            queries = self.network.get_image_features(
                pixel_values, qformer_input_ids[:, : self.longest], qformer_attention_mask[:, : self.longest]
            ).pooler_output
            places = (input_ids == self.network.config.image_token_id)[..., None]
            embedded = embedded.masked_scatter(places, queries.to(embedded))
        return self.network.language_model.model(inputs_embeds=embedded, **others)
