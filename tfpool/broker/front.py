"""The broker's clients: their sockets, what they say on them, and the answers.

Clients come in by doors, each a ZeroMQ ROUTER: one for requests and calls, one for admin verbs, and where tcp is
encrypted one for requests and calls over that. A client is known by the number of its door and its identity there,
for identities are unique on one socket only, and clients may choose their own.
"""

from __future__ import annotations

import os
import time
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import zmq

from tfpool.broker import verbs
from tfpool.broker.gate import Gate
from tfpool.broker.later import Later, Question
from tfpool.broker.lobby import Request
from tfpool.broker.registry import NotLoaded
from tfpool.descriptors import raise_limit
from tfpool.errors import InvalidArgument, ResourceExhausted, TfpoolError, Unavailable
from tfpool.keys import Role
from tfpool.scheduler import events as ev
from tfpool.telemetry import log
from tfpool.wire.messages import Bell, Verb, encode, encode_error
from tfpool.wire.tensors import Buffer

if TYPE_CHECKING:
    from tfpool.broker.main import Broker

MAX_DRAINED_AT_ONCE = 256
MAX_ASKED = 64  # calls of a client that wait for their answers
MAX_ACCOUNTS = 4096
RECEIVED = 64  # messages of a client that wait to be read; more wait on its side
UNREAD = 10_000  # answers that wait for a client to read them, and their bytes, if they are not small
SMALL_BYTES, MARK_BYTES = 4096, 1 << 20
HANDSHAKE_MS = 10_000
KEEPALIVE_SECONDS = 60
# as plain numbers: arithmetic on pyzmq's enums costs microseconds a message
_NOBLOCK, _EVENTS, _POLLIN = int(zmq.NOBLOCK), int(zmq.EVENTS), int(zmq.POLLIN)
_MORE = _NOBLOCK | int(zmq.SNDMORE)

Socket = zmq.Socket[bytes]


@dataclass(frozen=True, slots=True)
class Door:
    """A socket that clients come in by; ``prefix`` goes before their identities. Keys are checked where ``guarded``."""

    sock: Socket
    prefix: bytes
    role: Role
    guarded: bool


@dataclass(slots=True)
class Unread:
    """Bytes on their way to a client, of which it may have read some.

    ZeroMQ tells on request when a frame has left, at a price; so one frame a MiB is asked about, and stands for all
    before it. ``held`` are the bytes up to the last such mark, ``since`` those after it.
    """

    marks: deque[tuple[zmq.MessageTracker, int]] = field(default_factory=deque)
    held: int = 0
    since: int = 0

    def settle(self) -> int:
        """The bytes held, without what has left."""
        while self.marks and self.marks[0][0].done:
            self.held -= self.marks.popleft()[1]
        return self.held


