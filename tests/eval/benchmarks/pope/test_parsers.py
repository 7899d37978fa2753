"""Every parser on a table of answers. The expected values follow from the code that the parser reproduces."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eval.benchmarks.pope.parsers import PARSERS

# answer: official, opera, vcd for a label yes, vcd for a label no, lmms-eval, vlmevalkit
PARSED: dict[str, tuple[str | None, ...]] = {
    "yes": ("yes", "yes", "yes", "yes", "yes", "yes"),
    "no": ("no", "no", "no", "no", "no", "no"),
    "Yes.": ("yes", "yes", "yes", "yes", None, "yes"),
    "No.": ("no", "no", "no", "no", None, "no"),
    "  No ": ("no", "no", "no", "no", "no", "no"),
    "": ("yes", "yes", "no", "yes", None, None),
    " ": ("yes", "yes", "no", "yes", None, None),
    "NO": ("yes", "no", "no", "no", "no", "no"),
    "No!": ("yes", "yes", "no", "no", None, "no"),
    "No\n": ("yes", "yes", "no", "no", "no", "no"),
    "No\nthere is none": ("yes", "yes", "no", "no", None, "no"),
    '"No"': ("yes", "yes", "no", "no", None, "no"),
    "**No**": ("yes", "yes", "no", "no", None, None),
    "<no>": ("yes", "yes", "no", "no", None, "no"),
    "nope": ("yes", "yes", "no", "no", None, None),
    "none": ("yes", "yes", "no", "no", None, None),
    "cannot tell": ("yes", "yes", "no", "no", None, None),
    "There isn't.": ("yes", "no", "no", "yes", None, None),
    "There isn't a cat": ("yes", "no", "no", "yes", None, None),
    "There isnt": ("yes", "yes", "no", "yes", None, None),
    ".No": ("yes", "no", "no", "no", None, "no"),
    "Hmm. No": ("yes", "no", "no", "no", None, "no"),
    "Yes, not only a cat": ("no", "no", "yes", "no", None, "yes"),
    "Not present": ("yes", "yes", "no", "no", None, None),
    "not present": ("no", "no", "no", "no", None, None),
    "n,o": ("no", "no", "no", "yes", None, None),
    "n.o": ("yes", "no", "no", "yes", None, "no"),
    "Yes - house no 7": ("no", "no", "yes", "no", None, None),
    "1. No": ("yes", "no", "no", "no", None, "no"),
    "No, there is no dog.": ("no", "no", "no", "no", None, "no"),
    "Yes, there is a snowboard": ("yes", "yes", "yes", "no", None, "yes"),
    "A snowboard": ("yes", "yes", "no", "no", None, None),
    "I don't know": ("yes", "no", "no", "no", None, None),
    "I don\u2019t know": ("yes", "yes", "no", "no", None, None),
    "no\tcat": ("yes", "yes", "no", "no", None, "no"),
    "no\xa0cat": ("yes", "yes", "no", "no", None, "no"),
    "yes and no": ("no", "no", "yes", "no", None, None),
    "YES": ("yes", "yes", "yes", "yes", "yes", "yes"),
    "Yes/No": ("yes", "yes", "yes", "no", None, None),
    "It is 3.5, no": ("yes", "no", "no", "no", None, "no"),
    "no, 1,000 of them": ("no", "no", "no", "no", None, "no"),
    "eyes": ("yes", "yes", "yes", "yes", None, None),
}


@pytest.mark.parametrize("answer", PARSED, ids=repr)
def test_parsers_read_the_answer(answer: str) -> None:
    parsed = {
        (name, label): PARSERS[name].parse(answer, label)
        for name, label in (
            ("official", "yes"),
            ("opera", "yes"),
            ("vcd", "yes"),
            ("vcd", "no"),
            ("lmms-eval", "yes"),
            ("vlmevalkit", "yes"),
        )
    }
    assert tuple(parsed.values()) == PARSED[answer]


@pytest.mark.parametrize("name", [name for name in PARSERS if name != "vcd"])
def test_only_vcd_depends_on_the_label(name: str) -> None:
    for answer in PARSED:
        assert PARSERS[name].parse(answer, "yes") == PARSERS[name].parse(answer, "no")


@pytest.mark.parametrize(
    ("name", "answer", "unparsed"),
    [
        ("official", "", True),
        ("official", "nope", True),
        ("official", "There isn't", True),
        ("official", "NO", False),
        ("official", "Hmm. Yes", False),
        ("official", "Not at all", False),
        ("opera", "There isn't", False),
        ("opera", "perhaps", True),
        ("vcd", "know", False),
        ("vcd", "perhaps", True),
        ("lmms-eval", "Yes.", True),
        ("lmms-eval", "Yes", False),
        ("vlmevalkit", "yes and no", True),
        ("vlmevalkit", "yes, a noose", False),
    ],
)
def test_answer_without_yes_or_no_is_unparsed(name: str, answer: str, unparsed: bool) -> None:
    assert PARSERS[name].is_unparsed(answer) is unparsed


@pytest.mark.parametrize("label", ["No", "NO", "n", "yes", "Yes", "maybe", ""])
def test_the_official_label_is_no_only_if_exactly_no(label: str) -> None:
    assert PARSERS["official"].parse_label(label) == "yes"
    assert PARSERS["official"].parse_label("no") == "no"


def test_vlmevalkit_removes_only_the_first_32_full_stops() -> None:
    """The original passes a flag as the count of re.sub, and its value is 32."""
    assert PARSERS["vlmevalkit"].parse("." * 32 + "no", "no") == "no"
    assert PARSERS["vlmevalkit"].parse("." * 33 + "no", "no") is None


@given(st.text(alphabet="NnOoTt.,' \n!yesYES7-", max_size=24))
def test_the_official_rule_equals_a_second_implementation(answer: str) -> None:
    sentence = ""
    for character in answer:
        if character == ".":
            break
        sentence += "" if character == "," else character
    padded = f" {sentence} "
    expected = "no" if any(f" {word} " in padded for word in ("No", "no", "not")) else "yes"
    assert PARSERS["official"].parse(answer, "yes") == expected


@given(st.text(max_size=60))
def test_parsers_accept_any_text(answer: str) -> None:
    for parser in PARSERS.values():
        for label in ("yes", "no"):
            assert parser.parse(answer, label) in ("yes", "no", None)
            parser.is_unparsed(answer)
