"""What workers say over their doorbells, and what follows from it."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable
from typing import Any

from tfpool.broker.clients import Clients
from tfpool.broker.effects import POOL_ARENA, Effects
from tfpool.broker.fleet import Fleet, Link
from tfpool.broker.gather import Outputs
from tfpool.broker.inventory import Item
from tfpool.broker.reforms import Reforms
from tfpool.broker.residence import Residence
from tfpool.errors import Internal, InvalidArgument, ResourceExhausted, from_code
from tfpool.repository.memo import Footprint
from tfpool.scheduler import events as ev
from tfpool.scheduler.core import Scheduler
from tfpool.scheduler.curves import Point
from tfpool.scheduler.work import Batch
from tfpool.settings import Form
from tfpool.shm.arena import Arena
from tfpool.shm.doorbell import Doorbell
from tfpool.shm.layout import align
from tfpool.telemetry import log
from tfpool.types import DType, SignatureSpec, TensorSpec
from tfpool.wire.keys import OutputKey, unpack_output_key
from tfpool.wire.messages import Bell, Control, decode_gauge, unpack

_KEYS_KEPT = 4096


class Bells:
    """The broker's side of all doorbells. ``watch`` is told of descriptors that come (True) and go (False), ``died``
    of workers that are lost, before anything of them is forgotten. ``tell`` speaks to the supervisor."""

    def __init__(
        self,
        arena: Arena,
        scheduler: Scheduler,
        fleet: Fleet,
        clients: Clients,
        residence: Residence,
        effects: Effects,
        reforms: Reforms,
        decide: Callable[[ev.Event], None],
        watch: Callable[[int, bool], None],
        died: Callable[[Link], None],
        tell: Callable[..., None],
    ) -> None:
        self._arena = arena
        self._scheduler = scheduler
        self._fleet = fleet
        self._clients = clients
        self._residence = residence
        self._effects = effects
        self._reforms = reforms
        self._decide = decide
        self._watch = watch
        self._died = died
        self._tell = tell
        self._output_keys: dict[bytes, OutputKey] = {}
        self._log = log.get("broker")

    def adopt(self, name: str, generation: int, fd: int) -> None:
        """A new worker process holds the other end of ``fd``: hand it the pool's memory."""
        link = self._fleet.links[name]
        if link.bell is not None:
            self.lost(link)  # the end of file of the one before is still unread
        bell = Doorbell(socket.socket(fileno=fd), blocking=False)
        self._fleet.attach(name, generation, bell)
        self._watch(bell.fileno(), True)
        link.ring(Bell.ATTACH, POOL_ARENA, self._arena.nbytes, fds=(self._arena.fd,))

    def hear(self, link: Link | None) -> None:
        """Take in all that a worker has said."""
        try:
            while link is not None and link.bell is not None:
                heard = link.bell.hear()
                if heard is None:
                    return
                link.heard = True
                try:
                    self._said(link, unpack(heard[0]), heard[1])
                except (InvalidArgument, Internal, ValueError) as error:
                    self._log.error("worker.unreadable", worker=link.name, pid=link.pid, error=str(error))
                    self._tell(Control.KILL, link.name, link.generation, "it makes no sense")
                    self.lost(link)
        except (EOFError, BrokenPipeError, ConnectionResetError):
            assert link is not None
            self.lost(link)

    def lost(self, link: Link) -> None:
        """A worker's process is gone."""
        crashed = not link.leaving
        if crashed:
            link.deaths += 1
            self._log.warning("worker.lost", worker=link.name, pid=link.pid)
        assert link.bell is not None
        self._died(link)
        self._watch(link.bell.fileno(), False)
        self._fleet.detach(link)
        self._residence.lost(link)
        self._decide(ev.WorkerLost(link.name, "its process ended"))

    def _said(self, link: Link, message: list[Any], fds: list[int]) -> None:
        verb, *fields = message
        if verb == Bell.DONE:
            self._done(link, fields, fds)
        elif verb == Bell.LATE:
            self._decide(ev.Late(link.name, fields[0]))
        elif verb == Bell.FAILED:
            batch, code, text = fields
            self._log.warning("batch.failed", worker=link.name, batch=batch, code=code, error=text)
            self._decide(ev.Broken(link.name, batch, 0.0, from_code(code, text)))
        elif verb == Bell.READY:
            pid, gauge, base, inventory = fields
            self._fleet.ready(link, pid, decode_gauge(gauge), decode_gauge(base), [Item(*item) for item in inventory])
            self._tell(Control.READY, *link.holder)
            self._decide(ev.WorkerJoined(link.name, link.holder))
            self._residence.joined(link)
            self._log.info("worker.ready", worker=link.name, pid=link.pid)
        elif verb == Bell.GAUGE:
            link.tells(decode_gauge(fields[0]))
            self._residence.gauged(link)
        elif verb == Bell.WARMING:
            self._residence.warming(link, fields[0])
        elif verb == Bell.LOADED:
            self._loaded(link, *fields)
        elif verb == Bell.LOAD_FAILED:
            self._residence.load_failed(link, fields[0], from_code(fields[1], fields[2]))
        elif verb == Bell.REFORMED:
            self._reforms.changed(link, fields[0], *_took(fields[1]))
        elif verb == Bell.REFORM_FAILED:
            self._reforms.failed(link, *fields)
        elif verb == Bell.UNLOADED:
            handle, gauge = fields
            link.tells(decode_gauge(gauge))
            self._residence.unloaded(link, handle)
        elif verb != Bell.BEAT:  # which says no more than that it is there
            raise Internal(f"worker {link.name} said {verb}")

    def _loaded(self, link: Link, handle: int, info: dict[str, Any]) -> None:
        found, form, key = _took(info)
        signatures = tuple(_signature(fields) for fields in info["signatures"])
        self._residence.loaded(link, handle, found, signatures, info["skipped"], form, key)
        version = self._residence.held(link, handle)
        if version is not None:
            curves = [[Point(*point) for point in curve] for curve in info["curves"]]
            self._decide(ev.Measured(version.key, link.name, curves))

    def _done(self, link: Link, fields: list[Any], fds: list[int]) -> None:
        batch, begun, run_us, results = fields
        needed = max(sum(align(nbytes) for _, nbytes in places) for _, places, _ in results)
        run = run_us / 1e6
        try:
            spills = _spills(fds, wanted) if (wanted := sum(spilled for *_, spilled in results)) else []
        except ResourceExhausted as error:
            self._decide(ev.Broken(link.name, batch, run, error))
            return
        actions = self._scheduler.handle(ev.Completed(link.name, batch, run, needed, begun), time.monotonic())
        if actions:
            rest = iter(spills)
            done = actions[0]
            assert isinstance(done, ev.Deliver)
            outputs = [
                Outputs(packed, self._output_key(packed), places, next(rest).view if spilled else view)
                for (packed, places, spilled), view in zip(results, self._views(done.batch, len(results)), strict=True)
            ]
            self._effects.perform(actions, outputs, run)
            del outputs
        for spill in spills:
            spill.close()

    def _output_key(self, packed: bytes) -> OutputKey:
        key = self._output_keys.get(packed)
        if key is None:
            key = unpack_output_key(packed)
            if len(self._output_keys) >= _KEYS_KEPT:
                self._output_keys.clear()
            self._output_keys[packed] = key
        return key

    def _views(self, batch: Batch, count: int) -> list[memoryview]:
        """The memory that each result of a batch was written to."""
        if not batch.alone:
            return [self._arena.view] * count
        peers = [self._clients.peers.get(p.client) if p.reply is not None else None for p in batch.pieces]
        return [peer.arena.view if peer else self._arena.view for peer in peers]


