from decoding.requests import Message, Noise, Prompt
from decoding.strategies.vcd import VCD
from tests.decoding.fakes import make_request, random_image


def test_branch_has_the_same_text_and_noised_images() -> None:
    request = VCD(noise_step=700, noise_seed=5).prepare(make_request("Is there a cat?"))
    noisy = request.branches["noisy"]
    assert noisy.question == "Is there a cat?"
    assert noisy.images == (random_image().with_noise(Noise(700, 5)),)
    assert request.prompt == make_request("Is there a cat?").prompt


def test_each_image_has_its_own_noise() -> None:
    """One generator for all would give equal images equal noise, which a contrast of the two could not cancel."""
    turns = (
        Message("user", (random_image(), "What is this?")),
        Message("assistant", ("A cat.",)),
        Message("user", (random_image(), random_image(1), "And these?")),
    )
    request = make_request().replace(prompt=Prompt(turns))
    noisy = VCD(noise_seed=3).prepare(request).branches["noisy"]
    assert [image.noise for image in noisy.images] == [Noise(500, 3), Noise(500, 4), Noise(500, 5)]
    assert len({image.key for image in noisy.images}) == 3


def test_noise_is_reproducible() -> None:
    one, other = (VCD().prepare(make_request()).branches["noisy"] for _ in range(2))
    assert one == other
