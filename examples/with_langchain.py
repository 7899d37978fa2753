"""LangChain, through `pip install langchain-openai`: a question about a picture, and an answer held to a schema."""

import base64
import os
from pathlib import Path

from langchain_core.messages import HumanMessage
from langchain_openai import ChatOpenAI
from pydantic import BaseModel

model = ChatOpenAI(
    base_url=os.environ.get("OPENAI_BASE_URL", "http://127.0.0.1:8000/v1"),
    api_key="none",
    model="onlyseen-tiny",
    temperature=0,
    max_completion_tokens=60,
    extra_body={"decoding": {"strategy": "agla"}},
)
picture = base64.b64encode(Path("embedded/samples/kitchen.png").read_bytes()).decode()


def asking(text: str) -> list[HumanMessage]:
    image = {"type": "image", "base64": picture, "mime_type": "image/png"}
    return [HumanMessage([image, {"type": "text", "text": text}])]


for piece in model.stream(asking("Please describe this image in detail.")):
    print(piece.content, end="")
print()


class Seen(BaseModel):
    cup: bool


held = model.with_structured_output(Seen, method="json_schema")
print(held.invoke(asking("Is there a cup in the image?")))
