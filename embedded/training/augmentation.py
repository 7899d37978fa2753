"""How the training data are made robust: masked images, and texts after descriptions. An ablation switches them off."""

from dataclasses import dataclass, replace

from embedded.training.packing import TextMix


@dataclass(frozen=True)
class Augmentation:
    """Augmentation of the training data in all stages.

    Attributes:
        masked_fraction: Fraction of images of which a part is black.
        has_descriptions: Whether some questions and captions follow a description of the image.
    """

    masked_fraction: float = 0.2
    has_descriptions: bool = True

    def adapt_mix(self, mix: TextMix) -> TextMix:
        """Return the mix of a stage, without texts after descriptions if they are switched off."""
        if self.has_descriptions:
            return mix
        return replace(mix, described_question_rate=0.0, described_caption_rate=0.0)


FULL_AUGMENTATION = Augmentation()
"""That of the shipped weights."""
