"""Files of steering vectors: their formats, and that no file outside of the folder is read."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from decoding.errors import BadRequest
from decoding.multimodal import vector_files
from decoding.multimodal.vector_files import VectorFiles, write_vector_file
from decoding.requests import VectorsRequest

LAYERS, WIDTH = 3, 4
VECTORS = torch.arange(12.0).view(LAYERS, WIDTH)
INVALID: dict[str, tuple[dict[str, Tensor], str]] = {
    "width": ({"vectors": torch.zeros(LAYERS, 5)}, r"have the shape \[3, 5\] instead of \[3, 4\]"),
    "depth": ({"vectors": torch.zeros(2, WIDTH)}, r"have the shape \[2, 4\]"),
    "type": ({"vectors": VECTORS.int()}, "have the type torch.int32"),
    "nan": ({"vectors": VECTORS / 0}, "values that are not finite"),
    "layer": ({"direction.3": VECTORS[0]}, "a vector of layer 3, and the model has 3 layers"),
    "direction": ({"direction.1": VECTORS}, r"the shape \[3, 4\] instead of \[4\]"),
    "names": ({"other": VECTORS}, "neither a tensor 'vectors' nor tensors 'direction.L'"),
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    inside = tmp_path / "vectors"
    inside.mkdir()
    save_file({"vectors": VECTORS}, inside / "a.safetensors")
    save_file({"vectors": VECTORS}, tmp_path / "outside.safetensors")
    (inside / "link.safetensors").symlink_to(tmp_path / "outside.safetensors")
    (inside / "folder.safetensors").mkdir()
    return inside


def load(folder: Path, name: str) -> Tensor:
    files = VectorFiles(folder, LAYERS, WIDTH, torch.device("cpu"))
    return files.load(VectorsRequest(name, "decoding.steer.vectors"))


def test_both_formats_are_read(folder: Path) -> None:
    assert torch.equal(load(folder, "a.safetensors"), VECTORS)
    save_file({"direction.2": VECTORS[1].half(), "direction.0": VECTORS[0]}, folder / "b.safetensors")
    assert torch.equal(load(folder, "b.safetensors"), torch.stack([VECTORS[0], torch.zeros(WIDTH), VECTORS[1]]))


@pytest.mark.parametrize(
    "name",
    [
        "none.safetensors",
        "../outside.safetensors",
        "link.safetensors",
        "folder.safetensors",
        "./a.safetensors",
        ".",
        "",
        "/etc/passwd",
        "a.safetensors\0",
        "a.safetensors\n",
    ],
)
def test_only_files_of_the_folder_are_read(folder: Path, name: str) -> None:
    with pytest.raises(BadRequest, match="the server has no steering vectors") as refused:
        load(folder, name)
    assert refused.value.param == "decoding.steer.vectors"
    assert str(folder) not in refused.value.message


@pytest.mark.parametrize("fault", INVALID)
def test_vectors_that_do_not_fit_are_refused(folder: Path, fault: str) -> None:
    tensors, problem = INVALID[fault]
    save_file(tensors, folder / "b.safetensors")
    with pytest.raises(BadRequest, match=f"^decoding.steer.vectors: 'b.safetensors' does not fit: .*{problem}"):
        load(folder, "b.safetensors")


def test_damaged_and_large_files_are_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "b.safetensors").write_bytes(b"x" * 100)
    with pytest.raises(BadRequest, match="it is no safetensors file"):
        load(folder, "b.safetensors")
    monkeypatch.setattr(vector_files, "MAX_FILE_BYTES", 1 << 4)
    with pytest.raises(BadRequest, match="it has more than"):
        load(folder, "a.safetensors")


def test_file_of_a_model_with_other_weights_is_refused(folder: Path, tmp_path: Path) -> None:
    weights = torch.zeros(1 << 16)
    for name, last in (("own", 0.0), ("copy", 0.0), ("other", 1.0)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text("{}")
        weights[-1] = last
        save_file({"weights": weights}, tmp_path / name / "model.safetensors")
    (tmp_path / "none").mkdir()
    write_vector_file(folder / "b.safetensors", VECTORS, str(tmp_path / "own"), {"pairs": "3"})
    assert sorted(file.name for file in folder.iterdir() if file.name.startswith("b.")) == ["b.safetensors"]
    problems = {"other": "measured on a model with other weights", "none": "cannot be compared with the server's"}
    for name in ("own", "copy", *problems):
        files = VectorFiles(folder, LAYERS, WIDTH, torch.device("cpu"), str(tmp_path / name))
        request = VectorsRequest("b.safetensors", "decoding.vti.vectors")
        if name not in problems:
            assert torch.equal(files.load(request), VECTORS)
            continue
        with pytest.raises(
            BadRequest, match=f"^decoding.vti.vectors: 'b.safetensors' does not fit: .*{problems[name]}"
        ):
            files.load(request)


def test_file_is_read_again_after_a_change(folder: Path) -> None:
    files = VectorFiles(folder, LAYERS, WIDTH, torch.device("cpu"))
    request = VectorsRequest("a.safetensors", "vectors")
    first = files.load(request)
    assert files.load(request) is first
    save_file({"vectors": 2 * VECTORS}, folder / "a.safetensors")
    os.utime(folder / "a.safetensors", (1, 1))
    assert torch.equal(files.load(request), 2 * VECTORS)


def test_vectors_of_all_files_have_a_limit(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vector_files, "MAX_BYTES", VECTORS.nbytes)
    save_file({"vectors": VECTORS}, folder / "b.safetensors")
    files = VectorFiles(folder, LAYERS, WIDTH, torch.device("cpu"))
    files.load(VectorsRequest("a.safetensors", "vectors"))
    with pytest.raises(BadRequest, match=r"leave no room for 'b\.safetensors'"):
        files.load(VectorsRequest("b.safetensors", "vectors"))
