"""What a simulated game is made of: a table, and moves; each is thrown with dice of its own.

Leaving a move out changes no other one, so a game that fails can be shrunk to the few moves that it takes.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum
from random import Random

from tfpool.scheduler import events as ev
from tfpool.scheduler.accounts import NO_LIMIT, Limits
from tfpool.scheduler.work import Batch, BatchPolicy, Input, QueueSpec
from tfpool.shm.layout import MIN_BLOCK
from tfpool.types import ModelKey

HORIZON = 2.0
CLIENTS = (b"a", b"b", b"c")
ALWAYS = 1 << 30


class Act(Enum):
    """What a client, a worker or the broker does."""

    SUBMIT = "submit"
    CANCEL = "cancel"
    LEAVE = "leave"
    KILL = "kill"
    HANG = "hang"
    SLOW = "slow"
    MUTE = "mute"
    REPEAT = "repeat"
    STALE = "stale"
    DRAIN = "drain"
    UNROUTE = "unroute"
    UNLOAD = "unload"
    NEW_QUEUE = "new queue"


CALM = frozenset({Act.SUBMIT, Act.SLOW, Act.REPEAT})
"""What nobody dies, fails or is refused of."""


@dataclass(frozen=True, slots=True)
class Move:
    """One thing that happens at ``when`` (seconds). A flood's are all of one ``client`` and for one ``queue``."""

    number: int
    when: float
    act: Act
    client: bytes = b""
    queue: int = -1


def dice(seed: int, *what: object) -> Random:
    """Dice of their own for something in a game: the same in every process."""
    return Random(f"{seed} {what}")


def moves(seed: int, calm: bool = False) -> list[Move]:
    """All that is planned in a game; ``calm``: nobody dies, cancels or fails."""
    throw = dice(seed, "moves")
    found: list[Move] = []

    def add(act: Act, times: int, when: float = -1.0, client: bytes = b"", queue: int = -1) -> None:
        for _ in range(times):
            at = throw.uniform(0.0, HORIZON) if when < 0 else when
            if not calm or act in CALM:
                found.append(Move(len(found), at, act, client, queue))

    for _ in range(throw.choice([5, 20, 60])):
        add(Act.SUBMIT, throw.choice([1, 1, 3, 12]), throw.uniform(0.0, HORIZON))
    if throw.random() < 0.15:
        when, queue = throw.uniform(0.0, HORIZON / 2), throw.randrange(5)
        for _ in range(throw.choice([1, 4])):
            add(Act.SUBMIT, 8, when, CLIENTS[0], queue)
            when += 0.01
    for act, times in _TIMES.items():
        add(act, throw.choice(times))
    return found


_TIMES: dict[Act, Sequence[int]] = {
    Act.CANCEL: (0, 2, 6),
    Act.LEAVE: (0, 0, 0, 0, 1),
    Act.KILL: (0, 0, 1, 4),
    Act.HANG: (0, 0, 0, 1),
    Act.SLOW: (0, 0, 1, 2),
    Act.MUTE: (0, 0, 0, 1, 2),
    Act.REPEAT: (0, 0, 3),
    Act.STALE: (0, 0, 3),
    Act.DRAIN: (0, 0, 2),
    Act.UNROUTE: (0, 0, 2),
    Act.UNLOAD: (0, 0, 0, 0, 1),
    Act.NEW_QUEUE: (0, 0, 1),
}


@dataclass(frozen=True, slots=True)
class Table:
    """Where a game is played: bytes of the arena, queues, limits, seconds a run by model, and what workers serve.

    ``narrow`` is the most workers that a route has which is not wide.
    """

    roomy: bool
    arena: int
    narrow: int
    limits: Limits
    specs: tuple[QueueSpec, ...]
    costs: dict[ModelKey, float]
    serves: tuple[tuple[ModelKey, ...], ...]

    @staticmethod
    def of(seed: int) -> Table:
        throw = dice(seed, "table")
        roomy = throw.random() < 0.5
        specs = tuple(_spec(throw, number) for number in range(throw.randint(1, 5)))
        servables = list(dict.fromkeys(spec.servable for spec in specs))
        count = throw.randint(1, 3)
        holders = {servable: throw.sample(range(count), throw.randint(1, count)) for servable in servables}
        return Table(
            roomy,
            (1 << 22) if roomy else MIN_BLOCK * throw.choice([2, 5, 16, 64]),
            throw.choice([1, 8]),
            Limits(*(throw.choice([NO_LIMIT, NO_LIMIT, low]) for low in (40, 20_000, 40_000))),
            specs,
            {servable: throw.choice([0.0005, 0.002, 0.01, 0.05]) for servable in servables},
            tuple(tuple(s for s in servables if worker in holders[s]) for worker in range(count)),
        )


