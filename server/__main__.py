"""onlyseen-server, also `python -m server`."""

from __future__ import annotations

import signal
import sys
from contextlib import suppress
from typing import TYPE_CHECKING

from pydantic import ValidationError

from server.settings import Settings

if TYPE_CHECKING:
    from server.service import Service

KEEP_ALIVE = 75  # seconds of silence; longer than clients and proxies keep a connection, lest they use one that closes


def main() -> None:
    try:
        settings = Settings.load(sys.argv[1:])
    except ValidationError as error:
        sys.exit("\n".join(": ".join((*map(str, each["loc"]), each["msg"])) for each in error.errors()))
    except (OSError, ValueError) as error:
        sys.exit(str(error))
    serve(settings)


def serve(settings: Settings) -> None:
    """Until it is told to stop. A server whose engine cannot start ends with its reason."""
    import uvicorn  # not before --help has been answered
    from sse_starlette.sse import AppStatus

    from server import logs
    from server.app import create_app
    from server.greeting import greeting
    from server.leaving import LeavingServer

    logs.configure()
    # Streams go on after SIGTERM, until they end or their time is up.
    AppStatus.disable_automatic_graceful_drain()  # type: ignore[no-untyped-call]
    app = create_app(settings)
    config = uvicorn.Config(
        app,
        host=settings.host,
        port=settings.port,
        access_log=False,
        http="h11",  # httptools, if it is there, takes headers of any length
        log_level="warning",
        timeout_graceful_shutdown=settings.shutdown_timeout,
        timeout_keep_alive=KEEP_ALIVE,
    )
    server, socket = LeavingServer(config, app.state.service), config.bind_socket()
    socket.listen(config.backlog)  # who comes before the server runs waits, and is not turned away
    host, port = socket.getsockname()[:2]
    url = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"

    def settled(service: Service) -> None:
        if service.failure is None:
            strategy = "agla" if settings.matcher_source else "vcd"
            print(greeting(url, settings.name, strategy), flush=True)
        else:
            server.should_exit = True

    app.state.service.on_settled = settled
    print(f"OnlySeen listens on {url} and is loading {settings.name} ...", flush=True)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # uvicorn sends it to itself again when it is done
    with suppress(KeyboardInterrupt):
        server.run(sockets=[socket])
    if app.state.service.failure is not None:
        sys.exit(f"The engine did not start: {app.state.service.failure}")


if __name__ == "__main__":
    main()
