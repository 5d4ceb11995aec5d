"""The broker's story: poll, drain what waits, let the scheduler take its turn, poll again.

One thread, one poller. Clients come over ZeroMQ ROUTER sockets, workers and the supervisor over doorbells.
"""

from __future__ import annotations

import gc
import math
import signal
import socket
import time
from contextlib import suppress
from typing import Any

import zmq

from tfpool.broker import verbs
from tfpool.broker.bells import Bells
from tfpool.broker.budget import Budget
from tfpool.broker.clients import Clients
from tfpool.broker.effects import Effects
from tfpool.broker.fleet import Fleet, Link, WorkerState
from tfpool.broker.intake import Intake
from tfpool.broker.later import Later, Question
from tfpool.broker.lifecycle import Lifecycle
from tfpool.broker.lobby import Lobby, Request
from tfpool.broker.meters import Meters
from tfpool.broker.notebook import Notebook
from tfpool.broker.reading import progress
from tfpool.broker.recorder import Recorder
from tfpool.broker.registry import NotLoaded, Registry
from tfpool.broker.residence import Residence
from tfpool.broker.resolve import Resolver
from tfpool.broker.room import Room
from tfpool.broker.shadow import Shadows
from tfpool.broker.taps import Taps
from tfpool.errors import InvalidArgument, TfpoolError, Unavailable
from tfpool.repository.watcher import Watcher
from tfpool.scheduler import events as ev
from tfpool.scheduler.core import Scheduler
from tfpool.settings import Settings
from tfpool.shm.arena import Arena
from tfpool.shm.doorbell import Doorbell
from tfpool.shm.layout import MIN_BLOCK, Layout
from tfpool.telemetry import log
from tfpool.wire.messages import Bell, Control, Verb, encode, pack, unpack
from tfpool.wire.tensors import Buffer

TICK_SECONDS = 1.0
SPIN_SECONDS = 150e-6
LONGEST_AWAITED = 500e-6
MAX_DRAINED_AT_ONCE = 256
MAX_MESSAGE = 1 << 30
# as plain numbers: arithmetic on pyzmq's enums costs microseconds a message
_NOBLOCK, _EVENTS, _POLLIN = int(zmq.NOBLOCK), int(zmq.EVENTS), int(zmq.POLLIN)
_MORE = _NOBLOCK | int(zmq.SNDMORE)


def run(control: socket.socket, settings: Settings) -> None:
    """Serve until the supervisor closes ``control`` or says stop."""
    log.configure("broker", settings.server.log_level, settings.server.log_format)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # the supervisor decides when to stop
    broker = Broker(Doorbell(control, blocking=False), settings)
    try:
        broker.serve()
    finally:
        broker.close()


