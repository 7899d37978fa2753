"""What the beginnings of prompts are told apart by."""

from collections.abc import Callable
from pathlib import Path

import pytest

from decoding.hf_engine.model import Model
from decoding.hf_engine.prefixes import Prefixes
from decoding.hf_engine.settings import HFSettings
from tests.decoding.families.checkpoints import RECIPES
from tests.decoding.families.conversations import ONE

OF_THE_QUESTION = {"instructblip": {"qformer_input_ids", "qformer_attention_mask"}}  # read before the picture's tokens


@pytest.mark.parametrize("name", RECIPES)
def test_what_follows_from_the_pictures_is_not_compared_again(name: str, checkpoint: Callable[[str], Path]) -> None:
    model = Model(HFSettings(str(checkpoint(name)), device="cpu"))
    prefixes = Prefixes(model, most_bytes=1)
    asked = [ONE, ONE.with_question("Is there a dog?")]
    one, other = (prefixes.beginning(prompt, model.encoder.encode(prompt)) for prompt in asked)
    assert one is not None
    assert {told for told, _ in one.extras} == OF_THE_QUESTION.get(name, set())
    assert (one == other) == (name not in OF_THE_QUESTION)
