"""Where a client finds its pool, and with which keys: as it was told, by the environment, or by default."""

from __future__ import annotations

import os

from tfpool.addresses import admin_endpoint_for, default_endpoint, normalize_endpoint
from tfpool.errors import InvalidArgument
from tfpool.keys import ClientKeys, read_client_keys


class Endpoints:
    """``pool`` is the endpoint for requests; see :meth:`admin`."""

    def __init__(self, endpoint: str | None, admin: str | None, keys: str | os.PathLike[str] | None) -> None:
        """Raises InvalidArgument for what is no endpoint, and the errors of a key file that is not as it should be."""
        self.pool = normalize_endpoint(endpoint or os.environ.get("TFPOOL_ENDPOINT") or default_endpoint())
        self._admin = admin or (os.environ.get("TFPOOL_ADMIN") if endpoint is None else None)
        self._file = os.fspath(keys) if keys is not None else os.environ.get("TFPOOL_KEYS") or None
        self.keys_for(self.pool)

    def admin(self) -> str:
        """The endpoint for admin verbs. Raises InvalidArgument where it is not known."""
        return normalize_endpoint(self._admin or admin_endpoint_for(self.pool))

    def keys_for(self, endpoint: str) -> ClientKeys | None:
        """What proves who we are there; None where nothing has to. Raises the errors of the key file."""
        return read_client_keys(self._file) if self._file and endpoint.startswith("tcp://") else None


def positive(timeout: float) -> float:
    """Seconds that a call may take. Raises InvalidArgument."""
    if isinstance(timeout, (int, float)) and 0 < timeout < 86400:
        return timeout
    raise InvalidArgument(f"timeout: got {timeout!r}, expected seconds from 0 to 86400")
