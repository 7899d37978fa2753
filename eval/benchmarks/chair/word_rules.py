"""The rules by which nltk splits a sentence into words, in three of its versions.

The rules of nltk changed several times, and with them the objects that CHAIR finds. So each variant of CHAIR has the
rules of the version that its official script pins, whatever version is installed:

- `NLTK_3_2_5`: requirements.txt of LisaAnne/Hallucination;
- `NLTK_3_8_1`: environment.yml of shikiw/OPERA;
- `NLTK_3_10`: the latest rules. They separate dashes, and quotation marks before a word.

For example, "bird" is no token of "a bird--a horse", with an em dash for the hyphens, in the two official versions.
"dog" is a token of "**dog**" from 3.8.1 on, and of "'dog'" in 3.10 only.

All rules are those of the Penn Treebank tokeniser of Robert MacIntyre with the additions of nltk, for lower case. They
put spaces around tokens, one after the other, and the text is split at whitespace in the end.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

Rule = tuple[re.Pattern[str], str]

CURLY_QUOTES = "\u2018\u2019\u201c\u201d\u00ab\u00bb"
CLOSING_MARKS = "\u00bb\u201d\u2019"


@dataclass(frozen=True)
class WordRules:
    """The rules of one version of nltk.

    Attributes:
        rules: Patterns and replacements, in order. They apply to a sentence with a space before and after it from
            `padded_from` on.
        padded_from: Index of the first rule that needs the two spaces.
        closing_quotes: Curly quotation marks that may end a sentence after its full stop.
        finds_runs_of_marks: Whether the first of several marks between spaces may end a sentence, too.
    """

    rules: tuple[Rule, ...]
    padded_from: int
    closing_quotes: str
    finds_runs_of_marks: bool

    def split_sentence(self, sentence: str) -> list[str]:
        """Split a sentence in lower case into words and punctuation marks."""
        for index, (pattern, replacement) in enumerate(self.rules):
            if index == self.padded_from:
                sentence = f" {sentence} "
            sentence = pattern.sub(replacement, sentence)
        return sentence.split()


def _compile(*rules: tuple[str, str]) -> tuple[Rule, ...]:
    return tuple((re.compile(pattern), replacement) for pattern, replacement in rules)


ALONE = r" \g<0> "
APART = r"\1 \2"

# The full stop at the end of a sentence, with closing brackets and quotation marks behind it. The possessive quantifier
# takes all spaces at once, because a search from each of them is quadratic. The older rule for straight marks alone
# remains in all versions, and finds a stop where the other rules have put spaces in the meantime.
STOP_AND_COMMA = (
    (rf"""([^.])(\.)([\])}}>"' {CLOSING_MARKS}]*+)\s*$""", r"\1 \2 \3 "),
    (r"([:,])([^\d])", r" \1 \2"),
    (r"([:,])$", ALONE),
)
OLDER_STOP = ((r"""([^.])(\.)([\])}>"']*)\s*$""", r"\1 \2\3 "), (r"[?!]", ALONE), (r"([^'])' ", r"\1 ' "))
SYMBOLS = (r"[;@#$%&]", ALONE)
BRACKETS_AND_DASHES = ((r"[\]\[(){}<>]", ALONE), (r"--", ALONE))
CLITICS = ((r"([^' ])('s|'m|'d|') ", r"\1 \2 "), (r"([^' ])('ll|'re|'ve|n't) ", r"\1 \2 "))


def _build_contractions(version: str) -> tuple[tuple[str, str], ...]:
    """Build the rules that split contractions such as "cannot"."""
    more, space = ("mor", r"\s") if version == "3.2.5" else ("more", r"(?=\s)")
    halves = (("can", "not"), ("d", "'ye"), ("gim", "me"), ("gon", "na"), ("got", "ta"), ("lem", "me"), (more, "'n"))
    patterns = [rf"\b({first})({second})\b" for first, second in halves]
    patterns += [rf"\b(wan)(na){space}", r" ('t)(is)\b", r" ('t)(was)\b"]
    return tuple((pattern, r" \1 \2 ") for pattern in patterns)


def _build_rules(version: str) -> WordRules:
    opening = "\u00ab\u201c\u2018" if version == "3.2.5" else "\u00ab\u201c\u2018\u201e"
    starting: list[tuple[str, str]] = [(f"[{opening}]" if version == "3.2.5" else f"[{opening}]|`+", ALONE)]
    starting += [(r'^"', "``"), (r"``", ALONE)]
    if version == "3.2.5":
        starting += [(r'([ (\[{<])"', r"\1 `` ")]
        ellipsis, two_quotes = (r"\.\.\.", ALONE), ((r'"', " '' "), (r"(\S)('')", r"\1 \2 "))
    else:
        starting += [(r"([ (\[{<])(\"|'')", r"\1 `` ")]
        ellipsis, two_quotes = (r"\.{2,}", ALONE), ((r"''", ALONE), (r'"', " '' "))
    if version == "3.8.1":
        starting += [(r"(')(?!re|ve|ll|m|t|s|d|n)(\w)\b", APART)]
    if version == "3.10":
        starting += [(r"(?<!\w)'(?!(?:re|ve|ll|m|t|s|d|n)\b)(?=\w)", r"\g<0> ")]
    dashes = ((r"[\u2012-\u2015]", ALONE),) if version == "3.10" else ()
    stars = () if version == "3.2.5" else ((r"\*", ALONE),)
    spaces = ((r"\s+", " "),) if version == "3.10" else ()
    before = (*starting, *STOP_AND_COMMA, ellipsis, SYMBOLS, *dashes, *OLDER_STOP, *stars, *BRACKETS_AND_DASHES)
    after = ((f"[{CLOSING_MARKS}]", ALONE), *two_quotes, *spaces, *CLITICS)
    return WordRules(
        rules=_compile(*before, *after, *_build_contractions(version)),
        padded_from=len(before),
        closing_quotes=CURLY_QUOTES if version == "3.10" else "",
        finds_runs_of_marks=version != "3.2.5",
    )


NLTK_3_2_5 = _build_rules("3.2.5")
NLTK_3_8_1 = _build_rules("3.8.1")
NLTK_3_10 = _build_rules("3.10")
