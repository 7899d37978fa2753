"""The text that the command prints when the server is ready: its address, and an example to paste."""

from __future__ import annotations

import shlex
from pathlib import Path

from server.settings import EMBEDDED_DIR

SAMPLES = EMBEDDED_DIR / "samples"


def format_banner(url: str, model: str, strategy: str, samples: Path = SAMPLES) -> str:
    """Format the banner. Its example sends an image of `samples` to `model` with `strategy`."""
    return f"\nOnlySeen serves {model} at {url}. Try:\n\n{format_curl_example(url, f'{model}:{strategy}', samples)}\n"


def format_curl_example(url: str, model: str, samples: Path = SAMPLES) -> str:
    """Format a curl command that requests a description, with the first image of `samples` if there is one."""
    sample = min(samples.glob("*.png"), default=None)
    question = '{"type": "text", "text": "Please describe this image in detail."}'
    parts = question if sample is None else f"\n  {format_image_part(sample)},\n  {question}"
    return f"""curl {url}/v1/chat/completions -H 'Content-Type: application/json' -d @- <<JSON
{{"model": "{model}", "temperature": 0, "messages": [{{"role": "user", "content": [{parts}]}}]}}
JSON"""


def format_image_part(sample: Path) -> str:
    """Format an image part that the shell encodes when the command runs: an encoded image would fill the screen."""
    encoded = f"$(base64 < {shlex.quote(str(sample))} | tr -d '\\n')"
    return f'{{"type": "image_url", "image_url": {{"url": "data:image/png;base64,{encoded}"}}}}'
