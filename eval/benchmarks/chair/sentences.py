"""The sentences of nltk's Punkt model for text in lower case. Of its trained data only a list of abbreviations is here.

Only a full stop at the end of a sentence is a token of its own, so the sentences decide whether CHAIR finds a word
before a full stop. For text in lower case only the abbreviations of the trained model matter. Its collocations and its
statistics of capitals decide nothing that the rules do not decide without them.

Source: Kiss and Strunk 2006, as implemented in nltk 3.2.5 to 3.10.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache
from itertools import pairwise

# Abbreviations of nltk's English Punkt model, which was trained on the Wall Street Journal.
LISTED_ABBREVIATIONS = """
    a.a a.c a.d a.g a.h a.m a.m.e a.s a.t adm ala ariz aug ave b.f b.v bros c c.i.t c.o.m.b c.v calif chg cie co
    col colo conn corp cos ct d d.c d.h d.w dec dr e e.f e.h e.l e.m f f.g f.j feb fla fri ft g g.d g.f g.k ga gen
    h h.c h.f h.m i.m.s ill inc j.b j.c j.j j.k j.p j.r jan jr k kan ky l l.a l.f l.p lt ltd m m.b.a m.d.c m.j maj
    messrs mg mich minn mr mrs ms n n.c n.d n.h n.j n.m n.v n.y nev nov oct ok okla ore p p.a.m p.m pa ph.d prof r
    r.a r.h r.i r.j r.k r.t rep reps s s.a s.a.y s.c s.g s.p.a s.s sen sep sept sr st sw t t.j tenn tues u.k u.n
    u.s u.s.a u.s.s.r v va vs vt w w.c w.r w.va w.w wash wed wis yr
"""
ABBREVIATIONS = frozenset(LISTED_ABBREVIATIONS.split())
NUMBER = re.compile(r"-?[.,]?\d[\d,.-]*\.?")
INITIAL = re.compile(r"[^\W\d]\.")
ELLIPSIS = re.compile(r"\.\.+")


def split_sentences(text: str, closing_quotes: str = "", finds_runs_of_marks: bool = False) -> list[str]:
    """Split a text in lower case into sentences.

    Args:
        text: The text.
        closing_quotes: Marks that may close a sentence after its full stop, beside straight quotes and brackets.
        finds_runs_of_marks: Examine the first of several marks between spaces ("!!!") beside the last one. Later
            versions than nltk 3.2.5 do so, and their words are separated by the whitespace of ASCII only.

    Returns:
        The sentences, without the whitespace between them.
    """
    patterns = _compile_patterns(closing_quotes, finds_runs_of_marks)
    bounds = list(_find_bounds(text, patterns, finds_runs_of_marks))
    sentences = []
    skipped = 0  # characters of this sentence that belong to the one before
    for index, (start, end) in enumerate(bounds):
        start += skipped
        skipped = 0
        if index + 1 < len(bounds):
            following_start, following_end = bounds[index + 1]
            closing = patterns.closing.match(text[following_start:following_end])
            if closing is not None:
                sentences.append(text[start : following_start + len(closing[0].rstrip())])
                skipped = closing.end()
                continue
        if text[start:end]:
            sentences.append(text[start:end])
    return sentences


class _SentencePatterns:
    """The regular expressions of one set of closing marks.

    Attributes:
        run: A run of characters without a break.
        possible_end: A mark that may end a sentence, with the text behind it as `after` and a following word as `next`.
        closing: Marks at the start of a sentence that belong to the one before.
        word: A token of Punkt, which keeps full stops.
    """

    def __init__(self, closing_quotes: str, only_ascii_breaks: bool) -> None:
        outside = rf"""[)";}}\]*:@'({{\[!?{closing_quotes}]"""
        several = r"(?:-{2,}|\.{2,}|(?:\.\s){2,}\.)"
        self.run = re.compile(r"[^ \t\n\r\x0b\x0c]+" if only_ascii_breaks else r"\S+")
        self.possible_end = re.compile(rf"[.?!](?=(?P<after>{outside}|\s+(?P<next>\S+)))")
        self.closing = re.compile(rf"""["')\]}}{closing_quotes}]+?(?:\s+|(?=--)|$)""", re.MULTILINE)
        word_end = rf"\s|$|{outside}|{several}"
        self.word = re.compile(rf"""{several}|(?=[^("`{{\[:;&#*@)}}\]\-,])\S+?(?={word_end}|,(?={word_end}))|\S""")


_compile_patterns = cache(_SentencePatterns)


def _find_bounds(text: str, patterns: _SentencePatterns, finds_runs_of_marks: bool) -> Iterator[tuple[int, int]]:
    """Yield start and end of every sentence, before closing marks are moved to the sentence that they close.

    Only the last possible end of each run of characters is examined, as in nltk.
    """
    ends = patterns.possible_end.finditer(text)
    end = next(ends, None)
    start = 0
    for run in patterns.run.finditer(text):
        in_run = []
        while end is not None and end.start() < run.end():
            in_run.append(end)
            end = next(ends, None)
        examined = in_run[-1:]
        # nltk takes a mark without a word before it for a run of its own, except behind a space at the start of a text.
        if finds_runs_of_marks and len(in_run) > 1 and in_run[0].start() == run.start() != 1:
            examined = [in_run[0], in_run[-1]]
        for candidate in examined:
            if _has_sentence_end(text[run.start() : candidate.end()] + candidate["after"], patterns):
                yield start, candidate.end()
                start = candidate.start("next") if candidate["next"] else candidate.end()
    yield start, len(text.rstrip())


def _has_sentence_end(context: str, patterns: _SentencePatterns) -> bool:
    """Return whether a token before the last one ends a sentence."""
    tokens = [token for line in context.split("\n") for token in patterns.word.findall(line)]
    return any(_ends_sentence(token, following) for token, following in pairwise(tokens))


def _ends_sentence(token: str, following: str) -> bool:
    if token in (".", "?", "!"):
        return True
    if not token.endswith(".") or token.endswith("..") or ELLIPSIS.match(token):
        return False
    if token[:-1] in ABBREVIATIONS or token[:-1].rpartition("-")[2] in ABBREVIATIONS:
        return False
    is_initial = INITIAL.fullmatch(token) is not None
    if is_initial or NUMBER.fullmatch(token):
        # A letter or a number with a full stop counts things if a punctuation mark or a word in lower case follows.
        # Few capitals have no lower case. They may follow the initial of a name.
        in_lower_case = following in tuple(";:,.!?") or following[0].islower()
        return not (in_lower_case or (is_initial and following[0].isupper()))
    return True
