"""One picture with one prompt, and the settings that all items of a job share."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Self

from PIL import Image
from pydantic import BaseModel, ConfigDict

from eval.core.hashing import hash_json
from eval.core.task import BenchmarkQuestion
from eval.runs.request import EvalRequest, SamplingSettings, derive_seed
from eval.runs.stack_spec import PLAIN, StackSpec


@dataclass(frozen=True)
class BulkItem(BenchmarkQuestion):
    """A picture and a prompt. The picture is in memory, because it may come from an archive.

    Attributes:
        source: Place of the picture in the input, such as `shards/0001.tar::000017`.
        content: The bytes of the picture file, None if it cannot be read.
        problem: The reason why the item cannot be sent.
    """

    source: str = ""
    content: bytes | None = None
    problem: str | None = None

    @cached_property
    def image_hash(self) -> str | None:
        """The SHA-256 of the picture file, None without one."""
        return None if self.content is None else hashlib.sha256(self.content).hexdigest()

    @cached_property
    def key(self) -> str:
        """The key of the row: equal for the same picture with the same id and prompt."""
        return hash_json({"id": self.id, "picture": self.image_hash, "prompt": self.prompt})

    def read_image(self) -> tuple[str, bytes] | None:
        """Return media type and bytes of the picture, None without one."""
        if self.content is None:
            return None
        return find_media_type(self.content) or "image/png", self.content

    def find_problem(self) -> str | None:
        """Return the reason why the item cannot be sent, None if there is none."""
        if self.problem is not None or self.content is None:
            return self.problem
        try:
            return None if find_media_type(self.content) else "the picture cannot be read: it is in no known format"
        except Image.DecompressionBombError as error:
            return f"the picture is too large: {error}"


def find_media_type(content: bytes) -> str | None:
    """Find the media type of a picture by its first bytes. Its pixels are not decoded.

    Args:
        content: The bytes of the picture file.

    Returns:
        The media type, None if the format is unknown or the file is damaged.

    Raises:
        DecompressionBombError: It has more pixels than Pillow decodes.
    """
    try:
        with Image.open(io.BytesIO(content)) as image:
            # Phones write MPO files, which begin with a complete JPEG picture, under the name .jpg.
            return "image/jpeg" if image.format == "MPO" else Image.MIME.get(image.format or "")
    except Image.DecompressionBombError:
        raise
    except Exception:  # Plugins of Pillow raise many types of errors for damaged files.
        return None


class JobSettings(BaseModel):
    """All that the answers of a job depend on, beside picture and prompt. job.json stores it.

    Attributes:
        model: Name of the model.
        weights: Fingerprint of the weights, if the server reports one.
        spec: The stack with the parameters that are sent.
        sampling: Sampling parameters.
        seed: Seed of the job under sampled decoding. The seed of each item is derived from it.
        check: Have the claims of every answer checked.
        engine: Arguments of the engine, None for a job against running servers.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str
    weights: str | None = None
    spec: StackSpec = PLAIN
    sampling: SamplingSettings = SamplingSettings()
    seed: int = 0
    check: bool = False
    engine: tuple[str, ...] | None = None

    def build_request(self, item: BulkItem, full_spec: StackSpec) -> EvalRequest:
        """Build the request of an item.

        Args:
            item: The item.
            full_spec: The stack with the defaults of the server.

        Returns:
            The request.
        """
        seed = None if self.sampling.greedy else derive_seed(self.seed, item)
        return EvalRequest(
            item,
            self.spec,
            full_spec,
            self.sampling,
            self.model,
            seed,
            self.weights,
            check=self.check,
            token_scores=False,
        )

    def find_difference(self, other: Self) -> str | None:
        """Return the name of the first field that differs, None if all are equal."""
        mine, theirs = self.model_dump(mode="json"), other.model_dump(mode="json")
        return next((name for name in mine if mine[name] != theirs[name]), None)


def split_prompts(record: Mapping[str, object], prompts: tuple[str, ...], column: str) -> list[str]:
    """Return the prompts of a record: those of the command line, or else that of its column.

    Args:
        record: The columns of the record.
        prompts: The prompts of the command line.
        column: Name of the column.

    Returns:
        The prompts.

    Raises:
        ValueError: The command line has no prompt, and the column is missing or no text.
    """
    if prompts:
        return list(prompts)
    prompt = record.get(column)
    if not isinstance(prompt, str) or not prompt.strip():
        raise ValueError(f'field "{column}": must be the text of a prompt, because there is no --prompt')
    return [prompt]
