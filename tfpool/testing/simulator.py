"""A pool in virtual time: the real scheduler, with workers and clients that are dice.

``python -m tfpool.testing.simulator --seeds N`` plays N games. Each seed is one game: random models, policies and
arenas; clients that submit, cancel and leave; workers that finish, fail, die and are replaced. After every event the
simulator compares what the scheduler did with what it may do, and raises :class:`Violation` with the seed and the
last events.
"""

from __future__ import annotations

import heapq
import sys
import time
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from random import Random
from typing import Any

from tfpool.errors import InvalidArgument, NotFound, TfpoolError
from tfpool.scheduler import events as ev
from tfpool.scheduler.core import Scheduler
from tfpool.scheduler.work import LEAST_QUANTUM, Batch, BatchPolicy, Input, QueueSpec, Segment
from tfpool.shm.layout import MIN_BLOCK, Layout
from tfpool.testing.referee import Name, Referee, Request, Source, Violation, Worker, brief
from tfpool.types import ModelKey
from tfpool.wire.messages import Region

HORIZON = 2.0


class Simulation(Referee):
    """One game. ``calm``: nobody dies, cancels or fails."""

    def __init__(self, seed: int, calm: bool = False) -> None:
        super().__init__(seed, calm)
        self._dice = dice = Random(seed)
        self._agenda: list[tuple[float, int, Callable[[], None]]] = []
        self._step = 0
        self._costs: dict[ModelKey, float] = {}
        self._roomy = dice.random() < 0.5
        capacity = (1 << 22) if self._roomy else MIN_BLOCK * dice.choice([2, 5, 16, 64])
        self.scheduler = Scheduler(Layout(capacity), narrow=dice.choice([1, 8]))
        self._specs = [self._some_spec(i) for i in range(dice.randint(1, 5))]
        self._next_spec = len(self._specs)
        self._refusals: list[TfpoolError] = []
        names: list[str] = [Name(f"w{i}") for i in range(dice.randint(1, 3))]
        self.workers = {name: Worker(name, []) for name in names}
        for servable in dict.fromkeys(spec.servable for spec in self._specs):
            self._costs[servable] = dice.choice([0.0005, 0.002, 0.01, 0.05])
            for name in dice.sample(names, dice.randint(1, len(names))):
                self.workers[name].models.append(servable)
        self._plan()

    # -- the dice ----------------------------------------------------------------------------------------------

    def _some_spec(self, number: int) -> QueueSpec:
        dice = self._dice
        mutates = dice.random() < 0.15
        by_rows = dice.random() < 0.9
        policy = BatchPolicy(
            max_rows=dice.choice([1, 2, 4, 8, 16, 64]),
            max_wait=dice.choice([0.0, 0.0, 0.0, 0.004, 0.05]),
            sizes=dice.choice([(), (), (1, 2, 4, 8, 16, 64), (4, 8), (3, 5)]),
            pad=dice.random() < 0.6,
            max_queue_rows=dice.choice([5, 30, 200, 16384]),
            weight=dice.choice([1.0, 1.0, 0.2, 5.0]),
        )
        inputs = tuple(
            Input((1,), dice.choice([0, 1, 4, 64, 100, 900]), False) if dice.random() < 0.75 else Input((1,), 4, True)
            for _ in range(dice.choice([1, 1, 1, 2, 3]))
        )
        servable = ModelKey(f"m{dice.randint(0, number)}", 1)
        batchable = by_rows and not mutates and dice.random() < 0.85
        return QueueSpec(number, servable, 0, inputs, by_rows, batchable, not mutates, policy)

    def _plan(self) -> None:
        dice = self._dice
        for worker in self.workers.values():
            self._at(dice.choice([0.0, 0.0, 0.3]), partial(self._join, worker))
        for _ in range(dice.choice([5, 20, 60])):
            self._at(dice.uniform(0.0, HORIZON), self._burst)
        if self._calm:
            return
        for _ in range(dice.choice([0, 2, 6])):
            self._at(dice.uniform(0.0, HORIZON), self._cancel)
        for _ in range(dice.choice([0, 0, 1, 4])):
            self._at(dice.uniform(0.0, HORIZON), self._kill_any)
        for _ in range(dice.choice([0, 0, 3])):
            self._at(dice.uniform(0.0, HORIZON), self._toggle)
        if dice.random() < 0.2:
            self._at(dice.uniform(0.0, HORIZON), self._client_leaves)
        if dice.random() < 0.2:
            self._at(dice.uniform(0.0, HORIZON), self._unload)
        if dice.random() < 0.3:
            self._at(dice.uniform(0.0, HORIZON), self._new_queue)

    def _at(self, when: float, what: Callable[[], None]) -> None:
        self._step += 1
        heapq.heappush(self._agenda, (when, self._step, what))

    # -- what clients do ---------------------------------------------------------------------------------------

    def _burst(self) -> None:
        dice = self._dice
        for _ in range(dice.choice([1, 1, 3, 12])):
            spec = dice.choice(self._specs)
            if spec.servable not in self._closed:
                self._submit(spec)

    def _submit(self, spec: QueueSpec) -> None:
        dice = self._dice
        client = dice.choice([b"a", b"b", b"c"])
        rows = dice.choice([1, 1, 1, 2, 3, 7, 20]) if spec.by_rows else 1
        count = dice.choice([1, 1, 2, 5, 30]) if spec.by_rows else 1
        dense = not any(item.text for item in spec.inputs)
        regions = reply = None
        if dense and dice.random() < 0.2:
            count = 1
            regions = tuple(Region(4096, item.row_bytes * rows) for item in spec.inputs)
            reply = Region(8192, 4096) if dice.random() < 0.6 else None
        first = 1 + max((number for owner, number in self.requests if owner == client), default=-1)
        deadline = self.now + dice.choice([0.003, 0.05, 0.5, 3.0, 30.0])
        priority = dice.choice([0, 0, 0, 1, -1])
        flood = self.rows_waiting(client, spec) + rows * count > LEAST_QUANTUM
        for number in range(first, first + count):
            bad = not self._calm
            request = Request(
                spec,
                client,
                number,
                rows,
                deadline,
                priority,
                len(self.requests),
                bad and dice.random() < 0.03,
                bad and dice.random() < 0.005,
                flood=flood,
            )
            self.requests[client, number] = self._open[client, number] = request
        payload = tuple(self._ends(rows * count) for item in spec.inputs if item.text)
        buffers: list[Any] = [b""] * (len(spec.inputs) + len(payload))
        self._sources[id(buffers)] = Source(first, count, rows), buffers
        segment = Segment(client, first, count, rows, deadline, self.now, buffers, priority, 0, payload, regions, reply)
        before = self._waiting_rows(spec)
        self._tell(ev.Submit(spec, segment))
        after = self._waiting_rows(spec)
        if after > max(before, spec.policy.max_queue_rows):
            self._fail(f"{after} rows wait, max_queue_rows is {spec.policy.max_queue_rows}")
        refused = sum(self.requests[client, n].outcome != "" for n in range(first, first + count))
        too_slow = any(error.retry_after for error in self._refusals)
        room = before + rows * (count - refused + 1) <= spec.policy.max_queue_rows
        if refused and room and deadline > self.now and not too_slow:
            self._fail(f"{refused} requests were refused, though {before} rows wait")

    def _ends(self, rows: int) -> list[int]:
        ends, total = [], 0
        for _ in range(rows):
            total += self._dice.choice([0, 1, 10, 300])
            ends.append(total)
        return ends

    def _cancel(self) -> None:
        client = self._dice.choice([b"a", b"b", b"c"])
        mine = [request for request in self._open.values() if request.client == client]
        if not mine:
            return
        times = range(self._dice.randint(1, 3))
        ranges = [(self._dice.choice(mine).number, self._dice.choice([1, 1, 4, 50])) for _ in times]
        hit = [r for r in mine if any(first <= r.number < first + count for first, count in ranges)]
        for request in hit:
            request.cancelled = True
        self._tell(ev.Cancel(client, ranges))
        for request in hit:
            if not request.outcome and request.waiting:
                self._fail(f"request {request.number} was cancelled and waits on")

    def _client_leaves(self) -> None:
        client = self._dice.choice([b"a", b"b", b"c"])
        for key, request in list(self._open.items()):
            if request.client == client:
                request.gone = True
                del self._open[key]
        self._tell(ev.ClientGone(client))

    # -- what workers and the broker do ------------------------------------------------------------------------

    def _join(self, worker: Worker) -> None:
        worker.generation += 1
        worker.alive, worker.draining = True, False
        self._tell(ev.WorkerJoined(worker.name, worker.holder))
        for servable in worker.models:
            if servable not in self._closed:
                worker.routes.add(servable)
                self._tell(ev.Routed(servable, worker.name))

    def _kill_any(self) -> None:
        alive = [worker for worker in self.workers.values() if worker.alive]
        if alive:
            self._kill(self._dice.choice(alive))

    def _kill(self, worker: Worker) -> None:
        holder = worker.holder
        worker.alive = False
        worker.routes.clear()
        lost, worker.batches = list(worker.batches), deque()
        self._quarantined[holder] = sum(batch.lease.nbytes for batch in lost if batch.lease)
        for batch in lost:
            requests = self._rows_of(batch)
            for request, rows in requests:
                request.running -= rows
                if batch is lost[0]:  # the others were staged behind it
                    request.deaths += 1
                    request.died_alone = len(requests) == 1
        self._tell(ev.WorkerLost(worker.name, "killed"))
        delay = self._dice.choice([0.0, 0.01, 0.2])
        self._at(self.now + delay, lambda: self._reaped(holder))
        self._at(self.now + delay + self._dice.choice([0.0, 0.1]), lambda: self._join(worker))

    def _reaped(self, holder: tuple[str, int]) -> None:
        del self._quarantined[holder]
        self._tell(ev.WorkerReaped(holder))

    def _toggle(self) -> None:
        """Drain a worker for a while, or take a route away for a while."""
        worker = self._dice.choice([*self.workers.values()])
        if not worker.alive:
            return
        life, until = worker.generation, self.now + self._dice.choice([0.01, 0.3])
        if self._dice.random() < 0.5 or not worker.routes:
            worker.draining = True
            self._tell(ev.Drain(worker.name, True))
            self._at(until, lambda: self._undrain(worker, life))
        else:
            servable = self._dice.choice(sorted(worker.routes))
            worker.routes.discard(servable)
            self._tell(ev.Unrouted(servable, worker.name))
            self._at(until, lambda: self._reroute(worker, servable, life))

    def _undrain(self, worker: Worker, life: int) -> None:
        if worker.alive and worker.generation == life:
            worker.draining = False
            self._tell(ev.Drain(worker.name, False))

    def _reroute(self, worker: Worker, servable: ModelKey, life: int) -> None:
        if worker.alive and worker.generation == life and servable not in self._closed:
            worker.routes.add(servable)
            self._tell(ev.Routed(servable, worker.name))

    def _unload(self) -> None:
        servable = self._dice.choice(self._specs).servable
        self._closed.add(servable)
        for worker in self.workers.values():
            if servable in worker.routes:
                worker.routes.discard(servable)
                self._tell(ev.Unrouted(servable, worker.name))
        self._tell(ev.ServableGone(servable, NotFound("unloaded")))
        for request in self._open.values():
            if request.spec.servable == servable and request.waiting and not request.running:
                self._fail(f"request {request.number} waits for a servable that is gone")

    def _new_queue(self) -> None:
        """The broker has forgotten what a key meant: later requests get a queue of another number."""
        at = self._dice.randrange(len(self._specs))
        old = self._specs[at]
        self._next_spec += 1
        self._specs[at] = QueueSpec(
            self._next_spec, old.servable, 0, old.inputs, old.by_rows, old.batchable, old.retry, old.policy
        )
        self._tell(ev.QueueClosed(old.id))

    def _finish(self, worker: Worker, batch: Batch, life: int) -> None:
        if not worker.alive or worker.generation != life:
            return
        requests = [request for request, _ in self._rows_of(batch)]
        if any(request.killer for request in requests):
            self._kill(worker)
            return
        worker.batches.popleft()
        if worker.batches:
            self._run(worker)
        cost = self._cost(batch)
        for request, rows in self._rows_of(batch):
            request.running -= rows
        if any(request.poison for request in requests):
            self._tell(ev.Broken(worker.name, batch.id, 0.0, InvalidArgument("poison")))
        else:
            self._tell(ev.Completed(worker.name, batch.id, cost, self._dice.choice([0, 64, 1000, 9000])))

    def _cost(self, batch: Batch) -> float:
        return self._costs[batch.spec.servable] * (1 + batch.padded / 16)

    def _longest(self, spec: QueueSpec) -> float:
        running = (self._cost(batch) for worker in self.workers.values() for batch in worker.batches)
        return 4 * (sum(running) + self._costs[spec.servable] * (1 + 2 * spec.policy.max_rows / 16))

    def _run(self, worker: Worker) -> None:
        batch, life = worker.batches[0], worker.generation
        self._at(self.now + self._cost(batch), lambda: self._finish(worker, batch, life))

    # -- the game ----------------------------------------------------------------------------------------------

    def play(self) -> dict[str, int]:
        """Play to the end; how many requests had which outcome."""
        while True:
            due = min(self._agenda[0][0] if self._agenda else float("inf"), self.scheduler.wakeup())
            if due == float("inf"):
                break
            self.now = max(self.now, due)
            while self._agenda and self._agenda[0][0] <= self.now:
                heapq.heappop(self._agenda)[2]()
                if self._dice.random() < 0.5:
                    break
            self._tell(ev.Turn())
            self._conserves_work()
            if self._step > 200_000:
                self._fail("it never ends")
        for request in self._open.values():
            self._fail(f"request {request.number} of {request.client!r} has no outcome, and nothing is due")
        layout = self.scheduler.layout
        if layout.leased_bytes or layout.quarantined_bytes or self.scheduler.waiting_rows():
            self._fail("something is left in the end")
        if layout.lease(layout.largest) is None:
            self._fail("the arena is not whole in the end")
        return self.counts

    def _tell(self, event: ev.Event) -> None:
        self._recent.append(f"{self.now:.6f} {brief(event)}")
        actions = self.scheduler.handle(event, self.now)
        self._refusals = [action.error for action in actions if isinstance(action, ev.Refuse)]
        for action in actions:
            self._recent.append(f"{self.now:.6f}   -> {brief(action)}")
            if isinstance(action, ev.Dispatch):
                self._dispatched(action.batch)
                worker = self.workers[action.batch.worker]
                if len(worker.batches) == 1:
                    self._run(worker)
            elif isinstance(action, ev.Deliver):
                self._delivered(action.batch)
            else:
                self._refused(action)
        if isinstance(event, ev.Completed) and not actions:
            self._fail("a completed batch was not delivered")
        self._books()


def play(seed: int, calm: bool = False) -> dict[str, int]:
    """One game; how many requests had which outcome. Raises Violation."""
    return Simulation(seed, calm).play()


def main(arguments: Sequence[str] | None = None) -> int:
    """``--seeds N`` (1000), ``--first SEED`` (0); the exit status is 1 when a seed fails, 2 for bad usage."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    options = {"--seeds": 1000, "--first": 0}
    while words:
        name = words.pop(0)
        if name not in options or not words or not words[0].isdigit():
            print("usage: python -m tfpool.testing.simulator [--seeds N] [--first SEED]", file=sys.stderr)
            return 2
        options[name] = int(words.pop(0))
    total: dict[str, int] = {}
    begin, failed = time.monotonic(), []
    for seed in range(options["--first"], options["--first"] + options["--seeds"]):
        try:
            for outcome, count in play(seed).items():
                total[outcome] = total.get(outcome, 0) + count
        except Exception as error:
            failed.append(seed)
            print(error if isinstance(error, Violation) else f"seed {seed}: {error!r}", file=sys.stderr)
    seconds = time.monotonic() - begin
    print(f"{options['--seeds']} seeds in {seconds:.1f} s, {len(failed)} failed {failed[:10]}; {total}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
