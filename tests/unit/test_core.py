"""The client's core, without a socket: the test is its broker."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tfpool.client.core import GRACE_SECONDS, Core
from tfpool.client.ledger import MOST_LOSSES
from tfpool.client.reply import Reply
from tfpool.errors import Cancelled, DeadlineExceeded, Internal, InvalidArgument, NotFound, Unavailable
from tfpool.shm.layout import Lease
from tfpool.types import DType, dtype_of
from tfpool.wire import messages
from tfpool.wire.keys import OutputKey, RequestKey, Tensor, pack_output_key, unpack_request_key
from tfpool.wire.messages import Flag, Group, Piece, Region, Verb
from tfpool.wire.tensors import Array, Buffer, take_array, to_buffers

FAR = 1000.0
CROSSOVER = 1 << 10


def make_core() -> Core:
    return Core(lambda reply, timeout: None, CROSSOVER, lambda: None)


@pytest.fixture
def core() -> Core:
    return make_core()


def ask(core: Core, inputs: Any, *, model: str = "m", deadline: float = FAR, **options: Any) -> Reply:
    return core.submit(model, inputs, deadline, **options)


def sent(frames: list[Buffer]) -> tuple[list[tuple[Group, RequestKey, list[Array]]], list[Buffer]]:
    """The groups of a PREDICT with their key and input tensors, and the frames that are left over."""
    verb, body = messages.decode(bytes(frames[0]))
    assert verb == Verb.PREDICT
    found, rest = [], list(frames[1:])
    for group in messages.decode_groups(body):
        key = unpack_request_key(group.key)
        arrays = []
        for tensor in key.inputs if group.regions is None else ():
            many = 2 if tensor.dtype == DType.STRING else 1
            shape = (group.count * group.rows, *tensor.shape) if key.by_rows else tensor.shape
            arrays.append(take_array(tensor.dtype, shape, rest[:many]))
            del rest[:many]
        found.append((group, key, arrays))
    return found, rest


def groups_of(core: Core, now: float = 0.0) -> list[tuple[Group, RequestKey, list[Array]]]:
    (frames,) = core.flush(now)
    found, rest = sent(frames)
    assert rest == []
    return found


def answer(pieces: list[Piece], outputs: dict[str, Array], by_rows: bool = True) -> list[bytes]:
    tensors = tuple(
        Tensor(name, int(dtype_of(a.dtype)), a.shape[1:] if by_rows else a.shape) for name, a in outputs.items()
    )
    spec = pack_output_key(OutputKey(tensors, by_rows))
    frames = [bytes(buffer) for array in outputs.values() for buffer in to_buffers(np.asarray(array))]
    return [messages.encode(Verb.ANSWER, [spec, pieces, (5, 7, 9), None, 3]), *frames]


def error(pieces: Iterable[tuple[int, int]], code: int, text: str) -> list[bytes]:
    return [messages.encode(Verb.ERROR, [list(pieces), code, text, 0])]


def floats(*shape: int) -> Array:
    return np.arange(np.prod(shape, dtype=int), dtype=np.float32).reshape(shape)


# -- requests out --------------------------------------------------------------------------------------------------


def test_requests_that_agree_leave_as_one_group(core: Core) -> None:
    for i in range(5):
        ask(core, floats(2, 3) + i)
    ((group, key, (array,)),) = groups_of(core)
    assert (group.first, group.count, group.rows, group.priority, group.regions) == (0, 5, 2, 0, None)
    assert key == RequestKey("m", 0, "", "", (Tensor("", DType.FLOAT, (3,)),), True)
    assert array.tolist() == np.concatenate([floats(2, 3) + i for i in range(5)]).tolist()
    assert core.flush(0.0) == []


DIFFERENCES: list[dict[str, Any]] = [
    {"model": "n"},
    {"version": 2},
    {"label": "canary"},
    {"signature": "other"},
    {"priority": 1},
    {"deadline": FAR + 1},
    {"soft": False},
    {"inputs": floats(3, 3)},
    {"inputs": floats(2, 4)},
    {"inputs": floats(2, 3).astype(np.float64)},
    {"inputs": {"x": floats(2, 3)}},
]


@pytest.mark.parametrize("difference", DIFFERENCES)
def test_requests_that_differ_do_not_share_a_group(core: Core, difference: dict[str, Any]) -> None:
    one: dict[str, Any] = {"inputs": floats(2, 3)}
    for options in (one, one, one | difference, one):
        ask(core, **options)
    found = groups_of(core)
    assert [(g.first, g.count) for g, _, _ in found] == [(0, 2), (2, 1), (3, 1)]
    same_key = set(difference) <= {"priority", "deadline", "soft"} or difference is DIFFERENCES[7]
    assert (found[0][0].key == found[1][0].key) == same_key


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(1, 3), st.integers(0, 1)), min_size=1, max_size=40))
def test_any_mixture_arrives_in_order_with_consecutive_ids(mixture: list[tuple[int, int, int]]) -> None:
    core, inputs, replies = make_core(), [], []
    for model, rows, priority in mixture:
        inputs.append(floats(rows, 2) + len(inputs))
        replies.append(ask(core, inputs[-1], model=f"m{model}", priority=priority))
    found = groups_of(core)
    following = 0
    for group, key, (array,) in found:
        assert group.first == following
        for i in range(group.count):
            number = following + i
            assert (key.model, group.rows, group.priority) == (f"m{mixture[number][0]}", *mixture[number][1:])
            assert array[i * group.rows : (i + 1) * group.rows].tolist() == inputs[number].tolist()
        following += group.count
    assert following == len(mixture)
    kinds = [(key, group.rows, group.priority) for group, key, _ in found]
    assert all(a != b for a, b in pairwise(kinds)), "neighbours that agree are one group"


def test_the_budget_is_what_is_left_of_the_deadline(core: Core) -> None:
    ask(core, floats(1), deadline=10.0)
    ((group, _, _),) = groups_of(core, now=9.5)
    assert 500 <= group.budget_ms <= 501


def test_the_deadline_may_be_far_away(core: Core) -> None:
    ask(core, floats(1), deadline=1e12)
    ((group, _, _),) = groups_of(core)
    assert group.budget_ms == messages.MAX_BUDGET_MS


def test_very_many_requests_leave_in_messages_that_the_broker_takes(core: Core) -> None:
    for i in range(9000):
        ask(core, floats(1, 1), model=f"m{i % 2}")
    total = 0
    for frames in core.flush(0.0):
        assert len(frames) < messages.MAX_FRAMES
        found, rest = sent(frames)
        assert rest == []
        total += sum(group.count for group, _, _ in found)
    assert total == 9000


def test_inputs_are_sorted_by_name_and_copied(core: Core) -> None:
    b, a = floats(2), floats(2, 2)
    ask(core, {"b": b, "a": a})
    b += 100
    a += 100
    ((_, key, arrays),) = groups_of(core)
    assert [t.name for t in key.inputs] == ["a", "b"]
    assert [array.tolist() for array in arrays] == [floats(2, 2).tolist(), floats(2).tolist()]


def test_a_bare_array_is_copied(core: Core) -> None:
    for _ in range(2):
        array = floats(2, 2)
        ask(core, array)
        array += 100
        ((_, _, (got,)),) = groups_of(core)
        assert got.tolist() == floats(2, 2).tolist()


@pytest.mark.parametrize(
    ("inputs", "shape", "by_rows"),
    [
        (floats(0, 3), (0, 3), False),
        (np.float32(1), (), False),
        ({"x": floats(2, 3), "y": floats(3)}, (2, 3), False),
        (floats(3, 0), (0,), True),
        (np.asfortranarray(floats(3, 2)), (2,), True),
        (floats(4, 2)[::2], (2,), True),
        (floats(3).astype(">f4"), (), True),
        (np.ones(3, ml_dtypes.bfloat16), (), True),
        ([[1.0, 2.0]], (2,), True),
    ],
)
def test_arrays_of_any_kind(core: Core, inputs: Any, shape: tuple[int, ...], by_rows: bool) -> None:
    for _ in range(2):  # the second finds what the first has left
        ask(core, inputs)
        ((group, key, arrays),) = groups_of(core)
        assert (key.inputs[0].shape, key.by_rows, group.rows == 0) == (shape, by_rows, not by_rows)
        expected = next(iter(inputs.values())) if isinstance(inputs, dict) else np.asarray(inputs)
        assert arrays[0].tolist() == expected.tolist()


def test_whole_tensors_travel_alone(core: Core) -> None:
    for _ in range(3):
        ask(core, np.float32(1))
    assert [(g.count, g.rows) for g, _, _ in groups_of(core)] == [(1, 0)] * 3


def test_rows_false_adds_the_row_and_takes_it_off_again(core: Core) -> None:
    reply = ask(core, floats(3), rows=False)
    ((group, key, (array,)),) = groups_of(core)
    assert (group.rows, key.inputs[0].shape, array.shape) == (1, (3,), (1, 3))
    core.receive(answer([Piece(group.first, 1, 1)], {"y": floats(1, 5), "z": np.array([b"s"], object)}))
    assert reply.result()["y"].tolist() == floats(5).tolist()
    assert reply.result()["z"] == b"s"


def test_strings_keep_their_bytes(core: Core) -> None:
    ask(core, np.array([b"a\0", "ö", b""], object))
    ask(core, ["x", "yz", "\0"])
    ((group, key, (array,)),) = groups_of(core)
    assert (group.count, group.rows, key.inputs[0].dtype) == (2, 3, DType.STRING)
    assert array.tolist() == [b"a\0", "ö".encode(), b"", b"x", b"yz", b"\0"]


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"inputs": [[1], [2, 3]]}, "not an array"),
        ({"inputs": np.array(["2020"], "M8[D]")}, "no TensorFlow counterpart"),
        ({"inputs": np.array([1, None], object)}, "expected str or bytes"),
        ({"model": 7}, "model: got int"),
        ({"version": -1}, "version: got -1"),
        ({"version": "1"}, "version: got '1'"),
        ({"label": b"x"}, "label: got bytes"),
    ],
)
def test_what_is_no_request_is_refused_at_once(core: Core, options: dict[str, Any], problem: str) -> None:
    with pytest.raises(InvalidArgument, match=problem):
        ask(core, **({"inputs": floats(1)} | options))
    assert core.flush(0.0) == []
    assert not core.busy


# -- answers in ----------------------------------------------------------------------------------------------------


def test_an_answer_of_several_pieces(core: Core) -> None:
    """A batch may hold requests of several groups, in any order."""
    first = [ask(core, floats(2, 1)) for _ in range(3)]
    second = [ask(core, floats(3, 1)) for _ in range(2)]
    core.flush(0.0)
    y = np.arange(10, dtype=np.int32)
    core.receive(answer([Piece(3, 1, 3), Piece(1, 2, 2), Piece(4, 1, 3)], {"y": y}))
    assert not first[0].done()
    assert [second[0].result()["y"].tolist(), second[1].result()["y"].tolist()] == [[0, 1, 2], [7, 8, 9]]
    assert [first[1].result()["y"].tolist(), first[2].result()["y"].tolist()] == [[3, 4], [5, 6]]
    assert first[1].timing == (5, 7, 9)
    core.receive(answer([Piece(0, 1, 2)], {"y": y[:2]}))
    assert first[0].result()["y"].tolist() == [0, 1]
    assert not core.busy


@given(st.lists(st.integers(1, 4), min_size=1, max_size=12), st.randoms(use_true_random=False))
def test_every_request_gets_its_own_rows(rows: list[int], random: Any) -> None:
    """Dense and string outputs, in batches of requests in any order."""
    core = make_core()
    replies = [ask(core, floats(n, 1)) for n in rows]
    core.flush(0.0)
    order = list(range(len(rows)))
    random.shuffle(order)
    while order:
        batch = [order.pop() for _ in range(random.randint(1, len(order)))]
        dense = np.concatenate([np.full((rows[i], 2), i, np.int64) for i in batch])
        text = np.concatenate([np.array([b"%d" % i] * rows[i], object) for i in batch])
        core.receive(answer([Piece(i, 1, rows[i]) for i in batch], {"d": dense, "s": text}))
    for i, reply in enumerate(replies):
        assert reply.result()["d"].tolist() == [[i, i]] * rows[i]
        assert reply.result()["s"].tolist() == [b"%d" % i] * rows[i]
        assert reply.result()["d"].flags.writeable
    assert not core.busy


@pytest.mark.parametrize("value", [np.float32(3), floats(0, 2), floats(2, 2), np.array(b"text", object)])
def test_whole_tensors_come_back_whole(core: Core, value: Any) -> None:
    reply = ask(core, np.float32(1))
    core.flush(0.0)
    core.receive(answer([Piece(0, 1, 0)], {"y": np.asarray(value)}, by_rows=False))
    got = reply.result()["y"]
    assert (got.shape, got.tolist()) == (np.asarray(value).shape, np.asarray(value).tolist())


def test_errors_reach_their_requests_only(core: Core) -> None:
    replies = [ask(core, floats(1, 1)) for _ in range(4)]
    core.flush(0.0)
    core.receive(error([(0, 2), (3, 1)], 5, "no such model"))
    for i in (0, 1, 3):
        with pytest.raises(NotFound, match="no such model"):
            replies[i].result()
    assert not replies[2].done()
    core.receive(error([(2, 1)], 77, "what?"))
    with pytest.raises(Internal, match="what"):
        replies[2].result()


def test_messages_about_strangers_are_ignored(core: Core) -> None:
    reply = ask(core, floats(1, 1))
    core.flush(0.0)
    core.receive(error([(100, 5)], 5, "?"))
    core.receive(error([], 3, "your message made no sense"))
    core.receive(answer([Piece(7, 2, 1)], {"y": floats(2)}))
    core.receive([messages.encode(Verb.RESULT, [99, {}])])
    assert core.receive([messages.encode(Verb.WELCOME, [True])]) is True
    assert core.receive([messages.encode(Verb.WELCOME, [False])]) is False
    assert not reply.done()
    core.receive(answer([Piece(0, 1, 1)], {"y": floats(1)}))
    core.receive(answer([Piece(0, 1, 1)], {"y": floats(1) + 9}))
    assert reply.result()["y"].tolist() == [0.0]


def test_calls(core: Core) -> None:
    reply, other = core.call("stats", {"a": 1}, 10.0), core.call("models", {}, 10.0)
    frames = core.flush(9.0)
    calls = [messages.decode_call(messages.decode(bytes(f[0]))[1]) for f in frames]
    assert [(c.id, c.method, c.arguments) for c in calls] == [(0, "stats", {"a": 1}), (1, "models", {})]
    assert calls[0].budget_ms == 1000
    core.receive([messages.encode(Verb.RESULT, [0, {"x": [1]}])])
    assert reply.result() == {"x": [1]}
    core.receive(error([(1, 1)], 7, "no"))
    with pytest.raises(Exception, match="no"):
        other.result()
    assert not core.busy


# -- time, cancellation, loss --------------------------------------------------------------------------------------


def test_what_has_no_answer_at_its_deadline_fails(core: Core) -> None:
    early, late, call = ask(core, floats(1), deadline=1.0), ask(core, floats(1), deadline=5.0), core.call("x", {}, 2.0)
    core.flush(0.0)
    assert 1.0 <= core.next_expiry() <= 1.0 + GRACE_SECONDS
    core.expire(1.0)
    assert not early.done(), "the broker's own refusal may be on its way"
    core.expire(1.0 + GRACE_SECONDS)
    with pytest.raises(DeadlineExceeded):
        early.result()
    assert not late.done()
    assert 2.0 <= core.next_expiry() <= 2.0 + GRACE_SECONDS
    core.expire(3.0)
    with pytest.raises(DeadlineExceeded):
        call.result()
    assert 5.0 <= core.next_expiry() <= 5.0 + GRACE_SECONDS
    core.receive(answer([Piece(early.id, 1, 1), Piece(late.id, 1, 1)], {"y": floats(2)}))
    assert late.result()["y"].tolist() == [1.0]
    assert not core.busy, "a late answer is taken note of"


def test_expired_requests_that_are_never_answered_are_not_looked_at_again(core: Core) -> None:
    ask(core, floats(1), deadline=1.0)
    core.flush(0.0)
    core.expire(2.0)
    assert core.next_expiry() == float("inf")


def test_a_cancelled_request_that_has_not_left_never_does(core: Core) -> None:
    kept, gone = ask(core, floats(1)), ask(core, floats(1) + 5)
    assert gone.cancel()
    core.withdraw(gone)
    ((group, _, (array,)),) = groups_of(core)
    assert group.count == 1
    assert array.tolist() == [0.0]
    assert not kept.done()


def test_a_cancelled_request_that_has_left_is_withdrawn(core: Core) -> None:
    gone = [ask(core, floats(1)) for _ in range(3)][1]
    core.flush(0.0)
    assert gone.cancel()
    core.withdraw(gone)
    ((header,),) = core.flush(0.0)
    verb, body = messages.decode(bytes(header))
    assert verb == Verb.CANCEL
    assert messages.decode_cancel(body) == [(1, 1)]
    core.receive(answer([Piece(0, 3, 1)], {"y": floats(3)}))
    assert gone.cancelled()
    core.withdraw(gone)
    assert core.flush(0.0) == []
    assert not core.busy


def test_a_lost_connection_fails_all_that_had_left(core: Core) -> None:
    left, call = ask(core, floats(1)), core.call("x", {}, FAR)
    core.flush(0.0)
    waiting = ask(core, floats(1))
    core.lost(Unavailable("gone"))
    for reply in (left, call):
        with pytest.raises(Unavailable, match="gone"):
            reply.result()
    assert not waiting.done()
    ((group, _, _),) = groups_of(core)
    assert group.first == 2, "ids are never used again"


def gone(core: Core) -> None:
    core.lost(Unavailable("gone"), again=True)


def test_what_was_lost_is_asked_for_again_once_somebody_is_there(core: Core) -> None:
    first, strict = ask(core, floats(2)), ask(core, floats(2) + 1, soft=False)
    call = core.call("x", {"a": 1}, FAR)
    core.flush(0.0)
    gone(core)
    later = ask(core, floats(2) + 2)
    core.hold()
    assert core.flush(1.0) == []
    assert core.busy
    core.resume()
    calls, frames = core.flush(FAR - 10)
    found, _ = sent(frames)
    assert [group.flags for group, _, _ in found] == [Flag.SOFT | Flag.AGAIN, Flag.AGAIN, Flag.SOFT]
    assert [array.tolist() for _, _, (array,) in found] == [[0, 1], [1, 2], [2, 3]]
    assert [group.first for group, _, _ in found] == [4, 5, 6], "ids are never used again"
    assert all(10_000 <= group.budget_ms <= 10_001 for group, _, _ in found), "what is left of the deadline"
    again = messages.decode_call(messages.decode(bytes(calls[0]))[1])
    assert (again.id, again.method, again.arguments, again.budget_ms) == (3, "x", {"a": 1}, 10_000)
    core.receive(answer([Piece(0, 2, 2)], {"y": floats(4)}))
    assert not first.done(), "nobody answers by the old ids any more"
    core.receive(answer([Piece(4, 2, 2), Piece(6, 1, 2)], {"y": floats(6)}))
    core.receive([messages.encode(Verb.RESULT, [3, "done"])])
    assert [reply.result()["y"].tolist() for reply in (first, strict, later)] == [[0, 1], [2, 3], [4, 5]]
    assert call.result() == "done"
    assert not core.busy


def test_what_was_lost_too_often_is_given_up(core: Core) -> None:
    """It may be what ends the connections."""
    reply = ask(core, floats(1))
    for _ in range(MOST_LOSSES - 1):
        core.flush(0.0)
        gone(core)
        assert not reply.done()
        core.resume()
    core.flush(0.0)
    new = ask(core, floats(1))
    gone(core)
    with pytest.raises(Unavailable, match="gone"):
        reply.result()
    core.resume()
    assert core.flush(0.0)
    assert not new.done()


def test_what_was_cancelled_or_answered_meanwhile_is_not_asked_for_again(core: Core) -> None:
    answered, cancelled, held, kept = (ask(core, floats(1) + i) for i in range(4))
    core.flush(0.0)
    core.receive(answer([Piece(0, 1, 1)], {"y": floats(1)}))
    assert cancelled.cancel()
    core.withdraw(cancelled)
    gone(core)
    assert held.cancel()
    core.withdraw(held)
    core.resume()
    ((group, _, (array,)),) = groups_of(core)
    assert (group.count, array.tolist()) == (1, [3.0])
    assert answered.done()
    assert not kept.done()


def test_what_is_held_has_a_deadline(core: Core) -> None:
    left, call = ask(core, floats(1), deadline=1.0), core.call("x", {}, 1.0)
    core.flush(0.0)
    gone(core)
    waiting, late = ask(core, floats(1), deadline=2.0), ask(core, floats(1), deadline=5.0)
    core.hold()
    assert core.next_expiry() <= 1.0 + GRACE_SECONDS
    core.expire(1.5, "nobody is there")
    for reply in (left, call):
        with pytest.raises(DeadlineExceeded, match="no answer before the deadline: nobody is there"):
            reply.result()
    assert not waiting.done()
    assert 2.0 <= core.next_expiry() <= 2.0 + GRACE_SECONDS
    core.expire(3.0, "nobody is there")
    assert waiting.done()
    core.resume()
    assert [group.count for group, _, _ in groups_of(core)] == [1]
    assert not late.done()


def test_what_never_left_has_a_deadline_too(core: Core) -> None:
    reply = ask(core, floats(1), deadline=2.0)
    core.hold()
    assert 2.0 <= core.next_expiry() <= 2.0 + GRACE_SECONDS
    core.expire(3.0, "nobody is there")
    assert isinstance(reply.exception(), DeadlineExceeded)
    assert not core.busy


@pytest.mark.parametrize("resent_only", [True, False])
def test_what_is_held_can_be_given_up(core: Core, resent_only: bool) -> None:
    left = ask(core, floats(1))
    core.flush(0.0)
    gone(core)
    new = ask(core, floats(1))
    core.hold()
    core.abandon(Unavailable("nobody"), resent_only)
    assert isinstance(left.exception(), Unavailable)
    assert new.done() == (not resent_only)
    assert core.busy == resent_only


def test_closing_fails_everything(core: Core) -> None:
    held = ask(core, floats(1))
    core.hold()
    left = ask(core, floats(1))
    core.flush(0.0)
    waiting = ask(core, floats(1))
    core.close()
    for reply in (held, left, waiting):
        with pytest.raises(Cancelled):
            reply.result()
    assert not core.busy


# -- tensors by reference ------------------------------------------------------------------------------------------


class Store:
    """A client's arena that is a dictionary."""

    def __init__(self, room: int = 1 << 20) -> None:
        self.memory = bytearray(1 << 20)
        self.room = room
        self.live: set[Lease] = set()
        self.taken: list[Region] = []
        self._at = 4096

    def put(self, buffers: list[Buffer], reply_bytes: int) -> tuple[list[Region], Region | None, list[Lease]] | None:
        if sum(map(len, buffers)) > self.room:
            return None
        regions = []
        for buffer in buffers:
            regions.append(self._place(len(buffer)))
            self.memory[regions[-1].offset : regions[-1].offset + len(buffer)] = buffer
        leases = [Lease(regions[0].offset, 0, 1)]
        reply = self._place(reply_bytes) if reply_bytes else None
        if reply is not None:
            leases.append(Lease(reply.offset, 0, 2))
        self.live.update(leases)
        return regions, reply, leases

    def _place(self, nbytes: int) -> Region:
        region = Region(self._at, nbytes)
        self._at += (nbytes + 63) & -64
        return region

    def read(self, regions: Iterable[Region]) -> list[Buffer]:
        return [memoryview(self.memory)[region.offset : region.offset + region.nbytes] for region in regions]

    def take(self, region: Region, lease: Lease) -> Buffer:
        assert lease in self.live
        self.taken.append(region)
        return memoryview(self.memory)[region.offset : region.offset + region.nbytes]

    def free(self, leases: Iterable[Lease]) -> None:
        for lease in leases:
            self.live.remove(lease)


