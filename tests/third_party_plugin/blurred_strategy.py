"""A strategy that subtracts logits computed on a blurred image."""

from typing import Annotated

from PIL.ImageFilter import GaussianBlur
from pydantic import Field
from torch import Tensor

from onlyseen import TEXT_SIDE, GenerateRequest, ImageInput, Step, Strategy
from onlyseen.logits_ops import contrast


class Blurred(Strategy):
    """z_f = (1 + alpha) z - alpha z_blurred."""

    name = "blurred"
    paper = "none"
    neutral = {"alpha": 0}
    needs_images = True

    alpha: Annotated[float, Field(ge=0, le=10, description="Weight of the contrast; 0 turns it off.")] = 0.5
    radius: Annotated[float, Field(ge=0, le=100, description="Radius of the blur, in pixels."), TEXT_SIDE] = 8.0

    def prepare(self, request: GenerateRequest) -> GenerateRequest:
        return request.with_branch("blurred", request.prompt.map_images(self.blur))

    def blur(self, image: ImageInput) -> ImageInput:
        return image.with_image(image.visible.filter(GaussianBlur(self.radius)))

    def logits(self, step: Step) -> Tensor:
        return contrast(step.scores, step.branches["blurred"], self.alpha)
