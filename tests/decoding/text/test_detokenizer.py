"""Incremental text: whole characters, and never a stop string."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers.decoders import ByteLevel, Sequence, Strip
from transformers import PreTrainedTokenizerFast

from decoding.text.detokenizer import Detokenizer, TokenText
from tests.decoding.hf_engine.checkpoint import SPARE, byte_pairs

TOKENIZER: PreTrainedTokenizerFast = byte_pairs()
WORDS = len(TOKENIZER)


def encode(text: str) -> list[int]:
    ids: list[int] = TOKENIZER(text, add_special_tokens=False)["input_ids"]
    return ids


def decode_in_pieces(ids: list[int], *stop: str, min_tokens: int = 0) -> tuple[list[str], bool]:
    """Return the text for each token and at the end, and whether a stop string ended it."""
    words = Detokenizer(TOKENIZER, stop, min_tokens=min_tokens)
    emitted = []
    for token in ids:
        emitted.append(words.add_token(token))
        if words.is_stopped:
            return emitted, True
    return [*emitted, words.flush()], False


def decode(ids: list[int]) -> str:
    text: str = TOKENIZER.decode(ids, skip_special_tokens=True)
    return text


@given(st.text())
def test_pieces_of_a_text_join_to_the_text(text: str) -> None:
    assert "".join(decode_in_pieces(encode(text))[0]) == text


@given(st.lists(st.integers(0, WORDS - 1), max_size=40))
def test_pieces_of_any_tokens_join_to_the_decoded_text(ids: list[int]) -> None:
    assert "".join(decode_in_pieces(ids)[0]) == decode(ids)


def test_character_appears_with_its_last_byte() -> None:
    ids = encode("a🦦é")
    assert len(ids) == 1 + 4 + 2
    assert decode_in_pieces(ids)[0] == ["a", "", "", "", "🦦", "", "é", ""]


def test_unfinished_character_is_replaced() -> None:
    assert (
        "".join(decode_in_pieces(encode("a🦦")[:-1])[0]) == decode(encode("a🦦")[:-1]) == "a\N{REPLACEMENT CHARACTER}"
    )


def test_token_beyond_the_vocabulary_has_no_text() -> None:
    assert "".join(decode_in_pieces([*encode("ab"), WORDS + SPARE - 1, *encode("c")])[0]) == "abc"


@pytest.mark.parametrize(
    ("text", "stop", "emitted"),
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
def test_text_ends_before_a_stop_string(text: str, stop: tuple[str, ...], emitted: str) -> None:
    parts, stopped = decode_in_pieces(encode(text), *stop)
    assert ("".join(parts), stopped) == (emitted, True)


@pytest.mark.parametrize(
    ("text", "stop", "min_tokens", "emitted"),
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
def test_stop_string_before_min_tokens_is_text(text: str, stop: str, min_tokens: int, emitted: str) -> None:
    ids = encode(text)
    assert len(ids) == len(text)
    parts, stopped = decode_in_pieces(ids, stop, min_tokens=min_tokens)
    assert ("".join(parts), stopped) == (emitted, emitted != text)


@pytest.mark.parametrize("stop", [("cat. ",), ("catch", ". A"), ("There is a cat. No",)])
def test_partial_stop_string_is_flushed(stop: tuple[str, ...]) -> None:
    parts, stopped = decode_in_pieces(encode("There is a cat."), *stop)
    assert ("".join(parts), stopped) == ("There is a cat.", False)


@given(st.text("ab", max_size=30), st.lists(st.text("ab", min_size=1, max_size=5), min_size=1, max_size=4))
def test_no_part_of_a_stop_string_is_emitted(text: str, stop: list[str]) -> None:
    parts, stopped = decode_in_pieces(encode(text), *stop)
    ends = [text.find(string) for string in stop if string in text]
    emitted = "".join(parts)
    assert stopped == bool(ends)
    assert emitted == (text[: len(emitted)] if ends else text)
    assert not any(string in emitted for string in stop)
    if ends:
        assert any(text[len(emitted) :].startswith(string) for string in stop)


def test_bytes_of_tokens_join_to_the_text() -> None:
    words, text = TokenText(TOKENIZER), " a 🦦 swims\n"
    assert b"".join(words.build_logprob(token, 0.0).bytes for token in encode(text)).decode() == text


@pytest.fixture
def stripping_tokenizer() -> PreTrainedTokenizerFast:
    """Build a tokenizer that drops the space before the first word of a text, as Llama's does."""
    tokenizer = byte_pairs()
    tokenizer._tokenizer.decoder = Sequence([ByteLevel(), Strip(" ", 1, 0)])
    return tokenizer


def test_first_token_text_drops_the_space(stripping_tokenizer: PreTrainedTokenizerFast) -> None:
    words, text = TokenText(stripping_tokenizer), Detokenizer(stripping_tokenizer, ())
    first, second = encode(" a")[0], encode(" b")[0]
    shown = [words.build_logprob(first, 0.0, is_first=True), words.build_logprob(second, 0.0)]
    assert "".join(each.text for each in shown) == text.add_token(first) + text.add_token(second)
    assert shown[0].bytes == b"a"


@pytest.mark.parametrize("before", ["Is it", "otter 🦦", ""])
def test_continuation_keeps_the_leading_space(stripping_tokenizer: PreTrainedTokenizerFast, before: str) -> None:
    words = Detokenizer(stripping_tokenizer, (), encode(before))
    emitted = "".join(words.add_token(token) for token in encode(" a 🦦"))
    assert emitted == (" a 🦦" if before else "a 🦦")


def test_prefix_that_ends_within_a_character_is_not_repeated() -> None:
    words = Detokenizer(TOKENIZER, (), encode("a🦦")[:-1])
    assert "".join(words.add_token(token) for token in encode(" b")) == " b"


def test_part_of_a_character_has_its_bytes() -> None:
    first = TokenText(TOKENIZER).build_logprob(encode("🦦")[0], -1.0)
    assert (first.text, first.bytes, first.logprob) == ("\N{REPLACEMENT CHARACTER}", "🦦".encode()[:1], -1.0)


def test_token_beyond_the_vocabulary_has_no_bytes() -> None:
    assert TokenText(TOKENIZER).build_logprob(WORDS + SPARE - 1, 0.0).bytes == b""


def test_special_tokens_keep_their_spelling() -> None:
    assert TokenText(TOKENIZER).build_logprob(TOKENIZER.eos_token_id, 0.0).text == "</s>"
