"""The workers of a simulated game: they finish, fail, hang, lag, repeat themselves, die and are replaced."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from heapq import heappush
from random import Random
from typing import TypeVar
from zlib import crc32

from tfpool.errors import InvalidArgument
from tfpool.scheduler import events as ev
from tfpool.scheduler.comeback import MAX_DEATHS, MAX_LONE_DEATHS
from tfpool.scheduler.core import Scheduler
from tfpool.scheduler.curves import Point
from tfpool.scheduler.work import Batch
from tfpool.testing.game import Move, Table, Worker, brief
from tfpool.testing.referee import Referee

SLOWER = 10.0
T = TypeVar("T")


class Workers(Referee):
    """They, and the agenda: what is due when, under a key that is its own."""

    def __init__(self, seed: int, calm: bool, table: Table, scheduler: Scheduler) -> None:
        super().__init__(seed, calm, table, scheduler)
        self._agenda: list[tuple[float, int, str, Callable[[], None]]] = []
        self._step = 0
        self._said: list[ev.Completed | ev.Broken | ev.Late] = []

    @abstractmethod
    def _tell(self, event: ev.Event) -> list[ev.Action]:
        """Have the scheduler handle an event, and the referee what it does."""

    def _at(self, when: float, key: str, what: Callable[[], None]) -> None:
        self._step += 1
        heappush(self._agenda, (when, self._step, key, what))

    def _chance(self, key: str, options: Sequence[T]) -> T:
        """One of the options: always the same for a key, whatever else happens."""
        return options[crc32(f"{self.seed} {key}".encode()) % len(options)]

    def _join(self, worker: Worker) -> None:
        worker.begin()
        self._tell(ev.WorkerJoined(worker.name, worker.holder))
        for servable in worker.models:
            if servable not in self._closed:
                worker.routes.add(servable)
                self._tell(ev.Routed(servable, worker.name))
                if self._chance(f"warm {worker.holder} {servable}", [True, False]):
                    cost = self.table.costs[servable]
                    points = [Point(rows, cost * (1 + rows / 16)) for rows in (1, 8, 64)]
                    self._tell(ev.Measured(servable, worker.name, [points]))

    def _somebody(self, throw: Random) -> Worker | None:
        worker = throw.choice(list(self.workers.values()))
        return worker if worker.alive else None

    def _kill_any(self, move: Move, throw: Random) -> None:
        if worker := self._somebody(throw):
            self._kill(worker)

    def _hang(self, move: Move, throw: Random) -> None:
        """A worker finishes nothing any more, until the watchdog kills it."""
        worker = self._somebody(throw)
        if worker is not None and not worker.hung:
            worker.hung, life = True, worker.generation
            self._at(self.now + throw.choice([0.1, 1.0]), f"watchdog {move.number}", lambda: self._kill(worker, life))

    def _slow_down(self, move: Move, throw: Random) -> None:
        if worker := self._somebody(throw):
            self._slowed = True
            worker.slow_until = self.now + throw.choice([0.05, 0.5])

    def _mute(self, move: Move, throw: Random) -> None:
        """A worker dies with its next answer on its lips."""
        if worker := self._somebody(throw):
            worker.mute = True

    def _repeat(self, move: Move, throw: Random) -> None:
        """A worker says twice what it has said."""
        if self._said:
            self._ignored(self._said[-1])

    def _stale(self, move: Move, throw: Random) -> None:
        """Something comes late: of a batch that is long done, or that a worker had in a former life."""
        if self._said:
            self._ignored(throw.choice(self._said))

    def _kill(self, worker: Worker, life: int = 0, guilty: bool = False) -> None:
        """A worker dies (``life``: if it is still that one), of what it ran, or so it looks, or of something else."""
        if not worker.alive or (life and worker.generation != life):
            return
        self._came_back = True
        holder, lost = worker.holder, worker.end()
        key = f"death {holder}"
        guilty = guilty or self._chance(f"{key} guilty", [True, False])
        self._quarantined[holder] = sum(batch.lease.nbytes for batch in lost if batch.lease)
        for batch in lost:
            requests = self._rows_of(batch)
            for request, rows in requests:
                if batch is lost[0]:  # the others were staged behind it
                    request.deaths += 1
                    request.died_alone = len(requests) == 1
                    request.lone_deaths += request.died_alone
                    if self._is_accused(batch):
                        self._accused.setdefault(holder, []).append((request, rows))
                        continue
                request.running -= rows
            self._said.append(ev.Completed(worker.name, batch.id, 0.001, 64))
        self._tell(ev.WorkerLost(worker.name, "killed"))
        delay = self._chance(key, [0.0, 0.01, 0.2])
        self._at(self.now + delay, key, lambda: self._reaped(holder, guilty))
        again = delay + self._chance(f"{key} again", [0.0, 0.1])
        self._at(self.now + again, f"{key} again", lambda: self._join(worker))

    def _is_accused(self, batch: Batch) -> bool:
        """Whether a worker died of a batch, perhaps: of a single request, and not for the first time."""
        piece = batch.pieces[0]
        failed = piece.join is not None and piece.join.failed
        again = batch.spec.retry and batch.spec.servable not in self._closed and not failed
        return again and batch.requests == 1 and piece.deaths + 1 >= MAX_DEATHS

    def _reaped(self, holder: tuple[str, int], guilty: bool) -> None:
        del self._quarantined[holder]
        for request, rows in self._accused.pop(holder, []):
            request.running -= rows
            request.died_alone = guilty or request.lone_deaths >= MAX_LONE_DEATHS
            if not guilty:
                request.deaths = MAX_DEATHS - 1
        self._tell(ev.WorkerReaped(holder, guilty))

    def _run(self, worker: Worker) -> None:
        """The worker turns to its next batch, which it must not begin after a deadline."""
        batch, life = worker.batches[0], worker.generation
        key = f"batch {batch.id}"
        if batch.start_by <= self.now:
            self._at(self.now, key, lambda: self._late(worker, batch, life))
        else:
            seconds = self._cost(batch) * (SLOWER if self.now < worker.slow_until else 1.0)
            self._at(self.now + seconds, key, lambda: self._finish(worker, batch, seconds, life))

    def _late(self, worker: Worker, batch: Batch, life: int) -> None:
        if worker.generation == life and worker.alive and not worker.hung:
            self._put_down(worker)
            self._came_back = True
            self._say(ev.Late(worker.name, batch.id))

    def _finish(self, worker: Worker, batch: Batch, seconds: float, life: int) -> None:
        if not worker.alive or worker.generation != life or worker.hung:
            return
        requests = [request for request, _ in self._rows_of(batch)]
        killers = [request for request in requests if request.kills]
        if killers or worker.mute:
            for request in killers:
                request.kills -= 1
            self._kill(worker, guilty=bool(killers))
            return
        self._put_down(worker)
        if any(request.poison for request in requests):
            self._say(ev.Broken(worker.name, batch.id, 0.0, InvalidArgument("poison")))
        else:
            size = self._chance(f"size {batch.id}", [0, 64, 1000, 9000])
            self._say(ev.Completed(worker.name, batch.id, seconds, size, self.now - seconds))

    def _put_down(self, worker: Worker) -> None:
        """The worker is through with its first batch."""
        batch = worker.batches.popleft()
        for request, rows in self._rows_of(batch):
            request.running -= rows
        if worker.batches:
            self._run(worker)

    def _say(self, event: ev.Completed | ev.Broken | ev.Late) -> None:
        actions = self._tell(event)
        self._said.append(event)
        if isinstance(event, ev.Completed) and not actions:
            self._fail("a completed batch was not delivered")

    def _ignored(self, event: ev.Event) -> None:
        if self._tell(event):
            self._fail(f"what had been said before was taken for new: {brief(event)}")

    def _cost(self, batch: Batch) -> float:
        return self.table.costs[batch.spec.servable] * (1 + batch.padded / 16)
