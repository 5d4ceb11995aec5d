from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tfpool.broker.lobby import NEVER, Lobby, Request
from tfpool.broker.registry import NotLoaded, Version
from tfpool.errors import Cancelled, DeadlineExceeded, NotFound, ResourceExhausted, TfpoolError
from tfpool.settings import BatchingSettings, ModelSettings
from tfpool.types import DType, ModelKey
from tfpool.wire.keys import RequestKey, Tensor
from tfpool.wire.messages import Group

SETTINGS = ModelSettings("m", "/m", batching=BatchingSettings(max_queue_rows=10))
KEY = RequestKey("m", 0, "", "", (Tensor("x", DType.FLOAT, ()),), True)


class Front:
    """What a lobby does with the requests, by their first numbers."""

    def __init__(self) -> None:
        self.admitted: list[int] = []
        self.refused: dict[int, TfpoolError] = {}
        self.again: TfpoolError | None = None
        self.lobby = Lobby(self.admit, self.refuse, 1 << 20)

    def admit(self, request: Request) -> None:
        if self.again is not None:
            raise self.again
        self.admitted.append(request.group.first)

    def refuse(self, client: bytes, pieces: list[tuple[int, int]], error: TfpoolError, model: str) -> None:
        assert model == "m"
        for first, count in pieces:
            self.refused.update(dict.fromkeys(range(first, first + count), error))


def room(handle: int | None = 1) -> NotLoaded:
    version = Version(ModelKey("m", 1, handle), "/m/1", SETTINGS) if handle is not None else None
    return NotLoaded(SETTINGS, version)


def request(first: int, count: int = 1, rows: int = 1, seconds: float = 5.0, client: bytes = b"c") -> Request:
    return Request(client, KEY, Group(b"", first, count, rows, int(seconds * 1000), 0, None, None), [b""], 100.0)


def test_a_room_for_each_version_and_for_each_model() -> None:
    front = Front()
    front.lobby.park(room(1), request(1))
    front.lobby.park(room(2), request(2))
    front.lobby.park(room(None), request(3))
    front.lobby.open(2)
    assert front.admitted == [2]
    front.lobby.refuse("m", NotFound("gone"))
    assert list(front.refused) == [3]
    front.lobby.open(1)
    front.lobby.open(1)
    front.lobby.open(7)
    assert front.admitted == [2, 1]
    assert not front.lobby.occupied


def test_only_so_many_rows_wait() -> None:
    front = Front()
    with pytest.raises(ResourceExhausted, match="m:1 is not loaded yet, and 0 rows wait for it; max_queue_rows is 10"):
        front.lobby.park(room(), request(1, 11))
    assert not front.lobby.occupied, "nobody waits"
    front.lobby.park(room(), request(1, 2, 4))
    with pytest.raises(ResourceExhausted, match="and 8 rows wait for it"):
        front.lobby.park(room(), request(3, 3))
    front.lobby.park(room(), request(3, 2, 0))
    with pytest.raises(ResourceExhausted):
        front.lobby.park(room(), request(5))
    front.lobby.park(room(2), request(6, 10))
    front.lobby.cancel(b"c", [(1, 2)])
    front.lobby.park(room(), request(20, 8))
    assert set(front.refused) == {1, 2}


def test_deadlines() -> None:
    front = Front()
    assert front.lobby.expiry == NEVER
    for first, seconds in ((1, 3.0), (2, 1.0), (3, 2.0)):
        front.lobby.park(room(first), request(first, seconds=seconds))
    assert front.lobby.expiry == 101.0
    front.lobby.expire(100.9)
    assert not front.refused
    front.lobby.expire(102.0)
    assert {first: type(error) for first, error in front.refused.items()} == dict.fromkeys((2, 3), DeadlineExceeded)
    assert front.lobby.expiry == 103.0
    front.lobby.open(1)
    front.lobby.expire(103.0)
    assert (front.admitted, front.lobby.expiry) == ([1], NEVER)


def test_a_group_is_cancelled_as_a_whole() -> None:
    front = Front()
    front.lobby.park(room(), request(10, 4))
    front.lobby.park(room(), request(10, 4, client=b"other"))
    front.lobby.cancel(b"c", [(8, 3), (12, 1)])
    assert not front.refused, "half of it"
    front.lobby.cancel(b"c", [(8, 4), (12, 9)])
    assert {type(error) for error in front.refused.values()} == {Cancelled}
    assert set(front.refused) == {10, 11, 12, 13}
    front.lobby.open(1)
    assert front.admitted == [10], "the other's"


def test_clients_that_leave_hear_nothing() -> None:
    front = Front()
    front.lobby.park(room(), request(1))
    front.lobby.forget(b"c")
    assert not front.lobby.occupied
    assert not front.refused


def test_who_cannot_be_let_in_is_told() -> None:
    """Say, since what it waits for next is full. The others go on."""
    front = Front()
    front.lobby.park(room(), request(1))
    front.lobby.park(room(), request(2))
    front.again = ResourceExhausted("full")
    front.lobby.open(1)
    assert front.refused == {1: front.again, 2: front.again}
    assert not front.lobby.occupied


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3), st.integers(1, 4), st.integers(1, 9)), max_size=40))
def test_everybody_is_answered_once(moves: list[tuple[int, int, int, int]]) -> None:
    front, parked, now = Front(), set(), 100.0
    for number, (what, handle, count, seconds) in enumerate(moves):
        first = number * 10
        if what == 0:
            try:
                front.lobby.park(room(handle), request(first, count, seconds=seconds))
                parked.add(first)
            except ResourceExhausted:
                pass
        elif what == 1:
            front.lobby.open(handle)
        elif what == 2:
            now += seconds
            front.lobby.expire(now)
        else:
            front.lobby.cancel(b"c", [(handle * 10, 10 * count)])
    for handle in range(4):
        front.lobby.open(handle)
    answered = [*front.admitted, *(first for first in front.refused if first % 10 == 0)]
    assert sorted(answered) == sorted(parked)
