"""``[gateway]`` as people write it -> :class:`tfpool.settings.GatewaySettings`."""

from __future__ import annotations

from tfpool.config_model import names
from tfpool.config_toml import Table, budget, number, path_from, text, texts, whole
from tfpool.settings import GatewaySettings

KEYS = names(GatewaySettings)
PATHS = ("tokens", "tls_cert", "tls_key", "tls_client_ca")


def read(table: Table, directory: str) -> GatewaySettings:
    """The settings of a table; paths start at ``directory``. Raises InvalidArgument."""
    defaults = GatewaySettings()
    cert = table.read("tls_cert", path_from(directory), None)
    key = table.read("tls_key", path_from(directory), None)
    authority = table.read("tls_client_ca", path_from(directory), None)
    for name, value, other in (("tls_cert", cert, key), ("tls_key", key, cert), ("tls_client_ca", authority, cert)):
        if value is not None and other is None:
            table.fail(name, "got it without the others, expected tls_cert and tls_key (and tls_client_ca), or neither")
    return GatewaySettings(
        table.read("processes", whole(1, 256), None),
        table.read("tokens", path_from(directory), None),
        cert,
        key,
        authority,
        table.read("cors_origins", texts, ()),
        table.read("max_body", budget, defaults.max_body),
        table.read("read_s", number(0.1, 86_400), defaults.read_s),
        table.read("timeout_s", number(0.001, 86_400), defaults.timeout_s),
        table.read("idle_s", number(0.1, 86_400), defaults.idle_s),
        table.read("otlp_endpoint", text, None),
    )
