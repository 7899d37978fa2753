"""Rows that wait until the model takes them, and how many may."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from decoding.errors import Overloaded


@dataclass(eq=False, slots=True)
class Place:
    """Of an ask's rows; taken as soon as its engine sees that they run."""

    rows: int
    taken: bool = False


def waiting(places: set[Place]) -> int:
    """Rows."""
    return sum(place.rows for place in places if not place.taken)


@contextmanager
def queued(places: set[Place], rows: int, most: int) -> Iterator[Place]:
    """A place for these rows, for as long as the block lasts.

    Raises:
        Overloaded: the queue is full.
    """
    if waiting(places) + rows > most:
        raise Overloaded("The queue is full; try again in a moment.", code="queue_full")
    place = Place(rows)
    places.add(place)
    try:
        yield place
    finally:
        places.discard(place)
