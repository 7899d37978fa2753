"""Settings of the server's process."""

from __future__ import annotations

import gc
import ssl
from contextlib import suppress
from pathlib import Path
from typing import Any

TLS_1_2_CIPHERS = "ECDHE+AESGCM:ECDHE+CHACHA20"  # with forward secrecy; older versions are off, and 1.3 has its own


def raise_file_limit() -> None:
    """Raise the soft limit on open files to the hard one, because every open connection is a file."""
    with suppress(ImportError, ValueError, OSError):
        import resource  # not on Windows

        _, hard_limit = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard_limit, hard_limit))


def freeze_heap() -> None:
    """Exempt the objects that exist now from garbage collection.

    They belong to the imported libraries and to the model, and live as long as the process. A collection that visits
    them stops the server for half a second.
    """
    gc.collect()
    gc.freeze()


def check_certificate(certificate: Path, key: Path | None, password: str | None) -> None:
    """Check that a TLS certificate and its private key can be loaded.

    Args:
        certificate: File with the certificate and its chain.
        key: File with the private key; None: it is in the certificate's file.
        password: Password of the private key.

    Raises:
        ValueError: A file is missing, or the key does not belong to the certificate or needs another password.
    """
    for name, file in (("ssl_certfile", certificate), ("ssl_keyfile", key)):
        try:
            if file is not None:
                file.read_bytes()
        except OSError as error:
            raise ValueError(f"{name}: {file} cannot be read ({error.strerror})") from None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        context.load_cert_chain(certificate, key, lambda: password or "")  # without it, OpenSSL asks at the terminal
    except (ssl.SSLError, ValueError) as error:
        reason = getattr(error, "reason", None) or "it cannot be read"
        raise ValueError(
            f"ssl_certfile: {certificate} and its private key cannot be used ({reason.lower().replace('_', ' ')}); "
            "they must be PEM files that belong together, and an encrypted key needs ssl_keyfile_password"
        ) from None


def build_ssl_options(certificate: Path | None, key: Path | None, password: str | None) -> dict[str, Any]:
    """Build the options of uvicorn for TLS. Empty without a certificate."""
    if certificate is None:
        return {}
    return {
        "ssl_certfile": certificate,
        "ssl_keyfile": key,
        "ssl_keyfile_password": password,
        "ssl_ciphers": TLS_1_2_CIPHERS,
    }
