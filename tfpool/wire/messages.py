"""Every message of tfpool, in one place.

Client and broker speak ZeroMQ multipart. The first frame is a header, the rest are tensor buffers::

    +---------+------+------------------------+   +----------+   +----------+
    | version | verb | MessagePack array      |   | buffer 0 |   | buffer 1 |  ...
    | 1 byte  | 1 B  | (the message's fields) |   +----------+   +----------+
    +---------+------+------------------------+

A PREDICT carries *groups*: requests of one client that were waiting together and agree on the key, the rows
each and the deadline. Their ids are consecutive and their buffers are concatenated, so that a group costs the
broker about as much as one request. An ANSWER likewise carries all that one batch holds for one client.

The broker and its workers ring each other over a Unix socket pair ("doorbell"), a MessagePack array a packet
whose first element is the verb; the tensors lie in shared memory. The supervisor speaks to its children in the
same way.
"""

from __future__ import annotations

from enum import IntEnum, IntFlag
from typing import Any, NamedTuple

import msgpack

from tfpool.errors import InvalidArgument, TfpoolError

VERSION = 1
MAX_HEADER_BYTES = 1 << 20
MAX_ANSWER_BYTES = 1 << 30
MAX_GROUPS = 4096
MAX_COUNT = 1 << 16
MAX_ROWS = 1 << 24
MAX_BUDGET_MS = 24 * 3600 * 1000
MAX_FRAMES = 1 << 14
MAX_DEPTH = 32
_MAX_ID = 1 << 62
_ALL_FLAGS = 3


class Verb(IntEnum):
    """Client to broker and back."""

    HELLO = 1
    WELCOME = 2
    PREDICT = 3
    CANCEL = 4
    ANSWER = 5
    ERROR = 6
    CALL = 7
    RESULT = 8
    BYE = 9


class Bell(IntEnum):
    """Broker to worker (below 32) and worker to broker."""

    ATTACH = 1
    MAP = 2
    UNMAP = 3
    LOAD = 4
    UNLOAD = 5
    RUN = 6
    STOP = 7
    ADOPT = 8
    REFORM = 9
    READY = 32
    WARMING = 33
    LOADED = 34
    LOAD_FAILED = 35
    UNLOADED = 36
    DONE = 37
    FAILED = 38
    GAUGE = 39
    LATE = 40
    BEAT = 41
    REFORMED = 42
    REFORM_FAILED = 43


class Control(IntEnum):
    """Supervisor to its children (below 32) and back."""

    FORK = 1
    WORKER = 2
    REAPED = 3
    HALTED = 4
    DRAIN = 5
    KILL = 6
    COMPILE = 7
    UP = 32
    FORKED = 33
    EXITED = 34
    SHUTDOWN = 35
    RECYCLE = 36
    DRAINED = 37
    PROGRESS = 38
    READY = 39
    ORDER = 40


class Flag(IntFlag):
    """What a client says of a group. SOFT: its budget is only how long it waits; the model's own deadline counts too.
    AGAIN: it was sent before, over a connection that was lost, and may have run."""

    SOFT = 1
    AGAIN = 2


class Region(NamedTuple):
    """Bytes in the sender's arena."""

    offset: int
    nbytes: int


class Group(NamedTuple):
    """Requests ``first .. first + count - 1``, each of ``rows`` rows (0: whole tensors, no rows).

    ``regions`` is None when the tensors follow as frames, else one region per input; ``reply`` is the region
    that the caller keeps free for the outputs, if any; ``flags`` are :class:`Flag`.
    """

    key: bytes
    first: int
    count: int  # type: ignore[assignment]  # tuple.count is not missed
    rows: int
    budget_ms: int
    priority: int
    regions: tuple[Region, ...] | None
    reply: Region | None
    flags: int = 0


class Piece(NamedTuple):
    """Answered requests ``first .. first + count - 1`` of ``rows`` rows each (0: whole tensors)."""

    first: int
    count: int  # type: ignore[assignment]  # tuple.count is not missed
    rows: int


class Hello(NamedTuple):
    """A client's offer of its arena: ``/proc/<pid>/fd/<fd>``, ``nbytes`` long, beginning with ``nonce``."""

    pid: int
    fd: int
    nbytes: int
    nonce: bytes


