"""nltk.word_tokenize for lower-cased English, without the data that it wants downloaded.

word_tokenize splits a text into sentences (Punkt, Kiss and Strunk 2006), because only the full stop at the end of a
sentence becomes a token of its own, and the sentences into words (a Penn Treebank tokeniser). Both are nltk's own code
here. What the trained Punkt model knows comes down to its abbreviations as long as all text is lower-cased: its
collocations and its statistics of capitals decide nothing then that the rules do not decide without them.
"""

from __future__ import annotations

from functools import cache, lru_cache
from typing import TYPE_CHECKING, cast

if TYPE_CHECKING:
    from nltk.tokenize.destructive import NLTKWordTokenizer
    from nltk.tokenize.punkt import PunktSentenceTokenizer

# The abbreviations of nltk's English Punkt model, which was trained on the Wall Street Journal.
ABBREVIATIONS = """
    a.a a.c a.d a.g a.h a.m a.m.e a.s a.t adm ala ariz aug ave b.f b.v bros c c.i.t c.o.m.b c.v calif chg cie co
    col colo conn corp cos ct d d.c d.h d.w dec dr e e.f e.h e.l e.m f f.g f.j feb fla fri ft g g.d g.f g.k ga gen
    h h.c h.f h.m i.m.s ill inc j.b j.c j.j j.k j.p j.r jan jr k kan ky l l.a l.f l.p lt ltd m m.b.a m.d.c m.j maj
    messrs mg mich minn mr mrs ms n n.c n.d n.h n.j n.m n.v n.y nev nov oct ok okla ore p p.a.m p.m pa ph.d prof r
    r.a r.h r.i r.j r.k r.t rep reps s s.a s.a.y s.c s.g s.p.a s.s sen sep sept sr st sw t t.j tenn tues u.k u.n
    u.s u.s.a u.s.s.r v va vs vt w w.c w.r w.va w.w wash wed wis yr
"""


def tokens(text: str) -> list[str]:
    """The words and punctuation marks of a text, which is lower-cased first as CHAIR does."""
    return [word for sentence in _punkt().tokenize(text.lower()) for word in _words(sentence)]


def spans(text: str, found: list[str]) -> list[tuple[int, int] | None]:
    """Where the tokens of a text stand in it; None for one that the tokeniser rewrote beyond finding."""
    lowered = text.lower()
    if len(lowered) != len(text):  # a few capitals are two characters in lower case
        return [None] * len(found)
    places: list[tuple[int, int] | None] = []
    end = 0
    for token in found:
        # Straight double quotes come out as `` and ''.
        written = '"' if token in ("``", "''") and not lowered.startswith(token, end) else token
        start = lowered.find(written, end)
        places.append(None if start < 0 else (start, start + len(written)))
        end = end if start < 0 else start + len(written)
    return places


@cache
def _punkt() -> PunktSentenceTokenizer:
    from nltk.tokenize.punkt import PunktParameters, PunktSentenceTokenizer

    learnt = PunktParameters()
    learnt.abbrev_types.update(ABBREVIATIONS.split())
    return PunktSentenceTokenizer(learnt)  # it takes parameters in the place of a text to learn them from


@cache
def _treebank() -> NLTKWordTokenizer:
    from nltk.tokenize.destructive import NLTKWordTokenizer

    return NLTKWordTokenizer()


@lru_cache(maxsize=10_000)
def _words(sentence: str) -> tuple[str, ...]:
    return tuple(cast("list[str]", _treebank().tokenize(sentence)))
