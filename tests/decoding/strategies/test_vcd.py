from decoding.ask import Message, Noise, Prompt
from decoding.strategies.vcd import VCD
from tests.decoding.fakes import asking, speckled


def test_the_branch_sees_the_same_text_and_noisy_pictures() -> None:
    ask = VCD(noise_step=700, noise_seed=5).prepare(asking("Is there a cat?"))
    noisy = ask.branches["vcd/noisy"]
    assert noisy.question == "Is there a cat?"
    assert noisy.pictures == (speckled().noised(Noise(700, 5)),)
    assert ask.prompt == asking("Is there a cat?").prompt


def test_every_picture_has_noise_of_its_own() -> None:
    """One generator for all would give equal pictures equal noise, which a contrast of the two could not cancel."""
    turns = (
        Message("user", (speckled(), "What is this?")),
        Message("assistant", ("A cat.",)),
        Message("user", (speckled(), speckled(1), "And these?")),
    )
    ask = asking().but(prompt=Prompt(turns))
    noisy = VCD(noise_seed=3).prepare(ask).branches["vcd/noisy"]
    assert [picture.noise for picture in noisy.pictures] == [Noise(500, 3), Noise(500, 4), Noise(500, 5)]
    assert len({picture.key for picture in noisy.pictures}) == 3


def test_the_same_parameters_draw_the_same_noise() -> None:
    one, other = (VCD().prepare(asking()).branches["vcd/noisy"] for _ in range(2))
    assert one == other
