"""Objects that captions mention."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eval.benchmarks.chair.object_extraction import Variant, build_extractor, build_fixed_extractor
from eval.benchmarks.chair.score import CaptionScore
from eval.benchmarks.chair.vocabulary import ObjectVocabulary
from eval.benchmarks.nltk_data import is_installed
from eval.errors import EvaluationError
from tests.eval.coco_data import OFFICIAL_SYNONYMS

TABLE = """\
person, man, woman, child, people, baby, passenger, adult, policeman
bus, minibus
car, taxi
motorcycle, scooter,  motor bike, motor cycle, motorbike
airplane, plane, jet
train, locomotive
truck, lorry
bench
dog, puppy, doggie
cat
sheep, lamb
bear
tie, bow, bow tie
skis, ski
sports ball, ball
tennis racket, racket
wine glass
cup
knife, knive
hot dog
cake,  cheesecake, cupcake
chair, seat, stool
toilet, potty
dining table, table, desk
couch, sofa, settee, chesterfield \n\
traffic light, street light, stop light
tv, television
laptop, computer, laptop computer
cell phone, mobile phone, phone, iPhone
oven, stove, stove top oven
mouse
scissors
donut, doughnut
orange
vase
toothbrush
hair drier, hairdryer
teddy bear, teddybear
"""


# caption: words of the original, its length in tokens, words of the fixed variant
MENTIONS: dict[str, tuple[list[str], int, list[str]]] = {
    "": ([], 0, []),
    "A bus and two buses.": (["bus"], 6, ["bus", "bus"]),
    "A minibus.": ([], 3, ["minibus"]),
    "Two men, a woman and people": (["man", "woman", "person"], 7, ["man", "woman", "people"]),
    "children and policemen": (["child", "policeman"], 3, ["child", "policeman"]),
    "wine glasses and a wine glass": (["wine glass", "wine glass"], 4, ["wine glass", "wine glass"]),
    "a pair of skis, one ski": (["ski", "ski"], 7, ["skis", "ski"]),
    "tennis rackets": (["racket"], 2, ["tennis racket"]),
    "a sports ball": (["ball"], 3, ["sports ball"]),
    "knives, scissors and mice": (["knife", "scissors", "mouse"], 5, ["knife", "scissors", "mouse"]),
    "two ties and a bow tie": (["tie"], 5, ["tie", "bow tie"]),
    "The seat of the toilet is up.": (["toilet"], 8, ["toilet"]),
    "a toilet seat and a seat": (["toilet"], 5, ["toilet seat"]),
    "a seat and a stool": (["seat", "stool"], 5, ["seat", "stool"]),
    "a hot dog and a dog": (["hot dog", "dog"], 5, ["hot dog", "dog"]),
    "hot dogs for dogs": (["hot dog", "dog"], 3, ["hot dog", "dog"]),
    "a baby bear, an adult sheep": (["bear", "sheep"], 5, ["baby bear", "adult sheep"]),
    "a passenger train": (["train"], 2, ["passenger train"]),
    "a baby": (["baby"], 2, ["baby"]),
    "home plate beside the train tracks": ([], 4, []),
    "a motor bike and a motorbike": (["motorbike"], 5, ["motor bike", "motorbike"]),
    "two motor cycles": (["motor cycle"], 2, ["motor cycle"]),
    "cheesecakes and cupcakes": (["cupcake"], 3, ["cheesecake", "cupcake"]),
    "an iPhone, a mobile phone": (["mobile phone"], 5, ["iphone", "mobile phone"]),
    "a stove top oven": (["stove", "oven"], 4, ["stove top oven"]),
    "a lorry on the settee, a doughnut": (["lorry", "settee", "doughnut"], 8, ["lorry", "settee", "doughnut"]),
    "couches, vases, toothbrushes": (["couch", "vase", "toothbrush"], 5, ["couch", "vase", "toothbrush"]),
    "Street lights and a stop light": (["street light", "stop light"], 4, ["street light", "stop light"]),
    "a hair dryer, hair drier": (["hair drier"], 5, ["hair drier"]),
    "a fire truck at a dining table": (["truck", "table"], 7, ["truck", "dining table"]),
    "the dog's bowl, dogs' bowls": (["dog", "dog"], 8, ["dog", "dog"]),
    "doggies": ([], 1, ["doggie"]),
    "DOG! Dog? (dog) \u201cdog\u201d dog.": (["dog"] * 5, 12, ["dog"] * 5),
    "dog.cat dog-cat dog/cat": ([], 3, []),
    "an orange cat": (["orange", "cat"], 3, ["orange", "cat"]),
    "There is no dog here.": (["dog"], 6, []),
    "no dogs or cats, a car": (["dog", "cat", "car"], 7, ["car"]),
    "without a cat or a dog": (["cat", "dog"], 6, []),
    "There isn't any car, not only a bus": (["car"], 10, ["bus"]),
    "a stop, a stop-light": ([], 5, ["stop light"]),
    "a laptop computer and computers": (["laptop computer", "computer"], 4, ["laptop computer", "computer"]),
    "teddy bears and teddybears": (["teddy bear", "teddybear"], 3, ["teddy bear", "teddybear"]),
    "a chesterfield": (["chesterfield"], 2, ["chesterfield"]),
    "a dog\u2014a bench": (["bench"], 3, ["dog", "bench"]),
    "a **dog** and a 'cat'": ([], 6, ["dog", "cat"]),
}


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory: pytest.TempPathFactory) -> ObjectVocabulary:
    file = tmp_path_factory.mktemp("vocabulary") / "synonyms.txt"
    file.write_text(TABLE)
    return ObjectVocabulary.load(file)


@pytest.mark.parametrize("caption", MENTIONS, ids=repr)
def test_mentions_are_found_in_order(vocabulary: ObjectVocabulary, caption: str) -> None:
    words, length, fixed = MENTIONS[caption]
    found = build_extractor("original", vocabulary)(caption)
    assert [mention.word for mention in found.mentions] == words
    assert found.length == length
    assert [mention.word for mention in build_fixed_extractor(vocabulary)(caption).mentions] == fixed


@pytest.mark.skipif(not OFFICIAL_SYNONYMS.exists(), reason="the official table of synonyms is missing")
@pytest.mark.parametrize("caption", [each for each in MENTIONS if each not in ("doggies",)], ids=repr)
def test_official_table_finds_the_same_mentions(caption: str) -> None:
    found = build_extractor("original", ObjectVocabulary.load(OFFICIAL_SYNONYMS))(caption)
    extra = {"bowl", "container"}  # not in the table of this file
    assert [mention.word for mention in found.mentions if mention.word not in extra] == MENTIONS[caption][0]


def test_mentions_have_the_indices_of_their_tokens(vocabulary: ObjectVocabulary) -> None:
    """The official indices are off by one after an ignored seat. These are not."""
    found = build_extractor("original", vocabulary)("The seat of the toilet: wine glasses.")
    assert [(mention.word, mention.first, mention.last) for mention in found.mentions] == [
        ("toilet", 4, 4),
        ("wine glass", 6, 7),
    ]
    assert found.tokens[6:8] == ("wine", "glasses")


@given(
    st.lists(
        st.sampled_from(["a", "the", "no", "of", "toilet", "seat", "dog", "dogs", "hot", "bow", "tie", ",", "."]),
        max_size=12,
    )
)
def test_mentions_are_words_of_the_table(words: list[str]) -> None:
    vocabulary = ObjectVocabulary(
        {"dog": "dog", "hot dog": "hot dog", "tie": "tie", "bow": "tie", "toilet": "toilet", "seat": "chair"}
    )
    for variant in ("original", "fixed"):
        found = build_extractor(variant, vocabulary)(" ".join(words))
        assert {mention.node for mention in found.mentions} <= set(vocabulary.values())
        assert found.length <= len(found.tokens)
        assert all(0 <= mention.first <= mention.last < len(found.tokens) for mention in found.mentions)


@pytest.mark.skipif(is_installed("wordnet"), reason="the data of nltk is installed")
def test_the_lemma_variant_names_the_command_that_installs_its_data(
    score_variant: Callable[[Variant], list[CaptionScore]],
) -> None:
    with pytest.raises(EvaluationError, match=r"python -m nltk\.downloader wordnet"):
        score_variant("lemma")


def test_the_lemma_variant_lemmatizes_by_part_of_speech(
    score_variant: Callable[[Variant], list[CaptionScore]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The tagger and the lemmatizer are stubs, because the data of nltk may be missing."""
    import nltk
    from nltk.stem import WordNetLemmatizer

    def lemmatize(self: object, word: str, pos: str = "n") -> str:
        return {("buses", "n"): "bus", ("walks", "v"): "walk"}.get((word, pos), word)

    monkeypatch.setattr("eval.benchmarks.nltk_data.is_installed", lambda package: True)
    monkeypatch.setattr(nltk, "pos_tag", lambda words: [(word, "VBZ" if word == "walks" else "NNS") for word in words])
    monkeypatch.setattr(WordNetLemmatizer, "lemmatize", lemmatize)
    extract = build_extractor("lemma", ObjectVocabulary({"dog": "dog", "bench": "bench"}))
    assert extract("a **dog**\u2014a bench").tokens == ("a", "*", "*", "dog", "*", "*", "\u2014a", "bench")
    found = score_variant("lemma")
    assert [mention.word for mention in found[1].objects.mentions] == ["bus", "bus"]
    assert found[0].ground_truth == {"dog", "person", "bus"}
