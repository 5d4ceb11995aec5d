"""One HTTP request of a load. Imports next to nothing: peers' environments read it too."""

from __future__ import annotations

import http.client
from collections.abc import Mapping
from dataclasses import dataclass

from bench.errors import WrongAnswer

_PATIENCE_SECONDS = 30.0


@dataclass(frozen=True)
class Post:
    """Where it goes (``host:port`` and path), with what."""

    address: str
    path: str
    body: bytes
    headers: Mapping[str, str]

    def once(self) -> bytes:
        """Send it on a connection of its own, and give what comes back.

        Raises WrongAnswer for another status than 200, and OSError where nobody listens.
        """
        connection = http.client.HTTPConnection(self.address, timeout=_PATIENCE_SECONDS)
        try:
            connection.request("POST", self.path, self.body, dict(self.headers))
            answer = connection.getresponse()
            content = answer.read()
        except http.client.HTTPException as error:
            raise WrongAnswer(f"{self.path}: got {error!r}, expected an answer over HTTP") from None
        finally:
            connection.close()
        if answer.status != 200:
            raise WrongAnswer(f"{self.path}: got {answer.status} {content[:200]!r}, expected 200")
        return content

    def head(self) -> bytes:
        """Request line and headers as they go over a kept connection."""
        lines = [f"POST {self.path} HTTP/1.1", f"Host: {self.address}", f"Content-Length: {len(self.body)}"]
        lines += [f"{name}: {value}" for name, value in self.headers.items()]
        return "\r\n".join([*lines, "", ""]).encode("latin-1")
