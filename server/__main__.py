"""The command `onlyseen-server`, also `python -m server`."""

from __future__ import annotations

import signal
import sys
from contextlib import suppress
from importlib.metadata import version
from typing import TYPE_CHECKING

from pydantic import ValidationError

from server.process_setup import build_ssl_options, freeze_heap, raise_file_limit
from server.settings import Settings

if TYPE_CHECKING:
    import uvicorn
    from fastapi import FastAPI

    from server.service import Service

KEEP_ALIVE = 75  # idle seconds; longer than those of clients and proxies, so that they never reuse a closing connection


def main() -> None:
    """Load the settings and serve. A bad setting ends the process with one line."""
    if "--version" in sys.argv[1:]:
        print(f"OnlySeen {version('onlyseen')}")
        return
    try:
        settings = Settings.load(sys.argv[1:])
    except ValidationError as error:
        sys.exit("\n".join(": ".join((*map(str, detail["loc"]), detail["msg"])) for detail in error.errors()))
    except (OSError, ValueError) as error:
        sys.exit(str(error))
    serve(settings)


def serve(settings: Settings) -> None:
    """Serve until a stop signal. If the data folder is in use or the engine cannot start, exit with the reason."""
    # Heavy imports, which --help does without.
    from sse_starlette.sse import AppStatus

    from server.app import create_app
    from server.batch.data_folder import DataFolderError
    from server.graceful_shutdown import DrainingServer
    from server.observability import logs
    from server.startup_banner import format_banner

    logs.configure_logging()
    raise_file_limit()
    # After SIGTERM, streams continue until they end or the shutdown timeout expires.
    AppStatus.disable_automatic_graceful_drain()  # type: ignore[no-untyped-call]
    app = create_app(settings)
    try:
        app.state.batch_store.folder.open()  # before the model is loaded
    except DataFolderError as error:
        sys.exit(str(error))
    service: Service = app.state.service
    config = create_config(app, settings)
    server, socket = DrainingServer(config, service), config.bind_socket()
    socket.listen(config.backlog)  # connections that come before the server runs wait instead of being refused
    host, port = socket.getsockname()[:2]
    scheme = "http" if settings.ssl_certfile is None else "https"
    url = f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"

    def report_startup(service: Service) -> None:
        freeze_heap()
        if service.startup_error is None:
            strategy = "agla" if settings.matcher_source else "vcd"
            has_keys = bool(settings.load_api_keys())
            banner = format_banner(url, settings.name, strategy, is_embedded=settings.is_embedded, needs_key=has_keys)
            print(banner, flush=True)
        else:
            server.should_exit = True

    service.on_startup_finished = report_startup
    print(f"OnlySeen listens on {url} and is loading {settings.name} ...", flush=True)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # uvicorn raises SIGTERM again after the shutdown
    with suppress(KeyboardInterrupt):
        server.run(sockets=[socket])
    if service.startup_error is not None:
        sys.exit(f"The engine did not start: {service.startup_error}")


def create_config(app: FastAPI, settings: Settings) -> uvicorn.Config:
    """Create uvicorn's configuration.

    Args:
        app: The application.
        settings: The settings.

    Returns:
        The configuration, without WebSockets, whose protocol has none of the deadlines.
    """
    import uvicorn

    from server.timed_protocol import create_protocol

    return uvicorn.Config(
        app,
        host=settings.host,
        port=settings.port,
        access_log=False,
        http=create_protocol(settings.header_timeout),
        ws="none",
        log_level="warning",
        timeout_graceful_shutdown=settings.shutdown_timeout,
        timeout_keep_alive=KEEP_ALIVE,
        **build_ssl_options(settings.ssl_certfile, settings.ssl_keyfile, settings.ssl_password),
    )


if __name__ == "__main__":
    main()
