"""Write `decoding/claims/nouns.txt.gz`, the noun table of the claim extractor, from WordNet 3.0.

Debian's package `wordnet-base` has the database: `apt install wordnet-base`, then `python -m install.noun_table`. A
line of the table is a lemma and four digits. The first three are shares from 0 to 9: of concrete nouns among its noun
senses, of verbs against nouns, and of adjectives against nouns. The last is 1 where it names a place rather than a
thing. Frequencies are WordNet's counts of senses in tagged text. The licence allows copies that carry its notice
(`decoding/claims/WORDNET_LICENSE`).
"""

from __future__ import annotations

import gzip
import sys
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

WORDNET = Path("/usr/share/wordnet")
Weights = list[tuple[int, float]]
TABLE = Path(__file__).parent.parent / "decoding" / "claims" / "nouns.txt.gz"
# Lexicographer files of synsets that name things with a visible extent (lexnames(5WN)).
CONCRETE = {5: "animal", 6: "artifact", 8: "body", 13: "food", 15: "location", 17: "object", 18: "person", 20: "plant",
            27: "substance"}  # fmt: skip
TOP_LEVEL = 3  # the file of the roots; these of its words name visible things
ROOTS = {"person", "animal", "plant", "food"}
PHYSICAL_ENTITY = "00001930"
# location, area (a part of a building), facility, establishment, road, path, geological formation, body of water, land
PLACES = ("00027167", "02735688", "03315023", "03297735", "04096066", "03899328", "09287968", "09225146", "09334396")
MAX_ENTRY_WORDS = 3
PHRASE_SHARE = 0.3  # least concrete share at which a lemma of several words is kept


def find_proper_lemmas(wordnet: Path) -> set[str]:
    """Return the lemmas that WordNet writes with a capital letter in every synset: names, not kinds of things."""
    lower: set[str] = set()
    capital: set[str] = set()
    for line in (wordnet / "data.noun").read_text().splitlines():
        if line.startswith(" "):
            continue
        fields = line.split()
        for word in fields[4 : 4 + 2 * int(fields[3], 16) : 2]:
            (lower if word == word.lower() else capital).add(word.lower())
    return capital - lower


def weigh_senses(wordnet: Path) -> tuple[dict[str, dict[str, Weights]], dict[str, Weights]]:
    """Weigh the senses of each lemma.

    Returns:
        Lemma and part of speech -> (lexicographer file, weight) of each sense, where a sense weighs its count in tagged
        text and the inverse of its rank. Lemma -> the same for nouns by rank alone: the tagged text is not about
        pictures, and there `table` is mostly one of numbers.
    """
    counts: dict[str, int] = {}
    for line in (wordnet / "cntlist.rev").read_text().splitlines():
        key, _, count = line.split()
        counts[key] = int(count)
    weights: dict[str, dict[str, Weights]] = defaultdict(lambda: defaultdict(list))
    ranked: dict[str, Weights] = {}
    parts = {"noun": "1", "verb": "2", "adj": "35"}
    files = {offset: file for part in parts for offset, file in map_synset_files(wordnet, part).items()}
    tagged: dict[tuple[str, str, int], int] = defaultdict(int)
    for key, count in counts.items():
        lemma, rest = key.split("%")
        kind, file, *_ = rest.split(":")
        part = next((name for name, kinds in parts.items() if kind in kinds), None)
        if part:
            tagged[lemma, part, int(file)] += count
    for part in parts:
        for line in (wordnet / f"index.{part}").read_text().splitlines():
            if line.startswith(" "):
                continue
            fields = line.split()
            lemma, senses = fields[0], int(fields[2])
            for rank, offset in enumerate(fields[-senses:], 1):
                weights[lemma][part].append((files[part, offset], 1 / rank))
            if part == "noun":
                ranked[lemma] = list(weights[lemma][part])
            for file in {file for file, _ in weights[lemma][part]}:
                weights[lemma][part].append((file, tagged[lemma, part, file]))
    return weights, ranked


