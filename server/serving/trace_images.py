"""Renders the images of a trace: those that a strategy edited, and its relevance maps."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence

from PIL import Image

from decoding.outputs import RelevanceMap
from decoding.prompt import ImageInput
from decoding.requests import MAIN, GenerateRequest

MAX_TRACE_SIDE = 512  # pixels; a larger image is scaled down


def render_trace_images(
    request: GenerateRequest,
    sent_images: Sequence[ImageInput],
    relevance_maps: Mapping[tuple[str, ImageInput], RelevanceMap],
) -> dict[str, list[str]]:
    """Render edited images and relevance maps as data URLs. Slow: call it in a thread.

    Args:
        request: The final request, with its branches.
        sent_images: The images of the client.
        relevance_maps: Relevance maps by strategy and image.

    Returns:
        The images of the main prompt, if a strategy replaced them, and those of each branch that has other images than
        the main prompt. The images of a strategy's relevance maps are under "<strategy>/relevance map".
    """
    prompts = {MAIN: request.prompt, **request.branches}
    known = {name: set(sent_images if name == MAIN else request.prompt.images) for name in prompts}
    shown = {
        name: [to_data_url(image) for image in prompt.images]
        for name, prompt in prompts.items()
        if not known[name].issuperset(prompt.images)
    }
    for (strategy, image), relevance in relevance_maps.items():
        shown.setdefault(f"{strategy}/relevance map", []).append(to_data_url(image, relevance))
    return shown


def to_data_url(image: ImageInput, relevance: RelevanceMap | None = None) -> str:
    """Render an image for a viewer, with its noise or with the colours of its relevance map."""
    from decoding.image_ops import render_noise, render_relevance

    thumbnail = image.visible.copy()
    # Other resampling methods blur the edge of a mask.
    thumbnail.thumbnail((MAX_TRACE_SIDE, MAX_TRACE_SIDE), Image.Resampling.NEAREST)
    if relevance is not None:
        thumbnail = render_relevance(thumbnail, relevance)
    elif image.noise is not None:
        thumbnail = render_noise(thumbnail, image.noise)
    buffer = io.BytesIO()
    thumbnail.save(buffer, "PNG")
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
