"""Inputs that the keys of the prefix cache contain."""

from collections.abc import Callable
from pathlib import Path

import pytest

from decoding.hf_engine.kv_cache.prefix_cache import PrefixCache
from decoding.hf_engine.model.model import Model
from decoding.hf_engine.settings import HFSettings
from tests.decoding.families.checkpoints import CHECKPOINTS
from tests.decoding.families.prompts import ONE

OF_THE_QUESTION = {
    "instructblip": {"qformer_input_ids", "qformer_attention_mask"}
}  # inputs that precede the image tokens


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_prefix_key_omits_inputs_derived_from_images(name: str, checkpoint: Callable[[str], Path]) -> None:
    model = Model(HFSettings(str(checkpoint(name)), device="cpu"))
    prefixes = PrefixCache(model.encoder, model.image_token_id, max_bytes=1)
    prompts = [ONE, ONE.with_question("Is there a dog?")]
    one, other = (prefixes.build_key(prompt, model.encoder.encode(prompt)) for prompt in prompts)
    assert one is not None
    assert {extra for extra, _ in one.extras} == OF_THE_QUESTION.get(name, set())
    assert (one == other) == (name not in OF_THE_QUESTION)
