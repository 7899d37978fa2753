"""Steering vectors in safetensors files of the operator's folder, one vector for each layer of the model."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from decoding.errors import BadRequest, Unsupported
from decoding.multimodal.weight_files import compute_weights_digest
from decoding.requests import VectorsRequest

FILE_NAME = re.compile(r"\w[\w.-]*\.safetensors")
VECTORS = "vectors"  # name of a tensor [layers, width]
DIRECTION = re.compile(r"direction\.(\d{1,4})")  # name of the vector [width] of one layer, in other tools
WEIGHTS = "weights"  # key of the digest of a model's weights in the metadata of a file that was measured on it
MAX_FILE_BYTES = 64 << 20
MAX_BYTES = 1 << 30  # of the vectors of all files that are loaded


class InvalidVectors(ValueError):
    """A file has no vectors for the model. The message is a clause, as in "its vectors have a width of ..."."""


@dataclass(frozen=True, slots=True)
class LoadedFile:
    """Vectors of a file, and the state of the file when it was read."""

    version: tuple[int, int]  # time of the last change, and bytes
    vectors: Tensor  # [layers, width]


class VectorFiles:
    """The vectors of a folder. A file is read when a request names it, and again when it has changed.

    Args:
        folder: The folder. Files outside of it are never read.
        num_layers: Layers of the model.
        width: Width of its hidden states.
        device: Device of the vectors.
        model: Folder or hub id of the model. A file that was measured on another one is refused. None accepts all.
    """

    def __init__(
        self, folder: Path, num_layers: int, width: int, device: torch.device, model: str | None = None
    ) -> None:
        self.folder = folder
        self.shape = (num_layers, width)
        self.device = device
        self._model = model
        self._loaded: dict[str, LoadedFile] = {}

    def load(self, request: VectorsRequest) -> Tensor:
        """Load the vectors of a file.

        Args:
            request: The name of the file, and the parameter that names it.

        Returns:
            [layers, width], float32. Requests share the tensor.

        Raises:
            BadRequest: There is no such file in the folder, or it has no vectors for this model.
        """
        file, version = self._find_file(request)
        loaded = self._loaded.get(request.file)
        if loaded is None or loaded.version != version:
            try:
                vectors = read_vectors(file, *self.shape)
                self._require_model(file)
            except InvalidVectors as error:
                raise BadRequest(
                    f"{request.param}: '{request.file}' does not fit: {error}.", param=request.param
                ) from None
            others = sum(each.vectors.nbytes for name, each in self._loaded.items() if name != request.file)
            if others + vectors.nbytes > MAX_BYTES:
                raise BadRequest(
                    f"{request.param}: the vectors that are loaded leave no room for '{request.file}'.",
                    param=request.param,
                )
            loaded = self._loaded[request.file] = LoadedFile(version, vectors.to(self.device))
        return loaded.vectors

    def _require_model(self, file: Path) -> None:
        """Refuse a file that was measured on a model of other weights."""
        with safe_open(file, framework="pt") as opened:
            metadata = opened.metadata() or {}
        if self._model is None or WEIGHTS not in metadata:
            return
        try:
            digest = compute_weights_digest(self._model)
        except (Unsupported, OSError):  # their messages name folders of the server
            raise InvalidVectors("the model on which it was measured cannot be compared with the server's") from None
        if metadata[WEIGHTS] != digest:
            raise InvalidVectors("it was measured on a model with other weights")

    def _find_file(self, request: VectorsRequest) -> tuple[Path, tuple[int, int]]:
        """Return a file of the folder, and its version."""
        missing = BadRequest(
            f"{request.param}: the server has no steering vectors '{request.file}'.", param=request.param
        )
        if not FILE_NAME.fullmatch(request.file):
            raise missing
        file = self.folder / request.file
        try:
            status = file.stat()
            is_inside = file.resolve().parent == self.folder.resolve()
        except OSError:
            raise missing from None
        if not is_inside or not file.is_file():  # a link must not lead out of the folder
            raise missing
        return file, (status.st_mtime_ns, status.st_size)


def read_vectors(file: Path, num_layers: int, width: int) -> Tensor:
    """Read the vectors of a file.

    Args:
        file: Safetensors file with one tensor "vectors", [layers, width], or with tensors "direction.L", [width], for
            some layers L from 0.
        num_layers: Layers of the model.
        width: Width of its hidden states.

    Returns:
        [layers, width], float32, with zeros for layers that the file lacks.

    Raises:
        InvalidVectors: The file is damaged or too large, or has other tensors than these.
    """
    if file.stat().st_size > MAX_FILE_BYTES:
        raise InvalidVectors(f"it has more than {MAX_FILE_BYTES >> 20} MiB")
    try:
        with safe_open(file, framework="pt") as opened:
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 - it is no mapping
    except (SafetensorError, OSError):
        raise InvalidVectors("it is no safetensors file") from None
    vectors = torch.zeros(num_layers, width)
    if VECTORS in tensors:
        require_shape(tensors[VECTORS], (num_layers, width))
        vectors += tensors[VECTORS].float()
    else:
        directions = {int(found[1]): tensors[name] for name in tensors if (found := DIRECTION.fullmatch(name))}
        if not directions:
            raise InvalidVectors(f"it has neither a tensor '{VECTORS}' nor tensors 'direction.L'")
        for layer, direction in directions.items():
            if layer >= num_layers:
                raise InvalidVectors(f"it has a vector of layer {layer}, and the model has {num_layers} layers, from 0")
            require_shape(direction, (width,))
            vectors[layer] = direction.float()
    if not vectors.isfinite().all():
        raise InvalidVectors("it has values that are not finite")
    return vectors


def require_shape(tensor: Tensor, shape: tuple[int, ...]) -> None:
    """Check the type and the shape of a tensor.

    Raises:
        InvalidVectors: It does not consist of floating-point numbers, or has another shape.
    """
    if not tensor.is_floating_point():
        raise InvalidVectors(f"its vectors have the type {tensor.dtype}")
    if tensor.shape != shape:
        raise InvalidVectors(f"its vectors have the shape {list(tensor.shape)} instead of {list(shape)}")


def write_vector_file(file: Path, vectors: Tensor, model: str, origin: Mapping[str, str]) -> None:
    """Write vectors that were measured on a model.

    Args:
        file: Safetensors file. It appears when it is complete.
        vectors: [layers, width].
        model: Folder or hub id of the model.
        origin: Further metadata of the file.
    """
    metadata = {**origin, "model": model, WEIGHTS: compute_weights_digest(model)}
    part = file.with_name(f"{file.name}.part")
    save_file({VECTORS: vectors.contiguous()}, part, metadata)
    part.replace(file)
