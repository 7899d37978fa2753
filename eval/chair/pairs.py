"""Two words that CHAIR reads as one, found from left to right after the words are singular."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

KEPT = """
    motor bike, motor cycle, air plane, traffic light, street light, traffic signal, stop light, fire hydrant,
    stop sign, parking meter, suit case, sports ball, baseball bat, baseball glove, tennis racket, wine glass,
    hot dog, cell phone, mobile phone, teddy bear, hair drier, potted plant, laptop computer, home plate, train
    track
"""
ANIMALS = ["bird", "cat", "dog", "horse", "sheep", "cow", "elephant", "bear", "zebra", "giraffe", "animal", "cub"]
VEHICLES = ["jet", "train"]

PAIRS: dict[str, str] = {
    **{" ".join(pair.split()): " ".join(pair.split()) for pair in KEPT.split(",")},
    # Else the qualifier would be counted as a person.
    **{f"{age} {animal}": animal for age in ("baby", "adult") for animal in ANIMALS},
    **{f"passenger {vehicle}": vehicle for vehicle in VEHICLES},
    "bow tie": "tie",
    "toilet seat": "toilet",
    "wine glas": "wine glass",  # what the singular of pattern makes of it
}


def merged(words: Sequence[str], pairs: Mapping[str, str] = PAIRS) -> list[tuple[str, int, int]]:
    """Words with the first and the last place that each came from."""
    found = []
    place = 0
    while place < len(words):
        joined = " ".join(words[place : place + 2])
        if joined in pairs:
            found.append((pairs[joined], place, place + 1))
            place += 2
        else:
            found.append((words[place], place, place))
            place += 1
    return found
