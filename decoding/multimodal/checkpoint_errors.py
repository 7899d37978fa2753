"""Explain why a checkpoint cannot be loaded, in one paragraph that names what to do."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from huggingface_hub.errors import (
    GatedRepoError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
)
from safetensors import SafetensorError

from decoding.errors import Unsupported

AGAIN = "Download the checkpoint again, with all its files."
USUAL_FILES = ("tokenizer.json", "tokenizer_config.json", "preprocessor_config.json or processor_config.json")
OUT_OF_MEMORY_TEXTS = ("out of memory", "can't allocate memory", "cannot allocate memory")
DEVICE_TEXTS = (
    "not compiled with cuda",
    "no nvidia driver",
    "no cuda gpus",
    "invalid device ordinal",
    "expected one of cpu",
    "invalid device string",
    "needs to be a device name",
)
MISMATCH_TEXTS = ("size mismatch", "mismatched")
MAX_REASON = 300  # characters of a library's text
LOADING_ERRORS = (
    OSError,
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    RuntimeError,
    AssertionError,  # of torch without CUDA
    SafetensorError,
    MemoryError,
)


@contextmanager
def explain_checkpoint_errors(source: str, part: str) -> Iterator[None]:
    """Turn the exceptions of libraries that load a checkpoint into `Unsupported`.

    Args:
        source: Folder or hub id.
        part: The part of the checkpoint that is loaded, such as "config".

    Yields:
        Nothing.

    Raises:
        Unsupported: The part cannot be loaded. Exceptions of the project and unexpected ones are not changed.
    """
    try:
        yield
    except LOADING_ERRORS as error:
        raise Unsupported(describe_error(source, part, error)) from error


def describe_error(source: str, part: str, error: BaseException) -> str:
    """Describe an exception of a library, and what the operator can do."""
    if (hub_problem := describe_hub_error(source, error)) is not None:
        return hub_problem
    text = str(error).lower()
    if isinstance(error, MemoryError | torch.OutOfMemoryError) or any(each in text for each in OUT_OF_MEMORY_TEXTS):
        return (
            f"The {part} of {source} do not fit into memory. Use a smaller model, --dtype bfloat16, --quantization "
            "4bit or a device with more memory, and stop other programs that use it."
        )
    if any(each in text for each in DEVICE_TEXTS):
        reason = " ".join(str(error).split())[:MAX_REASON]
        return (
            f"The device of --device cannot be used ({reason}). Use --device cpu, or auto, which selects a usable GPU."
        )
    if any(each in text for each in MISMATCH_TEXTS):
        return f"The weights of {source} do not fit its config.json. {AGAIN}"
    if part == "processor" and (missing := list_missing_files(source)):
        return f"The folder {source} lacks {', '.join(missing)}, so that its {part} cannot be loaded. {AGAIN}"
    reason = " ".join(str(error).split())[:MAX_REASON] or "no message"
    return (
        f"The {part} of {source} cannot be loaded ({type(error).__name__}: {reason}). A file is damaged, or the "
        f"checkpoint needs another version of transformers. {AGAIN}"
    )


def describe_hub_error(source: str, error: BaseException) -> str | None:
    """Describe an error of the Hugging Face hub that is among the causes of an exception; None if there is none."""
    causes: list[BaseException] = []
    cause: BaseException | None = error
    while cause is not None:
        causes.append(cause)
        cause = cause.__cause__ or cause.__context__

    def has_cause(*kinds: type[BaseException]) -> bool:
        return any(isinstance(each, kinds) for each in causes)

    if has_cause(GatedRepoError):  # a kind of RepositoryNotFoundError
        return (
            f"The model {source} of the Hugging Face hub is gated. Accept its conditions at "
            f"https://huggingface.co/{source}, then set HF_TOKEN to a token of that account."
        )
    if has_cause(RepositoryNotFoundError, HFValidationError):
        return (
            f"There is neither a folder {source} here, nor a public model of this name on the Hugging Face hub. Check "
            "the spelling. A private model needs HF_TOKEN."
        )
    if has_cause(LocalEntryNotFoundError, OfflineModeIsEnabled, ConnectionError):
        offline = " HF_HUB_OFFLINE is set, which forbids downloads." if os.environ.get("HF_HUB_OFFLINE") else ""
        return (
            f"There is no folder {source} here. As a model of the Hugging Face hub it is not downloaded yet, and the "
            f"hub cannot be reached.{offline} Download it with `hf download {source}`, or give the folder of the "
            "checkpoint."
        )
    return None


def list_missing_files(source: str) -> list[str]:
    """List the usual files of a processor that a folder lacks. Empty for a hub id."""
    folder = Path(source)
    if not folder.is_dir():
        return []
    return [names for names in USUAL_FILES if not any((folder / name).is_file() for name in names.split(" or "))]
