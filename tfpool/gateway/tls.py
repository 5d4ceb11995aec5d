"""TLS as the settings have it, for HTTP."""

from __future__ import annotations

import ssl

from tfpool.errors import InvalidArgument
from tfpool.settings import GatewaySettings


def server_context(settings: GatewaySettings) -> ssl.SSLContext | None:
    """What to greet clients with; None where there is no certificate.

    Raises InvalidArgument for files that cannot be read, are something else, or do not belong together.
    """
    if settings.tls_cert is None or settings.tls_key is None:
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    _readable(settings.tls_cert, settings.tls_key)
    try:
        context.load_cert_chain(settings.tls_cert, settings.tls_key, _no_password)
    except (OSError, ValueError) as error:
        why = getattr(error, "reason", None) or error
        raise InvalidArgument(
            f"tls_cert = {settings.tls_cert}, tls_key = {settings.tls_key}: expected a certificate and its key, "
            f"as PEM and without a password: {why}"
        ) from None
    if settings.tls_client_ca is not None:
        _readable(settings.tls_client_ca)
        try:
            context.load_verify_locations(settings.tls_client_ca)
        except OSError as error:
            why = getattr(error, "reason", None) or error
            raise InvalidArgument(f"tls_client_ca = {settings.tls_client_ca}: expected PEM: {why}") from None
        context.verify_mode = ssl.CERT_REQUIRED
    return context


def _readable(*paths: str) -> None:
    for path in paths:
        try:
            with open(path, "rb"):
                pass
        except (OSError, ValueError) as error:
            raise InvalidArgument(f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}") from None


def _no_password() -> str:
    raise ValueError("it has a password")  # OpenSSL would ask for it at the terminal
