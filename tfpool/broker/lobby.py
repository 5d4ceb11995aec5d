"""Requests for a version that no worker has ever loaded: they wait here, unread, until its signatures are known.

Each version has a room of its own, and so has a model whose versions have not been looked for yet.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import NamedTuple

from tfpool.broker.registry import NotLoaded
from tfpool.errors import Cancelled, DeadlineExceeded, ResourceExhausted, TfpoolError
from tfpool.wire.keys import RequestKey
from tfpool.wire.messages import Group

NEVER = float("inf")


class Request(NamedTuple):
    """A group of requests as it came in, with the frames that are its own; times are monotonic seconds."""

    client: bytes
    key: RequestKey
    group: Group
    frames: list[bytes] | None
    arrived: float

    @property
    def deadline(self) -> float:
        return self.arrived + self.group.budget_ms / 1000

    @property
    def rows(self) -> int:
        return self.group.count * max(1, self.group.rows)

    @property
    def nbytes(self) -> int:
        return sum(map(len, self.frames or ()))


@dataclass(slots=True)
class _Room:
    requests: list[Request] = field(default_factory=list)
    rows: int = 0


class Lobby:
    """``admit`` takes requests once they can be resolved, ``refuse`` answers those that cannot. Together they hold at
    most ``budget`` bytes."""

    def __init__(
        self,
        admit: Callable[[Request], None],
        refuse: Callable[[bytes, list[tuple[int, int]], TfpoolError, str], None],
        budget: int,
    ) -> None:
        self._admit = admit
        self._budget = budget
        self._held = 0
        self._refuse = refuse
        self._rooms: dict[Hashable, _Room] = {}
        self.expiry = NEVER

    @property
    def occupied(self) -> bool:
        return bool(self._rooms)

    def park(self, why: NotLoaded, request: Request) -> None:
        """Keep requests until what they need is there. Raises ResourceExhausted where as many wait as may."""
        room = self._rooms.get(why.room) or _Room()
        most = why.settings.batching.max_queue_rows
        if room.rows + request.rows > most:
            raise ResourceExhausted(f"{why.message}, and {room.rows} rows wait for it; max_queue_rows is {most}")
        if self._held + request.nbytes > self._budget:
            raise ResourceExhausted(
                f"{why.message}, and {self._held} bytes wait for such models; queue_budget is {self._budget}"
            )
        self._held += request.nbytes
        self._rooms[why.room] = room
        room.requests.append(request)
        room.rows += request.rows
        self.expiry = min(self.expiry, request.deadline)

    def open(self, room: Hashable) -> None:
        """What is waited for is there: let the requests in."""
        for request in self._empty(room):
            try:
                self._admit(request)
            except TfpoolError as error:
                self._answer(request, error)

    def refuse(self, room: Hashable, error: TfpoolError) -> None:
        """What is waited for will not come."""
        for request in self._empty(room):
            self._answer(request, error)

    def expire(self, now: float) -> None:
        """Refuse what has waited past its deadline."""
        if now < self.expiry:
            return
        late = DeadlineExceeded("the deadline passed while the model was being loaded")
        self._leave(lambda request: request.deadline <= now, late)
        waiting = (request.deadline for room in self._rooms.values() for request in room.requests)
        self.expiry = min(waiting, default=NEVER)

    def cancel(self, client: bytes, ranges: list[tuple[int, int]]) -> None:
        """Refuse groups that a client has cancelled as a whole; of others, every request is answered."""

        def cancelled(request: Request) -> bool:
            first, count = request.group.first, request.group.count
            hits = sum(max(0, min(f + n, first + count) - max(f, first)) for f, n in ranges)
            return request.client == client and hits >= count

        self._leave(cancelled, Cancelled("cancelled by the client"))

    def forget(self, client: bytes) -> None:
        """Nobody will hear the answers of a client."""
        self._leave(lambda request: request.client == client, None)

    def _leave(self, goes: Callable[[Request], bool], error: TfpoolError | None) -> None:
        for handle, room in list(self._rooms.items()):
            gone = [request for request in room.requests if goes(request)]
            if not gone:
                continue
            room.requests = [request for request in room.requests if not goes(request)]
            room.rows = sum(request.rows for request in room.requests)
            if not room.requests:
                del self._rooms[handle]
            for request in gone:
                self._held -= request.nbytes
                if error is not None:
                    self._answer(request, error)

    def _empty(self, room: Hashable) -> list[Request]:
        left = self._rooms.pop(room, None)
        requests = left.requests if left else []
        self._held -= sum(request.nbytes for request in requests)
        return requests

    def _answer(self, request: Request, error: TfpoolError) -> None:
        group = request.group
        self._refuse(request.client, [(group.first, group.count)], error, request.key.model)