def map_synset_files(wordnet: Path, part: str) -> dict[tuple[str, str], int]:
    """Map the offset of each synset of a part of speech to its lexicographer file."""
    lines = (wordnet / f"data.{part}").read_text().splitlines()
    return {(part, line[:8]): int(line.split()[1]) for line in lines if not line.startswith(" ")}


def read_noun_synsets(wordnet: Path) -> tuple[dict[str, list[str]], dict[str, list[str]]]:
    """Return the hypernyms of each noun synset, by offset, and the synsets of each lemma, the most frequent first."""
    hypernyms: dict[str, list[str]] = {}
    for line in (wordnet / "data.noun").read_text().splitlines():
        if line.startswith(" "):
            continue
        fields = line.split()
        pointers = fields[4 + 2 * int(fields[3], 16) :]
        count = int(pointers[0])
        hypernyms[fields[0]] = [pointers[2 + 4 * k] for k in range(count) if pointers[1 + 4 * k] in ("@", "@i")]
    senses = {
        fields[0]: fields[-int(fields[2]) :]
        for line in (wordnet / "index.noun").read_text().splitlines()
        if not line.startswith(" ")
        for fields in [line.split()]
    }
    return hypernyms, senses


def find_synsets_below(roots: Iterable[str], hypernyms: dict[str, list[str]]) -> set[str]:
    """Return the synsets that have one of the roots among their hypernyms, roots included."""
    found = set(roots)
    while new := {synset for synset, above in hypernyms.items() if found & set(above)} - found:
        found |= new
    return found


def is_place(senses: list[str], physical: set[str], places: set[str]) -> bool:
    """Whether the most frequent of the senses that are physical entities is a place."""
    return next((synset in places for synset in senses if synset in physical), False)


def compute_concrete_share(lemma: str, senses: Weights) -> float:
    """Return the share of the weight that lies on concrete senses."""
    concrete = {*CONCRETE, *([TOP_LEVEL] if lemma in ROOTS else [])}
    return sum(weight for file, weight in senses if file in concrete) / sum(weight for _, weight in senses)


def to_digit(share: float) -> str:
    return str(min(9, round(10 * share)))


def main() -> None:
    """Write the table."""
    wordnet = Path(sys.argv[1]) if len(sys.argv) > 1 else WORDNET
    proper, rows = find_proper_lemmas(wordnet), []
    weights, ranked = weigh_senses(wordnet)
    synsets, senses = read_noun_synsets(wordnet)
    places, physical = find_synsets_below(PLACES, synsets), find_synsets_below([PHYSICAL_ENTITY], synsets)
    for lemma, parts in weights.items():
        words = lemma.split("_")
        if "noun" not in parts or lemma in proper or len(words) > MAX_ENTRY_WORDS:
            continue
        if not all(word.replace("-", "").replace("'", "").isalpha() for word in words):
            continue
        place = is_place(senses[lemma], physical, places)
        noun, verb, adjective = (sum(weight for _, weight in parts[part]) for part in ("noun", "verb", "adj"))
        concrete = max(compute_concrete_share(lemma, parts["noun"]), compute_concrete_share(lemma, ranked[lemma]))
        if len(words) > 1 and concrete < PHRASE_SHARE:
            continue
        digits = (
            to_digit(concrete)
            + to_digit(verb / (noun + verb))
            + to_digit(adjective / (noun + adjective))
            + str(int(place))
        )
        rows.append(f"{lemma.replace('_', ' ')}\t{digits}")
    # No time stamp in the archive: the same database gives the same file.
    with TABLE.open("wb") as file, gzip.GzipFile("", "wb", 9, file, mtime=0) as archive:
        archive.write("\n".join(sorted(rows)).encode())
    print(f"{len(rows)} lemmas, {TABLE.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
