"""Rows that wait for their first token, and how many may."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from decoding.errors import Overloaded


@dataclass(eq=False, slots=True)
class Place:
    """Rows that wait for their first token."""

    rows: int
    taken: bool = False


@contextmanager
def queued(places: set[Place], rows: int, most: int) -> Iterator[Place]:
    """A place for these rows, until their first token is there.

    Raises:
        Overloaded: the queue is full.
    """
    if sum(place.rows for place in places if not place.taken) + rows > most:
        raise Overloaded("The queue is full; try again in a moment.", code="queue_full")
    place = Place(rows)
    places.add(place)
    try:
        yield place
    finally:
        places.discard(place)
