"""The broker's story: poll, drain what waits, let the scheduler take its turn, poll again.

One thread, one poller. Clients come over ZeroMQ ROUTER sockets, workers and the supervisor over doorbells.
"""

from __future__ import annotations

import gc
import math
import signal
import socket
import sys
import time
from collections.abc import Collection
from contextlib import suppress
from itertools import count
from typing import Any

import zmq

from tfpool.broker.bells import Bells
from tfpool.broker.blame import Blame
from tfpool.broker.budget import Budget
from tfpool.broker.clients import Clients
from tfpool.broker.compiling import Compiling
from tfpool.broker.effects import Effects
from tfpool.broker.fleet import Fleet, Link, WorkerState
from tfpool.broker.front import Front
from tfpool.broker.intake import Intake
from tfpool.broker.lifecycle import Lifecycle
from tfpool.broker.lobby import Lobby
from tfpool.broker.logbook import Logbook
from tfpool.broker.meters import Meters
from tfpool.broker.migrations import Migrations
from tfpool.broker.notebook import Notebook
from tfpool.broker.planning import Planning
from tfpool.broker.reading import progress
from tfpool.broker.recorder import Recorder
from tfpool.broker.reforms import Reforms
from tfpool.broker.registry import Registry
from tfpool.broker.residence import Residence
from tfpool.broker.resolve import Resolver
from tfpool.broker.rolling import Rolling
from tfpool.broker.room import Room
from tfpool.broker.shadow import Shadows
from tfpool.broker.survey import Survey
from tfpool.broker.taps import Taps
from tfpool.broker.turnover import Turnover
from tfpool.broker.watchdog import Quiet, Watchdog
from tfpool.repository.watcher import Watcher
from tfpool.scheduler import events as ev
from tfpool.scheduler.accounts import Limits
from tfpool.scheduler.core import Scheduler
from tfpool.settings import Settings
from tfpool.shm.arena import Arena
from tfpool.shm.doorbell import Doorbell
from tfpool.shm.layout import MIN_BLOCK, Layout
from tfpool.telemetry import log
from tfpool.wire.messages import Bell, Control, pack, unpack

TICK_SECONDS = 1.0
SWITCH_SECONDS = 0.0005  # requests wait no longer for a thread that plans, or writes
NEWS_SECONDS = 0.05  # progress looks at every version
MEETING_SECONDS = 0.5
SPIN_SECONDS = 150e-6
LONGEST_AWAITED = 500e-6


def run(control: socket.socket, settings: Settings, outliving: Collection[str] = ()) -> None:
    """Serve until the supervisor closes ``control`` or says stop. ``outliving`` are workers of a broker before."""
    log.configure("broker", settings.server.log_level, settings.server.log_format)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # the supervisor decides when to stop
    sys.setswitchinterval(SWITCH_SECONDS)
    broker = Broker(Doorbell(control, blocking=False), settings)
    try:
        broker.serve(outliving)
    finally:
        broker.close()


def limits_of(settings: Settings) -> Limits:
    """What clients may have with the pool."""
    return Limits(settings.server.client_rows, settings.server.client_bytes, settings.pool.queue_budget)


