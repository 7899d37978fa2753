"""Cross-origin requests of browsers (`--cors-origins`)."""

from __future__ import annotations

from starlette.datastructures import Headers
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import Response
from starlette.types import ASGIApp

from server.errors import Forbidden, build_error_response
from server.observability.metrics import Metrics
from server.observability.refusals import report_error
from server.settings import Settings

METHODS = ("GET", "HEAD", "POST", "DELETE")  # of all routes
READABLE_HEADERS = ("x-request-id", "retry-after")  # that scripts of a page can read
MAX_AGE = 600  # seconds for which a browser keeps the response to a preflight


class OriginMiddleware(CORSMiddleware):
    """Lets pages of the listed origins read responses, and answers their preflights.

    A preflight has no key, so that this middleware comes before the check of keys. It comes before `ErrorMiddleware`,
    so that a page can read errors as well. The request after the preflight passes all checks. Cookies and other
    credentials of the browser are not allowed. A script sends a key in the Authorization header.
    """

    def __init__(self, app: ASGIApp, origins: list[str], metrics: Metrics | None = None) -> None:
        """Create the middleware.

        Args:
            app: The next application.
            origins: The origins, such as "https://example.org". "*" allows all.
            metrics: Count the refused preflights; None: they are only logged.
        """
        super().__init__(
            app,
            allow_origins=origins,
            allow_methods=METHODS,
            allow_headers=["*"],
            allow_private_network=True,
            expose_headers=READABLE_HEADERS,
            max_age=MAX_AGE,
        )
        self.metrics = metrics

    def preflight_response(self, request_headers: Headers) -> Response:
        """Answer a preflight. A refusal has OpenAI's error body instead of plain text.

        Returns:
            The response.
        """
        response = super().preflight_response(request_headers)
        if response.status_code == 200:
            return response
        error = Forbidden("Pages of this origin cannot send this request. --cors-origins lists the allowed origins.")
        error_response = build_error_response(error)
        report_error(error, error_response, self.metrics)
        refusal = error_response.to_response()
        refusal.headers["vary"] = response.headers["vary"]
        return refusal


def create_cors_middleware(settings: Settings, metrics: Metrics | None = None) -> list[Middleware]:
    """Create the middleware for the origins of the settings. Empty if there are none."""
    origins = settings.list_cors_origins()
    return [Middleware(OriginMiddleware, origins=origins, metrics=metrics)] if origins else []
