"""Headers and answers as client and broker write and read them, beside plain MessagePack of the same values; and the
whole of a client's part, beside plain futures."""

from __future__ import annotations

import time
from concurrent.futures import Future
from typing import Any

import msgpack
import numpy as np

from bench.micro.pair import Pair, timed
from tfpool.client.core import Core
from tfpool.types import DType
from tfpool.wire.keys import OutputKey, RequestKey, Tensor, pack_output_key, pack_request_key
from tfpool.wire.messages import Group, Piece, Verb, decode, decode_answer, decode_groups, encode

REQUESTS = 64
_KEY = pack_request_key(RequestKey("half_plus_two", 0, "", "", (Tensor("x", DType.FLOAT, ()),), by_rows=True))
_OUTPUTS = pack_output_key(OutputKey((Tensor("y", DType.FLOAT, ()),), by_rows=True))
_TIMING = (120, 45, REQUESTS)
_PIECES = 8
_ROW = np.ones(1, np.float32)
_CROSSOVER = 1 << 16


def pairs() -> list[Pair]:
    """A request of its own, many that could not be made one group, and an answer of some pieces."""
    one = [_group(0)]
    many = [_group(n) for n in range(REQUESTS)]
    pieces = [Piece(100 * n, REQUESTS // _PIECES, 1) for n in range(_PIECES)]
    answer = [_OUTPUTS, pieces, _TIMING, None, 1]
    return [
        Pair("a header", timed(lambda: _predict(one)), timed(lambda: _plain(one))),
        Pair(f"a header of {REQUESTS} groups", timed(lambda: _predict(many)), timed(lambda: _plain(many))),
        Pair(f"an answer of {_PIECES} pieces", timed(lambda: _answer(answer)), timed(lambda: _plain(answer))),
        Pair(f"{REQUESTS} requests, client", timed(_Trip().once), timed(_futures)),
    ]


def _group(first: int) -> Group:
    return Group(_KEY, first, 1, 1, 30_000 - 10 * first, 0, None, None, 1)


def _predict(groups: list[Group]) -> list[Group]:
    return decode_groups(decode(encode(Verb.PREDICT, groups))[1])


def _answer(answer: list[Any]) -> object:
    return decode_answer(decode(encode(Verb.ANSWER, answer))[1])


def _plain(body: object) -> object:
    return msgpack.unpackb(msgpack.packb(body))


class _Trip:
    """Requests leave a client's core, and one message answers them all."""

    def __init__(self) -> None:
        self._core = Core(lambda reply, timeout: None, _CROSSOVER, lambda: None)
        self._answers = np.zeros(REQUESTS, np.float32).tobytes()
        self._next = 0

    def once(self) -> None:
        now = time.monotonic()
        replies = [self._core.submit("half_plus_two", {"x": _ROW}, now + 30.0) for _ in range(REQUESTS)]
        self._core.flush(now)
        answer = encode(Verb.ANSWER, [_OUTPUTS, [Piece(self._next, REQUESTS, 1)], _TIMING, None, 1])
        self._next += REQUESTS
        self._core.receive([answer, self._answers])
        for reply in replies:
            reply.result(0)


def _futures() -> None:
    futures: list[Future[object]] = [Future() for _ in range(REQUESTS)]
    msgpack.unpackb(msgpack.packb([_KEY, 0, REQUESTS]))
    for future in futures:
        future.set_result(_ROW)
    for future in futures:
        future.result(0)