LARGE = floats(CROSSOVER // 4 // 8, 8)


def learned(core: Core, store: Store) -> None:
    """The core has seen that the outputs are large, and keeps room for them from now on."""
    ask(core, LARGE)
    ((group, _, _),) = groups_of(core)
    core.receive(answer([Piece(group.first, 1, len(LARGE))], {"y": LARGE}))
    assert store.live == set()


@pytest.mark.parametrize("inputs", [LARGE, {"x": LARGE}, {"a": LARGE, "b": floats(len(LARGE))}])
def test_large_tensors_go_by_reference(core: Core, inputs: Any) -> None:
    store = Store()
    core.attach(store)
    reply = ask(core, inputs)
    ((group, _, _),) = groups_of(core)
    assert group.regions is not None
    arrays = list(inputs.values()) if isinstance(inputs, dict) else [inputs]
    assert [bytes(store.memory[o : o + n]) for o, n in group.regions] == [a.tobytes() for a in arrays]
    assert len(store.live) == 1
    core.receive(answer([Piece(0, 1, len(LARGE))], {"y": floats(len(LARGE))}))
    assert reply.result()["y"].tolist() == floats(len(LARGE)).tolist()
    assert store.live == set()


def test_small_tensors_strings_and_what_finds_no_room_travel_as_frames(core: Core) -> None:
    core.attach(Store(room=10))
    inputs: list[Any] = [floats(2, 2), np.array([b"x" * 5000], object), LARGE]
    for value in inputs:
        ask(core, value)
    found = groups_of(core)
    assert all(group.regions is None for group, _, _ in found)
    assert [array.tolist() for _, _, (array,) in found] == [value.tolist() for value in inputs]


def test_outputs_come_back_by_reference(core: Core) -> None:
    store = Store()
    core.attach(store)
    learned(core, store)
    reply = ask(core, LARGE)
    ((group, _, _),) = groups_of(core)
    assert group.reply is not None
    assert group.reply.nbytes >= LARGE.nbytes
    y = LARGE + 1
    at = group.reply.offset
    store.memory[at : at + y.nbytes] = y.tobytes()
    spec = pack_output_key(OutputKey((Tensor("y", DType.FLOAT, (8,)),), True))
    body = [spec, [Piece(group.first, 1, len(LARGE))], (1, 2, 3), [Region(at, y.nbytes)], 3]
    core.receive([messages.encode(Verb.ANSWER, body)])
    assert reply.result()["y"].tolist() == y.tolist()
    assert store.taken == [Region(at, y.nbytes)]
    assert store.live == set(), "only the user's array holds the lease now"


@pytest.mark.parametrize("outcome", ["answer", "error", "cancel before", "cancel after", "expired"])
def test_leases_end_with_the_last_word_of_the_broker(core: Core, outcome: str) -> None:
    store = Store()
    core.attach(store)
    learned(core, store)
    reply = ask(core, LARGE, deadline=5.0)
    assert len(store.live) == 2
    if outcome == "cancel before":
        reply.cancel()
        core.flush(0.0)
        assert store.live == set()
        return
    core.flush(0.0)
    if outcome == "cancel after":
        reply.cancel()
        core.withdraw(reply)
    if outcome == "expired":
        core.expire(6.0)
    assert len(store.live) == 2, "the broker may still be using them"
    if outcome == "answer":
        core.receive(answer([Piece(1, 1, len(LARGE))], {"y": LARGE}))
    else:
        core.receive(error([(1, 1)], 4, "late"))
    assert store.live == set()


def test_references_into_a_lost_arena_travel_as_frames(core: Core) -> None:
    """The arena goes with the connection, whether what was placed in it had left or not; inputs are read before."""
    store = Store()
    core.attach(store)
    left = ask(core, {"a": LARGE, "b": LARGE + 1})
    core.flush(0.0)
    waiting = ask(core, LARGE + 2)
    gone(core)
    core.attach(None)
    other = Store()
    core.attach(other)
    core.resume()
    (first, second) = groups_of(core)
    assert [array.tolist() for array in first[2]] == [LARGE.tolist(), (LARGE + 1).tolist()]
    assert second[2][0].tolist() == (LARGE + 2).tolist()
    assert [group.regions for group, _, _ in (first, second)] == [None, None]
    assert (first[0].flags, second[0].flags) == (Flag.SOFT | Flag.AGAIN, Flag.SOFT)
    core.receive(answer([Piece(first[0].first, 1, len(LARGE))], {"y": LARGE}))
    core.receive(answer([Piece(second[0].first, 1, len(LARGE))], {"y": LARGE}))
    assert left.result()["y"].tolist() == waiting.result()["y"].tolist() == LARGE.tolist()
    assert other.live == set()


@given(st.lists(st.sampled_from(["ask", "flush", "answer", "refuse", "cancel", "lose", "expire"]), max_size=40))
def test_no_lease_leaks_and_none_is_freed_twice(steps: list[str]) -> None:
    """Whatever happens to references; the store raises where a lease is freed twice."""
    core, store, replies, outcomes, clock = make_core(), Store(), [], [], 0.0
    core.attach(store)
    learned(core, store)
    for step in steps:
        clock += 1.0
        if step == "ask":
            replies.append(ask(core, LARGE, deadline=clock + 5))
            replies[-1].add_done_callback(lambda reply: outcomes.append(id(reply)))
        elif step == "flush":
            core.flush(clock)
        elif step in ("answer", "refuse"):
            for number in list(core._ledger.sent)[:1]:
                piece = Piece(number, 1, len(LARGE))
                core.receive(answer([piece], {"y": LARGE}) if step == "answer" else error([(number, 1)], 8, "full"))
        elif step == "cancel" and replies and replies[-1].cancel():
            core.withdraw(replies[-1])
        elif step == "lose":
            gone(core)
            core.attach(store := Store())
            core.resume()
        elif step == "expire":
            core.expire(clock)
    for reply in replies:
        reply.cancel()
    core.flush(clock)
    for number in list(core._ledger.sent):
        core.receive(error([(number, 1)], 1, "cancelled"))
    assert store.live == set()
    assert not core.busy
    assert sorted(outcomes) == sorted(map(id, replies)), "one outcome each"
