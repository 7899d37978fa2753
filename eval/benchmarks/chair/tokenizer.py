"""nltk.word_tokenize for English in lower case, without downloaded data.

word_tokenize splits a text into sentences (Punkt, Kiss and Strunk 2006), because only the full stop at the end of a
sentence is a token of its own. It then splits sentences into words (Penn Treebank tokeniser). Both parts are nltk's own
code here. For text in lower case, only the abbreviations of the trained Punkt model matter. Its collocations and its
statistics of capitals decide nothing that the rules do not decide without them.
"""

from __future__ import annotations

from functools import cache, lru_cache
from typing import TYPE_CHECKING, cast

if TYPE_CHECKING:
    from nltk.tokenize.destructive import NLTKWordTokenizer
    from nltk.tokenize.punkt import PunktSentenceTokenizer

# Abbreviations of nltk's English Punkt model, which was trained on the Wall Street Journal.
ABBREVIATIONS = """
    a.a a.c a.d a.g a.h a.m a.m.e a.s a.t adm ala ariz aug ave b.f b.v bros c c.i.t c.o.m.b c.v calif chg cie co
    col colo conn corp cos ct d d.c d.h d.w dec dr e e.f e.h e.l e.m f f.g f.j feb fla fri ft g g.d g.f g.k ga gen
    h h.c h.f h.m i.m.s ill inc j.b j.c j.j j.k j.p j.r jan jr k kan ky l l.a l.f l.p lt ltd m m.b.a m.d.c m.j maj
    messrs mg mich minn mr mrs ms n n.c n.d n.h n.j n.m n.v n.y nev nov oct ok okla ore p p.a.m p.m pa ph.d prof r
    r.a r.h r.i r.j r.k r.t rep reps s s.a s.a.y s.c s.g s.p.a s.s sen sep sept sr st sw t t.j tenn tues u.k u.n
    u.s u.s.a u.s.s.r v va vs vt w w.c w.r w.va w.w wash wed wis yr
"""


def tokenize(text: str) -> list[str]:
    """Split a text into words and punctuation marks, in lower case as CHAIR does."""
    return [
        word for sentence in _build_sentence_tokenizer().tokenize(text.lower()) for word in _tokenize_sentence(sentence)
    ]


def locate_tokens(text: str, tokens: list[str]) -> list[tuple[int, int] | None]:
    """Find the position of each token in the text.

    Args:
        text: The text.
        tokens: The tokens of the text.

    Returns:
        Start and end of each token, None for a token that the tokeniser changed beyond recognition.
    """
    lowered = text.lower()
    if len(lowered) != len(text):  # Some capitals are two characters in lower case.
        return [None] * len(tokens)
    spans: list[tuple[int, int] | None] = []
    end = 0
    for token in tokens:
        # The tokeniser replaces straight double quotes by `` and ''.
        original = '"' if token in ("``", "''") and not lowered.startswith(token, end) else token
        start = lowered.find(original, end)
        spans.append(None if start < 0 else (start, start + len(original)))
        end = end if start < 0 else start + len(original)
    return spans


@cache
def _build_sentence_tokenizer() -> PunktSentenceTokenizer:
    from nltk.tokenize.punkt import PunktParameters, PunktSentenceTokenizer

    parameters = PunktParameters()
    parameters.abbrev_types.update(ABBREVIATIONS.split())
    return PunktSentenceTokenizer(parameters)  # The argument is a training text or parameters.


@cache
def _build_word_tokenizer() -> NLTKWordTokenizer:
    from nltk.tokenize.destructive import NLTKWordTokenizer

    return NLTKWordTokenizer()


@lru_cache(maxsize=10_000)
def _tokenize_sentence(sentence: str) -> tuple[str, ...]:
    return tuple(cast("list[str]", _build_word_tokenizer().tokenize(sentence)))
