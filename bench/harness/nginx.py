"""nginx with the shipped configuration, in front of servers of a test or a measurement."""

from __future__ import annotations

import contextlib
import re
import socket
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

CONFIG = Path(__file__).parents[2] / "docker" / "nginx.conf"


@contextlib.contextmanager
def run_nginx(program: str, ports: Sequence[int], directives: str = "", listen: str = "") -> Iterator[str]:
    """Run nginx on a free port.

    Args:
        program: The program.
        ports: Ports of the servers.
        directives: Directives that are added to the section `http`.
        listen: Parameters of `listen` after the port.

    Yields:
        The URL of nginx.

    Raises:
        ValueError: nginx refuses the configuration.
    """
    with tempfile.TemporaryDirectory() as folder:
        with socket.socket() as free_socket:
            free_socket.bind(("127.0.0.1", 0))
            port = free_socket.getsockname()[1]
        upstreams = "".join(rf"server 127.0.0.1:{server}\g<options>;\n" for server in ports)
        text = re.sub(r"server server:8000(?P<options>.*);", upstreams, CONFIG.read_text())
        text = text.replace(" /tmp/", f" {folder}/").replace("listen 8080", f"listen 127.0.0.1:{port} {listen}")
        file = Path(folder) / "nginx.conf"
        file.write_text(text.replace("http {", f"http {{ {directives}", 1))
        Path(folder).chmod(0o755)  # its workers are another user
        syntax_check = subprocess.run([program, "-t", "-c", file], capture_output=True, text=True)
        if "test is successful" not in syntax_check.stderr:
            raise ValueError(syntax_check.stderr)
        with subprocess.Popen([program, "-c", file, "-g", "daemon off;"]) as handle:
            try:
                while True:
                    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)):
                        break
                yield f"http://127.0.0.1:{port}"
            finally:
                handle.terminate()
