"""Functions that make a new image from an image. None of them changes its input."""

from decoding.image_ops import Box, crop, draw_frame, keep_relevant, pad_to_square, relevance_mask

__all__ = ["Box", "crop", "draw_frame", "keep_relevant", "pad_to_square", "relevance_mask"]
