import pytest

from decoding.requests import Message, Prompt
from decoding.strategies.icd import ICD, ROLES
from tests.decoding.fakes import make_request, random_image


def test_branch_has_the_same_image_and_another_instruction() -> None:
    request = ICD().prepare(make_request("Is there a cat?"))
    disturbed = request.branches["disturbed"]
    assert disturbed.messages == (
        Message("system", (ROLES["confused"],)),
        *make_request("Is there a cat?").prompt.messages,
    )
    assert request.prompt == make_request("Is there a cat?").prompt


def test_system_message_is_replaced() -> None:
    prompt = Prompt((Message("system", ("Be kind.",)), *make_request("Is there a cat?").prompt.messages))
    disturbed = ICD(role="avoidant").prepare(make_request().replace(prompt=prompt)).branches["disturbed"]
    assert [message.text for message in disturbed.messages] == [ROLES["avoidant"], "Is there a cat?"]


def test_place_prefix_puts_the_instruction_before_the_question() -> None:
    disturbed = ICD(place="prefix", role="overview").prepare(make_request("Is there a cat?")).branches["disturbed"]
    assert disturbed == Prompt.from_text(f"{ROLES['overview']} Is there a cat?", random_image())


@pytest.mark.parametrize("place", ["system", "prefix"])
def test_sentence_replaces_the_role(place: str) -> None:
    strategy = ICD.model_validate({"sentence": "Guess {wildly}.", "place": place})
    disturbed = strategy.prepare(make_request()).branches["disturbed"]
    assert "".join(message.text for message in disturbed.messages).startswith("Guess {wildly}.")
