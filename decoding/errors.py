"""What can go wrong with a request, and whose fault it is.

OnlySeenError
├── BadRequest      the client can mend it: the message says how, `param` names the field
├── Unsupported     nothing is wrong with the request, but this engine or model cannot do it
├── Overloaded      come back later
└── EngineFailed    ours
"""


class OnlySeenError(Exception):
    """`message` is for the client: no path, no address, no traceback. `param` is the request field, dotted."""

    def __init__(self, message: str, *, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.code = code


class BadRequest(OnlySeenError):
    """The request cannot be run as it stands."""


class Unsupported(OnlySeenError):
    """This engine, or the model it runs, lacks what the request needs."""


class Overloaded(OnlySeenError):
    """The engine's queue is full."""


class EngineFailed(OnlySeenError):
    """The engine broke; the request may be sent again."""
