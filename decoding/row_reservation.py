"""Reservations of the rows of each request of an engine, and the limit on rows that wait."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from decoding.errors import Overloaded


@dataclass(eq=False, slots=True)
class RowReservation:
    """Rows of one request. They count as waiting until the engine marks them as running, at the first token."""

    rows: int
    is_running: bool = False


def count_waiting_rows(reservations: set[RowReservation]) -> int:
    """Count the rows that wait."""
    return sum(reservation.rows for reservation in reservations if not reservation.is_running)


@contextmanager
def reserve_rows(reservations: set[RowReservation], rows: int, max_waiting: int) -> Iterator[RowReservation]:
    """Reserve rows for the duration of a block.

    Args:
        reservations: Reservations of the engine.
        rows: Rows of the request.
        max_waiting: Maximum number of waiting rows.

    Yields:
        The reservation.

    Raises:
        Overloaded: Too many rows wait.
    """
    if count_waiting_rows(reservations) + rows > max_waiting:
        raise Overloaded("The queue is full; try again in a moment.", code="queue_full")
    reservation = RowReservation(rows)
    reservations.add(reservation)
    try:
        yield reservation
    finally:
        reservations.discard(reservation)
