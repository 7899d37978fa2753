"""Parameters that several strategies share, with their bounds and descriptions."""

from typing import Annotated

from pydantic import Field

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
