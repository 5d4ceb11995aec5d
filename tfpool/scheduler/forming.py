"""Cut batches off queues and give them their bytes."""

from __future__ import annotations

from collections.abc import Hashable

from tfpool.scheduler.sizing import batch_rows, batches, in_place, input_bytes, output_bytes, plan
from tfpool.scheduler.work import Batch, Queue, WorkerName
from tfpool.shm.layout import Layout, Lease


class Former:
    """Numbers the batches, and leases their bytes from ``layout``."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self._next = 0

    def needs(self, queue: Queue, worker: WorkerName) -> int:
        """Bytes that the head of a queue needs at least to run: none where it runs in place."""
        head = queue.segments[0]
        if head.regions is not None and in_place(queue, _head_seconds(queue, worker)):
            return 0
        return max(1, input_bytes(queue, head.rows))  # empty tensors take a block too

    def form(
        self, queue: Queue, worker: WorkerName, holder: Hashable, sharers: int, most: int, now: float
    ) -> Batch | None:
        """The next batch of a queue: as large as it may be (``most`` rows, but for a larger head) and as the arena has
        room for, shared with so many workers. None where there is no room for its head."""
        spec, head = queue.spec, queue.segments[0]
        curve = queue.curves.get(worker)
        alone = in_place(queue, _head_seconds(queue, worker)) if head.regions is not None else 0
        lease = None
        if alone:
            if head.reply is None:
                lease = self._layout.lease(output_bytes(queue, head.rows), holder)
            pieces = [queue.take_one() for _ in range(alone)]
        else:
            rows = 1 if queue.rows == 1 else batch_rows(queue, sharers, most)
            while (lease := self._lease(queue, rows, holder)) is None:
                if rows <= head.rows:
                    return None
                rows = max(rows // 2, head.rows)
            pieces = queue.take(rows) if batches(spec) else [queue.take_one()]
        self._next += 1
        batch = plan(self._next, queue, worker, pieces, lease, bool(alone), now)
        if curve is not None:
            batch.thought = curve.run(pieces[0].rows) * alone if alone else curve.run(batch.padded)
        return batch

    def _lease(self, queue: Queue, rows: int, holder: Hashable) -> Lease | None:
        """Room for inputs and outputs, or for the inputs alone: outputs that do not fit come in other memory."""
        need = input_bytes(queue, rows)
        return self._layout.lease(need + output_bytes(queue, rows), holder) or self._layout.lease(need, holder)


def _head_seconds(queue: Queue, worker: WorkerName) -> float:
    curve = queue.curves.get(worker)
    return 0.0 if curve is None else curve.run(queue.segments[0].rows)
