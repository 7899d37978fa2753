"""Check the files of weights in a folder before they are loaded: present, complete, and small enough for the memory."""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from pathlib import Path

import torch
from transformers.utils import cached_file

from decoding.errors import Unsupported

INDEX = "model.safetensors.index.json"
LFS_POINTER = b"version https://git-lfs"
LENGTH_BYTES = 8  # of the length of a header
MAX_HEADER_BYTES = 100_000_000  # as in safetensors
COMPARED_BYTES = 1 << 16  # at either end of a file of weights
FLOAT_TYPES = ("F64", "F32", "F16", "BF16")
TYPE_BYTES = {"F64": 8, "I64": 8, "U64": 8, "F32": 4, "I32": 4, "U32": 4, "F16": 2, "BF16": 2, "I16": 2, "U16": 2}
AGAIN = "Download it again."


@dataclass(frozen=True, slots=True)
class WeightCounts:
    """Numbers in the files of weights.

    Attributes:
        floats: Numbers that are loaded in the precision of the settings.
        other_bytes: Bytes of numbers that keep their type.
    """

    floats: int = 0
    other_bytes: int = 0

    def compute_bytes(self, dtype: torch.dtype) -> int:
        """Return the bytes of the weights in a precision."""
        return self.floats * dtype.itemsize + self.other_bytes


def find_weight_folder(source: str) -> Path | None:
    """Return the folder of a checkpoint, or None for a hub id."""
    folder = Path(source)
    return folder if folder.is_dir() else None


def read_weight_counts(folder: Path) -> WeightCounts:
    """Check the safetensors files of a folder, and count their numbers. It reads their headers only.

    Args:
        folder: Folder of a checkpoint.

    Returns:
        The numbers of all files.

    Raises:
        Unsupported: There are no such files, or one of them is missing or damaged.
    """  # noqa: DOC502 - its functions raise it
    floats, other_bytes = 0, 0
    for file in list_weight_files(folder):
        for kind, shape in read_tensors(file):
            size = prod(shape)
            if kind in FLOAT_TYPES:
                floats += size
            else:
                other_bytes += size * TYPE_BYTES.get(kind, 1)
    return WeightCounts(floats, other_bytes)


def list_weight_files(folder: Path) -> list[Path]:
    """List the safetensors files of a checkpoint.

    Args:
        folder: Its folder.

    Returns:
        The files that its index lists, or the only one.

    Raises:
        Unsupported: There are none, or one of the index is missing.
    """
    index = folder / INDEX
    if not index.is_file():
        if (folder / "model.safetensors").is_file():
            return [folder / "model.safetensors"]
        others = sorted(file.name for file in folder.iterdir() if file.suffix in (".bin", ".pt", ".pth", ".gguf"))
        found = f" Its {others[0]} has another format, which is not loaded." if others else ""
        raise Unsupported(
            f"The folder {folder} has no weights: there is neither model.safetensors nor {INDEX}.{found} Download the "
            "safetensors files of the checkpoint, or convert it with `save_pretrained` of transformers."
        )
    try:
        names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
    except (ValueError, KeyError, AttributeError, TypeError):
        raise Unsupported(f"The file {index} is damaged. {AGAIN}") from None
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        raise Unsupported(
            f"The folder {folder} lacks {len(missing)} of the {len(names)} files of weights that its {INDEX} lists, "
            f"such as {missing[0]}. Download the missing files."
        )
    return [folder / name for name in names]


def read_tensors(file: Path) -> Iterator[tuple[str, list[int]]]:
    """Read the header of a safetensors file.

    Args:
        file: The file.

    Yields:
        Type and shape of each tensor.

    Raises:
        Unsupported: The file is damaged.
    """
    size = file.stat().st_size
    with file.open("rb") as stream:
        start = stream.read(LENGTH_BYTES)
        if LFS_POINTER.startswith(start) and start:
            raise Unsupported(f"The file {file} is a pointer of Git LFS and not the weights. Run `git lfs pull` there.")
        length = struct.unpack("<Q", start)[0] if len(start) == LENGTH_BYTES else 0
        content = stream.read(length) if 0 < length <= MAX_HEADER_BYTES else b""
    try:
        tensors = {name: each for name, each in json.loads(content).items() if name != "__metadata__"}
        described = [(str(each["dtype"]), [int(side) for side in each["shape"]]) for each in tensors.values()]
        end = max((int(each["data_offsets"][1]) for each in tensors.values()), default=0)
    except (ValueError, KeyError, TypeError, AttributeError, IndexError):
        raise Unsupported(
            f"The file {file} is damaged: it has {size:,} bytes, and no header of safetensors. {AGAIN}"
        ) from None
    if LENGTH_BYTES + length + end != size:
        raise Unsupported(
            f"The file {file} is damaged: it has {size:,} bytes, and its header describes "
            f"{LENGTH_BYTES + length + end:,}. {AGAIN}"
        )
    yield from described


def compute_weights_digest(source: str) -> str:
    """Compute a digest by which a checkpoint is known again, from both ends of its files of weights.

    Args:
        source: Folder or hub id of a checkpoint that is on the disk. One without such files raises `Unsupported`.

    Returns:
        SHA-256 in hexadecimal digits.
    """
    folder = Path(str(cached_file(source, "config.json", local_files_only=True))).parent
    digest = hashlib.sha256()
    for file in list_weight_files(folder):
        size = file.stat().st_size
        digest.update(struct.pack("<Q", size))
        with file.open("rb") as stream:
            digest.update(stream.read(COMPARED_BYTES))
            stream.seek(max(size - COMPARED_BYTES, 0))
            digest.update(stream.read())
    return digest.hexdigest()


def require_memory(source: str, weight_bytes: int, device: str) -> None:
    """Refuse weights that cannot fit into the memory of a device, before they are loaded.

    Args:
        source: Name of the checkpoint in the message.
        weight_bytes: Bytes of the weights.
        device: The device.

    Raises:
        Unsupported: The weights are larger than the memory that is available.
    """
    available = get_available_memory(device)
    if available is None or weight_bytes <= available:
        return
    options = "--dtype bfloat16" if device == "cpu" else "--quantization 4bit"
    raise Unsupported(
        f"The weights of {source} take {weight_bytes / 1e9:.1f} GB, and {device} has {available / 1e9:.1f} GB of "
        f"memory available. Use a smaller model, {options} or a device with more memory, and stop other programs that "
        "use it."
    )


def get_available_memory(device: str) -> int | None:
    """Return the bytes that a device can still hold, swap and the limit of a container included; None if unknown."""
    if device != "cpu":
        try:
            return int(torch.cuda.mem_get_info(device)[0]) if device.startswith("cuda") else None
        except (RuntimeError, AssertionError, ValueError):  # the device cannot be used; loading fails with the reason
            return None
    try:
        lines = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
        available = sum(int(lines[name].split()[0]) * 1024 for name in ("MemAvailable", "SwapFree"))
    except (OSError, KeyError, ValueError, IndexError):
        return None
    return min(available, read_container_limit() or available)


def read_container_limit() -> int | None:
    """Return the memory limit of the container (cgroup v2), if there is one."""
    try:
        return int(Path("/sys/fs/cgroup/memory.max").read_text())
    except (OSError, ValueError):  # "max" is no limit
        return None
