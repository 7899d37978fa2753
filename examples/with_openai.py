"""The openai package: an answer under AGLA with checked claims, then a stream with the grounding of each token."""

import base64
import os
from pathlib import Path

from openai import OpenAI

client = OpenAI(base_url=os.environ.get("OPENAI_BASE_URL", "http://127.0.0.1:8000/v1"), api_key="none")
image = base64.b64encode(Path("embedded/samples/kitchen.png").read_bytes()).decode()
messages = [
    {
        "role": "user",
        "content": [
            {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{image}"}},
            {"type": "text", "text": "Please describe this image in detail."},
        ],
    }
]

answer = client.chat.completions.create(
    model="onlyseen-tiny",
    messages=messages,
    temperature=0,
    extra_body={"decoding": {"strategy": "agla", "check": True}},
)
print(answer.choices[0].message.content)
print(answer.onlyseen["strategy"], answer.onlyseen["changed_steps"], "steps changed")
for claim in answer.onlyseen["claims"]:
    print(f"{claim['question']} {claim['probability']:.2f}")

stream = client.chat.completions.create(
    model="onlyseen-tiny:vcd",  # the model suffix also selects a strategy
    messages=messages,
    temperature=0,
    max_tokens=20,
    stream=True,
    stream_options={"include_usage": True},
    extra_body={"decoding": {"grounding": True}},
)
for chunk in stream:
    for choice in chunk.choices:
        for entry in choice.logprobs.content if choice.logprobs else []:
            print(f"{entry.token!r}: {entry.grounding:+.2f}")
    if chunk.usage:
        print(chunk.usage.completion_tokens, "tokens under", chunk.onlyseen["strategy"])