class Broker:
    """The broker process."""

    def __init__(self, control: Doorbell, settings: Settings) -> None:
        self.started = time.monotonic()
        self.settings = settings
        self._control = control
        self._log = log.get("broker")
        self._arena = Arena.create(settings.pool.shm_budget // MIN_BLOCK * MIN_BLOCK, "tfpool-arena")
        self.scheduler = Scheduler(Layout(self._arena.nbytes), limits_of(settings))
        self.registry = Registry()
        self.fleet = Fleet(settings.workers)
        self.clients = Clients()
        self.meters = Meters()
        self.front = Front(self)
        self.effects = Effects(self._arena, self.fleet, self.clients, self.meters, self.front.send)
        self.notebook = Notebook(settings)
        self.budget = Budget(self.notebook.footprints, self.notebook.measured)
        self._watcher = Watcher(settings.pool.poll_s, settings.server.models_root)
        self.lobby = Lobby(self.front.admit, self.effects.refuse, settings.pool.queue_budget)
        on_cpus = any(worker.device == "cpu" for worker in settings.workers)
        store = settings.store.directory if settings.store.enabled and on_cpus else ""
        self.lifecycle = Lifecycle(
            self.registry, settings.pool, self._watcher, self.notebook, self.lobby, time.monotonic, store
        )
        room = Room(self.registry, self.fleet, self.budget, self.scheduler)
        self.residence = self.lifecycle.residence = Residence(
            self.registry,
            self.fleet,
            settings.pool,
            self.budget,
            room,
            self.scheduler,
            self.decide,
            self.recycle,
            self.lifecycle,
        )
        numbers = count(1)
        self.reforms = Reforms(self.registry, self.fleet, self.budget, time.monotonic, numbers)
        self.migrations = Migrations(self.fleet, self.residence, time.monotonic, numbers)
        self.turnover = Turnover(self.registry, self.fleet, room, self.residence, self.migrations)
        self.rolling = Rolling(self.registry, self.fleet, room, self.migrations, self.recycle, self.residence.refill)
        self._logbook = Logbook(settings.placement.journal)
        placement = settings.placement
        survey = Survey(
            self.registry,
            self.fleet,
            self.budget,
            self.residence,
            self.scheduler,
            self.meters,
            self.migrations,
            self.reforms,
            placement,
            settings.store.inline,
        )
        self.planning = Planning(
            placement,
            settings.pool.residue_limit,
            self.registry,
            self.fleet,
            room,
            self.residence,
            self.migrations,
            self.rolling,
            self.reforms,
            survey,
            self._logbook,
            self.lifecycle.settled,
            self.lifecycle.ask,
            self.started,
        )
        self._blame = Blame(self.registry, self.scheduler, self.residence, self.turnover, self.notebook)
        self._watchdog = Watchdog(self.fleet, self.scheduler, settings.pool, self.started)
        self._bells = Bells(
            self._arena,
            self.scheduler,
            self.fleet,
            self.clients,
            self.residence,
            self.effects,
            self.reforms,
            self.decide,
            self._watch,
            self._blame.died,
            self.tell,
        )
        self.compiling = Compiling(
            settings,
            self.registry,
            self.fleet,
            self.reforms,
            self.lifecycle.settled,
            self.lifecycle.ask,
            self._watch,
            self.tell,
            self.started,
        )
        self._resolver = Resolver(self.registry)
        self.recorder = Recorder()
        self.shadows = Shadows(self.registry, self._resolver)
        self.taps = Taps(self.recorder, self.shadows)
        self.intake = Intake(self._resolver, self.clients, self.meters, self.taps, self.budget.hit, self.lifecycle.wake)
        self._was_lone = False
        self._stopped = False
        self._told = (-1, 0)
        self._untold = False
        self._busy_before: dict[str, float] = {}
        self._poller = zmq.Poller()
        for watched in (*self.front.sockets, control.fileno(), self._watcher.fileno()):
            self._poller.register(watched, zmq.POLLIN)

    def serve(self, outliving: Collection[str]) -> None:
        for model in self.notebook.models():
            self.lifecycle.add(model)
        self.tell(Control.UP)
        self._meet(outliving)
        gc.collect()
        gc.freeze()
        gc.set_threshold(50_000, 20, 20)
        next_tick, next_news = time.monotonic() + TICK_SECONDS, 0.0
        while not self._stopped:
            wake = min(
                next_news if self._untold else next_tick,
                next_tick,
                self.scheduler.wakeup(),
                self.lobby.expiry,
                self.lifecycle.next_retry(),
                self.planning.next_look,
            )
            for watched, _ in self._poll(wake):
                if isinstance(watched, zmq.Socket):
                    self.front.hear(watched)
                elif watched == self._control.fileno():
                    self._hear_supervisor()
                elif watched == self._watcher.fileno():
                    self.lifecycle.look()
                elif not self.compiling.hears(watched):
                    self._bells.hear(self.fleet.by_fd.get(watched))
            now = time.monotonic()
            self.lobby.expire(now)
            self.effects.perform(self.scheduler.handle(ev.Turn(), now))
            self.migrations.step()
            self.reforms.step()
            self.rolling.step()
            self.planning.step(now)
            self.lifecycle.step(now)
            self.front.answer_asked(now)
            news = (self.registry.epoch, self.fleet.epoch)
            if self._told != news:
                self._told = news
                self._untold = True
                self.models_changed()
            if self._untold and now >= next_news:
                self._untold, next_news = False, now + NEWS_SECONDS
                self.tell(Control.PROGRESS, progress(self))
            if self.front.closed and self._idle():
                self._finish()
            self.notebook.save()
            if now >= next_tick:
                next_tick = now + TICK_SECONDS
                self._tick()

    def _meet(self, outliving: Collection[str]) -> None:
        """Hear what workers hold of a broker before, for half a second at most: only then are models placed."""
        deadline = time.monotonic() + MEETING_SECONDS
        links = [self.fleet.links[name] for name in outliving]
        for link in links:
            link.outlives = True
        while any(link.state is WorkerState.STARTING for link in links) and not self._stopped:
            poller = zmq.Poller()
            for fd in (self._control.fileno(), *self.fleet.by_fd):
                poller.register(fd, zmq.POLLIN)
            ready = poller.poll(max(0, math.ceil((deadline - time.monotonic()) * 1000)))
            if not ready:
                late = [link.name for link in links if link.state is WorkerState.STARTING]
                self._log.warning("workers.late", workers=",".join(late))
                return
            for fd, _ in ready:
                if fd == self._control.fileno():
                    self._hear_supervisor()
                else:
                    self._bells.hear(self.fleet.by_fd.get(fd))

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

    def tell(self, verb: Control, *fields: Any, fds: tuple[int, ...] = ()) -> None:
        """A word to the supervisor. When it is gone, its end of file is on its way."""
        with suppress(BrokenPipeError, ConnectionResetError):
            self._control.ring(pack([verb, *fields]), fds)

    def models_changed(self) -> None:
        """Models, versions or their settings are not what they were."""
        for name in self.meters.models.keys() - self.registry.models.keys():
            self.meters.drop(name)
        self.shadows.refresh()
        self.taps.refresh()

    def recycle(self, link: Link) -> None:
        """Have a worker finish what it was given and be replaced."""
        link.state, link.leaving, link.drained = WorkerState.DRAINING, True, False
        self.decide(ev.Drain(link.name, True))
        self.tell(Control.RECYCLE, link.name)
        link.ring(Bell.STOP)

    # -- the supervisor ----------------------------------------------------------------------------------------

    def _hear_supervisor(self) -> None:
        try:
            while (heard := self._control.hear()) is not None:
                verb, *fields = unpack(heard[0])
                if verb == Control.WORKER:
                    self._bells.adopt(fields[0], fields[1], heard[1][0])
                elif verb == Control.REAPED:
                    self._reaped(*fields)
                elif verb == Control.HALTED:
                    self.turnover.halted(self.fleet.links[fields[0]])
                elif verb == Control.DRAIN:
                    self.front.closed = True
                    self._log.info("broker.draining", rows=self.scheduler.waiting_rows())
        except EOFError:
            self._stopped = True

    def _reaped(self, worker: str, generation: int, status: int, oom: bool) -> None:
        link = self.fleet.links[worker]
        if link.holder == (worker, generation):
            self._bells.hear(link)  # its last words and its end of file may still be unread
        guilty = self._blame.reaped(worker, generation, status, oom, time.monotonic())
        self.decide(ev.WorkerReaped((worker, generation), guilty))

    def _look_after_workers(self, now: float) -> None:
        """Give those up that are stuck, and tend those that should be left alone."""
        for found in self._watchdog.look(now):
            link = found.link
            if isinstance(found, Quiet):
                self._log.info("worker.quiet" if found.quiet else "worker.speaks", worker=link.name, pid=link.pid)
                self.decide(ev.Drain(link.name, found.quiet or link.leaving))
                continue
            self._log.error("worker.hung", worker=link.name, pid=link.pid, why=found.why)
            self.tell(Control.KILL, link.name, link.generation, found.why)
            self._blame.died(link, found)
            self._bells.lost(link)  # whoever waits for it need not wait for its end too
        self._blame.look(now)
        self.turnover.tend()

    def _watch(self, fd: int, watched: bool) -> None:
        if watched:
            self._poller.register(fd, zmq.POLLIN)
        else:
            self._poller.unregister(fd)

    def _idle(self) -> bool:
        return (
            not self.lobby.occupied
            and not self.scheduler.waiting_rows()
            and not any(self.scheduler.in_flight(name) for name in self.fleet.links)
        )

    def _finish(self) -> None:
        self.front.closed = False
        self._stopped = True
        self.tell(Control.DRAINED)

    # -- time --------------------------------------------------------------------------------------------------

    def _tick(self) -> None:
        for client in self.clients.dead():
            self.front.forget(client)
        for link in self.fleet.links.values():
            before = self._busy_before.get(link.name, 0.0)
            link.busy_share = min(1.0, (link.busy - before) / TICK_SECONDS)
            self._busy_before[link.name] = link.busy
            if link.bell is not None and link.bell.waiting:
                link.bell.flush()
        self._look_after_workers(time.monotonic())
        self.compiling.step(time.monotonic())
        self.recorder.expire(time.monotonic())
        self.taps.refresh()
        for queue in self._resolver.closed:
            self.decide(ev.QueueClosed(queue))
        self._resolver.closed.clear()

    def close(self) -> None:
        self.notebook.close()
        self._logbook.close()
        self._watcher.close()
        self.front.close()
        self._arena.close()
