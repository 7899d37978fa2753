"""Results of an image processor, kept as long as their images: the checks of an answer encode one image many times."""

from __future__ import annotations

import copy
import weakref
from collections import OrderedDict
from collections.abc import Iterator
from typing import Any

from PIL import Image
from torch import Tensor

MAX_BYTES = 32_000_000  # of all results

Key = tuple[object, ...]


def cache_results(image_processor: Any) -> None:
    """Let an image processor return its earlier result for the same image objects.

    A result is dropped with its images. All results take at most `MAX_BYTES`. Equal images that are other objects share
    no result, so that response times do not reveal the images of other keys.

    Args:
        image_processor: Image processor of transformers. Its class is replaced by a subclass.
    """
    base: Any = type(image_processor)
    results = ImageProcessorCache()

    def call(self: Any, images: Any, *args: Any, **options: Any) -> Any:
        return results.get_or_process(base.__call__, self, images, *args, **options)

    image_processor.__class__ = type(base.__name__, (base,), {"__call__": call})


class ImageProcessorCache:
    """Results by image objects. One thread calls it. Images may be dropped in another thread."""

    def __init__(self, max_bytes: int = MAX_BYTES) -> None:
        self.max_bytes = max_bytes
        self._results: OrderedDict[Key, tuple[Any, int, list[weakref.ref[Image.Image]]]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._results)

    def get_or_process(self, process: Any, instance: Any, images: Any, *args: Any, **options: Any) -> Any:
        """Return the result for image objects.

        Args:
            process: Computes it.
            instance: First argument of `process`.
            images: Images of Pillow, in lists of any depth.
            args: More arguments.
            options: Keyword arguments.

        Returns:
            A copy of the result, with the same tensors.
        """
        objects = list(flatten(images))
        if not all(isinstance(image, Image.Image) for image in objects):
            return process(instance, images, *args, **options)
        key = (nest_ids(images), repr(args), repr(sorted(options.items())))
        stored = self._results.get(key)
        if stored is not None and all(ref() is image for ref, image in zip(stored[2], objects, strict=True)):
            self._results.move_to_end(key)
            return copy.copy(stored[0])
        result = process(instance, images, *args, **options)
        self._store(key, result, objects)
        return copy.copy(result)

    def _store(self, key: Key, result: Any, objects: list[Image.Image]) -> None:
        size = sum(value.nbytes for value in result.values() if isinstance(value, Tensor))
        if not 0 < size <= self.max_bytes:
            return

        def drop(_: object) -> None:
            self._results.pop(key, None)

        self._results[key] = (result, size, [weakref.ref(image, drop) for image in objects])
        # Another thread may drop a result at any time, so this reads a copy.
        sizes = {each: size for each, (_, size, _) in self._results.copy().items()}
        total = sum(sizes.values())
        for oldest in sizes:
            if total <= self.max_bytes:
                break
            self._results.pop(oldest, None)
            total -= sizes[oldest]


def flatten(images: Any) -> Iterator[Any]:
    """Yield the images of nested lists."""
    if not isinstance(images, list | tuple):
        yield images
        return
    for each in images:
        yield from flatten(each)


def nest_ids(images: Any) -> object:
    """Return the ids of images, nested as they are."""
    return tuple(map(nest_ids, images)) if isinstance(images, list | tuple) else id(images)
