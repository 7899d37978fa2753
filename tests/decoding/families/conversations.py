"""Prompts that between them make a family show all it can do with pictures."""

import numpy as np
from PIL import Image

from decoding.prompt import Message, Picture, Prompt


def picture(width: int, height: int, seed: int) -> Picture:
    """Four coloured quarters, grainy."""
    generator = np.random.default_rng(seed)
    quarters = Image.fromarray(generator.integers(0, 256, (2, 2, 3), dtype=np.uint8))
    colours = np.asarray(quarters.resize((width, height), Image.Resampling.NEAREST), dtype=int)
    grain = generator.integers(-30, 30, colours.shape)
    return Picture(Image.fromarray((colours + grain).clip(0, 255).astype(np.uint8)))


ONE = Prompt.of("Is there a cat?", picture(32, 32, 1))
WIDE = Prompt.of("Is there a cat in the picture?", picture(90, 31, 2))
BLIND = Prompt.of("What is red in this detail?")
TWO = Prompt(
    (
        Message("user", (picture(30, 50, 3), "Describe this. ")),
        Message("assistant", ("A red cat.",)),
        Message("user", ("And ", picture(64, 20, 4), " is what?")),
    )
)
TALK = Prompt(
    (Message("user", (picture(41, 37, 5), "What is it?")), Message("assistant", ("A cat.",)), *BLIND.messages)
)

PROMPTS = {"one": ONE, "wide": WIDE, "two": TWO, "talk": TALK, "blind": BLIND}