def _spills(fds: list[int], wanted: int) -> list[Arena]:
    """The memory of outputs that had no room in theirs. Raises ResourceExhausted where it cannot be mapped, or the
    kernel has dropped descriptors because this process has too many."""
    spills: list[Arena] = []
    why = f"got {len(fds)} of {wanted} descriptors"
    try:
        spills.extend(Arena(fd, os.fstat(fd).st_size) for fd in fds)
        if len(fds) == wanted:
            return spills
    except OSError as error:
        why = str(error)
    for spill in spills:
        spill.close()
    for fd in fds[len(spills) :]:
        os.close(fd)
    raise ResourceExhausted(f"the outputs cannot be mapped: {why}")


def _took(info: dict[str, Any]) -> tuple[Footprint, Form, str]:
    """What a load took, the form that it gave, and the file of the store that it maps."""
    key, shared = info["mapped"] or ("", 0)
    found = Footprint(info["memory_bytes"], info["peak_bytes"], info["load_seconds"], shared)
    return found, Form(info["form"]), key


def _signature(fields: dict[str, Any]) -> SignatureSpec:
    tensors = {side: tuple(_tensor(item) for item in fields[side]) for side in ("inputs", "outputs")}
    return SignatureSpec(
        fields["name"],
        fields["method"],
        tensors["inputs"],
        tensors["outputs"],
        fields["batchable"],
        fields["mutates"],
        fields["reason"],
    )


def _tensor(fields: dict[str, Any]) -> TensorSpec:
    shape = fields["shape"]
    return TensorSpec(fields["name"], DType(fields["dtype"]), None if shape is None else tuple(shape))
