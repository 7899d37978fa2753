"""Prompts that together cover all inputs of a family: image sizes, image counts, turns, and no image."""

import numpy as np
from PIL import Image

from decoding.prompt import ImageInput, Message, Prompt


def draw_image(width: int, height: int, seed: int) -> ImageInput:
    """Draw four coloured quarters with noise."""
    generator = np.random.default_rng(seed)
    quarters = Image.fromarray(generator.integers(0, 256, (2, 2, 3), dtype=np.uint8))
    colours = np.asarray(quarters.resize((width, height), Image.Resampling.NEAREST), dtype=int)
    grain = generator.integers(-30, 30, colours.shape)
    return ImageInput(Image.fromarray((colours + grain).clip(0, 255).astype(np.uint8)))


ONE = Prompt.from_text("Is there a cat?", draw_image(32, 32, 1))
WIDE = Prompt.from_text("Is there a cat in the picture?", draw_image(90, 31, 2))
BLIND = Prompt.from_text("What is red in this detail?")
TWO = Prompt(
    (
        Message("user", (draw_image(30, 50, 3), "Describe this. ")),
        Message("assistant", ("A red cat.",)),
        Message("user", ("And ", draw_image(64, 20, 4), " is what?")),
    )
)
CONVERSATION = Prompt(
    (Message("user", (draw_image(41, 37, 5), "What is it?")), Message("assistant", ("A cat.",)), *BLIND.messages)
)

PROMPTS = {"one": ONE, "wide": WIDE, "two": TWO, "conversation": CONVERSATION, "blind": BLIND}
