"""Check of the Host header against DNS rebinding."""

from __future__ import annotations

from collections.abc import Sequence

from starlette.types import ASGIApp, Receive, Scope, Send

from server.errors import Forbidden
from server.host_names import EVERY_HOST, has_loopback_address, is_ip_address, normalize_host, parse_host_header
from server.middleware.request_body import drain_body
from server.settings import Settings

LOCAL_NAME = "localhost"


class HostMiddleware:
    """Refuses requests whose Host header names another host.

    A page of any site can have its own name resolve to a loopback address after it is loaded (DNS rebinding). The
    browser then takes the server for the site of the page, and the Host header has the name of the page. A page cannot
    choose the header. A DNS name is never an IP address, so all addresses are allowed.

    Starlette's `TrustedHostMiddleware` cannot allow all IP addresses, and does not write OpenAI's error body.
    """

    def __init__(self, app: ASGIApp, hosts: Sequence[str]) -> None:
        """Create the middleware.

        Args:
            app: The next application.
            hosts: Names of hosts that requests may have, in addition to IP addresses and localhost. "*" allows all.
        """
        self.app = app
        self.hosts = frozenset(normalize_host(host) for host in hosts)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on requests that name an allowed host.

        Raises:
            Forbidden: The request names another host.
        """
        if scope["type"] == "http" and EVERY_HOST not in self.hosts:
            for name, value in scope["headers"]:
                if name == b"host" and not self._is_allowed(host := parse_host_header(value.decode("latin-1"))):
                    await drain_body(receive)
                    raise Forbidden(
                        f"The Host header names {host[:100]!r}. This server serves IP addresses, localhost and the "
                        "hosts of --allowed-hosts only."
                    )
        await self.app(scope, receive, send)

    def _is_allowed(self, host: str) -> bool:
        host = normalize_host(host)
        return host in self.hosts or host == LOCAL_NAME or host.endswith(f".{LOCAL_NAME}") or is_ip_address(host)


def select_allowed_hosts(settings: Settings) -> list[str]:
    """Return the hosts that requests may name: those of the settings, or the default.

    By default, a server with API keys allows every host, because a page has no key. So does a server that other
    machines reach, because its operator has opened it to all that can send requests.
    """
    hosts = settings.list_allowed_hosts()
    if hosts:
        return hosts
    return [] if not settings.load_api_keys() and has_loopback_address(settings.host) else [EVERY_HOST]