class Answer(NamedTuple):
    """Outputs of ``pieces``; ``spec`` is a packed :class:`tfpool.wire.keys.OutputKey`.

    ``regions`` is None when the outputs follow as frames, else they lie in the client's arena.
    ``timing`` is (microseconds queued, microseconds run, rows in the batch), ``version`` the one that ran.
    """

    spec: bytes
    pieces: list[Piece]
    timing: tuple[int, int, int]
    regions: tuple[Region, ...] | None
    version: int


class Error(NamedTuple):
    """The failure of some requests, or of a call; another try may do better after ``retry_ms`` (0: nobody knows)."""

    pieces: list[tuple[int, int]]
    code: int
    message: str
    retry_ms: int = 0


class Gauge(NamedTuple):
    """Bytes that a worker holds: resident ones, those that no other process has, its part of all (a shared page
    divided by those who share it: PSS), and those on its GPU (None: it has none, or that does not tell)."""

    rss: int
    unique: int
    pss: int
    gpu: int | None = None


class Call(NamedTuple):
    """A verb of the control plane: ``method`` with named arguments."""

    id: int
    method: str
    arguments: dict[str, Any]
    budget_ms: int


def encode(verb: Verb, body: object) -> bytes:
    """The header frame of a message."""
    packed: bytes = msgpack.packb(body)
    return bytes((VERSION, verb)) + packed


def encode_error(pieces: list[tuple[int, int]], error: TfpoolError) -> bytes:
    """The header frame of an ERROR."""
    retry_ms = 0 if error.retry_after is None else max(1, int(error.retry_after * 1000))
    return encode(Verb.ERROR, [pieces, int(error.code), error.message, retry_ms])


def decode(header: bytes, limit: int = MAX_HEADER_BYTES) -> tuple[int, Any]:
    """Split a header frame of at most ``limit`` bytes into its verb and its unpacked body.

    Raises InvalidArgument for anything that is not such a frame.
    """
    if len(header) < 3:
        raise InvalidArgument(f"truncated header: got {len(header)} bytes, expected at least 3")
    if len(header) > limit:
        raise InvalidArgument(f"header too long: got {len(header)} bytes, expected at most {limit}")
    if header[0] != VERSION:
        raise InvalidArgument(f"protocol version: got {header[0]}, expected {VERSION}")
    return header[1], unpack(memoryview(header)[2:], limit)


def pack(body: object) -> bytes:
    """One doorbell or control packet."""
    packed: bytes = msgpack.packb(body)
    return packed


def unpack(data: bytes | memoryview, limit: int = MAX_HEADER_BYTES) -> Any:
    """Unpack MessagePack within the wire's limits.

    Raises InvalidArgument for malformed, truncated, trailing or oversized data.
    """
    try:
        return msgpack.unpackb(
            data,
            max_str_len=limit,
            max_bin_len=limit,
            max_array_len=1 << 17,
            max_map_len=1 << 14,
            max_ext_len=0,
        )
    except (ValueError, TypeError, msgpack.UnpackException, RecursionError) as error:
        raise InvalidArgument(f"malformed MessagePack: {type(error).__name__} {str(error)[:200]}") from None


def check_depth(value: Any) -> Any:
    """What was unpacked, if it is nested at most 32 levels deep: Python's own recursion has limits too.

    Messages whose every element is checked for its type need no such look. Raises InvalidArgument.
    """
    layer = [value]
    for _ in range(MAX_DEPTH + 1):
        inner = [item for outer in layer if type(outer) is list for item in outer]
        inner += [item for outer in layer if type(outer) is dict for pair in outer.items() for item in pair]
        if not inner:
            return value
        layer = inner
    raise InvalidArgument(f"nested more than {MAX_DEPTH} levels deep")


def decode_groups(body: Any) -> list[Group]:
    """The groups of a PREDICT body. Raises InvalidArgument."""
    if type(body) is not list or not 0 < len(body) <= MAX_GROUPS:
        raise InvalidArgument(f"predict: expected 1 to {MAX_GROUPS} groups")
    return [_group(fields) for fields in body]


