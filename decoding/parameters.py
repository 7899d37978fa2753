"""Parameters that several strategies share, with their bounds and descriptions."""

import math
from typing import Annotated, Literal, Self

from pydantic import BaseModel, Field, model_validator

from decoding.tensor_hooks import PER_ROW, TEXT_SIDE

Plausibility = Annotated[
    float, Field(ge=0, le=1, description="Minimum probability, relative to the likeliest token."), PER_ROW
]
Contrast = Annotated[float, Field(ge=0, le=100, description="Weight of the contrast; 0 turns it off."), PER_ROW]
EarlyLayer = Annotated[float, Field(ge=0, le=100, description="Weight of the early layer; 0 turns it off."), PER_ROW]
Normed = Annotated[bool, Field(description="Apply the final norm to early hidden states.")]
FirstLayer = Annotated[int, Field(ge=0, le=1000, description="Number of the first edited layer, from 0.")]
DescriptionTokens = Annotated[
    int, Field(ge=1, le=8192, description="Maximum length of a description, in tokens."), TEXT_SIDE
]
FirstLayerShare = Annotated[float, Field(ge=0, le=1, description="First edited layer, as a share of the depth.")]
SteeredPositions = Annotated[
    Literal["all", "answer"], Field(description="Steered tokens: those of prompt and answer, or of the answer.")
]
VectorsFile = Annotated[
    str,
    Field(
        max_length=200,
        pattern=r"^\w[\w.-]*\.safetensors$",
        description="File of vectors in the server's folder, without a path.",
    ),
    TEXT_SIDE,
]
LastLayerShare = Annotated[float, Field(ge=0, le=1, description="Last edited layer, as a share of the depth.")]


class LayerRange(BaseModel):
    """A range of layers, as shares of the depth, so that it fits models of any depth. Strategies set the defaults."""

    first: FirstLayerShare
    last: LastLayerShare

    @model_validator(mode="after")
    def check_order(self) -> Self:
        """Refuse an empty range of layers.

        Returns:
            The strategy.

        Raises:
            ValueError: `first` is larger than `last`.
        """
        if self.first > self.last:
            raise ValueError("`first` is larger than `last`")
        return self

    def select_layers(self, depth: int) -> range:
        """Return the layers of the range in a model of `depth` layers."""
        first, last = (min(math.floor(share * depth + 0.5), depth - 1) for share in (self.first, self.last))
        return range(first, last + 1)
