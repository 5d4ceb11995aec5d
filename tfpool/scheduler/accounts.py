"""What each client has with the pool, and all of them together: rows that are not answered yet, and their memory."""

from __future__ import annotations

from dataclasses import dataclass

from tfpool.scheduler.work import Segment

NO_LIMIT = 1 << 62
_MANY = 1024


@dataclass(frozen=True, slots=True)
class Limits:
    """Of one client, and of all together; bytes are those of tensors that travel in messages."""

    client_rows: int = NO_LIMIT
    client_bytes: int = NO_LIMIT
    total_bytes: int = NO_LIMIT


@dataclass(slots=True)
class Account:
    """One client's."""

    rows: int = 0
    nbytes: int = 0


class Accounts:
    """By client. A segment is charged when it is admitted, and cleared piece by piece as it is answered."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.nbytes = 0
        self._clients: dict[bytes, Account] = {}
        self._purge_at = _MANY

    def charge(self, segment: Segment) -> str:
        """Take a segment in; why that is too much, if it is, and then it is not taken in."""
        account = self._clients.get(segment.client)
        if account is None:
            account = self._open(segment.client)
        rows = segment.count * segment.rows
        nbytes = rows * segment.row_bytes
        limits = self.limits
        if account.rows + rows > limits.client_rows:
            return f"a client may have {limits.client_rows} rows with the pool, this one has {account.rows}"
        if account.nbytes + nbytes > limits.client_bytes:
            return f"a client may have {limits.client_bytes} bytes with the pool, this one has {account.nbytes}"
        if self.nbytes + nbytes > limits.total_bytes:
            return f"requests of {self.nbytes} bytes wait, queue_budget is {limits.total_bytes}"
        account.rows += rows
        account.nbytes += nbytes
        self.nbytes += nbytes
        segment.account = account
        return ""

    def clear(self, segment: Segment) -> None:
        """A segment, or a piece of one, is answered."""
        account = segment.account
        if account is not None:
            rows = segment.count * segment.rows
            nbytes = rows * segment.row_bytes
            account.rows -= rows
            account.nbytes -= nbytes
            self.nbytes -= nbytes

    def rows(self) -> int:
        """Of all clients."""
        return sum(account.rows for account in self._clients.values())

    def forget(self, client: bytes) -> None:
        """A client is gone; what it had is still cleared piece by piece."""
        self._clients.pop(client, None)

    def _open(self, client: bytes) -> Account:
        if len(self._clients) >= self._purge_at:  # most clients leave without a word
            self._clients = {name: account for name, account in self._clients.items() if account.rows}
            self._purge_at = max(_MANY, 2 * len(self._clients))
        account = self._clients[client] = Account()
        return account
