"""The images of the attacks that cost most to decode."""

from __future__ import annotations

import base64
import re

import pytest

from bench.hostile.images import IMAGES
from decoding.errors import BadRequest
from server.media.images import open_image
from server.settings import Settings

BEYOND = "16 MP, WebP"
COSTLY = [name for name in IMAGES if re.search(r"\d MP.*(WebP|CMYK)", name)]


@pytest.mark.parametrize("name", COSTLY)
def test_costly_images_reach_the_decoder_except_one_beyond_the_bound(name: str) -> None:
    url = IMAGES[name](0)
    assert len(url) < Settings.model_fields["max_body_mb"].default * 1_000_000
    content = base64.b64decode(url.partition(",")[2])
    if name == BEYOND:
        with pytest.raises(BadRequest, match="too many pixels"):
            open_image(content, "image")
    else:
        assert open_image(content, "image").width == 3500