def _group(fields: Any) -> Group:
    if type(fields) is not list or len(fields) != 9:
        raise InvalidArgument("predict: a group has 9 fields")
    key, first, count, rows, budget_ms, priority, regions, reply, flags = fields
    if type(key) is not bytes:
        raise InvalidArgument(f"predict: the key is {type(key).__name__}, expected binary")
    _whole("first id", first, 0, _MAX_ID)
    _whole("count", count, 1, MAX_COUNT)
    _whole("rows", rows, 0, MAX_ROWS)
    _whole("budget_ms", budget_ms, 0, MAX_BUDGET_MS)
    _whole("priority", priority, -100, 100)
    if rows == 0 and count != 1:
        raise InvalidArgument(f"predict: whole tensors travel one request a group, got {count}")
    if regions is not None:
        if count != 1:
            raise InvalidArgument(f"predict: arena references travel one request a group, got {count}")
        if type(regions) is not list:
            raise InvalidArgument("predict: regions are an array")
        regions = tuple(_region(region) for region in regions)
    _whole("flags", flags, 0, _ALL_FLAGS)
    room = None if reply is None else _region(reply)
    return Group(key, first, count, rows, budget_ms, priority, regions, room, flags)


def decode_hello(body: Any) -> Hello | None:
    """A client's arena offer, or None when it has none. Raises InvalidArgument."""
    if body is None:
        return None
    if type(body) is not list or len(body) != 4 or type(body[3]) is not bytes or len(body[3]) != 16:
        raise InvalidArgument("hello: expected [pid, fd, nbytes, 16-byte nonce]")
    pid, fd, nbytes, nonce = body
    _whole("pid", pid, 1, 1 << 31)
    _whole("fd", fd, 0, 1 << 31)
    return Hello(pid, fd, _whole("nbytes", nbytes, 4096, 1 << 40), nonce)


def decode_cancel(body: Any) -> list[tuple[int, int]]:
    """Ranges (first, count) of cancelled ids. Raises InvalidArgument."""
    if type(body) is not list or len(body) > MAX_COUNT:
        raise InvalidArgument("cancel: expected an array of [first, count]")
    ranges = []
    for item in body:
        if type(item) is not list or len(item) != 2:
            raise InvalidArgument("cancel: expected an array of [first, count]")
        ranges.append((_whole("first id", item[0], 0, _MAX_ID), _whole("count", item[1], 1, MAX_COUNT)))
    return ranges


def decode_call(body: Any) -> Call:
    """Raises InvalidArgument."""
    if type(body) is not list or len(body) != 4:
        raise InvalidArgument("call: expected [id, method, arguments, budget_ms]")
    number, method, arguments, budget_ms = check_depth(body)
    if type(method) is not str or type(arguments) is not dict or not all(type(name) is str for name in arguments):
        raise InvalidArgument("call: expected a method name and named arguments")
    return Call(_whole("id", number, 0, _MAX_ID), method, arguments, _whole("budget_ms", budget_ms, 0, MAX_BUDGET_MS))


def decode_answer(body: Any) -> Answer:
    """The client's side trusts its broker; only the shape is restored."""
    spec, pieces, timing, regions, version = body
    return Answer(
        spec,
        [Piece(*piece) for piece in pieces],
        (timing[0], timing[1], timing[2]),
        None if regions is None else tuple(Region(*region) for region in regions),
        version,
    )


def decode_error(body: Any) -> Error:
    pieces, code, message, retry_ms = body
    return Error([(first, count) for first, count in pieces], code, message, retry_ms)


def decode_gauge(fields: Any) -> Gauge:
    """Raises InvalidArgument."""
    if type(fields) is not list or len(fields) != 4:
        raise InvalidArgument("gauge: expected [rss, unique, pss, gpu]")
    rss, unique, pss = (_whole("gauge", nbytes, 0, 1 << 60) for nbytes in fields[:3])
    return Gauge(rss, unique, pss, None if fields[3] is None else _whole("gauge", fields[3], 0, 1 << 60))


def _region(value: Any) -> Region:
    if type(value) is not list or len(value) != 2:
        raise InvalidArgument("a region is [offset, nbytes]")
    return Region(_whole("offset", value[0], 0, 1 << 40), _whole("nbytes", value[1], 0, 1 << 40))


def _whole(what: str, value: Any, least: int, most: int) -> int:
    if type(value) is not int or not least <= value <= most:
        got = type(value).__name__ if isinstance(value, list | dict) else str(value)[:40]
        raise InvalidArgument(f"{what}: got {got}, expected a whole number from {least} to {most}")
    return value
