"""What a :class:`~tfpool.testing.world.World` has instead of a disk and worker processes."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from typing import Any
from unittest.mock import patch

from tfpool.broker import reload
from tfpool.broker.inventory import Item
from tfpool.broker.stored import Stored, look_up
from tfpool.errors import FailedPrecondition, NotFound, TfpoolError
from tfpool.repository import describe
from tfpool.repository.describe import Description
from tfpool.repository.memo import Footprint
from tfpool.repository.watcher import Done, Roster, Sighting
from tfpool.settings import Form
from tfpool.wire.messages import Bell, Gauge, unpack

MIB = 1 << 20
BASE = 10 * MIB


class Disk:
    """A watcher whose looks and jobs end when the test says so.

    ``found`` has the versions of each base path, ``sizes`` the bytes of version directories, and ``garbled`` those that
    cannot be read. ``store`` has what has been compiled, by version directory.
    """

    def __init__(self) -> None:
        self.found: dict[str, dict[int, str]] = {}
        self.sizes: dict[str, int] = {}
        self.garbled: set[str] = set()
        self.store: dict[str, Stored] = {}
        self.paths: dict[str, str] = {}
        self.jobs: deque[tuple[Callable[[], Any], Future[Any]]] = deque()
        self.looks: deque[tuple[str, int]] = deque()
        self.news: list[Sighting | Roster | Done] = []
        self._tickets = 0

    def watch(self, model: str, base_path: str) -> None:
        self.paths[model] = base_path
        self.looks.append((model, 0))

    def forget(self, model: str) -> None:
        del self.paths[model]
        self.news = [one for one in self.news if not isinstance(one, Sighting) or one.model != model]

    def look(self, model: str) -> int:
        self._tickets += 1
        self.looks.append((model, self._tickets))
        return self._tickets

    def ask(self, job: Callable[[], Any]) -> Future[Any]:
        future: Future[Any] = Future()
        self.jobs.append((job, future))
        return future

    def seen(self) -> list[Sighting | Roster | Done]:
        news, self.news = self.news, []
        return news

    def end_look(self) -> None:
        model, ticket = self.looks.popleft()
        path = self.paths.get(model)
        if path is not None:
            found = dict(self.found.get(path, {}))
            error = None if found else NotFound(f"{path}: no such directory")
            marks = {number: f"{self.sizes.get(where)}" for number, where in found.items()}
            self.news.append(Sighting(model, path, found, marks, error, ticket))

    def end_job(self) -> None:
        job, future = self.jobs.popleft()
        if isinstance(job, partial) and job.func is describe.describe:
            job = partial(self.describe, *job.args)
        elif isinstance(job, partial) and job.func is look_up:
            job = partial(self.store.get, job.args[1])
        try:
            with patch.object(reload, "scan", self.scan):
                future.set_result(job())
        except TfpoolError as error:
            future.set_exception(error)
        self.news.append(Done(future))

    def describe(self, directory: str) -> Description:
        if directory in self.garbled:
            raise FailedPrecondition(f"{directory}: damaged")
        return Description((), {}, {}, directory, 1)

    def scan(self, base_path: str) -> dict[int, str]:
        if not self.found.get(base_path):
            raise NotFound(f"{base_path}: no such directory")
        return dict(sorted(self.found[base_path].items()))


class Bellows:
    """The broker's end of a worker's doorbell; the worker is what the test makes of the messages.

    ``slow`` has the loads, unloads and changes of form that it is at, ``runs`` the handle of each batch. By handle:
    ``held`` are bytes, ``found`` what was measured, ``forms`` how it is held, ``maps`` the file of the store that it
    maps, ``orders`` how it was ordered.
    """

    _numbers = iter(range(1000, 1_000_000))

    def __init__(self, name: str) -> None:
        self.number = next(self._numbers)
        self.name = name
        self.slow: deque[tuple[Any, ...]] = deque()
        self.runs: dict[int, int] = {}
        self.held: dict[int, int] = {}
        self.found: dict[int, Footprint] = {}
        self.maps: dict[int, str] = {}
        self.forms: dict[int, Form] = {}
        self.orders: dict[int, tuple[str, str, dict[str, Any]]] = {}
        self.told_off: set[int] = set()
        self.stopped = False

    def fileno(self) -> int:
        return self.number

    def close(self) -> None:
        pass

    def ring(self, data: bytes, fds: tuple[int, ...] = ()) -> None:
        verb, *fields = unpack(data)
        if verb == Bell.RUN:
            batch, handle = fields[:2]
            assert handle in self.held, f"a run of {handle}, which {self.name} does not hold"
            assert handle not in self.told_off, f"a run of {handle}, which {self.name} has been told to unload"
            self.runs[batch] = handle
        elif verb == Bell.LOAD:
            assert fields[0] not in self.held or fields[0] in self.told_off, "loaded twice"
            self.orders[fields[0]] = (fields[1], fields[2], fields[3])
            self.slow.append(("load", fields[0], fields[2], fields[3].get("form", Form.PLAIN.value)))
        elif verb == Bell.REFORM:
            assert fields[0] in self.held, f"a change of {fields[0]}, which {self.name} does not hold"
            assert fields[0] not in self.told_off, f"a change of {fields[0]}, which is on its way out"
            assert ("reform", fields[0]) not in [order[:2] for order in self.slow], "told to change twice"
            self.slow.append(("reform", fields[0], self.orders[fields[0]][1], fields[1]))
        elif verb == Bell.ADOPT:
            self._adopt(*fields)
        elif verb == Bell.UNLOAD:
            assert fields[0] not in self.runs.values(), "told to unload what it runs"
            assert fields[0] not in self.told_off, "told to unload twice"
            self.told_off.add(fields[0])
            self.orders.pop(fields[0], None)
            self.slow.append(("unload", fields[0]))
        elif verb == Bell.STOP:
            self.stopped = True

    def inventory(self) -> list[Item]:
        """What it holds, or loads, for a broker that knows nothing of it; the unloads that it is at end."""
        names = {handle: -number for number, handle in enumerate(self.orders, 1)}
        self.orders = {names[handle]: order for handle, order in self.orders.items()}
        self.held = {names[handle]: nbytes for handle, nbytes in self.held.items() if handle in names}
        self.found = {names[handle]: found for handle, found in self.found.items() if handle in names}
        self.maps = {names[handle]: key for handle, key in self.maps.items() if handle in names}
        self.forms = {names[handle]: form for handle, form in self.forms.items() if handle in names}
        self.slow = deque((what, names[h], *rest) for what, h, *rest in self.slow if what != "unload" and h in names)
        self.told_off.clear()
        self.runs.clear()
        return [Item(handle, *order, self.held.get(handle)) for handle, order in self.orders.items()]

    def _adopt(self, handle: int, new: int) -> None:
        self.orders[new] = self.orders.pop(handle)
        if handle in self.held:
            self.held[new] = self.held.pop(handle)
            self.found[new], self.forms[new] = self.found.pop(handle), self.forms.pop(handle)
            if handle in self.maps:
                self.maps[new] = self.maps.pop(handle)
            self.slow.append(("told", new))
        self.slow = deque((what, new if old == handle else old, *rest) for what, old, *rest in self.slow)

    def holds(self, handle: int, form: Form, found: Footprint, key: str) -> None:
        """A load, or a change, has ended well."""
        self.held[handle], self.forms[handle] = found.nbytes, form
        self.found[handle] = found
        self.maps.pop(handle, None)
        if form is Form.MAPPED:
            self.maps[handle] = key

    def took(self, handle: int) -> tuple[Footprint, Form, str]:
        """What a model takes, in which form, and the file that it maps."""
        return self.found[handle], self.forms[handle], self.maps.get(handle, "")

    def drops(self, handle: int) -> None:
        """An unload has ended."""
        for known in (self.held, self.found, self.forms, self.maps):
            known.pop(handle, None)
        self.told_off.discard(handle)

    @property
    def unique(self) -> int:
        """Bytes of memory."""
        return BASE + sum(self.held.values())

    @property
    def gauge(self) -> Gauge:
        return Gauge(self.unique, self.unique, self.unique)
