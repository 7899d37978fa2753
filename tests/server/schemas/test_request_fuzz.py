"""Any input gives a request, an image or a BadRequest."""

from __future__ import annotations

import base64
import json
from contextlib import suppress
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from decoding.errors import BadRequest
from server.media.images import decode_data_url, decode_image
from server.schemas.base import parse_json
from server.schemas.chat_request import ChatCompletionRequest, parse_chat_request
from server.schemas.json_bounds import check_json_bounds
from tests.server.conftest import chat_request, data_url, image_messages

JSON: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.just(image_messages()),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)
FIELDS = st.sampled_from([*ChatCompletionRequest.model_fields, "tools", "nonsense"])
PARTS = st.fixed_dictionaries({"type": st.sampled_from(["text", "image_url", "x"]) | JSON}, optional={"text": JSON})
MESSAGES = st.lists(
    st.fixed_dictionaries(
        {"role": st.sampled_from(["system", "user", "assistant", "x"]) | JSON},
        optional={"content": JSON | st.lists(PARTS, max_size=3), "name": JSON},
    ),
    max_size=3,
)


@settings(max_examples=200)
@given(st.dictionaries(FIELDS, JSON, max_size=3), st.none() | MESSAGES)
def test_any_fields_parse_or_are_refused(fields: dict[str, Any], messages: list[Any] | None) -> None:
    body = chat_request(**fields) | ({} if messages is None else {"messages": messages})
    with suppress(BadRequest):
        assert parse_chat_request(parse_json(json.dumps(body).encode())).normalize()


@settings(max_examples=100)
@given(st.binary(max_size=200))
def test_any_bytes_parse_or_are_refused(body: bytes) -> None:
    with suppress(BadRequest):
        check_json_bounds(body)
        parse_chat_request(parse_json(body))


NOISE = Image.effect_noise((24, 17), 80).convert("RGB")
INTACT = {kind: base64.b64decode(data_url(NOISE, kind).partition(",")[2]) for kind in ("PNG", "JPEG", "GIF", "WEBP")}


@settings(max_examples=200)
@given(st.sampled_from(sorted(INTACT)), st.dictionaries(st.integers(0, 5000), st.integers(0, 255), max_size=6))
def test_damaged_image_loads_or_is_refused(kind: str, damage: dict[int, int]) -> None:
    content = bytearray(INTACT[kind])
    for place, byte in damage.items():
        content[place % len(content)] = byte
    url = f"data:image/{kind.lower()};base64,{base64.b64encode(content).decode()}"
    with suppress(BadRequest):
        assert decode_image(decode_data_url(url, "url"), "url").mode == "RGB"