class Front:
    """``sockets`` are those to poll. While ``closed``, requests are refused."""

    def __init__(self, broker: Broker) -> None:
        self._broker = broker
        self._log = log.get("broker")
        self.closed = False
        self._asked: list[tuple[bytes, int, float, Question]] = []
        self._unread: dict[bytes, Unread] = {}
        self._doors: list[Door] = []
        self._gate: Gate | None = None
        raise_limit()
        server = broker.settings.server
        self._max_message, self._max_unread = server.max_message, server.client_bytes
        # a flood of handshakes keeps a thread of ZeroMQ's busy: that is the second one's work, and no other
        self._context = zmq.Context(1 if server.curve_key is None else 2)
        if server.curve_key is not None and server.authorized_keys is not None:
            self._gate = Gate(self._context, server.curve_key, server.authorized_keys)
        self._open(server.listen, Role.PREDICT)
        self._open((server.admin_listen,), Role.ADMIN)

    @property
    def sockets(self) -> list[Socket]:
        return [door.sock for door in self._doors] + ([self._gate.socket] if self._gate else [])

    def hear(self, sock: Socket) -> None:
        """Take in what clients have said on a socket, at most 256 messages of it."""
        door = next((door for door in self._doors if door.sock is sock), None)
        if door is None:
            assert self._gate is not None
            self._gate.hear()
            return
        broker = self._broker
        for _ in range(MAX_DRAINED_AT_ONCE):
            refusal: TfpoolError | None = None
            if door.guarded:
                frames, refusal = self._checked(door)
            else:
                frames = sock.recv_multipart(_NOBLOCK)
            frames[0] = door.prefix + frames[0]
            broker.meters.messages += 1
            try:
                self._client_says(door, frames, refusal)
            except InvalidArgument as error:
                broker.meters.malformed += 1
                self._log.debug("message.refused", error=error.message)
                self.send([frames[0], encode_error([], error)])
            if not sock.getsockopt(_EVENTS) & _POLLIN:  # type: ignore[operator]  # far cheaper than an Again
                return

    def _checked(self, door: Door) -> tuple[list[bytes], TfpoolError | None]:
        """A message, and why whoever sent it is not let in any more."""
        assert self._gate is not None
        identity = door.sock.recv(_NOBLOCK, copy=False)
        frames = [identity.bytes, *door.sock.recv_multipart(_NOBLOCK)]
        try:
            self._gate.check(identity, door.role)
        except TfpoolError as error:
            return frames, error
        return frames, None

    def _client_says(self, door: Door, frames: list[bytes], refusal: TfpoolError | None) -> None:
        client = frames[0]
        admin = door.role is Role.ADMIN
        verb, body = self._broker.intake.open(frames)
        if verb == Verb.PREDICT and not admin:
            now = time.monotonic()
            if self.closed:
                refusal = refusal or Unavailable("the pool is shutting down")
            for event in self._broker.intake.predict(
                client, body, frames, now, refusal, self._broker.effects.refuse, self._park
            ):
                self._broker.effects.perform(self._broker.scheduler.handle(event, now))
        elif verb == Verb.CALL:
            self._call(client, body, admin, refusal)
        elif refusal is not None:
            self._log.debug("message.refused", error=refusal.message)
        elif verb == Verb.CANCEL:
            ranges = self._broker.intake.cancelled(body)
            self._broker.lobby.cancel(client, ranges)
            self._broker.decide(ev.Cancel(client, ranges))
        elif verb == Verb.HELLO:
            self._hello(client, body)
        elif verb == Verb.BYE:
            self.forget(client)
        else:
            raise InvalidArgument(f"verb: got {verb}, expected one of {', '.join(v.name for v in Verb)}")

    def _park(self, why: NotLoaded, request: Request) -> None:
        """Requests wait for their model to be loaded, which begins now."""
        self._broker.lobby.park(why, request)
        if why.version is not None:
            self._broker.lifecycle.wake(why.version)

    def admit(self, request: Request) -> None:
        """Requests that have waited try again."""
        group = request.group
        try:
            for event in self._broker.intake.admit(request, time.monotonic()):
                self._broker.decide(event)
        except NotLoaded as why:
            self._park(why, request)
        except TfpoolError as error:
            self._broker.effects.refuse(request.client, [(group.first, group.count)], error, request.key.model)

    def _call(self, client: bytes, body: Any, admin: bool, refusal: TfpoolError | None) -> None:
        call = self._broker.intake.call(body)
        try:
            if refusal is not None:
                raise refusal
            if sum(asked[0] == client for asked in self._asked) >= MAX_ASKED:
                raise ResourceExhausted(f"{MAX_ASKED} calls of this client wait for their answers already")
            value = verbs.answer(self._broker, call, admin)
        except Later as later:
            deadline = time.monotonic() + call.budget_ms / 1000
            self._asked.append((client, call.id, deadline, later.question))
        except TfpoolError as error:
            self.send([client, encode_error([(call.id, 1)], error)])
        else:
            self.send([client, encode(Verb.RESULT, [call.id, value])])

    def answer_asked(self, now: float) -> None:
        """Answer the calls whose answer is there by now."""
        if self._gate is not None:
            self._gate.step(now, self._broker.lifecycle.ask)
        for asked in list(self._asked):
            client, number, deadline, question = asked
            try:
                value = question()
            except TfpoolError as error:
                self.send([client, encode_error([(number, 1)], error)])
            else:
                if value is not None:
                    self.send([client, encode(Verb.RESULT, [number, value])])
                elif now < deadline:
                    continue
            self._asked.remove(asked)

    def _hello(self, client: bytes, body: Any) -> None:
        hello = self._broker.intake.hello(body)
        accepted = False
        if hello is not None:
            if client in self._broker.clients.peers:
                self.forget(client)  # it starts anew; but requests may have come before a first HELLO, and stand
            try:
                self._broker.clients.offer(client, hello)
                accepted = True
            except TfpoolError as error:
                self._log.info("arena.refused", error=error.message)
        self.send([client, encode(Verb.WELCOME, [accepted])])

    def forget(self, client: bytes) -> None:
        """A client is gone."""
        broker = self._broker
        self._unread.pop(client, None)
        self._asked = [asked for asked in self._asked if asked[0] != client]
        broker.lobby.forget(client)
        broker.decide(ev.ClientGone(client))
        arena = broker.clients.drop(client)
        for link in broker.fleet.links.values():
            if arena in link.arenas:
                link.arenas.discard(arena)
                link.ring(Bell.UNMAP, arena)

    def send(self, frames: list[Buffer]) -> None:
        """A message to a client, its identity first. Dropped where it has gone, or has too much left to read."""
        client, header, *buffers = frames
        sock = self._doors[client[0] - 1].sock
        nbytes = sum(map(len, buffers))
        try:
            if nbytes > SMALL_BYTES:
                self._send_large(sock, bytes(client), header, nbytes)
            else:
                sock.send(client[1:], _MORE)
                sock.send(header, _MORE if buffers else _NOBLOCK)
            for buffer in buffers[:-1]:
                sock.send(buffer, _MORE)
            if buffers:
                sock.send(buffers[-1], _NOBLOCK)
        except zmq.ZMQError as error:
            self._broker.meters.unroutable += 1
            self._log.debug("answer.dropped", error=str(error))

    def _send_large(self, sock: Socket, client: bytes, header: Buffer, nbytes: int) -> None:
        """The first two frames of a large message. Raises zmq.Again where too much of those before it is unread."""
        unread = self._unread.get(client)
        if unread is None:
            if len(self._unread) >= MAX_ACCOUNTS:
                self._unread = {who: kept for who, kept in self._unread.items() if kept.settle()}
            unread = self._unread[client] = Unread()
        if unread.settle() and unread.held + unread.since + nbytes > self._max_unread:
            raise zmq.Again
        sock.send(client[1:], _MORE)
        unread.since += nbytes
        if unread.since < MARK_BYTES:
            sock.send(header, _MORE)
            return
        mark = zmq.Frame(header, track=True, copy_threshold=0)
        unread.marks.append((sock.send(mark, _MORE, copy=False, track=True), unread.since))
        unread.held, unread.since = unread.held + unread.since, 0

    def _open(self, endpoints: tuple[str, ...], role: Role) -> None:
        """Bind endpoints, those whose keys are checked on a socket of their own."""
        tcp = tuple(endpoint for endpoint in endpoints if self._gate is not None and endpoint.startswith("tcp://"))
        plain = tuple(endpoint for endpoint in endpoints if endpoint not in tcp)
        for group, guarded in ((plain, False), (tcp, True)):
            if group:
                self._doors.append(
                    Door(self._bind(group, role, guarded), bytes((len(self._doors) + 1,)), role, guarded)
                )

    def _bind(self, endpoints: tuple[str, ...], role: Role, guarded: bool) -> Socket:
        sock = self._context.socket(zmq.ROUTER)
        for option, value in (
            (zmq.LINGER, 500),
            (zmq.ROUTER_MANDATORY, 1),
            (zmq.SNDHWM, UNREAD),
            (zmq.RCVHWM, RECEIVED),
            (zmq.MAXMSGSIZE, self._max_message),
            (zmq.HANDSHAKE_IVL, HANDSHAKE_MS),
            (zmq.TCP_KEEPALIVE, 1),
            (zmq.TCP_KEEPALIVE_IDLE, KEEPALIVE_SECONDS),
        ):
            sock.setsockopt(option, value)
        if guarded and self._gate is not None:
            sock.setsockopt(zmq.AFFINITY, 2)
            self._gate.guard(sock, role)
        elif self._gate is not None:
            sock.setsockopt(zmq.AFFINITY, 1)
        mask = os.umask(0o077)  # ipc sockets are this user's alone, wherever they lie
        try:
            for endpoint in endpoints:
                sock.bind(endpoint)
        finally:
            os.umask(mask)
        return sock

    def close(self) -> None:
        for door in self._doors:
            door.sock.close()
        if self._gate is not None:
            self._gate.close()
        self._context.term()