def _spec(throw: Random, number: int) -> QueueSpec:
    mutates = throw.random() < 0.15
    by_rows = throw.random() < 0.9
    max_rows = throw.choice([1, 2, 4, 8, 16, 64])
    sizes = throw.choice([(), (), tuple(1 << k for k in range(max_rows.bit_length())), (max_rows,)])
    policy = BatchPolicy(
        max_rows=max_rows,
        max_wait=throw.choice([0.0, 0.0, 0.0, 0.004, 0.05]),
        sizes=sizes,
        pad=throw.random() < 0.6,
        max_queue_rows=max(max_rows, throw.choice([5, 30, 200, 16384])),
        weight=throw.choice([1.0, 1.0, 0.2, 5.0]),
        max_queue=throw.choice([0.0, 0.0, 0.02, 0.5]),
        fair=throw.random() < 0.7,
        priority=throw.choice([0, 0, 0, 1, -1]),
    )
    inputs = tuple(
        Input((1,), throw.choice([0, 1, 4, 64, 100, 900]), False) if throw.random() < 0.75 else Input((1,), 4, True)
        for _ in range(throw.choice([1, 1, 1, 2, 3]))
    )
    servable = ModelKey(f"m{throw.randint(0, number)}", 1)
    batchable = by_rows and not mutates and throw.random() < 0.85
    return QueueSpec(number, servable, 0, inputs, by_rows, batchable, not mutates, policy)


# -- what happens to whom -----------------------------------------------------------------------------------------


class Violation(AssertionError):
    """The scheduler did what it must not."""


class Name(str):
    """A worker's name that hashes alike in every process, so that a seed is the same game everywhere."""

    def __hash__(self) -> int:
        return int.from_bytes(self.encode(), "little")


@dataclass(slots=True)
class Request:
    """One request's story. ``running`` and ``answered`` are row ranges; a request without rows counts as one.

    ``kills`` is how many more workers die of running it. ``behind`` are the rows that its client had waiting in the
    queue when it came.
    """

    spec: QueueSpec
    client: bytes
    number: int
    rows: int
    deadline: float
    priority: int
    order: int
    row_bytes: int
    behind: int
    poison: bool = False
    kills: int = 0
    outcome: str = ""
    running: set[int] = field(default_factory=set)
    answered: set[int] = field(default_factory=set)
    deaths: int = 0
    died_alone: bool = False
    lone_deaths: int = 0
    cancelled: bool = False
    gone: bool = False

    @property
    def waiting(self) -> int:
        """Rows that lie in the queue."""
        return 0 if self.outcome or self.gone else self.rows - len(self.running) - len(self.answered)

    @property
    def unanswered(self) -> int:
        """Rows that the pool owes."""
        return 0 if self.outcome or self.gone else self.rows - len(self.answered)


@dataclass(slots=True)
class Source:
    """Where a segment's buffers came from: the requests they were sent with."""

    first: int
    count: int
    rows: int


@dataclass(slots=True)
class Worker:
    """One worker process, or the gap where one was. ``hung``: it finishes nothing any more; ``mute``: it dies before
    its next answer; until ``slow_until`` its runs take longer."""

    name: str
    models: list[ModelKey]
    generation: int = 0
    alive: bool = False
    draining: bool = False
    hung: bool = False
    mute: bool = False
    slow_until: float = 0.0
    batches: deque[Batch] = field(default_factory=deque)
    routes: set[ModelKey] = field(default_factory=set)

    @property
    def holder(self) -> tuple[str, int]:
        return self.name, self.generation

    def begin(self) -> None:
        """A new process."""
        self.generation += 1
        self.alive = True
        self.draining = self.hung = self.mute = False

    def end(self) -> list[Batch]:
        """The process is dead; what it had."""
        lost, self.batches = list(self.batches), deque()
        self.alive = False
        self.routes.clear()
        return lost


def brief(event: object) -> str:
    if isinstance(event, (ev.Dispatch, ev.Deliver)):
        batch = event.batch
        pieces = [(p.client, p.join.request if p.join else p.first, p.first, p.count, p.rows) for p in batch.pieces]
        kind = type(event).__name__
        return f"{kind} {batch.id} {batch.worker} {batch.spec.id} rows {batch.rows} alone {batch.alone} {pieces}"
    if isinstance(event, ev.Refuse):
        return f"Refuse {[(s.client, s.first, s.count) for s in event.segments]} {event.error!r}"
    if isinstance(event, ev.Submit):
        s = event.segment
        place = "arena" if s.regions else "frames"
        return f"Submit {event.spec.id} {(s.client, s.first, s.count, s.rows)} until {s.deadline:.6f} {place}"
    return str(event)
