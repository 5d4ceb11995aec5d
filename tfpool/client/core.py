"""The client's core: requests in, frames out; frames in, replies resolved. It opens no socket and reads no clock.

Requests wait in an outbox until the driver flushes it; those next to each other that agree on key, rows, priority and
(to a millisecond) deadline leave as one group. Any thread may submit; one thread at a time flushes and receives.

Large tensors may be handed over by reference: ``store`` is then given the array and answers with the regions of this
client's arena that hold it.

While nobody is there to send them to, requests are held, with those that a lost connection has given back.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from tfpool.client.ledger import GRACE_SECONDS, Ledger, Store
from tfpool.client.reply import PENDING, Reply
from tfpool.errors import Cancelled, InvalidArgument, TfpoolError
from tfpool.shm.layout import align
from tfpool.types import DType, dtype_of
from tfpool.wire import messages
from tfpool.wire.keys import RequestKey, Tensor, pack_request_key
from tfpool.wire.messages import Group, Verb
from tfpool.wire.tensors import Array, Buffer, as_tensor, to_buffers

MAX_IN_GROUP = 1024
_SAME_DEADLINE = 0.001
_KEYS_KEPT = 8192


class Entry:
    """What a request key leads to: its packed form, and the bytes a row of each output, as seen last."""

    __slots__ = ("dense", "key", "out_row_bytes", "packed")

    def __init__(self, key: RequestKey) -> None:
        self.key = key
        self.packed = pack_request_key(key)
        self.dense = all(t.dtype != DType.STRING for t in key.inputs)
        self.out_row_bytes: tuple[int, ...] = ()


class Core:
    """One connection's requests.

    ``wait`` is what a reply calls when somebody waits for it. ``overflow`` is called, while an answer is being taken
    in, when its callbacks have queued half as many requests as were in flight: the pool then works on these while the
    rest of the answer is taken in. Inputs of ``crossover`` bytes or more travel by reference where they can.
    """

    def __init__(
        self, wait: Callable[[Reply, float | None], None], crossover: int, overflow: Callable[[], None]
    ) -> None:
        self.wait = wait
        self._crossover = crossover
        self._entries: dict[Any, Entry] = {}
        self._outbox: deque[Reply] = deque()
        self._ledger = Ledger(self._outbox, overflow)
        self._notes: deque[list[Buffer]] = deque()
        self._next_id = 0

    @property
    def busy(self) -> bool:
        """Whether anything waits to leave, or for an answer."""
        return self.unsent or bool(self._ledger.sent or self._ledger.calls or self._ledger.held)

    @property
    def unsent(self) -> bool:
        """Whether anything waits to leave."""
        return bool(self._outbox or self._notes)

    @property
    def load(self) -> tuple[int, int]:
        """How many requests wait to leave, and how many for an answer."""
        return len(self._outbox), len(self._ledger.sent)

    def attach(self, store: Store | None) -> None:
        """Use this memory for large tensors from now on."""
        self._ledger.store = store

    # -- requests ----------------------------------------------------------------------------------------------

    def submit(
        self,
        model: str,
        inputs: Any,
        deadline: float,
        version: int = 0,
        label: str = "",
        signature: str = "",
        rows: bool = True,
        priority: int = 0,
        soft: bool = True,
    ) -> Reply:
        """Queue one request; ``inputs`` is a mapping of arrays, or one array. ``deadline`` is monotonic seconds, and
        ``soft`` where it is only how long the caller waits: the model's own then counts too.

        Raises InvalidArgument for what is no tensor.
        """
        name, array = "", inputs
        if type(inputs) is dict and len(inputs) == 1:
            ((name, array),) = inputs.items()
        if type(array) is np.ndarray and rows and array.ndim and array.nbytes < self._crossover:
            count, *inner = array.shape
            entry = self._entries.get((model, version, label, signature, name, array.dtype, *inner))
            if entry is not None and count:
                reply = Reply(self, entry, count, deadline, array.tobytes())
                if priority:
                    reply.priority = priority
                if not soft:
                    reply.flags = 0
                self._outbox.append(reply)
                return reply
        return self._submit(model, inputs, deadline, version, label, signature, rows, priority, soft)

    def _submit(
        self,
        model: str,
        inputs: Any,
        deadline: float,
        version: int,
        label: str,
        signature: str,
        rows: bool,
        priority: int,
        soft: bool,
    ) -> Reply:
        named = inputs if isinstance(inputs, Mapping) else {"": inputs}
        arrays = {name: as_tensor(named[name], name) for name in sorted(named)}
        if not rows:
            arrays = {name: array[np.newaxis] for name, array in arrays.items()}
        leading = {array.shape[:1] for array in arrays.values()}
        by_rows = len(leading) == 1 and bool(count := next(iter(leading))) and count[0] > 0
        parts = tuple((n, a.dtype, a.shape[1:] if by_rows else a.shape) for n, a in arrays.items())
        identity = (model, version, label, signature, parts, by_rows)
        entry = self._entries.get(identity)
        if entry is None:
            entry = self._entry(identity, model, version, label, signature, arrays, by_rows)
            if len(arrays) == 1 and by_rows and entry.dense:
                ((name, array),) = arrays.items()
                self._entries[(model, version, label, signature, name, array.dtype, *array.shape[1:])] = entry
        tensors = list(arrays.values())
        count = tensors[0].shape[0] if by_rows else 0
        buffers = [buffer for name, array in arrays.items() for buffer in to_buffers(array, name)]
        large = entry.dense and sum(map(len, buffers)) >= self._crossover
        reply = Reply(self, entry, count, deadline, None)
        reply.priority = priority
        if not soft:
            reply.flags = 0
        reply.squeeze = not rows
        if large:
            self._place(reply, tensors)
        else:
            reply.buffers = _owned(buffers)
        self._outbox.append(reply)
        return reply

    def _entry(
        self,
        identity: Any,
        model: str,
        version: int,
        label: str,
        signature: str,
        arrays: Mapping[str, Array],
        by_rows: bool,
    ) -> Entry:
        for what, value, kind in (("model", model, str), ("label", label, str), ("signature", signature, str)):
            if not isinstance(value, kind):
                raise InvalidArgument(f"{what}: got {type(value).__name__}, expected {kind.__name__}")
        if type(version) is not int or version < 0:
            raise InvalidArgument(f"version: got {version!r}, expected a whole number")
        tensors = tuple(
            Tensor(name, int(dtype_of(array.dtype)), tuple(array.shape[1:] if by_rows else array.shape))
            for name, array in arrays.items()
        )
        if len(self._entries) >= _KEYS_KEPT:
            self._entries.clear()
        entry = self._entries[identity] = Entry(RequestKey(model, version, label, signature, tensors, by_rows))
        return entry

    def _place(self, reply: Reply, arrays: list[Array]) -> None:
        """Put large tensors where the broker can reach them, with room for the outputs; where that is full, or the
        broker is on another host, copy them for the way through the socket. The caller may change its arrays."""
        buffers = [buffer for array in arrays for buffer in to_buffers(array)]
        store = self._ledger.store
        if store is not None:
            wanted = sum(align(nbytes * max(1, reply.rows)) for nbytes in reply.entry.out_row_bytes)
            try:
                placed = store.put(buffers, wanted if wanted >= self._crossover else 0)
            except ValueError:  # it was closed meanwhile, with its connection
                placed = None
            if placed is not None:
                regions, room, leases = placed
                reply.store = store
                reply.regions = (regions, room)
                reply.leases = tuple(leases)
                return
        reply.buffers = _owned(buffers)

    def call(self, method: str, arguments: dict[str, Any], deadline: float) -> Reply:
        """Queue a call of the control plane."""
        reply = Reply(self, None, 0, deadline, (method, arguments))
        self._outbox.append(reply)
        return reply

    def note(self, verb: Verb, body: object) -> None:
        """Queue a message that is not answered one to one."""
        self._notes.append([messages.encode(verb, body)])

    def withdraw(self, reply: Reply) -> None:
        """Tell the broker that a cancelled reply is not wanted; its leases stand until the final answer."""
        if reply.id >= 0 and reply.id in self._ledger.sent:
            self.note(Verb.CANCEL, [[reply.id, 1]])

    # -- frames out --------------------------------------------------------------------------------------------

    def flush(self, now: float) -> list[list[Buffer]]:
        """The messages that are to be sent now."""
        out: list[list[Buffer]] = []
        notes, outbox = self._notes, self._outbox
        while notes:
            out.append(notes.popleft())
        groups: list[tuple[Any, ...]] = []
        frames: list[Buffer] = []
        batch: list[Reply] = []
        entry: Entry | None = None  # what the batch agrees on; None: its only request travels alone
        rows = priority = flags = 0
        latest = 0.0
        while outbox:
            reply = outbox.popleft()
            if reply._state != PENDING:
                self._ledger.release(reply)
                continue
            if (
                reply.entry is entry
                and reply.rows == rows
                and reply.deadline < latest
                and reply.priority == priority
                and reply.flags == flags
                and reply.regions is None
                and reply.deadline >= batch[0].deadline - _SAME_DEADLINE
                and len(batch) < MAX_IN_GROUP
            ):
                batch.append(reply)
                continue
            if reply.entry is None:
                out.append(self._call_frames(reply, now))
                continue
            if reply.regions is not None and reply.store is not self._ledger.store:
                reply.buffers = _owned(reply.store.read(reply.regions[0]))  # this broker does not share that memory
                reply.regions, reply.leases, reply.store = None, (), None
            if batch:
                groups.append(self._group(batch, frames, now))
                if len(groups) >= messages.MAX_GROUPS or len(frames) >= messages.MAX_FRAMES - 4096:
                    out.append([messages.encode(Verb.PREDICT, groups), *frames])
                    groups, frames = [], []
            batch = [reply]
            rows, priority, flags, latest = reply.rows, reply.priority, reply.flags, reply.deadline + _SAME_DEADLINE
            entry = reply.entry if rows and reply.regions is None else None
        if batch:
            groups.append(self._group(batch, frames, now))
        if groups:
            out.append([messages.encode(Verb.PREDICT, groups), *frames])
        return out

    def _group(self, batch: list[Reply], frames: list[Buffer], now: float) -> Group:
        head = batch[0]
        first = self._next_id
        self._next_id = first + len(batch)
        self._ledger.expiry = min(self._ledger.expiry, head.deadline - _SAME_DEADLINE)
        sent = self._ledger.sent
        for number, reply in enumerate(batch, first):
            reply.id = number
            sent[number] = reply
        budget = min(max(0, int((head.deadline - now) * 1000) + 1), messages.MAX_BUDGET_MS)
        regions = reply_region = None
        if head.regions is not None:
            regions, reply_region = head.regions
        elif type(head.buffers) is list:
            if len(batch) == 1:
                frames.extend(head.buffers)
            else:
                frames.extend(b"".join(column) for column in zip(*(r.buffers for r in batch), strict=True))
        else:
            frames.append(head.buffers if len(batch) == 1 else b"".join([r.buffers for r in batch]))
        key, many = head.entry.packed, len(batch)
        return Group(key, first, many, head.rows, budget, head.priority, regions, reply_region, head.flags)

    def _call_frames(self, reply: Reply, now: float) -> list[Buffer]:
        method, arguments = reply.buffers
        reply.id = self._next_id
        self._next_id += 1
        self._ledger.expiry = min(self._ledger.expiry, reply.deadline)
        self._ledger.calls[reply.id] = reply
        budget = min(max(0, int((reply.deadline - now) * 1000)), messages.MAX_BUDGET_MS)
        return [messages.encode(Verb.CALL, [reply.id, method, arguments, budget])]

    # -- frames in ---------------------------------------------------------------------------------------------

    def receive(self, frames: list[bytes]) -> bool | None:
        """Resolve what a message answers. A WELCOME returns whether the arena was accepted, others None."""
        verb, body = messages.decode(frames[0], messages.MAX_ANSWER_BYTES)
        if verb == Verb.ANSWER:
            self._ledger.answered(messages.decode_answer(body), frames)
        elif verb == Verb.ERROR:
            self._ledger.failed(messages.decode_error(body))
        elif verb == Verb.RESULT:
            self._ledger.returned(*body)
        elif verb == Verb.WELCOME:
            return bool(body[0])
        return None

    # -- time and loss -----------------------------------------------------------------------------------------

    def next_expiry(self) -> float:
        """When :meth:`expire` has something to do at the latest (monotonic seconds)."""
        return self._ledger.expiry + GRACE_SECONDS

    def expire(self, now: float, trouble: str = "") -> None:
        """Fail what has had no answer at its deadline; ``trouble`` says why, where that is known."""
        self._ledger.expire(now, trouble)

    def hold(self) -> None:
        """Nobody is there: what is queued waits for :meth:`resume`, or for its deadline."""
        outbox, ledger = self._outbox, self._ledger
        while outbox:
            ledger.hold(outbox.popleft())

    def resume(self) -> None:
        """Somebody is there: what was held leaves first."""
        self._outbox.extendleft(reversed(self._ledger.held))
        self._ledger.held.clear()

    def lost(self, error: TfpoolError, again: bool = False) -> None:
        """The connection is gone, and with it every answer that was due; ``again``: what was not lost too often is
        held, to be asked for again."""
        self._notes.clear()
        (self._ledger.recall if again else self._ledger.lost)(error)

    def abandon(self, error: TfpoolError, resent_only: bool) -> None:
        """Fail what is held; perhaps only what had been sent before."""
        self._ledger.abandon(error, resent_only)

    def close(self) -> None:
        """Fail everything that is left."""
        closed = Cancelled("the client was closed")
        self.hold()
        self.abandon(closed, resent_only=False)
        self.lost(closed)


def _owned(buffers: list[Buffer]) -> bytes | list[bytes]:
    """A copy for the way through the socket: the only buffer, or a list of several."""
    return bytes(buffers[0]) if len(buffers) == 1 else [bytes(buffer) for buffer in buffers]
