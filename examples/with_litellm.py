"""LiteLLM: the prefix `openai/` of the model name selects an OpenAI-compatible server."""

import base64
import os
from pathlib import Path

os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")  # otherwise LiteLLM downloads a price list
import litellm

image = base64.b64encode(Path("embedded/samples/kitchen.png").read_bytes()).decode()
request = {
    "api_base": os.environ.get("OPENAI_BASE_URL", "http://127.0.0.1:8000/v1"),
    "api_key": "none",
    "messages": [
        {
            "role": "user",
            "content": [
                {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{image}"}},
                {"type": "text", "text": "Is there a cup in the image?"},
            ],
        }
    ],
    "temperature": 0,
}

answer = litellm.completion(model="openai/onlyseen-tiny:agla+vhr", **request)
print(answer.choices[0].message.content)
print(answer.onlyseen["strategy"])

for chunk in litellm.completion(
    model="openai/onlyseen-tiny", stream=True, extra_body={"decoding": {"strategy": "vcd"}}, **request
):
    print(chunk.choices[0].delta.content or "", end="")
print()
