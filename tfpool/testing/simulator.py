"""A pool in virtual time: the real scheduler, with workers and clients that are dice.

``python -m tfpool.testing.simulator --seeds N`` plays N games. Each seed is one game: random models, policies, limits
and arenas; clients that submit, flood, cancel and leave; workers with every fault that was thought of. After every
event the referee compares what the scheduler did with what it may do. A game that breaks a rule is shrunk to the few
moves that it takes, and these are printed with its seed and the last events.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from heapq import heappop
from random import Random
from typing import Any, TypeVar

from tfpool.errors import NotFound
from tfpool.scheduler import events as ev
from tfpool.scheduler.core import Scheduler
from tfpool.scheduler.work import QueueSpec, Segment
from tfpool.shm.layout import Layout
from tfpool.testing.game import (
    ALWAYS,
    CLIENTS,
    Act,
    Move,
    Name,
    Request,
    Source,
    Table,
    Violation,
    Worker,
    brief,
    dice,
    moves,
)
from tfpool.testing.game_workers import Workers
from tfpool.types import ModelKey
from tfpool.wire.messages import Region

STEPS = 200_000
IN_VAIN = 2
SHRINKING_GAMES = 400
_USAGE = "usage: python -m tfpool.testing.simulator [--seeds N] [--first SEED] [--only MOVE,MOVE,...] [--calm]"
T = TypeVar("T")


class Simulation(Workers):
    """One game, or what is left of it with only some of its moves. ``calm``: nobody dies, cancels or fails."""

    def __init__(self, seed: int, calm: bool = False, only: Iterable[Move] | None = None) -> None:
        table = Table.of(seed)
        super().__init__(seed, calm, table, Scheduler(Layout(table.arena), table.limits, narrow=table.narrow))
        self._specs = list(table.specs)
        self._next_spec = len(self._specs)
        self._next_number = dict.fromkeys(CLIENTS, 0)
        for number, models in enumerate(table.serves):
            worker = Worker(Name(f"w{number}"), list(models))
            self.workers[worker.name] = worker
            self._at(self._chance(worker.name, [0.0, 0.0, 0.3]), worker.name, partial(self._join, worker))
        for move in moves(seed, calm) if only is None else only:
            self._at(move.when, f"move {move.number}", partial(self._make, move))

    def _make(self, move: Move) -> None:
        throw = dice(self.seed, move.number)
        {
            Act.SUBMIT: self._submit,
            Act.CANCEL: self._cancel,
            Act.LEAVE: self._leave,
            Act.KILL: self._kill_any,
            Act.HANG: self._hang,
            Act.SLOW: self._slow_down,
            Act.MUTE: self._mute,
            Act.REPEAT: self._repeat,
            Act.STALE: self._stale,
            Act.DRAIN: self._drain,
            Act.UNROUTE: self._unroute,
            Act.UNLOAD: self._unload,
            Act.NEW_QUEUE: self._new_queue,
        }[move.act](move, throw)

    # -- what clients do ---------------------------------------------------------------------------------------

    def _submit(self, move: Move, throw: Random) -> None:
        spec = throw.choice(self._specs)
        client = throw.choice(CLIENTS)
        rows = throw.choice([1, 1, 1, 2, 3, 7, 20]) if spec.by_rows else 1
        count = throw.choice([1, 1, 2, 5, 30]) if spec.by_rows else 1
        deadline = self.now + throw.choice([0.003, 0.05, 0.2, 0.5, 3.0, 30.0])
        priority = throw.choice([0, 0, 0, 1, -1])
        if move.client:  # a flood
            spec, client, deadline, priority = self._specs[move.queue % len(self._specs)], move.client, 30.0, 0
            rows, count = 1, throw.choice([10, 30]) if spec.by_rows else 1
        if spec.servable in self._closed:
            return
        regions = reply = None
        if not any(item.text for item in spec.inputs) and throw.random() < 0.2:
            count = 1
            regions = tuple(Region(4096, item.row_bytes * rows) for item in spec.inputs)
            reply = Region(8192, 4096) if throw.random() < 0.6 else None
        first = self._next_number[client]
        self._next_number[client] += count
        row_bytes = 0 if regions else sum(item.row_bytes for item in spec.inputs)
        behind = self._rows_waiting(client, spec)
        for number in range(first, first + count):
            request = Request(spec, client, number, rows, deadline, priority, len(self.requests), row_bytes, behind)
            behind += rows
            if not self._calm:
                request.poison = throw.random() < 0.03
                request.kills = throw.choice([1, ALWAYS]) if throw.random() < 0.008 else 0
            self.requests[client, number] = self._open[client, number] = request
        payload = tuple(self._ends(throw, rows * count) for item in spec.inputs if item.text)
        buffers: list[Any] = [b""] * (len(spec.inputs) + len(payload))
        self._sources[id(buffers)] = Source(first, count, rows), buffers
        segment = Segment(
            client,
            first,
            count,
            rows,
            deadline,
            self.now,
            buffers,
            priority,
            payload=payload,
            regions=regions,
            reply=reply,
            row_bytes=row_bytes,
        )
        before = self._rows_in_queue(spec)
        self._tell(ev.Submit(spec, segment))
        sent = [self.requests[client, number] for number in range(first, first + count)]
        behind = self._rows_waiting(client, spec) - sum(request.waiting for request in sent)
        for request in sent:
            request.behind = behind
            behind += request.waiting
        self._admitted(spec, sent, before)

    @staticmethod
    def _ends(throw: Random, rows: int) -> list[int]:
        ends, total = [], 0
        for _ in range(rows):
            total += throw.choice([0, 1, 10, 300])
            ends.append(total)
        return ends

    def _cancel(self, move: Move, throw: Random) -> None:
        client = throw.choice(CLIENTS)
        mine = [request for request in self._open.values() if request.client == client]
        if not mine:
            return
        times = range(throw.randint(1, 3))
        ranges = [(throw.choice(mine).number, throw.choice([1, 1, 4, 50])) for _ in times]
        hit = [r for r in mine if any(first <= r.number < first + count for first, count in ranges)]
        for request in hit:
            request.cancelled = True
        self._tell(ev.Cancel(client, ranges))
        for request in hit:
            if not request.outcome and request.waiting:
                self._fail(f"request {request.number} was cancelled and waits on")

    def _leave(self, move: Move, throw: Random) -> None:
        client = throw.choice(CLIENTS)
        self._left = True
        for key, request in list(self._open.items()):
            if request.client == client:
                request.gone = True
                del self._open[key]
        self._tell(ev.ClientGone(client))

    # -- what the broker does ----------------------------------------------------------------------------------

    def _drain(self, move: Move, throw: Random) -> None:
        """A worker gets nothing for a while."""
        if worker := self._somebody(throw):
            worker.draining, life = True, worker.generation
            self._tell(ev.Drain(worker.name, True))
            until = self.now + throw.choice([0.01, 0.3])
            self._at(until, f"undrain {move.number}", lambda: self._undrain(worker, life))

    def _undrain(self, worker: Worker, life: int) -> None:
        if worker.alive and worker.generation == life:
            worker.draining = False
            self._tell(ev.Drain(worker.name, False))

    def _unroute(self, move: Move, throw: Random) -> None:
        """A worker gets nothing of one model for a while."""
        worker = self._somebody(throw)
        if worker and worker.routes:
            servable, life = throw.choice(sorted(worker.routes)), worker.generation
            worker.routes.discard(servable)
            self._tell(ev.Unrouted(servable, worker.name))
            until = self.now + throw.choice([0.01, 0.3])
            self._at(until, f"reroute {move.number}", lambda: self._reroute(worker, servable, life))

    def _reroute(self, worker: Worker, servable: ModelKey, life: int) -> None:
        if worker.alive and worker.generation == life and servable not in self._closed:
            worker.routes.add(servable)
            self._tell(ev.Routed(servable, worker.name))

    def _unload(self, move: Move, throw: Random) -> None:
        servable = throw.choice(self._specs).servable
        self._closed.add(servable)
        for worker in self.workers.values():
            if servable in worker.routes:
                worker.routes.discard(servable)
                self._tell(ev.Unrouted(servable, worker.name))
        self._tell(ev.ServableGone(servable, NotFound("unloaded")))
        for request in self._open.values():
            if request.spec.servable == servable and request.waiting and not request.running:
                self._fail(f"request {request.number} waits for a servable that is gone")

    def _new_queue(self, move: Move, throw: Random) -> None:
        """The broker has forgotten what a key meant: later requests get a queue of another number."""
        at = throw.randrange(len(self._specs))
        old = self._specs[at]
        self._specs[at] = QueueSpec(
            self._next_spec, old.servable, 0, old.inputs, old.by_rows, old.batchable, old.retry, old.policy
        )
        self._next_spec += 1
        self._tell(ev.QueueClosed(old.id))

    # -- the game ----------------------------------------------------------------------------------------------

    def play(self) -> dict[str, int]:
        """Play to the end; how many requests had which outcome."""
        in_vain = 0
        for _ in range(STEPS):
            planned, wakeup = self._agenda[0][0] if self._agenda else float("inf"), self.scheduler.wakeup()
            if planned == wakeup == float("inf"):
                self._is_over()
                return self.counts
            in_vain = in_vain + 1 if wakeup <= self.now < planned else 0
            if in_vain > IN_VAIN:
                self._fail(f"it wakes up again and again at {wakeup}")
            self.now = max(self.now, min(planned, wakeup))
            while self._agenda and self._agenda[0][0] <= self.now:
                _, _, key, what = heappop(self._agenda)
                what()
                if self._chance(key, [True, False]):
                    break
            self._tell(ev.Turn())
            self._conserves_work()
        self._fail("it never ends")

    def _tell(self, event: ev.Event) -> list[ev.Action]:
        self.told[type(event).__name__] += 1
        self._recent.append(f"{self.now:.6f} {brief(event)}")
        actions = self.scheduler.handle(event, self.now)
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
                self._refused(action, event)
        self._books()
        return actions


# -- many games ----------------------------------------------------------------------------------------------------


def play(seed: int, calm: bool = False, only: frozenset[int] | None = None) -> dict[str, int]:
    """Play one game, or only these moves of it; how many requests had which outcome.

    Raises Violation where a rule is broken, with a game that is as small as could be found quickly.
    """
    chosen = [move for move in moves(seed, calm) if only is None or move.number in only]
    problem = _problem(seed, calm, chosen)
    if isinstance(problem, dict):
        return problem
    few = shrunk(chosen, lambda some: isinstance(_problem(seed, calm, some), str))
    numbers = ",".join(str(move.number) for move in few)
    again = f"--first {seed} --seeds 1 --only {numbers}{' --calm' * calm}"
    raise Violation(f"{_problem(seed, calm, few)}\n{len(few)} of {len(chosen)} moves do it: {again}")


def _problem(seed: int, calm: bool, chosen: Sequence[Move]) -> dict[str, int] | str:
    """What is wrong with a game; its outcomes where nothing is."""
    try:
        return Simulation(seed, calm, chosen).play()
    except Violation as error:
        return str(error)
    except Exception as error:  # the scheduler's own
        return f"seed {seed}: {error!r}"


def shrunk(items: Sequence[T], fails: Callable[[Sequence[T]], bool], games: int = SHRINKING_GAMES) -> list[T]:
    """As few of ``items``, which fail together, as still fail: none can be left out, unless ``games`` were too few to
    find that out. Parts are left out that get smaller and smaller (after Zeller and Hildebrandt's ddmin, 2002)."""
    kept = list(items)
    size = max(1, len(kept) // 2)
    while True:
        at, before = 0, len(kept)
        while at < len(kept) and games > 0:
            rest = kept[:at] + kept[at + size :]
            games -= 1
            if fails(rest):
                kept = rest
            else:
                at += size
        if games <= 0 or (size == 1 and len(kept) == before):
            return kept
        size = max(1, size // 2)


def main(arguments: Sequence[str] | None = None) -> int:
    """``--seeds N`` (1000), ``--first SEED`` (0); the exit status is 1 when a seed fails, 2 for bad usage."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    options = {"--seeds": "1000", "--first": "0", "--only": ""}
    calm = "--calm" in words
    words = [word for word in words if word != "--calm"]
    while words:
        name = words.pop(0)
        if name not in options or not words or not words[0].replace(",", "").isdigit():
            print(_USAGE, file=sys.stderr)
            return 2
        options[name] = words.pop(0)
    only = frozenset(map(int, options["--only"].split(","))) if options["--only"] else None
    first, seeds = int(options["--first"]), int(options["--seeds"])
    total: dict[str, int] = {}
    begin, failed = time.monotonic(), []
    for seed in range(first, first + seeds):
        try:
            for outcome, count in play(seed, calm, only).items():
                total[outcome] = total.get(outcome, 0) + count
        except Violation as error:
            failed.append(seed)
            print(error, file=sys.stderr)
    print(f"{seeds} seeds in {time.monotonic() - begin:.1f} s, {len(failed)} failed {failed[:10]}; {total}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