class Broker:
    """The broker process."""

    def __init__(self, control: Doorbell, settings: Settings) -> None:
        self.started = time.monotonic()
        self.settings = settings
        self._control = control
        self._log = log.get("broker")
        self._arena = Arena.create(settings.pool.shm_budget // MIN_BLOCK * MIN_BLOCK, "tfpool-arena")
        self.scheduler = Scheduler(Layout(self._arena.nbytes))
        self.registry = Registry()
        self.fleet = Fleet(settings.workers)
        self.clients = Clients()
        self.meters = Meters()
        self.effects = Effects(self._arena, self.fleet, self.clients, self.meters, self._send)
        self.notebook = Notebook(settings)
        self._budget = Budget(self.notebook.footprints, self.notebook.measured)
        self._watcher = Watcher(settings.pool.poll_s, settings.server.models_root)
        self._lobby = Lobby(self._admit, self.effects.refuse)
        self.lifecycle = Lifecycle(
            self.registry, settings.pool, self._watcher, self.notebook, self._lobby, time.monotonic
        )
        self.residence = self.lifecycle.residence = Residence(
            self.registry,
            self.fleet,
            settings.pool,
            self._budget,
            Room(self.registry, self.fleet, self._budget, self.scheduler),
            self.scheduler,
            self.decide,
            self.recycle,
            self.lifecycle,
        )
        self._bells = Bells(
            self._arena,
            self.scheduler,
            self.fleet,
            self.clients,
            self.residence,
            self.effects,
            self.decide,
            self._watch,
        )
        self._resolver = Resolver(self.registry)
        self.recorder = Recorder()
        self.shadows = Shadows(self.registry, self._resolver)
        self.taps = Taps(self.recorder, self.shadows)
        self._intake = Intake(
            self._resolver, self.clients, self.meters, self.taps, self._budget.hit, self.lifecycle.wake
        )
        self._asked: list[tuple[zmq.Socket[bytes], bytes, int, float, Question]] = []
        self._was_lone = False
        self._draining = False
        self._stopped = False
        self._told = (-1, 0)
        self._busy_before: dict[str, float] = {}
        self._context = zmq.Context()
        self._clients_socket = self._bind(settings.server.listen)
        self._admin_socket = self._bind((settings.server.admin_listen,))
        self._poller = zmq.Poller()
        for watched in (self._clients_socket, self._admin_socket, control.fileno(), self._watcher.fileno()):
            self._poller.register(watched, zmq.POLLIN)

    def serve(self) -> None:
        for model in self.notebook.models():
            self.lifecycle.add(model)
        self.tell(Control.UP)
        gc.collect()
        gc.freeze()
        gc.set_threshold(50_000, 20, 20)
        next_tick = time.monotonic() + TICK_SECONDS
        while not self._stopped:
            wake = min(next_tick, self.scheduler.wakeup(), self._lobby.expiry, self.lifecycle.next_retry())
            for watched, _ in self._poll(wake):
                if watched is self._clients_socket:
                    self._drain_clients(self._clients_socket, admin=False)
                elif watched is self._admin_socket:
                    self._drain_clients(self._admin_socket, admin=True)
                elif watched == self._control.fileno():
                    self._hear_supervisor()
                elif watched == self._watcher.fileno():
                    self.lifecycle.look()
                else:
                    self._bells.hear(self.fleet.by_fd.get(watched))
            now = time.monotonic()
            self._lobby.expire(now)
            self.effects.perform(self.scheduler.handle(ev.Turn(), now))
            self.lifecycle.step(now)
            if self._asked:
                self._answer_asked(now)
            news = (self.registry.epoch, self.fleet.epoch)
            if self._told != news:
                self._told = news
                self.models_changed()
                self.tell(Control.PROGRESS, progress(self))
            if self._draining and self._idle():
                self._finish()
            if now >= next_tick:
                next_tick = now + TICK_SECONDS
                self._tick()

    def _poll(self, wake: float) -> list[tuple[Any, int]]:
        """What is ready, by ``wake`` (monotonic seconds) at the latest.

        While one short run is all that the pool has to do, its end is awaited without sleeping, and so is the request
        that may follow: to be woken on a halted CPU takes as long as such a run.
        """
        poll = self._poller.poll
        run = self.scheduler.lone_run()
        lone = run <= LONGEST_AWAITED
        if lone or self._was_lone:
            self._was_lone = lone
            give_up = time.monotonic() + SPIN_SECONDS + (run if lone else 0.0)
            while time.monotonic() < give_up:
                ready = poll(0)
                if ready:
                    return ready
        return poll(max(0, math.ceil((wake - time.monotonic()) * 1000)))

    def decide(self, event: ev.Event) -> None:
        """One event through the scheduler, and what it asks for."""
        self.effects.perform(self.scheduler.handle(event, time.monotonic()))

    def tell(self, verb: Control, *fields: Any) -> None:
        """A word to the supervisor. When it is gone, its end of file is on its way."""
        with suppress(BrokenPipeError, ConnectionResetError):
            self._control.ring(pack([verb, *fields]))

    def models_changed(self) -> None:
        """Models, versions or their settings are not what they were."""
        for name in self.meters.models.keys() - self.registry.models.keys():
            self.meters.drop(name)
        self.shadows.refresh()
        self.taps.refresh()

    def recycle(self, link: Link) -> None:
        """Have a worker finish what it was given and be replaced."""
        link.state, link.leaving = WorkerState.DRAINING, True
        self.decide(ev.Drain(link.name, True))
        self.tell(Control.RECYCLE, link.name)
        link.ring(Bell.STOP)

    # -- clients -----------------------------------------------------------------------------------------------

    def _drain_clients(self, sock: zmq.Socket[bytes], admin: bool) -> None:
        for _ in range(MAX_DRAINED_AT_ONCE):
            frames = sock.recv_multipart(_NOBLOCK)
            self.meters.messages += 1
            try:
                self._client_says(sock, frames, admin)
            except InvalidArgument as error:
                self.meters.malformed += 1
                self._log.debug("message.refused", error=error.message)
                self._send([frames[0], encode(Verb.ERROR, [[], int(error.code), error.message])], sock)
            if not sock.getsockopt(_EVENTS) & _POLLIN:  # type: ignore[operator]  # far cheaper than an Again
                return

    def _client_says(self, sock: zmq.Socket[bytes], frames: list[bytes], admin: bool) -> None:
        client = frames[0]
        verb, body = self._intake.open(frames)
        if verb == Verb.PREDICT and not admin:
            now = time.monotonic()
            refusal = Unavailable("the pool is shutting down") if self._draining else None
            for event in self._intake.predict(client, body, frames, now, refusal, self.effects.refuse, self._park):
                self.effects.perform(self.scheduler.handle(event, now))
        elif verb == Verb.CALL:
            self._call(sock, client, body, admin)
        elif verb == Verb.CANCEL:
            ranges = self._intake.cancelled(body)
            self._lobby.cancel(client, ranges)
            self.decide(ev.Cancel(client, ranges))
        elif verb == Verb.HELLO:
            self._hello(sock, client, body)
        elif verb == Verb.BYE:
            self._forget(client)
        else:
            raise InvalidArgument(f"verb: got {verb}, expected one of {', '.join(v.name for v in Verb)}")

    def _park(self, why: NotLoaded, request: Request) -> None:
        """Requests wait for their model to be loaded, which begins now."""
        self._lobby.park(why, request)
        if why.version is not None:
            self.lifecycle.wake(why.version)

    def _admit(self, request: Request) -> None:
        """Requests that have waited try again."""
        group = request.group
        try:
            for event in self._intake.admit(request):
                self.decide(event)
        except NotLoaded as why:
            self._park(why, request)
        except TfpoolError as error:
            self.effects.refuse(request.client, [(group.first, group.count)], error, request.key.model)

    def _call(self, sock: zmq.Socket[bytes], client: bytes, body: Any, admin: bool) -> None:
        call = self._intake.call(body)
        try:
            value = verbs.answer(self, call, admin)
        except Later as later:
            deadline = time.monotonic() + call.budget_ms / 1000
            self._asked.append((sock, client, call.id, deadline, later.question))
        except TfpoolError as error:
            self._send([client, encode(Verb.ERROR, [[(call.id, 1)], int(error.code), error.message])], sock)
        else:
            self._send([client, encode(Verb.RESULT, [call.id, value])], sock)

    def _answer_asked(self, now: float) -> None:
        for asked in list(self._asked):
            sock, client, number, deadline, question = asked
            try:
                value = question()
            except TfpoolError as error:
                self._send([client, encode(Verb.ERROR, [[(number, 1)], int(error.code), error.message])], sock)
            else:
                if value is not None:
                    self._send([client, encode(Verb.RESULT, [number, value])], sock)
                elif now < deadline:
                    continue
            self._asked.remove(asked)

    def _hello(self, sock: zmq.Socket[bytes], client: bytes, body: Any) -> None:
        hello = self._intake.hello(body)
        accepted = False
        if hello is not None:
            if client in self.clients.peers:
                self._forget(client)  # it starts anew; but requests may have come before a first HELLO, and stand
            try:
                self.clients.offer(client, hello)
                accepted = True
            except TfpoolError as error:
                self._log.info("arena.refused", error=error.message)
        self._send([client, encode(Verb.WELCOME, [accepted])], sock)

    def _forget(self, client: bytes) -> None:
        self._lobby.forget(client)
        self.decide(ev.ClientGone(client))
        arena = self.clients.drop(client)
        for link in self.fleet.links.values():
            if arena in link.arenas:
                link.arenas.discard(arena)
                link.ring(Bell.UNMAP, arena)

    def _send(self, frames: list[Buffer], sock: zmq.Socket[bytes] | None = None) -> None:
        try:
            send = (sock or self._clients_socket).send
            for frame in frames[:-1]:
                send(frame, _MORE)
            send(frames[-1], _NOBLOCK)
        except (zmq.Again, zmq.ZMQError) as error:
            self.meters.unroutable += 1  # the client is gone, or does not read what it asked for
            self._log.debug("answer.dropped", error=str(error))

    # -- the supervisor ----------------------------------------------------------------------------------------

    def _hear_supervisor(self) -> None:
        try:
            while (heard := self._control.hear()) is not None:
                verb, *fields = unpack(heard[0])
                if verb == Control.WORKER:
                    self._bells.adopt(fields[0], fields[1], heard[1][0])
                elif verb == Control.REAPED:
                    link = self.fleet.links[fields[0]]
                    if link.holder == (fields[0], fields[1]):
                        self._bells.hear(link)  # its last words and its end of file may still be unread
                    self.decide(ev.WorkerReaped((fields[0], fields[1])))
                elif verb == Control.HALTED:
                    self.residence.halted(self.fleet.links[fields[0]])
                elif verb == Control.DRAIN:
                    self._draining = True
                    self._log.info("broker.draining", rows=self.scheduler.waiting_rows())
        except EOFError:
            self._stopped = True

    def _watch(self, fd: int, watched: bool) -> None:
        if watched:
            self._poller.register(fd, zmq.POLLIN)
        else:
            self._poller.unregister(fd)

    def _idle(self) -> bool:
        return not self.scheduler.waiting_rows() and not any(
            self.scheduler.in_flight(name) for name in self.fleet.links
        )

    def _finish(self) -> None:
        self._draining = False
        self._stopped = True
        self.tell(Control.DRAINED)

    # -- time --------------------------------------------------------------------------------------------------

    def _tick(self) -> None:
        for client in self.clients.dead():
            self._forget(client)
        for link in self.fleet.links.values():
            before = self._busy_before.get(link.name, 0.0)
            link.busy_share = min(1.0, (link.busy - before) / TICK_SECONDS)
            self._busy_before[link.name] = link.busy
            if link.bell is not None and link.bell.waiting:
                link.bell.flush()
        self.recorder.expire(time.monotonic())
        self.taps.refresh()
        self.notebook.save()
        for queue in self._resolver.closed:
            self.decide(ev.QueueClosed(queue))
        self._resolver.closed.clear()

    def _bind(self, endpoints: tuple[str, ...]) -> zmq.Socket[bytes]:
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
        self.notebook.close()
        self._watcher.close()
        self._clients_socket.close()
        self._admin_socket.close()
        self._context.term()
        self._arena.close()
