"""Who may call the gateway: bearer tokens and what they allow, and which pages a browser may call it from.

A file of tokens has lines of ``ROLE TOKEN`` or ``ROLE TOKEN NAME``; the roles are monitor, predict and admin, each
allows what those before it do. A line that begins with ``#`` is a comment. The file may change at any time.
"""

from __future__ import annotations

import os
import re
import socket
import time
from hashlib import sha256
from hmac import compare_digest
from ipaddress import ip_address
from typing import NoReturn

from tfpool.errors import InvalidArgument, PermissionDenied, TfpoolError, Unauthenticated
from tfpool.gateway.http import Access, Headers, first
from tfpool.gateway.tls import server_context
from tfpool.keys import READ_BY_OTHERS, check_name, lines
from tfpool.settings import GatewaySettings
from tfpool.telemetry import log

LOOK_SECONDS = 1.0
ROLES = {"monitor": Access.MONITOR, "predict": Access.PREDICT, "admin": Access.ADMIN}
_TOKEN = re.compile(r"[A-Za-z0-9._~+/-]+=*", re.ASCII)
Tokens = tuple[tuple[bytes, Access], ...]
"""Digests of tokens, and what they allow."""


def read_tokens(path: str) -> Tokens:
    """The file that ``[gateway] tokens`` names.

    Raises NotFound, PermissionDenied where others may read it, InvalidArgument for anything but such a file.
    """
    found: dict[bytes, Access] = {}
    for number, line in lines(path, READ_BY_OTHERS):
        words = line.split()
        if len(words) not in (2, 3):
            _fail(path, number, f"got {len(words)} words, expected ROLE TOKEN or ROLE TOKEN NAME")
        role, token, *name = words
        if role not in ROLES:
            _fail(path, number, f"expected a role first: {', '.join(ROLES)}")  # what stands there may be a token
        if not _TOKEN.fullmatch(token):
            _fail(path, number, "expected a token of letters, digits and any of '-._~+/', '=' at its end")
        if name:
            try:
                check_name(name[0])
            except InvalidArgument as error:
                _fail(path, number, error.message)
        digest = sha256(token.encode()).digest()
        if digest in found:
            _fail(path, number, "got the same token twice")
        found[digest] = ROLES[role]
    if not found:
        raise InvalidArgument(f"{path}: got no token, expected at least one")
    return tuple(found.items())


def check_files(settings: GatewaySettings) -> None:
    """Raises InvalidArgument where a gateway could not start with its files."""
    try:
        if settings.tokens is not None:
            read_tokens(settings.tokens)
        server_context(settings)
    except TfpoolError as error:
        raise InvalidArgument(error.message) from None


class Keeper:
    """Knows the tokens; without any, everybody may do everything, but no page that a browser got from elsewhere may
    change the pool: not even one whose host's name leads here. ``address`` is where the gateway listens."""

    def __init__(self, settings: GatewaySettings, address: str | None = None) -> None:
        self._path = settings.tokens
        self._origins = settings.cors_origins
        own = (address or "").rpartition(":")[0]
        self._names = {name.lower() for name in ("localhost", socket.gethostname(), own) if name}
        self._tokens: Tokens | None = None
        self._stamp: tuple[int, ...] = ()
        self._look_at = 0.0
        self._log = log.get("gateway")
        if self._path is not None:
            self._stamp = _stamp(self._path)
            self._tokens = read_tokens(self._path)

    def check(self, headers: Headers, wanted: Access) -> Access:
        """What the caller may do. Raises Unauthenticated, or PermissionDenied for less than ``wanted``."""
        if self._tokens is None:
            if wanted is Access.ADMIN:
                self._check_page(headers)
            return Access.ADMIN
        now = time.monotonic()
        if now >= self._look_at:
            self._look_at = now + LOOK_SECONDS
            self._look()
        access = self._access(first(headers, b"authorization"))
        if access < wanted:
            if access is Access.OPEN:
                raise Unauthenticated("expected a token of this server: Authorization: Bearer TOKEN")
            raise PermissionDenied(f"got a token with the role {_role(access)}, expected {_role(wanted)}")
        return access

    def _access(self, said: bytes) -> Access:
        """What a token allows, OPEN for none. Takes as long for one that is nearly right as for any other."""
        scheme, _, token = said.partition(b" ")
        access = Access.OPEN
        if scheme.lower() == b"bearer":
            digest = sha256(token.strip()).digest()
            for known, allowed in self._tokens or ():
                if compare_digest(known, digest):
                    access = allowed
        return access

    def _look(self) -> None:
        """Read the file again if it has changed; one that is broken changes nothing."""
        assert self._path is not None
        stamp = _stamp(self._path)
        if stamp != self._stamp:
            self._stamp = stamp
            try:
                self._tokens = read_tokens(self._path)
            except TfpoolError as error:
                self._log.error("tokens.refused", error=error.message)
            else:
                self._log.info("tokens.read", file=self._path, tokens=len(self._tokens))

    def _check_page(self, headers: Headers) -> None:
        """A browser says which page asks, and with no token to show that must be one of ours, at a name that is ours:
        whoever runs a name server can have another name lead here."""
        origin = first(headers, b"origin").decode("latin-1").lower()
        if not origin or "*" in self._origins or origin in self._origins:
            return
        host = first(headers, b"host").decode("latin-1").lower()
        if origin.partition("://")[2] != host:
            raise PermissionDenied(f"got origin {origin[:80]!r}, expected this server's own page; see cors_origins")
        name = re.sub(r":\d*$", "", host)
        if name not in self._names and not _is_address(name):
            raise PermissionDenied(f"got host {host[:80]!r}, expected an address of this server; see cors_origins")


def _is_address(host: str) -> bool:
    try:
        ip_address(host.strip("[]"))
    except ValueError:
        return False
    return True


def _role(access: Access) -> str:
    return access.name.lower()


def _stamp(path: str) -> tuple[int, ...]:
    try:
        status = os.stat(path)
    except OSError:
        return ()
    return status.st_mtime_ns, status.st_size, status.st_ino


def _fail(path: str, number: int, problem: str) -> NoReturn:
    raise InvalidArgument(f"{path}:{number}: {problem}")
