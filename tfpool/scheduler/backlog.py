"""All queues, and which of them have something waiting."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping
from heapq import heappop, heappush

from tfpool.scheduler.work import NEVER, Join, Queue, QueueSpec, Segment
from tfpool.types import ModelKey

EXPIRY_STEP = 0.001
_NONE: dict[int, Queue] = {}


class Backlog:
    """Queues by id, and by model those that are not empty."""

    def __init__(self) -> None:
        self.queues: dict[int, Queue] = {}
        self._waiting: dict[str, dict[int, Queue]] = {}
        self._due: list[tuple[float, int]] = []
        self._due_of: dict[int, float] = {}

    @property
    def expiry(self) -> float:
        """When the next deadline passes, or earlier (monotonic seconds)."""
        return self._due[0][0] if self._due else NEVER

    def open(self, spec: QueueSpec) -> Queue:
        queue = self.queues.get(spec.id)
        if queue is None:
            queue = self.queues[spec.id] = Queue(spec)
        return queue

    def close(self, queue_id: int) -> None:
        """Forget a queue as soon as it is empty."""
        queue = self.queues.get(queue_id)
        if queue is not None:
            queue.closing = True
            if not queue.segments:
                del self.queues[queue_id]

    def wake(self, queue: Queue) -> None:
        """A queue has something waiting."""
        number = queue.spec.id
        self.queues[number] = queue
        name = queue.spec.servable.name
        group = self._waiting.get(name)
        if group is None:
            self._waiting[name] = {number: queue}
        else:
            group[number] = queue
        if queue.earliest < self._due_of.get(number, NEVER):
            self._fall_due(number, queue.earliest)

    def rest(self, queue: Queue) -> bool:
        """A queue may have become empty; True when nothing of its model waits any more."""
        if queue.segments:
            return False
        queue.rows = 0
        queue.paced = queue.pacing = queue.gap = 0.0
        queue.earliest = NEVER
        name = queue.spec.servable.name
        group = self._waiting.get(name)
        if group is not None:
            group.pop(queue.spec.id, None)
            if not group:
                del self._waiting[name]
        if queue.closing:
            self.queues.pop(queue.spec.id, None)
        return name not in self._waiting

    def level(self, model: str) -> int | None:
        """The highest priority of what a model has waiting against that of others; None where nothing does."""
        best = None
        for queue in self._waiting.get(model, {}).values():
            if queue.segments:
                level = queue.spec.policy.priority + queue.segments[0].priority
                if best is None or level > best:
                    best = level
        return best

    def group(self, model: str) -> Mapping[int, Queue]:
        """Queues of a model in which something waits, by id; not to be kept."""
        return self._waiting.get(model) or _NONE

    def of_model(self, name: str) -> list[Queue]:
        """Queues of a model in which something waits."""
        group = self._waiting.get(name)
        return list(group.values()) if group else []

    def of_servable(self, servable: ModelKey) -> list[Queue]:
        return [queue for queue in self.of_model(servable.name) if queue.spec.servable == servable]

    def waiting(self) -> list[Queue]:
        """All queues in which something waits."""
        return [queue for group in self._waiting.values() for queue in group.values()]

    # -- taking requests out of the middle ---------------------------------------------------------------------

    def late(self, now: float) -> Iterator[tuple[Queue, list[Segment]]]:
        """Take out what waits past its deadline; sets when to look again."""
        due, due_of = self._due, self._due_of
        while due and due[0][0] <= now:
            when, number = heappop(due)
            if due_of.get(number) != when:
                continue
            del due_of[number]
            queue = self.queues.get(number)
            if queue is None or not queue.segments:
                continue
            gone = remove(queue, lambda segment: segment.deadline <= now) if queue.earliest <= now else []
            if queue.segments:
                self._fall_due(number, max(queue.earliest, now + EXPIRY_STEP))
            if gone:
                yield queue, gone

    def _fall_due(self, number: int, when: float) -> None:
        self._due_of[number] = when
        heappush(self._due, (when, number))

    def cancelled(self, client: bytes, ranges: list[tuple[int, int]]) -> Iterator[tuple[Queue, list[Segment]]]:
        """Take out the requests ``(first, count)`` of a client."""
        wanted = _merged(ranges)
        for queue in self.waiting():
            kept: list[Segment] = []
            gone: list[Segment] = []
            for segment in queue.segments:
                if segment.client != client:
                    kept.append(segment)
                else:
                    _sift(segment, wanted, kept, gone)
            if gone:
                replace(queue, kept)
                yield queue, gone

    def of_client(self, client: bytes) -> Iterator[tuple[Queue, list[Segment]]]:
        """Take out all requests of a client."""
        for queue in self.waiting():
            gone = remove(queue, lambda segment: segment.client == client)
            if gone:
                yield queue, gone


def remove(queue: Queue, unwanted: Callable[[Segment], bool]) -> list[Segment]:
    """Take segments out of a queue."""
    gone = [segment for segment in queue.segments if unwanted(segment)]
    replace(queue, [segment for segment in queue.segments if not unwanted(segment)] if gone else list(queue.segments))
    return gone


def replace(queue: Queue, segments: list[Segment]) -> None:
    """Have exactly these segments wait."""
    queue.segments.clear()
    queue.segments.extend(segments)
    queue.rows = sum(segment.count * segment.rows for segment in segments)
    queue.earliest = min((segment.deadline for segment in segments), default=NEVER)
    queue.held.clear()
    if queue.spec.policy.fair:
        for segment in segments:
            rows = segment.count * segment.rows
            queue.held[segment.client] = queue.held.get(segment.client, 0) + rows


def explode(segment: Segment) -> list[Segment]:
    """Requests larger than a batch, each as one segment of single rows with a join."""
    return [
        Segment(
            segment.client,
            0,
            segment.rows,
            1,
            segment.deadline,
            segment.arrived,
            segment.buffers,
            segment.priority,
            (segment.start + i) * segment.rows,
            segment.payload,
            segment.regions,
            segment.reply,
            Join(segment.first + i, segment.rows),
            row_bytes=segment.row_bytes,
            account=segment.account,
        )
        for i in range(segment.count)
    ]


def _merged(ranges: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Ranges (first, count) as (begin, end), in order and apart."""
    merged: list[tuple[int, int]] = []
    for first, count in sorted(ranges):
        if merged and first <= merged[-1][1]:
            merged[-1] = merged[-1][0], max(merged[-1][1], first + count)
        else:
            merged.append((first, first + count))
    return merged


def _sift(segment: Segment, wanted: list[tuple[int, int]], kept: list[Segment], gone: list[Segment]) -> None:
    """Split one segment into what is kept and what is not; ``wanted`` are the ids to take out, see :func:`_merged`."""
    join = segment.join
    first, end = (join.request, join.request + 1) if join else (segment.first, segment.first + segment.count)
    at = max(0, bisect_right(wanted, (first, end)) - 1)
    while at < len(wanted) and wanted[at][0] < end:
        hit, over = max(wanted[at][0], first), min(wanted[at][1], end)
        at += 1
        if hit >= over:
            continue
        if join:
            gone.append(segment)
            return
        if hit > segment.first:
            kept.append(segment.take(hit - segment.first))
        gone.append(segment.take(over - hit))
    if segment.count:
        kept.append(segment)
