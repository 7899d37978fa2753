"""The reference of a request to an image that the server has not loaded yet."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ImageRef:
    """An image that the server has not loaded yet.

    Attributes:
        url: Data URL or http(s) URL.
        param: Path of the field of the request that holds the URL.
    """

    url: str
    param: str
