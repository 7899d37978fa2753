"""Each error class of ours has a response."""

from __future__ import annotations

from decoding.errors import OnlySeenError


def test_every_error_class_has_a_spec() -> None:
    from server.errors import ERROR_SPECS

    for error in (kind for kind in OnlySeenError.__subclasses__()):
        assert any(issubclass(error, raised) for raised, _ in ERROR_SPECS), error
