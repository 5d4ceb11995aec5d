"""What is put to the same closed loops: our pool by its client and over HTTP, and peers over HTTP."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import partial
from itertools import cycle
from typing import Protocol

import numpy as np

import tfpool
from bench import loads, pool, variants, wrk
from bench.arrivals import Schedule
from bench.errors import WrongAnswer
from bench.fleet import Fleet, Meter
from bench.inprocess import serving_default
from bench.loads import ATOL, RTOL
from bench.open import Stream
from bench.peers.oip import infer
from bench.peers.peer import Peer, Task
from bench.peers.serving import Served
from bench.points import Point
from bench.post import Post
from bench.processes import cpu_seconds, footprint
from bench.scenario import Settings
from bench.senders import Sender, Together
from bench.variants import Variant
from bench.web import WebStream
from tfpool.repository.scan import scan
from tfpool.settings import STORE_OFF
from tfpool.testing.fronts import await_front, free_address
from tfpool.wire.tensors import Array

OURS, OURS_HTTP, OURS_PLAIN = "tfpool", "tfpool, HTTP", "tfpool, store off"
_BUSY = ("gateway", "broker", "worker")
_AUDIT_SECONDS = 0.05
_AUDIT_SHARE = 0.002  # of the requests under way: they are work that is not counted


class System(Protocol):
    """Who answers one model's requests of one row."""

    name: str

    def closed(self, settings: Settings, in_flight: int) -> Point:
        """One window's load. Raises WrongAnswer and ChildFailed."""

    def open(self, settings: Settings, schedule: Schedule, load: str, level: float) -> Point:
        """Requests at their moments, without deadlines. Raises WrongAnswer and ChildFailed."""


class Native:
    """A pool by its own client, in a process of its own; the pool's ``fleet`` is on one model."""

    def __init__(self, name: str, served: tfpool.Pool, model: str, fleet: Fleet) -> None:
        self.name = name
        self._served = served
        self._model = model
        self._fleet = fleet

    def closed(self, settings: Settings, in_flight: int) -> Point:
        load = self._fleet.measure(settings, in_flight)
        return load.point(self.name, self._model, in_flight, memory(_roles(pool.processes(self._served))))

    def open(self, settings: Settings, schedule: Schedule, load: str, level: float) -> Point:
        settings.progress.say(f"{self.name}, {self._model}, {load} at {100 * level:g} %")
        with Stream(self._served, self._model, settings.models.samples[self._model]) as stream:
            return _sent(stream, schedule, loads.meter(self._served), self.name, self._model, load, level)


class Web:
    """A server that speaks HTTP, loaded from C. While it is, other rows are asked in between, and their answers
    compared."""

    def __init__(
        self,
        name: str,
        model: str,
        posts: list[Post],
        audit: Callable[[int, bytes], None],
        pids: Callable[[], Mapping[str, list[int]]],
        meter: Meter,
    ) -> None:
        self.name = name
        self._model = model
        self._posts = posts
        self._audit = audit
        self._pids = pids
        self._meter = meter

    def closed(self, settings: Settings, in_flight: int) -> Point:
        with self._audited(in_flight):
            load = wrk.shoot(settings, f"{self.name}, {self._model}", self._posts[0], in_flight, self._meter)
        return load.point(self.name, self._model, in_flight, memory(self._pids()))

    def open(self, settings: Settings, schedule: Schedule, load: str, level: float) -> Point:
        settings.progress.say(f"{self.name}, {self._model}, {load} at {100 * level:g} %")
        with WebStream(self._posts, self._audit) as stream:
            return _sent(stream, schedule, self._meter, self.name, self._model, load, level)

    @contextmanager
    def _audited(self, in_flight: int) -> Iterator[None]:
        """Ask and compare meanwhile, but seldom: the load is wrk's. Raises WrongAnswer at the end."""
        over, failures = threading.Event(), list[Exception]()

        def ask() -> None:
            try:
                for number in cycle(range(len(self._posts))):
                    begun = time.monotonic()
                    self._audit(number, self._posts[number].once())
                    took = time.monotonic() - begun
                    if over.wait(max(_AUDIT_SECONDS, took / (_AUDIT_SHARE * in_flight))):
                        return
            except Exception as error:  # whatever it is: nothing was compared any more
                failures.append(error)

        thread = threading.Thread(target=ask, name="audit")
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()
        if failures:
            raise WrongAnswer(f"{self.name}: {failures[0]}") from failures[0]


