"""The broker's clients: their sockets, what they say on them, and the answers.

Requests and calls come over one ZeroMQ ROUTER for everybody, and another for admin verbs.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import zmq

from tfpool.broker import verbs
from tfpool.broker.later import Later, Question
from tfpool.broker.lobby import Request
from tfpool.broker.registry import NotLoaded
from tfpool.errors import InvalidArgument, TfpoolError, Unavailable
from tfpool.scheduler import events as ev
from tfpool.telemetry import log
from tfpool.wire.messages import Bell, Verb, encode, encode_error
from tfpool.wire.tensors import Buffer

if TYPE_CHECKING:
    from tfpool.broker.main import Broker

MAX_DRAINED_AT_ONCE = 256
MAX_MESSAGE = 1 << 30
# as plain numbers: arithmetic on pyzmq's enums costs microseconds a message
_NOBLOCK, _EVENTS, _POLLIN = int(zmq.NOBLOCK), int(zmq.EVENTS), int(zmq.POLLIN)
_MORE = _NOBLOCK | int(zmq.SNDMORE)

Socket = zmq.Socket[bytes]


class Front:
    """``public`` and ``admin`` are the sockets. While ``closed``, requests are refused."""

    def __init__(self, broker: Broker) -> None:
        self._broker = broker
        server = broker.settings.server
        self._context = zmq.Context()
        self.public = self._bind(server.listen)
        self.admin = self._bind((server.admin_listen,))
        self.closed = False
        self._asked: list[tuple[Socket, bytes, int, float, Question]] = []
        self._log = log.get("broker")

    def hear(self, sock: Socket) -> None:
        """Take in what clients have said on a socket, at most 256 messages of it."""
        broker = self._broker
        for _ in range(MAX_DRAINED_AT_ONCE):
            frames = sock.recv_multipart(_NOBLOCK)
            broker.meters.messages += 1
            try:
                self._client_says(sock, frames, sock is self.admin)
            except InvalidArgument as error:
                broker.meters.malformed += 1
                self._log.debug("message.refused", error=error.message)
                self.send([frames[0], encode_error([], error)], sock)
            if not sock.getsockopt(_EVENTS) & _POLLIN:  # type: ignore[operator]  # far cheaper than an Again
                return

    def _client_says(self, sock: Socket, frames: list[bytes], admin: bool) -> None:
        client = frames[0]
        verb, body = self._broker.intake.open(frames)
        if verb == Verb.PREDICT and not admin:
            now = time.monotonic()
            refusal = Unavailable("the pool is shutting down") if self.closed else None
            for event in self._broker.intake.predict(
                client, body, frames, now, refusal, self._broker.effects.refuse, self._park
            ):
                self._broker.effects.perform(self._broker.scheduler.handle(event, now))
        elif verb == Verb.CALL:
            self._call(sock, client, body, admin)
        elif verb == Verb.CANCEL:
            ranges = self._broker.intake.cancelled(body)
            self._broker.lobby.cancel(client, ranges)
            self._broker.decide(ev.Cancel(client, ranges))
        elif verb == Verb.HELLO:
            self._hello(sock, client, body)
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
            for event in self._broker.intake.admit(request):
                self._broker.decide(event)
        except NotLoaded as why:
            self._park(why, request)
        except TfpoolError as error:
            self._broker.effects.refuse(request.client, [(group.first, group.count)], error, request.key.model)

    def _call(self, sock: Socket, client: bytes, body: Any, admin: bool) -> None:
        call = self._broker.intake.call(body)
        try:
            value = verbs.answer(self._broker, call, admin)
        except Later as later:
            deadline = time.monotonic() + call.budget_ms / 1000
            self._asked.append((sock, client, call.id, deadline, later.question))
        except TfpoolError as error:
            self.send([client, encode_error([(call.id, 1)], error)], sock)
        else:
            self.send([client, encode(Verb.RESULT, [call.id, value])], sock)

    def answer_asked(self, now: float) -> None:
        """Answer the calls whose answer is there by now."""
        for asked in list(self._asked):
            sock, client, number, deadline, question = asked
            try:
                value = question()
            except TfpoolError as error:
                self.send([client, encode_error([(number, 1)], error)], sock)
            else:
                if value is not None:
                    self.send([client, encode(Verb.RESULT, [number, value])], sock)
                elif now < deadline:
                    continue
            self._asked.remove(asked)

    def _hello(self, sock: Socket, client: bytes, body: Any) -> None:
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
        self.send([client, encode(Verb.WELCOME, [accepted])], sock)

    def forget(self, client: bytes) -> None:
        """A client is gone."""
        broker = self._broker
        broker.lobby.forget(client)
        broker.decide(ev.ClientGone(client))
        arena = broker.clients.drop(client)
        for link in broker.fleet.links.values():
            if arena in link.arenas:
                link.arenas.discard(arena)
                link.ring(Bell.UNMAP, arena)

    def send(self, frames: list[Buffer], sock: Socket | None = None) -> None:
        """A message to a client, its identity first; on the public socket unless another is given."""
        try:
            send = (sock or self.public).send
            for frame in frames[:-1]:
                send(frame, _MORE)
            send(frames[-1], _NOBLOCK)
        except (zmq.Again, zmq.ZMQError) as error:
            self._broker.meters.unroutable += 1  # the client is gone, or does not read what it asked for
            self._log.debug("answer.dropped", error=str(error))

    def _bind(self, endpoints: tuple[str, ...]) -> Socket:
        sock = self._context.socket(zmq.ROUTER)
        sock.setsockopt(zmq.LINGER, 500)
        sock.setsockopt(zmq.ROUTER_MANDATORY, 1)
        sock.setsockopt(zmq.SNDHWM, 10000)
        sock.setsockopt(zmq.RCVHWM, 10000)
        sock.setsockopt(zmq.MAXMSGSIZE, MAX_MESSAGE)
        for endpoint in endpoints:
            sock.bind(endpoint)
        return sock

    def close(self) -> None:
        self.public.close()
        self.admin.close()
        self._context.term()
