"""Text a piece at a time: whole characters, and never a stop string."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers.decoders import ByteLevel, Sequence, Strip
from transformers import PreTrainedTokenizerFast

from decoding.detokenizer import Detokenizer, Vocabulary
from tests.decoding.hf_engine.checkpoint import SPARE, byte_pairs

TOKENIZER: PreTrainedTokenizerFast = byte_pairs()
WORDS = len(TOKENIZER)


def spell(text: str) -> list[int]:
    ids: list[int] = TOKENIZER(text, add_special_tokens=False)["input_ids"]
    return ids


def pieces(ids: list[int], *stop: str, least: int = 0) -> tuple[list[str], bool]:
    """What comes out for each token, and at the end."""
    words = Detokenizer(TOKENIZER, stop, least=least)
    said = []
    for token in ids:
        said.append(words.push(token))
        if words.stopped:
            return said, True
    return [*said, words.flush()], False


def whole(ids: list[int]) -> str:
    text: str = TOKENIZER.decode(ids, skip_special_tokens=True)
    return text


@given(st.text())
def test_the_pieces_of_a_text_make_the_text(text: str) -> None:
    assert "".join(pieces(spell(text))[0]) == text


@given(st.lists(st.integers(0, WORDS - 1), max_size=40))
def test_the_pieces_of_any_tokens_make_the_whole_decode(ids: list[int]) -> None:
    assert "".join(pieces(ids)[0]) == whole(ids)


def test_a_character_comes_when_its_last_byte_has() -> None:
    ids = spell("a🦦é")
    assert len(ids) == 1 + 4 + 2
    assert pieces(ids)[0] == ["a", "", "", "", "🦦", "", "é", ""]


def test_a_character_that_was_never_finished_is_replaced() -> None:
    assert "".join(pieces(spell("a🦦")[:-1])[0]) == whole(spell("a🦦")[:-1]) == "a\N{REPLACEMENT CHARACTER}"


def test_a_token_beyond_the_tokenizers_words_says_nothing() -> None:
    assert "".join(pieces([*spell("ab"), WORDS + SPARE - 1, *spell("c")])[0]) == "abc"


@pytest.mark.parametrize(
    ("text", "stop", "said"),
    [
        ("There is a cat.", (" is",), "There"),
        ("There is a cat.", ("There",), ""),
        ("There is a cat.", ("cat.", "a"), "There is "),
        ("There is a cat.", ("is a cat", "is a"), "There "),
        ("aaab", ("aab",), "a"),
        ("abababc", ("ababc",), "ab"),
        ("one\n\ntwo", ("\n\n",), "one"),
        ("otter 🦦 there", ("🦦",), "otter "),
    ],
)
def test_a_stop_string_ends_the_text_before_itself(text: str, stop: tuple[str, ...], said: str) -> None:
    parts, stopped = pieces(spell(text), *stop)
    assert ("".join(parts), stopped) == (said, True)


@pytest.mark.parametrize(
    ("text", "stop", "least", "said"),
    [
        ("a1b1c", "1", 0, "a"),
        ("a1b1c", "1", 1, "a"),
        ("a1b1c", "1", 2, "a1b"),
        ("a1b1c", "1", 4, "a1b1c"),
        ("a12b", "12", 2, "a"),
        ("a11b", "11", 3, "a11b"),
        ("a111b", "11", 3, "a1"),
    ],
)
def test_a_stop_string_that_is_complete_too_early_is_text(text: str, stop: str, least: int, said: str) -> None:
    ids = spell(text)
    assert len(ids) == len(text)
    told, stopped = pieces(ids, stop, least=least)
    assert ("".join(told), stopped) == (said, said != text)


@pytest.mark.parametrize("stop", [("cat. ",), ("catch", ". A"), ("There is a cat. No",)])
def test_what_only_began_like_a_stop_string_is_said_in_the_end(stop: tuple[str, ...]) -> None:
    parts, stopped = pieces(spell("There is a cat."), *stop)
    assert ("".join(parts), stopped) == ("There is a cat.", False)


@given(st.text("ab", max_size=30), st.lists(st.text("ab", min_size=1, max_size=5), min_size=1, max_size=4))
def test_no_part_of_a_stop_string_is_ever_said(text: str, stop: list[str]) -> None:
    parts, stopped = pieces(spell(text), *stop)
    ends = [text.find(string) for string in stop if string in text]
    said = "".join(parts)
    assert stopped == bool(ends)
    assert said == (text[: len(said)] if ends else text)
    assert not any(string in said for string in stop)
    if ends:
        assert any(text[len(said) :].startswith(string) for string in stop)


def test_the_bytes_of_tokens_make_the_text() -> None:
    words, text = Vocabulary(TOKENIZER), " a 🦦 swims\n"
    assert b"".join(words.alternative(token, 0.0).bytes for token in spell(text)).decode() == text


@pytest.fixture
def stripping() -> PreTrainedTokenizerFast:
    """As Llama's does, it leaves out the space before the first word of a text."""
    tokenizer = byte_pairs()
    tokenizer._tokenizer.decoder = Sequence([ByteLevel(), Strip(" ", 1, 0)])
    return tokenizer


def test_the_first_token_is_shown_as_it_is_said(stripping: PreTrainedTokenizerFast) -> None:
    words, text = Vocabulary(stripping), Detokenizer(stripping, ())
    first, second = spell(" a")[0], spell(" b")[0]
    shown = [words.alternative(first, 0.0, begins=True), words.alternative(second, 0.0)]
    assert "".join(each.text for each in shown) == text.push(first) + text.push(second)
    assert shown[0].bytes == b"a"


@pytest.mark.parametrize("before", ["Is it", "otter 🦦", ""])
def test_what_goes_on_from_a_text_keeps_the_space_between(stripping: PreTrainedTokenizerFast, before: str) -> None:
    words = Detokenizer(stripping, (), spell(before))
    said = "".join(words.push(token) for token in spell(" a 🦦"))
    assert said == (" a 🦦" if before else "a 🦦")


def test_a_text_that_breaks_off_within_a_character_is_not_said_again() -> None:
    words = Detokenizer(TOKENIZER, (), spell("a🦦")[:-1])
    assert "".join(words.push(token) for token in spell(" b")) == " b"


def test_a_part_of_a_character_is_shown_as_one() -> None:
    first = Vocabulary(TOKENIZER).alternative(spell("🦦")[0], -1.0)
    assert (first.text, first.bytes, first.logprob) == ("\N{REPLACEMENT CHARACTER}", "🦦".encode()[:1], -1.0)


def test_words_beyond_the_tokenizers_have_no_bytes() -> None:
    assert Vocabulary(TOKENIZER).alternative(WORDS + SPARE - 1, 0.0).bytes == b""


def test_special_tokens_are_spelled_as_they_are_written() -> None:
    assert Vocabulary(TOKENIZER).alternative(TOKENIZER.eos_token_id, 0.0).text == "</s>"