def _sent(sender: Sender, schedule: Schedule, meter: Meter, name: str, model: str, load: str, level: float) -> Point:
    before = meter()
    traffic = Together([sender]).send(schedule, None)
    after, requests = meter(), max(1, len(schedule.moments))
    served_us = {role: 1e6 * (spent - before[role]) / requests for role, spent in after.items()}
    return traffic.point(name, model, load, level, served_us)


def memory(pids: Mapping[str, list[int]]) -> dict[str, float]:
    """PSS in MB by role, of those that still live."""
    found = dict.fromkeys(pids, 0.0)
    for role, some in pids.items():
        for pid in some:
            with suppress(OSError):
                found[role] += footprint(pid).pss / 1e6
    return found


# -- ours ----------------------------------------------------------------------------------------------------------


@contextmanager
def ours(settings: Settings, model: str, workers: int = 1, stored: bool = True) -> Iterator[list[System]]:
    """A pool with a gateway, and the two ways to it. The model is in its store, as it is for users by default."""
    store = compiled(settings, model) if stored else STORE_OFF
    address = free_address()
    table = [{"name": model, "base_path": settings.models.paths[model], "replicas": workers}]
    rows, answers = samples(settings, model)
    with (
        pool.configure(settings, table, workers, http=address, store=store) as served,
        loads.on(settings, served, model) as fleet,
    ):
        await_front(address)
        taken = _version(settings, model)[1]
        posts = [infer(address, model, taken, rows[n : n + 1]) for n in range(len(rows))]

        def audit(number: int, content: bytes) -> None:
            got = np.frombuffer(content[-answers[:1].nbytes :], np.float32).reshape(answers[:1].shape)
            if not np.allclose(got, answers[number : number + 1], RTOL, ATOL):
                raise WrongAnswer("an answer is not TensorFlow's")

        pids = _roles(pool.processes(served))
        meter = partial(_spent, {role: some for role, some in pids.items() if role in _BUSY})
        web = Web(OURS_HTTP, model, posts, audit, lambda: pids, meter)
        yield [Native(OURS if stored else OURS_PLAIN, served, model, fleet), web]


def compiled(settings: Settings, model: str) -> str:
    """A store beside the model, that has it; kept where the model is. Raises ChildFailed."""
    store = os.path.join(os.path.dirname(settings.models.paths[model]), "store")
    variants.build(settings, [Variant(model, 0, settings.models.paths[model])], store)
    return store


def _spent(pids: Mapping[str, list[int]]) -> dict[str, float]:
    """CPU seconds by role."""
    return {role: cpu_seconds(*some) for role, some in pids.items()}


def _roles(pids: Mapping[str, int]) -> dict[str, list[int]]:
    """Who serves, by what it is; the others sleep."""
    found: dict[str, list[int]] = {}
    for name, pid in pids.items():
        found.setdefault(name.split()[0].split("-")[0], []).append(pid)
    return found


# -- peers ---------------------------------------------------------------------------------------------------------


def task(settings: Settings, peer: Peer, model: str, processes: int = 1) -> Task:
    """What a peer is to serve, tuned for it."""
    rows, answers = samples(settings, model)
    path, taken, given = _version(settings, model)
    port = int(free_address().rpartition(":")[2])
    directory = os.path.join(settings.directory, peer.name)
    os.makedirs(directory, exist_ok=True)
    batching = peer.tuned[model]
    shapes = rows.shape[1:], answers.shape[1:]
    return Task(model, path, taken, given, *shapes, batching, processes, port, directory)


def theirs(settings: Settings, served: Served) -> Web:
    """A peer that runs."""
    rows, answers = samples(settings, served.task.model)
    posts = [served.peer.post(served.task, rows[n : n + 1]) for n in range(len(rows))]

    def audit(number: int, content: bytes) -> None:
        served.compare(content, answers[number : number + 1])

    pids, meter = (lambda: {"server": list(served.pids())}), (lambda: {"server": served.cpu_seconds()})
    return Web(served.peer.title, served.task.model, posts, audit, pids, meter)


def samples(settings: Settings, model: str) -> tuple[Array, Array]:
    """Rows, and what TensorFlow makes of them."""
    with np.load(settings.models.samples[model]) as file:
        return file["x"], file["y"]


def _version(settings: Settings, model: str) -> tuple[str, str, str]:
    """The directory of the version, its one input and its one output."""
    directory = max(scan(settings.models.paths[model]).items())[1]
    signature = serving_default(directory)
    (taken,), (given,) = signature.inputs, signature.outputs
    return directory, taken.name, given.name
