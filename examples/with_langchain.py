"""LangChain with `pip install langchain-openai`: stream a description of an image, then get a structured answer."""

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
image = base64.b64encode(Path("embedded/samples/kitchen.png").read_bytes()).decode()


def build_messages(text: str) -> list[HumanMessage]:
    image_part = {"type": "image", "base64": image, "mime_type": "image/png"}
    return [HumanMessage([image_part, {"type": "text", "text": text}])]


for chunk in model.stream(build_messages("Please describe this image in detail.")):
    print(chunk.content, end="")
print()


class Presence(BaseModel):
    cup: bool


structured_model = model.with_structured_output(Presence, method="json_schema")
print(structured_model.invoke(build_messages("Is there a cup in the image?")))
