import pytest

from decoding.ask import Message, Prompt
from decoding.strategies.icd import ICD, ROLES
from tests.decoding.fakes import asking, speckled


def test_the_branch_sees_the_same_picture_under_another_instruction() -> None:
    ask = ICD().prepare(asking("Is there a cat?"))
    disturbed = ask.branches["icd/disturbed"]
    assert disturbed.messages == (Message("system", (ROLES["confused"],)), *asking("Is there a cat?").prompt.messages)
    assert ask.prompt == asking("Is there a cat?").prompt


def test_a_system_message_is_replaced() -> None:
    told = Prompt((Message("system", ("Be kind.",)), *asking("Is there a cat?").prompt.messages))
    disturbed = ICD(role="avoidant").prepare(asking().but(prompt=told)).branches["icd/disturbed"]
    assert [message.text for message in disturbed.messages] == [ROLES["avoidant"], "Is there a cat?"]


def test_the_instruction_can_stand_before_the_question() -> None:
    disturbed = ICD(place="prefix", role="overview").prepare(asking("Is there a cat?")).branches["icd/disturbed"]
    assert disturbed == Prompt.of(f"{ROLES['overview']} Is there a cat?", speckled())


@pytest.mark.parametrize("place", ["system", "prefix"])
def test_the_instruction_can_be_worded_freely(place: str) -> None:
    strategy = ICD.model_validate({"sentence": "Guess {wildly}.", "place": place})
    disturbed = strategy.prepare(asking()).branches["icd/disturbed"]
    assert "".join(message.text for message in disturbed.messages).startswith("Guess {wildly}.")
