"""The text that the command prints when the server is ready: its address, and an example to paste."""

from __future__ import annotations

import json
import shlex
from functools import cache
from pathlib import Path

from server.settings import EMBEDDED_DIR

SAMPLES = EMBEDDED_DIR / "samples"
SCENES = EMBEDDED_DIR / "scenes" / "instances.json"
REAL_MODEL_COMMAND = "onlyseen-server --model llava-hf/llava-1.5-7b-hf"


def format_banner(
    url: str, model: str, strategy: str, *, is_embedded: bool, needs_key: bool = False, samples: Path = SAMPLES
) -> str:
    """Format the banner.

    Args:
        url: Address of the server.
        model: Name of the model in the API.
        strategy: Strategy of the example.
        is_embedded: Whether the model is the embedded one, whose limits the banner then states.
        needs_key: Whether requests need an API key. The example then reads it from the variable `API_KEY`.
        samples: Folder of the image that the example sends.

    Returns:
        The text.
    """
    example = format_curl_example(url, f"{model}:{strategy}", samples, needs_key=needs_key)
    notice = f"{describe_embedded_model()} For photographs: {REAL_MODEL_COMMAND}\n" if is_embedded else ""
    hint = ", with one of the API keys in the variable API_KEY" if needs_key else ""
    return f"\nOnlySeen serves {model} at {url}.\n{notice}Try{hint}:\n\n{example}\n"


def describe_embedded_model() -> str:
    """Describe the limits of the embedded model in one sentence."""
    return f"This small model is for trials. It knows {len(list_categories())} kinds of pictograms, and no photographs."


@cache
def list_categories() -> tuple[str, ...]:
    """List the categories that the embedded model knows, from the annotations of its scenes."""
    return tuple(category["name"] for category in json.loads(SCENES.read_text())["categories"])


def format_curl_example(url: str, model: str, samples: Path = SAMPLES, *, needs_key: bool = False) -> str:
    """Format a curl command that requests a description, with the first image of `samples` if there is one."""
    key = ' -H "Authorization: Bearer $API_KEY"' if needs_key else ""
    sample = min(samples.glob("*.png"), default=None)
    question = '{"type": "text", "text": "Please describe this image in detail."}'
    parts = question if sample is None else f"\n  {format_image_part(sample)},\n  {question}"
    return f"""curl {url}/v1/chat/completions{key} -H 'Content-Type: application/json' -d @- <<JSON
{{"model": "{model}", "temperature": 0, "messages": [{{"role": "user", "content": [{parts}]}}]}}
JSON"""


def format_image_part(sample: Path) -> str:
    """Format an image part that the shell encodes when the command runs: an encoded image would fill the screen."""
    encoded = f"$(base64 < {shlex.quote(str(sample))} | tr -d '\\n')"
    return f'{{"type": "image_url", "image_url": {{"url": "data:image/png;base64,{encoded}"}}}}'
