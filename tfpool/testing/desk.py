"""A scheduler with named workers and clients, in virtual time: small scenes for tests."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable, Sequence
from typing import Any

from tfpool.errors import (
    InvalidArgument,
    TfpoolError,
)
from tfpool.scheduler import events as ev
from tfpool.scheduler.accounts import Limits
from tfpool.scheduler.core import Scheduler
from tfpool.scheduler.curves import Point
from tfpool.scheduler.staff import NARROW
from tfpool.scheduler.work import NEVER, Batch, BatchPolicy, Input, QueueSpec, Segment
from tfpool.shm.layout import Layout
from tfpool.types import ModelKey
from tfpool.wire.messages import Region

Points = Sequence[tuple[int, float]]
FLAT = [(1, 0.010), (64, 0.010)]
LINEAR = [(1, 0.002), (64, 0.065)]
"""A millisecond, and one more a row."""
BAD = InvalidArgument("bad")


def make_spec(number: int = 0, name: str = "m", batchable: bool = True, retry: bool = True, **policy: Any) -> QueueSpec:
    inputs = (Input((1,), 4, False),)
    return QueueSpec(number, ModelKey(name, 1), 0, inputs, True, batchable, retry, BatchPolicy(**policy))


class Desk:
    """Workers that serve all of ``specs``, whose runs are known to take what ``points`` say. Time stands still until
    something runs. ``answered`` are requests in that order, ``refused`` those with an error."""

    def __init__(
        self,
        *specs: QueueSpec,
        workers: str = "w",
        points: Points = (),
        limits: Limits | None = None,
        narrow: int = NARROW,
        arena: int = 1 << 22,
    ) -> None:
        self.scheduler = Scheduler(Layout(arena), limits, narrow)
        self.specs = specs
        self.now = 100.0
        self.batches: dict[str, deque[Batch]] = {}
        self.lives: Counter[str] = Counter()
        self.answered: list[int] = []
        self.refused: dict[int, TfpoolError] = {}
        self.sent: list[Batch] = []
        self._next = 0
        for name in workers:
            self.join(name)
            for spec in specs if points else ():
                self.tell(ev.Measured(spec.servable, name, [[Point(*point) for point in points]]))

    def tell(self, event: ev.Event) -> None:
        """Something happens; what follows from it is noted."""
        for action in self.scheduler.handle(event, self.now):
            if isinstance(action, ev.Dispatch):
                assert len({piece.deaths for piece in action.batch.pieces}) == 1, "suspects run with others"
                self.sent.append(action.batch)
                self.batches[action.batch.worker].append(action.batch)
            elif isinstance(action, ev.Deliver):
                for piece in action.batch.pieces:
                    join = piece.join
                    if join is None:
                        self.answered += numbers_of(piece)
                    elif not join.failed:
                        join.answered += piece.count
                        self.answered += [join.request] if join.answered == join.rows else []
            else:
                for segment in action.segments:
                    for number in numbers_of(segment):
                        assert number not in self.refused, "refused once"
                        self.refused[number] = action.error
        assert not set(self.answered) & set(self.refused)
        assert len(set(self.answered)) == len(self.answered)

    # -- clients -----------------------------------------------------------------------------------------------

    def ask(
        self, count: int = 1, *, of: QueueSpec | None = None, client: bytes = b"c", within: float = NEVER, **more: Any
    ) -> range:
        """Requests of ``rows`` rows each come in, with ``within`` seconds; their numbers."""
        first, self._next = self._next, self._next + count
        fields: dict[str, Any] = {"rows": 1, "buffers": (), "row_bytes": 4} | more
        segment = Segment(client, first, count, deadline=self.now + within, arrived=self.now, **fields)
        self.tell(ev.Submit(of or self.specs[0], segment))
        return range(first, first + count)

    def in_place(self, count: int = 1, rows: int = 1) -> range:
        """Requests that lie in their client's memory, with room for their answers."""
        first = self._next
        for _ in range(count):
            self.ask(rows=rows, regions=(Region(4096, 1 << 20),), reply=Region(8192, 4096))
        return range(first, first + count)

    # -- workers -----------------------------------------------------------------------------------------------

    def join(self, name: str) -> None:
        self.lives[name] += 1
        self.batches[name] = deque()
        self.tell(ev.WorkerJoined(name, self.holder(name)))
        for spec in self.specs:
            self.tell(ev.Routed(spec.servable, name))

    def holder(self, name: str) -> tuple[str, int]:
        return name, self.lives[name]

    def turn(self) -> list[list[int]]:
        """The requests of each batch that leaves now."""
        before = len(self.sent)
        self.tell(ev.Turn())
        return [requests_of(batch) for batch in self.sent[before:]]

    def end(self, name: str = "w", seconds: float = 0.010, after: float | None = None) -> Batch:
        """A worker's run ends, ``after`` that time or as soon as it took ``seconds``."""
        self.now += seconds if after is None else after
        batch = self.batches[name].popleft()
        self.tell(ev.Completed(name, batch.id, seconds, 64 * batch.padded))
        return batch

    def fail(self, name: str = "w", error: TfpoolError = BAD) -> None:
        self.tell(ev.Broken(name, self.batches[name].popleft().id, 0.001, error))

    def late(self, name: str = "w") -> None:
        self.tell(ev.Late(name, self.batches[name].popleft().id))

    def kill(self, name: str = "w", guilty: bool = True) -> None:
        """A worker dies, and another takes its place."""
        holder = self.holder(name)
        self.tell(ev.WorkerLost(name, "signal 9"))
        self.tell(ev.WorkerReaped(holder, guilty))
        self.join(name)

    def serve(self, killers: Iterable[int] = (), poison: Iterable[int] = (), seconds: float = 0.010) -> int:
        """Let all workers run what there is, until nothing is left; how often one died."""
        deaths, killers, poison = 0, set(killers), set(poison)
        self.turn()
        while busy := [name for name, batches in self.batches.items() if batches]:
            for name in busy:
                requests = set(requests_of(self.batches[name][0]))
                if requests & killers:
                    deaths += 1
                    assert deaths < 100, "it goes on and on"
                    self.kill(name)
                elif requests & poison:
                    self.fail(name)
                else:
                    self.end(name, seconds)
            self.turn()
        return deaths

    def is_square(self) -> None:
        """Nothing waits, runs or is charged to anybody."""
        accounts, layout = self.scheduler.accounts, self.scheduler.layout
        assert (self.scheduler.waiting_rows(), accounts.rows(), accounts.nbytes) == (0, 0, 0)
        assert (layout.leased_bytes, layout.quarantined_bytes) == (0, 0)
        assert all(not queue.held for queue in self.scheduler.backlog.queues.values())


def numbers_of(segment: Segment) -> list[int]:
    return list(range(segment.first, segment.first + segment.count))


def requests_of(batch: Batch) -> list[int]:
    return [n for p in batch.pieces for n in ([p.join.request] * p.count if p.join else numbers_of(p))]
