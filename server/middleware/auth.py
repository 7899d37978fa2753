"""Authentication by API key. When keys are set, every route needs one, except `/health` and `/ready`."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Collection, Iterable
from typing import Annotated
from urllib.parse import urlsplit

from fastapi import Depends, Request
from starlette.types import ASGIApp, Receive, Scope, Send

from decoding.errors import OnlySeenError
from server.errors import Forbidden, Unauthorized
from server.host_names import EVERY_HOST, normalize_host, parse_host_header
from server.middleware.http import HEALTH_PATHS
from server.middleware.rate_limit import RateLimiter
from server.middleware.request_body import drain_body
from server.settings import Settings

METRICS_PATH = "/metrics"
UNLIMITED_PATHS = (METRICS_PATH, "/v1/models", "/v1/strategies")  # monitors and clients read them at any time
METRICS_FORBIDDEN = (
    "The metrics count the requests of several API keys. They need the key of --metrics-key, which is not set."
)


class ApiKeys:
    """API keys, stored as hashes and compared in constant time, each with its own rate limit.

    A server without keys is open to everyone.
    """

    def __init__(self, keys: Iterable[str], rate: str | None = None, metrics_key: str | None = None) -> None:
        """Create the keys.

        Args:
            keys: The keys of clients.
            rate: Rate limit of each of them, such as "60/minute".
            metrics_key: The key of the metrics. With two or more other keys, none of those opens them.
        """
        self._hashes = [hash_key(key.encode()) for key in keys]
        self._metrics_hash = None if metrics_key is None else hash_key(metrics_key.encode())
        self._rate_limiter = RateLimiter(rate) if rate else None

    @classmethod
    def from_settings(cls, settings: Settings) -> ApiKeys:
        metrics_key = settings.metrics_key.get_secret_value() if settings.metrics_key else None
        return cls(settings.load_api_keys(), settings.rate_limit, metrics_key)

    def needs_key(self, path: str) -> bool:
        """Return whether requests for a path need a key, unless it is open to everyone."""
        return bool(self._hashes) or (path == METRICS_PATH and self._metrics_hash is not None)

    def authenticate(self, authorization: bytes, path: str) -> str:
        """Check the Authorization header of a request, and count the request unless its path has no rate limit.

        Args:
            authorization: Value of the header.
            path: Path of the request.

        Returns:
            The owner of the request: the hash of its key.

        Raises:
            Unauthorized: The header holds no key that the path needs.
            Forbidden: The metrics need a key that is not set.
        """
        scheme, _, key = authorization.partition(b" ")
        key_hash = hash_key(key.strip())
        metrics_hash = self._metrics_hash if path == METRICS_PATH else None
        hashes = self._hashes if metrics_hash is None else [metrics_hash]
        # All hashes are compared, so that the time does not depend on which key matches.
        matches = [known for known in hashes if hmac.compare_digest(known, key_hash)]
        if scheme.lower() != b"bearer" or not matches:
            raise Unauthorized("A valid API key is needed: Authorization: Bearer <key>.")
        if metrics_hash is None:
            if path == METRICS_PATH and len(self._hashes) > 1:
                raise Forbidden(METRICS_FORBIDDEN)
            if self._rate_limiter is not None and path not in UNLIMITED_PATHS and not path.startswith("/v1/models/"):
                self._rate_limiter.count(key_hash.hex())
        return key_hash.hex()


class ApiKeyMiddleware:
    """Refuses requests without a valid key. It compares the routed path, which no Host header or query can change."""

    def __init__(self, app: ASGIApp, keys: ApiKeys, open_paths: Collection[str] = ()) -> None:
        """Create the middleware.

        Args:
            app: The next application.
            keys: The known keys.
            open_paths: Paths that need no key, in addition to `HEALTH_PATHS`.
        """
        self.app = app
        self.keys = keys
        self.open_paths = frozenset((*HEALTH_PATHS, *open_paths))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"] not in self.open_paths and self.keys.needs_key(scope["path"]):
            try:
                scope.setdefault("state", {})["owner"] = self.keys.authenticate(get_authorization(scope), scope["path"])
            except OnlySeenError:
                await drain_body(receive)
                raise
        await self.app(scope, receive, send)


async def get_owner(request: Request) -> str:
    """Return the owner of the files and batches of a request: the hash of its key, or "" on a server without keys."""
    return str(getattr(request.state, "owner", ""))


OwnerDep = Annotated[str, Depends(get_owner)]


async def refuse_other_sites(request: Request, owner: OwnerDep) -> None:
    """Refuse a request that a page of another site has sent, on a server without keys, unless its origin is listed.

    A browser sends requests with a form or without a body to any server, without a preflight. It sends a key only after
    one. It sends Sec-Fetch-Site only with HTTPS and to loopback addresses, but Origin with each of these requests.

    Raises:
        Forbidden: The browser has sent the request for a page of another site.
    """
    settings: Settings = request.app.state.service.settings
    if owner or request.headers.get("origin") in settings.list_cors_origins():
        return
    site = request.headers.get("sec-fetch-site")
    if site == "cross-site" or (site is None and has_other_origin(request)):
        await drain_body(request.receive)
        raise Forbidden("Pages of other sites cannot use this route of a server without API keys.")


SameSite = Depends(refuse_other_sites)


def has_other_origin(request: Request) -> bool:
    """Return whether the Origin header has another host than the Host header, and none of `--allowed-hosts`.

    Ports are not compared, as browsers do not compare them for Sec-Fetch-Site. A proxy may drop or replace them.
    """
    origin = request.headers.get("origin")
    if origin is None:
        return False
    try:
        origin_host = normalize_host(urlsplit(origin).hostname or "")
    except ValueError:
        return True
    settings: Settings = request.app.state.service.settings
    hosts = {parse_host_header(request.headers.get("host", "")), *settings.list_allowed_hosts()}
    return origin_host not in {normalize_host(host) for host in hosts} - {"", EVERY_HOST}


def get_authorization(scope: Scope) -> bytes:
    """Return the Authorization header, or nothing unless there is exactly one."""
    values = [value for name, value in scope["headers"] if name == b"authorization"]
    return values[0] if len(values) == 1 else b""


def hash_key(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()
