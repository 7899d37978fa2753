"""Public interface for authors of decoding strategies.

Everything else in this repository is private and may change. Logits and image operations are in `onlyseen.logits_ops`
and `onlyseen.image_ops`, errors in `onlyseen.errors`.
"""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from decoding.drafts import DraftEffect, DraftProgram, ReadDraft, Segment, SendTokens, StartDraft
    from decoding.outputs import (
        Answer,
        CheckedClaim,
        FinishInfo,
        FinishReason,
        RelevanceMap,
        StateHandle,
        Token,
        TokenLogprob,
        Usage,
    )
    from decoding.prompt import ImageInput, Message, Noise, Prompt
    from decoding.requests import GenerateRequest, ProbeRequest, RelevanceRequest, VectorsRequest
    from decoding.sampling_params import SamplingParams
    from decoding.strategy import (
        PER_ROW,
        TEXT_SIDE,
        Activations,
        AttentionKeys,
        EarlyExits,
        Effect,
        LayerPart,
        LayerPlace,
        Program,
        SteeredLayers,
        Step,
        Strategy,
        Tensors,
    )

    __version__: str

__all__ = [
    "PER_ROW",
    "TEXT_SIDE",
    "Activations",
    "Answer",
    "AttentionKeys",
    "CheckedClaim",
    "DraftEffect",
    "DraftProgram",
    "EarlyExits",
    "Effect",
    "FinishInfo",
    "FinishReason",
    "GenerateRequest",
    "ImageInput",
    "LayerPart",
    "LayerPlace",
    "Message",
    "Noise",
    "ProbeRequest",
    "Program",
    "Prompt",
    "ReadDraft",
    "RelevanceMap",
    "RelevanceRequest",
    "SamplingParams",
    "Segment",
    "SendTokens",
    "StartDraft",
    "StateHandle",
    "SteeredLayers",
    "Step",
    "Strategy",
    "Tensors",
    "Token",
    "TokenLogprob",
    "Usage",
    "VectorsRequest",
    "__version__",
]

MODULES = (
    "decoding.strategy",
    "decoding.drafts",
    "decoding.requests",
    "decoding.outputs",
    "decoding.prompt",
    "decoding.sampling_params",
)


def __getattr__(name: str) -> Any:
    """Import a name when it is first used, so that the commands start without torch.

    Returns:
        The value of the name.

    Raises:
        AttributeError: The package has no public name of this kind.
    """
    if name == "__version__":
        return version("onlyseen")
    if name in __all__:
        for module in map(import_module, MODULES):
            if hasattr(module, name):
                return getattr(module, name)
    raise AttributeError(f"module 'onlyseen' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
