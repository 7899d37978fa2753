"""The singular of a word as CLiPS pattern 3.6 forms it, errors included. CHAIR is defined with these errors.

pattern is no longer on the package index under that name, so this module has its rules. The errors decide which words
CHAIR counts: `bus` becomes `bu` and is never found, while `buses` is. `glass` becomes `glas`, `tennis` `tenni`, `ties`
`ty`, `hour` `hmy`. The first rule that matches is applied, also to verbs and names.
"""

from __future__ import annotations

import re
from functools import lru_cache

INVARIANT = """
    bison bream breeches britches carp chassis christmas clippers cod contretemps corps debris diabetes djinn
    eland elk flounder gallows georgia graffiti headquarters herpes high-jinks homework innings jackanapes
    mackerel measles mews mumps news pincers pliers proceedings rabies salmon scissors series shears species swine
    swiss trout tuna whiting wildebeest advice bread butter cheese electricity equipment fruit furniture garbage
    gravel happiness information ketchup knowledge love luggage mathematics mayonnaise meat mustard progress
    research rice sand software understanding water
"""

IE = """
    alergie auntie beanie birdie bogie bombie collie cookie cutie doggie eyrie freebie goonie groupie hankie
    hippie hoagie hottie indie junkie laddie laramie lingerie meanie newbie nightie oldie ^pie pixie quickie
    reverie rookie softie sortie stoolie sweetie techie ^tie toughie valkyrie veggie weenie yuppie zombie
"""
UNTOUCHED_ENDINGS = tuple(f"{word}s" for word in IE.split())

IRREGULAR_PAIRS = """
    atlantes:atlas atlases:atlas axes:axe beeves:beef brethren:brother children:child corpora:corpus
    corpuses:corpus ephemerides:ephemeris feet:foot ganglia:ganglion geese:goose genera:genus genii:genie
    graffiti:graffito helves:helve kine:cow leaves:leaf loaves:loaf men:man mongooses:mongoose monies:money
    moves:move mythoi:mythos numena:numen occipita:occiput octopodes:octopus opera:opus opuses:opus our:my oxen:ox
    penes:penis penises:penis people:person sexes:sex soliloquies:soliloquy teeth:tooth testes:testis
    trilbys:trilby turves:turf zoa:zoon
"""
IRREGULAR = dict(pair.split(":") for pair in IRREGULAR_PAIRS.split())

PREPOSITION_WORDS = """
    about above across after among around at athwart before behind below beneath beside besides between betwixt
    beyond but by during except for from in into near of off on onto out over since till to under until unto upon
    with
"""
PREPOSITIONS = frozenset(PREPOSITION_WORDS.split())

# (ending, replacement). pattern applies some of the -ves rules only to lower case.
ANY_CASE, LOWER = re.IGNORECASE, re.NOFLAG
RULES = [
    (re.compile(ending, case), replacement)
    for ending, replacement, case in (
        (r"(.)ae$", r"\1a", ANY_CASE),
        (r"(.)itis$", r"\1itis", ANY_CASE),
        (r"(.)eaux$", r"\1eau", ANY_CASE),
        (r"(quiz)zes$", r"\1", ANY_CASE),
        (r"(matr)ices$", r"\1ix", ANY_CASE),
        (r"(ap|vert|ind)ices$", r"\1ex", ANY_CASE),
        (r"^(ox)en", r"\1", ANY_CASE),
        (r"(alias|status)es$", r"\1", ANY_CASE),
        (r"([octop|vir])i$", r"\1us", ANY_CASE),
        (r"(cris|ax|test)es$", r"\1is", ANY_CASE),
        (r"(shoe)s$", r"\1", ANY_CASE),
        (r"(o)es$", r"\1", ANY_CASE),
        (r"(bus)es$", r"\1", ANY_CASE),
        (r"([m|l])ice$", r"\1ouse", ANY_CASE),
        (r"(x|ch|ss|sh)es$", r"\1", ANY_CASE),
        (r"(m)ovies$", r"\1ovie", ANY_CASE),
        (r"(.)ombies$", r"\1ombie", ANY_CASE),
        (r"(s)eries$", r"\1eries", ANY_CASE),
        (r"([^aeiouy]|qu)ies$", r"\1y", ANY_CASE),
        (r"([aeo]l)ves$", r"\1f", LOWER),
        (r"([^d]ea)ves$", r"\1f", LOWER),
        (r"arves$", "arf", LOWER),
        (r"erves$", "erve", LOWER),
        (r"([nlw]i)ves$", r"\1fe", LOWER),
        (r"([lr])ves$", r"\1f", ANY_CASE),
        (r"([aeo])ves$", r"\1ve", LOWER),
        (r"(sive)s$", r"\1", ANY_CASE),
        (r"(tive)s$", r"\1", ANY_CASE),
        (r"(hive)s$", r"\1", ANY_CASE),
        (r"([^f])ves$", r"\1fe", ANY_CASE),
        (r"(^analy)ses$", r"\1sis", ANY_CASE),
        # The second group doubles the a of other words in -analyses.
        (r"((a)naly|ba|diagno|parenthe|progno|synop|the)ses$", r"\1\2sis", ANY_CASE),
        (r"(.)opses$", r"\1opsis", ANY_CASE),
        (r"(.)yses$", r"\1ysis", ANY_CASE),
        (r"(h|d|r|o|n|b|cl|p)oses$", r"\1ose", ANY_CASE),
        (r"(fruct|gluc|galact|lact|ket|malt|rib|sacchar|cellul)ose$", r"\1ose", ANY_CASE),
        (r"(.)oses$", r"\1osis", ANY_CASE),
        (r"([ti])a$", r"\1um", ANY_CASE),
        (r"(n)ews$", r"\1ews", ANY_CASE),
        (r"s$", "", ANY_CASE),
    )
]

# pattern tests whether an invariant word ends in the given word, not the other way round.
UNCHANGED = frozenset(word[start:] for word in INVARIANT.split() for start in range(len(word) + 1))


@lru_cache(maxsize=100_000)
def singularize(word: str) -> str:
    """Return the result of pattern.en.singularize for one token."""
    first, hyphen, rest = word.partition("-")
    if hyphen and rest.split("-")[0] in PREPOSITIONS:
        return f"{singularize(first)}-{rest}"
    if word.endswith("'"):
        return singularize(word[:-1]) + "'s"
    lowered = word.lower()
    if lowered in UNCHANGED:
        return word
    if lowered.endswith(UNTOUCHED_ENDINGS):
        return lowered
    for plural, replacement in IRREGULAR.items():
        if lowered.endswith(plural):
            return re.sub(f"{plural}$", replacement, word, flags=re.IGNORECASE)
    for ending, replacement in RULES:
        if ending.search(word):
            return ending.sub(replacement, word)
    return word
