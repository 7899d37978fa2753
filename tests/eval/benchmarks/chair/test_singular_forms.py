"""The singular of pattern."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eval.benchmarks.chair.singular_forms import singularize

PAIRS = """
    bus:bu buses:bus airbus:airbu minibuses:minibus glass:glas glasses:glass tennis:tenni sports:sport skis:ski
    scissors:scissors sheep:sheep people:person salespeople:salesperson men:man women:woman policemen:policeman
    specimen:speciman children:child grandchildren:grandchild oxen:ox geese:goose mongooses:mongoose teeth:tooth
    feet:foot leaves:leaf mice:mouse lice:louse knives:knife wives:wife wolves:wolf calves:calf scarves:scarf
    hooves:hoove couches:couch benches:bench brushes:brush toothbrushes:toothbrush boxes:box sandwiches:sandwich
    dresses:dress dress:dres vases:vase houses:house ties:ty pies:py cookies:cookies doggies:doggies
    collies:collies babies:baby puppies:puppy ponies:pony taxis:taxi buffaloes:buffalo potatoes:potato shoes:shoe
    radios:radio series:series species:species news:news christmas:christmas data:datum pizza:pizza pita:pitum
    media:medium cacti:cactus taxi:taxi our:my hour:hmy four:fmy colour:colmy is:is was:wa has:ha this:thi
    analyses:analysis reanalyses:reanalyasis bases:basis roses:rose noses:nose s:s us:u ':'s 's:' dogs':dog's
    mothers-in-law:mother-in-law cats-and-dogs:cats-and-dog t-shirts:t-shirt axes:axe taxes:taxe crises:crisis
    ses:se gas:ga fruit:fruit rings:ring ings:ings movies:movie zombies:zombies cellulose:cellulose doses:dose
    poses:pose hoses:hose moses:mosis
"""
SINGULARS = dict(pair.split(":") for pair in PAIRS.split())


@pytest.mark.parametrize("word", SINGULARS)
def test_singular_has_the_errors_of_pattern(word: str) -> None:
    assert singularize(word) == SINGULARS[word]


@given(st.text(max_size=12))
def test_any_token_has_a_singular(word: str) -> None:
    assert isinstance(singularize(word), str)
