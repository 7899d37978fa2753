"""What is printed when the server is ready: where it listens, and an example to paste."""

from __future__ import annotations

import shlex
from pathlib import Path

from server.settings import EMBEDDED

SAMPLES = EMBEDDED / "samples"


def greeting(url: str, model: str, strategy: str, samples: Path = SAMPLES) -> str:
    return f"\nOnlySeen serves {model} at {url}. Try:\n\n{example(url, f'{model}:{strategy}', samples)}\n"


def example(url: str, model: str, samples: Path = SAMPLES) -> str:
    """A curl command, with a picture where one is at hand."""
    sample = min(samples.glob("*.png"), default=None)
    question = '{"type": "text", "text": "Please describe this image in detail."}'
    parts = question if sample is None else f"\n  {image_part(sample)},\n  {question}"
    return f"""curl {url}/v1/chat/completions -H 'Content-Type: application/json' -d @- <<JSON
{{"model": "{model}", "temperature": 0, "messages": [{{"role": "user", "content": [{parts}]}}]}}
JSON"""


def image_part(sample: Path) -> str:
    """Encoded by the shell when it is pasted: a picture would fill the screen."""
    encoded = f"$(base64 < {shlex.quote(str(sample))} | tr -d '\\n')"
    return f'{{"type": "image_url", "image_url": {{"url": "data:image/png;base64,{encoded}"}}}}'
